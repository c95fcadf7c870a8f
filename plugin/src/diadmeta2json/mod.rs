//! `diadmeta2json`: video in, one JSON object per frame and line out, from the metadata that `diadfilter` attached.

use gst::glib;
use gst::prelude::*;

mod imp;

glib::wrapper! {
    /// The element.
    pub struct DiadMeta2Json(ObjectSubclass<imp::DiadMeta2Json>) @extends gst::Element, gst::Object;
}

pub(crate) fn register(plugin: &gst::Plugin) -> Result<(), glib::BoolError> {
    gst::Element::register(Some(plugin), "diadmeta2json", gst::Rank::NONE, DiadMeta2Json::static_type())
}
