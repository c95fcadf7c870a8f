//! Training: every image is read once, the denoiser learns from features of most of them, and the others set the thresholds.
//!
//! The same data, configuration and seed give the same model file, byte for byte, on one machine; a run that was stopped
//! and resumed gives the same file as one that was not.

use std::path::{Path, PathBuf};
use std::time::Instant;

use crate::config::{Config, Grouping};
use crate::data::{self, Dataset, GroupBy, Groups, Sample, SampleDepth, groups};
use crate::detector::Detector;
use crate::device::DeviceSpec;
use crate::error::{Error, Result};
use crate::frame::Preparation;

mod align;
mod augment;
mod batch;
mod cache;
mod checkpoint;
mod fit;
mod known_defects;
mod logistic;
mod looks;
mod maker;
mod optimizer;
mod statistics;
mod thresholds;
mod training_set;
mod untrained;

pub use crate::data::Stop;
pub use fit::{Fit, fit, total_steps};
pub use known_defects::{FEWEST_DEFECTS, FreshParts, KnownDefect, Taught, check_known_defects, check_not_good};
pub use statistics::finish;
pub use thresholds::{ClassScores, check_rate, check_rates, class_card, measured};
pub use training_set::TrainingSet;
pub use untrained::untrained;

/// Progress of a training run.
#[derive(Debug)]
#[non_exhaustive]
pub enum Event<'a> {
    /// `done` of `total` images are read and prepared: those to train on and those held out for the thresholds.
    Images {
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
    /// The part was not found in an image (`input.align`): it teaches nothing, and counts as rejected.
    NotLocated {
        /// The image.
        path: &'a Path,
    },
    /// An image shows nothing: it is of one colour, or almost black. It teaches as any other.
    Empty {
        /// The image.
        path: &'a Path,
    },
    /// All images are read; `depth` saw how many bits their samples use.
    SampleDepth {
        /// Of the images of this run.
        depth: &'a SampleDepth,
    },
    /// The picture that parts of a class are found with (`input.align`) is made.
    Aligned {
        /// The class.
        class: &'a str,
        /// Good parts that are found with it.
        found: usize,
        /// Good parts that were tried.
        of: usize,
    },
    /// The images of a class are divided into groups, one for each part.
    Groups {
        /// The class.
        class: &'a str,
        /// Its images.
        paths: &'a [PathBuf],
        /// Their groups.
        groups: &'a Groups,
        /// Why they were not told by their likeness.
        problem: Option<GroupProblem>,
    },
    /// What is kept of the images takes more than the configured memory (`training.cache_mib`); the rest goes to a file.
    Spilled,
    /// Training starts after `step` steps (0 unless resumed).
    Started {
        /// Steps already done.
        step: usize,
        /// Trainable parameters of all networks.
        parameters: usize,
        /// Networks: the final one, and those that score the folds.
        networks: usize,
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

/// Why images were not grouped by their likeness.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GroupProblem {
    /// There are more than can be compared with each other.
    TooMany,
    /// So few groups were found that they could not support the rate that was asked for.
    Unsupported {
        /// Groups found.
        groups: usize,
    },
}

/// Is told of the progress of a training run, on the thread that trains.
pub trait Observer {
    /// Called for every event, before training goes on.
    fn event(&self, event: &Event<'_>);
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
    /// How the part that an image shows is told.
    pub group_by: Option<GroupBy>,
    /// Known defects by class, see [`data::known_defects`]; empty where there are none.
    pub defects: Vec<Vec<Sample>>,
    /// The device to train on; a run may be resumed on another one.
    pub device: DeviceSpec,
}

impl Options {
    /// A run of its own on the CPU, with what the program has; nothing is said of groups and defects.
    pub fn new(out: PathBuf) -> Self {
        let device = DeviceSpec::CPU;
        Self { out, backbone: None, resume: false, group_by: None, defects: Vec::new(), device }
    }

    /// The checkpoint beside the model file.
    pub fn checkpoint(&self) -> PathBuf {
        let mut name = self.out.file_name().unwrap_or_default().to_os_string();
        name.push(".checkpoint");
        self.out.with_file_name(name)
    }
}

/// The result of a training run, beside the model file.
pub struct Outcome {
    /// The detector, loaded from the file.
    pub detector: Detector,
    /// Loss of each step of this run.
    pub losses: Vec<f64>,
    /// Seconds for reading images with their features, for training, for statistics with thresholds.
    pub seconds: [f64; 3],
    /// Images per second of training, feature extraction not counted.
    pub images_per_second: f64,
    /// Images that were left out, with the reason.
    pub skipped: Vec<(PathBuf, String)>,
    /// By class, the images on the model's card.
    pub paths: Vec<Vec<PathBuf>>,
}

/// Trains on the good images of a data set and writes the model file.
///
/// # Errors
/// When the data or the configuration cannot work, too many images cannot be read, the loss is not finite, a file cannot be
/// written; `Error::Interrupted` when a stop is requested, after a checkpoint was written.
pub fn train(
    config: &Config,
    data: &Dataset,
    options: &Options,
    observer: &dyn Observer,
    stop: &Stop,
) -> Result<Outcome> {
    // The card says what stands, whatever is the default by then.
    let config = &config.resolved();
    data::check_trainable(data)?;
    check_rates(config, data)?;
    let file = config.calibration.groups != Grouping::None;
    for category in &data.categories {
        groups::stated(options.group_by.as_ref(), file, &category.root, &category.train)?;
    }
    check_targets(options)?;
    if !options.defects.is_empty() {
        check_known_defects(config)?;
    }
    let context = Context { observer, stop };

    let device = options.device.open()?;
    let started = Instant::now();
    let folder = options.out.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let (backbone, group_by) = (options.backbone.as_deref(), options.group_by.as_ref());
    let mut set = TrainingSet::prepare(config, data, backbone, group_by, folder, &device, context)?;
    let defects = read_defects(&set.preparation, &options.defects, context)?;
    for (class, defects) in set.images.classes.iter().zip(&defects) {
        check_not_good(defects, class.images.iter().map(|image| (image.path.as_path(), &image.digests)))?;
    }
    let feature_seconds = started.elapsed().as_secs_f64();

    let fitted = fit(config, &set, &options.checkpoint(), options.resume, context)?;

    let started = Instant::now();
    finish(config, &set, &fitted.averages, &defects, &options.out, context)?;
    let _ = std::fs::remove_file(options.checkpoint()); // there may be none
    let calibration_seconds = started.elapsed().as_secs_f64();
    Ok(Outcome {
        detector: Detector::open_on(&options.out, &device)?,
        losses: fitted.losses,
        seconds: [feature_seconds, fitted.seconds, calibration_seconds],
        images_per_second: fitted.images_per_second,
        skipped: std::mem::take(&mut set.unreadable),
        paths: set
            .images
            .classes
            .into_iter()
            .map(|class| class.images.into_iter().map(|image| image.path).collect())
            .collect(),
    })
}

/// Reads the images of known defects, by class. Each is needed: there are few.
fn read_defects(
    preparation: &Preparation,
    samples: &[Vec<Sample>],
    context: Context<'_>,
) -> Result<Vec<Vec<KnownDefect>>> {
    let depth = SampleDepth::default();
    let read = |class: usize, sample: &Sample| {
        context.stop.check()?;
        KnownDefect::read(sample, preparation, class, &depth)
    };
    let all = samples.iter().enumerate();
    let defects = all.map(|(class, samples)| samples.iter().map(|sample| read(class, sample)).collect()).collect();
    context.observer.event(&Event::SampleDepth { depth: &depth });
    defects
}

/// Checks before the work that the model file can be written and that no checkpoint of an unfinished run would be overwritten.
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

/// How a training run and its caller talk to each other.
#[derive(Clone, Copy)]
pub struct Context<'a> {
    /// Is told of progress.
    pub observer: &'a dyn Observer,
    /// Ends the run when it is requested.
    pub stop: &'a Stop,
}
