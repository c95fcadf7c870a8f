//! (in work: detector)
