//! What a few known defects have taught: which directions of a cell's whitened residual mean defect.
//!
//! Beside the distance `d` of a cell stands a linear term, `score = max(0, (1 + a) d + v . u + c)`, with the whitened residual
//! `u = W (r - mean)` of the cell itself ([`Scale`](crate::residuals::Scale)). With `q = W' v` that is one product with the
//! residual: `v . u = q . r - q . mean`.

use candle_core::{Device, Tensor};

use crate::error::{Error, Result};
use crate::residuals::ResidualStatistics;

/// Numbers of a term beside its direction: the weight of the distance and the offset.
pub(super) const BESIDE: usize = 2;

/// The term of one class.
#[derive(Clone)]
pub struct DefectTerm {
    /// `v`, `a` and `c`: `[D + 2]`.
    weights: Vec<f32>,
    /// `q` `[T, D]`, and `c - q . mean` `[T]`, where the residuals are.
    products: [Tensor; 2],
}

impl DefectTerm {
    /// With `weights` `[D + 2]`: `v`, `a`, `c`; for residuals on `device` that these statistics whiten.
    ///
    /// # Errors
    /// When the shapes do not fit or the device has no room.
    pub fn new(weights: Vec<f32>, statistics: &ResidualStatistics, device: &Device) -> Result<Self> {
        let cells = statistics.scales().first().ok_or_else(|| Error::Internal("defects: no statistics".into()))?;
        let dim = weights.len().saturating_sub(BESIDE);
        if dim == 0 || cells.dim() != dim {
            return Err(Error::Internal(format!("defects: {dim} weights, statistics of {}", cells.dim())));
        }
        let (direction, offset) = (&weights[..dim], weights[dim + 1]);
        let mut products = Vec::with_capacity(cells.mean().len());
        let mut offsets = Vec::with_capacity(cells.mean().len() / dim);
        for (cell, mean) in cells.mean().chunks_exact(dim).enumerate() {
            let whiten = cells.whiten_of(cell);
            let mut product = vec![0.0f32; dim];
            for (i, weight) in direction.iter().enumerate() {
                let row = &whiten[i * (i + 1) / 2..][..=i];
                product.iter_mut().zip(row).for_each(|(product, value)| *product += weight * value.to_f32());
            }
            offsets.push(offset - product.iter().zip(mean).map(|(a, b)| a * b).sum::<f32>());
            products.extend(product);
        }
        let tokens = offsets.len();
        let products = [Tensor::from_vec(products, (tokens, dim), device)?, Tensor::from_vec(offsets, tokens, device)?];
        Ok(Self { weights, products })
    }

    /// `[D + 2]`, as they are stored.
    pub fn weights(&self) -> &[f32] {
        &self.weights
    }

    /// Adds the term to the distances of B samples, `[B, T]`, with `residuals` `[B, T, D]`.
    ///
    /// # Errors
    /// When the shapes do not fit or the device fails.
    pub fn add(&self, distances: &mut [f32], residuals: &Tensor) -> Result<()> {
        let [products, offsets] = &self.products;
        let terms = residuals.broadcast_mul(products)?.sum(2)?.broadcast_add(offsets)?;
        let factor = 1.0 + self.weights[self.weights.len() - BESIDE];
        for (distance, term) in distances.iter_mut().zip(terms.flatten_all()?.to_vec1::<f32>()?) {
            // What is not finite stays so: it must not become a score of 0.
            *distance = if term.is_finite() { (factor * *distance + term).max(0.0) } else { f32::NAN };
        }
        Ok(())
    }

    /// The same for one cell, from its whitened residual and its distance.
    #[cfg(feature = "train")]
    pub(crate) fn score(weights: &[f32], whitened: &[f32], distance: f32) -> f32 {
        let (direction, beside) = weights.split_at(weights.len() - BESIDE);
        let product: f32 = direction.iter().zip(whitened).map(|(a, b)| a * b).sum();
        ((1.0 + beside[0]) * distance + product + beside[1]).max(0.0)
    }
}

#[cfg(all(test, feature = "train"))]
mod tests {
    use super::*;
    use crate::config::{Blocks, Size};
    use crate::residuals::ResidualSums;
    use crate::residuals::fixture::vectors;

    #[test]
    fn a_term_on_residuals_is_the_one_on_whitened_residuals() {
        let (tokens, dim, images) = (9, 4, 40);
        let data = vectors(images * tokens * dim);
        let mut sums = ResidualSums::new(Blocks::cells(Size::square(3)), dim, 3);
        sums.add(&data);
        let statistics = sums.finish().unwrap();
        let weights = vec![0.5, -0.25, 1.0, 0.125, 0.3, 0.7];
        let term = DefectTerm::new(weights.clone(), &statistics, &Device::Cpu).unwrap();
        let batch = Tensor::from_slice(&data[..2 * tokens * dim], (2, tokens, dim), &Device::Cpu).unwrap();
        let distances = statistics.distances(&batch).unwrap();
        let mut scores = distances.clone();
        term.add(&mut scores, &batch).unwrap();
        let whitened = statistics.scales()[0].whitened(&data[..2 * tokens * dim]);
        for ((score, u), d) in scores.iter().zip(whitened.chunks_exact(dim)).zip(distances) {
            let expected = DefectTerm::score(&weights, u, d);
            assert!((score - expected).abs() < 1e-3, "{score}, {expected}");
        }
        assert!(scores.iter().any(|score| *score > 0.0));
        // A residual that is no number is not a good one.
        let broken = Tensor::full(f32::NAN, (1, tokens, dim), &Device::Cpu).unwrap();
        let mut scores = vec![1.0; tokens];
        term.add(&mut scores, &broken).unwrap();
        assert!(scores.iter().all(|score| score.is_nan()));
        assert!(DefectTerm::new(vec![0.0; 3], &statistics, &Device::Cpu).is_err());
    }
}
