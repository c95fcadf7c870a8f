//! What the kernels and a whole frame take on this machine, in every precision that it computes in.
//!
//! ```text
//! cargo bench --bench kernels            # all
//! cargo bench --bench kernels -- frame   # those with this in their name
//! ```
//!
//! Sizes are those of the default configuration: 256x256 pixels, 16x16 cells. All but `frame` and those of whole layers run on one
//! core.

use candle_core::{Device as Place, Tensor};
use diad::config::Config;
use diad::detector::Request;
use diad::device::{Device, Precision};
use diad::frame::{Frame, Preprocess};
use diad::kernels::bf16::Bf16;
use diad::kernels::depthwise::{self, Shape};
use diad::kernels::gemm::{Epilogue, Factors, Matrix, Packed, gemm};
use diad::kernels::mbconv::{InvertedResidual, Pointwise, stem};
use diad::kernels::{pointwise, triangular};
use diad::ops::{self, AttentionShape, ConvNextShape, Mode, Packs};
use diad::train::untrained;
use divan::counter::ItemsCount;
use divan::{Bencher, black_box};

fn main() {
    divan::main();
}

fn values(n: usize) -> Vec<f32> {
    (0..n).map(|i| (i as f32 * 0.7371).sin() * 0.3).collect()
}

fn tensor(shape: &[usize]) -> Tensor {
    Tensor::from_vec(values(shape.iter().product()), shape, &Place::Cpu).expect("a tensor")
}

/// f32, and bf16 where this processor multiplies it.
fn precisions() -> impl Iterator<Item = Precision> {
    [Precision::F32, Precision::Bf16].into_iter().filter(|precision| device(*precision).is_some())
}

fn device(precision: Precision) -> Option<Device> {
    Device::cpu().in_precision(precision).ok()
}

fn factors(precision: Precision) -> Factors {
    match precision {
        Precision::Bf16 => Bf16::find().map_or(Factors::F32, Factors::Bf16),
        _ => Factors::F32,
    }
}

/// Multiply-adds per second are what is counted.
#[divan::bench_group]
mod product {
    use super::*;

    fn of(bencher: Bencher<'_, '_>, precision: Precision, [m, n, k]: [usize; 3]) {
        let (a, b, bias) = (values(m * k), values(k * n), values(n));
        let packed = Packed::new(factors(precision), k, n, Matrix::rows(&b, n));
        let mut c = vec![0.0; m * n];
        bencher.counter(ItemsCount::new(m * n * k)).bench_local(|| {
            let epilogue = Epilogue { bias: Some(&bias), ..Epilogue::default() };
            gemm(m, Matrix::rows(black_box(&a), k), &packed, &mut c, epilogue);
        });
    }

    /// Expansion of a late block.
    #[divan::bench(args = precisions())]
    fn expand_112_to_672(bencher: Bencher<'_, '_>, precision: Precision) {
        of(bencher, precision, [128, 672, 112]);
    }

    /// Projection of a late block.
    #[divan::bench(args = precisions())]
    fn project_672_to_112(bencher: Bencher<'_, '_>, precision: Precision) {
        of(bencher, precision, [128, 112, 672]);
    }

    /// The MLP of the denoiser.
    #[divan::bench(args = precisions())]
    fn mlp_128_to_512(bencher: Bencher<'_, '_>, precision: Precision) {
        of(bencher, precision, [64, 512, 128]);
    }

    /// The few columns of an early block.
    #[divan::bench(args = precisions())]
    fn narrow_16_to_96(bencher: Bencher<'_, '_>, precision: Precision) {
        of(bencher, precision, [1024, 96, 16]);
    }
}

#[divan::bench_group]
mod depthwise_convolution {
    use super::*;

    fn of(bencher: Bencher<'_, '_>, kernel: usize, stride: usize, channels: usize, side: usize) {
        let padded = (side - 1) * stride + kernel;
        let (x, taps, bias) =
            (values(padded * padded * channels), values(kernel * kernel * channels), values(channels));
        let mut out = vec![0.0; side * side * channels];
        let shape = Shape { padded_width: padded, channels, kernel, stride, out_width: side };
        bencher
            .counter(ItemsCount::new(side * side * channels * kernel * kernel))
            .bench_local(|| depthwise::forward(black_box(&x), &taps, &bias, &mut out, shape, true));
    }

    #[divan::bench]
    fn side_3(bencher: Bencher<'_, '_>) {
        of(bencher, 3, 1, 96, 32);
    }

    #[divan::bench]
    fn side_5_halved(bencher: Bencher<'_, '_>) {
        of(bencher, 5, 2, 96, 16);
    }

    #[divan::bench]
    fn side_7(bencher: Bencher<'_, '_>) {
        of(bencher, 7, 1, 128, 16);
    }
}

/// One after the other over 256 tokens.
#[divan::bench_group]
mod token_by_token {
    use super::*;

    #[divan::bench]
    fn gelu(bencher: Bencher<'_, '_>) {
        let (x, mut out) = (values(256 * 512), vec![0.0; 256 * 512]);
        bencher.bench_local(|| pointwise::gelu(black_box(&x), &mut out));
    }

    #[divan::bench]
    fn softmax(bencher: Bencher<'_, '_>) {
        let mut rows = values(256 * 256);
        bencher.bench_local(|| pointwise::softmax_rows(black_box(&mut rows), 256, 0.1));
    }

    #[divan::bench]
    fn modulated_norm(bencher: Bencher<'_, '_>) {
        let (x, by, mut out) = (values(256 * 128), values(128), vec![0.0; 256 * 128]);
        bencher.bench_local(|| pointwise::modulated_norm(black_box(&x), &by, &by, &mut out));
    }

    #[divan::bench]
    fn distance(bencher: Bencher<'_, '_>) {
        let rows: Vec<_> = values(128 * 129 / 2).into_iter().map(half::f16::from_f32).collect();
        let (panels, v) = (triangular::pack(&rows, 128), values(128));
        bencher.bench_local(|| (0..256).map(|_| triangular::norm(black_box(&panels), &v)).sum::<f32>());
    }
}

/// Layers on all cores.
#[divan::bench_group]
mod layer {
    use super::*;

    fn pointwise(precision: Precision, k: usize, n: usize) -> Pointwise {
        let weight = Packed::new(factors(precision), k, n, Matrix::rows(&values(k * n), n));
        Pointwise { weight, bias: values(n) }
    }

    #[divan::bench(args = precisions())]
    fn stem_of_256(bencher: Bencher<'_, '_>, precision: Precision) {
        let image: Vec<u8> = (0..256 * 256 * 3u32).map(|i| (i * i % 251) as u8).collect();
        let layer = pointwise(precision, 27, 32);
        bencher.bench_local(|| stem(black_box(&image), 256, 256, &layer));
    }

    #[divan::bench(args = precisions())]
    fn inverted_residual_112(bencher: Bencher<'_, '_>, precision: Precision) {
        let block = InvertedResidual {
            input: 112,
            expanded: 672,
            output: 112,
            kernel: 5,
            stride: 1,
            expand: Some(pointwise(precision, 112, 672)),
            depthwise: values(25 * 672),
            depthwise_bias: values(672),
            project: pointwise(precision, 672, 112),
        };
        let x = values(256 * 112);
        bencher.bench_local(|| block.forward(black_box(&x), 16, 16));
    }

    #[divan::bench(args = precisions())]
    fn convnext(bencher: Bencher<'_, '_>, precision: Precision) {
        let shape = ConvNextShape { height: 16, width: 16, channels: 128, hidden: 512, kernel: 7 };
        let (x, parameters, modulation) = (tensor(&[1, 256, 128]), tensor(&[shape.parameters()]), tensor(&[1, 384]));
        let packs = Packs::new(factors(precision));
        bencher.bench_local(|| ops::convnext(&x, &parameters, &modulation, shape, None, Mode::Inference(&packs)));
    }

    #[divan::bench(args = precisions())]
    fn attention(bencher: Bencher<'_, '_>, precision: Precision) {
        let shape = AttentionShape { tokens: 256, channels: 128, heads: 4 };
        let (x, parameters, modulation) = (tensor(&[1, 256, 128]), tensor(&[shape.parameters()]), tensor(&[1, 384]));
        let packs = Packs::new(factors(precision));
        bencher.bench_local(|| ops::attention(&x, &parameters, &modulation, shape, Mode::Inference(&packs)));
    }
}

/// A whole frame on all cores, prepared already, by a network that has learned nothing: it takes as long as one that has.
#[divan::bench_group]
mod frame {
    use super::*;

    fn of(bencher: Bencher<'_, '_>, precision: Precision, set: &[&str]) {
        let mut config = Config::default();
        config.assign(set).expect("keys that there are");
        let (width, height) = (config.input.size.width, config.input.size.height);
        let rgb = (0..(width * height * 3) as u64).map(|i| (i * i % 251) as u8).collect();
        let input = Preprocess::of(&config.input).apply(&Frame::new(width, height, rgb).expect("a frame"));
        let (input, device) = (input.expect("an input"), device(precision).expect("a precision that there is"));
        let network = untrained(&config, &input, &device).expect("a network");
        let request = Request::default();
        bencher.bench_local(|| network.inspect(&[(std::slice::from_ref(&input), &request)]));
    }

    #[divan::bench(args = precisions())]
    fn of_256(bencher: Bencher<'_, '_>, precision: Precision) {
        of(bencher, precision, &["input.size=256"]);
    }

    #[divan::bench(args = precisions())]
    fn of_512_on_16_cells(bencher: Bencher<'_, '_>, precision: Precision) {
        of(bencher, precision, &["input.size=512", "features.grid=16"]);
    }

    #[divan::bench(args = precisions(), sample_count = 20)]
    fn of_1280x1024(bencher: Bencher<'_, '_>, precision: Precision) {
        of(bencher, precision, &["input.size=[1280,1024]", "features.grid=[80,64]", "detection.covariance_cells=4"]);
    }
}
