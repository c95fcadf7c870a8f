//! The rows that `evaluate --baselines` adds.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use rayon::prelude::*;

use super::ground_truth::{ShownArea, ground_truth};
use super::images::prepare;
use super::{Context, messages};
use crate::baselines::{Baselines, ClassBaseline, ClassFit, METHODS};
use crate::bundle::{Card, ClassCard};
use crate::calibrate::sorted;
use crate::config::{Config, GroupSource};
use crate::data::groups::Groups;
use crate::data::{Category, Dataset, Input, ReadAhead, Sample, hold_out};
use crate::detector::{AnomalyMap, Network};
use crate::error::Result;
use crate::frame::{Geometry, Prepared};
use crate::metrics::PixelSet;
use crate::report::{Baseline, BaselineClass, ImageResult, Metrics, OperatingPoint};

/// Images whose features are computed at a time.
const GROUP: usize = 8;

/// Learns the baselines from the good images that the model learned from, sets their thresholds as its own were set, and measures
/// them on `images`, the test images that it was measured on.
///
/// # Errors
/// When interrupted, when no good image of a class can be read, when the device fails.
pub(super) fn measure(
    context: &Context,
    network: &Network,
    card: &Card,
    data: &Dataset,
    images: &[ImageResult],
) -> Result<BTreeMap<String, Baseline>> {
    let categories: Vec<&Category> = data.categories.iter().filter(|category| !category.test.is_empty()).collect();
    let (baselines, thresholds) = fit(context, network, card, &categories)?;
    let results: BTreeMap<&str, &ImageResult> = images.iter().map(|image| (image.path.as_str(), image)).collect();
    let mut methods: [BTreeMap<String, BaselineClass>; METHODS.len()] = Default::default();
    let mut task = context.task("baselines", categories.iter().map(|category| category.test.len()).sum());
    let mut done = 0;
    for (class, category) in categories.iter().enumerate() {
        let mut figures = METHODS.map(|_| Figures::of(category));
        let own = index(card, category);
        let paths: Vec<PathBuf> = category.test.iter().map(|sample| sample.path.clone()).collect();
        ReadAhead::new(GROUP, &context.stop).each_group(&paths, prepare(context, network, own), |group| {
            done += group.len();
            // An image that cannot be read, or that the model knows, was named when the model was measured.
            let read = group.into_iter().filter_map(|(index, image)| {
                let sample = &category.test[index];
                let result = results.get(messages::below(&sample.path, &data.root).as_str())?;
                Some(((sample, *result), image.ok()?))
            });
            let (samples, inputs): (Vec<(&Sample, &ImageResult)>, Vec<Prepared>) = read.unzip();
            let features = features(network, &inputs)?;
            let maps = features.par_iter().map(|(features, geometry)| {
                let distances = baselines.distances(features, class);
                distances.map(|distance| network.map(own, distance, *geometry))
            });
            let maps = maps.collect::<Vec<_>>();
            for ((sample, result), maps) in samples.into_iter().zip(maps) {
                for (figures, (score, map)) in figures.iter_mut().zip(maps) {
                    figures.add(sample, result, score, &map)?;
                }
            }
            task.set(done, &category.name);
            Ok(())
        })?;
        for ((method, figures), threshold) in methods.iter_mut().zip(figures).zip(thresholds[class]) {
            method.insert(category.name.clone(), figures.class(threshold)?);
        }
    }
    task.finish();
    Ok(METHODS.iter().zip(methods).map(|(name, classes)| ((*name).to_owned(), Baseline::new(classes))).collect())
}

/// The good images of a product: features in the backbone's space, and which of them may see which.
struct Good {
    /// The class of the model whose shape they are looked at in.
    class: usize,
    features: Vec<(Vec<f32>, Geometry)>,
    /// The part that each shows.
    groups: Vec<u32>,
    /// Which of the images are scored by a fit to those that are not in this set: each fold of all, or those that were held out.
    unseen: Vec<Vec<usize>>,
    /// The images that teach.
    taught: Vec<usize>,
}

impl Good {
    fn read(
        context: &Context,
        network: &Network,
        (number, class): (usize, Option<&ClassCard>),
        paths: &[PathBuf],
        mut progress: impl FnMut(usize),
    ) -> Result<Self> {
        let preparation = network.preparation();
        let read = |path: &Path| Input::read(path, &preparation, number, &context.depth)?.located(path);
        let (mut found, mut digests, mut kept) = (Vec::new(), Vec::new(), Vec::new());
        ReadAhead::new(GROUP, &context.stop).each_group(paths, read, |group| {
            progress(group.len());
            let mut inputs = Vec::with_capacity(group.len());
            for (index, image) in group {
                match image {
                    Ok(input) => {
                        let [_, pixels] = input.digests();
                        digests.push(pixels);
                        kept.push(&paths[index]);
                        inputs.extend(input.inputs.into_iter().take(1));
                    }
                    Err(error) => context.console.warn(messages::left_out(&error)),
                }
            }
            found.extend(features(network, &inputs)?);
            Ok(())
        })?;
        let groups = groups(class, &digests);
        let Config { calibration, training, .. } = network.config();
        let all = 0..found.len();
        let (unseen, taught) = match calibration.folds {
            1 => {
                let held_out = hold_out(paths, training.calibration_fraction, training.seed).calibration;
                let (unseen, taught) = all.partition(|&image| held_out.contains(kept[image]));
                (vec![unseen], taught)
            }
            folds => {
                let dealt = groups.folds(folds.min(groups.count()), &digests);
                let of = |fold| all.clone().filter(|&image| dealt[image] == fold).collect();
                ((0..folds).map(of).collect(), all.clone().collect())
            }
        };
        Ok(Self { class: number, features: found, groups: groups.of, unseen, taught })
    }

    /// The baselines of some of the images.
    fn fit(&self, network: &Network, images: &[usize]) -> Result<ClassBaseline> {
        let config = network.branch(self.class).config();
        let mut fit = ClassFit::new(config.covariances(), config.dim(), images.len(), config.training.seed);
        images.iter().for_each(|&image| fit.add(&self.features[image].0));
        fit.finish()
    }
}

/// The class of the model that a category's images are looked at as: that of its name, else the first.
fn index(card: &Card, category: &Category) -> usize {
    card.classes.iter().position(|class| class.name == category.name).unwrap_or(0)
}

/// The parts that images show, by what the model's card says of them; those that it does not know are parts of their own.
fn groups(class: Option<&ClassCard>, digests: &[String]) -> Groups {
    let known = class.into_iter().flat_map(|class| &class.images);
    let known: BTreeMap<&str, u32> = known.map(|image| (image.pixels_sha256.as_str(), image.group)).collect();
    Groups::named(GroupSource::Found, digests.iter().map(|digest| known.get(digest.as_str())))
}

/// The baselines, and for each class the threshold of each method; none where so few parts cannot promise the model's rate.
fn fit(
    context: &Context,
    network: &Network,
    card: &Card,
    categories: &[&Category],
) -> Result<(Baselines, Vec<[Option<f32>; METHODS.len()]>)> {
    let total = categories.iter().map(|category| category.train.len()).sum();
    let (mut task, mut done) = (context.task("learning", total), 0);
    let mut good = Vec::new();
    for category in categories {
        let class = card.classes.iter().find(|class| class.name == category.name);
        good.push(Good::read(context, network, (index(card, category), class), &category.train, |more| {
            done += more;
            task.set(done, "for the baselines");
        })?);
    }
    task.finish();
    let classes: Result<Vec<_>> = good.iter().map(|good| good.fit(network, &good.taught)).collect();
    let mut baselines = Baselines::new(classes?);
    let total = good.iter().flat_map(|good| &good.unseen).map(Vec::len).sum();
    let (mut task, mut done) = (context.task("thresholds", total), 0);
    let mut thresholds = Vec::new();
    for (class, (good, category)) in good.iter().zip(categories).enumerate() {
        let mut scores: [Vec<(f32, u32)>; METHODS.len()] = Default::default();
        for unseen in good.unseen.iter().filter(|unseen| !unseen.is_empty()) {
            context.stop.check()?;
            let others: Vec<usize> = good.taught.iter().copied().filter(|image| !unseen.contains(image)).collect();
            let whole = baselines.replace(class, good.fit(network, &others)?);
            let found = unseen.par_iter().map(|&image| {
                let (features, geometry) = &good.features[image];
                let distances = baselines.distances(features, class);
                (image, distances.map(|distance| network.map(good.class, distance, *geometry).0))
            });
            for (image, found) in found.collect::<Vec<_>>() {
                scores.iter_mut().zip(found).for_each(|(scores, score)| scores.push((score, good.groups[image])));
            }
            baselines.replace(class, whole);
            done += unseen.len();
            task.set(done, "for the baselines");
        }
        let promised = card.classes.iter().find(|class| class.name == category.name).or(card.classes.first());
        let threshold = |scores| -> Result<Option<f32>> {
            let (scores, groups) = sorted(scores)?;
            let threshold =
                |class: &ClassCard| class.as_calibrated(&scores, &groups).threshold(class.ng.false_reject_rate);
            Ok(promised.and_then(|class| Some(threshold(class).ok()?.value)))
        };
        let [mahalanobis, own, all] = scores;
        thresholds.push([threshold(mahalanobis)?, threshold(own)?, threshold(all)?]);
    }
    task.finish();
    Ok((baselines, thresholds))
}

fn features(network: &Network, inputs: &[Prepared]) -> Result<Vec<(Vec<f32>, Geometry)>> {
    let values = network.device().values(inputs, |some| network.features(&some.iter().collect::<Vec<_>>()));
    inputs.iter().zip(values).map(|(prepared, values)| Ok((values?, prepared.geometry))).collect()
}

/// What one method says of the images of one class.
struct Figures {
    images: Vec<ImageResult>,
    pixels: Option<PixelSet>,
}

impl Figures {
    fn of(category: &Category) -> Self {
        let masks = category.test.iter().any(|sample| sample.mask.is_some());
        Self { images: Vec::new(), pixels: masks.then(PixelSet::new) }
    }

    /// Adds an image; `result` is what the model said of it.
    fn add(&mut self, sample: &Sample, result: &ImageResult, score: f32, map: &AnomalyMap) -> Result<()> {
        // Baselines do not doubt the product.
        self.images.push(ImageResult { score, class_source: "known".to_owned(), ..result.clone() });
        // A mask that cannot be read was told of when the model was measured.
        let truth = ground_truth(sample, &map.geometry).unwrap_or_default();
        if let (Some(pixels), Some(truth)) = (&mut self.pixels, truth) {
            let area = ShownArea::of(&map.geometry);
            pixels.push(&area.cut(&map.on_input()), &area.cut(&truth), area.width, area.height)?;
        }
        Ok(())
    }

    fn class(self, threshold: Option<f32>) -> Result<BaselineClass> {
        let ranking = self.pixels.map(PixelSet::rank);
        let scores: Vec<f32> = self.images.iter().map(|image| image.score).collect();
        let defects: Vec<bool> = self.images.iter().map(ImageResult::is_defect).collect();
        Ok(BaselineClass {
            metrics: Metrics::measure(&scores, &defects, ranking.as_ref())?,
            decision: threshold.map(|threshold| OperatingPoint::measure(&self.images, threshold)).transpose()?,
        })
    }
}
