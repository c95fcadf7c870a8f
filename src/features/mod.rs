//! Features: the grid of vectors that the diffusion model learns, made from a prepared frame.
//!
//! Shapes: B frames, T cells of the grid in raster order, C raw channels, D channels after the transform. With
//! `features.space = "feature"` they are the taps of a frozen backbone, normalised by a transform that was fitted to good parts;
//! with `"pixel"` a cell holds the colour of its pixels.

use std::sync::Arc;

use candle_core::Tensor;

use crate::config::Size;
use crate::device::Device;
use crate::error::{Error, Result};
use crate::frame::Frame;
use crate::model::Backbone;

mod grid;
mod transform;

pub use transform::FeatureTransform;

/// Makes features `[B, T, D]` of prepared frames.
pub struct FeatureExtractor {
    device: Device,
    grid: Size,
    source: Arc<Source>,
}

enum Source {
    Backbone(Box<dyn Backbone>, Box<FeatureTransform>),
    Pixels,
}

impl FeatureExtractor {
    /// Features of a frozen backbone on `device`, on a grid.
    ///
    /// # Errors
    /// When the device fails.
    pub fn of_backbone(
        device: Device,
        grid: Size,
        backbone: Box<dyn Backbone>,
        transform: FeatureTransform,
    ) -> Result<Self> {
        let transform = transform.on(device.candle())?;
        Ok(Self { device, grid, source: Source::Backbone(backbone, Box::new(transform)).into() })
    }

    /// RGB in -1..=1, averaged over the cells of a grid whose sides divide those of the frames.
    pub fn of_pixels(device: Device, grid: Size) -> Self {
        Self { device, grid, source: Source::Pixels.into() }
    }

    /// The same on another grid, with the same backbone.
    pub fn on_grid(&self, grid: Size) -> Self {
        Self { device: self.device.clone(), grid, source: self.source.clone() }
    }

    /// The device of the features.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// Features `[B, T, D]` of frames of one size.
    ///
    /// # Errors
    /// As [`FeatureExtractor::raw`].
    pub fn extract(&self, frames: &[&Frame]) -> Result<Tensor> {
        self.normalise(&self.raw(frames)?)
    }

    /// Raw features `[B, T, C]` of frames of one size, in single precision: before anything that is fitted to data.
    ///
    /// # Errors
    /// When the device fails, or the size of the frames does not fit.
    pub fn raw(&self, frames: &[&Frame]) -> Result<Tensor> {
        match &*self.source {
            Source::Backbone(backbone, _) => backbone_features(backbone.as_ref(), &self.device, self.grid, frames),
            Source::Pixels => {
                let colours = frames.iter().map(|frame| mean_colours(frame, self.grid)).collect::<Result<Vec<_>>>()?;
                let shape = (frames.len(), self.grid.area(), 3);
                Ok(Tensor::from_vec(colours.concat(), shape, self.device.candle())?)
            }
        }
    }

    /// Raw features `[B, T, C]` as the model sees them, `[B, T, D]`, with a variance of about 1.
    ///
    /// # Errors
    /// When the device fails.
    pub fn normalise(&self, raw: &Tensor) -> Result<Tensor> {
        match &*self.source {
            Source::Backbone(_, transform) => transform.normalise(raw),
            Source::Pixels => Ok(((raw / 127.5)? - 1.0)?),
        }
    }

    /// Features `[T, D]` as raw ones `[T, C]`: the inverse of [`FeatureExtractor::normalise`], or the nearest there is to it
    /// where D is less than C.
    pub fn denormalise(&self, features: &[f32]) -> Vec<f32> {
        match &*self.source {
            Source::Backbone(_, transform) => transform.invert(features),
            Source::Pixels => features.iter().map(|v| (v + 1.0) * 127.5).collect(),
        }
    }

    /// Raw channels of each scale of the backbone, C together.
    pub fn scales(&self) -> Vec<usize> {
        match &*self.source {
            Source::Backbone(backbone, _) => backbone.taps().iter().map(|tap| tap.channels).collect(),
            Source::Pixels => vec![3],
        }
    }

    /// The transform, where one was fitted.
    pub fn transform(&self) -> Option<&FeatureTransform> {
        match &*self.source {
            Source::Backbone(_, transform) => Some(transform),
            Source::Pixels => None,
        }
    }

    /// Features `[T, D]` as an RGB picture, where they are one.
    pub fn picture(&self, features: &[f32]) -> Option<Frame> {
        let rgb = |features| self.denormalise(features).iter().map(|v| v.round() as u8).collect(); // the cast saturates
        if self.transform().is_some() {
            None
        } else {
            Frame::new(self.grid.width, self.grid.height, rgb(features)).ok()
        }
    }
}

/// Raw features `[B, T, C]` of prepared frames of one size. The frames travel to the device as bytes.
///
/// # Errors
/// When the device fails, or the frames differ in size.
pub fn backbone_features(backbone: &dyn Backbone, device: &Device, grid: Size, frames: &[&Frame]) -> Result<Tensor> {
    let (height, width) = frames.first().map_or((0, 0), |frame| (frame.height(), frame.width()));
    let bytes: Vec<&[u8]> = frames.iter().map(|frame| frame.rgb()).collect();
    let images = device.upload(&bytes, (frames.len(), height, width, 3))?;
    grid::to_grid(&backbone.forward(&images)?, grid)
}

/// Mean colour of each cell, `[height, width, 3]` in 0..=255.
fn mean_colours(frame: &Frame, grid: Size) -> Result<Vec<f32>> {
    let (width, height) = (frame.width(), frame.height());
    let fits = grid.area() > 0 && width.is_multiple_of(grid.width) && height.is_multiple_of(grid.height);
    if !fits {
        return Err(Error::Internal(format!("features: {width}x{height} pixels do not fit a grid of {grid}")));
    }
    let factor = [width / grid.width, height / grid.height];
    let mut out = vec![0.0; grid.area() * 3];
    for (y, row) in frame.rgb().chunks_exact(width * 3).enumerate() {
        for (x, pixel) in row.as_chunks::<3>().0.iter().enumerate() {
            let cell = &mut out[(y / factor[1] * grid.width + x / factor[0]) * 3..][..3];
            for (sum, value) in cell.iter_mut().zip(pixel) {
                *sum += f32::from(*value);
            }
        }
    }
    let area = (factor[0] * factor[1]) as f32;
    out.iter_mut().for_each(|v| *v /= area);
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pixels_come_back_as_the_picture() {
        let rgb: Vec<u8> = (0..8 * 8 * 3).map(|i| (i * 5 % 256) as u8).collect();
        let frame = Frame::new(8, 8, rgb.clone()).unwrap();
        let pixels = |grid: usize| FeatureExtractor::of_pixels(Device::cpu(), grid.into());
        let list = |t: Tensor| t.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        let whole = pixels(8);
        let features = whole.extract(&[&frame, &frame]).unwrap();
        assert_eq!(features.dims(), [2, 64, 3]);
        assert_eq!(whole.picture(&list(features.get(1).unwrap())).unwrap().rgb(), rgb);
        let half = list(pixels(4).raw(&[&frame]).unwrap());
        let mean = |x: usize, y: usize, c: usize| {
            let at = |dx: usize, dy: usize| f32::from(rgb[((2 * y + dy) * 8 + 2 * x + dx) * 3 + c]);
            (at(0, 0) + at(1, 0) + at(0, 1) + at(1, 1)) / 4.0
        };
        assert_eq!(half[(2 * 4 + 3) * 3 + 1], mean(3, 2, 1));
        assert!(pixels(3).raw(&[&frame]).is_err());
    }
}
