//! Logistic regression that tells the cells of known defects from those of good parts.

use nalgebra::{DMatrix, DVector};
use rayon::prelude::*;

use crate::error::{Error, Result};
use crate::kernels::gemm::{Epilogue, Factors, Matrix, gemm_once};

/// The data against the prior that there is no term: loss `|w|^2 / 2 + STRENGTH * mean loss`.
const STRENGTH: f64 = 300.0;

/// Cells for a regression.
pub(super) struct Rows {
    dim: usize,
    values: Vec<f32>, // [n, D + 2]
    /// 1 for defects, -1 for good cells.
    pub(super) signs: Vec<f64>,
    /// What each counts, together 1.
    pub(super) weights: Vec<f64>,
}

impl Rows {
    pub(super) fn new(dim: usize) -> Self {
        Self { dim, values: Vec::new(), signs: Vec::new(), weights: Vec::new() }
    }

    pub(super) fn push(&mut self, whitened: &[f32], distance: f32, sign: f64) {
        self.values.extend_from_slice(whitened);
        self.values.extend([distance, 1.0]);
        self.signs.push(sign);
        if sign < 0.0 {
            self.weights.push(0.0); // known when all are there
        }
    }

    fn width(&self) -> usize {
        self.dim + 2
    }

    pub(super) fn distances(&self) -> impl Iterator<Item = f64> + Clone {
        self.values.chunks_exact(self.width()).map(|row| f64::from(row[self.dim]))
    }

    pub(super) fn standardise(&mut self, mean: f64, deviation: f64) {
        let (dim, width) = (self.dim, self.width());
        let scale = |d: f32| ((f64::from(d) - mean) / deviation) as f32;
        self.values.chunks_exact_mut(width).for_each(|row| row[dim] = scale(row[dim]));
    }

    pub(super) fn product(&self, row: usize, weights: &[f64]) -> f64 {
        let row = &self.values[row * self.width()..][..self.width()];
        row.iter().zip(weights).map(|(x, w)| f64::from(*x) * w).sum()
    }

    /// The weights of the logistic regression, by Newton's method; the offset is not held back.
    pub(super) fn regress(&self) -> Result<Vec<f64>> {
        const STEPS: usize = 30;
        const ENOUGH: f64 = 1e-4;
        let (n, width) = (self.signs.len(), self.width());
        let prior = |i: usize| if i + 1 == width { 1e-6 } else { 1.0 };
        let margins = |weights: &[f64]| -> Vec<f64> {
            (0..n).into_par_iter().map(|i| self.signs[i] * self.product(i, weights)).collect()
        };
        let loss = |weights: &[f64], margins: &[f64]| {
            let own: f64 = weights.iter().enumerate().map(|(i, w)| prior(i) * w * w / 2.0).sum();
            let soft = |m: f64| if m > 0.0 { (-m).exp().ln_1p() } else { m.exp().ln_1p() - m };
            own + STRENGTH * margins.iter().zip(&self.weights).map(|(&m, w)| w * soft(m)).sum::<f64>()
        };
        let mut weights = vec![0.0; width];
        let mut margin = margins(&weights);
        let mut current = loss(&weights, &margin);
        for _ in 0..STEPS {
            // Of each row the probability to be wrong, p: gradient -sign p x, curvature p (1 - p) x x'.
            let wrong: Vec<f64> = margin.iter().map(|&m| 1.0 / (1.0 + m.exp())).collect();
            let mut gradient: Vec<f64> = weights.iter().enumerate().map(|(i, w)| prior(i) * w).collect();
            let mut scaled = self.values.clone();
            for (i, row) in scaled.chunks_exact_mut(width).enumerate() {
                let pull = STRENGTH * self.weights[i] * self.signs[i] * wrong[i];
                gradient.iter_mut().zip(row.iter()).for_each(|(g, x)| *g -= pull * f64::from(*x));
                let curvature = (STRENGTH * self.weights[i] * wrong[i] * (1.0 - wrong[i])).sqrt() as f32;
                row.iter_mut().for_each(|x| *x *= curvature);
            }
            let mut product = vec![0.0f32; width * width];
            let (left, right) = (Matrix::transposed(&scaled, width), Matrix::rows(&scaled, width));
            gemm_once(Factors::F32, [width, width, n], left, right, &mut product, Epilogue::default());
            let curvature = DMatrix::from_fn(width, width, |i, j| {
                f64::from(product[i * width + j]) + if i == j { prior(i) + 1e-9 } else { 0.0 }
            });
            let step = curvature.cholesky().map(|c| c.solve(&DVector::from_vec(gradient)));
            let step = step.ok_or_else(|| Error::Internal("defects: the regression is not finite".into()))?;
            let mut length = 1.0;
            let moved = loop {
                let next: Vec<f64> = weights.iter().zip(step.iter()).map(|(w, s)| w - length * s).collect();
                let next_margin = margins(&next);
                let next_loss = loss(&next, &next_margin);
                if next_loss <= current || length < 1e-3 {
                    let moved = current - next_loss;
                    if moved > 0.0 {
                        (weights, margin, current) = (next, next_margin, next_loss);
                    }
                    break moved;
                }
                length /= 2.0;
            };
            if moved < ENOUGH {
                break;
            }
        }
        Ok(weights)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_regression_is_at_its_minimum() {
        let mut rows = Rows::new(1);
        for (u, d, sign) in [(0.0, 1.0, -1.0), (1.0, 2.0, -1.0), (2.0, 0.0, 1.0), (3.0, 1.0, 1.0)] {
            rows.push(&[u], d, sign);
        }
        rows.weights = vec![0.25; 4];
        let found = rows.regress().unwrap();
        let soft = |m: f64| (-m).exp().ln_1p();
        let loss = |w: &[f64]| {
            let data: f64 = (0..4).map(|i| 0.25 * soft(rows.signs[i] * rows.product(i, w))).sum();
            w[..2].iter().map(|w| w * w / 2.0).sum::<f64>() + 5e-7 * w[2] * w[2] + STRENGTH * data
        };
        let here = loss(&found);
        for i in 0..3 {
            for step in [-0.05, 0.05] {
                let mut other = found.clone();
                other[i] += step;
                assert!(loss(&other) > here, "{i}, {step}: {here}");
            }
        }
        assert!(found[0] > 1.0, "{found:?}");
    }
}
