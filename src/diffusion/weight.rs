//! How much a training sample counts at its noise level.

use super::{NoiseLevel, Prediction, impossible};
use crate::error::Result;

/// Factor of the squared error of `prediction` at `level`: min-SNR-gamma (Hang et al. 2023, section 3.4).
///
/// Whatever is predicted, the result is `min(SNR, gamma)` times the squared error of `x0`: the errors of epsilon and v are that
/// of `x0` times SNR and SNR + 1. For `x0` and v the factor is at least `floor`, which keeps very noisy levels from counting for
/// nothing; 0 is the paper's weight. Epsilon counts fully there as it is, and a floor under the error of `x0` would let the
/// noisiest level outweigh all others.
///
/// # Errors
///
/// `gamma` not above 0, or `floor` outside 0..=`gamma`.
pub fn min_snr_weight(prediction: Prediction, level: NoiseLevel, gamma: f64, floor: f64) -> Result<f64> {
    if !(gamma.is_finite() && gamma > 0.0) {
        return Err(impossible(format!("min-SNR gamma is {gamma}; expected above 0")));
    }
    if !(0.0..=gamma).contains(&floor) {
        return Err(impossible(format!("min-SNR floor is {floor}; expected 0 to gamma {gamma}")));
    }
    let snr = level.snr();
    let weight = snr.min(gamma).max(floor);
    Ok(match prediction {
        Prediction::X0 => weight,
        Prediction::V => weight / (snr + 1.0),
        Prediction::Epsilon if snr <= gamma => 1.0,
        Prediction::Epsilon => gamma / snr,
    })
}
