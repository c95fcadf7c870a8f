//! Trains the denoiser.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Instant;

use candle_core::{Device, Tensor};
use sha2::{Digest, Sha256};

use super::batch::{self, Batch};
use super::optimizer::Optimizer;
use super::training_set::Features;
use super::{Context, Event, TrainingSet, checkpoint};
use crate::config::{Config, Shapes, TrainingConfig};
use crate::error::{Error, Result};
use crate::model::denoiser::{Denoiser, Denoisers, Parameter};
use crate::text::hex;

/// The result of training the denoiser.
pub struct Fit {
    /// Moving averages of the weights, by name.
    pub averages: BTreeMap<String, Tensor>,
    /// Loss of each step of this run.
    pub losses: Vec<f64>,
    /// Seconds of this run.
    pub seconds: f64,
    /// Images per second.
    pub images_per_second: f64,
}

impl Fit {
    const SECONDS: &str = "seconds";
    const RATE: &str = "images_per_second";

    /// Writes the averaged weights, and how long their training took, to a file.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn write(&self, path: &Path) -> Result<()> {
        let metadata = [(Self::SECONDS, self.seconds), (Self::RATE, self.images_per_second)];
        let metadata = metadata.map(|(name, value)| (name.to_owned(), value.to_string())).into();
        let bytes = safetensors::serialize(&self.averages, Some(metadata));
        crate::files::write_atomic(path, &bytes.map_err(|e| Error::Internal(format!("weights: {e}")))?)
    }

    /// Reads a file made by [`Fit::write`], which has no losses.
    ///
    /// # Errors
    /// When the file cannot be read or is not one of weights.
    pub fn read(path: &Path) -> Result<Self> {
        let damaged = |reason: String| Error::model(path, format!("not a file of trained weights: {reason}"));
        let bytes = std::fs::read(path).map_err(|e| Error::io(path, "cannot read the weights", e))?;
        let (_, header) = safetensors::SafeTensors::read_metadata(&bytes).map_err(|e| damaged(e.to_string()))?;
        let number = |name: &str| {
            let text = header.metadata().as_ref().and_then(|all| all.get(name));
            text.and_then(|text| text.parse::<f64>().ok()).ok_or_else(|| damaged(format!("no {name} entry")))
        };
        let (seconds, images_per_second) = (number(Self::SECONDS)?, number(Self::RATE)?);
        let averages = candle_core::safetensors::load_buffer(&bytes, &Device::Cpu);
        let averages = averages.map_err(|e| damaged(e.to_string()))?.into_iter().collect();
        Ok(Self { averages, losses: Vec::new(), seconds, images_per_second })
    }
}

/// Networks that are trained beside the final one, at most. Each is of the full length and leaves out the folds that share it.
pub(super) const FOLD_NETWORKS: usize = 3;

/// Parts of a fold, each left out by itself where statistics are computed: they are cheap, and the more images they are of the more
/// they are like those of the model (with a fifth left out, scores of good screws were 3 % too high; with a twentieth as the model's).
const FOLD_PARTS: usize = 4;

/// Parts of all folds: what is left out of statistics at a time. 1 where nothing is.
pub(super) fn fold_parts(config: &Config) -> usize {
    if config.calibration.folds > 1 { config.calibration.folds * FOLD_PARTS } else { 1 }
}

/// The networks of a run, one after the other: the final one, which all images teach, and those of the folds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    /// All images teach it.
    Final,
    /// The number of the network; it does not see the parts of folds that it scores.
    Fold(usize),
}

impl Role {
    /// All of a configuration.
    pub(super) fn all(config: &Config) -> Vec<Self> {
        let folds = if config.calibration.folds > 1 { config.calibration.folds.min(FOLD_NETWORKS) } else { 0 };
        [Self::Final].into_iter().chain((0..folds).map(Self::Fold)).collect()
    }

    /// Whether this network scores a part of the folds, and so must not see it.
    pub(super) fn leaves_out(self, config: &Config, part: usize) -> bool {
        self == Self::Fold(part % config.calibration.folds.min(FOLD_NETWORKS))
    }

    /// What the names of its parameters begin with.
    pub(super) fn prefix(self) -> String {
        match self {
            Self::Final => String::new(),
            Self::Fold(number) => format!("fold.{number}."),
        }
    }

    /// Its own among the weights of all, by their plain names.
    pub(super) fn own(self, all: &BTreeMap<String, Tensor>) -> BTreeMap<String, Tensor> {
        let prefix = self.prefix();
        let plain = |name: &String| match self {
            Self::Final => (!name.starts_with("fold.")).then(|| name.clone()),
            Self::Fold(_) => name.strip_prefix(&prefix).map(str::to_owned),
        };
        all.iter().filter_map(|(name, tensor)| Some((plain(name)?, tensor.clone()))).collect()
    }
}

/// Optimizer steps of a whole run: of all networks, and of the networks of all folds.
pub fn total_steps(config: &Config, classes: usize) -> usize {
    config.training.steps * Denoisers::count(config, classes) * Role::all(config).len()
}

/// Trains the denoiser of a configuration, or one after the other those of all classes where each has its own; then the same for
/// each network of the folds. Writes a checkpoint to `path` every `training.checkpoint_steps` and when a stop is requested;
/// continues from it if `resume`.
///
/// # Errors
/// When the loss is not finite, the checkpoint cannot be read or written; `Error::Interrupted` when a stop is requested.
pub fn fit(config: &Config, set: &TrainingSet, path: &Path, resume: bool, context: Context<'_>) -> Result<Fit> {
    let training = &config.training;
    let classes = set.names.len();
    let device = set.device.candle();
    let parameters = |role: &Role| {
        let prefix = role.prefix();
        let own = Denoisers::parameters(config, set.shapes()).into_iter();
        own.map(move |p| Parameter { name: format!("{prefix}{}", p.name), ..p }).collect::<Vec<_>>()
    };
    let roles = Role::all(config);
    let mut optimizer = Optimizer::new(roles.iter().flat_map(parameters).collect(), training.seed, device)?;
    let run = run_digest(config, set)?;
    let first = if resume { checkpoint::load(path, &mut optimizer, &run)? } else { 0 };
    let parameters = optimizer.slots.iter().map(|s| s.value.len()).sum();
    context.observer.event(&Event::Started { step: first, parameters, networks: roles.len() });
    let process = config.diffusion.process()?;
    let networks = Denoisers::count(config, classes);
    let steps = total_steps(config, classes);
    let started = Instant::now();
    let (mut losses, mut current) = (Vec::new(), None);
    for step in first + 1..=steps {
        if context.stop.requested() {
            checkpoint::save(path, &optimizer, step - 1, &run)?;
            return Err(Error::Interrupted { checkpoint: Some(path.to_owned()) });
        }
        let (index, own_step) = ((step - 1) / training.steps, (step - 1) % training.steps + 1);
        let (role, network) = (roles[index / networks], index % networks);
        let prefix = format!("{}{}", role.prefix(), Denoisers::prefix(config, network));
        let network_of_run = match current.take() {
            Some((at, known)) if at == index => known,
            _ => {
                let tensor = |name: &str| optimizer.var(&format!("{prefix}{name}"));
                let own = (networks > 1).then_some(network);
                Learner::new(config, set, role, own, tensor)?
            }
        };
        let Learner { images, shapes, features, denoisers } = &network_of_run;
        let batches = batch::sample_batch(config, &process, shapes, &features.cache, images, step)?;
        let mut loss: Option<Tensor> = None;
        for batch in batches {
            let (denoiser, batch) = (&denoisers[batch.shape], batch.to_device(device)?);
            let condition = denoiser.condition(&batch.log_snr, &batch.class)?;
            let Batch { input, guide, cells, .. } = &batch;
            let predicted = denoiser.forward_train(input, &condition, guide.as_ref(), cells.as_ref(), batch.seed)?;
            let error = (predicted - &batch.target)?.sqr()?.mean((1, 2))?; // [B]
            let weight = Tensor::new(batch.weight.as_slice(), device)?;
            let share = batch.weight.len() as f64 / training.batch_size as f64;
            let own = ((error * weight)?.mean_all()? * share)?;
            loss = Some(match loss {
                None => own,
                Some(others) => (others + own)?,
            });
        }
        let loss = loss.ok_or_else(|| Error::Internal("training: a batch of nothing".into()))?;
        let rate = learning_rate(training, own_step);
        let of_role = |name: &str| name.starts_with(&prefix) && (role != Role::Final || !name.starts_with("fold."));
        let norm = optimizer.step(of_role, &loss.backward()?, own_step, rate, training)?;
        let value = f64::from(loss.to_scalar::<f32>()?); // not before: it waits for the device
        if !value.is_finite() || !norm.is_finite() {
            return Err(Error::Usage(format!(
                "training diverged at step {step}: loss {value}, gradient norm {norm}; lower training.learning_rate \
                 (now {})",
                training.learning_rate
            )));
        }
        losses.push(value);
        let images_per_second = (losses.len() * training.batch_size) as f64 / started.elapsed().as_secs_f64();
        context.observer.event(&Event::Step { step, steps, loss: value, images_per_second });
        if step % training.checkpoint_steps == 0 && step < steps {
            checkpoint::save(path, &optimizer, step, &run)?;
            context.observer.event(&Event::Checkpoint { path });
        }
        current = Some((index, network_of_run));
    }
    let seconds = started.elapsed().as_secs_f64();
    let images_per_second = (losses.len() * training.batch_size) as f64 / seconds.max(1e-9);
    Ok(Fit { averages: optimizer.averages()?, losses, seconds, images_per_second })
}

/// A network that is being trained.
struct Learner {
    /// By class that it learns, where the features are that teach it.
    images: Vec<Vec<usize>>,
    /// The shapes of these classes.
    shapes: Shapes,
    features: Features,
    /// The network in each of these shapes; all have the same weights.
    denoisers: Vec<Denoiser>,
}

impl Learner {
    /// The network of a role, for one class or for all.
    fn new(
        config: &Config,
        set: &TrainingSet,
        role: Role,
        class: Option<usize>,
        tensor: impl Fn(&str) -> Option<Tensor>,
    ) -> Result<Self> {
        let mut images = set.images.teaching(|part| role.leaves_out(config, part));
        let mut numbers: Vec<usize> = (0..set.shapes().distinct().len()).collect();
        let mut shapes = set.shapes().clone();
        if let Some(class) = class {
            (images, numbers) = (vec![images.swap_remove(class)], vec![shapes.of(class)]);
            shapes = Shapes::new(vec![shapes.distinct()[shapes.of(class)]]);
        }
        let denoiser = |number: usize| {
            let view = config.in_shape(&set.shapes().distinct()[number]).training_window();
            Denoiser::new(Denoisers::shape(config, set.shapes(), number).looking_at(view), &tensor)
        };
        let denoisers = numbers.into_iter().map(denoiser).collect::<Result<_>>()?;
        Ok(Self { images, shapes, features: set.features(config, role)?, denoisers })
    }
}

/// Linear warm-up, then half a cosine down to `final_rate`.
fn learning_rate(training: &TrainingConfig, step: usize) -> f64 {
    let warm = (step as f64 / training.warmup_steps.max(1) as f64).min(1.0);
    let progress = step as f64 / training.steps.max(1) as f64;
    let cosine = 0.5 * (1.0 + (std::f64::consts::PI * progress).cos());
    training.learning_rate * warm * (cosine * (1.0 - training.final_rate) + training.final_rate)
}

/// Identifies the run that a checkpoint belongs to: SHA-256 over version, configuration, images and their folds.
fn run_digest(config: &Config, set: &TrainingSet) -> Result<String> {
    let text = serde_json::to_string(config).map_err(|e| Error::Internal(format!("configuration: {e}")))?;
    let mut hasher = Sha256::new();
    hasher.update(env!("CARGO_PKG_VERSION"));
    hasher.update(text);
    hasher.update(&set.data_sha256);
    hasher.update(format!("{:?}", set.shapes()));
    for class in &set.images.classes {
        class.folds.iter().for_each(|&fold| hasher.update((fold as u64).to_le_bytes()));
    }
    Ok(hex(&hasher.finalize()))
}
