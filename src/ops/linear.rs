//! Linear layers with a bias per channel or per token, and the normalisation before them.

#[cfg(feature = "cuda")]
use candle_core::CudaStorage;
use candle_core::{CpuStorage, CustomOp2, CustomOp3, D, Layout, Result, Shape, Tensor};
use rayon::prelude::*;

#[cfg(feature = "cuda")]
use super::cuda::int;
use super::{elements, has_cpu_kernel, has_kernel, on_cpu, sum_in_order, with_elements};
#[cfg(feature = "cuda")]
use crate::kernels::cuda::{Numbers, Work, launch};
use crate::kernels::gemm::{Epilogue, Matrix, Packed, gemm, gemm_once};
use crate::kernels::pointwise as pw;

/// Added to the variance before its root is taken.
const NORM_EPSILON: f64 = 1e-5;

/// `x W + bias` for `x` `[B, T, in]`, `weight` `[in, out]`, `bias` `[out]` or `[T, out]` (a learned position).
///
/// # Errors
/// When shapes do not fit.
pub fn linear(x: &Tensor, weight: &Tensor, bias: &Tensor) -> Result<Tensor> {
    let (_, tokens, k) = x.dims3()?;
    let (rows, n) = weight.dims2()?;
    if rows != k || !(bias.dims() == [n] || bias.dims() == [tokens, n]) {
        candle_core::bail!("linear: x {:?}, weight {:?}, bias {:?}", x.dims(), weight.dims(), bias.dims());
    }
    if !has_cpu_kernel(x) {
        return linear_composite(x, weight, bias);
    }
    x.contiguous()?.apply_op3(&weight.contiguous()?, bias, Linear)
}

/// The same in plain candle ops.
///
/// # Errors
/// When shapes do not fit.
pub fn linear_composite(x: &Tensor, weight: &Tensor, bias: &Tensor) -> Result<Tensor> {
    let (batch, tokens, k) = x.dims3()?;
    x.reshape((batch * tokens, k))?.matmul(weight)?.reshape((batch, tokens, ()))?.broadcast_add(bias)
}

struct Linear;

impl CustomOp3 for Linear {
    fn name(&self) -> &'static str {
        "linear"
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
        let (x, weight, bias) =
            (elements(s1, l1, self.name())?, elements(s2, l2, self.name())?, elements(s3, l3, self.name())?);
        let (batch, tokens, k) = l1.shape().dims3()?;
        let n = l2.shape().dims2()?.1;
        let per_token = bias.len() != n;
        let packed = Packed::new(k, n, Matrix::rows(weight, n));
        let mut out = vec![0.0; batch * tokens * n];
        out.par_chunks_exact_mut(tokens * n).zip(x.par_chunks_exact(tokens * k)).for_each(|(out, x)| {
            let epilogue = if per_token {
                Epilogue { add: Some(bias), ..Epilogue::default() }
            } else {
                Epilogue { bias: Some(bias), ..Epilogue::default() }
            };
            gemm(tokens, Matrix::rows(x, k), &packed, out, epilogue);
        });
        Ok((CpuStorage::F32(out), (batch, tokens, n).into()))
    }

    fn bwd(
        &self,
        x: &Tensor,
        weight: &Tensor,
        bias: &Tensor,
        _res: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let (batch, tokens, k) = x.dims3()?;
        let n = weight.dim(1)?;
        let (gx, gw, gb) = with_elements(x, self.name(), |x| {
            with_elements(weight, self.name(), |weight| {
                with_elements(grad, self.name(), |grad| {
                    let transposed = Packed::new(n, k, Matrix::transposed(weight, n));
                    let mut grad_x = vec![0.0; batch * tokens * k];
                    let parts = grad_x
                        .par_chunks_exact_mut(tokens * k)
                        .zip(x.par_chunks_exact(tokens * k))
                        .zip(grad.par_chunks_exact(tokens * n))
                        .map(|((gx, x), g)| {
                            gemm(tokens, Matrix::rows(g, n), &transposed, gx, Epilogue::default());
                            let mut gw = vec![0.0; k * n];
                            let (a, b) = (Matrix::transposed(x, k), Matrix::rows(g, n));
                            gemm_once(k, n, tokens, a, b, &mut gw, Epilogue::default());
                            gw
                        })
                        .collect();
                    let mut grad_bias = vec![0.0; bias.elem_count()];
                    pw::add_column_sums(grad, &mut grad_bias);
                    Ok((grad_x, sum_in_order(parts), grad_bias))
                })
            })
        })?;
        Ok((Some(on_cpu(gx, x.shape())?), Some(on_cpu(gw, weight.shape())?), Some(on_cpu(gb, bias.shape())?)))
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
    x.contiguous()?.apply_op2(&modulation.contiguous()?, ModulatedNorm)
}

/// The same in plain candle ops.
///
/// # Errors
/// When shapes do not fit.
pub fn modulated_norm_composite(x: &Tensor, modulation: &Tensor) -> Result<Tensor> {
    let c = x.dim(D::Minus1)?;
    let centred = x.broadcast_sub(&super::convnext::mean_last(x)?)?;
    let deviation = (super::convnext::mean_last(&centred.sqr()?)? + NORM_EPSILON)?.sqrt()?;
    let scale = (modulation.narrow(1, c, c)?.unsqueeze(1)? + 1.0)?;
    centred.broadcast_div(&deviation)?.broadcast_mul(&scale)?.broadcast_add(&modulation.narrow(1, 0, c)?.unsqueeze(1)?)
}

struct ModulatedNorm;

impl CustomOp2 for ModulatedNorm {
    fn name(&self) -> &'static str {
        "modulated_norm"
    }

    fn cpu_fwd(&self, s1: &CpuStorage, l1: &Layout, s2: &CpuStorage, l2: &Layout) -> Result<(CpuStorage, Shape)> {
        let (x, modulation) = (elements(s1, l1, self.name())?, elements(s2, l2, self.name())?);
        let (_, tokens, c) = l1.shape().dims3()?;
        let mut out = vec![0.0; x.len()];
        out.par_chunks_exact_mut(tokens * c)
            .zip(x.par_chunks_exact(tokens * c))
            .zip(modulation.par_chunks_exact(2 * c))
            .for_each(|((out, x), m)| pw::modulated_norm(x, &m[..c], &m[c..], out));
        Ok((CpuStorage::F32(out), l1.shape().clone()))
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(&self, s1: &CudaStorage, l1: &Layout, s2: &CudaStorage, l2: &Layout) -> Result<(CudaStorage, Shape)> {
        let (batch, tokens, c) = l1.shape().dims3()?;
        let numbers = Numbers { integers: &[int(tokens)?, int(c)?], floats: &[] };
        let inputs = [(s1, l1), (s2, l2)];
        let out = launch(self.name(), &inputs, batch * tokens * c, Work::Rows(batch * tokens), numbers)?;
        Ok((out, l1.shape().clone()))
    }

    fn bwd(
        &self,
        x: &Tensor,
        modulation: &Tensor,
        _res: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let (_, tokens, c) = x.dims3()?;
        if !x.device().is_cpu() {
            let (to_x, to_modulation) = modulated_norm_backward(x, modulation, grad)?;
            return Ok((Some(to_x), Some(to_modulation)));
        }
        let (gx, gm) = with_elements(x, self.name(), |x| {
            with_elements(modulation, self.name(), |modulation| {
                with_elements(grad, self.name(), |grad| {
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
                    Ok((gx, gm))
                })
            })
        })?;
        Ok((Some(on_cpu(gx, x.shape())?), Some(on_cpu(gm, modulation.shape())?)))
    }
}

/// Gradients of [`modulated_norm`] to x and to the modulation, in tensor operations.
fn modulated_norm_backward(x: &Tensor, modulation: &Tensor, grad: &Tensor) -> Result<(Tensor, Tensor)> {
    use super::convnext::mean_last;

    let c = x.dim(D::Minus1)?;
    let centred = x.broadcast_sub(&mean_last(x)?)?;
    let factor = (mean_last(&centred.sqr()?)? + NORM_EPSILON)?.sqrt()?.recip()?; // [B, T, 1]
    let normed = centred.broadcast_mul(&factor)?;
    let scale = (modulation.narrow(1, c, c)?.unsqueeze(1)? + 1.0)?;
    let inner = grad.broadcast_mul(&scale)?;
    let along = mean_last(&(&inner * &normed)?)?;
    let to_x = (inner.broadcast_sub(&mean_last(&inner)?)? - normed.broadcast_mul(&along)?)?.broadcast_mul(&factor)?;
    let to_modulation = Tensor::cat(&[grad.sum(1)?, (grad * normed)?.sum(1)?], 1)?; // shift, scale
    Ok((to_x, to_modulation))
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
        let (to_x, to_m) = modulated_norm_backward(&x, &m, &grad).unwrap();
        for (kernel, tensors) in [(kernel.get(&x).unwrap(), to_x), (kernel.get(&m).unwrap(), to_m)] {
            let list = |t: &Tensor| t.flatten_all().unwrap().to_vec1::<f32>().unwrap();
            assert!(list(kernel).iter().zip(list(&tensors)).all(|(a, b)| (a - b).abs() < 1e-5));
        }
    }
}
