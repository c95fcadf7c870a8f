//! What a configuration may say: the rule of each key by itself, from [`RULES`], and the conditions between keys, [`TOGETHER`].
//!
//! To add a key: a line with its comment, default and rule in `config/mod.rs`, a line in `configs/default.toml`. Tests fail
//! until both agree.

use serde::Deserialize;
use toml::{Table, Value};

use super::kind::Kind;
use super::{
    ClassCondition, ClassStrategy, Config, DEFAULT_TARGET_FPR, RULES, SamplerKind, ScheduleKind, Size, SpaceKind,
    StartKind, Weighting,
};
use crate::diffusion::{Prediction, Process};
use crate::text::closest;

/// A condition between keys.
pub(super) struct Condition {
    /// The keys, the one to blame first.
    keys: &'static [&'static str],
    /// What must hold. Called only with keys that are right in themselves.
    holds: fn(&Config) -> bool,
    /// The same in words, after "expected".
    words: &'static str,
}

/// Every condition between keys.
pub(super) const TOGETHER: &[Condition] = &[
    Condition {
        keys: &["input.size", "features.grid"],
        holds: |c| is_pixels(c) || strides(c).all(|stride| fits(c.input.size.map(|side| side / stride), c.grid())),
        words: "grid to divide the sides of the feature maps (1/4, 1/8 and 1/16 of size) or to be a multiple of them, \
                for instance size / 16",
    },
    Condition {
        keys: &["features.cell", "input.size"],
        holds: |c| {
            let divides = |cell: usize| c.input.size.sides().iter().all(|side| side.is_multiple_of(cell));
            c.features.cell.is_none_or(divides)
        },
        words: "sides that are multiples of cell",
    },
    Condition {
        keys: &["features.cell", "features.grid"],
        holds: |c| c.features.cell.is_none_or(|cell| c.input.size.map(|side| side / cell) == c.grid()),
        words: "one of them; the grid has the size of the input over cell",
    },
    Condition {
        keys: &["input.size", "features.scales"],
        holds: |c| {
            let whole = |reduction: &usize| c.input.size.sides().iter().all(|side| side.is_multiple_of(16 * reduction));
            let large = |reduction: &usize| c.input.size.sides().iter().all(|side| side / reduction >= 64);
            is_pixels(c) || c.features.reductions().iter().all(|n| whole(n) && (*n == 1 || large(n)))
        },
        words: "a size that is a multiple of 16, and at least 64 pixels, on each scale",
    },
    Condition {
        keys: &["input.size", "features.grid", "features.space"],
        holds: |c| {
            let [size, grid] = [c.input.size, c.grid()];
            !is_pixels(c) || (size.is_square() && grid.is_square() && size.width.is_multiple_of(grid.width))
        },
        words: "squares, and size to be a multiple of grid, which in pixel space is the side of the picture",
    },
    Condition {
        keys: &["features.dim", "features.backbone"],
        holds: |c| is_pixels(c) || c.features.channels().is_some_and(|channels| c.features.dim <= channels),
        words: "dim to be at most the channels of the backbone (efficientnet-lite0 and -lite1 256, -lite2 280, \
                resnet18 448, resnet50 and wide-resnet50 1792; as many more on each further scale)",
    },
    Condition {
        keys: &["features.grid", "features.dim", "detection.covariance_cells"],
        holds: |c| (c.covariances().count() * c.dim()).saturating_mul(c.dim()) <= 1 << 32,
        words: "covariances x dim^2 to be at most 2^32: the statistics of the residuals would take more than 16 GiB",
    },
    Condition {
        keys: &["features.grid", "denoiser.levels", "denoiser.attention_every", "denoiser.window"],
        holds: |c| {
            let attends_to_all = c.denoiser.attention_every > 0 && c.denoiser.window == 0;
            !attends_to_all || c.tokens() >> (2 * (c.denoiser.levels - 1)) <= 64 * 64
        },
        words: "at most 64x64 cells on the last level, grid / 2^(levels - 1), where each attends to all; or windows",
    },
    Condition {
        keys: &["denoiser.width", "denoiser.heads"],
        holds: |c| c.denoiser.width.is_multiple_of(c.denoiser.heads),
        words: "width to be a multiple of heads",
    },
    Condition {
        keys: &["denoiser.levels", "features.grid"],
        holds: |c| c.denoiser.levels == 1 || divides_square(c, 1 << (c.denoiser.levels - 1)),
        words: "a square grid, a multiple of 2 for every level below the first",
    },
    Condition {
        keys: &["denoiser.width", "denoiser.growth", "denoiser.levels"],
        holds: |c| c.denoiser.width * c.denoiser.growth.pow(c.denoiser.levels as u32 - 1) <= 4096,
        words: "at most 4096 channels on the last level, width x growth^(levels - 1)",
    },
    Condition {
        keys: &["denoiser.guide", "features.grid"],
        holds: |c| c.denoiser.guide == 0 || divides_square(c, c.denoiser.guide),
        words: "a square grid, a multiple of guide",
    },
    Condition {
        keys: &["diffusion.beta_start", "diffusion.beta_end"],
        holds: |c| c.diffusion.beta_start < c.diffusion.beta_end,
        words: "beta_start to be less than beta_end",
    },
    Condition {
        keys: &["denoiser.attention_every", "denoiser.blocks"],
        holds: |c| c.denoiser.attention_every <= c.denoiser.blocks,
        words: "attention_every to be at most blocks (0 for no attention)",
    },
    Condition {
        keys: &["diffusion.log_snr_min", "diffusion.log_snr_max"],
        holds: |c| has_steps(c) || c.diffusion.log_snr_min < c.diffusion.log_snr_max,
        words: "log_snr_min to be less than log_snr_max",
    },
    Condition {
        keys: &["diffusion.log_snr_center", "diffusion.log_snr_min", "diffusion.log_snr_max"],
        holds: |c| has_steps(c) || is_trained(c, c.diffusion.log_snr_center),
        words: "log_snr_center to lie between log_snr_min and log_snr_max",
    },
    Condition {
        keys: &["detection.start_alpha_bar", "diffusion.log_snr_min", "diffusion.log_snr_max"],
        holds: |c| {
            let start = log_snr(c.detection.start_alpha_bar);
            // It has to be noisier than the cleanest level, or there is no way to go.
            starts_pure(c) || has_steps(c) || (is_trained(c, start) && start < c.diffusion.log_snr_max)
        },
        words: "ln(start_alpha_bar / (1 - start_alpha_bar)) to lie between log_snr_min and log_snr_max, the noise \
                seen in training",
    },
    Condition {
        keys: &["detection.start_alpha_bar", "diffusion.schedule", "diffusion.timesteps"],
        holds: |c| starts_pure(c) || !has_steps(c) || has_step_near(c, c.detection.start_alpha_bar),
        words: "a step of the schedule whose alpha-bar is within 0.1 of start_alpha_bar",
    },
    Condition {
        keys: &["detection.diffusion_alpha_bars", "diffusion.schedule", "diffusion.timesteps"],
        holds: |c| !has_steps(c) || c.detection.probes().iter().all(|&alpha_bar| has_step_near(c, alpha_bar)),
        words: "a step of the schedule whose alpha-bar is within 0.1 of each of diffusion_alpha_bars",
    },
    Condition {
        keys: &["detection.diffusion_alpha_bars", "diffusion.log_snr_min", "diffusion.log_snr_max"],
        holds: |c| has_steps(c) || c.detection.probes().iter().all(|&alpha_bar| is_trained(c, log_snr(alpha_bar))),
        words: "each ln(alpha_bar / (1 - alpha_bar)) to lie between log_snr_min and log_snr_max, the noise seen in \
                training",
    },
    Condition {
        keys: &["detection.eta", "detection.sampler"],
        holds: |c| c.detection.eta == 0.0 || c.detection.sampler == SamplerKind::Ddim,
        words: "eta to be 0 with any sampler but \"ddim\"",
    },
    Condition {
        keys: &["detection.sampler", "diffusion.schedule"],
        holds: |c| c.detection.sampler != SamplerKind::Ddpm || has_steps(c),
        words: "a schedule with steps, \"linear\" or \"cosine\", for the sampler \"ddpm\"",
    },
    Condition {
        keys: &["detection.condition", "denoiser.classes"],
        holds: |c| c.detection.condition == ClassCondition::None || c.denoiser.classes == ClassStrategy::Conditional,
        words: "condition to be \"none\" unless classes is \"conditional\": the others have no class input",
    },
    Condition {
        keys: &["detection.guidance", "detection.condition"],
        holds: |c| c.detection.guidance == 1.0 || c.detection.condition == ClassCondition::Class,
        words: "guidance to be 1 unless condition is \"class\"",
    },
    Condition {
        keys: &["training.class_drop", "detection.condition", "detection.guidance"],
        holds: |c| {
            let tells_nothing = c.detection.condition == ClassCondition::None || c.detection.guidance != 1.0;
            c.denoiser.classes != ClassStrategy::Conditional || !tells_nothing || c.training.class_drop > 0.0
        },
        words: "class_drop to be above 0 where detection tells the network no class: it would never have learned that",
    },
    Condition {
        keys: &["training.class_drop", "detection.condition"],
        holds: |c| c.detection.condition == ClassCondition::None || c.training.class_drop < 1.0,
        words: "class_drop to be less than 1 where detection tells the network the class: it would never have learned any",
    },
    Condition {
        keys: &["training.mask", "training.shuffle", "diffusion.prediction", "diffusion.weighting"],
        holds: |c| {
            let plain = c.diffusion.prediction == Prediction::Epsilon && c.diffusion.weighting == Weighting::Uniform;
            !plain || c.training.mask + c.training.shuffle == 0.0
        },
        words: "mask and shuffle to be 0 with prediction \"epsilon\" and weighting \"uniform\": what is hidden cannot be \
                explained by noise, and the less noise the more it would count",
    },
    Condition {
        keys: &["diffusion.min_snr_floor", "diffusion.prediction", "diffusion.schedule", "diffusion.log_snr_min"],
        holds: |c| {
            let weighted = c.diffusion.prediction == Prediction::Epsilon && c.diffusion.weighting == Weighting::MinSnr;
            let noisiest = c.diffusion.process().and_then(|process| process.noisiest());
            !weighted || noisiest.is_ok_and(|level| c.diffusion.min_snr_floor <= 100.0 * level.snr())
        },
        words: "min_snr_floor to be at most 100 times the SNR of the noisiest level, such as 0, with prediction \"epsilon\": \
                the loss of that level would outweigh all others",
    },
    Condition {
        keys: &["diffusion.min_snr_floor", "diffusion.min_snr_gamma"],
        holds: |c| c.diffusion.min_snr_floor <= c.diffusion.min_snr_gamma,
        words: "min_snr_floor to be at most min_snr_gamma",
    },
    Condition {
        keys: &["training.warmup_steps", "training.steps"],
        holds: |c| c.training.warmup_steps <= c.training.steps,
        words: "warmup_steps to be at most steps",
    },
    Condition {
        keys: &["training.mask", "training.shuffle"],
        holds: |c| c.training.mask + c.training.shuffle < 1.0,
        words: "mask + shuffle to be less than 1, so that something of the image is left",
    },
    Condition {
        keys: &["calibration.warn_fpr", "calibration.target_fpr"],
        holds: |c| {
            let target = c.calibration.target_fpr.unwrap_or(DEFAULT_TARGET_FPR);
            c.calibration.warn_fpr.is_none_or(|warn| warn >= target)
        },
        words: "warn_fpr to be at least target_fpr (0.05 if absent): a part that is rejected is one to warn of",
    },
];

/// Pixels of the input per cell of each feature map and side.
fn strides(config: &Config) -> impl Iterator<Item = usize> {
    let reductions = config.features.reductions();
    reductions.into_iter().flat_map(|reduction| [4, 8, 16].map(|stride| stride * reduction))
}

/// Whether the grid is a square whose side is a multiple of this.
fn divides_square(config: &Config, side: usize) -> bool {
    let grid = config.grid();
    grid.is_square() && grid.width.is_multiple_of(side)
}

fn is_pixels(config: &Config) -> bool {
    config.features.space == SpaceKind::Pixel
}

/// Whether the noise levels are the steps of a schedule; the log-SNR keys then say nothing.
fn has_steps(config: &Config) -> bool {
    config.diffusion.schedule != ScheduleKind::LogSnr
}

/// Whether `detection.start_alpha_bar` says nothing.
fn starts_pure(config: &Config) -> bool {
    config.detection.start == StartKind::Pure
}

/// Whether a schedule with steps has one about as noisy as this.
fn has_step_near(config: &Config, alpha_bar: f64) -> bool {
    let near = |process: Process| Ok((process.near(alpha_bar)?.alpha_bar() - alpha_bar).abs() <= 0.1);
    config.diffusion.process().and_then(near).unwrap_or(false)
}

/// Whether a feature map can be averaged over the cells of a grid, or enlarged to it.
fn fits(map: Size, grid: Size) -> bool {
    let divides = |a: Size, b: Size| b.width.is_multiple_of(a.width) && b.height.is_multiple_of(a.height);
    divides(grid, map) || divides(map, grid)
}

fn log_snr(alpha_bar: f64) -> f64 {
    (alpha_bar / (1.0 - alpha_bar)).ln()
}

fn is_trained(config: &Config, log_snr: f64) -> bool {
    (config.diffusion.log_snr_min..=config.diffusion.log_snr_max).contains(&log_snr)
}

/// One thing that is wrong, and the keys (dotted, as the user wrote them) it is about.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Mistake {
    pub(super) keys: Vec<String>,
    pub(super) text: String,
}

impl Mistake {
    fn at(key: &str, text: String) -> Self {
        Self { keys: vec![key.to_owned()], text }
    }
}

/// The configuration that `tree` (section -> key -> value) describes, absent keys at their defaults; or everything
/// that is wrong with it.
pub(super) fn resolve(tree: &Table) -> Result<Config, Vec<Mistake>> {
    let mut sieve = Sieve::default();
    for (section, value) in tree {
        sieve.section(section, value);
    }
    let Sieve { good, bad, mut mistakes } = sieve;
    match Config::deserialize(Value::Table(good)) {
        Ok(config) => {
            // A key that is wrong in itself has been named already, and stands at its default here.
            // With a scale the size says nothing; what holds of the inputs that come out is checked for each.
            let unsized_input = config.input.scale.is_some();
            let says = |condition: &&Condition| !(unsized_input && condition.keys.contains(&"input.size"));
            let known = |condition: &&Condition| condition.keys.iter().all(|key| !bad.contains(key));
            let sensible = TOGETHER.iter().filter(|condition| known(condition) && says(condition));
            mistakes.extend(
                sensible
                    .filter(|condition| !(condition.holds)(&config))
                    .map(|condition| contradiction(&config, condition)),
            );
            if mistakes.is_empty() { Ok(config) } else { Err(mistakes) }
        }
        Err(error) => {
            mistakes.push(Mistake { keys: Vec::new(), text: excerpt(error.message()) });
            Err(mistakes)
        }
    }
}

/// What is wrong with `value` at `key` by itself.
pub(super) fn check_key(key: &str, value: &Value) -> Result<(), Mistake> {
    match RULES.iter().find(|(known, _)| *known == key) {
        Some((_, kind)) => check_value(key, *kind, value),
        None => Err(unknown_key(key)),
    }
}

/// Parts a tree into what can be used and what is wrong.
#[derive(Default)]
struct Sieve {
    good: Table,
    bad: Vec<&'static str>,
    mistakes: Vec<Mistake>,
}

impl Sieve {
    fn section(&mut self, name: &str, value: &Value) {
        let known = sections().find(|known| *known == name);
        match (known, value) {
            (Some(known), Value::Table(keys)) => self.keys(name, known, keys),
            (Some(_), other) => {
                let got = shown_with_type(other);
                self.mistakes.push(Mistake::at(name, format!("{name} = {got}: expected a section, [{name}]")));
            }
            (None, Value::Table(keys)) => {
                let meant = closest(name, sections());
                let all = || sections().map(|known| format!("[{known}]")).collect::<Vec<_>>().join(", ");
                let cure = match meant {
                    Some(meant) => format!("did you mean [{meant}]?"),
                    None => format!("expected one of {}", all()),
                };
                self.mistakes.push(Mistake::at(name, format!("[{}]: no such section; {cure}", excerpt(name))));
                // Its keys are looked at all the same, so that nothing waits for a second try.
                if let Some(meant) = meant {
                    self.keys(name, meant, keys);
                }
            }
            (None, _) => self.mistakes.push(unknown_key(name)),
        }
    }

    /// Checks the keys of a section called `name`, by the rules of section `known`.
    fn keys(&mut self, name: &str, known: &'static str, keys: &Table) {
        for (key, value) in keys {
            let path = format!("{name}.{key}");
            let rule = RULES.iter().find(|(rule, _)| rule.split_once('.') == Some((known, key)));
            let Some((rule, kind)) = rule else {
                self.mistakes.push(unknown_key(&path));
                continue;
            };
            match check_value(&path, *kind, value) {
                Ok(()) => {
                    let section = self.good.entry(known).or_insert_with(|| Value::Table(Table::new()));
                    if let Some(section) = section.as_table_mut() {
                        section.insert(key.clone(), value.clone());
                    }
                }
                Err(mistake) => {
                    self.bad.push(rule);
                    self.mistakes.push(mistake);
                }
            }
        }
    }
}

fn check_value(path: &str, kind: Kind, value: &Value) -> Result<(), Mistake> {
    if kind.allows(value) {
        return Ok(());
    }
    let got = if kind.takes(value) { shown(value) } else { shown_with_type(value) };
    let hint = match (kind, value) {
        (Kind::OneOf(names), Value::String(name)) => closest(name, names.iter().copied()),
        _ => None,
    };
    let hint = hint.map(|name| format!("; did you mean \"{name}\"?")).unwrap_or_default();
    Err(Mistake::at(path, format!("{} = {got}: expected {}{hint}", excerpt(path), kind.words())))
}

fn unknown_key(path: &str) -> Mistake {
    let hint = nearest_key(path).map(|key| format!("; did you mean {key}?")).unwrap_or_default();
    Mistake::at(path, format!("{}: no such key{hint}", excerpt(path)))
}

fn contradiction(config: &Config, condition: &Condition) -> Mistake {
    let Condition { keys, words, .. } = condition;
    let tree = Table::try_from(config.resolved()).unwrap_or_default();
    let value = |key: &str| {
        let (section, name) = key.split_once('.')?;
        tree.get(section)?.get(name).map(shown)
    };
    let got: Vec<_> = keys.iter().map(|key| format!("{key} = {}", value(key).unwrap_or("absent".into()))).collect();
    Mistake {
        keys: keys.iter().map(|&key| key.to_owned()).collect(),
        text: format!("{}: expected {words}", got.join(", ")),
    }
}

/// Names of the sections, each once.
fn sections() -> impl Iterator<Item = &'static str> {
    let mut last = "";
    RULES.iter().filter_map(move |(key, _)| {
        let section = key.split_once('.').map_or(*key, |(section, _)| section);
        (section != std::mem::replace(&mut last, section)).then_some(section)
    })
}

/// The key that somebody who wrote `path` may have meant: one of a similar name, in the same section if there is one.
fn nearest_key(path: &str) -> Option<&'static str> {
    let (section, name) = path.rsplit_once('.').unwrap_or(("", path));
    let mine = |key: &&str| key.split_once('.').is_some_and(|(its, _)| its == section);
    let all = || RULES.iter().map(|(key, _)| *key);
    let leaf = |key: &'static str| key.rsplit_once('.').map_or(key, |(_, leaf)| leaf);
    let find = |keys: &mut dyn Iterator<Item = &'static str>| {
        let keys: Vec<_> = keys.collect();
        let meant = closest(name, keys.iter().map(|key| leaf(key)))?;
        keys.into_iter().find(|key| leaf(key) == meant)
    };
    find(&mut all().filter(mine)).or_else(|| find(&mut all()))
}

fn shown(value: &Value) -> String {
    excerpt(&value.to_string())
}

fn shown_with_type(value: &Value) -> String {
    let article = if matches!(value, Value::Integer(_) | Value::Array(_)) { "an" } else { "a" };
    format!("{} ({article} {})", shown(value), value.type_str())
}

/// The beginning of `text` on one line, safe to print.
pub(super) fn excerpt(text: &str) -> String {
    crate::error::excerpt(text, 80)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn conditions_speak_of_keys_that_exist() {
        for condition in TOGETHER {
            for key in condition.keys {
                assert!(RULES.iter().any(|(known, _)| known == key), "{key}");
            }
        }
    }
}
