//! The images of a training run, prepared: features of those that teach, pixels of those that are scored for the thresholds
//! (the same ones, unless some are held out), and what was fitted to get there. Made once, before the first step; networks of
//! several configurations can be trained from it.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use candle_core::Tensor;
use rayon::prelude::*;
use sha2::{Digest, Sha256};

use super::augment::changed_copy;
use super::cache::{FeatureCache, FrameCache};
use super::fit::{Role, fold_parts};
use super::known_defects::FOLDS;
use super::looks::Looks;
use super::thresholds::{self, check_rate};
use super::{Context, Event, GroupProblem};
use crate::bundle::BackboneCard;
use crate::calibrate::GoodScores;
use crate::config::{Augment, Config, Grouping, Shapes, Size, SpaceKind};
use crate::data::split::{MIN_CALIBRATION, name_hash};
use crate::data::{
    self, Category, Dataset, GroupBy, Groups, Input, ReadAhead, SampleDepth, Split, check_unreadable, groups,
};
use crate::detector::Mask;
use crate::device::Device;
use crate::error::{Error, Result};
use crate::features::{FeatureExtractor, FeatureTransform, backbone_features};
use crate::frame::{Frame, Preparation, Prepared};
use crate::model::{self, Weights};
use crate::text::hex;

/// Feature rows that the feature transform is fitted to, at most.
const FIT_ROWS: usize = 60_000;

/// The prepared images of a training run.
pub struct TrainingSet {
    /// The device that everything is computed on.
    pub(super) device: Device,
    /// Names of the classes.
    pub(super) names: Vec<String>,
    pub(super) images: Images,
    /// Backbone weights; none in pixel space.
    pub(super) weights: Weights,
    /// What all images teach of features.
    whole: Features,
    /// Where caches go that outgrow the memory.
    folder: PathBuf,
    /// From frames to inputs.
    pub(super) preparation: Preparation,
    /// What counts, by the number of the shape, where not all does.
    pub(super) masks: Option<Vec<Mask>>,
    pub(super) data_sha256: String,
    /// Images that were left out, with the reason.
    pub unreadable: Vec<(PathBuf, String)>,
}

/// The features of the images that teach, as one network sees them.
#[derive(Clone)]
pub(super) struct Features {
    /// Fitted to the images that the network sees; none in pixel space.
    transform: Option<FeatureTransform>,
    /// `[T, D]` of each image, whether the network sees it or not.
    pub(super) cache: Arc<FeatureCache>,
}

/// The images that could be read.
pub(super) struct Images {
    /// Of those that teach what the backbone, or the picture, says: `[T, C]` each.
    raw: Arc<FeatureCache>,
    /// Those that are scored for the thresholds, as the model's input.
    pub(super) frames: FrameCache,
    pub(super) classes: Vec<ClassImages>,
}

/// Those of one class.
pub(super) struct ClassImages {
    pub(super) images: Vec<Image>,
    /// The part that each of them shows.
    pub(super) groups: Groups,
    /// The part of the folds that each of them is in.
    pub(super) folds: Vec<usize>,
    /// Images beside these that were to be scored, in which the part was not found.
    pub(super) not_located: usize,
}

/// One image.
pub(super) struct Image {
    pub(super) path: PathBuf,
    /// SHA-256 of the file and of the decoded pixels.
    pub(super) digests: [String; 2],
    /// Where its features are, if it teaches.
    pub(super) features: Option<usize>,
    /// Where those of its changed copy are, which only the statistics are told of.
    pub(super) copy: Option<usize>,
    /// Where its inputs are, if it is scored: that of its class, then those of other shapes that it would be tried in.
    pub(super) frames: Range<usize>,
}

impl Image {
    /// Where its input is, if it is scored.
    pub(super) fn frame(&self) -> Option<usize> {
        self.frames.clone().next()
    }
}

impl ClassImages {
    /// Number of parts of which an image is scored.
    pub(super) fn scored_parts(&self) -> usize {
        let scored = self.images.iter().zip(&self.groups.of).filter(|(image, _)| image.frame().is_some());
        scored.map(|(_, group)| group).collect::<BTreeSet<_>>().len()
    }
}

impl Images {
    /// Number of images that teach.
    pub(super) fn teachers(&self) -> usize {
        self.classes.iter().flat_map(|class| &class.images).filter(|image| image.features.is_some()).count()
    }

    /// By class, where the features are that make statistics of the parts of folds that are `wanted`: of images that teach and of
    /// their changed copies.
    pub(super) fn measured(&self, wanted: impl Fn(usize) -> bool) -> Vec<Vec<usize>> {
        let of = |class: &ClassImages| {
            let own =
                || class.images.iter().zip(&class.folds).filter(|(_, part)| wanted(**part)).map(|(image, _)| image);
            own().filter_map(|image| image.features).chain(own().filter_map(|image| image.copy)).collect()
        };
        self.classes.iter().map(of).collect()
    }

    /// By class, where the features of the images are that teach somebody who does not see those for which `left_out(fold)`.
    pub(super) fn teaching(&self, left_out: impl Fn(usize) -> bool) -> Vec<Vec<usize>> {
        let of = |class: &ClassImages| {
            let folds = class.images.iter().zip(&class.folds);
            folds.filter(|(_, fold)| !left_out(**fold)).filter_map(|(image, _)| image.features).collect()
        };
        self.classes.iter().map(of).collect()
    }
}

impl TrainingSet {
    /// Reads every image once. Caches that outgrow the configured memory go to `folder`; `backbone` is a file of weights for
    /// backbones that are not part of the program; `group_by` tells the part that an image shows.
    ///
    /// # Errors
    /// When more than 5 % of the images of a class cannot be read, when the parts that are scored are too few for the
    /// configured rate, what is said of groups is wrong, the weights are missing, or the device fails; `Error::Interrupted`.
    pub fn prepare(
        config: &Config,
        data: &Dataset,
        backbone: Option<&Path>,
        group_by: Option<&GroupBy>,
        folder: &Path,
        device: &Device,
        context: Context<'_>,
    ) -> Result<Self> {
        let Looks { preparation, masks, digests } = Looks::of(config, data, context)?;
        let grids: Vec<Size> = preparation.shapes().distinct().iter().map(|shape| shape.grid).collect();
        let (digest, unreadable) = (Sha256::new(), Vec::new());
        let mut reader =
            Reader { config, data, preparation: preparation.clone(), folder, device, context, digest, unreadable };
        let (weights, images) = match config.features.space {
            SpaceKind::Pixel => {
                let extractor = FeatureExtractor::of_pixels(device.clone(), grids[0]);
                let raw = |frames: &[&Frame], shape: usize| extractor.on_grid(grids[shape]).extract(frames);
                (Weights::new(), reader.read(&raw)?)
            }
            SpaceKind::Feature => {
                let weights = backbone_weights(config, backbone)?;
                let backbone = model::configured(&config.features, &weights, device)?;
                let raw = |frames: &[&Frame], shape: usize| {
                    backbone_features(backbone.as_ref(), device, grids[shape], frames)
                };
                let images = reader.read(&raw)?;
                (weights, images)
            }
        };
        let names = data.categories.iter().map(|c| c.name.clone()).collect();
        digests.into_iter().for_each(|digest| reader.digest.update(digest));
        let (data_sha256, unreadable) = (hex(&reader.digest.finalize()), reader.unreadable);
        let whole = features(config, preparation.shapes(), &images, &images.teaching(|_| false), folder)?;
        let (device, folder) = (device.clone(), folder.to_owned());
        let mut set =
            Self { device, names, images, weights, whole, folder, preparation, masks, data_sha256, unreadable };
        for (class, category) in data.categories.iter().enumerate() {
            set.group(config, class, category, group_by, context)?;
        }
        set.check_rates(config)?;
        Ok(set)
    }

    /// Finds the groups of a class's images, and deals them into folds.
    fn group(
        &mut self,
        config: &Config,
        class: usize,
        category: &Category,
        group_by: Option<&GroupBy>,
        context: Context<'_>,
    ) -> Result<()> {
        let (calibration, features) = (&config.calibration, &self.whole.cache);
        let ClassImages { images, not_located, .. } = &self.images.classes[class];
        let paths: Vec<PathBuf> = images.iter().map(|image| image.path.clone()).collect();
        let file = calibration.groups != Grouping::None;
        let mut problem = None;
        let groups = match groups::stated(group_by, file, &category.root, &paths)? {
            Some(groups) => groups,
            // Images that are held out have no features here, and those that teach no scores: there are no folds to keep apart.
            None if calibration.groups != Grouping::Auto || calibration.folds == 1 => Groups::none(images.len()),
            None if images.len() > groups::MOST_COMPARED => {
                problem = Some(GroupProblem::TooMany);
                Groups::none(images.len())
            }
            None => {
                let mut sketches = Vec::with_capacity(images.len() * groups::SKETCH);
                for index in images.iter().filter_map(|image| image.features) {
                    context.stop.check()?;
                    sketches.extend(groups::sketch(&features.get(index)?));
                }
                let found = groups::alike(&sketches, images.len())?;
                // What may be a mistake must not cost the promise that was asked for.
                let refused = |n: usize| {
                    let scores = GoodScores::new(&vec![0.0; n], &[]).with_rejected(*not_located);
                    calibration.target_fpr.is_some_and(|target| scores.rank(target).is_err())
                };
                if refused(found.count()) && !refused(images.len()) {
                    problem = Some(GroupProblem::Unsupported { groups: found.count() });
                    Groups::none(images.len())
                } else {
                    found
                }
            }
        };
        let parts = match fold_parts(config) {
            // What is held out is left out of nothing but the terms that known defects teach.
            1 => FOLDS,
            parts => parts,
        };
        let keys: Vec<_> = paths.iter().map(|path| name_hash(path, config.training.seed)).collect();
        let parts = groups.folds(parts.min(groups.count()), &keys);
        context.observer.event(&Event::Groups { class: &category.name, paths: &paths, groups: &groups, problem });
        let class = &mut self.images.classes[class];
        (class.groups, class.folds) = (groups, parts);
        Ok(())
    }

    /// Refuses a false-reject rate that the parts which are scored cannot promise.
    ///
    /// # Errors
    /// When a class has too few of them; says how many it takes.
    pub fn check_rates(&self, config: &Config) -> Result<()> {
        let Some(target) = config.calibration.target_fpr else { return Ok(()) };
        let mut classes = self.names.iter().zip(&self.images.classes);
        classes.try_for_each(|(name, class)| check_rate(name, class.scored_parts(), target))
    }

    /// The shapes that the classes are looked at in.
    pub(super) fn shapes(&self) -> &Shapes {
        self.preparation.shapes()
    }

    /// The features that a network learns from, and their fit to images that it sees.
    pub(super) fn features(&self, config: &Config, role: Role) -> Result<Features> {
        match role {
            Role::Final => Ok(self.whole.clone()),
            Role::Fold(_) => {
                let seen = self.images.teaching(|part| role.leaves_out(config, part));
                features(config, self.preparation.shapes(), &self.images, &seen, &self.folder)
            }
        }
    }

    /// The feature extractor of a model that is trained on these features, on the grid of its first shape.
    pub(super) fn extractor(
        &self,
        config: &Config,
        features: &Features,
        device: &Device,
    ) -> Result<Arc<FeatureExtractor>> {
        let grid = self.shapes().distinct()[0].grid;
        Ok(Arc::new(match &features.transform {
            None => FeatureExtractor::of_pixels(device.clone(), grid),
            Some(transform) => {
                let backbone = model::configured(&config.features, &self.weights, device)?;
                FeatureExtractor::of_backbone(device.clone(), grid, backbone, transform.clone())?
            }
        }))
    }

    /// The frozen network, for the card.
    pub(super) fn backbone_card(&self, config: &Config) -> Result<Option<BackboneCard>> {
        let card =
            || Ok(BackboneCard { name: config.features.backbone.clone(), sha256: weights_digest(&self.weights)? });
        self.whole.transform.as_ref().map(|_| card()).transpose()
    }
}

/// Reads the images of a run.
struct Reader<'a> {
    config: &'a Config,
    data: &'a Dataset,
    preparation: Preparation,
    folder: &'a Path,
    device: &'a Device,
    context: Context<'a>,
    /// Over names and contents of all that was read.
    digest: Sha256,
    unreadable: Vec<(PathBuf, String)>,
}

impl Reader<'_> {
    /// Reads every image once: of those to train on keeps what `extract` makes of them in a shape; of those to hold out the
    /// frames.
    fn read(&mut self, extract: &(dyn Fn(&[&Frame], usize) -> Result<Tensor> + Sync)) -> Result<Images> {
        let (config, device, context) = (self.config, self.device, self.context);
        let (preparation, training) = (&self.preparation, &config.training);
        let depth = SampleDepth::default();
        let mut raw = FeatureCache::new(training.cache_mib, self.folder);
        let mut frames = FrameCache::new(training.cache_mib, self.folder);
        let mut classes = Vec::new();
        let total = self.data.categories.iter().map(|category| category.train.len()).sum();
        let (mut done, mut spilled) = (0, false);
        let held_out = config.calibration.folds == 1;
        for (number, category) in self.data.categories.iter().enumerate() {
            let (read, shape) =
                (|path: &Path| Input::read(path, preparation, number, &depth), preparation.shapes().of(number));
            let features =
                |some: &[Prepared]| extract(&some.iter().map(|input| &input.frame).collect::<Vec<_>>(), shape);
            let split = if held_out {
                data::hold_out(&category.train, training.calibration_fraction, training.seed)
            } else {
                Split { train: category.train.clone(), calibration: Vec::new() }
            };
            let mut files = ReadAhead::new(2 * rayon::current_num_threads(), context.stop);
            let (mut class, mut empty, mut not_located) = (Vec::<Image>::new(), 0, 0);
            self.digest.update(category.name.as_bytes());
            for (teaches, scored, paths) in [(true, !held_out, &split.train), (false, true, &split.calibration)] {
                let mut digests = Vec::with_capacity(paths.len());
                files.each_group(paths, read, |group| {
                    done += group.len();
                    let mut inputs = Vec::with_capacity(group.len());
                    for (index, file) in group {
                        let path = paths[index].as_path();
                        match file {
                            // It teaches nothing, and the line would reject it.
                            Ok(input) if input.own().lost => {
                                not_located += usize::from(scored);
                                context.observer.event(&Event::NotLocated { path });
                            }
                            Ok(input) => {
                                if is_empty(&input.own().frame) {
                                    empty += 1;
                                    context.observer.event(&Event::Empty { path });
                                }
                                let features = teaches.then(|| raw.len() + inputs.len());
                                let first = frames.len();
                                if scored {
                                    input.inputs.iter().try_for_each(|input| frames.push(input))?;
                                }
                                let (path_of, digests_of) = (path.to_owned(), input.digests());
                                let frames = first..frames.len();
                                class.push(Image { path: path_of, digests: digests_of, features, copy: None, frames });
                                digests.push((path, input.file));
                                inputs.extend(input.inputs.into_iter().take(1));
                            }
                            Err(error) => context.observer.event(&Event::Skipped { path, reason: error.to_string() }),
                        }
                    }
                    if teaches {
                        device.values(&inputs, features).into_iter().try_for_each(|row| raw.push(&row?))?;
                    }
                    if teaches && training.augment == Augment::Mild {
                        let first = class.len() - inputs.len();
                        let copy = |(input, image): (&Prepared, &Image)| {
                            changed_copy(&input.frame, training.seed, &image.digests[1])
                                .map(|frame| Prepared { frame, ..input.clone() })
                        };
                        let copies = inputs.par_iter().zip(class[first..].par_iter()).map(copy);
                        let copies = copies.collect::<Result<Vec<Prepared>>>()?;
                        for (image, row) in class[first..].iter_mut().zip(device.values(&copies, features)) {
                            image.copy = Some(raw.len());
                            raw.push(&row?)?;
                        }
                    }
                    if (raw.spilled() || frames.spilled()) && !std::mem::replace(&mut spilled, true) {
                        context.observer.event(&Event::Spilled);
                    }
                    context.observer.event(&Event::Images { done, total });
                    Ok(())
                })?;
                self.digest.update(data::data_sha256(digests));
            }
            check_unreadable(&category.root, category.train.len(), &files.unreadable)?;
            let scored = class.iter().filter(|image| image.frame().is_some()).count();
            check_located(config, &category.name, scored, not_located)?;
            if empty == class.len() {
                let reason = "every image is of one colour or almost black: expected pictures of good parts";
                return Err(Error::data(&category.root, reason));
            }
            check_scored(category, scored)?;
            let groups = Groups::none(class.len()); // until they are looked for
            classes.push(ClassImages { folds: vec![0; class.len()], images: class, groups, not_located });
            self.unreadable.append(&mut files.unreadable);
        }
        context.observer.event(&Event::SampleDepth { depth: &depth });
        Ok(Images { raw: Arc::new(raw), frames, classes })
    }
}

/// Fits the feature transform to an even sample of the classes, `seen` by class, and transforms all images.
fn features(config: &Config, shapes: &Shapes, images: &Images, seen: &[Vec<usize>], folder: &Path) -> Result<Features> {
    let raw = &images.raw;
    if config.features.space == SpaceKind::Pixel {
        return Ok(Features { transform: None, cache: raw.clone() });
    }
    let features = &config.features;
    let channels = model::channels(features)?;
    let per_class = FIT_ROWS / seen.len().max(1);
    let mut rows = Vec::new();
    for (class, indices) in seen.iter().enumerate() {
        let tokens = shapes.distinct()[shapes.of(class)].grid.area();
        // An even share of each class, spread over its images and over the grid.
        let total = indices.len() * tokens;
        let take = per_class.min(total);
        let mut current: Option<(usize, Vec<f32>)> = None;
        for i in 0..take {
            let row = (i as u128 * total as u128 / take as u128) as usize;
            let (image, token) = (row / tokens, row % tokens);
            if current.as_ref().is_none_or(|(at, _)| *at != image) {
                current = Some((image, raw.get(indices[image])?));
            }
            if let Some((_, values)) = &current {
                rows.extend_from_slice(&values[token * channels..][..channels]);
            }
        }
    }
    let transform = FeatureTransform::fit(&rows, channels, features.dim, features.whitening, features.clamp)?;
    drop(rows);
    let mut cache = FeatureCache::new(config.training.cache_mib, folder);
    let indices = (0..raw.len()).collect::<Vec<_>>();
    for group in indices.chunks(64) {
        let transformed = group.par_iter().map(|&i| Ok(transform.apply(&raw.get(i)?))).collect::<Result<Vec<_>>>()?;
        for values in transformed {
            cache.push(&values)?;
        }
    }
    Ok(Features { transform: Some(transform), cache: Arc::new(cache) })
}

/// Whether a picture shows nothing: its values (0 to 255) hardly differ, or nearly all are black. A lamp that was off, a lens with its
/// cap on.
fn is_empty(frame: &Frame) -> bool {
    const DEVIATION: f64 = 1.5;
    const BLACK: u8 = 12;
    const BLACK_SHARE: f64 = 0.999;
    let rgb = frame.rgb();
    let n = rgb.len() as f64;
    let mean = rgb.iter().map(|&v| f64::from(v)).sum::<f64>() / n;
    let variance = rgb.iter().map(|&v| (f64::from(v) - mean).powi(2)).sum::<f64>() / n;
    let black = rgb.iter().filter(|&&v| v <= BLACK).count() as f64;
    variance < DEVIATION * DEVIATION || black > BLACK_SHARE * n
}

/// Refuses, before anything is learned, a class of which so many parts are not found that the line would reject more of them than
/// is to be promised.
fn check_located(config: &Config, class: &str, located: usize, not_located: usize) -> Result<()> {
    if not_located == 0 {
        return Ok(());
    }
    if located == 0 {
        let reason = format!("{class}: the part was found in none of {not_located} images (input.align)");
        return Err(Error::Usage(reason));
    }
    let scores = GoodScores::new(&vec![0.0; located], &[]).with_rejected(not_located);
    thresholds::promise(class, &config.calibration, &scores)
}

/// Refuses a class of whose images for the threshold too few can be read.
fn check_scored(category: &Category, readable: usize) -> Result<()> {
    if readable >= MIN_CALIBRATION {
        return Ok(());
    }
    let reason = format!(
        "of the images held out for the threshold {readable} can be read, expected at least {MIN_CALIBRATION}; add good \
         images, or raise training.calibration_fraction"
    );
    Err(Error::Image { path: category.root.clone(), reason })
}

/// The weights of the configured backbone: from a file, or those of the program.
fn backbone_weights(config: &Config, file: Option<&Path>) -> Result<Weights> {
    let name = &config.features.backbone;
    if let Some(path) = file {
        let bytes = std::fs::read(path).map_err(|e| Error::io(path, "cannot read the backbone weights", e))?;
        return candle_core::safetensors::load_buffer(&bytes, &candle_core::Device::Cpu)
            .map_err(|e| Error::model(path, format!("not a safetensors file of backbone weights: {e}")));
    }
    model::embedded(name)?.ok_or_else(|| {
        Error::Usage(format!(
            "features.backbone = {name:?} is not part of the program; make a weights file with `diad backbone import` and \
             give it with --backbone"
        ))
    })
}

/// SHA-256 over names, types and values of all weights in the order of their names.
fn weights_digest(weights: &Weights) -> Result<String> {
    let mut hasher = Sha256::new();
    for (name, tensor) in weights.iter().collect::<BTreeMap<_, _>>() {
        hasher.update(name.as_bytes());
        hasher.update(format!("{:?}{:?}", tensor.dtype(), tensor.dims()));
        let values = tensor.to_dtype(candle_core::DType::F32)?.flatten_all()?.to_vec1::<f32>()?;
        hasher.update(values.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<u8>>());
    }
    Ok(hex(&hasher.finalize()))
}
