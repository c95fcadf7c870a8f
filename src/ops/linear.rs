//! Linear layers with a bias per channel or per token, and the normalisation before them.

#[cfg(feature = "cuda")]
use candle_core::{CudaStorage, Layout};
use std::sync::Arc;

use candle_core::{D, Result, Shape, Tensor};
use rayon::prelude::*;

#[cfg(feature = "cuda")]
use super::cuda::int;
use super::{Kernel, Mode, Op, Packs, STRIP_TOKENS, has_cpu_kernel, has_kernel, sum_in_order};
#[cfg(feature = "cuda")]
use crate::kernels::cuda::{Numbers, Work, launch};
use crate::kernels::gemm::{Epilogue, Factors, Matrix, Packed, gemm, gemm_once};
use crate::kernels::pointwise as pw;

/// Added to the variance before its root is taken.
const NORM_EPSILON: f64 = 1e-5;

/// `x W + bias` for `x` `[B, T, in]`, `weight` `[in, out]`, `bias` `[out]` or `[T, out]` (a learned position). What is kept for an
/// answer belongs to this weight.
///
/// # Errors
/// When shapes do not fit.
pub fn linear(x: &Tensor, weight: &Tensor, bias: &Tensor, mode: Mode<'_>) -> Result<Tensor> {
    let (_, tokens, k) = x.dims3()?;
    let (rows, n) = weight.dims2()?;
    if rows != k || !(bias.dims() == [n] || bias.dims() == [tokens, n]) {
        candle_core::bail!("linear: x {:?}, weight {:?}, bias {:?}", x.dims(), weight.dims(), bias.dims());
    }
    if !has_cpu_kernel(x) {
        return linear_composite(x, weight, bias);
    }
    let packed = Packs::of(mode, weight, |factors, weight| [Packed::new(factors, k, n, Matrix::rows(weight, n))])?;
    x.contiguous()?.apply_op3(&weight.contiguous()?, bias, Op(Linear(packed)))
}

/// The same in plain candle ops.
///
/// # Errors
/// When shapes do not fit.
pub fn linear_composite(x: &Tensor, weight: &Tensor, bias: &Tensor) -> Result<Tensor> {
    let (batch, tokens, k) = x.dims3()?;
    x.reshape((batch * tokens, k))?.matmul(weight)?.reshape((batch, tokens, ()))?.broadcast_add(bias)
}

/// With its matrix `[in, out]` as the kernel reads it.
struct Linear(Arc<[Packed]>);

impl Kernel<3> for Linear {
    const NAME: &'static str = "linear";

    fn forward(&self, [x, _, bias]: [&[f32]; 3], shapes: [&Shape; 3]) -> Result<(Vec<f32>, Shape)> {
        let (batch, tokens, k) = shapes[0].dims3()?;
        let n = shapes[1].dims2()?.1;
        let per_token = bias.len() != n;
        let packed = &self.0[0];
        let mut out = vec![0.0; batch * tokens * n];
        out.par_chunks_exact_mut(tokens * n).zip(x.par_chunks_exact(tokens * k)).for_each(|(out, x)| {
            let strips = out.par_chunks_mut(STRIP_TOKENS * n).zip(x.par_chunks(STRIP_TOKENS * k));
            strips.enumerate().for_each(|(strip, (out, x))| {
                let epilogue = if per_token {
                    Epilogue { add: Some(&bias[strip * STRIP_TOKENS * n..]), ..Epilogue::default() }
                } else {
                    Epilogue { bias: Some(bias), ..Epilogue::default() }
                };
                gemm(out.len() / n, Matrix::rows(x, k), packed, out, epilogue);
            });
        });
        Ok((out, (batch, tokens, n).into()))
    }

    fn backward(&self, [x, weight, bias]: [&[f32]; 3], shapes: [&Shape; 3], grad: &[f32]) -> Result<[Vec<f32>; 3]> {
        let (batch, tokens, k) = shapes[0].dims3()?;
        let n = shapes[1].dims2()?.1;
        let transposed = Packed::new(Factors::F32, n, k, Matrix::transposed(weight, n));
        let mut grad_x = vec![0.0; batch * tokens * k];
        let parts = grad_x
            .par_chunks_exact_mut(tokens * k)
            .zip(x.par_chunks_exact(tokens * k))
            .zip(grad.par_chunks_exact(tokens * n))
            .map(|((gx, x), g)| {
                gemm(tokens, Matrix::rows(g, n), &transposed, gx, Epilogue::default());
                let mut gw = vec![0.0; k * n];
                let (a, b) = (Matrix::transposed(x, k), Matrix::rows(g, n));
                gemm_once(Factors::F32, [k, n, tokens], a, b, &mut gw, Epilogue::default());
                gw
            })
            .collect();
        let mut grad_bias = vec![0.0; bias.len()];
        pw::add_column_sums(grad, &mut grad_bias);
        Ok([grad_x, sum_in_order(parts), grad_bias])
    }
}

/// Layer normalisation without learned weights, then `* (1 + scale) + shift`; `x` `[B, T, C]`, `modulation` `[B, 2 C]`:
/// shift, scale (adaLN).
///
/// # Errors
/// When shapes do not fit.
pub fn modulated_norm(x: &Tensor, modulation: &Tensor) -> Result<Tensor> {
    let (batch, _, c) = x.dims3()?;
    if modulation.dims() != [batch, 2 * c] {
        candle_core::bail!("modulated_norm: x {:?}, modulation {:?}", x.dims(), modulation.dims());
    }
    if !has_kernel(x) {
        return modulated_norm_composite(x, modulation);
    }
    x.contiguous()?.apply_op2(&modulation.contiguous()?, Op(ModulatedNorm))
}

/// The same in plain candle ops.
///
/// # Errors
/// When shapes do not fit.
pub fn modulated_norm_composite(x: &Tensor, modulation: &Tensor) -> Result<Tensor> {
    let c = x.dim(D::Minus1)?;
    let centred = x.broadcast_sub(&mean_last(x)?)?;
    let deviation = (mean_last(&centred.sqr()?)? + NORM_EPSILON)?.sqrt()?;
    let scale = (modulation.narrow(1, c, c)?.unsqueeze(1)? + 1.0)?;
    centred.broadcast_div(&deviation)?.broadcast_mul(&scale)?.broadcast_add(&modulation.narrow(1, 0, c)?.unsqueeze(1)?)
}

struct ModulatedNorm;

impl Kernel<2> for ModulatedNorm {
    const NAME: &'static str = "modulated_norm";

    fn forward(&self, [x, modulation]: [&[f32]; 2], shapes: [&Shape; 2]) -> Result<(Vec<f32>, Shape)> {
        let (_, tokens, c) = shapes[0].dims3()?;
        let mut out = vec![0.0; x.len()];
        out.par_chunks_exact_mut(tokens * c)
            .zip(x.par_chunks_exact(tokens * c))
            .zip(modulation.par_chunks_exact(2 * c))
            .for_each(|((out, x), m)| {
                let strips = out.par_chunks_mut(STRIP_TOKENS * c).zip(x.par_chunks(STRIP_TOKENS * c));
                strips.for_each(|(out, x)| pw::modulated_norm(x, &m[..c], &m[c..], out));
            });
        Ok((out, shapes[0].clone()))
    }

    fn backward(&self, [x, modulation]: [&[f32]; 2], shapes: [&Shape; 2], grad: &[f32]) -> Result<[Vec<f32>; 2]> {
        let (_, tokens, c) = shapes[0].dims3()?;
        let (mut gx, mut gm) = (vec![0.0; x.len()], vec![0.0; modulation.len()]);
        gx.par_chunks_exact_mut(tokens * c)
            .zip(gm.par_chunks_exact_mut(2 * c))
            .zip(x.par_chunks_exact(tokens * c))
            .zip(modulation.par_chunks_exact(2 * c))
            .zip(grad.par_chunks_exact(tokens * c))
            .for_each(|((((gx, gm), x), m), g)| {
                let (shift, scale) = gm.split_at_mut(c);
                pw::modulated_norm_backward(x, &m[c..], g, gx, shift, scale);
            });
        Ok([gx, gm])
    }

    #[cfg(feature = "cuda")]
    fn forward_cuda(&self, inputs: [(&CudaStorage, &Layout); 2]) -> Result<(CudaStorage, Shape)> {
        let shape = inputs[0].1.shape();
        let (batch, tokens, c) = shape.dims3()?;
        let numbers = Numbers { integers: &[int(tokens)?, int(c)?], floats: &[] };
        let out = launch(Self::NAME, &inputs, batch * tokens * c, Work::Rows(batch * tokens), numbers)?;
        Ok((out, shape.clone()))
    }

    fn backward_elsewhere(&self, [x, modulation]: [&Tensor; 2], grad: &Tensor) -> Result<[Tensor; 2]> {
        modulated_norm_backward(x, modulation, grad)
    }
}

fn mean_last(x: &Tensor) -> Result<Tensor> {
    x.mean_keepdim(D::Minus1)
}

/// Gradients of [`modulated_norm`] to x and to the modulation, in tensor operations.
fn modulated_norm_backward(x: &Tensor, modulation: &Tensor, grad: &Tensor) -> Result<[Tensor; 2]> {
    let c = x.dim(D::Minus1)?;
    let centred = x.broadcast_sub(&mean_last(x)?)?;
    let factor = (mean_last(&centred.sqr()?)? + NORM_EPSILON)?.sqrt()?.recip()?; // [B, T, 1]
    let normed = centred.broadcast_mul(&factor)?;
    let scale = (modulation.narrow(1, c, c)?.unsqueeze(1)? + 1.0)?;
    let inner = grad.broadcast_mul(&scale)?;
    let along = mean_last(&(&inner * &normed)?)?;
    let to_x = (inner.broadcast_sub(&mean_last(&inner)?)? - normed.broadcast_mul(&along)?)?.broadcast_mul(&factor)?;
    let to_modulation = Tensor::cat(&[grad.sum(1)?, (grad * normed)?.sum(1)?], 1)?; // shift, scale
    Ok([to_x, to_modulation])
}

#[cfg(test)]
mod tests {
    use candle_core::{Device, Var};

    use super::*;

    #[test]
    fn the_norms_gradient_in_tensors_is_that_of_the_kernel() {
        let values = |n: usize, seed: usize| (0..n).map(|i| ((i * 37 + seed) as f32 * 0.71).sin()).collect::<Vec<_>>();
        let tensor = |shape: &[usize], seed| {
            Tensor::from_vec(values(shape.iter().product(), seed), shape, &Device::Cpu).unwrap()
        };
        let (x, m) =
            (Var::from_tensor(&tensor(&[3, 5, 8], 1)).unwrap(), Var::from_tensor(&tensor(&[3, 16], 2)).unwrap());
        let grad = tensor(&[3, 5, 8], 3);
        let loss = (modulated_norm(&x, &m).unwrap() * &grad).unwrap().sum_all().unwrap();
        let kernel = loss.backward().unwrap();
        let [to_x, to_m] = modulated_norm_backward(&x, &m, &grad).unwrap();
        for (kernel, tensors) in [(kernel.get(&x).unwrap(), to_x), (kernel.get(&m).unwrap(), to_m)] {
            let list = |t: &Tensor| t.flatten_all().unwrap().to_vec1::<f32>().unwrap();
            assert!(list(kernel).iter().zip(list(&tensors)).all(|(a, b)| (a - b).abs() < 1e-5));
        }
    }
}
