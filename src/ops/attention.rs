//! Self-attention with adaLN and a gated residual as one operation (Vaswani et al. 2017; adaLN-zero, Peebles & Xie 2023).

use std::cell::RefCell;
use std::sync::{Arc, OnceLock};

use candle_core::{D, Result, Shape, Tensor};
use rayon::prelude::*;

use super::{
    Kernel, Mode, Packs, STRIP_TOKENS, check_layer, has_cpu_kernel, run, split, split_mut, split_tensor, sum_in_order,
};
use crate::kernels::buffer::Buffer;
use crate::kernels::gemm::{Epilogue, Factors, Matrix, Packed, gemm, gemm_once};
use crate::kernels::pointwise as pw;

/// Sizes of a self-attention layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AttentionShape {
    /// Tokens.
    pub tokens: usize,
    /// Channels; a multiple of `heads`.
    pub channels: usize,
    /// Heads.
    pub heads: usize,
}

impl AttentionShape {
    /// Query/key/value matrix and bias, output matrix and bias.
    fn parts(&self) -> [Shape; 4] {
        let c = self.channels;
        [(c, 3 * c).into(), (3 * c).into(), (c, c).into(), c.into()]
    }

    /// Number of parameters: query/key/value matrix `[C, 3 C]` and bias, output matrix `[C, C]` and bias.
    pub fn parameters(&self) -> usize {
        self.parts().iter().map(Shape::elem_count).sum()
    }

    /// The two matrices as the kernel reads them.
    fn packs(&self, factors: Factors, parameters: &[f32]) -> [Packed; 2] {
        let c = self.channels;
        let [qkv, _, project, _] = split(parameters, &self.parts());
        [Packed::new(factors, c, 3 * c, Matrix::rows(qkv, 3 * c)), Packed::new(factors, c, c, Matrix::rows(project, c))]
    }

    fn scale(&self) -> f32 {
        1.0 / ((self.channels / self.heads) as f32).sqrt()
    }
}

/// `x + gate * project(attention(norm(x) * (1 + scale) + shift))`.
///
/// `x` `[B, T, C]`; `parameters` `[n]` as in [`AttentionShape::parameters`]; `modulation` `[B, 3 C]`: shift, scale, gate.
///
/// # Errors
/// When shapes do not fit.
pub fn attention(
    x: &Tensor,
    parameters: &Tensor,
    modulation: &Tensor,
    shape: AttentionShape,
    mode: Mode<'_>,
) -> Result<Tensor> {
    if !shape.channels.is_multiple_of(shape.heads) {
        candle_core::bail!("{shape:?}: channels are no multiple of the heads");
    }
    let arguments = [x, parameters, modulation];
    check_layer(&shape, arguments, [shape.tokens, shape.channels, shape.parameters()])?;
    if !has_cpu_kernel(x) {
        return attention_composite(x, parameters, modulation, shape, mode.trains());
    }
    let packs = Packs::of(mode, parameters, |factors, parameters| shape.packs(factors, parameters))?;
    run(Attention { shape, packs, stash: mode.trains().then(OnceLock::new) }, arguments, mode.trains())
}

/// The same as a chain of operations.
///
/// # Errors
/// When shapes do not fit.
pub fn attention_composite(
    x: &Tensor,
    parameters: &Tensor,
    modulation: &Tensor,
    shape: AttentionShape,
    train: bool,
) -> Result<Tensor> {
    let (batch, tokens, c) = x.dims3()?;
    let [qkv, qkv_bias, project, project_bias] = split_tensor(parameters, &shape.parts())?;
    let h = super::modulated_norm(x, &modulation.narrow(1, 0, 2 * c)?)?;
    let h = super::linear_composite(&h, &qkv, &qkv_bias)?;
    let h = h.reshape((batch, tokens, 3, shape.heads, c / shape.heads))?.permute((2, 0, 3, 1, 4))?; // [3, B, heads, T, d]
    // The queries are scaled, not the weights: they are fewer.
    let q = (h.get(0)?.contiguous()? * f64::from(shape.scale()))?;
    let (k, v) = (h.get(1)?.contiguous()?, h.get(2)?.contiguous()?);
    let scores = q.matmul(&k.t()?.contiguous()?)?;
    #[allow(
        clippy::disallowed_methods,
        reason = "one kernel; that it loses the gradient is no loss outside of training"
    )]
    let weights =
        if train { candle_nn::ops::softmax(&scores, D::Minus1) } else { candle_nn::ops::softmax_last_dim(&scores) };
    let o = weights?.matmul(&v)?.transpose(1, 2)?.reshape((batch * tokens, c))?;
    super::gated_add(x, &o.matmul(&project)?.reshape((batch, tokens, c))?, &project_bias, modulation, train)
}

/// What the backward pass takes from the forward pass.
struct Stash {
    qkv: Vec<f32>,    // [B, T, 3 C]
    mixed: Vec<f32>,  // [B, T, C]: the heads' outputs side by side
    update: Vec<f32>, // [B, T, C]: after the output matrix
}

struct Attention {
    shape: AttentionShape,
    packs: Arc<[Packed]>, // [C, 3 C] and [C, C]
    stash: Option<OnceLock<Stash>>,
}

impl Attention {
    /// Attention weights `[T, T]` of one head from one sample's `qkv` `[T, 3 C]`.
    fn weights(&self, factors: Factors, qkv: &[f32], head: usize, weights: &mut [f32]) {
        let AttentionShape { tokens, channels: c, heads } = self.shape;
        let d = c / heads;
        let q = Matrix { data: &qkv[head * d..], row: 3 * c, col: 1 };
        let keys = Matrix { data: &qkv[c + head * d..], row: 1, col: 3 * c };
        gemm_once(factors, [tokens, tokens, d], q, keys, weights, Epilogue::default());
        pw::softmax_rows(weights, tokens, self.shape.scale());
    }
}

thread_local! {
    /// Memory of a thread for what one task has on its way.
    static SCRATCH: RefCell<Buffer> = RefCell::default();
}

/// Copies `[T, d]` into the columns of one head of `[T, stride]`.
fn scatter_head(head: &[f32], d: usize, at: usize, stride: usize, out: &mut [f32]) {
    for (from, to) in head.chunks_exact(d).zip(out.chunks_exact_mut(stride)) {
        to[at..at + d].copy_from_slice(from);
    }
}

impl Kernel<3> for Attention {
    const NAME: &'static str = "attention";

    fn forward(&self, [x, parameters, modulation]: [&[f32]; 3], shapes: [&Shape; 3]) -> Result<(Vec<f32>, Shape)> {
        let [_, qkv_bias, _, project_bias] = split(parameters, &self.shape.parts());
        let AttentionShape { tokens, channels: c, heads } = self.shape;
        let (sample, d) = (tokens * c, c / heads);
        let (qkv_packed, project_packed) = (&self.packs[0], &self.packs[1]);
        let (strip, factors) = (STRIP_TOKENS * c, qkv_packed.factors());

        let mut qkv = vec![0.0; x.len() * 3];
        qkv.par_chunks_exact_mut(3 * sample)
            .zip(x.par_chunks_exact(sample))
            .zip(modulation.par_chunks_exact(3 * c))
            .for_each(|((qkv, x), m)| {
                qkv.par_chunks_mut(3 * strip).zip(x.par_chunks(strip)).for_each(|(qkv, x)| {
                    SCRATCH.with_borrow_mut(|normed| {
                        let normed = normed.of(x.len());
                        pw::modulated_norm(x, &m[..c], &m[c..2 * c], normed);
                        let epilogue = Epilogue { bias: Some(qkv_bias), ..Epilogue::default() };
                        gemm(x.len() / c, Matrix::rows(normed, c), qkv_packed, qkv, epilogue);
                    });
                });
            });
        let per_head: Vec<Vec<f32>> = (0..x.len() / sample * heads)
            .into_par_iter()
            .map(|i| {
                let (qkv, head) = (&qkv[i / heads * 3 * sample..][..3 * sample], i % heads);
                let values = Matrix { data: &qkv[2 * c + head * d..], row: 3 * c, col: 1 };
                let mut out = vec![0.0; tokens * d];
                SCRATCH.with_borrow_mut(|weights| {
                    let weights = weights.of(tokens * tokens);
                    self.weights(factors, qkv, head, weights);
                    let weights = Matrix::rows(weights, tokens);
                    gemm_once(factors, [tokens, d, tokens], weights, values, &mut out, Epilogue::default());
                });
                out
            })
            .collect();
        let (mut mixed, mut update) = (vec![0.0; x.len()], vec![0.0; x.len()]);
        let mut out = vec![0.0; x.len()];
        mixed
            .par_chunks_exact_mut(sample)
            .zip(update.par_chunks_exact_mut(sample))
            .zip(out.par_chunks_exact_mut(sample))
            .zip(x.par_chunks_exact(sample))
            .zip(modulation.par_chunks_exact(3 * c))
            .enumerate()
            .for_each(|(i, ((((mixed, update), out), x), m))| {
                for head in 0..heads {
                    scatter_head(&per_head[i * heads + head], d, head * d, c, mixed);
                }
                let strips = mixed.par_chunks(strip).zip(update.par_chunks_mut(strip));
                let strips = strips.zip(x.par_chunks(strip)).zip(out.par_chunks_mut(strip));
                strips.for_each(|(((mixed, update), x), out)| {
                    let epilogue = Epilogue { bias: Some(project_bias), ..Epilogue::default() };
                    gemm(x.len() / c, Matrix::rows(mixed, c), project_packed, update, epilogue);
                    pw::gated_add(x, &m[2 * c..], update, out);
                });
            });
        if let Some(cell) = &self.stash {
            let _ = cell.set(Stash { qkv, mixed, update }); // set once: an op runs forward once
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
            candle_core::bail!("attention: the forward pass kept nothing for a gradient");
        };
        let AttentionShape { tokens, channels: c, .. } = self.shape;
        let sample = tokens * c;
        let [qkv_weight, _, project, _] = split(parameters, &self.shape.parts());
        let qkv_packed = Packed::new(Factors::F32, 3 * c, c, Matrix::transposed(qkv_weight, 3 * c));
        let project_packed = Packed::new(Factors::F32, c, c, Matrix::transposed(project, c));
        let mut grad_x = grad.to_vec(); // the residual path
        let mut grad_modulation = vec![0.0; modulation.len()];
        let parts: Vec<Vec<f32>> = grad_x
            .par_chunks_exact_mut(sample)
            .zip(grad_modulation.par_chunks_exact_mut(3 * c))
            .enumerate()
            .map(|(i, (gx, gm))| {
                let at = i * sample..(i + 1) * sample;
                let m = &modulation[i * 3 * c..][..3 * c];
                let (shift, scale, gate) = (&m[..c], &m[c..2 * c], &m[2 * c..]);
                let (grad_shift, rest) = gm.split_at_mut(c);
                let (grad_scale, grad_gate) = rest.split_at_mut(c);
                let mut sums = vec![0.0; parameters.len()];
                let [w_sum, b_sum, p_sum, pb_sum] = split_mut(&mut sums, &self.shape.parts());

                let mut grad_update = vec![0.0; sample];
                pw::gated_add_backward(&grad[at.clone()], gate, &stash.update[at.clone()], &mut grad_update, grad_gate);
                pw::add_column_sums(&grad_update, pb_sum);
                let mixed = Matrix::transposed(&stash.mixed[at.clone()], c);
                gemm_once(
                    Factors::F32,
                    [c, c, tokens],
                    mixed,
                    Matrix::rows(&grad_update, c),
                    p_sum,
                    Epilogue::default(),
                );
                let mut grad_mixed = vec![0.0; sample];
                gemm(tokens, Matrix::rows(&grad_update, c), &project_packed, &mut grad_mixed, Epilogue::default());

                let grad_qkv = self.heads_backward(&stash.qkv[i * 3 * sample..][..3 * sample], &grad_mixed);
                pw::add_column_sums(&grad_qkv, b_sum);
                let x = &x[at];
                let mut normed = vec![0.0; sample];
                pw::modulated_norm(x, shift, scale, &mut normed);
                let a = Matrix::transposed(&normed, c);
                gemm_once(
                    Factors::F32,
                    [c, 3 * c, tokens],
                    a,
                    Matrix::rows(&grad_qkv, 3 * c),
                    w_sum,
                    Epilogue::default(),
                );
                gemm(tokens, Matrix::rows(&grad_qkv, 3 * c), &qkv_packed, &mut grad_update, Epilogue::default());
                pw::modulated_norm_backward(x, scale, &grad_update, gx, grad_shift, grad_scale);
                sums
            })
            .collect();
        Ok([grad_x, sum_in_order(parts), grad_modulation])
    }
}

impl Attention {
    /// Gradient of one sample's `qkv` `[T, 3 C]` from that of the heads' outputs `[T, C]`.
    fn heads_backward(&self, qkv: &[f32], grad_mixed: &[f32]) -> Vec<f32> {
        let AttentionShape { tokens, channels: c, heads } = self.shape;
        let d = c / heads;
        let mut grad_qkv = vec![0.0; tokens * 3 * c];
        let mut part = vec![0.0; tokens * d];
        let (mut weights, mut grad_weights) = (vec![0.0; tokens * tokens], vec![0.0; tokens * tokens]);
        for head in 0..heads {
            self.weights(Factors::F32, qkv, head, &mut weights);
            let columns = |offset: usize| Matrix { data: &qkv[offset + head * d..], row: 3 * c, col: 1 };
            let grad_out = Matrix { data: &grad_mixed[head * d..], row: c, col: 1 };
            let plain = Epilogue::default();
            // value: P^T dO
            gemm_once(
                Factors::F32,
                [tokens, d, tokens],
                Matrix::transposed(&weights, tokens),
                grad_out,
                &mut part,
                plain,
            );
            scatter_head(&part, d, 2 * c + head * d, 3 * c, &mut grad_qkv);
            // weights: dO V^T, through the softmax
            let values = Matrix { data: &qkv[2 * c + head * d..], row: 1, col: 3 * c };
            gemm_once(Factors::F32, [tokens, tokens, d], grad_out, values, &mut grad_weights, plain);
            pw::softmax_rows_backward(&weights, &mut grad_weights, tokens, self.shape.scale());
            // query: dS K; key: dS^T Q
            gemm_once(
                Factors::F32,
                [tokens, d, tokens],
                Matrix::rows(&grad_weights, tokens),
                columns(c),
                &mut part,
                plain,
            );
            scatter_head(&part, d, head * d, 3 * c, &mut grad_qkv);
            gemm_once(
                Factors::F32,
                [tokens, d, tokens],
                Matrix::transposed(&grad_weights, tokens),
                columns(0),
                &mut part,
                plain,
            );
            scatter_head(&part, d, c + head * d, 3 * c, &mut grad_qkv);
        }
        grad_qkv
    }
}
