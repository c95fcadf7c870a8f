//! The card of a model file, and the rules that a card must keep.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::hash::{is_sha256, sha256_hex};
use crate::calibrate::{GoodScores, Threshold, TooFew};
use crate::config::{Align, Config, Decision, GroupSource, Shape, Shapes, Size, SpaceKind};
use crate::error::Error;
use crate::named::named;
use crate::precision::Arithmetic;

/// Version of the model file. It is raised when an older program could misread a file of the new kind.
pub const SCHEMA: u32 = 2;

/// Largest number of classes of a model.
const MAX_CLASSES: usize = 4096;

/// Largest number of shapes that the classes of a model may have.
pub(crate) const MAX_SHAPES: usize = 64;

/// Largest length of a name in bytes.
const MAX_NAME: usize = 255;

/// Largest number of mistakes that one message lists.
const MAX_MISTAKES: usize = 10;

/// Everything that a model file says about its model, without the tensors.
///
/// Keys that this version does not know are kept and ignored, here and in [`ClassCard`]: a later version may add some that an
/// older one can do without.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Card {
    /// Version of the file, [`SCHEMA`] in files of this version.
    pub schema: u32,
    /// The program that wrote the file, for instance `diad 0.1.0`.
    pub tool: String,
    /// Architecture, preprocessing, schedule, scoring. A key that is absent has its default.
    pub config: Config,
    /// The frozen network, whose weights are in the file; absent in pixel space.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backbone: Option<BackboneCard>,
    /// The products it knows, at least one.
    pub classes: Vec<ClassCard>,
    /// How it was trained.
    pub training: TrainingCard,
    /// Digest of all tensors: names, dtypes, shapes and values, in ascending order of the names. Lowercase
    /// hexadecimal SHA-256, filled in by [`save`](super::save).
    pub tensors_sha256: String,
    /// Keys of a later version.
    #[serde(flatten)]
    pub unknown: Unknown,
    /// Digest of the text that the card was read from.
    #[serde(skip)]
    pub read_from: ReadFrom,
}

/// Keys that this version does not know, with their values.
pub type Unknown = BTreeMap<String, serde_json::Value>;

/// Digest of the text that a card was read from, which may be written differently today; no part of what the card says.
#[derive(Clone, Debug, Default)]
pub struct ReadFrom(Option<String>);

impl PartialEq for ReadFrom {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

/// The frozen network whose features the model was trained on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BackboneCard {
    /// Its name, as in the key `features.backbone`.
    pub name: String,
    /// SHA-256 of its weight file, lowercase hexadecimal.
    pub sha256: String,
}

/// One class, that is, one product.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ClassCard {
    /// Its name: unique, not empty, at most 255 bytes, without control characters.
    pub name: String,
    /// The shape that it is looked at in, with `input.scale` or `input.align` and where a mask covers windows at the edges; else that
    /// of the configuration.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shape: Option<Shape>,
    /// Good images it was trained on.
    pub train_images: usize,
    /// Scores of good images, ascending, each by a network and statistics that have not seen the image.
    pub calibration_scores: Vec<f32>,
    /// The group that each of these images belongs to; absent where each shows a part of its own.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub calibration_groups: Vec<u32>,
    /// Where the scores come from; absent in files of schema 1, whose scores are of images held out or of fresh ones.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub calibration: Option<CalibrationCard>,
    /// A part with a higher score is rejected (verdict `ng`).
    pub ng: Threshold,
    /// A part with a higher score has at least the verdict `warn`.
    pub warn: Threshold,
    /// A map value above this belongs to a region.
    pub pixel_threshold: f32,
    /// A part that is farther from the class's prototype is not of this class. Root mean square over the features.
    pub prototype_limit: f32,
    /// Scores and thresholds of this class in other arithmetics than single precision, by their names ([`Arithmetic`]).
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub measured: BTreeMap<String, Measured>,
    /// What defects are known of this product, and what they have taught; absent where none are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub known_defects: Option<KnownDefectsCard>,
    /// The good images that the model was taught and calibrated with; absent in files of schema 1.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub images: Vec<ImageCard>,
    /// Keys of a later version.
    #[serde(flatten)]
    pub unknown: Unknown,
}

/// What a class of parts measures in one arithmetic: the scores of good ones, and the thresholds that they make. The fields are
/// those of [`ClassCard`], which holds them for single precision.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Measured {
    /// Ascending.
    pub calibration_scores: Vec<f32>,
    /// As many, or none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub calibration_groups: Vec<u32>,
    /// Where the scores come from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub calibration: Option<CalibrationCard>,
    /// A part with a higher score is rejected.
    pub ng: Threshold,
    /// A part with a higher score has at least the verdict `warn`.
    pub warn: Threshold,
    /// A map value above this belongs to a region.
    pub pixel_threshold: f32,
}

/// The known defects of a class.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct KnownDefectsCard {
    /// Whether the model scores with what they have taught; it does not where that did not help.
    pub taught: bool,
    /// Area under the ROC curve of these images against the good ones, without what they teach.
    pub auroc_without: f64,
    /// The same with it, each image scored by what the others have taught.
    pub auroc_with: f64,
    /// The images, ascending by their score.
    pub images: Vec<DefectImageCard>,
}

/// An image of a known defect.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DefectImageCard {
    /// SHA-256 of the file.
    pub file_sha256: String,
    /// SHA-256 of the decoded pixels.
    pub pixels_sha256: String,
    /// Whether a mask says where the defect is.
    pub marked: bool,
    /// Image score, by what the other images have taught.
    pub score: f32,
}

/// Where the calibration scores of a class come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CalibrationCard {
    /// Which images were scored, by what.
    pub source: ScoreSource,
    /// Folds of the good images; 1 where some were held out instead, 0 where all are fresh.
    pub folds: usize,
    /// How images of one part were told.
    pub groups: GroupSource,
    /// Good parts that have no score since they were not found in their images (`input.align`): the line rejects them, and they
    /// count as rejected.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub not_located: usize,
}

fn is_zero(n: &usize) -> bool {
    *n == 0
}

impl CalibrationCard {
    /// Scores from here, with what each counts.
    pub fn good_scores(&self, sorted_scores: &[f32], groups: &[u32]) -> GoodScores {
        self.source.good_scores(sorted_scores, groups).with_rejected(self.not_located)
    }
}

impl ScoreSource {
    /// Scores from here, with what each counts. No theorem bounds what new parts do to out-of-fold scores: their thresholds are
    /// interpolated, which rejects as many as was promised and not fewer. Held-out and fresh scores keep the bound.
    pub fn good_scores(self, sorted_scores: &[f32], groups: &[u32]) -> GoodScores {
        let scores = GoodScores::new(sorted_scores, groups);
        if self == Self::OutOfFold { scores.interpolated() } else { scores }
    }
}

named! {
    /// Which images the calibration scores are of.
    pub enum ScoreSource: "score source" {
        /// All good images, each scored by a network and statistics of the others.
        OutOfFold = "out-of-fold",
        /// Images that were held out: they taught nothing.
        HeldOut = "held-out",
        /// Images that came after training (`diad calibrate`).
        Fresh = "fresh",
    }
}

/// A good image of a class, without its name and pixels.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ImageCard {
    /// SHA-256 of the file, lowercase hexadecimal.
    pub file_sha256: String,
    /// SHA-256 of the decoded pixels (width, height, then RGB), so that another file of the same picture is recognised.
    pub pixels_sha256: String,
    /// The part that it shows: images with the same number show the same.
    pub group: u32,
    /// Whether the model learned from it; else it only set the thresholds.
    pub taught: bool,
    /// Its score by a network that has not seen it, absent where it only taught.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub score: Option<f32>,
    /// Highest value of its map, likewise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub peak: Option<f32>,
    /// Distance of its mean features from the prototype of the others, likewise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prototype_distance: Option<f32>,
}

/// How a model was trained.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrainingCard {
    /// Good images of all classes, held-out ones included.
    pub images: usize,
    /// Digest of the training data, lowercase hexadecimal.
    pub data_sha256: String,
    /// Seed of everything random.
    pub seed: u64,
    /// Optimizer steps done.
    pub steps: usize,
}

impl Card {
    /// The mistakes on this card, each with its key, its value and what was expected; empty if there is none.
    ///
    /// [`load`](super::load) checks whether the tensors fit the card.
    pub fn mistakes(&self) -> Vec<String> {
        let mut found = Mistakes::default();
        if !(1..=SCHEMA).contains(&self.schema) {
            found.add("schema", self.schema, format!("1 to {SCHEMA}"));
        }
        found.name("tool", &self.tool);
        if let Err(error) = self.config.check("config") {
            match error {
                Error::Config { mistakes, .. } => {
                    found.list.extend(mistakes.iter().map(|text| format!("config.{text}")))
                }
                other => found.list.push(other.to_string()),
            }
        }
        match (&self.backbone, self.config.features.space) {
            (Some(backbone), SpaceKind::Feature) => {
                if backbone.name != self.config.features.backbone {
                    let expected = format!("{:?}, as config.features.backbone", self.config.features.backbone);
                    found.add("backbone.name", format!("{:?}", backbone.name), expected);
                }
                found.digest("backbone.sha256", &backbone.sha256);
            }
            (None, SpaceKind::Feature) => found.add("backbone", "absent", "the frozen network of feature space".into()),
            (Some(_), SpaceKind::Pixel) => found.add("backbone", "there", "none in pixel space".into()),
            (None, SpaceKind::Pixel) => {}
        }
        found.digest("training.data_sha256", &self.training.data_sha256);
        found.digest("tensors_sha256", &self.tensors_sha256);
        if self.classes.is_empty() || self.classes.len() > MAX_CLASSES {
            found.add("classes", format!("{} classes", self.classes.len()), format!("1 to {MAX_CLASSES}"));
        }
        let mut names = BTreeSet::new();
        for (i, class) in self.classes.iter().take(MAX_CLASSES).enumerate() {
            class.check(&format!("classes[{i}]"), &mut found);
            if class.is_taught_by_defects() && !self.config.detection.takes_known_defects() {
                let expected = "false, but for the Mahalanobis distance from the reconstruction".into();
                found.add(&format!("classes[{i}].known_defects.taught"), true, expected);
            }
            self.check_shape(&format!("classes[{i}].shape"), class.shape, &mut found);
            if !names.insert(class.name.as_str()) {
                found.add(&format!("classes[{i}].name"), format!("{:?}", class.name), "a name of its own".into());
            }
        }
        if found.list.is_empty() && self.shapes().distinct().len() > MAX_SHAPES {
            let shapes = self.shapes().distinct().len();
            found.add("classes", format!("{shapes} shapes"), format!("at most {MAX_SHAPES} different ones"));
        }
        if found.list.is_empty() && self.config.detection.decision == Decision::PixelMinimum {
            let shapes = self.shapes().distinct().len();
            if shapes > 1 {
                found.add("classes", format!("{shapes} shapes"), "one, with detection.decision = pixel-minimum".into());
            }
        }
        found.told()
    }

    fn check_shape(&self, key: &str, shape: Option<Shape>, found: &mut Mistakes) {
        let aligns = self.config.input.align != Align::None;
        let Some(shape) = shape else {
            if self.config.has_own_shapes() {
                found.add(key, "absent", "one, with config.input.scale or config.input.align".into());
            }
            return;
        };
        let fits = |size: Size| size.sides().iter().all(|side| side.is_multiple_of(8) && (8..=256).contains(side));
        if shape.template.is_some() != aligns || !shape.template.is_none_or(fits) {
            let got = shape.template.map_or("absent".to_owned(), |size| size.to_string());
            let expected = "multiples of 8 from 8 to 256 with config.input.align, and none without".into();
            found.add(&format!("{key}.template"), got, expected);
        }
        let [least, most] = shape.aspects;
        let any = least == 0.0 && most == f64::MAX && !self.config.has_own_shapes();
        let seen = 0.0 < least && least <= most && most.is_finite();
        if !(any || seen) {
            found.add(
                &format!("{key}.aspects"),
                format!("{:?}", shape.aspects),
                "two numbers above 0, ascending".into(),
            );
        }
        if let Err(Error::Config { mistakes, .. }) = self.config.in_shape(&shape).check(key) {
            mistakes.into_iter().for_each(|text| found.list.push(format!("{key}: {text}")));
        }
    }

    /// The shapes that frames are looked at in.
    pub fn shapes(&self) -> Shapes {
        Shapes::new(self.classes.iter().map(|class| class.shape.unwrap_or_else(|| self.config.shape())).collect())
    }

    /// Whether all classes have thresholds in this arithmetic.
    pub fn is_measured_in(&self, arithmetic: Arithmetic) -> bool {
        self.classes.iter().all(|class| class.measured_in(arithmetic).is_some())
    }

    /// This card for whoever computes in this arithmetic: the scores and thresholds of its classes are those. It is for use, not
    /// for a file. None where one of the classes has no thresholds in it.
    pub fn seen_in(&self, arithmetic: Arithmetic) -> Option<Self> {
        let classes = self.classes.iter().map(|class| Some(class.clone().with(class.measured_in(arithmetic)?)));
        Some(Self { classes: classes.collect::<Option<_>>()?, ..self.clone() })
    }

    /// Digest of the whole model, lowercase hexadecimal SHA-256: of this card, which holds the digest of the tensors. Reports and
    /// results name their model by it. That of a card which was read is the digest of its text, whatever version wrote it.
    pub fn digest(&self) -> String {
        self.read_from.0.clone().unwrap_or_else(|| sha256_hex(self.to_json().as_bytes()))
    }

    /// One line of JSON, the same for the same card. A card without [`mistakes`](Self::mistakes) comes back equal.
    pub(super) fn to_json(&self) -> String {
        // Strings, numbers, sequences and string-keyed maps: nothing in a card can fail to be JSON.
        serde_json::to_string(self).unwrap_or_default()
    }

    /// The card in `json`, checked. The error is a reason without the file's name.
    pub(super) fn from_json(json: &str) -> Result<Self, String> {
        let mut card: Self = serde_json::from_str(json).map_err(|error| format!("card: {error}"))?;
        if card.schema == 1 {
            card.config.as_in_schema_1();
        }
        card.read_from = ReadFrom(Some(sha256_hex(json.as_bytes())));
        match card.mistakes() {
            mistakes if mistakes.is_empty() => Ok(card),
            mistakes => Err(format!("card: {}", mistakes.join("; "))),
        }
    }

    /// Checks the version of the card in `json`. Comes before everything else, since nothing is known of the fields of a newer
    /// version. The error is a reason without the file's name.
    pub(super) fn check_schema(json: &str) -> Result<(), String> {
        #[derive(Deserialize)]
        struct Versioned {
            schema: u64,
        }
        match serde_json::from_str::<Versioned>(json) {
            Ok(Versioned { schema }) if schema > u64::from(SCHEMA) => Err(format!(
                "was written by a newer diad (schema {schema}, this one reads up to {SCHEMA}); update diad"
            )),
            Ok(Versioned { schema: 0 }) => Err(format!("card: schema = 0: expected 1 to {SCHEMA}")),
            Ok(_) => Ok(()),
            Err(error) => Err(format!("card: {error}")),
        }
    }
}

impl Measured {
    fn good_scores(&self) -> GoodScores {
        match self.calibration {
            Some(calibration) => calibration.good_scores(&self.calibration_scores, &self.calibration_groups),
            None => GoodScores::new(&self.calibration_scores, &self.calibration_groups),
        }
    }

    fn check(&self, key: &str, found: &mut Mistakes) {
        let scores = &self.calibration_scores;
        let at = format!("{key}.calibration_scores");
        if let Some(i) = scores.iter().position(|score| !score.is_finite()) {
            found.add(&format!("{at}[{i}]"), scores[i], "a finite number".into());
        } else if let Some(i) = scores.windows(2).position(|pair| pair[0] > pair[1]) {
            found.add(&format!("{at}[{}]", i + 1), scores[i + 1], format!("at least {}, ascending", scores[i]));
        } else if scores.is_empty() {
            found.add(&at, "[]", "at least one score".into());
        }
        let groups = self.calibration_groups.len();
        if groups != 0 && groups != scores.len() {
            let expected = format!("{}, one for each calibration score", scores.len());
            return found.add(&format!("{key}.calibration_groups"), format!("{groups} groups"), expected);
        }
        if !self.pixel_threshold.is_finite() {
            found.add(&format!("{key}.pixel_threshold"), self.pixel_threshold, "a finite number".into());
        }
        let good = self.good_scores();
        check_threshold(&format!("{key}.ng"), &self.ng, scores, &good, found);
        check_threshold(&format!("{key}.warn"), &self.warn, scores, &good, found);
        if self.warn.rank > self.ng.rank {
            found.add(&format!("{key}.warn.rank"), self.warn.rank, format!("at most {}, the rank of ng", self.ng.rank));
        } else if self.warn.value > self.ng.value {
            let expected = format!("at most {}, the value of ng", self.ng.value);
            found.add(&format!("{key}.warn.value"), self.warn.value, expected);
        }
    }
}

impl ClassCard {
    /// What this class measures in an arithmetic, where that is known.
    pub fn measured_in(&self, arithmetic: Arithmetic) -> Option<Measured> {
        if arithmetic != Arithmetic::F32 {
            return self.measured.get(arithmetic.name()).cloned();
        }
        Some(Measured {
            calibration_scores: self.calibration_scores.clone(),
            calibration_groups: self.calibration_groups.clone(),
            calibration: self.calibration,
            ng: self.ng,
            warn: self.warn,
            pixel_threshold: self.pixel_threshold,
        })
    }

    /// This class with these scores and thresholds in place of its own.
    pub(crate) fn with(self, measured: Measured) -> Self {
        let Measured { calibration_scores, calibration_groups, calibration, ng, warn, pixel_threshold } = measured;
        Self { calibration_scores, calibration_groups, calibration, ng, warn, pixel_threshold, ..self }
    }

    /// The calibration scores with what each counts.
    pub fn good_scores(&self) -> GoodScores {
        self.as_calibrated(&self.calibration_scores, &self.calibration_groups)
    }

    /// Other scores of the same images, ascending, with thresholds as this class has them.
    pub fn as_calibrated(&self, sorted_scores: &[f32], groups: &[u32]) -> GoodScores {
        match self.calibration {
            Some(calibration) => calibration.good_scores(sorted_scores, groups),
            None => GoodScores::new(sorted_scores, groups),
        }
    }

    /// Whether the score has a term that known defects have taught.
    pub fn is_taught_by_defects(&self) -> bool {
        self.known_defects.as_ref().is_some_and(|known| known.taught)
    }

    /// The threshold that promises a false-reject rate of `rate`.
    ///
    /// # Errors
    /// When there are too few parts for it.
    pub fn threshold(&self, rate: f64) -> Result<Threshold, TooFew> {
        self.good_scores().threshold(rate)
    }

    fn check(&self, key: &str, found: &mut Mistakes) {
        found.name(&format!("{key}.name"), &self.name);
        let own = self.measured_in(Arithmetic::F32);
        own.iter().for_each(|own| own.check(key, found));
        for (name, measured) in &self.measured {
            measured.check(&format!("{key}.measured.{name}"), found);
        }
        for (i, image) in self.images.iter().enumerate() {
            found.digest(&format!("{key}.images[{i}].file_sha256"), &image.file_sha256);
            found.digest(&format!("{key}.images[{i}].pixels_sha256"), &image.pixels_sha256);
        }
        for (i, image) in self.known_defects.iter().flat_map(|known| &known.images).enumerate() {
            found.digest(&format!("{key}.known_defects.images[{i}].file_sha256"), &image.file_sha256);
            found.digest(&format!("{key}.known_defects.images[{i}].pixels_sha256"), &image.pixels_sha256);
            if !image.score.is_finite() {
                found.add(&format!("{key}.known_defects.images[{i}].score"), image.score, "a finite number".into());
            }
        }
        if !(self.prototype_limit.is_finite() && self.prototype_limit > 0.0) {
            found.add(&format!("{key}.prototype_limit"), self.prototype_limit, "a finite number above 0".into());
        }
    }
}

/// Checks a threshold: it is one of the class's scores, at a rank that keeps the promised rate, or just below it where thresholds
/// are interpolated.
fn check_threshold(key: &str, threshold: &Threshold, scores: &[f32], good: &GoodScores, found: &mut Mistakes) {
    let Threshold { value, rank, n, groups, false_reject_rate, interval: [low, high] } = *threshold;
    let all = scores.len() + good.rejected();
    if groups.unwrap_or(n) != good.groups() && n == all {
        found.add(&format!("{key}.groups"), groups.unwrap_or(n), format!("{}, the number of groups", good.groups()));
    }
    if n != all {
        found.add(
            &format!("{key}.n"),
            n,
            format!("{all}, the number of calibration scores and of parts that were not located"),
        );
    }
    match rank.checked_sub(1).and_then(|i| scores.get(i)) {
        None => found.add(&format!("{key}.rank"), rank, format!("1 to {}", scores.len())),
        Some(upper) if good.is_interpolated() => {
            let lower = scores[rank.saturating_sub(2)];
            if !(lower <= value && value <= *upper) {
                let expected = format!("{lower} to {upper}, calibration scores {} and {rank}", rank - 1);
                found.add(&format!("{key}.value"), value, expected);
            }
        }
        Some(score) if *score != value => {
            found.add(&format!("{key}.value"), value, format!("{score}, calibration score {rank}"));
        }
        Some(_) => {}
    }
    // A higher rank than needed keeps the promise all the more.
    if !(0.0 < false_reject_rate && false_reject_rate <= 1.0) {
        found.add(&format!("{key}.false_reject_rate"), false_reject_rate, "a number x with 0 < x <= 1".into());
    } else if !good.rank(false_reject_rate).is_ok_and(|needed| rank >= needed) {
        let expected = format!("a rate that rank {rank} of {} scores keeps", scores.len());
        found.add(&format!("{key}.false_reject_rate"), false_reject_rate, expected);
    }
    if !(0.0 <= low && low <= high && high <= 1.0) {
        found.add(&format!("{key}.interval"), format!("[{low}, {high}]"), "0 <= low <= high <= 1".into());
    }
}

/// A list of mistakes in the order in which they were found; beyond the first few they are only counted.
#[derive(Default)]
struct Mistakes {
    list: Vec<String>,
    more: usize,
}

impl Mistakes {
    fn add(&mut self, key: &str, got: impl std::fmt::Display, expected: String) {
        if self.list.len() < MAX_MISTAKES {
            self.list.push(format!("{key} = {got}: expected {expected}"));
        } else {
            self.more += 1;
        }
    }

    fn name(&mut self, key: &str, name: &str) {
        if name.trim().is_empty() || name.len() > MAX_NAME || name.chars().any(char::is_control) {
            let start: String = name.chars().take(40).collect();
            self.add(key, format!("{start:?}"), format!("a name of 1 to {MAX_NAME} bytes without control characters"));
        }
    }

    fn digest(&mut self, key: &str, digest: &str) {
        if !is_sha256(digest) {
            let start: String = digest.chars().take(70).collect();
            self.add(key, format!("{start:?}"), "64 lowercase hexadecimal digits".into());
        }
    }

    fn told(mut self) -> Vec<String> {
        self.more += self.list.len().saturating_sub(MAX_MISTAKES);
        self.list.truncate(MAX_MISTAKES);
        if self.more > 0 {
            self.list.push(format!("and {} more", self.more));
        }
        self.list
    }
}
