//! Operations on anomaly maps `[height, width]`, row by row: bilinear resize, Gaussian smoothing, mean of the largest values.

use crate::config::Size;

/// Bilinear interpolation from a row of `m` cells to one of `n`: the two source cells of output cell `i`, and the weight
/// (0..=1) of the second. Pixel centres lie at halves; edges are repeated.
pub(crate) fn neighbours(i: usize, n: usize, m: usize) -> (usize, usize, f32) {
    let at = ((i as f32 + 0.5) * m as f32 / n as f32 - 0.5).clamp(0.0, (m - 1) as f32);
    let low = at as usize;
    (low, (low + 1).min(m - 1), at - low as f32)
}

/// A map of one size at another, by bilinear interpolation.
pub fn resize(map: &[f32], from: Size, to: Size) -> Vec<f32> {
    // Along rows first, then along columns.
    let columns: Vec<_> = (0..to.width).map(|x| neighbours(x, to.width, from.width)).collect();
    let mut rows = Vec::with_capacity(from.height * to.width);
    for row in map.chunks_exact(from.width) {
        rows.extend(columns.iter().map(|&(x0, x1, fx)| row[x0] * (1.0 - fx) + row[x1] * fx));
    }
    let row = |y: usize| &rows[y * to.width..][..to.width];
    let mut out = Vec::with_capacity(to.area());
    for y in 0..to.height {
        let (y0, y1, fy) = neighbours(y, to.height, from.height);
        out.extend(row(y0).iter().zip(row(y1)).map(|(a, b)| a * (1.0 - fy) + b * fy));
    }
    out
}

/// A map blurred by a Gaussian of standard deviation `sigma` cells along rows and along columns, which is cut off at 4 `sigma`. Edges
/// are reflected.
pub fn smooth(map: &[f32], size: Size, [along_rows, along_columns]: [f32; 2]) -> Vec<f32> {
    let Size { width, height } = size;
    let mut rows = map.to_vec();
    if let Some((kernel, indices)) = gaussian(along_rows, width) {
        for (line, out) in map.chunks_exact(width).zip(rows.chunks_exact_mut(width)) {
            for (x, o) in out.iter_mut().enumerate() {
                *o = kernel.iter().zip(&indices[x..]).map(|(k, &i)| k * line[i]).sum();
            }
        }
    }
    let Some((kernel, indices)) = gaussian(along_columns, height) else { return rows };
    let mut out = vec![0.0; map.len()];
    for (y, line) in out.chunks_exact_mut(width).enumerate() {
        for (k, &i) in kernel.iter().zip(&indices[y..]) {
            for (o, v) in line.iter_mut().zip(&rows[i * width..][..width]) {
                *o += k * v;
            }
        }
    }
    out
}

/// The weights of a Gaussian over a line of `length` cells, and which cells they fall on: cell `x` takes those from `x` on. `None`
/// where nothing is blurred.
fn gaussian(sigma: f32, length: usize) -> Option<(Vec<f32>, Vec<usize>)> {
    if sigma <= 0.0 {
        return None;
    }
    let radius = (4.0 * sigma).ceil() as isize;
    let mut kernel: Vec<f32> = (-radius..=radius).map(|d| (-((d * d) as f32) / (2.0 * sigma * sigma)).exp()).collect();
    let total: f32 = kernel.iter().sum();
    kernel.iter_mut().for_each(|k| *k /= total);
    let reflect = |i: isize| {
        let n = length as isize;
        let i = i.rem_euclid(2 * n);
        (if i < n { i } else { 2 * n - 1 - i }) as usize
    };
    Some((kernel, (-radius..length as isize + radius).map(reflect).collect()))
}

/// Mean of the largest `count` values, of at least one: the image score of an anomaly map (Guo et al. 2025, Dinomaly, with a fraction
/// of the map). NaN if any value is NaN, whatever its sign.
pub fn top_mean(map: &[f32], count: usize) -> f32 {
    if map.iter().any(|value| value.is_nan()) {
        return f32::NAN;
    }
    let count = count.clamp(1, map.len().max(1));
    let mut values = map.to_vec();
    if count < values.len() {
        values.select_nth_unstable_by(count, |a, b| b.total_cmp(a));
        values.truncate(count);
    }
    // In order, so that the sum is the same whatever lay between.
    values.sort_unstable_by(|a, b| b.total_cmp(a));
    values.iter().take(count).sum::<f32>() / count as f32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn smoothing_keeps_the_sum_inside_and_constants_everywhere() {
        let constant = smooth(&[2.0; 64], Size::new(16, 4), [1.5, 1.0]);
        assert!(constant.iter().all(|v| (v - 2.0).abs() < 1e-5));
        let mut point = vec![0.0; 33 * 33];
        point[16 * 33 + 16] = 1.0;
        let blurred = smooth(&point, 33.into(), [2.0; 2]);
        assert!((blurred.iter().sum::<f32>() - 1.0).abs() < 1e-5);
        // 1 / (2 pi sigma^2) at the centre
        assert!((blurred[16 * 33 + 16] - 1.0 / (std::f32::consts::TAU * 4.0)).abs() < 1e-3);
        // Along one side only: rows do not mix.
        let lines = smooth(&[1.0, 1.0, 5.0, 5.0], Size::new(2, 2), [3.0, 0.0]);
        assert!(lines.iter().zip([1.0, 1.0, 5.0, 5.0]).all(|(a, b)| (a - b).abs() < 1e-5), "{lines:?}");
    }

    /// `torch.nn.functional.interpolate(torch.tensor([[[[0., 1.], [2., 3.]]]]), size=4, mode="bilinear")[0, 0, 1]`
    #[test]
    fn resize_is_bilinear_with_half_pixel_centres() {
        let out = resize(&[0.0, 1.0, 2.0, 3.0], 2.into(), 4.into());
        assert_eq!(&out[4..8], &[0.5, 0.75, 1.25, 1.5]);
        let wide = resize(&[0.0, 1.0, 2.0, 3.0], 2.into(), Size::new(4, 2));
        assert_eq!(wide, [0.0, 0.25, 0.75, 1.0, 2.0, 2.25, 2.75, 3.0]);
    }

    #[test]
    fn top_mean_takes_the_largest() {
        let map: Vec<f32> = (0..200).map(|i| i as f32).collect();
        assert_eq!(top_mean(&map, 2), 198.5);
        assert_eq!(top_mean(&map, 0), 199.0);
        assert_eq!(top_mean(&map, 500), 99.5);
        assert!(top_mean(&[1.0, -f32::NAN, 2.0], 1).is_nan(), "nothing is known of a part of the map");
    }
}
