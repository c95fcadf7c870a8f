//! Files and image sequences into recordings with results beside them.

use std::fs;
use std::io::{BufRead, BufReader};

use super::*;

/// Test parts as numbered PNG files, enlarged so that there is room for text.
fn sequence(shop: &Shop, folder: &Path) -> usize {
    let mut count = 0;
    for kind in ["washer/test/good", "blister/test/missing", "washer/test/good", "blister/test/good"] {
        for frame in shop.frames(kind) {
            let (side, factor) = (frame.width(), 5);
            let pixel = |x: usize, y: usize| &frame.rgb()[(y / factor * side + x / factor) * 3..][..3];
            let bytes = (0..side * factor).flat_map(|y| (0..side * factor).flat_map(move |x| pixel(x, y))).copied();
            let large = diad::frame::Frame::new(side * factor, side * factor, bytes.collect()).unwrap();
            fs::write(folder.join(format!("part_{count:03}.png")), diad::report::png(&large).unwrap()).unwrap();
            count += 1;
        }
    }
    count
}

/// The recipe of the README: one branch is the video, one the results; both are complete and agree frame by frame.
#[test]
fn a_sequence_becomes_an_annotated_video_and_json_lines() {
    init();
    let shop = shop();
    for (muxer, name) in [("mp4mux", "out.mp4"), ("matroskamux", "out.mkv")] {
        let folder = tempfile::tempdir().unwrap();
        let count = sequence(&shop, folder.path());
        let line = format!(
            "multifilesrc location=part_%03d.png start-index=0 stop-index={} caps=image/png,framerate=10/1 ! pngdec ! \
             videoconvert ! video/x-raw,format=I420 ! diadfilter model={} ! tee name=t  t. ! queue ! x264enc ! {muxer} ! \
             filesink location={name}  t. ! queue ! diadmeta2json ! filesink location=results.jsonl",
            count - 1,
            shop.model.display()
        );
        run(launch(&line, folder.path()));
        let (results, frames) = (lines(&folder.path().join("results.jsonl")), video::frames(&folder.path().join(name)));
        assert_eq!((results.len(), frames.len()), (count, count));
        let start = frames[0].pts;
        for (n, (result, frame)) in results.iter().zip(&frames).enumerate() {
            assert_eq!(
                (result["results"][0]["frame_id"].as_u64(), result["pts"].as_u64()),
                (Some(n as u64), Some(n as u64 * 100_000_000))
            );
            assert!((frame.pts - start).abs_diff(n as u64 * 100_000_000) < 1_000_000, "{}", frame.pts);
            assert_eq!(frame.verdict(), result["verdict"].as_str().unwrap(), "{name}, frame {n}");
            let found = &result["results"][0];
            assert!(found["score"].is_number() && found["class"].is_string() && result["schema"] == 2);
        }
        let verdicts: std::collections::BTreeSet<_> = frames.iter().map(video::Seen::verdict).collect();
        assert!(verdicts.len() > 1, "both good and bad parts went by: {verdicts:?}");
    }
}

/// Sources that answer LATENCY late or never are recordings all the same: every frame is inspected.
#[test]
fn recordings_are_inspected_whole_wherever_they_come_from() {
    init();
    let shop = shop();
    let folder = tempfile::tempdir().unwrap();
    let frames = "videotestsrc num-buffers=40 ! video/x-raw,width=320,height=240,format=RGB";
    for segment in 0..3 {
        let source = "videotestsrc num-buffers=30 ! video/x-raw,format=I420,width=64,height=64,framerate=30/1";
        run(launch(&format!("{source} ! x264enc ! mp4mux ! filesink location=seg{segment}.mp4"), folder.path()));
    }
    for (source, rest, count) in [
        ("splitmuxsrc location=seg*.mp4 ! h264parse ! openh264dec".to_owned(), String::new(), 90),
        ("concat name=k".into(), format!("{frames} ! k.  {frames} ! k."), 80),
        ("funnel name=k".into(), format!("{frames} ! k.  {frames} ! k."), 80),
        ("input-selector name=k sync-streams=false".into(), format!("{frames} ! k."), 40),
    ] {
        let inspect = format!("diadfilter model={} overlay=0", shop.model.display());
        run(launch(
            &format!("{source} ! {inspect} ! diadmeta2json ! filesink location=results.jsonl  {rest}"),
            folder.path(),
        ));
        let results = lines(&folder.path().join("results.jsonl"));
        let uninspected = results.iter().filter(|result| result["verdict"] == "uninspected").count();
        assert_eq!((results.len(), uninspected), (count, 0), "{source}");
    }
}

/// A disk that is full loses results: the pipeline ends with an error, not as if all were well.
#[test]
fn a_full_disk_for_the_results_is_an_error() {
    init();
    let shop = shop();
    let folder = tempfile::tempdir().unwrap();
    for buffering in ["full", "unbuffered"] {
        let line = format!(
            "videotestsrc num-buffers=20 ! video/x-raw,width=64,height=64,format=RGB ! diadfilter model={} ! diadmeta2json ! \
             filesink buffer-mode={buffering} location=/dev/full",
            shop.model.display()
        );
        let output = launch(&line, folder.path()).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && said.contains("No space left"), "{buffering}: {said}");
    }
}

/// kill -9 in the middle: what was written up to the last fragment can be played.
#[test]
fn a_recording_survives_the_death_of_its_process() {
    init();
    let shop = shop();
    for (muxer, name) in [("mp4mux fragment-duration=500", "out.mp4"), ("matroskamux streamable=true", "out.mkv")] {
        let folder = tempfile::tempdir().unwrap();
        let line = format!(
            "-m videotestsrc is-live=false ! video/x-raw,format=I420,width=320,height=240,framerate=25/1 ! diadfilter \
             model={} post-messages=all ! x264enc tune=zerolatency key-int-max=10 ! {muxer} ! filesink location={name} \
             buffer-mode=unbuffered",
            shop.model.display()
        );
        let mut child = launch(&line, folder.path()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        let said = BufReader::new(child.stdout.take().unwrap());
        let seen = said.lines().map_while(Result::ok).filter(|line| line.contains("diad-result")).take(120).count();
        assert_eq!(seen, 120, "it plays");
        child.kill().unwrap();
        child.wait().unwrap();
        let frames = video::frames(&folder.path().join(name));
        // A fragment is 12.5 frames; some frames are still on their way through encoder and muxer.
        assert!(frames.len() >= 120 - 40, "{name}: {} frames are left", frames.len());
        assert!(frames.iter().all(|frame| frame.verdict() != "none"), "every one is annotated");
    }
}
