//! Tests of the drawing as a whole, on frames of every format.

use super::paint::{Banner, BoxMark, Canvas, Contour, Heat, Layout, Map, Plane, Scene, Yuv, draw};
use super::planes::{Area, Ink};
use super::scene::layout;
use super::text::Type;
use proptest::prelude::*;

const FORMATS: [&str; 11] = ["RGB", "BGR", "RGBx", "BGRx", "xRGB", "xBGR", "RGBA", "BGRA", "GRAY8", "I420", "NV12"];
const BT709: Yuv = Yuv::new(0.2126, 0.0722, false);
const GUARD: u8 = 0xA5;

/// A frame with bytes of its own: `pad` more than needed at each row's end, all of them `GUARD`.
#[derive(Clone, PartialEq)]
struct Frame {
    width: usize,
    height: usize,
    layout: Layout,
    /// Bytes, stride and bytes in use of a row for each plane.
    planes: Vec<(Vec<u8>, usize, usize)>,
}

impl Frame {
    fn new(format: &str, width: usize, height: usize, pad: usize, rgb: [u8; 3]) -> Self {
        gst::init().unwrap(); // formats have names
        let layout = layout(format.parse().unwrap()).unwrap();
        let (w, h) = (width.div_ceil(2), height.div_ceil(2));
        let [y, u, v] = BT709.convert(rgb);
        let plane = |pattern: &[u8], samples: usize, rows: usize| {
            let row = pattern.repeat(samples);
            let used = row.len();
            ([row, vec![GUARD; pad]].concat().repeat(rows), used + pad, used)
        };
        let planes = match layout {
            Layout::Packed { bytes, rgb: at, .. } => {
                let mut pixel = vec![77; bytes];
                at.into_iter().zip(rgb).for_each(|(at, value)| pixel[at] = value);
                vec![plane(&pixel, width, height)]
            }
            Layout::Gray => vec![plane(&[Yuv::BT601_FULL.convert(rgb)[0]], width, height)],
            Layout::I420 => vec![plane(&[y], width, height), plane(&[u], w, h), plane(&[v], w, h)],
            Layout::Nv12 => vec![plane(&[y], width, height), plane(&[u, v], w, h)],
        };
        Self { width, height, layout, planes }
    }

    fn canvas(&mut self) -> Canvas<'_> {
        let planes = self.planes.iter_mut().map(|(data, stride, _)| Plane { data, stride: *stride }).collect();
        Canvas::new(self.width, self.height, self.layout, BT709, planes).unwrap()
    }

    fn drawn(mut self, scene: &Scene<'_>) -> Self {
        draw(&mut self.canvas(), scene);
        self
    }

    fn byte(&self, plane: usize, at: usize, y: usize) -> u8 {
        let (data, stride, _) = &self.planes[plane];
        data[y * stride + at]
    }

    /// The colour of a pixel; subsampled ones are converted back to RGB.
    fn rgb(&self, x: usize, y: usize) -> [u8; 3] {
        let (u, v) = match self.layout {
            Layout::Packed { bytes, rgb, .. } => return rgb.map(|at| self.byte(0, x * bytes + at, y)),
            Layout::Gray => return [self.byte(0, x, y); 3],
            Layout::I420 => (self.byte(1, x / 2, y / 2), self.byte(2, x / 2, y / 2)),
            Layout::Nv12 => (self.byte(1, x / 2 * 2, y / 2), self.byte(1, x / 2 * 2 + 1, y / 2)),
        };
        let luma = (f64::from(self.byte(0, x, y)) - 16.0) * 255.0 / 219.0;
        let (cb, cr) = ((f64::from(u) - 128.0) * 255.0 / 224.0, (f64::from(v) - 128.0) * 255.0 / 224.0);
        let (r, b) = (luma + cr * 1.5748, luma + cb * 1.8556);
        [r, (luma - 0.2126 * r - 0.0722 * b) / 0.7152, b].map(|v| v.round() as u8)
    }

    fn pixels(&self) -> Vec<[u8; 3]> {
        (0..self.width * self.height).map(|i| self.rgb(i % self.width, i / self.width)).collect()
    }

    fn padding_is_whole(&self) -> bool {
        let rows = |(data, stride, used): &(Vec<u8>, usize, usize)| {
            data.chunks(*stride).all(|row| row[*used..].iter().all(|&byte| byte == GUARD))
        };
        self.planes.iter().all(rows)
    }
}

/// Colours that fade in from nothing, without a step.
fn fading() -> [[u8; 4]; 256] {
    std::array::from_fn(|v| [200, 220 - (v / 2) as u8, 30 + (v / 2) as u8, (v * 3 / 4) as u8])
}

fn blob(side: usize) -> Vec<u8> {
    let distance = |i: usize| ((i as f64 + 0.5) / side as f64 - 0.5).powi(2);
    (0..side * side).map(|i| (255.0 * (-12.0 * (distance(i % side) + distance(i / side))).exp()) as u8).collect()
}

fn map<'a>(values: &'a [u8], width: usize, shown: [f64; 4]) -> Map<'a> {
    Map { values, width, height: values.len().div_ceil(width), shown, heat: None, contour: None }
}

fn mark(x: i32, y: i32, width: u32, height: u32, text: &str) -> BoxMark {
    BoxMark { x, y, width, height, colour: [255, 60, 40], text: text.into() }
}

/// Boxes, a banner and lines, for a frame of 200x150 or more.
fn marks() -> Scene<'static> {
    Scene {
        maps: Vec::new(),
        boxes: vec![mark(61, 81, 33, 25, "3.1x"), mark(140, 1, 31, 40, "9"), mark(183, 120, 90, 90, "edge")],
        banner: Some(Banner { text: "NG  1.25 > 1".into(), colour: [20, 60, 200] }),
        lines: vec!["bottle #1".into(), "20 °C".into()],
    }
}

fn full<'a>(values: &'a [u8], colours: &'a [[u8; 4]; 256], width: usize, height: usize) -> Scene<'a> {
    let heat = Some(Heat { colours, opacity: 0.9 });
    let contour = Some(Contour { threshold: 128, colour: [250, 250, 90] });
    let shown = [0.0, 0.0, width as f64, height as f64];
    Scene { maps: vec![Map { heat, contour, ..map(values, 16, shown) }], ..marks() }
}

#[test]
fn empty_scene_leaves_every_byte() {
    for format in FORMATS {
        let frame = Frame::new(format, 63, 41, 5, [90, 120, 30]);
        assert!(frame.clone().drawn(&Scene::default()) == frame, "{format}");
    }
}

#[test]
fn packed_formats_show_the_same_colours() {
    let (values, colours) = (blob(16), fading());
    let scene = full(&values, &colours, 201, 151);
    let draw = |format| Frame::new(format, 201, 151, 3, [90, 120, 30]).drawn(&scene);
    let expected = draw("RGB").pixels();
    for (format, rgb) in [("RGB", [0, 1, 2]), ("BGR", [2, 1, 0]), ("xRGB", [1, 2, 3]), ("BGRA", [2, 1, 0])] {
        let step = if format.len() == 3 { 3 } else { 4 };
        // The banner's plate, straight from the bytes.
        assert_eq!(rgb.map(|at| draw(format).byte(0, 4 * step + at, 4)), [20, 60, 200], "{format}");
    }
    for format in &FORMATS[1..8] {
        assert!(draw(format).pixels() == expected, "{format}");
    }
}

#[test]
fn the_fourth_byte_is_kept_or_made_opaque() {
    let colours = [[200, 100, 50, 128]; 256];
    let heat = Some(Heat { colours: &colours, opacity: 1.0 });
    let half = Map { heat, ..map(&[9], 1, [0.0, 0.0, 100.0, 150.0]) };
    let scene = Scene { maps: vec![half], ..marks() };
    let drawn = |format| Frame::new(format, 201, 151, 0, [90; 3]).drawn(&scene);
    for (format, offset) in [("RGBx", 3), ("BGRx", 3), ("xRGB", 0), ("xBGR", 0)] {
        let frame = drawn(format);
        assert!((0..201 * 151).all(|i| frame.byte(0, i * 4 + offset, 0) == 77), "{format}");
    }
    for format in ["RGBA", "BGRA"] {
        let frame = drawn(format);
        // On the banner; under the heat: (77 * 127 + 255 * 128) / 255; and where nothing is.
        assert_eq!([(4, 4), (20, 140), (120, 140)].map(|(x, y)| frame.byte(0, x * 4 + 3, y)), [255, 166, 77]);
    }
}

#[test]
fn i420_and_nv12_hold_the_same() {
    let (values, colours) = (blob(16), fading());
    for (width, height) in [(200, 150), (201, 151)] {
        let scene = full(&values, &colours, width, height);
        let draw = |format, pad| Frame::new(format, width, height, pad, [90, 120, 30]).drawn(&scene);
        assert!(draw("I420", 0).pixels() == draw("NV12", 7).pixels());
    }
}

#[test]
fn subsampled_formats_show_the_picture_of_rgb() {
    let (values, colours) = (blob(16), fading());
    for (width, height) in [(200, 150), (201, 151), (640, 480)] {
        let scene = full(&values, &colours, width, height);
        let background = Frame::new("I420", width, height, 0, [120; 3]).rgb(0, 0);
        let expected = Frame::new("RGB", width, height, 0, background).drawn(&scene).pixels();
        for format in ["I420", "NV12"] {
            let got = Frame::new(format, width, height, 0, [120; 3]).drawn(&scene).pixels();
            for (at, (got, expected)) in got.into_iter().zip(&expected).enumerate() {
                let off = (0..3).map(|c| got[c].abs_diff(expected[c])).max().unwrap();
                assert!(off <= 5, "{format} {got:?} not {expected:?} at {}, {}", at % width, at / width);
            }
        }
        let luma = |rgb: &[u8; 3]| Yuv::BT601_FULL.convert(*rgb)[0];
        let got = Frame::new("GRAY8", width, height, 0, background).drawn(&scene).pixels();
        assert!(got.iter().zip(&expected).all(|(got, expected)| got[0].abs_diff(luma(expected)) <= 2));
    }
}

#[test]
fn solid_shapes_cover_whole_blocks() {
    let (values, colours) = (blob(16), fading());
    let mut scene = full(&values, &colours, 201, 151);
    scene.maps[0].heat = None;
    let frame = Frame::new("RGB", 201, 151, 0, [90; 3]).drawn(&scene);
    for (x, y) in (0..151).flat_map(|y| (0..201).map(move |x| (x, y))) {
        assert_eq!(frame.rgb(x, y), frame.rgb(x / 2 * 2, y / 2 * 2), "at {x}, {y}");
    }
}

#[test]
fn boxes_have_a_dark_line_around_a_coloured_one() {
    let scene = Scene { boxes: vec![mark(301, 201, 99, 60, "")], ..Scene::default() };
    let frame = Frame::new("RGB", 640, 480, 0, [90; 3]).drawn(&scene);
    let (dark, red, plain) = ([0; 3], [255, 60, 40], [90; 3]);
    // The box takes the columns 300 to 400 and the rows 200 to 262.
    let across: Vec<_> = (294..302).map(|x| frame.rgb(x, 230)).collect();
    assert_eq!(across, [plain, plain, dark, dark, red, red, plain, plain]);
    let down: Vec<_> = (260..268).map(|y| frame.rgb(350, y)).collect();
    assert_eq!(down, [plain, plain, red, red, dark, dark, plain, plain]);
    let bare = Frame::new("RGB", 64, 64, 0, [90; 3]);
    let boxes = vec![mark(9, 9, 0, 5, "a"), mark(9, 9, 5, 0, "b"), mark(-40, 9, 30, 9, "c"), mark(9, 64, 9, 9, "d")];
    assert!(bare.clone().drawn(&Scene { boxes, ..Scene::default() }) == bare);
}

#[test]
fn transparent_heat_leaves_every_byte() {
    let (values, mut colours) = (blob(16), fading());
    for format in FORMATS {
        let frame = Frame::new(format, 63, 41, 5, [90, 120, 30]);
        for (opacity, alpha) in [(1.0, 0), (0.0, 255), (f32::NAN, 255), (-1.0, 255)] {
            colours.iter_mut().for_each(|colour| colour[3] = alpha);
            let heat = Some(Heat { colours: &colours, opacity });
            let map = Some(Map { heat, ..map(&values, 16, [0.0, 0.0, 63.0, 41.0]) });
            assert!(
                frame.clone().drawn(&Scene { maps: map.into_iter().collect(), ..Scene::default() }) == frame,
                "{format}"
            );
        }
    }
}

#[test]
fn heat_is_bilinear_anchored_and_within_what_is_shown() {
    // Opaque from 20 on, but for one value.
    let alpha = |v: usize| if v < 20 || v == 77 { 0 } else { 255 };
    let colours = std::array::from_fn(|v| [v as u8, v as u8, v as u8, alpha(v)]);
    let draw = |values: &[u8], shown| {
        let map = Map { heat: Some(Heat { colours: &colours, opacity: 1.0 }), ..map(values, 2, shown) };
        Frame::new("RGB", 64, 64, 0, [3; 3]).drawn(&Scene { maps: vec![map], ..Scene::default() })
    };
    let whole = [0.0, 0.0, 64.0, 64.0];
    // Cell centres at 16 and 48: between them, the block of pixel x has gone (x / 2 * 2 + 1 - 16) / 32 of the way.
    let (across, down) = (draw(&[80, 200, 80, 200], whole), draw(&[80, 80, 200, 200], whole));
    for x in 0..64 {
        let part = (((x / 2 * 2) as f64 + 1.0 - 16.0) / 32.0).clamp(0.0, 1.0);
        let expected = (80.0 + 120.0 * part).round() as u8;
        assert!(across.rgb(x, 9)[0].abs_diff(expected) <= 1, "{x}");
        assert_eq!((across.rgb(x, 60), down.rgb(9, x)), (across.rgb(x, 9), across.rgb(x, 9)));
    }
    // A single value is left out, whatever lies around it; and one just at the end of what is to be seen is not.
    assert_eq!((draw(&[77; 4], whole).rgb(5, 5), draw(&[20; 4], whole).rgb(5, 5)), ([3; 3], [20; 3]));
    // The colour of a value does not depend on what else the map holds.
    let (low, high) = (draw(&[90, 20, 90, 20], whole), draw(&[90, 255, 90, 255], whole));
    assert_eq!((low.rgb(5, 5), high.rgb(5, 5)), ([90; 3], [90; 3]));
    // Only whole blocks within what is shown: 11 to 30.5 by 20 to 41.
    let part = draw(&[90; 4], [11.0, 20.0, 19.5, 21.0]);
    for (x, y) in (0..64).flat_map(|y| (0..64).map(move |x| (x, y))) {
        let within = (12..30).contains(&x) && (20..40).contains(&y);
        assert_eq!(part.rgb(x, y), if within { [90; 3] } else { [3; 3] }, "at {x}, {y}");
    }
    // Too few values: nothing.
    assert_eq!(draw(&[90; 3], whole).rgb(5, 5), [3; 3]);
}

#[test]
fn contour_runs_just_inside_the_region() {
    for (height, line) in [(180, 2), (960, 4)] {
        let lit = |values: &[u8], width: usize, columns: f64| {
            let contour = Some(Contour { threshold: 127, colour: [250; 3] });
            let shown = [0.0, 0.0, columns, height as f64];
            let map = Some(Map { values, width, height: values.len() / width, shown, heat: None, contour });
            let frame = Frame::new("RGB", 420, height, 0, [10; 3])
                .drawn(&Scene { maps: map.into_iter().collect(), ..Scene::default() });
            let column = (0..height).filter(|&y| frame.rgb(210, y)[0] == 250).collect::<Vec<_>>();
            ((0..420).filter(|&x| frame.rgb(x, height / 4)[0] == 250).collect::<Vec<_>>(), column)
        };
        // Cells' centres at 70, 210 and 350, and the line half way between.
        let expected: Vec<usize> = (140..140 + line).chain(280 - line..280).collect();
        assert_eq!(lit(&[0, 255, 0], 3, 420.0).0, expected);
        // Closed along the frame's edge, and below where the value has halved.
        let end = height * 2 / 3;
        let expected: Vec<usize> = (0..line).chain(end - line..end).collect();
        assert_eq!(lit(&[255, 255, 0], 1, 420.0).1, expected);
        assert_eq!(lit(&[127; 4], 2, 420.0), (vec![], vec![]));
        // Words of 64 blocks leave no trace, whether the region crosses them or ends with one.
        for columns in [420, 128] {
            let expected: Vec<usize> = (0..line).chain(columns - line..columns).collect();
            assert_eq!(lit(&[255; 4], 2, columns as f64).0, expected);
        }
    }
}

#[test]
fn glyph_pixels_are_where_the_font_has_them() {
    let letter = |text: &str| -> Vec<String> {
        let mut frame = Frame::new("GRAY8", 24, 22, 0, [0; 3]);
        Type::near(14, 1, 100).write(&mut frame.canvas(), (2, 1), text, Ink::solid([255; 3]));
        let lit = |x: usize, y: usize| if frame.rgb(2 * x, 2 * y)[0] > 0 { '#' } else { ' ' };
        (0..11).map(|y| (0..12).map(|x| lit(x, y)).collect()).collect()
    };
    let rows = letter("F");
    let expected = ["", "  ####", "  #", "  ###", "  #", "  #", "  #", "", "", "", ""];
    assert_eq!(rows.iter().map(|row| row.trim_end()).collect::<Vec<_>>(), expected);
    assert_eq!(letter("\u{4E2D}"), letter("?"));
    assert_ne!(letter("°"), letter("?"));
}

#[test]
fn banner_is_legible() {
    for (width, height) in [(200, 150), (640, 480), (1920, 1080), (2448, 2048)] {
        let plain = Scene { banner: marks().banner, ..Scene::default() };
        let frame = Frame::new("RGB", width, height, 0, [90; 3]).drawn(&plain);
        let rows: Vec<usize> = (0..height).filter(|&y| (0..width).any(|x| frame.rgb(x, y) == [255; 3])).collect();
        // Capitals are about six tenths of the line's height.
        let capitals = rows.last().unwrap() + 1 - rows.first().unwrap();
        assert!((height / 40..=(height / 18).max(18)).contains(&capitals), "{capitals} at {height}");
        let count = |colour| frame.pixels().into_iter().filter(|&rgb| rgb == colour).count();
        let (ink, plate) = (count([255; 3]), count([20, 60, 200]));
        assert!(ink > 0 && plate > 2 * ink && plate < 20 * ink, "{ink} in {plate}");
    }
    let narrow = |width, lines: &[&str]| {
        let lines = lines.iter().map(|&line| line.into()).collect();
        Frame::new("RGB", width, 150, 0, [90; 3]).drawn(&Scene { lines, ..Scene::default() })
    };
    assert!(narrow(198, &["dropped"]) == narrow(198, &[]));
    assert!(narrow(200, &["shown"]) != narrow(200, &[]));
    let kind = Type::near(14, 0, 0);
    assert_eq!([60, 35, 20, -9].map(|room| kind.shorten("0123456789", room)), ["0123456789", "01234..", "0123", ""]);
}

#[test]
fn labels_keep_off_other_text() {
    let draw = |scene: &Scene<'_>| Frame::new("RGB", 640, 480, 0, [90; 3]).drawn(scene).pixels();
    // Boxes under and just below the header, whose labels have to go elsewhere.
    let with = |y: i32, text: &str| draw(&Scene { boxes: vec![mark(8, y, 100, 60, text)], ..marks() });
    for y in [0, 20, 70, 84, 96] {
        let (labelled, bare) = (with(y, "3.1x"), with(y, ""));
        // The header goes down to row 76; at most the plate of the lines shines through.
        let header = (0..76).flat_map(|y| (4..110).map(move |x| y * 640 + x));
        assert!(header.into_iter().all(|at| labelled[at] == bare[at]), "{y}");
        assert!(labelled != bare || y < 20, "{y}");
    }
    let changed = |y: i32| {
        let boxed = |text| draw(&Scene { boxes: vec![mark(300, y, 100, 60, text)], ..Scene::default() });
        let (labelled, bare) = (boxed("3.1x"), boxed(""));
        let rows: Vec<usize> = (0..480).filter(|y| labelled[y * 640..][..640] != bare[y * 640..][..640]).collect();
        (rows[0], rows[rows.len() - 1])
    };
    // Above the box where there is room, else inside.
    assert!(changed(200).1 < 200 && changed(200).0 > 160);
    assert!(changed(4).0 >= 4 && changed(4).1 < 64);
}

#[test]
fn blending_is_the_rounded_mean() {
    for (alpha, colour) in (0..=255).step_by(5).flat_map(|a| (0..=255).step_by(3).map(move |c| (a, c))) {
        let mut frame = Frame::new("GRAY8", 256, 2, 0, [0; 3]);
        frame.planes[0].0.iter_mut().enumerate().for_each(|(i, byte)| *byte = i as u8);
        let ink = Ink { rgb: [colour as u8; 3], opacity: alpha as u8 };
        frame.canvas().fill(Area { x0: -3, y0: -1, x1: 900, y1: 9 }, ink);
        for d in 0..256 {
            let expected = (d * (255 - alpha) + colour * alpha + 127) / 255;
            assert_eq!(usize::from(frame.byte(0, d, 1)), expected, "{d} {colour} {alpha}");
        }
    }
}

#[test]
fn colours_become_known_luma_and_chroma() {
    assert_eq!(BT709.convert([255, 255, 255]), [235, 128, 128]);
    assert_eq!(BT709.convert([255, 0, 0]), [63, 102, 240]);
    assert_eq!(Yuv::BT601_FULL.convert([0, 0, 255]), [29, 255, 107]);
}

#[test]
fn short_planes_are_refused() {
    gst::init().unwrap();
    let check = |format: &str, width, height, sizes: &[(usize, usize)]| {
        let mut data: Vec<_> = sizes.iter().map(|&(len, stride)| (vec![0; len], stride)).collect();
        let planes = data.iter_mut().map(|(data, stride)| Plane { data, stride: *stride }).collect();
        Canvas::new(width, height, layout(format.parse().unwrap()).unwrap(), BT709, planes).is_ok()
    };
    // The last row needs no padding.
    assert!(check("RGB", 16, 16, &[(15 * 50 + 48, 50)]));
    assert!(!check("RGB", 16, 16, &[(15 * 50 + 47, 50)]));
    assert!(!check("RGB", 16, 16, &[(4096, 47)]));
    assert!(!check("RGB", 16, 16, &[(4096, usize::MAX / 3)]));
    assert!(!check("RGB", 0, 16, &[(4096, 48)]));
    assert!(check("I420", 17, 17, &[(289, 17), (81, 9), (81, 9)]));
    assert!(!check("I420", 17, 17, &[(289, 17), (81, 9), (80, 9)]));
    assert!(!check("NV12", 17, 17, &[(289, 17), (161, 18)]));
    assert!(!check("NV12", 17, 17, &[(289, 17)]));
    assert!(layout(gst_video::VideoFormat::Yuy2).is_none());
    let odd = Layout::Packed { bytes: 3, rgb: [0, 1, 3], alpha: None };
    assert!(Canvas::new(16, 16, odd, BT709, vec![Plane { data: &mut [0; 4096], stride: 64 }]).is_err());
}

fn any_box() -> impl Strategy<Value = BoxMark> {
    let place = || prop_oneof![4 => -20..150i32, 1 => any::<i32>()];
    let size = || prop_oneof![4 => 0..150u32, 1 => any::<u32>()];
    (place(), place(), size(), size(), any::<[u8; 3]>(), ".{0,12}")
        .prop_map(|(x, y, width, height, colour, text)| BoxMark { x, y, width, height, colour, text })
}

proptest! {
    #[test]
    fn nothing_leaves_the_planes(
        format in prop::sample::select(FORMATS.as_slice()),
        (width, height, pad) in (prop_oneof![16..=130usize, 200..=260usize], 16..=130usize, 0..9usize),
        (values, side) in (1..40usize).prop_flat_map(|n| (prop::collection::vec(any::<u8>(), n * n), Just(n))),
        shown in prop_oneof![
            [-50.0..150.0, -50.0..150.0, 0.0..200.0, 0.0..200.0f64],
            prop::array::uniform4(prop::num::f64::ANY),
        ],
        threshold in any::<u8>(),
        boxes in prop::collection::vec(any_box(), 0..6),
        banner in prop::option::of(".{0,40}"),
        lines in prop::collection::vec(".{0,60}", 0..5),
    ) {
        let colours = fading();
        let heat = Some(Heat { colours: &colours, opacity: 0.7 });
        let contour = Some(Contour { threshold, colour: [250, 9, 9] });
        let map = Some(Map { heat, contour, ..map(&values, side, shown) });
        let banner = banner.map(|text| Banner { text, colour: [9, 99, 9] });
        let frame = Frame::new(format, width, height, pad, [90; 3]).drawn(&Scene { maps: map.into_iter().collect(), boxes, banner, lines });
        prop_assert!(frame.padding_is_whole());
    }
}
