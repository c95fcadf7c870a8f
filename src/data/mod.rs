//! (in work: data)
