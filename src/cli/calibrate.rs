//! `diad calibrate`

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use super::args::{CalibrateArgs, OnArgs};
use super::console::Console;
use super::images::{check_exists, sketch};
use super::train::warn_ignored;
use super::{Context, messages};
use crate::bundle::{self, CalibrationCard, Card, ClassCard, ImageCard, SCHEMA, ScoreSource};
use crate::config::{CalibrationConfig, Grouping};
use crate::data::{Category, Dataset, GroupBy, Groups, Input, ReadAhead, check_unreadable, groups};
use crate::detector::{ClassChoice, Detector, Network, Request, expected_tensors, set_defect_term};
use crate::device::{Arithmetic, Device, Precision};
use crate::error::{Error, Result};
use crate::files::check_writable;
use crate::train::{ClassScores, FreshParts, KnownDefect, check_known_defects, check_not_good, check_rate, measured};

/// Images scored at a time.
const GROUP: usize = 8;

pub(super) fn run(context: &Context, args: &CalibrateArgs) -> Result<()> {
    let console = &context.console;
    for (flag, rate) in [("--target-fpr", Some(args.target_fpr)), ("--warn-fpr", args.warn_fpr)] {
        if let Some(rate) = rate
            && !(rate > 0.0 && rate < 1.0)
        {
            return Err(Error::Usage(format!("{flag} {rate}: expected a share of good parts between 0 and 1")));
        }
    }
    if args.warn_fpr.is_some_and(|warn| warn < args.target_fpr) {
        return Err(Error::Usage("--warn-fpr must not be below --target-fpr: what is ng is warned of as well".into()));
    }
    check_exists(&args.model)?;
    check_writable(&args.out)?;
    let card = bundle::read_card(&args.model)?;
    let (data, targets) = products(args, &card)?;
    for (category, &class) in data.categories.iter().zip(&targets) {
        check_rate(&card.classes[class].name, category.train.len(), args.target_fpr)?;
    }
    warn_ignored(console, &data.root, &data.ignored);

    let rule = args.group.rule()?;
    for category in &data.categories {
        groups::stated(rule.as_ref(), true, &category.root, &category.train)?;
    }
    let names: Vec<&str> = targets.iter().map(|&class| card.classes[class].name.as_str()).collect();
    let samples = args.known.find(console, &names)?;
    if !samples.is_empty() {
        check_known_defects(&card.config)?;
    }
    let devices = devices(&card, &args.on)?;
    if !samples.is_empty() && devices.iter().all(|device| device.arithmetic() != Arithmetic::F32) {
        let precision = args.on.precision;
        return Err(Error::Usage(format!(
            "--precision {precision}: known defects are taught in f32; leave --precision out, to measure thresholds in {precision} as well"
        )));
    }
    let file = bundle::load(&args.model, expected_tensors)?;
    let mut tensors: BTreeMap<_, _> = file.tensors.into_iter().collect();
    let detectors = devices.iter().map(|device| Detector::open_unmeasured(&args.model, device));
    let detectors = detectors.collect::<Result<Vec<_>>>()?;
    let mut card = file.card;
    let mut settings = card.config.calibration.clone();
    (settings.target_fpr, settings.warn_fpr) = (Some(args.target_fpr), args.warn_fpr);
    let total: usize = data.categories.iter().map(|category| category.train.len()).sum();
    let mut task = context.task("calibrate", total * detectors.len());
    let mut done = 0;
    let preparation = detectors[0].preparation();
    for (product, (category, &class)) in data.categories.iter().zip(&targets).enumerate() {
        let known = Known::of(&card, args.known.defects.is_some().then_some(class));
        let defects = samples.get(product).map_or(&[][..], Vec::as_slice);
        let read = |sample| KnownDefect::read(sample, preparation, class, &context.depth);
        let defects = defects.iter().map(read);
        let defects = defects.collect::<Result<Vec<_>>>()?;
        check_defects(&defects, &known)?;
        if known.nothing {
            console.warn(format_args!(
                "{}: cannot check whether these were trained on: the model was made by an older diad",
                category.name
            ));
        }
        if args.on.precision == Precision::Auto {
            forget(console, &mut card.classes[class], &devices);
        }
        let mut uses_term = None; // as the first of them, single precision, finds: all precisions share one term
        for (number, detector) in detectors.iter().enumerate() {
            let arithmetic = detector.network().device().arithmetic();
            let mut parts = (!defects.is_empty()).then(FreshParts::default);
            let mut fresh = inspect(context, detector.network(), class, category, &known, parts.as_mut(), |more| {
                done += more;
                task.set(done, &category.name);
            })?;
            if let Some(first) = fresh.trained_on.first().filter(|_| number == 0) {
                let images = messages::count(fresh.trained_on.len(), "image");
                console.warn(format_args!(
                    "{images} left out that the model was trained on, the first {}",
                    first.display()
                ));
            }
            let groups = fresh.groups(rule.as_ref(), &settings, category)?;
            if number == 0 {
                console.note(messages::groups(&category.name, &fresh.paths, &groups));
            }
            let taught = match parts {
                Some(parts) => {
                    let paths = fresh.paths.iter().map(PathBuf::as_path);
                    let digests = |image: &ImageCard| [image.file_sha256.clone(), image.pixels_sha256.clone()];
                    let digests: Vec<_> = fresh.images.iter().map(digests).collect();
                    check_not_good(&defects, paths.zip(&digests))?;
                    let taught = parts.teach(detector.network(), class, &groups.of, &defects, args.target_fpr)?;
                    let used = usize::from(*uses_term.get_or_insert(taught.card.taught));
                    for (image, [score, peak]) in fresh.images.iter_mut().zip(&taught.good[used]) {
                        (image.score, image.peak) = (Some(*score), Some(*peak));
                    }
                    Some(taught)
                }
                None => None,
            };
            let mut scores = ClassScores::default();
            for (found, &group) in fresh.images.iter().zip(&groups.of) {
                scores.push(found.score.unwrap_or_default(), found.peak.unwrap_or_default(), group);
            }
            let source = CalibrationCard {
                source: ScoreSource::Fresh,
                folds: 0,
                groups: groups.source,
                not_located: fresh.not_located,
            };
            let new = &mut card.classes[class];
            let measured = measured(&new.name, scores, &settings, source)?;
            if arithmetic != Arithmetic::F32 {
                new.measured.insert(arithmetic.name().to_owned(), measured);
                continue;
            }
            *new = new.clone().with(measured);
            // Numbers of parts on the card go on.
            new.images.retain(|image| image.taught);
            let first = new.images.iter().map(|image| image.group + 1).max().unwrap_or(0);
            let found = fresh.images.into_iter().zip(&groups.of);
            new.images.extend(found.map(|(found, &group)| ImageCard { group: first + group, ..found }));
            if let Some(taught) = taught {
                new.known_defects = Some(taught.card.clone());
                set_defect_term(&mut tensors, &card, class, taught.term)?;
            }
        }
    }
    task.finish();
    card.schema = SCHEMA;
    bundle::save(&args.out, &card, &tensors)?;
    console.print(format_args!("{}", args.out.display()))?;
    for (index, class) in card.classes.iter().enumerate() {
        let kept = if targets.contains(&index) { "" } else { " (unchanged)" };
        console.print(format_args!("{}{kept}", messages::cost(class)))?;
        if let Some(known) =
            class.known_defects.as_ref().filter(|_| targets.contains(&index) && args.known.defects.is_some())
        {
            console.print(messages::known_defects(class, known))?;
        }
    }
    Ok(())
}

/// The devices that measure, single precision first: in the precision that is asked for, or in all that the card has thresholds for
/// and in the fastest, as far as they are there.
fn devices(card: &Card, on: &OnArgs) -> Result<Vec<Device>> {
    let device = on.place.device.find(Precision::F32)?.open()?;
    if on.precision != Precision::Auto {
        return Ok(vec![device.in_precision(on.precision)?]);
    }
    let held = |device: &Device| card.classes.iter().any(|class| class.measured_in(device.arithmetic()).is_some());
    let fast = |device: &Device| device.arithmetic() == Arithmetic::CpuBf16;
    let others =
        [Precision::F16, Precision::Bf16].into_iter().filter_map(|precision| device.in_precision(precision).ok());
    let others = others.filter(|device| held(device) || fast(device)).collect::<Vec<_>>();
    Ok([device].into_iter().chain(others).collect())
}

/// Takes thresholds off a class that these devices cannot measure anew: they would promise another rate than the new ones.
fn forget(console: &Console, class: &mut ClassCard, devices: &[Device]) {
    let stays = |name: &str| devices.iter().any(|device| device.arithmetic().name() == name);
    for name in class.measured.keys().filter(|name| !stays(name)) {
        console.warn(format_args!(
            "{}: its thresholds in {name} are left out: this device does not compute in it, and they promise what was promised before",
            class.name
        ));
    }
    class.measured.retain(|name, _| stays(name));
}

/// The folders to score, and for each the index of its class in the model.
fn products(args: &CalibrateArgs, card: &Card) -> Result<(Dataset, Vec<usize>)> {
    let position = |name: &str| card.classes.iter().position(|class| class.name == name);
    let known = || card.classes.iter().map(|class| class.name.as_str()).collect::<Vec<_>>().join(", ");
    let data = Dataset::scan(&args.data, &[])?;
    // One folder of any name: it is of the class that --class names, or of the only one.
    if let [category] = data.categories.as_slice() {
        let named = match args.classes.as_slice() {
            [] => position(&category.name).or((card.classes.len() == 1).then_some(0)),
            [name] => position(name),
            _ => return Err(Error::Usage("--class can be given once for a single folder of images".into())),
        };
        let wanted = args.classes.first().unwrap_or(&category.name);
        return named.map(|class| (data.clone(), vec![class])).ok_or_else(|| {
            Error::Usage(format!("class {wanted:?} is not in the model; name one with --class: {}", known()))
        });
    }
    let data = if args.classes.is_empty() { data } else { Dataset::scan(&args.data, &args.classes)? };
    let targets = data.categories.iter().map(|category| {
        position(&category.name).ok_or_else(|| {
            let name = &category.name;
            Error::Usage(format!("class {name:?} is not in the model, which knows {}; choose with --class", known()))
        })
    });
    let targets = targets.collect::<Result<Vec<_>>>()?;
    Ok((data, targets))
}

/// Digests of the images that a model knows.
struct Known {
    /// It was trained on them as good parts.
    good: BTreeSet<String>,
    /// It was taught them as defects.
    defects: BTreeSet<String>,
    /// The card says nothing of them.
    nothing: bool,
}

impl Known {
    /// Of the class `taught_anew` other defects take the place of its own.
    fn of(card: &Card, taught_anew: Option<usize>) -> Self {
        let images = || card.classes.iter().flat_map(|class| &class.images);
        let taught = images().filter(|image| image.taught);
        let good = taught.flat_map(|image| [image.file_sha256.clone(), image.pixels_sha256.clone()]).collect();
        let stay = card.classes.iter().enumerate().filter(|&(class, _)| Some(class) != taught_anew);
        let defects = stay.filter_map(|(_, class)| class.known_defects.as_ref()).flat_map(|known| &known.images);
        let defects = defects.flat_map(|image| [image.file_sha256.clone(), image.pixels_sha256.clone()]).collect();
        Self { good, defects, nothing: images().next().is_none() }
    }
}

/// Refuses defects that the model was trained on as good parts.
fn check_defects(defects: &[KnownDefect], known: &Known) -> Result<()> {
    match defects.iter().find(|defect| defect.digests.iter().any(|digest| known.good.contains(digest))) {
        Some(defect) => Err(Error::data(&defect.path, "the model was trained on this image as a good part")),
        None => Ok(()),
    }
}

/// The images of one product that the model has not learned from, inspected.
#[derive(Default)]
struct Fresh {
    paths: Vec<PathBuf>,
    images: Vec<ImageCard>,
    /// Features in short, [`groups::SKETCH`] numbers of each.
    sketches: Vec<f32>,
    trained_on: Vec<PathBuf>,
    /// Images in which the part was not found.
    not_located: usize,
}

impl Fresh {
    /// The parts that they show.
    fn groups(&self, rule: Option<&GroupBy>, settings: &CalibrationConfig, category: &Category) -> Result<Groups> {
        let images = self.paths.len();
        if images == 0 {
            let reason = "the model was trained on every one of these images: expected good parts that it has not seen";
            return Err(Error::data(&category.root, reason));
        }
        if let Some(stated) = groups::stated(rule, settings.groups != Grouping::None, &category.root, &self.paths)? {
            return Ok(stated);
        }
        match settings.groups {
            Grouping::Auto => groups::alike_if_comparable(&self.sketches, images),
            Grouping::File | Grouping::None => Ok(Groups::none(images)),
        }
    }
}

/// Inspects the good images of one product as parts of a class.
fn inspect(
    context: &Context,
    network: &Network,
    class: usize,
    category: &Category,
    known: &Known,
    mut parts: Option<&mut FreshParts>,
    mut progress: impl FnMut(usize),
) -> Result<Fresh> {
    let request = Request { class: ClassChoice::Known(class), ..Request::default() };
    let preparation = network.preparation();
    let read = |path: &Path| {
        Input::read(path, &preparation, class, &context.depth).map(|input| (input.digests(), input.own().clone()))
    };
    let mut fresh = Fresh::default();
    let mut images = ReadAhead::new(GROUP, &context.stop);
    images.each_group(&category.train, read, |group| {
        progress(group.len());
        let mut inputs = Vec::with_capacity(group.len());
        for (index, image) in group {
            let path = category.train[index].clone();
            match image {
                Ok((digests, _)) if digests.iter().any(|digest| known.good.contains(digest)) => {
                    fresh.trained_on.push(path);
                }
                Ok((digests, _)) if digests.iter().any(|digest| known.defects.contains(digest)) => {
                    return Err(Error::data(&path, "the model was taught this image as a defect; expected good parts"));
                }
                Ok((_, input)) if input.lost => {
                    fresh.not_located += 1;
                    context.console.warn(messages::not_located(&path));
                }
                Ok((digests, input)) => inputs.push((path, input, digests)),
                Err(error) => context.console.warn(messages::left_out(&error)),
            }
        }
        let requests: Vec<_> = inputs.iter().map(|(_, input, _)| (std::slice::from_ref(input), &request)).collect();
        let inspections = network.inspect(&requests);
        if let Some(parts) = &mut parts {
            parts.look(network, &inputs.iter().map(|(_, input, _)| input).collect::<Vec<_>>(), class)?;
        }
        for ((path, input, [file_sha256, pixels_sha256]), inspection) in inputs.iter().zip(inspections) {
            let inspection = inspection?;
            fresh.sketches.extend(sketch(network, input)?);
            fresh.paths.push(path.clone());
            fresh.images.push(ImageCard {
                file_sha256: file_sha256.clone(),
                pixels_sha256: pixels_sha256.clone(),
                group: 0,
                taught: false,
                score: Some(inspection.score),
                peak: Some(inspection.map.peak()),
                prototype_distance: Some(inspection.prototype_distance),
            });
        }
        Ok(())
    })?;
    check_unreadable(&category.root, category.train.len(), &images.unreadable)?;
    Ok(fresh)
}
