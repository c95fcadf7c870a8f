//! Depthwise convolution, channels last: vectors run along the channels, a few neighbouring outputs share each weight.
//!
//! Inputs come with their border already there (`pad`), so that the loops have no edges.

use std::ops::Range;

use pulp::{Arch, Simd, WithSimd};

use super::simd::relu6;

/// Shape of one depthwise convolution over a padded image.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    /// Columns of the padded input.
    pub padded_width: usize,
    /// Channels.
    pub channels: usize,
    /// Side of the square kernel: 3, 5 or 7.
    pub kernel: usize,
    /// 1 or 2.
    pub stride: usize,
    /// Columns of the output.
    pub out_width: usize,
}

/// Copies `image` `[height, width, channels]` into the middle of zeros: `[height + top + bottom, width + left + right, channels]`.
pub fn pad(image: &[f32], width: usize, channels: usize, [top, bottom, left, right]: [usize; 4], out: &mut Vec<f32>) {
    let row = width * channels;
    let height = image.len() / row.max(1);
    let padded = (width + left + right) * channels;
    out.clear();
    out.resize((height + top + bottom) * padded, 0.0);
    for (y, line) in image.chunks_exact(row).enumerate() {
        out[(y + top) * padded + left * channels..][..row].copy_from_slice(line);
    }
}

/// Output rows from the padded rows they need: `out` `[rows, out_width, channels]`, `padded`
/// `[(rows - 1) * stride + kernel, padded_width, channels]`, `weights` `[kernel, kernel, channels]`, `bias` `[channels]`.
///
/// # Panics
/// When a slice does not fit the shape, the kernel is not 3, 5 or 7 or the stride not 1 or 2 (mistakes of the caller).
pub fn forward(padded: &[f32], weights: &[f32], bias: &[f32], out: &mut [f32], shape: Shape, relu6: bool) {
    let (arch, layer) = (Arch::new(), Forward { padded, weights, bias, out, shape, relu6 });
    match (shape.kernel, shape.stride) {
        (3, 1) => arch.dispatch(Planes::<3, 1>(layer)),
        (3, 2) => arch.dispatch(Planes::<3, 2>(layer)),
        (5, 1) => arch.dispatch(Planes::<5, 1>(layer)),
        (5, 2) => arch.dispatch(Planes::<5, 2>(layer)),
        (7, 1) => arch.dispatch(Planes::<7, 1>(layer)),
        (7, 2) => arch.dispatch(Planes::<7, 2>(layer)),
        (kernel, stride) => {
            panic!("depthwise: expected a kernel of 3, 5 or 7 and a stride of 1 or 2, got {kernel} and {stride}")
        }
    }
}

/// Adds the gradient of the weights and of the bias to `grad_weights` `[kernel, kernel, channels]` and `grad_bias`
/// `[channels]`; `grad` is the gradient of the output `[rows, out_width, channels]`.
///
/// # Panics
/// As `forward`.
pub fn backward_weights(padded: &[f32], grad: &[f32], grad_weights: &mut [f32], grad_bias: &mut [f32], shape: Shape) {
    match shape.kernel {
        3 => Arch::new().dispatch(Backward::<3> { padded, grad, grad_weights, grad_bias, shape }),
        5 => Arch::new().dispatch(Backward::<5> { padded, grad, grad_weights, grad_bias, shape }),
        7 => Arch::new().dispatch(Backward::<7> { padded, grad, grad_weights, grad_bias, shape }),
        other => panic!("depthwise kernel must be 3, 5 or 7, got {other}"),
    }
}

/// The kernel of the gradient of the input: taps in reverse order. `[kernel, kernel, channels]`
pub fn flipped(weights: &[f32], channels: usize) -> Vec<f32> {
    weights.rchunks_exact(channels).flatten().copied().collect()
}

/// First channel of each vector. The last one overlaps its neighbour where the channels do not divide: both write the same.
fn starts(channels: usize, lanes: usize) -> impl Iterator<Item = usize> {
    let last = channels.saturating_sub(lanes);
    (0..channels.div_ceil(lanes)).map(move |i| (i * lanes).min(last))
}

#[inline(always)]
fn load<S: Simd>(_: S, data: &[f32], at: usize) -> S::f32s {
    S::as_simd_f32s(&data[at..][..S::F32_LANES]).0[0]
}

#[inline(always)]
fn store<S: Simd>(_: S, data: &mut [f32], at: usize, value: S::f32s) {
    S::as_mut_simd_f32s(&mut data[at..][..S::F32_LANES]).0[0] = value;
}

struct Forward<'a> {
    padded: &'a [f32],
    weights: &'a [f32],
    bias: &'a [f32],
    out: &'a mut [f32],
    shape: Shape,
    relu6: bool,
}

/// All outputs, one vector of channels after the other: what neighbours share of the input stays in the first-level cache.
struct Planes<'a, const K: usize, const STRIDE: usize>(Forward<'a>);

impl<const K: usize, const STRIDE: usize> WithSimd for Planes<'_, K, STRIDE> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        if self.0.shape.channels < S::F32_LANES {
            return self.with_simd(pulp::Scalar::new()); // fewer channels than lanes: one at a time
        }
        let Self(mut layer) = self;
        let width = layer.shape.out_width;
        // Outputs that are formed together share weights and inputs; the columns are shared out evenly, as few outputs wait for
        // their own sums.
        let most = if S::F32_LANES >= 16 { 8 } else { 4 };
        let tiles = width.div_ceil(most);
        if tiles == 0 {
            return;
        }
        let (low, more) = (width / tiles, width % tiles);
        let middle = more * (low + 1);
        macro_rules! columns {
            ($count:expr, $from:expr, $columns:expr, $($n:literal)*) => {
                match $count {
                    $($n => simd.vectorize(Columns::<K, STRIDE, $n> { layer: &mut layer, from: $from, columns: $columns }),)*
                    _ => unreachable!("at most 8 outputs are formed together"),
                }
            };
        }
        for from in starts(layer.shape.channels, S::F32_LANES) {
            if more > 0 {
                columns!(low + 1, from, 0..middle, 1 2 3 4 5 6 7 8);
            }
            columns!(low, from, middle..width, 1 2 3 4 5 6 7 8);
        }
    }
}

/// One vector of channels of some columns, `N` outputs at a time.
struct Columns<'a, 'b, const K: usize, const STRIDE: usize, const N: usize> {
    layer: &'a mut Forward<'b>,
    from: usize,
    columns: Range<usize>,
}

/// Inputs of a row that are held in registers: of 8 outputs with a kernel of 7 and a stride of 2.
const INPUTS: usize = 21;

impl<const K: usize, const STRIDE: usize, const N: usize> WithSimd for Columns<'_, '_, K, STRIDE, N> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { layer: Forward { padded, weights, bias, out, shape, relu6: clamps }, from, columns } = self;
        let Shape { padded_width, channels, out_width, .. } = *shape;
        let bias = load(simd, bias, from);
        for (y, out) in out.chunks_exact_mut(out_width * channels).enumerate() {
            for x in columns.clone().step_by(N) {
                let mut sums = [bias; N];
                for ky in 0..K {
                    let row = &padded[((y * STRIDE + ky) * padded_width + x * STRIDE) * channels + from..];
                    let row = &row[..((N - 1) * STRIDE + K - 1) * channels + S::F32_LANES];
                    let mut inputs = [simd.splat_f32s(0.0); INPUTS];
                    for (i, input) in inputs.iter_mut().enumerate().take((N - 1) * STRIDE + K) {
                        *input = load(simd, row, i * channels);
                    }
                    let taps = &weights[ky * K * channels + from..][..(K - 1) * channels + S::F32_LANES];
                    for kx in 0..K {
                        let w = load(simd, taps, kx * channels);
                        for i in 0..N {
                            sums[i] = simd.mul_add_e_f32s(inputs[i * STRIDE + kx], w, sums[i]);
                        }
                    }
                }
                for (i, sum) in sums.into_iter().enumerate() {
                    let sum = if *clamps { relu6(simd, sum) } else { sum };
                    store(simd, out, (x + i) * channels + from, sum);
                }
            }
        }
    }
}

struct Backward<'a, const K: usize> {
    padded: &'a [f32],
    grad: &'a [f32],
    grad_weights: &'a mut [f32],
    grad_bias: &'a mut [f32],
    shape: Shape,
}

impl<const K: usize> WithSimd for Backward<'_, K> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Shape { padded_width, channels, stride, out_width, .. } = self.shape;
        if channels < S::F32_LANES {
            return self.with_simd(pulp::Scalar::new()); // fewer channels than lanes: one at a time
        }
        let rows = self.grad.len() / (out_width * channels).max(1);
        let mut done = 0; // channels already summed: the overlapping part of the last vector must not count twice
        for from in starts(channels, S::F32_LANES) {
            let skip = done - from;
            let keep = |target: &mut [f32], sum: S::f32s| {
                let mut lanes = [0.0; 16];
                store(simd, &mut lanes, 0, sum);
                for (t, s) in target[from..from + S::F32_LANES].iter_mut().zip(&lanes).skip(skip) {
                    *t += s;
                }
            };
            let mut bias = simd.splat_f32s(0.0);
            for ky in 0..K {
                let mut sums = [simd.splat_f32s(0.0); K];
                for y in 0..rows {
                    let row = &self.padded[(y * stride + ky) * padded_width * channels + from..];
                    for x in 0..out_width {
                        let g = load(simd, self.grad, (y * out_width + x) * channels + from);
                        if ky == 0 {
                            bias = simd.add_f32s(bias, g);
                        }
                        for (kx, sum) in sums.iter_mut().enumerate() {
                            *sum = simd.mul_add_e_f32s(load(simd, row, (x * stride + kx) * channels), g, *sum);
                        }
                    }
                }
                for (kx, &sum) in sums.iter().enumerate() {
                    keep(&mut self.grad_weights[(ky * K + kx) * channels..][..channels], sum);
                }
            }
            keep(self.grad_bias, bias);
            done = from + S::F32_LANES;
        }
    }
}
