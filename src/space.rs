//! What is modelled: a grid of vectors made from a prepared frame. Features of a frozen backbone, or the picture itself.

use candle_core::{DType, Tensor};

use crate::device::Place;
use crate::error::{Error, Result};
use crate::features::{FeatureSpace, to_grid};
use crate::frame::Frame;
use crate::model::Backbone;

/// From prepared frames to the values `[B, T, D]` that the denoiser knows, T cells in raster order.
pub trait Space: Send + Sync {
    /// What the frames give before anything that was fitted, `[B, T, C]` in single precision. They are of one size.
    ///
    /// # Errors
    /// When the device fails, or the frames' size does not fit.
    fn raw(&self, frames: &[&Frame]) -> Result<Tensor>;

    /// Raw values `[B, T, C]` in the scale of the model, `[B, T, D]`: variance about 1.
    ///
    /// # Errors
    /// When the device fails.
    fn normalise(&self, raw: &Tensor) -> Result<Tensor>;

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
    fn values(&self, frames: &[&Frame]) -> Result<Tensor> {
        self.normalise(&self.raw(frames)?)
    }
}

/// Features of a frozen backbone, decorrelated.
pub struct Features {
    /// The backbone.
    pub backbone: Box<dyn Backbone>,
    /// Where it is.
    pub place: Place,
    /// What was fitted to good parts.
    pub fitted: FeatureSpace,
    /// Cells per side.
    pub grid: usize,
}

/// RGB in -1..=1.
#[derive(Clone, Debug)]
pub struct Pixels {
    /// Where the values go.
    pub place: Place,
    /// Pixels per side; divides the side of the frame.
    pub grid: usize,
}

impl Space for Features {
    fn raw(&self, frames: &[&Frame]) -> Result<Tensor> {
        raw_features(self.backbone.as_ref(), &self.place, self.grid, frames)
    }

    fn normalise(&self, raw: &Tensor) -> Result<Tensor> {
        self.fitted.normalise(raw)
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
    fn raw(&self, frames: &[&Frame]) -> Result<Tensor> {
        let all = frames.iter().map(|frame| self.pooled(frame)).collect::<Result<Vec<_>>>()?;
        let shape = (frames.len(), self.grid * self.grid, 3);
        Ok(Tensor::from_vec(all.concat(), shape, self.place.device())?)
    }

    fn normalise(&self, raw: &Tensor) -> Result<Tensor> {
        Ok(((raw / 127.5)? - 1.0)?)
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

impl Pixels {
    /// Means over equal squares of pixels, `[grid, grid, 3]` in 0..=255.
    fn pooled(&self, frame: &Frame) -> Result<Vec<f32>> {
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
}

/// Raw features `[B, T, C]` of prepared frames of one size. They travel as bytes.
///
/// # Errors
/// When the device fails, or the frames differ in size.
pub fn raw_features(backbone: &dyn Backbone, place: &Place, grid: usize, frames: &[&Frame]) -> Result<Tensor> {
    let Some((height, width)) = frames.first().map(|f| (f.height(), f.width())) else {
        return Err(Error::Internal("space: no frames".into()));
    };
    if frames.iter().any(|f| (f.height(), f.width()) != (height, width)) {
        return Err(Error::Internal("space: frames of several sizes in one batch".into()));
    }
    let bytes: Vec<&[u8]> = frames.iter().map(|frame| frame.rgb()).collect();
    let images = place.bytes(&bytes, (frames.len(), height, width, 3))?;
    to_grid(&backbone.forward(&images.to_dtype(DType::F32)?)?, grid)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pixels_come_back_as_the_picture() {
        let rgb: Vec<u8> = (0..8 * 8 * 3).map(|i| (i * 5 % 256) as u8).collect();
        let frame = Frame::new(8, 8, rgb.clone()).unwrap();
        let pixels = |grid: usize| Pixels { place: Place::cpu(), grid };
        let list = |t: Tensor| t.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        let whole = pixels(8);
        let values = whole.values(&[&frame, &frame]).unwrap();
        assert_eq!(values.dims(), [2, 64, 3]);
        assert_eq!(whole.picture(&list(values.get(1).unwrap())).unwrap().rgb(), rgb);
        let half = list(pixels(4).raw(&[&frame]).unwrap());
        let mean = |x: usize, y: usize, c: usize| {
            let at = |dx: usize, dy: usize| f32::from(rgb[((2 * y + dy) * 8 + 2 * x + dx) * 3 + c]);
            (at(0, 0) + at(1, 0) + at(0, 1) + at(1, 1)) / 4.0
        };
        assert_eq!(half[(2 * 4 + 3) * 3 + 1], mean(3, 2, 1));
        assert!(pixels(3).raw(&[&frame]).is_err());
    }
}
