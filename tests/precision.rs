//! Thresholds belong to the precision that they were measured in: no model starts in one without, and each is judged by its own.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use diad::bundle::{self, Card};
use diad::detector::{Detector, Request, Verdict, expected_tensors};
use diad::device::{Arithmetic, DeviceSpec, Precision};
use diad::frame::read_frame;
use diad::kernels::bf16::Bf16;

mod common;

use common::{diad, names, shop, smoke};

/// Whether this processor multiplies bfloat16; says so where it does not.
fn has_bf16() -> bool {
    let has = Bf16::find().is_some();
    if !has {
        println!("skipped in part: this CPU does not multiply bfloat16");
    }
    has
}

/// The shop's model with another card.
fn with_card(to: &Path, change: impl FnOnce(&mut Card)) {
    let file = bundle::load(&shop().model, expected_tensors).unwrap();
    let (mut card, tensors) = (file.card, file.tensors.into_iter().collect::<BTreeMap<_, _>>());
    change(&mut card);
    bundle::save(to, &card, &tensors).unwrap();
}

/// It has thresholds of single precision only, as every model had once.
fn plain_model(to: &Path) {
    with_card(to, |card| card.classes.iter_mut().for_each(|class| class.measured.clear()));
}

fn measured(model: &Path) -> Vec<Vec<String>> {
    bundle::read_card(model).unwrap().classes.iter().map(|class| class.measured.keys().cloned().collect()).collect()
}

#[test]
fn a_model_starts_only_in_a_precision_that_it_has_thresholds_for() {
    let folder = tempfile::tempdir().unwrap();
    let model = folder.path().join("plain.diad");
    plain_model(&model);
    let card = bundle::read_card(&model).unwrap();
    assert!(card.is_measured_in(Arithmetic::F32));
    assert!(card.seen_in(Arithmetic::GpuBf16).is_none() && card.seen_in(Arithmetic::CpuBf16).is_none());

    // On its own it takes f32, wherever it is.
    let found = DeviceSpec::CPU.find(Precision::Auto).unwrap();
    let taken = found.for_model(&model, |arithmetic| card.is_measured_in(arithmetic)).unwrap();
    assert_eq!(taken, DeviceSpec::CPU);
    let detector = Detector::open(&model).unwrap();
    assert_eq!(detector.network().device().arithmetic(), Arithmetic::F32);

    // Asked for another it refuses, whatever asks.
    let images = shop().parts.join("washer/test/good");
    let what: &[&str] = if has_bf16() {
        &["precision = bf16", "plain.diad", "no thresholds", "diad calibrate --precision bf16"]
    } else {
        &["precision = bf16", "AVX-512 BF16", "auto"]
    };
    diad("predict --model {} --input {} --precision bf16 --device cpu", &[&model, &images]).refused(2, what);
    diad("evaluate --model {} --data {} --precision bf16 --device cpu", &[&model, &shop().parts]).refused(2, what);
    diad("bench --model {} --precision bf16 --device cpu --frames 1", &[&model]).refused(2, what);
    let what: &[&str] = &["precision", "f31", "auto, f32, f16, bf16"];
    let refused = diad("predict --model {} --input {} --precision f31", &[&model, &images]);
    assert!(refused.code == 2 && what.iter().all(|what| refused.stderr.contains(what)), "{refused:#?}");
    diad("predict --model {} --input {} --precision f16 --device cpu", &[&model, &images])
        .refused(2, &["f16", "a GPU"]);
}

#[test]
fn each_precision_is_judged_by_its_own_thresholds() {
    if !has_bf16() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let model = folder.path().join("strict.diad");
    // In bf16 nothing is good enough; in f32 all is as it was.
    with_card(&model, |card| {
        for class in &mut card.classes {
            let measured = class.measured.get_mut("cpu-bf16").expect("training measured bf16 here");
            let lowest = measured.calibration_scores[0];
            for threshold in [&mut measured.ng, &mut measured.warn] {
                threshold.false_reject_rate = 1.0;
            }
            measured.calibration_scores.iter_mut().for_each(|score| *score -= 2.0 * lowest);
            (measured.ng.value, measured.warn.value) = {
                let of = |rank: usize| measured.calibration_scores[rank - 1];
                (of(measured.ng.rank), of(measured.warn.rank))
            };
        }
    });
    let image = shop().parts.join("washer/test/good");
    let frame = read_frame(&image.join(&names(&image)[0])).unwrap();
    let say = |detector: &Detector| {
        detector.inspect_frames(std::slice::from_ref(&frame), &Request::default()).remove(0).unwrap()
    };
    let (fast, plain) =
        (Detector::open(&model).unwrap(), Detector::open_on(&model, &diad::device::Device::cpu()).unwrap());
    assert_eq!(fast.network().device().arithmetic(), Arithmetic::CpuBf16, "auto takes what is measured and fast");
    let (fast, plain) = (say(&fast), say(&plain));
    let untouched = say(&Detector::open_on(&shop().model, &diad::device::Device::cpu()).unwrap());
    assert_eq!(
        (plain.verdict, plain.score, plain.threshold),
        (untouched.verdict, untouched.score, untouched.threshold)
    );
    assert!(fast.threshold < plain.threshold && fast.verdict == Verdict::Ng, "{fast:?}");
    assert!(
        (fast.score / plain.score - 1.0).abs() < 0.05 && fast.score != plain.score,
        "{} {}",
        fast.score,
        plain.score
    );
    assert!(fast.percentile > plain.percentile, "the percentile is among the scores of that precision");
}

#[test]
fn training_and_calibrate_measure_what_is_asked_for() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    plain_model(&at("plain.diad"));
    let fast: &[&str] = if has_bf16() { &["cpu-bf16"] } else { &[] };
    assert_eq!(measured(&shop().model), [fast, fast], "training measures what this CPU has");

    let line = "train --data {} --out {} --config {} --set calibration.precision=";
    let run = diad(&format!("{line}f32"), &[&shop().parts, &at("f32.diad"), &smoke()]).ok();
    assert!(!run.stderr.contains("f32 only"), "{run:#?}");
    assert_eq!(measured(&at("f32.diad")), [[""; 0]; 2]);
    let run = diad(&format!("{line}f16 --device cpu"), &[&shop().parts, &at("f16.diad"), &smoke()]).ok();
    assert_eq!(measured(&at("f16.diad")), [[""; 0]; 2]);
    assert!(
        run.stderr.contains("measured in f32 only") && run.stderr.contains("f16"),
        "it says so and goes on: {run:#?}"
    );

    // Without being asked calibrate measures all; of one class only, the model is not ready for the others.
    let line = "calibrate --model {} --data {} --target-fpr 0.2 --out {} --device cpu";
    let run = diad(line, &[&at("plain.diad"), &shop().parts, &at("all.diad")]).ok();
    assert_eq!(measured(&at("all.diad")), [fast, fast]);
    assert_eq!(run.stdout.contains("in cpu-bf16: rejected above"), has_bf16(), "{run:#?}");
    let one = format!("{line} --class washer");
    diad(&one, &[&at("plain.diad"), &shop().parts.join("washer/train/good"), &at("one.diad")]).ok();
    assert!(!bundle::read_card(&at("one.diad")).unwrap().is_measured_in(Arithmetic::CpuBf16));
    if !has_bf16() {
        return;
    }
    // Asked for one it leaves the others as they are.
    let only = format!("{line} --precision bf16");
    diad(&only, &[&at("plain.diad"), &shop().parts, &at("bf16.diad")]).ok();
    let (before, after) = (bundle::read_card(&at("plain.diad")).unwrap(), bundle::read_card(&at("bf16.diad")).unwrap());
    for (before, after) in before.classes.iter().zip(&after.classes) {
        assert_eq!((before.ng, &before.images), (after.ng, &after.images));
        assert_eq!(after.measured["cpu-bf16"].ng.false_reject_rate, 0.2);
    }
    fs::create_dir_all(at("known")).unwrap();
    let defects = shop().parts.join("washer/test");
    let taught = format!("{only} --class washer --defects {{}}");
    let paths: &[&Path] = &[&at("plain.diad"), &shop().parts.join("washer/train/good"), &at("x.diad"), &defects];
    diad(&taught, paths).refused(2, &["--precision bf16", "f32"]);
    assert!(!at("x.diad").exists(), "nothing half-written");

    // Thresholds in numbers that this device has not would promise another rate than the new ones.
    with_card(&at("gpu.diad"), |card| {
        for class in &mut card.classes {
            let measured = class.measured["cpu-bf16"].clone();
            class.measured.insert("gpu-f16".into(), measured);
        }
    });
    let run = diad(line, &[&at("gpu.diad"), &shop().parts, &at("here.diad")]).ok();
    assert_eq!(measured(&at("here.diad")), [fast, fast]);
    assert!(run.stderr.contains("gpu-f16 are left out"), "{run:#?}");
}
