//! A turned steel washer with chamfered edges and a stamped mark, on a dark mat.

use rand::Rng;
use rand_chacha::ChaCha8Rng;

use super::DefectKind;
use super::canvas::{Surface, V2, cloud, coverage, noise, smoothstep, v2};
use super::flaw::{self, Flaw, Mark};
use super::text::{self, Lettering};

const OUTER: f32 = 0.76;
const INNER: f32 = 0.37;
const CHAMFER: f32 = 0.045;
const THICKNESS: f32 = 0.07;
const MARK: &str = "M20 A2-70";

/// The outline: a ring that a flaw has bent or bitten into.
struct Ring {
    /// Direction of the bend, how far it pushes the edges out (or in, below 0), how narrow it is.
    bend: Option<(V2, f32, f32)>,
    /// Centre and radius of what broke off, and a seed for its ragged edge.
    bite: Option<(V2, f32, u32)>,
}

impl Ring {
    fn new(flaw: Option<&mut Flaw>) -> Self {
        let mut ring = Self { bend: None, bite: None };
        match flaw {
            Some(flaw) if flaw.kind == DefectKind::Deformation => {
                let push = flaw.sign() * flaw.scaled(0.022, 0.085);
                ring.bend = Some((flaw.direction(), push, flaw.pick(9.0, 16.0)));
            }
            Some(flaw) if flaw.kind == DefectKind::Missing => {
                let (edge, inward) = if flaw.chance(0.7) { (OUTER, 1.0) } else { (INNER, -1.0) };
                let radius = flaw.scaled(0.05, 0.17) * flaw.pick(0.9, 1.15);
                let centre = flaw.direction() * (edge + inward * radius * flaw.pick(0.15, 0.45));
                ring.bite = Some((centre, radius, flaw.seed()));
            }
            _ => {}
        }
        ring
    }

    fn distance(&self, p: V2) -> f32 {
        let r = p.length();
        let push = self
            .bend
            .map_or(0.0, |(direction, push, narrow)| push * (-narrow * (1.0 - p.dot(direction) / r.max(1e-6))).exp());
        let ring = (r - OUTER - push).max(INNER + 0.8 * push - r);
        match self.bite {
            Some((centre, radius, seed)) if (p - centre).length() < 2.0 * radius + 0.1 => {
                let ragged = radius * (1.0 + 0.3 * cloud((p - centre) * (2.2 / radius), seed));
                ring.max(ragged - (p - centre).length())
            }
            _ => ring,
        }
    }
}

pub(super) fn paint(surface: &mut Surface, rng: &mut ChaCha8Rng, mut flaw: Option<Flaw>) {
    let (mat, turning) = (rng.next_u32(), rng.next_u32());
    surface.paint_table(|p, cell| {
        let grain = 0.10 + 0.018 * noise(p.x * 70.0, p.y * 70.0, mat) + 0.012 * noise(p.x * 6.0, p.y * 6.0, mat ^ 1);
        cell.cover(1.0, [grain, grain * 1.02, grain * 1.08], 0.02);
    });

    let ring = Ring::new(flaw.as_mut());
    let glint = v2(-0.64, -0.77); // the light runs across the turning marks here
    let pixel = surface.pixel();
    surface.paint(v2(0.0, 0.0), 0.90, |p, cell| {
        let r = p.length();
        if r < INNER - 0.12 {
            return;
        }
        let distance = ring.distance(p);
        if distance > pixel / 2.0 {
            return;
        }
        let amount = coverage(distance, pixel);
        let across = p.dot(glint) / r;
        let fan = across * across;
        let slow = v2(p.x * 1.3, p.y * 1.1);
        let fine =
            noise(r * 118.0, slow.x + slow.y, turning) * 0.6 + noise(r * 55.0, slow.x - slow.y, turning ^ 7) * 0.4;
        let steel = 0.40 + 0.24 * fan * fan + fine * (0.045 + 0.04 * fan);
        // The edge is broken by a chamfer, which is ground and brighter.
        let slope = 1.0 - smoothstep(0.0, CHAMFER, -distance);
        cell.cover(amount, [steel * 0.99, steel, steel * 1.03], 0.10 + 0.12 * slope);
        cell.height = amount * (THICKNESS - 0.035 * slope);
    });

    stamp(surface, flaw.as_mut());
    if let Some(flaw) = flaw.as_mut() {
        mar(surface, flaw, &ring);
    }
}

/// The mark in the steel, as it should be or as a flaw has it.
fn stamp(surface: &mut Surface, flaw: Option<&mut Flaw>) {
    let middle = (OUTER + INNER) / 2.0;
    let mut how = Lettering { centre: v2(0.0, -middle), height: 0.115, stroke: 0.017, axis: v2(1.0, 0.0), bent: true };
    let mut strike = |how: &Lettering, text: &str, depth: f32| {
        text::write(surface, text, how, |amount, cell| {
            cell.shade(1.0 - 0.62 * depth * amount);
            cell.height -= 0.012 * depth * amount;
        });
    };
    let Some(flaw) = flaw.filter(|f| f.kind == DefectKind::Misprint) else {
        return strike(&how, MARK, 1.0);
    };
    match flaw.one_of(3) {
        // Struck twice, a little aside.
        0 => {
            strike(&how, MARK, 1.0);
            let aside = V2::at_angle(-std::f32::consts::FRAC_PI_2 + flaw.sign() * flaw.scaled(0.035, 0.075));
            how.centre = aside * (middle + flaw.pick(-0.02, 0.03));
            strike(&how, MARK, flaw.scaled(0.45, 1.0));
        }
        // Struck with another die.
        1 => strike(&how, ["M20 A4-70", "M16 A2-70", "M16 A4-80"][flaw.scaled(0.0, 2.0).round() as usize], 1.0),
        // Some letters not struck through.
        _ => {
            let keep = 8 - (flaw.scaled(1.0, 6.0).round() as usize);
            let text: String = MARK.chars().enumerate().map(|(i, c)| if i < keep { c } else { ' ' }).collect();
            strike(&how, &text, 1.0);
        }
    }
}

fn mar(surface: &mut Surface, flaw: &mut Flaw, ring: &Ring) {
    let pixel = surface.pixel();
    let on = |p: V2| coverage(ring.distance(p), pixel);
    let place = flaw.direction() * flaw.pick(INNER + 0.10, OUTER - 0.10);
    match flaw.kind {
        DefectKind::Scratch => {
            let bright = flaw.chance(0.6);
            let colour = if bright { [0.90, 0.91, 0.93] } else { [0.14, 0.14, 0.15] };
            let mark = Mark { colour, gloss: if bright { 0.4 } else { 0.0 }, height: -0.008 };
            let (length, width) = (flaw.scaled(0.16, 0.55), flaw.scaled(0.0055, 0.012));
            flaw::scratch(surface, flaw, (place, length, width), mark, on);
        }
        DefectKind::Dent => {
            let (radius, depth) = (flaw.scaled(0.05, 0.12), flaw.scaled(0.010, 0.045));
            flaw::dent(surface, flaw, place, radius, depth, on);
        }
        DefectKind::Contamination => {
            if flaw.chance(0.4) {
                let lint = Mark { colour: [0.75, 0.73, 0.70], gloss: 0.05, height: 0.012 };
                let dark = Mark { colour: [0.06, 0.05, 0.05], ..lint };
                let mark = if flaw.chance(0.3) { lint } else { dark };
                let (length, width) = (flaw.scaled(0.20, 0.60), flaw.scaled(0.006, 0.011));
                return flaw::fibre(surface, flaw, (place, length, width), mark);
            }
            let mark = Mark { colour: [0.13, 0.085, 0.05], gloss: 0.25, height: 0.004 };
            let opacity = flaw.scaled(0.45, 0.95);
            let radius = flaw.scaled(0.035, 0.11);
            for _ in 0..flaw.one_of(4) {
                let aside = flaw.direction() * flaw.pick(0.0, 0.12);
                let radius = radius * flaw.pick(0.35, 1.0);
                flaw::spot(surface, flaw, (place + aside, radius, 0.3), (mark, opacity), on);
            }
            flaw::spot(surface, flaw, (place, radius, 0.3), (mark, opacity), on);
        }
        DefectKind::Discolouration => {
            // Temper colours: straw at the rim, then brown and blue where it was hottest.
            let heat = flaw.scaled(0.35, 1.0);
            let colours = move |depth: f32| {
                let t = depth * heat;
                let (straw, brown, blue) = ([1.06, 0.92, 0.66], [0.82, 0.58, 0.46], [0.50, 0.60, 0.92]);
                let (a, b, t) = if t < 0.5 { (straw, brown, t * 2.0) } else { (brown, blue, t * 2.0 - 1.0) };
                [0, 1, 2].map(|k| a[k] + (b[k] - a[k]) * t)
            };
            let radius = flaw.scaled(0.13, 0.32);
            flaw::stain(surface, flaw, (place, radius, 0.8), colours, on);
        }
        DefectKind::Missing | DefectKind::Deformation | DefectKind::Misprint => {}
    }
}
