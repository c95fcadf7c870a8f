//! What an input shows of frames, and what looking at one costs.

use std::path::PathBuf;
use std::time::Instant;

use super::console::Console;
use crate::config::{Config, Fit, Size};
use crate::data::Category;
use crate::detector::{Detector, Request};
use crate::error::Result;
use crate::frame::{Preprocess, read_frame};

/// A defect should have this many pixels of the input along its side to be seen.
pub(super) const SEEN: f64 = 4.0;
/// Frames whose shape differs from the input's by this factor are worth a warning.
const SQUEEZED: f64 = 1.3;
/// Frames that are timed, after one that is not.
const TIMED: usize = 3;

/// An input with this shorter side and about the shape of what is shown; its sides divide into the cells of the default grid.
pub(super) fn shaped(shown: [f64; 2], side: usize) -> Size {
    let unit = (side / 16).next_multiple_of(32);
    let ratio = (shown[0] / shown[1]).clamp(1.0 / 8.0, 8.0);
    let longer = |ratio: f64| ((side as f64 * ratio / unit as f64).round() as usize * unit).clamp(side, 4096);
    if ratio >= 1.0 { Size::new(longer(ratio), side) } else { Size::new(side, longer(1.0 / ratio)) }
}

/// A size as `--set input.size=` takes it, without blanks that a shell would split.
pub(super) fn setting(size: Size) -> String {
    if size.is_square() { size.width.to_string() } else { format!("[{},{}]", size.width, size.height) }
}

/// Milliseconds that `look` takes: the middle of a few, after a first one, which makes what the others find.
///
/// # Errors
/// Those of `look`.
pub(super) fn milliseconds(mut look: impl FnMut() -> Result<()>) -> Result<f64> {
    look()?;
    let mut times = [0.0; TIMED];
    for time in &mut times {
        let started = Instant::now();
        look()?;
        *time = 1000.0 * started.elapsed().as_secs_f64();
    }
    times.sort_by(f64::total_cmp);
    Ok(times[TIMED / 2])
}

/// How frames like the middle one of these images are looked at, the smallest defect that can be seen so, and what it costs here;
/// `None` where the image cannot be read again.
pub(super) fn sight(detector: &Detector, paths: &[PathBuf]) -> Option<String> {
    let frames = [read_frame(paths.get(paths.len() / 2)?).ok()?];
    let (width, height) = (frames[0].width(), frames[0].height());
    let config = &detector.card().config;
    let [x, y] = Preprocess::of(&config.input).geometry(width, height).ok()?.scale();
    let look =
        || detector.inspect_frames(&frames, &Request::default()).into_iter().try_for_each(|found| found.map(drop));
    Some(format!(
        "frames of {width}x{height} are looked at as {} in {} cells; a defect should be {:.0} pixels wide to be seen; {:.0} ms a \
         frame",
        config.input.size,
        config.grid(),
        SEEN * x.max(y),
        milliseconds(look).ok()?,
    ))
}

/// Warns of frames whose shape is not that of the input they are stretched to: small defects are lost that way.
pub(super) fn warn_squeezed(console: &Console, category: &Category, config: &Config) {
    let input = &config.input;
    let middle = category.train.get(category.train.len() / 2).and_then(|path| read_frame(path).ok());
    let geometry = middle.and_then(|frame| Preprocess::of(input).geometry(frame.width(), frame.height()).ok());
    let Some([_, _, width, height]) = geometry.map(|geometry| geometry.shown) else { return };
    let ratio = (width / height) / (input.size.width as f64 / input.size.height as f64);
    if input.fit == Fit::Stretch && !(1.0 / SQUEEZED..=SQUEEZED).contains(&ratio) {
        let own = shaped([width, height], input.size.width.min(input.size.height));
        console.warn(format_args!(
            "{}: frames of {width}x{height} are squeezed into {}; --set input.size={} keeps their shape, diad advise says what it \
             costs",
            category.name,
            input.size,
            setting(own)
        ));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shapes_follow_the_frame_and_fit_the_grid() {
        for (shown, side, expected) in [
            ([500.0, 1250.0], 256, [256, 640]),
            ([1130.0, 460.0], 256, [640, 256]),
            ([2448.0, 2048.0], 1024, [1216, 1024]),
            ([900.0, 900.0], 512, [512, 512]),
            ([40_000.0, 100.0], 256, [2048, 256]),
        ] {
            let size = shaped(shown, side);
            assert_eq!(size.sides(), expected, "{shown:?}");
            Config::default().assign(&[format!("input.size={}", setting(size))]).unwrap();
        }
    }
}
