//! A few known defects, where there are any: a term beside the distance that learns from them which directions of the residual mean
//! defect, and what it is worth.
//!
//! The term is a logistic regression on the whitened residual of a cell and its distance: cells of defects against cells of good
//! parts that the statistics have not seen. Its logit and the distance are added in units of their deviation over good cells. What
//! it is worth is measured out of fold over the good parts and over the defects; where it is worth nothing it is left out.

use std::path::{Path, PathBuf};

use rayon::prelude::*;

use super::logistic::Rows;
use crate::bundle::{DefectImageCard, KnownDefectsCard, ScoreSource};
use crate::calibrate;
use crate::config::{Config, Distance, ScoreKind, Size};
use crate::data::{Input, Sample, SampleDepth};
use crate::detector::{DefectTerm, Network};
use crate::error::{Error, Result};
use crate::frame::{Geometry, Preparation, Prepared, read_mask};
use crate::metrics::Ranking;

/// Fewer defects of a class than this teach nothing: what they have in common could not be told from what they have not.
pub const FEWEST_DEFECTS: usize = 3;

/// Folds of the good parts, and of the defects, over which the term is measured.
pub(super) const FOLDS: usize = 5;

/// Cells of good parts that a term is fitted to, at most.
const GOOD_CELLS: usize = 16_384;

/// A cell shows a defect when this share of it is marked.
const MARKED_SHARE: f64 = 0.25;

/// Of an image whose defect is not marked, the share of its cells with the highest distance that stand for it.
const HIGHEST_SHARE: f64 = 1.0 / 64.0;

/// A known defect, prepared.
pub struct KnownDefect {
    /// The file.
    pub path: PathBuf,
    /// SHA-256 of the file and of the decoded pixels.
    pub digests: [String; 2],
    input: Prepared,
    /// Whether each cell shows the defect, `[T]`; absent without a mask.
    marked: Option<Vec<bool>>,
}

impl KnownDefect {
    /// Reads an image and its mask.
    ///
    /// # Errors
    /// When one of them cannot be read.
    pub fn read(sample: &Sample, preparation: &Preparation, class: usize, depth: &SampleDepth) -> Result<Self> {
        let mut read = Input::read(&sample.path, preparation, class, depth)?.located(&sample.path)?;
        let (digests, input) = (read.digests(), read.inputs.swap_remove(0));
        let shape = preparation.shapes().distinct()[preparation.shapes().of(class)];
        let mark = |mask: &PathBuf| -> Result<Vec<bool>> {
            let [width, height] = input.geometry.original;
            let on_input = input.geometry.onto_input(&read_mask(mask, width, height)?);
            Ok(marked_cells(&on_input, shape.input, shape.grid))
        };
        let marked = sample.mask.as_ref().map(mark).transpose()?.filter(|cells| cells.contains(&true));
        Ok(Self { path: sample.path.clone(), digests, input, marked })
    }
}

/// Refuses known defects where the score has no place for what they teach.
///
/// # Errors
/// [`Error::Usage`] that names the keys.
pub fn check_known_defects(config: &Config) -> Result<()> {
    let detection = &config.detection;
    if detection.takes_known_defects() {
        return Ok(());
    }
    Err(Error::Usage(format!(
        "--defects: known defects teach a score of detection.distance = {} and detection.score = {}; it is {} and {}",
        Distance::Mahalanobis,
        ScoreKind::Reconstruction,
        detection.distance,
        detection.score
    )))
}

/// Refuses a defect that is among the good images as well, `good` by the digests of their pixels.
///
/// # Errors
/// [`Error::Data`] that names both.
pub fn check_not_good<'a>(
    defects: &[KnownDefect],
    mut good: impl Iterator<Item = (&'a Path, &'a [String; 2])>,
) -> Result<()> {
    let of = |digests: &[String; 2]| {
        defects.iter().find(|defect| defect.digests.iter().any(|digest| digests.contains(digest)))
    };
    match good.find_map(|(path, digests)| Some((path, of(digests)?))) {
        Some((path, defect)) => {
            let reason = format!("is the same image as {}, which is among the good ones", path.display());
            Err(Error::data(&defect.path, reason))
        }
        None => Ok(()),
    }
}

/// The cells of which enough is marked; the one with most, where none has enough.
fn marked_cells(mask: &[bool], size: Size, grid: Size) -> Vec<bool> {
    let cell = Size::new(size.width / grid.width, size.height / grid.height);
    let marked = |at: usize| {
        let rows = mask.chunks_exact(size.width).skip(at / grid.width * cell.height).take(cell.height);
        rows.flat_map(|row| &row[at % grid.width * cell.width..][..cell.width]).filter(|marked| **marked).count()
    };
    let counts: Vec<usize> = (0..grid.area()).map(marked).collect();
    let most = counts.iter().copied().max().unwrap_or(0);
    let enough = (MARKED_SHARE * cell.area() as f64).min(most as f64).max(1.0);
    counts.into_iter().map(|count| count as f64 >= enough).collect()
}

/// What a network sees in the cells of one image.
pub(super) struct Cells {
    class: usize,
    whitened: Vec<f32>,  // [T, D]
    distances: Vec<f32>, // [T]
    geometry: Geometry,
}

impl Cells {
    /// Of images as parts of one class.
    pub(super) fn of(network: &Network, inputs: &[&Prepared], class: usize) -> Result<Vec<Self>> {
        let found = network.cells(inputs, class)?;
        let cells = |((whitened, distances), input): (_, &&Prepared)| Self {
            class,
            whitened,
            distances,
            geometry: input.geometry,
        };
        Ok(found.into_iter().zip(inputs).map(cells).collect())
    }

    /// The image score, with a term or without.
    fn score(&self, network: &Network, weights: Option<&[f32]>) -> f32 {
        self.found(network, weights)[0]
    }

    /// The image score and the highest value of the map.
    fn found(&self, network: &Network, weights: Option<&[f32]>) -> [f32; 2] {
        let cells = match weights {
            None => self.distances.clone(),
            Some(weights) => self.vectors().map(|(u, d)| DefectTerm::score(weights, u, d)).collect(),
        };
        let (score, map) = network.map(self.class, cells, self.geometry);
        [score, map.peak()]
    }

    fn vectors(&self) -> impl Iterator<Item = (&[f32], f32)> {
        self.whitened.chunks_exact(self.whitened.len() / self.distances.len()).zip(self.distances.iter().copied())
    }
}

/// A good part as a network sees it that has not seen it.
pub(super) struct GoodPart {
    pub(super) cells: Cells,
    /// Parts of one fold are left out together.
    pub(super) fold: usize,
}

/// The defects of a class as a network sees them.
pub(super) fn seen_by(network: &Network, defects: &[KnownDefect], class: usize) -> Result<Vec<Cells>> {
    let inputs: Vec<&Prepared> = defects.iter().map(|defect| &defect.input).collect();
    Cells::of(network, &inputs, class)
}

/// Fresh good parts of one class, as a finished model sees them.
#[derive(Default)]
pub struct FreshParts(Vec<Cells>);

/// What known defects have taught a finished model of one class.
pub struct Taught {
    /// The numbers of the term, `[D + 2]`; absent where it does not help.
    pub term: Option<Vec<f32>>,
    /// The known defects, for the card.
    pub card: KnownDefectsCard,
    /// Score and highest map value of each good part: without the term, and by one that has not seen it.
    pub good: [Vec<[f32; 2]>; 2],
}

impl FreshParts {
    /// Adds some.
    ///
    /// # Errors
    /// When the device fails.
    pub fn look(&mut self, network: &Network, inputs: &[&Prepared], class: usize) -> Result<()> {
        self.0.extend(Cells::of(network, inputs, class)?);
        Ok(())
    }

    /// Lets `defects` teach, of which there is at least one. `groups` has the group of each good part; `rate` is the promised rate of
    /// false rejects.
    ///
    /// # Errors
    /// When there are no good parts, or the device fails.
    pub fn teach(
        self,
        network: &Network,
        class: usize,
        groups: &[u32],
        defects: &[KnownDefect],
        rate: f64,
    ) -> Result<Taught> {
        let folds = groups.iter().map(|&group| group as usize % FOLDS);
        let parts: Vec<GoodPart> =
            self.0.into_iter().zip(folds).map(|(cells, fold)| GoodPart { cells, fold }).collect();
        let seen = seen_by(network, defects, class)?;
        let learned = Learned::of(network, &parts, defects, &seen)?;
        let plain: Vec<[f32; 2]> = parts.par_iter().map(|part| part.cells.found(network, None)).collect();
        let mut with = plain.clone();
        if learned.weights.is_some() {
            for fold in 0..FOLDS {
                let own: Vec<usize> = (0..parts.len()).filter(|&i| parts[i].fold == fold).collect();
                if own.is_empty() || own.len() == parts.len() {
                    continue;
                }
                let weights = fit(&parts, |part| part.fold != fold, defects, &seen, |_| true)?;
                own.into_iter().for_each(|i| with[i] = parts[i].cells.found(network, Some(&weights)));
            }
        }
        let scores = |found: &[[f32; 2]]| found.iter().map(|found| found[0]).collect::<Vec<f32>>();
        let card = learned.judge(defects, [&scores(&plain), &scores(&with)], groups, ScoreSource::Fresh, rate)?;
        let term = learned.weights.filter(|_| card.taught);
        Ok(Taught { term, card, good: [plain, with] })
    }
}

/// What the known defects of one class have taught a network, before it is known whether that helps.
#[derive(Default)]
pub(super) struct Learned {
    /// The numbers of the term, `[D + 2]`; absent where there are too few defects.
    pub(super) weights: Option<Vec<f32>>,
    /// Image score of each defect without a term, and by a term of the others.
    scores: [Vec<f32>; 2],
}

impl Learned {
    /// Fits a term: `good` and `seen` (of `defects`) are what the network sees.
    pub(super) fn of(network: &Network, good: &[GoodPart], defects: &[KnownDefect], seen: &[Cells]) -> Result<Self> {
        let plain: Vec<f32> = seen.par_iter().map(|cells| cells.score(network, None)).collect();
        if defects.len() < FEWEST_DEFECTS {
            return Ok(Self { weights: None, scores: [plain.clone(), plain] });
        }
        let mut with = plain.clone();
        let folds = FOLDS.min(defects.len());
        for fold in 0..folds {
            let weights = fit(good, |_| true, defects, seen, |i| i % folds != fold)?;
            let own = (0..defects.len()).filter(|i| i % folds == fold);
            own.for_each(|i| with[i] = seen[i].score(network, Some(&weights)));
        }
        let weights = Some(fit(good, |_| true, defects, seen, |_| true)?);
        Ok(Self { weights, scores: [plain, with] })
    }

    /// Whether the term helps: `good` are the scores of good parts, from `source`, without a term, and by terms that have not seen them. No more of
    /// the defects may pass at the promised `rate`; and fewer pass, or they rise among the good parts by more than the standard error
    /// of that.
    pub(super) fn judge(
        &self,
        defects: &[KnownDefect],
        good: [&[f32]; 2],
        groups: &[u32],
        source: ScoreSource,
        rate: f64,
    ) -> Result<KnownDefectsCard> {
        let [before, after] = &self.scores;
        let escapes = [escapes(good[0], groups, source, before, rate)?, escapes(good[1], groups, source, after, rate)?];
        let (rise, error) = rise(good[0], before, good[1], after);
        let better = escapes[1] < escapes[0] && rise >= 0.0 || escapes[1] == escapes[0] && rise > error;
        let taught = self.weights.is_some() && better;
        let image = |(defect, &score): (&KnownDefect, &f32)| {
            let [file_sha256, pixels_sha256] = defect.digests.clone();
            DefectImageCard { file_sha256, pixels_sha256, marked: defect.marked.is_some(), score }
        };
        let mut images: Vec<_> = defects.iter().zip(if taught { after } else { before }).map(image).collect();
        images.sort_by(|a, b| a.score.total_cmp(&b.score));
        let (auroc_without, auroc_with) = (area(good[0], before)?, area(good[1], after)?);
        Ok(KnownDefectsCard { taught, auroc_without, auroc_with, images })
    }
}

/// Area under the ROC curve of image scores.
fn area(good: &[f32], defects: &[f32]) -> Result<f64> {
    let labels: Vec<bool> = good.iter().map(|_| false).chain(defects.iter().map(|_| true)).collect();
    Ok(Ranking::new(&[good, defects].concat(), &labels)?.auroc().unwrap_or(0.5))
}

/// By how much the defects rise among the good parts, in shares of these, and the standard error of that.
fn rise(good_before: &[f32], before: &[f32], good_after: &[f32], after: &[f32]) -> (f64, f64) {
    let place = |good: &[f32], score: f32| {
        let halves = |good: f32| if good < score { 2.0 } else { f64::from(u8::from(good == score)) };
        good.iter().map(|&good| halves(good)).sum::<f64>() / (2.0 * good.len() as f64)
    };
    let rise = |(&before, &after): (&f32, &f32)| place(good_after, after) - place(good_before, before);
    let rises: Vec<f64> = before.iter().zip(after).map(rise).collect();
    let n = rises.len() as f64;
    let mean = rises.iter().sum::<f64>() / n;
    let variance = rises.iter().map(|rise| (rise - mean).powi(2)).sum::<f64>() / (n - 1.0).max(1.0);
    (mean, (variance / n).sqrt())
}

/// Defects that are not above the threshold which these good parts give.
fn escapes(good: &[f32], groups: &[u32], source: ScoreSource, defects: &[f32], rate: f64) -> Result<usize> {
    let (sorted, groups) = calibrate::sorted(good.iter().copied().zip(groups.iter().copied()).collect())?;
    let good = source.good_scores(&sorted, &groups);
    let rate = rate.max(calibrate::smallest_rate(good.groups()));
    let threshold = good.threshold(rate)?.value;
    Ok(defects.iter().filter(|score| **score <= threshold).count())
}

/// The numbers of the term, `[D + 2]`, from the good parts and defects that are wanted.
pub(super) fn fit(
    good: &[GoodPart],
    wanted: impl Fn(&GoodPart) -> bool,
    defects: &[KnownDefect],
    seen: &[Cells],
    wanted_defect: impl Fn(usize) -> bool,
) -> Result<Vec<f32>> {
    let good: Vec<&GoodPart> = good.iter().filter(|part| wanted(part)).collect();
    let cells: usize = good.iter().map(|part| part.cells.distances.len()).sum();
    let Some(first) = good.first() else { return Err(Error::Internal("defects: no good part to compare with".into())) };
    let dim = first.cells.whitened.len() / first.cells.distances.len();

    // Rows of the whitened residual, the distance and 1; a weight and a sign for each.
    let every = cells.div_ceil(GOOD_CELLS).max(1);
    let negatives = good.iter().flat_map(|part| part.cells.vectors()).step_by(every);
    let mut rows = Rows::new(dim);
    negatives.for_each(|(u, d)| rows.push(u, d, -1.0));
    let count = rows.signs.len();
    rows.weights.fill(0.5 / count as f64);
    let (mean, deviation) = moments(rows.distances());
    let chosen = || (0..defects.len()).filter(|&i| wanted_defect(i));
    let images = chosen().count() as f64;
    for i in chosen() {
        let positive: Vec<_> = positives(&seen[i], defects[i].marked.as_deref());
        let weight = 0.5 / (images * positive.len() as f64);
        for (u, d) in positive {
            rows.push(u, d, 1.0);
            rows.weights.push(weight);
        }
    }
    rows.standardise(mean, deviation);
    let logit = rows.regress()?;

    // In units of good cells: the distance, and the logit in its deviation.
    let logits: Vec<f64> = (0..count).map(|i| rows.product(i, &logit)).collect();
    let (logit_mean, logit_deviation) = moments(logits.into_iter());
    let unit = if logit_deviation > 1e-9 { deviation / logit_deviation } else { 0.0 };
    let direction = logit.iter().take(dim).map(|w| (unit * w) as f32);
    let distance = unit * logit[dim] / deviation;
    let offset = unit * (logit[dim + 1] - logit_mean) - distance * mean;
    Ok(direction.chain([distance as f32, offset as f32]).collect())
}

/// The cells that show a defect.
fn positives<'a>(seen: &'a Cells, marked: Option<&[bool]>) -> Vec<(&'a [f32], f32)> {
    match marked {
        Some(marked) => seen.vectors().zip(marked).filter(|(_, marked)| **marked).map(|(cell, _)| cell).collect(),
        None => {
            let mut all: Vec<_> = seen.vectors().collect();
            all.sort_by(|a, b| b.1.total_cmp(&a.1));
            all.truncate(((all.len() as f64 * HIGHEST_SHARE).round() as usize).max(1));
            all
        }
    }
}

/// Mean and standard deviation.
fn moments(values: impl Iterator<Item = f64> + Clone) -> (f64, f64) {
    let n = values.clone().count() as f64;
    let mean = values.clone().sum::<f64>() / n;
    let variance = values.map(|v| (v - mean).powi(2)).sum::<f64>() / n;
    (mean, variance.sqrt().max(f64::from(f32::MIN_POSITIVE)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn geometry() -> Geometry {
        Geometry {
            original: [64, 64],
            input: Size::square(64),
            valid: [0.0, 0.0, 64.0, 64.0],
            shown: [0.0, 0.0, 64.0, 64.0],
            pose: None,
        }
    }

    fn noise(i: usize) -> f32 {
        2.0 * ((i as f32 * 12.9898).sin() * 43758.547).fract() - 1.0
    }

    /// Cells that differ from good ones in one direction only, which the distance does not show.
    fn cells(seed: usize, shift: f32) -> Cells {
        let (tokens, dim) = (16, 4);
        let mut whitened: Vec<f32> = (0..tokens * dim).map(|i| noise(seed * 1000 + i)).collect();
        whitened.iter_mut().skip(2).step_by(dim).for_each(|v| *v += shift);
        Cells {
            class: 0,
            whitened,
            distances: (0..tokens).map(|i| 5.0 + noise(seed * 77 + i)).collect(),
            geometry: geometry(),
        }
    }

    fn defect(marked: Option<Vec<bool>>) -> KnownDefect {
        let frame = crate::frame::Frame::new(8, 8, vec![0; 192]).unwrap();
        let input = Prepared { frame, geometry: geometry(), shape: 0, lost: false };
        KnownDefect { path: PathBuf::new(), digests: Default::default(), input, marked }
    }

    #[test]
    fn a_term_finds_the_direction_of_the_defects_and_leaves_good_cells_where_they_are() {
        let good: Vec<_> = (0..40).map(|i| GoodPart { cells: cells(i, 0.0), fold: i }).collect();
        let seen: Vec<_> = (0..6).map(|i| cells(100 + i, 3.0)).collect();
        let defects: Vec<_> = (0..6).map(|_| defect(Some(vec![true; 16]))).collect();
        let weights = fit(&good, |_| true, &defects, &seen, |_| true).unwrap();
        assert!(weights[2] > 0.0 && [0, 1, 3].iter().all(|&i| weights[i].abs() < weights[2] / 2.0), "{weights:?}");
        let mean = |cells: &Cells| {
            let scores = cells.vectors().map(|(u, d)| DefectTerm::score(&weights, u, d));
            scores.sum::<f32>() / 16.0
        };
        let (plain, with) = (
            good.iter().map(|p| p.cells.distances.iter().sum::<f32>() / 16.0).sum::<f32>() / 40.0,
            good.iter().map(|part| mean(&part.cells)).sum::<f32>() / 40.0,
        );
        assert!((plain - with).abs() < 0.05, "{plain}, {with}");
        let highest = good.iter().map(|part| mean(&part.cells)).fold(0.0, f32::max);
        assert!(seen.iter().all(|cells| mean(cells) > highest));
        assert!(cells(200, 3.0).vectors().all(|(u, d)| DefectTerm::score(&weights, u, d).is_finite()));
    }

    #[test]
    fn cells_are_marked_by_their_share_and_no_mark_is_lost() {
        let mut mask = vec![false; 64];
        mask[0] = true; // a quarter of a cell of 2x2
        assert_eq!(marked_cells(&mask, 8.into(), 4.into()).iter().filter(|m| **m).count(), 1);
        assert!(marked_cells(&mask, 8.into(), 4.into())[0]);
        // A speck, smaller than a quarter of a cell of 4x4, marks the cell that has most of it.
        assert_eq!(marked_cells(&mask, 8.into(), 2.into()), [true, false, false, false]);
        assert!(!marked_cells(&[false; 64], 8.into(), 2.into()).contains(&true));
        // Without marks the highest cells stand for the defect.
        let seen = cells(3, 0.0);
        let highest = positives(&seen, None);
        assert_eq!(highest.len(), 1);
        assert_eq!(highest[0].1, seen.distances.iter().copied().fold(0.0, f32::max));
    }

    #[test]
    fn what_does_not_rise_beyond_its_error_is_no_help() {
        let good: Vec<f32> = (0..20).map(|i| i as f32).collect();
        let groups: Vec<u32> = (0..20).collect();
        let taught = |before: [f32; 3], after: [f32; 3]| {
            let learned = Learned { weights: Some(Vec::new()), scores: [before.into(), after.into()] };
            let defects = [0; 3].map(|_| defect(None));
            learned.judge(&defects, [&good, &good], &groups, ScoreSource::OutOfFold, 0.05).unwrap().taught
        };
        assert!(taught([10.5, 12.5, 11.5], [18.5, 18.5, 17.5]), "they rise");
        assert!(!taught([10.5, 12.5, 11.5], [10.5, 12.5, 11.5]), "they stay");
        assert!(!taught([10.5, 12.5, 11.5], [18.5, 8.5, 11.5]), "one rises, one sinks");
        assert!(taught([18.5, 18.5, 30.0], [19.5, 18.5, 30.0]), "fewer pass");
        assert!(
            !taught([18.5, 30.0, 10.5], [25.0, 18.5, 15.5]) && !taught([30.0, 30.0, 0.5], [30.0, 18.5, 18.5]),
            "more pass"
        );
        assert_eq!(escapes(&good, &groups, ScoreSource::OutOfFold, &[18.5, 20.0, 3.0], 0.05).unwrap(), 2);
    }
}
