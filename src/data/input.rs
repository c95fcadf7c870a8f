//! An image file as a model's input.

use std::path::Path;

use sha2::{Digest, Sha256};

use super::SampleDepth;
use crate::error::Result;
use crate::frame::{Prepared, Preprocess, decode_image, read_bytes};
use crate::text::hex;

/// The model's input, with what tells the image from others.
pub struct Input {
    /// What the model sees.
    pub prepared: Prepared,
    /// SHA-256 of the file.
    pub file: [u8; 32],
    /// SHA-256 of the decoded pixels.
    pub pixels: [u8; 32],
}

impl Input {
    /// Reads an image once, and adds it to the record of sample depths.
    ///
    /// # Errors
    /// When it cannot be read, or the region of interest has no pixel in it.
    pub fn read(path: &Path, preprocess: &Preprocess, depth: &SampleDepth) -> Result<Self> {
        let bytes = read_bytes(path)?;
        let image = decode_image(&bytes, path)?;
        depth.add(path, image.peak);
        let (file, pixels) = (Sha256::digest(&bytes).into(), image.frame.digest());
        Ok(Self { prepared: preprocess.apply(&image.frame)?, file, pixels })
    }

    /// Digests of file and pixels in hexadecimal, as they stand on a card.
    pub fn digests(&self) -> [String; 2] {
        [hex(&self.file), hex(&self.pixels)]
    }
}
