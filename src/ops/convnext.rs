//! One denoiser block as one operation: adaLN, depthwise convolution, MLP, gated residual (ConvNeXt, Liu et al. 2022, with
//! adaLN-zero, Peebles & Xie 2023). Fused because its parts are bound by memory: a sample's activations stay in the cache.

use std::sync::OnceLock;

use candle_core::{CpuStorage, CustomOp3, D, Layout, Result, Shape, Tensor};
use rayon::prelude::*;

use super::{elements, has_cpu_kernel, on_cpu, sum_in_order, with_elements};
use crate::kernels::depthwise as dw;
use crate::kernels::gemm::{Epilogue, Matrix, Packed, gemm, gemm_once};
use crate::kernels::pointwise as pw;

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

/// The parts of a block's flat parameter vector, in order.
pub(crate) struct Parts<T> {
    /// Depthwise weights `[kernel, kernel, channels]`.
    pub(crate) depthwise: T,
    /// Depthwise bias `[channels]`.
    pub(crate) depthwise_bias: T,
    /// First MLP matrix `[channels, hidden]`.
    pub(crate) up: T,
    /// Its bias `[hidden]`.
    pub(crate) up_bias: T,
    /// Second MLP matrix `[hidden, channels]`.
    pub(crate) down: T,
    /// Its bias `[channels]`.
    pub(crate) down_bias: T,
}

impl ConvNextShape {
    fn tokens(&self) -> usize {
        self.height * self.width
    }

    fn lengths(&self) -> [usize; 6] {
        let (c, h) = (self.channels, self.hidden);
        [self.kernel * self.kernel * c, c, c * h, h, h * c, c]
    }

    /// Number of parameters of a block.
    pub fn parameters(&self) -> usize {
        self.lengths().iter().sum()
    }

    pub(crate) fn split<'a>(&self, mut flat: &'a [f32]) -> Parts<&'a [f32]> {
        let [depthwise, depthwise_bias, up, up_bias, down, down_bias] = self.lengths().map(|n| {
            let (head, tail) = flat.split_at(n);
            flat = tail;
            head
        });
        Parts { depthwise, depthwise_bias, up, up_bias, down, down_bias }
    }

    pub(crate) fn split_mut<'a>(&self, flat: &'a mut [f32]) -> Parts<&'a mut [f32]> {
        let mut rest = flat;
        let [depthwise, depthwise_bias, up, up_bias, down, down_bias] = self.lengths().map(|n| {
            let (head, tail) = std::mem::take(&mut rest).split_at_mut(n);
            rest = tail;
            head
        });
        Parts { depthwise, depthwise_bias, up, up_bias, down, down_bias }
    }

    /// The parts of a block's flat parameter vector, each in its shape and in order.
    fn tensors(&self, parameters: &Tensor) -> Result<[Tensor; 6]> {
        let mut at = 0;
        let mut part = |n: usize| {
            at += n;
            parameters.narrow(0, at - n, n)
        };
        let (c, hidden) = (self.channels, self.hidden);
        let [a, b, u, ub, d, db] = self.lengths();
        let kernel = part(a)?.reshape((self.kernel, self.kernel, c))?;
        let (kernel_bias, up, up_bias) = (part(b)?, part(u)?.reshape((c, hidden))?, part(ub)?);
        Ok([kernel, kernel_bias, up, up_bias, part(d)?.reshape((hidden, c))?, part(db)?])
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
        pulp::Arch::new().dispatch(|| {
            for (i, h) in hidden.iter_mut().enumerate() {
                // A 32-bit finaliser (Wellons' "lowbias32") over a counter: vectorises, needs no state.
                let mut x = (i as u32).wrapping_add(seed);
                x = (x ^ (x >> 16)).wrapping_mul(0x7feb_352d);
                x = (x ^ (x >> 15)).wrapping_mul(0x846c_a68b);
                x ^= x >> 16;
                *h *= if x < limit { 0.0 } else { keep };
            }
        });
    }
}

/// `x + gate * MLP(depthwise(norm(x) * (1 + scale) + shift))`.
///
/// `x` `[B, H*W, C]`; `parameters` `[n]` in the order of the block's parts (depthwise weights and bias, up and bias, down
/// and bias); `modulation` `[B, 3 C]`: shift, scale, gate. `train` keeps what the gradient needs.
///
/// # Errors
/// When shapes do not fit.
pub fn convnext(
    x: &Tensor,
    parameters: &Tensor,
    modulation: &Tensor,
    shape: ConvNextShape,
    dropout: Option<Dropout>,
    train: bool,
) -> Result<Tensor> {
    let (batch, tokens, channels) = x.dims3()?;
    if tokens != shape.tokens()
        || channels != shape.channels
        || parameters.dims() != [shape.parameters()]
        || modulation.dims() != [batch, 3 * channels]
    {
        candle_core::bail!(
            "convnext: x {:?}, parameters {:?}, modulation {:?} do not fit {shape:?}",
            x.dims(),
            parameters.dims(),
            modulation.dims()
        );
    }
    let dropout = dropout.filter(|d| d.probability > 0.0);
    if !has_cpu_kernel(x) {
        return in_parts(x, parameters, modulation, shape, dropout, train);
    }
    let op = ConvNext { shape, dropout, stash: train.then(OnceLock::new) };
    let (x, modulation) = (x.contiguous()?, modulation.contiguous()?);
    if train { x.apply_op3(parameters, &modulation, op) } else { x.apply_op3_no_bwd(parameters, &modulation, &op) }
}

/// The same in plain candle ops, without dropout.
///
/// # Errors
/// When shapes do not fit.
pub fn convnext_composite(
    x: &Tensor,
    parameters: &Tensor,
    modulation: &Tensor,
    shape: ConvNextShape,
) -> Result<Tensor> {
    let (batch, tokens, c) = x.dims3()?;
    let [kernel, kernel_bias, up, up_bias, down, down_bias] = shape.tensors(parameters)?;
    let gate = modulation.narrow(1, 2 * c, c)?.unsqueeze(1)?;
    let h = super::modulated_norm_composite(x, &modulation.narrow(1, 0, 2 * c)?)?;
    let h = h.reshape((batch, shape.height, shape.width, c))?;
    let h = super::depthwise_composite(&h, &kernel, 1, [shape.kernel / 2; 4])?;
    let h = h.reshape((batch * tokens, c))?.broadcast_add(&kernel_bias)?;
    let h = h.matmul(&up)?.broadcast_add(&up_bias)?.gelu()?;
    let y = h.matmul(&down)?.broadcast_add(&down_bias)?.reshape((batch, tokens, c))?;
    x + y.broadcast_mul(&gate)?
}

/// The block as a chain of operations, for devices without one kernel for all of it. Where nothing is trained, what stands
/// between the matrix products is one kernel each.
fn in_parts(
    x: &Tensor,
    parameters: &Tensor,
    modulation: &Tensor,
    shape: ConvNextShape,
    dropout: Option<Dropout>,
    train: bool,
) -> Result<Tensor> {
    let (batch, tokens, c) = x.dims3()?;
    let [kernel, kernel_bias, up, up_bias, down, down_bias] = shape.tensors(parameters)?;
    let padding = [shape.kernel / 2; 4];
    let h = super::modulated_norm(x, &modulation.narrow(1, 0, 2 * c)?)?;
    let h = h.reshape((batch, shape.height, shape.width, c))?;
    if !train {
        let h = super::depthwise_biased(&h, &kernel, &kernel_bias, 1, padding, None)?;
        let h = super::bias_gelu(&h.reshape((batch * tokens, c))?.matmul(&up)?, &up_bias)?;
        return super::gated_add(x, &h.matmul(&down)?.reshape((batch, tokens, c))?, &down_bias, modulation);
    }
    let h = super::depthwise(&h, &kernel, 1, padding)?.reshape((batch * tokens, c))?.broadcast_add(&kernel_bias)?;
    let h = h.matmul(&up)?.broadcast_add(&up_bias)?.gelu()?;
    let h = match dropout {
        Some(dropout) => super::dropout(&h.reshape((batch, tokens * shape.hidden))?, dropout)?,
        None => h,
    };
    let y = h.reshape((batch * tokens, shape.hidden))?.matmul(&down)?.broadcast_add(&down_bias)?;
    let gate = modulation.narrow(1, 2 * c, c)?.unsqueeze(1)?;
    x + y.reshape((batch, tokens, c))?.broadcast_mul(&gate)?
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
    stash: Option<OnceLock<Stash>>,
}

/// Rows of the token grid that one task takes: enough for the matrix kernel, few enough to share one sample.
const STRIP_ROWS: usize = 4;

impl CustomOp3 for ConvNext {
    fn name(&self) -> &'static str {
        "convnext"
    }

    fn cpu_fwd(
        &self,
        s1: &CpuStorage,
        l1: &Layout,
        s2: &CpuStorage,
        l2: &Layout,
        s3: &CpuStorage,
        l3: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let x = elements(s1, l1, self.name())?;
        let parts = self.shape.split(elements(s2, l2, self.name())?);
        let modulation = elements(s3, l3, self.name())?;
        let ConvNextShape { height, width, channels: c, hidden, kernel } = self.shape;
        let sample = height * width * c;
        let batch = x.len() / sample;
        let up = Packed::new(c, hidden, Matrix::rows(parts.up, hidden));
        let down = Packed::new(hidden, c, Matrix::rows(parts.down, c));

        let padded: Vec<Vec<f32>> = x
            .par_chunks_exact(sample)
            .zip(modulation.par_chunks_exact(3 * c))
            .map(|(x, modulation)| {
                let mut normed = vec![0.0; sample];
                pw::modulated_norm(x, &modulation[..c], &modulation[c..2 * c], &mut normed);
                let mut padded = Vec::new();
                dw::pad(&normed, width, c, [kernel / 2; 4], &mut padded);
                padded
            })
            .collect();

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
        tasks.into_par_iter().for_each(|(i, (((out, convolved), pre), update))| {
            let (index, first_row) = (i / strips, i % strips * STRIP_ROWS);
            let tokens = out.len() / c;
            let mut local = (Vec::new(), Vec::new(), Vec::new());
            let convolved = borrow(convolved, &mut local.0, tokens * c);
            let pre = borrow(pre, &mut local.1, tokens * hidden);
            let update = borrow(update, &mut local.2, tokens * c);
            let shape = self.shape.depthwise_shape();
            let rows = &padded[index][first_row * shape.padded_width * c..];
            dw::forward(rows, parts.depthwise, parts.depthwise_bias, convolved, shape, false);
            let bias = |b| Epilogue { bias: Some(b), ..Epilogue::default() };
            gemm(tokens, Matrix::rows(convolved, c), &up, pre, bias(parts.up_bias));
            let mut active = vec![0.0; tokens * hidden];
            pw::gelu(pre, &mut active);
            if let Some(dropout) = &self.dropout {
                dropout.apply(&mut active, index, first_row * width * hidden);
            }
            gemm(tokens, Matrix::rows(&active, hidden), &down, update, bias(parts.down_bias));
            let from = index * sample + first_row * width * c;
            let gate = &modulation[index * 3 * c + 2 * c..][..c];
            pw::gated_add(&x[from..][..tokens * c], gate, update, out);
        });
        if let Some(cell) = &self.stash {
            let _ = cell.set(stash); // set once: an op runs forward once
        }
        Ok((CpuStorage::F32(out), l1.shape().clone()))
    }

    fn bwd(
        &self,
        x: &Tensor,
        parameters: &Tensor,
        modulation: &Tensor,
        _res: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let Some(stash) = self.stash.as_ref().and_then(OnceLock::get) else {
            candle_core::bail!("convnext: the forward pass kept nothing for a gradient");
        };
        let (gx, gp, gm) = with_elements(x, self.name(), |x| {
            with_elements(parameters, self.name(), |parameters| {
                with_elements(modulation, self.name(), |modulation| {
                    with_elements(grad, self.name(), |grad| Ok(self.backward(stash, x, parameters, modulation, grad)))
                })
            })
        })?;
        Ok((Some(on_cpu(gx, x.shape())?), Some(on_cpu(gp, parameters.shape())?), Some(on_cpu(gm, modulation.shape())?)))
    }
}

/// The kept memory, or local memory where nothing is kept.
fn borrow<'a>(kept: &'a mut [f32], local: &'a mut Vec<f32>, len: usize) -> &'a mut [f32] {
    if kept.is_empty() {
        local.resize(len, 0.0);
        local
    } else {
        kept
    }
}

/// Disjoint pieces of the given lengths.
fn cut<'a>(mut rest: &'a mut [f32], lengths: &[usize]) -> Vec<&'a mut [f32]> {
    lengths
        .iter()
        .map(|&n| {
            let (head, tail) = std::mem::take(&mut rest).split_at_mut(n);
            rest = tail;
            head
        })
        .collect()
}

/// Samples whose parameter gradients share one buffer: few buffers, yet the same sums for any number of threads.
const GROUP: usize = 4;

impl ConvNext {
    /// Gradients of x `[B, T, C]`, of the parameters `[n]` and of the modulation `[B, 3 C]`.
    fn backward(
        &self,
        stash: &Stash,
        x: &[f32],
        parameters: &[f32],
        modulation: &[f32],
        grad: &[f32],
    ) -> (Vec<f32>, Vec<f32>, Vec<f32>) {
        let ConvNextShape { height, width, channels: c, hidden, .. } = self.shape;
        let (tokens, sample) = (height * width, height * width * c);
        let parts = self.shape.split(parameters);
        let weights = Backward {
            op: self,
            up: Packed::new(hidden, c, Matrix::transposed(parts.up, hidden)),
            down: Packed::new(c, hidden, Matrix::transposed(parts.down, c)),
            flipped: dw::flipped(parts.depthwise, c),
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
                        self.shape.split_mut(&mut sums),
                    );
                }
                sums
            })
            .collect();
        (grad_x, sum_in_order(sums), grad_modulation)
    }
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
        sums: Parts<&mut [f32]>,
    ) {
        let ConvNextShape { height, width, channels: c, hidden, kernel } = self.op.shape;
        let tokens = height * width;
        let (shift, scale, gate) = (&modulation[..c], &modulation[c..2 * c], &modulation[2 * c..]);
        let (grad_shift, rest) = grad_modulation.split_at_mut(c);
        let (grad_scale, grad_gate) = rest.split_at_mut(c);
        let add = Epilogue { accumulate: true, ..Epilogue::default() };

        let mut grad_update = vec![0.0; tokens * c];
        pw::gated_add_backward(grad, gate, update, &mut grad_update, grad_gate);
        pw::add_column_sums(&grad_update, sums.down_bias);

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
            hidden,
            c,
            tokens,
            Matrix::transposed(&active, hidden),
            Matrix::rows(&grad_update, c),
            sums.down,
            add,
        );
        pw::add_column_sums(&grad_hidden, sums.up_bias);
        gemm_once(
            c,
            hidden,
            tokens,
            Matrix::transposed(convolved, c),
            Matrix::rows(&grad_hidden, hidden),
            sums.up,
            add,
        );
        let mut grad_convolved = grad_update;
        gemm(tokens, Matrix::rows(&grad_hidden, hidden), &self.up, &mut grad_convolved, Epilogue::default());

        let shape = self.op.shape.depthwise_shape();
        let mut normed = vec![0.0; tokens * c];
        pw::modulated_norm(x, shift, scale, &mut normed);
        let mut padded = Vec::new();
        dw::pad(&normed, width, c, [kernel / 2; 4], &mut padded);
        dw::backward_weights(&padded, &grad_convolved, sums.depthwise, sums.depthwise_bias, shape);
        dw::pad(&grad_convolved, width, c, [kernel / 2; 4], &mut padded);
        let zero = vec![0.0; c];
        let grad_normed = &mut normed;
        dw::forward(&padded, &self.flipped, &zero, grad_normed, shape, false);
        pw::modulated_norm_backward(x, scale, grad_normed, grad_x, grad_shift, grad_scale);
    }
}

/// Mean over the last axis, for the composite forms.
pub(super) fn mean_last(x: &Tensor) -> Result<Tensor> {
    x.mean_keepdim(D::Minus1)
}
