//! From one distance per cell of the feature grid to the anomaly map and the image score.

use super::Mask;
use crate::config::Config;
use crate::frame::Geometry;
use crate::maps::{resize, smooth, top_mean};

/// Cells of the anomaly map per cell of the feature grid and side.
pub(super) const MAP_SCALE: usize = 4;

/// A square anomaly map over the model's input.
#[derive(Clone, Debug, PartialEq)]
pub struct AnomalyMap {
    /// Cells per side.
    pub side: usize,
    /// Scores, `[side, side]`, row by row; compare with `pixel_threshold` of the detection.
    pub values: Vec<f32>,
    /// Where the input lies in the frame.
    pub geometry: Geometry,
}

impl AnomalyMap {
    /// The highest value.
    pub fn peak(&self) -> f32 {
        self.values.iter().copied().fold(f32::NEG_INFINITY, f32::max)
    }

    /// The values at another size, `[side, side]`.
    pub fn resized(&self, side: usize) -> Vec<f32> {
        resize(&self.values, self.side, side)
    }

    /// The values over the whole original frame, `[height, width]`; 0 outside of the region of interest.
    pub fn over_frame(&self, width: usize, height: usize) -> Vec<f32> {
        let Geometry { original, valid, shown } = self.geometry;
        let input = self.resized(self.side * MAP_SCALE);
        let cells = (self.side * MAP_SCALE) as f64 / self.input_size(valid);
        let mut out = vec![0.0; width * height];
        for y in 0..height {
            let fy = (y as f64 + 0.5) * original[1] as f64 / height as f64 - shown[1];
            for x in 0..width {
                let fx = (x as f64 + 0.5) * original[0] as f64 / width as f64 - shown[0];
                if fx < 0.0 || fy < 0.0 || fx >= shown[2] || fy >= shown[3] {
                    continue;
                }
                let side = self.side * MAP_SCALE;
                let cell =
                    |f: f64, i: usize| (((f * valid[i + 2] / shown[i + 2] + valid[i]) * cells) as usize).min(side - 1);
                out[y * width + x] = input[cell(fy, 1) * side + cell(fx, 0)];
            }
        }
        out
    }

    /// The cells that show the frame, `[x, y, width, height]`; the rest lies over the border that `input.fit = "pad"` adds.
    pub fn cells(&self) -> [usize; 4] {
        let valid = self.geometry.valid;
        let cells = self.side as f64 / self.input_size(valid);
        let start = |i: usize| ((valid[i] * cells).floor() as usize).min(self.side - 1);
        let length = |i: usize| (((valid[i] + valid[i + 2]) * cells).ceil() as usize).min(self.side) - start(i);
        [start(0), start(1), length(0).max(1), length(1).max(1)]
    }

    /// The part of the frame that [`AnomalyMap::cells`] cover, `[x, y, width, height]` as fractions of the frame. It may reach a
    /// fraction of a cell beyond the frame where the border does.
    pub fn shown(&self) -> [f64; 4] {
        let Geometry { original, valid, shown } = self.geometry;
        let pixels = self.input_size(valid) / self.side as f64;
        let [sx, sy] = self.geometry.scale();
        let [x, y, width, height] = self.cells().map(|cells| cells as f64 * pixels);
        let (w, h) = (original[0] as f64, original[1] as f64);
        [(shown[0] + (x - valid[0]) * sx) / w, (shown[1] + (y - valid[1]) * sy) / h, width * sx / w, height * sy / h]
    }

    /// Side of the model's input: the valid part is centred and touches two opposite sides.
    fn input_size(&self, valid: [f64; 4]) -> f64 {
        valid[2].max(valid[3])
    }
}

/// Makes anomaly maps: enlarges the grid four times, smooths it, and takes the mean of its largest values as the image score.
pub(super) struct MapBuilder {
    /// Cells per side of the feature grid.
    grid: usize,
    /// Pixels per side of the model's input.
    input_size: usize,
    /// Standard deviation of the Gaussian, in cells of the map.
    sigma: f32,
    /// Share of the map's values that the image score is the mean of, 0..=1.
    top_fraction: f64,
}

impl MapBuilder {
    pub(super) fn new(config: &Config) -> Self {
        let (grid, input_size) = (config.features.grid, config.input.size);
        let sigma = (config.detection.smoothing_px * (grid * MAP_SCALE) as f64 / input_size as f64) as f32;
        Self { grid, input_size, sigma, top_fraction: config.detection.top_fraction }
    }

    /// Image score and map of one distance per cell of the grid, `[T]`.
    pub(super) fn build(&self, mut distances: Vec<f32>, geometry: Geometry, mask: Option<&Mask>) -> (f32, AnomalyMap) {
        let (grid, side) = (self.grid, self.grid * MAP_SCALE);
        if geometry.valid[2] != geometry.valid[3] {
            blank_border(&mut distances, grid, geometry, self.input_size);
        }
        let enlarge = |cells: &[f32]| smooth(&resize(cells, grid, side), side, self.sigma);
        let (values, score) = match mask {
            None => {
                let values = enlarge(&distances);
                let score = top_mean(&values, self.top_fraction);
                (values, score)
            }
            Some(mask) => {
                let values = mask.apply(distances, grid, enlarge);
                let score = top_mean(&mask.counted(&values), self.top_fraction);
                (values, score)
            }
        };
        (score, AnomalyMap { side, values, geometry })
    }
}

/// Sets the cells of the grid to 0 whose centre lies outside of the part of the input that shows the frame.
fn blank_border(distance: &mut [f32], grid: usize, geometry: Geometry, size: usize) {
    let [x, y, w, h] = geometry.valid.map(|v| v * grid as f64 / size as f64);
    for (i, d) in distance.iter_mut().enumerate() {
        let (cx, cy) = ((i % grid) as f64 + 0.5, (i / grid) as f64 + 0.5);
        if cx < x || cy < y || cx > x + w || cy > y + h {
            *d = 0.0;
        }
    }
}
