//! Candle operations that the method needs and candle lacks: each has a CPU kernel with its own gradient, and the same
//! mathematics in plain candle ops (`composite`) for devices without a kernel and as the reference in tests.
//!
//! Everything is channels last. On the CPU each sample of a batch is computed by itself, in one fixed order.

use candle_core::{CpuStorage, DType, Device, Layout, Result, Tensor};

mod attention;
mod convnext;
#[cfg(feature = "cuda")]
mod cuda;
mod depthwise;
mod linear;
mod pointwise;

pub use attention::{AttentionShape, attention, attention_composite};
pub use convnext::{ConvNextShape, Dropout, convnext, convnext_composite};
pub use depthwise::{depthwise, depthwise_biased, depthwise_composite};
pub use linear::{linear, linear_composite, modulated_norm, modulated_norm_composite};
pub use pointwise::{bias_clamp, bias_gelu, dropout, gated_add};

/// Whether the CPU kernels compute this; elsewhere it is tensor operations.
fn has_cpu_kernel(x: &Tensor) -> bool {
    x.device().is_cpu() && x.dtype() == DType::F32
}

/// Whether this operation has a kernel for these numbers where they are.
fn has_kernel(x: &Tensor) -> bool {
    has_cpu_kernel(x) || x.device().is_cuda()
}

/// The elements of a contiguous f32 argument.
fn elements<'a>(storage: &'a CpuStorage, layout: &Layout, op: &'static str) -> Result<&'a [f32]> {
    let Some((start, end)) = layout.contiguous_offsets() else {
        candle_core::bail!("{op}: arguments must be contiguous");
    };
    Ok(&storage.as_slice::<f32>()?[start..end])
}

/// The elements of a tensor that lives on the CPU, copied only where it is not contiguous.
fn with_elements<T>(tensor: &Tensor, op: &'static str, f: impl FnOnce(&[f32]) -> Result<T>) -> Result<T> {
    let tensor = tensor.contiguous()?;
    let (storage, layout) = tensor.storage_and_layout();
    match &*storage {
        candle_core::Storage::Cpu(storage) => f(elements(storage, layout, op)?),
        _ => candle_core::bail!("{op}: a CPU kernel met a tensor of another device"),
    }
}

fn on_cpu(data: Vec<f32>, shape: impl Into<candle_core::Shape>) -> Result<Tensor> {
    Tensor::from_vec(data, shape.into(), &Device::Cpu)
}

/// Sums partial gradients in order: the result does not depend on which thread made which part.
fn sum_in_order(parts: Vec<Vec<f32>>) -> Vec<f32> {
    let mut parts = parts.into_iter();
    let mut total = parts.next().unwrap_or_default();
    for part in parts {
        for (t, p) in total.iter_mut().zip(part) {
            *t += p;
        }
    }
    total
}
