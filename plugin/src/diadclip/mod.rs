//! `diadclip`: keeps encoded video of what led to a verdict, from before it to after it, or of everything, within limits.

use gst::glib;
use gst::prelude::*;

mod clip;
mod imp;
mod ring;
mod writer;

glib::wrapper! {
    /// The element.
    pub struct DiadClip(ObjectSubclass<imp::DiadClip>) @extends gst_base::BaseSink, gst::Element, gst::Object;
}

/// What files are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, glib::Enum)]
#[enum_type(name = "GstDiadClipContainer")]
pub enum Container {
    /// MP4 in fragments.
    #[default]
    #[enum_value(name = "MP4: H.264, H.265, VP9", nick = "mp4")]
    Mp4,
    /// Matroska.
    #[enum_value(name = "Matroska: these, JPEG and VP8", nick = "mkv")]
    Mkv,
}

impl Container {
    /// End of the files' names.
    fn extension(self) -> &'static str {
        match self {
            Self::Mp4 => "mp4",
            Self::Mkv => "mkv",
        }
    }

    /// Whether it can hold frames of this media type.
    fn holds(self, media: &str) -> bool {
        self == Self::Mkv || !["image/jpeg", "video/x-vp8"].contains(&media)
    }
}

pub(crate) fn register(plugin: &gst::Plugin) -> Result<(), glib::BoolError> {
    gst::Element::register(Some(plugin), "diadclip", gst::Rank::NONE, DiadClip::static_type())
}
