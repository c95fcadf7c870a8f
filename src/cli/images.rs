//! What the commands that read images share: opening a model, reading images ahead, inspecting them.

use std::path::{Path, PathBuf};
use std::time::Instant;

use clap::Args;

use super::Context;
use super::args::OnArgs;
use crate::data::{GroupBy, ReadAhead, groups};
use crate::detector::{Detection, Detector, Network, Request};
use crate::error::{Error, Result};
use crate::frame::{Frame, Prepared, read_image};

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
    Detector::open_on(model, &on.find()?.open()?)
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

/// A function that reads an image as the model's input.
pub(super) fn prepare(context: &Context, network: &Network) -> impl Fn(&Path) -> Result<Prepared> + Sync {
    let preprocess = network.preprocess();
    move |path| preprocess.apply(&read_frame(context, path)?)
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
    ReadAhead::new(batch, &context.stop).each_group(
        paths,
        |path| read_frame(context, path),
        |group| {
            let mut frames = Vec::new();
            let group: Vec<(usize, Result<()>)> =
                group.into_iter().map(|(index, frame)| (index, frame.map(|frame| frames.push(frame)))).collect();
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
