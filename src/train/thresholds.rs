//! From the scores of good parts to a class's thresholds.

use std::collections::BTreeMap;

use crate::bundle::{CalibrationCard, ClassCard, Measured};
use crate::calibrate::{self, GoodScores, Threshold};
use crate::config::{CalibrationConfig, Config, DEFAULT_TARGET_FPR};
use crate::data::{self, Dataset};
use crate::error::{Error, Result};

/// Scores of good parts of one class, by a network that has not seen them.
#[derive(Clone, Debug, Default)]
pub struct ClassScores {
    /// Image score and group.
    image: Vec<(f32, u32)>,
    /// Highest value of the map, and group.
    pixel: Vec<(f32, u32)>,
}

impl ClassScores {
    /// Adds an image of the part `group`: its score, and the highest value of its map.
    pub fn push(&mut self, score: f32, peak: f32, group: u32) {
        self.image.push((score, group));
        self.pixel.push((peak, group));
    }

    /// The threshold of the image score.
    ///
    /// # Errors
    /// As [`class_card`].
    pub fn threshold(&self, name: &str, config: &CalibrationConfig, source: CalibrationCard) -> Result<Threshold> {
        let (scores, groups) = calibrate::sorted(self.image.clone())?;
        let scores = source.good_scores(&scores, &groups);
        scores.threshold(rate(config, scores.groups())).map_err(|few| Error::Usage(format!("class {name}: {few}")))
    }
}

/// The rate that is promised from `n` parts: what was asked for, else 5 % or the smallest that `n` supports.
fn rate(config: &CalibrationConfig, n: usize) -> f64 {
    config.target_fpr.unwrap_or_else(|| DEFAULT_TARGET_FPR.max(calibrate::smallest_rate(n)))
}

/// The card of a class with thresholds by conformal calibration, without its images. The threshold of a region is the same quantile
/// of the images' highest map values.
///
/// # Errors
/// When the rate asked for cannot be promised from so few parts; the message says how many it takes.
pub fn class_card(
    name: &str,
    scores: ClassScores,
    prototype_limit: f32,
    config: &CalibrationConfig,
    source: CalibrationCard,
) -> Result<ClassCard> {
    let measured = measured(name, scores, config, source)?;
    let Measured { calibration_scores, calibration_groups, calibration, ng, warn, pixel_threshold } = measured;
    Ok(ClassCard {
        name: name.to_owned(),
        shape: None,
        train_images: 0,
        calibration_scores,
        calibration_groups,
        calibration,
        ng,
        warn,
        pixel_threshold,
        prototype_limit,
        measured: BTreeMap::new(),
        known_defects: None,
        images: Vec::new(),
        unknown: BTreeMap::new(),
    })
}

/// What the scores of a class of parts make by conformal calibration: its thresholds, see [`class_card`].
///
/// # Errors
/// As [`class_card`].
pub fn measured(
    name: &str,
    scores: ClassScores,
    config: &CalibrationConfig,
    source: CalibrationCard,
) -> Result<Measured> {
    let refuse = |e: calibrate::TooFew| Error::Usage(format!("class {name}: {e}"));
    let (image, groups) = calibrate::sorted(scores.image)?;
    let good = source.good_scores(&image, &groups);
    let (pixel, pixel_groups) = calibrate::sorted(scores.pixel)?;
    let target = rate(config, good.groups());
    let warn_target = config.warn_fpr.unwrap_or(2.0 * target).min(0.5).max(target);
    let pixel_threshold = source.good_scores(&pixel, &pixel_groups).threshold(target).map_err(refuse)?.value;
    Ok(Measured {
        ng: good.threshold(target).map_err(refuse)?,
        warn: good.threshold(warn_target).map_err(refuse)?,
        calibration_groups: if good.groups() == image.len() + good.rejected() { Vec::new() } else { groups },
        calibration_scores: image,
        calibration: Some(source),
        pixel_threshold,
    })
}

/// Refuses the configured rate where these scores cannot promise it.
///
/// # Errors
/// As [`class_card`].
pub(super) fn promise(class: &str, config: &CalibrationConfig, scores: &GoodScores) -> Result<()> {
    let rank = scores.rank(rate(config, scores.groups()));
    rank.map(drop).map_err(|few| Error::Usage(format!("class {class}: {few}")))
}

/// Refuses a rate that `n` held-out parts of a class cannot promise.
///
/// # Errors
/// [`Error::Usage`] that says how many it takes.
pub fn check_rate(class: &str, n: usize, target: f64) -> Result<()> {
    calibrate::conformal_rank(n, target).map(drop).map_err(|few| Error::Usage(format!("class {class}: {few}")))
}

/// Refuses a configured rate that the images to be scored cannot promise, before any is read.
///
/// # Errors
/// When a class has too few images.
pub fn check_rates(config: &Config, data: &Dataset) -> Result<()> {
    let Some(target) = config.calibration.target_fpr else { return Ok(()) };
    let CalibrationConfig { folds, .. } = config.calibration;
    data.categories.iter().try_for_each(|category| {
        let held_out = || data::hold_out(&category.train, config.training.calibration_fraction, config.training.seed);
        let scored = if folds > 1 { category.train.len() } else { held_out().calibration.len() };
        check_rate(&category.name, scored, target)
    })
}
