//! The cosine schedule as a continuous process: time, `alpha_bar` and log-SNR, each from each.

use std::f64::consts::FRAC_PI_2;

use super::{NoiseLevel, impossible};
use crate::error::Result;

/// `alpha_bar(u) = f(u) / f(0)`, `f(u) = cos^2((u + s) / (1 + s) * pi / 2)` for time `u` in 0..=1
/// (Nichol & Dhariwal 2021, equation 17).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct CosineProcess {
    /// The offset `s`: keeps the first levels of a discrete schedule from being too alike.
    offset: f64,
}

impl Default for CosineProcess {
    /// The paper's offset, 0.008.
    fn default() -> Self {
        Self { offset: 0.008 }
    }
}

impl CosineProcess {
    /// With another offset.
    ///
    /// # Errors
    ///
    /// `offset` negative, infinite or not a number.
    pub fn new(offset: f64) -> Result<Self> {
        if !(offset.is_finite() && offset >= 0.0) {
            return Err(impossible(format!("cosine offset is {offset}; expected a number from 0")));
        }
        Ok(Self { offset })
    }

    /// The noise level at time `time`: clean at 0, pure noise at 1.
    ///
    /// # Errors
    ///
    /// `time` outside 0..=1.
    pub fn level(self, time: f64) -> Result<NoiseLevel> {
        if !(0.0..=1.0).contains(&time) {
            return Err(impossible(format!("diffusion time is {time}; expected 0 to 1")));
        }
        let (start, now) = (self.angle(0.0), self.angle(time));
        let normal = start.cos().powi(2);
        // pi/2 - now, written so that it is exactly 0 at time 1, where cos(now) would leave a crumb.
        let left = (1.0 - time) / (1.0 + self.offset) * FRAC_PI_2;
        let alpha_bar = left.sin().powi(2) / normal;
        // cos^2 a - cos^2 b = sin(b - a) sin(b + a): no cancellation near time 0.
        let variance = (now - start).sin() * (now + start).sin() / normal;
        Ok(NoiseLevel::from_parts(alpha_bar.min(1.0), variance.clamp(0.0, 1.0)))
    }

    /// The time at which the process has this noise level: the inverse of [`CosineProcess::level`].
    pub fn time(self, level: NoiseLevel) -> f64 {
        let normal = self.angle(0.0).cos();
        // The complement of the angle is exact for small alpha_bar, where acos would round.
        let left = (level.signal() * normal).clamp(0.0, 1.0).asin();
        (1.0 - left / FRAC_PI_2 * (1.0 + self.offset)).clamp(0.0, 1.0)
    }

    /// Log-SNR at time `time`: plus infinity at 0, minus infinity at 1.
    ///
    /// # Errors
    ///
    /// `time` outside 0..=1.
    pub fn log_snr(self, time: f64) -> Result<f64> {
        Ok(self.level(time)?.log_snr())
    }

    /// The time at which the process has this log-SNR.
    ///
    /// # Errors
    ///
    /// `log_snr` is not a number.
    pub fn time_at_log_snr(self, log_snr: f64) -> Result<f64> {
        Ok(self.time(NoiseLevel::from_log_snr(log_snr)?))
    }

    /// `steps` levels from `start`, equally spaced in time, then [`NoiseLevel::CLEAN`]: `steps + 1` levels.
    ///
    /// # Errors
    ///
    /// No steps, or a start that is already clean.
    pub fn levels(self, start: NoiseLevel, steps: usize) -> Result<Vec<NoiseLevel>> {
        if steps == 0 {
            return Err(impossible("sampler steps is 0; expected at least 1"));
        }
        if !start.is_noisier_than(NoiseLevel::CLEAN) {
            return Err(impossible("sampler starts at a level without noise; expected alpha_bar below 1"));
        }
        let first = self.time(start);
        let mut levels = vec![start];
        for step in 1..steps {
            levels.push(self.level(first * (steps - step) as f64 / steps as f64)?);
        }
        levels.push(NoiseLevel::CLEAN);
        Ok(levels)
    }

    fn angle(self, time: f64) -> f64 {
        (time + self.offset) / (1.0 + self.offset) * FRAC_PI_2
    }
}
