//! What a store does to the disk, each a step that is done or not.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::Path;

use crate::bundle;
use crate::detector::expected_tensors;
use crate::error::Result;
use crate::files;

/// The steps that changes of a store are made of. They fail with what the system says.
pub trait Disk {
    /// The digest of a model that is whole and can be loaded.
    fn digest(&self, model: &Path) -> Result<String>;

    /// Copies a file; its bytes are on the disk then.
    fn copy(&self, from: &Path, to: &Path) -> io::Result<()>;

    /// Adds bytes to the end of a file; they are on the disk then.
    fn append(&self, file: &Path, bytes: &[u8]) -> io::Result<()>;

    /// Cuts a file off after so many bytes.
    fn shorten(&self, file: &Path, length: u64) -> io::Result<()>;

    /// Makes a symbolic link.
    fn link(&self, target: &Path, at: &Path) -> io::Result<()>;

    /// Renames a file, in place of what is there; the name is on the disk then.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;

    /// Removes a file.
    fn remove(&self, file: &Path) -> io::Result<()>;
}

/// The disk of the system.
#[derive(Clone, Copy, Debug, Default)]
pub struct System;

impl Disk for System {
    fn digest(&self, model: &Path) -> Result<String> {
        Ok(bundle::load(model, expected_tensors)?.card.digest())
    }

    fn copy(&self, from: &Path, to: &Path) -> io::Result<()> {
        // Not fs::copy, which takes the permissions along: a line may run as somebody else than who trained its model.
        let (mut from, mut to) = (File::open(from)?, File::create(to)?);
        io::copy(&mut from, &mut to)?;
        to.sync_all()
    }

    fn append(&self, file: &Path, bytes: &[u8]) -> io::Result<()> {
        let mut file = File::options().append(true).open(file)?;
        file.write_all(bytes)?;
        file.sync_all()
    }

    fn shorten(&self, file: &Path, length: u64) -> io::Result<()> {
        let file = File::options().write(true).open(file)?;
        file.set_len(length)?;
        file.sync_all()
    }

    fn link(&self, target: &Path, at: &Path) -> io::Result<()> {
        std::os::unix::fs::symlink(target, at)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)?;
        files::sync(files::folder(to))
    }

    fn remove(&self, file: &Path) -> io::Result<()> {
        fs::remove_file(file)?;
        files::sync(files::folder(file))
    }
}
