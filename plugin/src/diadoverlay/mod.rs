//! `diadoverlay`: draws what an earlier `diadfilter` found, from the metadata on the buffers. With `diadfilter overlay=0` the
//! frames stay clean until here: one branch of a tee can be recorded clean and the other annotated.

use gst::glib;
use gst::prelude::*;

mod imp;

glib::wrapper! {
    /// The element.
    pub struct DiadOverlay(ObjectSubclass<imp::DiadOverlay>) @extends gst_base::BaseTransform, gst::Element, gst::Object;
}

pub(crate) fn register(plugin: &gst::Plugin) -> Result<(), glib::BoolError> {
    gst::Element::register(Some(plugin), "diadoverlay", gst::Rank::NONE, DiadOverlay::static_type())
}
