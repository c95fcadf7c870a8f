//! What `diad` logs on the worker's thread and when it is asked for a worker, forwarded to GStreamer's debug log. Nothing global
//! is touched.

use std::fmt::Write as _;
use std::sync::LazyLock;

use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::subscriber::Interest;
use tracing::{Event, Level, Metadata, Subscriber};

pub(crate) static CAT: LazyLock<gst::DebugCategory> =
    LazyLock::new(|| gst::DebugCategory::new("diad", gst::DebugColorFlags::empty(), Some("diad models and workers")));

/// Forwards events to the category `diad`; spans say nothing.
struct Forward;

/// From now on, events of this thread go to GStreamer's debug log.
pub(crate) fn forward_this_thread() {
    // For as long as the thread lives: nobody takes it back.
    std::mem::forget(tracing::subscriber::set_default(Forward));
}

/// Events of `f` go to GStreamer's debug log.
pub(crate) fn forwarding<T>(f: impl FnOnce() -> T) -> T {
    tracing::subscriber::with_default(Forward, f)
}

fn level(level: Level) -> gst::DebugLevel {
    match level {
        Level::ERROR => gst::DebugLevel::Error,
        Level::WARN => gst::DebugLevel::Warning,
        Level::INFO => gst::DebugLevel::Info,
        Level::DEBUG => gst::DebugLevel::Debug,
        Level::TRACE => gst::DebugLevel::Log,
    }
}

/// Fields as `key=value`, the message first.
#[derive(Default)]
struct Words {
    message: String,
    fields: String,
}

impl Visit for Words {
    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        let written = match field.name() {
            "message" => write!(self.message, "{value:?}"),
            name => write!(self.fields, " {name}={value:?}"),
        };
        let _ = written; // writing to a string does not fail
    }
}

impl Subscriber for Forward {
    fn register_callsite(&self, _: &'static Metadata<'static>) -> Interest {
        Interest::sometimes() // the threshold may change at any time
    }

    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        level(*metadata.level()) <= CAT.threshold()
    }

    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}

    fn record_follows_from(&self, _: &Id, _: &Id) {}

    fn event(&self, event: &Event<'_>) {
        let mut words = Words::default();
        event.record(&mut words);
        let level = level(*event.metadata().level());
        gst::log_with_level!(CAT, level, "{}{}", words.message, words.fields);
    }

    fn enter(&self, _: &Id) {}

    fn exit(&self, _: &Id) {}
}
