//! AdamW (Loshchilov & Hutter 2019) with clipping by the global norm and a moving average of the weights.

use candle_core::backprop::GradStore;
use candle_core::{Device, Tensor, Var};
use rayon::prelude::*;

use crate::config::TrainingConfig;
use crate::error::{Error, Result};
use crate::model::denoiser::Parameter;

const BETA1: f32 = 0.9;
const BETA2: f32 = 0.99;
const EPSILON: f32 = 1e-8;

/// One trainable tensor with everything the optimizer keeps of it.
pub(super) struct Slot {
    pub(super) parameter: Parameter,
    pub(super) var: Var,
    pub(super) value: Vec<f32>,
    pub(super) momentum: Vec<f32>,
    pub(super) square: Vec<f32>,
    pub(super) average: Vec<f32>,
}

impl Slot {
    /// Sets the variable that the network uses to the current value.
    pub(super) fn show(&self) -> Result<()> {
        let value = Tensor::from_slice(&self.value, self.parameter.shape.as_slice(), self.var.device())?;
        Ok(self.var.set(&value)?)
    }
}

/// In the names of parameters that a network has for each of several shapes.
const OF_A_SHAPE: &str = "input.position.";

/// All trainable tensors.
pub(super) struct Optimizer {
    pub(super) slots: Vec<Slot>,
}

impl Optimizer {
    /// The parameters with their initial values for `seed`. The variables are on `device`, moments and averages on the host.
    pub(super) fn new(parameters: Vec<Parameter>, seed: u64, device: &Device) -> Result<Self> {
        let slot = |parameter: Parameter| {
            let value = parameter.start(seed);
            let n = value.len();
            let var = Var::from_tensor(&Tensor::from_slice(&value, parameter.shape.as_slice(), device)?)?;
            let average = value.clone();
            Ok(Slot { parameter, var, value, momentum: vec![0.0; n], square: vec![0.0; n], average })
        };
        Ok(Self { slots: parameters.into_iter().map(slot).collect::<Result<_>>()? })
    }

    /// The variable of the parameter with this name.
    pub(super) fn var(&self, name: &str) -> Option<Tensor> {
        self.slots.iter().find(|s| s.parameter.name == name).map(|s| s.var.as_tensor().clone())
    }

    /// The averaged weights, as plain tensors.
    pub(super) fn averages(&self) -> Result<std::collections::BTreeMap<String, Tensor>> {
        let tensor = |s: &Slot| Tensor::from_slice(&s.average, s.parameter.shape.as_slice(), &Device::Cpu);
        self.slots.iter().map(|s| Ok((s.parameter.name.clone(), tensor(s)?))).collect()
    }

    /// One step of the parameters whose names are `wanted`; `step` counts from 1. Returns the norm of the gradient
    /// before clipping.
    pub(super) fn step(
        &mut self,
        wanted: impl Fn(&str) -> bool,
        grads: &GradStore,
        step: usize,
        rate: f64,
        config: &TrainingConfig,
    ) -> Result<f64> {
        let own = |slot: &&mut Slot| wanted(&slot.parameter.name);
        let mut slots: Vec<&mut Slot> = self.slots.iter_mut().filter(own).collect();
        let grads = slots
            .iter()
            .map(|slot| {
                let name = &slot.parameter.name;
                match grads.get(&slot.var) {
                    Some(grad) => Ok(grad.flatten_all()?.to_vec1::<f32>()?),
                    // Where cells of another shape lie: no class of it is in this batch.
                    None if name.contains(OF_A_SHAPE) => Ok(vec![0.0; slot.value.len()]),
                    None => Err(Error::Internal(format!("training: no gradient for {name}"))),
                }
            })
            .collect::<Result<Vec<_>>>()?;
        let norm = grads.iter().flatten().map(|&g| f64::from(g) * f64::from(g)).sum::<f64>().sqrt();
        let clip = (config.clip_norm / (norm + 1e-6)).min(1.0) as f32;
        let (c1, c2) = (1.0 - BETA1.powi(step as i32), 1.0 - BETA2.powi(step as i32));
        // The average follows quickly at first: after t steps it has seen about t / 10.
        let decay = config.ema_decay.min((1 + step) as f64 / (10 + step) as f64) as f32;
        slots.par_iter_mut().zip(&grads).for_each(|(slot, grad)| {
            let shrink = if slot.parameter.decay { 1.0 - (rate * config.weight_decay) as f32 } else { 1.0 };
            let rate = rate as f32;
            let state = slot.value.iter_mut().zip(&mut slot.momentum).zip(&mut slot.square).zip(&mut slot.average);
            for ((((value, m), v), average), g) in state.zip(grad) {
                let g = g * clip;
                *m = BETA1 * *m + (1.0 - BETA1) * g;
                *v = BETA2 * *v + (1.0 - BETA2) * g * g;
                *value = *value * shrink - rate * (*m / c1) / ((*v / c2).sqrt() + EPSILON);
                *average += (1.0 - decay) * (*value - *average);
            }
        });
        slots.iter().try_for_each(|slot| slot.show())?;
        Ok(norm)
    }
}
