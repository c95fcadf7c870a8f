//! Depthwise convolution, channels last: vectors run along the channels, a few neighbouring outputs share each weight.
//!
//! Inputs come with their border already there (`pad`), so that the loops have no edges.

use pulp::{Arch, Simd, WithSimd};

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
/// When a slice does not fit the shape or the kernel is not 3, 5 or 7 (mistakes of the caller).
pub fn forward(padded: &[f32], weights: &[f32], bias: &[f32], out: &mut [f32], shape: Shape, relu6: bool) {
    assert!(matches!(shape.kernel, 3 | 5 | 7), "depthwise kernel must be 3, 5 or 7, got {}", shape.kernel);
    Arch::new().dispatch(Forward { padded, weights, bias, out, shape, relu6 });
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

/// Outputs that are formed together: as many as share a weight without running out of registers.
const OUTPUTS: usize = 6;

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

impl WithSimd for Forward<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(mut self, simd: S) {
        let channels = self.shape.channels;
        if channels < S::F32_LANES {
            return self.with_simd(pulp::Scalar::new()); // fewer channels than lanes: one at a time
        }
        let rows = self.out.len() / (self.shape.out_width * channels).max(1);
        for y in 0..rows {
            for from in starts(channels, S::F32_LANES) {
                let mut x = 0;
                while x + OUTPUTS <= self.shape.out_width {
                    self.outputs::<S, OUTPUTS>(simd, y, x, from);
                    x += OUTPUTS;
                }
                while x < self.shape.out_width {
                    self.outputs::<S, 1>(simd, y, x, from);
                    x += 1;
                }
            }
        }
    }
}

impl Forward<'_> {
    #[inline(always)]
    fn outputs<S: Simd, const N: usize>(&mut self, simd: S, y: usize, x: usize, from: usize) {
        let Shape { padded_width, channels, stride, out_width, kernel } = self.shape;
        let mut sums = [load(simd, self.bias, from); N];
        for ky in 0..kernel {
            let row = &self.padded[((y * stride + ky) * padded_width + x * stride) * channels + from..];
            for kx in 0..kernel {
                let w = load(simd, self.weights, (ky * kernel + kx) * channels + from);
                for (i, sum) in sums.iter_mut().enumerate() {
                    *sum = simd.mul_add_e_f32s(load(simd, row, (i * stride + kx) * channels), w, *sum);
                }
            }
        }
        for (i, &sum) in sums.iter().enumerate() {
            let mut v = sum;
            if self.relu6 {
                v = simd.min_f32s(simd.max_f32s(v, simd.splat_f32s(0.0)), simd.splat_f32s(6.0));
            }
            store(simd, self.out, (y * out_width + x + i) * channels + from, v);
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
