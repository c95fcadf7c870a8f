//! The thread's side of the worker: batches to the model, answers to the tickets.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError};

use super::batcher::{Batcher, Next};
use super::{Answer, Detect, Entry, Failure, Job, Open, State, lock, nanoseconds};
use crate::detector::{CellScores, Detection, Embeddings};
use crate::error::{Error, Result, panic_words};

/// Batches that a model runs when its worker starts, before the first frame.
pub const WARM_UP_BATCHES: usize = 4;

/// Opens the model and runs a few batches, so that the first frame takes no longer than the others.
pub(super) fn open_and_warm_up(open: &Open, size: usize, state: &State) -> Result<Box<dyn Detect>> {
    let mut model = open()?;
    match warm_up(model.as_mut(), size, state) {
        Ok(()) => Ok(model),
        Err(error) => {
            if matches!(error, Error::Lost(_)) {
                abandon(model);
            }
            Err(error)
        }
    }
}

fn warm_up(model: &mut dyn Detect, size: usize, state: &State) -> Result<()> {
    let jobs = model.warm_up(size)?;
    for round in 0..WARM_UP_BATCHES {
        let started = Instant::now();
        let jobs: Vec<&Job> = jobs.iter().collect();
        let scores = model.embed(&jobs)?.map(|embeddings| model.measure(&jobs, embeddings)).transpose()?;
        for outcome in inspect(model, &jobs, scores) {
            outcome?;
        }
        if round > 0 {
            lock(&state.batches).add(started.elapsed()); // the first touches every page for the first time
        }
    }
    Ok(())
}

/// The answers to a batch, from its scores where the device works by itself.
fn inspect(model: &mut dyn Detect, jobs: &[&Job], scores: Option<CellScores>) -> Vec<Result<Detection>> {
    match scores {
        Some(scores) => model.conclude(jobs, scores),
        None => model.inspect(jobs),
    }
}

/// Gives up a model whose device is lost, without letting go of what it has there: the handles of libraries on a spoiled device
/// cannot be given back, and panic when they are.
fn abandon(model: Box<dyn Detect>) {
    std::mem::forget(model);
}

/// The thread's own: the model, and what has happened to it.
pub(super) struct ModelThread {
    open: Open,
    digest: String,
    model: Result<Box<dyn Detect>, Failure>,
    /// Whether the model was opened anew after a panic.
    reopened: bool,
    /// Whether batches were halved for want of memory.
    halved: bool,
    state: Arc<State>,
}

/// A batch that the model has begun with, and what a phase gave; nothing where the device does not work by itself.
struct UnderWay<T> {
    entries: Vec<Entry>,
    started: Instant,
    so_far: Result<Option<T>, Failure>,
}

impl ModelThread {
    /// With a model that is open.
    pub(super) fn new(open: Open, model: Box<dyn Detect>, state: Arc<State>) -> Self {
        let digest = model.card().digest();
        Self { open, digest, model: Ok(model), reopened: false, halved: false, state }
    }

    /// Until nobody can submit any more and everything is answered. Where the device works by itself, the next batch is
    /// sent there as soon as it is done with the last, before the host makes its answers: two are under way.
    pub(super) fn serve(&mut self, inbox: &Receiver<Entry>, mut batcher: Batcher<Entry>) {
        let epoch = Instant::now();
        let now = || nanoseconds(epoch.elapsed());
        let mut under_way: Option<UnderWay<Embeddings>> = None;
        loop {
            let busy = under_way.is_some();
            let mut measured = under_way.take().map(|batch| self.measure(batch));
            if let Some(failed) = measured.take_if(|batch| batch.so_far.is_err()) {
                self.finish(failed, &mut batcher); // before the next: the model may have to be opened anew
            }
            for entry in inbox.try_iter() {
                batcher.push(entry.stream, entry, now());
            }
            let next = batcher.next(now());
            let begun = if next == Next::Ready { self.embed(batcher.take()) } else { None };
            if let Some(batch) = measured {
                self.finish(batch, &mut batcher);
            }
            match begun {
                Some(batch) if matches!(batch.so_far, Ok(Some(_))) => under_way = Some(batch),
                Some(batch) => {
                    let batch = self.measure(batch);
                    self.finish(batch, &mut batcher);
                }
                None => {}
            }
            if busy || next == Next::Ready {
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
    fn embed(&mut self, mut entries: Vec<Entry>) -> Option<UnderWay<Embeddings>> {
        let before = entries.len();
        entries.retain(|entry| entry.wanted.strong_count() > 0);
        lock(&self.state.stats).abandoned += (before - entries.len()) as u64;
        if entries.is_empty() {
            return None;
        }
        let started = Instant::now();
        let so_far = self.run(&entries, |model, jobs| model.embed(jobs));
        Some(UnderWay { entries, started, so_far })
    }

    /// Waits for the device to be done with a batch.
    fn measure(&mut self, batch: UnderWay<Embeddings>) -> UnderWay<CellScores> {
        let UnderWay { entries, started, so_far } = batch;
        let so_far = match so_far {
            Ok(Some(embeddings)) => self.run(&entries, |model, jobs| model.measure(jobs, embeddings)).map(Some),
            Ok(None) => Ok(None),
            Err(failure) => Err(failure),
        };
        UnderWay { entries, started, so_far }
    }

    /// Runs a phase of the model on a batch. A model that panics is given up until it is opened anew.
    fn run<T>(
        &mut self,
        entries: &[Entry],
        phase: impl FnOnce(&mut dyn Detect, &[&Job]) -> Result<T>,
    ) -> Result<T, Failure> {
        let jobs: Vec<&Job> = entries.iter().map(|entry| &entry.job).collect();
        let model = self.model.as_mut().map_err(|failure| failure.clone())?;
        match catch_unwind(AssertUnwindSafe(|| phase(model.as_mut(), &jobs))) {
            Ok(answer) => answer.map_err(failure),
            Err(panic) => {
                let failure = panicked(&*panic);
                self.model = Err(failure.clone());
                Err(failure)
            }
        }
    }

    /// Answers a batch.
    fn finish(&mut self, batch: UnderWay<CellScores>, batcher: &mut Batcher<Entry>) {
        let UnderWay { entries, started, so_far } = batch;
        let (outcomes, panicked) = self.outcomes(&entries, so_far);
        let infer = started.elapsed();
        let failures = || outcomes.iter().filter_map(|outcome| outcome.as_ref().err());
        let short_of_memory = failures().any(|failure| matches!(failure, Failure::Memory(_)));
        if let Some(lost) = failures().find(|failure| matches!(failure, Failure::Lost(_)))
            && let Ok(model) = std::mem::replace(&mut self.model, Err(lost.clone()))
        {
            abandon(model);
        }

        let (size, errors) = (entries.len(), outcomes.iter().filter(|outcome| outcome.is_err()).count());
        if errors == 0 {
            lock(&self.state.batches).add(infer);
        }
        {
            let mut stats = lock(&self.state.stats);
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
        for (mut entry, outcome) in entries.into_iter().zip(outcomes) {
            let queue = started - entry.submitted;
            entry.reply.send(Answer { outcome, queue, infer, batch: size });
        }
        if panicked {
            self.reopen();
        }
        if short_of_memory && !self.halved && batcher.size() > 1 {
            self.halved = true;
            batcher.halve();
            tracing::warn!(batch_size = batcher.size(), "the device is out of memory: batches are halved");
        }
    }

    /// One outcome per entry, and whether the model panicked over this batch.
    fn outcomes(
        &mut self,
        batch: &[Entry],
        scores: Result<Option<CellScores>, Failure>,
    ) -> (Vec<Result<Detection, Failure>>, bool) {
        let outcomes = match (scores, &self.model) {
            (Err(failure), _) => Err(failure),
            // The model was given up over another batch.
            (Ok(_), Err(failure)) => return (vec![Err(failure.clone()); batch.len()], false),
            (Ok(scores), Ok(_)) => self.run(batch, |model, jobs| Ok(inspect(model, jobs, scores))),
        };
        let failed = match outcomes {
            Ok(outcomes) if outcomes.len() == batch.len() => {
                return (outcomes.into_iter().map(|outcome| outcome.map_err(failure)).collect(), false);
            }
            Ok(outcomes) => {
                let (got, expected) = (outcomes.len(), batch.len());
                Failure::Failed(format!("internal error: {got} answers for {expected} frames"))
            }
            Err(failure) => failure,
        };
        let panicked = matches!(failed, Failure::Panicked(_));
        (vec![Err(failed); batch.len()], panicked)
    }

    /// After a panic the model's state is not to be trusted: it is opened again, once.
    fn reopen(&mut self) {
        let no_more = |words: String| Err(Failure::Failed(words));
        if self.reopened {
            self.model = no_more("the model panicked again after it was opened anew; it is not used any more".into());
            return;
        }
        self.reopened = true;
        let opened = catch_unwind(AssertUnwindSafe(|| (self.open)()));
        self.model = match opened {
            Ok(Ok(model)) if model.card().digest() == self.digest => Ok(model),
            Ok(Ok(_)) => no_more("the model panicked, and its file holds another model by now".into()),
            Ok(Err(error)) => no_more(format!("the model panicked and could not be opened anew: {error}")),
            Err(panic) => {
                no_more(format!("the model panicked and opening it anew panicked: {}", panic_message(&*panic)))
            }
        };
        match &self.model {
            Ok(_) => tracing::warn!("the model was opened anew after a panic"),
            Err(reason) => tracing::error!(%reason),
        }
    }
}

/// The answer to a job that ended with an error.
fn failure(error: Error) -> Failure {
    match error {
        Error::Memory(words) => Failure::Memory(words),
        Error::Lost(words) => Failure::Lost(words),
        other => Failure::Failed(other.to_string()),
    }
}

fn panicked(panic: &(dyn std::any::Any + Send)) -> Failure {
    let words = panic_message(panic);
    tracing::error!(words, "the model panicked");
    Failure::Panicked(words)
}

/// What a panic said.
pub(super) fn panic_message(panic: &(dyn std::any::Any + Send)) -> String {
    panic_words(panic).unwrap_or("without words").to_owned()
}
