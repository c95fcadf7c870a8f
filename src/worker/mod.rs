//! The worker: one thread that owns a model and inspects the frames of every stream that uses it.
//!
//! ```text
//! streams -- submit(job) --> bounded channel --> Batcher --> model --> one answer per ticket
//! ```
//!
//! Batches form while the model is busy; one that is not full leaves at the timeout. Every job that is accepted is answered
//! exactly once: with a detection, with the model's error, with its panic, or, when the worker goes away first, with
//! [`Failure::Stopped`]. A panic is caught per batch and the model opened again, once. No lock is held across the model's
//! work. Where the time of a batch goes on a GPU is in [`gpu_budget`].

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, SendTimeoutError, Sender, bounded};

use crate::bundle::Card;
use crate::detector::{CellScores, Detection, Embeddings, Request};
use crate::error::{Error, Result};
use crate::frame::Prepared;

mod batcher;
mod model;
mod share;
mod stats;
mod thread;

use thread::{ModelThread, open_and_warm_up, panic_message};

pub use batcher::{Batcher, Next};
pub use model::open;
pub use share::{Shared, SharedKey};
pub use stats::{Durations, Stats, Summary};
pub use thread::WARM_UP_BATCHES;

#[doc = include_str!("gpu_budget.md")]
pub mod gpu_budget {}

/// Jobs that may wait in the channel; more than any sensible number of streams has under way.
const CHANNEL: usize = 1024;

/// A model as the worker sees it.
pub trait Detect: Send {
    /// Its card.
    fn card(&self) -> &Card;

    /// Inspects a batch: one answer per job, in order, that does not depend on the other jobs.
    fn inspect(&mut self, jobs: &[&Job]) -> Vec<Result<Detection>>;

    /// Where the device works by itself, the first of three phases that stand in for [`Detect::inspect`]: sends the batch to the
    /// device and does not wait. `None` where it does not, then the batch is inspected at once.
    ///
    /// # Errors
    /// When the device fails.
    fn embed(&mut self, _jobs: &[&Job]) -> Result<Option<Embeddings>> {
        Ok(None)
    }

    /// The second phase: waits until the device is done with the batch.
    ///
    /// # Errors
    /// When the device fails.
    fn measure(&mut self, _jobs: &[&Job], _embeddings: Embeddings) -> Result<CellScores> {
        Err(Error::Internal("worker: this model has no phases".into()))
    }

    /// The third phase, on the host: the answers, as those of [`Detect::inspect`].
    fn conclude(&mut self, jobs: &[&Job], _scores: CellScores) -> Vec<Result<Detection>> {
        self.inspect(jobs)
    }

    /// Jobs that are as much work as a batch of `size` frames; none for a model that needs no warm-up.
    ///
    /// # Errors
    /// When such jobs cannot be made.
    fn warm_up(&self, _size: usize) -> Result<Vec<Job>> {
        Ok(Vec::new())
    }
}

/// A frame to be inspected, and how.
#[derive(Clone, Debug)]
pub struct Job {
    /// The model's inputs, one for each shape that the frame is tried in.
    pub inputs: Vec<Prepared>,
    /// Class, steps, thresholds, mask.
    pub request: Arc<Request>,
}

/// How a worker works.
#[derive(Clone, Debug)]
pub struct Options {
    /// Name of the thread.
    pub name: String,
    /// Frames per batch, at most; at least 1.
    pub batch_size: usize,
    /// How long a batch that is not full waits after its first frame. 0: it leaves as soon as the model is free.
    pub batch_timeout: Duration,
}

/// Why a job has no detection.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    /// The model said no.
    #[error("{0}")]
    Failed(String),
    /// The model panicked.
    #[error("the model panicked: {0}")]
    Panicked(String),
    /// The device has no room for a batch of this size.
    #[error("the device is out of memory: {0}")]
    Memory(String),
    /// The device is gone, in the driver's words: no frame will be inspected any more.
    #[error("the device is lost: {0}")]
    Lost(String),
    /// The worker went away.
    #[error("the worker was stopped")]
    Stopped,
}

/// Why a job was not accepted.
#[derive(Debug)]
pub enum Refused {
    /// Too many jobs wait; the job comes back as it was, without a copy.
    Full(Box<Job>),
    /// The worker is gone.
    Stopped,
}

/// The answer to a job.
#[derive(Clone, Debug)]
pub struct Answer {
    /// What the model found, or why it found nothing.
    pub outcome: Result<Detection, Failure>,
    /// From submission to the start of its batch.
    pub queue: Duration,
    /// The model's work on the batch.
    pub infer: Duration,
    /// Frames in the batch; 0 if it never was in one.
    pub batch: usize,
}

/// The promise of an answer. A ticket that is dropped is a job that is skipped, unless it has begun.
#[derive(Debug)]
pub struct Ticket {
    answer: Receiver<Answer>,
    _wanted: Arc<()>,
}

impl Ticket {
    /// The channel that the one answer comes through, for `select!`.
    pub fn receiver(&self) -> &Receiver<Answer> {
        &self.answer
    }

    /// Waits for the answer.
    pub fn wait(self) -> Answer {
        self.answer.recv().unwrap_or_else(|_| Answer::stopped())
    }
}

impl Answer {
    /// What a job gets whose worker is gone.
    pub fn stopped() -> Self {
        Self { outcome: Err(Failure::Stopped), queue: Duration::ZERO, infer: Duration::ZERO, batch: 0 }
    }
}

/// A job on its way to the model.
struct Entry {
    stream: u64,
    job: Job,
    reply: Reply,
    wanted: Weak<()>,
    submitted: Instant,
}

/// The way back of a job's answer. Dropped without one, it answers [`Failure::Stopped`].
struct Reply {
    answer: Option<Sender<Answer>>,
    state: Arc<State>,
}

impl Reply {
    fn send(&mut self, answer: Answer) {
        if let Some(sender) = self.answer.take() {
            self.state.pending.fetch_sub(1, Ordering::AcqRel);
            let _ = sender.try_send(answer); // nobody may want it any more
        }
    }
}

impl Drop for Reply {
    fn drop(&mut self) {
        self.send(Answer::stopped());
    }
}

/// What the thread and the others share.
#[derive(Default)]
struct State {
    pending: AtomicUsize,
    /// The thread is gone: whoever hands in a job now takes it out again.
    ended: AtomicBool,
    stats: Mutex<Stats>,
    batches: Mutex<Durations>,
}

/// The thread's end of the channel. A receiver that goes away leaves in the channel what is there, and nobody would answer it
/// while the worker is held: it is taken out here, or by who hands it in after that.
struct Inbox {
    entries: Receiver<Entry>,
    state: Arc<State>,
}

impl Drop for Inbox {
    fn drop(&mut self) {
        self.state.ended.store(true, Ordering::SeqCst);
        self.entries.try_iter().for_each(drop);
    }
}

/// Takes a lock. What is behind those of a worker is whole after every statement: a panic elsewhere does not make it wrong.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A model on its thread. Dropping it ends the thread after the batch at hand.
pub struct Worker {
    entries: Option<Sender<Entry>>,
    /// The thread's end once more, for what came after the thread had gone.
    late: Receiver<Entry>,
    state: Arc<State>,
    card: Arc<Card>,
    digest: String,
    options: Options,
    thread: Option<JoinHandle<()>>,
}

/// Opens the model, and opens it again after a panic.
pub type Open = Box<dyn Fn() -> Result<Box<dyn Detect>> + Send>;

impl Worker {
    /// Starts the thread, opens the model there and warms it up.
    ///
    /// # Errors
    /// Those of `open` and of the warm-up; when no thread can be had.
    pub fn start(open: Open, options: Options) -> Result<Self> {
        let (entries, late) = bounded(CHANNEL);
        let (report, ready) = bounded(1);
        let state = Arc::<State>::default();
        let inbox = Inbox { entries: late.clone(), state: state.clone() };
        let (shared, size, timeout) = (state.clone(), options.batch_size, options.batch_timeout);
        let body = move || {
            let opened = catch_unwind(AssertUnwindSafe(|| open_and_warm_up(&open, size, &shared)));
            let panicked = |panic: Box<dyn Any + Send>| {
                Err(Error::Internal(format!("opening panicked: {}", panic_message(&*panic))))
            };
            match opened.unwrap_or_else(panicked) {
                Ok(model) => {
                    let _ = report.send(Ok(model.card().clone()));
                    drop(report);
                    ModelThread::new(open, model, shared)
                        .serve(&inbox.entries, Batcher::new(size, nanoseconds(timeout)));
                }
                Err(error) => {
                    let _ = report.send(Err(error));
                }
            }
        };
        let thread = std::thread::Builder::new().name(options.name.clone()).spawn(body);
        let thread = thread.map_err(|error| Error::threads("runs the model", error))?;
        let started = ready.recv().unwrap_or_else(|_| Err(Error::Internal("the worker ended while it started".into())));
        match started {
            Ok(card) => {
                let digest = card.digest();
                let (entries, card) = (Some(entries), Arc::new(card));
                Ok(Self { entries, late, state, card, digest, options, thread: Some(thread) })
            }
            Err(error) => {
                let _ = thread.join(); // it has nothing left to do
                Err(error)
            }
        }
    }

    /// The model's card.
    pub fn card(&self) -> &Arc<Card> {
        &self.card
    }

    /// Digest of the model.
    pub fn digest(&self) -> &str {
        &self.digest
    }

    /// How it works.
    pub fn options(&self) -> &Options {
        &self.options
    }

    /// Hands in a job of `stream`, waiting up to `patience` for room. Streams are served in turn.
    ///
    /// # Errors
    /// When there is still no room, or the worker is gone.
    pub fn submit(&self, stream: u64, job: Job, patience: Duration) -> Result<Ticket, Refused> {
        let Some(entries) = &self.entries else { return Err(Refused::Stopped) };
        if self.state.ended.load(Ordering::SeqCst) {
            return Err(Refused::Stopped);
        }
        let (sender, receiver) = bounded(1);
        let wanted = Arc::new(());
        let entry = Entry {
            stream,
            job,
            reply: Reply { answer: Some(sender), state: self.state.clone() },
            wanted: Arc::downgrade(&wanted),
            submitted: Instant::now(),
        };
        self.state.pending.fetch_add(1, Ordering::AcqRel);
        match entries.send_timeout(entry, patience) {
            Ok(()) => {
                if self.state.ended.load(Ordering::SeqCst) {
                    self.late.try_iter().for_each(drop); // it came after the thread had cleared the channel
                }
                Ok(Ticket { answer: receiver, _wanted: wanted })
            }
            Err(SendTimeoutError::Timeout(entry)) => Err(Refused::Full(Box::new(entry.job))),
            Err(SendTimeoutError::Disconnected(_)) => Err(Refused::Stopped),
        }
    }

    /// Jobs that are accepted and not answered.
    pub fn pending(&self) -> usize {
        self.state.pending.load(Ordering::Acquire)
    }

    /// What it has done so far.
    pub fn stats(&self) -> Stats {
        lock(&self.state.stats).clone()
    }

    /// How long the model works on a batch, warm-up included. Cheap to ask for: it is computed once per batch.
    pub fn batch_time(&self) -> Summary {
        lock(&self.state.batches).summary()
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.entries = None;
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!(worker = self.options.name, "the worker's thread panicked outside of the model");
        }
    }
}

fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests;
