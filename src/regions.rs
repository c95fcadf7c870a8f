//! Connected regions of a mask or of an anomaly map.
//!
//! Neighbours are the eight around a pixel, as in `scipy.ndimage.label` with a 3x3 structure of ones and in MVTec's
//! definition of AUPRO: two pixels that touch at a corner are one region.

use std::ops::Range;

use serde::{Deserialize, Serialize};

/// The connected components of a mask.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Components {
    /// Per pixel, row by row: 0 outside the mask, else the component's number `1..=count`; components are numbered in the
    /// raster order of their first pixels.
    pub labels: Vec<u32>, // [H, W]
    /// How many components there are.
    pub count: usize,
}

/// One connected region of an anomaly map, in pixels of that map.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Region {
    /// Left column of the box.
    pub x: u32,
    /// Top row of the box.
    pub y: u32,
    /// Columns of the box.
    pub width: u32,
    /// Rows of the box.
    pub height: u32,
    /// Pixels in the region (not in its box).
    pub area: u32,
    /// Highest value of the map in the region.
    pub peak: f32,
}

/// The 8-connected components of `mask`, `[height, width]`.
///
/// A `mask` of another length than `width * height` is no error: rows that it does not hold in full, and pixels after the last
/// row, are background. `labels` is always as long as `mask`.
pub fn components(mask: &[bool], width: usize, height: usize) -> Components {
    let mut labels = vec![0_u32; mask.len()];
    let rows = mask.len().checked_div(width).unwrap_or(0).min(height);
    // Runs of pixels in a row, each a member of the tree of the first run that it is known to be connected with.
    let mut runs: Vec<Run> = Vec::new();
    let mut above = 0..0;
    for (y, row) in mask.chunks_exact(width.max(1)).take(rows).enumerate() {
        let first = runs.len();
        let mut x = 0;
        while let Some(start) = row[x..].iter().position(|&inside| inside).map(|skipped| x + skipped) {
            let end = row[start..].iter().position(|&inside| !inside).map_or(width, |length| start + length);
            let this = runs.len();
            runs.push(Run { pixels: y * width + start..y * width + end, parent: this });
            // Those of the row above that end before this one begins touch none of those to come either.
            while above.start < above.end && runs[above.start].pixels.end + width < y * width + start {
                above.start += 1;
            }
            for other in above.clone() {
                if runs[other].pixels.start + width > y * width + end {
                    break;
                }
                join(&mut runs, other, this);
            }
            x = end;
        }
        above = first..runs.len();
    }
    let mut count = 0_u32;
    let mut numbers = vec![0_u32; runs.len()];
    for index in 0..runs.len() {
        let root = root(&mut runs, index);
        if root == index {
            // More than u32::MAX components would need a mask of 16 G pixels, one label per 2x2 block.
            count = count.saturating_add(1);
            numbers[index] = count;
        }
        labels[runs[index].pixels.clone()].fill(numbers[root]);
    }
    Components { labels, count: count as usize }
}

struct Run {
    pixels: Range<usize>,
    /// A run of the same component that came before; itself where none is known.
    parent: usize,
}

/// The first run of a component, as far as it is known.
fn root(runs: &mut [Run], mut index: usize) -> usize {
    while runs[index].parent != index {
        runs[index].parent = runs[runs[index].parent].parent;
        index = runs[index].parent;
    }
    index
}

fn join(runs: &mut [Run], one: usize, other: usize) {
    let (one, other) = (root(runs, one), root(runs, other));
    runs[one.max(other)].parent = one.min(other);
}

/// The regions of `map`, `[height, width]`, strictly above `threshold` and of at least `min_area` pixels, highest peak
/// first; equal peaks keep the raster order of their first pixels. NaN is never above a threshold.
pub fn regions(map: &[f32], width: usize, height: usize, threshold: f32, min_area: u32) -> Vec<Region> {
    if !map.iter().any(|&value| value > threshold) {
        return Vec::new(); // as with most parts
    }
    let mask: Vec<bool> = map.iter().map(|&value| value > threshold).collect();
    let components = components(&mask, width, height);
    let none = Region { x: 0, y: 0, width: 0, height: 0, area: 0, peak: f32::NEG_INFINITY };
    let mut found = vec![none; components.count];
    for (pixel, (&label, &value)) in components.labels.iter().zip(map).enumerate() {
        let Some(region) = (label as usize).checked_sub(1).and_then(|at| found.get_mut(at)) else { continue };
        let (x, y) = ((pixel % width) as u32, (pixel / width) as u32);
        if region.area == 0 {
            (region.x, region.y) = (x, y); // no later pixel is above it
        }
        let right = (region.x + region.width).max(x + 1);
        region.x = region.x.min(x);
        (region.width, region.height) = (right - region.x, y + 1 - region.y);
        region.area += 1;
        region.peak = region.peak.max(value);
    }
    found.retain(|region| region.area >= min_area);
    found.sort_by(|a, b| b.peak.total_cmp(&a.peak));
    found
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn mask(rows: &[&str]) -> (Vec<bool>, usize, usize) {
        let pixels = rows.iter().flat_map(|row| row.chars().map(|c| c == '#')).collect();
        (pixels, rows[0].len(), rows.len())
    }

    #[test]
    fn pixels_that_touch_at_a_corner_are_one_component() {
        for picture in [["#..", ".#.", "..#"], ["..#", ".#.", "#.."]] {
            let (pixels, width, height) = mask(&picture);
            assert_eq!(components(&pixels, width, height).count, 1, "{picture:?}");
        }
    }

    #[test]
    fn labels_follow_the_raster_order_of_first_pixels() {
        // The left arm of the U is met first, its right arm joins it from below.
        let (pixels, width, height) = mask(&["#.#..#", "#.#...", "###..#"]);
        let found = components(&pixels, width, height);
        assert_eq!(found.count, 3);
        assert_eq!(found.labels, [1, 0, 1, 0, 0, 2, 1, 0, 1, 0, 0, 0, 1, 1, 1, 0, 0, 3]);
    }

    #[test]
    fn a_row_does_not_touch_the_next_one_around_the_edge() {
        let (pixels, width, height) = mask(&["...#", "....", "#..."]);
        assert_eq!(components(&pixels, width, height).count, 2);
        let (pixels, width, height) = mask(&["...#", "#..."]);
        assert_eq!(components(&pixels, width, height).count, 2);
    }

    #[test]
    fn a_mask_of_the_wrong_size_loses_pixels_but_does_not_panic() {
        assert_eq!(components(&[true; 5], 3, 9), Components { labels: vec![1, 1, 1, 0, 0], count: 1 });
        assert_eq!(components(&[true; 5], 0, 4), Components { labels: vec![0; 5], count: 0 });
        assert_eq!(components(&[true; 5], 9, 9).count, 0);
        assert_eq!(components(&[], 4, 4), Components { labels: vec![], count: 0 });
        assert!(regions(&[1.0; 5], 0, 4, 0.0, 0).is_empty());
    }

    #[test]
    fn regions_have_box_area_and_peak_highest_peak_first() {
        #[rustfmt::skip]
        let map = [
            2.0, 0.0, 0.0, 0.0, 0.0,
            0.0, 3.0, 0.0, 0.0, 9.0,
            0.0, 0.0, 0.0, 8.0, 0.0,
            0.0, 0.0, 0.0, 1.0, 0.0,
        ];
        let found = regions(&map, 5, 4, 1.0, 1);
        assert_eq!(
            found,
            [
                Region { x: 3, y: 1, width: 2, height: 2, area: 2, peak: 9.0 },
                Region { x: 0, y: 0, width: 2, height: 2, area: 2, peak: 3.0 },
            ],
            "the pixel that equals the threshold belongs to no region"
        );
    }

    #[test]
    fn small_regions_are_left_out() {
        let map = [5.0, 0.0, 4.0, 4.0];
        let areas = |min_area| regions(&map, 4, 1, 1.0, min_area).iter().map(|r| r.area).collect::<Vec<_>>();
        assert_eq!(areas(0), [1, 2]);
        assert_eq!(areas(2), [2]);
        assert!(areas(3).is_empty());
    }

    #[test]
    fn nan_is_in_no_region() {
        assert_eq!(regions(&[f32::NAN, 2.0], 2, 1, 1.0, 1).iter().map(|r| (r.x, r.area)).collect::<Vec<_>>(), [(1, 1)]);
        assert!(regions(&[1.0, 2.0], 2, 1, f32::NAN, 1).is_empty());
    }

    /// Every pixel takes the smallest number among its neighbours until nothing changes.
    fn brute_force(mask: &[bool], width: usize, height: usize) -> Vec<u32> {
        let mut labels: Vec<u32> = mask.iter().zip(1..).map(|(&inside, n)| if inside { n } else { 0 }).collect();
        loop {
            let before = labels.clone();
            for a in 0..width * height {
                for b in 0..width * height {
                    let near = (a % width).abs_diff(b % width) <= 1 && (a / width).abs_diff(b / width) <= 1;
                    if near && mask[a] && mask[b] {
                        labels[a] = labels[a].min(labels[b]);
                    }
                }
            }
            if labels == before {
                break;
            }
        }
        let mut first: Vec<u32> = labels.iter().copied().filter(|&l| l > 0).collect();
        first.sort_unstable();
        first.dedup();
        labels.iter().map(|l| first.iter().position(|f| f == l).map_or(0, |at| at as u32 + 1)).collect()
    }

    proptest! {
        #[test]
        fn components_equal_the_brute_force(width in 1_usize..9, height in 1_usize..9, seed in prop::collection::vec(any::<bool>(), 64)) {
            let mask = &seed[..width * height];
            let found = components(mask, width, height);
            prop_assert_eq!(&found.labels, &brute_force(mask, width, height));
            prop_assert_eq!(found.count as u32, found.labels.iter().copied().max().unwrap_or(0));
        }

        #[test]
        fn regions_cover_exactly_the_pixels_above_the_threshold(values in prop::collection::vec(-3_i8..4, 48)) {
            let map: Vec<f32> = values.iter().map(|&v| f32::from(v)).collect();
            let found = regions(&map, 8, 6, 1.0, 0);
            let above = map.iter().filter(|&&v| v > 1.0).count() as u32;
            prop_assert_eq!(found.iter().map(|r| r.area).sum::<u32>(), above);
            for region in &found {
                prop_assert!(region.area <= region.width * region.height);
                prop_assert!(region.x + region.width <= 8 && region.y + region.height <= 6);
            }
            prop_assert!(found.windows(2).all(|pair| pair[0].peak >= pair[1].peak));
        }
    }
}
