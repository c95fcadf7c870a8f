//! The denoiser as a network: gradients reach every parameter, samples do not mix, conditions matter.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a test fails by panicking, in its helpers too, and says what it skips"
)]

use std::collections::BTreeMap;

use candle_core::{Device, Tensor, Var};
use diad::config::DenoiserConfig;
use diad::model::denoiser::{Denoiser, DenoiserShape};

fn shape() -> DenoiserShape {
    let config = DenoiserConfig {
        width: 32,
        blocks: 3,
        attention_every: 3,
        heads: 4,
        kernel: 3,
        mlp_ratio: 2,
        ..DenoiserConfig::default()
    };
    DenoiserShape { config, grid: 4, dim: 10, classes: 2 }
}

/// Parameters away from their start, where the zero-initialised gates would hide what is behind them.
fn vars(shape: &DenoiserShape) -> BTreeMap<String, Var> {
    let var = |index: usize, shape: &[usize]| {
        let n: usize = shape.iter().product();
        let values = (0..n).map(|i| ((i * 7 + index * 13) as f32 * 0.61).sin() * 0.3).collect::<Vec<_>>();
        Var::from_tensor(&Tensor::from_vec(values, shape, &Device::Cpu).unwrap()).unwrap()
    };
    shape.parameters().iter().enumerate().map(|(i, p)| (p.name.clone(), var(i, &p.shape))).collect()
}

fn denoiser(shape: &DenoiserShape, vars: &BTreeMap<String, Var>) -> Denoiser {
    Denoiser::new(shape.clone(), |name| vars.get(name).map(|v| v.as_tensor().clone())).unwrap()
}

fn tokens(batch: usize, channels: usize, seed: f32) -> Tensor {
    let values = (0..batch * 16 * channels).map(|i| (i as f32 * 1.3 + seed).sin()).collect::<Vec<_>>();
    Tensor::from_vec(values, (batch, 16, channels), &Device::Cpu).unwrap()
}

#[test]
fn every_parameter_receives_a_gradient() {
    let shape = shape();
    let vars = vars(&shape);
    let net = denoiser(&shape, &vars);
    let condition = net.condition(&[-0.4, 1.0, 2.0], &[0, 1, 2]).unwrap();
    let out = net.forward_train(&tokens(3, 11, 0.0), &condition, 5).unwrap();
    let grads = out.sqr().unwrap().sum_all().unwrap().backward().unwrap();
    for (name, var) in &vars {
        let grad = grads.get(var).unwrap_or_else(|| panic!("{name} has no gradient"));
        let least = grad.abs().unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
        let zeros = least.iter().filter(|&&g| g == 0.0).count();
        assert!(zeros * 10 < least.len(), "{name}: {zeros} of {} gradients are zero", least.len());
    }
}

#[test]
fn a_fresh_network_predicts_the_mean() {
    let shape = shape();
    let start: BTreeMap<String, Tensor> = shape
        .parameters()
        .into_iter()
        .map(|p| (p.name.clone(), Tensor::from_vec(p.start(1), p.shape.as_slice(), &Device::Cpu).unwrap()))
        .collect();
    let net = Denoiser::new(shape, |name| start.get(name).cloned()).unwrap();
    let condition = net.condition(&[0.0], &[2]).unwrap();
    let out = net.predict(&tokens(1, 10, 0.0), &condition).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
    assert!(out.iter().all(|&v| v == 0.0), "features have mean 0");
}

#[test]
fn start_values_depend_on_the_seed_and_on_nothing_else() {
    let starts = |seed| shape().parameters().iter().map(|p| p.start(seed)).collect::<Vec<_>>();
    assert_eq!(starts(1), starts(1));
    assert_ne!(starts(1), starts(2));
}

#[test]
fn a_sample_does_not_depend_on_its_batch() {
    let shape = shape();
    let net = denoiser(&shape, &vars(&shape));
    let one = net.condition(&[-0.4], &[net.null_class()]).unwrap();
    let x = tokens(5, 10, 2.0);
    let all = net.predict(&x, &one.repeat(5).unwrap()).unwrap();
    for i in 0..5 {
        let alone = net.predict(&x.narrow(0, i, 1).unwrap(), &one).unwrap().flatten_all().unwrap();
        let together = all.get(i).unwrap().flatten_all().unwrap();
        assert_eq!(alone.to_vec1::<f32>().unwrap(), together.to_vec1::<f32>().unwrap());
    }
}

#[test]
fn noise_level_class_and_mask_change_the_prediction() {
    let shape = shape();
    let net = denoiser(&shape, &vars(&shape));
    let predict = |level: f32, class: u32| {
        let condition = net.condition(&[level], &[class]).unwrap();
        net.predict(&tokens(1, 10, 1.0), &condition).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap()
    };
    assert_ne!(predict(0.0, 0), predict(0.5, 0));
    assert_ne!(predict(0.0, 0), predict(0.0, 2));
    assert!(net.condition(&[0.0], &[3]).is_err(), "there are two classes and the null class");
    let train = |mask: f32| {
        let x = Tensor::cat(&[tokens(1, 10, 1.0), Tensor::full(mask, (1, 16, 1), &Device::Cpu).unwrap()], 2).unwrap();
        let condition = net.condition(&[0.0], &[0]).unwrap();
        net.forward_train(&x, &condition, 1).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap()
    };
    assert_ne!(train(0.0), train(1.0));
}
