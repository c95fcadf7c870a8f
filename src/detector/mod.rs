//! The detector: a frame in, a verdict out. Training, evaluation and the line all score through [`Network::inspect`].

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::path::Path;

use rayon::prelude::*;
use serde::Serialize;

use crate::bundle::{self, Card};
use crate::calibrate::percentile;
use crate::config::Distance;
use crate::device::Place;
use crate::error::{Error, Result};
use crate::frame::{Frame, Geometry, Prepared};
use crate::named::named;
use crate::regions::{Region, regions};
use crate::score::resize;

mod limits;
mod mask;
mod network;
mod program;
mod store;

use limits::ClassLimits;
pub use limits::{Limits, Overrides};
pub use mask::Mask;
pub use network::{Choice, Inspection, Measured, Network, Question, Seen, mean_token};
pub use program::{Look, Program, Sampling};
#[cfg(feature = "train")]
pub(crate) use program::{needs_noise, seeded_noise};
pub use store::{expected_tensors, save};

/// Cells of the smoothed map per cell of the feature grid and side.
const MAP_SCALE: usize = 4;

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
        /// The caller named it.
        Known = "known",
        /// The model has one class only.
        Only = "only",
        /// Nearest prototype and calibrated score.
        Chosen = "chosen",
        /// No class is near: the class reported is the nearest, the verdict is `ng`.
        UnknownProduct = "unknown-product",
    }
}

/// Everything about one frame.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Detection {
    /// The answer.
    pub verdict: Verdict,
    /// Image score: mean of the highest part of the map. Unbounded above, compares with `threshold`.
    pub score: f32,
    /// Above it the verdict is `ng`.
    pub threshold: f32,
    /// Above it the verdict is `warn`.
    pub warn_threshold: f32,
    /// Share of the class's held-out good parts with a lower score, 0..=100.
    pub percentile: f64,
    /// Class whose thresholds and statistics were used.
    pub class: String,
    /// How it was found.
    pub class_source: ClassSource,
    /// Defect regions in pixels of the frame, highest peak first.
    pub regions: Vec<Region>,
    /// Score above which a pixel belongs to a region.
    pub pixel_threshold: f32,
    /// The anomaly map over the model's input.
    #[serde(skip)]
    pub map: Map,
}

/// A square anomaly map over the model's input.
#[derive(Clone, Debug, PartialEq)]
pub struct Map {
    /// Cells per side.
    pub side: usize,
    /// Scores, `[side, side]`.
    pub values: Vec<f32>,
    /// Where the input lies in the frame.
    pub geometry: Geometry,
}

impl Map {
    /// The map at another size.
    pub fn resized(&self, side: usize) -> Vec<f32> {
        resize(&self.values, self.side, side)
    }

    /// The map over the whole original frame at `width` x `height`; what the model did not look at is 0.
    pub fn over_frame(&self, width: usize, height: usize) -> Vec<f32> {
        let Geometry { original, valid, shown } = self.geometry;
        let input = self.resized(self.side * MAP_SCALE);
        let cells = (self.side * MAP_SCALE) as f64 / self.input_size(valid);
        let mut out = vec![0.0; width * height];
        for y in 0..height {
            let fy = (y as f64 + 0.5) * original[1] as f64 / height as f64 - shown[1];
            for x in 0..width {
                let fx = (x as f64 + 0.5) * original[0] as f64 / width as f64 - shown[0];
                if fx < 0.0 || fy < 0.0 || fx >= shown[2] || fy >= shown[3] {
                    continue;
                }
                let side = self.side * MAP_SCALE;
                let cell =
                    |f: f64, i: usize| (((f * valid[i + 2] / shown[i + 2] + valid[i]) * cells) as usize).min(side - 1);
                out[y * width + x] = input[cell(fy, 1) * side + cell(fx, 0)];
            }
        }
        out
    }

    /// The cells that show the frame, `[x, y, width, height]`; the rest lies over the border of the input.
    pub fn cells(&self) -> [usize; 4] {
        let valid = self.geometry.valid;
        let cells = self.side as f64 / self.input_size(valid);
        let start = |i: usize| ((valid[i] * cells).floor() as usize).min(self.side - 1);
        let length = |i: usize| (((valid[i] + valid[i + 2]) * cells).ceil() as usize).min(self.side) - start(i);
        [start(0), start(1), length(0).max(1), length(1).max(1)]
    }

    /// The part of the frame that [`Map::cells`] cover, `[x, y, width, height]` as fractions of the frame. It may reach a
    /// fraction of a cell beyond the frame where the border does.
    pub fn shown(&self) -> [f64; 4] {
        let Geometry { original, valid, shown } = self.geometry;
        let pixels = self.input_size(valid) / self.side as f64;
        let [sx, sy] = self.geometry.scale();
        let [x, y, width, height] = self.cells().map(|cells| cells as f64 * pixels);
        let (w, h) = (original[0] as f64, original[1] as f64);
        [(shown[0] + (x - valid[0]) * sx) / w, (shown[1] + (y - valid[1]) * sy) / h, width * sx / w, height * sy / h]
    }

    /// Side of the model's input: the valid part is centred and touches two opposite sides.
    fn input_size(&self, valid: [f64; 4]) -> f64 {
        valid[2].max(valid[3])
    }
}

/// How a frame is to be looked at.
#[derive(Clone, Debug, PartialEq)]
pub struct Ask {
    /// How the class is found.
    pub choice: Choice,
    /// Denoiser evaluations; the model's own number when absent. Thresholds were measured with that one.
    pub ddim_steps: Option<usize>,
    /// Thresholds in force.
    pub limits: Limits,
    /// What of the frame counts; all of it when absent.
    pub mask: Option<Mask>,
}

/// A trained model with its thresholds, ready for frames.
pub struct Detector {
    network: Network,
    card: Card,
    ddim_steps: usize,
    programs: BTreeMap<usize, Program>,
}

impl Detector {
    /// Opens a model file.
    ///
    /// # Errors
    /// When the file is not a model, is damaged, or is from a newer version.
    pub fn open(path: &Path) -> Result<Self> {
        Self::open_on(path, &Place::cpu())
    }

    /// Opens a model file on a device.
    ///
    /// # Errors
    /// As [`Detector::open`], and when the device fails.
    pub fn open_on(path: &Path, place: &Place) -> Result<Self> {
        let file = bundle::load(path, expected_tensors)?;
        Self::new(store::network(&file.card, &file.tensors, place)?, file.card)
    }

    /// From a network and the card that holds its thresholds.
    ///
    /// # Errors
    /// When the card's classes are not the network's.
    pub fn new(network: Network, card: Card) -> Result<Self> {
        if card.classes.len() != network.fields.len() {
            let (a, b) = (card.classes.len(), network.fields.len());
            return Err(Error::Internal(format!("detector: {a} classes on the card, {b} in the network")));
        }
        if network.config.detection.distance == Distance::Mahalanobis {
            network.fields.iter().try_for_each(|field| field.settle(network.place.device()))?;
        }
        let ddim_steps = network.config.detection.ddim_steps;
        let mut detector = Self { network, card, ddim_steps, programs: BTreeMap::new() };
        detector.prepare(ddim_steps)?;
        Ok(detector)
    }

    /// What is on the model's card.
    pub fn card(&self) -> &Card {
        &self.card
    }

    /// The network, without thresholds.
    pub fn network(&self) -> &Network {
        &self.network
    }

    /// Changes the number of denoiser evaluations per frame. Thresholds were measured with the model's own number.
    ///
    /// # Errors
    /// When `steps` is 0.
    pub fn set_ddim_steps(&mut self, steps: usize) -> Result<()> {
        self.prepare(steps)?;
        self.ddim_steps = steps;
        Ok(())
    }

    /// Computes what `steps` denoiser evaluations need once and for all; [`Detector::inspect`] can then be asked for them.
    ///
    /// # Errors
    /// When `steps` is 0.
    pub fn prepare(&mut self, steps: usize) -> Result<()> {
        if steps == 0 {
            return Err(Error::Usage("ddim steps must be at least 1, got 0".into()));
        }
        if let Entry::Vacant(place) = self.programs.entry(steps) {
            place.insert(self.network.program(steps)?);
        }
        Ok(())
    }

    /// The choice for a class name: `auto` or one of the model's classes.
    ///
    /// # Errors
    /// When the model does not know the name; the message lists those it knows.
    pub fn choice(&self, class: &str) -> Result<Choice> {
        Choice::named(class, &self.card)
    }

    /// Inspects frames with the thresholds of the card. Each is computed by itself: its detection does not depend on the
    /// others.
    pub fn detect(&self, frames: &[Frame], choice: Choice) -> Vec<Result<Detection>> {
        let ask = Ask { choice, ddim_steps: None, limits: Limits::of(&self.card), mask: None };
        let preprocess = self.network.preprocess();
        let prepared: Vec<Result<Prepared>> = frames.par_iter().map(|frame| preprocess.apply(frame)).collect();
        let good: Vec<(&Prepared, &Ask)> = prepared.iter().flatten().map(|input| (input, &ask)).collect();
        let mut answers = self.inspect_all(&good).into_iter();
        let gone = || Err(Error::Internal("detector: a frame without an answer".into()));
        prepared.into_iter().map(|input| input.and_then(|_| answers.next().unwrap_or_else(gone))).collect()
    }

    /// Inspects frames that are already the model's input, as the device likes it: see [`Place::spread`].
    pub fn inspect_all(&self, asked: &[(&Prepared, &Ask)]) -> Vec<Result<Detection>> {
        self.network.place.spread(asked, |some| {
            let inputs: Vec<&Prepared> = some.iter().map(|(input, _)| *input).collect();
            match self.network.see(&inputs) {
                Ok(seen) => self.answer(&seen, some),
                Err(error) => error.for_all(some.len()),
            }
        })
    }

    /// The detections of a batch that was seen.
    pub fn answer(&self, seen: &Seen, asked: &[(&Prepared, &Ask)]) -> Vec<Result<Detection>> {
        match self.measure(seen, asked) {
            Ok(measured) => self.conclude(measured, asked),
            Err(error) => error.for_all(asked.len()),
        }
    }

    /// The device's part of [`Detector::answer`].
    ///
    /// # Errors
    /// When the device fails.
    pub fn measure(&self, seen: &Seen, asked: &[(&Prepared, &Ask)]) -> Result<Measured> {
        self.network.measure(seen, &self.questions(asked)?)
    }

    /// The host's part of [`Detector::answer`].
    pub fn conclude(&self, measured: Measured, asked: &[(&Prepared, &Ask)]) -> Vec<Result<Detection>> {
        let calibrated = |class: usize, score: f32| score / self.card.classes[class].ng.value.max(f32::MIN_POSITIVE);
        let questions = match self.questions(asked) {
            Ok(questions) => questions,
            Err(error) => return error.for_all(asked.len()),
        };
        let found = self.network.conclude(measured, &questions, calibrated);
        let answer = |(inspection, (_, ask)): (Result<Inspection>, &(&Prepared, &Ask))| {
            self.program(ask)?;
            Ok(judge(inspection?, &self.card, &ask.limits))
        };
        found.into_par_iter().zip(asked.par_iter()).map(answer).collect()
    }

    fn program(&self, ask: &Ask) -> Result<&Program> {
        let steps = ask.ddim_steps.unwrap_or(self.ddim_steps);
        self.programs
            .get(&steps)
            .ok_or_else(|| Error::Internal(format!("detector: {steps} ddim steps were asked for and not prepared")))
    }

    fn questions<'a>(&'a self, asked: &[(&'a Prepared, &'a Ask)]) -> Result<Vec<Question<'a>>> {
        let any = self.programs.values().next();
        let any = any.ok_or_else(|| Error::Internal("detector: nothing is prepared".into()))?;
        let question = |&(prepared, ask): &(&'a Prepared, &'a Ask)| Question {
            geometry: prepared.geometry,
            choice: ask.choice,
            program: self.program(ask).unwrap_or(any), // its answer is the error, in the end
            mask: ask.mask.as_ref(),
        };
        Ok(asked.iter().map(question).collect())
    }

    /// Inspects one frame that is already the model's input.
    ///
    /// # Errors
    /// When the device fails, or nobody prepared for that many steps.
    pub fn inspect(&self, prepared: &Prepared, ask: &Ask) -> Result<Detection> {
        let answer = self.inspect_all(&[(prepared, ask)]).pop();
        answer.unwrap_or_else(|| Err(Error::Internal("detector: a frame without an answer".into())))
    }
}

/// Thresholds, percentile and regions for what the network saw.
fn judge(inspection: Inspection, card: &Card, limits: &Limits) -> Detection {
    let Inspection { class, source, prototype_distance, score, map } = inspection;
    let class_card = &card.classes[class];
    let ClassLimits { ng, warn, pixel } = limits.classes[class];
    let unknown = prototype_distance > class_card.prototype_limit && source != ClassSource::Known;
    let verdict = if unknown || score > ng {
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
        percentile: percentile(&class_card.calibration_scores, score),
        class: class_card.name.clone(),
        class_source: if unknown { ClassSource::UnknownProduct } else { source },
        regions: frame_regions(&map, pixel, card.config.input.size, limits.min_area),
        pixel_threshold: pixel,
        map,
    }
}

/// Regions of the map in pixels of the frame.
fn frame_regions(map: &Map, threshold: f32, size: usize, min_area: usize) -> Vec<Region> {
    let [sx, sy] = map.geometry.scale();
    let found = regions(&map.resized(size), size, size, threshold, 1);
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
