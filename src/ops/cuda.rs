//! Kernels on a GPU as operations without a gradient: any number of contiguous tensors in, one tensor out.

use candle_core::{CpuStorage, CudaStorage, CustomOp1, Layout, Result, Shape, Storage, Tensor};

use crate::kernels::cuda::{Numbers, Work, launch};

/// Runs the kernel `name`; what comes out has the shape `shape`.
///
/// # Errors
/// When a tensor is not on the device of the first, or the driver says no.
pub(super) fn call(
    name: &'static str,
    inputs: &[&Tensor],
    shape: impl Into<Shape>,
    work: Work,
    numbers: Numbers<'_>,
) -> Result<Tensor> {
    let inputs = inputs.iter().map(|tensor| tensor.contiguous()).collect::<Result<Vec<_>>>()?;
    let [first, others @ ..] = &inputs[..] else { candle_core::bail!("{name}: no tensors") };
    first.apply_op1_no_bwd(&Call { name, others, shape: shape.into(), work, numbers })
}

/// A size as a kernel takes it.
pub(super) fn int(size: usize) -> Result<i32> {
    i32::try_from(size).map_err(|_| candle_core::Error::Msg(format!("a size of {size} is more than a kernel takes")))
}

/// Candle's operations take one to three tensors; the others are kept here.
struct Call<'a> {
    name: &'static str,
    others: &'a [Tensor],
    shape: Shape,
    work: Work,
    numbers: Numbers<'a>,
}

impl CustomOp1 for Call<'_> {
    fn name(&self) -> &'static str {
        self.name
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        candle_core::bail!("{}: a kernel for a GPU met a tensor of the CPU", self.name)
    }

    fn cuda_fwd(&self, storage: &CudaStorage, layout: &Layout) -> Result<(CudaStorage, Shape)> {
        let others: Vec<_> = self.others.iter().map(Tensor::storage_and_layout).collect();
        let mut inputs = vec![(storage, layout)];
        for (storage, layout) in &others {
            let Storage::Cuda(storage) = &**storage else {
                candle_core::bail!("{}: a tensor of another device", self.name);
            };
            inputs.push((storage, layout));
        }
        let out = launch(self.name, &inputs, self.shape.elem_count(), self.work, self.numbers)?;
        Ok((out, self.shape.clone()))
    }
}
