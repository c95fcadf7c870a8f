//! Pictures and results of parts on disk: what they are called, how much room they may take, and what goes when it runs out.
//!
//! The tree of folders is the only index. `2026-11-23/14/20261123T141503.127Z_ng_000123456_P4711.png` was taken in the hour from 14
//! o'clock (UTC) of that day, of the frame 123456, which was `ng`; `.json` beside it is written last: its presence says that the
//! picture is whole. What has another name is somebody else's, and is never touched; nor is what lies in `keep`.
//!
//! Clips (`…_clip-ng_…`) and recordings of everything (`…_video_…`) are written by others, over many seconds: [`Store::begin`] and
//! [`Store::finish`] stand around that. What a crash leaves of one is kept up to its last whole fragment, as `….cut.mp4`.

mod label;
mod name;
mod retention;
mod store;
mod video;

use image::ExtendedColorType::Rgb8;
use image::ImageEncoder;
use image::codecs::jpeg::JpegEncoder;
use image::codecs::png::{CompressionType, FilterType, PngEncoder};

pub use self::label::{Label, Said, label};
pub use self::name::{Kind, Name, folder};
pub use self::retention::{Item, Limits, excess};
pub use self::store::{Disk, Outcome, Store, System};
use crate::error::{Error, Result};
use crate::frame::Frame;

/// How a picture is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// Without loss.
    Png,
    /// With some.
    Jpeg,
}

/// Quality of JPEG pictures, of 100.
const JPEG_QUALITY: u8 = 95;

impl Format {
    /// The end of the file's name.
    pub fn extension(self) -> &'static str {
        match self {
            Self::Png => "png",
            Self::Jpeg => "jpg",
        }
    }

    /// The bytes of a file.
    ///
    /// # Errors
    /// When the picture is larger than the format allows.
    pub fn encode(self, frame: &Frame) -> Result<Vec<u8>> {
        let (mut bytes, width, height) = (Vec::new(), frame.width() as u32, frame.height() as u32);
        let written = match self {
            Self::Png => PngEncoder::new_with_quality(&mut bytes, CompressionType::Fast, FilterType::Sub).write_image(
                frame.rgb(),
                width,
                height,
                Rgb8,
            ),
            Self::Jpeg => {
                JpegEncoder::new_with_quality(&mut bytes, JPEG_QUALITY).write_image(frame.rgb(), width, height, Rgb8)
            }
        };
        written.map_err(|error| Error::Internal(format!("archive: a picture cannot be encoded: {error}")))?;
        Ok(bytes)
    }
}
