//! `Frame`: the one image type between cameras, files and the model.

use crate::error::{Error, Result};

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
}
