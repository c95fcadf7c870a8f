//! The denoiser: ConvNeXt-style blocks with a little self-attention over the grid, told the noise level and the class by
//! adaptive layer norm; on one resolution, or as a U-Net on several. It predicts clean values, noise, or what is between
//! them, from noisy values.
//!
//! Input and output are tokens `[B, T, D]`, T cells of the grid in raster order. In training the input has one channel more:
//! 1 where a token is masked. Its row of the input matrix is the learned mask token.

use candle_core::{Device, Tensor};

use super::Layer as Cost;
use crate::config::Position;
use crate::error::{Error, Result};
use crate::kernels::gemm::Factors;
use crate::ops::{self, AttentionShape, ConvNextShape, Dropout, Mode, Packs};

mod classes;
mod shape;
mod windows;

pub use classes::Denoisers;
use shape::FREQUENCIES;
use shape::Stage as StageShape;
pub(crate) use shape::normal;
pub use shape::{DenoiserShape, Init, Parameter};
use windows::Windows;

struct Layer {
    parameters: Tensor,
    packs: Packs,
    weight: Tensor, // modulation
    bias: Tensor,
}

impl Layer {
    fn mode(&self, train: bool) -> Mode<'_> {
        if train { Mode::Training } else { Mode::Inference(&self.packs) }
    }
}

/// A linear layer.
struct Dense {
    weight: Tensor, // [in, out]
    bias: Tensor,   // [out]
    packs: Packs,
}

impl Dense {
    fn apply(&self, x: &Tensor, train: bool) -> candle_core::Result<Tensor> {
        let mode = if train { Mode::Training } else { Mode::Inference(&self.packs) };
        ops::linear(x, &self.weight, &self.bias, mode)
    }
}

/// What the blocks are told about noise level and class.
pub struct Condition {
    /// One per layer, `[B, 3 W]`, the last `[B, 2 W]`.
    modulations: Vec<Tensor>,
    /// Output layer of each sample.
    heads: Vec<usize>,
}

impl Condition {
    /// The condition of one sample, repeated for a batch.
    ///
    /// # Errors
    /// When it is not one sample's.
    pub fn repeat(&self, batch: usize) -> Result<Self> {
        let rows = self.modulations.iter().map(|m| m.broadcast_as((batch, m.dim(1)?))?.contiguous());
        let modulations = rows.collect::<candle_core::Result<Vec<_>>>()?;
        Ok(Self { modulations, heads: self.heads.repeat(batch) })
    }
}

/// One stage on the way through the network.
enum Stage {
    Block(Layer, ConvNextShape),
    Attention(Layer, AttentionShape, Option<Windows>),
    /// To half the side; what came in is kept for the way up.
    Shrink(Dense, usize),
    /// To twice the side, joined by what was kept.
    Grow {
        grow: Dense,
        join: Dense,
        side: usize,
    },
}

impl Stage {
    /// What it costs as the stage of this number, for what comes out of it, `[B, T, C]`; none for what changes the grid.
    fn cost(&self, index: usize, out: &Tensor) -> Option<Cost> {
        let (layer, name, of_one) = match self {
            Self::Block(layer, ConvNextShape { height, width, channels: c, hidden, kernel }) => {
                (layer, "block", height * width * (kernel * kernel * c + 2 * c * hidden))
            }
            Self::Attention(layer, AttentionShape { tokens, channels: c, .. }, windows) => {
                let seen = windows.as_ref().map_or(tokens * tokens, Windows::pairs);
                (layer, "attention", 4 * tokens * c * c + 2 * seen * c)
            }
            Self::Shrink(..) | Self::Grow { .. } => return None,
        };
        let values = 2 * out.elem_count() + layer.parameters.elem_count();
        Some(Cost::new(format!("{name} {index}"), out.dim(0).ok()? * of_one, values))
    }
}

/// Where cells lie.
enum Place {
    /// A vector per cell of the grid, `[T, W]`.
    Table(Tensor),
    /// The values of waves in each cell `[T, F]`, and a vector per wave `[F, W]`.
    Waves(Tensor, Tensor),
}

impl Place {
    /// A vector for each cell of the grid, or for some of them, `[T, W]`.
    fn of(&self, cells: Option<&Tensor>) -> candle_core::Result<Tensor> {
        let some = |rows: &Tensor| cells.map_or(Ok(rows.clone()), |cells| rows.index_select(cells, 0));
        match self {
            Self::Table(table) => some(table),
            Self::Waves(values, vectors) => some(values)?.matmul(vectors),
        }
    }
}

/// The network.
pub struct Denoiser {
    shape: DenoiserShape,
    input: Tensor,
    input_packs: Packs,
    position: Place,
    guide: Option<Dense>,
    noise: [Tensor; 4],
    class: Tensor,
    stages: Vec<Stage>,
    output_modulation: [Tensor; 2],
    output: [Tensor; 2],
    output_packs: Vec<Packs>, // a head each
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
                packs: Packs::default(),
                weight: get(&format!("{prefix}.modulation.weight"))?,
                bias: get(&format!("{prefix}.modulation.bias"))?,
            })
        };
        let pair = |prefix: &str| -> Result<[Tensor; 2]> {
            Ok([get(&format!("{prefix}.weight"))?, get(&format!("{prefix}.bias"))?])
        };
        let dense = |prefix: &str| -> Result<Dense> {
            let [weight, bias] = pair(prefix)?;
            Ok(Dense { weight, bias, packs: Packs::default() })
        };
        // Where the grid has several windows, those of every second attention are shifted.
        let mut shifted = true;
        let stages = shape.stages().into_iter().map(|stage| {
            Ok(match stage {
                StageShape::Block(name, shape) => Stage::Block(layer(name, "convnext")?, shape),
                StageShape::Attention(name, own, size) => {
                    let layer = layer(name, "layer")?;
                    shifted = !shifted;
                    let windows = Windows::of(size, shape.config.window, shifted, layer.parameters.device())?;
                    Stage::Attention(layer, own, windows)
                }
                StageShape::Shrink { level, side, .. } => Stage::Shrink(dense(&format!("down.{level}.shrink"))?, side),
                StageShape::Grow { level, side, .. } => Stage::Grow {
                    grow: dense(&format!("up.{level}.grow"))?,
                    join: dense(&format!("up.{level}.join"))?,
                    side,
                },
            })
        });
        let vectors = get(&shape.position().0)?;
        let position = match shape.config.position {
            Position::Learned => Place::Table(vectors),
            Position::Fourier => {
                let values = Tensor::from_vec(shape.waves(), (shape.grid.area(), ()), vectors.device())?;
                Place::Waves(values.to_dtype(vectors.dtype())?, vectors)
            }
        };
        Ok(Self {
            stages: stages.collect::<Result<Vec<_>>>()?,
            input: get("input.weight")?,
            input_packs: Packs::default(),
            position,
            guide: if shape.config.guide > 0 { Some(dense("guide")?) } else { None },
            noise: [get("noise.0.weight")?, get("noise.0.bias")?, get("noise.1.weight")?, get("noise.1.bias")?],
            class: get("class.embedding")?,
            output_modulation: pair("output.modulation")?,
            output: pair("output")?,
            output_packs: (0..shape.heads.max(1)).map(|_| Packs::default()).collect(),
            shape,
        })
    }

    /// The same network, whose answers come from products in these numbers where its layers have kernels for them. In training
    /// they are of single precision.
    pub fn multiplying(mut self, factors: Factors) -> Self {
        let ready = || Packs::new(factors);
        self.input_packs = ready();
        self.output_packs.fill_with(ready);
        self.guide.iter_mut().for_each(|guide| guide.packs = ready());
        for stage in &mut self.stages {
            match stage {
                Stage::Block(layer, _) | Stage::Attention(layer, ..) => layer.packs = ready(),
                Stage::Shrink(dense, _) => dense.packs = ready(),
                Stage::Grow { grow, join, .. } => (grow.packs, join.packs) = (ready(), ready()),
            }
        }
        self
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

    /// Modulations for each sample's log-SNR and class (`null_class()` for none; with heads, the class whose output is
    /// wanted).
    ///
    /// # Errors
    /// When the slices differ in length or a class is out of range.
    pub fn condition(&self, log_snr: &[f32], classes: &[u32]) -> Result<Condition> {
        let (classes, heads) = if self.shape.heads > 1 {
            (vec![self.null_class(); classes.len()], classes.iter().map(|&c| c as usize).collect())
        } else {
            (classes.to_vec(), vec![0; classes.len()])
        };
        let known = classes.iter().all(|&c| c <= self.null_class()) && heads.iter().all(|&h| h < self.shape.heads);
        if log_snr.len() != classes.len() || !known {
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
        let e = e.to_dtype(self.class.dtype())?;
        let [w0, b0, w1, b1] = &self.noise;
        let noise = e.matmul(w0)?.broadcast_add(b0)?.silu()?.matmul(w1)?.broadcast_add(b1)?;
        let classes = Tensor::new(classes.as_slice(), self.device())?;
        let c = (noise + self.class.index_select(&classes, 0)?)?.silu()?;
        let modulation =
            |weight: &Tensor, bias: &Tensor| -> candle_core::Result<Tensor> { c.matmul(weight)?.broadcast_add(bias) };
        let mut modulations = Vec::new();
        for stage in &self.stages {
            if let Stage::Block(layer, _) | Stage::Attention(layer, ..) = stage {
                modulations.push(modulation(&layer.weight, &layer.bias)?);
            }
        }
        modulations.push(modulation(&self.output_modulation[0], &self.output_modulation[1])?);
        Ok(Condition { modulations, heads })
    }

    /// What the network was trained to predict, `[B, T, D]`, from noisy values `[B, T, D]`; computed in the numbers of the
    /// weights, returned in those of the values. `guide` is the clean input at
    /// `config.guide` cells per side, `[B, G, D]`, see [`pooled`]. A sample's result does not depend on the batch.
    ///
    /// # Errors
    /// When shapes do not fit, or the guide is missing or superfluous.
    pub fn predict(&self, x: &Tensor, condition: &Condition, guide: Option<&Tensor>) -> Result<Tensor> {
        let weight = self.input.narrow(0, 0, self.shape.dim)?;
        self.run(x, [&weight, &self.position.of(None)?], condition, guide, None, &mut |_| ())
    }

    /// `predict` for what its layers cost: `watch` is called as each of them is done.
    ///
    /// # Errors
    /// As [`Denoiser::predict`].
    pub fn layers(
        &self,
        x: &Tensor,
        condition: &Condition,
        guide: Option<&Tensor>,
        watch: &mut dyn FnMut(Cost),
    ) -> Result<()> {
        let weight = self.input.narrow(0, 0, self.shape.dim)?;
        self.run(x, [&weight, &self.position.of(None)?], condition, guide, None, watch).map(drop)
    }

    /// `predict` for training: `x` `[B, T, D + 1]` carries the mask as its last channel and 0 in masked tokens;
    /// `dropout_seed` fixes the dropped units. Where the network looks at a window of the grid, `cells` `[T]` are those in it.
    ///
    /// # Errors
    /// When shapes do not fit.
    pub fn forward_train(
        &self,
        x: &Tensor,
        condition: &Condition,
        guide: Option<&Tensor>,
        cells: Option<&Tensor>,
        dropout_seed: u64,
    ) -> Result<Tensor> {
        self.run(x, [&self.input, &self.position.of(cells)?], condition, guide, Some(dropout_seed), &mut |_| ())
    }

    fn run(
        &self,
        x: &Tensor,
        [weight, position]: [&Tensor; 2],
        condition: &Condition,
        guide: Option<&Tensor>,
        train: Option<u64>,
        watch: &mut dyn FnMut(Cost),
    ) -> Result<Tensor> {
        let mut modulations = condition.modulations.iter();
        let mut next = || modulations.next().ok_or_else(|| Error::Internal("denoiser: a modulation is missing".into()));
        let (given, own) = (x.dtype(), self.class.dtype());
        // What is kept belongs to weights that stay, and this weight is a part of one.
        let trains = train.is_some() || self.input.is_variable();
        let of_input = if trains { Mode::Training } else { Mode::Inference(&self.input_packs) };
        let mut h = ops::linear(&x.to_dtype(own)?, weight, position, of_input)?;
        let dense = |name: &str, x: &Tensor, y: &Tensor, weights: usize| {
            let tokens = x.elem_count() / x.dim(2)?;
            Ok::<_, Error>(Cost::new(name, tokens * weights, x.elem_count() + y.elem_count() + weights))
        };
        watch(dense("input", x, &h, weight.elem_count())?);
        match (&self.guide, guide) {
            (Some(layer), Some(guide)) => {
                let cells = Tensor::new(self.shape.guide_cells(), self.device())?;
                h = (h + layer.apply(&guide.to_dtype(own)?, trains)?.index_select(&cells, 1)?)?;
            }
            (None, None) => {}
            (mine, given) => {
                let (mine, given) = (mine.is_some(), given.is_some());
                return Err(Error::Internal(format!("denoiser: guide expected {mine}, given {given}")));
            }
        }
        let (mut kept, mut block) = (Vec::new(), 0);
        let mode = |layer| Layer::mode(layer, train.is_some());
        for (index, stage) in self.stages.iter().enumerate() {
            h = match stage {
                Stage::Block(layer, shape) => {
                    let dropout = train.map(|seed| Dropout {
                        probability: self.shape.config.dropout,
                        seed: seed.wrapping_add(u64::wrapping_mul(block, 0x9e37_79b9_7f4a_7c15)),
                    });
                    block += 1;
                    ops::convnext(&h, &layer.parameters, next()?, *shape, dropout, mode(layer))?
                }
                Stage::Attention(layer, shape, None) => {
                    ops::attention(&h, &layer.parameters, next()?, *shape, mode(layer))?
                }
                Stage::Attention(layer, shape, Some(windows)) => {
                    windows.attention(&h, &layer.parameters, next()?, *shape, mode(layer))?
                }
                Stage::Shrink(layer, side) => {
                    let small = layer.apply(&blocks_to_channels(&h, *side)?, trains)?;
                    kept.push(h);
                    small
                }
                Stage::Grow { grow, join, side } => {
                    let skip = kept.pop().ok_or_else(|| Error::Internal("denoiser: no skip for a level".into()))?;
                    let large = channels_to_blocks(&grow.apply(&h, trains)?, *side)?;
                    (large + join.apply(&skip, trains)?)?
                }
            };
            if let Some(cost) = stage.cost(index, &h) {
                watch(cost);
            }
        }
        let answer = self.output(&ops::modulated_norm(&h, next()?)?, &condition.heads, trains)?;
        watch(dense("output", &h, &answer, self.output[0].elem_count() / self.shape.heads)?);
        Ok(answer.to_dtype(given)?)
    }

    /// The output layer; with heads, each sample's own.
    fn output(&self, h: &Tensor, heads: &[usize], trains: bool) -> Result<Tensor> {
        let [weight, bias] = &self.output;
        let mode = |head: usize| if trains { Mode::Training } else { Mode::Inference(&self.output_packs[head]) };
        if self.shape.heads == 1 {
            return Ok(ops::linear(h, weight, bias, mode(0))?);
        }
        let of = |h: &Tensor, head: usize| ops::linear(h, &weight.get(head)?, &bias.get(head)?, mode(head));
        if heads.windows(2).all(|pair| pair[0] == pair[1]) {
            return Ok(of(h, heads.first().copied().unwrap_or(0))?);
        }
        let rows = heads.iter().enumerate().map(|(i, &head)| of(&h.narrow(0, i, 1)?, head));
        Ok(Tensor::cat(&rows.collect::<candle_core::Result<Vec<_>>>()?, 0)?)
    }
}

/// Blocks of 2x2 cells put side by side: `[B, S S, W]` to `[B, S S / 4, 4 W]`.
fn blocks_to_channels(x: &Tensor, side: usize) -> candle_core::Result<Tensor> {
    let (batch, _, width) = x.dims3()?;
    let half = side / 2;
    let split = x.reshape((batch * half, 2, half, 2 * width))?; // [B h, 2, h, 2 W]
    split.transpose(1, 2)?.contiguous()?.reshape((batch, half * half, 4 * width))
}

/// The way back: `[B, S S / 4, 4 W]` to `[B, S S, W]`.
fn channels_to_blocks(x: &Tensor, side: usize) -> candle_core::Result<Tensor> {
    let (batch, _, width) = x.dims3()?;
    let half = side / 2;
    let split = x.reshape((batch * half, half, 2, width / 2))?; // [B h, h, 2, 2 W]
    split.transpose(1, 2)?.contiguous()?.reshape((batch, side * side, width / 4))
}

/// The mean of values `[B, T, D]` over each of `cells` x `cells` equal parts of the grid, `[B, G, D]`: what a guided network
/// is told of the clean input.
///
/// # Errors
/// When the grid is not a multiple of `cells`, or the device fails.
pub fn pooled(values: &Tensor, grid: usize, cells: usize) -> candle_core::Result<Tensor> {
    let (batch, _, dim) = values.dims3()?;
    let factor = grid / cells;
    let parts = values.reshape((batch * cells, factor, cells, factor * dim))?.sum(1)?; // rows of a part
    let parts = parts.reshape((batch, cells * cells, factor, dim))?.sum(2)?;
    parts / (factor * factor) as f64
}
