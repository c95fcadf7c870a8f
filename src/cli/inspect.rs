//! `diad inspect` and `diad validate`: what is in a file, and what is wrong with one.

use std::fmt::Write as _;

use serde::Serialize;

use super::args::{InspectArgs, ValidateArgs};
use super::images::check_exists;
use super::{Context, messages};
use crate::bundle::{self, Card, Contents};
use crate::config::Config;
use crate::error::{Error, Result};

pub(super) fn run(context: &Context, args: &InspectArgs) -> Result<()> {
    check_exists(&args.model)?;
    let contents = bundle::inspect(&args.model)?;
    if !args.json {
        return context.console.print(describe(&args.model.display().to_string(), &contents));
    }
    let json = Json {
        file: args.model.display().to_string(),
        bytes: contents.bytes,
        digest: contents.card.digest(),
        parameters: contents.tensors.iter().filter_map(bundle::TensorSpec::elements).sum(),
        card: &contents.card,
    };
    let text = serde_json::to_string_pretty(&json).map_err(|error| Error::Internal(format!("card: {error}")))?;
    context.console.print(text)
}

#[derive(Serialize)]
struct Json<'a> {
    file: String,
    bytes: u64,
    digest: String,
    parameters: usize,
    card: &'a Card,
}

fn describe(file: &str, contents: &Contents) -> String {
    let card = &contents.card;
    let parameters: usize = contents.tensors.iter().filter_map(bundle::TensorSpec::elements).sum();
    let mut out = String::new();
    let mut line = |name: &str, value: String| {
        let _ = writeln!(out, "{name:10} {value}");
    };
    line("model", file.to_owned());
    line("digest", card.digest());
    line("made by", format!("{}, schema {}", card.tool, card.schema));
    line("file", format!("{:.1} MiB, {} tensors, {parameters} values", mib(contents.bytes), contents.tensors.len()));
    line("backbone", card.backbone.as_ref().map_or_else(|| "none: pixels".to_owned(), |b| b.name.clone()));
    let training = &card.training;
    line(
        "training",
        format!("{}, {} steps, seed {}", messages::count(training.images, "image"), training.steps, training.seed),
    );
    line("data", format!("sha256 {}", training.data_sha256));
    let changes = changes(&card.config);
    line("config", if changes.is_empty() { "all defaults".to_owned() } else { changes.join("\n           ") });
    let _ = write!(out, "\n{}", messages::count(card.classes.len(), "class").replace("classs", "classes"));
    for class in &card.classes {
        let _ = write!(out, "\n{}", messages::cost(class));
        if let Some(known) = &class.known_defects {
            let _ = write!(out, "\n  {}", messages::known_defects(class, known));
        }
    }
    out
}

fn mib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

pub(super) fn validate(context: &Context, args: &ValidateArgs) -> Result<()> {
    let config = Config::from_file(&args.file)?;
    let changes = changes(&config);
    let file = args.file.display();
    if changes.is_empty() {
        return context.console.print(format_args!("{file}: valid; everything is at its default"));
    }
    context.console.print(format_args!("{file}: valid; what differs from the defaults:\n  {}", changes.join("\n  ")))
}

/// The keys that differ from the defaults: `training.steps = 500 (default 3500)`.
pub(super) fn changes(config: &Config) -> Vec<String> {
    let (own, default) = (keys(config), keys(&Config::default()));
    let value = |table: &toml::Table, key: &str| table.get(key).map_or_else(|| "none".to_owned(), ToString::to_string);
    let mut names: Vec<&String> = own.keys().chain(default.keys()).collect();
    names.sort();
    names.dedup();
    names
        .into_iter()
        .filter(|key| own.get(*key) != default.get(*key))
        .map(|key| format!("{key} = {} (default {})", value(&own, key), value(&default, key)))
        .collect()
}

/// Values by `section.key`.
fn keys(config: &Config) -> toml::Table {
    let mut flat = toml::Table::new();
    for (section, values) in toml::Table::try_from(config).unwrap_or_default() {
        for (key, value) in values.as_table().into_iter().flatten() {
            flat.insert(format!("{section}.{key}"), value.clone());
        }
    }
    flat
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_differs_from_the_defaults_is_told_with_both_values() {
        let mut config = Config::default();
        assert!(changes(&config).is_empty());
        config.training.steps = 7;
        config.calibration.target_fpr = Some(0.01);
        let default = Config::default().training.steps;
        let expected = [
            "calibration.target_fpr = 0.01 (default none)".to_owned(),
            format!("training.steps = 7 (default {default})"),
        ];
        assert_eq!(changes(&config), expected);
    }
}
