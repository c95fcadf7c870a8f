//! Every numerical part of the model, and the worker, on every device there is, against the kernels of the CPU in single
//! precision. The code for GPUs runs everywhere: without one, as tensor operations in other numbers on the CPU.
//!
//! `DIAD_TEST_DEVICE=cuda` (or `cuda:N`) asks for a GPU: without one the tests fail. Unset, a GPU is used where there is one.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use candle_core::{DType, Tensor, Var};
use diad::config::{Config, DenoiserConfig};
use diad::data::Dataset;
use diad::detector::{Detection, Detector, Request};
use diad::device::{Device, DeviceSpec, Precision};
use diad::frame::{Frame, Prepared, read_frame};
use diad::model::denoiser::{Denoiser, DenoiserShape};
use diad::model::{self, Backbone};
use diad::train::{self, Event, Observer, Options, Stop};
use diad::worker::{Detect, Job, Open, Worker};

mod common;

use common::{CHOICES, PIXELS, shop, smoke, teach, weights_by_formula};

/// A GPU that is asked for, or is just there.
fn gpu() -> Option<DeviceSpec> {
    let asked = match std::env::var("DIAD_TEST_DEVICE") {
        Ok(name) => name.parse().unwrap(),
        Err(_) => DeviceSpec::AUTO,
    };
    let found = asked.find(Precision::F32).unwrap_or_else(|error| panic!("DIAD_TEST_DEVICE: {error}"));
    Some(found).filter(|found| *found != DeviceSpec::CPU)
}

/// Where to compute beside the kernels of the CPU, and how far results may be off, of 1.
fn devices() -> Vec<(String, Device, f32)> {
    let cpu = |dtype| Device::new(candle_core::Device::Cpu, dtype);
    let mut all = vec![("cpu f64".to_owned(), cpu(DType::F64), 1e-4), ("cpu f16".to_owned(), cpu(DType::F16), 2e-2)];
    match Device::cpu().in_precision(Precision::Bf16) {
        Ok(device) => all.push(("cpu bf16".into(), device, 3e-2)),
        Err(error) => println!("{error}"),
    }
    match gpu() {
        Some(device) => {
            for (precision, tolerance) in [(Precision::F32, 1e-3), (Precision::F16, 2e-2), (Precision::Bf16, 1e-1)] {
                let found = device.find(precision).unwrap();
                all.push((found.to_string(), found.open().unwrap(), tolerance));
            }
        }
        None => println!("no GPU: the code for it runs on the CPU, in f64 and f16 (candle multiplies no bf16 there)"),
    }
    all
}

fn list(tensor: &Tensor) -> Vec<f32> {
    tensor.to_dtype(DType::F32).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

/// The largest difference, relative to the largest value that is expected.
fn error(got: &[f32], expected: &[f32]) -> f32 {
    assert_eq!(got.len(), expected.len());
    let most = expected.iter().fold(0.0f32, |most, v| most.max(v.abs()));
    got.iter().zip(expected).fold(0.0f32, |most, (g, e)| if g.is_nan() { f32::NAN } else { most.max((g - e).abs()) })
        / most.max(1e-6)
}

#[track_caller]
fn assert_near(what: &str, tolerance: f32, got: &[f32], expected: &[f32]) {
    let error = error(got, expected);
    println!("{what}: {error:.1e} off, {tolerance:.0e} allowed");
    assert!(error <= tolerance, "{what}: off by {error} of the largest value, at most {tolerance} expected");
}

#[test]
fn the_backbone_gives_the_features_of_the_kernels() {
    let weights = model::embedded("efficientnet-lite0").unwrap().unwrap();
    let open =
        |device: &Device| -> Box<dyn Backbone> { model::backbone("efficientnet-lite0", &weights, device).unwrap() };
    let pixels: Vec<f32> = (0..2 * 96 * 64 * 3).map(|i| ((i * 31 / 7) % 256) as f32).collect();
    let images = Tensor::from_vec(pixels, (2, 96, 64, 3), &candle_core::Device::Cpu).unwrap();
    let expected = open(&Device::cpu()).forward(&images).unwrap();
    for (name, device, tolerance) in devices() {
        let taps = open(&device).forward(&images.to_device(device.candle()).unwrap()).unwrap();
        for (i, (tap, expected)) in taps.iter().zip(&expected).enumerate() {
            assert_eq!(tap.dims(), expected.dims());
            assert_near(&format!("{name}, tap {i}"), tolerance, &list(tap), &list(expected));
        }
    }
}

/// The other family of backbones, with made-up weights.
#[test]
fn a_resnet_gives_the_features_of_the_kernels() {
    for name in ["resnet18", "resnet50"] {
        let weights = weights_by_formula(name);
        let pixels: Vec<f32> = (0..2 * 48 * 64 * 3).map(|i| ((i * 31 / 7) % 256) as f32).collect();
        let images = Tensor::from_vec(pixels, (2, 48, 64, 3), &candle_core::Device::Cpu).unwrap();
        let forward = |device: &Device| {
            let images = images.to_device(device.candle()).unwrap();
            model::backbone(name, &weights, device).unwrap().forward(&images).unwrap()
        };
        let expected = forward(&Device::cpu());
        for (device_name, device, tolerance) in devices() {
            for (i, (tap, expected)) in forward(&device).iter().zip(&expected).enumerate() {
                // The taps are roots, whose slope at 0 is infinite: their squares are what was computed.
                let [tap, expected] = [tap, expected].map(|tap| list(&tap.sqr().unwrap()));
                assert_near(&format!("{name} on {device_name}, tap {i}"), tolerance, &tap, &expected);
            }
        }
    }
}

fn shapes() -> [DenoiserShape; 3] {
    let config =
        DenoiserConfig { width: 24, blocks: 2, attention_every: 1, heads: 4, dropout: 0.2, ..Default::default() };
    let flat =
        DenoiserShape { config, grid: 8.into(), view: 8.into(), dim: 10, classes: 2, heads: 1, suffix: String::new() };
    let (mut unet, mut heads) = (flat.clone(), flat.clone());
    (unet.config.levels, unet.config.width, unet.config.guide) = (2, 16, 2);
    (heads.classes, heads.heads) = (0, 2);
    [flat, unet, heads]
}

/// Parameters away from their start, where zeros would hide what is behind them.
fn vars(shape: &DenoiserShape, device: &Device) -> BTreeMap<String, Var> {
    let var = |(index, parameter): (usize, &diad::model::denoiser::Parameter)| {
        let values = (0..parameter.elements()).map(|i| ((i * 7 + index * 13) as f32 * 0.61).sin() * 0.2).collect();
        let tensor = Tensor::from_vec(values, parameter.shape.as_slice(), &candle_core::Device::Cpu).unwrap();
        (parameter.name.clone(), Var::from_tensor(&device.weight(&tensor).unwrap()).unwrap())
    };
    shape.parameters().iter().enumerate().map(var).collect()
}

fn numbers(shape: &[usize], seed: f32, device: &Device) -> Tensor {
    let values = (0..shape.iter().product()).map(|i: usize| (i as f32 * 1.3 + seed).sin()).collect();
    let tensor: Tensor = Tensor::from_vec::<_, f32>(values, shape, &candle_core::Device::Cpu).unwrap();
    tensor.to_device(device.candle()).unwrap()
}

#[test]
fn the_denoiser_answers_and_learns_alike() {
    for shape in shapes() {
        let run = |device: &Device| {
            let vars = vars(&shape, device);
            let net = Denoiser::new(shape.clone(), |name| vars.get(name).map(|v| v.as_tensor().clone())).unwrap();
            let condition = net.condition(&[-0.4, 1.0, 2.0], &[0, 1, 0]).unwrap();
            let cells = shape.config.guide * shape.config.guide;
            let guide = (cells > 0).then(|| numbers(&[3, cells, 10], 0.3, device));
            let x = numbers(&[3, 64, 11], 0.0, device);
            let answer = net.predict(&x.narrow(2, 0, 10).unwrap().contiguous().unwrap(), &condition, guide.as_ref());
            let answer = answer.unwrap();
            assert_eq!(answer.dtype(), DType::F32, "answers are in the numbers of the question");
            let taught = net.forward_train(&x, &condition, guide.as_ref(), None, 5).unwrap();
            let grads = taught.sqr().unwrap().mean_all().unwrap().backward().unwrap();
            let grads: BTreeMap<String, Vec<f32>> =
                vars.iter().map(|(name, var)| (name.clone(), list(grads.get(var).unwrap()))).collect();
            (list(&answer), grads)
        };
        let (expected, expected_grads) = run(&Device::cpu());
        for (name, device, tolerance) in devices() {
            let (answer, grads) = run(&device);
            assert_near(&format!("{name}, answer"), tolerance, &answer, &expected);
            if device.dtype() == DType::F32 || device.dtype() == DType::F64 {
                // Nothing is trained in half precision.
                for (parameter, grad) in &grads {
                    let expected = &expected_grads[parameter];
                    assert_near(&format!("{name}, gradient of {parameter}"), tolerance, grad, expected);
                }
            }
        }
    }
}

/// Test images of the shop, as the model's input.
fn inputs(detector: &Detector) -> Vec<Vec<Prepared>> {
    let mut paths = Vec::new();
    for folder in ["washer/test/good", "washer/test/scratch", "blister/test/missing"] {
        paths.extend(fs::read_dir(shop().parts.join(folder)).unwrap().map(|entry| entry.unwrap().path()));
    }
    paths.sort();
    let prepare = |path: &PathBuf| detector.preparation().apply(&read_frame(path).unwrap(), None).unwrap();
    paths.iter().map(prepare).collect()
}

#[track_caller]
fn assert_same_findings(what: &str, tolerance: f32, got: &[Detection], expected: &[Detection]) {
    for (i, (got, expected)) in got.iter().zip(expected).enumerate() {
        let off = (got.score - expected.score).abs() / expected.score;
        println!("{what} {i}: score off by {off:.1e} of itself");
        assert!(off <= tolerance, "{what} {i}: score {} not {}", got.score, expected.score);
        assert_eq!(got.class, expected.class, "{what} {i}");
        let near = |threshold: f32| (expected.score / threshold - 1.0).abs() <= 2.0 * tolerance;
        if ![expected.threshold, expected.warn_threshold].into_iter().any(near) {
            assert_eq!(got.verdict, expected.verdict, "{what} {i}");
        }
        assert_near(&format!("{what} {i}, map"), tolerance, &got.map.values, &expected.map.values);
    }
}

/// The whole way of a frame, alone and in a batch that goes through as one.
#[track_caller]
fn assert_same_scores_everywhere(what: &str, model: &Path) {
    let expected = Detector::open_on(model, &Device::cpu()).unwrap();
    let (inputs, request) = (inputs(&expected), Request::default());
    let frames: Vec<(&[Prepared], &Request)> = inputs.iter().map(|inputs| (&inputs[..], &request)).collect();
    let found =
        |detector: &Detector| -> Vec<Detection> { detector.inspect(&frames).into_iter().map(Result::unwrap).collect() };
    let expected = found(&expected);
    for (name, device, tolerance) in devices() {
        let detector = Detector::open_unmeasured(model, &device).unwrap();
        let together = found(&detector);
        assert_same_findings(&format!("{what} on {name}"), tolerance, &together, &expected);
        let alone: Vec<Detection> = frames.iter().map(|&frame| detector.inspect(&[frame]).remove(0).unwrap()).collect();
        assert_same_findings(&format!("{what} on {name}, alone"), tolerance, &alone, &together);
    }
}

#[test]
fn a_model_gives_the_same_scores_everywhere() {
    assert_same_scores_everywhere("the default", &shop().model);
}

#[test]
fn every_choice_of_the_method_gives_the_same_scores_everywhere() {
    let folder = tempfile::tempdir().unwrap();
    let model = folder.path().join("m.diad");
    for choice in CHOICES.iter().chain([&PIXELS]) {
        teach(choice, &model);
        assert_same_scores_everywhere(choice, &model);
    }
}

#[test]
fn a_worker_answers_on_every_device() {
    let reference = Detector::open_on(&shop().model, &Device::cpu()).unwrap();
    let (inputs, request) = (inputs(&reference), Arc::new(Request::default()));
    let frames: Vec<(&[Prepared], &Request)> = inputs.iter().map(|inputs| (&inputs[..], request.as_ref())).collect();
    let expected: Vec<Detection> = reference.inspect(&frames).into_iter().map(Result::unwrap).collect();
    for (name, device, tolerance) in devices() {
        let open: Open =
            Box::new(move || Ok(Box::new(Detector::open_unmeasured(&shop().model, &device)?) as Box<dyn Detect>));
        let options =
            diad::worker::Options { name: name.clone(), batch_size: 4, batch_timeout: Duration::from_millis(2) };
        let worker = Worker::start(open, options).unwrap();
        let submit = |inputs: &Vec<Prepared>| {
            let job = Job { inputs: inputs.clone(), request: request.clone() };
            worker.submit(1, job, Duration::from_secs(60)).unwrap()
        };
        let tickets: Vec<_> = inputs.iter().map(submit).collect();
        let got: Vec<Detection> = tickets.into_iter().map(|ticket| ticket.wait().outcome.unwrap()).collect();
        assert_same_findings(&name, tolerance, &got, &expected);
        assert_eq!(worker.stats().frames, inputs.len() as u64);
    }
}

/// Asks training to stop after a number of steps.
struct After(usize, Stop);

impl Observer for After {
    fn event(&self, event: &Event<'_>) {
        if let Event::Step { step, .. } = event
            && *step >= self.0
        {
            self.1.request();
        }
    }
}

/// A run that stops on one device goes on on another, and ends as a model that finds what the other finds.
#[test]
fn checkpoints_move_between_devices() {
    let Some(device) = gpu() else {
        println!("skipped: no GPU, and one device alone has nobody to move to");
        return;
    };
    let gpu = device.find(Precision::F32).unwrap();
    let (mut config, folder) = (Config::from_file(smoke()).unwrap(), tempfile::tempdir().unwrap());
    config.assign(&["training.steps=20"]).unwrap();
    let data = Dataset::scan(&shop().parts, &[]).unwrap();
    let train = |name: &str, device: DeviceSpec, resume: bool, steps: usize| {
        let out = folder.path().join(name);
        let options = Options { resume, device, ..Options::new(out) };
        let stop = Stop::default();
        train::train(&config, &data, &options, &After(steps, stop.clone()), &stop).map(|outcome| outcome.detector)
    };
    let whole = train("whole.diad", DeviceSpec::CPU, false, usize::MAX).unwrap();
    for (name, first, second) in [("there.diad", DeviceSpec::CPU, gpu), ("back.diad", gpu, DeviceSpec::CPU)] {
        assert!(train(name, first, false, 7).is_err(), "it was told to stop");
        let moved = train(name, second, true, usize::MAX).unwrap();
        for (a, b) in whole.card().classes.iter().zip(&moved.card().classes) {
            let off = (a.ng.value - b.ng.value).abs() / a.ng.value;
            assert!(off < 0.02, "{name}: threshold {} not {}", b.ng.value, a.ng.value);
        }
    }
}

/// A frame of another size, or of none, is an error of that frame's batch and of no other.
#[test]
fn a_frame_of_the_wrong_size_is_an_error_everywhere() {
    for (name, device, _) in devices() {
        let detector = Detector::open_unmeasured(&shop().model, &device).unwrap();
        let (mut inputs, request) = (inputs(&detector), Request::default());
        inputs.truncate(2);
        inputs[1][0].frame = Frame::new(32, 32, vec![0; 32 * 32 * 3]).unwrap();
        let frames: Vec<(&[Prepared], &Request)> = inputs.iter().map(|inputs| (&inputs[..], &request)).collect();
        let error = detector.inspect(&frames).remove(1).unwrap_err().to_string();
        assert!(error.contains("32x32"), "{name}: {error}");
        assert!(detector.inspect(&frames[..1]).remove(0).is_ok(), "{name}");
    }
}
