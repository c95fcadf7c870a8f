//! Training: features once, then the denoiser, then statistics and thresholds.
//!
//! The same data, configuration and seed give the same model file, byte for byte, on one machine; a run that was stopped
//! and resumed gives the same file as one that was not.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use crate::config::Config;
use crate::data::{self, Dataset};
use crate::detector::Detector;
use crate::device::DeviceSpec;
use crate::error::{Error, Result};
use crate::frame::Frame;

mod batch;
mod cache;
mod checkpoint;
mod fit;
mod material;
mod optimizer;
mod statistics;
mod thresholds;

pub use fit::{Fit, fit};
pub use material::Material;
pub use statistics::finish;
pub use thresholds::{ClassScores, check_rates, class_card};

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
    /// Where to train; a checkpoint can go on on another device.
    pub device: DeviceSpec,
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
    check_rates(config, data)?;
    check_targets(options)?;
    let context = Context { observer, stop };

    let device = options.device.open()?;
    let started = Instant::now();
    let folder = options.out.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut material = Material::gather(config, data, options.backbone.as_deref(), folder, &device, context)?;
    let feature_seconds = started.elapsed().as_secs_f64();

    let fitted = fit(config, &material, &options.checkpoint(), options.resume, context)?;

    let started = Instant::now();
    let mut skipped = std::mem::take(&mut material.skipped);
    finish(config, &material, &fitted.averages, &options.out, context, &mut skipped)?;
    let _ = std::fs::remove_file(options.checkpoint()); // there may be none
    let calibration_seconds = started.elapsed().as_secs_f64();
    Ok(Outcome {
        detector: Detector::open_on(&options.out, &device)?,
        losses: fitted.losses,
        seconds: [feature_seconds, fitted.seconds, calibration_seconds],
        images_per_second: fitted.images_per_second,
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

/// Whom training tells, and who may stop it.
#[derive(Clone, Copy)]
pub struct Context<'a> {
    /// Is told.
    pub observer: &'a dyn Observer,
    /// May stop it.
    pub stop: &'a Stop,
}

impl Context<'_> {
    /// # Errors
    /// `Error::Interrupted` when somebody asked to stop.
    fn check(self) -> Result<()> {
        if self.stop.requested() { Err(Error::Interrupted { checkpoint: None }) } else { Ok(()) }
    }

    /// Reads images ahead on other threads and hands them on a few at a time; unreadable ones are reported and left out.
    fn each_image(
        self,
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
        self.check()
    }
}
