//! `diad train`

use std::path::Path;
use std::time::Duration;

use serde::Serialize;

use super::args::{ConfigArgs, TrainArgs};
use super::console::Console;
use super::images::check_exists;
use super::progress::{TrainingProgress, duration};
use super::{Context, messages};
use crate::bundle::ClassCard;
use crate::config::Config;
use crate::data::{self, Dataset, Ignored};
use crate::device::DeviceSpec;
use crate::error::{Error, Result};
use crate::files::{check_writable, write_atomic};
use crate::model::denoiser::Denoisers;
use crate::train::{self, Outcome};

/// Fewer good images of a product than this are worth a warning.
const FEW_IMAGES: usize = 50;
/// A product with this many times the images of another is worth a warning.
const UNBALANCED: usize = 5;
/// Losses in a report, at most: a curve of a long training needs no more points.
const LOSS_POINTS: usize = 1000;

pub(super) fn run(context: &Context, args: &TrainArgs) -> Result<()> {
    let console = &context.console;
    let mut config = configuration(&args.config, Config::default())?;
    if let Some(seed) = args.seed {
        config.assign(&[format!("training.seed={seed}")])?;
    }
    let device = args.place.find()?;
    let options =
        train::Options { out: args.out.clone(), backbone: args.backbone.clone(), resume: args.resume, device };
    if let Some(report) = &args.report {
        check_writable(report)?;
    }
    if let Some(weights) = &args.backbone {
        check_exists(weights)?;
    }
    let data = Dataset::scan(&args.data, &args.classes)?;
    describe(console, &data, &config);
    if device != DeviceSpec::CPU {
        console.note(format_args!("on {device}"));
    }
    let outcome = teach(context, &config, &data, &options)?;
    if let Some(path) = &args.report {
        let mut json = serde_json::to_string_pretty(&Report::new(&args.out, &data, &outcome))
            .map_err(|error| Error::Internal(format!("training report: {error}")))?;
        json.push('\n');
        write_atomic(path, json.as_bytes())?;
    }
    console.print(format_args!("{}", args.out.display()))?;
    for class in &outcome.detector.card().classes {
        console.print(messages::cost(class))?;
    }
    console.note(format_args!(
        "next: diad evaluate --model {0} --data {1}, diad predict --model {0} --input IMAGE",
        args.out.display(),
        args.data.display()
    ));
    Ok(())
}

/// Trains with progress, and prints how long each stage took.
pub(super) fn teach(context: &Context, config: &Config, data: &Dataset, options: &train::Options) -> Result<Outcome> {
    let outcome = train::train(config, data, options, &TrainingProgress::new(context), &context.stop)?;
    let [features, steps, calibration] = outcome.seconds.map(Duration::from_secs_f64);
    context.console.note(format_args!(
        "features {}, training {} ({:.1} images/s), calibration {}",
        duration(features),
        duration(steps),
        outcome.images_per_second,
        duration(calibration)
    ));
    Ok(outcome)
}

/// The configuration: defaults, overridden by the file, overridden by `--set`.
pub(super) fn configuration(args: &ConfigArgs, default: Config) -> Result<Config> {
    let mut config = match &args.config {
        Some(path) => Config::from_file(path)?,
        None => default,
    };
    config.assign(&args.set)?;
    Ok(config)
}

/// Prints what was found, and warns of few and unbalanced images.
pub(super) fn describe(console: &Console, data: &Dataset, config: &Config) {
    for category in &data.categories {
        let split = data::hold_out(&category.train, config.training.calibration_fraction, config.training.seed);
        console.note(format_args!(
            "{}: {}, {} held out for the threshold",
            category.name,
            messages::count(category.train.len(), "good image"),
            split.calibration.len()
        ));
        if category.train.len() < FEW_IMAGES {
            console.warn(format_args!(
                "{}: only {}; expect false rejects of parts that look a little different ({FEW_IMAGES} or more are a start)",
                category.name,
                messages::count(category.train.len(), "good image"),
            ));
        }
    }
    let size = |category: &&data::Category| category.train.len();
    let (most, least) = (data.categories.iter().max_by_key(size), data.categories.iter().min_by_key(size));
    if let (Some(most), Some(least)) = (most, least)
        && most.train.len() >= UNBALANCED * least.train.len()
    {
        console.warn(format_args!(
            "{} has {} good images and {} only {}: the model will know the first better",
            most.name,
            most.train.len(),
            least.name,
            least.train.len()
        ));
    }
    warn_ignored(console, &data.root, &data.ignored);
}

/// Warns of files and folders that are not used.
pub(super) fn warn_ignored(console: &Console, root: &Path, ignored: &Ignored) {
    if !ignored.is_empty() {
        console.warn(format_args!("{}: passed over {ignored}", root.display()));
    }
}

/// The JSON of `--report`.
#[derive(Serialize)]
struct Report<'a> {
    schema: u32,
    tool: &'a str,
    model: String,
    data: String,
    seconds: Seconds,
    images_per_second: f64,
    steps: usize,
    /// Step and loss.
    losses: Vec<(usize, f64)>,
    skipped: Vec<Skipped>,
    classes: &'a [ClassCard],
    config: &'a Config,
}

#[derive(Serialize)]
struct Seconds {
    features: f64,
    training: f64,
    calibration: f64,
}

#[derive(Serialize)]
struct Skipped {
    path: String,
    reason: String,
}

impl<'a> Report<'a> {
    fn new(out: &Path, data: &Dataset, outcome: &'a Outcome) -> Self {
        let card = outcome.detector.card();
        let [features, training, calibration] = outcome.seconds;
        let steps = card.training.steps * Denoisers::count(&card.config, card.classes.len());
        let first = steps - outcome.losses.len().min(steps); // of a run that was resumed
        let every = outcome.losses.len().div_ceil(LOSS_POINTS).max(1);
        let losses = outcome.losses.iter().enumerate().map(|(i, &loss)| (first + i + 1, loss));
        Self {
            schema: 1,
            tool: &card.tool,
            model: out.display().to_string(),
            data: data.root.display().to_string(),
            seconds: Seconds { features, training, calibration },
            images_per_second: outcome.images_per_second,
            steps,
            losses: losses.filter(|(step, _)| step % every == 0 || *step == steps).collect(),
            skipped: outcome
                .skipped
                .iter()
                .map(|(path, reason)| Skipped { path: path.display().to_string(), reason: reason.clone() })
                .collect(),
            classes: &card.classes,
            config: &card.config,
        }
    }
}
