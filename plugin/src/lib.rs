//! GStreamer elements that inspect video with `diad` models.
//!
//! | element | does |
//! | --- | --- |
//! | `diadfilter` | inspects every frame and passes it on, annotated, with verdict, score, regions and map as metadata |
//! | `diadoverlay` | draws what an earlier `diadfilter` found |
//! | `diadselect` | passes on frames by their verdict |
//! | `diadmeta2json` | one JSON object per frame from the metadata |
//!
//! Both elements with a queue (`diadfilter`, `diadmeta2json`) follow the rules in `stream`. No model code is here: frames go as tickets to [`diad::worker`].

#![warn(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::print_stdout, clippy::print_stderr)]

use gst::glib;

pub mod meta;
pub mod result;

pub mod diadfilter;
pub mod diadmeta2json;
pub mod diadoverlay;
pub mod diadselect;
mod frame;
mod log;
pub mod overlay;
mod queue;
mod stream;

fn plugin_init(plugin: &gst::Plugin) -> Result<(), glib::BoolError> {
    meta::register();
    diadfilter::register(plugin)?;
    diadoverlay::register(plugin)?;
    diadselect::register(plugin)?;
    diadmeta2json::register(plugin)
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
