//! Masks of defects on the pixels of the model's input, where maps are compared with them.

use crate::data::Sample;
use crate::error::Result;
use crate::frame::{Geometry, read_mask};

/// Whether each pixel of the model's input `[size, size]` shows a defect: nowhere on a good part; `None` for a defective part
/// without a mask.
///
/// # Errors
/// When the mask cannot be read.
pub(super) fn ground_truth(sample: &Sample, geometry: &Geometry, size: usize) -> Result<Option<Vec<bool>>> {
    let Some(mask) = &sample.mask else {
        return Ok((!sample.label.is_defect()).then(|| vec![false; size * size]));
    };
    let [width, height] = geometry.original;
    Ok(Some(geometry.onto_input(&read_mask(mask, width, height)?, size)))
}

/// Side of the model's input: the part of it that shows the frame touches two opposite sides.
pub(super) fn input_side(geometry: &Geometry) -> usize {
    geometry.valid[2].max(geometry.valid[3]) as usize
}

/// The area of the model's input that shows the frame; the border around it counts in no metric.
pub(super) struct ShownArea {
    x: usize,
    y: usize,
    pub(super) width: usize,
    pub(super) height: usize,
}

impl ShownArea {
    pub(super) fn of(geometry: &Geometry, size: usize) -> Self {
        let [x, y, width, height] = geometry.valid.map(|v| v as usize);
        let (x, y) = (x.min(size), y.min(size));
        Self { x, y, width: width.min(size - x), height: height.min(size - y) }
    }

    /// The values in this area, of `[size, size]` values.
    pub(super) fn cut<T: Copy>(&self, values: &[T], size: usize) -> Vec<T> {
        let rows = values.chunks_exact(size).skip(self.y).take(self.height);
        rows.flat_map(|row| &row[self.x..][..self.width]).copied().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_border_of_a_padded_input_is_cut_away() {
        let geometry = Geometry { original: [8, 4], valid: [0.0, 1.0, 4.0, 2.0], shown: [0.0, 0.0, 8.0, 4.0] };
        let size = input_side(&geometry);
        assert_eq!(size, 4);
        let area = ShownArea::of(&geometry, size);
        let values: Vec<usize> = (0..16).collect();
        assert_eq!(area.cut(&values, size), [4, 5, 6, 7, 8, 9, 10, 11]);
    }
}
