//! A line on a thread of its own: its pipeline is built, watched, thrown away when something fails, and built anew.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, bounded};
use gstdiad::result::utc_now;

use super::config::{Line, OnFailure};
use super::out::Outlets;
use super::properties::Change;
use super::say;
use super::session::{End, Holder, News, Session};
use super::state::{Backoff, State};
use super::supervise::Event;
use super::tally::{Counts, Tally, lock};

/// How often a line looks around.
const TICK: Duration = Duration::from_millis(100);
/// After a failure, frames that are under way may take so long to leave.
const DRAIN: Duration = Duration::from_secs(2);

/// What a line is told.
#[derive(Debug)]
pub(crate) enum Command {
    /// Let what is under way leave, and end.
    Stop,
    /// Go on as this line, with a new pipeline.
    Replace(Box<Line>),
    /// Go on as this line; only these properties differ.
    Change(Box<Line>, Vec<Change>),
    /// Open the file of results anew.
    Reopen,
}

/// What others see of a line.
#[derive(Clone, Debug)]
pub(crate) struct Status {
    pub(crate) state: State,
    /// Why it is in this state.
    pub(crate) reason: String,
    /// Since when: RFC 3339, UTC.
    pub(crate) since: String,
    /// The file of its model.
    pub(crate) model: String,
    /// Since when its pipeline is being started or taken down, and how long that may last.
    pub(crate) changing: Option<(Instant, Duration)>,
    /// Whether its model was loaded, or cannot be.
    pub(crate) settled: bool,
    /// Pipelines that were built anew, by cause.
    pub(crate) restarts: BTreeMap<&'static str, u64>,
}

/// What can be seen of a line from elsewhere.
#[derive(Clone)]
pub(crate) struct Seen {
    pub(crate) name: String,
    pub(crate) status: Arc<Mutex<Status>>,
    pub(crate) tally: Arc<Tally>,
}

/// A line that was started.
pub(crate) struct Handle {
    pub(crate) line: Line,
    status: Arc<Mutex<Status>>,
    tally: Arc<Tally>,
    commands: Sender<Command>,
    thread: JoinHandle<()>,
}

impl Handle {
    /// Starts a line; its files are opened now, its pipeline on the line's own thread.
    ///
    /// # Errors
    /// When a file cannot be written, or there is no thread.
    pub(crate) fn start(
        line: Line,
        state_dir: &Path,
        outlets: &Arc<Outlets>,
        events: Sender<Event>,
    ) -> Result<Self, String> {
        let tally = Arc::new(Tally::open(&line.name, state_dir, line.results.as_deref(), outlets.clone())?);
        let status = Arc::new(Mutex::new(Status {
            state: State::Starting,
            reason: String::new(),
            since: utc_now(),
            model: line.model.clone(),
            changing: None,
            settled: false,
            restarts: BTreeMap::new(),
        }));
        let (commands, told) = bounded(16);
        let mut runner = Runner {
            backoff: Backoff::new(&line.name, line.watch.attempts),
            line: line.clone(),
            at_work: None,
            status: status.clone(),
            tally: tally.clone(),
            told,
        };
        let thread = std::thread::Builder::new().name(format!("diad-{}", line.name)).spawn(move || {
            runner.run();
            let _ = events.try_send(Event::Over);
        });
        let thread = thread.map_err(|error| format!("{}: no thread for the line: {error}", line.name))?;
        Ok(Self { line, status, tally, commands, thread })
    }

    pub(crate) fn seen(&self) -> Seen {
        Seen { name: self.line.name.clone(), status: self.status.clone(), tally: self.tally.clone() }
    }

    pub(crate) fn status(&self) -> Status {
        lock(&self.status).clone()
    }

    pub(crate) fn counts(&self) -> Counts {
        self.tally.counts()
    }

    /// Tells the line; one that is over does not listen.
    pub(crate) fn tell(&self, command: Command) {
        let _ = self.commands.try_send(command);
    }

    /// Whether its pipeline takes longer to start or to come down than it may.
    pub(crate) fn is_stuck(&self) -> bool {
        lock(&self.status).changing.is_some_and(|(since, most)| since.elapsed() > most)
    }

    /// Says that it is stuck, once.
    pub(crate) fn mark_stuck(&self) {
        let mut status = lock(&self.status);
        if status.state != State::Stuck {
            status.state = State::Stuck;
            say(&self.line.name, "stuck: its pipeline does not start or come down");
        }
    }

    /// Whether nothing more will come of it.
    pub(crate) fn is_over(&self) -> bool {
        self.thread.is_finished()
    }

    /// Whether it has failed, and everything is to end with it.
    pub(crate) fn ends_all(&self) -> bool {
        self.line.on_failure == OnFailure::Exit && self.status().state == State::Failed
    }
}

struct Runner {
    line: Line,
    /// The model that was loaded last.
    at_work: Option<String>,
    status: Arc<Mutex<Status>>,
    tally: Arc<Tally>,
    told: Receiver<Command>,
    backoff: Backoff,
}

/// What a life of the pipeline has come to.
enum Outcome {
    End(End),
    Stop,
    Replace,
}

impl Outcome {
    /// Why a pipeline is built anew, as `/metrics` names it.
    fn name(&self) -> &'static str {
        match self {
            Self::End(End::Ended) => "loop",
            Self::End(End::Lost(_)) => "camera",
            Self::End(End::Model(_)) => "model",
            Self::End(End::Output(_)) => "output",
            Self::Stop | Self::Replace => "change",
        }
    }
}

impl Runner {
    fn run(&mut self) {
        let mut holder: Option<Holder> = None;
        let mut again = None;
        let last = loop {
            if let Some(cause) = again {
                *lock(&self.status).restarts.entry(cause).or_default() += 1;
            }
            self.become_(State::Starting, "");
            self.since(Some(self.line.watch.teardown * 3));
            let started = Session::start(&self.line, &self.tally);
            self.since(None);
            let (outcome, session) = match started {
                Ok(session) => {
                    lock(&self.status).settled = true;
                    self.at_work = Some(self.line.model.clone());
                    drop(holder.take()); // the pipeline has the model now
                    let outcome = self.watch(&session);
                    (outcome, Some(session))
                }
                Err((session, end)) => (Outcome::End(end), session),
            };
            lock(&self.status).settled = true;
            // From the start to the last frame: silence is no good sign.
            let frames =
                |session: &Session| Some(self.tally.times().came?.saturating_duration_since(session.started()));
            let ran = session.as_ref().and_then(frames).unwrap_or_default();
            if let Some(session) = session {
                // What stands behind the source has failed or is through where it is not waited for.
                match &outcome {
                    Outcome::End(End::Lost(_)) => session.drain(DRAIN),
                    Outcome::Stop | Outcome::Replace => session.drain(self.line.watch.stop),
                    Outcome::End(_) => {}
                }
                if !matches!(outcome, Outcome::Stop | Outcome::End(End::Ended | End::Model(_))) {
                    holder = Holder::new(&self.line);
                }
                self.take_down(session);
            }
            again = Some(outcome.name());
            let (state, reason) = match outcome {
                Outcome::Stop => break (State::Stopped, String::new()),
                Outcome::Replace => continue,
                Outcome::End(End::Ended) if self.line.source.repeats() => continue,
                Outcome::End(End::Ended) => break (State::Ended, String::new()),
                Outcome::End(End::Model(reason)) if self.goes_back(&reason) => continue,
                Outcome::End(End::Model(reason)) => (State::ModelError, reason),
                Outcome::End(End::Output(reason)) => (State::Starting, reason),
                Outcome::End(End::Lost(reason)) => (State::CameraLost, reason),
            };
            let Some(wait) = self.backoff.failed(ran) else { break (State::Failed, reason) };
            self.become_(state, &format!("{reason}; again in {:.1} s", wait.as_secs_f64()));
            if !self.wait(wait) {
                break (State::Stopped, String::new());
            }
        };
        drop(holder);
        self.tally.close();
        let (state, reason) = last;
        let counts = self.tally.counts();
        self.become_(state, &if reason.is_empty() { counts.to_string() } else { format!("{reason}; {counts}") });
    }

    /// Changes the state, and says so if it is another.
    fn become_(&self, state: State, reason: &str) {
        let mut status = lock(&self.status);
        if status.state == state && status.reason == reason {
            return;
        }
        let quiet = state == State::Starting && reason.is_empty();
        if status.state != state {
            status.since = utc_now();
        }
        (status.state, status.reason) = (state, reason.to_owned());
        drop(status);
        if !quiet {
            let text = if reason.is_empty() { state.name().to_owned() } else { format!("{}: {reason}", state.name()) };
            say(&self.line.name, &text);
        }
    }

    /// Watches a pipeline until its end.
    fn watch(&mut self, session: &Session) -> Outcome {
        loop {
            match session.poll(TICK) {
                Some(News::End(end)) => return Outcome::End(end),
                Some(News::Model(model, Ok(()))) => {
                    say(&self.line.name, &format!("model {model} is at work"));
                    self.at_work = Some(model);
                }
                // Not so for one that another was set after.
                Some(News::Model(model, Err(reason))) if model == self.line.model => drop(self.goes_back(&reason)),
                Some(News::Model(..)) | None => {}
            }
            for command in self.told.try_iter().collect::<Vec<_>>() {
                match command {
                    Command::Stop => {
                        self.become_(State::Stopping, "");
                        return Outcome::Stop;
                    }
                    Command::Replace(line) => {
                        self.take(*line);
                        say(&self.line.name, "changed: built anew");
                        return Outcome::Replace;
                    }
                    Command::Change(line, changed) => {
                        self.take(*line);
                        match session.set(&changed) {
                            Ok(()) => {
                                let names: Vec<&str> = changed.iter().map(|(_, name, _)| name.as_str()).collect();
                                say(&self.line.name, &format!("changed: {}", names.join(", ")));
                            }
                            Err(reason) => say(&self.line.name, &reason),
                        }
                    }
                    Command::Reopen => self.tally.reopen(),
                }
            }
            if session.is_sick(&self.tally) {
                return Outcome::End(End::Lost("frames go in and none comes out".into()));
            }
            let came = self.tally.times().came;
            let silent = came.unwrap_or(session.started()).elapsed();
            match self.line.watch.stall {
                Some(stall) if silent > stall => {
                    return Outcome::End(End::Lost(format!("no frame for {:.1} s", stall.as_secs_f64())));
                }
                None if silent > Duration::from_secs(5) => self.become_(State::Idle, ""),
                _ if came.is_some() => self.become_(State::Running, ""),
                _ => {}
            }
        }
    }

    /// Goes back to the model that was loaded last, if that is another one than it has now.
    fn goes_back(&mut self, reason: &str) -> bool {
        let Some(before) = self.at_work.clone().filter(|before| *before != self.line.model) else { return false };
        say(&self.line.name, &format!("{reason}; the model before stays: {before}"));
        self.line.model = before;
        true
    }

    fn take(&mut self, line: Line) {
        self.backoff = Backoff::new(&line.name, line.watch.attempts);
        lock(&self.status).model = line.model.clone();
        self.line = line;
    }

    /// Takes a pipeline down; others see how long that lasts.
    fn take_down(&self, session: Session) {
        self.since(Some(self.line.watch.teardown));
        session.stop();
        self.since(None);
    }

    /// From now on the pipeline changes its state, and may take so long.
    fn since(&self, most: Option<Duration>) {
        lock(&self.status).changing = most.map(|most| (Instant::now(), most));
    }

    /// Waits before the next try; false: it is not to be tried.
    fn wait(&mut self, wait: Duration) -> bool {
        let until = Instant::now() + wait;
        while let Ok(command) = self.told.recv_deadline(until) {
            match command {
                Command::Stop => return false,
                // What was wrong may be right now.
                Command::Replace(line) | Command::Change(line, _) => {
                    self.take(*line);
                    return true;
                }
                Command::Reopen => self.tally.reopen(),
            }
        }
        true
    }
}
