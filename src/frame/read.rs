//! Reads images and masks from files: any depth, layout and orientation becomes an RGB8 [`Frame`].
//! Bounded: a file, a side or a decoded image beyond the limits below is an error before memory is taken.

use std::io::Cursor;
use std::path::Path;

use image::metadata::Orientation;
use image::{DynamicImage, ImageDecoder, ImageFormat, ImageReader, Limits};
use tiff::tags::{PhotometricInterpretation as Colours, SampleFormat, Tag};

use super::Frame;
use crate::config::Size;
use crate::error::{Error, Result, catch_panic};
use crate::files::read_regular;

/// Longest side of an image that is read, in pixels.
pub const MAX_SIDE: u32 = 16_384;

/// Largest file, and largest decoded image, that is read, in bytes.
pub const MAX_BYTES: u64 = 512 << 20;

/// What a decoder may take beside the decoded image, in bytes: a TIFF in a single strip takes as much as the image.
const MAX_WORKING: u64 = MAX_BYTES;

/// How a BigTIFF starts, which `image` reads but does not recognise.
const BIG_TIFF: [&[u8]; 2] = [b"II+\0", b"MM\0+"];

/// An image as it was decoded.
pub struct Decoded {
    /// Its pixels.
    pub frame: Frame,
    /// Highest sample of an image of 16 bits per sample, of its alpha apart.
    pub peak: Option<u16>,
}

/// Reads an image file (PNG, JPEG, BMP, TIFF, PNM, WebP; told by its content, not its name) as RGB8.
///
/// - Grayscale is repeated into three channels; palettes are looked up; CMYK is converted.
/// - 16 bits per channel become 8 by dividing by 257 with rounding, so that 65535 is 255. (GStreamer's videoconvert
///   rounds in another way: a `GRAY16_LE` frame of the same values may be one level off.) Images with fewer
///   significant bits in 16-bit words (10 or 12 of a camera) come out as dark as they are stored; see [`Decoded::peak`].
/// - Alpha is dropped and the stored colours are kept: what a camera's RGBA or RGBx frame means on the line, so
///   that a file and a stream with the same pixels give the same frame.
/// - EXIF orientation is applied.
///
/// # Errors
/// [`Error::Io`] when the file cannot be read or exceeds [`MAX_BYTES`]; [`Error::Image`] when it is not a whole image in a
/// known format or exceeds [`MAX_SIDE`]. Both name the file.
pub fn read_frame(path: &Path) -> Result<Frame> {
    read_image(path).map(|image| image.frame)
}

/// As [`read_frame`], with what is lost in eight bits.
///
/// # Errors
/// As for [`read_frame`].
pub fn read_image(path: &Path) -> Result<Decoded> {
    decode_image(&read_bytes(path)?, path)
}

/// As [`read_image`], from bytes that are already in memory; `name` is only for messages.
///
/// # Errors
/// [`Error::Image`] as for [`read_frame`].
pub fn decode_image(bytes: &[u8], name: &Path) -> Result<Decoded> {
    let image = decode(bytes, name)?;
    let peak = peak(&image);
    let rgb = image.into_rgb8();
    let (width, height) = (rgb.width() as usize, rgb.height() as usize);
    let frame = Frame::new(width, height, rgb.into_raw()).map_err(|e| Error::image(name, e.to_string()))?;
    Ok(Decoded { frame, peak })
}

/// As [`read_frame`], from bytes that are already in memory; `name` is only for messages.
///
/// # Errors
/// [`Error::Image`] as for [`read_frame`].
pub fn decode_frame(bytes: &[u8], name: &Path) -> Result<Frame> {
    decode_image(bytes, name).map(|image| image.frame)
}

/// The highest 16-bit sample that is not alpha.
fn peak(image: &DynamicImage) -> Option<u16> {
    fn highest(samples: &[u16], channels: usize, colours: usize) -> Option<u16> {
        samples.chunks_exact(channels).flat_map(|pixel| &pixel[..colours]).max().copied()
    }
    match image {
        DynamicImage::ImageLuma16(image) => highest(image, 1, 1),
        DynamicImage::ImageLumaA16(image) => highest(image, 2, 1),
        DynamicImage::ImageRgb16(image) => highest(image, 3, 3),
        DynamicImage::ImageRgba16(image) => highest(image, 4, 3),
        _ => None,
    }
}

/// Reads a ground-truth mask, resized to `width` x `height` by the nearest pixel: true where any colour channel is
/// above 0 in the file's own depth. Result: `[height * width]`, row by row.
///
/// # Errors
/// As for [`read_frame`].
pub fn read_mask(path: &Path, width: usize, height: usize) -> Result<Vec<bool>> {
    // Kept at 16 bits: a label value of 1 in a 16-bit mask must not be rounded to 0.
    let mask = decode(&read_bytes(path)?, path)?.into_rgb16();
    let (w, h) = (mask.width() as usize, mask.height() as usize);
    if w == 0 || h == 0 {
        return Err(Error::image(path, "the mask has no pixels"));
    }
    // The source pixel whose area holds the centre of the target pixel.
    let nearest = |i: usize, target: usize, source: usize| ((2 * i + 1) * source / (2 * target)).min(source - 1);
    let pixels = mask.as_raw(); // [h, w, 3]
    let columns: Vec<usize> = (0..width).map(|x| nearest(x, width, w)).collect();
    let mut out = Vec::with_capacity(width * height);
    for y in 0..height {
        let row = &pixels[nearest(y, height, h) * w * 3..][..w * 3];
        out.extend(columns.iter().map(|&x| row[x * 3..x * 3 + 3].iter().any(|&v| v > 0)));
    }
    Ok(out)
}

/// Columns and rows of an image, upright, without decoding it.
///
/// # Errors
/// As for [`read_frame`], as far as the head of the file tells.
pub fn read_size(path: &Path) -> Result<Size> {
    let bytes = read_bytes(path)?;
    let size = || {
        use Orientation::{Rotate90, Rotate90FlipH, Rotate270, Rotate270FlipH};
        let (decoder, orientation) = upright_decoder(&bytes)?;
        let (width, height) = decoder.dimensions();
        let lies = matches!(orientation, Rotate90 | Rotate270 | Rotate90FlipH | Rotate270FlipH);
        let [width, height] = if lies { [height, width] } else { [width, height] }.map(|side| side as usize);
        Ok(Size { width, height })
    };
    let failed = |_| Err("the image is damaged (its decoder gave up)".into());
    catch_panic(size).unwrap_or_else(failed).map_err(|reason: String| Error::image(path, reason))
}

/// The content of an image file.
///
/// # Errors
/// [`Error::Io`] when it is no regular file, cannot be read, or is larger than [`MAX_BYTES`].
pub fn read_bytes(path: &Path) -> Result<Vec<u8>> {
    read_regular(path, MAX_BYTES, "an image")
}

/// Decodes and turns upright. A panic of a decoder counts as a damaged file: the decoders are other people's code,
/// and one bad image must not end a training run or a line.
fn decode(bytes: &[u8], name: &Path) -> Result<DynamicImage> {
    catch_panic(|| decode_upright(bytes))
        .unwrap_or_else(|_| Err("the image is damaged (its decoder gave up)".into()))
        .map_err(|reason| Error::image(name, reason))
}

/// Whether the chunks of a WebP end within the file: the decoder takes memory for what a chunk of metadata says of its length.
fn chunks_fit(bytes: &[u8]) -> bool {
    let size = |at: usize| bytes.get(at..at + 4).and_then(|b| b.try_into().ok()).map_or(0, u32::from_le_bytes) as usize;
    let mut at = 12; // after "RIFF", the length and "WEBP"
    // Where a first chunk announces others, the decoder looks for these beyond the end by the length of the first.
    let beyond = if bytes.get(at..at + 4) == Some(b"VP8X") { size(at + 4).next_multiple_of(2) } else { 0 };
    let end = 8 + size(4) + beyond;
    while at < end && at + 8 <= bytes.len() {
        at += 8 + size(at + 4);
        if at > bytes.len() {
            return false;
        }
        at += at % 2;
    }
    true
}

/// A decoder within the limits, and how to turn its image upright.
fn upright_decoder(bytes: &[u8]) -> Result<(impl ImageDecoder + '_, Orientation), String> {
    if bytes.is_empty() {
        return Err("the file is empty".into());
    }
    let format = match image::guess_format(bytes) {
        Ok(format) => format,
        Err(_) if BIG_TIFF.iter().any(|start| bytes.starts_with(start)) => ImageFormat::Tiff,
        Err(_) => return Err("not an image in a known format (PNG, JPEG, BMP, TIFF, PNM, WebP)".into()),
    };
    if format == ImageFormat::Tiff {
        check_samples(bytes)?;
    }
    if format == ImageFormat::WebP && !chunks_fit(bytes) {
        return Err("the WebP ends within a chunk: the file is cut off or damaged".into());
    }
    let mut reader = ImageReader::with_format(Cursor::new(bytes), format);
    let mut limits = Limits::default();
    limits.max_alloc = Some(MAX_BYTES + MAX_WORKING);
    reader.limits(limits);
    let mut decoder = reader.into_decoder().map_err(describe)?;
    let (width, height) = decoder.dimensions();
    if width > MAX_SIDE || height > MAX_SIDE {
        return Err(format!("{width}x{height} pixels; the limit is {MAX_SIDE} on each side"));
    }
    if decoder.total_bytes() > MAX_BYTES {
        let needed = decoder.total_bytes() >> 20;
        return Err(format!("{width}x{height} pixels need {needed} MiB; the limit is {} MiB", MAX_BYTES >> 20));
    }
    // Unreadable EXIF says nothing about the pixels.
    let orientation = decoder.orientation().unwrap_or(Orientation::NoTransforms);
    Ok((decoder, orientation))
}

fn decode_upright(bytes: &[u8]) -> Result<DynamicImage, String> {
    let (decoder, orientation) = upright_decoder(bytes)?;
    if bytes.starts_with(&[0xff, 0xd8]) && !jpeg_is_whole(bytes) {
        return Err("the JPEG ends before its end marker: the file is cut off".into());
    }
    let mut image = DynamicImage::from_decoder(decoder).map_err(describe)?;
    image.apply_orientation(orientation);
    Ok(image)
}

/// Refuses a TIFF of samples that cannot be made 8-bit colours of, in words; the decoder has none for them, and clips numbers
/// with a fraction.
fn check_samples(bytes: &[u8]) -> Result<(), String> {
    // What else is wrong with the file is found when it is decoded.
    let Ok(mut file) = tiff::decoder::Decoder::new(Cursor::new(bytes)) else { return Ok(()) };
    let mut first = |tag| file.find_tag_unsigned_vec::<u16>(tag).ok()??.first().copied();
    let bits = first(Tag::BitsPerSample).unwrap_or(1);
    let kind = match first(Tag::SampleFormat).map(SampleFormat::from_u16) {
        None | Some(Some(SampleFormat::Uint)) => "unsigned",
        Some(Some(SampleFormat::Int)) => "signed",
        Some(Some(SampleFormat::IEEEFP)) => "float",
        Some(_) => "unknown",
    };
    let found = match first(Tag::PhotometricInterpretation).and_then(Colours::from_u16) {
        Some(Colours::RGBPalette) => "palette colours".to_owned(),
        Some(Colours::CIELab | Colours::IccLab | Colours::ItuLab) => "Lab colours".to_owned(),
        _ if kind != "unsigned" || !matches!(bits, 1 | 8 | 16) => format!("{bits}-bit {kind} samples"),
        _ => return Ok(()),
    };
    Err(format!("a TIFF of {found}: expected 8- or 16-bit unsigned samples of grey, RGB or CMYK"))
}

/// The decoder's words, with the limit where one was hit.
fn describe(error: image::ImageError) -> String {
    match error {
        image::ImageError::Limits(_) => {
            format!("takes more memory to decode than the limit of {} MiB", (MAX_BYTES + MAX_WORKING) >> 20)
        }
        other => other.to_string(),
    }
}

/// Whether a JPEG reaches its end-of-image marker. The decoder fills what is missing with gray, which would be
/// learned as if the part looked so. Follows the segment lengths, since embedded thumbnails have end markers too.
fn jpeg_is_whole(bytes: &[u8]) -> bool {
    let mut at = 2; // after the start-of-image marker
    while let Some(&[mark, code]) = bytes.get(at..).and_then(|b| b.first_chunk()) {
        at += match (mark, code) {
            (0xff, 0xd9) => return true,
            (0xff, 0xff) => 1, // a fill byte
            // An escaped 0xff, TEM, restart markers and a second start have no length.
            (0xff, 0x00 | 0x01 | 0xd0..=0xd8) => 2,
            (0xff, _) => match bytes.get(at + 2..).and_then(|b| b.first_chunk()) {
                Some(&length) => 2 + usize::from(u16::from_be_bytes(length)).max(2),
                None => return false,
            },
            // Entropy-coded data, or bytes between segments that decoders skip.
            _ => bytes[at..].iter().position(|&b| b == 0xff).unwrap_or(bytes.len()),
        };
    }
    false
}

#[cfg(test)]
mod tests {
    use image::{ExtendedColorType, GrayAlphaImage, GrayImage, ImageBuffer, Luma, Rgb, RgbImage, RgbaImage};
    use proptest::prelude::*;

    use super::*;

    /// 7 x 5 with a different colour everywhere.
    fn picture() -> RgbImage {
        RgbImage::from_fn(7, 5, |x, y| Rgb([(x * 36) as u8, (y * 60) as u8, (255 - x * 20 - y * 10) as u8]))
    }

    fn encoded(image: impl Into<DynamicImage>, format: ImageFormat) -> Vec<u8> {
        let mut bytes = Cursor::new(Vec::new());
        image.into().write_to(&mut bytes, format).unwrap();
        bytes.into_inner()
    }

    fn read(bytes: &[u8]) -> Result<Frame> {
        decode_frame(bytes, Path::new("part.img"))
    }

    #[track_caller]
    fn reason(bytes: &[u8]) -> String {
        match read(bytes) {
            Err(e @ Error::Image { .. }) => {
                let text = e.to_string();
                assert!(text.starts_with("part.img: "), "the message names the file: {text}");
                text
            }
            other => panic!("an image error was expected, got {other:?}"),
        }
    }

    #[test]
    fn lossless_formats_keep_every_pixel() {
        for format in [ImageFormat::Png, ImageFormat::Bmp, ImageFormat::Tiff, ImageFormat::Pnm, ImageFormat::WebP] {
            let frame = read(&encoded(picture(), format)).unwrap();
            assert_eq!((frame.width(), frame.height()), (7, 5), "{format:?}");
            assert_eq!(frame.rgb(), picture().as_raw().as_slice(), "{format:?}");
        }
    }

    #[test]
    fn grayscale_is_repeated_and_16_bit_is_divided_by_257() {
        let gray = GrayImage::from_fn(2, 1, |x, _| Luma([40 + x as u8]));
        assert_eq!(read(&encoded(gray, ImageFormat::Png)).unwrap().rgb(), [40, 40, 40, 41, 41, 41]);
        let values = [0u16, 128, 129, 257, 32_768, 65_535];
        let deep = ImageBuffer::<Luma<u16>, _>::from_fn(6, 1, |x, _| Luma([values[x as usize]]));
        let frame = read(&encoded(deep.clone(), ImageFormat::Png)).unwrap();
        let expected: Vec<u8> = [0, 0, 1, 1, 128, 255].iter().flat_map(|&v| [v; 3]).collect();
        assert_eq!(frame.rgb(), expected);
        assert_eq!(read(&encoded(deep, ImageFormat::Tiff)).unwrap(), frame);
        let rgb = ImageBuffer::<Rgb<u16>, _>::from_pixel(1, 1, Rgb([257u16, 2 * 257, 255 * 257]));
        assert_eq!(read(&encoded(rgb, ImageFormat::Png)).unwrap().rgb(), [1, 2, 255]);
    }

    #[test]
    fn alpha_is_dropped_and_the_stored_colour_kept() {
        let rgba = RgbaImage::from_raw(2, 1, vec![10, 20, 30, 0, 40, 50, 60, 128]).unwrap();
        assert_eq!(read(&encoded(rgba, ImageFormat::Png)).unwrap().rgb(), [10, 20, 30, 40, 50, 60]);
        let gray = GrayAlphaImage::from_raw(1, 1, vec![70, 0]).unwrap();
        assert_eq!(read(&encoded(gray, ImageFormat::Png)).unwrap().rgb(), [70, 70, 70]);
    }

    #[test]
    fn palette_colours_are_looked_up() {
        // 2x1 pixels, 2 bits per pixel, three palette entries; Python:
        //   import zlib, struct
        //   c = lambda t, d: struct.pack('>I', len(d)) + t + d + struct.pack('>I', zlib.crc32(t + d))
        //   b'\x89PNG\r\n\x1a\n' + c(b'IHDR', struct.pack('>IIBBBBB', 2, 1, 2, 3, 0, 0, 0))
        //     + c(b'PLTE', bytes([9, 8, 7, 200, 100, 50, 1, 2, 3])) + c(b'IDAT', zlib.compress(bytes([0, 0b01100000])))
        //     + c(b'IEND', b'')
        let png = b"\x89PNG\x0d\x0a\x1a\x0a\x00\x00\x00\x0dIHDR\x00\x00\x00\x02\x00\x00\x00\x01\x02\x03\x00\x00\x00\x89L\x97\x19\x00\x00\x00\x09PLTE\x09\x08\x07\xc8d2\x01\x02\x03XT^\xd1\
            \x00\x00\x00\x0aIDATx\x9ccH\x00\x00\x00b\x00a\xb1\x98y\xf2\x00\x00\x00\x00IEND\xaeB`\x82";
        assert_eq!(read(png).unwrap().rgb(), [200, 100, 50, 1, 2, 3]);
    }

    #[test]
    fn cmyk_is_converted() {
        // 8x8 of one colour; Python, with Pillow, which reads it back as (215, 46, 46):
        //   Image.new('CMYK', (8, 8), (0, 200, 200, 40)).save('cmyk.jpg', quality=75, optimize=True)
        let hex = "\
            ffd8ffee000e41646f626500640000000000ffdb004300080606070605080707070909080a0c140d0c0b0b0c\
            1912130f141d1a1f1e1d1a1c1c20242e2720222c231c1c2837292c30313434341f27393d38323c2e333432ff\
            c000140800080008044311004d11005911004b1100ffc40014000100000000000000000000000000000007ff\
            c40014100100000000000000000000000000000000ffda000e0443004d0059004b00003f007f1b0d8aefffd9";
        let bytes: Vec<u8> =
            (0..hex.len()).step_by(2).map(|i| u8::from_str_radix(&hex[i..i + 2], 16).unwrap()).collect();
        let frame = read(&bytes).unwrap();
        let close = |a: u8, b: u8| a.abs_diff(b) <= 2;
        let pixel = &frame.rgb()[..3];
        assert!(close(pixel[0], 215) && close(pixel[1], 46) && close(pixel[2], 46), "{pixel:?}");
    }

    /// A JPEG with an APP1 segment that holds one EXIF tag, the orientation.
    fn exif_jpeg(image: &RgbImage, orientation: u8) -> Vec<u8> {
        let mut jpeg = Vec::new();
        image::codecs::jpeg::JpegEncoder::new_with_quality(&mut jpeg, 100)
            .encode(image.as_raw(), image.width(), image.height(), ExtendedColorType::Rgb8)
            .unwrap();
        let mut app1 = vec![0xff, 0xe1, 0, 34];
        app1.extend(b"Exif\0\0MM\0\x2a\0\0\0\x08\0\x01"); // big endian, first directory at 8, one entry
        app1.extend([0x01, 0x12, 0, 3, 0, 0, 0, 1, 0, orientation, 0, 0, 0, 0, 0, 0]); // tag 0x112, SHORT, count 1
        jpeg.splice(2..2, app1);
        jpeg
    }

    #[test]
    fn exif_orientation_is_applied() {
        // Large flat areas survive JPEG: left half dark, right half bright red.
        let stored = RgbImage::from_fn(32, 16, |x, _| if x < 16 { Rgb([20, 20, 20]) } else { Rgb([220, 30, 30]) });
        let red = |f: &Frame, x: usize, y: usize| f.rgb()[(y * f.width() + x) * 3] > 128;
        // (orientation, size, where the stored left and the stored right half are now)
        for (orientation, size, dark, bright) in [
            (1, (32, 16), (8, 8), (24, 8)),
            (2, (32, 16), (24, 8), (8, 8)), // mirrored
            (3, (32, 16), (24, 8), (8, 8)), // upside down
            (6, (16, 32), (8, 8), (8, 24)), // a quarter turn clockwise: left goes to the top
            (8, (16, 32), (8, 24), (8, 8)), // a quarter turn the other way
        ] {
            let frame = read(&exif_jpeg(&stored, orientation)).unwrap();
            assert_eq!((frame.width(), frame.height()), size, "orientation {orientation}");
            assert!(!red(&frame, dark.0, dark.1) && red(&frame, bright.0, bright.1), "orientation {orientation}");
        }
    }

    #[test]
    fn limits_are_named_before_memory_is_taken() {
        let wide = format!("P5 {} 1 255\n", MAX_SIDE + 1);
        assert!(reason(wide.as_bytes()).contains("16385x1 pixels; the limit is 16384 on each side"));
        let large = b"P6 16384 16384 255\n";
        assert!(reason(large).contains("need 768 MiB; the limit is 512 MiB"));
    }

    /// A TIFF of one strip with the tags that make an image, as a list of (tag, value); `big` for BigTIFF.
    fn tiff(width: u32, height: u32, tags: &[(u16, u32)], pixels: &[u8], big: bool) -> Vec<u8> {
        let own = [(256, width), (257, height), (259, 1), (273, 0), (278, height), (279, pixels.len() as u32)];
        let mut tags = [&own, tags].concat();
        tags.sort();
        let mut out: Vec<u8> =
            if big { b"II+\0\x08\0\0\0\x10\0\0\0\0\0\0\0".to_vec() } else { b"II*\0\x08\0\0\0".to_vec() };
        let (count, entry, next) = if big { (8, 20, 8) } else { (2, 12, 4) };
        let start = out.len() + count + entry * tags.len() + next;
        out.extend(&(tags.len() as u64).to_le_bytes()[..count]);
        for (tag, value) in tags {
            out.extend(tag.to_le_bytes());
            out.extend(4u16.to_le_bytes()); // LONG
            out.extend(&1u64.to_le_bytes()[..(entry - 4) / 2]);
            let value = if tag == 273 { start as u32 } else { value };
            out.extend(&u64::from(value).to_le_bytes()[..(entry - 4) / 2]);
        }
        out.resize(start, 0);
        out.extend(pixels);
        out
    }

    #[test]
    fn tiffs_are_read_in_both_sizes_of_offsets() {
        let grey = [(258, 8), (262, 1), (277, 1)];
        for big in [false, true] {
            let frame = read(&tiff(2, 1, &grey, &[7, 9], big)).unwrap();
            assert_eq!(frame.rgb(), [7, 7, 7, 9, 9, 9], "big: {big}");
        }
    }

    #[test]
    fn samples_that_are_not_read_are_named_in_words() {
        for (bits, format, photometric, words) in [
            (32, 3, 1, "a TIFF of 32-bit float samples"),
            (32, 3, 2, "a TIFF of 32-bit float samples"),
            (16, 2, 1, "a TIFF of 16-bit signed samples"),
            (32, 1, 1, "a TIFF of 32-bit unsigned samples"),
            (12, 1, 1, "a TIFF of 12-bit unsigned samples"),
            (8, 1, 3, "a TIFF of palette colours"),
            (8, 1, 8, "a TIFF of Lab colours"),
        ] {
            let text =
                reason(&tiff(1, 1, &[(258, bits), (262, photometric), (277, 1), (339, format)], &[0; 12], false));
            let expected = format!("{words}: expected 8- or 16-bit unsigned samples of grey, RGB or CMYK");
            assert!(text.ends_with(&expected), "{text}");
        }
    }

    /// 12000 x 9000 as a program that writes one strip stores it: the strip is held beside the image.
    #[test]
    fn a_large_image_in_one_strip_is_read() {
        let (width, height) = (12_000, 9_000);
        let bytes =
            tiff(width, height, &[(258, 8), (262, 2), (277, 3)], &vec![0; (width * height * 3) as usize], false);
        let frame = read(&bytes).unwrap();
        assert_eq!((frame.width(), frame.height()), (12_000, 9_000));
    }

    #[test]
    fn the_highest_value_of_16_bit_images_is_known() {
        let peak = |image: DynamicImage| decode_image(&encoded(image, ImageFormat::Png), Path::new("x")).unwrap().peak;
        let grey = ImageBuffer::<Luma<u16>, _>::from_fn(3, 1, |x, _| Luma([4000 + x as u16]));
        assert_eq!(peak(grey.into()), Some(4002));
        let rgba = ImageBuffer::<image::Rgba<u16>, _>::from_pixel(1, 1, image::Rgba([1, 900, 2, 65_535]));
        assert_eq!(peak(rgba.into()), Some(900), "alpha is not looked at");
        assert_eq!(peak(picture().into()), None);
    }

    #[test]
    fn what_is_no_image_is_named() {
        assert!(reason(b"").contains("the file is empty"));
        assert!(reason(b"hello, this is text").contains("not an image in a known format"));
        let missing = read_frame(Path::new("/nonexistent/part.png")).unwrap_err();
        assert!(matches!(&missing, Error::Io { .. }) && missing.to_string().contains("/nonexistent/part.png"));
        let folder = tempfile::tempdir().unwrap();
        assert!(read_frame(folder.path()).unwrap_err().to_string().ends_with("is a folder, expected an image"));
    }

    #[test]
    fn every_cut_off_file_is_an_error_or_still_complete() {
        for format in [ImageFormat::Png, ImageFormat::Jpeg, ImageFormat::Bmp, ImageFormat::Pnm, ImageFormat::WebP] {
            let whole = encoded(picture(), format);
            let frame = read(&whole).unwrap();
            let mut refused = 0;
            for length in 0..whole.len() {
                match read(&whole[..length]) {
                    Ok(cut) => assert_eq!(cut, frame, "{format:?} cut at {length} gave other pixels"),
                    Err(_) => refused += 1,
                }
            }
            // A PNG may do without its last chunk and checksums; the others need everything or nearly so.
            assert!(refused + 24 >= whole.len(), "{format:?}: {refused} of {} lengths refused", whole.len());
        }
    }

    #[test]
    fn the_end_marker_of_a_thumbnail_does_not_make_a_jpeg_whole() {
        let mut jpeg = encoded(picture(), ImageFormat::Jpeg);
        jpeg.splice(2..2, [0xff, 0xe1, 0, 6, 0xff, 0xd8, 0xff, 0xd9]);
        assert!(read(&jpeg).is_ok());
        jpeg.truncate(jpeg.len() - 2);
        assert!(reason(&jpeg).contains("cut off"));
    }

    #[test]
    fn masks_are_resized_by_the_nearest_pixel_and_counted_above_zero() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("000_mask.png");
        let faint = ImageBuffer::<Luma<u16>, _>::from_fn(2, 2, |x, y| Luma([u16::from(x == 1 && y == 0)]));
        faint.save(&path).unwrap();
        assert_eq!(read_mask(&path, 2, 2).unwrap(), [false, true, false, false]);
        let large = read_mask(&path, 6, 4).unwrap();
        let expected: Vec<bool> = (0..24).map(|i| i % 6 >= 3 && i / 6 < 2).collect();
        assert_eq!(large, expected);
        assert_eq!(read_mask(&path, 1, 1).unwrap(), [false]); // the centre lies on the last quarter
        GrayImage::from_fn(9, 9, |x, y| Luma([u8::from(x == 4 && y == 4)])).save(&path).unwrap();
        assert_eq!(read_mask(&path, 3, 3).unwrap().iter().filter(|&&v| v).count(), 1);
    }

    proptest! {
        #[test]
        fn damaged_files_never_panic(
            format in prop::sample::select(vec![
                ImageFormat::Png, ImageFormat::Jpeg, ImageFormat::Bmp, ImageFormat::Tiff, ImageFormat::Pnm, ImageFormat::WebP,
            ]),
            cut in prop_oneof![Just(1.0), 0.0..=1.0f64],
            flips in prop::collection::vec((any::<prop::sample::Index>(), 0u8..8), 0..6),
        ) {
            let mut bytes = encoded(picture(), format);
            for (at, bit) in flips {
                let at = at.index(bytes.len());
                bytes[at] ^= 1 << bit;
            }
            bytes.truncate((bytes.len() as f64 * cut).round() as usize);
            // Not through `read`: it would hide a panic of the decoder.
            match decode_upright(&bytes) {
                Ok(image) => prop_assert!(image.width() <= MAX_SIDE && image.height() <= MAX_SIDE),
                Err(reason) => prop_assert!(!reason.is_empty()),
            }
        }
    }
}
