//! A folder of versions as a line's model: followed while the line runs, and never at the cost of a frame.

use std::collections::BTreeSet;
use std::fs;

use diad::versions::{By, Store};

use super::*;

/// A store with the shop's two models, the first of them in use.
fn store(shift: &Shift) -> PathBuf {
    let root = shift.path("models/bottle");
    let mut store = Store::create(&root, &by()).unwrap();
    for model in [&shop().model, &shop().other] {
        store.add(model, &by()).unwrap();
    }
    store.use_version(1, &by()).unwrap();
    root
}

fn by() -> By {
    By { who: "anna".into(), note: String::new() }
}

fn change(root: &Path) -> Store {
    Store::change(root, &by()).unwrap()
}

fn digest(root: &Path, number: u32) -> String {
    let version = Store::open(root).unwrap().versions().into_iter().find(|version| version.number == number);
    version.unwrap().digest
}

/// Digests of the models that have judged the frames, one after the other.
fn judged_by(results: &[Value]) -> Vec<String> {
    let mut all: Vec<String> =
        results.iter().filter_map(|result| result["results"][0]["model"].as_str().map(str::to_owned)).collect();
    all.dedup();
    all
}

/// Points the link at a file of the folder as if somebody had done so by hand.
fn link(root: &Path, target: &str) {
    std::os::unix::fs::symlink(target, root.join("new")).unwrap();
    fs::rename(root.join("new"), root.join("current")).unwrap();
}

#[test]
fn a_line_follows_the_version_in_use_and_no_frame_goes_without_a_verdict() {
    let shift = Shift::new(&format!(
        "[[line]]\nname = \"cap\"\nmodel = \"models/bottle\"\n{LIVE}\nresults = \"cap.jsonl\"\nfilter = {{ overload-policy = \"block\" }}\n"
    ));
    let root = store(&shift);
    let (first, second) = (digest(&root, 1), digest(&root, 2));
    let mut running = shift.start();
    running.until("cap: running");
    change(&root).use_version(2, &by()).unwrap();
    running.until("cap: changed: model");
    let told = running.until("is at work");
    assert!(told.contains("models/bottle/000002-"), "{told}");
    change(&root).rollback(&by()).unwrap();
    let told = running.until("is at work");
    assert!(told.contains("models/bottle/000001-"), "{told}");

    // A candidate whose tensors are damaged, put in use by hand: the card can be read, the model cannot be loaded.
    let mut bytes = fs::read(&shop().other).unwrap();
    let at = bytes.len() - 5;
    bytes[at] ^= 0x10;
    fs::write(root.join("damaged.diad"), &bytes).unwrap();
    link(&root, "damaged.diad");
    let told = running.until("the model before stays");
    assert!(told.contains("damaged.diad") && told.contains("000001-"), "{told}");
    // And one that is none at all.
    fs::write(root.join("none.diad"), "no model").unwrap();
    link(&root, "none.diad");
    let told = running.until("the model before stays");
    assert!(told.contains("none.diad: is a text file"), "{told}");
    change(&root).use_version(2, &by()).unwrap();
    running.until("000002-");

    let (code, said) = running.stop();
    assert_eq!(code, 0, "{said}");
    assert!(!said.contains("model-error") && !said.contains("camera-lost"), "{said}");
    let results = shift.results("cap.jsonl");
    let numbers = sequence(&results, "cap");
    assert_eq!(numbers, (1..=numbers.len() as u64).collect::<Vec<_>>(), "no frame is missing");
    let verdicts: BTreeSet<&str> =
        results.iter().map(|result| result["results"][0]["verdict"].as_str().unwrap()).collect();
    assert!(verdicts.iter().all(|verdict| ["ok", "warn", "ng"].contains(verdict)), "{verdicts:?}");
    let judged = judged_by(&results);
    assert_eq!(judged[..3], [first.clone(), second, first], "old, new, and old again");
}

/// The line goes on with what it had, also when its pipeline has to be built anew meanwhile.
#[test]
fn a_broken_version_outlives_no_restart_of_the_line() {
    let line = |stop: &str| {
        format!(
            "[[line]]\nname = \"cap\"\nmodel = \"models/bottle\"\n{LIVE}\nresults = \"cap.jsonl\"\nfilter = {{ batch-size = {stop} }}\n"
        )
    };
    let shift = Shift::new(&line("1"));
    let root = store(&shift);
    let mut running = shift.start();
    running.until("cap: running");
    let mut bytes = fs::read(&shop().other).unwrap();
    let at = bytes.len() - 5;
    bytes[at] ^= 0x10;
    fs::write(root.join("damaged.diad"), &bytes).unwrap();
    link(&root, "damaged.diad");
    shift.write(&line("2"));
    running.signal("HUP");
    running.until("cap: changed: built anew");
    running.until("the model before stays");
    running.until("cap: running");
    let (code, said) = running.stop();
    assert!(code == 0 && !said.contains("model-error"), "{said}");
    assert_eq!(judged_by(&shift.results("cap.jsonl")), [digest(&root, 1)]);
}

#[test]
fn a_folder_without_a_version_in_use_is_a_mistake() {
    let shift = Shift::new(&format!("[[line]]\nname = \"cap\"\nmodel = \"models/bottle\"\n{LIVE}\n"));
    Store::create(&shift.path("models/bottle"), &by()).unwrap();
    let (code, said) = shift.finish(&["validate", "line.toml"]);
    assert!(code == 2 && said.contains("line[0].model: models/bottle: is a folder"), "{said}");
    assert!(said.contains("diad models use models/bottle N"), "{said}");
    let root = shift.path("models/bottle");
    let mut store = change(&root);
    store.add(&shop().model, &by()).unwrap();
    store.use_version(1, &by()).unwrap();
    drop(store);
    let (code, said) = shift.finish(&["run", "line.toml", "--print"]);
    assert!(code == 0 && said.contains("model=models/bottle/000001-"), "the element gets the file: {said}");
}
