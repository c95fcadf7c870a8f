//! Images from disk through a detector, in order.

use std::path::PathBuf;
use std::time::Instant;

use super::Context;
use crate::data;
use crate::detector::{Choice, Detection, Detector};
use crate::error::Result;
use crate::frame::Frame;

/// Threads that read and decode images ahead.
pub(super) const READERS: usize = 2;

/// An image and what the detector says of it.
pub(super) struct Seen {
    pub(super) frame: Frame,
    pub(super) detection: Detection,
    /// The time of its batch divided by the images in it.
    pub(super) ms: f64,
}

/// Inspects `paths`, `batch` at a time, and hands each to `f` with its index, in order; an image that cannot be read or
/// inspected comes with the reason.
///
/// # Errors
/// Those of `f`; when the user interrupts.
pub(super) fn inspect_all(
    context: &Context,
    detector: &Detector,
    choice: Choice,
    batch: usize,
    paths: &[PathBuf],
    mut f: impl FnMut(usize, Result<Seen>) -> Result<()>,
) -> Result<()> {
    let mut waiting: Vec<(usize, Result<Frame>)> = Vec::new();
    let stopped = || context.stop.requested();
    let each = |index: usize, frame: Result<Frame>| {
        waiting.push((index, frame));
        let readable = waiting.iter().filter(|(_, frame)| frame.is_ok()).count();
        if readable < batch && index + 1 < paths.len() {
            return Ok(());
        }
        let mut indices = Vec::new();
        let mut frames = Vec::new();
        for (index, frame) in waiting.drain(..) {
            indices.push((index, frame.map(|frame| frames.push(frame))));
        }
        let started = Instant::now();
        let detections = detector.detect(&frames, choice);
        let ms = started.elapsed().as_secs_f64() * 1e3 / frames.len().max(1) as f64;
        let mut seen = frames.into_iter().zip(detections);
        for (index, read) in indices {
            let answer = read.and_then(|()| match seen.next() {
                Some((frame, detection)) => detection.map(|detection| Seen { frame, detection, ms }),
                None => Err(crate::error::Error::Internal("detector: fewer answers than frames".into())),
            });
            f(index, answer)?;
        }
        Ok(())
    };
    data::read_all(paths, READERS, batch + READERS, each, &stopped)?;
    context.check_stop()
}
