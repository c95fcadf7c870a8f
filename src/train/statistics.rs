//! From trained weights to a model: prototypes and statistics of the training images, thresholds from those held out.

use std::collections::BTreeMap;
use std::path::Path;

use candle_core::Tensor;
use rayon::prelude::*;

use super::material::Material;
use super::{ClassScores, Context, Event, class_card};
use crate::bundle::{Card, ClassCard, SCHEMA, TrainingCard};
use crate::config::{Config, ScoreKind};
use crate::detector::{self, Choice, Look, Network, Program, mean_token, needs_noise, seeded_noise};
use crate::error::Result;
use crate::frame::Preprocess;
use crate::model::denoiser::Denoisers;
use crate::score::ResidualSums;

/// Images whose residuals are computed at a time.
const STATISTICS_BATCH: usize = 16;
/// A product is unknown when it is farther from the prototype than this times the farthest good part.
const UNKNOWN_FACTOR: f32 = 2.0;

/// Measures what a model says of good parts and writes it to `out`. `skipped` gets the held-out images that cannot be read.
///
/// # Errors
/// When the file cannot be written or the device fails; `Error::Interrupted` when asked to stop.
pub fn finish(
    config: &Config,
    material: &Material,
    averages: &BTreeMap<String, Tensor>,
    out: &Path,
    context: Context<'_>,
    skipped: &mut Vec<(std::path::PathBuf, String)>,
) -> Result<()> {
    let placed = |(name, tensor): (&String, &Tensor)| Ok((name.clone(), material.place.weight(tensor)?));
    let weights = averages.iter().map(placed).collect::<Result<BTreeMap<String, Tensor>>>()?;
    let denoisers = Denoisers::new(config, material.names.len(), |name| weights.get(name).cloned())?;
    let noise = needs_noise(config);
    let noise = noise.then(|| seeded_noise(config.detection.noise_seed, 0, config.tokens() * config.dim()));
    let mut network = Network {
        config: config.clone(),
        space: material.space(config)?,
        place: material.place.clone(),
        denoisers,
        noise,
        fields: Vec::new(),
        term_means: Vec::new(),
        prototypes: Vec::new(),
        mask: material.mask.clone(),
    };
    let classes = calibrate(config, material, &mut network, context, skipped)?;
    let card = Card {
        schema: SCHEMA,
        tool: concat!("diad ", env!("CARGO_PKG_VERSION")).to_owned(),
        config: config.clone(),
        backbone: material.backbone_card(config)?,
        classes,
        training: TrainingCard {
            images: material.images.train.iter().map(Vec::len).sum(),
            data_sha256: material.data_sha256.clone(),
            seed: config.training.seed,
            steps: config.training.steps,
        },
        tensors_sha256: String::new(),
    };
    detector::save(out, &card, &network, &material.weights, averages)
}

/// Prototypes and residual statistics from the training images, thresholds from the held-out ones.
fn calibrate(
    config: &Config,
    material: &Material,
    network: &mut Network,
    context: Context<'_>,
    skipped: &mut Vec<(std::path::PathBuf, String)>,
) -> Result<Vec<ClassCard>> {
    let (images, cache) = (&material.images, &material.cache);
    let (tokens, dim) = (config.tokens(), config.dim());
    let needs_means = matches!(config.detection.score, ScoreKind::Diffusion | ScoreKind::Sum);
    let passes = if needs_means { 2 } else { 1 };
    let total = passes * cache.len() + images.calibration.iter().map(Vec::len).sum::<usize>();
    let mut done = 0;
    let program = network.program(config.detection.ddim_steps)?;
    let mut farthest = Vec::new();
    for (class, indices) in images.cached.iter().enumerate() {
        let mut sums = ResidualSums::new(tokens, dim);
        let mut means = Vec::new();
        each_look(material, network, &program, class, context, |values, look| {
            means.extend(values.chunks_exact(tokens * dim).map(|v| mean_token(v, dim)));
            sums.add(&look.residuals.flatten_all()?.to_vec1::<f32>()?);
            done += values.len() / (tokens * dim);
            context.observer.event(&Event::Calibration { done, total });
            Ok(())
        })?;
        let mut prototype = vec![0.0; dim];
        for mean in &means {
            for (p, m) in prototype.iter_mut().zip(mean) {
                *p += m / indices.len() as f32;
            }
        }
        network.fields.push(sums.finish()?);
        network.prototypes.push(prototype);
        let distances = means.iter().map(|m| network.prototype_distances(m)[class]);
        farthest.push(distances.fold(0.0f32, f32::max));
    }
    for class in 0..images.cached.len() {
        let mut means = vec![0.0f64; 1 + config.detection.diffusion_alpha_bars.len()];
        if needs_means {
            let weight = 1.0 / (images.cached[class].len() * tokens) as f64;
            each_look(material, network, &program, class, context, |values, look| {
                let distance = network.reconstruction_distance(&network.tensor(values)?, &look.residuals, class)?;
                means[0] += distance.iter().copied().map(f64::from).sum::<f64>() * weight;
                for (mean, errors) in means[1..].iter_mut().zip(&look.noise_errors) {
                    let errors = errors.flatten_all()?.to_vec1::<f32>()?;
                    *mean += errors.iter().map(|&e| f64::from(e).sqrt()).sum::<f64>() * weight;
                }
                done += values.len() / (tokens * dim);
                context.observer.event(&Event::Calibration { done, total });
                Ok(())
            })?;
        } else {
            means.fill(1.0);
        }
        network.term_means.push(means.into_iter().map(|m| (m as f32).max(f32::MIN_POSITIVE)).collect());
    }
    let preprocess = Preprocess::of(&config.input);
    let mut cards = Vec::new();
    for (class, (name, paths)) in material.names.iter().zip(&images.calibration).enumerate() {
        let mut scores = ClassScores::default();
        let before = done;
        context.each_image(paths, skipped, |frames, count| {
            let prepared = frames.par_iter().map(|(_, frame)| preprocess.apply(frame)).collect::<Result<Vec<_>>>()?;
            for inspection in network.inspect_each(&prepared, Choice::Known(class), &program) {
                let inspection = inspection?;
                farthest[class] = farthest[class].max(inspection.prototype_distance);
                scores.push(&inspection);
            }
            done = before + count;
            context.observer.event(&Event::Calibration { done, total });
            Ok(())
        })?;
        let limit = farthest[class] * UNKNOWN_FACTOR;
        cards.push(class_card(name, images.train[class].len(), scores, limit, &config.calibration)?);
    }
    Ok(cards)
}

/// What the denoiser makes of the training images of a class, some at a time: their values `[n, T, D]`, and the look.
fn each_look(
    material: &Material,
    network: &Network,
    program: &Program,
    class: usize,
    context: Context<'_>,
    mut f: impl FnMut(&[f32], &Look) -> Result<()>,
) -> Result<()> {
    for group in material.images.cached[class].chunks(STATISTICS_BATCH) {
        context.check()?;
        let mut values = Vec::new();
        for &index in group {
            values.extend(material.cache.get(index)?);
        }
        let look = network.look(&network.tensor(&values)?, program, network.told(class))?;
        f(&values, &look)?;
    }
    Ok(())
}
