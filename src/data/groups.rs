//! Which images show the same part. A part that was photographed ten times is one part: its images stay on one side of
//! every fold, and count together as one.
//!
//! Three things can say so: an option ([`GroupBy`]), a file `groups.csv` in the product's folder, and the images themselves
//! ([`alike`]).

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use nalgebra::{DMatrix, DVector, DVectorView, SymmetricEigen};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use regex::Regex;

use crate::config::GroupSource;
use crate::error::{Error, Result};
use crate::files::read_regular;

/// The file that says which part each image of a product shows.
pub const GROUPS_FILE: &str = "groups.csv";
/// Bytes that it may have: a million images.
const MAX_BYTES: u64 = 128 << 20;

/// How an option tells the part that an image shows.
#[derive(Clone, Debug)]
pub enum GroupBy {
    /// By the folder that the image lies in.
    Folder,
    /// By what the first group of the expression captures of the file's name.
    Name(Regex),
}

impl std::str::FromStr for GroupBy {
    type Err = Error;

    /// `folder`, or a regular expression with one capture.
    fn from_str(text: &str) -> Result<Self> {
        if text == "folder" {
            return Ok(Self::Folder);
        }
        let expected =
            "expected folder, or a regular expression that captures the part in a file's name, for instance ^(\\d+)_";
        let wrong = |reason: String| Error::Usage(format!("--group-by {text:?}: {reason}; {expected}"));
        // The message of a regular expression shows it on several lines; its last line says what is wrong.
        let reason = |error: regex::Error| error.to_string().lines().last().unwrap_or_default().to_owned();
        let name = Regex::new(text).map_err(|error| wrong(reason(error)))?;
        if name.captures_len() != 2 {
            return Err(wrong(format!("captures {} things, not one", name.captures_len() - 1)));
        }
        Ok(Self::Name(name))
    }
}

/// The groups of a list of images.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Groups {
    /// What says so.
    pub source: GroupSource,
    /// The group of each image: numbers from 0 in the order of their first image.
    pub of: Vec<u32>,
    /// Images that nothing was said about; each is a group of its own.
    pub unnamed: usize,
    /// Where groups were found: how many there would be if likeness alone decided, whatever pose parts share.
    pub clusters: Option<usize>,
}

impl Groups {
    /// Each image by itself.
    pub fn none(images: usize) -> Self {
        Self { source: GroupSource::None, of: (0..images as u32).collect(), unnamed: 0, clusters: None }
    }

    /// From a name for each image; those without one are groups of their own.
    pub fn named<N: Ord>(source: GroupSource, names: impl IntoIterator<Item = Option<N>>) -> Self {
        let (mut known, mut next, mut unnamed) = (BTreeMap::new(), 0, 0);
        let mut new = || {
            next += 1;
            next - 1
        };
        let of = names.into_iter().map(|name| match name {
            Some(name) => *known.entry(name).or_insert_with(&mut new),
            None => {
                unnamed += 1;
                new()
            }
        });
        let of = of.collect();
        Self { source, of, unnamed, clusters: None }
    }

    /// Number of groups.
    pub fn count(&self) -> usize {
        self.of.iter().max().map_or(0, |&last| last as usize + 1)
    }

    /// Images of each group.
    pub fn members(&self) -> Vec<Vec<usize>> {
        let mut members = vec![Vec::new(); self.count()];
        self.of.iter().enumerate().for_each(|(image, &group)| members[group as usize].push(image));
        members
    }

    /// The fold of each image, from 0 to below `folds`: whole groups, the folds of about equal numbers of images. The same images
    /// with the same `keys` (one per image, for instance a digest of its name) are dealt alike whatever their order.
    pub fn folds<K: Ord>(&self, folds: usize, keys: &[K]) -> Vec<usize> {
        let members = self.members();
        let mut order: Vec<_> =
            members.iter().map(|images| (images.iter().map(|&image| &keys[image]).min(), images)).collect();
        order.sort();
        // Large groups first, each to the emptiest fold; the keys decide between equals.
        order.sort_by_key(|(_, images)| std::cmp::Reverse(images.len()));
        let mut filled = vec![0; folds];
        let mut fold_of = vec![0; self.of.len()];
        for (_, images) in order {
            let fold = (0..folds).min_by_key(|&fold| filled[fold]).unwrap_or(0);
            filled[fold] += images.len();
            images.iter().for_each(|&image| fold_of[image] = fold);
        }
        fold_of
    }
}

/// What is said of the images `paths` of the product in `root`: by the option, else by its file if `file` is to be read and is
/// there.
///
/// # Errors
/// When the file cannot be read, has other columns, or names an image that does not exist.
pub fn stated_of_tests(by: Option<&GroupBy>, file: bool, root: &Path, paths: &[PathBuf]) -> Result<Option<Groups>> {
    Ok(told(by, file, root, paths)?.map(|(groups, _)| groups))
}

/// As [`stated_of_tests`], of images that are to be divided.
///
/// # Errors
/// As there, and when they are all put into one group.
pub fn stated(by: Option<&GroupBy>, file: bool, root: &Path, paths: &[PathBuf]) -> Result<Option<Groups>> {
    let Some((groups, origin)) = told(by, file, root, paths)? else { return Ok(None) };
    if groups.count() < 2 && paths.len() > 1 {
        let all = paths.len();
        let expected = "expected several parts, of which some can be left out";
        return Err(Error::data(root, format!("{origin} puts all {all} images into one group: {expected}")));
    }
    Ok(Some(groups))
}

/// The groups, and what says so.
fn told(by: Option<&GroupBy>, file: bool, root: &Path, paths: &[PathBuf]) -> Result<Option<(Groups, String)>> {
    let (groups, origin) = if let Some(by) = by {
        let name = |path: &PathBuf| -> Option<String> {
            match by {
                GroupBy::Folder => Some(path.parent()?.to_string_lossy().into_owned()),
                GroupBy::Name(name) => {
                    Some(name.captures(&path.file_name()?.to_string_lossy())?.get(1)?.as_str().into())
                }
            }
        };
        (Groups::named(GroupSource::Option, paths.iter().map(name)), "--group-by".to_owned())
    } else if file && root.join(GROUPS_FILE).is_file() {
        let file = root.join(GROUPS_FILE);
        let names = read_file(&file, root)?;
        let name = |path: &PathBuf| names.get(path.strip_prefix(root).ok()?).cloned();
        (Groups::named(GroupSource::File, paths.iter().map(name)), file.display().to_string())
    } else {
        return Ok(None);
    };
    Ok(Some((groups, origin)))
}

/// The group of each image that a `groups.csv` lists, by its path relative to the product's folder `root`.
fn read_file(path: &Path, root: &Path) -> Result<BTreeMap<PathBuf, String>> {
    let wrong = |line: u64, reason: String| Error::data(path, format!("line {line}: {reason}"));
    let bytes = read_regular(path, MAX_BYTES, "a list of images with their groups")?;
    let mut reader = csv::ReaderBuilder::new().trim(csv::Trim::All).from_reader(bytes.as_slice());
    let broken = |error: csv::Error| {
        let line = error.position().map_or(1, csv::Position::line);
        wrong(line, format!("{error}; expected the columns path,group").replace('\n', " "))
    };
    let header = reader.headers().map_err(broken)?.clone();
    if header.iter().ne(["path", "group"]) {
        let found = header.iter().collect::<Vec<_>>().join(",");
        return Err(wrong(1, format!("the columns are {found:?}, expected path,group")));
    }
    let mut names = BTreeMap::new();
    for record in reader.records() {
        let record = record.map_err(broken)?;
        let line = record.position().map_or(0, csv::Position::line);
        let (image, group) = (PathBuf::from(&record[0]), record[1].to_owned());
        if group.is_empty() {
            return Err(wrong(line, format!("{} has no group", image.display())));
        }
        if !root.join(&image).is_file() {
            return Err(wrong(line, format!("{} is no file in {}", image.display(), root.display())));
        }
        if let Some(other) = names.insert(image, group.clone()).filter(|other| *other != group) {
            return Err(wrong(line, format!("{} is in group {other:?} and in {group:?}", &record[0])));
        }
    }
    Ok(names)
}

/// Numbers in a [`sketch`].
pub const SKETCH: usize = 4096;

/// The features of an image `[T, D]` in so few numbers that many images can be compared, cosines staying within about 0.02: each
/// value is added to, or taken from, one of them (count sketch, Charikar et al. 2002).
pub fn sketch(features: &[f32]) -> Vec<f32> {
    let mut sketch = vec![0.0; SKETCH];
    for (i, &value) in features.iter().enumerate() {
        let hash = (i as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let place = (hash >> 40) as usize % SKETCH;
        sketch[place] += if hash >> 39 & 1 == 0 { value } else { -value };
    }
    sketch
}

/// Cosine similarity from which images are taken for two of one part, the mean over all pairs of two groups. Six pictures of one
/// tile in six exposures have 0.44 to 0.72, other tiles at most 0.31 (99.9 % of the pairs).
const ALIKE: f64 = 0.3;
/// Leading directions in which images of different parts may agree without being of one part: how the part lies, the light.
/// Without them screws that lie alike are one group.
const POSES: usize = 16;
/// Parts that it takes for each of these directions; otherwise they are what tells the parts apart.
const PARTS_PER_POSE: usize = 8;
/// A spectrum that falls by this factor from one value to the next ends there, and what follows is noise: the images show one part
/// more than it has directions. 2.0 to 15 where 5 to 30 parts were photographed 2 to 12 times (with noise, in other light,
/// shifted); at most 1.25 at that place where each of 31 to 747 images shows a part of its own.
const GAP: f64 = 1.6;
/// Fewer parts than this are not told from other things that come in two or three kinds, such as lamps.
const FEWEST_PARTS: usize = 4;
/// Images that are this similar in all directions are of one part whatever the leading ones are: copies, frames of a burst.
const COPY: f64 = 0.85;
/// A group has at most this share of the images: groups have to fit into folds.
const LARGEST: f64 = 0.1;

/// Images of a product among which groups are looked for, at most: the work grows with their square.
pub const MOST_COMPARED: usize = 4000;

/// Groups of images that are likely to show one part, by their features, `vectors` `[n, D]` with n at least 2: average linkage of
/// cosine similarities around the mean image.
///
/// Takes n x n numbers, and time like n x n x (n + D).
///
/// # Errors
/// When the vectors are not finite.
pub fn alike(vectors: &[f32], images: usize) -> Result<Groups> {
    let dim = vectors.len() / images.max(1);
    let mut centred = DMatrix::from_row_slice(images, dim, vectors);
    for mut column in centred.column_iter_mut() {
        let mean = column.mean();
        column.add_scalar_mut(-mean);
    }
    let products = (&centred * centred.transpose()).cast::<f64>();
    drop(centred);
    if products.iter().any(|value| !value.is_finite()) {
        return Err(Error::Internal("groups: the features of an image are not finite".into()));
    }
    let whole = cosines(&products);
    let clusters = linked(whole.clone(), images).into_iter().collect::<BTreeSet<_>>().len();
    let repeated = repeated_parts(&products, &whole, clusters);
    let poses = POSES.min(repeated.unwrap_or(images) / PARTS_PER_POSE);
    let mut rest = products;
    for (value, direction) in leading(&rest, poses) {
        rest -= &direction * direction.transpose() * value;
    }
    let mut similarity = cosines(&rest);
    // Of few parts little is left without the leading directions, and by chance alike: both must agree.
    similarity.zip_apply(&whole, |value, whole| *value = if whole >= COPY { whole } else { value.min(whole) });
    let largest = repeated.map_or(2, |parts| 2 * images / parts).max((LARGEST * images as f64) as usize);
    let groups = Groups::named(GroupSource::Found, linked(similarity, largest).into_iter().map(Some));
    Ok(Groups { clusters: Some(clusters), ..groups })
}

/// How many parts the images show if each of a few parts is shown several times, by the dimensions that the images span: pictures
/// of one part span one, and what they differ in is smaller. Parts that only lie alike differ by as much as any, so that there is
/// no such end. `products` `[n, n]` of the centred features, their cosines `whole`, about as many parts as there are `clusters`.
fn repeated_parts(products: &DMatrix<f64>, whole: &DMatrix<f64>, clusters: usize) -> Option<usize> {
    let n = products.nrows();
    // From so many parts on, their number makes no difference.
    if clusters > POSES * PARTS_PER_POSE || clusters > n / 2 {
        return None;
    }
    // Each part counts about once, however many images it has.
    let alike = |of: DVectorView<'_, f64>| of.iter().filter(|&&cosine| cosine >= 0.5).count();
    let weights = DVector::from_iterator(n, whole.column_iter().map(|of| 1.0 / alike(of) as f64));
    let mean = &weights / weights.sum();
    let to_mean = products * &mean;
    let of_mean = mean.dot(&to_mean);
    let weighted = DMatrix::from_fn(n, n, |i, j| {
        (products[(i, j)] - to_mean[i] - to_mean[j] + of_mean) * (weights[i] * weights[j]).sqrt()
    });
    let window = (4 * clusters / 5).saturating_sub(1).max(FEWEST_PARTS)..=(6 * clusters / 5 + 2).min(n / 2);
    let spectrum: Vec<f64> =
        leading(&weighted, window.end() + 1).into_iter().map(|(value, _)| value.max(0.0)).collect();
    let smallest = 1e-9 * spectrum[0];
    let fall = |end: usize| spectrum[end - 1] / spectrum[end].max(smallest);
    let end = window.max_by(|&a, &b| fall(a).total_cmp(&fall(b)))?;
    (fall(end) >= GAP).then_some(end + 1)
}

/// The groups of [`alike`], and each image by itself where there are too few or too many to compare.
///
/// # Errors
/// As [`alike`].
pub fn alike_if_comparable(vectors: &[f32], images: usize) -> Result<Groups> {
    if comparable(images) { alike(vectors, images) } else { Ok(Groups::none(images)) }
}

/// Whether so many images can be compared with each other.
pub fn comparable(images: usize) -> bool {
    (2..=MOST_COMPARED).contains(&images)
}

/// The `count` largest eigenvalues of a symmetric matrix with their vectors, by subspace iteration: enough for directions that
/// are to be left out, at a fraction of the time of all of them.
fn leading(matrix: &DMatrix<f64>, count: usize) -> Vec<(f64, DVector<f64>)> {
    const ITERATIONS: usize = 20;
    const MORE: usize = 8; // directions that are iterated as well, for the sake of the others
    if count == 0 {
        return Vec::new();
    }
    let n = matrix.nrows();
    let mut rng = ChaCha8Rng::seed_from_u64(0);
    let mut basis = DMatrix::from_fn(n, (count + MORE).min(n), |_, _| rng.random_range(-1.0..1.0));
    for _ in 0..ITERATIONS {
        basis = (matrix * basis).qr().q();
    }
    let SymmetricEigen { eigenvalues, eigenvectors } = SymmetricEigen::new(basis.transpose() * matrix * &basis);
    let mut order: Vec<usize> = (0..eigenvalues.len()).collect();
    order.sort_by(|&a, &b| eigenvalues[b].total_cmp(&eigenvalues[a]));
    order.into_iter().take(count).map(|i| (eigenvalues[i], &basis * eigenvectors.column(i))).collect()
}

/// Cosines from the products of centred vectors `[n, n]`. A vector of no length is like those of no length.
fn cosines(products: &DMatrix<f64>) -> DMatrix<f64> {
    let scale = products.diagonal().max().max(f64::MIN_POSITIVE);
    let lengths: Vec<f64> = products.diagonal().iter().map(|square| square.max(1e-9 * scale).sqrt()).collect();
    let nothing = |i: usize| products[(i, i)] <= 1e-9 * scale;
    DMatrix::from_fn(products.nrows(), products.ncols(), |i, j| {
        if nothing(i) && nothing(j) { 1.0 } else { products[(i, j)] / lengths[i] / lengths[j] }
    })
}

/// Average linkage: joins the two most similar groups until none are more similar than [`ALIKE`]; none gets larger than `largest`.
/// The number of the group of each image, any numbers.
fn linked(mut similarity: DMatrix<f64>, largest: usize) -> Vec<usize> {
    const NEVER: f64 = -9.0;
    let n = similarity.nrows();
    similarity.fill_diagonal(NEVER);
    let (mut group, mut size) = ((0..n).collect::<Vec<usize>>(), vec![1usize; n]);
    // The most similar group of each, so that a step looks at n numbers and not at all.
    let nearest = |similarity: &DMatrix<f64>, i: usize| similarity.column(i).argmax();
    let mut best: Vec<(usize, f64)> = (0..n).map(|i| nearest(&similarity, i)).collect();
    while let Some(i) = (0..n).max_by(|&a, &b| best[a].1.total_cmp(&best[b].1).then(b.cmp(&a))) {
        let (j, value) = best[i];
        if value < ALIKE {
            break;
        }
        let (a, b) = (i.min(j), i.max(j));
        if size[a] + size[b] > largest {
            (similarity[(a, b)], similarity[(b, a)]) = (NEVER, NEVER);
        } else {
            let (wa, wb) = (size[a] as f64, size[b] as f64);
            for k in 0..n {
                let (x, y) = (similarity[(k, a)], similarity[(k, b)]);
                let joined = if x == NEVER || y == NEVER { NEVER } else { (wa * x + wb * y) / (wa + wb) };
                (similarity[(k, a)], similarity[(a, k)]) = (joined, joined);
                (similarity[(k, b)], similarity[(b, k)]) = (NEVER, NEVER);
            }
            size[a] += size[b];
            group.iter_mut().filter(|group| **group == b).for_each(|group| *group = a);
        }
        for (k, best) in best.iter_mut().enumerate() {
            if k == a || k == b || best.0 == a || best.0 == b {
                *best = nearest(&similarity, k);
            }
        }
    }
    group
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn folder(names: &[&str]) -> (tempfile::TempDir, Vec<PathBuf>) {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &&str| {
            let path = folder.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(&path, name).unwrap();
            path
        };
        let paths = names.iter().map(write).collect();
        (folder, paths)
    }

    fn by(text: &str) -> GroupBy {
        text.parse().unwrap()
    }

    #[test]
    fn an_option_groups_by_folder_or_name() {
        let names = ["train/good/a/1.png", "train/good/a/2.png", "train/good/b/k7_1.png", "train/good/b/k7_2.png"];
        let (folder, paths) = folder(&names);
        let groups = |text: &str| stated(Some(&by(text)), true, folder.path(), &paths);
        assert_eq!(groups("folder").unwrap().unwrap().of, [0, 0, 1, 1]);
        let named = groups(r"^(k\d+)_").unwrap().unwrap();
        assert_eq!((named.of, named.unnamed, named.source), (vec![0, 1, 2, 2], 2, GroupSource::Option));
        let all = groups("(png)").unwrap_err().to_string();
        assert!(all.contains("--group-by puts all 4 images into one group"), "{all}");
        // Test images are not divided: they may be of one part.
        let tests = stated_of_tests(Some(&by("(png)")), true, folder.path(), &paths);
        assert_eq!(tests.unwrap().unwrap().count(), 1);
        for (text, expected) in [("kos", "captures 0 things"), ("(a)(b)", "captures 2"), ("(a", "unclosed group")] {
            let error = text.parse::<GroupBy>().unwrap_err().to_string();
            assert!(error.contains(expected) && error.contains(text) && !error.contains('\n'), "{error}");
        }
    }

    #[test]
    fn a_file_groups_by_path_and_its_mistakes_are_named() {
        let (folder, paths) = folder(&["train/good/1.png", "train/good/2.png", "train/good/3.png", "test/good/1.png"]);
        let file = folder.path().join(GROUPS_FILE);
        let read = |text: &str| {
            std::fs::write(&file, text).unwrap();
            stated(None, true, folder.path(), &paths[..3])
        };
        let text = "path,group\ntrain/good/1.png,A\n\"train/good/3.png\",A\ntest/good/1.png,B\n";
        let groups = read(text).unwrap().unwrap();
        assert_eq!((groups.of.as_slice(), groups.unnamed, groups.source), ([0, 1, 0].as_slice(), 1, GroupSource::File));
        assert_eq!(stated(None, false, folder.path(), &paths).unwrap(), None, "the file is not wanted");
        for (text, expected) in [
            ("path,group\ntrain/good/9.png,A\n", "line 2: train/good/9.png is no file"),
            ("image,part\n", "line 1: the columns are \"image,part\", expected path,group"),
            ("path,group\ntrain/good/1.png\n", "line 2"),
            ("path,group\ntrain/good/1.png,\n", "line 2: train/good/1.png has no group"),
            ("path,group\ntrain/good/1.png,A\ntrain/good/1.png,B\n", "is in group \"A\" and in \"B\""),
            ("path,group\ntrain/good/1.png,A\ntrain/good/2.png,A\ntrain/good/3.png,A\n", "all 3 images into one"),
        ] {
            let error = read(text).unwrap_err().to_string();
            assert!(error.contains(expected) && error.contains(&*folder.path().to_string_lossy()), "{error}");
        }
        std::fs::remove_file(&file).unwrap();
        assert_eq!(stated(None, true, folder.path(), &paths).unwrap(), None);
    }

    /// `parts` of `each` pictures that differ by noise, beside a pose that parts share.
    fn pictures(parts: usize, each: usize, pose: f64, noise: f64) -> (Vec<f32>, Vec<u32>) {
        const DIM: usize = 200;
        let mut rng = ChaCha8Rng::seed_from_u64(5);
        // About a standard normal number.
        let mut normal = || (0..12).map(|_| rng.random_range(-0.5..0.5)).sum::<f64>();
        let mut random = |scale: f64| (0..DIM).map(|_| scale * normal()).collect::<Vec<f64>>();
        let poses: Vec<Vec<f64>> = (0..3).map(|_| random(pose)).collect();
        let (mut vectors, mut truth) = (Vec::new(), Vec::new());
        for part in 0..parts {
            let own = random(1.0);
            for _ in 0..each {
                let (other, lies) = (random(noise), &poses[part % 3]);
                vectors.extend(own.iter().zip(other).zip(lies).map(|((own, other), lies)| (own + other + lies) as f32));
                truth.push(part as u32);
            }
        }
        (vectors, truth)
    }

    #[test]
    fn pictures_of_one_part_are_found() {
        for (each, noise) in [(6, 0.8), (3, 0.5), (10, 0.05)] {
            let (vectors, truth) = pictures(80, each, 0.0, noise);
            assert_eq!(alike(&vectors, truth.len()).unwrap().of, truth, "{each} of each, noise {noise}");
        }
    }

    /// Parts that lie in one of three poses are alike by more than half: no groups.
    #[test]
    fn parts_that_lie_alike_are_parts() {
        let (vectors, truth) = pictures(120, 1, 2.0, 0.3);
        let found = alike(&vectors, truth.len()).unwrap();
        assert!(found.count() >= 115, "{found:?}");
        assert_eq!(found.clusters, Some(3), "which the user is told");
    }

    /// Few parts span few directions, which must not be taken for poses.
    #[test]
    fn pictures_of_few_parts_are_found() {
        for (parts, each, noise) in [(5, 10, 0.4), (10, 4, 0.3), (20, 10, 0.5), (20, 2, 0.4), (40, 3, 0.4)] {
            let (vectors, truth) = pictures(parts, each, 0.0, noise);
            assert_eq!(alike(&vectors, truth.len()).unwrap().of, truth, "{parts} parts, {each} of each");
        }
    }

    #[test]
    fn identical_pictures_are_one_part_however_few_or_many() {
        let (vectors, truth) = pictures(20, 10, 0.0, 0.0);
        assert_eq!(alike(&vectors, 200).unwrap().of, truth);
        assert_eq!(alike(&[1.0; 30], 10).unwrap().count(), 5, "never all of them");
        assert_eq!(alike(&[1.0, 2.0], 2).unwrap().count(), 2);
        assert!(alike(&[f32::NAN, 2.0], 2).is_err());
    }

    proptest! {
        /// Folds split no group, use every image, and are filled as evenly as the largest group lets them.
        #[test]
        fn folds_keep_groups_whole(groups in prop::collection::vec(0u32..30, 2..120), folds in 1usize..8) {
            let groups = Groups::named(GroupSource::File, groups.into_iter().map(Some));
            let keys: Vec<usize> = (0..groups.of.len()).collect();
            let dealt = groups.folds(folds, &keys);
            for images in groups.members() {
                prop_assert!(images.iter().all(|&image| dealt[image] == dealt[images[0]] && dealt[image] < folds));
            }
            let filled = |fold| dealt.iter().filter(|&&other| other == fold).count();
            let (most, least) = ((0..folds).map(filled).max().unwrap(), (0..folds).map(filled).min().unwrap());
            let largest = groups.members().iter().map(Vec::len).max().unwrap();
            prop_assert!(most - least <= largest);
        }
    }
}
