//! Ctrl-C and SIGTERM: the first requests an orderly stop of the command, the second ends the program at once.

use super::console::Console;
use crate::error::{Error, Result};
use crate::train::Stop;

/// Exit code of an interrupted program.
const INTERRUPTED: i32 = 130;

/// Installs the handler: from here on a signal requests the returned `Stop`.
pub(super) fn install(console: &Console) -> Result<Stop> {
    let stop = Stop::default();
    let (asked, console) = (stop.clone(), console.clone());
    ctrlc::set_handler(move || {
        if asked.requested() {
            std::process::exit(INTERRUPTED);
        }
        asked.request();
        console.note("stopping after the work in hand; once more to stop at once");
    })
    .map_err(|error| Error::threads("listens to signals", error))?;
    Ok(stop)
}
