//! A woven cloth seen from near: undyed yarns over and under each other, with dyed stripes along the warp.

use rand::{Rng, RngExt};
use rand_chacha::ChaCha8Rng;

use super::DefectKind;
use super::canvas::{Colour, Surface, V2, floor, mix, noise, noise_along, smoothstep, v2};
use super::flaw::{self, Flaw, Mark};

/// Yarns per unit: about 9 pixels of 256 each.
const YARNS: f32 = 14.0;
/// Height of the waves that a yarn goes over the others in.
const WAVE: f32 = 0.016;
/// Warp yarns from one stripe to the next, and how many of them are dyed.
const STRIPE_PERIOD: i32 = 9;
const STRIPE: i32 = 3;
const ECRU: Colour = [0.78, 0.72, 0.61];
const NAVY: Colour = [0.20, 0.27, 0.42];

fn is_dyed(warp: i32) -> bool {
    warp.rem_euclid(STRIPE_PERIOD) < STRIPE
}

/// A stretch of one yarn.
#[derive(Clone, Copy)]
struct Stretch {
    weft: bool,
    number: i32,
    /// Middle and half length, along the yarn.
    middle: f32,
    half: f32,
}

impl Stretch {
    /// Through `place`.
    fn new(place: V2, weft: bool, half: f32) -> Self {
        let (across, middle) = if weft { (place.y, place.x) } else { (place.x, place.y) };
        Self { weft, number: floor(across * YARNS), middle, half }
    }

    /// Whether a yarn is this one, at a place within the stretch.
    fn covers(&self, weft: bool, number: i32, along: f32) -> bool {
        self.weft == weft && self.number == number && (along - self.middle).abs() <= self.half
    }

    /// 1 in the middle of the stretch, 0 at its ends and beyond.
    fn bell(&self, along: f32) -> f32 {
        let t = (along - self.middle) / self.half;
        (1.0 - t * t).max(0.0)
    }
}

/// How a flaw has changed the cloth.
enum Fault {
    None,
    /// Yarns pushed aside around a place: centre, radius, how far.
    Pushed(V2, f32, V2),
    /// A yarn broke and is not there.
    Lost(Stretch),
    /// A yarn of another colour.
    Wrong(Stretch, Colour),
    /// A yarn that is thick in the middle: by how much of its width, below 1.
    Slub(Stretch, f32),
}

impl Fault {
    fn new(flaw: &mut Flaw) -> Self {
        let place = v2(flaw.pick(-0.62, 0.62), flaw.pick(-0.62, 0.62));
        match flaw.kind {
            DefectKind::Deformation => {
                let radius = flaw.scaled(0.20, 0.42);
                Self::Pushed(place, radius, flaw.direction() * flaw.scaled(0.045, 0.12))
            }
            DefectKind::Scratch => Self::Lost(Stretch::new(place, flaw.chance(0.5), flaw.scaled(0.14, 0.75))),
            DefectKind::Misprint => {
                let stretch = Stretch::new(place, false, flaw.scaled(0.15, 1.2));
                let (now, other) = if is_dyed(stretch.number) { (NAVY, ECRU) } else { (ECRU, NAVY) };
                let share = flaw.scaled(0.55, 1.0);
                Self::Wrong(stretch, [0, 1, 2].map(|k| mix(now[k], other[k], share)))
            }
            DefectKind::Dent => {
                let stretch = Stretch::new(place, flaw.chance(0.6), flaw.scaled(0.10, 0.26));
                Self::Slub(stretch, flaw.scaled(0.35, 0.72))
            }
            _ => Self::None,
        }
    }
}

/// A yarn at a point.
struct Yarn {
    weft: bool,
    number: i32,
    /// Across it, -1..=1 from edge to edge.
    across: f32,
    /// Above the middle of the cloth.
    height: f32,
}

/// How high a place is where no yarn is.
const NOTHING: f32 = -0.05;

/// One cloth, with its own unevenness.
struct Cloth {
    uneven: u32,
    fuzz: u32,
    below: u32,
    slack: V2,
    fault: Fault,
}

impl Cloth {
    /// Where in the undisturbed cloth the point `p` was: cloth never lies quite straight.
    fn undisturbed(&self, p: V2) -> V2 {
        let (x, y) = (p.x * 1.1, p.y * 1.1);
        let sway = v2(noise(x + self.slack.x, y, self.uneven), noise(x, y + self.slack.y, self.uneven ^ 2));
        let at = p + sway * 0.012;
        match &self.fault {
            Fault::Pushed(centre, radius, push) => {
                let r = (p - *centre).length() / radius;
                let bell = (1.0 - r * r).max(0.0);
                at - *push * (bell * bell)
            }
            Fault::Slub(stretch, swell) => {
                // The thick yarn is magnified and presses its neighbours together. Distances keep their order as long
                // as `swell` is below 1.
                let (across, along) = if stretch.weft { (at.y, at.x) } else { (at.x, at.y) };
                let from = across * YARNS - stretch.number as f32 - 0.5;
                let pressed = swell * stretch.bell(along) * (-0.5 * from * from).exp() * from / YARNS;
                if stretch.weft { v2(at.x, at.y - pressed) } else { v2(at.x - pressed, at.y) }
            }
            _ => at,
        }
    }

    /// The yarn of one system at a place, in a plain weave: over one, under one.
    fn yarn(&self, weft: bool, at: V2) -> Yarn {
        let (across, along) = if weft { (at.y, at.x) } else { (at.x, at.y) };
        let across = across * YARNS;
        let number = floor(across);
        // Spun unevenly: each has its own thickness, which changes slowly along it.
        let width = 0.97 + 0.09 * noise_along(along * 2.2, number, self.uneven ^ (11 + u32::from(weft)));
        let lift = match &self.fault {
            Fault::Slub(stretch, swell) if stretch.covers(weft, number, along) => {
                2.2 * WAVE * swell * stretch.bell(along)
            }
            Fault::Lost(stretch) if stretch.covers(weft, number, along) => {
                return Yarn { weft, number, across: 0.0, height: NOTHING };
            }
            _ => 0.0,
        };
        let u = (across - number as f32 - 0.5) * 2.0 / width;
        if u.abs() >= 1.0 {
            return Yarn { weft, number, across: 0.0, height: NOTHING };
        }
        // Up and down, one crossing each: a parabola looks like a sine and costs less. Where the warp goes over, the
        // weft goes under.
        let crossing = floor(along * YARNS);
        let t = along * YARNS - crossing as f32;
        let over = if (number + crossing + i32::from(weft)) & 1 == 0 { 1.0 } else { -1.0 };
        let height = WAVE * (over * 4.0 * t * (1.0 - t) + 0.85 * (1.0 - u * u).sqrt()) + lift;
        Yarn { weft, number, across: u, height }
    }

    /// Twisted fibres: fine lines along the yarn, darker towards its edges.
    fn colour(&self, yarn: &Yarn, at: V2) -> Colour {
        let dyed = !yarn.weft && is_dyed(yarn.number);
        let along = if yarn.weft { at.x } else { at.y };
        let colour = match &self.fault {
            Fault::Wrong(stretch, wrong) if stretch.covers(yarn.weft, yarn.number, along) => *wrong,
            _ => [ECRU, NAVY][usize::from(dyed)],
        };
        let twist = noise_along(along * 62.0 + yarn.across * 1.3, yarn.number, self.fuzz);
        let batch = noise_along(along * 1.7, yarn.number, self.fuzz ^ 21);
        let shade = (1.0 + 0.10 * twist + 0.07 * batch) * (1.0 - 0.22 * yarn.across * yarn.across);
        colour.map(|c| c * shade)
    }

    /// What is seen through a gap.
    fn ground(&self, p: V2) -> Colour {
        let dark = 0.10 + 0.03 * noise(p.x * 40.0, p.y * 40.0, self.below);
        [dark, dark, dark * 1.1]
    }
}

pub(super) fn paint(surface: &mut Surface, rng: &mut ChaCha8Rng, mut flaw: Option<Flaw>) {
    let cloth = Cloth {
        uneven: rng.next_u32(),
        fuzz: rng.next_u32(),
        below: rng.next_u32(),
        slack: v2(rng.random_range(-10.0..10.0), rng.random_range(-10.0..10.0)),
        fault: flaw.as_mut().map_or(Fault::None, Fault::new),
    };
    let hole = flaw.as_mut().filter(|f| f.kind == DefectKind::Missing).map(|flaw| {
        let (centre, radius) = (v2(flaw.pick(-0.6, 0.6), flaw.pick(-0.6, 0.6)), flaw.scaled(0.07, 0.24));
        flaw::blot(flaw, centre, radius, 0.15)
    });

    surface.paint(v2(0.0, 0.0), 1.6, |p, cell| {
        let at = cloth.undisturbed(p);
        let (warp, weft) = (cloth.yarn(false, at), cloth.yarn(true, at));
        let top = if warp.height > weft.height { warp } else { weft };
        let colour = if top.height > NOTHING { cloth.colour(&top, at) } else { cloth.ground(p) };
        cell.cover(1.0, colour, 0.02);
        cell.height = top.height;
        if let Some(hole) = &hole {
            // Torn yarns end raggedly: some reach further into the hole.
            let depth = hole(p);
            let ragged = 0.35 * noise_along(top.number as f32 * 3.7, 0, cloth.below ^ 3);
            let gone = if depth > 0.02 { smoothstep(0.30, 0.50, depth + ragged * (1.0 - depth)) } else { 0.0 };
            cell.cover(gone, cloth.ground(p), 0.0);
            cell.height = mix(cell.height, 2.0 * NOTHING, gone);
        }
    });
    if let Some(flaw) = flaw.as_mut() {
        mar(surface, flaw);
    }
}

fn mar(surface: &mut Surface, flaw: &mut Flaw) {
    let place = v2(flaw.pick(-0.6, 0.6), flaw.pick(-0.6, 0.6));
    match flaw.kind {
        DefectKind::Contamination => {
            if flaw.chance(0.5) {
                let colour = if flaw.chance(0.5) { [0.55, 0.10, 0.09] } else { [0.08, 0.08, 0.09] };
                let mark = Mark { colour, gloss: 0.05, height: 0.015 };
                let (length, width) = (flaw.scaled(0.28, 0.80), flaw.scaled(0.009, 0.014));
                return flaw::fibre(surface, flaw, (place, length, width), mark);
            }
            let oil = flaw.scaled(0.25, 0.75);
            let tint = [0.62, 0.52, 0.38].map(|t| mix(1.0, t, oil));
            let radius = flaw.scaled(0.09, 0.26);
            flaw::stain(surface, flaw, (place, radius, 0.25), move |depth| tint.map(|t| mix(1.0, t, depth)), |_| 1.0);
        }
        DefectKind::Discolouration => {
            let bleach = flaw.scaled(0.35, 1.0);
            let tint = if flaw.chance(0.5) { [1.16, 1.18, 1.22] } else { [0.98, 0.86, 0.66] };
            let tint = tint.map(|t| mix(1.0, t, bleach));
            let radius = flaw.scaled(0.18, 0.40);
            flaw::stain(surface, flaw, (place, radius, 0.6), move |depth| tint.map(|t| mix(1.0, t, depth)), |_| 1.0);
        }
        _ => {}
    }
}
