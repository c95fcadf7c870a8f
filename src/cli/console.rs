//! What is written where: results to stdout; progress, notes and warnings to stderr.

use std::fmt::Display;
use std::io::{self, IsTerminal as _, Write};

use indicatif::{MultiProgress, ProgressDrawTarget};

use crate::error::{Error, Result};

/// The name of stdout in errors.
const STDOUT: &str = "standard output";

/// Writes everything that users read. Bars on stderr are hidden while a line is written.
#[derive(Clone)]
pub(super) struct Console {
    quiet: bool,
    bars: Option<MultiProgress>,
}

impl Console {
    /// `quiet`: no progress and no notes; warnings and results stay.
    pub(super) fn new(quiet: bool) -> Self {
        let terminal = io::stderr().is_terminal() && !quiet;
        let bars = terminal.then(|| MultiProgress::with_draw_target(ProgressDrawTarget::stderr()));
        Self { quiet, bars }
    }

    /// A line (or several) of result on stdout.
    ///
    /// # Errors
    /// When stdout cannot be written; see [`is_broken_pipe`].
    pub(super) fn print(&self, text: impl Display) -> Result<()> {
        self.aside(|| {
            let mut out = io::stdout().lock();
            writeln!(out, "{text}").and_then(|()| out.flush())
        })
        .map_err(|source| Error::io(STDOUT, "cannot write", source))
    }

    /// A note on stderr, which `--quiet` leaves out.
    pub(super) fn note(&self, text: impl Display) {
        if !self.quiet {
            self.say(text);
        }
    }

    /// A warning on stderr.
    pub(super) fn warn(&self, text: impl Display) {
        self.say(format_args!("diad: warning: {text}"));
    }

    /// The progress bars, if stderr is a terminal and not quiet.
    pub(super) fn bars(&self) -> Option<&MultiProgress> {
        self.bars.as_ref()
    }

    fn say(&self, text: impl Display) {
        // There is nobody left to tell when stderr is gone.
        let _ = self.aside(|| writeln!(io::stderr().lock(), "{text}"));
    }

    fn aside<T>(&self, write: impl FnOnce() -> T) -> T {
        match &self.bars {
            Some(bars) => bars.suspend(write),
            None => write(),
        }
    }
}

/// For log lines, which go to stderr.
impl Write for Console {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.aside(|| io::stderr().lock().write(bytes))
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stderr().lock().flush()
    }
}

/// The last line of a command that failed.
pub(super) fn error(text: impl Display) {
    let _ = writeln!(io::stderr().lock(), "diad: error: {text}");
}

/// Whether the reader of stdout has gone, as `| head` does: that is no failure.
pub(super) fn is_broken_pipe(error: &Error) -> bool {
    matches!(error, Error::Io { path, source, .. }
        if path.as_os_str() == STDOUT && source.kind() == io::ErrorKind::BrokenPipe)
}
