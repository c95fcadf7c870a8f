//! Counts and durations of the worker, copied out as a snapshot.

use std::collections::VecDeque;
use std::sync::OnceLock;
use std::time::Duration;

/// Durations kept for the percentiles.
const RECENT: usize = 1024;

/// Durations: count, mean and extremes of all of them, percentiles of the last thousand.
#[derive(Clone, Debug, Default)]
pub struct Durations {
    count: u64,
    sum: Duration,
    min: Option<Duration>,
    max: Duration,
    recent: VecDeque<Duration>,
    /// The summary, until another duration comes.
    summary: OnceLock<Summary>,
}

/// Summary of [`Durations`]; all zero where nothing was measured.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    /// How many.
    pub count: u64,
    /// Shortest.
    pub min: Duration,
    /// Mean.
    pub avg: Duration,
    /// Median of the last thousand.
    pub p50: Duration,
    /// 95 % of the last thousand are at most this.
    pub p95: Duration,
    /// 99 % of the last thousand are at most this.
    pub p99: Duration,
    /// Longest.
    pub max: Duration,
}

impl Durations {
    /// Adds a duration.
    pub fn add(&mut self, duration: Duration) {
        self.summary.take();
        self.count += 1;
        self.sum += duration;
        self.min = Some(self.min.map_or(duration, |min| min.min(duration)));
        self.max = self.max.max(duration);
        if self.recent.len() == RECENT {
            self.recent.pop_front();
        }
        self.recent.push_back(duration);
    }

    /// The summary. It sorts the recent durations, but only once after each [`Durations::add`].
    pub fn summary(&self) -> Summary {
        *self.summary.get_or_init(|| self.summarise())
    }

    fn summarise(&self) -> Summary {
        let mut sorted: Vec<Duration> = self.recent.iter().copied().collect();
        sorted.sort_unstable();
        // Nearest rank: the smallest value that at least `share` of all are at or below.
        let at = |share: f64| {
            let rank = (share * sorted.len() as f64).ceil() as usize;
            sorted.get(rank.saturating_sub(1)).copied().unwrap_or_default()
        };
        Summary {
            count: self.count,
            min: self.min.unwrap_or_default(),
            avg: self.sum.checked_div(u32::try_from(self.count).unwrap_or(u32::MAX)).unwrap_or_default(),
            p50: at(0.5),
            p95: at(0.95),
            p99: at(0.99),
            max: self.max,
        }
    }
}

/// Counts and durations of a worker since it was started.
#[derive(Clone, Debug, Default)]
pub struct Stats {
    /// Batches that the model was given.
    pub batches: u64,
    /// Frames in them.
    pub frames: u64,
    /// Frames of them that were answered with an error, panics included.
    pub errors: u64,
    /// Panics of the model.
    pub panics: u64,
    /// Frames whose ticket was given up before their turn; they were skipped.
    pub abandoned: u64,
    /// From submission to the start of the batch.
    pub queue: Durations,
    /// The model's work on the batch that a frame was in.
    pub infer: Durations,
    /// From submission to answer.
    pub total: Durations,
}

impl Stats {
    /// Frames per batch; 0 before the first.
    pub fn mean_batch(&self) -> f64 {
        if self.batches == 0 { 0.0 } else { self.frames as f64 / self.batches as f64 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_of_the_recent_and_extremes_of_all() {
        let mut durations = Durations::default();
        assert_eq!(durations.summary(), Summary::default());
        durations.add(Duration::from_secs(9));
        for i in 1..=RECENT as u64 {
            durations.add(Duration::from_micros(i));
        }
        let summary = durations.summary();
        let us = Duration::from_micros;
        assert_eq!((summary.min, summary.max, summary.count), (us(1), Duration::from_secs(9), 1025));
        assert_eq!((summary.p50, summary.p95, summary.p99), (us(512), us(973), us(1014)));
    }

    #[test]
    fn one_value_is_every_percentile() {
        let mut durations = Durations::default();
        durations.add(Duration::from_millis(3));
        let s = durations.summary();
        assert!([s.min, s.avg, s.p50, s.p95, s.p99, s.max].iter().all(|d| *d == Duration::from_millis(3)));
    }
}
