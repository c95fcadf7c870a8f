//! From the scores of held-out good parts to a class's thresholds.

use crate::bundle::ClassCard;
use crate::calibrate::{self, Threshold};
use crate::config::{CalibrationConfig, Config, DEFAULT_TARGET_FPR};
use crate::data::{self, Dataset};
use crate::detector::Inspection;
use crate::error::{Error, Result};

/// Scores of the held-out good parts of one class.
#[derive(Clone, Debug, Default)]
pub struct ClassScores {
    image: Vec<f32>,
    pixel: Vec<f32>,
}

impl ClassScores {
    /// Adds one inspected good part.
    pub fn push(&mut self, inspection: &Inspection) {
        self.image.push(inspection.score);
        self.pixel.push(inspection.map.values.iter().copied().fold(f32::NEG_INFINITY, f32::max));
    }
}

/// The rate that is promised for `n` held-out parts: what was asked for, else 5 % or the smallest that `n` supports.
fn rate(config: &CalibrationConfig, n: usize) -> f64 {
    config.target_fpr.unwrap_or_else(|| DEFAULT_TARGET_FPR.max(calibrate::smallest_rate(n)))
}

/// Thresholds of one class by split-conformal calibration. The threshold of a region is the same quantile of the parts' highest
/// map values.
///
/// # Errors
/// When the rate asked for cannot be promised from so few parts; the message says how many it takes.
pub fn class_card(
    name: &str,
    train_images: usize,
    scores: ClassScores,
    prototype_limit: f32,
    config: &CalibrationConfig,
) -> Result<ClassCard> {
    let n = scores.image.len();
    let target = rate(config, n);
    let warn_target = config.warn_fpr.unwrap_or(2.0 * target).min(0.5).max(target);
    let refuse = |e: calibrate::TooFew| Error::Usage(format!("class {name}: {e}"));
    let image = calibrate::sorted(scores.image)?;
    let pixel = calibrate::sorted(scores.pixel)?;
    let ng: Threshold = calibrate::conformal(&image, target).map_err(refuse)?;
    let warn = calibrate::conformal(&image, warn_target).map_err(refuse)?;
    let pixel_threshold = calibrate::conformal(&pixel, target).map_err(refuse)?.value;
    Ok(ClassCard {
        name: name.to_owned(),
        train_images,
        calibration_scores: image,
        ng,
        warn,
        pixel_threshold,
        prototype_limit,
    })
}

/// Refuses a rate that `n` held-out parts of a class cannot promise.
///
/// # Errors
/// [`Error::Usage`] that says how many it takes.
pub fn check_rate(class: &str, n: usize, target: f64) -> Result<()> {
    calibrate::conformal_rank(n, target).map(drop).map_err(|few| Error::Usage(format!("class {class}: {few}")))
}

/// Refuses a configured rate that the images to be held out cannot promise, before any is read.
///
/// # Errors
/// When a class has too few images.
pub fn check_rates(config: &Config, data: &Dataset) -> Result<()> {
    let Some(target) = config.calibration.target_fpr else { return Ok(()) };
    data.categories.iter().try_for_each(|category| {
        let split = data::hold_out(&category.train, config.training.calibration_fraction, config.training.seed);
        check_rate(&category.name, split.calibration.len(), target)
    })
}
