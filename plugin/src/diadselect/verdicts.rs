//! A set of verdicts.

#![allow(missing_docs, reason = "glib::flags drops the comments of what it makes")]

use diad::detector::Verdict;
use gst::glib;

/// Verdicts, as a set.
#[glib::flags(name = "GstDiadVerdictFlags")]
pub enum VerdictFlags {
    /// [`Verdict::Ok`]
    #[flags_value(name = "Inspected and good", nick = "ok")]
    OK = 1 << 0,
    /// [`Verdict::Warn`]
    #[flags_value(name = "Above the warning threshold", nick = "warn")]
    WARN = 1 << 1,
    /// [`Verdict::Ng`]
    #[flags_value(name = "Rejected", nick = "ng")]
    NG = 1 << 2,
    /// [`Verdict::Uninspected`], and frames that carry no result.
    #[flags_value(name = "Not inspected, or without a result", nick = "uninspected")]
    UNINSPECTED = 1 << 3,
    /// [`Verdict::Error`]
    #[flags_value(name = "Could not be inspected", nick = "error")]
    ERROR = 1 << 4,
}

impl From<Verdict> for VerdictFlags {
    fn from(verdict: Verdict) -> Self {
        match verdict {
            Verdict::Ok => Self::OK,
            Verdict::Warn => Self::WARN,
            Verdict::Ng => Self::NG,
            Verdict::Uninspected => Self::UNINSPECTED,
            Verdict::Error => Self::ERROR,
        }
    }
}
