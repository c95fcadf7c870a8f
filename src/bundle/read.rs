//! Reading a model file: everything is checked against the size of the file before memory is taken for it.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;

use candle_core::{Device, Tensor};
use half::f16;
use safetensors::Dtype;

use super::card::Card;
use super::hash::{TensorsHash, sha256_hex};
use super::layout::{LENGTH_BYTES, MAX_FILE, MAX_HEADER, RawHeader, Stored, TensorSpec};
use super::{Contents, ModelFile};
use crate::error::{Error, Result};
use crate::files::open_regular;

/// Values are read, hashed and converted in pieces of this size, so that only the tensors themselves take memory.
const PIECE: usize = 1 << 18;

/// Largest number of differences between file and card that one message lists.
const MAX_DIFFERENCES: usize = 8;

/// Reads card and header of a model file, without the values of its tensors.
///
/// # Errors
/// As [`load`], except for mistakes that only the values of the tensors show (digest, NaN), and without a check of which tensors
/// there are.
pub fn inspect(path: &Path) -> Result<Contents> {
    let Opened { card, stored, bytes, .. } = open(path)?;
    Ok(Contents { card, tensors: stored.into_iter().map(|stored| stored.spec).collect(), bytes })
}

/// Reads the card of a model file, as [`inspect`] does.
///
/// # Errors
/// As [`inspect`].
pub fn read_card(path: &Path) -> Result<Card> {
    Ok(inspect(path)?.card)
}

/// Reads a model file. `expected` says which tensors a model with this card has.
///
/// Takes memory for the tensors only after the whole header has been found right; no more than the file is long, and
/// besides that at most a few hundred MiB for the largest header allowed (a few MiB for any real one).
///
/// # Errors
/// [`Error::Io`] if the file cannot be read. [`Error::Model`] naming the file, the key, what is there and what was
/// expected if it is no model file, is damaged, was written by a newer version, contradicts itself, has not exactly
/// the tensors of `expected`, or holds a value that is not finite. Errors of `expected` are passed on.
pub fn load(path: &Path, expected: impl Fn(&Card) -> Result<Vec<TensorSpec>>) -> Result<ModelFile> {
    let Opened { mut file, card, stored, data_start, .. } = open(path)?;
    let wanted = expected(&card)?;
    let differences = differences(&stored, &wanted);
    if !differences.is_empty() {
        return Err(Error::model(path, differences.join("; ")));
    }

    let mut by_name: Vec<&Stored> = stored.iter().collect();
    by_name.sort_by(|a, b| a.spec.name.cmp(&b.spec.name));
    let mut hash = TensorsHash::default();
    let mut tensors = HashMap::with_capacity(by_name.len());
    let mut not_finite = None;
    for Stored { spec, start } in by_name {
        hash.begin(spec);
        file.seek(SeekFrom::Start(data_start + start)).map_err(|error| unreadable(path, error))?;
        let mut values = Values::reserve(spec).map_err(|reason| Error::model(path, reason))?;
        values.fill(spec, &mut file, &mut hash).map_err(|error| unreadable(path, error))?;
        if not_finite.is_none() {
            not_finite = values.first_not_finite().map(|(at, value)| (spec.name.clone(), at, value));
        }
        tensors.insert(spec.name.clone(), values.into_tensor(&spec.shape)?);
    }
    // Damage is the likelier story where both are wrong.
    let digest = hash.hex();
    if digest != card.tensors_sha256 {
        let expected = &card.tensors_sha256;
        return Err(Error::model(path, format!("is damaged: the tensors' sha256 is {digest}, expected {expected}")));
    }
    if let Some((name, at, value)) = not_finite {
        return Err(Error::model(path, format!("value {at} of tensor {name:?} is {value}, expected a finite number")));
    }
    Ok(ModelFile { card, tensors })
}

/// An open file whose header has been checked.
struct Opened {
    file: File,
    card: Card,
    stored: Vec<Stored>,
    /// Where the tensors begin.
    data_start: u64,
    /// Length of the file.
    bytes: u64,
}

fn open(path: &Path) -> Result<Opened> {
    let io = |error| unreadable(path, error);
    let mut file = open_regular(path, "a model file (.diad)")?;
    let bytes = file.metadata().map_err(io)?.len();
    if bytes > MAX_FILE {
        return Err(Error::model(path, format!("has {bytes} bytes, expected at most {MAX_FILE}")));
    }
    let header = read_header(&mut file, bytes).map_err(io)?.map_err(|reason| Error::model(path, reason))?;
    let data_start = LENGTH_BYTES + header.len() as u64;
    let (card, stored) = understand(&header, bytes - data_start).map_err(|reason| Error::model(path, reason))?;
    Ok(Opened { file, card, stored, data_start, bytes })
}

/// The bytes of the header of a file that is `bytes` long, or why there are none.
fn read_header(file: &mut File, bytes: u64) -> std::io::Result<Result<Vec<u8>, String>> {
    if bytes == 0 {
        return Ok(Err("is empty, expected a model file (.diad)".into()));
    }
    let mut start = [0; 16];
    let start = {
        let length = start.len().min(bytes as usize);
        file.read_exact(&mut start[..length])?;
        &start[..length]
    };
    let length = match start {
        [length @ .., b'{', _, _, _, _, _, _, _] => u64::from_le_bytes(length.try_into().unwrap_or_default()),
        _ => return Ok(Err(format!("is {}, expected a model file (.diad)", kind_of(start)))),
    };
    let follow = bytes - LENGTH_BYTES;
    if length > MAX_HEADER {
        return Ok(Err(format!("announces a header of {length} bytes, expected at most {MAX_HEADER}")));
    }
    if length > follow {
        return Ok(Err(format!("is cut off: announces a header of {length} bytes, {follow} follow")));
    }
    let mut header = vec![0; length as usize];
    file.seek(SeekFrom::Start(LENGTH_BYTES))?;
    file.read_exact(&mut header)?;
    Ok(Ok(header))
}

/// What a header says, checked. The error is a reason without the file's name.
fn understand(header: &[u8], data_bytes: u64) -> Result<(Card, Vec<Stored>), String> {
    let mut raw = RawHeader::parse(header)?;
    let Some(card) = raw.card.take() else {
        return Err("is a safetensors file without a diad card (metadata key \"diad\"), expected a model written by \
                    diad"
            .into());
    };
    Card::check_schema(&card)?;
    let digest = sha256_hex(card.as_bytes());
    if raw.card_sha256.as_ref() != Some(&digest) {
        let said: String = raw.card_sha256.unwrap_or_default().chars().take(70).collect();
        return Err(format!(
            "is damaged: the card's sha256 is {digest}, expected {said:?} (metadata key \"diad.sha256\")"
        ));
    }
    let card = Card::from_json(&card)?;
    Ok((card, raw.stored(data_bytes)?))
}

/// How the tensors of a file differ from those it should have.
fn differences(stored: &[Stored], wanted: &[TensorSpec]) -> Vec<String> {
    let there: BTreeMap<_, _> = stored.iter().map(|stored| (stored.spec.name.as_str(), &stored.spec)).collect();
    let wanted: BTreeMap<_, _> = wanted.iter().map(|spec| (spec.name.as_str(), spec)).collect();
    let mut found = Vec::new();
    for (name, spec) in &wanted {
        match there.get(name) {
            None => found.push(format!("tensor {name:?} is missing, expected {spec}")),
            Some(got) if got != spec => found.push(format!("tensor {name:?} is {got}, expected {spec}")),
            Some(_) => {}
        }
    }
    for (name, got) in &there {
        if !wanted.contains_key(name) {
            found.push(format!("tensor {name:?} ({got}) is unexpected, this model has none of that name"));
        }
    }
    let more = found.len().saturating_sub(MAX_DIFFERENCES);
    if more > 0 {
        found.truncate(MAX_DIFFERENCES);
        found.push(format!("and {more} more"));
    }
    found
}

/// Values of one tensor on their way from the file.
enum Values {
    F32(Vec<f32>),
    F16(Vec<f16>),
}

impl Values {
    /// Room for all values of `spec`. The error is a reason without the file's name.
    fn reserve(spec: &TensorSpec) -> Result<Self, String> {
        /// A vector of that capacity, or none instead of an abort.
        fn room<T>(elements: usize) -> Option<Vec<T>> {
            let mut values = Vec::new();
            values.try_reserve_exact(elements).ok().map(|()| values)
        }
        let elements = spec.elements().unwrap_or(usize::MAX);
        let values = match spec.dtype {
            Dtype::F32 => room(elements).map(Self::F32),
            Dtype::F16 => room(elements).map(Self::F16),
            _ => None,
        };
        values.ok_or_else(|| format!("not enough memory for tensor {:?} ({spec})", spec.name))
    }

    /// Reads the values of `spec` from where `file` stands.
    fn fill(&mut self, spec: &TensorSpec, file: &mut File, hash: &mut TensorsHash) -> std::io::Result<()> {
        let mut left = spec.bytes().unwrap_or_default() as usize;
        let mut piece = vec![0; left.min(PIECE)];
        while left > 0 {
            let piece = &mut piece[..left.min(PIECE)];
            file.read_exact(piece)?;
            hash.values(piece);
            match self {
                Self::F32(values) => values.extend(words(piece).map(f32::from_le_bytes)),
                Self::F16(values) => values.extend(words(piece).map(f16::from_le_bytes)),
            }
            left -= piece.len();
        }
        Ok(())
    }

    fn first_not_finite(&self) -> Option<(usize, f32)> {
        match self {
            Self::F32(values) => values.iter().position(|x| !x.is_finite()).map(|at| (at, values[at])),
            Self::F16(values) => values.iter().position(|x| !x.is_finite()).map(|at| (at, values[at].to_f32())),
        }
    }

    fn into_tensor(self, shape: &[usize]) -> Result<Tensor> {
        Ok(match self {
            Self::F32(values) => Tensor::from_vec(values, shape, &Device::Cpu)?,
            Self::F16(values) => Tensor::from_vec(values, shape, &Device::Cpu)?,
        })
    }
}

/// The whole words of `bytes`.
fn words<const N: usize>(bytes: &[u8]) -> impl Iterator<Item = [u8; N]> {
    bytes.as_chunks().0.iter().copied()
}

/// The kind of file that begins with these bytes, for files that are easily mistaken for a model.
fn kind_of(start: &[u8]) -> &'static str {
    const KINDS: [(&[u8], &str); 12] = [
        (b"\x89PNG", "a PNG image"),
        (b"\xff\xd8\xff", "a JPEG image"),
        (b"GIF8", "a GIF image"),
        (b"II*\0", "a TIFF image"),
        (b"MM\0*", "a TIFF image"),
        (b"BM", "a BMP image"),
        (b"\x1f\x8b", "a gzip archive (unpack it first)"),
        (b"\x28\xb5\x2f\xfd", "a zstd archive (unpack it first)"),
        (b"PK\x03\x04", "a zip archive or a PyTorch file"),
        (b"\x80\x02", "a Python pickle or an old PyTorch file"),
        (b"\x7fELF", "a program"),
        (b"GGUF", "a GGUF model"),
    ];
    let known = KINDS.iter().find(|(magic, _)| start.starts_with(magic)).map(|(_, kind)| *kind);
    let text = start.iter().all(|byte| matches!(byte, b' '..=b'~' | b'\n' | b'\r' | b'\t'));
    known.unwrap_or(if text { "a text file" } else { "no safetensors file" })
}

fn unreadable(path: &Path, error: std::io::Error) -> Error {
    Error::io(path, "cannot read", error)
}
