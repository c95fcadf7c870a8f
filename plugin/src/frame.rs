//! From a mapped video frame to the one preprocessing of `diad`: which planes it has and what their values mean.

use diad::frame::{Plane, Prepared, Preprocess, View, Yuv};
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

/// Always a sink and always a source pad with [`caps`].
pub(crate) fn templates() -> Vec<gst::PadTemplate> {
    use gst::{PadDirection, PadPresence, PadTemplate};
    let make = |name, direction| PadTemplate::new(name, direction, PadPresence::Always, &caps());
    [make("sink", PadDirection::Sink), make("src", PadDirection::Src)].into_iter().flatten().collect()
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
    let (width, height) = (frame.width() as usize, frame.height() as usize);
    let plane = |index: u32, halved: bool| -> Result<Plane<'_>, Box<dyn std::error::Error>> {
        let side = |n: usize| if halved { n.div_ceil(2) } else { n };
        let stride = usize::try_from(frame.plane_stride()[index as usize])?;
        Ok(Plane { data: frame.plane_data(index)?, width: side(width), height: side(height), stride })
    };
    let yuv = || {
        let (kr, kb, full_range) = colorimetry(frame.info());
        Yuv { kr, kb, full_range }
    };
    let view = match (packed(frame.format()), frame.format()) {
        (Some((bytes, rgb)), _) => View::Packed { plane: plane(0, false)?, bytes, rgb },
        (None, VideoFormat::Gray8) => View::Gray(plane(0, false)?),
        (None, VideoFormat::Nv12) => View::SemiPlanar { luma: plane(0, false)?, chroma: plane(1, true)?, yuv: yuv() },
        (None, _) => View::Planar { luma: plane(0, false)?, chroma: [plane(1, true)?, plane(2, true)?], yuv: yuv() },
    };
    Ok(preprocess.apply_view(&view)?)
}

#[cfg(test)]
mod tests {
    use diad::config::Fit;

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
            let prepared = prepare(&frame, &Preprocess { size: 64, fit: Fit::Stretch, roi: None }).unwrap();
            assert!(prepared.frame.rgb().iter().all(|&v| v == 128), "{format:?}: {:?}", &prepared.frame.rgb()[..3]);
        }
    }
}
