//! The detector as the worker's model, and the device it runs on.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;

use rayon::prelude::*;

use super::{Detect, Job, Open};
use crate::bundle::{self, Card};
use crate::detector::{Ask, Choice, Detection, Detector, Limits};
use crate::error::{Error, Result};
use crate::frame::{Frame, Preprocess};

/// Where a model runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Device {
    /// All cores of this machine.
    Cpu,
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("cpu")
    }
}

/// `auto` or `cpu`. A device that is not there is an error, never another device.
impl FromStr for Device {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        match name {
            "auto" | "cpu" => Ok(Self::Cpu),
            _ if name == "cuda" || name.starts_with("cuda:") => {
                Err(Error::Usage(format!("device = {name}: this diad was built without CUDA; expected auto or cpu")))
            }
            _ => Err(Error::Usage(format!("device = {name:?}: expected auto or cpu"))),
        }
    }
}

impl Device {
    /// Frames that one batch does well with when nobody asks for a number: on the CPU one per core, as each frame is
    /// computed by itself.
    pub fn batch_size(self) -> usize {
        std::thread::available_parallelism().map_or(1, |cores| cores.get().min(16))
    }
}

/// How the worker opens the model in `path`, and its card, read and checked now.
///
/// # Errors
/// When the file is not a model that this program reads.
pub fn open(path: &Path, device: Device) -> Result<(Card, Open)> {
    let card = bundle::read_card(path)?;
    let path = PathBuf::from(path);
    let open = move || -> Result<Box<dyn Detect>> {
        match device {
            Device::Cpu => Ok(Box::new(Detector::open(&path)?)),
        }
    };
    Ok((card, Box::new(open)))
}

impl Detect for Detector {
    fn card(&self) -> &Card {
        Self::card(self)
    }

    fn detect(&mut self, jobs: &[&Job]) -> Vec<Result<Detection>> {
        for steps in jobs.iter().filter_map(|job| job.ask.ddim_steps) {
            if let Err(error) = self.prepare(steps) {
                // The job that asked for it gets an error of its own below.
                tracing::warn!(steps, %error, "the number of steps cannot be had");
            }
        }
        let detector = &*self;
        jobs.par_iter().map(|job| detector.inspect(&job.prepared, &job.ask)).collect()
    }

    fn warm_up(&self, size: usize) -> Result<Vec<Job>> {
        let input = &self.card().config.input;
        let preprocess = Preprocess { size: input.size, fit: input.fit, roi: None };
        let prepared =
            preprocess.apply(&Frame::new(input.size, input.size, vec![127; input.size * input.size * 3])?)?;
        let ask = Ask { choice: Choice::Auto, ddim_steps: None, limits: Limits::of(self.card()), mask: None };
        Ok(vec![Job { prepared, ask: Arc::new(ask) }; size])
    }
}
