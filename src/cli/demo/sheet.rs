//! One picture on which a person can judge a model: for every part the image, its heat map and the truth, side by side.

use crate::config::Fit;
use crate::detector::Verdict;
use crate::error::Result;
use crate::frame::{Frame, Preprocess};

/// Side of a panel in pixels.
const PANEL: usize = 128;
/// Parts beside each other.
const COLUMNS: usize = 4;
/// Pixels between parts.
const GAP: usize = 10;
/// Height of the bar that shows the verdict.
const BAR: usize = 6;
const PAPER: [u8; 3] = [245, 245, 242];
const DEFECT: [u8; 3] = [220, 30, 40];

/// Parts in the order they were added.
#[derive(Default)]
pub(super) struct Sheet {
    parts: Vec<Frame>,
}

impl Sheet {
    /// Adds a part: its image, the image with the map over it, and where the defect is, `[height, width]` of the image.
    pub(super) fn add(&mut self, image: &Frame, heat: &Frame, mask: &[bool], verdict: Verdict) -> Result<()> {
        let preprocess = Preprocess { size: PANEL.into(), fit: Fit::Pad, roi: None };
        let panel = |frame: &Frame| preprocess.apply(frame).map(|prepared| prepared.frame);
        let mut part = Paper::new(3 * PANEL, PANEL + BAR, colour(verdict));
        for (at, picture) in [image, heat, &truth(image, mask)?].into_iter().enumerate() {
            part.put(&panel(picture)?, at * PANEL, 0);
        }
        self.parts.push(part.frame()?);
        Ok(())
    }

    /// The picture.
    pub(super) fn draw(&self) -> Result<Frame> {
        in_columns(&self.parts, COLUMNS.min(self.parts.len()))
    }
}

/// The image in pale grey, the defect in red.
fn truth(image: &Frame, mask: &[bool]) -> Result<Frame> {
    let pixel = |(rgb, &defect): (&[u8], &bool)| {
        let grey = rgb.iter().map(|&v| u16::from(v)).sum::<u16>() / 3;
        if defect { DEFECT } else { [(128 + grey / 2) as u8; 3] }
    };
    let rgb = image.rgb().chunks_exact(3).zip(mask).flat_map(pixel).collect();
    Frame::new(image.width(), image.height(), rgb)
}

fn colour(verdict: Verdict) -> [u8; 3] {
    match verdict {
        Verdict::Ok => [40, 160, 70],
        Verdict::Warn => [240, 170, 0],
        Verdict::Ng => DEFECT,
        Verdict::Uninspected | Verdict::Error => [120, 120, 120],
    }
}

/// Pictures of one size beside each other in an almost square grid.
pub(in crate::cli) fn grid(pictures: &[Frame]) -> Result<Frame> {
    in_columns(pictures, (1..).find(|n| n * n >= pictures.len()).unwrap_or(1))
}

fn in_columns(pictures: &[Frame], columns: usize) -> Result<Frame> {
    let (w, h) = pictures.first().map_or((1, 1), |first| (first.width(), first.height()));
    let columns = columns.max(1);
    let rows = pictures.len().div_ceil(columns).max(1);
    let mut paper = Paper::new(GAP + columns * (w + GAP), GAP + rows * (h + GAP), PAPER);
    for (index, picture) in pictures.iter().enumerate() {
        paper.put(picture, GAP + index % columns * (w + GAP), GAP + index / columns * (h + GAP));
    }
    paper.frame()
}

struct Paper {
    width: usize,
    height: usize,
    rgb: Vec<u8>,
}

impl Paper {
    fn new(width: usize, height: usize, colour: [u8; 3]) -> Self {
        Self { width, height, rgb: colour.repeat(width * height) }
    }

    fn put(&mut self, frame: &Frame, x: usize, y: usize) {
        for (line, row) in frame.rgb().chunks_exact(frame.width() * 3).enumerate() {
            self.rgb[((y + line) * self.width + x) * 3..][..row.len()].copy_from_slice(row);
        }
    }

    fn frame(self) -> Result<Frame> {
        Frame::new(self.width, self.height, self.rgb)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_is_three_panels_over_the_colour_of_its_verdict() {
        let image = Frame::new(PANEL, PANEL, vec![100; PANEL * PANEL * 3]).unwrap();
        let heat = Frame::new(PANEL, PANEL, vec![7; PANEL * PANEL * 3]).unwrap();
        let mut mask = vec![false; PANEL * PANEL];
        mask[0] = true;
        let mut sheet = Sheet::default();
        for _ in 0..COLUMNS + 1 {
            sheet.add(&image, &heat, &mask, Verdict::Ng).unwrap();
        }
        let drawn = sheet.draw().unwrap();
        assert_eq!(drawn.height(), GAP + 2 * (PANEL + BAR + GAP), "one more than a row holds");
        let at = |x: usize, y: usize| &drawn.rgb()[(y * drawn.width() + x) * 3..][..3];
        assert_eq!(at(0, 0), PAPER);
        assert_eq!(at(GAP, GAP), [100; 3]);
        assert_eq!(at(GAP + PANEL, GAP), [7; 3]);
        assert_eq!(at(GAP + 2 * PANEL, GAP), DEFECT);
        assert_eq!(at(GAP + 2 * PANEL + 1, GAP), [178; 3]);
        assert_eq!(at(GAP, GAP + PANEL), colour(Verdict::Ng));
    }
}
