//! Rates over parts of which there may be several images, and how sure they are.
//!
//! Ten photographs of one part are not ten parts: they are rejected together or not at all. So a part weighs 1 however often it
//! was photographed, each of its images one over their number, and an interval is as wide as the number of *parts* makes it.

use std::collections::HashMap;

use crate::calibrate::{TAIL, beta_quantile};
use crate::error::{Error, Result};

/// How far a sum of weights may lie above a limit and still count as equal to it: thirds and sevenths do not add up exactly.
const SUM_SLACK: f64 = 1e-9;

/// Which of some images show the same part. An image of which nothing is known is a part of its own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Groups {
    /// The group of each image.
    of: Vec<usize>,
    /// Number of images in each group, at least 1.
    sizes: Vec<usize>,
}

impl Groups {
    /// Gathers images by the names of their groups, one entry per image.
    pub fn new<'a>(names: impl IntoIterator<Item = Option<&'a str>>) -> Self {
        let (mut of, mut sizes) = (Vec::new(), Vec::new());
        let mut known = HashMap::new();
        for name in names {
            let new = sizes.len();
            let group = name.map_or(new, |name| *known.entry(name).or_insert(new));
            if group == new {
                sizes.push(0);
            }
            sizes[group] += 1;
            of.push(group);
        }
        Self { of, sizes }
    }

    /// Number of groups.
    pub fn len(&self) -> usize {
        self.sizes.len()
    }

    /// Whether there is no image.
    pub fn is_empty(&self) -> bool {
        self.sizes.is_empty()
    }

    /// The share of the parts that were hit, 0..=1: the mean over groups of the share of their images. `hits` has one entry per
    /// image. `None` without images.
    ///
    /// # Errors
    /// When `hits` has another length.
    pub fn share(&self, hits: &[bool]) -> Result<Option<f64>> {
        self.check_length(hits.len(), "hits")?;
        let mut hit = vec![0_usize; self.len()];
        for (&group, _) in self.of.iter().zip(hits).filter(|(_, hit)| **hit) {
            hit[group] += 1;
        }
        // Group by group, so that none, all, and images without groups come out exact.
        let sum: f64 = hit.iter().zip(&self.sizes).map(|(&hit, &size)| hit as f64 / size as f64).sum();
        Ok((!self.is_empty()).then(|| sum / self.len() as f64))
    }

    /// The smallest of the finite `scores` above which at most `rate` (0..=1) of the parts lie, counted as in
    /// [`share`](Self::share). `scores` has one entry per image; infinity stands for an image that is above any threshold.
    /// `None` where there is no such score: without images, or when more than `rate` of them are above any threshold.
    ///
    /// # Errors
    /// When `scores` has another length or a NaN, or `rate` is not in 0..=1.
    pub fn threshold(&self, scores: &[f32], rate: f64) -> Result<Option<f32>> {
        self.check_length(scores.len(), "scores")?;
        if let Some(at) = scores.iter().position(|score| score.is_nan()) {
            return Err(Error::Internal(format!("metrics: score {at} is NaN")));
        }
        if !(0.0..=1.0).contains(&rate) {
            return Err(Error::Internal(format!("metrics: a rate of {rate}, expected 0 to 1")));
        }
        let mut order: Vec<usize> = (0..scores.len()).collect();
        order.sort_by(|&a, &b| scores[b].total_cmp(&scores[a]));
        let most = rate * self.len() as f64 * (1.0 + SUM_SLACK);
        let (mut above, mut lowest) = (0.0, None);
        for tie in order.chunk_by(|&a, &b| scores[a] == scores[b]) {
            if above > most {
                break;
            }
            lowest = Some(scores[tie[0]]).filter(|score| score.is_finite());
            above += tie.iter().map(|&image| 1.0 / self.sizes[self.of[image]] as f64).sum::<f64>();
        }
        Ok(lowest)
    }

    fn check_length(&self, length: usize, what: &str) -> Result<()> {
        if length == self.of.len() {
            return Ok(());
        }
        Err(Error::Internal(format!("metrics: {length} {what} of {} images", self.of.len())))
    }
}

/// The exact 95 % interval of a rate of which `hits` in `of` were seen (C. J. Clopper, E. S. Pearson, Biometrika 26, 1934): a true
/// rate outside of it would show so few, or so many, in at most 2.5 of 100 tests. Both may be fractions, as the weighted sums of
/// [`Groups`] are: the Beta quantiles run smoothly through them.
///
/// # Errors
/// When 0 <= `hits` <= `of`, 0 < `of` does not hold.
pub fn share_interval(hits: f64, of: f64) -> Result<[f64; 2]> {
    if !(of > 0.0 && of.is_finite() && (0.0..=of).contains(&hits)) {
        return Err(Error::Internal(format!("metrics: {hits} hits of {of}, expected 0 to {of} of more than 0")));
    }
    let low = if hits == 0.0 { 0.0 } else { beta_quantile(hits, of - hits + 1.0, TAIL) };
    let high = if hits == of { 1.0 } else { beta_quantile(hits + 1.0, of - hits, 1.0 - TAIL) };
    Ok([low, high])
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Images of parts named by numbers; 0 stands for an image without a name.
    fn groups(of: &[u8]) -> Groups {
        let names: Vec<String> = of.iter().map(u8::to_string).collect();
        Groups::new(of.iter().zip(&names).map(|(&of, name)| (of > 0).then_some(name.as_str())))
    }

    /// ```python
    /// from scipy.stats import beta   # 1.17
    /// def interval(x, n):
    ///     return (beta.ppf(.025, x, n - x + 1) if x > 0 else 0, beta.ppf(.975, x + 1, n - x) if x < n else 1)
    /// ```
    #[test]
    fn intervals_are_the_beta_quantiles() {
        for (hits, of, low, high) in [
            (0.0, 20.0, 0.0, 0.1684334709830853),
            (1.0, 20.0, 0.0012650894979498038, 0.24873276277202777),
            (10.0, 20.0, 0.27195784956079183, 0.7280421504392081),
            (20.0, 20.0, 0.8315665290169146, 1.0),
            (3.0, 200.0, 0.003104107621553509, 0.0432082819177126),
            (0.0, 1.0, 0.0, 0.975),
            (1.0, 1.0, 0.025, 1.0),
            // Fractions of parts.
            (0.25, 7.0, 3.57249387282631e-08, 0.4573077199710782),
            (2.5, 20.0, 0.02137248802247479, 0.348577710858454),
            (6.75, 7.0, 0.5426922800289218, 0.9999999642750613),
            (19.5, 20.0, 0.7891813637507349, 0.9999757535215408),
            (41.5, 107.0, 0.295172250020419, 0.4869025560986409),
            // And of a number of parts.
            (4.0, 12.5, 0.09489992081531068, 0.6322093697805875),
        ] {
            let [a, b] = share_interval(hits, of).unwrap();
            assert!((a - low).abs() < 1e-9 && (b - high).abs() < 1e-9, "{hits} of {of}: {a} {b}");
        }
    }

    #[test]
    fn an_interval_of_an_impossible_count_is_an_error() {
        for (hits, of) in [(0.0, 0.0), (-0.5, 3.0), (3.5, 3.0), (f64::NAN, 3.0), (1.0, f64::NAN), (1.0, f64::INFINITY)]
        {
            assert!(share_interval(hits, of).is_err(), "{hits} of {of}");
        }
    }

    #[test]
    fn a_part_weighs_the_same_however_often_it_was_photographed() {
        // Four images of part 1, one of part 2, two that are parts of their own.
        let groups = groups(&[1, 1, 2, 1, 0, 1, 0]);
        assert_eq!(groups.len(), 4);
        let share = |hits: [u8; 7]| groups.share(&hits.map(|hit| hit == 1)).unwrap().unwrap();
        assert_eq!(share([1, 1, 0, 1, 0, 1, 0]), 0.25);
        assert_eq!(share([0, 0, 1, 0, 0, 0, 0]), 0.25);
        assert_eq!(share([1, 0, 0, 0, 0, 0, 1]), 0.3125);
        assert_eq!(share([1; 7]), 1.0);
        assert_eq!(Groups::new([]).share(&[]).unwrap(), None);
    }

    #[test]
    fn the_lowest_threshold_that_keeps_a_rate_counts_parts_and_ties() {
        let five = groups(&[0; 5]);
        let scores = [5.0, 1.0, 4.0, 4.0, 2.0];
        for (rate, threshold) in [(0.0, 5.0), (0.19, 5.0), (0.2, 4.0), (0.59, 4.0), (0.6, 2.0), (0.8, 1.0), (1.0, 1.0)]
        {
            assert_eq!(five.threshold(&scores, rate).unwrap(), Some(threshold), "{rate}");
        }
        // The three images of one part weigh a third each: above 2 lie two of them, that is a third of the two parts.
        let three_of_one = groups(&[1, 1, 1, 2]);
        assert_eq!(three_of_one.threshold(&[4.0, 3.0, 2.0, 1.0], 0.5).unwrap(), Some(1.0));
        assert_eq!(three_of_one.threshold(&[4.0, 3.0, 2.0, 1.0], 0.3).unwrap(), Some(3.0));
        // Two of five are rejected whatever the threshold.
        let scores = [f32::INFINITY, f32::INFINITY, 3.0, 2.0, 1.0];
        assert_eq!(five.threshold(&scores, 0.3).unwrap(), None);
        assert_eq!(five.threshold(&scores, 0.4).unwrap(), Some(3.0));
        assert_eq!(Groups::new([]).threshold(&[], 0.5).unwrap(), None);
    }

    #[test]
    fn impossible_input_is_an_error() {
        let two = groups(&[0, 1]);
        assert!(two.share(&[true]).is_err());
        assert!(two.threshold(&[1.0], 0.5).is_err());
        for rate in [-0.1, 1.1, f64::NAN] {
            assert!(two.threshold(&[1.0, 2.0], rate).is_err(), "{rate}");
        }
        let message = two.threshold(&[1.0, f32::NAN], 0.5).unwrap_err().to_string();
        assert!(message.contains("score 1 is NaN"), "{message}");
    }

    proptest! {
        /// Straight from the definition: every score is tried.
        #[test]
        fn the_threshold_is_the_first_score_that_keeps_the_rate(
            images in prop::collection::vec((0u8..5, 0u8..9), 1..40),
            percent in 0u8..=100,
        ) {
            let groups = groups(&images.iter().map(|(of, _)| *of).collect::<Vec<_>>());
            let scores: Vec<f32> = images.iter().map(|(_, score)| f32::from(*score)).collect();
            let rate = f64::from(percent) / 100.0;
            let above = |limit: f32| groups.share(&scores.iter().map(|s| *s > limit).collect::<Vec<_>>()).unwrap().unwrap();
            let expected = scores.iter().copied().filter(|score| above(*score) <= rate + 1e-9).fold(f32::INFINITY, f32::min);
            prop_assert_eq!(groups.threshold(&scores, rate).unwrap(), Some(expected));
        }

        #[test]
        fn photographing_every_part_again_changes_nothing(
            images in prop::collection::vec((1u8..6, any::<bool>()), 1..30),
            times in 2usize..4,
        ) {
            let (of, hits): (Vec<u8>, Vec<bool>) = images.iter().copied().unzip();
            let (once, again) = (groups(&of), groups(&of.repeat(times)));
            prop_assert_eq!(once.len(), again.len());
            let (a, b) = (once.share(&hits).unwrap().unwrap(), again.share(&hits.repeat(times)).unwrap().unwrap());
            prop_assert!((a - b).abs() < 1e-12, "{} {}", a, b);
        }

        #[test]
        fn an_interval_holds_its_rate_and_narrows_with_more_parts(of in 1u16..300, share in 0f64..=1.0) {
            let of = f64::from(of);
            let [low, high] = share_interval(share * of, of).unwrap();
            prop_assert!(0.0 <= low && low <= share + 1e-9 && share <= high + 1e-9 && high <= 1.0, "{} {}", low, high);
            let [more_low, more_high] = share_interval(share * 4.0 * of, 4.0 * of).unwrap();
            prop_assert!(more_high - more_low <= high - low + 1e-9);
        }
    }
}
