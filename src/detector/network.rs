//! The trained network: from a frame to a map and a score, before any threshold.

use candle_core::{Device, Tensor};

use super::{ClassSource, MAP_SCALE, Map, Mask};
use crate::bundle::Card;
use crate::config::{Config, Distance};
use crate::diffusion::{Ddim, EpsMode, NoiseLevel, Plan, Prediction, Start, levels_in_log_snr, reconstruct};
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
    /// What counts unless the caller says otherwise; everything when absent.
    pub mask: Option<Mask>,
}

/// The noise levels that a detection visits, and what the denoiser is told at each.
pub struct Program {
    plan: Plan,
    conditions: Vec<Condition>,
}

/// How `inspect` finds the class.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Choice {
    /// This class.
    Known(usize),
    /// The class whose prototype is near and whose calibrated score is lowest.
    Auto,
}

impl Choice {
    /// The choice for a class name: `auto` or one of the classes on the card.
    ///
    /// # Errors
    /// When there is no such class; the message lists those there are.
    pub fn named(class: &str, card: &Card) -> Result<Self> {
        if class == "auto" {
            return Ok(Self::Auto);
        }
        let position = card.classes.iter().position(|c| c.name == class);
        position.map(Self::Known).ok_or_else(|| {
            let known = card.classes.iter().map(|c| c.name.as_str()).collect::<Vec<_>>().join(", ");
            Error::Usage(format!("class {class:?} is not in the model; expected auto or one of: {known}"))
        })
    }
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

    /// Residuals `x0 - x0_hat` `[B, T, D]` of normalised features `[B, T, D]`, from the noise-free start `sqrt(abar) x0`.
    ///
    /// # Errors
    /// When shapes do not fit.
    pub fn residuals(&self, features: Vec<f32>, program: &Program) -> Result<Vec<f32>> {
        let shape = self.denoiser.shape();
        let x0 = Tensor::from_vec(features, ((), shape.grid * shape.grid, shape.dim), &Device::Cpu)?;
        let batch = x0.dim(0)?;
        let mut conditions = program.conditions.iter();
        let estimate = reconstruct(&x0, &program.plan, Start::Scaled, &[], |x, _| {
            let condition =
                conditions.next().ok_or_else(|| Error::Internal("detector: a step without a condition".into()))?;
            if batch == 1 {
                self.denoiser.predict(x, condition)
            } else {
                self.denoiser.predict(x, &condition.repeat(batch)?)
            }
        })?;
        Ok((x0 - estimate)?.flatten_all()?.to_vec1()?)
    }

    /// `steps` DDIM steps from the configured level, uniform in log-SNR, the predicted noise dropped between them; the
    /// modulations of the null class are computed here, once.
    ///
    /// # Errors
    /// When `steps` is 0.
    pub fn program(&self, steps: usize) -> Result<Program> {
        let start = NoiseLevel::from_alpha_bar(self.config.detection.start_alpha_bar)?;
        let levels = levels_in_log_snr(start, self.config.diffusion.log_snr_max, steps)?;
        let plan = Plan::new(levels, Prediction::X0, Ddim::new(0.0, EpsMode::Drop)?)?;
        let asked = &plan.levels()[..plan.evaluations()];
        let condition = |l: &NoiseLevel| self.denoiser.condition(&[l.log_snr() as f32], &[self.denoiser.null_class()]);
        Ok(Program { conditions: asked.iter().map(condition).collect::<Result<_>>()?, plan })
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
    pub fn score(&self, residuals: &[f32], class: usize, geometry: Geometry, mask: Option<&Mask>) -> (f32, Map) {
        let distance = match self.config.detection.distance {
            Distance::Mahalanobis => self.fields[class].distance(residuals),
            Distance::L2 => root_mean_squares(residuals, self.space.dim()),
        };
        self.map(distance, geometry, mask)
    }

    /// Map and image score of one distance per cell `[T]`.
    pub fn map(&self, mut distance: Vec<f32>, geometry: Geometry, mask: Option<&Mask>) -> (f32, Map) {
        let (grid, detection) = (self.config.features.grid, &self.config.detection);
        let side = grid * MAP_SCALE;
        if geometry.valid[2] != geometry.valid[3] {
            blank_border(&mut distance, grid, geometry, self.config.input.size);
        }
        let sigma = (detection.smoothing_px * side as f64 / self.config.input.size as f64) as f32;
        let spread = |cells: &[f32]| smooth(&resize(cells, grid, side), side, sigma);
        let (values, score) = match mask {
            None => {
                let values = spread(&distance);
                let score = top_mean(&values, detection.top_fraction);
                (values, score)
            }
            Some(mask) => {
                let values = mask.apply(distance, grid, spread);
                let score = top_mean(&mask.counted(&values), detection.top_fraction);
                (values, score)
            }
        };
        (score, Map { side, values, geometry })
    }

    /// Looks at one frame, whole. `calibrated(class, score)` makes scores of different classes comparable.
    ///
    /// # Errors
    /// When the frame has no pixel in the region of interest, or the device fails.
    pub fn inspect(
        &self,
        frame: &Frame,
        choice: Choice,
        program: &Program,
        calibrated: impl Fn(usize, f32) -> f32,
    ) -> Result<Inspection> {
        self.inspect_prepared(&self.preprocess().apply(frame)?, choice, program, None, calibrated)
    }

    /// Looks at one frame that is already the model's input. `mask` replaces the network's own.
    ///
    /// # Errors
    /// When the device fails.
    pub fn inspect_prepared(
        &self,
        prepared: &Prepared,
        choice: Choice,
        program: &Program,
        mask: Option<&Mask>,
        calibrated: impl Fn(usize, f32) -> f32,
    ) -> Result<Inspection> {
        let size = self.config.input.size;
        if (prepared.frame.width(), prepared.frame.height()) != (size, size) {
            let (w, h) = (prepared.frame.width(), prepared.frame.height());
            return Err(Error::Internal(format!("detector: an input of {w}x{h} for a model of {size}x{size}")));
        }
        let features = self.features(prepared)?;
        let distances = self.prototype_distances(&features);
        let (candidates, source) = match choice {
            Choice::Known(class) => (vec![class], ClassSource::Known),
            Choice::Auto if distances.len() == 1 => (vec![0], ClassSource::Only),
            Choice::Auto => (nearest(&distances), ClassSource::Chosen),
        };
        let residuals = self.residuals(features, program)?;
        let mask = mask.or(self.mask.as_ref());
        let scored =
            candidates.into_iter().map(|class| (class, self.score(&residuals, class, prepared.geometry, mask)));
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
