//! `diadselect`: passes on frames by their verdict, to record or to look at the rejected ones only.

use gst::glib;
use gst::prelude::*;

mod imp;
mod verdicts;

pub use verdicts::VerdictFlags;

glib::wrapper! {
    /// The element.
    pub struct DiadSelect(ObjectSubclass<imp::DiadSelect>) @extends gst_base::BaseTransform, gst::Element, gst::Object;
}

pub(crate) fn register(plugin: &gst::Plugin) -> Result<(), glib::BoolError> {
    gst::Element::register(Some(plugin), "diadselect", gst::Rank::NONE, DiadSelect::static_type())
}
