//! The thread that writes: it may wait for the disk, the stream does not.

use std::convert::Infallible;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded};
use diad::archive::{Limits, Name, Outcome, Store, System};
use diad::error::{Error, Result};
use diad::text::{now_ms, utc as utc_text};
use serde::Serialize;

use super::Container;
use super::clip::{Clip, Failure};
use crate::disk::{State, Subject, TIDY, Teller};
use crate::queue::lock;
use crate::result::millis_of;

/// Frames that may wait, however small they are.
const WAITING: usize = 16_384;
/// How often is looked at the room that is left for what is being written.
const LOOK: Duration = Duration::from_secs(1);

/// A clip that begins.
pub(super) struct Start {
    /// Tells it from others.
    pub(super) id: u64,
    /// Of everything, whatever happened.
    pub(super) recording: bool,
    pub(super) caps: gst::Caps,
    pub(super) container: Container,
    /// What it is of; its time is when that was, not when the clip begins.
    pub(super) subject: Subject,
    /// ns of video before that.
    pub(super) pre: u64,
    /// ns from the time that the subject states to when what it is of began.
    pub(super) shift: i64,
    /// It goes on where the one before has ended.
    pub(super) continues: bool,
    pub(super) buffers: Vec<gst::Buffer>,
}

enum Job {
    Begin(Box<Start>),
    Push(gst::Buffer),
    End,
    /// Nothing waits any more: dropped when its turn comes.
    Reached(#[expect(dead_code, reason = "its end is the message")] Sender<Infallible>),
}

/// What was kept and what was not.
#[derive(Clone, Debug, Default)]
pub(super) struct Counts {
    /// Files that are finished.
    pub(super) clips: u64,
    /// Clips that were not begun, or broken off: too much waits for the disk; no room on it; for another reason.
    pub(super) queue: u64,
    pub(super) disk: u64,
    pub(super) failed: u64,
    pub(super) bytes: u64,
    pub(super) free: u64,
    /// Milliseconds since 1970; 0: none.
    pub(super) oldest: u64,
}

impl Counts {
    /// As the bus and the property have them.
    pub(super) fn to_structure(&self, name: &str) -> gst::Structure {
        let Self { clips, queue, disk, failed, bytes, free, oldest } = *self;
        gst::Structure::builder(name)
            .field("clips", clips)
            .field("dropped-queue", queue)
            .field("dropped-disk", disk)
            .field("failed", failed)
            .field("bytes", bytes)
            .field("free", free)
            .field("oldest", oldest)
            .build()
    }
}

struct Shared {
    counts: Mutex<Counts>,
    limits: Mutex<Limits>,
    /// Bytes that wait.
    waiting: AtomicU64,
    /// The last clip that was given up.
    given_up: AtomicU64,
}

/// The thread, and the way to it.
pub(super) struct Writer {
    jobs: Sender<Job>,
    shared: Arc<Shared>,
    /// Closed when the thread has ended.
    ended: Receiver<Infallible>,
}

impl Writer {
    /// Opens the folder and starts.
    ///
    /// # Errors
    /// When the folder cannot be written, or there is no thread.
    pub(super) fn start(folder: &Path, limits: Limits, teller: Teller) -> Result<Self> {
        let store = Store::open(folder, System, limits)?;
        let counts = Counts {
            bytes: store.used(),
            free: store.free().unwrap_or_default(),
            oldest: store.oldest().unwrap_or_default(),
            ..Counts::default()
        };
        let shared = Arc::new(Shared {
            counts: Mutex::new(counts),
            limits: Mutex::new(limits),
            waiting: AtomicU64::new(0),
            given_up: AtomicU64::new(u64::MAX), // none
        });
        let ((jobs, waiting), (alive, ended)) = (bounded::<Job>(WAITING), bounded(0));
        let mut work = Work { store, shared: shared.clone(), teller, open: None, looked: Instant::now(), behind: 0 };
        let run = move || {
            work.tidy();
            loop {
                match waiting.recv_timeout(TIDY) {
                    Ok(job) => work.take(job),
                    Err(RecvTimeoutError::Timeout) => work.tidy(),
                    Err(RecvTimeoutError::Disconnected) => break,
                }
            }
            work.end();
            drop((work, alive));
        };
        let thread = std::thread::Builder::new().name("diad-clip".into()).spawn(run);
        thread.map_err(|error| Error::io(folder, "no thread to write into", error))?;
        Ok(Self { jobs, shared, ended })
    }

    pub(super) fn counts(&self) -> Counts {
        lock(&self.shared.counts).clone()
    }

    pub(super) fn limit(&self, limits: Limits) {
        *lock(&self.shared.limits) = limits;
    }

    /// Whether this clip was given up.
    pub(super) fn gave_up(&self, id: u64) -> bool {
        self.shared.given_up.load(Ordering::Relaxed) == id
    }

    /// Begins a clip if no more than `most` bytes wait then. Does not wait.
    pub(super) fn begin(&self, start: Start, most: u64) -> bool {
        let bytes = start.buffers.iter().map(|buffer| buffer.size() as u64).sum();
        self.submit(Job::Begin(Box::new(start)), bytes, most)
    }

    /// Adds a frame likewise.
    pub(super) fn push(&self, buffer: gst::Buffer, most: u64) -> bool {
        let bytes = buffer.size() as u64;
        self.submit(Job::Push(buffer), bytes, most)
    }

    /// Ends the open clip.
    pub(super) fn end(&self) {
        self.submit(Job::End, 0, u64::MAX);
    }

    fn submit(&self, job: Job, bytes: u64, most: u64) -> bool {
        // What ends a clip finds room always.
        let full = self.jobs.len() + 16 > WAITING && bytes > 0;
        let fits = !full && self.shared.waiting.load(Ordering::Relaxed) + bytes <= most;
        if fits {
            self.shared.waiting.fetch_add(bytes, Ordering::Relaxed);
        }
        fits && self.jobs.try_send(job).is_ok()
    }

    /// A clip was not begun, or broken off, because too much waits.
    pub(super) fn count_behind(&self) {
        lock(&self.shared.counts).queue += 1;
    }

    /// For waiting until what was submitted is on the disk.
    pub(super) fn mark(&self) -> Mark {
        let (reached, waits) = bounded(0);
        self.submit(Job::Reached(reached), 0, u64::MAX);
        Mark(waits)
    }

    /// Writes what waits, and ends; a disk that does not answer is left to itself. Whether it answered.
    pub(super) fn finish(self, patience: Duration) -> bool {
        drop(self.jobs);
        self.ended.recv_timeout(patience) == Err(RecvTimeoutError::Disconnected)
    }
}

/// A place in what the thread has to do.
pub(super) struct Mark(Receiver<Infallible>);

impl Mark {
    /// Waits until the thread is there; whether it is.
    pub(super) fn wait(&self, patience: Duration) -> bool {
        self.0.recv_timeout(patience) == Err(RecvTimeoutError::Disconnected)
    }
}

/// What stands beside a clip, beyond what stands beside all files.
#[derive(Serialize)]
struct More {
    files: Files,
    /// When its first picture was taken.
    begins: String,
    /// Seconds of it before what it is of, and altogether.
    pre: f64,
    duration: f64,
    frames: u64,
    /// It goes on where the one before has ended.
    continues: bool,
}

#[derive(Serialize)]
struct Files {
    video: String,
}

/// A clip that is being written.
struct Open {
    clip: Clip,
    name: Name,
    start: Start,
    /// From 0 on; when the first frame begins, and the last ends.
    begins: u64,
    ends: u64,
    frames: u64,
    bytes: u64,
}

struct Work {
    store: Store<System>,
    shared: Arc<Shared>,
    teller: Teller,
    open: Option<Open>,
    looked: Instant,
    /// Clips for which too much waited, as they were last counted.
    behind: u64,
}

impl Work {
    fn take(&mut self, job: Job) {
        match job {
            Job::Begin(start) => {
                self.end();
                let (id, bytes) = (start.id, start.buffers.iter().map(|buffer| buffer.size() as u64).sum());
                self.store.limit(*lock(&self.shared.limits));
                let begun = self.begin(*start, bytes);
                self.shared.waiting.fetch_sub(bytes, Ordering::Relaxed);
                match begun {
                    Ok(true) => {}
                    Ok(false) => self.give_up(id, &full()),
                    Err(failure) => self.give_up(id, &failure),
                }
            }
            Job::Push(buffer) => {
                self.push(&buffer);
                self.shared.waiting.fetch_sub(buffer.size() as u64, Ordering::Relaxed);
            }
            Job::End => self.end(),
            Job::Reached(_) => {}
        }
        if self.looked.elapsed() > LOOK {
            self.tidy();
        }
    }

    /// Whether there is room for it.
    fn begin(&mut self, mut start: Start, bytes: u64) -> std::result::Result<bool, Failure> {
        let other = |error: Error| Failure { full: false, reason: error.to_string() };
        let Subject { utc, sequence, result, .. } = &start.subject;
        let utc_ms = millis_of(utc).unwrap_or_else(now_ms).saturating_add_signed(start.shift / 1_000_000);
        let name = if start.recording {
            Name::recording(utc_ms, *sequence)
        } else {
            Name::clip(utc_ms, result.verdict, *sequence, result.part_id.as_deref())
        };
        start.subject.utc = utc_text(utc_ms);
        let Some(path) = self.store.begin(&name, start.container.extension(), bytes, now_ms()).map_err(other)? else {
            return Ok(false);
        };
        let buffers = std::mem::take(&mut start.buffers);
        let begins = buffers.first().and_then(|buffer| buffer.pts()).map_or(0, gst::ClockTime::nseconds);
        let clip = Clip::open(&path, &start.caps, start.container, begins);
        let clip = clip.inspect_err(|_| self.store.cut(&name, start.container.extension()))?;
        self.open = Some(Open { clip, name, start, begins, ends: begins, frames: 0, bytes: 0 });
        buffers.iter().for_each(|buffer| self.push(buffer));
        Ok(true)
    }

    fn push(&mut self, buffer: &gst::Buffer) {
        let Some(open) = &mut self.open else { return };
        if buffer.pts().is_some_and(|pts| pts.nseconds() < open.begins) {
            return; // shown before the first key frame, and made from what was before it
        }
        if let Err(failure) = open.clip.push(buffer) {
            return self.break_off(&failure);
        }
        let time = buffer.pts().unwrap_or_default() + buffer.duration().unwrap_or_default();
        open.ends = open.ends.max(time.nseconds());
        open.frames += 1;
        open.bytes += buffer.size() as u64;
    }

    /// Finishes what is open.
    fn end(&mut self) {
        let Some(open) = self.open.take() else { return };
        let Open { clip, name, start, begins, ends, frames, .. } = open;
        let end = start.container.extension();
        if let Err(failure) = clip.close() {
            self.store.cut(&name, end);
            return self.give_up(start.id, &failure);
        }
        let seconds = |ns: u64| (ns as f64 / 1e6).round() / 1e3;
        let more = More {
            files: Files { video: format!("{}.{end}", name.stem()) },
            begins: utc_text(name.utc_ms.saturating_sub(start.pre / 1_000_000)),
            pre: seconds(start.pre),
            duration: seconds(ends - begins),
            frames,
            continues: start.continues,
        };
        let kind = if start.recording { "video" } else { "clip" };
        let json = start.subject.sidecar(kind, &name, more);
        let finished = json.and_then(|json| self.store.finish(&name, end, &json, now_ms()));
        match finished {
            Ok(outcome) => {
                let mut counts = lock(&self.shared.counts);
                counts.clips += 1;
                let behind = counts.queue > std::mem::replace(&mut self.behind, counts.queue);
                drop(counts);
                let (state, reason) = match outcome {
                    Outcome::Written if behind => (State::Behind, "the disk is slower than the line".into()),
                    Outcome::Written => (State::Ok, String::new()),
                    _ => (State::Full, full().reason),
                };
                self.tell(state, &reason);
            }
            Err(error) => self.give_up(start.id, &Failure { full: false, reason: error.to_string() }),
        }
    }

    /// Ends what is open where it is; what of it is whole is kept.
    fn break_off(&mut self, failure: &Failure) {
        let Some(open) = self.open.take() else { return };
        drop(open.clip);
        self.store.cut(&open.name, open.start.container.extension());
        self.give_up(open.start.id, failure);
    }

    fn give_up(&mut self, id: u64, failure: &Failure) {
        self.shared.given_up.store(id, Ordering::Relaxed);
        let mut counts = lock(&self.shared.counts);
        *(if failure.full { &mut counts.disk } else { &mut counts.failed }) += 1;
        drop(counts);
        self.tell(if failure.full { State::Full } else { State::Failed }, &failure.reason);
    }

    /// Removes what is too old or too much; ends what is open where there is no room for more of it.
    fn tidy(&mut self) {
        self.looked = Instant::now();
        self.store.limit(*lock(&self.shared.limits));
        let bytes = self.open.as_ref().map_or(0, |open| open.bytes);
        match (self.store.grown(bytes, now_ms()), self.open.as_ref().map(|open| open.start.id)) {
            (Ok(false), Some(id)) => {
                self.end();
                self.give_up(id, &full());
            }
            (Ok(_), _) => self.count(),
            (Err(error), _) => self.tell(State::Failed, &error.to_string()),
        }
    }

    fn count(&self) {
        let mut counts = lock(&self.shared.counts);
        (counts.bytes, counts.free) = (self.store.used(), self.store.free().unwrap_or_default());
        counts.oldest = self.store.oldest().unwrap_or_default();
    }

    fn tell(&mut self, state: State, reason: &str) {
        self.count();
        let structure = lock(&self.shared.counts).to_structure("diad-clip");
        self.teller.tell(state, reason, structure);
    }
}

fn full() -> Failure {
    Failure { full: true, reason: "no room on the disk, or under max-size".into() }
}
