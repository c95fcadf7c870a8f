//! From trained weights to a model: prototypes and statistics of the images that teach, thresholds from scores by networks and
//! statistics that have not seen the image.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use candle_core::Tensor;

use super::fit::{Role, fold_parts};
use super::known_defects::{Cells, FEWEST_DEFECTS, FOLDS, GoodPart, KnownDefect, Learned, fit, seen_by};
use super::training_set::{Features, Image};
use super::{ClassScores, Context, Event, TrainingSet, class_card};
use crate::bundle::{
    CalibrationCard, Card, ClassCard, ImageCard, KnownDefectsCard, ReadFrom, SCHEMA, ScoreSource, TrainingCard,
};
use crate::config::{Config, DEFAULT_TARGET_FPR, ScoreKind};
use crate::detector::{
    self, Branch, Inspection, Mask, Network, Reconstruction, Reconstructor, Scorer, mean_over_cells,
    prototype_distance, stored_noise,
};
use crate::error::Result;
use crate::features::FeatureExtractor;
use crate::frame::Prepared;
use crate::model::denoiser::Denoisers;
use crate::residuals::ResidualSums;

/// Images whose residuals are computed at a time.
const STATISTICS_BATCH: usize = 16;
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
    let mut progress = Progress { context, done: 0, total: passes * count(&all) + looks * images.frames.len() };
    let maker = |role| Maker::new(config, set, averages, role);

    let last = maker(Role::Final)?;
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
    let mut unseen = Unseen::new(set);
    if parts == 1 {
        network = unseen.score_held_out(network, taught.then_some(&good), defects, &mut progress)?;
    }
    for role in roles.into_iter().filter(|role| *role != Role::Final) {
        let parts: Vec<usize> = (0..parts).filter(|&part| role.leaves_out(config, part)).collect();
        unseen.score_folds(&maker(role)?, &parts, taught.then_some(defects), &mut progress)?;
    }
    let known = known_defects(config, set, [&unseen.without, &unseen.with], &learned, defects)?;
    if taught {
        let term = |(learned, card): (&Learned, &Option<KnownDefectsCard>)| {
            learned.weights.clone().filter(|_| card.as_ref().is_some_and(|card| card.taught))
        };
        network = network.with_known_defects(learned.iter().zip(&known).map(term).collect())?;
    }
    let scored = unseen.chosen(&known);
    let card = Card {
        schema: SCHEMA,
        tool: concat!("diad ", env!("CARGO_PKG_VERSION")).to_owned(),
        config: config.clone(),
        backbone: set.backbone_card(config)?,
        classes: class_cards(config, set, &scored, &farthest, known)?,
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

/// Makes networks with one denoiser and different statistics.
struct Maker<'a> {
    config: &'a Config,
    set: &'a TrainingSet,
    features: Features,
    /// By the number of the shape.
    shapes: Vec<InShape>,
}

/// What networks of one maker share in a shape of their input.
struct InShape {
    config: Config,
    extractor: Arc<FeatureExtractor>,
    reconstructor: Arc<Reconstructor>,
}

impl<'a> Maker<'a> {
    /// With the denoiser of a role; `averages` are the weights of all.
    fn new(config: &'a Config, set: &'a TrainingSet, averages: &BTreeMap<String, Tensor>, role: Role) -> Result<Self> {
        let own = role.own(averages).into_iter();
        let weights = own.map(|(name, tensor)| Ok((name, set.device.weight(&tensor)?)));
        let weights = weights.collect::<Result<BTreeMap<String, Tensor>>>()?;
        let features = set.features(config, role)?;
        let extractor = set.extractor(config, &features)?;
        let in_shape = |(number, own): (usize, Config)| {
            let denoisers = Denoisers::new(config, set.shapes(), number, |name| weights.get(name).cloned())?;
            let reconstructor = Reconstructor::new(&own, &set.device, denoisers, stored_noise(&own))?;
            let extractor = Arc::new(extractor.on_grid(own.grid()));
            Ok(InShape { config: own, extractor, reconstructor: Arc::new(reconstructor) })
        };
        let shapes = set.shapes().configs(config).into_iter().enumerate().map(in_shape).collect::<Result<_>>()?;
        Ok(Self { config, set, features, shapes })
    }

    fn of_class(&self, class: usize) -> &InShape {
        &self.shapes[self.set.shapes().of(class)]
    }

    /// What some images (by class, where their features are) add up to.
    fn sums(&self, images: &[Vec<usize>], progress: &mut Progress<'_>) -> Result<Vec<ClassSums>> {
        let dim = self.config.dim();
        let class = |(class, indices): (usize, &Vec<usize>)| {
            let config = &self.of_class(class).config;
            let tokens = config.tokens();
            let mut residuals = ResidualSums::new(config.covariances(), dim, config.detection.context);
            let mut means = Vec::new();
            self.each_reconstruction(indices, class, progress, |features, reconstruction| {
                means.extend(features.chunks_exact(tokens * dim).map(|v| mean_over_cells(v, dim)));
                residuals.add(&reconstruction.residuals.flatten_all()?.to_vec1::<f32>()?);
                Ok(())
            })?;
            Ok(ClassSums { residuals, means: indices.iter().copied().zip(means).collect() })
        };
        images.iter().enumerate().map(class).collect()
    }

    /// A network with the statistics of some images, of which these are the sums, and for each class the largest distance of one of
    /// them from its prototype.
    fn network(
        &self,
        images: &[Vec<usize>],
        sums: &[ClassSums],
        progress: &mut Progress<'_>,
    ) -> Result<(Network, Vec<f32>)> {
        let dim = self.config.dim();
        let (mut residuals, mut prototypes, mut farthest) = (Vec::new(), Vec::new(), Vec::new());
        for class in sums {
            let mut prototype = vec![0.0; dim];
            for mean in class.means.values() {
                for (p, m) in prototype.iter_mut().zip(mean) {
                    *p += m / class.means.len() as f32;
                }
            }
            residuals.push(class.residuals.finish()?);
            let distances = class.means.values().map(|mean| prototype_distance(&prototype, mean));
            farthest.push(distances.fold(0.0f32, f32::max));
            prototypes.push(prototype);
        }
        let mut scorer = Scorer::new(self.config, residuals, &self.shapes[0].extractor)?;
        if needs_term_means(self.config) {
            let means = self.term_means(images, &scorer, progress)?;
            scorer = scorer.with_term_means(means)?;
        }
        let masks = self.set.masks.iter().flatten().cloned().map(Some).chain(std::iter::repeat(None));
        let branch = |(InShape { config, extractor, reconstructor }, mask): (&InShape, Option<Mask>)| {
            Branch::new(config, extractor.clone(), reconstructor.clone(), mask)
        };
        let templates = self.set.preparation.templates().iter().cloned().map(Some).chain(std::iter::repeat(None));
        let branches = self.shapes.iter().zip(masks).map(branch).zip(templates);
        let branches = branches.map(|(branch, template)| Ok(branch?.with_template(template))).collect::<Result<_>>()?;
        Ok((Network::new(self.config, self.set.shapes().clone(), branches, scorer, prototypes)?, farthest))
    }

    /// A network with the statistics of all images but those in one part of the folds; `whole` are the sums over all.
    fn without(&self, part: usize, whole: &[ClassSums], progress: &mut Progress<'_>) -> Result<(Network, Vec<f32>)> {
        let images = &self.set.images;
        let own = self.sums(&images.measured(|other| other == part), progress)?;
        let rest = whole.iter().zip(&own).map(|(whole, own)| whole.without(own)).collect::<Result<Vec<_>>>()?;
        self.network(&images.measured(|other| other != part), &rest, progress)
    }

    /// By class, the means of the terms of the score over some images.
    fn term_means(&self, images: &[Vec<usize>], scorer: &Scorer, progress: &mut Progress<'_>) -> Result<Vec<Vec<f32>>> {
        let mut term_means = Vec::new();
        for (class, indices) in images.iter().enumerate() {
            let InShape { config, reconstructor, .. } = self.of_class(class);
            let mut means = vec![0.0f64; 1 + config.detection.diffusion_alpha_bars.len()];
            let weight = 1.0 / (indices.len() * config.tokens()) as f64;
            self.each_reconstruction(indices, class, progress, |features, reconstruction| {
                let features = reconstructor.tensor(features)?;
                let distances = scorer.distances(&features, &reconstruction.residuals, class)?;
                means[0] += distances.iter().copied().map(f64::from).sum::<f64>() * weight;
                for (mean, errors) in means[1..].iter_mut().zip(&reconstruction.noise_errors) {
                    let errors = errors.flatten_all()?.to_vec1::<f32>()?;
                    *mean += errors.iter().map(|&e| f64::from(e).sqrt()).sum::<f64>() * weight;
                }
                Ok(())
            })?;
            term_means.push(means.into_iter().map(|m| (m as f32).max(f32::MIN_POSITIVE)).collect());
        }
        Ok(term_means)
    }

    /// Reconstructs images of a class, some at a time, and hands their features `[n, T, D]` and the result to `f`.
    fn each_reconstruction(
        &self,
        images: &[usize],
        class: usize,
        progress: &mut Progress<'_>,
        mut f: impl FnMut(&[f32], &Reconstruction) -> Result<()>,
    ) -> Result<()> {
        let InShape { config, reconstructor, .. } = self.of_class(class);
        let plan = reconstructor.plan(config.detection.ddim_steps)?;
        for group in images.chunks(STATISTICS_BATCH) {
            progress.context.stop.check()?;
            let mut features = Vec::new();
            for &index in group {
                features.extend(self.features.cache.get(index)?);
            }
            let class = reconstructor.condition_class(class);
            f(&features, &reconstructor.reconstruct(&reconstructor.tensor(&features)?, &plan, class)?)?;
            progress.set(progress.done + group.len());
        }
        Ok(())
    }
}

/// What images of one class add up to.
struct ClassSums {
    residuals: ResidualSums,
    /// Mean features `[D]` of each image, by where its features are.
    means: BTreeMap<usize, Vec<f32>>,
}

impl ClassSums {
    /// Without images that are in it.
    fn without(&self, others: &Self) -> Result<Self> {
        let means = self.means.iter().filter(|(image, _)| !others.means.contains_key(image));
        let means = means.map(|(image, mean)| (*image, mean.clone())).collect();
        Ok(Self { residuals: self.residuals.without(&others.residuals)?, means })
    }
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
    /// By the distance alone.
    without: Findings,
    /// With what known defects teach, where there are any.
    with: Findings,
}

impl<'a> Unseen<'a> {
    fn new(set: &'a TrainingSet) -> Self {
        let nothing: Findings =
            set.images.classes.iter().map(|class| class.images.iter().map(|_| None).collect()).collect();
        Self { set, without: nothing.clone(), with: nothing }
    }

    /// Images that were held out, by the model's network, which comes back as it was. Terms are of the parts that they do not
    /// score, of all `good` ones.
    fn score_held_out(
        &mut self,
        mut network: Network,
        good: Option<&GoodParts<'_>>,
        defects: &[Vec<KnownDefect>],
        progress: &mut Progress<'_>,
    ) -> Result<Network> {
        if let Some(good) = good {
            for fold in 0..FOLDS {
                let terms = good.terms(&network, defects, |other| other != fold)?;
                network = network.with_known_defects(terms)?;
                score(self.set, &network, |other| other == fold, &mut self.with, progress)?;
            }
            network = network.with_known_defects(defects.iter().map(|_| None).collect())?;
        }
        score(self.set, &network, |_| true, &mut self.without, progress)?;
        Ok(network)
    }

    /// The images in those parts of the folds that a denoiser has not seen, each by statistics that have not seen it either.
    fn score_folds(
        &mut self,
        maker: &Maker<'_>,
        parts: &[usize],
        defects: Option<&[Vec<KnownDefect>]>,
        progress: &mut Progress<'_>,
    ) -> Result<()> {
        let whole = maker.sums(&self.set.images.measured(|_| true), progress)?;
        let mut good = GoodParts::new(self.set);
        let mut waiting = Vec::new();
        for &part in parts {
            let (network, _) = maker.without(part, &whole, progress)?;
            score(self.set, &network, |other| other == part, &mut self.without, progress)?;
            if defects.is_some() {
                good.look(&network, |other| other == part, progress)?;
                waiting.push((part, network));
            }
        }
        for (part, network) in waiting {
            let terms = good.terms(&network, defects.unwrap_or_default(), |other| other != part)?;
            score(self.set, &network.with_known_defects(terms)?, |other| other == part, &mut self.with, progress)?;
        }
        Ok(())
    }

    /// The findings of the model that is made: with what known defects teach, for the classes where it uses that.
    fn chosen(self, known: &[Option<KnownDefectsCard>]) -> Findings {
        let taught = |found: &Finding| known[found.class].as_ref().is_some_and(|known| known.taught);
        let mut chosen = self.without;
        let pairs = chosen.iter_mut().flatten().zip(self.with.into_iter().flatten());
        for (without, with) in pairs.filter_map(|(without, with)| Some((without.as_mut()?, with?))) {
            let own = [&mut without.own].into_iter().chain(&mut without.candidates);
            let taken = own.zip([with.own].into_iter().chain(with.candidates)).filter(|(found, _)| taught(found));
            taken.for_each(|(found, with)| *found = with);
        }
        chosen
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
    wanted: impl Fn(usize) -> bool,
    scored: &mut [Vec<Option<Scored>>],
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

/// The cards of all classes; `farthest` is the largest distance of a teaching image from its class's prototype.
fn class_cards(
    config: &Config,
    set: &TrainingSet,
    scored: &[Vec<Option<Scored>>],
    farthest: &[f32],
    known: Vec<Option<KnownDefectsCard>>,
) -> Result<Vec<ClassCard>> {
    let (images, folds) = (&set.images.classes, config.calibration.folds);
    let each = |class: usize| {
        let found = images[class].groups.of.iter().zip(&scored[class]);
        found.filter_map(|(&group, scored)| Some((group, scored.as_ref()?)))
    };
    // Told its class, the scores of an image make a threshold. With these, the line would compare classes.
    let told = |class: usize| -> Result<f32> {
        let mut scores = ClassScores::default();
        each(class).for_each(|(group, Scored { own, .. })| scores.push(own.score, own.peak, group));
        let threshold = scores.threshold(&set.names[class], &config.calibration, score_source(config))?;
        Ok(threshold.value.max(f32::MIN_POSITIVE))
    };
    let told = (0..images.len()).map(told).collect::<Result<Vec<f32>>>()?;
    let limit = |class: usize| {
        let distances = each(class).map(|(_, scored)| scored.own.prototype_distance);
        distances.fold(farthest[class], f32::max) * UNKNOWN_FACTOR
    };
    let limits: Vec<f32> = (0..images.len()).map(limit).collect();
    let card = |class: usize| {
        let mut scores = ClassScores::default();
        let (name, own) = (&set.names[class], &images[class]);
        // As an unknown product a part is rejected whatever the threshold is: no good part may score higher.
        let highest = each(class).map(|(_, scored)| scored.own.score).fold(0.0, f32::max);
        for (group, Scored { own, candidates }) in each(class) {
            let in_units = |found: &Finding| found.score / told[found.class] * told[class];
            let chosen = candidates.iter().min_by(|a, b| in_units(a).total_cmp(&in_units(b)));
            let on_the_line = match chosen {
                _ if folds == 1 => own.score,
                Some(chosen) if chosen.prototype_distance > limits[chosen.class] => highest,
                Some(chosen) if chosen.class != class => in_units(chosen),
                _ => own.score,
            };
            scores.push(on_the_line, own.peak, group);
        }
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
        let source = CalibrationCard { source: score_source(config), folds, groups: own.groups.source };
        let card = class_card(name, scores, limits[class], &config.calibration, source)?;
        let shape = set.shapes().distinct()[set.shapes().of(class)];
        let shape = (config.has_own_shapes() || shape.roi.is_some()).then_some(shape);
        Ok(ClassCard { shape, train_images: teaching, images, ..card })
    };
    let mut cards = (0..images.len()).map(card).collect::<Result<Vec<_>>>()?;
    cards.iter_mut().zip(known).for_each(|(card, known)| card.known_defects = known);
    Ok(cards)
}

/// Images of all passes that are done, for whoever watches.
struct Progress<'a> {
    context: Context<'a>,
    done: usize,
    total: usize,
}

impl Progress<'_> {
    fn set(&mut self, done: usize) {
        self.done = done;
        self.context.observer.event(&Event::Calibration { done, total: self.total });
    }
}

/// Whether the score is made of terms in units of their mean over good parts.
fn needs_term_means(config: &Config) -> bool {
    matches!(config.detection.score, ScoreKind::Diffusion | ScoreKind::Sum)
}
