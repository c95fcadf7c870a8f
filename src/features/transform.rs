//! The feature transform: z-score per channel, PCA with partial whitening, one factor to unit variance.
//!
//! It is fitted once, on features of good training images, and stored in the model file. Diffusion adds noise of variance 1 to
//! the features: a signal-to-noise ratio means what it says only because their variance is 1 as well.

use candle_core::{Device, Tensor};
use rayon::prelude::*;

use crate::error::{Error, Result};
use crate::kernels::gemm::{Epilogue, Factors, Matrix, Packed, gemm, gemm_once};
use crate::model::Weights;

#[cfg(feature = "train")]
mod fit;

/// From raw features of C channels to normalised ones of D channels.
#[derive(Clone)]
pub struct FeatureTransform {
    mean: Vec<f32>,       // [C]
    deviation: Vec<f32>,  // [C]
    projection: Vec<f32>, // [C, D]
    packed: Packed,       // the projection, laid out for the matrix product
    clamp: f32,           // bound on the absolute z-score
    /// On a GPU: mean, deviation and projection.
    on_gpu: Option<[Tensor; 3]>,
}

/// Names of the tensors in a model file.
const NAMES: [&str; 3] = ["features.mean", "features.deviation", "features.projection"];

impl FeatureTransform {
    fn set_projection(&mut self, projection: Vec<f32>) {
        let dim = projection.len() / self.mean.len();
        self.packed = Packed::new(Factors::F32, self.mean.len(), dim, Matrix::rows(&projection, dim));
        self.projection = projection;
    }

    fn standardise(&self, row: &mut [f32]) {
        for ((x, m), d) in row.iter_mut().zip(&self.mean).zip(&self.deviation) {
            *x = ((*x - m) / d).clamp(-self.clamp, self.clamp);
        }
    }

    /// Channels in.
    pub fn channels(&self) -> usize {
        self.mean.len()
    }

    /// Channels out.
    pub fn dim(&self) -> usize {
        self.projection.len() / self.mean.len()
    }

    /// Raw features `[B, T, C]` to normalised ones `[B, T, D]`. Those on a GPU need the transform there, see
    /// [`FeatureTransform::on`].
    ///
    /// # Errors
    /// When the shape does not fit or the device fails.
    pub fn normalise(&self, raw: &Tensor) -> Result<Tensor> {
        let (batch, tokens, channels) = raw.dims3()?;
        if channels != self.channels() {
            return Err(Error::Internal(format!("features: {channels} channels, fitted to {}", self.channels())));
        }
        if let Some(transform) = &self.on_gpu {
            return self.normalise_in_tensors(transform, raw);
        }
        let values = raw.flatten_all()?.to_vec1::<f32>()?;
        let values =
            values.par_chunks_exact(tokens * channels).flat_map_iter(|raw| self.apply(raw)).collect::<Vec<_>>();
        Ok(Tensor::from_vec(values, (batch, tokens, self.dim()), raw.device())?)
    }

    fn normalise_in_tensors(&self, [mean, deviation, projection]: &[Tensor; 3], raw: &Tensor) -> Result<Tensor> {
        let (batch, tokens, channels) = raw.dims3()?;
        let z = raw.reshape((batch * tokens, channels))?.broadcast_sub(mean)?.broadcast_div(deviation)?;
        let z = z.clamp(-self.clamp, self.clamp)?;
        Ok(z.matmul(projection)?.reshape((batch, tokens, self.dim()))?)
    }

    /// The same for raw features on a device: a GPU gets a copy of the transform now.
    ///
    /// # Errors
    /// When the device fails.
    pub fn on(mut self, device: &Device) -> Result<Self> {
        if !device.is_cpu() {
            let [mean, deviation, projection] = self.tensors()?.map(|(_, tensor)| tensor.to_device(device));
            self.on_gpu = Some([mean?, deviation?, projection?]);
        }
        Ok(self)
    }

    /// Raw features of one image `[T, C]` to normalised ones `[T, D]`.
    pub fn apply(&self, raw: &[f32]) -> Vec<f32> {
        let (channels, dim) = (self.channels(), self.dim());
        let tokens = raw.len() / channels;
        let mut z = raw.to_vec();
        z.chunks_exact_mut(channels).for_each(|row| self.standardise(row));
        let mut out = vec![0.0; tokens * dim];
        gemm(tokens, Matrix::rows(&z, channels), &self.packed, &mut out, Epilogue::default());
        out
    }

    /// The inverse of [`FeatureTransform::apply`]: raw features `[T, C]` whose normalised ones are `values` `[T, D]`. Where D is
    /// less than C there are many; these are the ones nearest to the mean.
    pub fn invert(&self, values: &[f32]) -> Vec<f32> {
        let (channels, dim) = (self.channels(), self.dim());
        // The columns of the projection are at right angles: its pseudo-inverse is its transpose, each row over the square
        // of its length.
        let mut squares = vec![0.0f32; dim];
        for row in self.projection.chunks_exact(dim) {
            squares.iter_mut().zip(row).for_each(|(s, p)| *s += p * p);
        }
        let scaled: Vec<f32> =
            values.chunks_exact(dim).flat_map(|v| v.iter().zip(&squares).map(|(v, s)| v / s)).collect();
        let mut out = vec![0.0; values.len() / dim * channels];
        let transposed = Matrix::transposed(&self.projection, dim);
        gemm_once(
            Factors::F32,
            [out.len() / channels, channels, dim],
            Matrix::rows(&scaled, dim),
            transposed,
            &mut out,
            Epilogue::default(),
        );
        for row in out.chunks_exact_mut(channels) {
            for ((x, m), d) in row.iter_mut().zip(&self.mean).zip(&self.deviation) {
                *x = *x * d + m;
            }
        }
        out
    }

    /// Tensors for the model file.
    ///
    /// # Errors
    /// Never for a fitted transform.
    pub fn tensors(&self) -> Result<[(String, Tensor); 3]> {
        let (c, d, cpu) = (self.channels(), self.dim(), &Device::Cpu);
        Ok([
            (NAMES[0].into(), Tensor::from_slice(&self.mean, c, cpu)?),
            (NAMES[1].into(), Tensor::from_slice(&self.deviation, c, cpu)?),
            (NAMES[2].into(), Tensor::from_slice(&self.projection, (c, d), cpu)?),
        ])
    }

    /// Names and shapes of `tensors` for `channels` in and `dim` out.
    pub fn shapes(channels: usize, dim: usize) -> Vec<(String, Vec<usize>)> {
        let shapes = [vec![channels], vec![channels], vec![channels, dim]];
        NAMES.iter().map(ToString::to_string).zip(shapes).collect()
    }

    /// From the tensors of a model file.
    ///
    /// # Errors
    /// When a tensor is missing.
    pub fn load(tensors: &Weights, clamp: f64) -> Result<Self> {
        let get = |name: &str| -> Result<Vec<f32>> {
            let tensor = tensors.get(name).ok_or_else(|| Error::Internal(format!("features: {name} is missing")))?;
            Ok(tensor.flatten_all()?.to_vec1()?)
        };
        let mut transform = Self {
            mean: get(NAMES[0])?,
            deviation: get(NAMES[1])?,
            projection: Vec::new(),
            packed: Packed::default(),
            clamp: clamp as f32,
            on_gpu: None,
        };
        transform.set_projection(get(NAMES[2])?);
        Ok(transform)
    }
}

#[cfg(all(test, feature = "train"))]
mod tests {
    use super::*;

    /// Rows of correlated numbers of different scales and means, `[n, 6]`.
    fn rows(n: usize) -> Vec<f32> {
        let number = |i: usize| ((i as f32 * 12.9898).sin() * 43758.547).fract();
        (0..n)
            .flat_map(|i| {
                let (a, b) = (number(2 * i), number(2 * i + 1));
                (0..6).map(move |c| (c as f32) * 3.0 + a * (c as f32 - 2.5) + b + number(i * 6 + c + 99_999) * 0.3)
            })
            .collect()
    }

    #[test]
    fn tensor_operations_give_what_the_kernels_give() {
        let values = |t: Tensor| t.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        let raw = rows(200);
        let transform = FeatureTransform::fit(&raw, 6, 4, 0.5, 2.0).unwrap();
        let raw = Tensor::from_vec(raw, (4, 50, 6), &Device::Cpu).unwrap();
        let tensors = transform.tensors().unwrap().map(|(_, tensor)| tensor);
        let (a, b) = (transform.normalise(&raw).unwrap(), transform.normalise_in_tensors(&tensors, &raw).unwrap());
        assert_eq!(b.dims(), [4, 50, 4]);
        assert!(values(a).iter().zip(values(b)).all(|(a, b)| (a - b).abs() < 1e-5));
    }

    /// Every direction kept: features come back. Fewer kept: what comes back has the same normalised features.
    #[test]
    fn normalised_features_have_raw_ones() {
        let raw = rows(200);
        let near = |a: &[f32], b: &[f32]| a.iter().zip(b).all(|(a, b)| (a - b).abs() < 1e-3);
        let whole = FeatureTransform::fit(&raw, 6, 6, 0.5, 6.0).unwrap();
        assert!(near(&whole.invert(&whole.apply(&raw)), &raw));
        let part = FeatureTransform::fit(&raw, 6, 3, 0.5, 6.0).unwrap();
        let values = part.apply(&raw);
        let back = part.invert(&values);
        assert!(near(&part.apply(&back), &values));
        assert!(!near(&back, &raw), "three of six directions cannot hold everything");
    }
}
