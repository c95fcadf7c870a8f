//! (in work: score)
