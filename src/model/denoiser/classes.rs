//! The networks of a model, and which one answers for a class.

use candle_core::Tensor;

use super::{Denoiser, DenoiserShape, Parameter};
use crate::config::{ClassStrategy, Config, Shapes};
use crate::error::Result;
use crate::kernels::gemm::Factors;

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

    /// What fixes the shapes of each network in one of the shapes of its input.
    pub fn shape(config: &Config, shapes: &Shapes, number: usize) -> DenoiserShape {
        let own = config.in_shape(&shapes.distinct()[number]);
        DenoiserShape::of(&own, shapes.classes()).named(shapes.suffix(number))
    }

    /// All trainable tensors of all networks, those that belong to a grid once for each shape.
    pub fn parameters(config: &Config, shapes: &Shapes) -> Vec<Parameter> {
        let mut all = Vec::<Parameter>::new();
        for network in 0..Self::count(config, shapes.classes()) {
            let (prefix, first) = (Self::prefix(config, network), all.len());
            for number in 0..shapes.distinct().len() {
                for own in Self::shape(config, shapes, number).parameters() {
                    let parameter = Parameter { name: format!("{prefix}{}", own.name), ..own };
                    if number == 0 || !all[first..].iter().any(|known| known.name == parameter.name) {
                        all.push(parameter);
                    }
                }
            }
        }
        all
    }

    /// The networks in one of the shapes of their input, from the tensors by name.
    ///
    /// # Errors
    /// When a tensor is missing or has another shape.
    pub fn new(
        config: &Config,
        shapes: &Shapes,
        number: usize,
        tensor: impl Fn(&str) -> Option<Tensor>,
    ) -> Result<Self> {
        let network = |i: usize| {
            let prefix = Self::prefix(config, i);
            Denoiser::new(Self::shape(config, shapes, number), |name| tensor(&format!("{prefix}{name}")))
        };
        Ok(Self { networks: (0..Self::count(config, shapes.classes())).map(network).collect::<Result<_>>()? })
    }

    /// The same networks, whose answers come from products in these numbers, see [`Denoiser::multiplying`].
    pub fn multiplying(self, factors: Factors) -> Self {
        Self { networks: self.networks.into_iter().map(|network| network.multiplying(factors)).collect() }
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
