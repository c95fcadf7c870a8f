//! One chain function: a frame in, its result as a line of JSON out, with the frame's timestamps.

use std::sync::LazyLock;

use gst::glib;
use gst::prelude::*;
use gst::subclass::prelude::*;
use serde::Serialize;

use crate::meta;
use crate::result::SCHEMA;

/// The element.
pub struct DiadMeta2Json {
    sinkpad: gst::Pad,
    srcpad: gst::Pad,
}

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
            gst::element_imp_error!(self, gst::StreamError::Encode, ["a result is no JSON: {error}"]);
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
        self.srcpad.push(out)
    }

    fn event(&self, pad: &gst::Pad, event: gst::Event) -> bool {
        if let gst::EventView::Caps(_) = event.view() {
            return self.srcpad.push_event(gst::event::Caps::new(&json_caps()));
        }
        gst::Pad::event_default(pad, Some(&*self.obj()), event)
    }

    fn query(&self, pad: &gst::Pad, query: &mut gst::QueryRef) -> bool {
        match query.view_mut() {
            // What downstream allocates is for JSON: video upstream keeps its own buffers.
            gst::QueryViewMut::Allocation(_) => false,
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
        Self { sinkpad, srcpad: pad("src").flags(gst::PadFlags::FIXED_CAPS).build() }
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
