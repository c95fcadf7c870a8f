//! What the fuzz targets try: functions that take any bytes and panic where a promise is broken.
//!
//! libFuzzer calls them (`targets/`, by `run.sh`), and so does the ordinary test program (`main.rs`) with the corpus, with
//! damaged copies of it and with the inputs that once broke something.
//!
//! The promises are the same everywhere: no panic, no more memory and time than the target states, and an error that is
//! one plain sentence (see [`told`]).

use std::alloc::System;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use cap::Cap;
use diad::error::Error;
use tempfile::TempDir;

pub mod card;
pub mod config;
pub mod image;
#[cfg(fuzzing)]
pub mod import;
pub mod model;
#[cfg(fuzzing)]
pub mod video;

#[global_allocator]
static MEMORY: Cap<System> = Cap::new(System, usize::MAX);

/// CPU time that one input may take. Instrumented code, with an address sanitizer, is some three times slower.
const TIME: Duration = Duration::from_secs(if cfg!(fuzzing) { 3 } else { 1 });

/// One MiB.
const MIB: usize = 1 << 20;

/// Runs `f`, which may take that many bytes more than are taken now, and [`TIME`]. A request for more memory fails, which
/// ends the process (unless the code under test can do with less).
fn within(memory: usize, f: impl FnOnce()) {
    // The tests of one program may run at once.
    static ONE: Mutex<()> = Mutex::new(());
    let _one = ONE.lock().unwrap_or_else(PoisonError::into_inner);
    MEMORY.set_limit(MEMORY.allocated() + memory).expect("no other thread takes that much");
    let start = cpu_time();
    f();
    let took = cpu_time().saturating_sub(start);
    MEMORY.set_limit(usize::MAX).expect("the largest limit there is");
    assert!(took <= TIME, "took {took:?} of CPU time, expected at most {TIME:?}");
}

/// CPU time of this thread, where the system tells it (Linux: proc_pid_schedstat(5)); 0 elsewhere.
fn cpu_time() -> Duration {
    let told = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    Duration::from_nanos(told.split(' ').next().and_then(|nanos| nanos.parse().ok()).unwrap_or(0))
}

/// The message of an error that names its `origin`, has a reason of bounded length, and cannot drive a terminal.
fn told(error: &Error, origin: &str) -> String {
    let message = error.to_string();
    let reason = message.strip_prefix(origin).and_then(|rest| rest.strip_prefix(": "));
    let reason = reason.unwrap_or_else(|| panic!("{origin:?} is not what this starts with: {message:?}"));
    let several = matches!(error, Error::Config { .. }); // one mistake per line
    let plain = |c: char| !c.is_control() || (several && c == '\n');
    assert!(!reason.is_empty() && reason.len() < 100_000 && reason.chars().all(plain), "{message:?}");
    // Not by its words: what is quoted from the input may have them.
    assert!(!matches!(error, Error::Internal(_)), "{message:?}");
    reason.to_owned()
}

/// A folder for one file, in memory where the system has a place for that.
struct Scratch {
    folder: TempDir,
}

impl Scratch {
    fn new() -> Self {
        let memory = Path::new("/dev/shm");
        let folder = if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() };
        Self { folder: folder.expect("a folder") }
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join("m.diad")
    }

    /// The path of a file with these bytes.
    fn file(&self, bytes: &[u8]) -> PathBuf {
        std::fs::write(self.path(), bytes).expect("written");
        self.path()
    }
}
