//! `diadarchive`: keeps pictures of parts with what was said of them, within limits, and passes every frame on.

use gst::glib;
use gst::prelude::*;

mod imp;
mod writer;

glib::wrapper! {
    /// The element.
    pub struct DiadArchive(ObjectSubclass<imp::DiadArchive>) @extends gst_base::BaseTransform, gst::Element, gst::Object;
}

/// How pictures are written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, glib::Enum)]
#[enum_type(name = "GstDiadArchiveFormat")]
pub enum Format {
    /// PNG.
    #[default]
    #[enum_value(name = "PNG: without loss", nick = "png")]
    Png,
    /// JPEG.
    #[enum_value(name = "JPEG: with some", nick = "jpeg")]
    Jpeg,
    /// No pictures.
    #[enum_value(name = "No pictures: what is said of a frame only", nick = "none")]
    None,
}

pub(crate) fn register(plugin: &gst::Plugin) -> Result<(), glib::BoolError> {
    gst::Element::register(Some(plugin), "diadarchive", gst::Rank::NONE, DiadArchive::static_type())
}
