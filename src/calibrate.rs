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
}

impl std::fmt::Display for TooFew {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { n, target, needed } = self;
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
        Self { scores: sorted_scores.to_vec(), weight_below, groups, interpolated: false }
    }

    /// The same with thresholds between two scores where the rank asked for lies between theirs: the sample quantile of Weibull
    /// (1939), type 6 of Hyndman and Fan (1996). New parts exceed it with the promised probability at most if the density of the
    /// scores does not rise between the two, as it rarely does in a tail; whatever it does, with 1 / (G + 1) more at most.
    pub fn interpolated(self) -> Self {
        Self { interpolated: true, ..self }
    }

    /// Whether thresholds may lie between two scores.
    pub fn is_interpolated(&self) -> bool {
        self.interpolated
    }

    /// Number of groups.
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
        if self.groups == self.scores.len() {
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
        conformal_rank(self.groups, target)?;
        let allowed = self.allowed_above(target);
        let ranks = 1..=self.scores.len();
        Ok(ranks.into_iter().find(|&rank| self.groups_above(rank) <= allowed).unwrap_or(self.scores.len()))
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
        let (n, value, groups) = (self.scores.len(), self.scores[rank - 1], self.groups);
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
        return Err(TooFew { n, target, needed: needed(target) });
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
mod tests {
    use proptest::prelude::*;
    use rand::{RngExt, SeedableRng};
    use rand_chacha::ChaCha8Rng;

    use super::*;

    fn of(scores: &[f32]) -> GoodScores {
        GoodScores::new(scores, &[])
    }

    /// ```python
    /// from math import ceil
    /// for n in [20, 60, 100, 200, 363, 1000, 58, 59, 298, 299, 50000]:
    ///     print(n, [ceil((n + 1) * (1 - a) - 1e-9) for a in [.1, .05, .02, .01]])   # > n: None
    /// ```
    #[test]
    fn ranks_equal_the_table() {
        for (n, ranks) in [
            (20, [Some(19), Some(20), None, None]),
            (60, [Some(55), Some(58), Some(60), None]),
            (100, [Some(91), Some(96), Some(99), Some(100)]),
            (200, [Some(181), Some(191), Some(197), Some(199)]),
            (363, [Some(328), Some(346), Some(357), Some(361)]),
            (1000, [Some(901), Some(951), Some(981), Some(991)]),
            (58, [Some(54), Some(57), Some(58), None]),
            (59, [Some(54), Some(57), Some(59), None]),
            (298, [Some(270), Some(285), Some(294), Some(297)]),
            (299, [Some(270), Some(285), Some(294), Some(297)]),
            (50_000, [Some(45_001), Some(47_501), Some(49_001), Some(49_501)]),
        ] {
            assert_eq!([0.1, 0.05, 0.02, 0.01].map(|rate| conformal_rank(n, rate).ok()), ranks, "n = {n}");
        }
    }

    fn in_order(scores: Vec<f32>) -> Result<Vec<f32>> {
        Ok(sorted(scores.into_iter().zip(0..).collect())?.0)
    }

    /// Ten pictures of each of 20 parts are 20 parts.
    #[test]
    fn copies_of_a_part_count_as_one() {
        let parts: Vec<f32> = (0..20).map(|i| i as f32).collect();
        let copies: Vec<f32> = (0..200).map(|i| (i / 10) as f32).collect();
        let groups: Vec<u32> = (0..200).map(|i| 7 * (i / 10)).collect();
        let (alone, grouped) = (of(&parts), GoodScores::new(&copies, &groups));
        for target in [0.05, 0.1, 0.3, 1.0] {
            let (one, ten) = (alone.threshold(target).unwrap(), grouped.threshold(target).unwrap());
            assert_eq!((ten.value, ten.n, ten.groups, ten.parts()), (one.value, 200, Some(20), 20), "{target}");
            assert_eq!((one.groups, one.parts()), (None, 20));
            assert!(ten.interval.iter().zip(one.interval).all(|(a, b)| (a - b).abs() < 1e-9));
        }
        assert_eq!(
            grouped.threshold(0.04).unwrap_err(),
            alone.threshold(0.04).unwrap_err(),
            "200 pictures do not help"
        );
        for score in [-1.0, 0.0, 3.5, 7.0, 99.0] {
            assert!((grouped.percentile(score) - alone.percentile(score)).abs() < 1e-9, "{score}");
        }
    }

    /// Groups of one to eight pictures that are more or less alike: a picture of a new part is rejected as seldom as promised.
    #[test]
    fn the_promise_holds_for_pictures_of_new_parts() {
        const LINES: usize = 3000;
        let mut rng = ChaCha8Rng::seed_from_u64(3);
        let mut uniform = move || rng.random::<f32>();
        let mut rejected = 0;
        for _ in 0..LINES {
            let mut group = || {
                let (part, size) = (uniform(), 1 + (uniform() * 8.0) as usize);
                (0..size).map(|_| part + 0.2 * uniform()).collect::<Vec<f32>>()
            };
            let parts: Vec<Vec<f32>> = (0..39).map(|_| group()).collect();
            let scores = parts.iter().zip(0..).flat_map(|(part, group)| part.iter().map(move |&score| (score, group)));
            let mut scores: Vec<(f32, u32)> = scores.collect();
            scores.sort_by(|a, b| a.0.total_cmp(&b.0));
            let (scores, groups): (Vec<f32>, Vec<u32>) = scores.into_iter().unzip();
            let threshold = GoodScores::new(&scores, &groups).threshold(0.1).unwrap();
            rejected += usize::from(group()[0] > threshold.value);
        }
        let rate = rejected as f64 / LINES as f64;
        assert!(rate < 0.1 + 4.0 * (0.09 / LINES as f64).sqrt() && rate > 0.06, "{rate}");
    }

    /// `numpy.quantile(scores, 1 - p, method="weibull")` (2.4) of `scores = numpy.arange(1, n + 1) ** 2`.
    #[test]
    fn interpolated_thresholds_are_the_quantiles_of_weibull() {
        for (n, target, expected) in [
            (30, 0.05, 867.55),
            (30, 0.1, 778.5),
            (30, 1.0 / 31.0, 900.0),
            (99, 0.05, 9025.0),
            (158, 0.05, 22816.15),
            (20, 0.3, 216.3),
        ] {
            let scores: Vec<f32> = (1..=n).map(|i| (i * i) as f32).collect();
            let good = of(&scores).interpolated();
            let threshold = good.threshold(target).unwrap();
            assert!((threshold.value - expected).abs() < 2e-3, "{n} at {target}: {}", threshold.value);
            let whole = of(&scores).threshold(target).unwrap();
            assert!(threshold.value <= whole.value && threshold.rank == whole.rank, "{n} at {target}");
            assert!(of(&scores[1..]).interpolated().threshold(1e-3).is_err(), "too few stay too few");
        }
        // Copies of a part have one score: the threshold lies above all of them, at a rank that keeps the promise.
        let copies: Vec<f32> = (0..200).map(|i| (i / 10) as f32).collect();
        let groups: Vec<u32> = (0..200).map(|i| i / 10).collect();
        let (same, alone) = (GoodScores::new(&copies, &groups), (0..20).map(|i| i as f32).collect::<Vec<f32>>());
        for target in [0.05, 0.07, 0.1, 0.13, 0.2, 0.34, 1.0] {
            let threshold = same.clone().interpolated().threshold(target).unwrap();
            assert_eq!(threshold.rank, same.rank(target).unwrap(), "{target}");
            assert!(threshold.value >= of(&alone).interpolated().threshold(target).unwrap().value, "{target}");
        }
    }

    /// `scipy.stats.beta.ppf([.025, .975], n + 1 - k, k)` (1.17).
    #[test]
    fn interval_equals_the_beta_quantiles() {
        for (n, rank, expected) in [
            (1, 1, [0.025, 0.975]),
            (20, 19, [0.012348527170294808, 0.24873276277202777]),
            (60, 60, [0.00042187445234200883, 0.05962949228616691]),
            (100, 1, [0.9637833073548235, 0.9997468539670226]),
            (363, 346, [0.029649522372857808, 0.07392531725344366]),
            (1000, 951, [0.03733539760466178, 0.06426605314016964]),
            (20_000, 19_001, [0.04702009046424116, 0.05306014478394583]),
            (100_000, 95_000, [0.048667126952963616, 0.05136892088058044]),
            (1_000_000, 990_001, [0.009805906240745812, 0.010195930164378605]),
            (8_000_000, 7_999_999, [3.0276161251932805e-08, 6.96455224925328e-07]),
        ] {
            for (got, expected) in rate_interval(n as f64, rank as f64).into_iter().zip(expected) {
                assert!((got / expected - 1.0).abs() < 1e-6, "n {n}, rank {rank}: {got}, expected {expected}");
            }
        }
    }

    #[test]
    fn threshold_is_the_score_at_the_rank_and_says_what_it_promises() {
        let scores: Vec<f32> = (1..=99).map(|i| i as f32).collect();
        let threshold = conformal(&scores, 0.05).unwrap();
        assert_eq!((threshold.value, threshold.rank, threshold.n), (95.0, 95, 99));
        assert_eq!(threshold.false_reject_rate, 0.05);
        assert!(threshold.interval[0] < 0.05 && 0.05 < threshold.interval[1], "{:?}", threshold.interval);
    }

    #[test]
    fn rate_that_n_cannot_support_is_refused_with_the_n_it_needs() {
        let scores = [1.0f32; 30];
        let refused = conformal(&scores, 0.01).unwrap_err();
        assert_eq!(refused, TooFew { n: 30, target: 0.01, needed: 99 });
        assert_eq!(
            refused.to_string(),
            "a false-reject rate of 0.01 needs 99 held-out good parts, there are 30; \
             the smallest rate that 30 can promise is 0.03226"
        );
        assert!(conformal(&scores, 0.03226).is_ok(), "the rate in the message is one that works");
        assert_eq!(
            conformal(&[], 0.5).unwrap_err().to_string(),
            "a false-reject rate of 0.5 needs 1 held-out good part, there are 0; without any, no rate can be promised"
        );
        assert!(
            conformal(&scores, 0.0).unwrap_err().to_string().starts_with("a false-reject rate of 0 cannot be promised")
        );
        assert_eq!(Error::from(refused).exit_code(), 2);
    }

    #[test]
    fn smallest_rate_is_exactly_what_n_supports() {
        for n in 1..=5000 {
            let rate = smallest_rate(n);
            assert_eq!(conformal_rank(n, rate), Ok(n), "n = {n}");
            assert_eq!(conformal_rank(n, rounded_up(rate)), Ok(n), "n = {n}");
            assert_eq!(needed(rate), n);
            assert!(conformal_rank(n, rate * 0.9999).is_err(), "n = {n}");
        }
    }

    #[test]
    fn decimal_rates_are_read_as_meant() {
        // 100 * 0.29 is 28.999999999999996 in binary: 29 scores may lie above all the same.
        assert_eq!(conformal_rank(99, 0.29), Ok(71));
        for percent in 1..=100 {
            assert_eq!(conformal_rank(99, f64::from(percent) / 100.0), Ok((100 - percent as usize).max(1)));
        }
    }

    #[test]
    fn senseless_rates_get_an_answer_and_no_panic() {
        let scores = [0.5f32, 1.0];
        for rate in [0.0, -1.0, f64::NEG_INFINITY, f64::NAN, 1e-300, f64::MIN_POSITIVE] {
            assert!(conformal(&scores, rate).is_err(), "{rate}");
            assert!(!conformal(&scores, rate).unwrap_err().to_string().is_empty());
        }
        for rate in [1.0, 2.0, f64::INFINITY] {
            assert_eq!(conformal(&scores, rate).unwrap().rank, 1, "{rate}");
        }
        assert!(conformal_rank(usize::MAX, 0.5).is_ok());
    }

    #[test]
    fn percentile_counts_ties_half() {
        let scores = [1.0, 2.0, 2.0, 3.0];
        for (score, expected) in [(0.0, 0.0), (1.0, 12.5), (1.5, 25.0), (2.0, 50.0), (3.0, 87.5), (9.0, 100.0)] {
            assert_eq!(of(&scores).percentile(score), expected, "{score}");
        }
        assert_eq!(of(&scores).percentile(f32::INFINITY), 100.0);
        assert!(of(&scores).percentile(f32::NAN).is_nan());
        assert!(of(&[]).percentile(1.0).is_nan());
    }

    #[test]
    fn sorting_refuses_scores_that_are_not_finite() {
        assert_eq!(in_order(vec![2.0, -1.0, 0.5]).unwrap(), [-1.0, 0.5, 2.0]);
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let message = in_order(vec![0.0, bad]).unwrap_err().to_string();
            assert!(message.contains("calibration score 1 of 2"), "{message}");
        }
    }

    proptest! {
        /// The promise itself, without statistics: among any n + 1 exchangeable scores, ties or not, the number that
        /// would be rejected if they were the new part and the others the calibration set is at most (n + 1) target.
        #[test]
        fn promised_rate_holds_for_any_scores(
            scores in prop::collection::vec((0u8..12).prop_map(f32::from), 2..60),
            target in 0.01f64..0.99,
        ) {
            let mut rejected = 0;
            for i in 0..scores.len() {
                let mut others = scores.clone();
                let new = others.remove(i);
                let Ok(threshold) = conformal(&in_order(others).unwrap(), target) else { return Ok(()) };
                rejected += usize::from(new > threshold.value);
            }
            prop_assert!(rejected as f64 <= scores.len() as f64 * target * (1.0 + RATE_SLACK));
        }

        #[test]
        fn a_stricter_promise_never_lowers_the_threshold(n in 1usize..2000, a in 0.001f64..1.0, b in 0.001f64..1.0) {
            let (strict, loose) = if a < b { (a, b) } else { (b, a) };
            if let Ok(high) = conformal_rank(n, strict) {
                prop_assert!(conformal_rank(n, loose).unwrap() <= high);
            }
        }

        #[test]
        fn percentile_is_monotone_and_bounded(scores in prop::collection::vec(-5f32..5.0, 1..50), a in -6f32..6.0, b in -6f32..6.0) {
            let scores = in_order(scores).unwrap();
            let (low, high) = (of(&scores).percentile(a.min(b)), of(&scores).percentile(a.max(b)));
            prop_assert!(0.0 <= low && low <= high && high <= 100.0);
        }
    }

    /// Simulated lines: skewed scores, a new calibration set each, and the true rate of that line's threshold, which
    /// for the exponential distribution is exp(-threshold).
    #[test]
    fn simulated_lines_keep_the_promise_and_the_interval() {
        const LINES: usize = 4000;
        const N: usize = 80;
        let target = 0.05;
        let mut rng = ChaCha8Rng::seed_from_u64(7);
        let (mut mean_rate, mut inside) = (0.0, 0);
        for _ in 0..LINES {
            let scores = in_order((0..N).map(|_| -(1.0 - rng.random::<f32>()).ln()).collect()).unwrap();
            let threshold = conformal(&scores, target).unwrap();
            let rate = (-f64::from(threshold.value)).exp();
            mean_rate += rate / LINES as f64;
            inside += usize::from(threshold.interval[0] <= rate && rate <= threshold.interval[1]);
        }
        // Expected: 4 / 81 on average; limits are four standard errors away.
        assert!((mean_rate - 4.0 / 81.0).abs() < 4.0 * 0.0238 / (LINES as f64).sqrt(), "mean rate {mean_rate}");
        assert!(mean_rate <= target);
        let coverage = inside as f64 / LINES as f64;
        assert!((coverage - 0.95).abs() < 4.0 * (0.95 * 0.05 / LINES as f64).sqrt(), "coverage {coverage}");
    }
}
