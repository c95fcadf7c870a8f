//! Pictures and results on disk: what is kept, within which limits, and what a crash leaves.

use std::collections::BTreeSet;
use std::fs;

use diad::frame::read_frame;

use super::*;

pub(super) fn ending<'a>(files: &'a [PathBuf], end: &str) -> Vec<&'a PathBuf> {
    files.iter().filter(|file| file.to_string_lossy().ends_with(end)).collect()
}

fn size(files: &[PathBuf]) -> u64 {
    files.iter().map(|file| fs::metadata(file).map_or(0, |file| file.len())).sum()
}

/// A line of frames that are all rejected.
fn rejected(source: &str, archive: &str) -> String {
    format!(
        "state-dir = \"state\"\n[[line]]\nname = \"cap\"\nmodel = \"MODEL\"\n{source}\nfilter = {{ threshold = 0.0 }}\n\
         results = \"cap.jsonl\"\narchive = {{ {archive} }}\n"
    )
}

#[test]
fn pictures_are_kept_with_what_was_said_of_them() {
    let shift = Shift::new(&rejected(&finite(30), "burst = 10, max-rate = 0.001, annotated = true, min-free = 0"));
    let root = shift.path("state/archive/cap");
    fs::create_dir_all(root.join("keep")).unwrap();
    fs::write(root.join("keep/mine.txt"), "mine").unwrap();
    let (code, said) = shift.finish(&["run", "line.toml"]);
    assert_eq!(code, 0, "{said}");
    let all = files(&root);
    let sidecars: Vec<Value> =
        ending(&all, ".json").iter().map(|path| serde_json::from_slice(&fs::read(path).unwrap()).unwrap()).collect();
    let results = shift.results("cap.jsonl");
    assert_eq!((sidecars.len(), results.len()), (30, 30), "what is said of a frame is kept, picture or not");
    for (sidecar, result) in sidecars.iter().zip(&results) {
        assert_eq!(&sidecar["result"], result);
        assert_eq!(
            (&sidecar["seq"], &sidecar["line"], &sidecar["utc"]),
            (&result["sequence"], &result["line"], &result["utc"])
        );
        assert_eq!((sidecar["kind"].as_str(), sidecar["why"].as_str()), (Some("frame"), Some("ng")));
        assert_eq!(sidecar["model"]["digest"], result["results"][0]["model"]);
    }
    let pictures = sidecars.iter().filter_map(|sidecar| sidecar["files"]["frame"].as_str()).count();
    assert_eq!(pictures, 10, "a burst of ten, and none after it");
    let clean = all.iter().filter(|path| path.to_string_lossy().ends_with(".png"));
    let (drawn, clean): (Vec<_>, Vec<_>) = clean.partition(|path| path.to_string_lossy().contains("annotated"));
    assert_eq!((drawn.len(), clean.len()), (10, 10));
    let of = |path: &&PathBuf| read_frame(path).unwrap();
    assert_eq!((of(&clean[0]).width(), of(&clean[0]).height()), (64, 64));
    assert!(of(&drawn[0]) != of(&clean[0]), "one is as the camera saw it, one has the verdict on it");
    assert_eq!(fs::read_to_string(root.join("keep/mine.txt")).unwrap(), "mine");
}

#[test]
fn a_sample_is_kept_whatever_the_verdict() {
    let text = rejected(&finite(30), "sample-every = 10, verdicts = \"error\", min-free = 0, format = \"jpeg\"");
    let shift = Shift::new(&text.replace("threshold = 0.0", "threshold = 1e9, warn-threshold = 1e9"));
    let (code, said) = shift.finish(&["run", "line.toml"]);
    assert_eq!(code, 0, "{said}");
    let all = files(&shift.path("state/archive/cap"));
    assert_eq!((ending(&all, ".jpg").len(), ending(&all, ".json").len()), (3, 3), "{all:?}");
    let sidecar: Value = serde_json::from_slice(&fs::read(ending(&all, ".json")[0]).unwrap()).unwrap();
    assert_eq!(sidecar["why"], "sample");
}

#[test]
fn a_full_archive_makes_room_and_no_verdict_is_lost() {
    let archive = "max-size = \"60kB\", max-rate = 1000.0, burst = 1000, min-free = 0";
    let shift = Shift::new(&rejected(&finite(200), archive));
    let (code, said) = shift.finish(&["run", "line.toml"]);
    assert!(code == 0 && said.contains("cap: ended: 200 frames, 200 ng"), "{said}");
    let all = files(&shift.path("state/archive/cap"));
    assert!(size(&all) <= 60_000 && size(&all) > 30_000, "{} bytes", size(&all));
    let last = shift.results("cap.jsonl").last().unwrap()["sequence"].as_u64().unwrap();
    assert!(
        ending(&all, ".json").iter().any(|path| path.to_string_lossy().contains(&format!("_{last:09}"))),
        "the newest stay"
    );
}

/// Killed again and again: what is there under its own name is whole, and numbers are used once.
#[test]
fn a_crash_leaves_no_half_picture() {
    let shift = Shift::new(&rejected(LIVE, "max-rate = 1000.0, burst = 1000, min-free = 0"));
    for _ in 0..4 {
        let mut running = shift.start();
        running.until("cap: running");
        running.signal("KILL");
    }
    let (code, said) = {
        let mut running = shift.start();
        running.until("cap: running");
        running.stop()
    };
    assert_eq!(code, 0, "{said}");
    let all = files(&shift.path("state/archive/cap"));
    assert!(ending(&all, ".part").is_empty(), "{all:?}");
    assert!(ending(&all, ".png").iter().all(|path| read_frame(path).is_ok()));
    let sidecars = ending(&all, ".json")
        .into_iter()
        .map(|path| serde_json::from_slice::<Value>(&fs::read(path).unwrap()).unwrap());
    let numbers: Vec<u64> = sidecars.map(|sidecar| sidecar["seq"].as_u64().unwrap()).collect();
    assert!(numbers.len() > 1 && numbers.iter().collect::<BTreeSet<_>>().len() == numbers.len(), "{numbers:?}");
}

#[test]
fn a_folder_that_cannot_be_written_is_named_and_limits_change_in_place() {
    let shift = Shift::new(&(rejected(LIVE, "location = \"file/cap\", min-free = 0") + "attempts = 1\n"));
    fs::write(shift.path("file"), "").unwrap();
    let (code, said) = shift.finish(&["run", "line.toml"]);
    assert_eq!(code, 1, "{said}");
    assert!(said.contains("file/cap") && said.contains("cannot write"), "{said}");
    shift.write(&rejected(LIVE, "min-free = 0"));
    let mut running = shift.start();
    running.until("cap: running");
    shift.write(&rejected(LIVE, "min-free = 0, max-size = \"1MB\", max-age = \"90d\""));
    running.signal("HUP");
    let told = running.until("cap: changed: ");
    assert!(told.contains("max-age, max-size"), "{told}");
    assert_eq!(running.stop().0, 0);
    shift.write(&format!(
        "[defaults]\narchive = {{ location = \"x\" }}\n[[line]]\nname = \"a\"\nmodel = \"MODEL\"\n{LIVE}\n"
    ));
    let (code, said) = shift.finish(&["validate", "line.toml"]);
    assert!(code == 2 && said.contains("defaults.archive") && said.contains("a folder of its own"), "{said}");
    shift.write(&rejected(LIVE, "max-size = \"much\", anotated = true"));
    let (code, said) = shift.finish(&["validate", "line.toml"]);
    assert_eq!(code, 2);
    for expected in [
        "archive.max-size = \"much\": expected a number from 0, or for instance \"5s\" or \"50GB\"",
        "did you mean annotated?",
    ] {
        assert!(said.contains(expected), "{expected}: {said}");
    }
}
