//! The real program on drawn parts: what it says, what it leaves, its exit codes.
//!
//! The tests are few and long because each may run in a process of its own and all share one trained model.

use std::fs;
use std::io::{BufRead as _, BufReader, Read as _};
use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::Value;

mod common;

use common::{DIAD, command, diad, finished, names, shop, smoke};

const COMMANDS: [&str; 16] = [
    "train",
    "evaluate",
    "predict",
    "calibrate",
    "inspect",
    "validate",
    "bench",
    "advise",
    "sample",
    "ablate",
    "coverage",
    "backbone",
    "models",
    "label",
    "run",
    "demo",
];

#[test]
fn help_is_there_for_every_command() {
    let help = diad("--help", &[]).ok().stdout;
    for name in COMMANDS {
        assert!(help.lines().any(|line| line.trim_start().starts_with(name)), "{name} is not in {help}");
        if name == "run" {
            continue; // that of diad-run, which is another package's
        }
        let own = diad(&format!("{name} --help"), &[]).ok();
        assert!(own.stdout.contains("Usage: diad ") && own.stderr.is_empty(), "{own:#?}");
    }
    let listed = help.lines().skip_while(|line| *line != "Commands:").skip(1).take_while(|line| !line.is_empty());
    let listed: Vec<&str> = listed.filter_map(|line| line.split_whitespace().next()).collect();
    assert_eq!(listed, [&COMMANDS[..], &["help"]].concat(), "a new command belongs into this test");
    assert!(diad("--version", &[]).ok().stdout.starts_with("diad "));
    assert!(help.contains("130"), "exit codes are in the manual");
    let nothing = diad("", &[]);
    assert_eq!(nothing.code, 2);
    assert!(nothing.stderr.contains("Usage:"), "{nothing:#?}");
}

/// Without the package that has it, `diad run` says which that is, and so does the check of a file of lines.
#[test]
fn running_lines_needs_another_package() {
    let folder = tempfile::tempdir().unwrap();
    let alone = folder.path().join("diad");
    fs::copy(env!("CARGO_BIN_EXE_diad"), &alone).unwrap();
    fs::write(folder.path().join("line.toml"), "schema = 1\n[[line]]\nname = \"a\"\n").unwrap();
    for arguments in [["run", "line.toml"], ["validate", "line.toml"]] {
        let mut command = std::process::Command::new(&alone);
        let output = command.args(arguments).current_dir(folder.path()).env("PATH", "").output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(2), "{said}");
        assert!(said.contains("diad-run") && said.contains("gst-plugin-diad"), "{said}");
    }
    let mut command = std::process::Command::new(&alone);
    fs::write(folder.path().join("train.toml"), "[training]\nsteps = 5\n").unwrap();
    let output = command.args(["validate", "train.toml", "--probe"]).current_dir(folder.path()).output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&output.stderr).contains("--probe: train.toml has no [[line]]"));
}

#[test]
fn wrong_use_is_refused_before_work_with_one_message_and_code_2() {
    let shop = shop();
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let (nothing, out) = (at("nothing"), at("out"));
    fs::create_dir_all(at("empty")).unwrap();
    fs::create_dir_all(at("untrained/test/good")).unwrap();
    fs::write(at("text.txt"), "not an image").unwrap();
    fs::write(at("wrong.toml"), "[training]\nstep = 5\nbatch_size = 0\n").unwrap();
    fs::create_dir_all(at("busy")).unwrap();
    fs::write(at("busy/thesis.txt"), "x").unwrap();
    let before = names(folder.path());
    let (data, model) = (shop.parts.as_path(), shop.model.as_path());
    let (empty, untrained, wrong) = (at("empty"), at("untrained"), at("wrong.toml"));
    let (far, busy) = (at("no/where.json"), at("busy"));
    let (washer, proc) = (data.join("washer/train/good"), Path::new("/proc/m.diad"));

    let cases: &[(&str, &[&Path], &[&str])] = &[
        ("frobnicate", &[], &["frobnicate"]),
        ("train --data {}", &[data], &["--out"]),
        ("train --data {} --out {}", &[&nothing, &out], &["nothing"]),
        ("train --data {} --out {}", &[&empty, &out], &["empty", "image"]),
        ("train --data {} --out {}", &[&untrained, &out], &["untrained"]),
        ("train --data {} --out {} --class bolt", &[data, &out], &["bolt", "washer"]),
        (
            "train --data {} --out {} --config {}",
            &[data, &out, &wrong],
            &["wrong.toml", "line 2", "steps", "batch_size"],
        ),
        ("train --data {} --out {} --config {}", &[data, &out, &nothing], &["nothing"]),
        ("train --data {} --out {} --set training.step=5", &[data, &out], &["training.step", "steps"]),
        ("train --data {} --out {} --set training.learning_rate=-1", &[data, &out], &["learning_rate", "-1"]),
        ("train --data {} --out {} --set training.steps", &[data, &out], &["KEY=VALUE"]),
        ("train --data {} --out {} --seed x", &[data, &out], &["--seed"]),
        ("train --data {} --out {}", &[data, &far], &["where.json"]),
        ("train --data {} --out {}", &[data, &empty], &["empty"]),
        ("train --data {} --out {}", &[data, proc], &["/proc/m.diad"]),
        ("train --data {} --out {} --report {}", &[data, &out, &far], &["where.json"]),
        ("train --data {} --out {} --resume", &[data, &out], &["out.checkpoint", "--resume"]),
        ("train --data {} --out {} --backbone {}", &[data, &out, &nothing], &["nothing"]),
        ("train --data {} --out {} --config {} --set calibration.target_fpr=0.001", &[data, &out, &smoke()], &["999"]),
        ("evaluate --model {} --data {}", &[&nothing, data], &["nothing"]),
        ("evaluate --model {} --data {}", &[&empty, data], &["empty", "folder"]),
        ("evaluate --model {} --data {}", &[model, &nothing], &["nothing"]),
        ("evaluate --model {} --data {}", &[model, &washer], &["test/good"]),
        ("evaluate --model {} --data {} --html {}", &[model, data, &far], &["where.json"]),
        ("evaluate --model {} --data {} --ddim-steps 0", &[model, data], &["steps"]),
        ("evaluate --model {} --data {} --batch 0", &[model, data], &["--batch"]),
        ("predict --model {} --input {}", &[&nothing, data], &["nothing"]),
        ("predict --model {} --input {}", &[model, &nothing], &["nothing"]),
        ("predict --model {} --input {}", &[model, &empty], &["empty"]),
        ("predict --model {} --input {} --class bolt", &[model, &washer], &["bolt", "washer"]),
        ("predict --model {} --input {} --out {}", &[model, &washer, &at("text.txt")], &["text.txt"]),
        ("predict --model {} --input {} --jsonl {}", &[model, &washer, &far], &["where.json"]),
        ("calibrate --model {} --data {} --target-fpr 0.1 --out {}", &[&nothing, data, &out], &["nothing"]),
        ("calibrate --model {} --data {} --target-fpr 0.1 --out {}", &[model, &nothing, &out], &["nothing"]),
        ("calibrate --model {} --data {} --target-fpr 0.01 --out {}", &[model, data, &out], &["99", "30"]),
        ("calibrate --model {} --data {} --target-fpr 7 --out {}", &[model, data, &out], &["--target-fpr", "7"]),
        ("calibrate --model {} --data {} --target-fpr 0.1 --out {}", &[model, &washer, &out], &["good", "--class"]),
        ("inspect {}", &[&nothing], &["nothing"]),
        ("validate {}", &[&wrong], &["line 2", "steps", "batch_size"]),
        ("validate {}", &[&nothing], &["nothing"]),
        ("bench --model {}", &[&nothing], &["nothing"]),
        ("models list {}", &[&nothing], &["nothing", "journal.jsonl"]),
        ("models use {} 1", &[&empty], &["empty", "journal.jsonl"]),
        ("models add {} {}", &[&busy, model], &["busy", "journal.jsonl"]),
        ("models prune {} --keep 0", &[&empty], &["--keep"]),
        ("label {} good", &[&at("text.txt")], &["text.txt", "archive"]),
        ("label {} perfect", &[&at("text.txt")], &["perfect", "good, bad"]),
        ("bench --model {} --batch 0", &[model], &["--batch"]),
        ("backbone import {} --out {}", &[&nothing, &out], &["nothing"]),
        ("demo --out {}", &[&busy], &["busy", "--out"]),
        ("demo --images 3", &[], &["--images"]),
    ];
    for (line, paths, what) in cases {
        let run = diad(line, paths).refused(2, what);
        assert_eq!(run.stdout, "", "{line}: {run:#?}");
        assert_eq!(names(folder.path()), before, "{line} left something");
    }
    assert_eq!(names(&busy), ["thesis.txt"]);
}

#[test]
fn what_fails_while_working_is_named_and_ends_with_code_1() {
    let shop = shop();
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let images = shop.parts.join("washer/test/good");
    let bytes = fs::read(&shop.model).unwrap();

    // Model files that are none, are cut off, or come from the future.
    fs::write(at("text.diad"), "not a model").unwrap();
    fs::write(at("short.diad"), &bytes[..bytes.len() - 1]).unwrap();
    let mut newer = bytes.clone();
    let mark = br#"\"schema\":2"#;
    let place = newer.windows(mark.len()).position(|window| window == mark).unwrap() + mark.len() - 1;
    newer[place] = b'9';
    fs::write(at("newer.diad"), &newer).unwrap();
    let mut damaged = bytes.clone();
    let last = damaged.len() - 5;
    damaged[last] ^= 0x10;
    fs::write(at("damaged.diad"), &damaged).unwrap();
    let before = names(folder.path());
    for (name, what) in [("text", ""), ("short", ""), ("newer", "schema 9"), ("damaged", "")] {
        let file = at(&format!("{name}.diad"));
        let named = file.display().to_string();
        diad("predict --model {} --input {}", &[&file, &images]).refused(1, &[&named, what]);
        diad("evaluate --model {} --data {}", &[&file, &shop.parts]).refused(1, &[&named, what]);
        diad("bench --model {}", &[&file]).refused(1, &[&named, what]);
        if name != "damaged" {
            diad("inspect {}", &[&file]).refused(1, &[&named, what]);
        }
        let calibrate = "calibrate --model {} --data {} --target-fpr 0.1 --out {}";
        diad(calibrate, &[&file, &shop.parts, &at("out.diad")]).refused(1, &[&named, what]);
    }
    diad("backbone import {} --out {}", &[&at("text.diad"), &at("w.safetensors")]).refused(1, &["text.diad"]);

    // A disk that is full.
    let full = Path::new("/dev/full");
    for line in ["evaluate --model {} --data {} --report {}", "evaluate --model {} --data {} --html {}"] {
        diad(line, &[&shop.model, &shop.parts, full]).refused(1, &["/dev/full"]);
    }
    diad("predict --model {} --input {} --jsonl {}", &[&shop.model, &images, full]).refused(1, &["/dev/full"]);
    let stdout = fs::File::options().write(true).open(full).unwrap();
    let output = command("inspect {}", &[&shop.model]).stdout(stdout).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.code() == Some(1) && said.contains("standard output"), "{said}");
    assert_eq!(names(folder.path()), before, "nothing half-written stays");

    // A disk that is full before the last line, or the first picture: what is there is whole.
    let limited = |flag: &str, path: &Path| {
        let mut shell = Command::new("bash");
        shell.args(["-c", "trap '' XFSZ; ulimit -f 1; exec \"$0\" \"$@\"", DIAD, "predict", "--quiet", flag]).arg(path);
        shell.arg("--model").arg(&shop.model).arg("--input").arg(&images);
        finished(shell)
    };
    let said = limited("--jsonl", &at("few.jsonl")).refused(1, &["few.jsonl", "the lines before it are kept"]);
    let lines = fs::read_to_string(at("few.jsonl")).unwrap();
    let rows = said.stdout.lines().count() - 1;
    assert!((1..6).contains(&rows) && lines.lines().count() == rows && lines.ends_with('\n'), "{lines:?}");
    assert!(lines.lines().all(|line| serde_json::from_str::<Value>(line).unwrap()["score"].is_number()));
    fs::remove_file(at("few.jsonl")).unwrap();
    limited("--out", &at("heat")).refused(1, &["_heat.png"]);
    assert!(names(&at("heat")).is_empty(), "no picture fits");
    fs::remove_dir(at("heat")).unwrap();

    // An image that cannot be read does not stop the others.
    let mixed = at("mixed");
    fs::create_dir(&mixed).unwrap();
    fs::copy(images.join(&names(&images)[0]), mixed.join("a.png")).unwrap();
    fs::write(mixed.join("b.png"), "no picture").unwrap();
    fs::copy(images.join(&names(&images)[1]), mixed.join("c.png")).unwrap();
    fs::write(mixed.join("notes.txt"), "x").unwrap();
    // Strips whose number overflows: the decoder panics, where it is built with checks.
    let tags: [(u16, u32); 10] = [
        (256, 16),
        (257, 1 << 17),
        (258, 8),
        (259, 1),
        (262, 2),
        (273, 8),
        (277, 65_535),
        (278, 1),
        (279, 1),
        (284, 2),
    ];
    let mut tiff = [&b"II*\0\x08\0\0\0"[..], &(tags.len() as u16).to_le_bytes()].concat();
    for (tag, value) in tags {
        tiff.extend([&tag.to_le_bytes()[..], &4u16.to_le_bytes(), &1u32.to_le_bytes(), &value.to_le_bytes()].concat());
    }
    fs::write(mixed.join("d.tif"), [&tiff[..], &[0; 16]].concat()).unwrap();
    let run = diad("predict --model {} --input {} --jsonl -", &[&shop.model, &mixed]);
    let run = run.refused(1, &["2 of 4", "b.png", "d.tif"]);
    assert!(run.stderr.contains("1 file"), "what was passed over is told: {}", run.stderr);
    let lines: Vec<Value> = run.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines.len(), 4);
    assert_eq!((&lines[1]["verdict"], &lines[3]["verdict"]), (&"error".into(), &"error".into()));
    assert!(lines[1]["error"].as_str().unwrap().contains("b.png"));
    assert!(lines[0]["score"].is_number() && lines[2]["score"].is_number());
}

/// Versions are added, used, rolled back, checked and removed; their folder is a model to the other commands.
#[test]
fn a_folder_of_versions_stands_for_the_one_in_use() {
    let shop = shop();
    let folder = tempfile::tempdir().unwrap();
    let (store, second) = (folder.path().join("models/bottle"), folder.path().join("second.diad"));
    diad("train --data {} --out {} --config {} --seed 5", &[&shop.parts, &second, &smoke()]).ok();

    let text = folder.path().join("text.diad");
    fs::write(&text, "no model").unwrap();
    diad("models add {} {}", &[&store, &text]).refused(1, &["text.diad", "text file"]);
    assert!(!store.exists(), "no folder for a file that is no model");
    let add = "models add {} {} --who anna --note first";
    assert!(diad(add, &[&store, &shop.model]).ok().stdout.contains("added as version 1"));
    assert!(diad(add, &[&store, &shop.model]).ok().stdout.contains("already: nothing is added; version 1"));
    assert!(diad(add, &[&store, &second]).ok().stdout.contains("added as version 2"));
    diad("inspect {}", &[&store]).refused(2, &["is a folder", "diad models use"]);
    diad("models use {} 7", &[&store]).refused(2, &["no version 7", "one of 1, 2"]);
    diad("models rollback {}", &[&store]).refused(2, &["no version was in use before"]);

    let digest = |model: &Path| -> String {
        let json: Value = serde_json::from_str(&diad("inspect {} --json", &[model]).ok().stdout).unwrap();
        json["digest"].as_str().unwrap().to_owned()
    };
    for (line, now) in [("use {} 1", &shop.model), ("use {} 2", &second), ("rollback {}", &shop.model)] {
        diad(&format!("models {line} --who anna"), &[&store]).ok();
        assert_eq!(digest(&store), digest(now), "{line}");
    }
    let images = shop.parts.join("washer/test/good");
    let predict = |model: &Path| diad("predict --model {} --input {}", &[model, &images]).ok().stdout;
    assert_eq!(predict(&store), predict(&shop.model));
    diad("models use {} 2", &[&store]).ok();

    let table = diad("models list {}", &[&store]).ok().stdout;
    let rows: Vec<&str> = table.lines().collect();
    assert!(rows.len() == 3 && rows[1].starts_with("before") && rows[2].starts_with("in use"), "{table}");
    assert!(rows[1].contains(&digest(&shop.model)[..12]) && rows[1].contains("anna") && rows[1].contains("first"));
    let json: Value = serde_json::from_str(&diad("models list {} --json", &[&store]).ok().stdout).unwrap();
    assert_eq!((&json[1]["number"], &json[1]["in_use"], &json[0]["before"]), (&2.into(), &true.into(), &true.into()));
    assert_eq!(json[0]["model"]["classes"].as_array().unwrap().len(), 2);

    assert!(diad("models verify {}", &[&store]).ok().stdout.contains("2 versions, 6 lines in the journal, no faults"));
    let journal = fs::read_to_string(store.join("journal.jsonl")).unwrap();
    fs::write(store.join("journal.jsonl"), journal.replacen("anna", "ben", 1)).unwrap();
    let file = store.join(names(&store).into_iter().find(|name| name.starts_with("000002")).unwrap());
    let mut bytes = fs::read(&file).unwrap();
    let last = bytes.len() - 5;
    bytes[last] ^= 1;
    fs::write(&file, bytes).unwrap();
    let run = diad("models verify {}", &[&store]).refused(1, &["2 faults"]);
    assert!(run.stdout.contains("journal.jsonl: line 2: prev is ") && run.stdout.contains("000002-"), "{run:#?}");
    assert!(run.stdout.contains("is damaged"), "{run:#?}");
    let run = diad("models rollback {}", &[&store]).ok();
    assert!(run.stdout.contains("version 1 is in use, in place of 2"), "the way back does not wait: {run:#?}");
    assert!(run.stderr.contains("warning: journal.jsonl: line 2"), "{run:#?}");
    assert!(diad("models prune {} --keep 1", &[&store]).ok().stdout.contains("nothing to remove"));
}

#[test]
fn a_part_of_an_archive_gets_a_label() {
    let folder = tempfile::tempdir().unwrap();
    let at = |end: &str| folder.path().join(format!("20261123T141503.127Z_ng_000123456_P4711.{end}"));
    fs::write(at("png"), "picture").unwrap();
    fs::write(at("json"), "{}").unwrap();
    diad("label {} bad --who anna --note scratch", &[&at("png")]).ok();
    let run = diad("label {} good --who ben", &[&at("json")]).ok();
    assert!(run.stdout.contains("good; before that bad, by anna"), "{run:#?}");
    let label: Value = serde_json::from_slice(&fs::read(at("label.json")).unwrap()).unwrap();
    assert_eq!((&label["label"], &label["who"], &label["schema"]), (&"good".into(), &"ben".into(), &1.into()));
    assert_eq!((&label["history"][0]["label"], &label["history"][0]["note"]), (&"bad".into(), &"scratch".into()));
}

/// From the shared model through every command that reads one.
#[test]
fn a_model_is_evaluated_asked_calibrated_and_inspected() {
    let shop = shop();
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);

    // Evaluate: twice the same figures, whatever the batch.
    let evaluate = |name: &str, flags: &str| -> (Value, String) {
        let line = format!("evaluate --model {{}} --data {{}} --report {{}} {flags}");
        let run = diad(&line, &[&shop.model, &shop.parts, &at(name)]).ok();
        let mut report: Value = serde_json::from_slice(&fs::read(at(name)).unwrap()).unwrap();
        let ms = report.as_object_mut().unwrap().remove("ms_per_image").unwrap();
        assert!(ms["p50"].as_f64().unwrap() > 0.0);
        (report, run.stdout)
    };
    let (report, table) = evaluate("a.json", "--batch 1");
    assert_eq!(report, evaluate("b.json", "--batch 8").0);
    assert_eq!(report, evaluate("c.json", "--batch 8").0);
    assert_eq!(report["schema"], 2);
    assert_eq!(report["images"].as_array().unwrap().len(), 2 * 13);
    let washer = &report["classes"]["washer"];
    assert_eq!((washer["n_good"].as_u64(), washer["n_defect"].as_u64()), (Some(6), Some(7)));
    for key in ["image_auroc", "image_ap", "image_f1max", "pixel_auroc", "pixel_ap", "pixel_f1max", "aupro"] {
        let (own, mean) = (washer[key].as_f64().unwrap(), report["mean"][key].as_f64().unwrap());
        assert!((0.0..=1.0).contains(&own) && (0.0..=1.0).contains(&mean), "{key}: {own} {mean}");
    }
    for key in ["false_reject_rate", "escape_rate", "escape_ok_rate", "threshold"] {
        assert!(washer[key].is_number(), "{key}");
    }
    assert_eq!(washer["n_groups_good"], 6, "every image is a part of its own");
    assert!(washer["allowed"]["escape_rate"].is_number(), "{washer}");
    // The point of the trade at the promise that the model made is what happened.
    let trade = washer["trade"].as_array().unwrap();
    let own = trade.iter().find(|point| point["promised"] == washer["promised_false_reject_rate"]);
    for key in ["threshold", "false_reject_rate", "escape_rate"].into_iter().filter(|_| own.is_some()) {
        assert_eq!(own.unwrap()[key], washer[key], "{key}");
    }
    assert!(!trade.is_empty(), "{washer}");
    assert!(table.contains("washer") && table.contains("mean"), "{table}");

    // The class is told, the baselines are measured, the page is written.
    let (known, table) = evaluate("d.json", "--class-known --baselines --html page.html");
    fs::remove_file("page.html").unwrap();
    assert!(known["images"].as_array().unwrap().iter().all(|image| image["class_source"] == "known"));
    assert_eq!(known["baselines"].as_object().unwrap().len(), 3);
    for (name, baseline) in known["baselines"].as_object().unwrap() {
        let blister = &baseline["classes"]["blister"];
        assert!(blister["pixel_auroc"].is_number(), "{name}: {baseline}");
        let decision = |key: &str| blister["decision"][key].as_f64().unwrap();
        assert!(
            decision("threshold") > 0.0 && (0.0..=1.0).contains(&decision("false_reject_rate")),
            "{name}: {baseline}"
        );
        assert_eq!(baseline["mean"]["decision"]["threshold"], Value::Null, "of several classes");
        assert!(table.contains(name), "{table}");
    }

    // Predict: a row per image, one object per image, one picture per image.
    let images = shop.parts.join("blister/test/good");
    let line = "predict --model {} --input {} --out {} --jsonl {} --class blister";
    let run = diad(line, &[&shop.model, &images, &at("heat"), &at("lines.jsonl")]).ok();
    assert_eq!(run.stdout.lines().count(), 1 + 6, "{}", run.stdout);
    let lines = fs::read_to_string(at("lines.jsonl")).unwrap();
    let lines: Vec<Value> = lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines.len(), 6);
    for line in &lines {
        assert!(["ok", "warn", "ng"].contains(&line["verdict"].as_str().unwrap()), "{line}");
        assert_eq!((line["class"].as_str(), line["class_source"].as_str()), (Some("blister"), Some("known")));
        assert_eq!((line["width"].as_u64(), line["height"].as_u64()), (Some(64), Some(64)));
        for key in ["score", "threshold", "warn_threshold", "percentile"] {
            assert!(line[key].is_number(), "{key} in {line}");
        }
    }
    assert_eq!(names(&at("heat")).len(), 6);
    let picture = diad::frame::read_frame(&at("heat").join(&names(&at("heat"))[0])).unwrap();
    assert_eq!((picture.width(), picture.height()), (64, 64));

    // One image alone gets the score it got among others, and as the evaluation saw it.
    let one = images.join(&names(&images)[0]);
    let run = diad("predict --model {} --input {} --class blister --jsonl - --batch 1", &[&shop.model, &one]).ok();
    let alone: Value = serde_json::from_str(&run.stdout).unwrap();
    assert_eq!(alone["score"], lines[0]["score"]);
    let relative = format!("blister/test/good/{}", names(&images)[0]);
    let evaluated =
        known["images"].as_array().unwrap().iter().find(|image| image["path"] == relative.as_str()).unwrap();
    assert_eq!(evaluated["score"], alone["score"]);

    // A defective part is ng: its score is far above the threshold, and still the command has done its work.
    let defects = shop.parts.join("blister/test/missing");
    let run = diad("predict --model {} --input {}", &[&shop.model, &defects]).ok();
    assert!(run.stdout.contains("blister"), "{}", run.stdout);

    // Calibrate: other thresholds, the same tensors. Of thirty images 21 taught the model, the others had set its threshold.
    let line = "calibrate --model {} --data {} --target-fpr 0.2 --out {} --class washer";
    diad(line, &[&shop.model, &images.parent().unwrap().parent().unwrap().join("train/good"), &at("x.diad")]).ok();
    let line = "calibrate --model {} --data {} --target-fpr 0.2 --warn-fpr 0.4 --out {}";
    let run = diad(line, &[&shop.model, &shop.parts, &at("new.diad")]).ok();
    assert!(run.stdout.contains("20 %") && run.stderr.contains("21 images left out"), "{run:#?}");
    let card =
        |file: &Path| -> Value { serde_json::from_str(&diad("inspect --json {}", &[file]).ok().stdout).unwrap() };
    let (old, new) = (card(&shop.model), card(&at("new.diad")));
    assert_eq!(old["card"]["tensors_sha256"], new["card"]["tensors_sha256"]);
    assert_ne!(old["digest"], new["digest"]);
    assert_eq!(new["card"]["classes"][0]["ng"]["n"], 9);
    assert_eq!(new["card"]["classes"][0]["ng"]["false_reject_rate"], 0.2);
    diad("predict --model {} --input {}", &[&at("new.diad"), &one]).ok();

    // Inspect and validate.
    let text = diad("inspect {}", &[&shop.model]).ok().stdout;
    for what in ["washer", "blister", "efficientnet-lite0", "training.steps", "not trained on"] {
        assert!(text.contains(what), "{what} is not in {text}");
    }
    assert!(diad("validate {}", &[&smoke()]).ok().stdout.contains("training.steps"));

    // Bench.
    let line = "bench --model {} --frames 2 --batch 1,2 --ddim-steps 1,2 --report {}";
    let run = diad(line, &[&shop.model, &at("bench.json")]).ok();
    assert!(run.stdout.contains("frames/s") && run.stdout.contains("backbone"), "{}", run.stdout);
    let bench: Value = serde_json::from_slice(&fs::read(at("bench.json")).unwrap()).unwrap();
    assert_eq!(bench["rows"].as_array().unwrap().len(), 2 * (2 + 2 + 2));
    let fast = diad::kernels::bf16::Bf16::find().is_some(); // training measured its thresholds as well then
    assert_eq!(bench["device"], if fast { "cpu bf16" } else { "cpu" });
    let worker = bench["rows"].as_array().unwrap().iter().filter(|row| row["through"] == "worker");
    assert_eq!(worker.map(|row| row["in_flight"].as_u64().unwrap()).collect::<Vec<_>>(), [2, 4, 2, 4]);
    assert!(bench["rows"][0]["frames_per_second"].as_f64().unwrap() > 0.0);

    let run = diad("bench --model {} --frames 2 --layers --report {}", &[&shop.model, &at("layers.json")]).ok();
    assert!(run.stdout.contains("% of peak") && run.stdout.contains("attention"), "{}", run.stdout);
    let bench: Value = serde_json::from_slice(&fs::read(at("layers.json")).unwrap()).unwrap();
    let of = |network: &str| {
        let rows = bench["layers"].as_array().unwrap().iter().filter(|row| row["network"] == network);
        let (whole, layers): (Vec<_>, Vec<_>) = rows.partition(|row| row["layer"] == "together");
        let sum: f64 = layers.iter().map(|row| row["multiply_adds"].as_f64().unwrap()).sum();
        assert!((whole[0]["multiply_adds"].as_f64().unwrap() - sum).abs() < 1e-6, "{network}");
        layers.len()
    };
    assert_eq!(of("backbone"), 12, "a stem and eleven blocks");
    assert!(of("denoiser") >= 3 && bench["peak"].as_f64().unwrap() > 0.0);
    diad("bench --model {} --layers --device cuda", &[&shop.model]).refused(2, &["--layers", "--device"]);

    // A reader that goes away is no failure.
    let mut child = command("inspect --json {}", &[&shop.model]).stdout(Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    assert_eq!(child.wait().unwrap().code(), Some(0));
}

/// Ctrl-C in the middle: the lines of what was done are in the file.
#[test]
fn interrupted_prediction_keeps_the_lines_of_what_was_done() {
    let shop = shop();
    let folder = tempfile::tempdir().unwrap();
    let (many, lines) = (folder.path().join("many"), folder.path().join("lines.jsonl"));
    fs::create_dir(&many).unwrap();
    let good = shop.parts.join("washer/test/good");
    let image = good.join(&names(&good)[0]);
    // Their rows are more than a pipe holds that nobody reads: it cannot end before the signal.
    for i in 0..4000 {
        std::os::unix::fs::symlink(&image, many.join(format!("part_with_a_long_name_{i:04}.png"))).unwrap();
    }
    let mut child = command("predict --model {} --input {} --jsonl {}", &[&shop.model, &many, &lines])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut rows = BufReader::new(child.stdout.take().unwrap());
    let mut table = String::new();
    while table.lines().count() < 10 {
        assert_ne!(rows.read_line(&mut table).unwrap(), 0, "{table}");
    }
    assert!(Command::new("kill").args(["-s", "INT", &child.id().to_string()]).status().unwrap().success());
    rows.read_to_string(&mut table).unwrap();
    let mut said = String::new();
    child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(130), "{said}");
    let done = table.lines().count() - 1;
    assert!(done < 4000 && said.contains(&format!("{done} of 4000 images done")), "{said}");
    let lines = fs::read_to_string(&lines).unwrap();
    assert_eq!(lines.lines().count(), done);
    assert!(lines.lines().all(|line| serde_json::from_str::<Value>(line).unwrap()["score"].is_number()));
}

/// Where the system gives no thread, that is said, and what limits there are.
#[test]
fn a_thread_that_cannot_be_had_is_an_error_that_names_the_limits() {
    let shop = shop();
    let mut program = command("predict --model {} --input {}", &[&shop.model, &shop.parts.join("washer/test/good")]);
    program.env("RUST_MIN_STACK", (1u64 << 50).to_string()); // more than there are addresses
    finished(program).refused(1, &["cannot start a thread", "ulimit -u"]);
}

/// The whole story, small: everything that it promises to leave is there, and it can be told again.
#[test]
fn the_demo_leaves_what_it_promises_and_may_be_repeated() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("demo");
    let line = "demo --no-video --out {} --images 12 --config {} --set training.steps=30";
    for _ in 0..2 {
        let run = diad(line, &[&out, &smoke()]).ok();
        assert!(run.stdout.contains("contact-sheet.png") && run.stdout.contains("diad train --data"), "{}", run.stdout);
        assert!(run.stdout.contains("mahalanobis"), "{}", run.stdout);
        let expected = [
            ".diad-demo",
            "contact-sheet.png",
            "demo.diad",
            "heatmaps",
            "line",
            "line.toml",
            "parts",
            "report.html",
            "report.json",
        ];
        assert!(
            run.stderr.contains("gst-launch-1.0 multifilesrc") && run.stderr.contains("diadfilter"),
            "{}",
            run.stderr
        );
        assert_eq!(names(&out), expected);
        assert_eq!(names(&out.join("heatmaps")).len(), 3 * (1 + 7));
    }
    let sheet = diad::frame::read_frame(&out.join("contact-sheet.png")).unwrap();
    assert!(sheet.width() > 1000 && sheet.height() > 500);
    let page = fs::read_to_string(out.join("report.html")).unwrap();
    assert!(page.contains("<svg") && page.contains("data:image/png;base64,"));
    assert_eq!(names(folder.path()), ["demo"]);
}
