//! Clips and recordings of a line: one encoder for both, beside whatever else the line does.

use std::fs;

use super::archive::ending;
use super::*;

/// A line of frames that are all rejected, with these keys more.
fn rejected(source: &str, more: &str) -> String {
    format!(
        "state-dir = \"state\"\n[[line]]\nname = \"cap\"\nmodel = \"MODEL\"\n{source}\nfilter = {{ threshold = 0.0 }}\n\
         results = \"cap.jsonl\"\n{more}\n"
    )
}

fn sidecars(folder: &Path) -> Vec<Value> {
    let all = files(folder);
    assert!(ending(&all, ".part").is_empty(), "{all:?}");
    let mut all: Vec<Value> =
        ending(&all, ".json").iter().map(|path| serde_json::from_slice(&fs::read(path).unwrap()).unwrap()).collect();
    all.sort_by_key(|sidecar| sidecar["seq"].as_u64());
    all
}

/// Frames of a file.
fn frames(path: &Path) -> u64 {
    use gst::prelude::*;
    let line = format!("filesrc location={} ! decodebin ! fakesink name=s sync=false", path.display());
    let pipeline = gst::parse::launch(&line).unwrap().downcast::<gst::Pipeline>().unwrap();
    pipeline.set_state(gst::State::Playing).unwrap();
    let ends = [gst::MessageType::Eos, gst::MessageType::Error];
    let message = pipeline.bus().unwrap().timed_pop_filtered(gst::ClockTime::from_seconds(60), &ends).unwrap();
    assert_eq!(message.type_(), gst::MessageType::Eos, "{}: {message:?}", path.display());
    let stats = pipeline.by_name("s").unwrap().property::<gst::Structure>("stats");
    pipeline.set_state(gst::State::Null).unwrap();
    stats.get("rendered").unwrap()
}

#[test]
fn clips_and_recordings_come_from_one_encoder_beside_archive_and_output() {
    let more = "archive = { min-free = 0 }\nclips = { min-free = 0, pre = \"1s\" }\nrecord = { min-free = 0, every = \"2s\" }\n\
                output = \"videoconvert ! jpegenc ! multifilesink location=%05d.jpg async=false\"";
    let shift = Shift::new(&rejected(&finite(100), more));
    let (code, printed) = shift.finish(&["run", "line.toml", "--print"]);
    assert_eq!((code, printed.matches("x264enc").count(), printed.matches("diadclip").count()), (0, 1, 2), "{printed}");
    let (code, said) = shift.finish(&["run", "line.toml"]);
    assert!(code == 0 && said.contains("cap: ended: 100 frames, 100 ng"), "{said}");
    let results = shift.results("cap.jsonl");
    let clips = sidecars(&shift.path("state/clips/cap"));
    let [clip] = &clips[..] else { panic!("{clips:?}") };
    assert_eq!(
        (clip["kind"].as_str(), clip["why"].as_str(), clip["line"].as_str()),
        (Some("clip"), Some("ng"), Some("cap"))
    );
    assert_eq!((&clip["result"], &clip["utc"], clip["frames"].as_u64()), (&results[0], &results[0]["utc"], Some(100)));
    let recorded = sidecars(&shift.path("state/record/cap"));
    let counts: Vec<u64> = recorded.iter().map(|sidecar| sidecar["frames"].as_u64().unwrap()).collect();
    assert!(counts.len() > 2 && counts.iter().sum::<u64>() == 100 && counts.iter().all(|&n| n <= 40), "{counts:?}");
    assert!(recorded.iter().all(|sidecar| sidecar["kind"] == "video" && sidecar["line"] == "cap"));
    let videos = files(&shift.path("state"));
    let played: u64 = ending(&videos, ".mp4").into_iter().map(|path| frames(path)).sum();
    assert_eq!(played, 200, "each frame once in the clip and once in a recording");
    assert!(shift.path("00099.jpg").is_file() && !files(&shift.path("state/archive/cap")).is_empty());
}

/// Killed in the middle: nothing half under a final name, and what was recorded up to the last second plays.
#[test]
fn a_crash_costs_the_last_second() {
    let shift = Shift::new(&rejected(LIVE, "clips = { min-free = 0 }\nrecord = { min-free = 0 }"));
    let mut running = shift.start();
    running.until("cap: running");
    let end = Instant::now() + PATIENCE;
    let parts = || {
        files(&shift.path("state/record/cap"))
            .iter()
            .map(|path| fs::metadata(path).map_or(0, |file| file.len()))
            .sum::<u64>()
    };
    while parts() < 30_000 && Instant::now() < end {
        std::thread::yield_now();
    }
    running.signal("KILL");
    drop(running);
    let mut running = shift.start();
    running.until("cap: running");
    let (code, said) = running.stop();
    assert_eq!(code, 0, "{said}");
    for kind in ["clips", "record"] {
        let all = files(&shift.path("state").join(kind));
        let cut = ending(&all, ".cut.mp4");
        assert!(ending(&all, ".part").is_empty() && cut.len() == 1, "{all:?}");
        assert!(frames(cut[0]) >= 20, "{kind}: {}", frames(cut[0]));
        assert_eq!(sidecars(&shift.path("state").join(kind)).len(), 1, "and that of the second run is whole");
    }
}

#[test]
fn their_limits_change_in_place_and_their_keys_are_their_own() {
    let shift = Shift::new(&rejected(LIVE, "clips = { min-free = 0 }"));
    let mut running = shift.start();
    running.until("cap: running");
    shift.write(&rejected(LIVE, "clips = { min-free = 0, max-size = \"1MB\", pre = \"2s\" }"));
    running.signal("HUP");
    let told = running.until("cap: changed: ");
    assert!(told.contains("max-size, pre"), "{told}");
    shift.write(&rejected(LIVE, "clips = { min-free = 0 }\nrecord = { min-free = 0 }"));
    running.signal("HUP");
    running.until("cap: changed: built anew");
    assert_eq!(running.stop().0, 0);
    shift.write(&rejected(LIVE, "clips = { every = \"5s\" }\nrecord = { pre = \"5s\", max-size = \"much\" }"));
    let (code, said) = shift.finish(&["validate", "line.toml"]);
    assert_eq!(code, 2);
    for expected in
        ["clips.every: unknown key", "record.pre: unknown key", "record.max-size = \"much\": expected a number"]
    {
        assert!(said.contains(expected), "{expected}: {said}");
    }
}
