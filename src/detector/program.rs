//! What a detection asks the denoiser, and what it learns from the answers: levels, noises and conditions computed once.

use std::collections::BTreeMap;

use candle_core::Tensor;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

use super::Network;
use crate::config::{ClassCondition, ClassStrategy, Config, SamplerKind, ScoreKind, StartKind};
use crate::diffusion::{
    Ddim, EpsMode, NoiseLevel, Plan, Prediction, Schedule, Start, add_noise, ancestral, reconstruct,
};
use crate::error::{Error, Result};
use crate::model::denoiser::{Condition, Denoiser, normal, pooled};

/// How the levels are walked down.
enum Way {
    Plan(Plan),
    Ancestral(Schedule, usize),
}

/// What the denoiser is told at each level.
type Conditions = Vec<Condition>;

/// The noise levels that a detection visits, the noises it uses, and what the denoiser is told at each level.
pub struct Program {
    way: Way,
    /// Of the steps, each `[1, T, D]`.
    noises: Vec<Tensor>,
    /// Of the start and of the probes, `[1, T, D]`.
    noise: Option<Tensor>,
    /// Of the way, by the class that is told.
    conditions: BTreeMap<Option<usize>, Conditions>,
    /// Levels of the diffusion score, and what is told there.
    probes: Vec<NoiseLevel>,
    probe_conditions: BTreeMap<Option<usize>, Conditions>,
    /// Factor of what the class makes of the answer.
    guidance: f64,
}

/// What the denoiser made of values `[B, T, D]`.
pub struct Look {
    /// What was not rebuilt, `x0 - x0_hat`, `[B, T, D]`; 0 where the score does not ask for it.
    pub residuals: Tensor,
    /// Squared error of the predicted noise, its mean over the channels, for each level of the diffusion score `[B, T]`.
    pub noise_errors: Vec<Tensor>,
}

/// How to draw a sample.
#[derive(Clone, Copy, Debug)]
pub struct Sampling<'a> {
    /// The class; none for a part in general.
    pub class: Option<usize>,
    /// Values `[T, D]` that a guided network goes by.
    pub like: Option<&'a [f32]>,
    /// DDIM steps.
    pub steps: usize,
    /// Share of fresh noise, 0..=1.
    pub eta: f64,
    /// Factor of what the class makes of the answer; 1 is the plain answer.
    pub guidance: f64,
    /// Of all noise.
    pub seed: u64,
}

/// One question: what is told, and at which of the levels.
#[derive(Clone, Copy)]
struct Asked<'a> {
    conditions: &'a BTreeMap<Option<usize>, Conditions>,
    at: usize,
    guidance: f64,
}

/// Whether a detection needs the stored noise.
pub(crate) fn needs_noise(config: &Config) -> bool {
    config.detection.start != StartKind::Scaled || config.detection.needs_noise_errors()
}

/// Standard normal numbers of a seed; each stream has its own.
pub(crate) fn seeded_noise(seed: u64, stream: u64, count: usize) -> Vec<f32> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    rng.set_stream(stream);
    (0..count).map(|_| normal(&mut rng) as f32).collect()
}

impl Network {
    /// The class that the denoiser is told when it answers for `class`.
    pub fn told(&self, class: usize) -> Option<usize> {
        let shared = self.config.denoiser.classes == ClassStrategy::Conditional;
        (!shared || self.config.detection.condition == ClassCondition::Class).then_some(class)
    }

    /// `steps` steps from the configured start by the configured sampler; what the denoiser is told on the way is computed
    /// here, once.
    ///
    /// # Errors
    /// When `steps` is 0.
    pub fn program(&self, steps: usize) -> Result<Program> {
        let (diffusion, detection) = (&self.config.diffusion, &self.config.detection);
        let process = diffusion.process()?;
        let start = match detection.start {
            StartKind::Pure => process.noisiest()?,
            StartKind::Scaled | StartKind::Noised => process.near(detection.start_alpha_bar)?,
        };
        let plan = |mode, eta| Plan::new(process.levels(start, steps)?, diffusion.prediction, Ddim::new(eta, mode)?);
        let way = match detection.sampler {
            SamplerKind::Project => Way::Plan(plan(EpsMode::Drop, 0.0)?),
            SamplerKind::Ddim => Way::Plan(plan(EpsMode::Ddim, detection.eta)?),
            SamplerKind::Ddpm => {
                let schedule = process.schedule()?;
                Way::Ancestral(schedule.clone(), schedule.nearest_step(start))
            }
        };
        let near = |&alpha_bar: &f64| process.near(alpha_bar);
        let probes = detection.probes().iter().map(near);
        let mut told: Vec<Option<usize>> = (0..self.denoisers.classes()).map(|class| self.told(class)).collect();
        told.dedup();
        let noise = (self.noise.as_deref(), detection.noise_seed);
        self.prepare(way, probes.collect::<Result<_>>()?, noise, told, detection.guidance)
    }

    /// `told` are the classes that the denoiser can be told; the noises of the steps are those of the seed beside `noise`.
    fn prepare(
        &self,
        way: Way,
        probes: Vec<NoiseLevel>,
        (noise, seed): (Option<&[f32]>, u64),
        mut told: Vec<Option<usize>>,
        guidance: f64,
    ) -> Result<Program> {
        let (tokens, dim) = (self.config.tokens(), self.config.dim());
        let tensor = |values: Vec<f32>| Tensor::from_vec(values, (1, tokens, dim), self.place.device());
        let count = match &way {
            Way::Plan(plan) => plan.noises(),
            Way::Ancestral(_, first) => *first,
        };
        let noises = (0..count).map(|i| tensor(seeded_noise(seed, 1 + i as u64, tokens * dim)));
        let asked: Vec<NoiseLevel> = match &way {
            Way::Plan(plan) => plan.levels()[..plan.evaluations()].to_vec(),
            Way::Ancestral(schedule, first) => (0..=*first).rev().map(|t| schedule.level(t)).collect::<Result<_>>()?,
        };
        if guidance != 1.0 {
            told.push(None);
        }
        let conditions = |levels: &[NoiseLevel]| -> Result<BTreeMap<Option<usize>, Conditions>> {
            let of = |class: &Option<usize>| -> Result<(Option<usize>, Conditions)> {
                let (network, told) = self.denoisers.answering(*class);
                let condition = |l: &NoiseLevel| network.condition(&[l.log_snr() as f32], &[told]);
                Ok((*class, levels.iter().map(condition).collect::<Result<_>>()?))
            };
            told.iter().map(of).collect()
        };
        Ok(Program {
            noises: noises.collect::<candle_core::Result<_>>()?,
            noise: noise.map(|values| tensor(values.to_vec())).transpose()?,
            conditions: conditions(&asked)?,
            probe_conditions: conditions(&probes)?,
            probes,
            way,
            guidance,
        })
    }

    /// What the denoiser makes of values `[B, T, D]` when it is told a class (see [`Network::told`]). A sample's result does
    /// not depend on the batch.
    ///
    /// # Errors
    /// When shapes do not fit.
    pub fn look(&self, x0: &Tensor, program: &Program, told: Option<usize>) -> Result<Look> {
        let guide = self.guide(x0)?;
        let residuals = if self.config.detection.score == ScoreKind::Diffusion {
            x0.zeros_like()?
        } else {
            (x0 - self.rebuild(x0, program, told, guide.as_ref())?)?
        };
        let mut noise_errors = Vec::with_capacity(program.probes.len());
        for (i, level) in program.probes.iter().enumerate() {
            let noise = over(program.noise()?, x0.dim(0)?)?;
            let x = add_noise(x0, &noise, &[*level])?;
            let asked = Asked { conditions: &program.probe_conditions, at: i, guidance: program.guidance };
            let answer = self.answer(&x, asked, told, guide.as_ref())?;
            let predicted = self.config.diffusion.prediction.convert(&answer, Prediction::Epsilon, &x, &[*level])?;
            noise_errors.push((noise - predicted)?.sqr()?.mean(2)?);
        }
        Ok(Look { residuals, noise_errors })
    }

    /// The reconstruction of `x0` `[B, T, D]`.
    fn rebuild(&self, x0: &Tensor, program: &Program, told: Option<usize>, guide: Option<&Tensor>) -> Result<Tensor> {
        let batch = x0.dim(0)?;
        let noise = program.noise.as_ref().map(|noise| over(noise, batch)).transpose()?;
        let start = match (self.config.detection.start, &noise) {
            (StartKind::Scaled, _) => Start::Scaled,
            (StartKind::Noised, Some(noise)) => Start::Noised(noise),
            (StartKind::Pure, Some(noise)) => Start::Pure(noise),
            (_, None) => return Err(no_noise()),
        };
        self.walk(x0, program, start, told, guide)
    }

    /// A draw from what the network has learned, values `[T, D]`: from pure noise in DDIM steps. Equal arguments give equal
    /// values.
    ///
    /// # Errors
    /// When a number cannot be, a class is needed and not given, or a guided network is not given values to go by.
    pub fn sample(&self, sampling: &Sampling<'_>) -> Result<Vec<f32>> {
        let &Sampling { class, like, steps, eta, guidance, seed } = sampling;
        let (diffusion, classes) = (&self.config.diffusion, self.config.denoiser.classes);
        // Parts in general are what a network learns that is not told the class now and then.
        let in_general = classes == ClassStrategy::Conditional && self.config.training.class_drop > 0.0;
        let told = match class {
            None if in_general => None,
            None if self.denoisers.classes() == 1 => Some(0),
            None => return Err(Error::Usage("this model has no idea of parts in general; expected a class".into())),
            class => class,
        };
        if guidance != 1.0 && (classes != ClassStrategy::Conditional || told.is_none()) {
            return Err(Error::Usage(format!(
                "guidance is {guidance}; expected 1 without a class, or with a model whose classes share no network"
            )));
        }
        let guide = match (self.config.denoiser.guide, like) {
            (0, _) => None,
            (_, Some(values)) => self.guide(&self.tensor(values)?)?,
            (_, None) => return Err(Error::Usage("this model is guided by an image; expected one to go by".into())),
        };
        let process = diffusion.process()?;
        let levels = process.levels(process.noisiest()?, steps)?;
        let plan = Plan::new(levels, diffusion.prediction, Ddim::new(eta, EpsMode::Ddim)?)?;
        let noise = seeded_noise(seed, 0, self.config.tokens() * self.config.dim());
        let program = self.prepare(Way::Plan(plan), Vec::new(), (Some(&noise), seed), vec![told], guidance)?;
        let noise = program.noise()?;
        let drawn = self.walk(noise, &program, Start::Pure(noise), told, guide.as_ref())?;
        Ok(drawn.flatten_all()?.to_vec1()?)
    }

    fn walk(
        &self,
        x0: &Tensor,
        program: &Program,
        start: Start<'_>,
        told: Option<usize>,
        guide: Option<&Tensor>,
    ) -> Result<Tensor> {
        let mut step = 0;
        let predict = |x: &Tensor, _: f64| {
            let asked = Asked { conditions: &program.conditions, at: step, guidance: program.guidance };
            step += 1;
            self.answer(x, asked, told, guide)
        };
        match &program.way {
            Way::Plan(plan) => reconstruct(x0, plan, start, &program.noises, predict),
            Way::Ancestral(schedule, first) => {
                let prediction = self.config.diffusion.prediction;
                ancestral(x0, (schedule, *first), prediction, start, &program.noises, predict)
            }
        }
    }

    /// The denoiser's answer at one level, with classifier-free guidance where it is asked for (Ho & Salimans 2022).
    fn answer(
        &self,
        x: &Tensor,
        Asked { conditions, at, guidance }: Asked<'_>,
        told: Option<usize>,
        guide: Option<&Tensor>,
    ) -> Result<Tensor> {
        let batch = x.dim(0)?;
        let ask = |class: Option<usize>| {
            let condition = conditions.get(&class).and_then(|all| all.get(at));
            let condition = condition.ok_or_else(|| Error::Internal("detector: a step without a condition".into()))?;
            let network: &Denoiser = self.denoisers.answering(class).0;
            if batch == 1 {
                network.predict(x, condition, guide)
            } else {
                network.predict(x, &condition.repeat(batch)?, guide)
            }
        };
        if guidance == 1.0 || told.is_none() {
            return ask(told);
        }
        let none = ask(None)?;
        Ok((&none + ((ask(told)? - &none)? * guidance)?)?)
    }

    /// What a guided denoiser is told of values `[B, T, D]`.
    fn guide(&self, values: &Tensor) -> Result<Option<Tensor>> {
        let cells = self.config.denoiser.guide;
        if cells == 0 { Ok(None) } else { Ok(Some(pooled(values, self.config.features.grid, cells)?)) }
    }

    /// Values `[B, T, D]` of whole samples, where the network is.
    ///
    /// # Errors
    /// When they are not whole samples, or the device fails.
    pub fn tensor(&self, values: &[f32]) -> Result<Tensor> {
        let (tokens, dim) = (self.config.tokens(), self.config.dim());
        Ok(Tensor::from_slice(values, ((), tokens, dim), self.place.device())?)
    }
}

impl Program {
    fn noise(&self) -> Result<&Tensor> {
        self.noise.as_ref().ok_or_else(no_noise)
    }
}

fn no_noise() -> Error {
    Error::Internal("detector: the stored noise is missing".into())
}

/// One sample's tensor for a whole batch.
fn over(one: &Tensor, batch: usize) -> Result<Tensor> {
    let (_, tokens, dim) = one.dims3()?;
    Ok(one.broadcast_as((batch, tokens, dim))?.contiguous()?)
}
