//! What is modelled: a grid of vectors made from a prepared frame. Features of a frozen backbone, or the picture itself.

use candle_core::{Device, Tensor};

use crate::error::{Error, Result};
use crate::features::{FeatureSpace, to_grid};
use crate::frame::Frame;
use crate::model::Backbone;

/// From a prepared frame to the values `[T, D]` that the denoiser knows, T cells in raster order.
pub trait Space: Send + Sync {
    /// What the frame gives before anything that was fitted, `[T, C]`.
    ///
    /// # Errors
    /// When the device fails, or the frame's size does not fit.
    fn raw(&self, frame: &Frame) -> Result<Vec<f32>>;

    /// Raw values `[T, C]` in the scale of the model, `[T, D]`: variance about 1.
    fn normalise(&self, raw: &[f32]) -> Vec<f32>;

    /// Values `[T, D]` as raw ones `[T, C]`: the inverse of [`Space::normalise`], as near as it goes where D is less than C.
    fn denormalise(&self, values: &[f32]) -> Vec<f32>;

    /// Raw channels of each scale, C together.
    fn scales(&self) -> Vec<usize>;

    /// The picture that values `[T, D]` are, RGB, if they are one.
    fn picture(&self, values: &[f32]) -> Option<Frame>;

    /// What was fitted, by its name in the model file.
    ///
    /// # Errors
    /// When the device fails.
    fn tensors(&self) -> Result<Vec<(String, Tensor)>>;

    /// Both steps of the way at once.
    ///
    /// # Errors
    /// As [`Space::raw`].
    fn values(&self, frame: &Frame) -> Result<Vec<f32>> {
        Ok(self.normalise(&self.raw(frame)?))
    }
}

/// Features of a frozen backbone, decorrelated.
pub struct Features {
    /// The backbone.
    pub backbone: Box<dyn Backbone>,
    /// What was fitted to good parts.
    pub fitted: FeatureSpace,
    /// Cells per side.
    pub grid: usize,
}

/// RGB in -1..=1.
#[derive(Clone, Copy, Debug)]
pub struct Pixels {
    /// Pixels per side; divides the side of the frame.
    pub grid: usize,
}

impl Space for Features {
    fn raw(&self, frame: &Frame) -> Result<Vec<f32>> {
        raw_features(self.backbone.as_ref(), self.grid, frame)
    }

    fn normalise(&self, raw: &[f32]) -> Vec<f32> {
        self.fitted.apply(raw)
    }

    fn denormalise(&self, values: &[f32]) -> Vec<f32> {
        self.fitted.invert(values)
    }

    fn scales(&self) -> Vec<usize> {
        self.backbone.taps().iter().map(|tap| tap.channels).collect()
    }

    fn picture(&self, _: &[f32]) -> Option<Frame> {
        None
    }

    fn tensors(&self) -> Result<Vec<(String, Tensor)>> {
        self.fitted.tensors()
    }
}

impl Space for Pixels {
    fn raw(&self, frame: &Frame) -> Result<Vec<f32>> {
        let (side, grid) = (frame.width(), self.grid);
        if frame.height() != side || grid == 0 || !side.is_multiple_of(grid) {
            let height = frame.height();
            return Err(Error::Internal(format!("space: {side}x{height} pixels do not fit a grid of {grid}")));
        }
        let factor = side / grid;
        let mut out = vec![0.0; grid * grid * 3];
        for (y, row) in frame.rgb().chunks_exact(side * 3).enumerate() {
            for (x, pixel) in row.as_chunks::<3>().0.iter().enumerate() {
                let cell = &mut out[(y / factor * grid + x / factor) * 3..][..3];
                for (sum, value) in cell.iter_mut().zip(pixel) {
                    *sum += f32::from(*value);
                }
            }
        }
        let area = (factor * factor) as f32;
        out.iter_mut().for_each(|v| *v /= area);
        Ok(out)
    }

    fn normalise(&self, raw: &[f32]) -> Vec<f32> {
        raw.iter().map(|v| v / 127.5 - 1.0).collect()
    }

    fn denormalise(&self, values: &[f32]) -> Vec<f32> {
        values.iter().map(|v| (v + 1.0) * 127.5).collect()
    }

    fn scales(&self) -> Vec<usize> {
        vec![3]
    }

    fn picture(&self, values: &[f32]) -> Option<Frame> {
        let rgb = values.iter().map(|v| ((v + 1.0) * 127.5).round() as u8).collect(); // the cast saturates
        Frame::new(self.grid, self.grid, rgb).ok()
    }

    fn tensors(&self) -> Result<Vec<(String, Tensor)>> {
        Ok(Vec::new())
    }
}

/// Raw features `[T, C]` of a prepared frame.
///
/// # Errors
/// When the device fails.
pub fn raw_features(backbone: &dyn Backbone, grid: usize, frame: &Frame) -> Result<Vec<f32>> {
    let pixels = frame.rgb().iter().map(|&x| f32::from(x)).collect::<Vec<_>>();
    let image = Tensor::from_vec(pixels, (1, frame.height(), frame.width(), 3), &Device::Cpu)?;
    let mut rows = to_grid(&backbone.forward(&image)?, grid)?;
    rows.pop().ok_or_else(|| Error::Internal("space: no features".into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pixels_come_back_as_the_picture() {
        let rgb: Vec<u8> = (0..8 * 8 * 3).map(|i| (i * 5 % 256) as u8).collect();
        let frame = Frame::new(8, 8, rgb.clone()).unwrap();
        let whole = Pixels { grid: 8 };
        assert_eq!(whole.picture(&whole.values(&frame).unwrap()).unwrap().rgb(), rgb);
        let half = Pixels { grid: 4 }.raw(&frame).unwrap();
        let mean = |x: usize, y: usize, c: usize| {
            let at = |dx: usize, dy: usize| f32::from(rgb[((2 * y + dy) * 8 + 2 * x + dx) * 3 + c]);
            (at(0, 0) + at(1, 0) + at(0, 1) + at(1, 1)) / 4.0
        };
        assert_eq!(half[(2 * 4 + 3) * 3 + 1], mean(3, 2, 1));
        assert!(Pixels { grid: 3 }.raw(&frame).is_err());
    }
}
