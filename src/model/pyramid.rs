//! One backbone on several scales of an image.

use candle_core::{DType, Tensor};

use super::{Backbone, MIN_SIDE, Tap};
use crate::error::{Error, Result};

/// A backbone that sees an image as it is and reduced: the maps of all scales, one after the other, in one feature space.
pub struct Pyramid {
    backbone: Box<dyn Backbone>,
    /// Pixels of the image per pixel of each scale and side.
    reductions: Vec<usize>,
    taps: Vec<Tap>,
}

impl Pyramid {
    /// Of a backbone, on an image reduced by each of these whole numbers; 1 is the image as it is.
    pub fn new(backbone: Box<dyn Backbone>, reductions: Vec<usize>) -> Self {
        let own = backbone.taps().to_vec();
        let scale = |reduction: &usize| {
            let reduction = *reduction;
            own.iter().map(move |tap| Tap { stride: tap.stride * reduction, ..*tap }).collect::<Vec<_>>()
        };
        let taps = reductions.iter().flat_map(scale).collect();
        Self { backbone, reductions, taps }
    }
}

impl Backbone for Pyramid {
    fn name(&self) -> &str {
        self.backbone.name()
    }

    fn taps(&self) -> &[Tap] {
        &self.taps
    }

    fn forward(&self, images: &Tensor) -> Result<Vec<Tensor>> {
        let mut maps = Vec::with_capacity(self.taps.len());
        for &reduction in &self.reductions {
            maps.extend(self.backbone.forward(&reduced(images, reduction)?)?);
        }
        Ok(maps)
    }
}

/// Images `[B, H, W, 3]` at `[B, H / n, W / n, 3]`, each pixel the mean of those that it stands for.
fn reduced(images: &Tensor, n: usize) -> Result<Tensor> {
    let (batch, height, width, channels) = images.dims4()?;
    if n == 1 {
        return Ok(images.clone());
    }
    let (rows, columns) = (height / n, width / n);
    if !height.is_multiple_of(n) || !width.is_multiple_of(n) || rows.min(columns) < MIN_SIDE {
        return Err(Error::Internal(format!("backbone: an image of {width}x{height} cannot be reduced by {n}")));
    }
    let images = images.to_dtype(DType::F32)?; // bytes cannot hold their sums
    let down = images.reshape((batch * rows, n, width * channels))?.sum(1)?; // [B h, W 3]
    let across = down.reshape((batch * rows * columns, n, channels))?.sum(1)?; // [B h w, 3]
    Ok((across.reshape((batch, rows, columns, channels))? / (n * n) as f64)?)
}

#[cfg(test)]
mod tests {
    use candle_core::{Device, IndexOp};

    use super::*;

    /// Returns the image as its only map.
    struct Eye;

    impl Backbone for Eye {
        fn name(&self) -> &str {
            "eye"
        }

        fn taps(&self) -> &[Tap] {
            &[Tap { channels: 3, stride: 1 }]
        }

        fn forward(&self, images: &Tensor) -> Result<Vec<Tensor>> {
            Ok(vec![images.clone()])
        }
    }

    #[test]
    fn each_scale_is_the_mean_of_its_pixels() {
        let (width, height) = (128, 64);
        let images = Tensor::arange(0.0f32, (2 * width * height * 3) as f32, &Device::Cpu).unwrap();
        let images = images.reshape((2, height, width, 3)).unwrap();
        let pyramid = Pyramid::new(Box::new(Eye), vec![1, 2]);
        assert_eq!(pyramid.taps(), [Tap { channels: 3, stride: 1 }, Tap { channels: 3, stride: 2 }]);
        let maps = pyramid.forward(&images).unwrap();
        assert_eq!(maps[1].dims(), [2, height / 2, width / 2, 3]);
        let at = |map: &Tensor, y: usize, x: usize| map.i((1, y, x, 2)).unwrap().to_scalar::<f32>().unwrap();
        let mean = [(10, 20), (10, 21), (11, 20), (11, 21)].map(|(y, x)| at(&images, y, x)).iter().sum::<f32>() / 4.0;
        assert_eq!(at(&maps[1], 5, 10), mean);
        assert!(Pyramid::new(Box::new(Eye), vec![4]).forward(&images).is_err(), "16 rows are too few");
    }
}
