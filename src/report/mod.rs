//! (in work: report)
