//! Hot loops on plain `f32` slices, channels last, vectorised at run time for the processor they meet.
//!
//! Nothing here knows tensors, models or threads pools beyond rayon. All kernels compute each output element in one fixed
//! order: neither the number of threads nor the rest of a batch changes a bit.
//!
//! What each layer costs, one frame of 256x256 with the default configuration on two cores of a Zen 5 (EPYC, a virtual machine), by
//! `diad bench --model M.diad --layers --frames 400 --precision P`; two threads reach 534 GFLOP/s in registers there in f32, 983 in bf16.
//! MB are those of f32.
//!
//! | network | layer | M multiply-adds | MB | f32, p50 ms | GFLOP/s | % of peak | bf16, p50 ms | GFLOP/s | % of peak |
//! | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |
//! | backbone | stem | 14.2 | 2.89 | 0.186 | 153 | 29 | 0.170 | 167 | 17 |
//! | backbone | block 0 | 13.1 | 3.15 | 0.135 | 194 | 36 | 0.126 | 207 | 21 |
//! | backbone | block 1 | 38.1 | 1.46 | 0.313 | 244 | 46 | 0.242 | 315 | 32 |
//! | backbone | block 2 | 33.6 | 0.82 | 0.332 | 202 | 38 | 0.229 | 294 | 30 |
//! | backbone | block 3 | 23.7 | 0.61 | 0.172 | 276 | 52 | 0.129 | 367 | 37 |
//! | backbone | block 4 | 25.8 | 0.43 | 0.149 | 346 | 65 | 0.109 | 473 | 48 |
//! | backbone | block 5 | 15.3 | 0.37 | 0.101 | 302 | 57 | 0.075 | 408 | 42 |
//! | backbone | block 6 | 20.8 | 0.49 | 0.116 | 358 | 67 | 0.074 | 558 | 57 |
//! | backbone | block 7 | 20.8 | 0.49 | 0.115 | 360 | 67 | 0.073 | 566 | 58 |
//! | backbone | block 8 | 26.7 | 0.61 | 0.149 | 358 | 67 | 0.093 | 571 | 58 |
//! | backbone | block 9 | 42.8 | 0.90 | 0.229 | 374 | 70 | 0.142 | 603 | 61 |
//! | backbone | block 10 | 42.8 | 0.90 | 0.228 | 376 | 70 | 0.141 | 606 | 62 |
//! | backbone | together | 317.7 | 13.11 | 2.243 | 283 | 53 | 1.638 | 388 | 39 |
//! | denoiser | input | 4.2 | 0.33 | 0.042 | 201 | 38 | 0.033 | 253 | 26 |
//! | denoiser | block 0 | 35.2 | 0.81 | 0.214 | 329 | 62 | 0.148 | 474 | 48 |
//! | denoiser | block 1 | 35.2 | 0.81 | 0.212 | 331 | 62 | 0.147 | 477 | 49 |
//! | denoiser | block 2 | 35.2 | 0.81 | 0.213 | 331 | 62 | 0.147 | 478 | 49 |
//! | denoiser | attention 3 | 33.6 | 0.53 | 0.269 | 250 | 47 | 0.209 | 321 | 33 |
//! | denoiser | block 4 | 35.2 | 0.81 | 0.216 | 325 | 61 | 0.149 | 471 | 48 |
//! | denoiser | output | 4.2 | 0.33 | 0.058 | 144 | 27 | 0.047 | 177 | 18 |
//! | denoiser | together | 182.6 | 4.44 | 1.238 | 295 | 55 | 0.897 | 407 | 41 |
//!
//! The same networks in OpenVINO 2026.4 on the same cores, in turn, five rounds (`tests/bench/against_openvino.py`): the backbone takes
//! 0.91 of its time in f32 (0.84 to 0.92) and 1.08 in bf16 (1.01 to 1.10), the denoiser 1.23 (1.19 to 1.24) and 1.44 (1.42 to 1.49). A
//! product alone reaches 98 % of the peak of a core in both (`cargo bench --bench kernels`): what is left is between them. Early blocks
//! are bound by what they read and write; of the denoiser's blocks a quarter is GELU, norm, depthwise and waiting for each other.
//!
//! On two cores of an Emerald Rapids the backbone took 1.14 of OpenVINO's time in f32 and the denoiser 1.39, before loops over tokens
//! were compiled for wide vectors. bf16 was not tried there: without AMX it has no more multiply-adds a cycle than f32.

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
