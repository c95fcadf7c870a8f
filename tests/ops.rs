//! The fused operations against plain candle: values and gradients, on random shapes.

use candle_core::{Device, Result, Tensor, Var};
use diad::ops::{self, AttentionShape, ConvNextShape, Dropout, Mode, Packs};
use proptest::prelude::*;

/// Values that look random and are the same everywhere.
fn values(n: usize, seed: u64, scale: f64) -> Vec<f32> {
    (0..n).map(|i| (((i as f64 + 1.3) * 12.9898 + seed as f64 * 78.233).sin() * scale) as f32).collect()
}

fn var(shape: &[usize], seed: u64, scale: f64) -> Var {
    let n = shape.iter().product();
    Var::from_tensor(&Tensor::from_vec(values(n, seed, scale), shape, &Device::Cpu).unwrap()).unwrap()
}

#[track_caller]
fn assert_close(what: &str, a: &Tensor, b: &Tensor, tolerance: f32) {
    assert_eq!(a.dims(), b.dims(), "{what}");
    let size = b.abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap().max(1.0);
    let error = (a - b).unwrap().abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap();
    assert!(error <= tolerance * size, "{what}: error {error}, largest value {size}");
}

/// Outputs agree, and so do the gradients of a weighted sum of them with respect to every input.
#[track_caller]
fn assert_same(inputs: &[&Var], fused: impl Fn() -> Result<Tensor>, plain: impl Fn() -> Result<Tensor>) {
    let (a, b) = (fused().unwrap(), plain().unwrap());
    assert_close("output", &a, &b, 2e-5);
    let weights = Tensor::from_vec(values(a.elem_count(), 99, 1.0), a.shape(), &Device::Cpu).unwrap();
    let ga = (a * &weights).unwrap().sum_all().unwrap().backward().unwrap();
    let gb = (b * &weights).unwrap().sum_all().unwrap().backward().unwrap();
    for (i, input) in inputs.iter().enumerate() {
        let (x, y) = (ga.get(input).unwrap(), gb.get(input).unwrap());
        assert_close(&format!("gradient of input {i}"), x, y, 5e-5);
        assert!(y.abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap() > 0.0, "gradient {i} is zero");
    }
}

/// What a layer gives in training, where it keeps what it makes on the way, and otherwise.
#[track_caller]
fn assert_bits(layer: impl Fn(Mode<'_>) -> Result<Tensor>) {
    let [trained, answered] = [Mode::Training, Mode::Inference(&Packs::default())]
        .map(|mode| layer(mode).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap());
    assert_eq!(trained, answered);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn depthwise_equals_candles_grouped_convolution(
        batch in 1usize..3, height in 7usize..16, width in 7usize..20, channels in 1usize..40,
        kernel in prop::sample::select(vec![3usize, 5, 7]), stride in 1usize..3, symmetric: bool,
    ) {
        let x = var(&[batch, height, width, channels], 1, 1.0);
        let w = var(&[kernel, kernel, channels], 2, 1.0);
        let p = kernel / 2;
        // Symmetric padding, and TensorFlow's SAME, which at stride 2 may pad one side more.
        let padding = if symmetric { [p; 4] } else { [p - 1, p, p - 1, p] };
        let y = ops::depthwise(&x, &w, stride, padding).unwrap();
        let [top, bottom, left, right] = padding;
        let nchw = x.permute((0, 3, 1, 2)).unwrap().pad_with_zeros(2, top, bottom).unwrap().pad_with_zeros(3, left, right).unwrap();
        let grouped = w.permute((2, 0, 1)).unwrap().unsqueeze(1).unwrap().contiguous().unwrap();
        let expected = nchw.conv2d(&grouped, 0, stride, 1, channels).unwrap().permute((0, 2, 3, 1)).unwrap();
        assert_close("candle", &y, &expected, 1e-5);
        assert_same(&[&x, &w], || ops::depthwise(&x, &w, stride, padding), || ops::depthwise_composite(&x, &w, stride, padding));
    }

    #[test]
    fn convnext_equals_its_parts(batch in 1usize..7, height in 3usize..10, width in 3usize..9, sixteenths in 1usize..4, kernel in prop::sample::select(vec![3usize, 5, 7])) {
        let channels = 16 * sixteenths;
        let shape = ConvNextShape { height, width, channels, hidden: 2 * channels, kernel };
        let x = var(&[batch, height * width, channels], 3, 1.0);
        let p = var(&[shape.parameters()], 4, 0.2);
        let m = var(&[batch, 3 * channels], 5, 0.5);
        assert_same(&[&x, &p, &m], || ops::convnext(&x, &p, &m, shape, None, Mode::Training), || ops::convnext_composite(&x, &p, &m, shape, None, true));
        assert_bits(|mode| ops::convnext(&x, &p, &m, shape, None, mode));
    }

    #[test]
    fn attention_equals_its_parts(batch in 1usize..4, tokens in 1usize..150, heads in 1usize..5, d in 1usize..20) {
        let shape = AttentionShape { tokens, channels: heads * d, heads };
        prop_assume!(tokens > 1 && heads * d > 2);
        let x = var(&[batch, tokens, heads * d], 6, 1.0);
        let p = var(&[shape.parameters()], 7, 0.4);
        let m = var(&[batch, 3 * heads * d], 8, 0.5);
        assert_same(&[&x, &p, &m], || ops::attention(&x, &p, &m, shape, Mode::Training), || ops::attention_composite(&x, &p, &m, shape, true));
        assert_bits(|mode| ops::attention(&x, &p, &m, shape, mode));
    }

    #[test]
    fn linear_and_norm_equal_their_parts(batch in 1usize..4, tokens in 1usize..20, k in 3usize..40, n in 1usize..40, positions: bool) {
        let x = var(&[batch, tokens, k], 9, 1.0);
        let w = var(&[k, n], 10, 1.0);
        let b = if positions { var(&[tokens, n], 11, 1.0) } else { var(&[n], 11, 1.0) };
        assert_same(&[&x, &w, &b], || ops::linear(&x, &w, &b, Mode::Training), || ops::linear_composite(&x, &w, &b));
        let m = var(&[batch, 2 * k], 12, 0.5);
        assert_same(&[&x, &m], || ops::modulated_norm(&x, &m), || ops::modulated_norm_composite(&x, &m));
    }
}

const SHAPE: ConvNextShape = ConvNextShape { height: 6, width: 5, channels: 16, hidden: 32, kernel: 3 };

#[test]
fn a_sample_does_not_depend_on_its_batch() {
    let x = var(&[5, 30, 16], 1, 1.0);
    let (p, m) = (var(&[SHAPE.parameters()], 2, 0.3), var(&[5, 48], 3, 0.5));
    let all = ops::convnext(&x, &p, &m, SHAPE, None, Mode::Inference(&Packs::default())).unwrap();
    for i in 0..5 {
        let (x, m) = (x.narrow(0, i, 1).unwrap(), m.narrow(0, i, 1).unwrap());
        let one = ops::convnext(&x, &p, &m, SHAPE, None, Mode::Inference(&Packs::default())).unwrap();
        let (one, all) = (one.flatten_all().unwrap(), all.get(i).unwrap().flatten_all().unwrap());
        assert_eq!(one.to_vec1::<f32>().unwrap(), all.to_vec1::<f32>().unwrap());
    }
}

/// The mask of the backward pass is that of the forward pass: the loss is linear in the gradient's direction.
#[test]
fn dropout_gradient_is_the_slope_of_the_dropped_loss() {
    let x = var(&[2, 30, 16], 1, 1.0);
    let (p, m) = (var(&[SHAPE.parameters()], 2, 0.3), var(&[2, 48], 3, 0.5));
    let dropout = Some(Dropout { probability: 0.4, seed: 77 });
    let loss = |p: &Tensor| {
        ops::convnext(&x, p, &m, SHAPE, dropout, Mode::Training).unwrap().sqr().unwrap().sum_all().unwrap()
    };
    let grads = loss(&p).backward().unwrap();
    let direction = Tensor::from_vec(values(SHAPE.parameters(), 5, 1.0), SHAPE.parameters(), &Device::Cpu).unwrap();
    let slope = (grads.get(&p).unwrap() * &direction).unwrap().sum_all().unwrap().to_scalar::<f32>().unwrap();
    let at = |h: f64| {
        let moved = (p.as_tensor() + (&direction * h).unwrap()).unwrap();
        f64::from(loss(&moved).to_scalar::<f32>().unwrap())
    };
    let measured = (at(1e-2) - at(-1e-2)) / 2e-2;
    assert!((measured - f64::from(slope)).abs() < 0.01 * measured.abs(), "{measured} != {slope}");
    let plain = ops::convnext(&x, &p, &m, SHAPE, None, Mode::Inference(&Packs::default())).unwrap();
    let dropped = ops::convnext(&x, &p, &m, SHAPE, dropout, Mode::Inference(&Packs::default())).unwrap();
    let changed = (plain - dropped).unwrap().abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap();
    assert!(changed > 1e-3, "dropout changes nothing");
}

#[test]
fn wrong_shapes_are_errors_that_show_them() {
    let x = var(&[1, 8, 8, 4], 1, 1.0);
    let error = ops::depthwise(&x, &var(&[4, 4, 4], 2, 1.0), 1, [1; 4]).unwrap_err().to_string();
    assert!(error.contains("[4, 4, 4]") && error.contains("k 3, 5 or 7"), "{error}");
    let x = var(&[1, 30, 16], 1, 1.0);
    assert!(
        ops::convnext(&x, &var(&[3], 2, 1.0), &var(&[1, 48], 3, 1.0), SHAPE, None, Mode::Inference(&Packs::default()))
            .is_err()
    );
}
