//! Which good images are held out for calibration, and the digest that says what a model was trained on.
//! Both go by file name, so that a folder can be moved without changing either.

use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use crate::text::hex;

/// Fewest images held out of a class: a threshold needs more than one score.
pub const MIN_CALIBRATION: usize = 2;

/// The good images of one class, divided. Each part keeps the order of the input.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Split {
    /// Images the model learns from.
    pub train: Vec<PathBuf>,
    /// Images it never learns from, whose scores set the threshold.
    pub calibration: Vec<PathBuf>,
}

/// Holds out `fraction` (0..=1) of the images, rounded up, at least [`MIN_CALIBRATION`]; one image is always left
/// to train on.
///
/// The images whose hash of seed and file name is smallest are held out, whatever their folder and order: the same
/// images are chosen on every machine, and among n images a further one changes at most one choice or adds one.
pub fn hold_out(paths: &[PathBuf], fraction: f64, seed: u64) -> Split {
    // 0.07 * 100 is 7.000000000000001, and that is seven images.
    let wanted = (paths.len() as f64 * fraction.clamp(0.0, 1.0) - 1e-9).ceil() as usize;
    let count = wanted.max(MIN_CALIBRATION).min(paths.len().saturating_sub(1));

    let mut order: Vec<usize> = (0..paths.len()).collect();
    // The path decides between images of the same name in different folders.
    order.sort_by_cached_key(|&i| (name_hash(&paths[i], seed), paths[i].clone()));
    let mut held = vec![false; paths.len()];
    order.iter().take(count).for_each(|&i| held[i] = true);

    let mut split = Split::default();
    for (path, held) in paths.iter().zip(held) {
        if held { &mut split.calibration } else { &mut split.train }.push(path.clone());
    }
    split
}

/// SHA-256 of the seed (little endian) and the file name: the same on every machine and in every release.
pub fn name_hash(path: &Path, seed: u64) -> [u8; 32] {
    let mut hash = Sha256::new();
    hash.update(seed.to_le_bytes());
    hash.update(name_bytes(path));
    hash.finalize().into()
}

fn name_bytes(path: &Path) -> &[u8] {
    path.file_name().unwrap_or_default().as_encoded_bytes()
}

/// SHA-256, in hexadecimal, over names and contents of files, given as their paths and the SHA-256 of their contents: for
/// each the length of its name (8 bytes, little endian), its name and the digest of its content, in order of name and
/// content. Independent of the folders the files lie in and of the order given.
pub fn data_sha256<'a>(files: impl IntoIterator<Item = (&'a Path, [u8; 32])>) -> String {
    let mut entries: Vec<_> = files.into_iter().map(|(path, digest)| (name_bytes(path), digest)).collect();
    entries.sort();
    let mut hash = Sha256::new();
    for (name, digest) in entries {
        hash.update((name.len() as u64).to_le_bytes());
        hash.update(name);
        hash.update(digest);
    }
    hex(&hash.finalize())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn images(folder: &str, numbers: impl IntoIterator<Item = u32>) -> Vec<PathBuf> {
        numbers.into_iter().map(|i| Path::new(folder).join(format!("{i:03}.png"))).collect()
    }

    fn names(paths: &[PathBuf]) -> BTreeSet<&[u8]> {
        paths.iter().map(|p| name_bytes(p)).collect()
    }

    #[test]
    fn the_fraction_is_rounded_up_and_at_least_two() {
        let held = |n, fraction| hold_out(&images("a", 0..n), fraction, 0).calibration.len();
        assert_eq!(held(100, 0.15), 15);
        assert_eq!(held(100, 0.07), 7);
        assert_eq!(held(101, 0.15), 16);
        assert_eq!(held(8, 0.15), 2);
        assert_eq!(held(8, 0.0), 2);
        assert_eq!(held(8, 1.0), 7, "one is left to train on");
        assert_eq!((held(2, 0.15), held(1, 0.15), held(0, 0.15)), (1, 0, 0));
    }

    #[test]
    fn the_choice_is_the_same_in_every_release() {
        // sorted(range(10), key=lambda i: hashlib.sha256(bytes(8) + b'%03d.png' % i).digest())[:2]
        let split = hold_out(&images("any/where", 0..10), 0.2, 0);
        assert_eq!(split.calibration, images("any/where", [0, 6]));
        assert_ne!(hold_out(&images("any/where", 0..10), 0.2, 1), split, "the seed matters");
    }

    #[test]
    fn the_digest_is_that_of_its_description() {
        let digest = |files: &[(&str, &[u8])]| {
            data_sha256(files.iter().map(|(path, content)| (Path::new(*path), Sha256::digest(content).into())))
        };
        let large = vec![7; 200_000];
        // s = lambda b: hashlib.sha256(b)
        // e = lambda n, b: len(n).to_bytes(8, 'little') + n + s(b).digest()
        // s(e(b'1.png', bytes([7]) * 200000) + e(b'2.png', b'two')).hexdigest()
        let expected = "f28a8240adddb8d5b4ad53b3845cc37a70365b23ffe8fec4d63eefb93f4e170d";
        assert_eq!(digest(&[("a/2.png", b"two"), ("a/1.png", &large)]), expected);
        assert_eq!(digest(&[("b/c/1.png", &large), ("b/2.png", b"two")]), expected, "neither folder nor order matter");
        assert_ne!(digest(&[("a/1.png", &large), ("a/3.png", b"two")]), expected);
        assert_ne!(digest(&[("a/1.png", &large), ("a/2.png", b"twO")]), expected);
    }

    proptest! {
        #[test]
        fn every_image_is_in_one_part_in_its_order(
            numbers in prop::collection::btree_set(0u32..1000, 0..60), fraction in 0.0..=1.0f64, seed: u64,
        ) {
            let paths = images("good", numbers);
            let split = hold_out(&paths, fraction, seed);
            prop_assert!(split.train.is_sorted() && split.calibration.is_sorted());
            let mut all = [split.train.clone(), split.calibration.clone()].concat();
            all.sort();
            prop_assert_eq!(all, paths);
        }

        #[test]
        fn neither_order_nor_folder_change_the_choice(
            mut numbers in prop::collection::hash_set(0u32..1000, 3..60), seed: u64,
        ) {
            let numbers: Vec<u32> = numbers.drain().collect();
            let here = images("good", numbers.iter().copied());
            let there = images("moved/somewhere", numbers.iter().rev().copied());
            let (here, there) = (hold_out(&here, 0.2, seed), hold_out(&there, 0.2, seed));
            prop_assert_eq!(names(&here.calibration), names(&there.calibration));
        }

        #[test]
        fn a_further_image_changes_one_choice_at_most(n in 10u32..200, fraction in 0.05..0.5f64, seed: u64) {
            let before = hold_out(&images("good", 0..n), fraction, seed);
            let after = hold_out(&images("good", 0..n + 1), fraction, seed);
            let (before, after) = (names(&before.calibration), names(&after.calibration));
            prop_assert!(before.difference(&after).count() <= 1);
            prop_assert!(after.difference(&before).count() <= 1);
        }
    }
}
