//! Operations on square anomaly maps `[side, side]`, row by row: bilinear resize, Gaussian smoothing, mean of the largest values.

/// Bilinear interpolation from a row of `m` cells to one of `n`: the two source cells of output cell `i`, and the weight
/// (0..=1) of the second. Pixel centres lie at halves; edges are repeated.
pub(crate) fn neighbours(i: usize, n: usize, m: usize) -> (usize, usize, f32) {
    let at = ((i as f32 + 0.5) * m as f32 / n as f32 - 0.5).clamp(0.0, (m - 1) as f32);
    let low = at as usize;
    (low, (low + 1).min(m - 1), at - low as f32)
}

/// A square map `[from, from]` at another size `[to, to]`, by bilinear interpolation.
pub fn resize(map: &[f32], from: usize, to: usize) -> Vec<f32> {
    let mut out = Vec::with_capacity(to * to);
    for y in 0..to {
        let (y0, y1, fy) = neighbours(y, to, from);
        for x in 0..to {
            let (x0, x1, fx) = neighbours(x, to, from);
            let row = |y: usize| map[y * from + x0] * (1.0 - fx) + map[y * from + x1] * fx;
            out.push(row(y0) * (1.0 - fy) + row(y1) * fy);
        }
    }
    out
}

/// A square map `[side, side]` blurred by a Gaussian of standard deviation `sigma` cells, which is cut off at 4 `sigma`. Edges are
/// reflected.
pub fn smooth(map: &[f32], side: usize, sigma: f32) -> Vec<f32> {
    if sigma <= 0.0 {
        return map.to_vec();
    }
    let radius = (4.0 * sigma).ceil() as isize;
    let mut kernel: Vec<f32> = (-radius..=radius).map(|d| (-((d * d) as f32) / (2.0 * sigma * sigma)).exp()).collect();
    let total: f32 = kernel.iter().sum();
    kernel.iter_mut().for_each(|k| *k /= total);
    let reflect = |i: isize| {
        let n = side as isize;
        let i = i.rem_euclid(2 * n);
        (if i < n { i } else { 2 * n - 1 - i }) as usize
    };
    let indices: Vec<usize> = (-radius..side as isize + radius).map(reflect).collect();
    let mut rows = vec![0.0; map.len()];
    for (line, out) in map.chunks_exact(side).zip(rows.chunks_exact_mut(side)) {
        for (x, o) in out.iter_mut().enumerate() {
            *o = kernel.iter().zip(&indices[x..]).map(|(k, &i)| k * line[i]).sum();
        }
    }
    let mut out = vec![0.0; map.len()];
    for (y, line) in out.chunks_exact_mut(side).enumerate() {
        for (k, &i) in kernel.iter().zip(&indices[y..]) {
            for (o, v) in line.iter_mut().zip(&rows[i * side..][..side]) {
                *o += k * v;
            }
        }
    }
    out
}

/// Mean of the largest `fraction` (0..=1) of the values, of at least one: the image score of an anomaly map (Guo et al. 2025,
/// Dinomaly). NaN if any value is NaN, whatever its sign.
pub fn top_mean(map: &[f32], fraction: f64) -> f32 {
    if map.iter().any(|value| value.is_nan()) {
        return f32::NAN;
    }
    let count = ((map.len() as f64 * fraction).round() as usize).clamp(1, map.len().max(1));
    let mut values = map.to_vec();
    values.sort_unstable_by(|a, b| b.total_cmp(a));
    values.iter().take(count).sum::<f32>() / count as f32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn smoothing_keeps_the_sum_inside_and_constants_everywhere() {
        let constant = smooth(&[2.0; 64], 8, 1.5);
        assert!(constant.iter().all(|v| (v - 2.0).abs() < 1e-5));
        let mut point = vec![0.0; 33 * 33];
        point[16 * 33 + 16] = 1.0;
        let blurred = smooth(&point, 33, 2.0);
        assert!((blurred.iter().sum::<f32>() - 1.0).abs() < 1e-5);
        // 1 / (2 pi sigma^2) at the centre
        assert!((blurred[16 * 33 + 16] - 1.0 / (std::f32::consts::TAU * 4.0)).abs() < 1e-3);
    }

    /// `torch.nn.functional.interpolate(torch.tensor([[[[0., 1.], [2., 3.]]]]), size=4, mode="bilinear")[0, 0, 1]`
    #[test]
    fn resize_is_bilinear_with_half_pixel_centres() {
        let out = resize(&[0.0, 1.0, 2.0, 3.0], 2, 4);
        assert_eq!(&out[4..8], &[0.5, 0.75, 1.25, 1.5]);
    }

    #[test]
    fn top_mean_takes_the_largest() {
        let map: Vec<f32> = (0..200).map(|i| i as f32).collect();
        assert_eq!(top_mean(&map, 0.01), 198.5);
        assert_eq!(top_mean(&map, 1e-9), 199.0);
        assert!(top_mean(&[1.0, -f32::NAN, 2.0], 0.5).is_nan(), "nothing is known of a part of the map");
    }
}
