//! (in work: regions)
