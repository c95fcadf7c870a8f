//! What training keeps of every image: in memory up to a limit and in an unnamed temporary file beyond it.

use std::borrow::Cow;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use half::f16;
use half::slice::{HalfBitsSliceExt, HalfFloatSliceExt};

use crate::error::{Error, Result};
use crate::frame::{Frame, Geometry, Prepared};

/// Records by index, each with a note that stays in memory.
pub(super) struct Cache<T> {
    /// Bytes that stay in memory.
    limit: usize,
    memory: Vec<u8>,
    file: Option<File>,
    in_file: u64, // bytes
    folder: PathBuf,
    records: Vec<Record<T>>,
}

struct Record<T> {
    size: usize,
    place: Place,
    note: T,
}

/// Where the first byte of a record is.
enum Place {
    Memory(usize),
    File(u64),
}

/// Features of images, in half precision.
pub(super) type FeatureCache = Cache<()>;
/// Prepared frames.
pub(super) type FrameCache = Cache<Seen>;

/// What is known of a prepared frame beside its pixels.
#[derive(Clone, Copy)]
pub(super) struct Seen {
    geometry: Geometry,
    shape: usize,
    lost: bool,
}

impl<T> Cache<T> {
    /// What exceeds `limit_mib` goes to a file in `folder`, which vanishes by itself.
    pub(super) fn new(limit_mib: usize, folder: &Path) -> Self {
        let (memory, records, folder) = (Vec::new(), Vec::new(), folder.to_path_buf());
        Self { limit: limit_mib * 1024 * 1024, memory, file: None, in_file: 0, folder, records }
    }

    pub(super) fn len(&self) -> usize {
        self.records.len()
    }

    /// Whether a part lies in a file.
    pub(super) fn spilled(&self) -> bool {
        self.file.is_some()
    }

    fn add(&mut self, bytes: &[u8], note: T) -> Result<()> {
        let size = bytes.len();
        let place = if self.file.is_none() && self.memory.len() + size <= self.limit {
            self.memory.extend_from_slice(bytes);
            Place::Memory(self.memory.len() - size)
        } else {
            let failed = |e| Error::io(&self.folder, "cannot put images into a temporary file here", e);
            let file = match &mut self.file {
                Some(file) => file,
                none => none.insert(tempfile::tempfile_in(&self.folder).map_err(failed)?),
            };
            file.write_all_at(bytes, self.in_file).map_err(failed)?;
            self.in_file += size as u64;
            Place::File(self.in_file - size as u64)
        };
        self.records.push(Record { size, place, note });
        Ok(())
    }

    fn record(&self, index: usize) -> Result<Cow<'_, [u8]>> {
        let Record { size, place, .. } = &self.records[index];
        match (place, &self.file) {
            (Place::Memory(at), _) => Ok(self.memory[*at..][..*size].into()),
            (Place::File(at), Some(file)) => {
                let mut bytes = vec![0; *size];
                file.read_exact_at(&mut bytes, *at)
                    .map_err(|e| Error::io(&self.folder, "cannot read the temporary file of images", e))?;
                Ok(bytes.into())
            }
            (Place::File(_), None) => Err(Error::Internal("training: the temporary file of images is gone".into())),
        }
    }
}

impl FeatureCache {
    pub(super) fn push(&mut self, values: &[f32]) -> Result<()> {
        self.add(&values.iter().flat_map(|&v| f16::from_f32(v).to_le_bytes()).collect::<Vec<u8>>(), ())
    }

    /// The features of one image.
    pub(super) fn get(&self, index: usize) -> Result<Vec<f32>> {
        let bits: Vec<u16> = self.record(index)?.as_chunks().0.iter().map(|&pair| u16::from_le_bytes(pair)).collect();
        Ok(bits.reinterpret_cast::<f16>().to_f32_vec())
    }
}

impl FrameCache {
    pub(super) fn push(&mut self, prepared: &Prepared) -> Result<()> {
        let Prepared { frame, geometry, shape, lost } = prepared;
        self.add(frame.rgb(), Seen { geometry: *geometry, shape: *shape, lost: *lost })
    }

    /// One frame.
    pub(super) fn get(&self, index: usize) -> Result<Prepared> {
        let Seen { geometry, shape, lost } = self.records[index].note;
        let frame = Frame::new(geometry.input.width, geometry.input.height, self.record(index)?.into_owned())?;
        Ok(Prepared { frame, geometry, shape, lost })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Size;

    #[test]
    fn features_in_a_file_equal_those_in_memory() {
        let folder = tempfile::tempdir().unwrap();
        let per_image = 64 * 1024; // 128 KiB: 8 images per MiB
        // Of two sizes in turn: images of two classes.
        let image = |i: usize| vec![i as f32 + 0.5; per_image / (1 + i % 2)];
        let (mut small, mut large) = (FeatureCache::new(1, folder.path()), FeatureCache::new(64, folder.path()));
        for i in 0..20 {
            small.push(&image(i)).unwrap();
            large.push(&image(i)).unwrap();
        }
        assert!(small.spilled() && !large.spilled());
        for i in [0, 9, 10, 11, 18, 19] {
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
            let geometry =
                Geometry { original: [640, 480], input: size, valid: [170.0, 0.0, 171.0, 128.0], shown, pose: None };
            Prepared { frame: Frame::new(size.width, size.height, rgb).unwrap(), geometry, shape: 3, lost: true }
        };
        let mut cache = FrameCache::new(1, folder.path());
        (0..8).for_each(|i| cache.push(&frame(i)).unwrap());
        assert!(cache.spilled());
        for i in [0, 4, 5, 7] {
            assert_eq!(cache.get(usize::from(i)).unwrap(), frame(i));
        }
    }
}
