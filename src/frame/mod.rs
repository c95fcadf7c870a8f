//! `Frame`: the one image type between cameras, files and the model.

use sha2::{Digest, Sha256};

use crate::config::{Fit, InputConfig};
use crate::error::{Error, Result};

pub mod read;
mod view;

pub use read::{Decoded, decode_frame, decode_image, read_bytes, read_frame, read_image, read_mask};
pub use view::{Plane, View, Yuv};

/// An owned 8-bit RGB image, rows without padding.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    width: usize,
    height: usize,
    rgb: Vec<u8>, // [H, W, 3]
}

impl Frame {
    /// A frame from `height * width * 3` bytes.
    ///
    /// # Errors
    /// When a side is 0 or the number of bytes does not fit.
    pub fn new(width: usize, height: usize, rgb: Vec<u8>) -> Result<Self> {
        let expected = width.checked_mul(height).and_then(|n| n.checked_mul(3));
        if width == 0 || height == 0 || expected != Some(rgb.len()) {
            return Err(Error::Usage(format!(
                "a frame of {width}x{height} needs {width}*{height}*3 bytes, got {}",
                rgb.len()
            )));
        }
        Ok(Self { width, height, rgb })
    }

    /// Columns.
    pub fn width(&self) -> usize {
        self.width
    }

    /// Rows.
    pub fn height(&self) -> usize {
        self.height
    }

    /// Bytes, `[H, W, 3]`.
    pub fn rgb(&self) -> &[u8] {
        &self.rgb
    }

    /// SHA-256 of width and height (8 bytes each, little endian) and the bytes: the same for the same picture in any file.
    pub fn digest(&self) -> [u8; 32] {
        let mut hash = Sha256::new();
        [self.width, self.height].iter().for_each(|&side| hash.update((side as u64).to_le_bytes()));
        hash.update(&self.rgb);
        hash.finalize().into()
    }
}

/// Crop and resize from a frame to the model's input: the one way there is, in training, in evaluation and on the line.
#[derive(Clone, Debug, PartialEq)]
pub struct Preprocess {
    /// Side of the square input in pixels.
    pub size: usize,
    /// How a frame that is not square is fitted.
    pub fit: Fit,
    /// The part of the frame that is looked at, `[x, y, width, height]` as fractions of the frame.
    pub roi: Option<[f64; 4]>,
}

/// A frame as the model sees it.
#[derive(Clone, Debug, PartialEq)]
pub struct Prepared {
    /// Square input.
    pub frame: Frame,
    /// The rectangle of the original that it shows.
    pub geometry: Geometry,
}

/// The way from the model's square input back to the original frame.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Geometry {
    /// Width and height of the original frame in pixels.
    pub original: [usize; 2],
    /// Rectangle of the input that shows the frame, `[x, y, width, height]` in input pixels; the rest is border.
    pub valid: [f64; 4],
    /// Rectangle of the original that the input shows, `[x, y, width, height]` in pixels.
    pub shown: [f64; 4],
}

impl Geometry {
    /// Original pixels per input pixel, horizontally and vertically.
    pub fn scale(&self) -> [f64; 2] {
        [self.shown[2] / self.valid[2], self.shown[3] / self.valid[3]]
    }

    /// A point of the input in pixels of the original, inside the part that is shown.
    pub fn to_original(&self, x: f64, y: f64) -> [f64; 2] {
        let [sx, sy] = self.scale();
        let [left, top, width, height] = self.shown;
        [
            (left + (x - self.valid[0]) * sx).clamp(left, left + width),
            (top + (y - self.valid[1]) * sy).clamp(top, top + height),
        ]
    }

    /// A mask of the original, `[height, width]`, on the pixels of the model's input `[size, size]`.
    pub fn onto_input(&self, mask: &[bool], size: usize) -> Vec<bool> {
        let [width, height] = self.original;
        let pixel = |i: usize| {
            let [x, y] = self.to_original((i % size) as f64 + 0.5, (i / size) as f64 + 0.5);
            mask[(y as usize).min(height - 1) * width + (x as usize).min(width - 1)]
        };
        (0..size * size).map(pixel).collect()
    }
}

impl Preprocess {
    /// The preprocessing that a configuration asks for.
    pub fn of(input: &InputConfig) -> Self {
        Self { size: input.size, fit: input.fit, roi: input.roi }
    }

    /// Crops and resizes (area-weighted bilinear; a frame that already has the size is taken as it is).
    ///
    /// # Errors
    /// When the region of interest has no pixel in this frame.
    pub fn apply(&self, frame: &Frame) -> Result<Prepared> {
        let geometry = self.geometry(frame.width, frame.height)?;
        let [_, _, width, height] = geometry.valid.map(|v| v as usize);
        let shown = geometry.shown;
        let whole = shown == [0.0, 0.0, frame.width as f64, frame.height as f64];
        let resized = if whole && (width, height) == (frame.width, frame.height) {
            frame.clone()
        } else {
            let plane = Plane { data: &frame.rgb, width: frame.width, height: frame.height, stride: frame.width * 3 };
            Frame::new(width, height, view::resize(&plane, 3, shown, width, height)?)?
        };
        Ok(self.finish(resized, geometry))
    }

    /// As [`Preprocess::apply`], from the memory of a camera. For RGB in any order the result is the same, bit by bit.
    ///
    /// # Errors
    /// When a plane is too short, or the region of interest has no pixel in this frame.
    pub fn apply_view(&self, view: &View<'_>) -> Result<Prepared> {
        let (width, height) = view.size();
        let geometry = self.geometry(width, height)?;
        let [_, _, columns, rows] = geometry.valid.map(|v| v as usize);
        Ok(self.finish(view.rgb(geometry.shown, columns, rows)?, geometry))
    }

    /// The geometry of frames of this size.
    ///
    /// # Errors
    /// When the region of interest has no pixel in it.
    pub fn geometry(&self, width: usize, height: usize) -> Result<Geometry> {
        let (w, h) = (width as f64, height as f64);
        let [x, y, roi_w, roi_h] = self.roi.unwrap_or([0.0, 0.0, 1.0, 1.0]);
        let (left, top) = ((x * w).round(), (y * h).round());
        let shown = [left, top, ((x + roi_w) * w).round() - left, ((y + roi_h) * h).round() - top];
        if shown[2] < 1.0 || shown[3] < 1.0 {
            return Err(Error::Usage(format!(
                "input.roi {:?} leaves no pixel of a frame of {width}x{height}",
                self.roi.unwrap_or_default()
            )));
        }
        let size = self.size as f64;
        let valid = match self.fit {
            Fit::Stretch => [0.0, 0.0, size, size],
            Fit::Pad => {
                let scale = size / shown[2].max(shown[3]);
                let (w, h) = ((shown[2] * scale).round().max(1.0), (shown[3] * scale).round().max(1.0));
                [((size - w) / 2.0).floor(), ((size - h) / 2.0).floor(), w, h]
            }
        };
        Ok(Geometry { original: [width, height], valid, shown })
    }

    /// The part that shows the frame, with its border.
    fn finish(&self, resized: Frame, geometry: Geometry) -> Prepared {
        let frame = if resized.width == self.size && resized.height == self.size {
            resized
        } else {
            repeat_edges(&resized, self.size, geometry.valid[0] as usize, geometry.valid[1] as usize)
        };
        Prepared { frame, geometry }
    }
}

/// `frame` at (`left`, `top`) of a square; the border repeats its edge pixels.
fn repeat_edges(frame: &Frame, size: usize, left: usize, top: usize) -> Frame {
    let mut rgb = Vec::with_capacity(size * size * 3);
    for y in 0..size {
        let sy = y.saturating_sub(top).min(frame.height - 1);
        for x in 0..size {
            let sx = x.saturating_sub(left).min(frame.width - 1);
            rgb.extend_from_slice(&frame.rgb[(sy * frame.width + sx) * 3..][..3]);
        }
    }
    Frame { width: size, height: size, rgb }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gradient(width: usize, height: usize) -> Frame {
        let rgb = (0..width * height).flat_map(|i| [(i % width) as u8, (i / width) as u8, 7]).collect();
        Frame::new(width, height, rgb).unwrap()
    }

    #[test]
    fn a_frame_of_the_right_size_is_taken_as_it_is() {
        let frame = gradient(64, 64);
        let prepared = Preprocess { size: 64, fit: Fit::Stretch, roi: None }.apply(&frame).unwrap();
        assert_eq!(prepared.frame, frame);
        assert_eq!(prepared.geometry.to_original(10.0, 20.0), [10.0, 20.0]);
    }

    #[test]
    fn padding_keeps_the_aspect_and_points_find_their_way_back() {
        let prepared = Preprocess { size: 64, fit: Fit::Pad, roi: None }.apply(&gradient(200, 100)).unwrap();
        assert_eq!(prepared.geometry.valid, [0.0, 16.0, 64.0, 32.0]);
        assert_eq!(prepared.geometry.to_original(32.0, 32.0), [100.0, 50.0]);
        assert_eq!(prepared.geometry.to_original(64.0, 64.0), [200.0, 100.0], "clamped to the frame");
        let row = |y: usize| &prepared.frame.rgb()[y * 64 * 3..][..64 * 3];
        assert_eq!(row(0), row(16), "the border repeats the edge");
    }

    #[test]
    fn a_region_of_interest_is_all_the_model_sees() {
        let process = Preprocess { size: 64, fit: Fit::Stretch, roi: Some([0.5, 0.0, 0.5, 1.0]) };
        let prepared = process.apply(&gradient(128, 64)).unwrap();
        assert_eq!(prepared.frame.rgb()[0], 64);
        assert_eq!(prepared.geometry.to_original(0.0, 0.0), [64.0, 0.0]);
        let none = Preprocess { roi: Some([0.0, 0.0, 0.001, 1.0]), ..process }.apply(&gradient(128, 64));
        assert!(none.unwrap_err().to_string().contains("128x64"));
    }

    #[test]
    fn wrong_lengths_are_refused() {
        assert!(Frame::new(4, 4, vec![0; 47]).is_err());
        assert!(Frame::new(0, 4, vec![]).is_err());
        assert!(Frame::new(usize::MAX, 4, vec![]).is_err());
    }
}
