//! A frame in, its result as a line of JSON out, with the frame's timestamps.
//!
//! Lines leave by a task of their own: a file sink takes nothing between its first line and the start of playback, and an
//! encoder in another branch of a tee wants dozens of frames before then. Lines are small and may wait; frames are not.

use std::convert::Infallible;

use crossbeam_channel::Receiver;
use gst::glib;
use gst::prelude::*;
use gst::subclass::prelude::*;
use gst::{FlowError, FlowSuccess};

use crate::result::DiadResult;
use crate::stream::{Stream, StreamElement};
use crate::{frame, meta};

/// The element.
pub struct DiadMeta2Json {
    stream: Stream<gst::Buffer>,
}

/// Lines that wait, at most: minutes of video.
const MAX_WAITING: usize = 16_384;

impl StreamElement for DiadMeta2Json {
    type Frame = gst::Buffer;

    fn stream(&self) -> &Stream<Self::Frame> {
        &self.stream
    }

    fn sink_chain(&self, buffer: gst::Buffer) -> Result<FlowSuccess, FlowError> {
        let result = meta::result_of(&buffer).unwrap_or_else(|| DiadResult::unseen(buffer.pts()));
        let mut line = serde_json::to_vec(&result).map_err(|error| {
            gst::element_imp_error!(self, gst::StreamError::Encode, ("a result is no JSON: {error}"));
            FlowError::Error
        })?;
        line.push(b'\n');
        let mut out = gst::Buffer::from_slice(line);
        {
            let out = out.make_mut();
            out.set_pts(buffer.pts());
            out.set_dts(buffer.dts());
            out.set_duration(buffer.duration());
        }
        self.stream.queue.wait_for_room(MAX_WAITING)?;
        self.stream.queue.push_frame(out).map(|()| FlowSuccess::Ok).map_err(|(error, _)| error)
    }

    fn sink_event(&self, event: gst::Event) -> Result<gst::Event, ()> {
        Ok(if event.type_() == gst::EventType::Caps { gst::event::Caps::new(&json_caps()) } else { event })
    }

    fn sink_query(&self, query: &mut gst::QueryRef) -> Option<bool> {
        // What downstream allocates is for JSON: video upstream keeps its own buffers.
        (query.type_() == gst::QueryType::Allocation).then_some(false)
    }

    fn src_push(&self, line: gst::Buffer, _: &Receiver<Infallible>) -> Result<FlowSuccess, FlowError> {
        self.stream.srcpad.push(line)
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
        Self { stream: Stream::new::<Self>(|name| class.pad_template(name)) }
    }
}

impl ObjectImpl for DiadMeta2Json {
    fn constructed(&self) {
        self.parent_constructed();
        self.stream.add_to(&*self.obj());
    }
}

impl GstObjectImpl for DiadMeta2Json {}

impl ElementImpl for DiadMeta2Json {
    frame::described! {
        "DiAD results to JSON", "Converter/Metadata",
        "Writes the result of diadfilter as one JSON object per frame and line",
        || frame::pads(&gst::Caps::new_empty_simple("video/x-raw"), &json_caps())
    }
}
