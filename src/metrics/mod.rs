//! How well scores rank defects above good: AUROC, AP, best F1 and AUPRO, all exact; and rates over parts of which there are
//! several images. Knows nothing of tensors or files.
//!
//! Definitions (per class; the caller averages over classes):
//! - **AUROC** = P(s+ > s-) + 1/2 P(s+ = s-), never flipped below 0.5.
//! - **AP** = sum of (R_n - R_{n-1}) P_n over the distinct thresholds, descending; not the trapezoid under the curve.
//! - **F1max** = the best 2PR/(P+R) over all distinct thresholds.
//! - **AUPRO@l** (Bergmann et al., "The MVTec Anomaly Detection Dataset", IJCV 2021): the mean covered fraction of the
//!   ground-truth components (8-connected, all images, equal weight) over the false-positive rate among all good pixels
//!   of the test set, by trapezoid from 0 to `l` with linear interpolation at `l`, divided by `l`.
//!
//! Scores that are equal move together: no result depends on the order of the input. A metric that needs both kinds is
//! `None` when one is missing.

mod curve;
mod groups;
mod pixels;

use rayon::slice::ParallelSliceMut as _;

use crate::error::{Error, Result};

use curve::Thinner;
pub use curve::{CurvePoint, PRO_LIMIT};
pub use groups::{Groups, share_interval};
pub use pixels::PixelSet;

/// Sorted scores, those of good items and those of defective ones (images or pixels) apart; every metric is one sweep over them.
///
/// Good scores take 4 bytes, defective ones 8 (score and component), which is what lets 50 million pixels fit.
#[derive(Clone, Debug)]
pub struct Ranking {
    /// [`ordered`] scores of the good, ascending.
    good: Vec<u32>,
    /// [`ordered`] score in the high half, component in the low half; ascending.
    defective: Vec<u64>,
    /// Number of pixels of each component; empty where items are images, which have no components.
    areas: Vec<u32>,
}

/// All that share one score, met by a sweep from the highest score to the lowest.
struct Tie<'a> {
    good: u64,
    /// Keys as in [`Ranking::defective`].
    defective: &'a [u64],
}

impl Ranking {
    /// Ranks `scores`, of which those with a true label are defects.
    ///
    /// # Errors
    /// When a score is NaN or the two lengths differ.
    pub fn new(scores: &[f32], labels: &[bool]) -> Result<Self> {
        if scores.len() != labels.len() {
            return Err(Error::Internal(format!("metrics: {} scores but {} labels", scores.len(), labels.len())));
        }
        let (mut good, mut defective) = (Vec::new(), Vec::new());
        for (at, (&score, &defect)) in scores.iter().zip(labels).enumerate() {
            let key = ordered(score).ok_or_else(|| Error::Internal(format!("metrics: score {at} is NaN")))?;
            if defect {
                defective.push(u64::from(key) << 32);
            } else {
                good.push(key);
            }
        }
        Ok(Self::sorted(good, defective, Vec::new()))
    }

    /// Sorts the parts in place.
    fn sorted(mut good: Vec<u32>, mut defective: Vec<u64>, areas: Vec<u32>) -> Self {
        good.par_sort_unstable();
        defective.par_sort_unstable();
        Self { good, defective, areas }
    }

    /// Area under the ROC curve, 0..=1; 0.5 is chance.
    pub fn auroc(&self) -> Option<f64> {
        self.has_both().then(|| {
            let mut twice_won = 0_u128; // in half wins, so that ties stay whole numbers
            let mut good_below = self.good.len() as u128;
            self.sweep(|tie| {
                good_below -= u128::from(tie.good);
                twice_won += tie.defective.len() as u128 * (2 * good_below + u128::from(tie.good));
                true
            });
            twice_won as f64 / (2.0 * self.good.len() as f64 * self.defective.len() as f64)
        })
    }

    /// Average precision, 0..=1; the share of defects is chance.
    pub fn average_precision(&self) -> Option<f64> {
        self.has_both().then(|| {
            let (mut hits, mut alarms, mut sum) = (0_u64, 0_u64, 0.0);
            self.sweep(|tie| {
                hits += tie.defective.len() as u64;
                alarms += tie.defective.len() as u64 + tie.good;
                sum += tie.defective.len() as f64 * hits as f64 / alarms as f64;
                (hits as usize) < self.defective.len()
            });
            sum / self.defective.len() as f64
        })
    }

    /// Best F1 over all thresholds, 0..=1.
    pub fn f1_max(&self) -> Option<f64> {
        self.has_both().then(|| {
            let (mut hits, mut alarms, mut best) = (0_u64, 0_u64, 0.0_f64);
            self.sweep(|tie| {
                hits += tie.defective.len() as u64;
                alarms += tie.defective.len() as u64 + tie.good;
                best = best.max(2.0 * hits as f64 / (alarms + self.defective.len() as u64) as f64);
                true
            });
            best
        })
    }

    /// Area under the per-region-overlap curve up to the false-positive rate `limit` (0 to 1, [`PRO_LIMIT`] is MVTec's),
    /// divided by `limit`; 0..=1, `limit / 2` is chance. `None` also when nothing was ranked as a [`PixelSet`].
    pub fn aupro(&self, limit: f64) -> Option<f64> {
        if !self.has_both() || self.areas.is_empty() || !(limit > 0.0 && limit <= 1.0) {
            return None;
        }
        let (mut last, mut area) = (CurvePoint { x: 0.0, y: 0.0 }, 0.0);
        self.sweep_pro(|point| {
            let end = if point.x < limit {
                point
            } else {
                // `last` lies left of the limit, so the two differ in x.
                let share = (limit - last.x) / (point.x - last.x);
                CurvePoint { x: limit, y: last.y + (point.y - last.y) * share }
            };
            area += (end.x - last.x) * (last.y + end.y) / 2.0;
            last = end;
            end.x < limit
        });
        Some((area / limit).min(1.0))
    }

    /// The ROC curve from (0, 0) to (1, 1): x false-positive rate, y true-positive rate; at most `most` points (no fewer
    /// than 8), jumps kept. Empty when one kind is missing.
    pub fn roc_curve(&self, most: usize) -> Vec<CurvePoint> {
        if !self.has_both() {
            return Vec::new();
        }
        let mut curve = Thinner::new(most);
        let (mut hits, mut false_alarms) = (0, 0);
        curve.push(CurvePoint { x: 0.0, y: 0.0 });
        self.sweep(|tie| {
            hits += tie.defective.len();
            false_alarms += tie.good;
            curve.push(CurvePoint {
                x: false_alarms as f64 / self.good.len() as f64,
                y: hits as f64 / self.defective.len() as f64,
            });
            true
        });
        curve.finish()
    }

    /// The precision-recall curve: x recall, y precision, from the strictest threshold that finds something to recall 1;
    /// at most `most` points (no fewer than 8). Empty when one kind is missing.
    pub fn pr_curve(&self, most: usize) -> Vec<CurvePoint> {
        if !self.has_both() {
            return Vec::new();
        }
        let mut curve = Thinner::new(most);
        let (mut hits, mut alarms) = (0_usize, 0_u64);
        self.sweep(|tie| {
            hits += tie.defective.len();
            alarms += tie.defective.len() as u64 + tie.good;
            let recall = hits as f64 / self.defective.len() as f64;
            curve.push(CurvePoint { x: recall, y: hits as f64 / alarms as f64 });
            hits < self.defective.len()
        });
        curve.finish()
    }

    /// The per-region-overlap curve from (0, 0) to (1, 1): x false-positive rate, y mean covered fraction of the
    /// components; at most `most` points (no fewer than 8). Empty where [`Ranking::aupro`] is `None`.
    pub fn pro_curve(&self, most: usize) -> Vec<CurvePoint> {
        if !self.has_both() || self.areas.is_empty() {
            return Vec::new();
        }
        let mut curve = Thinner::new(most);
        curve.push(CurvePoint { x: 0.0, y: 0.0 });
        self.sweep_pro(|point| {
            curve.push(point);
            true
        });
        curve.push(CurvePoint { x: 1.0, y: 1.0 });
        curve.finish()
    }

    fn has_both(&self) -> bool {
        !self.good.is_empty() && !self.defective.is_empty()
    }

    /// Visits the distinct scores from the highest down until there are none or `visit` returns false.
    fn sweep(&self, mut visit: impl FnMut(Tie<'_>) -> bool) {
        let (mut good, mut defective) = (&self.good[..], &self.defective[..]);
        while let Some(score) = good.last().copied().max(defective.last().map(|key| (key >> 32) as u32)) {
            let ties = good.iter().rev().take_while(|&&key| key == score).count();
            good = &good[..good.len() - ties];
            let hits = defective.iter().rev().take_while(|&&key| (key >> 32) as u32 == score).count();
            let (rest, tied) = defective.split_at(defective.len() - hits);
            defective = rest;
            if !visit(Tie { good: ties as u64, defective: tied }) {
                return;
            }
        }
    }

    /// Visits the points of the per-region-overlap curve, (0, 0) not included.
    fn sweep_pro(&self, mut visit: impl FnMut(CurvePoint) -> bool) {
        // A pixel of component k covers 1 / |k| of one of K components.
        let shares: Vec<f64> =
            self.areas.iter().map(|&area| 1.0 / (f64::from(area) * self.areas.len() as f64)).collect();
        let (mut false_alarms, mut covered) = (0_u64, 0.0_f64);
        self.sweep(|tie| {
            false_alarms += tie.good;
            for &key in tie.defective {
                covered += shares.get((key & u64::from(u32::MAX)) as usize).copied().unwrap_or(0.0);
            }
            visit(CurvePoint { x: false_alarms as f64 / self.good.len() as f64, y: covered.min(1.0) })
        });
    }
}

/// A number that orders as `score` does, with -0 equal to 0; `None` for NaN.
fn ordered(score: f32) -> Option<u32> {
    if score.is_nan() {
        return None;
    }
    let bits = (score + 0.0).to_bits(); // -0.0 + 0.0 is 0.0
    Some(if bits >> 31 == 1 { !bits } else { bits | 1 << 31 })
}

#[cfg(test)]
mod tests;
