//! What training keeps of every image: in memory up to a limit and in an unnamed temporary file beyond it.

use std::borrow::Cow;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use half::f16;
use half::slice::{HalfBitsSliceExt, HalfFloatSliceExt};

use crate::config::Size;
use crate::error::{Error, Result};
use crate::frame::{Frame, Geometry, Prepared};

/// Records of one size by index, each with a note that stays in memory.
pub(super) struct Cache<T> {
    size: usize,      // bytes
    in_memory: usize, // records
    memory: Vec<u8>,
    file: Option<File>,
    folder: PathBuf,
    notes: Vec<T>,
}

/// Features of images, in half precision.
pub(super) type FeatureCache = Cache<()>;
/// Prepared frames of one side.
pub(super) type FrameCache = Cache<Geometry>;

impl<T> Cache<T> {
    fn of_size(size: usize, limit_mib: usize, folder: &Path) -> Self {
        let in_memory = limit_mib * 1024 * 1024 / size;
        Self { size, in_memory, memory: Vec::new(), file: None, folder: folder.to_path_buf(), notes: Vec::new() }
    }

    pub(super) fn len(&self) -> usize {
        self.notes.len()
    }

    /// Whether a part lies in a file.
    pub(super) fn spilled(&self) -> bool {
        self.file.is_some()
    }

    fn add(&mut self, record: &[u8], note: T) -> Result<()> {
        debug_assert_eq!(record.len(), self.size);
        if self.len() < self.in_memory {
            self.memory.extend_from_slice(record);
        } else {
            let failed = |e| Error::io(&self.folder, "cannot put images into a temporary file here", e);
            let offset = self.offset(self.len());
            let file = match &mut self.file {
                Some(file) => file,
                none => none.insert(tempfile::tempfile_in(&self.folder).map_err(failed)?),
            };
            file.write_all_at(record, offset).map_err(failed)?;
        }
        self.notes.push(note);
        Ok(())
    }

    fn offset(&self, index: usize) -> u64 {
        ((index - self.in_memory) * self.size) as u64
    }

    fn record(&self, index: usize) -> Result<Cow<'_, [u8]>> {
        match &self.file {
            Some(file) if index >= self.in_memory => {
                let mut bytes = vec![0; self.size];
                file.read_exact_at(&mut bytes, self.offset(index))
                    .map_err(|e| Error::io(&self.folder, "cannot read the temporary file of images", e))?;
                Ok(bytes.into())
            }
            _ => Ok(self.memory[index * self.size..][..self.size].into()),
        }
    }
}

impl Cache<()> {
    /// For images of `values` numbers each. What exceeds `limit_mib` goes to a file in `folder`, which vanishes by itself.
    pub(super) fn new(values: usize, limit_mib: usize, folder: &Path) -> Self {
        Self::of_size(2 * values, limit_mib, folder)
    }

    pub(super) fn push(&mut self, values: &[f32]) -> Result<()> {
        self.add(&values.iter().flat_map(|&v| f16::from_f32(v).to_le_bytes()).collect::<Vec<u8>>(), ())
    }

    /// Numbers of one image.
    pub(super) fn values(&self) -> usize {
        self.size / 2
    }

    /// The features of one image.
    pub(super) fn get(&self, index: usize) -> Result<Vec<f32>> {
        let bits: Vec<u16> = self.record(index)?.as_chunks().0.iter().map(|&pair| u16::from_le_bytes(pair)).collect();
        Ok(bits.reinterpret_cast::<f16>().to_f32_vec())
    }
}

impl Cache<Geometry> {
    /// For frames of one size; limit and folder as for [`FeatureCache`].
    pub(super) fn new(size: Size, limit_mib: usize, folder: &Path) -> Self {
        Self::of_size(size.area() * 3, limit_mib, folder)
    }

    pub(super) fn push(&mut self, prepared: &Prepared) -> Result<()> {
        self.add(prepared.frame.rgb(), prepared.geometry)
    }

    /// One frame.
    pub(super) fn get(&self, index: usize) -> Result<Prepared> {
        let geometry = self.notes[index];
        let frame = Frame::new(geometry.input.width, geometry.input.height, self.record(index)?.into_owned())?;
        Ok(Prepared { frame, geometry })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn features_in_a_file_equal_those_in_memory() {
        let folder = tempfile::tempdir().unwrap();
        let per_image = 64 * 1024; // 128 KiB: 8 images per MiB
        let image = |i: usize| vec![i as f32 + 0.5; per_image];
        let (mut small, mut large) =
            (FeatureCache::new(per_image, 1, folder.path()), FeatureCache::new(per_image, 64, folder.path()));
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

    #[test]
    fn frames_come_back_whole_from_memory_and_file() {
        let folder = tempfile::tempdir().unwrap();
        let size = Size::new(512, 128); // 192 KiB: 5 frames per MiB
        let frame = |i: u8| {
            let rgb = (0..size.area() * 3).map(|at| i.wrapping_mul(31).wrapping_add((at % 251) as u8)).collect();
            let shown = [f64::from(i), 0.0, 500.0, 300.0];
            let geometry = Geometry { original: [640, 480], input: size, valid: [170.0, 0.0, 171.0, 128.0], shown };
            Prepared { frame: Frame::new(size.width, size.height, rgb).unwrap(), geometry }
        };
        let mut cache = FrameCache::new(size, 1, folder.path());
        (0..8).for_each(|i| cache.push(&frame(i)).unwrap());
        assert!(cache.spilled());
        for i in [0, 4, 5, 7] {
            assert_eq!(cache.get(usize::from(i)).unwrap(), frame(i));
        }
    }
}
