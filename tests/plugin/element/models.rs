//! A model belongs to its element, whatever it shares; of several changes the last one wins, and a wrong one changes nothing.

use diad::detector::{Detector, Request};
use gst::MessageView;

use super::common::*;
use super::*;

/// The next `diad-model` message: the file, and whether it was loaded.
fn next_change(bus: &gst::Bus) -> (String, bool) {
    message(bus, |message| match message.view() {
        MessageView::Element(element) => {
            let structure = element.structure().filter(|structure| structure.name() == "diad-model")?;
            Some((structure.get("model").unwrap(), structure.get("loaded").unwrap()))
        }
        _ => None,
    })
}

fn digest(path: &std::path::Path) -> String {
    diad::bundle::read_card(path).unwrap().digest()
}

fn at_work(element: &gst::Element) -> String {
    element.property::<gst::Structure>("stats").get("model").unwrap()
}

fn push(harness: &mut Harness, frame: &Frame) -> Inspection {
    harness.push(buffer(frame, 0)).unwrap();
    result(&harness.pull().unwrap())
}

#[test]
fn another_model_takes_over_while_playing_and_a_wrong_one_changes_nothing() {
    let shop = shop();
    let element = filter(&shop);
    let bus = with_bus(&element);
    let frame = shop.frames("washer/test/good").remove(0);
    {
        let mut harness = harness(&element, 64, 64);
        let before = push(&mut harness, &frame);
        element.set_property("model", "/no/such/model.diad");
        assert_eq!(next_change(&bus), ("/no/such/model.diad".into(), false));
        assert_eq!(push(&mut harness, &frame).model, before.model, "the old one stays");
        assert_eq!(element.property::<String>("model"), shop.model.to_str().unwrap(), "and so does the property");
        element.set_state(gst::State::Null).unwrap();
        element.set_state(gst::State::Ready).expect("the next start is not that of the wrong model");
        element.set_state(gst::State::Null).unwrap();
    }
    let mut harness = harness(&element, 64, 64);
    let other = shop.other.to_str().unwrap();
    element.set_property("model", other);
    assert_eq!(next_change(&bus), (other.into(), true));
    assert_eq!(element.property::<String>("model"), other);
    let after = push(&mut harness, &frame);
    assert_eq!((after.model, after.finding.unwrap().class), (digest(&shop.other), "washer".into()));
    let expected =
        Detector::open(&shop.other).unwrap().inspect_frames(std::slice::from_ref(&frame), &Request::default());
    let score = push(&mut harness, &frame).finding.unwrap().score;
    assert_eq!(score.to_bits(), expected[0].as_ref().unwrap().score.to_bits());
    assert_all_counted(&element);
}

/// A model that knows the class of the element is needed; one without it would end the stream.
#[test]
fn a_model_that_does_not_fit_the_other_properties_is_a_wrong_one() {
    let shop = shop();
    let element = filter(&shop);
    element.set_property("class", "blister");
    let bus = with_bus(&element);
    let mut harness = harness(&element, 64, 64);
    let frame = shop.frames("blister/test/good").remove(0);
    push(&mut harness, &frame);
    element.set_property("model", shop.other.to_str().unwrap());
    assert!(!next_change(&bus).1);
    assert_eq!(push(&mut harness, &frame).finding.unwrap().class, "blister");
}

#[test]
fn of_model_changes_in_a_row_the_last_one_wins() {
    let shop = shop();
    let element = filter(&shop);
    let bus = with_bus(&element);
    element.set_state(gst::State::Ready).unwrap();
    let models = [&shop.model, &shop.other].map(|path| (path.to_str().unwrap(), digest(path)));
    for n in 0..100 {
        let (first, (last, wanted)) = (models[n % 2].0, &models[(n + 1) % 2]);
        element.set_property("model", first);
        element.set_property("model", last);
        let mut changes = [next_change(&bus), next_change(&bus)];
        changes.sort_by_key(|(path, _)| path != first);
        assert_eq!((changes[1].0.as_str(), changes[1].1), (*last, true), "try {n}");
        assert_eq!((&at_work(&element), element.property::<String>("model").as_str()), (wanted, *last), "try {n}");
    }
    // One that is still loading when the element stops comes too late.
    element.set_property("model", models[0].0);
    element.set_state(gst::State::Null).unwrap();
    let set = element.property::<String>("model");
    element.set_state(gst::State::Ready).unwrap();
    assert_eq!(at_work(&element), digest(std::path::Path::new(&set)));
    element.set_state(gst::State::Null).unwrap();
}

#[test]
fn a_model_that_is_set_changes_no_other_element() {
    let shop = shop();
    let frame = shop.frames("washer/test/good").remove(0);
    for id in [None, Some("line 1")] {
        let elements = [filter(&shop), filter(&shop)];
        let buses = elements.each_ref().map(with_bus);
        let mut harnesses = elements.each_ref().map(|element| {
            element.set_property("model-instance-id", id);
            element.set_property("class", "washer");
            harness(element, 64, 64)
        });
        let mut models = || harnesses.each_mut().map(|harness| push(harness, &frame).model);
        let (first, other) = (digest(&shop.model), digest(&shop.other));
        assert_eq!(models(), [first.clone(), first.clone()]);
        assert_eq!(stat(&elements[0], "worker-frames"), 2, "they share a worker");
        elements[0].set_property("model", shop.other.to_str().unwrap());
        assert!(next_change(&buses[0]).1);
        assert_eq!(models(), [other.clone(), first.clone()], "{id:?}");
        assert_eq!(elements[1].property::<String>("model"), shop.model.to_str().unwrap());
        // And whoever comes now can start with either.
        for (path, expected) in [(&shop.model, &first), (&shop.other, &other)] {
            let third = filter(&shop);
            third.set_property("model", path.to_str().unwrap());
            third.set_property("model-instance-id", id);
            third.set_state(gst::State::Ready).unwrap();
            assert_eq!(&at_work(&third), expected);
            third.set_state(gst::State::Null).unwrap();
        }
    }
}

#[test]
fn what_decides_on_the_worker_is_changed_in_ready_and_refused_later() {
    let shop = shop();
    let element = filter(&shop);
    let bus = with_bus(&element);
    element.set_state(gst::State::Ready).unwrap();
    element.set_property("batch-size", 3u32);
    {
        let mut harness = harness(&element, 64, 64);
        push(&mut harness, &shop.frames("washer/test/good")[0]);
        for (name, value) in
            [("batch-size", "5"), ("device", "cuda:7"), ("model-instance-id", "x"), ("precision", "f16")]
        {
            let before = element.property_value(name);
            element.set_property_from_str(name, value);
            let words = message(&bus, |message| match message.view() {
                MessageView::Warning(warning) => Some(warning.error().message().to_owned()),
                _ => None,
            });
            assert!(words.contains(name) && words.contains("READY"), "{words}");
            assert_eq!(format!("{:?}", element.property_value(name)), format!("{before:?}"));
        }
    }
    element.set_state(gst::State::Null).unwrap();
}
