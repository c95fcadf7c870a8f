//! From a result to what is drawn on the frame; `diadfilter` and `diadoverlay` draw through here.

use diad::detector::{Detection, Verdict};
use diad::heatmap::HeatScale;
use gst_video::prelude::*;
use gst_video::{VideoFrameRef, VideoInfo};

use crate::diadfilter::OverlayFlags;
use crate::draw::{self, Banner, BoxMark, Canvas, Contour, Heat, Layout, Map, Plane, Scene, Yuv};
use crate::frame::colorimetry;
use crate::meta::{DiadMap, THRESHOLD_LEVEL};
use crate::result::DiadResult;

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

/// The map of a detection as grey levels on the scale of its pixel threshold, cut to the part that shows the frame.
pub(crate) fn map(detection: &Detection) -> DiadMap {
    let map = &detection.map;
    let threshold = detection.pixel_threshold.max(f32::MIN_POSITIVE);
    let level = |value: f32| {
        let level = (value / threshold * f32::from(THRESHOLD_LEVEL)).round().clamp(0.0, 255.0) as u8;
        // What rounding moved onto the threshold goes back to its side.
        if value > threshold { level.max(THRESHOLD_LEVEL + 1) } else { level.min(THRESHOLD_LEVEL) }
    };
    let [x, y, width, height] = map.cells();
    let rows = map.values.chunks_exact(map.side).skip(y).take(height);
    let levels = rows.flat_map(|row| row[x..x + width].iter().map(|&value| level(value))).collect();
    DiadMap { width, height, levels, scale: f64::from(threshold) / f64::from(THRESHOLD_LEVEL), shown: map.shown() }
}

/// Draws on `buffer`, in place if nobody else holds its memory.
///
/// # Errors
/// When the buffer cannot be written or is not what `info` says.
pub(crate) fn draw(
    buffer: &mut gst::BufferRef,
    info: &VideoInfo,
    result: &DiadResult,
    map: Option<&DiadMap>,
    style: Style,
) -> Result<(), Box<dyn std::error::Error>> {
    let name = info.format().to_str();
    let layout = Layout::from_name(name).ok_or_else(|| format!("frames of format {name} cannot be drawn on"))?;
    let (kr, kb, full) = colorimetry(info);
    let (width, height) = (info.width() as usize, info.height() as usize);
    let mut frame = VideoFrameRef::from_buffer_ref_writable(buffer, info)?;
    let strides = frame.plane_stride().to_vec();
    let mut data = frame.planes_data_mut().into_iter().zip(strides).take(info.n_planes() as usize);
    let planes = data.by_ref().map(|(data, stride)| Plane { data, stride: stride.max(0) as usize }).collect();
    let mut canvas = Canvas::new(width, height, layout, Yuv::new(kr as f32, kb as f32, full), planes)?;

    let scale = HeatScale::with_opacity(1.0, style.alpha);
    let colours: [[u8; 4]; 256] = std::array::from_fn(|level| scale.rgba(level as f32 / f32::from(THRESHOLD_LEVEL)));
    let scene = Scene {
        map: map.map(|map| Map {
            values: &map.levels,
            width: map.width,
            height: map.height,
            shown: {
                let [x, y, w, h] = map.shown;
                [x * width as f64, y * height as f64, w * width as f64, h * height as f64]
            },
            heat: style.overlay.contains(OverlayFlags::HEATMAP).then_some(Heat { colours: &colours, opacity: 1.0 }),
            contour: style
                .overlay
                .contains(OverlayFlags::CONTOUR)
                .then_some(Contour { threshold: THRESHOLD_LEVEL, colour: WHITE }),
        }),
        boxes: if style.overlay.contains(OverlayFlags::BOXES) { boxes(result, width, height) } else { Vec::new() },
        banner: style.overlay.contains(OverlayFlags::VERDICT).then(|| banner(result)),
        lines: if style.overlay.contains(OverlayFlags::DETAILS) { details(result) } else { Vec::new() },
    };
    draw::draw(&mut canvas, &scene);
    Ok(())
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

/// `NG  12.34 > 5.60`; a frame that was not inspected says so and why.
fn banner(result: &DiadResult) -> Banner {
    let name = result.verdict.to_string().to_uppercase();
    let text = match (&result.finding, &result.reason) {
        (Some(found), _) => {
            let sign = if found.score > found.threshold { '>' } else { '<' };
            format!("{name}  {:.2} {sign} {:.2}", found.score, found.threshold)
        }
        (None, Some(reason)) => format!("{name}  {}", reason.chars().take(60).collect::<String>()),
        (None, None) => name,
    };
    Banner { text, colour: colour(result.verdict) }
}

fn details(result: &DiadResult) -> Vec<String> {
    let mut lines = Vec::new();
    if let Some(found) = &result.finding {
        let class = match found.class_source {
            diad::detector::ClassSource::UnknownProduct => format!("unknown product, nearest {}", found.class),
            _ => found.class.clone(),
        };
        lines.push(format!("{class}  P{:.1}", found.percentile));
    }
    let part = result.part_id.as_ref().map(|part| format!("part {part}  ")).unwrap_or_default();
    lines.push(format!("{part}#{}  {:.0} ms", result.frame_id, result.timing.total as f64 / 1e6));
    lines
}

/// A box per region; its number is how many times over the threshold its peak is. The frame may have been scaled since.
fn boxes(result: &DiadResult, width: usize, height: usize) -> Vec<BoxMark> {
    let Some(found) = &result.finding else { return Vec::new() };
    let (sx, sy) = (width as f64 / f64::from(result.width.max(1)), height as f64 / f64::from(result.height.max(1)));
    let mark = |region: &diad::regions::Region| BoxMark {
        x: (f64::from(region.x) * sx).round() as i32,
        y: (f64::from(region.y) * sy).round() as i32,
        width: (f64::from(region.width) * sx).round() as u32,
        height: (f64::from(region.height) * sy).round() as u32,
        colour: colour(if result.frame_verdict == Verdict::Ng { Verdict::Ng } else { Verdict::Warn }),
        text: format!("{:.1}x", region.peak / found.pixel_threshold.max(f32::MIN_POSITIVE)),
    };
    found.regions.iter().map(mark).collect()
}
