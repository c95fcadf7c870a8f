//! The worker: one thread that owns a model, and everybody else who wants frames inspected.
//!
//! ```text
//! streams -- submit(job) --> bounded channel --> Batcher --> model --> one answer per ticket
//! ```
//!
//! Batches form while the model is busy; one that is not full leaves at the timeout. Every job that is accepted is answered
//! exactly once: with a detection, with the model's error, with its panic, or, when the worker goes away first, with
//! [`Failure::Stopped`]. A panic is caught per batch and the model opened again, once. No lock is held across the model's
//! work.
//!
//! # Where the time goes on a GPU
//!
//! Nobody has measured this: it is counted from the code, for EfficientNet-Lite0 and the Mahalanobis distance, for batches
//! of 1 and 16. s is `configs/default.toml` (256 pixels, 16x16 cells, width 128, 4 blocks, one evaluation), m is
//! `configs/accurate-gpu.toml` (512 pixels, 32x32 cells of 256 channels, width 256, 8 blocks, three evaluations), l is m with
//! width 384 and 12 blocks. The floors are those of an H100 SXM by its data sheet: 67 TFLOP/s in f32 without tensor cores, 990
//! in f16 with them, 3.35 TB/s of memory, 50 GB/s from the host; a launch takes about 2.5 us of the GPU at least, and about 5 us
//! of the thread that does it.
//!
//! | per batch | s, 1 | s, 16 | m, 1 | m, 16 | l, 1 | l, 16 |
//! | --- | --- | --- | --- | --- | --- | --- |
//! | frames to the device, MB | 0.2 | 3.1 | 0.8 | 12.6 | 0.8 | 12.6 |
//! | backbone, GFLOP | 0.64 | 10.2 | 2.5 | 40.7 | 2.5 | 40.7 |
//! | one evaluation, GFLOP | 0.37 | 5.9 | 12.3 | 197 | 38.3 | 613 |
//! | backbone, MB read and written (f32) | 131 | 2060 | 516 | 8220 | 516 | 8220 |
//! | one evaluation, MB (f32) | 26 | 370 | 580 | 8950 | 1110 | 16770 |
//! | statistics of one class, MB | 17 | 17 | 268 | 268 | 268 | 268 |
//! | launches: backbone and features | 95 | 99 | 95 | 99 | 95 | 99 |
//! | launches: one evaluation | 43 | 54 | 81 | 102 | 119 | 150 |
//! | launches: all | 147 | 162 | 349 | 416 | 463 | 560 |
//! | floor by arithmetic, f32 / f16, ms | 0.02 / 0.00 | 0.24 / 0.02 | 0.6 / 0.04 | 9.4 / 0.6 | 1.8 / 0.1 | 28 / 1.9 |
//! | floor by memory, f32, ms | 0.05 | 0.7 | 0.8 | 10.5 | 1.2 | 17.6 |
//! | floor by the link, ms | 0.00 | 0.06 | 0.02 | 0.25 | 0.02 | 0.25 |
//! | floor by launches, GPU / thread, ms | 0.4 / 0.7 | 0.4 / 0.8 | 0.9 / 1.7 | 1.0 / 2.1 | 1.2 / 2.3 | 1.4 / 2.8 |
//!
//! An evaluation of the denoiser launches 7 kernels per block (6 for a batch of 1, whose modulation needs no copy), 15 per
//! attention (14), 5 around them, and one per layer to repeat the condition for a batch. A block of the backbone is 5 (3
//! without expansion, 1 more with a residual), its stem 15, bringing the taps to the grid 20 (16), normalising them 5. The
//! attention's weights are written and read four times and are nearly half of the bytes of an evaluation of size m. Not in the
//! table: candle uploads the strides of every operation on a tensor that is not contiguous, an allocation and a copy of a few
//! bytes each on the thread's side.
//!
//! So single frames are bound by launches, whatever the size, and batches of 16 of size s just as well; sizes m and l are
//! bound by memory and arithmetic alike in f32, and `precision=f16` takes from both. A CUDA graph would be worth most for
//! single frames: candle keeps its uploads for a capture, but whether its allocations can be captured only a GPU will tell.
//! What the design does about the rest: frames travel as bytes at the model's size (resized where they enter, as on the CPU:
//! one code for eleven formats, the same bits on every device, and a 5-megapixel frame would be 75 times the bytes) through
//! page-locked buffers that are used again; bias, activation and gate are one kernel each with their neighbours; conditions,
//! noises and statistics stay on the device; the driver's pool keeps what is freed; no event is recorded around a tensor. The
//! next batch is sent as soon as the device is done with the last: its backbone runs while the host smooths, scores and
//! answers. Between the backbone and the evaluations the device waits once for the host, which finds the classes that are
//! near. Copies run in the stream of the kernels, not beside them: a second stream would bring those events back, which cost
//! more than the 4 us per frame that it could hide.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, SendTimeoutError, Sender, bounded};

use crate::bundle::Card;
use crate::detector::{Ask, Detection, Measured, Seen};
use crate::error::{Error, Result};
use crate::frame::Prepared;

mod batcher;
mod model;
mod share;
mod stats;
mod thread;

use thread::{Bench, first, words};

pub use batcher::{Batcher, Next};
pub use model::open;
pub use share::{Shared, SharedKey};
pub use stats::{Durations, Stats, Summary};

/// Jobs that may wait in the channel; more than any sensible number of streams has under way.
const CHANNEL: usize = 1024;

/// A model as the worker sees it.
pub trait Detect: Send {
    /// Its card.
    fn card(&self) -> &Card;

    /// Sends a batch on its way where the device works by itself, so that it computes while the host makes the answers of the
    /// batch before; nothing where it does not.
    ///
    /// # Errors
    /// When the device fails.
    fn begin(&mut self, _jobs: &[&Job]) -> Result<Option<Seen>> {
        Ok(None)
    }

    /// Waits for all that the device has to say of a batch; `seen` is what [`Detect::begin`] gave for these jobs.
    ///
    /// # Errors
    /// When the device fails.
    fn measure(&mut self, jobs: &[&Job], seen: Seen) -> Result<Measured>;

    /// Inspects a batch: one answer per job, in order. An answer does not depend on the other jobs. `measured` is what
    /// [`Detect::measure`] gave for these jobs, if they were begun with.
    fn detect(&mut self, jobs: &[&Job], measured: Option<Measured>) -> Vec<Result<Detection>>;

    /// A batch that is as much work as a real one.
    fn warm_up(&self, size: usize) -> Result<Vec<Job>>;
}

/// A frame to be inspected, and how.
#[derive(Clone, Debug)]
pub struct Job {
    /// The model's input.
    pub prepared: Prepared,
    /// Class, steps, thresholds, mask.
    pub ask: Arc<Ask>,
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
    /// Too many jobs wait; the job comes back.
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

/// A job on its way, with the address of its answer. Dropped without one, it answers [`Failure::Stopped`].
struct Entry {
    stream: u64,
    job: Job,
    answer: Option<Sender<Answer>>,
    wanted: Weak<()>,
    submitted: Instant,
    state: Arc<State>,
}

impl Entry {
    fn answer(mut self, answer: Answer) {
        self.send(answer);
    }

    fn send(&mut self, answer: Answer) {
        if let Some(sender) = self.answer.take() {
            self.state.pending.fetch_sub(1, Ordering::AcqRel);
            let _ = sender.try_send(answer); // nobody may want it any more
        }
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        self.send(Answer::stopped());
    }
}

/// What the thread and the others share.
struct State {
    pending: AtomicUsize,
    stats: Mutex<Stats>,
    batches: Mutex<Durations>,
}

impl State {
    fn stats(&self) -> MutexGuard<'_, Stats> {
        // Counters are whole after every statement: a panic elsewhere does not make them wrong.
        self.stats.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn batches(&self) -> MutexGuard<'_, Durations> {
        self.batches.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A model on its thread. Dropping it ends the thread after the batch at hand.
pub struct Worker {
    entries: Option<Sender<Entry>>,
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
        let (entries, inbox) = bounded(CHANNEL);
        let (report, ready) = bounded(1);
        let state =
            Arc::new(State { pending: AtomicUsize::new(0), stats: Mutex::default(), batches: Mutex::default() });
        let (shared, size, timeout) = (state.clone(), options.batch_size, options.batch_timeout);
        let body = move || {
            let started = catch_unwind(AssertUnwindSafe(|| first(&open, size, &shared)));
            match started.unwrap_or_else(|panic| Err(Error::Internal(format!("opening panicked: {}", words(&*panic)))))
            {
                Ok(model) => {
                    let _ = report.send(Ok(model.card().clone()));
                    drop(report);
                    Bench::new(open, model, shared).serve(&inbox, Batcher::new(size, nanoseconds(timeout)));
                }
                Err(error) => {
                    let _ = report.send(Err(error));
                }
            }
        };
        let thread = std::thread::Builder::new().name(options.name.clone()).spawn(body);
        let thread = thread.map_err(|error| Error::Internal(format!("no thread for the worker: {error}")))?;
        let started = ready.recv().unwrap_or_else(|_| Err(Error::Internal("the worker ended while it started".into())));
        match started {
            Ok(card) => {
                let digest = card.digest();
                Ok(Self { entries: Some(entries), state, card: Arc::new(card), digest, options, thread: Some(thread) })
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
        let (sender, receiver) = bounded(1);
        let wanted = Arc::new(());
        let entry = Entry {
            stream,
            job,
            answer: Some(sender),
            wanted: Arc::downgrade(&wanted),
            submitted: Instant::now(),
            state: self.state.clone(),
        };
        let Some(entries) = &self.entries else { return Err(Refused::Stopped) };
        self.state.pending.fetch_add(1, Ordering::AcqRel);
        match entries.send_timeout(entry, patience) {
            Ok(()) => Ok(Ticket { answer: receiver, _wanted: wanted }),
            Err(SendTimeoutError::Timeout(entry)) => Err(Refused::Full(Box::new(entry.job.clone()))),
            Err(SendTimeoutError::Disconnected(_)) => Err(Refused::Stopped),
        }
    }

    /// Jobs that are accepted and not answered.
    pub fn pending(&self) -> usize {
        self.state.pending.load(Ordering::Acquire)
    }

    /// What it has done so far.
    pub fn stats(&self) -> Stats {
        self.state.stats().clone()
    }

    /// How long the model works on a batch, warm-up included.
    pub fn batch_time(&self) -> Summary {
        let recent = self.state.batches().clone();
        recent.summary()
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
