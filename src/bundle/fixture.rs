//! A card for tests.

use std::collections::BTreeMap;

use super::card::ReadFrom;
use super::{BackboneCard, Card, ClassCard, SCHEMA, TrainingCard};
use crate::calibrate::Threshold;
use crate::config::Config;

/// The card of a model with these classes, whose thresholds are 1.
pub(crate) fn card(classes: &[&str]) -> Card {
    let threshold = Threshold { value: 1.0, rank: 1, n: 1, groups: None, false_reject_rate: 0.5, interval: [0.0, 1.0] };
    let class = |name: &&str| ClassCard {
        shape: None,
        name: (*name).to_owned(),
        train_images: 1,
        calibration_scores: vec![1.0],
        calibration_groups: Vec::new(),
        calibration: None,
        ng: threshold,
        warn: threshold,
        pixel_threshold: 1.0,
        prototype_limit: 1.0,
        measured: BTreeMap::new(),
        known_defects: None,
        images: Vec::new(),
        unknown: BTreeMap::new(),
    };
    Card {
        schema: SCHEMA,
        tool: "diad 0".into(),
        config: Config::default(),
        backbone: Some(BackboneCard { name: "efficientnet-lite0".into(), sha256: "0".repeat(64) }),
        classes: classes.iter().map(class).collect(),
        training: TrainingCard { images: 1, data_sha256: "0".repeat(64), seed: 0, steps: 1 },
        tensors_sha256: "0".repeat(64),
        unknown: BTreeMap::new(),
        read_from: ReadFrom::default(),
    }
}
