//! The noise process in `T` discrete steps: betas, alpha-bars, posterior coefficients and subsets of the steps.

use super::{CosineProcess, NoiseLevel, impossible};
use crate::error::Result;

/// No single step may destroy more of the signal than this (Nichol & Dhariwal 2021, section 3.2).
const MAX_BETA: f64 = 0.999;
/// The number of steps for which the published betas of the linear schedules were chosen.
const REFERENCE_STEPS: f64 = 1000.0;
/// More steps than any published schedule by far; bounds the memory a wrong number can take.
const MAX_STEPS: usize = 1_000_000;

/// `beta_t` and `alpha_bar_t = prod(1 - beta_i)` for the steps `t = 0..T`; `alpha_bar` before step 0 is 1.
#[derive(Clone, Debug, PartialEq)]
pub struct Schedule {
    betas: Vec<f64>,
    alpha_bars: Vec<f64>,
}

/// Coefficients of q(x_{t-1} | x_t, x0) = N(`x0` x0 + `x_t` x_t, `variance`) (Ho et al. 2020, equation 7).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Posterior {
    /// Factor of `x0` in the mean.
    pub x0: f64,
    /// Factor of `x_t` in the mean.
    pub x_t: f64,
    /// Variance; 0 at step 0.
    pub variance: f64,
}

/// Variance of an ancestral step: the two ends of the range that Ho et al. 2020 (section 3.2) allow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StepVariance {
    /// That of the posterior, "beta tilde": right when the data is a single point.
    Posterior,
    /// `beta`: right when the data is normally distributed.
    Beta,
}

/// How a sampler's steps are chosen from a schedule's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Spacing {
    /// Equal distances from the start down to the clean end: from step 999, ten steps are 999, 899, ..., 99
    /// (Lin et al. 2023, section 3.3).
    Trailing,
    /// Equal distances from the start down to step 0, both visited: from step 999, ten steps are 999, 888, ..., 0.
    Linspace,
}

impl Schedule {
    /// Betas on a line from 1e-4 to 0.02 (Ho et al. 2020), both multiplied by 1000 / `steps` so that any number of
    /// steps ends in noise; none above 0.999.
    ///
    /// # Errors
    ///
    /// No steps, or more than a million.
    pub fn linear(steps: usize) -> Result<Self> {
        Self::linear_between(1e-4, 0.02, steps)
    }

    /// [`Schedule::linear`] with other ends, given for 1000 steps.
    ///
    /// # Errors
    ///
    /// No steps, or more than a million; betas that are not above 0.
    pub fn linear_between(first: f64, last: f64, steps: usize) -> Result<Self> {
        let scale = scale(steps)?;
        Self::from_betas(line(first * scale, last * scale, steps).map(|beta| beta.min(MAX_BETA)).collect())
    }

    /// Square roots of the betas on a line from those of 0.00085 to 0.012 (Stable Diffusion's "scaled linear"),
    /// scaled with the number of steps as in [`Schedule::linear`].
    ///
    /// # Errors
    ///
    /// No steps, or more than a million.
    pub fn scaled_linear(steps: usize) -> Result<Self> {
        let scale = scale(steps)?;
        let roots = line((0.00085 * scale).sqrt(), (0.012 * scale).sqrt(), steps);
        Self::from_betas(roots.map(|root| (root * root).min(MAX_BETA)).collect())
    }

    /// The cosine schedule (Nichol & Dhariwal 2021): betas from the ratios of [`CosineProcess`], none above 0.999.
    ///
    /// # Errors
    ///
    /// No steps, or more than a million.
    pub fn cosine(steps: usize) -> Result<Self> {
        check_steps(steps)?;
        let process = CosineProcess::default();
        let mut betas = Vec::with_capacity(steps);
        let mut before = process.level(0.0)?.alpha_bar();
        for step in 1..=steps {
            let after = process.level(step as f64 / steps as f64)?.alpha_bar();
            betas.push((1.0 - after / before).min(MAX_BETA));
            before = after;
        }
        Self::from_betas(betas)
    }

    /// A schedule of one's own.
    ///
    /// # Errors
    ///
    /// No betas, more than a million, or one that does not lower `alpha_bar` or lowers it to 0 before the last step.
    pub fn from_betas(betas: Vec<f64>) -> Result<Self> {
        check_steps(betas.len())?;
        let mut alpha_bars = Vec::with_capacity(betas.len());
        let mut before = 1.0;
        for (step, &beta) in betas.iter().enumerate() {
            let after = before * (1.0 - beta);
            let signal_left = after > 0.0 || (after == 0.0 && step + 1 == betas.len());
            if !(signal_left && after < before) {
                return Err(impossible(format!(
                    "beta of step {step} is {beta}, which takes alpha_bar from {before} to {after}; \
                     expected it to fall and to stay above 0 up to the last step"
                )));
            }
            alpha_bars.push(after);
            before = after;
        }
        Ok(Self { betas, alpha_bars })
    }

    /// The same schedule, shifted so that the last step leaves no signal at all (Lin et al. 2023, algorithm 1).
    /// At that step a network that predicts epsilon says nothing about `x0`.
    ///
    /// # Errors
    ///
    /// Fewer than two steps.
    pub fn with_zero_terminal_snr(self) -> Result<Self> {
        let [first, .., last] = self.alpha_bars[..] else {
            return Err(impossible("zero terminal SNR with 1 diffusion step; expected at least 2"));
        };
        let (first, last) = (first.sqrt(), last.sqrt());
        let shifted = |alpha_bar: &f64| ((alpha_bar.sqrt() - last) * first / (first - last)).powi(2);
        let alpha_bars: Vec<f64> = self.alpha_bars.iter().map(shifted).collect();
        let before = std::iter::once(&1.0).chain(&alpha_bars);
        let betas = alpha_bars.iter().zip(before).map(|(after, before)| 1.0 - after / before).collect();
        Ok(Self { betas, alpha_bars })
    }

    /// Number of steps `T`, at least 1.
    pub fn steps(&self) -> usize {
        self.betas.len()
    }

    /// The betas of all steps.
    pub fn betas(&self) -> &[f64] {
        &self.betas
    }

    /// The alpha-bars of all steps, falling.
    pub fn alpha_bars(&self) -> &[f64] {
        &self.alpha_bars
    }

    /// Noise level of step `step`, counted from 0.
    ///
    /// # Errors
    ///
    /// `step` at or beyond [`Schedule::steps`].
    pub fn level(&self, step: usize) -> Result<NoiseLevel> {
        let alpha_bar = *self.at(&self.alpha_bars, step)?;
        NoiseLevel::from_alpha_bar(alpha_bar)
    }

    /// Noise level before step `step`: clean before step 0.
    ///
    /// # Errors
    ///
    /// `step` at or beyond [`Schedule::steps`].
    pub fn level_before(&self, step: usize) -> Result<NoiseLevel> {
        self.at(&self.betas, step)?;
        step.checked_sub(1).map_or(Ok(NoiseLevel::CLEAN), |before| self.level(before))
    }

    /// Step whose `alpha_bar` is nearest to this level's.
    pub fn nearest_step(&self, level: NoiseLevel) -> usize {
        let distance = |alpha_bar: f64| (alpha_bar - level.alpha_bar()).abs();
        // The alpha-bars fall: the first at or below the level, or the one before it.
        let below = self.alpha_bars.partition_point(|&a| a > level.alpha_bar()).min(self.steps() - 1);
        match below.checked_sub(1) {
            Some(above) if distance(self.alpha_bars[above]) <= distance(self.alpha_bars[below]) => above,
            _ => below,
        }
    }

    /// Coefficients of the step from `step` to the one before.
    ///
    /// # Errors
    ///
    /// `step` at or beyond [`Schedule::steps`].
    pub fn posterior(&self, step: usize, variance: StepVariance) -> Result<Posterior> {
        let (now, before) = (self.level(step)?, self.level_before(step)?);
        let beta = *self.at(&self.betas, step)?;
        let remaining = before.variance() / now.variance();
        Ok(Posterior {
            x0: before.signal() * beta / now.variance(),
            x_t: (1.0 - beta).sqrt() * remaining,
            variance: match variance {
                StepVariance::Beta if step > 0 => beta,
                StepVariance::Beta | StepVariance::Posterior => beta * remaining,
            },
        })
    }

    /// The steps a sampler visits: falling, `start` first. There are `count` of them, or fewer where rounding makes
    /// two fall together.
    ///
    /// # Errors
    ///
    /// `count` is 0, or `start` at or beyond [`Schedule::steps`].
    pub fn subset(&self, start: usize, count: usize, spacing: Spacing) -> Result<Vec<usize>> {
        self.at(&self.betas, start)?;
        if count == 0 {
            return Err(impossible("sampler steps is 0; expected at least 1"));
        }
        // More than every step cannot be visited; the bound also keeps a huge count from taking memory.
        let count = count.min(start + 1);
        let mut steps: Vec<usize> = (0..count)
            .map(|k| match spacing {
                // In the papers' numbering, where 0 is the clean end, this is round(linspace(t*, 0, S + 1)).
                Spacing::Trailing => rounded((start + 1) * (count - k), count) - 1,
                Spacing::Linspace if count == 1 => start,
                Spacing::Linspace => rounded(start * (count - 1 - k), count - 1),
            })
            .collect();
        steps.dedup();
        Ok(steps)
    }

    /// The noise levels of [`Schedule::subset`], then [`NoiseLevel::CLEAN`].
    ///
    /// # Errors
    ///
    /// As [`Schedule::subset`].
    pub fn levels(&self, start: usize, count: usize, spacing: Spacing) -> Result<Vec<NoiseLevel>> {
        let mut levels: Vec<NoiseLevel> =
            self.subset(start, count, spacing)?.into_iter().map(|step| self.level(step)).collect::<Result<_>>()?;
        levels.push(NoiseLevel::CLEAN);
        Ok(levels)
    }

    fn at<'a>(&self, values: &'a [f64], step: usize) -> Result<&'a f64> {
        values
            .get(step)
            .ok_or_else(|| impossible(format!("diffusion step is {step}; expected 0 to {}", self.steps() - 1)))
    }
}

/// Factor of the published betas for another number of steps.
fn scale(steps: usize) -> Result<f64> {
    check_steps(steps)?;
    Ok(REFERENCE_STEPS / steps as f64)
}

fn check_steps(steps: usize) -> Result<()> {
    if !(1..=MAX_STEPS).contains(&steps) {
        return Err(impossible(format!("diffusion steps is {steps}; expected 1 to {MAX_STEPS}")));
    }
    Ok(())
}

/// `count` values on a line; one alone is the last, for a single step has to reach the noise.
fn line(first: f64, last: f64, count: usize) -> impl Iterator<Item = f64> {
    let whole = count.saturating_sub(1) as f64;
    (0..count).map(move |i| if i + 1 == count { last } else { first + (last - first) * i as f64 / whole })
}

/// `numerator / denominator` rounded to the nearest integer, halves up; integers, so that no platform differs.
fn rounded(numerator: usize, denominator: usize) -> usize {
    (2 * numerator + denominator) / (2 * denominator)
}
