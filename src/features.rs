//! (in work: features)
