//! Training batches: features of images with noise added, some cells masked and some taken from another image. All random
//! numbers of a step come from the seed and the number of the step, so that a resumed run sees the same batches as one that
//! was not interrupted.

use candle_core::{Device, Tensor};
use rand::{Rng, RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;

use super::cache::FeatureCache;
use crate::config::{ClassStrategy, Config, DiffusionConfig, Shapes, Size, Weighting};
use crate::diffusion::{NoiseLevel, Prediction, Process, min_snr_weight};
use crate::error::Result;
use crate::model::denoiser::{normal, pooled};

/// One training batch, or those of its samples that are looked at in one shape.
pub(super) struct Batch {
    /// Number of the shape.
    pub(super) shape: usize,
    /// The noisy features and, as the last value of each cell, whether it is masked (1) or not (0), `[B, T, D + 1]`.
    pub(super) input: Tensor,
    /// The output that the network is to learn, `[B, T, D]`.
    pub(super) target: Tensor,
    /// For a network with semantic guidance: the input without noise and mask, averaged to G cells, `[B, G, D]`.
    pub(super) guide: Option<Tensor>,
    /// The cells of the grid that all of this shows, `[T]`, where it is a window; the T above are these then.
    pub(super) cells: Option<Tensor>,
    /// Weight of each sample's loss, `[B]`.
    pub(super) weight: Vec<f32>,
    /// Logarithm of the signal-to-noise ratio of each sample, `[B]`.
    pub(super) log_snr: Vec<f32>,
    /// Class of each sample, `[B]`; the number of classes stands for "no class".
    pub(super) class: Vec<u32>,
    /// Seed of the dropout masks.
    pub(super) seed: u64,
}

impl Batch {
    /// A copy on the device of the network.
    pub(super) fn to_device(&self, device: &Device) -> Result<Self> {
        let there = |tensor: &Tensor| tensor.to_device(device);
        let guide = self.guide.as_ref().map(there).transpose()?;
        let cells = self.cells.as_ref().map(there).transpose()?;
        let (log_snr, class, weight) = (self.log_snr.clone(), self.class.clone(), self.weight.clone());
        Ok(Self {
            shape: self.shape,
            input: there(&self.input)?,
            target: there(&self.target)?,
            guide,
            cells,
            weight,
            log_snr,
            class,
            seed: self.seed,
        })
    }
}

struct Draw {
    /// Number of the shape of the class.
    shape: usize,
    image: usize,
    other: usize,
    class: u32,
    level: NoiseLevel,
    rng: ChaCha8Rng,
}

/// Draws the batch of a step, in a part for each shape that is in it: for each sample a class, all with the same probability, and an
/// image of that class. `images[c]` are the indices of class c in `cache`, `shapes` those of these classes; `process` is that of the
/// configuration.
pub(super) fn sample_batch(
    config: &Config,
    process: &Process,
    shapes: &Shapes,
    cache: &FeatureCache,
    images: &[Vec<usize>],
    step: usize,
) -> Result<Vec<Batch>> {
    let (training, diffusion) = (&config.training, &config.diffusion);
    let mut rng = ChaCha8Rng::seed_from_u64(training.seed);
    rng.set_stream(step as u64 + 1);
    let count = training.batch_size;
    let draws: Vec<Draw> = (0..count)
        .map(|i| {
            let class = rng.random_range(0..images.len());
            let image = images[class][rng.random_range(0..images[class].len())];
            let shape = shapes.of(class);
            // Cells can be taken from an image of the same grid.
            let alike: Vec<usize> = shapes.members(shape).collect();
            let from = &images[alike[rng.random_range(0..alike.len())]];
            let other = from[rng.random_range(0..from.len())];
            let dropped = rng.random::<f64>() < training.class_drop;
            let shown = match config.denoiser.classes {
                ClassStrategy::Conditional if dropped => images.len(),
                ClassStrategy::Conditional | ClassStrategy::Heads => class,
                ClassStrategy::Separate => 0,
            };
            let level = level(diffusion, process, i < count / 2, &mut rng)?;
            let rng = ChaCha8Rng::seed_from_u64(rng.next_u64());
            Ok(Draw { shape, image, other, class: shown as u32, level, rng })
        })
        .collect::<Result<_>>()?;
    let seed = rng.next_u64();
    let mut parts: Vec<Vec<Draw>> = shapes.distinct().iter().map(|_| Vec::new()).collect();
    draws.into_iter().for_each(|draw| parts[draw.shape].push(draw));
    let mut batches = Vec::new();
    for (own, draws) in shapes.configs(config).iter().zip(parts).filter(|(_, draws)| !draws.is_empty()) {
        batches.push(part(own, cache, draws, seed, &mut rng)?);
    }
    Ok(batches)
}

/// The part of a batch that is looked at in one shape, `config` is that of this shape.
fn part(config: &Config, cache: &FeatureCache, draws: Vec<Draw>, seed: u64, rng: &mut ChaCha8Rng) -> Result<Batch> {
    let diffusion = &config.diffusion;
    let (count, shape) = (draws.len(), draws.first().map_or(0, |draw| draw.shape));
    let (grid, view, dim, guide_cells) = (config.grid(), config.training_window(), config.dim(), config.denoiser.guide);
    let tokens = view.area();
    let cells = (view != grid).then(|| window(grid, view, rng));
    let seen = |values: Vec<f32>| match &cells {
        Some(cells) => cells.iter().flat_map(|&cell| &values[cell as usize * dim..][..dim]).copied().collect(),
        None => values,
    };
    let mut input = vec![0.0; count * tokens * (dim + 1)];
    let mut clean = vec![0.0; count * tokens * dim];
    let levels: Vec<NoiseLevel> = draws.iter().map(|d| d.level).collect();
    let weight = levels.iter().map(|&level| weight(diffusion, level)).collect::<Result<_>>()?;
    let log_snr = levels.iter().map(|level| level.log_snr() as f32).collect();
    let class = draws.iter().map(|d| d.class).collect();
    let shown = input
        .par_chunks_exact_mut(tokens * (dim + 1))
        .zip(clean.par_chunks_exact_mut(tokens * dim))
        .zip(draws)
        .map(|((input, clean), draw)| {
            clean.copy_from_slice(&seen(cache.get(draw.image)?));
            let mut shown = seen(cache.get(draw.other)?);
            corrupt(config, draw, clean, &mut shown, input);
            Ok(if guide_cells > 0 { shown } else { Vec::new() })
        })
        .collect::<Result<Vec<Vec<f32>>>>()?;
    let guide = match guide_cells {
        0 => None,
        n => Some(pooled(&Tensor::from_vec(shown.concat(), (count, tokens, dim), &Device::Cpu)?, grid.width, n)?),
    };
    let input = Tensor::from_vec(input, (count, tokens, dim + 1), &Device::Cpu)?;
    let clean = Tensor::from_vec(clean, (count, tokens, dim), &Device::Cpu)?;
    // For what is neither masked nor foreign this is the noise that was drawn, or v; elsewhere it is what leads back to the
    // clean values from what is shown.
    let target = match diffusion.prediction {
        Prediction::X0 => clean,
        other => Prediction::X0.convert(&clean, other, &input.narrow(2, 0, dim)?, &levels)?,
    };
    let cells = cells.map(|cells| Tensor::new(cells.as_slice(), &Device::Cpu)).transpose()?;
    Ok(Batch { shape, input, target, guide, cells, weight, log_snr, class, seed })
}

/// The cells of a window of the grid, at random; those at the edge of the grid are in it about as often as others.
fn window(grid: Size, view: Size, rng: &mut ChaCha8Rng) -> Vec<u32> {
    let mut start = |cells: usize, side: usize| {
        let at = rng.random_range(0..=cells);
        at.saturating_sub(side / 2).min(cells - side)
    };
    let (left, top) = (start(grid.width, view.width), start(grid.height, view.height));
    let row = |y: usize| (left..left + view.width).map(move |x| (y * grid.width + x) as u32);
    (top..top + view.height).flat_map(row).collect()
}

/// Draws a noise level: of a schedule with steps, each step with the same probability; of a continuous one around the level that
/// detection uses if `centred`, else uniformly over the range of log-SNR.
fn level(config: &DiffusionConfig, process: &Process, centred: bool, rng: &mut ChaCha8Rng) -> Result<NoiseLevel> {
    let Process::Continuous { log_snr_min, log_snr_max } = *process else {
        let schedule = process.schedule()?;
        return schedule.level(rng.random_range(0..schedule.steps()));
    };
    let value = if centred {
        config.log_snr_center + config.log_snr_spread * normal(rng)
    } else {
        rng.random_range(log_snr_min..log_snr_max)
    };
    NoiseLevel::from_log_snr(value.clamp(log_snr_min, log_snr_max))
}

fn weight(config: &DiffusionConfig, level: NoiseLevel) -> Result<f32> {
    match config.weighting {
        Weighting::Uniform => Ok(1.0),
        Weighting::MinSnr => {
            Ok(min_snr_weight(config.prediction, level, config.min_snr_gamma, config.min_snr_floor)? as f32)
        }
    }
}

/// Makes the network's input `out` `[T, D + 1]` from the features `x` `[T, D]`: replaces patches of 2x2 cells by those of the
/// image `other` `[T, D]`, adds noise, masks cells. Leaves in `other` the input before noise and mask.
fn corrupt(config: &Config, draw: Draw, x: &[f32], other: &mut [f32], out: &mut [f32]) {
    let (grid, dim) = (config.training_window(), config.dim());
    let Draw { level, mut rng, .. } = draw;
    let (signal, noise) = (level.signal() as f32, level.noise() as f32);
    let shuffle = config.training.shuffle * rng.random::<f64>();
    let mask = config.training.mask * rng.random::<f64>();
    let half = grid.map(|side| side.div_ceil(2));
    let foreign: Vec<bool> = (0..half.area()).map(|_| rng.random::<f64>() < shuffle).collect();
    let masked: Vec<bool> = (0..grid.area()).map(|_| rng.random::<f64>() < mask).collect();
    for (t, row) in out.chunks_exact_mut(dim + 1).enumerate() {
        let source = &mut other[t * dim..][..dim];
        if !foreign[(t / grid.width / 2) * half.width + t % grid.width / 2] {
            source.copy_from_slice(&x[t * dim..][..dim]);
        }
        if masked[t] {
            row[dim] = 1.0;
            continue;
        }
        for (pair, x) in row[..dim].chunks_mut(2).zip(source.chunks(2)) {
            let gauss = normal_pair(&mut rng);
            for ((o, x), g) in pair.iter_mut().zip(x).zip(gauss) {
                *o = signal * x + noise * g;
            }
        }
    }
}

/// Two standard normal numbers from one 64-bit draw (Box & Muller 1958), in single precision: noise needs no more.
fn normal_pair(rng: &mut ChaCha8Rng) -> [f32; 2] {
    let bits = rng.next_u64();
    let u = ((bits >> 40) as f32 + 1.0) / 16_777_216.0; // (0, 1], 24 bits
    let angle = std::f32::consts::TAU * ((bits & 0xff_ffff) as f32 / 16_777_216.0);
    let radius = (-2.0 * u.ln()).sqrt();
    let (sin, cos) = angle.sin_cos();
    [radius * cos, radius * sin]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn normal_pairs_are_standard_normal() {
        let mut rng = ChaCha8Rng::seed_from_u64(3);
        let values: Vec<f64> = (0..100_000).flat_map(|_| normal_pair(&mut rng)).map(f64::from).collect();
        let n = values.len() as f64;
        let moment = |p: i32| values.iter().map(|v| v.powi(p)).sum::<f64>() / n;
        assert!(moment(1).abs() < 0.01 && (moment(2) - 1.0).abs() < 0.02 && (moment(4) - 3.0).abs() < 0.1);
    }

    const DIM: usize = 8;

    /// Six images of 4x4 cells, three of each class.
    fn images(folder: &std::path::Path) -> (FeatureCache, [Vec<usize>; 2]) {
        let mut cache = FeatureCache::new(16, folder);
        for i in 0..6 {
            cache.push(&(0..16 * DIM).map(|j| ((i * 128 + j) as f32).sin()).collect::<Vec<_>>()).unwrap();
        }
        (cache, [vec![0, 1, 2], vec![3, 4, 5]])
    }

    fn shapes(config: &Config, classes: usize) -> Shapes {
        Shapes::one(config, classes)
    }

    /// The one part of a batch in one shape.
    fn one(mut parts: Vec<Batch>) -> Batch {
        assert_eq!(parts.len(), 1);
        parts.remove(0)
    }

    fn config(set: &[&str]) -> Config {
        let mut config = Config::default();
        config.assign(&["features.grid=4", "features.dim=8", "training.batch_size=64"]).unwrap();
        config.assign(set).unwrap();
        config
    }

    fn list(tensor: &Tensor) -> Vec<f64> {
        tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap().into_iter().map(f64::from).collect()
    }

    /// x_t = sqrt(abar) x0 + sqrt(1 - abar) epsilon, with the target in its place: x0, epsilon, or both in v.
    #[test]
    fn what_is_taught_is_what_was_noised() {
        let folder = tempfile::tempdir().unwrap();
        let (cache, images) = images(folder.path());
        let known: Vec<Vec<f64>> = (0..6).map(|i| cache.get(i).unwrap().into_iter().map(f64::from).collect()).collect();
        for (prediction, schedule) in
            [("x0", "log-snr"), ("epsilon", "log-snr"), ("v", "log-snr"), ("epsilon", "linear"), ("v", "cosine")]
        {
            let set = [format!("diffusion.prediction={prediction}"), format!("diffusion.schedule={schedule}")];
            let plain = ["training.mask=0", "training.shuffle=0", "diffusion.min_snr_floor=0", &set[0], &set[1]];
            let config = config(&plain);
            let process = config.diffusion.process().unwrap();
            let batch = one(sample_batch(&config, &process, &shapes(&config, 2), &cache, &images, 1).unwrap());
            let (input, target) = (list(&batch.input), list(&batch.target));
            let mut noise = Vec::new();
            for (i, log_snr) in batch.log_snr.iter().enumerate() {
                let level = NoiseLevel::from_log_snr(f64::from(*log_snr)).unwrap();
                let (signal, sigma) = (level.signal(), level.noise());
                let input = input[i * 16 * (DIM + 1)..][..16 * (DIM + 1)].chunks_exact(DIM + 1);
                assert!(input.clone().all(|row| row[DIM] == 0.0), "nothing is masked");
                let shown: Vec<f64> = input.flat_map(|row| row[..DIM].to_vec()).collect();
                let target = &target[i * 16 * DIM..][..16 * DIM];
                // x0 from what is shown and what is asked for: it has to be an image there is.
                let clean: Vec<f64> = shown
                    .iter()
                    .zip(target)
                    .map(|(x, t)| match prediction {
                        "x0" => *t,
                        "epsilon" => (x - sigma * t) / signal,
                        _ => signal * x - sigma * t,
                    })
                    .collect();
                let off = |image: &Vec<f64>| {
                    image.iter().zip(&clean).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max) * signal
                };
                let nearest = (0..6).min_by(|&a, &b| off(&known[a]).total_cmp(&off(&known[b]))).unwrap();
                assert!(off(&known[nearest]) < 1e-4, "{prediction} {schedule}: {}", off(&known[nearest]));
                let class = batch.class[i] as usize;
                assert!(class == 2 || images[class].contains(&nearest), "{class} {nearest}");
                noise.extend(shown.iter().zip(&known[nearest]).map(|(x, x0)| (x - signal * x0) / sigma));
            }
            // What was added is noise: mean 0, variance 1, and of no image.
            let n = noise.len() as f64;
            let (mean, variance) = (noise.iter().sum::<f64>() / n, noise.iter().map(|e| e * e).sum::<f64>() / n);
            assert!(mean.abs() < 0.05 && (variance - 1.0).abs() < 0.06, "{prediction} {schedule}: {mean} {variance}");
        }
    }

    #[test]
    fn levels_classes_and_weights_are_drawn_as_configured() {
        let folder = tempfile::tempdir().unwrap();
        let (cache, images) = images(folder.path());
        let (mut levels, mut classes) = (Vec::new(), [0usize; 3]);
        let config = config(&["diffusion.log_snr_spread=0.1"]);
        let process = config.diffusion.process().unwrap();
        for step in 0..40 {
            let batch = one(sample_batch(&config, &process, &shapes(&config, 2), &cache, &images, step).unwrap());
            for (log_snr, weight) in batch.log_snr.iter().zip(&batch.weight) {
                let snr = f64::from(*log_snr).exp();
                assert!((f64::from(*weight) - snr.clamp(0.3, 5.0)).abs() < 1e-5 * snr.max(1.0), "{log_snr} {weight}");
            }
            batch.class.iter().for_each(|&class| classes[class as usize] += 1);
            levels.extend(batch.log_snr);
        }
        let n = levels.len() as f64;
        let share = |low: f32, high: f32| levels.iter().filter(|l| (low..=high).contains(*l)).count() as f64 / n;
        assert_eq!(share(-3.0, 4.0), 1.0);
        // Half of them within 0.3 of the centre, and of the other half, even from -3 to 4, 0.6 of 7.
        assert!((share(-0.7, -0.1) - (0.5 + 0.5 * 0.6 / 7.0)).abs() < 0.03, "{}", share(-0.7, -0.1));
        assert!((share(1.0, 4.0) - 0.5 * 3.0 / 7.0).abs() < 0.03, "{}", share(1.0, 4.0));
        let [a, b, none] = classes.map(|count| count as f64 / n);
        assert!((none - 0.15).abs() < 0.03 && (a - b).abs() < 0.05, "{classes:?}");
    }

    /// Classes of two shapes share a batch, in two parts; cells come from images of the same grid.
    #[test]
    fn a_batch_has_a_part_for_each_shape() {
        let config = config(&[
            "training.window=0",
            "training.mask=0",
            "detection.condition=class",
            "training.class_drop=0",
            "training.shuffle=0.9",
        ]);
        let folder = tempfile::tempdir().unwrap();
        let mut cache = FeatureCache::new(16, folder.path());
        // Images 0 and 2 of 4x4 cells, image 1 of 8x4; each holds its number.
        for (n, cells) in [(0, 16), (1, 32), (2, 16)] {
            cache.push(&vec![n as f32; cells * DIM]).unwrap();
        }
        let shape = |input: Size, grid: Size| crate::config::Shape { input, grid, ..config.shape() };
        let (small, wide) = (shape(Size::square(64), Size::square(4)), shape(Size::new(128, 64), Size::new(8, 4)));
        let shapes = Shapes::new(vec![small, wide, small]);
        let process = config.diffusion.process().unwrap();
        let images = [vec![0], vec![1], vec![2]];
        let (mut seen, mut all) = ([0; 2], [0; 3]);
        for step in 0..20 {
            for batch in sample_batch(&config, &process, &shapes, &cache, &images, step).unwrap() {
                let tokens = [16, 32][batch.shape];
                assert_eq!(batch.target.dims(), [batch.weight.len(), tokens, DIM]);
                assert_eq!(batch.class.iter().all(|&class| class == 1), batch.shape == 1);
                seen[batch.shape] += batch.weight.len();
                for (target, class) in list(&batch.target).chunks(tokens * DIM).zip(&batch.class) {
                    assert!(target.iter().all(|&value| value == f64::from(*class)), "what is taught is its own image");
                }
                batch.class.iter().for_each(|&class| all[class as usize] += 1);
            }
        }
        assert_eq!(seen.iter().sum::<usize>(), 20 * 64, "all samples of a batch are there");
        assert!(all.iter().all(|&often| often > 300) && seen[1] == all[1], "{seen:?} {all:?}");
    }

    /// A step shows a window of a grid that is larger, and says which cells these are; all of the grid has its turn.
    #[test]
    fn a_step_looks_at_a_window() {
        let config = config(&["training.window=2", "training.mask=0", "training.shuffle=0"]);
        let folder = tempfile::tempdir().unwrap();
        let mut cache = FeatureCache::new(16, folder.path());
        // Cell t holds t in all of its channels.
        cache.push(&(0..16 * DIM).map(|i| (i / DIM) as f32).collect::<Vec<_>>()).unwrap();
        let process = config.diffusion.process().unwrap();
        let mut often = [0; 16];
        for step in 0..400 {
            let batch = one(sample_batch(&config, &process, &shapes(&config, 1), &cache, &[vec![0]], step).unwrap());
            let cells = batch.cells.unwrap().to_vec1::<u32>().unwrap();
            assert_eq!((batch.input.dims(), batch.target.dims()), (&[64, 4, DIM + 1][..], &[64, 4, DIM][..]));
            let shown: Vec<u32> = batch
                .target
                .get(9)
                .unwrap()
                .flatten_all()
                .unwrap()
                .to_vec1::<f32>()
                .unwrap()
                .chunks(DIM)
                .map(|cell| cell[0] as u32)
                .collect();
            assert_eq!(shown, cells);
            assert!(cells[1] == cells[0] + 1 && cells[2] == cells[0] + 4 && cells[3] == cells[2] + 1, "{cells:?}");
            cells.iter().for_each(|&cell| often[cell as usize] += 1);
        }
        assert!(often.iter().all(|n| *n > 50), "{often:?}");
    }

    #[test]
    fn a_step_draws_the_same_whenever_it_is_drawn() {
        let config = config(&[]);
        let folder = tempfile::tempdir().unwrap();
        let (cache, images) = images(folder.path());
        let process = config.diffusion.process().unwrap();
        let values = |step| {
            let batch = one(sample_batch(&config, &process, &shapes(&config, 2), &cache, &images, step).unwrap());
            batch.input.flatten_all().unwrap().to_vec1::<f32>().unwrap()
        };
        let third = values(3);
        let _ = values(1);
        assert_eq!(third, values(3));
        assert_ne!(third, values(4));
    }
}
