//! What the denoiser is shown: noised features with masked and foreign tokens. Everything random of a step comes from the
//! seed and the number of the step, so that a resumed run draws what an uninterrupted one would have drawn.

use candle_core::{Device, Tensor};
use rand::{Rng, RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;

use super::cache::Cache;
use crate::config::{Config, DiffusionConfig};
use crate::diffusion::{NoiseLevel, Prediction, min_snr_weight};
use crate::error::Result;
use crate::model::denoiser::normal;

/// One training batch.
pub(super) struct Batch {
    /// Noisy features and mask, `[B, T, D + 1]`.
    pub(super) input: Tensor,
    /// Clean features `[B, T, D]`.
    pub(super) target: Tensor,
    /// Weight of each sample's loss: min-SNR-gamma of the x0 loss (Hang et al. 2023) with a floor. `[B]`
    pub(super) weight: Vec<f32>,
    /// Log-SNR of each sample.
    pub(super) log_snr: Vec<f32>,
    /// Class of each sample; the number of classes stands for none.
    pub(super) class: Vec<u32>,
    /// For dropout.
    pub(super) seed: u64,
}

struct Draw {
    image: usize,
    other: usize,
    class: u32,
    log_snr: f64,
    rng: ChaCha8Rng,
}

/// The batch of a step; `images[c]` are the cache indices of class c. Classes are drawn evenly, then images.
pub(super) fn draw(config: &Config, cache: &Cache, images: &[Vec<usize>], step: usize) -> Result<Batch> {
    let training = &config.training;
    let mut rng = ChaCha8Rng::seed_from_u64(training.seed);
    rng.set_stream(step as u64 + 1);
    let count = training.batch_size;
    let draws: Vec<Draw> = (0..count)
        .map(|i| {
            let class = rng.random_range(0..images.len());
            let image = images[class][rng.random_range(0..images[class].len())];
            let from = &images[rng.random_range(0..images.len())];
            let other = from[rng.random_range(0..from.len())];
            let shown = if rng.random::<f64>() < training.class_drop { images.len() } else { class };
            let log_snr = log_snr(&config.diffusion, i < count / 2, &mut rng);
            let rng = ChaCha8Rng::seed_from_u64(rng.next_u64());
            Draw { image, other, class: shown as u32, log_snr, rng }
        })
        .collect();
    let seed = rng.next_u64();
    let (grid, dim) = (config.features.grid, config.features.dim);
    let tokens = grid * grid;
    let mut input = vec![0.0; count * tokens * (dim + 1)];
    let mut target = vec![0.0; count * tokens * dim];
    let weight = draws.iter().map(|d| weight(&config.diffusion, d.log_snr)).collect::<Result<_>>()?;
    let log_snr = draws.iter().map(|d| d.log_snr as f32).collect();
    let class = draws.iter().map(|d| d.class).collect();
    input
        .par_chunks_exact_mut(tokens * (dim + 1))
        .zip(target.par_chunks_exact_mut(tokens * dim))
        .zip(draws)
        .try_for_each(|((input, target), draw)| -> Result<()> {
            target.copy_from_slice(&cache.get(draw.image)?);
            let other = cache.get(draw.other)?;
            corrupt(config, draw, target, &other, input);
            Ok(())
        })?;
    Ok(Batch {
        input: Tensor::from_vec(input, (count, tokens, dim + 1), &Device::Cpu)?,
        target: Tensor::from_vec(target, (count, tokens, dim), &Device::Cpu)?,
        weight,
        log_snr,
        class,
        seed,
    })
}

/// Half of the draws around the operating point, half even over the range.
fn log_snr(config: &DiffusionConfig, centred: bool, rng: &mut ChaCha8Rng) -> f64 {
    let value = if centred {
        config.log_snr_center + config.log_snr_spread * normal(rng)
    } else {
        rng.random_range(config.log_snr_min..config.log_snr_max)
    };
    value.clamp(config.log_snr_min, config.log_snr_max)
}

fn weight(config: &DiffusionConfig, log_snr: f64) -> Result<f32> {
    let level = NoiseLevel::from_log_snr(log_snr)?;
    Ok(min_snr_weight(Prediction::X0, level, config.min_snr_gamma, config.min_snr_floor)? as f32)
}

/// Foreign patches (2x2 tokens), noise, then masked tokens: `x` and `other` `[T, D]`, `out` `[T, D + 1]`.
fn corrupt(config: &Config, draw: Draw, x: &[f32], other: &[f32], out: &mut [f32]) {
    let (grid, dim) = (config.features.grid, config.features.dim);
    let Draw { log_snr, mut rng, .. } = draw;
    let alpha_bar = 1.0 / (1.0 + (-log_snr).exp());
    let (signal, noise) = (alpha_bar.sqrt() as f32, (1.0 - alpha_bar).sqrt() as f32);
    let shuffle = config.training.shuffle * rng.random::<f64>();
    let mask = config.training.mask * rng.random::<f64>();
    let half = grid.div_ceil(2);
    let foreign: Vec<bool> = (0..half * half).map(|_| rng.random::<f64>() < shuffle).collect();
    let masked: Vec<bool> = (0..grid * grid).map(|_| rng.random::<f64>() < mask).collect();
    for (t, row) in out.chunks_exact_mut(dim + 1).enumerate() {
        if masked[t] {
            row[dim] = 1.0;
            continue;
        }
        let source = if foreign[(t / grid / 2) * half + t % grid / 2] { other } else { x };
        let source = &source[t * dim..][..dim];
        for (pair, x) in row[..dim].chunks_mut(2).zip(source.chunks(2)) {
            let gauss = normal_pair(&mut rng);
            for ((o, x), g) in pair.iter_mut().zip(x).zip(gauss) {
                *o = signal * x + noise * g;
            }
        }
    }
}

/// Two standard normal numbers from one 64-bit draw (Box & Muller 1958), in single precision: noise needs no more.
fn normal_pair(rng: &mut ChaCha8Rng) -> [f32; 2] {
    let bits = rng.next_u64();
    let u = ((bits >> 40) as f32 + 1.0) / 16_777_216.0; // (0, 1], 24 bits
    let angle = std::f32::consts::TAU * ((bits & 0xff_ffff) as f32 / 16_777_216.0);
    let radius = (-2.0 * u.ln()).sqrt();
    let (sin, cos) = angle.sin_cos();
    [radius * cos, radius * sin]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn normal_pairs_are_standard_normal() {
        let mut rng = ChaCha8Rng::seed_from_u64(3);
        let values: Vec<f64> = (0..100_000).flat_map(|_| normal_pair(&mut rng)).map(f64::from).collect();
        let n = values.len() as f64;
        let moment = |p: i32| values.iter().map(|v| v.powi(p)).sum::<f64>() / n;
        assert!(moment(1).abs() < 0.01 && (moment(2) - 1.0).abs() < 0.02 && (moment(4) - 3.0).abs() < 0.1);
    }

    #[test]
    fn a_step_draws_the_same_whenever_it_is_drawn() {
        let mut config = Config::default();
        config.features.grid = 4;
        config.features.dim = 8;
        let folder = tempfile::tempdir().unwrap();
        let mut cache = Cache::new(16 * 8, 16, folder.path());
        for i in 0..6 {
            cache.push(&(0..128).map(|j| ((i * 128 + j) as f32).sin()).collect::<Vec<_>>()).unwrap();
        }
        let images = [vec![0, 1, 2], vec![3, 4, 5]];
        let values =
            |step| draw(&config, &cache, &images, step).unwrap().input.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        let third = values(3);
        let _ = values(1);
        assert_eq!(third, values(3));
        assert_ne!(third, values(4));
    }
}
