//! One noise level of a variance-preserving process, and the list of levels a sampler visits.

use super::impossible;
use crate::error::Result;

/// How much of a tensor's variance is signal and how much is noise; the two add up to 1.
///
/// Both parts are stored: near either end the small one would lose its digits as a difference from 1.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct NoiseLevel {
    alpha_bar: f64,
    variance: f64,
}

impl NoiseLevel {
    /// No noise: `alpha_bar` is exactly 1.
    pub const CLEAN: Self = Self { alpha_bar: 1.0, variance: 0.0 };

    /// The level with this `alpha_bar`.
    ///
    /// # Errors
    ///
    /// `alpha_bar` outside 0..=1 or not a number.
    pub fn from_alpha_bar(alpha_bar: f64) -> Result<Self> {
        if !(0.0..=1.0).contains(&alpha_bar) {
            return Err(impossible(format!("alpha_bar is {alpha_bar}; expected 0 to 1")));
        }
        Ok(Self { alpha_bar, variance: 1.0 - alpha_bar })
    }

    /// The level with this log-SNR: `alpha_bar = sigmoid(log_snr)` (Kingma et al. 2021, section 3.1). Infinite
    /// values are the two ends.
    ///
    /// # Errors
    ///
    /// `log_snr` is not a number.
    pub fn from_log_snr(log_snr: f64) -> Result<Self> {
        if log_snr.is_nan() {
            return Err(impossible("log-SNR is not a number"));
        }
        Ok(Self { alpha_bar: sigmoid(log_snr), variance: sigmoid(-log_snr) })
    }

    /// Fraction of the variance that is signal, 0..=1.
    pub fn alpha_bar(self) -> f64 {
        self.alpha_bar
    }

    /// Fraction of the variance that is noise, `1 - alpha_bar`, 0..=1.
    pub fn variance(self) -> f64 {
        self.variance
    }

    /// `sqrt(alpha_bar)`: what `x0` is multiplied by.
    pub fn signal(self) -> f64 {
        self.alpha_bar.sqrt()
    }

    /// `sqrt(1 - alpha_bar)`: what the noise is multiplied by.
    pub fn noise(self) -> f64 {
        self.variance.sqrt()
    }

    /// Signal-to-noise ratio `alpha_bar / (1 - alpha_bar)`; infinite for [`NoiseLevel::CLEAN`].
    pub fn snr(self) -> f64 {
        self.alpha_bar / self.variance
    }

    /// `ln(snr)`: what the network is told; infinite at the two ends.
    pub fn log_snr(self) -> f64 {
        self.alpha_bar.ln() - self.variance.ln()
    }

    /// Whether there is more noise here than at `other`.
    pub fn is_noisier_than(self, other: Self) -> bool {
        // alpha_bar alone rounds to equality near the clean end, the other part near the noisy one.
        self.log_snr() < other.log_snr()
    }
}

/// `steps` levels from `start` up, equally spaced in log-SNR, then [`NoiseLevel::CLEAN`]: `steps + 1` levels.
///
/// The spacing is that of `steps + 1` points from `start` to `log_snr_max`, the last of which gives way to the
/// clean end (whose log-SNR is infinite). One step is `[start, CLEAN]`.
///
/// # Errors
///
/// No steps, an end that is not cleaner than the start, or one of them infinite.
pub fn levels_in_log_snr(start: NoiseLevel, log_snr_max: f64, steps: usize) -> Result<Vec<NoiseLevel>> {
    let first = start.log_snr();
    if steps == 0 {
        return Err(impossible("sampler steps is 0; expected at least 1"));
    }
    if !first.is_finite() || !log_snr_max.is_finite() || first >= log_snr_max {
        return Err(impossible(format!(
            "levels from log-SNR {first} up to {log_snr_max}; expected finite values, the second larger"
        )));
    }
    let mut levels = vec![start];
    for step in 1..steps {
        let part = step as f64 / steps as f64;
        levels.push(NoiseLevel::from_log_snr(first + (log_snr_max - first) * part)?);
    }
    levels.push(NoiseLevel::CLEAN);
    Ok(levels)
}

fn sigmoid(x: f64) -> f64 {
    1.0 / (1.0 + (-x).exp())
}
