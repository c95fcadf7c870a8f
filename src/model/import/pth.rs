//! PyTorch's two file formats around a pickled state dict: the archive (since 1.6) and the older stream.

use std::collections::HashMap;
use std::io::{Cursor, Read};
use std::ops::Range;

use half::{bf16, f16};
use zip::ZipArchive;

use super::pickle::{Element, Node, Pickle, Reason, Storage, TensorInfo};

/// How the older format starts: the pickle of its magic number, 0x1950a86a20f9469cfc6c.
pub(super) const LEGACY_MAGIC: [u8; 15] =
    [0x80, 0x02, 0x8a, 0x0a, 0x6c, 0xfc, 0x9c, 0x46, 0xf9, 0x20, 0x6a, 0xa8, 0x50, 0x19, b'.'];
const LEGACY_VERSION: i64 = 1001;

/// Keys under which training scripts put the state dict when they save other things with it.
const NESTED: [&str; 3] = ["state_dict", "model", "model_state_dict"];

/// The largest pickle that is read; those of real state dicts take tens of kilobytes.
const MAX_PICKLE: u64 = 64 << 20;
/// The largest number of bytes that one storage may take.
const MAX_STORAGE: usize = 1 << 30;

/// A zip archive in memory.
pub(super) type Archive<'a> = ZipArchive<Cursor<&'a [u8]>>;

/// The tensors of a file by name, and how to get at their numbers.
pub(super) struct StateDict<'a> {
    tensors: HashMap<String, TensorInfo>,
    data: Data<'a>,
}

/// Where the storages are.
enum Data<'a> {
    /// Each in a file of its own: `<folder>data/<key>`.
    Archive { archive: Archive<'a>, folder: String },
    /// One after the other.
    Stream { bytes: &'a [u8], storages: HashMap<String, Range<usize>> },
}

impl<'a> StateDict<'a> {
    /// The archive format.
    ///
    /// # Errors
    ///
    /// A damaged archive, a pickle that is not a state dict, or numbers stored with their high bytes first.
    pub(super) fn from_archive(mut archive: Archive<'a>) -> Result<Self, Reason> {
        let name = archive
            .file_names()
            .filter_map(|name| name.ok())
            .find(|name| *name == "data.pkl" || name.ends_with("/data.pkl"))
            .map(|name| name.into_owned())
            .ok_or("the archive holds no data.pkl, so it is not a PyTorch file")?;
        let folder = name.trim_end_matches("data.pkl").to_owned();
        if archive.index_for_name(&format!("{folder}byteorder")).is_some() {
            let order = entry(&mut archive, &format!("{folder}byteorder"), 16)?;
            if order != b"little" {
                return Err("its numbers are stored with their high bytes first, which is not supported".into());
            }
        }
        let bytes = entry(&mut archive, &name, MAX_PICKLE)?;
        let (pickle, _) = Pickle::parse(&bytes)?;
        let tensors = tensors(&pickle)?;
        Ok(Self { tensors, data: Data::Archive { archive, folder } })
    }

    /// The older format: pickles of magic number, version, system, state dict and list of storages, then the
    /// storages, each as its length and its numbers.
    ///
    /// # Errors
    ///
    /// Bytes that are cut off, or a pickle that is not what the format demands.
    pub(super) fn from_stream(bytes: &'a [u8]) -> Result<Self, Reason> {
        let mut at = LEGACY_MAGIC.len();
        let mut next = || -> Result<Pickle<'a>, Reason> {
            let (pickle, taken) = Pickle::parse(bytes.get(at..).unwrap_or_default())?;
            at += taken;
            Ok(pickle)
        };
        let version = next()?;
        if !matches!(version.root(), Node::Int(LEGACY_VERSION)) {
            return Err(format!("PyTorch file of an unknown version; expected {LEGACY_VERSION}"));
        }
        // What machine wrote it; the numbers are low byte first whatever this says.
        let _system = next()?;
        let pickle = next()?;
        let keys = next()?;
        let Node::List(keys_in_order) = keys.root() else {
            return Err("the list of storages is missing".into());
        };
        let known = storages(&pickle);
        let mut storages = HashMap::new();
        for &key in keys_in_order {
            let &Node::Text(key) = keys.node(key) else {
                return Err("the name of a storage is not text".into());
            };
            let len = bytes.get(at..at + 8).and_then(|len| len.try_into().ok()).map(u64::from_le_bytes);
            let len = len.ok_or_else(|| format!("the file ends before storage {key:?}"))?;
            // A storage that only values we do not understand use has no known size: nothing behind it can be found.
            let storage = known.get(key).ok_or_else(|| format!("storage {key:?} belongs to no tensor"))?;
            if len != storage.len as u64 {
                return Err(format!("storage {key:?} has {len} numbers; expected {}", storage.len));
            }
            let start = at + 8;
            let size = byte_size(storage.len, storage.element)?;
            at = start + size;
            if at > bytes.len() {
                return Err(format!("the file ends within storage {key:?}"));
            }
            storages.insert(key.to_owned(), start..at);
        }
        Ok(Self { tensors: tensors(&pickle)?, data: Data::Stream { bytes, storages } })
    }

    /// Names of all tensors.
    #[cfg(any(test, fuzzing))]
    pub(super) fn names(&self) -> Vec<String> {
        self.tensors.keys().cloned().collect()
    }

    /// Shape of a tensor.
    pub(super) fn shape(&self, name: &str) -> Option<&[usize]> {
        self.tensors.get(name).map(|info| info.shape.as_slice())
    }

    /// Numbers of a tensor in row-major order.
    ///
    /// # Errors
    ///
    /// No such tensor, numbers that are whole, or a tensor that reaches beyond its storage.
    pub(super) fn values(&mut self, name: &str) -> Result<Vec<f32>, Reason> {
        let info = self.tensors.get(name).ok_or("is missing")?;
        let Storage { key, element, len } = &info.storage;
        let size = byte_size(*len, *element)?;
        let held;
        let bytes: &[u8] = match &mut self.data {
            Data::Stream { bytes, storages } => {
                let range = storages.get(key).ok_or_else(|| format!("storage {key:?} is missing"))?;
                bytes.get(range.clone()).unwrap_or_default()
            }
            Data::Archive { archive, folder } => {
                held = entry(archive, &format!("{folder}data/{key}"), size as u64)?;
                &held
            }
        };
        if bytes.len() != size {
            return Err(format!("storage {key:?} has {} bytes; expected {size}", bytes.len()));
        }
        gather(info, bytes)
    }
}

/// The tensors of the state dict that the pickle is, or holds under one of the usual keys.
fn tensors(pickle: &Pickle<'_>) -> Result<HashMap<String, TensorInfo>, Reason> {
    let candidates = [Some(pickle.root())].into_iter().chain(NESTED.map(|key| pickle.get(pickle.root(), key)));
    for node in candidates.flatten() {
        let tensors: HashMap<_, _> = pickle.tensors(node).map(|(name, info)| (name.to_owned(), info.clone())).collect();
        if !tensors.is_empty() {
            return Ok(tensors);
        }
    }
    Err("it holds no state dict: no tensors by name, at the top or under state_dict or model".into())
}

/// Every storage that a pickle names, by key.
fn storages<'p>(pickle: &'p Pickle<'_>) -> HashMap<&'p str, &'p Storage> {
    let storage = |node: &'p Node<'_>| match node {
        Node::Storage(storage) => Some((storage.key.as_str(), storage)),
        _ => None,
    };
    pickle.nodes().filter_map(storage).collect()
}

/// A file of an archive, at most `limit` bytes of it.
pub(super) fn entry(archive: &mut Archive<'_>, name: &str, limit: u64) -> Result<Vec<u8>, Reason> {
    let file = archive.by_name(name).map_err(|error| format!("{name} in the archive: {error}"))?;
    let mut bytes = Vec::new();
    // One byte more than allowed tells a file of the limit from a longer one; declared sizes are not believed.
    file.take(limit.saturating_add(1))
        .read_to_end(&mut bytes)
        .map_err(|error| format!("{name} in the archive: {error}"))?;
    if bytes.len() as u64 > limit {
        return Err(format!("{name} in the archive has more than {limit} bytes"));
    }
    Ok(bytes)
}

fn byte_size(len: usize, element: Element) -> Result<usize, Reason> {
    len.checked_mul(element.size())
        .filter(|size| *size <= MAX_STORAGE)
        .ok_or_else(|| format!("a storage of {len} numbers; expected at most {MAX_STORAGE} bytes"))
}

/// A tensor's numbers in row-major order, from the bytes of its storage.
fn gather(info: &TensorInfo, bytes: &[u8]) -> Result<Vec<f32>, Reason> {
    let beyond = || format!("shape {:?} with strides {:?} reaches beyond its storage", info.shape, info.strides);
    let count = info.shape.iter().try_fold(1usize, |count, &side| count.checked_mul(side)).ok_or_else(beyond)?;
    // A tensor may repeat numbers by a stride of 0; none of a network does, and the bound keeps memory bounded.
    if count > info.storage.len {
        return Err(beyond());
    }
    if count == 0 {
        return Ok(Vec::new());
    }
    let reach = info
        .shape
        .iter()
        .zip(&info.strides)
        .try_fold(info.offset, |reach, (&side, &stride)| reach.checked_add((side - 1).checked_mul(stride)?));
    if reach.is_none_or(|last| last >= info.storage.len) {
        return Err(beyond());
    }
    // An odometer, the last dimension fastest: index, side and stride of each. Along a side of 1 nothing moves, and its
    // stride may be anything.
    let dimension = |(&side, &stride)| (0, side, if side == 1 { 0 } else { stride });
    let mut odometer: Vec<(usize, usize, usize)> = info.shape.iter().zip(&info.strides).map(dimension).collect();
    let mut at = info.offset;
    let mut values = Vec::with_capacity(count);
    for _ in 0..count {
        values.push(decode(info.storage.element, bytes, at)?);
        for (index, side, stride) in odometer.iter_mut().rev() {
            *index += 1;
            at += *stride;
            if *index < *side {
                break;
            }
            *index = 0;
            at -= *side * *stride;
        }
    }
    Ok(values)
}

/// The number at `index` of numbers stored with their low bytes first.
pub(super) fn decode(element: Element, bytes: &[u8], index: usize) -> Result<f32, Reason> {
    let size = element.size();
    let number = bytes.get(index * size..).and_then(|rest| rest.get(..size)).ok_or("the numbers are cut off")?;
    Ok(match (element, number) {
        (Element::F16, &[a, b]) => f16::from_le_bytes([a, b]).to_f32(),
        (Element::BF16, &[a, b]) => bf16::from_le_bytes([a, b]).to_f32(),
        (Element::F32, &[a, b, c, d]) => f32::from_le_bytes([a, b, c, d]),
        (Element::F64, &[a, b, c, d, e, f, g, h]) => f64::from_le_bytes([a, b, c, d, e, f, g, h]) as f32,
        _ => return Err("holds whole numbers; expected floating-point numbers".into()),
    })
}
