//! The property `overlay`.

#![allow(missing_docs, reason = "glib::flags drops the comments of what it makes")]

use gst::glib;

/// What is drawn.
#[glib::flags(name = "GstDiadOverlayFlags")]
pub enum OverlayFlags {
    /// A plate with the verdict and the score.
    #[flags_value(name = "Verdict and score", nick = "verdict")]
    VERDICT = 1 << 0,
    /// A box around each region, with its peak.
    #[flags_value(name = "A box around each defect", nick = "boxes")]
    BOXES = 1 << 1,
    /// The anomaly map as colours; the scale hangs on the threshold.
    #[flags_value(name = "Heat map", nick = "heatmap")]
    HEATMAP = 1 << 2,
    /// A line around what is above the pixel threshold.
    #[flags_value(name = "Outline of the defects", nick = "contour")]
    CONTOUR = 1 << 3,
    /// Class, part, frame number and times.
    #[flags_value(name = "Class, part and times", nick = "details")]
    DETAILS = 1 << 4,
}
