//! A map of small values laid over the frame: coloured value by value, and outlined where it exceeds a threshold.
//! Between the centres of its cells the map is interpolated linearly, for each block of 2x2 pixels once. Knows nothing of what the values mean: the
//! colour of a value comes from the caller and does not depend on the other values.

use super::planes::{Area, Canvas, Dye, Ink, Sheet, blend};
use std::ops::Range;

/// A map over the frame or over a part of it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Map<'a> {
    /// Row after row of values, `width * height` of them. Nothing is drawn if there are fewer.
    pub(crate) values: &'a [u8],
    /// Cells in a row.
    pub(crate) width: usize,
    /// Rows.
    pub(crate) height: usize,
    /// Left, top, width and height, in pixels, of the part of the frame that the map covers. Nothing is drawn
    /// outside it, nor on a margin of less than two pixels inside it where its edges fall between blocks of 2x2.
    pub(crate) shown: [f64; 4],
    /// Whether and how the map is shown in colours.
    pub(crate) heat: Option<Heat<'a>>,
    /// Whether and how the map is outlined.
    pub(crate) contour: Option<Contour>,
}

/// How the values of a map are coloured.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Heat<'a> {
    /// Red, green, blue and alpha (not multiplied in) for each value.
    pub(crate) colours: &'a [[u8; 4]; 256],
    /// A factor to all alpha.
    pub(crate) opacity: f32,
}

/// A line just inside the regions of a map that lie above a threshold.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Contour {
    /// The highest value that is still outside.
    pub(crate) threshold: u8,
    /// The line's colour.
    pub(crate) colour: [u8; 3],
}

/// Colours the frame by the map.
pub(super) fn tint(canvas: &mut Canvas<'_>, map: &Map<'_>, heat: &Heat<'_>) {
    let opacity = heat.opacity.clamp(0.0, 1.0);
    let colours = heat.colours.map(|[r, g, b, a]| [r, g, b, (f32::from(a) * opacity).round() as u8]);
    let size = (canvas.width, canvas.height);
    for sheet in &mut canvas.sheets {
        let Some(sampler) = Sampler::new(map, size, |value| colours[value][3] > 0) else { return };
        match (sheet.step(), sheet.scale()) {
            (1, 1) => tint_sheet::<1, 1>(sheet, sampler, &colours),
            (1, _) => tint_sheet::<1, 2>(sheet, sampler, &colours),
            (2, _) => tint_sheet::<2, 1>(sheet, sampler, &colours),
            (3, _) => tint_sheet::<3, 2>(sheet, sampler, &colours),
            _ => tint_sheet::<4, 2>(sheet, sampler, &colours),
        }
    }
}

/// Looks the colours up once for each block and lays them out as a row of bytes, so that the blending itself, which
/// touches every byte of the frame, is a plain loop over three arrays.
fn tint_sheet<const N: usize, const SCALE: usize>(
    sheet: &mut Sheet<'_>,
    mut sampler: Sampler<'_>,
    colours: &[[u8; 4]; 256],
) {
    let dyes: [Dye<N>; 256] = colours.map(|[r, g, b, a]| sheet.dye([r, g, b], a));
    let blocks = sampler.across.len();
    let (mut keep, mut add) = (vec![[[0; N]; SCALE]; blocks], vec![[[0; N]; SCALE]; blocks]);
    for number in 0..sampler.down.len() {
        sampler.sample(number);
        let y = (sampler.down.start + number) * SCALE;
        for span in &sampler.spans {
            let (keep, add) = (&mut keep[span.clone()], &mut add[span.clone()]);
            for ((keep, add), &value) in keep.iter_mut().zip(&mut *add).zip(&sampler.values[span.clone()]) {
                let dye = &dyes[usize::from(value)];
                *keep = [dye.keep; SCALE];
                *add = [dye.add; SCALE];
            }
            let (keep, add) = (keep.as_flattened().as_flattened(), add.as_flattened().as_flattened());
            let x = |block: usize| (sampler.across.start + block) * SCALE;
            for row in sheet.rows((x(span.start), x(span.end)), (y, y + SCALE)) {
                for ((byte, keep), add) in row.iter_mut().zip(keep).zip(add) {
                    *byte = blend(*byte, *keep, *add);
                }
            }
        }
    }
}

/// Draws the line around what lies above the threshold, `thickness` blocks wide.
pub(super) fn outline(canvas: &mut Canvas<'_>, map: &Map<'_>, contour: &Contour, thickness: i64) {
    let size = (canvas.width, canvas.height);
    let above = |value| value > usize::from(contour.threshold);
    let Some(mut sampler) = Sampler::new(map, size, above) else { return };
    let (x, y) = (sampler.across.start as i64, sampler.down.start as i64);
    let mut region = Bits::new(sampler.across.len(), sampler.down.len());
    for (number, row) in region.bits.chunks_exact_mut(region.words).enumerate() {
        sampler.sample(number);
        for span in &sampler.spans {
            for column in span.clone() {
                if sampler.values.get(column).is_some_and(|&value| value > contour.threshold) {
                    row[column / 64] |= 1 << (column % 64);
                }
            }
        }
    }
    let mut inside = region.eroded(false);
    for turn in 1..thickness {
        // Neighbours by edge and by corner in turn keep slanted lines about as thick as upright ones.
        inside = inside.eroded(turn % 2 == 1);
    }
    let ink = Ink::solid(contour.colour);
    let rows = region.bits.chunks_exact(region.words).zip(inside.bits.chunks_exact(region.words));
    for (y, (all, inner)) in (y..).zip(rows) {
        for (x, (all, inner)) in (x..).step_by(64).zip(all.iter().zip(inner)) {
            let mut line = all & !inner;
            while line != 0 {
                let from = line.trailing_zeros();
                let to = from + (line >> from).trailing_ones();
                canvas.fill(Area { x0: x + i64::from(from), y0: y, x1: x + i64::from(to), y1: y + 1 }, ink);
                line &= u64::MAX.checked_shl(to).unwrap_or(0);
            }
        }
    }
}

/// A set of blocks, one bit each.
struct Bits {
    words: usize,
    bits: Vec<u64>,
}

impl Bits {
    fn new(width: usize, height: usize) -> Self {
        let words = width.div_ceil(64);
        Self { words, bits: vec![0; words * height] }
    }

    /// The blocks whose neighbours all belong to the set: those by edge, or by edge and corner.
    fn eroded(&self, corners: bool) -> Self {
        let zeros = vec![0; self.words];
        let row = |y: Option<usize>| y.and_then(|y| self.bits.chunks_exact(self.words).nth(y)).unwrap_or(&zeros);
        let mut bits = Vec::with_capacity(self.bits.len());
        for y in 0..self.bits.len() / self.words {
            let (over, this, under) = (row(y.checked_sub(1)), row(Some(y)), row(Some(y + 1)));
            let column = |x: usize| {
                let word = |row: &[u64]| row.get(x).copied().unwrap_or(0);
                word(over) & word(this) & word(under)
            };
            let source = |x: usize| if corners { column(x) } else { this.get(x).copied().unwrap_or(0) };
            for x in 0..self.words {
                let word = source(x);
                let before = x.checked_sub(1).map_or(0, source);
                bits.push(column(x) & (word << 1 | before >> 63) & (word >> 1 | source(x + 1) << 63));
            }
        }
        Self { words: self.words, bits }
    }
}

/// Where the blocks of one axis fall in the map.
struct Axis {
    /// The first block that the map covers.
    start: usize,
    /// For each covered block the cell before its middle.
    cells: Vec<usize>,
    /// How far the block's middle is on the way to the next cell, in 1/256.
    parts: Vec<u16>,
}

impl Axis {
    /// An axis of `length` pixels; all other measures are in pixels, too.
    fn new(origin: f64, extent: f64, cells: usize, length: usize) -> Option<Self> {
        // A hundredth of a pixel is forgiven, so that rounding in `shown` does not cost a column.
        let end = origin + extent + 0.01;
        if !(end.is_finite() && extent > 0.0 && cells > 0) {
            return None;
        }
        // Inwards to whole blocks; the casts saturate.
        let first = ((origin - 0.01).ceil().max(0.0) as usize).min(length).next_multiple_of(2);
        let past = if end >= length as f64 { length } else { end.max(0.0) as usize / 2 * 2 };
        let place = |x: usize| {
            // The last block of an odd length is a single pixel.
            let middle = (x + (x + 2).min(length)) as f64 / 2.0;
            let at = ((middle - origin) / extent * cells as f64 - 0.5).clamp(0.0, (cells - 1) as f64);
            (at as usize, (at.fract() * 256.0).round() as u16)
        };
        let (cells, parts): (Vec<_>, Vec<_>) = (first..past).step_by(2).map(place).unzip();
        (!cells.is_empty()).then_some(Self { start: first / 2, cells, parts })
    }

    fn len(&self) -> usize {
        self.cells.len()
    }
}

/// Columns that lie between the same two cells of a map row.
#[derive(Clone)]
struct Run {
    cell: usize,
    columns: Range<usize>,
}

/// Reads the map in the middle of each block, a row of blocks at a time, and only where something is to be seen.
struct Sampler<'a> {
    map: &'a Map<'a>,
    across: Axis,
    down: Axis,
    runs: Vec<Run>,
    /// How many values below the index are to be seen.
    seen: [u16; 257],
    /// The map row that `live` and `spans` were made for.
    cell: Option<usize>,
    /// The runs of this map row in which something may be seen.
    live: Vec<Run>,
    /// The columns of `live`, where `values` hold; counted from the first covered block.
    spans: Vec<Range<usize>>,
    values: Vec<u8>,
    /// The map between its rows, in 1/256, with its last value twice.
    line: Vec<u16>,
}

impl<'a> Sampler<'a> {
    fn new(map: &'a Map<'a>, size: (usize, usize), visible: impl Fn(usize) -> bool) -> Option<Self> {
        let [x, y, width, height] = map.shown;
        if map.width.checked_mul(map.height).is_none_or(|needed| map.values.len() < needed) {
            return None;
        }
        let across = Axis::new(x, width, map.width, size.0)?;
        let down = Axis::new(y, height, map.height, size.1)?;
        let mut runs: Vec<Run> = Vec::with_capacity(map.width.min(across.len()));
        for (column, &cell) in across.cells.iter().enumerate() {
            match runs.last_mut() {
                Some(run) if run.cell == cell => run.columns.end = column + 1,
                _ => runs.push(Run { cell, columns: column..column + 1 }),
            }
        }
        let mut seen = [0; 257];
        for value in 0..256 {
            seen[value + 1] = seen[value] + u16::from(visible(value));
        }
        let (values, line) = (vec![0; across.len()], vec![0; map.width + 1]);
        Some(Self { map, across, down, runs, seen, cell: None, live: Vec::new(), spans: Vec::new(), values, line })
    }

    /// Makes `spans` and `values` those of a row, counted from the first covered one.
    fn sample(&mut self, row: usize) {
        let (Some(&cell), Some(&part)) = (self.down.cells.get(row), self.down.parts.get(row)) else { return };
        let map_row = |y: usize| {
            let y = y.min(self.map.height - 1);
            &self.map.values[y * self.map.width..][..self.map.width]
        };
        let (upper, lower) = (map_row(cell), map_row(cell + 1));
        if self.cell != Some(cell) {
            self.cell = Some(cell);
            self.find_live(upper, lower);
        }
        if self.live.is_empty() {
            return;
        }
        for ((value, upper), lower) in self.line.iter_mut().zip(upper).zip(lower) {
            *value = u16::from(*upper) * (256 - part) + u16::from(*lower) * part;
        }
        self.line[self.map.width] = self.line[self.map.width - 1];
        for run in &self.live {
            let (left, right) = (i32::from(self.line[run.cell]), i32::from(self.line[run.cell + 1]));
            let (base, slope) = (left * 256 + 32768, right - left);
            let (values, parts) = (&mut self.values[run.columns.clone()], &self.across.parts[run.columns.clone()]);
            for (value, part) in values.iter_mut().zip(parts) {
                *value = ((base + slope * i32::from(*part)) >> 16) as u8;
            }
        }
    }

    /// Makes `live` and `spans` those between two rows of the map.
    fn find_live(&mut self, upper: &[u8], lower: &[u8]) {
        self.live.clear();
        self.spans.clear();
        for run in &self.runs {
            let next = (run.cell + 1).min(upper.len() - 1);
            let corners = [upper[run.cell], upper[next], lower[run.cell], lower[next]];
            let (low, high) = corners.into_iter().fold((255, 0), |(low, high), v| (v.min(low), v.max(high)));
            // What is interpolated lies between the corners.
            if self.seen[usize::from(low)] == self.seen[usize::from(high) + 1] {
                continue;
            }
            self.live.push(run.clone());
            match self.spans.last_mut() {
                Some(span) if span.end == run.columns.start => span.end = run.columns.end,
                _ => self.spans.push(run.columns.clone()),
            }
        }
    }
}
