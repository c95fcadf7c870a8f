//! Text in bitmap fonts whose pixels are enlarged to whole blocks of 2x2 image pixels or multiples of them.
//! Knows nothing of where text belongs.

use super::planes::{Area, Canvas, Ink};
use embedded_graphics::geometry::{OriginDimensions, Point};
use embedded_graphics::image::GetPixel;
use embedded_graphics::mono_font::MonoFont;
use embedded_graphics::mono_font::iso_8859_15::{
    FONT_5X7, FONT_6X10, FONT_7X13_BOLD, FONT_9X15_BOLD, FONT_9X18_BOLD, FONT_10X20,
};
use embedded_graphics::pixelcolor::BinaryColor;

static FONTS: [MonoFont<'static>; 6] =
    [FONT_5X7, FONT_6X10, FONT_7X13_BOLD, FONT_9X15_BOLD, FONT_9X18_BOLD, FONT_10X20];

/// A font at a size.
#[derive(Clone, Copy)]
pub(super) struct Type {
    font: &'static MonoFont<'static>,
    /// Blocks to each side of a glyph's pixel.
    scale: i64,
}

impl Type {
    /// The type that comes nearest to a line height in pixels, among those in which `chars` characters and the margin
    /// to the left are no wider than `room` blocks; the smallest if there is none.
    pub(super) fn near(height: usize, chars: usize, room: i64) -> Self {
        let target = height.clamp(12, 1000) as i64;
        let smallest = Self { font: &FONTS[0], scale: 1 };
        // Nearness in per cent, and something against coarse pixels.
        let cost = |kind: &Self| (2 * kind.height() - target).abs() * 100 / target + 5 * kind.scale;
        (1..=target / 14 + 1)
            .flat_map(|scale| FONTS.iter().map(move |font| Self { font, scale }))
            .filter(|kind| kind.width(chars).saturating_add(kind.margin().0) <= room)
            .min_by_key(cost)
            .unwrap_or(smallest)
    }

    /// Room to leave at the sides and above and below, in blocks.
    pub(super) fn margin(&self) -> (i64, i64) {
        (3 * self.scale, self.scale)
    }

    /// Height of a line in blocks.
    pub(super) fn height(&self) -> i64 {
        i64::from(self.font.character_size.height) * self.scale
    }

    /// Width of a number of characters in blocks.
    pub(super) fn width(&self, chars: usize) -> i64 {
        let one = i64::from(self.font.character_size.width) * self.scale;
        one.saturating_mul(chars as i64)
    }

    /// The text, shortened to what fits into `room` blocks; two dots stand for what was cut off, where there is room to
    /// spare for them.
    pub(super) fn shorten(&self, text: &str, room: i64) -> String {
        let fits = (room / self.width(1)).max(0) as usize;
        if text.chars().nth(fits).is_none() {
            return text.to_owned();
        }
        let dots = if fits < 5 { "" } else { ".." };
        text.chars().take(fits - dots.len()).chain(dots.chars()).collect()
    }

    /// Writes a line of text with its upper left corner at block (`x`, `y`).
    pub(super) fn write(&self, canvas: &mut Canvas<'_>, (x, y): (i64, i64), text: &str, ink: Ink) {
        let end = canvas.area().x1;
        for (at, letter) in (0..).map(|n| x + self.width(n)).take_while(|&at| at < end).zip(text.chars()) {
            self.letter(canvas, (at, y), letter, ink);
        }
    }

    /// Writes one character. Lit pixels side by side in a row are filled as one area.
    fn letter(&self, canvas: &mut Canvas<'_>, (x, y): (i64, i64), letter: char, ink: Ink) {
        let image = &self.font.image;
        let size = Point::new(self.font.character_size.width as i32, self.font.character_size.height as i32);
        let per_row = (image.size().width as i32 / size.x).max(1);
        let index = i32::try_from(self.font.glyph_mapping.index(letter)).unwrap_or_default();
        let corner = Point::new(index % per_row * size.x, index / per_row * size.y);
        for row in 0..size.y {
            let lit =
                |column: i32| column < size.x && image.pixel(corner + Point::new(column, row)) == Some(BinaryColor::On);
            let mut column = 0;
            while column < size.x {
                let from = column;
                while lit(column) {
                    column += 1;
                }
                if from < column {
                    let block = |n: i32| i64::from(n) * self.scale;
                    let (x0, x1) = (x + block(from), x + block(column));
                    canvas.fill(Area { x0, y0: y + block(row), x1, y1: y + block(row + 1) }, ink);
                }
                column += 1;
            }
        }
    }
}
