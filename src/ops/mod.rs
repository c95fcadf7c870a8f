//! (in work: ops)
