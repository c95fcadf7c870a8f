//! (in work: baselines)
