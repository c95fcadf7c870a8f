//! The header of a model file, in the layout of safetensors: checked in full when read, and written in one fixed order.

use std::cmp::Reverse;
use std::fmt::Write;

use safetensors::Dtype;
use serde::de::{Deserialize, Deserializer, Error as _, MapAccess, Visitor};

/// Bytes a header may have: two thousand classes with a thousand scores each fit in.
pub(super) const MAX_HEADER: u64 = 16 << 20;

/// Bytes a model file may have. The largest network that a configuration can describe is smaller.
pub(super) const MAX_FILE: u64 = 2 << 30;

/// Bytes before the header: its length as a little-endian u64.
pub(super) const LENGTH_BYTES: u64 = 8;

/// Dimensions a tensor may have.
const MAX_RANK: usize = 8;

/// Bytes the name of a tensor may have.
const MAX_NAME: usize = 255;

/// Metadata keys of the card and of its digest.
const CARD_KEY: &str = "diad";
const CARD_SHA256_KEY: &str = "diad.sha256";

/// Name, type and shape of a tensor, without its values.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorSpec {
    /// Its name, unique within a file.
    pub name: String,
    /// `F32` or `F16`; nothing else is stored.
    pub dtype: Dtype,
    /// Dimensions, outermost first, none of them 0; empty for a scalar.
    pub shape: Vec<usize>,
}

impl TensorSpec {
    /// Number of values; `None` if it is too large for a `usize`.
    pub fn elements(&self) -> Option<usize> {
        self.shape.iter().try_fold(1usize, |product, &dimension| product.checked_mul(dimension))
    }

    /// Bytes in the file; `None` if they are too many for a `usize`.
    pub(super) fn bytes(&self) -> Option<u64> {
        u64::try_from(self.elements()?).ok()?.checked_mul(self.dtype.bitsize() as u64 / 8)
    }

    /// Whether name, type and shape are allowed in a model file. The error is a reason without the file's name.
    pub(super) fn check(&self) -> Result<(), String> {
        let Self { name, dtype, shape } = self;
        if name.is_empty() || name.len() > MAX_NAME || name == "__metadata__" || name.chars().any(char::is_control) {
            let start: String = name.chars().take(40).collect();
            return Err(format!("tensor name {start:?}: expected 1 to {MAX_NAME} bytes without control characters"));
        }
        if !matches!(dtype, Dtype::F32 | Dtype::F16) {
            return Err(format!("tensor {name:?} is {dtype}, expected F32 or F16"));
        }
        if shape.len() > MAX_RANK || shape.contains(&0) {
            return Err(format!(
                "tensor {name:?} has shape {}, expected at most {MAX_RANK} dimensions, none 0",
                dims(shape)
            ));
        }
        Ok(())
    }

    /// Order in the file: wide values first, so that every tensor is aligned, then by name. The one order there is
    /// makes the same content the same file.
    pub(super) fn place(&self) -> (Reverse<usize>, &str) {
        (Reverse(self.dtype.bitsize()), &self.name)
    }
}

impl std::fmt::Display for TensorSpec {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}", self.dtype, dims(&self.shape))
    }
}

/// A shape in words, however long it is.
fn dims(shape: &[usize]) -> String {
    match shape.get(..MAX_RANK + 1) {
        Some(start) => format!("{start:?}").replace(']', ", ...]"),
        None => format!("{shape:?}"),
    }
}

/// A tensor and the position of its values in the file.
#[derive(Clone, Debug)]
pub(super) struct Stored {
    pub(super) spec: TensorSpec,
    /// Bytes from the start of the data, which begin right after the header.
    pub(super) start: u64,
}

/// A header as read from a file, before any check.
pub(super) struct RawHeader {
    /// JSON text of the card.
    pub(super) card: Option<String>,
    /// SHA-256 that the card's text should have.
    pub(super) card_sha256: Option<String>,
    /// Tensors in the order in which they are listed.
    entries: Vec<(String, Entry)>,
}

#[derive(serde::Deserialize)]
struct Entry {
    dtype: String,
    shape: Vec<usize>,
    data_offsets: (u64, u64),
}

impl RawHeader {
    /// Takes the header apart. The error is a reason without the file's name.
    pub(super) fn parse(header: &[u8]) -> Result<Self, String> {
        serde_json::from_slice(header).map_err(|error| format!("its header is not that of a safetensors file: {error}"))
    }

    /// Checks that the tensors fill `data_bytes` from the first byte to the last in the order of [`TensorSpec::place`],
    /// each as long as its dtype and shape say. The error is a reason without the file's name.
    pub(super) fn stored(self, data_bytes: u64) -> Result<Vec<Stored>, String> {
        let mut all: Vec<Stored> = Vec::with_capacity(self.entries.len());
        let mut end = 0u64;
        for (name, Entry { dtype, shape, data_offsets }) in self.entries {
            let dtype = match dtype.as_str() {
                "F32" => Dtype::F32,
                "F16" => Dtype::F16,
                other => {
                    let start: String = other.chars().take(20).collect();
                    return Err(format!("tensor {name:?} is {start:?}, expected F32 or F16"));
                }
            };
            let spec = TensorSpec { name, dtype, shape };
            spec.check()?;
            let name = &spec.name;
            if let Some(last) = all.last()
                && last.spec.place() >= spec.place()
            {
                return Err(format!(
                    "tensor {name:?} comes after {:?}, expected F32 before F16 and names in ascending order",
                    last.spec.name
                ));
            }
            let fits = |bytes: u64| end.checked_add(bytes).map(|next| (end, next));
            match spec.bytes().and_then(fits) {
                Some(expected) if expected == data_offsets => end = expected.1,
                Some(expected) => {
                    return Err(format!(
                        "tensor {name:?} lies at bytes {data_offsets:?}, expected {expected:?} for {spec}"
                    ));
                }
                None => return Err(format!("tensor {name:?} is too large: {spec}")),
            }
            all.push(Stored { spec, start: data_offsets.0 });
        }
        if end != data_bytes {
            let what = if end > data_bytes { "is cut off" } else { "has bytes that belong to no tensor" };
            return Err(format!("{what}: the tensors need {end} bytes, {data_bytes} follow the header"));
        }
        Ok(all)
    }
}

impl<'de> Deserialize<'de> for RawHeader {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        /// Keeps the order of the entries and sees a key that comes twice, which a map would not.
        struct Entries;

        impl<'de> Visitor<'de> for Entries {
            type Value = RawHeader;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("a map from tensor names to dtype, shape and data_offsets")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<RawHeader, A::Error> {
                #[derive(serde::Deserialize)]
                struct Metadata {
                    diad: Option<String>,
                    #[serde(rename = "diad.sha256")]
                    sha256: Option<String>,
                }
                let mut metadata = None;
                let mut entries = Vec::new();
                while let Some(key) = map.next_key::<String>()? {
                    if key != "__metadata__" {
                        entries.push((key, map.next_value()?));
                    } else if metadata.replace(map.next_value::<Metadata>()?).is_some() {
                        return Err(A::Error::duplicate_field("__metadata__"));
                    }
                }
                let Metadata { diad: card, sha256: card_sha256 } =
                    metadata.unwrap_or(Metadata { diad: None, sha256: None });
                Ok(RawHeader { card, card_sha256, entries })
            }
        }

        deserializer.deserialize_map(Entries)
    }
}

/// Length and header of a file with this card and these tensors, which are in the order of [`TensorSpec::place`] and
/// have passed [`TensorSpec::check`]. The error is a reason without the file's name.
pub(super) fn encode(card: &str, card_sha256: &str, specs: &[TensorSpec]) -> Result<Vec<u8>, String> {
    let quoted = |text: &str| serde_json::Value::from(text).to_string();
    let mut json = format!(
        "{{\"__metadata__\":{{{}:{},{}:{}}}",
        quoted(CARD_KEY),
        quoted(card),
        quoted(CARD_SHA256_KEY),
        quoted(card_sha256)
    );
    let mut end = 0u64;
    for spec in specs {
        let start = end;
        end = spec.bytes().and_then(|bytes| start.checked_add(bytes)).unwrap_or(u64::MAX);
        let shape: Vec<_> = spec.shape.iter().map(usize::to_string).collect();
        // Writing to a String cannot fail.
        let _ = write!(
            json,
            ",{}:{{\"dtype\":\"{}\",\"shape\":[{}],\"data_offsets\":[{start},{end}]}}",
            quoted(&spec.name),
            spec.dtype,
            shape.join(",")
        );
    }
    json.push('}');
    // The data start at a multiple of 8, as readers that map the file expect.
    json.push_str(&" ".repeat(json.len().next_multiple_of(8) - json.len()));
    let length = json.len() as u64;
    if length > MAX_HEADER {
        return Err(format!("its header would have {length} bytes, expected at most {MAX_HEADER}"));
    }
    match end.checked_add(LENGTH_BYTES + length) {
        Some(total) if total <= MAX_FILE => {}
        _ => return Err(format!("its tensors would have {end} bytes, expected less than {MAX_FILE}")),
    }
    let mut bytes = length.to_le_bytes().to_vec();
    bytes.extend_from_slice(json.as_bytes());
    Ok(bytes)
}
