//! Parts drawn by the project itself, with and without defects: for the demo and for tests, which need images that
//! anybody may have. Made to look like inspection photographs: one lamp, soft shadows, a lens, a noisy sensor, parts
//! that never lie twice the same.

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::frame::Frame;
use crate::named::named;

mod blister;
mod board;
mod canvas;
mod dataset;
mod flaw;
mod light;
mod text;
mod washer;

use canvas::{Colour, Pose, Surface, v2};
use flaw::Flaw;
use light::Light;

pub use dataset::{DatasetSpec, write_dataset};

/// Smallest and largest side of a drawing, in pixels.
const SIZES: std::ops::RangeInclusive<usize> = 16..=4096;

named! {
    /// A product. Its name is the class name.
    #[derive(Hash)]
    pub enum Kind: "product" {
        /// A turned steel washer with a stamped mark.
        Washer = "washer",
        /// A blister pack with nine tablets.
        Blister = "blister",
        /// An assembled circuit board.
        Board = "board",
    }
}

named! {
    /// What can be wrong with a part. Every product can have each. Its name is the folder name.
    #[derive(Hash)]
    pub enum DefectKind: "defect" {
        /// A thin line across the surface.
        Scratch = "scratch",
        /// A dent, a bump or a lump.
        Dent = "dent",
        /// A piece broken off or left out.
        Missing = "missing",
        /// Dirt: spots or a fibre.
        Contamination = "contamination",
        /// The right shape in the wrong colour.
        Discolouration = "discolouration",
        /// Text or pattern wrong, double or incomplete.
        Misprint = "misprint",
        /// Bent, squeezed or out of place.
        Deformation = "deformation",
    }
}

/// One defect.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Defect {
    /// What is wrong.
    pub kind: DefectKind,
    /// From 0, so subtle that one has to look twice, to 1, obvious: size and contrast. Values outside are clamped.
    pub strength: f32,
}

/// A drawn part and what is wrong with it.
#[derive(Clone, Debug, PartialEq)]
pub struct Drawing {
    /// The photograph.
    pub frame: Frame,
    /// `[size * size]`, row by row: the pixels that differ visibly from the same part without the defect.
    pub mask: Vec<bool>,
}

/// Streams of random numbers that must not disturb each other: a defect leaves pose, light, texture and noise alone.
#[derive(Clone, Copy)]
enum Stream {
    Pose,
    Light,
    Texture,
    Defect,
    Noise,
}

fn random(seed: u64, stream: Stream) -> ChaCha8Rng {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    rng.set_stream(stream as u64);
    rng
}

impl Kind {
    fn pose(self, rng: &mut ChaCha8Rng) -> Pose {
        let mut vary = |spread: f32| rng.random_range(-spread..=spread);
        let shift = 3.0 / 128.0; // 3 pixels of 256
        Pose { shift: v2(vary(shift), vary(shift)), angle: vary(0.05), scale: 1.0 + vary(0.006) }
    }

    fn paint(self, surface: &mut Surface, rng: &mut ChaCha8Rng, flaw: Option<Flaw>) {
        match self {
            Self::Washer => washer::paint(surface, rng, flaw),
            Self::Blister => blister::paint(surface, rng, flaw),
            Self::Board => board::paint(surface, rng, flaw),
        }
    }
}

/// Draws a part, `size` x `size` pixels (16..=4096, clamped). The same arguments give the same pixels; another seed
/// gives another part of the same product: its pose (up to 3 pixels of 256 and a few degrees), light, texture and
/// noise. With a defect everything but the defect stays as it is without.
pub fn draw_part(kind: Kind, seed: u64, size: usize, defect: Option<Defect>) -> Drawing {
    let size = size.clamp(*SIZES.start(), *SIZES.end());
    let good = exposed(kind, seed, size, None);
    let (image, mask) = match defect {
        None => {
            let mask = vec![false; good.len()];
            (good, mask)
        }
        Some(defect) => {
            let bad = exposed(kind, seed, size, Some(defect));
            let mask = changed(&good, &bad, size);
            (bad, mask)
        }
    };
    let rgb = light::sensor(&image, &mut random(seed, Stream::Noise));
    let Ok(frame) = Frame::new(size, size, rgb) else { unreachable!("the sensor has three bytes for every pixel") };
    Drawing { frame, mask }
}

/// What falls on the sensor, `[size, size]`.
fn exposed(kind: Kind, seed: u64, size: usize, defect: Option<Defect>) -> Vec<Colour> {
    let mut surface = Surface::new(size, kind.pose(&mut random(seed, Stream::Pose)));
    let flaw = defect.map(|d| Flaw::new(d.kind, d.strength, random(seed, Stream::Defect)));
    kind.paint(&mut surface, &mut random(seed, Stream::Texture), flaw);
    light::photograph(&surface, &Light::new(&mut random(seed, Stream::Light)))
}

/// The area that a defect changes by a visible amount: at least `LEAST`, and enough of the most that any pixel
/// changes to leave out the faint rim that blur and shadow put around it. Gaps of up to `GAP` sides are closed, as a
/// person would who outlines it: pixels amid changed ones may happen to look the same.
fn changed(good: &[Colour], bad: &[Colour], size: usize) -> Vec<bool> {
    const LEAST: f32 = 4.0 / 255.0;
    const OF_MOST: f32 = 0.15;
    const GAP: f32 = 10.0 / 256.0;
    let difference: Vec<f32> =
        good.iter().zip(bad).map(|(a, b)| a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)).collect();
    let most = difference.iter().copied().fold(0.0, f32::max);
    let threshold = (OF_MOST * most).max(LEAST);
    let mask: Vec<bool> = difference.iter().map(|&d| d > threshold).collect();
    let radius = (GAP * size as f32 / 2.0).round() as usize;
    let grown = spread(&mask, size, radius, true);
    let closed = spread(&grown, size, radius, false);
    // At the border of the image nothing is beyond to shrink from; nothing that changed may be lost.
    mask.iter().zip(closed).map(|(&was, now)| was || now).collect()
}

/// Every pixel takes `value` when any within `radius` rows and columns has it.
fn spread(mask: &[bool], size: usize, radius: usize, value: bool) -> Vec<bool> {
    let pass = |mask: &[bool], index: &dyn Fn(usize, usize) -> usize| {
        let mut out = mask.to_vec();
        for line in 0..size {
            for i in (0..size).filter(|&i| mask[index(line, i)] == value) {
                (i.saturating_sub(radius)..=(i + radius).min(size - 1)).for_each(|j| out[index(line, j)] = value);
            }
        }
        out
    };
    let rows = pass(mask, &|line, i| line * size + i);
    pass(&rows, &|line, i| i * size + line)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SIZE: usize = 128;

    /// Largest change of a channel at each pixel.
    fn difference(a: &Drawing, b: &Drawing) -> Vec<u8> {
        let pairs = a.frame.rgb().chunks_exact(3).zip(b.frame.rgb().chunks_exact(3));
        pairs.map(|(a, b)| (0..3).map(|k| a[k].abs_diff(b[k])).max().unwrap()).collect()
    }

    #[test]
    fn the_same_seed_draws_the_same_part_and_another_seed_another() {
        for kind in Kind::ALL {
            let part = draw_part(kind, 3, SIZE, None);
            assert_eq!(part, draw_part(kind, 3, SIZE, None));
            assert!(!part.mask.contains(&true));
            let other = difference(&part, &draw_part(kind, 4, SIZE, None));
            let changed = other.iter().filter(|&&d| d > 3).count();
            assert!(changed > SIZE * SIZE / 10, "{kind:?}: {changed} pixels differ");
        }
    }

    #[test]
    fn a_defect_changes_the_masked_pixels_and_no_others() {
        for kind in Kind::ALL {
            for seed in 0..2 {
                let good = draw_part(kind, seed, SIZE, None);
                for (defect, strength) in DefectKind::ALL.into_iter().flat_map(|d| [0.0, 0.6, 1.0].map(|s| (d, s))) {
                    let bad = draw_part(kind, seed, SIZE, Some(Defect { kind: defect, strength }));
                    let context = format!("{kind:?} {defect:?} {strength} seed {seed}");
                    let difference = difference(&good, &bad);
                    let most = *difference.iter().max().unwrap();
                    let area = bad.mask.iter().filter(|&&m| m).count();
                    assert!((4..SIZE * SIZE / 3).contains(&area), "{context}: {area} pixels");
                    assert!(most >= 8, "{context}: hardly to be seen ({most})");
                    // 15 % of the largest change and the quantisation of both pictures.
                    let allowed = (0.15 * f32::from(most)).max(4.0) + 3.0;
                    for (i, (&d, &masked)) in difference.iter().zip(&bad.mask).enumerate() {
                        assert!(masked || f32::from(d) <= allowed, "{context}: pixel {i} changes by {d}");
                    }
                    let changed = |masked| -> u64 {
                        let pixels = difference.iter().zip(&bad.mask).filter(|&(_, &m)| m == masked);
                        pixels.map(|(&d, _)| u64::from(d)).sum()
                    };
                    assert!(changed(true) > changed(false), "{context}: most of the change is outside of the mask");
                }
            }
        }
    }

    #[test]
    fn strength_makes_a_defect_more_visible() {
        for kind in Kind::ALL {
            let good: Vec<Drawing> = (0..4).map(|seed| draw_part(kind, seed, SIZE, None)).collect();
            for defect in DefectKind::ALL {
                let total = |strength| -> u64 {
                    let bad = |seed| draw_part(kind, seed as u64, SIZE, Some(Defect { kind: defect, strength }));
                    let changes = good.iter().enumerate().flat_map(|(seed, good)| difference(good, &bad(seed)));
                    changes.map(u64::from).sum()
                };
                let (subtle, obvious) = (total(0.0), total(1.0));
                assert!(obvious > subtle, "{kind:?} {defect:?}: {subtle} at 0, {obvious} at 1");
            }
        }
    }

    #[test]
    fn a_drawing_is_the_same_at_every_size() {
        for (kind, defect) in Kind::ALL.into_iter().flat_map(|k| DefectKind::ALL.map(|d| (k, d))) {
            let area = |size: usize| {
                let mask = draw_part(kind, 11, size, Some(Defect { kind: defect, strength: 0.8 })).mask;
                mask.iter().filter(|&&m| m).count() as f64 / (size * size) as f64
            };
            let (small, large) = (area(128), area(256));
            assert!(small < 2.0 * large && large < 2.0 * small, "{kind:?} {defect:?}: {small} and {large}");
        }
    }

    #[test]
    fn names_are_folder_names_and_differ() {
        let names: Vec<&str> =
            Kind::ALL.map(Kind::name).into_iter().chain(DefectKind::ALL.map(DefectKind::name)).collect();
        assert!(names.iter().all(|n| n.bytes().all(|b| b.is_ascii_lowercase())));
        assert_eq!(names.iter().collect::<std::collections::HashSet<_>>().len(), names.len());
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]

        #[test]
        fn anything_can_be_drawn(
            kind in prop::sample::select(Kind::ALL.to_vec()),
            defect in prop::option::of((prop::sample::select(DefectKind::ALL.to_vec()), any::<f32>())),
            size in 0usize..70,
            seed: u64,
        ) {
            let drawing = draw_part(kind, seed, size, defect.map(|(kind, strength)| Defect { kind, strength }));
            let side = size.max(16);
            prop_assert_eq!((drawing.frame.width(), drawing.frame.height()), (side, side));
            prop_assert_eq!(drawing.mask.len(), side * side);
        }
    }
}
