//! Thresholds: those on the model's card, or what the user sets in their place.

use crate::bundle::Card;
use crate::error::{Error, Result};

/// What the user sets in place of the thresholds on the card. What is absent stays as it is there.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Overrides {
    /// Score above which every class is `ng`.
    pub threshold: Option<f32>,
    /// Score above which every class is `warn`.
    pub warn_threshold: Option<f32>,
    /// False-reject rate that sets the threshold of each class from its calibration scores.
    pub target_fpr: Option<f64>,
    /// Regions below this many pixels of the frame are not reported.
    pub min_area: Option<usize>,
}

/// Thresholds in force.
#[derive(Clone, Debug, PartialEq)]
pub struct Limits {
    pub(super) classes: Vec<ClassLimits>, // in the order of the card
    pub(super) min_area: usize,
}

/// Thresholds of one class.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct ClassLimits {
    pub(super) ng: f32,
    pub(super) warn: f32,
    pub(super) pixel: f32,
}

impl Limits {
    /// Those of the card.
    pub fn of(card: &Card) -> Self {
        let classes = card.classes.iter();
        let classes = classes.map(|c| ClassLimits { ng: c.ng.value, warn: c.warn.value, pixel: c.pixel_threshold });
        Self { classes: classes.collect(), min_area: card.config.calibration.min_area }
    }

    /// Those of the card with `overrides` in place. Where the user moves the threshold alone, the warning threshold moves with it
    /// in proportion; it never lies above the threshold.
    ///
    /// # Errors
    /// When both a threshold and a rate are given, a value is not finite, or a class has too few calibration scores for the
    /// rate.
    pub fn with(card: &Card, overrides: &Overrides) -> Result<Self> {
        let Overrides { threshold, warn_threshold, target_fpr, min_area } = overrides;
        let mut limits = Self::of(card);
        if let (Some(threshold), Some(rate)) = (threshold, target_fpr) {
            return Err(Error::Usage(format!(
                "threshold = {threshold} and target-fpr = {rate}: expected one of them, not both"
            )));
        }
        for (name, value) in [("threshold", threshold), ("warn-threshold", warn_threshold)] {
            if let Some(value) = value.filter(|v| !v.is_finite()) {
                return Err(Error::Usage(format!("{name} = {value}: expected a finite number")));
            }
        }
        for (class, limits) in card.classes.iter().zip(&mut limits.classes) {
            let share = if limits.ng > 0.0 { limits.warn / limits.ng } else { 1.0 };
            let refused = |few| {
                Error::Usage(format!(
                    "target-fpr = {:?}: class {}: {few}; expected that rate or more, or a model with more calibration \
                     images (diad calibrate)",
                    target_fpr.unwrap_or_default(),
                    class.name
                ))
            };
            let by_rate = |rate| class.threshold(rate).map_err(refused);
            let moved = target_fpr.map(by_rate).transpose()?.map(|found| found.value).or(*threshold);
            if let Some(ng) = moved {
                *limits = ClassLimits { ng, warn: (ng * share).min(ng), ..*limits };
            }
            if let Some(warn) = *warn_threshold {
                limits.warn = warn.min(limits.ng);
            }
        }
        limits.min_area = min_area.unwrap_or(limits.min_area);
        Ok(limits)
    }
}
