//! What elements that keep files share: how they tell the bus of their disk, and what stands beside each file.

use diad::archive::Name;
use diad::error::{Error, Result};
use gst::glib;
use gst::prelude::*;
use serde::Serialize;

use crate::result::DiadResult;

/// How often what is too old goes.
pub(crate) const TIDY: std::time::Duration = std::time::Duration::from_secs(30);

/// How it is with the disk, as the bus is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    Ok,
    /// Something is left out because the disk is slow.
    Behind,
    Full,
    Failed,
}

impl State {
    fn name(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Behind => "behind",
            Self::Full => "full",
            Self::Failed => "failed",
        }
    }
}

/// Tells the bus how it is with the disk, when that is another than before.
pub(crate) struct Teller {
    element: glib::WeakRef<gst::Element>,
    what: &'static str,
    state: State,
}

impl Teller {
    /// For an element that keeps `what`.
    pub(crate) fn new(element: &impl IsA<gst::Element>, what: &'static str) -> Self {
        Self { element: element.upcast_ref().downgrade(), what, state: State::Ok }
    }

    /// The message is `structure`, with state and reason.
    pub(crate) fn tell(&mut self, state: State, reason: &str, mut structure: gst::Structure) {
        if std::mem::replace(&mut self.state, state) == state {
            return;
        }
        let Some(element) = self.element.upgrade() else { return };
        structure.set("state", state.name());
        structure.set("reason", reason);
        if state != State::Ok {
            let what = self.what;
            gst::element_warning!(element, gst::ResourceError::NoSpaceLeft, ("{what}: {}: {}", state.name(), reason));
        }
        let _ = element.post_message(gst::message::Element::builder(structure).src(&element).build());
    }
}

/// What stands beside a file.
#[derive(Serialize)]
struct Sidecar<'a, M> {
    schema: u32,
    kind: &'static str,
    id: String,
    line: &'a str,
    seq: u64,
    utc: &'a str,
    why: &'static str,
    result: &'a DiadResult,
    #[serde(flatten)]
    more: M,
    model: Model<'a>,
    tool: &'static str,
}

#[derive(Serialize)]
struct Model<'a> {
    digest: Option<&'a str>,
}

/// Version of [`Sidecar`].
const SCHEMA: u32 = 1;

/// What a file is of.
pub(crate) struct Subject {
    pub(crate) utc: String,
    pub(crate) sequence: u64,
    pub(crate) why: &'static str,
    pub(crate) line: String,
    pub(crate) result: DiadResult,
}

impl Subject {
    /// The text of the file beside a `kind`, with `more` that only its kind has.
    pub(crate) fn sidecar(&self, kind: &'static str, name: &Name, more: impl Serialize) -> Result<Vec<u8>> {
        let sidecar = Sidecar {
            schema: SCHEMA,
            kind,
            id: format!("{}-{}", self.line, name.stem()),
            line: &self.line,
            seq: self.sequence,
            utc: &self.utc,
            why: self.why,
            result: &self.result,
            more,
            model: Model { digest: self.result.worst().map(|found| found.model.as_str()) },
            tool: concat!("diad ", env!("CARGO_PKG_VERSION")),
        };
        serde_json::to_vec(&sidecar).map_err(|error| Error::Internal(format!("{kind}: {error}")))
    }
}
