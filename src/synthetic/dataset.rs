//! A folder of drawn parts in the layout that [`Dataset::scan`](crate::data::Dataset::scan) reads.

use std::collections::HashSet;
use std::fs;
use std::path::{Path, PathBuf};

use image::codecs::png::PngEncoder;
use image::{ExtendedColorType, ImageEncoder};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::{Defect, DefectKind, Kind, SIZES, draw_part};
use crate::error::{Error, Result};

/// Says in a folder that it was drawn, so that it may be drawn again.
const MARKER: &str = ".diad-drawn.json";

/// What [`write_dataset`] draws.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DatasetSpec {
    /// Products; each becomes a category.
    pub kinds: Vec<Kind>,
    /// Good images to learn from, per product.
    pub train: usize,
    /// Good images to test with, per product.
    pub test_good: usize,
    /// Bad images to test with, per product, all kinds of defects in turn.
    pub test_defect: usize,
    /// Side of the images in pixels, 16..=4096.
    pub size: usize,
    /// Same seed, same images. A larger number of images leaves the others as they are.
    pub seed: u64,
}

#[derive(Serialize, Deserialize)]
struct Marker {
    tool: String,
    /// Everything that was written beside this file.
    folders: Vec<String>,
    seed: u64,
}

/// One image to be drawn.
struct Job {
    kind: Kind,
    seed: u64,
    defect: Option<Defect>,
    image: PathBuf,
    mask: Option<PathBuf>,
}

/// Draws a dataset into the folder `root`, several images at a time, and calls `progress` with the number of images
/// done and in all. The folder appears when everything is in it; until then it is built beside it.
///
/// # Errors
/// [`Error::Usage`] for a specification that cannot be drawn; [`Error::Data`] when `root` holds anything that this
/// function has not written (nothing is changed then); [`Error::Io`] when something cannot be written.
pub fn write_dataset(root: &Path, spec: &DatasetSpec, progress: &dyn Fn(usize, usize)) -> Result<()> {
    check(spec)?;
    let root = if root.exists() {
        may_replace(root)?;
        fs::canonicalize(root).map_err(|e| Error::io(root, "cannot find the folder", e))?
    } else {
        root.to_path_buf()
    };
    let parent = match root.parent() {
        Some(parent) if parent == Path::new("") => Path::new("."),
        Some(parent) => parent,
        None => return Err(Error::Usage(format!("{} cannot be replaced by a dataset", root.display()))),
    };
    fs::create_dir_all(parent).map_err(|e| Error::io(parent, "cannot create the folder", e))?;
    let workshop = tempfile::Builder::new()
        .prefix(".diad-draw-")
        .tempdir_in(parent)
        .map_err(|e| Error::io(parent, "cannot create a folder in it", e))?;
    // Below the temporary folder, which only its owner may enter.
    let fresh = workshop.path().join("new");
    let jobs = jobs(&fresh, spec);
    for folder in jobs.iter().flat_map(|j| [Some(&j.image), j.mask.as_ref()]).flatten().filter_map(|p| p.parent()) {
        fs::create_dir_all(folder).map_err(|e| Error::io(folder, "cannot create the folder", e))?;
    }
    progress(0, jobs.len());
    let mut done = 0;
    for some in jobs.chunks(4 * rayon::current_num_threads()) {
        some.par_iter().try_for_each(|job| draw(job, spec.size))?;
        done += some.len();
        progress(done, jobs.len());
    }
    let marker = Marker {
        tool: format!("diad {}", env!("CARGO_PKG_VERSION")),
        folders: spec.kinds.iter().map(|k| k.name().to_owned()).collect(),
        seed: spec.seed,
    };
    let marker = serde_json::to_vec_pretty(&marker).map_err(|e| Error::Internal(e.to_string()))?;
    write(&fresh.join(MARKER), &marker)?;

    let old = workshop.path().join("old");
    let replaced = root.exists();
    if replaced {
        fs::rename(&root, &old).map_err(|e| Error::io(&root, "cannot replace the folder", e))?;
    }
    fs::rename(&fresh, &root).map_err(|e| {
        if replaced {
            // Best effort: the error that is reported is the first one.
            let _ = fs::rename(&old, &root);
        }
        Error::io(&root, "cannot put the dataset in place", e)
    })
}

fn check(spec: &DatasetSpec) -> Result<()> {
    if spec.kinds.is_empty() || spec.train + spec.test_good + spec.test_defect == 0 {
        return Err(Error::Usage("a drawn dataset needs a product and an image at least".into()));
    }
    if spec.kinds.iter().collect::<HashSet<_>>().len() < spec.kinds.len() {
        return Err(Error::Usage("a drawn dataset can have each product only once".into()));
    }
    if !SIZES.contains(&spec.size) {
        let (least, most) = (SIZES.start(), SIZES.end());
        return Err(Error::Usage(format!("drawn images can be {least} to {most} pixels wide, not {}", spec.size)));
    }
    Ok(())
}

/// Refuses a folder with anything in it that this module has not put there.
fn may_replace(root: &Path) -> Result<()> {
    if !root.is_dir() {
        return Err(Error::data(root, "is a file; a folder for the drawn images was expected"));
    }
    let unreadable = |e| Error::io(root, "cannot list the folder", e);
    let mut names = Vec::new();
    for entry in fs::read_dir(root).map_err(unreadable)? {
        names.push(entry.map_err(unreadable)?.file_name());
    }
    let marker = fs::read(root.join(MARKER)).ok().and_then(|bytes| serde_json::from_slice::<Marker>(&bytes).ok());
    let drawn = marker.map(|m| m.folders).unwrap_or_default();
    match names.iter().find(|name| *name != MARKER && !drawn.iter().any(|d| *name == d.as_str())) {
        None => Ok(()),
        Some(name) => Err(Error::data(
            root,
            format!("holds {}, which was not drawn here; give another folder or an empty one", name.display()),
        )),
    }
}

fn jobs(root: &Path, spec: &DatasetSpec) -> Vec<Job> {
    let mut jobs = Vec::new();
    for &kind in &spec.kinds {
        let root = root.join(kind.name());
        let mut add = |role: u64, index: usize, folder: &Path, defect: Option<Defect>| {
            let mut rng = ChaCha8Rng::seed_from_u64(spec.seed);
            rng.set_stream((kind as u64) << 40 | role << 32 | index as u64);
            let number = match defect {
                Some(_) => index / DefectKind::ALL.len(),
                None => index,
            };
            jobs.push(Job {
                kind,
                seed: rng.next_u64(),
                defect,
                image: root.join(folder).join(format!("{number:03}.png")),
                mask: defect
                    .map(|d| root.join("ground_truth").join(d.kind.name()).join(format!("{number:03}_mask.png"))),
            });
        };
        (0..spec.train).for_each(|i| add(0, i, Path::new("train/good"), None));
        (0..spec.test_good).for_each(|i| add(1, i, Path::new("test/good"), None));
        for i in 0..spec.test_defect {
            let kind = DefectKind::ALL[i % DefectKind::ALL.len()];
            // Multiples of the golden ratio fill 0..1 evenly, however many there are.
            let strength = (0.5 + i as f64 * 0.618_033_988_749_895).fract() as f32;
            add(2, i, &Path::new("test").join(kind.name()), Some(Defect { kind, strength }));
        }
    }
    jobs
}

fn draw(job: &Job, size: usize) -> Result<()> {
    let drawing = draw_part(job.kind, job.seed, size, job.defect);
    write_png(&job.image, drawing.frame.rgb(), size, ExtendedColorType::Rgb8)?;
    if let Some(path) = &job.mask {
        let mask: Vec<u8> = drawing.mask.iter().map(|&m| if m { 255 } else { 0 }).collect();
        write_png(path, &mask, size, ExtendedColorType::L8)?;
    }
    Ok(())
}

fn write_png(path: &Path, pixels: &[u8], size: usize, colour: ExtendedColorType) -> Result<()> {
    let mut bytes = Vec::new();
    PngEncoder::new(&mut bytes)
        .write_image(pixels, size as u32, size as u32, colour)
        .map_err(|e| Error::Internal(format!("{}: {e}", path.display())))?;
    write(path, &bytes)
}

fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    fs::write(path, bytes).map_err(|e| Error::io(path, "cannot write", e))
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::*;
    use crate::data::{Dataset, Label};
    use crate::frame::{read_frame, read_mask};

    fn spec() -> DatasetSpec {
        DatasetSpec {
            kinds: vec![Kind::Washer, Kind::Blister],
            train: 3,
            test_good: 2,
            test_defect: 8,
            size: 64,
            seed: 5,
        }
    }

    fn names(folder: &Path) -> Vec<String> {
        let mut names: Vec<String> =
            fs::read_dir(folder).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn a_drawn_dataset_is_found_by_the_scan_with_all_its_masks() {
        let home = tempfile::tempdir().unwrap();
        let root = home.path().join("new/data");
        let calls = RefCell::new(Vec::new());
        write_dataset(&root, &spec(), &|done, all| calls.borrow_mut().push((done, all))).unwrap();
        let calls = calls.into_inner();
        assert_eq!((calls[0], *calls.last().unwrap()), ((0, 26), (26, 26)));
        assert!(calls.is_sorted());
        assert_eq!(names(&home.path().join("new")), ["data"], "nothing is left beside it");

        let data = Dataset::scan(&root, &[]).unwrap();
        let classes: Vec<&str> = data.categories.iter().map(|c| c.name.as_str()).collect();
        assert_eq!(classes, ["blister", "washer"]);
        for category in &data.categories {
            assert_eq!(category.train.len(), 3);
            assert_eq!(category.test.iter().filter(|s| s.label == Label::Good).count(), 2);
            let bad: Vec<_> = category.test.iter().filter(|s| s.label.is_defect()).collect();
            assert_eq!(bad.len(), 8, "each kind once and the first once more");
            for sample in bad {
                let frame = read_frame(&sample.path).unwrap();
                assert_eq!((frame.width(), frame.height()), (64, 64));
                let mask = read_mask(sample.mask.as_ref().unwrap(), 64, 64).unwrap();
                assert!(mask.contains(&true) && mask.contains(&false), "{}", sample.path.display());
            }
        }
    }

    #[test]
    fn the_same_specification_gives_the_same_files_and_a_larger_one_keeps_them() {
        let home = tempfile::tempdir().unwrap();
        let (a, b) = (home.path().join("a"), home.path().join("b"));
        write_dataset(&a, &spec(), &|_, _| {}).unwrap();
        let larger = DatasetSpec { train: 4, test_defect: 20, kinds: vec![Kind::Blister, Kind::Washer], ..spec() };
        write_dataset(&b, &larger, &|_, _| {}).unwrap();
        for file in ["washer/train/good/002.png", "blister/test/good/001.png", "blister/test/scratch/001.png"] {
            assert_eq!(fs::read(a.join(file)).unwrap(), fs::read(b.join(file)).unwrap(), "{file}");
        }
        let images: HashSet<Vec<u8>> =
            ["washer/train/good/000.png", "washer/train/good/001.png", "washer/test/good/000.png"]
                .map(|file| fs::read(a.join(file)).unwrap())
                .into();
        assert_eq!(images.len(), 3, "no image is drawn twice");
    }

    #[test]
    fn a_folder_with_anything_else_in_it_is_left_alone() {
        let home = tempfile::tempdir().unwrap();
        let root = home.path().join("data");
        fs::create_dir(&root).unwrap();
        fs::write(root.join("holiday.png"), b"mine").unwrap();
        let error = write_dataset(&root, &spec(), &|_, _| panic!("nothing is drawn")).unwrap_err();
        assert_eq!(error.exit_code(), 2);
        assert!(error.to_string().contains("data: holds holiday.png, which was not drawn here"), "{error}");
        assert_eq!((names(&root), names(home.path())), (vec!["holiday.png".to_owned()], vec!["data".to_owned()]));

        fs::remove_file(root.join("holiday.png")).unwrap();
        write_dataset(&root, &spec(), &|_, _| {}).unwrap();
        let one = DatasetSpec { kinds: vec![Kind::Blister], ..spec() };
        write_dataset(&root, &one, &|_, _| {}).unwrap();
        assert_eq!(names(&root), [MARKER, "blister"], "its own folder is replaced");
        fs::write(root.join("notes.txt"), b"mine").unwrap();
        let error = write_dataset(&root, &one, &|_, _| {}).unwrap_err();
        assert!(error.to_string().contains("holds notes.txt"), "{error}");
        assert_eq!(names(&root), [MARKER, "blister", "notes.txt"]);
        assert_eq!(names(home.path()), ["data"]);
    }

    #[test]
    fn impossible_specifications_and_places_are_refused() {
        let home = tempfile::tempdir().unwrap();
        let root = home.path().join("data");
        for (spec, part) in [
            (DatasetSpec { kinds: vec![], ..spec() }, "needs a product"),
            (DatasetSpec { train: 0, test_good: 0, test_defect: 0, ..spec() }, "an image at least"),
            (DatasetSpec { kinds: vec![Kind::Board; 2], ..spec() }, "only once"),
            (DatasetSpec { size: 8, ..spec() }, "16 to 4096 pixels wide, not 8"),
        ] {
            let error = write_dataset(&root, &spec, &|_, _| {}).unwrap_err();
            assert!(matches!(error, Error::Usage(_)) && error.to_string().contains(part), "{error}");
        }
        let file = home.path().join("file");
        fs::write(&file, b"").unwrap();
        assert!(write_dataset(&file, &spec(), &|_, _| {}).unwrap_err().to_string().contains("is a file"));
        assert!(matches!(write_dataset(&file.join("data"), &spec(), &|_, _| {}), Err(Error::Io { .. })));
        assert_eq!(names(home.path()), ["file"]);
    }
}
