//! An element between two pads of the test: they can be unlinked, and say of themselves what a test wants.

use std::sync::{Arc, Mutex};

use crossbeam_channel::{Receiver, Sender, bounded};
use gst::MessageView;

use super::*;

/// Upstream's answer to LATENCY: live, minimum and maximum, or none.
pub(super) type Answer = Arc<Mutex<Option<(bool, gst::ClockTime, Option<gst::ClockTime>)>>>;

/// A pad that gives away what it gets.
pub(super) fn sink_pad(buffers: &Sender<gst::Buffer>, events: &Sender<gst::EventType>) -> gst::Pad {
    let (buffers, events) = (buffers.clone(), events.clone());
    let any = gst::PadTemplate::new("sink", gst::PadDirection::Sink, gst::PadPresence::Always, &gst::Caps::new_any());
    let sink = gst::Pad::builder_from_template(&any.unwrap())
        .chain_function(move |_, _, buffer| {
            buffers.send(buffer).unwrap();
            Ok(gst::FlowSuccess::Ok)
        })
        .event_function(move |_, _, event| {
            events.send(event.type_()).unwrap();
            true
        })
        .build();
    sink.set_active(true).unwrap();
    sink
}

/// An element between two pads of the test, which can be unlinked and say of themselves what a test wants.
pub(super) struct Bench {
    pub(super) element: gst::Element,
    pub(super) src: gst::Pad,
    pub(super) sink: gst::Pad,
    pub(super) upstream: Answer,
    pub(super) buffers: Receiver<gst::Buffer>,
    pub(super) events: Receiver<gst::EventType>,
    pub(super) bus: gst::Bus,
}

impl Bench {
    pub(super) fn new(element: &gst::Element) -> Self {
        let (give, buffers) = bounded(1000);
        let (tell, events) = bounded(1000);
        let upstream = Answer::default();
        let src = gst::Pad::builder(gst::PadDirection::Src)
            .query_function({
                let upstream = upstream.clone();
                move |_, _, query| {
                    let gst::QueryViewMut::Latency(latency) = query.view_mut() else { return false };
                    let answer = *upstream.lock().unwrap();
                    answer.map(|(live, min, max)| latency.set(live, min, max)).is_some()
                }
            })
            .build();
        let sink = sink_pad(&give, &tell);
        let bus = with_bus(element);
        src.link(&element.static_pad("sink").unwrap()).unwrap();
        element.static_pad("src").unwrap().link(&sink).unwrap();
        element.set_state(gst::State::Playing).unwrap();
        src.set_active(true).unwrap();
        let bench = Self { element: element.clone(), src, sink, upstream, buffers, events, bus };
        bench.begin("first");
        bench
    }

    /// The events that a stream begins with.
    pub(super) fn begin(&self, stream: &str) {
        self.src.push_event(gst::event::StreamStart::new(stream));
        self.src.push_event(gst::event::Caps::new(&caps("RGB", 64, 64)));
        self.src.push_event(gst::event::Segment::new(&gst::FormattedSegment::<gst::ClockTime>::new()));
    }

    pub(super) fn next(&self) -> gst::Buffer {
        self.buffers.recv_timeout(std::time::Duration::from_secs(60)).expect("a buffer within a minute")
    }

    pub(super) fn next_event(&self) -> gst::EventType {
        self.events.recv_timeout(std::time::Duration::from_secs(60)).expect("an event within a minute")
    }

    /// The texts of warnings and errors on the bus so far.
    pub(super) fn said(&self) -> Vec<String> {
        let text = |message: gst::Message| match message.view() {
            MessageView::Warning(warning) => Some(warning.error().message().to_owned()),
            MessageView::Error(error) => Some(error.error().message().to_owned()),
            _ => None,
        };
        std::iter::from_fn(|| self.bus.pop()).filter_map(text).collect()
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        let _ = self.element.set_state(gst::State::Null);
    }
}
