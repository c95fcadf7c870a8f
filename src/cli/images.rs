//! What the commands that read images share: opening a model, reading images ahead, inspecting them.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Instant;

use clap::Args;

use super::args::OnArgs;
use super::console::Console;
use super::train::warn_ignored;
use super::{Context, messages};
use crate::data::{GroupBy, ReadAhead, Sample, groups, known_defects};
use crate::detector::{Detection, Detector, Network, Request};
use crate::error::{Error, Result};
use crate::frame::{Frame, Prepared, read_image};
use crate::train::FEWEST_DEFECTS;

/// Which images show one part.
#[derive(Debug, Args)]
pub(super) struct GroupArgs {
    /// Images of one part count as one and are never divided: "folder" for a folder per part, or a regular expression that
    /// captures the part in a file's name, for instance '^(\d+)_'. Without it by groups.csv in the product's folder (columns
    /// path,group), and where that is not there either by their likeness (calibration.groups)
    #[arg(long = "group-by", value_name = "folder|REGEX")]
    pub(super) group_by: Option<String>,
}

impl GroupArgs {
    pub(super) fn rule(&self) -> Result<Option<GroupBy>> {
        self.group_by.as_deref().map(str::parse).transpose()
    }
}

/// Images of known defects.
#[derive(Debug, Args)]
pub(super) struct DefectsArgs {
    /// A few images of known defects (3 of a product are enough): they teach the score what a defect looks like where that helps,
    /// and show how many escape. A folder per product with images, folders of images, or test/DEFECT; masks in
    /// ground_truth/DEFECT say where the defect is. They are never good parts, and evaluate leaves them out
    #[arg(long = "defects", value_name = "DIR")]
    pub(super) defects: Option<PathBuf>,
}

impl DefectsArgs {
    /// The images by class, empty without the option; says what was found.
    pub(super) fn find(&self, console: &Console, classes: &[&str]) -> Result<Vec<Vec<Sample>>> {
        let Some(root) = &self.defects else { return Ok(Vec::new()) };
        let (found, ignored) = known_defects(root, classes)?;
        warn_ignored(console, root, &ignored);
        for (class, samples) in classes.iter().zip(&found).filter(|(_, samples)| !samples.is_empty()) {
            let masks = samples.iter().filter(|sample| sample.mask.is_some()).count();
            console
                .note(format_args!("{class}: {}, {masks} with a mask", messages::count(samples.len(), "known defect")));
            if samples.len() < FEWEST_DEFECTS {
                console.warn(format_args!(
                    "{class}: too few known defects to teach anything (at least {FEWEST_DEFECTS}); only how many escape is said"
                ));
            }
        }
        Ok(found)
    }
}

/// An image and its detection.
pub(super) struct Inspected {
    pub(super) frame: Frame,
    pub(super) detection: Detection,
    /// Milliseconds per image of its batch.
    pub(super) ms: f64,
}

/// Opens a model.
///
/// # Errors
/// When there is no such file, it is not a model, or the device is not there.
pub(super) fn open_model(model: &Path, on: &OnArgs) -> Result<Detector> {
    check_exists(model)?;
    Detector::open_found(model, on.find()?)
}

/// Checks, before any work, a file named on the command line.
///
/// # Errors
/// [`Error::Usage`] when it is not there, or is a folder.
pub(super) fn check_exists(file: &Path) -> Result<()> {
    match std::fs::metadata(file) {
        Ok(found) if found.is_dir() => Err(Error::Usage(format!("{}: is a folder, expected a file", file.display()))),
        Ok(_) => Ok(()),
        Err(error) => Err(Error::Usage(format!("{}: cannot read: {error}", file.display()))),
    }
}

/// A function that reads an image as the model's input of a class.
pub(super) fn prepare(context: &Context, network: &Network, class: usize) -> impl Fn(&Path) -> Result<Prepared> + Sync {
    let preparation = network.preparation();
    move |path| preparation.of_frame(&read_frame(context, path)?, class)
}

/// The features of an image in short, to tell whether others show the same part.
pub(super) fn sketch(network: &Network, input: &Prepared) -> Result<Vec<f32>> {
    Ok(groups::sketch(&network.features(&[input])?.flatten_all()?.to_vec1::<f32>()?))
}

/// Reads an image, and adds it to the context's record of sample depths.
fn read_frame(context: &Context, path: &Path) -> Result<Frame> {
    let image = read_image(path)?;
    context.depth.add(path, image.peak);
    Ok(image.frame)
}

/// Inspects `paths`, `batch` at a time, and passes each result to `f` with its index, in order; the reason instead, for an image
/// that cannot be read or inspected.
///
/// # Errors
/// Those of `f`; [`Error::Interrupted`].
pub(super) fn inspect_all(
    context: &Context,
    detector: &Detector,
    request: &Request,
    batch: usize,
    paths: &[PathBuf],
    mut f: impl FnMut(usize, Result<Inspected>) -> Result<()>,
) -> Result<()> {
    let (preparation, mut warned) = (detector.preparation(), BTreeSet::new());
    ReadAhead::new(batch, &context.stop).each_group(
        paths,
        |path| read_frame(context, path),
        |group| {
            let mut frames = Vec::new();
            let group: Vec<(usize, Result<()>)> =
                group.into_iter().map(|(index, frame)| (index, frame.map(|frame| frames.push(frame)))).collect();
            for frame in &frames {
                let (width, height) = (frame.width(), frame.height());
                // What is wrong with a frame is its own answer.
                let Ok(tried) = preparation.tried(request.class.known(), width, height) else { continue };
                if !tried.fits && warned.insert((width, height)) {
                    context.console.warn(format_args!(
                        "frames of {width}x{height} are unlike those of training: looked at as {}",
                        preparation.in_words(&tried)
                    ));
                }
            }
            let started = Instant::now();
            let detections = detector.inspect_frames(&frames, request);
            let ms = started.elapsed().as_secs_f64() * 1e3 / frames.len().max(1) as f64;
            let mut seen = frames.into_iter().zip(detections);
            for (index, read) in group {
                let answer = read.and_then(|()| match seen.next() {
                    Some((frame, detection)) => detection.map(|detection| Inspected { frame, detection, ms }),
                    None => Err(Error::Internal("detector: fewer answers than frames".into())),
                });
                f(index, answer)?;
            }
            Ok(())
        },
    )
}
