//! The rows that `evaluate --baselines` adds.

use std::collections::BTreeMap;
use std::path::PathBuf;

use rayon::prelude::*;

use super::Context;
use super::frames::in_groups;
use super::truth::{Part, side, truth};
use crate::baselines::{Baselines, ClassFit, METHODS};
use crate::data::{Category, Dataset, Sample, hold_out};
use crate::detector::{AnomalyMap, Network};
use crate::error::Result;
use crate::frame::{Frame, Geometry};
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
    let mut task = context.console.task("baselines", categories.iter().map(|category| category.test.len()).sum());
    let mut done = 0;
    for (class, category) in categories.iter().enumerate() {
        let mut figures = METHODS.map(|_| Figures::of(category));
        let paths: Vec<PathBuf> = category.test.iter().map(|sample| sample.path.clone()).collect();
        in_groups(context, &paths, GROUP, |group| {
            let mut readable = Vec::new();
            done += group.len();
            for (index, frame) in group {
                // Who cannot be read was told of when the model was measured.
                readable.extend(frame.ok().map(|frame| (&category.test[index], frame)));
            }
            let features = features(network, &readable.iter().map(|(_, frame)| frame).collect::<Vec<_>>())?;
            let maps = features.par_iter().map(|(features, geometry)| {
                let distances = baselines.distances(features, class);
                distances.map(|distance| network.map(distance, *geometry, None))
            });
            let maps = maps.collect::<Vec<_>>();
            for ((sample, _), maps) in readable.iter().zip(maps) {
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
    let mut task = context.console.task("learning", images.iter().map(Vec::len).sum());
    let mut done = 0;
    let mut classes = Vec::new();
    for paths in &images {
        let mut class = ClassFit::new(tokens, dim, paths.len(), training.seed);
        in_groups(context, paths, GROUP, |group| {
            let readable: Vec<&Frame> = group.iter().filter_map(|(_, frame)| frame.as_ref().ok()).collect();
            features(network, &readable)?.iter().for_each(|(row, _)| class.add(row));
            done += group.len();
            task.set(done, "for the baselines");
            Ok(())
        })?;
        classes.push(class.finish()?);
    }
    task.finish();
    Ok(Baselines::new(classes))
}

fn features(network: &Network, frames: &[&Frame]) -> Result<Vec<(Vec<f32>, Geometry)>> {
    let preprocess = network.preprocess();
    let prepared = frames.par_iter().map(|frame| preprocess.apply(frame)).collect::<Result<Vec<_>>>()?;
    let values = network.device().values(&prepared, |some| network.features(&some.iter().collect::<Vec<_>>()));
    prepared.iter().zip(values).map(|(prepared, values)| Ok((values?, prepared.geometry))).collect()
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
        let size = side(&map.geometry);
        // A mask that cannot be read was told of when the model was measured.
        let truth = truth(sample, &map.geometry, size).unwrap_or_default();
        if let (Some(pixels), Some(truth)) = (&mut self.pixels, truth) {
            let part = Part::of(&map.geometry, size);
            pixels.push(&part.cut(&map.resized(size), size), &part.cut(&truth, size), part.width, part.height)?;
        }
        Ok(())
    }

    fn metrics(self) -> Result<Metrics> {
        let ranking = self.pixels.map(PixelSet::rank);
        Metrics::measure(&self.scores, &self.defects, ranking.as_ref())
    }
}
