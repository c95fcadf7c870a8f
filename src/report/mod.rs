//! The reports of an evaluation: figures as JSON, and the same with curves and pictures as one HTML page.
//!
//! Depends on metrics and frames, not on the detector: the caller passes the result of each image as an [`ImageResult`].
//!
//! Two evaluations of the same model on the same images give the same JSON but for `ms_per_image`.

mod ablation;
mod gallery;
mod html;
mod operating;
mod png;
mod promise;
mod summary;
mod svg;
mod training;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::metrics::{PRO_LIMIT, Ranking};

pub use crate::files::{check_writable, write_atomic};
pub use ablation::{Ablation, AblationRow};
pub use gallery::{Case, Gallery, Kind, Picture};
pub use html::{Curves, Page};
pub use operating::{OperatingPoint, OtherPromise, PROMISES, TradePoint};
pub use png::png;
pub use summary::{Baseline, BaselineClass, ClassReport, Latency, Mean, Report, Thresholds};
pub use training::{StandsOut, TrainedClass, TrainingPage};

/// Version of the JSON report; raised when a field changes its meaning.
pub const SCHEMA: u32 = 2;
/// The label of images without a defect.
pub const GOOD: &str = "good";
/// False-positive rate up to which the strict AUPRO is integrated.
const STRICT_PRO_LIMIT: f64 = 0.05;

/// Metrics that need no threshold: how well scores rank defects above good parts, 0..=1. `None` (null in JSON) is a metric that
/// cannot be computed, because there are no good images, no defective ones, or no masks.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Metrics {
    /// AUROC of image scores.
    pub image_auroc: Option<f64>,
    /// Average precision of image scores.
    pub image_ap: Option<f64>,
    /// Best F1 of image scores.
    pub image_f1max: Option<f64>,
    /// AUROC of map values.
    pub pixel_auroc: Option<f64>,
    /// Average precision of map values.
    pub pixel_ap: Option<f64>,
    /// Best F1 of map values.
    pub pixel_f1max: Option<f64>,
    /// Per-region overlap up to a false-positive rate of 0.3.
    pub aupro: Option<f64>,
    /// Per-region overlap up to a false-positive rate of 0.05.
    pub aupro_05: Option<f64>,
}

/// A metric as a column of a table: its heading, and how it is read from [`Metrics`].
pub(crate) type Column = (&'static str, fn(&Metrics) -> Option<f64>);

impl Metrics {
    /// All metrics in the order of the JSON, headings as people write them.
    pub(crate) const COLUMNS: [Column; 8] = [
        ("Image AUROC", |m| m.image_auroc),
        ("Image AP", |m| m.image_ap),
        ("Image F1max", |m| m.image_f1max),
        ("Pixel AUROC", |m| m.pixel_auroc),
        ("Pixel AP", |m| m.pixel_ap),
        ("Pixel F1max", |m| m.pixel_f1max),
        ("AUPRO", |m| m.aupro),
        ("AUPRO@0.05", |m| m.aupro_05),
    ];

    /// Computes them from image scores, with `defects` true for images of defects, and from pixels, where there are masks.
    ///
    /// # Errors
    /// When a score is NaN or the lengths differ.
    pub fn measure(scores: &[f32], defects: &[bool], pixels: Option<&Ranking>) -> Result<Self> {
        let images = Ranking::new(scores, defects)?;
        Ok(Self {
            image_auroc: images.auroc(),
            image_ap: images.average_precision(),
            image_f1max: images.f1_max(),
            pixel_auroc: pixels.and_then(Ranking::auroc),
            pixel_ap: pixels.and_then(Ranking::average_precision),
            pixel_f1max: pixels.and_then(Ranking::f1_max),
            aupro: pixels.and_then(|pixels| pixels.aupro(PRO_LIMIT)),
            aupro_05: pixels.and_then(|pixels| pixels.aupro(STRICT_PRO_LIMIT)),
        })
    }

    /// The mean of each metric over those that have it.
    pub fn mean<'a>(all: impl Iterator<Item = &'a Self> + Clone) -> Self {
        let of = |metric: fn(&Self) -> Option<f64>| mean(all.clone().map(metric));
        Self {
            image_auroc: of(|m| m.image_auroc),
            image_ap: of(|m| m.image_ap),
            image_f1max: of(|m| m.image_f1max),
            pixel_auroc: of(|m| m.pixel_auroc),
            pixel_ap: of(|m| m.pixel_ap),
            pixel_f1max: of(|m| m.pixel_f1max),
            aupro: of(|m| m.aupro),
            aupro_05: of(|m| m.aupro_05),
        }
    }
}

/// The mean of the values that are there; `None` when there is none.
fn mean(values: impl Iterator<Item = Option<f64>>) -> Option<f64> {
    let (count, sum) = values.flatten().fold((0_u32, 0.0), |(count, sum), value| (count + 1, sum + value));
    (count > 0).then(|| sum / f64::from(count))
}

/// The result of one test image.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ImageResult {
    /// The image file, relative to the data's root where possible.
    pub path: String,
    /// The category it belongs to by its folder.
    pub category: String,
    /// `good`, or the name of its defect folder.
    pub label: String,
    /// The part it shows, by a name that all images of that part have and no other image of the category; absent where nothing
    /// is known: then the image counts as a part of its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group: Option<String>,
    /// Image score.
    pub score: f32,
    /// The threshold that the score was compared with.
    pub threshold: f32,
    /// Share of the class's normal images that score lower, 0..=100.
    pub percentile: f64,
    /// `ok`, `warn`, `ng`, ...
    pub verdict: String,
    /// Whether a line would reject the part: the verdict is `ng`.
    pub rejected: bool,
    /// The class whose statistics and thresholds were used; null if there was none.
    pub class: Option<String>,
    /// How the class was found: `known`, `chosen`, `none`, `unknown-product`, `not-located`.
    pub class_source: String,
}

impl ImageResult {
    /// Whether the ground truth says that there is a defect.
    pub fn is_defect(&self) -> bool {
        self.label != GOOD
    }

    /// Whether the part was like no class of the model.
    pub fn is_unknown_product(&self) -> bool {
        self.class_source == "unknown-product"
    }

    /// Whether it is rejected whatever its score and the threshold: it was like no class, or not found in the frame.
    pub fn is_rejected_unscored(&self) -> bool {
        self.is_unknown_product() || self.class_source == "not-located"
    }

    /// Whether the verdict is `ok`: nobody would look at this part again.
    pub fn is_ok(&self) -> bool {
        self.verdict == "ok"
    }

    /// How far the score is above the threshold; negative below.
    pub fn margin(&self) -> f32 {
        self.score - self.threshold
    }
}

/// An image that could not be inspected.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unreadable {
    /// The image file.
    pub path: String,
    /// What went wrong.
    pub reason: String,
}

impl Report {
    /// The JSON file's text: keys in a fixed order, classes by name, one line per value.
    ///
    /// # Errors
    /// Never for a report made by this module; an internal error otherwise.
    pub fn to_json(&self) -> Result<String> {
        json(self, "report")
    }
}

/// A value as the text of a JSON file; `what` names it in an error.
///
/// # Errors
/// When it has no JSON, as a map whose keys are no text.
pub fn json(value: &impl Serialize, what: &str) -> Result<String> {
    let text = serde_json::to_string_pretty(value).map_err(|error| Error::Internal(format!("{what}: {error}")))?;
    Ok(text + "\n")
}

/// Groups `images` by category, keeping their order.
fn by_category(images: &[ImageResult]) -> BTreeMap<&str, Vec<&ImageResult>> {
    let mut groups: BTreeMap<&str, Vec<&ImageResult>> = BTreeMap::new();
    for image in images {
        groups.entry(&image.category).or_default().push(image);
    }
    groups
}

#[cfg(test)]
mod tests;
