//! Parts that are drawn in known poses.

use super::*;
use crate::config::Config;
use crate::frame::Preprocess;

const SIZE: Size = Size::new(320, 240);

fn input(set: &[&str]) -> InputConfig {
    let mut config = Config::default();
    config.assign(&["input.align=shift+turn"]).unwrap();
    config.assign(set).unwrap();
    config.input
}

/// Brightness of a drawn part at a point in pixels from its middle: a plate with a hole, a notch and a ramp. It looks like
/// itself in one pose only.
fn part(x: f64, y: f64) -> f64 {
    let edge = |inside: f64| (0.5 + inside).clamp(0.0, 1.0);
    let plate = edge((90.0 - x.abs()).min(50.0 - y.abs()));
    let hole = edge(18.0 - (x - 40.0).hypot(y + 10.0));
    let notch = edge((12.0 - (x + 60.0).abs()).min(30.0 - (y - 40.0).abs()));
    20.0 + plate * (150.0 + 0.4 * x) * (1.0 - hole) * (1.0 - notch)
}

/// A frame of it in a pose, under another light.
fn frame(pose: Pose, gain: f64) -> Frame {
    let value = |t: usize| {
        let (x, y) = ((t % SIZE.width) as f64 + 0.5, (t / SIZE.width) as f64 + 0.5);
        let [x, y] = pose.origin(x - SIZE.width as f64 / 2.0, y - SIZE.height as f64 / 2.0);
        [(part(x, y) * gain) as u8; 3]
    };
    Frame::new(SIZE.width, SIZE.height, (0..SIZE.area()).flat_map(value).collect()).unwrap()
}

fn copies(frame: &Frame) -> (Copies, [f64; 2]) {
    let size = Size::new(256, 192);
    let small = Preprocess { size, fit: crate::config::Fit::Stretch, roi: None }.small(frame, size).unwrap();
    (Copies::of(&small), [1.25, 1.25])
}

fn template(input: &InputConfig) -> Template {
    let (Copies(levels), _) = copies(&frame(Pose::NONE, 1.0));
    Template::new(input, levels[0].size, levels[0].values.clone()).unwrap()
}

/// The pose is known to half a pixel of the frame and a fifth of a degree, whatever the light.
#[test]
fn a_part_is_found_where_it_lies() {
    for (turns, poses) in [
        (10.0, vec![[0.0, 0.0, 0.0], [20.3, -11.7, 7.4], [-28.0, 20.0, -9.6], [3.4, 1.2, 0.3]]),
        (180.0, vec![[10.0, 5.0, 178.0], [-15.5, 8.0, -92.3], [0.0, -20.0, 33.0], [6.0, 0.0, 120.5]]),
    ] {
        let template = template(&input(&[&format!("input.max_turn={turns}")]));
        for [dx, dy, turn] in poses {
            let pose = Pose { dx, dy, turn, score: 1.0 };
            let (copies, scale) = copies(&frame(pose, 0.8));
            let found = template.locate(&copies, scale);
            let off = (found.turn - turn + 180.0).rem_euclid(360.0) - 180.0;
            assert!((found.dx - dx).hypot(found.dy - dy) < 0.5 && off.abs() < 0.2, "{pose:?} {found:?}");
            assert!(template.is_found(&found, scale) && found.score > 0.95, "{found:?}");
        }
    }
    let shift = template(&input(&["input.align=shift"]));
    let (copies, scale) = copies(&frame(Pose { dx: 12.5, dy: -7.0, turn: 0.0, score: 1.0 }, 1.1));
    let found = shift.locate(&copies, scale);
    assert!((found.dx - 12.5).abs() < 0.5 && (found.dy + 7.0).abs() < 0.5 && found.turn == 0.0, "{found:?}");
}

#[test]
fn what_is_not_the_part_is_not_found() {
    let template = template(&input(&[]));
    let refused = |frame: &Frame, why: &str| {
        let (copies, scale) = copies(frame);
        let pose = template.locate(&copies, scale);
        assert!(!template.is_found(&pose, scale), "{why}: {pose:?}");
    };
    refused(&Frame::new(SIZE.width, SIZE.height, vec![90; SIZE.area() * 3]).unwrap(), "nothing");
    let noise = |i: usize| ((i as u32).wrapping_mul(2_654_435_761) >> 24) as u8;
    refused(&Frame::new(SIZE.width, SIZE.height, (0..SIZE.area() * 3).map(noise).collect()).unwrap(), "noise");
    refused(&frame(Pose { dx: 0.0, dy: 0.0, turn: 60.0, score: 1.0 }, 1.0), "turned too far");
    refused(&frame(Pose { dx: 80.0, dy: 0.0, turn: 0.0, score: 1.0 }, 1.0), "too far away");
}

/// The picture is where most parts lie, however the first of them lay.
#[test]
fn a_picture_is_learned_from_parts_that_move() {
    let input = input(&[]);
    let lies = |i: u32| {
        let wave = |phase: f64| (f64::from(i) * 2.4 + phase).sin();
        Pose { dx: 8.0 + 6.0 * wave(0.0), dy: -5.0 + 4.0 * wave(1.0), turn: 2.0 + 4.0 * wave(2.0), score: 1.0 }
    };
    let parts: Vec<Copies> = (0..20).map(|i| copies(&frame(lies(i), 1.0)).0).collect();
    let (template, found) = learn(&input, Size::new(256, 192), &parts, None).unwrap();
    assert_eq!(found, 20);
    let (middle, scale) = copies(&frame(Pose { dx: 8.0, dy: -5.0, turn: 2.0, score: 1.0 }, 1.0));
    let off = template.locate(&middle, scale);
    assert!(off.dx.hypot(off.dy) < 4.0 && off.turn.abs() < 3.0 && off.score > 0.98, "{off:?}");
    // Against one part that is named, its pose is that of the picture.
    let named = copies(&frame(lies(3), 1.0)).0;
    let (template, _) = learn(&input, Size::new(256, 192), &parts, Some(&named)).unwrap();
    let still = template.locate(&named, scale);
    assert!(still.dx.hypot(still.dy) < 0.5 && still.turn.abs() < 0.2, "{still:?}");
    assert!(learn(&input, Size::new(256, 192), &[], None).is_err());
}

/// The input of a part that lies elsewhere is that of one that lies as it should.
#[test]
fn what_is_shown_follows_the_part() {
    let way =
        Preprocess { size: Size::new(160, 128), fit: crate::config::Fit::Stretch, roi: Some([0.1, 0.1, 0.8, 0.8]) };
    let still = way.apply(&frame(Pose::NONE, 1.0)).unwrap();
    let pose = Pose { dx: 14.0, dy: -9.0, turn: 8.0, score: 1.0 };
    let moved = way.follow(&frame(pose, 1.0), SIZE.sides(), pose).unwrap();
    let off = |a: &Frame, b: &Frame| {
        let sum: u32 = a.rgb().iter().zip(b.rgb()).map(|(a, b)| u32::from(a.abs_diff(*b))).sum();
        f64::from(sum) / a.rgb().len() as f64
    };
    assert!(off(&still.frame, &moved.frame) < 2.0, "{}", off(&still.frame, &moved.frame));
    assert!(off(&still.frame, &way.apply(&frame(pose, 1.0)).unwrap().frame) > 8.0);
    // The middle of the hole on the input is where it is in the frame; and back.
    let geometry = moved.geometry;
    let hole = |geometry: &crate::frame::Geometry| {
        let [sx, sy] = geometry.scale();
        [(160.0 + 40.0 - geometry.shown[0]) / sx, (120.0 - 10.0 - geometry.shown[1]) / sy]
    };
    let [x, y] = hole(&geometry);
    let [fx, fy] = geometry.to_original(x, y);
    let expected = pose.place(40.0, -10.0);
    assert!((fx - 160.0 - expected[0]).abs() < 1e-9 && (fy - 120.0 - expected[1]).abs() < 1e-9);
    let [sx, sy] = geometry.scale();
    let on_frame = [(fx - geometry.shown[0]) / sx, (fy - geometry.shown[1]) / sy];
    let [bx, by] = geometry.from_unmoved(on_frame[0], on_frame[1]);
    assert!((bx - x).abs() < 1e-9 && (by - y).abs() < 1e-9);
}
