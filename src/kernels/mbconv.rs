//! Inverted residual (MBConv without squeeze-excitation, Sandler et al. 2018) and the stem of EfficientNet-Lite, inference
//! only: batch norm folded, expansion, depthwise and projection done strip by strip, so that the wide middle stays in cache.

use std::cell::RefCell;

use rayon::prelude::*;

use super::buffer::Buffer;
use super::depthwise as dw;
use super::gemm::{Act, Epilogue, Matrix, PART, Packed, Rows, gemm, gemm_part};

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

/// Floats of the wide middle that one strip may take, for some of the channels: half of a second-level cache of 1 MiB.
const STRIP_FLOATS: usize = 128 * 1024;
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
        // An even number of them, for cores that come in pairs.
        let rows = out_height.div_ceil(out_height.div_ceil(rows).next_multiple_of(2));
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
                    let epilogue =
                        Epilogue { bias: Some(&bias[from..to]), act: Some(Act::Relu6), ..Epilogue::default() };
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
                act: None,
            };
            let (a, m) = (Matrix::rows(middle, channels), count * out_width);
            let rows = Rows { row: output, run: m, jump: 0 };
            gemm_part(m, a, &block.project.weight, (from..to, 0..output), out, rows, epilogue);
        }
    }
}

/// Output rows of the first layer that one task makes.
const STEM_ROWS: usize = 8;

/// First layer: colours in 0..=255 as `(x - 127) / 128`, 3x3 convolution with stride 2 and ReLU6. `weight` `[27, out]` in the
/// order row, column, colour.
pub fn stem<T: Copy + Into<f32> + Sync>(
    image: &[T],
    height: usize,
    width: usize,
    layer: &Pointwise,
) -> (Vec<f32>, usize, usize) {
    let channels = layer.bias.len();
    let (out_height, out_width) = (height.div_ceil(2), width.div_ceil(2));
    let (top, _) = same_padding(height, 3, 2);
    let (left, right) = same_padding(width, 3, 2);
    let line = (width + left + right) * 3;
    let mut out = vec![0.0; out_height * out_width * channels];
    let strip = |(index, out): (usize, &mut [f32]), scratch: &mut Scratch| {
        let (first, rows) = (index * STEM_ROWS, out.len() / (out_width * channels));
        let padded = scratch.wide.zeroed((2 * rows + 1) * line);
        for (y, padded) in (2 * first..).zip(padded.chunks_exact_mut(line)) {
            let Some(y) = y.checked_sub(top).filter(|&y| y < height) else { continue };
            let colours = &image[y * width * 3..][..width * 3];
            for (scaled, &colour) in padded[left * 3..].iter_mut().zip(colours) {
                *scaled = (colour.into() - 127.0) / 128.0;
            }
        }
        let patches = scratch.middle.of(out_width * 27);
        for (y, out) in out.chunks_exact_mut(out_width * channels).enumerate() {
            for (x, patch) in patches.as_chunks_mut::<27>().0.iter_mut().enumerate() {
                for ky in 0..3 {
                    patch[ky * 9..][..9].copy_from_slice(&padded[(2 * y + ky) * line + 6 * x..][..9]);
                }
            }
            let epilogue = Epilogue { bias: Some(&layer.bias), act: Some(Act::Relu6), ..Epilogue::default() };
            gemm(out_width, Matrix::rows(patches, 27), &layer.weight, out, epilogue);
        }
    };
    out.par_chunks_mut(STEM_ROWS * out_width * channels).enumerate().for_each(|task| {
        SCRATCH.with_borrow_mut(|scratch| strip(task, scratch));
    });
    (out, out_height, out_width)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::gemm::Factors;
    use super::*;

    fn values(n: usize, seed: usize) -> Vec<f32> {
        (0..n).map(|i| ((i * 7 + seed * 13) as f32 * 0.7371).sin() * 0.3).collect()
    }

    fn layer(k: usize, n: usize, seed: usize) -> (Vec<f32>, Pointwise) {
        let weight = values(k * n, seed);
        let packed = Packed::new(Factors::F32, k, n, Matrix::rows(&weight, n));
        (weight, Pointwise { weight: packed, bias: values(n, seed + 1) })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]

        /// Strips and some channels at a time give what plain sums over the whole frame give.
        #[test]
        fn equals_the_plain_layers(
            height in 1usize..24, width in 1usize..24, input in 1usize..20, expanded in 1usize..220, output in 1usize..20,
            five: bool, halved: bool, expands: bool, same: bool,
        ) {
            let (kernel, stride) = (if five { 5 } else { 3 }, if halved { 2 } else { 1 });
            let expanded = if expands { expanded } else { input };
            let output = if same { input } else { output };
            let x = values(height * width * input, 1);
            let (expand_weight, expand) = layer(input, expanded, 2);
            let (project_weight, project) = layer(expanded, output, 4);
            let (taps, taps_bias) = (values(kernel * kernel * expanded, 6), values(expanded, 7));
            let expand_bias = expand.bias.clone();
            let project_bias = project.bias.clone();
            let block = InvertedResidual {
                input, expanded, output, kernel, stride, expand: expands.then_some(expand),
                depthwise: taps.clone(), depthwise_bias: taps_bias.clone(), project,
            };
            let (got, rows, columns) = block.forward(&x, height, width);
            prop_assert_eq!((rows, columns), (height.div_ceil(stride), width.div_ceil(stride)));

            let relu6 = |v: f64| v.clamp(0.0, 6.0);
            let dense = |from: &[f64], weight: &[f32], n: usize, j: usize| -> f64 {
                from.iter().enumerate().map(|(p, v)| v * f64::from(weight[p * n + j])).sum()
            };
            let pixel = |i: usize| -> Vec<f64> {
                let from: Vec<f64> = x[i * input..][..input].iter().map(|&v| f64::from(v)).collect();
                if !expands {
                    return from;
                }
                (0..expanded).map(|j| relu6(dense(&from, &expand_weight, expanded, j) + f64::from(expand_bias[j]))).collect()
            };
            let wide: Vec<Vec<f64>> = (0..height * width).map(pixel).collect();
            let (top, left) = (same_padding(height, kernel, stride).0, same_padding(width, kernel, stride).0);
            for (at, got) in got.chunks_exact(output).enumerate() {
                let mut middle: Vec<f64> = taps_bias.iter().map(|&v| f64::from(v)).collect();
                for (tap, weights) in taps.chunks_exact(expanded).enumerate() {
                    let y = (at / columns * stride + tap / kernel).checked_sub(top).filter(|&y| y < height);
                    let x = (at % columns * stride + tap % kernel).checked_sub(left).filter(|&x| x < width);
                    let Some((y, x)) = y.zip(x) else { continue };
                    for ((sum, v), &w) in middle.iter_mut().zip(&wide[y * width + x]).zip(weights) {
                        *sum += v * f64::from(w);
                    }
                }
                let middle: Vec<f64> = middle.into_iter().map(relu6).collect();
                for (j, &got) in got.iter().enumerate() {
                    let mut expected = dense(&middle, &project_weight, output, j) + f64::from(project_bias[j]);
                    if stride == 1 && input == output {
                        expected += f64::from(x[at * input + j]);
                    }
                    prop_assert!((f64::from(got) - expected).abs() < 1e-3, "cell {at}, channel {j}: {got} not {expected}");
                }
            }
        }
    }

    /// A broken network must not look like one that finds nothing.
    #[test]
    fn what_is_not_a_number_stays_one() {
        for (input, expands) in [(2, false), (40, false), (2, true), (40, true)] {
            let expanded = if expands { 3 * input } else { input };
            let block = InvertedResidual {
                input,
                expanded,
                output: 3,
                kernel: 3,
                stride: 1,
                expand: expands.then(|| layer(input, expanded, 5).1),
                depthwise: values(9 * expanded, 2),
                depthwise_bias: values(expanded, 3),
                project: layer(expanded, 3, 1).1,
            };
            let (out, ..) = block.forward(&vec![f32::NAN; 16 * input], 4, 4);
            assert!(out.iter().all(|v| v.is_nan()), "{input} channels, expanded: {expands}");
        }
    }
}
