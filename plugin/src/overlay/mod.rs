//! What is drawn on frames: `diadfilter` and `diadoverlay` draw through here.
//!
//! | file | owns |
//! | --- | --- |
//! | `flags` | the property `overlay` |
//! | `scene` | from a result to what is drawn |
//! | `paint`, `heat`, `marks`, `text`, `planes` | drawing into raw video planes; they know no result and no GStreamer |

mod flags;
mod heat;
mod marks;
mod paint;
mod planes;
mod scene;
#[cfg(test)]
mod tests;
mod text;

pub use flags::OverlayFlags;
pub(crate) use scene::{Style, draw, map, warn_undrawn};
