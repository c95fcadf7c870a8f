//! A mask over the frame: which cells of the anomaly map count.

use super::map::MAP_SCALE;
use crate::config::Size;
use crate::error::{Error, Result};
use crate::frame::{Frame, Preparation, Preprocess};

/// Which cells of the anomaly map count. An ignored cell neither raises the score nor bleeds into its neighbours when the map is
/// smoothed.
#[derive(Clone, Debug, PartialEq)]
pub struct Mask {
    size: Size,
    weights: Vec<f32>, // [height, width], share of the cell that counts, 0..=1
}

impl Mask {
    /// From an image of the size of the frame: black (0) is ignored, everything else counts. A cell of the map is ignored only
    /// if all of its pixels are. `grid` is the feature grid.
    ///
    /// # Errors
    /// When nothing would count of what the model looks at.
    pub fn new(image: &Frame, preprocess: &Preprocess, grid: Size) -> Result<Self> {
        let geometry = preprocess.geometry(image.width(), image.height())?;
        let size = grid.map(|side| side * MAP_SCALE);
        // Edges of the map's columns and rows in pixels of the frame; a cell that shows less than a pixel shows one.
        let edge = |cell: usize, axis: usize| {
            let at = cell as f64 * preprocess.size.sides()[axis] as f64 / size.sides()[axis] as f64;
            geometry.to_original(at, at)[axis]
        };
        let span = |cell: usize, axis: usize, length: usize| {
            let (from, to) = (edge(cell, axis).floor() as usize, edge(cell + 1, axis).ceil() as usize);
            let from = from.min(length - 1);
            from..to.clamp(from + 1, length)
        };
        let mut weights = Vec::with_capacity(size.area());
        for y in 0..size.height {
            let rows = span(y, 1, image.height());
            for x in 0..size.width {
                let columns = span(x, 0, image.width());
                let pixels = rows.len() * columns.len();
                let row = |row: usize| &image.rgb()[(row * image.width() + columns.start) * 3..][..columns.len() * 3];
                let counted = rows.clone().flat_map(|r| row(r).chunks_exact(3)).filter(|p| *p != [0; 3]).count();
                weights.push(counted as f32 / pixels as f32);
            }
        }
        if weights.iter().all(|&w| w == 0.0) {
            return Err(Error::Usage("the mask leaves nothing to look at: all of it is black (0)".into()));
        }
        Ok(Self { size, weights })
    }

    /// The same in each of the shapes that a frame is tried in.
    ///
    /// # Errors
    /// As [`Mask::new`].
    pub fn in_shapes(image: &Frame, preparation: &Preparation) -> Result<Vec<Self>> {
        let shapes = preparation.ways().iter().zip(preparation.shapes().distinct());
        shapes.map(|(way, shape)| Self::new(image, way, shape.grid)).collect()
    }

    /// The cells of the feature grid that have something that counts, `[left, top, right, bottom]`, the last two beyond them.
    #[cfg(feature = "train")]
    pub(crate) fn bounds(&self) -> [usize; 4] {
        let mut bounds = [usize::MAX, usize::MAX, 0, 0];
        for at in (0..self.weights.len()).filter(|at| self.weights[*at] > 0.0) {
            let (x, y) = (at % self.size.width / MAP_SCALE, at / self.size.width / MAP_SCALE);
            bounds = [bounds[0].min(x), bounds[1].min(y), bounds[2].max(x + 1), bounds[3].max(y + 1)];
        }
        bounds
    }

    /// From weights `[4 rows, 4 columns]` of the grid, each 0..=1, as a model file keeps them.
    ///
    /// # Errors
    /// When their number or a value does not fit, or nothing counts.
    pub fn from_weights(grid: Size, weights: Vec<f32>) -> Result<Self> {
        let size = grid.map(|side| side * MAP_SCALE);
        let fits = weights.len() == size.area() && weights.iter().all(|w| (0.0..=1.0).contains(w));
        if !fits || weights.iter().all(|&w| w == 0.0) {
            return Err(Error::Internal(format!("mask: expected {size} values of 0 to 1, not all of them 0")));
        }
        Ok(Self { size, weights })
    }

    /// Share of each cell that counts, `[height, width]`.
    pub fn weights(&self) -> &[f32] {
        &self.weights
    }

    /// The map of one distance per cell of the grid, as if the ignored cells were not there; 0 in them. `enlarge` brings a grid to
    /// the map's size and smooths it.
    pub(super) fn apply(&self, mut distance: Vec<f32>, grid: Size, enlarge: impl Fn(&[f32]) -> Vec<f32>) -> Vec<f32> {
        let coarse = self.pooled(grid);
        distance.iter_mut().zip(&coarse).for_each(|(d, w)| *d *= w);
        let (sums, weights) = (enlarge(&distance), enlarge(&coarse));
        let value =
            |((&own, sum), weight): ((&f32, f32), f32)| if own > 0.0 && weight > 0.0 { sum / weight } else { 0.0 };
        self.weights.iter().zip(sums).zip(weights).map(value).collect()
    }

    /// The values of a map in the cells that count.
    pub(super) fn counted(&self, values: &[f32]) -> Vec<f32> {
        values.iter().zip(&self.weights).filter(|(_, w)| **w > 0.0).map(|(v, _)| *v).collect()
    }

    /// Share of each cell of the feature grid that counts, `[T]`.
    fn pooled(&self, grid: Size) -> Vec<f32> {
        let mut cells = vec![0.0; grid.area()];
        let columns = self.size.width;
        for (i, weight) in self.weights.iter().enumerate() {
            cells[i / columns / MAP_SCALE * grid.width + i % columns / MAP_SCALE] += weight;
        }
        cells.iter_mut().for_each(|c| *c /= (MAP_SCALE * MAP_SCALE) as f32);
        cells
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Fit;
    use crate::maps::{resize, smooth};

    const WHOLE: Preprocess = Preprocess { size: Size::square(64), fit: Fit::Stretch, roi: None };
    const GRID: Size = Size::square(4);

    /// White left half, black right half.
    fn half() -> Frame {
        Frame::new(128, 128, (0..128 * 128).flat_map(|i| [if i % 128 < 64 { 255 } else { 0 }; 3]).collect()).unwrap()
    }

    #[test]
    fn what_is_ignored_neither_counts_nor_bleeds() {
        let mask = Mask::new(&half(), &WHOLE, GRID).unwrap();
        let enlarge = |cells: &[f32]| smooth(&resize(cells, GRID, 16.into()), 16.into(), [1.0; 2]);
        // Column 2 and 3 of the grid are ignored and loud.
        let loud: Vec<f32> = (0..16).map(|i| if i % 4 < 2 { 1.0 } else { 100.0 }).collect();
        let map = mask.apply(loud, GRID, enlarge);
        for (i, value) in map.iter().enumerate() {
            let expected = if i % 16 < 8 { 1.0 } else { 0.0 };
            assert!((value - expected).abs() < 1e-4, "{i}: {value}");
        }
        assert_eq!(mask.counted(&map).len(), 16 * 8);
    }

    #[test]
    fn a_cell_is_ignored_only_where_all_of_it_is() {
        let speck = Frame::new(64, 64, (0..64 * 64).flat_map(|i| [u8::from(i == 64 * 10 + 10); 3]).collect()).unwrap();
        let mask = Mask::new(&speck, &WHOLE, GRID).unwrap();
        assert_eq!(mask.weights.iter().filter(|w| **w > 0.0).count(), 1, "1 of 255 is not black");
        let black = Frame::new(64, 64, vec![0; 64 * 64 * 3]).unwrap();
        assert!(Mask::new(&black, &WHOLE, GRID).unwrap_err().to_string().contains("leaves nothing"));
    }

    #[test]
    fn a_mask_follows_the_region_of_interest() {
        let right = Preprocess { roi: Some([0.5, 0.0, 0.5, 1.0]), ..WHOLE };
        assert!(Mask::new(&half(), &right, GRID).is_err());
        let left = Mask::new(&half(), &Preprocess { roi: Some([0.0, 0.0, 0.5, 1.0]), ..WHOLE }, GRID).unwrap();
        assert!(left.weights.iter().all(|&w| w == 1.0));
    }
}
