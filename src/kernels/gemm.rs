//! Matrix product on slices with a fused epilogue: `C = act(A B + bias + add)`.
//!
//! One register tile does all the work: a few rows of A are broadcast against two vectors of a packed panel of B. A and B
//! are given with both strides, so the three products of a linear layer (forward, gradient of the input, gradient of the
//! weights) need no transposed copies. Every element of C is one chain of fused multiply-adds in the order of k: its bits
//! do not depend on the other rows, on the threads or on the vector width.

use std::cell::RefCell;

use pulp::{Arch, Simd, WithSimd};

/// A matrix given by its slice and the distance between neighbouring rows and columns.
#[derive(Clone, Copy)]
pub struct Matrix<'a> {
    /// Elements.
    pub data: &'a [f32],
    /// Distance between rows.
    pub row: usize,
    /// Distance between columns.
    pub col: usize,
}

impl<'a> Matrix<'a> {
    /// Row-major with `columns` columns.
    pub fn rows(data: &'a [f32], columns: usize) -> Self {
        Self { data, row: columns, col: 1 }
    }

    /// The transpose of a row-major matrix with `columns` columns.
    pub fn transposed(data: &'a [f32], columns: usize) -> Self {
        Self { data, row: 1, col: columns }
    }
}

/// What happens to a sum before it is stored.
#[derive(Clone, Copy, Default)]
pub struct Epilogue<'a> {
    /// Added to every row. `[n]`
    pub bias: Option<&'a [f32]>,
    /// Added element by element; laid out like C. `[m, n]`
    pub add: Option<&'a [f32]>,
    /// Clamps to 0..=6.
    pub relu6: bool,
    /// Adds to what C holds.
    pub accumulate: bool,
}

/// A right-hand matrix `[k, n]` cut into panels as wide as the register tile. Packing is worth keeping where the matrix
/// meets more than one product (the weights of a layer, once per call for a whole batch).
#[derive(Clone, Default)]
pub struct Packed {
    data: Vec<f32>, // [panels, k, width]
    k: usize,
    n: usize,
}

impl Packed {
    /// Packs `b`, of shape `[k, n]`.
    ///
    /// # Panics
    /// When the slice is shorter than its shape says (a mistake of the caller).
    pub fn new(k: usize, n: usize, b: Matrix<'_>) -> Self {
        let mut packed = Self::default();
        packed.refill(k, n, b);
        packed
    }

    /// Packs another matrix into the same memory.
    pub fn refill(&mut self, k: usize, n: usize, b: Matrix<'_>) {
        let width = NV * Arch::new().dispatch(Lanes);
        let panels = n.div_ceil(width);
        (self.k, self.n) = (k, n);
        self.data.clear();
        self.data.resize(panels * k * width, 0.0);
        if k == 0 {
            return;
        }
        for (index, panel) in self.data.chunks_exact_mut(k * width).enumerate() {
            pack(panel, width, b, index * width, width.min(n - index * width), k);
        }
    }
}

/// `C [m, n] = A [m, k] * B [k, n]` with an epilogue; C is row-major with `n` columns.
///
/// # Panics
/// When a slice is shorter than its shape says (a mistake of the caller).
pub fn gemm(m: usize, a: Matrix<'_>, b: &Packed, c: &mut [f32], epilogue: Epilogue<'_>) {
    if m == 0 || b.n == 0 {
        return;
    }
    assert!(c.len() >= m * b.n, "gemm: C has {} elements, {m}x{} are written", c.len(), b.n);
    Arch::new().dispatch(Product { m, a, b, c, epilogue });
}

/// `gemm` with a B that is used once: packed into memory that the thread keeps.
pub fn gemm_once(m: usize, n: usize, k: usize, a: Matrix<'_>, b: Matrix<'_>, c: &mut [f32], epilogue: Epilogue<'_>) {
    PACKED.with_borrow_mut(|packed| {
        packed.refill(k, n, b);
        gemm(m, a, packed, c, epilogue);
    });
}

thread_local! {
    static PACKED: RefCell<Packed> = RefCell::new(Packed::default());
}

struct Lanes;

impl WithSimd for Lanes {
    type Output = usize;

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) -> usize {
        S::F32_LANES
    }
}

struct Product<'a> {
    m: usize,
    a: Matrix<'a>,
    b: &'a Packed,
    c: &'a mut [f32],
    epilogue: Epilogue<'a>,
}

/// Vectors per row of the register tile.
const NV: usize = 2;
/// Rows of A whose sums are formed before the next panel: keeps that part of A in the first-level cache.
const ROW_BLOCK: usize = 96;

impl WithSimd for Product<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        // 32 registers hold 12 x 2 sums, 16 registers 6 x 2.
        if S::F32_LANES >= 16 { self.run::<S, 12>(simd) } else { self.run::<S, 6>(simd) }
    }
}

impl Product<'_> {
    #[inline(always)]
    fn run<S: Simd, const MR: usize>(self, simd: S) {
        let Self { m, a, b: Packed { data: packed, k, n }, c, epilogue } = self;
        let (k, n) = (*k, *n);
        let width = NV * S::F32_LANES;
        for block in (0..m).step_by(ROW_BLOCK) {
            let block_end = (block + ROW_BLOCK).min(m);
            for panel in 0..n.div_ceil(width) {
                let j = panel * width;
                let cols = width.min(n - j);
                let (vectors, _) = S::as_simd_f32s(&packed[panel * k * width..][..k * width]);
                let (vectors, _) = vectors.as_chunks::<NV>();
                let mut sums: Sums = [[0.0; NV * MAX_LANES]; MAX_ROWS];
                let mut i = block;
                while i < block_end {
                    let rows = if i + MR <= block_end { MR } else { 1 };
                    if rows == MR {
                        tile::<S, MR>(simd, k, a, i, vectors, &mut sums);
                    } else {
                        tile::<S, 1>(simd, k, a, i, vectors, &mut sums);
                    }
                    store(&sums, c, n, &Corner { rows, i, j, cols }, &epilogue);
                    i += rows;
                }
            }
        }
    }
}

/// Copies `cols` columns of B from column `j` into rows of `width` elements; the rest of a row stays 0.
#[inline(always)]
fn pack(panel: &mut [f32], width: usize, b: Matrix<'_>, j: usize, cols: usize, k: usize) {
    if b.col == 1 {
        for (p, row) in panel.chunks_exact_mut(width).enumerate() {
            row[..cols].copy_from_slice(&b.data[p * b.row + j..][..cols]);
        }
    } else {
        for x in 0..cols {
            let column = &b.data[(j + x) * b.col..];
            for p in 0..k {
                panel[p * width + x] = column[p * b.row];
            }
        }
    }
}

#[inline(always)]
fn tile<S: Simd, const MR: usize>(simd: S, k: usize, a: Matrix<'_>, i: usize, panel: &[[S::f32s; NV]], out: &mut Sums) {
    let zero = simd.splat_f32s(0.0);
    let mut sums = [[zero; NV]; MR];
    if k == 0 {
        // nothing to add
    } else if a.row == 1 && a.col >= MR {
        // A is a transpose, read along its columns: MR neighbours at a time.
        for (b, column) in panel.iter().zip(a.data[i..].chunks(a.col)) {
            let Some(column) = column.first_chunk::<MR>() else { break };
            for r in 0..MR {
                let x = simd.splat_f32s(column[r]);
                for v in 0..NV {
                    sums[r][v] = simd.mul_add_e_f32s(x, b[v], sums[r][v]);
                }
            }
        }
    } else {
        debug_assert_eq!(a.col, 1, "A must be row-major or a transpose");
        let rows: [&[f32]; MR] = std::array::from_fn(|r| &a.data[(i + r) * a.row..][..k]);
        let panel = &panel[..k]; // tells the compiler that p is in range below
        for p in 0..k {
            let b = &panel[p];
            for r in 0..MR {
                let x = simd.splat_f32s(rows[r][p]);
                for v in 0..NV {
                    sums[r][v] = simd.mul_add_e_f32s(x, b[v], sums[r][v]);
                }
            }
        }
    }
    for (row, out) in sums.iter().zip(out.iter_mut()) {
        let (vectors, _) = S::as_mut_simd_f32s(out);
        vectors[..NV].copy_from_slice(row);
    }
}

/// Sums of one register tile on their way out of the registers: rows of at most `NV * 16` columns.
type Sums = [[f32; NV * MAX_LANES]; MAX_ROWS];
/// The widest vectors there are.
const MAX_LANES: usize = 16;
/// The tallest register tile.
const MAX_ROWS: usize = 12;

/// The part of C that a tile covers.
struct Corner {
    rows: usize,
    i: usize,
    j: usize,
    cols: usize,
}

/// Applies the epilogue to a tile and stores it. Plain loops: once per tile, not once per k.
#[inline(always)]
fn store(sums: &Sums, c: &mut [f32], n: usize, corner: &Corner, epilogue: &Epilogue<'_>) {
    let Corner { rows, i, j, cols } = *corner;
    for (r, row) in sums.iter().take(rows).enumerate() {
        let at = (i + r) * n + j;
        let mut row = *row;
        if let Some(bias) = epilogue.bias {
            add(&mut row, &bias[j..][..cols]);
        }
        if let Some(other) = epilogue.add {
            add(&mut row, &other[at..][..cols]);
        }
        let out = &mut c[at..][..cols];
        if epilogue.accumulate {
            add(&mut row, out);
        }
        if epilogue.relu6 {
            row.iter_mut().for_each(|y| *y = y.clamp(0.0, 6.0));
        }
        out.copy_from_slice(&row[..cols]);
    }
}

#[inline(always)]
fn add(row: &mut [f32], other: &[f32]) {
    for (y, x) in row.iter_mut().zip(other) {
        *y += x;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn values(n: usize, seed: u32) -> Vec<f32> {
        (0..n).map(|i| ((i as f32 + seed as f32) * 0.7371).sin()).collect()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn equals_the_plain_sum(m in 1usize..40, n in 1usize..80, k in 0usize..60, ta: bool, tb: bool, relu6: bool, accumulate: bool) {
            let (a, b) = (values(m * k, 1), values(k * n, 2));
            let (bias, add, before) = (values(n, 3), values(m * n, 4), values(m * n, 5));
            let am = if ta { Matrix::transposed(&a, m) } else { Matrix::rows(&a, k) };
            let bm = if tb { Matrix::transposed(&b, k) } else { Matrix::rows(&b, n) };
            let mut c = before.clone();
            gemm_once(m, n, k, am, bm, &mut c, Epilogue { bias: Some(&bias), add: Some(&add), relu6, accumulate });
            for i in 0..m {
                for j in 0..n {
                    let mut y = 0.0;
                    for p in 0..k {
                        y += a[i * am.row + p * am.col] * b[p * bm.row + j * bm.col];
                    }
                    y += bias[j] + add[i * n + j];
                    if accumulate { y += before[i * n + j]; }
                    if relu6 { y = y.clamp(0.0, 6.0); }
                    prop_assert!((c[i * n + j] - y).abs() < 1e-4, "({i},{j}): {} != {y}", c[i * n + j]);
                }
            }
        }

        #[test]
        fn a_row_does_not_depend_on_its_neighbours(m in 2usize..40, n in 1usize..70, k in 1usize..200) {
            let (a, b) = (values(m * k, 6), values(k * n, 7));
            let mut all = vec![0.0; m * n];
            gemm_once(m, n, k, Matrix::rows(&a, k), Matrix::rows(&b, n), &mut all, Epilogue::default());
            let mut one = vec![0.0; n];
            for i in 0..m {
                gemm_once(1, n, k, Matrix::rows(&a[i * k..], k), Matrix::rows(&b, n), &mut one, Epilogue::default());
                prop_assert_eq!(&all[i * n..][..n], &one[..]);
            }
        }
    }
}
