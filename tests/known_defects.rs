//! A few known defects teach the score where that helps, and are no part of what a model is measured on.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking, in its helpers too")]

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;

mod common;

use common::{diad, names, shop, smoke};

/// A product in `root`: washers, of which every second one teaches; those of the other half with a faint patch are its defects, in
/// `test/patch` with masks, the first as it is in `test/good`.
fn product(root: &Path) -> PathBuf {
    const FIRST_DEFECT: usize = 14;
    let folder = root.join("washer");
    let from = shop().parts.join("washer/train/good");
    for place in ["train/good", "test/good", "test/patch", "ground_truth/patch"] {
        fs::create_dir_all(folder.join(place)).unwrap();
    }
    for (i, name) in names(&from).into_iter().enumerate() {
        let place = if i % 2 == 0 || i < FIRST_DEFECT { "train/good" } else { "test/good" };
        fs::copy(from.join(&name), folder.join(place).join(&name)).unwrap();
        if i % 2 == 0 || i < FIRST_DEFECT {
            continue;
        }
        let mut part = image::open(from.join(&name)).unwrap().to_rgb8();
        let mut mask = image::GrayImage::new(part.width(), part.height());
        let (left, top) = (16 + 8 * (i as u32 % 3), 16 + 8 * (i as u32 % 4));
        for (x, y) in (left..left + 6).flat_map(|x| (top..top + 6).map(move |y| (x, y))) {
            let image::Rgb([r, g, b]) = *part.get_pixel(x, y);
            part.put_pixel(x, y, image::Rgb([r.saturating_add(6), g.saturating_sub(6), b]));
            mask.put_pixel(x, y, image::Luma([255]));
        }
        part.save(folder.join("test/patch").join(&name)).unwrap();
        mask.save(folder.join("ground_truth/patch").join(name.replace(".png", "_mask.png"))).unwrap();
    }
    folder
}

fn card(model: &Path) -> Value {
    serde_json::from_str(&diad("inspect {} --json", &[model]).ok().stdout).unwrap()
}

/// What `inspect --json` says of the only class's known defects.
fn known(model: &Path) -> Value {
    let card = card(model);
    let classes = card.get("classes").or_else(|| card.pointer("/card/classes")).unwrap();
    classes[0]["known_defects"].clone()
}

#[test]
fn defects_teach_the_score_and_are_left_out_of_the_evaluation() {
    let root = tempfile::tempdir().unwrap();
    let data = product(root.path());
    let (plain, taught, report) =
        (root.path().join("plain.diad"), root.path().join("taught.diad"), root.path().join("r.json"));
    let line = "train --data {} --out {} --config {} --set calibration.folds=3";
    diad(line, &[&data, &plain, &smoke()]).ok();
    let run = diad(&format!("{line} --defects {{}}"), &[&data, &taught, &smoke(), &data]).ok();
    assert!(run.stderr.contains("washer: 8 known defects, 8 with a mask"), "{run:#?}");
    assert!(run.stdout.contains("the score uses what they teach") && run.stdout.contains("of 8 pass"), "{run:#?}");
    let known = known(&taught);
    assert_eq!((&known["taught"], known["images"].as_array().unwrap().len()), (&true.into(), 8), "{known}");
    assert!(known["auroc_with"].as_f64().unwrap() > known["auroc_without"].as_f64().unwrap(), "{known}");

    // The line scores with it: what taught stands out, more than before.
    let first = names(&data.join("test/patch")).remove(0);
    let (good, bad) = (data.join("test/good").join(&first), data.join("test/patch").join(&first));
    let score = |model: &Path, image: &Path| -> f64 {
        let run = diad("predict --model {} --input {} --jsonl -", &[model, image]);
        let line: Value = serde_json::from_str(run.stdout.lines().next().unwrap()).unwrap();
        line["score"].as_f64().unwrap()
    };
    let lead = |model: &Path| score(model, &bad) / score(model, &good);
    assert!(lead(&taught) > lead(&plain), "{} {}", lead(&taught), lead(&plain));

    // Evaluation names them and does not count them.
    fs::write(data.join("ground_truth/patch/unused.txt"), "").unwrap();
    let run = diad("evaluate --model {} --data {} --report {}", &[&taught, &data, &report]);
    assert!(run.stderr.contains("8 test images left out that the model was made with"), "{run:#?}");
    let report: Value = serde_json::from_slice(&fs::read(&report).unwrap()).unwrap();
    assert_eq!(report["images"].as_array().unwrap().len(), 8, "the good ones");
}

/// On a finished model: taught, shown, kept by a further calibration, and taken away when the next defects are of no use.
#[test]
fn a_finished_model_learns_defects_and_forgets_them() {
    let root = tempfile::tempdir().unwrap();
    let data = product(root.path());
    let [model, taught, again, none] = ["m", "taught", "again", "none"].map(|name| root.path().join(name));
    diad("train --data {} --out {} --config {}", &[&data, &model, &smoke()]).ok();
    let fresh = root.path().join("fresh");
    fs::create_dir(&fresh).unwrap();
    for from in ["washer/test/good", "blister/test/good"].map(|place| shop().parts.join(place)) {
        for name in names(&from) {
            let kind = from.parent().unwrap().parent().unwrap().file_name().unwrap().to_str().unwrap();
            fs::copy(from.join(&name), fresh.join(format!("{kind}-{name}"))).unwrap();
        }
    }
    let line = "calibrate --model {} --data {} --class washer --target-fpr 0.2 --out {}";
    let with = |model: &Path, out: &Path, defects: &Path| {
        diad(&format!("{line} --defects {{}}"), &[model, &fresh, out, defects])
    };
    let run = with(&model, &taught, &data).ok();
    let first = known(&taught);
    assert_eq!(first["images"].as_array().unwrap().len(), 8, "{run:#?}");
    let says = if first["taught"] == true { "the score uses what they teach" } else { "is left out" };
    assert!(run.stdout.contains(says), "{run:#?}");

    // Without the option they stay.
    diad(line, &[&taught, &fresh, &again]).ok();
    assert_eq!(known(&again), first);
    // One of them among the good parts is a contradiction.
    let name = names(&data.join("test/patch")).remove(0);
    fs::copy(data.join("test/patch").join(name), fresh.join("patched.png")).unwrap();
    let refused = root.path().join("refused");
    diad(line, &[&taught, &fresh, &refused]).refused(2, &["patched.png", "taught this image as a defect"]);
    assert!(!refused.exists());
    fs::remove_file(fresh.join("patched.png")).unwrap();

    // Good parts called defects teach nothing, and what was taught before is gone.
    let fake = root.path().join("fake");
    fs::create_dir(&fake).unwrap();
    let from = data.join("test/good");
    for name in names(&from).iter().take(5) {
        fs::copy(from.join(name), fake.join(name)).unwrap();
    }
    let run = with(&taught, &none, &fake).ok();
    assert!(run.stdout.contains("does not help and is left out"), "{run:#?}");
    let now = known(&none);
    assert_eq!((&now["taught"], now["images"].as_array().unwrap().len()), (&false.into(), 5), "{now}");
    diad("predict --model {} --input {}", &[&none, &from]); // it loads
}

#[test]
fn mistakes_about_defects_are_told_before_the_work() {
    let root = tempfile::tempdir().unwrap();
    let data = product(root.path());
    let out = root.path().join("m.diad");
    let train = |defects: &Path, more: &str| {
        let line = format!("train --data {{}} --out {{}} --config {{}} --defects {{}} {more}");
        let run = diad(&line, &[&data, &out, &smoke(), defects]);
        assert!(run.code == 0 || !out.exists(), "nothing half-written");
        run
    };
    train(&root.path().join("nowhere"), "").refused(2, &["nowhere", "does not exist"]);
    let empty = root.path().join("empty");
    fs::create_dir(&empty).unwrap();
    train(&empty, "").refused(2, &["empty", "expected images of defects", "washer"]);
    train(&data, "--set detection.distance=l2").refused(2, &["--defects", "detection.distance"]);
    // A good image among the defects, under another name.
    let name = names(&data.join("train/good")).remove(3);
    fs::copy(data.join("train/good").join(&name), empty.join("broken.png")).unwrap();
    train(&empty, "").refused(2, &["broken.png", &name, "among the good ones"]);
    // Two say how many escape, and teach nothing.
    let two = root.path().join("two");
    fs::create_dir(&two).unwrap();
    for name in names(&data.join("test/patch")).iter().take(2) {
        fs::copy(data.join("test/patch").join(name), two.join(name)).unwrap();
    }
    let run = train(&two, "").ok();
    assert!(run.stderr.contains("too few known defects to teach anything (at least 3)"), "{run:#?}");
    assert!(run.stdout.contains("2 known defects; too few to teach anything") && run.stdout.contains("of 2 pass"));
}
