//! Masks of defects on the pixels of the model's input, where maps are compared with them.

use crate::config::Size;
use crate::data::Sample;
use crate::error::Result;
use crate::frame::{Geometry, read_mask};

/// Whether each pixel of the model's input `[height, width]` shows a defect: nowhere on a good part; `None` for a defective part
/// without a mask.
///
/// # Errors
/// When the mask cannot be read.
pub(super) fn ground_truth(sample: &Sample, geometry: &Geometry) -> Result<Option<Vec<bool>>> {
    let Some(mask) = &sample.mask else {
        return Ok((!sample.label.is_defect()).then(|| vec![false; geometry.input.area()]));
    };
    let [width, height] = geometry.original;
    Ok(Some(geometry.onto_input(&read_mask(mask, width, height)?)))
}

/// The area of the model's input that shows the frame; the border around it counts in no metric.
pub(super) struct ShownArea {
    x: usize,
    y: usize,
    columns: usize,
    pub(super) width: usize,
    pub(super) height: usize,
}

impl ShownArea {
    pub(super) fn of(geometry: &Geometry) -> Self {
        let [x, y, width, height] = geometry.valid.map(|v| v as usize);
        let Size { width: columns, height: rows } = geometry.input;
        let (x, y) = (x.min(columns), y.min(rows));
        Self { x, y, columns, width: width.min(columns - x), height: height.min(rows - y) }
    }

    /// The values in this area, of those of the whole input, `[height, width]`.
    pub(super) fn cut<T: Copy>(&self, values: &[T]) -> Vec<T> {
        let rows = values.chunks_exact(self.columns).skip(self.y).take(self.height);
        rows.flat_map(|row| &row[self.x..][..self.width]).copied().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_border_of_a_padded_input_is_cut_away() {
        let (original, shown) = ([8, 4], [0.0, 0.0, 8.0, 4.0]);
        let geometry = Geometry { original, input: Size::square(4), valid: [0.0, 1.0, 4.0, 2.0], shown, pose: None };
        let values: Vec<usize> = (0..16).collect();
        assert_eq!(ShownArea::of(&geometry).cut(&values), [4, 5, 6, 7, 8, 9, 10, 11]);
        let beside = Geometry { input: Size::new(6, 2), valid: [1.0, 0.0, 4.0, 2.0], ..geometry };
        assert_eq!(ShownArea::of(&beside).cut(&values[..12]), [1, 2, 3, 4, 7, 8, 9, 10]);
    }
}
