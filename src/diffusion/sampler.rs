//! From an input, through a few noise levels, to its reconstruction.

use candle_core::Tensor;

use super::{Ddim, NoiseLevel, Prediction, Schedule, add_noise, ancestral_step, impossible};
use crate::error::Result;

/// Where a reconstruction starts.
#[derive(Clone, Copy, Debug)]
pub enum Start<'a> {
    /// The input times `sqrt(alpha_bar)`, without noise: nothing random at all.
    Scaled,
    /// A draw of q(x_t | x0) with this noise.
    Noised(&'a Tensor),
    /// This noise alone; the input is not looked at. Gives a sample of what was learned, not a reconstruction.
    Pure(&'a Tensor),
}

impl Start<'_> {
    /// The tensor that a sampler begins with at `level`, in the shape of `x0`.
    fn at(self, x0: &Tensor, level: NoiseLevel) -> Result<Tensor> {
        let x = match self {
            Start::Scaled => (x0 * level.signal())?,
            Start::Noised(noise) => add_noise(x0, noise, &[level])?,
            Start::Pure(noise) => noise.clone(),
        };
        if x.shape() != x0.shape() {
            return Err(impossible(format!("noise is {:?} and x0 is {:?}; expected one shape", x.dims(), x0.dims())));
        }
        Ok(x)
    }
}

/// The levels to visit and how to step between them; valid by construction.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    levels: Vec<NoiseLevel>,
    prediction: Prediction,
    ddim: Ddim,
}

impl Plan {
    /// A plan over `levels` of falling noise: the first is where it starts, the last where it ends; the network is asked at
    /// every level but the last.
    ///
    /// # Errors
    ///
    /// Fewer than two levels, noise that does not fall from each to the next, or an epsilon network at a level without
    /// signal.
    pub fn new(levels: Vec<NoiseLevel>, prediction: Prediction, ddim: Ddim) -> Result<Self> {
        if levels.len() < 2 {
            return Err(impossible(format!("{} noise levels; expected a start and an end at least", levels.len())));
        }
        for (index, pair) in levels.windows(2).enumerate() {
            let (from, to) = (pair[0], pair[1]);
            if !from.is_noisier_than(to) {
                return Err(impossible(format!(
                    "noise levels {index} and {} have alpha_bar {} and {}; expected it to rise",
                    index + 1,
                    from.alpha_bar(),
                    to.alpha_bar()
                )));
            }
            if prediction == Prediction::Epsilon && from.alpha_bar() == 0.0 {
                return Err(impossible("an epsilon prediction at alpha_bar 0 says nothing about x0; use x0 or v"));
            }
        }
        Ok(Self { levels, prediction, ddim })
    }

    /// The levels, start to end.
    pub fn levels(&self) -> &[NoiseLevel] {
        &self.levels
    }

    /// How often the network is asked.
    pub fn evaluations(&self) -> usize {
        self.levels.len() - 1
    }

    /// How many noise tensors [`reconstruct`] takes: one for every step but the one to the clean end, none for
    /// `eta` 0.
    pub fn noises(&self) -> usize {
        self.levels.windows(2).filter(|pair| self.ddim.takes_noise(pair[1])).count()
    }
}

/// Runs `plan` on `x0` (any shape) and returns the tensor at its last level, in the shape of `x0`.
///
/// `predict` is the network: it gets `x_t` and the log-SNR (minus infinity at a level without signal) and answers in
/// the plan's [`Prediction`].
/// `noises` are the fresh noises of the steps, in order, [`Plan::noises`] of them.
///
/// # Errors
///
/// A wrong number of noises, shapes that differ, and whatever `predict` returns.
pub fn reconstruct(
    x0: &Tensor,
    plan: &Plan,
    start: Start<'_>,
    noises: &[Tensor],
    mut predict: impl FnMut(&Tensor, f64) -> Result<Tensor>,
) -> Result<Tensor> {
    if noises.len() != plan.noises() {
        return Err(impossible(format!("{} noises for the sampler; expected {}", noises.len(), plan.noises())));
    }
    let mut x = start.at(x0, plan.levels[0])?;
    let mut noises = noises.iter();
    for pair in plan.levels.windows(2) {
        let (from, to) = (pair[0], pair[1]);
        let output = predict(&x, from.log_snr())?;
        let clean = plan.prediction.convert(&output, Prediction::X0, &x, &[from])?;
        let noise = if plan.ddim.takes_noise(to) { noises.next() } else { None };
        x = plan.ddim.step(&x, &clean, (from, to), noise)?;
    }
    Ok(x)
}

/// DDPM's ancestral sampling (Ho et al. 2020, algorithm 2): every step of `schedule` from step `first` down to 0, each a
/// draw of the posterior given the network's `x0`. Returns a tensor in the shape of `x0`.
///
/// `predict` as in [`reconstruct`], answering in `prediction`. `noises` are the fresh noises of the steps `first` to 1,
/// in that order: `first` of them.
///
/// # Errors
///
/// `first` beyond the schedule, a wrong number of noises, shapes that differ, and whatever `predict` returns.
pub fn ancestral(
    x0: &Tensor,
    (schedule, first): (&Schedule, usize),
    prediction: Prediction,
    start: Start<'_>,
    noises: &[Tensor],
    mut predict: impl FnMut(&Tensor, f64) -> Result<Tensor>,
) -> Result<Tensor> {
    if noises.len() != first {
        return Err(impossible(format!("{} noises for the sampler; expected {first}", noises.len())));
    }
    let mut x = start.at(x0, schedule.level(first)?)?;
    for step in (0..=first).rev() {
        let level = schedule.level(step)?;
        let output = predict(&x, level.log_snr())?;
        let clean = prediction.convert(&output, Prediction::X0, &x, &[level])?;
        let posterior = schedule.posterior(step)?;
        x = ancestral_step(&x, &clean, posterior, noises.get(first - step))?;
    }
    Ok(x)
}
