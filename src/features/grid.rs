//! The taps of a backbone, which have several resolutions, side by side on one grid.

use candle_core::{DType, Device, Tensor};
use rayon::prelude::*;

use crate::config::Size;
use crate::error::{Error, Result};
use crate::maps::neighbours;

/// The taps of a backbone, `[B, h, w, C_i]` each, on one grid of T cells with their channels side by side: `[B, T, sum C_i]`, in
/// single precision. Along each side, a tap finer than the grid is averaged over each cell, a coarser one is enlarged bilinearly.
///
/// # Errors
/// When a tap's side is neither a multiple nor a divisor of the grid's, or a tap is finer along one side and coarser along the other.
pub(super) fn to_grid(taps: &[Tensor], grid: Size) -> Result<Tensor> {
    for tap in taps {
        let (_, height, width, _) = tap.dims4()?;
        let finer = width.is_multiple_of(grid.width) && height.is_multiple_of(grid.height);
        let coarser = grid.width.is_multiple_of(width) && grid.height.is_multiple_of(height);
        if !(finer || coarser) {
            return Err(Error::Internal(format!("features: a {width}x{height} map does not fit a grid of {grid}")));
        }
    }
    match taps.first() {
        Some(tap) if tap.device().is_cpu() && tap.dtype() == DType::F32 => to_grid_on_cpu(taps, grid),
        _ => to_grid_in_tensors(taps, grid),
    }
}

/// The same as two matrix products per tap, along its rows and along its columns, for GPUs and other numbers than f32.
fn to_grid_in_tensors(taps: &[Tensor], grid: Size) -> Result<Tensor> {
    let resampled = |tap: &Tensor| -> Result<Tensor> {
        let (batch, height, width, channels) = tap.dims4()?;
        let along = |cells: usize, side: usize| {
            let mut along = vec![0.0f32; cells * side];
            for (i, row) in along.chunks_exact_mut(side).enumerate() {
                if side >= cells {
                    let factor = side / cells;
                    row[i * factor..][..factor].fill(1.0 / factor as f32);
                } else {
                    let (low, high, part) = neighbours(i, cells, side);
                    row[low] += 1.0 - part;
                    row[high] += part;
                }
            }
            Tensor::from_vec(along, (cells, side), tap.device())
        };
        let (down, across) = (along(grid.height, height)?, along(grid.width, width)?);
        let tap = tap.to_dtype(DType::F32)?;
        // [B, h, w C] -> [B, rows, w C] -> [B rows, w, C] -> [B rows, columns, C]
        let rows =
            down.broadcast_left(batch)?.contiguous()?.matmul(&tap.reshape((batch, height, width * channels))?)?;
        let columns = rows.reshape((batch * grid.height, width, channels))?;
        let both = across.broadcast_left(batch * grid.height)?.contiguous()?.matmul(&columns)?;
        Ok(both.reshape((batch, grid.area(), channels))?)
    };
    Ok(Tensor::cat(&taps.iter().map(resampled).collect::<Result<Vec<_>>>()?, 2)?)
}

fn to_grid_on_cpu(taps: &[Tensor], grid: Size) -> Result<Tensor> {
    let batch = taps.first().map_or(Ok(0), |t| t.dim(0))?;
    let total: usize = taps.iter().map(|t| t.dim(3)).sum::<candle_core::Result<usize>>()?;
    let mut out = vec![0.0; batch * grid.area() * total];
    let mut at = 0;
    for tap in taps {
        let (_, height, width, channels) = tap.dims4()?;
        let values = tap.flatten_all()?.to_vec1::<f32>()?;
        let images = out.par_chunks_exact_mut(grid.area() * total);
        images.zip(values.par_chunks_exact(height * width * channels)).for_each(|(out, map)| {
            let (columns, side) = (Columns { grid, total, at, channels }, Size::new(width, height));
            if width >= grid.width && height >= grid.height {
                pool(map, side, &columns, out);
            } else {
                enlarge(map, side, &columns, out);
            }
        });
        at += channels;
    }
    Ok(Tensor::from_vec(out, (batch, grid.area(), total), &Device::Cpu)?)
}

/// The columns of one tap's channels in the rows `[T, total]` of the grid: `channels` of them from `at` on.
struct Columns {
    grid: Size,
    total: usize,
    at: usize,
    channels: usize,
}

/// Averages the parts of a tap `[h, w, C]` that lie in each cell.
fn pool(map: &[f32], side: Size, columns: &Columns, out: &mut [f32]) {
    let Columns { grid, total, at, channels } = *columns;
    let factor = Size::new(side.width / grid.width, side.height / grid.height);
    let scale = 1.0 / factor.area() as f32;
    for y in 0..side.height {
        for x in 0..side.width {
            let cell = &mut out[(y / factor.height * grid.width + x / factor.width) * total + at..][..channels];
            for (o, v) in cell.iter_mut().zip(&map[(y * side.width + x) * channels..][..channels]) {
                *o += v * scale;
            }
        }
    }
}

/// Enlarges a tap `[h, w, C]` bilinearly.
fn enlarge(map: &[f32], side: Size, columns: &Columns, out: &mut [f32]) {
    let Columns { grid, total, at, channels } = *columns;
    for y in 0..grid.height {
        let (y0, y1, fy) = neighbours(y, grid.height, side.height);
        for x in 0..grid.width {
            let (x0, x1, fx) = neighbours(x, grid.width, side.width);
            let cell = &mut out[(y * grid.width + x) * total + at..][..channels];
            for (c, o) in cell.iter_mut().enumerate() {
                let v = |y: usize, x: usize| map[(y * side.width + x) * channels + c];
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
        let tap = |width: usize, height: usize, channels: usize| {
            let values: Vec<f32> = (0..2 * width * height * channels).map(number).collect();
            Tensor::from_vec(values, (2, height, width, channels), &Device::Cpu).unwrap()
        };
        let values = |t: Tensor| t.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        for grid in [Size::square(4), Size::new(4, 12), Size::new(8, 4)] {
            let side = |by: usize, part: usize| (grid.width * by / part, grid.height * by / part);
            let taps = [(4, 1, 3), (2, 1, 2), (1, 1, 5), (1, 2, 4)].map(|(by, part, channels)| {
                let (width, height) = side(by, part);
                tap(width, height, channels)
            });
            let (a, b) = (to_grid_on_cpu(&taps, grid).unwrap(), to_grid_in_tensors(&taps, grid).unwrap());
            assert_eq!(a.dims(), [2, grid.area(), 14]);
            assert_eq!(a.dims(), b.dims());
            assert!(values(a).iter().zip(values(b)).all(|(a, b)| (a - b).abs() < 1e-6), "{grid}");
        }
        assert!(to_grid(&[tap(8, 6, 1)], Size::square(4)).is_err());
        assert!(to_grid(&[tap(8, 2, 1)], Size::square(4)).is_err(), "finer along one side, coarser along the other");
    }

    /// Row 1, column 2 of the grid is the mean of what lies there.
    #[test]
    fn a_cell_is_the_mean_of_its_part_of_the_map() {
        let map = Tensor::arange(0.0f32, 4.0 * 6.0, &Device::Cpu).unwrap().reshape((1, 4, 6, 1)).unwrap();
        let cells = to_grid(&[map], Size::new(3, 2)).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
        assert_eq!(cells[5], (16.0 + 17.0 + 22.0 + 23.0) / 4.0);
    }
}
