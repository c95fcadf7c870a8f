//! `diadfilter`: inspects video frames and passes every one on, annotated, with verdict, score, regions and map as metadata.
//!
//! ```text
//! sink chain:  prepare the model's input -> submit to the worker -> queue of frames and events
//! worker:      batch -> model -> answer (shared by elements, see diad::worker)
//! source task: head of the queue: wait for its answer -> draw -> attach metadata -> push
//! ```
//!
//! | file | owns |
//! | --- | --- |
//! | `settings`, `enums` | properties and their defaults |
//! | `imp` | the GObject: states, changes of properties and of the model |
//! | `pads` | what happens on the pads, by the rules in `stream` |
//! | `chain` | the sink side: a frame's way in |
//! | `push` | the source side: what comes of a frame |
//! | `model` | the model of this element, and what its frames are looked at with |
//! | `latency`, `stats` | time; counts. They know neither pads nor models |

use gst::glib;
use gst::prelude::*;

mod chain;
mod enums;
mod imp;
mod latency;
mod model;
mod pads;
mod push;
mod settings;
mod stats;

use crate::overlay::OverlayFlags;
pub use enums::{CopyFrames, MetaFlags, OnError, OverloadPolicy, PostMessages};

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
