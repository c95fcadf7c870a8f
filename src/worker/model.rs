//! The detector as the worker's model.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::{Detect, Job, Open};
use crate::bundle::{self, Card};
use crate::config::Size;
use crate::detector::{CellScores, Detection, Detector, Embeddings, Request};
use crate::device::DeviceSpec;
use crate::error::Result;
use crate::frame::{Frame, Prepared, Preprocess};

/// How the worker opens the model in `path` on a device that was found; its card, read and checked now, with the thresholds of the
/// precision that it takes there; and the device with that precision.
///
/// # Errors
/// When the file is not a model that this program reads, or has no thresholds for the precision that is asked for.
pub fn open(path: &Path, device: DeviceSpec) -> Result<(Card, DeviceSpec, Open)> {
    let card = bundle::read_card(path)?;
    let device = device.for_model(path, |arithmetic| card.is_measured_in(arithmetic))?;
    let card = card.seen_in(device.arithmetic()).unwrap_or(card);
    let path = PathBuf::from(path);
    let open = move || -> Result<Box<dyn Detect>> { Ok(Box::new(Detector::open_on(&path, &device.open()?)?)) };
    Ok((card, device, Box::new(open)))
}

fn frames<'a>(jobs: &[&'a Job]) -> Vec<(&'a [Prepared], &'a Request)> {
    jobs.iter().map(|job| (job.inputs.as_slice(), job.request.as_ref())).collect()
}

impl Detect for Detector {
    fn card(&self) -> &Card {
        Self::card(self)
    }

    fn inspect(&mut self, jobs: &[&Job]) -> Vec<Result<Detection>> {
        Self::inspect(self, &frames(jobs))
    }

    fn embed(&mut self, jobs: &[&Job]) -> Result<Option<Embeddings>> {
        if self.network().device().candle().is_cpu() {
            return Ok(None); // a CPU would compute now, and each frame in parallel with the others
        }
        self.network().embed(&jobs.iter().map(|job| job.inputs.as_slice()).collect::<Vec<_>>()).map(Some)
    }

    fn measure(&mut self, jobs: &[&Job], embeddings: Embeddings) -> Result<CellScores> {
        self.network().measure(&embeddings, &frames(jobs))
    }

    fn conclude(&mut self, jobs: &[&Job], scores: CellScores) -> Vec<Result<Detection>> {
        Self::conclude(self, scores, &frames(jobs))
    }

    fn warm_up(&self, size: usize) -> Result<Vec<Job>> {
        // In every shape: nothing that a frame may need is done for the first time with one.
        let preparation = self.preparation().clone().with_roi(None);
        let input = |(shape, way): (usize, &Preprocess)| {
            let Size { width, height } = way.size;
            Ok(Prepared { shape, ..way.apply(&Frame::new(width, height, vec![127; way.size.area() * 3])?)? })
        };
        let inputs = preparation.ways().iter().enumerate().map(input).collect::<Result<Vec<_>>>()?;
        Ok(vec![Job { inputs, request: Arc::default() }; size])
    }
}
