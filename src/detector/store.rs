//! Which tensors a model file holds, and the way there and back.

use std::collections::BTreeMap;
use std::path::Path;

use candle_core::{Device, Tensor};
use safetensors::Dtype;

use super::program::needs_noise;
use super::{MAP_SCALE, Mask, Network};
use crate::bundle::{self, BackboneCard, Card, TensorSpec};
use crate::config::Config;
use crate::device::Place;
use crate::error::{Error, Result};
use crate::features::FeatureSpace;
use crate::model::denoiser::Denoisers;
use crate::model::{self, Weights};
use crate::score::ResidualField;
use crate::space::{Features, Pixels, Space};

const MEAN: &str = "residuals.mean";
const WHITEN: &str = "residuals.whiten";
const PROTOTYPES: &str = "prototypes";
const MASK: &str = "mask";
const NOISE: &str = "noise";
const TERM_MEANS: &str = "terms.mean";

/// Parts that the map of a configuration is made of: the reconstruction, and the diffusion score at each level.
fn terms(config: &Config) -> usize {
    1 + config.detection.diffusion_alpha_bars.len()
}

/// The tensors that a model with this card holds.
///
/// # Errors
/// When the backbone is unknown.
pub fn expected_tensors(card: &Card) -> Result<Vec<TensorSpec>> {
    let (classes, tokens, dim) = (card.classes.len(), card.config.tokens(), card.config.dim());
    let spec = |name: String, dtype: Dtype, shape: Vec<usize>| TensorSpec { name, dtype, shape };
    let mut all = Vec::new();
    if let Some(BackboneCard { name: backbone, .. }) = &card.backbone {
        for (name, shape) in model::weight_shapes(backbone)? {
            all.push(spec(format!("backbone.{name}"), Dtype::F16, shape));
        }
        for (name, shape) in FeatureSpace::shapes(model::channels(backbone)?, dim) {
            all.push(spec(name, Dtype::F32, shape));
        }
    }
    for parameter in Denoisers::parameters(&card.config, classes) {
        all.push(spec(format!("denoiser.{}", parameter.name), Dtype::F32, parameter.shape));
    }
    if card.config.input.mask.is_some() {
        let side = card.config.features.grid * MAP_SCALE;
        all.push(spec(MASK.into(), Dtype::F32, vec![side, side]));
    }
    if needs_noise(&card.config) {
        all.push(spec(NOISE.into(), Dtype::F32, vec![tokens, dim]));
    }
    if card.config.detection.needs_noise_errors() {
        all.push(spec(TERM_MEANS.into(), Dtype::F32, vec![classes, terms(&card.config)]));
    }
    all.push(spec(MEAN.into(), Dtype::F32, vec![classes, tokens, dim]));
    all.push(spec(WHITEN.into(), Dtype::F16, vec![classes, tokens, dim * (dim + 1) / 2]));
    all.push(spec(PROTOTYPES.into(), Dtype::F32, vec![classes, dim]));
    Ok(all)
}

/// Writes a model: the network's tensors, the backbone's weights (f16), the denoiser's by name, and the card.
///
/// # Errors
/// When the file cannot be written.
pub fn save(
    path: &Path,
    card: &Card,
    network: &Network,
    backbone_weights: &Weights,
    denoiser: &BTreeMap<String, Tensor>,
) -> Result<()> {
    let mut tensors = BTreeMap::new();
    if let Some(BackboneCard { name: backbone, .. }) = &card.backbone {
        for (name, _) in model::weight_shapes(backbone)? {
            let weight = backbone_weights.get(&name);
            let weight = weight.ok_or_else(|| Error::Internal(format!("backbone weight {name} is missing")))?;
            tensors.insert(format!("backbone.{name}"), weight.to_dtype(candle_core::DType::F16)?);
        }
    }
    tensors.extend(network.space.tensors()?);
    tensors.extend(denoiser.iter().map(|(name, tensor)| (format!("denoiser.{name}"), tensor.clone())));
    let (classes, tokens, dim) = (network.fields.len(), card.config.tokens(), card.config.dim());
    let mean = network.fields.iter().flat_map(ResidualField::mean).copied().collect::<Vec<_>>();
    let whiten = network.fields.iter().flat_map(ResidualField::whiten).copied().collect::<Vec<_>>();
    let cpu = &Device::Cpu;
    tensors.insert(MEAN.into(), Tensor::from_vec(mean, (classes, tokens, dim), cpu)?);
    tensors.insert(WHITEN.into(), Tensor::from_vec(whiten, (classes, tokens, dim * (dim + 1) / 2), cpu)?);
    if let Some(mask) = &network.mask {
        let side = card.config.features.grid * MAP_SCALE;
        tensors.insert(MASK.into(), Tensor::from_slice(mask.weights(), (side, side), cpu)?);
    }
    if let Some(noise) = &network.noise {
        tensors.insert(NOISE.into(), Tensor::from_slice(noise, (tokens, dim), cpu)?);
    }
    if card.config.detection.needs_noise_errors() {
        let means = Tensor::from_vec(network.term_means.concat(), (classes, terms(&card.config)), cpu)?;
        tensors.insert(TERM_MEANS.into(), means);
    }
    tensors.insert(PROTOTYPES.into(), Tensor::from_vec(network.prototypes.concat(), (classes, dim), cpu)?);
    bundle::save(path, card, &tensors)
}

/// The network of a loaded and checked file.
pub(super) fn network(card: &Card, tensors: &Weights, place: &Place) -> Result<Network> {
    let (classes, tokens, dim) = (card.classes.len(), card.config.tokens(), card.config.dim());
    let grid = card.config.features.grid;
    let space: Box<dyn Space> = match &card.backbone {
        None => Box::new(Pixels { place: place.clone(), grid }),
        Some(BackboneCard { name: backbone, .. }) => {
            let own =
                |(name, tensor): (&String, &Tensor)| Some((name.strip_prefix("backbone.")?.to_owned(), tensor.clone()));
            let backbone = model::backbone(backbone, &tensors.iter().filter_map(own).collect(), place)?;
            let fitted = FeatureSpace::load(tensors, card.config.features.clamp)?;
            Box::new(Features { backbone, place: place.clone(), fitted, grid })
        }
    };
    let own = |(name, tensor): (&String, &Tensor)| {
        name.strip_prefix("denoiser.").map(|name| Ok((name.to_owned(), place.weight(tensor)?)))
    };
    let weights = tensors.iter().filter_map(own).collect::<Result<Weights>>()?;
    let denoisers = Denoisers::new(&card.config, classes, |name| weights.get(name).cloned())?;
    let get = |name: &str| {
        tensors.get(name).ok_or_else(|| Error::Internal(format!("{name} is missing"))).map(Tensor::flatten_all)
    };
    let mean = get(MEAN)??.to_vec1::<f32>()?;
    let whiten = get(WHITEN)??.to_vec1::<half::f16>()?;
    let prototypes = get(PROTOTYPES)??.to_vec1::<f32>()?;
    let fields = mean
        .chunks_exact(tokens * dim)
        .zip(whiten.chunks_exact(tokens * dim * (dim + 1) / 2))
        .map(|(mean, whiten)| ResidualField::new(dim, mean.to_vec(), whiten.to_vec()))
        .collect::<Result<Vec<_>>>()?;
    let prototypes = prototypes.chunks_exact(dim).map(<[f32]>::to_vec).collect();
    let noise = needs_noise(&card.config).then(|| get(NOISE)?.and_then(|t| t.to_vec1()).map_err(Error::from));
    let term_means = match card.config.detection.needs_noise_errors() {
        true => get(TERM_MEANS)??.to_vec1::<f32>()?.chunks_exact(terms(&card.config)).map(<[f32]>::to_vec).collect(),
        false => Vec::new(),
    };
    let mask = card.config.input.mask.as_ref().map(|_| Mask::from_weights(grid, get(MASK)??.to_vec1()?)).transpose()?;
    let (config, place, noise) = (card.config.clone(), place.clone(), noise.transpose()?);
    Ok(Network { config, place, space, denoisers, noise, fields, term_means, prototypes, mask })
}
