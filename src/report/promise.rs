//! The parts of the page that hold what was measured against what was promised.

use std::cmp::Ordering;
use std::fmt::Write as _;

use super::html::{count, percent};
use super::operating::{OperatingPoint, PROMISES, TradePoint};
use super::svg::{Axis, Line, chart, short};
use super::{ClassReport, ImageResult, Mean};
use crate::metrics::CurvePoint;

/// Headings of [`cells`].
pub(super) const HEADINGS: &str = "<th>Promised</th><th>False rejects</th><th>95 % interval</th><th>Escapes</th>\
    <th>Escapes as ok</th><th>Escapes the scores allow</th>";

/// What [`cells`] shows of a class or of the mean.
pub(super) struct Cells {
    promised: Option<f64>,
    rejects: Option<f64>,
    interval: Option<[f64; 2]>,
    against: Option<Ordering>,
    escapes: [Option<f64>; 2],
    allowed: Option<OperatingPoint>,
}

impl From<&ClassReport> for Cells {
    fn from(class: &ClassReport) -> Self {
        Self {
            promised: class.thresholds.promised_false_reject_rate,
            rejects: class.false_reject_rate,
            interval: class.false_reject_interval,
            against: class.against_promise(),
            escapes: [class.escape_rate, class.escape_ok_rate],
            allowed: class.allowed,
        }
    }
}

impl From<&Mean> for Cells {
    fn from(mean: &Mean) -> Self {
        Self {
            promised: mean.promised_false_reject_rate,
            rejects: mean.false_reject_rate,
            interval: mean.false_reject_interval,
            against: mean.against_promise(),
            escapes: [mean.escape_rate, mean.escape_ok_rate],
            allowed: mean.allowed,
        }
    }
}

/// The cells of a row, red where the promise was not met.
pub(super) fn cells(out: &mut String, of: impl Into<Cells>) {
    let Cells { promised, rejects, interval, against, escapes: [escapes, ok], allowed } = of.into();
    let range = interval.map_or_else(|| percent(None), range);
    let allowed = percent(allowed.and_then(|allowed| allowed.escape_rate));
    let (promised, rejects) = (percent(promised), marked(&percent(rejects), against));
    let (range, escapes, ok) = (marked(&range, against), percent(escapes), percent(ok));
    for cell in [promised, rejects, range, escapes, ok, allowed] {
        let _ = write!(out, "<td>{cell}</td>");
    }
}

/// `text`, red where the interval does not hold the promised rate.
pub(super) fn marked(text: &str, against: Option<Ordering>) -> String {
    match against {
        Some(Ordering::Less | Ordering::Greater) => format!("<span class=\"broken\">{text}</span>"),
        Some(Ordering::Equal) | None => text.to_owned(),
    }
}

fn range([low, high]: [f64; 2]) -> String {
    format!("{} to {}", percent(Some(low)), percent(Some(high)))
}

/// What happened at the class's threshold, in sentences.
pub(super) fn facts(out: &mut String, class: &ClassReport, images: &[&ImageResult]) {
    let limits = &class.thresholds;
    let promised = limits.promised_false_reject_rate;
    match (limits.threshold, promised) {
        (Some(limit), Some(_)) => {
            let _ =
                write!(out, "Rejected above {}, set for {} false rejects. ", short(limit.into()), percent(promised));
        }
        (Some(limit), None) => {
            let _ = write!(out, "Rejected above {}. ", short(limit.into()));
        }
        (None, _) => out.push_str("The model does not know this class. "),
    }
    let hits = |defect, hit: fn(&ImageResult) -> bool| {
        none(images.iter().filter(|image| image.is_defect() == defect && hit(image)).count())
    };
    if let Some(interval) = class.false_reject_interval {
        let rejects = hits(false, |image| image.rejected);
        let (rate, good) = (percent(class.false_reject_rate), count(class.n_good, "good image"));
        let parts = match class.n_groups_good == class.n_good {
            true => String::new(),
            false => format!(" of {}, every part counted once", count(class.n_groups_good, "part")),
        };
        let found = marked(&format!("{rate} (95 % interval {})", range(interval)), class.against_promise());
        let _ = write!(out, "{rejects} of {good} rejected: {found}{parts}. ");
    }
    out.push_str(match class.against_promise() {
        Some(Ordering::Greater) => {
            "<span class=\"broken\">More than promised</span>: these parts are unlike those that set the threshold, or too few did. "
        }
        Some(Ordering::Less) => {
            "<span class=\"broken\">Fewer than promised</span>: for these parts the threshold could be lower, and let fewer defects escape. "
        }
        Some(Ordering::Equal) | None => "",
    });
    if let Some(interval) = class.escape_interval {
        let (escapes, ok) = (hits(true, |image| !image.rejected), hits(true, ImageResult::is_ok));
        let (defective, range) = (count(class.n_defect, "defective image"), range(interval));
        let _ =
            write!(out, "{escapes} of {defective} let pass (95 % interval {range}), as ok: {}. ", ok.to_lowercase());
    }
    if let Some(OperatingPoint { threshold: Some(limit), false_reject_rate, escape_rate }) = class.allowed {
        let (rejects, escapes) = (percent(false_reject_rate), percent(escape_rate));
        let limit = short(limit.into());
        let _ = write!(
            out,
            "What the scores allow: rejected above {limit}, {rejects} false rejects and {escapes} escapes. "
        );
    }
}

fn none(count: usize) -> String {
    if count == 0 { "None".to_owned() } else { count.to_string() }
}

/// Chart and table of what other promises would do; nothing where there is none.
pub(super) fn trade(out: &mut String, trade: &[TradePoint]) {
    if trade.is_empty() {
        return;
    }
    let curve = |rate: fn(&OperatingPoint) -> Option<f64>| -> Vec<CurvePoint> {
        let point = |at: &TradePoint| rate(&at.point).map(|y| CurvePoint { x: at.promised, y });
        trade.iter().filter_map(point).collect()
    };
    let (rejects, escapes) = (curve(|point| point.false_reject_rate), curve(|point| point.escape_rate));
    let end = PROMISES[PROMISES.len() - 1];
    let kept = [CurvePoint { x: 0.0, y: 0.0 }, CurvePoint { x: end, y: end }];
    let lines = [
        Line { class: "promise", name: "as promised".to_owned(), points: &kept },
        Line { class: "good", name: "false rejects".to_owned(), points: &rejects },
        Line { class: "defect", name: "escapes".to_owned(), points: &escapes },
    ];
    let x = Axis { name: "promised false-reject rate", end };
    let drawing = chart("The trade of false rejects for escapes", x, Axis::unit("measured rate"), &lines);
    let _ = write!(
        out,
        "<div class=\"scores trade\">\n<figure><h3>If another rate were promised</h3>{drawing}<figcaption>"
    );
    for Line { class, name, .. } in lines.iter().filter(|line| !line.points.is_empty()) {
        let _ = write!(out, "<span class=\"key {class}\"></span>{name} ");
    }
    out.push_str(
        "</figcaption></figure>\n<table class=\"kinds\">\n<thead><tr><th>Promised</th><th>Threshold</th>\
         <th>False rejects</th><th>Escapes</th></tr></thead>\n<tbody>\n",
    );
    for TradePoint { promised, point: OperatingPoint { threshold, false_reject_rate, escape_rate } } in trade {
        let limit = threshold.map_or_else(|| percent(None), |limit| short(limit.into()));
        let (promised, rejects) = (percent(Some(*promised)), percent(*false_reject_rate));
        let escapes = percent(*escape_rate);
        let _ = writeln!(out, "<tr><th>{promised}</th><td>{limit}</td><td>{rejects}</td><td>{escapes}</td></tr>");
    }
    out.push_str("</tbody>\n</table>\n</div>\n");
}
