//! Clips of encoded video: what is in them, and what becomes of them when disk, process or stream give out.

use std::fs;
use std::io::Write;

use diad::detector::Verdict;
use gst::prelude::*;
use gstdiad::meta;
use gstdiad::result::DiadResult;

use super::*;

/// Frames a second of the streams here.
const RATE: u64 = 25;
/// ns of a frame.
const FRAME: u64 = 1_000_000_000 / RATE;
/// Key frames come where they are told to, and nowhere else.
const H264: &str = "x264enc tune=zerolatency key-int-max=10 option-string=scenecut=0 pass=quant quantizer=1";

/// A stream whose frame `n` is grey of level 20 + 2 n, ends in a `diadclip`, and has these frames rejected.
fn stream(frames: u64, source: &str, rejected: &[u64], encoder: &str, clip: &str) -> gst::Pipeline {
    init();
    let line = format!(
        "videotestsrc num-buffers={frames} pattern=black {source} ! video/x-raw,format=I420,width=64,height=64,framerate={RATE}/1 ! \
         identity name=mark ! {encoder} ! diadclip name=clip min-free=0 key-interval=0 {clip}"
    );
    let pipeline = gst::parse::launch(&line).unwrap().downcast::<gst::Pipeline>().unwrap();
    let rejected = rejected.to_vec();
    let pad = pipeline.by_name("mark").unwrap().static_pad("src").unwrap();
    pad.add_probe(gst::PadProbeType::BUFFER, move |_, info| {
        let buffer = info.buffer_mut().unwrap().make_mut();
        let n = (buffer.pts().unwrap().nseconds() + FRAME / 2) / FRAME;
        buffer.map_writable().unwrap()[..64 * 64].fill((20 + 2 * n) as u8);
        let mut result = DiadResult::unseen(buffer.pts());
        result.verdict = if rejected.contains(&n) { Verdict::Ng } else { Verdict::Ok };
        result.sequence = Some(1000 + n);
        result.part_id = Some(format!("P{n}"));
        meta::set_result(buffer, &result);
        gst::PadProbeReturn::Ok
    });
    pipeline
}

/// Runs to the end of the stream.
#[track_caller]
fn finish(pipeline: &gst::Pipeline) {
    pipeline.set_state(gst::State::Playing).unwrap();
    let ends = [gst::MessageType::Eos, gst::MessageType::Error];
    let message = pipeline.bus().unwrap().timed_pop_filtered(gst::ClockTime::from_seconds(60), &ends).unwrap();
    assert_eq!(message.type_(), gst::MessageType::Eos, "{message:?}");
}

/// A finished clip.
#[derive(Debug)]
struct Found {
    path: PathBuf,
    sidecar: Value,
}

impl Found {
    fn number(&self, key: &str) -> f64 {
        self.sidecar[key].as_f64().unwrap()
    }

    /// Numbers of its frames, as they are seen in it; times begin at 0 and go on evenly.
    fn frames(&self) -> Vec<u64> {
        let seen = video::frames(&self.path);
        for (n, frame) in seen.iter().enumerate() {
            assert!(frame.pts.abs_diff(n as u64 * FRAME) < 2_000_000, "{n}: {}", frame.pts);
        }
        // JPEG keeps levels; of H.264 the decoder here makes this.
        let level = |grey: f64| match self.path.extension().is_some_and(|end| end == "mkv") {
            true => grey,
            false => (grey + 2.0) * 219.0 / 255.0 + 16.0,
        };
        let number = |frame: &video::Seen| ((level(frame.grey()) - 20.0) / 2.0).round() as u64;
        let numbers: Vec<u64> = seen.iter().map(number).collect();
        let duration = numbers.len() as f64 / RATE as f64;
        assert_eq!(self.number("frames"), numbers.len() as f64);
        assert!((self.number("duration") - duration).abs() < 0.002, "{}", self.sidecar);
        numbers
    }
}

/// The clips in a folder, in the order of their numbers.
fn clips(folder: &Path) -> Vec<Found> {
    let all = files(folder);
    assert!(!all.iter().any(|path| path.extension().is_some_and(|end| end == "part")), "{all:?}");
    let sidecars = all.iter().filter(|path| path.extension().is_some_and(|end| end == "json"));
    let mut found: Vec<Found> = sidecars
        .map(|path| {
            let sidecar: Value = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
            Found { path: path.with_file_name(sidecar["files"]["video"].as_str().unwrap()), sidecar }
        })
        .collect();
    found.sort_by_key(|found| found.sidecar["seq"].as_u64());
    found
}

/// The clips of a whole stream.
fn cut(frames: u64, rejected: &[u64], encoder: &str, clip: &str) -> (tempfile::TempDir, Vec<Found>) {
    let folder = tempfile::tempdir().unwrap();
    let location = format!("location={} {clip}", folder.path().display());
    let pipeline = stream(frames, "", rejected, encoder, &location);
    finish(&pipeline);
    let found = clips(folder.path()); // at the end of the stream, not only at that of the element
    pipeline.set_state(gst::State::Null).unwrap();
    (folder, found)
}

fn range(from: u64, to: u64) -> Vec<u64> {
    (from..=to).collect()
}

const SECOND_AND_A_BIT: &str = "pre=1000000000 post=400000000";

#[test]
fn a_clip_has_the_moment_and_what_was_before_it() {
    let (_folder, found) = cut(100, &[60], H264, SECOND_AND_A_BIT);
    let [clip] = &found[..] else { panic!("{found:?}") };
    assert_eq!(clip.frames(), range(30, 70), "from the last key frame a second before");
    let sidecar = &clip.sidecar;
    assert_eq!(
        (sidecar["kind"].as_str(), sidecar["why"].as_str(), sidecar["seq"].as_u64()),
        (Some("clip"), Some("ng"), Some(1060))
    );
    assert_eq!((clip.number("pre"), sidecar["continues"].as_bool()), (1.2, Some(false)));
    assert_eq!(sidecar["result"]["verdict"], "ng");
    let name = clip.path.file_name().unwrap().to_str().unwrap();
    assert!(name.contains("_clip-ng_000001060_P60.mp4"), "{name}");

    // Each JPEG can be decoded by itself: exact.
    let (_folder, found) = cut(100, &[60], "jpegenc quality=100", &format!("container=mkv {SECOND_AND_A_BIT}"));
    let [clip] = &found[..] else { panic!("{found:?}") };
    assert_eq!((clip.frames(), clip.number("pre")), (range(35, 70), 1.0));
}

#[test]
fn near_moments_are_one_clip_and_far_ones_are_two() {
    let (_folder, found) = cut(100, &[30, 38, 46], H264, "pre=400000000 post=400000000");
    assert_eq!(found.iter().map(Found::frames).collect::<Vec<_>>(), [range(20, 56)]);
    let (_folder, found) = cut(100, &[30, 70], H264, "pre=400000000 post=400000000");
    assert_eq!(found.iter().map(Found::frames).collect::<Vec<_>>(), [range(20, 40), range(60, 80)]);
    let (_folder, found) = cut(60, &[], H264, "");
    assert!(found.is_empty(), "{found:?}");
}

#[test]
fn a_long_moment_is_many_clips_without_a_gap() {
    let (_folder, found) = cut(100, &range(20, 90), H264, "pre=0 post=0 max-duration=1000000000");
    let seen: Vec<Vec<u64>> = found.iter().map(Found::frames).collect();
    assert_eq!(seen, [range(20, 39), range(40, 59), range(60, 79), range(80, 90)]);
    let goes_on: Vec<bool> = found.iter().map(|clip| clip.number("pre") == 0.0).collect();
    assert_eq!(goes_on, [true; 4]);

    // And everything, whatever the verdict.
    let (_folder, found) = cut(100, &[], H264, "everything=true max-duration=2000000000");
    let seen: Vec<Vec<u64>> = found.iter().map(Found::frames).collect();
    assert_eq!(seen, [range(0, 49), range(50, 99)]);
    assert!(found.iter().all(|clip| clip.sidecar["kind"] == "video" && clip.sidecar["why"] == "record"));
}

#[test]
fn a_clip_says_when_there_was_less_before_it() {
    let (_folder, found) = cut(60, &[5], H264, "");
    assert_eq!(
        (found[0].frames(), found[0].number("pre")),
        (range(0, 59), 0.2),
        "the stream had just begun, and ended"
    );
    let (_folder, found) = cut(100, &[65], H264, "pre=2000000000 post=0 max-memory=800");
    let pre = found[0].number("pre");
    assert!(pre < 2.0 && found[0].frames() == range(65 - (pre * RATE as f64).round() as u64, 65), "{pre}");
}

#[test]
fn every_kind_of_video_is_kept() {
    init();
    for (encoder, container) in [
        ("x264enc key-int-max=10 bframes=2 b-adapt=false", "mp4"),
        ("x264enc key-int-max=10", "mkv"),
        ("x265enc key-int-max=10 speed-preset=ultrafast ! h265parse", "mp4"),
        ("vp8enc deadline=1 keyframe-max-dist=10", "mkv"),
        ("vp9enc deadline=1 keyframe-max-dist=10 ! vp9parse", "mp4"),
        ("jpegenc", "mkv"),
    ] {
        if gst::ElementFactory::find(encoder.split(' ').next().unwrap()).is_none() {
            continue; // x265enc is not everywhere
        }
        let (_folder, found) = cut(60, &[40], encoder, &format!("container={container} pre=400000000 post=400000000"));
        let [clip] = &found[..] else { panic!("{encoder}: {found:?}") };
        let (count, first) = video::demuxed(&clip.path);
        // Frames that are encoded in another order than shown: an MP4 file in fragments begins with the first that is decoded, and
        // the demuxer takes its length for the time of the last that is shown.
        let order = if encoder.contains("bframes") || encoder.contains("x265") { 3 } else { 0 };
        let delay = if container == "mp4" { order as u64 * FRAME } else { 0 };
        assert!(count + order >= clip.number("frames") as usize && first <= delay, "{encoder}: {count}, {first}");
        assert!((19..=31).contains(&count), "{encoder}: {count}");
    }
}

#[test]
fn what_a_container_does_not_hold_is_an_error_that_names_it() {
    let folder = tempfile::tempdir().unwrap();
    let pipeline = stream(10, "", &[], "jpegenc", &format!("location={}", folder.path().display()));
    let _ = pipeline.set_state(gst::State::Playing);
    let error = |pipeline: &gst::Pipeline| {
        let wait = gst::ClockTime::from_seconds(60);
        let message = pipeline.bus().unwrap().timed_pop_filtered(wait, &[gst::MessageType::Error]).unwrap();
        let gst::MessageView::Error(error) = message.view() else { unreachable!() };
        error.error().to_string()
    };
    let said = error(&pipeline);
    assert!(said.contains("container = mp4: does not hold image/jpeg, expected mkv"), "{said}");
    pipeline.set_state(gst::State::Null).unwrap();

    // A folder is one element's.
    let line = format!("location={} container=mkv", folder.path().display());
    let pipeline = stream(10, "", &[], &format!("jpegenc ! tee name=t ! diadclip {line} t."), &line);
    assert!(pipeline.set_state(gst::State::Playing).is_err());
    let said = error(&pipeline);
    assert!(said.contains("another element or program"), "{said}");
    pipeline.set_state(gst::State::Null).unwrap();
}

/// Taken down in the middle of a clip, without an end of the stream, and started again.
#[test]
fn an_element_that_is_stopped_finishes_its_clip() {
    let folder = tempfile::tempdir().unwrap();
    let pipeline =
        stream(10_000, "is-live=true", &range(5, 10_000), H264, &format!("location={}", folder.path().display()));
    let clip = pipeline.by_name("clip").unwrap();
    let (sender, passed) = crossbeam_channel::bounded(1000);
    clip.static_pad("sink").unwrap().add_probe(gst::PadProbeType::BUFFER, move |_, _| {
        let _ = sender.try_send(());
        gst::PadProbeReturn::Ok
    });
    for round in 1..=2 {
        pipeline.set_state(gst::State::Playing).unwrap();
        (0..20).for_each(|_| passed.recv_timeout(std::time::Duration::from_secs(60)).unwrap());
        pipeline.set_state(if round == 1 { gst::State::Ready } else { gst::State::Null }).unwrap();
        passed.try_iter().for_each(drop);
        assert_eq!(clips(folder.path()).len(), round);
    }
    let seen = clips(folder.path()).iter().map(|clip| video::frames(&clip.path).len()).collect::<Vec<_>>();
    assert!(seen.iter().all(|&count| count >= 15), "{seen:?}");
}

#[test]
fn what_a_crash_leaves_is_cut_and_what_is_foreign_stays() {
    let (folder, found) = cut(100, &range(10, 90), H264, "pre=0 post=0");
    let whole = fs::read(&found[0].path).unwrap();
    let hour = &folder.path().join("2026-11-23/14");
    fs::create_dir_all(hour).unwrap();
    let leave = |name: &str, bytes: &[u8]| fs::File::create(hour.join(name)).unwrap().write_all(bytes).unwrap();
    leave("20261123T141503.127Z_clip-ng_000000001.mp4.part", &whole[..whole.len() * 2 / 3]);
    leave("20261123T141504.127Z_clip-ng_000000002.mp4.part", &whole[..500]);
    leave("mine.mp4.part", b"mine");
    fs::create_dir(folder.path().join("keep")).unwrap();
    fs::copy(&found[0].path, folder.path().join("keep/20261123T141503.127Z_clip-ng_000000001.mp4.part")).unwrap();
    let pipeline = stream(10, "", &[], H264, &format!("location={}", folder.path().display()));
    finish(&pipeline);
    pipeline.set_state(gst::State::Null).unwrap();
    let names = |folder: &Path| -> Vec<String> {
        let names = files(folder).into_iter().filter(|path| !path.to_string_lossy().contains("P10"));
        names.map(|path| path.file_name().unwrap().to_str().unwrap().to_owned()).collect()
    };
    assert_eq!(names(hour), ["20261123T141503.127Z_clip-ng_000000001.cut.mp4", "mine.mp4.part"]);
    assert_eq!(names(&folder.path().join("keep")).len(), 1);
    let left = video::frames(&hour.join(&names(hour)[0])).len();
    let all = video::frames(&found[0].path).len();
    assert!(left > all / 3 && left < all, "{left} of {all}");
}

/// No room: no clip, and it is told; the stream goes on. Room again: clips again, by themselves.
#[test]
fn a_full_disk_costs_clips_until_there_is_room() {
    let folder = tempfile::tempdir().unwrap();
    let location = format!("location={} pre=0 post=0", folder.path().display());
    let pipeline = stream(10_000, "is-live=true", &range(5, 10_000), H264, &location);
    let clip = pipeline.by_name("clip").unwrap();
    clip.set_property("min-free", u64::MAX);
    pipeline.set_state(gst::State::Playing).unwrap();
    let bus = pipeline.bus().unwrap();
    let told = |state: &str| loop {
        let kinds = [gst::MessageType::Element, gst::MessageType::Error];
        let message = bus.timed_pop_filtered(gst::ClockTime::from_seconds(60), &kinds).unwrap();
        let structure = message.structure().unwrap();
        if structure.name() == "diad-clip" {
            assert_eq!(structure.get::<String>("state").unwrap(), state, "{structure}");
            break;
        }
    };
    told("full");
    assert!(common::stat(&clip, "dropped-disk") == 1 && common::stat(&clip, "clips") == 0);
    assert!(clips(folder.path()).is_empty());
    clip.set_property("min-free", 0u64);
    clip.set_property("max-duration", 500_000_000u64);
    told("ok");
    assert!(common::stat(&clip, "clips") >= 1);
    pipeline.set_state(gst::State::Null).unwrap();
    assert!(!clips(folder.path()).is_empty());
}

#[test]
fn old_clips_make_room_for_new_ones() {
    let location = "everything=true max-duration=400000000 max-size=";
    let (_folder, found) = cut(100, &[], H264, &format!("{location}100000000"));
    let size = |found: &Found| fs::metadata(&found.path).unwrap().len();
    let sizes: Vec<u64> = found.iter().map(size).collect();
    assert_eq!(sizes.len(), 10);
    let limit = sizes.iter().sum::<u64>() / 2;
    let (folder, found) = cut(100, &[], H264, &format!("{location}{limit}"));
    let used: u64 = files(folder.path()).iter().map(|path| fs::metadata(path).unwrap().len()).sum();
    assert!(used <= limit && (2..9).contains(&found.len()), "{used} of {limit}: {}", found.len());
    assert_eq!(found.last().unwrap().sidecar["seq"], 1090, "the newest stay");
}
