//! Whole models: changes to the card of a small one as a JSON merge patch (RFC 7396), then a zero byte, then a byte per tensor
//! that says what values it holds. A card without mistakes and the tensors that it asks for must load, and inspect a frame.

use std::collections::BTreeMap;
use std::path::Path;

use candle_core::{Device, Tensor};
use diad::bundle::{self, Card, TensorSpec};
use diad::calibrate::conformal;
use diad::config::{Config, SamplerKind};
use diad::detector::{Detector, Request, Verdict, expected_tensors};
use diad::error::Error;
use diad::frame::Frame;
use half::f16;
use safetensors::Dtype;
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

use super::model::hex;
use super::{MIB, Scratch, told, within};

const MEMORY: usize = 256 * MIB;

/// Numbers a model may have to be written here; whatever is larger has to be refused as incomplete.
const NUMBERS: usize = 1 << 20;

/// Multiplications, roughly, that a detection may take to be tried here.
const WORK: usize = 1 << 26;

pub fn target(data: &[u8]) {
    let end = data.iter().position(|byte| *byte == 0).unwrap_or(data.len());
    let Ok(changes) = serde_json::from_slice::<Value>(&data[..end]) else { return };
    let kinds = data.get(end + 1..).unwrap_or_default();
    within(MEMORY, || {
        let mut value = small();
        merge(&mut value, &changes);
        let scratch = Scratch::new();
        let path = scratch.path();
        let card = serde_json::from_value::<Card>(value.clone()).ok().filter(|card| card.mistakes().is_empty());
        let specs = card.as_ref().map(|card| expected_tensors(card).expect("the backbone of a sound card is known"));
        let numbers = |specs: &Vec<TensorSpec>| {
            specs.iter().map(|spec| spec.elements().unwrap_or(usize::MAX)).fold(0, usize::saturating_add)
        };
        match (card, specs.filter(|specs| numbers(specs) <= NUMBERS)) {
            (Some(card), Some(specs)) => {
                let tensor = |(i, spec): (usize, &TensorSpec)| {
                    (spec.name.clone(), tensor(spec, kinds.get(i % kinds.len().max(1))))
                };
                let tensors: BTreeMap<String, Tensor> = specs.iter().enumerate().map(tensor).collect();
                bundle::save(&path, &card, &tensors).expect("a sound card and finite tensors are written");
                inspect(&path, &card, numbers(&specs));
            }
            _ => refused(&scratch.file(&without_tensors(&value))),
        }
    });
}

fn refused(path: &Path) {
    let error = Detector::open(path).err().expect("a model without its tensors is refused");
    told(&error, &path.display().to_string());
    assert!(matches!(error, Error::Model { .. }), "{error:?}");
}

fn inspect(path: &Path, card: &Card, numbers: usize) {
    let detector = match Detector::open(path) {
        Ok(detector) => detector,
        Err(error) => {
            told(&error, &path.display().to_string());
            assert!(matches!(error, Error::Model { .. }), "{error:?}");
            return;
        }
    };
    let Config { detection, diffusion, denoiser, .. } = &card.config;
    let steps = if detection.sampler == SamplerKind::Ddpm { diffusion.timesteps } else { detection.ddim_steps };
    let asked = (steps + detection.diffusion_alpha_bars.len()) * card.classes.len() * (1 + denoiser.guide);
    let pixels = card.config.input.size.area();
    if asked.saturating_mul(numbers * 16) > WORK || pixels > 256 * 256 || card.config.tokens() > 1024 {
        return;
    }
    let (width, height) = (70, 50);
    let rgb = (0..width * height * 3).map(|i| (i * 7 % 251) as u8).collect();
    let frame = Frame::new(width, height, rgb).expect("a frame");
    for found in detector.inspect_frames(&[frame], &Request::default()) {
        match found {
            Ok(found) => {
                assert!(found.score.is_finite(), "{}", found.score);
                assert!(
                    found.map.values.iter().all(|v| !v.is_nan()),
                    "a part of the map is no number, the verdict {}",
                    found.verdict
                );
                assert!(found.score <= found.threshold || found.verdict == Verdict::Ng, "{}", found.verdict);
                for r in &found.regions {
                    assert!(r.x + r.width <= width as u32 && r.y + r.height <= height as u32, "{r:?}");
                }
            }
            Err(error) => assert!(!error.to_string().is_empty()),
        }
    }
}

/// The smallest model there is: pictures of 4x4 cells.
fn small() -> Value {
    let scores: Vec<f32> = (1..=20).map(|i| i as f32 / 8.0).collect();
    let threshold = conformal(&scores, 0.05).expect("twenty scores are enough");
    json!({
        "schema": 2,
        "tool": "diad 0.1.0",
        "config": {
            "input": {"size": 64},
            "features": {"space": "pixel", "grid": 4},
            "denoiser": {"width": 16, "blocks": 1, "attention_every": 1, "heads": 1, "kernel": 3, "mlp_ratio": 1},
        },
        "classes": [{
            "name": "a",
            "train_images": 100,
            "calibration_scores": scores,
            "ng": threshold,
            "warn": threshold,
            "pixel_threshold": 1.0,
            "prototype_limit": 1.0,
        }],
        "training": {"images": 120, "data_sha256": "d".repeat(64), "seed": 0, "steps": 1},
        "tensors_sha256": "0".repeat(64),
    })
}

/// A JSON merge patch. Objects in a list change the objects in their places, or copies of the first; a number instead of a
/// list of objects is that many of them.
fn merge(target: &mut Value, changes: &Value) {
    match (&mut *target, changes) {
        (Value::Object(target), Value::Object(changes)) => {
            for (key, change) in changes {
                if change.is_null() {
                    target.remove(key);
                } else {
                    merge(target.entry(key).or_insert(Value::Object(Map::new())), change);
                }
            }
        }
        (Value::Array(list), Value::Array(changes)) if list.first().is_some_and(Value::is_object) => {
            let first = list.first().cloned().unwrap_or_default();
            let changed = |(i, change)| {
                let mut own = list.get(i).unwrap_or(&first).clone();
                merge(&mut own, change);
                own
            };
            *list = changes.iter().enumerate().map(changed).collect();
        }
        (Value::Array(list), Value::Number(count)) if list.first().is_some_and(Value::is_object) => {
            let count = count.as_u64().unwrap_or(0).min(5000) as usize;
            let first = list.first().cloned().unwrap_or_default();
            let named = |i: usize| {
                let mut own = first.clone();
                own["name"] = json!(i.to_string());
                own
            };
            *list = (0..count).map(named).collect();
        }
        (target, change) => *target = change.clone(),
    }
}

/// Values from -1/2 to 1/2 times a power of two from 2^-32 to 2^31.
fn tensor(spec: &TensorSpec, kind: Option<&u8>) -> Tensor {
    let kind = *kind.unwrap_or(&128);
    let scale = ((f32::from(kind) - 128.0) / 4.0).exp2();
    let value = |i: usize| ((i.wrapping_mul(2_654_435_761) >> 8) % 1024) as f32 / 1024.0 - 0.5;
    let value = |i: usize| if kind == 0 { 0.0 } else { value(i) * scale };
    let count = spec.elements().expect("a small number");
    let made = match spec.dtype {
        Dtype::F16 => {
            Tensor::from_iter((0..count).map(|i| f16::from_f32(value(i).clamp(-65504.0, 65504.0))), &Device::Cpu)
        }
        _ => Tensor::from_iter((0..count).map(value), &Device::Cpu),
    };
    made.and_then(|tensor| tensor.reshape(spec.shape.as_slice())).expect("a tensor")
}

/// A file with this card, signed, and nothing else.
fn without_tensors(card: &Value) -> Vec<u8> {
    let card = card.to_string();
    let header = json!({"__metadata__": {"diad.sha256": hex(&Sha256::digest(&card)), "diad": card}}).to_string();
    [&(header.len() as u64).to_le_bytes(), header.as_bytes()].concat()
}
