//! The diffusion mathematics against published formulas: golden numbers, identities that hold for any tensor, and
//! clear errors for values that have no meaning.

mod levels;
mod predictions;
mod sampling;
mod schedules;

use candle_core::{DType, Device, Tensor};
use diad::diffusion::{
    Ddim, EpsMode, NoiseLevel, Plan, Prediction, Process, Schedule, Start, add_noise, ancestral, ancestral_step,
    levels_in_log_snr, min_snr_weight, reconstruct,
};
use diad::error::Result;
use proptest::prelude::*;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

// The golden numbers below come from this (numpy 2, float64):
//
//     import numpy as np
//     T = 1000
//     def bars(b): return np.cumprod(1 - b)
//     linear = np.linspace(1e-4, 0.02, T)
//     f = lambda u: np.cos((u + 0.008) / 1.008 * np.pi / 2) ** 2
//     cosine = np.minimum(1 - f(np.arange(1, T + 1) / T) / f(np.arange(T) / T), 0.999)
//     for a in bars(linear), bars(cosine):
//         print([f"{a[i]:.12e}" for i in (0, 1, 249, 499, 749, 998, 999)])
//     print("nearest", [np.abs(bars(linear) - x).argmin() for x in (.9, .7, .5, .4, .2)])
//     a = bars(linear); t, b = 500, linear[500]
//     print("posterior", np.sqrt(a[t-1]) * b / (1 - a[t]), np.sqrt(1 - b) * (1 - a[t-1]) / (1 - a[t]),
//           b * (1 - a[t-1]) / (1 - a[t]))
//     print("sigma", np.sqrt((1 - a[400]) / (1 - a[500])) * np.sqrt(1 - a[500] / a[400]))
//     for n in 10, 100:
//         print(n, bars(np.minimum(np.linspace(1e-4 * 1000 / n, 0.02 * 1000 / n, n), .999))[[n // 2, n - 1]])
//     # DDIM, eta 0.5, three steps uniform in log-SNR, x0-hat = tanh(x_t), from a scaled start
//     x0 = np.sin(np.arange(6)); z = [np.cos(np.arange(6)), np.cos(2 * np.arange(6))]
//     lam = np.array([np.log(0.4 / 0.6) + (4 - np.log(0.4 / 0.6)) * k / 3 for k in range(3)])
//     al = np.append(1 / (1 + np.exp(-lam)), 1.0); print("levels", al)
//     x = np.sqrt(al[0]) * x0
//     for k in range(3):
//         h = np.tanh(x); e = (x - np.sqrt(al[k]) * h) / np.sqrt(1 - al[k])
//         sg = 0.5 * np.sqrt((1 - al[k+1]) / (1 - al[k])) * np.sqrt(1 - al[k] / al[k+1])
//         x = np.sqrt(al[k+1]) * h + np.sqrt(1 - al[k+1] - sg**2) * e + (sg * z[k] if k < 2 else 0)
//         if k == 1: print("before the last step", x)
//     print("ddim", x)

const GOLDEN_STEPS: [usize; 7] = [0, 1, 249, 499, 749, 998, 999];

#[track_caller]
fn assert_close(actual: f64, expected: f64, relative: f64) {
    let error = (actual - expected).abs();
    assert!(error <= relative * expected.abs().max(1e-300), "{actual:e} is not {expected:e} (off by {error:e})");
}

#[track_caller]
fn assert_alpha_bars(schedule: &Schedule, expected: [f64; 7]) {
    for (step, expected) in GOLDEN_STEPS.into_iter().zip(expected) {
        assert_close(alpha_bar(schedule, step), expected, 1e-9);
    }
}

#[track_caller]
fn assert_refused<T: std::fmt::Debug>(result: Result<T>, words: &str) {
    let error = result.expect_err("expected an error").to_string();
    assert!(error.contains(words), "'{error}' does not say '{words}'");
}

/// The published betas.
fn linear(steps: usize) -> Schedule {
    Schedule::linear(1e-4, 0.02, steps).unwrap()
}

fn alpha_bar(schedule: &Schedule, step: usize) -> f64 {
    schedule.level(step).unwrap().alpha_bar()
}

fn level(alpha_bar: f64) -> NoiseLevel {
    NoiseLevel::from_alpha_bar(alpha_bar).unwrap()
}

fn ddim(eta: f64) -> Ddim {
    Ddim::new(eta, EpsMode::Ddim).unwrap()
}

/// Standard normal numbers of a seed, as f64 [2, 3, n].
fn normal(seed: u64, n: usize) -> Tensor {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut draw = || {
        // Box-Muller; 1 - u is never 0.
        let (u, v): (f64, f64) = (rng.random(), rng.random());
        (-2.0 * (1.0 - u).ln()).sqrt() * (std::f64::consts::TAU * v).cos()
    };
    Tensor::from_iter((0..6 * n).map(|_| draw()), &Device::Cpu).unwrap().reshape((2, 3, n)).unwrap()
}

fn values(x: &Tensor) -> Vec<f64> {
    x.flatten_all().unwrap().to_dtype(DType::F64).unwrap().to_vec1().unwrap()
}

fn largest_difference(a: &Tensor, b: &Tensor) -> f64 {
    values(a).iter().zip(values(b)).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max)
}

fn mean_square(x: &Tensor) -> f64 {
    let values = values(x);
    values.iter().map(|v| v * v).sum::<f64>() / values.len() as f64
}
