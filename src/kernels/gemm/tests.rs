use proptest::prelude::*;

use super::super::pointwise;
use super::*;

/// Rounded ones where this processor has them.
fn factors(rounded: bool) -> Factors {
    Bf16::find().filter(|_| rounded).map_or(Factors::F32, Factors::Bf16)
}

fn values(n: usize, seed: u32) -> Vec<f32> {
    (0..n).map(|i| ((i as f32 + seed as f32) * 0.7371).sin()).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn equals_the_plain_sum(m in 1usize..40, n in 1usize..80, k in 0usize..60, ta: bool, tb: bool, relu6: bool, accumulate: bool) {
        let (a, b) = (values(m * k, 1), values(k * n, 2));
        let (bias, add, before) = (values(n, 3), values(m * n, 4), values(m * n, 5));
        let am = if ta { Matrix::transposed(&a, m) } else { Matrix::rows(&a, k) };
        let bm = if tb { Matrix::transposed(&b, k) } else { Matrix::rows(&b, n) };
        let mut c = before.clone();
        gemm_once(Factors::F32, [m, n, k], am, bm, &mut c, Epilogue { bias: Some(&bias), add: Some(&add), act: relu6.then_some(Act::Relu6), accumulate });
        for i in 0..m {
            for j in 0..n {
                let mut y = 0.0;
                for p in 0..k {
                    y += a[i * am.row + p * am.col] * b[p * bm.row + j * bm.col];
                }
                y += bias[j] + add[i * n + j];
                if accumulate { y += before[i * n + j]; }
                if relu6 { y = y.clamp(0.0, 6.0); }
                prop_assert!((c[i * n + j] - y).abs() < 1e-4, "({i},{j}): {} != {y}", c[i * n + j]);
            }
        }
    }

    /// Factors rounded to bfloat16, sums in single precision: what half's rounding and plain sums give.
    #[test]
    fn bf16_equals_the_plain_sum_of_rounded_factors(
        m in 1usize..40, n in 1usize..80, k in 0usize..60, tb: bool, wide in 0usize..4, accumulate: bool,
    ) {
        let Some(bf16) = Bf16::find() else { return Ok(()) };
        let (a, b, before) = (values(m * (k + wide), 1), values(k * n, 2), values(m * n, 5));
        let am = Matrix::rows(&a, k + wide);
        let bm = if tb { Matrix::transposed(&b, k) } else { Matrix::rows(&b, n) };
        let mut c = before.clone();
        gemm_once(Factors::Bf16(bf16), [m, n, k], am, bm, &mut c, Epilogue { accumulate, ..Epilogue::default() });
        let rounded = |x: f32| half::bf16::from_f32(x).to_f32();
        for i in 0..m {
            for j in 0..n {
                let mut y = if accumulate { f64::from(before[i * n + j]) } else { 0.0 };
                for p in 0..k {
                    y += f64::from(rounded(a[i * am.row + p])) * f64::from(rounded(b[p * bm.row + j * bm.col]));
                }
                prop_assert!((f64::from(c[i * n + j]) - y).abs() < 1e-5, "({i},{j}): {} != {y}", c[i * n + j]);
            }
        }
    }

    /// On the way to memory or afterwards: the same bits.
    #[test]
    fn gelu_of_the_sums(m in 1usize..40, n in 1usize..80, k in 1usize..60, rounded: bool) {
        let (a, b) = (values(m * k, 1), values(k * n, 2));
        let product = |act| {
            let mut c = vec![0.0; m * n];
            let epilogue = Epilogue { act, ..Epilogue::default() };
            gemm_once(factors(rounded), [m, n, k], Matrix::rows(&a, k), Matrix::rows(&b, n), &mut c, epilogue);
            c
        };
        let mut expected = vec![0.0; m * n];
        pointwise::gelu(&product(None), &mut expected);
        prop_assert_eq!(product(Some(Act::Gelu)), expected);
    }

    #[test]
    fn a_row_does_not_depend_on_its_neighbours(m in 2usize..40, n in 1usize..70, k in 1usize..200, rounded: bool) {
        let factors = factors(rounded);
        let (a, b) = (values(m * k, 6), values(k * n, 7));
        let mut all = vec![0.0; m * n];
        gemm_once(factors, [m, n, k], Matrix::rows(&a, k), Matrix::rows(&b, n), &mut all, Epilogue::default());
        let mut one = vec![0.0; n];
        for i in 0..m {
            gemm_once(factors, [1, n, k], Matrix::rows(&a[i * k..], k), Matrix::rows(&b, n), &mut one, Epilogue::default());
            prop_assert_eq!(&all[i * n..][..n], &one[..]);
        }
    }

    /// Some columns of B at a time, and the sums continued over k, in runs of rows that lie apart: the same bits.
    #[test]
    fn parts_make_the_whole(
        run in 1usize..20, runs in 1usize..4, n in 1usize..100, k in 2usize..70, gap in 0usize..5, rounded: bool,
    ) {
        let m = run * runs;
        let (a, b, bias) = (values(m * k, 8), values(k * n, 9), values(n, 10));
        let packed = Packed::new(factors(rounded), k, n, Matrix::rows(&b, n));
        let mut whole = vec![0.0; m * n];
        let epilogue = Epilogue { bias: Some(&bias), act: Some(Act::Relu6), ..Epilogue::default() };
        gemm(m, Matrix::rows(&a, k), &packed, &mut whole, epilogue);
        for from in (0..n).step_by(PART) {
            let to = (from + PART).min(n);
            let (row, middle) = (to - from + gap, k / 4 * 2);
            let jump = run * row + gap;
            let mut part = vec![7.0; runs * jump];
            let rows = Rows { row, run, jump };
            for (some, first) in [(0..middle, true), (middle..k, false)] {
                let a = Matrix::rows(&a[some.start..], k);
                let last = Epilogue { bias: Some(&bias[from..to]), act: Some(Act::Relu6), accumulate: true, ..Epilogue::default() };
                let epilogue = if first { Epilogue::default() } else { last };
                gemm_part(m, a, &packed, (some, from..to), &mut part, rows, epilogue);
            }
            for i in 0..m {
                let at = i / run * jump + i % run * row;
                prop_assert_eq!(&part[at..][..to - from], &whole[i * n + from..i * n + to]);
                prop_assert!(part[at + to - from..][..gap].iter().all(|&x| x == 7.0), "written beyond the row");
            }
        }
    }
}
