//! Statistics of the residuals of good parts, and the Mahalanobis distance that they define.
//!
//! The residual of a cell is the part of its features that the denoiser did not reconstruct, `r = x0 - x0_hat` `[D]`. Edges and
//! texture leave larger residuals than plain surface even on good parts, so a residual is judged against the mean and the
//! covariance that good parts of the same class have in the same cell, as PaDiM does with features (Defard et al. 2020).

use candle_core::{DType, Device, Tensor};
use half::f16;
use rayon::prelude::*;

use crate::error::{Error, Result};

#[cfg(feature = "train")]
mod sums;

#[cfg(feature = "train")]
pub use sums::ResidualSums;

/// Mean and covariance of the residuals of one class's good parts, for each of the T cells of the grid.
///
/// In place of the covariance stands `W`, the inverse of its Cholesky factor: `||W (v - mean)||` is the Mahalanobis distance
/// of a vector `v`. `W` is a lower triangle, packed row by row; stored in half precision, used in single precision.
pub struct ResidualStatistics {
    dim: usize,
    mean: Vec<f32>,   // [T, D]
    whiten: Vec<f16>, // [T, D (D + 1) / 2]
    /// On a GPU: mean `[T, 1, D]` and the transpose of `W` as full matrices `[T, D, D]`.
    on_gpu: Option<[Tensor; 2]>,
}

impl ResidualStatistics {
    /// From the tensors of a model file: `mean` `[T, D]`, `whiten` `[T, D (D + 1) / 2]`.
    ///
    /// # Errors
    /// When the lengths do not fit each other.
    pub fn new(dim: usize, mean: Vec<f32>, whiten: Vec<f16>) -> Result<Self> {
        let tokens = mean.len() / dim.max(1);
        if mean.len() != tokens * dim || whiten.len() != tokens * dim * (dim + 1) / 2 {
            return Err(Error::Internal(format!(
                "residuals: {} means, {} factors for {dim}",
                mean.len(),
                whiten.len()
            )));
        }
        Ok(Self { dim, mean, whiten, on_gpu: None })
    }

    /// Mean residual of each cell, `[T, D]`.
    pub fn mean(&self) -> &[f32] {
        &self.mean
    }

    /// The lower triangle `W` of each cell, `[T, D (D + 1) / 2]`.
    pub fn whiten(&self) -> &[f16] {
        &self.whiten
    }

    /// Mahalanobis distance of each cell's vector `[B, T, D]`: `[B, T]`. Vectors on a GPU need statistics there, see
    /// [`ResidualStatistics::on`].
    ///
    /// # Errors
    /// When the shape does not fit or the device fails.
    pub fn distances(&self, vectors: &Tensor) -> Result<Vec<f32>> {
        let (_, tokens, dim) = vectors.dims3()?;
        if dim != self.dim || tokens * dim != self.mean.len() {
            return Err(Error::Internal(format!(
                "residuals: vectors {:?}, statistics of {}",
                vectors.dims(),
                self.dim
            )));
        }
        if let Some(statistics) = &self.on_gpu {
            return distances_in_tensors(statistics, vectors);
        }
        let values = vectors.flatten_all()?.to_vec1::<f32>()?;
        Ok(values.chunks_exact(self.mean.len()).flat_map(|v| self.distance(v)).collect())
    }

    /// The same for vectors on a device: a GPU gets a copy of the statistics now.
    ///
    /// # Errors
    /// When the device has no room for them.
    pub fn on(mut self, device: &Device) -> Result<Self> {
        if !device.is_cpu() {
            self.on_gpu = Some(self.dense(device)?);
        }
        Ok(self)
    }

    /// Means `[T, 1, D]` and the transposes of `W` as full matrices `[T, D, D]`, on a device.
    fn dense(&self, device: &Device) -> Result<[Tensor; 2]> {
        let (dim, tokens) = (self.dim, self.mean.len() / self.dim);
        let mut whole = vec![f16::ZERO; tokens * dim * dim];
        for (whole, packed) in whole.chunks_exact_mut(dim * dim).zip(self.whiten.chunks_exact(dim * (dim + 1) / 2)) {
            for i in 0..dim {
                for (j, &value) in packed[i * (i + 1) / 2..][..=i].iter().enumerate() {
                    whole[j * dim + i] = value;
                }
            }
        }
        let whiten = Tensor::from_vec(whole, (tokens, dim, dim), device)?.to_dtype(DType::F32)?;
        Ok([Tensor::from_slice(&self.mean, (tokens, 1, dim), device)?, whiten])
    }

    /// Mahalanobis distance of each cell's vector `[T, D]`: `[T]`.
    pub fn distance(&self, vectors: &[f32]) -> Vec<f32> {
        let dim = self.dim;
        let triangle = dim * (dim + 1) / 2;
        vectors
            .par_chunks_exact(dim)
            .zip(self.mean.par_chunks_exact(dim))
            .zip(self.whiten.par_chunks_exact(triangle))
            .with_min_len(32)
            .map_init(
                || (vec![0.0; dim], vec![0.0; triangle]),
                |(centred, rows), ((v, mean), whiten)| {
                    for ((c, v), m) in centred.iter_mut().zip(v).zip(mean) {
                        *c = v - m;
                    }
                    half::slice::HalfFloatSliceExt::convert_to_f32_slice(whiten, rows);
                    crate::kernels::pointwise::triangular_norm(rows, centred)
                },
            )
            .collect()
    }
}

fn distances_in_tensors([mean, whiten]: &[Tensor; 2], vectors: &Tensor) -> Result<Vec<f32>> {
    // [B, T, D] -> [T, B, D], one matrix per cell for the whole batch
    let centred = vectors.transpose(0, 1)?.contiguous()?.broadcast_sub(mean)?;
    let squares = centred.matmul(whiten)?.sqr()?.sum(2)?; // [T, B]
    Ok(squares.sqrt()?.t()?.flatten_all()?.to_vec1()?)
}

#[cfg(all(test, feature = "train"))]
mod tests {
    use nalgebra::DMatrix;

    use super::*;

    /// The distance is that of the textbook formula, with the stated shrinkage and ridge.
    #[test]
    fn distance_is_mahalanobis() {
        let (tokens, dim, images) = (3, 4, 50);
        let value = |i: usize| ((i as f32 * 12.9898).sin() * 43758.547).fract();
        let data: Vec<f32> = (0..images * tokens * dim).map(value).collect();
        let mut sums = ResidualSums::new(tokens, dim);
        sums.add(&data[..20 * tokens * dim]);
        sums.add(&data[20 * tokens * dim..]);
        let statistics = sums.finish().unwrap();
        let at = |image: usize, t: usize, d: usize| f64::from(data[(image * tokens + t) * dim + d]);
        let n = images as f64;
        let mean = |t: usize, d: usize| (0..images).map(|i| at(i, t, d)).sum::<f64>() / n;
        let cov = |t: usize, a: usize, b: usize| {
            (0..images).map(|i| (at(i, t, a) - mean(t, a)) * (at(i, t, b) - mean(t, b))).sum::<f64>() / n
        };
        let own = n / (n + 20.0);
        let query: Vec<f32> = (0..tokens * dim).map(|i| value(i + 9999)).collect();
        for (t, &got) in statistics.distance(&query).iter().enumerate() {
            let pooled = |a, b| (0..tokens).map(|t| cov(t, a, b)).sum::<f64>() / tokens as f64;
            let c = DMatrix::from_fn(dim, dim, |a, b| {
                own * cov(t, a, b) + (1.0 - own) * pooled(a, b) + if a == b { 0.05 } else { 0.0 }
            });
            let pooled_mean = |d| (0..tokens).map(|t| mean(t, d)).sum::<f64>() / tokens as f64;
            let v = DMatrix::from_fn(dim, 1, |d, _| {
                f64::from(query[t * dim + d]) - own * mean(t, d) - (1.0 - own) * pooled_mean(d)
            });
            let expected = (v.transpose() * c.try_inverse().unwrap() * v)[(0, 0)].sqrt();
            assert!((f64::from(got) - expected).abs() < 2e-3 * expected, "cell {t}: {got} != {expected}");
        }
        let batch = Tensor::from_vec([query.clone(), query].concat(), (2, tokens, dim), &Device::Cpu).unwrap();
        let tensors = distances_in_tensors(&statistics.dense(&Device::Cpu).unwrap(), &batch).unwrap();
        let kernel = statistics.distances(&batch).unwrap();
        assert_eq!(kernel.len(), 2 * tokens);
        assert!(kernel.iter().zip(tensors).all(|(a, b)| (a - b).abs() < 1e-5 * a));
    }
}
