//! What has become of the frames: counts and durations. Every frame that came in is in exactly one count.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use diad::detector::Verdict;
use diad::worker::{Durations, Summary};

use crate::queue::lock;

/// Counts and durations since the element started.
#[derive(Default)]
pub(super) struct Stats {
    counts: Mutex<Counts>,
    /// Frames that the worker has been given and that wait for its answer.
    with_worker: AtomicUsize,
}

#[derive(Clone, Default)]
pub(super) struct Counts {
    pub(super) frames: u64,
    verdicts: [u64; 5],
    /// Why frames were not inspected.
    reasons: BTreeMap<&'static str, u64>,
    pub(super) pre: Durations,
    pub(super) queue: Durations,
    pub(super) infer: Durations,
    pub(super) draw: Durations,
    pub(super) total: Durations,
    batches: u64,
}

/// A frame that came in. Dropped without a verdict, it counts as uninspected because of the last thing that happened to it.
pub(super) struct Counted {
    stats: Arc<Stats>,
    /// Number of the frame since the element started.
    pub(super) number: u64,
    judged: bool,
    /// Why it would be uninspected.
    pub(super) lost: &'static str,
}

/// A frame that is with the worker, for as long as this lives.
pub(super) struct WithWorker(Arc<Stats>);

impl Drop for WithWorker {
    fn drop(&mut self) {
        self.0.with_worker.fetch_sub(1, Ordering::AcqRel);
    }
}

impl Counted {
    /// The frame has its verdict. Those that were not inspected are counted by `reason` as well.
    pub(super) fn judge(mut self, verdict: Verdict, reason: Option<&'static str>) {
        self.judged = true;
        self.stats.judge(verdict, reason);
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        if !self.judged {
            let (verdict, reason) = match std::thread::panicking() {
                true => (Verdict::Error, None),
                false => (Verdict::Uninspected, Some(self.lost)),
            };
            self.stats.judge(verdict, reason);
        }
    }
}

impl Stats {
    pub(super) fn counts(&self) -> MutexGuard<'_, Counts> {
        lock(&self.counts)
    }

    /// A frame comes in.
    pub(super) fn enter(self: &Arc<Self>) -> Counted {
        let mut counts = self.counts();
        counts.frames += 1;
        Counted { stats: self.clone(), number: counts.frames - 1, judged: false, lost: "flushed" }
    }

    /// A frame goes to the worker.
    pub(super) fn to_worker(self: &Arc<Self>) -> WithWorker {
        self.with_worker.fetch_add(1, Ordering::AcqRel);
        WithWorker(self.clone())
    }

    /// Frames that are with the worker.
    pub(super) fn with_worker(&self) -> usize {
        self.with_worker.load(Ordering::Acquire)
    }

    fn judge(&self, verdict: Verdict, reason: Option<&'static str>) {
        let mut counts = self.counts();
        counts.verdicts[verdict as usize] += 1;
        if let Some(reason) = reason {
            *counts.reasons.entry(reason).or_default() += 1;
        }
    }

    /// What preparing and drawing take, in 99 % of frames.
    pub(super) fn own(&self) -> Duration {
        let (pre, draw) = {
            let counts = self.counts();
            (counts.pre.clone(), counts.draw.clone())
        };
        pre.summary().p99 + draw.summary().p99
    }
}

impl Counts {
    pub(super) fn answered(&mut self, queue: Duration, infer: Duration, batch: usize) {
        self.queue.add(queue);
        self.infer.add(infer);
        self.batches += batch as u64;
    }

    /// Frames that the model has seen, and frames that passed by it.
    pub(super) fn seen_and_unseen(&self) -> (u64, u64) {
        let [ok, warn, ng, uninspected, error] = self.verdicts;
        (ok + warn + ng, uninspected + error)
    }

    /// The counts as the property `stats` shows them; times in ns.
    pub(super) fn structure(&self) -> gst::Structure {
        let [ok, warn, ng, uninspected, error] = self.verdicts;
        let mut structure = gst::Structure::builder("diad-stats")
            .field("frames", self.frames)
            .field("ok", ok)
            .field("warn", warn)
            .field("ng", ng)
            .field("uninspected", uninspected)
            .field("error", error)
            .build();
        for (reason, count) in &self.reasons {
            structure.set(format!("uninspected-{reason}"), *count);
        }
        let inspected = self.infer.summary().count;
        let mean = if inspected == 0 { 0.0 } else { self.batches as f64 / inspected as f64 };
        structure.set("mean-batch", mean);
        let times = [
            ("pre", &self.pre),
            ("queue", &self.queue),
            ("infer", &self.infer),
            ("draw", &self.draw),
            ("total", &self.total),
        ];
        for (name, durations) in times {
            structure.set(format!("time-{name}"), summary(&durations.summary()));
        }
        structure
    }
}

fn summary(summary: &Summary) -> gst::Structure {
    let ns = |duration: Duration| u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
    gst::Structure::builder("durations")
        .field("min", ns(summary.min))
        .field("avg", ns(summary.avg))
        .field("p50", ns(summary.p50))
        .field("p95", ns(summary.p95))
        .field("p99", ns(summary.p99))
        .field("max", ns(summary.max))
        .build()
}
