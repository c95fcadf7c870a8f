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
//! A file of schema 1 is read by every version of diad, and scores as it did when it was written: what it lacks has the
//! meaning that it had then. A file of a later schema than [`SCHEMA`] is refused with a message that says so.

mod card;
#[cfg(test)]
pub(crate) mod fixture;
mod hash;
mod layout;
mod read;
mod write;

use std::collections::HashMap;

use candle_core::Tensor;

#[cfg(feature = "train")]
pub(crate) use card::MAX_SHAPES;
pub use card::{
    BackboneCard, CalibrationCard, Card, ClassCard, DefectImageCard, ImageCard, KnownDefectsCard, Measured, ReadFrom,
    SCHEMA, ScoreSource, TrainingCard, Unknown,
};
pub(crate) use hash::sha256_hex;
pub use layout::TensorSpec;
pub use read::{inspect, load, read_card};
pub use write::save;

/// A model as read from a file, all checks passed; its tensors are on the CPU.
#[derive(Debug)]
pub struct ModelFile {
    /// Its card.
    pub card: Card,
    /// Its tensors by name.
    pub tensors: HashMap<String, Tensor>,
}

/// The contents of a model file, without the values of its tensors.
#[derive(Clone, Debug)]
pub struct Contents {
    /// Its card.
    pub card: Card,
    /// Its tensors in the order of the file.
    pub tensors: Vec<TensorSpec>,
    /// Length of the file.
    pub bytes: u64,
}
