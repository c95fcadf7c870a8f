//! The trained network: from a frame to a map and a score, before any threshold.

use std::collections::BTreeMap;

use candle_core::Tensor;

use super::{ClassSource, Look, MAP_SCALE, Map, Mask, Program};
use crate::bundle::Card;
use crate::config::{Config, Decision, Distance, ScoreKind};
use crate::device::Place;
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
    /// Where it computes.
    pub place: Place,
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

/// What was measured of a batch where it was seen; what is left to do is the host's. Samples are counted as in the questions.
#[derive(Debug, Default)]
pub struct Measured {
    /// Distances of each sample to the prototypes.
    distances: Vec<Vec<f32>>,
    /// Classes that each sample is compared with, and how they were found.
    candidates: Vec<(Vec<usize>, ClassSource)>,
    /// [`Network::cells`] `[T]` by sample and class.
    cells: BTreeMap<(usize, usize), Vec<f32>>,
}

/// A frame to be judged, beside its values.
#[derive(Clone, Copy)]
pub struct Question<'a> {
    /// Where the input lies in the frame.
    pub geometry: Geometry,
    /// How the class is found.
    pub choice: Choice,
    /// What the denoiser is asked.
    pub program: &'a Program,
    /// Replaces the network's own.
    pub mask: Option<&'a Mask>,
}

/// The values of a batch. On a GPU they may be on their way still: nobody has waited for them.
pub struct Seen {
    pub(crate) values: Tensor, // [B, T, D]
    pub(crate) means: Tensor,  // [B, D]
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
        Preprocess::of(&self.config.input)
    }

    /// Values `[B, T, D]` of prepared frames.
    ///
    /// # Errors
    /// When a frame is not of the model's size, or the device fails.
    pub fn values(&self, inputs: &[&Prepared]) -> Result<Tensor> {
        let size = self.config.input.size;
        let frames: Vec<&Frame> = inputs.iter().map(|input| &input.frame).collect();
        if let Some(other) = frames.iter().find(|frame| (frame.width(), frame.height()) != (size, size)) {
            let (w, h) = (other.width(), other.height());
            return Err(Error::Internal(format!("detector: an input of {w}x{h} for a model of {size}x{size}")));
        }
        self.space.values(&frames)
    }

    /// Distances of the mean of an image's cells `[D]` to the prototypes: root mean square over the channels.
    pub fn prototype_distances(&self, mean: &[f32]) -> Vec<f32> {
        let distance =
            |p: &Vec<f32>| (p.iter().zip(mean).map(|(p, m)| (p - m) * (p - m)).sum::<f32>() / mean.len() as f32).sqrt();
        self.prototypes.iter().map(distance).collect()
    }

    /// How far each cell of samples `[B, T, D]` is from what was rebuilt, by the statistics of one class: `[B, T]`.
    ///
    /// # Errors
    /// When shapes do not fit or the device fails.
    pub fn reconstruction_distance(&self, values: &Tensor, residuals: &Tensor, class: usize) -> Result<Vec<f32>> {
        let host = |tensor: &Tensor| tensor.flatten_all()?.to_vec1::<f32>();
        Ok(match self.config.detection.distance {
            Distance::Mahalanobis => self.fields[class].distances(residuals)?,
            Distance::L2 => root_mean_squares(&host(residuals)?, self.config.dim()),
            // Of raw features: about the mean, where normalised ones are short, an angle says nothing.
            Distance::Cosine => {
                let raw = |values: &Tensor| Ok::<_, Error>(self.space.denormalise(&host(values)?));
                cosine_distances(&raw(values)?, &raw(&(values - residuals)?)?, &self.space.scales())
            }
        })
    }

    /// What the maps are made of, `[B, T]`, for samples' values `[B, T, D]` and what the denoiser made of them.
    ///
    /// # Errors
    /// When shapes do not fit or the device fails.
    pub fn cells(&self, values: &Tensor, look: &Look, class: usize) -> Result<Vec<f32>> {
        let (detection, tokens) = (&self.config.detection, self.config.tokens());
        let rebuilt = || self.reconstruction_distance(values, &look.residuals, class);
        let mean = |term: usize| self.term_means.get(class).and_then(|m| m.get(term)).copied().unwrap_or(1.0);
        let errors = || look.noise_errors.iter().map(|e| e.flatten_all()?.to_vec1::<f32>());
        // The mean over the levels of the noise error, each in units of its mean over good parts.
        let diffusion = || -> Result<Vec<f32>> {
            let mut sum = vec![0.0; values.dim(0)? * tokens];
            for (level, errors) in errors().enumerate() {
                for (s, e) in sum.iter_mut().zip(errors?) {
                    *s += e.sqrt() / mean(1 + level) / look.noise_errors.len() as f32;
                }
            }
            Ok(sum)
        };
        let weight = detection.diffusion_weight as f32;
        Ok(match detection.score {
            ScoreKind::Reconstruction => rebuilt()?,
            ScoreKind::Diffusion => diffusion()?,
            ScoreKind::Sum => rebuilt()?.iter().zip(diffusion()?).map(|(r, d)| r / mean(0) + weight * d).collect(),
            ScoreKind::Literal => {
                let first = errors().next().transpose()?.unwrap_or_default();
                let image = |sample: usize| {
                    let errors = first.get(sample * tokens..(sample + 1) * tokens).unwrap_or(&[0.0]);
                    errors.iter().sum::<f32>() / errors.len() as f32
                };
                let squares = root_mean_squares(&look.residuals.flatten_all()?.to_vec1::<f32>()?, self.config.dim());
                let samples = squares.chunks_exact(tokens).enumerate();
                samples
                    .flat_map(|(i, r)| {
                        let image = image(i);
                        r.iter().map(move |r| r * r + weight * image)
                    })
                    .collect()
            }
        })
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
        let question = Question { geometry: prepared.geometry, choice, program, mask };
        let mut found = self.judge(&self.see(&[prepared])?, &[question], calibrated)?;
        found.pop().unwrap_or_else(|| Err(Error::Internal("detector: a frame without an answer".into())))
    }

    /// Looks at frames that are already the model's input, as the device likes it: see [`Place::spread`].
    pub fn inspect_each(&self, inputs: &[Prepared], choice: Choice, program: &Program) -> Vec<Result<Inspection>> {
        self.place.spread(inputs, |some| {
            let question = |input: &Prepared| Question { geometry: input.geometry, choice, program, mask: None };
            let questions: Vec<Question<'_>> = some.iter().map(question).collect();
            let seen = self.see(&some.iter().collect::<Vec<_>>());
            let found = seen.and_then(|seen| self.judge(&seen, &questions, |_, score| score));
            found.unwrap_or_else(|error| error.for_all(some.len()))
        })
    }

    /// Sends a batch on its way: what does not depend on how it is looked at.
    ///
    /// # Errors
    /// When a frame is not of the model's size, or the device fails.
    pub fn see(&self, inputs: &[&Prepared]) -> Result<Seen> {
        let values = self.values(inputs)?;
        let means = if values.device().is_cpu() {
            let dim = self.config.dim();
            let all = values.flatten_all()?.to_vec1::<f32>()?;
            let means: Vec<f32> =
                all.chunks_exact(self.config.tokens() * dim).flat_map(|v| mean_token(v, dim)).collect();
            Tensor::from_vec(means, (inputs.len(), dim), values.device())?
        } else {
            values.mean(1)?
        };
        Ok(Seen { values, means })
    }

    /// What there is to say of a batch, one answer per question.
    ///
    /// # Errors
    /// When the device fails: then there is no answer to any.
    pub fn judge(
        &self,
        seen: &Seen,
        questions: &[Question<'_>],
        calibrated: impl Fn(usize, f32) -> f32,
    ) -> Result<Vec<Result<Inspection>>> {
        Ok(self.conclude(self.measure(seen, questions)?, questions, calibrated))
    }

    /// The device's part of [`Network::judge`]; it has ended when this returns.
    ///
    /// # Errors
    /// When the device fails.
    pub fn measure(&self, seen: &Seen, questions: &[Question<'_>]) -> Result<Measured> {
        let classes = self.prototypes.len();
        let distances: Vec<Vec<f32>> =
            seen.means.to_vec2::<f32>()?.iter().map(|mean| self.prototype_distances(mean)).collect();
        let candidates = |(question, distances): (&Question<'_>, &Vec<f32>)| match question.choice {
            Choice::Known(class) => (vec![class], ClassSource::Known),
            Choice::Auto if classes == 1 => (vec![0], ClassSource::Only),
            Choice::Auto if self.pixel_minimum() => ((0..classes).collect(), ClassSource::Chosen),
            Choice::Auto => (nearest(distances, self.tells_classes()), ClassSource::Chosen),
        };
        let candidates: Vec<(Vec<usize>, ClassSource)> = questions.iter().zip(&distances).map(candidates).collect();
        let cells = self.cells_by_class(&seen.values, questions, &candidates)?;
        Ok(Measured { distances, candidates, cells })
    }

    /// The host's part of [`Network::judge`].
    pub fn conclude(
        &self,
        mut measured: Measured,
        questions: &[Question<'_>],
        calibrated: impl Fn(usize, f32) -> f32,
    ) -> Vec<Result<Inspection>> {
        let answers = questions.iter().enumerate().map(|(i, question)| {
            let Some((classes, source)) = measured.candidates.get(i) else {
                return Err(Error::Internal("detector: a question that was not measured".into()));
            };
            let cells = classes.iter().filter_map(|&class| Some((class, measured.cells.remove(&(i, class))?)));
            let cells: Vec<(usize, Vec<f32>)> = cells.collect();
            let lowest = (self.pixel_minimum() && *source == ClassSource::Chosen).then(|| {
                let lowest = |t: usize| cells.iter().map(|(_, c)| c[t]).fold(f32::INFINITY, f32::min);
                (0..self.config.tokens()).map(lowest).collect()
            });
            let mask = question.mask.or(self.mask.as_ref());
            let map = |cells| self.map(cells, question.geometry, mask);
            let scored = cells.into_iter().map(|(class, cells)| (class, map(cells)));
            let best = scored.min_by(|a, b| calibrated(a.0, a.1.0).total_cmp(&calibrated(b.0, b.1.0)));
            let Some((class, own)) = best else {
                return Err(Error::Internal("detector: a model without classes".into()));
            };
            let (score, map) = lowest.map_or(own, map);
            if !score.is_finite() {
                return Err(Error::Internal(format!("detector: the score is not finite ({score})")));
            }
            let prototype_distance = measured.distances[i][class];
            Ok(Inspection { class, source: *source, prototype_distance, score, map })
        });
        answers.collect()
    }

    fn pixel_minimum(&self) -> bool {
        self.config.detection.decision == Decision::PixelMinimum
    }

    /// Whether one image's scores for two classes differ in more than the units of the class: only then do they say which
    /// class explains it better.
    fn tells_classes(&self) -> bool {
        let detection = &self.config.detection;
        let rebuilt = matches!(detection.score, ScoreKind::Reconstruction | ScoreKind::Sum);
        self.told(0).is_some() || (rebuilt && detection.distance == Distance::Mahalanobis)
    }

    /// [`Network::cells`] of each sample for each of its classes, by sample and class. Samples that ask the same are looked
    /// at together, and the denoiser is asked once where its answer does not depend on the class.
    fn cells_by_class(
        &self,
        values: &Tensor,
        questions: &[Question<'_>],
        candidates: &[(Vec<usize>, ClassSource)],
    ) -> Result<BTreeMap<(usize, usize), Vec<f32>>> {
        let mut all = BTreeMap::new();
        let mut programs: Vec<&Program> = Vec::new();
        for question in questions {
            if !programs.iter().any(|program| std::ptr::eq(*program, question.program)) {
                programs.push(question.program);
            }
        }
        for program in programs {
            let asks = |i: &usize| std::ptr::eq(questions[*i].program, program);
            let everyone: Vec<usize> = (0..questions.len()).filter(asks).collect();
            let mut shared: Option<(Tensor, Look)> = None;
            for class in 0..self.prototypes.len() {
                let some: Vec<usize> = everyone.iter().copied().filter(|&i| candidates[i].0.contains(&class)).collect();
                if some.is_empty() {
                    continue;
                }
                let told = self.told(class);
                let asked = if told.is_none() { &everyone } else { &some };
                let (own, look) = match shared.take() {
                    Some(known) if told.is_none() => known,
                    _ => {
                        let own = rows(values, asked)?;
                        let look = self.look(&own, program, told)?;
                        (own, look)
                    }
                };
                let cells = self.cells(&own, &look, class)?;
                for (&i, cells) in asked.iter().zip(cells.chunks_exact(self.config.tokens())) {
                    if candidates[i].0.contains(&class) {
                        all.insert((i, class), cells.to_vec());
                    }
                }
                shared = Some((own, look));
            }
        }
        Ok(all)
    }
}

/// Some of the samples `[B, ...]`.
fn rows(values: &Tensor, some: &[usize]) -> Result<Tensor> {
    if some.len() == values.dim(0)? {
        return Ok(values.clone());
    }
    let indices: Vec<u32> = some.iter().map(|&i| i as u32).collect();
    Ok(values.index_select(&Tensor::new(indices, values.device())?, 0)?)
}

/// Mean over the tokens: `[T, D]` to `[D]`.
pub fn mean_token(features: &[f32], dim: usize) -> Vec<f32> {
    let mut mean = vec![0.0; dim];
    crate::kernels::pointwise::add_column_sums(features, &mut mean);
    let tokens = (features.len() / dim) as f32;
    mean.iter_mut().for_each(|m| *m /= tokens);
    mean
}

/// The nearest class, and if `two` the second where it is about as near.
fn nearest(distances: &[f32], two: bool) -> Vec<usize> {
    let mut order: Vec<usize> = (0..distances.len()).collect();
    order.sort_by(|&a, &b| distances[a].total_cmp(&distances[b]));
    let limit = distances[order[0]] * CANDIDATE_RATIO;
    order.into_iter().take(1 + usize::from(two)).filter(|&c| distances[c] <= limit).collect()
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
