//! (in work: model)
