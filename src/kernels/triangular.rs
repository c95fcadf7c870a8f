//! Lengths of products with lower triangular matrices in half precision: the distances of cells. The matrices of a frame are
//! more than a cache holds, so that what counts is to read each number once, in order, and to widen it in registers.
//!
//! A matrix lies in panels of [`ROWS`] rows, column by column: panel `p` holds columns 0 to `ROWS (p + 1)`, with zeros above the
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
        return unsafe { wide::norm(panels, v) };
    }
    plain(panels, v)
}

vectorised! {
    /// For processors without the widest vectors, which widen some numbers at a time.
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
mod wide {
    use std::arch::x86_64::{
        __m512, _mm256_loadu_si256, _mm512_add_ps, _mm512_cvtph_ps, _mm512_fmadd_ps, _mm512_set1_ps, _mm512_storeu_ps,
    };

    use half::f16;

    use super::{ROWS, SUMS, columns, root};

    /// See [`plain`](super::plain).
    #[target_feature(enable = "avx512f")]
    pub(super) fn norm(panels: &[f16], v: &[f32]) -> f32 {
        let (mut total, mut rest) = (_mm512_set1_ps(0.0), panels.as_chunks::<ROWS>().0);
        for columns in columns(v.len()) {
            let (panel, tail) = rest.split_at(columns);
            let mut sums = [_mm512_set1_ps(0.0); SUMS];
            let (fours, last) = panel.as_chunks::<SUMS>();
            let (v_fours, v_last) = v[..columns].as_chunks::<SUMS>();
            for (four, v) in fours.iter().zip(v_fours) {
                for i in 0..SUMS {
                    sums[i] = _mm512_fmadd_ps(widened(&four[i]), _mm512_set1_ps(v[i]), sums[i]);
                }
            }
            for i in 0..last.len() {
                sums[i] = _mm512_fmadd_ps(widened(&last[i]), _mm512_set1_ps(v_last[i]), sums[i]);
            }
            let y = _mm512_add_ps(_mm512_add_ps(sums[0], sums[1]), _mm512_add_ps(sums[2], sums[3]));
            total = _mm512_fmadd_ps(y, y, total);
            rest = tail;
        }
        let mut lanes = [0.0; ROWS];
        // SAFETY: there is room for sixteen.
        unsafe { _mm512_storeu_ps(lanes.as_mut_ptr(), total) };
        root(lanes)
    }

    #[target_feature(enable = "avx512f")]
    fn widened(column: &[f16; ROWS]) -> __m512 {
        // SAFETY: sixteen halves are 32 bytes.
        _mm512_cvtph_ps(unsafe { _mm256_loadu_si256(column.as_ptr().cast()) })
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
            prop_assert_eq!(found, plain(&panels, &v), "the same bits without wide vectors");
        }
    }
}
