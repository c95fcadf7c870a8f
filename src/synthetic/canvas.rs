//! The drawing surface: colour, height and gloss per pixel, painted in the part's own coordinates; distances, noise
//! and the edges between them. Knows no product.
//!
//! Part coordinates: the image spans -1..1 in x (right) and y (down) when the part lies straight; heights, widths and
//! distances are in the same unit. A signed distance is negative inside.

use std::ops::{Add, Mul, Sub};

/// A point or a direction.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct V2 {
    pub(super) x: f32,
    pub(super) y: f32,
}

/// A [`V2`].
pub(super) const fn v2(x: f32, y: f32) -> V2 {
    V2 { x, y }
}

impl V2 {
    /// The unit vector at this angle (radians, clockwise on the screen, 0 to the right).
    pub(super) fn at_angle(angle: f32) -> Self {
        v2(angle.cos(), angle.sin())
    }

    pub(super) fn dot(self, other: Self) -> f32 {
        self.x * other.x + self.y * other.y
    }

    pub(super) fn length(self) -> f32 {
        self.dot(self).sqrt()
    }

    /// A quarter turn clockwise on the screen.
    pub(super) fn turned(self) -> Self {
        v2(-self.y, self.x)
    }

    /// Turned by an angle (radians, clockwise on the screen).
    pub(super) fn rotated(self, angle: f32) -> Self {
        let axis = Self::at_angle(angle);
        axis * self.x + axis.turned() * self.y
    }

    /// Its coordinates in a frame whose x axis is `axis`, a unit vector.
    pub(super) fn along(self, axis: Self) -> Self {
        v2(self.dot(axis), self.dot(axis.turned()))
    }
}

impl Add for V2 {
    type Output = Self;
    fn add(self, o: Self) -> Self {
        v2(self.x + o.x, self.y + o.y)
    }
}

impl Sub for V2 {
    type Output = Self;
    fn sub(self, o: Self) -> Self {
        v2(self.x - o.x, self.y - o.y)
    }
}

impl Mul<f32> for V2 {
    type Output = Self;
    fn mul(self, s: f32) -> Self {
        v2(self.x * s, self.y * s)
    }
}

/// A colour as the camera shows it under even light, 0..=1 per channel.
pub(super) type Colour = [f32; 3];

/// Between two values: `a` at 0, `b` at 1.
pub(super) fn mix(a: f32, b: f32, t: f32) -> f32 {
    a + (b - a) * t
}

/// 0 below 0, 1 above 1, smooth between (3t^2 - 2t^3).
pub(super) fn ease(t: f32) -> f32 {
    let t = t.clamp(0.0, 1.0);
    t * t * (3.0 - 2.0 * t)
}

/// 0 below `low`, 1 above `high`, smooth between.
pub(super) fn smoothstep(low: f32, high: f32, value: f32) -> f32 {
    ease((value - low) * (1.0 / (high - low)))
}

/// Where the part lies in the image.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pose {
    /// Centre of the part.
    pub(super) shift: V2,
    /// Rotation, radians clockwise.
    pub(super) angle: f32,
    /// Size, 1 being the nominal.
    pub(super) scale: f32,
}

/// What one pixel shows.
#[derive(Clone, Copy, Debug)]
pub(super) struct Cell {
    pub(super) colour: Colour,
    /// Above the table.
    pub(super) height: f32,
    /// Strength of the mirror-like reflection, 0..=1.
    pub(super) gloss: f32,
}

impl Cell {
    /// Blends to `colour` and `gloss`.
    pub(super) fn cover(&mut self, amount: f32, colour: Colour, gloss: f32) {
        for (c, target) in self.colour.iter_mut().zip(colour) {
            *c = mix(*c, target, amount);
        }
        self.gloss = mix(self.gloss, gloss, amount);
    }

    /// Blends to the present colour times `tint`.
    pub(super) fn tint(&mut self, amount: f32, tint: Colour) {
        for (c, t) in self.colour.iter_mut().zip(tint) {
            *c *= mix(1.0, t, amount);
        }
    }

    /// Multiplies all channels.
    pub(super) fn shade(&mut self, factor: f32) {
        for c in &mut self.colour {
            *c *= factor;
        }
    }
}

/// A square image in the making.
pub(super) struct Surface {
    pub(super) size: usize,
    pub(super) cells: Vec<Cell>, // [size, size]
    pose: Pose,
    axis: V2,
}

impl Surface {
    /// `size` x `size` cells, black and flat.
    pub(super) fn new(size: usize, pose: Pose) -> Self {
        let cell = Cell { colour: [0.0; 3], height: 0.0, gloss: 0.0 };
        Self { size, cells: vec![cell; size * size], pose, axis: V2::at_angle(pose.angle) }
    }

    /// Side of a pixel in part coordinates.
    pub(super) fn pixel(&self) -> f32 {
        2.0 / self.size as f32
    }

    /// Visits every pixel with its position on the table, whatever the pose of the part.
    pub(super) fn paint_table(&mut self, mut brush: impl FnMut(V2, &mut Cell)) {
        let (size, pixel) = (self.size, self.pixel());
        for (i, cell) in self.cells.iter_mut().enumerate() {
            brush(centre_of(i % size, i / size, pixel), cell);
        }
    }

    /// Visits the pixels within `radius` of `centre`, with their positions in part coordinates.
    pub(super) fn paint(&mut self, centre: V2, radius: f32, brush: impl FnMut(V2, &mut Cell)) {
        self.paint_box(centre, v2(radius, radius), brush);
    }

    /// Visits the pixels of a box with these half sides, with their positions in part coordinates.
    pub(super) fn paint_box(&mut self, centre: V2, half: V2, mut brush: impl FnMut(V2, &mut Cell)) {
        let Pose { shift, scale, .. } = self.pose;
        let (size, pixel, axis) = (self.size, self.pixel(), self.axis);
        let middle = (axis * centre.x + axis.turned() * centre.y) * scale + shift;
        let (along, across) = (axis.x.abs(), axis.y.abs());
        let range = |middle: f32, reach: f32| {
            let reach = reach * scale + pixel;
            let index = |v: f32| ((v + 1.0) / pixel).clamp(0.0, size as f32) as usize;
            index(middle - reach)..index(middle + reach + pixel)
        };
        let columns = range(middle.x, along * half.x + across * half.y);
        for y in range(middle.y, across * half.x + along * half.y) {
            for (x, cell) in columns.clone().zip(&mut self.cells[y * size..][columns.clone()]) {
                brush((centre_of(x, y, pixel) - shift).along(axis) * (1.0 / scale), cell);
            }
        }
    }

    /// As [`Surface::paint_box`], but only the pixels that a shape covers: `brush` gets their signed distances from its edge
    /// and how much of each lies inside.
    pub(super) fn paint_shape(
        &mut self,
        (centre, half): (V2, V2),
        distance: impl Fn(V2) -> f32,
        mut brush: impl FnMut(V2, f32, f32, &mut Cell),
    ) {
        let pixel = self.pixel();
        self.paint_box(centre, half, |p, cell| {
            let distance = distance(p);
            let amount = coverage(distance, pixel);
            if amount > 0.0 {
                brush(p, distance, amount, cell);
            }
        });
    }
}

fn centre_of(x: usize, y: usize, pixel: f32) -> V2 {
    v2((x as f32 + 0.5) * pixel - 1.0, (y as f32 + 0.5) * pixel - 1.0)
}

/// How much of a pixel with this side lies inside an edge at this signed distance.
pub(super) fn coverage(distance: f32, pixel: f32) -> f32 {
    (0.5 - distance / pixel).clamp(0.0, 1.0)
}

/// Signed distance to a rectangle of these half sides around 0, with corners rounded by `radius`.
pub(super) fn rectangle(p: V2, half: V2, radius: f32) -> f32 {
    let q = v2(p.x.abs() - half.x + radius, p.y.abs() - half.y + radius);
    v2(q.x.max(0.0), q.y.max(0.0)).length() + q.x.max(q.y).min(0.0) - radius
}

/// Distance to the segment from `a` to `b`, and where along it (0..=1) the nearest point is.
pub(super) fn segment(p: V2, a: V2, b: V2) -> (f32, f32) {
    let (from, along) = (p - a, b - a);
    let t = (from.dot(along) / along.dot(along).max(1e-12)).clamp(0.0, 1.0);
    ((from - along * t).length(), t)
}

/// Evenly distributed in -1..1 for a lattice point: a finalizer in the manner of MurmurHash3.
fn lattice(x: i32, y: i32, seed: u32) -> f32 {
    let mut h = (x as u32).wrapping_mul(0x8da6_b343) ^ (y as u32).wrapping_mul(0xd816_3841) ^ seed;
    h = (h ^ (h >> 16)).wrapping_mul(0x7feb_352d);
    h = (h ^ (h >> 15)).wrapping_mul(0x846c_a68b);
    h ^= h >> 16;
    h as f32 * (2.0 / 4_294_967_296.0) - 1.0
}

/// The integer below; what `f32::floor` does without its call into the mathematics library.
pub(super) fn floor(value: f32) -> i32 {
    let truncated = value as i32;
    truncated - i32::from((truncated as f32) > value)
}

/// Smooth noise in -1..1 with features of size 1.
pub(super) fn noise(x: f32, y: f32, seed: u32) -> f32 {
    let (ix, iy) = (floor(x), floor(y));
    let (tx, ty) = (x - ix as f32, y - iy as f32);
    let (tx, ty) = (tx * tx * (3.0 - 2.0 * tx), ty * ty * (3.0 - 2.0 * ty));
    let row = |y| mix(lattice(ix, y, seed), lattice(ix.wrapping_add(1), y, seed), tx);
    mix(row(iy), row(iy.wrapping_add(1)), ty)
}

/// Noise of three sizes: 1, 1/2 and 1/4, in -1..1.
pub(super) fn cloud(p: V2, seed: u32) -> f32 {
    (noise(p.x, p.y, seed) * 4.0
        + noise(p.x * 2.0, p.y * 2.0, seed ^ 0x9e37) * 2.0
        + noise(p.x * 4.0, p.y * 4.0, seed ^ 0x79b9))
        / 7.0
}
