//! `diad advise`: looks at images, and says what input they ask for and what that costs on this machine.

use std::path::PathBuf;

use clap::Args;
use rayon::prelude::*;
use serde::Serialize;

use super::sight::{SEEN, milliseconds, setting};
use super::table::{Align, Table};
use super::train::{ConfigArgs, configuration, warn_ignored};
use super::{Context, messages};
use crate::config::{Config, Size, shaped};
use crate::data::{Category, Dataset};
use crate::detector::Request;
use crate::device::Device;
use crate::error::{Error, Result};
use crate::files::{check_writable, write_atomic};
use crate::frame::{Frame, Preprocess, read_frame, read_mask};
use crate::train::untrained;

/// Propose the size of the input, the grid and the region of interest.
///
/// Looks at some of the good images, and at the masks of defects if there are any; measures on this machine what a frame costs at
/// several sizes that keep its shape; and marks the smallest that shows the defects. Changes nothing.
#[derive(Debug, Args)]
pub(super) struct AdviseArgs {
    /// Folder of good images, of a product (train/good/...), or of products
    #[arg(long, value_name = "ROOT")]
    pub(super) data: PathBuf,

    /// Only this product; repeat for several
    #[arg(long = "class", value_name = "NAME")]
    pub(super) classes: Vec<String>,

    #[command(flatten)]
    pub(super) config: ConfigArgs,

    /// Write the figures here as JSON
    #[arg(long, value_name = "R.json")]
    pub(super) report: Option<PathBuf>,
}

/// Images looked at of each product, and masks.
const IMAGES: usize = 24;
const MASKS: usize = 200;
/// Shorter sides of the input that are tried, in pixels, as far as the frames have them.
const SIDES: [usize; 5] = [256, 384, 512, 768, 1024];
/// Without masks: frames with a shorter side of this many pixels are worth twice the default's.
const LARGE: usize = 900;
/// Frames are looked at on a raster of this many cells along their longer side to find where something is.
const RASTER: usize = 96;
/// A cell shows something when its grey values differ by this much from those of its neighbours, or from image to image.
const LEVELS: f32 = 8.0;
/// A region of interest is worth it below this share of the frame.
const WORTH: f64 = 0.8;

pub(super) fn run(context: &Context, args: &AdviseArgs) -> Result<()> {
    if let Some(report) = &args.report {
        check_writable(report)?;
    }
    let config = configuration(&args.config, Config::default())?;
    let data = Dataset::scan(&args.data, &args.classes)?;
    warn_ignored(&context.console, &data.root, &data.ignored);
    let mut task = context.task("advise", data.categories.len() * SIDES.len());
    let mut all = Vec::new();
    for (done, category) in data.categories.iter().enumerate() {
        context.stop.check()?;
        let tried = |sides: usize| task.set(done * SIDES.len() + sides, &category.name);
        all.push(Advice::of(context, &config, category, tried)?);
    }
    task.finish();
    for advice in &all {
        context.console.print(advice)?;
    }
    if let Some(path) = &args.report {
        let json = serde_json::to_string_pretty(&all);
        let mut json = json.map_err(|error| Error::Internal(format!("advice: {error}")))?;
        json.push('\n');
        write_atomic(path, json.as_bytes())?;
    }
    Ok(())
}

/// What is said of a product.
#[derive(Serialize)]
struct Advice {
    class: String,
    good_images: usize,
    /// Width and height of the middle frame, and of the smallest and the largest, each side by itself.
    frame: [usize; 2],
    smallest: [usize; 2],
    largest: [usize; 2],
    /// Sides (roots of the areas) of defects in pixels of the frame: their number, the 10th percentile and the median.
    defects: Option<(usize, f64, f64)>,
    /// Part of the frame that shows something, `[x, y, width, height]` as fractions, where that is much less than all of it.
    roi: Option<[f64; 4]>,
    choices: Vec<Choice>,
    /// Which of these is proposed.
    proposed: usize,
}

/// A size of the input.
#[derive(Clone, Serialize)]
struct Choice {
    input: Size,
    grid: Size,
    /// Side in pixels of the frame of the smallest defect that it shows.
    smallest_defect: f64,
    /// Milliseconds that a frame takes on this machine.
    milliseconds: f64,
}

impl Advice {
    fn of(context: &Context, config: &Config, category: &Category, mut tried: impl FnMut(usize)) -> Result<Self> {
        let some = spread(&category.train, IMAGES);
        let read = some.par_iter().map(|path| read_frame(path));
        let frames: Vec<Frame> = read.collect::<Vec<_>>().into_iter().flatten().collect();
        let Some(frame) = frames.first() else {
            return Err(Error::data(&category.root, "none of the good images that were looked at can be read"));
        };
        let sides = |of: fn(&Frame) -> usize| {
            let mut sides: Vec<usize> = frames.iter().map(of).collect();
            sides.sort_unstable();
            [sides[0], sides[sides.len() / 2], sides[sides.len() - 1]]
        };
        let (widths, heights) = (sides(Frame::width), sides(Frame::height));
        let roi = config.input.roi.or_else(|| region(&frames));
        let [_, _, share_x, share_y] = roi.unwrap_or([0.0, 0.0, 1.0, 1.0]);
        let shown = [widths[1] as f64 * share_x, heights[1] as f64 * share_y];
        let defects = defects(category)?;
        let mut choices = Vec::new();
        for (i, side) in SIDES.into_iter().enumerate() {
            context.stop.check()?;
            let input = shaped(shown, side);
            // No more pixels than there are, but for the smallest.
            if i == 0 || side as f64 <= shown[0].min(shown[1]) {
                choices.push(Choice::measure(config, input, roi, frame, shown)?);
            }
            tried(i + 1);
        }
        let seen = |smallest: f64| choices.iter().position(|choice| choice.smallest_defect <= smallest);
        let proposed = match defects {
            Some((_, smallest, _)) => seen(smallest).unwrap_or(choices.len() - 1),
            None if shown[0].min(shown[1]) >= LARGE as f64 => {
                choices.iter().position(|choice| choice.input.width.min(choice.input.height) >= 512).unwrap_or(0)
            }
            None => 0,
        };
        Ok(Self {
            class: category.name.clone(),
            good_images: category.train.len(),
            frame: [widths[1], heights[1]],
            smallest: [widths[0], heights[0]],
            largest: [widths[2], heights[2]],
            defects,
            roi,
            choices,
            proposed,
        })
    }
}

impl Choice {
    fn measure(config: &Config, size: Size, roi: Option<[f64; 4]>, frame: &Frame, shown: [f64; 2]) -> Result<Self> {
        let mut config = config.clone();
        (config.input.size, config.input.roi, config.features.grid) = (size, roi, None);
        config.check("diad advise")?;
        let preprocess = Preprocess::of(&config.input);
        let network = untrained(&config, &preprocess.apply(frame)?, &Device::cpu().fastest())?;
        let milliseconds = milliseconds(|| {
            let input = [preprocess.apply(frame)?];
            network.inspect(&[(&input, &Request::default())]).into_iter().try_for_each(|found| found.map(drop))
        })?;
        let pixels = (shown[0] / size.width as f64).max(shown[1] / size.height as f64);
        Ok(Self { input: size, grid: config.grid(), smallest_defect: SEEN * pixels, milliseconds })
    }
}

/// Some of the paths, evenly.
fn spread(paths: &[PathBuf], most: usize) -> Vec<&PathBuf> {
    let take = paths.len().min(most);
    (0..take).map(|i| &paths[i * paths.len() / take]).collect()
}

/// Number, 10th percentile and median of the sides of defects, as roots of the marked areas; `None` without masks.
fn defects(category: &Category) -> Result<Option<(usize, f64, f64)>> {
    let marked: Vec<_> =
        category.test.iter().filter_map(|sample| Some((&sample.path, sample.mask.as_ref()?))).collect();
    let take = marked.len().min(MASKS);
    let side = |i: usize| {
        let (path, mask) = marked[i * marked.len() / take];
        let frame = read_frame(path)?;
        let area = read_mask(mask, frame.width(), frame.height())?.into_iter().filter(|marked| *marked).count();
        Ok((area as f64).sqrt())
    };
    let mut sides = (0..take).into_par_iter().map(side).collect::<Result<Vec<f64>>>()?;
    sides.retain(|side| *side > 0.0);
    sides.sort_by(f64::total_cmp);
    let n = sides.len();
    Ok((n > 0).then(|| (n, sides[n / 10], sides[n / 2])))
}

/// The part of the frame in which something is seen in any of the images, with a margin; `None` where that is nearly all of it.
fn region(frames: &[Frame]) -> Option<[f64; 4]> {
    let (width, height) = (frames[0].width(), frames[0].height());
    let scale = RASTER as f64 / width.max(height) as f64;
    let side = |pixels: usize| ((pixels as f64 * scale).round() as usize).max(4);
    let raster = Size::new(side(width), side(height));
    let preprocess = Preprocess { size: raster, fit: crate::config::Fit::Stretch, roi: None };
    let grey = |frame: &Frame| -> Option<Vec<f32>> {
        let small = preprocess.apply(frame).ok()?.frame;
        Some(small.rgb().chunks_exact(3).map(|p| p.iter().map(|&v| f32::from(v)).sum::<f32>() / 3.0).collect())
    };
    let all: Vec<Vec<f32>> = frames.par_iter().filter_map(grey).collect();
    let shows = |x: usize, y: usize| {
        let at = |image: &[f32], x: usize, y: usize| image[y * raster.width + x];
        let (right, below) = ((x + 1).min(raster.width - 1), (y + 1).min(raster.height - 1));
        let values = all.iter().map(|image| at(image, x, y));
        let (low, high) = values.fold((f32::INFINITY, f32::NEG_INFINITY), |(l, h), v| (l.min(v), h.max(v)));
        let edge = |image: &Vec<f32>| {
            let own = at(image, x, y);
            (own - at(image, right, y)).abs().max((own - at(image, x, below)).abs()) > LEVELS
        };
        high - low > 2.0 * LEVELS || all.iter().any(edge)
    };
    let columns: Vec<usize> = (0..raster.width).filter(|&x| (0..raster.height).any(|y| shows(x, y))).collect();
    let rows: Vec<usize> = (0..raster.height).filter(|&y| (0..raster.width).any(|x| shows(x, y))).collect();
    let span = |found: &[usize], length: usize| {
        let (first, last) = (*found.first()? as f64, *found.last()? as f64 + 1.0);
        let margin = 0.03 * length as f64;
        let percent = |at: f64| (100.0 * at / length as f64).clamp(0.0, 100.0);
        Some([percent(first - margin).floor() / 100.0, percent(last + margin).ceil() / 100.0])
    };
    let ([left, right], [top, bottom]) = (span(&columns, raster.width)?, span(&rows, raster.height)?);
    let rounded = |share: f64| (share * 100.0).round() / 100.0;
    let roi = [left, top, rounded(right - left), rounded(bottom - top)];
    (roi[2] * roi[3] < WORTH).then_some(roi)
}

impl std::fmt::Display for Advice {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        use Align::{Left, Right};

        let [width, height] = self.frame;
        let ([w0, h0], [w1, h1]) = (self.smallest, self.largest);
        let sizes = if (w0, h0) == (w1, h1) { String::new() } else { format!(" ({w0} to {w1} x {h0} to {h1})") };
        let images = messages::count(self.good_images, "good image");
        writeln!(f, "{}: {images}, frames of {width}x{height}{sizes}", self.class)?;
        if let Some((n, low, median)) = self.defects {
            let masks = messages::count(n, "mask");
            writeln!(
                f,
                "  {masks}: a tenth of the defects are below {low:.0} pixels, half below {median:.0} (root of the area)"
            )?;
        }
        let mut table = Table::new(&[
            ("", Left),
            ("input.size", Left),
            ("cells", Left),
            ("smallest defect", Right),
            ("ms a frame", Right),
        ]);
        for (i, Choice { input, grid, smallest_defect, milliseconds }) in self.choices.iter().enumerate() {
            table.row(vec![
                if i == self.proposed { "  ->".into() } else { "    ".into() },
                format!("{:?}", input.sides()),
                grid.to_string(),
                format!("{smallest_defect:.0} px"),
                format!("{milliseconds:.0}"),
            ]);
        }
        writeln!(f, "{table}")?;
        write!(f, "  diad train --set input.size={}", setting(self.choices[self.proposed].input))?;
        if let Some([x, y, width, height]) = self.roi {
            write!(f, " --set input.roi=[{x},{y},{width},{height}]")?;
        }
        match self.defects {
            Some((_, smallest, _)) if self.choices[self.proposed].smallest_defect > smallest => {
                write!(f, "\n  even that will miss the smallest of these defects")
            }
            Some(_) => Ok(()),
            None => write!(
                f,
                "\n  no masks of defects were there to go by: choose the row that shows the smallest you know"
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_region_holds_what_is_seen() {
        // Grey everywhere but for a square from (100, 50) to (150, 100) of 400 x 200.
        let frame = |value: u8| {
            let inside = |x: usize, y: usize| (100..150).contains(&x) && (50..100).contains(&y);
            let pixel = |i: usize| [if inside(i % 400, i / 400) { value } else { 90 }; 3];
            Frame::new(400, 200, (0..400 * 200).flat_map(pixel).collect()).unwrap()
        };
        let [x, y, width, height] = region(&[frame(200), frame(190)]).unwrap();
        assert!(x <= 0.25 && x + width >= 0.375 && y <= 0.25 && y + height >= 0.5, "{x} {y} {width} {height}");
        assert!(width < 0.25 && height < 0.45, "{width} {height}");
        assert!(region(&[frame(90)]).is_none(), "nothing is seen anywhere");
    }
}
