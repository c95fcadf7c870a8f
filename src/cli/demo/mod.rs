//! `diad demo`: the whole story on parts that it draws itself.

use std::cell::RefCell;
use std::fs;
use std::path::{Path, PathBuf};

mod belt;
pub(super) mod sheet;

use belt::{Belt, Passed};
use sheet::Sheet;

use super::args::DemoArgs;
use super::evaluate::{Settings, evaluate};
use super::images::{Inspected, inspect_all};
use super::train::{configuration, teach};
use super::{Context, messages, predict};
use crate::config::Config;
use crate::data::{Dataset, Label, Sample};
use crate::detector::{Detector, Request, Verdict};
use crate::error::{Error, Result};
use crate::files::write_atomic;
use crate::frame::read_mask;
use crate::report::png;
use crate::synthetic::{DatasetSpec, Kind, write_dataset};
use crate::train::Options;

/// Says that a folder was made by the demo, so that the demo may write there again.
const MARKER: &str = ".diad-demo";
/// Good and bad test images per product: every kind of defect three times.
const TEST: (usize, usize) = (20, 21);
/// Side of the drawn images in pixels.
const SIZE: usize = 256;

pub(super) fn run(context: &Context, args: &DemoArgs) -> Result<()> {
    let console = &context.console;
    let config = configuration(&args.config, demo_config())?;
    config.check("configuration")?;
    let folder = Folder::claim(&args.out)?;
    let say = |step: usize, what: &str| console.note(format_args!("\n[{step}/5] {what}"));

    let drawn = messages::count(Kind::ALL.len() * (args.images + TEST.0 + TEST.1), "part image");
    say(1, &format!("Drawing {drawn} of three products into {}", folder.parts().display()));
    let data = draw(context, &folder, args.images)?;

    say(2, "Teaching one model all three from good parts only; it never sees a defect");
    let out = folder.file("demo.diad");
    let options = Options::new(out);
    // An interrupted demo starts anew.
    let _ = fs::remove_file(options.checkpoint());
    let outcome = teach(context, &config, &data, &options).map_err(without_checkpoint)?;
    let detector = &outcome.detector;
    for class in &detector.card().classes {
        console.print(messages::cost(class))?;
    }

    say(3, "Measuring it on parts it has not seen, good and bad, beside simpler methods on the same features");
    let settings = Settings {
        model: options.out.display().to_string(),
        batch: 8,
        class_known: false,
        ddim_steps: None,
        group_by: None,
        baselines: true,
    };
    // From here on as the line sees them, in the precision that it takes.
    let detector = &Detector::open(&options.out)?;
    let evaluation = evaluate(context, detector, &data, &settings)?;
    let (json, html) = (folder.file("report.json"), folder.file("report.html"));
    evaluation.write(Some(&json), Some(&html))?;
    console.print(evaluation.summary())?;

    say(4, "Looking at one part of every kind of defect");
    pictures(context, detector, &data, &folder)?;

    say(5, "Putting it on a production line: every part goes by as a frame of a video");
    let belt = Belt::lay(&args.out, &data)?;
    let lines = belt.lines()?;
    console.note(format_args!("{}", belt.words()));
    if !args.no_video {
        match belt.run(detector) {
            Ok(passed) => console.note(passed_words(&passed)),
            // The rest of the story stands without the video; that it is missing is said, with the cure.
            Err(error @ Error::Usage(_)) => console.warn(format_args!("no video: {error}")),
            Err(error) => return Err(error),
        }
    }

    console.note(format_args!("two supervised lines on these parts, until Ctrl-C: diad run {}", lines.display()));
    console.print(messages::demo_end(&args.out))
}

/// `123 frames: 60 ng, 3 warn, 60 ok; 121 judged right; 123 of 123 scores have the bits that diad predict gives`
fn passed_words(passed: &Passed) -> String {
    let verdicts: Vec<String> = passed.verdicts.iter().map(|(verdict, count)| format!("{count} {verdict}")).collect();
    format!(
        "{} frames: {}; {} judged right; {} of {} scores have the bits that diad predict gives",
        passed.frames,
        verdicts.join(", "),
        passed.right,
        passed.same_bits,
        passed.frames
    )
}

/// What trains in two minutes on two cores: the default network, fewer steps, and no networks of folds.
fn demo_config() -> Config {
    let mut config = Config::default();
    config.training.steps = 400;
    config.training.calibration_fraction = 0.2;
    config.calibration.folds = 1;
    config
}

/// A checkpoint is of no use to the demo: it has nothing to go on from.
fn without_checkpoint(error: Error) -> Error {
    match error {
        Error::Interrupted { .. } => Error::Interrupted { checkpoint: None },
        other => other,
    }
}

/// The demo's folder.
struct Folder(PathBuf);

impl Folder {
    /// A new folder, an empty one, or one that an earlier demo made; never one that holds anything else.
    fn claim(path: &Path) -> Result<Self> {
        let failed = |action| move |e| Error::Usage(format!("{}: {action}: {e}", path.display()));
        let marker = path.join(MARKER);
        if path.exists() && !marker.is_file() {
            let mut entries = fs::read_dir(path).map_err(failed("cannot look into this folder"))?;
            if entries.next().is_some() {
                return Err(Error::Usage(format!(
                    "{}: holds files that the demo did not make; choose another folder with --out",
                    path.display()
                )));
            }
        }
        fs::create_dir_all(path).map_err(failed("cannot make this folder"))?;
        fs::write(&marker, "made by diad demo, which may replace what is in this folder\n")
            .map_err(failed("cannot write into this folder"))?;
        Ok(Self(path.to_path_buf()))
    }

    fn file(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    fn parts(&self) -> PathBuf {
        self.file("parts")
    }
}

fn draw(context: &Context, folder: &Folder, train: usize) -> Result<Dataset> {
    let spec =
        DatasetSpec { kinds: Kind::ALL.to_vec(), train, test_good: TEST.0, test_defect: TEST.1, size: SIZE, seed: 0 };
    let task = RefCell::new(None);
    write_dataset(&folder.parts(), &spec, &|done, total| {
        let mut task = task.borrow_mut();
        task.get_or_insert_with(|| context.task("drawing", total)).set(done, "");
    })?;
    drop(task);
    context.stop.check()?;
    Dataset::scan(&folder.parts(), &[])
}

/// Heat maps of a good part and one of every kind of defect of each product, and all of them on one sheet.
fn pictures(context: &Context, detector: &Detector, data: &Dataset, folder: &Folder) -> Result<()> {
    let heat = folder.file("heatmaps");
    predict::prepare_folder(&heat)?;
    let mut sheet = Sheet::default();
    let mut right = (0, 0);
    for category in &data.categories {
        let mut samples: Vec<&Sample> = Vec::new();
        for sample in &category.test {
            if samples.iter().all(|chosen| chosen.label != sample.label) {
                samples.push(sample);
            }
        }
        // The good part comes first.
        samples.sort_by_key(|sample| sample.label != Label::Good);
        let paths: Vec<PathBuf> = samples.iter().map(|sample| sample.path.clone()).collect();
        inspect_all(context, detector, &Request::default(), paths.len(), &paths, |index, seen| {
            let (seen, sample) = (seen?, samples[index]);
            let Inspected { frame, detection, .. } = &seen;
            let name = format!("{}_{}_heat.png", category.name, sample.label.name());
            let picture = predict::painted(&seen);
            write_atomic(heat.join(&name), &png(&picture)?)?;
            let mask = match &sample.mask {
                Some(mask) => read_mask(mask, frame.width(), frame.height())?,
                None => vec![false; frame.width() * frame.height()],
            };
            sheet.add(frame, &picture, &mask, detection.verdict)?;
            right.0 += usize::from((detection.verdict == Verdict::Ng) == sample.label.is_defect());
            right.1 += 1;
            Ok(())
        })?;
    }
    write_atomic(folder.file("contact-sheet.png"), &png(&sheet.draw()?)?)?;
    context.console.note(format_args!("{} of {} judged right", right.0, right.1));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_with_other_files_is_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let mine = folder.path().join("mine");
        fs::create_dir(&mine).unwrap();
        fs::write(mine.join("thesis.txt"), "x").unwrap();
        let error = Folder::claim(&mine).err().unwrap();
        assert_eq!(error.exit_code(), 2);
        assert!(error.to_string().contains("--out"), "{error}");
        assert_eq!(fs::read_dir(&mine).unwrap().count(), 1);

        let own = folder.path().join("new");
        Folder::claim(&own).unwrap();
        fs::write(own.join("report.html"), "x").unwrap();
        Folder::claim(&own).unwrap();
        fs::create_dir(folder.path().join("empty")).unwrap();
        Folder::claim(&folder.path().join("empty")).unwrap();
    }

    #[test]
    fn its_configuration_keeps_every_rule() {
        demo_config().check("demo").unwrap();
    }
}
