//! A webhook: results by POST, several at a time, at least once and in the order of their line.

use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, bounded};
use diad::spool::Record;
use diad::text::hex;
use hmac::{Hmac, KeyInit as _, Mac as _};
use sha2::Sha256;
use ureq::Agent;
use ureq::tls::{Certificate, RootCerts, TlsConfig, TlsProvider};

use super::super::read::Section;
use super::super::state::Backoff;
use super::outbox::{Outbox, Waiting};
use super::tls::Certificates;
use super::{Link, Serves};

/// How often is looked for results.
const TICK: Duration = Duration::from_millis(50);
/// How often is waited for the disk.
const TIDY: Duration = Duration::from_secs(5);
/// What waits at the end may take so long.
const FAREWELL: Duration = Duration::from_secs(2);
/// Version of the object that is sent.
const SCHEMA: u32 = 1;

/// Where results are sent to.
#[derive(Clone, PartialEq)]
pub(crate) struct Webhook {
    url: String,
    /// What bodies are signed with.
    secret: Option<String>,
    certificates: Certificates,
    /// Results in a request, at most.
    batch: u32,
    /// How long a request may take.
    timeout: Duration,
    pub(super) waiting: Waiting,
}

impl std::fmt::Debug for Webhook {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.url) // without the secret
    }
}

impl Webhook {
    pub(crate) fn read(mut section: Section<'_>) -> Option<Self> {
        let url = section.text("url");
        if url.is_none() && !section.has("url") {
            section.mistake("url", "webhook.url: is missing, expected for instance \"https://mes.plant/diad\"".into());
        }
        let url = url.filter(|url| {
            let scheme = url.starts_with("http://") || url.starts_with("https://");
            let is_one = scheme && url.parse::<ureq::http::Uri>().is_ok_and(|uri| uri.host().is_some());
            if !is_one {
                section.wrong("url", "an address that begins with http:// or https://");
            }
            is_one
        });
        let secret = section.secret("secret", "secret-file");
        let certificates = Certificates::read(&mut section, false);
        let batch = section.integer("batch", 1..=1000).unwrap_or(50);
        let timeout = section.duration("timeout").unwrap_or(Duration::from_secs(10));
        let waiting = Waiting::read(&mut section);
        section.finish();
        Some(Self { url: url?, secret, certificates, batch, timeout, waiting })
    }

    fn agent(&self) -> Agent {
        let roots = match &self.certificates.authorities {
            None => RootCerts::PlatformVerifier,
            Some(pem) => {
                let items = ureq::tls::parse_pem(pem).filter_map(Result::ok);
                let certificates = items.filter_map(|item| match item {
                    ureq::tls::PemItem::Certificate(certificate) => Some(certificate),
                    _ => None,
                });
                RootCerts::from(certificates.collect::<Vec<Certificate<'static>>>())
            }
        };
        let tls = TlsConfig::builder().provider(TlsProvider::Rustls).root_certs(roots).build();
        let config = Agent::config_builder()
            .tls_config(tls)
            .timeout_global(Some(self.timeout))
            .http_status_as_error(false)
            .max_redirects(0)
            .build();
        config.into()
    }
}

/// The thread that sends.
pub(super) struct Sender {
    /// The thread ends when nobody holds this.
    held: crossbeam_channel::Sender<()>,
    thread: JoinHandle<()>,
}

impl Sender {
    pub(super) fn start(webhook: Webhook, name: &str, outbox: Arc<Outbox>) -> Result<Self, String> {
        let (held, told) = bounded(0);
        let agent = webhook.agent();
        let mut service = Service { webhook, agent, name: name.to_owned(), outbox, told, link: Link::new("webhook") };
        let thread = std::thread::Builder::new().name("diad-webhook".into()).spawn(move || service.run());
        Ok(Self { held, thread: thread.map_err(|error| format!("no thread: {error}"))? })
    }
}

impl Serves for Sender {
    fn stop(self) {
        drop(self.held);
        let _ = self.thread.join();
    }
}

struct Service {
    webhook: Webhook,
    agent: Agent,
    name: String,
    outbox: Arc<Outbox>,
    told: Receiver<()>,
    link: Link,
}

impl Service {
    /// Waits; whether we are told to stop.
    fn wait(&self, time: Duration) -> bool {
        self.told.recv_timeout(time) == Err(RecvTimeoutError::Disconnected)
    }

    fn run(&mut self) {
        let mut backoff = Backoff::new(&self.webhook.url, 0);
        let mut batch: Vec<Record> = Vec::new();
        let (mut wait, mut tidied, mut farewell, mut away) = (Duration::ZERO, Instant::now(), None, false);
        loop {
            if self.wait(wait) {
                let until = *farewell.get_or_insert_with(|| Instant::now() + FAREWELL);
                if Instant::now() > until || away || self.outbox.counts().waiting == 0 {
                    return;
                }
            }
            if tidied.elapsed() >= TIDY {
                tidied = Instant::now();
                self.outbox.tidy();
            }
            // What was sent and not answered is sent again as it was, so that its key says the same.
            if batch.is_empty() {
                batch = self.outbox.read(0, self.webhook.batch as usize);
            }
            if batch.is_empty() {
                wait = TICK;
                continue;
            }
            match self.post(&batch) {
                Ok(()) => {
                    away = false;
                    self.link.is_up(&self.webhook.url);
                    self.outbox.is_connected(true);
                    self.outbox.deliver(batch.drain(..).map(|record| (record.number, record.topic)));
                    (backoff, wait) = (Backoff::new(&self.webhook.url, 0), Duration::ZERO);
                }
                Err(reason) => {
                    away = true;
                    self.outbox.is_connected(false);
                    self.link.is_down(format!("{}: {reason}", self.webhook.url));
                    wait = backoff.failed(Duration::ZERO).unwrap_or_default();
                }
            }
        }
    }

    fn post(&self, batch: &[Record]) -> Result<(), String> {
        let (Some(first), Some(last)) = (batch.first(), batch.last()) else { return Ok(()) };
        let body = body(&self.name, batch);
        let mut request = self
            .agent
            .post(&self.webhook.url)
            .header("Content-Type", "application/json")
            .header("User-Agent", concat!("diad/", env!("CARGO_PKG_VERSION")))
            .header("Idempotency-Key", format!("{}-{}-{}-{}", self.name, first.utc_ms, first.number, last.number));
        if let Some(secret) = &self.webhook.secret {
            request = request.header("X-Diad-Signature", format!("sha256={}", signature(secret, &body)));
        }
        let answer = request.send(&body[..]).map_err(|error| error.to_string())?;
        let status = answer.status();
        if status.is_success() { Ok(()) } else { Err(format!("answers {status}")) }
    }
}

/// `{"schema":1,"name":NAME,"results":[…]}`, each result as it was written.
fn body(name: &str, batch: &[Record]) -> Vec<u8> {
    let name = serde_json::to_string(name).unwrap_or_default();
    let mut body = format!("{{\"schema\":{SCHEMA},\"name\":{name},\"results\":[").into_bytes();
    for (i, record) in batch.iter().enumerate() {
        if i > 0 {
            body.push(b',');
        }
        body.extend_from_slice(&record.payload);
    }
    body.extend_from_slice(b"]}");
    body
}

/// HMAC-SHA256 (RFC 2104) of a body, in hexadecimal digits.
fn signature(secret: &str, body: &[u8]) -> String {
    let Ok(mut mac) = Hmac::<Sha256>::new_from_slice(secret.as_bytes()) else { return String::new() };
    mac.update(body);
    hex(&mac.finalize().into_bytes())
}

#[cfg(test)]
mod tests {
    use diad::spool::Fate;

    use super::*;

    /// ```python
    /// import hmac; hmac.new(b"key", b'{"schema":1,"name":"hall-3","results":[{"a":1},{"b":2}]}', "sha256").hexdigest()
    /// ```
    #[test]
    fn a_body_and_its_signature() {
        let record = |payload: &[u8]| Record {
            number: 1,
            utc_ms: 0,
            fate: Fate::Kept,
            topic: "cap".into(),
            payload: payload.to_vec(),
        };
        let body = body("hall-3", &[record(br#"{"a":1}"#), record(br#"{"b":2}"#)]);
        assert_eq!(String::from_utf8_lossy(&body), r#"{"schema":1,"name":"hall-3","results":[{"a":1},{"b":2}]}"#);
        assert_eq!(signature("key", &body), "950285b2107c058007ba589fbf2c5c9b3a80f709278150b9dfabe7e2dafe24ef");
    }
}
