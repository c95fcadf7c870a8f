//! The model file, `NAME.diad`: one file, nothing else needed to run it, nothing in it executed.
//!
//! ```text
//! 8 bytes      length of the header, little-endian
//! header       JSON of a safetensors file, padded with spaces to a multiple of 8:
//!                "__metadata__": { "diad": the card as JSON text, "diad.sha256": digest of that text }
//!                one entry per tensor: dtype (F32 or F16), shape, data_offsets
//! data         the tensors without gaps, F32 before F16, names ascending
//! ```
//!
//! Any safetensors reader opens it. The order of everything is fixed, so the same content is the same file, byte for
//! byte; the [`Card`] holds a digest of the tensors and the header one of the card, so no byte can change unseen.
//! (That guards against damage. It does not prove who wrote the file.)
//!
//! A file of [`SCHEMA`] 1 is read by every diad that knows schema 1 or a later one. A file of a later schema is refused
//! by name. Keys of the configuration that a file does not have are at their defaults.

mod card;
#[cfg(test)]
pub(crate) mod fixture;
mod hash;
mod layout;
mod read;
mod write;

use std::collections::HashMap;

use candle_core::Tensor;

pub use card::{BackboneCard, Card, ClassCard, SCHEMA, TrainingCard};
#[cfg(feature = "cli")]
pub(crate) use hash::sha256_hex;
pub use layout::TensorSpec;
pub use read::{inspect, load, read_card};
pub use write::save;

/// A model read from a file: everything checked, on the CPU.
#[derive(Debug)]
pub struct ModelFile {
    /// What it says about itself.
    pub card: Card,
    /// Its tensors by name.
    pub tensors: HashMap<String, Tensor>,
}

/// What a model file holds, without the values.
#[derive(Clone, Debug)]
pub struct Contents {
    /// What it says about itself.
    pub card: Card,
    /// Its tensors in the order of the file.
    pub tensors: Vec<TensorSpec>,
    /// Length of the file.
    pub bytes: u64,
}
