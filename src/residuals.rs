//! Statistics of the residuals of good parts, and the Mahalanobis distance that they define.
//!
//! The residual of a cell is the part of its features that the denoiser did not reconstruct, `r = x0 - x0_hat` `[D]`. Edges and
//! texture leave larger residuals than plain surface even on good parts, so a residual is judged against the mean and the
//! covariance that good parts of the same class have in the same cell, as PaDiM does with features (Defard et al. 2020).

use candle_core::{DType, Device, Tensor};
use half::f16;
use rayon::prelude::*;

use crate::config::{Blocks, Size};
use crate::error::{Error, Result};
use crate::kernels::triangular;

#[cfg(feature = "train")]
mod sums;

#[cfg(feature = "train")]
pub use sums::ResidualSums;

/// Statistics of the residuals of one class's good parts: of the cells, and perhaps of the mean of each cell and its neighbours,
/// which tells of what is too faint for a single cell.
pub struct ResidualStatistics {
    scales: Vec<Scale>,
}

impl ResidualStatistics {
    /// Of the cells alone.
    pub fn new(scale: Scale) -> Self {
        Self { scales: vec![scale] }
    }

    /// And of a further scale.
    pub fn and(mut self, scale: Scale) -> Self {
        self.scales.push(scale);
        self
    }

    /// The cells, and what else there is.
    pub fn scales(&self) -> &[Scale] {
        &self.scales
    }

    /// Distance of each cell's vector `[B, T, D]`, `[B, T]`: the sum over the scales of the Mahalanobis distance. Vectors on a GPU
    /// need statistics there, see [`ResidualStatistics::on`].
    ///
    /// # Errors
    /// When the shape does not fit or the device fails.
    pub fn distances(&self, vectors: &Tensor) -> Result<Vec<f32>> {
        let mut scales = self.scales.iter().map(|scale| scale.distances(vectors));
        let mut sum = scales.next().unwrap_or_else(|| Err(Error::Internal("residuals: no statistics".into())))?;
        for distances in scales {
            sum.iter_mut().zip(distances?).for_each(|(sum, distance)| *sum += distance);
        }
        Ok(sum)
    }

    /// The same for vectors on a device: a GPU gets a copy of the statistics now.
    ///
    /// # Errors
    /// When the device has no room for them.
    pub fn on(self, device: &Device) -> Result<Self> {
        Ok(Self { scales: self.scales.into_iter().map(|scale| scale.on(device)).collect::<Result<_>>()? })
    }
}

/// Mean and covariance of residuals for each of the T cells of the grid: of the cell's own, or of the mean of those in a square
/// around it. Cells may share a covariance, N of which there are; then it is that around the mean of each cell.
///
/// In place of the covariance stands `W`, the inverse of its Cholesky factor: `||W (v - mean)||` is the Mahalanobis distance
/// of a vector `v`. `W` is a lower triangle, packed row by row; stored in half precision, used in single precision.
pub struct Scale {
    blocks: Blocks,
    /// Side of the square in cells, odd; 1 is the cell alone.
    side: usize,
    dim: usize,
    mean: Vec<f32>, // [T, D]
    /// Of N triangles, as the kernel reads them.
    panels: Vec<f16>,
    on_gpu: Option<OnGpu>,
}

/// The same on a GPU.
struct OnGpu {
    mean: Tensor,   // [1, T, D]
    whiten: Tensor, // transposes of W as full matrices, [N, D, D]
    /// The cells of each square that shares a covariance, all squares with as many, `[N x cells]`; and the way back, `[T]`.
    gathered: Tensor,
    back: Tensor,
    /// Where means over squares are looked at: the weights of rows `[H, H]` and of columns `[W, W]`.
    means: Option<[Tensor; 2]>,
}

impl Scale {
    /// From the tensors of a model file: `mean` `[T, D]`, `whiten` `[N, D (D + 1) / 2]`, for means over `side` x `side` cells.
    ///
    /// # Errors
    /// When the lengths do not fit.
    pub fn new(blocks: Blocks, side: usize, dim: usize, mean: Vec<f32>, whiten: Vec<f16>) -> Result<Self> {
        let tokens = blocks.grid.area();
        if mean.len() != tokens * dim || whiten.len() != blocks.count() * dim * (dim + 1) / 2 {
            return Err(Error::Internal(format!(
                "residuals: {} means, {} factors for {} cells of {dim}",
                mean.len(),
                whiten.len(),
                blocks.grid
            )));
        }
        let panels = whiten.par_chunks_exact(dim * (dim + 1) / 2).flat_map_iter(|rows| triangular::pack(rows, dim));
        Ok(Self { blocks, side, dim, mean, panels: panels.collect(), on_gpu: None })
    }

    /// Mean residual of each cell, `[T, D]`.
    pub fn mean(&self) -> &[f32] {
        &self.mean
    }

    /// The lower triangle `W` of each square of cells, `[N, D (D + 1) / 2]`.
    pub fn whiten(&self) -> Vec<f16> {
        let panels = self.panels.chunks_exact(triangular::len(self.dim));
        panels.flat_map(|panels| triangular::unpack(panels, self.dim)).collect()
    }

    /// The lower triangle `W` of a cell, `[D (D + 1) / 2]`.
    pub(crate) fn whiten_of(&self, cell: usize) -> Vec<f16> {
        triangular::unpack(self.panels_of(cell), self.dim)
    }

    fn panels_of(&self, cell: usize) -> &[f16] {
        let len = triangular::len(self.dim);
        &self.panels[self.blocks.of(cell) * len..][..len]
    }

    /// Features per cell.
    pub fn dim(&self) -> usize {
        self.dim
    }

    fn tokens(&self) -> usize {
        self.blocks.grid.area()
    }

    /// `W (v - mean)` for the vectors of n images `[n, T, D]`, means of squares already where they are to be.
    #[cfg(feature = "train")]
    pub(crate) fn whitened(&self, vectors: &[f32]) -> Vec<f32> {
        let dim = self.dim;
        let cell = |((v, mean), whiten): ((&[f32], &[f32]), Vec<f16>)| {
            let centred: Vec<f32> = v.iter().zip(mean).map(|(v, m)| v - m).collect();
            let row = |i: usize| {
                let row = &whiten[i * (i + 1) / 2..][..=i];
                row.iter().zip(&centred).map(|(w, c)| w.to_f32() * c).sum::<f32>()
            };
            (0..dim).map(row).collect::<Vec<_>>()
        };
        let image = |image: &[f32]| {
            let cells = image.par_chunks_exact(dim).zip(self.mean.par_chunks_exact(dim)).enumerate();
            let whitened = cells.with_min_len(32).flat_map_iter(|(t, pair)| cell((pair, self.whiten_of(t))));
            whitened.collect::<Vec<f32>>()
        };
        vectors.chunks_exact(self.mean.len()).flat_map(image).collect()
    }

    fn distances(&self, vectors: &Tensor) -> Result<Vec<f32>> {
        let (_, tokens, dim) = vectors.dims3()?;
        if dim != self.dim || tokens != self.tokens() {
            return Err(Error::Internal(format!(
                "residuals: vectors {:?}, statistics of {}",
                vectors.dims(),
                self.dim
            )));
        }
        if let Some(statistics) = &self.on_gpu {
            return distances_in_tensors(statistics, vectors);
        }
        let values = vectors.flatten_all()?.to_vec1::<f32>()?;
        let image = |values: &[f32]| match self.side {
            1 => self.distance(values),
            side => self.distance(&square_means(values, self.blocks.grid, side)),
        };
        Ok(values.chunks_exact(self.mean.len()).flat_map(image).collect())
    }

    fn on(mut self, device: &Device) -> Result<Self> {
        if !device.is_cpu() {
            self.on_gpu = Some(self.dense(device)?);
        }
        Ok(self)
    }

    /// What [`distances_in_tensors`] needs, on a device. It grows with the cells, and with the squares that have a covariance.
    fn dense(&self, device: &Device) -> Result<OnGpu> {
        let (dim, grid, members) = (self.dim, self.blocks.grid, self.blocks.members());
        let mut whole = vec![f16::ZERO; members.len() * dim * dim];
        for (cells, whole) in members.iter().zip(whole.chunks_exact_mut(dim * dim)) {
            let triangle = self.whiten_of(cells[0]);
            for i in 0..dim {
                for (j, &value) in triangle[i * (i + 1) / 2..][..=i].iter().enumerate() {
                    whole[j * dim + i] = value;
                }
            }
        }
        let whiten = Tensor::from_vec(whole, (members.len(), dim, dim), device)?.to_dtype(DType::F32)?;
        // Squares at the edge have fewer cells: their first stands in for those that are missing.
        let most = members.iter().map(Vec::len).max().unwrap_or(1);
        let filled =
            |cells: &Vec<usize>| (0..most).map(|i| *cells.get(i).unwrap_or(&cells[0]) as u32).collect::<Vec<_>>();
        let gathered: Vec<u32> = members.iter().flat_map(filled).collect();
        let mut back = vec![0u32; grid.area()];
        for (square, cells) in members.iter().enumerate() {
            cells.iter().enumerate().for_each(|(i, &cell)| back[cell] = (square * most + i) as u32);
        }
        // The means over a line that has 1 in one place: what that place gives to each.
        let line = |cells: usize| {
            let weights = (0..cells).flat_map(|at| {
                let mut one = vec![0.0; cells];
                one[at] = 1.0;
                square_means(&one, Size::new(cells, 1), self.side)
            });
            Tensor::from_vec(weights.collect(), (cells, cells), device)?.t()?.contiguous()
        };
        Ok(OnGpu {
            mean: Tensor::from_slice(&self.mean, (1, grid.area(), dim), device)?,
            whiten,
            gathered: Tensor::new(gathered.as_slice(), device)?,
            back: Tensor::new(back.as_slice(), device)?,
            means: (self.side > 1).then(|| Ok::<_, Error>([line(grid.height)?, line(grid.width)?])).transpose()?,
        })
    }

    /// Mahalanobis distance of each cell's vector `[T, D]`, a mean already where it is to be one: `[T]`.
    pub(crate) fn distance(&self, vectors: &[f32]) -> Vec<f32> {
        let dim = self.dim;
        vectors
            .par_chunks_exact(dim)
            .zip(self.mean.par_chunks_exact(dim))
            .enumerate()
            .with_min_len(32)
            .map_init(
                || vec![0.0; dim],
                |centred, (cell, (v, mean))| {
                    for ((c, v), m) in centred.iter_mut().zip(v).zip(mean) {
                        *c = v - m;
                    }
                    triangular::norm(self.panels_of(cell), centred)
                },
            )
            .collect()
    }
}

/// The mean of the vectors `[T, D]` in the square of `side` cells around each cell of a grid, as far as it lies in the grid:
/// `[T, D]`.
pub(crate) fn square_means(vectors: &[f32], grid: Size, side: usize) -> Vec<f32> {
    let row = vectors.len() / grid.height;
    // Along rows, then along columns: line `i` of `lines`, each of `width` values, becomes the mean of those around it.
    let blur = |lines: &[f32], width: usize, out: &mut [f32]| {
        for (i, out) in out.chunks_exact_mut(width).enumerate() {
            let near = i.saturating_sub(side / 2)..(i + side / 2 + 1).min(lines.len() / width);
            let weight = 1.0 / near.len() as f32;
            for line in lines.chunks_exact(width).skip(near.start).take(near.len()) {
                out.iter_mut().zip(line).for_each(|(out, value)| *out += weight * value);
            }
        }
    };
    let (mut rows, mut means) = (vec![0.0; vectors.len()], vec![0.0; vectors.len()]);
    for (line, out) in vectors.chunks_exact(row).zip(rows.chunks_exact_mut(row)) {
        blur(line, row / grid.width, out);
    }
    blur(&rows, row, &mut means);
    means
}

/// Distances `[B, T]` of vectors `[B, T, D]`.
fn distances_in_tensors(statistics: &OnGpu, vectors: &Tensor) -> Result<Vec<f32>> {
    let OnGpu { mean, whiten, gathered, back, means } = statistics;
    let (batch, tokens, dim) = vectors.dims3()?;
    let mut vectors = vectors.contiguous()?;
    if let Some([rows, columns]) = means {
        let (height, width) = (rows.dim(0)?, columns.dim(0)?);
        let along = columns.broadcast_matmul(&vectors.reshape((batch * height, width, dim))?)?;
        vectors =
            rows.broadcast_matmul(&along.reshape((batch, height, width * dim))?)?.reshape((batch, tokens, dim))?;
    }
    // One matrix per square for all of its cells in the whole batch: [N, B x cells, D].
    let (squares, all) = (whiten.dim(0)?, gathered.dim(0)?);
    let cells = all / squares;
    let centred = vectors.broadcast_sub(mean)?.index_select(gathered, 1)?.reshape((batch, squares, cells, dim))?;
    let centred = centred.transpose(0, 1)?.contiguous()?.reshape((squares, batch * cells, dim))?;
    let lengths = centred.matmul(whiten)?.sqr()?.sum(2)?.sqrt()?.reshape((squares, batch, cells))?;
    Ok(lengths.transpose(0, 1)?.reshape((batch, all))?.index_select(back, 1)?.flatten_all()?.to_vec1()?)
}

/// Numbers for tests.
#[cfg(all(test, feature = "train"))]
pub(crate) mod fixture {
    pub(crate) fn value(i: usize) -> f32 {
        ((i as f32 * 12.9898).sin() * 43758.547).fract()
    }

    pub(crate) fn vectors(numbers: usize) -> Vec<f32> {
        (0..numbers).map(value).collect()
    }
}

#[cfg(all(test, feature = "train"))]
mod tests {
    use nalgebra::DMatrix;

    use super::fixture::{value, vectors};
    use super::*;

    /// The distance is that of the textbook formula, with the stated shrinkage and ridge.
    #[test]
    fn distance_is_mahalanobis() {
        let (tokens, dim, images) = (4, 4, 50);
        let data: Vec<f32> = vectors(images * tokens * dim);
        let mut sums = ResidualSums::new(Blocks::cells(Size::square(2)), dim, 1);
        sums.add(&data[..20 * tokens * dim]);
        sums.add(&data[20 * tokens * dim..]);
        let statistics = sums.finish().unwrap();
        let at = |image: usize, t: usize, d: usize| f64::from(data[(image * tokens + t) * dim + d]);
        let n = images as f64;
        let mean = |t: usize, d: usize| (0..images).map(|i| at(i, t, d)).sum::<f64>() / n;
        let cov = |t: usize, a: usize, b: usize| {
            (0..images).map(|i| (at(i, t, a) - mean(t, a)) * (at(i, t, b) - mean(t, b))).sum::<f64>() / n
        };
        let own = n / (n + 20.0);
        let query: Vec<f32> = (0..tokens * dim).map(|i| value(i + 9999)).collect();
        for (t, &got) in statistics.scales()[0].distance(&query).iter().enumerate() {
            let pooled = |a, b| (0..tokens).map(|t| cov(t, a, b)).sum::<f64>() / tokens as f64;
            let c = DMatrix::from_fn(dim, dim, |a, b| {
                own * cov(t, a, b) + (1.0 - own) * pooled(a, b) + if a == b { 0.05 } else { 0.0 }
            });
            let pooled_mean = |d| (0..tokens).map(|t| mean(t, d)).sum::<f64>() / tokens as f64;
            let v = DMatrix::from_fn(dim, 1, |d, _| {
                f64::from(query[t * dim + d]) - own * mean(t, d) - (1.0 - own) * pooled_mean(d)
            });
            let expected = (v.transpose() * c.try_inverse().unwrap() * v)[(0, 0)].sqrt();
            assert!((f64::from(got) - expected).abs() < 2e-3 * expected, "cell {t}: {got} != {expected}");
        }
        let batch = Tensor::from_vec([query.clone(), query].concat(), (2, tokens, dim), &Device::Cpu).unwrap();
        let tensors = distances_in_tensors(&statistics.scales()[0].dense(&Device::Cpu).unwrap(), &batch).unwrap();
        let kernel = statistics.distances(&batch).unwrap();
        assert_eq!(kernel.len(), 2 * tokens);
        assert!(kernel.iter().zip(tensors).all(|(a, b)| (a - b).abs() < 1e-5 * a));
    }

    /// Cells that share a covariance have that of all their residuals, each around the mean of its cell.
    #[test]
    fn a_square_of_cells_shares_a_covariance() {
        let (grid, dim, images) = (Size::new(5, 3), 4, 50);
        let data: Vec<f32> = vectors(images * grid.area() * dim);
        let blocks = Blocks { grid, side: 2 };
        let mut sums = ResidualSums::new(blocks, dim, 1);
        sums.add(&data);
        let statistics = sums.finish().unwrap();
        let (shared, single) = (&statistics.scales()[0], {
            let mut sums = ResidualSums::new(Blocks::cells(grid), dim, 1);
            sums.add(&data);
            sums.finish().unwrap()
        });
        assert_eq!(shared.whiten().len(), 6 * dim * (dim + 1) / 2);
        assert_eq!(shared.mean(), single.scales()[0].mean(), "each cell has its own mean");
        // Cells 2, 3, 7, 8 (columns 2 and 3 of rows 0 and 1) are one square.
        assert_eq!(blocks.members()[1], [2, 3, 7, 8]);
        assert_eq!(shared.whiten_of(2), shared.whiten_of(8));
        let at = |image: usize, t: usize, d: usize| f64::from(data[(image * grid.area() + t) * dim + d]);
        let n = images as f64;
        let mean = |t: usize, d: usize| (0..images).map(|i| at(i, t, d)).sum::<f64>() / n;
        let cov = |t: usize, a: usize, b: usize| {
            (0..images).map(|i| (at(i, t, a) - mean(t, a)) * (at(i, t, b) - mean(t, b))).sum::<f64>() / n
        };
        let own = 4.0 * n / (4.0 * n + 20.0);
        let c = DMatrix::from_fn(dim, dim, |a, b| {
            let pooled = (0..15).map(|t| cov(t, a, b)).sum::<f64>() / 15.0;
            let seen = [2, 3, 7, 8].map(|t| cov(t, a, b)).iter().sum::<f64>() / 4.0;
            own * seen + (1.0 - own) * pooled + if a == b { 0.05 } else { 0.0 }
        });
        let query: Vec<f32> = (0..grid.area() * dim).map(|i| value(i + 777)).collect();
        // The same in tensors, also of means over squares.
        let mut around = ResidualSums::new(blocks, dim, 3);
        around.add(&data);
        for scale in around.finish().unwrap().scales() {
            let batch = Tensor::from_vec(query.repeat(2), (2, grid.area(), dim), &Device::Cpu).unwrap();
            let (kernel, dense) = (scale.distances(&batch).unwrap(), scale.dense(&Device::Cpu).unwrap());
            let tensors = distances_in_tensors(&dense, &batch).unwrap();
            assert_eq!(tensors.len(), 2 * grid.area());
            assert!(kernel.iter().zip(tensors).all(|(a, b)| (a - b).abs() < 1e-4 * a), "side {}", scale.side);
        }
        let v = DMatrix::from_fn(dim, 1, |d, _| f64::from(query[7 * dim + d] - shared.mean()[7 * dim + d]));
        let expected = (v.transpose() * c.try_inverse().unwrap() * v)[(0, 0)].sqrt();
        let got = f64::from(shared.distance(&query)[7]);
        assert!((got - expected).abs() < 2e-3 * expected, "{got} != {expected}");
        let batch = Tensor::from_slice(&query, (1, grid.area(), dim), &Device::Cpu).unwrap();
        let (kernel, tensors) = (
            statistics.distances(&batch).unwrap(),
            distances_in_tensors(&shared.dense(&Device::Cpu).unwrap(), &batch).unwrap(),
        );
        assert!(kernel.iter().zip(tensors).all(|(a, b)| (a - b).abs() < 1e-4 * a), "on a GPU");
    }

    #[test]
    fn squares_end_at_the_edge() {
        let values: Vec<f32> = (0..9).flat_map(|i| [i as f32, -1.0]).collect();
        let means = square_means(&values, Size::square(3), 3);
        let first: Vec<f32> = means.iter().step_by(2).copied().collect();
        let expected = [2.0, 2.5, 3.0, 3.5, 4.0, 4.5, 5.0, 5.5, 6.0];
        assert!(first.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-5), "{first:?}");
        assert!(means.iter().skip(1).step_by(2).all(|v| (v + 1.0).abs() < 1e-6));
        assert_eq!(square_means(&values, Size::square(3), 1), values);
        // Two rows of four cells.
        let wide = square_means(&[0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0], Size::new(4, 2), 3);
        let expected = [2.5, 3.0, 4.0, 4.5, 2.5, 3.0, 4.0, 4.5];
        assert!(wide.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-5), "{wide:?}");
    }

    /// Both scales have the same share of a good part's distance, which is about that of the cells alone.
    #[test]
    fn two_scales_count_alike() {
        let (tokens, dim, images) = (16, 4, 60);
        let data: Vec<f32> = vectors(images * tokens * dim);
        let statistics = |side: usize| {
            let mut sums = ResidualSums::new(Blocks::cells(Size::square(4)), dim, side);
            sums.add(&data);
            sums.finish().unwrap()
        };
        let (one, two) = (statistics(1), statistics(3));
        let batch = Tensor::from_slice(&data, (images, tokens, dim), &Device::Cpu).unwrap();
        let mean = |distances: Vec<f32>| distances.iter().sum::<f32>() / distances.len() as f32;
        let alone = mean(one.distances(&batch).unwrap());
        let each: Vec<f32> = two.scales().iter().map(|scale| mean(scale.distances(&batch).unwrap())).collect();
        assert!(each.iter().all(|share| (share / alone - 0.5).abs() < 0.03), "{each:?} of {alone}");
        let whole = two.scales()[1].dense(&Device::Cpu).unwrap();
        let (kernel, tensors) =
            (two.scales()[1].distances(&batch).unwrap(), distances_in_tensors(&whole, &batch).unwrap());
        assert!(kernel.iter().zip(tensors).all(|(a, b)| (a - b).abs() < 1e-4 * a), "on a GPU");
    }

    #[test]
    fn what_is_taken_away_again_leaves_the_statistics_of_the_rest() {
        let (tokens, dim, images) = (9, 4, 40);
        let data: Vec<f32> = vectors(images * tokens * dim);
        let sums = |data: &[f32]| {
            let mut sums = ResidualSums::new(Blocks::cells(Size::square(3)), dim, 3);
            sums.add(data);
            sums
        };
        let (some, rest) = data.split_at(7 * tokens * dim);
        let left = sums(&data).without(&sums(some)).unwrap().finish().unwrap();
        let direct = sums(rest).finish().unwrap();
        let batch = Tensor::from_slice(some, (7, tokens, dim), &Device::Cpu).unwrap();
        let pairs = left.distances(&batch).unwrap().into_iter().zip(direct.distances(&batch).unwrap());
        pairs.for_each(|(a, b)| assert!((a - b).abs() < 2e-3 * b, "{a}, {b}"));
        assert!(sums(some).without(&sums(&data)).is_err());
        assert!(sums(&data).without(&ResidualSums::new(Blocks::cells(Size::square(3)), dim, 1)).is_err());
    }
}
