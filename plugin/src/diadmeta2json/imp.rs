//! A frame in, its result as a line of JSON out, with the frame's timestamps.
//!
//! Lines leave by a task of their own: a file sink takes nothing between its first line and the start of playback, and an
//! encoder in another branch of a tee wants dozens of frames before then. Lines are small and may wait; frames are not.

use std::sync::LazyLock;

use gst::glib;
use gst::prelude::*;
use gst::subclass::prelude::*;
use serde::Serialize;

use crate::line::{Item, Line};
use crate::meta;
use crate::result::SCHEMA;

static CAT: LazyLock<gst::DebugCategory> = LazyLock::new(|| {
    gst::DebugCategory::new("diadmeta2json", gst::DebugColorFlags::empty(), Some("Results of diadfilter as JSON"))
});

/// The element.
pub struct DiadMeta2Json {
    sinkpad: gst::Pad,
    srcpad: gst::Pad,
    line: Line<gst::Buffer, gst::Event>,
}

/// Lines that wait, at most: minutes of video.
const MAX_WAITING: usize = 16_384;

/// What is said of a frame that no `diadfilter` has seen: such a frame is never good.
#[derive(Serialize)]
struct Unseen {
    schema: u32,
    verdict: &'static str,
    frame_verdict: &'static str,
    reason: &'static str,
    pts: Option<u64>,
}

impl DiadMeta2Json {
    fn chain(&self, buffer: &gst::Buffer) -> Result<gst::FlowSuccess, gst::FlowError> {
        let json = match meta::result_of(buffer) {
            Some(result) => serde_json::to_vec(&result),
            None => serde_json::to_vec(&Unseen {
                schema: SCHEMA,
                verdict: "uninspected",
                frame_verdict: "uninspected",
                reason: "no-result",
                pts: buffer.pts().map(gst::ClockTime::nseconds),
            }),
        };
        let mut line = json.map_err(|error| {
            gst::element_imp_error!(self, gst::StreamError::Encode, ("a result is no JSON: {error}"));
            gst::FlowError::Error
        })?;
        line.push(b'\n');
        let mut out = gst::Buffer::from_slice(line);
        {
            let out = out.make_mut();
            out.set_pts(buffer.pts());
            out.set_dts(buffer.dts());
            out.set_duration(buffer.duration());
        }
        self.line.room(MAX_WAITING)?;
        self.line.push(Item::Frame(out)).map(|()| gst::FlowSuccess::Ok).map_err(|(error, _)| error)
    }

    fn event(&self, pad: &gst::Pad, event: gst::Event) -> bool {
        match event.view() {
            gst::EventView::FlushStart(_) => {
                let passed = self.srcpad.push_event(event);
                self.line.stop();
                let _ = self.srcpad.pause_task();
                passed
            }
            gst::EventView::FlushStop(_) => {
                let passed = self.srcpad.push_event(event);
                self.line.start();
                self.start_task().is_ok() && passed
            }
            gst::EventView::Caps(_) => self.line.push(Item::Event(gst::event::Caps::new(&json_caps()))).is_ok(),
            _ if event.is_serialized() => self.line.push(Item::Event(event)).is_ok(),
            _ => gst::Pad::event_default(pad, Some(&*self.obj()), event),
        }
    }

    fn start_task(&self) -> Result<(), gst::LoggableError> {
        let element = self.obj().downgrade();
        let started = self.srcpad.start_task(move || {
            if let Some(element) = element.upgrade() {
                element.imp().leave_one();
            }
        });
        started.map_err(|error| gst::loggable_error!(CAT, "no task: {error}"))
    }

    /// One turn of the task.
    fn leave_one(&self) {
        let Some((item, _)) = self.line.take() else {
            let _ = self.srcpad.pause_task();
            return;
        };
        let (was_frame, flow) = match item {
            Item::Event(event) => {
                self.srcpad.push_event(event);
                (false, Ok(gst::FlowSuccess::Ok))
            }
            Item::Frame(line) => (true, self.srcpad.push(line)),
        };
        self.line.done(was_frame, flow);
        if flow.is_err() {
            let _ = self.srcpad.pause_task();
        }
    }

    fn activate(&self, mode: gst::PadMode, active: bool) -> Result<(), gst::LoggableError> {
        if mode != gst::PadMode::Push {
            return Err(gst::loggable_error!(CAT, "only push mode"));
        }
        if active {
            self.line.start();
            return self.start_task();
        }
        self.line.stop();
        self.srcpad.stop_task().map_err(|error| gst::loggable_error!(CAT, "the task does not stop: {error}"))
    }

    fn query(&self, pad: &gst::Pad, query: &mut gst::QueryRef) -> bool {
        match query.type_() {
            // What downstream allocates is for JSON: video upstream keeps its own buffers.
            gst::QueryType::Allocation => false,
            _ if query.is_serialized() => self.line.drain().is_ok() && self.srcpad.peer_query(query),
            _ => gst::Pad::query_default(pad, Some(&*self.obj()), query),
        }
    }
}

fn json_caps() -> gst::Caps {
    gst::Caps::builder("application/x-json").field("format", "diad").build()
}

#[glib::object_subclass]
impl ObjectSubclass for DiadMeta2Json {
    const NAME: &'static str = "GstDiadMeta2Json";
    type Type = super::DiadMeta2Json;
    type ParentType = gst::Element;

    fn with_class(class: &Self::Class) -> Self {
        let pad = |name: &str| {
            let template = class.pad_template(name);
            gst::Pad::builder_from_template(&template.unwrap_or_else(|| unreachable!("no template {name}")))
        };
        let sinkpad = pad("sink")
            .chain_function(|_, parent, buffer| {
                Self::catch_panic_pad_function(parent, || Err(gst::FlowError::Error), |this| this.chain(&buffer))
            })
            .event_function(|pad, parent, event| {
                Self::catch_panic_pad_function(parent, || false, |this| this.event(pad, event))
            })
            .query_function(|pad, parent, query| {
                Self::catch_panic_pad_function(parent, || false, |this| this.query(pad, query))
            })
            .build();
        let srcpad = pad("src")
            .activatemode_function(|_, parent, mode, active| {
                Self::catch_panic_pad_function(
                    parent,
                    || Err(gst::loggable_error!(CAT, "panicked while activating")),
                    |this| this.activate(mode, active),
                )
            })
            .flags(gst::PadFlags::FIXED_CAPS)
            .build();
        Self { sinkpad, srcpad, line: Line::default() }
    }
}

impl ObjectImpl for DiadMeta2Json {
    fn constructed(&self) {
        self.parent_constructed();
        for pad in [&self.sinkpad, &self.srcpad] {
            // Cannot fail: the element is new and the names differ.
            let _ = self.obj().add_pad(pad);
        }
    }
}

impl GstObjectImpl for DiadMeta2Json {}

impl ElementImpl for DiadMeta2Json {
    fn metadata() -> Option<&'static gst::subclass::ElementMetadata> {
        static METADATA: LazyLock<gst::subclass::ElementMetadata> = LazyLock::new(|| {
            gst::subclass::ElementMetadata::new(
                "DiAD results to JSON",
                "Converter/Metadata",
                "Writes the result of diadfilter as one JSON object per frame and line",
                "the diad authors",
            )
        });
        Some(&METADATA)
    }

    fn pad_templates() -> &'static [gst::PadTemplate] {
        static TEMPLATES: LazyLock<Vec<gst::PadTemplate>> = LazyLock::new(|| {
            use gst::{PadDirection, PadPresence, PadTemplate};
            let video = gst::Caps::new_empty_simple("video/x-raw");
            let sink = PadTemplate::new("sink", PadDirection::Sink, PadPresence::Always, &video);
            let src = PadTemplate::new("src", PadDirection::Src, PadPresence::Always, &json_caps());
            [sink, src].into_iter().flatten().collect()
        });
        &TEMPLATES
    }
}
