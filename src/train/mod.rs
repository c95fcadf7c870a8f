//! Training: features once, then the denoiser, then statistics and thresholds.
//!
//! The same data, configuration and seed give the same model file, byte for byte, on one machine; a run that was stopped
//! and resumed gives the same file as one that was not.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use candle_core::{Device, Tensor};
use rayon::prelude::*;
use sha2::{Digest, Sha256};

use crate::bundle::{BackboneCard, Card, ClassCard, SCHEMA, TrainingCard};
use crate::config::Config;
use crate::data::{self, Dataset};
use crate::detector::{self, Choice, Detector, Mask, Network, mean_token, raw_features};
use crate::error::{Error, Result};
use crate::features::FeatureSpace;
use crate::frame::{Frame, Preprocess};
use crate::model::denoiser::{Denoiser, DenoiserShape};
use crate::model::{self, Backbone, Weights};
use crate::score::ResidualSums;

mod batch;
mod cache;
mod checkpoint;
mod optimizer;
mod thresholds;

use cache::Cache;
use optimizer::Optimizer;
pub use thresholds::{ClassScores, class_card};

/// Feature rows that the feature space is fitted on, at most.
const FIT_ROWS: usize = 60_000;
/// Share of a class's images that may be unreadable before training is refused.
const MAX_UNREADABLE: f64 = 0.05;
/// Images whose residuals are computed at a time.
const STATISTICS_BATCH: usize = 16;
/// A product is unknown when it is farther from the prototype than this times the farthest good part.
const UNKNOWN_FACTOR: f32 = 2.0;

/// What training says while it works.
#[derive(Debug)]
#[non_exhaustive]
pub enum Event<'a> {
    /// Features of `done` of `total` images are computed.
    Features {
        /// Images done.
        done: usize,
        /// All images.
        total: usize,
    },
    /// An image could not be read and is left out.
    Skipped {
        /// The image.
        path: &'a Path,
        /// Why.
        reason: String,
    },
    /// Features take more than the configured memory and go to a file.
    Spilled,
    /// Training starts after `step` steps (0 unless resumed).
    Started {
        /// Steps already done.
        step: usize,
        /// Trainable parameters.
        parameters: usize,
    },
    /// A step was taken.
    Step {
        /// Steps done.
        step: usize,
        /// All steps.
        steps: usize,
        /// Loss of this step.
        loss: f64,
        /// Images per second of this run so far, without feature extraction.
        images_per_second: f64,
    },
    /// A checkpoint was written.
    Checkpoint {
        /// The file.
        path: &'a Path,
    },
    /// Residual statistics and thresholds: `done` of `total` images.
    Calibration {
        /// Images done.
        done: usize,
        /// All images.
        total: usize,
    },
}

/// Listens to training. Called from the training thread.
pub trait Observer {
    /// Something happened.
    fn event(&self, event: &Event<'_>);
}

/// Asks training to stop at the next opportunity; clones ask the same training.
#[derive(Clone, Debug, Default)]
pub struct Stop(Arc<AtomicBool>);

impl Stop {
    /// Asks.
    pub fn request(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    /// Whether somebody asked.
    pub fn requested(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// Where training reads and writes, beside the data.
#[derive(Clone, Debug)]
pub struct Options {
    /// The model file to write.
    pub out: PathBuf,
    /// Weights of the backbone, from `diad backbone import`; absent for the embedded ones.
    pub backbone: Option<PathBuf>,
    /// Go on from the checkpoint beside `out`.
    pub resume: bool,
}

impl Options {
    /// The checkpoint beside the model file.
    pub fn checkpoint(&self) -> PathBuf {
        let mut name = self.out.file_name().unwrap_or_default().to_os_string();
        name.push(".checkpoint");
        self.out.with_file_name(name)
    }
}

/// What came out, beside the file.
pub struct Outcome {
    /// The detector, as a fresh load of the file would give it.
    pub detector: Detector,
    /// Loss of each step of this run.
    pub losses: Vec<f64>,
    /// Seconds for features, training, statistics with thresholds.
    pub seconds: [f64; 3],
    /// Images per second of training, feature extraction not counted.
    pub images_per_second: f64,
    /// Images that were left out, with the reason.
    pub skipped: Vec<(PathBuf, String)>,
}

/// Trains on the good images of a data set and writes the model file.
///
/// # Errors
/// When the data or the configuration cannot work, an image set is mostly unreadable, the loss is not finite, a file cannot
/// be written; `Error::Interrupted` when asked to stop, after a checkpoint was written.
pub fn train(
    config: &Config,
    data: &Dataset,
    options: &Options,
    observer: &dyn Observer,
    stop: &Stop,
) -> Result<Outcome> {
    data::check_trainable(data)?;
    thresholds::check_rates(config, data)?;
    check_targets(options)?;
    let weights = backbone_weights(config, options)?;
    let backbone = model::backbone(&config.features.backbone, &weights, &Device::Cpu)?;
    let mask = mask(config)?;
    let run = Run { config, options, observer, stop };

    let started = Instant::now();
    let mut skipped = Vec::new();
    let (images, raw) = run.raw_features(data, backbone.as_ref(), &mut skipped)?;
    let (space, cache) = run.feature_space(&images, raw, backbone.as_ref())?;
    let feature_seconds = started.elapsed().as_secs_f64();

    let data_sha256 = data_digest(data, &images, config)?;
    let shape = DenoiserShape {
        config: config.denoiser.clone(),
        grid: config.features.grid,
        dim: config.features.dim,
        classes: data.categories.len(),
    };
    let mut optimizer = Optimizer::new(&shape, config.training.seed)?;
    let (losses, seconds, rate) = run.steps(&mut optimizer, &shape, &cache, &images, &data_sha256)?;

    let started = Instant::now();
    let averages = optimizer.averages()?;
    drop(optimizer);
    let denoiser = Denoiser::new(shape, |name| averages.get(name).cloned())?;
    let mut network =
        Network { config: config.clone(), backbone, space, denoiser, fields: Vec::new(), prototypes: Vec::new(), mask };
    let classes = run.calibrate(data, &images, &cache, &mut network, &mut skipped)?;
    let card = Card {
        schema: SCHEMA,
        tool: concat!("diad ", env!("CARGO_PKG_VERSION")).to_owned(),
        config: config.clone(),
        backbone: BackboneCard { name: config.features.backbone.clone(), sha256: weights_digest(&weights)? },
        classes,
        training: TrainingCard {
            images: images.train.iter().map(Vec::len).sum(),
            data_sha256,
            seed: config.training.seed,
            steps: config.training.steps,
        },
        tensors_sha256: String::new(),
    };
    detector::save(&options.out, &card, &network, &weights, &averages)?;
    let _ = std::fs::remove_file(options.checkpoint()); // there may be none
    let calibration_seconds = started.elapsed().as_secs_f64();
    Ok(Outcome {
        detector: Detector::open(&options.out)?,
        losses,
        seconds: [feature_seconds, seconds, calibration_seconds],
        images_per_second: rate,
        skipped,
    })
}

/// Looks before hours of work whether the model can be written, and whether an unfinished run would be lost.
fn check_targets(options: &Options) -> Result<()> {
    crate::files::check_writable(&options.out)?;
    let checkpoint = options.checkpoint();
    match (options.resume, checkpoint.exists()) {
        (true, false) => Err(Error::Usage(format!(
            "{}: there is no checkpoint to resume; train without --resume",
            checkpoint.display()
        ))),
        (false, true) => Err(Error::Usage(format!(
            "{}: this checkpoint of an unfinished run would be lost; go on with --resume, or remove it",
            checkpoint.display()
        ))),
        _ => Ok(()),
    }
}

/// The images of a run by class; `cached[c][i]` is the cache index of `train[c][i]`.
struct Images {
    train: Vec<Vec<PathBuf>>,
    calibration: Vec<Vec<PathBuf>>,
    cached: Vec<Vec<usize>>,
}

struct Run<'a> {
    config: &'a Config,
    options: &'a Options,
    observer: &'a dyn Observer,
    stop: &'a Stop,
}

impl Run<'_> {
    fn interrupted(&self) -> Error {
        Error::Interrupted { checkpoint: None }
    }

    fn preprocess(&self) -> Preprocess {
        let input = &self.config.input;
        Preprocess { size: input.size, fit: input.fit, roi: input.roi }
    }

    fn cache(&self, per_image: usize) -> Cache {
        let folder = self.options.out.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
        Cache::new(per_image, self.config.training.cache_mib, folder)
    }

    /// Runs the backbone once over every training image.
    fn raw_features(
        &self,
        data: &Dataset,
        backbone: &dyn Backbone,
        skipped: &mut Vec<(PathBuf, String)>,
    ) -> Result<(Images, Cache)> {
        let fraction = self.config.training.calibration_fraction;
        let splits = data.categories.iter().map(|c| data::hold_out(&c.train, fraction, self.config.training.seed));
        let splits = splits.collect::<Vec<_>>();
        let wanted: Vec<PathBuf> = splits.iter().flat_map(|s| s.train.iter().cloned()).collect();
        let grid = self.config.features.grid;
        let mut cache = self.cache(grid * grid * model::channels(backbone.name())?);
        let preprocess = self.preprocess();
        let (mut kept, mut spilled) = (vec![false; wanted.len()], false);
        self.each_image(&wanted, skipped, |frames: &[(usize, Frame)], done| {
            let features = frames
                .par_iter()
                .map(|(_, frame)| raw_features(backbone, grid, &preprocess.apply(frame)?.frame))
                .collect::<Result<Vec<_>>>()?;
            for ((index, _), row) in frames.iter().zip(features) {
                cache.push(&row)?;
                kept[*index] = true;
            }
            if cache.spilled() && !spilled {
                spilled = true;
                self.observer.event(&Event::Spilled);
            }
            self.observer.event(&Event::Features { done, total: wanted.len() });
            Ok(())
        })?;
        let (mut train, mut cached) = (Vec::new(), Vec::new());
        let (mut at, mut next) = (0, 0);
        for (split, category) in splits.iter().zip(&data.categories) {
            let (mut paths, mut indices) = (Vec::new(), Vec::new());
            for path in &split.train {
                if kept[at] {
                    paths.push(path.clone());
                    indices.push(next);
                    next += 1;
                }
                at += 1;
            }
            let lost = split.train.len() - paths.len();
            if lost as f64 > MAX_UNREADABLE * split.train.len() as f64 {
                return Err(Error::data(
                    &category.root,
                    format!(
                        "{lost} of {} training images cannot be read, more than {:.0} %; the first: {}",
                        split.train.len(),
                        MAX_UNREADABLE * 100.0,
                        skipped.first().map(|(_, reason)| reason.as_str()).unwrap_or_default()
                    ),
                ));
            }
            train.push(paths);
            cached.push(indices);
        }
        let calibration = splits.into_iter().map(|s| s.calibration).collect();
        Ok((Images { train, calibration, cached }, cache))
    }

    /// Reads images ahead on other threads and hands them on a few at a time; unreadable ones are reported and left out.
    fn each_image(
        &self,
        paths: &[PathBuf],
        skipped: &mut Vec<(PathBuf, String)>,
        mut f: impl FnMut(&[(usize, Frame)], usize) -> Result<()>,
    ) -> Result<()> {
        let group = 2 * rayon::current_num_threads();
        let mut waiting: Vec<(usize, Frame)> = Vec::new();
        let stopped = || self.stop.requested();
        data::read_all(
            paths,
            2,
            2 * group,
            |index, frame| {
                match frame {
                    Ok(frame) => waiting.push((index, frame)),
                    Err(error) => {
                        let reason = error.to_string();
                        self.observer.event(&Event::Skipped { path: &paths[index], reason: reason.clone() });
                        skipped.push((paths[index].clone(), reason));
                    }
                }
                if waiting.len() >= group || (index + 1 == paths.len() && !waiting.is_empty()) {
                    f(&waiting, index + 1)?;
                    waiting.clear();
                }
                Ok(())
            },
            &stopped,
        )?;
        if stopped() { Err(self.interrupted()) } else { Ok(()) }
    }

    /// Fits the feature space on an even sample of the classes and projects the cache.
    fn feature_space(&self, images: &Images, raw: Cache, backbone: &dyn Backbone) -> Result<(FeatureSpace, Cache)> {
        let features = &self.config.features;
        let channels = model::channels(backbone.name())?;
        let tokens = features.grid * features.grid;
        let per_class = FIT_ROWS / images.cached.len().max(1);
        let mut rows = Vec::new();
        for indices in &images.cached {
            // An even share of each class, spread over its images and over the grid.
            let total = indices.len() * tokens;
            let take = per_class.min(total);
            let mut current: Option<(usize, Vec<f32>)> = None;
            for i in 0..take {
                let row = (i as u128 * total as u128 / take as u128) as usize;
                let (image, token) = (row / tokens, row % tokens);
                if current.as_ref().is_none_or(|(at, _)| *at != image) {
                    current = Some((image, raw.get(indices[image])?));
                }
                if let Some((_, values)) = &current {
                    rows.extend_from_slice(&values[token * channels..][..channels]);
                }
            }
        }
        let space = FeatureSpace::fit(&rows, channels, features.dim, features.whitening, features.clamp)?;
        drop(rows);
        let mut cache = self.cache(tokens * features.dim);
        let indices = (0..raw.len()).collect::<Vec<_>>();
        for group in indices.chunks(64) {
            let projected = group.par_iter().map(|&i| Ok(space.apply(&raw.get(i)?))).collect::<Result<Vec<_>>>()?;
            for values in projected {
                cache.push(&values)?;
            }
        }
        Ok((space, cache))
    }

    /// The optimizer's steps: losses, seconds, images per second.
    fn steps(
        &self,
        optimizer: &mut Optimizer,
        shape: &DenoiserShape,
        cache: &Cache,
        images: &Images,
        data_sha256: &str,
    ) -> Result<(Vec<f64>, f64, f64)> {
        let training = &self.config.training;
        let path = self.options.checkpoint();
        let run = run_digest(self.config, data_sha256)?;
        let first = if self.options.resume { checkpoint::load(&path, optimizer, &run)? } else { 0 };
        let denoiser = Denoiser::new(shape.clone(), |name| optimizer.var(name))?;
        let parameters = optimizer.slots.iter().map(|s| s.value.len()).sum();
        self.observer.event(&Event::Started { step: first, parameters });
        let started = Instant::now();
        let mut losses = Vec::new();
        for step in first + 1..=training.steps {
            if self.stop.requested() {
                checkpoint::save(&path, optimizer, step - 1, &run)?;
                return Err(Error::Interrupted { checkpoint: Some(path) });
            }
            let batch = batch::draw(self.config, cache, &images.cached, step)?;
            let condition = denoiser.condition(&batch.log_snr, &batch.class)?;
            let predicted = denoiser.forward_train(&batch.input, &condition, batch.seed)?;
            let error = (predicted - &batch.target)?.sqr()?.mean((1, 2))?; // [B]
            let weight = Tensor::new(batch.weight.as_slice(), &Device::Cpu)?;
            let loss = (error * weight)?.mean_all()?;
            let value = f64::from(loss.to_scalar::<f32>()?);
            let rate = learning_rate(training, step);
            let norm = optimizer.step(&loss.backward()?, step, rate, training)?;
            if !value.is_finite() || !norm.is_finite() {
                return Err(Error::Usage(format!(
                    "training diverged at step {step}: loss {value}, gradient norm {norm}; lower training.learning_rate \
                     (now {})",
                    training.learning_rate
                )));
            }
            losses.push(value);
            let images_per_second = (losses.len() * training.batch_size) as f64 / started.elapsed().as_secs_f64();
            self.observer.event(&Event::Step { step, steps: training.steps, loss: value, images_per_second });
            if step % training.checkpoint_steps == 0 && step < training.steps {
                checkpoint::save(&path, optimizer, step, &run)?;
                self.observer.event(&Event::Checkpoint { path: &path });
            }
        }
        let seconds = started.elapsed().as_secs_f64();
        let rate = (losses.len() * training.batch_size) as f64 / seconds.max(1e-9);
        Ok((losses, seconds, rate))
    }

    /// Prototypes and residual statistics from the training images, thresholds from the held-out ones.
    fn calibrate(
        &self,
        data: &Dataset,
        images: &Images,
        cache: &Cache,
        network: &mut Network,
        skipped: &mut Vec<(PathBuf, String)>,
    ) -> Result<Vec<ClassCard>> {
        let total = cache.len() + images.calibration.iter().map(Vec::len).sum::<usize>();
        let mut done = 0;
        let dim = self.config.features.dim;
        let tokens = self.config.features.grid * self.config.features.grid;
        let program = network.program(self.config.detection.ddim_steps)?;
        let mut farthest = Vec::new();
        for indices in &images.cached {
            let mut sums = ResidualSums::new(tokens, dim);
            let mut means = Vec::new();
            for group in indices.chunks(STATISTICS_BATCH) {
                if self.stop.requested() {
                    return Err(self.interrupted());
                }
                let mut features = Vec::with_capacity(group.len() * tokens * dim);
                for &index in group {
                    let values = cache.get(index)?;
                    means.push(mean_token(&values, dim));
                    features.extend(values);
                }
                sums.add(&network.residuals(features, &program)?);
                done += group.len();
                self.observer.event(&Event::Calibration { done, total });
            }
            let mut prototype = vec![0.0; dim];
            for mean in &means {
                for (p, m) in prototype.iter_mut().zip(mean) {
                    *p += m / means.len() as f32;
                }
            }
            network.fields.push(sums.finish()?);
            network.prototypes.push(prototype);
            let class = network.prototypes.len() - 1;
            let distances = means.iter().map(|m| network.prototype_distances(m)[class]);
            farthest.push(distances.fold(0.0f32, f32::max));
        }
        let mut cards = Vec::new();
        for (class, (category, paths)) in data.categories.iter().zip(&images.calibration).enumerate() {
            let mut scores = ClassScores::default();
            let before = done;
            self.each_image(paths, skipped, |frames, count| {
                let seen = frames
                    .par_iter()
                    .map(|(_, frame)| network.inspect(frame, Choice::Known(class), &program, |_, s| s))
                    .collect::<Result<Vec<_>>>()?;
                for inspection in seen {
                    farthest[class] = farthest[class].max(inspection.prototype_distance);
                    scores.push(&inspection);
                }
                done = before + count;
                self.observer.event(&Event::Calibration { done, total });
                Ok(())
            })?;
            let limit = farthest[class] * UNKNOWN_FACTOR;
            cards.push(class_card(&category.name, images.train[class].len(), scores, limit, &self.config.calibration)?);
        }
        Ok(cards)
    }
}

/// Linear warm-up, then half a cosine down to `final_rate`.
fn learning_rate(training: &crate::config::TrainingConfig, step: usize) -> f64 {
    let warm = (step as f64 / training.warmup_steps.max(1) as f64).min(1.0);
    let progress = step as f64 / training.steps.max(1) as f64;
    let cosine = 0.5 * (1.0 + (std::f64::consts::PI * progress).cos());
    training.learning_rate * warm * (cosine * (1.0 - training.final_rate) + training.final_rate)
}

/// The weights of the configured backbone: from a file, or those of the program.
fn backbone_weights(config: &Config, options: &Options) -> Result<Weights> {
    let name = &config.features.backbone;
    if let Some(path) = &options.backbone {
        let bytes = std::fs::read(path).map_err(|e| Error::io(path, "cannot read the backbone weights", e))?;
        return candle_core::safetensors::load_buffer(&bytes, &Device::Cpu)
            .map_err(|e| Error::model(path, format!("not a safetensors file of backbone weights: {e}")));
    }
    model::embedded(name)?.ok_or_else(|| {
        Error::Usage(format!(
            "features.backbone = {name:?} is not part of the program; make a weights file with `diad backbone import` and \
             give it with --backbone"
        ))
    })
}

/// The mask that the configuration names.
fn mask(config: &Config) -> Result<Option<Mask>> {
    let Some(path) = &config.input.mask else { return Ok(None) };
    let image = data::read_frame(Path::new(path))?;
    let preprocess = Preprocess { size: config.input.size, fit: config.input.fit, roi: config.input.roi };
    let mask = Mask::new(&image, &preprocess, config.features.grid);
    mask.map(Some).map_err(|error| Error::Usage(format!("input.mask = {path:?}: {error}")))
}

/// SHA-256 over names, types and values of all weights in the order of their names.
fn weights_digest(weights: &Weights) -> Result<String> {
    let mut hasher = Sha256::new();
    for (name, tensor) in weights.iter().collect::<BTreeMap<_, _>>() {
        hasher.update(name.as_bytes());
        hasher.update(format!("{:?}{:?}", tensor.dtype(), tensor.dims()));
        let values = tensor.to_dtype(candle_core::DType::F32)?.flatten_all()?.to_vec1::<f32>()?;
        hasher.update(values.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<u8>>());
    }
    Ok(hex(&hasher.finalize()))
}

/// Identifies configuration and images, for checkpoints.
fn run_digest(config: &Config, data_sha256: &str) -> Result<String> {
    let text = serde_json::to_string(config).map_err(|e| Error::Internal(format!("configuration: {e}")))?;
    let mut hasher = Sha256::new();
    hasher.update(env!("CARGO_PKG_VERSION"));
    hasher.update(text);
    hasher.update(data_sha256);
    Ok(hex(&hasher.finalize()))
}

fn data_digest(data: &Dataset, images: &Images, config: &Config) -> Result<String> {
    let mut hasher = Sha256::new();
    for (category, paths) in data.categories.iter().zip(images.train.iter().zip(&images.calibration)) {
        hasher.update(category.name.as_bytes());
        hasher.update(data::data_sha256(paths.0)?);
        hasher.update(data::data_sha256(paths.1)?);
    }
    if let Some(mask) = &config.input.mask {
        hasher.update(data::data_sha256(&[PathBuf::from(mask)])?);
    }
    Ok(hex(&hasher.finalize()))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}
