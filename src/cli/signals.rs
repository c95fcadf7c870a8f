//! Ctrl-C and SIGTERM: the first asks the command to stop in order, the second ends the program at once.

use super::console::Console;
use crate::error::{Error, Result};
use crate::train::Stop;

/// Exit code of an interrupted program.
const INTERRUPTED: i32 = 130;

/// From here on signals ask the returned `Stop`.
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
    .map_err(|error| Error::Internal(format!("cannot listen to signals: {error}")))?;
    Ok(stop)
}
