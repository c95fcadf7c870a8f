//! Trains the denoiser.

use std::path::Path;
use std::time::Instant;

use candle_core::{Device, Tensor};
use sha2::{Digest, Sha256};

use super::optimizer::Optimizer;
use super::{Context, Event, TrainingSet, batch, checkpoint};
use crate::config::{Config, TrainingConfig};
use crate::error::{Error, Result};
use crate::model::denoiser::{Denoiser, DenoiserShape, Denoisers};
use crate::text::hex;

/// The result of training the denoiser.
pub struct Fit {
    /// Moving averages of the weights, by name.
    pub averages: std::collections::BTreeMap<String, Tensor>,
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

/// Trains the denoiser of a configuration, or one after the other those of all classes where each has its own. Writes a
/// checkpoint to `path` every `training.checkpoint_steps` and when a stop is requested; continues from it if `resume`.
///
/// # Errors
/// When the loss is not finite, the checkpoint cannot be read or written; `Error::Interrupted` when a stop is requested.
pub fn fit(config: &Config, set: &TrainingSet, path: &Path, resume: bool, context: Context<'_>) -> Result<Fit> {
    let training = &config.training;
    let classes = set.names.len();
    let device = set.device.candle();
    let mut optimizer = Optimizer::new(Denoisers::parameters(config, classes), training.seed, device)?;
    let run = run_digest(config, &set.data_sha256)?;
    let first = if resume { checkpoint::load(path, &mut optimizer, &run)? } else { 0 };
    let parameters = optimizer.slots.iter().map(|s| s.value.len()).sum();
    context.observer.event(&Event::Started { step: first, parameters });
    let process = config.diffusion.process()?;
    let (train, networks) = (&set.images.train, Denoisers::count(config, classes));
    let steps = training.steps * networks;
    let started = Instant::now();
    let (mut losses, mut current) = (Vec::new(), None);
    for step in first + 1..=steps {
        if context.stop.requested() {
            checkpoint::save(path, &optimizer, step - 1, &run)?;
            return Err(Error::Interrupted { checkpoint: Some(path.to_owned()) });
        }
        let (network, own_step) = ((step - 1) / training.steps, (step - 1) % training.steps + 1);
        let prefix = Denoisers::prefix(config, network);
        let denoiser = match current.take() {
            Some((at, denoiser)) if at == network => denoiser,
            _ => Denoiser::new(DenoiserShape::of(config, classes), |name| optimizer.var(&format!("{prefix}{name}")))?,
        };
        let images = if networks > 1 { &train[network..=network] } else { train.as_slice() };
        let batch = batch::sample_batch(config, &process, &set.images.features, images, step)?.to_device(device)?;
        let condition = denoiser.condition(&batch.log_snr, &batch.class)?;
        let predicted = denoiser.forward_train(&batch.input, &condition, batch.guide.as_ref(), batch.seed)?;
        let error = (predicted - &batch.target)?.sqr()?.mean((1, 2))?; // [B]
        let weight = Tensor::new(batch.weight.as_slice(), device)?;
        let loss = (error * weight)?.mean_all()?;
        let rate = learning_rate(training, own_step);
        let norm = optimizer.step(&prefix, &loss.backward()?, own_step, rate, training)?;
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
        current = Some((network, denoiser));
    }
    let seconds = started.elapsed().as_secs_f64();
    let images_per_second = (losses.len() * training.batch_size) as f64 / seconds.max(1e-9);
    Ok(Fit { averages: optimizer.averages()?, losses, seconds, images_per_second })
}

/// Linear warm-up, then half a cosine down to `final_rate`.
fn learning_rate(training: &TrainingConfig, step: usize) -> f64 {
    let warm = (step as f64 / training.warmup_steps.max(1) as f64).min(1.0);
    let progress = step as f64 / training.steps.max(1) as f64;
    let cosine = 0.5 * (1.0 + (std::f64::consts::PI * progress).cos());
    training.learning_rate * warm * (cosine * (1.0 - training.final_rate) + training.final_rate)
}

/// Identifies the run that a checkpoint belongs to: SHA-256 over version, configuration and images.
fn run_digest(config: &Config, data_sha256: &str) -> Result<String> {
    let text = serde_json::to_string(config).map_err(|e| Error::Internal(format!("configuration: {e}")))?;
    let mut hasher = Sha256::new();
    hasher.update(env!("CARGO_PKG_VERSION"));
    hasher.update(text);
    hasher.update(data_sha256);
    Ok(hex(&hasher.finalize()))
}
