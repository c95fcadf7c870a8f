//! q(x_t | x0), and the three things a network may predict, each from each.

use candle_core::Tensor;

use super::{NoiseLevel, impossible};
use crate::error::Result;
use crate::named::named;

named! {
    /// What the network's output means (Salimans & Ho 2022, section 4).
    pub enum Prediction: "prediction" {
        /// The clean tensor.
        X0 = "x0",
        /// The noise.
        Epsilon = "epsilon",
        /// `v = sqrt(alpha_bar) epsilon - sqrt(1 - alpha_bar) x0`.
        V = "v",
    }
}

/// A draw of q(x_t | x0): `sqrt(alpha_bar) x0 + sqrt(1 - alpha_bar) noise`.
///
/// `noise` has the shape of `x0`. `levels` holds one level for everything, or one per sample (first dimension).
///
/// # Errors
///
/// Shapes that differ, or a number of levels that is neither 1 nor the number of samples.
pub fn add_noise(x0: &Tensor, noise: &Tensor, levels: &[NoiseLevel]) -> Result<Tensor> {
    combine((x0, NoiseLevel::signal), (noise, NoiseLevel::noise), levels)
}

impl Prediction {
    /// The network's `output` at `x_t`, said in terms of `to`. `output` and `x_t` have the same shape, levels are as
    /// in [`add_noise`].
    ///
    /// # Errors
    ///
    /// Shapes that differ, a wrong number of levels, or a level at which `output` does not determine the answer: at
    /// `alpha_bar` 0 epsilon says nothing about the others, at 1 `x0` says nothing about them.
    pub fn convert(self, output: &Tensor, to: Self, x_t: &Tensor, levels: &[NoiseLevel]) -> Result<Tensor> {
        if self == to {
            return Ok(output.clone());
        }
        let undetermined = |level: &&NoiseLevel| match self {
            Self::X0 => level.variance() == 0.0,
            Self::Epsilon => level.alpha_bar() == 0.0,
            Self::V => false,
        };
        if let Some(level) = levels.iter().find(undetermined) {
            return Err(impossible(format!(
                "{self:?} does not determine {to:?} at alpha_bar {}; expected a value between 0 and 1",
                level.alpha_bar()
            )));
        }
        let (x_t_factor, output_factor): (Factor, Factor) = match (self, to) {
            // epsilon = (x_t - sqrt(alpha_bar) x0) / sqrt(1 - alpha_bar)
            (Self::X0, Self::Epsilon) => (|l| 1.0 / l.noise(), |l| -l.signal() / l.noise()),
            // v = (sqrt(alpha_bar) x_t - x0) / sqrt(1 - alpha_bar)
            (Self::X0, _) => (|l| l.signal() / l.noise(), |l| -1.0 / l.noise()),
            // x0 = (x_t - sqrt(1 - alpha_bar) epsilon) / sqrt(alpha_bar)
            (Self::Epsilon, Self::X0) => (|l| 1.0 / l.signal(), |l| -l.noise() / l.signal()),
            // v = (epsilon - sqrt(1 - alpha_bar) x_t) / sqrt(alpha_bar)
            (Self::Epsilon, _) => (|l| -l.noise() / l.signal(), |l| 1.0 / l.signal()),
            // x0 = sqrt(alpha_bar) x_t - sqrt(1 - alpha_bar) v
            (Self::V, Self::X0) => (NoiseLevel::signal, |l| -l.noise()),
            // epsilon = sqrt(1 - alpha_bar) x_t + sqrt(alpha_bar) v
            (Self::V, _) => (NoiseLevel::noise, NoiseLevel::signal),
        };
        combine((x_t, x_t_factor), (output, output_factor), levels)
    }
}

/// A factor that depends on the noise level alone.
type Factor = fn(NoiseLevel) -> f64;

/// `factor_a(level) a + factor_b(level) b`, the level one for all or one per sample.
fn combine(a: (&Tensor, Factor), b: (&Tensor, Factor), levels: &[NoiseLevel]) -> Result<Tensor> {
    Ok((scaled(a.0, a.1, levels)? + scaled(b.0, b.1, levels)?)?)
}

fn scaled(x: &Tensor, factor: Factor, levels: &[NoiseLevel]) -> Result<Tensor> {
    if let [level] = levels {
        return Ok((x * factor(*level))?);
    }
    let samples = x.dims().first().copied().unwrap_or(1);
    if levels.len() != samples {
        return Err(impossible(format!(
            "{} noise levels for {samples} samples; expected 1 or {samples}",
            levels.len()
        )));
    }
    let factors: Vec<f64> = levels.iter().map(|level| factor(*level)).collect();
    let mut shape = vec![1; x.rank()];
    shape[0] = samples;
    // [B, 1, ..., 1]
    let factors = Tensor::from_vec(factors, shape, x.device())?.to_dtype(x.dtype())?;
    Ok(x.broadcast_mul(&factors)?)
}
