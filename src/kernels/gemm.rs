//! Matrix product on slices with a fused epilogue: `C = act(A B + bias + add)`.
//!
//! One register tile does all the work: a few rows of A are broadcast against one or two vectors of a packed panel of B. A and
//! B are given with both strides, so the three products of a linear layer (forward, gradient of the input, gradient of the
//! weights) need no transposed copies. Rows are shared out evenly over tiles, since a tile of few rows waits for its own sums,
//! and the last panel is one vector wide where that is enough. Every element of C is one chain of fused multiply-adds in the
//! order of k, which may be continued by another call: its bits do not depend on the other rows, on the threads or on the
//! vector width.

use std::cell::RefCell;
use std::ops::Range;

use pulp::{Arch, Simd, WithSimd};

use super::bf16::{Bf16, words};
use super::buffer::Buffer;
use super::pointwise::gelu_in_place;
use super::simd::{lanes, relu6};

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

/// An activation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Act {
    /// Clamps to 0..=6.
    Relu6,
    /// GELU in its tanh form.
    Gelu,
}

/// What happens to a sum before it is stored.
#[derive(Clone, Copy, Default)]
pub struct Epilogue<'a> {
    /// Added to every row. `[n]`
    pub bias: Option<&'a [f32]>,
    /// Added element by element; laid out like C. `[m, n]`
    pub add: Option<&'a [f32]>,
    /// Applied last.
    pub act: Option<Act>,
    /// The sums go on from what C holds.
    pub accumulate: bool,
}

/// Where the rows of C lie: `run` rows one behind the other, the next `run` of them `jump` elements after the first.
#[derive(Clone, Copy)]
pub struct Rows {
    /// Distance between neighbouring rows.
    pub row: usize,
    /// Rows of a run.
    pub run: usize,
    /// Distance between the first rows of neighbouring runs.
    pub jump: usize,
}

/// The numbers that are multiplied; they are added up in single precision always.
#[derive(Clone, Copy, Debug, Default)]
pub enum Factors {
    /// Single precision.
    #[default]
    F32,
    /// Rounded to bfloat16, two at a time.
    Bf16(Bf16),
}

/// A right-hand matrix `[k, n]` cut into panels as wide as the register tile. Packing is worth keeping where the matrix
/// meets more than one product (the weights of a layer). It says in which numbers it is multiplied: the rows of A that meet
/// it are rounded on their way.
#[derive(Clone, Debug, Default)]
pub struct Packed {
    factors: Factors,
    data: Buffer,       // [panels, k, width]; the last panel may be one vector wide
    words: Buffer<u32>, // or, of bfloat16, [panels, k / 2, width]
    k: usize,
    n: usize,
}

impl Packed {
    /// Packs `b`, of shape `[k, n]`.
    ///
    /// # Panics
    /// When the slice is shorter than its shape says (a mistake of the caller).
    pub fn new(factors: Factors, k: usize, n: usize, b: Matrix<'_>) -> Self {
        let mut packed = Self::default();
        packed.refill(factors, k, n, b);
        packed
    }

    /// Packs another matrix into the same memory.
    pub fn refill(&mut self, factors: Factors, k: usize, n: usize, b: Matrix<'_>) {
        let lanes = lanes();
        let (width, padded) = (NV * lanes, n.div_ceil(lanes) * lanes);
        (self.factors, self.k, self.n) = (factors, k, n);
        if k == 0 {
            return;
        }
        let cols = |index: usize| width.min(n - index * width);
        match factors {
            Factors::F32 => {
                for (index, panel) in self.data.zeroed(padded * k).chunks_mut(k * width).enumerate() {
                    pack(panel, panel.len() / k, b, index * width, cols(index), k);
                }
            }
            Factors::Bf16(bf16) => {
                let words = words(k);
                for (index, panel) in self.words.zeroed(padded * words).chunks_mut(words * width).enumerate() {
                    bf16.pack(panel, panel.len() / words, b, index * width, cols(index), k);
                }
            }
        }
    }

    /// The numbers that it is multiplied in.
    pub fn factors(&self) -> Factors {
        self.factors
    }

    /// Rows and columns.
    pub fn shape(&self) -> (usize, usize) {
        (self.k, self.n)
    }
}

/// `C [m, n] = A [m, k] * B [k, n]` with an epilogue; C is row-major with `n` columns.
///
/// # Panics
/// When a slice is shorter than its shape says (a mistake of the caller).
pub fn gemm(m: usize, a: Matrix<'_>, b: &Packed, c: &mut [f32], epilogue: Epilogue<'_>) {
    let rows = Rows { row: b.n, run: m.max(1), jump: 0 };
    gemm_part(m, a, b, (0..b.k, 0..b.n), c, rows, epilogue);
}

/// A part of the product: rows `k` and columns `n` of B, columns `k` of A (the first of them is the first of `a`), columns `n`
/// of C (likewise). `n` begins at a multiple of [`PART`], and so do `k` where they are not all; bias and `add` are those of this
/// part.
///
/// # Panics
/// When a slice is shorter than its shape says, or the part begins elsewhere (mistakes of the caller).
pub fn gemm_part(
    m: usize,
    a: Matrix<'_>,
    b: &Packed,
    (k, n): (Range<usize>, Range<usize>),
    c: &mut [f32],
    rows: Rows,
    epilogue: Epilogue<'_>,
) {
    if m == 0 || n.is_empty() {
        return;
    }
    let even =
        matches!(b.factors, Factors::F32) || (k.start.is_multiple_of(2) && (k.end == b.k || k.end.is_multiple_of(2)));
    assert!(even && k.end <= b.k && n.end <= b.n && n.start.is_multiple_of(PART), "gemm: no part {k:?}, {n:?} of B");
    ROUNDED.with_borrow_mut(|rounded| Arch::new().dispatch(Product { m, a, b, k, n, c, rows, epilogue, rounded }));
}

/// `gemm` with a B that is used once: packed into memory that the thread keeps.
pub fn gemm_once(
    factors: Factors,
    [m, n, k]: [usize; 3],
    a: Matrix<'_>,
    b: Matrix<'_>,
    c: &mut [f32],
    epilogue: Epilogue<'_>,
) {
    PACKED.with_borrow_mut(|packed| {
        packed.refill(factors, k, n, b);
        gemm(m, a, packed, c, epilogue);
    });
}

thread_local! {
    /// The rows of A that are under way, rounded.
    static ROUNDED: RefCell<Buffer<u32>> = RefCell::default();
    static PACKED: RefCell<Packed> = RefCell::new(Packed::default());
}

struct Product<'a> {
    m: usize,
    a: Matrix<'a>,
    b: &'a Packed,
    k: Range<usize>,
    n: Range<usize>,
    c: &'a mut [f32],
    rows: Rows,
    epilogue: Epilogue<'a>,
    rounded: &'a mut Buffer<u32>,
}

/// Vectors per row of the register tile.
const NV: usize = 2;
/// Parts of a product begin at multiples of so many columns: whole panels for every vector width.
pub const PART: usize = 32;
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
        let Self { m, a, b, k, n, c, rows, epilogue, rounded } = self;
        let width = NV * S::F32_LANES;
        // Pieces of a run that neighbours share evenly, and as many of them as make a block of rows.
        let per_run = rows.run.div_ceil(ROW_BLOCK);
        let piece = rows.run.div_ceil(per_run);
        let (pieces, group) = (m.div_ceil(rows.run) * per_run, (ROW_BLOCK / piece).max(1));
        let (words, all_words, first_word) = (words(k.len()), words(b.k), k.start / 2);
        let first_of = |piece_index: usize| piece_index / per_run * rows.run + piece_index % per_run * piece;
        for block in (0..pieces).step_by(group) {
            let first_row = first_of(block);
            let rounded = match b.factors {
                Factors::F32 => &[][..],
                Factors::Bf16(bf16) => {
                    let end = if block + group < pieces { first_of(block + group).min(m) } else { m };
                    let rounded = rounded.of(end.saturating_sub(first_row) * words);
                    bf16.round_rows(a, first_row, k.len(), rounded);
                    &*rounded
                }
            };
            for j in (n.start..n.end).step_by(width) {
                let (at, cols) = (j - n.start, width.min(n.end - j));
                let padded = (b.n - j).div_ceil(S::F32_LANES).min(NV) * S::F32_LANES;
                let (panel, panel_words): (&[f32], &[u32]) = match b.factors {
                    Factors::F32 => (&b.data[j * b.k..][..b.k * padded][k.start * padded..k.end * padded], &[]),
                    Factors::Bf16(_) => {
                        let all = &b.words[j * all_words..][..all_words * padded];
                        (&[], &all[first_word * padded..][..words * padded])
                    }
                };
                for index in block..(block + group).min(pieces) {
                    let first = first_of(index);
                    let end = (index / per_run * rows.run + rows.run).min(first + piece).min(m);
                    if first >= end {
                        continue;
                    }
                    let origin = index / per_run * rows.jump + index % per_run * piece * rows.row + at;
                    let tiles = (end - first).div_ceil(MR);
                    let (low, more) = ((end - first) / tiles, (end - first) % tiles);
                    let mut done = 0;
                    for tile in 0..tiles {
                        let count = low + usize::from(tile < more);
                        let from = origin + done * rows.row;
                        let target = Target { c: &mut c[from..], from, j: at, cols, row: rows.row, epilogue };
                        match b.factors {
                            Factors::F32 => {
                                if padded == width {
                                    tile_of::<S, NV>(simd, count, a, first + done, panel, target);
                                } else {
                                    tile_of::<S, 1>(simd, count, a, first + done, panel, target);
                                }
                            }
                            Factors::Bf16(bf16) => {
                                let rows = &rounded[(first + done - first_row) * words..][..count * words];
                                bf16.tile(count, rows, panel_words, padded, target);
                            }
                        }
                        done += count;
                    }
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

/// Where the sums of a tile go.
pub(super) struct Target<'a, 'b> {
    /// C from the tile's first element on.
    c: &'b mut [f32],
    /// Index of that element in C.
    from: usize,
    /// Its column of the part.
    j: usize,
    /// Columns of the tile.
    cols: usize,
    /// Distance between rows.
    row: usize,
    epilogue: Epilogue<'a>,
}

impl Target<'_, '_> {
    /// What the sums go on from.
    #[inline(always)]
    pub(super) fn begin<S: Simd, const MR: usize, const V: usize>(&self, simd: S) -> [[S::f32s; V]; MR] {
        if self.epilogue.accumulate {
            return read_rows::<S, MR, V>(simd, self.c, self.row, self.cols);
        }
        [[simd.splat_f32s(0.0); V]; MR]
    }

    /// The epilogue, and the store.
    #[inline(always)]
    pub(super) fn end<S: Simd, const MR: usize, const V: usize>(self, simd: S, mut sums: [[S::f32s; V]; MR]) {
        let Self { c, from, j, cols, row, epilogue } = self;
        if let Some(bias) = epilogue.bias {
            let [bias] = read_rows::<S, 1, V>(simd, &bias[j..], cols, cols);
            for row in &mut sums {
                for v in 0..V {
                    row[v] = simd.add_f32s(row[v], bias[v]);
                }
            }
        }
        if let Some(other) = epilogue.add {
            let other = read_rows::<S, MR, V>(simd, &other[from..], row, cols);
            for r in 0..MR {
                for v in 0..V {
                    sums[r][v] = simd.add_f32s(sums[r][v], other[r][v]);
                }
            }
        }
        if epilogue.act == Some(Act::Relu6) {
            for sum in sums.as_flattened_mut() {
                *sum = relu6(simd, *sum);
            }
        }
        write_rows::<S, MR, V>(simd, sums, c, row, cols);
        if epilogue.act == Some(Act::Gelu) {
            for r in 0..MR {
                gelu_in_place(&mut c[r * row..][..cols]); // still in the first-level cache
            }
        }
    }
}

/// A tile of `count` rows from row `i` of A, at most 12.
#[inline(always)]
fn tile_of<S: Simd, const V: usize>(
    simd: S,
    count: usize,
    a: Matrix<'_>,
    i: usize,
    panel: &[f32],
    target: Target<'_, '_>,
) {
    macro_rules! heights {
        ($($rows:literal)*) => {
            match count {
                $($rows => simd.vectorize(Tile::<$rows, V> { a, i, panel, target }),)*
                _ => unreachable!("tiles have at most 12 rows"),
            }
        };
    }
    heights!(1 2 3 4 5 6 7 8 9 10 11 12);
}

/// Sums that stay in registers from the first multiply-add to the store.
struct Tile<'a, 'b, const MR: usize, const V: usize> {
    a: Matrix<'a>,
    i: usize,
    panel: &'a [f32],
    target: Target<'a, 'b>,
}

impl<const MR: usize, const V: usize> WithSimd for Tile<'_, '_, MR, V> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { a, i, panel, target } = self;
        let (panel, _) = S::as_simd_f32s(panel).0.as_chunks::<V>();
        let mut sums = target.begin::<S, MR, V>(simd);
        if panel.is_empty() {
            // nothing to add
        } else if a.row == 1 && a.col >= MR {
            // A is a transpose, read along its columns: MR neighbours at a time.
            for (b, column) in panel.iter().zip(a.data[i..].chunks(a.col)) {
                let Some(column) = column.first_chunk::<MR>() else { break };
                for r in 0..MR {
                    let x = simd.splat_f32s(column[r]);
                    for v in 0..V {
                        sums[r][v] = simd.mul_add_e_f32s(x, b[v], sums[r][v]);
                    }
                }
            }
        } else {
            debug_assert_eq!(a.col, 1, "A must be row-major or a transpose");
            let k = panel.len();
            let rows: [&[f32]; MR] = std::array::from_fn(|r| &a.data[(i + r) * a.row..][..k]);
            for p in 0..k {
                let b = &panel[p];
                for r in 0..MR {
                    let x = simd.splat_f32s(rows[r][p]);
                    for v in 0..V {
                        sums[r][v] = simd.mul_add_e_f32s(x, b[v], sums[r][v]);
                    }
                }
            }
        }
        target.end(simd, sums);
    }
}

/// Rows of `cols` elements, each `row` elements behind the last.
#[inline(always)]
fn read_rows<S: Simd, const MR: usize, const V: usize>(
    simd: S,
    values: &[f32],
    row: usize,
    cols: usize,
) -> [[S::f32s; V]; MR] {
    let mut vectors = [[simd.splat_f32s(0.0); V]; MR];
    if cols == V * S::F32_LANES {
        for r in 0..MR {
            let (whole, _) = S::as_simd_f32s(&values[r * row..]);
            vectors[r].copy_from_slice(&whole[..V]);
        }
        return vectors;
    }
    let mut some = [[simd.splat_f32s(0.0); V]; MR]; // indexed at run time: not in registers
    for (r, vectors) in some.iter_mut().enumerate() {
        for (vector, values) in vectors.iter_mut().zip(values[r * row..][..cols].chunks(S::F32_LANES)) {
            *vector = simd.partial_load_f32s(values);
        }
    }
    some
}

/// The inverse of [`read_rows`].
#[inline(always)]
fn write_rows<S: Simd, const MR: usize, const V: usize>(
    simd: S,
    sums: [[S::f32s; V]; MR],
    out: &mut [f32],
    row: usize,
    cols: usize,
) {
    if cols == V * S::F32_LANES {
        for r in 0..MR {
            let (whole, _) = S::as_mut_simd_f32s(&mut out[r * row..]);
            whole[..V].copy_from_slice(&sums[r]);
        }
        return;
    }
    let some = sums; // indexed at run time: not in registers
    for (r, sums) in some.iter().enumerate() {
        for (out, sum) in out[r * row..][..cols].chunks_mut(S::F32_LANES).zip(sums) {
            simd.partial_store_f32s(out, *sum);
        }
    }
}

#[cfg(test)]
mod tests;
