//! What can be seen of all lines, for whoever tells others of them.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use super::line::Seen;
use super::out::Outlets;
use super::tally::lock;

/// What can be seen of all lines.
#[derive(Default)]
pub(crate) struct Board {
    lines: Mutex<Vec<Seen>>,
    /// Whether the file was right when it was last read.
    file_is_right: AtomicBool,
    /// Where results go.
    pub(crate) outlets: Arc<Outlets>,
}

impl Board {
    /// These are the lines from now on.
    pub(crate) fn show(&self, lines: Vec<Seen>) {
        *lock(&self.lines) = lines;
    }

    pub(crate) fn file_is(&self, right: bool) {
        self.file_is_right.store(right, Ordering::Relaxed);
    }

    pub(crate) fn file_is_right(&self) -> bool {
        self.file_is_right.load(Ordering::Relaxed)
    }

    pub(crate) fn lines(&self) -> Vec<Seen> {
        lock(&self.lines).clone()
    }
}
