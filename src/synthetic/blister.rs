//! A blister pack: nine scored tablets under clear domes on embossed foil, with a printed lot number.

use rand::{Rng, RngExt};
use rand_chacha::ChaCha8Rng;

use super::DefectKind;
use super::canvas::{Surface, V2, cloud, coverage, floor, mix, noise, rectangle, smoothstep, v2};
use super::flaw::{self, Flaw, Mark};
use super::text::{self, Lettering};

const PACK: V2 = v2(0.86, 0.88);
const CORNER: f32 = 0.09;
const POCKETS: usize = 9;
const PITCH: f32 = 0.53;
const ROWS_FROM: f32 = -0.60;
const DOME: f32 = 0.215;
const TABLET: f32 = 0.165;
const TABLET_COLOUR: [f32; 3] = [0.86, 0.79, 0.70];
const LOT: &str = "LOT 4711  EXP 09-27";

fn pocket(index: usize) -> V2 {
    v2((index % 3) as f32 * PITCH - PITCH, (index / 3) as f32 * PITCH + ROWS_FROM)
}

/// One tablet as it lies in its pocket.
#[derive(Clone, Copy)]
struct Tablet {
    centre: V2,
    /// Direction of the score line.
    axis: V2,
    /// Oval by this factor along the score line.
    stretch: f32,
    /// Centre and radius of a piece that is gone, seed of its edge.
    chip: Option<(V2, f32, u32)>,
    present: bool,
}

impl Tablet {
    fn distance(&self, p: V2) -> f32 {
        let q = (p - self.centre).along(self.axis);
        let round = v2(q.x / self.stretch, q.y * self.stretch).length() - TABLET;
        match self.chip {
            Some((centre, radius, seed)) => {
                let ragged = radius * (1.0 + 0.22 * cloud((p - centre) * (2.0 / radius), seed));
                round.max(ragged - (p - centre).length())
            }
            None => round,
        }
    }
}

pub(super) fn paint(surface: &mut Surface, rng: &mut ChaCha8Rng, mut flaw: Option<Flaw>) {
    let (table, foil) = (rng.next_u32(), rng.next_u32());
    let mut tablets: Vec<Tablet> = (0..POCKETS)
        .map(|i| {
            let mut vary = |spread: f32| rng.random_range(-spread..=spread);
            let centre = pocket(i) + v2(vary(0.012), vary(0.012));
            Tablet { centre, axis: V2::at_angle(0.35 + vary(0.12)), stretch: 1.0, chip: None, present: true }
        })
        .collect();
    let chosen = flaw.as_mut().map_or(0, |f| f.one_of(POCKETS));
    if let Some(flaw) = flaw.as_mut() {
        spoil(&mut tablets[chosen], flaw);
    }

    surface.paint_table(|p, cell| {
        let grey = 0.16 + 0.012 * noise(p.x * 60.0, p.y * 60.0, table) + 0.010 * noise(p.x * 4.0, p.y * 4.0, table ^ 1);
        cell.cover(1.0, [grey * 0.80, grey * 0.95, grey * 1.15], 0.03);
    });
    paint_foil(surface, foil);
    for (i, tablet) in tablets.iter().enumerate() {
        paint_pocket(surface, pocket(i));
        if tablet.present {
            paint_tablet(surface, tablet, foil ^ i as u32);
        }
    }
    print_lot(surface, flaw.as_mut());
    if let Some(flaw) = flaw.as_mut() {
        mar_below(surface, flaw, &tablets[chosen]);
    }
    (0..POCKETS).for_each(|i| paint_dome(surface, pocket(i), foil ^ i as u32));
    if let Some(flaw) = flaw.as_mut() {
        mar_above(surface, flaw, pocket(chosen));
    }
}

/// Flaws of the tablet itself.
fn spoil(tablet: &mut Tablet, flaw: &mut Flaw) {
    match flaw.kind {
        DefectKind::Missing => {
            tablet.present = flaw.scaled(0.0, 1.0) < flaw.pick(0.55, 0.85);
            let radius = flaw.scaled(0.055, 0.16);
            tablet.chip = Some((tablet.centre + flaw.direction() * TABLET, radius, flaw.seed()));
        }
        DefectKind::Deformation => {
            // Out of place and pressed oval.
            tablet.centre = tablet.centre + flaw.direction() * flaw.scaled(0.020, 0.05);
            tablet.stretch = 1.0 + flaw.scaled(0.04, 0.16);
            tablet.axis = flaw.direction();
        }
        _ => {}
    }
}

fn paint_foil(surface: &mut Surface, seed: u32) {
    let outline = |p: V2| rectangle(p, PACK, CORNER);
    surface.paint_shape((v2(0.0, 0.0), PACK), outline, |p, distance, amount, cell| {
        // Knurled where it is sealed: small pyramids across both diagonals.
        let wave = |t: f32| {
            let t = t * 17.0;
            1.0 - 4.0 * (t - floor(t) as f32 - 0.5).abs()
        };
        let knurl = wave(p.x + p.y) + wave(p.x - p.y);
        let wrinkle = cloud(p * 3.1, seed);
        let grey = 0.60 + 0.035 * wrinkle + 0.012 * noise(p.x * 90.0, p.y * 90.0, seed ^ 3);
        cell.cover(amount, [grey, grey * 1.005, grey * 1.02], 0.22);
        cell.height = amount * (0.030 * smoothstep(0.0, 0.04, -distance) + 0.0016 * knurl + 0.006 * wrinkle);
    });
}

/// The hole in the foil's knurling below a dome: smooth, a little darker.
fn paint_pocket(surface: &mut Surface, centre: V2) {
    surface.paint(centre, DOME + 0.02, |p, cell| {
        let r = (p - centre).length();
        let amount = 1.0 - smoothstep(DOME - 0.012, DOME + 0.004, r);
        cell.tint(amount, [0.80, 0.81, 0.83]);
        cell.height = mix(cell.height, 0.020, 0.75 * amount);
    });
}

fn paint_tablet(surface: &mut Surface, tablet: &Tablet, seed: u32) {
    let around = (tablet.centre, v2(TABLET * 1.2, TABLET * 1.2));
    let outline = |p: V2| tablet.distance(p);
    surface.paint_shape(around, outline, |p, distance, amount, cell| {
        let from_centre = p - tablet.centre;
        let round = (from_centre.length() / TABLET).min(1.0);
        // Pressed powder: fine grain, a bevelled rim, domed faces, a line to break it along.
        let grain = 1.0 + 0.020 * noise(p.x * 110.0, p.y * 110.0, seed) + 0.015 * cloud(p * 9.0, seed ^ 5);
        let bevel = smoothstep(0.0, 0.035, -distance);
        let line = from_centre.along(tablet.axis).y.abs();
        let score = 1.0 - smoothstep(0.004, 0.017, line);
        let broken = tablet
            .chip
            .map_or(0.0, |(centre, radius, _)| 1.0 - smoothstep(radius * 1.0, radius * 1.55, (p - centre).length()));
        cell.cover(amount, TABLET_COLOUR.map(|c| c * grain * (1.0 - 0.10 * score) * (1.0 - 0.06 * broken)), 0.05);
        let height = 0.05 + 0.030 * bevel + 0.028 * (1.0 - round * round) - 0.016 * score - 0.025 * broken;
        cell.height = mix(cell.height, height, amount);
    });
}

/// What the clear dome adds: a bright rim towards the lamp, a dark one away from it, a glint.
fn paint_dome(surface: &mut Surface, centre: V2, seed: u32) {
    let lamp = v2(-0.64, -0.77);
    surface.paint(centre, DOME + 0.05, |p, cell| {
        let from_centre = p - centre;
        let r = from_centre.length();
        let side = from_centre.dot(lamp) / r.max(1e-6);
        let rim = smoothstep(DOME - 0.030, DOME - 0.008, r) * (1.0 - smoothstep(DOME - 0.004, DOME + 0.012, r));
        let inner = smoothstep(DOME - 0.075, DOME - 0.050, r) * (1.0 - smoothstep(DOME - 0.046, DOME - 0.030, r));
        let glint = inner * smoothstep(0.80, 0.97, side + 0.02 * noise(r * 40.0, 0.0, seed));
        let light = rim * (0.14 * side + 0.05) + 0.38 * glint + 0.05 * inner * smoothstep(-0.80, -0.98, side);
        cell.colour.iter_mut().for_each(|c| *c = (*c + light).max(0.0));
    });
}

fn print_lot(surface: &mut Surface, flaw: Option<&mut Flaw>) {
    let mut how = Lettering { centre: v2(0.0, 0.775), height: 0.085, stroke: 0.016, axis: v2(1.0, 0.0), bent: false };
    let mut print = |how: &Lettering, text: &str, ink: f32| {
        text::write(surface, text, how, |amount, cell| cell.cover(amount * ink, [0.09, 0.09, 0.14], 0.0));
    };
    let Some(flaw) = flaw.filter(|f| f.kind == DefectKind::Misprint) else {
        return print(&how, LOT, 0.92);
    };
    match flaw.one_of(4) {
        // Aslant or beside its place.
        0 => {
            how.axis = V2::at_angle(flaw.sign() * flaw.scaled(0.02, 0.09));
            how.centre = how.centre + v2(flaw.sign() * flaw.scaled(0.03, 0.09), flaw.pick(-0.02, 0.02));
            print(&how, LOT, 0.92);
        }
        // Twice.
        1 => {
            print(&how, LOT, 0.92);
            how.centre = how.centre + v2(flaw.sign() * flaw.scaled(0.018, 0.05), flaw.pick(-0.03, 0.03));
            print(&how, LOT, flaw.scaled(0.4, 0.8));
        }
        // Hardly any ink, or none.
        2 => print(&how, LOT, flaw.scaled(0.5, 0.0)),
        // The end is lost.
        _ => {
            let keep = 18 - flaw.scaled(1.0, 9.0).round() as usize;
            let text: String = LOT.chars().enumerate().map(|(i, c)| if i < keep { c } else { ' ' }).collect();
            print(&how, &text, 0.92);
        }
    }
}

/// Flaws that lie under the dome.
fn mar_below(surface: &mut Surface, flaw: &mut Flaw, tablet: &Tablet) {
    let pixel = surface.pixel();
    let tablet = *tablet;
    let on = move |p: V2| coverage(tablet.distance(p), pixel);
    let place = tablet.centre + flaw.direction() * flaw.pick(0.0, 0.10);
    match flaw.kind {
        DefectKind::Discolouration => {
            let tint = if flaw.chance(0.6) { [0.90, 0.72, 0.42] } else { [0.74, 0.80, 0.84] };
            let faint = flaw.scaled(0.55, 1.0);
            let radius = if flaw.chance(0.4) { 0.4 } else { flaw.scaled(0.06, 0.14) };
            let colour = move |depth: f32| tint.map(|t| mix(1.0, t, faint * depth));
            flaw::stain(surface, flaw, (place, radius, 0.7), colour, on);
        }
        DefectKind::Contamination => {
            let dirt = Mark { colour: [0.10, 0.08, 0.06], gloss: 0.05, height: 0.006 };
            if flaw.chance(0.45) {
                let (length, width) = (flaw.scaled(0.16, 0.42), flaw.scaled(0.0055, 0.009));
                return flaw::fibre(surface, flaw, (place, length, width), dirt);
            }
            let (radius, opacity) = (flaw.scaled(0.024, 0.060), flaw.scaled(0.65, 0.95));
            flaw::spot(surface, flaw, (place, radius, 0.35), (dirt, opacity), |_| 1.0);
        }
        _ => {}
    }
}

/// Flaws of the pack.
fn mar_above(surface: &mut Surface, flaw: &mut Flaw, pocket: V2) {
    let pixel = surface.pixel();
    let on = |p: V2| coverage(rectangle(p, PACK, CORNER) + 0.02, pixel);
    match flaw.kind {
        DefectKind::Scratch => {
            let place = v2(flaw.pick(-0.65, 0.65), flaw.pick(-0.70, 0.62));
            let mark = Mark { colour: [0.97, 0.97, 0.98], gloss: 0.2, height: -0.004 };
            let (length, width) = (flaw.scaled(0.28, 0.80), flaw.scaled(0.006, 0.010));
            flaw::scratch(surface, flaw, (place, length, width), mark, on);
        }
        DefectKind::Dent => {
            // The foil is pressed in between the pockets, or a dome is.
            let aside = if flaw.chance(0.5) { v2(flaw.sign() * PITCH / 2.0, 0.06) } else { v2(0.0, 0.0) };
            let place = v2((pocket + aside).x.clamp(-0.7, 0.7), (pocket + aside).y);
            let (radius, depth) = (flaw.scaled(0.08, 0.19), flaw.scaled(0.018, 0.075));
            flaw::dent(surface, flaw, place, radius, depth, on);
        }
        _ => {}
    }
}
