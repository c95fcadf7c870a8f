//! The trained network: from a frame to a map and a score, before any threshold.

use candle_core::{Device, Tensor};

use super::{ClassSource, MAP_SCALE, Map};
use crate::config::{Config, Distance};
use crate::error::{Error, Result};
use crate::features::{FeatureSpace, to_grid};
use crate::frame::{Frame, Geometry, Prepared, Preprocess};
use crate::model::Backbone;
use crate::model::denoiser::{Condition, Denoiser};
use crate::score::{ResidualField, resize, root_mean_squares, smooth, top_mean};

/// A second class is tried where its prototype is at most this much farther than the nearest.
const CANDIDATE_RATIO: f32 = 1.5;

/// What the network says of one frame, before any threshold.
#[derive(Clone, Debug)]
pub struct Inspection {
    /// Index of the class.
    pub class: usize,
    /// How it was found.
    pub source: ClassSource,
    /// Distance to the class's prototype.
    pub prototype_distance: f32,
    /// Image score.
    pub score: f32,
    /// Map.
    pub map: Map,
}

/// The trained network with its statistics, without thresholds.
pub struct Network {
    /// Configuration it was made with.
    pub config: Config,
    /// Frozen features.
    pub backbone: Box<dyn Backbone>,
    /// Feature space.
    pub space: FeatureSpace,
    /// Denoiser.
    pub denoiser: Denoiser,
    /// Residual statistics, one per class.
    pub fields: Vec<ResidualField>,
    /// Mean features of each class `[D]`.
    pub prototypes: Vec<Vec<f32>>,
}

/// How `inspect` finds the class.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Choice {
    /// This class.
    Known(usize),
    /// The class whose prototype is near and whose calibrated score is lowest.
    Auto,
}

impl Network {
    /// The preprocessing of this network.
    pub fn preprocess(&self) -> Preprocess {
        let input = &self.config.input;
        Preprocess { size: input.size, fit: input.fit, roi: input.roi }
    }

    /// Normalised features `[T, D]` of a prepared frame.
    ///
    /// # Errors
    /// When the device fails.
    pub fn features(&self, prepared: &Prepared) -> Result<Vec<f32>> {
        let raw = raw_features(self.backbone.as_ref(), self.config.features.grid, &prepared.frame)?;
        Ok(self.space.apply(&raw))
    }

    /// Residuals `x0 - x0_hat` `[B, T, D]` of normalised features `[B, T, D]`: noise-free start `sqrt(abar) x0`, then
    /// `ddim_steps` projections, uniform in log-SNR, the predicted noise dropped between them.
    ///
    /// # Errors
    /// When shapes do not fit.
    pub fn residuals(&self, features: Vec<f32>, conditions: &[(f64, Condition)]) -> Result<Vec<f32>> {
        let shape = self.denoiser.shape();
        let (tokens, dim) = (shape.grid * shape.grid, shape.dim);
        let x0 = Tensor::from_vec(features, ((), tokens, dim), &Device::Cpu)?;
        let batch = x0.dim(0)?;
        let mut estimate = x0.clone();
        for (alpha_bar, condition) in conditions {
            let repeated;
            let condition = if batch == 1 {
                condition
            } else {
                repeated = condition.repeat(batch)?;
                &repeated
            };
            estimate = self.denoiser.predict(&(estimate * alpha_bar.sqrt())?, condition)?;
        }
        Ok((x0 - estimate)?.flatten_all()?.to_vec1()?)
    }

    /// The noise levels of the steps with their modulations, for the null class.
    ///
    /// # Errors
    /// When the denoiser fails.
    pub fn conditions(&self, steps: usize) -> Result<Vec<(f64, Condition)>> {
        let detection = &self.config.detection;
        let start = (detection.start_alpha_bar / (1.0 - detection.start_alpha_bar)).ln();
        let end = self.config.diffusion.log_snr_max;
        (0..steps)
            .map(|i| {
                let log_snr = start + (end - start) * i as f64 / steps as f64;
                let condition = self.denoiser.condition(&[log_snr as f32], &[self.denoiser.null_class()])?;
                Ok((1.0 / (1.0 + (-log_snr).exp()), condition))
            })
            .collect()
    }

    /// Distances to the prototypes: root mean square over the channels.
    pub fn prototype_distances(&self, features: &[f32]) -> Vec<f32> {
        let mean = mean_token(features, self.space.dim());
        let distance = |p: &Vec<f32>| {
            (p.iter().zip(&mean).map(|(p, m)| (p - m) * (p - m)).sum::<f32>() / mean.len() as f32).sqrt()
        };
        self.prototypes.iter().map(distance).collect()
    }

    /// Map and image score of residuals `[T, D]` by the statistics of one class.
    pub fn score(&self, residuals: &[f32], class: usize, geometry: Geometry) -> (f32, Map) {
        let (grid, detection) = (self.config.features.grid, &self.config.detection);
        let side = grid * MAP_SCALE;
        let mut distance = match detection.distance {
            Distance::Mahalanobis => self.fields[class].distance(residuals),
            Distance::L2 => root_mean_squares(residuals, self.space.dim()),
        };
        if geometry.valid[2] != geometry.valid[3] {
            blank_border(&mut distance, grid, geometry, self.config.input.size);
        }
        let sigma = detection.smoothing_px * side as f64 / self.config.input.size as f64;
        let values = smooth(&resize(&distance, grid, side), side, sigma as f32);
        let score = top_mean(&values, detection.top_fraction);
        (score, Map { side, values, geometry })
    }

    /// Looks at one frame. `calibrated(class, score)` makes scores of different classes comparable.
    ///
    /// # Errors
    /// When the frame has no pixel in the region of interest, or the device fails.
    pub fn inspect(
        &self,
        frame: &Frame,
        choice: Choice,
        conditions: &[(f64, Condition)],
        calibrated: impl Fn(usize, f32) -> f32,
    ) -> Result<Inspection> {
        let prepared = self.preprocess().apply(frame)?;
        let features = self.features(&prepared)?;
        let distances = self.prototype_distances(&features);
        let (candidates, source) = match choice {
            Choice::Known(class) => (vec![class], ClassSource::Known),
            Choice::Auto if distances.len() == 1 => (vec![0], ClassSource::Only),
            Choice::Auto => (nearest(&distances), ClassSource::Chosen),
        };
        let residuals = self.residuals(features, conditions)?;
        let scored = candidates.into_iter().map(|class| (class, self.score(&residuals, class, prepared.geometry)));
        let best = scored.min_by(|a, b| calibrated(a.0, a.1.0).total_cmp(&calibrated(b.0, b.1.0)));
        let Some((class, (score, map))) = best else {
            return Err(Error::Internal("detector: a model without classes".into()));
        };
        if !score.is_finite() {
            return Err(Error::Internal(format!("detector: the score is not finite ({score})")));
        }
        Ok(Inspection { class, source, prototype_distance: distances[class], score, map })
    }
}

/// Raw features `[T, C]` of a prepared frame.
///
/// # Errors
/// When the device fails.
pub fn raw_features(backbone: &dyn Backbone, grid: usize, frame: &Frame) -> Result<Vec<f32>> {
    let pixels = frame.rgb().iter().map(|&x| f32::from(x)).collect::<Vec<_>>();
    let image = Tensor::from_vec(pixels, (1, frame.height(), frame.width(), 3), &Device::Cpu)?;
    let mut rows = to_grid(&backbone.forward(&image)?, grid)?;
    rows.pop().ok_or_else(|| Error::Internal("detector: no features".into()))
}

/// Mean over the tokens: `[T, D]` to `[D]`.
pub fn mean_token(features: &[f32], dim: usize) -> Vec<f32> {
    let mut mean = vec![0.0; dim];
    crate::kernels::pointwise::add_column_sums(features, &mut mean);
    let tokens = (features.len() / dim) as f32;
    mean.iter_mut().for_each(|m| *m /= tokens);
    mean
}

/// The nearest class, and the second where it is about as near.
fn nearest(distances: &[f32]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..distances.len()).collect();
    order.sort_by(|&a, &b| distances[a].total_cmp(&distances[b]));
    let limit = distances[order[0]] * CANDIDATE_RATIO;
    order.into_iter().take(2).filter(|&c| distances[c] <= limit).collect()
}

/// Cells outside the part of the input that shows the frame do not count.
fn blank_border(distance: &mut [f32], grid: usize, geometry: Geometry, size: usize) {
    let [x, y, w, h] = geometry.valid.map(|v| v * grid as f64 / size as f64);
    for (i, d) in distance.iter_mut().enumerate() {
        let (cx, cy) = ((i % grid) as f64 + 0.5, (i / grid) as f64 + 0.5);
        if cx < x || cy < y || cx > x + w || cy > y + h {
            *d = 0.0;
        }
    }
}
