//! How the map is put together: each score and each way to tell the class against its formula, on a network of pictures
//! with made-up weights.

use std::sync::Arc;

use candle_core::{Device as Candle, Tensor};

use super::*;
use crate::config::{Blocks, Config, Shapes};
use crate::features::FeatureExtractor;
use crate::model::denoiser::Denoisers;
use crate::residuals::ResidualSums;

const GRID: usize = 8;
const DIM: usize = 3;

/// Made-up weights.
fn weights(config: &Config) -> impl Fn(&str) -> Option<Tensor> {
    let parameters = Denoisers::parameters(config, &Shapes::one(config, 2));
    move |name: &str| {
        let (index, parameter) = parameters.iter().enumerate().find(|(_, p)| p.name == name)?;
        let value = |i: usize| ((i * 7 + index * 13) as f32 * 0.61).sin() * 0.2;
        let values = (0..parameter.elements()).map(value).collect();
        Some(Tensor::from_vec(values, parameter.shape.as_slice(), &Candle::Cpu).unwrap())
    }
}

/// A network of pictures for two classes; `set` changes the configuration.
fn network(set: &[&str]) -> Network {
    let mut config = Config::default();
    let pictures =
        ["input.size=64", "features.space=pixel", "features.grid=8", "denoiser.width=16", "denoiser.blocks=2"];
    config.assign(&pictures.iter().chain(&["denoiser.attention_every=2"]).chain(set).collect::<Vec<_>>()).unwrap();
    let shapes = Shapes::one(&config, 2);
    let denoisers = Denoisers::new(&config, &shapes, 0, weights(&config)).unwrap();
    let statistics = |seed: usize| {
        let mut sums = ResidualSums::new(Blocks::cells(GRID.into()), DIM, 1);
        sums.add(&(0..30 * GRID * GRID * DIM).map(|i| ((i * i + seed) as f32 * 0.37).sin()).collect::<Vec<_>>());
        sums.finish().unwrap()
    };
    let extractor = Arc::new(FeatureExtractor::of_pixels(Device::cpu(), GRID.into()));
    let noise = (0..GRID * GRID * DIM).map(|i| (i as f32 * 1.7).sin() * 1.4).collect();
    let reconstructor = Reconstructor::new(&config, &Device::cpu(), denoisers, Some(noise)).unwrap();
    let levels = config.detection.diffusion_alpha_bars.len();
    let scorer = Scorer::new(&config, vec![statistics(0), statistics(5)], &extractor).unwrap();
    let term_means = [[2.0, 0.5, 0.25, 1.0], [4.0, 1.0, 0.5, 1.0]].map(|means| means[..=levels].to_vec());
    let scorer = scorer.with_term_means(term_means.into()).unwrap();
    let prototypes = vec![vec![3.0; DIM], vec![3.1; DIM]];
    let branch = Branch::new(&config, extractor, Arc::new(reconstructor), None).unwrap();
    Network::new(&config, shapes, vec![branch], scorer, prototypes).unwrap()
}

fn prepared() -> Prepared {
    let rgb = (0..64 * 64 * 3).map(|i: usize| (i * 31 / 7 % 256) as u8).collect();
    network(&[]).preparation().of_class(0).apply(&Frame::new(64, 64, rgb).unwrap()).unwrap()
}

fn features() -> Tensor {
    network(&[]).features(&[&prepared()]).unwrap()
}

fn list(tensor: &Tensor) -> Vec<f32> {
    tensor.flatten_all().unwrap().to_vec1().unwrap()
}

/// A reconstruction, and its numbers.
struct Rebuilt {
    reconstruction: Reconstruction,
    residuals: Vec<f32>,
    noise_errors: Vec<Vec<f32>>,
}

fn rebuild(network: &Network, class: Option<usize>) -> Rebuilt {
    let reconstruction = network
        .branch(0)
        .reconstructor()
        .reconstruct(&features(), &network.branch(0).plan(None).unwrap(), class)
        .unwrap();
    let noise_errors = reconstruction.noise_errors.iter().map(list).collect();
    Rebuilt { residuals: list(&reconstruction.residuals), noise_errors, reconstruction }
}

fn distance(network: &Network, rebuilt: &Rebuilt, class: usize) -> Vec<f32> {
    network.scorer().distances(&features(), &rebuilt.reconstruction.residuals, class).unwrap()
}

/// Inspects the frame; `limits` make the scores of the classes comparable.
fn inspect(set: &[&str], class: ClassChoice, limits: [f32; 2]) -> Inspection {
    let (network, prepared, request) = (network(set), prepared(), Request { class, ..Request::default() });
    let calibrated = |class: usize, score: f32| score / limits[class];
    let conclude = |scores, some: &[Asked<'_>]| network.conclude(scores, some, calibrated, |found, _| found);
    network.spread(&[(&[prepared], &request)], conclude).remove(0).unwrap()
}

#[track_caller]
fn assert_close(got: &[f32], expected: impl IntoIterator<Item = f32>) {
    let expected: Vec<f32> = expected.into_iter().collect();
    assert_eq!(got.len(), expected.len());
    for (got, expected) in got.iter().zip(expected) {
        assert!((got - expected).abs() <= 1e-5 * (1.0 + expected.abs()), "{got} not {expected}");
    }
}

const PROBES: &str = "detection.diffusion_alpha_bars=[0.8, 0.3]";

#[test]
fn every_score_is_its_formula() {
    let cells = |set: &[&str], class: usize| {
        let network = network(set);
        network.scorer().cells(&features(), &rebuild(&network, None).reconstruction, class).unwrap()
    };
    let sum = network(&["detection.score=sum", PROBES, "detection.diffusion_weight=3"]);
    let seen = rebuild(&sum, None);
    let rebuilt = distance(&sum, &seen, 1);
    assert_close(&cells(&[], 1), rebuilt.iter().copied());
    // Class 1: means 4 for the distance, 1 and 0.5 for the levels.
    let [first, second] = [&seen.noise_errors[0], &seen.noise_errors[1]];
    let diffusion = |t: usize| (first[t].sqrt() / 1.0 + second[t].sqrt() / 0.5) / 2.0;
    let all = 0..GRID * GRID;
    assert_close(&cells(&["detection.score=diffusion", PROBES], 1), all.clone().map(diffusion));
    assert_close(
        &sum.scorer().cells(&features(), &seen.reconstruction, 1).unwrap(),
        all.clone().map(|t| rebuilt[t] / 4.0 + 3.0 * diffusion(t)),
    );
    // The literal: squared error of each cell, and the noise error of the whole image at the first level.
    let image = first.iter().sum::<f32>() / first.len() as f32;
    let square = |t: usize| seen.residuals[t * DIM..][..DIM].iter().map(|r| r * r).sum::<f32>() / DIM as f32;
    assert_close(&cells(&["detection.score=literal", PROBES], 1), all.map(|t| square(t) + 0.5 * image));
}

/// "Diffusion score" and "reconstruction error" of one level are one quantity, but for the factor SNR.
#[test]
fn the_noise_error_is_the_reconstruction_error_times_snr() {
    let noised = network(&[
        "detection.score=sum",
        "detection.diffusion_alpha_bars=[0.3]",
        "detection.start=noised",
        "detection.sampler=ddim",
        "detection.start_alpha_bar=0.3",
    ]);
    let seen = rebuild(&noised, None);
    let square = |r: &[f32]| r.iter().map(|r| r * r).sum::<f32>() / DIM as f32;
    assert_close(&seen.noise_errors[0], seen.residuals.chunks_exact(DIM).map(|r| square(r) * (0.3 / 0.7)));
}

/// Ho & Salimans 2022, equation 6, with the weight counted from the unconditional answer.
#[test]
fn guidance_is_linear_in_its_weight() {
    let residuals = |guidance: f64, class| {
        let network = network(&["detection.condition=class", &format!("detection.guidance={guidance}")]);
        rebuild(&network, class).residuals
    };
    let (none, told) = (residuals(1.0, None::<usize>.or(Some(0))), residuals(1.0, Some(1)));
    assert_ne!(none, told, "the classes differ");
    let zero = residuals(0.0, Some(1));
    let plain = rebuild(&network(&[]), None).residuals;
    assert_close(&zero, plain.iter().copied());
    for weight in [0.5, 2.0] {
        let expected = zero.iter().zip(&told).map(|(zero, told)| zero + weight as f32 * (told - zero));
        assert_close(&residuals(weight, Some(1)), expected.collect::<Vec<_>>());
    }
}

#[test]
fn the_decision_is_one_class_or_the_lowest_of_each_cell() {
    let inspect = |set: &[&str], class| inspect(set, class, [1.0; 2]);
    let own = [0, 1].map(|class| inspect(&[], ClassChoice::Known(class)));
    let best = usize::from(own[1].score < own[0].score);
    let chosen = inspect(&[], ClassChoice::Auto);
    assert_eq!((chosen.class, &chosen.map), (best, &own[best].map), "one class, and its map");
    // Without smoothing a map's cells are those of the grid, enlarged: the lowest can be seen in it.
    let sharp = ["detection.smoothing_px=0"];
    let own = [0, 1].map(|class| inspect(&sharp, ClassChoice::Known(class)).map.values);
    let lowest = inspect(&["detection.smoothing_px=0", "detection.decision=pixel-minimum"], ClassChoice::Auto);
    let below = |a: &[f32], b: &[f32]| a.iter().zip(b).filter(|(a, b)| **a < **b - 1e-5).count();
    for own in &own {
        assert_eq!(below(own, &lowest.map.values), 0, "no class has a lower value anywhere");
        assert!(below(&lowest.map.values, own) > 0, "a chimera: no class explains it all");
    }
    let known = inspect(&["detection.decision=pixel-minimum"], ClassChoice::Known(0));
    assert_eq!(known.map, inspect(&[], ClassChoice::Known(0)).map, "a known class is not mixed with others");
}

/// The class by score where scores say something of the class, and by the prototype where they do not.
#[test]
fn the_class_is_that_which_explains_the_part_best() {
    let own = [0, 1].map(|class| inspect(&[], ClassChoice::Known(class), [1.0; 2]).score);
    let best = usize::from(own[1] < own[0]);
    // The other has the higher threshold, and is still farther below it: of one score for both it would be the lower.
    let mut limits = [1.0; 2];
    limits[best] = (own[best] / own[1 - best] + 1.0) / 2.0;
    for decision in ["detection.decision=class", "detection.decision=pixel-minimum"] {
        assert_eq!(inspect(&[decision], ClassChoice::Auto, limits).class, best, "{decision}");
    }
    let network = network(&[]);
    let mean = mean_over_cells(&list(&features()), DIM);
    let distances = [0, 1].map(|class| prototype_distance(&network.prototypes[class], &mean));
    let nearest = usize::from(distances[1] < distances[0]);
    let mut lax = [1.0; 2];
    lax[1 - nearest] = 1e6;
    assert_eq!(inspect(&[], ClassChoice::Auto, lax).class, 1 - nearest, "both are candidates");
    for alike in
        ["detection.distance=l2", "detection.distance=cosine", "detection.score=diffusion", "detection.score=literal"]
    {
        assert_eq!(inspect(&[alike], ClassChoice::Auto, lax).class, nearest, "{alike}: no threshold is a reason");
    }
}

#[test]
fn every_distance_is_its_formula() {
    let cells = |metric: &str| {
        let network = network(&[metric]);
        let rebuilt = rebuild(&network, None);
        (distance(&network, &rebuilt, 0), rebuilt.residuals)
    };
    let (l2, residuals) = cells("detection.distance=l2");
    let length = |v: &[f32]| v.iter().map(|x| x * x).sum::<f32>().sqrt();
    assert_close(&l2, residuals.chunks_exact(DIM).map(|r| length(r) / (DIM as f32).sqrt()));
    let (cosine, residuals) = cells("detection.distance=cosine");
    let raw = |v: f32| (v + 1.0) * 127.5;
    let values = list(&features());
    let angle = |(x, r): (&[f32], &[f32])| {
        let a: Vec<f32> = x.iter().map(|&x| raw(x)).collect();
        let b: Vec<f32> = x.iter().zip(r).map(|(x, r)| raw(x - r)).collect();
        1.0 - a.iter().zip(&b).map(|(a, b)| a * b).sum::<f32>() / (length(&a) * length(&b))
    };
    assert_close(&cosine, values.chunks_exact(DIM).zip(residuals.chunks_exact(DIM)).map(angle));
}

/// Frames that are inspected together get what each gets alone, whatever each asks for.
#[test]
fn a_batch_of_different_requests_is_many_batches_of_one() {
    let frame = |n: usize| {
        let rgb = (0..64 * 64 * 3).map(|i: usize| (i * (29 + n) / 7 % 256) as u8).collect();
        network(&[]).preparation().of_class(0).apply(&Frame::new(64, 64, rgb).unwrap()).unwrap()
    };
    let inputs: Vec<Prepared> = (0..6).map(frame).collect();
    for set in [
        &[][..],
        &["detection.condition=class"],
        &["detection.score=literal", PROBES],
        &["detection.decision=pixel-minimum"],
    ] {
        let network = network(set);
        let classes = [ClassChoice::Auto, ClassChoice::Known(1), ClassChoice::Known(0)];
        let request =
            |i: usize| Request { class: classes[i % 3], ddim_steps: [None, Some(2)][i / 2 % 2], ..Request::default() };
        let requests: Vec<Request> = (0..6).map(request).collect();
        let frames: Vec<Asked<'_>> = inputs.iter().map(std::slice::from_ref).zip(&requests).collect();
        let embeddings = network.embed(&inputs.iter().map(std::slice::from_ref).collect::<Vec<_>>()).unwrap();
        let scores = network.measure(&embeddings, &frames).unwrap();
        let together = network.conclude(scores, &frames, |_, score| score, |found, _| found);
        assert_eq!(together.len(), 6);
        for (i, found) in together.into_iter().enumerate() {
            let (found, alone) = (found.unwrap(), network.inspect(&frames[i..=i]).remove(0).unwrap());
            assert_eq!((found.class, found.source), (alone.class, alone.source), "{set:?} {i}");
            assert_eq!(found.score.to_bits(), alone.score.to_bits(), "{set:?} {i}");
            assert_eq!(found.map, alone.map, "{set:?} {i}");
        }
    }
}

#[test]
fn a_request_that_cannot_be_is_an_error_of_its_frame_alone() {
    let (network, prepared) = (network(&[]), prepared());
    let requests = [
        Request { ddim_steps: Some(0), ..Request::default() },
        Request { class: ClassChoice::Known(2), ..Request::default() },
        Request::default(),
    ];
    let inputs = [prepared];
    let frames: Vec<Asked<'_>> = requests.iter().map(|request| (&inputs[..], request)).collect();
    let scores = network.measure(&network.embed(&[&inputs[..]; 3]).unwrap(), &frames).unwrap();
    let answers = network.conclude(scores, &frames, |_, score| score, |found, _| found);
    let [no_steps, no_class, good] = <[_; 3]>::try_from(answers).unwrap();
    assert!(no_steps.unwrap_err().to_string().contains("at least 1, got 0"));
    assert!(no_class.unwrap_err().to_string().contains("class 2 of a model of 2"));
    good.unwrap();
}

#[test]
fn steps_and_starts_use_the_noise_of_the_seed_and_no_other() {
    let ddim = "detection.sampler=ddim";
    let residuals = |set: &[&str]| rebuild(&network(set), None).residuals;
    let noised = residuals(&["detection.start=noised", ddim]);
    assert_eq!(noised, residuals(&["detection.start=noised", ddim]));
    assert_ne!(noised, residuals(&[ddim]));
    let fresh = |seed: &str| residuals(&[ddim, "detection.ddim_steps=4", "detection.eta=1", seed]);
    assert_eq!(fresh("detection.noise_seed=1"), fresh("detection.noise_seed=1"));
    assert_ne!(fresh("detection.noise_seed=1"), fresh("detection.noise_seed=2"));
    // A model without the noise that it needs cannot be made.
    let network = network(&["detection.start=noised", ddim]);
    let denoisers = Denoisers::new(network.config(), network.shapes(), 0, weights(network.config())).unwrap();
    assert!(Reconstructor::new(network.config(), &Device::cpu(), denoisers, None).is_err());
}

#[test]
fn samples_need_what_the_model_goes_by() {
    let sampling = Sampling { class: None, like: None, steps: 2, eta: 0.0, guidance: 1.0, seed: 1 };
    assert_eq!(network(&[]).branch(0).reconstructor().sample(&sampling).unwrap().len(), GRID * GRID * DIM);
    let told = network(&["training.class_drop=0", "detection.condition=class"]);
    assert!(told.branch(0).reconstructor().sample(&sampling).is_err(), "it has never been told nothing");
    told.branch(0).reconstructor().sample(&Sampling { class: Some(1), ..sampling }).unwrap();
    let guided = network(&["denoiser.guide=2"]);
    assert!(guided.branch(0).reconstructor().sample(&sampling).is_err(), "something to go by");
    let like = list(&features());
    guided.branch(0).reconstructor().sample(&Sampling { like: Some(&like), ..sampling }).unwrap();
    for classes in ["denoiser.classes=heads", "denoiser.classes=separate"] {
        let network = network(&[classes]);
        assert!(network.branch(0).reconstructor().sample(&sampling).is_err(), "a class");
        let of =
            |class| network.branch(0).reconstructor().sample(&Sampling { class: Some(class), ..sampling }).unwrap();
        assert_ne!(of(0), of(1));
        assert!(
            network.branch(0).reconstructor().sample(&Sampling { class: Some(0), guidance: 2.0, ..sampling }).is_err()
        );
    }
}
