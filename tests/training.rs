//! Training through the program and the library: what becomes of the images, and that a run can be stopped.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a test fails by panicking, in its helpers too"
)]

use std::fs;
use std::io::{BufRead as _, BufReader, Read as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use diad::config::Config;
use diad::data::{Dataset, Split, hold_out, images_in};
use diad::frame::read_frame;
use diad::train::{Event, Observer, Options, Stop, train};
use image::{ImageBuffer, Luma};
use serde_json::Value;

mod common;

use common::{command, diad, names, shop, smoke};

/// The 30 good washers of the shop in a folder of their own.
struct Parts {
    folder: PathBuf,
    _root: tempfile::TempDir,
}

/// What can be wrong with an image file.
#[derive(Clone, Copy, Debug)]
enum Spoilt {
    /// It is a link to nothing.
    Link,
    /// It ends in the middle.
    Cut,
}

impl Parts {
    fn new() -> Self {
        let root = tempfile::tempdir().unwrap();
        let folder = root.path().join("washer");
        fs::create_dir(&folder).unwrap();
        let from = shop().parts.join("washer/train/good");
        for name in names(&from) {
            fs::copy(from.join(&name), folder.join(&name)).unwrap();
        }
        Self { folder, _root: root }
    }

    /// As training divides them.
    fn split(&self) -> Split {
        let config = Config::from_file(smoke()).unwrap().training;
        hold_out(&images_in(&self.folder).unwrap().0, config.calibration_fraction, config.seed)
    }

    fn spoil(&self, image: &Path, how: Spoilt) {
        let bytes = fs::read(image).unwrap();
        fs::remove_file(image).unwrap();
        match how {
            Spoilt::Link => std::os::unix::fs::symlink("/nonexistent.png", image).unwrap(),
            Spoilt::Cut => fs::write(image, &bytes[..bytes.len() / 2]).unwrap(),
        }
    }
}

fn card(model: &Path) -> Value {
    let inspected = diad("inspect --json {}", &[model]).ok();
    serde_json::from_str::<Value>(&inspected.stdout).unwrap()["card"].take()
}

/// Whether its name puts it among the images to learn from or among those held out, and whatever is wrong with it: the model is
/// the one of the images that could be read.
#[test]
fn an_image_that_cannot_be_read_is_named_and_left_out_whichever_part_it_belongs_to() {
    let folder = tempfile::tempdir().unwrap();
    for (held_out, images, scores) in [(false, 20, 9), (true, 21, 8)] {
        let mut models = Vec::new();
        for how in [Spoilt::Link, Spoilt::Cut] {
            let parts = Parts::new();
            let split = parts.split();
            assert_eq!((split.train.len(), split.calibration.len()), (21, 9));
            let image = if held_out { &split.calibration[0] } else { &split.train[0] };
            parts.spoil(image, how);
            let model = folder.path().join("m.diad");
            let run = diad("train --data {} --out {} --config {}", &[&parts.folder, &model, &smoke()]).ok();
            let named = |line: &&str| line.contains(image.to_str().unwrap()) && line.ends_with("; left out");
            assert_eq!(run.stderr.lines().filter(named).count(), 1, "{how:?}: {}", run.stderr);
            let card = card(&model);
            assert_eq!((&card["training"]["images"], &card["classes"][0]["ng"]["n"]), (&images.into(), &scores.into()));
            models.push(fs::read(&model).unwrap());
        }
        assert!(models[0] == models[1], "held out: {held_out}");
    }
}

/// Too many of them, of both parts together, and a rate that the remaining ones cannot promise are refused before a step.
#[test]
fn what_unreadable_images_make_impossible_is_refused_before_training() {
    let folder = tempfile::tempdir().unwrap();
    let model = folder.path().join("m.diad");
    let (parts, few) = (Parts::new(), Parts::new());
    let split = parts.split();
    parts.spoil(&split.train[0], Spoilt::Cut);
    parts.spoil(&split.calibration[0], Spoilt::Cut);
    let run = diad("train --data {} --out {} --config {}", &[&parts.folder, &model, &smoke()]);
    let run = run.refused(1, &["washer: 2 of 30 images cannot be read, more than 5 %"]);
    assert!(!run.stderr.contains("parameters"), "{}", run.stderr);

    let line = "train --data {} --out {} --config {} --set calibration.target_fpr=0.1";
    few.spoil(&few.split().calibration[0], Spoilt::Cut);
    let run = diad(line, &[&few.folder, &model, &smoke()]).refused(2, &["washer", "needs 9", "there are 8"]);
    assert!(!run.stderr.contains("parameters"), "{}", run.stderr);
    assert!(names(folder.path()).is_empty());
    diad(
        "calibrate --model {} --data {} --out {} --target-fpr 0.1 --class washer",
        &[&shop().model, &parts.folder, &model],
    )
    .refused(1, &["washer: 2 of 30 images cannot be read, more than 5 %"]);
}

/// Each file is read once: when the first step begins, nobody needs them any more.
#[test]
fn images_are_not_read_again_once_training_has_begun() {
    struct Remover(PathBuf);
    impl Observer for Remover {
        fn event(&self, event: &Event<'_>) {
            if matches!(event, Event::Started { .. }) {
                fs::remove_dir_all(&self.0).unwrap();
            }
        }
    }
    let parts = Parts::new();
    let folder = tempfile::tempdir().unwrap();
    let options = |name: &str| Options::new(folder.path().join(name));
    let config = Config::from_file(smoke()).unwrap();
    diad("train --data {} --out {} --config {}", &[&parts.folder, &options("kept").out, &smoke()]).ok();
    let data = Dataset::scan(&parts.folder, &[]).unwrap();
    train(&config, &data, &options("removed"), &Remover(parts.folder.clone()), &Stop::default()).unwrap();
    assert!(fs::read(options("kept").out).unwrap() == fs::read(options("removed").out).unwrap());
}

/// Twelve bits of a camera in 16-bit files are read as the dark pictures they are, and every command that reads them says so.
#[test]
fn images_that_leave_their_upper_bits_empty_are_warned_of_once() {
    let parts = Parts::new();
    let root = tempfile::tempdir().unwrap();
    for (index, path) in images_in(&parts.folder).unwrap().0.iter().enumerate() {
        let frame = read_frame(path).unwrap();
        let grey: Vec<u16> = frame.rgb().chunks_exact(3).map(|rgb| u16::from(rgb[1]) * 16).collect();
        let image = ImageBuffer::<Luma<u16>, _>::from_raw(frame.width() as u32, frame.height() as u32, grey).unwrap();
        for place in ["train/good", "test/good"].iter().take(if index < 4 { 2 } else { 1 }) {
            let folder = root.path().join(place);
            fs::create_dir_all(&folder).unwrap();
            image.save(folder.join(format!("{index}.tif"))).unwrap();
        }
    }
    let model = root.path().join("m.diad");
    let good = root.path().join("train/good");
    let lines: [(&str, &[&Path]); 4] = [
        ("train --data {} --out {} --config {}", &[root.path(), &model, &smoke()]),
        ("evaluate --model {} --data {}", &[&model, root.path()]),
        ("predict --model {} --input {}", &[&model, &good]),
        (
            "calibrate --model {} --data {} --target-fpr 0.1 --out {}",
            &[&model, root.path(), &root.path().join("n.diad")],
        ),
    ];
    for (line, paths) in lines {
        let run = diad(line, paths).ok();
        assert_eq!(
            run.stderr.matches("as if 12 bits of a camera were stored in 16").count(),
            1,
            "{line}: {}",
            run.stderr
        );
    }
    assert!(!diad("predict --model {} --input {}", &[&model, &parts.folder]).ok().stderr.contains("16-bit"));
}

/// A signal after a checkpoint ends training with 130, and what is resumed ends in the same file, byte for byte.
#[test]
fn interrupted_and_resumed_training_equals_uninterrupted() {
    let parts = Parts::new();
    // What is left out is left out again; the networks of the folds are trained one after the other.
    parts.spoil(&parts.split().calibration[0], Spoilt::Link);
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let line = "train --data {} --out {} --config {} --set training.steps=100 --set calibration.folds=3 --set \
                training.checkpoint_steps=20 --seed 0";
    let whole = diad(line, &[&parts.folder, &at("whole.diad"), &smoke()]).ok();
    assert!(whole.stdout.contains("washer: rejected above") && whole.stdout.contains("95 %"), "{}", whole.stdout);
    assert!(whole.stderr.contains("images/s"), "{}", whole.stderr);

    let mut resume = "";
    for signal in ["INT", "TERM"] {
        let mut child = command(&format!("{line} {resume}"), &[&parts.folder, &at("parts.diad"), &smoke()])
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut said = BufReader::new(child.stderr.take().unwrap());
        let mut text = String::new();
        while !text.lines().last().unwrap_or("").starts_with("checkpoint ") {
            assert_ne!(said.read_line(&mut text).unwrap(), 0, "no checkpoint in {text}");
        }
        let pid = child.id().to_string();
        assert!(Command::new("kill").args(["-s", signal, &pid]).status().unwrap().success());
        said.read_to_string(&mut text).unwrap();
        assert_eq!(child.wait().unwrap().code(), Some(130), "{text}");
        assert!(text.contains("diad: error: interrupted") && text.contains("parts.diad.checkpoint"), "{text}");
        assert!(!text.contains("100 %), loss"), "it was over before the signal came: {text}");
        assert_eq!(names(folder.path()), ["parts.diad.checkpoint", "whole.diad"]);
        resume = "--resume";
    }
    // Another seed is another run.
    diad(&format!("{line}7 --resume"), &[&parts.folder, &at("parts.diad"), &smoke()])
        .refused(2, &["checkpoint", "seed"]);
    let rest = diad(&format!("{line} --resume --quiet"), &[&parts.folder, &at("parts.diad"), &smoke()]).ok();
    assert!(rest.stderr.lines().all(|line| line.starts_with("diad: warning: ")), "{}", rest.stderr);
    assert_eq!(names(folder.path()), ["parts.diad", "whole.diad"]);
    assert!(fs::read(at("parts.diad")).unwrap() == fs::read(at("whole.diad")).unwrap(), "the files differ");
}
