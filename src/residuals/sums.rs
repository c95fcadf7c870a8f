//! Sums over the residuals of good parts, from which their statistics are computed.

use half::f16;
use nalgebra::{DMatrix, DVector};
use rayon::prelude::*;

use super::{ResidualStatistics, Scale, square_means};
use crate::config::Blocks;
use crate::error::{Error, Result};
use crate::kernels::gemm::{Epilogue, Factors, Matrix, gemm_once};

/// The average over all cells counts as this many images in the statistics of each cell.
const SHRINKAGE: f64 = 20.0;
/// Added to the diagonal of every covariance (features have unit variance).
const RIDGE: f64 = 0.05;

/// Running sums over images, from which [`ResidualStatistics`] are computed. Takes memory for `N * D * D` floats per scale, N squares
/// of cells that share a covariance.
#[derive(Clone)]
pub struct ResidualSums {
    scales: Vec<Sums>,
}

impl ResidualSums {
    /// Sums over no image yet, for cells with `dim` features, and those that share a covariance: of the cells, and of the squares of `context` cells
    /// around them where that is more than 1.
    pub fn new(blocks: Blocks, dim: usize, context: usize) -> Self {
        let sides = [1].into_iter().chain((context > 1).then_some(context));
        Self { scales: sides.map(|side| Sums::new(blocks, dim, side)).collect() }
    }

    /// Adds the residuals of n images, `vectors` `[n, T, D]`.
    pub fn add(&mut self, vectors: &[f32]) {
        for scale in &mut self.scales {
            let (grid, image) = (scale.blocks.grid, scale.blocks.grid.area() * scale.dim);
            match scale.side {
                1 => scale.add(vectors),
                side => {
                    let means = vectors.par_chunks_exact(image).map(|image| square_means(image, grid, side));
                    scale.add(&means.collect::<Vec<_>>().concat());
                }
            }
        }
    }

    /// The sums without images that were added: `others` are sums over these.
    ///
    /// # Errors
    /// When the shapes differ, or more would be taken away than was added.
    pub fn without(&self, others: &Self) -> Result<Self> {
        let mut rest = self.clone();
        let alike = |(own, other): (&Sums, &Sums)| {
            (own.side, own.blocks, own.dim) == (other.side, other.blocks, other.dim) && other.count <= own.count
        };
        if rest.scales.len() != others.scales.len() || !rest.scales.iter().zip(&others.scales).all(alike) {
            return Err(Error::Internal("residuals: sums of other shapes cannot be taken away".into()));
        }
        for (own, other) in rest.scales.iter_mut().zip(&others.scales) {
            own.count -= other.count;
            own.sum.iter_mut().zip(&other.sum).for_each(|(own, other)| *own -= other);
            own.product.par_iter_mut().zip(&other.product).for_each(|(own, other)| *own -= other);
        }
        Ok(rest)
    }

    /// The statistics. Each cell's mean and each square's covariance are shrunk towards the average over all cells, which counts as 20
    /// images; then 0.05 is added to the diagonal of the covariance. Several scales have equal shares of the distance of the
    /// images that were added, which stays about that of the cells alone.
    ///
    /// # Errors
    /// When nothing was added or values are not finite.
    pub fn finish(&self) -> Result<ResidualStatistics> {
        let found = self.scales.iter().map(Sums::finish).collect::<Result<Vec<_>>>()?;
        let reference = found.first().map_or(1.0, |scale| scale.length);
        let several = found.len() > 1;
        let scales = self.scales.iter().zip(&found).map(|(sums, found)| {
            // Where nothing is reconstructed there are no residuals, and no lengths.
            let ratio = Some(reference / found.length).filter(|ratio| ratio.is_finite() && *ratio > 0.0).unwrap_or(1.0);
            let factor = if several { ratio / self.scales.len() as f64 } else { 1.0 };
            let whiten = found.whiten.iter().map(|&value| f16::from_f64(factor * value)).collect();
            Scale::new(sums.blocks, sums.side, sums.dim, found.mean.clone(), whiten)
        });
        let mut scales = scales.collect::<Result<Vec<_>>>()?.into_iter();
        let first = scales.next().ok_or_else(|| Error::Internal("residuals: no scale".into()))?;
        Ok(scales.fold(ResidualStatistics::new(first), ResidualStatistics::and))
    }
}

/// What the sums of one scale amount to.
struct Found {
    mean: Vec<f32>,   // [T, D]
    whiten: Vec<f64>, // [N, D (D + 1) / 2]
    /// Root of the mean square distance of the images that were added.
    length: f64,
}

/// Those of one scale.
#[derive(Clone)]
struct Sums {
    blocks: Blocks,
    side: usize,
    dim: usize,
    count: usize,
    sum: Vec<f64>,     // [T, D]
    product: Vec<f32>, // [N, D, D]
}

impl Sums {
    fn new(blocks: Blocks, dim: usize, side: usize) -> Self {
        let (sum, product) = (vec![0.0; blocks.grid.area() * dim], vec![0.0; blocks.count() * dim * dim]);
        Self { blocks, side, dim, count: 0, sum, product }
    }

    fn add(&mut self, vectors: &[f32]) {
        let (dim, image) = (self.dim, self.blocks.grid.area() * self.dim);
        let n = vectors.len() / image;
        self.count += n;
        self.sum.par_chunks_exact_mut(dim).enumerate().for_each(|(t, sum)| {
            for vector in vectors.chunks_exact(image) {
                sum.iter_mut().zip(&vector[t * dim..][..dim]).for_each(|(s, &v)| *s += f64::from(v));
            }
        });
        let members = self.blocks.members();
        self.product.par_chunks_exact_mut(dim * dim).zip(&members).for_each(|(product, cells)| {
            let rows = n * cells.len();
            let mut values = Vec::with_capacity(rows * dim);
            for vector in vectors.chunks_exact(image) {
                cells.iter().for_each(|t| values.extend_from_slice(&vector[t * dim..][..dim]));
            }
            let epilogue = Epilogue { accumulate: true, ..Epilogue::default() };
            gemm_once(
                Factors::F32,
                [dim, dim, rows],
                Matrix::transposed(&values, dim),
                Matrix::rows(&values, dim),
                product,
                epilogue,
            );
        });
    }

    fn finish(&self) -> Result<Found> {
        let Self { dim, count, sum, product, .. } = self;
        let (tokens, dim, members) = (self.blocks.grid.area(), *dim, self.blocks.members());
        if *count == 0 {
            return Err(Error::Internal("residuals: statistics over no image".into()));
        }
        let n = *count as f64;
        let own = n / (n + SHRINKAGE);
        // Around the mean of each cell, over all cells of a square.
        let covariance = |block: usize| {
            let cells = &members[block];
            let share = cells.len() as f64;
            let product = &product[block * dim * dim..][..dim * dim];
            let means = |i: usize, j: usize| {
                cells.iter().map(|t| sum[t * dim + i] / n * (sum[t * dim + j] / n)).sum::<f64>() / share
            };
            DMatrix::from_fn(dim, dim, |i, j| f64::from(product[i * dim + j]) / n / share - means(i, j))
        };
        let mut pooled = DMatrix::<f64>::zeros(dim, dim);
        for (block, cells) in members.iter().enumerate() {
            pooled += covariance(block) * cells.len() as f64 / tokens as f64;
        }
        let mut pooled_mean = vec![0.0; dim];
        for sum in sum.chunks_exact(dim) {
            pooled_mean.iter_mut().zip(sum).for_each(|(p, s)| *p += s / n / tokens as f64);
        }
        let mean: Vec<f32> =
            sum.iter().enumerate().map(|(i, s)| (s / n * own + pooled_mean[i % dim] * (1.0 - own)) as f32).collect();
        let square = |(block, cells): (usize, &Vec<usize>)| {
            let seen = covariance(block);
            let rows = n * cells.len() as f64;
            let own = rows / (rows + SHRINKAGE);
            let mut c = &seen * own + &pooled * (1.0 - own);
            for i in 0..dim {
                c[(i, i)] += RIDGE;
            }
            let inverse =
                c.cholesky().and_then(|c| c.l().solve_lower_triangular(&DMatrix::identity(dim, dim))).ok_or_else(
                    || Error::Internal(format!("residuals: the covariance of cell {} is not finite", cells[0])),
                )?;
            // E |W (v - mean)|^2 = tr(W E[(v - mean) (v - mean)'] W')
            let mut around = seen;
            for t in cells {
                let off = DVector::from_fn(dim, |i, _| sum[t * dim + i] / n - f64::from(mean[t * dim + i]));
                around += &off * off.transpose() / cells.len() as f64;
            }
            let square = (&inverse * around).dot(&inverse) * cells.len() as f64;
            let packed = (0..dim).flat_map(|i| (0..=i).map(move |j| (i, j)));
            Ok((packed.map(|at| inverse[at]).collect(), square))
        };
        let squares = members.par_iter().enumerate().map(square).collect::<Result<Vec<(Vec<f64>, f64)>>>()?;
        let length = (squares.iter().map(|(_, square)| square).sum::<f64>() / tokens as f64).sqrt();
        let whiten = squares.into_iter().flat_map(|(whiten, _)| whiten).collect();
        Ok(Found { mean, whiten, length })
    }
}
