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
    assert_eq!(grouped.threshold(0.04).unwrap_err(), alone.threshold(0.04).unwrap_err(), "200 pictures do not help");
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
    assert_eq!(refused, TooFew { n: 30, target: 0.01, needed: 99, rejected: 0 });
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

/// Parts that are rejected whatever the threshold take their share of the promise.
#[test]
fn parts_without_a_score_count_as_rejected() {
    let scores: Vec<f32> = (1..=57).map(|i| i as f32).collect();
    let all: Vec<f32> = scores.iter().copied().chain([1e6; 3]).collect();
    let (good, with) = (of(&scores).with_rejected(3), of(&all));
    for target in [0.07, 0.1, 0.2, 0.5] {
        for (own, with) in [(&good, &with), (&good.clone().interpolated(), &with.clone().interpolated())] {
            assert_eq!(own.threshold(target), with.threshold(target), "{target}");
        }
    }
    assert_eq!(good.threshold(0.1).unwrap().value, 55.0); // the sixth highest of 60
    assert_eq!(good.percentile(1e6), 95.0);
    let refused = good.threshold(0.05).unwrap_err();
    assert_eq!((refused.n, refused.rejected), (60, 3));
    let text = refused.to_string();
    assert!(text.contains("3 of 60 good parts were not found") && text.ends_with("0.06558"), "{text}");
    assert!(good.threshold(0.06558).is_ok(), "what is offered is granted");
    assert!(
        of(&scores).with_rejected(3).threshold(0.01).unwrap_err().to_string().contains("needs 99 held-out good parts")
    );
}
