//! Configuration: one struct and its defaults here, its rules in `rules.rs`, its way from text in `read.rs`.
//!
//! A [`Config`] made by [`Config::from_toml`], [`Config::from_file`] or [`Config::assign`] keeps every rule. One that
//! was put together by hand is checked with [`Config::check`].

mod kind;
mod read;
mod rules;

use serde::{Deserialize, Serialize};

use crate::diffusion::{Prediction, Process, Schedule};
use crate::error::Result;
use crate::named::named;

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

/// Everything that shapes a model and its training. Keys in TOML have the same names.
#[derive(Clone, Debug, PartialEq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// What the model looks at.
    pub input: InputConfig,
    /// Feature space.
    pub features: FeatureConfig,
    /// The network.
    pub denoiser: DenoiserConfig,
    /// The noise process.
    pub diffusion: DiffusionConfig,
    /// How it is trained.
    pub training: TrainingConfig,
    /// From reconstruction to map and score.
    pub detection: DetectionConfig,
    /// From score to verdict.
    pub calibration: CalibrationConfig,
}

/// `[input]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct InputConfig {
    /// Side of the square model input in pixels; a multiple of 32, 64..=1024.
    pub size: usize,
    /// How a frame becomes square.
    pub fit: Fit,
    /// Rectangle `[x, y, width, height]` as fractions (0..=1) of the frame; the rest is not looked at.
    pub roi: Option<[f64; 4]>,
    /// Image over the whole frame, read when the model is trained and kept in it: what is black (0) is ignored.
    pub mask: Option<String>,
}

named! {
    /// How a frame that is not square becomes the model input.
    pub enum Fit: "fit" {
        /// Width and height are scaled independently.
        Stretch = "stretch",
        /// Scaled with its aspect, centred; the border repeats the edge and is not scored.
        Pad = "pad",
    }
}

named! {
    /// What is modelled.
    pub enum SpaceKind: "space" {
        /// Features of a frozen backbone.
        Feature = "feature",
        /// The picture itself, RGB.
        Pixel = "pixel",
    }
}

/// `[features]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct FeatureConfig {
    /// What the grid's cells hold. In pixel space they are pixels, and `backbone`, `dim`, `whitening` and `clamp` say
    /// nothing.
    pub space: SpaceKind,
    /// Frozen network: `efficientnet-lite0`, `-lite1`, `-lite2`, `resnet18`, `resnet50`, `wide-resnet50`.
    pub backbone: String,
    /// Cells per side of the feature grid.
    pub grid: usize,
    /// Channels after PCA.
    pub dim: usize,
    /// Whitening exponent gamma, 0 (plain PCA) to 1 (full whitening).
    pub whitening: f64,
    /// z-scores are clamped to +- this.
    pub clamp: f64,
}

/// `[denoiser]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DenoiserConfig {
    /// Resolutions. 1: blocks on the grid as it is. 2 and more: a U-Net, each level at half the side of the one above.
    pub levels: usize,
    /// Channels of the residual stream on the first level; a multiple of 16.
    pub width: usize,
    /// Each level's channels are those of the level above times this.
    pub growth: usize,
    /// Number of blocks on the last level, and on each side of the U-Net on every other level.
    pub blocks: usize,
    /// Self-attention after every n-th block of the last level; 0 for none.
    pub attention_every: usize,
    /// Attention heads.
    pub heads: usize,
    /// Depthwise kernel, odd.
    pub kernel: usize,
    /// Hidden width of the MLP as a multiple of `width`.
    pub mlp_ratio: usize,
    /// Dropout in the MLP, 0 to below 1.
    pub dropout: f64,
    /// Semantic guidance: the network sees the clean input averaged to this many cells per side; 0 for none.
    pub guide: usize,
    /// How classes share the network.
    pub classes: ClassStrategy,
}

named! {
    /// How classes share the network.
    pub enum ClassStrategy: "classes" {
        /// One network that is told the class, or that there is none.
        Conditional = "conditional",
        /// One network with an output layer per class.
        Heads = "heads",
        /// A network per class.
        Separate = "separate",
    }
}

/// `[diffusion]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DiffusionConfig {
    /// Which noise levels there are.
    pub schedule: ScheduleKind,
    /// Steps T of the linear and the cosine schedule.
    pub timesteps: usize,
    /// First beta of the linear schedule at T = 1000; scaled with 1000 / T.
    pub beta_start: f64,
    /// Last beta of the linear schedule at T = 1000; scaled with 1000 / T.
    pub beta_end: f64,
    /// What the network predicts.
    pub prediction: Prediction,
    /// How the loss counts at each level.
    pub weighting: Weighting,
    /// Smallest log-SNR seen in training.
    pub log_snr_min: f64,
    /// Largest log-SNR seen in training.
    pub log_snr_max: f64,
    /// Centre of the normal distribution half of the draws come from.
    pub log_snr_center: f64,
    /// Its standard deviation.
    pub log_snr_spread: f64,
    /// gamma of the min-SNR weight.
    pub min_snr_gamma: f64,
    /// Floor of the min-SNR weight.
    pub min_snr_floor: f64,
}

named! {
    /// The noise levels that training draws from and detection visits.
    pub enum ScheduleKind: "schedule" {
        /// Continuous in log-SNR between `log_snr_min` and `log_snr_max`.
        LogSnr = "log-snr",
        /// T steps, betas on a line (Ho et al. 2020).
        Linear = "linear",
        /// T steps, alpha-bar a squared cosine (Nichol & Dhariwal 2021).
        Cosine = "cosine",
    }
}

named! {
    /// How the loss counts at each level.
    pub enum Weighting: "weighting" {
        /// min-SNR-gamma with a floor (Hang et al. 2023).
        MinSnr = "min-snr",
        /// The plain squared error of what is predicted (Ho et al. 2020, equation 14).
        Uniform = "uniform",
    }
}

/// `[training]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TrainingConfig {
    /// Optimizer steps.
    pub steps: usize,
    /// Images per step.
    pub batch_size: usize,
    /// Peak learning rate.
    pub learning_rate: f64,
    /// Final learning rate as a fraction of the peak.
    pub final_rate: f64,
    /// Steps of linear warm-up.
    pub warmup_steps: usize,
    /// AdamW weight decay.
    pub weight_decay: f64,
    /// Gradient norm is clipped to this.
    pub clip_norm: f64,
    /// Decay of the exponential moving average of the weights.
    pub ema_decay: f64,
    /// Highest fraction of masked tokens.
    pub mask: f64,
    /// Highest fraction of tokens taken from another image.
    pub shuffle: f64,
    /// Probability that the class label is dropped.
    pub class_drop: f64,
    /// Fraction of each class's good images held out for calibration.
    pub calibration_fraction: f64,
    /// Steps between checkpoints.
    pub checkpoint_steps: usize,
    /// Features beyond this many MiB spill to a temporary file.
    pub cache_mib: usize,
    /// Seed of everything random.
    pub seed: u64,
}

/// `[detection]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DetectionConfig {
    /// What the reconstruction starts from.
    pub start: StartKind,
    /// alpha-bar of the start, between 0 and 1; `start = "pure"` starts at the noisiest level there is.
    pub start_alpha_bar: f64,
    /// How it goes on from there.
    pub sampler: SamplerKind,
    /// Denoiser evaluations per frame.
    pub ddim_steps: usize,
    /// Share of fresh noise in DDIM steps, 0 to 1.
    pub eta: f64,
    /// Seed of the noise of start and steps, which is the same for every frame.
    pub noise_seed: u64,
    /// What the denoiser is told of the class.
    pub condition: ClassCondition,
    /// Classifier-free guidance: the answer is that without class, and this times the difference that the class makes.
    pub guidance: f64,
    /// What the map is made of.
    pub score: ScoreKind,
    /// Levels (alpha-bar) at which the diffusion score asks for the noise.
    pub diffusion_alpha_bars: Vec<f64>,
    /// Weight of the diffusion score in the sum.
    pub diffusion_weight: f64,
    /// Standard deviation of the Gaussian over the map, in input pixels.
    pub smoothing_px: f64,
    /// The image score is the mean of this fraction of the highest map values.
    pub top_fraction: f64,
    /// How far a cell's residual is from those of good parts.
    pub distance: Distance,
    /// How one answer is made of those of several classes.
    pub decision: Decision,
}

named! {
    /// What the reconstruction starts from.
    pub enum StartKind: "start" {
        /// The input times `sqrt(alpha_bar)`: nothing random.
        Scaled = "scaled",
        /// The input with noise.
        Noised = "noised",
        /// Noise alone.
        Pure = "pure",
    }
}

named! {
    /// How a reconstruction goes from level to level.
    pub enum SamplerKind: "sampler" {
        /// DDIM steps that drop what the reconstruction does not explain.
        Project = "project",
        /// DDIM steps (Song et al. 2021).
        Ddim = "ddim",
        /// Every step of the schedule by the posterior (Ho et al. 2020).
        Ddpm = "ddpm",
    }
}

named! {
    /// What the denoiser is told of the class.
    pub enum ClassCondition: "condition" {
        /// Nothing.
        None = "none",
        /// The class that is known, or each one that is tried.
        Class = "class",
    }
}

named! {
    /// What the map is made of.
    pub enum ScoreKind: "score" {
        /// What was not rebuilt, by `distance`.
        Reconstruction = "reconstruction",
        /// Error of the predicted noise.
        Diffusion = "diffusion",
        /// Both, each in units of its mean over good parts.
        Sum = "sum",
        /// Squared error plus a weight times the noise error of the whole image, as the method was first written down.
        Literal = "literal",
    }
}

named! {
    /// How one answer is made of those of several classes.
    pub enum Decision: "decision" {
        /// One class for the image, the one with the lowest calibrated score; its map.
        Class = "class",
        /// The lowest value of any class in each cell. Unsafe: a defect that looks like another product vanishes.
        PixelMinimum = "pixel-minimum",
    }
}

named! {
    /// Measure of a residual.
    pub enum Distance: "distance" {
        /// Mahalanobis distance to the good parts' residuals of the same class and place.
        Mahalanobis = "mahalanobis",
        /// Root of the mean squared error over the features.
        L2 = "l2",
        /// 1 - the cosine between input and reconstruction, in the raw features, the mean over the backbone's scales.
        Cosine = "cosine",
    }
}

/// `[calibration]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct CalibrationConfig {
    /// Promised false-reject rate of `ng`. Absent: 0.05, or the smallest rate the class's held-out images support.
    pub target_fpr: Option<f64>,
    /// Promised rate of `warn` or worse among good parts. Absent: twice the rate of `ng`.
    pub warn_fpr: Option<f64>,
    /// Regions below this many input pixels are not reported.
    pub min_area: usize,
}

impl Config {
    /// Channels of a cell of the grid.
    pub fn dim(&self) -> usize {
        match self.features.space {
            SpaceKind::Feature => self.features.dim,
            SpaceKind::Pixel => 3,
        }
    }

    /// Cells of the grid.
    pub fn tokens(&self) -> usize {
        self.features.grid * self.features.grid
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

    /// Whether the score asks for any.
    pub fn needs_noise_errors(&self) -> bool {
        !self.probes().is_empty()
    }
}

impl Default for InputConfig {
    fn default() -> Self {
        Self { size: 256, fit: Fit::Stretch, roi: None, mask: None }
    }
}

impl Default for FeatureConfig {
    fn default() -> Self {
        let backbone = "efficientnet-lite0".into();
        Self { space: SpaceKind::Feature, backbone, grid: 16, dim: 128, whitening: 0.5, clamp: 6.0 }
    }
}

impl Default for DenoiserConfig {
    fn default() -> Self {
        Self {
            levels: 1,
            width: 128,
            growth: 2,
            blocks: 4,
            attention_every: 3,
            heads: 4,
            kernel: 7,
            mlp_ratio: 4,
            dropout: 0.0,
            guide: 0,
            classes: ClassStrategy::Conditional,
        }
    }
}

impl Default for DiffusionConfig {
    fn default() -> Self {
        Self {
            schedule: ScheduleKind::LogSnr,
            timesteps: 1000,
            beta_start: 1e-4,
            beta_end: 0.02,
            prediction: Prediction::X0,
            weighting: Weighting::MinSnr,
            log_snr_min: -3.0,
            log_snr_max: 4.0,
            log_snr_center: -0.4,
            log_snr_spread: 1.0,
            min_snr_gamma: 5.0,
            min_snr_floor: 0.3,
        }
    }
}

impl Default for TrainingConfig {
    fn default() -> Self {
        Self {
            steps: 1000,
            batch_size: 16,
            learning_rate: 3e-3,
            final_rate: 0.02,
            warmup_steps: 100,
            weight_decay: 0.05,
            clip_norm: 1.0,
            ema_decay: 0.999,
            mask: 0.3,
            shuffle: 0.15,
            class_drop: 0.15,
            calibration_fraction: 0.15,
            checkpoint_steps: 250,
            cache_mib: 1536,
            seed: 0,
        }
    }
}

impl Default for DetectionConfig {
    fn default() -> Self {
        Self {
            start: StartKind::Scaled,
            start_alpha_bar: 0.4,
            sampler: SamplerKind::Project,
            ddim_steps: 1,
            eta: 0.0,
            noise_seed: 0,
            condition: ClassCondition::None,
            guidance: 1.0,
            score: ScoreKind::Reconstruction,
            diffusion_alpha_bars: vec![0.8, 0.5, 0.2],
            diffusion_weight: 0.5,
            smoothing_px: 4.0,
            top_fraction: 0.01,
            distance: Distance::Mahalanobis,
            decision: Decision::Class,
        }
    }
}

impl Default for CalibrationConfig {
    fn default() -> Self {
        Self { target_fpr: None, warn_fpr: None, min_area: 16 }
    }
}
