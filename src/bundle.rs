//! temporary
#![allow(missing_docs)]
use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use candle_core::{Device, Tensor};
use serde::{Deserialize, Serialize};
use crate::calibrate::Threshold;
use crate::config::Config;
use crate::error::{Error, Result};
pub const SCHEMA: u32 = 1;
pub struct TensorSpec { pub name: String, pub dtype: safetensors::Dtype, pub shape: Vec<usize> }
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Card { pub schema: u32, pub tool: String, pub config: Config, pub backbone: BackboneCard, pub classes: Vec<ClassCard>, pub training: TrainingCard, pub tensors_sha256: String }
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct BackboneCard { pub name: String, pub sha256: String }
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct TrainingCard { pub images: usize, pub data_sha256: String, pub seed: u64, pub steps: usize }
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ClassCard { pub name: String, pub train_images: usize, pub calibration_scores: Vec<f32>, pub ng: Threshold, pub warn: Threshold, pub pixel_threshold: f32, pub prototype_limit: f32 }
pub struct ModelFile { pub card: Card, pub tensors: HashMap<String, Tensor> }
pub fn save(path: &Path, card: &Card, tensors: &BTreeMap<String, Tensor>) -> Result<()> {
    let m = HashMap::from([("diad".to_string(), serde_json::to_string(card).map_err(|e| Error::Internal(e.to_string()))?)]);
    let b = safetensors::serialize(tensors, Some(m)).map_err(|e| Error::Internal(e.to_string()))?;
    std::fs::write(path, b).map_err(|e| Error::io(path, "write", e))
}
pub fn load(path: &Path, _e: impl Fn(&Card) -> Result<Vec<TensorSpec>>) -> Result<ModelFile> {
    let b = std::fs::read(path).map_err(|e| Error::io(path, "read", e))?;
    let (_, h) = safetensors::SafeTensors::read_metadata(&b).map_err(|e| Error::Internal(e.to_string()))?;
    let card = serde_json::from_str(&h.metadata().clone().unwrap_or_default()["diad"]).map_err(|e| Error::Internal(e.to_string()))?;
    Ok(ModelFile { card, tensors: candle_core::safetensors::load_buffer(&b, &Device::Cpu)? })
}
