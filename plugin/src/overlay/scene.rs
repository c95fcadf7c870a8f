//! From a result to what is drawn on the frame.

use diad::detector::{ClassSource, Detection, Verdict};
use diad::heatmap::HeatScale;
use gst::prelude::*;
use gst_video::prelude::*;
use gst_video::{VideoFormat, VideoFrameRef, VideoInfo};

use super::OverlayFlags;
use super::paint::{self, Banner, BoxMark, Canvas, Contour, Heat, Layout, Map, Plane, Scene, Yuv};
use crate::frame::{colorimetry, corner, offset, packed};
use crate::meta::{self, DiadMap, THRESHOLD_LEVEL};
use crate::result::{DiadResult, Inspection};

const GREEN: [u8; 3] = [0, 150, 60];
const AMBER: [u8; 3] = [240, 170, 0];
const RED: [u8; 3] = [215, 25, 30];
const MAGENTA: [u8; 3] = [160, 30, 150];
const GREY: [u8; 3] = [110, 110, 110];
const WHITE: [u8; 3] = [255, 255, 255];

/// What is drawn, and how.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Style {
    pub(crate) overlay: OverlayFlags,
    /// Opacity of the heat map, 0 to 1.
    pub(crate) alpha: f32,
}

/// The map that `element` found as grey levels on the scale of its pixel threshold, cut to the part that shows the frame.
pub(crate) fn map(detection: &Detection, element: &str) -> DiadMap {
    let map = &detection.map;
    let threshold = detection.pixel_threshold.max(f32::MIN_POSITIVE);
    let level = |value: f32| {
        let level = (value / threshold * f32::from(THRESHOLD_LEVEL)).round().clamp(0.0, 255.0) as u8;
        // What rounding moved onto the threshold goes back to its side.
        if value > threshold { level.max(THRESHOLD_LEVEL + 1) } else { level.min(THRESHOLD_LEVEL) }
    };
    let [x, y, width, height] = map.cells();
    let rows = map.values.chunks_exact(map.size.width).skip(y).take(height);
    let levels = rows.flat_map(|row| row[x..x + width].iter().map(|&value| level(value))).collect();
    let scale = f64::from(threshold) / f64::from(THRESHOLD_LEVEL);
    DiadMap { width, height, levels, scale, shown: map.shown(), element: element.to_owned() }
}

/// Draws on `buffer`, in place if nobody else holds its memory, and leaves a mark there: no `diadfilter` that comes later takes
/// the drawing for a defect.
///
/// # Errors
/// When the buffer cannot be written or is not what `info` says; nothing is drawn then.
pub(crate) fn draw(
    buffer: &mut gst::BufferRef,
    info: &VideoInfo,
    result: &DiadResult,
    maps: &[DiadMap],
    style: Style,
    element: &str,
) -> Result<(), Box<dyn std::error::Error>> {
    let name = info.format().to_str();
    let layout = layout(info.format()).ok_or_else(|| format!("frames of format {name} cannot be drawn on"))?;
    let (kr, kb, full) = colorimetry(info);
    let (width, height) = (info.width() as usize, info.height() as usize);
    let corner = {
        let coded = VideoFrameRef::from_buffer_ref_readable(buffer, info)?;
        corner(buffer, coded.info(), info)?
    };
    let mut frame = VideoFrameRef::from_buffer_ref_writable(buffer, info)?;
    let (coded, strides) = (frame.info().clone(), frame.plane_stride().to_vec());
    let mut planes = Vec::new();
    for (index, data) in frame.planes_data_mut().into_iter().enumerate().take(info.n_planes() as usize) {
        let stride = strides[index].max(0) as usize;
        let start = offset(&coded, index, stride, corner).min(data.len());
        planes.push(Plane { data: &mut data[start..], stride });
    }
    let mut canvas = Canvas::new(width, height, layout, Yuv::new(kr as f32, kb as f32, full), planes)?;

    let scale = HeatScale::with_opacity(1.0, style.alpha);
    let colours: [[u8; 4]; 256] = std::array::from_fn(|level| scale.rgba(level as f32 / f32::from(THRESHOLD_LEVEL)));
    let draws = |flag: OverlayFlags| style.overlay.contains(flag);
    let shown = |[x, y, w, h]: [f64; 4]| [x * width as f64, y * height as f64, w * width as f64, h * height as f64];
    let boxes = || result.results.iter().flat_map(|inspection| boxes(inspection, width, height)).collect();
    let scene = Scene {
        maps: maps
            .iter()
            .map(|map| Map {
                values: &map.levels,
                width: map.width,
                height: map.height,
                shown: shown(map.shown),
                heat: draws(OverlayFlags::HEATMAP).then_some(Heat { colours: &colours, opacity: 1.0 }),
                contour: draws(OverlayFlags::CONTOUR).then_some(Contour { threshold: THRESHOLD_LEVEL, colour: WHITE }),
            })
            .collect(),
        boxes: if draws(OverlayFlags::BOXES) { boxes() } else { Vec::new() },
        banner: draws(OverlayFlags::VERDICT).then(|| banner(result)),
        lines: if draws(OverlayFlags::DETAILS) { details(result) } else { Vec::new() },
    };
    paint::draw(&mut canvas, &scene);
    drop(frame);
    meta::set_drawn(buffer, element);
    Ok(())
}

/// Tells the bus that a frame was not drawn on; the frames themselves pass, with their results.
pub(crate) fn warn_undrawn(element: &impl IsA<gst::Element>, error: &dyn std::error::Error) {
    gst::element_warning!(
        element,
        gst::StreamError::Failed,
        ("frames cannot be drawn on and pass as they came: {error}")
    );
}

/// The layout of a format, if it can be drawn on.
pub(super) fn layout(format: VideoFormat) -> Option<Layout> {
    match format {
        VideoFormat::Gray8 => Some(Layout::Gray),
        VideoFormat::I420 => Some(Layout::I420),
        VideoFormat::Nv12 => Some(Layout::Nv12),
        _ => {
            let alpha = matches!(format, VideoFormat::Rgba | VideoFormat::Bgra).then_some(3);
            packed(format).map(|(bytes, rgb)| Layout::Packed { bytes, rgb, alpha })
        }
    }
}

fn colour(verdict: Verdict) -> [u8; 3] {
    match verdict {
        Verdict::Ok => GREEN,
        Verdict::Warn => AMBER,
        Verdict::Ng => RED,
        Verdict::Error => MAGENTA,
        Verdict::Uninspected => GREY,
    }
}

/// `NG  12.34 > 5.60`; a frame that was not inspected says so and why. Of several inspections it is the worst, with its element.
fn banner(result: &DiadResult) -> Banner {
    let name = result.verdict.to_string().to_uppercase();
    let found = result.worst().map(|worst| match (&worst.finding, &worst.reason) {
        (Some(found), _) => {
            let sign = if found.score > found.threshold { '>' } else { '<' };
            format!("  {:.2} {sign} {:.2}", found.score, found.threshold)
        }
        (None, Some(reason)) => format!("  {}", reason.chars().take(60).collect::<String>()),
        (None, None) => String::new(),
    });
    let element = result.worst().filter(|_| result.results.len() > 1).map(|worst| format!("  {}", worst.element));
    Banner { text: [Some(name), element, found].into_iter().flatten().collect(), colour: colour(result.verdict) }
}

fn details(result: &DiadResult) -> Vec<String> {
    let mut lines = Vec::new();
    for inspection in &result.results {
        let element = if result.results.len() > 1 { format!("{}: ", inspection.element) } else { String::new() };
        if let Some(found) = &inspection.finding {
            let class = match found.class_source {
                ClassSource::UnknownProduct => format!("unknown product, nearest {}", found.class),
                ClassSource::NotLocated => format!("{}, not located", found.class),
                _ => found.class.clone(),
            };
            lines.push(format!("{element}{class}  P{:.1}", found.percentile));
        }
    }
    let part = result.part_id.as_ref().map(|part| format!("part {part}  ")).unwrap_or_default();
    if let Some(last) = result.results.last() {
        lines.push(format!("{part}#{}  {:.0} ms", last.frame_id, last.timing.total as f64 / 1e6));
    }
    lines
}

/// A box per region; its number is how many times over the threshold its peak is. The frame may have been scaled since.
fn boxes(inspection: &Inspection, width: usize, height: usize) -> Vec<BoxMark> {
    let Some(found) = &inspection.finding else { return Vec::new() };
    let seen = [inspection.width, inspection.height].map(|side| f64::from(side.max(1)));
    let (sx, sy) = (width as f64 / seen[0], height as f64 / seen[1]);
    let verdict = if inspection.frame_verdict == Verdict::Ng { Verdict::Ng } else { Verdict::Warn };
    let mark = |region: &diad::regions::Region| BoxMark {
        x: (f64::from(region.x) * sx).round() as i32,
        y: (f64::from(region.y) * sy).round() as i32,
        width: (f64::from(region.width) * sx).round() as u32,
        height: (f64::from(region.height) * sy).round() as u32,
        colour: colour(verdict),
        text: format!("{:.1}x", region.peak / found.pixel_threshold.max(f32::MIN_POSITIVE)),
    };
    found.regions.iter().map(mark).collect()
}
