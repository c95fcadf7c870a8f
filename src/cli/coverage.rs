//! `diad coverage`: whether what a threshold promises comes true. Draws good parts, trains a model from them, and shows it new good
//! parts, over and over.

use std::path::PathBuf;

use clap::Args;
use rayon::prelude::*;
use serde::Serialize;

use super::table::{Align, Table};
use super::train::{ConfigArgs, configuration};
use super::{Context, messages};
use crate::calibrate::GoodScores;
use crate::config::Config;
use crate::data::Dataset;
use crate::detector::{ClassSource, Detection, Detector, Request};
use crate::error::{Error, Result};
use crate::files::{check_writable, write_atomic};
use crate::frame::Frame;
use crate::synthetic::{DatasetSpec, Kind, draw_part, write_dataset};
use crate::train::{self, Options};

/// Measure on drawn parts whether a threshold keeps what it promises.
///
/// Draws good parts, trains a model from them, shows it new good parts and counts how many it rejects where 1, 5 and 10 % were
/// promised; over and over, so that chance can be told from a broken promise. Ends with exit code 1 if one is broken.
#[derive(Debug, Args)]
pub(super) struct CoverageArgs {
    /// Good parts that each model is trained from: 99 or more to see 1 %
    #[arg(long, value_name = "N", default_value_t = 120)]
    pub(super) parts: usize,

    /// New good parts that each model is shown
    #[arg(long, value_name = "N", default_value_t = 1000)]
    pub(super) new: usize,

    /// Models
    #[arg(long, value_name = "N", default_value_t = 20)]
    pub(super) repetitions: usize,

    /// The product: washer, blister or board
    #[arg(long, value_name = "NAME", default_value = "washer")]
    pub(super) product: Kind,

    /// Seed of the first repetition; each has its own
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub(super) seed: u64,

    #[command(flatten)]
    pub(super) config: ConfigArgs,

    /// Write the figures here as JSON
    #[arg(long, value_name = "R.json")]
    pub(super) report: Option<PathBuf>,
}

/// Rates that are asked for, as far as there are enough parts for them.
const PROMISED: [f64; 3] = [0.01, 0.05, 0.1];
/// Quantiles of the calibration scores that new parts should exceed as often as the name says.
const QUANTILES: [f64; 5] = [0.25, 0.5, 0.75, 0.9, 0.95];
/// A mean that is further from what it should be, in standard errors, is not chance.
const LIMIT: f64 = 2.5;

pub(super) fn run(context: &Context, args: &CoverageArgs) -> Result<()> {
    let config = configuration(&args.config, Config::default())?;
    if let Some(report) = &args.report {
        check_writable(report)?;
    }
    if args.repetitions < 2 {
        return Err(Error::Usage(format!(
            "--repetitions {}: expected at least 2, to see how they differ",
            args.repetitions
        )));
    }
    let mut task = context.task("repetitions", args.repetitions);
    let mut repetitions = Vec::new();
    for repetition in 0..args.repetitions {
        context.stop.check()?;
        repetitions.push(repeat(context, &config, args, args.seed + repetition as u64)?);
        task.set(repetition + 1, "");
    }
    task.finish();
    let report = Report::new(args, &repetitions);
    if let Some(path) = &args.report {
        let json = serde_json::to_string_pretty(&report);
        let mut json = json.map_err(|error| Error::Internal(format!("coverage report: {error}")))?;
        json.push('\n');
        write_atomic(path, json.as_bytes())?;
    }
    context.console.print(report.table())?;
    let broken = report.rows.iter().filter(|row| !row.holds).count();
    if broken > 0 {
        let rows = messages::count(broken, "figure");
        return Err(Error::Image {
            path: args.product.name().into(),
            reason: format!("{rows} beyond chance: see the table"),
        });
    }
    Ok(())
}

/// What one model rejected of parts that it had never seen.
struct Repetition {
    /// By promised rate: what it should be on average, at least and at most, and what it was.
    rejected: Vec<Option<([f64; 2], f64)>>,
    /// By quantile: the share of new parts above it.
    above: Vec<f64>,
}

fn repeat(context: &Context, config: &Config, args: &CoverageArgs, seed: u64) -> Result<Repetition> {
    let folder = tempfile::tempdir().map_err(|e| Error::io("a temporary folder", "cannot create", e))?;
    // Parts are drawn as squares.
    let size = config.input.size.width.max(config.input.size.height);
    let spec = DatasetSpec { kinds: vec![args.product], train: args.parts, test_good: 0, test_defect: 0, size, seed };
    let root = folder.path().join("parts");
    write_dataset(&root, &spec, &|_, _| {})?;
    let mut config = config.clone();
    config.training.seed = seed;
    let options = Options::new(folder.path().join("model.diad"));
    let data = Dataset::scan(&root, &[])?;
    let detector = train::train(&config, &data, &options, &Silent, &context.stop)?.detector;
    let new: Vec<Frame> = (0..args.new as u64)
        .into_par_iter()
        .map(|i| draw_part(args.product, NEW_PARTS ^ (seed << 32) ^ i, size, None).frame)
        .collect();
    measure(&detector, &new)
}

/// Where the seeds of new parts begin.
const NEW_PARTS: u64 = 0x5eed_0000_0000_0000;

/// Tells nobody.
struct Silent;

impl train::Observer for Silent {
    fn event(&self, _: &train::Event<'_>) {}
}

fn measure(detector: &Detector, new: &[Frame]) -> Result<Repetition> {
    let detections = detector.inspect_frames(new, &Request::default()).into_iter();
    // A part that is not found is rejected whatever its score.
    let score = |found: Detection| match found.class_source {
        ClassSource::NotLocated => f32::INFINITY,
        _ => found.score,
    };
    let scores = detections.map(|found| found.map(score)).collect::<Result<Vec<f32>>>()?;
    let class = &detector.card().classes[0];
    let good = class.good_scores();
    let share = |above: f32| scores.iter().filter(|&&score| score > above).count() as f64 / scores.len() as f64;
    let rejected = PROMISED.iter().map(|&rate| {
        let threshold = class.threshold(rate).ok()?;
        Some((expected(&good, rate)?, share(threshold.value)))
    });
    // The exchangeable share of new parts above the k-th of n is (n + 1 - k) / (n + 1), whatever is promised.
    let above = QUANTILES.iter().map(|&quantile| share(good.quantile(quantile)) - (1.0 - quantile)).collect();
    Ok(Repetition { rejected: rejected.collect(), above })
}

/// The rate that the threshold for `rate` should show on average: from (G + 1 - k) / (G + 1), k groups up to the threshold, to the
/// promised one, where the threshold lies between two scores.
fn expected(good: &GoodScores, rate: f64) -> Option<[f64; 2]> {
    let least = (1.0 + good.groups_above(good.rank(rate).ok()?)) / (good.groups() as f64 + 1.0);
    Some([least, if good.is_interpolated() { rate.max(least) } else { least }])
}

/// The JSON of `--report`.
#[derive(Serialize)]
struct Report {
    schema: u32,
    product: &'static str,
    parts: usize,
    new: usize,
    repetitions: usize,
    seed: u64,
    rows: Vec<Row>,
}

/// One figure over all repetitions.
#[derive(Serialize)]
struct Row {
    what: String,
    /// What it should be on average, at least and at most.
    expected: [f64; 2],
    mean: f64,
    /// Of the mean, over the repetitions.
    standard_error: f64,
    /// Whether the difference may be chance.
    holds: bool,
}

impl Row {
    fn new(what: String, expected: [f64; 2], values: &[f64], slack: f64) -> Self {
        let n = values.len() as f64;
        let mean = values.iter().sum::<f64>() / n;
        let variance = values.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / (n - 1.0);
        let standard_error = (variance / n).sqrt();
        let slack = (LIMIT * standard_error).max(slack);
        let holds = expected[0] - slack <= mean && mean <= expected[1] + slack;
        Self { what, expected, mean, standard_error, holds }
    }
}

impl Report {
    fn new(args: &CoverageArgs, repetitions: &[Repetition]) -> Self {
        let promised = PROMISED.iter().enumerate().filter_map(|(i, rate)| {
            let each: Option<Vec<([f64; 2], f64)>> =
                repetitions.iter().map(|repetition| repetition.rejected[i]).collect();
            let (expected, rejected): (Vec<[f64; 2]>, Vec<f64>) = each?.into_iter().unzip();
            let mean = [0, 1].map(|end| expected.iter().map(|rate| rate[end]).sum::<f64>() / expected.len() as f64);
            Some(Row::new(
                format!("rejected where at most {} is promised", messages::percent(*rate)),
                mean,
                &rejected,
                0.0,
            ))
        });
        // Quantiles need not be exact: within two points new parts score like those that set the threshold.
        let quantiles = QUANTILES.iter().enumerate().map(|(i, quantile)| {
            let above: Vec<f64> = repetitions.iter().map(|r| r.above[i] + 1.0 - quantile).collect();
            Row::new(format!("above the {quantile} quantile"), [1.0 - quantile; 2], &above, 0.02)
        });
        let CoverageArgs { product, parts, new, repetitions, seed, .. } = *args;
        let rows = promised.chain(quantiles).collect();
        Self { schema: 1, product: product.name(), parts, new, repetitions, seed, rows }
    }

    fn table(&self) -> String {
        use Align::{Left, Right};

        let mut table = Table::new(&[
            ("new good parts", Left),
            ("expected", Right),
            ("mean", Right),
            ("std. error", Right),
            ("", Left),
        ]);
        for Row { what, expected, mean, standard_error, holds } in &self.rows {
            let figure = |value: f64| format!("{:.2}", 100.0 * value);
            let verdict = if *holds { "holds" } else { "BROKEN" };
            let [least, most] = expected.map(figure);
            let expected = if least == most { least } else { format!("{least} to {most}") };
            table.row(vec![what.clone(), expected, figure(*mean), figure(*standard_error), verdict.into()]);
        }
        let Self { product, parts, new, repetitions, .. } = self;
        format!("{table}\nin per cent; {repetitions} models, each of {parts} drawn {product}s and shown {new} new ones")
    }
}
