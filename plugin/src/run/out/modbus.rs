//! A Modbus TCP server: a controller asks, and a rejection is what it concludes from silence.
//!
//! Each line is a unit. All numbers are big-endian, those of two registers with the high word first.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::future::{Ready, ready};
use std::net::{SocketAddr, TcpListener};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use diad::detector::Verdict;
use gstdiad::result::DiadResult;
use tokio::sync::Notify;
use tokio_modbus::server::Service as ModbusService;
use tokio_modbus::server::tcp::{Server as TcpServer, accept_tcp_connection};
use tokio_modbus::{ExceptionCode, Request, Response, SlaveRequest};

use super::super::board::Board;
use super::super::read::Section;
use super::super::say;
use super::super::state::State;
use super::super::tally::lock;
use super::Serves;

/// The heartbeat counts in steps of so many milliseconds.
const HEARTBEAT: u128 = 100;
/// Results that a unit remembers.
const RING: usize = 16;
/// Registers of a part's name, two letters each.
const PART: usize = 8;
/// Input registers of a unit.
const INPUTS: usize = 110;
/// Holding registers of a unit.
const HOLDINGS: usize = 19;

/// Where controllers ask.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Modbus {
    listen: SocketAddr,
    /// The line of each unit.
    units: BTreeMap<u8, String>,
    warn_passes: bool,
    /// A part has passed for so long.
    hold: Duration,
}

impl Modbus {
    pub(crate) fn read(mut section: Section<'_>, lines: &BTreeSet<String>) -> Option<Self> {
        let listen = section.text("listen");
        if listen.is_none() && !section.has("listen") {
            section.mistake("listen", "modbus.listen: is missing, expected for instance \"10.1.1.1:502\"".into());
        }
        let address = listen.and_then(|listen| {
            let address = listen.parse::<SocketAddr>().ok().filter(|address| address.port() > 0);
            if address.is_none() {
                section.wrong("listen", "address and port, for instance \"10.1.1.1:502\", or \"0.0.0.0:502\" for all");
            }
            address
        });
        let warn_passes = section.boolean("warn-passes").unwrap_or(false);
        let hold = section.duration("hold").unwrap_or(Duration::from_secs(1));
        let mut units = BTreeMap::new();
        match section.section("units") {
            None if !section.has("units") => {
                section.mistake("units", "modbus.units: is missing, expected for instance { cap = 1 }".into());
            }
            None => {}
            Some(table) if table.entries().next().is_none() => {
                section.wrong("units", "the unit of at least one line, for instance { cap = 1 }");
            }
            Some(table) => {
                let known: Vec<&str> = lines.iter().map(String::as_str).collect();
                for (line, value) in table.entries() {
                    if !lines.contains(line) {
                        let path = table.path(line);
                        table.mistake(line, format!("{path}: is no line; known are {}", known.join(", ")));
                    }
                    let unit = value.as_integer().and_then(|unit| u8::try_from(unit).ok());
                    match unit.filter(|unit| (1..=247).contains(unit)) {
                        Some(unit) if !units.contains_key(&unit) => drop(units.insert(unit, line.to_owned())),
                        Some(_) => table.wrong(line, "a unit that no other line has"),
                        None => table.wrong(line, "a unit from 1 to 247"),
                    }
                }
            }
        }
        section.finish();
        Some(Self { listen: address?, units, warn_passes, hold })
    }
}

/// What is known of a unit's line.
struct Unit {
    line: String,
    last: Option<Last>,
    /// Low word of the number, and the verdict; the newest first.
    ring: VecDeque<[u16; 2]>,
    counts: [u32; Verdict::ALL.len()],
    holding: [u16; HOLDINGS],
}

/// The newest result of a line.
#[derive(Clone, Debug)]
struct Last {
    at: Instant,
    sequence: u64,
    verdict: Verdict,
    score: f32,
    threshold: f32,
    regions: usize,
    part: Option<String>,
}

/// What controllers see.
pub(super) struct Registers {
    started: Instant,
    units: BTreeMap<u8, Mutex<Unit>>,
    warn_passes: bool,
    hold: Duration,
}

/// The number of a verdict in registers: 0 is none.
fn number(verdict: Verdict) -> u16 {
    match verdict {
        Verdict::Ok => 1,
        Verdict::Warn => 2,
        Verdict::Ng => 3,
        Verdict::Uninspected => 4,
        Verdict::Error => 5,
    }
}

/// The number of a line's state.
fn state_number(state: State) -> u16 {
    match state {
        State::Stopping | State::Stopped | State::Ended => 0,
        State::Starting => 1,
        State::Idle => 2,
        State::Running => 3,
        State::CameraLost => 4,
        State::ModelError => 5,
        State::Failed | State::Stuck => 6,
    }
}

fn words(number: u32) -> [u16; 2] {
    [(number >> 16) as u16, number as u16]
}

impl Registers {
    fn new(modbus: &Modbus) -> Self {
        let unit = |line: &String| Unit {
            line: line.clone(),
            last: None,
            ring: VecDeque::new(),
            counts: Default::default(),
            holding: [0; HOLDINGS],
        };
        Self {
            started: Instant::now(),
            units: modbus.units.iter().map(|(number, line)| (*number, Mutex::new(unit(line)))).collect(),
            warn_passes: modbus.warn_passes,
            hold: modbus.hold,
        }
    }

    /// Takes a result of a line.
    pub(super) fn take(&self, result: &DiadResult) {
        let of_line = |unit: &&Mutex<Unit>| Some(&lock(unit).line) == result.line.as_ref();
        let Some(unit) = self.units.values().find(of_line) else { return };
        let finding = result.worst().and_then(|worst| worst.finding.as_ref());
        let sequence = result.sequence.unwrap_or_default();
        let mut unit = lock(unit);
        unit.last = Some(Last {
            at: Instant::now(),
            sequence,
            verdict: result.verdict,
            score: finding.map_or(f32::NAN, |finding| finding.score),
            threshold: finding.map_or(f32::NAN, |finding| finding.threshold),
            regions: result.results.iter().filter_map(|one| one.finding.as_ref()).map(|one| one.regions.len()).sum(),
            part: result.part_id.clone(),
        });
        unit.ring.push_front([sequence as u16, number(result.verdict)]);
        unit.ring.truncate(RING);
        if let Some(at) = Verdict::ALL.iter().position(|verdict| *verdict == result.verdict) {
            unit.counts[at] = unit.counts[at].wrapping_add(1);
        }
    }

    /// The input registers of a unit, whose line is in `state`.
    fn inputs(&self, unit: &Unit, state: State) -> [u16; INPUTS] {
        let mut all = [0; INPUTS];
        all[0] = (self.started.elapsed().as_millis() / HEARTBEAT) as u16;
        all[1] = state_number(state);
        if let Some(last) = &unit.last {
            let age = last.at.elapsed();
            // What an old result has said is no answer for the part that is there now.
            let answers = matches!(state, State::Running | State::Idle) && age < self.hold;
            let passes = last.verdict == Verdict::Ok || (self.warn_passes && last.verdict == Verdict::Warn);
            all[2..4].copy_from_slice(&words(last.sequence as u32));
            all[4] = number(last.verdict);
            all[5] = u16::from(answers && passes);
            all[6..8].copy_from_slice(&words(last.score.to_bits()));
            all[8..10].copy_from_slice(&words(last.threshold.to_bits()));
            all[10] = u16::try_from(last.regions).unwrap_or(u16::MAX);
            all[11] = u16::try_from(age.as_millis()).unwrap_or(u16::MAX);
            let part = last.part.as_deref().unwrap_or_default().as_bytes();
            for (register, letters) in all[12..12 + PART].iter_mut().zip(part.chunks(2)) {
                *register = u16::from_be_bytes([letters[0], letters.get(1).copied().unwrap_or_default()]);
            }
        }
        for (i, entry) in unit.ring.iter().enumerate() {
            all[20 + 2 * i..22 + 2 * i].copy_from_slice(entry);
        }
        for (i, count) in unit.counts.iter().enumerate() {
            all[100 + 2 * i..102 + 2 * i].copy_from_slice(&words(*count));
        }
        all
    }
}

impl Unit {
    /// Takes words that a controller has written; returns a part's name, if it is to hold from now on.
    fn write(&mut self, address: u16, words: &[u16]) -> Result<Option<String>, ExceptionCode> {
        let start = usize::from(address);
        let place = self.holding.get_mut(start..start + words.len()).ok_or(ExceptionCode::IllegalDataAddress)?;
        place.copy_from_slice(words);
        if std::mem::take(&mut self.holding[1]) != 0 {
            self.counts = Default::default();
        }
        if std::mem::take(&mut self.holding[18]) == 0 {
            return Ok(None);
        }
        let letters = self.holding[10..10 + PART].iter().flat_map(|word| word.to_be_bytes());
        let letters: Vec<u8> = letters.take_while(|letter| *letter != 0).collect();
        Ok(Some(String::from_utf8_lossy(&letters).trim_end().to_owned()))
    }
}

/// What a controller is answered with.
#[derive(Clone)]
struct Answers {
    registers: Arc<Registers>,
    board: Arc<Board>,
}

impl Answers {
    fn answer(&self, asked: SlaveRequest<'_>) -> Result<Response, ExceptionCode> {
        let unit = self.registers.units.get(&asked.slave).ok_or(ExceptionCode::GatewayTargetDevice)?;
        let mut unit = lock(unit);
        let seen = self.board.lines().into_iter().find(|line| line.name == unit.line);
        let part = match &asked.request {
            Request::ReadInputRegisters(address, quantity) => {
                let state = seen.map_or(State::Stopped, |line| lock(&line.status).state);
                let all = self.registers.inputs(&unit, state);
                return Ok(Response::ReadInputRegisters(part_of(&all, *address, *quantity)?));
            }
            Request::ReadHoldingRegisters(address, quantity) => {
                return Ok(Response::ReadHoldingRegisters(part_of(&unit.holding, *address, *quantity)?));
            }
            Request::WriteSingleRegister(address, word) => unit.write(*address, &[*word])?,
            Request::WriteMultipleRegisters(address, words) => unit.write(*address, words)?,
            _ => return Err(ExceptionCode::IllegalFunction),
        };
        drop(unit);
        if let (Some(part), Some(line)) = (part, seen) {
            line.tally.set_part(&part);
        }
        Ok(match asked.request {
            Request::WriteSingleRegister(address, word) => Response::WriteSingleRegister(address, word),
            Request::WriteMultipleRegisters(address, words) => {
                Response::WriteMultipleRegisters(address, u16::try_from(words.len()).unwrap_or_default())
            }
            _ => return Err(ExceptionCode::IllegalFunction),
        })
    }
}

/// Some of the registers.
fn part_of(all: &[u16], address: u16, quantity: u16) -> Result<Vec<u16>, ExceptionCode> {
    let start = usize::from(address);
    let found = all.get(start..start + usize::from(quantity)).filter(|found| !found.is_empty());
    found.map(<[u16]>::to_vec).ok_or(ExceptionCode::IllegalDataAddress)
}

impl ModbusService for Answers {
    type Request = SlaveRequest<'static>;
    type Response = Response;
    type Exception = ExceptionCode;
    type Future = Ready<Result<Response, ExceptionCode>>;

    fn call(&self, asked: Self::Request) -> Self::Future {
        ready(self.answer(asked))
    }
}

/// The thread that answers.
pub(super) struct Server {
    registers: Arc<Registers>,
    stop: Arc<Notify>,
    thread: JoinHandle<()>,
}

impl Server {
    /// Listens.
    ///
    /// # Errors
    /// When nobody may listen there, as where another program does.
    pub(super) fn start(modbus: &Modbus, board: Arc<Board>) -> Result<Self, String> {
        let wrong = |error: std::io::Error| format!("listen = \"{}\": {error}", modbus.listen);
        let listener = TcpListener::bind(modbus.listen).map_err(wrong)?;
        listener.set_nonblocking(true).map_err(wrong)?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build().map_err(wrong)?;
        let registers = Arc::new(Registers::new(modbus));
        let (answers, stop) = (Answers { registers: registers.clone(), board }, Arc::new(Notify::new()));
        let told = stop.clone();
        let work = async move {
            let server = TcpServer::new(tokio::net::TcpListener::from_std(listener)?);
            let connected = |stream, from| {
                let answers = answers.clone();
                async move { accept_tcp_connection(stream, from, |_| Ok(Some(answers.clone()))) }
            };
            // A controller that talks nonsense loses its connection, and may come again.
            server.serve_until(&connected, |_| {}, async move { told.notified().await }).await
        };
        let run = move || {
            if let Err(error) = runtime.block_on(work) {
                say("", &format!("modbus: {error}"));
            }
        };
        let thread = std::thread::Builder::new().name("diad-modbus".into()).spawn(run).map_err(wrong)?;
        Ok(Self { registers, stop, thread })
    }

    pub(super) fn registers(&self) -> Arc<Registers> {
        self.registers.clone()
    }
}

impl Serves for Server {
    fn stop(self) {
        self.stop.notify_one();
        let _ = self.thread.join();
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn modbus() -> Modbus {
        let units = BTreeMap::from([(1, "cap".to_owned()), (7, "label".to_owned())]);
        Modbus { listen: "127.0.0.1:1502".parse().unwrap(), units, warn_passes: false, hold: Duration::from_secs(60) }
    }

    fn result(line: &str, sequence: u64, verdict: Verdict) -> DiadResult {
        let part_id = Some("P4711".to_owned());
        let line = Some(line.to_owned());
        DiadResult { line, sequence: Some(sequence), verdict, part_id, ..DiadResult::unseen(None) }
    }

    #[test]
    fn a_unit_has_the_newest_result_and_the_last_sixteen() {
        let registers = Registers::new(&modbus());
        for sequence in 65_530..65_560 {
            let verdict = if sequence % 2 == 0 { Verdict::Ok } else { Verdict::Ng };
            registers.take(&result("label", sequence, verdict));
        }
        registers.take(&result("other", 1, Verdict::Ok));
        let all = registers.inputs(&lock(&registers.units[&7]), State::Running);
        assert_eq!(all[1..6], [3, 1, 23, 3, 0], "running; 65559 in two words; ng, so it does not pass");
        let ring: Vec<[u16; 2]> = all[20..52].chunks(2).map(|pair| [pair[0], pair[1]]).collect();
        assert_eq!(ring[0], [23, 3]);
        assert_eq!(ring[15], [8, 1]);
        assert_eq!(&all[12..15], &[0x5034, 0x3731, 0x3100]); // P4711
        let ok = Verdict::ALL.iter().position(|verdict| *verdict == Verdict::Ok).unwrap();
        assert_eq!(all[100 + 2 * ok..102 + 2 * ok], [0, 15]);
        let other = registers.inputs(&lock(&registers.units[&1]), State::Starting);
        assert!(other[1] == 1 && other[2..].iter().all(|register| *register == 0), "nothing has come of it");
    }

    #[test]
    fn a_part_passes_only_while_its_answer_is_fresh_and_the_line_runs() {
        let passes = |modbus: &Modbus, verdict, state| {
            let registers = Registers::new(modbus);
            registers.take(&result("cap", 1, verdict));
            registers.inputs(&lock(&registers.units[&1]), state)[5] == 1
        };
        let plain = modbus();
        for verdict in Verdict::ALL {
            assert_eq!(passes(&plain, verdict, State::Running), verdict == Verdict::Ok, "{verdict}");
            assert!(!passes(&plain, verdict, State::CameraLost), "{verdict}");
            assert!(!passes(&Modbus { hold: Duration::ZERO, ..plain.clone() }, verdict, State::Running), "{verdict}");
        }
        assert!(passes(&Modbus { warn_passes: true, ..plain.clone() }, Verdict::Warn, State::Idle));
        assert!(!passes(&Modbus { warn_passes: true, ..plain }, Verdict::Ng, State::Running));
    }

    #[test]
    fn a_controller_says_which_part_comes_and_sets_counts_back() {
        let registers = Registers::new(&modbus());
        registers.take(&result("cap", 1, Verdict::Ng));
        let mut unit = lock(&registers.units[&1]);
        let name = [0x5034, 0x3731, 0x3200, 0, 0, 0, 0, 0];
        assert_eq!(unit.write(10, &name), Ok(None));
        assert_eq!(unit.write(18, &[1]), Ok(Some("P4712".into())));
        assert_eq!(unit.holding[18], 0, "ready for the next");
        assert_eq!(unit.write(1, &[1]), Ok(None));
        assert_eq!(unit.counts, [0; 5]);
        assert_eq!(unit.write(18, &[1, 2]), Err(ExceptionCode::IllegalDataAddress));
    }

    proptest! {
        #[test]
        fn no_address_is_outside(address: u16, quantity: u16) {
            let all: Vec<u16> = (0..INPUTS as u16).collect();
            let inside = quantity > 0 && usize::from(address) + usize::from(quantity) <= INPUTS;
            match part_of(&all, address, quantity) {
                Ok(found) => prop_assert!(inside && found[0] == address && found.len() == usize::from(quantity)),
                Err(code) => prop_assert!(!inside && code == ExceptionCode::IllegalDataAddress),
            }
        }
    }
}
