//! The report as one HTML file that needs nothing else: no script, no network, light and dark.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use crate::error::Result;
use crate::metrics::{CurvePoint, Ranking};

use super::gallery::{Case, Gallery, Kind, Picture};
use super::png::{base64, png, png_rgba};
use super::promise;
use super::svg::{Axis, Histogram, Line, chart, legend, outline, short};
use super::{BaselineClass, ClassReport, GOOD, ImageResult, Metrics, Report};
use crate::heatmap::{HeatScale, MapView};

const STYLE: &str = include_str!("page.css");
/// Points of a drawn curve: more than the chart has pixels.
const CURVE_POINTS: usize = 400;

/// The pixel curves of a class; those of its images follow from the report.
#[derive(Clone, Debug, Default)]
pub struct Curves {
    roc: Vec<CurvePoint>,
    pr: Vec<CurvePoint>,
    pro: Vec<CurvePoint>,
}

impl Curves {
    /// The curves of ranked pixels, few enough points to keep while other classes are evaluated.
    pub fn of(pixels: &Ranking) -> Self {
        Self {
            roc: pixels.roc_curve(CURVE_POINTS),
            pr: pixels.pr_curve(CURVE_POINTS),
            pro: pixels.pro_curve(CURVE_POINTS),
        }
    }
}

/// The HTML report.
#[derive(Clone, Copy, Debug)]
pub struct Page<'a> {
    /// The figures.
    pub report: &'a Report,
    /// Pixel curves per category; a category without masks has none.
    pub curves: &'a BTreeMap<String, Curves>,
    /// The pictures.
    pub gallery: &'a Gallery,
}

impl Page<'_> {
    /// The HTML file's text. It shows no time of day: the same evaluation gives the same page, but for the latency.
    ///
    /// # Errors
    /// When a picture cannot be encoded.
    pub fn html(&self) -> Result<String> {
        let report = self.report;
        let mut out = start(&format!("{} · diad evaluation", escape(&report.model)));
        self.head(&mut out);
        self.figures(&mut out);
        self.baselines(&mut out);
        let images = report.images_by_category();
        let mut pictures = 0;
        for (at, (name, class)) in report.classes.iter().enumerate() {
            let images = images.get(name.as_str()).map_or(&[][..], Vec::as_slice);
            let _ = writeln!(out, "<section id=\"class-{at}\">\n<h2>{}</h2>", escape(name));
            class_figures(&mut out, class, images, self.curves.get(name));
            let before = pictures;
            for kind in Kind::ALL {
                gallery(&mut out, kind, self.gallery.cases(name, kind), images, &mut pictures)?;
            }
            if pictures > before {
                let words = "multiples of the pixel threshold; the outline is the ground truth";
                let _ = writeln!(out, "<p class=\"scale\">{}{words}</p>", legend());
            }
            out.push_str("</section>\n");
        }
        self.unreadable(&mut out);
        out.push_str(NOTES);
        out.push_str("</main>\n</body>\n</html>\n");
        Ok(out)
    }

    fn head(&self, out: &mut String) {
        let report = self.report;
        let (n, classes) = (report.images.len(), report.classes.len());
        let _ = write!(
            out,
            "<header>\n<p class=\"eyebrow\">diad evaluation</p>\n<h1>{}</h1>\n<p class=\"sub\">{} from {}, {}, by {}{}</p>\n",
            escape(&report.model),
            count(n, "test image"),
            escape(&report.data),
            if classes == 1 { "1 class".to_owned() } else { format!("{classes} classes") },
            escape(&report.tool),
            if report.arithmetic.is_empty() { String::new() } else { format!(" in {}", escape(&report.arithmetic)) },
        );
        let mean = &report.mean;
        let ms = report.ms_per_image.p50.map_or(NONE.to_owned(), |ms| format!("{} ms", short(ms)));
        let rejects = promise::marked(&percent(mean.false_reject_rate), mean.against_promise());
        let cards = [
            ("Image AUROC", figure(mean.metrics.image_auroc), "defects above good parts"),
            ("Pixel AUROC", figure(mean.metrics.pixel_auroc), "defect pixels above good ones"),
            ("AUPRO", figure(mean.metrics.aupro), "defect regions covered"),
            ("False rejects", rejects, "good parts taken out"),
            ("Escapes", percent(mean.escape_rate), "defects let pass"),
            ("Per image", ms, "median"),
        ];
        out.push_str("<dl class=\"cards\">\n");
        for (name, value, meaning) in cards {
            let _ = writeln!(out, "<div><dt>{name}</dt><dd>{value}</dd><dd class=\"note\">{meaning}</dd></div>");
        }
        out.push_str("</dl>\n");
        if classes > 1 {
            out.push_str("<nav>");
            for (at, name) in report.classes.keys().enumerate() {
                let _ = write!(out, "<a href=\"#class-{at}\">{}</a>", escape(name));
            }
            out.push_str("</nav>\n");
        }
        out.push_str("</header>\n");
    }

    fn figures(&self, out: &mut String) {
        out.push_str("<section>\n<h2>Figures</h2>\n<div class=\"scroll\"><table>\n<thead><tr><th>Class</th>");
        for (name, _) in Metrics::COLUMNS {
            let _ = write!(out, "<th>{name}</th>");
        }
        out.push_str("<th>Good</th><th>Defective</th></tr></thead>\n<tbody>\n");
        for (at, (name, class)) in self.report.classes.iter().enumerate() {
            let _ = write!(out, "<tr><th><a href=\"#class-{at}\">{}</a></th>", escape(name));
            metric_cells(out, &class.metrics);
            let _ = writeln!(out, "<td>{}</td><td>{}</td></tr>", class.n_good, class.n_defect);
        }
        let mean = &self.report.mean;
        out.push_str("</tbody>\n<tfoot><tr><th>Mean</th>");
        metric_cells(out, &mean.metrics);
        let total = |of: fn(&ClassReport) -> usize| self.report.classes.values().map(of).sum::<usize>();
        let _ = write!(
            out,
            "<td>{}</td><td>{}</td></tr></tfoot>\n</table></div>\n",
            total(|class| class.n_good),
            total(|class| class.n_defect),
        );
        let _ = write!(
            out,
            "<h3>At the thresholds in the model</h3>\n<div class=\"scroll\"><table>\n<thead><tr><th>Class</th>{}</tr></thead>\n<tbody>\n",
            promise::HEADINGS
        );
        for (at, (name, class)) in self.report.classes.iter().enumerate() {
            let _ = write!(out, "<tr><th><a href=\"#class-{at}\">{}</a></th>", escape(name));
            promise::cells(out, class);
            out.push_str("</tr>\n");
        }
        out.push_str("</tbody>\n<tfoot><tr><th>Mean</th>");
        promise::cells(out, mean);
        out.push_str("</tr></tfoot>\n</table></div>\n");
        if self.report.classes.len() > 1 {
            promise::trade(out, &mean.trade);
        }
        out.push_str("</section>\n");
    }

    /// The model and the baselines: their means, and a part to unfold with the figures of each class.
    fn baselines(&self, out: &mut String) {
        if self.report.baselines.is_empty() {
            return;
        }
        out.push_str(
            "<section>\n<h2>Against baselines</h2>\n\
             <p>Other methods on the same features and images; the best of each metric is bold. Their thresholds make the \
             model's promise and were set as its own.</p>\n",
        );
        let means = self.report.baselines.iter().map(|(name, baseline)| (name.as_str(), &baseline.mean));
        let ours = &self.report.mean;
        comparison(out, &ours.metrics, [ours.false_reject_rate, ours.escape_rate], means);
        out.push_str("<details><summary>Per class</summary>\n");
        for (name, class) in &self.report.classes {
            let rows = self.report.baselines.iter();
            let rows = rows.filter_map(|(method, b)| b.classes.get(name).map(|class| (method.as_str(), class)));
            let _ = writeln!(out, "<h3>{}</h3>", escape(name));
            comparison(out, &class.metrics, [class.false_reject_rate, class.escape_rate], rows);
        }
        out.push_str("</details>\n</section>\n");
    }

    fn unreadable(&self, out: &mut String) {
        let unreadable = &self.report.unreadable;
        if unreadable.is_empty() {
            return;
        }
        let _ = write!(
            out,
            "<section>\n<h2>Not inspected</h2>\n<p>{} could not be inspected and {} in no figure.</p>\n<ul class=\"files\">\n",
            count(unreadable.len(), "image"),
            if unreadable.len() == 1 { "is" } else { "are" },
        );
        for image in unreadable {
            let _ = writeln!(out, "<li><code>{}</code> {}</li>", escape(&image.path), escape(&image.reason));
        }
        out.push_str("</ul>\n</section>\n");
    }
}

/// The beginning of a page, up to what is to be read.
pub(super) fn start(title: &str) -> String {
    format!(
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <meta name=\"color-scheme\" content=\"light dark\">\n<title>{title}</title>\n\
         <style>\n{STYLE}</style>\n</head>\n<body>\n<main>\n"
    )
}

/// How the page says that there is no figure.
const NONE: &str = "–";

const NOTES: &str = "<section>\n<h2>How to read this</h2>\n<dl class=\"notes\">\n\
<dt>AUROC</dt><dd>The chance that a defect scores above a good part (or pixel); ties count half, 0.5 is guessing.</dd>\n\
<dt>AP</dt><dd>Average precision: the share of true alarms, averaged over recall; guessing gives the share of defects.</dd>\n\
<dt>F1max</dt><dd>The best balance of precision and recall that any threshold gives.</dd>\n\
<dt>AUPRO</dt><dd>The covered share of each defect region, all regions equal (8-connected), averaged over false-positive \
rates of pixels up to 0.3, or up to 0.05.</dd>\n\
<dt>False rejects</dt><dd>Good parts rejected at the thresholds in the model, which were set on good parts alone. Images of one \
part count as one part. The interval is what so many parts can say with 95 % confidence (Clopper-Pearson; for the mean, of as \
many parts as would make a rate as sure). It is red where it does not hold the promised rate: above it, these parts are unlike \
those that set the threshold, or too few did; below it, the threshold could be lower for parts like these.</dd>\n\
<dt>Escapes</dt><dd>Defects that were not rejected, and among them those whose verdict was ok, that is not even warn.</dd>\n\
<dt>What the scores allow</dt><dd>The escapes at the lowest threshold that keeps the promise on these very good parts. Nobody \
could have set it beforehand; where it lets far fewer defects escape, calibrating with more parts like these helps, elsewhere \
only better scores do.</dd>\n\
<dt>If another rate were promised</dt><dd>False rejects and escapes on these images at the thresholds that the model's \
calibration scores give for other promises, as far as there are enough of them.</dd>\n\
<dt>Mean</dt><dd>The plain mean over the classes that have the figure. A dash is a figure that cannot be computed, for \
instance without ground-truth masks.</dd>\n</dl>\n</section>\n";

fn metric_cells(out: &mut String, metrics: &Metrics) {
    for (_, value) in Metrics::COLUMNS {
        let _ = write!(out, "<td>{}</td>", figure(value(metrics)));
    }
}

/// A table of `ours`, with our false rejects and escapes, and of other methods; the best of each metric bold.
fn comparison<'a>(
    out: &mut String,
    ours: &'a Metrics,
    decision: [Option<f64>; 2],
    others: impl Iterator<Item = (&'a str, &'a BaselineClass)>,
) {
    let others = others.map(|(name, class)| {
        let decision = class.decision.as_ref();
        let decision = [decision.and_then(|d| d.false_reject_rate), decision.and_then(|d| d.escape_rate)];
        (name, &class.metrics, decision)
    });
    let rows: Vec<(&str, &Metrics, [Option<f64>; 2])> =
        std::iter::once(("diad", ours, decision)).chain(others).collect();
    out.push_str("<div class=\"scroll\"><table>\n<thead><tr><th>Method</th>");
    for (name, _) in Metrics::COLUMNS {
        let _ = write!(out, "<th>{name}</th>");
    }
    out.push_str("<th>False rejects</th><th>Escapes</th></tr></thead>\n<tbody>\n");
    for (method, metrics, decision) in &rows {
        let _ = write!(out, "<tr><th>{}</th>", escape(method));
        for (_, value) in Metrics::COLUMNS {
            // Compared as shown: two figures that read the same are both best.
            let (shown, best) =
                (figure(value(metrics)), rows.iter().filter_map(|(_, m, _)| value(m)).fold(0.0, f64::max));
            let bold = value(metrics).is_some() && shown == figure(Some(best));
            let _ = if bold { write!(out, "<td><b>{shown}</b></td>") } else { write!(out, "<td>{shown}</td>") };
        }
        for rate in decision {
            let _ = write!(out, "<td>{}</td>", percent(*rate));
        }
        out.push_str("</tr>\n");
    }
    out.push_str("</tbody>\n</table></div>\n");
}

/// What the thresholds cost, curves, histogram, kinds of defects.
fn class_figures(out: &mut String, class: &ClassReport, images: &[&ImageResult], pixels: Option<&Curves>) {
    let limits = &class.thresholds;
    out.push_str("<p class=\"facts\">");
    promise::facts(out, class, images);
    if let Some(accuracy) = class.class_accuracy {
        let _ = write!(out, "Class recognised in {} of the images.", percent(Some(accuracy)));
    }
    out.push_str("</p>\n");

    let scores = |defective| {
        images.iter().filter(|image| image.is_defect() == defective).map(|image| image.score).collect::<Vec<f32>>()
    };
    let (good, defective) = (scores(false), scores(true));
    charts(out, class, images, pixels);
    let histogram = Histogram {
        good: &good,
        defective: &defective,
        threshold: limits.threshold,
        warn_threshold: limits.warn_threshold,
    };
    out.push_str("<div class=\"scores\">\n<figure>");
    out.push_str(&histogram.svg());
    out.push_str(
        "<figcaption><span class=\"key good\"></span>good, above the axis \
         <span class=\"key defect\"></span>defective, below it</figcaption></figure>\n",
    );
    kinds(out, images);
    out.push_str("</div>\n");
    promise::trade(out, &class.trade);
}

fn charts(out: &mut String, class: &ClassReport, images: &[&ImageResult], pixels: Option<&Curves>) {
    let scores: Vec<f32> = images.iter().map(|image| image.score).collect();
    let defects: Vec<bool> = images.iter().map(|image| image.is_defect()).collect();
    let ranking = Ranking::new(&scores, &defects).ok();
    let curve = |of: fn(&Ranking, usize) -> Vec<CurvePoint>| {
        ranking.as_ref().map(|ranking| of(ranking, CURVE_POINTS)).unwrap_or_default()
    };
    let (roc, pr) = (curve(Ranking::roc_curve), curve(Ranking::pr_curve));
    let none = Curves::default();
    let pixels = pixels.unwrap_or(&none);
    let metrics = &class.metrics;
    out.push_str("<div class=\"charts\">\n");
    let mut one = |title: &str, axes: (&str, &str), lines: &[Line<'_>]| {
        let axes = (Axis::unit(axes.0), Axis::unit(axes.1));
        if lines.iter().all(|line| line.points.is_empty()) {
            return;
        }
        let _ = write!(out, "<figure><h3>{title}</h3>{}<figcaption>", chart(title, axes.0, axes.1, lines));
        for line in lines.iter().filter(|line| !line.points.is_empty()) {
            let _ = write!(out, "<span class=\"key {}\"></span>{} ", line.class, line.name);
        }
        out.push_str("</figcaption></figure>\n");
    };
    let image = |points, value| Line { class: "image", name: format!("image {}", figure(value)), points };
    let pixel = |points, value| Line { class: "pixel", name: format!("pixel {}", figure(value)), points };
    one(
        "ROC",
        ("false-positive rate", "true-positive rate"),
        &[image(&roc, metrics.image_auroc), pixel(&pixels.roc, metrics.pixel_auroc)],
    );
    one(
        "Precision and recall",
        ("recall", "precision"),
        &[image(&pr, metrics.image_ap), pixel(&pixels.pr, metrics.pixel_ap)],
    );
    let regions = Line { class: "pixel", name: format!("AUPRO {}", figure(metrics.aupro)), points: &pixels.pro };
    one("Region overlap", ("false-positive rate of pixels", "mean region overlap"), &[regions]);
    out.push_str("</div>\n");
}

/// How each kind of image fared.
fn kinds(out: &mut String, images: &[&ImageResult]) {
    let mut kinds: BTreeMap<(bool, &str), Vec<&ImageResult>> = BTreeMap::new();
    for image in images {
        kinds.entry((image.is_defect(), image.label.as_str())).or_default().push(image);
    }
    if kinds.is_empty() {
        return;
    }
    out.push_str(
        "<table class=\"kinds\">\n<thead><tr><th>Kind</th><th>Images</th><th>Rejected</th><th>Median score</th></tr></thead>\n<tbody>\n",
    );
    for ((_, label), images) in &kinds {
        let rejected = images.iter().filter(|image| image.rejected).count();
        let mut scores: Vec<f32> = images.iter().map(|image| image.score).collect();
        scores.sort_by(f32::total_cmp);
        let median = scores.get((scores.len() - 1) / 2).map_or(NONE.to_owned(), |&score| short(score.into()));
        let _ = writeln!(
            out,
            "<tr><th>{}</th><td>{}</td><td>{rejected}</td><td>{median}</td></tr>",
            escape(label),
            images.len()
        );
    }
    out.push_str("</tbody>\n</table>\n");
}

fn gallery(out: &mut String, kind: Kind, cases: &[Case], images: &[&ImageResult], pictures: &mut usize) -> Result<()> {
    let total = images.iter().filter(|image| Kind::of(image) == Some(kind)).count();
    let title = match kind {
        Kind::Escape => "Escapes: defects let pass, lowest score first",
        Kind::FalseReject => "False rejects: good parts taken out, highest score first",
        Kind::Detected => "Most clearly detected",
    };
    let shown = if total > cases.len() { format!("{} of {total}", cases.len()) } else { total.to_string() };
    let _ = writeln!(out, "<h3>{title} <span class=\"count\">{shown}</span></h3>");
    if cases.is_empty() {
        if total == 0 {
            out.push_str("<p class=\"empty\">None.</p>\n");
        }
        return Ok(());
    }
    out.push_str("<div class=\"gallery\">\n");
    for case in cases {
        *pictures += 1;
        let image = &case.image;
        let verdict = if image.rejected { "bad" } else { "pass" };
        let label = if image.label == GOOD { "good part".to_owned() } else { escape(&image.label) };
        let class = image.class.as_deref().filter(|class| *class != image.category);
        let class = class.map_or(String::new(), |class| format!(", inspected as {}", escape(class)));
        let _ = writeln!(
            out,
            "<figure class=\"case\">{}<figcaption><b>{label}</b> <span class=\"verdict {verdict}\">{}</span> \
             <span>score {} / threshold {}, percentile {:.1}{class}</span><code>{}</code></figcaption></figure>",
            drawing(&case.picture, *pictures)?,
            escape(&image.verdict),
            short(image.score.into()),
            short(image.threshold.into()),
            image.percentile,
            escape(&image.path),
        );
    }
    out.push_str("</div>\n");
    Ok(())
}

/// The input and, beside it, the same with heat map and outline. The input is in the file once, used twice.
fn drawing(picture: &Picture, number: usize) -> Result<String> {
    let (width, height) = (picture.frame.width(), picture.frame.height());
    let map = MapView { values: &picture.map, width: picture.map_width, height: picture.map_height };
    let layer = HeatScale::new(picture.pixel_threshold).layer(width, height, map);
    let (input, heat) = (base64(&png(&picture.frame)?), base64(&png_rgba(&layer, width, height)?));
    let gap = (width / 40).max(1);
    let right = width + gap;
    let size = format!(r#"width="{width}" height="{height}""#);
    let mut svg =
        format!(r#"<svg viewBox="0 0 {} {height}" role="img" aria-label="input and heat map">"#, right + width);
    let _ = write!(svg, r#"<image id="i{number}" {size} href="data:image/png;base64,{input}"/>"#);
    let _ = write!(svg, r##"<use href="#i{number}" x="{right}"/>"##);
    let _ = write!(svg, r#"<image x="{right}" {size} href="data:image/png;base64,{heat}"/>"#);
    if let Some(mask) = &picture.mask {
        let path = outline(mask, width, height);
        let _ = write!(svg, r#"<g transform="translate({right} 0)"><path class="halo" d="{path}"/>"#);
        let _ = write!(svg, r#"<path class="truth" d="{path}"/></g>"#);
    }
    svg.push_str("</svg>");
    Ok(svg)
}

/// A metric to three digits. Never rounded up to a perfect 1.
fn figure(value: Option<f64>) -> String {
    match value {
        Some(value) if (0.9995..1.0).contains(&value) => "0.999".to_owned(),
        Some(value) => format!("{value:.3}"),
        None => NONE.to_owned(),
    }
}

/// A rate in percent, one digit.
pub(super) fn percent(value: Option<f64>) -> String {
    value.map_or(NONE.to_owned(), |value| format!("{:.1} %", value * 100.0))
}

pub(super) fn count(n: usize, thing: &str) -> String {
    format!("{n} {thing}{}", if n == 1 { "" } else { "s" })
}

/// `text` as HTML text or as an attribute's value.
pub(super) fn escape(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => safe.push_str("&amp;"),
            '<' => safe.push_str("&lt;"),
            '>' => safe.push_str("&gt;"),
            '"' => safe.push_str("&quot;"),
            '\'' => safe.push_str("&#39;"),
            c => safe.push(c),
        }
    }
    safe
}
