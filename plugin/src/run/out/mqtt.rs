//! MQTT 3.1.1: results at least once and in the order of their line, states that are retained, and a last will.
//!
//! One connection is one event loop of the client library; nothing depends on what that remembers. The broker acknowledges in the order
//! of what was published [MQTT-4.6.0-2], so the k-th acknowledgement of a connection is of its k-th publication, and the outbox's
//! cursor moves with it. After a loss everything that was not acknowledged is sent again.

use std::cell::RefCell;
use std::collections::{BTreeMap, VecDeque};
use std::fmt::Display;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use diad::detector::Verdict;
use diad::text::now_ms;
use rumqttc::{
    AsyncClient, ConnectReturnCode, ConnectionError, Event, EventLoop, Incoming, LastWill, MqttOptions, QoS,
    TlsConfiguration, Transport,
};
use serde::Serialize;
use tokio::sync::Notify;

use super::super::board::Board;
use super::super::line::Seen;
use super::super::read::Section;
use super::super::state::Backoff;
use super::super::tally::lock;
use super::outbox::{Outbox, Waiting};
use super::tls::Certificates;
use super::{Link, Serves};

/// Results that may be under way.
const WINDOW: usize = 16;
/// How often is looked for results.
const TICK: Duration = Duration::from_millis(20);
/// How often a line's counts are told.
const STATS: Duration = Duration::from_secs(10);
/// How often is waited for the disk.
const TIDY: Duration = Duration::from_secs(5);
/// A broker that says nothing for twice as long is away.
const KEEP_ALIVE: Duration = Duration::from_secs(5);
/// Seconds that connecting may take.
const PATIENCE: u64 = 5;
/// What is under way at the end may take so long.
const FAREWELL: Duration = Duration::from_secs(2);
/// Bytes of a message: a result with many regions has some tens of thousands.
const LONGEST: usize = 16 << 20;

/// A broker, and what it is sent.
#[derive(Clone, PartialEq)]
pub(crate) struct Mqtt {
    host: String,
    port: u16,
    secure: bool,
    login: Option<(String, String)>,
    certificates: Certificates,
    /// What topics begin with.
    topic: String,
    pub(super) waiting: Waiting,
}

impl std::fmt::Debug for Mqtt {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.address()) // without the password
    }
}

impl Mqtt {
    pub(crate) fn read(mut section: Section<'_>) -> Option<Self> {
        let url = section.text("url");
        if url.is_none() && !section.has("url") {
            section.mistake("url", "mqtt.url: is missing, expected for instance \"mqtt://10.1.1.2\"".into());
        }
        let address = url.and_then(|url| {
            let found = address(&url);
            if found.is_none() {
                section.wrong("url", "mqtt://HOST, mqtt://HOST:PORT or mqtts://… for TLS; the user stands beside it");
            }
            found
        });
        let (user, password) = (section.text("user"), section.secret("password", "password-file"));
        if password.is_some() && user.is_none() {
            let key = if section.has("password") { "password" } else { "password-file" };
            section.mistake(key, format!("{}: has no user beside it", section.path(key)));
        }
        let certificates = Certificates::read(&mut section, true);
        let topic = section.text("topic").unwrap_or_else(|| "diad".to_owned());
        if topic.contains(['#', '+', '\0']) || topic.starts_with('/') || topic.ends_with('/') {
            section.wrong("topic", "the beginning of topics, without # and +, and no / at its ends");
        }
        let waiting = Waiting::read(&mut section);
        if let Some((_, _, false)) = address {
            for key in ["ca-file", "cert-file", "key-file"].into_iter().filter(|key| section.has(key)) {
                section.wrong(key, "a url with mqtts:// beside it");
            }
        }
        section.finish();
        let (host, port, secure) = address?;
        let login = user.map(|user| (user, password.unwrap_or_default()));
        Some(Self { host, port, secure, login, certificates, topic, waiting })
    }

    fn address(&self) -> String {
        format!("{}://{}:{}", if self.secure { "mqtts" } else { "mqtt" }, self.host, self.port)
    }

    fn options(&self, client: &str) -> Result<MqttOptions, String> {
        let mut options = MqttOptions::new(client, &self.host, self.port);
        options.set_keep_alive(KEEP_ALIVE).set_clean_session(true).set_max_packet_size(LONGEST, LONGEST);
        if let Some((user, password)) = &self.login {
            options.set_credentials(user, password);
        }
        if self.secure {
            let config = TlsConfiguration::Rustls(self.certificates.client()?);
            options.set_transport(Transport::tls_with_config(config));
        }
        Ok(options)
    }
}

/// Host, port and whether it is TLS.
fn address(url: &str) -> Option<(String, u16, bool)> {
    let (rest, secure) = match url.strip_prefix("mqtt://") {
        Some(rest) => (rest, false),
        None => (url.strip_prefix("mqtts://")?, true),
    };
    let rest = rest.strip_suffix('/').unwrap_or(rest);
    // An address of IPv6 stands in brackets.
    let (host, port) = match rest.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((host, port)) => (host, port.strip_prefix(':')),
        None => rest.split_once(':').map_or((rest, None), |(host, port)| (host, Some(port))),
    };
    let port =
        port.map_or(Some(if secure { 8883 } else { 1883 }), |port| port.parse().ok().filter(|port| *port > 0))?;
    let is_host = !host.is_empty() && host.chars().all(|c| c.is_ascii_alphanumeric() || ".-_:".contains(c));
    is_host.then(|| (host.to_owned(), port, secure))
}

/// Connects once, for `validate --probe`.
///
/// # Errors
/// Why the broker cannot be used.
pub(crate) fn greet(mqtt: &Mqtt, name: &str) -> Result<String, String> {
    let runtime = runtime()?;
    runtime.block_on(async {
        // Another name: the one that runs is not thrown out.
        let (_client, mut events) = connect(mqtt.options(&format!("{name}-probe"))?);
        match events.poll().await {
            Ok(_) => Ok(mqtt.address()),
            Err(error) => Err(reason(mqtt, &error)),
        }
    })
}

fn runtime() -> Result<tokio::runtime::Runtime, String> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().enable_time().build();
    runtime.map_err(|error| format!("no network: {error}"))
}

fn connect(options: MqttOptions) -> (AsyncClient, EventLoop) {
    let (client, mut events) = AsyncClient::new(options, 2 * WINDOW);
    events.network_options.set_connection_timeout(PATIENCE);
    (client, events)
}

/// What went wrong, for the operator.
fn reason(mqtt: &Mqtt, error: &ConnectionError) -> String {
    let why: &dyn Display = match error {
        ConnectionError::ConnectionRefused(
            ConnectReturnCode::BadUserNamePassword | ConnectReturnCode::NotAuthorized,
        ) => &"the broker refuses user and password",
        ConnectionError::ConnectionRefused(ConnectReturnCode::BadClientId) => &"the broker refuses the name",
        ConnectionError::NetworkTimeout | ConnectionError::FlushTimeout => &"the broker does not answer",
        ConnectionError::Io(error) => error,
        error => error,
    };
    format!("{}: {why}", mqtt.address())
}

/// The thread that talks to the broker.
pub(super) struct Sender {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<()>,
}

impl Sender {
    pub(super) fn start(mqtt: Mqtt, name: &str, outbox: Arc<Outbox>, board: Arc<Board>) -> Result<Self, String> {
        let stop = Arc::new(AtomicBool::new(false));
        let runtime = runtime()?;
        let options = mqtt.options(name)?;
        let topics = format!("{}/{name}", mqtt.topic);
        let mut service = Service { mqtt, options, topics, outbox, board, stop: stop.clone(), link: Link::new("mqtt") };
        let work = move || runtime.block_on(service.run());
        let thread = std::thread::Builder::new().name("diad-mqtt".into()).spawn(work);
        Ok(Self { stop, thread: thread.map_err(|error| format!("no thread: {error}"))? })
    }
}

impl Serves for Sender {
    fn stop(self) {
        self.stop.store(true, Ordering::Relaxed);
        let _ = self.thread.join();
    }
}

struct Service {
    mqtt: Mqtt,
    options: MqttOptions,
    /// What all topics begin with: `diad/NAME`.
    topics: String,
    outbox: Arc<Outbox>,
    board: Arc<Board>,
    stop: Arc<AtomicBool>,
    link: Link,
}

/// What a connection has come to.
#[derive(Default)]
struct Progress {
    /// Since when the broker is there.
    since: Option<Instant>,
    /// What was published and not acknowledged, in order: a result's number and line, or something else.
    sent: VecDeque<Option<(u64, String)>>,
    /// Results that were acknowledged and not yet said so to the outbox.
    acknowledged: Vec<(u64, String)>,
}

impl Service {
    async fn run(&mut self) {
        let mut backoff = Backoff::new(&self.topics, 0);
        while !self.stopped() {
            let progress = RefCell::new(Progress::default());
            let ended = self.connection(&progress).await;
            self.outbox.deliver(progress.borrow_mut().acknowledged.drain(..));
            self.outbox.is_connected(false);
            let Err(error) = ended else { return };
            self.link.is_down(reason(&self.mqtt, &error));
            let ran = progress.borrow().since.map_or(Duration::ZERO, |since| since.elapsed());
            let until = Instant::now() + backoff.failed(ran).unwrap_or_default();
            while Instant::now() < until && !self.stopped() {
                tokio::time::sleep(TICK).await;
            }
        }
    }

    fn stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    /// One connection, until it is lost or we are told to stop.
    async fn connection(&mut self, progress: &RefCell<Progress>) -> Result<(), ConnectionError> {
        let mut options = self.options.clone();
        options.set_last_will(LastWill::new(format!("{}/status", self.topics), "offline", QoS::AtLeastOnce, true));
        let (client, mut events) = connect(options);
        let acknowledged = Notify::new();
        // Neither is ever cut off in the middle: the library would forget what it was writing.
        let listen = async {
            loop {
                match events.poll().await {
                    Ok(Event::Incoming(Incoming::ConnAck(_))) => progress.borrow_mut().since = Some(Instant::now()),
                    Ok(Event::Incoming(Incoming::PubAck(_))) => {
                        let mut progress = progress.borrow_mut();
                        let done = progress.sent.pop_front().flatten();
                        progress.acknowledged.extend(done);
                        acknowledged.notify_one();
                    }
                    Ok(_) => {}
                    Err(error) => return error,
                }
            }
        };
        tokio::select! {
            error = listen => Err(error),
            () = self.speak(&client, progress, &acknowledged) => Ok(()),
        }
    }

    /// Publishes what there is; ends when we are told to stop and what was under way has arrived.
    async fn speak(&mut self, client: &AsyncClient, progress: &RefCell<Progress>, acknowledged: &Notify) {
        let told = |topic: String, text: String, kept: bool| {
            let quality = if kept { QoS::AtLeastOnce } else { QoS::AtMostOnce };
            if kept {
                progress.borrow_mut().sent.push_back(None);
            }
            client.publish(topic, quality, kept, text)
        };
        let (mut states, mut next) = (BTreeMap::new(), 0);
        let (mut counted, mut tidied): (Option<Instant>, Instant) = (None, Instant::now());
        let mut farewell = None;
        loop {
            if progress.borrow().since.is_some() && !self.outbox.connected() {
                self.outbox.is_connected(true);
                self.link.is_up(&self.mqtt.address());
                let _ = told(format!("{}/status", self.topics), "online".into(), true).await;
            }
            let acked: Vec<_> = progress.borrow_mut().acknowledged.drain(..).collect();
            self.outbox.deliver(acked);
            let connected = self.outbox.connected();
            if connected {
                for line in self.board.lines() {
                    let state = state(&line);
                    if states.get(&line.name) != Some(&state) {
                        let _ = told(format!("{}/{}/state", self.topics, line.name), state.clone(), true).await;
                        states.insert(line.name.clone(), state);
                    }
                    if counted.is_none_or(|counted| counted.elapsed() >= STATS) {
                        let _ = told(format!("{}/{}/stats", self.topics, line.name), stats(&line), false).await;
                    }
                }
                if counted.is_none_or(|counted| counted.elapsed() >= STATS) {
                    counted = Some(Instant::now());
                }
                let room = WINDOW.saturating_sub(progress.borrow().sent.len());
                for record in self.outbox.read(next, room) {
                    next = record.number + 1;
                    progress.borrow_mut().sent.push_back(Some((record.number, record.topic.clone())));
                    let topic = format!("{}/{}/result", self.topics, record.topic);
                    let _ = client.publish(topic, QoS::AtLeastOnce, false, record.payload).await;
                }
            }
            if tidied.elapsed() >= TIDY {
                tidied = Instant::now();
                self.outbox.tidy();
            }
            if self.stopped() {
                let until = *farewell.get_or_insert_with(|| Instant::now() + FAREWELL);
                let through = progress.borrow().sent.is_empty() && self.outbox.counts().waiting == 0;
                if !connected || through || Instant::now() > until {
                    break;
                }
            }
            let _ = tokio::time::timeout(TICK, acknowledged.notified()).await;
        }
        if self.outbox.connected() {
            let _ = told(format!("{}/status", self.topics), "offline".into(), true).await;
            let until = Instant::now() + FAREWELL;
            while !progress.borrow().sent.is_empty() && Instant::now() < until {
                let _ = tokio::time::timeout(TICK, acknowledged.notified()).await;
            }
            let _ = client.disconnect().await;
            tokio::time::sleep(TICK).await; // until it has left
        }
    }
}

/// A line's state, as others are told.
#[derive(Serialize)]
struct State<'a> {
    schema: u32,
    state: &'static str,
    reason: &'a str,
    since: &'a str,
    model: &'a str,
    threshold: Option<f32>,
}

/// A line's counts.
#[derive(Serialize)]
struct Stats {
    schema: u32,
    utc_ms: u64,
    frames: u64,
    verdicts: BTreeMap<&'static str, u64>,
    uninspected: BTreeMap<String, u64>,
    restarts: u64,
}

/// Version of the fields of both.
const SCHEMA: u32 = 1;

fn state(line: &Seen) -> String {
    let status = lock(&line.status).clone();
    let state = State {
        schema: SCHEMA,
        state: status.state.name(),
        reason: &status.reason,
        since: &status.since,
        model: &status.model,
        threshold: line.tally.seen().threshold,
    };
    serde_json::to_string(&state).unwrap_or_default()
}

fn stats(line: &Seen) -> String {
    let counts = line.tally.counts();
    let stats = Stats {
        schema: SCHEMA,
        utc_ms: now_ms(),
        frames: counts.frames,
        verdicts: Verdict::ALL.iter().map(|verdict| verdict.name()).zip(counts.verdicts).collect(),
        uninspected: line.tally.reasons(),
        restarts: lock(&line.status).restarts.values().sum(),
    };
    serde_json::to_string(&stats).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_of_brokers() {
        let found = |host: &str, port, secure| Some((host.to_owned(), port, secure));
        assert_eq!(address("mqtt://10.1.1.2"), found("10.1.1.2", 1883, false));
        assert_eq!(address("mqtts://broker.plant:8884/"), found("broker.plant", 8884, true));
        assert_eq!(address("mqtts://[fd00::2]"), found("fd00::2", 8883, true));
        assert_eq!(address("mqtt://[fd00::2]:1884"), found("fd00::2", 1884, false));
        for wrong in [
            "",
            "10.1.1.2",
            "http://10.1.1.2",
            "mqtt://",
            "mqtt://a:0",
            "mqtt://a:b",
            "mqtt://user:pw@a",
            "mqtt://a/b",
            "mqtt://a:70000",
        ] {
            assert_eq!(address(wrong), None, "{wrong}");
        }
    }
}
