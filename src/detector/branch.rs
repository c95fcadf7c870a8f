//! What of a network depends on the shape of its input. A network has a branch for each shape; they share their weights.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use candle_core::Tensor;

use super::map::MapBuilder;
use super::{AnomalyMap, Mask, Reconstructor, SamplerPlan};
use crate::config::{Config, Size};
use crate::error::{Error, Result};
use crate::features::FeatureExtractor;
use crate::frame::{Frame, Geometry, Prepared, Template};

/// A network in one shape of its input.
pub struct Branch {
    config: Config,
    extractor: Arc<FeatureExtractor>,
    reconstructor: Arc<Reconstructor>,
    maps: MapBuilder,
    mask: Option<Mask>,
    /// The picture that parts are found with, where they are.
    template: Option<Arc<Template>>,
    /// By the number of steps: the configured one, and those that were asked for.
    plans: Mutex<BTreeMap<usize, Arc<SamplerPlan>>>,
}

impl Branch {
    /// From its parts; `config` is that of the shape, `mask` says what counts where a request brings no mask of its own.
    ///
    /// # Errors
    /// When the device has no room.
    pub fn new(
        config: &Config,
        extractor: Arc<FeatureExtractor>,
        reconstructor: Arc<Reconstructor>,
        mask: Option<Mask>,
    ) -> Result<Self> {
        let (config, maps, plans) = (config.clone(), MapBuilder::new(config), Mutex::default());
        let branch = Self { config, extractor, reconstructor, maps, mask, template: None, plans };
        branch.plan(None)?;
        Ok(branch)
    }

    /// The same with a picture that parts are found with.
    pub fn with_template(self, template: Option<Arc<Template>>) -> Self {
        Self { template, ..self }
    }

    /// The picture that parts are found with, where they are.
    pub fn template(&self) -> Option<&Arc<Template>> {
        self.template.as_ref()
    }

    /// The configuration in this shape.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// From frames to features.
    pub fn extractor(&self) -> &FeatureExtractor {
        &self.extractor
    }

    /// From features to their reconstruction.
    pub fn reconstructor(&self) -> &Reconstructor {
        &self.reconstructor
    }

    /// What counts, where not all does.
    pub(super) fn mask(&self) -> Option<&Mask> {
        self.mask.as_ref()
    }

    /// Size of its input in pixels.
    pub fn input(&self) -> Size {
        self.config.input.size
    }

    /// Features `[B, T, D]` of prepared frames.
    ///
    /// # Errors
    /// When a frame is not of this size, or the device fails.
    pub fn features(&self, inputs: &[&Prepared]) -> Result<Tensor> {
        let size = self.input();
        let frames: Vec<&Frame> = inputs.iter().map(|input| &input.frame).collect();
        if let Some(other) = frames.iter().find(|frame| [frame.width(), frame.height()] != size.sides()) {
            let (w, h) = (other.width(), other.height());
            return Err(Error::Internal(format!("detector: an input of {w}x{h} for a model of {size}")));
        }
        self.extractor.extract(&frames)
    }

    /// Image score and anomaly map of one score per cell `[T]`; without `mask` the network's own holds.
    pub(super) fn map(&self, cells: Vec<f32>, geometry: Geometry, mask: Option<&Mask>) -> (f32, AnomalyMap) {
        self.maps.build(cells, geometry, mask.or(self.mask.as_ref()))
    }

    /// The plan for a number of steps, the configured one if there is none; made when it is first asked for.
    ///
    /// # Errors
    /// When so many steps are not possible.
    pub(super) fn plan(&self, steps: Option<usize>) -> Result<Arc<SamplerPlan>> {
        let steps = steps.unwrap_or(self.config.detection.ddim_steps);
        let plans = || self.plans.lock().unwrap_or_else(PoisonError::into_inner);
        let known = plans().get(&steps).cloned(); // no lock while a plan is made: that is work for many threads
        if let Some(plan) = known {
            return Ok(plan);
        }
        let plan = Arc::new(self.reconstructor.plan(steps)?);
        plans().insert(steps, plan.clone());
        Ok(plan)
    }
}
