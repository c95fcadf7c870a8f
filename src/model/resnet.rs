//! ResNet-18, ResNet-50 and Wide ResNet-50-2 up to stride 16 (He et al. 2016, Zagoruyko & Komodakis 2016), batch norm
//! folded at load.
//!
//! Input `(rgb / 255 - mean) / std` with ImageNet's mean and std, symmetric zero padding, batch norm epsilon 1e-5, stride
//! in the 3x3 convolution of a bottleneck. Weight names are torchvision's, which timm shares. Taps: the outputs of
//! `layer1`, `layer2` and `layer3`, compressed: `sign(x) sqrt|x|`, which takes the heavy tail off a ReLU's output and is
//! there the plain square root.

use candle_core::{DType, Tensor};
use rayon::prelude::*;

use super::{Backbone, Tap, Weights, check_images, unknown, weight};
use crate::device::Device;
use crate::error::{Error, Result};

/// Names of the variants.
pub const RESNET_NAMES: [&str; 3] = ["resnet18", "resnet50", "wide-resnet50"];

const EPSILON: f64 = 1e-5;
/// Red, green, blue; of images scaled to 0..=1.
const MEAN: [f32; 3] = [0.485, 0.456, 0.406];
const STD: [f32; 3] = [0.229, 0.224, 0.225];
/// Channels of the stem.
const STEM: usize = 64;

/// How a variant's three layers are built.
#[derive(Clone, Copy)]
struct Plan {
    /// Blocks per layer.
    blocks: [usize; 3],
    /// Channels of the 3x3 convolutions in the first layer; each layer doubles them.
    width: usize,
    /// Channels out of the first layer; each layer doubles them.
    output: usize,
    /// Whether a block is 1x1, 3x3, 1x1 rather than 3x3, 3x3.
    bottleneck: bool,
}

impl Plan {
    fn of(name: &str) -> Option<Self> {
        Some(match name {
            "resnet18" => Self { blocks: [2, 2, 2], width: 64, output: 64, bottleneck: false },
            "resnet50" => Self { blocks: [3, 4, 6], width: 64, output: 256, bottleneck: true },
            "wide-resnet50" => Self { blocks: [3, 4, 6], width: 128, output: 256, bottleneck: true },
            _ => return None,
        })
    }

    fn taps(self) -> [Tap; 3] {
        [0, 1, 2].map(|layer| Tap { channels: self.output << layer, stride: 4 << layer })
    }

    /// The convolutions of every block, in the network's order: layer by layer.
    fn layers(self) -> [Vec<BlockPlan>; 3] {
        let mut input = STEM;
        [0, 1, 2].map(|layer| {
            let (width, output) = (self.width << layer, self.output << layer);
            (0..self.blocks[layer])
                .map(|block| {
                    let stride = if layer > 0 && block == 0 { 2 } else { 1 };
                    let prefix = format!("layer{}.{block}", layer + 1);
                    let plan = self.block(&prefix, [input, width, output], stride);
                    input = output;
                    plan
                })
                .collect()
        })
    }

    fn block(self, prefix: &str, [input, width, output]: [usize; 3], stride: usize) -> BlockPlan {
        let shapes = if self.bottleneck {
            vec![([width, input, 1, 1], 1), ([width, width, 3, 3], stride), ([output, width, 1, 1], 1)]
        } else {
            vec![([width, input, 3, 3], stride), ([output, width, 3, 3], 1)]
        };
        let named = |(index, (shape, stride)): (usize, ([usize; 4], usize))| ConvPlan {
            conv: format!("{prefix}.conv{}", index + 1),
            norm: format!("{prefix}.bn{}", index + 1),
            shape,
            stride,
        };
        let shortcut = (stride != 1 || input != output).then(|| ConvPlan {
            conv: format!("{prefix}.downsample.0"),
            norm: format!("{prefix}.downsample.1"),
            shape: [output, input, 1, 1],
            stride,
        });
        BlockPlan { main: shapes.into_iter().enumerate().map(named).collect(), shortcut }
    }
}

struct BlockPlan {
    main: Vec<ConvPlan>,
    shortcut: Option<ConvPlan>,
}

/// A convolution and the batch norm behind it.
struct ConvPlan {
    conv: String,
    norm: String,
    /// [out, in, k, k]
    shape: [usize; 4],
    stride: usize,
}

impl ConvPlan {
    fn stem() -> Self {
        Self { conv: "conv1".into(), norm: "bn1".into(), shape: [STEM, 3, 7, 7], stride: 2 }
    }

    fn weight_shapes(&self) -> impl Iterator<Item = (String, Vec<usize>)> {
        let norm = ["weight", "bias", "running_mean", "running_var"];
        std::iter::once((format!("{}.weight", self.conv), self.shape.to_vec()))
            .chain(norm.map(|part| (format!("{}.{part}", self.norm), vec![self.shape[0]])))
    }

    /// The convolution with its batch norm folded in.
    fn load(&self, weights: &Weights, device: &Device) -> Result<Conv> {
        let mut parts = Vec::with_capacity(5);
        for (name, shape) in self.weight_shapes() {
            parts.push(weight(weights, &name, &shape)?);
        }
        let [weight, scale, shift, mean, variance] = &parts[..] else {
            return Err(Error::Internal(format!("{} has {} parts", self.conv, parts.len())));
        };
        let scale = (scale / (variance + EPSILON)?.sqrt()?)?;
        let bias = (shift - (mean * &scale)?)?;
        let channels = self.shape[0];
        Ok(Conv {
            weight: device.weight(&weight.broadcast_mul(&scale.reshape((channels, 1, 1, 1))?)?)?,
            bias: device.weight(&bias.reshape((1, channels, 1, 1))?)?,
            stride: self.stride,
        })
    }
}

/// Names and shapes of the weights of a variant.
pub(super) fn weight_shapes(name: &str) -> Option<Vec<(String, Vec<usize>)>> {
    let layers = Plan::of(name)?.layers();
    let blocks = layers.iter().flatten().flat_map(|block| block.main.iter().chain(&block.shortcut));
    Some(std::iter::once(&ConvPlan::stem()).chain(blocks).flat_map(ConvPlan::weight_shapes).collect())
}

/// A convolution with its batch norm folded in.
struct Conv {
    weight: Tensor, // [out, in, k, k]
    bias: Tensor,   // [1, out, 1, 1]
    stride: usize,
}

impl Conv {
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let padding = self.weight.dim(3)? / 2;
        Ok(x.conv2d(&self.weight, padding, self.stride, 1, 1)?.broadcast_add(&self.bias)?)
    }
}

struct Block {
    main: Vec<Conv>,
    shortcut: Option<Conv>,
}

impl Block {
    fn load(plan: &BlockPlan, weights: &Weights, device: &Device) -> Result<Self> {
        Ok(Self {
            main: plan.main.iter().map(|conv| conv.load(weights, device)).collect::<Result<_>>()?,
            shortcut: plan.shortcut.as_ref().map(|conv| conv.load(weights, device)).transpose()?,
        })
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let mut main = x.clone();
        for (index, conv) in self.main.iter().enumerate() {
            if index > 0 {
                main = main.relu()?;
            }
            main = conv.forward(&main)?;
        }
        let shortcut = match &self.shortcut {
            Some(conv) => conv.forward(x)?,
            None => x.clone(),
        };
        Ok((main + shortcut)?.relu()?)
    }
}

/// The trunk, in plain tensor operations.
pub struct ResNet {
    name: String,
    taps: [Tap; 3],
    mean: Tensor, // [3]
    std: Tensor,  // [3]
    stem: Conv,
    layers: Vec<Vec<Block>>,
    per_sample: bool,
}

impl ResNet {
    /// Folds the batch norms.
    ///
    /// # Errors
    /// When the name is not one of [`RESNET_NAMES`], or a weight is missing or has another shape.
    pub fn new(name: &str, weights: &Weights, device: &Device) -> Result<Self> {
        let plan = Plan::of(name).ok_or_else(|| unknown(name))?;
        let block = |plan: &BlockPlan| Block::load(plan, weights, device);
        let layer = |layer: &Vec<BlockPlan>| layer.iter().map(block).collect::<Result<Vec<_>>>();
        Ok(Self {
            name: name.into(),
            taps: plan.taps(),
            mean: device.weight(&Tensor::new(&MEAN, &candle_core::Device::Cpu)?)?,
            std: device.weight(&Tensor::new(&STD, &candle_core::Device::Cpu)?)?,
            stem: ConvPlan::stem().load(weights, device)?,
            layers: plan.layers().iter().map(layer).collect::<Result<_>>()?,
            per_sample: device.has_cpu_kernels(),
        })
    }

    /// Images `[B, H, W, 3]` to the taps' maps.
    fn forward_batch(&self, images: &Tensor) -> Result<Vec<Tensor>> {
        let scaled = (images.to_dtype(DType::F32)? / 255.0)?
            .to_dtype(self.mean.dtype())?
            .broadcast_sub(&self.mean)?
            .broadcast_div(&self.std)?;
        let x = scaled.permute((0, 3, 1, 2))?.contiguous()?; // [B, 3, H, W]
        let x = self.stem.forward(&x)?.relu()?;
        // Padding with zeros is padding with minus infinity here: behind a ReLU nothing is less.
        let x = x.pad_with_zeros(2, 1, 1)?.pad_with_zeros(3, 1, 1)?;
        let mut x = x.max_pool2d_with_stride(3, 2)?;
        let mut maps = Vec::with_capacity(self.layers.len());
        for layer in &self.layers {
            for block in layer {
                x = block.forward(&x)?;
            }
            maps.push(x.sqrt()?.permute((0, 2, 3, 1))?.contiguous()?); // [B, h, w, C]
        }
        Ok(maps)
    }
}

impl Backbone for ResNet {
    fn name(&self) -> &str {
        &self.name
    }

    fn taps(&self) -> &[Tap] {
        &self.taps
    }

    fn forward(&self, images: &Tensor) -> Result<Vec<Tensor>> {
        let (batch, ..) = check_images(&self.name, images)?;
        if !self.per_sample {
            return self.forward_batch(images);
        }
        // One by one: a sample's sums must not be cut differently because of its neighbours.
        let samples = (0..batch).into_par_iter().map(|sample| self.forward_batch(&images.narrow(0, sample, 1)?));
        let samples = samples.collect::<Result<Vec<_>>>()?;
        let maps = (0..self.taps.len()).map(|tap| {
            let maps: Vec<&Tensor> = samples.iter().filter_map(|maps| maps.get(tap)).collect();
            Ok(Tensor::cat(&maps, 0)?)
        });
        maps.collect()
    }
}
