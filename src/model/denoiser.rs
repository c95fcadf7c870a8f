//! The denoiser: ConvNeXt-style blocks with a little self-attention over the feature grid, told the noise level and the
//! class by adaptive layer norm. It predicts the clean features x0 from noisy ones.
//!
//! Input and output are tokens `[B, T, D]`, T = grid x grid in raster order. In training the input has one channel more:
//! 1 where a token is masked. Its row of the input matrix is the learned mask token.

use candle_core::{DType, Device, Tensor};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::config::DenoiserConfig;
use crate::error::{Error, Result};
use crate::ops::{self, AttentionShape, ConvNextShape, Dropout};

/// Frequencies of the noise-level embedding.
const FREQUENCIES: usize = 32;

/// Everything that fixes the shapes of a denoiser.
#[derive(Clone, Debug, PartialEq)]
pub struct DenoiserShape {
    /// Widths and depths.
    pub config: DenoiserConfig,
    /// Cells per side of the feature grid.
    pub grid: usize,
    /// Feature channels D.
    pub dim: usize,
    /// Number of classes, without the null class.
    pub classes: usize,
}

/// How a parameter starts.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Init {
    /// All zero.
    Zero,
    /// Normal with this standard deviation.
    Normal(f64),
    /// Uniform in +- this.
    Uniform(f64),
}

/// One trainable tensor.
#[derive(Clone, Debug, PartialEq)]
pub struct Parameter {
    /// Name in the model file.
    pub name: String,
    /// Shape.
    pub shape: Vec<usize>,
    /// Start values: (length, rule) per part of the flattened tensor.
    pub init: Vec<(usize, Init)>,
    /// Weight decay applies (matrices and kernels, not biases, positions and embeddings).
    pub decay: bool,
}

impl DenoiserShape {
    fn tokens(&self) -> usize {
        self.grid * self.grid
    }

    fn block(&self) -> ConvNextShape {
        let c = &self.config;
        ConvNextShape {
            height: self.grid,
            width: self.grid,
            channels: c.width,
            hidden: c.width * c.mlp_ratio,
            kernel: c.kernel,
        }
    }

    fn attention(&self) -> AttentionShape {
        AttentionShape { tokens: self.tokens(), channels: self.config.width, heads: self.config.heads }
    }

    fn has_attention(&self, block: usize) -> bool {
        self.config.attention_every > 0 && (block + 1).is_multiple_of(self.config.attention_every)
    }

    /// All trainable tensors, in the order of the model file's construction.
    pub fn parameters(&self) -> Vec<Parameter> {
        let (w, d) = (self.config.width, self.dim);
        let mut all = Vec::new();
        let mut add = |name: String, shape: &[usize], init: Vec<(usize, Init)>, decay: bool| {
            all.push(Parameter { name, shape: shape.to_vec(), init, decay });
        };
        let fan_in = |n: usize| Init::Uniform(1.0 / (n as f64).sqrt());
        add("input.weight".into(), &[d + 1, w], vec![(d * w, fan_in(d)), (w, Init::Zero)], true);
        add("input.position".into(), &[self.tokens(), w], vec![(self.tokens() * w, Init::Normal(0.02))], false);
        let frequencies = 2 * FREQUENCIES;
        add("noise.0.weight".into(), &[frequencies, w], vec![(frequencies * w, fan_in(frequencies))], true);
        add("noise.0.bias".into(), &[w], vec![(w, fan_in(frequencies))], false);
        add("noise.1.weight".into(), &[w, w], vec![(w * w, fan_in(w))], true);
        add("noise.1.bias".into(), &[w], vec![(w, fan_in(w))], false);
        let classes = self.classes + 1;
        add("class.embedding".into(), &[classes, w], vec![(classes * w, Init::Normal(0.02))], false);
        for i in 0..self.config.blocks {
            let shape = self.block();
            let (taps, hidden) = (shape.kernel * shape.kernel, shape.hidden);
            let init =
                vec![(taps * w + w, fan_in(taps)), (w * hidden + hidden, fan_in(w)), (hidden * w + w, fan_in(hidden))];
            add(format!("block.{i}.convnext"), &[shape.parameters()], init, true);
            add(format!("block.{i}.modulation.weight"), &[w, 3 * w], vec![(3 * w * w, Init::Zero)], true);
            add(format!("block.{i}.modulation.bias"), &[3 * w], vec![(3 * w, Init::Zero)], false);
            if self.has_attention(i) {
                let n = self.attention().parameters();
                add(format!("attention.{i}.layer"), &[n], vec![(n, fan_in(w))], true);
                add(format!("attention.{i}.modulation.weight"), &[w, 3 * w], vec![(3 * w * w, Init::Zero)], true);
                add(format!("attention.{i}.modulation.bias"), &[3 * w], vec![(3 * w, Init::Zero)], false);
            }
        }
        add("output.modulation.weight".into(), &[w, 2 * w], vec![(2 * w * w, Init::Zero)], true);
        add("output.modulation.bias".into(), &[2 * w], vec![(2 * w, Init::Zero)], false);
        add("output.weight".into(), &[w, d], vec![(w * d, Init::Zero)], true);
        add("output.bias".into(), &[d], vec![(d, Init::Zero)], false);
        all
    }
}

impl Parameter {
    /// Number of elements.
    pub fn elements(&self) -> usize {
        self.shape.iter().product()
    }

    /// Start values; they depend on the seed and on the name alone.
    pub fn start(&self, seed: u64) -> Vec<f32> {
        let name =
            self.name.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |h, b| (h ^ u64::from(b)).wrapping_mul(0x100_0000_01b3)); // FNV-1a
        let mut rng = ChaCha8Rng::seed_from_u64(seed ^ name);
        let mut values = Vec::with_capacity(self.elements());
        for &(n, init) in &self.init {
            match init {
                Init::Zero => values.resize(values.len() + n, 0.0),
                Init::Uniform(limit) => values.extend((0..n).map(|_| rng.random_range(-limit..limit) as f32)),
                Init::Normal(deviation) => values.extend((0..n).map(|_| (normal(&mut rng) * deviation) as f32)),
            }
        }
        values
    }
}

/// A standard normal number (Box & Muller 1958).
pub(crate) fn normal(rng: &mut ChaCha8Rng) -> f64 {
    let u: f64 = 1.0 - rng.random::<f64>(); // in (0, 1]
    (-2.0 * u.ln()).sqrt() * (std::f64::consts::TAU * rng.random::<f64>()).cos()
}

struct Layer {
    parameters: Tensor,
    weight: Tensor, // modulation
    bias: Tensor,
}

/// What the blocks are told about noise level and class: one modulation per layer, `[B, 3 W]`, the last `[B, 2 W]`.
pub struct Condition(Vec<Tensor>);

impl Condition {
    /// The condition of one sample, repeated for a batch.
    ///
    /// # Errors
    /// When it is not one sample's.
    pub fn repeat(&self, batch: usize) -> Result<Self> {
        let rows = self.0.iter().map(|m| m.broadcast_as((batch, m.dim(1)?))?.contiguous());
        Ok(Self(rows.collect::<candle_core::Result<Vec<_>>>()?))
    }
}

/// The network.
pub struct Denoiser {
    shape: DenoiserShape,
    input: [Tensor; 2],
    noise: [Tensor; 4],
    class: Tensor,
    layers: Vec<(Layer, Option<Layer>)>,
    output_modulation: [Tensor; 2],
    output: [Tensor; 2],
}

impl Denoiser {
    /// From its tensors by name; with `Var`s it can be trained, with plain tensors it is frozen.
    ///
    /// # Errors
    /// When a tensor is missing or has another shape.
    pub fn new(shape: DenoiserShape, tensor: impl Fn(&str) -> Option<Tensor>) -> Result<Self> {
        let expected = shape.parameters();
        let get = |name: &str| -> Result<Tensor> {
            let parameter = expected.iter().find(|p| p.name == name);
            let found = tensor(name).ok_or_else(|| Error::Internal(format!("denoiser: {name} is missing")))?;
            match parameter {
                Some(p) if p.shape == found.dims() => Ok(found),
                _ => Err(Error::Internal(format!("denoiser: {name} has shape {:?}", found.dims()))),
            }
        };
        let layer = |prefix: String, parameters: &str| -> Result<Layer> {
            Ok(Layer {
                parameters: get(&format!("{prefix}.{parameters}"))?,
                weight: get(&format!("{prefix}.modulation.weight"))?,
                bias: get(&format!("{prefix}.modulation.bias"))?,
            })
        };
        let layers = (0..shape.config.blocks).map(|i| {
            let attention = if shape.has_attention(i) { Some(layer(format!("attention.{i}"), "layer")?) } else { None };
            Ok((layer(format!("block.{i}"), "convnext")?, attention))
        });
        Ok(Self {
            layers: layers.collect::<Result<Vec<_>>>()?,
            input: [get("input.weight")?, get("input.position")?],
            noise: [get("noise.0.weight")?, get("noise.0.bias")?, get("noise.1.weight")?, get("noise.1.bias")?],
            class: get("class.embedding")?,
            output_modulation: [get("output.modulation.weight")?, get("output.modulation.bias")?],
            output: [get("output.weight")?, get("output.bias")?],
            shape,
        })
    }

    /// Shapes.
    pub fn shape(&self) -> &DenoiserShape {
        &self.shape
    }

    /// Index of the null class.
    pub fn null_class(&self) -> u32 {
        self.shape.classes as u32
    }

    fn device(&self) -> &Device {
        self.class.device()
    }

    /// Modulations for each sample's log-SNR and class (`null_class()` for none).
    ///
    /// # Errors
    /// When the slices differ in length or a class is out of range.
    pub fn condition(&self, log_snr: &[f32], classes: &[u32]) -> Result<Condition> {
        if log_snr.len() != classes.len() || classes.iter().any(|&c| c > self.null_class()) {
            return Err(Error::Internal(format!("denoiser: {} noise levels, classes {classes:?}", log_snr.len())));
        }
        // Sines and cosines of lambda at frequencies from 0.05 to 10, geometric.
        let ratio = (10.0f32 / 0.05).ln() / (FREQUENCIES - 1) as f32;
        let embedding = log_snr
            .iter()
            .flat_map(|&l| {
                let angle = move |i: usize| l * 0.05 * (i as f32 * ratio).exp();
                (0..FREQUENCIES).map(move |i| angle(i).sin()).chain((0..FREQUENCIES).map(move |i| angle(i).cos()))
            })
            .collect::<Vec<_>>();
        let e = Tensor::from_vec(embedding, (log_snr.len(), 2 * FREQUENCIES), self.device())?;
        let [w0, b0, w1, b1] = &self.noise;
        let noise = e.matmul(w0)?.broadcast_add(b0)?.silu()?.matmul(w1)?.broadcast_add(b1)?;
        let classes = Tensor::new(classes, self.device())?;
        let c = (noise + self.class.index_select(&classes, 0)?)?.silu()?;
        let modulation =
            |weight: &Tensor, bias: &Tensor| -> candle_core::Result<Tensor> { c.matmul(weight)?.broadcast_add(bias) };
        let mut all = Vec::new();
        for (block, attention) in &self.layers {
            for layer in std::iter::once(block).chain(attention) {
                all.push(modulation(&layer.weight, &layer.bias)?);
            }
        }
        all.push(modulation(&self.output_modulation[0], &self.output_modulation[1])?);
        Ok(Condition(all))
    }

    /// Clean features `[B, T, D]` predicted from noisy ones `[B, T, D]`. A sample's result does not depend on the batch.
    ///
    /// # Errors
    /// When shapes do not fit.
    pub fn predict(&self, x: &Tensor, condition: &Condition) -> Result<Tensor> {
        let weight = self.input[0].narrow(0, 0, self.shape.dim)?;
        self.blocks(x, &weight, condition, None)
    }

    /// `predict` for training: `x` `[B, T, D + 1]` carries the mask as its last channel and 0 in masked tokens;
    /// `dropout_seed` fixes the dropped units.
    ///
    /// # Errors
    /// When shapes do not fit.
    pub fn forward_train(&self, x: &Tensor, condition: &Condition, dropout_seed: u64) -> Result<Tensor> {
        self.blocks(x, &self.input[0], condition, Some(dropout_seed))
    }

    fn blocks(&self, x: &Tensor, weight: &Tensor, condition: &Condition, train: Option<u64>) -> Result<Tensor> {
        let mut modulations = condition.0.iter();
        let mut next = || modulations.next().ok_or_else(|| Error::Internal("denoiser: a modulation is missing".into()));
        let mut h = ops::linear(x, weight, &self.input[1])?;
        for (i, (block, attention)) in self.layers.iter().enumerate() {
            let dropout = train.map(|seed| Dropout {
                probability: self.shape.config.dropout,
                seed: seed.wrapping_add((i as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15)),
            });
            h = ops::convnext(&h, &block.parameters, next()?, self.shape.block(), dropout, train.is_some())?;
            if let Some(layer) = attention {
                h = ops::attention(&h, &layer.parameters, next()?, self.shape.attention(), train.is_some())?;
            }
        }
        let h = ops::modulated_norm(&h, next()?)?;
        Ok(ops::linear(&h, &self.output[0], &self.output[1])?)
    }

    /// The dtype of everything here.
    pub const DTYPE: DType = DType::F32;
}
