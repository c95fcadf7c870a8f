//! Durations and scores as `/metrics` has them: counts in ranges, from which a server makes percentiles.

use gstdiad::result::{DiadResult, Timing};
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::Histogram;

pub(crate) type Labels = Vec<(&'static str, String)>;
/// A histogram for each set of labels.
type Ranges = Family<Labels, Histogram, fn() -> Histogram>;

/// What results say of times and scores.
pub(crate) struct Measures {
    /// From when a frame came until its verdict stood.
    pub(crate) latency: Ranges,
    /// Parts of that.
    pub(crate) stages: Ranges,
    /// Share of held-out good parts with a lower score.
    pub(crate) percentile: Ranges,
}

/// Upper ends of ranges, in seconds.
const SECONDS: [f64; 10] = [0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0];
/// Upper ends of ranges, in per cent.
const PERCENT: [f64; 6] = [50.0, 75.0, 90.0, 95.0, 99.0, 100.0];

fn times() -> Histogram {
    Histogram::new(SECONDS)
}

fn percentiles() -> Histogram {
    Histogram::new(PERCENT)
}

impl Default for Measures {
    fn default() -> Self {
        Self {
            latency: Family::new_with_constructor(times),
            stages: Family::new_with_constructor(times),
            percentile: Family::new_with_constructor(percentiles),
        }
    }
}

impl Measures {
    /// Takes a result of a line.
    pub(super) fn take(&self, result: &DiadResult) {
        let line = ("line", result.line.clone().unwrap_or_default());
        let seconds = |ns: u64| ns as f64 / 1e9;
        for found in &result.results {
            let Timing { pre, queue, infer, total, .. } = found.timing;
            self.latency.get_or_create(&vec![line.clone()]).observe(seconds(total));
            let Some(finding) = &found.finding else { continue };
            for (stage, ns) in [("pre", pre), ("queue", queue), ("infer", infer)] {
                self.stages.get_or_create(&vec![line.clone(), ("stage", stage.to_owned())]).observe(seconds(ns));
            }
            self.percentile.get_or_create(&vec![line.clone()]).observe(finding.percentile);
        }
    }
}
