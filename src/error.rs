//! The one error type. Every message names the thing that is wrong, its value and what was expected.

use std::any::Any;
use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

/// Why there may be no further thread.
pub(crate) const THREAD_LIMITS: &str = "a limit is reached: on threads and processes (`ulimit -u`, or pids.max of a \
    container), or on memory (`ulimit -v`)";

/// Characters of a reason that may quote a file.
const MAX_REASON: usize = 2000;

/// Result of everything in this crate that can fail.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What went wrong; the variants differ in what the user can do about it.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Wrong use: an argument, a path or a combination of options that cannot work.
    #[error("{0}")]
    Usage(String),
    /// Mistakes in a configuration, all of them at once, one per line.
    #[error("{origin}: {}", mistakes.join("\n"))]
    Config {
        /// File or flag the values came from.
        origin: String,
        /// One message per mistake: key, value, expectation.
        mistakes: Vec<String>,
    },
    /// A data folder that cannot be used as it is.
    #[error("{}: {reason}", path.display())]
    Data {
        /// Folder or file.
        path: PathBuf,
        /// What is wrong with it and what was expected.
        reason: String,
    },
    /// One image that cannot be read.
    #[error("{}: {reason}", path.display())]
    Image {
        /// The image file.
        path: PathBuf,
        /// What the decoder said.
        reason: String,
    },
    /// A model or weights file that is damaged, foreign or from another version.
    #[error("{}: {reason}", path.display())]
    Model {
        /// The file.
        path: PathBuf,
        /// Key, value and expectation.
        reason: String,
    },
    /// The operating system refused a read or a write.
    #[error("{}: {action}: {source}", path.display())]
    Io {
        /// File or folder.
        path: PathBuf,
        /// What was tried, for instance "cannot write".
        action: &'static str,
        /// The system's words.
        source: std::io::Error,
    },
    /// The operating system starts no further thread.
    #[error("cannot start a thread that {purpose}: {reason}; {}", THREAD_LIMITS)]
    Threads {
        /// What it was to do, for instance "reads images".
        purpose: &'static str,
        /// The system's words.
        reason: String,
    },
    /// A tensor operation failed (shape, dtype, device).
    #[error("tensor operation failed: {0}")]
    Tensor(candle_core::Error),
    /// The device has no room for a batch; with a smaller one it may work.
    #[error("the device is out of memory: {0}")]
    Memory(String),
    /// The device does not answer any more, in the driver's words.
    #[error("the device is lost: {0}")]
    Lost(String),
    /// What went wrong for a whole batch, told to each of its frames.
    #[error("{0}")]
    Batch(String),
    /// Ctrl-C or SIGTERM; work so far is in the checkpoint where there is one.
    #[error("interrupted{}", .checkpoint.as_ref().map(|p| format!("; go on with --resume (checkpoint: {})", p.display())).unwrap_or_default())]
    Interrupted {
        /// Where the work so far lies.
        checkpoint: Option<PathBuf>,
    },
    /// Something that cannot happen happened; the message says where.
    #[error("internal error: {0}")]
    Internal(String),
}

impl From<candle_core::Error> for Error {
    fn from(error: candle_core::Error) -> Self {
        #[cfg(feature = "cuda")]
        if let Some(known) = driver_failure(&error) {
            return known;
        }
        Self::Tensor(error)
    }
}

/// What the driver's error code means: no memory, or no device any more. A launch that went wrong spoils the context for
/// good: all that follows fails.
#[cfg(feature = "cuda")]
fn driver_failure(error: &candle_core::Error) -> Option<Error> {
    use candle_core::cuda_backend::CudaError;
    use candle_core::cuda_backend::cudarc::cublas::sys::cublasStatus_t;
    use candle_core::cuda_backend::cudarc::driver::sys::CUresult as Code;

    let inner = match error {
        candle_core::Error::WithBacktrace { inner, .. } | candle_core::Error::Context { inner, .. } => {
            let inner: &candle_core::Error = inner;
            return driver_failure(inner);
        }
        candle_core::Error::Cuda(inner) => inner.downcast_ref::<CudaError>()?,
        _ => return None,
    };
    let words = error.to_string();
    let code = match inner {
        CudaError::Cuda(driver) => driver.0,
        CudaError::Load { cuda, .. } => cuda.0,
        CudaError::Cublas(cublas) if cublas.0 == cublasStatus_t::CUBLAS_STATUS_ALLOC_FAILED => {
            return Some(Error::Memory(words));
        }
        CudaError::Cublas(cublas) if cublas.0 == cublasStatus_t::CUBLAS_STATUS_EXECUTION_FAILED => {
            return Some(Error::Lost(words));
        }
        _ => return None,
    };
    match code {
        Code::CUDA_ERROR_OUT_OF_MEMORY => Some(Error::Memory(words)),
        // The device is well: what it was asked, or the driver, does not fit.
        Code::CUDA_ERROR_INVALID_VALUE
        | Code::CUDA_ERROR_NOT_SUPPORTED
        | Code::CUDA_ERROR_NOT_FOUND
        | Code::CUDA_ERROR_INVALID_IMAGE
        | Code::CUDA_ERROR_INVALID_PTX
        | Code::CUDA_ERROR_NO_BINARY_FOR_GPU
        | Code::CUDA_ERROR_UNSUPPORTED_PTX_VERSION
        | Code::CUDA_ERROR_JIT_COMPILER_NOT_FOUND
        | Code::CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES => None,
        _ => Some(Error::Lost(words)),
    }
}

/// The beginning of `text` on one line, safe to print.
pub(crate) fn excerpt(text: &str, length: usize) -> String {
    let text = text.trim_end();
    let mut short: String = text.chars().take(length).map(|c| if c.is_control() { ' ' } else { c }).collect();
    if text.chars().nth(length).is_some() {
        short.push_str("...");
    }
    short
}

impl Error {
    /// This error `count` times: the answers of a batch that failed as a whole.
    pub fn for_all<T>(&self, count: usize) -> Vec<Result<T>> {
        let one = || match self {
            Self::Memory(words) => Self::Memory(words.clone()),
            Self::Lost(words) => Self::Lost(words.clone()),
            other => Self::Batch(other.to_string()),
        };
        (0..count).map(|_| Err(one())).collect()
    }

    /// `Error::Io` for `path`.
    pub fn io(path: impl AsRef<Path>, action: &'static str, source: std::io::Error) -> Self {
        Self::Io { path: path.as_ref().to_path_buf(), action, source }
    }

    /// `Error::Threads` for a thread that `purpose`.
    pub fn threads(purpose: &'static str, reason: impl std::fmt::Display) -> Self {
        Self::Threads { purpose, reason: reason.to_string() }
    }

    /// `Error::Data` for `path`.
    pub fn data(path: impl AsRef<Path>, reason: impl Into<String>) -> Self {
        Self::Data { path: path.as_ref().to_path_buf(), reason: reason.into() }
    }

    /// `Error::Image` for `path`. The reason may quote the file: see [`Error::model`].
    pub fn image(path: impl AsRef<Path>, reason: impl AsRef<str>) -> Self {
        Self::Image { path: path.as_ref().to_path_buf(), reason: excerpt(reason.as_ref(), MAX_REASON) }
    }

    /// `Error::Model` for `path`. The reason may quote the file: it becomes one line of bounded length that cannot drive a
    /// terminal.
    pub fn model(path: impl AsRef<Path>, reason: impl AsRef<str>) -> Self {
        Self::Model { path: path.as_ref().to_path_buf(), reason: excerpt(reason.as_ref(), MAX_REASON) }
    }

    /// Exit code of a command that ends with this error: 2 wrong use, configuration or data layout;
    /// 130 interrupted; 1 everything that failed while working.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Usage(_) | Self::Config { .. } | Self::Data { .. } => 2,
            Self::Interrupted { .. } => 130,
            _ => 1,
        }
    }
}

thread_local! {
    static PANIC_IS_CAUGHT: Cell<bool> = const { Cell::new(false) };
}

/// Runs code of others that panics where it should return an error, as decoders do on some damaged files: such a panic says
/// something about the input and is no mistake in this program. Meanwhile [`panic_is_caught`] is true on this thread.
///
/// # Errors
/// The panic's payload.
pub fn catch_panic<T>(f: impl FnOnce() -> T) -> std::thread::Result<T> {
    let before = PANIC_IS_CAUGHT.replace(true);
    let outcome = catch_unwind(AssertUnwindSafe(f));
    PANIC_IS_CAUGHT.set(before);
    outcome
}

/// What a panic said, where that is text.
pub(crate) fn panic_words(payload: &dyn Any) -> Option<&str> {
    payload.downcast_ref::<&str>().copied().or_else(|| payload.downcast_ref::<String>().map(String::as_str))
}

/// Whether a panic on this thread would end in [`catch_panic`]: a panic hook then has nothing to tell.
pub fn panic_is_caught() -> bool {
    PANIC_IS_CAUGHT.get()
}
