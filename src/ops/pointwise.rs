//! What stands between the matrix products where no CPU kernel computes a whole block: each one kernel on a GPU, plain tensor
//! operations elsewhere. But for [`dropout`] those kernels have no gradient: where one is needed (`train`) a GPU runs the plain
//! operations as well.

#[cfg(feature = "cuda")]
use candle_core::CudaStorage;
use candle_core::{CpuStorage, CustomOp1, DType, Layout, Result, Shape, Tensor};

use super::convnext::Dropout;
#[cfg(feature = "cuda")]
use super::cuda::{call, int};
use super::elements;
#[cfg(feature = "cuda")]
use crate::kernels::cuda::{Numbers, Work, launch};

/// `clamp(x + bias)` for `x` `[..., C]` and `bias` `[C]`.
///
/// # Errors
/// When shapes do not fit.
pub fn bias_clamp(x: &Tensor, bias: &Tensor, [lowest, highest]: [f32; 2]) -> Result<Tensor> {
    check_bias(x, bias)?;
    #[cfg(feature = "cuda")]
    if x.device().is_cuda() {
        let numbers = Numbers { integers: &[int(bias.elem_count())?], floats: &[lowest, highest] };
        return call("bias_clamp", &[x, bias], x.shape(), Work::Elements(x.elem_count()), numbers);
    }
    x.broadcast_add(bias)?.clamp(lowest, highest)
}

/// `gelu(x + bias)` for `x` `[..., C]` and `bias` `[C]`, in its tanh form (Hendrycks & Gimpel 2016). `train` keeps the gradient.
///
/// # Errors
/// When shapes do not fit.
#[cfg_attr(not(feature = "cuda"), expect(unused_variables, reason = "there is one way only"))]
pub fn bias_gelu(x: &Tensor, bias: &Tensor, train: bool) -> Result<Tensor> {
    check_bias(x, bias)?;
    #[cfg(feature = "cuda")]
    if x.device().is_cuda() && !train {
        let numbers = Numbers { integers: &[int(bias.elem_count())?], floats: &[] };
        return call("bias_gelu", &[x, bias], x.shape(), Work::Elements(x.elem_count()), numbers);
    }
    x.broadcast_add(bias)?.gelu()
}

fn check_bias(x: &Tensor, bias: &Tensor) -> Result<()> {
    if bias.rank() != 1 || x.dims().last() != bias.dims().last() {
        candle_core::bail!("bias {:?} for values {:?}; expected one per channel", bias.dims(), x.dims());
    }
    Ok(())
}

/// `x + gate * (update + bias)`: `x` and `update` `[B, T, C]`, `bias` `[C]`, the gate the last third of `modulation` `[B, 3 C]`.
/// `train` keeps the gradient.
///
/// # Errors
/// When shapes do not fit.
#[cfg_attr(not(feature = "cuda"), expect(unused_variables, reason = "there is one way only"))]
pub fn gated_add(x: &Tensor, update: &Tensor, bias: &Tensor, modulation: &Tensor, train: bool) -> Result<Tensor> {
    let (batch, tokens, channels) = x.dims3()?;
    if update.dims() != x.dims() || bias.dims() != [channels] || modulation.dims() != [batch, 3 * channels] {
        let dims = [update, bias, modulation].map(Tensor::dims);
        candle_core::bail!("gated_add: x {:?}, update, bias, modulation {dims:?}", x.dims());
    }
    #[cfg(feature = "cuda")]
    if x.device().is_cuda() && !train {
        let numbers = Numbers { integers: &[int(tokens)?, int(channels)?], floats: &[] };
        let work = Work::Elements(x.elem_count());
        return call("gated_add", &[x, update, bias, modulation], x.shape(), work, numbers);
    }
    let gate = modulation.narrow(1, 2 * channels, channels)?.unsqueeze(1)?;
    x + update.broadcast_add(bias)?.broadcast_mul(&gate)?
}

/// Zeroes some elements of `x` `[B, ...]` and enlarges the others; the same seed gives the same mask on every device.
///
/// # Errors
/// When the device fails.
pub fn dropout(x: &Tensor, dropout: Dropout) -> Result<Tensor> {
    if x.device().is_cpu() && x.dtype() != DType::F32 {
        let mask = Tensor::ones(x.shape(), DType::F32, x.device())?.apply_op1_no_bwd(&Dropped(dropout))?;
        return x * mask.to_dtype(x.dtype())?;
    }
    x.contiguous()?.apply_op1(Dropped(dropout))
}

struct Dropped(Dropout);

impl CustomOp1 for Dropped {
    fn name(&self) -> &'static str {
        "dropout"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let mut out = elements(storage, layout, self.name())?.to_vec();
        let size = sample_size(layout.shape());
        out.chunks_exact_mut(size).enumerate().for_each(|(sample, values)| self.0.apply(values, sample, 0));
        Ok((CpuStorage::F32(out), layout.shape().clone()))
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(&self, storage: &CudaStorage, layout: &Layout) -> Result<(CudaStorage, Shape)> {
        let n = layout.shape().elem_count();
        let (seed, limit, keep) = self.0.numbers();
        let integers = [int(sample_size(layout.shape()))?, seed.cast_signed(), limit.cast_signed()];
        let numbers = Numbers { integers: &integers, floats: &[keep] };
        let out = launch(self.name(), &[(storage, layout)], n, Work::Elements(n), numbers)?;
        Ok((out, layout.shape().clone()))
    }

    fn bwd(&self, _: &Tensor, _: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        grad.contiguous()?.apply_op1_no_bwd(&Dropped(self.0)).map(Some)
    }
}

/// Elements of one sample, at least 1.
fn sample_size(shape: &Shape) -> usize {
    (shape.elem_count() / shape.dims().first().copied().unwrap_or(1).max(1)).max(1)
}

#[cfg(test)]
mod tests {
    use candle_core::{Device, Var};

    use super::*;

    #[test]
    fn dropout_drops_its_share_and_its_gradient_the_same() {
        let x = Var::ones((4, 5000), DType::F32, &Device::Cpu).unwrap();
        let y = dropout(&x, Dropout { probability: 0.25, seed: 7 }).unwrap();
        let values = y.to_vec2::<f32>().unwrap();
        for row in &values {
            let zeros = row.iter().filter(|v| **v == 0.0).count();
            assert!((1100..1400).contains(&zeros), "{zeros} of 5000 dropped");
            assert!(row.iter().all(|v| *v == 0.0 || (*v - 4.0 / 3.0).abs() < 1e-6));
        }
        assert_ne!(values[0], values[1], "each sample has its own mask");
        let grad = y.sum_all().unwrap().backward().unwrap();
        assert_eq!(grad.get(&x).unwrap().to_vec2::<f32>().unwrap(), values);
    }
}
