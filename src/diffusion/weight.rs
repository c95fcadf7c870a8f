//! How much a training sample counts at its noise level.

use super::{NoiseLevel, Prediction, impossible};
use crate::error::Result;

/// Factor of the squared error of `prediction` at `level`: min-SNR-gamma (Hang et al. 2023, section 3.4).
///
/// Whatever is predicted, the result is `max(min(SNR, gamma), floor)` times the squared error of `x0`:
/// the errors of epsilon and v are that of `x0` times SNR and SNR + 1. `floor` keeps very noisy levels from counting
/// for nothing; 0 is the paper's weight.
///
/// # Errors
///
/// `gamma` not above 0, `floor` outside 0..=`gamma`, or an epsilon weight that is infinite (a floor at SNR 0).
pub fn min_snr_weight(prediction: Prediction, level: NoiseLevel, gamma: f64, floor: f64) -> Result<f64> {
    if !(gamma.is_finite() && gamma > 0.0) {
        return Err(impossible(format!("min-SNR gamma is {gamma}; expected above 0")));
    }
    if !(0.0..=gamma).contains(&floor) {
        return Err(impossible(format!("min-SNR floor is {floor}; expected 0 to gamma {gamma}")));
    }
    let snr = level.snr();
    let weight = snr.min(gamma).max(floor);
    match prediction {
        Prediction::X0 => Ok(weight),
        Prediction::V => Ok(weight / (snr + 1.0)),
        // Equal where neither bound holds, and the limit at SNR 0.
        Prediction::Epsilon if weight == snr => Ok(1.0),
        Prediction::Epsilon if snr > 0.0 => Ok(weight / snr),
        Prediction::Epsilon => Err(impossible("min-SNR floor for an epsilon loss at SNR 0; expected floor 0")),
    }
}
