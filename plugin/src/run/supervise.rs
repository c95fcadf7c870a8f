//! All lines of a file: started, watched, changed as the file changes, and stopped.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use crossbeam_channel::{Receiver, Sender, bounded};
use diad::bundle::read_card;
use diad::detector::Verdict;
use diad::versions;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use super::board::Board;
use super::config::{Line, Plan};
use super::line::{Command, Handle};
use super::out::Outputs;
use super::properties::changes;
use super::say;
use super::state::State;
use super::web::serve;

/// How often is looked around.
const TICK: Duration = Duration::from_millis(100);
/// How often the file is looked at.
const FILE: Duration = Duration::from_secs(2);
/// How often the service manager is told how things are.
const STATUS: Duration = Duration::from_secs(10);

/// What the program ends with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Exit {
    /// Told to stop, or all sources at their end.
    Done = 0,
    /// A line has failed, and was to end all; or none is left.
    Failed = 1,
    /// A pipeline does not come down.
    Stuck = 70,
}

/// What the supervisor is woken for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Event {
    /// SIGTERM or Ctrl-C.
    Stop,
    /// SIGHUP.
    Reload,
    /// A line's thread ends.
    Over,
}

/// Signals that may wait, beside the ends of lines.
const EVENTS: usize = 256;

/// Receives signals on a thread of its own.
fn signals(events: Sender<Event>) -> Result<(), String> {
    let signals = Signals::new([SIGTERM, SIGINT, SIGHUP]);
    let mut signals = signals.map_err(|error| format!("signals cannot be received: {error}"))?;
    let work = move || {
        for signal in signals.forever() {
            let event = if signal == SIGHUP { Event::Reload } else { Event::Stop };
            if events.send(event).is_err() {
                break;
            }
        }
    };
    let thread = std::thread::Builder::new().name("diad-signals".into()).spawn(work);
    thread.map(drop).map_err(|error| format!("no thread for signals: {error}"))
}

/// Runs a plan until it ends.
///
/// # Errors
/// When a line's files cannot be written before anything has started.
pub(crate) fn run(path: &Path, plan: Plan) -> Result<Exit, String> {
    let (events, woken) = bounded(EVENTS);
    signals(events.clone())?;
    std::fs::create_dir_all(&plan.state_dir)
        .map_err(|error| format!("state-dir = {:?}: cannot be written: {error}", plan.state_dir.display()))?;
    let _state = Held::take(&plan.state_dir)?;
    let board = Arc::new(Board::default());
    let mut outputs = Outputs::new(&plan.name, board.clone());
    // A receiver that cannot be served is told, and the lines run without it: they matter more than who asks after them.
    outputs.serve(&plan.receivers, &plan.state_dir).unwrap_or_else(|reason| say("", &reason));
    let start = |line: &Line| Handle::start(line.clone(), &plan.state_dir, &board.outlets, events.clone());
    let lines = plan.lines.iter().map(start).collect::<Result<Vec<_>, _>>()?;
    let mut all = Supervisor { file: File::of(path, &lines), lines, plan, board, outputs, events, woken };
    all.board.file_is(true);
    all.board.show(all.lines.iter().map(Handle::seen).collect());
    if let Some(address) = all.plan.listen
        && let Err(reason) = serve(address, all.board.clone())
    {
        say("", &format!("{reason}; the lines run without it"));
    }
    let exit = all.watch();
    all.outputs.stop();
    Ok(exit)
}

struct Supervisor {
    plan: Plan,
    lines: Vec<Handle>,
    file: File,
    board: Arc<Board>,
    outputs: Outputs,
    events: Sender<Event>,
    woken: Receiver<Event>,
}

impl Supervisor {
    /// Looks after the lines until all is over.
    fn watch(&mut self) -> Exit {
        let (mut ready, mut told) = (false, Instant::now());
        let mut watchdog = Watchdog::find();
        loop {
            match self.woken.recv_timeout(TICK) {
                Ok(Event::Stop) => {
                    notify(&[sd_notify::NotifyState::Stopping]);
                    return self.stop();
                }
                Ok(Event::Reload) => {
                    self.lines.iter().for_each(|line| line.tell(Command::Reopen));
                    self.reload();
                }
                Ok(Event::Over) | Err(_) => {
                    let changed = self.file.look(&self.lines);
                    if changed.file {
                        self.reload();
                    }
                    if changed.models {
                        self.follow();
                    }
                }
            }
            if !ready && self.lines.iter().all(|line| line.status().settled) {
                ready = true;
                notify(&[sd_notify::NotifyState::Ready, sd_notify::NotifyState::Status(&self.status())]);
            }
            if told.elapsed() > STATUS {
                told = Instant::now();
                notify(&[sd_notify::NotifyState::Status(&self.status())]);
            }
            let stuck = self.stuck();
            if stuck && watchdog.is_none() {
                self.stop();
                return Exit::Stuck;
            }
            if let Some(watchdog) = &mut watchdog
                && !stuck
            {
                watchdog.feed();
            }
            if self.lines.iter().any(Handle::ends_all) {
                self.stop();
                return Exit::Failed;
            }
            if !stuck && self.lines.iter().all(Handle::is_over) {
                return self.end();
            }
        }
    }

    fn start(&self, line: &Line) -> Result<Handle, String> {
        Handle::start(line.clone(), &self.plan.state_dir, &self.board.outlets, self.events.clone())
    }

    /// Reads the file again. A mistake in it leaves everything as it is.
    fn reload(&mut self) {
        let new = match Plan::load(&self.file.path) {
            Ok(new) => new,
            Err(mistakes) => {
                self.board.file_is(false);
                let mistakes = mistakes.join("\n  ");
                return say("", &format!("{}: nothing is changed:\n  {mistakes}", self.file.path.display()));
            }
        };
        self.board.file_is(true);
        let fixed = |plan: &Plan| (plan.name.clone(), plan.state_dir.clone(), plan.listen);
        if fixed(&new) != fixed(&self.plan) {
            say("", "name, state-dir and http.listen change with a restart only; what they were stays");
        }
        self.lines.retain(|handle| {
            let stays = new.lines.iter().any(|line| line.name == handle.line.name);
            if !stays {
                say(&handle.line.name, "is no longer in the file: stopped");
                handle.tell(Command::Stop);
            }
            stays || !handle.is_over()
        });
        for line in &new.lines {
            let Some(at) = self.lines.iter().position(|handle| handle.line.name == line.name) else {
                match self.start(line) {
                    Ok(handle) => self.lines.push(handle),
                    Err(reason) => say(&line.name, &reason),
                }
                continue;
            };
            let handle = &mut self.lines[at];
            // A line at its end stays there; one that has failed gets another try.
            if handle.line == *line && (!handle.is_over() || handle.status().state == State::Ended) {
                continue;
            }
            if handle.is_over() || handle.line.results != line.results {
                // Its thread has ended, or its files are others: from the beginning.
                handle.tell(Command::Stop);
                wait_for((&self.events, &self.woken), &[handle], line.watch.stop + line.watch.teardown);
                match self.start(line) {
                    Ok(new) => self.lines[at] = new,
                    Err(reason) => say(&line.name, &reason),
                }
                continue;
            }
            let command = match changes(&handle.line, line) {
                Some(changed) => Command::Change(Box::new(line.clone()), changed),
                None => Command::Replace(Box::new(line.clone())),
            };
            handle.tell(command);
            handle.line = line.clone();
        }
        self.board.show(self.lines.iter().map(Handle::seen).collect());
        self.outputs.serve(&new.receivers, &self.plan.state_dir).unwrap_or_else(|reason| say("", &reason));
        (self.plan.lines, self.plan.receivers) = (new.lines, new.receivers);
    }

    /// Gives lines the versions of their models that are in use by now. One that is no model leaves what is there.
    fn follow(&mut self) {
        for handle in self.lines.iter_mut().filter(|handle| !handle.is_over()) {
            let Some(folder) = &handle.line.versions else { continue };
            let file = versions::resolve(folder).and_then(|file| read_card(&file).map(|_| file.display().to_string()));
            match file {
                Ok(model) if model == handle.line.model => {}
                Ok(model) => {
                    let line = Line { model, ..handle.line.clone() };
                    let changed = changes(&handle.line, &line).unwrap_or_default();
                    handle.tell(Command::Change(Box::new(line.clone()), changed));
                    handle.line = line;
                }
                Err(error) => say(&handle.line.name, &format!("{error}; the model before stays")),
            }
        }
    }

    /// Whether a line is stuck; says so once.
    fn stuck(&self) -> bool {
        let stuck = self.lines.iter().filter(|line| line.is_stuck());
        stuck.inspect(|line| line.mark_stuck()).count() > 0
    }

    /// Stops all lines.
    fn stop(&self) -> Exit {
        let lines: Vec<&Handle> = self.lines.iter().collect();
        lines.iter().for_each(|line| line.tell(Command::Stop));
        let longest = lines.iter().map(|line| line.line.watch.stop + line.line.watch.teardown).max();
        if wait_for((&self.events, &self.woken), &lines, longest.unwrap_or_default()) {
            Exit::Done
        } else {
            Exit::Stuck
        }
    }

    /// How it is when every line is over.
    fn end(&self) -> Exit {
        let failed = self.lines.iter().any(|line| line.status().state == State::Failed);
        if failed { Exit::Failed } else { Exit::Done }
    }

    /// In a line: `3 of 4 cameras, 12345 parts, 12 ng`.
    fn status(&self) -> String {
        let running = |line: &&Handle| matches!(line.status().state, State::Running | State::Idle);
        let counts: Vec<_> = self.lines.iter().map(Handle::counts).collect();
        let frames: u64 = counts.iter().map(|counts| counts.frames).sum();
        let ng = Verdict::ALL.iter().position(|verdict| *verdict == Verdict::Ng).unwrap_or_default();
        let ng: u64 = counts.iter().map(|counts| counts.verdicts[ng]).sum();
        let running = self.lines.iter().filter(running).count();
        format!("{running} of {} lines run, {frames} frames, {ng} ng", self.lines.len())
    }
}

/// Whether these lines are over within `patience`. Signals that come meanwhile are not lost.
fn wait_for((events, woken): (&Sender<Event>, &Receiver<Event>), lines: &[&Handle], patience: Duration) -> bool {
    let until = Instant::now() + patience;
    let mut signals = Vec::new();
    while !lines.iter().all(|line| line.is_over()) && Instant::now() <= until {
        // (A thread tells that it ends shortly before it does.)
        signals.extend(woken.recv_timeout(TICK).ok().filter(|event| *event != Event::Over));
    }
    for signal in signals {
        let _ = events.try_send(signal); // there was room for it before
    }
    lines.iter().all(|line| line.is_over())
}

/// The folder of this program's own, which no other may have at the same time: numbers would be given twice.
struct Held(#[expect(dead_code, reason = "held until the end")] fs::File);

impl Held {
    fn take(state_dir: &Path) -> Result<Self, String> {
        let wrong = |what: &dyn std::fmt::Display| format!("state-dir = {:?}: {what}", state_dir.display());
        let file = fs::File::create(state_dir.join("lock"));
        let file = file.map_err(|error| wrong(&format_args!("cannot be written: {error}")))?;
        match file.try_lock() {
            Ok(()) => Ok(Self(file)),
            Err(fs::TryLockError::WouldBlock) => Err(wrong(&"another diad-run works in it")),
            Err(fs::TryLockError::Error(error)) => Err(wrong(&format_args!("cannot be locked: {error}"))),
        }
    }
}

/// The file, and how it was when it was last looked at.
struct File {
    path: PathBuf,
    seen: Option<SystemTime>,
    /// The versions in use then, by their folders.
    models: BTreeMap<PathBuf, PathBuf>,
    looked: Instant,
}

impl File {
    fn of(path: &Path, lines: &[Handle]) -> Self {
        // What they were started with: another may be in use by now.
        let model = |handle: &Handle| Some((handle.line.versions.clone()?, handle.line.model.clone().into()));
        let models = lines.iter().filter_map(model).collect();
        Self { path: path.to_owned(), seen: modified(path), models, looked: Instant::now() }
    }

    /// What is different than before, where some time has passed. A file that is gone has not changed: it may be on its way to its
    /// place.
    fn look(&mut self, lines: &[Handle]) -> Changed {
        if self.looked.elapsed() < FILE {
            return Changed::default();
        }
        self.looked = Instant::now();
        let (now, models) = (modified(&self.path), in_use(lines));
        let changed = Changed { file: now.is_some() && now != self.seen, models: models != self.models };
        if changed.file {
            self.seen = now;
        }
        self.models = models;
        changed
    }
}

/// What is different than before.
#[derive(Default)]
struct Changed {
    /// The file of lines.
    file: bool,
    /// Which version of a model is in use.
    models: bool,
}

/// The versions in use, by their folders.
fn in_use(lines: &[Handle]) -> BTreeMap<PathBuf, PathBuf> {
    let folders = lines.iter().filter_map(|handle| handle.line.versions.as_ref());
    folders.filter_map(|folder| Some((folder.clone(), versions::resolve(folder).ok()?))).collect()
}

fn modified(path: &Path) -> Option<SystemTime> {
    std::fs::metadata(path).and_then(|file| file.modified()).ok()
}

/// Tells the service manager that work goes on.
struct Watchdog {
    every: Duration,
    fed: Option<Instant>,
}

impl Watchdog {
    /// If there is one that wants to be told.
    fn find() -> Option<Self> {
        let every = sd_notify::watchdog_enabled()?;
        Some(Self { every: every / 3, fed: None })
    }

    fn feed(&mut self) {
        if self.fed.is_none_or(|fed| fed.elapsed() >= self.every) {
            self.fed = Some(Instant::now());
            notify(&[sd_notify::NotifyState::Watchdog]);
        }
    }
}

/// Tells the service manager, if there is one.
fn notify(states: &[sd_notify::NotifyState<'_>]) {
    let _ = sd_notify::notify(states);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signal_that_comes_while_lines_end_is_not_lost() {
        let (events, woken) = bounded(EVENTS);
        for event in [Event::Over, Event::Stop, Event::Reload] {
            events.send(event).unwrap();
        }
        assert!(wait_for((&events, &woken), &[], Duration::ZERO), "there is none to wait for");
        assert_eq!(woken.try_iter().collect::<Vec<_>>(), [Event::Over, Event::Stop, Event::Reload]);

        // A line that does not end by itself: its model is not there, and it is tried again and again.
        let folder = tempfile::tempdir().unwrap();
        let state_dir = folder.path().to_owned();
        for event in [Event::Stop, Event::Over, Event::Reload] {
            events.send(event).unwrap();
        }
        gst::init().unwrap();
        gstdiad::plugin_register_static().unwrap();
        let line = crate::config::Line::of_test("tries", "videotestsrc ! videoconvert");
        let handle = Handle::start(line, &state_dir, &Arc::default(), events.clone()).unwrap();
        let over = wait_for((&events, &woken), &[&handle], 2 * TICK);
        let mut left: Vec<Event> = woken.try_iter().collect();
        left.retain(|event| *event != Event::Over);
        assert_eq!((over, left), (false, vec![Event::Stop, Event::Reload]));
        handle.tell(Command::Stop);
        assert!(wait_for((&events, &woken), &[&handle], Duration::from_secs(30)));
    }
}
