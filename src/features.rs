//! Feature space: the backbone's taps on one grid, z-scored, projected by PCA with partial whitening, unit variance.
//!
//! Fitted once on training normals and stored in the model. The process is variance preserving, so signal-to-noise ratios
//! mean something only because the variance here is 1.

use std::sync::OnceLock;

use candle_core::{DType, Device, Tensor};
use nalgebra::{DMatrix, SymmetricEigen};
use rayon::prelude::*;

use crate::error::{Error, Result};
use crate::kernels::gemm::{Epilogue, Matrix, Packed, gemm, gemm_once};
use crate::model::Weights;

/// Added to eigenvalues before whitening.
const EIGEN_FLOOR: f64 = 1e-4;

/// Taps `[B, h, w, C_i]` area-averaged (or, where coarser, bilinearly enlarged) to `grid` x `grid` and put side by side:
/// `[B, T, sum C_i]`, in single precision.
///
/// # Errors
/// When a tap's side is neither a multiple nor a divisor of the grid.
pub fn to_grid(taps: &[Tensor], grid: usize) -> Result<Tensor> {
    for tap in taps {
        let (_, height, width, _) = tap.dims4()?;
        if height != width || !(height.is_multiple_of(grid) || grid.is_multiple_of(height)) {
            return Err(Error::Internal(format!("features: a {height}x{width} map does not fit a grid of {grid}")));
        }
    }
    match taps.first() {
        Some(tap) if tap.device().is_cpu() && tap.dtype() == DType::F32 => to_grid_on_cpu(taps, grid),
        _ => to_grid_in_tensors(taps, grid),
    }
}

/// Means over blocks of cells, and weighted sums of four cells where the tap is the coarser, by two matrices per tap: one
/// along the rows, one along the columns.
fn to_grid_in_tensors(taps: &[Tensor], grid: usize) -> Result<Tensor> {
    let place = |tap: &Tensor| -> Result<Tensor> {
        let (batch, side, _, channels) = tap.dims4()?;
        let mut along = vec![0.0f32; grid * side];
        for (i, row) in along.chunks_exact_mut(side).enumerate() {
            if side >= grid {
                let factor = side / grid;
                row[i * factor..][..factor].fill(1.0 / factor as f32);
            } else {
                let (low, high, part) = crate::score::neighbours(i, grid, side);
                row[low] += 1.0 - part;
                row[high] += part;
            }
        }
        let along = Tensor::from_vec(along, (grid, side), tap.device())?;
        let tap = tap.to_dtype(DType::F32)?;
        // [B, h, w C] -> [B, grid, w C] -> [B grid, w, C] -> [B grid, grid, C]
        let rows =
            along.broadcast_left(batch)?.contiguous()?.matmul(&tap.reshape((batch, side, side * channels))?)?;
        let columns = rows.reshape((batch * grid, side, channels))?;
        let both = along.broadcast_left(batch * grid)?.contiguous()?.matmul(&columns)?;
        Ok(both.reshape((batch, grid * grid, channels))?)
    };
    Ok(Tensor::cat(&taps.iter().map(place).collect::<Result<Vec<_>>>()?, 2)?)
}

fn to_grid_on_cpu(taps: &[Tensor], grid: usize) -> Result<Tensor> {
    let batch = taps.first().map_or(Ok(0), |t| t.dim(0))?;
    let total: usize = taps.iter().map(|t| t.dim(3)).sum::<candle_core::Result<usize>>()?;
    let mut out = vec![0.0; batch * grid * grid * total];
    let mut at = 0;
    for tap in taps {
        let (_, height, width, channels) = tap.dims4()?;
        let values = tap.flatten_all()?.to_vec1::<f32>()?;
        let images = out.par_chunks_exact_mut(grid * grid * total);
        images.zip(values.par_chunks_exact(height * width * channels)).for_each(|(out, map)| {
            let place = Place { grid, total, at, channels };
            if height >= grid { pool(map, height / grid, &place, out) } else { enlarge(map, height, &place, out) }
        });
        at += channels;
    }
    Ok(Tensor::from_vec(out, (batch, grid * grid, total), &Device::Cpu)?)
}

/// Where a tap's channels go in a row of the grid.
struct Place {
    grid: usize,
    total: usize,
    at: usize,
    channels: usize,
}

fn pool(map: &[f32], factor: usize, place: &Place, out: &mut [f32]) {
    let Place { grid, total, at, channels } = *place;
    let scale = 1.0 / (factor * factor) as f32;
    for y in 0..grid * factor {
        for x in 0..grid * factor {
            let cell = &mut out[(y / factor * grid + x / factor) * total + at..][..channels];
            for (o, v) in cell.iter_mut().zip(&map[(y * grid * factor + x) * channels..][..channels]) {
                *o += v * scale;
            }
        }
    }
}

fn enlarge(map: &[f32], side: usize, place: &Place, out: &mut [f32]) {
    let Place { grid, total, at, channels } = *place;
    for y in 0..grid {
        let (y0, y1, fy) = crate::score::neighbours(y, grid, side);
        for x in 0..grid {
            let (x0, x1, fx) = crate::score::neighbours(x, grid, side);
            let cell = &mut out[(y * grid + x) * total + at..][..channels];
            for (c, o) in cell.iter_mut().enumerate() {
                let v = |y: usize, x: usize| map[(y * side + x) * channels + c];
                let (top, bottom) = (v(y0, x0) * (1.0 - fx) + v(y0, x1) * fx, v(y1, x0) * (1.0 - fx) + v(y1, x1) * fx);
                *o = top * (1.0 - fy) + bottom * fy;
            }
        }
    }
}

/// The fitted transform.
#[derive(Clone)]
pub struct FeatureSpace {
    mean: Vec<f32>,       // [C]
    deviation: Vec<f32>,  // [C]
    projection: Vec<f32>, // [C, D]
    packed: Packed,
    clamp: f32,
    /// Mean, deviation and projection where they were last used, if that is not the CPU.
    elsewhere: OnceLock<[Tensor; 3]>,
}

/// Names of the tensors in a model file.
const NAMES: [&str; 3] = ["features.mean", "features.deviation", "features.projection"];

impl FeatureSpace {
    /// Fits on rows of raw features `[N, C]`: z-score clamped to +-`clamp`, the `dim` strongest principal directions, each
    /// scaled by its eigenvalue to the power -`gamma` / 2, all by one factor to unit variance.
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
        let mut space = Self {
            mean,
            deviation,
            projection: Vec::new(),
            packed: Packed::default(),
            clamp: clamp as f32,
            elsewhere: OnceLock::new(),
        };
        let mut z = rows.to_vec();
        z.par_chunks_mut(channels).for_each(|row| space.standardise(row));
        let mut covariance = vec![0.0; channels * channels];
        let plain = Epilogue::default();
        gemm_once(
            channels,
            channels,
            n,
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
        gemm_once(n, dim, channels, Matrix::rows(&z, channels), Matrix::rows(&projection, dim), &mut y, plain);
        let variance = y.iter().map(|&v| f64::from(v) * f64::from(v)).sum::<f64>() / y.len() as f64;
        projection.iter_mut().for_each(|p| *p = (f64::from(*p) / variance.sqrt()) as f32);
        space.set_projection(projection);
        Ok(space)
    }

    fn set_projection(&mut self, projection: Vec<f32>) {
        let dim = projection.len() / self.mean.len();
        self.packed = Packed::new(self.mean.len(), dim, Matrix::rows(&projection, dim));
        self.projection = projection;
    }

    fn standardise(&self, row: &mut [f32]) {
        for ((x, m), d) in row.iter_mut().zip(&self.mean).zip(&self.deviation) {
            *x = ((*x - m) / d).clamp(-self.clamp, self.clamp);
        }
    }

    /// Channels in.
    pub fn channels(&self) -> usize {
        self.mean.len()
    }

    /// Channels out.
    pub fn dim(&self) -> usize {
        self.projection.len() / self.mean.len()
    }

    /// Raw features `[B, T, C]` to normalised ones `[B, T, D]`, on the device of the raw ones.
    ///
    /// # Errors
    /// When the shape does not fit or the device fails.
    pub fn normalise(&self, raw: &Tensor) -> Result<Tensor> {
        let (batch, tokens, channels) = raw.dims3()?;
        if channels != self.channels() {
            return Err(Error::Internal(format!("features: {channels} channels, fitted to {}", self.channels())));
        }
        if raw.device().is_cpu() {
            let values = raw.flatten_all()?.to_vec1::<f32>()?;
            let values =
                values.par_chunks_exact(tokens * channels).flat_map_iter(|raw| self.apply(raw)).collect::<Vec<_>>();
            return Ok(Tensor::from_vec(values, (batch, tokens, self.dim()), raw.device())?);
        }
        self.normalise_in_tensors(raw)
    }

    fn normalise_in_tensors(&self, raw: &Tensor) -> Result<Tensor> {
        let (batch, tokens, channels) = raw.dims3()?;
        let [mean, deviation, projection] = match self.elsewhere.get() {
            Some(tensors) if tensors[0].device().same_device(raw.device()) => tensors.clone(),
            _ => {
                let there = |(_, tensor): (String, Tensor)| tensor.to_device(raw.device());
                let all = self.tensors()?.into_iter().map(there).collect::<candle_core::Result<Vec<_>>>()?;
                let all = <[Tensor; 3]>::try_from(all).map_err(|_| Error::Internal("features: not three".into()))?;
                let _ = self.elsewhere.set(all.clone()); // a second device goes without
                all
            }
        };
        let z = raw.reshape((batch * tokens, channels))?.broadcast_sub(&mean)?.broadcast_div(&deviation)?;
        let z = z.clamp(-self.clamp, self.clamp)?;
        Ok(z.matmul(&projection)?.reshape((batch, tokens, self.dim()))?)
    }

    /// Raw features of one image `[T, C]` to normalised ones `[T, D]`.
    pub fn apply(&self, raw: &[f32]) -> Vec<f32> {
        let (channels, dim) = (self.channels(), self.dim());
        let tokens = raw.len() / channels;
        let mut z = raw.to_vec();
        z.chunks_exact_mut(channels).for_each(|row| self.standardise(row));
        let mut out = vec![0.0; tokens * dim];
        gemm(tokens, Matrix::rows(&z, channels), &self.packed, &mut out, Epilogue::default());
        out
    }

    /// Raw features `[T, C]` whose normalised ones are `values` `[T, D]`; of all those the nearest to the mean.
    pub fn invert(&self, values: &[f32]) -> Vec<f32> {
        let (channels, dim) = (self.channels(), self.dim());
        // The columns of the projection are at right angles: its pseudo-inverse is its transpose, each row over the square
        // of its length.
        let mut squares = vec![0.0f32; dim];
        for row in self.projection.chunks_exact(dim) {
            squares.iter_mut().zip(row).for_each(|(s, p)| *s += p * p);
        }
        let scaled: Vec<f32> =
            values.chunks_exact(dim).flat_map(|v| v.iter().zip(&squares).map(|(v, s)| v / s)).collect();
        let mut out = vec![0.0; values.len() / dim * channels];
        let transposed = Matrix::transposed(&self.projection, dim);
        gemm_once(
            out.len() / channels,
            channels,
            dim,
            Matrix::rows(&scaled, dim),
            transposed,
            &mut out,
            Epilogue::default(),
        );
        for row in out.chunks_exact_mut(channels) {
            for ((x, m), d) in row.iter_mut().zip(&self.mean).zip(&self.deviation) {
                *x = *x * d + m;
            }
        }
        out
    }

    /// Tensors for the model file.
    ///
    /// # Errors
    /// Never for a fitted space.
    pub fn tensors(&self) -> Result<Vec<(String, Tensor)>> {
        let (c, d, cpu) = (self.channels(), self.dim(), &Device::Cpu);
        Ok(vec![
            (NAMES[0].into(), Tensor::from_slice(&self.mean, c, cpu)?),
            (NAMES[1].into(), Tensor::from_slice(&self.deviation, c, cpu)?),
            (NAMES[2].into(), Tensor::from_slice(&self.projection, (c, d), cpu)?),
        ])
    }

    /// Names and shapes of `tensors` for `channels` in and `dim` out.
    pub fn shapes(channels: usize, dim: usize) -> Vec<(String, Vec<usize>)> {
        let shapes = [vec![channels], vec![channels], vec![channels, dim]];
        NAMES.iter().map(ToString::to_string).zip(shapes).collect()
    }

    /// From the tensors of a model file.
    ///
    /// # Errors
    /// When a tensor is missing.
    pub fn load(tensors: &Weights, clamp: f64) -> Result<Self> {
        let get = |name: &str| -> Result<Vec<f32>> {
            let tensor = tensors.get(name).ok_or_else(|| Error::Internal(format!("features: {name} is missing")))?;
            Ok(tensor.flatten_all()?.to_vec1()?)
        };
        let mut space = Self {
            mean: get(NAMES[0])?,
            deviation: get(NAMES[1])?,
            projection: Vec::new(),
            packed: Packed::default(),
            clamp: clamp as f32,
            elsewhere: OnceLock::new(),
        };
        space.set_projection(get(NAMES[2])?);
        Ok(space)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Rows of correlated numbers of different scales and means, `[n, 6]`.
    fn rows(n: usize) -> Vec<f32> {
        let number = |i: usize| ((i as f32 * 12.9898).sin() * 43758.547).fract();
        (0..n)
            .flat_map(|i| {
                let (a, b) = (number(2 * i), number(2 * i + 1));
                (0..6).map(move |c| (c as f32) * 3.0 + a * (c as f32 - 2.5) + b + number(i * 6 + c + 99_999) * 0.3)
            })
            .collect()
    }

    #[test]
    fn tensor_operations_give_what_the_kernels_give() {
        let number = |i: usize| ((i as f32 * 12.9898).sin() * 43758.547).fract();
        let tap = |side: usize, channels: usize| {
            let values: Vec<f32> = (0..2 * side * side * channels).map(number).collect();
            Tensor::from_vec(values, (2, side, side, channels), &Device::Cpu).unwrap()
        };
        let taps = [tap(16, 3), tap(8, 2), tap(4, 5), tap(2, 4)];
        let values = |t: Tensor| t.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        let (a, b) = (to_grid_on_cpu(&taps, 4).unwrap(), to_grid_in_tensors(&taps, 4).unwrap());
        assert_eq!(a.dims(), [2, 16, 14]);
        assert_eq!(a.dims(), b.dims());
        assert!(values(a).iter().zip(values(b)).all(|(a, b)| (a - b).abs() < 1e-6));

        let raw = rows(200);
        let space = FeatureSpace::fit(&raw, 6, 4, 0.5, 2.0).unwrap();
        let raw = Tensor::from_vec(raw, (4, 50, 6), &Device::Cpu).unwrap();
        let (a, b) = (space.normalise(&raw).unwrap(), space.normalise_in_tensors(&raw).unwrap());
        assert_eq!(b.dims(), [4, 50, 4]);
        assert!(values(a).iter().zip(values(b)).all(|(a, b)| (a - b).abs() < 1e-5));
    }

    /// Every direction kept: features come back. Fewer kept: what comes back has the same normalised features.
    #[test]
    fn normalised_features_have_raw_ones() {
        let raw = rows(200);
        let near = |a: &[f32], b: &[f32]| a.iter().zip(b).all(|(a, b)| (a - b).abs() < 1e-3);
        let whole = FeatureSpace::fit(&raw, 6, 6, 0.5, 6.0).unwrap();
        assert!(near(&whole.invert(&whole.apply(&raw)), &raw));
        let part = FeatureSpace::fit(&raw, 6, 3, 0.5, 6.0).unwrap();
        let values = part.apply(&raw);
        let back = part.invert(&values);
        assert!(near(&part.apply(&back), &values));
        assert!(!near(&back, &raw), "three of six directions cannot hold everything");
    }
}
