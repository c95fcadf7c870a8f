//! `diadfilter` between two pads of a harness: order, counts, errors, time. Nothing here sleeps; models wait at gates.

#[path = "../common/mod.rs"]
mod common;

#[cfg(feature = "analytics")]
mod analytics;
mod bench;
mod buffers;
mod control;
mod faults;
mod flow;
mod links;
mod models;
mod series;
mod wrong;

use common::{Shop, init};
use diad::frame::Frame;
use gst::prelude::*;
use gst_check::Harness;
use gstdiad::meta;
use gstdiad::result::{DiadResult, Inspection};

const MS: gst::ClockTime = gst::ClockTime::from_mseconds(1);

/// A `diadfilter` with the shop's model that makes upstream wait, drawing nothing.
fn filter(shop: &Shop) -> gst::Element {
    init();
    gst::ElementFactory::make("diadfilter")
        .property("model", shop.model.to_str().unwrap())
        .property_from_str("overload-policy", "block")
        .property_from_str("overlay", "0")
        .build()
        .unwrap()
}

/// A harness around it with RGB frames of this size.
fn harness(element: &gst::Element, width: i32, height: i32) -> Harness {
    let mut harness = Harness::with_element(element, Some("sink"), Some("src"));
    harness.set_src_caps(caps("RGB", width, height));
    harness.play();
    harness
}

fn caps(format: &str, width: i32, height: i32) -> gst::Caps {
    gst::Caps::builder("video/x-raw")
        .field("format", format)
        .field("width", width)
        .field("height", height)
        .field("framerate", gst::Fraction::new(25, 1))
        .build()
}

/// A frame as a buffer of RGB with padded rows, number `n` of a stream of 25 per second.
fn buffer(frame: &Frame, n: u64) -> gst::Buffer {
    let row = frame.width() * 3;
    let mut bytes = Vec::new();
    for line in frame.rgb().chunks_exact(row) {
        bytes.extend_from_slice(line);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
    }
    let mut buffer = gst::Buffer::from_slice(bytes);
    let fields = buffer.get_mut().unwrap();
    fields.set_pts(MS * 40 * n);
    fields.set_duration(MS * 40);
    fields.set_offset(n);
    buffer
}

/// All that is said of a frame.
fn frame_result(buffer: &gst::Buffer) -> DiadResult {
    meta::result_of(buffer).expect("a result on the buffer")
}

/// What the one filter says of a frame.
fn result(buffer: &gst::Buffer) -> Inspection {
    let frame = frame_result(buffer);
    let [result] = <[Inspection; 1]>::try_from(frame.results).expect("the result of one filter");
    assert_eq!(frame.verdict, result.verdict);
    result
}

/// Messages on the bus of an element, waited for until one is accepted.
fn message<T>(bus: &gst::Bus, mut accept: impl FnMut(&gst::Message) -> Option<T>) -> T {
    loop {
        let message = bus.timed_pop(gst::ClockTime::from_seconds(60)).expect("a message within a minute");
        if let Some(found) = accept(&message) {
            return found;
        }
    }
}

fn with_bus(element: &gst::Element) -> gst::Bus {
    let bus = gst::Bus::new();
    element.set_bus(Some(&bus));
    bus
}
