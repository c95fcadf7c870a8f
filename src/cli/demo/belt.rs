//! The demo's production line: parts as numbered files, and the gst-launch line that inspects them as a camera's frames.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde::Deserialize;

use crate::data::{Dataset, Label};
use crate::detector::{Detector, Request};
use crate::error::{Error, Result};
use crate::files::write_atomic;
use crate::frame::read_frame;

/// Frames per second of the video: slow enough to read.
const RATE: usize = 4;

/// What came off the line.
pub(super) struct Passed {
    /// Frames with this verdict.
    pub(super) verdicts: BTreeMap<String, usize>,
    /// Frames whose score has the bits that the library gives the same image.
    pub(super) same_bits: usize,
    /// Frames that the model should and did reject, or should and did pass.
    pub(super) right: usize,
    /// All frames.
    pub(super) frames: usize,
}

/// The fields of a result that are looked at here.
#[derive(Deserialize)]
struct Line {
    verdict: String,
    results: Vec<Found>,
}

#[derive(Deserialize)]
struct Found {
    score: Option<f32>,
}

/// A line of parts in the demo's folder.
pub(super) struct Belt {
    folder: PathBuf,
    parts: Vec<(PathBuf, bool)>, // (image, is it a defect)
}

impl Belt {
    /// Lays the test parts of all products on the belt, well mixed, as `line/part_000.png` and so on.
    ///
    /// # Errors
    /// When a file cannot be copied.
    pub(super) fn lay(folder: &Path, data: &Dataset) -> Result<Self> {
        let samples = data.categories.iter().flat_map(|category| &category.test);
        let mut parts: Vec<_> = samples.map(|sample| (sample.path.clone(), sample.label != Label::Good)).collect();
        // A stride that shares no factor with any number of parts we draw: neighbours on the belt come from far apart.
        let mut order: Vec<usize> = (0..parts.len()).collect();
        order.sort_by_key(|i| i * 7919 % 10_007);
        parts = order.into_iter().map(|i| parts[i].clone()).collect();
        let place = folder.join("line");
        super::super::predict::prepare_folder(&place)?;
        for (number, (path, _)) in parts.iter().enumerate() {
            let target = place.join(format!("part_{number:03}.png"));
            std::fs::copy(path, &target).map_err(|error| Error::io(&target, "cannot write", error))?;
        }
        Ok(Self { folder: folder.to_path_buf(), parts })
    }

    /// The arguments of gst-launch-1.0.
    fn arguments(&self) -> Vec<String> {
        let at = |name: &str| self.folder.join(name).display().to_string();
        let last = self.parts.len().saturating_sub(1);
        let words = |text: &str| text.split(' ').map(str::to_owned).collect::<Vec<_>>();
        // A path is one argument whatever is in it.
        [
            words("multifilesrc"),
            vec![format!("location={}", at("line/part_%03d.png"))],
            words(&format!("start-index=0 stop-index={last} caps=image/png,framerate={RATE}/1")),
            words("! pngdec ! videoconvert ! video/x-raw,format=RGB ! diadfilter"),
            vec![format!("model={}", at("demo.diad"))],
            words("overlay=verdict+boxes+heatmap+contour ! tee name=t"),
            words("t. ! queue ! videoconvert ! video/x-raw,format=I420 ! x264enc ! mp4mux ! filesink"),
            vec![format!("location={}", at("demo.mp4"))],
            words("t. ! queue ! diadmeta2json ! filesink"),
            vec![format!("location={}", at("demo.jsonl"))],
        ]
        .concat()
    }

    /// The line as a shell takes it.
    pub(super) fn words(&self) -> String {
        let quote = |word: String| {
            let plain = word.chars().all(|c| c.is_ascii_alphanumeric() || "/._-=+,:!".contains(c));
            if plain { word } else { format!("'{}'", word.replace('\'', "'\\''")) }
        };
        let words: Vec<String> = self.arguments().into_iter().map(quote).collect();
        format!("gst-launch-1.0 {}", words.join(" "))
    }

    /// Two lines for `diad run`, on which the parts go by for ever, each from another part on.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub(super) fn lines(&self) -> Result<PathBuf> {
        let folder =
            std::path::absolute(&self.folder).map_err(|error| Error::io(&self.folder, "cannot find", error))?;
        let text = |name: &str| toml::Value::String(folder.join(name).display().to_string()).to_string();
        let source = |first: usize| {
            let series = folder.join("line/part_%03d.png").display().to_string();
            let series = series.replace('\\', "\\\\").replace('"', "\\\"");
            let last = self.parts.len().saturating_sub(1);
            let launch = format!(
                "multifilesrc location=\"{series}\" index={first} stop-index={last} loop=true \
                 caps=image/png,framerate={RATE}/1 ! pngdec ! clocksync ! videoconvert ! video/x-raw,format=RGB"
            );
            toml::Value::String(launch).to_string()
        };
        let lines = format!(
            "# Two lines for `diad run`: the drawn parts go by for ever. Ctrl-C ends it.\n\
             schema = 1\nname = \"demo\"\nstate-dir = {}\n\n[defaults]\nmodel = {}\n\
             # Pictures of what is not ok, with what was said of it, in {}/state/archive.\n\
             archive = {{ max-size = \"200MB\" }}\n\n\
             [[line]]\nname = \"belt-a\"\nsource = {{ launch = {} }}\nresults = {}\n\n\
             [[line]]\nname = \"belt-b\"\nsource = {{ launch = {} }}\n",
            text("state"),
            text("demo.diad"),
            self.folder.display(),
            source(0),
            text("belt-a.jsonl"),
            source(self.parts.len() / 2),
        );
        let path = self.folder.join("line.toml");
        write_atomic(&path, lines.as_bytes())?;
        Ok(path)
    }

    /// Runs the line; the video and the results are in the demo's folder afterwards.
    ///
    /// # Errors
    /// [`Error::Usage`] that says what is missing, where GStreamer or the plugin is; otherwise what gst-launch-1.0 said.
    pub(super) fn run(&self, detector: &Detector) -> Result<Passed> {
        let mut command = Command::new("gst-launch-1.0");
        command.args(self.arguments()).stdin(Stdio::null());
        if let Some(path) = plugin_path() {
            command.env("GST_PLUGIN_PATH", path);
        }
        let output = command.output().map_err(|error| {
            Error::Usage(format!("gst-launch-1.0: {error}; install it with apt-get install gstreamer1.0-tools"))
        })?;
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            if said.contains("no element \"diadfilter\"") {
                return Err(Error::Usage(
                    "GStreamer does not find diadfilter: build it with cargo build --release -p gst-plugin-diad, and set \
                     GST_PLUGIN_PATH to the folder of libgstdiad.so"
                        .into(),
                ));
            }
            let last: Vec<&str> =
                said.lines().filter(|line| line.contains("ERROR") || line.contains("WARNING")).collect();
            let why = if last.is_empty() { said.trim().to_owned() } else { last.join("; ") };
            return Err(Error::Internal(format!("gst-launch-1.0 failed: {why}")));
        }
        self.read(detector)
    }

    fn read(&self, detector: &Detector) -> Result<Passed> {
        let path = self.folder.join("demo.jsonl");
        let text = std::fs::read_to_string(&path).map_err(|error| Error::io(&path, "cannot read", error))?;
        let lines: Vec<Line> = text
            .lines()
            .map(serde_json::from_str)
            .collect::<Result<_, _>>()
            .map_err(|error| Error::data(&path, format!("expected one JSON object per line: {error}")))?;
        let mut passed = Passed { verdicts: BTreeMap::new(), same_bits: 0, right: 0, frames: lines.len() };
        for (line, (path, defect)) in lines.iter().zip(&self.parts) {
            *passed.verdicts.entry(line.verdict.clone()).or_default() += 1;
            passed.right += usize::from((line.verdict == "ng") == *defect);
            let expected = detector.inspect_frames(&[read_frame(path)?], &Request::default()).pop();
            let same = expected
                .and_then(Result::ok)
                .is_some_and(|found| matches!(&line.results[..], [Found { score }] if *score == Some(found.score)));
            passed.same_bits += usize::from(same);
        }
        Ok(passed)
    }
}

/// Where the plugin is looked for: where the user says, and beside this program.
fn plugin_path() -> Option<OsString> {
    let mut folders: Vec<PathBuf> =
        std::env::var_os("GST_PLUGIN_PATH").iter().flat_map(std::env::split_paths).collect();
    folders.extend(std::env::current_exe().ok().and_then(|program| Some(program.parent()?.to_path_buf())));
    std::env::join_paths(folders).ok()
}
