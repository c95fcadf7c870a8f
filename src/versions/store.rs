//! A folder of versions: what is in it, and the ways to change that.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use super::disk::{Disk, System};
use super::journal::{By, Entry, Journal, What};
use super::{CURRENT, JOURNAL};
use serde::Serialize;

use crate::error::{Error, Result};
use crate::files::read_regular;

/// End of a file that is not in its place yet.
const PART: &str = "part";
/// End of a model file.
const MODEL: &str = "diad";
/// Largest size of a journal: some hundred thousand changes.
const MAX_JOURNAL: u64 = 1 << 26;

/// A version of a model.
#[derive(Clone, Debug)]
pub struct Version {
    /// Its number.
    pub number: u32,
    /// The digest of its model.
    pub digest: String,
    /// The model file.
    pub file: PathBuf,
    /// When it came, from whom, with what note.
    pub added: Entry,
    /// Whether it is in use.
    pub in_use: bool,
    /// Whether a rollback goes to it.
    pub is_before: bool,
}

/// What became of a model that was to be added.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Added {
    /// It is a version of this number.
    As(u32),
    /// It is there already, under this number.
    Already(u32),
}

/// What became of a version that was to be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Used {
    /// It is in use now, in place of that one.
    InPlaceOf(Option<u32>),
    /// It was in use before.
    Already,
}

/// What is found of a store.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Checked {
    /// What is wrong.
    pub faults: Vec<String>,
    /// What a change that was interrupted has left; the next change puts it right.
    pub notes: Vec<String>,
}

/// A folder of versions.
#[derive(Debug)]
pub struct Store<D = System> {
    root: PathBuf,
    disk: D,
    journal: Journal,
    /// The journal, locked as long as this lives.
    _lock: File,
}

impl Store {
    /// Opens a store to look at it. Waits for a change that is under way.
    ///
    /// # Errors
    /// When it is none, or cannot be read.
    pub fn open(root: &Path) -> Result<Self> {
        Self::open_on(root, System)
    }

    /// Opens a store to change it. Waits for another change that is under way.
    ///
    /// # Errors
    /// When it is none, cannot be read or written, or its journal is damaged.
    pub fn change(root: &Path, by: &By) -> Result<Self> {
        Self::change_on(root, System, by)
    }

    /// The same; a folder that is not there, or is empty, becomes a store.
    ///
    /// # Errors
    /// As [`Store::change`], or for a folder with other things in it.
    pub fn create(root: &Path, by: &By) -> Result<Self> {
        let wrong = |error| Error::io(root, "cannot write into", error);
        fs::create_dir_all(root).map_err(wrong)?;
        if !root.join(JOURNAL).exists() {
            if fs::read_dir(root).map_err(wrong)?.next().is_some() {
                let shown = root.display();
                return Err(Error::Usage(format!(
                    "{shown}: has files in it and no {JOURNAL}, expected a folder of versions, an empty one, or a new one"
                )));
            }
            File::options().append(true).create(true).open(root.join(JOURNAL)).map_err(wrong)?;
        }
        Self::change(root, by)
    }
}

impl<D: Disk> Store<D> {
    pub(super) fn open_on(root: &Path, disk: D) -> Result<Self> {
        let lock = journal_of(root, File::options().read(true))?;
        lock.lock_shared().map_err(|error| Error::io(root.join(JOURNAL), "cannot be locked", error))?;
        Ok(Self { root: root.to_owned(), disk, journal: read(root)?, _lock: lock })
    }

    pub(super) fn change_on(root: &Path, disk: D, by: &By) -> Result<Self> {
        let lock = journal_of(root, File::options().append(true))?;
        lock.lock().map_err(|error| Error::io(root.join(JOURNAL), "cannot be locked", error))?;
        let mut store = Self { root: root.to_owned(), disk, journal: read(root)?, _lock: lock };
        if !store.journal.is_legible() {
            let faults = store.journal.faults().join("; ");
            return Err(Error::model(root.join(JOURNAL), format!("{faults}; nothing is changed")));
        }
        store.settle(by)?;
        Ok(store)
    }

    /// The journal.
    pub fn journal(&self) -> &Journal {
        &self.journal
    }

    /// The versions, ascending.
    pub fn versions(&self) -> Vec<Version> {
        let (in_use, before) = (self.in_use(), self.before());
        let of = |(number, digest): (u32, &str)| {
            let is_its = |entry: &&Entry| entry.what == What::Add && entry.number == number;
            Some(Version {
                number,
                digest: digest.to_owned(),
                file: self.file(number, digest),
                added: self.journal.entries().iter().find(is_its)?.clone(),
                in_use: in_use == Some(number),
                is_before: before == Some(number),
            })
        };
        self.journal.versions().into_iter().filter_map(of).collect()
    }

    /// The number of the version in use, which is where the link leads, whatever the journal tells.
    pub fn in_use(&self) -> Option<u32> {
        let target = fs::read_link(self.root.join(CURRENT)).ok()?;
        let is_it = |(number, digest): &(u32, &str)| target.as_os_str() == name(*number, digest).as_str();
        self.journal.versions().into_iter().find(is_it).map(|(number, _)| number)
    }

    /// The number of the version that a rollback goes to.
    pub fn before(&self) -> Option<u32> {
        let in_use = self.in_use().unwrap_or(0);
        let mut history = self.journal.history();
        if history.last() != Some(&in_use) {
            history = self.journal.history_before(); // the last change was interrupted before it took effect
        }
        let at = history.iter().rposition(|number| *number == in_use)?;
        history[..at].last().copied().filter(|number| *number != 0)
    }

    /// Adds a copy of a model file, unless it is there already.
    ///
    /// # Errors
    /// When it is no model that can be loaded, or the disk refuses.
    pub fn add(&mut self, model: &Path, by: &By) -> Result<Added> {
        let digest = self.disk.digest(model)?;
        if let Some((number, _)) = self.journal.versions().into_iter().find(|(_, other)| *other == digest) {
            return Ok(Added::Already(number));
        }
        let number = self.next()?;
        let part = self.part(number);
        let copied = self.step(&part, |disk| disk.copy(model, &part)).and_then(|()| match self.disk.digest(&part)? {
            copy if copy == digest => Ok(()),
            _ => Err(Error::model(model, "has changed while it was copied")),
        });
        if let Err(error) = copied {
            let _ = self.disk.remove(&part); // where that fails, the next change does it
            return Err(error);
        }
        self.tell(What::Add, (number, &digest), by)?;
        let file = self.file(number, &digest);
        self.step(&file, |disk| disk.rename(&part, &file))?;
        Ok(Added::As(number))
    }

    /// Puts a version in use.
    ///
    /// # Errors
    /// When there is none of this number, its file is damaged, or the disk refuses.
    pub fn use_version(&mut self, number: u32, by: &By) -> Result<Used> {
        self.put_in_use(What::Use, number, by)
    }

    /// Puts the version in use that was so before; its number, and that of the one that it replaces.
    ///
    /// # Errors
    /// When there is none, its file is damaged, or the disk refuses.
    pub fn rollback(&mut self, by: &By) -> Result<(u32, Option<u32>)> {
        let Some(number) = self.before() else {
            let shown = self.root.display();
            return Err(Error::Usage(format!(
                "{shown}: no version was in use before this one; diad models use {shown} N"
            )));
        };
        let from = self.in_use();
        self.put_in_use(What::Rollback, number, by)?;
        Ok((number, from))
    }

    /// Removes all but the newest `keep` versions, the one in use, and the one that a rollback goes to; the numbers of those that
    /// are gone.
    ///
    /// # Errors
    /// When the disk refuses; those before are gone then.
    pub fn prune(&mut self, keep: usize, by: &By) -> Result<Vec<u32>> {
        let stay = [self.in_use(), self.before(), self.journal.history().last().copied()];
        let versions = self.versions();
        let old = versions.iter().rev().skip(keep).filter(|version| !stay.contains(&Some(version.number)));
        let mut gone = Vec::new();
        for Version { number, digest, file, .. } in old {
            self.tell(What::Prune, (*number, digest), by)?;
            if file.exists() {
                self.step(file, |disk| disk.remove(file))?;
            }
            gone.push(*number);
        }
        Ok(gone)
    }

    /// Checks every file, the journal, and which version is in use.
    ///
    /// # Errors
    /// When the folder cannot be read.
    pub fn verify(&self) -> Result<Checked> {
        let mut found = Checked::default();
        found.faults.extend(self.journal.faults().iter().map(|fault| format!("{JOURNAL}: {fault}")));
        if self.journal.is_cut_off() {
            found.notes.push(format!("{JOURNAL}: its last line was being written; it does not count"));
        }
        let last = self.journal.entries().last();
        for Version { number, digest, file, .. } in self.versions() {
            let (name, part) = (name(number, &digest), self.part(number));
            let is_last = last.is_some_and(|last| last.what == What::Add && last.number == number);
            if !file.exists() && is_last && part.exists() {
                found.notes.push(format!("{name}: is not in its place yet: its add was interrupted"));
                continue;
            }
            match self.disk.digest(&file) {
                Ok(own) if own == digest => {}
                Ok(own) => found.faults.push(format!("{name}: is another model, of digest {own}, expected {digest}")),
                Err(error) => found.faults.push(error.to_string()),
            }
        }
        let versions = self.journal.versions();
        let known = |number| versions.iter().any(|(other, _)| *other == number);
        for (number, name) in self.files()? {
            if last.is_some_and(|last| last.what == What::Prune && last.number == number) {
                found.notes.push(format!("{name}: is still there: its removal was interrupted"));
            } else if !known(number) {
                found.faults.push(format!("{name}: the journal does not tell of it"));
            }
        }
        self.verify_current(&mut found);
        Ok(found)
    }

    fn verify_current(&self, found: &mut Checked) {
        let version = |number: u32| if number == 0 { "no version".to_owned() } else { format!("version {number}") };
        let last = |history: Vec<u32>| history.last().copied().unwrap_or(0);
        let (told, before) = (last(self.journal.history()), last(self.journal.history_before()));
        let in_use = self.in_use().unwrap_or(0);
        let link = self.root.join(CURRENT);
        if in_use == 0 && fs::symlink_metadata(&link).is_ok() {
            let target = fs::read_link(&link).map_or("no link".to_owned(), |target| target.display().to_string());
            found.faults.push(format!("{CURRENT}: is {target}, expected a link to {}", version(told)));
        } else if in_use != told {
            let (in_use, told) = (version(in_use), version(told));
            if self.in_use().unwrap_or(0) == before {
                found.notes.push(format!("{CURRENT}: {in_use} is in use; the change to {told} was interrupted"));
            } else {
                found.faults.push(format!("{CURRENT}: {in_use} is in use, but the journal tells of {told}"));
            }
        }
    }

    /// Completes or clears away what a change that was interrupted has left.
    fn settle(&mut self, by: &By) -> Result<()> {
        if self.journal.is_cut_off() {
            let journal = self.root.join(JOURNAL);
            self.step(&journal, |disk| disk.shorten(&journal, self.journal.whole()))?;
            self.journal = read(&self.root)?;
        }
        if let Some(Entry { what, number, digest, .. }) = self.journal.entries().last() {
            let (file, part) = (self.file(*number, digest), self.part(*number));
            match what {
                What::Add if part.exists() => self.step(&file, |disk| disk.rename(&part, &file))?,
                What::Prune if file.exists() => self.step(&file, |disk| disk.remove(&file))?,
                _ => {}
            }
        }
        let wrong = |error| Error::io(&self.root, "cannot read", error);
        for entry in fs::read_dir(&self.root).map_err(wrong)?.filter_map(io::Result::ok) {
            let stem = entry
                .file_name()
                .to_str()
                .and_then(|name| name.strip_suffix(PART)?.strip_suffix('.').map(str::to_owned));
            if stem.is_some_and(|stem| stem == CURRENT || is_number(&stem)) {
                self.step(&entry.path(), |disk| disk.remove(&entry.path()))?;
            }
        }
        let number = self.in_use().unwrap_or(0);
        if self.journal.history().last() != Some(&number) {
            let digest = self.digest(number).unwrap_or_default();
            self.tell(What::Found, (number, &digest), &By { note: String::new(), ..by.clone() })?;
        }
        Ok(())
    }

    fn put_in_use(&mut self, what: What, number: u32, by: &By) -> Result<Used> {
        let Some(digest) = self.digest(number) else {
            let numbers: Vec<String> = self.journal.versions().iter().map(|(number, _)| number.to_string()).collect();
            let expected =
                if numbers.is_empty() { "none is there".into() } else { format!("one of {}", numbers.join(", ")) };
            return Err(Error::Usage(format!("{}: no version {number}: expected {expected}", self.root.display())));
        };
        let before = self.in_use();
        if before == Some(number) {
            return Ok(Used::Already);
        }
        let file = self.file(number, &digest);
        let own = self.disk.digest(&file)?;
        if own != digest {
            return Err(Error::model(file, format!("is another model, of digest {own}, expected {digest}")));
        }
        let (link, part) = (self.root.join(CURRENT), self.root.join(format!("{CURRENT}.{PART}")));
        self.step(&part, |disk| disk.link(Path::new(&name(number, &digest)), &part))?;
        self.tell(what, (number, &digest), by)?;
        self.step(&link, |disk| disk.rename(&part, &link))?;
        Ok(Used::InPlaceOf(before))
    }

    /// Adds a line to the journal.
    fn tell(&mut self, what: What, version: (u32, &str), by: &By) -> Result<()> {
        let (journal, line) = (self.root.join(JOURNAL), self.journal.line(what, version, by));
        if let Err(error) = self.step(&journal, |disk| disk.append(&journal, &line)) {
            let _ = self.disk.shorten(&journal, self.journal.whole()); // half a line; where that fails, the next change does it
            return Err(error);
        }
        self.journal = read(&self.root)?;
        Ok(())
    }

    fn step(&self, path: &Path, change: impl FnOnce(&D) -> io::Result<()>) -> Result<()> {
        change(&self.disk).map_err(|error| Error::io(path, "cannot write", error))
    }

    fn digest(&self, number: u32) -> Option<String> {
        let found = self.journal.versions().into_iter().find(|(other, _)| *other == number);
        found.map(|(_, digest)| digest.to_owned())
    }

    fn file(&self, number: u32, digest: &str) -> PathBuf {
        self.root.join(name(number, digest))
    }

    /// Where a version of this number waits for its place.
    fn part(&self, number: u32) -> PathBuf {
        self.root.join(format!("{number:06}.{PART}"))
    }

    /// A number that no version has had, whether or not the journal tells of it.
    fn next(&self) -> Result<u32> {
        let highest =
            self.files()?.into_iter().map(|(number, _)| number).max().unwrap_or(0).max(self.journal.highest());
        highest.checked_add(1).ok_or_else(|| Error::Usage(format!("{}: no number is left", self.root.display())))
    }

    /// Files that have the name of a version, with their numbers, ascending.
    fn files(&self) -> Result<Vec<(u32, String)>> {
        let entries = fs::read_dir(&self.root).map_err(|error| Error::io(&self.root, "cannot read", error))?;
        let of = |entry: fs::DirEntry| {
            let name = entry.file_name().into_string().ok()?;
            let (number, _) = name.strip_suffix(MODEL)?.strip_suffix('.')?.split_once('-')?;
            is_number(number).then(|| number.parse().ok().map(|number| (number, name.clone())))?
        };
        let mut all: Vec<(u32, String)> = entries.filter_map(io::Result::ok).filter_map(of).collect();
        all.sort();
        Ok(all)
    }
}

/// `000007-3f2a9c.diad`.
fn name(number: u32, digest: &str) -> String {
    format!("{number:06}-{}.{MODEL}", digest.get(..6).unwrap_or(digest))
}

fn is_number(text: &str) -> bool {
    text.len() >= 6 && text.bytes().all(|byte| byte.is_ascii_digit())
}

/// The journal of a store, to be locked.
fn journal_of(root: &Path, options: &fs::OpenOptions) -> Result<File> {
    let journal = root.join(JOURNAL);
    if !journal.is_file() {
        let shown = root.display();
        return Err(Error::Usage(format!(
            "{shown}: has no {JOURNAL}, expected a folder of versions; diad models add {shown} M.diad begins one"
        )));
    }
    options.open(&journal).map_err(|error| Error::io(&journal, "cannot be opened", error))
}

fn read(root: &Path) -> Result<Journal> {
    read_regular(&root.join(JOURNAL), MAX_JOURNAL, "a journal").map(|bytes| Journal::parse(&bytes))
}
