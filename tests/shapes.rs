//! Products whose frames differ in shape, in one model.

mod common;

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use common::{diad, smoke};
use diad::bundle::Card;
use diad::config::Size;
use diad::detector::{ClassChoice, ClassSource, Detection, Detector, Mask, Request};
use diad::frame::Frame;
use diad::report::png;
use diad::synthetic::{Kind, draw_part};
use diad::worker::{self, Job, Worker};

/// A washer in a wide frame, a blister in a square one.
fn frame(class: &str, number: u64) -> Frame {
    let (kind, side) = if class == "strip" { (Kind::Washer, 192) } else { (Kind::Blister, 96) };
    let whole = draw_part(kind, number, side, None).frame;
    if class != "strip" {
        return whole;
    }
    let rows = whole.rgb().chunks_exact(side * 3).skip(48).take(96).collect::<Vec<_>>().concat();
    Frame::new(side, 96, rows).unwrap()
}

/// Twenty good parts of each, and the model that `set` makes of them.
fn teach(folder: &Path, set: &[&str]) -> Detector {
    for class in ["strip", "square"] {
        let good = folder.join("parts").join(class).join("train/good");
        fs::create_dir_all(&good).unwrap();
        for number in 0..20 {
            fs::write(good.join(format!("{number:02}.png")), png(&frame(class, number)).unwrap()).unwrap();
        }
    }
    fs::write(folder.join("shapes.toml"), fs::read_to_string(smoke()).unwrap().replace("grid = 8\n", "")).unwrap();
    let set: String = set.iter().map(|assignment| format!(" --set {assignment}")).collect();
    let line = format!("train --data {{}} --out {{}} --config {{}} --set input.scale=1 {set}");
    let model = folder.join("m.diad");
    diad(&line, &[&folder.join("parts"), &model, &folder.join("shapes.toml")]).ok();
    Detector::open(&model).unwrap()
}

fn inspect(detector: &Detector, frames: &[Frame], class: ClassChoice) -> Vec<Detection> {
    let request = Request { class, ..Request::default() };
    detector.inspect_frames(frames, &request).into_iter().map(Result::unwrap).collect()
}

/// Score and map of both, bit by bit.
#[track_caller]
fn assert_same(got: &Detection, expected: &Detection) {
    assert_eq!(got.score.to_bits(), expected.score.to_bits());
    assert_eq!((&got.map, &got.class, got.verdict), (&expected.map, &expected.class, expected.verdict));
}

fn sides(card: &Card) -> Vec<[[usize; 2]; 2]> {
    let shape = |class: &diad::bundle::ClassCard| class.shape.unwrap();
    card.classes.iter().map(|class| [shape(class).input.sides(), shape(class).grid.sides()]).collect()
}

#[test]
fn each_class_is_looked_at_in_the_shape_of_its_frames() {
    let folder = tempfile::tempdir().unwrap();
    let ways: [&[&str]; 4] = [
        &[],
        &["denoiser.position=fourier"],
        &["denoiser.classes=separate"],
        &["detection.score=sum", "denoiser.window=5"],
    ];
    for way in ways {
        let detector = teach(folder.path(), way);
        assert_eq!(sides(detector.card()), [[[96, 96], [24, 24]], [[192, 96], [48, 24]]], "square, strip; {way:?}");
        let frames: Vec<Frame> = (100..103).flat_map(|n| [frame("strip", n), frame("square", n)]).collect();
        let together = inspect(&detector, &frames, ClassChoice::Auto);
        for (i, (found, frame)) in together.iter().zip(&frames).enumerate() {
            let class = ["strip", "square"][i % 2];
            assert_eq!((found.class.as_str(), found.class_source), (class, ClassSource::Chosen), "{way:?}");
            assert_eq!(found.map.geometry.input, Size::new(frame.width(), frame.height()));
            // Alone, and as a part of the class that it is: the same.
            assert_same(&inspect(&detector, std::slice::from_ref(frame), ClassChoice::Auto)[0], found);
            let known = ClassChoice::of_class(class, detector.card()).unwrap();
            assert_same(&inspect(&detector, std::slice::from_ref(frame), known)[0], found);
        }
    }
}

#[test]
fn a_worker_answers_with_the_bits_of_the_library() {
    let folder = tempfile::tempdir().unwrap();
    let detector = teach(folder.path(), &[]);
    let (_, _, open) = worker::open(
        &folder.path().join("m.diad"),
        diad::device::DeviceSpec::CPU.find(diad::device::Precision::Auto).unwrap(),
    )
    .unwrap();
    let options = worker::Options { name: "shapes".into(), batch_size: 4, batch_timeout: Duration::from_millis(2) };
    let worker = Worker::start(open, options).unwrap();
    let frames: Vec<Frame> = (200..204).flat_map(|n| [frame("square", n), frame("strip", n)]).collect();
    let submit = |frame: &Frame| {
        let inputs = detector.preparation().apply(frame, None).unwrap();
        worker.submit(1, Job { inputs, request: Arc::default() }, Duration::from_secs(60)).unwrap()
    };
    let tickets: Vec<_> = frames.iter().map(submit).collect();
    for (ticket, expected) in tickets.into_iter().zip(inspect(&detector, &frames, ClassChoice::Auto)) {
        assert_same(&ticket.wait().outcome.unwrap(), &expected);
    }
}

/// A class is taken at its word, whatever the frame looks like; an untold frame that is like none is tried in the nearest shape.
#[test]
fn frames_of_other_shapes_are_fitted() {
    let folder = tempfile::tempdir().unwrap();
    let detector = teach(folder.path(), &[]);
    let (wide, square) = (frame("strip", 300), frame("square", 300));
    let known = |name: &str| ClassChoice::of_class(name, detector.card()).unwrap();
    let told = &inspect(&detector, std::slice::from_ref(&square), known("strip"))[0];
    assert_eq!((told.class.as_str(), told.map.geometry.input), ("strip", Size::new(192, 96)));
    let tried = |width, height| detector.preparation().tried(None, width, height).unwrap();
    assert!(tried(192, 96).fits && tried(96, 96).fits);
    let panorama = Frame::new(192, 48, wide.rgb()[..192 * 48 * 3].to_vec()).unwrap();
    assert!(!tried(192, 48).fits);
    let found = &inspect(&detector, std::slice::from_ref(&panorama), ClassChoice::Auto)[0];
    assert_eq!((found.class.as_str(), found.map.geometry.input), ("strip", Size::new(192, 96)));
    let path = folder.path().join("panorama.png");
    fs::write(&path, png(&panorama).unwrap()).unwrap();
    let said = diad("predict --model {} --input {}", &[&folder.path().join("m.diad"), &path]).ok().stderr;
    assert!(said.contains("frames of 192x48 are unlike those of training: looked at as 192x96"), "{said}");

    // A mask of the frame counts in the shape that it is tried in.
    let black: Vec<u8> = (0..192 * 96).flat_map(|i| [if i % 192 < 96 { 0 } else { 255 }; 3]).collect();
    let masks = Mask::in_shapes(&Frame::new(192, 96, black).unwrap(), detector.preparation()).unwrap();
    let request = Request { masks: Some(masks), ..Request::default() };
    let found = detector.inspect_frames(std::slice::from_ref(&wide), &request).remove(0).unwrap();
    let columns = found.map.size.width;
    assert!(found.map.values.chunks(columns).all(|row| row[..columns / 2 - 4].iter().all(|value| *value == 0.0)));
}

#[test]
fn what_cannot_have_several_shapes_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    teach(folder.path(), &[]);
    let train = |set: &str| {
        let line = format!("train --data {{}} --out {{}} --config {{}} --set input.scale=1 {set}");
        diad(
            &line,
            &[&folder.path().join("parts"), &folder.path().join("other.diad"), &folder.path().join("shapes.toml")],
        )
    };
    train("--set detection.decision=pixel-minimum").refused(2, &["detection.decision = pixel-minimum", "input.scale"]);
    train("--set denoiser.levels=2").refused(2, &["class strip", "input.scale = 1", "a square grid"]);
    train("--set features.grid=7").refused(2, &["class square", "input.size = 96, features.grid = 7"]);
    train("--set features.space=pixel --set features.grid=32").refused(2, &["class strip", "squares"]);
}

/// Thresholds from more good parts leave the shapes as they are.
#[test]
fn a_model_of_several_shapes_is_calibrated() {
    let folder = tempfile::tempdir().unwrap();
    let detector = teach(folder.path(), &[]);
    let more = folder.path().join("more");
    for class in ["strip", "square"] {
        fs::create_dir_all(more.join(class).join("train/good")).unwrap();
        for number in 0..20 {
            let path = more.join(class).join(format!("train/good/{number:02}.png"));
            fs::write(path, png(&frame(class, 500 + number)).unwrap()).unwrap();
        }
    }
    let (model, other) = (folder.path().join("m.diad"), folder.path().join("c.diad"));
    diad("calibrate --model {} --data {} --target-fpr 0.1 --out {}", &[&model, &more, &other]).ok();
    let calibrated = Detector::open(&other).unwrap();
    assert_eq!(sides(calibrated.card()), sides(detector.card()));
    let strip = frame("strip", 600);
    let score = |detector: &Detector| inspect(detector, std::slice::from_ref(&strip), ClassChoice::Auto)[0].score;
    assert_eq!(score(&calibrated).to_bits(), score(&detector).to_bits());
}

/// A mask that covers whole windows of cells at the edge takes their cost away: they are not looked at.
#[test]
fn windows_that_a_mask_covers_cost_nothing() {
    let folder = tempfile::tempdir().unwrap();
    teach(folder.path(), &[]);
    let mask = folder.path().join("mask.png");
    let pixels = (0..192 * 96).flat_map(|i| [if i % 192 < 100 { 255 } else { 0 }; 3]).collect();
    fs::write(&mask, png(&Frame::new(192, 96, pixels).unwrap()).unwrap()).unwrap();
    let model = folder.path().join("masked.diad");
    let toml = folder.path().join("shapes.toml");
    let sized = format!("size = [192, 96]\nmask = {:?}\n", mask.to_str().unwrap());
    fs::write(&toml, fs::read_to_string(&toml).unwrap().replace("size = 64\n", &sized)).unwrap();
    let line = "train --data {} --out {} --config {} --class strip --set features.cell=4";
    diad(line, &[&folder.path().join("parts"), &model, &toml]).ok();
    let detector = Detector::open(&model).unwrap();
    let shape = detector.card().classes[0].shape.unwrap();
    assert_eq!(
        (shape.input.sides(), shape.grid.sides()),
        ([128, 96], [32, 24]),
        "48x24 cells, one window of 16 is covered"
    );
    assert_eq!(shape.roi, Some([0.0, 0.0, 32.0 / 48.0, 1.0]));
    let found = &inspect(&detector, &[frame("strip", 400)], ClassChoice::Auto)[0];
    let over = found.map.over_frame(192, 96);
    assert!(over.chunks(192).all(|row| row[128..].iter().all(|value| *value == 0.0)));
    assert!(over.iter().any(|value| *value > 0.0));
}
