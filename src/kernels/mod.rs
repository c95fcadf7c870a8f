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

pub mod buffer;
use std::time::{Duration, Instant};

use pulp::{Arch, Simd, WithSimd};
use rayon::prelude::*;

#[cfg(feature = "cuda")]
pub mod cuda;
pub mod depthwise;
pub mod gemm;
pub mod mbconv;
pub mod pointwise;

/// `v` within 0..=6. What is not a number stays one: of two of which one is none, vectors give the second, single numbers the other.
#[inline(always)]
fn relu6<S: Simd>(simd: S, v: S::f32s) -> S::f32s {
    let (zero, six) = (simd.splat_f32s(0.0), simd.splat_f32s(6.0));
    if S::F32_LANES == 1 {
        let v = simd.select_f32s(simd.less_than_f32s(v, zero), zero, v);
        return simd.select_f32s(simd.less_than_f32s(six, v), six, v);
    }
    simd.min_f32s(six, simd.max_f32s(zero, v))
}

/// Sums that a core keeps under way in [`peak`]: two multiply-adds a cycle, each with a latency of four, and some to spare.
const SUMS: usize = 12;

/// Multiply-adds per second of all threads together, in registers alone: what no kernel here exceeds. Measured for `time`.
pub fn peak(time: Duration) -> f64 {
    struct Sums(Instant, Duration);

    impl WithSimd for Sums {
        type Output = f64;

        #[inline(always)]
        fn with_simd<S: Simd>(self, simd: S) -> f64 {
            const ROUNDS: usize = 10_000;
            let (x, y) = (simd.splat_f32s(0.999), simd.splat_f32s(1e-3));
            let (mut sums, mut done) = ([x; SUMS], 0);
            while self.0.elapsed() < self.1 {
                for _ in 0..ROUNDS {
                    for sum in &mut sums {
                        *sum = simd.mul_add_e_f32s(*sum, x, y);
                    }
                }
                done += ROUNDS * SUMS * S::F32_LANES;
            }
            let left = sums.into_iter().fold(y, |all, sum| simd.add_f32s(all, sum));
            std::hint::black_box(simd.reduce_sum_f32s(left));
            done as f64 / self.0.elapsed().as_secs_f64()
        }
    }

    let threads = rayon::current_num_threads();
    let started = Instant::now();
    (0..threads).into_par_iter().with_max_len(1).map(|_| Arch::new().dispatch(Sums(started, time))).sum()
}
