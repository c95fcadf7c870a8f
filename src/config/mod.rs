//! Configuration: every key with its default and its rule here, conditions between keys in `rules.rs`, its way from text in
//! `read.rs`.
//!
//! A [`Config`] made by [`Config::from_toml`], [`Config::from_file`] or [`Config::assign`] keeps every rule. One that
//! was put together by hand is checked with [`Config::check`].

mod choices;
mod kind;
mod read;
mod rules;
mod shape;
mod size;
pub mod syntax;

use serde::{Deserialize, Serialize};

pub use self::choices::{
    Align, Augment, ClassCondition, ClassStrategy, Decision, Distance, Fit, GroupSource, Grouping, Position,
    SamplerKind, ScheduleKind, ScoreKind, SpaceKind, StartKind, Weighting,
};
use self::kind::{Kind, above, below, closed, integer, open, size};
pub use self::shape::{Shape, Shapes, Tried, shaped};
pub use self::size::{Blocks, Size};
use crate::diffusion::{Prediction, Process, Schedule};
use crate::error::Result;
use crate::precision::Precision;

/// The backbones that can be asked for, with the channels that their taps deliver together.
pub const BACKBONES: [(&str, usize); 6] = [
    ("efficientnet-lite0", 256),
    ("efficientnet-lite1", 256),
    ("efficientnet-lite2", 280),
    ("resnet18", 448),
    ("resnet50", 1792),
    ("wide-resnet50", 1792),
];

/// The names of [`BACKBONES`].
pub const BACKBONE_NAMES: [&str; BACKBONES.len()] = {
    let mut names = [""; BACKBONES.len()];
    let mut i = 0;
    while i < names.len() {
        names[i] = BACKBONES[i].0;
        i += 1;
    }
    names
};

/// Channels that the taps of a backbone deliver together, where the name is known.
pub fn backbone_channels(name: &str) -> Option<usize> {
    BACKBONES.iter().find(|(known, _)| *known == name).map(|&(_, channels)| channels)
}

/// The rate promised where `calibration.target_fpr` is absent and the held-out images support it.
pub const DEFAULT_TARGET_FPR: f64 = 0.05;

/// From one table of sections and keys: [`Config`] and a struct per section, the default of each key, and its rule.
macro_rules! config {
    ($(
        $(#[$about:meta])* $section:ident: $Section:ident {
            $($(#[$doc:meta])* $key:ident: $kind:ty = $default:expr, $rule:expr;)*
        }
    )*) => {
        /// Everything that shapes a model and its training. Keys in TOML have the same names.
        #[derive(Clone, Debug, PartialEq, Default, Serialize, Deserialize)]
        #[serde(default, deny_unknown_fields)]
        pub struct Config {
            $($(#[$about])* pub $section: $Section,)*
        }

        $(
            #[doc = concat!("`[", stringify!($section), "]`")]
            #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
            #[serde(default, deny_unknown_fields)]
            pub struct $Section {
                $($(#[$doc])* pub $key: $kind,)*
            }

            impl Default for $Section {
                fn default() -> Self {
                    Self { $($key: $default,)* }
                }
            }
        )*

        /// Every key there is, in the order of the structs, with the values it may have.
        const RULES: &[(&str, Kind)] = &[$($((concat!(stringify!($section), ".", stringify!($key)), $rule),)*)*];
    };
}

config! {
    /// What the model looks at.
    input: InputConfig {
        /// The model input in pixels: one number for a square, or `[width, height]`; multiples of 32, 64..=4096.
        size: Size = Size::square(256), size(64, 4096).step(32);
        /// In place of `size`: the input as a fraction of the frame, whose shape is kept. Each class has the input of its median
        /// frame, reduced to no less than 256 pixels along the shorter side.
        scale: Option<f64> = None, above(0.0, 1.0);
        /// How a frame of another aspect becomes the model input.
        fit: Fit = Fit::Stretch, Kind::OneOf(Fit::NAMES);
        /// Whether parts are found before they are looked at, where they shift and turn more than a few pixels and degrees.
        align: Align = Align::None, Kind::OneOf(Align::NAMES);
        /// Picture of a good part that lies as it should; absent: the mean of the good parts.
        align_reference: Option<String> = None, Kind::Path;
        /// How far a part may lie from there, as a fraction of width and height.
        max_shift: f64 = 0.1, closed(0.0, 0.5);
        /// How far it may be turned to either side, in degrees.
        max_turn: f64 = 10.0, closed(0.0, 180.0);
        /// A part is found where its correlation with the picture is at least this.
        min_match: f64 = 0.6, open(0.0, 1.0);
        /// Rectangle `[x, y, width, height]` as fractions (0..=1) of the frame; the rest is not looked at.
        roi: Option<[f64; 4]> = None, Kind::Rectangle;
        /// Image over the whole frame, read when the model is trained and kept in it: what is black (0) is ignored.
        mask: Option<String> = None, Kind::Path;
    }

    /// Feature space.
    features: FeatureConfig {
        /// What the grid's cells hold. In pixel space they are pixels, and `backbone`, `dim`, `whitening` and `clamp` say
        /// nothing.
        space: SpaceKind = SpaceKind::Feature, Kind::OneOf(SpaceKind::NAMES);
        /// Frozen network: `efficientnet-lite0`, `-lite1`, `-lite2`, `resnet18`, `resnet50`, `wide-resnet50`.
        backbone: String = "efficientnet-lite0".into(), Kind::OneOf(&BACKBONE_NAMES);
        /// Cells of the feature grid: one number for a square, or `[width, height]`. Absent: about square cells, 16 of them along
        /// the shorter side of the input or a few more.
        grid: Option<Size> = None, size(4, 256);
        /// Side of a cell in pixels of the input, in place of `grid`: the same for inputs of any size.
        cell: Option<usize> = None, integer(4, 256).step(4);
        /// Scales of the input that the backbone sees, side by side in one feature space: 1, 0.5, 0.25. A reduced one adds little
        /// cost and sees what is large.
        scales: Vec<f64> = vec![1.0], Kind::Scales;
        /// Channels after PCA.
        dim: usize = 128, integer(8, 1024);
        /// Whitening exponent gamma, 0 (plain PCA) to 1 (full whitening).
        whitening: f64 = 0.5, closed(0.0, 1.0);
        /// z-scores are clamped to +- this.
        clamp: f64 = 6.0, closed(1.0, 100.0);
    }

    /// The network.
    denoiser: DenoiserConfig {
        /// Resolutions. 1: blocks on the grid as it is. 2 and more: a U-Net, each level at half the side of the one above.
        levels: usize = 1, integer(1, 6);
        /// Channels of the residual stream on the first level; a multiple of 16.
        width: usize = 128, integer(16, 1024).step(16);
        /// Each level's channels are those of the level above times this.
        growth: usize = 2, integer(1, 4);
        /// Number of blocks on the last level, and on each side of the U-Net on every other level.
        blocks: usize = 4, integer(1, 64);
        /// Self-attention after every n-th block of the last level; 0 for none.
        attention_every: usize = 3, integer(0, 64);
        /// Side of the windows of cells that attend to each other; 0: all cells of the last level do. Of several attentions every
        /// second one has its windows shifted by half a side.
        window: usize = 16, integer(0, 64);
        /// How the network knows where in the frame a cell lies.
        position: Position = Position::Learned, Kind::OneOf(Position::NAMES);
        /// Attention heads.
        heads: usize = 4, integer(1, 64);
        /// Depthwise kernel, odd.
        kernel: usize = 7, integer(3, 7).step(2);
        /// Hidden width of the MLP as a multiple of `width`.
        mlp_ratio: usize = 4, integer(1, 8);
        /// Dropout in the MLP, 0 to below 1.
        dropout: f64 = 0.0, below(0.0, 1.0);
        /// Semantic guidance: the network sees the clean input averaged to this many cells per side; 0 for none.
        guide: usize = 0, integer(0, 16);
        /// How classes share the network.
        classes: ClassStrategy = ClassStrategy::Conditional, Kind::OneOf(ClassStrategy::NAMES);
    }

    /// The noise process.
    diffusion: DiffusionConfig {
        /// Which noise levels there are.
        schedule: ScheduleKind = ScheduleKind::LogSnr, Kind::OneOf(ScheduleKind::NAMES);
        /// Steps T of the linear and the cosine schedule.
        timesteps: usize = 1000, integer(2, 10_000);
        /// First beta of the linear schedule at T = 1000; scaled with 1000 / T.
        beta_start: f64 = 1e-4, open(0.0, 1.0);
        /// Last beta of the linear schedule at T = 1000; scaled with 1000 / T.
        beta_end: f64 = 0.02, open(0.0, 1.0);
        /// What the network predicts.
        prediction: Prediction = Prediction::X0, Kind::OneOf(Prediction::NAMES);
        /// How the loss counts at each level.
        weighting: Weighting = Weighting::MinSnr, Kind::OneOf(Weighting::NAMES);
        /// Smallest log-SNR seen in training.
        log_snr_min: f64 = -3.0, closed(-20.0, 20.0);
        /// Largest log-SNR seen in training.
        log_snr_max: f64 = 4.0, closed(-20.0, 20.0);
        /// Centre of the normal distribution half of the draws come from.
        log_snr_center: f64 = -0.4, closed(-20.0, 20.0);
        /// Its standard deviation.
        log_snr_spread: f64 = 1.0, above(0.0, 20.0);
        /// gamma of the min-SNR weight.
        min_snr_gamma: f64 = 5.0, above(0.0, 1e6);
        /// Floor of the min-SNR weight.
        min_snr_floor: f64 = 0.3, closed(0.0, 1e6);
    }

    /// How it is trained.
    training: TrainingConfig {
        /// Optimizer steps.
        steps: usize = 1000, integer(1, 10_000_000);
        /// Images per step.
        batch_size: usize = 16, integer(1, 4096);
        /// Peak learning rate.
        learning_rate: f64 = 3e-3, above(0.0, 1.0);
        /// Final learning rate as a fraction of the peak.
        final_rate: f64 = 0.02, closed(0.0, 1.0);
        /// Steps of linear warm-up.
        warmup_steps: usize = 100, integer(0, 10_000_000);
        /// AdamW weight decay.
        weight_decay: f64 = 0.05, closed(0.0, 1.0);
        /// Gradient norm is clipped to this.
        clip_norm: f64 = 1.0, above(0.0, 1e6);
        /// Decay of the exponential moving average of the weights.
        ema_decay: f64 = 0.999, below(0.0, 1.0);
        /// Highest fraction of masked tokens.
        mask: f64 = 0.3, below(0.0, 1.0);
        /// Highest fraction of tokens taken from another image.
        shuffle: f64 = 0.15, below(0.0, 1.0);
        /// Side of the window of the grid, in cells, that a step looks at, at random where the grid is larger; 0: all of it.
        window: usize = 16, integer(0, 256);
        /// Probability that the class label is dropped.
        class_drop: f64 = 0.15, closed(0.0, 1.0);
        /// Mild changes of each image that the statistics of good parts are told of as well.
        augment: Augment = Augment::Mild, Kind::OneOf(Augment::NAMES);
        /// Fraction of each class's good images held out for calibration where `calibration.folds` is 1.
        calibration_fraction: f64 = 0.15, closed(0.01, 0.9);
        /// Steps between checkpoints.
        checkpoint_steps: usize = 250, integer(1, 10_000_000);
        /// Features beyond this many MiB spill to a temporary file.
        cache_mib: usize = 1536, integer(1, 1 << 20);
        /// Seed of everything random.
        seed: u64 = 0, integer(0, i64::MAX);
    }

    /// From reconstruction to map and score.
    detection: DetectionConfig {
        /// What the reconstruction starts from.
        start: StartKind = StartKind::Scaled, Kind::OneOf(StartKind::NAMES);
        /// alpha-bar of the start, between 0 and 1; `start = "pure"` starts at the noisiest level there is.
        start_alpha_bar: f64 = 0.4, open(0.0, 1.0);
        /// How it goes on from there.
        sampler: SamplerKind = SamplerKind::Project, Kind::OneOf(SamplerKind::NAMES);
        /// Denoiser evaluations per frame.
        ddim_steps: usize = 1, integer(1, 1000);
        /// Share of fresh noise in DDIM steps, 0 to 1.
        eta: f64 = 0.0, closed(0.0, 1.0);
        /// Seed of the noise of start and steps, which is the same for every frame.
        noise_seed: u64 = 0, integer(0, i64::MAX);
        /// What the denoiser is told of the class.
        condition: ClassCondition = ClassCondition::None, Kind::OneOf(ClassCondition::NAMES);
        /// Classifier-free guidance: the answer is that without class, and this times the difference that the class makes.
        guidance: f64 = 1.0, closed(0.0, 20.0);
        /// What the map is made of.
        score: ScoreKind = ScoreKind::Reconstruction, Kind::OneOf(ScoreKind::NAMES);
        /// Levels (alpha-bar) at which the diffusion score asks for the noise.
        diffusion_alpha_bars: Vec<f64> = vec![0.8, 0.5, 0.2], Kind::Fractions;
        /// Weight of the diffusion score in the sum.
        diffusion_weight: f64 = 0.5, closed(0.0, 1000.0);
        /// Standard deviation of the Gaussian over the map, in input pixels.
        smoothing_px: f64 = 4.0, closed(0.0, 128.0);
        /// Size of a defect in cells of the grid: the image score is the mean of as much of the map, where it is highest. It does
        /// not depend on the size of the frame.
        defect_cells: f64 = 2.56, above(0.0, 1e6);
        /// The same as a fraction of the map, which fades in large frames. Absent: `defect_cells`; in pixel space 0.01.
        top_fraction: Option<f64> = None, above(0.0, 1.0);
        /// Side, in cells, of the squares whose mean residual is measured beside that of each cell, for what is too faint for a
        /// single cell; odd. 1: the cells alone. For the Mahalanobis distance.
        context: usize = 3, integer(1, 7).step(2);
        /// Side of the squares of cells that share a covariance of residuals. Absent: 1, and more where there are more than 1024
        /// cells, so that no more than 1024 squares take memory.
        covariance_cells: Option<usize> = None, integer(1, 64);
        /// How far a cell's residual is from those of good parts.
        distance: Distance = Distance::Mahalanobis, Kind::OneOf(Distance::NAMES);
        /// How one answer is made of those of several classes.
        decision: Decision = Decision::Class, Kind::OneOf(Decision::NAMES);
    }

    /// From score to verdict.
    calibration: CalibrationConfig {
        /// Promised false-reject rate of `ng`. Absent: 0.05, or the smallest rate the class's held-out images support.
        target_fpr: Option<f64> = None, open(0.0, 1.0);
        /// Promised rate of `warn` or worse among good parts. Absent: twice the rate of `ng`.
        warn_fpr: Option<f64> = None, open(0.0, 1.0);
        /// Regions below this many input pixels are not reported.
        min_area: usize = 16, integer(0, 1_000_000);
        /// Parts into which the good images are divided, each scored by a network and statistics of the others; 1 holds some
        /// images out instead (`training.calibration_fraction`), which then teach nothing.
        folds: usize = 5, integer(1, 50);
        /// How images of one part are told where the command line does not say it.
        groups: Grouping = Grouping::Auto, Kind::OneOf(Grouping::NAMES);
        /// Thresholds are measured in single precision, and in this precision as well where the device computes in it.
        precision: Precision = Precision::Auto, Kind::OneOf(Precision::NAMES);
    }
}

impl Config {
    /// Gives the keys that model files of schema 1 do not have the meaning that they had then.
    pub(crate) fn as_in_schema_1(&mut self) {
        self.training.augment = Augment::None;
        self.calibration.folds = 1;
        self.calibration.groups = Grouping::None;
        self.detection.context = 1;
        self.detection.top_fraction.get_or_insert(0.01);
        self.detection.covariance_cells.get_or_insert(1);
        self.denoiser.window = 0;
    }

    /// The part of the grid that a training step looks at.
    pub fn training_window(&self) -> Size {
        let windowed =
            self.denoiser.levels == 1 && self.denoiser.guide == 0 && self.features.space == SpaceKind::Feature;
        match self.training.window {
            side if side > 0 && windowed => self.grid().map(|cells| cells.min(side)),
            _ => self.grid(),
        }
    }

    /// Cells of the grid over whose map values, where they are highest, the image score is the mean.
    pub fn scored_cells(&self) -> f64 {
        let pixels = self.features.space == SpaceKind::Pixel;
        match self.detection.top_fraction.or(pixels.then_some(0.01)) {
            Some(fraction) => fraction * self.tokens() as f64,
            None => self.detection.defect_cells,
        }
    }

    /// Channels of a cell of the grid.
    pub fn dim(&self) -> usize {
        match self.features.space {
            SpaceKind::Feature => self.features.dim,
            SpaceKind::Pixel => 3,
        }
    }

    /// The same with what is absent and depends on other keys filled in; with `input.scale`, that belongs to the classes.
    pub(crate) fn resolved(&self) -> Self {
        if self.input.scale.is_some() {
            return self.clone();
        }
        let features = FeatureConfig { grid: Some(self.grid()), ..self.features.clone() };
        let detection = DetectionConfig { covariance_cells: Some(self.covariances().side), ..self.detection.clone() };
        Self { features, detection, ..self.clone() }
    }

    /// The squares of cells that share a covariance.
    pub fn covariances(&self) -> Blocks {
        const MOST: usize = 1024;
        let grid = self.grid();
        let of = |side: usize| Blocks { grid, side };
        let fewest = || (1..).map(of).find(|blocks| blocks.count() <= MOST).unwrap_or(of(1));
        self.detection.covariance_cells.map_or_else(fewest, of)
    }

    /// The feature grid: the one that is configured, or that of configured cells, else square cells as the default has them for this
    /// input.
    pub fn grid(&self) -> Size {
        let of_cells = |cell: usize| self.input.size.map(|side| (side / cell).max(1));
        let stated = self.features.grid.or_else(|| self.features.cell.map(of_cells));
        stated.unwrap_or_else(|| default_grid(self.input.size))
    }

    /// Cells of the grid.
    pub fn tokens(&self) -> usize {
        self.grid().area()
    }
}

/// About square cells, 16 of them along the shorter side of the input or a few more: multiples of the coarsest stride of the backbone
/// that divide the input. Of an input below 256 pixels they are smaller than that stride.
fn default_grid(input: Size) -> Size {
    const CELLS: usize = 16;
    const FEWEST: usize = 14;
    const STRIDE: usize = 16;
    let shorter = input.width.min(input.height);
    if shorter < CELLS * STRIDE {
        let divides =
            |cell: &usize| shorter / cell >= CELLS && input.sides().iter().all(|side| side.is_multiple_of(*cell));
        let cell = [8, 4].into_iter().find(divides).unwrap_or(4);
        return input.map(|side| side / cell);
    }
    let ideal = shorter as f64 / CELLS as f64;
    input.map(|side| {
        let cells = (1..=side / STRIDE).filter(|cells| (side / STRIDE).is_multiple_of(*cells));
        let enough = cells.filter(|cells| cells * shorter >= FEWEST * side);
        let off = |cells: &usize| (side as f64 / *cells as f64 / ideal).ln().abs();
        enough.min_by(|a, b| off(a).total_cmp(&off(b))).unwrap_or(side / STRIDE)
    })
}

impl FeatureConfig {
    /// Pixels of the input per pixel of each scale and side.
    pub fn reductions(&self) -> Vec<usize> {
        self.scales.iter().map(|scale| (1.0 / scale).round() as usize).collect()
    }

    /// Channels that the taps of the backbone deliver on all scales together, where its name is known.
    pub fn channels(&self) -> Option<usize> {
        backbone_channels(&self.backbone).map(|channels| channels * self.scales.len())
    }
}

impl DiffusionConfig {
    /// The noise levels there are.
    ///
    /// # Errors
    /// When the numbers make no schedule.
    pub fn process(&self) -> Result<Process> {
        Ok(match self.schedule {
            ScheduleKind::LogSnr => {
                Process::Continuous { log_snr_min: self.log_snr_min, log_snr_max: self.log_snr_max }
            }
            ScheduleKind::Linear => {
                Process::Discrete(Schedule::linear(self.beta_start, self.beta_end, self.timesteps)?)
            }
            ScheduleKind::Cosine => Process::Discrete(Schedule::cosine(self.timesteps)?),
        })
    }
}

impl DetectionConfig {
    /// Noise levels, as alpha-bars, at which the score asks for the error of the predicted noise.
    pub fn probes(&self) -> &[f64] {
        match self.score {
            ScoreKind::Reconstruction => &[],
            ScoreKind::Literal => self.diffusion_alpha_bars.get(..1).unwrap_or_default(),
            ScoreKind::Diffusion | ScoreKind::Sum => &self.diffusion_alpha_bars,
        }
    }

    /// Whether the score has a place for what known defects teach: it is the Mahalanobis distance from the reconstruction.
    pub fn takes_known_defects(&self) -> bool {
        (self.distance, self.score) == (Distance::Mahalanobis, ScoreKind::Reconstruction)
    }

    /// Whether the score asks for any.
    pub fn needs_noise_errors(&self) -> bool {
        !self.probes().is_empty()
    }
}
