//! From a TOML file to values, with every mistake reported at once: the line, the key, the value and what was expected.

use std::cell::RefCell;
use std::time::Duration;

use diad::config::syntax;
use diad::text::closest;
use toml::{Table, Value};

/// A mistake, and the key that it is about: `line[0].source.latency`.
#[derive(Debug)]
struct Mistake {
    key: String,
    text: String,
}

/// What was found wrong so far, and the environment that `${VAR}` is looked up in.
pub(crate) struct Reading<'a> {
    mistakes: RefCell<Vec<Mistake>>,
    variable: &'a dyn Fn(&str) -> Option<String>,
}

impl<'a> Reading<'a> {
    pub(crate) fn new(variable: &'a dyn Fn(&str) -> Option<String>) -> Self {
        Self { mistakes: RefCell::default(), variable }
    }

    pub(crate) fn mistake(&self, key: &str, text: String) {
        self.mistakes.borrow_mut().push(Mistake { key: key.to_owned(), text });
    }

    /// The mistakes in the order of the file, each with its line; none if there are none.
    pub(crate) fn finish(self, text: &str) -> Vec<String> {
        let starts = syntax::starts(text);
        let placed = |Mistake { key, text: what }: Mistake| {
            // A key that is missing stands where its section does.
            let place = std::iter::successors(Some(key.as_str()), |key| key.rfind(['.', '[']).map(|end| &key[..end]));
            match place.into_iter().find_map(|key| starts.get(key)) {
                Some(&at) => (at, format!("line {}: {what}", syntax::line(text, at))),
                None => (usize::MAX, what),
            }
        };
        let mut all: Vec<_> = self.mistakes.into_inner().into_iter().map(placed).collect();
        all.sort_by_key(|(at, _)| *at);
        all.into_iter().map(|(_, text)| text).collect()
    }

    /// `text` with `${VAR}` replaced by the environment's value; `$$` is a dollar sign.
    fn expanded(&self, key: &str, text: &str) -> Option<String> {
        let (mut out, mut rest) = (String::with_capacity(text.len()), text);
        while let Some(at) = rest.find('$') {
            out.push_str(&rest[..at]);
            rest = &rest[at + 1..];
            if let Some(after) = rest.strip_prefix('$') {
                (out, rest) = (out + "$", after);
            } else if let Some((name, after)) = rest.strip_prefix('{').and_then(|rest| rest.split_once('}')) {
                let Some(value) = (self.variable)(name) else {
                    self.mistake(key, format!("{key} = {text:?}: the environment has no variable {name}"));
                    return None;
                };
                (out, rest) = (out + &value, after);
            } else {
                let expected = "expected ${NAME} for a variable of the environment, or $$ for a dollar sign";
                self.mistake(key, format!("{key} = {text:?}: {expected}"));
                return None;
            }
        }
        Some(out + rest)
    }
}

/// A table of the file, read key by key; what has not been asked for at the end is unknown.
pub(crate) struct Section<'a> {
    reading: &'a Reading<'a>,
    /// Where it is: `line[0].source`; empty for the file itself.
    path: String,
    table: &'a Table,
    known: Vec<&'static str>,
}

impl<'a> Section<'a> {
    pub(crate) fn new(reading: &'a Reading<'a>, path: impl Into<String>, table: &'a Table) -> Self {
        Self { reading, path: path.into(), table, known: Vec::new() }
    }

    pub(crate) fn path(&self, key: &str) -> String {
        if self.path.is_empty() { key.to_owned() } else { format!("{}.{key}", self.path) }
    }

    /// The value as it stands.
    pub(crate) fn value(&mut self, key: &'static str) -> Option<&'a Value> {
        self.known.push(key);
        self.table.get(key)
    }

    pub(crate) fn has(&self, key: &str) -> bool {
        self.table.contains_key(key)
    }

    /// Says that the value of a key is not what was expected.
    pub(crate) fn wrong(&self, key: &str, expected: &str) {
        let path = self.path(key);
        let value = self.table.get(key).map_or_else(String::new, |value| format!(" = {}", short(value)));
        self.reading.mistake(&path, format!("{path}{value}: expected {expected}"));
    }

    fn read<T>(
        &mut self,
        key: &'static str,
        expected: &str,
        read: impl FnOnce(&Self, &'a Value) -> Option<T>,
    ) -> Option<T> {
        let value = self.value(key)?;
        let found = read(self, value);
        if found.is_none() {
            self.wrong(key, expected);
        }
        found
    }

    /// A text that is not empty, with variables of the environment in their place.
    pub(crate) fn text(&mut self, key: &'static str) -> Option<String> {
        let text =
            self.read(key, "a text that is not empty", |_, value| value.as_str().filter(|text| !text.is_empty()))?;
        self.reading.expanded(&self.path(key), text)
    }

    /// A secret: the text of `key`, or what is in the file that `key-file` names, without the end of the line.
    pub(crate) fn secret(&mut self, key: &'static str, key_file: &'static str) -> Option<String> {
        let text = self.text(key);
        let Some(file) = self.text(key_file) else { return text };
        if text.is_some() {
            self.wrong(key_file, &format!("either {key} or {key_file}"));
        }
        match std::fs::read_to_string(&file) {
            Ok(secret) => Some(secret.trim_end_matches(['\r', '\n']).to_owned()),
            Err(error) => {
                let path = self.path(key_file);
                self.reading.mistake(&path, format!("{path} = {file:?}: cannot be read: {error}"));
                None
            }
        }
    }

    pub(crate) fn boolean(&mut self, key: &'static str) -> Option<bool> {
        self.read(key, "true or false", |_, value| value.as_bool())
    }

    pub(crate) fn integer(&mut self, key: &'static str, range: std::ops::RangeInclusive<u32>) -> Option<u32> {
        let expected = format!("a whole number from {} to {}", range.start(), range.end());
        self.read(key, &expected, |_, value| {
            value.as_integer().and_then(|n| u32::try_from(n).ok()).filter(|n| range.contains(n))
        })
    }

    /// A length of time: a number and `ms`, `s`, `min`, `h` or `d`.
    pub(crate) fn duration(&mut self, key: &'static str) -> Option<Duration> {
        let expected = "a length of time, for instance \"500ms\", \"5s\", \"10min\" or \"1h\"";
        self.read(key, expected, |_, value| value.as_str().and_then(duration))
    }

    /// The same, or `"off"`.
    pub(crate) fn duration_or_off(&mut self, key: &'static str) -> Option<Option<Duration>> {
        let expected = "a length of time, for instance \"5s\", or \"off\"";
        self.read(key, expected, |_, value| {
            let text = value.as_str()?;
            if text == "off" { Some(None) } else { duration(text).map(Some) }
        })
    }

    /// An amount of data.
    pub(crate) fn bytes(&mut self, key: &'static str) -> Option<u64> {
        let expected = "an amount, for instance \"60kB\", \"256MB\" or \"50GB\"";
        self.read(key, expected, |_, value| value.as_str().and_then(bytes))
    }

    /// The bytes of a file that a key names.
    pub(crate) fn file(&mut self, key: &'static str) -> Option<Vec<u8>> {
        let file = self.text(key)?;
        let read = std::fs::read(&file);
        read.map_err(|error| self.mistake(key, format!("{} = {file:?}: cannot be read: {error}", self.path(key)))).ok()
    }

    /// One of some names.
    pub(crate) fn choice<T: Copy>(&mut self, key: &'static str, choices: &[(&str, T)]) -> Option<T> {
        let names: Vec<String> = choices.iter().map(|(name, _)| format!("{name:?}")).collect();
        let expected = format!("one of {}", names.join(", "));
        self.read(key, &expected, |_, value| {
            let name = value.as_str()?;
            choices.iter().find(|(known, _)| *known == name).map(|(_, choice)| *choice)
        })
    }

    /// A table in this one.
    pub(crate) fn section(&mut self, key: &'static str) -> Option<Section<'a>> {
        let (reading, path) = (self.reading, self.path(key));
        let table = self.read(key, "a table", |_, value| value.as_table())?;
        Some(Section::new(reading, path, table))
    }

    /// The tables in this one, whose names are those of something else.
    pub(crate) fn tables(&self) -> Vec<(&'a str, Section<'a>)> {
        let table = |(key, value): (&'a str, &'a Value)| {
            if !value.is_table() {
                self.wrong(key, "a table");
            }
            Some((key, Section::new(self.reading, self.path(key), value.as_table()?)))
        };
        self.entries().filter_map(table).collect()
    }

    /// Tables of one name.
    pub(crate) fn sections(&mut self, key: &'static str) -> Vec<Section<'a>> {
        let (reading, path) = (self.reading, self.path(key));
        let expected = format!("tables, each under [[{key}]]");
        let tables = self
            .read(key, &expected, |_, value| value.as_array()?.iter().map(Value::as_table).collect::<Option<Vec<_>>>());
        let tables = tables.unwrap_or_default().into_iter().enumerate();
        tables.map(|(i, table)| Section::new(reading, format!("{path}[{i}]"), table)).collect()
    }

    /// All keys and values of a table whose keys are names of something else.
    pub(crate) fn entries(&self) -> impl Iterator<Item = (&'a str, &'a Value)> {
        self.table.iter().map(|(key, value)| (key.as_str(), value))
    }

    pub(crate) fn mistake(&self, key: &str, text: String) {
        self.reading.mistake(&self.path(key), text);
    }

    /// A text of a value that names of something else stand for, with variables of the environment in their place.
    pub(crate) fn expanded(&self, key: &str, text: &str) -> Option<String> {
        self.reading.expanded(&self.path(key), text)
    }

    /// Knows keys without reading them.
    pub(crate) fn expect(&mut self, keys: &[&'static str]) {
        self.known.extend(keys);
    }

    /// Says which keys nobody knows.
    pub(crate) fn finish(self) {
        for key in self.table.keys().filter(|key| !self.known.contains(&key.as_str())) {
            self.unknown(key, &self.known);
        }
    }

    /// Says that nobody knows a key, and which of `known` may be meant.
    pub(crate) fn unknown(&self, key: &str, known: &[&str]) {
        let path = self.path(key);
        let hint = closest(key, known.iter().copied()).map(|name| format!("; did you mean {name}?"));
        let hint = hint.unwrap_or_else(|| format!("; known are {}", known.join(", ")));
        self.reading.mistake(&path, format!("{path}: unknown key{hint}"));
    }
}

/// A value as it stands in a message.
fn short(value: &Value) -> String {
    let text = value.to_string().replace('\n', " ");
    if text.chars().count() > 60 { text.chars().take(57).collect::<String>() + "..." } else { text }
}

/// `500ms`, `5s`, `10min`, `1h`, `90d`; more than nothing and at most a year.
pub(crate) fn duration(text: &str) -> Option<Duration> {
    const YEAR: f64 = 365.0 * 24.0 * 3600.0;
    let unit = text.find(|c: char| !(c.is_ascii_digit() || c == '.'))?;
    let factor = match text[unit..].trim() {
        "ms" => 1e-3,
        "s" => 1.0,
        "min" => 60.0,
        "h" => 3600.0,
        "d" => 24.0 * 3600.0,
        _ => return None,
    };
    let seconds = text[..unit].parse::<f64>().ok()? * factor;
    (seconds > 0.0 && seconds <= YEAR).then(|| Duration::from_secs_f64(seconds))
}

/// `60kB`, `256MB`, `50GB`, `1.5TB`.
pub(crate) fn bytes(text: &str) -> Option<u64> {
    let unit = text.find(|c: char| !(c.is_ascii_digit() || c == '.'))?;
    let factor = match text[unit..].trim() {
        "kB" | "KB" => 1e3,
        "MB" => 1e6,
        "GB" => 1e9,
        "TB" => 1e12,
        _ => return None,
    };
    let bytes = text[..unit].parse::<f64>().ok()? * factor;
    (0.0..1e18).contains(&bytes).then_some(bytes as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_of_time() {
        for (text, ms) in [("500ms", 500), ("5s", 5000), ("1.5 s", 1500), ("10min", 600_000), ("1h", 3_600_000)] {
            assert_eq!(duration(text), Some(Duration::from_millis(ms)), "{text}");
        }
        for wrong in ["", "5", "s", "0s", "-1s", "5 days", "1e9h", "5.5.5s", "400000h", "inf s"] {
            assert_eq!(duration(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn variables_of_the_environment() {
        let variable = |name: &str| (name == "PW").then(|| "se$ret".to_owned());
        let reading = Reading::new(&variable);
        assert_eq!(reading.expanded("k", "a${PW}b").as_deref(), Some("ase$retb"));
        assert_eq!(reading.expanded("k", "5 $$").as_deref(), Some("5 $"));
        for wrong in ["${NONE}", "$PW", "${PW", "$"] {
            assert_eq!(reading.expanded("k", wrong), None, "{wrong}");
        }
        assert_eq!(reading.finish("k = 1").len(), 4);
    }
}
