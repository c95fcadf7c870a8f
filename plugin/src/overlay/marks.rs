//! Boxes with labels, and the header of banner and lines: where they go, how large they are, and that no text lands on
//! other text. Knows nothing of pixel formats; all measures are in blocks of 2x2 pixels.

use super::planes::{Area, Canvas, Ink};
use super::text::Type;

const BLACK: Ink = Ink::solid([0; 3]);
const WHITE: Ink = Ink::solid([255; 3]);
const SHADE: Ink = Ink { rgb: [16; 3], opacity: 168 };
const PALE: Ink = Ink::solid([235; 3]);

/// A rectangle to point out, with a label.
#[derive(Clone, Debug)]
pub(crate) struct BoxMark {
    /// Left edge in pixels.
    pub(crate) x: i32,
    /// Upper edge in pixels.
    pub(crate) y: i32,
    /// Width in pixels; without any, nothing is drawn.
    pub(crate) width: u32,
    /// Height in pixels; without any, nothing is drawn.
    pub(crate) height: u32,
    /// Colour of the line and of the label's plate.
    pub(crate) colour: [u8; 3],
    /// The label, which may be empty. It is left out where it would land on other text.
    pub(crate) text: String,
}

/// The line of text at the top left, on a plate of its own.
#[derive(Clone, Debug)]
pub(crate) struct Banner {
    /// What it says.
    pub(crate) text: String,
    /// Colour of the plate. The text is black or white, whichever stands out.
    pub(crate) colour: [u8; 3],
}

/// The thickness of lines.
pub(super) fn line(canvas: &Canvas<'_>) -> i64 {
    share(canvas, 240).max(1)
}

/// A part of the frame's height, in blocks.
fn share(canvas: &Canvas<'_>, part: usize) -> i64 {
    ((canvas.height + part) / (2 * part)) as i64
}

/// Black or white, whichever stands out from a plate of this colour.
fn contrast(colour: [u8; 3]) -> Ink {
    // Squares stand in for the sRGB curve. White on saturated red reads well, hence more than the even 0.18.
    let [r, g, b] = colour.map(|v| f32::from(v) * f32::from(v) / 65025.0);
    if 0.2126 * r + 0.7152 * g + 0.0722 * b > 0.25 { BLACK } else { WHITE }
}

/// Text of one size with some room around it.
struct Plate {
    area: Area,
    kind: Type,
    rows: Vec<String>,
    back: Ink,
    front: Ink,
}

impl Plate {
    /// A plate for these rows with its corner at the origin, no wider than `room`: rows that do not fit are shortened.
    fn new(rows: &[String], kind: Type, room: i64, (back, front): (Ink, Ink)) -> Self {
        let rows: Vec<String> = rows.iter().map(|row| kind.shorten(row, room - kind.margin().0)).collect();
        let widest = rows.iter().map(|row| row.chars().count()).max().unwrap_or(0);
        let (x, y) = kind.margin();
        let area = Area {
            x0: 0,
            y0: 0,
            x1: (kind.width(widest) + 2 * x).min(room),
            y1: kind.height() * rows.len() as i64 + 2 * y,
        };
        Self { area, kind, rows, back, front }
    }

    fn at(&self, x: i64, y: i64) -> Area {
        Area { x0: x, y0: y, x1: x + self.area.x1 - self.area.x0, y1: y + self.area.y1 - self.area.y0 }
    }

    fn paint(&self, canvas: &mut Canvas<'_>) {
        let (x, y) = self.kind.margin();
        canvas.fill(self.area, self.back);
        for (y, row) in (self.area.y0 + y..).step_by(self.kind.height() as usize).zip(&self.rows) {
            self.kind.write(canvas, (self.area.x0 + x, y), row, self.front);
        }
    }
}

/// The banner and the lines beneath it.
pub(super) struct Header {
    plates: Vec<Plate>,
}

impl Header {
    /// Lays the header out for a frame.
    pub(super) fn new(canvas: &Canvas<'_>, banner: Option<&Banner>, lines: &[String]) -> Self {
        let narrow = canvas.width < 200;
        let frame = canvas.area();
        let inset = if narrow { 0 } else { share(canvas, 120) };
        let room = frame.x1 - 2 * inset;
        let mut plates: Vec<Plate> = Vec::new();
        if let Some(banner) = banner {
            let mut text = banner.text.clone();
            if narrow {
                text = text.split_whitespace().collect::<Vec<_>>().join(" ");
            }
            let kind = Type::near(canvas.height / 20, text.chars().count(), room);
            let inks = (Ink::solid(banner.colour), contrast(banner.colour));
            let mut plate = Plate::new(&[text], kind, room, inks);
            plate.area = plate.at(inset, inset);
            plates.push(plate);
        }
        let kind = small(canvas);
        let top = plates.last().map_or(inset, |plate| plate.area.y1);
        // The header keeps to the upper half.
        let fits = (frame.y1 / 2 - top - 2 * kind.margin().1) / kind.height();
        let fits = usize::try_from(fits).unwrap_or(0).min(lines.len());
        if !narrow && fits > 0 {
            let mut plate = Plate::new(&lines[..fits], kind, room, (SHADE, PALE));
            plate.area = plate.at(inset, top);
            plates.push(plate);
        }
        Self { plates }
    }

    /// Puts the header on the frame.
    pub(super) fn paint(&self, canvas: &mut Canvas<'_>) {
        for plate in &self.plates {
            plate.paint(canvas);
        }
    }
}

/// The type of all text but the banner's.
fn small(canvas: &Canvas<'_>) -> Type {
    Type::near(canvas.height / 26, 0, i64::MAX)
}

/// Draws boxes and, over all of them, their labels.
pub(super) fn boxes(canvas: &mut Canvas<'_>, boxes: &[BoxMark], header: &Header, line: i64) {
    let frame = canvas.area();
    let kind = small(canvas);
    let mut taken: Vec<Area> = header.plates.iter().map(|plate| plate.area).collect();
    let mut labels: Vec<Plate> = Vec::new();
    for mark in boxes {
        let Some((outer, inner)) = surround(mark, canvas, line) else { continue };
        let ink = Ink::solid(mark.colour);
        border(canvas, outer, 1, BLACK);
        border(canvas, outer.grown(-1), line, ink);
        // On a tiny frame a label would cover what the box is to show.
        if mark.text.is_empty() || 4 * kind.height() > frame.y1 {
            continue;
        }
        let mut plate = Plate::new(std::slice::from_ref(&mark.text), kind, frame.x1, (ink, contrast(mark.colour)));
        let (width, height) = (plate.area.x1, plate.area.y1);
        let x = outer.x0.min(frame.x1 - width).max(0);
        let inside = inner.x0.min(frame.x1 - width).max(0);
        // Above if there is room, else inside at the top; where that is taken, below or inside at the bottom.
        let places = [
            (x, outer.y0 - height, true),
            (inside, inner.y0, false),
            (x, outer.y1, true),
            (inside, inner.y1 - height, true),
        ];
        let free = places.into_iter().find_map(|(x, y, whole)| {
            let area = plate.at(x, y);
            let fits = !whole || area.y0 >= 0 && area.y1 <= frame.y1;
            (fits && taken.iter().all(|other| area.common(*other).is_none())).then_some(area)
        });
        if let Some(area) = free {
            taken.push(area);
            plate.area = area;
            labels.push(plate);
        }
    }
    for label in labels {
        label.paint(canvas);
    }
}

/// The outer and the inner edge of the lines around a box, which run outside it as long as that is in the frame.
/// `None` if nothing of the box is.
fn surround(mark: &BoxMark, canvas: &Canvas<'_>, line: i64) -> Option<(Area, Area)> {
    let (x0, y0) = (i64::from(mark.x), i64::from(mark.y));
    let (x1, y1) = (x0 + i64::from(mark.width), y0 + i64::from(mark.height));
    let past = |pixel: i64| (pixel + 1).div_euclid(2);
    let area = Area { x0: x0.div_euclid(2), y0: y0.div_euclid(2), x1: past(x1), y1: past(y1) };
    // In pixels, for half of the last block of an odd frame lies outside.
    let seen = x0.max(0) < x1.min(canvas.width as i64) && y0.max(0) < y1.min(canvas.height as i64);
    if mark.width == 0 || mark.height == 0 || !seen {
        return None;
    }
    let outer = area.grown(line + 1).common(canvas.area())?;
    Some((outer, outer.grown(-line - 1)))
}

/// Fills the edge of an area, `line` blocks wide to the inside.
fn border(canvas: &mut Canvas<'_>, area: Area, line: i64, ink: Ink) {
    let Area { x0, y0, x1, y1 } = area;
    let (upper, lower) = ((y0 + line).min(y1), (y1 - line).max(y0));
    canvas.fill(Area { y1: upper, ..area }, ink);
    canvas.fill(Area { y0: lower, ..area }, ink);
    canvas.fill(Area { x1: (x0 + line).min(x1), y0: upper, y1: lower, ..area }, ink);
    canvas.fill(Area { x0: (x1 - line).max(x0), y0: upper, y1: lower, ..area }, ink);
}
