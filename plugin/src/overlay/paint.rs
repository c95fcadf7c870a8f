//! Draws annotation straight into raw video planes, in place and without converting the frame: a heat map with its
//! outline, boxes with labels, and a banner. What is drawn looks the same in every format.
//! Knows nothing of where the annotation comes from, nor of GStreamer.
#![forbid(unsafe_code)]

use super::heat;
pub(super) use super::heat::{Contour, Heat, Map};
use super::marks;
pub(super) use super::marks::{Banner, BoxMark};
pub(super) use super::planes::{Canvas, Layout, Plane, Yuv};

/// Everything that is drawn on one frame, in the order in which it is laid one over the other.
#[derive(Clone, Debug, Default)]
pub(super) struct Scene<'a> {
    /// Maps in colours, outlined, or both.
    pub(super) maps: Vec<Map<'a>>,
    /// Boxes with their labels.
    pub(super) boxes: Vec<BoxMark>,
    /// The line at the top left.
    pub(super) banner: Option<Banner>,
    /// Further lines beneath it, in plain text. Frames less than 200 pixels wide go without them.
    pub(super) lines: Vec<String>,
}

/// Draws a scene. What lies outside the frame is left out.
pub(super) fn draw(canvas: &mut Canvas<'_>, scene: &Scene<'_>) {
    let line = marks::line(canvas);
    for map in &scene.maps {
        if let Some(heat) = &map.heat {
            heat::tint(canvas, map, heat);
        }
        if let Some(contour) = &map.contour {
            heat::outline(canvas, map, contour, line);
        }
    }
    let header = marks::Header::new(canvas, scene.banner.as_ref(), &scene.lines);
    marks::boxes(canvas, &scene.boxes, &header, line);
    header.paint(canvas);
}
