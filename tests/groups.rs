//! Images of one part: they count as one, stay on one side of every fold, and none that taught a model sets its threshold.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking, in its helpers too")]

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;

mod common;

use common::{Run, diad, names, shop, smoke};

/// A folder of washers: the first `parts` good ones of the shop, `copies` files of each.
fn copies(root: &Path, parts: usize, copies: usize) -> PathBuf {
    let folder = root.join("washer");
    fs::create_dir(&folder).unwrap();
    let from = shop().parts.join("washer/train/good");
    for name in names(&from).into_iter().take(parts) {
        for copy in 0..copies {
            fs::copy(from.join(&name), folder.join(format!("k{copy}_{name}"))).unwrap();
        }
    }
    folder
}

/// Trains with folds; the run, and the report if it ended well.
fn train(data: &Path, more: &str) -> (Run, Value) {
    let folder = tempfile::tempdir().unwrap();
    let (model, report) = (folder.path().join("m.diad"), folder.path().join("r.json"));
    let line = format!("train --data {{}} --out {{}} --config {{}} --set calibration.folds=3 --report {{}} {more}");
    let run = diad(&line, &[data, &model, &smoke(), &report]);
    let report = fs::read(report).map_or(Value::Null, |bytes| serde_json::from_slice(&bytes).unwrap());
    assert_eq!(run.code == 0, report != Value::Null, "{run:?}");
    (run, report)
}

/// Ten files of each of twelve parts: the promise is that of twelve parts, and no part is on both sides of a fold.
#[test]
fn copies_of_parts_do_not_make_a_promise() {
    let root = tempfile::tempdir().unwrap();
    let data = copies(root.path(), 12, 10);
    let (run, report) = train(&data, "");
    assert!(run.stderr.contains("washer: 120 images of 12 parts, by their likeness"), "{run:#?}");
    let class = &report["classes"][0];
    assert_eq!((&class["ng"]["n"], &class["ng"]["groups"]), (&120.into(), &12.into()), "{class}");
    assert!((class["ng"]["false_reject_rate"].as_f64().unwrap() - 1.0 / 13.0).abs() < 1e-9, "{class}");
    assert!(
        run.stdout.contains("set on 12 good parts (120 images), each scored by networks that have not seen it"),
        "{run:#?}"
    );
    // The report lists the images with their groups.
    let images = report["images"]["washer"].as_array().unwrap();
    let group = |end: &str| -> Vec<&Value> {
        let own = images.iter().filter(|image| image["path"].as_str().unwrap().ends_with(end));
        own.map(|image| &image["group"]).collect()
    };
    let first = names(&shop().parts.join("washer/train/good")).remove(0);
    assert!(group(&first).len() == 10 && group(&first).iter().all(|other| *other == group(&first)[0]), "{images:?}");
    // Told that each file is a part, it believes it.
    let (alone, report) = train(&data, "--set calibration.groups=none");
    assert!(alone.stderr.contains("120 images of 120 parts, each taken for a part of its own"), "{alone:#?}");
    assert_eq!(report["classes"][0]["ng"]["groups"], Value::Null);
}

#[test]
fn the_option_is_stronger_than_the_file_and_both_than_likeness() {
    let root = tempfile::tempdir().unwrap();
    let data = copies(root.path(), 12, 2);
    let names = names(&data);
    let csv: Vec<String> = names.iter().enumerate().map(|(i, name)| format!("{name},g{}", i % 8)).collect();
    fs::write(data.join("groups.csv"), format!("path,group\n{}\n", csv.join("\n"))).unwrap();
    let (run, _) = train(&data, "--set training.steps=10 --set training.warmup_steps=1");
    assert!(run.stderr.contains("24 images of 8 parts, as groups.csv says"), "{run:#?}");
    let (run, _) = train(&data, "--group-by _(.+)\\. --set training.steps=10 --set training.warmup_steps=1");
    assert!(run.stderr.contains("24 images of 12 parts, as --group-by says"), "{run:#?}");
}

#[test]
fn mistakes_about_groups_are_told_before_the_work() {
    let root = tempfile::tempdir().unwrap();
    let data = copies(root.path(), 12, 1);
    for (rule, what) in [("folder", "one group"), ("(washer", "unclosed"), ("png", "captures 0 things")] {
        let (run, _) = train(&data, &format!("--group-by {rule}"));
        run.refused(2, &["--group-by", what]);
    }
    fs::write(data.join("groups.csv"), "path,group\nnowhere.png,1\n").unwrap();
    let (run, _) = train(&data, "");
    run.refused(2, &["groups.csv", "line 2", "nowhere.png"]);
}

/// Nothing calibrates on what it learned from.
#[test]
fn calibrate_leaves_out_what_the_model_was_trained_on() {
    let root = tempfile::tempdir().unwrap();
    let data = copies(root.path(), 20, 1);
    let (model, out) = (root.path().join("m.diad"), root.path().join("out.diad"));
    diad("train --data {} --out {} --config {} --set calibration.folds=3", &[&data, &model, &smoke()]).ok();
    let calibrate = |data: &Path| {
        let line = "calibrate --model {} --data {} --class washer --target-fpr 0.2 --out {}";
        diad(line, &[&model, data, &out])
    };
    calibrate(&data).refused(2, &["trained on every one of these images"]);
    assert!(!out.exists(), "nothing half-written");
    // All thirty, some of them under other names and in another format: ten are new.
    let all = root.path().join("all");
    fs::create_dir(&all).unwrap();
    let from = shop().parts.join("washer/train/good");
    for (i, name) in names(&from).iter().enumerate() {
        let to = all.join(format!("new{i}.bmp"));
        image::open(from.join(name)).unwrap().to_rgb8().save(to).unwrap();
    }
    let run = calibrate(&all).ok();
    assert!(run.stderr.contains("20 images left out that the model was trained on"), "{run:#?}");
    assert!(run.stdout.contains("set on 10 good parts, not trained on"), "{run:#?}");
    // And again, on the outcome: what only set thresholds may do so again.
    let again = root.path().join("again.diad");
    let line = "calibrate --model {} --data {} --class washer --target-fpr 0.2 --out {}";
    let run = diad(line, &[&out, &all, &again]).ok();
    assert!(run.stdout.contains("set on 10 good parts, not trained on"), "{run:#?}");
}

/// Pictures that show nothing are named; where there is nothing else, there is nothing to learn.
#[test]
fn empty_pictures_are_named() {
    let root = tempfile::tempdir().unwrap();
    let data = copies(root.path(), 12, 1);
    let black = image::RgbImage::new(64, 64);
    black.save(data.join("black.png")).unwrap();
    let (run, _) = train(&data, "--set training.steps=10 --set training.warmup_steps=1");
    let warnings: Vec<&str> = run.stderr.lines().filter(|line| line.contains("almost black")).collect();
    assert!(warnings.len() == 1 && warnings[0].contains("black.png"), "{run:#?}");
    let only = root.path().join("only");
    fs::create_dir(&only).unwrap();
    (0..12).for_each(|i| black.save(only.join(format!("{i}.png"))).unwrap());
    let (run, _) = train(&only, "");
    run.refused(2, &["only", "every image is of one colour or almost black"]);
}

/// An image of another product among the good ones is named, and its picture is on the page, with its percentile.
#[test]
fn good_images_that_stand_out_are_shown() {
    let root = tempfile::tempdir().unwrap();
    let data = copies(root.path(), 20, 1);
    let other = shop().parts.join("blister/train/good");
    let name = names(&other).remove(0);
    fs::copy(other.join(&name), data.join("strange.png")).unwrap();
    let page = root.path().join("page.html");
    let (run, _) = train(&data, &format!("--html {}", page.display()));
    let run = run.ok();
    let named: Vec<&str> = run.stderr.lines().filter(|line| line.contains("unlike the other good")).collect();
    assert!(named.len() == 1 && named[0].contains("strange.png") && named[0].contains("at percentile"), "{run:#?}");
    let page = fs::read_to_string(page).unwrap();
    assert_eq!(page.matches("data:image/png;base64,").count(), 1, "{page}");
    assert!(page.contains("<code>strange.png</code>") && page.contains("percentile "), "{page}");
    assert!(page.contains("good parts rejected: at most"), "what is promised\n{page}");
}
