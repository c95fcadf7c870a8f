//! Sums over the residuals of good parts, from which their statistics are computed.

use half::f16;
use nalgebra::DMatrix;
use rayon::prelude::*;

use super::ResidualStatistics;
use crate::error::{Error, Result};
use crate::kernels::gemm::{Epilogue, Matrix, gemm_once};

/// The average over all cells counts as this many images in the statistics of each cell.
const SHRINKAGE: f64 = 20.0;
/// Added to the diagonal of every covariance (features have unit variance).
const RIDGE: f64 = 0.05;

/// Running sums over images, from which [`ResidualStatistics`] are computed. Takes memory for `T * D * (D + 1)` floats.
pub struct ResidualSums {
    tokens: usize,
    dim: usize,
    count: usize,
    sum: Vec<f64>,     // [T, D]
    product: Vec<f32>, // [T, D, D]
}

impl ResidualSums {
    /// Sums over no image yet, for grids of `tokens` cells with `dim` features.
    pub fn new(tokens: usize, dim: usize) -> Self {
        Self { tokens, dim, count: 0, sum: vec![0.0; tokens * dim], product: vec![0.0; tokens * dim * dim] }
    }

    /// Adds the residuals of n images, `vectors` `[n, T, D]`.
    pub fn add(&mut self, vectors: &[f32]) {
        let (dim, image) = (self.dim, self.tokens * self.dim);
        let n = vectors.len() / image;
        self.count += n;
        self.product.par_chunks_exact_mut(dim * dim).zip(self.sum.par_chunks_exact_mut(dim)).enumerate().for_each(
            |(t, (product, sum))| {
                let mut rows = vec![0.0; n * dim];
                for (row, vector) in rows.chunks_exact_mut(dim).zip(vectors.chunks_exact(image)) {
                    row.copy_from_slice(&vector[t * dim..][..dim]);
                    for (s, &v) in sum.iter_mut().zip(row.iter()) {
                        *s += f64::from(v);
                    }
                }
                let epilogue = Epilogue { accumulate: true, ..Epilogue::default() };
                gemm_once(dim, dim, n, Matrix::transposed(&rows, dim), Matrix::rows(&rows, dim), product, epilogue);
            },
        );
    }

    /// The statistics. Each cell's mean and covariance are shrunk towards the average over all cells, which counts as 20
    /// images; then 0.05 is added to the diagonal of the covariance.
    ///
    /// # Errors
    /// When nothing was added or values are not finite.
    pub fn finish(self) -> Result<ResidualStatistics> {
        let Self { tokens, dim, count, sum, product } = self;
        if count == 0 {
            return Err(Error::Internal("residuals: statistics over no image".into()));
        }
        let n = count as f64;
        let own = n / (n + SHRINKAGE);
        let covariance = |t: usize| {
            let mean = &sum[t * dim..][..dim];
            let product = &product[t * dim * dim..][..dim * dim];
            DMatrix::from_fn(dim, dim, |i, j| f64::from(product[i * dim + j]) / n - mean[i] / n * (mean[j] / n))
        };
        let mut pooled = DMatrix::<f64>::zeros(dim, dim);
        let mut pooled_mean = vec![0.0; dim];
        for t in 0..tokens {
            pooled += covariance(t) / tokens as f64;
            for (p, s) in pooled_mean.iter_mut().zip(&sum[t * dim..]) {
                *p += s / n / tokens as f64;
            }
        }
        let mean =
            sum.iter().enumerate().map(|(i, s)| (s / n * own + pooled_mean[i % dim] * (1.0 - own)) as f32).collect();
        let rows = (0..tokens)
            .into_par_iter()
            .map(|t| {
                let mut c = covariance(t) * own + &pooled * (1.0 - own);
                for i in 0..dim {
                    c[(i, i)] += RIDGE;
                }
                let inverse = c
                    .cholesky()
                    .and_then(|c| c.l().solve_lower_triangular(&DMatrix::identity(dim, dim)))
                    .ok_or_else(|| Error::Internal(format!("residuals: the covariance of cell {t} is not finite")))?;
                Ok((0..dim).flat_map(|i| (0..=i).map(move |j| (i, j))).map(|at| f16::from_f64(inverse[at])).collect())
            })
            .collect::<Result<Vec<Vec<f16>>>>()?;
        ResidualStatistics::new(dim, mean, rows.concat())
    }
}
