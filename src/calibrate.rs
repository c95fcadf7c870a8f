//! From the scores of good parts to a threshold, and what that threshold will cost.
//!
//! Split-conformal calibration: among `n` held-out good parts the threshold is the k-th smallest score, and a part is
//! rejected when its score lies *strictly above* it. If the next good part is exchangeable with the held-out ones
//! (same product, same camera, parts rather than consecutive frames of one part), it is rejected with probability at
//! most `(n + 1 - k) / (n + 1)`, whatever the distribution and however many scores tie.
//!
//! That is less than was promised where `(n + 1) (1 - p)` is no whole number: of 30 parts at 5 % the largest score is the threshold,
//! which rejects 3.2 %. Scores whose promise is measured anyway ([`GoodScores::interpolated`]) have the threshold between two of them.
//!
//! Knows nothing of images, models or files: sorted numbers in, a threshold out.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use statrs::function::beta::checked_beta_reg;

use crate::error::{Error, Result};

/// Relative slack that absorbs the rounding of rates such as `0.29` or `1.0 / 17.0`, so that `(n + 1) * rate` is read
/// as the whole number it was meant to be. It loosens a promise by one part in 10^12.
const RATE_SLACK: f64 = 1e-12;

/// Probability left out on each side of a 95 % interval.
pub(crate) const TAIL: f64 = 0.025;

/// A score above which a part is rejected, with what is known about it.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Threshold {
    /// A part is rejected when its score is strictly greater.
    pub value: f32,
    /// Position of `value` among the sorted calibration scores, 1 to `n`; of the next higher score where it lies between two.
    pub rank: usize,
    /// Number of calibration scores.
    pub n: usize,
    /// Number of parts (groups of images) that the scores are of; absent where each is of a part of its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub groups: Option<usize>,
    /// Promised upper bound on the rate of good parts that are rejected, averaged over calibration sets.
    pub false_reject_rate: f64,
    /// The rate that this one calibration set will really show: 95 % of Beta(n + 1 - rank, rank), lower and upper end.
    /// With ties among the scores the true rate can only be lower.
    pub interval: [f64; 2],
}

impl Threshold {
    /// Number of parts that the promise rests on.
    pub fn parts(&self) -> usize {
        self.groups.unwrap_or(self.n)
    }
}

/// The promise asked for needs more calibration scores than there are.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TooFew {
    /// Calibration scores at hand.
    pub n: usize,
    /// False-reject rate asked for.
    pub target: f64,
    /// Scores that `target` needs; `usize::MAX` if no number is enough (a rate of zero, or none at all).
    pub needed: usize,
    /// Parts among the `n` that are rejected whatever the threshold.
    pub rejected: usize,
}

impl std::fmt::Display for TooFew {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { n, target, needed, rejected } = self;
        if *rejected > 0 && needed <= n {
            let least = rounded_up((*rejected as f64 + 1.0) * smallest_rate(*n));
            return write!(
                f,
                "a false-reject rate of {target} cannot be promised: {rejected} of {n} good parts were not found in their images (input.align), \
                 and the line rejects such parts; the smallest rate that they leave is {least}"
            );
        }
        if *needed == usize::MAX {
            write!(f, "a false-reject rate of {target} cannot be promised from any number of good parts; ")?;
        } else {
            write!(
                f,
                "a false-reject rate of {target} needs {needed} held-out good part{}, there {} {n}; ",
                plural(*needed, "", "s"),
                plural(*n, "is", "are"),
            )?;
        }
        match n {
            0 => write!(f, "without any, no rate can be promised"),
            _ => write!(f, "the smallest rate that {n} can promise is {}", rounded_up(smallest_rate(*n))),
        }
    }
}

impl std::error::Error for TooFew {}

impl From<TooFew> for Error {
    fn from(too_few: TooFew) -> Self {
        Self::Usage(too_few.to_string())
    }
}

fn plural(n: usize, one: &'static str, many: &'static str) -> &'static str {
    if n == 1 { one } else { many }
}

/// A rate in at most four significant decimals, rounded up, so that typing it back asks for no more than was offered.
fn rounded_up(rate: f64) -> f64 {
    let scale = 10f64.powi(3 - rate.log10().floor() as i32);
    (rate * scale * (1.0 - RATE_SLACK)).ceil() / scale
}

/// Scores in the order that everything here expects, with the groups that they belong to.
///
/// # Errors
/// [`Error::Internal`] if a score is NaN or infinite: such a score would make a threshold that never rejects.
pub fn sorted(mut scores: Vec<(f32, u32)>) -> Result<(Vec<f32>, Vec<u32>)> {
    if let Some(at) = scores.iter().position(|(score, _)| !score.is_finite()) {
        return Err(Error::Internal(format!(
            "calibration score {at} of {} is {}, expected a finite number",
            scores.len(),
            scores[at].0
        )));
    }
    scores.sort_by(|a, b| a.0.total_cmp(&b.0));
    Ok(scores.into_iter().unzip())
}

/// Scores of good parts, ascending and finite, with what each counts. Several images of one part are not several parts:
/// each group of images weighs 1, and each of its images as much as the others.
#[derive(Clone, Debug, PartialEq)]
pub struct GoodScores {
    scores: Vec<f32>,
    /// Weight of the first i scores together, for i = 0 to n.
    weight_below: Vec<f64>,
    groups: usize,
    /// Parts without a score, which are rejected whatever the threshold; they are among the groups.
    rejected: usize,
    interpolated: bool,
}

impl GoodScores {
    /// Of `sorted_scores` (see [`sorted`]); `groups` has the group of each score, and is empty where each is a part of its own.
    pub fn new(sorted_scores: &[f32], groups: &[u32]) -> Self {
        let mut sizes = BTreeMap::<u32, usize>::new();
        groups.iter().for_each(|&group| *sizes.entry(group).or_default() += 1);
        let weight = |i: usize| groups.get(i).map_or(1.0, |group| 1.0 / sizes[group] as f64);
        let mut sum = 0.0;
        let sums = (0..sorted_scores.len()).map(|i| {
            sum += weight(i);
            sum
        });
        let weight_below = [0.0].into_iter().chain(sums).collect();
        let groups = if groups.is_empty() { sorted_scores.len() } else { sizes.len() };
        Self { scores: sorted_scores.to_vec(), weight_below, groups, rejected: 0, interpolated: false }
    }

    /// The same with `count` parts more that have no score, as they were not found in their images: the line rejects them.
    pub fn with_rejected(self, count: usize) -> Self {
        Self { groups: self.groups + count, rejected: self.rejected + count, ..self }
    }

    /// The same with thresholds between two scores where the rank asked for lies between theirs: the sample quantile of Weibull
    /// (1939), type 6 of Hyndman and Fan (1996). New parts exceed it with the promised probability at most if the density of the
    /// scores does not rise between the two, as it rarely does in a tail; whatever it does, with 1 / (G + 1) more at most.
    pub fn interpolated(self) -> Self {
        Self { interpolated: true, ..self }
    }

    /// Number of parts without a score.
    pub fn rejected(&self) -> usize {
        self.rejected
    }

    /// Whether thresholds may lie between two scores.
    pub fn is_interpolated(&self) -> bool {
        self.interpolated
    }

    /// Number of groups, those without a score included.
    pub fn groups(&self) -> usize {
        self.groups
    }

    /// Groups that lie above the first `rank` scores, 0 to n: their number where each score is a group, a sum of shares otherwise.
    pub fn groups_above(&self, rank: usize) -> f64 {
        // Thirds do not add up to the whole.
        ((self.groups as f64 - self.weight_below[rank]) * 1e9).round() / 1e9
    }

    /// The smallest rank, 1 to n, that keeps a rate of `target` when the next part comes from a group of its own: the groups
    /// above it are at most `(G + 1) target - 1` (hierarchical conformal prediction: Lee, Barber and Willett 2023, with one
    /// image of the new group). Where each score is a group that is `k = ceil((n + 1) (1 - target))` (Lei et al. 2018).
    ///
    /// # Errors
    /// [`TooFew`] if `G < 1 / target - 1`, or if `target` is zero, negative or NaN.
    pub fn rank(&self, target: f64) -> Result<usize, TooFew> {
        let lowest = self.lowest_rank(target)?;
        Ok(lowest + self.ties_above(lowest))
    }

    /// Images of one part may have one score: the threshold lies above all of them, so many above `rank`.
    fn ties_above(&self, rank: usize) -> usize {
        if self.groups == self.scores.len() + self.rejected {
            return 0;
        }
        self.scores[rank..].partition_point(|&s| s <= self.scores[rank - 1])
    }

    /// Groups that may lie above a threshold for `target`; no whole number in general.
    fn allowed_above(&self, target: f64) -> f64 {
        (self.groups as f64 + 1.0) * target * (1.0 + RATE_SLACK) - 1.0
    }

    /// As [`rank`](Self::rank), before ties are looked at.
    fn lowest_rank(&self, target: f64) -> Result<usize, TooFew> {
        let Self { groups, rejected, .. } = *self;
        conformal_rank(groups, target).map_err(|few| TooFew { rejected, ..few })?;
        let allowed = self.allowed_above(target);
        let mut ranks = 1..=self.scores.len();
        let last = if rejected == 0 { Some(self.scores.len()) } else { None }; // whose weights may not add up to the whole
        let rank = ranks.find(|&rank| self.groups_above(rank) <= allowed).or(last);
        rank.ok_or(TooFew { n: groups, target, needed: needed(target), rejected })
    }

    /// The score at [`rank`](Self::rank) as a threshold: see there. A target of 1 or more gives the smallest score. Between that and
    /// the next lower score where these scores are [`interpolated`](Self::interpolated).
    ///
    /// # Errors
    /// As [`rank`](Self::rank).
    pub fn threshold(&self, target: f64) -> Result<Threshold, TooFew> {
        let rank = self.lowest_rank(target)?;
        let ties = self.ties_above(rank);
        let at_rank = self.at_rank(rank + ties, target);
        if !self.interpolated || rank < 2 || ties > 0 {
            return Ok(at_rank);
        }
        let (allowed, groups) = (self.allowed_above(target), self.groups as f64);
        let (above_lower, above_upper) = (self.groups_above(rank - 1), self.groups_above(rank));
        let share = ((above_lower - allowed) / (above_lower - above_upper)).clamp(0.0, 1.0);
        let (lower, upper) = (self.scores[rank - 2], self.scores[rank - 1]);
        let value = (f64::from(lower) + share * (f64::from(upper) - f64::from(lower))) as f32;
        Ok(Threshold { value, rank, interval: rate_interval(groups, groups - allowed), ..at_rank })
    }

    /// The `rank`-th smallest score, 1 to n, as a threshold that promises `false_reject_rate`.
    pub fn at_rank(&self, rank: usize, false_reject_rate: f64) -> Threshold {
        let (n, value, groups) = (self.scores.len() + self.rejected, self.scores[rank - 1], self.groups);
        let interval = rate_interval(groups as f64, groups as f64 - self.groups_above(rank));
        Threshold { value, rank, n, groups: (groups != n).then_some(groups), false_reject_rate, interval }
    }

    /// The smallest score that a share of `share` (0..=1) of the groups does not exceed: k = ceil((G + 1) share) groups, which new
    /// parts that are like these exceed with probability 1 - k / (G + 1).
    pub fn quantile(&self, share: f64) -> f32 {
        let wanted = (self.groups as f64 + 1.0) * share * (1.0 - RATE_SLACK);
        let below = self.weight_below.partition_point(|&weight| weight < wanted);
        self.scores[below.clamp(1, self.scores.len()) - 1]
    }

    /// Where `score` lies among these: percentage of them below it, ties counted half, 0 to 100. NaN if there are none or
    /// `score` is NaN.
    pub fn percentile(&self, score: f32) -> f64 {
        if score.is_nan() {
            return f64::NAN;
        }
        let below = self.scores.partition_point(|&normal| normal < score);
        let not_above = self.scores.partition_point(|&normal| normal <= score);
        100.0 * (self.weight_below[below] + self.weight_below[not_above]) / (2.0 * self.groups as f64)
    }
}

/// The split-conformal threshold for a false-reject rate of `target` where each score is of a part of its own: see
/// [`GoodScores::threshold`].
///
/// # Errors
/// [`TooFew`] if `n < 1 / target - 1`, or if `target` is zero, negative or NaN.
pub fn conformal(sorted_scores: &[f32], target: f64) -> Result<Threshold, TooFew> {
    GoodScores::new(sorted_scores, &[]).threshold(target)
}

/// Rank `k = ceil((n + 1) (1 - target))` of the split-conformal threshold, 1 to `n`.
///
/// # Errors
/// As [`conformal`].
pub fn conformal_rank(n: usize, target: f64) -> Result<usize, TooFew> {
    // ceil(m - x) = m - floor(x): counting the scores that may lie above keeps the numbers small and exact.
    let above = ((n as f64 + 1.0) * target * (1.0 + RATE_SLACK)).floor();
    if n == 0 || above.is_nan() || above < 1.0 {
        return Err(TooFew { n, target, needed: needed(target), rejected: 0 });
    }
    // `as` saturates, so an absurd target ends at rank 1.
    Ok(n.saturating_sub(above as usize - 1).max(1))
}

/// Smallest false-reject rate that `n` calibration scores can promise, `1 / (n + 1)`.
pub fn smallest_rate(n: usize) -> f64 {
    1.0 / (n as f64 + 1.0)
}

/// Calibration scores that a promise of `target` needs: the smallest n with `target >= 1 / (n + 1)`.
pub fn needed(target: f64) -> usize {
    if target > 0.0 { ((1.0 / (target * (1.0 + RATE_SLACK))).ceil() - 1.0).max(1.0) as usize } else { usize::MAX }
}

/// Equal-tailed 95 % interval of the true false-reject rate for rank 0 < `rank` <= `n`, which without ties is distributed as
/// Beta(n + 1 - rank, rank).
fn rate_interval(n: f64, rank: f64) -> [f64; 2] {
    [TAIL, 1.0 - TAIL].map(|probability| beta_quantile(n - rank + 1.0, rank, probability))
}

/// The value that a Beta(a, b) variable stays below with `probability`; 0 < a, 0 < b, 0 <= `probability` <= 1.
pub(crate) fn beta_quantile(a: f64, b: f64, probability: f64) -> f64 {
    // Bisection instead of statrs' Newton iteration, which can run for ever on lopsided shapes. 64 halvings reach the
    // resolution of f64.
    let (mut low, mut high) = (0.0, 1.0);
    for _ in 0..64 {
        let middle = 0.5 * (low + high);
        // Fails only for shapes and values that the callers keep out.
        if checked_beta_reg(a, b, middle).unwrap_or(f64::NAN) < probability {
            low = middle;
        } else {
            high = middle;
        }
    }
    0.5 * (low + high)
}

#[cfg(test)]
mod tests;
