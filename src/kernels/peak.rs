//! The most that the processor can do, to hold the kernels against.

use std::time::{Duration, Instant};

use pulp::{Arch, Simd, WithSimd};
use rayon::prelude::*;

use super::gemm::Factors;

/// Sums that a core keeps under way in [`peak`]: two multiply-adds a cycle, each with a latency of four, and some to spare.
pub(super) const SUMS: usize = 12;

/// Multiply-adds per second of all threads together, in registers alone: what no kernel here exceeds. Measured for `time`.
pub fn peak(factors: Factors, time: Duration) -> f64 {
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
    let rates = (0..threads).into_par_iter().with_max_len(1).map(|_| match factors {
        Factors::F32 => Arch::new().dispatch(Sums(started, time)),
        Factors::Bf16(bf16) => bf16.peak(started, time),
    });
    rates.sum()
}
