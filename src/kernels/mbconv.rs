//! Inverted residual (MBConv without squeeze-excitation, Sandler et al. 2018) and the stem of EfficientNet-Lite, inference
//! only: batch norm folded, expansion, depthwise and projection done strip by strip, so that the wide middle stays in cache.

use std::cell::RefCell;

use rayon::prelude::*;

use super::buffer::Buffer;
use super::depthwise as dw;
use super::gemm::{Epilogue, Matrix, PART, Packed, Rows, gemm, gemm_part};

/// Zeros before and after, so that `ceil(size / stride)` outputs come out (TensorFlow's SAME).
pub fn same_padding(size: usize, kernel: usize, stride: usize) -> (usize, usize) {
    let out = size.div_ceil(stride);
    let total = ((out - 1) * stride + kernel).saturating_sub(size);
    (total / 2, total - total / 2)
}

/// A pointwise layer ready to use: packed weights `[in, out]` and bias `[out]`.
pub struct Pointwise {
    /// Packed `[in, out]`.
    pub weight: Packed,
    /// `[out]`
    pub bias: Vec<f32>,
}

/// One inverted residual block.
pub struct InvertedResidual {
    /// Channels in.
    pub input: usize,
    /// Channels of the wide middle.
    pub expanded: usize,
    /// Channels out.
    pub output: usize,
    /// Depthwise kernel: 3 or 5.
    pub kernel: usize,
    /// 1 or 2.
    pub stride: usize,
    /// Expansion `[input, expanded]`; absent where `expanded == input`.
    pub expand: Option<Pointwise>,
    /// Depthwise weights `[kernel, kernel, expanded]`.
    pub depthwise: Vec<f32>,
    /// Depthwise bias `[expanded]`.
    pub depthwise_bias: Vec<f32>,
    /// Projection `[expanded, output]`.
    pub project: Pointwise,
}

/// Floats of the wide middle that one strip may take, for some of the channels: a quarter of a second-level cache of 1 MiB.
const STRIP_FLOATS: usize = 64 * 1024;
/// Channels of the wide middle that are made and used up together, at most: whole panels of the matrix kernel.
const CHUNK: usize = 3 * PART;

/// Memory of a thread for the wide middle of a strip.
#[derive(Default)]
struct Scratch {
    wide: Buffer,   // [rows in, padded width, chunk]
    middle: Buffer, // [rows out, width out, chunk]
    taps: Buffer,   // [kernel, kernel, chunk]
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

impl InvertedResidual {
    /// `[height, width, input]` to `[height / stride, width / stride, output]` (rounded up), with the skip connection where
    /// the shapes allow it. Returns the output and its height and width.
    pub fn forward(&self, x: &[f32], height: usize, width: usize) -> (Vec<f32>, usize, usize) {
        let (s, k) = (self.stride, self.kernel);
        let (out_height, out_width) = (height.div_ceil(s), width.div_ceil(s));
        let (left, right) = same_padding(width, k, s);
        let padded_width = width + left + right;
        // At least two strips, so that two cores share one frame.
        let most = out_height.div_ceil(2).max(1);
        let floats = |rows: usize, chunk: usize| ((rows - 1) * s + k) * padded_width * chunk;
        let chunk =
            (1..=CHUNK / PART).rev().map(|parts| parts * PART).find(|&chunk| floats(most, chunk) <= STRIP_FLOATS);
        let chunk = if self.expand.is_some() { chunk.unwrap_or(PART) } else { self.expanded };
        let rows = (1..=most).rev().find(|&rows| floats(rows, chunk) <= STRIP_FLOATS).unwrap_or(1);
        let rows = out_height.div_ceil(out_height.div_ceil(rows));
        let mut out = vec![0.0; out_height * out_width * self.output];
        let strip = Strip { block: self, x, height, width, out_width, left, padded_width, chunk };
        out.par_chunks_mut(rows * out_width * self.output).enumerate().for_each(|(index, out)| {
            SCRATCH.with_borrow_mut(|scratch| strip.run(index * rows, out, scratch));
        });
        (out, out_height, out_width)
    }
}

/// What the strips of a frame share.
struct Strip<'a> {
    block: &'a InvertedResidual,
    x: &'a [f32],
    height: usize,
    width: usize,
    out_width: usize,
    left: usize,
    padded_width: usize,
    chunk: usize,
}

impl Strip<'_> {
    /// The output rows from `first` on. Some channels of the wide middle at a time: expanded, convolved, and added to the sums
    /// of the projection while they are in the cache.
    fn run(&self, first: usize, out: &mut [f32], scratch: &mut Scratch) {
        let Self { block, x, height, width, out_width, left, padded_width, .. } = *self;
        let InvertedResidual { input, expanded, output, kernel, stride, .. } = *block;
        let (top, _) = same_padding(height, kernel, stride);
        let count = out.len() / (out_width * output);
        let needed = (count - 1) * stride + kernel;
        // Rows of the image among those that are needed: the others are the border.
        let begin = (first * stride).saturating_sub(top);
        let end = (first * stride + needed).saturating_sub(top).min(height);
        let above = (begin + top) - first * stride;
        let source = &x[begin * width * input..end * width * input];
        let skip = stride == 1 && input == output;
        for from in (0..expanded).step_by(self.chunk) {
            let to = (from + self.chunk).min(expanded);
            let channels = to - from;
            let row = padded_width * channels;
            let wide = scratch.wide.of(needed * row);
            wide[..above * row].fill(0.0);
            wide[(above + end - begin) * row..].fill(0.0);
            for line in wide.chunks_exact_mut(row) {
                line[..left * channels].fill(0.0);
                line[(left + width) * channels..].fill(0.0);
            }
            let inside = &mut wide[above * row + left * channels..];
            match &block.expand {
                Some(Pointwise { weight, bias }) => {
                    let rows = Rows { row: channels, run: width, jump: row };
                    let epilogue = Epilogue { bias: Some(&bias[from..to]), relu6: true, ..Epilogue::default() };
                    let a = Matrix::rows(source, input);
                    gemm_part((end - begin) * width, a, weight, (0..input, from..to), inside, rows, epilogue);
                }
                None => {
                    for (line, source) in inside.chunks_mut(row).zip(source.chunks_exact(width * input)) {
                        line[..width * input].copy_from_slice(source);
                    }
                }
            }
            let taps = scratch.taps.of(kernel * kernel * channels);
            for (some, all) in taps.chunks_exact_mut(channels).zip(block.depthwise.chunks_exact(expanded)) {
                some.copy_from_slice(&all[from..to]);
            }
            let middle = scratch.middle.of(count * out_width * channels);
            let shape = dw::Shape { padded_width, channels, kernel, stride, out_width };
            dw::forward(wide, taps, &block.depthwise_bias[from..to], middle, shape, true);
            let last = to == expanded;
            let epilogue = Epilogue {
                bias: last.then_some(&block.project.bias),
                add: (last && skip).then(|| &x[first * width * input..][..out.len()]),
                accumulate: from > 0,
                relu6: false,
            };
            let (a, m) = (Matrix::rows(middle, channels), count * out_width);
            let rows = Rows { row: output, run: m, jump: 0 };
            gemm_part(m, a, &block.project.weight, (from..to, 0..output), out, rows, epilogue);
        }
    }
}

/// First layer: 3x3 convolution with stride 2 and ReLU6. `weight` `[27, out]` in the order row, column, colour.
pub fn stem(image: &[f32], height: usize, width: usize, layer: &Pointwise) -> (Vec<f32>, usize, usize) {
    let channels = layer.bias.len();
    let (out_height, out_width) = (height.div_ceil(2), width.div_ceil(2));
    let (top, bottom) = same_padding(height, 3, 2);
    let (left, right) = same_padding(width, 3, 2);
    let mut padded = Vec::new();
    dw::pad(image, width, 3, [top, bottom, left, right], &mut padded);
    let line = (width + left + right) * 3;
    let mut out = vec![0.0; out_height * out_width * channels];
    out.par_chunks_exact_mut(out_width * channels).enumerate().for_each(|(y, out)| {
        let mut patches = vec![0.0; out_width * 27];
        for (x, patch) in patches.chunks_exact_mut(27).enumerate() {
            for ky in 0..3 {
                patch[ky * 9..][..9].copy_from_slice(&padded[(2 * y + ky) * line + 2 * x * 3..][..9]);
            }
        }
        let epilogue = Epilogue { bias: Some(&layer.bias), relu6: true, ..Epilogue::default() };
        gemm(out_width, Matrix::rows(&patches, 27), &layer.weight, out, epilogue);
    });
    (out, out_height, out_width)
}
