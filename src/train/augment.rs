//! Mild changes that leave a good part good: what a codec, a lens and a lamp do to a picture on its way from the camera.

use std::io::Cursor;

use image::codecs::jpeg::JpegEncoder;
use image::{ExtendedColorType, ImageEncoder};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use sha2::{Digest, Sha256};

use crate::error::{Error, Result};
use crate::frame::Frame;
use crate::model::denoiser::normal;

/// Share of the copies that are blurred, and of those with noise.
const OFTEN: f64 = 0.35;
/// Standard deviation of the blur, in pixels of the model's input.
const BLUR: std::ops::Range<f64> = 0.3..0.7;
/// Standard deviation of the noise, in grey levels of 255.
const NOISE: f64 = 2.5;
/// Brightness changes by this share at most.
const LIGHT: f64 = 0.06;
/// Quality of the JPEG that a copy was.
const QUALITY: std::ops::Range<u8> = 40..80;

/// A changed copy of the model's input: perhaps blurred, perhaps noisy, brighter or darker, and through JPEG. The same for the same
/// `seed` and picture, which `digest` names.
///
/// # Errors
/// When the picture cannot be encoded.
pub(super) fn changed_copy(frame: &Frame, seed: u64, digest: &str) -> Result<Frame> {
    let mut hash = Sha256::new();
    hash.update(seed.to_le_bytes());
    hash.update(digest);
    let mut rng = ChaCha8Rng::from_seed(hash.finalize().into());
    let mut values: Vec<f32> = frame.rgb().iter().map(|&value| f32::from(value)).collect();
    if rng.random_bool(OFTEN) {
        values = blurred(&values, frame.width(), rng.random_range(BLUR) as f32);
    }
    if rng.random_bool(OFTEN) {
        let deviation = rng.random_range(0.0..NOISE);
        values.iter_mut().for_each(|value| *value += (deviation * normal(&mut rng)) as f32);
    }
    let light = 1.0 + rng.random_range(-LIGHT..LIGHT) as f32;
    values.iter_mut().for_each(|value| *value *= light);
    half_the_colour(&mut values, frame.width());
    let rgb: Vec<u8> = values.iter().map(|value| value.round() as u8).collect(); // the cast saturates
    let broken = |error: image::ImageError| Error::Internal(format!("a changed copy of an image: {error}"));
    let mut jpeg = Vec::new();
    let (width, height) = (frame.width() as u32, frame.height() as u32);
    JpegEncoder::new_with_quality(&mut jpeg, rng.random_range(QUALITY))
        .write_image(&rgb, width, height, ExtendedColorType::Rgb8)
        .map_err(broken)?;
    let decoded = image::ImageReader::with_format(Cursor::new(jpeg), image::ImageFormat::Jpeg).decode();
    Frame::new(frame.width(), frame.height(), decoded.map_err(broken)?.into_rgb8().into_raw())
}

/// Takes the colours of RGB values at half the resolution, as nearly every JPEG and video has them (4:2:0): brightness stays, the
/// differences to it are averaged over squares of two pixels. The JPEG encoder here leaves them whole.
fn half_the_colour(values: &mut [f32], width: usize) {
    const BRIGHTNESS: [f32; 3] = [0.299, 0.587, 0.114]; // BT.601
    let height = values.len() / (3 * width);
    for (top, left) in (0..height).step_by(2).flat_map(|top| (0..width).step_by(2).map(move |left| (top, left))) {
        let rows = top..(top + 2).min(height);
        let square = rows.flat_map(|y| (left..(left + 2).min(width)).map(move |x| 3 * (y * width + x)));
        let bright = |rgb: &[f32]| rgb.iter().zip(BRIGHTNESS).map(|(value, share)| value * share).sum::<f32>();
        let mut colour = [0.0; 3];
        let n = square.clone().count() as f32;
        for at in square.clone() {
            let y = bright(&values[at..at + 3]);
            colour.iter_mut().zip(&values[at..at + 3]).for_each(|(sum, value)| *sum += (value - y) / n);
        }
        for at in square {
            let y = bright(&values[at..at + 3]);
            values[at..at + 3].iter_mut().zip(colour).for_each(|(value, colour)| *value = y + colour);
        }
    }
}

/// RGB values blurred by a Gaussian of a small standard deviation, three pixels wide; edges are repeated.
fn blurred(values: &[f32], width: usize, deviation: f32) -> Vec<f32> {
    let side = (-1.0 / (2.0 * deviation * deviation)).exp();
    let (middle, side) = (1.0 / (1.0 + 2.0 * side), side / (1.0 + 2.0 * side));
    let height = values.len() / (3 * width);
    let pass = |values: &[f32], neighbours: &dyn Fn(usize, usize) -> [usize; 2]| -> Vec<f32> {
        let value = |i: usize| {
            let (pixel, channel) = (i / 3, i % 3);
            let [before, after] = neighbours(pixel % width, pixel / width).map(|pixel| values[pixel * 3 + channel]);
            middle * values[i] + side * (before + after)
        };
        (0..values.len()).map(value).collect()
    };
    let rows = pass(values, &|x, y| [y * width + x.saturating_sub(1), y * width + (x + 1).min(width - 1)]);
    pass(&rows, &|x, y| [y.saturating_sub(1) * width + x, (y + 1).min(height - 1) * width + x])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn copies_are_mildly_changed_and_the_same_every_time() {
        // Rings, as on a turned part.
        let value = |i: usize| (128.0 + 100.0 * (((i / 3 % 64).pow(2) + (i / 192).pow(2)) as f64 / 90.0).sin()) as u8;
        let frame = Frame::new(64, 64, (0..64 * 64 * 3).map(value).collect()).unwrap();
        let copy = |digest: &str| changed_copy(&frame, 0, digest).unwrap();
        assert_eq!(copy("a"), copy("a"));
        assert_ne!(copy("a"), copy("b"));
        assert_ne!(copy("a"), changed_copy(&frame, 1, "a").unwrap());
        for i in 0..50 {
            let copy = copy(&i.to_string());
            assert_eq!((copy.width(), copy.height()), (64, 64));
            let pairs = copy.rgb().iter().zip(frame.rgb());
            let change = pairs.map(|(a, b)| f64::from(a.abs_diff(*b))).sum::<f64>() / frame.rgb().len() as f64;
            assert!(change > 0.1 && change < 30.0, "copy {i} differs by {change} grey levels");
        }
    }

    #[test]
    fn colours_are_averaged_and_brightness_stays() {
        let bright = |rgb: &[f32]| 0.299 * rgb[0] + 0.587 * rgb[1] + 0.114 * rgb[2];
        let values: Vec<f32> = (0..5 * 3 * 3).map(|i| (i * i % 97) as f32).collect();
        let mut halved = values.clone();
        half_the_colour(&mut halved, 5);
        for (before, after) in values.chunks_exact(3).zip(halved.chunks_exact(3)) {
            assert!((bright(before) - bright(after)).abs() < 1e-3);
        }
        let redness = |at: usize| halved[3 * at] - bright(&halved[3 * at..][..3]);
        assert!((redness(0) - redness(6)).abs() < 1e-4, "one square");
        assert!((redness(0) - redness(2)).abs() > 1e-2, "another");
        let grey = vec![7.0; 12];
        let mut same = grey.clone();
        half_the_colour(&mut same, 2);
        assert!(same.iter().zip(grey).all(|(a, b)| (a - b).abs() < 1e-5));
    }

    #[test]
    fn a_blur_keeps_the_light_and_spreads_a_point() {
        let mut point = vec![0.0; 5 * 5 * 3];
        point[(2 * 5 + 2) * 3] = 100.0;
        let blurred = blurred(&point, 5, 0.5);
        assert!((blurred.iter().sum::<f32>() - 100.0).abs() < 1e-3);
        assert!(blurred[(2 * 5 + 2) * 3] > 50.0 && blurred[(5 + 2) * 3] > 5.0 && blurred[1] == 0.0);
    }
}
