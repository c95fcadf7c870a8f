//! Self-attention with adaLN and a gated residual as one operation (Vaswani et al. 2017; adaLN-zero, Peebles & Xie 2023).

use std::cell::RefCell;
use std::sync::{Arc, OnceLock};

use candle_core::{D, Result, Shape, Tensor};
use rayon::prelude::*;

use super::{
    Kernel, Mode, Packs, STRIP_TOKENS, borrow, check_layer, cut, has_cpu_kernel, run, split, split_mut, split_tensor,
    sum_in_order,
};
use crate::kernels::buffer::{Buffer, Shelf};
use crate::kernels::gemm::{Epilogue, Factors, Matrix, Packed, Rows, gemm, gemm_once, gemm_part};
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
    /// The keys of one head of one sample's `qkv` `[T, 3 C]`, a column each: `[d, T]`.
    fn keys<'a>(&self, qkv: &'a [f32], head: usize) -> Matrix<'a> {
        let AttentionShape { channels: c, heads, .. } = self.shape;
        Matrix { data: &qkv[c + head * (c / heads)..], row: 1, col: 3 * c }
    }

    /// Attention weights `[T, T]` of one head from one sample's `qkv` `[T, 3 C]`, as the forward pass had them.
    fn weights(&self, qkv: &[f32], head: usize, weights: &mut [f32]) {
        let AttentionShape { tokens, channels: c, heads } = self.shape;
        let d = c / heads;
        let queries = Matrix { data: &qkv[head * d..], row: 3 * c, col: 1 };
        gemm_once(Factors::F32, [tokens, tokens, d], queries, self.keys(qkv, head), weights, Epilogue::default());
        pw::softmax_rows(weights, tokens, self.shape.scale());
    }
}

/// Queries, keys and values `[B, T, 3 C]`.
static QKV: Shelf = Shelf::new();

thread_local! {
    /// Memory of a thread for what one strip has on its way.
    static SCRATCH: RefCell<[Buffer; 3]> = RefCell::default();
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
        let (batch, strips) = (x.len() / sample, tokens.div_ceil(STRIP_TOKENS));
        let (qkv_packed, project_packed) = (&self.packs[0], &self.packs[1]);
        let (strip, factors) = (STRIP_TOKENS * c, qkv_packed.factors());
        let with_bias = |bias| Epilogue { bias: Some(bias), ..Epilogue::default() };

        let kept = self.stash.is_some();
        let keep = |n: usize| if kept { vec![0.0; n] } else { Vec::new() };
        let mut stash = Stash { qkv: keep(3 * x.len()), mixed: keep(x.len()), update: keep(x.len()) };
        let mut out = vec![0.0; x.len()];
        let lengths = |channels: usize| -> Vec<usize> {
            (0..batch * strips).map(|i| STRIP_TOKENS.min(tokens - i % strips * STRIP_TOKENS) * channels).collect()
        };
        let tasks = cut(&mut out, &lengths(c))
            .into_iter()
            .zip(cut(&mut stash.mixed, &lengths(if kept { c } else { 0 })))
            .zip(cut(&mut stash.update, &lengths(if kept { c } else { 0 })))
            .enumerate()
            .collect::<Vec<_>>();
        let attend = |qkv: &mut [f32]| {
            qkv.par_chunks_exact_mut(3 * sample)
                .zip(x.par_chunks_exact(sample))
                .zip(modulation.par_chunks_exact(3 * c))
                .for_each(|((qkv, x), m)| {
                    qkv.par_chunks_mut(3 * strip).zip(x.par_chunks(strip)).for_each(|(qkv, x)| {
                        SCRATCH.with_borrow_mut(|[normed, ..]| {
                            let normed = normed.of(x.len());
                            pw::modulated_norm(x, &m[..c], &m[c..2 * c], normed);
                            gemm(x.len() / c, Matrix::rows(normed, c), qkv_packed, qkv, with_bias(qkv_bias));
                        });
                    });
                });
            // The keys and values of each head of each sample, which all strips of the sample meet.
            let packed = |i: usize| {
                let (qkv, head) = (&qkv[i / heads * 3 * sample..][..3 * sample], i % heads);
                let values = Matrix { data: &qkv[2 * c + head * d..], row: 3 * c, col: 1 };
                [Packed::new(factors, d, tokens, self.keys(qkv, head)), Packed::new(factors, tokens, d, values)]
            };
            let packed: Vec<[Packed; 2]> = (0..batch * heads).into_par_iter().map(packed).collect();
            tasks.into_par_iter().for_each(|(i, ((out, mixed), update))| {
                let (index, first) = (i / strips, i % strips * STRIP_TOKENS);
                let count = out.len() / c;
                SCRATCH.with_borrow_mut(|[weights, mixed_here, update_here]| {
                    let mixed = borrow(mixed, mixed_here, out.len());
                    let update = borrow(update, update_here, out.len());
                    let weights = weights.of(count * tokens);
                    for (head, [keys, values]) in packed[index * heads..][..heads].iter().enumerate() {
                        let queries = &qkv[(index * tokens + first) * 3 * c + head * d..];
                        let queries = Matrix { data: queries, row: 3 * c, col: 1 };
                        gemm(count, queries, keys, weights, Epilogue::default());
                        pw::softmax_rows(weights, tokens, self.shape.scale());
                        let (rows, all) = (Rows { row: c, run: count, jump: 0 }, (0..tokens, 0..d));
                        let mixed = &mut mixed[head * d..];
                        gemm_part(count, Matrix::rows(weights, tokens), values, all, mixed, rows, Epilogue::default());
                    }
                    gemm(count, Matrix::rows(mixed, c), project_packed, update, with_bias(project_bias));
                    let (x, gate) =
                        (&x[index * sample + first * c..][..out.len()], &modulation[index * 3 * c + 2 * c..][..c]);
                    pw::gated_add(x, gate, update, out);
                });
            });
        };
        if kept {
            attend(&mut stash.qkv);
        } else {
            QKV.lend(3 * x.len(), attend);
        }
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
            self.weights(qkv, head, &mut weights);
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
