//! One denoiser block as one operation: adaLN, depthwise convolution, MLP, gated residual (ConvNeXt, Liu et al. 2022, with
//! adaLN-zero, Peebles & Xie 2023). Fused because its parts are bound by memory: a sample's activations stay in the cache.

use std::cell::RefCell;
use std::sync::{Arc, OnceLock};

use candle_core::{Result, Shape, Tensor};
use rayon::prelude::*;

use super::{
    Kernel, Mode, Packs, borrow, check_layer, cut, has_cpu_kernel, run, split, split_mut, split_tensor, sum_in_order,
};
use crate::kernels::buffer::{Buffer, Shelf};
use crate::kernels::depthwise as dw;
use crate::kernels::gemm::{Act, Epilogue, Factors, Matrix, Packed, gemm, gemm_once};
use crate::kernels::pointwise as pw;
use crate::kernels::simd::vectorised;

/// Sizes of a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConvNextShape {
    /// Rows of the token grid.
    pub height: usize,
    /// Columns of the token grid.
    pub width: usize,
    /// Channels of the residual stream.
    pub channels: usize,
    /// Hidden channels of the MLP.
    pub hidden: usize,
    /// Side of the depthwise kernel: 3, 5 or 7.
    pub kernel: usize,
}

impl ConvNextShape {
    fn tokens(&self) -> usize {
        self.height * self.width
    }

    /// Depthwise weights and bias, first MLP matrix and bias, second MLP matrix and bias.
    fn parts(&self) -> [Shape; 6] {
        let (c, hidden, k) = (self.channels, self.hidden, self.kernel);
        [(k, k, c).into(), c.into(), (c, hidden).into(), hidden.into(), (hidden, c).into(), c.into()]
    }

    /// Number of parameters of a block.
    pub fn parameters(&self) -> usize {
        self.parts().iter().map(Shape::elem_count).sum()
    }

    /// The two matrices of the MLP as the kernel reads them.
    fn packs(&self, factors: Factors, parameters: &[f32]) -> [Packed; 2] {
        let (c, hidden) = (self.channels, self.hidden);
        let [_, _, up, _, down, _] = split(parameters, &self.parts());
        [
            Packed::new(factors, c, hidden, Matrix::rows(up, hidden)),
            Packed::new(factors, hidden, c, Matrix::rows(down, c)),
        ]
    }

    fn depthwise_shape(&self) -> dw::Shape {
        dw::Shape {
            padded_width: self.width + self.kernel - 1,
            channels: self.channels,
            kernel: self.kernel,
            stride: 1,
            out_width: self.width,
        }
    }
}

/// Dropout of hidden units: the same seed gives the same mask, in the forward and in the backward pass.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Dropout {
    /// Probability that a unit is zeroed, 0 to below 1.
    pub probability: f64,
    /// Seed of the mask.
    pub seed: u64,
}

impl Dropout {
    /// Seed, number below which a unit is dropped, and factor of those that are not.
    pub(super) fn numbers(&self) -> (u32, u32, f32) {
        let keep = (1.0 / (1.0 - self.probability)) as f32;
        let limit = (self.probability * f64::from(u32::MAX)) as u32;
        ((self.seed as u32) ^ ((self.seed >> 32) as u32).rotate_left(16), limit, keep)
    }

    /// Zeroes or rescales each value of `hidden`, which begins `from` values into its sample; `sample` keeps the masks of a
    /// batch apart.
    pub(super) fn apply(&self, hidden: &mut [f32], sample: usize, from: usize) {
        let (seed, limit, keep) = self.numbers();
        let seed = seed.wrapping_add((sample as u32).wrapping_mul(0x9e37_79b9)).wrapping_add(from as u32);
        drop_units(hidden, seed, limit, keep);
    }
}

vectorised! {
    /// Zeroes each value whose number, of a counter from `seed` on, is below `limit`, and multiplies the others by `keep`.
    fn drop_units<'a>(hidden: &'a mut [f32], seed: u32, limit: u32, keep: f32) {
        for (i, h) in hidden.iter_mut().enumerate() {
            // A 32-bit finaliser (Wellons' "lowbias32") over a counter: vectorises, needs no state.
            let mut x = (i as u32).wrapping_add(seed);
            x = (x ^ (x >> 16)).wrapping_mul(0x7feb_352d);
            x = (x ^ (x >> 15)).wrapping_mul(0x846c_a68b);
            x ^= x >> 16;
            *h *= if x < limit { 0.0 } else { keep };
        }
    }
}

/// `x + gate * MLP(depthwise(norm(x) * (1 + scale) + shift))`.
///
/// `x` `[B, H*W, C]`; `parameters` `[n]` in the order of the block's parts (depthwise weights and bias, up and bias, down
/// and bias); `modulation` `[B, 3 C]`: shift, scale, gate.
///
/// # Errors
/// When shapes do not fit.
pub fn convnext(
    x: &Tensor,
    parameters: &Tensor,
    modulation: &Tensor,
    shape: ConvNextShape,
    dropout: Option<Dropout>,
    mode: Mode<'_>,
) -> Result<Tensor> {
    let arguments = [x, parameters, modulation];
    check_layer(&shape, arguments, [shape.tokens(), shape.channels, shape.parameters()])?;
    let dropout = dropout.filter(|d| d.probability > 0.0);
    if !has_cpu_kernel(x) {
        return convnext_composite(x, parameters, modulation, shape, dropout, mode.trains());
    }
    let packs = Packs::of(mode, parameters, |factors, parameters| shape.packs(factors, parameters))?;
    let stash = mode.trains().then(OnceLock::new);
    run(ConvNext { shape, dropout, packs, stash }, arguments, mode.trains())
}

/// The same as a chain of operations. Where nothing is trained, a GPU has one kernel for each of those that stand between the
/// matrix products.
///
/// # Errors
/// When shapes do not fit.
pub fn convnext_composite(
    x: &Tensor,
    parameters: &Tensor,
    modulation: &Tensor,
    shape: ConvNextShape,
    dropout: Option<Dropout>,
    train: bool,
) -> Result<Tensor> {
    let (batch, tokens, c) = x.dims3()?;
    let [kernel, kernel_bias, up, up_bias, down, down_bias] = split_tensor(parameters, &shape.parts())?;
    let h = super::modulated_norm(x, &modulation.narrow(1, 0, 2 * c)?)?;
    let h = h.reshape((batch, shape.height, shape.width, c))?;
    let padding = [shape.kernel / 2; 4];
    let h = if train {
        super::depthwise(&h, &kernel, 1, padding)?.broadcast_add(&kernel_bias)?
    } else {
        super::depthwise_biased(&h, &kernel, &kernel_bias, 1, padding, None)?
    };
    let h = super::bias_gelu(&h.reshape((batch * tokens, c))?.matmul(&up)?, &up_bias, train)?;
    let h = match dropout {
        Some(dropout) => super::dropout(&h.reshape((batch, tokens * shape.hidden))?, dropout)?,
        None => h,
    };
    let y = h.reshape((batch * tokens, shape.hidden))?.matmul(&down)?.reshape((batch, tokens, c))?;
    super::gated_add(x, &y, &down_bias, modulation, train)
}

/// What the backward pass takes from the forward pass, per sample: depthwise output, MLP input before GELU, MLP output.
struct Stash {
    convolved: Vec<f32>, // [B, T, C]
    hidden: Vec<f32>,    // [B, T, hidden]
    update: Vec<f32>,    // [B, T, C]
}

struct ConvNext {
    shape: ConvNextShape,
    dropout: Option<Dropout>,
    packs: Arc<[Packed]>, // [C, hidden] and [hidden, C]
    stash: Option<OnceLock<Stash>>,
}

/// Samples whose parameter gradients share one buffer: few buffers, yet the same sums for any number of threads.
const GROUP: usize = 4;

/// Rows of the token grid that one task takes: enough for the matrix kernel, few enough to share one sample.
const STRIP_ROWS: usize = 4;

impl Kernel<3> for ConvNext {
    const NAME: &'static str = "convnext";

    fn forward(&self, [x, parameters, modulation]: [&[f32]; 3], shapes: [&Shape; 3]) -> Result<(Vec<f32>, Shape)> {
        let [depthwise, depthwise_bias, _, up_bias, _, down_bias] = split(parameters, &self.shape.parts());
        let ConvNextShape { height, width, channels: c, hidden, kernel } = self.shape;
        let sample = height * width * c;
        let batch = x.len() / sample;
        let (up, down) = (&self.packs[0], &self.packs[1]);

        let (border, line) = (kernel / 2, (width + kernel - 1) * c);
        let padded_sample = (height + kernel - 1) * line;

        let kept = self.stash.is_some();
        let keep = |n: usize| if kept { vec![0.0; n] } else { Vec::new() };
        let mut stash =
            Stash { convolved: keep(x.len()), hidden: keep(batch * height * width * hidden), update: keep(x.len()) };
        let mut out = vec![0.0; x.len()];
        let strips = height.div_ceil(STRIP_ROWS);
        let strip = |whole: usize| -> Vec<usize> {
            // element ranges of all strips of all samples, for values per token
            (0..batch * strips).map(|i| STRIP_ROWS.min(height - (i % strips) * STRIP_ROWS) * width * whole).collect()
        };
        let tasks = cut(&mut out, &strip(c))
            .into_iter()
            .zip(cut(&mut stash.convolved, &strip(if kept { c } else { 0 })))
            .zip(cut(&mut stash.hidden, &strip(if kept { hidden } else { 0 })))
            .zip(cut(&mut stash.update, &strip(if kept { c } else { 0 })))
            .enumerate()
            .collect::<Vec<_>>();
        PADDED.lend(batch * padded_sample, |padded| {
            // Each row goes straight to its place between the borders.
            padded
                .par_chunks_exact_mut(padded_sample)
                .zip(x.par_chunks_exact(sample))
                .zip(modulation.par_chunks_exact(3 * c))
                .for_each(|((padded, x), m)| {
                    padded.par_chunks_mut(STRIP_ROWS * line).enumerate().for_each(|(strip, padded)| {
                        for (y, padded) in (strip * STRIP_ROWS..).zip(padded.chunks_exact_mut(line)) {
                            let Some(y) = y.checked_sub(border).filter(|&y| y < height) else {
                                padded.fill(0.0);
                                continue;
                            };
                            let (left, inside) = padded.split_at_mut(border * c);
                            let (inside, right) = inside.split_at_mut(width * c);
                            left.fill(0.0);
                            right.fill(0.0);
                            pw::modulated_norm(&x[y * width * c..][..width * c], &m[..c], &m[c..2 * c], inside);
                        }
                    });
                });
            tasks.into_par_iter().for_each(|(i, (((out, convolved), pre), update))| {
                let (index, first_row) = (i / strips, i % strips * STRIP_ROWS);
                let tokens = out.len() / c;
                SCRATCH.with_borrow_mut(|[convolved_here, active, update_here]| {
                    let convolved = borrow(convolved, convolved_here, tokens * c);
                    let update = borrow(update, update_here, tokens * c);
                    let shape = self.shape.depthwise_shape();
                    let rows = &padded[index * padded_sample + first_row * line..];
                    dw::forward(rows, depthwise, depthwise_bias, convolved, shape, false);
                    let bias = |b| Epilogue { bias: Some(b), ..Epilogue::default() };
                    let active = active.of(tokens * hidden);
                    if kept {
                        gemm(tokens, Matrix::rows(convolved, c), up, pre, bias(up_bias));
                        pw::gelu(pre, active);
                    } else {
                        let epilogue = Epilogue { act: Some(Act::Gelu), ..bias(up_bias) };
                        gemm(tokens, Matrix::rows(convolved, c), up, active, epilogue);
                    }
                    if let Some(dropout) = &self.dropout {
                        dropout.apply(active, index, first_row * width * hidden);
                    }
                    gemm(tokens, Matrix::rows(active, hidden), down, update, bias(down_bias));
                    let from = index * sample + first_row * width * c;
                    let gate = &modulation[index * 3 * c + 2 * c..][..c];
                    pw::gated_add(&x[from..][..tokens * c], gate, update, out);
                });
            });
        });
        if let Some(cell) = &self.stash {
            let _ = cell.set(stash); // set once: an op runs forward once
        }
        Ok((out, shapes[0].clone()))
    }

    fn backward(
        &self,
        [x, parameters, modulation]: [&[f32]; 3],
        _: [&Shape; 3],
        grad: &[f32],
    ) -> Result<[Vec<f32>; 3]> {
        let Some(stash) = self.stash.as_ref().and_then(OnceLock::get) else {
            candle_core::bail!("convnext: the forward pass kept nothing for a gradient");
        };
        let ConvNextShape { height, width, channels: c, hidden, .. } = self.shape;
        let (tokens, sample) = (height * width, height * width * c);
        let [depthwise, _, up, _, down, _] = split(parameters, &self.shape.parts());
        let weights = Backward {
            op: self,
            up: Packed::new(Factors::F32, hidden, c, Matrix::transposed(up, hidden)),
            down: Packed::new(Factors::F32, c, hidden, Matrix::transposed(down, c)),
            flipped: dw::flipped(depthwise, c),
        };
        let mut grad_x = grad.to_vec(); // the residual path
        let mut grad_modulation = vec![0.0; modulation.len()];
        let sums: Vec<Vec<f32>> = grad_x
            .par_chunks_mut(GROUP * sample)
            .zip(grad_modulation.par_chunks_mut(GROUP * 3 * c))
            .enumerate()
            .map(|(group, (grad_x, grad_modulation))| {
                let mut sums = vec![0.0; parameters.len()];
                for (i, (gx, gm)) in
                    grad_x.chunks_exact_mut(sample).zip(grad_modulation.chunks_exact_mut(3 * c)).enumerate()
                {
                    let index = group * GROUP + i;
                    let at = index * sample..(index + 1) * sample;
                    let hidden = index * tokens * hidden..(index + 1) * tokens * hidden;
                    weights.sample(
                        index,
                        &x[at.clone()],
                        &modulation[index * 3 * c..][..3 * c],
                        [&stash.convolved[at.clone()], &stash.hidden[hidden], &stash.update[at.clone()]],
                        &grad[at],
                        gx,
                        gm,
                        split_mut(&mut sums, &self.shape.parts()),
                    );
                }
                sums
            })
            .collect();
        Ok([grad_x, sum_in_order(sums), grad_modulation])
    }
}

/// The normalised input between its borders.
static PADDED: Shelf = Shelf::new();

thread_local! {
    /// Memory of a thread for what one strip has on its way.
    static SCRATCH: RefCell<[Buffer; 3]> = RefCell::default();
}

/// What all samples of a backward pass share.
struct Backward<'a> {
    op: &'a ConvNext,
    up: Packed,   // [hidden, C]
    down: Packed, // [C, hidden]
    flipped: Vec<f32>,
}

impl Backward<'_> {
    #[allow(clippy::too_many_arguments)] // one sample's slices, named once at the only call
    fn sample(
        &self,
        index: usize,
        x: &[f32],
        modulation: &[f32],
        [convolved, pre, update]: [&[f32]; 3],
        grad: &[f32],
        grad_x: &mut [f32],
        grad_modulation: &mut [f32],
        [sum_depthwise, sum_depthwise_bias, sum_up, sum_up_bias, sum_down, sum_down_bias]: [&mut [f32]; 6],
    ) {
        let ConvNextShape { height, width, channels: c, hidden, kernel } = self.op.shape;
        let tokens = height * width;
        let (shift, scale, gate) = (&modulation[..c], &modulation[c..2 * c], &modulation[2 * c..]);
        let (grad_shift, rest) = grad_modulation.split_at_mut(c);
        let (grad_scale, grad_gate) = rest.split_at_mut(c);
        let add = Epilogue { accumulate: true, ..Epilogue::default() };

        let mut grad_update = vec![0.0; tokens * c];
        pw::gated_add_backward(grad, gate, update, &mut grad_update, grad_gate);
        pw::add_column_sums(&grad_update, sum_down_bias);

        let mut grad_hidden = vec![0.0; tokens * hidden];
        gemm(tokens, Matrix::rows(&grad_update, c), &self.down, &mut grad_hidden, Epilogue::default());
        let mut active = vec![0.0; tokens * hidden];
        if let Some(dropout) = &self.op.dropout {
            dropout.apply(&mut grad_hidden, index, 0);
        }
        pw::gelu_backward(pre, &mut grad_hidden, &mut active);
        if let Some(dropout) = &self.op.dropout {
            dropout.apply(&mut active, index, 0);
        }
        gemm_once(
            Factors::F32,
            [hidden, c, tokens],
            Matrix::transposed(&active, hidden),
            Matrix::rows(&grad_update, c),
            sum_down,
            add,
        );
        pw::add_column_sums(&grad_hidden, sum_up_bias);
        gemm_once(
            Factors::F32,
            [c, hidden, tokens],
            Matrix::transposed(convolved, c),
            Matrix::rows(&grad_hidden, hidden),
            sum_up,
            add,
        );
        let mut grad_convolved = grad_update;
        gemm(tokens, Matrix::rows(&grad_hidden, hidden), &self.up, &mut grad_convolved, Epilogue::default());

        let shape = self.op.shape.depthwise_shape();
        let mut normed = vec![0.0; tokens * c];
        pw::modulated_norm(x, shift, scale, &mut normed);
        let mut padded = Vec::new();
        dw::pad(&normed, width, c, [kernel / 2; 4], &mut padded);
        dw::backward_weights(&padded, &grad_convolved, sum_depthwise, sum_depthwise_bias, shape);
        dw::pad(&grad_convolved, width, c, [kernel / 2; 4], &mut padded);
        let zero = vec![0.0; c];
        let grad_normed = &mut normed;
        dw::forward(&padded, &self.flipped, &zero, grad_normed, shape, false);
        pw::modulated_norm_backward(x, scale, grad_normed, grad_x, grad_shift, grad_scale);
    }
}
