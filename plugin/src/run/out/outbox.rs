//! Results that wait for a receiver, on disk.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use diad::detector::Verdict;
use diad::spool::{Counts, Fate, Limits, Record, Spool};
use diad::text::now_ms;
use gstdiad::result::DiadResult;

use super::super::read::Section;
use super::super::say;
use super::super::tally::lock;

/// Which results somebody wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Which {
    All,
    /// Those that are not ok.
    NotOk,
    /// Those whose verdict is another than the one before it.
    Changes,
}

/// What receivers have in common that may be away.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Waiting {
    pub(super) which: Which,
    pub(super) limits: Limits,
}

impl Waiting {
    pub(super) fn read(section: &mut Section<'_>) -> Self {
        let which = [("all", Which::All), ("not-ok", Which::NotOk), ("changes", Which::Changes)];
        Self {
            which: section.choice("which", &which).unwrap_or(Which::All),
            limits: Limits {
                max_size: section.bytes("max-size").unwrap_or(256_000_000),
                max_age: section.duration("max-age").unwrap_or(Duration::from_secs(7 * 24 * 3600)),
            },
        }
    }
}

/// Results on their way to one receiver.
pub(crate) struct Outbox {
    name: &'static str,
    spool: Mutex<Spool>,
    which: Mutex<Which>,
    /// The last verdict of each line.
    last: Mutex<BTreeMap<String, Verdict>>,
    /// Results that the receiver has said it has, by line.
    delivered: Mutex<BTreeMap<String, u64>>,
    connected: AtomicBool,
    /// Whether somebody was told that the disk takes nothing.
    told: AtomicBool,
}

impl Outbox {
    /// Opens the folder `spool/NAME` of `state_dir`.
    pub(super) fn open(name: &'static str, state_dir: &Path, waiting: &Waiting) -> Result<Self, String> {
        let spool = Spool::open(&state_dir.join("spool").join(name), waiting.limits);
        let spool = spool.map_err(|error| error.to_string())?;
        let Counts { waiting: old, damaged, .. } = spool.counts();
        if old + damaged > 0 {
            let damage = if damaged > 0 { format!(", {damaged} are damaged") } else { String::new() };
            say("", &format!("{name}: {old} results of an earlier run wait{damage}"));
        }
        Ok(Self {
            name,
            spool: Mutex::new(spool),
            which: Mutex::new(waiting.which),
            last: Mutex::default(),
            delivered: Mutex::default(),
            connected: AtomicBool::new(false),
            told: AtomicBool::new(false),
        })
    }

    pub(super) fn change(&self, waiting: &Waiting) {
        lock(&self.spool).limit(waiting.limits);
        *lock(&self.which) = waiting.which;
    }

    pub(crate) fn name(&self) -> &'static str {
        self.name
    }

    /// Takes a result, if it is wanted.
    pub(super) fn take(&self, result: &DiadResult, json: &[u8]) {
        let line = result.line.as_deref().unwrap_or_default();
        let last = lock(&self.last).insert(line.to_owned(), result.verdict);
        let wanted = match *lock(&self.which) {
            Which::All => true,
            Which::NotOk => result.verdict != Verdict::Ok,
            Which::Changes => last != Some(result.verdict),
        };
        if !wanted {
            return;
        }
        let fate = if result.verdict == Verdict::Ok { Fate::Expendable } else { Fate::Kept };
        match lock(&self.spool).push(line, json, fate, now_ms()) {
            Ok(_) => self.told.store(false, Ordering::Relaxed),
            Err(error) if !self.told.swap(true, Ordering::Relaxed) => {
                say("", &format!("{}: the disk takes no result: {error}", self.name));
            }
            Err(_) => {}
        }
    }

    /// Results from the number `from` on, or from the oldest that was not delivered.
    pub(super) fn read(&self, from: u64, most: usize) -> Vec<Record> {
        let read = lock(&self.spool).read(from, most);
        read.unwrap_or_else(|error| {
            if !self.told.swap(true, Ordering::Relaxed) {
                say("", &format!("{}: what waits on disk cannot be read: {error}", self.name));
            }
            Vec::new()
        })
    }

    /// The receiver has these, and all before them.
    pub(super) fn deliver(&self, records: impl IntoIterator<Item = (u64, String)>) {
        let mut last = None;
        let mut delivered = lock(&self.delivered);
        for (number, line) in records {
            last = last.max(Some(number));
            *delivered.entry(line).or_default() += 1;
        }
        drop(delivered);
        if let Some(last) = last {
            let _ = lock(&self.spool).acknowledge(last); // a cursor that is not kept costs doubles
        }
    }

    /// What is too old goes, and what is new is made to outlive the machine.
    pub(super) fn tidy(&self) {
        let mut spool = lock(&self.spool);
        spool.trim(now_ms());
        let file = spool.to_sync();
        drop(spool); // nobody waits with us
        if let Ok(Some(file)) = file {
            let _ = file.sync_data();
        }
    }

    pub(super) fn is_connected(&self, connected: bool) {
        self.connected.store(connected, Ordering::Relaxed);
    }

    pub(crate) fn connected(&self) -> bool {
        self.connected.load(Ordering::Relaxed)
    }

    /// Results that the receiver has, by line.
    pub(crate) fn delivered(&self) -> BTreeMap<String, u64> {
        lock(&self.delivered).clone()
    }

    /// What waits, and what was lost.
    pub(crate) fn counts(&self) -> Counts {
        lock(&self.spool).counts()
    }
}
