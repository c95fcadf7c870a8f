//! `diad evaluate`

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use super::args::EvaluateArgs;
use super::figures;
use super::ground_truth::{ShownArea, ground_truth};
use super::images::{self, Inspected, inspect_all, sketch};
use super::train::warn_ignored;
use super::{Context, baselines, messages};
use crate::bundle::ClassCard;
use crate::config::Size;
use crate::data::{Category, Dataset, GroupBy, Groups, Label, Sample, groups};
use crate::detector::{ClassChoice, Detector, Request, Verdict};
use crate::error::{Error, Result};
use crate::files::{check_writable, write_atomic};
use crate::frame::read_mask;
use crate::metrics::PixelSet;
use crate::report::{
    ClassReport, Curves, Gallery, ImageResult, Latency, OtherPromise, PROMISES, Page, Picture, Report, Thresholds,
    Unreadable,
};
use crate::text::hex;

/// Pictures of each kind (escape, false reject, detected) that a page shows per class.
const PICTURES: usize = 6;

pub(super) fn run(context: &Context, args: &EvaluateArgs) -> Result<()> {
    for target in [&args.report, &args.html].into_iter().flatten() {
        check_writable(target)?;
    }
    let data = Dataset::scan(&args.data, &args.classes)?;
    if data.categories.iter().all(|category| category.test.is_empty()) {
        let expected = "expected test images: test/good and test/DEFECT in each product's folder";
        return Err(Error::data(&args.data, expected));
    }
    let detector = images::open_model(&args.model, &args.run.on)?;
    warn_ignored(&context.console, &data.root, &data.ignored);
    let settings = Settings {
        model: args.model.display().to_string(),
        batch: usize::from(args.run.batch),
        class_known: args.class_known,
        ddim_steps: args.run.ddim_steps.map(usize::from),
        baselines: args.baselines,
        group_by: args.group.rule()?,
    };
    let evaluation = evaluate(context, &detector, &data, &settings)?;
    evaluation.write(args.report.as_deref(), args.html.as_deref())?;
    context.console.print(evaluation.summary())?;
    let unreadable = evaluation.report.unreadable.len();
    if unreadable > 0 {
        return Err(Error::Image {
            path: args.data.clone(),
            reason: format!(
                "{} could not be inspected; the figures are without them",
                messages::count(unreadable, "image")
            ),
        });
    }
    Ok(())
}

/// How to evaluate.
pub(super) struct Settings {
    /// The model's name in the report.
    pub(super) model: String,
    /// Images inspected at a time.
    pub(super) batch: usize,
    /// Whether the model is told the class of each image.
    pub(super) class_known: bool,
    /// Denoiser evaluations; the model's own number if absent.
    pub(super) ddim_steps: Option<usize>,
    /// Whether the baselines are measured as well.
    pub(super) baselines: bool,
    /// How the part that an image shows is told.
    pub(super) group_by: Option<GroupBy>,
}

/// Figures, curves and pictures.
pub(super) struct Evaluation {
    pub(super) report: Report,
    curves: BTreeMap<String, Curves>,
    gallery: Gallery,
}

/// Inspects all test images of `data`.
///
/// # Errors
/// When a class has to be known and is not in the model, when interrupted, when the device fails.
pub(super) fn evaluate(
    context: &Context,
    detector: &Detector,
    data: &Dataset,
    settings: &Settings,
) -> Result<Evaluation> {
    let base = Request { ddim_steps: settings.ddim_steps, ..Request::default() };
    detector.prepare(&base)?;
    let total = data.categories.iter().map(|category| category.test.len()).sum();
    let mut task = context.task("evaluate", total);
    let mut all = All::default();
    let mut gallery = Gallery::new(PICTURES);
    let mut done = 0;
    let classes = || detector.card().classes.iter();
    let good = classes().flat_map(|class| &class.images).map(|image| image.pixels_sha256.as_str());
    let defects = classes().flat_map(|class| &class.known_defects).flat_map(|known| &known.images);
    let known: BTreeSet<&str> = good.chain(defects.map(|image| image.pixels_sha256.as_str())).collect();
    for category in data.categories.iter().filter(|category| !category.test.is_empty()) {
        let class = match settings.class_known {
            true => ClassChoice::of_class(&category.name, detector.card())?,
            false => ClassChoice::Auto,
        };
        let request = Request { class, ..base.clone() };
        let mut class = Class::new(category, &data.root);
        let good = category.test.iter().filter(|sample| !sample.label.is_defect()).map(|sample| sample.path.clone());
        let good: Vec<PathBuf> = good.collect();
        let stated = groups::stated_of_tests(settings.group_by.as_ref(), true, &category.root, &good)?;
        class.sketched = stated.is_none() && groups::comparable(good.len());
        let paths: Vec<PathBuf> = category.test.iter().map(|sample| sample.path.clone()).collect();
        inspect_all(context, detector, &request, settings.batch, &paths, |index, seen| {
            done += 1;
            match seen {
                Ok(seen) if known.contains(hex(&seen.frame.digest()).as_str()) => {
                    class.known.push(paths[index].clone());
                }
                Ok(seen) => class.add(&category.test[index], &seen, detector, &mut gallery)?,
                Err(error) => {
                    context.console.warn(messages::error(&error));
                    class.unreadable.push(unreadable(&paths[index], &data.root, &error));
                }
            }
            task.set(done, &category.name);
            Ok(())
        })?;
        if let Some(first) = class.known.first() {
            let images = messages::count(class.known.len(), "test image");
            context.console.warn(format_args!(
                "{}: {images} left out that the model was made with, the first {}",
                category.name,
                first.display()
            ));
        }
        class.group(stated, &good)?;
        let own = own_class(detector, &category.name);
        all.take(class, thresholds(own), &other_promises(detector, own))?;
    }
    task.finish();
    let mut report = Report::new(&settings.model, data.root.display().to_string(), all.classes, all.images)?;
    report.arithmetic = detector.network().device().arithmetic().to_string();
    report.ms_per_image = Latency::of(&all.ms);
    all.unreadable.sort_by(|a, b| a.path.cmp(&b.path));
    report.unreadable = all.unreadable;
    if settings.baselines {
        report.baselines = baselines::measure(context, detector.network(), detector.card(), data, &report.images)?;
    }
    Ok(Evaluation { report, curves: all.curves, gallery })
}

/// Results of all classes.
#[derive(Default)]
struct All {
    classes: BTreeMap<String, ClassReport>,
    curves: BTreeMap<String, Curves>,
    images: Vec<ImageResult>,
    unreadable: Vec<Unreadable>,
    ms: Vec<f64>,
}

impl All {
    fn take(&mut self, class: Class<'_>, thresholds: Thresholds, promises: &[OtherPromise]) -> Result<()> {
        let name = class.category.name.clone();
        let ranking = class.pixels.map(PixelSet::rank);
        let report = ClassReport::measure(&class.images, ranking.as_ref(), thresholds, promises)?;
        if let Some(ranking) = &ranking {
            self.curves.insert(name.clone(), Curves::of(ranking));
        }
        self.classes.insert(name, report);
        self.images.extend(class.images);
        self.unreadable.extend(class.unreadable);
        self.ms.extend(class.ms);
        Ok(())
    }
}

/// Results of one class, while its images are inspected.
struct Class<'a> {
    category: &'a Category,
    root: &'a Path,
    images: Vec<ImageResult>,
    /// Absent where no test image has a mask.
    pixels: Option<PixelSet>,
    unreadable: Vec<Unreadable>,
    ms: Vec<f64>,
    /// Images that the model was taught or calibrated with, which say nothing of it.
    known: Vec<PathBuf>,
    /// Whether good images are compared with each other.
    sketched: bool,
    /// Features of the good images in short.
    sketches: Vec<f32>,
}

impl<'a> Class<'a> {
    fn new(category: &'a Category, root: &'a Path) -> Self {
        let masks = category.test.iter().any(|sample| sample.mask.is_some());
        let pixels = masks.then(PixelSet::new);
        Self {
            category,
            root,
            images: Vec::new(),
            pixels,
            unreadable: Vec::new(),
            ms: Vec::new(),
            known: Vec::new(),
            sketched: false,
            sketches: Vec::new(),
        }
    }

    /// Says which part each good image shows: as was stated of the files `good`, or by likeness.
    fn group(&mut self, stated: Option<Groups>, good: &[PathBuf]) -> Result<()> {
        let mut own: Vec<&mut ImageResult> =
            self.images.iter_mut().filter(|image| image.label == Label::Good.name()).collect();
        if let Some(stated) = stated {
            let root = self.root;
            let group: BTreeMap<String, u32> =
                good.iter().map(|path| messages::below(path, root)).zip(stated.of).collect();
            own.iter_mut().for_each(|image| image.group = group.get(&image.path).map(ToString::to_string));
        } else if self.sketched {
            let found = groups::alike_if_comparable(&self.sketches, own.len())?;
            own.iter_mut().zip(found.of).for_each(|(image, group)| image.group = Some(group.to_string()));
        }
        Ok(())
    }

    fn add(&mut self, sample: &Sample, seen: &Inspected, detector: &Detector, gallery: &mut Gallery) -> Result<()> {
        let detection = &seen.detection;
        let map = &detection.map;
        let truth = match ground_truth(sample, &map.geometry) {
            Ok(truth) => truth,
            Err(error) => {
                self.unreadable.push(unreadable(sample.mask.as_deref().unwrap_or(&sample.path), self.root, &error));
                None
            }
        };
        if let (Some(pixels), Some(truth)) = (&mut self.pixels, &truth) {
            let area = ShownArea::of(&map.geometry);
            pixels.push(&area.cut(&map.on_input()), &area.cut(truth), area.width, area.height)?;
        }
        let image = ImageResult {
            path: messages::below(&sample.path, self.root),
            category: self.category.name.clone(),
            label: sample.label.name().to_owned(),
            group: None, // until all are there
            score: detection.score,
            threshold: detection.threshold,
            percentile: detection.percentile,
            verdict: detection.verdict.to_string(),
            rejected: detection.verdict == Verdict::Ng,
            class: Some(detection.class.clone()),
            class_source: detection.class_source.to_string(),
        };
        let Size { width: map_width, height: map_height } = map.geometry.input;
        gallery.offer(&image, || {
            Ok(Picture {
                frame: seen.frame.clone(),
                map: map.over_frame(map_width, map_height),
                map_width,
                map_height,
                pixel_threshold: detection.pixel_threshold,
                mask: sample
                    .mask
                    .as_deref()
                    .map(|mask| read_mask(mask, seen.frame.width(), seen.frame.height()))
                    .transpose()?,
            })
        })?;
        if self.sketched && !sample.label.is_defect() {
            let class = detector.card().classes.iter().position(|class| class.name == self.category.name);
            let input = detector.preparation().of_frame(&seen.frame, class.unwrap_or(0))?;
            self.sketches.extend(sketch(detector.network(), &input)?);
        }
        self.images.push(image);
        self.ms.push(seen.ms);
        Ok(())
    }
}

fn unreadable(path: &Path, root: &Path, error: &Error) -> Unreadable {
    Unreadable { path: messages::below(path, root), reason: error.to_string() }
}

/// The class of the model whose thresholds hold for this category: that of the same name, or the model's only one.
fn own_class<'a>(detector: &'a Detector, category: &str) -> Option<&'a ClassCard> {
    let classes = &detector.card().classes;
    let own = classes.iter().find(|class| class.name == category);
    own.or(classes.first().filter(|_| classes.len() == 1))
}

/// The thresholds that the model would have at other promises, as far as its `own` class of a category has enough calibration
/// scores for them. All of its classes are there: images may be taken for any.
fn other_promises(detector: &Detector, own: Option<&ClassCard>) -> Vec<OtherPromise> {
    let at = |promised| {
        let limit = |class: &ClassCard| class.threshold(promised).ok().map(|threshold| threshold.value);
        let own = match own {
            Some(own) => Some(limit(own)?),
            None => None,
        };
        let classes = detector.card().classes.iter();
        let by_class = classes.filter_map(|class| Some((class.name.clone(), limit(class)?))).collect();
        Some(OtherPromise { promised, own, by_class })
    };
    PROMISES.into_iter().filter_map(at).collect()
}

fn thresholds(own: Option<&ClassCard>) -> Thresholds {
    own.map_or_else(Thresholds::default, |class| Thresholds {
        threshold: Some(class.ng.value),
        warn_threshold: Some(class.warn.value),
        pixel_threshold: Some(class.pixel_threshold),
        promised_false_reject_rate: Some(class.ng.false_reject_rate),
    })
}

impl Evaluation {
    /// Writes the reports that are wanted.
    ///
    /// # Errors
    /// When a file cannot be written.
    pub(super) fn write(&self, json: Option<&Path>, html: Option<&Path>) -> Result<()> {
        if let Some(path) = json {
            write_atomic(path, self.report.to_json()?.as_bytes())?;
        }
        if let Some(path) = html {
            let page = Page { report: &self.report, curves: &self.curves, gallery: &self.gallery };
            write_atomic(path, page.html()?.as_bytes())?;
        }
        Ok(())
    }

    /// The figures as tables, in per cent.
    pub(super) fn summary(&self) -> String {
        figures::summary(&self.report)
    }
}
