//! Networks with the weights that were trained and the statistics of some of the images.

use std::collections::BTreeMap;
use std::sync::Arc;

use candle_core::Tensor;

use super::TrainingSet;
use super::fit::Role;
use super::statistics::{Progress, STATISTICS_BATCH, needs_term_means};
use super::training_set::Features;
use crate::config::Config;
use crate::detector::{
    Branch, Mask, Network, Reconstruction, Reconstructor, Scorer, mean_over_cells, prototype_distance, stored_noise,
};
use crate::device::Device;
use crate::error::Result;
use crate::features::FeatureExtractor;
use crate::model::denoiser::Denoisers;
use crate::residuals::ResidualSums;

/// Makes networks with one denoiser and different statistics.
pub(super) struct Maker<'a> {
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
    /// With the denoiser of a role on a device; `averages` are the weights of all.
    pub(super) fn new(
        config: &'a Config,
        set: &'a TrainingSet,
        averages: &BTreeMap<String, Tensor>,
        role: Role,
        device: &Device,
    ) -> Result<Self> {
        let own = role.own(averages).into_iter();
        let weights = own.map(|(name, tensor)| Ok((name, device.weight(&tensor)?)));
        let weights = weights.collect::<Result<BTreeMap<String, Tensor>>>()?;
        let features = set.features(config, role)?;
        let extractor = set.extractor(config, &features, device)?;
        let in_shape = |(number, own): (usize, Config)| {
            let denoisers = Denoisers::new(config, set.shapes(), number, |name| weights.get(name).cloned())?;
            let reconstructor = Reconstructor::new(&own, device, denoisers, stored_noise(&own))?;
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
    pub(super) fn sums(&self, images: &[Vec<usize>], progress: &mut Progress<'_>) -> Result<Vec<ClassSums>> {
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
    pub(super) fn network(
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
        let branches = self.branches()?;
        Ok((Network::new(self.config, self.set.shapes().clone(), branches, scorer, prototypes)?, farthest))
    }

    /// What a network does before it scores, in each shape of its input.
    pub(super) fn branches(&self) -> Result<Vec<Branch>> {
        let masks = self.set.masks.iter().flatten().cloned().map(Some).chain(std::iter::repeat(None));
        let branch = |(InShape { config, extractor, reconstructor }, mask): (&InShape, Option<Mask>)| {
            Branch::new(config, extractor.clone(), reconstructor.clone(), mask)
        };
        let templates = self.set.preparation.templates().iter().cloned().map(Some).chain(std::iter::repeat(None));
        let branches = self.shapes.iter().zip(masks).map(branch).zip(templates);
        branches.map(|(branch, template)| Ok(branch?.with_template(template))).collect()
    }

    /// A network with the statistics of all images but those in one part of the folds; `whole` are the sums over all.
    pub(super) fn without(
        &self,
        part: usize,
        whole: &[ClassSums],
        progress: &mut Progress<'_>,
    ) -> Result<(Network, Vec<f32>)> {
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
pub(super) struct ClassSums {
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
