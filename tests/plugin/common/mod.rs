//! What tests of the elements share: a model that is trained once, frames, and models that do what a test says.

#![allow(dead_code, reason = "each test program uses its part")]

#[path = "../../common/parts.rs"]
mod parts;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Once};
use std::time::Duration;

use diad::bundle::Card;
use diad::config::Config;
use diad::data::Dataset;
use diad::detector::{Detection, Detector};
use diad::device::{DeviceSpec, Precision};
use diad::error::Result;
use diad::frame::{Frame, read_frame};
use diad::train::{Event, Observer, Options, Stop, train};
use diad::worker::{self, Detect, Job, Shared, SharedKey, Worker};
use gst::prelude::*;
use parts::{draw, made_once};

/// GStreamer with the elements, once per process.
pub(crate) fn init() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        gst::init().unwrap();
        gstdiad::plugin_register_static().unwrap();
    });
}

/// Drawn parts and a model that knows them.
pub(crate) struct Shop {
    pub(crate) parts: PathBuf,
    pub(crate) model: PathBuf,
    /// Another model, of the washers alone.
    pub(crate) other: PathBuf,
}

struct Quiet;

impl Observer for Quiet {
    fn event(&self, _: &Event<'_>) {}
}

/// Trains on `classes` of `parts`, all when empty, with `configs/smoke.toml` and some assignments more.
pub(crate) fn teach(parts: &Path, classes: &[String], out: &Path, assignments: &[&str]) {
    let mut config = Config::from_file(Path::new(env!("CARGO_MANIFEST_DIR")).join("../configs/smoke.toml")).unwrap();
    config.assign(assignments).unwrap();
    let data = Dataset::scan(parts, classes).unwrap();
    let options = Options::new(out.to_owned());
    train(&config, &data, &options, &Quiet, &Stop::default()).unwrap();
}

/// The shop of this build; made once, whichever test process comes first.
pub(crate) fn shop() -> Shop {
    let program = std::env::current_exe().unwrap();
    let place = made_once(Path::new(env!("CARGO_TARGET_TMPDIR")), "line", &program, |fresh| {
        draw(&fresh.join("parts"));
        for (name, classes) in [("m.diad", vec![]), ("other.diad", vec!["washer".to_owned()])] {
            teach(&fresh.join("parts"), &classes, &fresh.join(name), &[]);
        }
    });
    Shop { parts: place.join("parts"), model: place.join("m.diad"), other: place.join("other.diad") }
}

impl Shop {
    /// Test images of a product, as frames.
    pub(crate) fn frames(&self, folder: &str) -> Vec<Frame> {
        let mut paths: Vec<_> =
            fs::read_dir(self.parts.join(folder)).unwrap().map(|entry| entry.unwrap().path()).collect();
        paths.sort();
        paths.iter().map(|path| read_frame(path).unwrap()).collect()
    }
}

/// The frame with a patch of stripes on it, from pixel 12,20 on, that even a model of little training finds.
pub(crate) fn spoiled(frame: &Frame) -> Frame {
    let mut rgb = frame.rgb().to_vec();
    for (y, x) in (20..36).flat_map(|y| (12..28).map(move |x| (y, x))) {
        let colour = if x / 2 % 2 == 0 { [255, 0, 255] } else { [0, 0, 0] };
        rgb[(y * frame.width() + x) * 3..][..3].copy_from_slice(&colour);
    }
    Frame::new(frame.width(), frame.height(), rgb).unwrap()
}

/// A model that does what a test says; `answer` gets the batch and the true model.
pub(crate) struct Scripted<F> {
    model: Detector,
    answer: F,
}

impl<F: FnMut(&[&Job], &Detector) -> Vec<Result<Detection>> + Send> Detect for Scripted<F> {
    fn card(&self) -> &Card {
        self.model.card()
    }

    fn inspect(&mut self, jobs: &[&Job]) -> Vec<Result<Detection>> {
        (self.answer)(jobs, &self.model)
    }
}

/// A worker with a scripted model; elements use it for as long as it is held.
pub(crate) struct ScriptedWorker {
    pub(crate) shared: Arc<Shared>,
    key: SharedKey,
}

impl ScriptedWorker {
    /// Lets an element with the shop's model use it.
    pub(crate) fn serve(&self, element: &gst::Element) {
        element.set_property("model-instance-id", self.key.id.as_deref());
        element.set_property("batch-size", self.key.batch_size as u32);
        element.set_property("batch-timeout", 0u64);
    }
}

/// A worker under `model-instance-id = id` with a scripted model.
pub(crate) fn scripted<F>(shop: &Shop, id: &str, batch_size: usize, answer: F) -> ScriptedWorker
where
    F: FnMut(&[&Job], &Detector) -> Vec<Result<Detection>> + Send + Clone + 'static,
{
    let path = shop.model.clone();
    let found = DeviceSpec::CPU.find(Precision::Auto).unwrap();
    let (card, device, _) = worker::open(&path, found).unwrap();
    let open = move || -> Result<Box<dyn Detect>> {
        Ok(Box::new(Scripted { model: Detector::open(&path)?, answer: answer.clone() }))
    };
    let options = worker::Options { name: "scripted".into(), batch_size, batch_timeout: Duration::ZERO };
    let key = SharedKey {
        id: Some(id.into()),
        digest: card.digest(),
        device: device.to_string(),
        batch_size,
        batch_timeout: Duration::ZERO,
    };
    ScriptedWorker { shared: Shared::join(&key, || Worker::start(Box::new(open), options)).unwrap(), key }
}

/// What the true model says of each job.
pub(crate) fn truly(jobs: &[&Job], model: &Detector) -> Vec<Result<Detection>> {
    model.inspect(&jobs.iter().map(|job| (&job.inputs[..], job.request.as_ref())).collect::<Vec<_>>())
}

/// A counter of a `stats` structure.
pub(crate) fn stat(element: &gst::Element, field: &str) -> u64 {
    element.property::<gst::Structure>("stats").get::<u64>(field).unwrap_or(0)
}

/// Frames in = sum of verdicts.
#[track_caller]
pub(crate) fn assert_all_counted(element: &gst::Element) {
    let sum: u64 = ["ok", "warn", "ng", "uninspected", "error"].iter().map(|verdict| stat(element, verdict)).sum();
    let stats = element.property::<gst::Structure>("stats");
    assert_eq!(stat(element, "frames"), sum, "{stats}");
}

/// All files below a folder, by their paths.
pub(crate) fn files(folder: &Path) -> Vec<PathBuf> {
    let mut all = Vec::new();
    for entry in fs::read_dir(folder).into_iter().flatten().map(|entry| entry.unwrap()) {
        match entry.file_type().unwrap().is_dir() {
            true => all.extend(files(&entry.path())),
            false => all.push(entry.path()),
        }
    }
    all.sort();
    all
}
