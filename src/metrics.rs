//! (in work: metrics)
