//! What training needs of the data: the images that were read, their features, and the transform that was fitted to make
//! them. Made once; networks of several configurations can be trained from it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use candle_core::Tensor;
use rayon::prelude::*;
use sha2::{Digest, Sha256};

use super::cache::Cache;
use super::{Context, Event};
use crate::bundle::BackboneCard;
use crate::config::{Config, SpaceKind};
use crate::data::{self, Dataset};
use crate::detector::Mask;
use crate::device::Device;
use crate::error::{Error, Result};
use crate::features::{FeatureExtractor, FeatureTransform, backbone_features};
use crate::frame::{Frame, Preprocess, read_frame};
use crate::model::{self, Weights};
use crate::text::hex;

/// Feature rows that the feature transform is fitted to, at most.
const FIT_ROWS: usize = 60_000;
/// Share of a class's images that may be unreadable before training is refused.
const MAX_UNREADABLE: f64 = 0.05;

/// See the module.
pub struct Material {
    /// The device that everything is computed on.
    pub(super) device: Device,
    /// Names of the classes.
    pub(super) names: Vec<String>,
    pub(super) images: Images,
    /// Values of the training images, `[T, D]` each.
    pub(super) cache: Cache,
    /// Backbone weights; none in pixel space.
    pub(super) weights: Weights,
    fitted: Option<FeatureTransform>,
    pub(super) mask: Option<Mask>,
    pub(super) data_sha256: String,
    /// Images that were left out, with the reason.
    pub skipped: Vec<(PathBuf, String)>,
}

/// The images of a run by class; `cached[c][i]` is the cache index of `train[c][i]`.
pub(super) struct Images {
    pub(super) train: Vec<Vec<PathBuf>>,
    pub(super) calibration: Vec<Vec<PathBuf>>,
    pub(super) cached: Vec<Vec<usize>>,
}

impl Material {
    /// Reads every training image once. Caches that outgrow the configured memory go to `folder`; `backbone` is a file of
    /// weights for backbones that are not part of the program.
    ///
    /// # Errors
    /// When an image set is mostly unreadable, the weights are missing, or the device fails; `Error::Interrupted`.
    pub fn gather(
        config: &Config,
        data: &Dataset,
        backbone: Option<&Path>,
        folder: &Path,
        device: &Device,
        context: Context<'_>,
    ) -> Result<Self> {
        let gathering = Gathering { config, folder, device, context };
        let mut skipped = Vec::new();
        let grid = config.features.grid;
        let mask = mask(config)?;
        let (weights, fitted, images, cache) = match config.features.space {
            SpaceKind::Pixel => {
                let extractor = FeatureExtractor::of_pixels(device.clone(), grid);
                let values = |frames: &[&Frame]| extractor.extract(frames);
                let (images, cache) = gathering.read(data, 3, &values, &mut skipped)?;
                (Weights::new(), None, images, cache)
            }
            SpaceKind::Feature => {
                let weights = backbone_weights(config, backbone)?;
                let backbone = model::backbone(&config.features.backbone, &weights, device)?;
                let channels = model::channels(backbone.name())?;
                let raw = |frames: &[&Frame]| backbone_features(backbone.as_ref(), device, grid, frames);
                let (images, raw) = gathering.read(data, channels, &raw, &mut skipped)?;
                let (transform, cache) = gathering.fit_transform(&images, raw, channels)?;
                (weights, Some(transform), images, cache)
            }
        };
        let data_sha256 = data_digest(data, &images, config)?;
        let names = data.categories.iter().map(|c| c.name.clone()).collect();
        Ok(Self { device: device.clone(), names, images, cache, weights, fitted, mask, data_sha256, skipped })
    }

    /// The feature extractor of a model that is trained on this.
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

struct Gathering<'a> {
    config: &'a Config,
    folder: &'a Path,
    device: &'a Device,
    context: Context<'a>,
}

impl Gathering<'_> {
    fn cache(&self, per_image: usize) -> Cache {
        Cache::new(per_image, self.config.training.cache_mib, self.folder)
    }

    /// Reads every training image and keeps what `extract` makes of it, `channels` values per cell.
    fn read(
        &self,
        data: &Dataset,
        channels: usize,
        extract: &(dyn Fn(&[&Frame]) -> Result<Tensor> + Sync),
        skipped: &mut Vec<(PathBuf, String)>,
    ) -> Result<(Images, Cache)> {
        let fraction = self.config.training.calibration_fraction;
        let splits = data.categories.iter().map(|c| data::hold_out(&c.train, fraction, self.config.training.seed));
        let splits = splits.collect::<Vec<_>>();
        let wanted: Vec<PathBuf> = splits.iter().flat_map(|s| s.train.iter().cloned()).collect();
        let mut cache = self.cache(self.config.tokens() * channels);
        let preprocess = Preprocess::of(&self.config.input);
        let (mut kept, mut spilled) = (vec![false; wanted.len()], false);
        self.context.each_image(&wanted, skipped, |frames: &[(usize, Frame)], done| {
            let prepared = frames.par_iter().map(|(_, frame)| preprocess.apply(frame)).collect::<Result<Vec<_>>>()?;
            let features =
                self.device.values(&prepared, |some| extract(&some.iter().map(|p| &p.frame).collect::<Vec<_>>()));
            for ((index, _), row) in frames.iter().zip(features) {
                cache.push(&row?)?;
                kept[*index] = true;
            }
            if cache.spilled() && !spilled {
                spilled = true;
                self.context.observer.event(&Event::Spilled);
            }
            self.context.observer.event(&Event::Features { done, total: wanted.len() });
            Ok(())
        })?;
        let (mut train, mut cached) = (Vec::new(), Vec::new());
        let (mut at, mut next) = (0, 0);
        for (split, category) in splits.iter().zip(&data.categories) {
            let (mut paths, mut indices) = (Vec::new(), Vec::new());
            for path in &split.train {
                if kept[at] {
                    paths.push(path.clone());
                    indices.push(next);
                    next += 1;
                }
                at += 1;
            }
            let lost = split.train.len() - paths.len();
            if lost as f64 > MAX_UNREADABLE * split.train.len() as f64 {
                return Err(Error::data(
                    &category.root,
                    format!(
                        "{lost} of {} training images cannot be read, more than {:.0} %; the first: {}",
                        split.train.len(),
                        MAX_UNREADABLE * 100.0,
                        skipped.first().map(|(_, reason)| reason.as_str()).unwrap_or_default()
                    ),
                ));
            }
            train.push(paths);
            cached.push(indices);
        }
        let calibration = splits.into_iter().map(|s| s.calibration).collect();
        Ok((Images { train, calibration, cached }, cache))
    }

    /// Fits the feature transform to an even sample of the classes and projects the cache.
    fn fit_transform(&self, images: &Images, raw: Cache, channels: usize) -> Result<(FeatureTransform, Cache)> {
        let features = &self.config.features;
        let tokens = features.grid * features.grid;
        let per_class = FIT_ROWS / images.cached.len().max(1);
        let mut rows = Vec::new();
        for indices in &images.cached {
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
        let mut cache = self.cache(tokens * features.dim);
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

/// The mask that the configuration names.
fn mask(config: &Config) -> Result<Option<Mask>> {
    let Some(path) = &config.input.mask else { return Ok(None) };
    let image = read_frame(Path::new(path))?;
    let mask = Mask::new(&image, &Preprocess::of(&config.input), config.features.grid);
    mask.map(Some).map_err(|error| Error::Usage(format!("input.mask = {path:?}: {error}")))
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

fn data_digest(data: &Dataset, images: &Images, config: &Config) -> Result<String> {
    let mut hasher = Sha256::new();
    for (category, paths) in data.categories.iter().zip(images.train.iter().zip(&images.calibration)) {
        hasher.update(category.name.as_bytes());
        hasher.update(data::data_sha256(paths.0)?);
        hasher.update(data::data_sha256(paths.1)?);
    }
    if let Some(mask) = &config.input.mask {
        hasher.update(data::data_sha256(&[PathBuf::from(mask)])?);
    }
    Ok(hex(&hasher.finalize()))
}
