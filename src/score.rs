//! From residuals to a map and a score.
//!
//! The residual of a cell is what the denoiser did not rebuild, `r = x0 - x0_hat`. How large it is among good parts differs
//! by class, place and feature, so it is measured in the metric of the good parts' residuals (`ResidualField`).

use std::sync::OnceLock;

use candle_core::{DType, Device, Tensor};
use half::f16;
use nalgebra::DMatrix;
use rayon::prelude::*;

use crate::error::{Error, Result};
use crate::kernels::gemm::{Epilogue, Matrix, gemm_once};

/// Images that pull a cell's statistics towards the class average with the weight of this many images.
const SHRINKAGE: f64 = 20.0;
/// Added to the diagonal of every covariance (features have unit variance).
const RIDGE: f64 = 0.05;

/// Mean and covariance of the good parts' vectors in each cell of the grid, of one class.
///
/// The covariance is kept as the inverse of its Cholesky factor, packed by rows: `||W (v - mean)||` is the Mahalanobis
/// distance. Stored as f16; computed in f32.
pub struct ResidualField {
    dim: usize,
    mean: Vec<f32>,   // [T, D]
    whiten: Vec<f16>, // [T, D (D + 1) / 2]
    /// Mean `[T, 1, D]` and the transposed factor, whole, `[T, D, D]`, where they were last used, if that is not the CPU.
    elsewhere: OnceLock<[Tensor; 2]>,
}

/// Sums over images from which a `ResidualField` is made; memory `T * D * (D + 1)` floats.
pub struct ResidualSums {
    tokens: usize,
    dim: usize,
    count: usize,
    sum: Vec<f64>,     // [T, D]
    product: Vec<f32>, // [T, D, D]
}

impl ResidualSums {
    /// Nothing summed yet.
    pub fn new(tokens: usize, dim: usize) -> Self {
        Self { tokens, dim, count: 0, sum: vec![0.0; tokens * dim], product: vec![0.0; tokens * dim * dim] }
    }

    /// Adds images: `vectors` `[n, T, D]`.
    pub fn add(&mut self, vectors: &[f32]) {
        let (dim, image) = (self.dim, self.tokens * self.dim);
        let n = vectors.len() / image;
        self.count += n;
        self.product.par_chunks_exact_mut(dim * dim).zip(self.sum.par_chunks_exact_mut(dim)).enumerate().for_each(
            |(t, (product, sum))| {
                let mut rows = vec![0.0; n * dim];
                for (row, vector) in rows.chunks_exact_mut(dim).zip(vectors.chunks_exact(image)) {
                    row.copy_from_slice(&vector[t * dim..][..dim]);
                    for (s, &v) in sum.iter_mut().zip(row.iter()) {
                        *s += f64::from(v);
                    }
                }
                let epilogue = Epilogue { accumulate: true, ..Epilogue::default() };
                gemm_once(dim, dim, n, Matrix::transposed(&rows, dim), Matrix::rows(&rows, dim), product, epilogue);
            },
        );
    }

    /// The field: each cell's covariance drawn towards the mean covariance of all cells with the weight of 20 images, plus
    /// 0.05 on the diagonal; means likewise.
    ///
    /// # Errors
    /// When nothing was added or values are not finite.
    pub fn finish(self) -> Result<ResidualField> {
        let Self { tokens, dim, count, sum, product } = self;
        if count == 0 {
            return Err(Error::Internal("score: statistics over no image".into()));
        }
        let n = count as f64;
        let own = n / (n + SHRINKAGE);
        let covariance = |t: usize| {
            let mean = &sum[t * dim..][..dim];
            let product = &product[t * dim * dim..][..dim * dim];
            DMatrix::from_fn(dim, dim, |i, j| f64::from(product[i * dim + j]) / n - mean[i] / n * (mean[j] / n))
        };
        let mut pooled = DMatrix::<f64>::zeros(dim, dim);
        let mut pooled_mean = vec![0.0; dim];
        for t in 0..tokens {
            pooled += covariance(t) / tokens as f64;
            for (p, s) in pooled_mean.iter_mut().zip(&sum[t * dim..]) {
                *p += s / n / tokens as f64;
            }
        }
        let mean =
            sum.iter().enumerate().map(|(i, s)| (s / n * own + pooled_mean[i % dim] * (1.0 - own)) as f32).collect();
        let rows = (0..tokens)
            .into_par_iter()
            .map(|t| {
                let mut c = covariance(t) * own + &pooled * (1.0 - own);
                for i in 0..dim {
                    c[(i, i)] += RIDGE;
                }
                let inverse = c
                    .cholesky()
                    .and_then(|c| c.l().solve_lower_triangular(&DMatrix::identity(dim, dim)))
                    .ok_or_else(|| Error::Internal(format!("score: the covariance of cell {t} is not finite")))?;
                Ok((0..dim).flat_map(|i| (0..=i).map(move |j| (i, j))).map(|at| f16::from_f64(inverse[at])).collect())
            })
            .collect::<Result<Vec<Vec<f16>>>>()?;
        ResidualField::new(dim, mean, rows.concat())
    }
}

impl ResidualField {
    /// From the tensors of a model file: `mean` `[T, D]`, `whiten` `[T, D (D + 1) / 2]`.
    ///
    /// # Errors
    /// When the lengths do not fit each other.
    pub fn new(dim: usize, mean: Vec<f32>, whiten: Vec<f16>) -> Result<Self> {
        let tokens = mean.len() / dim.max(1);
        if mean.len() != tokens * dim || whiten.len() != tokens * dim * (dim + 1) / 2 {
            return Err(Error::Internal(format!("score: {} means, {} factors for {dim}", mean.len(), whiten.len())));
        }
        Ok(Self { dim, mean, whiten, elsewhere: OnceLock::new() })
    }

    /// `[T, D]`
    pub fn mean(&self) -> &[f32] {
        &self.mean
    }

    /// `[T, D (D + 1) / 2]`
    pub fn whiten(&self) -> &[f16] {
        &self.whiten
    }

    /// Mahalanobis distance of each cell's vector `[B, T, D]`, computed where they are: `[B, T]`.
    ///
    /// # Errors
    /// When the shape does not fit or the device fails.
    pub fn distances(&self, vectors: &Tensor) -> Result<Vec<f32>> {
        let (_, tokens, dim) = vectors.dims3()?;
        if dim != self.dim || tokens * dim != self.mean.len() {
            return Err(Error::Internal(format!("score: vectors {:?}, statistics of {}", vectors.dims(), self.dim)));
        }
        if !vectors.device().is_cpu() {
            return self.distances_in_tensors(vectors);
        }
        let values = vectors.flatten_all()?.to_vec1::<f32>()?;
        Ok(values.chunks_exact(self.mean.len()).flat_map(|v| self.distance(v)).collect())
    }

    /// Brings the statistics to a GPU now, so that the first frame of a class does not wait for them.
    ///
    /// # Errors
    /// When the device has no room for them.
    pub fn settle(&self, device: &Device) -> Result<()> {
        if device.is_cpu() { Ok(()) } else { self.on(device).map(drop) }
    }

    /// Means and factors as whole matrices, on a device.
    fn on(&self, device: &Device) -> Result<[Tensor; 2]> {
        match self.elsewhere.get() {
            Some(tensors) if tensors[0].device().same_device(device) => Ok(tensors.clone()),
            _ => {
                let tensors = self.dense(device)?;
                let _ = self.elsewhere.set(tensors.clone()); // a second device goes without
                Ok(tensors)
            }
        }
    }

    fn distances_in_tensors(&self, vectors: &Tensor) -> Result<Vec<f32>> {
        let [mean, whiten] = self.on(vectors.device())?;
        // [B, T, D] -> [T, B, D], one matrix per cell for the whole batch
        let centred = vectors.transpose(0, 1)?.contiguous()?.broadcast_sub(&mean)?;
        let squares = centred.matmul(&whiten)?.sqr()?.sum(2)?; // [T, B]
        Ok(squares.sqrt()?.t()?.flatten_all()?.to_vec1()?)
    }

    fn dense(&self, device: &Device) -> Result<[Tensor; 2]> {
        let (dim, tokens) = (self.dim, self.mean.len() / self.dim);
        let mut whole = vec![f16::ZERO; tokens * dim * dim];
        for (whole, packed) in whole.chunks_exact_mut(dim * dim).zip(self.whiten.chunks_exact(dim * (dim + 1) / 2)) {
            for i in 0..dim {
                for (j, &value) in packed[i * (i + 1) / 2..][..=i].iter().enumerate() {
                    whole[j * dim + i] = value;
                }
            }
        }
        let whiten = Tensor::from_vec(whole, (tokens, dim, dim), device)?.to_dtype(DType::F32)?;
        Ok([Tensor::from_slice(&self.mean, (tokens, 1, dim), device)?, whiten])
    }

    /// Mahalanobis distance of each cell's vector `[T, D]`: `[T]`.
    pub fn distance(&self, vectors: &[f32]) -> Vec<f32> {
        let dim = self.dim;
        let triangle = dim * (dim + 1) / 2;
        vectors
            .par_chunks_exact(dim)
            .zip(self.mean.par_chunks_exact(dim))
            .zip(self.whiten.par_chunks_exact(triangle))
            .with_min_len(32)
            .map_init(
                || (vec![0.0; dim], vec![0.0; triangle]),
                |(centred, rows), ((v, mean), whiten)| {
                    for ((c, v), m) in centred.iter_mut().zip(v).zip(mean) {
                        *c = v - m;
                    }
                    half::slice::HalfFloatSliceExt::convert_to_f32_slice(whiten, rows);
                    crate::kernels::pointwise::triangular_norm(rows, centred)
                },
            )
            .collect()
    }
}

/// Root mean square of each cell's vector `[T, D]`: `[T]`.
pub fn root_mean_squares(vectors: &[f32], dim: usize) -> Vec<f32> {
    vectors.chunks_exact(dim).map(|v| (v.iter().map(|x| x * x).sum::<f32>() / dim as f32).sqrt()).collect()
}

/// 1 - cosine between the cells of two grids `[T, C]`, the mean over groups of channels (`scales` long each, C together):
/// `[T]`, 0..=2. A vector of zeros is at right angles to everything.
pub fn cosine_distances(a: &[f32], b: &[f32], scales: &[usize]) -> Vec<f32> {
    let distance = |a: &[f32], b: &[f32]| {
        let (mut dot, mut aa, mut bb) = (0.0f32, 0.0f32, 0.0f32);
        for (a, b) in a.iter().zip(b) {
            dot += a * b;
            aa += a * a;
            bb += b * b;
        }
        1.0 - dot / (aa * bb).sqrt().max(f32::MIN_POSITIVE)
    };
    let channels = scales.iter().sum();
    let cell = |(mut a, mut b): (&[f32], &[f32])| {
        let mut sum = 0.0;
        for &n in scales {
            let (x, y);
            ((x, a), (y, b)) = (a.split_at(n), b.split_at(n));
            sum += distance(x, y);
        }
        sum / scales.len() as f32
    };
    a.chunks_exact(channels).zip(b.chunks_exact(channels)).map(cell).collect()
}

/// The two source cells and the weight of the second for output `i` of `n` over a source of `m` (bilinear, half-pixel
/// centres, edges repeated).
pub(crate) fn neighbours(i: usize, n: usize, m: usize) -> (usize, usize, f32) {
    let at = ((i as f32 + 0.5) * m as f32 / n as f32 - 0.5).clamp(0.0, (m - 1) as f32);
    let low = at as usize;
    (low, (low + 1).min(m - 1), at - low as f32)
}

/// Bilinear resize of a square map.
pub fn resize(map: &[f32], from: usize, to: usize) -> Vec<f32> {
    let mut out = Vec::with_capacity(to * to);
    for y in 0..to {
        let (y0, y1, fy) = neighbours(y, to, from);
        for x in 0..to {
            let (x0, x1, fx) = neighbours(x, to, from);
            let row = |y: usize| map[y * from + x0] * (1.0 - fx) + map[y * from + x1] * fx;
            out.push(row(y0) * (1.0 - fy) + row(y1) * fy);
        }
    }
    out
}

/// Gaussian blur of a square map, edges reflected, cut off at 4 standard deviations.
pub fn smooth(map: &[f32], side: usize, sigma: f32) -> Vec<f32> {
    if sigma <= 0.0 {
        return map.to_vec();
    }
    let radius = (4.0 * sigma).ceil() as isize;
    let mut kernel: Vec<f32> = (-radius..=radius).map(|d| (-((d * d) as f32) / (2.0 * sigma * sigma)).exp()).collect();
    let total: f32 = kernel.iter().sum();
    kernel.iter_mut().for_each(|k| *k /= total);
    let reflect = |i: isize| {
        let n = side as isize;
        let i = i.rem_euclid(2 * n);
        (if i < n { i } else { 2 * n - 1 - i }) as usize
    };
    let indices: Vec<usize> = (-radius..side as isize + radius).map(reflect).collect();
    let mut rows = vec![0.0; map.len()];
    for (line, out) in map.chunks_exact(side).zip(rows.chunks_exact_mut(side)) {
        for (x, o) in out.iter_mut().enumerate() {
            *o = kernel.iter().zip(&indices[x..]).map(|(k, &i)| k * line[i]).sum();
        }
    }
    let mut out = vec![0.0; map.len()];
    for (y, line) in out.chunks_exact_mut(side).enumerate() {
        for (k, &i) in kernel.iter().zip(&indices[y..]) {
            for (o, v) in line.iter_mut().zip(&rows[i * side..][..side]) {
                *o += k * v;
            }
        }
    }
    out
}

/// Mean of the largest `fraction` of the values, at least one of them.
pub fn top_mean(map: &[f32], fraction: f64) -> f32 {
    let count = ((map.len() as f64 * fraction).round() as usize).clamp(1, map.len().max(1));
    let mut values = map.to_vec();
    values.sort_unstable_by(|a, b| b.total_cmp(a));
    values.iter().take(count).sum::<f32>() / count as f32
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The distance is that of the textbook formula, with the stated shrinkage and ridge.
    #[test]
    fn distance_is_mahalanobis() {
        let (tokens, dim, images) = (3, 4, 50);
        let value = |i: usize| ((i as f32 * 12.9898).sin() * 43758.547).fract();
        let data: Vec<f32> = (0..images * tokens * dim).map(value).collect();
        let mut sums = ResidualSums::new(tokens, dim);
        sums.add(&data[..20 * tokens * dim]);
        sums.add(&data[20 * tokens * dim..]);
        let field = sums.finish().unwrap();
        let at = |image: usize, t: usize, d: usize| f64::from(data[(image * tokens + t) * dim + d]);
        let n = images as f64;
        let mean = |t: usize, d: usize| (0..images).map(|i| at(i, t, d)).sum::<f64>() / n;
        let cov = |t: usize, a: usize, b: usize| {
            (0..images).map(|i| (at(i, t, a) - mean(t, a)) * (at(i, t, b) - mean(t, b))).sum::<f64>() / n
        };
        let own = n / (n + 20.0);
        let query: Vec<f32> = (0..tokens * dim).map(|i| value(i + 9999)).collect();
        for (t, &got) in field.distance(&query).iter().enumerate() {
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
        let (kernel, tensors) = (field.distances(&batch).unwrap(), field.distances_in_tensors(&batch).unwrap());
        assert_eq!(kernel.len(), 2 * tokens);
        assert!(kernel.iter().zip(tensors).all(|(a, b)| (a - b).abs() < 1e-5 * a));
    }

    #[test]
    fn cosine_distance_is_that_of_directions() {
        // The same direction, a right angle, the opposite; and nothing at all.
        let values = [1.0, 0.0, 1.0, 0.0, 1.0, 0.0, 0.0, 0.0];
        let rebuilt = [3.0, 0.0, 0.0, 2.0, -1.0, 0.0, 1.0, 0.0];
        assert_eq!(cosine_distances(&values, &rebuilt, &[2]), [0.0, 1.0, 2.0, 1.0]);
        // The same as two cells of two groups each.
        assert_eq!(cosine_distances(&values, &rebuilt, &[2, 2]), [0.5, 1.5]);
    }

    #[test]
    fn smoothing_keeps_the_sum_inside_and_constants_everywhere() {
        let constant = smooth(&[2.0; 64], 8, 1.5);
        assert!(constant.iter().all(|v| (v - 2.0).abs() < 1e-5));
        let mut point = vec![0.0; 33 * 33];
        point[16 * 33 + 16] = 1.0;
        let blurred = smooth(&point, 33, 2.0);
        assert!((blurred.iter().sum::<f32>() - 1.0).abs() < 1e-5);
        // 1 / (2 pi sigma^2) at the centre
        assert!((blurred[16 * 33 + 16] - 1.0 / (std::f32::consts::TAU * 4.0)).abs() < 1e-3);
    }

    /// `torch.nn.functional.interpolate(torch.tensor([[[[0., 1.], [2., 3.]]]]), size=4, mode="bilinear")[0, 0, 1]`
    #[test]
    fn resize_is_bilinear_with_half_pixel_centres() {
        let out = resize(&[0.0, 1.0, 2.0, 3.0], 2, 4);
        assert_eq!(&out[4..8], &[0.5, 0.75, 1.25, 1.5]);
    }

    #[test]
    fn top_mean_takes_the_largest() {
        let map: Vec<f32> = (0..200).map(|i| i as f32).collect();
        assert_eq!(top_mean(&map, 0.01), 198.5);
        assert_eq!(top_mean(&map, 1e-9), 199.0);
    }
}
