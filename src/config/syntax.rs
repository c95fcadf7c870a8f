//! TOML as text: what is wrong with it, and where in it the keys are. For every file of the project that is one.

use std::collections::BTreeMap;

use toml::Table;
use toml::de::{DeTable, DeValue};

use super::rules::excerpt;

/// The tables of a file.
///
/// # Errors
/// The first mistake of every line, in order: what follows on a line is mostly an echo.
pub fn parse(text: &str) -> Result<Table, Vec<String>> {
    let (_, errors) = DeTable::parse_recoverable(text);
    if errors.is_empty() {
        return text.parse::<Table>().map_err(|error| vec![excerpt(error.message())]);
    }
    let mut first = BTreeMap::new();
    for error in &errors {
        let start = error.span().map_or(text.len(), |span| span.start);
        let entry = first.entry(line(text, start)).or_insert((start, error.message()));
        if start < entry.0 {
            *entry = (start, error.message());
        }
    }
    Err(first.into_iter().map(|(line, (_, message))| format!("line {line}: {}", excerpt(message))).collect())
}

/// Number of the line of `text` that byte `at` is on, from 1.
pub fn line(text: &str, at: usize) -> usize {
    1 + text.bytes().take(at).filter(|byte| *byte == b'\n').count()
}

/// Where each table and key begins, in bytes, by its path: `training.steps`, `line[0].source.latency`.
pub fn starts(text: &str) -> BTreeMap<String, usize> {
    fn of_table(path: &str, table: &DeTable<'_>, starts: &mut BTreeMap<String, usize>) {
        for (key, value) in table {
            let name = key.get_ref();
            let path = if path.is_empty() { name.to_string() } else { format!("{path}.{name}") };
            starts.insert(path.clone(), key.span().start);
            of_value(&path, value.get_ref(), starts);
        }
    }
    fn of_value(path: &str, value: &DeValue<'_>, starts: &mut BTreeMap<String, usize>) {
        match value {
            DeValue::Table(table) => of_table(path, table, starts),
            DeValue::Array(items) => {
                for (i, item) in items.iter().enumerate() {
                    let path = format!("{path}[{i}]");
                    starts.insert(path.clone(), item.span().start);
                    of_value(&path, item.get_ref(), starts);
                }
            }
            _ => {}
        }
    }
    let mut all = BTreeMap::new();
    let (table, _) = DeTable::parse_recoverable(text);
    of_table("", table.get_ref(), &mut all);
    all
}
