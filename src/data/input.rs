//! An image file as a model's input.

use std::path::Path;

use sha2::{Digest, Sha256};

use super::SampleDepth;
use crate::error::{Error, Result};
use crate::frame::{Preparation, Prepared, decode_image, read_bytes};
use crate::text::hex;

/// The model's input, with what tells the image from others.
pub struct Input {
    /// What the model sees: the input of its class, then those of other shapes that it would be tried in if the class were not
    /// known.
    pub inputs: Vec<Prepared>,
    /// SHA-256 of the file.
    pub file: [u8; 32],
    /// SHA-256 of the decoded pixels.
    pub pixels: [u8; 32],
}

impl Input {
    /// Reads an image once, and adds it to the record of sample depths.
    ///
    /// # Errors
    /// When it cannot be read, the region of interest has no pixel in it, or the part is not found in it.
    pub fn read(path: &Path, preparation: &Preparation, class: usize, depth: &SampleDepth) -> Result<Self> {
        let bytes = read_bytes(path)?;
        let image = decode_image(&bytes, path)?;
        depth.add(path, image.peak);
        let (file, pixels) = (Sha256::digest(&bytes).into(), image.frame.digest());
        let own = preparation.of_frame(&image.frame, class)?;
        if own.lost {
            return Err(Error::image(path, "the part was not found in it (input.align): the line would reject it"));
        }
        let others = if preparation.ways().len() > 1 { preparation.apply(&image.frame, None)? } else { Vec::new() };
        let others = others.into_iter().filter(|input| input.shape != own.shape);
        let inputs = [own.clone()].into_iter().chain(others).collect();
        Ok(Self { inputs, file, pixels })
    }

    /// The input of its class.
    pub fn own(&self) -> &Prepared {
        &self.inputs[0]
    }

    /// Digests of file and pixels in hexadecimal, as they stand on a card.
    pub fn digests(&self) -> [String; 2] {
        [hex(&self.file), hex(&self.pixels)]
    }
}
