//! Buffers as cameras and decoders make them: rows of their own length, cropped, interlaced, too short; and masks that take long to read.

use diad::detector::Verdict;
use gst::MessageView;

use super::common::*;
use super::*;

fn warning(bus: &gst::Bus) -> String {
    message(bus, |message| match message.view() {
        MessageView::Warning(warning) => Some(warning.error().message().to_owned()),
        _ => None,
    })
}

/// The frame as a decoder hands it on: in the middle of a coded picture of 96x80, with rows of 400 bytes, from byte 16 on.
fn cropped(frame: &Frame) -> gst::Buffer {
    let (stride, start, corner) = (400, 16, [20, 10]);
    let mut bytes = vec![200u8; start + stride * 80];
    for (row, line) in frame.rgb().chunks_exact(64 * 3).enumerate() {
        bytes[start + (corner[1] + row) * stride + corner[0] * 3..][..64 * 3].copy_from_slice(line);
    }
    let mut buffer = gst::Buffer::from_mut_slice(bytes);
    {
        let buffer = buffer.get_mut().unwrap();
        let flags = gst_video::VideoFrameFlags::empty();
        gst_video::VideoMeta::add_full(buffer, flags, gst_video::VideoFormat::Rgb, 96, 80, &[start], &[stride as i32])
            .unwrap();
        gst_video::VideoCropMeta::add(buffer, (corner[0] as u32, corner[1] as u32, 64, 64));
    }
    buffer
}

#[test]
fn the_picture_in_a_larger_buffer_is_inspected_and_drawn_on_as_if_it_were_alone() {
    let shop = shop();
    let frame = &shop.frames("blister/test/missing")[0];
    let element = filter(&shop);
    element.set_property_from_str("overlay", "verdict+boxes+heatmap+contour");
    let mut harness = harness(&element, 64, 64);
    harness.push(buffer(frame, 0)).unwrap();
    let plain = harness.pull().unwrap();
    harness.push(cropped(frame)).unwrap();
    let out = harness.pull().unwrap();
    let findings = [&plain, &out].map(|buffer| result(buffer).finding.unwrap());
    assert_eq!(findings[0].score.to_bits(), findings[1].score.to_bits());
    assert_eq!(findings[0], findings[1]);
    let (drawn, expected) = (out.map_readable().unwrap(), plain.map_readable().unwrap());
    for y in 0..80 {
        for x in 0..96 {
            let pixel = &drawn[16 + y * 400 + x * 3..][..3];
            match (x.checked_sub(20).filter(|x| *x < 64), y.checked_sub(10).filter(|y| *y < 64)) {
                (Some(x), Some(y)) => assert_eq!(pixel, &expected[(y * 64 + x) * 3..][..3], "{x},{y}"),
                _ => assert_eq!(pixel, [200; 3], "nothing outside of the picture is touched"),
            }
        }
    }
}

#[test]
fn a_crop_that_is_not_the_picture_of_the_caps_is_an_error_and_no_verdict() {
    let shop = shop();
    let element = filter(&shop);
    let mut harness = harness(&element, 64, 64);
    let mut wrong = cropped(&shop.frames("blister/test/missing")[0]);
    wrong.get_mut().unwrap().meta_mut::<gst_video::VideoCropMeta>().unwrap().set_rect((50, 10, 64, 64));
    harness.push(wrong).unwrap();
    let said = result(&harness.pull().unwrap());
    assert_eq!(said.verdict, Verdict::Error);
    assert!(said.reason.unwrap().contains("64x64 at 50,10"));
}

/// Downstream offers to crop and to blend subtitles by itself: the former is done here as well, the latter is not.
#[test]
fn upstream_is_offered_only_what_is_applied_here() {
    let shop = shop();
    let element = filter(&shop);
    let harness = harness(&element, 64, 64);
    let sink = element.static_pad("src").unwrap().peer().unwrap();
    sink.add_probe(gst::PadProbeType::QUERY_DOWNSTREAM, |_, info| {
        let Some(query) = info.query_mut() else { return gst::PadProbeReturn::Ok };
        let gst::QueryViewMut::Allocation(allocation) = query.view_mut() else { return gst::PadProbeReturn::Ok };
        allocation.add_allocation_meta::<gst_video::VideoOverlayCompositionMeta>(None);
        allocation.add_allocation_meta::<gst_video::VideoMeta>(None);
        allocation.add_allocation_meta::<gst_video::VideoCropMeta>(None);
        gst::PadProbeReturn::Handled
    });
    let mut query = gst::query::Allocation::new(Some(&caps("RGB", 64, 64)), true);
    assert!(element.static_pad("sink").unwrap().query(&mut query));
    assert!(query.find_allocation_meta::<gst_video::VideoMeta>().is_some());
    assert!(query.find_allocation_meta::<gst_video::VideoCropMeta>().is_some());
    assert!(query.find_allocation_meta::<gst_video::VideoOverlayCompositionMeta>().is_none());
    drop(harness);
}

#[test]
fn interlaced_video_is_an_error_that_says_what_helps() {
    let shop = shop();
    let element = filter(&shop);
    let bus = with_bus(&element);
    let mut harness = harness(&element, 64, 64);
    let mut interlaced = caps("RGB", 64, 64);
    interlaced.make_mut().set("interlace-mode", "interleaved");
    harness.set_src_caps(interlaced);
    let words = message(&bus, |message| match message.view() {
        MessageView::Error(error) => Some(error.error().message().to_owned()),
        _ => None,
    });
    assert!(words.contains("interlace-mode = interleaved") && words.contains("deinterlace"), "{words}");
}

/// The filter and the overlay element alike.
#[test]
fn a_frame_that_cannot_be_drawn_on_passes_with_its_result_and_a_warning() {
    let shop = shop();
    let element = filter(&shop);
    let mut source = harness(&element, 64, 64);
    source.push(buffer(&shop.frames("washer/test/good")[0], 0)).unwrap();
    let inspected = source.pull().unwrap();
    let mut short = gst::Buffer::from_slice([0u8; 10]);
    inspected.copy_into(short.get_mut().unwrap(), gst::BufferCopyFlags::META, ..).unwrap();
    for (factory, properties) in [("diadoverlay", "verdict"), ("diadfilter", "verdict")] {
        let element =
            if factory == "diadfilter" { filter(&shop) } else { gst::ElementFactory::make(factory).build().unwrap() };
        element.set_property_from_str("overlay", properties);
        let bus = with_bus(&element);
        let mut harness = harness(&element, 64, 64);
        for _ in 0..2 {
            harness.push(short.clone()).unwrap();
            let out = harness.pull().unwrap();
            assert_eq!((out.size(), meta::drawn_by(&out)), (10, None), "{factory}");
            assert!(!frame_result(&out).results.is_empty());
        }
        let said: Vec<_> = std::iter::from_fn(|| bus.pop())
            .filter_map(|message| match message.view() {
                MessageView::Warning(warning) => Some(warning.error().message().to_owned()),
                MessageView::Error(error) => panic!("{factory}: {}", error.error()),
                _ => None,
            })
            .filter(|words| words.contains("cannot be drawn on"))
            .collect();
        assert_eq!(said.len(), 1, "{factory}: {said:?}");
    }
}

/// A FIFO that nobody writes to would hold up whoever reads it, for ever.
#[test]
fn a_mask_on_a_fifo_is_refused_and_holds_nothing_up() {
    let shop = shop();
    let element = filter(&shop);
    let bus = with_bus(&element);
    let mut harness = harness(&element, 64, 64);
    let frame = &shop.frames("washer/test/good")[0];
    harness.push(buffer(frame, 0)).unwrap();
    harness.pull().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let fifo = folder.path().join("mask.png");
    assert!(std::process::Command::new("mkfifo").arg(&fifo).status().unwrap().success());
    element.set_property("mask-location", fifo.to_str().unwrap());
    let words = warning(&bus);
    assert!(words.contains("mask-location") && words.contains("mask.png"), "{words}");
    harness.push(buffer(frame, 1)).unwrap();
    assert_eq!(harness.pull().unwrap().pts(), Some(MS * 40));
}

/// A mask of 100 megapixels takes long to read: frames pass meanwhile.
#[test]
fn no_lock_is_held_while_a_mask_is_read() {
    let shop = shop();
    let element = filter(&shop);
    let mut harness = harness(&element, 64, 64);
    let frame = &shop.frames("washer/test/good")[0];
    harness.push(buffer(frame, 0)).unwrap();
    harness.pull().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("mask.pgm");
    let header = b"P5 10000 10000 255\n".to_vec();
    std::fs::write(&path, [header, vec![9; 100_000_000]].concat()).unwrap();
    let (begins, begun) = crossbeam_channel::bounded(1);
    let setter = std::thread::Builder::new().spawn({
        let element = element.clone();
        move || {
            begins.send(()).unwrap();
            element.set_property("mask-location", path.to_str().unwrap()); // of the wrong size: refused in the end
        }
    });
    begun.recv().unwrap();
    let setter = setter.unwrap();
    let mut passed = 0;
    while !setter.is_finished() {
        harness.push(buffer(frame, 1)).unwrap();
        harness.pull().unwrap();
        passed += 1;
    }
    setter.join().unwrap();
    assert!(passed >= 5, "{passed} frames passed meanwhile");
}

/// Neither of two properties has to be set before the other, and none is refused because of a value that is about to change.
#[test]
fn properties_can_be_set_in_any_order_while_playing() {
    let shop = shop();
    let element = filter(&shop);
    let bus = with_bus(&element);
    let mut harness = harness(&element, 64, 64);
    let frame = &shop.frames("washer/test/good")[0];
    let mut verdict = || {
        harness.push(buffer(frame, 0)).unwrap();
        result(&harness.pull().unwrap()).verdict
    };
    verdict();
    element.set_property("confirm-count", 2u32);
    element.set_property("confirm-window", 3u32);
    element.set_property("warn-threshold", 1e9);
    element.set_property("threshold", 0.0);
    assert_eq!([verdict(), verdict()], [Verdict::Warn, Verdict::Ng], "confirmed by the second");
    element.set_property("threshold", 2e9);
    assert_eq!(verdict(), Verdict::Ok);
    assert_eq!(bus.pop_filtered(&[gst::MessageType::Warning]).map(|message| format!("{message:?}")), None);
}
