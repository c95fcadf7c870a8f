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
    parts: Vec<Part>,
}

struct Part {
    panels: [Frame; 3],
    verdict: Verdict,
}

impl Sheet {
    /// Adds a part: its image, the image with the map over it, and where the defect is, `[height, width]` of the image.
    pub(super) fn add(&mut self, image: &Frame, heat: &Frame, mask: &[bool], verdict: Verdict) -> Result<()> {
        let preprocess = Preprocess { size: PANEL, fit: Fit::Pad, roi: None };
        let panel = |frame: &Frame| preprocess.apply(frame).map(|prepared| prepared.frame);
        self.parts.push(Part { panels: [panel(image)?, panel(heat)?, panel(&truth(image, mask)?)?], verdict });
        Ok(())
    }

    /// The picture.
    pub(super) fn draw(&self) -> Result<Frame> {
        let (part_width, part_height) = (3 * PANEL + GAP, PANEL + BAR + GAP);
        let columns = COLUMNS.min(self.parts.len().max(1));
        let rows = self.parts.len().div_ceil(columns).max(1);
        let (width, height) = (GAP + columns * part_width, GAP + rows * part_height);
        let mut paper = Paper { width, rgb: PAPER.repeat(width * height) };
        for (index, part) in self.parts.iter().enumerate() {
            let (x, y) = (GAP + index % columns * part_width, GAP + index / columns * part_height);
            for (at, panel) in part.panels.iter().enumerate() {
                paper.put(panel, x + at * PANEL, y);
            }
            paper.fill(x, y + PANEL, 3 * PANEL, BAR, colour(part.verdict));
        }
        Frame::new(width, height, paper.rgb)
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
    let (w, h) = pictures.first().map_or((1, 1), |first| (first.width(), first.height()));
    let columns = (1..).find(|n| n * n >= pictures.len()).unwrap_or(1).max(1);
    let rows = pictures.len().div_ceil(columns).max(1);
    let (width, height) = (GAP + columns * (w + GAP), GAP + rows * (h + GAP));
    let mut paper = Paper { width, rgb: PAPER.repeat(width * height) };
    for (index, picture) in pictures.iter().enumerate() {
        paper.put(picture, GAP + index % columns * (w + GAP), GAP + index / columns * (h + GAP));
    }
    Frame::new(width, height, paper.rgb)
}

struct Paper {
    width: usize,
    rgb: Vec<u8>,
}

impl Paper {
    fn row(&mut self, x: usize, y: usize, length: usize) -> &mut [u8] {
        &mut self.rgb[(y * self.width + x) * 3..][..length * 3]
    }

    fn put(&mut self, frame: &Frame, x: usize, y: usize) {
        for (line, row) in frame.rgb().chunks_exact(frame.width() * 3).enumerate() {
            self.row(x, y + line, frame.width()).copy_from_slice(row);
        }
    }

    fn fill(&mut self, x: usize, y: usize, width: usize, height: usize, colour: [u8; 3]) {
        for line in 0..height {
            self.row(x, y + line, width).copy_from_slice(&colour.repeat(width));
        }
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
