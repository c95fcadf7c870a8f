//! Images from disk, some at a time and in order, and through a detector.

use std::path::{Path, PathBuf};
use std::time::Instant;

use super::Context;
use super::args::OnArgs;
use crate::data;
use crate::detector::{Detection, Detector, Request};
use crate::error::{Error, Result};
use crate::frame::Frame;

/// Threads that read and decode images ahead.
const READERS: usize = 2;

/// Images of a group with their indices, or why they cannot be read.
pub(super) type Group = Vec<(usize, Result<Frame>)>;

/// An image and what the detector says of it.
pub(super) struct Seen {
    pub(super) frame: Frame,
    pub(super) detection: Detection,
    /// The time of its batch divided by the images in it.
    pub(super) ms: f64,
}

/// Opens a model.
///
/// # Errors
/// When there is no such file, it is not a model, or the device is not there.
pub(super) fn open(model: &Path, on: &OnArgs) -> Result<Detector> {
    check_exists(model)?;
    Detector::open_on(model, &on.find()?.open()?)
}

/// A file that is not there is a mistake on the command line, found before any work.
///
/// # Errors
/// [`Error::Usage`] that names it.
pub(super) fn check_exists(file: &Path) -> Result<()> {
    match std::fs::metadata(file) {
        Ok(found) if found.is_dir() => Err(Error::Usage(format!("{}: is a folder, expected a file", file.display()))),
        Ok(_) => Ok(()),
        Err(error) => Err(Error::Usage(format!("{}: cannot read: {error}", file.display()))),
    }
}

/// Reads `paths` ahead and hands them to `f`, `size` readable ones at a time, in order.
///
/// # Errors
/// Those of `f`; when the user interrupts.
pub(super) fn in_groups(
    context: &Context,
    paths: &[PathBuf],
    size: usize,
    mut f: impl FnMut(Group) -> Result<()>,
) -> Result<()> {
    let mut waiting = Group::new();
    let mut readable = 0;
    let each = |index: usize, frame: Result<Frame>| {
        readable += usize::from(frame.is_ok());
        waiting.push((index, frame));
        if readable < size && index + 1 < paths.len() {
            return Ok(());
        }
        readable = 0;
        f(std::mem::take(&mut waiting))
    };
    data::read_all(paths, READERS, size + READERS, each, &|| context.stop.requested())?;
    context.check_stop()
}

/// Inspects `paths`, `batch` at a time, and hands each to `f` with its index, in order; an image that cannot be read or
/// inspected comes with the reason.
///
/// # Errors
/// Those of `f`; when the user interrupts.
pub(super) fn inspect_all(
    context: &Context,
    detector: &Detector,
    request: &Request,
    batch: usize,
    paths: &[PathBuf],
    mut f: impl FnMut(usize, Result<Seen>) -> Result<()>,
) -> Result<()> {
    in_groups(context, paths, batch, |group| {
        let mut frames = Vec::new();
        let group: Vec<(usize, Result<()>)> =
            group.into_iter().map(|(index, frame)| (index, frame.map(|frame| frames.push(frame)))).collect();
        let started = Instant::now();
        let detections = detector.inspect_frames(&frames, request);
        let ms = started.elapsed().as_secs_f64() * 1e3 / frames.len().max(1) as f64;
        let mut seen = frames.into_iter().zip(detections);
        for (index, read) in group {
            let answer = read.and_then(|()| match seen.next() {
                Some((frame, detection)) => detection.map(|detection| Seen { frame, detection, ms }),
                None => Err(Error::Internal("detector: fewer answers than frames".into())),
            });
            f(index, answer)?;
        }
        Ok(())
    })
}
