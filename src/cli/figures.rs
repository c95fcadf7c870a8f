//! The figures of an evaluation as two plain tables: how well scores rank, and what the thresholds do.

use std::cmp::Ordering;

use super::table::{Align, Table, figure};
use crate::report::{Metrics, OperatingPoint, Report};

use Align::{Left, Right};

/// Rates and metrics in per cent, a dash where there is none.
pub(super) fn summary(report: &Report) -> String {
    let ms = &report.ms_per_image;
    let ms = [ms.p50, ms.p95, ms.p99].map(|v| v.map_or_else(|| "-".to_owned(), |v| format!("{v:.1}")));
    format!(
        "{}\n\nat the thresholds in the model\n{}\n\n{}in per cent; ms per image: p50 {}, p95 {}, p99 {}",
        ranking(report),
        thresholds(report),
        words(report),
        ms[0],
        ms[1],
        ms[2]
    )
}

fn ranking(report: &Report) -> Table {
    let mut table = Table::new(&[
        ("", Left),
        ("good", Right),
        ("defect", Right),
        ("I-AUROC", Right),
        ("I-AP", Right),
        ("I-F1max", Right),
        ("P-AUROC", Right),
        ("P-AP", Right),
        ("P-F1max", Right),
        ("AUPRO", Right),
    ]);
    let row = |name: &str, counts: [String; 2], metrics: &Metrics| {
        let metrics = [
            metrics.image_auroc,
            metrics.image_ap,
            metrics.image_f1max,
            metrics.pixel_auroc,
            metrics.pixel_ap,
            metrics.pixel_f1max,
            metrics.aupro,
        ];
        [name.to_owned()].into_iter().chain(counts).chain(metrics.map(figure)).collect()
    };
    for (name, class) in &report.classes {
        table.row(row(name, [class.n_good.to_string(), class.n_defect.to_string()], &class.metrics));
    }
    let none = || [String::new(), String::new()];
    if report.classes.len() > 1 {
        table.row(row("mean", none(), &report.mean.metrics));
    }
    for (name, baseline) in &report.baselines {
        table.row(row(&format!("{name} (mean)"), none(), &baseline.mean.metrics));
    }
    table
}

fn thresholds(report: &Report) -> Table {
    let mut table = Table::new(&[
        ("", Left),
        ("good parts", Right),
        ("promised", Right),
        ("false rejects", Right),
        ("escapes", Right),
        ("allowed", Right),
    ]);
    let escapes = |all: Option<f64>, ok: Option<f64>| match (all, ok) {
        (None, None) => figure(None),
        (all, ok) => format!("{} / {}", figure(all), figure(ok)),
    };
    let allowed = |point: Option<OperatingPoint>| figure(point.and_then(|point| point.escape_rate));
    for (name, class) in &report.classes {
        table.row(vec![
            name.clone(),
            class.n_groups_good.to_string(),
            figure(class.thresholds.promised_false_reject_rate),
            rejects(class.false_reject_rate, class.false_reject_interval, class.against_promise()),
            escapes(class.escape_rate, class.escape_ok_rate),
            allowed(class.allowed),
        ]);
    }
    if report.classes.len() > 1 {
        let mean = &report.mean;
        table.row(vec![
            "mean".to_owned(),
            String::new(),
            figure(mean.promised_false_reject_rate),
            rejects(mean.false_reject_rate, mean.false_reject_interval, mean.against_promise()),
            escapes(mean.escape_rate, mean.escape_ok_rate),
            allowed(mean.allowed),
        ]);
    }
    for (name, baseline) in &report.baselines {
        if let Some(decision) = baseline.mean.decision {
            let [rejects, escapes] = [decision.false_reject_rate, decision.escape_rate].map(figure);
            table.row(vec![format!("{name} (mean)"), String::new(), String::new(), rejects, escapes, String::new()]);
        }
    }
    table
}

/// A rate with its interval, marked where that does not hold the promise.
fn rejects(rate: Option<f64>, interval: Option<[f64; 2]>, against: Option<Ordering>) -> String {
    let Some([low, high]) = interval else { return figure(rate) };
    let mark = if matches!(against, Some(Ordering::Less | Ordering::Greater)) { "! " } else { "" };
    format!("{mark}{} ({}-{})", figure(rate), end(low), end(high))
}

/// An end of an interval in per cent, in two digits: `0`, `0.5`, `12`.
fn end(rate: f64) -> String {
    let value = 100.0 * rate;
    if value == 0.0 || value >= 9.95 { format!("{value:.0}") } else { format!("{value:.1}") }
}

/// What the columns mean, and where the promise was not met.
fn words(report: &Report) -> String {
    let mut words = String::from(
        "false rejects: good parts rejected, each part counted once; in brackets where the true rate lies, 95 % sure\n\
         escapes: defects that are not ng / defects that are ok\n\
         allowed: escapes if the threshold gave exactly the promised rate on these very good parts\n",
    );
    for (against, meaning) in [
        (
            Ordering::Greater,
            "more false rejects than promised: parts unlike those that set the threshold, or too few of those",
        ),
        (Ordering::Less, "fewer false rejects than promised: for these parts the threshold could be lower"),
    ] {
        let classes = report.classes.iter().filter(|(_, class)| class.against_promise() == Some(against));
        let names: Vec<&str> = classes.map(|(name, _)| name.as_str()).collect();
        if !names.is_empty() {
            words += &format!("! {meaning}: {}\n", names.join(", "));
        }
    }
    words
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::report::{Baseline, ClassReport, GOOD, ImageResult, Thresholds};

    /// A class of `good` and `defective` images at threshold 1: of each kind so many are rejected, warned of, ok.
    fn class(name: &str, promised: f64, good: [usize; 3], defective: [usize; 3]) -> (String, ClassReport) {
        let kinds = [("ng", 2.0), ("warn", 0.9), ("ok", 0.5)];
        let images = |label: &str, counts: [usize; 3]| -> Vec<ImageResult> {
            let of = |((verdict, score), count): ((&str, f32), usize)| {
                let image = ImageResult {
                    path: "x".to_owned(),
                    category: name.to_owned(),
                    label: label.to_owned(),
                    group: None,
                    score,
                    threshold: 1.0,
                    percentile: 50.0,
                    verdict: verdict.to_owned(),
                    rejected: verdict == "ng",
                    class: Some(name.to_owned()),
                    class_source: "known".to_owned(),
                };
                vec![image; count]
            };
            kinds.into_iter().zip(counts).flat_map(of).collect()
        };
        let images = [images(GOOD, good), images("dent", defective)].concat();
        let limits = Thresholds { promised_false_reject_rate: Some(promised), ..Thresholds::default() };
        (name.to_owned(), ClassReport::measure(&images, None, limits, &[]).unwrap())
    }

    fn report(classes: impl IntoIterator<Item = (String, ClassReport)>) -> Report {
        Report::new("m.diad", "data", classes.into_iter().collect(), Vec::new()).unwrap()
    }

    #[test]
    fn the_tables_fit_a_terminal_and_say_where_the_promise_was_not_met() {
        let mut report = report([
            class("bottle", 0.05, [1, 1, 18], [61, 2, 0]),
            class("magnetic_tile", 0.05, [39, 0, 61], [81, 7, 12]),
            class("screw", 0.05, [0, 0, 200], [6, 50, 44]),
            class("washer", 0.05, [0, 0, 3], [0, 0, 0]),
        ]);
        let baseline = Baseline::new(BTreeMap::new());
        report.baselines.insert("mahalanobis".to_owned(), baseline);
        let text = summary(&report);
        assert!(text.lines().all(|line| line.chars().count() <= 120), "{text}");
        let expected = r"
                    good  defect  I-AUROC  I-AP  I-F1max  P-AUROC  P-AP  P-F1max  AUPRO
bottle                20      63     97.3  98.3     98.4        -     -        -      -
magnetic_tile        100     100     73.1  65.5     77.5        -     -        -      -
screw                200     100     78.0  70.7     71.8        -     -        -      -
washer                 3       0        -     -        -        -     -        -      -
mean                                 82.8  78.2     82.6        -     -        -      -
mahalanobis (mean)                      -     -        -        -     -        -      -

at the thresholds in the model
               good parts  promised   false rejects      escapes  allowed
bottle                 20       5.0    5.0 (0.1-25)    3.2 / 0.0      3.2
magnetic_tile         100       5.0  ! 39.0 (29-49)  19.0 / 12.0    100.0
screw                 200       5.0   ! 0.0 (0-1.8)  94.0 / 44.0     44.0
washer                  3       5.0      0.0 (0-71)            -        -
mean                            5.0   11.0 (3.3-25)  38.7 / 18.7     49.1

false rejects: good parts rejected, each part counted once; in brackets where the true rate lies, 95 % sure
escapes: defects that are not ng / defects that are ok
allowed: escapes if the threshold gave exactly the promised rate on these very good parts
! more false rejects than promised: parts unlike those that set the threshold, or too few of those: magnetic_tile
! fewer false rejects than promised: for these parts the threshold could be lower: screw
in per cent; ms per image: p50 -, p95 -, p99 -";
        assert_eq!(text, expected.trim_start_matches('\n'));
    }

    #[test]
    fn one_class_needs_no_mean() {
        let text = summary(&report([class("bottle", 0.05, [1, 0, 19], [5, 0, 0])]));
        assert!(!text.contains("mean") && !text.contains('!'), "{text}");
    }

    #[test]
    fn ends_of_intervals_have_two_digits() {
        for (rate, text) in
            [(0.0, "0"), (0.0004, "0.0"), (0.0051, "0.5"), (0.0994, "9.9"), (0.0996, "10"), (1.0, "100")]
        {
            assert_eq!(end(rate), text, "{rate}");
        }
    }
}
