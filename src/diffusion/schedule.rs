//! The noise process in `T` discrete steps: betas, alpha-bars, posterior coefficients and subsets of the steps.

use std::f64::consts::FRAC_PI_2;

use super::{NoiseLevel, impossible};
use crate::error::Result;

/// No single step may destroy more of the signal than this (Nichol & Dhariwal 2021, section 3.2).
const MAX_BETA: f64 = 0.999;
/// The number of steps for which betas are given.
const REFERENCE_STEPS: f64 = 1000.0;
/// Offset of the cosine schedule, which keeps its first levels from being too alike (Nichol & Dhariwal 2021, section 3.2).
const COSINE_OFFSET: f64 = 0.008;
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

impl Schedule {
    /// Betas on a line from `first` to `last` (Ho et al. 2020: 1e-4 to 0.02), both given for 1000 steps and multiplied by
    /// 1000 / `steps`, so that any number of steps ends in noise; none above 0.999.
    ///
    /// # Errors
    ///
    /// No steps, or more than a million; betas that are not above 0.
    pub fn linear(first: f64, last: f64, steps: usize) -> Result<Self> {
        check_steps(steps)?;
        let scale = REFERENCE_STEPS / steps as f64;
        Self::from_betas(line(first * scale, last * scale, steps).map(|beta| beta.min(MAX_BETA)).collect())
    }

    /// The cosine schedule (Nichol & Dhariwal 2021, equation 17): betas from the ratios of `alpha_bar(u) = f(u) / f(0)` with
    /// `f(u) = cos^2((u + s) / (1 + s) * pi / 2)` at the times `u = t / T`, none above 0.999.
    ///
    /// # Errors
    ///
    /// No steps, or more than a million.
    pub fn cosine(steps: usize) -> Result<Self> {
        check_steps(steps)?;
        let normal = (COSINE_OFFSET / (1.0 + COSINE_OFFSET) * FRAC_PI_2).cos().powi(2);
        let alpha_bar = |time: f64| {
            // The complement of the angle is exactly 0 at time 1, where the cosine of the angle would leave a crumb.
            let left = (1.0 - time) / (1.0 + COSINE_OFFSET) * FRAC_PI_2;
            (left.sin().powi(2) / normal).min(1.0)
        };
        let mut before = alpha_bar(0.0);
        let mut betas = Vec::with_capacity(steps);
        for step in 1..=steps {
            let after = alpha_bar(step as f64 / steps as f64);
            betas.push((1.0 - after / before).min(MAX_BETA));
            before = after;
        }
        Self::from_betas(betas)
    }

    /// Each beta has to lower `alpha_bar`, and may lower it to 0 at the last step only.
    fn from_betas(betas: Vec<f64>) -> Result<Self> {
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

    /// Number of steps `T`, at least 1.
    pub fn steps(&self) -> usize {
        self.betas.len()
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

    /// Coefficients of the step from `step` to the one before, with the variance of the posterior ("beta tilde").
    ///
    /// # Errors
    ///
    /// `step` at or beyond [`Schedule::steps`].
    pub fn posterior(&self, step: usize) -> Result<Posterior> {
        let now = self.level(step)?;
        let before = step.checked_sub(1).map_or(Ok(NoiseLevel::CLEAN), |before| self.level(before))?;
        let beta = *self.at(&self.betas, step)?;
        let remaining = before.variance() / now.variance();
        Ok(Posterior {
            x0: before.signal() * beta / now.variance(),
            x_t: (1.0 - beta).sqrt() * remaining,
            variance: beta * remaining,
        })
    }

    /// The steps a sampler visits: falling, `start` first, at equal distances down to the clean end (Lin et al. 2023, section
    /// 3.3): from step 999, ten steps are 999, 899, ..., 99. There are `count` of them, or fewer where rounding makes two
    /// fall together.
    ///
    /// # Errors
    ///
    /// `count` is 0, or `start` at or beyond [`Schedule::steps`].
    pub fn subset(&self, start: usize, count: usize) -> Result<Vec<usize>> {
        self.at(&self.betas, start)?;
        if count == 0 {
            return Err(impossible("sampler steps is 0; expected at least 1"));
        }
        // More than every step cannot be visited; the bound also keeps a huge count from taking memory.
        let count = count.min(start + 1);
        // In the papers' numbering, where 0 is the clean end, this is round(linspace(t*, 0, S + 1)).
        let mut steps: Vec<usize> = (0..count).map(|k| rounded((start + 1) * (count - k), count) - 1).collect();
        steps.dedup();
        Ok(steps)
    }

    /// The noise levels of [`Schedule::subset`], then [`NoiseLevel::CLEAN`].
    ///
    /// # Errors
    ///
    /// As [`Schedule::subset`].
    pub fn levels(&self, start: usize, count: usize) -> Result<Vec<NoiseLevel>> {
        let mut levels: Vec<NoiseLevel> =
            self.subset(start, count)?.into_iter().map(|step| self.level(step)).collect::<Result<_>>()?;
        levels.push(NoiseLevel::CLEAN);
        Ok(levels)
    }

    fn at<'a>(&self, values: &'a [f64], step: usize) -> Result<&'a f64> {
        values
            .get(step)
            .ok_or_else(|| impossible(format!("diffusion step is {step}; expected 0 to {}", self.steps() - 1)))
    }
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
