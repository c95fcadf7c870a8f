//! Several filters in a row look at one frame: both results stay, and the worse verdict counts.

use diad::detector::Verdict;
use gst::MessageView;

use super::common::*;
use super::*;

/// Two filters of the shop's model, one after the other, with `ng` from the first and `ok` from the second.
fn two(shop: &Shop, overlay: &str) -> (gst::Element, [gst::Element; 2]) {
    let filters = ["first", "second"].map(|name| {
        let element = filter(shop);
        element.set_property("name", name);
        element.set_property_from_str("meta", "regions+result+map");
        element.set_property_from_str("post-messages", "all");
        element
    });
    filters[0].set_property_from_str("overlay", overlay);
    filters[0].set_property("threshold", 0.0);
    filters[1].set_property("threshold", 1e6);
    filters[1].set_property("warn-threshold", 1e6);
    let bin = gst::Bin::new();
    bin.add_many(&filters).unwrap();
    filters[0].link(&filters[1]).unwrap();
    for (filter, pad) in [(&filters[0], "sink"), (&filters[1], "src")] {
        bin.add_pad(&gst::GhostPad::with_target(&filter.static_pad(pad).unwrap()).unwrap()).unwrap();
    }
    (bin.upcast(), filters)
}

/// What passes an element that is fed with this.
fn passes(element: &str, buffer: &gst::Buffer) -> Option<gst::Buffer> {
    let mut harness = Harness::new_parse(element);
    harness.set_src_caps(caps("RGB", 64, 64));
    harness.play();
    harness.push(buffer.clone()).unwrap();
    harness.push_event(gst::event::Eos::new());
    while harness.pull_event().unwrap().type_() != gst::EventType::Eos {}
    harness.try_pull()
}

#[test]
fn both_results_stay_and_the_worse_verdict_counts_everywhere() {
    let shop = shop();
    let (bin, filters) = two(&shop, "0");
    let bus = with_bus(&bin);
    let mut harness = harness(&bin, 64, 64);
    let frame = &shop.frames("blister/test/missing")[0];
    harness.push(buffer(frame, 0)).unwrap();
    let out = harness.pull().unwrap();
    let said = frame_result(&out);
    let each: Vec<_> = said.results.iter().map(|result| (result.element.as_str(), result.verdict)).collect();
    assert_eq!(each, [("first", Verdict::Ng), ("second", Verdict::Ok)]);
    assert_eq!(said.verdict, Verdict::Ng, "a frame that was rejected stays rejected");

    // Metas of both.
    let regions: usize = said.results.iter().map(|result| result.finding.as_ref().unwrap().regions.len()).sum();
    assert_eq!(out.iter_meta::<gst_video::VideoRegionOfInterestMeta>().count(), regions);
    let maps: Vec<_> = meta::maps_of(&out).into_iter().map(|map| map.element).collect();
    assert_eq!(maps, ["first", "second"]);
    // The bus: each element says what was known of the frame when it left there.
    let mut posted = Vec::new();
    while posted.len() < 2 {
        let one = |message: &gst::Message| {
            let MessageView::Element(element) = message.view() else { return None };
            element.structure().and_then(|structure| DiadResult::try_from(structure).ok())
        };
        posted.push(message(&bus, one));
    }
    assert_eq!(
        posted.iter().map(|result| (result.verdict, result.results.len())).collect::<Vec<_>>(),
        [(Verdict::Ng, 1), (Verdict::Ng, 2)]
    );
    assert_eq!(posted[1], said);
    // JSON, selection, statistics of each by itself.
    let line = passes("diadmeta2json", &out).unwrap();
    let json: serde_json::Value = serde_json::from_slice(&line.map_readable().unwrap()).unwrap();
    assert_eq!((&json["verdict"], &json["results"][1]["verdict"]), (&"ng".into(), &"ok".into()));
    assert!(passes("diadselect verdicts=ng", &out).is_some() && passes("diadselect verdicts=ok", &out).is_none());
    let counts = filters.each_ref().map(|filter| [stat(filter, "ok"), stat(filter, "ng")]);
    assert_eq!(counts, [[0, 1], [1, 0]]);
    // And the overlay is red, as it is for one that is ng alone.
    let banner = |buffer: &gst::Buffer| buffer.map_readable().unwrap()[3 * (64 * 2 + 2)..][..3].to_vec();
    assert_eq!(banner(&passes("diadoverlay overlay=verdict", &out).unwrap()), [215, 25, 30]);
}

#[test]
fn nobody_inspects_what_another_has_drawn() {
    let shop = shop();
    let frame = &shop.frames("blister/test/missing")[0];
    let (bin, filters) = two(&shop, "verdict+boxes");
    let bus = with_bus(&bin);
    let mut harness = harness(&bin, 64, 64);
    for n in 0..3 {
        harness.push(buffer(frame, n)).unwrap();
        let said = frame_result(&harness.pull().unwrap());
        let second = &said.results[1];
        assert_eq!((said.results[0].verdict, second.verdict, &second.finding), (Verdict::Ng, Verdict::Error, &None));
        let reason = second.reason.as_ref().unwrap();
        assert!(reason.contains("first has drawn") && reason.contains("overlay=0"), "{reason}");
    }
    let warnings = std::iter::from_fn(|| bus.pop()).filter(|message| message.type_() == gst::MessageType::Warning);
    assert_eq!(warnings.count(), 1, "and it is said loudly, once");
    assert_eq!(stat(&filters[1], "error"), 3);
    filters.iter().for_each(assert_all_counted);

    // Drawn by the overlay element it is the same, and a result from before stays the worse one.
    let clean = filter(&shop);
    let mut source = super::harness(&clean, 64, 64);
    source.push(buffer(frame, 0)).unwrap();
    let drawn = passes("diadoverlay overlay=boxes+verdict", &source.pull().unwrap()).unwrap();
    let last = filter(&shop);
    let mut sink = super::harness(&last, 64, 64);
    sink.push(drawn).unwrap();
    let said = frame_result(&sink.pull().unwrap());
    assert_eq!((said.results.len(), said.results[1].verdict), (2, Verdict::Error));
}
