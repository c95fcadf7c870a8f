//! `diad demo`: the whole job on parts that it draws itself.

use std::fs;
use std::path::Path;

use super::args::DemoArgs;
use super::evaluate::{Settings, evaluate};
use super::progress::TrainingProgress;
use super::{Context, train, words};
use crate::config::Config;
use crate::data::draw::{DatasetSpec, Kind, write_dataset};
use crate::data::{Dataset, read_frame, read_mask};
use crate::detector::{Choice, Detector};
use crate::error::{Error, Result};
use crate::files::write_atomic;
use crate::frame::Frame;
use crate::report::{heatmap, png};

/// Says in a folder that the demo made it, so that the demo may make it anew.
const MARKER: &str = ".diad-demo";
/// Optimizer steps: enough for drawn parts, a minute or two on two cores.
const STEPS: usize = 250;
/// Parts per product on the picture sheet.
const SHEET_ROWS: usize = 3;

pub(super) fn run(context: &Context, args: &DemoArgs) -> Result<()> {
    let (console, out) = (&context.console, &args.out);
    prepare(out)?;
    let at = |name: &str| out.join(name);
    let data_folder = at("data");
    let kinds = vec![Kind::Washer, Kind::Blister, Kind::Board];
    let spec = DatasetSpec { kinds, train: 70, test_good: 20, test_defect: 28, size: 256, seed: args.seed };
    console.note("1/4 drawing parts: three products, good ones to learn from, good and bad ones to test with");
    let total = spec.kinds.len() * (spec.train + spec.test_good + spec.test_defect);
    let task = std::cell::RefCell::new(console.task("draw", total));
    write_dataset(&data_folder, &spec, &|done, _| task.borrow_mut().set(done, ""))?;
    task.into_inner().finish();
    context.check_stop()?;

    console.note("2/4 learning what good parts look like (one model for all three)");
    let mut config = Config::default();
    config.training.steps = args.steps.unwrap_or(STEPS);
    config.training.warmup_steps = config.training.warmup_steps.min(config.training.steps / 4);
    config.training.seed = args.seed;
    config.training.calibration_fraction = 0.3; // few parts are drawn; 21 of 70 can promise 5 %
    config.check("diad demo")?;
    let model = at("demo.diad");
    let data = Dataset::scan(&data_folder, &[])?;
    let options = crate::train::Options { out: model.clone(), backbone: None, resume: false };
    train::describe(console, &data, &config);
    let outcome = crate::train::train(&config, &data, &options, &TrainingProgress::new(console), &context.stop)?;
    for class in &outcome.detector.card().classes {
        console.note(words::cost(class));
    }

    console.note("3/4 measuring it on parts it has not seen");
    let detector = Detector::open(&model)?;
    let settings = Settings { model: "demo.diad".into(), batch: 8, class_known: false };
    let evaluation = evaluate(context, &detector, &data, &settings)?;
    let (json, html) = (at("report.json"), at("report.html"));
    evaluation.write(Some(&json), Some(&html))?;
    console.print(evaluation.summary())?;

    console.note("4/4 painting heat maps");
    let sheet = at("pictures.png");
    write_atomic(&sheet, &png(&sheet_of(&detector, &data)?)?)?;

    let shown = |path: &Path| path.display().to_string();
    console.print(format_args!(
        "\nLook at   {}   (part, heat map, true defect, row by row)\nRead      {}   (figures, curves, pictures)\n",
        shown(&sheet),
        shown(&html)
    ))?;
    console.print(format_args!(
        "Ask it    diad predict --model {} --input {} --out heatmaps\nYours     diad train --data FOLDER-OF-GOOD-IMAGES --out \
         mine.diad",
        shown(&model),
        shown(&data_folder.join("washer/test/scratch")),
    ))
}

/// Makes the folder, or clears one that an earlier demo made.
fn prepare(out: &Path) -> Result<()> {
    if out.join(MARKER).is_file() {
        for name in ["demo.diad.checkpoint"] {
            let _ = fs::remove_file(out.join(name)); // of an interrupted demo; there may be none
        }
        return Ok(());
    }
    let occupied = match fs::read_dir(out) {
        Ok(mut entries) => entries.next().is_some(),
        Err(_) => out.exists(),
    };
    if occupied {
        return Err(Error::Usage(format!(
            "{}: exists and was not made by diad demo; give --out another folder, nothing was changed",
            out.display()
        )));
    }
    fs::create_dir_all(out).map_err(|e| Error::io(out, "cannot make the folder", e))?;
    write_atomic(out.join(MARKER), b"made by diad demo, which may overwrite what it made\n")
}

/// Some defective parts of each product: part, heat map, true defect in white, side by side.
fn sheet_of(detector: &Detector, data: &Dataset) -> Result<Frame> {
    const SIDE: usize = 256;
    const GAP: usize = 6;
    let mut rows: Vec<[Frame; 3]> = Vec::new();
    for category in &data.categories {
        let bad: Vec<_> = category.test.iter().filter(|s| s.label.is_defect()).collect();
        for sample in bad.iter().step_by((bad.len() / SHEET_ROWS).max(1)).take(SHEET_ROWS) {
            let frame = read_frame(&sample.path)?;
            let detection =
                detector.detect(std::slice::from_ref(&frame), Choice::Auto).pop().unwrap_or_else(|| {
                    Err(Error::Internal("demo: no answer".into()))
                })?;
            let map = detection.map.over_frame(SIDE, SIDE);
            let painted = heatmap(&frame, &map, SIDE, SIDE, detection.pixel_threshold);
            let truth = match &sample.mask {
                Some(mask) => read_mask(mask, frame.width(), frame.height())?,
                None => vec![false; frame.width() * frame.height()],
            };
            let white = truth.iter().flat_map(|&on| [if on { 255 } else { 24 }; 3]).collect();
            let truth = Frame::new(frame.width(), frame.height(), white)?;
            rows.push([frame, painted, truth]);
        }
    }
    // Two parts to a line, three pictures each.
    let (columns, lines) = (6, rows.len().div_ceil(2));
    let (width, height) = (columns * (SIDE + GAP) + GAP, lines * (SIDE + GAP) + GAP);
    let mut rgb = vec![255u8; width * height * 3];
    for (i, row) in rows.iter().enumerate() {
        for (j, picture) in row.iter().enumerate() {
            let (left, top) = (GAP + ((i % 2) * 3 + j) * (SIDE + GAP), GAP + i / 2 * (SIDE + GAP));
            for y in 0..picture.height().min(SIDE) {
                let n = picture.width().min(SIDE) * 3;
                rgb[((top + y) * width + left) * 3..][..n]
                    .copy_from_slice(&picture.rgb()[y * picture.width() * 3..][..n]);
            }
        }
    }
    Frame::new(width, height, rgb)
}
