//! `diad train`

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;
use serde::Serialize;

use super::args::TrainArgs;
use super::console::Console;
use super::images::check_exists;
use super::progress::{TrainingProgress, duration};
use super::sight::{sight, warn_squeezed};
use super::{Context, messages};
use crate::bundle::{ClassCard, ImageCard};
use crate::config::Config;
use crate::data::{self, Dataset, Ignored};
use crate::detector::Detector;
use crate::error::{Error, Result};
use crate::files::{check_writable, write_atomic};
use crate::frame::read_frame;
use crate::report::{StandsOut, TrainedClass, TrainingPage};
use crate::train::{self, Outcome};

/// Fewer good images of a product than this are worth a warning.
const FEW_IMAGES: usize = 50;
/// A product with this many times the images of another is worth a warning.
const UNBALANCED: usize = 5;
/// Good images that stand out are named, so many of each class.
const OUTLIERS: usize = 5;
/// And so many have their picture on the page.
const PICTURES: usize = 30;
/// They lie this many times the median deviation beyond the median: 9 standard deviations of normal values.
const FAR: f64 = 13.0;
/// Losses in a report, at most: a curve of a long training needs no more points.
const LOSS_POINTS: usize = 1000;

pub(super) fn run(context: &Context, args: &TrainArgs) -> Result<()> {
    let console = &context.console;
    let mut config = configuration(&args.config, Config::default())?;
    if let Some(seed) = args.seed {
        config.assign(&[format!("training.seed={seed}")])?;
    }
    let device = args.place.find()?;
    for report in args.report.iter().chain(&args.html) {
        check_writable(report)?;
    }
    if let Some(weights) = &args.backbone {
        check_exists(weights)?;
    }
    let data = Dataset::scan(&args.data, &args.classes)?;
    describe(console, &data, &config);
    if !device.is_cpu() {
        console.note(format_args!("on {device}"));
    }
    let names: Vec<&str> = data.categories.iter().map(|category| category.name.as_str()).collect();
    let options = train::Options {
        out: args.out.clone(),
        backbone: args.backbone.clone(),
        resume: args.resume,
        group_by: args.group.rule()?,
        defects: args.known.find(console, &names)?,
        device,
    };
    let outcome = teach(context, &config, &data, &options)?;
    if let Some(path) = &args.report {
        let mut json = serde_json::to_string_pretty(&Report::new(&args.out, &data, &outcome))
            .map_err(|error| Error::Internal(format!("training report: {error}")))?;
        json.push('\n');
        write_atomic(path, json.as_bytes())?;
    }
    if let Some(path) = &args.html {
        write_atomic(path, page(&args.out, &data, &outcome).html()?.as_bytes())?;
    }
    console.print(format_args!("{}", args.out.display()))?;
    let on_the_line = Detector::open_found(&args.out, device)?; // in the precision that a line will take
    for (number, (class, paths)) in outcome.detector.card().classes.iter().zip(&outcome.paths).enumerate() {
        for fact in facts(class) {
            console.print(fact)?;
        }
        warn_outliers(console, class, paths);
        if let Some(sight) = sight(&on_the_line, number, paths) {
            console.note(format_args!("{}: {sight}", class.name));
        }
    }
    console.note(format_args!(
        "next: diad evaluate --model {0} --data {1}, diad predict --model {0} --input IMAGE",
        args.out.display(),
        args.data.display()
    ));
    Ok(())
}

/// What a class promises, as text.
fn facts(class: &ClassCard) -> impl Iterator<Item = String> {
    let known = class.known_defects.as_ref().map(|known| messages::known_defects(class, known));
    [messages::cost(class)].into_iter().chain(known)
}

/// The page of `--html`.
fn page(out: &Path, data: &Dataset, outcome: &Outcome) -> TrainingPage {
    let card = outcome.detector.card();
    let class = |(class, paths): (&ClassCard, &Vec<PathBuf>)| {
        let outliers = outliers(class);
        let shown = outliers.iter().take(PICTURES).map(|&(image, percentile)| StandsOut {
            path: messages::below(&paths[image], &data.root),
            score: class.images[image].score,
            percentile,
            picture: read_frame(&paths[image]).ok(),
        });
        let facts = facts(class).collect();
        TrainedClass { name: class.name.clone(), facts, outliers: outliers.len(), shown: shown.collect() }
    };
    TrainingPage {
        model: out.display().to_string(),
        data: data.root.display().to_string(),
        tool: card.tool.clone(),
        classes: card.classes.iter().zip(&outcome.paths).map(class).collect(),
    }
}

/// Names the good images that are unlike all others.
fn warn_outliers(console: &Console, class: &ClassCard, paths: &[PathBuf]) {
    let outliers = outliers(class);
    for &(image, percentile) in outliers.iter().take(OUTLIERS) {
        console.warn(format_args!(
            "{}: unlike the other good images of {} (score at percentile {percentile:.1}); if it shows a defect or another \
             product, take it out and train again",
            paths[image].display(),
            class.name
        ));
    }
    if outliers.len() > OUTLIERS {
        console.warn(format_args!("{}: and {} more like that", class.name, outliers.len() - OUTLIERS));
    }
}

/// The images of a class whose score, or distance from the prototype, lies far beyond those of the others: their indices and the
/// percentile of their scores, the strangest first.
fn outliers(class: &ClassCard) -> Vec<(usize, f64)> {
    let beyond = |value: fn(&ImageCard) -> Option<f32>| -> Vec<f64> {
        let mut sorted: Vec<f64> = class.images.iter().filter_map(value).map(f64::from).collect();
        let median = median(&mut sorted);
        let mut deviations: Vec<f64> = sorted.iter().map(|v| (v - median).abs()).collect();
        let deviation = self::median(&mut deviations).max(1e-3 * median.abs());
        class.images.iter().map(|image| value(image).map_or(0.0, |v| (f64::from(v) - median) / deviation)).collect()
    };
    let (scores, distances) = (beyond(|image| image.score), beyond(|image| image.prototype_distance));
    let strange = |i: &usize| scores[*i].max(distances[*i]);
    let mut found: Vec<usize> = (0..class.images.len()).filter(|i| strange(i) > FAR).collect();
    found.sort_by(|a, b| strange(b).total_cmp(&strange(a)));
    let good = class.good_scores();
    let percentile = |i: usize| good.percentile(class.images[i].score.unwrap_or(f32::NAN));
    found.into_iter().map(|i| (i, percentile(i))).collect()
}

/// The middle of some values; 0 of none.
fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(0.0)
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

/// Where a configuration comes from: defaults, then the file, then `--set`.
#[derive(Debug, Args)]
pub(super) struct ConfigArgs {
    /// Configuration (TOML); what it does not say is at its default. See configs/default.toml
    #[arg(long, value_name = "F")]
    pub(super) config: Option<PathBuf>,

    /// Change one key of the configuration, for instance training.steps=500; repeat for several. Stronger than the file
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub(super) set: Vec<String>,
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
        let images = messages::count(category.train.len(), "good image");
        let scored = match config.calibration.folds {
            1 => {
                let (fraction, seed) = (config.training.calibration_fraction, config.training.seed);
                let held_out = data::hold_out(&category.train, fraction, seed).calibration.len();
                format!("{held_out} held out for the threshold, which teach nothing (calibration.folds = 1)")
            }
            folds => {
                format!("all teach, and all set the threshold: in {folds} folds, by networks that have not seen them")
            }
        };
        console.note(format_args!("{}: {images}; {scored}", category.name));
        warn_squeezed(console, category, config);
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
    /// By class: its good images in the order of the card.
    images: BTreeMap<&'a str, Vec<GoodImage>>,
    config: &'a Config,
}

#[derive(Serialize)]
struct GoodImage {
    path: String,
    /// The part that it shows.
    group: u32,
    score: Option<f32>,
    percentile: Option<f64>,
    stands_out: bool,
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
        let steps = train::total_steps(&card.config, card.classes.len());
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
            images: card.classes.iter().zip(&outcome.paths).map(|(class, paths)| good_images(class, paths)).collect(),
            config: &card.config,
        }
    }
}

fn good_images<'a>(class: &'a ClassCard, paths: &[PathBuf]) -> (&'a str, Vec<GoodImage>) {
    let outliers: Vec<usize> = outliers(class).into_iter().map(|(image, _)| image).collect();
    let good = class.good_scores();
    let image = |(i, (image, path)): (usize, (&ImageCard, &PathBuf))| GoodImage {
        path: path.display().to_string(),
        group: image.group,
        score: image.score,
        percentile: image.score.map(|score| good.percentile(score)),
        stands_out: outliers.contains(&i),
    };
    (&class.name, class.images.iter().zip(paths).enumerate().map(image).collect())
}
