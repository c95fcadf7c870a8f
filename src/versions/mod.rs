//! Versions of a model: a folder of numbered model files, one of which is in use, with a journal of who changed what and why.
//!
//! ```text
//! models/bottle/
//!   000006-91be02.diad   number, and the first digits of the model's digest
//!   000007-3f2a9c.diad
//!   current              a symbolic link to the one in use
//!   journal.jsonl        a line of JSON for each change, with the SHA-256 of the line before it
//! ```
//!
//! Whoever is given the folder takes the file that `current` leads to ([`resolve`]). It is replaced by a rename, so there is always
//! one, the old or the new. Numbers are never used twice.
//!
//! Every change has three steps: what it needs is on the disk under another name; the journal tells of it; one rename, or one
//! removal, does it. So nothing takes effect that the journal does not tell, whenever the program is killed. What the journal tells
//! and the kill has prevented is completed by the next change, with one exception: which model is in use changes only when somebody
//! asks for it, so there the journal is told what was found instead.

mod disk;
mod journal;
mod store;
#[cfg(test)]
mod tests;

use std::fs;
use std::path::{Path, PathBuf};

pub use self::disk::{Disk, System};
pub use self::journal::{By, Entry, Journal, What};
pub use self::store::{Added, Checked, Store, Used, Version};
use crate::error::{Error, Result};

/// The link to the version in use.
const CURRENT: &str = "current";
/// The journal, which is also what two changes at once are kept apart by.
const JOURNAL: &str = "journal.jsonl";

/// The model file that a path stands for: of a folder the version in use, else the path itself.
///
/// # Errors
/// [`Error::Usage`] for a folder in which no version is in use.
pub fn resolve(path: &Path) -> Result<PathBuf> {
    if !path.is_dir() {
        return Ok(path.to_owned());
    }
    let shown = path.display();
    let Ok(target) = fs::read_link(path.join(CURRENT)) else {
        return Err(Error::Usage(format!(
            "{shown}: is a folder, expected a model file (.diad), or a folder of versions with one in use: diad models use {shown} N"
        )));
    };
    let file = path.join(&target);
    if !file.is_file() {
        let target = target.display();
        return Err(Error::Usage(format!(
            "{shown}: its version in use, {target}, is not there; expected one that is: diad models use {shown} N"
        )));
    }
    Ok(file)
}
