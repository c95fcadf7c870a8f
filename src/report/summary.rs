//! The figures of a report: per class, their mean, baselines, latency.

use std::cmp::Ordering;
use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::error::Result;
use crate::metrics::{Ranking, share_interval};

use super::operating::{OperatingPoint, OtherPromise, Parts, TradePoint, against_promise, rate};
use super::{ImageResult, Metrics, SCHEMA, Unreadable, by_category, mean};

/// The evaluation report; its JSON is the interface to other programs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// [`SCHEMA`].
    pub schema: u32,
    /// The program that made it, `diad 0.1.0`.
    pub tool: String,
    /// The model file.
    pub model: String,
    /// The data folder.
    pub data: String,
    /// How networks computed, which scores and thresholds belong to: `f32`, `cpu-bf16` and so on; empty in older reports.
    #[serde(default)]
    pub arithmetic: String,
    /// Macro-average over the classes that have the figure.
    pub mean: Mean,
    /// Per category of the test data.
    pub classes: BTreeMap<String, ClassReport>,
    /// Other methods on the same features and images, by name; empty when none was asked for.
    pub baselines: BTreeMap<String, Baseline>,
    /// Milliseconds per image. The only figures that change from run to run.
    pub ms_per_image: Latency,
    /// Every inspected image, sorted by path.
    pub images: Vec<ImageResult>,
    /// The images that could not be inspected, sorted by path; they are in no figure.
    pub unreadable: Vec<Unreadable>,
}

/// Averages over classes.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Mean {
    /// Threshold-free metrics.
    #[serde(flatten)]
    pub metrics: Metrics,
    /// Mean of the classes' false-reject rates.
    pub false_reject_rate: Option<f64>,
    /// 95 % interval of it: that of as many good parts as would make a rate as sure as this mean is. Approximate, where those of
    /// the classes are exact.
    pub false_reject_interval: Option<[f64; 2]>,
    /// Mean of the classes' escape rates.
    pub escape_rate: Option<f64>,
    /// Mean of the classes' [`escape_ok_rate`](ClassReport::escape_ok_rate).
    pub escape_ok_rate: Option<f64>,
    /// Mean of the promises made for the classes that have a false-reject rate; null if there is none for one of them.
    pub promised_false_reject_rate: Option<f64>,
    /// Mean of what the scores of the classes allow, over the classes that have it.
    pub allowed: Option<OperatingPoint>,
    /// Mean of the classes' rates at the promises that all of them have; the thresholds are null.
    pub trade: Vec<TradePoint>,
}

/// The figures of one class.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ClassReport {
    /// Threshold-free metrics.
    #[serde(flatten)]
    pub metrics: Metrics,
    /// Share of the good parts that were rejected, 0..=1, every part counted once however many images show it; null without good
    /// images.
    pub false_reject_rate: Option<f64>,
    /// Exact 95 % interval of the false-reject rate (Clopper-Pearson): the fewer parts, the wider.
    pub false_reject_interval: Option<[f64; 2]>,
    /// Share of the defective images that were not rejected, 0..=1: the verdict is not `ng`; null without defective images.
    pub escape_rate: Option<f64>,
    /// Share of the defective images whose verdict is `ok`, 0..=1: of the escapes, those that are not even warned of. Null without
    /// defective images.
    pub escape_ok_rate: Option<f64>,
    /// 95 % Wilson interval of the escape rate.
    pub escape_interval: Option<[f64; 2]>,
    /// Share of the images for which the model chose the right class; null where the class was told.
    pub class_accuracy: Option<f64>,
    /// The class's thresholds in the model.
    #[serde(flatten)]
    pub thresholds: Thresholds,
    /// What the scores allow: what the lowest threshold does that keeps the promise on these very good parts. Null without good or
    /// defective images, without a promise, and where unknown products alone are more than was promised.
    pub allowed: Option<OperatingPoint>,
    /// What the model would do had it promised another false-reject rate: one point for each of
    /// [`PROMISES`](super::PROMISES) that its calibration scores support, ascending.
    pub trade: Vec<TradePoint>,
    /// Good images inspected.
    pub n_good: usize,
    /// Good parts that they show: images of one part count once.
    pub n_groups_good: usize,
    /// Defective images inspected.
    pub n_defect: usize,
}

/// The thresholds of a class; null where the model does not know the class.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Thresholds {
    /// Rejected above.
    pub threshold: Option<f32>,
    /// Marked `warn` above.
    pub warn_threshold: Option<f32>,
    /// Map values above are part of a defect.
    pub pixel_threshold: Option<f32>,
    /// The false-reject rate the threshold was made for: on average over calibration sets, at most this share of good parts *like
    /// those it was made from* is rejected.
    pub promised_false_reject_rate: Option<f64>,
}

/// Another method's figures.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Baseline {
    /// Macro-average over the classes that have the figure.
    pub mean: BaselineClass,
    /// Per class.
    pub classes: BTreeMap<String, BaselineClass>,
}

/// Another method's figures for a class.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct BaselineClass {
    /// Threshold-free metrics.
    #[serde(flatten)]
    pub metrics: Metrics,
    /// What its threshold does, set for the model's promise as the model's own was: by scores of fits that have not seen the image.
    /// Absent where so few good parts cannot make this promise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub decision: Option<OperatingPoint>,
}

/// Time per image in milliseconds; null when nothing was timed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Latency {
    /// Half of the images took no longer.
    pub p50: Option<f64>,
    /// 95 % took no longer.
    pub p95: Option<f64>,
    /// 99 % took no longer.
    pub p99: Option<f64>,
}

impl Report {
    /// A report on `images`, all categories together, with `classes` made by [`ClassReport::measure`]. Sorts the images.
    ///
    /// # Errors
    /// When a class's false-reject rate is not in 0..=1.
    pub fn new(
        model: impl Into<String>,
        data: impl Into<String>,
        classes: BTreeMap<String, ClassReport>,
        mut images: Vec<ImageResult>,
    ) -> Result<Self> {
        images.sort_by(|a, b| a.path.cmp(&b.path));
        Ok(Self {
            schema: SCHEMA,
            tool: concat!("diad ", env!("CARGO_PKG_VERSION")).to_owned(),
            model: model.into(),
            data: data.into(),
            arithmetic: String::new(),
            mean: Mean::of(&classes)?,
            classes,
            baselines: BTreeMap::new(),
            ms_per_image: Latency::default(),
            images,
            unreadable: Vec::new(),
        })
    }

    /// The images of each category.
    pub(super) fn images_by_category(&self) -> BTreeMap<&str, Vec<&ImageResult>> {
        by_category(&self.images)
    }
}

impl Mean {
    fn of(classes: &BTreeMap<String, ClassReport>) -> Result<Self> {
        let over = |figure: fn(&ClassReport) -> Option<f64>| mean(classes.values().map(figure));
        let false_reject_rate = over(|class| class.false_reject_rate);
        let rated = || classes.values().filter(|class| class.false_reject_rate.is_some());
        // The parts of K classes weigh 1 / (K G) each in the mean, G being the class's number of parts. Parts that weigh
        // differently tell as much as (sum of weights)^2 / sum of squared weights equal ones (Kish, Survey Sampling, 1965).
        let inverse: f64 = rated().map(|class| 1.0 / class.n_groups_good as f64).sum();
        let parts = (rated().count() as f64).powi(2) / inverse;
        let interval = false_reject_rate.map(|rate| share_interval(rate * parts, parts)).transpose()?;
        let promises: Option<Vec<f64>> = rated().map(|class| class.thresholds.promised_false_reject_rate).collect();
        Ok(Self {
            metrics: Metrics::mean(classes.values().map(|class| &class.metrics)),
            false_reject_rate,
            false_reject_interval: interval,
            escape_rate: over(|class| class.escape_rate),
            escape_ok_rate: over(|class| class.escape_ok_rate),
            promised_false_reject_rate: mean(promises.into_iter().flatten().map(Some)),
            allowed: OperatingPoint::mean(classes.values().filter_map(|class| class.allowed.as_ref())),
            trade: TradePoint::mean(classes.values().map(|class| class.trade.as_slice())),
        })
    }

    /// Whether the interval of the mean false-reject rate lies wholly above (`Greater`) or below (`Less`) the mean promise, or
    /// holds it (`Equal`); `None` where one of the two is missing.
    pub fn against_promise(&self) -> Option<Ordering> {
        against_promise(self.false_reject_interval, self.promised_false_reject_rate)
    }
}

impl ClassReport {
    /// The figures of a class from the results of its images, from `pixels` where there are masks, and from the thresholds that
    /// the model would have at other `promises`.
    ///
    /// # Errors
    /// When a score is NaN, or a promise is not a rate.
    pub fn measure(
        images: &[ImageResult],
        pixels: Option<&Ranking>,
        thresholds: Thresholds,
        promises: &[OtherPromise],
    ) -> Result<Self> {
        let scores: Vec<f32> = images.iter().map(|image| image.score).collect();
        let defects: Vec<bool> = images.iter().map(ImageResult::is_defect).collect();
        let metrics = Metrics::measure(&scores, &defects, pixels)?;
        let parts = Parts::of(images);
        let (n_groups_good, n_defect) = (parts.good_groups(), parts.defective());
        let false_reject_rate = parts.good_share(|image| image.rejected)?;
        let false_rejects = |rate: f64| share_interval(rate * n_groups_good as f64, n_groups_good as f64);
        let escapes = parts.defective_hits(|image| !image.rejected);
        let allowed = thresholds.promised_false_reject_rate.map(|promised| parts.allowed(promised)).transpose()?;
        let chose = |image: &&ImageResult| image.class_source == "chosen" || image.is_unknown_product();
        let right = |image: &&ImageResult| image.class.as_ref() == Some(&image.category);
        let choices = images.iter().filter(chose).count();
        let right_choices = images.iter().filter(chose).filter(right).count();
        Ok(Self {
            metrics,
            false_reject_rate,
            false_reject_interval: false_reject_rate.map(false_rejects).transpose()?,
            escape_rate: rate(escapes, n_defect),
            escape_ok_rate: rate(parts.defective_hits(ImageResult::is_ok), n_defect),
            escape_interval: wilson(escapes, n_defect),
            class_accuracy: rate(right_choices, choices),
            thresholds,
            allowed: allowed.flatten(),
            trade: parts.trade(promises)?,
            n_good: parts.good(),
            n_groups_good,
            n_defect,
        })
    }

    /// Whether the interval of the false-reject rate lies wholly above (`Greater`) or below (`Less`) the promise, or holds it
    /// (`Equal`); `None` where one of the two is missing.
    pub fn against_promise(&self) -> Option<Ordering> {
        against_promise(self.false_reject_interval, self.thresholds.promised_false_reject_rate)
    }
}

impl Baseline {
    /// A baseline with the mean over `classes`.
    pub fn new(classes: BTreeMap<String, BaselineClass>) -> Self {
        let metrics = Metrics::mean(classes.values().map(|class| &class.metrics));
        // Classes without a threshold would make a mean of others.
        let decisions: Option<Vec<_>> = classes.values().map(|class| class.decision.as_ref()).collect();
        let decision = decisions.and_then(|decisions| OperatingPoint::mean(decisions.into_iter()));
        Self { mean: BaselineClass { metrics, decision }, classes }
    }
}

impl Latency {
    /// Nearest-rank percentiles of `ms`, milliseconds in any order.
    pub fn of(ms: &[f64]) -> Self {
        let mut sorted = ms.to_vec();
        sorted.sort_by(f64::total_cmp);
        let at = |percent: usize| sorted.get((sorted.len() * percent).div_ceil(100).saturating_sub(1)).copied();
        Self { p50: at(50), p95: at(95), p99: at(99) }
    }
}

/// Wilson's 95 % score interval of `hits` out of `of` (E. B. Wilson, JASA 22, 1927).
fn wilson(hits: usize, of: usize) -> Option<[f64; 2]> {
    const Z: f64 = 1.959_963_984_540_054; // 97.5 % quantile of the normal distribution
    let share = rate(hits, of)?;
    let n = of as f64;
    let center = share + Z * Z / (2.0 * n);
    let half = Z * (share * (1.0 - share) / n + Z * Z / (4.0 * n * n)).sqrt();
    let scale = 1.0 + Z * Z / n;
    // Rounding must not push the ends beyond what was seen when that is none or all.
    let low = if hits == 0 { 0.0 } else { (center - half) / scale };
    let high = if hits == of { 1.0 } else { (center + half) / scale };
    Some([low, high])
}

#[cfg(test)]
mod tests {
    use super::*;

    /// ```python
    /// from statsmodels.stats.proportion import proportion_confint
    /// for hits, of in ((0, 20), (1, 20), (10, 20), (20, 20), (3, 200)):
    ///     print(proportion_confint(hits, of, method="wilson"))
    /// ```
    #[test]
    fn wilson_intervals_of_statsmodels() {
        let golden = [
            (0, 20, 0.0, 0.161_125_158_052),
            (1, 20, 0.008_881_448_801, 0.236_131_193_447),
            (10, 20, 0.299_298_008_198, 0.700_701_991_802),
            (20, 20, 0.838_874_841_947, 1.0),
            (3, 200, 0.005_114_237_793, 0.043_165_728_793),
        ];
        for (hits, of, low, high) in golden {
            let [a, b] = wilson(hits, of).unwrap();
            assert!((a - low).abs() < 1e-9 && (b - high).abs() < 1e-9, "{hits} of {of}: {a} {b}");
        }
        assert_eq!(wilson(0, 0), None);
    }

    #[test]
    fn latency_is_by_nearest_rank() {
        let ms: Vec<f64> = (1..=200).rev().map(f64::from).collect();
        assert_eq!(Latency::of(&ms), Latency { p50: Some(100.0), p95: Some(190.0), p99: Some(198.0) });
        assert_eq!(Latency::of(&[7.0]), Latency { p50: Some(7.0), p95: Some(7.0), p99: Some(7.0) });
        assert_eq!(Latency::of(&[]), Latency::default());
    }
}
