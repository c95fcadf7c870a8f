//! Results that leave the machine: a broker that comes and goes, a webhook that fails, a controller that asks.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

use hmac::{Hmac, KeyInit, Mac};

use super::*;

/// A thread that ends when what it waits for does.
fn spawn(name: &str, work: impl FnOnce() + Send + 'static) {
    drop(std::thread::Builder::new().name(name.into()).spawn(work).unwrap());
}

/// mosquitto, which forgets everything when it ends.
struct Broker {
    running: Running,
    port: u16,
}

impl Broker {
    fn start(shift: &Shift, port: u16, more: &str) -> Self {
        let config = shift.path("mosquitto.conf");
        std::fs::write(&config, format!("listener {port} 127.0.0.1\nuser root\npersistence false\n{more}\n")).unwrap();
        let mut command = Command::new("/usr/sbin/mosquitto");
        command.arg("-c").arg(config).stdin(Stdio::null()).stdout(Stdio::null());
        let mut running = Running::start(command);
        running.until("running");
        Self { running, port }
    }

    /// Gets all that is published below `diad/` from now on, and what is retained there.
    fn subscribe(&self) -> Subscriber {
        let port = self.port.to_string();
        let to = ["-h", "127.0.0.1", "-p", &port];
        // What is retained under this topic arrives as soon as the subscription stands.
        let sent = Command::new("mosquitto_pub").args(to).args(["-r", "-t", "diad/ready", "-m", "yes"]).status();
        assert!(sent.unwrap().success());
        let mut command = Command::new("mosquitto_sub");
        command.args(to).args(["-t", "diad/#", "-F", "%t %r %p"]).stdin(Stdio::null()).stdout(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let (sender, messages) = bounded(100_000);
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        spawn("messages", move || {
            let _ = lines.map_while(Result::ok).try_for_each(|line| sender.send(line));
        });
        let mut subscriber = Subscriber { child, messages, all: Vec::new() };
        subscriber.until("diad/ready ");
        subscriber
    }
}

/// What was published.
struct Subscriber {
    child: Child,
    messages: Receiver<String>,
    all: Vec<String>,
}

impl Subscriber {
    /// Waits for a message that begins so.
    #[track_caller]
    fn until(&mut self, start: &str) {
        self.until_some(start, 1);
    }

    /// Waits for so many.
    #[track_caller]
    fn until_some(&mut self, start: &str, most: usize) {
        let end = Instant::now() + PATIENCE;
        let mut found = 0;
        while found < most {
            let message = self.messages.recv_timeout(end.saturating_duration_since(Instant::now()));
            let message = message.unwrap_or_else(|_| panic!("{found} of {most} {start:?}: {:?}", self.all.last()));
            found += usize::from(message.starts_with(start));
            self.all.push(message);
        }
    }

    /// All of a topic, with whether they were retained.
    fn of(&self, topic: &str) -> Vec<(bool, &str)> {
        let of = self.all.iter().filter_map(|message| message.strip_prefix(topic)?.strip_prefix(' '));
        of.map(|rest| (rest.starts_with('1'), &rest[2..])).collect()
    }

    fn results(&self, line: &str) -> Vec<Value> {
        let all = self.of(&format!("diad/hall/{line}/result"));
        all.iter().map(|(_, text)| serde_json::from_str(text).unwrap()).collect()
    }
}

impl Drop for Subscriber {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A network that can be cut.
#[derive(Clone)]
struct Network {
    port: u16,
    open: Arc<Mutex<Option<u16>>>,
    connections: Arc<Mutex<Vec<TcpStream>>>,
}

impl Network {
    fn new() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let network = Self { port, open: Arc::default(), connections: Arc::default() };
        let shared = network.clone();
        spawn("network", move || {
            for near in listener.incoming().map_while(Result::ok) {
                let Some(far) =
                    shared.open.lock().unwrap().and_then(|port| TcpStream::connect(("127.0.0.1", port)).ok())
                else {
                    continue;
                };
                for (mut from, mut to) in [(&near, &far), (&far, &near)]
                    .map(|(from, to)| (from.try_clone().unwrap(), to.try_clone().unwrap()))
                {
                    spawn("copy", move || {
                        let _ = std::io::copy(&mut from, &mut to);
                        let _ = to.shutdown(Shutdown::Both);
                    });
                }
                shared.connections.lock().unwrap().extend([near, far]);
            }
        });
        network
    }

    /// New connections reach this port, or nobody.
    fn leads_to(&self, port: Option<u16>) {
        *self.open.lock().unwrap() = port;
    }

    fn cut(&self) {
        for connection in self.connections.lock().unwrap().drain(..) {
            let _ = connection.shutdown(Shutdown::Both);
        }
    }
}

fn lines(port: u16, mqtt: &str, source: &str) -> String {
    format!(
        "name = \"hall\"\nstate-dir = \"state\"\n[mqtt]\nurl = \"mqtt://127.0.0.1:{port}\"\n{mqtt}\n\
         [[line]]\nname = \"cap\"\nmodel = \"MODEL\"\n{source}\nresults = \"cap.jsonl\"\n"
    )
}

#[test]
fn a_broker_gets_every_result_and_what_state_a_line_is_in() {
    let shift = Shift::new("");
    let broker = Broker::start(&shift, free_port(), "allow_anonymous true");
    let mut subscriber = broker.subscribe();
    shift.write(&lines(broker.port, "", &finite(30)));
    let (code, said) = shift.finish(&["run", "line.toml"]);
    assert!(code == 0 && said.contains("mqtt: connected to mqtt://127.0.0.1:"), "{said}");
    subscriber.until("diad/hall/status 0 offline");
    let results = subscriber.results("cap");
    assert_eq!(results, shift.results("cap.jsonl"), "the same objects in the same order");
    assert_eq!(subscriber.of("diad/hall/status"), [(false, "online"), (false, "offline")]);
    let states = subscriber.of("diad/hall/cap/state");
    let states: Vec<Value> = states.iter().map(|(_, text)| serde_json::from_str(text).unwrap()).collect();
    let last = states.last().unwrap();
    assert_eq!((&last["state"], &last["schema"]), (&"ended".into(), &1.into()), "{states:?}");
    assert!(last["since"].as_str().unwrap().ends_with('Z') && last["threshold"].is_number(), "{last}");
    // Who comes later learns how it is, and not what was.
    let mut late = broker.subscribe();
    late.until("diad/hall/status 1 offline");
    late.until("diad/hall/cap/state 1 ");
    assert!(late.results("cap").is_empty());
}

#[test]
fn a_broker_that_is_away_costs_no_result_and_nor_does_a_crash() {
    let (shift, network) = (Shift::new(""), Network::new());
    shift.write(&lines(network.port, "", LIVE));
    let mut running = shift.start();
    running.until("results wait on disk");
    running.until("cap: running");

    let mut all: Vec<Value> = Vec::new();
    let port = free_port();
    let mut broker = Broker::start(&shift, port, "allow_anonymous true");
    for outage in 0..3 {
        let mut subscriber = broker.subscribe();
        network.leads_to(Some(port));
        running.until("mqtt: connected to");
        subscriber.until_some("diad/hall/cap/result ", 30);
        network.leads_to(None);
        match outage {
            0 => network.cut(),
            1 => broker.running.signal("KILL"),
            _ => running.signal("KILL"),
        }
        if outage < 2 {
            running.until("results wait on disk");
        } else {
            drop(running);
            running = shift.start();
            running.until("results of an earlier run wait");
            running.until("results wait on disk");
        }
        subscriber.all.extend(subscriber.messages.try_iter());
        all.extend(subscriber.results("cap"));
        drop(broker);
        broker = Broker::start(&shift, port, "allow_anonymous true");
    }
    let mut subscriber = broker.subscribe();
    network.leads_to(Some(port));
    running.until("mqtt: connected to");
    let (code, said) = running.stop();
    assert_eq!(code, 0, "{said}");
    subscriber.until("diad/hall/status 0 offline");
    all.extend(subscriber.results("cap"));

    let mut got = BTreeMap::new();
    let mut highest = 0;
    for result in all {
        let number = result["sequence"].as_u64().unwrap();
        if got.insert(number, result).is_none() {
            assert!(number > highest, "{number} came first after {highest}");
            highest = number;
        }
    }
    for result in shift.results("cap.jsonl") {
        let number = result["sequence"].as_u64().unwrap();
        assert_eq!(got.get(&number), Some(&result), "number {number}");
    }
}

#[test]
fn a_broker_that_refuses_is_told_and_the_line_goes_on() {
    let shift = Shift::new("");
    let passwords = shift.path("passwords");
    let made = Command::new("mosquitto_passwd").args(["-b", "-c"]).arg(&passwords).args(["hall", "right"]).status();
    assert!(made.unwrap().success());
    let more = format!("allow_anonymous false\npassword_file {}", passwords.display());
    let broker = Broker::start(&shift, free_port(), &more);
    shift.write(&lines(broker.port, "user = \"hall\"\npassword = \"wrong\"", &finite(20)));
    let refused = format!("mqtt: mqtt://127.0.0.1:{}: the broker refuses user and password", broker.port);
    let (code, said) = shift.finish(&["validate", "--probe", "line.toml"]);
    assert!(code == 1 && said.contains(&refused) && !said.contains("wrong"), "{said}");
    let (code, said) = shift.finish(&["run", "line.toml"]);
    assert!(code == 0 && said.contains(&refused) && said.contains("cap: ended: 20 frames"), "{said}");
    std::fs::write(shift.path("secret"), "right\n").unwrap();
    shift.write(&lines(broker.port, "user = \"hall\"\npassword-file = \"secret\"", &finite(20)));
    let (code, said) = shift.finish(&["validate", "--probe", "line.toml"]);
    assert!(code == 0 && said.contains("answers"), "{said}");
    let (code, said) = shift.finish(&["run", "line.toml"]);
    assert!(code == 0 && said.contains("mqtt: 20 results of an earlier run wait"), "{said}");
}

#[test]
fn a_broker_is_believed_only_with_its_certificate() {
    let shift = Shift::new("");
    for (name, host) in [("right", "localhost"), ("other", "elsewhere")] {
        let made = Command::new("openssl")
            .args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"])
            .args([
                "-subj",
                "/CN=diad",
                "-addext",
                "basicConstraints=critical,CA:FALSE",
                "-addext",
                &format!("subjectAltName=DNS:{host}"),
            ])
            .args(["-keyout", &format!("{name}.key"), "-out", &format!("{name}.pem")])
            .current_dir(shift.folder.path())
            .output()
            .unwrap();
        assert!(made.status.success(), "{made:?}");
    }
    let secure = |port: u16, authority: &str| {
        let text = lines(port, &format!("ca-file = \"{authority}.pem\""), &finite(5));
        shift.write(&text.replace("mqtt://127.0.0.1", "mqtts://localhost"));
    };
    let certificate = |name: &str| {
        let file = |end: &str| shift.path(&format!("{name}.{end}")).display().to_string();
        format!("allow_anonymous true\ncertfile {}\nkeyfile {}", file("pem"), file("key"))
    };
    let broker = Broker::start(&shift, free_port(), &certificate("right"));
    for (authority, believed) in [("right", true), ("other", false)] {
        secure(broker.port, authority);
        let (code, said) = shift.finish(&["validate", "--probe", "line.toml"]);
        assert_eq!(code, i32::from(!believed), "{said}");
        assert!(believed || said.contains("certificate"), "{said}");
    }
    drop(broker);
    let broker = Broker::start(&shift, free_port(), &certificate("other"));
    secure(broker.port, "other");
    let (code, said) = shift.finish(&["validate", "--probe", "line.toml"]);
    assert!(code == 1 && said.contains("not valid for name"), "{said}");
}

/// What a server does with a request.
#[derive(Clone, Copy)]
enum Answer {
    Status(u16),
    Reset,
}

/// A server that answers so, one after the other, and then as the last; the requests: their head and body.
fn server(answers: Vec<Answer>) -> (u16, Receiver<(String, Vec<u8>)>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let (sender, requests) = bounded(1000);
    spawn("server", move || {
        let mut answers = answers.into_iter();
        let mut answer = answers.next().unwrap();
        for mut stream in listener.incoming().map_while(Result::ok) {
            let mut reader = BufReader::new(stream.try_clone().unwrap());
            loop {
                let mut head = String::new();
                while !head.ends_with("\r\n\r\n") {
                    if reader.read_line(&mut head).unwrap_or(0) == 0 {
                        break;
                    }
                }
                let length =
                    head.lines().find_map(|line| line.to_lowercase().strip_prefix("content-length: ")?.parse().ok());
                let Some(length) = length else { break };
                let mut body = vec![0; length];
                reader.read_exact(&mut body).unwrap();
                sender.send((head, body)).unwrap();
                let given = answer;
                answer = answers.next().unwrap_or(answer);
                match given {
                    Answer::Status(code) => {
                        stream.write_all(format!("HTTP/1.1 {code} x\r\nContent-Length: 0\r\n\r\n").as_bytes()).unwrap();
                    }
                    Answer::Reset => break,
                }
            }
        }
    });
    (port, requests)
}

#[test]
fn a_webhook_that_fails_is_asked_again_with_the_same_request() {
    let (port, requests) = server(vec![Answer::Status(500), Answer::Reset, Answer::Status(200)]);
    let text = |webhook: &str, source: &str| {
        format!(
            "name = \"hall\"\nstate-dir = \"state\"\n[webhook]\nurl = \"http://127.0.0.1:{port}/in\"\n{webhook}\n\
             [[line]]\nname = \"cap\"\nmodel = \"MODEL\"\n{source}\nresults = \"cap.jsonl\"\n"
        )
    };
    let shift = Shift::new(&text("secret = \"key\"\nbatch = 7", LIVE));
    let mut running = shift.start();
    running.until("answers 500");
    running.until("webhook: connected to");
    let (code, said) = running.stop();
    assert_eq!(code, 0, "{said}");
    let all: Vec<(String, Vec<u8>)> = requests.try_iter().collect();
    assert!(all[0] == all[1] && all[1] == all[2], "the same key, body and signature");
    let mut results = Vec::new();
    for (head, body) in &all[2..] {
        let mut mac = Hmac::<sha2::Sha256>::new_from_slice(b"key").unwrap();
        mac.update(body);
        let signature: String = mac.finalize().into_bytes().iter().map(|byte| format!("{byte:02x}")).collect();
        assert!(head.to_lowercase().contains(&format!("x-diad-signature: sha256={signature}")), "{head}");
        let body: Value = serde_json::from_slice(body).unwrap();
        let some = body["results"].as_array().unwrap();
        assert_eq!((&body["schema"], &body["name"]), (&1.into(), &"hall".into()));
        assert!((1..=7).contains(&some.len()) && head.contains("POST /in "), "{head}");
        results.extend(some.iter().cloned());
    }
    assert_eq!(results, shift.results("cap.jsonl"));

    // Only what is not ok: none of these, then all.
    std::fs::remove_file(shift.path("cap.jsonl")).unwrap();
    for (filter, wanted) in [("class = \"washer\", threshold = 1e9, warn-threshold = 1e9", 0), ("threshold = 0.0", 12)]
    {
        let line = format!("{}\nfilter = {{ {filter} }}", finite(12));
        shift.write(&text("which = \"not-ok\"", &line));
        assert_eq!(shift.finish(&["run", "line.toml"]).0, 0);
        let bodies = requests.try_iter().map(|(_, body)| serde_json::from_slice::<Value>(&body).unwrap());
        assert_eq!(bodies.map(|body| body["results"].as_array().unwrap().len()).sum::<usize>(), wanted);
    }
}

/// Asks a controller's question: function, and what follows it; the answer behind the function, or the exception's code.
fn ask(controller: &mut TcpStream, unit: u8, function: u8, rest: &[u8]) -> Result<Vec<u8>, u8> {
    let length = u16::try_from(rest.len() + 2).unwrap().to_be_bytes();
    controller.write_all(&[&[0, 9, 0, 0], &length[..], &[unit, function], rest].concat()).unwrap();
    let mut head = [0; 8];
    controller.read_exact(&mut head).unwrap();
    let mut body = vec![0; usize::from(u16::from_be_bytes([head[4], head[5]])) - 2];
    controller.read_exact(&mut body).unwrap();
    assert_eq!((&head[..2], head[6]), (&[0, 9][..], unit));
    if head[7] == function { Ok(body) } else { Err(body[0]) }
}

/// Registers of an answer.
fn words(answer: &[u8]) -> Vec<u16> {
    answer[1..].chunks(2).map(|pair| u16::from_be_bytes([pair[0], pair[1]])).collect()
}

#[test]
fn a_controller_asks_what_a_line_says() {
    let port = free_port();
    let shift = Shift::new(&format!(
        "state-dir = \"state\"\n[modbus]\nlisten = \"127.0.0.1:{port}\"\nunits = {{ cap = 3 }}\nhold = \"10s\"\n\
         [[line]]\nname = \"cap\"\nmodel = \"MODEL\"\n{LIVE}\nresults = \"cap.jsonl\"\nfilter = {{ class = \"washer\", threshold = 1e9, warn-threshold = 1e9 }}\n"
    ));
    let mut running = shift.start();
    running.until("cap: running");
    let mut controller = TcpStream::connect(("127.0.0.1", port)).unwrap();
    let mut inputs = || words(&ask(&mut controller, 3, 4, &[0, 0, 0, 110]).unwrap());
    let mut all = inputs();
    let end = Instant::now() + PATIENCE;
    while all[4] == 0 && Instant::now() < end {
        all = inputs();
    }
    assert_eq!((all[1], all[4], all[5]), (3, 1, 1), "running, ok, passes");
    assert!(all[11] < 10_000 && all[3] > 0 && all[20] == all[3], "{all:?}");
    let part: Vec<u8> = [&[0, 10, 0, 9, 18], &b"P4712"[..], &[0; 11], &[0, 1]].concat();
    assert_eq!(ask(&mut controller, 3, 16, &part), Ok(vec![0, 10, 0, 9]));
    let mut named = Vec::new();
    while named != [0x5034, 0x3731, 0x3200] && Instant::now() < end {
        named = words(&ask(&mut controller, 3, 4, &[0, 12, 0, 3]).unwrap());
    }
    assert_eq!(ask(&mut controller, 1, 4, &[0, 0, 0, 1]), Err(11), "no such unit");
    assert_eq!(ask(&mut controller, 3, 4, &[0, 110, 0, 1]), Err(2), "no such register");
    assert_eq!(ask(&mut controller, 3, 1, &[0, 0, 0, 1]), Err(1), "no such function");
    let (code, said) = running.stop();
    assert_eq!(code, 0, "{said}");
    assert!(shift.results("cap.jsonl").iter().any(|result| result["part_id"] == "P4712"), "the name is in results");

    // A port that somebody has costs a message, not the line.
    let taken = TcpListener::bind(("127.0.0.1", port)).unwrap();
    shift.write(&std::fs::read_to_string(shift.path("line.toml")).unwrap().replace(LIVE, &finite(5)).replacen(
        "schema = 1",
        "",
        1,
    ));
    let (code, said) = shift.finish(&["run", "line.toml"]);
    assert!(code == 0 && said.contains("modbus: listen = \"127.0.0.1:") && said.contains("cap: ended: 5"), "{said}");
    drop(taken);
}

#[test]
fn a_port_that_is_free_again_is_taken_at_the_next_reload() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap();
    let shift = Shift::new(&format!(
        "state-dir = \"state\"\n[modbus]\nlisten = \"{address}\"\nunits = {{ cap = 1 }}\n\
         [[line]]\nname = \"cap\"\nmodel = \"MODEL\"\n{LIVE}\n"
    ));
    let mut running = shift.start();
    running.until("modbus: listen = ");
    running.until("cap: running");
    drop(taken);
    running.signal("HUP");
    let end = Instant::now() + PATIENCE;
    let mut controller = loop {
        match TcpStream::connect(address) {
            Ok(controller) => break controller,
            Err(error) => assert!(Instant::now() < end, "{error}"),
        }
    };
    assert!(ask(&mut controller, 1, 4, &[0, 0, 0, 1]).is_ok());
    assert_eq!(running.stop().0, 0);
}

#[test]
fn two_programs_do_not_share_what_is_theirs() {
    let shift = Shift::new(&format!("state-dir = \"state\"\n[[line]]\nname = \"cap\"\nmodel = \"MODEL\"\n{LIVE}\n"));
    let mut running = shift.start();
    running.until("cap: running");
    let (code, said) = shift.finish(&["run", "line.toml"]);
    assert!(code == 2 && said.contains("state-dir = \"state\": another diad-run works in it"), "{said}");
    assert_eq!(running.stop().0, 0);
}
