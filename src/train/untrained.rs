//! A network that has learned nothing, to see what one of a configuration would cost.

use std::collections::BTreeMap;
use std::sync::Arc;

use candle_core::Tensor;

use crate::config::{Config, Shapes, SpaceKind};
use crate::detector::{Branch, Network, Reconstructor, Scorer, stored_noise};
use crate::device::Device;
use crate::error::{Error, Result};
use crate::features::{FeatureExtractor, FeatureTransform, backbone_features};
use crate::frame::Prepared;
use crate::model;
use crate::model::denoiser::Denoisers;
use crate::residuals::ResidualSums;

/// A network of a configuration for one class, with the weights that training starts from and the statistics of one input. It takes
/// as long for a frame as one that was trained. For backbones that are part of the program.
///
/// # Errors
/// When the input is not of the configured size, the backbone is not part of the program, or the device fails.
pub fn untrained(config: &Config, input: &Prepared, device: &Device) -> Result<Network> {
    let (grid, dim, shapes) = (config.grid(), config.dim(), Shapes::one(config, 1));
    let extractor = match config.features.space {
        SpaceKind::Pixel => FeatureExtractor::of_pixels(device.clone(), grid),
        SpaceKind::Feature => {
            let name = &config.features.backbone;
            let weights = model::embedded(name)?;
            let weights = weights.ok_or_else(|| {
                Error::Usage(format!("features.backbone = {name:?}: expected one that is part of the program"))
            })?;
            let backbone = model::configured(&config.features, &weights, device)?;
            let channels = model::channels(&config.features)?;
            let raw = backbone_features(backbone.as_ref(), device, grid, &[&input.frame])?;
            let mut rows = raw.flatten_all()?.to_vec1::<f32>()?;
            // A transform wants two rows for each of its dimensions.
            while rows.len() < 2 * dim * channels {
                rows.extend_from_within(..);
            }
            let features = &config.features;
            let transform = FeatureTransform::fit(&rows, channels, dim, features.whitening, features.clamp)?;
            FeatureExtractor::of_backbone(device.clone(), grid, backbone, transform)?
        }
    };
    let start = Denoisers::parameters(config, &shapes).into_iter().map(|parameter| {
        let values = parameter.start(config.training.seed);
        let tensor = Tensor::from_vec(values, parameter.shape.as_slice(), &candle_core::Device::Cpu)?;
        Ok((parameter.name, device.weight(&tensor)?))
    });
    let start = start.collect::<Result<BTreeMap<String, Tensor>>>()?;
    let denoisers = Denoisers::new(config, &shapes, 0, |name| start.get(name).cloned())?;
    let (extractor, noise) = (Arc::new(extractor), stored_noise(config));
    let reconstructor = Arc::new(Reconstructor::new(config, device, denoisers, noise)?);
    let features = extractor.extract(&[&input.frame])?.flatten_all()?.to_vec1::<f32>()?;
    let mut sums = ResidualSums::new(config.covariances(), dim, config.detection.context);
    sums.add(&features);
    let scorer = Scorer::new(config, vec![sums.finish()?], &extractor)?;
    let branch = Branch::new(config, extractor, reconstructor, None)?;
    Network::new(config, shapes, vec![branch], scorer, vec![vec![0.0; dim]])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::detector::Request;
    use crate::frame::{Frame, Preprocess};

    #[test]
    fn it_looks_at_a_frame() {
        let mut config = Config::default();
        config.assign(&["input.size=[64,96]", "features.grid=[8,12]"]).unwrap();
        let frame = Frame::new(128, 128, (0..128 * 128 * 3u64).map(|i| (i * i % 251) as u8).collect()).unwrap();
        let input = Preprocess::of(&config.input).apply(&frame).unwrap();
        let network = untrained(&config, &input, &Device::cpu()).unwrap();
        let found = network.inspect(&[(std::slice::from_ref(&input), &Request::default())]).remove(0).unwrap();
        assert!(found.score.is_finite() && found.map.size.sides() == [32, 48]);
        config.assign(&["features.backbone=resnet18"]).unwrap();
        assert!(untrained(&config, &input, &Device::cpu()).err().unwrap().to_string().contains("resnet18"));
    }
}
