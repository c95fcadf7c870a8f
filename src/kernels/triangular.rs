//! Lengths of products with lower triangular matrices in half precision: the distances of cells. The matrices of a frame are
//! more than a cache holds, so that what counts is to read each number once, in order, and to widen it in registers.
//!
//! A matrix lies in panels of 16 rows, column by column: panel `p` holds columns 0 to `16 (p + 1)`, with zeros above the
//! diagonal and below the last row. A row's sum is made of four, of every fourth column each, whatever the vectors of the
//! processor: the bits are the same on all of them.

#![allow(
    unsafe_code,
    reason = "a function that needs instructions of the processor is called where it is known to have them"
)]

use half::f16;
use half::slice::HalfFloatSliceExt;

use super::simd::vectorised;

/// Rows of a panel.
const ROWS: usize = 16;
/// Columns that are widened at a time where that is not done in registers, a multiple of the sums.
const WIDENED: usize = 64;
/// Sums of a row.
const SUMS: usize = 4;

/// Columns of each panel, in order.
fn columns(dim: usize) -> impl Iterator<Item = usize> {
    (1..=dim.div_ceil(ROWS)).map(move |panels| (panels * ROWS).min(dim))
}

/// Numbers of a matrix with `dim` rows.
pub fn len(dim: usize) -> usize {
    columns(dim).sum::<usize>() * ROWS
}

/// A lower triangle `[dim (dim + 1) / 2]`, packed row by row, as panels.
pub fn pack(rows: &[f16], dim: usize) -> Vec<f16> {
    let mut panels = vec![f16::ZERO; len(dim)];
    each(dim, |panel, row| panels[panel] = rows[row]);
    panels
}

/// The inverse of [`pack`].
pub fn unpack(panels: &[f16], dim: usize) -> Vec<f16> {
    let mut rows = vec![f16::ZERO; dim * (dim + 1) / 2];
    each(dim, |panel, row| rows[row] = panels[panel]);
    rows
}

/// The place of each number in the panels, and in the triangle packed by rows.
fn each(dim: usize, mut f: impl FnMut(usize, usize)) {
    let mut start = 0;
    for (panel, columns) in columns(dim).enumerate() {
        for i in panel * ROWS..(panel * ROWS + ROWS).min(dim) {
            (0..=i).for_each(|j| f(start + j * ROWS + i % ROWS, i * (i + 1) / 2 + j));
        }
        start += columns * ROWS;
    }
}

/// Euclidean norm of `L v` for panels of `L` and `v` `[dim]`.
///
/// # Panics
/// When the panels are not of this dimension (a mistake of the caller).
pub fn norm(panels: &[f16], v: &[f32]) -> f32 {
    assert_eq!(panels.len(), len(v.len()), "triangular: panels of {} rows", v.len());
    #[cfg(target_arch = "x86_64")]
    if pulp::x86::V4::try_new().is_some() {
        // SAFETY: the processor has what V4 stands for, AVX-512 F among it.
        return unsafe { x86::norm_by_sixteen(panels, v) };
    } else if pulp::x86::V3::try_new().is_some() && std::arch::is_x86_feature_detected!("f16c") {
        // SAFETY: likewise, AVX2 and FMA.
        return unsafe { x86::norm_by_eight(panels, v) };
    }
    plain(panels, v)
}

vectorised! {
    /// For processors that widen no halves in registers, or of which that is not known here.
    fn plain<'a>(panels: &'a [f16], v: &'a [f32]) -> f32 {
        let (mut total, mut rest) = ([0.0f32; ROWS], panels);
        for columns in columns(v.len()) {
            let (panel, tail) = rest.split_at(columns * ROWS);
            let mut sums = [[0.0f32; ROWS]; SUMS];
            let mut some = [0.0; WIDENED * ROWS];
            for (panel, v) in panel.chunks(WIDENED * ROWS).zip(v.chunks(WIDENED)) {
                let some = &mut some[..panel.len()];
                panel.convert_to_f32_slice(some);
                for (fours, v) in some.chunks(SUMS * ROWS).zip(v.chunks(SUMS)) {
                    for ((sums, column), v) in sums.iter_mut().zip(fours.as_chunks::<ROWS>().0).zip(v) {
                        for (sum, l) in sums.iter_mut().zip(column) {
                            *sum = l.mul_add(*v, *sum);
                        }
                    }
                }
            }
            for (i, total) in total.iter_mut().enumerate() {
                let y = (sums[0][i] + sums[1][i]) + (sums[2][i] + sums[3][i]);
                *total = y.mul_add(y, *total);
            }
            rest = tail;
        }
        root(total)
    }
}

fn root(total: [f32; ROWS]) -> f32 {
    total.into_iter().sum::<f32>().sqrt()
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    use half::f16;

    use super::{ROWS, SUMS, columns, root};

    /// See [`plain`](super::plain).
    macro_rules! norm {
        ($name:ident, $features:literal, $lanes:literal, $set1:ident, $add:ident, $fma:ident, $store:ident, $widened:expr) => {
            #[target_feature(enable = $features)]
            pub(super) fn $name(panels: &[f16], v: &[f32]) -> f32 {
                const VECTORS: usize = ROWS / $lanes;
                let (mut total, mut rest) = ([$set1(0.0); VECTORS], panels.as_chunks::<ROWS>().0);
                for columns in columns(v.len()) {
                    let (panel, tail) = rest.split_at(columns);
                    let mut sums = [[$set1(0.0); VECTORS]; SUMS];
                    let (fours, last) = panel.as_chunks::<SUMS>();
                    let (v_fours, v_last) = v[..columns].as_chunks::<SUMS>();
                    for (four, v) in fours.iter().zip(v_fours) {
                        for i in 0..SUMS {
                            for part in 0..VECTORS {
                                // SAFETY: a column has halves for all vectors.
                                let l = unsafe { $widened(four[i].as_ptr().add(part * $lanes)) };
                                sums[i][part] = $fma(l, $set1(v[i]), sums[i][part]);
                            }
                        }
                    }
                    for i in 0..last.len() {
                        for part in 0..VECTORS {
                            // SAFETY: as above.
                            let l = unsafe { $widened(last[i].as_ptr().add(part * $lanes)) };
                            sums[i][part] = $fma(l, $set1(v_last[i]), sums[i][part]);
                        }
                    }
                    for part in 0..VECTORS {
                        let y = $add($add(sums[0][part], sums[1][part]), $add(sums[2][part], sums[3][part]));
                        total[part] = $fma(y, y, total[part]);
                    }
                    rest = tail;
                }
                let mut lanes = [0.0; ROWS];
                for part in 0..VECTORS {
                    // SAFETY: there is room for all vectors.
                    unsafe { $store(lanes.as_mut_ptr().add(part * $lanes), total[part]) };
                }
                root(lanes)
            }
        };
    }

    norm!(norm_by_sixteen, "avx512f", 16, _mm512_set1_ps, _mm512_add_ps, _mm512_fmadd_ps, _mm512_storeu_ps, sixteen);
    norm!(norm_by_eight, "avx2,fma,f16c", 8, _mm256_set1_ps, _mm256_add_ps, _mm256_fmadd_ps, _mm256_storeu_ps, eight);

    /// # Safety
    /// There are sixteen halves.
    #[target_feature(enable = "avx512f")]
    unsafe fn sixteen(halves: *const f16) -> __m512 {
        // SAFETY: sixteen halves are 32 bytes.
        _mm512_cvtph_ps(unsafe { _mm256_loadu_si256(halves.cast()) })
    }

    /// # Safety
    /// There are eight halves.
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn eight(halves: *const f16) -> __m256 {
        // SAFETY: eight halves are 16 bytes.
        _mm256_cvtph_ps(unsafe { _mm_loadu_si128(halves.cast()) })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]

        #[test]
        fn is_the_length_of_the_plain_product_on_every_processor(dim in 1usize..150, seed in 0u32..100) {
            let value = |i: usize| ((i as f32 + seed as f32) * 0.7371).sin();
            let rows: Vec<f16> = (0..dim * (dim + 1) / 2).map(|i| f16::from_f32(value(i))).collect();
            let v: Vec<f32> = (0..dim).map(|i| value(3 * i)).collect();
            let panels = pack(&rows, dim);
            prop_assert_eq!(&unpack(&panels, dim), &rows);
            let product = |i: usize| -> f64 {
                let row = &rows[i * (i + 1) / 2..][..=i];
                row.iter().zip(&v).map(|(l, v)| l.to_f64() * f64::from(*v)).sum()
            };
            let expected = (0..dim).map(|i| product(i).powi(2)).sum::<f64>().sqrt();
            let found = norm(&panels, &v);
            prop_assert!((f64::from(found) - expected).abs() < 1e-5 * expected.max(1.0), "{found} not {expected}");
            prop_assert_eq!(found, plain(&panels, &v), "the same bits on a processor without such vectors");
            #[cfg(target_arch = "x86_64")]
            if pulp::x86::V3::try_new().is_some() && std::arch::is_x86_feature_detected!("f16c") {
                // SAFETY: the processor has what it takes.
                prop_assert_eq!(found, unsafe { x86::norm_by_eight(&panels, &v) }, "and with vectors of eight");
            }
        }
    }
}
