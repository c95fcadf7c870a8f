//! Where a model runs, and in what numbers it computes.

use std::fmt;
use std::str::FromStr;

use candle_core::{DType, Tensor};
use rayon::prelude::*;

use crate::error::{Error, Result};

/// Where a model is asked to run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Device {
    /// The first GPU, or the CPU where there is none.
    #[default]
    Auto,
    /// All cores of this machine.
    Cpu,
    /// A GPU by its number.
    Cuda(usize),
}

/// What a network computes in. Features are normalised and residuals measured in single precision always.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Precision {
    /// Single precision.
    #[default]
    F32,
    /// Half precision (IEEE 754 binary16), sums in single precision.
    F16,
    /// bfloat16, sums in single precision.
    Bf16,
}

/// Items that a GPU gets at once, at most: more gain nothing, and an operation of candle counts its elements in 32 bits.
const MOST_AT_ONCE: usize = 64;

/// A device that was found, and what networks compute in there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Target {
    /// `Cpu` or `Cuda`, never `Auto`.
    pub device: Device,
    /// Numbers.
    pub precision: Precision,
}

/// An open device. Tensors that meet must be of one place.
#[derive(Clone, Debug)]
pub struct Place {
    device: candle_core::Device,
    dtype: DType,
    #[cfg(feature = "cuda")]
    staging: std::sync::Arc<crate::kernels::cuda::Staging>,
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Cpu => f.write_str("cpu"),
            Self::Cuda(index) => write!(f, "cuda:{index}"),
        }
    }
}

impl FromStr for Device {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        let known = match name {
            "auto" => Some(Self::Auto),
            "cpu" => Some(Self::Cpu),
            "cuda" => Some(Self::Cuda(0)),
            _ => name.strip_prefix("cuda:").and_then(|index| index.parse().ok()).map(Self::Cuda),
        };
        known.ok_or_else(|| Error::Usage(format!("device = {name:?}: expected auto, cpu, cuda or cuda:N")))
    }
}

impl fmt::Display for Precision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::Bf16 => "bf16",
        })
    }
}

impl FromStr for Precision {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        match name {
            "f32" => Ok(Self::F32),
            "f16" => Ok(Self::F16),
            "bf16" => Ok(Self::Bf16),
            _ => Err(Error::Usage(format!("precision = {name:?}: expected f32, f16 or bf16"))),
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.precision {
            Precision::F32 => self.device.fmt(f),
            precision => write!(f, "{} {precision}", self.device),
        }
    }
}

/// Names of the GPUs that this program can use, or why there are none.
fn gpus() -> Result<Vec<String>, String> {
    #[cfg(feature = "cuda")]
    return crate::kernels::cuda::gpus().map_err(|error| format!("the driver says {error}"));
    #[cfg(not(feature = "cuda"))]
    Err("this diad was built without CUDA (cargo feature cuda)".into())
}

impl Device {
    /// The device that is meant, if it is there. `Auto` takes the first GPU and says in the log what it took, and why it was
    /// not a GPU; as a warning where the program could have used one.
    ///
    /// # Errors
    /// When a GPU is asked for and not there; never another device in its place.
    pub fn find(self, precision: Precision) -> Result<Target> {
        let device = match self {
            Self::Cpu => Self::Cpu,
            Self::Auto => Self::first(),
            Self::Cuda(index) => {
                let refused = |words: String| Error::Usage(format!("device = {self}: {words}"));
                let names = gpus().map_err(|reason| refused(format!("{reason}; expected auto or cpu")))?;
                let n = names.len();
                let other = || refused(format!("the driver knows {n} GPUs; expected auto, cpu or a number below {n}"));
                tracing::info!("device = {self}: {}", names.get(index).ok_or_else(other)?);
                self
            }
        };
        if device == Self::Cpu && precision != Precision::F32 {
            return Err(Error::Usage(format!(
                "precision = {precision}: a CPU computes in f32 only; expected f32, or a GPU as the device"
            )));
        }
        Ok(Target { device, precision })
    }

    /// The first GPU, or the CPU; says which.
    fn first() -> Self {
        let reason = match gpus() {
            Ok(names) => match names.first() {
                Some(name) => {
                    tracing::info!("device = auto: cuda:0, {name}");
                    return Self::Cuda(0);
                }
                None => "the driver knows no GPU".to_owned(),
            },
            Err(reason) => reason,
        };
        if cfg!(feature = "cuda") {
            tracing::warn!("device = auto: the CPU, as {reason}");
        } else {
            tracing::info!("device = auto: the CPU, as {reason}");
        }
        Self::Cpu
    }
}

impl Target {
    /// All cores, in single precision.
    pub const CPU: Self = Self { device: Device::Cpu, precision: Precision::F32 };

    /// Frames that one batch does well with when nobody asks for a number: on the CPU one per core, as each frame is
    /// computed by itself; on a GPU what fills it.
    pub fn batch_size(self) -> usize {
        match self.device {
            Device::Cuda(_) => 16,
            _ => std::thread::available_parallelism().map_or(1, |cores| cores.get().min(16)),
        }
    }

    /// Opens the device, on the thread that will use it.
    ///
    /// # Errors
    /// In the driver's words.
    pub fn open(self) -> Result<Place> {
        let dtype = match self.precision {
            Precision::F32 => DType::F32,
            Precision::F16 => DType::F16,
            Precision::Bf16 => DType::BF16,
        };
        let device = match self.device {
            Device::Auto | Device::Cpu => candle_core::Device::Cpu,
            Device::Cuda(index) => candle_core::Device::new_cuda(index)
                .map_err(|error| Error::Usage(format!("device = {}: {error}", self.device)))?,
        };
        #[cfg(feature = "cuda")]
        if let Device::Cuda(index) = self.device
            && let Err(error) = crate::kernels::cuda::tune(&device, index)
        {
            tracing::warn!(%error, "batches will allocate: the memory pool cannot be told to keep what is freed");
        }
        Ok(Place::new(device, dtype))
    }
}

impl Place {
    /// Networks compute in `dtype`.
    pub fn new(device: candle_core::Device, dtype: DType) -> Self {
        Self {
            device,
            dtype,
            #[cfg(feature = "cuda")]
            staging: std::sync::Arc::default(),
        }
    }

    /// The CPU in single precision.
    pub fn cpu() -> Self {
        Self::new(candle_core::Device::Cpu, DType::F32)
    }

    /// The device of all tensors.
    pub fn device(&self) -> &candle_core::Device {
        &self.device
    }

    /// The numbers of the networks.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// Whether the CPU kernels compute here; elsewhere it is tensor operations.
    pub fn has_cpu_kernels(&self) -> bool {
        self.device.is_cpu() && self.dtype == DType::F32
    }

    /// A network's weights, here.
    ///
    /// # Errors
    /// When the device fails.
    pub fn weight(&self, tensor: &Tensor) -> candle_core::Result<Tensor> {
        tensor.to_device(&self.device)?.to_dtype(self.dtype)
    }

    /// Bytes that lie in several places, as one tensor. On a GPU the copy is under way when this returns.
    ///
    /// # Errors
    /// When the lengths do not fit the shape, or the device fails.
    pub fn bytes(&self, parts: &[&[u8]], shape: (usize, usize, usize, usize)) -> Result<Tensor> {
        #[cfg(feature = "cuda")]
        if self.device.is_cuda() {
            return Ok(self.staging.upload(&self.device, parts, shape)?);
        }
        Ok(Tensor::from_vec(parts.concat(), shape, &self.device)?)
    }

    /// Hands out work as the device likes it: item by item on all cores where CPU kernels compute, each by itself; elsewhere
    /// many at once, on the thread that asks: the streams of a GPU do not wait for each other. `f` gives one answer per item.
    pub fn spread<T: Sync, R: Send>(&self, items: &[T], f: impl Fn(&[T]) -> Vec<R> + Send + Sync) -> Vec<R> {
        if !self.has_cpu_kernels() {
            return items.chunks(MOST_AT_ONCE).flat_map(f).collect();
        }
        items.par_chunks(1).flat_map_iter(&f).collect()
    }

    /// The numbers of each item, as [`Place::spread`] hands out the work; `f` gives a tensor `[n, ...]` for n items.
    pub fn numbers<T: Sync>(
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
        for (name, device) in [("auto", Device::Auto), ("cpu", Device::Cpu), ("cuda:3", Device::Cuda(3))] {
            assert_eq!(name.parse::<Device>().unwrap(), device);
            assert_eq!(device.to_string(), name);
        }
        assert_eq!("cuda".parse::<Device>().unwrap(), Device::Cuda(0));
        for name in ["", "gpu", "cuda:", "cuda:x", "cuda:-1", "CPU"] {
            let message = name.parse::<Device>().unwrap_err().to_string();
            assert!(message.contains(&format!("{name:?}")) && message.contains("cuda:N"), "{message}");
        }
        for name in ["f32", "f16", "bf16"] {
            assert_eq!(name.parse::<Precision>().unwrap().to_string(), name);
        }
        assert!("f64".parse::<Precision>().unwrap_err().to_string().contains("bf16"));
    }

    #[test]
    fn a_device_that_is_not_there_is_an_error_and_auto_is_not() {
        let message = Device::Cuda(999).find(Precision::F32).unwrap_err().to_string();
        assert!(message.contains("cuda:999") && message.contains("expected auto"), "{message}");
        assert!(Device::Auto.find(Precision::F32).is_ok());
        let message = Device::Cpu.find(Precision::F16).unwrap_err().to_string();
        assert!(message.contains("f16") && message.contains("f32"), "{message}");
    }

    #[test]
    fn work_comes_back_in_order() {
        let items: Vec<usize> = (0..100).collect();
        assert_eq!(
            Place::cpu().spread(&items, |some| some.iter().map(|i| i * 2).collect()),
            items.iter().map(|i| i * 2).collect::<Vec<_>>()
        );
    }
}
