//! (in work: kernels)
