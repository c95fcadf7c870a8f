//! Draws annotation straight into raw video planes, in place and without converting the frame: a heat map with its
//! outline, boxes with labels, and a banner. What is drawn looks the same in every format.
//! Knows nothing of where the annotation comes from, nor of GStreamer.
#![forbid(unsafe_code)]

mod heat;
mod marks;
mod planes;
#[cfg(test)]
mod tests;
mod text;

pub(crate) use heat::{Contour, Heat, Map};
pub(crate) use marks::{Banner, BoxMark};
pub(crate) use planes::{Canvas, Layout, Plane, Yuv};

/// Everything that is drawn on one frame, in the order in which it is laid one over the other.
#[derive(Clone, Debug, Default)]
pub(crate) struct Scene<'a> {
    /// A map in colours, outlined, or both.
    pub(crate) map: Option<Map<'a>>,
    /// Boxes with their labels.
    pub(crate) boxes: Vec<BoxMark>,
    /// The line at the top left.
    pub(crate) banner: Option<Banner>,
    /// Further lines beneath it, in plain text. Frames less than 200 pixels wide go without them.
    pub(crate) lines: Vec<String>,
}

/// Draws a scene. What lies outside the frame is left out.
pub(crate) fn draw(canvas: &mut Canvas<'_>, scene: &Scene<'_>) {
    let line = marks::line(canvas);
    if let Some(map) = &scene.map {
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
