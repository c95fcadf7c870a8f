//! One JSON object per line, written as results come.

use std::fs::File;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::error::{Error, Result};

/// A file of JSON lines. Each is written whole, at once: whatever ends the program, what was done before is in the file.
pub(super) struct JsonLines {
    path: PathBuf,
    file: File,
    /// Length of all whole lines.
    bytes: u64,
}

impl JsonLines {
    /// An empty file in the place of what there was; a pipe or a device is written to.
    ///
    /// # Errors
    /// When it cannot be written.
    pub(super) fn create(path: &Path) -> Result<Self> {
        let file = File::create(path).map_err(|error| Error::io(path, "cannot write", error))?;
        Ok(Self { path: path.to_path_buf(), file, bytes: 0 })
    }

    /// Adds a line.
    ///
    /// # Errors
    /// When it cannot be written, on a full disk for instance; then nothing of it is in the file.
    pub(super) fn write(&mut self, value: &impl Serialize) -> Result<()> {
        let mut line = serde_json::to_vec(value).map_err(|error| Error::Internal(format!("JSON line: {error}")))?;
        line.push(b'\n');
        self.file.write_all(&line).map_err(|error| {
            let _ = self.file.set_len(self.bytes); // a pipe or a device has no length
            Error::io(&self.path, "cannot write the next line (the lines before it are kept)", error)
        })?;
        self.bytes += line.len() as u64;
        Ok(())
    }
}
