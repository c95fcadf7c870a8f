//! The trained network: from prepared frames to anomaly maps and scores, before any threshold.
//!
//! A batch goes through three phases, so that a GPU can work on one batch while the host finishes another: `embed` sends the
//! frames and starts the backbone, `measure` waits for the device until every cell has its score, `conclude` makes the maps.

use std::collections::BTreeSet;

use candle_core::Tensor;
use rayon::prelude::*;

use super::class::{ClassDecision, prototype_distance};
use super::{AnomalyMap, Branch, ClassChoice, ClassSource, Mask, Reconstruction, Request, SamplerPlan, Scorer};
use crate::config::{Config, Shapes};
use crate::device::Device;
use crate::error::{Error, Result};
use crate::frame::{Geometry, Pose, Preparation, Prepared};

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
    /// How the part lies, where it was found (`input.align`).
    pub pose: Option<Pose>,
}

/// A trained network with the statistics of its classes.
pub struct Network {
    config: Config,
    shapes: Shapes,
    /// By the number of the shape.
    branches: Vec<Branch>,
    pub(super) scorer: Scorer,
    decision: ClassDecision,
    /// Mean features `[D]` of each class.
    pub(super) prototypes: Vec<Vec<f32>>,
}

/// A frame in each shape that it is tried in, and how it is to be inspected.
pub(crate) type Asked<'a> = (&'a [Prepared], &'a Request);

/// The features of a batch, those of one shape together. On a GPU they may still be on their way.
#[derive(Default)]
pub struct Embeddings(Vec<Embedded>);

/// Those in one shape.
struct Embedded {
    /// Number of the shape.
    shape: usize,
    /// The frames that are tried in it.
    frames: Vec<usize>,
    features: Tensor, // [B, T, D]
}

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
    /// From its parts: a branch for each of the shapes; `prototypes` are the mean features `[D]` of each class.
    ///
    /// # Errors
    /// When the parts are of different numbers of classes or shapes.
    pub fn new(
        config: &Config,
        shapes: Shapes,
        branches: Vec<Branch>,
        scorer: Scorer,
        prototypes: Vec<Vec<f32>>,
    ) -> Result<Self> {
        let (classes, others) = (prototypes.len(), scorer.statistics.len());
        if classes == 0 || classes != others || classes != shapes.classes() {
            return Err(Error::Internal(format!("detector: {classes} prototypes, statistics of {others} classes")));
        }
        if branches.iter().map(Branch::input).ne(shapes.distinct().iter().map(|shape| shape.input)) {
            return Err(Error::Internal(format!("detector: {} branches do not fit the shapes", branches.len())));
        }
        let decision = ClassDecision::new(config, classes);
        Ok(Self { config: config.clone(), shapes, branches, scorer, decision, prototypes })
    }

    /// Looks with other branches, of the same shapes, and gives those that it had: to see what the same statistics make of another
    /// precision.
    #[cfg(feature = "train")]
    pub(crate) fn exchange(&mut self, branches: &mut Vec<Branch>) {
        std::mem::swap(&mut self.branches, branches);
    }

    /// The configuration that the network was made with.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// The device that it computes on.
    pub fn device(&self) -> &Device {
        self.branches[0].reconstructor().device()
    }

    /// The shapes of its input.
    pub fn shapes(&self) -> &Shapes {
        &self.shapes
    }

    /// The network in each shape of its input.
    pub fn branches(&self) -> &[Branch] {
        &self.branches
    }

    /// The network in the shape of a class.
    pub fn branch(&self, class: usize) -> &Branch {
        &self.branches[self.shapes.of(class)]
    }

    /// The branch of an input.
    fn branch_for(&self, input: &Prepared) -> Result<&Branch> {
        let lost = || Error::Internal(format!("detector: an input of shape {}, which there is not", input.shape));
        self.branches.get(input.shape).ok_or_else(lost)
    }

    /// From frames to its inputs.
    pub fn preparation(&self) -> Preparation {
        let templates = self.branches.iter().filter_map(Branch::template).cloned().collect();
        Preparation::new(&self.config.input, self.shapes.clone()).with_templates(templates)
    }

    /// From a reconstruction to the scores of cells.
    pub fn scorer(&self) -> &Scorer {
        &self.scorer
    }

    /// Features `[B, T, D]` of inputs of one shape.
    ///
    /// # Errors
    /// When inputs are of several shapes or of none, or the device fails.
    pub fn features(&self, inputs: &[&Prepared]) -> Result<Tensor> {
        let first = inputs.first().ok_or_else(|| Error::Internal("detector: no input".into()))?;
        self.branch_for(first)?.features(inputs)
    }

    /// Image score and anomaly map of one score per cell `[T]` of an input of a class.
    pub fn map(&self, class: usize, cells: Vec<f32>, geometry: Geometry) -> (f32, AnomalyMap) {
        self.branch(class).map(cells, geometry, None)
    }

    /// Inspects frames, each by itself as [`Device::spread`] does. Where the class is to be chosen, scores of several classes are
    /// compared as they are.
    pub fn inspect(&self, frames: &[(&[Prepared], &Request)]) -> Vec<Result<Inspection>> {
        self.spread(frames, |scores, some| self.conclude(scores, some, |_, score| score, |found, _| found))
    }

    /// What a good part of a known class looks like to the line: the inspection as a part of that class, and one as a part of each
    /// class that the network would choose from if it were not told (none where there is one class only). The first of its inputs
    /// is that of its class, the others are of the shapes that it would be tried in.
    #[cfg(feature = "train")]
    pub(crate) fn inspect_candidates(
        &self,
        frames: &[(&[Prepared], usize)],
    ) -> Vec<Result<(Inspection, Vec<Inspection>)>> {
        let told =
            |(_, class): &(&[Prepared], usize)| Request { class: ClassChoice::Known(*class), ..Request::default() };
        let (told, untold): (Vec<Request>, Request) = (frames.iter().map(told).collect(), Request::default());
        let requests: Vec<_> = frames.iter().zip(&told).map(|((inputs, _), request)| (*inputs, request)).collect();
        self.device().spread(&requests, |some| {
            let inputs: Vec<&[Prepared]> = some.iter().map(|(inputs, _)| *inputs).collect();
            let lined: Vec<_> = inputs.iter().map(|inputs| (*inputs, &untold)).collect();
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
            let each = |scores: Result<FrameScores>, inputs: &[Prepared]| -> Result<Vec<Inspection>> {
                let FrameScores { source, candidates } = scores?;
                // Where cells of several classes make one map, there is one answer.
                let split = self.decision != ClassDecision::PixelMinimum;
                let sets = if split { candidates.into_iter().map(|one| vec![one]).collect() } else { vec![candidates] };
                let decide =
                    |candidates| self.decide(FrameScores { source, candidates }, inputs, None, &|_, score| score);
                sets.into_iter().map(decide).collect()
            };
            let mut chosen = chosen.into_iter().zip(&inputs).map(|(scores, inputs)| each(scores, inputs));
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
        let (branch, reconstructor) = (self.branch(class), self.branch(class).reconstructor());
        let plan = branch.plan(None)?;
        let some = |inputs: &[&Prepared]| {
            let features = branch.features(inputs)?;
            let condition = reconstructor.condition_class(class);
            let reconstruction = reconstructor.reconstruct(&features, &plan, condition)?;
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
        frames: &[Asked<'_>],
        conclude: impl Fn(CellScores, &[Asked<'_>]) -> Vec<Result<R>> + Send + Sync,
    ) -> Vec<Result<R>> {
        self.device().spread(frames, |some| {
            let inputs: Vec<&[Prepared]> = some.iter().map(|(inputs, _)| *inputs).collect();
            match self.embed(&inputs).and_then(|embeddings| self.measure(&embeddings, some)) {
                Ok(scores) => conclude(scores, some),
                Err(error) => error.for_all(some.len()),
            }
        })
    }

    /// First phase: sends a batch to the device and starts on its features, without waiting for them.
    ///
    /// # Errors
    /// When an input is of no shape of the network, or the device fails.
    pub(crate) fn embed(&self, frames: &[&[Prepared]]) -> Result<Embeddings> {
        for input in frames.iter().flat_map(|inputs| inputs.iter()) {
            self.branch_for(input)?;
        }
        let mut all = Vec::with_capacity(self.branches.len());
        for (shape, branch) in self.branches.iter().enumerate() {
            let own = |inputs: &[Prepared]| inputs.iter().position(|input| input.shape == shape);
            let own = frames.iter().enumerate().filter_map(|(frame, inputs)| Some((frame, &inputs[own(inputs)?])));
            let (frames, inputs): (Vec<usize>, Vec<&Prepared>) = own.unzip();
            if !frames.is_empty() {
                all.push(Embedded { shape, frames, features: branch.features(&inputs)? });
            }
        }
        Ok(Embeddings(all))
    }

    /// Second phase: scores every cell for the classes that the frame may be of. The device is done when this returns.
    ///
    /// # Errors
    /// When the device fails. What is wrong with one request is the answer to that request.
    pub(crate) fn measure(&self, Embeddings(all): &Embeddings, frames: &[Asked<'_>]) -> Result<CellScores> {
        // Of the classes of the shapes that a frame is not tried in nobody knows how near they are.
        let mut distances = vec![vec![f32::INFINITY; self.prototypes.len()]; frames.len()];
        // Nor of those whose part is not found, where that of another class is.
        let counts = |frame: usize, shape: usize| {
            let (inputs, request) = frames[frame];
            let lost = |input: &Prepared| input.lost && input.shape == shape;
            let known = request.class != ClassChoice::Auto;
            known || !inputs.iter().any(lost) || inputs.iter().all(|input| input.lost)
        };
        for Embedded { shape, frames, features } in all {
            for (&frame, mean) in frames.iter().zip(means(features)?) {
                if !counts(frame, *shape) {
                    continue;
                }
                for class in self.shapes.members(*shape) {
                    distances[frame][class] = prototype_distance(&self.prototypes[class], &mean);
                }
            }
        }
        let candidates = |(distances, (_, request)): (Vec<f32>, &Asked<'_>)| {
            let (classes, source) = self.decision.candidates(request.class, &distances);
            let candidate = |class: usize| {
                let unknown = || Error::Internal(format!("detector: class {class} of a model of {}", distances.len()));
                let prototype_distance = *distances.get(class).ok_or_else(unknown)?;
                if prototype_distance == f32::INFINITY {
                    return Err(Error::Internal(format!("detector: no input of the shape of class {class}")));
                }
                Ok(Candidate { class, prototype_distance, cells: Vec::new() })
            };
            Ok(FrameScores { source, candidates: classes.into_iter().map(candidate).collect::<Result<_>>()? })
        };
        let mut scores: Vec<Result<FrameScores>> = distances.into_iter().zip(frames).map(candidates).collect();
        // Frames of one shape with the same number of steps are reconstructed together.
        let all_steps: BTreeSet<Option<usize>> = frames.iter().map(|(_, request)| request.ddim_steps).collect();
        for steps in all_steps {
            for Embedded { shape, frames: embedded, features } in all {
                let asks = |frame: usize| frames[frame].1.ddim_steps == steps;
                let (group, own): (Vec<u32>, Vec<usize>) =
                    (0..).zip(embedded).filter_map(|(row, &frame)| asks(frame).then_some((row, frame))).unzip();
                if group.is_empty() {
                    continue;
                }
                match self.branches[*shape].plan(steps) {
                    Ok(plan) => self.measure_group(*shape, &rows(features, &group)?, &plan, &own, &mut scores)?,
                    Err(error) => {
                        own.iter().zip(error.for_all(own.len())).for_each(|(&frame, failed)| scores[frame] = failed)
                    }
                }
            }
        }
        Ok(CellScores(scores))
    }

    /// Scores the cells of frames with `features` `[n, T, D]` in one shape, which share a plan: `own` are their places in `scores`.
    fn measure_group(
        &self,
        shape: usize,
        features: &Tensor,
        plan: &SamplerPlan,
        own: &[usize],
        scores: &mut [Result<FrameScores>],
    ) -> Result<()> {
        let (reconstructor, tokens) = (self.branches[shape].reconstructor(), features.dim(1)?);
        let mut shared: Option<Reconstruction> = None;
        for class in self.shapes.members(shape) {
            let wanted = |frame: &Result<FrameScores>| {
                frame.as_ref().is_ok_and(|frame| frame.candidates.iter().any(|candidate| candidate.class == class))
            };
            let some: Vec<u32> =
                (0..).zip(own).filter_map(|(row, &frame)| wanted(&scores[frame]).then_some(row)).collect();
            if some.is_empty() {
                continue;
            }
            let condition = reconstructor.condition_class(class);
            // A denoiser that is not told the class reconstructs every frame once, for all classes.
            let indices = if condition.is_some() { some } else { (0..own.len() as u32).collect() };
            let features = rows(features, &indices)?;
            let reconstruction = match shared.take() {
                Some(known) if condition.is_none() => known,
                _ => reconstructor.reconstruct(&features, plan, condition)?,
            };
            let cells = self.scorer.cells(&features, &reconstruction, class)?;
            for (&row, cells) in indices.iter().zip(cells.chunks_exact(tokens)) {
                let frame = scores.get_mut(own[row as usize]).and_then(|frame| frame.as_mut().ok());
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
        frames: &[Asked<'_>],
        calibrated: impl Fn(usize, f32) -> f32 + Sync,
        finish: impl Fn(Inspection, &Request) -> R + Sync,
    ) -> Vec<Result<R>> {
        let answer = |(scores, (inputs, request)): (Result<FrameScores>, &Asked<'_>)| {
            let found = self.decide(scores?, inputs, request.masks.as_deref(), &calibrated)?;
            Ok(finish(found, request))
        };
        scores.0.into_par_iter().zip(frames).map(answer).collect()
    }

    fn decide(
        &self,
        FrameScores { source, candidates }: FrameScores,
        inputs: &[Prepared],
        masks: Option<&[Mask]>,
        calibrated: &impl Fn(usize, f32) -> f32,
    ) -> Result<Inspection> {
        let input_of = |class: usize| {
            let input = inputs.iter().find(|input| input.shape == self.shapes.of(class));
            input.ok_or_else(|| Error::Internal(format!("detector: no input of the shape of class {class}")))
        };
        let map = |class: usize, cells: Vec<f32>| {
            let mask = masks.and_then(|masks| masks.get(self.shapes.of(class)));
            Ok::<_, Error>(self.branch(class).map(cells, input_of(class)?.geometry, mask))
        };
        // All classes have one shape then.
        let lowest = (self.decision == ClassDecision::PixelMinimum && source == ClassSource::Chosen).then(|| {
            let lowest = |t: usize| candidates.iter().map(|c| c.cells[t]).fold(f32::INFINITY, f32::min);
            (0..candidates.first().map_or(0, |c| c.cells.len())).map(lowest).collect()
        });
        let scored = candidates.into_iter().map(|c| Ok((c.class, c.prototype_distance, map(c.class, c.cells)?)));
        let scored = scored.collect::<Result<Vec<_>>>()?;
        // Of a class without a score nobody knows whether it is the better one.
        if let Some((_, _, (score, _))) = scored.iter().find(|(_, _, (score, _))| !score.is_finite()) {
            return Err(Error::Internal(format!("detector: the score is not finite ({score})")));
        }
        let best = scored.into_iter().min_by(|a, b| calibrated(a.0, a.2.0).total_cmp(&calibrated(b.0, b.2.0)));
        let Some((class, prototype_distance, own)) = best else {
            return Err(Error::Internal("detector: a frame of no class".into()));
        };
        let (score, map) = lowest.map_or(Ok(own), |cells| map(class, cells))?;
        if !score.is_finite() {
            return Err(Error::Internal(format!("detector: the score is not finite ({score})")));
        }
        let Prepared { lost, geometry: Geometry { pose, .. }, .. } = input_of(class)?;
        let source = if *lost { ClassSource::NotLocated } else { source };
        Ok(Inspection { class, source, prototype_distance, score, map, pose: *pose })
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
