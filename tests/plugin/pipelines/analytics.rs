//! Elements of GStreamer draw what a `diadfilter` has found.

use diad::frame::read_frame;

use super::common::spoiled;
use super::*;

const LIME: [u8; 3] = [0, 255, 0];

#[test]
fn a_box_is_drawn_around_each_region_by_objectdetectionoverlay() {
    init();
    let shop = shop();
    let folder = tempfile::tempdir().unwrap();
    let part = spoiled(&shop.frames("blister/test/good")[0]);
    let header = format!("P6 {} {} 255\n", part.width(), part.height());
    std::fs::write(folder.path().join("part.ppm"), [header.as_bytes(), part.rgb()].concat()).unwrap();
    let model = shop.model.display();
    let line = format!(
        "filesrc location=part.ppm ! pnmdec ! videoconvert ! diadfilter model={model} meta=result+analytics overlay=0 ! tee name=t \
         t. ! queue ! objectdetectionoverlay object-detection-outline-color=0xff00ff00 draw-labels=false ! videoconvert ! \
         pngenc ! filesink location=seen.png \
         t. ! queue ! diadmeta2json ! filesink location=said.jsonl"
    );
    run(launch(&line, folder.path()));
    let said = lines(&folder.path().join("said.jsonl"));
    let regions: Vec<[usize; 4]> = said[0]["results"][0]["regions"]
        .as_array()
        .unwrap()
        .iter()
        .map(|region| ["x", "y", "width", "height"].map(|side| region[side].as_u64().unwrap() as usize))
        .collect();
    assert!(regions.iter().any(|&[_, _, w, h]| w < 40 && h < 40), "a patch of 16x16 was found: {said:?}");

    let seen = read_frame(&folder.path().join("seen.png")).unwrap();
    let (width, height) = (seen.width(), seen.height());
    let lime = |x: usize, y: usize| seen.rgb()[(y * width + x) * 3..][..3] == LIME;
    // The line is two pixels wide around the edge of the box; its right and lower end at the last pixel of the frame.
    for &[x, y, w, h] in &regions {
        let (right, lower) = ((x + w).min(width - 1), (y + h).min(height - 1));
        for [x, y] in [[x, y + h / 2], [right, y + h / 2], [x + w / 2, y], [x + w / 2, lower]] {
            assert!(lime(x, y), "{x},{y} is on an edge of {regions:?}");
        }
    }
    for (x, y) in (0..height).flat_map(|y| (0..width).map(move |x| (x, y))).filter(|&(x, y)| lime(x, y)) {
        let near = |edge: usize, at: usize| edge.abs_diff(at) <= 1;
        let on_an_edge =
            |&[left, top, w, h]: &[usize; 4]| near(left, x) || near(left + w, x) || near(top, y) || near(top + h, y);
        assert!(regions.iter().any(on_an_edge), "{x},{y} is on no edge of {regions:?}");
    }
}
