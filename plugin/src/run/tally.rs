//! What has come and gone on a line: counts, numbers of frames, and the results as they leave.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{Read as _, Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use crossbeam_channel::{Sender, TrySendError, bounded};
use diad::detector::Verdict;
use gst::prelude::*;
use gstdiad::result::DiadResult;

use super::out::Outlets;
use super::say;

/// Results that may wait for the disk.
const WAITING: usize = 4096;

/// Counts since the process began. Shared by the threads that frames pass.
pub(crate) struct Tally {
    line: String,
    frames: AtomicU64,
    verdicts: [AtomicU64; Verdict::ALL.len()],
    /// Results that found no room on their way to the file.
    dropped: AtomicU64,
    /// Frames that are missing in the video.
    not_filmed: AtomicU64,
    times: Mutex<Times>,
    /// What the last frames said.
    seen: Mutex<Seen>,
    /// Frames that nobody looked at, by reason.
    reasons: Mutex<BTreeMap<String, u64>>,
    /// The filter of the pipeline that runs, and what keeps files in it.
    filter: Mutex<gst::glib::WeakRef<gst::Element>>,
    kept: Mutex<[gst::glib::WeakRef<gst::Element>; 3]>,
    numbers: Mutex<Numbers>,
    outlets: Arc<Outlets>,
    writer: Mutex<Option<Writer>>,
}

/// What the last frames said.
#[derive(Clone, Debug, Default)]
pub(crate) struct Seen {
    /// When the last one left, in seconds since 1970.
    pub(crate) left: Option<f64>,
    /// The threshold of the last that was inspected.
    pub(crate) threshold: Option<f32>,
    /// The digest of its model.
    pub(crate) model: Option<String>,
}

/// Reasons that are told apart; what comes beyond is `other`.
const REASONS: usize = 16;

/// When a frame last came in and went out.
#[derive(Clone, Copy, Default)]
pub(crate) struct Times {
    pub(crate) came: Option<Instant>,
    pub(crate) left: Option<Instant>,
}

/// The counts at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    /// Frames that came in.
    pub(crate) frames: u64,
    /// Frames that went out, by verdict in the order of [`Verdict::ALL`].
    pub(crate) verdicts: [u64; Verdict::ALL.len()],
    /// Results that are missing in the file of results.
    pub(crate) dropped: u64,
}

impl std::fmt::Display for Counts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} frames", self.frames)?;
        for (verdict, count) in Verdict::ALL.iter().zip(self.verdicts) {
            if count > 0 {
                write!(f, ", {count} {verdict}")?;
            }
        }
        if self.dropped > 0 {
            write!(f, "; {} results could not be written", self.dropped)?;
        }
        Ok(())
    }
}

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Tally {
    /// Of the line `line`, with its numbers kept in `state_dir`; results go to a file, and to `outlets`.
    ///
    /// # Errors
    /// When the folder or the file of results cannot be written.
    pub(crate) fn open(
        line: &str,
        state_dir: &Path,
        results: Option<&Path>,
        outlets: Arc<Outlets>,
    ) -> Result<Self, String> {
        let numbers = Numbers::open(state_dir.join("sequence").join(line))?;
        let writer = Writer::open(line, results, outlets.clone())?;
        Ok(Self {
            line: line.to_owned(),
            frames: AtomicU64::new(0),
            verdicts: Default::default(),
            dropped: AtomicU64::new(0),
            not_filmed: AtomicU64::new(0),
            times: Mutex::default(),
            seen: Mutex::default(),
            reasons: Mutex::default(),
            filter: Mutex::default(),
            kept: Mutex::default(),
            numbers: Mutex::new(numbers),
            outlets,
            writer: Mutex::new(Some(writer)),
        })
    }

    /// A frame has come.
    pub(crate) fn came(&self) {
        self.frames.fetch_add(1, Ordering::Relaxed);
        lock(&self.times).came = Some(Instant::now());
    }

    /// A frame leaves with `result`, which is given its line and its number.
    pub(crate) fn left(&self, result: &mut DiadResult) {
        result.line = Some(self.line.clone());
        result.sequence = Some(lock(&self.numbers).next());
        if let Some(at) = Verdict::ALL.iter().position(|verdict| *verdict == result.verdict) {
            self.verdicts[at].fetch_add(1, Ordering::Relaxed);
        }
        lock(&self.times).left = Some(Instant::now());
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64());
        let worst = result.worst();
        let mut seen = lock(&self.seen);
        seen.left = Some(now);
        if let Some((found, finding)) = worst.and_then(|worst| Some((worst, worst.finding.as_ref()?))) {
            seen.threshold = Some(finding.threshold);
            seen.model = Some(found.model.clone());
        }
        drop(seen);
        if result.verdict == Verdict::Uninspected {
            let reason = worst.and_then(|worst| worst.reason.as_deref()).unwrap_or("no-result");
            let mut reasons = lock(&self.reasons);
            let known = reasons.contains_key(reason) || reasons.len() < REASONS;
            *reasons.entry(if known { reason } else { "other" }.to_owned()).or_default() += 1;
        }
        self.outlets.take_now(result);
        if let Some(writer) = &*lock(&self.writer)
            && writer.is_wanted()
            && !writer.write(result)
        {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// A frame is missing in the video.
    pub(crate) fn not_filmed(&self) {
        self.not_filmed.fetch_add(1, Ordering::Relaxed);
    }

    /// Frames that are missing in the video.
    pub(crate) fn missing_in_video(&self) -> u64 {
        self.not_filmed.load(Ordering::Relaxed)
    }

    pub(crate) fn seen(&self) -> Seen {
        lock(&self.seen).clone()
    }

    pub(crate) fn reasons(&self) -> BTreeMap<String, u64> {
        lock(&self.reasons).clone()
    }

    /// This is the filter from now on, and these keep files: the archive, clips and recordings.
    pub(crate) fn set_elements(&self, filter: &gst::Element, kept: [Option<gst::Element>; 3]) {
        *lock(&self.filter) = filter.downgrade();
        *lock(&self.kept) = kept.map(|kept| kept.as_ref().map(gst::Element::downgrade).unwrap_or_default());
    }

    /// The frames that come show this part.
    pub(crate) fn set_part(&self, part: &str) {
        if let Some(filter) = lock(&self.filter).upgrade() {
            filter.set_property("part-id", part);
        }
    }

    /// The statistics of what keeps files, of those that are there.
    pub(crate) fn kept(&self) -> [Option<gst::Structure>; 3] {
        let kept = lock(&self.kept).each_ref().map(gst::glib::WeakRef::upgrade);
        kept.map(|kept| kept?.property::<Option<gst::Structure>>("stats"))
    }

    pub(crate) fn times(&self) -> Times {
        *lock(&self.times)
    }

    /// Frames of an earlier pipeline say nothing of the next.
    pub(crate) fn forget_times(&self) {
        *lock(&self.times) = Times::default();
    }

    pub(crate) fn counts(&self) -> Counts {
        Counts {
            frames: self.frames.load(Ordering::Relaxed),
            verdicts: self.verdicts.each_ref().map(|count| count.load(Ordering::Relaxed)),
            dropped: self.dropped.load(Ordering::Relaxed),
        }
    }

    /// Opens the file of results anew, as after it was renamed.
    pub(crate) fn reopen(&self) {
        if let Some(writer) = &*lock(&self.writer) {
            writer.reopen.store(true, Ordering::Relaxed);
        }
    }

    /// Writes what waits, and where the numbers go on.
    pub(crate) fn close(&self) {
        lock(&self.writer).take().into_iter().for_each(Writer::finish);
        if let Err(reason) = lock(&self.numbers).keep() {
            say(&self.line, &reason);
        }
    }
}

/// Numbers that are never given twice. The file holds the first that is surely free: some are reserved ahead, so that a crash costs
/// numbers and not their meaning.
struct Numbers {
    path: PathBuf,
    next: u64,
    reserved: u64,
}

/// Numbers reserved at a time.
const RESERVED: u64 = 1000;

impl Numbers {
    fn open(path: PathBuf) -> Result<Self, String> {
        let next = match fs::read_to_string(&path) {
            Ok(text) => text.trim().parse().map_err(|_| {
                format!("{}: holds {:?}, expected the number of the next frame", path.display(), text.trim())
            })?,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => 1,
            Err(error) => return Err(format!("{}: cannot be read: {error}", path.display())),
        };
        let mut numbers = Self { path, next, reserved: next };
        numbers.reserve()?;
        Ok(numbers)
    }

    fn next(&mut self) -> u64 {
        if self.next == self.reserved {
            // The numbers go on even if the disk is full: better a number twice after a crash than no result.
            let _ = self.reserve();
        }
        self.next += 1;
        self.next - 1
    }

    fn reserve(&mut self) -> Result<(), String> {
        self.reserved = self.next + RESERVED;
        self.write(self.reserved)
    }

    /// Gives back what was reserved.
    fn keep(&mut self) -> Result<(), String> {
        self.reserved = self.next;
        self.write(self.next)
    }

    fn write(&self, number: u64) -> Result<(), String> {
        let folder = self.path.parent().unwrap_or(Path::new("."));
        let write = || -> std::io::Result<()> {
            fs::create_dir_all(folder)?;
            let temporary = self.path.with_extension("new");
            fs::write(&temporary, number.to_string())?;
            fs::rename(temporary, &self.path)
        };
        write().map_err(|error| format!("{}: cannot be written: {error}", self.path.display()))
    }
}

/// Writes results on a thread of its own: the line does not wait for the disk.
struct Writer {
    queue: Sender<DiadResult>,
    outlets: Arc<Outlets>,
    /// Whether there is a file.
    file: bool,
    reopen: Arc<AtomicBool>,
    thread: JoinHandle<()>,
}

impl Writer {
    fn open(line: &str, path: Option<&Path>, outlets: Arc<Outlets>) -> Result<Self, String> {
        let mut file = path.map(|path| ResultsFile::open(line, path)).transpose()?;
        let (queue, waiting) = bounded::<DiadResult>(WAITING);
        let reopen = Arc::new(AtomicBool::new(false));
        let (again, receivers) = (reopen.clone(), outlets.clone());
        let has_file = file.is_some();
        let work = move || {
            for result in waiting {
                let Ok(mut json) = serde_json::to_vec(&result) else { continue };
                // What stands in the file was given to all others: a crash in between leaves the file short, not them.
                receivers.take(&result, &json);
                if let Some(file) = &mut file {
                    if again.swap(false, Ordering::Relaxed) {
                        file.reopen();
                    }
                    json.push(b'\n');
                    file.write(&json);
                }
            }
        };
        let thread = std::thread::Builder::new().name("diad-results".into()).spawn(work);
        let thread = thread.map_err(|error| format!("no thread to write results: {error}"))?;
        Ok(Self { queue, outlets, file: has_file, reopen, thread })
    }

    /// Whether anybody wants results.
    fn is_wanted(&self) -> bool {
        self.file || !self.outlets.is_empty()
    }

    /// Whether there was room for it.
    fn write(&self, result: &DiadResult) -> bool {
        !matches!(self.queue.try_send(result.clone()), Err(TrySendError::Full(_) | TrySendError::Disconnected(_)))
    }

    fn finish(self) {
        drop(self.queue);
        let _ = self.thread.join();
    }
}

/// The file that gets a line of JSON for each frame.
struct ResultsFile {
    line: String,
    path: PathBuf,
    file: File,
    /// Whether somebody was told that it cannot be written.
    told: bool,
}

impl ResultsFile {
    fn open(line: &str, path: &Path) -> Result<Self, String> {
        Ok(Self { line: line.to_owned(), path: path.to_owned(), file: Self::append(path)?, told: false })
    }

    fn append(path: &Path) -> Result<File, String> {
        let open = || -> std::io::Result<File> {
            let mut file = OpenOptions::new().create(true).read(true).append(true).open(path)?;
            // A line that a crash has cut short is not to be mixed with the next.
            let mut last = [b'\n'];
            if file.seek(SeekFrom::End(-1)).is_ok() {
                file.read_exact(&mut last)?;
            }
            if last != *b"\n" {
                file.write_all(b"\n")?;
            }
            Ok(file)
        };
        open().map_err(|error| format!("{}: cannot be written: {error}", path.display()))
    }

    /// As after it was renamed.
    fn reopen(&mut self) {
        match Self::append(&self.path) {
            Ok(new) => self.file = new,
            Err(reason) => say(&self.line, &reason),
        }
    }

    fn write(&mut self, text: &[u8]) {
        match self.file.write_all(text) {
            Ok(()) => self.told = false,
            Err(error) if !std::mem::replace(&mut self.told, true) => {
                say(&self.line, &format!("{}: results cannot be written: {error}", self.path.display()));
            }
            Err(_) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_go_on_after_a_stop_and_skip_after_a_crash() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("sequence/cap");
        let mut first = Numbers::open(path.clone()).unwrap();
        assert_eq!((0..3).map(|_| first.next()).collect::<Vec<_>>(), [1, 2, 3]);
        first.keep().unwrap();
        let mut second = Numbers::open(path.clone()).unwrap();
        assert_eq!(second.next(), 4); // and crashes
        let mut third = Numbers::open(path.clone()).unwrap();
        let number = third.next();
        assert!(number > 4 && number <= 4 + RESERVED, "{number}");
        let many: Vec<u64> = (0..2 * RESERVED).map(|_| third.next()).collect();
        assert!(many.windows(2).all(|pair| pair[1] == pair[0] + 1), "no gaps");
        assert!(Numbers::open(path.clone()).unwrap().next() > many[many.len() - 1]);
        fs::write(&path, "seven").unwrap();
        assert!(Numbers::open(path).err().unwrap().contains("\"seven\""));
    }
}
