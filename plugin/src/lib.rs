//! GStreamer elements that inspect video with `diad` models.
//!
//! | element | does |
//! | --- | --- |
//! | `diadfilter` | inspects every frame and passes it on, annotated, with verdict, score, regions and map as metadata |
//! | `diadoverlay` | draws what an earlier `diadfilter` found |
//! | `diadselect` | passes on frames by their verdict |
//! | `diadarchive` | keeps pictures of parts with what was said of them, within limits |
//! | `diadclip` | keeps encoded video of what led to a verdict, or of everything, within limits |
//! | `diadmeta2json` | one JSON object per frame from the metadata |
//!
//! Both elements with a queue (`diadfilter`, `diadmeta2json`) follow the rules in `stream`. No model code is here: frames go as tickets to [`diad::worker`].

#![warn(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::print_stdout, clippy::print_stderr)]

use gst::glib;

#[cfg(feature = "analytics")]
pub mod analytics;
pub mod meta;
pub mod result;

pub mod diadarchive;
pub mod diadclip;
pub mod diadfilter;
pub mod diadmeta2json;
pub mod diadoverlay;
pub mod diadselect;
mod disk;
mod frame;
mod log;
pub mod overlay;
mod queue;
mod stream;

/// What coverage-guided fuzzing calls: the way of a frame through private functions.
#[cfg(fuzzing)]
#[allow(missing_docs)]
pub mod fuzz {
    use diad::config::Fit;
    use diad::frame::Preprocess;
    use gst_video::{VideoFrameRef, VideoInfo};

    use crate::overlay::{self, OverlayFlags, Style};
    use crate::{frame, meta::DiadMap, result::DiadResult};

    pub const FORMATS: [gst_video::VideoFormat; 11] = crate::frame::FORMATS;

    pub fn progressive(caps: &gst::CapsRef) -> Result<VideoInfo, String> {
        frame::progressive(caps)
    }

    /// Values of the model's input.
    pub fn prepare(buffer: &gst::BufferRef, info: &VideoInfo) -> Result<usize, String> {
        let frame = VideoFrameRef::from_buffer_ref_readable(buffer, info).map_err(|error| error.to_string())?;
        let preprocess = Preprocess { size: 32.into(), fit: Fit::Stretch, roi: None };
        let view = frame::view(&frame, info).map_err(|error| error.to_string())?;
        let prepared = preprocess.apply_view(&view).map_err(|error| error.to_string())?;
        Ok(prepared.frame.rgb().len())
    }

    pub fn draw(
        buffer: &mut gst::BufferRef,
        info: &VideoInfo,
        result: &DiadResult,
        maps: &[DiadMap],
    ) -> Result<(), String> {
        let style = Style { overlay: OverlayFlags::all(), alpha: 0.6 };
        overlay::draw(buffer, info, result, maps, style, "fuzz").map_err(|error| error.to_string())
    }
}

fn plugin_init(plugin: &gst::Plugin) -> Result<(), glib::BoolError> {
    meta::register();
    diadfilter::register(plugin)?;
    diadoverlay::register(plugin)?;
    diadselect::register(plugin)?;
    diadmeta2json::register(plugin)?;
    diadarchive::register(plugin)?;
    diadclip::register(plugin)
}

#[allow(missing_docs, reason = "made by the macro")]
mod definition {
    use super::*;

    gst::plugin_define!(
        diad,
        env!("CARGO_PKG_DESCRIPTION"),
        plugin_init,
        concat!(env!("CARGO_PKG_VERSION"), "-", env!("COMMIT_ID")),
        "Apache 2.0",
        env!("CARGO_PKG_NAME"),
        env!("CARGO_PKG_NAME"),
        env!("CARGO_PKG_NAME"), // the origin: there is no page
        env!("BUILD_REL_DATE")
    );
}
pub use definition::plugin_register_static;
