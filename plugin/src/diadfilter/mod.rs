//! `diadfilter`: inspects video frames and passes every one on, annotated, with verdict, score, regions and map as metadata.
//!
//! ```text
//! sink chain:  prepare the model's input -> submit to the worker -> line of frames and events
//! worker:      batch -> model -> answer (shared by elements, see diad::worker)
//! source task: head of the line: wait for its answer -> draw -> attach metadata -> push
//! ```
//!
//! | file | owns |
//! | --- | --- |
//! | `settings` | properties and their defaults |
//! | `imp` | the GObject: pads, states, events, queries |
//! | `enter` | a frame's way in |
//! | `leave` | a frame's way out |
//! | `session` | the worker of this element and what its frames are asked |
//! | `line`, `pace`, `tally` | order; time; counts. They know neither pads nor models |

use gst::glib;
use gst::prelude::*;

mod enter;
mod enums;
mod imp;
mod leave;

mod pace;
mod session;
mod settings;
mod tally;

pub use enums::{CopyFrames, MetaFlags, OnError, OverlayFlags, OverloadPolicy, PostMessages};

glib::wrapper! {
    /// The element.
    pub struct DiadFilter(ObjectSubclass<imp::DiadFilter>) @extends gst::Element, gst::Object;
}

pub(crate) fn register(plugin: &gst::Plugin) -> Result<(), glib::BoolError> {
    for plugin_type in [
        OverloadPolicy::static_type(),
        OnError::static_type(),
        CopyFrames::static_type(),
        PostMessages::static_type(),
        OverlayFlags::static_type(),
        MetaFlags::static_type(),
    ] {
        plugin_type.mark_as_plugin_api(gst::PluginAPIFlags::empty());
    }
    gst::Element::register(Some(plugin), "diadfilter", gst::Rank::NONE, DiadFilter::static_type())
}
