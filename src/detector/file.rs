//! The tensors of a model file: which there are, and how a network is written to them and made of them.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use candle_core::Tensor;
use safetensors::Dtype;

use super::known_defects::BESIDE;
use super::map::MAP_SCALE;
use super::reconstruction::{Reconstructor, needs_noise};
use super::scorer::terms;
use super::{Branch, Mask, Network, Scorer};
use crate::bundle::{self, BackboneCard, Card, ClassCard, TensorSpec};
use crate::config::{Align, Config, Size};
use crate::device::Device;
use crate::error::{Error, Result};
use crate::features::{FeatureExtractor, FeatureTransform};
use crate::frame::{Preparation, Template};
use crate::model::denoiser::Denoisers;
use crate::model::{self, Weights};
use crate::residuals::{ResidualStatistics, Scale};

/// Of the cells, and of the squares around them.
const MEAN: [&str; 2] = ["residuals.mean", "residuals.context.mean"];
const WHITEN: [&str; 2] = ["residuals.whiten", "residuals.context.whiten"];
const PROTOTYPES: &str = "prototypes";
const MASK: &str = "mask";
const NOISE: &str = "noise";
const TEMPLATE: &str = "align.template";
const TERM_MEANS: &str = "terms.mean";
const DEFECTS: &str = "defects.weights";

/// Sides of the squares that a model has statistics of, in cells.
fn scales(config: &Config) -> Vec<usize> {
    if config.detection.context > 1 { vec![1, config.detection.context] } else { vec![1] }
}

/// The tensors that a model with this card holds.
///
/// # Errors
/// When the backbone is unknown.
pub fn expected_tensors(card: &Card) -> Result<Vec<TensorSpec>> {
    let (classes, dim, shapes) = (card.classes.len(), card.config.dim(), card.shapes());
    let spec = |name: String, dtype: Dtype, shape: Vec<usize>| TensorSpec { name, dtype, shape };
    let mut all = Vec::new();
    if let Some(BackboneCard { name: backbone, .. }) = &card.backbone {
        for (name, shape) in model::weight_shapes(backbone)? {
            all.push(spec(format!("backbone.{name}"), Dtype::F16, shape));
        }
        for (name, shape) in FeatureTransform::shapes(model::channels(&card.config.features)?, dim) {
            all.push(spec(name, Dtype::F32, shape));
        }
    }
    for parameter in Denoisers::parameters(&card.config, &shapes) {
        all.push(spec(format!("denoiser.{}", parameter.name), Dtype::F32, parameter.shape));
    }
    if card.config.detection.needs_noise_errors() {
        all.push(spec(TERM_MEANS.into(), Dtype::F32, vec![classes, terms(&card.config)]));
    }
    for (number, config) in shapes.configs(&card.config).iter().enumerate() {
        let (tokens, members) = (config.tokens(), shapes.members(number).count());
        let named = |name: &str| format!("{name}{}", shapes.suffix(number));
        if config.input.mask.is_some() {
            let size = config.grid().map(|side| side * MAP_SCALE);
            all.push(spec(named(MASK), Dtype::F32, vec![size.height, size.width]));
        }
        if needs_noise(config) {
            all.push(spec(named(NOISE), Dtype::F32, vec![tokens, dim]));
        }
        if let Some(size) = shapes.distinct()[number].template {
            all.push(spec(named(TEMPLATE), Dtype::F32, vec![size.height, size.width]));
        }
        for (mean, whiten) in MEAN.iter().zip(WHITEN).take(scales(config).len()) {
            all.push(spec(named(mean), Dtype::F32, vec![members, tokens, dim]));
            let covariances = config.covariances().count();
            all.push(spec(named(whiten), Dtype::F16, vec![members, covariances, dim * (dim + 1) / 2]));
        }
    }
    if card.classes.iter().any(ClassCard::is_taught_by_defects) {
        all.push(spec(DEFECTS.into(), Dtype::F32, vec![classes, dim + BESIDE]));
    }
    all.push(spec(PROTOTYPES.into(), Dtype::F32, vec![classes, dim]));
    Ok(all)
}

/// Writes a model: the tensors of the network, the weights of the backbone (as f16) and of the denoisers by name, and the card.
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
    if let Some(transform) = network.branches()[0].extractor().transform() {
        tensors.extend(transform.tensors()?);
    }
    tensors.extend(denoiser.iter().map(|(name, tensor)| (format!("denoiser.{name}"), tensor.clone())));
    let Scorer { statistics, term_means, .. } = &network.scorer;
    let (classes, dim, shapes) = (statistics.len(), card.config.dim(), network.shapes());
    let cpu = &candle_core::Device::Cpu;
    for (number, branch) in network.branches().iter().enumerate() {
        let (config, members) = (branch.config(), shapes.members(number).count());
        let tokens = config.tokens();
        let named = |name: &str| format!("{name}{}", shapes.suffix(number));
        for i in 0..scales(config).len() {
            let scales = || shapes.members(number).filter_map(|class| statistics[class].scales().get(i));
            let mean = scales().flat_map(Scale::mean).copied().collect::<Vec<_>>();
            let whiten = scales().flat_map(Scale::whiten).collect::<Vec<_>>();
            tensors.insert(named(MEAN[i]), Tensor::from_vec(mean, (members, tokens, dim), cpu)?);
            let shape = (members, config.covariances().count(), dim * (dim + 1) / 2);
            tensors.insert(named(WHITEN[i]), Tensor::from_vec(whiten, shape, cpu)?);
        }
        if let Some(mask) = branch.mask() {
            let size = config.grid().map(|side| side * MAP_SCALE);
            tensors.insert(named(MASK), Tensor::from_slice(mask.weights(), (size.height, size.width), cpu)?);
        }
        if let Some(template) = branch.template() {
            let Size { width, height } = template.size();
            tensors.insert(named(TEMPLATE), Tensor::from_slice(template.values(), (height, width), cpu)?);
        }
        if let Some(noise) = &branch.reconstructor().noise {
            tensors.insert(named(NOISE), Tensor::from_slice(noise, (tokens, dim), cpu)?);
        }
    }
    if card.config.detection.needs_noise_errors() {
        let means = Tensor::from_vec(term_means.concat(), (classes, terms(&card.config)), cpu)?;
        tensors.insert(TERM_MEANS.into(), means);
    }
    if card.classes.iter().any(ClassCard::is_taught_by_defects) {
        tensors.insert(DEFECTS.into(), network.scorer.defect_weights(dim)?);
    }
    tensors.insert(PROTOTYPES.into(), Tensor::from_vec(network.prototypes.concat(), (classes, dim), cpu)?);
    bundle::save(path, card, &tensors)
}

/// Writes what known defects have taught a class, if anything, into the tensors of a model, whose card says already for which classes there is
/// something.
///
/// # Errors
/// When the numbers do not fit.
pub fn set_defect_term(
    tensors: &mut BTreeMap<String, Tensor>,
    card: &Card,
    class: usize,
    term: Option<Vec<f32>>,
) -> Result<()> {
    let width = card.config.dim() + BESIDE;
    let term = term.unwrap_or_else(|| vec![0.0; width]);
    let old = tensors.remove(DEFECTS);
    if !card.classes.iter().any(ClassCard::is_taught_by_defects) {
        return Ok(());
    }
    let mut all = match old {
        Some(old) => old.flatten_all()?.to_vec1::<f32>()?,
        None => vec![0.0; card.classes.len() * width],
    };
    let fits = |own: &&mut [f32]| own.len() == term.len();
    let own = all.get_mut(class * width..(class + 1) * width).filter(fits);
    let own = own.ok_or_else(|| Error::Internal(format!("defects: a term of {} numbers", term.len())))?;
    own.copy_from_slice(&term);
    let shape = (card.classes.len(), width);
    tensors.insert(DEFECTS.into(), Tensor::from_vec(all, shape, &candle_core::Device::Cpu)?);
    Ok(())
}

/// The pictures that parts are found with, by the number of the shape; none where the model does not look for parts.
pub(super) fn templates(card: &Card, tensors: &Weights) -> Result<Vec<Arc<Template>>> {
    let shapes = card.shapes();
    let sized = shapes.distinct().iter().enumerate().filter_map(|(number, shape)| Some((number, shape.template?)));
    let template = |(number, size)| {
        let name = format!("{TEMPLATE}{}", shapes.suffix(number));
        let values = tensors.get(&name).ok_or_else(|| Error::Internal(format!("{name} is missing")))?;
        Ok(Arc::new(Template::new(&card.config.input, size, values.flatten_all()?.to_vec1()?)?))
    };
    sized.map(template).collect()
}

/// From frames to the inputs of a model file, without opening the model.
///
/// # Errors
/// As [`Detector::open`](super::Detector::open).
pub fn preparation(path: &Path) -> Result<Preparation> {
    let card = bundle::read_card(path)?;
    let plain = Preparation::new(&card.config.input, card.shapes());
    if card.config.input.align == Align::None {
        return Ok(plain);
    }
    let file = bundle::load(path, expected_tensors)?;
    Ok(plain.with_templates(templates(&file.card, &file.tensors)?))
}

/// The network of a file that was loaded and checked.
pub(super) fn network(card: &Card, tensors: &Weights, device: &Device) -> Result<Network> {
    let (config, classes, shapes) = (&card.config, card.classes.len(), card.shapes());
    let (dim, configs) = (config.dim(), shapes.configs(config));
    let grid = configs[0].grid();
    let extractor = match &card.backbone {
        None => FeatureExtractor::of_pixels(device.clone(), grid),
        Some(_) => {
            let own =
                |(name, tensor): (&String, &Tensor)| Some((name.strip_prefix("backbone.")?.to_owned(), tensor.clone()));
            let backbone = model::configured(&config.features, &tensors.iter().filter_map(own).collect(), device)?;
            let transform = FeatureTransform::load(tensors, config.features.clamp)?;
            FeatureExtractor::of_backbone(device.clone(), grid, backbone, transform)?
        }
    };
    let extractor = Arc::new(extractor);
    let own = |(name, tensor): (&String, &Tensor)| {
        name.strip_prefix("denoiser.").map(|name| Ok((name.to_owned(), device.weight(tensor)?)))
    };
    let weights = tensors.iter().filter_map(own).collect::<Result<Weights>>()?;
    let get = |name: &str| -> Result<Tensor> {
        let tensor = tensors.get(name).ok_or_else(|| Error::Internal(format!("{name} is missing")))?;
        Ok(tensor.flatten_all()?)
    };
    let templates = templates(card, tensors)?;
    let mut branches = Vec::with_capacity(configs.len());
    let mut residuals: Vec<Option<ResidualStatistics>> = (0..classes).map(|_| None).collect();
    for (number, config) in configs.iter().enumerate() {
        let named = |name: &str| get(&format!("{name}{}", shapes.suffix(number)));
        let noise = needs_noise(config).then(|| Ok::<_, Error>(named(NOISE)?.to_vec1()?)).transpose()?;
        let denoisers = Denoisers::new(&card.config, &shapes, number, |name| weights.get(name).cloned())?;
        let mask = config.input.mask.as_ref();
        let mask = mask.map(|_| Mask::from_weights(config.grid(), named(MASK)?.to_vec1()?)).transpose()?;
        let reconstructor = Arc::new(Reconstructor::new(config, device, denoisers, noise)?);
        let branch = Branch::new(config, Arc::new(extractor.on_grid(config.grid())), reconstructor, mask)?;
        branches.push(branch.with_template(templates.get(number).cloned()));
        let (tokens, blocks) = (config.tokens(), config.covariances());
        for (i, side) in scales(config).into_iter().enumerate() {
            let mean = named(MEAN[i])?.to_vec1::<f32>()?;
            let whiten = named(WHITEN[i])?.to_vec1::<half::f16>()?;
            let whiten = whiten.chunks_exact(blocks.count() * dim * (dim + 1) / 2);
            let each = mean.chunks_exact(tokens * dim).zip(whiten);
            for (class, (mean, whiten)) in shapes.members(number).zip(each) {
                let scale = Scale::new(blocks, side, dim, mean.to_vec(), whiten.to_vec())?;
                residuals[class] = Some(match residuals[class].take() {
                    None => ResidualStatistics::new(scale),
                    Some(statistics) => statistics.and(scale),
                });
            }
        }
    }
    let residuals = residuals.into_iter().flatten().collect();
    let by_class =
        |values: Vec<f32>, each: usize| -> Vec<Vec<f32>> { values.chunks_exact(each).map(<[f32]>::to_vec).collect() };
    let mut scorer = Scorer::new(config, residuals, &extractor)?;
    if config.detection.needs_noise_errors() {
        scorer = scorer.with_term_means(by_class(get(TERM_MEANS)?.to_vec1()?, terms(config)))?;
    }
    if card.classes.iter().any(ClassCard::is_taught_by_defects) {
        let weights = by_class(get(DEFECTS)?.to_vec1()?, dim + BESIDE).into_iter().zip(&card.classes);
        let terms = weights.map(|(weights, class)| class.is_taught_by_defects().then_some(weights));
        scorer = scorer.with_known_defects(terms.collect())?;
    }
    let prototypes = by_class(get(PROTOTYPES)?.to_vec1()?, dim);
    Network::new(config, shapes, branches, scorer, prototypes)
}
