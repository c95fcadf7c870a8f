//! A folder of files, kept within its limits.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use super::label;
use super::name::{Name, folder};
use super::retention::{Item, Limits, excess};
use super::video;
use crate::error::{Error, Result};

/// End of a file that is being written.
const PART: &str = "part";

/// What a store asks of the disk.
pub trait Disk {
    /// Bytes that are free for it, and all bytes.
    ///
    /// # Errors
    /// When the disk does not say.
    fn space(&self, folder: &Path) -> io::Result<[u64; 2]>;
}

/// The disk of the system.
#[derive(Debug)]
pub struct System;

impl Disk for System {
    fn space(&self, folder: &Path) -> io::Result<[u64; 2]> {
        let found = rustix::fs::statvfs(folder)?;
        Ok([found.f_bavail, found.f_blocks].map(|blocks| blocks.saturating_mul(found.f_frsize)))
    }
}

/// What became of the files of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// All are there.
    Written,
    /// The disk is nearly full: only what was said of the frame is there.
    WithoutPicture,
    /// The disk is full: nothing is there.
    Dropped,
}

/// The files of a name.
#[derive(Debug, Default)]
struct Files {
    bytes: u64,
    ends: Vec<String>,
}

/// Share of the most that may be kept that is made free beyond need, so that not every file costs a look at all others.
const AHEAD: u64 = 100;

/// A folder of ours.
#[derive(Debug)]
pub struct Store<D> {
    root: PathBuf,
    disk: D,
    limits: Limits,
    items: BTreeMap<Name, Files>,
    used: u64,
    /// Bytes of the video that is being written.
    growing: u64,
    /// Held for as long as the folder is ours: two stores would each count what they wrote themselves, and clear the other's away.
    _lock: File,
}

impl<D: Disk> Store<D> {
    /// Opens a folder, made where it is not there, and counts what is in it. Of a video that was being written when the program died the
    /// whole fragments are kept, as `….cut.…`; anything else that was is removed.
    ///
    /// # Errors
    /// When it cannot be read or written, or another store has it.
    pub fn open(root: &Path, disk: D, limits: Limits) -> Result<Self> {
        let wrong = |error| Error::io(root, "cannot write into", error);
        fs::create_dir_all(root).map_err(wrong)?;
        tempfile::Builder::new().prefix(".diad").tempfile_in(root).map_err(wrong)?;
        let lock = lock(root)?;
        let (items, root) = (BTreeMap::new(), root.to_owned());
        let mut store = Self { root, disk, limits, items, used: 0, growing: 0, _lock: lock };
        store.scan().map_err(|error| Error::io(&store.root, "cannot write into", error))?;
        Ok(store)
    }

    /// Counts what is there.
    fn scan(&mut self) -> io::Result<()> {
        for day in folders(&self.root, 10)? {
            for hour in folders(&day, 2)? {
                // What is renamed on the way must not be met again.
                for entry in fs::read_dir(&hour)?.filter_map(io::Result::ok).collect::<Vec<_>>() {
                    let file = entry.file_name();
                    let Some((name, end)) = file.to_str().and_then(Name::parse) else { continue };
                    match end.strip_suffix(PART).and_then(|end| end.strip_suffix('.')) {
                        Some(end) if name.is_video() => self.cut(&name, end),
                        Some(_) => drop(fs::remove_file(entry.path())),
                        None => self.count(name, end, entry.metadata().map_or(0, |file| file.len())),
                    }
                }
            }
        }
        Ok(())
    }

    /// Bytes of all files.
    pub fn used(&self) -> u64 {
        self.used + self.growing
    }

    /// The oldest time of a file, in milliseconds since 1970.
    pub fn oldest(&self) -> Option<u64> {
        self.items.keys().next().map(|name| name.utc_ms)
    }

    /// Changes the limits; they count from the next file on.
    pub fn limit(&mut self, limits: Limits) {
        self.limits = limits;
    }

    /// Bytes of the disk that are free.
    ///
    /// # Errors
    /// When the disk does not say.
    pub fn free(&self) -> Result<u64> {
        let space = self.disk.space(&self.root);
        space.map(|[free, _]| free).map_err(|error| Error::io(&self.root, "cannot tell the free space of", error))
    }

    /// Writes the pictures of a frame, each by the end of its name, and last what is said of it. Where there is no room even after
    /// all that is missed less has gone, the pictures are left out first.
    ///
    /// # Errors
    /// When the disk fails for another reason than being full.
    pub fn write(&mut self, name: &Name, pictures: &[(String, Vec<u8>)], json: &[u8], now_ms: u64) -> Result<Outcome> {
        let of_json = json.len() as u64;
        let of_pictures: u64 = pictures.iter().map(|(_, bytes)| bytes.len() as u64).sum();
        self.make_room(now_ms, of_json + of_pictures)?;
        let free = self.free()?;
        let fits = self.used + of_json + of_pictures <= self.limits.max_size;
        let mut outcome = if fits && free >= self.limits.min_free.saturating_add(of_json + of_pictures) {
            Outcome::Written
        } else if free >= self.limits.min_free / 4 + of_json {
            Outcome::WithoutPicture
        } else {
            return Ok(Outcome::Dropped);
        };
        let folder = self.root.join(folder(name.utc_ms));
        fs::create_dir_all(&folder).or_else(|error| full(&folder, error))?;
        for (end, bytes) in pictures.iter().filter(|_| outcome == Outcome::Written) {
            if !write(&folder, &format!("{}.{end}", name.stem()), bytes)? {
                outcome = Outcome::WithoutPicture;
                break;
            }
            self.count(name.clone(), end, bytes.len() as u64);
        }
        if !write(&folder, &format!("{}.json", name.stem()), json)? {
            return Ok(Outcome::Dropped);
        }
        self.count(name.clone(), "json", of_json);
        Ok(outcome)
    }

    /// Where somebody else writes a video, under another name until [`Store::finish`]; `None` where there is no room for it. One at a time.
    ///
    /// # Errors
    /// When its folder cannot be made, or the disk does not say how much is free.
    pub fn begin(&mut self, name: &Name, end: &str, coming: u64, now_ms: u64) -> Result<Option<PathBuf>> {
        self.growing = 0;
        if !self.has_room(now_ms, coming)? {
            return Ok(None);
        }
        let folder = self.root.join(folder(name.utc_ms));
        fs::create_dir_all(&folder).map_err(|error| Error::io(&folder, "cannot make", error))?;
        Ok(Some(folder.join(format!("{}.{end}.{PART}", name.stem()))))
    }

    /// The video that is being written has so many bytes by now. Whether it may go on, if need be after what is missed less has gone.
    ///
    /// # Errors
    /// When the disk does not say how much is free.
    pub fn grown(&mut self, bytes: u64, now_ms: u64) -> Result<bool> {
        self.growing = bytes;
        self.has_room(now_ms, 0)
    }

    /// Whether `coming` bytes find room, if need be after what is missed less has gone.
    fn has_room(&mut self, now_ms: u64, coming: u64) -> Result<bool> {
        self.make_room(now_ms, coming)?;
        Ok(self.used() + coming <= self.limits.max_size && self.free()? >= self.limits.min_free.saturating_add(coming))
    }

    /// Gives a video that was written its name, and writes last what is said of it. Where the disk has no room for that, the video stays
    /// alone.
    ///
    /// # Errors
    /// When the disk fails for another reason than being full.
    pub fn finish(&mut self, name: &Name, end: &str, json: &[u8], now_ms: u64) -> Result<Outcome> {
        self.growing = 0;
        let folder = self.root.join(folder(name.utc_ms));
        let path = folder.join(format!("{}.{end}", name.stem()));
        let renamed = fs::rename(folder.join(format!("{}.{end}.{PART}", name.stem())), &path);
        renamed.map_err(|error| Error::io(&path, "cannot write", error))?;
        self.count(name.clone(), end, fs::metadata(&path).map_or(0, |file| file.len()));
        let mut outcome = Outcome::Dropped;
        if write(&folder, &format!("{}.json", name.stem()), json)? {
            self.count(name.clone(), "json", json.len() as u64);
            outcome = Outcome::Written;
        }
        self.make_room(now_ms, 0)?;
        Ok(outcome)
    }

    /// Keeps the whole fragments of a video whose writing has ended too early, as `….cut.…`, or nothing where there are none.
    pub fn cut(&mut self, name: &Name, end: &str) {
        self.growing = 0;
        let folder = self.root.join(folder(name.utc_ms));
        let part = folder.join(format!("{}.{end}.{PART}", name.stem()));
        let cut = format!("cut.{end}");
        let kept = video::keep_whole(&part).and_then(|bytes| {
            fs::rename(&part, folder.join(format!("{}.{cut}", name.stem())))?;
            Ok(bytes)
        });
        match kept {
            Ok(bytes) => self.count(name.clone(), &cut, bytes),
            Err(_) => drop(fs::remove_file(&part)),
        }
    }

    /// Removes what is too old or too much, so that `coming` bytes find room.
    ///
    /// # Errors
    /// When the disk does not say how much is free.
    pub fn make_room(&mut self, now_ms: u64, coming: u64) -> Result<()> {
        let item = |(name, files): (&Name, &Files)| Item { kind: name.kind(), utc_ms: name.utc_ms, size: files.bytes };
        let free = self.free()?;
        // The usual case costs no walk through all of them.
        let oldest = now_ms.saturating_sub(u64::try_from(self.limits.max_age.as_millis()).unwrap_or(u64::MAX));
        let fits = self.used() + coming <= self.limits.max_size && free >= self.limits.min_free.saturating_add(coming);
        if fits && self.oldest().is_none_or(|time| time >= oldest) {
            return Ok(());
        }
        let items: Vec<Item> = self.items.iter().map(item).collect();
        // What is being written is on the disk, but no item yet: it goes off what the others may have.
        let limits = Limits { max_size: self.limits.max_size.saturating_sub(self.growing), ..self.limits };
        let gone = excess(&items, limits, now_ms, free, coming.saturating_add(self.limits.max_size / AHEAD));
        let names: Vec<Name> = self.items.keys().cloned().collect();
        for index in gone {
            self.remove(&names[index]);
        }
        Ok(())
    }

    fn count(&mut self, name: Name, end: &str, bytes: u64) {
        let files = self.items.entry(name).or_default();
        files.bytes += bytes;
        files.ends.push(end.to_owned());
        self.used += bytes;
    }

    /// Removes the files of a name, and the folders that are empty then.
    fn remove(&mut self, name: &Name) {
        let Some(files) = self.items.remove(name) else { return };
        self.used -= files.bytes;
        let folder = self.root.join(folder(name.utc_ms));
        // A label has come since they were counted.
        for end in files.ends.into_iter().chain([label::END.to_owned()]) {
            let _ = fs::remove_file(folder.join(format!("{}.{end}", name.stem()))); // one that is gone has been removed by another
        }
        let _ = fs::remove_dir(&folder); // fails where something is left in it
        folder.parent().into_iter().for_each(|day| drop(fs::remove_dir(day)));
    }
}

/// Makes a folder ours until the file is closed; a process that dies closes it.
fn lock(root: &Path) -> Result<File> {
    let folder = File::open(root).map_err(|error| Error::io(root, "cannot read", error))?;
    match rustix::fs::flock(&folder, rustix::fs::FlockOperation::NonBlockingLockExclusive) {
        Err(error) if error == rustix::io::Errno::WOULDBLOCK => {
            let reason = io::Error::other("another element or program writes there; expected a folder of its own");
            Err(Error::io(root, "cannot write into", reason))
        }
        // File systems that know no such locks are used without.
        _ => Ok(folder),
    }
}

/// Folders in `root` whose names have so many letters, all of them digits and dashes.
fn folders(root: &Path, letters: usize) -> io::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(root)?.filter_map(io::Result::ok) {
        let name = entry.file_name();
        let fits = |name: &str| name.len() == letters && name.bytes().all(|b| b.is_ascii_digit() || b == b'-');
        if name.to_str().is_some_and(fits) && entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            found.push(entry.path());
        }
    }
    Ok(found)
}

/// Writes a file under another name first; whether there was room for it.
fn write(folder: &Path, file: &str, bytes: &[u8]) -> Result<bool> {
    let (temporary, path) = (folder.join(format!("{file}.{PART}")), folder.join(file));
    let written = File::create(&temporary).and_then(|mut file| file.write_all(bytes));
    match written.and_then(|()| fs::rename(&temporary, &path)) {
        Ok(()) => Ok(true),
        Err(error) => {
            let _ = fs::remove_file(&temporary);
            full(&path, error).map(|()| false)
        }
    }
}

/// A disk that is full is no error.
fn full(path: &Path, error: io::Error) -> Result<()> {
    use io::ErrorKind::{QuotaExceeded, StorageFull};
    if matches!(error.kind(), StorageFull | QuotaExceeded) {
        Ok(())
    } else {
        Err(Error::io(path, "cannot write", error))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::detector::Verdict;

    /// A disk of so many bytes, of which the store has what it has.
    #[derive(Debug)]
    struct Small(u64);

    impl Disk for Small {
        fn space(&self, folder: &Path) -> io::Result<[u64; 2]> {
            fn size(folder: &Path) -> u64 {
                let entries = fs::read_dir(folder).into_iter().flatten().filter_map(io::Result::ok);
                let of = |entry: fs::DirEntry| match entry.file_type() {
                    Ok(kind) if kind.is_dir() => size(&entry.path()),
                    _ => entry.metadata().map_or(0, |file| file.len()),
                };
                entries.map(of).sum()
            }
            Ok([self.0.saturating_sub(size(folder)), self.0])
        }
    }

    const LIMITS: Limits = Limits { max_size: 100_000, max_age: Duration::from_secs(3600), min_free: 0 };
    const NOW: u64 = 1_795_443_303_127;

    fn name(at: u64, verdict: Verdict) -> Name {
        Name::new(NOW + 1000 * at, verdict, at, None)
    }

    fn files(root: &Path) -> Vec<String> {
        let mut all = Vec::new();
        for entry in fs::read_dir(root).unwrap().map(|entry| entry.unwrap()) {
            match entry.file_type().unwrap().is_dir() {
                true => all.extend(files(&entry.path())),
                false => all.push(entry.file_name().into_string().unwrap()),
            }
        }
        all.sort();
        all
    }

    fn picture(bytes: usize) -> Vec<(String, Vec<u8>)> {
        vec![("png".to_owned(), vec![7; bytes])]
    }

    #[test]
    fn what_is_missed_least_makes_room_and_what_is_foreign_stays() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().join("cap");
        let limits = Limits { max_size: 3500, ..LIMITS };
        let mut store = Store::open(&root, Small(1 << 30), limits).unwrap();
        for (at, verdict) in [(0, Verdict::Ng), (1, Verdict::Ok), (2, Verdict::Warn)] {
            assert_eq!(store.write(&name(at, verdict), &picture(1000), b"{}", NOW).unwrap(), Outcome::Written);
        }
        fs::create_dir(root.join("keep")).unwrap();
        fs::write(root.join("keep/20261123T141503.127Z_ng_000000000.png"), [1; 5000]).unwrap();
        fs::write(root.join("2026-11-23/14/notes.txt"), [1; 5000]).unwrap();
        let taken = Store::open(&root, Small(1 << 30), limits).unwrap_err().to_string();
        assert!(taken.contains("another element or program"), "{taken}");
        drop(store);
        let mut store = Store::open(&root, Small(1 << 30), limits).unwrap();
        assert_eq!(store.used(), 3006);
        for at in [3, 4] {
            store.write(&name(at, Verdict::Ng), &picture(1000), b"{}", NOW).unwrap();
        }
        let left = files(&root);
        let has = |text: &str| left.iter().any(|file| file.contains(text));
        assert!(!has("_ok_") && !has("_warn_") && has("_ng_000000003.png") && has("notes.txt"), "{left:?}");
        assert_eq!(left.iter().filter(|file| file.contains("_ng_000000000")).count(), 3, "in keep as well: {left:?}");
        assert!(store.used() <= limits.max_size);
        // An hour and a bit later all of them are too old.
        store.make_room(NOW + 4_000_000, 0).unwrap();
        assert_eq!((store.used(), files(&root).len()), (0, 2));
    }

    #[test]
    fn a_label_goes_with_its_picture_and_counts_after_a_start() {
        let folder = tempfile::tempdir().unwrap();
        let (root, keep) = (folder.path().join("cap"), folder.path().join("cap/keep"));
        let limits = Limits { max_size: 6000, ..LIMITS };
        let mut store = Store::open(&root, Small(1 << 30), limits).unwrap();
        fs::create_dir(&keep).unwrap();
        for at in [0, 1] {
            store.write(&name(at, Verdict::Ng), &picture(1000), b"{}", NOW).unwrap();
        }
        let hour = root.join("2026-11-23/14");
        let first = hour.join(format!("{}.png", name(0, Verdict::Ng).stem()));
        for path in [&first, &hour.join(format!("{}.png", name(1, Verdict::Ng).stem()))] {
            label::label(path, label::Label::Good, "anna", "").unwrap();
            for end in ["png", "json", "label.json"] {
                let file = path.with_extension(end);
                fs::hard_link(&file, keep.join(file.file_name().unwrap())).unwrap();
            }
        }
        let labels = |folder: &Path| files(folder).iter().filter(|file| file.ends_with("label.json")).count();
        let without = store.used();
        drop(store); // a folder has one store
        let mut store = Store::open(&root, Small(1 << 30), limits).unwrap();
        assert!(store.used() > without, "labels are files as well");
        assert_eq!((labels(&hour), labels(&keep)), (2, 2));
        store.limit(Limits { max_size: 1500, ..limits });
        store.make_room(NOW, 0).unwrap();
        assert_eq!((labels(&hour), first.exists()), (1, false), "one that was counted goes");
        store.limit(limits);
        store.write(&name(2, Verdict::Ng), &picture(1000), b"{}", NOW).unwrap();
        label::label(&hour.join(format!("{}.png", name(2, Verdict::Ng).stem())), label::Label::Bad, "anna", "")
            .unwrap();
        store.limit(Limits { max_size: 100, ..limits });
        store.make_room(NOW, 0).unwrap();
        assert!(!hour.exists(), "one that has come since goes as well: nothing of ours is left");
        assert_eq!((labels(&keep), files(&root).len()), (2, 6), "what is kept is kept");
    }

    #[test]
    fn a_full_disk_costs_pictures_first_and_comes_back() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().join("cap");
        let ballast = root.join("ballast");
        let limits = Limits { min_free: 4000, ..LIMITS };
        let mut store = Store::open(&root, Small(10_000), limits).unwrap();
        let mut at = 0;
        let mut write = |store: &mut Store<Small>| {
            at += 1;
            store.write(&name(at, Verdict::Ng), &picture(1000), b"{}", NOW).unwrap()
        };
        assert_eq!(write(&mut store), Outcome::Written);
        fs::write(&ballast, [0; 6000]).unwrap(); // by somebody else
        assert_eq!(write(&mut store), Outcome::WithoutPicture);
        fs::write(&ballast, [0; 9500]).unwrap();
        assert_eq!(write(&mut store), Outcome::Dropped);
        fs::remove_file(&ballast).unwrap();
        assert_eq!(write(&mut store), Outcome::Written);
        assert!(store.free().unwrap() >= limits.min_free);
    }

    #[test]
    fn what_was_being_written_is_no_picture() {
        let folder = tempfile::tempdir().unwrap();
        let hour = folder.path().join("2026-11-23/14");
        fs::create_dir_all(&hour).unwrap();
        fs::write(hour.join("20261123T141503.127Z_ng_000000001.png.part"), [0; 100]).unwrap();
        fs::write(hour.join("other.part"), [0; 100]).unwrap();
        let store = Store::open(folder.path(), System, LIMITS).unwrap();
        assert_eq!((store.used(), files(folder.path())), (0, vec!["other.part".to_owned()]));
        assert!(store.free().unwrap() > 0);
    }

    /// A video of one fragment and a torn one, and how much of it is whole.
    fn video() -> (Vec<u8>, u64) {
        let part =
            |size: u32, kind: &str, bytes: usize| [&size.to_be_bytes(), kind.as_bytes(), &vec![7; bytes]].concat();
        let whole = [part(50, "moov", 42), part(20, "moof", 12), part(500, "mdat", 492)].concat();
        let length = whole.len() as u64;
        ([whole, part(20, "moof", 12), part(500, "mdat", 100)].concat(), length)
    }

    #[test]
    fn a_video_has_its_name_when_it_is_whole_and_is_cut_when_it_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let mut store = Store::open(folder.path(), System, LIMITS).unwrap();
        let clip = |at: u64| Name::clip(NOW + 1000 * at, Verdict::Ng, at, None);
        let (bytes, whole) = video();
        let begin = |store: &mut Store<System>, name: &Name, bytes: &[u8]| {
            let path = store.begin(name, "mp4", 0, NOW).unwrap().unwrap();
            fs::write(&path, bytes).unwrap();
            path
        };
        begin(&mut store, &clip(0), &bytes);
        assert_eq!(store.finish(&clip(0), "mp4", b"{}", NOW).unwrap(), Outcome::Written);
        begin(&mut store, &clip(1), &bytes);
        store.cut(&clip(1), "mp4");
        begin(&mut store, &clip(2), &bytes[..100]);
        store.cut(&clip(2), "mp4");
        assert_eq!(store.used(), bytes.len() as u64 + 2 + whole);
        // And the same after a crash.
        for (at, bytes) in [(3, &bytes[..]), (4, &bytes[..100])] {
            begin(&mut store, &clip(at), bytes);
        }
        drop(store);
        let store = Store::open(folder.path(), System, LIMITS).unwrap();
        assert_eq!(store.used(), bytes.len() as u64 + 2 + 2 * whole);
        let names: Vec<String> = files(folder.path()).iter().map(|file| file[9..].to_owned()).collect();
        let expected = ["141503.127Z_clip-ng_000000000.json", "141503.127Z_clip-ng_000000000.mp4"].into_iter();
        let expected =
            expected.chain(["141504.127Z_clip-ng_000000001.cut.mp4", "141506.127Z_clip-ng_000000003.cut.mp4"]);
        assert_eq!(names, expected.collect::<Vec<_>>());
    }

    #[test]
    fn a_video_makes_room_as_it_grows_until_there_is_none() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().join("cap");
        let limits = Limits { max_size: 3500, ..LIMITS };
        let mut store = Store::open(&root, Small(1 << 30), limits).unwrap();
        for (at, verdict) in [(0, Verdict::Ng), (1, Verdict::Ok)] {
            store.write(&name(at, verdict), &picture(1000), b"{}", NOW).unwrap();
        }
        let clip = Name::clip(NOW, Verdict::Ng, 9, None);
        assert_eq!(store.begin(&clip, "mp4", 5000, NOW).unwrap(), None, "more than may be there at all");
        let path = store.begin(&clip, "mp4", 100, NOW).unwrap().unwrap();
        assert!(store.grown(1400, NOW).unwrap() && store.grown(2000, NOW).unwrap());
        assert!(!files(&root).iter().any(|file| file.contains("_ok_")), "the sample has gone");
        assert!(store.grown(3000, NOW).unwrap() && files(&root).is_empty(), "and so has the picture");
        assert!(!store.grown(3600, NOW).unwrap());
        fs::write(path, [7; 3000]).unwrap();
        assert_eq!(store.finish(&clip, "mp4", b"{}", NOW).unwrap(), Outcome::Written);
        assert_eq!((store.used(), files(&root).len()), (3002, 2));
        store.write(&name(10, Verdict::Ng), &picture(1000), b"{}", NOW).unwrap();
        assert!(files(&root).iter().all(|file| file.contains("_ng_000000010")), "a clip goes before what was rejected");
    }

    #[test]
    fn a_folder_that_cannot_be_written_is_an_error_that_names_it() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("file");
        fs::write(&file, "").unwrap();
        let error = Store::open(&file.join("cap"), System, LIMITS).unwrap_err().to_string();
        assert!(error.contains("file/cap") && error.contains("cannot write"), "{error}");
    }
}
