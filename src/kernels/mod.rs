//! Hot loops on plain `f32` slices, channels last, vectorised at run time for the processor they meet.
//!
//! Nothing here knows tensors, models or threads pools beyond rayon. All kernels compute each output element in one fixed
//! order: neither the number of threads nor the rest of a batch changes a bit.
//!
//! What each layer costs, one frame of 256x256 with the default configuration on two cores of a Zen 5 (EPYC, a virtual machine), by
//! `diad bench --model M.diad --layers --frames 400 --precision P`; two threads reach 512 GFLOP/s in registers there in f32, 958 in bf16.
//! MB are those of f32.
//!
//! | network | layer | M multiply-adds | MB | f32, p50 ms | GFLOP/s | % of peak | bf16, p50 ms | GFLOP/s | % of peak |
//! | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |
//! | backbone | stem | 14.2 | 2.89 | 0.169 | 168 | 33 | 0.160 | 177 | 18 |
//! | backbone | block 0 | 13.1 | 3.15 | 0.122 | 215 | 42 | 0.117 | 225 | 23 |
//! | backbone | block 1 | 38.1 | 1.46 | 0.314 | 243 | 47 | 0.263 | 290 | 30 |
//! | backbone | block 2 | 33.6 | 0.82 | 0.304 | 222 | 43 | 0.300 | 224 | 23 |
//! | backbone | block 3 | 23.7 | 0.61 | 0.160 | 298 | 58 | 0.156 | 305 | 32 |
//! | backbone | block 4 | 25.8 | 0.43 | 0.145 | 356 | 70 | 0.113 | 458 | 48 |
//! | backbone | block 5 | 15.3 | 0.37 | 0.088 | 348 | 68 | 0.061 | 500 | 52 |
//! | backbone | block 6 | 20.8 | 0.49 | 0.106 | 391 | 76 | 0.069 | 600 | 63 |
//! | backbone | block 7 | 20.8 | 0.49 | 0.108 | 384 | 75 | 0.070 | 597 | 62 |
//! | backbone | block 8 | 26.7 | 0.61 | 0.139 | 383 | 75 | 0.091 | 587 | 61 |
//! | backbone | block 9 | 42.8 | 0.90 | 0.219 | 391 | 76 | 0.140 | 612 | 64 |
//! | backbone | block 10 | 42.8 | 0.90 | 0.219 | 392 | 77 | 0.140 | 611 | 64 |
//! | backbone | together | 317.7 | 13.11 | 2.121 | 300 | 59 | 1.730 | 367 | 38 |
//! | denoiser | input | 4.2 | 0.33 | 0.022 | 389 | 76 | 0.013 | 628 | 66 |
//! | denoiser | block 0 | 35.2 | 0.81 | 0.175 | 402 | 78 | 0.107 | 657 | 69 |
//! | denoiser | block 1 | 35.2 | 0.81 | 0.175 | 401 | 78 | 0.107 | 656 | 68 |
//! | denoiser | block 2 | 35.2 | 0.81 | 0.175 | 403 | 79 | 0.107 | 656 | 68 |
//! | denoiser | attention 3 | 33.6 | 0.53 | 0.197 | 340 | 66 | 0.135 | 497 | 52 |
//! | denoiser | block 4 | 35.2 | 0.81 | 0.176 | 400 | 78 | 0.107 | 655 | 68 |
//! | denoiser | output | 4.2 | 0.33 | 0.026 | 324 | 63 | 0.018 | 462 | 48 |
//! | denoiser | together | 182.6 | 4.44 | 0.966 | 378 | 74 | 0.597 | 611 | 64 |
//!
//! The same networks in OpenVINO 2026.4 on the same cores, in turn, six rounds (`tests/bench/against_openvino.py`): the backbone takes
//! 0.96 of its time in f32 (0.88 to 0.97) and 1.06 in bf16 (1.02 to 1.19), the denoiser 0.94 (0.83 to 0.96) and 0.95 (0.84 to 0.97). A
//! product alone reaches 98 % of the peak of a core in both (`cargo bench --bench kernels`): what is left is between them. Early blocks
//! are bound by what they read and write; of the denoiser's blocks a sixth is GELU, norm, depthwise and waiting for each other.
//!
//! On two cores of an Emerald Rapids the backbone took 1.14 of OpenVINO's time in f32 and the denoiser 1.39, before loops over tokens
//! were compiled for wide vectors and the cores were called together once a frame. bf16 was not tried there: without AMX it has no more multiply-adds a cycle than f32.

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
