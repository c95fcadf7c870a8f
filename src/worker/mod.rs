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
//! | backbone, MB read and written (f32) | 106 | 1690 | 422 | 6750 | 422 | 6750 |
//! | one evaluation, MB (f32) | 23 | 335 | 414 | 6330 | 846 | 12550 |
//! | statistics of one class, MB | 17 | 17 | 268 | 268 | 268 | 268 |
//! | launches: backbone and features | 104 | 104 | 104 | 104 | 104 | 104 |
//! | launches: one evaluation | 43 | 54 | 81 | 102 | 119 | 150 |
//! | launches: all | 156 | 167 | 360 | 423 | 474 | 567 |
//! | floor by arithmetic, f32 / f16, ms | 0.02 / 0.00 | 0.24 / 0.02 | 0.6 / 0.04 | 9.4 / 0.6 | 1.8 / 0.1 | 28 / 1.9 |
//! | floor by memory, f32, ms | 0.04 | 0.6 | 0.6 | 7.8 | 1.0 | 13.3 |
//! | floor by the link, ms | 0.00 | 0.06 | 0.02 | 0.25 | 0.02 | 0.25 |
//! | floor by launches, GPU / thread, ms | 0.4 / 0.8 | 0.4 / 0.8 | 0.9 / 1.8 | 1.1 / 2.1 | 1.2 / 2.4 | 1.4 / 2.8 |
//!
//! An evaluation of the denoiser launches 7 kernels per block (6 for a batch of 1, whose modulation needs no copy), 15 per
//! attention (14), 5 around them, and one per layer to repeat the condition for a batch. A block of the backbone is 5 (3 without
//! expansion, 1 more with a residual), its stem 15, bringing the taps to the grid 20, normalising them 5.
//!
//! So a single frame of size s is bound by launches: 0.8 ms at best, and a CUDA graph would be worth most there; candle gives no
//! hold on one that survives its allocations. Batches of 16 are bound by memory between the kernels in f32; `precision=f16`
//! halves that. What the design does about it: frames travel as bytes at the model's size (resized where they enter, as on the
//! CPU: one code for eleven formats, the same bits on every device, and a 5-megapixel frame would be 75 times the bytes) through
//! page-locked buffers that are used again; bias, activation and gate are one kernel each with their neighbours; conditions,
//! noises and statistics stay on the device; the driver's pool keeps what is freed; the next batch is sent before the answers
//! of the last are made, so the host's part (smoothing, score, regions) overlaps. Copies run in the stream of the kernels, not
//! beside them: a second stream would make cudarc record events around every launch, which costs more than the 4 us per frame
//! that it could hide.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, SendTimeoutError, Sender, bounded};

use crate::bundle::Card;
use crate::detector::{Ask, Detection, Seen};
use crate::error::{Error, Result};
use crate::frame::Prepared;

mod batcher;
mod model;
mod share;
mod stats;

pub use batcher::{Batcher, Next};
pub use model::open;
pub use share::{Shared, instance_key};
pub use stats::{Durations, Stats, Summary};

/// Jobs that may wait in the channel; more than any sensible number of streams has under way.
const CHANNEL: usize = 1024;
/// Batches that the warm-up runs.
const WARM_UP: usize = 4;

/// A model as the worker sees it.
pub trait Detect: Send {
    /// Its card.
    fn card(&self) -> &Card;

    /// Sends a batch on its way where the device works by itself, so that it computes while the answers of the batch before
    /// are made; nothing where it does not.
    ///
    /// # Errors
    /// When the device fails.
    fn begin(&mut self, _jobs: &[&Job]) -> Result<Option<Seen>> {
        Ok(None)
    }

    /// Inspects a batch: one answer per job, in order. An answer does not depend on the other jobs. `begun` is what
    /// [`Detect::begin`] gave for these jobs.
    fn detect(&mut self, jobs: &[&Job], begun: Option<Seen>) -> Vec<Result<Detection>>;

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
                    let digest = model.card().digest();
                    Bench { open, digest, model: Ok(model), rebuilt: false, halved: false, state: shared }
                        .serve(&inbox, Batcher::new(size, nanoseconds(timeout)));
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

/// The model opened and warmed up.
fn first(open: &Open, size: usize, state: &State) -> Result<Box<dyn Detect>> {
    let mut model = open()?;
    let jobs = model.warm_up(size)?;
    for round in 0..WARM_UP {
        let started = Instant::now();
        let jobs: Vec<&Job> = jobs.iter().collect();
        let begun = model.begin(&jobs)?;
        for outcome in model.detect(&jobs, begun) {
            outcome?;
        }
        if round > 0 {
            state.batches().add(started.elapsed()); // the first touches every page for the first time
        }
    }
    Ok(model)
}

/// The thread's side.
struct Bench {
    open: Open,
    digest: String,
    model: Result<Box<dyn Detect>, Failure>,
    rebuilt: bool,
    /// Batches were halved, for want of memory.
    halved: bool,
    state: Arc<State>,
}

/// A batch that the model has begun with.
struct UnderWay {
    entries: Vec<Entry>,
    started: Instant,
    begun: Result<Option<Seen>, Failure>,
}

impl Bench {
    /// Until nobody can submit any more and everything is answered. Where the device works by itself, the next batch is
    /// sent there before the answers of the last are made: two are under way.
    fn serve(&mut self, inbox: &Receiver<Entry>, mut batcher: Batcher<Entry>) {
        let epoch = Instant::now();
        let now = || nanoseconds(epoch.elapsed());
        let mut under_way: Option<UnderWay> = None;
        loop {
            for entry in inbox.try_iter() {
                batcher.push(entry.stream, entry, now());
            }
            let next = batcher.next(now());
            if next == Next::Ready {
                let begun = self.begin(batcher.take());
                if let Some(batch) = std::mem::replace(&mut under_way, begun) {
                    self.finish(batch, &mut batcher);
                }
                if let Some(batch) = under_way.take_if(|batch| !matches!(batch.begun, Ok(Some(_)))) {
                    self.finish(batch, &mut batcher);
                }
                continue;
            }
            if let Some(batch) = under_way.take() {
                self.finish(batch, &mut batcher);
                continue;
            }
            let received = match next {
                Next::WaitUntil(time) => inbox.recv_deadline(epoch + Duration::from_nanos(time)),
                Next::Idle | Next::Ready => inbox.recv().map_err(|_| RecvTimeoutError::Disconnected),
            };
            match received {
                Ok(entry) => batcher.push(entry.stream, entry, now()),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return, // what still waits is answered as it is dropped
            }
        }
    }

    /// Sends a batch on its way, without what nobody waits for any more.
    fn begin(&mut self, mut entries: Vec<Entry>) -> Option<UnderWay> {
        let before = entries.len();
        entries.retain(|entry| entry.wanted.strong_count() > 0);
        self.state.stats().abandoned += (before - entries.len()) as u64;
        if entries.is_empty() {
            return None;
        }
        let started = Instant::now();
        let jobs: Vec<&Job> = entries.iter().map(|entry| &entry.job).collect();
        let begun = match &mut self.model {
            Err(failure) => Err(failure.clone()),
            Ok(model) => match catch_unwind(AssertUnwindSafe(|| model.begin(&jobs))) {
                Ok(begun) => begun.map_err(failure),
                Err(panic) => {
                    let failure = panicked(&*panic);
                    self.model = Err(failure.clone()); // until it is opened anew
                    Err(failure)
                }
            },
        };
        Some(UnderWay { entries, started, begun })
    }

    /// Answers a batch.
    fn finish(&mut self, batch: UnderWay, batcher: &mut Batcher<Entry>) {
        let UnderWay { entries, started, begun } = batch;
        let (outcomes, panicked) = self.detect(&entries, begun);
        let infer = started.elapsed();
        let failures = || outcomes.iter().filter_map(|outcome| outcome.as_ref().err());
        let short_of_memory = failures().any(|failure| matches!(failure, Failure::Memory(_)));
        if let Some(lost) = failures().find(|failure| matches!(failure, Failure::Lost(_))) {
            self.model = Err(lost.clone());
        }

        let (size, errors) = (entries.len(), outcomes.iter().filter(|outcome| outcome.is_err()).count());
        if errors == 0 {
            self.state.batches().add(infer);
        }
        {
            let mut stats = self.state.stats();
            stats.batches += 1;
            stats.frames += size as u64;
            stats.errors += errors as u64;
            stats.panics += u64::from(panicked);
            for entry in &entries {
                stats.queue.add(started - entry.submitted);
                stats.infer.add(infer);
                stats.total.add(entry.submitted.elapsed());
            }
        }
        for (entry, outcome) in entries.into_iter().zip(outcomes) {
            let queue = started - entry.submitted;
            entry.answer(Answer { outcome, queue, infer, batch: size });
        }
        if panicked {
            self.rebuild();
        }
        if short_of_memory && !self.halved && batcher.size() > 1 {
            self.halved = true;
            batcher.halve();
            tracing::warn!(batch_size = batcher.size(), "the device is out of memory: batches are halved");
        }
    }

    /// One outcome per entry, and whether the model panicked over this batch.
    fn detect(
        &mut self,
        batch: &[Entry],
        begun: Result<Option<Seen>, Failure>,
    ) -> (Vec<Result<Detection, Failure>>, bool) {
        let all = |failure: Failure| vec![Err(failure); batch.len()];
        let (model, begun) = match (&mut self.model, begun) {
            (_, Err(failure)) => {
                let panicked = matches!(failure, Failure::Panicked(_));
                return (all(failure), panicked);
            }
            (Err(failure), _) => return (all(failure.clone()), false),
            (Ok(model), Ok(begun)) => (model, begun),
        };
        let jobs: Vec<&Job> = batch.iter().map(|entry| &entry.job).collect();
        match catch_unwind(AssertUnwindSafe(|| model.detect(&jobs, begun))) {
            Ok(outcomes) if outcomes.len() == batch.len() => {
                (outcomes.into_iter().map(|outcome| outcome.map_err(failure)).collect(), false)
            }
            Ok(outcomes) => {
                let (got, expected) = (outcomes.len(), batch.len());
                (all(Failure::Failed(format!("internal error: {got} answers for {expected} frames"))), false)
            }
            Err(panic) => (all(panicked(&*panic)), true),
        }
    }

    /// After a panic the model's state is not to be trusted: it is opened again, once.
    fn rebuild(&mut self) {
        let no_more = |words: String| Err(Failure::Failed(words));
        if self.rebuilt {
            self.model = no_more("the model panicked again after it was opened anew; it is not used any more".into());
            return;
        }
        self.rebuilt = true;
        let opened = catch_unwind(AssertUnwindSafe(|| (self.open)()));
        self.model = match opened {
            Ok(Ok(model)) if model.card().digest() == self.digest => Ok(model),
            Ok(Ok(_)) => no_more("the model panicked, and its file holds another model by now".into()),
            Ok(Err(error)) => no_more(format!("the model panicked and could not be opened anew: {error}")),
            Err(panic) => no_more(format!("the model panicked and opening it anew panicked: {}", words(&*panic))),
        };
        match &self.model {
            Ok(_) => tracing::warn!("the model was opened anew after a panic"),
            Err(reason) => tracing::error!(%reason),
        }
    }
}

/// What an error means for a job.
fn failure(error: Error) -> Failure {
    match error {
        Error::Memory(words) => Failure::Memory(words),
        Error::Lost(words) => Failure::Lost(words),
        other => Failure::Failed(other.to_string()),
    }
}

fn panicked(panic: &(dyn std::any::Any + Send)) -> Failure {
    let words = words(panic);
    tracing::error!(words, "the model panicked");
    Failure::Panicked(words)
}

/// What a panic said.
fn words(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().copied().or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    text.unwrap_or("without words").to_owned()
}

fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests;
