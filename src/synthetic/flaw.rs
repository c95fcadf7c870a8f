//! Defects that look alike on every product: scratches, dents, spots and fibres. What only one product can have
//! (a lost component, an empty pocket) is in that product's file.

use rand::{Rng, RngExt};
use rand_chacha::ChaCha8Rng;

use super::DefectKind;
use super::canvas::{Cell, Colour, Surface, V2, cloud, mix, segment, smoothstep, v2};

/// One defect to be painted: what, how visible, and its own random numbers, so that the rest of the picture stays
/// as it is without it.
#[derive(Clone)]
pub(super) struct Flaw {
    pub(super) kind: DefectKind,
    strength: f32,
    rng: ChaCha8Rng,
}

impl Flaw {
    pub(super) fn new(kind: DefectKind, strength: f32, rng: ChaCha8Rng) -> Self {
        Self { kind, strength: if strength.is_finite() { strength.clamp(0.0, 1.0) } else { 1.0 }, rng }
    }

    /// From `subtle` to `obvious` with the strength of this defect.
    pub(super) fn scaled(&self, subtle: f32, obvious: f32) -> f32 {
        mix(subtle, obvious, self.strength)
    }

    /// Evenly between two values.
    pub(super) fn pick(&mut self, low: f32, high: f32) -> f32 {
        self.rng.random_range(low..=high)
    }

    /// One of `0..count`.
    pub(super) fn one_of(&mut self, count: usize) -> usize {
        self.rng.random_range(0..count)
    }

    /// True in this fraction of all cases.
    pub(super) fn chance(&mut self, fraction: f32) -> bool {
        self.rng.random::<f32>() < fraction
    }

    /// 1 or -1.
    pub(super) fn sign(&mut self) -> f32 {
        if self.chance(0.5) { 1.0 } else { -1.0 }
    }

    /// Any direction.
    pub(super) fn direction(&mut self) -> V2 {
        V2::at_angle(self.pick(0.0, std::f32::consts::TAU))
    }

    /// A seed for noise.
    pub(super) fn seed(&mut self) -> u32 {
        self.rng.next_u32()
    }
}

/// What a flaw leaves behind on the pixels it covers.
#[derive(Clone, Copy, Debug)]
pub(super) struct Mark {
    pub(super) colour: Colour,
    pub(super) gloss: f32,
    /// Added height: below 0 carves, above 0 lies on top.
    pub(super) height: f32,
}

impl Mark {
    fn leave(&self, amount: f32, opacity: f32, cell: &mut Cell) {
        cell.cover(amount * opacity, self.colour, self.gloss);
        cell.height += self.height * amount;
    }
}

/// A scratch through `centre`: thin, slightly bent, tapered, of uneven depth. `on` says how much of the part is at a
/// place (0..=1), so that nothing is drawn beside it.
pub(super) fn scratch(
    surface: &mut Surface,
    flaw: &mut Flaw,
    (centre, length, width): (V2, f32, f32),
    mark: Mark,
    on: impl Fn(V2) -> f32,
) {
    let axis = flaw.direction();
    let bend = flaw.pick(-0.16, 0.16) * length;
    let seed = flaw.seed();
    let opacity = flaw.scaled(0.45, 0.95);
    surface.paint(centre, length * 0.55, |p, cell| {
        let q = (p - centre).along(axis);
        let t = 2.0 * q.x / length; // -1..=1 along the scratch
        let distance = (q.y - bend * (t * t - 0.4)).abs();
        if t.abs() > 1.0 || distance > 3.0 * width {
            return;
        }
        let uneven = 0.75 + 0.35 * cloud(v2(t * 6.0, 0.0), seed);
        let profile = width * (1.0 - t * t * t * t) * uneven;
        let amount = ((profile - distance) / (2.0 / 256.0) + 0.5).clamp(0.0, 1.0) * uneven.min(1.0) * on(p);
        mark.leave(amount, opacity, cell);
    });
}

/// A dent or, with `depth` below 0, a bump: nothing but a change of height, oval.
pub(super) fn dent(
    surface: &mut Surface,
    flaw: &mut Flaw,
    centre: V2,
    radius: f32,
    depth: f32,
    on: impl Fn(V2) -> f32,
) {
    let axis = flaw.direction();
    let squeeze = flaw.pick(1.0, 1.5);
    let seed = flaw.seed();
    surface.paint(centre, radius * 1.3, |p, cell| {
        let q = (p - centre).along(axis);
        let r = v2(q.x, q.y * squeeze).length() / radius * (1.0 + 0.18 * cloud((p - centre) * (1.6 / radius), seed));
        if r < 1.0 {
            let bowl = 1.0 - r * r;
            cell.height -= depth * bowl * bowl * on(p);
        }
    });
}

/// A spot with an irregular outline. `edge` is the fraction of the radius over which it fades out.
pub(super) fn spot(
    surface: &mut Surface,
    flaw: &mut Flaw,
    (centre, radius, edge): (V2, f32, f32),
    (mark, opacity): (Mark, f32),
    on: impl Fn(V2) -> f32,
) {
    let amount = blot(flaw, centre, radius, edge);
    surface.paint(centre, radius * 1.7, |p, cell| mark.leave(amount(p) * on(p), opacity, cell));
}

/// As [`spot`], but multiplies the colour that is there: heat, dye, oil.
pub(super) fn stain(
    surface: &mut Surface,
    flaw: &mut Flaw,
    (centre, radius, edge): (V2, f32, f32),
    tint: impl Fn(f32) -> Colour,
    on: impl Fn(V2) -> f32,
) {
    let amount = blot(flaw, centre, radius, edge);
    surface.paint(centre, radius * 1.7, |p, cell| {
        let depth = amount(p);
        cell.tint((depth * 3.0).min(1.0) * on(p), tint(depth));
    });
}

/// An irregular area: 1 inside, falling to 0 over `edge` radii, within 1.7 radii of the centre.
pub(super) fn blot(flaw: &mut Flaw, centre: V2, radius: f32, edge: f32) -> impl Fn(V2) -> f32 + use<> {
    let axis = flaw.direction();
    let squeeze = flaw.pick(1.0, 1.6);
    let seed = flaw.seed();
    move |p| {
        let q = (p - centre).along(axis);
        let r = v2(q.x, q.y * squeeze).length() / radius + 0.34 * cloud((p - centre) * (1.3 / radius), seed);
        1.0 - smoothstep(1.0 - edge, 1.0 + 0.1 * edge + 0.02, r)
    }
}

/// A hair or a thread that lies on the part, curled.
pub(super) fn fibre(surface: &mut Surface, flaw: &mut Flaw, (centre, length, width): (V2, f32, f32), mark: Mark) {
    const PIECES: usize = 14;
    let opacity = flaw.scaled(0.6, 0.97);
    let mut heading = flaw.pick(0.0, std::f32::consts::TAU);
    let mut curl = flaw.pick(-0.25, 0.25);
    let mut points = vec![v2(0.0, 0.0)];
    for i in 0..PIECES {
        curl = (curl + flaw.pick(-0.13, 0.13)).clamp(-0.45, 0.45);
        heading += curl;
        points.push(points[i] + V2::at_angle(heading) * (length / PIECES as f32));
    }
    let middle = points[PIECES / 2] - centre;
    points.iter_mut().for_each(|p| *p = *p - middle);
    let outline =
        |p: V2| points.windows(2).map(|ends| segment(p, ends[0], ends[1]).0).fold(f32::INFINITY, f32::min) - width;
    let around = (centre, v2(length * 0.6, length * 0.6));
    surface.paint_shape(around, outline, |_, _, amount, cell| mark.leave(amount, opacity, cell));
}
