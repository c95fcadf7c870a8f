//! A stroke font for stamps and prints: capital letters, digits and a dash.

use super::canvas::{Cell, Surface, V2, segment, v2};

/// How a line of text lies on the part.
#[derive(Clone, Copy, Debug)]
pub(super) struct Lettering {
    /// Middle of the text.
    pub(super) centre: V2,
    /// Height of the letters.
    pub(super) height: f32,
    /// Width of the strokes.
    pub(super) stroke: f32,
    /// Reading direction, a unit vector.
    pub(super) axis: V2,
    /// Bent around a circle about the origin, through `centre`; `axis` is then ignored.
    pub(super) bent: bool,
}

/// Advance from letter to letter in heights.
const ADVANCE: f32 = 0.86;

/// Paints `text`; `brush` gets how much of a pixel the stroke covers.
pub(super) fn write(surface: &mut Surface, text: &str, how: &Lettering, mut brush: impl FnMut(f32, &mut Cell)) {
    let unit = how.height / 6.0;
    let count = text.chars().count() as f32;
    for (i, letter) in text.chars().enumerate() {
        let offset = (i as f32 - (count - 1.0) / 2.0) * ADVANCE * how.height;
        let (centre, axis) = if how.bent {
            let radius = how.centre.length();
            let outward = (how.centre * (1.0 / radius)).rotated(offset / radius);
            (outward * radius, outward.turned())
        } else {
            (how.centre + how.axis * offset, how.axis)
        };
        let strokes = strokes(letter);
        let reach = how.height * 0.65 + how.stroke;
        let outline = |p: V2| {
            let p = (p - centre).along(axis);
            let point = |&(x, y): &(u8, u8)| v2(f32::from(x) - 2.0, f32::from(y) - 3.0) * unit;
            let nearest = strokes
                .iter()
                .flat_map(|line| line.windows(2))
                .map(|ends| segment(p, point(&ends[0]), point(&ends[1])).0)
                .fold(f32::INFINITY, f32::min);
            nearest - how.stroke / 2.0
        };
        surface.paint_shape((centre, v2(reach, reach)), outline, |_, _, amount, cell| brush(amount, cell));
    }
}

type Line = &'static [(u8, u8)];

/// Lines from point to point on a grid 4 wide and 6 high, origin up left. Unknown letters are blank.
#[rustfmt::skip]
fn strokes(letter: char) -> &'static [Line] {
    match letter {
        '0' | 'O' => &[&[(1, 0), (3, 0), (4, 1), (4, 5), (3, 6), (1, 6), (0, 5), (0, 1), (1, 0)]],
        '1' => &[&[(1, 1), (2, 0), (2, 6)], &[(1, 6), (3, 6)]],
        '2' => &[&[(0, 1), (1, 0), (3, 0), (4, 1), (4, 2), (0, 6), (4, 6)]],
        '3' => &[&[(0, 0), (4, 0), (2, 2), (3, 2), (4, 3), (4, 5), (3, 6), (1, 6), (0, 5)]],
        '4' => &[&[(3, 6), (3, 0), (0, 4), (4, 4)]],
        '5' => &[&[(4, 0), (0, 0), (0, 2), (3, 2), (4, 3), (4, 5), (3, 6), (0, 6)]],
        '6' => &[&[(3, 0), (1, 0), (0, 2), (0, 5), (1, 6), (3, 6), (4, 5), (4, 4), (3, 3), (0, 3)]],
        '7' => &[&[(0, 0), (4, 0), (1, 6)]],
        '8' => &[&[(1, 0), (3, 0), (4, 1), (4, 2), (3, 3), (1, 3), (0, 2), (0, 1), (1, 0)],
                 &[(1, 3), (0, 4), (0, 5), (1, 6), (3, 6), (4, 5), (4, 4), (3, 3)]],
        '9' => &[&[(4, 3), (1, 3), (0, 2), (0, 1), (1, 0), (3, 0), (4, 1), (4, 4), (3, 6), (1, 6)]],
        'A' => &[&[(0, 6), (2, 0), (4, 6)], &[(1, 4), (3, 4)]],
        'C' => &[&[(4, 1), (3, 0), (1, 0), (0, 1), (0, 5), (1, 6), (3, 6), (4, 5)]],
        'D' => &[&[(0, 0), (0, 6), (2, 6), (4, 4), (4, 2), (2, 0), (0, 0)]],
        'E' => &[&[(4, 0), (0, 0), (0, 6), (4, 6)], &[(0, 3), (3, 3)]],
        'I' => &[&[(2, 0), (2, 6)]],
        'J' => &[&[(4, 0), (4, 5), (3, 6), (1, 6), (0, 5)]],
        'L' => &[&[(0, 0), (0, 6), (4, 6)]],
        'M' => &[&[(0, 6), (0, 0), (2, 3), (4, 0), (4, 6)]],
        'P' => &[&[(0, 6), (0, 0), (3, 0), (4, 1), (4, 2), (3, 3), (0, 3)]],
        'R' => &[&[(0, 6), (0, 0), (3, 0), (4, 1), (4, 2), (3, 3), (0, 3)], &[(2, 3), (4, 6)]],
        'T' => &[&[(0, 0), (4, 0)], &[(2, 0), (2, 6)]],
        'U' => &[&[(0, 0), (0, 5), (1, 6), (3, 6), (4, 5), (4, 0)]],
        'X' => &[&[(0, 0), (4, 6)], &[(4, 0), (0, 6)]],
        '-' => &[&[(1, 3), (3, 3)]],
        _ => &[],
    }
}
