//! An assembled circuit board: solder mask over copper, a chip with legs, small parts in rows, a socket, print.

use rand::{Rng, RngExt};
use rand_chacha::ChaCha8Rng;

use super::DefectKind;
use super::canvas::{Colour, Surface, V2, coverage, mix, noise, rectangle, segment, smoothstep, v2};
use super::flaw::{self, Flaw, Mark};
use super::text::{self, Lettering};

const BOARD: V2 = v2(0.92, 0.92);
const HOLE_AT: f32 = 0.80;
const MASK: Colour = [0.045, 0.27, 0.155];
const COPPER_BELOW: Colour = [0.085, 0.38, 0.21];
const COPPER: Colour = [0.80, 0.50, 0.28];
const SILVER: Colour = [0.70, 0.71, 0.73];
const GOLD: Colour = [0.78, 0.62, 0.30];

/// Copper lines: corners, in board coordinates.
const TRACES: &[&[V2]] = &[
    &[v2(-0.47, -0.42), v2(-0.62, -0.42), v2(-0.78, -0.26), v2(-0.78, 0.30), v2(-0.66, 0.42)],
    &[v2(-0.47, -0.33), v2(-0.58, -0.33), v2(-0.70, -0.21), v2(-0.70, 0.22), v2(-0.50, 0.42)],
    &[v2(-0.47, -0.15), v2(-0.60, -0.15), v2(-0.62, -0.13), v2(-0.62, 0.14), v2(-0.34, 0.42)],
    &[v2(-0.47, -0.06), v2(-0.54, -0.06), v2(-0.54, 0.06), v2(-0.18, 0.42)],
    &[v2(0.07, -0.42), v2(0.20, -0.42), v2(0.34, -0.56), v2(0.34, -0.72)],
    &[v2(0.07, -0.33), v2(0.24, -0.33), v2(0.48, -0.57), v2(0.48, -0.72)],
    &[v2(0.07, -0.24), v2(0.28, -0.24), v2(0.62, -0.58), v2(0.62, -0.72)],
    &[v2(0.07, -0.15), v2(0.26, -0.15), v2(0.32, -0.09), v2(0.58, -0.09)],
    &[v2(0.07, -0.06), v2(0.16, -0.06), v2(0.26, 0.04), v2(0.26, 0.16)],
    &[v2(-0.02, 0.42), v2(-0.02, 0.28), v2(0.14, 0.12), v2(0.30, 0.12)],
    &[v2(0.14, 0.42), v2(0.14, 0.36), v2(0.22, 0.28), v2(0.40, 0.28)],
    &[v2(-0.10, -0.60), v2(0.10, -0.60), v2(0.22, -0.72), v2(0.22, -0.76)],
    &[v2(-0.66, 0.78), v2(-0.50, 0.62), v2(0.34, 0.62), v2(0.46, 0.74), v2(0.60, 0.74)],
];

const VIAS: &[V2] = &[
    v2(-0.62, 0.02),
    v2(0.26, 0.16),
    v2(0.58, -0.09),
    v2(-0.10, -0.60),
    v2(-0.66, 0.78),
    v2(0.60, 0.74),
    v2(0.02, 0.54),
    v2(0.40, 0.28),
];

/// Two pins and a body.
#[derive(Clone, Copy)]
struct Part {
    centre: V2,
    /// Direction from pin to pin.
    axis: V2,
    /// Half length with the pins, half width.
    half: V2,
    body: Colour,
    height: f32,
    /// Printed on it.
    value: &'static str,
}

const RESISTOR: Part = Part {
    centre: v2(0.0, 0.0),
    axis: v2(0.0, 1.0),
    half: v2(0.085, 0.043),
    body: [0.055, 0.055, 0.06],
    height: 0.035,
    value: "",
};
const CAPACITOR: Part = Part { body: [0.50, 0.37, 0.23], height: 0.055, ..RESISTOR };

fn parts() -> Vec<Part> {
    let along_bottom = [RESISTOR, CAPACITOR, RESISTOR, RESISTOR, CAPACITOR, RESISTOR];
    let mut parts: Vec<Part> = along_bottom
        .into_iter()
        .enumerate()
        .map(|(i, part)| Part { centre: v2(-0.66 + 0.16 * i as f32, 0.50), ..part })
        .collect();
    let lying = v2(1.0, 0.0);
    parts.push(Part { centre: v2(-0.38, -0.72), axis: lying, half: v2(0.11, 0.060), ..CAPACITOR });
    parts.push(Part { centre: v2(-0.10, -0.72), axis: lying, ..RESISTOR });
    // The crystal: a long can of bright metal.
    parts.push(Part {
        centre: v2(0.52, 0.20),
        axis: lying,
        half: v2(0.20, 0.085),
        body: [0.60, 0.61, 0.62],
        height: 0.075,
        value: "8M0",
    });
    parts
}

pub(super) fn paint(surface: &mut Surface, rng: &mut ChaCha8Rng, mut flaw: Option<Flaw>) {
    let (table, fibre) = (rng.next_u32(), rng.next_u32());
    let mut parts = parts();
    for part in &mut parts {
        // Placed by machine: within a pixel.
        let mut vary = |spread: f32| rng.random_range(-spread..=spread);
        part.centre = part.centre + v2(vary(0.005), vary(0.005));
        part.axis = part.axis.rotated(vary(0.025));
    }
    let solder = rng.next_u32();

    surface.paint_table(|p, cell| {
        let grey = 0.50 + 0.02 * noise(p.x * 55.0, p.y * 55.0, table) + 0.015 * noise(p.x * 3.0, p.y * 3.0, table ^ 1);
        cell.cover(1.0, [grey * 0.97, grey, grey * 1.02], 0.02);
    });
    bare_board(surface, fibre);
    copper(surface);
    parts.iter().for_each(|part| pads(surface, part));
    if let Some(flaw) = flaw.as_mut() {
        mar_bare(surface, flaw);
    }
    let lost = flaw.as_mut().and_then(|flaw| misplace(&mut parts, flaw));
    parts.iter().enumerate().filter(|(i, _)| Some(*i) != lost).for_each(|(_, part)| mount(surface, part, solder));
    chip(surface, solder);
    socket(surface);
    electrolytic(surface);
    print(surface, flaw.as_mut());
    if let Some(flaw) = flaw.as_mut() {
        mar_assembled(surface, flaw);
    }
}

/// Moves the part that a flaw concerns; says which one is to be left out.
fn misplace(parts: &mut [Part], flaw: &mut Flaw) -> Option<usize> {
    let chosen = flaw.one_of(parts.len());
    match flaw.kind {
        // The stronger, the larger what is missing: the last part is the largest.
        DefectKind::Missing => {
            let large = flaw.scaled(0.0, 0.7);
            Some(if flaw.chance(large) { parts.len() - 1 } else { chosen % 6 })
        }
        DefectKind::Deformation => {
            let part = &mut parts[chosen];
            let turn = flaw.sign() * flaw.scaled(0.16, 0.75);
            part.axis = part.axis.rotated(turn);
            part.centre = part.centre + flaw.direction() * flaw.scaled(0.012, 0.05);
            None
        }
        _ => None,
    }
}

fn bare_board(surface: &mut Surface, seed: u32) {
    let from_hole = |p: V2| v2(p.x.abs() - HOLE_AT, p.y.abs() - HOLE_AT).length();
    let outline = |p: V2| rectangle(p, BOARD, 0.05).max(0.055 - from_hole(p));
    surface.paint_shape((v2(0.0, 0.0), v2(1.4, 1.4)), outline, |p, _, amount, cell| {
        // The glass cloth shows through a little.
        let cloth = 0.010 * (noise(p.x * 48.0, p.y * 6.0, seed) + noise(p.x * 6.0, p.y * 48.0, seed ^ 9));
        let ring = 1.0 - smoothstep(0.085, 0.090, from_hole(p));
        let colour = MASK.map(|c| c * (1.0 + 3.0 * cloth + 0.05 * noise(p.x * 2.0, p.y * 2.0, seed ^ 4)));
        cell.cover(amount, colour, 0.10);
        cell.cover(amount * ring, GOLD, 0.25);
        cell.height = amount * 0.05;
    });
}

/// Lines under the solder mask, and holes through it.
fn copper(surface: &mut Surface) {
    let pixel = surface.pixel();
    for trace in TRACES {
        for ends in trace.windows(2) {
            let (a, b) = (ends[0], ends[1]);
            let reach = v2((b.x - a.x).abs() / 2.0 + 0.03, (b.y - a.y).abs() / 2.0 + 0.03);
            let outline = |p: V2| segment(p, a, b).0 - 0.014;
            surface.paint_shape(((a + b) * 0.5, reach), outline, |_, _, amount, cell| {
                cell.cover(amount, COPPER_BELOW, 0.12);
                cell.height = cell.height.max(0.05 + 0.006 * amount);
            });
        }
    }
    for &via in VIAS {
        surface.paint(via, 0.05, |p, cell| {
            let r = (p - via).length();
            cell.cover(coverage(r - 0.032, pixel), GOLD, 0.25);
            cell.cover(coverage(r - 0.014, pixel), [0.03, 0.03, 0.03], 0.0);
        });
    }
}

/// Two tinned lands.
fn pads(surface: &mut Surface, part: &Part) {
    for side in [-1.0, 1.0] {
        let centre = part.centre + part.axis * (side * part.half.x * 0.85);
        let half = v2(part.half.x * 0.36, part.half.y * 1.12);
        let outline = |p: V2| rectangle((p - centre).along(part.axis), half, 0.012);
        surface.paint_shape((centre, v2(half.length(), half.length())), outline, |_, distance, amount, cell| {
            cell.cover(amount, SILVER, 0.25);
            cell.height += 0.010 * amount * smoothstep(0.0, 0.02, -distance);
        });
    }
}

/// A part with its metal ends and the solder at them.
fn mount(surface: &mut Surface, part: &Part, seed: u32) {
    let pixel = surface.pixel();
    let ends = part.half.x * 0.70;
    let own = |p: V2| (p - part.centre).along(part.axis);
    let around = (part.centre, v2(part.half.length(), part.half.length()));
    let outline = |p: V2| rectangle(own(p), part.half, 0.014);
    surface.paint_shape(around, outline, |p, distance, amount, cell| {
        let end = coverage(ends - own(p).x.abs(), pixel);
        let grain = 1.0 + 0.05 * noise(p.x * 80.0, p.y * 80.0, seed);
        let colour = [0, 1, 2].map(|k| mix(part.body[k] * grain, SILVER[k], end));
        cell.cover(amount, colour, mix(0.08, 0.35, end));
        let top = 0.05 + part.height * smoothstep(0.0, 0.022, -distance) - 0.012 * end;
        cell.height = mix(cell.height, top, amount);
    });
    if !part.value.is_empty() {
        let how = Lettering { centre: part.centre, height: 0.07, stroke: 0.013, axis: part.axis, bent: false };
        text::write(surface, part.value, &how, |amount, cell| cell.shade(1.0 - 0.65 * amount));
    }
}

/// The chip: black, with six legs on each of two sides.
fn chip(surface: &mut Surface, seed: u32) {
    const CENTRE: V2 = v2(-0.20, -0.24);
    const HALF: V2 = v2(0.20, 0.30);
    const LEGS: i32 = 6;
    let pixel = surface.pixel();
    for side in [-1.0, 1.0] {
        for leg in 0..LEGS {
            let centre = CENTRE + v2(side * (HALF.x + 0.040), (leg as f32 - (LEGS - 1) as f32 / 2.0) * 0.09);
            surface.paint(centre, 0.09, |p, cell| {
                let q = p - centre;
                let pad = coverage(rectangle(q - v2(side * 0.012, 0.0), v2(0.055, 0.029), 0.01), pixel);
                cell.cover(pad, SILVER.map(|c| c * 0.86), 0.15);
                let distance = rectangle(q, v2(0.045, 0.018), 0.006);
                let amount = coverage(distance, pixel);
                cell.cover(amount, SILVER, 0.35);
                let drop = smoothstep(-0.02, 0.03, q.x * side);
                cell.height = cell.height.max(0.05 + amount * (0.035 - 0.025 * drop));
            });
        }
    }
    let outline = |p: V2| rectangle(p - CENTRE, HALF, 0.012);
    surface.paint_shape((CENTRE, HALF + v2(0.01, 0.01)), outline, |p, distance, amount, cell| {
        let grain = 0.085 + 0.010 * noise(p.x * 100.0, p.y * 100.0, seed ^ 2);
        cell.cover(amount, [grain, grain, grain * 1.05], 0.06);
        let notch = 1.0 - smoothstep(0.020, 0.030, (p - CENTRE - v2(-HALF.x + 0.06, -HALF.y + 0.06)).length());
        let top = 0.05 + 0.085 * smoothstep(0.0, 0.03, -distance) - 0.012 * notch;
        cell.height = mix(cell.height, top, amount);
    });
    for (line, y) in [("D1AD", -0.06), ("E4-16", 0.07)] {
        let how =
            Lettering { centre: CENTRE + v2(0.0, y), height: 0.075, stroke: 0.013, axis: v2(1.0, 0.0), bent: false };
        text::write(surface, line, &how, |amount, cell| cell.cover(amount * 0.8, [0.50, 0.50, 0.50], 0.0));
    }
}

/// A row of gold pins in a black socket along the upper edge.
fn socket(surface: &mut Surface) {
    const CENTRE: V2 = v2(0.42, -0.76);
    let half = v2(0.30, 0.075);
    let pixel = surface.pixel();
    let outline = |p: V2| rectangle(p - CENTRE, half, 0.01);
    surface.paint_shape((CENTRE, half + v2(0.01, 0.01)), outline, |_, distance, amount, cell| {
        cell.cover(amount, [0.07, 0.07, 0.075], 0.12);
        cell.height = mix(cell.height, 0.05 + 0.08 * smoothstep(0.0, 0.02, -distance), amount);
    });
    for pin in 0..4 {
        let centre = CENTRE + v2((pin as f32 - 1.5) * 0.14, 0.0);
        surface.paint(centre, 0.06, |p, cell| {
            let well = coverage(rectangle(p - centre, v2(0.043, 0.043), 0.006), pixel);
            cell.cover(well, [0.03, 0.03, 0.03], 0.0);
            let distance = rectangle(p - centre, v2(0.026, 0.026), 0.006);
            let amount = coverage(distance, pixel);
            cell.cover(amount, GOLD, 0.30);
            cell.height += 0.03 * amount * smoothstep(0.0, 0.02, -distance);
        });
    }
}

/// The round can with its dark half.
fn electrolytic(surface: &mut Surface) {
    const CENTRE: V2 = v2(0.66, 0.53);
    const RADIUS: f32 = 0.15;
    let pixel = surface.pixel();
    surface.paint(CENTRE, RADIUS + 0.05, |p, cell| {
        let q = p - CENTRE;
        let base = rectangle(q, v2(RADIUS + 0.012, RADIUS + 0.012), 0.05);
        let amount = coverage(base, pixel);
        cell.cover(amount, [0.06, 0.06, 0.065], 0.10);
        cell.height = mix(cell.height, 0.075, amount);
        let distance = q.length() - RADIUS;
        let amount = coverage(distance, pixel);
        let polarity = coverage(q.x + 0.070, pixel);
        let metal = [0.66, 0.67, 0.69].map(|c| mix(c, 0.10, polarity));
        cell.cover(amount, metal, 0.30 * (1.0 - polarity));
        let rim = smoothstep(0.0, 0.028, -distance);
        cell.height = mix(cell.height, 0.11 + 0.05 * rim, amount);
    });
    let how =
        Lettering { centre: CENTRE + v2(0.030, 0.0), height: 0.085, stroke: 0.014, axis: v2(1.0, 0.0), bent: false };
    text::write(surface, "10", &how, |amount, cell| cell.shade(1.0 - 0.8 * amount));
}

/// White print. A flaw shifts it, leaves some out or prints other text.
fn print(surface: &mut Surface, flaw: Option<&mut Flaw>) {
    let mut labels = [
        ("DIAD R2", v2(-0.28, 0.745), 0.095),
        ("C7", v2(-0.61, -0.64), 0.075),
        ("X1", v2(0.52, 0.045), 0.075),
        ("C9", v2(0.40, 0.50), 0.075),
    ];
    let mut ink = 0.88;
    let mut aside = v2(0.0, 0.0);
    if let Some(flaw) = flaw.filter(|f| f.kind == DefectKind::Misprint) {
        match flaw.one_of(3) {
            0 => aside = v2(flaw.sign(), flaw.sign()) * flaw.scaled(0.014, 0.05),
            1 => ink = flaw.scaled(0.55, 0.12),
            _ => labels[0].0 = ["DIAD R1", "DIAD", "D1 D R2", ""][flaw.scaled(0.0, 3.0).round() as usize],
        }
    }
    for (text, centre, height) in labels {
        let how = Lettering { centre: centre + aside, height, stroke: height * 0.17, axis: v2(1.0, 0.0), bent: false };
        text::write(surface, text, &how, |amount, cell| cell.cover(amount * ink, [0.86, 0.87, 0.85], 0.02));
    }
}

/// A place with nothing mounted on it.
fn free_place(flaw: &mut Flaw) -> V2 {
    const PLACES: [V2; 8] = [
        v2(-0.50, 0.16),
        v2(0.32, 0.36),
        v2(0.02, 0.20),
        v2(-0.62, -0.52),
        v2(0.24, -0.32),
        v2(0.66, -0.32),
        v2(0.12, 0.66),
        v2(-0.70, -0.10),
    ];
    PLACES[flaw.one_of(PLACES.len())] + flaw.direction() * flaw.pick(0.0, 0.07)
}

fn on_board(pixel: f32) -> impl Fn(V2) -> f32 {
    move |p| coverage(rectangle(p, BOARD, 0.05) + 0.01, pixel)
}

/// Flaws that happened before the parts were mounted.
fn mar_bare(surface: &mut Surface, flaw: &mut Flaw) {
    let on = on_board(surface.pixel());
    match flaw.kind {
        DefectKind::Scratch => {
            // Through the mask down to the copper.
            let place = free_place(flaw);
            let mark = Mark { colour: COPPER, gloss: 0.3, height: -0.008 };
            let (length, width) = (flaw.scaled(0.22, 0.65), flaw.scaled(0.006, 0.012));
            flaw::scratch(surface, flaw, (place, length, width), mark, on);
        }
        DefectKind::Discolouration => {
            // Scorched.
            let place = free_place(flaw);
            let heat = flaw.scaled(0.55, 1.0);
            let radius = flaw.scaled(0.12, 0.32);
            let tint = move |depth: f32| [1.25, 0.55, 0.45].map(|t| mix(1.0, mix(t, 0.30 * t, depth), depth * heat));
            flaw::stain(surface, flaw, (place, radius, 0.8), tint, on);
        }
        _ => {}
    }
}

/// Flaws that came afterwards.
fn mar_assembled(surface: &mut Surface, flaw: &mut Flaw) {
    let on = on_board(surface.pixel());
    match flaw.kind {
        DefectKind::Dent => {
            // A ball of solder where none belongs.
            let place = free_place(flaw);
            let (radius, height) = (flaw.scaled(0.030, 0.085), flaw.scaled(0.03, 0.07));
            let mark = Mark { colour: SILVER, gloss: 0.5, height: 0.0 };
            flaw::spot(surface, flaw, (place, radius, 0.1), (mark, 0.95), &on);
            flaw::dent(surface, flaw, place, radius * 1.3, -height, on);
        }
        DefectKind::Contamination => {
            if flaw.chance(0.5) {
                let place = v2(flaw.pick(-0.6, 0.6), flaw.pick(-0.6, 0.6));
                let mark = Mark { colour: [0.85, 0.83, 0.78], gloss: 0.05, height: 0.015 };
                let (length, width) = (flaw.scaled(0.25, 0.75), flaw.scaled(0.006, 0.011));
                return flaw::fibre(surface, flaw, (place, length, width), mark);
            }
            // Dried flux.
            let place = free_place(flaw);
            let mark = Mark { colour: [0.62, 0.56, 0.40], gloss: 0.15, height: 0.004 };
            let (radius, opacity) = (flaw.scaled(0.06, 0.18), flaw.scaled(0.25, 0.70));
            flaw::spot(surface, flaw, (place, radius, 0.45), (mark, opacity), on);
        }
        _ => {}
    }
}
