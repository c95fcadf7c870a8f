//! The report of `diad ablate`: what each choice of the method costs and gains, as JSON, Markdown and an HTML page.

use std::fmt::Write as _;

use serde::{Deserialize, Serialize};

use super::html::{escape, start};
use super::svg::{self, Dots};
use super::{Column, Latency, Metrics, json};
use crate::error::Result;

/// Version of the JSON of `diad ablate`; raised when a field changes its meaning.
const SCHEMA: u32 = 1;

/// One configuration, trained and evaluated.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AblationRow {
    /// Name of its group; rows of one group vary the same thing.
    pub group: String,
    /// Name of the row, unique in the grid.
    pub name: String,
    /// What it changes in the configuration that all rows start from, as for `--set`.
    pub set: Vec<String>,
    /// Digest of configuration and data.
    pub key: String,
    /// Mean over the classes.
    pub mean: Metrics,
    /// Mean of the classes' false-reject rates.
    pub false_reject_rate: Option<f64>,
    /// Mean of the classes' escape rates.
    pub escape_rate: Option<f64>,
    /// Time per image on this machine.
    pub ms_per_image: Latency,
    /// Time that the training of its network took; rows that differ in detection only share a network.
    pub training_seconds: f64,
    /// Number of trained parameters.
    pub parameters: usize,
}

/// A grid of choices.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Ablation {
    /// Version of this JSON report.
    pub schema: u32,
    /// The program that made it, `diad 0.1.0`.
    pub tool: String,
    /// The data folder.
    pub data: String,
    /// Keys of the configuration that all rows start from, where they are not at their defaults.
    pub base: Vec<String>,
    /// The rows in the order of the grid; the others are compared with the first.
    pub rows: Vec<AblationRow>,
}

/// Figures of a row that are shown, in per cent.
const FIGURES: [Column; 3] =
    [("image AUROC", |m| m.image_auroc), ("pixel AUROC", |m| m.pixel_auroc), ("AUPRO", |m| m.aupro)];

impl Ablation {
    /// The rows of a grid on some data.
    pub fn new(data: String, base: Vec<String>, rows: Vec<AblationRow>) -> Self {
        Self { schema: SCHEMA, tool: concat!("diad ", env!("CARGO_PKG_VERSION")).to_owned(), data, base, rows }
    }

    /// # Errors
    /// Never for what [`Ablation::new`] makes; an internal error otherwise.
    pub fn to_json(&self) -> Result<String> {
        json(self, "ablation")
    }

    /// A table with one line per row; after each figure its distance from that of the first row.
    pub fn markdown(&self) -> String {
        let mut out = String::from(
            "| row | image AUROC | pixel AUROC | AUPRO | ms per image | training | changes |\n\
             | --- | --- | --- | --- | --- | --- | --- |\n",
        );
        for row in &self.rows {
            let _ = write!(out, "| {} |", row.name);
            for (_, figure) in FIGURES {
                let own = figure(&row.mean);
                let base =
                    self.rows.first().and_then(|base| figure(&base.mean)).filter(|_| row.name != self.rows[0].name);
                let _ = match (own, base) {
                    (Some(own), Some(base)) => {
                        let own = 100.0 * own;
                        write!(out, " {own:.1} ({:+.1}) |", own - 100.0 * base)
                    }
                    (Some(own), None) => write!(out, " {:.1} |", 100.0 * own),
                    (None, _) => write!(out, " - |"),
                };
            }
            let ms = row.ms_per_image.p50.map_or_else(|| "-".to_owned(), |ms| format!("{ms:.1}"));
            let changes = row.set.iter().map(|set| format!("`{set}`")).collect::<Vec<_>>().join(" ");
            let _ = writeln!(out, " {ms} | {:.0} s | {changes} |", row.training_seconds);
        }
        out
    }

    /// One HTML file that needs nothing else.
    pub fn html(&self) -> String {
        let (title, tool) = (escape(&self.data), escape(&self.tool));
        let mut out = start(&format!("{title} · diad ablation"));
        let _ = write!(
            out,
            "<header>\n<p class=\"eyebrow\">diad ablation</p>\n\
             <h1>What each choice costs</h1>\n<p class=\"sub\">on {title}, by {tool}; every row changes what it names and \
             nothing else</p>\n"
        );
        if !self.base.is_empty() {
            let base = self.base.iter().map(|b| format!("<code>{}</code>", escape(b))).collect::<Vec<_>>().join(", ");
            let _ = writeln!(out, "<p class=\"sub\">all rows: {base}</p>");
        }
        out.push_str("</header>\n<section>\n<h2>Figures</h2>\n<div class=\"scroll\"><table>\n<thead><tr><th>Row</th>");
        for (name, _) in FIGURES {
            let _ = write!(out, "<th>{name}</th>");
        }
        out.push_str(
            "<th>ms per image</th><th>training</th><th>parameters</th><th>changes</th></tr></thead>\n<tbody>\n",
        );
        for row in &self.rows {
            let _ = write!(out, "<tr><th>{}</th>", escape(&row.name));
            for (_, figure) in FIGURES {
                let value = figure(&row.mean).map_or_else(|| "–".to_owned(), |v| format!("{:.1}", 100.0 * v));
                let _ = write!(out, "<td>{value}</td>");
            }
            let ms = row.ms_per_image.p50.map_or_else(|| "–".to_owned(), |ms| format!("{ms:.1}"));
            let changes =
                row.set.iter().map(|set| format!("<code>{}</code>", escape(set))).collect::<Vec<_>>().join(" ");
            let (seconds, parameters) = (row.training_seconds, row.parameters);
            let _ = writeln!(out, "<td>{ms}</td><td>{seconds:.0} s</td><td>{parameters}</td><td>{changes}</td></tr>");
        }
        out.push_str("</tbody>\n</table></div>\n</section>\n<section>\n<h2>Plots</h2>\n<div class=\"charts\">\n");
        for (name, figure) in FIGURES {
            let points = self.rows.iter().map(|row| (row.name.as_str(), figure(&row.mean).map(|v| 100.0 * v)));
            let dots = Dots { name: format!("{name}, per cent"), points: points.collect(), logarithmic: false };
            let _ = writeln!(out, "<figure><figcaption>{name}, per cent</figcaption>{}</figure>", svg::dots(&dots));
        }
        let points = self.rows.iter().map(|row| (row.name.as_str(), row.ms_per_image.p50));
        let dots = Dots { name: "ms per image".to_owned(), points: points.collect(), logarithmic: true };
        let _ = writeln!(out, "<figure><figcaption>ms per image</figcaption>{}</figure>", svg::dots(&dots));
        out.push_str("</div>\n</section>\n</main>\n</body>\n</html>\n");
        out
    }
}
