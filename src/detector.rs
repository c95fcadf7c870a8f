//! The detector: a frame in, a verdict out. Training, evaluation and the line all score through [`Network::inspect`].

use std::path::Path;

use candle_core::{Device, Tensor};
use rayon::prelude::*;
use serde::Serialize;

use crate::bundle::{self, Card, ClassCard};
use crate::calibrate::percentile;
use crate::config::Config;
use crate::error::{Error, Result};
use crate::features::{FeatureSpace, to_grid};
use crate::frame::{Frame, Geometry, Prepared, Preprocess};
use crate::model::denoiser::{Condition, Denoiser};
use crate::model::{self, Backbone};
use crate::regions::{Region, regions};
use crate::score::{ResidualField, resize, smooth, top_mean};

/// Cells of the smoothed map per cell of the feature grid and side.
const MAP_SCALE: usize = 4;
/// A second class is tried where its prototype is at most this much farther than the nearest.
const CANDIDATE_RATIO: f32 = 1.5;

/// The answer to "is this part good?".
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// Inspected; the score is within the threshold.
    Ok,
    /// Inspected; above the warning threshold, not above the threshold.
    Warn,
    /// Inspected; above the threshold, or not a product that the model knows.
    Ng,
    /// Not inspected; never counts as good.
    Uninspected,
    /// Inspection failed; never counts as good.
    Error,
}

impl std::fmt::Display for Verdict {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Ok => "ok",
            Self::Warn => "warn",
            Self::Ng => "ng",
            Self::Uninspected => "uninspected",
            Self::Error => "error",
        })
    }
}

/// How the class of a detection was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum ClassSource {
    /// The caller named it.
    Known,
    /// The model has one class only.
    Only,
    /// Nearest prototype and calibrated score.
    Chosen,
    /// No class is near: the class reported is the nearest, the verdict is `ng`.
    UnknownProduct,
}

/// Everything about one frame.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Detection {
    /// The answer.
    pub verdict: Verdict,
    /// Image score: mean of the highest part of the map. Unbounded above, compares with `threshold`.
    pub score: f32,
    /// Above it the verdict is `ng`.
    pub threshold: f32,
    /// Above it the verdict is `warn`.
    pub warn_threshold: f32,
    /// Share of the class's held-out good parts with a lower score, 0..=100.
    pub percentile: f64,
    /// Class whose thresholds and statistics were used.
    pub class: String,
    /// How it was found.
    pub class_source: ClassSource,
    /// Defect regions in pixels of the frame, highest peak first.
    pub regions: Vec<Region>,
    /// Score above which a pixel belongs to a region.
    pub pixel_threshold: f32,
    /// The anomaly map over the model's input.
    #[serde(skip)]
    pub map: Map,
}

/// A square anomaly map over the model's input.
#[derive(Clone, Debug, PartialEq)]
pub struct Map {
    /// Cells per side.
    pub side: usize,
    /// Scores, `[side, side]`.
    pub values: Vec<f32>,
    /// Where the input lies in the frame.
    pub geometry: Geometry,
}

impl Map {
    /// The map at another size.
    pub fn resized(&self, side: usize) -> Vec<f32> {
        resize(&self.values, self.side, side)
    }

    /// The map over the whole original frame at `width` x `height`; what the model did not look at is 0.
    pub fn over_frame(&self, width: usize, height: usize) -> Vec<f32> {
        let Geometry { original, valid, shown } = self.geometry;
        let input = self.resized(self.side * MAP_SCALE);
        let cells = (self.side * MAP_SCALE) as f64 / self.input_size(valid);
        let mut out = vec![0.0; width * height];
        for y in 0..height {
            let fy = (y as f64 + 0.5) * original[1] as f64 / height as f64 - shown[1];
            for x in 0..width {
                let fx = (x as f64 + 0.5) * original[0] as f64 / width as f64 - shown[0];
                if fx < 0.0 || fy < 0.0 || fx >= shown[2] || fy >= shown[3] {
                    continue;
                }
                let side = self.side * MAP_SCALE;
                let cell = |f: f64, i: usize| {
                    (((f * valid[i + 2] / shown[i + 2] + valid[i]) * cells) as usize).min(side - 1)
                };
                out[y * width + x] = input[cell(fy, 1) * side + cell(fx, 0)];
            }
        }
        out
    }

    /// Side of the model's input: the valid part is centred and touches two opposite sides.
    fn input_size(&self, valid: [f64; 4]) -> f64 {
        valid[2].max(valid[3])
    }
}

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
        let mut distance = self.fields[class].distance(residuals);
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

/// A trained model with its thresholds, ready for frames.
pub struct Detector {
    network: Network,
    card: Card,
    conditions: Vec<(f64, Condition)>,
}

impl Detector {
    /// Opens a model file.
    ///
    /// # Errors
    /// When the file is not a model, is damaged, or is from a newer version.
    pub fn open(path: &Path) -> Result<Self> {
        let file = bundle::load(path, bundle::expected_tensors)?;
        let wrong = |reason: String| Error::model(path, reason);
        let card = file.card;
        let backbone_weights = file
            .tensors
            .iter()
            .filter_map(|(name, tensor)| Some((name.strip_prefix("backbone.")?.to_owned(), tensor.clone())))
            .collect();
        let backbone = model::backbone(&card.backbone.name, &backbone_weights, &Device::Cpu)?;
        let shape = bundle::denoiser_shape(&card);
        let (dim, grid) = (shape.dim, shape.grid);
        let denoiser = Denoiser::new(shape, |name| file.tensors.get(&format!("denoiser.{name}")).cloned())?;
        let space = FeatureSpace::load(&file.tensors, card.config.features.clamp)?;
        let get = |name: &str| {
            file.tensors.get(name).ok_or_else(|| wrong(format!("tensor {name} is missing"))).map(Tensor::flatten_all)
        };
        let mean = get("residuals.mean")??.to_vec1::<f32>()?;
        let whiten = get("residuals.whiten")??.to_vec1::<half::f16>()?;
        let prototypes = get("prototypes")??.to_vec1::<f32>()?;
        let tokens = grid * grid;
        let fields = mean
            .chunks_exact(tokens * dim)
            .zip(whiten.chunks_exact(tokens * dim * (dim + 1) / 2))
            .map(|(mean, whiten)| ResidualField::new(dim, mean.to_vec(), whiten.to_vec()))
            .collect::<Result<Vec<_>>>()?;
        let prototypes = prototypes.chunks_exact(dim).map(<[f32]>::to_vec).collect();
        let network = Network { config: card.config.clone(), backbone, space, denoiser, fields, prototypes };
        Self::new(network, card)
    }

    /// From a network and the card that holds its thresholds.
    ///
    /// # Errors
    /// When the card's classes are not the network's.
    pub fn new(network: Network, card: Card) -> Result<Self> {
        if card.classes.len() != network.fields.len() {
            let (a, b) = (card.classes.len(), network.fields.len());
            return Err(Error::Internal(format!("detector: {a} classes on the card, {b} in the network")));
        }
        let conditions = network.conditions(network.config.detection.ddim_steps)?;
        Ok(Self { network, card, conditions })
    }

    /// What is on the model's card.
    pub fn card(&self) -> &Card {
        &self.card
    }

    /// The network, without thresholds.
    pub fn network(&self) -> &Network {
        &self.network
    }

    /// Changes the number of denoiser evaluations per frame. Thresholds were measured with the model's own number.
    ///
    /// # Errors
    /// When `steps` is 0.
    pub fn set_ddim_steps(&mut self, steps: usize) -> Result<()> {
        if steps == 0 {
            return Err(Error::Usage("ddim steps must be at least 1, got 0".into()));
        }
        self.conditions = self.network.conditions(steps)?;
        Ok(())
    }

    /// The choice for a class name: `auto` or one of the model's classes.
    ///
    /// # Errors
    /// When the model does not know the name; the message lists those it knows.
    pub fn choice(&self, class: &str) -> Result<Choice> {
        if class == "auto" {
            return Ok(Choice::Auto);
        }
        let position = self.card.classes.iter().position(|c| c.name == class);
        position.map(Choice::Known).ok_or_else(|| {
            let known = self.card.classes.iter().map(|c| c.name.as_str()).collect::<Vec<_>>().join(", ");
            Error::Usage(format!("class {class:?} is not in the model; expected auto or one of: {known}"))
        })
    }

    /// Inspects frames. Each is computed by itself: its detection does not depend on the others.
    pub fn detect(&self, frames: &[Frame], choice: Choice) -> Vec<Result<Detection>> {
        frames.par_iter().map(|frame| self.detect_one(frame, choice)).collect()
    }

    fn detect_one(&self, frame: &Frame, choice: Choice) -> Result<Detection> {
        let calibrated = |class: usize, score: f32| score / self.card.classes[class].ng.value.max(f32::MIN_POSITIVE);
        let inspection = self.network.inspect(frame, choice, &self.conditions, calibrated)?;
        Ok(judge(inspection, &self.card.classes, &self.card.config))
    }
}

/// Thresholds, percentile and regions for what the network saw.
fn judge(inspection: Inspection, classes: &[ClassCard], config: &Config) -> Detection {
    let Inspection { class, source, prototype_distance, score, map } = inspection;
    let card = &classes[class];
    let unknown = prototype_distance > card.prototype_limit && source != ClassSource::Known;
    let verdict = if unknown || score > card.ng.value {
        Verdict::Ng
    } else if score > card.warn.value {
        Verdict::Warn
    } else {
        Verdict::Ok
    };
    Detection {
        verdict,
        score,
        threshold: card.ng.value,
        warn_threshold: card.warn.value,
        percentile: percentile(&card.calibration_scores, score),
        class: card.name.clone(),
        class_source: if unknown { ClassSource::UnknownProduct } else { source },
        regions: frame_regions(&map, card.pixel_threshold, config),
        pixel_threshold: card.pixel_threshold,
        map,
    }
}

/// Regions of the map in pixels of the frame.
fn frame_regions(map: &Map, threshold: f32, config: &Config) -> Vec<Region> {
    let size = config.input.size;
    let [sx, sy] = map.geometry.scale();
    let found = regions(&map.resized(size), size, size, threshold, 1);
    found
        .into_iter()
        .map(|r| {
            let [x0, y0] = map.geometry.to_original(f64::from(r.x), f64::from(r.y));
            let [x1, y1] = map.geometry.to_original(f64::from(r.x + r.width), f64::from(r.y + r.height));
            let (x, y) = (x0.floor() as u32, y0.floor() as u32);
            Region {
                x,
                y,
                width: (x1.ceil() as u32).saturating_sub(x).max(1),
                height: (y1.ceil() as u32).saturating_sub(y).max(1),
                area: ((f64::from(r.area) * sx * sy).round() as u32).max(1),
                peak: r.peak,
            }
        })
        .filter(|r| r.area as usize >= config.calibration.min_area)
        .collect()
}
