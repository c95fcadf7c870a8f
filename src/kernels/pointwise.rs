//! Normalisation, GELU and softmax: loops the compiler vectorises for the processor it meets.

use super::simd::vectorised;

/// Added to variances.
const EPSILON: f32 = 1e-5;
/// sqrt(2 / pi), of the tanh form of GELU.
const SQRT_2_OVER_PI: f32 = 0.797_884_6;
const CUBIC: f32 = 0.044_715;

/// e^x for x in -87..=88, relative error below 3e-7 (degree-6 polynomial on half an octave); clamped outside.
#[inline(always)]
fn exp(x: f32) -> f32 {
    const ROUND: f32 = 12_582_912.0; // 1.5 * 2^23: adding it rounds to an integer in the low bits
    let x = x.clamp(-87.0, 88.0);
    let t = x.mul_add(std::f32::consts::LOG2_E, ROUND);
    let n = t - ROUND;
    let r = n.mul_add(2.121_944_4e-4, n.mul_add(-0.693_359_4, x)); // x - n ln 2 in two parts
    let p: f32 = 1.0 / 720.0;
    let p = p.mul_add(r, 1.0 / 120.0);
    let p = p.mul_add(r, 1.0 / 24.0);
    let p = p.mul_add(r, 1.0 / 6.0);
    let p = p.mul_add(r, 0.5);
    let p = p.mul_add(r, 1.0);
    let p = p.mul_add(r, 1.0);
    let scale = f32::from_bits((t.to_bits() << 23).wrapping_add(0x3f80_0000));
    p * scale
}

/// sigmoid(2 sqrt(2/pi) (x + 0.044715 x^3)), the factor of x in GELU's tanh form (Hendrycks & Gimpel 2016).
#[inline(always)]
fn gelu_gate(x: f32) -> f32 {
    1.0 / (1.0 + exp(-2.0 * SQRT_2_OVER_PI * (CUBIC * x * x).mul_add(x, x)))
}

/// `x = gelu(x)`, part of a loop that is compiled for the processor at hand.
#[inline(always)]
pub(super) fn gelu_in_place(x: &mut [f32]) {
    for x in x {
        *x *= gelu_gate(*x);
    }
}

vectorised! {
    /// `out = gelu(x)`, tanh form.
    pub fn gelu<'a>(x: &'a [f32], out: &'a mut [f32]) {
        for (o, &x) in out.iter_mut().zip(x) {
            *o = x * gelu_gate(x);
        }
    }

    /// Replaces `grad` by `grad * gelu'(x)` and writes `gelu(x)` to `out`.
    pub fn gelu_backward<'a>(x: &'a [f32], grad: &'a mut [f32], out: &'a mut [f32]) {
        for ((g, o), &x) in grad.iter_mut().zip(out.iter_mut()).zip(x) {
            let s = gelu_gate(x);
            *o = x * s;
            let slope = 2.0 * SQRT_2_OVER_PI * (1.0 + 3.0 * CUBIC * x * x);
            *g *= s + x * s * (1.0 - s) * slope;
        }
    }

    /// Softmax of each row of `channels` values after scaling by `scale`, in place.
    pub fn softmax_rows<'a>(rows: &'a mut [f32], channels: usize, scale: f32) {
        for row in rows.chunks_exact_mut(channels) {
            let top = maximum(row);
            // As `sum` adds, on the way.
            let mut parts = [0.0f32; 16];
            let (chunks, rest) = row.as_chunks_mut::<16>();
            for chunk in chunks {
                for i in 0..16 {
                    chunk[i] = exp((chunk[i] - top) * scale);
                    parts[i] += chunk[i];
                }
            }
            let mut total = 0.0;
            for part in parts {
                total += part;
            }
            for x in rest {
                *x = exp((*x - top) * scale);
                total += *x;
            }
            let inverse = 1.0 / total;
            for x in row.iter_mut() {
                *x *= inverse;
            }
        }
    }

    /// Gradient of `softmax_rows` with respect to its input: `grad = scale * p (grad - sum(grad p))`, in place.
    pub fn softmax_rows_backward<'a>(probabilities: &'a [f32], grad: &'a mut [f32], channels: usize, scale: f32) {
        for (p, g) in probabilities.chunks_exact(channels).zip(grad.chunks_exact_mut(channels)) {
            let inner = dot(p, g);
            for (g, p) in g.iter_mut().zip(p) {
                *g = scale * p * (*g - inner);
            }
        }
    }

    /// Layer normalisation of each row without learned scale, then `* (1 + scale) + shift` (adaLN, Peebles & Xie 2023).
    /// `x`, `out` `[T, C]`; `shift`, `scale` `[C]`.
    pub fn modulated_norm<'a>(x: &'a [f32], shift: &'a [f32], scale: &'a [f32], out: &'a mut [f32]) {
        let channels = shift.len();
        for (x, out) in x.chunks_exact(channels).zip(out.chunks_exact_mut(channels)) {
            let (mean, inverse) = moments(x);
            for (((o, x), scale), shift) in out.iter_mut().zip(x).zip(scale).zip(shift) {
                *o = (x - mean) * inverse * (1.0 + scale) + shift;
            }
        }
    }

    /// Gradient of `modulated_norm`: adds to `grad_x` `[T, C]`, `grad_shift` and `grad_scale` `[C]`.
    pub fn modulated_norm_backward<'a>(
        x: &'a [f32],
        scale: &'a [f32],
        grad: &'a [f32],
        grad_x: &'a mut [f32],
        grad_shift: &'a mut [f32],
        grad_scale: &'a mut [f32],
    ) {
        let channels = scale.len();
        let mut normal = vec![0.0; channels];
        let mut inner = vec![0.0; channels];
        for ((x, g), gx) in
            x.chunks_exact(channels).zip(grad.chunks_exact(channels)).zip(grad_x.chunks_exact_mut(channels))
        {
            let (mean, inverse) = moments(x);
            for (n, x) in normal.iter_mut().zip(x) {
                *n = (x - mean) * inverse;
            }
            for (((((i, g), n), scale), gs), gb) in
                inner.iter_mut().zip(g).zip(&normal).zip(scale).zip(grad_scale.iter_mut()).zip(grad_shift.iter_mut())
            {
                *i = g * (1.0 + scale);
                *gs += g * n;
                *gb += g;
            }
            let mean_inner = sum(&inner) / channels as f32;
            let mean_product = dot(&inner, &normal) / channels as f32;
            for ((gx, i), n) in gx.iter_mut().zip(&inner).zip(&normal) {
                *gx += inverse * (i - mean_inner - n * mean_product);
            }
        }
    }
}

/// Mean and 1 / standard deviation of a row.
#[inline(always)]
fn moments(x: &[f32]) -> (f32, f32) {
    let n = x.len() as f32;
    let mean = sum(x) / n;
    let variance = strided(x, |x| (x - mean) * (x - mean), |a, b| a + b, 0.0) / n;
    (mean, 1.0 / (variance + EPSILON).sqrt())
}

#[inline(always)]
fn sum(x: &[f32]) -> f32 {
    strided(x, |x| x, |a, b| a + b, 0.0)
}

#[inline(always)]
fn maximum(x: &[f32]) -> f32 {
    // What is not a number may be passed over: the sum of the exponentials is none then. (`f32::max` costs three times as much.)
    strided(x, |x| x, |a, b| if a > b { a } else { b }, f32::NEG_INFINITY)
}

/// Sum of products in 16 partial sums: vectorises, and has the same bits on every vector width.
#[inline(always)]
fn dot(a: &[f32], b: &[f32]) -> f32 {
    let mut sums = [0.0f32; 16];
    let (a_chunks, a_rest) = a.as_chunks::<16>();
    let (b_chunks, b_rest) = b.as_chunks::<16>();
    for (a, b) in a_chunks.iter().zip(b_chunks) {
        for i in 0..16 {
            sums[i] += a[i] * b[i];
        }
    }
    let mut total = 0.0;
    for s in sums {
        total += s;
    }
    for (a, b) in a_rest.iter().zip(b_rest) {
        total += a * b;
    }
    total
}

#[inline(always)]
fn strided(x: &[f32], map: impl Fn(f32) -> f32, join: impl Fn(f32, f32) -> f32, start: f32) -> f32 {
    let mut parts = [start; 16];
    let (chunks, rest) = x.as_chunks::<16>();
    for chunk in chunks {
        for i in 0..16 {
            parts[i] = join(parts[i], map(chunk[i]));
        }
    }
    let mut total = start;
    for p in parts {
        total = join(total, p);
    }
    for &x in rest {
        total = join(total, map(x));
    }
    total
}

vectorised! {
    /// Adds the column sums of `rows` `[T, C]` to `sums` `[C]`.
    pub fn add_column_sums<'a>(rows: &'a [f32], sums: &'a mut [f32]) {
        let channels = sums.len();
        for row in rows.chunks_exact(channels) {
            for (s, x) in sums.iter_mut().zip(row) {
                *s += x;
            }
        }
    }

    /// `out = x + gate * y` for rows of `gate.len()` channels.
    pub fn gated_add<'a>(x: &'a [f32], gate: &'a [f32], y: &'a [f32], out: &'a mut [f32]) {
        let channels = gate.len();
        for ((out, x), y) in out.chunks_exact_mut(channels).zip(x.chunks_exact(channels)).zip(y.chunks_exact(channels))
        {
            for (((o, x), g), y) in out.iter_mut().zip(x).zip(gate).zip(y) {
                *o = x + g * y;
            }
        }
    }

    /// Gradient of `gated_add`'s second part: adds `sum_t grad * y` to `grad_gate` and writes `grad * gate` to `grad_y`.
    pub fn gated_add_backward<'a>(grad: &'a [f32], gate: &'a [f32], y: &'a [f32], grad_y: &'a mut [f32], grad_gate: &'a mut [f32]) {
        let channels = gate.len();
        for ((g, y), gy) in
            grad.chunks_exact(channels).zip(y.chunks_exact(channels)).zip(grad_y.chunks_exact_mut(channels))
        {
            for ((((gy, g), gate), y), gg) in gy.iter_mut().zip(g).zip(gate).zip(y).zip(grad_gate.iter_mut()) {
                *gg += g * y;
                *gy = g * gate;
            }
        }
    }
}
