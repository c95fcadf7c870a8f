//! The taps of a backbone, which have several resolutions, side by side on one grid.

use candle_core::{DType, Device, Tensor};
use rayon::prelude::*;

use crate::error::{Error, Result};
use crate::maps::neighbours;

/// The taps of a backbone, `[B, h, w, C_i]` each, on one grid of T = `grid` x `grid` cells with their channels side by side:
/// `[B, T, sum C_i]`, in single precision. A tap finer than the grid is averaged over each cell, a coarser one is enlarged
/// bilinearly.
///
/// # Errors
/// When a tap's side is neither a multiple nor a divisor of the grid.
pub(super) fn to_grid(taps: &[Tensor], grid: usize) -> Result<Tensor> {
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

/// The same as two matrix products per tap, along its rows and along its columns, for GPUs and other numbers than f32.
fn to_grid_in_tensors(taps: &[Tensor], grid: usize) -> Result<Tensor> {
    let resampled = |tap: &Tensor| -> Result<Tensor> {
        let (batch, side, _, channels) = tap.dims4()?;
        let mut along = vec![0.0f32; grid * side];
        for (i, row) in along.chunks_exact_mut(side).enumerate() {
            if side >= grid {
                let factor = side / grid;
                row[i * factor..][..factor].fill(1.0 / factor as f32);
            } else {
                let (low, high, part) = neighbours(i, grid, side);
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
    Ok(Tensor::cat(&taps.iter().map(resampled).collect::<Result<Vec<_>>>()?, 2)?)
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
            let columns = Columns { grid, total, at, channels };
            if height >= grid { pool(map, height / grid, &columns, out) } else { enlarge(map, height, &columns, out) }
        });
        at += channels;
    }
    Ok(Tensor::from_vec(out, (batch, grid * grid, total), &Device::Cpu)?)
}

/// The columns of one tap's channels in the rows `[T, total]` of the grid: `channels` of them from `at` on.
struct Columns {
    grid: usize,
    total: usize,
    at: usize,
    channels: usize,
}

/// Averages squares of `factor` x `factor` cells of a tap `[h, h, C]`.
fn pool(map: &[f32], factor: usize, columns: &Columns, out: &mut [f32]) {
    let Columns { grid, total, at, channels } = *columns;
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

/// Enlarges a tap `[side, side, C]` bilinearly.
fn enlarge(map: &[f32], side: usize, columns: &Columns, out: &mut [f32]) {
    let Columns { grid, total, at, channels } = *columns;
    for y in 0..grid {
        let (y0, y1, fy) = neighbours(y, grid, side);
        for x in 0..grid {
            let (x0, x1, fx) = neighbours(x, grid, side);
            let cell = &mut out[(y * grid + x) * total + at..][..channels];
            for (c, o) in cell.iter_mut().enumerate() {
                let v = |y: usize, x: usize| map[(y * side + x) * channels + c];
                let (top, bottom) = (v(y0, x0) * (1.0 - fx) + v(y0, x1) * fx, v(y1, x0) * (1.0 - fx) + v(y1, x1) * fx);
                *o = top * (1.0 - fy) + bottom * fy;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
    }
}
