//! From a surface to a photograph: a lamp to one side with soft shadows, a lens with vignetting and blur, a sensor
//! with noise.

use rand::{Rng, RngExt};
use rand_chacha::ChaCha8Rng;

use super::canvas::{Colour, Surface, V2, ease, v2};

/// The lamp and the lens of one photograph.
#[derive(Clone, Copy, Debug)]
pub(super) struct Light {
    /// Towards the lamp; x right, y down, z to the camera. Length 1.
    direction: [f32; 3],
    /// Brightness of each channel: exposure and white balance.
    exposure: Colour,
    /// Brightness added per unit to the right and down: the lamp is not even.
    gradient: V2,
    /// Brightness lost at distance 1 from the centre.
    vignette: f32,
}

impl Light {
    /// The lamp stands up left; every photograph differs a little.
    pub(super) fn new(rng: &mut ChaCha8Rng) -> Self {
        let mut vary = |spread: f32| rng.random_range(-spread..=spread);
        let (x, y, z) = (-0.42 + vary(0.04), -0.50 + vary(0.04), 0.76f32);
        let length = (x * x + y * y + z * z).sqrt();
        let exposure = 1.0 + vary(0.03);
        Self {
            direction: [x / length, y / length, z / length],
            exposure: [exposure * (1.0 + vary(0.008)), exposure, exposure * (1.0 + vary(0.008))],
            gradient: v2(-0.05 + vary(0.02), -0.04 + vary(0.02)),
            vignette: 0.11 + vary(0.03),
        }
    }
}

/// What falls on the sensor, `[size, size]`, 0..=1 before noise.
pub(super) fn photograph(surface: &Surface, light: &Light) -> Vec<Colour> {
    let mut image = shaded(surface, light);
    blur(&mut image, surface.size);
    image
}

/// The sensor: shot noise that grows with the light, read noise, 8 bits. `[size, size, 3]`
pub(super) fn sensor(image: &[Colour], rng: &mut ChaCha8Rng) -> Vec<u8> {
    const READ: f32 = 0.0035; // standard deviation in the dark
    const SHOT: f32 = 0.0085; // added at full brightness
    let mut bytes = Vec::with_capacity(image.len() * 3);
    for pixel in image {
        for &value in pixel {
            let sigma = READ + SHOT * value.max(0.0).sqrt();
            bytes.push(((value + sigma * normal(rng)) * 255.0 + 0.5) as u8); // saturates
        }
    }
    bytes
}

/// Nearly normal, mean 0, variance 1: the sum of four evenly distributed bytes.
fn normal(rng: &mut ChaCha8Rng) -> f32 {
    let sum: u32 = rng.next_u32().to_le_bytes().iter().map(|&b| u32::from(b)).sum();
    (sum as f32 - 510.0) * (1.0 / 147.8) // 4 * (256^2 - 1) / 12 is the variance
}

/// Colour, slope, shadow and reflection at every pixel.
fn shaded(surface: &Surface, light: &Light) -> Vec<Colour> {
    const AMBIENT: f32 = 0.45;
    let (size, pixel) = (surface.size, surface.pixel());
    let [lx, ly, lz] = light.direction;
    // Half way between the lamp and the camera, which looks straight down.
    let half_length = (lx * lx + ly * ly + (lz + 1.0) * (lz + 1.0)).sqrt();
    let half = [lx / half_length, ly / half_length, (lz + 1.0) / half_length];
    let soft = Softened::new(surface, light);

    let row = |y: usize| &surface.cells[y * size..][..size];
    let per_pixel = 0.5 / pixel;
    let mut image = Vec::with_capacity(size * size);
    for y in 0..size {
        let (above, here, below) = (row(y.saturating_sub(1)), row(y), row((y + 1).min(size - 1)));
        for x in 0..size {
            let cell = &here[x];
            let gx = (here[(x + 1).min(size - 1)].height - here[x.saturating_sub(1)].height) * per_pixel;
            let gy = (below[x].height - above[x].height) * per_pixel;
            // A wall is as steep as the pixels are small: keep its slope finite.
            let flatten = 1.0 / (1.0 + 0.35 * (gx * gx + gy * gy).sqrt());
            let (gx, gy) = (gx * flatten, gy * flatten);
            let length = 1.0 / (1.0 + gx * gx + gy * gy).sqrt();

            let lit = ((lz - gx * lx - gy * ly) * length).max(0.0) / lz;
            let mirror = ((half[2] - gx * half[0] - gy * half[1]) * length).max(0.0);
            let reflection = cell.gloss * mirror.powi(24);
            let open = 1.0 - soft.shadow(x, y, cell.height);

            let at = v2((x as f32 + 0.5) * pixel - 1.0, (y as f32 + 0.5) * pixel - 1.0);
            let lamp = (1.0 + light.gradient.dot(at)) * (1.0 - light.vignette * at.dot(at));
            let diffuse = AMBIENT * (0.5 + 0.5 * open) + (1.0 - AMBIENT) * lit * open;
            let shine = reflection * open;
            let mut pixel = [0.0; 3];
            for (out, (colour, exposure)) in pixel.iter_mut().zip(cell.colour.iter().zip(light.exposure)) {
                *out = ((colour * diffuse + shine) * lamp * exposure).min(1.0);
            }
            image.push(pixel);
        }
    }
    image
}

/// The height map seen from far: what stands higher than a point on its lamp side takes light from it.
struct Softened {
    size: usize,
    near: Vec<f32>,
    wide: Vec<f32>,
    /// Pixels towards the lamp at which each map is looked up, x and y.
    near_step: [isize; 2],
    wide_step: [isize; 2],
}

impl Softened {
    fn new(surface: &Surface, light: &Light) -> Self {
        let size = surface.size;
        let mut near: Vec<f32> = surface.cells.iter().map(|c| c.height).collect();
        box_blur(&mut near, size, size / 100 + 1);
        let mut wide = near.clone();
        box_blur(&mut wide, size, size / 28 + 1);
        let [x, y, _] = light.direction;
        let step = |reach: f32| [x, y].map(|d| (d * reach * size as f32).round() as isize);
        Self { size, near, wide, near_step: step(0.030), wide_step: step(0.075) }
    }

    /// 0 (open) to below 1.
    fn shadow(&self, x: usize, y: usize, height: f32) -> f32 {
        let sample = |map: &[f32], [dx, dy]: [isize; 2]| {
            let shifted = |v: usize, d: isize| v.saturating_add_signed(d).min(self.size - 1);
            map[shifted(y, dy) * self.size + shifted(x, dx)]
        };
        let near = ease((sample(&self.near, self.near_step) - height) * 11.0);
        let wide = ease((sample(&self.wide, self.wide_step) - height) * 8.5);
        0.40 * near + 0.30 * wide
    }
}

/// Mean over a square of `2 * radius + 1` pixels, edges repeated.
fn box_blur(map: &mut [f32], size: usize, radius: usize) {
    let weight = 1.0 / (2 * radius + 1) as f32;
    let near = |i: usize, offset: isize| i.saturating_add_signed(offset).min(size - 1);
    let r = radius as isize;
    let mut line = vec![0.0; size];
    for row in map.chunks_exact_mut(size) {
        line.copy_from_slice(row);
        let mut sum: f32 = (-r..=r).map(|k| line[near(0, k)]).sum();
        for (i, out) in row.iter_mut().enumerate() {
            *out = sum * weight;
            sum += line[near(i, r + 1)] - line[near(i, -r)];
        }
    }
    // Down the columns, all of them at once.
    let rows = map.to_vec();
    let row = |y: usize| &rows[y * size..][..size];
    let mut sums = vec![0.0; size];
    for k in -r..=r {
        sums.iter_mut().zip(row(near(0, k))).for_each(|(sum, v)| *sum += v);
    }
    for (y, out) in map.chunks_exact_mut(size).enumerate() {
        let (enters, leaves) = (row(near(y, r + 1)), row(near(y, -r)));
        for (((out, sum), enters), leaves) in out.iter_mut().zip(&mut sums).zip(enters).zip(leaves) {
            *out = *sum * weight;
            *sum += enters - leaves;
        }
    }
}

/// The lens: a narrow bell (1 6 1)/8 in both directions.
fn blur(image: &mut [Colour], size: usize) {
    let bell = |a: &Colour, b: &Colour, c: &Colour| [0, 1, 2].map(|k| 0.125 * (a[k] + c[k]) + 0.75 * b[k]);
    let mut line = vec![[0.0; 3]; size];
    for row in image.chunks_exact_mut(size) {
        line.copy_from_slice(row);
        for (i, out) in row.iter_mut().enumerate() {
            *out = bell(&line[i.saturating_sub(1)], &line[i], &line[(i + 1).min(size - 1)]);
        }
    }
    let rows = image.to_vec();
    let row = |y: usize| &rows[y * size..][..size];
    for (y, out) in image.chunks_exact_mut(size).enumerate() {
        let (above, here, below) = (row(y.saturating_sub(1)), row(y), row((y + 1).min(size - 1)));
        for (((out, a), b), c) in out.iter_mut().zip(above).zip(here).zip(below) {
            *out = bell(a, b, c);
        }
    }
}
