//! Where a part lies: registration of a frame against a picture of good parts, by shift or by shift and turn.
//!
//! Both are looked at as small grey copies (see [`Shape::template`](crate::config::Shape)), at several resolutions. At the coarsest
//! every turn and shift within the limits is tried by the zero-mean normalised cross-correlation; the best few are refined from
//! resolution to resolution by Gauss-Newton steps on the squared difference, with gain and offset of the light free (Lucas & Kanade
//! 1981, Baker & Matthews 2004).

#[cfg(feature = "train")]
mod learn;

use serde::Serialize;

use super::Frame;
use crate::config::{Align, InputConfig, Size};
use crate::error::{Error, Result};

#[cfg(feature = "train")]
pub(crate) use learn::learn;

/// The coarsest copy has at least this many pixels along its longer side.
const COARSEST: usize = 32;
/// Degrees between the turns that are tried first: less than two pixels at the rim of the coarsest copy.
const TURN_STEP: f64 = 5.0;
/// Poses that are refined at the coarsest resolution.
const CANDIDATES: usize = 8;
/// Share of the copy that has to overlap.
const OVERLAP: f64 = 0.4;
/// Pixels that are compared in a step of the refinement, about.
const ENOUGH: f64 = 8192.0;
/// Gauss-Newton steps per resolution, at most.
const STEPS: usize = 12;
/// A step of less than this many pixels is the last.
const SETTLED: f64 = 0.005;

/// How a part lies, against the picture of good parts.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Pose {
    /// Pixels of the frame by which it lies to the right.
    pub dx: f64,
    /// Pixels of the frame by which it lies lower.
    pub dy: f64,
    /// Degrees by which it is turned against the clock, around the middle of what is looked at; -180..=180.
    pub turn: f64,
    /// Correlation with the picture, -1..=1.
    pub score: f64,
}

impl Pose {
    /// As the picture has it.
    pub(super) const NONE: Self = Self { dx: 0.0, dy: 0.0, turn: 0.0, score: 0.0 };

    /// Cosine and sine of the turn, in coordinates whose y points down.
    pub(super) fn rotation(&self) -> [f64; 2] {
        let (sin, cos) = (-self.turn).to_radians().sin_cos();
        [cos, sin]
    }

    /// Where a point that lies at `x`, `y` from the middle in the picture lies in the frame, from the middle too.
    pub(super) fn place(&self, x: f64, y: f64) -> [f64; 2] {
        let [cos, sin] = self.rotation();
        [cos * x - sin * y + self.dx, sin * x + cos * y + self.dy]
    }

    /// The way back.
    pub(super) fn origin(&self, x: f64, y: f64) -> [f64; 2] {
        let ([cos, sin], x, y) = (self.rotation(), x - self.dx, y - self.dy);
        [cos * x + sin * y, cos * y - sin * x]
    }
}

/// How far a part may lie from where the picture has it.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Limits {
    align: Align,
    /// Fraction of each side.
    shift: f64,
    /// Degrees to both sides.
    turn: f64,
    /// Least correlation.
    score: f64,
}

impl Limits {
    /// Those of a configuration; none where it does not align.
    fn of(input: &InputConfig) -> Option<Self> {
        let turn = if input.align == Align::ShiftTurn { input.max_turn } else { 0.0 };
        let limits = Self { align: input.align, shift: input.max_shift, turn, score: input.min_match };
        (input.align != Align::None).then_some(limits)
    }
}

/// Brightness at one resolution, row by row.
#[derive(Clone, Debug, PartialEq)]
struct Copy {
    size: Size,
    values: Vec<f32>,
}

/// Grey copies of what is looked at of a frame, the finest first.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Copies(Vec<Copy>);

impl Copies {
    /// Of a small picture.
    pub(crate) fn of(frame: &Frame) -> Self {
        let grey = |p: &[u8; 3]| (f32::from(p[0]) + 2.0 * f32::from(p[1]) + f32::from(p[2])) / 4.0;
        let values = frame.rgb().as_chunks::<3>().0.iter().map(grey).collect();
        Self::from_values(Size::new(frame.width(), frame.height()), values)
    }

    fn from_values(size: Size, values: Vec<f32>) -> Self {
        let mut all = vec![Copy { size, values }];
        while let Some(last) = all.last()
            && last.size.width.max(last.size.height) >= 2 * COARSEST
            && last.size.sides().iter().all(|side| side.is_multiple_of(2) && *side >= 16)
        {
            all.push(last.halved());
        }
        Self(all)
    }
}

impl Copy {
    fn halved(&self) -> Self {
        let (size, columns) = (self.size.map(|side| side / 2), self.size.width);
        let mean = |t: usize| {
            let at = t / size.width * 2 * columns + t % size.width * 2;
            (self.values[at] + self.values[at + 1] + self.values[at + columns] + self.values[at + columns + 1]) / 4.0
        };
        Self { size, values: (0..size.area()).map(mean).collect() }
    }

    /// Value and slope at a point in pixels, whose centres lie at halves; none outside.
    fn sample(&self, x: f64, y: f64) -> Option<[f64; 3]> {
        let Size { width, height } = self.size;
        let (x, y) = (x - 0.5, y - 0.5);
        if x < 0.0 || y < 0.0 || x > (width - 1) as f64 || y > (height - 1) as f64 {
            return None;
        }
        let (left, top) = ((x as usize).min(width.saturating_sub(2)), (y as usize).min(height.saturating_sub(2)));
        let (fx, fy) = (x - left as f64, y - top as f64);
        let at = |dx: usize, dy: usize| f64::from(self.values[(top + dy) * width + left + dx]);
        let [a, b, c, d] = [at(0, 0), at(1, 0), at(0, 1), at(1, 1)];
        let (upper, lower) = (a + (b - a) * fx, c + (d - c) * fx);
        let slope_x = (b - a) + ((d - c) - (b - a)) * fy;
        Some([upper + (lower - upper) * fy, slope_x, lower - upper])
    }
}

/// A picture of good parts, and how far others may lie from it.
#[derive(Clone, Debug, PartialEq)]
pub struct Template {
    copies: Copies,
    limits: Limits,
}

/// A pose in pixels of the finest copy, from its middle.
#[derive(Clone, Copy, Debug)]
struct Guess {
    shift: [f64; 2],
    turn: f64, // radians, clockwise
    score: f64,
}

impl Template {
    /// From the values of the finest copy, row by row, as a model keeps them.
    ///
    /// # Errors
    /// When their number does not fit, or the configuration does not align.
    pub(crate) fn new(input: &InputConfig, size: Size, values: Vec<f32>) -> Result<Self> {
        match Limits::of(input) {
            Some(limits) if values.len() == size.area() => {
                Ok(Self { copies: Copies::from_values(size, values), limits })
            }
            _ => Err(Error::Internal(format!("align: {} values for a picture of {size}", values.len()))),
        }
    }

    /// Size of the copies that are compared with it.
    pub(crate) fn size(&self) -> Size {
        self.copies.0[0].size
    }

    /// The values of the finest copy, row by row.
    pub(crate) fn values(&self) -> &[f32] {
        &self.copies.0[0].values
    }

    /// Where the part of a frame lies, of which these are the copies; `scale` are pixels of the frame per pixel of the finest copy.
    pub(crate) fn locate(&self, copies: &Copies, scale: [f64; 2]) -> Pose {
        let levels = self.copies.0.len().min(copies.0.len());
        let mut guesses = self.first_guesses(copies, levels - 1);
        for level in (0..levels).rev() {
            let refined = guesses.iter().map(|guess| self.refined(copies, level, *guess));
            guesses = refined.collect();
            guesses.sort_by(|a, b| b.score.total_cmp(&a.score));
            guesses.truncate(guesses.len().div_ceil(2));
        }
        let Some(best) = guesses.first().filter(|best| best.score > 0.0) else { return Pose::NONE };
        let turn = -best.turn.to_degrees();
        Pose {
            dx: best.shift[0] * scale[0],
            dy: best.shift[1] * scale[1],
            turn: (turn + 180.0).rem_euclid(360.0) - 180.0,
            score: best.score,
        }
    }

    /// Whether a part was found there: it is like the picture, and no farther from it than it may be.
    pub(crate) fn is_found(&self, pose: &Pose, scale: [f64; 2]) -> bool {
        let Size { width, height } = self.size();
        // A pixel and a degree more than asked for: no pose is known better than that at the limit.
        let within = |shift: f64, scale: f64, side: usize| shift.abs() / scale <= self.limits.shift * side as f64 + 1.0;
        pose.score >= self.limits.score
            && within(pose.dx, scale[0], width)
            && within(pose.dy, scale[1], height)
            && pose.turn.abs() <= self.limits.turn + 1.0
    }

    /// The best poses of all turns and whole shifts within the limits, at one resolution.
    fn first_guesses(&self, copies: &Copies, level: usize) -> Vec<Guess> {
        let (template, frame) = (&self.copies.0[level], &copies.0[level]);
        let Size { width, height } = template.size;
        let most = [width, height].map(|side| (self.limits.shift * side as f64).ceil() as isize);
        let whole = self.limits.turn >= 180.0 - TURN_STEP;
        let steps = if whole { 180.0 / TURN_STEP } else { (self.limits.turn / TURN_STEP).ceil() } as i32;
        let first = if whole { 1 - steps } else { -steps };
        let spacing = if whole { TURN_STEP } else { self.limits.turn / f64::from(steps.max(1)) };
        let mut found = Vec::new();
        for turn in first..=steps {
            let turn = (f64::from(turn) * spacing).to_radians();
            let turned = turned(template, turn);
            for dy in -most[1]..=most[1] {
                for dx in -most[0]..=most[0] {
                    let score = correlation_at(&turned, frame, [dx, dy]);
                    found.push(Guess { shift: [dx as f64, dy as f64], turn, score });
                }
            }
        }
        found.sort_by(|a, b| b.score.total_cmp(&a.score));
        let mut best: Vec<Guess> = Vec::new();
        for guess in found {
            let near = |other: &Guess| {
                let apart = (guess.turn - other.turn).abs();
                let apart = apart.min(std::f64::consts::TAU - apart).to_degrees();
                let shifted = (0..2).all(|i| (guess.shift[i] - other.shift[i]).abs() <= 2.0);
                apart < 1.5 * TURN_STEP && shifted
            };
            if !best.iter().any(near) {
                best.push(guess);
            }
            if best.len() == CANDIDATES {
                break;
            }
        }
        // In pixels of the finest copy.
        let factor = (1 << level) as f64;
        best.into_iter().map(|guess| Guess { shift: guess.shift.map(|s| s * factor), ..guess }).collect()
    }

    /// The pose near a guess where the difference is least, at one resolution.
    fn refined(&self, copies: &Copies, level: usize, guess: Guess) -> Guess {
        let (template, frame, factor) = (&self.copies.0[level], &copies.0[level], (1 << level) as f64);
        let turns = self.limits.align == Align::ShiftTurn;
        let radius = template.size.width.max(template.size.height) as f64 / 2.0;
        let (mut now, mut best) = (guess, Guess { score: -1.0, ..guess });
        for _ in 0..STEPS {
            let (score, step) = fit(template, frame, &now, factor);
            now.score = score;
            if score > best.score {
                best = now;
            }
            let Some([dx, dy, turn]) = step.and_then(|normal| normal.solve(turns)) else { break };
            // A step beyond a few pixels leaves what a slope can know.
            let length = dx.hypot(dy).max(turn.abs() * radius);
            if length < SETTLED {
                break;
            }
            let damp = (2.0 / length).min(1.0);
            now.shift = [now.shift[0] + damp * dx * factor, now.shift[1] + damp * dy * factor];
            now.turn += damp * turn;
        }
        best
    }
}

/// The template turned around its middle, on the pixels of its size; none where it has nothing to say.
fn turned(template: &Copy, turn: f64) -> Vec<Option<f32>> {
    let (Size { width, height }, (sin, cos)) = (template.size, turn.sin_cos());
    let middle = [width as f64 / 2.0, height as f64 / 2.0];
    let value = |t: usize| {
        let (x, y) = ((t % width) as f64 + 0.5 - middle[0], (t / width) as f64 + 0.5 - middle[1]);
        let [value, ..] = template.sample(cos * x + sin * y + middle[0], cos * y - sin * x + middle[1])?;
        Some(value as f32)
    };
    (0..template.size.area()).map(value).collect()
}

/// Sums over the pixels that two pictures share.
#[derive(Default)]
struct Sums {
    n: f64,
    a: f64,
    b: f64,
    aa: f64,
    bb: f64,
    ab: f64,
}

impl Sums {
    fn add(&mut self, a: f64, b: f64) {
        self.n += 1.0;
        self.a += a;
        self.b += b;
        self.aa += a * a;
        self.bb += b * b;
        self.ab += a * b;
    }

    /// Zero-mean normalised cross-correlation of at least `least` pixels; 0 where one of the pictures shows nothing.
    fn correlation(&self, least: f64) -> f64 {
        // One grey level is noise, not a picture.
        let flat = |sum: f64, squares: f64| squares - sum * sum / self.n <= self.n;
        if self.n < least || flat(self.a, self.aa) || flat(self.b, self.bb) {
            return 0.0;
        }
        let covariance = self.ab - self.a * self.b / self.n;
        covariance / ((self.aa - self.a * self.a / self.n) * (self.bb - self.b * self.b / self.n)).sqrt()
    }
}

fn correlation_at(turned: &[Option<f32>], frame: &Copy, [dx, dy]: [isize; 2]) -> f64 {
    let Size { width, height } = frame.size;
    let mut sums = Sums::default();
    for (y, row) in turned.chunks_exact(width).enumerate() {
        let Some(line) = y.checked_add_signed(dy).filter(|y| *y < height) else { continue };
        let line = &frame.values[line * width..][..width];
        for (x, value) in row.iter().enumerate() {
            if let (Some(a), Some(b)) = (value, x.checked_add_signed(dx).and_then(|x| line.get(x))) {
                sums.add(f64::from(*a), f64::from(*b));
            }
        }
    }
    sums.correlation(OVERLAP * frame.size.area() as f64)
}

/// Normal equations of a Gauss-Newton step: shift by x and y in pixels of the copy, turn in radians.
struct Normal {
    matrix: [[f64; 3]; 3],
    vector: [f64; 3],
}

impl Normal {
    /// The step, by Cramer's rule; none where the picture does not say where it should go.
    fn solve(&self, turns: bool) -> Option<[f64; 3]> {
        let mut m = self.matrix;
        if !turns {
            (m[0][2], m[1][2], m[2]) = (0.0, 0.0, [0.0, 0.0, 1.0]);
        }
        let vector = [self.vector[0], self.vector[1], if turns { self.vector[2] } else { 0.0 }];
        let whole = determinant(&m);
        let step = [0, 1, 2].map(|column| {
            let mut replaced = m;
            (0..3).for_each(|row| replaced[row][column] = vector[row]);
            determinant(&replaced) / whole
        });
        step.iter().all(|value| value.is_finite()).then_some(step)
    }
}

fn determinant(m: &[[f64; 3]; 3]) -> f64 {
    let minor = |a: usize, b: usize| m[1][a] * m[2][b] - m[1][b] * m[2][a];
    m[0][0] * minor(1, 2) - m[0][1] * minor(0, 2) + m[0][2] * minor(0, 1)
}

/// How well a pose fits at one resolution, as a correlation, and the step that leads to a better one.
fn fit(template: &Copy, frame: &Copy, guess: &Guess, factor: f64) -> (f64, Option<Normal>) {
    let (Size { width, height }, (sin, cos)) = (template.size, guess.turn.sin_cos());
    let middle = [width as f64 / 2.0, height as f64 / 2.0];
    let shift = guess.shift.map(|shift| shift / factor);
    // A pose has three numbers: some thousand pixels know them.
    let step = (template.size.area() as f64 / ENOUGH).sqrt().max(1.0) as usize;
    let each = |f: &mut dyn FnMut(f64, [f64; 3], [f64; 2])| {
        for row in (0..height).step_by(step) {
            let y = row as f64 + 0.5 - middle[1];
            for (column, &value) in template.values[row * width..][..width].iter().enumerate().step_by(step) {
                let x = column as f64 + 0.5 - middle[0];
                let turned = [cos * x - sin * y, sin * x + cos * y];
                if let Some(seen) = frame.sample(turned[0] + shift[0] + middle[0], turned[1] + shift[1] + middle[1]) {
                    f(f64::from(value), seen, turned);
                }
            }
        }
    };
    let mut sums = Sums::default();
    each(&mut |value, [seen, ..], _| sums.add(value, seen));
    let score = sums.correlation(OVERLAP * template.size.area() as f64 / (step * step) as f64);
    if score <= 0.0 {
        return (score, None);
    }
    // seen = gain * value + offset, by least squares.
    let gain = (sums.ab - sums.a * sums.b / sums.n) / (sums.aa - sums.a * sums.a / sums.n);
    let offset = (sums.b - gain * sums.a) / sums.n;
    let (mut matrix, mut vector) = ([[0.0; 3]; 3], [0.0; 3]);
    each(&mut |value, [seen, slope_x, slope_y], [x, y]| {
        // Turning moves a point at (x, y) from the middle by (-y, x).
        let slopes = [slope_x, slope_y, slope_y * x - slope_x * y];
        let residual = gain * value + offset - seen;
        for i in 0..3 {
            vector[i] += slopes[i] * residual;
            for j in 0..3 {
                matrix[i][j] += slopes[i] * slopes[j];
            }
        }
    });
    (score, Some(Normal { matrix, vector }))
}

#[cfg(test)]
#[cfg(feature = "train")]
mod tests;
