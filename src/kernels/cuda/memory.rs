//! The driver's GPUs, and memory there that stays: what the driver's pool has given back is kept for the next batch, and
//! frames pass through page-locked buffers that are used again.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use candle_core::cuda_backend::WrapErr;
use candle_core::cuda_backend::cudarc::driver::{DriverError, PinnedHostSlice, result, sys};
use candle_core::op::BackpropOp;
use candle_core::{CudaStorage, Device, Result, Shape, Storage, Tensor};

/// Buffers of a size: one is filled while the other is on its way.
const BUFFERS: usize = 2;

/// Names of the GPUs that the driver knows.
///
/// # Errors
/// In the driver's words.
pub fn gpus() -> std::result::Result<Vec<String>, DriverError> {
    result::init()?;
    (0..result::device::get_count()?).map(|i| result::device::get_name(result::device::get(i)?)).collect()
}

/// Sets a GPU up for batch after batch. Its pool keeps what is freed, where the default is to give it back to the driver
/// whenever a result is waited for: then no batch after the first allocates. And no events are recorded around every tensor:
/// they order streams, and all work of a model goes through one.
///
/// # Errors
/// In the driver's words, when the pool cannot be told.
#[allow(unsafe_code, reason = "calls of the driver with handles that it has just given; one stream, as said above")]
pub fn tune(device: &Device, index: usize) -> Result<()> {
    // SAFETY: every tensor of a device is made and read on the stream of the thread that opened it.
    unsafe { device.as_cuda_device()?.disable_event_tracking() };
    let index = i32::try_from(index).map_err(|_| candle_core::Error::Msg(format!("no GPU {index}")))?;
    let mut threshold = u64::MAX;
    let attribute = sys::CUmemPool_attribute::CU_MEMPOOL_ATTR_RELEASE_THRESHOLD;
    let device = result::device::get(index).w()?;
    // SAFETY: the device and its pool are those of the driver; the value is a 64-bit number, as this attribute wants it.
    unsafe {
        let pool = result::device::get_default_mem_pool(device).w()?;
        result::mem_pool::set_attribute(pool, attribute, (&raw mut threshold).cast()).w()
    }
}

/// Page-locked buffers by their size, and which of each comes next.
#[derive(Debug, Default)]
pub struct Staging {
    rings: Mutex<BTreeMap<usize, Ring>>,
}

/// Buffers of one size, in turn.
#[derive(Debug, Default)]
struct Ring {
    buffers: Vec<PinnedHostSlice<u8>>,
    next: usize,
}

impl Staging {
    /// Bytes that lie in several places, as one tensor on the device. The copy is under way when this returns; a buffer is
    /// filled again only when its last copy has ended.
    ///
    /// # Errors
    /// When the device is not one of CUDA, the lengths do not fit the shape, or in the driver's words.
    #[allow(unsafe_code, reason = "memory without a value, which is filled at once")]
    pub fn upload(&self, device: &Device, parts: &[&[u8]], shape: impl Into<Shape>) -> Result<Tensor> {
        let (device, shape) = (device.as_cuda_device()?, shape.into());
        let len: usize = parts.iter().map(|part| part.len()).sum();
        if len != shape.elem_count() || len == 0 {
            candle_core::bail!("upload: {len} bytes for the shape {shape:?}");
        }
        let mut rings = self.rings.lock().unwrap_or_else(PoisonError::into_inner);
        let Ring { buffers, next } = rings.entry(len).or_default();
        let at = *next % BUFFERS;
        if buffers.len() <= at {
            // SAFETY: all of it is written below, before it is read.
            buffers.push(unsafe { device.cuda_stream().context().alloc_pinned::<u8>(len).w()? });
        }
        *next += 1;
        let mut rest = buffers[at].as_mut_slice().w()?; // waits for the copy that used it last
        for part in parts {
            let (head, tail) = rest.split_at_mut(part.len());
            head.copy_from_slice(part);
            rest = tail;
        }
        // SAFETY: the copy writes all of it, and what reads it comes behind the copy in the stream.
        let mut there = unsafe { device.alloc::<u8>(len)? };
        device.memcpy_htod(&buffers[at], &mut there)?;
        let storage = Storage::Cuda(CudaStorage::wrap_cuda_slice(there, device.clone()));
        Ok(Tensor::from_storage(storage, shape, BackpropOp::none(), false))
    }
}
