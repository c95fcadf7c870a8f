//! How many of their bits 16-bit images use.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// The highest values of the 16-bit images of a run: cameras of 10, 12 or 14 bits whose values are stored as they are, in
/// 16-bit files, give pictures that are almost black, in which few grey levels are left. Threads that read may share it.
#[derive(Debug, Default)]
pub struct SampleDepth(Mutex<BTreeMap<PathBuf, u16>>);

impl SampleDepth {
    fn peaks(&self) -> MutexGuard<'_, BTreeMap<PathBuf, u16>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds an image; `peak` is the highest value of one of 16 bits per sample, others do not count.
    pub fn add(&self, path: &Path, peak: Option<u16>) {
        peak.map(|peak| self.peaks().insert(path.to_path_buf(), peak));
    }

    /// What to say to the user where all 16-bit images together look like those of a camera with fewer bits.
    pub fn warning(&self) -> Option<String> {
        let peaks = self.peaks();
        let (example, peak) = (peaks.keys().next()?, *peaks.values().max()?);
        let bits = [8, 10, 12, 14].into_iter().find(|bits| peak >> bits == 0).filter(|_| peak > 0)?;
        Some(format!(
            "{}: 16-bit images have no value above {peak} ({} of them), as if {bits} bits of a camera were stored in 16: what is \
             seen is almost black, with {} of 256 grey levels; save them with all values times {}, or in 8 bits",
            example.display(),
            peaks.len(),
            1 << (bits - 8),
            1 << (16 - bits),
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn warning(peaks: &[Option<u16>]) -> Option<String> {
        let depth = SampleDepth::default();
        for (i, &peak) in peaks.iter().enumerate().rev() {
            depth.add(Path::new(&format!("{i}.tif")), peak);
        }
        depth.warning()
    }

    #[test]
    fn cameras_of_fewer_bits_are_told_from_16_bit_images() {
        for (peak, bits, levels, factor) in [
            (1023, "10 bits", "4 of 256", "times 64"),
            (4095, "12 bits", "16 of 256", "times 16"),
            (16383, "14 bits", "64 of", "times 4"),
        ] {
            let text = warning(&[None, Some(3), Some(peak)]).unwrap();
            for part in ["1.tif: 16-bit images have", &format!("above {peak} (2 of them)"), bits, levels, factor] {
                assert!(text.contains(part), "{part:?} in {text}");
            }
        }
        assert_eq!(warning(&[Some(4095), Some(16384)]), None, "one image uses more");
        assert_eq!(warning(&[None, None]), None);
        assert_eq!(warning(&[Some(0)]), None, "black says nothing");
    }
}
