//! Every choice of the method as people use it: it trains, its file loads, the same image gets the same score alone, in
//! company and again, and what it is for happens.

use std::fs;
use std::path::Path;

use serde_json::Value;

mod common;

use common::{CHOICES, PIXELS, diad, names, shop, smoke, teach};

/// Trains with `choice` and asks for the scores of good test images twice over.
fn check(choice: &str, folder: &Path) -> Vec<Value> {
    let shop = shop();
    let (model, images) = (folder.join("m.diad"), shop.parts.join("washer/test/good"));
    teach(choice, &model);
    let scores = |name: &str, batch: usize| {
        let out = folder.join(name);
        let line = format!("predict --model {{}} --input {{}} --jsonl {{}} --batch {batch}");
        diad(&line, &[&model, &images, &out]).ok();
        let text = fs::read_to_string(&out).unwrap();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect::<Vec<Value>>()
    };
    let (alone, together) = (scores("alone.jsonl", 1), scores("together.jsonl", 7));
    assert_eq!(alone.len(), 6);
    for (one, other) in alone.iter().zip(&together) {
        assert!(one["score"].as_f64().unwrap() > 0.0, "{choice}: {one}");
        for key in ["image", "score", "threshold", "verdict", "class", "regions"] {
            assert_eq!(one[key], other[key], "{choice}");
        }
    }
    let again = folder.join("again.diad");
    teach(choice, &again);
    assert!(fs::read(&model).unwrap() == fs::read(&again).unwrap(), "{choice}: the same seed, another model");
    let text = diad("inspect {}", &[&model]).ok().stdout;
    for assignment in choice.split_whitespace().map(|c| c.split_once('=').unwrap().0) {
        assert!(text.contains(assignment), "{assignment} is not in {text}");
    }
    alone
}

#[test]
fn every_choice_trains_loads_and_gives_a_score_that_depends_on_the_image_alone() {
    let mut all: Vec<Vec<Value>> = Vec::new();
    for choice in CHOICES {
        let folder = tempfile::tempdir().unwrap();
        let scores = check(choice, folder.path()).into_iter().map(|row| row["score"].clone()).collect();
        assert!(!all.contains(&scores), "{choice} changes nothing");
        all.push(scores);
    }
}

/// Without guidance it is the network that is told nothing; with all of it, the one that is told the class.
#[test]
fn guidance_goes_from_no_class_to_the_class() {
    let scores = |set: &str| {
        let folder = tempfile::tempdir().unwrap();
        let rows = check(set, folder.path());
        rows.into_iter().map(|row| (row["score"].clone(), row["class"].clone())).collect::<Vec<_>>()
    };
    let base = scores("");
    let none = scores("detection.condition=class detection.guidance=0");
    let told = scores("detection.condition=class");
    assert_eq!(base, none);
    assert_ne!(base, told);
}

#[test]
fn a_model_of_pictures_draws_pictures() {
    let folder = tempfile::tempdir().unwrap();
    check(PIXELS, folder.path());
    let (model, out) = (folder.path().join("m.diad"), folder.path().join("grid.png"));
    let draw = |flags: &str| {
        diad(&format!("sample --model {{}} --out {{}} --count 5 --steps 3 {flags}"), &[&model, &out]).ok();
        fs::read(&out).unwrap()
    };
    let first = draw("--class washer");
    // Three columns of pictures of 128 pixels with gaps of 10.
    let size = |at: usize| u32::from_be_bytes(first[at..at + 4].try_into().unwrap());
    assert_eq!((&first[1..4], size(16), size(20)), (b"PNG".as_slice(), 3 * 138 + 10, 2 * 138 + 10));
    assert!(first == draw("--class washer"), "the same seed draws the same");
    for other in
        ["--class blister", "", "--class washer --seed 9", "--class washer --eta 1", "--class washer --guidance 3"]
    {
        assert!(first != draw(other), "{other}");
    }
    let text = diad("inspect {}", &[&model]).ok().stdout;
    assert!(text.contains("none: pixels"), "{text}");
}

#[test]
fn a_model_of_features_draws_with_patches() {
    let (shop, folder) = (shop(), tempfile::tempdir().unwrap());
    let out = folder.path().join("grid.png");
    let line = "sample --model {} --out {} --count 2 --steps 2 --class washer --data {}";
    diad(line, &[&shop.model, &out, &shop.parts]).ok();
    assert!(fs::read(&out).unwrap().len() > 1000);
    fs::remove_file(&out).unwrap();
    let refused = |flags: &str, what: &str| {
        diad(&format!("sample --model {{}} --out {{}} {flags}"), &[&shop.model, &out]).refused(2, &[what]);
        assert_eq!(names(folder.path()), [""; 0]);
    };
    refused("", "--data");
    refused("--eta 2", "--eta 2: expected");
    refused("--guidance 99", "--guidance 99: expected");
    refused("--class nut", "\"nut\" is not in the model");
    refused("--class auto", "--class auto");
    refused("--data nowhere", "nowhere");
    diad("sample --model {} --out {} --data {} --guidance 2", &[&shop.model, &out, &shop.parts])
        .refused(2, &["guidance is 2"]);
}

#[test]
fn an_ablation_is_a_table_and_goes_on_where_it_was() {
    let (shop, folder) = (shop(), tempfile::tempdir().unwrap());
    let out = folder.path().join("grid");
    let line = "ablate --data {} --out {} --config {} --row base --row steps-2 --row prediction-v";
    let run = diad(line, &[&shop.parts, &out, &smoke()]).ok();
    assert_eq!(names(&out), ["ablation.html", "ablation.json", "ablation.md", "rows", "weights"]);
    assert_eq!(names(&out.join("weights")).len(), 2, "rows that differ in detection share a network");
    let json: Value = serde_json::from_slice(&fs::read(out.join("ablation.json")).unwrap()).unwrap();
    let rows: Vec<_> = json["rows"].as_array().unwrap().iter().map(|row| row["name"].as_str().unwrap()).collect();
    assert_eq!(rows, ["base", "steps-2", "prediction-v"]);
    assert!(
        json["rows"][1]["mean"]["image_auroc"].is_number() && json["rows"][2]["set"][0] == "diffusion.prediction=v"
    );
    assert!(run.stdout.contains("| steps-2 | ") && run.stdout.contains("`detection.ddim_steps=2`"), "{}", run.stdout);
    let page = fs::read_to_string(out.join("ablation.html")).unwrap();
    assert!(page.contains("What each choice costs") && page.matches("<svg").count() == 4, "{page}");

    // Again: nothing is measured anew, and a row lost is measured from its network.
    fs::remove_file(out.join("rows/steps-2.json")).unwrap();
    let again = diad(line, &[&shop.parts, &out, &smoke()]).ok();
    assert_eq!(again.stderr.matches("measured before").count(), 2, "{}", again.stderr);
    assert!(!again.stderr.contains("trained in"), "{}", again.stderr);
    let figures = |json: &Value| json["rows"][1]["mean"].clone();
    let fresh: Value = serde_json::from_slice(&fs::read(out.join("ablation.json")).unwrap()).unwrap();
    assert_eq!(figures(&fresh), figures(&json));
    // Other questions are not answered from memory: the class told, an image moved to another label.
    let told = diad(&format!("{line} --class-known"), &[&shop.parts, &out, &smoke()]).ok();
    assert_eq!(told.stderr.matches("measured before").count(), 0, "{}", told.stderr);
    assert!(!told.stderr.contains("trained in"), "{}", told.stderr);
    // The row is what `train` and `evaluate` give.
    let model = folder.path().join("m.diad");
    let report = folder.path().join("r.json");
    let train = "train --data {} --out {} --config {} --set detection.ddim_steps=2";
    diad(train, &[&shop.parts, &model, &smoke()]).ok();
    diad("evaluate --model {} --data {} --report {}", &[&model, &shop.parts, &report]).ok();
    let report: Value = serde_json::from_slice(&fs::read(&report).unwrap()).unwrap();
    for key in ["image_auroc", "pixel_auroc", "aupro"] {
        assert_eq!(report["mean"][key], json["rows"][1]["mean"][key], "{key}");
    }

    // Files are rows, too, and only those that are asked for.
    fs::write(folder.path().join("mine.toml"), fs::read_to_string(smoke()).unwrap() + "distance = \"l2\"\n").unwrap();
    let line = "ablate --data {} --out {} --config {} --set training.steps=30 --with {}";
    let run = diad(line, &[&shop.parts, &out, &smoke(), &folder.path().join("mine.toml")]).ok();
    assert!(
        run.stdout.contains("| mine | ") && run.stdout.contains("--config") && !run.stdout.contains("base"),
        "{run:?}"
    );
    let twice = "ablate --data {} --out {} --with {} {}";
    diad(twice, &[&shop.parts, &out, &folder.path().join("mine.toml"), &folder.path().join("mine.toml")])
        .refused(2, &["two rows would be called mine"]);

    assert!(diad("ablate --list", &[]).ok().stdout.contains("schedule-ddpm-100"));
    diad("ablate --data {} --out {} --row nonsense", &[&shop.parts, &out]).refused(2, &["nonsense", "--list"]);
    diad("ablate --data {} --out {} --set denoiser.blocks=1", &[&shop.parts, &folder.path().join("new")])
        .refused(2, &["denoiser.blocks = 1"]);
    assert!(!folder.path().join("new").exists());
}
