//! Drawings of the page: curves, score histograms, outlines, the colour legend. Each function gives one `<svg>` element or
//! path; colours are classes of `page.css`, so that light and dark are decided there.

use std::fmt::Write as _;

use crate::metrics::CurvePoint;

use crate::heatmap::HeatScale;

/// One line of a chart.
pub(super) struct Line<'a> {
    /// Class that colours it.
    pub(super) class: &'static str,
    /// What the caption calls it.
    pub(super) name: String,
    pub(super) points: &'a [CurvePoint],
}

/// Side of the plotting area of a chart, and the margins around it for ticks and labels.
const SIDE: f64 = 240.0;
const LEFT: f64 = 44.0;
const TOP: f64 = 12.0;
const BOTTOM: f64 = 46.0;
const RIGHT: f64 = 14.0;

/// An axis of a chart, from 0 to `end`.
#[derive(Clone, Copy)]
pub(super) struct Axis<'a> {
    pub(super) name: &'a str,
    /// Above 0.
    pub(super) end: f64,
}

impl<'a> Axis<'a> {
    /// An axis from 0 to 1.
    pub(super) fn unit(name: &'a str) -> Self {
        Self { name, end: 1.0 }
    }

    /// What stands at `share` of its length, 0..=1, in at most four decimals.
    fn tick(self, share: f64) -> f64 {
        (share * self.end * 1e4).round() / 1e4
    }
}

/// A square chart.
pub(super) fn chart(title: &str, x_axis: Axis<'_>, y_axis: Axis<'_>, lines: &[Line<'_>]) -> String {
    let (width, height) = (LEFT + SIDE + RIGHT, TOP + SIDE + BOTTOM);
    let mut svg = String::new();
    let _ = write!(svg, r#"<svg class="chart" viewBox="0 0 {width} {height}" role="img" aria-label="{title}">"#);
    for step in 0..=4 {
        let share = f64::from(step) / 4.0;
        let (x, y) = (LEFT + share * SIDE, TOP + (1.0 - share) * SIDE);
        let (right, bottom) = (LEFT + SIDE, TOP + SIDE);
        let _ = write!(svg, r#"<path class="grid" d="M{x} {TOP}V{bottom}M{LEFT} {y}H{right}"/>"#);
        let _ = write!(svg, r#"<text class="tick mid" x="{x}" y="{}">{}</text>"#, bottom + 15.0, x_axis.tick(share));
        let (edge, value) = (LEFT - 6.0, y_axis.tick(share));
        let _ = write!(svg, r#"<text class="tick end" x="{edge}" y="{}">{value}</text>"#, y + 3.5);
    }
    let middle = (LEFT + SIDE / 2.0, TOP + SIDE / 2.0);
    let (x_name, y_name) = (x_axis.name, y_axis.name);
    let _ = write!(svg, r#"<text class="axis mid" x="{}" y="{}">{x_name}</text>"#, middle.0, TOP + SIDE + 34.0);
    let turn = format!("rotate(-90 11 {})", middle.1);
    let _ = write!(svg, r#"<text class="axis mid" x="11" y="{}" transform="{turn}">{y_name}</text>"#, middle.1);
    for line in lines.iter().filter(|line| !line.points.is_empty()) {
        let _ = write!(svg, r#"<polyline class="line {}" points=""#, line.class);
        for point in line.points {
            let (x, y) = (point.x / x_axis.end, point.y / y_axis.end);
            let _ = write!(svg, "{:.1},{:.1} ", LEFT + x * SIDE, TOP + (1.0 - y) * SIDE);
        }
        svg.push_str(r#""/>"#);
    }
    svg.push_str("</svg>");
    svg
}

/// Bars of a histogram.
const BINS: usize = 48;

/// What a histogram shows.
pub(super) struct Histogram<'a> {
    pub(super) good: &'a [f32],
    pub(super) defective: &'a [f32],
    pub(super) threshold: Option<f32>,
    pub(super) warn_threshold: Option<f32>,
}

impl Histogram<'_> {
    const WIDTH: f64 = 520.0;
    /// Room for the bars on either side of the axis.
    const HALF: f64 = 92.0;
    const HEAD: f64 = 34.0;

    /// The scores drawn: from the lowest to the highest, but no further above the threshold than three times its distance
    /// from the lowest, so that a few glaring defects do not squeeze everything else into one bar.
    fn range(&self) -> Option<(f64, f64)> {
        let limits = [self.threshold, self.warn_threshold].into_iter().flatten();
        let all = self.good.iter().chain(self.defective).copied().chain(limits).filter(|score| score.is_finite());
        let (low, high) = all.fold((f32::INFINITY, f32::NEG_INFINITY), |(low, high), s| (low.min(s), high.max(s)));
        if low > high {
            return None;
        }
        let (low, mut high) = (f64::from(low), f64::from(high));
        if let Some(threshold) = self.threshold.map(f64::from).filter(|t| t.is_finite() && *t > low) {
            high = high.min(threshold + 3.0 * (threshold - low));
        }
        Some((low, if high > low { high } else { low + low.abs().max(1.0) * 1e-3 }))
    }

    fn bins(scores: &[f32], (low, high): (f64, f64)) -> [usize; BINS] {
        let mut bins = [0; BINS];
        for &score in scores {
            let share = (f64::from(score) - low) / (high - low);
            bins[((share * BINS as f64) as usize).min(BINS - 1)] += 1;
        }
        bins
    }

    /// Good images above the axis, defective ones below it; empty without finite scores.
    pub(super) fn svg(&self) -> String {
        let Some((low, high)) = self.range() else { return String::new() };
        let (good, defective) = (Self::bins(self.good, (low, high)), Self::bins(self.defective, (low, high)));
        // The last bar holds all that is beyond: it may be cut off, but must not flatten the others.
        let most = good[..BINS - 1].iter().chain(&defective[..BINS - 1]).copied().max().unwrap_or(0);
        let most = if most == 0 { good[BINS - 1].max(defective[BINS - 1]).max(1) } else { most };
        let axis = Self::HEAD + Self::HALF;
        let bottom = axis + Self::HALF;
        let x_of = |score: f64| LEFT + (score - low) / (high - low) * Self::WIDTH;
        let bar = Self::WIDTH / BINS as f64;
        let mut svg = String::new();
        let (width, height) = (LEFT + Self::WIDTH + RIGHT, bottom + BOTTOM);
        let label = "Histogram of image scores: good above the axis, defective below";
        let _ =
            write!(svg, r#"<svg class="histogram" viewBox="0 0 {width} {height}" role="img" aria-label="{label}">"#);
        for (class, name, bins, up) in [("good", "good", good, true), ("defect", "defective", defective, false)] {
            for (index, &count) in bins.iter().enumerate().filter(|(_, count)| **count > 0) {
                let length = (count as f64 / most as f64).min(1.0) * Self::HALF;
                let (x, y) = (LEFT + index as f64 * bar + 0.5, if up { axis - length } else { axis });
                let from = low + (high - low) * index as f64 / BINS as f64;
                let to = low + (high - low) * (index + 1) as f64 / BINS as f64;
                let range = if index + 1 == BINS {
                    format!("{} and above", short(from))
                } else {
                    format!("{} to {}", short(from), short(to))
                };
                let _ = write!(
                    svg,
                    r#"<rect class="{class}" x="{x:.1}" y="{y:.1}" width="{:.1}" height="{length:.1}"><title>{count} {name}: {range}</title></rect>"#,
                    bar - 1.0
                );
                if count > most {
                    let (x, y) = (LEFT + Self::WIDTH, if up { y - 4.0 } else { y + length + 11.0 });
                    let _ = write!(svg, r#"<text class="tick end" x="{x}" y="{y}">{count}</text>"#);
                }
            }
        }
        let (right, edge) = (LEFT + Self::WIDTH, LEFT - 6.0);
        let _ = write!(svg, r#"<path class="base" d="M{LEFT} {axis}H{right}"/>"#);
        for (y, count) in [(Self::HEAD, most), (axis, 0), (bottom, most)] {
            let _ = write!(svg, r#"<text class="tick end" x="{edge}" y="{}">{count}</text>"#, y + 3.5);
        }
        // The two names stand on different lines: the thresholds may lie close together.
        for (class, name, limit, line) in
            [("warn", "warn", self.warn_threshold, 10.0), ("limit", "reject", self.threshold, 24.0)]
        {
            if let Some(limit) = limit.map(f64::from).filter(|limit| limit.is_finite()) {
                let x = x_of(limit.clamp(low, high));
                let anchor = if x > LEFT + Self::WIDTH * 0.8 { "end" } else { "start" };
                let shift = if anchor == "end" { -4.0 } else { 4.0 };
                let _ = write!(svg, r#"<path class="{class}" d="M{x:.1} {}V{bottom}"/>"#, line - 9.0);
                let (at, value) = (x + shift, short(limit));
                let _ =
                    write!(svg, r#"<text class="tick {anchor}" x="{at:.1}" y="{line}">{name} above {value}</text>"#);
            }
        }
        for step in 0..=4 {
            let score = low + (high - low) * f64::from(step) / 4.0;
            let beyond = step == 4 && self.good.iter().chain(self.defective).any(|&s| f64::from(s) > high);
            let more = if beyond { "+" } else { "" };
            let x = x_of(score);
            let _ =
                write!(svg, r#"<text class="tick mid" x="{x:.1}" y="{}">{}{more}</text>"#, bottom + 24.0, short(score));
        }
        let middle = LEFT + Self::WIDTH / 2.0;
        let _ = write!(svg, r#"<text class="axis mid" x="{middle}" y="{}">image score</text>"#, bottom + 40.0);
        svg.push_str("</svg>");
        svg
    }
}

/// One value for each of several names.
pub(super) struct Dots<'a> {
    /// What the values are.
    pub(super) name: String,
    pub(super) points: Vec<(&'a str, Option<f64>)>,
    pub(super) logarithmic: bool,
}

/// A line for each name with a dot at its value; a line runs through the first, which the others are compared with.
pub(super) fn dots(dots: &Dots<'_>) -> String {
    const NAMES: f64 = 150.0;
    const LINE: f64 = 15.0;
    let scale = |value: f64| if dots.logarithmic { value.max(1e-9).log10() } else { value };
    let values: Vec<f64> = dots.points.iter().filter_map(|(_, value)| value.map(scale)).collect();
    let (low, high) = values.iter().fold((f64::INFINITY, f64::NEG_INFINITY), |(l, h), v| (l.min(*v), h.max(*v)));
    if low > high {
        return String::new();
    }
    let room = ((high - low) * 0.06).max(1e-3);
    let x_of = |value: f64| NAMES + (scale(value) - low + room) / (high - low + 2.0 * room) * SIDE;
    let (width, bottom) = (NAMES + SIDE + 40.0, TOP + LINE * dots.points.len() as f64);
    let height = bottom + 8.0;
    let mut svg = String::new();
    let _ = write!(svg, r#"<svg class="chart" viewBox="0 0 {width} {height}" role="img" aria-label="{}">"#, dots.name);
    if let Some((_, Some(first))) = dots.points.first() {
        let _ = write!(svg, r#"<path class="base" d="M{:.1} {TOP}V{bottom}"/>"#, x_of(*first));
    }
    for (at, (name, value)) in dots.points.iter().enumerate() {
        let y = TOP + LINE * (at as f64 + 0.5);
        let _ = write!(svg, r#"<text class="tick end" x="{}" y="{}">{name}</text>"#, NAMES - 6.0, y + 3.5);
        if let Some(value) = value {
            let (x, shown) = (x_of(*value), short(*value));
            let _ = write!(svg, r#"<path class="grid" d="M{NAMES} {y}H{x:.1}"/>"#);
            let _ = write!(svg, r#"<rect class="good" x="{:.1}" y="{}" width="6" height="6"/>"#, x - 3.0, y - 3.0);
            let _ = write!(svg, r#"<text class="tick" x="{:.1}" y="{}">{shown}</text>"#, x + 6.0, y + 3.5);
        }
    }
    svg.push_str("</svg>");
    svg
}

/// A number in about three significant digits.
pub(super) fn short(value: f64) -> String {
    let size = value.abs();
    match () {
        () if size == 0.0 => "0".to_owned(),
        () if !(0.001..100_000.0).contains(&size) => format!("{value:.1e}"),
        () if size < 0.1 => format!("{value:.4}"),
        () if size < 10.0 => format!("{value:.2}"),
        () if size < 100.0 => format!("{value:.1}"),
        () => format!("{value:.0}"),
    }
}

/// The border of `mask`, `[height, width]`, along the edges of its pixels, as path data in pixel units.
pub(super) fn outline(mask: &[bool], width: usize, height: usize) -> String {
    let inside = |x: usize, y: usize| x < width && y < height && mask.get(y * width + x) == Some(&true);
    let mut path = String::new();
    // An edge lies between a pixel and the one before it; usize::MAX stands for "before the first".
    let mut runs = |lines: usize, length: usize, edge: &dyn Fn(usize, usize) -> bool, across: bool| {
        for line in 0..=lines {
            let mut start = None;
            for at in 0..=length {
                match (start, at < length && edge(line, at)) {
                    (None, true) => start = Some(at),
                    (Some(from), false) => {
                        let _ = if across {
                            write!(path, "M{from} {line}H{at}")
                        } else {
                            write!(path, "M{line} {from}V{at}")
                        };
                        start = None;
                    }
                    _ => {}
                }
            }
        }
    };
    runs(height, width, &|y, x| inside(x, y) != inside(x, y.wrapping_sub(1)), true);
    runs(width, height, &|x, y| inside(x, y) != inside(x.wrapping_sub(1), y), false);
    path
}

/// The colours of the heat map with their multiples of the pixel threshold.
pub(super) fn legend() -> String {
    const WIDTH: f64 = 300.0;
    const STEPS: usize = 60;
    let scale = HeatScale::new(1.0);
    let mut svg = String::new();
    let label = "Colours of the heat map: nothing below half the pixel threshold, yellow at four times";
    let _ = write!(svg, r#"<svg class="legend" viewBox="0 0 340 34" role="img" aria-label="{label}">"#);
    let _ = write!(svg, r#"<rect class="under" x="20" y="2" width="{WIDTH}" height="12"/>"#);
    for step in 0..STEPS {
        // Octaves from half the threshold to four times.
        let octave = (step as f64 + 0.5) / STEPS as f64 * 3.0 - 1.0;
        let [r, g, b, alpha] = scale.rgba(octave.exp2() as f32);
        let (x, opacity) = (20.0 + WIDTH * step as f64 / STEPS as f64, f64::from(alpha) / 255.0);
        let width = WIDTH / STEPS as f64 + 0.2; // no seam between two steps
        let _ = write!(
            svg,
            r##"<rect x="{x:.1}" y="2" width="{width:.1}" height="12" fill="#{r:02x}{g:02x}{b:02x}" fill-opacity="{opacity:.2}"/>"##
        );
    }
    for (name, octave) in [("½×", 0.0), ("1×", 1.0), ("2×", 2.0), ("4×", 3.0)] {
        let x = 20.0 + WIDTH * octave / 3.0;
        let _ =
            write!(svg, r#"<path class="base" d="M{x} 14V18"/><text class="tick mid" x="{x}" y="30">{name}</text>"#);
    }
    svg.push_str("</svg>");
    svg
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_outline_runs_along_pixel_edges() {
        assert_eq!(outline(&[true], 1, 1), "M0 0H1M0 1H1M0 0V1M1 0V1");
        // Two by two in a corner of three by three: neighbouring edges are one stroke.
        let mask = [true, true, false, true, true, false, false, false, false];
        assert_eq!(outline(&mask, 3, 3), "M0 0H2M0 2H2M0 0V2M2 0V2");
        // A ring has an inner border as well.
        let ring = [true, true, true, true, false, true, true, true, true];
        assert_eq!(outline(&ring, 3, 3), "M0 0H3M1 1H2M1 2H2M0 3H3M0 0V3M1 1V2M2 1V2M3 0V3");
        assert_eq!(outline(&[false; 4], 2, 2), "");
        assert_eq!(outline(&[true], 2, 2), "M0 0H1M0 1H1M0 0V1M1 0V1", "a short mask is no panic");
    }

    #[test]
    fn a_histogram_ends_where_the_threshold_is_still_seen() {
        let histogram =
            Histogram { good: &[1.0, 2.0], defective: &[3.0, 500.0], threshold: Some(2.5), warn_threshold: Some(2.0) };
        assert_eq!(histogram.range(), Some((1.0, 2.5 + 3.0 * 1.5)));
        let bins = Histogram::bins(histogram.defective, (1.0, 7.0));
        assert_eq!((bins[16], bins[47]), (1, 1), "what is beyond is in the last bar");
        let svg = histogram.svg();
        assert!(svg.contains("1 defective: 6.88 and above") && svg.contains("reject above 2.50"), "{svg}");
        assert!(svg.contains(">7.00+<"), "the axis says that there is more");
    }

    #[test]
    fn what_lies_beyond_a_histogram_does_not_flatten_it() {
        let defective: Vec<f32> = [3.0, 3.0].into_iter().chain((0..30).map(|at| 100.0 + at as f32)).collect();
        let histogram = Histogram { good: &[1.0], defective: &defective, threshold: Some(2.0), warn_threshold: None };
        let svg = histogram.svg();
        assert!(svg.contains(r#"height="92.0"><title>2 defective"#), "{svg}");
        assert!(svg.contains(r#"height="92.0"><title>30 defective"#) && svg.contains(">30</text>"), "{svg}");
        assert_eq!(svg.matches(">2</text>").count(), 2, "the axis ends at 2 on both sides");
    }

    #[test]
    fn a_histogram_of_odd_scores_is_drawn_or_left_out() {
        let draw = |good: &[f32], threshold| Histogram { good, defective: &[], threshold, warn_threshold: None }.svg();
        assert_eq!(draw(&[], None), "");
        assert_eq!(draw(&[f32::INFINITY], None), "");
        assert!(draw(&[0.0], None).contains("1 good"));
        assert!(draw(&[-5.0; 3], Some(-5.0)).contains("3 good"));
        assert!(draw(&[1.0, f32::NEG_INFINITY, f32::INFINITY, f32::NAN], Some(f32::NAN)).contains("good"));
        assert!(draw(&[f32::MIN, f32::MAX], Some(0.0)).contains("1 good"));
    }

    #[test]
    fn short_numbers_have_about_three_digits() {
        let cases = [(0.0, "0"), (1.234, "1.23"), (-12.34, "-12.3"), (1234.5, "1234"), (0.01234, "0.0123")];
        for (value, text) in cases {
            assert_eq!(short(value), text);
        }
        assert_eq!(short(1.5e-7), "1.5e-7");
        assert_eq!(short(2.5e8), "2.5e8");
    }

    #[test]
    fn a_chart_maps_its_axes_to_the_square() {
        let draw = |points: &[CurvePoint], end| {
            let lines = [Line { class: "image", name: String::new(), points }];
            chart("ROC", Axis { name: "x", end }, Axis::unit("y"), &lines)
        };
        let points = [CurvePoint { x: 0.0, y: 0.0 }, CurvePoint { x: 0.3, y: 1.0 }];
        let svg = draw(&points, 0.3);
        assert!(svg.contains(r#"points="44.0,252.0 284.0,12.0 ""#), "{svg}");
        for tick in [">0.075<", ">0.225<", ">0.3<", ">0.25<", ">1<"] {
            assert!(svg.contains(tick), "{tick} in {svg}");
        }
        assert!(draw(&points, 1.0).contains(r#"points="44.0,252.0 116.0,12.0 ""#));
        assert!(!draw(&[], 1.0).contains("polyline"));
    }
}
