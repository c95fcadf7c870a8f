//! Progress: bars on a terminal, and a line now and then in a pipe or a log file.

use std::cell::RefCell;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

use super::console::Console;
use super::{Context, messages};
use crate::train;

/// A line in a pipe after this long ...
const LINE_EVERY: Duration = Duration::from_secs(10);
/// ... or after this share of the work, but never more often than [`LINE_PAUSE`].
const LINE_SHARE: usize = 20; // a twentieth
const LINE_PAUSE: Duration = Duration::from_secs(1);

/// Progress of one thing that is counted. Dropped before its end, it leaves what was last shown.
pub(super) struct Task {
    console: Console,
    name: &'static str,
    first: usize,
    total: usize,
    bar: Option<ProgressBar>,
    started: Instant,
    last: Instant,
    told: usize,
}

impl Task {
    /// `first` of the `total` things were done before.
    pub(super) fn new(console: Console, name: &'static str, first: usize, total: usize) -> Self {
        let bar = console.bars().map(|bars| {
            let bar = bars.add(ProgressBar::new(total as u64));
            bar.set_style(style());
            bar.set_prefix(name);
            bar.set_position(first as u64);
            bar.reset_eta();
            bar.enable_steady_tick(Duration::from_millis(250));
            bar
        });
        let now = Instant::now();
        Self { console, name, first, total, bar, started: now, last: now, told: first }
    }

    /// `done` of the total are done; `detail` is written behind.
    pub(super) fn set(&mut self, done: usize, detail: &str) {
        if let Some(bar) = &self.bar {
            bar.set_message(detail.to_owned());
            bar.set_position(done as u64);
            return;
        }
        let now = Instant::now();
        if is_due(done, self.told, self.total, now - self.last) {
            let left =
                time_left(now - self.started, done - self.first.min(done), self.total - self.first.min(self.total));
            let percent = 100 * done / self.total.max(1);
            let detail = if detail.is_empty() { String::new() } else { format!(", {detail}") };
            self.console.note(format_args!("{}: {done}/{} ({percent} %){detail}{left}", self.name, self.total));
            (self.last, self.told) = (now, done);
        }
    }

    /// All is done.
    pub(super) fn finish(self) {
        if let Some(bar) = &self.bar {
            bar.finish();
        }
    }
}

impl Drop for Task {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar
            && !bar.is_finished()
        {
            bar.abandon();
        }
    }
}

/// Whether to write a line when `done` of `total` things are done; the last one said `told` and is `since` old.
fn is_due(done: usize, told: usize, total: usize, since: Duration) -> bool {
    let share = |done: usize| done * LINE_SHARE / total.max(1);
    let further = share(done) > share(told) && since >= LINE_PAUSE;
    let last = done >= total && told < total;
    last || further || since >= LINE_EVERY
}

fn style() -> ProgressStyle {
    ProgressStyle::with_template("{prefix:>12} {bar:32.cyan/dim} {pos}/{len} {elapsed} (left {eta}) {msg}")
        .unwrap_or_else(|_| ProgressStyle::default_bar())
        .progress_chars("━╸─")
}

/// `, 1 min 20 s left`; empty until there is enough to go by.
fn time_left(spent: Duration, done: usize, total: usize) -> String {
    if done == 0 || done >= total || spent < LINE_PAUSE {
        return String::new();
    }
    let left = spent.mul_f64((total - done) as f64 / done as f64);
    format!(", {} left", duration(left))
}

/// `45 s`, `1 min 20 s`, `2 h 5 min`.
pub(super) fn duration(time: Duration) -> String {
    let seconds = time.as_secs_f64().round() as u64;
    match seconds {
        0..60 => format!("{seconds} s"),
        60..3600 => format!("{} min {} s", seconds / 60, seconds % 60),
        _ => format!("{} h {} min", seconds / 3600, seconds % 3600 / 60),
    }
}

/// Shows the progress of a training run.
pub(super) struct TrainingProgress<'a> {
    context: &'a Context,
    current: RefCell<Current>,
}

#[derive(Default)]
struct Current {
    task: Option<Task>,
    /// Loss, smoothed over the last steps so that one can see where it goes.
    loss: Option<f64>,
    first_step: usize,
}

/// Name of the stage of the optimizer's steps.
const TRAINING: &str = "training";
/// Weight of a new loss in the one that is shown.
const LOSS_WEIGHT: f64 = 0.05;

impl<'a> TrainingProgress<'a> {
    pub(super) fn new(context: &'a Context) -> Self {
        Self { context, current: RefCell::default() }
    }

    fn show(&self, name: &'static str, done: usize, total: usize, detail: &str) {
        let mut current = self.current.borrow_mut();
        if current.task.as_ref().is_none_or(|task| task.name != name) {
            current.task.take().into_iter().for_each(Task::finish);
            let first = if name == TRAINING { current.first_step } else { 0 };
            current.task = Some(Task::new(self.context.console.clone(), name, first, total));
        }
        if let Some(task) = &mut current.task {
            task.set(done, detail);
        }
        if done >= total {
            current.task.take().into_iter().for_each(Task::finish);
        }
    }
}

impl train::Observer for TrainingProgress<'_> {
    fn event(&self, event: &train::Event<'_>) {
        let console = &self.context.console;
        match event {
            train::Event::Images { done, total } => self.show("images", *done, *total, ""),
            train::Event::Skipped { path, reason } => {
                let name = path.display().to_string();
                let reason = reason.strip_prefix(&format!("{name}: ")).unwrap_or(reason);
                console.warn(format_args!("{name}: {reason}; left out"));
            }
            train::Event::NotLocated { path } => console.warn(messages::not_located(path)),
            train::Event::Empty { path } => console.warn(format_args!(
                "{}: of one colour or almost black; from now on such a frame is good",
                path.display()
            )),
            train::Event::SampleDepth { depth } => self.context.warn_of_depth(depth),
            train::Event::Spilled => {
                console.note("images exceed training.cache_mib: the rest goes to a temporary file beside the model");
            }
            train::Event::Aligned { class, found, of } => {
                console.note(format_args!("{class}: {found} of {of} good parts are found where they lie"));
            }
            train::Event::Groups { class, paths, groups, problem } => {
                if let Some(problem) = problem {
                    console.warn(messages::ungrouped(class, *problem));
                }
                console.note(messages::groups(class, paths, groups));
            }
            train::Event::Started { step, parameters, networks } => {
                self.current.borrow_mut().first_step = *step;
                let from = if *step > 0 { format!(", going on after step {step}") } else { String::new() };
                let of = if *networks > 1 { format!(" of {networks} networks") } else { String::new() };
                console.note(format_args!("training {parameters} parameters{of}{from}"));
            }
            train::Event::Step { step, steps, loss, images_per_second } => {
                let shown = {
                    let mut current = self.current.borrow_mut();
                    let shown = current.loss.map_or(*loss, |old| old + LOSS_WEIGHT * (loss - old));
                    current.loss = Some(shown);
                    shown
                };
                let detail = format!("loss {shown:.4}, {images_per_second:.1} images/s");
                self.show(TRAINING, *step, *steps, &detail);
            }
            train::Event::Checkpoint { path } => console.note(format_args!("checkpoint {}", path.display())),
            train::Event::Calibration { done, total } => self.show("calibration", *done, *total, ""),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_due_after_a_share_or_a_while_and_at_the_end() {
        let line = |done, told, ms| is_due(done, told, 1000, Duration::from_millis(ms));
        assert!(!line(49, 0, 5000), "less than a twentieth");
        assert!(line(50, 0, 1000));
        assert!(!line(50, 0, 999), "too soon");
        assert!(line(1, 0, 10_000));
        assert!(line(1000, 999, 0));
        assert!(!line(1000, 1000, 0), "the end is told once");
    }

    #[test]
    fn times_are_written_for_people() {
        assert_eq!(duration(Duration::from_millis(45_400)), "45 s");
        assert_eq!(duration(Duration::from_secs(80)), "1 min 20 s");
        assert_eq!(duration(Duration::from_secs(7_500)), "2 h 5 min");
        assert_eq!(time_left(Duration::from_secs(10), 10, 100), ", 1 min 30 s left");
        assert_eq!(time_left(Duration::from_secs(10), 0, 100), "");
        assert_eq!(time_left(Duration::from_secs(10), 100, 100), "");
    }
}
