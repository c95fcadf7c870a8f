//! The page of `diad train`: what the model promises, and the good images that stand out, to be looked at.

use std::fmt::Write as _;

use super::gallery::shrunk;
use super::html::{count, escape, start};
use super::png::{base64, png};
use crate::error::Result;
use crate::frame::Frame;

/// A trained model and the good images that it may not have wanted.
#[derive(Clone, Debug)]
pub struct TrainingPage {
    /// The model file.
    pub model: String,
    /// The data folder.
    pub data: String,
    /// The program, `diad 0.1.0`.
    pub tool: String,
    /// Its classes in the order of the model.
    pub classes: Vec<TrainedClass>,
}

/// One class of it.
#[derive(Clone, Debug)]
pub struct TrainedClass {
    /// Its name.
    pub name: String,
    /// What is said of its thresholds, as plain text.
    pub facts: Vec<String>,
    /// How many good images stand out.
    pub outliers: usize,
    /// The first of them, the strangest first.
    pub shown: Vec<StandsOut>,
}

/// A good image unlike the others.
#[derive(Clone, Debug)]
pub struct StandsOut {
    /// Its file, relative to the data folder.
    pub path: String,
    /// Its score by a network that has not seen it.
    pub score: Option<f32>,
    /// Percentile of that score among those of the class, 0..=100.
    pub percentile: f64,
    /// The image; absent if the file is gone by now.
    pub picture: Option<Frame>,
}

impl TrainingPage {
    /// The HTML file's text; it needs no other file.
    ///
    /// # Errors
    /// When a picture cannot be encoded.
    pub fn html(&self) -> Result<String> {
        let mut out = start(&format!("{} · diad training", escape(&self.model)));
        let _ = write!(
            out,
            "<header>\n<p class=\"eyebrow\">diad training</p>\n<h1>{}</h1>\n<p class=\"sub\">from the good parts in {}, by \
             {}</p>\n</header>\n",
            escape(&self.model),
            escape(&self.data),
            escape(&self.tool),
        );
        for class in &self.classes {
            let _ = writeln!(out, "<section>\n<h2>{}</h2>", escape(&class.name));
            for line in class.facts.iter().flat_map(|fact| fact.lines()) {
                let _ = writeln!(out, "<p class=\"facts\">{}</p>", escape(line.trim()));
            }
            class.pictures(&mut out)?;
            out.push_str("</section>\n");
        }
        out.push_str("</main>\n</body>\n</html>\n");
        Ok(out)
    }
}

impl TrainedClass {
    fn pictures(&self, out: &mut String) -> Result<()> {
        let shown = self.shown.len();
        let number = if shown < self.outliers { format!("{shown} of {}", self.outliers) } else { shown.to_string() };
        let _ = writeln!(out, "<h3>Good images that stand out <span class=\"count\">{number}</span></h3>");
        if self.shown.is_empty() {
            out.push_str("<p class=\"empty\">None.</p>\n");
            return Ok(());
        }
        out.push_str(
            "<p>Unlike all others. Where one shows a defect, another product or no part at all, take it out and train again: as a \
             good part it teaches the model to pass the like.</p>\n<div class=\"gallery\">\n",
        );
        for image in &self.shown {
            out.push_str("<figure class=\"case\">");
            match &image.picture {
                Some(frame) => {
                    let frame = shrunk(frame)?;
                    let (width, height, data) = (frame.width(), frame.height(), base64(&png(&frame)?));
                    let _ = write!(
                        out,
                        "<svg viewBox=\"0 0 {width} {height}\" role=\"img\" aria-label=\"the image\"><image width=\"{width}\" \
                         height=\"{height}\" href=\"data:image/png;base64,{data}\"/></svg>"
                    );
                }
                None => out.push_str("<p class=\"empty\">The file cannot be read any more.</p>"),
            }
            let score = image.score.map_or_else(String::new, |score| format!("score {score:.4}, "));
            let _ = writeln!(
                out,
                "<figcaption><span>{score}percentile {:.1}</span><code>{}</code></figcaption></figure>",
                image.percentile,
                escape(&image.path),
            );
        }
        out.push_str("</div>\n");
        if shown < self.outliers {
            let _ = writeln!(out, "<p>And {} like that.</p>", count(self.outliers - shown, "more image"));
        }
        Ok(())
    }
}
