//! (in work: cli)
