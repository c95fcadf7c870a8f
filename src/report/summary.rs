//! The figures of a report: per class, their mean, baselines, latency.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::error::Result;
use crate::metrics::Ranking;

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
    /// Mean of the classes' escape rates.
    pub escape_rate: Option<f64>,
}

/// The figures of one class.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ClassReport {
    /// Threshold-free metrics.
    #[serde(flatten)]
    pub metrics: Metrics,
    /// Share of the good images that were rejected; null without good images.
    pub false_reject_rate: Option<f64>,
    /// 95 % Wilson interval of the false-reject rate: the fewer images, the wider.
    pub false_reject_interval: Option<[f64; 2]>,
    /// Share of the defective images that were not rejected; null without defective images.
    pub escape_rate: Option<f64>,
    /// 95 % Wilson interval of the escape rate.
    pub escape_interval: Option<[f64; 2]>,
    /// Share of the images for which the model chose the right class; null where the class was told.
    pub class_accuracy: Option<f64>,
    /// The class's thresholds in the model.
    #[serde(flatten)]
    pub thresholds: Thresholds,
    /// Good images inspected.
    pub n_good: usize,
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
    /// The false-reject rate the threshold was made for.
    pub promised_false_reject_rate: Option<f64>,
}

/// Another method's figures.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Baseline {
    /// Macro-average over the classes that have the figure.
    pub mean: Metrics,
    /// Per class.
    pub classes: BTreeMap<String, Metrics>,
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
    pub fn new(
        model: impl Into<String>,
        data: impl Into<String>,
        classes: BTreeMap<String, ClassReport>,
        mut images: Vec<ImageResult>,
    ) -> Self {
        images.sort_by(|a, b| a.path.cmp(&b.path));
        Self {
            schema: SCHEMA,
            tool: concat!("diad ", env!("CARGO_PKG_VERSION")).to_owned(),
            model: model.into(),
            data: data.into(),
            mean: Mean {
                metrics: Metrics::mean(classes.values().map(|class| &class.metrics)),
                false_reject_rate: mean(classes.values().map(|class| class.false_reject_rate)),
                escape_rate: mean(classes.values().map(|class| class.escape_rate)),
            },
            classes,
            baselines: BTreeMap::new(),
            ms_per_image: Latency::default(),
            images,
            unreadable: Vec::new(),
        }
    }

    /// The images of each category.
    pub(super) fn images_by_category(&self) -> BTreeMap<&str, Vec<&ImageResult>> {
        by_category(&self.images)
    }
}

impl ClassReport {
    /// The figures of a class from the results of its images, and from `pixels` where there are masks.
    ///
    /// # Errors
    /// When a score is NaN.
    pub fn measure(images: &[ImageResult], pixels: Option<&Ranking>, thresholds: Thresholds) -> Result<Self> {
        let scores: Vec<f32> = images.iter().map(|image| image.score).collect();
        let defects: Vec<bool> = images.iter().map(ImageResult::is_defect).collect();
        let metrics = Metrics::measure(&scores, &defects, pixels)?;
        let n_defect = defects.iter().filter(|&&defect| defect).count();
        let n_good = images.len() - n_defect;
        let false_rejects = images.iter().filter(|image| !image.is_defect() && image.rejected).count();
        let escapes = images.iter().filter(|image| image.is_defect() && !image.rejected).count();
        let chose = |image: &&ImageResult| matches!(image.class_source.as_str(), "chosen" | "unknown-product");
        let right = |image: &&ImageResult| image.class.as_ref() == Some(&image.category);
        let choices = images.iter().filter(chose).count();
        let right_choices = images.iter().filter(chose).filter(right).count();
        Ok(Self {
            metrics,
            false_reject_rate: rate(false_rejects, n_good),
            false_reject_interval: wilson(false_rejects, n_good),
            escape_rate: rate(escapes, n_defect),
            escape_interval: wilson(escapes, n_defect),
            class_accuracy: rate(right_choices, choices),
            thresholds,
            n_good,
            n_defect,
        })
    }
}

impl Baseline {
    /// A baseline with the mean over `classes`.
    pub fn new(classes: BTreeMap<String, Metrics>) -> Self {
        Self { mean: Metrics::mean(classes.values()), classes }
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

fn rate(hits: usize, of: usize) -> Option<f64> {
    (of > 0).then(|| hits as f64 / of as f64)
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
