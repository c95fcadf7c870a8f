//! From a mapped video frame to the one preprocessing of `diad`: which planes it has and what their values mean.

use diad::frame::{Plane, View, Yuv};
use gst_video::prelude::*;
use gst_video::{VideoColorMatrix, VideoColorRange, VideoFormat, VideoFrameRef, VideoInfo, VideoInterlaceMode};

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

/// Always a sink and always a source pad with [`caps`].
pub(crate) fn templates() -> Vec<gst::PadTemplate> {
    pads(&caps(), &caps())
}

/// Always a sink and always a source pad, each with its caps.
pub(crate) fn pads(sink: &gst::Caps, src: &gst::Caps) -> Vec<gst::PadTemplate> {
    let make = |name, direction, caps| gst::PadTemplate::new(name, direction, gst::PadPresence::Always, caps);
    let both = [make("sink", gst::PadDirection::Sink, sink), make("src", gst::PadDirection::Src, src)];
    both.into_iter().flatten().collect()
}

/// What an element class is called, what it is and does, and the function that makes its pad templates.
macro_rules! described {
    ($name:literal, $class:literal, $does:literal, $templates:expr) => {
        fn metadata() -> Option<&'static gst::subclass::ElementMetadata> {
            static METADATA: std::sync::LazyLock<gst::subclass::ElementMetadata> = std::sync::LazyLock::new(|| {
                gst::subclass::ElementMetadata::new($name, $class, $does, "the diad authors")
            });
            Some(&METADATA)
        }

        fn pad_templates() -> &'static [gst::PadTemplate] {
            static TEMPLATES: std::sync::LazyLock<Vec<gst::PadTemplate>> = std::sync::LazyLock::new($templates);
            &TEMPLATES
        }
    };
}

pub(crate) use described;

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

/// Video whose lines are all of one moment. Of interlaced video, half of the lines show the part where it was a field earlier.
///
/// # Errors
/// When the caps are interlaced or not video; the message says what to do.
pub(crate) fn progressive(caps: &gst::CapsRef) -> Result<VideoInfo, String> {
    let info = VideoInfo::from_caps(caps).map_err(|error| format!("caps {caps}: {error}"))?;
    match info.interlace_mode() {
        VideoInterlaceMode::Progressive => Ok(info),
        mode => {
            Err(format!("interlace-mode = {}: expected progressive video; put deinterlace in front", mode.to_str()))
        }
    }
}

/// A buffer comes back to its pool when the last holder lets go; one without a pool may be wrapped around memory that its owner
/// writes again whenever it likes (aravissrc does).
#[allow(unsafe_code, reason = "the bindings have no accessor for GstBuffer::pool; a valid buffer's field is read")]
pub(crate) fn is_pooled(buffer: &gst::BufferRef) -> bool {
    // SAFETY: a `&BufferRef` points to a live GstBuffer; the field is set before a buffer leaves its pool.
    unsafe { !(*buffer.as_ptr()).pool.is_null() }
}

/// Where the picture lies in a buffer: its left upper corner. A decoder may hand on the whole coded picture and say in a
/// `GstVideoCropMeta` which part of it the caps speak of.
///
/// # Errors
/// When the picture of the size in `caps` does not lie in the buffer of the size in `coded`.
pub(crate) fn corner(buffer: &gst::BufferRef, coded: &VideoInfo, caps: &VideoInfo) -> Result<[usize; 2], String> {
    let (width, height) = (caps.width(), caps.height());
    let crop = buffer.meta::<gst_video::VideoCropMeta>().map(|crop| crop.rect());
    let (x, y, w, h) = crop.unwrap_or((0, 0, width, height));
    let inside = |start: u32, length: u32, side: u32| start.checked_add(length).is_some_and(|end| end <= side);
    if (w, h) != (width, height) || !inside(x, w, coded.width()) || !inside(y, h, coded.height()) {
        let (coded_w, coded_h) = (coded.width(), coded.height());
        return Err(format!(
            "the picture of {w}x{h} at {x},{y} in a buffer of {coded_w}x{coded_h} is not the {width}x{height} of the caps"
        ));
    }
    check_planes(buffer, coded)?;
    Ok([x as usize, y as usize])
}

/// Refuses planes that do not lie in the buffer as its `GstVideoMeta` says: the bindings take its word and would read, or draw,
/// beyond the end.
fn check_planes(buffer: &gst::BufferRef, coded: &VideoInfo) -> Result<(), String> {
    let format = coded.format_info();
    let meta = buffer.meta::<gst_video::VideoMeta>();
    for plane in 0..coded.n_planes() as usize {
        let offset = meta.as_ref().map_or(coded.offset()[plane], |meta| meta.offset()[plane]);
        let stride = coded.stride()[plane];
        // In each of FORMATS the component with the number of a plane is the plane's first.
        let scaled = |side: u32, by: u32| (side as usize).div_ceil(1 << by);
        let (columns, rows) =
            (scaled(coded.width(), format.w_sub()[plane]), scaled(coded.height(), format.h_sub()[plane]));
        let row = columns * format.pixel_stride()[plane] as usize;
        let end = usize::try_from(stride).ok().filter(|stride| *stride >= row && *stride <= i32::MAX as usize / rows);
        let end = end.and_then(|stride| offset.checked_add(stride * rows)).filter(|end| *end <= buffer.size());
        let memories = end.and_then(|end| buffer.find_memory(offset..end)).map_or(0, |(memories, _)| memories.len());
        if memories != 1 {
            return Err(format!(
                "plane {plane} of {rows} rows of {row} bytes, from byte {offset} with a stride of {stride}, does not lie in one \
                 memory of the buffer of {} bytes",
                buffer.size()
            ));
        }
    }
    Ok(())
}

/// Bytes from the start of a plane to the sample of the pixel at `x`, `y`.
pub(crate) fn offset(info: &VideoInfo, plane: usize, stride: usize, [x, y]: [usize; 2]) -> usize {
    let format = info.format_info();
    // In each of FORMATS the component with the number of a plane is the plane's first.
    let (right, down) = (format.w_sub()[plane], format.h_sub()[plane]);
    (y >> down) * stride + (x >> right) * format.pixel_stride()[plane] as usize
}

/// The picture that `caps` speak of.
///
/// # Errors
/// When the frame's planes are not what its info says.
pub(crate) fn view<'a>(
    frame: &'a VideoFrameRef<&gst::BufferRef>,
    caps: &VideoInfo,
) -> Result<View<'a>, Box<dyn std::error::Error>> {
    let corner = corner(frame.buffer(), frame.info(), caps)?;
    let (width, height) = (caps.width() as usize, caps.height() as usize);
    let plane = |index: u32, halved: bool| -> Result<Plane<'a>, Box<dyn std::error::Error>> {
        let side = |n: usize| if halved { n.div_ceil(2) } else { n };
        let stride = usize::try_from(frame.plane_stride()[index as usize])?;
        let start = offset(frame.info(), index as usize, stride, corner);
        let data = frame.plane_data(index)?.get(start..).ok_or("a plane is shorter than its rows")?;
        Ok(Plane { data, width: side(width), height: side(height), stride })
    };
    let yuv = || {
        let (kr, kb, full_range) = colorimetry(caps);
        Yuv { kr, kb, full_range }
    };
    Ok(match (packed(frame.format()), frame.format()) {
        (Some((bytes, rgb)), _) => View::Packed { plane: plane(0, false)?, bytes, rgb },
        (None, VideoFormat::Gray8) => View::Gray(plane(0, false)?),
        (None, VideoFormat::Nv12) => View::SemiPlanar { luma: plane(0, false)?, chroma: plane(1, true)?, yuv: yuv() },
        (None, _) => View::Planar { luma: plane(0, false)?, chroma: [plane(1, true)?, plane(2, true)?], yuv: yuv() },
    })
}

#[cfg(test)]
mod tests {
    use diad::config::Fit;
    use diad::frame::Preprocess;
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn every_format_of_one_grey_is_that_grey() {
        gst::init().unwrap();
        for format in FORMATS {
            let info = VideoInfo::builder(format, 19, 17).build().unwrap();
            // 126 in video range is 128 in full range; chroma is neutral.
            let video = matches!(format, VideoFormat::I420 | VideoFormat::Nv12);
            let fill = |i: usize| if video && i < info.offset()[1] { 126 } else { 128 };
            let buffer = gst::Buffer::from_slice((0..info.size()).map(fill).collect::<Vec<u8>>());
            let frame = VideoFrameRef::from_buffer_ref_readable(&buffer, &info).unwrap();
            let preprocess = Preprocess { size: 64.into(), fit: Fit::Stretch, roi: None };
            let prepared = preprocess.apply_view(&view(&frame, &info).unwrap()).unwrap();
            assert!(prepared.frame.rgb().iter().all(|&v| v == 128), "{format:?}: {:?}", &prepared.frame.rgb()[..3]);
        }
    }

    /// A picture in the middle of a larger buffer with rows of its own length, as a decoder hands it on.
    #[test]
    fn the_cropped_part_of_a_padded_buffer_is_the_picture() {
        gst::init().unwrap();
        let (width, height, x, y) = (18u32, 16u32, 6u32, 4u32);
        for format in FORMATS {
            let caps = VideoInfo::builder(format, width, height).build().unwrap();
            let coded = VideoInfo::builder(format, 32, 24).build().unwrap();
            // Every row has 16 bytes more than it needs, and the first plane starts at byte 8.
            let planes = coded.n_planes() as usize;
            let strides: Vec<i32> = coded.stride().iter().take(planes).map(|stride| stride + 16).collect();
            let rows = |plane: usize| if plane == 0 { 24 } else { 12 };
            let offsets: Vec<usize> =
                (0..planes).map(|p| 8 + (0..p).map(|q| strides[q] as usize * rows(q)).sum::<usize>()).collect();
            let size = offsets[planes - 1] + strides[planes - 1] as usize * rows(planes - 1);
            let mut bytes = vec![7u8; size]; // what no one may see
            let sample = |plane: usize, row: usize, byte: usize| (40 + plane * 50 + row * 3 + byte) as u8;
            let mut tight = vec![0u8; caps.size()];
            for plane in 0..planes {
                let info = caps.format_info();
                let (right, down, step) =
                    (info.w_sub()[plane], info.h_sub()[plane], info.pixel_stride()[plane] as usize);
                let (columns, lines) = ((width >> right) as usize * step, (height >> down) as usize);
                let corner =
                    offsets[plane] + (y >> down) as usize * strides[plane] as usize + (x >> right) as usize * step;
                for row in 0..lines {
                    for byte in 0..columns {
                        bytes[corner + row * strides[plane] as usize + byte] = sample(plane, row, byte);
                        tight[caps.offset()[plane] + row * caps.stride()[plane] as usize + byte] =
                            sample(plane, row, byte);
                    }
                }
            }
            let mut buffer = gst::Buffer::from_slice(bytes);
            {
                let buffer = buffer.make_mut();
                gst_video::VideoMeta::add_full(
                    buffer,
                    gst_video::VideoFrameFlags::empty(),
                    format,
                    32,
                    24,
                    &offsets,
                    &strides,
                )
                .unwrap();
                gst_video::VideoCropMeta::add(buffer, (x, y, width, height));
            }
            let preprocess = Preprocess { size: 32.into(), fit: Fit::Stretch, roi: None };
            let cropped = VideoFrameRef::from_buffer_ref_readable(&buffer, &caps).unwrap();
            let tight = gst::Buffer::from_slice(tight);
            let plain = VideoFrameRef::from_buffer_ref_readable(&tight, &caps).unwrap();
            let prepare = |frame| preprocess.apply_view(&view(frame, &caps).unwrap()).unwrap().frame;
            assert_eq!(prepare(&cropped), prepare(&plain), "{format:?}");
        }
    }

    #[test]
    fn a_picture_outside_of_its_buffer_is_refused() {
        gst::init().unwrap();
        let info = |width, height| VideoInfo::builder(VideoFormat::Gray8, width, height).build().unwrap();
        let mut buffer = gst::Buffer::with_size(64 * 64).unwrap();
        assert_eq!(corner(&buffer, &info(64, 64), &info(32, 32)), Ok([0, 0]));
        assert!(corner(&buffer, &info(32, 32), &info(64, 64)).unwrap_err().contains("not the 64x64 of the caps"));
        gst_video::VideoCropMeta::add(buffer.make_mut(), (40, 0, 32, 32));
        assert!(corner(&buffer, &info(64, 64), &info(32, 32)).unwrap_err().contains("32x32 at 40,0"));
    }

    #[test]
    fn interlaced_video_is_refused_with_what_helps() {
        gst::init().unwrap();
        let caps = |mode: &str| {
            let caps = format!("video/x-raw,format=I420,width=64,height=64,framerate=25/1,interlace-mode={mode}");
            progressive(&caps.parse::<gst::Caps>().unwrap())
        };
        assert!(caps("progressive").is_ok());
        for mode in ["interleaved", "mixed"] {
            let words = caps(mode).unwrap_err();
            assert!(words.contains(mode) && words.contains("deinterlace"), "{words}");
        }
    }

    proptest! {
        /// Whatever a buffer says of itself: it is prepared, or refused in words.
        #[test]
        fn no_layout_of_a_buffer_panics(
            format in prop::sample::select(FORMATS.as_slice()),
            (width, height) in (16..80u32, 16..80u32),
            coded in prop::option::of((1..100u32, 1..100u32)),
            size in 0..20_000usize,
            offsets in prop::array::uniform3(prop_oneof![0..20_000usize, Just(usize::MAX)]),
            strides in prop::array::uniform3(prop_oneof![-300..500i32, Just(i32::MAX), Just(i32::MIN)]),
            crop in prop::option::of(prop::array::uniform4(prop_oneof![0..90u32, Just(u32::MAX)])),
        ) {
            gst::init().unwrap();
            let caps = VideoInfo::builder(format, width, height).build().unwrap();
            let mut buffer = gst::Buffer::from_mut_slice(vec![7u8; size]);
            {
                let buffer = buffer.get_mut().unwrap();
                if let Some((w, h)) = coded {
                    let planes = caps.n_planes() as usize;
                    let flags = gst_video::VideoFrameFlags::empty();
                    let (offsets, strides) = (&offsets[..planes], &strides[..planes]);
                    let _ = gst_video::VideoMeta::add_full(buffer, flags, format, w, h, offsets, strides);
                }
                if let Some([x, y, w, h]) = crop {
                    gst_video::VideoCropMeta::add(buffer, (x, y, w, h));
                }
            }
            if let Ok(frame) = VideoFrameRef::from_buffer_ref_readable(&buffer, &caps) {
                let preprocess = Preprocess { size: 32.into(), fit: Fit::Stretch, roi: None };
                match view(&frame, &caps).and_then(|view| Ok(preprocess.apply_view(&view)?)) {
                    Ok(prepared) => prop_assert_eq!(prepared.frame.rgb().len(), 32 * 32 * 3),
                    Err(error) => prop_assert!(!error.to_string().is_empty()),
                }
            }
        }

        /// Caps of any text are taken or refused.
        #[test]
        fn no_caps_panic(text in "video/x-raw(, [a-z-]{1,16}=(\\(int\\)|\\(string\\)|)[0-9a-z/-]{1,9}){0,5}") {
            gst::init().unwrap();
            if let Ok(caps) = text.parse::<gst::Caps>() {
                let _ = progressive(&caps);
            }
        }
    }
}
