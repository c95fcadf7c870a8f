//! The model's input of a part that lies elsewhere: one resampling along the turned axes of the part.

use super::resize::{cores, on_threads};
use super::{Frame, Geometry};
use crate::config::Size;
use crate::error::{Error, Result};

/// The part of the input that shows the frame. `frame` is the whole original, or a smaller one of all of it; each pixel is the mean of
/// those under it, weighted by a triangle as wide as two pixels of the result; beyond the edge the edge is repeated.
pub(super) fn warp(frame: &Frame, geometry: &Geometry) -> Result<Frame> {
    let pose = geometry.pose.unwrap_or(super::Pose::NONE);
    let to = Size::new(geometry.valid[2] as usize, geometry.valid[3] as usize);
    // Pixels of this frame per pixel of the original.
    let reduced = [frame.width as f64 / geometry.original[0] as f64, frame.height as f64 / geometry.original[1] as f64];
    let [left, top, width, height] = geometry.shown;
    let step = [width / to.width as f64, height / to.height as f64]; // pixels of the original
    let (middle, [cos, sin]) = (geometry.middle(), pose.rotation());
    // Half widths of the triangle in pixels of the original along the axes of the part: no less than a pixel of this frame.
    let half = [0, 1].map(|i| step[i].max(1.0 / reduced[i]));
    // A box around the turned triangle, in pixels of this frame.
    let reach = [
        (half[0] * cos.abs() + half[1] * sin.abs()) * reduced[0],
        (half[0] * sin.abs() + half[1] * cos.abs()) * reduced[1],
    ];
    let pixel = |column: usize, row: usize| -> [u8; 3] {
        let [x, y] = [left + (column as f64 + 0.5) * step[0], top + (row as f64 + 0.5) * step[1]];
        let [x, y] = pose.place(x - middle[0], y - middle[1]);
        let at = [(x + middle[0]) * reduced[0] - 0.5, (y + middle[1]) * reduced[1] - 0.5];
        let (mut sum, mut weights) = ([0.0; 3], 0.0);
        for v in (at[1] - reach[1]).ceil() as isize..=(at[1] + reach[1]).floor() as isize {
            let line = v.clamp(0, frame.height as isize - 1) as usize * frame.width;
            for u in (at[0] - reach[0]).ceil() as isize..=(at[0] + reach[0]).floor() as isize {
                let (x, y) = ((u as f64 - at[0]) / reduced[0], (v as f64 - at[1]) / reduced[1]);
                let along = [(cos * x + sin * y) / half[0], (cos * y - sin * x) / half[1]];
                let weight = (1.0 - along[0].abs()).max(0.0) * (1.0 - along[1].abs()).max(0.0);
                if weight > 0.0 {
                    let from = (line + u.clamp(0, frame.width as isize - 1) as usize) * 3;
                    for (sum, &value) in sum.iter_mut().zip(&frame.rgb[from..][..3]) {
                        *sum += weight * f64::from(value);
                    }
                    weights += weight;
                }
            }
        }
        sum.map(|sum| (sum / weights.max(f64::MIN_POSITIVE) + 0.5) as u8) // the cast saturates
    };
    let pixel = &pixel;
    let each = to.height.div_ceil(cores()).max(1);
    let bands = (0..to.height).step_by(each).map(|first| first..(first + each).min(to.height));
    let rows = on_threads(bands, |rows| {
        Ok(rows.flat_map(|row| (0..to.width).flat_map(move |column| pixel(column, row))).collect::<Vec<u8>>())
    });
    let rows = rows.map_err(|error| Error::Internal(format!("input.align: {error}")))?;
    Frame::new(to.width, to.height, rows.concat())
}
