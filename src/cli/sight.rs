//! What an input shows of frames, and what looking at one costs.

use std::path::PathBuf;
use std::time::Instant;

use super::console::Console;
use crate::config::{Config, Fit, Size, shaped};
use crate::data::Category;
use crate::detector::{ClassChoice, Detector, Request};
use crate::error::Result;
use crate::frame::{Preprocess, read_frame};

/// A defect should have this many pixels of the input along its side to be seen.
pub(super) const SEEN: f64 = 4.0;
/// Frames whose shape differs from the input's by this factor are worth a warning.
const SQUEEZED: f64 = 1.3;
/// Frames that are timed, after one that is not.
const TIMED: usize = 3;

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
pub(super) fn sight(detector: &Detector, class: usize, paths: &[PathBuf]) -> Option<String> {
    let frames = [read_frame(paths.get(paths.len() / 2)?).ok()?];
    let (width, height) = (frames[0].width(), frames[0].height());
    let (preparation, branch) = (detector.preparation(), detector.network().branch(class));
    let [x, y] = preparation.of_class(class).geometry(width, height).ok()?.scale();
    let time = |class: ClassChoice| {
        let request = Request { class, ..Request::default() };
        milliseconds(|| detector.inspect_frames(&frames, &request).into_iter().try_for_each(|found| found.map(drop)))
    };
    let tried = preparation.tried(None, width, height).ok()?.shapes.len();
    let untold = match tried {
        1 => String::new(),
        _ => format!(", {:.0} ms in {tried} shapes where the class is not told", time(ClassChoice::Auto).ok()?),
    };
    Some(format!(
        "frames of {width}x{height} are looked at as {} in {} cells; a defect should be {:.0} pixels wide to be seen; {:.0} ms a \
         frame{untold}",
        branch.input(),
        branch.config().grid(),
        SEEN * x.max(y),
        time(ClassChoice::Known(class)).ok()?,
    ))
}

/// Warns of frames whose shape is not that of the input they are stretched to: small defects are lost that way.
pub(super) fn warn_squeezed(console: &Console, category: &Category, config: &Config) {
    let input = &config.input;
    if input.scale.is_some() {
        return;
    }
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
