//! The detector: a prepared frame and a request in, a verdict with score, regions and anomaly map out.
//!
//! [`Network`] computes features, their reconstruction and the scores of cells; it has statistics of good parts, but no
//! thresholds. [`Detector`] adds those of the model's card. Training, evaluation and the line all score through [`Network`].

use std::path::Path;

use rayon::prelude::*;
use serde::Serialize;

use crate::bundle::{self, Card, ClassCard};
use crate::calibrate::GoodScores;
use crate::config::Size;
use crate::device::{Device, DeviceSpec, Precision};
use crate::error::{Error, Result};
use crate::frame::{Frame, Pose, Preparation, Prepared};
use crate::named::named;
use crate::regions::{Region, regions};

mod branch;
mod class;
mod file;
mod known_defects;
mod limits;
mod map;
mod mask;
mod network;
mod reconstruction;
mod scorer;

pub use branch::Branch;
pub use class::ClassChoice;
#[cfg(feature = "train")]
pub(crate) use class::prototype_distance;
pub use file::{expected_tensors, preparation, save, set_defect_term};
pub use known_defects::DefectTerm;
use limits::ClassLimits;
pub use limits::{Limits, Overrides};
pub use map::AnomalyMap;
pub use mask::Mask;
pub(crate) use network::Asked;
#[cfg(feature = "train")]
pub(crate) use network::mean_over_cells;
pub use network::{CellScores, Embeddings, Inspection, Network};
#[cfg(feature = "train")]
pub(crate) use reconstruction::stored_noise;
pub use reconstruction::{Reconstruction, Reconstructor, SamplerPlan, Sampling};
pub use scorer::Scorer;

named! {
    /// The answer to "is this part good?".
    pub enum Verdict: "verdict" {
        /// Inspected; the score is within the threshold.
        Ok = "ok",
        /// Inspected; above the warning threshold, not above the threshold.
        Warn = "warn",
        /// Inspected; above the threshold, or not a product that the model knows.
        Ng = "ng",
        /// Not inspected; never counts as good.
        Uninspected = "uninspected",
        /// Inspection failed; never counts as good.
        Error = "error",
    }
}

named! {
    /// How the class of a detection was found.
    pub enum ClassSource: "class source" {
        /// The request named it.
        Known = "known",
        /// The model has one class only.
        Only = "only",
        /// The model chose it, see [`ClassChoice::Auto`].
        Chosen = "chosen",
        /// The part is like no class of the model. The class reported is the nearest, the verdict is `ng`.
        UnknownProduct = "unknown-product",
        /// The part was looked for and not found; the class reported is that which it would be by what is seen, the verdict is `ng`.
        NotLocated = "not-located",
    }
}

/// What the detector says of one frame.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Detection {
    /// The answer.
    pub verdict: Verdict,
    /// Image score: mean of the highest values of the map. Unbounded above; compare it with `threshold`.
    pub score: f32,
    /// Above it the verdict is `ng`.
    pub threshold: f32,
    /// Above it the verdict is `warn`.
    pub warn_threshold: f32,
    /// Percentage of the class's held-out good parts with a lower score, 0..=100.
    pub percentile: f64,
    /// The class whose thresholds and statistics were used.
    pub class: String,
    /// How it was found.
    pub class_source: ClassSource,
    /// Defect regions in pixels of the frame, highest peak first.
    pub regions: Vec<Region>,
    /// Score above which a pixel belongs to a region.
    pub pixel_threshold: f32,
    /// How the part lies, where it was found (`input.align`).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pose: Option<Pose>,
    /// The anomaly map over the model's input, or where parts are found, over what is looked at of the frame.
    #[serde(skip)]
    pub map: AnomalyMap,
}

/// How a frame is to be inspected. What is absent is as the model has it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Request {
    /// How the class is found.
    pub class: ClassChoice,
    /// Denoiser evaluations, at least 1. The thresholds of the card were measured with the model's own number.
    pub ddim_steps: Option<usize>,
    /// Thresholds, in place of those on the card.
    pub limits: Option<Limits>,
    /// What counts of the frame, by the number of the shape that it is tried in, in place of the mask that the model was trained
    /// with.
    pub masks: Option<Vec<Mask>>,
}

/// A trained model with its thresholds, ready for frames.
pub struct Detector {
    network: Network,
    preparation: Preparation,
    card: Card,
    limits: Limits,
    /// By class.
    good: Vec<GoodScores>,
}

impl Detector {
    /// Opens a model file on the CPU, as the line does: in the fastest precision that this one computes in and the model has thresholds
    /// for.
    ///
    /// # Errors
    /// When the file is not a model, is damaged, or is from a newer version.
    pub fn open(path: &Path) -> Result<Self> {
        Self::open_found(path, DeviceSpec::CPU.find(Precision::Auto)?)
    }

    /// Opens a model file on a device.
    ///
    /// # Errors
    /// As [`Detector::open`], when the device fails, and when the model has no thresholds that were measured in the arithmetic of the
    /// device.
    pub fn open_on(path: &Path, device: &Device) -> Result<Self> {
        let arithmetic = device.arithmetic();
        let mut file = bundle::load(path, expected_tensors)?;
        file.card = file.card.seen_in(arithmetic).ok_or_else(|| arithmetic.unmeasured(path))?;
        Self::of(path, file, device)
    }

    /// Opens a model file on a device that was found, in the precision that `auto` stands for with this model.
    ///
    /// # Errors
    /// As [`Detector::open_on`].
    pub fn open_found(path: &Path, device: DeviceSpec) -> Result<Self> {
        let mut file = bundle::load(path, expected_tensors)?;
        let device = device.for_model(path, |arithmetic| file.card.is_measured_in(arithmetic))?;
        file.card = file.card.seen_in(device.arithmetic()).ok_or_else(|| device.arithmetic().unmeasured(path))?;
        Self::of(path, file, &device.open()?)
    }

    /// Opens a model file on a device, with the thresholds of single precision whatever the device computes in: to measure what
    /// this arithmetic does, not to judge by it.
    ///
    /// # Errors
    /// As [`Detector::open`], and when the device fails.
    pub fn open_unmeasured(path: &Path, device: &Device) -> Result<Self> {
        Self::of(path, bundle::load(path, expected_tensors)?, device)
    }

    /// With the thresholds that are on the card.
    fn of(path: &Path, file: bundle::ModelFile, device: &Device) -> Result<Self> {
        let network = file::network(&file.card, &file.tensors, device).map_err(|error| match error {
            // What is wrong inside is wrong with the file.
            Error::Internal(reason) => Error::model(path, reason),
            other => other,
        })?;
        let good = file.card.classes.iter().map(ClassCard::good_scores).collect();
        let preparation = network.preparation();
        Ok(Self { network, preparation, limits: Limits::of(&file.card), good, card: file.card })
    }

    /// What is on the model's card.
    pub fn card(&self) -> &Card {
        &self.card
    }

    /// The network, without thresholds.
    pub fn network(&self) -> &Network {
        &self.network
    }

    /// Computes what a request needs once for all its frames, so that the first of them does not wait for it.
    ///
    /// # Errors
    /// When so many denoiser evaluations are not possible.
    pub fn prepare(&self, request: &Request) -> Result<()> {
        self.network.branches().iter().try_for_each(|branch| branch.plan(request.ddim_steps).map(drop))
    }

    /// From frames to inputs.
    pub fn preparation(&self) -> &Preparation {
        &self.preparation
    }

    /// Inspects frames: one answer each, in order, that does not depend on the other frames. On the CPU they are computed in
    /// parallel, on a GPU in batches.
    pub fn inspect(&self, frames: &[(&[Prepared], &Request)]) -> Vec<Result<Detection>> {
        self.network.spread(frames, |scores, some| self.conclude(scores, some))
    }

    /// Inspects frames as they come from a file or a camera, all with one request.
    pub fn inspect_frames(&self, frames: &[Frame], request: &Request) -> Vec<Result<Detection>> {
        let prepare = |frame| self.preparation.apply(frame, request.class.known());
        let prepared: Vec<Result<Vec<Prepared>>> = frames.par_iter().map(prepare).collect();
        let good: Vec<(&[Prepared], &Request)> =
            prepared.iter().flatten().map(|inputs| (inputs.as_slice(), request)).collect();
        let mut answers = self.inspect(&good).into_iter();
        let gone = || Err(Error::Internal("detector: a frame without an answer".into()));
        prepared.into_iter().map(|input| input.and_then(|_| answers.next().unwrap_or_else(gone))).collect()
    }

    /// The detections of a batch that was scored, see [`network`].
    pub(crate) fn conclude(&self, scores: CellScores, frames: &[Asked<'_>]) -> Vec<Result<Detection>> {
        let calibrated = |class: usize, score: f32| score / self.card.classes[class].ng.value.max(f32::MIN_POSITIVE);
        self.network.conclude(scores, frames, calibrated, |inspection, request| {
            let good = &self.good[inspection.class];
            judge(inspection, &self.card, good, request.limits.as_ref().unwrap_or(&self.limits))
        })
    }
}

/// Adds verdict, percentile and regions to what the network found.
fn judge(inspection: Inspection, card: &Card, good: &GoodScores, limits: &Limits) -> Detection {
    let Inspection { class, source, prototype_distance, score, map, pose } = inspection;
    let class_card = &card.classes[class];
    let ClassLimits { ng, warn, pixel } = limits.classes[class];
    let lost = source == ClassSource::NotLocated;
    let unknown = !lost && prototype_distance > class_card.prototype_limit && source != ClassSource::Known;
    let verdict = if lost || unknown || score > ng {
        Verdict::Ng
    } else if score > warn {
        Verdict::Warn
    } else {
        Verdict::Ok
    };
    Detection {
        verdict,
        score,
        threshold: ng,
        warn_threshold: warn,
        percentile: good.percentile(score),
        class: class_card.name.clone(),
        class_source: if unknown { ClassSource::UnknownProduct } else { source },
        regions: frame_regions(&map, pixel, limits.min_area),
        pixel_threshold: pixel,
        pose,
        map,
    }
}

/// Regions of the map above `threshold`, in pixels of the frame.
fn frame_regions(map: &AnomalyMap, threshold: f32, min_area: usize) -> Vec<Region> {
    if !map.values.iter().any(|&value| value > threshold) {
        return Vec::new(); // nor is any value between them
    }
    let [sx, sy] = map.geometry.scale();
    let Size { width, height } = map.geometry.input;
    let found = regions(&map.on_input(), width, height, threshold, 1);
    found
        .into_iter()
        .map(|r| {
            let [x0, y0] = map.geometry.to_original(f64::from(r.x), f64::from(r.y));
            let [x1, y1] = map.geometry.to_original(f64::from(r.x + r.width), f64::from(r.y + r.height));
            let (x, y) = (x0.floor() as u32, y0.floor() as u32);
            Region {
                x,
                y,
                width: (x1.ceil() as u32).saturating_sub(x).max(1),
                height: (y1.ceil() as u32).saturating_sub(y).max(1),
                area: ((f64::from(r.area) * sx * sy).round() as u32).max(1),
                peak: r.peak,
            }
        })
        .filter(|r| r.area as usize >= min_area)
        .collect()
}

#[cfg(test)]
mod tests;
