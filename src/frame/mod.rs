//! `Frame`: the one image type between cameras, files and the model.

use sha2::{Digest, Sha256};

use crate::config::{Fit, InputConfig, Size};
use crate::error::{Error, Result};

mod align;
mod preparation;
pub mod read;
mod resize;
mod view;
mod warp;

#[cfg(feature = "train")]
pub(crate) use align::{Copies, learn};
pub use align::{Pose, Template};
pub use preparation::Preparation;
pub use read::{Decoded, decode_frame, decode_image, read_bytes, read_frame, read_image, read_mask, read_size};
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
    /// The input in pixels.
    pub size: Size,
    /// How a frame of another aspect is fitted.
    pub fit: Fit,
    /// The part of the frame that is looked at, `[x, y, width, height]` as fractions of the frame.
    pub roi: Option<[f64; 4]>,
}

/// A frame as the model sees it.
#[derive(Clone, Debug, PartialEq)]
pub struct Prepared {
    /// The input.
    pub frame: Frame,
    /// The rectangle of the original that it shows.
    pub geometry: Geometry,
    /// Number of the shape that it is looked at in.
    pub shape: usize,
    /// Whether the part was looked for and not found: what is shown is where it should be.
    pub lost: bool,
}

/// The way from the model's input back to the original frame.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Geometry {
    /// Width and height of the original frame in pixels.
    pub original: [usize; 2],
    /// Width and height of the input in pixels.
    pub input: Size,
    /// Rectangle of the input that shows the frame, `[x, y, width, height]` in input pixels; the rest is border.
    pub valid: [f64; 4],
    /// Rectangle of the original that the input shows, `[x, y, width, height]` in pixels; where the part was found elsewhere, the
    /// rectangle moves with it.
    pub shown: [f64; 4],
    /// How the part lies, where that was looked for.
    pub pose: Option<Pose>,
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
        let at = [
            (left + (x - self.valid[0]) * sx).clamp(left, left + width),
            (top + (y - self.valid[1]) * sy).clamp(top, top + height),
        ];
        let Some(pose) = self.pose else { return at };
        let [x, y] = self.moved(&pose, at);
        [x.clamp(0.0, self.original[0] as f64), y.clamp(0.0, self.original[1] as f64)]
    }

    /// Where a point of the original goes with the part.
    fn moved(&self, pose: &Pose, [x, y]: [f64; 2]) -> [f64; 2] {
        let [cx, cy] = self.middle();
        let [x, y] = pose.place(x - cx, y - cy);
        [x + cx, y + cy]
    }

    /// Middle of what is looked at, in pixels of the original.
    fn middle(&self) -> [f64; 2] {
        let [left, top, width, height] = self.shown;
        [left + width / 2.0, top + height / 2.0]
    }

    /// Whether a point of the input shows the original, and not what lies beyond it.
    pub fn is_inside(&self, x: f64, y: f64) -> bool {
        let [left, top, width, height] = self.valid;
        let within = x >= left && y >= top && x <= left + width && y <= top + height;
        let Some(pose) = self.pose.filter(|_| within) else { return within };
        let [sx, sy] = self.scale();
        let at = self.moved(&pose, [self.shown[0] + (x - left) * sx, self.shown[1] + (y - top) * sy]);
        (0..2).all(|i| at[i] >= 0.0 && at[i] <= self.original[i] as f64)
    }

    /// The same as if the part lay where it should: what a map is carried back to.
    pub fn unmoved(&self) -> Self {
        Self { pose: None, ..*self }
    }

    /// The point of this input that shows what a point of the unmoved one shows.
    pub fn from_unmoved(&self, x: f64, y: f64) -> [f64; 2] {
        let Some(pose) = self.pose else { return [x, y] };
        let ([sx, sy], [cx, cy]) = (self.scale(), self.middle());
        let [left, top, ..] = self.shown;
        let [x, y] = [left + (x - self.valid[0]) * sx - cx, top + (y - self.valid[1]) * sy - cy];
        let [x, y] = pose.origin(x, y);
        [(x + cx - left) / sx + self.valid[0], (y + cy - top) / sy + self.valid[1]]
    }

    /// A mask of the original, `[height, width]`, on the pixels of the model's input, `[height, width]` as well.
    pub fn onto_input(&self, mask: &[bool]) -> Vec<bool> {
        let [width, height] = self.original;
        let columns = self.input.width;
        let pixel = |i: usize| {
            let [x, y] = self.to_original((i % columns) as f64 + 0.5, (i / columns) as f64 + 0.5);
            mask[(y as usize).min(height - 1) * width + (x as usize).min(width - 1)]
        };
        (0..self.input.area()).map(pixel).collect()
    }

    /// Whether all of the input shows the frame.
    pub fn is_full(&self) -> bool {
        self.pose.is_none() && self.valid[2] == self.input.width as f64 && self.valid[3] == self.input.height as f64
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
            Frame::new(width, height, resize::resize(&plane, 3, shown, Size::new(width, height))?)?
        };
        Ok(self.finish(resized, geometry))
    }

    /// What is looked at of a frame, as it lies, in another size.
    ///
    /// # Errors
    /// When the region of interest has no pixel in this frame.
    #[cfg(feature = "train")]
    pub(crate) fn small(&self, frame: &Frame, to: Size) -> Result<Frame> {
        let plane = Plane { data: &frame.rgb, width: frame.width, height: frame.height, stride: frame.width * 3 };
        let shown = self.geometry(frame.width, frame.height)?.shown;
        Frame::new(to.width, to.height, resize::resize(&plane, 3, shown, to)?)
    }

    /// The input of a frame whose part lies elsewhere: what is shown moves with it. `reduced` is the whole frame, perhaps smaller.
    ///
    /// # Errors
    /// When the region of interest has no pixel in this frame.
    fn follow(&self, reduced: &Frame, [width, height]: [usize; 2], pose: Pose) -> Result<Prepared> {
        let geometry = Geometry { pose: Some(pose), ..self.geometry(width, height)? };
        let moved = warp::warp(reduced, &geometry)?;
        Ok(self.finish(moved, geometry))
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
        let [columns, rows] = self.size.sides().map(|side| side as f64);
        let valid = match self.fit {
            Fit::Stretch => [0.0, 0.0, columns, rows],
            Fit::Pad => {
                let scale = (columns / shown[2]).min(rows / shown[3]);
                let (w, h) = ((shown[2] * scale).round().max(1.0), (shown[3] * scale).round().max(1.0));
                [((columns - w) / 2.0).floor(), ((rows - h) / 2.0).floor(), w, h]
            }
        };
        Ok(Geometry { original: [width, height], input: self.size, valid, shown, pose: None })
    }

    /// The part that shows the frame, with its border.
    fn finish(&self, resized: Frame, geometry: Geometry) -> Prepared {
        let frame = if (resized.width, resized.height) == (self.size.width, self.size.height) {
            resized
        } else {
            repeat_edges(&resized, self.size, geometry.valid[0] as usize, geometry.valid[1] as usize)
        };
        Prepared { frame, geometry, shape: 0, lost: false }
    }
}

/// `frame` at (`left`, `top`) of a larger one; the border repeats its edge pixels.
fn repeat_edges(frame: &Frame, size: Size, left: usize, top: usize) -> Frame {
    let mut rgb = Vec::with_capacity(size.area() * 3);
    for y in 0..size.height {
        let sy = y.saturating_sub(top).min(frame.height - 1);
        for x in 0..size.width {
            let sx = x.saturating_sub(left).min(frame.width - 1);
            rgb.extend_from_slice(&frame.rgb[(sy * frame.width + sx) * 3..][..3]);
        }
    }
    Frame { width: size.width, height: size.height, rgb }
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
        let prepared = Preprocess { size: Size::square(64), fit: Fit::Stretch, roi: None }.apply(&frame).unwrap();
        assert_eq!(prepared.frame, frame);
        assert_eq!(prepared.geometry.to_original(10.0, 20.0), [10.0, 20.0]);
    }

    #[test]
    fn padding_keeps_the_aspect_and_points_find_their_way_back() {
        let prepared =
            Preprocess { size: Size::square(64), fit: Fit::Pad, roi: None }.apply(&gradient(200, 100)).unwrap();
        assert_eq!(prepared.geometry.valid, [0.0, 16.0, 64.0, 32.0]);
        assert_eq!(prepared.geometry.to_original(32.0, 32.0), [100.0, 50.0]);
        assert_eq!(prepared.geometry.to_original(64.0, 64.0), [200.0, 100.0], "clamped to the frame");
        let row = |y: usize| &prepared.frame.rgb()[y * 64 * 3..][..64 * 3];
        assert_eq!(row(0), row(16), "the border repeats the edge");
    }

    #[test]
    fn an_input_may_have_any_shape() {
        let frame = gradient(200, 100);
        let strip = Preprocess { size: Size::new(64, 128), fit: Fit::Stretch, roi: None }.apply(&frame).unwrap();
        assert_eq!((strip.frame.width(), strip.frame.height()), (64, 128));
        assert!(strip.geometry.is_full());
        assert_eq!(strip.geometry.to_original(32.0, 32.0), [100.0, 25.0]);
        let padded = Preprocess { size: Size::new(160, 96), fit: Fit::Pad, roi: None }.apply(&frame).unwrap();
        assert_eq!((padded.frame.width(), padded.frame.height()), (160, 96));
        assert_eq!(padded.geometry.valid, [0.0, 8.0, 160.0, 80.0]);
        assert!(!padded.geometry.is_full());
        let upright = Preprocess { size: Size::new(160, 64), fit: Fit::Pad, roi: None }.apply(&frame).unwrap();
        assert_eq!(upright.geometry.valid, [16.0, 0.0, 128.0, 64.0], "touches top and bottom");
        // A point that is marked on the frame is found on the input.
        let mut mask = vec![false; 200 * 100];
        mask[75 * 200 + 150] = true;
        let marked = padded.geometry.onto_input(&mask);
        assert!(marked.len() == 160 * 96 && !marked[..8 * 160].contains(&true));
        let narrow = Preprocess { size: Size::new(400, 200), fit: Fit::Stretch, roi: None }.geometry(200, 100).unwrap();
        assert_eq!(narrow.onto_input(&mask).iter().position(|marked| *marked), Some(150 * 400 + 300));
    }

    #[test]
    fn a_region_of_interest_is_all_the_model_sees() {
        let process = Preprocess { size: Size::square(64), fit: Fit::Stretch, roi: Some([0.5, 0.0, 0.5, 1.0]) };
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
