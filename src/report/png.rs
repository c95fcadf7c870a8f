//! Pictures as bytes: PNG, and base64 for data URIs.

use image::codecs::png::{CompressionType, FilterType, PngEncoder};
use image::{ExtendedColorType, ImageEncoder as _};

use crate::error::{Error, Result};
use crate::frame::Frame;

/// `frame` as a PNG file, 8-bit RGB.
///
/// # Errors
/// When the encoder refuses, which it does for sides above 2^31 - 1.
pub fn png(frame: &Frame) -> Result<Vec<u8>> {
    encode(frame.rgb(), frame.width(), frame.height(), ExtendedColorType::Rgb8)
}

/// `rgba`, `[height, width, 4]`, straight alpha, as a PNG file.
pub(super) fn png_rgba(rgba: &[u8], width: usize, height: usize) -> Result<Vec<u8>> {
    encode(rgba, width, height, ExtendedColorType::Rgba8)
}

fn encode(pixels: &[u8], width: usize, height: usize, color: ExtendedColorType) -> Result<Vec<u8>> {
    let refused = |reason: String| Error::Internal(format!("cannot encode a PNG of {width}x{height}: {reason}"));
    let (Ok(columns), Ok(rows)) = (u32::try_from(width), u32::try_from(height)) else {
        return Err(refused("too large".to_owned()));
    };
    // The encoder panics on a buffer of the wrong size.
    let expected = u64::from(columns) * u64::from(rows) * u64::from(color.bits_per_pixel() / 8);
    if expected != pixels.len() as u64 {
        return Err(refused(format!("{} bytes, expected {expected}", pixels.len())));
    }
    let mut file = Vec::new();
    PngEncoder::new_with_quality(&mut file, CompressionType::Default, FilterType::Adaptive)
        .write_image(pixels, columns, rows, color)
        .map_err(|error| refused(error.to_string()))?;
    Ok(file)
}

/// `bytes` in base64 (RFC 4648 section 4, padded).
pub(super) fn base64(bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for chunk in bytes.chunks(3) {
        let group = chunk.iter().fold(0_u32, |group, &byte| group << 8 | u32::from(byte)) << (8 * (3 - chunk.len()));
        for digit in 0..4 {
            let sextet = ALPHABET[(group >> (18 - 6 * digit) & 63) as usize];
            text.push(if digit <= chunk.len() { char::from(sextet) } else { '=' });
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_of_rfc_4648() {
        let vectors = ["", "Zg==", "Zm8=", "Zm9v", "Zm9vYg==", "Zm9vYmE=", "Zm9vYmFy"];
        for (length, expected) in vectors.iter().enumerate() {
            assert_eq!(base64(&b"foobar"[..length]), *expected);
        }
        assert_eq!(base64(&[0xfb, 0xff, 0xbf]), "+/+/");
    }

    #[test]
    fn a_png_decodes_to_the_same_pixels() {
        let frame = Frame::new(3, 2, (0..18).map(|v| v * 14).collect()).unwrap();
        let decoded = image::load_from_memory(&png(&frame).unwrap()).unwrap();
        assert_eq!(decoded.color(), image::ColorType::Rgb8);
        assert_eq!((decoded.width(), decoded.height()), (3, 2));
        assert_eq!(decoded.as_bytes(), frame.rgb());

        let rgba: Vec<u8> = (0..16).map(|v| v * 16).collect();
        let decoded = image::load_from_memory(&png_rgba(&rgba, 2, 2).unwrap()).unwrap();
        assert_eq!(decoded.as_bytes(), rgba);
    }

    #[test]
    fn a_buffer_of_the_wrong_size_is_an_error() {
        assert!(png_rgba(&[0; 15], 2, 2).is_err());
        assert!(png_rgba(&[], usize::MAX, 2).is_err());
        assert!(png_rgba(&[], 0, 0).is_err());
    }
}
