//! Starting, playing and stopping again and again leaves nothing behind: no thread, no file handle, no memory.
//!
//! A program of its own, with one test: what is counted belongs to the whole process.

#[path = "common/mod.rs"]
mod common;

use std::fs;

use common::{init, shop};
use gst::prelude::*;

/// Threads, open files, resident MiB of this process.
fn size() -> (u64, usize, u64) {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let number = |key: &str| -> u64 {
        let line = status.lines().find_map(|line| line.strip_prefix(key)).unwrap();
        line.split_whitespace().next().unwrap().parse().unwrap()
    };
    (number("Threads:"), fs::read_dir("/proc/self/fd").unwrap().count(), number("VmRSS:") / 1024)
}

#[test]
fn nothing_is_left_behind_by_starts_and_stops() {
    init();
    let shop = shop();
    let line = format!(
        "videotestsrc num-buffers=6 ! video/x-raw,format=I420,width=320,height=240 ! diadfilter name=f model={} \
         meta=regions+result+map overlay=verdict+boxes+heatmap+contour ! fakesink",
        shop.model.display()
    );
    let pipeline = gst::parse::launch(&line).unwrap().downcast::<gst::Pipeline>().unwrap();
    let element = pipeline.by_name("f").unwrap();
    let play = |cycles: usize| {
        for _ in 0..cycles {
            pipeline.set_state(gst::State::Playing).unwrap();
            let wanted = [gst::MessageType::Eos, gst::MessageType::Error];
            let end = pipeline.bus().unwrap().timed_pop_filtered(gst::ClockTime::from_seconds(60), &wanted);
            assert_eq!(end.unwrap().type_(), gst::MessageType::Eos);
            assert_eq!(common::stat(&element, "frames"), 6);
            common::assert_all_counted(&element);
            pipeline.set_state(gst::State::Null).unwrap();
        }
    };
    play(5); // pools and allocators have what they need
    let before = size();
    play(25);
    let after = size();
    assert!(after.0 <= before.0 && after.1 <= before.1, "threads, files, MiB: {before:?}, then {after:?}");
    // A model is 5 MiB: if every start kept one, these would be 125.
    assert!(after.2 <= before.2 + 40, "threads, files, MiB: {before:?}, then {after:?}");
}
