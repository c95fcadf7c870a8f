//! Every fault, under both overload policies, with one stream and with four on one worker: frames in are the sum of the verdicts,
//! they leave in order, nothing that was not inspected is ok, and the bus or a counter tells of what happened.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use crossbeam_channel::{Sender, bounded};
use diad::detector::Verdict;
use diad::error::Error;
use gst::FlowError;

use super::bench::Bench;
use super::common::*;
use super::*;

/// The faults and, from the same names, the list of all: none can be left out of the matrix.
macro_rules! faults {
    ($($fault:ident,)*) => {
        #[derive(Clone, Copy, Debug, PartialEq)]
        enum Fault { $($fault,)* }

        const FAULTS: &[Fault] = &[$(Fault::$fault,)*];
    };
}

faults! {
    ModelPanics,
    ModelFails,
    ModelHangs,
    ModelReturnsNan,
    OutOfMemory, // of the device, for the batch
    WorkerThreadLost,
    DeviceLost,
    DownstreamFails,
    DownstreamUnlinked,
    DownstreamFlushing,
    UpstreamFlushes,
    Gap,
    PtsReset,
    CapsChange,
    FormatChange,
    EosInMidBatch,
    BufferOfWrongSize,
}

use Fault::*;

impl Fault {
    /// Faults after which no frame can be inspected by this worker.
    fn ends_the_worker(self) -> bool {
        matches!(self, WorkerThreadLost | DeviceLost)
    }

    /// What happens on the pads alone: nothing is wrong with the frames.
    fn is_ordinary(self) -> bool {
        matches!(self, Gap | PtsReset | CapsChange | FormatChange | EosInMidBatch)
    }
}

/// Panics when it is dropped while armed, once: outside of what the worker guards, so that its thread ends.
#[derive(Clone)]
struct DropBomb(Arc<AtomicBool>);

impl Drop for DropBomb {
    fn drop(&mut self) {
        assert!(!self.0.swap(false, Ordering::SeqCst), "told to end the thread");
    }
}

/// A worker whose model misbehaves while it is armed. A hanging model goes on when the sender is dropped.
fn misbehaving(shop: &Shop, fault: Fault, armed: &Arc<AtomicBool>) -> (ScriptedWorker, Sender<()>) {
    static IDS: AtomicU64 = AtomicU64::new(0);
    let id = format!("fault {}", IDS.fetch_add(1, Ordering::Relaxed));
    let (release, hangs) = bounded::<()>(0);
    let (armed, bomb) = (armed.clone(), DropBomb(Arc::default()));
    let worker = scripted(shop, &id, 2, move |jobs, model| {
        if jobs.is_empty() || !armed.load(Ordering::SeqCst) {
            return truly(jobs, model);
        }
        match fault {
            ModelPanics => {
                armed.store(false, Ordering::SeqCst); // once: after a second time a model is not used any more
                panic!("told to panic")
            }
            ModelFails => Error::Usage("told to fail".into()).for_all(jobs.len()),
            ModelHangs => {
                let _ = hangs.recv();
                truly(jobs, model)
            }
            ModelReturnsNan => {
                let mut answers = truly(jobs, model);
                for answer in answers.iter_mut().flatten() {
                    (answer.score, answer.verdict) = (f32::NAN, Verdict::Ok);
                }
                answers
            }
            OutOfMemory => Error::Memory("told to have none".into()).for_all(jobs.len()),
            DeviceLost => Error::Lost("told to be lost".into()).for_all(jobs.len()),
            WorkerThreadLost => {
                bomb.0.store(true, Ordering::SeqCst);
                panic!("told to panic")
            }
            _ => truly(jobs, model),
        }
    });
    (worker, release)
}

/// Streams on one worker, and what has come out of them.
struct Rig {
    benches: Vec<Bench>,
    frame: Frame,
    came_out: Vec<Vec<gst::Buffer>>,
    said: Vec<Vec<String>>,
    sent: u64,
}

impl Rig {
    /// Sends a frame into each stream, and gives the answers of upstream's pads.
    fn push(&mut self) -> Vec<Result<gst::FlowSuccess, FlowError>> {
        self.sent += 1;
        let buffer = buffer(&self.frame, self.sent);
        self.benches.iter().map(|bench| bench.src.push(buffer.clone())).collect()
    }

    /// Sends frames one by one, each when the last has come out.
    fn push_and_wait(&mut self, count: usize) {
        for _ in 0..count {
            for flow in self.push() {
                flow.unwrap();
            }
            self.wait(1);
        }
    }

    fn wait(&mut self, count: usize) {
        for (bench, out) in self.benches.iter().zip(&mut self.came_out) {
            out.extend((0..count).map(|_| bench.next()));
        }
    }

    fn events(&self, event: impl Fn() -> gst::Event) {
        self.benches.iter().for_each(|bench| {
            bench.src.push_event(event());
        });
    }

    fn collect(&mut self) {
        for ((bench, out), said) in self.benches.iter().zip(&mut self.came_out).zip(&mut self.said) {
            out.extend(bench.buffers.try_iter());
            said.extend(bench.said());
        }
    }
}

fn segment() -> gst::Event {
    gst::event::Segment::new(&gst::FormattedSegment::<gst::ClockTime>::new())
}

fn check(shop: &Shop, fault: Fault, policy: &str, streams: usize) {
    let armed = Arc::new(AtomicBool::new(false));
    let (worker, release) = misbehaving(shop, fault, &armed);
    let elements: Vec<_> = (0..streams).map(|_| filter(shop)).collect();
    for element in &elements {
        worker.serve(element);
        element.set_property_from_str("overload-policy", policy);
        // Nothing is late but what waits for a model that hangs.
        element.set_property("latency", if fault == ModelHangs { 30_000_000u64 } else { 600_000_000_000 });
    }
    let mut rig = Rig {
        benches: elements.iter().map(Bench::new).collect(),
        frame: shop.frames("washer/test/good").remove(0),
        came_out: vec![Vec::new(); streams],
        said: vec![Vec::new(); streams],
        sent: 0,
    };
    let mut release = Some(release);
    if fault != ModelHangs {
        rig.push_and_wait(2);
    }

    armed.store(true, Ordering::SeqCst);
    match fault {
        ModelPanics | ModelFails | ModelReturnsNan | OutOfMemory => rig.push_and_wait(2),
        ModelHangs if policy == "pass-uninspected" => rig.push_and_wait(3),
        ModelHangs => {
            // Frames wait for as long as it takes; a flush is answered all the same.
            rig.push();
            rig.events(gst::event::FlushStart::new);
            rig.events(|| gst::event::FlushStop::new(true));
            rig.events(segment);
        }
        WorkerThreadLost => rig.push_and_wait(2),
        DeviceLost => while rig.push().iter().any(Result::is_ok) {},
        DownstreamFails => {
            let fail = |_: &gst::Pad, info: &mut gst::PadProbeInfo<'_>| {
                info.flow_res = Err(FlowError::Error);
                gst::PadProbeReturn::Handled
            };
            let probes: Vec<_> =
                rig.benches.iter().map(|b| b.sink.add_probe(gst::PadProbeType::BUFFER, fail).unwrap()).collect();
            while rig.push().iter().any(Result::is_ok) {}
            rig.benches.iter().zip(probes).for_each(|(bench, probe)| bench.sink.remove_probe(probe));
            rig.events(gst::event::FlushStart::new);
            rig.events(|| gst::event::FlushStop::new(true));
            rig.events(segment);
        }
        DownstreamUnlinked | DownstreamFlushing => {
            for bench in &rig.benches {
                match fault {
                    DownstreamFlushing => bench.sink.set_active(false).unwrap(),
                    _ => bench.element.static_pad("src").unwrap().unlink(&bench.sink).unwrap(),
                }
            }
            while rig.push().iter().any(Result::is_ok) {}
            for bench in &rig.benches {
                let srcpad = bench.element.static_pad("src").unwrap();
                let _ = srcpad.unlink(&bench.sink);
                bench.sink.set_active(true).unwrap();
                srcpad.link(&bench.sink).unwrap();
            }
        }
        UpstreamFlushes => {
            rig.push();
            rig.push();
            rig.events(gst::event::FlushStart::new);
            rig.events(|| gst::event::FlushStop::new(true));
            rig.events(segment);
        }
        Gap => rig.events(|| gst::event::Gap::new(MS * 80, MS * 40)),
        PtsReset => {
            rig.events(segment);
            rig.push_and_wait(1);
        }
        CapsChange => {
            rig.events(|| gst::event::Caps::new(&caps("GRAY8", 96, 128)));
            rig.frame = Frame::new(64, 64, vec![90; 64 * 64 * 3]).unwrap(); // as many bytes
            rig.push_and_wait(2);
        }
        FormatChange => {
            rig.events(|| gst::event::Caps::new(&caps("BGR", 64, 64)));
            rig.push_and_wait(2);
        }
        EosInMidBatch => {
            rig.push();
            rig.events(gst::event::Eos::new);
            rig.wait(1);
            rig.benches.iter().for_each(|bench| bench.begin("next"));
        }
        BufferOfWrongSize => {
            for bench in &rig.benches {
                bench.src.push(gst::Buffer::from_slice([1u8; 100])).unwrap();
            }
            rig.wait(1);
        }
    }
    armed.store(false, Ordering::SeqCst);
    release.take();
    if !fault.ends_the_worker() {
        elements.iter().for_each(|element| element.set_property("latency", 600_000_000_000u64));
        rig.push_and_wait(2);
        assert!(
            rig.came_out.iter().all(|out| result(out.last().unwrap()).finding.is_some()),
            "{fault:?}: the stream goes on"
        );
    }
    for element in &elements {
        element.set_state(gst::State::Null).unwrap(); // the tasks have ended: nothing is on its way any more
    }

    rig.collect();
    let mut told = Vec::new();
    for ((element, out), said) in elements.iter().zip(&rig.came_out).zip(&rig.said) {
        let context = format!("{fault:?}, {policy}, {streams} streams");
        assert_all_counted(element);
        let numbers: Vec<_> = out.iter().map(|buffer| result(buffer).frame_id).collect();
        assert!(numbers.is_sorted_by(|a, b| a < b), "{context}: in order: {numbers:?}");
        for buffer in out {
            let said = result(buffer);
            let inspected = said.finding.is_some_and(|finding| finding.score.is_finite());
            assert_eq!(
                inspected,
                matches!(said.verdict, Verdict::Ok | Verdict::Warn | Verdict::Ng),
                "{context}: {:?}, {:?}",
                said.verdict,
                said.reason
            );
        }
        let lost = ["error", "uninspected"].iter().map(|verdict| stat(element, verdict)).sum::<u64>();
        told.push(lost > 0 || !said.is_empty());
    }
    let told = if fault == ModelPanics { vec![told.contains(&true)] } else { told }; // over the frames of one batch
    assert!(told.iter().all(|told| *told != fault.is_ordinary()), "{fault:?}, {policy}: {told:?}, {:?}", rig.said);
    // Whoever the streams were, the worker is not theirs any more.
    drop(worker);
}

/// One test per policy and number of streams, so that they run side by side.
macro_rules! matrix {
    ($($name:ident: $policy:literal, $streams:literal;)*) => {$(
        #[test]
        fn $name() {
            let shop = shop();
            FAULTS.iter().for_each(|fault| check(&shop, *fault, $policy, $streams));
        }
    )*};
}

matrix! {
    one_stream_that_waits: "block", 1;
    one_stream_that_passes_on: "pass-uninspected", 1;
    four_streams_that_wait: "block", 4;
    four_streams_that_pass_on: "pass-uninspected", 4;
}
