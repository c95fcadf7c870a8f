//! Finds categories, images and masks in a folder. Goes by names only; opens no image.

use std::collections::{BTreeMap, HashSet};
use std::fs;
use std::path::{Path, PathBuf};

use super::groups::GROUPS_FILE;
use super::{Category, Dataset, IMAGE_EXTENSIONS, Ignored, Label, Sample, UNREAD_EXTENSIONS};
use crate::error::{Error, Result};
use crate::text::closest;

/// Folder of good images in `train` and `test`.
pub(super) const GOOD: &str = "good";

/// See [`Dataset::scan`].
pub(super) fn scan(root: &Path, classes: &[String]) -> Result<Dataset> {
    let listing = Listing::of(root)?;
    let is_category = |folder: &Path| folder.join("train").join(GOOD).is_dir();
    let mut ignored = Ignored::default();

    let mut found: Vec<(String, PathBuf)> = Vec::new();
    let flat = if is_category(root) {
        found.push((folder_name(root)?, root.to_path_buf()));
        false
    } else {
        for folder in listing.folders.iter().filter(|f| is_category(f)) {
            found.push((folder_name(folder)?, folder.clone()));
        }
        found.is_empty()
    };
    if flat {
        if listing.images.is_empty() {
            return Err(Error::data(root, nothing_here(root, &listing)));
        }
        found.push((folder_name(root)?, root.to_path_buf()));
    } else if !is_category(root) {
        ignored += listing.ignored.clone();
        ignored.unplaced_images += listing.images.len();
        ignored.other_folders += listing.folders.len() - found.len();
    }
    choose(&mut found, classes)?;

    let mut categories = Vec::with_capacity(found.len());
    for (name, folder) in found {
        let category = if flat {
            ignored += listing.ignored.clone();
            ignored.sub_folders += listing.folders.len();
            Category { name, root: folder, train: listing.images.clone(), test: Vec::new() }
        } else {
            category(name, folder, &mut ignored)?
        };
        if category.root.join(GROUPS_FILE).is_file() {
            ignored.other_files -= 1; // it is read for the parts that the images show
        }
        categories.push(category);
    }
    categories.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(Dataset { root: root.to_path_buf(), categories, ignored })
}

/// The images directly in `folder`, sorted, and what else lies there; or the one image that `folder` is.
///
/// # Errors
/// [`Error::Data`] when there is nothing of this name, [`Error::Io`] when the folder cannot be listed.
pub fn images_in(folder: &Path) -> Result<(Vec<PathBuf>, Ignored)> {
    if folder.is_file() {
        return Ok((vec![folder.to_path_buf()], Ignored::default()));
    }
    let mut listing = Listing::of(folder)?;
    listing.ignored.sub_folders += listing.folders.len();
    Ok((listing.images, listing.ignored))
}

/// The images of known defects below `root`, by class. A folder of the class's name in `root` is that class's; where there is one
/// class, `root` itself may be. It holds images, or folders of images (`good` and `ground_truth` are passed over), or has the
/// layout of a category, of which `test` is taken. Masks are looked for in `ground_truth`.
///
/// # Errors
/// [`Error::Data`] when there is nothing of the kind.
pub fn known_defects(root: &Path, classes: &[&str]) -> Result<(Vec<Vec<Sample>>, Ignored)> {
    let listing = Listing::of(root)?;
    let mut ignored = Ignored::default();
    let folder = |class: &str| listing.folders.iter().find(|f| f.file_name().is_some_and(|name| name == class));
    let mut of = |folder: &Path| -> Result<Vec<Sample>> {
        let (samples, passed_over) = defects_in(folder)?;
        ignored += passed_over;
        Ok(samples)
    };
    let found = match classes {
        [class] if folder(class).is_none() => vec![of(root)?],
        classes => {
            classes.iter().map(|class| folder(class).map_or(Ok(Vec::new()), |f| of(f))).collect::<Result<_>>()?
        }
    };
    if found.iter().all(Vec::is_empty) {
        let names = some_of(classes);
        let expected = format!("expected images of defects in a folder for each product ({names}) or kind of defect");
        return Err(Error::data(root, format!("{expected}; found: {}", listing.summary())));
    }
    Ok((found, ignored))
}

/// Those of one class.
fn defects_in(folder: &Path) -> Result<(Vec<Sample>, Ignored)> {
    let listing = Listing::of(folder)?;
    let mut ignored = listing.ignored.clone();
    let test = folder.join("test");
    let mut samples = if test.is_dir() {
        test_samples(folder, &test, &mut ignored)?
    } else if listing.images.is_empty() {
        test_samples(folder, folder, &mut ignored)?
    } else {
        let mut masks = Masks::of(&folder.join("ground_truth"))?;
        let sample = |path: PathBuf| {
            let mask = path.file_name().and_then(|name| masks.take(Path::new(name)));
            Sample { path, label: Label::Defect("defect".into()), mask }
        };
        let samples = listing.images.into_iter().map(sample).collect();
        ignored.unused_masks += masks.by_stem.len();
        samples
    };
    samples.retain(|sample| sample.label.is_defect() && !["train", "ground_truth"].contains(&sample.label.name()));
    Ok((samples, ignored))
}

/// Keeps the chosen categories; a name that does not exist is an error.
fn choose(found: &mut Vec<(String, PathBuf)>, classes: &[String]) -> Result<()> {
    let names: Vec<&str> = found.iter().map(|(name, _)| name.as_str()).collect();
    if let Some(unknown) = classes.iter().find(|c| !names.contains(&c.as_str())) {
        let hint =
            closest(unknown, names.iter().copied()).map(|n| format!("; did you mean {n:?}?")).unwrap_or_default();
        return Err(Error::Usage(format!("no class {unknown:?} in the data; there is {}{hint}", some_of(&names))));
    }
    found.retain(|(name, _)| classes.is_empty() || classes.contains(name));
    Ok(())
}

/// One category in MVTec layout.
fn category(name: String, root: PathBuf, ignored: &mut Ignored) -> Result<Category> {
    let good = root.join("train").join(GOOD);
    let (train, passed_over) = images_below(&good)?;
    *ignored += passed_over;
    if train.is_empty() {
        let found = Listing::of(&good)?;
        return Err(Error::data(&good, format!("expected images ({}); found: {}", extensions(), found.summary())));
    }
    for (folder, used) in [(&root, &["train", "test", "ground_truth"][..]), (&root.join("train"), &[GOOD][..])] {
        let listing = Listing::of(folder)?;
        *ignored += listing.ignored;
        ignored.unplaced_images += listing.images.len();
        for other in &listing.folders {
            let name = other.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let images = if used.contains(&name.as_str()) { 0 } else { images_below(other)?.0.len() };
            if images > 0 {
                *ignored.unused_folders.entry(name).or_default() += images;
            }
        }
    }
    let test = root.join("test");
    let test = if test.is_dir() { test_samples(&root, &test, ignored)? } else { Vec::new() };
    Ok(Category { name, root, train, test })
}

fn test_samples(root: &Path, test: &Path, ignored: &mut Ignored) -> Result<Vec<Sample>> {
    let listing = Listing::of(test)?;
    *ignored += listing.ignored;
    ignored.unplaced_images += listing.images.len();
    let mut samples = Vec::new();
    for folder in &listing.folders {
        let (images, passed_over) = images_below(folder)?;
        *ignored += passed_over;
        let name = folder.file_name().unwrap_or_default();
        if name == GOOD {
            samples.extend(images.into_iter().map(|path| Sample { path, label: Label::Good, mask: None }));
            continue;
        }
        let mut masks = Masks::of(&root.join("ground_truth").join(name))?;
        let label = Label::Defect(name.to_string_lossy().into_owned());
        for path in images {
            let mask = path.strip_prefix(folder).ok().and_then(|image| masks.take(image));
            samples.push(Sample { path, label: label.clone(), mask });
        }
        ignored.unused_masks += masks.by_stem.len();
    }
    Ok(samples)
}

/// The masks of one kind of defect by their path without extension, relative to the folder.
struct Masks {
    by_stem: BTreeMap<PathBuf, PathBuf>,
}

impl Masks {
    fn of(folder: &Path) -> Result<Self> {
        let mut by_stem = BTreeMap::new();
        if folder.is_dir() {
            for mask in images_below(folder)?.0 {
                let stem = mask.strip_prefix(folder).unwrap_or(&mask).with_extension("");
                by_stem.entry(stem).or_insert(mask);
            }
        }
        Ok(Self { by_stem })
    }

    /// The mask of an image (relative path): `<stem>_mask`, or else `<stem>`.
    fn take(&mut self, image: &Path) -> Option<PathBuf> {
        let plain = image.with_extension("");
        let mut named = plain.clone().into_os_string();
        named.push("_mask");
        self.by_stem.remove(Path::new(&named)).or_else(|| self.by_stem.remove(&plain))
    }
}

/// What lies directly in a folder, each sorted.
#[derive(Default)]
struct Listing {
    folders: Vec<PathBuf>,
    images: Vec<PathBuf>,
    /// `hidden`, `other_files` and `unread_formats` only.
    ignored: Ignored,
    /// Names of the other files, for messages.
    others: Vec<String>,
}

impl Listing {
    fn of(folder: &Path) -> Result<Self> {
        let expected = "expected a folder of images";
        match fs::metadata(folder) {
            Ok(meta) if !meta.is_dir() => return Err(Error::data(folder, format!("is a file; {expected}"))),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                return Err(Error::data(folder, format!("does not exist; {expected}")));
            }
            _ => {}
        }
        let unreadable = |e| Error::io(folder, "cannot list the folder", e);
        let mut listing = Self::default();
        for entry in fs::read_dir(folder).map_err(unreadable)? {
            let path = entry.map_err(unreadable)?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            if name.starts_with('.') {
                listing.ignored.hidden += 1;
            } else if path.is_dir() {
                listing.folders.push(path);
            } else if extension(&path, &IMAGE_EXTENSIONS).is_some() {
                // A dangling link stays in: reading it names the file, leaving it out would hide it.
                listing.images.push(path);
            } else {
                match extension(&path, &UNREAD_EXTENSIONS) {
                    Some(format) => *listing.ignored.unread_formats.entry(format).or_default() += 1,
                    None => listing.ignored.other_files += 1,
                }
                listing.others.push(name);
            }
        }
        listing.folders.sort();
        listing.images.sort();
        listing.others.sort();
        Ok(listing)
    }

    /// The names, folders first, cut short.
    fn summary(&self) -> String {
        let name = |p: &PathBuf| p.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let folders = self.folders.iter().map(|p| name(p) + "/");
        let names: Vec<String> =
            folders.chain(self.images.iter().map(name)).chain(self.others.iter().cloned()).collect();
        match (names.len(), self.ignored.hidden) {
            (0, 0) => "nothing".into(),
            (0, hidden) => format!("nothing but {hidden} hidden"),
            _ => some_of(&names),
        }
    }
}

/// All images below `folder`, sorted. Links are followed, but each real folder is read once, so that a link to a
/// folder above itself ends the walk instead of circling.
fn images_below(folder: &Path) -> Result<(Vec<PathBuf>, Ignored)> {
    let (mut images, mut ignored) = (Vec::new(), Ignored::default());
    let mut seen = HashSet::new();
    let mut open = vec![folder.to_path_buf()];
    while let Some(folder) = open.pop() {
        let real = fs::canonicalize(&folder).map_err(|e| Error::io(&folder, "cannot list the folder", e))?;
        if !seen.insert(real) {
            continue;
        }
        let listing = Listing::of(&folder)?;
        images.extend(listing.images);
        ignored += listing.ignored;
        open.extend(listing.folders.into_iter().rev());
    }
    images.sort();
    Ok((images, ignored))
}

/// The extension of a file name, if it is one of `known`, in any case.
fn extension(path: &Path, known: &[&'static str]) -> Option<&'static str> {
    let extension = path.extension()?.to_str()?;
    known.iter().copied().find(|known| extension.eq_ignore_ascii_case(known))
}

fn extensions() -> String {
    IMAGE_EXTENSIONS.map(|e| format!(".{e}")).join(" ")
}

/// The folder's own name, also for `.` and `..`.
fn folder_name(folder: &Path) -> Result<String> {
    let real = fs::canonicalize(folder).map_err(|e| Error::io(folder, "cannot find the folder", e))?;
    // A link is named as the user named it, a path that ends in dots as what it leads to.
    let name = folder.file_name().or_else(|| real.file_name());
    let name = name.ok_or_else(|| Error::data(folder, "has no name of its own that could become the class name"))?;
    name.to_str()
        .map(str::to_owned)
        .ok_or_else(|| Error::data(folder, "the folder name becomes the class name and must be valid UTF-8"))
}

/// What was looked for and what was found instead.
fn nothing_here(root: &Path, listing: &Listing) -> String {
    let mut text = format!(
        "expected train/good/*.png (a category), folders that hold train/good (several categories), \
         or images directly in it (good parts); found: {}",
        listing.summary()
    );
    let inside_train = root.file_name().is_some_and(|n| n == "train") && root.join(GOOD).is_dir();
    if let (true, Some(above)) = (inside_train, root.parent().filter(|p| *p != Path::new(""))) {
        text += &format!("; did you mean {}?", above.display());
    }
    text
}

/// The first names of a list and how many more there are.
fn some_of(names: &[impl AsRef<str>]) -> String {
    const SHOWN: usize = 8;
    let shown: Vec<&str> = names.iter().take(SHOWN).map(AsRef::as_ref).collect();
    let more = names.len().saturating_sub(SHOWN);
    if more == 0 { shown.join(", ") } else { format!("{} and {more} more", shown.join(", ")) }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::super::{MIN_TRAIN, check_trainable};
    use super::*;

    /// A folder with empty files of these names: a scan opens none of them.
    fn tree(files: &[&str]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for file in files {
            let path = root.path().join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, b"").unwrap();
        }
        root
    }

    fn relative(root: &Path, paths: &[PathBuf]) -> Vec<String> {
        paths.iter().map(|p| p.strip_prefix(root).unwrap().to_str().unwrap().to_owned()).collect()
    }

    #[track_caller]
    fn refusal(root: &Path, classes: &[&str]) -> String {
        let error = Dataset::scan(root, &classes.iter().map(|c| c.to_string()).collect::<Vec<_>>()).unwrap_err();
        assert_eq!(error.exit_code(), 2, "{error}");
        error.to_string()
    }

    #[test]
    fn a_folder_of_categories_is_read_in_full() {
        let root = tree(&[
            "nut/train/good/b.PNG",
            "nut/train/good/a.png",
            "nut/train/good/.a.png.swp",
            "nut/train/good/notes.txt",
            "bolt/train/good/x.jpeg",
            "bolt/test/good/1.tif",
            "bolt/test/bent/1.png",
            "bolt/test/bent/2.png",
            "bolt/test/bent/3.png",
            "bolt/test/loose.png",
            "bolt/train/loose.png",
            "bolt/licence.txt",
            "bolt/validation/good/1.png",
            "bolt/validation/good/2.png",
            "bolt/train/odd/1.png",
            "bolt/.cache/1.png",
            "bolt/ground_truth/bent/1_mask.png",
            "bolt/ground_truth/bent/2.bmp",
            "bolt/ground_truth/bent/9_mask.png",
            "papers/readme.md",
        ]);
        let data = Dataset::scan(root.path(), &[]).unwrap();
        let names: Vec<&str> = data.categories.iter().map(|c| c.name.as_str()).collect();
        assert_eq!(names, ["bolt", "nut"]);
        let nut = &data.categories[1];
        assert_eq!(relative(&nut.root, &nut.train), ["train/good/a.png", "train/good/b.PNG"]);
        assert!(nut.test.is_empty());

        let bolt = &data.categories[0];
        let got: Vec<(String, &str, Option<String>)> = bolt
            .test
            .iter()
            .map(|s| {
                let mask = s.mask.as_ref().map(|m| relative(&bolt.root, std::slice::from_ref(m)).remove(0));
                (relative(&bolt.root, std::slice::from_ref(&s.path)).remove(0), s.label.name(), mask)
            })
            .collect();
        let expected = [
            ("test/bent/1.png", "bent", Some("ground_truth/bent/1_mask.png")),
            ("test/bent/2.png", "bent", Some("ground_truth/bent/2.bmp")),
            ("test/bent/3.png", "bent", None),
            ("test/good/1.tif", "good", None),
        ];
        assert_eq!(got, expected.map(|(path, label, mask)| (path.to_owned(), label, mask.map(str::to_owned))));
        assert!(bolt.test[0].label.is_defect() && !bolt.test[3].label.is_defect());
        let ignored = Ignored {
            hidden: 2,
            other_files: 2,
            unplaced_images: 2,
            unused_folders: [("validation".to_owned(), 2), ("odd".to_owned(), 1)].into(),
            other_folders: 1,
            unused_masks: 1,
            ..Ignored::default()
        };
        assert_eq!(data.ignored, ignored);
        assert_eq!(
            data.ignored.to_string(),
            "2 hidden files, 2 files that are not images, 2 images outside of any labelled folder, \
             3 images in a folder that is not used (odd, validation), 1 folder without train/good, 1 mask without an image"
        );
    }

    #[test]
    fn known_defects_are_found_in_every_layout() {
        let root = tree(&[
            "dataset/nut/train/good/1.png",
            "dataset/nut/test/good/1.png",
            "dataset/nut/test/bent/1.png",
            "dataset/nut/ground_truth/bent/1_mask.png",
            "dataset/cap/test/cut/1.png",
            "kinds/bent/1.png",
            "kinds/cut/2.png",
            "kinds/good/3.png",
            "kinds/ground_truth/cut/2.png",
            "flat/1.png",
            "flat/2.png",
            "flat/ground_truth/2_mask.png",
            "products/nut/1.png",
            "empty/good/1.png",
        ]);
        let found = |folder: &str, classes: &[&str]| {
            let (found, _) = known_defects(&root.path().join(folder), classes).unwrap();
            let sample =
                |s: &Sample| (relative(root.path(), std::slice::from_ref(&s.path)).remove(0), s.mask.is_some());
            found.iter().map(|class| class.iter().map(sample).collect()).collect::<Vec<Vec<_>>>()
        };
        let all = |expected: &[(&str, bool)]| expected.iter().map(|(p, m)| ((*p).to_owned(), *m)).collect::<Vec<_>>();
        let nut = all(&[("dataset/nut/test/bent/1.png", true)]);
        assert_eq!(found("dataset", &["nut", "bolt"]), [nut.clone(), all(&[])]);
        assert_eq!(found("dataset/nut", &["nut"]), [nut]);
        assert_eq!(found("dataset/nut/test", &["nut"]), [all(&[("dataset/nut/test/bent/1.png", false)])]);
        assert_eq!(found("kinds", &["any"]), [all(&[("kinds/bent/1.png", false), ("kinds/cut/2.png", true)])]);
        assert_eq!(found("flat", &["any"]), [all(&[("flat/1.png", false), ("flat/2.png", true)])]);
        assert_eq!(found("products", &["nut"]), [all(&[("products/nut/1.png", false)])]);
        for (folder, classes) in [("empty", &["nut"][..]), ("products", &["cap", "bolt"]), ("nowhere", &["nut"])] {
            let error = known_defects(&root.path().join(folder), classes).unwrap_err().to_string();
            assert!(error.contains(folder) && error.contains("expected"), "{error}");
        }
    }

    #[test]
    fn one_category_and_a_flat_folder_take_the_name_of_the_folder() {
        let root = tree(&[
            "cap/train/good/1.png",
            "cap/groups.csv",
            "caps/1.png",
            "caps/2.webp",
            "caps/list.csv",
            "caps/groups.csv",
            "caps/.DS_Store",
        ]);
        let one = Dataset::scan(&root.path().join("cap"), &[]).unwrap();
        assert_eq!((one.categories.len(), one.categories[0].name.as_str()), (1, "cap"));
        assert!(one.ignored.is_empty(), "groups.csv is not passed over: {:?}", one.ignored);
        let flat = Dataset::scan(&root.path().join("caps/../caps/."), &["caps".into()]).unwrap();
        assert_eq!((flat.categories[0].name.as_str(), flat.categories[0].train.len()), ("caps", 2));
        assert!(flat.categories[0].test.is_empty());
        assert_eq!(flat.ignored, Ignored { hidden: 1, other_files: 1, ..Ignored::default() });
    }

    #[test]
    fn images_in_a_format_that_is_not_read_are_told_from_other_files() {
        let root = tree(&["cap/1.png", "cap/2.HEIC", "cap/3.heic", "cap/4.avif", "cap/notes.txt"]);
        let ignored = Dataset::scan(&root.path().join("cap"), &[]).unwrap().ignored;
        assert_eq!(
            ignored.to_string(),
            "3 images in a format that is not read (.avif, .heic), 1 file that is not an image"
        );
        let one = images_in(&tree(&["1.gif"]).path().join(".")).unwrap().1;
        assert_eq!(one.to_string(), "1 image in a format that is not read (.gif)");
    }

    #[test]
    fn chosen_classes_only_and_unknown_ones_are_named_with_a_hint() {
        let root = tree(&["bottle/train/good/1.png", "screw/train/good/1.png", "tile/train/good/no.txt"]);
        let chosen = Dataset::scan(root.path(), &["screw".into()]).unwrap();
        assert_eq!(chosen.categories.len(), 1, "a class that is not chosen may be unusable");
        assert_eq!(chosen.categories[0].name, "screw");
        let text = refusal(root.path(), &["Botle"]);
        assert!(text.contains("\"Botle\"") && text.contains("bottle, screw, tile"), "{text}");
        assert!(text.ends_with("did you mean \"bottle\"?"), "{text}");
        assert!(!refusal(root.path(), &["zipper"]).contains("did you mean"));
    }

    #[test]
    fn a_folder_without_images_says_what_was_looked_for_and_found() {
        let root = tree(&["photos/red/1.png", "photos/notes.txt", "photos/.hidden", "empty/x/y"]);
        let text = refusal(&root.path().join("photos"), &[]);
        for part in ["photos: expected train/good/*.png", "images directly in it", "found: red/, notes.txt"] {
            assert!(text.contains(part), "{part:?} in {text}");
        }
        assert!(refusal(&root.path().join("empty/x"), &[]).contains("found: y"));
        assert!(refusal(&root.path().join("none"), &[]).ends_with("none: does not exist; expected a folder of images"));
        assert!(refusal(&root.path().join("photos/notes.txt"), &[]).contains("is a file"));
        let many: Vec<String> = (0..12).map(|i| format!("{i:02}.txt")).collect();
        let many = tree(&many.iter().map(String::as_str).collect::<Vec<_>>());
        assert!(refusal(many.path(), &[]).ends_with("06.txt, 07.txt and 4 more"));
    }

    #[test]
    fn a_category_without_good_images_and_a_folder_too_deep_are_refused() {
        let root = tree(&["cap/train/good/notes.txt", "nut/train/good/1.png"]);
        let text = refusal(&root.path().join("cap"), &[]);
        assert!(text.contains("cap/train/good: expected images (.png") && text.ends_with("found: notes.txt"), "{text}");
        let text = refusal(&root.path().join("nut/train"), &[]);
        assert!(text.contains("found: good/; did you mean") && text.ends_with("nut?"), "{text}");
    }

    #[test]
    fn links_are_followed_but_not_in_circles() {
        let root = tree(&["store/1.png", "store/2.png", "cap/train/good/deep/3.png"]);
        let good = root.path().join("cap/train/good");
        symlink(root.path().join("store"), good.join("link")).unwrap();
        symlink(&good, good.join("deep/up")).unwrap();
        symlink(good.join("self.png"), good.join("self.png")).unwrap();
        symlink(root.path().join("cap"), root.path().join("alias")).unwrap();
        let data = Dataset::scan(root.path(), &["alias".into()]).unwrap();
        assert_eq!(data.categories[0].name, "alias", "a linked category has the name of the link");
        let train = relative(&data.categories[0].root.join("train/good"), &data.categories[0].train);
        assert_eq!(train, ["deep/3.png", "link/1.png", "link/2.png", "self.png"]);
    }

    #[test]
    fn subfolders_of_a_defect_have_their_own_masks() {
        let root = tree(&[
            "train/good/1.png",
            "test/crack/monday/1.png",
            "test/crack/1.png",
            "ground_truth/crack/monday/1_mask.png",
        ]);
        let data = Dataset::scan(root.path(), &[]).unwrap();
        let masks: Vec<bool> = data.categories[0].test.iter().map(|s| s.mask.is_some()).collect();
        assert_eq!(relative(root.path(), &[data.categories[0].test[0].path.clone()]), ["test/crack/1.png"]);
        assert_eq!(masks, [false, true]);
    }

    #[test]
    fn training_needs_enough_images_of_every_class() {
        let names: Vec<String> = (0..MIN_TRAIN).map(|i| format!("nut/train/good/{i}.png")).collect();
        let mut files: Vec<&str> = names.iter().map(String::as_str).collect();
        check_trainable(&Dataset::scan(tree(&files).path(), &[]).unwrap()).unwrap();
        files.pop();
        files.push("cap/train/good/1.png");
        let root = tree(&files);
        let error = check_trainable(&Dataset::scan(root.path(), &[]).unwrap()).unwrap_err();
        assert_eq!(error.exit_code(), 2);
        assert!(error.to_string().ends_with("at least 8 good images to be learned: cap has 1, nut has 7"), "{error}");
    }

    #[test]
    fn a_file_or_a_folder_can_be_listed() {
        let root = tree(&["b.png", "a.JPG", "c.txt", "sub/d.png"]);
        let (images, ignored) = images_in(root.path()).unwrap();
        assert_eq!(relative(root.path(), &images), ["a.JPG", "b.png"]);
        assert_eq!(ignored, Ignored { other_files: 1, sub_folders: 1, ..Ignored::default() });
        assert_eq!(images_in(&root.path().join("c.txt")).unwrap().0, [root.path().join("c.txt")]);
        assert!(matches!(images_in(&root.path().join("nowhere")), Err(Error::Data { .. })));
    }
}
