//! The launches of `kernels.cu`: from the storages of tensors to a new one, on the stream of their device.
//!
//! The kernels are compiled when they are first used, for the architecture of the device at hand, by NVRTC: candle links it
//! anyway, the text needs no header, and the tests compile the very same text, so a build script with nvcc would add a step
//! and prove less. It takes a fraction of a second per process and kind of number.

mod memory;

pub use memory::{Staging, gpus, tune};

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use candle_core::cuda_backend::cudarc::driver::{DeviceRepr, LaunchConfig, PushKernelArg};
use candle_core::cuda_backend::cudarc::nvrtc::{CompileOptions, compile_ptx_with_opts};
use candle_core::cuda_backend::{CudaDType, WrapErr};
use candle_core::{CudaStorage, DType, Layout, Result};

const SOURCE: &str = include_str!("kernels.cu");
/// Threads of a block: a multiple of a warp.
const BLOCK: u32 = 256;
const WARP: usize = 32;

/// What the threads of a kernel share out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Work {
    /// One thread for each element.
    Elements(usize),
    /// One warp for each row.
    Rows(usize),
}

/// The numbers behind the tensors of a launch.
#[derive(Clone, Copy, Debug, Default)]
pub struct Numbers<'a> {
    /// In the order of the kernel's arguments.
    pub integers: &'a [i32],
    /// In the order of the kernel's arguments.
    pub floats: &'a [f32],
}

/// PTX by architecture and kind of numbers, for as long as the process lives.
static COMPILED: Mutex<BTreeMap<(i32, &str), &str>> = Mutex::new(BTreeMap::new());

/// PTX of all kernels for an architecture (80 is compute capability 8.0) and a kind of numbers.
///
/// # Errors
/// When the compiler cannot be loaded or does not like the text.
pub fn ptx(architecture: i32, dtype: DType) -> Result<&'static str> {
    let numbers = match dtype {
        DType::F32 => "F32",
        DType::F16 => "F16",
        DType::BF16 => "BF16",
        other => candle_core::bail!("no kernels for {other:?}; expected f32, f16 or bf16"),
    };
    let mut compiled = COMPILED.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(ptx) = compiled.get(&(architecture, numbers)) {
        return Ok(ptx);
    }
    let options = CompileOptions {
        name: Some("kernels.cu".into()),
        options: vec![format!("--gpu-architecture=compute_{architecture}"), format!("-D{numbers}")],
        ..CompileOptions::default()
    };
    let ptx: &str = compile_ptx_with_opts(SOURCE, options).w()?.to_src().leak();
    compiled.insert((architecture, numbers), ptx);
    Ok(ptx)
}

/// Runs a kernel over contiguous tensors of one kind of numbers; `len` elements come out.
///
/// # Errors
/// When a tensor is not contiguous, is of other numbers than the first, or the driver says no.
pub fn launch(
    name: &'static str,
    inputs: &[(&CudaStorage, &Layout)],
    len: usize,
    work: Work,
    numbers: Numbers<'_>,
) -> Result<CudaStorage> {
    match inputs.first().map(|(storage, _)| candle_core::backend::BackendStorage::dtype(*storage)) {
        Some(DType::F32) => typed::<f32>(name, DType::F32, inputs, len, work, numbers),
        Some(DType::F16) => typed::<half::f16>(name, DType::F16, inputs, len, work, numbers),
        Some(DType::BF16) => typed::<half::bf16>(name, DType::BF16, inputs, len, work, numbers),
        other => candle_core::bail!("{name}: no kernel for {other:?}"),
    }
}

#[allow(unsafe_code, reason = "a launch cannot be checked by the compiler; tests/cuda_kernels.rs runs the same text")]
fn typed<T: CudaDType + DeviceRepr>(
    name: &'static str,
    dtype: DType,
    inputs: &[(&CudaStorage, &Layout)],
    len: usize,
    work: Work,
    numbers: Numbers<'_>,
) -> Result<CudaStorage> {
    let mut views = Vec::with_capacity(inputs.len());
    for (storage, layout) in inputs {
        let Some((start, end)) = layout.contiguous_offsets() else {
            candle_core::bail!("{name}: arguments must be contiguous");
        };
        views.push(storage.as_cuda_slice::<T>()?.slice(start..end));
    }
    let device = inputs[0].0.device.clone();
    let (major, minor) = device.cuda_stream().context().compute_capability().w()?;
    let ptx = ptx(10 * major + minor, dtype)?;
    let function = device.get_or_load_custom_func(name, &format!("diad {dtype:?}"), ptx)?;
    let (count, threads) = match work {
        Work::Elements(n) => (n, n),
        Work::Rows(n) => (n, n * WARP),
    };
    let count = count as i64;
    let blocks = u32::try_from(threads.div_ceil(BLOCK as usize)).unwrap_or(u32::MAX).clamp(1, 1 << 20);
    let config = LaunchConfig { grid_dim: (blocks, 1, 1), block_dim: (BLOCK, 1, 1), shared_mem_bytes: 0 };
    // SAFETY: every element is written by the kernel before anything reads it, in the order of the stream.
    let mut out = unsafe { device.alloc::<T>(len)? };
    let mut launch = function.builder();
    for view in &views {
        launch.arg(view);
    }
    launch.arg(&mut out).arg(&count);
    for integer in numbers.integers {
        launch.arg(integer);
    }
    for float in numbers.floats {
        launch.arg(float);
    }
    // SAFETY: number, order and types of the arguments are those of the kernel, sizes were checked by the operation; the
    // kernel's loops stay within them, as the tests prove with the same text.
    unsafe { launch.launch(config).w()? };
    Ok(CudaStorage::wrap_cuda_slice(out, device))
}
