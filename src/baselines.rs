//! Baselines: two simpler methods on the same normalised features, so that everybody sees what diffusion adds. One is the
//! Mahalanobis distance per class and cell (PaDiM, Defard et al. 2020), the other the distance to the nearest neighbour in a
//! memory bank (as PatchCore, Roth et al. 2021, but with random rows instead of a coreset). Both give one distance per cell, from
//! which map and score are made as for the diffusion model.

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;

use crate::config::Blocks;
use crate::error::Result;
use crate::kernels::gemm::{Epilogue, Factors, Matrix, Packed, gemm};
use crate::residuals::{ResidualStatistics, ResidualSums};

/// Most feature rows in a class's memory bank.
pub const BANK_ROWS: usize = 10_000;
/// Bank rows per matrix product: few enough for the products to stay in the cache.
const BLOCK: usize = 512;

/// The methods, in the order of [`Baselines::distances`].
pub const METHODS: [&str; 3] = ["mahalanobis, class known", "knn, class known", "knn, one bank for all"];

/// Learns one class from its good images.
pub struct ClassFit {
    tokens: usize,
    dim: usize,
    images: usize,
    seen: usize,
    rows: usize,
    seed: u64,
    sums: ResidualSums,
    bank: Vec<f32>, // [rows, D]
}

impl ClassFit {
    /// For `images` images of cells with `dim` features each; `seed` chooses the cells of the memory bank.
    pub fn new(blocks: Blocks, dim: usize, images: usize, seed: u64) -> Self {
        let tokens = blocks.grid.area();
        let rows = BANK_ROWS.min(images * tokens);
        Self { tokens, dim, images, seen: 0, rows, seed, sums: ResidualSums::new(blocks, dim, 1), bank: Vec::new() }
    }

    /// Adds the normalised features `[T, D]` of one image.
    pub fn add(&mut self, features: &[f32]) {
        self.sums.add(features);
        // The bank's rows are spread evenly over the images, and at random over the cells of each.
        let share = |image: usize| self.rows * image.min(self.images) / self.images.max(1);
        let take = (share(self.seen + 1) - share(self.seen)).min(self.tokens);
        let mut rng = ChaCha8Rng::seed_from_u64(self.seed);
        rng.set_stream(self.seen as u64);
        let mut cells: Vec<usize> = (0..self.tokens).collect();
        for at in 0..take {
            let other = rng.random_range(at..self.tokens);
            cells.swap(at, other);
            self.bank.extend_from_slice(&features[cells[at] * self.dim..][..self.dim]);
        }
        self.seen += 1;
    }

    /// The baselines of the class.
    ///
    /// # Errors
    /// When no image was added or features are not finite.
    pub fn finish(self) -> Result<ClassBaseline> {
        Ok(ClassBaseline { residuals: self.sums.finish()?, bank: Bank::new(&self.bank, self.dim) })
    }
}

/// The baselines of one class.
pub struct ClassBaseline {
    residuals: ResidualStatistics,
    bank: Bank,
}

/// The baselines of all classes.
pub struct Baselines {
    classes: Vec<ClassBaseline>,
}

impl Baselines {
    /// From its classes.
    pub fn new(classes: Vec<ClassBaseline>) -> Self {
        Self { classes }
    }

    /// Puts another fit in the place of a class's own, which is returned.
    pub fn replace(&mut self, class: usize, fit: ClassBaseline) -> ClassBaseline {
        std::mem::replace(&mut self.classes[class], fit)
    }

    /// The distances `[T]` by each of the [`METHODS`] of an image's normalised features `[T, D]`; `class` is its index.
    pub fn distances(&self, features: &[f32], class: usize) -> [Vec<f32>; 3] {
        let banks: Vec<Vec<f32>> = self.classes.par_iter().map(|class| class.bank.distance(features)).collect();
        let mut all = vec![f32::INFINITY; banks[class].len()];
        for bank in &banks {
            for (least, distance) in all.iter_mut().zip(bank) {
                *least = least.min(*distance);
            }
        }
        let [mahalanobis, own] = [self.classes[class].residuals.scales()[0].distance(features), banks[class].clone()];
        [mahalanobis, own, all]
    }
}

/// Feature rows in blocks ready for the matrix product.
struct Bank {
    dim: usize,
    blocks: Vec<Block>,
}

struct Block {
    rows: Packed,      // [D, n]
    penalty: Vec<f32>, // -||row||^2 / 2, [n]
}

impl Bank {
    fn new(rows: &[f32], dim: usize) -> Self {
        let blocks = rows
            .chunks(BLOCK * dim)
            .map(|block| Block {
                rows: Packed::new(Factors::F32, dim, block.len() / dim, Matrix::transposed(block, dim)),
                penalty: block.chunks_exact(dim).map(|row| -square(row) / 2.0).collect(),
            })
            .collect();
        Self { dim, blocks }
    }

    /// Euclidean distance of every query `[T, D]` to the nearest row: `[T]`.
    ///
    /// `||q - r||^2 = ||q||^2 - 2 (q r - ||r||^2 / 2)`: the nearest row has the largest bracket.
    fn distance(&self, queries: &[f32]) -> Vec<f32> {
        let n = queries.len() / self.dim;
        let best = |block: &Block| {
            let width = block.penalty.len();
            let mut products = vec![0.0; n * width];
            let epilogue = Epilogue { bias: Some(&block.penalty), ..Epilogue::default() };
            gemm(n, Matrix::rows(queries, self.dim), &block.rows, &mut products, epilogue);
            let largest = |row: &[f32]| row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            products.chunks_exact(width).map(largest).collect::<Vec<f32>>()
        };
        let none = || vec![f32::NEG_INFINITY; n];
        let best = self.blocks.par_iter().map(best).reduce(none, |mut a, b| {
            a.iter_mut().zip(b).for_each(|(a, b)| *a = a.max(b));
            a
        });
        queries.chunks_exact(self.dim).zip(best).map(|(q, best)| (square(q) - 2.0 * best).max(0.0).sqrt()).collect()
    }
}

fn square(row: &[f32]) -> f32 {
    row.iter().map(|v| v * v).sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Size;

    const TOKENS: usize = 6;
    const DIM: usize = 8;

    /// Numbers that look random.
    fn noise(n: usize, seed: u64) -> Vec<f32> {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        (0..n).map(|_| rng.random_range(-1.0..1.0)).collect()
    }

    #[test]
    fn the_bank_finds_the_nearest_row_across_blocks() {
        let rows = noise((2 * BLOCK + 7) * DIM, 1);
        let queries = noise(TOKENS * DIM, 2);
        let found = Bank::new(&rows, DIM).distance(&queries);
        for (query, found) in queries.chunks_exact(DIM).zip(found) {
            let distance = |row: &[f32]| row.iter().zip(query).map(|(r, q)| (r - q) * (r - q)).sum::<f32>().sqrt();
            let expected = rows.chunks_exact(DIM).map(distance).fold(f32::INFINITY, f32::min);
            assert!((found - expected).abs() < 1e-4, "{found} != {expected}");
        }
    }

    fn fitted(images: &[Vec<f32>]) -> ClassBaseline {
        let mut fit = ClassFit::new(Blocks::cells(Size::new(3, 2)), DIM, images.len(), 0);
        images.iter().for_each(|image| fit.add(image));
        fit.finish().unwrap()
    }

    #[test]
    fn a_known_image_is_near_and_only_the_common_bank_knows_that_of_another_class() {
        let one: Vec<Vec<f32>> = (0..5).map(|i| noise(TOKENS * DIM, 10 + i)).collect();
        let other: Vec<Vec<f32>> = (0..5).map(|i| noise(TOKENS * DIM, 20 + i)).collect();
        let baselines = Baselines::new(vec![fitted(&one), fitted(&other)]);
        let [_, own, all] = baselines.distances(&other[2], 0);
        assert!(own.iter().all(|&d| d > 0.1), "{own:?}");
        assert!(all.iter().all(|&d| d < 1e-3), "{all:?}");
        let [_, own, _] = baselines.distances(&other[2], 1);
        assert!(own.iter().all(|&d| d < 1e-3), "{own:?}");
    }

    #[test]
    fn the_bank_is_an_even_and_repeatable_choice() {
        let tokens = 4096;
        let image = |i: u64| noise(tokens * DIM, i);
        let fit = |seed| {
            let mut fit = ClassFit::new(Blocks::cells(Size::new(tokens, 1)), DIM, 4, seed);
            (0..4).for_each(|i| fit.add(&image(i)));
            fit.bank
        };
        let bank = fit(7);
        assert_eq!(bank.len(), BANK_ROWS * DIM);
        assert_eq!(bank, fit(7));
        assert_ne!(bank, fit(8));
        for i in 0..4 {
            let image = image(i);
            let quarter = &bank[BANK_ROWS / 4 * DIM * i as usize..][..DIM];
            assert!(image.chunks_exact(DIM).any(|row| row == quarter), "rows of image {i} come in turn");
        }
    }
}
