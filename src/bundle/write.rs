//! Writing a model file: the same content gives the same bytes, and a failure leaves nothing behind.

use std::collections::BTreeMap;
use std::path::Path;

use candle_core::{DType, Tensor};
use half::f16;
use safetensors::Dtype;

use super::card::Card;
use super::hash::{TensorsHash, sha256_hex};
use super::layout::{self, TensorSpec};
use crate::error::{Error, Result};
use crate::files::write_atomic_with;

/// Writes a model file. `card.tensors_sha256` is filled in; the tensors may lie on any device.
///
/// # Errors
/// [`Error::Model`] if the card has [`mistakes`](Card::mistakes) or a tensor is not finite `F32` or `F16`: what
/// [`load`](super::load) would refuse is not written. [`Error::Io`] if it cannot be written:
/// then `path` is as it was.
pub fn save(path: &Path, card: &Card, tensors: &BTreeMap<String, Tensor>) -> Result<()> {
    let wrong = |reason: String| Error::model(path, format!("cannot be written: {reason}"));
    let card = Card { tensors_sha256: checked_sha256(path, tensors)?, ..card.clone() };
    let mistakes = card.mistakes();
    if !mistakes.is_empty() {
        return Err(wrong(format!("card: {}", mistakes.join("; "))));
    }
    let specs: Result<Vec<_>, _> = tensors.iter().map(|(name, tensor)| spec_of(name, tensor)).collect();
    let mut specs = specs.map_err(wrong)?;
    specs.sort_by(|a, b| a.place().cmp(&b.place()));
    let json = card.to_json();
    let header = layout::encode(&json, &sha256_hex(json.as_bytes()), &specs).map_err(wrong)?;
    write_atomic_with(path, |out| {
        out.write_all(&header)?;
        for spec in &specs {
            if let Some(tensor) = tensors.get(&spec.name) {
                out.write_all(&Bytes::of(tensor).map_err(std::io::Error::other)?.bytes)?;
            }
        }
        Ok(())
    })
}

/// Digest of `tensors`, after a check that each may be stored in a model file; `path` is for messages.
fn checked_sha256(path: &Path, tensors: &BTreeMap<String, Tensor>) -> Result<String> {
    let wrong = |reason: String| Error::model(path, format!("cannot be written: {reason}"));
    let mut hash = TensorsHash::default();
    for (name, tensor) in tensors {
        hash.begin(&spec_of(name, tensor).map_err(wrong)?);
        let Bytes { bytes, not_finite } = Bytes::of(tensor)?;
        if let Some(at) = not_finite {
            return Err(wrong(format!("value {at} of tensor {name:?} is not a finite number")));
        }
        hash.values(&bytes);
    }
    Ok(hash.hex())
}

/// Name, type and shape of `tensor`. The error is a reason without the file's name.
fn spec_of(name: &str, tensor: &Tensor) -> Result<TensorSpec, String> {
    let dtype = match tensor.dtype() {
        DType::F32 => Dtype::F32,
        DType::F16 => Dtype::F16,
        other => return Err(format!("tensor {name:?} is {other:?}, expected F32 or F16")),
    };
    let spec = TensorSpec { name: name.to_owned(), dtype, shape: tensor.dims().to_vec() };
    spec.check().map(|()| spec)
}

/// Values as the file stores them: little-endian, outermost dimension first.
struct Bytes {
    bytes: Vec<u8>,
    /// Position of the first value that is NaN or infinite.
    not_finite: Option<usize>,
}

impl Bytes {
    fn of(tensor: &Tensor) -> candle_core::Result<Self> {
        let flat = tensor.flatten_all()?;
        Ok(if flat.dtype() == DType::F16 {
            let values = flat.to_vec1::<f16>()?;
            Self {
                not_finite: values.iter().position(|x| !x.is_finite()),
                bytes: values.iter().flat_map(|x| x.to_le_bytes()).collect(),
            }
        } else {
            let values = flat.to_vec1::<f32>()?;
            Self {
                not_finite: values.iter().position(|x| !x.is_finite()),
                bytes: values.iter().flat_map(|x| x.to_le_bytes()).collect(),
            }
        })
    }
}
