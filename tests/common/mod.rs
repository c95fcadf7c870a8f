//! What tests of the program share: how it is run, and drawn parts with a model that knows them.

#![allow(dead_code, reason = "each test program uses its part")]

mod parts;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use candle_core::{Device, Tensor};
use diad::model::{Weights, weight_shapes};
use parts::{draw, made_once};

/// The program under test.
pub(crate) const DIAD: &str = env!("CARGO_BIN_EXE_diad");

/// What a run left.
#[derive(Debug)]
pub(crate) struct Run {
    pub(crate) code: i32,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Run {
    /// It ended well.
    #[track_caller]
    pub(crate) fn ok(self) -> Self {
        assert_eq!(self.code, 0, "{self:#?}");
        self
    }

    /// It ended with this code and with one message that names all of `what`.
    #[track_caller]
    pub(crate) fn refused(self, code: i32, what: &[&str]) -> Self {
        assert_eq!(self.code, code, "{self:#?}");
        let messages = self.stderr.lines().filter(|line| line.starts_with("diad: error: ")).count();
        assert_eq!(messages, 1, "{self:#?}");
        for what in what {
            assert!(self.stderr.contains(what), "{what:?} is not in {self:#?}");
        }
        assert!(!self.stderr.contains("panicked") && !self.stderr.contains("internal error"), "{self:#?}");
        self
    }
}

/// The program with arguments separated by spaces; `{}` stands for the next of `paths`.
pub(crate) fn command(line: &str, paths: &[&Path]) -> Command {
    let mut paths = paths.iter();
    let mut command = Command::new(DIAD);
    for word in line.split_whitespace() {
        if word == "{}" {
            command.arg(paths.next().expect("a path for every {}"));
        } else {
            command.arg(word);
        }
    }
    assert!(paths.next().is_none(), "a {{}} for every path");
    command.stdin(Stdio::null()).env_remove("DIAD_LOG").env_remove("RUST_BACKTRACE");
    command
}

/// Runs it to its end.
pub(crate) fn diad(line: &str, paths: &[&Path]) -> Run {
    finished(command(line, paths))
}

/// Runs a command to its end.
pub(crate) fn finished(mut command: Command) -> Run {
    let output = command.output().expect("the program starts");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Run { code: output.status.code().unwrap_or(-1), stdout: text(&output.stdout), stderr: text(&output.stderr) }
}

/// The configuration that trains in a second.
pub(crate) fn smoke() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("configs/smoke.toml")
}

/// Drawn parts, and a model that was trained on them with [`smoke`].
pub(crate) struct Shop {
    pub(crate) parts: PathBuf,
    pub(crate) model: PathBuf,
}

/// The shop of this build of the program; made once, whichever test process comes first.
pub(crate) fn shop() -> &'static Shop {
    static SHOP: OnceLock<Shop> = OnceLock::new();
    SHOP.get_or_init(|| {
        let place = made_once(Path::new(env!("CARGO_TARGET_TMPDIR")), "shop", Path::new(DIAD), |fresh| {
            draw(&fresh.join("parts"));
            diad("train --data {} --out {} --config {}", &[&fresh.join("parts"), &fresh.join("m.diad"), &smoke()]).ok();
        });
        Shop { parts: place.join("parts"), model: place.join("m.diad") }
    })
}

/// All file and folder names in a folder, sorted.
pub(crate) fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).expect("a folder");
    let mut names: Vec<String> =
        entries.map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

/// Assignments of a model of pictures.
pub(crate) const PIXELS: &str = "features.space=pixel features.grid=32 denoiser.levels=2 denoiser.width=16 \
    denoiser.attention_every=1 training.mask=0 training.shuffle=0";

/// Assignments of each choice, over the configuration that trains in a second.
pub(crate) const CHOICES: &[&str] = &[
    "input.size=128 features.grid=8 features.scales=[1.0,0.5]",
    "input.size=[64,96] features.grid=[8,12] denoiser.window=5 training.window=7 detection.covariance_cells=3",
    "diffusion.schedule=linear diffusion.timesteps=20 diffusion.prediction=epsilon diffusion.weighting=uniform \
     training.mask=0 training.shuffle=0 detection.start=noised detection.sampler=ddpm detection.distance=l2",
    "diffusion.schedule=cosine diffusion.prediction=v detection.start=noised detection.sampler=ddim \
     detection.ddim_steps=3 detection.eta=0.7 detection.noise_seed=5 detection.distance=cosine",
    "detection.start=pure detection.sampler=ddim detection.ddim_steps=2 denoiser.guide=2",
    "detection.score=diffusion",
    "detection.score=sum detection.start=noised detection.sampler=ddim",
    "detection.score=literal detection.diffusion_alpha_bars=[0.5]",
    "detection.condition=class detection.guidance=1.5",
    "detection.decision=pixel-minimum",
    "denoiser.classes=heads",
    "denoiser.classes=separate",
    "denoiser.levels=3 denoiser.width=16",
];

/// Trains on the shop's parts with the assignments of a choice.
pub(crate) fn teach(choice: &str, model: &Path) {
    let set: String = choice.split_whitespace().map(|assignment| format!(" --set {assignment}")).collect();
    let line = format!("train --data {{}} --out {{}} --config {{}}{set}");
    diad(&line, &[&shop().parts, model, &smoke()]).ok();
}

/// A ResNet's weights by the formula in tests/backbones.rs, so that no file is needed. Names are listed in the order of use,
/// but for a block's shortcut, which PyTorch's networks list last and use last as well.
pub(crate) fn weights_by_formula(name: &str) -> Weights {
    let all = weight_shapes(name).unwrap().into_iter().enumerate().map(|(count, (name, shape))| {
        let (amplitude, offset) = match name.rsplit('.').next().unwrap() {
            "weight" if shape.len() == 4 => (2.0 / (shape[1..].iter().product::<usize>() as f64).sqrt(), 0.0),
            "weight" => (0.3, 1.0),
            "running_var" => (0.5, 1.0),
            _ => (0.3, 0.0),
        };
        let value = |i: usize| (offset + amplitude * (1.0 + (i * i % 1009) as f64).sin()) as f32;
        let values = (0..shape.iter().product()).map(|i: usize| value(i + 7 * count));
        (name, Tensor::from_iter(values, &Device::Cpu).unwrap().reshape(shape).unwrap())
    });
    all.collect()
}
