//! What may be typed: commands and flags, and the manual that `--help` is.

use std::path::PathBuf;

use clap::builder::{PathBufValueParser, TypedValueParser};
use clap::{Args, Parser, Subcommand};

use super::advise::AdviseArgs;
use super::backbone::BackboneCommand;
use super::coverage::CoverageArgs;
use super::images::{DefectsArgs, GroupArgs};
use super::label::LabelArgs;
use super::models::ModelsCommand;
use super::run::LinesArgs;
use super::train::ConfigArgs;
use crate::device::{DeviceSpec, Precision};

const AFTER: &str = "\
EXIT CODES
  0    done (also when parts are ng: the verdicts are in the output)
  1    failed while working: an image or model cannot be read, a disk is full
  2    wrong use, configuration or data layout, found before any work was done
  130  interrupted by Ctrl-C or SIGTERM; `train` leaves a checkpoint to --resume from

Results go to standard output; progress, notes and warnings to standard error.
`diad COMMAND --help` is the manual of a command. A first look: `diad demo`.";

/// Finds defects on a production line, taught from good parts only.
///
/// A model is one file, made by `diad train` from a folder of good images. It gives every image a score, a verdict
/// (ok, warn or ng) and a map of where the defect is, and it knows how many good parts its threshold will cost.
#[derive(Debug, Parser)]
#[command(name = "diad", version, after_help = AFTER, arg_required_else_help = true, max_term_width = 100)]
pub(super) struct Cli {
    /// No progress and no notes: only results, warnings and errors
    #[arg(short, long, global = true, conflicts_with = "verbose", display_order = 900)]
    pub(super) quiet: bool,

    /// Tell more of what goes on; twice for everything
    #[arg(short, long, global = true, action = clap::ArgAction::Count, display_order = 901)]
    pub(super) verbose: u8,

    #[command(subcommand)]
    pub(super) command: Command,
}

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Teach a model from good images
    Train(TrainArgs),
    /// Measure a model on labelled images: figures, curves, pictures
    Evaluate(EvaluateArgs),
    /// Ask a model about images: verdict, score, regions, heat maps
    Predict(PredictArgs),
    /// Make new thresholds from more good parts
    Calibrate(CalibrateArgs),
    /// Show what is in a model file
    Inspect(InspectArgs),
    /// Tell every mistake in a configuration file
    Validate(ValidateArgs),
    /// Measure latency and frame rate on this machine
    Bench(BenchArgs),
    /// Propose the size of the input, the grid and the region of interest
    Advise(AdviseArgs),
    /// Draw what a model has learned
    Sample(SampleArgs),
    /// Measure what each choice of the method costs, on your images
    Ablate(AblateArgs),
    /// Measure on drawn parts whether a threshold keeps what it promises
    Coverage(CoverageArgs),
    /// Weights of backbones
    #[command(subcommand)]
    Backbone(BackboneCommand),
    /// Versions of a model: which is in use, and the way back
    #[command(subcommand)]
    Models(ModelsCommand),
    /// Say of a part in an archive whether it was good
    Label(LabelArgs),
    /// Run lines: cameras that come back, results that are kept
    Run(LinesArgs),
    /// See it all on parts that are drawn for you: no data needed
    Demo(DemoArgs),
}

const TRAIN: &str = "\
EXAMPLES
  A folder of good images, nothing else:
    diad train --data photos/bottle --out bottle.diad
  Several products in one model, each a folder with train/good in it:
    diad train --data photos --out line1.diad --report line1.train.json
  Half the steps, another seed:
    diad train --data photos --out quick.diad --set training.steps=500 --seed 1
  Go on after Ctrl-C or a power cut, with the same arguments:
    diad train --data photos --out line1.diad --resume

The same data, configuration and seed give the same file, byte for byte, on the same machine, whether or not the run was
interrupted. 100 or more good images per product are a good start. All of them teach, and all set the threshold: each is
scored by networks of the other images (calibration.folds). It takes 19 parts to promise a false-reject rate of 5 %, 99
for 1 %; several images of one part count as one, see --group-by.";

/// Teach a model from good images.
///
/// Reads the good images of every product under ROOT, runs the frozen backbone over each once, trains the denoiser,
/// and sets the thresholds by scores of networks that have not seen the image. Ends by saying what the thresholds will cost.
#[derive(Debug, Args)]
#[command(after_help = TRAIN)]
pub(super) struct TrainArgs {
    /// One product (a folder with train/good), a folder of products, or a folder of good images
    #[arg(long, value_name = "ROOT")]
    pub(super) data: PathBuf,

    /// The model file to write; replaced only when training has ended well
    #[arg(long, value_name = "M.diad")]
    pub(super) out: PathBuf,

    #[command(flatten)]
    pub(super) config: ConfigArgs,

    /// Train on this product only; repeat for several. Fewer products: faster, and a little sharper on each
    #[arg(long = "class", value_name = "C")]
    pub(super) classes: Vec<String>,

    /// Seed of everything random (training.seed): another one trades one model for an equally good one
    #[arg(long, value_name = "N")]
    pub(super) seed: Option<u64>,

    /// Weights of the backbone, made by `diad backbone import`; without it those in the program. A larger backbone
    /// sees more and takes longer per frame
    #[arg(long, value_name = "FILE")]
    pub(super) backbone: Option<PathBuf>,

    #[command(flatten)]
    pub(super) group: GroupArgs,
    #[command(flatten)]
    pub(super) known: DefectsArgs,

    /// Write configuration, losses, timings and thresholds here as JSON
    #[arg(long, value_name = "R.json")]
    pub(super) report: Option<PathBuf>,

    /// Write a page here with what is promised and a picture of each good image that stands out; it needs no other file
    #[arg(long, value_name = "R.html")]
    pub(super) html: Option<PathBuf>,

    /// Go on from the checkpoint beside the model file (M.diad.checkpoint). Data and configuration must be the same
    #[arg(long)]
    pub(super) resume: bool,

    #[command(flatten)]
    pub(super) place: DeviceArg,
}

const EVALUATE: &str = "\
EXAMPLES
  diad evaluate --model line1.diad --data photos --report line1.json --html line1.html
  How much better than simpler methods on the same features:
    diad evaluate --model line1.diad --data photos --baselines

The second table is marked ! where the promised false-reject rate is not in the range where the true rate lies.
ROOT has test/good, test/DEFECT and, where it is known where the defects are, ground_truth/DEFECT with masks. A figure
that cannot be computed (no masks, no good images) is a dash in the table and null in the JSON, never 0.
An image that cannot be read is in no figure; it is listed in the reports and the exit code is 1.";

/// Measure a model on labelled images.
///
/// Per product and on average: how well scores tell defects from good parts (image AUROC, AP, best F1), how well maps
/// find the defect (pixel AUROC, AP, best F1, AUPRO), and what the shipped threshold does: the share of good parts
/// rejected, held against what was promised, and of defects that escape, held against what the scores would allow.
#[derive(Debug, Args)]
#[command(after_help = EVALUATE)]
pub(super) struct EvaluateArgs {
    /// The model file, or a folder of versions (diad models)
    #[arg(long, value_name = "M.diad", value_parser = model_file())]
    pub(super) model: PathBuf,

    /// One product or a folder of products, with test images
    #[arg(long, value_name = "ROOT")]
    pub(super) data: PathBuf,

    /// Measure on this product only; repeat for several
    #[arg(long = "class", value_name = "C")]
    pub(super) classes: Vec<String>,

    /// Write all figures and the score of every image here as JSON
    #[arg(long, value_name = "R.json")]
    pub(super) report: Option<PathBuf>,

    /// Write a page with figures, curves and pictures here; it needs no other file
    #[arg(long, value_name = "R.html")]
    pub(super) html: Option<PathBuf>,

    /// Tell the model which product each image shows (its folder) rather than let it find out. Right if the line knows
    #[arg(long)]
    pub(super) class_known: bool,

    /// Also measure Mahalanobis distance and nearest neighbours on the same features, for comparison. Needs the good
    /// images that the model was trained on (ROOT's train/good), time and some memory
    #[arg(long)]
    pub(super) baselines: bool,

    #[command(flatten)]
    pub(super) group: GroupArgs,

    #[command(flatten)]
    pub(super) run: RunArgs,
}

/// Where to compute.
#[derive(Debug, Args)]
pub(super) struct DeviceArg {
    /// Where to compute: auto (the first GPU, or the CPU where there is none), cpu, cuda or cuda:N
    #[arg(long, value_name = "DEVICE", default_value_t = DeviceSpec::AUTO)]
    pub(super) device: DeviceSpec,
}

/// Where a model runs, and in what numbers.
#[derive(Debug, Args)]
pub(super) struct OnArgs {
    #[command(flatten)]
    pub(super) place: DeviceArg,

    /// What networks compute in: auto (the fastest that the model has thresholds for), f32, bf16, or f16 on a GPU
    #[arg(long, value_name = "NUMBERS", default_value_t = Precision::Auto)]
    pub(super) precision: Precision,
}

/// How frames go through the model.
#[derive(Debug, Args)]
pub(super) struct RunArgs {
    /// Denoiser evaluations per frame instead of the model's own number. More: slower, often a little sharper; but
    /// the thresholds were measured with the model's own. Says nothing to a model with the sampler ddpm
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1000))]
    pub(super) ddim_steps: Option<u16>,

    /// Images inspected at a time: more keeps more cores busy and takes more memory. Scores do not depend on it
    #[arg(long, value_name = "N", default_value = "8", value_parser = clap::value_parser!(u16).range(1..=256))]
    pub(super) batch: u16,

    #[command(flatten)]
    pub(super) on: OnArgs,
}

const PREDICT: &str = "\
EXAMPLES
  diad predict --model line1.diad --input part.png
  diad predict --model line1.diad --input photos/today --out heatmaps --jsonl results.jsonl
  diad predict --model line1.diad --input photos/today --jsonl - | jq 'select(.verdict==\"ng\").image'

VERDICTS
  ok     the score is within both thresholds
  warn   above the warning threshold, not above the threshold
  ng     above the threshold, or not a product that the model knows (class_source unknown-product), or not
         found in the frame (not-located)
  error  could not be inspected; never counts as good

The exit code is 0 also when parts are ng; it is 1 when an image could not be inspected. After Ctrl-C, or on a full disk, the
lines and pictures of what was done are there, each of them whole.
The percentile says how many in a hundred of the good parts held out in training score lower.";

/// Ask a model about images.
///
/// Prints one line per image: verdict, score, threshold, percentile, class and the largest defect. Regions are in
/// pixels of the image.
#[derive(Debug, Args)]
#[command(after_help = PREDICT)]
pub(super) struct PredictArgs {
    /// The model file, or a folder of versions (diad models)
    #[arg(long, value_name = "M.diad", value_parser = model_file())]
    pub(super) model: PathBuf,

    /// An image, or a folder of images (its subfolders are not looked at)
    #[arg(long, value_name = "FILE-or-DIR")]
    pub(super) input: PathBuf,

    /// Write the image with its heat map over it for every image into this folder, which is made if need be
    #[arg(long, value_name = "DIR")]
    pub(super) out: Option<PathBuf>,

    /// Write one JSON object per image here, each as soon as it is known; `-` writes them to standard output instead of the
    /// table
    #[arg(long, value_name = "F")]
    pub(super) jsonl: Option<PathBuf>,

    /// The product shown, if it is known; otherwise the model finds out. Knowing is surer and a little faster. A product
    /// called "auto" is written =auto
    #[arg(long, value_name = "C", default_value = "auto")]
    pub(super) class: String,

    #[command(flatten)]
    pub(super) run: RunArgs,
}

const CALIBRATE: &str = "\
EXAMPLE
  A night of good parts from the line, and one false reject in a hundred at most:
    diad calibrate --model line1.diad --data last-night --target-fpr 0.01 --out line1b.diad

Use parts that the model was not trained on, from the same camera and light as on the line, and parts rather than
consecutive frames of one part: the promise holds for parts like those. n parts can promise 1/(n+1) at best.";

/// Make new thresholds from more good parts.
///
/// Scores the good images under DIR and replaces the thresholds of those products; the network stays as it is, tensor
/// by tensor. A rate that the number of images cannot support is refused with the number it takes.
#[derive(Debug, Args)]
#[command(after_help = CALIBRATE)]
pub(super) struct CalibrateArgs {
    /// The model file, or a folder of versions (diad models)
    #[arg(long, value_name = "M.diad", value_parser = model_file())]
    pub(super) model: PathBuf,

    /// One product, a folder of products, or a folder of good images. Folder names are the model's class names
    #[arg(long, value_name = "DIR")]
    pub(super) data: PathBuf,

    /// The share of good parts that may be rejected (0.01 is one in a hundred). Lower: fewer good parts lost, more
    /// defects escape, more parts needed here
    #[arg(long, value_name = "P")]
    pub(super) target_fpr: f64,

    /// The share of good parts that may be marked warn or worse; twice the other without it
    #[arg(long, value_name = "P")]
    pub(super) warn_fpr: Option<f64>,

    /// The product in a folder of another name; or, of a folder of products, the ones to use
    #[arg(long = "class", value_name = "C")]
    pub(super) classes: Vec<String>,

    #[command(flatten)]
    pub(super) group: GroupArgs,
    #[command(flatten)]
    pub(super) known: DefectsArgs,

    /// The model file to write
    #[arg(long, value_name = "M2.diad")]
    pub(super) out: PathBuf,

    #[command(flatten)]
    pub(super) on: OnArgs,
}

/// Show what is in a model file.
///
/// Classes with their thresholds and what they promise, the configuration, where the model comes from, its digest.
/// Reads the file's header only.
#[derive(Debug, Args)]
pub(super) struct InspectArgs {
    /// The model file, or a folder of versions (diad models)
    #[arg(value_name = "M.diad", value_parser = model_file())]
    pub(super) model: PathBuf,

    /// Everything as JSON, calibration scores included
    #[arg(long)]
    pub(super) json: bool,
}

/// Tell every mistake in a configuration file, or in a file of lines.
///
/// All at once, each with its line, its key, its value and what was expected. Without a mistake: the keys that differ
/// from the defaults.
#[derive(Debug, Args)]
pub(super) struct ValidateArgs {
    /// The configuration file (TOML), or the lines of diad run
    #[arg(value_name = "FILE")]
    pub(super) file: PathBuf,

    /// Of lines: open each camera, and wait for a frame
    #[arg(long)]
    pub(super) probe: bool,
}

const BENCH: &str = "\
EXAMPLES
  diad bench --model line1.diad
  diad bench --model line1.diad --frames 200 --batch 1 --ddim-steps 1

Through a call: the latency of a batch is that of all its frames together, resizing included. Frames in flight: 1 is a single
camera that waits for its answer, 2 are two of them at once. Through the worker: as on a line that always has the next batch
ready; the latency is that of a frame with its wait, and frames are resized before. Run it while the machine does nothing
else.";

/// Measure latency and frame rate on this machine.
///
/// On a drawn frame of twice the model's input size: time by stage, latency (p50, p95, p99) and frames per second over batch
/// sizes, denoiser evaluations and frames in flight, by plain calls and through the worker that `diadfilter` uses.
#[derive(Debug, Args)]
#[command(after_help = BENCH)]
pub(super) struct BenchArgs {
    /// The model file, or a folder of versions (diad models)
    #[arg(long, value_name = "M.diad", value_parser = model_file())]
    pub(super) model: PathBuf,

    /// Frames measured per row, after a few that are not: more is steadier and takes longer
    #[arg(long, value_name = "N", default_value = "60", value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub(super) frames: u32,

    /// Batch sizes
    #[arg(long, value_name = "N,...", value_delimiter = ',', default_value = "1,2,4,8",
          value_parser = clap::value_parser!(u16).range(1..=256))]
    pub(super) batch: Vec<u16>,

    /// Denoiser evaluations per frame
    #[arg(long, value_name = "N,...", value_delimiter = ',', default_value = "1,3",
          value_parser = clap::value_parser!(u16).range(1..=1000))]
    pub(super) ddim_steps: Vec<u16>,

    /// What each layer costs on the CPU instead, against the most that its cores can do
    #[arg(long, conflicts_with_all = ["batch", "ddim_steps", "device"])]
    pub(super) layers: bool,
    /// Also write the figures here as JSON
    #[arg(long, value_name = "R.json")]
    pub(super) report: Option<PathBuf>,

    #[command(flatten)]
    pub(super) on: OnArgs,
}

const ABLATE: &str = "\
EXAMPLES
  diad ablate --list
  diad ablate --data photos --out ablation
  Only some groups or rows, from a quicker start:
    diad ablate --data photos --out ablation --row steps --row prediction-v --set training.steps=400
  Configurations of your own, beside the one that all rows start from:
    diad ablate --data photos --out ablation --row base --with mine.toml --with configs/seed-ddpm.toml

LEAVES IN THE FOLDER
  ablation.md, .json, .html   the table; written anew after every row
  rows/                       one result per row
  weights/                    trained networks; rows that differ in detection only share one

Run it again with the same arguments to go on after Ctrl-C: what was measured is kept. The whole grid takes hours on two
cores; run it while the machine does nothing else, or the times say little.";

/// Measure what each choice of the method costs, on your images.
///
/// Trains and evaluates a named grid of choices: start, steps, noise level, score, class strategy, prediction, schedule,
/// guidance, network and training. The backbone runs over the training images once. Each row changes what it names in the
/// configuration given here, and nothing else.
#[derive(Debug, Args)]
#[command(after_help = ABLATE)]
pub(super) struct AblateArgs {
    /// One product or a folder of products, with train/good and test images
    #[arg(long, value_name = "ROOT", required_unless_present = "list")]
    pub(super) data: Option<PathBuf>,

    /// The folder for tables and networks; made where it is not there
    #[arg(long, value_name = "DIR", required_unless_present = "list")]
    pub(super) out: Option<PathBuf>,

    /// Measure this row, or this group of rows, only; repeat for several
    #[arg(long = "row", value_name = "NAME")]
    pub(super) rows: Vec<String>,

    /// Measure configuration files as rows of their own, under the files' names. Without --row, files only
    #[arg(long, value_name = "F", num_args = 1..)]
    pub(super) with: Vec<PathBuf>,

    /// Show the rows and what they change
    #[arg(long)]
    pub(super) list: bool,

    #[command(flatten)]
    pub(super) config: ConfigArgs,

    /// Use this product only; repeat for several
    #[arg(long = "class", value_name = "C")]
    pub(super) classes: Vec<String>,

    /// Tell the model which product each image shows (its folder) rather than let it find out
    #[arg(long)]
    pub(super) class_known: bool,

    /// Weights of the backbone, made by `diad backbone import`
    #[arg(long, value_name = "FILE")]
    pub(super) backbone: Option<PathBuf>,

    #[command(flatten)]
    pub(super) place: DeviceArg,
}

const SAMPLE: &str = "\
EXAMPLES
  What a model of pictures (features.space = \"pixel\") has learned:
    diad sample --model pictures.diad --out grid.png
  What a model of features has learned, each cell shown as the nearest patch of a good image:
    diad sample --model line1.diad --class bottle --data photos/bottle --out grid.png

Samples start from pure noise. The default model is never trained there (diffusion.log_snr_min) and is not made to draw:
it restores. Blurred or mixed samples say little about how well it finds defects.";

/// Draw what a model has learned.
///
/// Draws parts from pure noise and puts them side by side in one picture. The same seed gives the same picture.
#[derive(Debug, Args)]
#[command(after_help = SAMPLE)]
pub(super) struct SampleArgs {
    /// The model file, or a folder of versions (diad models)
    #[arg(long, value_name = "M.diad", value_parser = model_file())]
    pub(super) model: PathBuf,

    /// The picture to write (PNG)
    #[arg(long, value_name = "grid.png")]
    pub(super) out: PathBuf,

    /// The product to draw; without it parts in general, where the model has learned what that is, or its only product
    #[arg(long, value_name = "C")]
    pub(super) class: Option<String>,

    /// Good images whose patches show what features mean: one product, a folder of products, or a folder of images. Needed
    /// for models of features
    #[arg(long, value_name = "ROOT")]
    pub(super) data: Option<PathBuf>,

    /// An image to go by. Needed for models with semantic guidance (denoiser.guide)
    #[arg(long, value_name = "IMAGE")]
    pub(super) like: Option<PathBuf>,

    /// How many to draw
    #[arg(long, value_name = "N", default_value = "16", value_parser = clap::value_parser!(u16).range(1..=256))]
    pub(super) count: u16,

    /// DDIM steps: more are finer and take longer
    #[arg(long, value_name = "N", default_value = "50", value_parser = clap::value_parser!(u16).range(1..=1000))]
    pub(super) steps: u16,

    /// Share of fresh noise in each step, 0 to 1: more is livelier with many steps and rougher with few
    #[arg(long, value_name = "ETA", default_value = "0")]
    pub(super) eta: f64,

    /// Exaggerate what the class makes of it (classifier-free guidance): 1 is the plain answer. Needs --class
    #[arg(long, value_name = "W", default_value = "1")]
    pub(super) guidance: f64,

    /// Seed of the noise: another one draws other parts
    #[arg(long, value_name = "N", default_value = "0")]
    pub(super) seed: u64,

    #[command(flatten)]
    pub(super) on: OnArgs,
}

const DEMO: &str = "\
LEAVES IN THE FOLDER
  contact-sheet.png  image | heat map | truth of one part per kind of defect; the bar says ok (green), warn, ng (red)
  report.html        figures, curves and pictures; open it in a browser
  report.json        the same figures for programs
  heatmaps/          the pictures of the contact sheet in full size
  demo.mp4           the parts on a production line, inspected by diadfilter in gst-launch-1.0
  demo.jsonl         what diadfilter said of each frame
  line.toml          two lines on these parts; try: diad run diad-demo/line.toml
  demo.diad          the model; try: diad inspect diad-demo/demo.diad
  parts/             the drawn images in the folder layout that `diad train` and `diad evaluate` read";

/// See it all on parts that are drawn for you.
///
/// Draws three products with good and defective parts, teaches one model from the good ones, measures it beside simpler
/// methods, puts it on a production line (gst-launch-1.0 with diadfilter) and leaves a video, pictures and a report. A few minutes on two cores.
#[derive(Debug, Args)]
#[command(after_help = DEMO)]
pub(super) struct DemoArgs {
    /// Where to put everything. A folder that the demo did not make is never written to
    #[arg(long, value_name = "DIR", default_value = "diad-demo")]
    pub(super) out: PathBuf,

    /// Good images per product to learn from: more take longer and teach more
    #[arg(long, value_name = "N", default_value = "100", value_parser = images)]
    pub(super) images: usize,

    /// Print the gst-launch-1.0 line and do not run it
    #[arg(long)]
    pub(super) no_video: bool,

    #[command(flatten)]
    pub(super) config: ConfigArgs,
}

/// A model file; of a folder of versions the one in use.
pub(super) fn model_file() -> impl TypedValueParser<Value = PathBuf> {
    PathBufValueParser::new().try_map(|path| crate::versions::resolve(&path))
}

/// As many images as training takes at least, and as many as a demo can draw.
fn images(text: &str) -> Result<usize, String> {
    let (least, most) = (crate::data::MIN_TRAIN, 10_000);
    match text.parse() {
        Ok(n) if (least..=most).contains(&n) => Ok(n),
        _ => Err(format!("expected a number from {least} to {most}")),
    }
}
