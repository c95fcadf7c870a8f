//! The mathematics of diffusion, without a model: noise levels, schedules, conversions, steps, loss weights.
//!
//! Notation as in the papers: `x0` clean, `x_t` noised, `alpha_bar` the fraction of the variance that is still
//! signal, `x_t = sqrt(alpha_bar) x0 + sqrt(1 - alpha_bar) epsilon`. Scalars are `f64`; tensors may have any
//! shape and float type. Noise is always an argument: nothing here draws a random number, so equal arguments give
//! equal bits. The network arrives as a closure.

mod level;
mod prediction;
mod process;
mod sampler;
mod schedule;
mod step;
mod weight;

pub use level::{NoiseLevel, levels_in_log_snr};
pub use prediction::{Prediction, add_noise};
pub use process::Process;
pub use sampler::{Plan, Start, ancestral, reconstruct};
pub use schedule::{Posterior, Schedule};
pub use step::{Ddim, EpsMode, ancestral_step};
pub use weight::min_snr_weight;

use crate::error::Error;

/// A value that the mathematics does not allow.
fn impossible(message: impl Into<String>) -> Error {
    Error::Usage(message.into())
}
