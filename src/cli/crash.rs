//! What a user sees of a mistake in the program itself: one message that says what to do, no backtrace.

use std::any::Any;
use std::panic;
use std::sync::atomic::{AtomicBool, Ordering};

use super::console;

/// From here on a panic is told as an internal error, once: several threads may meet the same one.
pub(super) fn install() {
    static TOLD: AtomicBool = AtomicBool::new(false);
    panic::set_hook(Box::new(|info| {
        if !TOLD.swap(true, Ordering::Relaxed) {
            let place = info.location().map(|at| format!("{}:{}", at.file(), at.line()));
            console::error(message(info.payload(), place.as_deref().unwrap_or("an unknown place")));
        }
    }));
}

fn message(payload: &dyn Any, place: &str) -> String {
    let what = payload
        .downcast_ref::<&str>()
        .map(|text| (*text).to_owned())
        .or_else(|| payload.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "no message".to_owned());
    format!(
        "internal error: {what} (at {place}). This is a mistake in diad {}, not in what you did; please report it with \
         this line, the command and, if you can, its input",
        env!("CARGO_PKG_VERSION")
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_is_told_in_one_line_with_its_place() {
        for payload in [Box::new("boom") as Box<dyn Any>, Box::new("boom".to_owned())] {
            let text = message(payload.as_ref(), "src/x.rs:7");
            assert!(text.starts_with("internal error: boom (at src/x.rs:7)"), "{text}");
            assert!(!text.contains('\n'));
        }
        assert!(message(&7, "y").contains("no message"));
    }
}
