//! Products of bfloat16 with sums in single precision, where the processor has them (AVX-512 BF16: Intel from Cooper Lake on,
//! AMD from Zen 4 on).
//!
//! A number keeps its sign, its exponent and the upper seven bits of its fraction, rounded to the nearest and to even; two of
//! them that follow each other over k make a word of 32 bits, and one instruction multiplies and adds both for sixteen columns.
//! What is added up stays in single precision from the first product to the epilogue. Numbers so small that they have no full
//! fraction (below 1.2e-38) count as zero, as the instructions have it.

#![allow(
    unsafe_code,
    reason = "functions that need instructions of the processor are called where it is known to have them"
)]

use super::buffer::Buffer;
use super::gemm::Matrix;

/// Proof that this processor multiplies bfloat16.
#[cfg(target_arch = "x86_64")]
#[derive(Clone, Copy, Debug)]
pub struct Bf16(pulp::x86::V4);

/// Proof that this processor multiplies bfloat16: none of this kind is known to.
#[cfg(not(target_arch = "x86_64"))]
#[derive(Clone, Copy, Debug)]
pub enum Bf16 {}

/// Words of `k` numbers.
pub(super) fn words(k: usize) -> usize {
    k.div_ceil(2)
}

impl Bf16 {
    /// Whether the processor at hand has what it takes.
    pub fn find() -> Option<Self> {
        #[cfg(target_arch = "x86_64")]
        if std::arch::is_x86_feature_detected!("avx512bf16") {
            return pulp::x86::V4::try_new().map(Self);
        }
        None
    }

    /// Rows of A from `first` on, each as [`words`] words; `rounded` is filled.
    pub(super) fn round_rows(self, a: Matrix<'_>, first: usize, k: usize, rounded: &mut [u32]) {
        if a.row == k && a.col == 1 && k.is_multiple_of(2) {
            return self.round(&a.data[first * k..][..2 * rounded.len()], rounded); // no gaps between the rows
        }
        assert_eq!(a.col, 1, "bf16: a row of A lies in one piece");
        for (i, row) in (first..).zip(rounded.chunks_exact_mut(words(k).max(1))) {
            self.round(&a.data[i * a.row..][..k], row);
        }
    }

    /// Copies `cols` columns of B from column `j` into `panel` `[words, width]`; the rest of a row stays as it is.
    pub(super) fn pack(self, panel: &mut [u32], width: usize, b: Matrix<'_>, j: usize, cols: usize, k: usize) {
        if b.col == 1 {
            let none = vec![0.0; if k.is_multiple_of(2) { 0 } else { cols }];
            for (p, out) in panel.chunks_exact_mut(width).enumerate() {
                let row = |i: usize| if i < k { &b.data[i * b.row + j..][..cols] } else { &none };
                self.join(row(2 * p), row(2 * p + 1), &mut out[..cols]);
            }
            return;
        }
        let columns = Matrix { data: b.data, row: b.col, col: b.row };
        let mut column = Buffer::default();
        let column = column.of(words(k));
        for x in 0..cols {
            self.round_rows(columns, j + x, k, column);
            for (out, &word) in panel[x..].iter_mut().step_by(width).zip(column.iter()) {
                *out = word;
            }
        }
    }
}

#[cfg(not(target_arch = "x86_64"))]
impl Bf16 {
    fn round(self, _: &[f32], _: &mut [u32]) {
        match self {}
    }

    fn join(self, _: &[f32], _: &[f32], _: &mut [u32]) {
        match self {}
    }

    pub(super) fn peak(self, _: std::time::Instant, _: std::time::Duration) -> f64 {
        match self {}
    }

    pub(super) fn tile(self, _: usize, _: &[u32], _: &[u32], _: usize, _: super::gemm::Target<'_, '_>) {
        match self {}
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::{
        __m512bh, __m512i, __mmask16, _mm512_add_ps, _mm512_cvtne2ps_pbh, _mm512_dpbf16_ps, _mm512_loadu_si512,
        _mm512_mask_storeu_epi32, _mm512_maskz_loadu_ps, _mm512_permutexvar_epi16, _mm512_reduce_add_ps,
        _mm512_set1_epi32, _mm512_set1_ps,
    };
    use std::mem::transmute;
    use std::time::{Duration, Instant};

    use pulp::Simd;
    use pulp::x86::V4;

    use super::super::gemm::Target;
    use super::super::peak::SUMS;
    use super::Bf16;

    /// Vectors of the widest kind.
    const LANES: usize = 16;

    impl Bf16 {
        /// A row of numbers as words.
        pub(super) fn round(self, row: &[f32], out: &mut [u32]) {
            // SAFETY: there is a `Bf16` only where the processor has these instructions.
            unsafe { round(row, out) }
        }

        /// Two rows of numbers, side by side in words.
        pub(super) fn join(self, first: &[f32], second: &[f32], out: &mut [u32]) {
            // SAFETY: as in `round`.
            unsafe { join(first, second, out) }
        }

        /// Multiply-adds per second of this thread in registers, measured for `time` from `started` on.
        pub(in super::super) fn peak(self, started: Instant, time: Duration) -> f64 {
            // SAFETY: as in `round`.
            unsafe { peak(started, time) }
        }

        /// A tile of `count` rows, at most 12: `rows` are those of A `[count, words]`, `panel` `[words, width]`.
        #[inline(always)]
        pub(in super::super) fn tile(
            self,
            count: usize,
            rows: &[u32],
            panel: &[u32],
            width: usize,
            target: Target<'_, '_>,
        ) {
            macro_rules! heights {
                ($($rows:literal)*) => {
                    match (count, width / LANES) {
                        // SAFETY: as in `round`.
                        $(($rows, 2) => unsafe { tile::<$rows, 2>(self.0, rows, panel, target) },
                        ($rows, 1) => unsafe { tile::<$rows, 1>(self.0, rows, panel, target) },)*
                        _ => unreachable!("tiles have at most 12 rows and two vectors"),
                    }
                };
            }
            heights!(1 2 3 4 5 6 7 8 9 10 11 12);
        }
    }

    /// See [`peak`](super::super::peak::peak).
    #[target_feature(enable = "avx512f,avx512bf16")]
    fn peak(started: Instant, time: Duration) -> f64 {
        const ROUNDS: usize = 10_000;
        let (x, mut sums, mut done) = (_mm512_set1_epi32(0x3f00_3f00), [_mm512_set1_ps(0.0); SUMS], 0); // halves
        while started.elapsed() < time {
            for _ in 0..ROUNDS {
                for sum in &mut sums {
                    *sum = _mm512_dpbf16_ps(*sum, pairs(x), pairs(x));
                }
            }
            done += ROUNDS * SUMS * 2 * LANES;
        }
        let sum = sums.into_iter().fold(_mm512_set1_ps(0.0), |all, sum| _mm512_add_ps(all, sum));
        std::hint::black_box(_mm512_reduce_add_ps(sum));
        done as f64 / started.elapsed().as_secs_f64()
    }

    /// The first `n` lanes.
    fn mask(n: usize) -> __mmask16 {
        ((1u32 << n) - 1) as __mmask16
    }

    fn bits(v: __m512bh) -> __m512i {
        // SAFETY: both are 64 bytes of any bits.
        unsafe { transmute(v) }
    }

    fn pairs(v: __m512i) -> __m512bh {
        // SAFETY: both are 64 bytes of any bits.
        unsafe { transmute(v) }
    }

    #[target_feature(enable = "avx512f,avx512bf16")]
    fn round(row: &[f32], out: &mut [u32]) {
        for (values, out) in row.chunks(2 * LANES).zip(out.chunks_mut(LANES)) {
            let (low, high) = values.split_at(values.len().min(LANES));
            // SAFETY: the masks leave out what lies behind the ends of the slices.
            unsafe {
                let low = _mm512_maskz_loadu_ps(mask(low.len()), low.as_ptr());
                let high = _mm512_maskz_loadu_ps(mask(high.len()), high.as_ptr());
                _mm512_mask_storeu_epi32(
                    out.as_mut_ptr().cast(),
                    mask(out.len()),
                    bits(_mm512_cvtne2ps_pbh(high, low)),
                );
            }
        }
    }

    #[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
    fn join(first: &[f32], second: &[f32], out: &mut [u32]) {
        let order: [u16; 2 * LANES] = std::array::from_fn(|i| (i / 2 + i % 2 * LANES) as u16);
        for ((a, b), out) in first.chunks(LANES).zip(second.chunks(LANES)).zip(out.chunks_mut(LANES)) {
            // SAFETY: the masks leave out what lies behind the ends of the slices; `order` has as many bits as a vector.
            unsafe {
                let a = _mm512_maskz_loadu_ps(mask(a.len()), a.as_ptr());
                let b = _mm512_maskz_loadu_ps(mask(b.len()), b.as_ptr());
                let beside = bits(_mm512_cvtne2ps_pbh(b, a)); // all of a, then all of b
                let joined = _mm512_permutexvar_epi16(_mm512_loadu_si512(order.as_ptr().cast()), beside);
                _mm512_mask_storeu_epi32(out.as_mut_ptr().cast(), mask(out.len()), joined);
            }
        }
    }

    /// The features are those of `V4`, whose functions are inlined here, and the one for bfloat16.
    #[target_feature(enable = "avx512f,avx512bw,avx512cd,avx512dq,avx512vl,avx512bf16,fma,avx2,bmi1,bmi2,lzcnt,popcnt")]
    fn tile<const MR: usize, const V: usize>(simd: V4, rows: &[u32], panel: &[u32], target: Target<'_, '_>) {
        let (panel, _) = V4::as_simd_u32s(panel).0.as_chunks::<V>();
        let mut sums = target.begin::<V4, MR, V>(simd);
        let k = panel.len();
        // (Closures would not be inlined: they do not have the features of the function around them.)
        let mut of_a = [&[][..]; MR];
        for r in 0..MR {
            of_a[r] = &rows[r * k..][..k];
        }
        for p in 0..k {
            for r in 0..MR {
                let x = pairs(_mm512_set1_epi32(of_a[r][p] as i32));
                for v in 0..V {
                    let b = pairs(pulp::cast(panel[p][v]));
                    sums[r][v] = pulp::cast(_mm512_dpbf16_ps(pulp::cast(sums[r][v]), x, b));
                }
            }
        }
        target.end(simd, sums);
    }
}
