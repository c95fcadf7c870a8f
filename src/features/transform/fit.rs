//! Fitting the transform to features of good parts.

use nalgebra::{DMatrix, SymmetricEigen};
use rayon::prelude::*;

use super::FeatureTransform;
use crate::error::{Error, Result};
use crate::kernels::gemm::{Epilogue, Factors, Matrix, Packed, gemm_once};

/// Added to eigenvalues before whitening.
const EIGEN_FLOOR: f64 = 1e-4;

impl FeatureTransform {
    /// Fits the transform to rows of raw features `[N, C]`: z-scores clamped to +-`clamp`, projected on the `dim` strongest
    /// principal directions. Each direction is scaled by its eigenvalue to the power -`gamma` / 2 (`gamma` 0 is plain PCA, 1
    /// full whitening), all of them by one factor to unit variance.
    ///
    /// # Errors
    /// When there are fewer rows than dimensions, or values are not finite.
    pub fn fit(rows: &[f32], channels: usize, dim: usize, gamma: f64, clamp: f64) -> Result<Self> {
        let n = rows.len() / channels.max(1);
        if n < 2 * dim || dim > channels {
            return Err(Error::Usage(format!(
                "features.dim = {dim} needs at least {} feature rows and as many channels; got {n} rows of {channels}",
                2 * dim
            )));
        }
        let mut mean = vec![0.0f64; channels];
        let mut square = vec![0.0f64; channels];
        for row in rows.chunks_exact(channels) {
            for ((m, s), &x) in mean.iter_mut().zip(&mut square).zip(row) {
                *m += f64::from(x);
                *s += f64::from(x) * f64::from(x);
            }
        }
        let mean: Vec<f64> = mean.iter().map(|m| m / n as f64).collect();
        let deviation: Vec<f32> =
            square.iter().zip(&mean).map(|(s, m)| ((s / n as f64 - m * m).max(0.0).sqrt().max(1e-6)) as f32).collect();
        let mean: Vec<f32> = mean.iter().map(|&m| m as f32).collect();
        if !mean.iter().chain(&deviation).all(|x| x.is_finite()) {
            return Err(Error::Internal("features: the backbone gave values that are not finite".into()));
        }
        let mut transform = Self {
            mean,
            deviation,
            projection: Vec::new(),
            packed: Packed::default(),
            clamp: clamp as f32,
            on_gpu: None,
        };
        let mut z = rows.to_vec();
        z.par_chunks_mut(channels).for_each(|row| transform.standardise(row));
        let mut covariance = vec![0.0; channels * channels];
        let plain = Epilogue::default();
        gemm_once(
            Factors::F32,
            [channels, channels, n],
            Matrix::transposed(&z, channels),
            Matrix::rows(&z, channels),
            &mut covariance,
            plain,
        );
        let matrix = DMatrix::from_iterator(channels, channels, covariance.iter().map(|&c| f64::from(c) / n as f64));
        let eigen = SymmetricEigen::new(matrix);
        let mut order: Vec<usize> = (0..channels).collect();
        order.sort_by(|&a, &b| eigen.eigenvalues[b].total_cmp(&eigen.eigenvalues[a]));
        let mut projection = vec![0.0f32; channels * dim];
        for (d, &index) in order.iter().take(dim).enumerate() {
            let direction = eigen.eigenvectors.column(index);
            // The sign of an eigenvector is free; the largest component is made positive so that it is always the same.
            let largest = direction.iter().fold(0.0f64, |a, &b| if b.abs() > a.abs() { b } else { a });
            let factor = largest.signum() * (eigen.eigenvalues[index].max(0.0) + EIGEN_FLOOR).powf(-gamma / 2.0);
            for (c, &u) in direction.iter().enumerate() {
                projection[c * dim + d] = (u * factor) as f32;
            }
        }
        let mut y = vec![0.0; n * dim];
        gemm_once(
            Factors::F32,
            [n, dim, channels],
            Matrix::rows(&z, channels),
            Matrix::rows(&projection, dim),
            &mut y,
            plain,
        );
        let variance = y.iter().map(|&v| f64::from(v) * f64::from(v)).sum::<f64>() / y.len() as f64;
        projection.iter_mut().for_each(|p| *p = (f64::from(*p) / variance.sqrt()) as f32);
        transform.set_projection(projection);
        Ok(transform)
    }
}
