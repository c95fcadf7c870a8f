//! The rows that `evaluate --baselines` adds.

use std::collections::BTreeMap;
use std::path::PathBuf;

use rayon::prelude::*;

use super::ground_truth::{ShownArea, ground_truth, input_side};
use super::images::prepare;
use super::{Context, messages};
use crate::baselines::{Baselines, ClassFit, METHODS};
use crate::data::{Category, Dataset, ReadAhead, Sample, hold_out};
use crate::detector::{AnomalyMap, Network};
use crate::error::Result;
use crate::frame::{Geometry, Prepared};
use crate::metrics::PixelSet;
use crate::report::{Baseline, Metrics};

/// Images whose features are computed at a time.
const GROUP: usize = 8;

/// Learns the baselines from the good images that the model did not hold out, and measures them on the test images.
///
/// # Errors
/// When interrupted, when no good image of a class can be read, when the device fails.
pub(super) fn measure(context: &Context, network: &Network, data: &Dataset) -> Result<BTreeMap<String, Baseline>> {
    let categories: Vec<&Category> = data.categories.iter().filter(|category| !category.test.is_empty()).collect();
    let baselines = fit(context, network, &categories)?;
    let mut methods: [BTreeMap<String, Metrics>; METHODS.len()] = Default::default();
    let mut task = context.task("baselines", categories.iter().map(|category| category.test.len()).sum());
    let mut done = 0;
    for (class, category) in categories.iter().enumerate() {
        let mut figures = METHODS.map(|_| Figures::of(category));
        let paths: Vec<PathBuf> = category.test.iter().map(|sample| sample.path.clone()).collect();
        ReadAhead::new(GROUP, &context.stop).each_group(&paths, prepare(context, network), |group| {
            done += group.len();
            // An image that cannot be read was named when the model was measured.
            let read = group.into_iter().filter_map(|(index, image)| Some((&category.test[index], image.ok()?)));
            let (samples, inputs): (Vec<&Sample>, Vec<Prepared>) = read.unzip();
            let features = features(network, &inputs)?;
            let maps = features.par_iter().map(|(features, geometry)| {
                let distances = baselines.distances(features, class);
                distances.map(|distance| network.map(distance, *geometry, None))
            });
            let maps = maps.collect::<Vec<_>>();
            for (sample, maps) in samples.into_iter().zip(maps) {
                for (figures, (score, map)) in figures.iter_mut().zip(maps) {
                    figures.add(sample, score, &map)?;
                }
            }
            task.set(done, &category.name);
            Ok(())
        })?;
        for (method, figures) in methods.iter_mut().zip(figures) {
            method.insert(category.name.clone(), figures.metrics()?);
        }
    }
    task.finish();
    Ok(METHODS.iter().zip(methods).map(|(name, classes)| ((*name).to_owned(), Baseline::new(classes))).collect())
}

fn fit(context: &Context, network: &Network, categories: &[&Category]) -> Result<Baselines> {
    let config = network.config();
    let (tokens, dim) = (config.tokens(), config.dim());
    let training = &config.training;
    let split = |category: &&Category| hold_out(&category.train, training.calibration_fraction, training.seed).train;
    let images: Vec<Vec<PathBuf>> = categories.iter().map(split).collect();
    let mut task = context.task("learning", images.iter().map(Vec::len).sum());
    let mut done = 0;
    let mut classes = Vec::new();
    for paths in &images {
        let mut class = ClassFit::new(tokens, dim, paths.len(), training.seed);
        ReadAhead::new(GROUP, &context.stop).each_group(paths, prepare(context, network), |group| {
            done += group.len();
            let mut inputs = Vec::with_capacity(group.len());
            for (_, image) in group {
                match image {
                    Ok(input) => inputs.push(input),
                    Err(error) => context.console.warn(messages::left_out(&error)),
                }
            }
            features(network, &inputs)?.iter().for_each(|(row, _)| class.add(row));
            task.set(done, "for the baselines");
            Ok(())
        })?;
        classes.push(class.finish()?);
    }
    task.finish();
    Ok(Baselines::new(classes))
}

fn features(network: &Network, inputs: &[Prepared]) -> Result<Vec<(Vec<f32>, Geometry)>> {
    let values = network.device().values(inputs, |some| network.features(&some.iter().collect::<Vec<_>>()));
    inputs.iter().zip(values).map(|(prepared, values)| Ok((values?, prepared.geometry))).collect()
}

/// What one method says of the images of one class.
struct Figures {
    scores: Vec<f32>,
    defects: Vec<bool>,
    pixels: Option<PixelSet>,
}

impl Figures {
    fn of(category: &Category) -> Self {
        let masks = category.test.iter().any(|sample| sample.mask.is_some());
        Self { scores: Vec::new(), defects: Vec::new(), pixels: masks.then(PixelSet::new) }
    }

    fn add(&mut self, sample: &Sample, score: f32, map: &AnomalyMap) -> Result<()> {
        self.scores.push(score);
        self.defects.push(sample.label.is_defect());
        let size = input_side(&map.geometry);
        // A mask that cannot be read was told of when the model was measured.
        let truth = ground_truth(sample, &map.geometry, size).unwrap_or_default();
        if let (Some(pixels), Some(truth)) = (&mut self.pixels, truth) {
            let area = ShownArea::of(&map.geometry, size);
            pixels.push(&area.cut(&map.resized(size), size), &area.cut(&truth, size), area.width, area.height)?;
        }
        Ok(())
    }

    fn metrics(self) -> Result<Metrics> {
        let ranking = self.pixels.map(PixelSet::rank);
        Metrics::measure(&self.scores, &self.defects, ranking.as_ref())
    }
}
