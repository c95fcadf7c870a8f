//! From a mapped video frame to the model's input: pixels become RGB, then the one preprocessing of `diad` does the rest.

use diad::frame::{Frame, Prepared, Preprocess};
use gst_video::prelude::*;
use gst_video::{VideoColorMatrix, VideoColorRange, VideoFormat, VideoFrameRef, VideoInfo};

/// Formats that are taken, best first.
pub(crate) const FORMATS: [VideoFormat; 11] = [
    VideoFormat::Rgb,
    VideoFormat::Bgr,
    VideoFormat::Rgbx,
    VideoFormat::Bgrx,
    VideoFormat::Xrgb,
    VideoFormat::Xbgr,
    VideoFormat::Rgba,
    VideoFormat::Bgra,
    VideoFormat::Gray8,
    VideoFormat::I420,
    VideoFormat::Nv12,
];

/// Caps of both pads.
pub(crate) fn caps() -> gst::Caps {
    gst_video::VideoCapsBuilder::new().format_list(FORMATS).width_range(16..).height_range(16..).build()
}

/// Where the colours of a pixel of a packed format lie: bytes per pixel, offsets of red, green and blue.
pub(crate) fn packed(format: VideoFormat) -> Option<(usize, [usize; 3])> {
    match format {
        VideoFormat::Rgb => Some((3, [0, 1, 2])),
        VideoFormat::Bgr => Some((3, [2, 1, 0])),
        VideoFormat::Rgbx | VideoFormat::Rgba => Some((4, [0, 1, 2])),
        VideoFormat::Bgrx | VideoFormat::Bgra => Some((4, [2, 1, 0])),
        VideoFormat::Xrgb => Some((4, [1, 2, 3])),
        VideoFormat::Xbgr => Some((4, [3, 2, 1])),
        _ => None,
    }
}

/// Kr and Kb of a frame's colour matrix, and whether it uses all of 0 to 255. What caps do not say is taken as GStreamer
/// takes it: BT.601 below 720 lines, BT.709 from there on, video range.
pub(crate) fn colorimetry(info: &VideoInfo) -> (f64, f64, bool) {
    let colorimetry = info.colorimetry();
    let (kr, kb) = match colorimetry.matrix() {
        VideoColorMatrix::Bt709 => (0.2126, 0.0722),
        VideoColorMatrix::Bt2020 => (0.2627, 0.0593),
        VideoColorMatrix::Smpte240m => (0.212, 0.087),
        VideoColorMatrix::Fcc => (0.30, 0.11),
        VideoColorMatrix::Bt601 => (0.299, 0.114),
        _ if info.height() >= 720 => (0.2126, 0.0722),
        _ => (0.299, 0.114),
    };
    (kr, kb, colorimetry.range() == VideoColorRange::Range0_255)
}

/// The model's input.
///
/// # Errors
/// When the frame's planes are not what its info says, or the region of interest has no pixel in it.
pub(crate) fn prepare(
    frame: &VideoFrameRef<&gst::BufferRef>,
    preprocess: &Preprocess,
) -> Result<Prepared, Box<dyn std::error::Error>> {
    Ok(preprocess.apply(&rgb(frame)?)?)
}

/// All pixels as RGB.
pub(crate) fn rgb(frame: &VideoFrameRef<&gst::BufferRef>) -> Result<Frame, Box<dyn std::error::Error>> {
    let (width, height) = (frame.width() as usize, frame.height() as usize);
    let plane = |index: u32| -> Result<(&[u8], usize), Box<dyn std::error::Error>> {
        Ok((frame.plane_data(index)?, usize::try_from(frame.plane_stride()[index as usize])?))
    };
    let mut out = Vec::with_capacity(width * height * 3);
    let (data, stride) = plane(0)?;
    if let Some((bytes, [r, g, b])) = packed(frame.format()) {
        for row in rows(data, stride, width * bytes, height)? {
            match (bytes, [r, g, b]) {
                (3, [0, 1, 2]) => out.extend_from_slice(row),
                (3, _) => out.extend(row.chunks_exact(3).flat_map(|p| [p[r], p[g], p[b]])),
                _ => out.extend(row.chunks_exact(4).flat_map(|p| [p[r], p[g], p[b]])),
            }
        }
    } else if frame.format() == VideoFormat::Gray8 {
        for row in rows(data, stride, width, height)? {
            out.extend(row.iter().flat_map(|&v| [v; 3]));
        }
    } else {
        let (pairs, lines) = (width.div_ceil(2), height.div_ceil(2));
        let chroma = match frame.format() {
            VideoFormat::Nv12 => {
                let (data, stride) = plane(1)?;
                Chroma::Interleaved(rows(data, stride, pairs * 2, lines)?.collect())
            }
            _ => {
                let ((u, su), (v, sv)) = (plane(1)?, plane(2)?);
                Chroma::Planar(rows(u, su, pairs, lines)?.collect(), rows(v, sv, pairs, lines)?.collect())
            }
        };
        from_yuv(rows(data, stride, width, height)?, &chroma, &Yuv::new(frame.info()), width, &mut out);
    }
    Ok(Frame::new(width, height, out)?)
}

/// `count` rows of `length` bytes that lie `stride` apart.
fn rows(data: &[u8], stride: usize, length: usize, count: usize) -> Result<impl Iterator<Item = &[u8]>, String> {
    if stride < length || data.len() < stride * (count - 1) + length {
        return Err(format!("a plane of {} bytes for {count} rows of {length}, {stride} apart", data.len()));
    }
    Ok((0..count).map(move |row| &data[row * stride..][..length]))
}

/// Rows of colour difference, one per two rows of pixels.
enum Chroma<'a> {
    Planar(Vec<&'a [u8]>, Vec<&'a [u8]>),
    Interleaved(Vec<&'a [u8]>),
}

/// Factors of the way from Y'CbCr to R'G'B', in units of 1 / 2^14.
struct Yuv {
    black: i32,
    luma: i32,
    red_v: i32,
    green_u: i32,
    green_v: i32,
    blue_u: i32,
}

const BITS: u32 = 14;

impl Yuv {
    /// ITU-R BT.601 / 709 with the matrix's Kr and Kb.
    fn new(info: &VideoInfo) -> Self {
        let (kr, kb, full) = colorimetry(info);
        let kg = 1.0 - kr - kb;
        let (luma, chroma) = if full { (1.0, 1.0) } else { (255.0 / 219.0, 255.0 / 224.0) };
        let fixed = |x: f64| (x * f64::from(1 << BITS)).round() as i32;
        Self {
            black: if full { 0 } else { 16 },
            luma: fixed(luma),
            red_v: fixed(2.0 * (1.0 - kr) * chroma),
            green_u: fixed(-2.0 * (1.0 - kb) * kb / kg * chroma),
            green_v: fixed(-2.0 * (1.0 - kr) * kr / kg * chroma),
            blue_u: fixed(2.0 * (1.0 - kb) * chroma),
        }
    }
}

/// Each colour difference serves the four pixels it belongs to.
fn from_yuv<'a>(luma: impl Iterator<Item = &'a [u8]>, chroma: &Chroma<'_>, yuv: &Yuv, width: usize, out: &mut Vec<u8>) {
    let round = 1 << (BITS - 1);
    let mut shifts: Vec<[i32; 3]> = vec![[0; 3]; width.div_ceil(2)];
    let shift = |u: u8, v: u8| {
        let (u, v) = (i32::from(u) - 128, i32::from(v) - 128);
        [yuv.red_v * v + round, yuv.green_u * u + yuv.green_v * v + round, yuv.blue_u * u + round]
    };
    for (y, row) in luma.enumerate() {
        if y % 2 == 0 {
            match chroma {
                Chroma::Planar(us, vs) => {
                    for ((s, &u), &v) in shifts.iter_mut().zip(us[y / 2]).zip(vs[y / 2]) {
                        *s = shift(u, v);
                    }
                }
                Chroma::Interleaved(rows) => {
                    for (s, uv) in shifts.iter_mut().zip(rows[y / 2].chunks_exact(2)) {
                        *s = shift(uv[0], uv[1]);
                    }
                }
            }
        }
        for (pair, shift) in row.chunks(2).zip(&shifts) {
            for &luma in pair {
                let level = (i32::from(luma) - yuv.black) * yuv.luma;
                out.extend(shift.map(|s| ((level + s) >> BITS).clamp(0, 255) as u8));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn info(format: VideoFormat, width: u32, height: u32) -> VideoInfo {
        VideoInfo::builder(format, width, height).build().unwrap()
    }

    fn read(info: &VideoInfo, fill: impl Fn(usize) -> u8) -> Frame {
        let buffer = gst::Buffer::from_slice((0..info.size()).map(fill).collect::<Vec<u8>>());
        rgb(&VideoFrameRef::from_buffer_ref_readable(&buffer, info).unwrap()).unwrap()
    }

    #[test]
    fn packed_formats_give_the_same_pixels() {
        gst::init().unwrap();
        for format in &FORMATS[..8] {
            let info = info(*format, 17, 16);
            let (bytes, order) = packed(*format).unwrap();
            let stride = info.stride()[0] as usize;
            let frame = read(&info, |i| {
                let (x, offset) = (i % stride / bytes, i % stride % bytes);
                order.iter().position(|o| *o == offset).map_or(99, |channel| (x * 3 + channel) as u8)
            });
            assert_eq!(frame.rgb()[..17 * 3], (0..17 * 3).collect::<Vec<u8>>()[..], "{format:?}");
        }
        let gray = read(&info(VideoFormat::Gray8, 17, 16), |i| i as u8);
        assert_eq!(gray.rgb()[..6], [0, 0, 0, 1, 1, 1]);
        assert_eq!(gray.rgb()[17 * 3], 20, "rows are 20 bytes apart");
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
        gst::init().unwrap();
        for (yuv, expected) in [
            ([16, 128, 128], [0, 0, 0]),
            ([235, 128, 128], [255, 255, 255]),
            ([81, 90, 240], [254, 0, 0]),
            ([145, 54, 34], [0, 255, 1]),
            ([41, 240, 110], [0, 0, 255]),
        ] {
            for format in [VideoFormat::I420, VideoFormat::Nv12] {
                let info = info(format, 19, 17);
                let offsets = info.offset();
                let frame = read(&info, |i| match format {
                    _ if i < offsets[1] => yuv[0],
                    VideoFormat::I420 if i < offsets[2] => yuv[1],
                    VideoFormat::I420 => yuv[2],
                    _ => yuv[1 + (i - offsets[1]) % 2],
                });
                assert_eq!((frame.width(), frame.height()), (19, 17));
                for pixel in frame.rgb().chunks_exact(3) {
                    assert!(pixel.iter().zip(expected).all(|(a, b)| a.abs_diff(b) <= 1), "{yuv:?}: {pixel:?}");
                }
            }
        }
    }
}
