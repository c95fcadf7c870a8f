//! The trained network: from prepared frames to anomaly maps and scores, before any threshold.
//!
//! A batch goes through three phases, so that a GPU can work on one batch while the host finishes another: `embed` sends the
//! frames and starts the backbone, `measure` waits for the device until every cell has its score, `conclude` makes the maps.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};

use candle_core::Tensor;
use rayon::prelude::*;

#[cfg(feature = "train")]
use super::ClassChoice;
use super::class::{ClassDecision, prototype_distance};
use super::map::MapBuilder;
use super::{AnomalyMap, ClassSource, Mask, Reconstruction, Reconstructor, Request, SamplerPlan, Scorer};
use crate::config::Config;
use crate::device::Device;
use crate::error::{Error, Result};
use crate::features::FeatureExtractor;
use crate::frame::{Frame, Geometry, Prepared, Preprocess};

/// What the network finds in one frame, before any threshold.
#[derive(Clone, Debug)]
pub struct Inspection {
    /// Index of the class whose statistics were used.
    pub class: usize,
    /// How the class was found.
    pub source: ClassSource,
    /// Distance of the frame's mean features to the class's prototype.
    pub prototype_distance: f32,
    /// Image score; unbounded above.
    pub score: f32,
    /// Anomaly map.
    pub map: AnomalyMap,
}

/// A trained network with the statistics of its classes.
pub struct Network {
    config: Config,
    extractor: Arc<FeatureExtractor>,
    reconstructor: Arc<Reconstructor>,
    pub(super) scorer: Scorer,
    decision: ClassDecision,
    /// Mean features `[D]` of each class.
    pub(super) prototypes: Vec<Vec<f32>>,
    maps: MapBuilder,
    pub(super) mask: Option<Mask>,
    /// By the number of steps: the configured one, and those that were asked for.
    plans: Mutex<BTreeMap<usize, Arc<SamplerPlan>>>,
}

/// The features `[B, T, D]` of a batch. On a GPU they may still be on their way.
pub struct Embeddings(pub(crate) Tensor);

/// The score of every cell of a batch of frames, for each class that a frame may be of.
#[derive(Debug, Default)]
pub struct CellScores(Vec<Result<FrameScores>>);

#[derive(Debug)]
struct FrameScores {
    source: ClassSource,
    candidates: Vec<Candidate>,
}

#[derive(Debug)]
struct Candidate {
    class: usize,
    prototype_distance: f32,
    cells: Vec<f32>, // [T]
}

impl Network {
    /// From its parts: `prototypes` are the mean features `[D]` of each class, `mask` says what counts where a request brings no
    /// mask of its own.
    ///
    /// # Errors
    /// When the parts are of different numbers of classes, or the device has no room.
    pub fn new(
        config: &Config,
        extractor: Arc<FeatureExtractor>,
        reconstructor: Arc<Reconstructor>,
        scorer: Scorer,
        prototypes: Vec<Vec<f32>>,
        mask: Option<Mask>,
    ) -> Result<Self> {
        let (classes, others) = (prototypes.len(), scorer.statistics.len());
        if classes == 0 || classes != others {
            return Err(Error::Internal(format!("detector: {classes} prototypes, statistics of {others} classes")));
        }
        let network = Self {
            extractor,
            scorer,
            decision: ClassDecision::new(config, prototypes.len()),
            prototypes,
            maps: MapBuilder::new(config),
            mask,
            plans: Mutex::default(),
            reconstructor,
            config: config.clone(),
        };
        network.plan(None)?;
        Ok(network)
    }

    /// The configuration that the network was made with.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// The device that it computes on.
    pub fn device(&self) -> &Device {
        self.reconstructor.device()
    }

    /// From frames to features.
    pub fn extractor(&self) -> &FeatureExtractor {
        &self.extractor
    }

    /// From features to their reconstruction.
    pub fn reconstructor(&self) -> &Reconstructor {
        &self.reconstructor
    }

    /// The preprocessing of its frames.
    pub fn preprocess(&self) -> Preprocess {
        Preprocess::of(&self.config.input)
    }

    /// From a reconstruction to the scores of cells.
    pub fn scorer(&self) -> &Scorer {
        &self.scorer
    }

    /// Features `[B, T, D]` of prepared frames.
    ///
    /// # Errors
    /// When a frame is not of the model's size, or the device fails.
    pub fn features(&self, inputs: &[&Prepared]) -> Result<Tensor> {
        let size = self.config.input.size;
        let frames: Vec<&Frame> = inputs.iter().map(|input| &input.frame).collect();
        if let Some(other) = frames.iter().find(|frame| [frame.width(), frame.height()] != size.sides()) {
            let (w, h) = (other.width(), other.height());
            return Err(Error::Internal(format!("detector: an input of {w}x{h} for a model of {size}")));
        }
        self.extractor.extract(&frames)
    }

    /// Image score and anomaly map of one score per cell `[T]`; without `mask` the network's own holds.
    pub fn map(&self, cells: Vec<f32>, geometry: Geometry, mask: Option<&Mask>) -> (f32, AnomalyMap) {
        self.maps.build(cells, geometry, mask.or(self.mask.as_ref()))
    }

    /// Inspects frames, each by itself as [`Device::spread`] does. Where the class is to be chosen, scores of several classes are
    /// compared as they are.
    pub fn inspect(&self, frames: &[(&Prepared, &Request)]) -> Vec<Result<Inspection>> {
        self.spread(frames, |scores, some| self.conclude(scores, some, |_, score| score, |found, _| found))
    }

    /// What a good part of a known class looks like to the line: the inspection as a part of that class, and one as a part of each
    /// class that the network would choose from if it were not told (none where there is one class only).
    #[cfg(feature = "train")]
    pub(crate) fn inspect_candidates(
        &self,
        frames: &[(&Prepared, usize)],
    ) -> Vec<Result<(Inspection, Vec<Inspection>)>> {
        let told =
            |(_, class): &(&Prepared, usize)| Request { class: ClassChoice::Known(*class), ..Request::default() };
        let (told, untold): (Vec<Request>, Request) = (frames.iter().map(told).collect(), Request::default());
        let requests: Vec<_> = frames.iter().zip(&told).map(|((input, _), request)| (*input, request)).collect();
        self.device().spread(&requests, |some| {
            let inputs: Vec<&Prepared> = some.iter().map(|(input, _)| *input).collect();
            let lined: Vec<_> = inputs.iter().map(|input| (*input, &untold)).collect();
            let measured = self.embed(&inputs).and_then(|embeddings| {
                let chosen =
                    if self.decision == ClassDecision::Only { None } else { Some(self.measure(&embeddings, &lined)?) };
                Ok((self.measure(&embeddings, some)?, chosen))
            });
            let (own, chosen) = match measured {
                Ok(both) => both,
                Err(error) => return error.for_all(some.len()),
            };
            let own = self.conclude(own, some, |_, score| score, |found, _| found);
            let chosen = chosen.map(|CellScores(scores)| scores).unwrap_or_default();
            let each = |scores: Result<FrameScores>, input: &Prepared| -> Result<Vec<Inspection>> {
                let FrameScores { source, candidates } = scores?;
                // Where cells of several classes make one map, there is one answer.
                let split = self.decision != ClassDecision::PixelMinimum;
                let sets = if split { candidates.into_iter().map(|one| vec![one]).collect() } else { vec![candidates] };
                let decide = |candidates| {
                    self.decide(FrameScores { source, candidates }, input.geometry, None, &|_, score| score)
                };
                sets.into_iter().map(decide).collect()
            };
            let mut chosen = chosen.into_iter().zip(&inputs).map(|(scores, input)| each(scores, input));
            own.into_iter().map(|own| Ok((own?, chosen.next().unwrap_or(Ok(Vec::new()))?))).collect()
        })
    }

    /// The same network with what known defects have taught, see [`Scorer::with_known_defects`].
    ///
    /// # Errors
    /// When the terms do not fit.
    #[cfg(feature = "train")]
    pub(crate) fn with_known_defects(self, terms: Vec<Option<Vec<f32>>>) -> Result<Self> {
        Ok(Self { scorer: self.scorer.with_known_defects(terms)?, ..self })
    }

    /// Whitened residuals `[T, D]` and distances `[T]` of the cells of each frame, as a part of one class.
    ///
    /// # Errors
    /// When a frame is not of the model's size, or the device fails.
    #[cfg(feature = "train")]
    pub(crate) fn cells(&self, inputs: &[&Prepared], class: usize) -> Result<Vec<(Vec<f32>, Vec<f32>)>> {
        let plan = self.plan(None)?;
        let some = |inputs: &[&Prepared]| {
            let features = self.features(inputs)?;
            let condition = self.reconstructor.condition_class(class);
            let reconstruction = self.reconstructor.reconstruct(&features, &plan, condition)?;
            self.scorer.whitened(&reconstruction.residuals, class)
        };
        let found = self.device().spread(inputs, |inputs| match some(inputs) {
            Ok(cells) => cells.into_iter().map(Ok).collect(),
            Err(error) => error.for_all(inputs.len()),
        });
        found.into_iter().collect()
    }

    /// All phases for frames in groups that suit the device; `conclude` makes the answers of a group.
    pub(super) fn spread<R: Send>(
        &self,
        frames: &[(&Prepared, &Request)],
        conclude: impl Fn(CellScores, &[(&Prepared, &Request)]) -> Vec<Result<R>> + Send + Sync,
    ) -> Vec<Result<R>> {
        self.device().spread(frames, |some| {
            let inputs: Vec<&Prepared> = some.iter().map(|(input, _)| *input).collect();
            match self.embed(&inputs).and_then(|embeddings| self.measure(&embeddings, some)) {
                Ok(scores) => conclude(scores, some),
                Err(error) => error.for_all(some.len()),
            }
        })
    }

    /// First phase: sends a batch to the device and starts on its features, without waiting for them.
    ///
    /// # Errors
    /// When a frame is not of the model's size, or the device fails.
    pub(crate) fn embed(&self, inputs: &[&Prepared]) -> Result<Embeddings> {
        self.features(inputs).map(Embeddings)
    }

    /// Second phase: scores every cell for the classes that the frame may be of. The device is done when this returns.
    ///
    /// # Errors
    /// When the device fails. What is wrong with one request is the answer to that request.
    pub(crate) fn measure(
        &self,
        Embeddings(features): &Embeddings,
        frames: &[(&Prepared, &Request)],
    ) -> Result<CellScores> {
        let candidates = |(mean, (_, request)): (Vec<f32>, &(&Prepared, &Request))| {
            let distances: Vec<f32> = self.prototypes.iter().map(|p| prototype_distance(p, &mean)).collect();
            let (classes, source) = self.decision.candidates(request.class, &distances);
            let candidate = |class: usize| {
                let unknown = || Error::Internal(format!("detector: class {class} of a model of {}", distances.len()));
                let prototype_distance = *distances.get(class).ok_or_else(unknown)?;
                Ok(Candidate { class, prototype_distance, cells: Vec::new() })
            };
            Ok(FrameScores { source, candidates: classes.into_iter().map(candidate).collect::<Result<_>>()? })
        };
        let mut scores: Vec<Result<FrameScores>> = means(features)?.into_iter().zip(frames).map(candidates).collect();
        // Frames with the same number of steps are reconstructed together.
        let all_steps: BTreeSet<Option<usize>> = frames.iter().map(|(_, request)| request.ddim_steps).collect();
        for steps in all_steps {
            let (group, mut own): (Vec<u32>, Vec<&mut Result<FrameScores>>) = (0..)
                .zip(scores.iter_mut().zip(frames))
                .filter_map(|(i, (scores, (_, request)))| (request.ddim_steps == steps).then_some((i, scores)))
                .unzip();
            match self.plan(steps) {
                Ok(plan) => self.measure_group(&rows(features, &group)?, &plan, &mut own)?,
                Err(error) => {
                    own.into_iter().zip(error.for_all(group.len())).for_each(|(scores, failed)| *scores = failed)
                }
            }
        }
        Ok(CellScores(scores))
    }

    /// Scores the cells of frames with `features` `[n, T, D]`, which share a plan.
    fn measure_group(
        &self,
        features: &Tensor,
        plan: &SamplerPlan,
        frames: &mut [&mut Result<FrameScores>],
    ) -> Result<()> {
        let mut shared: Option<Reconstruction> = None;
        for class in 0..self.prototypes.len() {
            let wanted = |frame: &Result<FrameScores>| {
                frame.as_ref().is_ok_and(|frame| frame.candidates.iter().any(|candidate| candidate.class == class))
            };
            let some: Vec<u32> = (0..).zip(frames.iter()).filter_map(|(i, f)| wanted(f).then_some(i)).collect();
            if some.is_empty() {
                continue;
            }
            let condition = self.reconstructor.condition_class(class);
            // A denoiser that is not told the class reconstructs every frame once, for all classes.
            let indices = if condition.is_some() { some } else { (0..frames.len() as u32).collect() };
            let own = rows(features, &indices)?;
            let reconstruction = match shared.take() {
                Some(known) if condition.is_none() => known,
                _ => self.reconstructor.reconstruct(&own, plan, condition)?,
            };
            let cells = self.scorer.cells(&own, &reconstruction, class)?;
            for (&i, cells) in indices.iter().zip(cells.chunks_exact(self.config.tokens())) {
                let frame = frames.get_mut(i as usize).and_then(|frame| frame.as_mut().ok());
                let candidates = frame.into_iter().flat_map(|frame| &mut frame.candidates);
                candidates.filter(|c| c.class == class).for_each(|candidate| candidate.cells = cells.to_vec());
            }
            shared = Some(reconstruction);
        }
        Ok(())
    }

    /// Third phase, on the host: maps, scores and the decision between classes, one answer per frame. `calibrated(class, score)`
    /// makes the scores of different classes comparable; `finish` turns an inspection into the answer.
    pub(super) fn conclude<R: Send>(
        &self,
        scores: CellScores,
        frames: &[(&Prepared, &Request)],
        calibrated: impl Fn(usize, f32) -> f32 + Sync,
        finish: impl Fn(Inspection, &Request) -> R + Sync,
    ) -> Vec<Result<R>> {
        let answer = |(scores, (prepared, request)): (Result<FrameScores>, &(&Prepared, &Request))| {
            let found = self.decide(scores?, prepared.geometry, request.mask.as_ref(), &calibrated)?;
            Ok(finish(found, request))
        };
        scores.0.into_par_iter().zip(frames).map(answer).collect()
    }

    fn decide(
        &self,
        FrameScores { source, candidates }: FrameScores,
        geometry: Geometry,
        mask: Option<&Mask>,
        calibrated: &impl Fn(usize, f32) -> f32,
    ) -> Result<Inspection> {
        let lowest = (self.decision == ClassDecision::PixelMinimum && source == ClassSource::Chosen).then(|| {
            let lowest = |t: usize| candidates.iter().map(|c| c.cells[t]).fold(f32::INFINITY, f32::min);
            (0..self.config.tokens()).map(lowest).collect()
        });
        let map = |cells| self.map(cells, geometry, mask);
        let scored: Vec<_> = candidates.into_iter().map(|c| (c.class, c.prototype_distance, map(c.cells))).collect();
        // Of a class without a score nobody knows whether it is the better one.
        if let Some((_, _, (score, _))) = scored.iter().find(|(_, _, (score, _))| !score.is_finite()) {
            return Err(Error::Internal(format!("detector: the score is not finite ({score})")));
        }
        let best = scored.into_iter().min_by(|a, b| calibrated(a.0, a.2.0).total_cmp(&calibrated(b.0, b.2.0)));
        let Some((class, prototype_distance, own)) = best else {
            return Err(Error::Internal("detector: a frame of no class".into()));
        };
        let (score, map) = lowest.map_or(own, map);
        if !score.is_finite() {
            return Err(Error::Internal(format!("detector: the score is not finite ({score})")));
        }
        Ok(Inspection { class, source, prototype_distance, score, map })
    }

    /// The plan for a number of steps, the configured one if there is none; made when it is first asked for.
    ///
    /// # Errors
    /// When so many steps are not possible.
    pub(super) fn plan(&self, steps: Option<usize>) -> Result<Arc<SamplerPlan>> {
        let steps = steps.unwrap_or(self.config.detection.ddim_steps);
        let plans = || self.plans.lock().unwrap_or_else(PoisonError::into_inner);
        let known = plans().get(&steps).cloned(); // no lock while a plan is made: that is work for many threads
        if let Some(plan) = known {
            return Ok(plan);
        }
        let plan = Arc::new(self.reconstructor.plan(steps)?);
        plans().insert(steps, plan.clone());
        Ok(plan)
    }
}

/// Some of the samples `[B, ...]`, by their index.
fn rows(values: &Tensor, some: &[u32]) -> Result<Tensor> {
    if some.len() == values.dim(0)? {
        return Ok(values.clone());
    }
    Ok(values.index_select(&Tensor::new(some, values.device())?, 0)?)
}

/// Mean of each sample's features `[B, T, D]` over the cells, B of `[D]`, computed where they are.
fn means(features: &Tensor) -> Result<Vec<Vec<f32>>> {
    if !features.device().is_cpu() {
        return Ok(features.mean(1)?.to_vec2()?);
    }
    let (_, tokens, dim) = features.dims3()?;
    let values = features.flatten_all()?.to_vec1::<f32>()?;
    Ok(values.chunks_exact(tokens * dim).map(|values| mean_over_cells(values, dim)).collect())
}

/// Mean of features over the cells: `[T, D]` to `[D]`.
pub(crate) fn mean_over_cells(features: &[f32], dim: usize) -> Vec<f32> {
    let mut mean = vec![0.0; dim];
    crate::kernels::pointwise::add_column_sums(features, &mut mean);
    let cells = (features.len() / dim) as f32;
    mean.iter_mut().for_each(|m| *m /= cells);
    mean
}
