//! Which tensors a model file holds, and the way there and back.

use std::collections::BTreeMap;
use std::path::Path;

use candle_core::{Device, Tensor};
use safetensors::Dtype;

use super::{MAP_SCALE, Mask, Network};
use crate::bundle::{self, Card, TensorSpec};
use crate::error::{Error, Result};
use crate::features::FeatureSpace;
use crate::model::denoiser::{Denoiser, DenoiserShape};
use crate::model::{self, Weights};
use crate::score::ResidualField;

const MEAN: &str = "residuals.mean";
const WHITEN: &str = "residuals.whiten";
const PROTOTYPES: &str = "prototypes";
const MASK: &str = "mask";

fn denoiser_shape(card: &Card) -> DenoiserShape {
    DenoiserShape {
        config: card.config.denoiser.clone(),
        grid: card.config.features.grid,
        dim: card.config.features.dim,
        classes: card.classes.len(),
    }
}

/// The tensors that a model with this card holds.
///
/// # Errors
/// When the backbone is unknown.
pub fn expected_tensors(card: &Card) -> Result<Vec<TensorSpec>> {
    let shape = denoiser_shape(card);
    let (classes, tokens, dim) = (card.classes.len(), shape.grid * shape.grid, shape.dim);
    let spec = |name: String, dtype: Dtype, shape: Vec<usize>| TensorSpec { name, dtype, shape };
    let mut all = Vec::new();
    for (name, shape) in model::weight_shapes(&card.backbone.name)? {
        all.push(spec(format!("backbone.{name}"), Dtype::F16, shape));
    }
    let channels = model::channels(&card.backbone.name)?;
    for (name, shape) in FeatureSpace::shapes(channels, dim) {
        all.push(spec(name, Dtype::F32, shape));
    }
    for parameter in shape.parameters() {
        all.push(spec(format!("denoiser.{}", parameter.name), Dtype::F32, parameter.shape));
    }
    if card.config.input.mask.is_some() {
        let side = card.config.features.grid * MAP_SCALE;
        all.push(spec(MASK.into(), Dtype::F32, vec![side, side]));
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
    for (name, _) in model::weight_shapes(&card.backbone.name)? {
        let weight =
            backbone_weights.get(&name).ok_or_else(|| Error::Internal(format!("backbone weight {name} is missing")))?;
        tensors.insert(format!("backbone.{name}"), weight.to_dtype(candle_core::DType::F16)?);
    }
    tensors.extend(network.space.tensors()?);
    tensors.extend(denoiser.iter().map(|(name, tensor)| (format!("denoiser.{name}"), tensor.clone())));
    let shape = denoiser_shape(card);
    let (classes, tokens, dim) = (network.fields.len(), shape.grid * shape.grid, shape.dim);
    let mean = network.fields.iter().flat_map(ResidualField::mean).copied().collect::<Vec<_>>();
    let whiten = network.fields.iter().flat_map(ResidualField::whiten).copied().collect::<Vec<_>>();
    let cpu = &Device::Cpu;
    tensors.insert(MEAN.into(), Tensor::from_vec(mean, (classes, tokens, dim), cpu)?);
    tensors.insert(WHITEN.into(), Tensor::from_vec(whiten, (classes, tokens, dim * (dim + 1) / 2), cpu)?);
    if let Some(mask) = &network.mask {
        let side = card.config.features.grid * MAP_SCALE;
        tensors.insert(MASK.into(), Tensor::from_slice(mask.weights(), (side, side), cpu)?);
    }
    tensors.insert(PROTOTYPES.into(), Tensor::from_vec(network.prototypes.concat(), (classes, dim), cpu)?);
    bundle::save(path, card, &tensors)
}

/// The network of a loaded and checked file.
pub(super) fn network(card: &Card, tensors: &Weights) -> Result<Network> {
    let backbone_weights = tensors
        .iter()
        .filter_map(|(name, tensor)| Some((name.strip_prefix("backbone.")?.to_owned(), tensor.clone())))
        .collect();
    let backbone = model::backbone(&card.backbone.name, &backbone_weights, &Device::Cpu)?;
    let shape = denoiser_shape(card);
    let (tokens, dim) = (shape.grid * shape.grid, shape.dim);
    let denoiser = Denoiser::new(shape, |name| tensors.get(&format!("denoiser.{name}")).cloned())?;
    let space = FeatureSpace::load(tensors, card.config.features.clamp)?;
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
    let grid = card.config.features.grid;
    let mask = card.config.input.mask.as_ref().map(|_| Mask::from_weights(grid, get(MASK)??.to_vec1()?)).transpose()?;
    Ok(Network { config: card.config.clone(), backbone, space, denoiser, fields, prototypes, mask })
}
