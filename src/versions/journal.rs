//! The journal: what was changed when, by whom and why. Each line holds the digest of the one before.

use serde::{Deserialize, Serialize};

use crate::bundle::sha256_hex;
use crate::named::named;
use crate::text;

named! {
    /// What a line of the journal tells.
    pub enum What: "entry" {
        /// A version has come.
        Add = "add",
        /// A version is in use from now on.
        Use = "use",
        /// The version that was in use before is so again.
        Rollback = "rollback",
        /// Another version was found in use than the line before tells: that change was interrupted, or somebody has set the link
        /// by hand. The number 0 stands for none.
        Found = "found",
        /// A version was removed.
        Prune = "prune",
    }
}

/// Who changes something, and why.
#[derive(Clone, Debug, Default)]
pub struct By {
    /// A name.
    pub who: String,
    /// What they say about it; may be empty.
    pub note: String,
}

/// A line of the journal.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// When.
    pub utc: String,
    /// Who has done it.
    pub who: String,
    /// What was done.
    pub what: What,
    /// The number of the version.
    pub number: u32,
    /// The digest of its model.
    pub digest: String,
    /// What was said about it.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub note: String,
    /// SHA-256 of the line before, without its end, in lowercase hexadecimal; zeros in the first.
    pub prev: String,
}

/// What a journal says.
#[derive(Clone, Debug)]
pub struct Journal {
    entries: Vec<Entry>,
    faults: Vec<String>,
    is_legible: bool,
    whole: u64,
    is_cut_off: bool,
    /// Digest of the last line.
    last: String,
}

impl Journal {
    /// Of these bytes. Every line can be read that has its end.
    pub fn parse(bytes: &[u8]) -> Self {
        let whole = bytes.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
        let mut journal = Self {
            entries: Vec::new(),
            faults: Vec::new(),
            is_legible: true,
            whole: whole as u64,
            is_cut_off: whole < bytes.len(),
            last: "0".repeat(64),
        };
        let lines = bytes[..whole].split_inclusive(|byte| *byte == b'\n').map(|line| &line[..line.len() - 1]);
        for (number, line) in (1..).zip(lines) {
            match serde_json::from_slice::<Entry>(line) {
                Ok(entry) => {
                    if entry.prev != journal.last {
                        let (got, expected) = (&entry.prev, &journal.last);
                        let fault = match number {
                            1 => format!("line 1: prev is {got}, expected zeros: lines before it are gone"),
                            _ => format!(
                                "line {number}: prev is {got}, but the SHA-256 of line {} is {expected}: that line was changed, or \
                                 lines between are gone",
                                number - 1
                            ),
                        };
                        journal.faults.push(fault);
                    }
                    journal.entries.push(entry);
                }
                Err(error) => {
                    journal.is_legible = false;
                    journal.faults.push(format!("line {number}: cannot be read: {error}"));
                }
            }
            journal.last = sha256_hex(line);
        }
        journal
    }

    /// Its lines.
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// What is wrong with it, each with its line.
    pub fn faults(&self) -> &[String] {
        &self.faults
    }

    /// Whether each line could be read.
    pub(super) fn is_legible(&self) -> bool {
        self.is_legible
    }

    /// Whether its last line has no end: it was being written when the program died.
    pub(super) fn is_cut_off(&self) -> bool {
        self.is_cut_off
    }

    /// Bytes up to the end of the last line that has one.
    pub(super) fn whole(&self) -> u64 {
        self.whole
    }

    /// The next line, with its end.
    pub(super) fn line(&self, what: What, (number, digest): (u32, &str), by: &By) -> Vec<u8> {
        let entry = Entry {
            utc: text::utc(text::now_ms()),
            who: by.who.clone(),
            what,
            number,
            digest: digest.to_owned(),
            note: by.note.clone(),
            prev: self.last.clone(),
        };
        // Strings and a number: nothing in it can fail to be JSON, which has no ends of lines in it.
        let mut line = serde_json::to_vec(&entry).unwrap_or_default();
        line.push(b'\n');
        line
    }

    /// Numbers and digests of the versions that there are: added and not removed, ascending.
    pub fn versions(&self) -> Vec<(u32, &str)> {
        let gone = |number| self.entries.iter().any(|entry| entry.what == What::Prune && entry.number == number);
        let added = self.entries.iter().filter(|entry| entry.what == What::Add && !gone(entry.number));
        let mut all: Vec<_> = added.map(|entry| (entry.number, entry.digest.as_str())).collect();
        all.sort_unstable();
        all.dedup_by_key(|(number, _)| *number);
        all
    }

    /// The highest number of a version.
    pub(super) fn highest(&self) -> u32 {
        self.entries.iter().map(|entry| entry.number).max().unwrap_or(0)
    }

    /// Versions that were in use, the one in use last. See [`history`].
    pub(super) fn history(&self) -> Vec<u32> {
        history(&self.entries)
    }

    /// The same before the last line.
    pub(super) fn history_before(&self) -> Vec<u32> {
        history(self.entries.split_last().map_or(&[], |(_, before)| before))
    }
}

/// Versions that were in use one after the other, beginning with 0 for none. Those are left out that were rolled back and those that
/// are gone: a rollback goes to the last but one, and another goes on from there.
fn history(entries: &[Entry]) -> Vec<u32> {
    let mut used = vec![0];
    for (at, &Entry { what, number, .. }) in entries.iter().enumerate() {
        let never_happened = || {
            let next = entries.get(at + 1).filter(|next| next.what == What::Found);
            next.is_some_and(|found| used.last() == Some(&found.number))
        };
        match what {
            What::Add => {}
            What::Use | What::Rollback if never_happened() => {}
            What::Rollback => match used.iter().rposition(|before| *before == number) {
                Some(at) => used.truncate(at + 1),
                None => used.push(number),
            },
            What::Use | What::Found => used.push(number),
            What::Prune => used.retain(|before| *before != number),
        }
        used.dedup();
    }
    used
}
