//! What has come and gone on a line: counts, numbers of frames, and the results as they leave.

use std::collections::BTreeMap;
use std::fs::{self, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use crossbeam_channel::{Sender, TrySendError, bounded};
use diad::detector::Verdict;
use gstdiad::result::DiadResult;

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
    times: Mutex<Times>,
    /// What the last frames said.
    seen: Mutex<Seen>,
    /// Frames that nobody looked at, by reason.
    reasons: Mutex<BTreeMap<String, u64>>,
    /// What keeps files in the pipeline that runs.
    kept: Mutex<[gst::glib::WeakRef<gst::Element>; 3]>,
    numbers: Mutex<Numbers>,
    writer: Mutex<Option<Writer>>,
}

/// What the last frames said.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Seen {
    /// When the last one left, in seconds since 1970.
    pub(crate) left: Option<f64>,
    /// The threshold of the last that was inspected.
    pub(crate) threshold: Option<f32>,
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
    /// Of the line `line`, with its numbers kept in `state_dir`.
    ///
    /// # Errors
    /// When the folder or the file of results cannot be written.
    pub(crate) fn open(line: &str, state_dir: &Path, results: Option<&Path>) -> Result<Self, String> {
        let numbers = Numbers::open(state_dir.join("sequence").join(line))?;
        let writer = results.map(|path| Writer::open(line, path)).transpose()?;
        Ok(Self {
            line: line.to_owned(),
            frames: AtomicU64::new(0),
            verdicts: Default::default(),
            dropped: AtomicU64::new(0),
            times: Mutex::default(),
            seen: Mutex::default(),
            reasons: Mutex::default(),
            kept: Mutex::default(),
            numbers: Mutex::new(numbers),
            writer: Mutex::new(writer),
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
        if let Some(finding) = worst.and_then(|worst| worst.finding.as_ref()) {
            seen.threshold = Some(finding.threshold);
        }
        drop(seen);
        if result.verdict == Verdict::Uninspected {
            let reason = worst.and_then(|worst| worst.reason.as_deref()).unwrap_or("no-result");
            let mut reasons = lock(&self.reasons);
            let known = reasons.contains_key(reason) || reasons.len() < REASONS;
            *reasons.entry(if known { reason } else { "other" }.to_owned()).or_default() += 1;
        }
        if let Some(writer) = &*lock(&self.writer)
            && !writer.write(result)
        {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }

    pub(crate) fn seen(&self) -> Seen {
        *lock(&self.seen)
    }

    pub(crate) fn reasons(&self) -> BTreeMap<String, u64> {
        lock(&self.reasons).clone()
    }

    /// These keep files from now on: the archive, clips and recordings.
    pub(crate) fn set_kept(&self, kept: [Option<gst::Element>; 3]) {
        *lock(&self.kept) = kept.map(|kept| kept.as_ref().map(gst::prelude::ObjectExt::downgrade).unwrap_or_default());
    }

    /// Their statistics, of those that are there.
    pub(crate) fn kept(&self) -> [Option<gst::Structure>; 3] {
        let kept = lock(&self.kept).each_ref().map(gst::glib::WeakRef::upgrade);
        kept.map(|kept| gst::prelude::ObjectExt::property::<Option<gst::Structure>>(&kept?, "stats"))
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
    queue: Sender<Vec<u8>>,
    reopen: Arc<AtomicBool>,
    thread: JoinHandle<()>,
}

impl Writer {
    fn open(line: &str, path: &Path) -> Result<Self, String> {
        let open = |path: &Path| {
            let file = OpenOptions::new().create(true).append(true).open(path);
            file.map_err(|error| format!("{}: cannot be written: {error}", path.display()))
        };
        let (mut file, path, line) = (open(path)?, path.to_owned(), line.to_owned());
        let (queue, waiting) = bounded::<Vec<u8>>(WAITING);
        let reopen = Arc::new(AtomicBool::new(false));
        let again = reopen.clone();
        let work = move || {
            let mut told = false;
            for text in waiting {
                if again.swap(false, Ordering::Relaxed) {
                    match open(&path) {
                        Ok(new) => file = new,
                        Err(reason) => say(&line, &reason),
                    }
                }
                match file.write_all(&text) {
                    Ok(()) => told = false,
                    Err(error) if !std::mem::replace(&mut told, true) => {
                        say(&line, &format!("{}: results cannot be written: {error}", path.display()));
                    }
                    Err(_) => {}
                }
            }
        };
        let thread = std::thread::Builder::new().name("diad-results".into()).spawn(work);
        let thread = thread.map_err(|error| format!("no thread to write results: {error}"))?;
        Ok(Self { queue, reopen, thread })
    }

    /// Whether there was room for it.
    fn write(&self, result: &DiadResult) -> bool {
        let Ok(mut text) = serde_json::to_vec(result) else { return false };
        text.push(b'\n');
        !matches!(self.queue.try_send(text), Err(TrySendError::Full(_) | TrySendError::Disconnected(_)))
    }

    fn finish(self) {
        drop(self.queue);
        let _ = self.thread.join();
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
