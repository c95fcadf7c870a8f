//! SHA-256 of text and of tensors.

use sha2::{Digest, Sha256};

use super::layout::TensorSpec;
use crate::text::hex;

/// Lowercase hexadecimal SHA-256 of `bytes`.
pub(crate) fn sha256_hex(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

/// Whether `text` has the form of such a digest.
pub(super) fn is_sha256(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

/// Digest of tensors, fed in ascending order of their names.
///
/// Of each tensor everything that gives its bytes a meaning is hashed before its values, and every length before what it measures,
/// so that no two sets of tensors are hashed as the same bytes: name length (u64, little-endian), name, dtype as in the file
/// followed by a zero byte, number of dimensions (u64), dimensions (u64 each), then the values as in the file.
#[derive(Default)]
pub(super) struct TensorsHash(Sha256);

impl TensorsHash {
    pub(super) fn begin(&mut self, spec: &TensorSpec) {
        self.length(spec.name.len());
        self.0.update(spec.name.as_bytes());
        self.0.update(spec.dtype.to_string().as_bytes());
        self.0.update([0]);
        self.length(spec.shape.len());
        for &dimension in &spec.shape {
            self.length(dimension);
        }
    }

    pub(super) fn values(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    pub(super) fn hex(self) -> String {
        hex(&self.0.finalize())
    }

    fn length(&mut self, length: usize) {
        self.0.update((length as u64).to_le_bytes());
    }
}
