//! Hot loops on plain `f32` slices, channels last, vectorised at run time for the processor they meet.
//!
//! Nothing here knows tensors, models or threads pools beyond rayon. All kernels compute each output element in one fixed
//! order: neither the number of threads nor the rest of a batch changes a bit.
//!
//! What each layer costs, one frame of 256x256 with the default configuration on two cores of an Emerald Rapids (AVX-512, no AMX),
//! by `diad bench --model M.diad --layers --frames 300`; two threads reach 346 GFLOP/s in registers there:
//!
//! | network | layer | M multiply-adds | MB | p50 ms | GFLOP/s | % of peak |
//! | --- | --- | --- | --- | --- | --- | --- |
//! | backbone | stem | 14.2 | 2.89 | 0.407 | 70 | 20 |
//! | backbone | block 0 | 13.1 | 3.15 | 0.299 | 88 | 25 |
//! | backbone | block 1 | 38.1 | 1.46 | 0.518 | 147 | 43 |
//! | backbone | block 2 | 33.6 | 0.82 | 0.504 | 133 | 39 |
//! | backbone | block 3 | 23.7 | 0.61 | 0.367 | 129 | 37 |
//! | backbone | block 4 | 25.8 | 0.43 | 0.274 | 188 | 54 |
//! | backbone | block 5 | 15.3 | 0.37 | 0.195 | 157 | 45 |
//! | backbone | block 6 | 20.8 | 0.49 | 0.218 | 191 | 55 |
//! | backbone | block 7 | 20.8 | 0.49 | 0.211 | 197 | 57 |
//! | backbone | block 8 | 26.7 | 0.61 | 0.271 | 197 | 57 |
//! | backbone | block 9 | 42.8 | 0.90 | 0.384 | 223 | 64 |
//! | backbone | block 10 | 42.8 | 0.90 | 0.389 | 220 | 64 |
//! | backbone | together | 317.7 | 13.11 | 4.110 | 155 | 45 |
//! | denoiser | input | 4.2 | 0.33 | 0.103 | 82 | 24 |
//! | denoiser | block 0 | 35.2 | 0.81 | 0.379 | 185 | 54 |
//! | denoiser | block 1 | 35.2 | 0.81 | 0.395 | 178 | 52 |
//! | denoiser | block 2 | 35.2 | 0.81 | 0.389 | 181 | 52 |
//! | denoiser | attention 3 | 33.6 | 0.53 | 0.697 | 96 | 28 |
//! | denoiser | block 4 | 35.2 | 0.81 | 0.378 | 186 | 54 |
//! | denoiser | output | 4.2 | 0.33 | 0.114 | 74 | 21 |
//! | denoiser | together | 182.6 | 4.44 | 2.491 | 147 | 42 |
//!
//! The same networks in OpenVINO 2026.4 on the same cores, in turn, five rounds (`tests/bench/against_openvino.py`): the backbone
//! takes 1.14 of its time in f32 (1.12 to 1.16), the denoiser 1.39 (1.37 to 1.41). Before rows were shared out evenly and wide
//! middles used up in the cache the backbone took 1.7 times as long as now. OpenVINO's bf16 is slower than its f32 on these cores
//! (backbone 5.8 and 3.5 ms): without AMX a product of bf16 has no more multiply-adds a cycle than one of f32.

pub mod bf16;
pub mod buffer;
#[cfg(feature = "cuda")]
pub mod cuda;
pub mod depthwise;
pub mod gemm;
pub mod mbconv;
pub mod peak;
pub mod pointwise;
pub(crate) mod simd;
pub mod triangular;
