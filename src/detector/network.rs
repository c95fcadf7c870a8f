//! The trained network: from a frame to a map and a score, before any threshold.

use super::{ClassSource, Look, MAP_SCALE, Map, Mask, Program};
use crate::bundle::Card;
use crate::config::{Config, Decision, Distance, ScoreKind};
use crate::error::{Error, Result};
use crate::frame::{Frame, Geometry, Prepared, Preprocess};
use crate::model::denoiser::Denoisers;
use crate::score::{ResidualField, cosine_distances, resize, root_mean_squares, smooth, top_mean};
use crate::space::Space;

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
    /// What is modelled.
    pub space: Box<dyn Space>,
    /// Denoisers.
    pub denoisers: Denoisers,
    /// Noise of the start and of the diffusion score `[T, D]`, where one of them needs it.
    pub noise: Option<Vec<f32>>,
    /// Residual statistics, one per class.
    pub fields: Vec<ResidualField>,
    /// Mean over good parts of the reconstruction's distance and of the noise error at each level of the diffusion score,
    /// per class; 1 where the score does not need them.
    pub term_means: Vec<Vec<f32>>,
    /// Mean features of each class `[D]`.
    pub prototypes: Vec<Vec<f32>>,
    /// What counts unless the caller says otherwise; everything when absent.
    pub mask: Option<Mask>,
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

    /// Values `[T, D]` of a prepared frame.
    ///
    /// # Errors
    /// When the device fails.
    pub fn features(&self, prepared: &Prepared) -> Result<Vec<f32>> {
        self.space.values(&prepared.frame)
    }

    /// Distances to the prototypes: root mean square over the channels.
    pub fn prototype_distances(&self, features: &[f32]) -> Vec<f32> {
        let mean = mean_token(features, self.config.dim());
        let distance = |p: &Vec<f32>| {
            (p.iter().zip(&mean).map(|(p, m)| (p - m) * (p - m)).sum::<f32>() / mean.len() as f32).sqrt()
        };
        self.prototypes.iter().map(distance).collect()
    }

    /// How far each cell `[T]` of one sample is from what was rebuilt, by the statistics of one class.
    pub fn reconstruction_distance(&self, values: &[f32], residuals: &[f32], class: usize) -> Vec<f32> {
        match self.config.detection.distance {
            Distance::Mahalanobis => self.fields[class].distance(residuals),
            Distance::L2 => root_mean_squares(residuals, self.config.dim()),
            // Of raw features: about the mean, where normalised ones are short, an angle says nothing.
            Distance::Cosine => {
                let rebuilt: Vec<f32> = values.iter().zip(residuals).map(|(v, r)| v - r).collect();
                let raw = |values: &[f32]| self.space.denormalise(values);
                cosine_distances(&raw(values), &raw(&rebuilt), &self.space.scales())
            }
        }
    }

    /// What the map is made of, `[T]`, for one sample's values `[T, D]` and what the denoiser made of them.
    pub fn cells(&self, values: &[f32], look: &Look, class: usize) -> Vec<f32> {
        let detection = &self.config.detection;
        let rebuilt = || self.reconstruction_distance(values, &look.residuals, class);
        let mean = |term: usize| self.term_means.get(class).and_then(|m| m.get(term)).copied().unwrap_or(1.0);
        // The mean over the levels of the noise error, each in units of its mean over good parts.
        let diffusion = || {
            let mut sum = vec![0.0; self.config.tokens()];
            for (level, errors) in look.noise_errors.iter().enumerate() {
                for (s, e) in sum.iter_mut().zip(errors) {
                    *s += e.sqrt() / mean(1 + level) / look.noise_errors.len() as f32;
                }
            }
            sum
        };
        let weight = detection.diffusion_weight as f32;
        match detection.score {
            ScoreKind::Reconstruction => rebuilt(),
            ScoreKind::Diffusion => diffusion(),
            ScoreKind::Sum => rebuilt().iter().zip(diffusion()).map(|(r, d)| r / mean(0) + weight * d).collect(),
            ScoreKind::Literal => {
                let image = look.noise_errors.first().map_or(0.0, |e| e.iter().sum::<f32>() / e.len() as f32);
                let squares = root_mean_squares(&look.residuals, self.config.dim());
                squares.iter().map(|r| r * r + weight * image).collect()
            }
        }
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

    /// [`Network::cells`] for each class; the denoiser is asked once where its answer does not depend on the class.
    fn cells_by_class(&self, values: &[f32], program: &Program, classes: &[usize]) -> Result<Vec<Vec<f32>>> {
        let mut shared: Option<Look> = None;
        let mut all = Vec::with_capacity(classes.len());
        for &class in classes {
            let told = self.told(class);
            let look = match shared.take() {
                Some(look) if told.is_none() => look,
                _ => self.look(values.to_vec(), program, told)?,
            };
            all.push(self.cells(values, &look, class));
            shared = Some(look);
        }
        Ok(all)
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
        let everywhere = self.config.detection.decision == Decision::PixelMinimum && source == ClassSource::Chosen;
        let candidates = if everywhere { (0..distances.len()).collect() } else { candidates };
        let mut cells = self.cells_by_class(&features, program, &candidates)?;
        if everywhere {
            let lowest = |t: usize| cells.iter().map(|c| c[t]).fold(f32::INFINITY, f32::min);
            let lowest: Vec<f32> = (0..self.config.tokens()).map(lowest).collect();
            cells = vec![lowest; candidates.len()];
        }
        let mask = mask.or(self.mask.as_ref());
        let scored = candidates.into_iter().zip(cells);
        let scored = scored.map(|(class, cells)| (class, self.map(cells, prepared.geometry, mask)));
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
