//! Panics: a user sees one message that says what to do, and no backtrace.

use std::any::Any;
use std::panic::{self, PanicHookInfo};
use std::sync::atomic::{AtomicBool, Ordering};

use super::console;
use crate::error::{THREAD_LIMITS, panic_is_caught, panic_words};

/// Installs the panic hook: from here on the first panic is reported as an internal error (several threads may meet the same
/// one). A panic that is caught and becomes an error of its own is not reported.
pub(super) fn install() {
    panic::set_hook(Box::new(|info| {
        if let Some(text) = told(info) {
            console::error(text);
        }
    }));
}

/// The message about a panic, if it is to be reported.
fn told(info: &PanicHookInfo<'_>) -> Option<String> {
    static TOLD: AtomicBool = AtomicBool::new(false);
    if panic_is_caught() || TOLD.swap(true, Ordering::Relaxed) {
        return None;
    }
    let place = info.location().map(|at| format!("{}:{}", at.file(), at.line()));
    Some(message(info.payload(), place.as_deref().unwrap_or("an unknown place")))
}

fn message(payload: &dyn Any, place: &str) -> String {
    let what = panic_words(payload).unwrap_or("no message");
    // The panic of another crate that could not start a thread: std, rayon and candle all print the system's error.
    if what.contains("WouldBlock") {
        return format!("{what}; {THREAD_LIMITS}");
    }
    format!(
        "internal error: {what} (at {place}). This is a mistake in diad {}, not in what you did; please report it with \
         this line, the command and, if you can, its input",
        env!("CARGO_PKG_VERSION")
    )
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;
    use std::thread;

    use super::*;
    use crate::error::catch_panic;

    #[test]
    fn a_panic_is_told_in_one_line_with_its_place() {
        for payload in [Box::new("boom") as Box<dyn Any>, Box::new("boom".to_owned())] {
            let text = message(payload.as_ref(), "src/x.rs:7");
            assert!(text.starts_with("internal error: boom (at src/x.rs:7)"), "{text}");
            assert!(!text.contains('\n'));
        }
        assert!(message(&7, "y").contains("no message"));
        // std, rayon and candle put it like this.
        let text = message(&"failed to spawn: Os { code: 11, kind: WouldBlock, message: \"...\" }", "y");
        assert!(text.contains("ulimit -u") && !text.contains("internal error"), "{text}");
    }

    #[test]
    fn a_panic_that_says_something_of_the_input_is_not_told_and_a_later_mistake_is() {
        let said: &'static Mutex<Vec<Option<String>>> = Box::leak(Box::default());
        let before = panic::take_hook();
        let this = thread::current().id(); // other tests of this process may panic as well
        panic::set_hook(Box::new(move |info| {
            if thread::current().id() == this {
                said.lock().unwrap().push(told(info));
            }
        }));
        assert!(catch_panic(|| catch_panic(|| panic!("decoder")).is_err()).unwrap());
        assert!(panic::catch_unwind(|| panic!("mistake")).is_err());
        panic::set_hook(before);
        let said = said.lock().unwrap();
        assert_eq!(said[0], None);
        assert!(said[1].as_ref().unwrap().starts_with("internal error: mistake (at src/cli/crash.rs:"), "{said:?}");
    }
}
