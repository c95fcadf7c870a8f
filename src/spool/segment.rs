//! A file of records, one a line, each with a checksum.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// End of a segment's name, behind the number of its first record.
const END: &str = ".spool";
/// End of a file that takes a segment's place when it is whole.
const NEW: &str = "new";

/// What may become of a record where there is too much.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It goes last.
    Kept,
    /// It may go first.
    Expendable,
}

/// Something that is to be delivered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// Its place in the order. Numbers rise; those of records that were lost are missing.
    pub number: u64,
    /// When it was pushed, in milliseconds since 1970.
    pub utc_ms: u64,
    /// What may become of it.
    pub fate: Fate,
    /// What it is about, without spaces.
    pub topic: String,
    /// A line of text.
    pub payload: Vec<u8>,
}

impl Record {
    /// `checksum number time fate topic payload`, and the end of the line. The checksum is of all behind it.
    pub(super) fn to_line(&self) -> Vec<u8> {
        let fate = if self.fate == Fate::Kept { '+' } else { '-' };
        let mut text = format!("{} {} {fate} {} ", self.number, self.utc_ms, self.topic).into_bytes();
        text.extend_from_slice(&self.payload);
        let mut line = checksum(&text).into_bytes();
        line.append(&mut text);
        line.push(b'\n');
        line
    }

    /// The record of a line; `None` if it is damaged or cut short.
    pub(super) fn of_line(line: &[u8]) -> Option<Self> {
        let text = line.strip_suffix(b"\n")?;
        let (sum, text) = text.split_at_checked(9)?;
        if sum != checksum(text).as_bytes() {
            return None;
        }
        let mut words = text.splitn(5, |byte| *byte == b' ');
        let mut word = || words.next();
        let (number, time, fate, topic, payload) = (word()?, word()?, word()?, word()?, word()?);
        let text = |bytes| std::str::from_utf8(bytes).ok();
        Some(Self {
            number: text(number)?.parse().ok()?,
            utc_ms: text(time)?.parse().ok()?,
            fate: if fate == b"+" { Fate::Kept } else { Fate::Expendable },
            topic: text(topic)?.to_owned(),
            payload: payload.to_vec(),
        })
    }
}

fn checksum(text: &[u8]) -> String {
    format!("{:08x} ", crc32fast::hash(text))
}

/// What is known of a file.
#[derive(Debug)]
pub(super) struct Segment {
    path: PathBuf,
    first: u64,
    /// Numbers of its records, in order.
    numbers: Vec<u64>,
    bytes: u64,
    oldest_ms: u64,
    newest_ms: u64,
    expendable: u64,
    damaged: u64,
}

impl Segment {
    /// A file that is not there yet, and will begin with the record `first`.
    pub(super) fn new(folder: &Path, first: u64) -> Self {
        let path = folder.join(format!("{first:020}{END}"));
        Self::empty(path, first)
    }

    fn empty(path: PathBuf, first: u64) -> Self {
        Self {
            path,
            first,
            numbers: Vec::new(),
            bytes: 0,
            oldest_ms: u64::MAX,
            newest_ms: 0,
            expendable: 0,
            damaged: 0,
        }
    }

    /// Number of the first record of a file of this name, if it is a segment.
    pub(super) fn first_of(name: &str) -> Option<u64> {
        name.strip_suffix(END).filter(|number| number.len() == 20)?.parse().ok()
    }

    /// Reads a file.
    pub(super) fn read(path: PathBuf, first: u64) -> io::Result<Self> {
        let text = fs::read(&path)?;
        let mut segment = Self::empty(path, first);
        for line in text.split_inclusive(|byte| *byte == b'\n') {
            match Record::of_line(line) {
                Some(record) if record.number >= segment.next() => segment.add(&record, 0),
                // What a crash has cut short was never taken.
                _ if line.ends_with(b"\n") => segment.damaged += 1,
                _ => {}
            }
        }
        segment.bytes = text.len() as u64;
        Ok(segment)
    }

    /// A record of so many bytes was written to its end.
    pub(super) fn add(&mut self, record: &Record, bytes: u64) {
        self.numbers.push(record.number);
        self.bytes += bytes;
        self.oldest_ms = self.oldest_ms.min(record.utc_ms);
        self.newest_ms = self.newest_ms.max(record.utc_ms);
        self.expendable += u64::from(record.fate == Fate::Expendable);
    }

    /// All records of the file.
    pub(super) fn records(&self) -> io::Result<Vec<Record>> {
        let text = fs::read(&self.path)?;
        Ok(text.split_inclusive(|byte| *byte == b'\n').filter_map(Record::of_line).collect())
    }

    /// Leaves only what is kept and not before `cursor`; returns the topics of what was lost by it.
    pub(super) fn thin(&mut self, cursor: u64) -> io::Result<Vec<String>> {
        let open = self.records()?.into_iter().filter(|record| record.number >= cursor);
        let (kept, lost): (Vec<Record>, Vec<Record>) = open.partition(|record| record.fate == Fate::Kept);
        let mut thinned = Self::empty(self.path.clone(), self.first);
        let mut text = Vec::new();
        for record in &kept {
            let line = record.to_line();
            thinned.add(record, line.len() as u64);
            text.extend(line);
        }
        let new = self.path.with_extension(NEW);
        fs::write(&new, text)?;
        fs::rename(new, &self.path)?;
        *self = thinned;
        Ok(lost.into_iter().map(|record| record.topic).collect())
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn first(&self) -> u64 {
        self.first
    }

    /// One past its last record.
    pub(super) fn next(&self) -> u64 {
        self.numbers.last().map_or(self.first, |last| last + 1)
    }

    /// Records from this number on.
    pub(super) fn count_from(&self, number: u64) -> u64 {
        (self.numbers.len() - self.numbers.partition_point(|known| *known < number)) as u64
    }

    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    pub(super) fn oldest_ms(&self) -> u64 {
        self.oldest_ms
    }

    pub(super) fn newest_ms(&self) -> u64 {
        self.newest_ms
    }

    pub(super) fn has_expendable(&self) -> bool {
        self.expendable > 0
    }

    pub(super) fn damaged(&self) -> u64 {
        self.damaged
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// ```python
    /// import zlib; hex(zlib.crc32(b'7 1795443303127 + cap {"verdict":"ng"}'))
    /// ```
    #[test]
    fn a_record_is_a_line() {
        let record = Record {
            number: 7,
            utc_ms: 1_795_443_303_127,
            fate: Fate::Kept,
            topic: "cap".into(),
            payload: br#"{"verdict":"ng"}"#.to_vec(),
        };
        let line = String::from_utf8(record.to_line()).unwrap();
        assert_eq!(line, "39340c83 7 1795443303127 + cap {\"verdict\":\"ng\"}\n");
        assert_eq!(Record::of_line(line.as_bytes()), Some(record));
    }

    proptest! {
        #[test]
        fn a_line_is_read_as_it_was_written_and_no_other(
            number: u64, utc_ms: u64, kept: bool, topic in "[A-Za-z0-9_-]{1,40}", payload in "[^\n]{0,80}", at: prop::sample::Index, flip in 1u8..,
        ) {
            let fate = if kept { Fate::Kept } else { Fate::Expendable };
            let record = Record { number, utc_ms, fate, topic, payload: payload.into_bytes() };
            let mut line = record.to_line();
            prop_assert_eq!(Record::of_line(&line), Some(record));
            let at = at.index(line.len());
            prop_assert_eq!(Record::of_line(&line[..at]), None, "cut short");
            line[at] ^= flip;
            prop_assert_eq!(Record::of_line(&line), None, "byte {} flipped", at);
        }

        #[test]
        fn no_bytes_make_it_stumble(bytes: Vec<u8>) {
            let _ = Record::of_line(&bytes);
        }
    }
}
