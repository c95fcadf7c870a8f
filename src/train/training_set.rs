//! The images of a training run, prepared: features of those that teach, pixels of those held out for the thresholds, and
//! what was fitted to get there. Made once, before the first step; networks of several configurations can be trained from it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use candle_core::Tensor;
use rayon::prelude::*;
use sha2::{Digest, Sha256};

use super::cache::{FeatureCache, FrameCache};
use super::thresholds::check_rate;
use super::{Context, Event};
use crate::bundle::BackboneCard;
use crate::config::{Config, SpaceKind};
use crate::data::split::MIN_CALIBRATION;
use crate::data::{self, Category, Dataset, ReadAhead, SampleDepth, check_unreadable};
use crate::detector::Mask;
use crate::device::Device;
use crate::error::{Error, Result};
use crate::features::{FeatureExtractor, FeatureTransform, backbone_features};
use crate::frame::{Frame, Prepared, Preprocess, decode_frame, decode_image, read_bytes};
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
    fitted: Option<FeatureTransform>,
    pub(super) mask: Option<Mask>,
    pub(super) data_sha256: String,
    /// Images that were left out, with the reason.
    pub unreadable: Vec<(PathBuf, String)>,
}

/// The images that could be read, of all classes together; those of each class are known by their indices.
pub(super) struct Images {
    /// Features of the training images, `[T, D]` each.
    pub(super) features: FeatureCache,
    /// `train[c]` are the indices of class c into `features`.
    pub(super) train: Vec<Vec<usize>>,
    /// The images held out for the thresholds, as the model's input.
    pub(super) frames: FrameCache,
    /// `held_out[c]` are the indices of class c into `frames`.
    pub(super) held_out: Vec<Vec<usize>>,
}

impl TrainingSet {
    /// Reads every image once. Caches that outgrow the configured memory go to `folder`; `backbone` is a file of weights for
    /// backbones that are not part of the program.
    ///
    /// # Errors
    /// When more than 5 % of the images of a class cannot be read, when those held out that can be read are too few for the
    /// configured rate, the weights are missing, or the device fails; `Error::Interrupted`.
    pub fn prepare(
        config: &Config,
        data: &Dataset,
        backbone: Option<&Path>,
        folder: &Path,
        device: &Device,
        context: Context<'_>,
    ) -> Result<Self> {
        let grid = config.features.grid;
        let mask = mask(config)?;
        let mut reader =
            Reader { config, data, folder, device, context, digest: Sha256::new(), unreadable: Vec::new() };
        let (weights, fitted, images) = match config.features.space {
            SpaceKind::Pixel => {
                let extractor = FeatureExtractor::of_pixels(device.clone(), grid);
                (Weights::new(), None, reader.read(3, &|frames| extractor.extract(frames))?)
            }
            SpaceKind::Feature => {
                let weights = backbone_weights(config, backbone)?;
                let backbone = model::backbone(&config.features.backbone, &weights, device)?;
                let channels = model::channels(backbone.name())?;
                let raw = |frames: &[&Frame]| backbone_features(backbone.as_ref(), device, grid, frames);
                let mut images = reader.read(channels, &raw)?;
                let (transform, features) = reader.fit_transform(&images, channels)?;
                images.features = features;
                (weights, Some(transform), images)
            }
        };
        let names = data.categories.iter().map(|c| c.name.clone()).collect();
        let mask = mask.map(|(mask, digest)| {
            reader.digest.update(digest);
            mask
        });
        let (data_sha256, unreadable) = (hex(&reader.digest.finalize()), reader.unreadable);
        let set = Self { device: device.clone(), names, images, weights, fitted, mask, data_sha256, unreadable };
        set.check_rates(config)?;
        Ok(set)
    }

    /// Refuses a false-reject rate that the held-out images cannot promise.
    ///
    /// # Errors
    /// When a class has too few of them; says how many it takes.
    pub fn check_rates(&self, config: &Config) -> Result<()> {
        let Some(target) = config.calibration.target_fpr else { return Ok(()) };
        let mut classes = self.names.iter().zip(&self.images.held_out);
        classes.try_for_each(|(name, images)| check_rate(name, images.len(), target))
    }

    /// The feature extractor of a model that is trained on these images.
    pub(super) fn extractor(&self, config: &Config) -> Result<Arc<FeatureExtractor>> {
        let grid = config.features.grid;
        Ok(Arc::new(match &self.fitted {
            None => FeatureExtractor::of_pixels(self.device.clone(), grid),
            Some(transform) => {
                let backbone = model::backbone(&config.features.backbone, &self.weights, &self.device)?;
                FeatureExtractor::of_backbone(self.device.clone(), grid, backbone, transform.clone())?
            }
        }))
    }

    /// The frozen network, for the card.
    pub(super) fn backbone_card(&self, config: &Config) -> Result<Option<BackboneCard>> {
        let card =
            || Ok(BackboneCard { name: config.features.backbone.clone(), sha256: weights_digest(&self.weights)? });
        self.fitted.as_ref().map(|_| card()).transpose()
    }
}

/// Reads the images of a run.
struct Reader<'a> {
    config: &'a Config,
    data: &'a Dataset,
    folder: &'a Path,
    device: &'a Device,
    context: Context<'a>,
    /// Over names and contents of all that was read.
    digest: Sha256,
    unreadable: Vec<(PathBuf, String)>,
}

impl Reader<'_> {
    fn feature_cache(&self, per_image: usize) -> FeatureCache {
        FeatureCache::new(per_image, self.config.training.cache_mib, self.folder)
    }

    /// Reads every image once: of those to train on keeps what `extract` makes of them, `channels` values per cell; of those
    /// to hold out the frames.
    fn read(&mut self, channels: usize, extract: &(dyn Fn(&[&Frame]) -> Result<Tensor> + Sync)) -> Result<Images> {
        let (config, device, context) = (self.config, self.device, self.context);
        let (preprocess, training) = (Preprocess::of(&config.input), &config.training);
        let depth = SampleDepth::default();
        // The model's input, and the digest of the bytes that it was decoded from.
        let read = |path: &Path| -> Result<(Prepared, [u8; 32])> {
            let bytes = read_bytes(path)?;
            let image = decode_image(&bytes, path)?;
            depth.add(path, image.peak);
            Ok((preprocess.apply(&image.frame)?, Sha256::digest(&bytes).into()))
        };
        let features = |some: &[Prepared]| extract(&some.iter().map(|input| &input.frame).collect::<Vec<_>>());
        let mut images = Images {
            features: self.feature_cache(config.tokens() * channels),
            train: Vec::new(),
            frames: FrameCache::new(config.input.size, training.cache_mib, self.folder),
            held_out: Vec::new(),
        };
        let total = self.data.categories.iter().map(|category| category.train.len()).sum();
        let (mut done, mut spilled) = (0, false);
        for category in &self.data.categories {
            let split = data::hold_out(&category.train, training.calibration_fraction, training.seed);
            let mut files = ReadAhead::new(2 * rayon::current_num_threads(), context.stop);
            let first = (images.features.len(), images.frames.len());
            self.digest.update(category.name.as_bytes());
            for (teaches, paths) in [(true, &split.train), (false, &split.calibration)] {
                let mut digests = Vec::with_capacity(paths.len());
                files.each_group(paths, read, |group| {
                    done += group.len();
                    let mut inputs = Vec::with_capacity(group.len());
                    for (index, file) in group {
                        let path = paths[index].as_path();
                        match file {
                            Ok((input, digest)) => {
                                inputs.push(input);
                                digests.push((path, digest));
                            }
                            Err(error) => context.observer.event(&Event::Skipped { path, reason: error.to_string() }),
                        }
                    }
                    if teaches {
                        device.values(&inputs, features).into_iter().try_for_each(|row| images.features.push(&row?))?;
                    } else {
                        inputs.iter().try_for_each(|input| images.frames.push(input))?;
                    }
                    if (images.features.spilled() || images.frames.spilled()) && !std::mem::replace(&mut spilled, true)
                    {
                        context.observer.event(&Event::Spilled);
                    }
                    context.observer.event(&Event::Images { done, total });
                    Ok(())
                })?;
                self.digest.update(data::data_sha256(digests));
            }
            images.train.push((first.0..images.features.len()).collect());
            images.held_out.push((first.1..images.frames.len()).collect());
            check_unreadable(&category.root, category.train.len(), &files.unreadable)?;
            check_held_out(category, images.frames.len() - first.1)?;
            self.unreadable.append(&mut files.unreadable);
        }
        context.observer.event(&Event::SampleDepth { depth: &depth });
        Ok(images)
    }

    /// Fits the feature transform to an even sample of the classes and projects the cache.
    fn fit_transform(&self, images: &Images, channels: usize) -> Result<(FeatureTransform, FeatureCache)> {
        let (features, raw) = (&self.config.features, &images.features);
        let tokens = features.grid * features.grid;
        let per_class = FIT_ROWS / images.train.len().max(1);
        let mut rows = Vec::new();
        for indices in &images.train {
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
        let mut cache = self.feature_cache(tokens * features.dim);
        let indices = (0..raw.len()).collect::<Vec<_>>();
        for group in indices.chunks(64) {
            let projected = group.par_iter().map(|&i| Ok(transform.apply(&raw.get(i)?))).collect::<Result<Vec<_>>>()?;
            for values in projected {
                cache.push(&values)?;
            }
        }
        Ok((transform, cache))
    }
}

/// The mask that the configuration names, with the digest of its file.
fn mask(config: &Config) -> Result<Option<(Mask, String)>> {
    let Some(path) = &config.input.mask else { return Ok(None) };
    let file = Path::new(path);
    let bytes = read_bytes(file)?;
    let mask = Mask::new(&decode_frame(&bytes, file)?, &Preprocess::of(&config.input), config.features.grid)
        .map_err(|error| Error::Usage(format!("input.mask = {path:?}: {error}")))?;
    Ok(Some((mask, data::data_sha256([(file, Sha256::digest(&bytes).into())]))))
}

/// Refuses a class of whose held-out images too few can be read.
fn check_held_out(category: &Category, readable: usize) -> Result<()> {
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
