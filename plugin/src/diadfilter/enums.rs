//! Types of the properties that are a choice or a set.

#![allow(missing_docs, reason = "glib::flags drops the comments of what it makes")]

use gst::glib;

/// What happens to frames that come faster than the model works.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, glib::Enum)]
#[enum_type(name = "GstDiadOverloadPolicy")]
pub enum OverloadPolicy {
    /// As `block` when upstream is not live, as `pass-uninspected` when it is.
    #[default]
    #[enum_value(name = "Block when not live, pass uninspected when live", nick = "auto")]
    Auto,
    /// Upstream waits.
    #[enum_value(name = "Upstream waits", nick = "block")]
    Block,
    /// Frames that would be late leave with verdict `uninspected`.
    #[enum_value(name = "Frames that would be late leave uninspected", nick = "pass-uninspected")]
    PassUninspected,
}

/// What happens when a frame cannot be inspected.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, glib::Enum)]
#[enum_type(name = "GstDiadOnError")]
pub enum OnError {
    /// It leaves with verdict `error`; a warning is posted when errors begin.
    #[default]
    #[enum_value(name = "The frame leaves with verdict error, a warning is posted", nick = "mark")]
    Mark,
    /// The element posts an error and the stream ends.
    #[enum_value(name = "The stream ends with an error", nick = "error")]
    Error,
}

/// Whether frames are copied before they wait.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, glib::Enum)]
#[enum_type(name = "GstDiadCopyFrames")]
pub enum CopyFrames {
    /// Those that come from no buffer pool.
    #[default]
    #[enum_value(name = "Frames that come from no buffer pool", nick = "auto")]
    Auto,
    /// All.
    #[enum_value(name = "All frames", nick = "always")]
    Always,
    /// None.
    #[enum_value(name = "No frame", nick = "never")]
    Never,
}

/// For which frames a message is posted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, glib::Enum)]
#[enum_type(name = "GstDiadPostMessages")]
pub enum PostMessages {
    /// None.
    #[enum_value(name = "No frame", nick = "none")]
    None,
    /// Those that are `ng`.
    #[enum_value(name = "Frames with verdict ng", nick = "ng")]
    Ng,
    /// Those whose verdict or part is not that of the frame before.
    #[default]
    #[enum_value(name = "Frames with another verdict or part than the one before", nick = "changes")]
    Changes,
    /// All.
    #[enum_value(name = "Every frame", nick = "all")]
    All,
}

/// The flags of every build, and those that some builds have besides (`glib::flags` knows no `cfg` on a flag).
macro_rules! meta_flags {
    ($($more:tt)*) => {
        /// What is attached to the buffers.
        #[glib::flags(name = "GstDiadMetaFlags")]
        pub enum MetaFlags {
            /// A region-of-interest meta per region.
            #[flags_value(name = "Regions of interest, one per defect", nick = "regions")]
            REGIONS = 1 << 0,
            /// The custom meta `DiadResult`.
            #[flags_value(name = "DiadResult", nick = "result")]
            RESULT = 1 << 1,
            /// The custom meta `DiadMap`.
            #[flags_value(name = "DiadMap", nick = "map")]
            MAP = 1 << 2,
            $($more)*
        }
    };
}
#[cfg(not(feature = "analytics"))]
meta_flags!();
#[cfg(feature = "analytics")]
meta_flags! {
    /// Entries of the buffer's `GstAnalyticsRelationMeta`.
    #[flags_value(name = "GstAnalytics: objects, classes, segmentation", nick = "analytics")]
    ANALYTICS = 1 << 3,
}

impl MetaFlags {
    /// Whether GstAnalytics metas are asked for.
    pub(super) fn wants_analytics(self) -> bool {
        #[cfg(feature = "analytics")]
        return self.contains(Self::ANALYTICS);
        #[cfg(not(feature = "analytics"))]
        false
    }
}
