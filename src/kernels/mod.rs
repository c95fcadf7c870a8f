//! Hot loops on plain `f32` slices, channels last, vectorised at run time for the processor they meet.
//!
//! Nothing here knows tensors, models or threads pools beyond rayon. All kernels compute each output element in one fixed
//! order: neither the number of threads nor the rest of a batch changes a bit.

pub mod buffer;
#[cfg(feature = "cuda")]
pub mod cuda;
pub mod depthwise;
pub mod gemm;
pub mod mbconv;
pub mod pointwise;
