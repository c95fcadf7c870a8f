//! Candle operations that the method needs and candle lacks: each has a CPU kernel with its own gradient, and the same
//! mathematics as a chain of smaller operations (`composite`) for devices without a kernel and as the reference in tests.
//!
//! Everything is channels last. On the CPU each sample of a batch is computed by itself, in one fixed order.

#[cfg(feature = "cuda")]
use candle_core::CudaStorage;
use std::sync::{Arc, OnceLock};

use candle_core::{CpuStorage, CustomOp2, CustomOp3, DType, Device, Layout, Result, Shape, Tensor};

use crate::kernels::buffer::Buffer;
use crate::kernels::gemm::{Factors, Packed};

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

/// What a layer is computed for.
#[derive(Clone, Copy, Debug)]
pub enum Mode<'a> {
    /// A gradient: what it needs is kept. The parameters may change from call to call.
    Training,
    /// An answer.
    Inference(&'a Packs),
}

impl Mode<'_> {
    /// Whether what the gradient needs is kept.
    pub fn trains(self) -> bool {
        matches!(self, Self::Training)
    }
}

/// The matrices of one layer as its kernel reads them, made at the first call and kept: they belong to parameters that stay.
#[derive(Debug, Default)]
pub struct Packs {
    factors: Factors,
    kept: OnceLock<Arc<[Packed]>>,
}

impl Packs {
    /// None yet, of matrices that will be multiplied in these numbers.
    pub fn new(factors: Factors) -> Self {
        Self { factors, kept: OnceLock::new() }
    }

    /// Those of `parameters`, from `pack` where they are not there yet, or where the parameters can change.
    fn of<const N: usize>(
        mode: Mode<'_>,
        parameters: &Tensor,
        pack: impl FnOnce(Factors, &[f32]) -> [Packed; N],
    ) -> Result<Arc<[Packed]>> {
        let make =
            |factors| with_elements([parameters], "packing", |[parameters]| Ok(Arc::from(pack(factors, parameters))));
        match mode {
            Mode::Training => make(Factors::F32),
            Mode::Inference(Self { factors, .. }) if parameters.is_variable() => make(*factors),
            Mode::Inference(Self { factors, kept }) => {
                if let Some(packs) = kept.get() {
                    return Ok(packs.clone());
                }
                let packs = make(*factors)?;
                Ok(kept.get_or_init(|| packs).clone())
            }
        }
    }
}

/// Tokens of a sample that one task takes: enough for the matrix kernel, few enough for several cores to share a sample.
const STRIP_TOKENS: usize = 64;

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

/// The elements of tensors that live on the CPU, copied only where they are not contiguous.
fn with_elements<const N: usize, T>(
    tensors: [&Tensor; N],
    op: &'static str,
    f: impl FnOnce([&[f32]; N]) -> Result<T>,
) -> Result<T> {
    let tensors = tensors.into_iter().map(Tensor::contiguous).collect::<Result<Vec<_>>>()?;
    let storages: Vec<_> = tensors.iter().map(Tensor::storage_and_layout).collect();
    let mut slices = [&[][..]; N];
    for (slice, (storage, layout)) in slices.iter_mut().zip(&storages) {
        let candle_core::Storage::Cpu(storage) = &**storage else {
            candle_core::bail!("{op}: a CPU kernel met a tensor of another device");
        };
        *slice = elements(storage, layout, op)?;
    }
    f(slices)
}

/// An operation on N tensors: its kernels on slices of the CPU, and what else there is on a GPU. Wrapped in [`Op`], candle
/// takes it.
trait Kernel<const N: usize>: Send + Sync {
    const NAME: &'static str;

    /// The result and its shape.
    fn forward(&self, inputs: [&[f32]; N], shapes: [&Shape; N]) -> Result<(Vec<f32>, Shape)>;

    /// The gradient of each input from that of the result.
    fn backward(&self, inputs: [&[f32]; N], shapes: [&Shape; N], grad: &[f32]) -> Result<[Vec<f32>; N]>;

    #[cfg(feature = "cuda")]
    fn forward_cuda(&self, _: [(&CudaStorage, &Layout); N]) -> Result<(CudaStorage, Shape)> {
        candle_core::bail!("{}: no kernel for a GPU", Self::NAME)
    }

    /// [`Kernel::backward`] on another device.
    fn backward_elsewhere(&self, _: [&Tensor; N], _: &Tensor) -> Result<[Tensor; N]> {
        candle_core::bail!("{}: no gradient on this device", Self::NAME)
    }
}

struct Op<K>(K);

impl<K> Op<K> {
    fn forward<const N: usize>(&self, inputs: [(&CpuStorage, &Layout); N]) -> Result<(CpuStorage, Shape)>
    where
        K: Kernel<N>,
    {
        let mut slices = [&[][..]; N];
        for (slice, (storage, layout)) in slices.iter_mut().zip(inputs) {
            *slice = elements(storage, layout, K::NAME)?;
        }
        let (out, shape) = self.0.forward(slices, inputs.map(|(_, layout)| layout.shape()))?;
        Ok((CpuStorage::F32(out), shape))
    }

    fn backward<const N: usize>(&self, inputs: [&Tensor; N], grad: &Tensor) -> Result<[Option<Tensor>; N]>
    where
        K: Kernel<N>,
    {
        if !grad.device().is_cpu() {
            return Ok(self.0.backward_elsewhere(inputs, grad)?.map(Some));
        }
        let gradients = with_elements(inputs, K::NAME, |slices| {
            with_elements([grad], K::NAME, |[grad]| self.0.backward(slices, inputs.map(Tensor::shape), grad))
        })?;
        let mut tensors = [const { None }; N];
        for ((tensor, gradient), input) in tensors.iter_mut().zip(gradients).zip(inputs) {
            *tensor = Some(Tensor::from_vec(gradient, input.shape(), &Device::Cpu)?);
        }
        Ok(tensors)
    }
}

impl<K: Kernel<2>> CustomOp2 for Op<K> {
    fn name(&self) -> &'static str {
        K::NAME
    }

    fn cpu_fwd(&self, s1: &CpuStorage, l1: &Layout, s2: &CpuStorage, l2: &Layout) -> Result<(CpuStorage, Shape)> {
        self.forward([(s1, l1), (s2, l2)])
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(&self, s1: &CudaStorage, l1: &Layout, s2: &CudaStorage, l2: &Layout) -> Result<(CudaStorage, Shape)> {
        self.0.forward_cuda([(s1, l1), (s2, l2)])
    }

    fn bwd(&self, a: &Tensor, b: &Tensor, _: &Tensor, grad: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        Ok(self.backward([a, b], grad)?.into())
    }
}

impl<K: Kernel<3>> CustomOp3 for Op<K> {
    fn name(&self) -> &'static str {
        K::NAME
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
        self.forward([(s1, l1), (s2, l2), (s3, l3)])
    }

    fn bwd(
        &self,
        a: &Tensor,
        b: &Tensor,
        c: &Tensor,
        _: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        Ok(self.backward([a, b, c], grad)?.into())
    }
}

/// Gives the arguments of a layer to its kernel; `train` keeps what the gradient needs.
fn run<K: Kernel<3> + 'static>(kernel: K, [x, parameters, modulation]: [&Tensor; 3], train: bool) -> Result<Tensor> {
    let (x, modulation) = (x.contiguous()?, modulation.contiguous()?);
    if train {
        x.apply_op3(parameters, &modulation, Op(kernel))
    } else {
        x.apply_op3_no_bwd(parameters, &modulation, &Op(kernel))
    }
}

/// Whether the arguments of a layer fit its sizes: `x` `[B, T, C]`, `parameters` `[n]`, `modulation` `[B, 3 C]` (shift, scale,
/// gate).
fn check_layer<S: std::fmt::Debug>(
    shape: &S,
    [x, parameters, modulation]: [&Tensor; 3],
    [tokens, channels, count]: [usize; 3],
) -> Result<()> {
    let batch = x.dim(0)?;
    let fits = x.dims() == [batch, tokens, channels]
        && parameters.dims() == [count]
        && modulation.dims() == [batch, 3 * channels];
    if !fits {
        let dims = [x, parameters, modulation].map(Tensor::dims);
        candle_core::bail!("x, parameters and modulation {dims:?} do not fit {shape:?}");
    }
    Ok(())
}

/// The kept memory, or local memory where nothing is kept.
fn borrow<'a>(kept: &'a mut [f32], local: &'a mut Buffer, len: usize) -> &'a mut [f32] {
    if kept.is_empty() { local.of(len) } else { kept }
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

/// The parts of a flat vector of parameters, one after the other.
fn split<'a, const N: usize>(mut flat: &'a [f32], shapes: &[Shape; N]) -> [&'a [f32]; N] {
    shapes.each_ref().map(|shape| flat.split_off(..shape.elem_count()).unwrap_or_default())
}

/// [`split`], to write into.
fn split_mut<'a, const N: usize>(mut flat: &'a mut [f32], shapes: &[Shape; N]) -> [&'a mut [f32]; N] {
    shapes.each_ref().map(|shape| flat.split_off_mut(..shape.elem_count()).unwrap_or_default())
}

/// [`split`] of a tensor, each part in its shape.
fn split_tensor<const N: usize>(flat: &Tensor, shapes: &[Shape; N]) -> Result<[Tensor; N]> {
    let mut at = 0;
    let mut parts = shapes.each_ref().map(|_| flat.clone());
    for (part, shape) in parts.iter_mut().zip(shapes) {
        *part = flat.narrow(0, at, shape.elem_count())?.reshape(shape)?;
        at += shape.elem_count();
    }
    Ok(parts)
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
