//! Features of all images as f16, in memory up to a limit and in an unnamed temporary file beyond it.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use half::f16;
use half::slice::HalfFloatSliceExt;

use crate::error::{Error, Result};

/// Fixed-size feature vectors by index.
pub(super) struct Cache {
    per_image: usize,
    in_memory: usize, // images
    memory: Vec<f16>,
    file: Option<File>,
    folder: std::path::PathBuf,
    len: usize,
}

impl Cache {
    /// For images of `per_image` values; what exceeds `limit_mib` goes to a file in `folder`, which vanishes by itself.
    pub(super) fn new(per_image: usize, limit_mib: usize, folder: &Path) -> Self {
        let in_memory = limit_mib * 1024 * 1024 / (2 * per_image);
        Self { per_image, in_memory, memory: Vec::new(), file: None, folder: folder.to_path_buf(), len: 0 }
    }

    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// Whether a part lies in a file.
    pub(super) fn spilled(&self) -> bool {
        self.file.is_some()
    }

    pub(super) fn push(&mut self, values: &[f32]) -> Result<()> {
        debug_assert_eq!(values.len(), self.per_image);
        if self.len < self.in_memory {
            self.memory.extend(values.iter().map(|&v| f16::from_f32(v)));
        } else {
            let failed = |e| Error::io(&self.folder, "cannot spill the feature cache to a temporary file here", e);
            if self.file.is_none() {
                self.file = Some(tempfile::tempfile_in(&self.folder).map_err(failed)?);
            }
            if let Some(file) = &self.file {
                let bytes: Vec<u8> = values.iter().flat_map(|&v| f16::from_f32(v).to_le_bytes()).collect();
                file.write_all_at(&bytes, self.offset(self.len)).map_err(failed)?;
            }
        }
        self.len += 1;
        Ok(())
    }

    fn offset(&self, index: usize) -> u64 {
        ((index - self.in_memory) * self.per_image * 2) as u64
    }

    /// The values of one image.
    pub(super) fn get(&self, index: usize) -> Result<Vec<f32>> {
        let mut out = vec![0.0; self.per_image];
        match &self.file {
            Some(file) if index >= self.in_memory => {
                let mut bytes = vec![0; self.per_image * 2];
                file.read_exact_at(&mut bytes, self.offset(index))
                    .map_err(|e| Error::io(&self.folder, "cannot read the spilled feature cache", e))?;
                for (o, b) in out.iter_mut().zip(bytes.as_chunks::<2>().0) {
                    *o = f16::from_le_bytes(*b).to_f32();
                }
            }
            _ => self.memory[index * self.per_image..][..self.per_image].convert_to_f32_slice(&mut out),
        }
        Ok(out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spilled_values_equal_those_in_memory() {
        let folder = tempfile::tempdir().unwrap();
        let per_image = 64 * 1024; // 128 KiB: 8 images per MiB
        let image = |i: usize| vec![i as f32 + 0.5; per_image];
        let (mut small, mut large) =
            (Cache::new(per_image, 1, folder.path()), Cache::new(per_image, 64, folder.path()));
        for i in 0..20 {
            small.push(&image(i)).unwrap();
            large.push(&image(i)).unwrap();
        }
        assert!(small.spilled() && !large.spilled());
        for i in [0, 7, 8, 19] {
            assert_eq!(small.get(i).unwrap(), image(i));
            assert_eq!(large.get(i).unwrap(), image(i));
        }
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0, "the file has no name");
    }
}
