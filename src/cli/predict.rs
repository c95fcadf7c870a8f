//! `diad predict`

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::args::PredictArgs;
use super::images::{self, Inspected, inspect_all};
use super::jsonl::JsonLines;
use super::train::warn_ignored;
use super::{Context, messages};
use crate::data;
use crate::detector::{ClassChoice, ClassSource, Detection, Request, Verdict};
use crate::error::{Error, Result};
use crate::files::{check_writable, write_atomic};
use crate::frame::Frame;
use crate::heatmap::{HeatScale, MapView};
use crate::regions::Region;
use crate::report::png;

/// Longest side in pixels at which the map is computed before it is painted over an image; it is smooth, more would show
/// nothing.
const PAINTED: usize = 512;

pub(super) fn run(context: &Context, args: &PredictArgs) -> Result<()> {
    let console = &context.console;
    images::check_exists(&args.model)?;
    let (paths, ignored) = data::images_in(&args.input)?;
    if paths.is_empty() {
        return Err(Error::data(&args.input, format!("expected an image or a folder of images; it holds {ignored}")));
    }
    let to_stdout = args.jsonl.as_deref() == Some(Path::new("-"));
    let jsonl = args.jsonl.as_deref().filter(|_| !to_stdout);
    jsonl.map_or(Ok(()), check_writable)?;
    if let Some(folder) = &args.out {
        prepare_folder(folder)?;
    }
    let detector = images::open_model(&args.model, &args.run.on)?;
    let class = ClassChoice::parse(&args.class, detector.card())?;
    let request = Request { class, ddim_steps: args.run.ddim_steps.map(usize::from), ..Request::default() };
    detector.prepare(&request)?;
    warn_ignored(console, &args.input, &ignored);

    let names: Vec<String> = paths.iter().map(|path| messages::below(path, &args.input)).collect();
    let columns = Columns { name: names.iter().map(|n| n.chars().count()).max().unwrap_or(0).clamp(5, 60) };
    let pictures = picture_names(&paths);
    if !to_stdout {
        console.print(columns.heading())?;
    }
    let mut lines = jsonl.map(JsonLines::create).transpose()?;
    let mut counts: BTreeMap<String, usize> = BTreeMap::new();
    let mut failed = 0;
    let mut done = 0;
    let mut task = (to_stdout || paths.len() > 1).then(|| context.task("predict", paths.len()));
    let inspected = inspect_all(context, &detector, &request, usize::from(args.run.batch), &paths, |index, seen| {
        let name = &names[index];
        let line = match &seen {
            Ok(seen) => {
                if let Some(folder) = &args.out {
                    write_atomic(folder.join(&pictures[index]), &png(&painted(seen))?)?;
                }
                Line::of(&paths[index], Ok(seen))
            }
            Err(error) => {
                failed += 1;
                console.warn(messages::error(error));
                Line::of(&paths[index], Err(error))
            }
        };
        if let Some(lines) = &mut lines {
            lines.write(&line)?;
        }
        if to_stdout {
            console.print(serde_json::to_string(&line).map_err(|e| Error::Internal(format!("{name}: {e}")))?)?;
        } else {
            console.print(columns.row(name, &line))?;
        }
        *counts.entry(line.verdict().to_string()).or_default() += 1;
        done += 1;
        if let Some(task) = &mut task {
            task.set(index + 1, "");
        }
        Ok(())
    });
    if let Err(error) = inspected {
        console.note(format_args!("{done} of {} done", messages::count(paths.len(), "image")));
        return Err(error);
    }
    if let Some(task) = task {
        task.finish();
    }
    let counted: Vec<String> = counts.iter().map(|(verdict, n)| format!("{n} {verdict}")).collect();
    console.note(format_args!("{}: {}", messages::count(paths.len(), "image"), counted.join(", ")));
    if failed > 0 {
        return Err(Error::Image {
            path: args.input.clone(),
            reason: format!("{} of {} could not be inspected", failed, messages::count(paths.len(), "image")),
        });
    }
    Ok(())
}

/// Makes the folder and checks that a file can be written there.
pub(super) fn prepare_folder(folder: &Path) -> Result<()> {
    std::fs::create_dir_all(folder)
        .map_err(|e| Error::Usage(format!("{}: cannot make this folder: {e}", folder.display())))?;
    check_writable(folder.join("probe.png"))
}

/// The image with its anomaly map painted over it.
pub(super) fn painted(seen: &Inspected) -> Frame {
    let Inspected { frame, detection, .. } = seen;
    let largest = frame.width().max(frame.height());
    let scale = (PAINTED as f64 / largest as f64).min(1.0);
    let side = |pixels: usize| ((pixels as f64 * scale).round() as usize).max(1);
    let (width, height) = (side(frame.width()), side(frame.height()));
    let values = detection.map.over_frame(width, height);
    HeatScale::new(detection.pixel_threshold).paint(frame, MapView { values: &values, width, height })
}

/// File names of the pictures: `part_heat.png`, or `part_jpg_heat.png` where `part.png` and `part.jpg` would collide.
fn picture_names(paths: &[PathBuf]) -> Vec<OsString> {
    let stem = |path: &PathBuf| path.file_stem().unwrap_or_default().to_os_string();
    let mut seen: BTreeMap<OsString, usize> = BTreeMap::new();
    for path in paths {
        *seen.entry(stem(path)).or_default() += 1;
    }
    let name = |path: &PathBuf| {
        let mut name = stem(path);
        if seen.get(&name).is_some_and(|&n| n > 1) {
            name.push("_");
            name.push(path.extension().unwrap_or_default());
        }
        name.push("_heat.png");
        name
    };
    paths.iter().map(name).collect()
}

/// One line of `--jsonl`: the result for one image.
#[derive(Serialize)]
struct Line<'a> {
    image: String,
    #[serde(flatten)]
    answer: Answer<'a>,
}

#[derive(Serialize)]
#[serde(untagged)]
enum Answer<'a> {
    Seen {
        width: usize,
        height: usize,
        #[serde(flatten)]
        detection: &'a Detection,
    },
    Failed {
        verdict: Verdict,
        error: String,
    },
}

impl<'a> Line<'a> {
    fn of(path: &Path, seen: Result<&'a Inspected, &Error>) -> Self {
        let answer = match seen {
            Ok(Inspected { frame, detection, .. }) => {
                Answer::Seen { width: frame.width(), height: frame.height(), detection }
            }
            Err(error) => Answer::Failed { verdict: Verdict::Error, error: error.to_string() },
        };
        Self { image: path.display().to_string(), answer }
    }

    fn verdict(&self) -> Verdict {
        match &self.answer {
            Answer::Seen { detection, .. } => detection.verdict,
            Answer::Failed { verdict, .. } => *verdict,
        }
    }
}

/// Columns of the table on stdout. It is written row by row, so their widths are fixed beforehand.
struct Columns {
    name: usize,
}

impl Columns {
    fn heading(&self) -> String {
        let name = self.name;
        format!("{:name$}  verdict      score  threshold  percentile  class", "image")
    }

    fn row(&self, name: &str, line: &Line<'_>) -> String {
        let (width, verdict) = (self.name, line.verdict().to_string());
        let Answer::Seen { detection, .. } = &line.answer else { return format!("{name:width$}  {verdict}") };
        let class = match detection.class_source {
            ClassSource::UnknownProduct => format!("unknown product (nearest: {})", detection.class),
            ClassSource::NotLocated => format!("{} (not located)", detection.class),
            _ => detection.class.clone(),
        };
        let region = detection.regions.first().map_or_else(String::new, |largest| {
            let Region { x, y, width, height, .. } = largest;
            let more = detection.regions.len() - 1;
            let more = if more > 0 { format!(" and {more} more") } else { String::new() };
            format!("  {width}x{height} at {x},{y}{more}")
        });
        let Detection { score, threshold, percentile, .. } = detection;
        format!("{name:width$}  {verdict:7}  {score:9.4}  {threshold:9.4}  {percentile:10.1}  {class}{region}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pictures_of_images_that_differ_by_extension_only_do_not_collide() {
        let paths = ["a/part.png", "a/part.jpg", "a/other.bmp"].map(PathBuf::from);
        assert_eq!(picture_names(&paths), ["part_png_heat.png", "part_jpg_heat.png", "other_heat.png"]);
    }
}
