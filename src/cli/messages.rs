//! Numbers and errors as text for users.

use std::path::{Path, PathBuf};

use crate::bundle::{ClassCard, KnownDefectsCard, ScoreSource};
use crate::calibrate;
use crate::config::GroupSource;
use crate::data::{Groups, NOT_LOCATED};
use crate::error::Error;
use crate::metrics::share_interval;
use crate::report::PROMISES;
use crate::train::{FEWEST_DEFECTS, GroupProblem};

/// The text of an error, with all lines but the first indented.
pub(super) fn error(error: &Error) -> String {
    error.to_string().trim_end().replace('\n', "\n  ")
}

/// The warning about an image that is left out because of `reason`.
pub(super) fn left_out(reason: &Error) -> String {
    format!("{}; left out", error(reason))
}

/// The warning about an image of a good part in which the part was not found.
pub(super) fn not_located(path: &Path) -> String {
    format!("{}: {NOT_LOCATED}, and it counts as rejected", path.display())
}

/// `1 image`, `2 images`.
pub(super) fn count(n: usize, thing: &str) -> String {
    if n == 1 { format!("1 {thing}") } else { format!("{n} {thing}s") }
}

/// A rate as a percentage, with two decimals at most: `5 %`, `0.25 %`.
pub(super) fn percent(rate: f64) -> String {
    let value = 100.0 * rate;
    let decimals = if value >= 10.0 || (value - value.round()).abs() < 0.005 { 0 } else { 2 };
    let text = format!("{value:.decimals$}");
    let text = if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.') } else { &text };
    format!("{text} %")
}

/// The thresholds of a class with the false-reject rates they promise, what they rest on, and how many parts a lower rate needs.
pub(super) fn cost(class: &ClassCard) -> String {
    let ClassCard { name, ng, warn, .. } = class;
    let [low, high] = ng.interval.map(percent);
    let lower = lower_rate(ng.false_reject_rate);
    let way = if calibrate::conformal_rank(ng.parts(), lower).is_ok() {
        format!("these suffice; --set calibration.target_fpr={lower} in training, or diad calibrate")
    } else {
        let needed = calibrate::needed(lower);
        format!("{needed} such parts, {} more", needed - ng.parts())
    };
    let images = if ng.groups.is_some() { format!(" ({} images)", ng.n) } else { String::new() };
    let mut scored = match class.calibration.map(|calibration| calibration.source) {
        Some(ScoreSource::OutOfFold) => "each scored by networks that have not seen it".to_owned(),
        _ => "not trained on".to_owned(),
    };
    if let Some(n) = class.calibration.map(|calibration| calibration.not_located).filter(|&n| n > 0) {
        scored += &format!("; {} not found in the image, counted as rejected", count(n, "part"));
    }
    let also: String = class
        .measured
        .iter()
        .map(|(arithmetic, measured)| {
            let (ng, warn) = (measured.ng.value, measured.warn.value);
            format!("\n  in {arithmetic}: rejected above {ng:.4}, warned of above {warn:.4}")
        })
        .collect();
    format!(
        "{name}: rejected above {:.4}, warned of above {:.4}; set on {}{images}, {scored}\n  \
         good parts rejected: at most {} on average; with this very set {low} to {high} (95 %)\n  \
         good parts warned of: at most {}\n  \
         for {} rejected: {way}{also}",
        ng.value,
        warn.value,
        count(ng.parts(), "good part"),
        percent(ng.false_reject_rate),
        percent(warn.false_reject_rate),
        percent(lower),
    )
}

/// What known defects have taught a class, and how many of them pass at the usual promises.
pub(super) fn known_defects(class: &ClassCard, known: &KnownDefectsCard) -> String {
    let n = known.images.len();
    let [without, with] = [known.auroc_without, known.auroc_with].map(|area| 100.0 * area);
    let what = if known.taught {
        format!(
            "the score uses what they teach: image AUROC {without:.1} without it, {with:.1} with it, each seen by the others"
        )
    } else if n < FEWEST_DEFECTS {
        format!("too few to teach anything: image AUROC {without:.1}")
    } else {
        format!("what they teach does not help and is left out: image AUROC {without:.1} without it, {with:.1} with it")
    };
    let passing = |rate: f64| {
        let limit = class.threshold(rate).ok()?.value;
        let pass = known.images.iter().filter(|image| image.score <= limit).count();
        let [low, high] = share_interval(pass as f64, n as f64).ok()?.map(percent);
        Some(format!("\n  at {} false rejects {pass} of {n} pass (95 %: {low} to {high})", percent(rate)))
    };
    let promised = class.ng.false_reject_rate;
    let mut rates: Vec<f64> =
        PROMISES.into_iter().filter(|rate| (rate - promised).abs() > 1e-9).chain([promised]).collect();
    rates.sort_by(f64::total_cmp);
    let trade: String = rates.into_iter().filter_map(passing).collect();
    format!("{}: {}; {what}{trade}", class.name, count(n, "known defect"))
}

/// What was found out about images of one part.
pub(super) fn groups(class: &str, paths: &[PathBuf], groups: &Groups) -> String {
    let how = match groups.source {
        GroupSource::Option => "as --group-by says",
        GroupSource::File => "as groups.csv says",
        GroupSource::Found => "by their likeness",
        GroupSource::None => "each taken for a part of its own",
    };
    let several = || groups.members().into_iter().filter(|images| images.len() > 1).max_by_key(Vec::len);
    let name = |&image: &usize| paths[image].file_name().unwrap_or_default().to_string_lossy().into_owned();
    let largest = several().map_or_else(String::new, |images| {
        let names = images.iter().take(3).map(name).collect::<Vec<_>>().join(", ");
        let more = if images.len() > 3 { format!(" and {} more", images.len() - 3) } else { String::new() };
        format!("; most of one part: {names}{more}")
    });
    let unnamed = match groups.unnamed {
        0 => String::new(),
        n => format!("; {} that it says nothing of counted as parts of their own", count(n, "image")),
    };
    // Far fewer kinds than parts: a few parts, photographed often with something moving, look the same as many in a few poses.
    let poses = match groups.clusters {
        Some(kinds) if 3 * kinds <= groups.count() => format!(
            "; the images are of {kinds} kinds, taken for poses: if each is one part instead, say so with --group-by or \
             groups.csv"
        ),
        _ => String::new(),
    };
    let (images, parts) = (count(paths.len(), "image"), count(groups.count(), "part"));
    format!("{class}: {images} of {parts}, {how}{largest}{unnamed}{poses}")
}

/// Why images of one part were not looked for.
pub(super) fn ungrouped(class: &str, problem: GroupProblem) -> String {
    match problem {
        GroupProblem::TooMany => format!(
            "{class}: too many images to compare each with each; say which show one part with --group-by or groups.csv, or \
             the promise counts pictures for parts"
        ),
        GroupProblem::Unsupported { groups } => format!(
            "{class}: the images seem to show only {groups} different parts, too few for calibration.target_fpr; taken for a \
             part each. Say which show one part with --group-by or groups.csv"
        ),
    }
}

/// The last words of the demo: its files, and what to do next.
pub(super) fn demo_end(out: &Path) -> String {
    let out = out.display();
    format!(
        "See {out}/demo.mp4 (the line, every frame with its verdict), {out}/contact-sheet.png (image | heat map | truth; bar: green ok, amber warn, red ng)\n\
         and {out}/report.html in a browser.\n\
         Next, with your own parts (a folder of good images is enough):\n  \
         diad train --data FOLDER --out mine.diad\n  \
         diad predict --model mine.diad --input IMAGE-or-FOLDER --out heatmaps\n\
         or ask the demo's model: diad predict --model {out}/demo.diad --input {out}/parts/board/test/scratch"
    )
}

/// The next lower of the usual rates.
fn lower_rate(rate: f64) -> f64 {
    const USUAL: [f64; 8] = [0.2, 0.1, 0.05, 0.02, 0.01, 0.005, 0.002, 0.001];
    USUAL.into_iter().find(|&usual| usual < rate * 0.999).unwrap_or(rate / 2.0)
}

/// A path relative to `root`, if it lies below.
pub(super) fn below(path: &Path, root: &Path) -> String {
    let shown = path.strip_prefix(root).ok().filter(|rest| !rest.as_os_str().is_empty()).unwrap_or(path);
    shown.display().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_short_and_never_rounded_to_nothing() {
        for (rate, text) in [
            (0.05, "5 %"),
            (0.0833, "8.33 %"),
            (0.0025, "0.25 %"),
            (0.333_333, "33 %"),
            (0.1, "10 %"),
            (0.0, "0 %"),
            (1.0, "100 %"),
        ] {
            assert_eq!(percent(rate), text);
        }
    }

    #[test]
    fn the_cost_is_said_in_words() {
        let scores: Vec<f32> = (1..=19).map(|i| i as f32).collect();
        let ng = calibrate::conformal(&scores, 0.05).unwrap();
        let warn = calibrate::conformal(&scores, 0.1).unwrap();
        let class = ClassCard {
            name: "bolt".into(),
            train_images: 100,
            calibration_scores: scores,
            ng,
            warn,
            ..crate::bundle::fixture::card(&["bolt"]).classes.remove(0)
        };
        let text = cost(&class);
        for what in [
            "bolt: rejected above 19.0000",
            "19 good parts",
            "at most 5 % on average",
            "at most 10 %",
            "49 such parts, 30 more",
        ] {
            assert!(text.contains(what), "{what} is not in {text}");
        }
    }

    #[test]
    fn a_lower_rate_is_said_with_the_parts_it_takes() {
        assert_eq!(lower_rate(0.05), 0.02);
        assert_eq!(lower_rate(1.0 / 13.0), 0.05);
        assert_eq!(lower_rate(0.001), 0.0005);
    }
}
