//! From one distance per cell of the feature grid to the anomaly map and the image score.

use super::Mask;
use crate::config::{Config, Size};
use crate::frame::Geometry;
use crate::maps::{resize, smooth, top_mean};

/// Cells of the anomaly map per cell of the feature grid and side.
pub(super) const MAP_SCALE: usize = 4;

/// An anomaly map over the model's input.
#[derive(Clone, Debug, PartialEq)]
pub struct AnomalyMap {
    /// Cells.
    pub size: Size,
    /// Scores, `[height, width]`, row by row; compare with `pixel_threshold` of the detection.
    pub values: Vec<f32>,
    /// Where the input lies in the frame.
    pub geometry: Geometry,
}

impl AnomalyMap {
    /// The highest value.
    pub fn peak(&self) -> f32 {
        self.values.iter().copied().fold(f32::NEG_INFINITY, f32::max)
    }

    /// The values at another size.
    pub fn resized(&self, size: Size) -> Vec<f32> {
        resize(&self.values, self.size, size)
    }

    /// The value at each pixel of the model's input, `[height, width]`.
    pub fn on_input(&self) -> Vec<f32> {
        self.resized(self.geometry.input)
    }

    /// The values over the whole original frame, `[height, width]`; 0 outside of the region of interest.
    pub fn over_frame(&self, width: usize, height: usize) -> Vec<f32> {
        let Geometry { original, input, valid, shown, .. } = self.geometry;
        let fine = self.size.map(|side| side * MAP_SCALE);
        let values = self.resized(fine);
        let cells = [fine.width as f64 / input.width as f64, fine.height as f64 / input.height as f64];
        let mut out = vec![0.0; width * height];
        for y in 0..height {
            let fy = (y as f64 + 0.5) * original[1] as f64 / height as f64 - shown[1];
            for x in 0..width {
                let fx = (x as f64 + 0.5) * original[0] as f64 / width as f64 - shown[0];
                if fx < 0.0 || fy < 0.0 || fx >= shown[2] || fy >= shown[3] {
                    continue;
                }
                let cell = |f: f64, i: usize| {
                    (((f * valid[i + 2] / shown[i + 2] + valid[i]) * cells[i]) as usize).min(fine.sides()[i] - 1)
                };
                out[y * width + x] = values[cell(fy, 1) * fine.width + cell(fx, 0)];
            }
        }
        out
    }

    /// The cells that show the frame, `[x, y, width, height]`; the rest lies over the border that `input.fit = "pad"` adds.
    pub fn cells(&self) -> [usize; 4] {
        let Geometry { valid, input, .. } = self.geometry;
        let sides = self.size.sides();
        let cells = [0, 1].map(|i| sides[i] as f64 / input.sides()[i] as f64);
        let start = |i: usize| ((valid[i] * cells[i]).floor() as usize).min(sides[i] - 1);
        let length = |i: usize| (((valid[i] + valid[i + 2]) * cells[i]).ceil() as usize).min(sides[i]) - start(i);
        [start(0), start(1), length(0).max(1), length(1).max(1)]
    }

    /// The part of the frame that [`AnomalyMap::cells`] cover, `[x, y, width, height]` as fractions of the frame. It may reach a
    /// fraction of a cell beyond the frame where the border does.
    pub fn shown(&self) -> [f64; 4] {
        let Geometry { original, input, valid, shown, .. } = self.geometry;
        let pixels = [0, 1].map(|i| input.sides()[i] as f64 / self.size.sides()[i] as f64);
        let [sx, sy] = self.geometry.scale();
        let cells = self.cells();
        let [x, y, width, height] = [0, 1, 2, 3].map(|i| cells[i] as f64 * pixels[i % 2]);
        let (w, h) = (original[0] as f64, original[1] as f64);
        [(shown[0] + (x - valid[0]) * sx) / w, (shown[1] + (y - valid[1]) * sy) / h, width * sx / w, height * sy / h]
    }
}

/// Makes anomaly maps: enlarges the grid four times, smooths it, and takes the mean of its largest values as the image score.
pub(super) struct MapBuilder {
    /// The feature grid.
    grid: Size,
    /// Standard deviation of the Gaussian along rows and along columns, in cells of the map.
    sigma: [f32; 2],
    /// Number of the map's values that the image score is the mean of.
    scored: usize,
}

impl MapBuilder {
    pub(super) fn new(config: &Config) -> Self {
        let (grid, input) = (config.grid(), config.input.size.sides());
        let cells = [0, 1].map(|i| (grid.sides()[i] * MAP_SCALE) as f64);
        let sigma = [0, 1].map(|i| (config.detection.smoothing_px * cells[i] / input[i] as f64) as f32);
        Self { grid, sigma, scored: (config.scored_cells() * (MAP_SCALE * MAP_SCALE) as f64).round() as usize }
    }

    /// Image score and map of one distance per cell of the grid, `[T]`.
    pub(super) fn build(&self, mut distances: Vec<f32>, geometry: Geometry, mask: Option<&Mask>) -> (f32, AnomalyMap) {
        let (grid, size) = (self.grid, self.grid.map(|side| side * MAP_SCALE));
        if !geometry.is_full() {
            blank_border(&mut distances, grid, geometry);
        }
        let enlarge = |cells: &[f32]| smooth(&resize(cells, grid, size), size, self.sigma);
        let (values, score) = match mask {
            None => {
                let values = enlarge(&distances);
                let score = top_mean(&values, self.scored);
                (values, score)
            }
            Some(mask) => {
                let values = mask.apply(distances, grid, enlarge);
                let score = top_mean(&mask.counted(&values), self.scored);
                (values, score)
            }
        };
        (score, carried_back(AnomalyMap { size, values, geometry }))
    }
}

/// A map over a part that lies elsewhere, on the pixels of the frame as they are: 0 where it was not looked.
fn carried_back(map: AnomalyMap) -> AnomalyMap {
    let AnomalyMap { size, values, geometry } = &map;
    if geometry.pose.is_none() {
        return map;
    }
    let pixels = [0, 1].map(|i| geometry.input.sides()[i] as f64 / size.sides()[i] as f64);
    let value = |t: usize| {
        let middle = [t % size.width, t / size.width].map(|cell| cell as f64 + 0.5);
        let at = geometry.from_unmoved(middle[0] * pixels[0], middle[1] * pixels[1]);
        let [x, y] = [0, 1].map(|i| at[i] / pixels[i] - 0.5);
        if x < -0.5 || y < -0.5 || x > size.width as f64 - 0.5 || y > size.height as f64 - 0.5 {
            return 0.0;
        }
        let place = |at: f64, side: usize| {
            let at = at.clamp(0.0, (side - 1) as f64);
            (at as usize, (at as usize + 1).min(side - 1), (at - at.floor()) as f32)
        };
        let ((x0, x1, fx), (y0, y1, fy)) = (place(x, size.width), place(y, size.height));
        let row = |y: usize| values[y * size.width + x0] * (1.0 - fx) + values[y * size.width + x1] * fx;
        row(y0) * (1.0 - fy) + row(y1) * fy
    };
    AnomalyMap { size: *size, values: (0..size.area()).map(value).collect(), geometry: geometry.unmoved() }
}

/// Sets the cells of the grid to 0 whose centre lies outside of the part of the input that shows the frame.
fn blank_border(distance: &mut [f32], grid: Size, geometry: Geometry) {
    let pixels = [0, 1].map(|i| geometry.input.sides()[i] as f64 / grid.sides()[i] as f64);
    for (i, d) in distance.iter_mut().enumerate() {
        let (cx, cy) = ((i % grid.width) as f64 + 0.5, (i / grid.width) as f64 + 0.5);
        if !geometry.is_inside(cx * pixels[0], cy * pixels[1]) {
            *d = 0.0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frame::Preprocess;

    /// The score of a defect of 3x2 cells on a frame of this many cells of 16 pixels.
    fn score(grid: Size, set: &[&str]) -> f32 {
        let mut config = Config::default();
        config.input.size = grid.map(|cells| 16 * cells);
        config.assign(set).unwrap();
        assert_eq!(config.grid(), grid);
        let Size { width, height } = config.input.size;
        let geometry = Preprocess::of(&config.input).geometry(width, height).unwrap();
        let (left, top) = (grid.width / 2, grid.height / 2);
        let inside = |t: usize| {
            let (x, y) = (t % grid.width, t / grid.width);
            (left..left + 3).contains(&x) && (top..top + 2).contains(&y)
        };
        let cells = (0..grid.area()).map(|t| if inside(t) { 40.0 } else { 10.0 }).collect();
        MapBuilder::new(&config).build(cells, geometry, None).0
    }

    /// One megapixel and five, with the same pixels per cell.
    #[test]
    fn a_defect_does_not_fade_in_a_large_frame() {
        let (one, five) = (Size::new(72, 56), Size::new(160, 128));
        let grid = |size: Size| format!("features.grid={:?}", size.sides());
        let (small, large) = (score(one, &[&grid(one)]), score(five, &[&grid(five)]));
        assert!(small > 35.0 && (small / large - 1.0).abs() < 1e-5, "{small} {large}");
        let share = "detection.top_fraction=0.01";
        let (small, large) = (score(one, &[&grid(one), share]), score(five, &[&grid(five), share]));
        assert!(large - 10.0 < 0.5 * (small - 10.0), "a share of the map fades: {small} {large}");
    }

    #[test]
    fn maps_of_rectangles_lie_on_the_frame() {
        let mut config = Config::default();
        config.assign(&["input.size=[128,64]", "features.grid=[16,8]", "input.fit=pad"]).unwrap();
        // A frame of 100x100 lies in the middle of the input, 64 pixels wide, on 8 of 16 columns.
        let geometry = Preprocess::of(&config.input).geometry(100, 100).unwrap();
        assert_eq!(geometry.valid, [32.0, 0.0, 64.0, 64.0]);
        let cells = (0..128).map(|t| if t % 16 == 4 { 9.0 } else { 1.0 }).collect();
        let (_, map) = MapBuilder::new(&config).build(cells, geometry, None);
        assert_eq!((map.size.sides(), map.cells()), ([64, 32], [16, 0, 32, 32]));
        assert_eq!(map.shown(), [0.0, 0.0, 1.0, 1.0]);
        let over = map.over_frame(100, 100);
        assert!(over[50 * 100 + 6] > 4.0 && over[50 * 100 + 60] < 1.5, "{} {}", over[5006], over[5060]);
    }
}
