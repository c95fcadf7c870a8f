//! The text of the CUDA kernels, compiled as C and run on the host against the operations of the CPU: every index and all
//! arithmetic, for each kind of numbers and random shapes. What it cannot prove is left small: the loop over threads.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use candle_core::{DType, Device, Tensor, Var};
use diad::ops;
use proptest::prelude::*;

const KINDS: [DType; 3] = [DType::F32, DType::F16, DType::BF16];

/// The program for a kind of numbers, compiled once per test process.
fn program(dtype: DType) -> &'static Path {
    static PROGRAMS: OnceLock<(tempfile::TempDir, Vec<PathBuf>)> = OnceLock::new();
    let (_, programs) = PROGRAMS.get_or_init(|| {
        let folder = tempfile::tempdir().unwrap();
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let kernels = root.join("src/kernels/cuda/kernels.cu");
        let build = |dtype: DType| {
            let out = folder.path().join(format!("{dtype:?}"));
            let status = Command::new("cc")
                .args(["-x", "c", "-std=gnu11", "-O1", "-Wall", "-Werror", "-Wno-unused-function"])
                .args([format!("-D{dtype:?}"), format!("-DKERNELS=\"{}\"", kernels.display()), "-o".into()])
                .args([&out, &root.join("tests/fixtures/cuda_kernels_host.c")])
                .arg("-lm")
                .status();
            assert!(status.unwrap().success(), "{dtype:?}: the kernels do not compile as C");
            out
        };
        let programs = KINDS.into_iter().map(build).collect();
        (folder, programs)
    });
    &programs[KINDS.iter().position(|kind| *kind == dtype).unwrap()]
}

/// What a kernel makes of tensors that are rounded to `dtype`.
fn run(
    name: &str,
    dtype: DType,
    tensors: &[&Tensor],
    shape: &[usize],
    n: usize,
    ints: &[i32],
    floats: &[f32],
) -> Tensor {
    let size = dtype.size_in_bytes() * shape.iter().product::<usize>();
    let mut input = Vec::new();
    let word = |input: &mut Vec<u8>, w: i64| input.extend(w.to_le_bytes());
    word(&mut input, name.len() as i64);
    input.extend(name.bytes());
    word(&mut input, tensors.len() as i64);
    for tensor in tensors {
        let bytes = bytes(&tensor.to_dtype(dtype).unwrap());
        word(&mut input, bytes.len() as i64);
        input.extend(bytes);
    }
    word(&mut input, size as i64);
    word(&mut input, n as i64);
    word(&mut input, ints.len() as i64);
    ints.iter().for_each(|&i| word(&mut input, i.into()));
    word(&mut input, floats.len() as i64);
    floats.iter().for_each(|f| word(&mut input, f.to_bits().into()));
    let mut child = Command::new(program(dtype)).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let output = std::thread::scope(|scope| {
        scope.spawn(move || stdin.write_all(&input).unwrap());
        child.wait_with_output().unwrap()
    });
    assert!(output.status.success(), "{name}: {}", output.status);
    assert_eq!(output.stdout.len(), size, "{name}");
    Tensor::from_raw_buffer(&output.stdout, dtype, shape, &Device::Cpu).unwrap().to_dtype(DType::F32).unwrap()
}

fn bytes(tensor: &Tensor) -> Vec<u8> {
    let file = safetensors::serialize([("t", tensor)], None).unwrap();
    let parsed = safetensors::SafeTensors::deserialize(&file).unwrap();
    parsed.tensor("t").unwrap().data().to_vec()
}

/// Numbers that `dtype` holds exactly, so that both sides compute with the same.
fn tensor(shape: &[usize], seed: usize, dtype: DType) -> Tensor {
    let n = shape.iter().product::<usize>();
    let values: Vec<f32> = (0..n).map(|i| ((i * 7919 + seed * 104_729) as f32 * 0.618).sin() * 1.5).collect();
    let tensor = Tensor::from_vec(values, shape, &Device::Cpu).unwrap();
    tensor.to_dtype(dtype).unwrap().to_dtype(DType::F32).unwrap()
}

/// Equal but for the rounding of what comes out and the order of the sums.
#[track_caller]
fn assert_close(what: &str, dtype: DType, got: &Tensor, expected: &Tensor) {
    assert_eq!(got.dims(), expected.dims(), "{what}");
    let list = |t: &Tensor| t.flatten_all().unwrap().to_vec1::<f32>().unwrap();
    let unit = match dtype {
        DType::F16 => 1e-3,
        DType::BF16 => 8e-3,
        _ => 1e-5,
    };
    for (i, (got, expected)) in list(got).into_iter().zip(list(expected)).enumerate() {
        assert!((got - expected).abs() <= unit * (1.0 + expected.abs()), "{what} {dtype:?} {i}: {got} not {expected}");
    }
}

fn ints(values: &[usize]) -> Vec<i32> {
    values.iter().map(|&v| v as i32).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn depthwise_and_its_gradients(
        batch in 1usize..4, height in 1usize..12, width in 1usize..12, channels in 1usize..9,
        kernel in prop::sample::select(vec![3usize, 5, 7]), stride in 1usize..3,
        padding in prop::array::uniform4(0usize..7), kind in 0usize..3, seed in 0usize..1000,
    ) {
        let dtype = KINDS[kind];
        let padding = padding.map(|p| p % kernel);
        let [top, bottom, left, right] = padding;
        prop_assume!(height + top + bottom >= kernel && width + left + right >= kernel);
        let x = Var::from_tensor(&tensor(&[batch, height, width, channels], seed, dtype)).unwrap();
        let w = Var::from_tensor(&tensor(&[kernel, kernel, channels], seed + 1, dtype)).unwrap();
        let bias = tensor(&[channels], seed + 2, dtype);
        let plain = ops::depthwise(&x, &w, stride, padding).unwrap();
        let (_, oh, ow, _) = plain.dims4().unwrap();
        let grad = tensor(plain.dims(), seed + 3, dtype);
        let shape = [height, width, channels, kernel, stride, top, left, oh, ow];
        let with = |last: usize| ints(&[&shape[..], &[last]].concat());
        let n = plain.elem_count();

        let free = [f32::NEG_INFINITY, f32::INFINITY];
        let got = run("depthwise", dtype, &[&x, &w, &w], plain.dims(), n, &with(0), &free);
        assert_close("depthwise", dtype, &got, &plain);
        let got = run("depthwise", dtype, &[&x, &w, &bias], plain.dims(), n, &with(1), &[-0.5, 0.75]);
        let limited = ops::depthwise_biased(&x, &w, &bias, stride, padding, Some([-0.5, 0.75])).unwrap();
        assert_close("with bias and limits", dtype, &got, &limited);

        let grads = (&plain * &grad).unwrap().sum_all().unwrap().backward().unwrap();
        let got = run("depthwise_grad_x", dtype, &[&grad, &w], x.dims(), x.elem_count(), &ints(&shape), &[]);
        assert_close("gradient to x", dtype, &got, grads.get(&x).unwrap());
        // Each sample by itself.
        let each = [batch, kernel, kernel, channels];
        let got = run("depthwise_grad_w", dtype, &[&grad, &x], &each, batch * w.elem_count(), &ints(&shape), &[]);
        for b in 0..batch {
            let one = |t: &Tensor| t.narrow(0, b, 1).unwrap();
            let plain = ops::depthwise(&one(&x), &w, stride, padding).unwrap();
            let grads = (plain * one(&grad)).unwrap().sum_all().unwrap().backward().unwrap();
            assert_close("gradient to w", dtype, &got.get(b).unwrap(), grads.get(&w).unwrap());
        }
    }

    #[test]
    fn what_stands_between_the_products(
        batch in 1usize..4, tokens in 1usize..10, channels in 1usize..20, kind in 0usize..3, seed in 0usize..1000,
    ) {
        let dtype = KINDS[kind];
        let (rows, n) = (batch * tokens, batch * tokens * channels);
        let [x, update] = [0, 1].map(|i| tensor(&[batch, tokens, channels], seed + i, dtype));
        let bias = tensor(&[channels], seed + 2, dtype);
        let modulation = tensor(&[batch, 3 * channels], seed + 3, dtype);
        let two = modulation.narrow(1, 0, 2 * channels).unwrap().contiguous().unwrap();
        let dims = [batch, tokens, channels];

        // One channel has no variance: its norm is 0 / sqrt(1e-5).
        let got = run("modulated_norm", dtype, &[&x, &two], &dims, rows, &ints(&[tokens, channels]), &[]);
        assert_close("modulated_norm", dtype, &got, &ops::modulated_norm(&x, &two).unwrap());
        let got = run("bias_clamp", dtype, &[&x, &bias], &dims, n, &ints(&[channels]), &[0.0, 1.25]);
        assert_close("bias_clamp", dtype, &got, &ops::bias_clamp(&x, &bias, [0.0, 1.25]).unwrap());
        let got = run("bias_gelu", dtype, &[&x, &bias], &dims, n, &ints(&[channels]), &[]);
        assert_close("bias_gelu", dtype, &got, &ops::bias_gelu(&x, &bias, false).unwrap());
        let all = [&x, &update, &bias, &modulation];
        let got = run("gated_add", dtype, &all, &dims, n, &ints(&[tokens, channels]), &[]);
        assert_close("gated_add", dtype, &got, &ops::gated_add(&x, &update, &bias, &modulation, false).unwrap());
    }
}

/// What is not a number is not made one on the way.
#[test]
fn nothing_hides_a_broken_network() {
    let x = Tensor::new(&[[f32::NAN, 1.0, -1.0, 9.0]], &Device::Cpu).unwrap();
    let bias = Tensor::zeros(4, DType::F32, &Device::Cpu).unwrap();
    for dtype in KINDS {
        let got = run("bias_clamp", dtype, &[&x, &bias], &[1, 4], 4, &ints(&[4]), &[0.0, 6.0]);
        let got = got.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        assert!(got[0].is_nan() && got[1..] == [1.0, 0.0, 6.0], "{dtype:?}: {got:?}");
    }
}

/// The same seed drops the same units as on the CPU, whatever the device: the hash is the same to the bit.
#[test]
fn dropout_drops_what_the_cpu_drops() {
    let wanted = ops::Dropout { probability: 0.3, seed: 0x1234_5678_9abc_def0 };
    let x = tensor(&[3, 500], 1, DType::F32);
    let (seed, limit, keep) = {
        let folded = 0x9abc_def0_u32 ^ 0x1234_5678_u32.rotate_left(16);
        (folded.cast_signed(), ((0.3 * f64::from(u32::MAX)) as u32).cast_signed(), (1.0 / 0.7) as f32)
    };
    let got = run("dropout", DType::F32, &[&x], &[3, 500], 1500, &[500, seed, limit], &[keep]);
    assert_close("dropout", DType::F32, &got, &ops::dropout(&x, wanted).unwrap());
}

/// The kernels that are launched are the kernels that are proven, and each is launched.
#[test]
fn every_kernel_is_here_and_in_use() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let read = |path: &str| fs::read_to_string(root.join(path)).unwrap();
    let text = read("src/kernels/cuda/kernels.cu");
    let names: Vec<&str> = text.split("\nKERNEL ").skip(1).map(|rest| rest.split('(').next().unwrap()).collect();
    assert_eq!(names.len(), 8, "{names:?}");
    let ops = ["depthwise", "linear", "pointwise"].map(|name| read(&format!("src/ops/{name}.rs"))).concat();
    let tests = read("tests/cuda_kernels.rs");
    for name in names {
        assert!(ops.contains(&format!("\"{name}\"")), "{name} is never launched");
        assert!(tests.contains(&format!("run(\"{name}\"")), "{name} is not proven");
    }
}

/// What a device would be given. The compiler needs no GPU.
#[cfg(feature = "cuda")]
#[test]
fn the_kernels_compile_for_every_architecture_and_kind_of_numbers() {
    for architecture in [80, 86, 89, 90, 100] {
        for dtype in KINDS {
            let ptx = diad::kernels::cuda::ptx(architecture, dtype).unwrap();
            assert_eq!(ptx.matches(".visible .entry").count(), 8, "{architecture} {dtype:?}");
            assert!(ptx.contains(&format!(".target sm_{architecture}")), "{architecture} {dtype:?}");
        }
    }
}
