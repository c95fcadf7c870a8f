//! One step of a sampler: DDIM between any two noise levels, DDPM's ancestral step along a schedule.

use candle_core::Tensor;

use super::{NoiseLevel, Posterior, impossible};
use crate::error::Result;

/// What a DDIM step does with the part of `x_t` that the reconstruction does not explain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EpsMode {
    /// Carries it on, as DDIM does. After a start without noise this part is the scaled defect, and a share of it
    /// comes back at every step.
    Ddim,
    /// Drops it: `x_s = sqrt(alpha_bar_s) x0`, projecting again and again. Removes more of a defect, and more detail.
    Drop,
}

/// The DDIM family of steps (Song et al. 2021): `eta` says how much of the noise is fresh.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Ddim {
    eta: f64,
    mode: EpsMode,
}

impl Ddim {
    /// `eta` 0 draws nothing; 1 along a whole schedule is DDPM.
    ///
    /// # Errors
    ///
    /// `eta` outside 0..=1, or above 0 with [`EpsMode::Drop`].
    pub fn new(eta: f64, mode: EpsMode) -> Result<Self> {
        if !(0.0..=1.0).contains(&eta) {
            return Err(impossible(format!("eta is {eta}; expected 0 to 1")));
        }
        if mode == EpsMode::Drop && eta > 0.0 {
            return Err(impossible(format!("eta is {eta} with eps mode drop; expected 0")));
        }
        Ok(Self { eta, mode })
    }

    /// Whether a step to level `to` has a random part.
    pub fn takes_noise(self, to: NoiseLevel) -> bool {
        self.eta > 0.0 && to.variance() > 0.0
    }

    /// Standard deviation of the fresh noise (equation 16): 0 for `eta` 0 and at the clean end; for `eta` 1 between
    /// neighbouring levels of a schedule that of the posterior.
    pub fn sigma(self, from: NoiseLevel, to: NoiseLevel) -> f64 {
        if !self.takes_noise(to) {
            return 0.0;
        }
        // 1 - alpha_bar_t / alpha_bar_s, from the noise parts, which keep their digits near the clean end.
        let lost = ((from.variance() - to.variance()) / to.alpha_bar()).max(0.0);
        self.eta * (to.variance() / from.variance() * lost).sqrt()
    }

    /// From `x_t` at level `from` to the cleaner level `to`, given the network's `x0` (equation 12):
    /// `sqrt(alpha_bar_s) x0 + sqrt(1 - alpha_bar_s - sigma^2) epsilon + sigma noise`.
    ///
    /// At the clean end that is `x0` itself. All tensors have one shape, but that one sample's noise does for all. `noise` is
    /// used where [`Ddim::sigma`] is above 0.
    ///
    /// # Errors
    ///
    /// A `to` that is not cleaner than `from`, noise that is needed and absent, shapes that differ.
    pub fn step(
        self,
        x_t: &Tensor,
        x0: &Tensor,
        (from, to): (NoiseLevel, NoiseLevel),
        noise: Option<&Tensor>,
    ) -> Result<Tensor> {
        if x_t.shape() != x0.shape() {
            return Err(impossible(format!("x_t is {:?} and x0 is {:?}; expected one shape", x_t.dims(), x0.dims())));
        }
        if !from.is_noisier_than(to) {
            let (from, to) = (from.alpha_bar(), to.alpha_bar());
            return Err(impossible(format!("DDIM step from alpha_bar {from} to {to}; expected a cleaner level")));
        }
        if to.variance() == 0.0 {
            // The reconstruction itself, to the bit.
            return Ok(x0.clone());
        }
        if self.mode == EpsMode::Drop {
            return Ok((x0 * to.signal())?);
        }
        let sigma = self.sigma(from, to);
        // epsilon = (x_t - signal_t x0) / noise_t, put in: two passes over memory instead of four.
        let carried = (to.variance() - sigma * sigma).max(0.0).sqrt() / from.noise();
        let mean = ((x0 * (to.signal() - carried * from.signal()))? + (x_t * carried)?)?;
        with_noise(mean, sigma, noise)
    }
}

/// DDPM's step from `x_t` to the step before: a draw of the posterior given the network's `x0` (Ho et al. 2020,
/// equations 6 and 7). All tensors have one shape, but that one sample's noise does for all. `noise` is used where the variance
/// is above 0.
///
/// # Errors
///
/// Noise that is needed and absent; shapes that differ.
pub fn ancestral_step(x_t: &Tensor, x0: &Tensor, posterior: Posterior, noise: Option<&Tensor>) -> Result<Tensor> {
    let mean = ((x0 * posterior.x0)? + (x_t * posterior.x_t)?)?;
    with_noise(mean, posterior.variance.sqrt(), noise)
}

fn with_noise(mean: Tensor, sigma: f64, noise: Option<&Tensor>) -> Result<Tensor> {
    match noise {
        _ if sigma == 0.0 => Ok(mean),
        Some(noise) => Ok((&mean + (noise * sigma)?.broadcast_as(mean.shape())?)?),
        None => Err(impossible(format!("no noise for a step with standard deviation {sigma}"))),
    }
}
