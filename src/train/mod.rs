//! (in work: train)
