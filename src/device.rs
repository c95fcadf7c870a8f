//! Devices: which one a model runs on ([`DeviceSpec`]), the open device ([`Device`]), and the numbers it computes in.

use std::error::Error as _;
use std::fmt;
use std::path::Path;
use std::str::FromStr;
use std::sync::OnceLock;

use candle_core::{DType, Tensor};
use rayon::prelude::*;

use crate::error::{Error, Result, catch_panic};
use crate::kernels::bf16::Bf16;
use crate::kernels::gemm::Factors;
pub use crate::precision::{Arithmetic, Precision};

/// Items that a GPU gets at once, at most: more gain nothing, and an operation of candle counts its elements in 32 bits.
const MOST_AT_ONCE: usize = 64;

/// Which device a model runs on, and the numbers that its networks compute in: what can be said before the device is opened.
///
/// Read from `auto`, `cpu`, `cuda` or `cuda:N`, with single precision; [`DeviceSpec::find`] looks whether the device is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct DeviceSpec {
    kind: Kind,
    precision: Precision,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Kind {
    /// The first GPU, or the CPU where there is none.
    Auto,
    Cpu,
    Cuda(usize),
}

/// An open device, and the numbers that networks compute in there. Tensors that meet must be of one device.
#[derive(Clone, Debug)]
pub struct Device {
    candle: candle_core::Device,
    dtype: DType,
    /// Of the CPU's kernels.
    factors: Factors,
    #[cfg(feature = "cuda")]
    staging: std::sync::Arc<crate::kernels::cuda::Staging>,
}

impl fmt::Display for DeviceSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.kind {
            Kind::Auto => f.write_str("auto"),
            Kind::Cpu => f.write_str("cpu"),
            Kind::Cuda(index) => write!(f, "cuda:{index}"),
        }?;
        match self.precision {
            Precision::F32 | Precision::Auto => Ok(()),
            other => write!(f, " {other}"),
        }
    }
}

impl FromStr for DeviceSpec {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        let known = match name {
            "auto" => Some(Kind::Auto),
            "cpu" => Some(Kind::Cpu),
            "cuda" => Some(Kind::Cuda(0)),
            _ => name.strip_prefix("cuda:").and_then(|index| index.parse().ok()).map(Kind::Cuda),
        };
        let kind =
            known.ok_or_else(|| Error::Usage(format!("device = {name:?}: expected auto, cpu, cuda or cuda:N")))?;
        Ok(Self { kind, precision: Precision::F32 })
    }
}

/// Names of the GPUs that this program can use, or why there are none.
fn gpus() -> Result<Vec<String>, String> {
    #[cfg(feature = "cuda")]
    return crate::kernels::cuda::gpus().map_err(|error| format!("the driver says {error}"));
    #[cfg(not(feature = "cuda"))]
    Err("this diad was built without CUDA (cargo feature cuda)".into())
}

impl DeviceSpec {
    /// All cores of this machine, in single precision.
    pub const CPU: Self = Self { kind: Kind::Cpu, precision: Precision::F32 };
    /// The first GPU, or the CPU where there is none.
    pub const AUTO: Self = Self { kind: Kind::Auto, precision: Precision::F32 };

    /// This device with networks in `precision`, if it is there; never `auto`, but what that stands for. `auto` logs which
    /// device it took, and why that is not a GPU: as a warning where the program could have used one.
    ///
    /// # Errors
    /// When a GPU is asked for and not there (never another device in its place), or a CPU in numbers that it does not multiply.
    pub fn find(self, precision: Precision) -> Result<Self> {
        let kind = match self.kind {
            Kind::Cpu => Kind::Cpu,
            Kind::Auto => first_device(),
            Kind::Cuda(index) => {
                let refused = |words: String| Error::Usage(format!("device = cuda:{index}: {words}"));
                let names = gpus().map_err(|reason| refused(format!("{reason}; expected auto or cpu")))?;
                let n = names.len();
                let other = || refused(format!("the driver knows {n} GPUs; expected auto, cpu or a number below {n}"));
                tracing::info!("device = cuda:{index}: {}", names.get(index).ok_or_else(other)?);
                self.kind
            }
        };
        if kind == Kind::Cpu {
            factors(precision)?;
        }
        Ok(Self { kind, precision })
    }

    /// This device, found before, for a `model` that has thresholds for what `measured` says yes to: never `auto`, but the precision
    /// that stands for. Says in the log which that is where it is not the fastest.
    ///
    /// # Errors
    /// When the model has no thresholds for the precision that is asked for.
    pub fn for_model(self, model: &Path, measured: impl Fn(Arithmetic) -> bool) -> Result<Self> {
        let Self { kind, precision } = self;
        let of = |precision| Self { kind, precision };
        if precision != Precision::Auto {
            return if measured(self.arithmetic()) { Ok(self) } else { Err(self.arithmetic().unmeasured(model)) };
        }
        if kind == Kind::Cpu && Bf16::find().is_some() {
            if measured(Arithmetic::CpuBf16) {
                return Ok(of(Precision::Bf16));
            }
            tracing::info!(
                "precision = auto: f32, as {} has no thresholds for bf16 on a CPU, which would be faster; diad calibrate measures them",
                model.display()
            );
        }
        Ok(of(Precision::F32))
    }

    /// How networks compute here; with the precision `auto`, in single precision.
    pub fn arithmetic(self) -> Arithmetic {
        let gpu = matches!(self.kind, Kind::Cuda(_));
        match self.precision {
            Precision::Auto | Precision::F32 => Arithmetic::F32,
            Precision::F16 => Arithmetic::GpuF16,
            Precision::Bf16 if gpu => Arithmetic::GpuBf16,
            Precision::Bf16 => Arithmetic::CpuBf16,
        }
    }

    /// Whether it is the CPU.
    pub fn is_cpu(self) -> bool {
        self.kind == Kind::Cpu
    }

    /// The numbers that networks compute in.
    pub fn precision(self) -> Precision {
        self.precision
    }

    /// A batch size that suits the device: on the CPU one frame per core, as each frame is computed by itself; on a GPU what
    /// fills it.
    pub fn batch_size(self) -> usize {
        match self.kind {
            Kind::Cuda(_) => 16,
            Kind::Auto | Kind::Cpu => std::thread::available_parallelism().map_or(1, |cores| cores.get().min(16)),
        }
    }

    /// Opens the device, on the thread that will use it.
    ///
    /// # Errors
    /// As [`DeviceSpec::find`] for a device that was not found yet; what the driver says; [`Error::Threads`].
    pub fn open(self) -> Result<Device> {
        start_threads()?;
        let candle = match self.kind {
            Kind::Auto => return self.find(self.precision)?.open(),
            Kind::Cpu => candle_core::Device::Cpu,
            Kind::Cuda(index) => candle_core::Device::new_cuda(index)
                .map_err(|error| Error::Usage(format!("device = cuda:{index}: {error}")))?,
        };
        #[cfg(feature = "cuda")]
        if let Kind::Cuda(index) = self.kind
            && let Err(error) = crate::kernels::cuda::tune(&candle, index)
        {
            tracing::warn!(%error, "batches will allocate: the memory pool cannot be told to keep what is freed");
        }
        Device::new(candle, DType::F32).in_precision(self.precision)
    }
}

/// What the CPU's kernels multiply.
fn factors(precision: Precision) -> Result<Factors> {
    match precision {
        Precision::Auto | Precision::F32 => Ok(Factors::F32),
        Precision::Bf16 => Bf16::find().map(Factors::Bf16).ok_or_else(|| {
            Error::Usage(
                "precision = bf16: this CPU does not multiply bfloat16 (AVX-512 BF16); expected f32 or auto".into(),
            )
        }),
        Precision::F16 => Err(Error::Usage(
            "precision = f16: a CPU does not compute in it; expected auto, f32 or bf16, or a GPU as the device".into(),
        )),
    }
}

/// The first GPU, or the CPU; logs which.
fn first_device() -> Kind {
    let first = gpus().and_then(|names| names.into_iter().next().ok_or("the driver knows no GPU".into()));
    let reason = match first {
        Ok(name) => {
            tracing::info!("device = auto: cuda:0, {name}");
            return Kind::Cuda(0);
        }
        Err(reason) => reason,
    };
    if cfg!(feature = "cuda") {
        tracing::warn!("device = auto: the CPU, as {reason}");
    } else {
        tracing::info!("device = auto: the CPU, as {reason}");
    }
    Kind::Cpu
}

/// Starts the threads that all computation shares: those of rayon and of candle. Left to themselves they start when they are
/// first used, and panic where the system gives none.
fn start_threads() -> Result<()> {
    static STARTED: OnceLock<Result<(), String>> = OnceLock::new();
    let started = STARTED.get_or_init(|| {
        // Without a source it says that there are threads already.
        let pool = rayon::ThreadPoolBuilder::new().build_global();
        if let Err(error) = &pool
            && let Some(reason) = error.source()
        {
            return Err(reason.to_string());
        }
        let pool = catch_panic(|| candle_core::utils::barrier_pool().n_workers());
        pool.map(drop).map_err(|_| "the tensor library gets none".to_owned())
    });
    started.clone().map_err(|reason| Error::threads("computes", reason))
}

impl Device {
    /// A device of candle whose networks compute in `dtype`.
    pub fn new(candle: candle_core::Device, dtype: DType) -> Self {
        Self {
            candle,
            dtype,
            factors: Factors::F32,
            #[cfg(feature = "cuda")]
            staging: std::sync::Arc::default(),
        }
    }

    /// The CPU in single precision.
    pub fn cpu() -> Self {
        Self::new(candle_core::Device::Cpu, DType::F32)
    }

    /// The same device, whose networks compute in another precision (`auto`: in single precision).
    ///
    /// # Errors
    /// When it is a CPU that does not multiply such numbers.
    pub fn in_precision(&self, precision: Precision) -> Result<Self> {
        let mut device = self.clone();
        (device.dtype, device.factors) = if self.candle.is_cpu() {
            (DType::F32, factors(precision)?)
        } else {
            let dtype = match precision {
                Precision::Auto | Precision::F32 => DType::F32,
                Precision::F16 => DType::F16,
                Precision::Bf16 => DType::BF16,
            };
            (dtype, Factors::F32)
        };
        Ok(device)
    }

    /// The same device in the fastest precision that it computes in: what `auto` stands for with a model that has thresholds for it.
    pub fn fastest(&self) -> Self {
        let fast = self.in_precision(Precision::Bf16).ok().filter(|_| self.candle.is_cpu());
        fast.unwrap_or_else(|| self.clone())
    }

    /// How networks compute here.
    pub fn arithmetic(&self) -> Arithmetic {
        match (self.dtype, self.factors) {
            (DType::BF16, _) => Arithmetic::GpuBf16,
            (DType::F16, _) => Arithmetic::GpuF16,
            (_, Factors::Bf16(_)) => Arithmetic::CpuBf16,
            (_, Factors::F32) => Arithmetic::F32,
        }
    }

    /// What the CPU's kernels multiply for an answer.
    pub fn factors(&self) -> Factors {
        self.factors
    }

    /// The device in candle's terms: that of all tensors.
    pub fn candle(&self) -> &candle_core::Device {
        &self.candle
    }

    /// The numbers that networks compute in.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// Whether this is the CPU with tensors of single precision, for which the project has kernels of its own; everything else computes by
    /// tensor operations.
    pub fn has_cpu_kernels(&self) -> bool {
        self.candle.is_cpu() && self.dtype == DType::F32
    }

    /// A network's weights on this device, in its numbers.
    ///
    /// # Errors
    /// When the device fails.
    pub fn weight(&self, tensor: &Tensor) -> candle_core::Result<Tensor> {
        tensor.to_device(&self.candle)?.to_dtype(self.dtype)
    }

    /// Several images' bytes as one tensor on the device. On a GPU the copy may still be under way when this returns.
    ///
    /// # Errors
    /// When the lengths do not fit the shape, or the device fails.
    pub fn upload(&self, parts: &[&[u8]], shape: (usize, usize, usize, usize)) -> Result<Tensor> {
        #[cfg(feature = "cuda")]
        if self.candle.is_cuda() {
            return Ok(self.staging.upload(&self.candle, parts, shape)?);
        }
        Ok(Tensor::from_vec(parts.concat(), shape, &self.candle)?)
    }

    /// Computes something of several steps that each use all cores: these are called together once, where each step would wake
    /// and await them by itself.
    pub fn gathered<R: Send>(&self, f: impl FnOnce() -> R + Send) -> R {
        if self.has_cpu_kernels() { rayon::scope(|_| f()) } else { f() }
    }

    /// Computes one answer per item, in order. `f` gets as many items as suit the device: with CPU kernels one at a time, on
    /// all cores; elsewhere many at once on the calling thread, because a GPU does not order the work of several threads.
    pub fn spread<T: Sync, R: Send>(&self, items: &[T], f: impl Fn(&[T]) -> Vec<R> + Send + Sync) -> Vec<R> {
        if !self.has_cpu_kernels() {
            return items.chunks(MOST_AT_ONCE).flat_map(f).collect();
        }
        self.gathered(|| items.par_chunks(1).flat_map_iter(&f).collect())
    }

    /// The values of each item's tensor, computed as [`Device::spread`] does; `f` gives a tensor `[n, ...]` for n items.
    pub fn values<T: Sync>(
        &self,
        items: &[T],
        f: impl Fn(&[T]) -> Result<Tensor> + Send + Sync,
    ) -> Vec<Result<Vec<f32>>> {
        self.spread(items, |some| match f(some).and_then(|tensor| Ok(tensor.flatten_all()?.to_vec1::<f32>()?)) {
            Ok(all) => all.chunks_exact(all.len() / some.len()).map(|one| Ok(one.to_vec())).collect(),
            Err(error) => error.for_all(some.len()),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_and_written() {
        for name in ["auto", "cpu", "cuda:3"] {
            assert_eq!(name.parse::<DeviceSpec>().unwrap().to_string(), name);
        }
        let first = "cuda".parse::<DeviceSpec>().unwrap();
        assert_eq!(first.to_string(), "cuda:0");
        assert_eq!(DeviceSpec { precision: Precision::F16, ..first }.to_string(), "cuda:0 f16");
        for name in ["", "gpu", "cuda:", "cuda:x", "cuda:-1", "CPU"] {
            let message = name.parse::<DeviceSpec>().unwrap_err().to_string();
            assert!(message.contains(&format!("{name:?}")) && message.contains("cuda:N"), "{message}");
        }
        for name in ["auto", "f32", "f16", "bf16"] {
            assert_eq!(name.parse::<Precision>().unwrap().to_string(), name);
        }
        assert!("f64".parse::<Precision>().unwrap_err().to_string().contains("bf16"));
    }

    #[test]
    fn a_device_that_is_not_there_is_an_error_and_auto_is_not() {
        let message = "cuda:999".parse::<DeviceSpec>().unwrap().find(Precision::F32).unwrap_err().to_string();
        assert!(message.contains("cuda:999") && message.contains("expected auto"), "{message}");
        let found = DeviceSpec::AUTO.find(Precision::F32).unwrap();
        assert_ne!(found.kind, Kind::Auto);
        let message = DeviceSpec::CPU.find(Precision::F16).unwrap_err().to_string();
        assert!(message.contains("f16") && message.contains("f32"), "{message}");
    }

    #[test]
    fn work_comes_back_in_order() {
        let items: Vec<usize> = (0..100).collect();
        assert_eq!(
            Device::cpu().spread(&items, |some| some.iter().map(|i| i * 2).collect()),
            items.iter().map(|i| i * 2).collect::<Vec<_>>()
        );
    }
}
