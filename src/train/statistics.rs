//! From trained weights to a model: prototypes and statistics of the training images, thresholds from those held out.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use candle_core::Tensor;

use super::{ClassScores, Context, Event, TrainingSet, class_card};
use crate::bundle::{Card, ClassCard, SCHEMA, TrainingCard};
use crate::config::{Config, ScoreKind};
use crate::detector::{
    self, ClassChoice, Network, Reconstruction, Reconstructor, Request, SamplerPlan, Scorer, mean_over_cells,
    prototype_distance, stored_noise,
};
use crate::error::Result;
use crate::features::FeatureExtractor;
use crate::model::denoiser::Denoisers;
use crate::residuals::ResidualSums;

/// Images whose residuals are computed at a time.
const STATISTICS_BATCH: usize = 16;
/// A product is unknown when it is farther from the prototype than this times the farthest good part.
const UNKNOWN_FACTOR: f32 = 2.0;

/// Measures good parts with the trained weights and writes the model to `out`.
///
/// # Errors
/// When the file cannot be written or the device fails; `Error::Interrupted` when asked to stop.
pub fn finish(
    config: &Config,
    set: &TrainingSet,
    averages: &BTreeMap<String, Tensor>,
    out: &Path,
    context: Context<'_>,
) -> Result<()> {
    let placed = |(name, tensor): (&String, &Tensor)| Ok((name.clone(), set.device.weight(tensor)?));
    let weights = averages.iter().map(placed).collect::<Result<BTreeMap<String, Tensor>>>()?;
    let denoisers = Denoisers::new(config, set.names.len(), |name| weights.get(name).cloned())?;
    let reconstructor = Reconstructor::new(config, &set.device, denoisers, stored_noise(config))?;
    let extractor = set.extractor(config)?;
    let passes = if needs_term_means(config) { 2 } else { 1 };
    let mut progress =
        Progress { context, done: 0, total: passes * set.images.features.len() + set.images.frames.len() };
    let (scorer, prototypes, farthest) = class_statistics(config, set, &extractor, &reconstructor, &mut progress)?;
    let network = Network::new(config, extractor, reconstructor, scorer, prototypes, set.mask.clone())?;
    let classes = thresholds(config, set, &network, farthest, &mut progress)?;
    let card = Card {
        schema: SCHEMA,
        tool: concat!("diad ", env!("CARGO_PKG_VERSION")).to_owned(),
        config: config.clone(),
        backbone: set.backbone_card(config)?,
        classes,
        training: TrainingCard {
            images: set.images.features.len(),
            data_sha256: set.data_sha256.clone(),
            seed: config.training.seed,
            steps: config.training.steps,
        },
        tensors_sha256: String::new(),
    };
    detector::save(out, &card, &network, &set.weights, averages)
}

/// Images of all passes that are done, for whoever watches.
struct Progress<'a> {
    context: Context<'a>,
    done: usize,
    total: usize,
}

impl Progress<'_> {
    fn set(&mut self, done: usize) {
        self.done = done;
        self.context.observer.event(&Event::Calibration { done, total: self.total });
    }
}

/// Whether the score is made of terms in units of their mean over good parts.
fn needs_term_means(config: &Config) -> bool {
    matches!(config.detection.score, ScoreKind::Diffusion | ScoreKind::Sum)
}

/// Statistics of the training images for the scorer, and for each class its prototype and the largest distance of an image from it.
fn class_statistics(
    config: &Config,
    set: &TrainingSet,
    extractor: &Arc<FeatureExtractor>,
    reconstructor: &Reconstructor,
    progress: &mut Progress<'_>,
) -> Result<(Scorer, Vec<Vec<f32>>, Vec<f32>)> {
    let (tokens, dim) = (config.tokens(), config.dim());
    let plan = reconstructor.plan(config.detection.ddim_steps)?;
    let (mut residuals, mut prototypes, mut farthest) = (Vec::new(), Vec::new(), Vec::new());
    for (class, indices) in set.images.train.iter().enumerate() {
        let mut sums = ResidualSums::new(tokens, dim);
        let mut means = Vec::new();
        each_reconstruction(set, reconstructor, &plan, class, progress, |features, reconstruction| {
            means.extend(features.chunks_exact(tokens * dim).map(|v| mean_over_cells(v, dim)));
            sums.add(&reconstruction.residuals.flatten_all()?.to_vec1::<f32>()?);
            Ok(())
        })?;
        let mut prototype = vec![0.0; dim];
        for mean in &means {
            for (p, m) in prototype.iter_mut().zip(mean) {
                *p += m / indices.len() as f32;
            }
        }
        residuals.push(sums.finish()?);
        farthest.push(means.iter().map(|mean| prototype_distance(&prototype, mean)).fold(0.0f32, f32::max));
        prototypes.push(prototype);
    }
    let mut scorer = Scorer::new(config, residuals, extractor)?;
    if needs_term_means(config) {
        let mut term_means = Vec::new();
        for class in 0..prototypes.len() {
            let mut means = vec![0.0f64; 1 + config.detection.diffusion_alpha_bars.len()];
            let weight = 1.0 / (set.images.train[class].len() * tokens) as f64;
            each_reconstruction(set, reconstructor, &plan, class, progress, |features, reconstruction| {
                let features = reconstructor.tensor(features)?;
                let distances = scorer.distances(&features, &reconstruction.residuals, class)?;
                means[0] += distances.iter().copied().map(f64::from).sum::<f64>() * weight;
                for (mean, errors) in means[1..].iter_mut().zip(&reconstruction.noise_errors) {
                    let errors = errors.flatten_all()?.to_vec1::<f32>()?;
                    *mean += errors.iter().map(|&e| f64::from(e).sqrt()).sum::<f64>() * weight;
                }
                Ok(())
            })?;
            term_means.push(means.into_iter().map(|m| (m as f32).max(f32::MIN_POSITIVE)).collect());
        }
        scorer = scorer.with_term_means(term_means)?;
    }
    Ok((scorer, prototypes, farthest))
}

/// Thresholds of each class from the scores of its held-out images; `farthest` as of [`class_statistics`].
fn thresholds(
    config: &Config,
    set: &TrainingSet,
    network: &Network,
    mut farthest: Vec<f32>,
    progress: &mut Progress<'_>,
) -> Result<Vec<ClassCard>> {
    let images = &set.images;
    let mut cards = Vec::new();
    for (class, (name, held_out)) in set.names.iter().zip(&images.held_out).enumerate() {
        let mut scores = ClassScores::default();
        let request = Request { class: ClassChoice::Known(class), ..Request::default() };
        for group in held_out.chunks(STATISTICS_BATCH) {
            progress.context.stop.check()?;
            let inputs = group.iter().map(|&index| images.frames.get(index)).collect::<Result<Vec<_>>>()?;
            let frames: Vec<_> = inputs.iter().map(|input| (input, &request)).collect();
            for inspection in network.inspect(&frames) {
                let inspection = inspection?;
                farthest[class] = farthest[class].max(inspection.prototype_distance);
                scores.push(&inspection);
            }
            progress.set(progress.done + group.len());
        }
        let limit = farthest[class] * UNKNOWN_FACTOR;
        cards.push(class_card(name, images.train[class].len(), scores, limit, &config.calibration)?);
    }
    Ok(cards)
}

/// Reconstructs the training images of a class, some at a time, and hands their features `[n, T, D]` and the result to `f`.
fn each_reconstruction(
    set: &TrainingSet,
    reconstructor: &Reconstructor,
    plan: &SamplerPlan,
    class: usize,
    progress: &mut Progress<'_>,
    mut f: impl FnMut(&[f32], &Reconstruction) -> Result<()>,
) -> Result<()> {
    for group in set.images.train[class].chunks(STATISTICS_BATCH) {
        progress.context.stop.check()?;
        let mut features = Vec::new();
        for &index in group {
            features.extend(set.images.features.get(index)?);
        }
        let class = reconstructor.condition_class(class);
        f(&features, &reconstructor.reconstruct(&reconstructor.tensor(&features)?, plan, class)?)?;
        progress.set(progress.done + group.len());
    }
    Ok(())
}
