//! A store after every step at which a change may be cut off, and what a journal tells of it.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::io::{self, Write as _};

use proptest::prelude::*;

use super::*;
use crate::bundle::sha256_hex;

/// The system's disk with models that are only text, on which so many steps are done before the program dies. The step at which it
/// does is done by half where it can be.
struct Mortal {
    steps: Cell<usize>,
}

impl Mortal {
    fn new(steps: usize) -> Self {
        Self { steps: Cell::new(steps) }
    }

    fn step(&self, whole: impl FnOnce() -> io::Result<()>, half: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
        match self.steps.get() {
            0 => return Err(io::Error::other("dead")),
            1 => half()?,
            _ => whole()?,
        }
        self.steps.set(self.steps.get() - 1);
        if self.steps.get() == 0 { Err(io::Error::other("dying")) } else { Ok(()) }
    }
}

impl Disk for Mortal {
    fn digest(&self, model: &Path) -> Result<String> {
        match fs::read_to_string(model) {
            Ok(text) if text.starts_with("model") && text.ends_with('.') => Ok(sha256_hex(text.as_bytes())),
            Ok(_) => Err(Error::model(model, "is damaged")),
            Err(error) => Err(Error::io(model, "cannot read", error)),
        }
    }

    fn copy(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.step(|| System.copy(from, to), || fs::write(to, "mod"))
    }

    fn append(&self, file: &Path, bytes: &[u8]) -> io::Result<()> {
        let half = || fs::File::options().append(true).open(file)?.write_all(&bytes[..bytes.len() / 2]);
        self.step(|| System.append(file, bytes), half)
    }

    fn shorten(&self, file: &Path, length: u64) -> io::Result<()> {
        self.step(|| System.shorten(file, length), || Ok(()))
    }

    fn link(&self, target: &Path, at: &Path) -> io::Result<()> {
        self.step(|| System.link(target, at), || Ok(()))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.step(|| System.rename(from, to), || Ok(()))
    }

    fn remove(&self, file: &Path) -> io::Result<()> {
        self.step(|| System.remove(file), || Ok(()))
    }
}

const FOREVER: usize = usize::MAX;

/// A store in a folder of its own, and models to put into it.
struct Shelf(tempfile::TempDir);

impl Shelf {
    fn new() -> Self {
        let shelf = Self(tempfile::tempdir().unwrap());
        fs::create_dir(shelf.root()).unwrap();
        fs::write(shelf.root().join(JOURNAL), "").unwrap();
        shelf
    }

    fn root(&self) -> PathBuf {
        self.0.path().join("bottle")
    }

    fn model(&self, which: u8) -> PathBuf {
        let path = self.0.path().join(format!("{which}.diad"));
        fs::write(&path, format!("model {which}.")).unwrap();
        path
    }

    fn change(&self, steps: usize) -> Result<Store<Mortal>> {
        Store::change_on(&self.root(), Mortal::new(steps), &By { who: "anna".into(), note: "why".into() })
    }

    fn look(&self) -> Store<Mortal> {
        Store::open_on(&self.root(), Mortal::new(0)).unwrap()
    }

    /// The text of the model in use.
    fn in_use(&self) -> Option<String> {
        resolve(&self.root()).ok().map(|file| fs::read_to_string(file).unwrap())
    }

    fn journal(&self) -> String {
        fs::read_to_string(self.root().join(JOURNAL)).unwrap()
    }
}

fn by() -> By {
    By { who: "anna".into(), note: String::new() }
}

#[derive(Clone, Copy, Debug)]
enum Act {
    Add(u8),
    Use(usize),
    Rollback,
    Prune(usize),
}

fn act() -> impl Strategy<Value = Act> {
    prop_oneof![
        3 => (0u8..6).prop_map(Act::Add),
        3 => (0usize..6).prop_map(Act::Use),
        2 => Just(Act::Rollback),
        1 => (1usize..3).prop_map(Act::Prune),
    ]
}

/// What a test holds a store against.
#[derive(Default)]
struct Expected {
    /// Digests by number, of all versions that ever were.
    ever: BTreeMap<u32, String>,
    /// Versions in use one after the other, without those that were rolled back.
    used: Vec<u32>,
}

impl Expected {
    /// Compares after an act that may have been cut off.
    fn check(&mut self, shelf: &Shelf, act: Act, before: Option<String>) {
        // Whoever only looks: no fault, and the old model or the new one, whole.
        let store = shelf.look();
        let found = store.verify().unwrap();
        assert!(found.faults.is_empty(), "{act:?}: {found:?}\n{}", shelf.journal());
        let now = shelf.in_use();
        assert!(now.as_ref().is_none_or(|text| text.starts_with("model ") && text.ends_with('.')), "{now:?}");
        let changes = matches!(act, Act::Use(_) | Act::Rollback);
        assert!(changes || now == before, "{act:?} has changed what is in use");
        drop(store);

        // The next change puts right what is left, and does not change what is in use.
        drop(shelf.change(FOREVER).unwrap());
        let store = shelf.look();
        let found = store.verify().unwrap();
        assert!(found.faults.is_empty() && found.notes.is_empty(), "{act:?}: {found:?}\n{}", shelf.journal());
        assert_eq!(shelf.in_use(), now);
        let parts = fs::read_dir(shelf.root())
            .unwrap()
            .filter(|entry| entry.as_ref().unwrap().file_name().to_string_lossy().ends_with("part"));
        assert_eq!(parts.count(), 0);

        for version in store.versions() {
            let known = self.ever.entry(version.number).or_insert_with(|| version.digest.clone());
            assert_eq!(*known, version.digest, "a number stands for one model for ever");
        }
        match (store.in_use(), act) {
            (now, _) if now == self.used.last().copied() => {}
            (Some(now), Act::Use(_)) => self.used.push(now),
            (now, _) => {
                self.used.pop();
                assert_eq!(now, self.used.last().copied(), "{act:?}");
            }
        }
        let there: Vec<u32> = store.versions().iter().map(|version| version.number).collect();
        self.used.retain(|number| there.contains(number));
        self.used.dedup();
        let expected = self.used.iter().rev().nth(1).copied();
        assert_eq!(store.before(), expected, "{act:?}: {:?}\n{}", self.used, shelf.journal());
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    /// Whatever is done, and wherever it is cut off: nothing is lost, nothing is half done, and the journal tells the truth.
    #[test]
    fn a_store_is_right_wherever_a_change_is_cut_off(acts in prop::collection::vec((act(), prop_oneof![1 => Just(FOREVER), 2 => 1usize..8]), 1..14)) {
        let shelf = Shelf::new();
        let mut expected = Expected::default();
        for (act, steps) in acts {
            let before = shelf.in_use();
            let model = match act { Act::Add(which) => Some(shelf.model(which)), _ => None };
            let highest = expected.ever.keys().last().copied().unwrap_or(0);
            if let Ok(mut store) = shelf.change(steps) {
                let versions = store.versions();
                match act {
                    Act::Add(_) => match store.add(&model.unwrap(), &by()) {
                        Ok(Added::As(number)) => prop_assert!(number > highest),
                        Ok(Added::Already(number)) => prop_assert!(versions.iter().any(|version| version.number == number)),
                        Err(_) => prop_assert!(steps < FOREVER),
                    },
                    Act::Use(at) if !versions.is_empty() => {
                        let number = versions[at % versions.len()].number;
                        let used = store.use_version(number, &by());
                        prop_assert!(used.is_err() || store.in_use() == Some(number));
                        prop_assert!(used.is_ok() || steps < FOREVER);
                    }
                    Act::Use(_) => prop_assert!(store.use_version(1, &by()).is_err()),
                    Act::Rollback => {
                        let to = store.before();
                        let rolled = store.rollback(&by());
                        prop_assert!(rolled.is_err() || (to.is_some() && store.in_use() == to));
                        prop_assert!(rolled.is_ok() || to.is_none() || steps < FOREVER);
                    }
                    Act::Prune(keep) => {
                        let stay = [store.in_use(), store.before()];
                        if store.prune(keep, &by()).is_ok() {
                            let there: Vec<u32> = store.versions().iter().map(|version| version.number).collect();
                            prop_assert!(stay.iter().flatten().all(|number| there.contains(number)));
                            prop_assert!(there.len() <= keep + 2 && there.len() >= keep.min(versions.len()));
                        }
                    }
                }
            }
            expected.check(&shelf, act, before);
        }
    }

    /// A letter that is changed anywhere but in the last line is found, and so is a line that is gone.
    #[test]
    fn a_journal_that_was_changed_names_the_line(at in 0usize..2000, line in 0usize..3, letter in "[a-z0-9]") {
        let shelf = Shelf::new();
        let mut store = shelf.change(FOREVER).unwrap();
        for which in 0..4 {
            store.add(&shelf.model(which), &by()).unwrap();
        }
        drop(store);
        let text = shelf.journal();
        prop_assert!(Journal::parse(text.as_bytes()).faults().is_empty());
        let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
        let at = at % lines[line].len();
        let changed = lines[line].get(at..=at) != Some(letter.as_str());
        lines[line].replace_range(at..=at, &letter);
        let told = Journal::parse((lines.join("\n") + "\n").as_bytes()).faults().join("\n");
        prop_assert_eq!(!changed, told.is_empty());
        prop_assert!(!changed || told.contains(&format!("line {}", line + 1)), "{}", told);
        lines.remove(line);
        let told = Journal::parse((lines.join("\n") + "\n").as_bytes()).faults().join("\n");
        prop_assert!(told.contains(&format!("line {}: prev", line + 1)), "{}", told);
    }

    #[test]
    fn no_bytes_make_a_journal_stumble(bytes: Vec<u8>) {
        let journal = Journal::parse(&bytes);
        prop_assert_eq!(journal.whole() as usize + usize::from(journal.is_cut_off()) <= bytes.len(), true);
    }
}

#[test]
fn a_rollback_undoes_one_use_after_the_other() {
    let shelf = Shelf::new();
    let mut store = shelf.change(FOREVER).unwrap();
    let missing = store.rollback(&by()).unwrap_err();
    assert!(missing.exit_code() == 2 && missing.to_string().contains("no version was in use before"), "{missing}");
    for which in 1..=3 {
        assert_eq!(store.add(&shelf.model(which), &by()).unwrap(), Added::As(u32::from(which)));
        let before = which.checked_sub(1).filter(|n| *n > 0).map(u32::from);
        assert_eq!(store.use_version(u32::from(which), &by()).unwrap(), Used::InPlaceOf(before));
    }
    assert_eq!(store.use_version(3, &by()).unwrap(), Used::Already);
    assert_eq!(store.add(&shelf.model(2), &by()).unwrap(), Added::Already(2));
    assert_eq!(store.rollback(&by()).unwrap(), (2, Some(3)));
    assert_eq!(store.rollback(&by()).unwrap(), (1, Some(2)));
    assert!(store.rollback(&by()).is_err());
    assert_eq!(shelf.in_use().as_deref(), Some("model 1."));
    // What was rolled back may be used again, and goes in the end; its number does not come back.
    store.use_version(3, &by()).unwrap();
    store.use_version(2, &by()).unwrap();
    assert_eq!(store.prune(1, &by()).unwrap(), [1]);
    assert_eq!(store.add(&shelf.model(1), &by()).unwrap(), Added::As(4));
    assert_eq!(store.prune(1, &by()).unwrap(), [0u32; 0]);
}

#[test]
fn a_model_that_is_damaged_is_neither_added_nor_used() {
    let shelf = Shelf::new();
    let mut store = shelf.change(FOREVER).unwrap();
    let broken = shelf.0.path().join("broken.diad");
    fs::write(&broken, "model with no en").unwrap();
    let told = store.add(&broken, &by()).unwrap_err().to_string();
    assert!(told.contains("broken.diad: is damaged"), "{told}");
    assert_eq!(fs::read_dir(shelf.root()).unwrap().count(), 1, "the journal alone");
    for which in 1..=2 {
        store.add(&shelf.model(which), &by()).unwrap();
    }
    store.use_version(1, &by()).unwrap();
    let second = store.versions()[1].file.clone();
    for (text, expected) in [("model 2, half", "is damaged"), ("model 3.", "is another model")] {
        fs::write(&second, text).unwrap();
        let told = store.use_version(2, &by()).unwrap_err().to_string();
        assert!(told.contains("000002-") && told.contains(expected), "{told}");
        assert_eq!(shelf.in_use().as_deref(), Some("model 1."));
        let faults = store.verify().unwrap().faults;
        assert!(faults.len() == 1 && faults[0].contains("000002-") && faults[0].contains(expected), "{faults:?}");
    }
}

#[test]
fn what_somebody_has_done_by_hand_is_told_and_stays() {
    let shelf = Shelf::new();
    let mut store = shelf.change(FOREVER).unwrap();
    for which in 1..=3 {
        store.add(&shelf.model(which), &by()).unwrap();
        store.use_version(u32::from(which), &by()).unwrap();
    }
    let (first, link) = (name_of(&store, 1), shelf.root().join(CURRENT));
    drop(store);
    let set = |target: &str| {
        fs::remove_file(&link).unwrap();
        std::os::unix::fs::symlink(target, &link).unwrap();
    };
    set(&first);
    fs::write(shelf.root().join("000009-abcdef.diad"), "model 9.").unwrap();
    let faults = shelf.look().verify().unwrap().faults.join("\n");
    assert!(faults.contains("current: version 1 is in use, but the journal tells of version 3"), "{faults}");
    assert!(faults.contains("000009-abcdef.diad: the journal does not tell of it"), "{faults}");
    let mut store = shelf.change(FOREVER).unwrap();
    assert_eq!((store.in_use(), store.before()), (Some(1), Some(3)), "the journal is told, and the way back is there");
    assert_eq!(store.add(&shelf.model(4), &by()).unwrap(), Added::As(10), "its number is taken");
    drop(store);
    set("../1.diad");
    let faults = shelf.look().verify().unwrap().faults.join("\n");
    assert!(faults.contains("current: is ../1.diad, expected a link to version 1"), "{faults}");

    // A journal that cannot be read is not written to.
    let text = shelf.journal().replacen("{", "", 1);
    fs::write(shelf.root().join(JOURNAL), &text).unwrap();
    let told = shelf.change(FOREVER).err().unwrap().to_string();
    assert!(told.contains("line 1: cannot be read") && told.contains("nothing is changed"), "{told}");
    assert_eq!(shelf.journal(), text);
}

fn name_of(store: &Store<Mortal>, number: u32) -> String {
    let version = store.versions().into_iter().find(|version| version.number == number).unwrap();
    version.file.file_name().unwrap().to_str().unwrap().to_owned()
}

#[test]
fn a_folder_stands_for_the_version_in_use() {
    let shelf = Shelf::new();
    let told = resolve(&shelf.root()).unwrap_err().to_string();
    assert!(told.contains("bottle: is a folder") && told.contains("diad models use"), "{told}");
    let file = shelf.model(1);
    assert_eq!(resolve(&file).unwrap(), file);
    assert_eq!(
        resolve(Path::new("not/there.diad")).unwrap(),
        Path::new("not/there.diad"),
        "others say what is wrong with it"
    );
    let mut store = shelf.change(FOREVER).unwrap();
    store.add(&file, &by()).unwrap();
    store.use_version(1, &by()).unwrap();
    let version = store.versions().remove(0);
    assert_eq!(resolve(&shelf.root()).unwrap(), version.file);
    assert_eq!((version.added.who.as_str(), version.in_use, version.is_before), ("anna", true, false));
    fs::remove_file(&version.file).unwrap();
    let told = resolve(&shelf.root()).unwrap_err().to_string();
    assert!(told.contains("000001-") && told.contains("is not there"), "{told}");
}

#[test]
fn a_folder_with_other_things_in_it_becomes_no_store() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("thesis.txt"), "x").unwrap();
    let told = Store::create(folder.path(), &by()).unwrap_err();
    assert!(told.exit_code() == 2 && told.to_string().contains("no journal.jsonl"), "{told}");
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    let told = Store::open(folder.path()).unwrap_err();
    assert!(told.exit_code() == 2 && told.to_string().contains("diad models add"), "{told}");
    let new = folder.path().join("models/bottle");
    assert!(Store::create(&new, &by()).unwrap().versions().is_empty());
    assert!(Store::open(&new).unwrap().verify().unwrap().faults.is_empty());
}
