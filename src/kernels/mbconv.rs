//! Inverted residual (MBConv without squeeze-excitation, Sandler et al. 2018) and the stem of EfficientNet-Lite, inference
//! only: batch norm folded, expansion, depthwise and projection done strip by strip, so that the wide middle stays in cache.

use rayon::prelude::*;

use super::depthwise as dw;
use super::gemm::{Epilogue, Matrix, Packed, gemm};

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

/// Floats of the wide middle that one strip may take: half of a second-level cache of 1 MiB.
const STRIP_FLOATS: usize = 128 * 1024;

impl InvertedResidual {
    /// `[height, width, input]` to `[height / stride, width / stride, output]` (rounded up), with the skip connection where
    /// the shapes allow it. Returns the output and its height and width.
    pub fn forward(&self, x: &[f32], height: usize, width: usize) -> (Vec<f32>, usize, usize) {
        let (s, k) = (self.stride, self.kernel);
        let (out_height, out_width) = (height.div_ceil(s), width.div_ceil(s));
        let (top, _) = same_padding(height, k, s);
        let (left, right) = same_padding(width, k, s);
        let padded_width = width + left + right;
        let shape = dw::Shape { padded_width, channels: self.expanded, kernel: k, stride: s, out_width };
        // At least two strips, so that two cores share one frame.
        let rows = (STRIP_FLOATS / (padded_width * self.expanded * s)).clamp(1, out_height.div_ceil(2).max(1));
        let skip = s == 1 && self.input == self.output;
        let mut out = vec![0.0; out_height * out_width * self.output];
        out.par_chunks_mut(rows * out_width * self.output).enumerate().for_each(|(strip, out)| {
            let first = strip * rows;
            let count = out.len() / (out_width * self.output);
            let needed = (count - 1) * s + k;
            let mut wide = vec![0.0; needed * padded_width * self.expanded];
            let mut line = vec![0.0; width * self.expanded];
            for (i, row) in wide.chunks_exact_mut(padded_width * self.expanded).enumerate() {
                let Some(y) = (first * s + i).checked_sub(top).filter(|&y| y < height) else { continue };
                let source = &x[y * width * self.input..][..width * self.input];
                let source = match &self.expand {
                    Some(expand) => {
                        let epilogue = Epilogue { bias: Some(&expand.bias), relu6: true, ..Epilogue::default() };
                        gemm(width, Matrix::rows(source, self.input), &expand.weight, &mut line, epilogue);
                        &line
                    }
                    None => source,
                };
                row[left * self.expanded..][..width * self.expanded].copy_from_slice(source);
            }
            let mut middle = vec![0.0; count * out_width * self.expanded];
            dw::forward(&wide, &self.depthwise, &self.depthwise_bias, &mut middle, shape, true);
            let add = skip.then(|| &x[first * width * self.input..][..out.len()]);
            let epilogue = Epilogue { bias: Some(&self.project.bias), add, ..Epilogue::default() };
            let a = Matrix::rows(&middle, self.expanded);
            gemm(count * out_width, a, &self.project.weight, out, epilogue);
        });
        (out, out_height, out_width)
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
