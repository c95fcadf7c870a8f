//! What has become of the frames: counts and durations. Every frame that came in is in exactly one count.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use diad::detector::Verdict;
use diad::worker::{Durations, Summary};

/// Counts and durations since the element started.
#[derive(Default)]
pub(super) struct Tally(Mutex<Counts>);

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

impl Tally {
    pub(super) fn counts(&self) -> MutexGuard<'_, Counts> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn reset(&self) {
        *self.counts() = Counts::default();
    }

    /// A frame came in; its number.
    pub(super) fn came(&self) -> u64 {
        let mut counts = self.counts();
        counts.frames += 1;
        counts.frames - 1
    }

    /// A frame got its verdict.
    pub(super) fn judged(&self, verdict: Verdict) {
        self.counts().verdicts[verdict as usize] += 1;
    }

    /// A frame was not inspected.
    pub(super) fn uninspected(&self, reason: &'static str, frames: usize) {
        let mut counts = self.counts();
        counts.verdicts[Verdict::Uninspected as usize] += frames as u64;
        *counts.reasons.entry(reason).or_default() += frames as u64;
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
