//! Chooses the pictures that the report shows, while the evaluation runs: only the few that are shown stay in memory.

use std::cmp::Ordering;
use std::collections::BTreeMap;

use image::imageops::thumbnail;
use image::{ImageBuffer, Rgb};

use crate::error::{Error, Result};
use crate::frame::Frame;

use super::ImageResult;

/// Why a picture is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// A defect that was not rejected; the one furthest below its threshold first.
    Escape,
    /// A good part that was rejected; the one furthest above its threshold first.
    FalseReject,
    /// A defect that was rejected; the one furthest above its threshold first.
    Detected,
}

impl Kind {
    /// All kinds in the order of the page.
    pub const ALL: [Self; 3] = [Self::Escape, Self::FalseReject, Self::Detected];

    /// The kind of `image`; `None` for a good part that was not rejected, which is not shown.
    pub fn of(image: &ImageResult) -> Option<Self> {
        match (image.is_defect(), image.rejected) {
            (true, false) => Some(Self::Escape),
            (false, true) => Some(Self::FalseReject),
            (true, true) => Some(Self::Detected),
            (false, false) => None,
        }
    }

    /// Order in which images are shown: the most telling first, equal ones by path, so that the choice does not depend on the
    /// order in which images are evaluated.
    fn order(self, a: &ImageResult, b: &ImageResult) -> Ordering {
        let by_margin = match self {
            Self::Escape => a.margin().total_cmp(&b.margin()),
            Self::FalseReject | Self::Detected => b.margin().total_cmp(&a.margin()),
        };
        by_margin.then_with(|| a.path.cmp(&b.path))
    }
}

/// One image with its anomaly map, as it is drawn.
#[derive(Clone, Debug)]
pub struct Picture {
    /// The image as the model saw it.
    pub frame: Frame,
    /// Its anomaly map, `[map_height, map_width]`, spread over the whole frame.
    pub map: Vec<f32>,
    /// Columns of the map.
    pub map_width: usize,
    /// Rows of the map.
    pub map_height: usize,
    /// The map value that the colour scale is set by.
    pub pixel_threshold: f32,
    /// The ground truth, `[frame.height(), frame.width()]`, true where there is a defect.
    pub mask: Option<Vec<bool>>,
}

/// Pictures are kept no larger than this: a gallery holds dozens of them, and a camera's frame has megabytes.
const PICTURE_SIDE: usize = 384;

impl Picture {
    /// The picture no larger than [`PICTURE_SIDE`]; the map needs no shrinking, it is spread over any frame.
    fn shrunk(self) -> Result<Self> {
        let (width, height) = (self.frame.width(), self.frame.height());
        if let Some(mask) = self.mask.as_ref().filter(|mask| mask.len() != width * height) {
            return Err(Error::Internal(format!("report: a mask of {} pixels for {width}x{height}", mask.len())));
        }
        let frame = shrunk(&self.frame)?;
        let (columns, rows) = (frame.width(), frame.height());
        let mask = self.mask.map(|mask| {
            let nearest = |at: usize| mask[(at / columns * height / rows) * width + at % columns * width / columns];
            (0..columns * rows).map(nearest).collect()
        });
        Ok(Self { frame, mask, ..self })
    }
}

/// A frame no larger than [`PICTURE_SIDE`].
pub(super) fn shrunk(frame: &Frame) -> Result<Frame> {
    let (width, height) = (frame.width(), frame.height());
    let longest = width.max(height);
    if longest <= PICTURE_SIDE {
        return Ok(frame.clone());
    }
    let side = |side: usize| (side * PICTURE_SIDE / longest).max(1);
    let refused = || Error::Internal(format!("report: cannot shrink a picture of {width}x{height}"));
    let large: ImageBuffer<Rgb<u8>, &[u8]> =
        ImageBuffer::from_raw(width as u32, height as u32, frame.rgb()).ok_or_else(refused)?;
    let small = thumbnail(&large, side(width) as u32, side(height) as u32);
    Frame::new(side(width), side(height), small.into_raw())
}

/// An image with its picture.
#[derive(Clone, Debug)]
pub struct Case {
    /// Its result.
    pub image: ImageResult,
    /// Its picture.
    pub picture: Picture,
}

/// The most telling cases of every kind in every category.
#[derive(Clone, Debug)]
pub struct Gallery {
    per_kind: usize,
    cases: BTreeMap<(String, Kind), Vec<Case>>,
}

impl Gallery {
    /// A gallery that keeps `per_kind` cases of each kind per category.
    pub fn new(per_kind: usize) -> Self {
        Self { per_kind, cases: BTreeMap::new() }
    }

    /// Shows the gallery an image; `picture` is asked for only if it is to be kept.
    ///
    /// # Errors
    /// Those of `picture`; when its mask has another size than its frame.
    pub fn offer(&mut self, image: &ImageResult, picture: impl FnOnce() -> Result<Picture>) -> Result<()> {
        let Some(kind) = Kind::of(image) else { return Ok(()) };
        let cases = self.cases.entry((image.category.clone(), kind)).or_default();
        let at = cases.partition_point(|case| kind.order(&case.image, image) == Ordering::Less);
        if at < self.per_kind {
            cases.insert(at, Case { image: image.clone(), picture: picture()?.shrunk()? });
            cases.truncate(self.per_kind);
        }
        Ok(())
    }

    /// The cases of a kind in a category, the most telling first.
    pub fn cases(&self, category: &str, kind: Kind) -> &[Case] {
        self.cases.get(&(category.to_owned(), kind)).map_or(&[], Vec::as_slice)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::error::Error;
    use crate::report::tests::image;

    fn picture() -> Result<Picture> {
        let frame = Frame::new(1, 1, vec![0; 3])?;
        Ok(Picture { frame, map: vec![0.0], map_width: 1, map_height: 1, pixel_threshold: 1.0, mask: None })
    }

    fn paths(gallery: &Gallery, kind: Kind) -> Vec<&str> {
        gallery.cases("a", kind).iter().map(|case| case.image.path.as_str()).collect()
    }

    #[test]
    fn the_worst_misses_the_worst_false_rejects_and_the_clearest_finds_are_kept() {
        let mut gallery = Gallery::new(2);
        for (path, label, score) in [
            ("escape near", "dent", 0.9),
            ("escape far", "dent", 0.1),
            ("escape mid", "dent", 0.5),
            ("reject far", "good", 3.0),
            ("reject near", "good", 1.1),
            ("pass", "good", 0.2),
            ("found near", "dent", 1.2),
            ("found far", "dent", 9.0),
            ("found mid", "dent", 2.0),
        ] {
            gallery.offer(&image("a", path, label, score), picture).unwrap();
        }
        assert_eq!(paths(&gallery, Kind::Escape), ["escape far", "escape mid"]);
        assert_eq!(paths(&gallery, Kind::FalseReject), ["reject far", "reject near"]);
        assert_eq!(paths(&gallery, Kind::Detected), ["found far", "found mid"]);
        assert!(gallery.cases("b", Kind::Escape).is_empty());
    }

    #[test]
    fn only_what_is_kept_is_drawn_and_its_error_is_passed_on() {
        let mut gallery = Gallery::new(1);
        let fails = || Err(Error::Internal("no picture".to_owned()));
        gallery.offer(&image("a", "first", "dent", 0.1), picture).unwrap();
        gallery.offer(&image("a", "second", "dent", 0.2), fails).unwrap();
        gallery.offer(&image("a", "pass", "good", 0.2), fails).unwrap();
        assert!(gallery.offer(&image("a", "third", "dent", 0.0), fails).is_err());
        assert_eq!(paths(&gallery, Kind::Escape), ["first"]);
        Gallery::new(0).offer(&image("a", "none", "dent", 0.1), fails).unwrap();
    }

    proptest! {
        #[test]
        fn the_choice_does_not_depend_on_the_order(scores in prop::collection::vec(0_u8..8, 1..12), turn in 0_usize..12) {
            let images: Vec<_> = scores.iter().enumerate()
                .map(|(at, &score)| image("a", &format!("{at:02}"), "dent", f32::from(score) / 4.0)).collect();
            let (mut one, mut other) = (Gallery::new(3), Gallery::new(3));
            for at in 0..images.len() {
                one.offer(&images[at], picture).unwrap();
                other.offer(&images[(at + turn) % images.len()], picture).unwrap();
            }
            for kind in Kind::ALL {
                prop_assert_eq!(paths(&one, kind), paths(&other, kind));
            }
        }
    }
}
