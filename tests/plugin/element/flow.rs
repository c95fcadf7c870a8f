//! What goes in comes out: in order, with its timestamps, counted, and with the bits that `diad predict` gives.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender, bounded};
use diad::detector::{Detector, Request, Verdict};
use diad::error::Error;
use diad::worker::Job;

use super::common::*;
use super::*;

/// Opens for as many batches as are sent; closed sender: open for good.
fn gate() -> (Sender<()>, Receiver<()>) {
    bounded(1000)
}

#[test]
fn frames_leave_in_order_with_their_timestamps_and_results() {
    let shop = shop();
    let element = filter(&shop);
    let mut harness = harness(&element, 64, 64);
    let frames = shop.frames("washer/test/good");
    for n in 0..20 {
        assert_eq!(harness.push(buffer(&frames[n as usize % frames.len()], n)), Ok(gst::FlowSuccess::Ok));
    }
    assert!(harness.push_event(gst::event::Eos::new()));
    for n in 0..20 {
        let out = harness.pull().unwrap();
        assert_eq!((out.pts(), out.duration(), out.offset()), (Some(MS * 40 * n), Some(MS * 40), n));
        let result = result(&out);
        assert_eq!((result.frame_id, frame_result(&out).pts), (n, Some(n * 40_000_000)));
        assert_eq!((result.width, result.height), (64, 64));
        assert!(matches!(result.verdict, Verdict::Ok | Verdict::Warn | Verdict::Ng));
    }
    let last = std::iter::from_fn(|| harness.try_pull_event()).last();
    let last = last.filter(|event| event.type_() == gst::EventType::Eos).or_else(|| harness.pull_event().ok());
    assert_eq!(last.unwrap().type_(), gst::EventType::Eos, "EOS leaves last");
    assert_eq!(stat(&element, "frames"), 20);
    assert_all_counted(&element);
}

#[test]
fn a_frame_gets_the_bits_that_the_library_gives_its_pixels() {
    let shop = shop();
    let detector = Detector::open(&shop.model).unwrap();
    let frames: Vec<Frame> =
        shop.frames("blister/test/missing").into_iter().chain(shop.frames("washer/test/good")).collect();
    let expected = detector.inspect_frames(&frames, &Request::default());
    for format in ["RGB", "BGR", "RGBx", "BGRx", "xRGB", "xBGR", "RGBA", "BGRA"] {
        let element = filter(&shop);
        let mut harness = harness(&element, 64, 64);
        harness.set_src_caps(caps(format, 64, 64));
        for (n, frame) in frames.iter().enumerate() {
            let place = |c: &[u8]| match format {
                "RGB" => vec![c[0], c[1], c[2]],
                "BGR" => vec![c[2], c[1], c[0]],
                "RGBx" | "RGBA" => vec![c[0], c[1], c[2], 9],
                "BGRx" | "BGRA" => vec![c[2], c[1], c[0], 9],
                "xRGB" => vec![9, c[0], c[1], c[2]],
                _ => vec![9, c[2], c[1], c[0]],
            };
            let bytes: Vec<u8> = frame.rgb().chunks_exact(3).flat_map(place).collect();
            harness.push(gst::Buffer::from_slice(bytes)).unwrap();
            let out = harness.pull().unwrap();
            let (seen, expected) = (result(&out), expected[n].as_ref().unwrap());
            let found = seen.finding.unwrap();
            assert_eq!(found.score.to_bits(), expected.score.to_bits(), "{format} {n}");
            assert_eq!((found.class, found.regions), (expected.class.clone(), expected.regions.clone()));
            assert_eq!(seen.verdict, expected.verdict);
        }
    }
}

/// The ways of the method that are not the default are in the model file: the element needs to know nothing of them.
#[test]
fn every_way_of_the_method_runs_on_the_line_with_the_bits_of_the_library() {
    let shop = shop();
    let frames = shop.frames("washer/test/scratch");
    let folder = tempfile::tempdir().unwrap();
    let ways: [&[&str]; 7] = [
        &["input.scale=1", "features.cell=8", "denoiser.position=fourier"],
        &["input.align=shift+turn", "input.max_turn=5", "input.min_match=0.3"],
        &["input.size=[128,64]", "features.grid=[16,8]", "denoiser.window=5", "training.window=8", "input.fit=pad"],
        &["features.space=pixel", "features.grid=32", "denoiser.levels=2", "denoiser.width=16", "training.mask=0"],
        &["diffusion.schedule=linear", "diffusion.timesteps=20", "detection.start=noised", "detection.sampler=ddpm"],
        &["detection.score=sum", "detection.start=pure", "detection.sampler=ddim", "detection.eta=0.5"],
        &["denoiser.classes=heads", "detection.decision=pixel-minimum", "detection.distance=cosine"],
    ];
    for way in ways {
        let model = folder.path().join("way.diad");
        teach(&shop.parts, &[], &model, way);
        let expected = Detector::open(&model).unwrap().inspect_frames(&frames, &Request::default());
        let element = filter(&shop);
        element.set_property("model", model.to_str().unwrap());
        let mut harness = harness(&element, 64, 64);
        for (n, (frame, expected)) in frames.iter().zip(expected).enumerate() {
            harness.push(buffer(frame, n as u64)).unwrap();
            let (seen, expected) = (result(&harness.pull().unwrap()), expected.unwrap());
            let found = seen.finding.unwrap();
            assert_eq!(found.score.to_bits(), expected.score.to_bits(), "{way:?} {n}");
            assert_eq!((found.class, seen.verdict), (expected.class, expected.verdict), "{way:?} {n}");
        }
    }
}

#[test]
fn four_streams_on_one_worker_get_what_each_gets_alone() {
    let shop = shop();
    let detector = Detector::open(&shop.model).unwrap();
    let frames = Arc::new(shop.frames("washer/test/good"));
    let expected: Vec<u32> =
        detector.inspect_frames(&frames, &Request::default()).into_iter().map(|d| d.unwrap().score.to_bits()).collect();
    let elements: Vec<_> = (0..4)
        .map(|_| {
            let element = filter(&shop);
            element.set_property("batch-size", 4u32);
            element
        })
        .collect();
    let harnesses: Vec<_> = elements.iter().map(|element| harness(element, 64, 64)).collect();
    let threads: Vec<_> = harnesses
        .into_iter()
        .map(|mut harness| {
            let (frames, expected) = (frames.clone(), expected.clone());
            std::thread::Builder::new()
                .spawn(move || {
                    for n in 0..24 {
                        harness.push(buffer(&frames[n % frames.len()], n as u64)).unwrap();
                    }
                    for n in 0..24 {
                        let found = result(&harness.pull().unwrap()).finding.unwrap();
                        assert_eq!(found.score.to_bits(), expected[n % expected.len()], "frame {n}");
                    }
                })
                .unwrap()
        })
        .collect();
    threads.into_iter().for_each(|thread| thread.join().unwrap());
    assert!(elements.iter().all(|element| stat(element, "frames") == 24));
}

/// Everything that can go wrong in one stream: every frame that came in is in exactly one count, none of the bad is ok.
#[test]
fn frames_in_are_the_sum_of_verdicts_whatever_happens() {
    let shop = shop();
    let calls = Arc::new(Mutex::new(0));
    let worker = scripted(&shop, "chaos", 2, {
        let calls = calls.clone();
        move |jobs, model| {
            let call = {
                let mut calls = calls.lock().unwrap();
                *calls += 1;
                *calls
            };
            assert_ne!(call, 5 + 4, "told to panic"); // the first four are the warm-up
            if call == 4 + 3 {
                jobs.iter().map(|_| Err(Error::Usage("told to fail".into()))).collect()
            } else {
                truly(jobs, model)
            }
        }
    });
    let element = filter(&shop);
    worker.serve(&element);
    let bus = with_bus(&element);
    let mut harness = harness(&element, 64, 64);
    let frames = shop.frames("washer/test/good");
    let (mut verdicts, mut n) = (Vec::new(), 0);
    let mut one = |harness: &mut Harness| {
        harness.push(buffer(&frames[n % frames.len()], n as u64)).unwrap();
        n += 1;
        let result = result(&harness.pull().unwrap());
        verdicts.push(result.verdict);
        (result.verdict, result.reason)
    };
    for _ in 0..2 {
        assert_ne!(one(&mut harness).0, Verdict::Error);
    }
    let (verdict, reason) = one(&mut harness);
    assert_eq!((verdict, reason.as_deref()), (Verdict::Error, Some("told to fail")));
    assert_ne!(one(&mut harness).0, Verdict::Error);
    let (verdict, reason) = one(&mut harness);
    assert_eq!(verdict, Verdict::Error);
    assert!(reason.unwrap().contains("told to panic"));
    assert_ne!(one(&mut harness).0, Verdict::Error, "the pipeline goes on");
    // Other caps in the middle: the frames before keep theirs.
    harness.set_src_caps(caps("GRAY8", 32, 48));
    harness.push(gst::Buffer::from_slice(vec![90u8; 32 * 48])).unwrap();
    let gray = result(&harness.pull().unwrap());
    assert_eq!((gray.width, gray.height), (32, 48));
    // A frame that is not what its caps say.
    harness.push(gst::Buffer::from_slice(vec![90u8; 100])).unwrap();
    let short = result(&harness.pull().unwrap());
    assert_eq!(short.verdict, Verdict::Error);
    assert!(short.reason.unwrap().contains("mapped"));
    harness.push_event(gst::event::Eos::new());
    assert_all_counted(&element);
    assert_eq!((stat(&element, "frames"), stat(&element, "error"), stat(&element, "worker-panics")), (8, 3, 1));
    let warnings = std::iter::from_fn(|| bus.pop()).filter(|m| m.type_() == gst::MessageType::Warning).count();
    assert_eq!(warnings, 3, "one warning when errors begin");
}

#[test]
fn a_flush_gives_up_what_waits_and_the_stream_goes_on() {
    let shop = shop();
    let (open, closed) = gate();
    (0..4).for_each(|_| open.send(()).unwrap());
    let worker = scripted(&shop, "flush", 1, move |jobs, model| {
        let _ = closed.recv();
        truly(jobs, model)
    });
    let element = filter(&shop);
    worker.serve(&element);
    let mut harness = harness(&element, 64, 64);
    let frames = shop.frames("washer/test/good");
    for n in 0..3 {
        harness.push(buffer(&frames[0], n)).unwrap();
    }
    assert!(harness.push_event(gst::event::FlushStart::new()));
    assert_eq!(harness.push(buffer(&frames[0], 3)), Err(gst::FlowError::Flushing));
    assert!(harness.push_event(gst::event::FlushStop::new(true)));
    assert!(harness.push_event(gst::event::Segment::new(&gst::FormattedSegment::<gst::ClockTime>::new())));
    drop(open);
    harness.push(buffer(&frames[0], 7)).unwrap();
    assert_eq!(harness.pull().unwrap().pts(), Some(MS * 280), "nothing of before the flush comes after it");
    assert_eq!(stat(&element, "uninspected-flushed"), 3);
    assert_all_counted(&element);
}

/// One that waits for room in the worker's queue is in no line yet, and counts all the same.
#[test]
fn a_flush_counts_the_frame_that_the_worker_has_no_room_for() {
    let shop = shop();
    let (open, closed) = gate();
    let (tell, began) = gate();
    (0..4).for_each(|_| open.send(()).unwrap());
    let held = scripted(&shop, "full", 1, move |jobs, model| {
        let _ = tell.send(());
        let _ = closed.recv();
        truly(jobs, model)
    });
    (0..4).for_each(|_| began.recv().unwrap()); // the warm-up
    let element = filter(&shop);
    held.serve(&element);
    let _harness = harness(&element, 64, 64);

    // Another stream fills the queue while the model is at its first frame.
    let (worker, detector) = (held.shared.worker(), Detector::open(&shop.model).unwrap());
    let frame = &shop.frames("washer/test/good")[0];
    let job = Job { inputs: detector.preparation().apply(frame, None).unwrap(), request: Arc::default() };
    let submit = || worker.submit(u64::MAX, job.clone(), Duration::ZERO).ok();
    let first = submit().unwrap();
    began.recv().unwrap();
    let _waiting: Vec<_> = std::iter::from_fn(submit).collect();

    let (pad, one) = (element.static_pad("sink").unwrap(), buffer(frame, 0));
    let pusher = std::thread::Builder::new().spawn(move || pad.chain(one)).unwrap();
    while stat(&element, "frames") == 0 {
        std::thread::yield_now();
    }
    assert!(element.static_pad("sink").unwrap().send_event(gst::event::FlushStart::new()));
    assert_eq!(pusher.join().unwrap(), Err(gst::FlowError::Flushing));
    assert_eq!(stat(&element, "uninspected-flushed"), 1);
    assert_all_counted(&element);
    drop((first, open));
}

#[test]
fn a_live_stream_is_never_held_up_and_what_was_not_seen_is_not_ok() {
    let shop = shop();
    let (open, closed) = gate();
    (0..4).for_each(|_| open.send(()).unwrap());
    let worker = scripted(&shop, "slow", 1, move |jobs, model| {
        let _ = closed.recv();
        truly(jobs, model)
    });
    let element = filter(&shop);
    worker.serve(&element);
    element.set_property_from_str("overload-policy", "auto"); // a harness is live
    element.set_property("latency", 30_000_000u64);
    let bus = with_bus(&element);
    let mut harness = harness(&element, 64, 64);
    let frames = shop.frames("washer/test/good");
    for n in 0..5 {
        harness.push(buffer(&frames[0], n)).unwrap();
    }
    let reasons: Vec<_> = (0..5)
        .map(|n| {
            let out = harness.pull().unwrap();
            assert_eq!(out.pts(), Some(MS * 40 * n), "in order");
            let result = result(&out);
            assert_eq!((result.verdict, result.finding), (Verdict::Uninspected, None));
            result.reason.unwrap()
        })
        .collect();
    assert_eq!(reasons, ["late", "late", "overload", "overload", "overload"]);
    drop(open);
    assert_all_counted(&element);
    assert_eq!((stat(&element, "uninspected-late"), stat(&element, "uninspected-overload")), (2, 3));
    // And says so in the standard way, one message per frame.
    let mut unseen = Vec::new();
    while let Some(message) = bus.pop_filtered(&[gst::MessageType::Qos]) {
        let gst::MessageView::Qos(qos) = message.view() else { unreachable!() };
        let (live, running_time, _, timestamp, duration) = qos.get();
        assert_eq!((live, running_time, duration), (true, timestamp, Some(MS * 40)));
        let (gst::GenericFormattedValue::Buffers(seen), gst::GenericFormattedValue::Buffers(passed)) = qos.stats()
        else {
            unreachable!("counted in buffers")
        };
        assert_eq!(seen, Some(gst::format::Buffers::ZERO));
        unseen.push((timestamp.unwrap() / 40 / MS, *passed.unwrap()));
    }
    assert_eq!(unseen, [(0, 1), (1, 2), (2, 3), (3, 4), (4, 5)]);
}

#[test]
fn segments_gaps_and_restarts_of_the_clock_keep_their_place() {
    let shop = shop();
    let element = filter(&shop);
    let bus = with_bus(&element);
    let mut harness = harness(&element, 64, 64);
    harness.push(buffer(&shop.frames("washer/test/good")[0], 0)).unwrap(); // so that what comes first has left
    harness.pull().unwrap();
    harness.set_src_caps(
        gst::Caps::builder("video/x-raw")
            .field("format", "RGB")
            .field("width", 64)
            .field("height", 64)
            .field("framerate", gst::Fraction::new(0, 1)) // a camera that is triggered
            .build(),
    );
    let frame = shop.frames("washer/test/good").remove(0);
    let mut segment = gst::FormattedSegment::<gst::ClockTime>::new();
    segment.set_start(MS * 400);
    let order = Arc::new(Mutex::new(Vec::new()));
    let pad = element.static_pad("src").unwrap();
    pad.add_probe(gst::PadProbeType::BUFFER | gst::PadProbeType::EVENT_DOWNSTREAM, {
        let order = order.clone();
        move |_, info| {
            let seen = match &info.data {
                Some(gst::PadProbeData::Buffer(buffer)) => format!("{:?}", buffer.pts().map(|pts| pts / MS)),
                Some(gst::PadProbeData::Event(event)) => event.type_().name().to_string(),
                _ => String::new(),
            };
            order.lock().unwrap().push(seen);
            gst::PadProbeReturn::Ok
        }
    });
    harness.push(buffer(&frame, 3)).unwrap();
    assert!(harness.push_event(gst::event::Gap::new(MS * 160, MS * 40)));
    harness.push(buffer(&frame, 5)).unwrap();
    assert!(harness.push_event(gst::event::Segment::new(&segment)));
    harness.push(buffer(&frame, 0)).unwrap(); // the clock begins anew
    let mut timeless = buffer(&frame, 0);
    timeless.get_mut().unwrap().set_pts(None);
    harness.push(timeless).unwrap();
    assert!(harness.push_event(gst::event::Eos::new()));
    for pts in [Some(120), Some(200), Some(0), None] {
        let out = harness.pull().unwrap();
        assert_eq!((out.pts(), frame_result(&out).pts), (pts.map(|pts| MS * pts), pts.map(|pts| pts * 1_000_000)));
        assert_ne!(result(&out).verdict, Verdict::Uninspected);
    }
    while harness.pull_event().unwrap().type_() != gst::EventType::Eos {}
    let order = order.lock().unwrap().join(" ");
    let expected = "Some(120) gap Some(200) segment Some(0) None eos";
    assert!(order.ends_with(expected), "{order}");
    let stats = message(&bus, |message| match message.view() {
        gst::MessageView::Element(element) => {
            element.structure().filter(|s| s.name() == "diad-stats").map(|s| s.to_owned())
        }
        _ => None,
    });
    assert_eq!(stats.get::<u64>("frames").unwrap(), 5, "what the stream was like is said at its end");
}

#[test]
fn stopping_does_not_wait_for_a_model_that_hangs() {
    let shop = shop();
    let (open, closed) = gate();
    (0..4).for_each(|_| open.send(()).unwrap());
    let worker = scripted(&shop, "hang", 1, move |jobs, model| {
        let _ = closed.recv();
        truly(jobs, model)
    });
    let element = filter(&shop);
    worker.serve(&element);
    element.set_property("max-size-buffers", 2u32);
    let mut harness = harness(&element, 64, 64);
    let frames = shop.frames("washer/test/good");
    for n in 0..2 {
        harness.push(buffer(&frames[0], n)).unwrap();
    }
    // The line is full: this push waits until the element stops.
    let (pad, third) = (element.static_pad("sink").unwrap(), buffer(&frames[0], 2));
    let pusher = std::thread::Builder::new().spawn(move || pad.chain(third)).unwrap();
    element.set_state(gst::State::Null).unwrap();
    assert_eq!(pusher.join().unwrap(), Err(gst::FlowError::Flushing));
    drop(open);
    drop(worker);
}

#[test]
fn an_error_of_downstream_reaches_upstream() {
    let shop = shop();
    let element = filter(&shop);
    let frames = shop.frames("washer/test/good");
    let mut harness = harness(&element, 64, 64);
    let sink = element.static_pad("src").unwrap().peer().unwrap();
    sink.add_probe(gst::PadProbeType::BUFFER, |_, info| {
        info.flow_res = Err(gst::FlowError::Eos);
        gst::PadProbeReturn::Handled
    });
    let flow = (0..1000).find_map(|n| harness.push(buffer(&frames[0], n)).err());
    assert_eq!(flow, Some(gst::FlowError::Eos));
    element.set_state(gst::State::Null).unwrap(); // the task has ended: nothing is on its way any more
    assert_all_counted(&element);
}

#[test]
fn without_an_overlay_the_pixels_are_the_same_memory() {
    let shop = shop();
    let element = filter(&shop);
    element.set_property_from_str("copy-frames", "never");
    let mut harness = harness(&element, 64, 64);
    let frame = &shop.frames("blister/test/missing")[0];
    let address = |buffer: &gst::Buffer| buffer.map_readable().unwrap().as_ptr() as usize;
    let sent = buffer(frame, 0);
    let (held, before) = (sent.clone(), address(&sent));
    harness.push(sent).unwrap();
    let out = harness.pull().unwrap();
    assert_eq!(address(&out), before, "not copied");
    assert_eq!(out.map_readable().unwrap().as_slice(), frame.rgb());

    // With one, whoever else holds the frame keeps it as it was.
    element.set_property_from_str("overlay", "verdict+boxes");
    harness.push(held.clone()).unwrap();
    let drawn = harness.pull().unwrap();
    assert_ne!(drawn.map_readable().unwrap().as_slice(), frame.rgb());
    assert_eq!(held.map_readable().unwrap().as_slice(), frame.rgb());

    // Frames without a pool are copied before they wait, unless told otherwise.
    element.set_property_from_str("overlay", "0");
    element.set_property_from_str("copy-frames", "auto");
    harness.push(held.clone()).unwrap();
    assert_ne!(address(&harness.pull().unwrap()), address(&held));
}
