//! What an element has learned from its surroundings never outlives them: links, liveness, latency, streams.

use crossbeam_channel::bounded;
use diad::detector::Verdict;
use gst::{FlowError, MessageView};

use super::bench::{Bench, sink_pad};
use super::common::*;
use super::*;

/// Both elements with a queue of their own.
fn elements(shop: &Shop) -> [gst::Element; 2] {
    [filter(shop), gst::ElementFactory::make("diadmeta2json").build().unwrap()]
}

#[test]
fn a_branch_that_is_unlinked_and_linked_again_goes_on() {
    let shop = shop();
    let frame = &shop.frames("washer/test/good")[0];
    for element in elements(&shop) {
        let mut bench = Bench::new(&element);
        bench.src.push(buffer(frame, 0)).unwrap();
        assert_eq!(bench.next().pts(), Some(gst::ClockTime::ZERO));
        for round in 1..4 {
            let srcpad = element.static_pad("src").unwrap();
            srcpad.unlink(&bench.sink).unwrap();
            let flow = std::iter::repeat_with(|| bench.src.push(buffer(frame, 1))).find_map(Result::err);
            assert_eq!(flow, Some(FlowError::NotLinked));
            message(&bench.bus, |message| match message.view() {
                MessageView::Warning(warning) => {
                    warning.error().message().contains("not linked").then_some(()) // nothing dies silently
                }
                _ => None,
            });
            let ((give, buffers), (tell, events)) = (bounded(9), bounded(9));
            bench.sink = sink_pad(&give, &tell);
            srcpad.link(&bench.sink).unwrap();
            bench.src.push(buffer(frame, 10 * round)).unwrap();
            let next = buffers.recv_timeout(std::time::Duration::from_secs(60)).unwrap();
            assert_eq!(next.pts(), Some(MS * 400 * round));
            let events: Vec<_> = events.try_iter().collect();
            for needed in [gst::EventType::StreamStart, gst::EventType::Caps, gst::EventType::Segment] {
                assert!(events.contains(&needed), "who is linked anew needs {needed:?}: {events:?}");
            }
        }
        if element.has_property("stats") {
            assert_all_counted(&element);
        }
    }
}

#[test]
fn a_branch_that_missed_the_end_of_its_stream_goes_on_with_the_next() {
    let shop = shop();
    let frame = &shop.frames("washer/test/good")[0];
    for element in elements(&shop) {
        let bench = Bench::new(&element);
        let srcpad = element.static_pad("src").unwrap();
        srcpad.unlink(&bench.sink).unwrap();
        while bench.src.push(buffer(frame, 0)).is_ok() {}
        bench.said();
        bench.src.push_event(gst::event::Eos::new());
        assert!(bench.said().concat().contains("the stream ended"), "nobody would learn of the end otherwise");
        srcpad.link(&bench.sink).unwrap();
        while bench.next_event() != gst::EventType::Eos {} // late, but it comes
        bench.begin("second");
        bench.src.push(buffer(frame, 7)).unwrap();
        assert_eq!(bench.next().pts(), Some(MS * 280));
    }
}

#[test]
fn a_stream_that_downstream_has_ended_goes_on_with_the_next() {
    let shop = shop();
    let frame = &shop.frames("washer/test/good")[0];
    for element in elements(&shop) {
        let bench = Bench::new(&element);
        let probe = bench.sink.add_probe(gst::PadProbeType::BUFFER, |_, info| {
            info.flow_res = Err(FlowError::Eos);
            gst::PadProbeReturn::Handled
        });
        while bench.src.push(buffer(frame, 0)).is_ok() {}
        bench.sink.remove_probe(probe.unwrap());
        bench.begin("second");
        bench.src.push(buffer(frame, 3)).unwrap();
        assert_eq!(bench.next().pts(), Some(MS * 120));
    }
}

/// Caps may still wait in the queue when a seek flushes it: the frames after the seek need them.
#[test]
fn a_flush_takes_frames_and_leaves_what_downstream_needs_to_know() {
    let shop = shop();
    let (open, closed) = bounded(10);
    (0..4).for_each(|_| open.send(()).unwrap());
    let worker = scripted(&shop, "flush-caps", 1, move |jobs, model| {
        let _ = closed.recv();
        truly(jobs, model)
    });
    let element = filter(&shop);
    worker.serve(&element);
    let bench = Bench::new(&element);
    let frame = &shop.frames("washer/test/good")[0];
    bench.src.push(buffer(frame, 0)).unwrap(); // it waits for the model
    bench.src.push_event(gst::event::Caps::new(&caps("BGR", 64, 64)));
    bench.src.push_event(gst::event::FlushStart::new());
    bench.src.push_event(gst::event::FlushStop::new(true));
    bench.src.push_event(gst::event::Segment::new(&gst::FormattedSegment::<gst::ClockTime>::new()));
    drop(open);
    bench.src.push(buffer(frame, 5)).unwrap();
    assert_eq!(bench.next().pts(), Some(MS * 200));
    let current = bench.sink.current_caps().unwrap();
    assert_eq!(current.structure(0).unwrap().get::<&str>("format").unwrap(), "BGR");
    assert_all_counted(&element);
}

/// `concat`, `funnel` and `splitmuxsrc` answer late or never, and an application may link a recording after it has asked.
#[test]
fn an_upstream_that_has_not_said_that_it_is_live_waits_as_a_recording_does() {
    let shop = shop();
    let (open, closed) = bounded(100);
    (0..4).for_each(|_| open.send(()).unwrap());
    let worker = scripted(&shop, "late-link", 1, move |jobs, model| {
        let _ = closed.recv();
        truly(jobs, model)
    });
    let element = filter(&shop);
    worker.serve(&element);
    element.set_property_from_str("overload-policy", "auto");
    element.set_property("latency", 1_000_000u64);
    let bench = Bench::new(&element);
    let mut query = gst::query::Latency::new();
    assert!(bench.sink.peer_query(&mut query), "it is answered all the same");
    assert_eq!(query.result(), (true, MS, None));
    let frame = &shop.frames("washer/test/good")[0];
    for n in 0..6 {
        bench.src.push(buffer(frame, n)).unwrap(); // three times as many as a live stream may have with the model
    }
    (0..6).for_each(|_| open.send(()).unwrap());
    for n in 0..6 {
        let out = bench.next();
        assert_eq!(out.pts(), Some(MS * 40 * n));
        assert_ne!(result(&out).verdict, Verdict::Uninspected);
    }
    // Once it says that it is live, nothing is held up any more; and no longer than that.
    for (live, verdict) in
        [(Some(true), Verdict::Uninspected), (Some(false), Verdict::Ok), (Some(true), Verdict::Uninspected)]
    {
        *bench.upstream.lock().unwrap() = live.map(|live| (live, MS * 5, None));
        bench.sink.push_event(gst::event::Latency::new(MS));
        if verdict == Verdict::Ok {
            (0..2).for_each(|_| open.send(()).unwrap()); // the model is still at the frame that was late
        }
        bench.src.push(buffer(frame, 9)).unwrap();
        assert_eq!(result(&bench.next()).verdict == Verdict::Uninspected, verdict == Verdict::Uninspected, "{live:?}");
    }
    drop(open);
    assert_all_counted(&element);
}

#[test]
fn latency_is_upstreams_and_ours_and_changes_are_announced() {
    let shop = shop();
    let element = filter(&shop);
    let bench = Bench::new(&element);
    let ask = || {
        let mut query = gst::query::Latency::new();
        assert!(bench.sink.peer_query(&mut query));
        query.result()
    };
    *bench.upstream.lock().unwrap() = Some((true, MS * 20, Some(MS * 30)));
    let (live, min, max) = ask();
    assert!(live && min > MS * 20, "measured while warming up: {min}");
    assert_eq!(max, Some(min + MS * 10));
    bench.said();
    element.set_property("latency", 123_000_000u64);
    message(&bench.bus, |message| (message.type_() == gst::MessageType::Latency).then_some(()));
    assert_eq!(ask(), (true, MS * 143, Some(MS * 153)));
    // Neither side can make the sum wrap.
    element.set_property("latency", 3_600_000_000_000u64);
    *bench.upstream.lock().unwrap() = Some((false, gst::ClockTime::MAX, None));
    assert_eq!(ask().1, gst::ClockTime::MAX);
}
