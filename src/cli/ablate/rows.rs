//! The named grid: each row is what it changes in the configuration it starts from.

/// One choice to measure.
#[derive(Clone, Copy, Debug)]
pub(super) struct Row {
    pub(super) group: &'static str,
    pub(super) name: &'static str,
    /// Assignments as for `--set`.
    pub(super) set: &'static [&'static str],
}

const fn row(group: &'static str, name: &'static str, set: &'static [&'static str]) -> Row {
    Row { group, name, set }
}

/// All rows. Those of one group differ in one thing.
pub(super) const ROWS: &[Row] = &[
    row("base", "base", &[]),
    row("start", "start-scaled-ddim", &["detection.sampler=ddim", "detection.ddim_steps=3"]),
    row("start", "start-noised", &["detection.start=noised", "detection.sampler=ddim"]),
    row("start", "start-noised-3", &["detection.start=noised", "detection.sampler=ddim", "detection.ddim_steps=3"]),
    row(
        "start",
        "start-noised-eta-1",
        &["detection.start=noised", "detection.sampler=ddim", "detection.ddim_steps=3", "detection.eta=1"],
    ),
    row("start", "start-pure", &["detection.start=pure", "detection.sampler=ddim", "detection.ddim_steps=10"]),
    row("steps", "steps-2", &["detection.ddim_steps=2"]),
    row("steps", "steps-3", &["detection.ddim_steps=3"]),
    row("steps", "steps-5", &["detection.ddim_steps=5"]),
    row("steps", "steps-10", &["detection.ddim_steps=10"]),
    row("level", "level-0.8", &["detection.start_alpha_bar=0.8"]),
    row("level", "level-0.6", &["detection.start_alpha_bar=0.6"]),
    row("level", "level-0.25", &["detection.start_alpha_bar=0.25"]),
    row("level", "level-0.1", &["detection.start_alpha_bar=0.1"]),
    row("score", "score-l2", &["detection.distance=l2"]),
    row("score", "score-cosine", &["detection.distance=cosine"]),
    row("score", "score-diffusion", &["detection.score=diffusion"]),
    row("score", "score-sum", &["detection.score=sum"]),
    row("score", "score-literal", &["detection.score=literal"]),
    row("classes", "classes-told", &["detection.condition=class"]),
    row("classes", "classes-guidance-2", &["detection.condition=class", "detection.guidance=2"]),
    row("classes", "classes-pixel-minimum", &["detection.decision=pixel-minimum"]),
    row("classes", "classes-heads", &["denoiser.classes=heads"]),
    row("classes", "classes-separate", &["denoiser.classes=separate"]),
    row("prediction", "prediction-v", &["diffusion.prediction=v"]),
    row("prediction", "prediction-epsilon", &["diffusion.prediction=epsilon"]),
    row(
        "prediction",
        "prediction-epsilon-10",
        &["diffusion.prediction=epsilon", "detection.sampler=ddim", "detection.ddim_steps=10"],
    ),
    row("schedule", "schedule-cosine", &["diffusion.schedule=cosine"]),
    row("schedule", "schedule-linear", &["diffusion.schedule=linear"]),
    row(
        "schedule",
        "schedule-ddpm-100",
        &[
            "diffusion.schedule=linear",
            "diffusion.timesteps=100",
            "diffusion.prediction=epsilon",
            "diffusion.weighting=uniform",
            "training.mask=0",
            "training.shuffle=0",
            "detection.start=noised",
            "detection.sampler=ddpm",
        ],
    ),
    row("guidance", "guidance-4", &["denoiser.guide=4"]),
    row(
        "guidance",
        "guidance-4-pure",
        &[
            "denoiser.guide=4",
            "diffusion.schedule=cosine",
            "detection.start=pure",
            "detection.sampler=ddim",
            "detection.ddim_steps=10",
        ],
    ),
    row(
        "network",
        "network-unet",
        &["denoiser.levels=2", "denoiser.width=96", "denoiser.blocks=2", "denoiser.attention_every=1"],
    ),
    row("network", "network-no-attention", &["denoiser.attention_every=0"]),
    row("training", "training-no-mask", &["training.mask=0"]),
    row("training", "training-no-shuffle", &["training.shuffle=0"]),
    row("training", "training-neither", &["training.mask=0", "training.shuffle=0"]),
];
