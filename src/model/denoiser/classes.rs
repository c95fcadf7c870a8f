//! The networks of a model, and which one answers for a class.

use candle_core::Tensor;

use super::{Denoiser, DenoiserShape, Parameter};
use crate::config::{ClassStrategy, Config};
use crate::error::Result;

/// One network for all classes, or one for each.
pub struct Denoisers {
    networks: Vec<Denoiser>,
}

impl Denoisers {
    /// Number of networks.
    pub fn count(config: &Config, classes: usize) -> usize {
        if config.denoiser.classes == ClassStrategy::Separate { classes } else { 1 }
    }

    /// What the names of a network's parameters begin with.
    pub fn prefix(config: &Config, network: usize) -> String {
        match config.denoiser.classes {
            ClassStrategy::Separate => format!("class.{network}."),
            ClassStrategy::Conditional | ClassStrategy::Heads => String::new(),
        }
    }

    /// All trainable tensors of all networks.
    pub fn parameters(config: &Config, classes: usize) -> Vec<Parameter> {
        let own = |network: usize| {
            let prefix = Self::prefix(config, network);
            let named = move |p: Parameter| Parameter { name: format!("{prefix}{}", p.name), ..p };
            DenoiserShape::of(config, classes).parameters().into_iter().map(named)
        };
        (0..Self::count(config, classes)).flat_map(own).collect()
    }

    /// From the tensors by name.
    ///
    /// # Errors
    /// When a tensor is missing or has another shape.
    pub fn new(config: &Config, classes: usize, tensor: impl Fn(&str) -> Option<Tensor>) -> Result<Self> {
        let network = |i: usize| {
            let prefix = Self::prefix(config, i);
            Denoiser::new(DenoiserShape::of(config, classes), |name| tensor(&format!("{prefix}{name}")))
        };
        Ok(Self { networks: (0..Self::count(config, classes)).map(network).collect::<Result<_>>()? })
    }

    /// Number of classes that can be told or answered for.
    pub fn classes(&self) -> usize {
        let shape = self.networks[0].shape();
        self.networks.len().max(shape.heads).max(shape.classes)
    }

    /// The network that answers for a class (or for none, where it can), and what it is told.
    pub fn answering(&self, class: Option<usize>) -> (&Denoiser, u32) {
        let single = &self.networks[0];
        let told = |class: usize| if single.shape().heads > 1 || single.shape().classes > 0 { class as u32 } else { 0 };
        match class {
            None => (single, single.null_class()),
            Some(class) => {
                (self.networks.get(class).filter(|_| self.networks.len() > 1).unwrap_or(single), told(class))
            }
        }
    }
}
