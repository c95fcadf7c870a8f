//! An image file as a model's input.

use std::path::Path;

use sha2::{Digest, Sha256};

use super::SampleDepth;
use crate::error::{Error, Result};
use crate::frame::{Preparation, Prepared, decode_image, read_bytes};
use crate::text::hex;

/// What is wrong with an image in which the part was not found.
pub const NOT_LOCATED: &str = "the part was not found in it (input.align): the line would reject it";

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
    /// When it cannot be read, or the region of interest has no pixel in it. A part that is not found in it is no error: its input
    /// is `lost`.
    pub fn read(path: &Path, preparation: &Preparation, class: usize, depth: &SampleDepth) -> Result<Self> {
        let bytes = read_bytes(path)?;
        let image = decode_image(&bytes, path)?;
        depth.add(path, image.peak);
        let (file, pixels) = (Sha256::digest(&bytes).into(), image.frame.digest());
        let own = preparation.of_frame(&image.frame, class)?;
        let others = if preparation.ways().len() > 1 { preparation.apply(&image.frame, None)? } else { Vec::new() };
        let others = others.into_iter().filter(|input| input.shape != own.shape);
        let inputs = [own.clone()].into_iter().chain(others).collect();
        Ok(Self { inputs, file, pixels })
    }

    /// The same, unless its part was not found.
    ///
    /// # Errors
    /// Then, with the name of the file.
    pub fn located(self, path: &Path) -> Result<Self> {
        if self.own().lost { Err(Error::image(path, NOT_LOCATED)) } else { Ok(self) }
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
