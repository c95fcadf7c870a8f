//! Parts that do not lie still: found, looked at where they lie, and rejected where they are not found.

mod common;

use std::fs;
use std::path::{Path, PathBuf};

use common::{diad, finished, smoke};
use diad::detector::{ClassSource, Detection, Detector, Request, Verdict};
use diad::frame::{Frame, read_frame};
use diad::report::png;
use diad::synthetic::{DatasetSpec, Kind, write_dataset};

/// Side of the frames; parts are drawn at twice the size.
const SIDE: usize = 128;

/// Shift in pixels of the frame and turn in degrees against the clock of an image, by its name.
fn pose(name: &str) -> [f64; 3] {
    let seed = name.bytes().fold(7u32, |h, b| h.wrapping_mul(31).wrapping_add(u32::from(b)));
    let unit =
        |step: u32| f64::from(seed.wrapping_mul(2_654_435_761).rotate_left(step) >> 8) / f64::from(1 << 24) * 2.0 - 1.0;
    [unit(0) * 8.0, unit(11) * 8.0, unit(22) * 8.0]
}

/// A drawn picture at half the size, moved; beyond the edge the edge goes on.
fn moved(picture: &Frame, [dx, dy, turn]: [f64; 3]) -> Frame {
    let (sin, cos) = (-turn).to_radians().sin_cos();
    let middle = SIDE as f64 / 2.0;
    let value = |x: f64, y: f64, c: usize| {
        let (x, y) = (x - middle - dx, y - middle - dy);
        let [x, y] = [cos * x + sin * y + middle, cos * y - sin * x + middle]
            .map(|v| (2.0 * v - 0.5).clamp(0.0, 2.0 * SIDE as f64 - 1.0));
        let at = |x: usize, y: usize| {
            let last = 2 * SIDE - 1;
            f64::from(picture.rgb()[(y.min(last) * 2 * SIDE + x.min(last)) * 3 + c])
        };
        let (left, top, fx, fy) = (x as usize, y as usize, x.fract(), y.fract());
        let row = |y: usize| at(left, y) * (1.0 - fx) + at(left + 1, y) * fx;
        row(top) * (1.0 - fy) + row(top + 1) * fy
    };
    let mut rgb = Vec::with_capacity(SIDE * SIDE * 3);
    for t in 0..SIDE * SIDE {
        let (x, y) = ((t % SIDE) as f64, (t / SIDE) as f64);
        for c in 0..3 {
            let near = [0.25, 0.75].map(|v| [0.25, 0.75].map(|u| value(x + u, y + v, c)));
            rgb.push((near.iter().flatten().sum::<f64>() / 4.0).round() as u8);
        }
    }
    Frame::new(SIDE, SIDE, rgb).unwrap()
}

fn images(folder: &Path) -> Vec<PathBuf> {
    let mut all = Vec::new();
    for entry in fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()) {
        if entry.is_dir() {
            all.extend(images(&entry));
        } else if entry.extension().is_some_and(|end| end == "png") {
            all.push(entry);
        }
    }
    all.sort();
    all
}

/// Boards that lie still, and the same ones moved.
fn draw(folder: &Path) -> [PathBuf; 2] {
    let drawn = folder.join("drawn");
    let spec =
        DatasetSpec { kinds: vec![Kind::Board], train: 30, test_good: 14, test_defect: 14, size: 2 * SIDE, seed: 9 };
    write_dataset(&drawn, &spec, &|_, _| {}).unwrap();
    ["still", "moving"].map(|name| {
        let root = folder.join(name);
        for path in images(&drawn) {
            let relative = path.strip_prefix(&drawn).unwrap();
            let key = relative.to_string_lossy().replace("ground_truth", "test").replace("_mask", "");
            let pose = if name == "still" { [0.0; 3] } else { pose(&key) };
            let to = root.join(relative);
            fs::create_dir_all(to.parent().unwrap()).unwrap();
            let frame = moved(&read_frame(&path).unwrap(), pose);
            let frame = match relative.to_string_lossy().contains("ground_truth") {
                true => Frame::new(SIDE, SIDE, frame.rgb().iter().map(|v| if *v > 127 { 255 } else { 0 }).collect())
                    .unwrap(),
                false => frame,
            };
            fs::write(to, png(&frame).unwrap()).unwrap();
        }
        root
    })
}

fn train(data: &Path, model: &Path, set: &str) {
    let line = format!("train --data {{}} --out {{}} --config {{}} --set input.size=128 --set features.grid=16 {set}");
    diad(&line, &[data, model, &smoke()]).ok();
}

/// Image and pixel AUROC.
fn auroc(model: &Path, data: &Path, folder: &Path) -> [f64; 2] {
    let report = folder.join("report.json");
    diad("evaluate --model {} --data {} --report {}", &[model, data, &report]).ok();
    let report: serde_json::Value = serde_json::from_slice(&fs::read(report).unwrap()).unwrap();
    ["image_auroc", "pixel_auroc"].map(|key| report["mean"][key].as_f64().unwrap())
}

const ALIGN: &str = "--set input.align=shift+turn";

#[test]
fn parts_that_move_are_judged_as_parts_that_lie_still() {
    let folder = tempfile::tempdir().unwrap();
    let [still, moving] = draw(folder.path());
    let model = |name: &str| folder.path().join(name);
    train(&still, &model("still.diad"), ALIGN);
    train(&moving, &model("moving.diad"), "");
    train(&moving, &model("found.diad"), ALIGN);
    let [unmoved, _] = auroc(&model("still.diad"), &still, folder.path());
    let [blind, blind_pixels] = auroc(&model("moving.diad"), &moving, folder.path());
    let [found, pixels] = auroc(&model("found.diad"), &moving, folder.path());
    println!(
        "image AUROC: still {unmoved:.3}, moving {blind:.3}, found {found:.3}; pixels {blind_pixels:.3}, {pixels:.3}"
    );
    assert!((found - unmoved).abs() < 0.06 && found > blind + 0.05, "still {unmoved}, moving {blind}, found {found}");
    assert!(pixels > blind_pixels + 0.02, "the map lies on the frame: {blind_pixels}, {pixels}");

    // The pose of a part against that of another is what they were moved by, but for what they were drawn with.
    let detector = Detector::open(&model("found.diad")).unwrap();
    let inspect = |frame: Frame| detector.inspect_frames(&[frame], &Request::default()).remove(0).unwrap();
    let part = read_frame(&images(&folder.path().join("drawn/board/test/good"))[0]).unwrap();
    let seen = |by: [f64; 3]| inspect(moved(&part, by)).pose.unwrap();
    let [a, b] = [[5.0, -6.0, 0.0], [-4.0, 3.0, 7.0]];
    let ((a, pa), (b, pb)) = ((a, seen(a)), (b, seen(b)));
    assert!((pb.turn - pa.turn - (b[2] - a[2])).abs() < 0.2, "{pa:?} {pb:?}");
    let still = seen([0.0; 3]);
    let shifted = [pa.dx - still.dx - a[0], pa.dy - still.dy - a[1]];
    assert!(shifted[0].hypot(shifted[1]) < 0.5, "{still:?} {pa:?}");

    // What is not found is rejected, and says so.
    let blank = inspect(Frame::new(SIDE, SIDE, vec![80; SIDE * SIDE * 3]).unwrap());
    assert_eq!((blank.verdict, blank.class_source, blank.pose), (Verdict::Ng, ClassSource::NotLocated, None));
    let far = inspect(moved(&part, [40.0, 0.0, 0.0]));
    assert_eq!((far.verdict, far.class_source), (Verdict::Ng, ClassSource::NotLocated));
    let blank = folder.path().join("blank.png");
    fs::write(&blank, png(&Frame::new(SIDE, SIDE, vec![80; SIDE * SIDE * 3]).unwrap()).unwrap()).unwrap();
    let told = diad("predict --model {} --input {} --jsonl -", &[&model("found.diad"), &blank]).ok();
    let line: serde_json::Value = serde_json::from_str(told.stdout.lines().next().unwrap()).unwrap();
    assert_eq!((line["verdict"].as_str(), line["class_source"].as_str()), (Some("ng"), Some("not-located")));
}

#[test]
fn a_batch_of_moved_parts_is_many_of_one() {
    let folder = tempfile::tempdir().unwrap();
    let [_, moving] = draw(folder.path());
    let model = folder.path().join("m.diad");
    train(&moving, &model, &format!("{ALIGN} --set input.max_turn=180 --set input.fit=pad"));
    let detector = Detector::open(&model).unwrap();
    let frames: Vec<Frame> =
        images(&moving.join("board/test")).iter().take(5).map(|path| read_frame(path).unwrap()).collect();
    let inspect = |frames: &[Frame]| -> Vec<Detection> {
        detector.inspect_frames(frames, &Request::default()).into_iter().map(Result::unwrap).collect()
    };
    for (frame, together) in frames.iter().zip(inspect(&frames)) {
        let alone = inspect(std::slice::from_ref(frame)).remove(0);
        assert_eq!(
            (alone.score.to_bits(), &alone.map, alone.pose),
            (together.score.to_bits(), &together.map, together.pose)
        );
        // Turned by a quarter it is the same part.
        let quarter = Frame::new(
            SIDE,
            SIDE,
            (0..SIDE * SIDE)
                .flat_map(|t| {
                    let at = ((SIDE - 1 - t % SIDE) * SIDE + t / SIDE) * 3;
                    frame.rgb()[at..at + 3].to_vec()
                })
                .collect(),
        )
        .unwrap();
        let turned = inspect(&[quarter]).remove(0);
        let by = turned.pose.unwrap().turn - alone.pose.unwrap().turn;
        assert!(((by + 90.0 + 180.0).rem_euclid(360.0) - 180.0).abs() < 0.5, "clockwise by 90: {by}");
        assert!((turned.score / alone.score - 1.0).abs() < 0.1, "{} {}", turned.score, alone.score);
    }
}

#[test]
fn what_aligning_cannot_do_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let [still, _] = draw(folder.path());
    let train = |set: &str| {
        let line = format!("train --data {{}} --out {{}} --config {{}} {set}");
        finished(common::command(&line, &[&still, &folder.path().join("m.diad"), &smoke()]))
    };
    let missing = train("--set input.align=shift --set input.align_reference=nowhere.png");
    missing.refused(2, &["input.align_reference = \"nowhere.png\"", "nowhere.png"]);
    train("--set input.align=turn").refused(2, &["input.align = \"turn\"", "shift+turn"]);
    train("--set input.align=shift --set input.min_match=0.9999").refused(2, &["class board", "input.min_match"]);
}

/// What the line would reject is not left out of the promise.
#[test]
fn good_parts_that_are_not_found_count_as_rejected() {
    let folder = tempfile::tempdir().unwrap();
    let [still, _] = draw(folder.path());
    let blank = png(&Frame::new(SIDE, SIDE, vec![80; SIDE * SIDE * 3]).unwrap()).unwrap();
    let good = images(&still.join("board/train/good"));
    good[3..5].iter().for_each(|path| fs::write(path, &blank).unwrap());
    let model = folder.path().join("m.diad");
    let train = |set: &str| {
        let line = format!("train --data {{}} --out {{}} --config {{}} {ALIGN} --set calibration.folds=5 {set}");
        finished(common::command(&line, &[&still, &model, &smoke()]))
    };
    train("--set calibration.target_fpr=0.05")
        .refused(2, &["class board", "2 of 30 good parts were not found", "0.09"]);
    let told = train("--set calibration.target_fpr=0.1").ok();
    let name = good[3].file_name().unwrap().to_string_lossy().into_owned();
    let warned = told.stderr.lines().any(|line| line.contains(&name) && line.contains("counts as rejected"));
    assert!(warned, "{}", told.stderr);
    assert!(told.stdout.contains("set on 30 good parts"), "{}", told.stdout);
    assert!(told.stdout.contains("2 parts not found in the image, counted as rejected"), "{}", told.stdout);
    let of_card = |model: &Path| {
        let class = diad::bundle::read_card(model).unwrap().classes.swap_remove(0);
        (class.calibration.unwrap().not_located, class.ng.n, class.calibration_scores.len())
    };
    assert_eq!(of_card(&model), (2, 30, 28));

    // The same for fresh parts.
    let fresh = still.join("board/test/good");
    fs::write(images(&fresh)[0].as_path(), &blank).unwrap();
    let anew = folder.path().join("anew.diad");
    let calibrate = |rate: &str| {
        let line = format!("calibrate --model {{}} --data {{}} --out {{}} --class board --target-fpr {rate}");
        diad(&line, &[&model, &fresh, &anew])
    };
    calibrate("0.1").refused(2, &["1 of 12 good parts were not found", "0.1539"]);
    let told = calibrate("0.16").ok();
    assert!(told.stderr.contains("counts as rejected"), "{}", told.stderr);
    assert_eq!(of_card(&anew), (1, 14, 13));
}
