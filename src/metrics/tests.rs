//! Hand-computed cases, golden numbers of scikit-learn and scipy, and properties against brute force.

use proptest::prelude::*;

use super::*;

#[track_caller]
fn assert_near(actual: Option<f64>, expected: f64) {
    let actual = actual.expect("can be computed");
    assert!((actual - expected).abs() < 1e-12, "{actual} is not {expected}");
}

fn auroc(scores: &[f32], labels: &[bool]) -> Option<f64> {
    Ranking::new(scores, labels).ok()?.auroc()
}

fn average_precision(scores: &[f32], labels: &[bool]) -> Option<f64> {
    Ranking::new(scores, labels).ok()?.average_precision()
}

fn f1_max(scores: &[f32], labels: &[bool]) -> Option<f64> {
    Ranking::new(scores, labels).ok()?.f1_max()
}

/// One 4x4 image with a 2x2 defect and one good 4x4 image, scored by `score(defect, pixel)`.
fn small_set(score: impl Fn(bool, usize) -> f32) -> Ranking {
    let mut mask = [false; 16];
    for at in [5, 6, 9, 10] {
        mask[at] = true;
    }
    let mut set = PixelSet::new();
    let map: Vec<f32> = mask.iter().enumerate().map(|(at, &defect)| score(defect, at)).collect();
    set.push(&map, &mask, 4, 4).unwrap();
    let map: Vec<f32> = (0..16).map(|at| score(false, at)).collect();
    set.push(&map, &[false; 16], 4, 4).unwrap();
    assert_eq!(set.len(), 32);
    set.rank()
}

#[test]
fn a_perfect_map_has_one_everywhere() {
    let ranking = small_set(|defect, at| if defect { 10.0 + at as f32 } else { -(at as f32) });
    assert_near(ranking.auroc(), 1.0);
    assert_near(ranking.average_precision(), 1.0);
    assert_near(ranking.f1_max(), 1.0);
    assert_near(ranking.aupro(PRO_LIMIT), 1.0);
    assert_near(ranking.aupro(0.05), 1.0);
}

#[test]
fn a_constant_map_has_chance_everywhere() {
    let ranking = small_set(|_, _| 3.0);
    assert_near(ranking.auroc(), 0.5);
    assert_near(ranking.average_precision(), 4.0 / 32.0);
    assert_near(ranking.f1_max(), 2.0 * 4.0 / (32.0 + 4.0));
    assert_near(ranking.aupro(PRO_LIMIT), 0.15);
    assert_near(ranking.aupro(0.05), 0.025);
}

#[test]
fn an_inverted_map_is_not_flipped() {
    let ranking = small_set(|defect, _| if defect { 0.0 } else { 1.0 });
    assert_near(ranking.auroc(), 0.0);
    assert_near(ranking.average_precision(), 4.0 / 32.0);
    assert_near(ranking.aupro(PRO_LIMIT), 0.0);
}

#[test]
fn auroc_counts_a_tie_as_half_a_win() {
    // Pairs (defect, good): 2>1, 2=2, 3>1, 3>2.
    assert_near(auroc(&[1.0, 2.0, 2.0, 3.0], &[false, false, true, true]), 3.5 / 4.0);
}

#[test]
fn ap_and_f1_take_tied_scores_together() {
    // Thresholds 3, 2, 1: precision 1/1, 2/3, 2/4, recall 1/2, 1, 1.
    let (scores, labels) = ([1.0, 2.0, 2.0, 3.0], [false, false, true, true]);
    assert_near(average_precision(&scores, &labels), 0.5 + 0.5 * 2.0 / 3.0);
    assert_near(f1_max(&scores, &labels), 2.0 * 2.0 / (3.0 + 2.0));
}

#[test]
fn minus_zero_ties_with_zero_and_infinities_rank_at_the_ends() {
    assert_near(auroc(&[-0.0, 0.0], &[true, false]), 0.5);
    assert_near(auroc(&[0.0, -0.0], &[true, false]), 0.5);
    let (low, high) = (f32::NEG_INFINITY, f32::INFINITY);
    assert_near(auroc(&[low, -1e38, -1e-40, 1e-40, 1e38, high], &[false, false, false, true, true, true]), 1.0);
    assert_near(auroc(&[high, f32::MAX, low, f32::MIN], &[true, false, false, true]), 0.75);
}

#[test]
fn a_metric_that_lacks_one_kind_is_none() {
    for label in [false, true] {
        let ranking = Ranking::new(&[1.0, 2.0], &[label; 2]).unwrap();
        assert_eq!((ranking.good.len(), ranking.defective.len()), if label { (0, 2) } else { (2, 0) });
        assert_eq!(ranking.auroc(), None);
        assert_eq!(ranking.average_precision(), None);
        assert_eq!(ranking.f1_max(), None);
        assert_eq!(ranking.aupro(PRO_LIMIT), None);
        assert!(ranking.roc_curve(100).is_empty());
        assert!(ranking.pr_curve(100).is_empty());
        assert!(ranking.pro_curve(100).is_empty());
    }
    assert_eq!(PixelSet::new().rank().aupro(PRO_LIMIT), None);
    assert_eq!(auroc(&[], &[]), None);
}

#[test]
fn whole_images_have_no_aupro() {
    let ranking = Ranking::new(&[1.0, 2.0], &[false, true]).unwrap();
    assert_eq!(ranking.aupro(PRO_LIMIT), None);
    assert!(ranking.pro_curve(100).is_empty());
}

#[test]
fn aupro_needs_a_limit_above_0_and_at_most_1() {
    let ranking = small_set(|_, _| 0.0);
    for limit in [0.0, -0.1, 1.1, f64::NAN, f64::INFINITY] {
        assert_eq!(ranking.aupro(limit), None, "{limit}");
    }
    assert_near(ranking.aupro(1.0), 0.5);
}

#[test]
fn nan_and_wrong_lengths_are_errors_that_add_nothing() {
    let message = |error: Error| error.to_string();
    assert!(message(Ranking::new(&[1.0, f32::NAN], &[true, false]).unwrap_err()).contains("score 1 is NaN"));
    assert!(message(Ranking::new(&[1.0], &[true, false]).unwrap_err()).contains("1 scores but 2 labels"));
    assert_eq!(auroc(&[f32::NAN, 1.0], &[true, false]), None);

    let mut set = PixelSet::new();
    let error = set.push(&[0.0, 1.0, 2.0, f32::NAN], &[true; 4], 3, 1).unwrap_err();
    assert!(message(error).contains("3x1 with 4 values"));
    let error = set.push(&[0.0; 4], &[true; 3], 2, 2).unwrap_err();
    assert!(message(error).contains("3 mask pixels"));
    let error = set.push(&[0.0, 1.0, 2.0, f32::NAN], &[true; 4], 2, 2).unwrap_err();
    assert!(message(error).contains("(1, 1) is NaN"));
    assert!(set.push(&[], &[], usize::MAX, 2).is_err());
    assert!(set.is_empty());
    assert!(set.rank().areas.is_empty());
}

#[test]
fn pixels_that_touch_at_a_corner_are_one_region_of_aupro() {
    // Two defect pixels on a diagonal, one found at once, the other never before the last threshold: as one region its
    // overlap is 1/2 from the start; a third pixel far away is a second region, found at once.
    #[rustfmt::skip]
    let mask = [
        true,  false, false, false,
        false, true,  false, false,
        false, false, false, true,
    ];
    let mut map = [1.0; 12];
    (map[0], map[5], map[11]) = (2.0, 0.0, 2.0);
    let mut set = PixelSet::new();
    set.push(&map, &mask, 4, 3).unwrap();
    let ranking = set.rank();
    assert_eq!(ranking.areas, [2, 1]);
    // PRO starts at (1/2 + 1) / 2 = 3/4 and stays there until all good pixels are false positives. With 4-connectivity
    // it would be 2/3.
    assert_near(ranking.aupro(PRO_LIMIT), 0.75);
}

#[test]
fn regions_weigh_the_same_whatever_their_size_and_image() {
    let mut set = PixelSet::new();
    set.push(&[1.0, 1.0, 1.0, 1.0, 0.0], &[true, true, true, true, false], 5, 1).unwrap();
    set.push(&[0.0, -1.0], &[false, true], 2, 1).unwrap();
    // The large region is found at once, the small one after every good pixel.
    assert_near(set.rank().aupro(PRO_LIMIT), 0.5);
}

#[test]
fn aupro_interpolates_linearly_at_the_limit() {
    // One defect pixel, four good ones. Points: (0, 0), (1/4, 0), (2/4, 1) where one good pixel ties with the defect.
    let mut set = PixelSet::new();
    set.push(&[9.0, 5.0, 5.0, 1.0, 1.0], &[false, true, false, false, false], 5, 1).unwrap();
    let ranking = set.rank();
    let pro_at_limit = (0.3 - 0.25) / 0.25;
    assert_near(ranking.aupro(PRO_LIMIT), (0.3 - 0.25) * pro_at_limit / 2.0 / 0.3);
    assert_near(ranking.aupro(0.25), 0.0);
    assert_near(ranking.aupro(0.5), 0.25 / 2.0 / 0.5);
    assert_near(ranking.aupro(1.0), 0.25 / 2.0 + 0.5);
    assert_eq!(
        ranking.pro_curve(100),
        [(0.0, 0.0), (0.25, 0.0), (0.5, 1.0), (1.0, 1.0)].map(|(x, y)| CurvePoint { x, y })
    );
}

/// scikit-learn 1.9, scipy 1.17:
///
/// ```python
/// import numpy as np
/// from scipy.ndimage import label
/// from sklearn.metrics import average_precision_score, precision_recall_curve, roc_auc_score
/// state = 1
/// def draw(n):
///     global state
///     state = (state * 1103515245 + 12345) % 2**31
///     return (state >> 16) % n
/// maps, masks = [], []
/// for image in range(6):
///     mask = np.array([[image < 4 and draw(6) == 0 for x in range(20)] for y in range(15)])
///     maps.append(np.array([[draw(50) + (12 if mask[y, x] else 0) for x in range(20)] for y in range(15)]))
///     masks.append(mask)
/// s, t = np.ravel(maps).astype(float), np.ravel(masks)
/// p, r, _ = precision_recall_curve(t, s)
/// print(roc_auc_score(t, s), average_precision_score(t, s), (2 * p * r / np.maximum(p + r, 1e-9)).max())
/// regions = [(i, l == k) for i, m in enumerate(masks) for l, n in [label(m, np.ones((3, 3)))] for k in range(1, n + 1)]
/// fpr, pro = [0.0], [0.0]
/// for threshold in sorted(set(s), reverse=True):
///     fpr.append((s[~t] >= threshold).mean())
///     pro.append(np.mean([(maps[i][region] >= threshold).mean() for i, region in regions]))
/// for limit in (0.3, 0.05):
///     n = sum(f < limit for f in fpr)
///     x, y = fpr[:n] + [limit], pro[:n] + [np.interp(limit, fpr, pro)]
///     print(len(regions), np.trapezoid(y, x) / limit)
/// ```
#[test]
fn golden_values_of_scikit_learn_and_scipy() {
    let mut state = 1_u64;
    let mut draw = |n: u64| {
        state = (state * 1_103_515_245 + 12_345) % (1 << 31);
        (state >> 16) % n
    };
    let mut set = PixelSet::new();
    let (mut scores, mut labels) = (Vec::new(), Vec::new());
    for image in 0..6 {
        let mask: Vec<bool> = (0..300).map(|_| image < 4 && draw(6) == 0).collect();
        let map: Vec<f32> = mask.iter().map(|&defect| (draw(50) + if defect { 12 } else { 0 }) as f32).collect();
        set.push(&map, &mask, 20, 15).unwrap();
        scores.extend(map);
        labels.extend(mask);
    }
    let ranking = set.rank();
    assert_eq!(ranking.areas.len(), 99);
    for ranking in [&ranking, &Ranking::new(&scores, &labels).unwrap()] {
        assert_near(ranking.auroc(), 0.7752430149117004);
        assert_near(ranking.average_precision(), 0.4696745855449649);
        assert_near(ranking.f1_max(), 0.4566929133858268);
    }
    assert_near(ranking.aupro(PRO_LIMIT), 0.4988124197716517);
    assert_near(ranking.aupro(0.05), 0.3468349123329098);
}

/// Scores on a coarse grid (so that there are ties), masks that leave room for several regions.
fn images() -> impl Strategy<Value = Vec<(Vec<f32>, Vec<bool>)>> {
    let score = (-4_i8..5).prop_map(|v| f32::from(v) / 2.0);
    let image = (prop::collection::vec(score, 20), prop::collection::vec(prop::bool::weighted(0.3), 20));
    prop::collection::vec(image, 1..4)
}

/// The definitions, word by word, on images of 5x4.
struct BruteForce {
    scores: Vec<f32>,
    labels: Vec<bool>,
    /// Pixels of every component.
    regions: Vec<Vec<usize>>,
}

impl BruteForce {
    fn new(images: &[(Vec<f32>, Vec<bool>)]) -> Self {
        let (mut scores, mut labels, mut regions) = (Vec::new(), Vec::new(), Vec::new());
        for (map, mask) in images {
            let found = crate::regions::components(mask, 5, 4);
            for label in 1..=found.count as u32 {
                let inside = |at: &usize| found.labels[*at] == label;
                regions.push((0..20).filter(inside).map(|at| at + scores.len()).collect());
            }
            scores.extend(map);
            labels.extend(mask);
        }
        Self { scores, labels, regions }
    }

    fn count(&self, threshold: f32, label: bool) -> f64 {
        let above = |(&score, &is): (&f32, &bool)| score >= threshold && is == label;
        self.scores.iter().zip(&self.labels).filter(|pair| above(*pair)).count() as f64
    }

    fn total(&self, label: bool) -> f64 {
        self.count(f32::NEG_INFINITY, label)
    }

    fn thresholds(&self) -> Vec<f32> {
        let mut all = self.scores.clone();
        all.sort_by(|a, b| b.total_cmp(a));
        all.dedup();
        all
    }

    fn auroc(&self) -> f64 {
        let mut wins = 0.0;
        for (s, _) in self.scores.iter().zip(&self.labels).filter(|(_, defect)| **defect) {
            for (g, _) in self.scores.iter().zip(&self.labels).filter(|(_, defect)| !**defect) {
                wins += if s > g {
                    1.0
                } else if s == g {
                    0.5
                } else {
                    0.0
                };
            }
        }
        wins / (self.total(true) * self.total(false))
    }

    fn precision_recall(&self, threshold: f32) -> (f64, f64) {
        let hits = self.count(threshold, true);
        (hits / (hits + self.count(threshold, false)), hits / self.total(true))
    }

    fn average_precision(&self) -> f64 {
        let (mut before, mut sum) = (0.0, 0.0);
        for threshold in self.thresholds() {
            let (precision, recall) = self.precision_recall(threshold);
            sum += (recall - before) * precision;
            before = recall;
        }
        sum
    }

    fn f1_max(&self) -> f64 {
        let f1 = |(precision, recall): (f64, f64)| {
            if precision + recall > 0.0 { 2.0 * precision * recall / (precision + recall) } else { 0.0 }
        };
        self.thresholds().into_iter().map(|t| f1(self.precision_recall(t))).fold(0.0, f64::max)
    }

    fn aupro(&self, limit: f64) -> f64 {
        let mut points = vec![(0.0, 0.0)];
        for threshold in self.thresholds() {
            let covered = |region: &Vec<usize>| {
                region.iter().filter(|&&at| self.scores[at] >= threshold).count() as f64 / region.len() as f64
            };
            let pro = self.regions.iter().map(covered).sum::<f64>() / self.regions.len() as f64;
            points.push((self.count(threshold, false) / self.total(false), pro));
        }
        points.push((1.0, 1.0));
        let mut area = 0.0;
        for pair in points.windows(2) {
            let ((x0, y0), (x1, y1)) = (pair[0], pair[1]);
            let end = x1.min(limit);
            if end > x0 {
                let y_end = y0 + (y1 - y0) * (end - x0) / (x1 - x0);
                area += (end - x0) * (y0 + y_end) / 2.0;
            }
        }
        area / limit
    }
}

proptest! {
    #[test]
    fn every_metric_equals_its_definition(images in images(), limit in 0.01_f64..1.0) {
        let slow = BruteForce::new(&images);
        prop_assume!(slow.total(true) > 0.0 && slow.total(false) > 0.0);
        let mut set = PixelSet::new();
        for (map, mask) in &images {
            set.push(map, mask, 5, 4).unwrap();
        }
        let fast = set.rank();
        assert_near(fast.auroc(), slow.auroc());
        assert_near(fast.average_precision(), slow.average_precision());
        assert_near(fast.f1_max(), slow.f1_max());
        assert_near(fast.aupro(limit), slow.aupro(limit));
        assert_near(auroc(&slow.scores, &slow.labels), slow.auroc());
        assert_near(average_precision(&slow.scores, &slow.labels), slow.average_precision());
        assert_near(f1_max(&slow.scores, &slow.labels), slow.f1_max());
    }

    #[test]
    fn no_metric_depends_on_the_order_or_the_scale_of_scores(images in images()) {
        let mut set = PixelSet::new();
        let mut other = PixelSet::new();
        for (map, mask) in &images {
            set.push(map, mask, 5, 4).unwrap();
        }
        for (map, mask) in images.iter().rev() {
            let map: Vec<f32> = map.iter().rev().map(|v| v.exp()).collect();
            let mask: Vec<bool> = mask.iter().rev().copied().collect();
            other.push(&map, &mask, 5, 4).unwrap();
        }
        let (a, b) = (set.rank(), other.rank());
        prop_assert_eq!(a.auroc(), b.auroc());
        prop_assert_eq!(a.average_precision(), b.average_precision());
        prop_assert_eq!(a.f1_max(), b.f1_max());
        for (a, b) in a.aupro(PRO_LIMIT).iter().zip(b.aupro(PRO_LIMIT)) {
            prop_assert!((a - b).abs() < 1e-12);
        }
    }

    #[test]
    fn order_of_keys_is_the_order_of_scores(a in any::<f32>(), b in any::<f32>()) {
        prop_assert_eq!(ordered(a).is_none(), a.is_nan());
        if let (Some(x), Some(y)) = (ordered(a), ordered(b)) {
            prop_assert_eq!(Some(x.cmp(&y)), a.partial_cmp(&b));
        }
    }

    #[test]
    fn curves_are_short_and_keep_their_ends_and_jumps(
        scores in prop::collection::vec(-50_i8..50, 2..400),
        flips in prop::collection::vec(any::<bool>(), 400),
        most in 8_usize..60,
    ) {
        let scores: Vec<f32> = scores.into_iter().map(f32::from).collect();
        let labels = &flips[..scores.len()];
        prop_assume!(labels.contains(&true) && labels.contains(&false));
        let ranking = Ranking::new(&scores, labels).unwrap();
        let roc = ranking.roc_curve(most);
        prop_assert!(roc.len() <= most && roc.len() >= 2);
        prop_assert_eq!(roc[0], CurvePoint { x: 0.0, y: 0.0 });
        prop_assert_eq!(roc[roc.len() - 1], CurvePoint { x: 1.0, y: 1.0 });
        prop_assert!(roc.windows(2).all(|p| p[0].x <= p[1].x && p[0].y <= p[1].y));
        // Every point left out lies within one step (4 / (most - 2)) of the drawn line.
        let area: f64 = roc.windows(2).map(|p| (p[1].x - p[0].x) * (p[0].y + p[1].y) / 2.0).sum();
        prop_assert!((area - ranking.auroc().unwrap()).abs() <= 4.0 / (most - 2) as f64);

        let pr = ranking.pr_curve(most);
        prop_assert!(pr.len() <= most && !pr.is_empty());
        prop_assert_eq!(pr[pr.len() - 1].x, 1.0);
        prop_assert!(pr.windows(2).all(|p| p[0].x <= p[1].x));
        let full = ranking.pr_curve(10_000);
        prop_assert_eq!(pr[0], full[0]);
        prop_assert!(full.len() >= pr.len());
    }
}

#[test]
fn a_long_curve_is_thinned_to_the_points_asked_for() {
    let scores: Vec<f32> = (0..100_000).map(|at| at as f32).collect();
    let labels: Vec<bool> = (0..100_000).map(|at| at * 7919 % 100_003 < at).collect();
    let ranking = Ranking::new(&scores, &labels).unwrap();
    for curve in [ranking.roc_curve(200), ranking.pr_curve(200)] {
        assert!((50..=200).contains(&curve.len()), "{}", curve.len());
    }
}

#[test]
fn a_perfect_ranking_stays_on_the_edges_of_the_chart() {
    let scores: Vec<f32> = (0..1000).map(|at| at as f32).collect();
    let labels: Vec<bool> = (0..1000).map(|at| at >= 500).collect();
    let roc = Ranking::new(&scores, &labels).unwrap().roc_curve(20);
    assert!(roc.iter().all(|point| point.x == 0.0 || point.y == 1.0), "{roc:?}");
    let tied = Ranking::new(&[1.0, 1.0, 0.0, 0.0], &[true, true, false, false]).unwrap().roc_curve(20);
    assert_eq!(tied, [(0.0, 0.0), (0.0, 1.0), (1.0, 1.0)].map(|(x, y)| CurvePoint { x, y }));
}

#[test]
fn a_thinned_curve_keeps_both_ends_of_a_jump() {
    // Half of the defects one by one, then all good ones at once, then the other half.
    let scores: Vec<f32> = (0..900).map(|at| if (300..600).contains(&at) { 450.0 } else { at as f32 }).collect();
    let labels: Vec<bool> = (0..900).map(|at| !(300..600).contains(&at)).collect();
    let roc = Ranking::new(&scores, &labels).unwrap().roc_curve(20);
    for (x, y) in [(0.0, 0.5), (1.0, 0.5)] {
        assert!(roc.contains(&CurvePoint { x, y }), "{roc:?}");
    }
}
