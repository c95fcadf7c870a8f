//! What is wrong is said on the bus with the property, its value and what was expected; nothing crashes, nothing is ok.

use diad::error::Error;
use gst::MessageView;

use super::common::*;
use super::*;

/// What the element says when it is asked to get ready.
fn refusal(element: &gst::Element) -> String {
    let bus = with_bus(element);
    assert!(element.set_state(gst::State::Ready).is_err());
    let words = message(&bus, |message| match message.view() {
        MessageView::Error(error) => Some(error.error().message().to_owned()),
        _ => None,
    });
    element.set_state(gst::State::Null).unwrap();
    words
}

#[track_caller]
fn assert_says(words: &str, what: &[&str]) {
    assert!(what.iter().all(|what| words.contains(what)), "{what:?} is not all in: {words}");
}

#[test]
fn a_model_that_cannot_be_used_is_an_error_before_playing() {
    let shop = shop();
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let bytes = std::fs::read(&shop.model).unwrap();
    std::fs::write(path("text.diad"), "no model").unwrap();
    std::fs::write(path("short.diad"), &bytes[..bytes.len() / 2]).unwrap();
    let mark = br#"\"schema\":2"#;
    let place = bytes.windows(mark.len()).position(|window| window == mark).unwrap() + mark.len() - 1;
    let mut newer = bytes.clone();
    newer[place] = b'7';
    std::fs::write(path("newer.diad"), newer).unwrap();
    let element = filter(&shop);
    for (model, what) in [
        (String::new(), vec!["model is not set"]),
        (path("nothing.diad"), vec!["model = ", "nothing.diad", "No such file"]),
        (path("text.diad"), vec!["model = ", "text.diad"]),
        (path("short.diad"), vec!["model = ", "short.diad"]),
        (path("newer.diad"), vec!["model = ", "newer.diad", "newer diad (schema 7"]),
    ] {
        element.set_property("model", &model);
        assert_says(&refusal(&element), &what);
    }
    element.set_property("model", shop.model.to_str().unwrap());
    element.set_state(gst::State::Ready).unwrap();
    element.set_state(gst::State::Null).unwrap();
    // Nor does a model start in numbers that its thresholds were not measured in.
    let file = diad::bundle::load(&shop.model, diad::detector::expected_tensors).unwrap();
    let mut card = file.card;
    card.classes.iter_mut().for_each(|class| class.measured.clear());
    let plain = folder.path().join("plain.diad");
    diad::bundle::save(&plain, &card, &file.tensors.into_iter().collect()).unwrap();
    element.set_property("model", plain.to_str().unwrap());
    element.set_property("precision", "bf16");
    let what = if diad::kernels::bf16::Bf16::find().is_some() {
        vec!["precision = bf16", "plain.diad", "diad calibrate --precision bf16"]
    } else {
        vec!["precision = bf16", "AVX-512 BF16"]
    };
    assert_says(&refusal(&element), &what);
    element.set_property("precision", "auto");
    element.set_state(gst::State::Ready).unwrap();
    assert_eq!(element.property::<gst::Structure>("stats").get::<String>("device").unwrap(), "cpu");
    element.set_state(gst::State::Null).unwrap();
}

#[test]
fn properties_that_cannot_be_are_an_error_before_playing() {
    let shop = shop();
    for (name, value, what) in [
        ("class", "bolt", vec!["class", "\"bolt\"", "auto", "washer", "blister"]),
        ("device", "cuda:77", vec!["device = cuda:77", "expected auto"]),
        ("precision", "f64", vec!["f64", "bf16"]),
        ("precision", "f16", vec!["precision = f16", "GPU"]),
        ("device", "gpu", vec!["device = \"gpu\"", "expected auto, cpu, cuda or cuda:N"]),
        ("target-fpr", "0.001", vec!["target-fpr = 0.001", "999"]),
        ("roi", "0.5,0,0.6,1", vec!["roi = ", "0.5,0,0.6,1", "x,y,width,height"]),
    ] {
        let element = filter(&shop);
        element.set_property_from_str(name, value);
        assert_says(&refusal(&element), &what);
    }
    let element = filter(&shop);
    element.set_property("model-instance-id", "taken");
    element.set_state(gst::State::Ready).unwrap();
    let second = filter(&shop);
    second.set_property("model-instance-id", "taken");
    second.set_property("batch-size", 3u32);
    assert_says(&refusal(&second), &["model-instance-id = \"taken\"", "batch-size", "3"]);
    second.set_property("batch-size", 0u32);
    second.set_state(gst::State::Ready).unwrap();
    second.set_state(gst::State::Null).unwrap();
    element.set_state(gst::State::Null).unwrap();
}

#[test]
fn what_does_not_fit_the_frames_is_an_error_when_they_come() {
    let shop = shop();
    let folder = tempfile::tempdir().unwrap();
    let mask = folder.path().join("mask.pgm");
    std::fs::write(&mask, [b"P5 32 32 255\n".as_slice(), &[9; 32 * 32]].concat()).unwrap();
    let nothing = folder.path().join("nothing.png");
    for (name, value, what) in [
        ("roi", "0,0,65,10".to_owned(), vec!["roi = 0,0,65,10", "64x64"]),
        ("mask-location", mask.to_str().unwrap().to_owned(), vec!["mask-location", "32x32", "expected 64x64"]),
        ("mask-location", nothing.to_str().unwrap().to_owned(), vec!["mask-location", "nothing.png"]),
    ] {
        let element = filter(&shop);
        element.set_property(name, &value);
        let bus = with_bus(&element);
        let mut harness = harness(&element, 64, 64);
        let flow = harness.push(buffer(&shop.frames("washer/test/good")[0], 0));
        assert_eq!(flow, Err(gst::FlowError::NotNegotiated));
        let words = message(&bus, |message| match message.view() {
            MessageView::Error(error) => Some(error.error().message().to_owned()),
            _ => None,
        });
        assert_says(&words, &what);
    }
}

#[test]
fn a_change_while_playing_that_cannot_be_is_a_warning_and_the_old_value_stays() {
    let shop = shop();
    let element = filter(&shop);
    let bus = with_bus(&element);
    let mut harness = harness(&element, 64, 64);
    let frame = &shop.frames("washer/test/good")[0];
    let score = |harness: &mut Harness| {
        harness.push(buffer(frame, 0)).unwrap();
        result(&harness.pull().unwrap()).finding.unwrap().score
    };
    let before = score(&mut harness);
    for (name, value, what) in [
        ("class", "bolt", vec!["\"bolt\"", "class stays as it was"]),
        ("roi", "60,0,10,10", vec!["roi = 60,0,10,10", "64x64"]),
        ("mask-location", "/no/mask.png", vec!["mask-location", "/no/mask.png"]),
        ("target-fpr", "0.0001", vec!["target-fpr"]),
    ] {
        let old = element.property_value(name);
        element.set_property_from_str(name, value);
        let words = message(&bus, |message| match message.view() {
            MessageView::Warning(warning) => Some(warning.error().message().to_owned()),
            _ => None,
        });
        assert_says(&words, &what);
        assert_eq!(format!("{:?}", element.property_value(name)), format!("{old:?}"));
        assert_eq!(score(&mut harness), before);
    }
}

#[test]
fn an_error_ends_the_stream_only_where_that_is_asked_for() {
    let shop = shop();
    let element = filter(&shop);
    element.set_property_from_str("on-error", "error");
    let bus = with_bus(&element);
    let mut harness = harness(&element, 64, 64);
    harness.push(gst::Buffer::from_slice([0u8; 10])).unwrap();
    let words = message(&bus, |message| match message.view() {
        MessageView::Error(error) => Some(error.error().message().to_owned()),
        _ => None,
    });
    assert_says(&words, &["frame 0", "mapped"]);
    let frames = shop.frames("washer/test/good");
    let flow = (0..1000).find_map(|n| harness.push(buffer(&frames[0], n)).err());
    assert_eq!(flow, Some(gst::FlowError::Error));
    element.set_state(gst::State::Null).unwrap(); // the task has ended: nothing is on its way any more
    assert_all_counted(&element);
}

/// Whatever `on-error` says: no frame would be inspected any more.
#[test]
fn a_lost_device_ends_the_stream_with_the_drivers_words() {
    let shop = shop();
    let worker = scripted(&shop, "bus", 1, |jobs, model| {
        // The warm-up of a scripted model has no jobs.
        if jobs.is_empty() { truly(jobs, model) } else { Error::Lost("fell off the bus".into()).for_all(jobs.len()) }
    });
    let element = filter(&shop);
    worker.serve(&element);
    let bus = with_bus(&element);
    let mut harness = harness(&element, 64, 64);
    let frames = shop.frames("washer/test/good");
    let flow = (0..1000).find_map(|n| harness.push(buffer(&frames[0], n)).err());
    assert_eq!(flow, Some(gst::FlowError::Error));
    let words = message(&bus, |message| match message.view() {
        MessageView::Error(error) => Some(error.error().message().to_owned()),
        _ => None,
    });
    assert_says(&words, &["frame 0", "the device is lost", "fell off the bus"]);
    element.set_state(gst::State::Null).unwrap();
    assert_all_counted(&element);
}
