//! From text to a checked [`Config`], with every mistake reported at once.

use std::path::Path;

use toml::{Table, Value};

use super::rules::{self, Mistake};
use super::{Config, syntax};
use crate::error::{Error, Result};
use crate::files::read_regular;

/// No configuration is near this long; whatever is, is some other file.
const MAX_BYTES: u64 = 1 << 20;

/// What a file should be.
const EXPECTED: &str = "a configuration file (TOML)";

/// The share of images that are held out, and the key that says whether any are.
const FRACTION: &str = "training.calibration_fraction";
const FOLDS: &str = "calibration.folds";

/// Mistakes told; a file with more is some other file.
const MAX_MISTAKES: usize = 50;

impl Config {
    /// The configuration in `text` (TOML), absent keys at their defaults. `origin` names the source in errors.
    ///
    /// # Errors
    /// [`Error::Config`] with all mistakes: syntax errors if there are any, else unknown sections and keys (with the
    /// one that may be meant), wrong types, impossible values and values that do not go together. Each names the
    /// line, the key, the value and what was expected.
    pub fn from_toml(text: &str, origin: &str) -> Result<Self> {
        let mut tree = syntax::parse(text).map_err(|mistakes| wrong(origin, mistakes))?;
        let starts = syntax::starts(text);
        if starts.contains_key(FRACTION) && !starts.contains_key(FOLDS) {
            hold_out(&mut tree);
        }
        rules::resolve(&tree).map_err(|mistakes| {
            let placed = |mistake: Mistake| match mistake.keys.iter().find_map(|key| starts.get(key)) {
                Some(&start) => (start, format!("line {}: {}", syntax::line(text, start), mistake.text)),
                None => (usize::MAX, mistake.text),
            };
            let mut placed: Vec<_> = mistakes.into_iter().map(placed).collect();
            placed.sort_by_key(|(start, _)| *start);
            wrong(origin, placed.into_iter().map(|(_, text)| text).collect())
        })
    }

    /// [`Config::from_toml`] on a file.
    ///
    /// # Errors
    /// [`Error::Config`] as well if the file cannot be read, is not text or is larger than 1 MiB.
    pub fn from_file(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let origin = path.display().to_string();
        let text = read_text(path).map_err(|reason| wrong(&origin, vec![reason]))?;
        Self::from_toml(&text, &origin)
    }

    /// Takes assignments such as `training.steps=500`, each a TOML value or a string without its quotes, the last one of a key
    /// counting; and checks the result.
    ///
    /// # Errors
    /// [`Error::Config`] with all mistakes: assignments of another form, keys that do not exist, values that a key cannot have
    /// or that do not go together. The configuration is unchanged then.
    pub fn assign<S: AsRef<str>>(&mut self, assignments: &[S]) -> Result<()> {
        let mut tree = self.tree().map_err(|mistakes| wrong("--set", mistakes))?;
        let mut mistakes = Vec::new();
        let assigns =
            |key: &str| assignments.iter().any(|text| text.as_ref().split('=').next().map(str::trim) == Some(key));
        if assigns(FRACTION) && !assigns(FOLDS) {
            hold_out(&mut tree);
        }
        for assignment in assignments.iter().map(AsRef::as_ref) {
            let Some((key, value)) = assignment.split_once('=') else {
                mistakes.push(format!("{assignment:?}: expected KEY=VALUE, for instance training.steps=500"));
                continue;
            };
            let (key, value) = (key.trim(), parse_value(value.trim()));
            if let Err(mistake) = rules::check_key(key, &value) {
                mistakes.push(mistake.text);
            } else if let Some((section, name)) = key.split_once('.')
                && let Some(Value::Table(section)) = tree.get_mut(section)
            {
                section.insert(name.to_owned(), value);
            }
        }
        match rules::resolve(&tree) {
            Ok(config) if mistakes.is_empty() => {
                *self = config;
                return Ok(());
            }
            Ok(_) => {}
            Err(found) => mistakes.extend(found.into_iter().map(|mistake| mistake.text)),
        }
        Err(wrong("--set", mistakes))
    }

    /// Whether every rule is kept. `origin` names the source in errors.
    ///
    /// # Errors
    /// [`Error::Config`] with all mistakes.
    pub fn check(&self, origin: &str) -> Result<()> {
        let text = |found: Vec<Mistake>| found.into_iter().map(|mistake| mistake.text).collect();
        let resolved = self.tree().and_then(|tree| rules::resolve(&tree).map_err(text));
        resolved.map(drop).map_err(|mistakes| wrong(origin, mistakes))
    }

    /// The sections and keys that the rules look at.
    fn tree(&self) -> Result<Table, Vec<String>> {
        // TOML's integers end at 2^63 - 1: a seed beyond has no place in the tree.
        let seeds = [("training.seed", self.training.seed), ("detection.noise_seed", self.detection.noise_seed)];
        let beyond = seeds.into_iter().filter(|(_, seed)| *seed > i64::MAX as u64);
        let beyond = beyond.map(|(key, seed)| format!("{key} = {seed}: expected an integer from 0 to {}", i64::MAX));
        let beyond: Vec<String> = beyond.collect();
        if !beyond.is_empty() {
            return Err(beyond);
        }
        Table::try_from(self).map_err(|error| vec![error.to_string()])
    }
}

/// Who says how many images are to be held out wants some held out.
fn hold_out(tree: &mut Table) {
    if let Value::Table(section) = tree.entry("calibration").or_insert_with(|| Table::new().into()) {
        section.insert("folds".into(), 1.into());
    }
}

fn wrong(origin: &str, mut mistakes: Vec<String>) -> Error {
    let more = mistakes.len().saturating_sub(MAX_MISTAKES);
    if more > 0 {
        mistakes.truncate(MAX_MISTAKES);
        mistakes.push(format!("and {more} more"));
    }
    Error::Config { origin: origin.to_owned(), mistakes }
}

fn read_text(path: &Path) -> Result<String, String> {
    let bytes = read_regular(path, MAX_BYTES, EXPECTED).map_err(|error| match error {
        Error::Io { action, source, .. } => format!("{action}: {source}"),
        other => other.to_string(),
    })?;
    String::from_utf8(bytes)
        .map_err(|e| format!("is not text (byte {} is not UTF-8), expected {EXPECTED}", e.utf8_error().valid_up_to()))
}

/// A TOML value, or else the text itself as a string.
fn parse_value(text: &str) -> Value {
    let parsed = toml::from_str::<Table>(&format!("value = {text}"));
    match parsed {
        // One key exactly: text with a line break could have brought its own.
        Ok(mut table) if table.len() == 1 => table.remove("value").unwrap_or_else(|| text.into()),
        _ => text.into(),
    }
}
