//! What the line's operator and application can do: thresholds, regions, confirmation, parts, messages, another model.

use diad::detector::{Detector, Request, Verdict};
use gst::MessageView;

use super::common::*;
use super::*;

/// Results of `frames` through the element, one by one.
fn results(harness: &mut Harness, frames: &[Frame]) -> Vec<Inspection> {
    let each = |(n, frame)| {
        harness.push(buffer(frame, n as u64)).unwrap();
        result(&harness.pull().unwrap())
    };
    frames.iter().enumerate().map(each).collect()
}

#[test]
fn thresholds_of_the_line_replace_those_of_the_model() {
    let shop = shop();
    let element = filter(&shop);
    let mut harness = harness(&element, 64, 64);
    let frames = shop.frames("washer/test/good");
    let own = results(&mut harness, &frames[..1])[0].finding.clone().unwrap();
    element.set_property("threshold", f64::from(own.score) / 2.0);
    let strict = &results(&mut harness, &frames[..1])[0];
    assert_eq!(strict.verdict, Verdict::Ng);
    let found = strict.finding.clone().unwrap();
    assert_eq!((found.score, found.threshold), (own.score, own.score / 2.0));
    element.set_property("threshold", f64::from(own.score) * 3.0);
    element.set_property("warn-threshold", f64::from(own.score) / 2.0);
    assert_eq!(results(&mut harness, &frames[..1])[0].verdict, Verdict::Warn);
    element.set_property("warn-threshold", -1.0);
    element.set_property("threshold", -1.0);
    element.set_property("target-fpr", 0.5);
    let loose = results(&mut harness, &frames[..1])[0].finding.clone().unwrap();
    assert!(loose.threshold <= own.threshold, "half of the good parts may be rejected");
    element.set_property("inference-interval", 2u32);
    let verdicts: Vec<_> =
        results(&mut harness, &frames[..2]).iter().map(|r| r.verdict == Verdict::Uninspected).collect();
    assert_eq!(verdicts.iter().filter(|skipped| **skipped).count(), 1);
    assert_all_counted(&element);
}

#[test]
fn a_region_and_a_mask_are_those_of_the_library() {
    use diad::detector::Mask;
    use diad::frame::Preprocess;

    let shop = shop();
    let detector = Detector::open(&shop.model).unwrap();
    let input = &detector.card().config.input;
    let frame = &shop.frames("blister/test/missing")[0];
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("mask.pgm");
    let black_left: Vec<u8> = (0..64 * 64).map(|i| if i % 64 < 32 { 0 } else { 255 }).collect();
    std::fs::write(&path, [b"P5 64 64 255\n".as_slice(), &black_left].concat()).unwrap();

    let element = filter(&shop);
    element.set_property("roi", "8,0,48,64");
    let mut harness = harness(&element, 64, 64);
    let preprocess = Preprocess { size: input.size, fit: input.fit, roi: Some([0.125, 0.0, 0.75, 1.0]) };
    let mask = Mask::new(&diad::frame::read_frame(&path).unwrap(), &preprocess, detector.card().config.grid());
    let prepared = [preprocess.apply(frame).unwrap()];
    let inspect = |request: Request| detector.inspect(&[(&prepared, &request)]).remove(0).unwrap();
    let expected = inspect(Request::default());
    let found = results(&mut harness, std::slice::from_ref(frame))[0].finding.clone().unwrap();
    assert_eq!((found.score, found.regions), (expected.score, expected.regions));

    element.set_property("mask-location", path.to_str().unwrap());
    let masked = inspect(Request { masks: Some(vec![mask.unwrap()]), ..Request::default() });
    assert_ne!(masked.score, expected.score);
    let found = results(&mut harness, std::slice::from_ref(frame))[0].finding.clone().unwrap();
    assert_eq!((found.score, found.regions), (masked.score, masked.regions));
}

#[test]
fn ng_is_confirmed_by_the_last_frames() {
    let shop = shop();
    let element = filter(&shop);
    element.set_property("confirm-window", 3u32);
    element.set_property("confirm-count", 2u32);
    let mut harness = harness(&element, 64, 64);
    let frame = shop.frames("washer/test/good").remove(0);
    let mut verdicts = Vec::new();
    for bad in [true, false, true, false, false, true] {
        element.set_property("threshold", if bad { 0.0 } else { 1e6 });
        let result = results(&mut harness, std::slice::from_ref(&frame)).remove(0);
        assert_eq!(result.frame_verdict, if bad { Verdict::Ng } else { Verdict::Ok });
        verdicts.push(result.verdict);
    }
    use Verdict::{Ng, Ok, Warn};
    assert_eq!(verdicts, [Warn, Ok, Ng, Ok, Ok, Warn], "one that is not confirmed is not ok either");
}

#[test]
fn parts_are_named_by_event_and_property_and_messages_follow() {
    let shop = shop();
    let element = filter(&shop);
    element.set_property_from_str("post-messages", "changes");
    element.set_property("part-id", "default");
    let bus = with_bus(&element);
    let mut harness = harness(&element, 64, 64);
    let frame = shop.frames("washer/test/good").remove(0);
    let push = |harness: &mut Harness| {
        harness.push(buffer(&frame, 0)).unwrap();
        frame_result(&harness.pull().unwrap())
    };
    assert_eq!(push(&mut harness).part_id.as_deref(), Some("default"));
    let part = gst::Structure::builder("diad-part").field("part-id", "P-17").build();
    assert!(harness.push_event(gst::event::CustomDownstream::new(part)));
    let first = push(&mut harness);
    assert_eq!(first.part_id.as_deref(), Some("P-17"));
    assert_eq!(push(&mut harness).part_id.as_deref(), Some("P-17"));
    let posted: Vec<DiadResult> = std::iter::from_fn(|| bus.pop())
        .filter_map(|message| match message.view() {
            MessageView::Element(element) => DiadResult::try_from(element.structure()?).ok(),
            _ => None,
        })
        .collect();
    let parts: Vec<_> = posted.iter().map(|result| result.part_id.clone().unwrap()).collect();
    assert_eq!(parts, ["default", "P-17"], "one per change");
    assert_eq!(posted[1], first, "the message says what the buffer says");
    let passed = std::iter::from_fn(|| harness.try_pull_event()).any(|e| e.type_() == gst::EventType::CustomDownstream);
    assert!(passed, "others may want to know the part too");
}

#[test]
fn statistics_are_posted_as_often_as_asked() {
    let shop = shop();
    let element = filter(&shop);
    element.set_property("stats-interval", 1u64);
    let bus = with_bus(&element);
    let mut harness = harness(&element, 64, 64);
    let frames = shop.frames("washer/test/good");
    let reports = |harness: &mut Harness| {
        results(harness, &frames[..3]);
        std::iter::from_fn(|| bus.pop()).filter(|m| m.structure().is_some_and(|s| s.name() == "diad-stats")).count()
    };
    assert!(reports(&mut harness) >= 2, "an interval begins with the first frame");
    element.set_property("stats-interval", 0u64);
    results(&mut harness, &frames[..1]); // one that was on its way
    bus.set_flushing(true);
    bus.set_flushing(false);
    assert_eq!(reports(&mut harness), 0);
}

#[test]
fn results_survive_conversion_and_scaling_and_maps_do_not_survive_what_would_make_them_wrong() {
    let shop = shop();
    let frame = &shop.frames("blister/test/missing")[0];
    let element = filter(&shop);
    element.set_property_from_str("meta", "regions+result+map");
    let mut source = harness(&element, 64, 64);
    source.push(buffer(frame, 0)).unwrap();
    let inspected = source.pull().unwrap();
    let (expected, maps) = (frame_result(&inspected), meta::maps_of(&inspected));
    for (converter, to, keeps) in [
        ("identity", caps("RGB", 64, 64), true),
        ("videoconvert", caps("I420", 64, 64), false),
        ("videoscale", caps("RGB", 128, 128), false),
        ("videocrop left=8", caps("RGB", 56, 64), false),
        ("videobox left=-4", caps("RGB", 68, 64), false),
    ] {
        let mut harness = Harness::new_parse(converter);
        harness.set_src_caps(caps("RGB", 64, 64));
        harness.set_sink_caps(to);
        harness.play();
        harness.push(inspected.clone()).unwrap();
        let out = harness.pull().unwrap();
        assert_eq!(meta::result_of(&out).as_ref(), Some(&expected), "{converter}");
        assert_eq!(meta::maps_of(&out), if keeps { maps.clone() } else { vec![] }, "{converter}");
    }
}

#[test]
fn regions_and_the_map_travel_with_the_frame() {
    let shop = shop();
    let element = filter(&shop);
    element.set_property_from_str("meta", "regions+result+map");
    let mut harness = harness(&element, 64, 64);
    for (n, frame) in shop.frames("blister/test/missing").iter().enumerate() {
        harness.push(buffer(frame, n as u64)).unwrap();
        let out = harness.pull().unwrap();
        let found = result(&out).finding.unwrap();
        let rois: Vec<_> = out.iter_meta::<gst_video::VideoRegionOfInterestMeta>().map(|roi| roi.rect()).collect();
        let regions: Vec<_> = found.regions.iter().map(|r| (r.x, r.y, r.width, r.height)).collect();
        assert_eq!(rois, regions);
        let map = gstdiad::meta::maps_of(&out).remove(0);
        let highest = f64::from(*map.levels.iter().max().unwrap());
        let peak = found.regions.first().map_or(found.pixel_threshold, |region| region.peak);
        assert!(highest > 250.0 || (highest * map.scale - f64::from(peak)).abs() < 0.15 * f64::from(peak));
        assert_eq!(map.levels.iter().any(|level| *level > gstdiad::meta::THRESHOLD_LEVEL), !regions.is_empty());
        assert_eq!(map.shown, [0.0, 0.0, 1.0, 1.0]);
    }
}

#[test]
fn frames_are_selected_by_verdict_and_what_was_not_inspected_is_kept() {
    let shop = shop();
    let frame = shop.frames("washer/test/good").remove(0);
    let element = filter(&shop);
    element.set_property("inference-interval", 2u32);
    let mut source = harness(&element, 64, 64);
    let mut inspected = Vec::new();
    for (n, threshold) in [(0, 0.0), (1, 0.0), (2, 1e6)] {
        element.set_property("threshold", threshold);
        element.set_property("warn-threshold", threshold);
        source.push(buffer(&frame, n)).unwrap();
        inspected.push(source.pull().unwrap());
    }
    let verdicts: Vec<_> = inspected.iter().map(|buffer| result(buffer).verdict).collect();
    assert_eq!(verdicts, [Verdict::Ng, Verdict::Uninspected, Verdict::Ok]);
    inspected.push(buffer(&frame, 3)); // nobody looked at this one

    let select = gst::ElementFactory::make("diadselect").build().unwrap();
    let mut harness = harness(&select, 64, 64);
    let mut passed = |verdicts: Option<&str>| -> Vec<u64> {
        if let Some(verdicts) = verdicts {
            select.set_property_from_str("verdicts", verdicts);
        }
        for frame in &inspected {
            harness.push(frame.clone()).unwrap();
        }
        std::iter::from_fn(|| harness.try_pull()).map(|buffer| buffer.offset()).collect()
    };
    assert_eq!(passed(None), [0, 1, 3], "all but the good");
    assert_eq!(passed(Some("ng")), [0]);
    assert_eq!(passed(Some("ok")), [2]);
    assert_eq!(passed(Some("uninspected+ok")), [1, 2, 3]);
    let gaps = std::iter::from_fn(|| harness.try_pull_event()).filter(|event| event.type_() == gst::EventType::Gap);
    assert_eq!(gaps.count(), 1 + 3 + 3 + 1, "downstream knows of each frame that it does not get");
}

#[test]
fn the_overlay_element_draws_what_the_filter_would_have_drawn() {
    let shop = shop();
    let frame = &shop.frames("blister/test/missing")[0];
    let everything = "verdict+boxes+heatmap+contour";
    let drawing = filter(&shop);
    drawing.set_property_from_str("overlay", everything);
    let mut one = harness(&drawing, 64, 64);
    one.push(buffer(frame, 0)).unwrap();
    let expected = one.pull().unwrap();

    let clean = filter(&shop);
    clean.set_property_from_str("meta", "result+map");
    let mut two = harness(&clean, 64, 64);
    two.push(buffer(frame, 0)).unwrap();
    let overlay = gst::ElementFactory::make("diadoverlay").build().unwrap();
    overlay.set_property_from_str("overlay", everything);
    let mut three = harness(&overlay, 64, 64);
    three.push(two.pull().unwrap()).unwrap();
    let drawn = three.pull().unwrap();
    assert_eq!(drawn.map_readable().unwrap().as_slice(), expected.map_readable().unwrap().as_slice());
    assert_ne!(drawn.map_readable().unwrap().as_slice(), frame.rgb());
}

/// What `auto` means here is said in GStreamer's log, with the reason, and in `stats`.
#[test]
fn the_device_that_was_chosen_is_said() {
    let element = filter(&shop());
    let (lines, said) = crossbeam_channel::bounded(10_000);
    gst::log::set_threshold_from_string("diad:4", false);
    let function = gst::log::add_log_function(move |category, _, _, _, _, _, message| {
        if category.name() == "diad" {
            let _ = lines.try_send(message.get().map(|words| words.to_string()));
        }
    });
    element.set_state(gst::State::Ready).unwrap();
    gst::log::remove_log_function(function);
    let stats = element.property::<gst::Structure>("stats");
    element.set_state(gst::State::Null).unwrap();
    let chosen = said.try_iter().flatten().find(|line| line.starts_with("device = auto: ")).expect("a line about it");
    let device: String = stats.get("device").unwrap();
    assert!(
        chosen.contains(if device.starts_with("cpu") { "the CPU, as " } else { &device }),
        "{chosen} in the log, {device} here"
    );
}

/// Threads that set a property each: none undoes what another did.
#[test]
fn properties_set_at_the_same_time_are_all_set() {
    let element = filter(&shop());
    let set = |name: &'static str| {
        let element = element.clone();
        let all = move || {
            for value in 1..=1000u32 {
                element.set_property(name, value);
                assert_eq!(element.property::<u32>(name), value, "{name}");
            }
        };
        std::thread::Builder::new().spawn(all).unwrap()
    };
    let threads = ["inference-interval", "confirm-window", "ddim-steps"].map(set);
    threads.into_iter().for_each(|thread| thread.join().unwrap());
}
