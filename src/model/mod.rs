//! Networks: frozen backbones and the denoiser.

use candle_core::{DType, Tensor};

use crate::config::{BACKBONE_NAMES, FeatureConfig};
use crate::device::Device;
use crate::error::{Error, Result};

pub mod denoiser;
mod efficientnet;
#[cfg(feature = "train")]
pub mod import;
mod pyramid;
mod resnet;

pub use efficientnet::{EfficientNetLite, LITE_NAMES};
pub use pyramid::Pyramid;
pub use resnet::{RESNET_NAMES, ResNet};

/// Weights by name, as they stand in a file.
pub type Weights = std::collections::HashMap<String, Tensor>;

/// One output of a backbone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tap {
    /// Channels.
    pub channels: usize,
    /// Input pixels per output pixel and side.
    pub stride: usize,
}

/// A frozen network that turns an image into maps of features at several strides.
pub trait Backbone: Send + Sync {
    /// The name that configurations and model files use.
    fn name(&self) -> &str;

    /// What `forward` returns, finest first.
    fn taps(&self) -> &[Tap];

    /// Feature maps `[B, H / stride, W / stride, C]`, one per tap, in the numbers of the device, of images `[B, H, W, 3]`:
    /// RGB in 0..=255, bytes or f32. On the CPU a sample's features do not depend on the rest of the batch.
    ///
    /// # Errors
    /// When the shape does not fit or the device fails.
    fn forward(&self, images: &Tensor) -> Result<Vec<Tensor>>;
}

/// A layer of a network for one sample, as `diad bench --layers` counts it.
#[derive(Clone, Debug, PartialEq)]
pub struct Layer {
    /// Its name.
    pub name: String,
    /// Multiply-adds.
    pub multiply_adds: usize,
    /// Bytes that cannot be spared: its weights, what goes in and what comes out, in single precision.
    pub bytes: usize,
}

impl Layer {
    /// With the number of its weights, and of the values that go in and come out.
    fn new(name: impl Into<String>, multiply_adds: usize, values: usize) -> Self {
        Self { name: name.into(), multiply_adds, bytes: values * size_of::<f32>() }
    }
}

/// Smallest image that a backbone takes: the coarsest tap has two cells then.
const MIN_SIDE: usize = 32;

/// The trunk that is part of the program, as f16; see the attribution beside it.
const LITE0: &[u8] = include_bytes!("efficientnet_lite0.f16.safetensors");

/// Where the embedded weights come from and under which licence.
pub const ATTRIBUTION: &str = include_str!("efficientnet_lite0.ATTRIBUTION.txt");

/// The embedded weights of a backbone, if the program carries it.
///
/// # Errors
/// Never for the weights that the program was built with.
pub fn embedded(name: &str) -> Result<Option<Weights>> {
    if name != "efficientnet-lite0" {
        return Ok(None);
    }
    Ok(Some(candle_core::safetensors::load_buffer(LITE0, &candle_core::Device::Cpu)?))
}

/// A backbone by name from its weights.
///
/// # Errors
/// When the name is unknown, or weights are missing or of another shape.
pub fn backbone(name: &str, weights: &Weights, device: &Device) -> Result<Box<dyn Backbone>> {
    if LITE_NAMES.contains(&name) {
        return Ok(Box::new(EfficientNetLite::new(name, weights, device)?));
    }
    if RESNET_NAMES.contains(&name) {
        return Ok(Box::new(ResNet::new(name, weights, device)?));
    }
    Err(unknown(name))
}

/// The configured backbone, on the configured scales of the image.
///
/// # Errors
/// As [`backbone`].
pub fn configured(features: &FeatureConfig, weights: &Weights, device: &Device) -> Result<Box<dyn Backbone>> {
    let backbone = backbone(&features.backbone, weights, device)?;
    Ok(match features.reductions() {
        single if single == [1] => backbone,
        several => Box::new(Pyramid::new(backbone, several)),
    })
}

/// Names and shapes of a backbone's weights.
///
/// # Errors
/// When the name is unknown.
pub fn weight_shapes(name: &str) -> Result<Vec<(String, Vec<usize>)>> {
    efficientnet::weight_shapes(name).or_else(|| resnet::weight_shapes(name)).ok_or_else(|| unknown(name))
}

/// Channels of all taps of the configured backbone on all scales together.
///
/// # Errors
/// When the name is unknown.
pub fn channels(features: &FeatureConfig) -> Result<usize> {
    features.channels().ok_or_else(|| unknown(&features.backbone))
}

/// The weight of this name, if it has this shape, as f32.
fn weight(weights: &Weights, name: &str, shape: &[usize]) -> Result<Tensor> {
    let lacks = |found: String| Error::Usage(format!("backbone weights: {name} {found}, expected {shape:?}"));
    let tensor = weights.get(name).ok_or_else(|| lacks("is missing".into()))?;
    if tensor.dims() != shape {
        return Err(lacks(format!("has shape {:?}", tensor.dims())));
    }
    Ok(tensor.to_dtype(DType::F32)?)
}

/// Number, height and width of images `[B, H, W, 3]` that a backbone can take.
fn check_images(name: &str, images: &Tensor) -> Result<(usize, usize, usize)> {
    match images.dims4()? {
        (batch, height, width, 3) if batch > 0 && height.min(width) >= MIN_SIDE => Ok((batch, height, width)),
        _ => Err(Error::Internal(format!(
            "{name}: expected images [B, H, W, 3] of at least {MIN_SIDE} pixels per side, got {:?}",
            images.dims()
        ))),
    }
}

fn unknown(name: &str) -> Error {
    Error::Usage(format!("backbone {name:?} is unknown; expected one of {}", BACKBONE_NAMES.join(", ")))
}
