//! Anomaly maps as colours over a frame. The scale hangs on the threshold, never on the picture: the same colour means
//! the same distance from the limit on every frame of every run.
//!
//! | value / pixel threshold | looks |
//! | --- | --- |
//! | up to 1/2 | the frame itself |
//! | 1/2 to 1 | a breath of blue to violet: worth a look, not a defect |
//! | 1 | the step that can be seen: from here on the map calls it a defect |
//! | 1 to 4 | pink, orange, yellow, lighter the stronger |

use crate::frame::Frame;

/// Plasma of matplotlib (Nathaniel Smith, Stefan van der Walt, CC0) at 0, 1/9, ..., 1: lightness rises all the way, so
/// that the order survives grey printing and colour-blind eyes.
const PLASMA: [[u8; 3]; 10] = [
    [13, 8, 135],
    [70, 3, 159],
    [114, 1, 168],
    [156, 23, 158],
    [189, 55, 134],
    [216, 87, 107],
    [237, 121, 83],
    [251, 159, 58],
    [253, 202, 38],
    [240, 249, 33],
];
/// Levels below the threshold (one octave, from its half) and above it (two octaves, to four times); see [`octaves`].
const BELOW: usize = 128;
const ABOVE: usize = 256;
/// Opacity just below the threshold, at it, and at the top of the scale.
const OPACITY: [f32; 3] = [0.4, 0.6, 0.8];

/// An anomaly map, values row by row.
#[derive(Clone, Copy, Debug)]
pub struct MapView<'a> {
    /// `[height, width]`; any size, it is spread over the whole frame.
    pub values: &'a [f32],
    /// Columns.
    pub width: usize,
    /// Rows.
    pub height: usize,
}

/// The colours for one pixel threshold.
#[derive(Clone, Debug)]
pub struct HeatScale {
    threshold: f32,
    levels: Vec<[u8; 4]>, // RGBA, straight alpha; BELOW + ABOVE of them
}

impl HeatScale {
    /// The scale that hangs on `pixel_threshold`.
    ///
    /// A threshold that is not a positive number has no half: then there is nothing below it, and all that lies strictly
    /// above it has the top colour.
    pub fn new(pixel_threshold: f32) -> Self {
        Self::with_opacity(pixel_threshold, 1.0)
    }

    /// As [`HeatScale::new`], all opacities times `opacity` (0..=1).
    pub fn with_opacity(pixel_threshold: f32, opacity: f32) -> Self {
        let level = |index: usize| {
            let (position, alpha) = if index < BELOW {
                let share = index as f32 / BELOW as f32;
                (share * 0.4, share * OPACITY[0])
            } else {
                let share = (index - BELOW) as f32 / (ABOVE - 1) as f32;
                (0.4 + share * 0.6, OPACITY[1] + share * (OPACITY[2] - OPACITY[1]))
            };
            let [r, g, b] = plasma(position);
            [r, g, b, (alpha * opacity.clamp(0.0, 1.0) * 255.0).round() as u8]
        };
        Self { threshold: pixel_threshold, levels: (0..BELOW + ABOVE).map(level).collect() }
    }

    /// Colour and opacity (straight alpha) of one value; NaN is transparent.
    pub fn rgba(&self, value: f32) -> [u8; 4] {
        const CLEAR: [u8; 4] = [0; 4];
        if !(self.threshold > 0.0 && self.threshold.is_finite()) {
            return if value > self.threshold { self.levels[BELOW + ABOVE - 1] } else { CLEAR };
        }
        let ratio = value / self.threshold;
        if ratio.is_nan() || ratio <= 0.5 {
            return CLEAR;
        }
        let level = octaves(ratio, 0.5);
        // A quotient that rounds to 1 must not move its value across the threshold.
        self.levels[if value > self.threshold { level.clamp(BELOW, BELOW + ABOVE - 1) } else { level.min(BELOW - 1) }]
    }

    /// `frame` with `map` over it: bilinear between the map's cells, transparent below half of the threshold.
    ///
    /// A map whose length is not width times height, or that is empty, shows nothing.
    pub fn paint(&self, frame: &Frame, map: MapView<'_>) -> Frame {
        let mut rgb = frame.rgb().to_vec();
        let mut pixels = rgb.chunks_exact_mut(3);
        self.visit(frame.width(), frame.height(), map, |[r, g, b, alpha]| {
            if let Some(pixel) = pixels.next()
                && alpha > 0
            {
                for (below, above) in pixel.iter_mut().zip([r, g, b]) {
                    let (below_part, above_part) = (u32::from(*below) * u32::from(255 - alpha), u32::from(above));
                    *below = ((below_part + above_part * u32::from(alpha) + 127) / 255) as u8;
                }
            }
        });
        Frame::new(frame.width(), frame.height(), rgb).unwrap_or_else(|_| frame.clone())
    }

    /// The map alone as `[height, width, 4]` RGBA with straight alpha, to lie over a frame of that size.
    pub fn layer(&self, width: usize, height: usize, map: MapView<'_>) -> Vec<u8> {
        let mut rgba = Vec::with_capacity(width * height * 4);
        self.visit(width, height, map, |color| rgba.extend_from_slice(&color));
        rgba.resize(width * height * 4, 0);
        rgba
    }

    /// The colours of a `width` x `height` picture of `map`, row by row; none when the map is malformed.
    fn visit(&self, width: usize, height: usize, map: MapView<'_>, mut each: impl FnMut([u8; 4])) {
        if map.values.is_empty() || map.width.checked_mul(map.height) != Some(map.values.len()) {
            return;
        }
        let columns: Vec<Tap> = (0..width).map(|x| Tap::new(x, width, map.width)).collect();
        let mut row = vec![0.0_f32; map.width];
        for y in 0..height {
            let tap = Tap::new(y, height, map.height);
            let upper = &map.values[tap.first * map.width..][..map.width];
            let lower = &map.values[tap.second * map.width..][..map.width];
            for ((value, &a), &b) in row.iter_mut().zip(upper).zip(lower) {
                *value = tap.mix(a, b);
            }
            for tap in &columns {
                each(self.rgba(tap.mix(row[tap.first], row[tap.second])));
            }
        }
    }
}

/// Where a pixel lies between two cells of the map, cell centres over pixel centres, edges repeated.
#[derive(Clone, Copy)]
struct Tap {
    first: usize,
    second: usize,
    weight: f32,
}

impl Tap {
    fn new(pixel: usize, pixels: usize, cells: usize) -> Self {
        let position = ((pixel as f64 + 0.5) * cells as f64 / pixels as f64 - 0.5).clamp(0.0, (cells - 1) as f64);
        let first = position as usize;
        Self { first, second: (first + 1).min(cells - 1), weight: (position - first as f64) as f32 }
    }

    /// Exactly `a` where the pixel lies on the first cell, so that a map of the frame's size is shown as it is.
    fn mix(self, a: f32, b: f32) -> f32 {
        if self.weight == 0.0 { a } else { a + (b - a) * self.weight }
    }
}

/// How far `ratio` lies above `from`, both positive, in 1/128 octaves: 128 is twice as much, 256 four times.
///
/// The upper bits of a float are its logarithm, straight within each octave; taking them is all that a pixel costs.
fn octaves(ratio: f32, from: f32) -> usize {
    (ratio.to_bits().saturating_sub(from.to_bits()) >> 16) as usize
}

/// The colour at `position`, 0..=1.
fn plasma(position: f32) -> [u8; 3] {
    let scaled = position.clamp(0.0, 1.0) * (PLASMA.len() - 1) as f32;
    let first = (scaled as usize).min(PLASMA.len() - 2);
    let weight = scaled - first as f32;
    std::array::from_fn(|channel| {
        let (a, b) = (f32::from(PLASMA[first][channel]), f32::from(PLASMA[first + 1][channel]));
        (a + (b - a) * weight).round() as u8
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn heatmap(frame: &Frame, values: &[f32], width: usize, height: usize, pixel_threshold: f32) -> Frame {
        HeatScale::new(pixel_threshold).paint(frame, MapView { values, width, height })
    }

    fn grey(width: usize, height: usize) -> Frame {
        Frame::new(width, height, vec![100; width * height * 3]).unwrap()
    }

    fn pixel(frame: &Frame, x: usize, y: usize) -> [u8; 3] {
        std::array::from_fn(|channel| frame.rgb()[(y * frame.width() + x) * 3 + channel])
    }

    /// Relative luminance of sRGB.
    fn luminance([r, g, b]: [u8; 3]) -> f64 {
        let linear = |v: u8| (f64::from(v) / 255.0).powf(2.2);
        0.2126 * linear(r) + 0.7152 * linear(g) + 0.0722 * linear(b)
    }

    #[test]
    fn what_is_below_half_the_threshold_shows_the_frame() {
        let frame = grey(4, 4);
        for value in [-7.0, 0.0, 1.0, f32::NEG_INFINITY, f32::NAN] {
            assert_eq!(heatmap(&frame, &[value; 16], 4, 4, 2.0), frame, "{value}");
        }
        assert_ne!(heatmap(&frame, &[1.5; 16], 4, 4, 2.0), frame);
    }

    #[test]
    fn the_scale_hangs_on_the_threshold_and_not_on_the_map() {
        // The same ratio has the same colour, whatever else is in the map and whatever the unit of the score.
        let small = heatmap(&grey(2, 1), &[3.0, 0.0], 2, 1, 2.0);
        let large = heatmap(&grey(2, 1), &[300.0, 90_000.0], 2, 1, 200.0);
        assert_eq!(pixel(&small, 0, 0), pixel(&large, 0, 0));
    }

    #[test]
    fn opacity_and_lightness_rise_with_the_value_and_step_at_the_threshold() {
        let scale = HeatScale::new(2.0);
        let mut last = [0; 4];
        for step in 0..=400 {
            let value = 1.0 + step as f32 * 7.0 / 400.0;
            let color = scale.rgba(value);
            assert!(color[3] >= last[3], "opacity falls at {value}");
            let light = |[r, g, b, _]: [u8; 4]| luminance([r, g, b]);
            // 0.002 is less than one step of an 8-bit channel makes.
            assert!(last[3] == 0 || light(color) >= light(last) - 0.002, "lightness falls at {value}");
            last = color;
        }
        assert_eq!(scale.rgba(2.0)[3], 101, "the threshold itself is not a defect");
        assert_eq!(scale.rgba(2.000_001)[3], 153, "above it is");
        assert_eq!(scale.rgba(8.0), [240, 249, 33, 204]);
        assert_eq!(scale.rgba(f32::INFINITY), [240, 249, 33, 204]);
    }

    #[test]
    fn an_octave_has_128_levels() {
        assert_eq!([0.5, 0.75, 1.0, 1.5, 2.0, 4.0].map(|ratio| octaves(ratio, 0.5)), [0, 64, 128, 192, 256, 384]);
        assert_eq!(octaves(0.3, 0.5), 0);
        assert_eq!(BELOW + ABOVE, octaves(4.0, 0.5));
    }

    #[test]
    fn a_threshold_without_a_half_marks_what_is_above_it() {
        for threshold in [0.0, -1.0, f32::NEG_INFINITY] {
            let scale = HeatScale::new(threshold);
            assert_eq!(scale.rgba(threshold), [0; 4]);
            assert_eq!(scale.rgba(5.0), [240, 249, 33, 204]);
        }
        assert_eq!(HeatScale::new(f32::NAN).rgba(5.0), [0; 4]);
        assert_eq!(HeatScale::new(f32::INFINITY).rgba(5.0), [0; 4]);
    }

    #[test]
    fn a_coarse_map_is_bilinear_with_its_cells_centred() {
        // Two cells over eight pixels: centres at 1.5 and 5.5, flat outside.
        let scale = HeatScale::new(1.0);
        let layer = scale.layer(8, 1, MapView { values: &[1.0, 2.0], width: 2, height: 1 });
        let values = [1.0, 1.0, 1.125, 1.375, 1.625, 1.875, 2.0, 2.0];
        let expected: Vec<u8> = values.into_iter().flat_map(|value| scale.rgba(value)).collect();
        assert_eq!(layer, expected);
        let upright = scale.layer(1, 8, MapView { values: &[1.0, 2.0], width: 1, height: 2 });
        assert_eq!(upright, expected);
    }

    #[test]
    fn painting_is_the_layer_over_the_frame() {
        let frame = Frame::new(2, 2, (0..12).map(|v| v * 20).collect()).unwrap();
        let map = MapView { values: &[0.0, 1.3, 3.0, 0.7], width: 2, height: 2 };
        let scale = HeatScale::with_opacity(1.0, 0.5);
        let layer = scale.layer(2, 2, map);
        assert_eq!(layer[3], 0);
        assert!(layer[7] > 60 && layer[7] < 128, "half of 0.6 to 0.8");
        for (at, (&below, painted)) in frame.rgb().iter().zip(scale.paint(&frame, map).rgb()).enumerate() {
            let (above, alpha) = (f32::from(layer[at / 3 * 4 + at % 3]), f32::from(layer[at / 3 * 4 + 3]) / 255.0);
            let expected = f32::from(below) * (1.0 - alpha) + above * alpha;
            assert!((expected - f32::from(*painted)).abs() <= 0.51, "{expected} {painted}");
        }
        assert_eq!(HeatScale::with_opacity(1.0, 0.0).paint(&frame, map), frame);
        assert_eq!(HeatScale::with_opacity(1.0, 9.0).rgba(3.0), HeatScale::new(1.0).rgba(3.0));
    }

    #[test]
    fn a_malformed_map_shows_nothing() {
        let frame = grey(3, 2);
        assert_eq!(heatmap(&frame, &[9.0; 5], 3, 2, 1.0), frame);
        assert_eq!(heatmap(&frame, &[], 0, 0, 1.0), frame);
        assert_eq!(heatmap(&frame, &[9.0; 5], usize::MAX, 2, 1.0), frame);
        let layer = HeatScale::new(1.0).layer(3, 2, MapView { values: &[9.0], width: 2, height: 1 });
        assert_eq!(layer, [0; 24]);
    }
}
