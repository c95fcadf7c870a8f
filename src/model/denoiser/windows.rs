//! Attention in windows: cells attend to those of their own window, so that its cost grows with the number of cells and not with its
//! square. What crosses the edge of a window goes through the convolutions before and after.

use candle_core::{Device, Result, Tensor};

use crate::config::Size;
use crate::ops::{self, AttentionShape, Mode};

/// The windows of a grid, those of one size together.
pub(super) struct Windows {
    groups: Vec<Group>,
    /// For each cell of the grid its place in the groups, one after the other, `[T]`.
    back: Tensor,
}

struct Group {
    /// The cells of the windows, one window after the other, `[windows x cells]`.
    cells: Tensor,
    windows: usize,
}

impl Windows {
    /// Windows of at most `side` x `side` cells, as even as they can be; `None` where one holds the whole grid, as it does with a
    /// `side` of 0. `shifted` windows lie half a window further, with halves at the ends of the grid, so that what the edge of one
    /// divides is together in the other (Liu et al. 2021).
    ///
    /// # Errors
    /// When the device has no room.
    pub(super) fn of(grid: Size, side: usize, shifted: bool, device: &Device) -> Result<Option<Self>> {
        if side == 0 || grid.sides().iter().all(|cells| *cells <= side) {
            return Ok(None);
        }
        let mut groups: Vec<(Size, Vec<u32>, usize)> = Vec::new();
        let parts = |cells: usize| {
            let count = cells.div_ceil(side);
            let edge = |i: usize| i * cells / count;
            let middles = (0..count).map(|i| usize::midpoint(edge(i), edge(i + 1)));
            let inner: Vec<usize> =
                if shifted && count > 1 { middles.collect() } else { (1..count).map(edge).collect() };
            let starts = [0].into_iter().chain(inner.clone());
            starts.zip(inner.into_iter().chain([cells])).map(|(start, end)| start..end).collect::<Vec<_>>()
        };
        for rows in parts(grid.height) {
            for columns in parts(grid.width) {
                let size = Size::new(columns.len(), rows.len());
                let cells = rows.clone().flat_map(|y| columns.clone().map(move |x| (y * grid.width + x) as u32));
                match groups.iter_mut().find(|(known, ..)| *known == size) {
                    Some((_, all, windows)) => {
                        all.extend(cells);
                        *windows += 1;
                    }
                    None => groups.push((size, cells.collect(), 1)),
                }
            }
        }
        let mut back = vec![0u32; grid.area()];
        for (place, &cell) in (0..).zip(groups.iter().flat_map(|(_, cells, _)| cells)) {
            back[cell as usize] = place;
        }
        let group = |(_, cells, windows): (Size, Vec<u32>, usize)| {
            Ok(Group { cells: Tensor::new(cells.as_slice(), device)?, windows })
        };
        let groups = groups.into_iter().map(group).collect::<Result<_>>()?;
        Ok(Some(Self { groups, back: Tensor::new(back.as_slice(), device)? }))
    }

    /// Pairs of cells that meet.
    pub(super) fn pairs(&self) -> usize {
        let pairs = |group: &Group| group.cells.elem_count().pow(2) / group.windows;
        self.groups.iter().map(pairs).sum()
    }

    /// [`ops::attention`] in each window, `x` `[B, T, C]`.
    ///
    /// # Errors
    /// When shapes do not fit.
    pub(super) fn attention(
        &self,
        x: &Tensor,
        parameters: &Tensor,
        modulation: &Tensor,
        shape: AttentionShape,
        mode: Mode<'_>,
    ) -> Result<Tensor> {
        let (batch, _, channels) = x.dims3()?;
        let width = modulation.dim(1)?;
        let group = |Group { cells, windows }: &Group| {
            let (all, tokens) = (cells.dim(0)?, cells.dim(0)? / windows);
            let own = x.index_select(cells, 1)?.reshape((batch * windows, tokens, channels))?;
            let modulation = modulation.unsqueeze(1)?.broadcast_as((batch, *windows, width))?.contiguous()?;
            let modulation = modulation.reshape((batch * windows, width))?;
            let shape = AttentionShape { tokens, ..shape };
            ops::attention(&own, parameters, &modulation, shape, mode)?.reshape((batch, all, channels))
        };
        let groups = self.groups.iter().map(group).collect::<Result<Vec<_>>>()?;
        Tensor::cat(&groups, 1)?.index_select(&self.back, 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::Packs;

    fn number(i: usize) -> f32 {
        ((i as f32 * 12.9898).sin() * 43758.547).fract()
    }

    /// In each window the result is that of attention over the window alone, and every cell comes back to its place.
    #[test]
    fn a_window_attends_to_itself() {
        let (grid, side, channels) = (Size::new(5, 7), 3, 8);
        let shape = AttentionShape { tokens: grid.area(), channels, heads: 2 };
        let tensor = |dims: &[usize], from: usize| {
            let values: Vec<f32> = (from..from + dims.iter().product::<usize>()).map(number).collect();
            Tensor::from_vec(values, dims, &Device::Cpu).unwrap()
        };
        let x = tensor(&[2, grid.area(), channels], 0);
        let (parameters, modulation) = (tensor(&[shape.parameters()], 9000), tensor(&[2, 3 * channels], 5000));
        let windows = Windows::of(grid, side, false, &Device::Cpu).unwrap().unwrap();
        let whole = windows.attention(&x, &parameters, &modulation, shape, Mode::Inference(&Packs::default())).unwrap();
        // Columns 2 to 4, rows 2 and 3: rows are 0..2, 2..4, 4..7, columns 0..2, 2..5.
        let cells: Vec<u32> = [2, 3].iter().flat_map(|y| [2, 3, 4].map(|x| y * 5 + x)).collect();
        let cells = Tensor::new(cells.as_slice(), &Device::Cpu).unwrap();
        let own = AttentionShape { tokens: 6, ..shape };
        let alone = x.index_select(&cells, 1).unwrap();
        let alone = ops::attention(&alone, &parameters, &modulation, own, Mode::Inference(&Packs::default())).unwrap();
        let list = |t: Tensor| t.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        // Shifted, the edges lie in the middles: rows 0..1, 1..3, 3..5, 5..7, columns 0..1, 1..3, 3..5.
        let shifted = Windows::of(grid, side, true, &Device::Cpu).unwrap().unwrap();
        let shifted =
            shifted.attention(&x, &parameters, &modulation, shape, Mode::Inference(&Packs::default())).unwrap();
        let near: Vec<u32> = [3, 4].iter().flat_map(|y| [1, 2].map(|x| y * 5 + x)).collect();
        let near = Tensor::new(near.as_slice(), &Device::Cpu).unwrap();
        let together = x.index_select(&near, 1).unwrap();
        let four = AttentionShape { tokens: 4, ..shape };
        let together =
            ops::attention(&together, &parameters, &modulation, four, Mode::Inference(&Packs::default())).unwrap();
        assert_eq!(list(shifted.index_select(&near, 1).unwrap()), list(together));
        assert_eq!(list(whole.index_select(&cells, 1).unwrap()), list(alone));
        assert!(Windows::of(grid, 7, true, &Device::Cpu).unwrap().is_none(), "one window holds all");
        assert!(Windows::of(grid, 0, false, &Device::Cpu).unwrap().is_none(), "0: no windows");
    }
}
