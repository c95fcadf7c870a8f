//! Frames in the pixel formats of cameras and decoders.
//!
//! Nothing is converted at full size: each plane is resized in its own format, and only the model's input becomes RGB.

use super::Frame;
use super::resize::{cores, on_threads, resize};
use crate::config::Size;
use crate::error::{Error, Result};

/// Pixels from which on their colours are worth several threads.
const MANY: usize = 1 << 17;

/// Rows of interleaved 8-bit values.
#[derive(Clone, Copy, Debug)]
pub struct Plane<'a> {
    /// The bytes, from the first row's first value on.
    pub data: &'a [u8],
    /// Pixels per row.
    pub width: usize,
    /// Rows.
    pub height: usize,
    /// Bytes from one row's start to the next row's.
    pub stride: usize,
}

/// A frame in memory.
#[derive(Clone, Copy, Debug)]
pub enum View<'a> {
    /// Three or four bytes per pixel; where red, green and blue lie among them.
    Packed {
        /// The pixels.
        plane: Plane<'a>,
        /// Bytes per pixel, 3 or 4.
        bytes: usize,
        /// Offsets of red, green and blue.
        rgb: [usize; 3],
    },
    /// One byte per pixel.
    Gray(Plane<'a>),
    /// Y'CbCr 4:2:0 in three planes.
    Planar {
        /// Luma.
        luma: Plane<'a>,
        /// Cb and Cr, at half the width and height, rounded up.
        chroma: [Plane<'a>; 2],
        /// How they become RGB.
        yuv: Yuv,
    },
    /// Y'CbCr 4:2:0 in two planes.
    SemiPlanar {
        /// Luma.
        luma: Plane<'a>,
        /// Cb and Cr in turn, at half the width and height, rounded up.
        chroma: Plane<'a>,
        /// How they become RGB.
        yuv: Yuv,
    },
}

/// Conversion from Y'CbCr to R'G'B'.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Yuv {
    /// Weight of red in luma: 0.299 (BT.601), 0.2126 (BT.709), 0.2627 (BT.2020).
    pub kr: f64,
    /// Weight of blue in luma: 0.114, 0.0722, 0.0593.
    pub kb: f64,
    /// Luma from 0 to 255 and not from 16 to 235.
    pub full_range: bool,
}

impl Plane<'_> {
    /// The plane with `bytes` per pixel, if all of it is there.
    pub(super) fn checked(&self, bytes: usize) -> Result<&Self> {
        let row = self.width.saturating_mul(bytes);
        let needed = self.height.saturating_sub(1).checked_mul(self.stride).and_then(|rows| rows.checked_add(row));
        if row > self.stride || self.width == 0 || self.height == 0 || needed.is_none_or(|n| n > self.data.len()) {
            let Self { width, height, stride, data } = self;
            return Err(Error::Usage(format!(
                "a plane of {width}x{height} pixels of {bytes} bytes, {stride} bytes from row to row, needs more than its {} bytes",
                data.len()
            )));
        }
        Ok(self)
    }
}

impl View<'_> {
    /// Columns and rows.
    pub fn size(&self) -> (usize, usize) {
        let (Self::Packed { plane, .. }
        | Self::Gray(plane)
        | Self::Planar { luma: plane, .. }
        | Self::SemiPlanar { luma: plane, .. }) = self;
        (plane.width, plane.height)
    }

    /// The part `[x, y, width, height]` in pixels as RGB of another size.
    ///
    /// # Errors
    /// When a plane is too short.
    pub(super) fn rgb(&self, part: [f64; 4], width: usize, height: usize) -> Result<Frame> {
        let (half, to) = (part.map(|v| v / 2.0), Size::new(width, height));
        let rgb = match self {
            Self::Packed { plane, bytes, rgb } => {
                let pixels = resize(plane, *bytes, part, to)?;
                if (*bytes, *rgb) == (3, [0, 1, 2]) {
                    pixels
                } else {
                    let [r, g, b] = *rgb;
                    let pixel = |i: usize| &pixels[i * bytes..][..*bytes];
                    colours(to.area(), |i| [pixel(i)[r], pixel(i)[g], pixel(i)[b]])?
                }
            }
            Self::Gray(plane) => {
                let grey = resize(plane, 1, part, to)?;
                colours(to.area(), |i| [grey[i]; 3])?
            }
            Self::Planar { luma, chroma: [u, v], yuv } => {
                let luma = resize(luma, 1, part, to)?;
                let (u, v) = (resize(u, 1, half, to)?, resize(v, 1, half, to)?);
                yuv.rgb(&luma, |i| [u[i], v[i]])?
            }
            Self::SemiPlanar { luma, chroma, yuv } => {
                let luma = resize(luma, 1, part, to)?;
                let uv = resize(chroma, 2, half, to)?;
                yuv.rgb(&luma, |i| [uv[2 * i], uv[2 * i + 1]])?
            }
        };
        Frame::new(width, height, rgb)
    }
}

impl Yuv {
    /// ITU-R BT.601, BT.709 and BT.2020 in their common form: the colours of pixels with this luma, and Cb and Cr of each by its
    /// number.
    fn rgb(self, luma: &[u8], chroma_of: impl Fn(usize) -> [u8; 2] + Sync) -> Result<Vec<u8>> {
        let Self { kr, kb, full_range } = self;
        let kg = 1.0 - kr - kb;
        let (black, luma_gain, chroma) =
            if full_range { (0.0, 1.0, 1.0) } else { (16.0, 255.0 / 219.0, 255.0 / 224.0) };
        let (red, blue) = (2.0 * (1.0 - kr) * chroma, 2.0 * (1.0 - kb) * chroma);
        // What each level contributes, computed once.
        let table = |f: &dyn Fn(f64) -> f64| -> [f64; 256] { std::array::from_fn(|i| f(i as f64)) };
        let light = table(&|y| (y - black) * luma_gain);
        let (to_red, to_blue) = (table(&|v| red * (v - 128.0)), table(&|u| blue * (u - 128.0)));
        let (green_of_u, green_of_v) = (table(&|u| blue * kb * (u - 128.0)), table(&|v| red * kr * (v - 128.0)));
        let level = |x: f64| (x + 0.5).clamp(0.0, 255.0) as u8;
        colours(luma.len(), |i| {
            let [u, v] = chroma_of(i).map(usize::from);
            let y = light[usize::from(luma[i])];
            [level(y + to_red[v]), level(y - (green_of_u[u] + green_of_v[v]) / kg), level(y + to_blue[u])]
        })
    }
}

/// The colours of some pixels, each by its number; many of them on several threads.
fn colours(pixels: usize, colour: impl Fn(usize) -> [u8; 3] + Sync) -> Result<Vec<u8>> {
    let mut rgb = vec![0; pixels * 3];
    let each = if pixels < MANY { pixels.max(1) } else { pixels.div_ceil(cores()) };
    let done = on_threads(rgb.chunks_mut(each * 3).enumerate(), |(part, rgb)| {
        for (i, out) in rgb.as_chunks_mut::<3>().0.iter_mut().enumerate() {
            *out = colour(part * each + i);
        }
        Ok(())
    });
    done.map_err(|error| Error::Internal(format!("colours: {error}")))?;
    Ok(rgb)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::config::Fit;
    use crate::frame::Preprocess;

    fn plane(data: &[u8], width: usize, height: usize, stride: usize) -> Plane<'_> {
        Plane { data, width, height, stride }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(60))]
        /// The order of the colours, a fourth byte and padded rows make no difference, to the bit.
        #[test]
        fn packed_frames_are_prepared_as_frames_are(
            (width, height) in (16usize..150, 16usize..150),
            padding in 0usize..9,
            seed in any::<u32>(),
            roi in prop::option::of((0.0f64..0.5, 0.0f64..0.5, 0.3f64..0.5, 0.3f64..0.5)),
            pad in any::<bool>(),
        ) {
            let noise = |i: usize| ((i as u32).wrapping_mul(2_654_435_761).wrapping_add(seed) >> 13) as u8;
            let rgb: Vec<u8> = (0..width * height * 3).map(noise).collect();
            let frame = Frame::new(width, height, rgb.clone()).unwrap();
            let fit = if pad { Fit::Pad } else { Fit::Stretch };
            let preprocess = Preprocess { size: 64.into(), fit, roi: roi.map(|(x, y, w, h)| [x, y, w, h]) };
            let expected = preprocess.apply(&frame).unwrap();
            for (bytes, order) in [(3, [0, 1, 2]), (3, [2, 1, 0]), (4, [0, 1, 2]), (4, [2, 1, 0]), (4, [1, 2, 3]), (4, [3, 2, 1])] {
                let stride = width * bytes + padding;
                let mut data = vec![seed as u8; stride * height];
                for (y, row) in rgb.chunks_exact(width * 3).enumerate() {
                    for (x, pixel) in row.chunks_exact(3).enumerate() {
                        for (channel, value) in order.into_iter().zip(pixel) {
                            data[y * stride + x * bytes + channel] = *value;
                        }
                    }
                }
                let view = View::Packed { plane: plane(&data, width, height, stride), bytes, rgb: order };
                prop_assert_eq!(&preprocess.apply_view(&view).unwrap(), &expected);
            }
            let gray: Vec<u8> = (0..width * height).map(noise).collect();
            let three = Frame::new(width, height, gray.iter().flat_map(|&v| [v; 3]).collect()).unwrap();
            let view = View::Gray(plane(&gray, width, height, width));
            prop_assert_eq!(preprocess.apply_view(&view).unwrap(), preprocess.apply(&three).unwrap());
        }
    }

    /// ```python
    /// # ITU-R BT.601, video range: (16, 128, 128) black, (235, 128, 128) white, (81, 90, 240) red, (145, 54, 34) green
    /// y, cb, cr = 81, 90, 240
    /// r = 1.164384 * (y - 16) + 1.596027 * (cr - 128)                               # 254.4 -> 254
    /// g = 1.164384 * (y - 16) - 0.391762 * (cb - 128) - 0.812968 * (cr - 128)       # -0.5 -> 0
    /// b = 1.164384 * (y - 16) + 2.017232 * (cb - 128)                               # -0.97 -> 0
    /// ```
    #[test]
    fn yuv_becomes_the_colours_of_the_standard() {
        let yuv = Yuv { kr: 0.299, kb: 0.114, full_range: false };
        for (values, expected) in [
            ([16, 128, 128], [0, 0, 0]),
            ([235, 128, 128], [255, 255, 255]),
            ([81, 90, 240], [254, 0, 0]),
            ([145, 54, 34], [0, 255, 1]),
            ([41, 240, 110], [0, 0, 255]),
        ] {
            let [y, u, v] = values;
            let (luma, us, vs, uvs) = (vec![y; 19 * 17], vec![u; 90], vec![v; 90], [u, v].repeat(90));
            let (luma, half) = (plane(&luma, 19, 17, 19), |data, stride| plane(data, 10, 9, stride));
            let views = [
                View::Planar { luma, chroma: [half(&us, 10), half(&vs, 10)], yuv },
                View::SemiPlanar { luma, chroma: half(&uvs, 20), yuv },
            ];
            for view in views {
                let preprocess = Preprocess { size: 64.into(), fit: Fit::Stretch, roi: None };
                let prepared = preprocess.apply_view(&view).unwrap();
                for pixel in prepared.frame.rgb().chunks_exact(3) {
                    assert!(
                        pixel.iter().zip(expected).all(|(a, b): (&u8, u8)| a.abs_diff(b) <= 1),
                        "{values:?}: {pixel:?}"
                    );
                }
            }
        }
    }

    #[test]
    fn planes_that_are_too_short_are_refused() {
        let data = vec![0; 64 * 64];
        let preprocess = Preprocess { size: 64.into(), fit: Fit::Stretch, roi: None };
        for wrong in [
            plane(&data, 64, 65, 64),
            plane(&data, 65, 10, 64),
            plane(&data, 64, 0, 64),
            plane(&data, 64, usize::MAX, 64),
        ] {
            assert!(preprocess.apply_view(&View::Gray(wrong)).is_err());
        }
        let yuv = Yuv { kr: 0.299, kb: 0.114, full_range: true };
        let (luma, short) = (plane(&data, 64, 64, 64), plane(&data[..900], 32, 32, 32));
        assert!(preprocess.apply_view(&View::Planar { luma, chroma: [short, short], yuv }).is_err());
    }
}
