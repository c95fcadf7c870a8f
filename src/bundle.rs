//! (in work: bundle)
