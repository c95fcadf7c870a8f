//! From trained weights to a model: prototypes and statistics of the images that teach, thresholds from scores by networks and
//! statistics that have not seen the image.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;

use candle_core::Tensor;

use super::fit::{Role, fold_parts};
use super::known_defects::{Cells, FEWEST_DEFECTS, FOLDS, GoodPart, KnownDefect, Learned, fit, seen_by};
use super::maker::Maker;
use super::thresholds::measured as measured_by;
use super::training_set::{ClassImages, Image};
use super::{ClassScores, Context, Event, TrainingSet, class_card};
use crate::bundle::{
    CalibrationCard, Card, ClassCard, ImageCard, KnownDefectsCard, ReadFrom, SCHEMA, ScoreSource, TrainingCard,
};
use crate::config::{Config, DEFAULT_TARGET_FPR, ScoreKind};
use crate::detector::{self, Branch, Inspection, Network};
use crate::device::{Device, Precision};
use crate::error::Result;
use crate::frame::Prepared;

/// Images whose residuals are computed at a time.
pub(super) const STATISTICS_BATCH: usize = 16;
/// A product is unknown when it is farther from the prototype than this times the farthest good part.
const UNKNOWN_FACTOR: f32 = 2.0;

/// Measures good parts with the trained weights and writes the model to `out`.
///
/// All images that teach make the statistics of the model. Each image that is scored is scored by a network and statistics that
/// have not seen it: those of its fold, or the model's own for images that were held out. `defects`, by class, teach each network
/// a term of its score, beside good parts that are not those which it scores.
///
/// # Errors
/// When the file cannot be written or the device fails; `Error::Interrupted` when asked to stop.
pub fn finish(
    config: &Config,
    set: &TrainingSet,
    averages: &BTreeMap<String, Tensor>,
    defects: &[Vec<KnownDefect>],
    out: &Path,
    context: Context<'_>,
) -> Result<()> {
    let images = &set.images;
    let taught = defects.iter().any(|class| !class.is_empty());
    let parts = fold_parts(config);
    let roles = Role::all(config);
    let all = images.measured(|_| true);
    let count = |images: &[Vec<usize>]| images.iter().map(Vec::len).sum::<usize>();
    // Every network once over all images, and over those of each part; where terms have means, these once more for each network.
    let again = if needs_term_means(config) { parts } else { 0 };
    let passes = roles.len() + usize::from(parts > 1) + again + usize::from(taught && parts > 1);
    // Of the images that are scored: without a term and, for one, two more; the final network sees them by itself.
    let looks = 1 + if taught { 2 + usize::from(parts > 1) } else { 0 };
    let others = other_precisions(config, &set.device);
    let looks = looks + others.len() * if taught { 2 } else { 1 };
    let mut progress = Progress { context, done: 0, total: passes * count(&all) + looks * images.frames.len() };
    let maker = |role, device: &Device| Maker::new(config, set, averages, role, device);
    let in_others = |role| others.iter().map(|device| maker(role, device)?.branches()).collect::<Result<Vec<_>>>();

    let last = maker(Role::Final, &set.device)?;
    let sums = last.sums(&all, &mut progress)?;
    let (mut network, farthest) = last.network(&all, &sums, &mut progress)?;
    let mut good = GoodParts::new(set);
    if taught && parts == 1 {
        good.look(&network, |_| true, &mut progress)?;
    } else if taught {
        for part in 0..parts {
            let (network, _) = last.without(part, &sums, &mut progress)?;
            good.look(&network, |other| other == part, &mut progress)?;
        }
    }
    let learned = if taught { good.learn(&network, defects)? } else { Vec::new() };
    let mut unseen = Unseen::new(set, others.len());
    if parts == 1 {
        let (good, others) = (taught.then_some(&good), in_others(Role::Final)?);
        network = unseen.score_held_out(network, others, good, defects, &mut progress)?;
    }
    for role in roles.into_iter().filter(|role| *role != Role::Final) {
        let parts: Vec<usize> = (0..parts).filter(|&part| role.leaves_out(config, part)).collect();
        let (maker, others) = (maker(role, &set.device)?, in_others(role)?);
        unseen.score_folds(&maker, others, &parts, taught.then_some(defects), &mut progress)?;
    }
    let [without, with] = &unseen.found[0];
    let known = known_defects(config, set, [without, with], &learned, defects)?;
    if taught {
        let term = |(learned, card): (&Learned, &Option<KnownDefectsCard>)| {
            learned.weights.clone().filter(|_| card.as_ref().is_some_and(|card| card.taught))
        };
        network = network.with_known_defects(learned.iter().zip(&known).map(term).collect())?;
    }
    let mut scored = unseen.chosen(&known).into_iter();
    let own = scored.next().unwrap_or_default();
    let (mut classes, limits) = class_cards(config, set, &own, &farthest, known)?;
    for (device, scored) in others.iter().zip(scored) {
        let measured = class_scores(config, set, &scored, &limits)?;
        for ((class, scores), card) in measured.into_iter().enumerate().zip(&mut classes) {
            let measured = measured_by(&card.name, scores, &config.calibration, calibration_card(config, set, class))?;
            card.measured.insert(device.arithmetic().name().to_owned(), measured);
        }
    }
    let card = Card {
        schema: SCHEMA,
        tool: concat!("diad ", env!("CARGO_PKG_VERSION")).to_owned(),
        config: config.clone(),
        backbone: set.backbone_card(config)?,
        classes,
        training: TrainingCard {
            images: images.teachers(),
            data_sha256: set.data_sha256.clone(),
            seed: config.training.seed,
            steps: config.training.steps,
        },
        tensors_sha256: String::new(),
        unknown: BTreeMap::new(),
        read_from: ReadFrom::default(),
    };
    detector::save(out, &card, &network, &set.weights, &Role::Final.own(averages))
}

/// The images that are scored, as networks see them that have not seen them, by class.
struct GoodParts<'a> {
    set: &'a TrainingSet,
    of: Vec<Vec<GoodPart>>,
}

impl<'a> GoodParts<'a> {
    fn new(set: &'a TrainingSet) -> Self {
        Self { set, of: set.names.iter().map(|_| Vec::new()).collect() }
    }

    /// Adds the images in the parts of folds that are `wanted`.
    fn look(&mut self, network: &Network, wanted: impl Fn(usize) -> bool, progress: &mut Progress<'_>) -> Result<()> {
        for ((class, images), good) in self.set.images.classes.iter().enumerate().zip(&mut self.of) {
            let own = images.images.iter().zip(&images.folds).filter(|(_, fold)| wanted(**fold));
            let own: Vec<_> = own.filter_map(|(image, fold)| Some((image.frame()?, *fold))).collect();
            for group in own.chunks(STATISTICS_BATCH) {
                progress.context.stop.check()?;
                let inputs = group.iter().map(|&(frame, _)| self.set.images.frames.get(frame));
                let inputs = inputs.collect::<Result<Vec<_>>>()?;
                let cells = Cells::of(network, &inputs.iter().collect::<Vec<_>>(), class)?;
                good.extend(cells.into_iter().zip(group).map(|(cells, &(_, fold))| GoodPart { cells, fold }));
                progress.set(progress.done + group.len());
            }
        }
        Ok(())
    }

    /// What the defects of each class teach a network.
    fn learn(&self, network: &Network, defects: &[Vec<KnownDefect>]) -> Result<Vec<Learned>> {
        let class = |(class, (good, defects)): (usize, (&Vec<GoodPart>, &Vec<KnownDefect>))| {
            Learned::of(network, good, defects, &seen_by(network, defects, class)?)
        };
        self.of.iter().zip(defects).enumerate().map(class).collect()
    }

    /// The terms of a network: from the defects of each class that has enough, and from the good parts in those parts of folds that
    /// are `wanted`.
    fn terms(
        &self,
        network: &Network,
        defects: &[Vec<KnownDefect>],
        wanted: impl Fn(usize) -> bool,
    ) -> Result<Vec<Option<Vec<f32>>>> {
        let term = |(class, (good, defects)): (usize, (&Vec<GoodPart>, &Vec<KnownDefect>))| {
            if defects.len() < FEWEST_DEFECTS {
                return Ok(None);
            }
            let seen = seen_by(network, defects, class)?;
            fit(good, |part| wanted(part.fold), defects, &seen, |_| true).map(Some)
        };
        self.of.iter().zip(defects).enumerate().map(term).collect()
    }
}

/// By class, what is found of each image by networks and statistics that have not seen it; `None` of those that are not scored.
type Findings = Vec<Vec<Option<Scored>>>;

struct Unseen<'a> {
    set: &'a TrainingSet,
    /// In single precision, then in each of the other precisions: by the distance alone, and with what known defects teach, where
    /// there are any.
    found: Vec<[Findings; 2]>,
}

impl<'a> Unseen<'a> {
    fn new(set: &'a TrainingSet, others: usize) -> Self {
        let nothing: Findings =
            set.images.classes.iter().map(|class| class.images.iter().map(|_| None).collect()).collect();
        Self { set, found: vec![[nothing.clone(), nothing]; 1 + others] }
    }

    /// Scores the images in the parts of folds that are `wanted`, in all precisions: with each of the `others` in place of the
    /// network's own branches.
    fn score(
        &mut self,
        network: &mut Network,
        others: &mut [Vec<Branch>],
        taught: bool,
        wanted: impl Fn(usize) -> bool,
        progress: &mut Progress<'_>,
    ) -> Result<()> {
        let of = usize::from(taught);
        let (first, rest) = self.found.split_at_mut(1);
        score(self.set, network, &wanted, &mut first[0][of], progress)?;
        for (branches, found) in others.iter_mut().zip(rest) {
            network.exchange(branches);
            let scored = score(self.set, network, &wanted, &mut found[of], progress);
            network.exchange(branches);
            scored?;
        }
        Ok(())
    }

    /// Images that were held out, by the model's network, which comes back as it was. Terms are of the parts that they do not
    /// score, of all `good` ones.
    fn score_held_out(
        &mut self,
        mut network: Network,
        mut others: Vec<Vec<Branch>>,
        good: Option<&GoodParts<'_>>,
        defects: &[Vec<KnownDefect>],
        progress: &mut Progress<'_>,
    ) -> Result<Network> {
        if let Some(good) = good {
            for fold in 0..FOLDS {
                let terms = good.terms(&network, defects, |other| other != fold)?;
                network = network.with_known_defects(terms)?;
                self.score(&mut network, &mut others, true, |other| other == fold, progress)?;
            }
            network = network.with_known_defects(defects.iter().map(|_| None).collect())?;
        }
        self.score(&mut network, &mut others, false, |_| true, progress)?;
        Ok(network)
    }

    /// The images in those parts of the folds that a denoiser has not seen, each by statistics that have not seen it either.
    fn score_folds(
        &mut self,
        maker: &Maker<'_>,
        mut others: Vec<Vec<Branch>>,
        parts: &[usize],
        defects: Option<&[Vec<KnownDefect>]>,
        progress: &mut Progress<'_>,
    ) -> Result<()> {
        let whole = maker.sums(&self.set.images.measured(|_| true), progress)?;
        let mut good = GoodParts::new(self.set);
        let mut waiting = Vec::new();
        for &part in parts {
            let (mut network, _) = maker.without(part, &whole, progress)?;
            self.score(&mut network, &mut others, false, |other| other == part, progress)?;
            if defects.is_some() {
                good.look(&network, |other| other == part, progress)?;
                waiting.push((part, network));
            }
        }
        for (part, network) in waiting {
            let terms = good.terms(&network, defects.unwrap_or_default(), |other| other != part)?;
            let mut network = network.with_known_defects(terms)?;
            self.score(&mut network, &mut others, true, |other| other == part, progress)?;
        }
        Ok(())
    }

    /// The findings of the model that is made, in each precision: with what known defects teach, for the classes where it uses that.
    fn chosen(self, known: &[Option<KnownDefectsCard>]) -> Vec<Findings> {
        let taught = |found: &Finding| known[found.class].as_ref().is_some_and(|known| known.taught);
        let choose = |[mut chosen, with]: [Findings; 2]| {
            let pairs = chosen.iter_mut().flatten().zip(with.into_iter().flatten());
            for (without, with) in pairs.filter_map(|(without, with)| Some((without.as_mut()?, with?))) {
                let own = [&mut without.own].into_iter().chain(&mut without.candidates);
                let taken = own.zip([with.own].into_iter().chain(with.candidates)).filter(|(found, _)| taught(found));
                taken.for_each(|(found, with)| *found = with);
            }
            chosen
        };
        self.found.into_iter().map(choose).collect()
    }
}

/// The device in the precisions, beside single precision, that thresholds are measured in.
fn other_precisions(config: &Config, device: &Device) -> Vec<Device> {
    let asked = match config.calibration.precision {
        Precision::F32 => return Vec::new(),
        Precision::Auto if !device.has_cpu_kernels() => return Vec::new(),
        Precision::Auto => Precision::Bf16,
        other => other,
    };
    match device.in_precision(asked) {
        Ok(device) => vec![device],
        Err(_) if config.calibration.precision == Precision::Auto => Vec::new(),
        Err(error) => {
            tracing::warn!("thresholds are measured in f32 only: calibration.{error}");
            Vec::new()
        }
    }
}

/// Which images a run scores.
fn score_source(config: &Config) -> ScoreSource {
    if config.calibration.folds > 1 { ScoreSource::OutOfFold } else { ScoreSource::HeldOut }
}

/// By class, what its known defects are worth: `scored` without what they teach, and with it.
fn known_defects(
    config: &Config,
    set: &TrainingSet,
    scored: [&[Vec<Option<Scored>>]; 2],
    learned: &[Learned],
    defects: &[Vec<KnownDefect>],
) -> Result<Vec<Option<KnownDefectsCard>>> {
    let rate = config.calibration.target_fpr.unwrap_or(DEFAULT_TARGET_FPR);
    let class = |(class, (learned, defects)): (usize, (&Learned, &Vec<KnownDefect>))| {
        if defects.is_empty() {
            return Ok(None);
        }
        let own = |scored: &[Vec<Option<Scored>>]| -> Vec<f32> {
            scored[class].iter().flatten().map(|scored| scored.own.score).collect()
        };
        let groups = set.images.classes[class].groups.of.iter().zip(&scored[0][class]);
        let groups: Vec<u32> = groups.filter_map(|(group, scored)| scored.as_ref().map(|_| *group)).collect();
        learned.judge(defects, [&own(scored[0]), &own(scored[1])], &groups, score_source(config), rate).map(Some)
    };
    learned.iter().zip(defects).enumerate().map(class).collect()
}

/// What a network that has not seen an image makes of it.
#[derive(Clone)]
struct Scored {
    /// As a part of its own class.
    own: Finding,
    /// As a part of each class that the line would compare it with, where it is not told.
    candidates: Vec<Finding>,
}

#[derive(Clone)]
struct Finding {
    class: usize,
    score: f32,
    /// Highest value of the map.
    peak: f32,
    prototype_distance: f32,
}

impl From<Inspection> for Finding {
    fn from(found: Inspection) -> Self {
        let Inspection { class, score, prototype_distance, .. } = found;
        Self { class, score, peak: found.map.peak(), prototype_distance }
    }
}

/// Scores the images in the parts of folds that are `wanted`.
fn score(
    set: &TrainingSet,
    network: &Network,
    wanted: &impl Fn(usize) -> bool,
    scored: &mut Findings,
    progress: &mut Progress<'_>,
) -> Result<()> {
    for ((class, images), scored) in set.images.classes.iter().enumerate().zip(scored) {
        let places = images.images.iter().zip(&images.folds).enumerate();
        let places = places.filter(|(_, (image, fold))| wanted(**fold) && !image.frames.is_empty());
        let places: Vec<_> = places.map(|(i, (image, _))| (i, image.frames.clone())).collect();
        for group in places.chunks(STATISTICS_BATCH) {
            progress.context.stop.check()?;
            let inputs =
                |(_, frames): &(usize, Range<usize>)| frames.clone().map(|i| set.images.frames.get(i)).collect();
            let inputs = group.iter().map(inputs).collect::<Result<Vec<Vec<Prepared>>>>()?;
            let frames: Vec<_> = inputs.iter().map(|inputs| (inputs.as_slice(), class)).collect();
            for (&(image, _), found) in group.iter().zip(network.inspect_candidates(&frames)) {
                let (own, candidates) = found?;
                let candidates = candidates.into_iter().map(Finding::from).collect();
                scored[image] = Some(Scored { own: own.into(), candidates });
            }
            progress.set(progress.done + group.len());
        }
    }
    Ok(())
}

/// Of the images of a class that are scored: group and what is found of them.
fn each<'a>(
    set: &'a TrainingSet,
    scored: &'a Findings,
    class: usize,
) -> impl Iterator<Item = (u32, &'a Scored)> + use<'a> {
    let found = set.images.classes[class].groups.of.iter().zip(&scored[class]);
    found.filter_map(|(&group, scored)| Some((group, scored.as_ref()?)))
}

/// By class, the scores that make its thresholds: those that its good parts get on the line. `limits` are those of unknown products.
fn class_scores(config: &Config, set: &TrainingSet, scored: &Findings, limits: &[f32]) -> Result<Vec<ClassScores>> {
    // Told its class, the scores of an image make a threshold. With these, the line would compare classes.
    let told = |class: usize| -> Result<f32> {
        let mut scores = ClassScores::default();
        each(set, scored, class).for_each(|(group, Scored { own, .. })| scores.push(own.score, own.peak, group));
        let threshold =
            scores.threshold(&set.names[class], &config.calibration, calibration_card(config, set, class))?;
        Ok(threshold.value.max(f32::MIN_POSITIVE))
    };
    let told = (0..limits.len()).map(told).collect::<Result<Vec<f32>>>()?;
    let scores = |class: usize| {
        let mut scores = ClassScores::default();
        // As an unknown product a part is rejected whatever the threshold is: no good part may score higher.
        let highest = each(set, scored, class).map(|(_, scored)| scored.own.score).fold(0.0, f32::max);
        for (group, Scored { own, candidates }) in each(set, scored, class) {
            let in_units = |found: &Finding| found.score / told[found.class] * told[class];
            let chosen = candidates.iter().min_by(|a, b| in_units(a).total_cmp(&in_units(b)));
            let on_the_line = match chosen {
                _ if config.calibration.folds == 1 => own.score,
                Some(chosen) if chosen.prototype_distance > limits[chosen.class] => highest,
                Some(chosen) if chosen.class != class => in_units(chosen),
                _ => own.score,
            };
            scores.push(on_the_line, own.peak, group);
        }
        scores
    };
    Ok((0..limits.len()).map(scores).collect())
}

/// Where the scores of a class come from.
fn calibration_card(config: &Config, set: &TrainingSet, class: usize) -> CalibrationCard {
    let ClassImages { groups, not_located, .. } = &set.images.classes[class];
    CalibrationCard {
        source: score_source(config),
        folds: config.calibration.folds,
        groups: groups.source,
        not_located: *not_located,
    }
}

/// The cards of all classes, and the limits of unknown products on them; `farthest` is the largest distance of a teaching image from
/// its class's prototype.
fn class_cards(
    config: &Config,
    set: &TrainingSet,
    scored: &Findings,
    farthest: &[f32],
    known: Vec<Option<KnownDefectsCard>>,
) -> Result<(Vec<ClassCard>, Vec<f32>)> {
    let images = &set.images.classes;
    let limit = |class: usize| {
        let distances = each(set, scored, class).map(|(_, scored)| scored.own.prototype_distance);
        distances.fold(farthest[class], f32::max) * UNKNOWN_FACTOR
    };
    let limits: Vec<f32> = (0..images.len()).map(limit).collect();
    let card = |(class, scores): (usize, ClassScores)| {
        let (name, own) = (&set.names[class], &images[class]);
        let image = |((image, &group), scored): ((&Image, &u32), &Option<Scored>)| {
            let found = scored.as_ref().map(|scored| &scored.own);
            let [file_sha256, pixels_sha256] = image.digests.clone();
            ImageCard {
                file_sha256,
                pixels_sha256,
                group,
                taught: image.features.is_some(),
                score: found.map(|found| found.score),
                peak: found.map(|found| found.peak),
                prototype_distance: found.map(|found| found.prototype_distance),
            }
        };
        let images: Vec<_> = own.images.iter().zip(&own.groups.of).zip(&scored[class]).map(image).collect();
        let teaching = own.images.iter().filter(|image| image.features.is_some()).count();
        let source = calibration_card(config, set, class);
        let card = class_card(name, scores, limits[class], &config.calibration, source)?;
        let shape = set.shapes().distinct()[set.shapes().of(class)];
        let shape = (config.has_own_shapes() || shape.roi.is_some()).then_some(shape);
        Ok(ClassCard { shape, train_images: teaching, images, ..card })
    };
    let scores = class_scores(config, set, scored, &limits)?;
    let mut cards = scores.into_iter().enumerate().map(card).collect::<Result<Vec<_>>>()?;
    cards.iter_mut().zip(known).for_each(|(card, known)| card.known_defects = known);
    Ok((cards, limits))
}

/// Images of all passes that are done, for whoever watches.
pub(super) struct Progress<'a> {
    pub(super) context: Context<'a>,
    pub(super) done: usize,
    total: usize,
}

impl Progress<'_> {
    pub(super) fn set(&mut self, done: usize) {
        self.done = done;
        self.context.observer.event(&Event::Calibration { done, total: self.total });
    }
}

/// Whether the score is made of terms in units of their mean over good parts.
pub(super) fn needs_term_means(config: &Config) -> bool {
    matches!(config.detection.score, ScoreKind::Diffusion | ScoreKind::Sum)
}
