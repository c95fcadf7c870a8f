//! The resize that all frames go through: area-weighted bilinear, on several cores where a plane is large.

use std::borrow::Cow;
use std::num::NonZero;
use std::sync::OnceLock;
use std::thread;

use fast_image_resize::images::{TypedImage, TypedImageRef};
use fast_image_resize::pixels::{U8, U8x2, U8x3, U8x4};
use fast_image_resize::{FilterType, PixelTrait, ResizeAlg, ResizeOptions, Resizer};

use super::Plane;
use crate::config::Size;
use crate::error::{Error, Result};

/// Pixels from which on a plane is worth several threads.
const LARGE: usize = 1 << 19;

/// Threads for a plane, at most.
const MOST_THREADS: usize = 4;

/// `part` `[x, y, width, height]` of a plane at another size, without padding between rows.
///
/// # Errors
/// When the plane is too short.
pub(super) fn resize(plane: &Plane<'_>, bytes: usize, part: [f64; 4], to: Size) -> Result<Vec<u8>> {
    let threads = if plane.width.saturating_mul(plane.height) < LARGE { 1 } else { cores().min(MOST_THREADS) };
    resize_on(threads, plane, bytes, part, to)
}

fn resize_on(threads: usize, plane: &Plane<'_>, bytes: usize, part: [f64; 4], to: Size) -> Result<Vec<u8>> {
    let plane = plane.checked(bytes)?;
    let [x, y, w, h] = part;
    let whole = [x, y] == [0.0; 2] && (w, h) == (plane.width as f64, plane.height as f64);
    if whole && (to.width, to.height) == (plane.width, plane.height) {
        return Ok(unpadded(plane, bytes).into_owned());
    }
    let part = [x, y, w.min(plane.width as f64 - x), h.min(plane.height as f64 - y)];
    // By type: the resizer's own choice would compile its code for all the other pixel types as well.
    match bytes {
        1 => of_type::<U8>(threads, plane, part, to),
        2 => of_type::<U8x2>(threads, plane, part, to),
        3 => of_type::<U8x3>(threads, plane, part, to),
        _ => of_type::<U8x4>(threads, plane, part, to),
    }
    .map_err(|error| Error::Internal(format!("resize to {to}: {error}")))
}

type Outcome<T> = std::result::Result<T, String>;

fn of_type<P: PixelTrait>(threads: usize, plane: &Plane<'_>, part: [f64; 4], to: Size) -> Outcome<Vec<u8>> {
    if threads > 1 {
        return in_two_passes::<P>(threads, plane, part, to);
    }
    // The resizer knows no stride, and would take padding for columns beside the part that is shown.
    let data = unpadded(plane, P::size());
    let mut out = vec![0; to.area() * P::size()];
    pass::<P>(&data, Size::new(plane.width, plane.height), part, &mut out, to)?;
    Ok(out)
}

/// The same, to the bit: all columns at the new height, some columns per thread, then all rows at the new width, some rows per
/// thread. In that order the resizer itself works; weights along a side depend on the whole of it, which no thread divides.
fn in_two_passes<P: PixelTrait>(threads: usize, plane: &Plane<'_>, part: [f64; 4], to: Size) -> Outcome<Vec<u8>> {
    let [x, y, w, h] = part;
    let bytes = P::size();
    // Padding that is a whole number of pixels is columns that no strip takes.
    let (data, columns) = match plane.data.get(..plane.stride * plane.height) {
        Some(data) if plane.stride.is_multiple_of(bytes) => (Cow::Borrowed(data), plane.stride / bytes),
        _ => (unpadded(plane, bytes), plane.width),
    };
    let size = Size::new(columns, plane.height);
    // Columns that have a weight in the result, and one more at each end.
    let reach = (w / to.width as f64).max(1.0) + 1.0;
    let across = (x - reach).max(0.0) as usize..((x + w + reach).ceil() as usize).min(plane.width);
    let each = across.len().div_ceil(threads);
    let strips = across.clone().step_by(each).map(|left| left..(left + each).min(across.end));
    let strips = on_threads(strips, |strip| {
        let mut out = vec![0; strip.len() * to.height * bytes];
        let part = [strip.start as f64, y, strip.len() as f64, h];
        pass::<P>(&data, size, part, &mut out, Size::new(strip.len(), to.height))?;
        Ok((strip, out))
    })?;

    let (line, each) = (to.width * bytes, to.height.div_ceil(threads));
    let mut out = vec![0; line * to.height];
    on_threads(out.chunks_mut(each * line).enumerate(), |(band, out)| {
        let (first, size) = (band * each, Size::new(plane.width, out.len() / line));
        let mut rows = vec![0; size.area() * bytes];
        for (row, whole) in rows.chunks_exact_mut(size.width * bytes).enumerate() {
            for (strip, values) in &strips {
                let length = strip.len() * bytes;
                whole[strip.start * bytes..][..length].copy_from_slice(&values[(first + row) * length..][..length]);
            }
        }
        pass::<P>(&rows, size, [x, 0.0, w, size.height as f64], out, Size::new(to.width, size.height))
    })?;
    Ok(out)
}

/// `part` of an image without padding, at another size, into `out`.
fn pass<P: PixelTrait>(data: &[u8], from: Size, part: [f64; 4], out: &mut [u8], to: Size) -> Outcome<()> {
    let failed = |error: &dyn std::fmt::Display| error.to_string();
    let [x, y, w, h] = part;
    // The fourth byte is no alpha to be multiplied with: a colour is what it is.
    let bilinear = ResizeAlg::Convolution(FilterType::Bilinear);
    let options = ResizeOptions::new().resize_alg(bilinear).use_alpha(false).crop(x, y, w, h);
    let side = |side: usize| u32::try_from(side).map_err(|error| failed(&error));
    let source = TypedImageRef::<P>::from_buffer(side(from.width)?, side(from.height)?, data);
    let target = TypedImage::<P>::from_buffer(side(to.width)?, side(to.height)?, out);
    let mut target = target.map_err(|error| failed(&error))?;
    Resizer::new()
        .resize_typed(&source.map_err(|error| failed(&error))?, &mut target, &options)
        .map_err(|error| failed(&error))
}

/// Does each of some pieces of work on a thread of its own, the first on this one; what each gives, in order. Not on the pool of
/// threads that models run on: a stream would wait there for the end of a frame of another.
pub(super) fn on_threads<W: Send, R: Send>(
    work: impl Iterator<Item = W>,
    f: impl Fn(W) -> Outcome<R> + Sync,
) -> Outcome<Vec<R>> {
    let mut work = work;
    let Some(first) = work.next() else { return Ok(Vec::new()) };
    let f = &f;
    thread::scope(|scope| {
        let start = |piece| thread::Builder::new().spawn_scoped(scope, move || f(piece));
        let others: Vec<_> = work.map(start).collect();
        let mut all = vec![f(first)];
        all.extend(others.into_iter().map(|thread| {
            let thread = thread.map_err(|error| format!("cannot start a thread: {error}"))?;
            thread.join().unwrap_or_else(|_| Err("a thread panicked".into()))
        }));
        all.into_iter().collect()
    })
}

/// Cores of this machine.
pub(super) fn cores() -> usize {
    static CORES: OnceLock<usize> = OnceLock::new();
    *CORES.get_or_init(|| thread::available_parallelism().map_or(1, NonZero::get))
}

/// The rows of a plane without what lies between them.
fn unpadded<'a>(plane: &Plane<'a>, bytes: usize) -> Cow<'a, [u8]> {
    let row = plane.width * bytes;
    if plane.stride == row {
        return plane.data[..row * plane.height].into();
    }
    (0..plane.height).flat_map(|y| &plane.data[y * plane.stride..][..row]).copied().collect::<Vec<_>>().into()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(200))]
        /// On however many threads, the bits are those of one.
        #[test]
        fn threads_make_no_difference(
            (width, height, padding) in (8usize..90, 8usize..90, 0usize..5),
            (columns, rows) in (1usize..70, 1usize..70),
            bytes in 1usize..=4,
            threads in 2usize..6,
            seed in any::<u32>(),
            part in prop_oneof![
                Just([0.0, 0.0, 1.0, 1.0]),
                (0.0f64..0.6, 0.0f64..0.6, 0.1f64..0.4, 0.1f64..0.4).prop_map(|(x, y, w, h)| [x, y, w, h]),
            ],
            whole_pixels in any::<bool>(),
        ) {
            let stride = width * bytes + padding;
            let data: Vec<u8> = (0..stride * height).map(|i| ((i as u32).wrapping_mul(2_654_435_761) ^ seed) as u8).collect();
            let plane = Plane { data: &data, width, height, stride };
            let [x, y, w, h] = [0, 1, 2, 3].map(|i| part[i] * [width, height][i % 2] as f64);
            let part = if whole_pixels { [x.round(), y.round(), w.ceil(), h.ceil()] } else { [x, y, w, h] };
            let to = Size::new(columns, rows);
            let one = resize_on(1, &plane, bytes, part, to).unwrap();
            prop_assert_eq!(one, resize_on(threads, &plane, bytes, part, to).unwrap());
        }
    }
}
