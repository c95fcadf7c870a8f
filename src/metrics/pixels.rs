//! Gathers the pixels of a test set, image by image, for one exact ranking.

use crate::error::{Error, Result};
use crate::regions::components;

use super::{Ranking, ordered};

/// The pixels of all test images of a class, good images included.
///
/// Takes 4 bytes per good and 8 per defective pixel, and a quarter more at most while it grows; ranking sorts in place.
/// An image of a defect without a mask does not belong in here: its pixels are of neither kind.
#[derive(Clone, Debug, Default)]
pub struct PixelSet {
    good: Vec<u32>,
    defective: Vec<u64>,
    areas: Vec<u32>,
}

impl PixelSet {
    /// An empty set.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds one image: its anomaly map and its ground truth, both `[height, width]`, true where there is a defect. Every
    /// 8-connected component of the mask counts as one region of AUPRO.
    ///
    /// # Errors
    /// When a value is NaN or a length is not `width * height`; nothing is added then.
    pub fn push(&mut self, map: &[f32], mask: &[bool], width: usize, height: usize) -> Result<()> {
        let pixels = width.checked_mul(height);
        if pixels != Some(map.len()) || pixels != Some(mask.len()) {
            return Err(Error::Internal(format!(
                "metrics: a map of {width}x{height} with {} values and {} mask pixels",
                map.len(),
                mask.len()
            )));
        }
        if let Some(at) = map.iter().position(|value| value.is_nan()) {
            return Err(Error::Internal(format!("metrics: map value at ({}, {}) is NaN", at % width, at / width)));
        }
        let found = components(mask, width, height);
        let first = self.areas.len();
        if first + found.count > u32::MAX as usize {
            return Err(Error::Internal(format!("metrics: more than {} ground-truth components", u32::MAX)));
        }
        let defects = mask.iter().filter(|&&defect| defect).count();
        reserve(&mut self.defective, defects);
        reserve(&mut self.good, map.len() - defects);
        self.areas.resize(first + found.count, 0);
        for (&value, &label) in map.iter().zip(&found.labels) {
            let Some(key) = ordered(value) else { continue };
            if label == 0 {
                self.good.push(key);
            } else {
                let component = first + label as usize - 1;
                self.defective.push(u64::from(key) << 32 | component as u64);
                self.areas[component] += 1;
            }
        }
        Ok(())
    }

    /// Pixels gathered so far.
    pub fn len(&self) -> usize {
        self.good.len() + self.defective.len()
    }

    /// Whether no pixel was added yet.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Sorts the pixels, O(N log N), in place.
    pub fn rank(self) -> Ranking {
        Ranking::sorted(self.good, self.defective, self.areas)
    }
}

/// Room for `more`, growing by a quarter where `Vec` would double.
fn reserve<T>(items: &mut Vec<T>, more: usize) {
    if items.capacity() - items.len() < more {
        items.reserve_exact(more.max(items.len() / 4));
    }
}
