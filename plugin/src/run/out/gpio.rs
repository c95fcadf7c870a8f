//! Outputs of this machine: a pulse that throws a part off the line, timed from when its frame came, and a level that says that all is
//! well. That level falls with the wire, with the power and with this program, so that whoever watches it stops the line.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded};
use diad::detector::Verdict;
use diad::text::now_ms;
use gpiocdev::Request;
use gpiocdev::line::Value;
use gstdiad::result::{DiadResult, millis_of};

use super::super::board::Board;
use super::super::read::Section;
use super::super::say;
use super::super::state::State;
use super::super::tally::lock;
use super::Serves;

/// How often is looked whether all is well.
const TICK: Duration = Duration::from_millis(10);
/// Decisions that may wait.
const WAITING: usize = 1024;
/// A frame is no older; a clock that was set would say otherwise.
const OLDEST: Duration = Duration::from_secs(60);

/// What happens when a decision comes later than its part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum OnLate {
    /// All is no longer well, until the program is started anew or the section changes.
    Fault,
    /// The pulse comes at once.
    Pulse,
}

/// The gate of a line.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Gate {
    chip: String,
    /// Offsets of the outputs on the chip.
    reject: Option<u32>,
    healthy: Option<u32>,
    /// From when the frame came until its part is at the gate.
    delay: Duration,
    pulse: Duration,
    verdicts: Vec<Verdict>,
    on_late: OnLate,
}

impl Gate {
    /// Those of all lines, by their names.
    pub(super) fn read(section: Section<'_>, lines: &BTreeSet<String>) -> BTreeMap<String, Self> {
        let known: Vec<&str> = lines.iter().map(String::as_str).collect();
        let mut gates = BTreeMap::new();
        for (line, table) in section.tables() {
            if !lines.contains(line) {
                section.mistake(line, format!("{}: is no line; known are {}", section.path(line), known.join(", ")));
            }
            gates.extend(Self::read_one(table).map(|gate| (line.to_owned(), gate)));
        }
        gates
    }

    fn read_one(mut section: Section<'_>) -> Option<Self> {
        let chip = section.text("chip").unwrap_or_else(|| "/dev/gpiochip0".to_owned());
        let (reject, healthy) = (section.integer("reject", 0..=u32::MAX), section.integer("healthy", 0..=u32::MAX));
        if reject.is_none() && healthy.is_none() && !section.has("reject") && !section.has("healthy") {
            let path = section.path("reject");
            section.mistake("", format!("{path}: is missing, expected the offset of an output on {chip}"));
        }
        if reject.is_some() && reject == healthy {
            section.wrong("healthy", "another output than that of reject");
        }
        let delay = section.duration("delay");
        if section.has("reject") && !section.has("delay") {
            let path = section.path("delay");
            section.mistake("", format!("{path}: is missing, expected the time from the camera to the gate"));
        }
        let pulse = section.duration("pulse").unwrap_or(Duration::from_millis(40));
        let on_late = [("fault", OnLate::Fault), ("pulse", OnLate::Pulse)];
        let on_late = section.choice("on-late", &on_late).unwrap_or(OnLate::Fault);
        let text = section.text("verdicts").unwrap_or_else(|| "ng+uninspected+error".to_owned());
        let verdicts: Option<Vec<Verdict>> = text.split('+').map(|name| name.parse().ok()).collect();
        if verdicts.is_none() {
            section.wrong("verdicts", "some of ok, warn, ng, uninspected, error, with + between them");
        }
        section.finish();
        let delay = delay.or(reject.is_none().then_some(Duration::ZERO))?;
        Some(Self { chip, reject, healthy, delay, pulse, verdicts: verdicts?, on_late })
    }
}

/// The outputs of a gate.
trait Pins {
    fn reject(&mut self, on: bool) -> Result<(), String>;
    fn healthy(&mut self, on: bool) -> Result<(), String>;
}

/// Outputs of the kernel's. They are given back, and fall, when the program ends.
struct Chip {
    request: Request,
    reject: Option<u32>,
    healthy: Option<u32>,
}

impl Chip {
    fn open(gate: &Gate) -> Result<Self, String> {
        let offsets: Vec<u32> = gate.reject.into_iter().chain(gate.healthy).collect();
        let request = Request::builder()
            .on_chip(&gate.chip)
            .with_consumer("diad")
            .with_lines(&offsets)
            .as_output(Value::Inactive)
            .request()
            .map_err(|error| format!("chip = {:?}: {error}", gate.chip))?;
        Ok(Self { request, reject: gate.reject, healthy: gate.healthy })
    }

    fn set(&self, offset: Option<u32>, on: bool) -> Result<(), String> {
        let value = if on { Value::Active } else { Value::Inactive };
        let set = |offset| self.request.set_value(offset, value).map(drop).map_err(|error| error.to_string());
        offset.map_or(Ok(()), set)
    }
}

impl Pins for Chip {
    fn reject(&mut self, on: bool) -> Result<(), String> {
        self.set(self.reject, on)
    }

    fn healthy(&mut self, on: bool) -> Result<(), String> {
        self.set(self.healthy, on)
    }
}

/// When the gate is to be thrown. No clock in it.
struct Pulses {
    delay: Duration,
    pulse: Duration,
    on_late: OnLate,
    /// Starts of pulses that are not over.
    starts: VecDeque<Instant>,
    late: u64,
    fault: bool,
}

impl Pulses {
    fn of(gate: &Gate) -> Self {
        let Gate { delay, pulse, on_late, .. } = *gate;
        Self { delay, pulse, on_late, starts: VecDeque::new(), late: 0, fault: false }
    }

    /// The part whose frame came then is to go. Whether that was decided in time.
    fn reject(&mut self, came: Instant, now: Instant) -> bool {
        let at = came + self.delay;
        let in_time = at >= now;
        if !in_time {
            self.late += 1;
            self.fault |= self.on_late == OnLate::Fault;
        }
        self.starts.push_back(at.max(now));
        in_time
    }

    /// Whether the gate is thrown.
    fn is_on(&mut self, now: Instant) -> bool {
        self.starts.retain(|start| *start + self.pulse > now);
        self.starts.iter().any(|start| *start <= now)
    }

    /// When that changes next, if it does.
    fn next(&self, now: Instant) -> Option<Instant> {
        let edges = self.starts.iter().flat_map(|start| [*start, *start + self.pulse]);
        edges.filter(|edge| *edge > now).min()
    }
}

/// A part that is to go.
struct Decision {
    came: Instant,
}

/// The gates of all lines. A thread ends when nobody has the way to it.
pub(super) struct Gates {
    lines: BTreeMap<String, Arc<Way>>,
    threads: Vec<JoinHandle<()>>,
}

/// The way to a gate.
pub(super) struct Way {
    verdicts: Vec<Verdict>,
    decisions: Sender<Decision>,
    /// Decisions that found no room: the gate is stuck, and all is no longer well.
    lost: Arc<AtomicU64>,
}

impl Way {
    /// Takes a result of the line.
    pub(super) fn take(&self, result: &DiadResult) {
        if self.verdicts.contains(&result.verdict) && self.decisions.try_send(Decision { came: came(result) }).is_err()
        {
            self.lost.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// When the frame of a result came.
fn came(result: &DiadResult) -> Instant {
    let now = Instant::now();
    let inside = Duration::from_nanos(result.results.iter().map(|one| one.timing.total).sum());
    let age = result.utc.as_deref().and_then(millis_of).and_then(|came| now_ms().checked_sub(came));
    let age = age.map(Duration::from_millis).filter(|age| (inside..OLDEST).contains(age)).unwrap_or(inside);
    now.checked_sub(age).unwrap_or(now)
}

impl Gates {
    /// Takes the outputs.
    ///
    /// # Errors
    /// When there is no such chip or output, or somebody else has it.
    pub(super) fn start(gates: &BTreeMap<String, Gate>, board: &Arc<Board>) -> Result<Self, String> {
        let mut all = Self { lines: BTreeMap::new(), threads: Vec::new() };
        for (line, gate) in gates {
            let mut chip = Chip::open(gate).map_err(|reason| format!("{line}: {reason}"))?;
            let (decisions, waiting) = bounded(WAITING);
            let lost = Arc::new(AtomicU64::new(0));
            let way = Way { verdicts: gate.verdicts.clone(), decisions, lost: lost.clone() };
            all.lines.insert(line.clone(), Arc::new(way));
            let (name, board, mut pulses) = (line.clone(), board.clone(), Pulses::of(gate));
            let work = move || {
                let is_well = || {
                    let state = board.lines().into_iter().find(|seen| seen.name == name);
                    let state = state.map(|seen| lock(&seen.status).state);
                    matches!(state, Some(State::Running | State::Idle)) && lost.load(Ordering::Relaxed) == 0
                };
                serve(&name, &waiting, &mut pulses, &is_well, &mut chip);
            };
            let thread = std::thread::Builder::new().name("diad-gate".into()).spawn(work);
            all.threads.push(thread.map_err(|error| format!("{line}: no thread: {error}"))?);
        }
        Ok(all)
    }

    pub(super) fn ways(&self) -> BTreeMap<String, Arc<Way>> {
        self.lines.clone()
    }
}

impl Serves for Gates {
    /// Lets both outputs of every gate fall. Nobody may have the ways to them any more.
    fn stop(mut self) {
        self.lines.clear();
        self.threads.into_iter().for_each(|thread| drop(thread.join()));
    }
}

/// Throws a gate until nobody can decide any more; then both outputs fall.
fn serve(
    name: &str,
    waiting: &Receiver<Decision>,
    pulses: &mut Pulses,
    is_well: &dyn Fn() -> bool,
    pins: &mut dyn Pins,
) {
    let (mut thrown, mut well) = (None, None);
    loop {
        let now = Instant::now();
        let patience = pulses.next(now).map_or(TICK, |edge| edge.duration_since(now).min(TICK));
        match waiting.recv_timeout(patience) {
            Ok(decision) => {
                let in_time = pulses.reject(decision.came, Instant::now());
                if !in_time && pulses.late == 1 {
                    say(name, "gpio: a decision came later than its part: delay is too short, or the model too slow");
                }
            }
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => break,
        }
        let on = pulses.is_on(Instant::now());
        let wish = is_well() && !pulses.fault;
        let set = (thrown.replace(on) != Some(on)).then(|| pins.reject(on));
        let told = (well.replace(wish) != Some(wish)).then(|| pins.healthy(wish));
        if let Some(reason) = [set, told].into_iter().flatten().find_map(Result::err)
            && !std::mem::replace(&mut pulses.fault, true)
        {
            say(name, &format!("gpio: an output cannot be set: {reason}"));
        }
    }
    let _ = pins.reject(false).and_then(|()| pins.healthy(false)); // the kernel lets them fall as well
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use proptest::prelude::*;

    use super::*;

    fn gate(on_late: OnLate) -> Gate {
        Gate {
            chip: "/dev/none".into(),
            reject: Some(17),
            healthy: Some(18),
            delay: Duration::from_millis(350),
            pulse: Duration::from_millis(40),
            verdicts: vec![Verdict::Ng],
            on_late,
        }
    }

    proptest! {
        /// Whatever is decided when: the gate is thrown for each part while it passes, and only then; what is late is counted.
        #[test]
        fn the_gate_is_thrown_while_a_part_passes(decided in prop::collection::vec((0u64..2000, 0u64..400), 0..20), pulses_late: bool) {
            let on_late = if pulses_late { OnLate::Pulse } else { OnLate::Fault };
            let (mut pulses, start) = (Pulses::of(&gate(on_late)), Instant::now());
            let at = |ms: u64| start + Duration::from_millis(ms);
            // A frame that came at `came` is decided on `took` later.
            let mut decided: Vec<(u64, u64)> = decided.into_iter().map(|(came, took)| (came + took, came)).collect();
            decided.sort_unstable();
            let (mut next, mut thrown) = (0, Vec::new());
            for now in 0..3000 {
                while next < decided.len() && decided[next].0 == now {
                    let (_, came) = decided[next];
                    prop_assert_eq!(pulses.reject(at(came), at(now)), came + 350 >= now);
                    thrown.push((came + 350).max(now));
                    next += 1;
                }
                let expected = thrown.iter().any(|&start| (start..start + 40).contains(&now));
                prop_assert_eq!(pulses.is_on(at(now)), expected, "at {}", now);
                let edge = thrown.iter().flat_map(|&start| [start, start + 40]).filter(|&edge| edge > now).min();
                prop_assert_eq!(pulses.next(at(now)), edge.map(at));
            }
            let late = decided.iter().filter(|(now, came)| came + 350 < *now).count() as u64;
            prop_assert_eq!((pulses.late, pulses.fault), (late, late > 0 && !pulses_late));
        }
    }

    /// What was set, in order.
    #[derive(Default)]
    struct Recorded(RefCell<Vec<(&'static str, bool)>>, bool);

    impl Pins for Recorded {
        fn reject(&mut self, on: bool) -> Result<(), String> {
            self.0.borrow_mut().push(("reject", on));
            if self.1 && on { Err("no output".into()) } else { Ok(()) }
        }

        fn healthy(&mut self, on: bool) -> Result<(), String> {
            self.0.borrow_mut().push(("healthy", on));
            Ok(())
        }
    }

    fn served(gate: &Gate, came: Instant, broken: bool) -> Vec<(&'static str, bool)> {
        let mut pins = Recorded(RefCell::default(), broken);
        let (decisions, waiting) = bounded(4);
        decisions.send(Decision { came }).unwrap();
        let hold = move || {
            // Until the pulse is over: it cannot end later than that.
            let until = Instant::now() + Duration::from_millis(120);
            while Instant::now() < until {
                std::thread::yield_now();
            }
            drop(decisions);
        };
        let held = std::thread::Builder::new().name("decides".into()).spawn(hold).unwrap();
        serve("cap", &waiting, &mut Pulses::of(gate), &|| true, &mut pins);
        held.join().unwrap();
        pins.0.into_inner()
    }

    #[test]
    fn outputs_rise_and_fall_and_end_low() {
        let gate = Gate { delay: Duration::from_millis(20), ..gate(OnLate::Fault) };
        let (on, off) = (true, false);
        let ends = [("reject", off), ("healthy", off)];
        let good = [("reject", off), ("healthy", on), ("reject", on), ("reject", off)];
        assert_eq!(served(&gate, Instant::now(), false), [&good[..], &ends].concat());
        let late = [("reject", on), ("healthy", off), ("reject", off)];
        let long_ago = Instant::now().checked_sub(Duration::from_millis(500)).unwrap();
        assert_eq!(served(&gate, long_ago, false), [&late[..], &ends].concat());
        let broken = [("reject", off), ("healthy", on), ("reject", on), ("healthy", off), ("reject", off)];
        assert_eq!(served(&gate, Instant::now(), true), [&broken[..], &ends].concat());
    }

    #[test]
    fn a_frame_came_before_its_result() {
        let old = came(&DiadResult { utc: Some("2001-01-01T00:00:00.000Z".into()), ..DiadResult::unseen(None) });
        assert!(old.elapsed() < Duration::from_secs(1), "a clock that was set is not believed");
        let now = came(&DiadResult { utc: Some(gstdiad::result::utc_now()), ..DiadResult::unseen(None) });
        assert!(now.elapsed() < Duration::from_secs(1));
    }
}
