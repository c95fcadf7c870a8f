//! Reconstruction: from features `x0` `[B, T, D]` through a few noise levels and back, by the denoiser.

use std::collections::BTreeMap;

use candle_core::Tensor;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

use super::class::is_conditioned;
use crate::config::{ClassStrategy, Config, SamplerKind, ScoreKind, StartKind};
use crate::device::Device;
use crate::diffusion::{
    Ddim, EpsMode, NoiseLevel, Plan, Prediction, Process, Schedule, Start, add_noise, ancestral, reconstruct,
};
use crate::error::{Error, Result};
use crate::model::Layer;
use crate::model::denoiser::{Condition, Denoiser, Denoisers, normal, pooled};

/// The denoisers of a model, and what its configuration says about sampling with them.
pub struct Reconstructor {
    config: Config,
    device: Device,
    denoisers: Denoisers,
    process: Process,
    /// Noise `[T, D]` of the start and of the diffusion score, where one of them needs it: the same for every frame.
    pub(super) noise: Option<Vec<f32>>,
    /// Whether the denoiser is told the class.
    conditioned: bool,
    /// Semantic guidance: cells per side of the clean input that the denoiser sees.
    guide: Option<usize>,
}

/// Everything about a reconstruction that does not depend on the frame: start, steps, noises, and what the denoiser is told at
/// each step. Made once per number of steps.
pub struct SamplerPlan {
    start: StartKind,
    /// Of the start and of the probes, `[1, T, D]`, where one of them needs it.
    noise: Option<Tensor>,
    steps: Steps,
    /// Fresh noise of the steps, each `[1, T, D]`.
    noises: Vec<Tensor>,
    /// By step.
    conditions: Vec<Conditions>,
    /// Whether the score looks at the reconstruction at all.
    reconstructs: bool,
    /// The levels at which the diffusion score asks for the noise that was added, and what the denoiser is told there.
    probes: Vec<(NoiseLevel, Conditions)>,
    /// Classifier-free guidance: 1 is the denoiser's plain answer.
    guidance: f64,
}

/// How the noise goes down.
enum Steps {
    /// DDIM over a few levels (Song et al. 2021).
    Ddim(Plan),
    /// Every step of the schedule from this one down, by the posterior (Ho et al. 2020).
    Ancestral(Schedule, usize),
}

/// What the denoiser is told at one level, by class; without one, of parts in general.
type Conditions = BTreeMap<Option<usize>, Condition>;

/// What is left of features `[B, T, D]` when their reconstruction is taken away.
pub struct Reconstruction {
    /// `x0 - x0_hat`, `[B, T, D]`; 0 where the score does not look at it.
    pub residuals: Tensor,
    /// Squared error of the predicted noise, as the mean over the channels, for each level of the diffusion score: `[B, T]`.
    pub noise_errors: Vec<Tensor>,
}

/// How to draw a sample.
#[derive(Clone, Copy, Debug)]
pub struct Sampling<'a> {
    /// The class; none for a part in general.
    pub class: Option<usize>,
    /// Features `[T, D]` of an image, for a model with semantic guidance.
    pub like: Option<&'a [f32]>,
    /// DDIM steps, at least 1.
    pub steps: usize,
    /// Share of fresh noise in each step, 0..=1.
    pub eta: f64,
    /// Classifier-free guidance (Ho & Salimans 2022); 1 is the denoiser's plain answer.
    pub guidance: f64,
    /// Seed of all noise.
    pub seed: u64,
}

/// Noise `[T, D]` that a model of this configuration keeps in its file, if it needs any.
#[cfg(feature = "train")]
pub(crate) fn stored_noise(config: &Config) -> Option<Vec<f32>> {
    needs_noise(config).then(|| seeded_noise(config.detection.noise_seed, 0, config.tokens() * config.dim()))
}

/// Whether a model of this configuration keeps noise in its file.
pub(super) fn needs_noise(config: &Config) -> bool {
    config.detection.start != StartKind::Scaled || config.detection.needs_noise_errors()
}

/// Standard normal numbers of a seed; each stream has its own.
fn seeded_noise(seed: u64, stream: u64, count: usize) -> Vec<f32> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    rng.set_stream(stream);
    (0..count).map(|_| normal(&mut rng) as f32).collect()
}

impl Reconstructor {
    /// With denoisers on `device`, and the noise `[T, D]` of the model file.
    ///
    /// # Errors
    /// When the configuration makes no schedule, or needs noise and there is none.
    pub fn new(config: &Config, device: &Device, denoisers: Denoisers, noise: Option<Vec<f32>>) -> Result<Self> {
        let count = noise.as_ref().map(Vec::len);
        if count.is_some_and(|n| n != config.tokens() * config.dim()) || (count.is_none() && needs_noise(config)) {
            return Err(Error::Internal(format!("detector: the stored noise has {count:?} values")));
        }
        Ok(Self {
            device: device.clone(),
            denoisers: denoisers.multiplying(device.factors()),
            process: config.diffusion.process()?,
            noise,
            conditioned: is_conditioned(config),
            guide: (config.denoiser.guide > 0).then_some(config.denoiser.guide),
            config: config.clone(),
        })
    }

    /// The device of the denoisers.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// The class that the denoiser is told when it reconstructs for `class`: none where classes are not told apart.
    pub fn condition_class(&self, class: usize) -> Option<usize> {
        self.conditioned.then_some(class)
    }

    /// The plan of the configured start and sampler with `steps` steps (DDPM takes those of its schedule).
    ///
    /// # Errors
    /// When `steps` is 0, or so many steps are not possible.
    pub fn plan(&self, steps: usize) -> Result<SamplerPlan> {
        if steps == 0 {
            return Err(Error::Usage("ddim steps must be at least 1, got 0".into()));
        }
        let (prediction, detection) = (self.config.diffusion.prediction, &self.config.detection);
        let level = match detection.start {
            StartKind::Pure => self.process.noisiest()?,
            StartKind::Scaled | StartKind::Noised => self.process.near(detection.start_alpha_bar)?,
        };
        let ddim = |mode, eta| -> Result<Steps> {
            Ok(Steps::Ddim(Plan::new(self.process.levels(level, steps)?, prediction, Ddim::new(eta, mode)?)?))
        };
        let steps = match detection.sampler {
            SamplerKind::Project => ddim(EpsMode::Drop, 0.0)?,
            SamplerKind::Ddim => ddim(EpsMode::Ddim, detection.eta)?,
            SamplerKind::Ddpm => {
                let schedule = self.process.schedule()?;
                Steps::Ancestral(schedule.clone(), schedule.nearest_step(level))
            }
        };
        let noise = self.noise.as_ref().map(|noise| self.one_sample(noise)).transpose()?;
        let mut classes: Vec<Option<usize>> =
            (0..self.denoisers.classes()).map(|class| self.condition_class(class)).collect();
        classes.dedup();
        let start = (detection.start, noise);
        let mut plan = self.prepare(start, steps, detection.noise_seed, &classes, detection.guidance)?;
        plan.reconstructs = detection.score != ScoreKind::Diffusion;
        let probe = |&alpha_bar: &f64| {
            let level = self.process.near(alpha_bar)?;
            Ok((level, self.conditions(level, &classes, detection.guidance)?))
        };
        plan.probes = detection.probes().iter().map(probe).collect::<Result<_>>()?;
        Ok(plan)
    }

    /// A plan without probes; `classes` are those that the denoiser can be told, the noises of the steps are those of `seed`.
    fn prepare(
        &self,
        (start, noise): (StartKind, Option<Tensor>),
        steps: Steps,
        seed: u64,
        classes: &[Option<usize>],
        guidance: f64,
    ) -> Result<SamplerPlan> {
        let (count, levels) = match &steps {
            Steps::Ddim(plan) => (plan.noises(), plan.levels()[..plan.evaluations()].to_vec()),
            Steps::Ancestral(schedule, first) => {
                (*first, (0..=*first).rev().map(|t| schedule.level(t)).collect::<Result<_>>()?)
            }
        };
        let values = self.config.tokens() * self.config.dim();
        let fresh = |i: usize| self.one_sample(&seeded_noise(seed, 1 + i as u64, values));
        let conditions = levels.into_iter().map(|level| self.conditions(level, classes, guidance));
        Ok(SamplerPlan {
            start,
            noise,
            steps,
            noises: (0..count).map(fresh).collect::<Result<_>>()?,
            conditions: conditions.collect::<Result<_>>()?,
            reconstructs: true,
            probes: Vec::new(),
            guidance,
        })
    }

    /// What the denoiser is told at a level, for each class; with guidance also that there is none.
    fn conditions(&self, level: NoiseLevel, classes: &[Option<usize>], guidance: f64) -> Result<Conditions> {
        let none = (guidance != 1.0).then_some(None);
        let all = classes.iter().copied().chain(none).map(|class| {
            let (network, told) = self.denoisers.answering(class);
            Ok((class, network.condition(&[level.log_snr() as f32], &[told])?))
        });
        all.collect()
    }

    /// Reconstructs features `x0` `[B, T, D]` for a class (see [`Reconstructor::condition_class`]). A sample's result does not
    /// depend on the rest of the batch.
    ///
    /// # Errors
    /// When shapes do not fit or the device fails.
    pub fn reconstruct(&self, x0: &Tensor, plan: &SamplerPlan, class: Option<usize>) -> Result<Reconstruction> {
        let guide = self.guide(x0)?;
        let guide = guide.as_ref();
        let residuals =
            if plan.reconstructs { (x0 - self.sampled(x0, plan, class, guide)?)? } else { x0.zeros_like()? };
        let noise_error = |(level, conditions): &(NoiseLevel, Conditions)| -> Result<Tensor> {
            let noise = plan.noise(x0.dim(0)?)?;
            let x = add_noise(x0, &noise, &[*level])?;
            let answer = self.predict(&x, conditions, plan.guidance, class, guide)?;
            let predicted = self.config.diffusion.prediction.convert(&answer, Prediction::Epsilon, &x, &[*level])?;
            Ok((noise - predicted)?.sqr()?.mean(2)?)
        };
        let noise_errors = plan.probes.iter().map(noise_error).collect::<Result<_>>()?;
        Ok(Reconstruction { residuals, noise_errors })
    }

    /// The first evaluation of the denoiser for features `x0` `[B, T, D]`, for what its layers cost: `watch` is called as each of
    /// them is done.
    ///
    /// # Errors
    /// As [`Reconstructor::reconstruct`].
    pub fn layers(
        &self,
        x0: &Tensor,
        plan: &SamplerPlan,
        class: Option<usize>,
        watch: &mut dyn FnMut(Layer),
    ) -> Result<()> {
        let conditions = plan.conditions.first().and_then(|conditions| conditions.get(&class));
        let none = || Error::Internal(format!("detector: no condition for {class:?}"));
        let condition = conditions.ok_or_else(none)?;
        self.denoisers.answering(class).0.layers(x0, condition, self.guide(x0)?.as_ref(), watch)
    }

    /// Draws a sample of what the network has learned, features `[T, D]`: from pure noise in DDIM steps. Equal arguments give
    /// equal values.
    ///
    /// # Errors
    /// When a number is out of range, a class is needed and not given, or a model with semantic guidance gets no image.
    pub fn sample(&self, sampling: &Sampling<'_>) -> Result<Vec<f32>> {
        let &Sampling { class, like, steps, eta, guidance, seed } = sampling;
        let classes = self.config.denoiser.classes;
        // A network learns parts in general only if its class label is dropped now and then.
        let in_general = classes == ClassStrategy::Conditional && self.config.training.class_drop > 0.0;
        let class = match class {
            None if in_general => None,
            None if self.denoisers.classes() == 1 => Some(0),
            None => return Err(Error::Usage("this model has no idea of parts in general; expected a class".into())),
            class => class,
        };
        if guidance != 1.0 && (classes != ClassStrategy::Conditional || class.is_none()) {
            return Err(Error::Usage(format!(
                "guidance is {guidance}; expected 1 without a class, or with a model whose classes share no network"
            )));
        }
        let guide = match (self.guide, like) {
            (None, _) => None,
            (Some(_), Some(features)) => self.guide(&self.tensor(features)?)?,
            (Some(_), None) => {
                return Err(Error::Usage("this model is guided by an image; expected one to go by".into()));
            }
        };
        let levels = self.process.levels(self.process.noisiest()?, steps)?;
        let steps = Plan::new(levels, self.config.diffusion.prediction, Ddim::new(eta, EpsMode::Ddim)?)?;
        let noise = self.one_sample(&seeded_noise(seed, 0, self.config.tokens() * self.config.dim()))?;
        let start = (StartKind::Pure, Some(noise.clone()));
        let plan = self.prepare(start, Steps::Ddim(steps), seed, &[class], guidance)?;
        let drawn = self.sampled(&noise, &plan, class, guide.as_ref())?;
        Ok(drawn.flatten_all()?.to_vec1()?)
    }

    /// What the sampler ends with, `[B, T, D]`.
    fn sampled(&self, x0: &Tensor, plan: &SamplerPlan, class: Option<usize>, guide: Option<&Tensor>) -> Result<Tensor> {
        let noise = if plan.start == StartKind::Scaled { None } else { Some(plan.noise(x0.dim(0)?)?) };
        let start = match (plan.start, &noise) {
            (StartKind::Noised, Some(noise)) => Start::Noised(noise),
            (StartKind::Pure, Some(noise)) => Start::Pure(noise),
            _ => Start::Scaled,
        };
        let mut conditions = plan.conditions.iter();
        let predict = |x: &Tensor, _: f64| {
            let step =
                conditions.next().ok_or_else(|| Error::Internal("detector: a step without a condition".into()))?;
            self.predict(x, step, plan.guidance, class, guide)
        };
        match &plan.steps {
            Steps::Ddim(steps) => reconstruct(x0, steps, start, &plan.noises, predict),
            Steps::Ancestral(schedule, first) => {
                let prediction = self.config.diffusion.prediction;
                ancestral(x0, (schedule, *first), prediction, start, &plan.noises, predict)
            }
        }
    }

    /// The denoiser's answer at one level, with classifier-free guidance where it is asked for (Ho & Salimans 2022).
    fn predict(
        &self,
        x: &Tensor,
        conditions: &Conditions,
        guidance: f64,
        class: Option<usize>,
        guide: Option<&Tensor>,
    ) -> Result<Tensor> {
        let batch = x.dim(0)?;
        let answer = |class: Option<usize>| {
            let condition = conditions.get(&class);
            let condition =
                condition.ok_or_else(|| Error::Internal(format!("detector: no condition for {class:?}")))?;
            let network: &Denoiser = self.denoisers.answering(class).0;
            if batch == 1 {
                network.predict(x, condition, guide)
            } else {
                network.predict(x, &condition.repeat(batch)?, guide)
            }
        };
        if guidance == 1.0 || class.is_none() {
            return answer(class);
        }
        let none = answer(None)?;
        Ok((&none + ((answer(class)? - &none)? * guidance)?)?)
    }

    /// What a denoiser with semantic guidance sees of clean features `[B, T, D]`.
    fn guide(&self, features: &Tensor) -> Result<Option<Tensor>> {
        let pooled = |cells| pooled(features, self.config.grid().width, cells);
        Ok(self.guide.map(pooled).transpose()?)
    }

    /// Features of whole samples as a tensor `[B, T, D]` on the device.
    ///
    /// # Errors
    /// When they are not whole samples, or the device fails.
    pub fn tensor(&self, features: &[f32]) -> Result<Tensor> {
        let (tokens, dim) = (self.config.tokens(), self.config.dim());
        Ok(Tensor::from_slice(features, ((), tokens, dim), self.device.candle())?)
    }

    fn one_sample(&self, values: &[f32]) -> Result<Tensor> {
        let shape = (1, self.config.tokens(), self.config.dim());
        Ok(Tensor::from_slice(values, shape, self.device.candle())?)
    }
}

impl SamplerPlan {
    /// The noise for a whole batch, `[batch, T, D]`.
    fn noise(&self, batch: usize) -> Result<Tensor> {
        let noise = self.noise.as_ref().ok_or_else(|| Error::Internal("detector: no stored noise".into()))?;
        let (_, tokens, dim) = noise.dims3()?;
        Ok(noise.broadcast_as((batch, tokens, dim))?.contiguous()?)
    }
}
