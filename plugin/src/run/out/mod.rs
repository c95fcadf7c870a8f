//! Results on their way out of the program: to whom, which of them, and what waits where.
//!
//! Those for receivers that may be away go through an [`Outbox`] on disk, so that a line never waits for a socket and an outage costs
//! nothing; `mqtt` and `webhook` empty one each. `modbus` has the newest in memory, for a controller that asks; `gpio` throws a gate.

mod gpio;
mod measures;
mod modbus;
mod mqtt;
mod outbox;
mod tls;
mod webhook;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::{Arc, PoisonError, RwLock};

use gstdiad::result::DiadResult;

use self::gpio::{Gate, Gates, Way};
pub(crate) use self::measures::{Labels, Measures};
use self::modbus::Modbus;
use self::mqtt::Mqtt;
pub(crate) use self::mqtt::greet;
pub(crate) use self::outbox::Outbox;
use self::outbox::Waiting;
use self::webhook::Webhook;
use super::board::Board;
use super::read::Section;
use super::say;

/// The receivers that a file names.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Receivers {
    pub(crate) mqtt: Option<Mqtt>,
    webhook: Option<Webhook>,
    modbus: Option<Modbus>,
    gpio: Option<BTreeMap<String, Gate>>,
}

impl Receivers {
    /// From the sections of a file with lines of these names.
    pub(crate) fn read(file: &mut Section<'_>, lines: &BTreeSet<String>) -> Self {
        Self {
            mqtt: file.section("mqtt").and_then(Mqtt::read),
            webhook: file.section("webhook").and_then(Webhook::read),
            modbus: file.section("modbus").and_then(|section| Modbus::read(section, lines)),
            gpio: file.section("gpio").map(|section| Gate::read(section, lines)),
        }
    }
}

/// Where the results of all lines go, whichever receivers there are just now.
#[derive(Default)]
pub(crate) struct Outlets {
    outboxes: RwLock<Vec<Arc<Outbox>>>,
    registers: RwLock<Option<Arc<modbus::Registers>>>,
    gates: RwLock<BTreeMap<String, Arc<Way>>>,
    pub(crate) measures: Measures,
}

impl Outlets {
    /// Takes a result at once. Called where the frame passes: nothing here waits.
    pub(crate) fn take_now(&self, result: &DiadResult) {
        self.measures.take(result);
        if let Some(registers) = &*self.registers.read().unwrap_or_else(PoisonError::into_inner) {
            registers.take(result);
        }
        let gates = self.gates.read().unwrap_or_else(PoisonError::into_inner);
        if let Some(gate) = result.line.as_ref().and_then(|line| gates.get(line)) {
            gate.take(result);
        }
    }

    /// Takes a result and its JSON. Called on a line's writing thread, in the order of the line; may wait for the disk.
    pub(crate) fn take(&self, result: &DiadResult, json: &[u8]) {
        self.outboxes().iter().for_each(|outbox| outbox.take(result, json));
    }

    /// Whether nobody wants JSON.
    pub(crate) fn is_empty(&self) -> bool {
        self.outboxes.read().unwrap_or_else(PoisonError::into_inner).is_empty()
    }

    /// What waits on disk.
    pub(crate) fn outboxes(&self) -> Vec<Arc<Outbox>> {
        self.outboxes.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// What serves a receiver.
trait Serves {
    /// Ends it; what is under way may leave within two seconds.
    fn stop(self);
}

/// A receiver, as the file has it, and what serves it.
struct Served<R, S>(Option<(R, S)>);

impl<R: Clone + PartialEq, S: Serves> Served<R, S> {
    /// Whether this is what is served.
    fn is(&self, wanted: Option<&R>) -> bool {
        self.0.as_ref().map(|(receiver, _)| receiver) == wanted
    }

    fn server(&self) -> Option<&S> {
        self.0.as_ref().map(|(_, server)| server)
    }

    fn stop(&mut self) {
        if let Some((_, server)) = self.0.take() {
            server.stop();
        }
    }

    /// Serves this from now on; if it is that already, nothing happens. What could not be begun is tried again at the next call.
    fn renew(&mut self, wanted: Option<&R>, start: impl FnOnce(&R) -> Result<S, String>) -> Result<(), String> {
        if self.is(wanted) {
            return Ok(());
        }
        self.stop();
        self.0 = wanted.map(|wanted| Ok::<_, String>((wanted.clone(), start(wanted)?))).transpose()?;
        Ok(())
    }
}

/// The receivers that are served.
pub(crate) struct Outputs {
    name: String,
    board: Arc<Board>,
    mqtt: Served<Mqtt, mqtt::Sender>,
    webhook: Served<Webhook, webhook::Sender>,
    modbus: Served<Modbus, modbus::Server>,
    gates: Served<BTreeMap<String, Gate>, Gates>,
}

impl Outputs {
    /// None yet.
    pub(crate) fn new(name: &str, board: Arc<Board>) -> Self {
        let (mqtt, webhook, modbus, gates) = (Served(None), Served(None), Served(None), Served(None));
        Self { name: name.to_owned(), board, mqtt, webhook, modbus, gates }
    }

    /// Serves these receivers from now on; those that stay as they are do not notice.
    ///
    /// # Errors
    /// When something of it cannot be begun; the others are served.
    pub(crate) fn serve(&mut self, wanted: &Receivers, state_dir: &Path) -> Result<(), String> {
        let (name, board, outlets) = (&self.name, &self.board, &self.board.outlets);
        let mqtt = self.mqtt.renew(wanted.mqtt.as_ref(), |mqtt| {
            let outbox = outlets.outbox("mqtt", state_dir, &mqtt.waiting)?;
            mqtt::Sender::start(mqtt.clone(), name, outbox, board.clone())
        });
        let webhook = self.webhook.renew(wanted.webhook.as_ref(), |webhook| {
            let outbox = outlets.outbox("webhook", state_dir, &webhook.waiting)?;
            webhook::Sender::start(webhook.clone(), name, outbox)
        });
        let modbus = self.modbus.renew(wanted.modbus.as_ref(), |modbus| modbus::Server::start(modbus, board.clone()));
        if !self.gates.is(wanted.gpio.as_ref()) {
            outlets.set_gates(BTreeMap::new()); // a gate ends when nobody has the way to it
        }
        let gpio = self.gates.renew(wanted.gpio.as_ref(), |gates| Gates::start(gates, board));
        outlets.set_gates(self.gates.server().map(Gates::ways).unwrap_or_default());
        let registers = self.modbus.server().map(modbus::Server::registers);
        *outlets.registers.write().unwrap_or_else(PoisonError::into_inner) = registers;
        outlets.keep_only(&[wanted.mqtt.as_ref().map(|_| "mqtt"), wanted.webhook.as_ref().map(|_| "webhook")]);
        let all = [("mqtt", mqtt), ("webhook", webhook), ("modbus", modbus), ("gpio", gpio)];
        let wrong = all.into_iter().filter_map(|(name, begun)| Some(format!("{name}: {}", begun.err()?)));
        let wrong: Vec<String> = wrong.collect();
        if wrong.is_empty() { Ok(()) } else { Err(wrong.join("; ")) }
    }

    /// Lets what is under way leave, within two seconds each, and ends. What does not make it stays on disk.
    pub(crate) fn stop(&mut self) {
        self.mqtt.stop();
        self.webhook.stop();
        self.modbus.stop();
        self.board.outlets.set_gates(BTreeMap::new());
        self.gates.stop();
    }
}

impl Outlets {
    fn set_gates(&self, gates: BTreeMap<String, Arc<Way>>) {
        *self.gates.write().unwrap_or_else(PoisonError::into_inner) = gates;
    }

    /// The outbox of this name: the one that is there, or a new one.
    fn outbox(&self, name: &'static str, state_dir: &Path, waiting: &Waiting) -> Result<Arc<Outbox>, String> {
        let mut outboxes = self.outboxes.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = outboxes.iter().find(|outbox| outbox.name() == name) {
            known.change(waiting);
            return Ok(known.clone());
        }
        let new = Arc::new(Outbox::open(name, state_dir, waiting)?);
        outboxes.push(new.clone());
        Ok(new)
    }

    /// Results go to no other outbox than these. What waits in the others stays on disk.
    fn keep_only(&self, names: &[Option<&str>]) {
        let mut outboxes = self.outboxes.write().unwrap_or_else(PoisonError::into_inner);
        outboxes.retain(|outbox| names.contains(&Some(outbox.name())));
    }
}

/// Says that a receiver is away or back, once each.
struct Link {
    name: &'static str,
    told: Option<String>,
}

impl Link {
    fn new(name: &'static str) -> Self {
        Self { name, told: Some(String::new()) }
    }

    fn is_up(&mut self, to: &str) {
        if self.told.take().is_some() {
            say("", &format!("{}: connected to {to}", self.name));
        }
    }

    fn is_down(&mut self, reason: String) {
        if self.told.as_ref() != Some(&reason) {
            say("", &format!("{}: {reason}; results wait on disk", self.name));
            self.told = Some(reason);
        }
    }
}
