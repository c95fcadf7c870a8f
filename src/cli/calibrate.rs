//! `diad calibrate`

use std::collections::BTreeMap;

use rayon::prelude::*;

use super::args::CalibrateArgs;
use super::frames::{check_exists, in_groups};
use super::train::warn_ignored;
use super::{Context, words};
use crate::bundle::{self, Card};
use crate::calibrate::conformal_rank;
use crate::data::{Category, Dataset};
use crate::detector::{ClassChoice, Detector, Network, Request, expected_tensors};
use crate::error::{Error, Result};
use crate::files::check_writable;
use crate::train::{ClassScores, class_card};

/// Share of a product's images that may be unreadable: the promise is for parts as they come, not for those that remain.
const MAX_UNREADABLE: f64 = 0.05;
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
        check_enough(&card.classes[class].name, category.train.len(), args.target_fpr)?;
    }
    warn_ignored(console, &data.root, &data.ignored);

    let file = bundle::load(&args.model, expected_tensors)?;
    let detector = Detector::open_on(&args.model, &args.on.find()?.open()?)?;
    let mut card = file.card;
    let mut settings = card.config.calibration.clone();
    (settings.target_fpr, settings.warn_fpr) = (Some(args.target_fpr), args.warn_fpr);
    let total = data.categories.iter().map(|category| category.train.len()).sum();
    let mut task = console.task("calibrate", total);
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
        console.print(format_args!("{}{kept}", words::cost(class)))?;
    }
    Ok(())
}

/// The folders to score, and for each the index of its class in the model.
fn products(args: &CalibrateArgs, card: &Card) -> Result<(Dataset, Vec<usize>)> {
    let position = |name: &str| card.classes.iter().position(|class| class.name == name);
    let known = || card.classes.iter().map(|class| class.name.as_str()).collect::<Vec<_>>().join(", ");
    let data = Dataset::scan(&args.data, &[])?;
    // One folder of any name: it is the class that was named, or the only one there is.
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

/// Refuses a rate that so many images cannot promise, before any work is done.
fn check_enough(class: &str, n: usize, target: f64) -> Result<()> {
    conformal_rank(n, target).map(drop).map_err(|few| Error::Usage(format!("class {class}: {few}")))
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
    let preprocess = network.preprocess();
    let mut scores = ClassScores::default();
    let mut lost = 0;
    in_groups(context, &category.train, GROUP, |group| {
        progress(group.len());
        let prepared: Vec<_> = group.par_iter().map(|(_, frame)| frame.as_ref().map(|f| preprocess.apply(f))).collect();
        let mut inputs = Vec::with_capacity(prepared.len());
        for input in prepared {
            match input {
                Ok(input) => inputs.push(input?),
                Err(error) => {
                    lost += 1;
                    context.console.warn(format_args!("{}; left out", words::error(error)));
                }
            }
        }
        let requests: Vec<_> = inputs.iter().map(|input| (input, &request)).collect();
        for inspection in network.inspect(&requests) {
            scores.push(&inspection?);
        }
        Ok(())
    })?;
    if lost as f64 > MAX_UNREADABLE * category.train.len() as f64 {
        return Err(Error::Image {
            path: category.root.clone(),
            reason: format!("{lost} of {} images cannot be read: too many for a promise", category.train.len()),
        });
    }
    Ok(scores)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_that_the_images_cannot_promise_is_refused_with_the_number_it_takes() {
        check_enough("bottle", 19, 0.05).unwrap();
        let error = check_enough("bottle", 18, 0.05).unwrap_err();
        assert_eq!(error.exit_code(), 2);
        let text = error.to_string();
        assert!(text.contains("bottle") && text.contains("needs 19"), "{text}");
    }
}
