//! `diad calibrate`

use std::collections::BTreeMap;

use super::args::CalibrateArgs;
use super::images::{check_exists, prepare};
use super::train::warn_ignored;
use super::{Context, messages};
use crate::bundle::{self, Card};
use crate::data::{Category, Dataset, ReadAhead, check_unreadable};
use crate::detector::{ClassChoice, Detector, Network, Request, expected_tensors};
use crate::error::{Error, Result};
use crate::files::check_writable;
use crate::train::{ClassScores, check_rate, class_card};

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

    let file = bundle::load(&args.model, expected_tensors)?;
    let detector = Detector::open_on(&args.model, &args.on.find()?.open()?)?;
    let mut card = file.card;
    let mut settings = card.config.calibration.clone();
    (settings.target_fpr, settings.warn_fpr) = (Some(args.target_fpr), args.warn_fpr);
    let total = data.categories.iter().map(|category| category.train.len()).sum();
    let mut task = context.task("calibrate", total);
    let mut done = 0;
    for (category, &class) in data.categories.iter().zip(&targets) {
        let scores = scores(context, detector.network(), class, category, |more| {
            done += more;
            task.set(done, &category.name);
        })?;
        let old = &card.classes[class];
        card.classes[class] = class_card(&old.name, old.train_images, scores, old.prototype_limit, &settings)?;
    }
    task.finish();
    let tensors: BTreeMap<_, _> = file.tensors.into_iter().collect();
    bundle::save(&args.out, &card, &tensors)?;
    console.print(format_args!("{}", args.out.display()))?;
    for (index, class) in card.classes.iter().enumerate() {
        let kept = if targets.contains(&index) { "" } else { " (unchanged)" };
        console.print(format_args!("{}{kept}", messages::cost(class)))?;
    }
    Ok(())
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

/// Scores of the good images of one product.
fn scores(
    context: &Context,
    network: &Network,
    class: usize,
    category: &Category,
    mut progress: impl FnMut(usize),
) -> Result<ClassScores> {
    let request = Request { class: ClassChoice::Known(class), ..Request::default() };
    let mut scores = ClassScores::default();
    let mut images = ReadAhead::new(GROUP, &context.stop);
    images.each_group(&category.train, prepare(context, network), |group| {
        progress(group.len());
        let mut inputs = Vec::with_capacity(group.len());
        for (_, image) in group {
            match image {
                Ok(input) => inputs.push(input),
                Err(error) => context.console.warn(messages::left_out(&error)),
            }
        }
        let requests: Vec<_> = inputs.iter().map(|input| (input, &request)).collect();
        for inspection in network.inspect(&requests) {
            scores.push(&inspection?);
        }
        Ok(())
    })?;
    check_unreadable(&category.root, category.train.len(), &images.unreadable)?;
    Ok(scores)
}
