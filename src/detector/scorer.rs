//! From a reconstruction to one anomaly score per cell of the feature grid.

use std::sync::Arc;

use candle_core::Tensor;

use super::known_defects::BESIDE;
use super::{DefectTerm, Reconstruction};
use crate::config::{Config, Distance, ScoreKind};
use crate::error::{Error, Result};
use crate::features::FeatureExtractor;
use crate::residuals::ResidualStatistics;

/// The configured score of a cell, with the statistics of good parts that it needs.
pub struct Scorer {
    /// Where the residuals are.
    device: candle_core::Device,
    metric: Metric,
    formula: Formula,
    /// Residuals of good parts, one per class.
    pub(super) statistics: Vec<ResidualStatistics>,
    /// By class: mean over good parts of the distance, then of the root of the noise error at each level; 1 where the formula
    /// needs no mean.
    pub(super) term_means: Vec<Vec<f32>>,
    /// By class, what known defects have taught; empty where there were none.
    pub(super) defects: Vec<Option<DefectTerm>>,
}

/// How far a cell is from its reconstruction.
enum Metric {
    /// By the statistics of the good parts' residuals.
    Mahalanobis,
    /// Root of the mean square over the channels.
    RootMeanSquare,
    /// 1 - cosine between the raw features: normalised ones are short near the mean, where an angle says nothing.
    Cosine(Arc<FeatureExtractor>),
}

/// What the score is made of.
enum Formula {
    /// The distance from the reconstruction.
    Reconstruction,
    /// The mean noise error of the levels, each in units of its mean over good parts.
    Diffusion,
    /// The distance in units of its mean over good parts, and a weight times the noise error.
    Sum(f32),
    /// The squared error of the cell, and a weight times the noise error of the whole image at the first level.
    Literal(f32),
}

impl Scorer {
    /// With the statistics of each class, and means of 1 for all terms.
    ///
    /// # Errors
    /// When the device of the features has no room for the statistics.
    pub fn new(
        config: &Config,
        statistics: Vec<ResidualStatistics>,
        extractor: &Arc<FeatureExtractor>,
    ) -> Result<Self> {
        let metric = match config.detection.distance {
            Distance::Mahalanobis => Metric::Mahalanobis,
            Distance::L2 => Metric::RootMeanSquare,
            Distance::Cosine => Metric::Cosine(extractor.clone()),
        };
        let weight = config.detection.diffusion_weight as f32;
        let formula = match config.detection.score {
            ScoreKind::Reconstruction => Formula::Reconstruction,
            ScoreKind::Diffusion => Formula::Diffusion,
            ScoreKind::Sum => Formula::Sum(weight),
            ScoreKind::Literal => Formula::Literal(weight),
        };
        let term_means = vec![vec![1.0; terms(config)]; statistics.len()];
        let device = extractor.device().candle();
        let statistics = match metric {
            Metric::Mahalanobis => statistics.into_iter().map(|class| class.on(device)).collect::<Result<_>>()?,
            Metric::RootMeanSquare | Metric::Cosine(_) => statistics,
        };
        Ok(Self { device: device.clone(), metric, formula, statistics, term_means, defects: Vec::new() })
    }

    /// The same with the means of the terms, by class.
    ///
    /// # Errors
    /// When their numbers do not fit.
    pub fn with_term_means(self, term_means: Vec<Vec<f32>>) -> Result<Self> {
        let lengths = |means: &[Vec<f32>]| means.iter().map(Vec::len).collect::<Vec<_>>();
        let (got, expected) = (lengths(&term_means), lengths(&self.term_means));
        if got != expected {
            return Err(Error::Internal(format!("scorer: {got:?} means by class, expected {expected:?}")));
        }
        Ok(Self { term_means, ..self })
    }

    /// The same with what known defects have taught, by class: `[D + 2]` numbers each, see [`DefectTerm`].
    ///
    /// # Errors
    /// When there is a term and the score is not the Mahalanobis distance, or its numbers do not fit.
    pub fn with_known_defects(self, terms: Vec<Option<Vec<f32>>>) -> Result<Self> {
        let suits = matches!((&self.metric, &self.formula), (Metric::Mahalanobis, Formula::Reconstruction));
        if terms.len() != self.statistics.len() || terms.iter().any(Option::is_some) && !suits {
            return Err(Error::Internal(format!("scorer: {} terms of known defects do not fit", terms.len())));
        }
        let term = |(weights, class): (Option<Vec<f32>>, &ResidualStatistics)| {
            weights.map(|weights| DefectTerm::new(weights, class, &self.device)).transpose()
        };
        let defects = terms.into_iter().zip(&self.statistics).map(term).collect::<Result<_>>()?;
        Ok(Self { defects, ..self })
    }

    /// The numbers of the terms that known defects have taught, `[classes, D + 2]`; 0 for classes without one.
    pub(super) fn defect_weights(&self, dim: usize) -> Result<Tensor> {
        let width = dim + BESIDE;
        let none = vec![0.0; width];
        let own =
            |class: usize| self.defects.get(class).and_then(Option::as_ref).map_or(&none[..], DefectTerm::weights);
        let all: Vec<f32> = (0..self.statistics.len()).flat_map(own).copied().collect();
        Ok(Tensor::from_vec(all, (self.statistics.len(), width), &candle_core::Device::Cpu)?)
    }

    /// By cell of B samples with `residuals` `[B, T, D]`, for one class, whitened residuals `[T, D]` and distances `[T]` of each.
    #[cfg(feature = "train")]
    pub(super) fn whitened(&self, residuals: &Tensor, class: usize) -> Result<Vec<(Vec<f32>, Vec<f32>)>> {
        let statistics = &self.statistics[class];
        let cells = statistics.scales().first().ok_or_else(|| Error::Internal("scorer: no statistics".into()))?;
        let (_, tokens, dim) = residuals.dims3()?;
        let whitened = cells.whitened(&to_host(residuals)?);
        let distances = statistics.distances(residuals)?;
        let each = whitened.chunks_exact(tokens * dim).zip(distances.chunks_exact(tokens));
        Ok(each.map(|(whitened, distances)| (whitened.to_vec(), distances.to_vec())).collect())
    }

    /// Distance of each cell of B samples with `features` `[B, T, D]` and `residuals` `[B, T, D]`, for one class: `[B, T]`.
    ///
    /// # Errors
    /// When shapes do not fit or the device fails.
    pub fn distances(&self, features: &Tensor, residuals: &Tensor, class: usize) -> Result<Vec<f32>> {
        Ok(match &self.metric {
            Metric::Mahalanobis => self.statistics[class].distances(residuals)?,
            Metric::RootMeanSquare => root_mean_squares(&to_host(residuals)?, residuals.dim(2)?),
            Metric::Cosine(extractor) => {
                let raw = |features: &Tensor| Ok::<_, Error>(extractor.denormalise(&to_host(features)?));
                cosine_distances(&raw(features)?, &raw(&(features - residuals)?)?, &extractor.scales())
            }
        })
    }

    /// Score of each cell of B samples, `[B, T]`, from their features `[B, T, D]` and the reconstruction of these, for one class.
    ///
    /// # Errors
    /// When shapes do not fit or the device fails.
    pub fn cells(&self, features: &Tensor, reconstruction: &Reconstruction, class: usize) -> Result<Vec<f32>> {
        let rebuilt = || self.distances(features, &reconstruction.residuals, class);
        let means = &self.term_means[class];
        Ok(match self.formula {
            Formula::Reconstruction => {
                let mut scores = rebuilt()?;
                if let Some(Some(term)) = self.defects.get(class) {
                    term.add(&mut scores, &reconstruction.residuals)?;
                }
                scores
            }
            Formula::Diffusion => noise_error(reconstruction, means)?,
            Formula::Sum(weight) => {
                let noise = noise_error(reconstruction, means)?;
                rebuilt()?.iter().zip(noise).map(|(r, n)| r / means[0] + weight * n).collect()
            }
            Formula::Literal(weight) => {
                let (_, tokens, dim) = features.dims3()?;
                let first = reconstruction.noise_errors.first().map(to_host).transpose()?.unwrap_or_default();
                let squares = root_mean_squares(&to_host(&reconstruction.residuals)?, dim);
                let image = |cells: &[f32]| cells.iter().sum::<f32>() / cells.len() as f32;
                let samples = squares.chunks_exact(tokens).zip(first.chunks_exact(tokens));
                samples
                    .flat_map(|(cells, errors)| {
                        let image = image(errors);
                        cells.iter().map(move |r| r * r + weight * image)
                    })
                    .collect()
            }
        })
    }
}

/// Terms that a score can be made of: the distance from the reconstruction, and the noise error at each level.
pub(super) fn terms(config: &Config) -> usize {
    1 + config.detection.diffusion_alpha_bars.len()
}

/// The mean over the levels of the root of the noise error, each in units of its mean over good parts: `[B, T]`.
fn noise_error(reconstruction: &Reconstruction, term_means: &[f32]) -> Result<Vec<f32>> {
    let (levels, residuals) = (&reconstruction.noise_errors, &reconstruction.residuals);
    let mut sum = vec![0.0; residuals.dim(0)? * residuals.dim(1)?];
    for (errors, mean) in levels.iter().zip(&term_means[1..]) {
        for (s, e) in sum.iter_mut().zip(to_host(errors)?) {
            *s += e.sqrt() / mean / levels.len() as f32;
        }
    }
    Ok(sum)
}

fn to_host(tensor: &Tensor) -> candle_core::Result<Vec<f32>> {
    tensor.flatten_all()?.to_vec1()
}

/// Root of the mean square of each cell's vector `[T, D]`: `[T]`.
fn root_mean_squares(vectors: &[f32], dim: usize) -> Vec<f32> {
    vectors.chunks_exact(dim).map(|v| (v.iter().map(|x| x * x).sum::<f32>() / dim as f32).sqrt()).collect()
}

/// 1 - the cosine between the cells of two grids `[T, C]`, as its mean over the backbone's scales, which have `scales` channels
/// each, C together: `[T]`, 0..=2. A vector of zeros counts as at right angles to everything.
fn cosine_distances(a: &[f32], b: &[f32], scales: &[usize]) -> Vec<f32> {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cosine_distance_is_that_of_directions() {
        // The same direction, a right angle, the opposite; and nothing at all.
        let values = [1.0, 0.0, 1.0, 0.0, 1.0, 0.0, 0.0, 0.0];
        let rebuilt = [3.0, 0.0, 0.0, 2.0, -1.0, 0.0, 1.0, 0.0];
        assert_eq!(cosine_distances(&values, &rebuilt, &[2]), [0.0, 1.0, 2.0, 1.0]);
        // The same as two cells of two groups each.
        assert_eq!(cosine_distances(&values, &rebuilt, &[2, 2]), [0.5, 1.5]);
    }
}
