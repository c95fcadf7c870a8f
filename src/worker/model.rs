//! The detector as the worker's model.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::{Detect, Job, Open};
use crate::bundle::{self, Card};
use crate::detector::{Ask, Choice, Detection, Detector, Limits, Measured, Seen};
use crate::device::Target;
use crate::error::Result;
use crate::frame::{Frame, Prepared, Preprocess};

/// How the worker opens the model in `path`, and its card, read and checked now.
///
/// # Errors
/// When the file is not a model that this program reads.
pub fn open(path: &Path, target: Target) -> Result<(Card, Open)> {
    let card = bundle::read_card(path)?;
    let path = PathBuf::from(path);
    let open = move || -> Result<Box<dyn Detect>> { Ok(Box::new(Detector::open_on(&path, &target.open()?)?)) };
    Ok((card, Box::new(open)))
}

fn asked<'a>(jobs: &[&'a Job]) -> Vec<(&'a Prepared, &'a Ask)> {
    jobs.iter().map(|job| (&job.prepared, job.ask.as_ref())).collect()
}

impl Detect for Detector {
    fn card(&self) -> &Card {
        Self::card(self)
    }

    fn begin(&mut self, jobs: &[&Job]) -> Result<Option<Seen>> {
        if self.network().place.device().is_cpu() {
            return Ok(None); // it would compute now, and each frame beside its neighbours
        }
        self.network().see(&jobs.iter().map(|job| &job.prepared).collect::<Vec<_>>()).map(Some)
    }

    fn measure(&mut self, jobs: &[&Job], seen: Seen) -> Result<Measured> {
        self.prepare_for(jobs);
        Self::measure(self, &seen, &asked(jobs))
    }

    fn detect(&mut self, jobs: &[&Job], measured: Option<Measured>) -> Vec<Result<Detection>> {
        match measured {
            Some(measured) => self.conclude(measured, &asked(jobs)),
            None => {
                self.prepare_for(jobs);
                self.inspect_all(&asked(jobs))
            }
        }
    }

    fn warm_up(&self, size: usize) -> Result<Vec<Job>> {
        let input = &self.card().config.input;
        let preprocess = Preprocess { roi: None, ..Preprocess::of(input) };
        let prepared =
            preprocess.apply(&Frame::new(input.size, input.size, vec![127; input.size * input.size * 3])?)?;
        let ask = Ask { choice: Choice::Auto, ddim_steps: None, limits: Limits::of(self.card()), mask: None };
        Ok(vec![Job { prepared, ask: Arc::new(ask) }; size])
    }
}

impl Detector {
    /// For the numbers of steps that the jobs ask for.
    fn prepare_for(&mut self, jobs: &[&Job]) {
        for steps in jobs.iter().filter_map(|job| job.ask.ddim_steps) {
            if let Err(error) = self.prepare(steps) {
                // The job that asked for it gets an error of its own below.
                tracing::warn!(steps, %error, "the number of steps cannot be had");
            }
        }
    }
}
