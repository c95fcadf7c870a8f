//! Images on disk: where they are ([`Dataset`]), which show one part
//! ([`groups`]), which are held out ([`split`]), how many are read ([`ReadAhead`]). Knows
//! nothing of models.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};

mod depth;
pub mod groups;
mod input;
mod read_ahead;
mod scan;
pub mod split;

pub use depth::SampleDepth;
pub use groups::{GroupBy, Groups};
pub use input::{Input, NOT_LOCATED};
pub use read_ahead::{Group, ReadAhead, Stop, check_unreadable};
pub use scan::{images_in, known_defects};
pub use split::{Split, data_sha256, hold_out};

/// Fewest good images per class that a model is trained from: below, the held-out two and the rest say nothing.
pub const MIN_TRAIN: usize = 8;

/// File name extensions that count as images, in any case.
pub const IMAGE_EXTENSIONS: [&str; 12] =
    ["png", "jpg", "jpeg", "jpe", "bmp", "tif", "tiff", "webp", "pnm", "pbm", "pgm", "ppm"];

/// Those of images that are not read.
const UNREAD_EXTENSIONS: [&str; 24] = [
    "heic", "heif", "avif", "gif", "jp2", "j2k", "jpx", "jxl", "jxr", "tga", "ico", "psd", "exr", "hdr", "dds", "qoi",
    "pfm", "raw", "dng", "cr2", "cr3", "nef", "arw", "svg",
];

/// What a test image is known to be.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Label {
    /// A good part.
    Good,
    /// A bad part; the name of its folder says how.
    Defect(String),
}

impl Label {
    /// Whether the part is bad.
    pub fn is_defect(&self) -> bool {
        matches!(self, Self::Defect(_))
    }

    /// The folder name: `good` or the kind of defect.
    pub fn name(&self) -> &str {
        match self {
            Self::Good => scan::GOOD,
            Self::Defect(name) => name,
        }
    }
}

/// One labelled test image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sample {
    /// The image.
    pub path: PathBuf,
    /// What it shows.
    pub label: Label,
    /// Where the defect is; `None` for good parts and where there is no such file.
    pub mask: Option<PathBuf>,
}

/// One product: its good images to learn from, and perhaps labelled images to test with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Category {
    /// Class name: the name of the folder.
    pub name: String,
    /// The folder.
    pub root: PathBuf,
    /// Good images, sorted; at least one.
    pub train: Vec<PathBuf>,
    /// Test images, sorted by folder and name; may be empty.
    pub test: Vec<Sample>,
}

/// What a scan passed over, so that nobody wonders where an image went.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ignored {
    /// Files and folders whose name starts with a dot.
    pub hidden: usize,
    /// Images in formats that are not read, by extension.
    pub unread_formats: BTreeMap<&'static str, usize>,
    /// Files whose extension is not that of an image.
    pub other_files: usize,
    /// Images at a place that says nothing about them, such as directly in `test`.
    pub unplaced_images: usize,
    /// Images in folders of a product that have no meaning here, by the folder's name (`validation`, `test_public`).
    pub unused_folders: BTreeMap<String, usize>,
    /// Folders beside the categories that are none themselves.
    pub other_folders: usize,
    /// Folders in a folder of images, which is not searched any deeper.
    pub sub_folders: usize,
    /// Masks in `ground_truth` that belong to no image.
    pub unused_masks: usize,
}

impl Ignored {
    /// Whether nothing was passed over.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

impl std::ops::AddAssign for Ignored {
    fn add_assign(&mut self, other: Self) {
        self.hidden += other.hidden;
        for (extension, count) in other.unread_formats {
            *self.unread_formats.entry(extension).or_default() += count;
        }
        self.other_files += other.other_files;
        self.unplaced_images += other.unplaced_images;
        for (folder, count) in other.unused_folders {
            *self.unused_folders.entry(folder).or_default() += count;
        }
        self.other_folders += other.other_folders;
        self.sub_folders += other.sub_folders;
        self.unused_masks += other.unused_masks;
    }
}

/// `2 hidden files, 1 file that is not an image`; empty where nothing was passed over.
impl std::fmt::Display for Ignored {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let formats: Vec<String> = self.unread_formats.keys().map(|extension| format!(".{extension}")).collect();
        let formats = formats.join(", ");
        let unread = ["image", "images"].map(|noun| format!("{noun} in a format that is not read ({formats})"));
        let folders = self.unused_folders.keys().cloned().collect::<Vec<_>>().join(", ");
        let unused = ["image", "images"].map(|noun| format!("{noun} in a folder that is not used ({folders})"));
        let parts = [
            (self.hidden, "hidden file", "hidden files"),
            (self.unread_formats.values().sum(), unread[0].as_str(), unread[1].as_str()),
            (self.other_files, "file that is not an image", "files that are not images"),
            (self.unplaced_images, "image outside of any labelled folder", "images outside of any labelled folder"),
            (self.unused_folders.values().sum(), unused[0].as_str(), unused[1].as_str()),
            (self.other_folders, "folder without train/good", "folders without train/good"),
            (self.sub_folders, "folder, which is not searched", "folders, which are not searched"),
            (self.unused_masks, "mask without an image", "masks without an image"),
        ];
        let mut separator = "";
        for (count, one, many) in parts.into_iter().filter(|p| p.0 > 0) {
            write!(f, "{separator}{count} {}", if count == 1 { one } else { many })?;
            separator = ", ";
        }
        Ok(())
    }
}

/// All categories under one folder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dataset {
    /// The folder that was given.
    pub root: PathBuf,
    /// Sorted by name; at least one.
    pub categories: Vec<Category>,
    /// What lies there and is not used.
    pub ignored: Ignored,
}

impl Dataset {
    /// Finds the images under `root`, which is one of
    ///
    /// - a category: `train/good/*.png`, and optionally `test/good`, `test/<defect>` with
    ///   `ground_truth/<defect>/<stem>_mask.png` (or `<stem>.png`), the layout of MVTec AD;
    /// - a folder of categories;
    /// - a flat folder of good images, a category of the folder's name without test images.
    ///
    /// `classes` chooses categories by name; empty means all. `train/good` and each folder in `test` may have
    /// subfolders; links are followed, each real folder once. No image is opened.
    ///
    /// # Errors
    /// [`Error::Data`] when the folder is none of these (says what was looked for and what was found);
    /// [`Error::Usage`] for a name in `classes` that does not exist; [`Error::Io`] when a folder cannot be listed.
    pub fn scan(root: &Path, classes: &[String]) -> Result<Self> {
        scan::scan(root, classes)
    }
}

/// Refuses a dataset that is too small to learn from: every class needs [`MIN_TRAIN`] good images.
///
/// # Errors
/// [`Error::Data`] with the count of every class that has too few.
pub fn check_trainable(dataset: &Dataset) -> Result<()> {
    let few: Vec<String> = dataset
        .categories
        .iter()
        .filter(|c| c.train.len() < MIN_TRAIN)
        .map(|c| format!("{} has {}", c.name, c.train.len()))
        .collect();
    if few.is_empty() {
        return Ok(());
    }
    Err(Error::data(
        &dataset.root,
        format!("a class needs at least {MIN_TRAIN} good images to be learned: {}", few.join(", ")),
    ))
}
