//! `diad-run` as an operator starts it: lines that end, cameras that come back, files that change, and what is said about all that.

#[path = "../common/mod.rs"]
mod common;

mod archive;
mod cameras;
mod clips;
mod outputs;
mod versions;
mod web;
mod wrong;

use std::io::{BufRead, BufReader};
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use common::{files, init, shop};
use crossbeam_channel::{Receiver, RecvTimeoutError, bounded};
use serde_json::Value;

/// Longer than anything here takes.
const PATIENCE: Duration = Duration::from_secs(60);

/// `diad-run` in a folder of its own, without any path to plugins.
struct Shift {
    folder: tempfile::TempDir,
}

impl Shift {
    /// With this file of lines; `MODEL` stands for a model.
    fn new(text: &str) -> Self {
        init();
        let shift = Self { folder: tempfile::tempdir().unwrap() };
        shift.write(text);
        shift
    }

    fn write(&self, text: &str) {
        let text = text.replace("MODEL", shop().model.to_str().unwrap());
        std::fs::write(self.path("new.toml"), format!("schema = 1\n{text}")).unwrap();
        std::fs::rename(self.path("new.toml"), self.path("line.toml")).unwrap();
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_diad-run"));
        command.args(arguments).current_dir(self.folder.path()).stdin(Stdio::null());
        command.env_remove("GST_PLUGIN_PATH").env("GST_REGISTRY", self.path("registry.bin"));
        command
    }

    /// Runs to the end: exit code, and what was said.
    fn finish(&self, arguments: &[&str]) -> (i32, String) {
        let output = self.command(arguments).output().unwrap();
        let said = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
        (output.status.code().unwrap(), said)
    }

    fn start(&self) -> Running {
        Running::start(self.command(&["run", "line.toml"]))
    }

    /// Results of a line.
    fn results(&self, name: &str) -> Vec<Value> {
        let text = std::fs::read_to_string(self.path(name)).unwrap();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }
}

/// A program under way, and what it says.
struct Running {
    child: Child,
    said: Receiver<String>,
    reader: Option<JoinHandle<()>>,
    all: Vec<String>,
}

impl Running {
    fn start(mut command: Command) -> Self {
        let mut child = command.stderr(Stdio::piped()).spawn().unwrap();
        let (sender, said) = bounded(10_000);
        let lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let read = move || lines.map_while(Result::ok).try_for_each(|line| sender.send(line)).unwrap_or_default();
        let reader = std::thread::Builder::new().name("said".into()).spawn(read).unwrap();
        Self { child, said, reader: Some(reader), all: Vec::new() }
    }

    /// Waits until a line is said that has `text` in it.
    #[track_caller]
    fn until(&mut self, text: &str) -> String {
        let end = Instant::now() + PATIENCE;
        loop {
            match self.said.recv_timeout(end.saturating_duration_since(Instant::now())) {
                Ok(line) => {
                    self.all.push(line.clone());
                    if line.contains(text) {
                        return line;
                    }
                }
                Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {
                    panic!("{text:?} was not said:\n{}", self.all.join("\n"))
                }
            }
        }
    }

    fn signal(&self, name: &str) {
        signal(self.child.id(), name);
    }

    /// Exit code, and all that was said.
    fn end(mut self) -> (i32, String) {
        let code = self.child.wait().unwrap().code().unwrap();
        self.all.extend(self.said.iter());
        self.reader.take().unwrap().join().unwrap();
        (code, std::mem::take(&mut self.all).join("\n"))
    }

    /// SIGTERM, and the end.
    fn stop(self) -> (i32, String) {
        self.signal("TERM");
        self.end()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn signal(process: u32, name: &str) {
    // The shell's own: not every machine has a program of that name.
    let sent = Command::new("sh").args(["-c", &format!("kill -{name} {process}")]).status().unwrap();
    assert!(sent.success(), "kill -{name}");
}

/// A port that nobody has just now.
fn free_port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// Sequence numbers of results, which name their line.
fn sequence(results: &[Value], line: &str) -> Vec<u64> {
    assert!(results.iter().all(|result| result["line"] == line));
    results.iter().map(|result| result["sequence"].as_u64().unwrap()).collect()
}

/// A camera that is none, at 20 frames a second.
const LIVE: &str =
    "source = { launch = \"videotestsrc is-live=true ! video/x-raw,width=64,height=64,framerate=20/1\" }";

fn finite(frames: usize) -> String {
    format!(
        "source = {{ launch = \"videotestsrc num-buffers={frames} ! video/x-raw,width=64,height=64,framerate=20/1\" }}"
    )
}

#[test]
fn lines_that_end_are_run_to_their_end_and_numbers_go_on() {
    let (a, b) = (finite(30), finite(20));
    let shift = Shift::new(&format!(
        "state-dir = \"state\"\n[defaults]\nmodel = \"MODEL\"\n\
         [[line]]\nname = \"a\"\n{a}\nresults = \"a.jsonl\"\n[[line]]\nname = \"b\"\n{b}\nfilter = {{ meta = \"regions\" }}\n"
    ));
    for round in 1..=2 {
        let (code, said) = shift.finish(&["run", "line.toml"]);
        assert_eq!(code, 0, "{said}");
        assert!(said.contains("a: ended: 30 frames, 30 "), "{said}");
        assert!(said.contains("b: ended: 20 frames, 20 uninspected"), "no result is no inspection: {said}");
        let results = shift.results("a.jsonl");
        assert_eq!(sequence(&results, "a"), (1..=30 * round).collect::<Vec<_>>());
        assert!(results.iter().all(|result| result["results"][0]["element"] == "a" && result["utc"].is_string()));
    }
}

#[test]
fn a_stop_lets_frames_leave() {
    let shift = Shift::new(&format!("[[line]]\nname = \"cap\"\nmodel = \"MODEL\"\n{LIVE}\nresults = \"cap.jsonl\"\n"));
    let mut running = shift.start();
    running.until("cap: running");
    let (code, said) = running.stop();
    assert_eq!(code, 0, "{said}");
    let stopped = said.lines().find(|line| line.contains("cap: stopped: ")).unwrap();
    let mut numbers = stopped
        .rsplit_once("stopped: ")
        .unwrap()
        .1
        .split(", ")
        .map(|part| part.split(' ').next().unwrap().parse::<usize>().unwrap());
    let frames = numbers.next().unwrap();
    assert_eq!((frames, shift.results("cap.jsonl").len()), (numbers.sum(), frames), "frames in = verdicts: {said}");
    assert!(frames > 0);
}

#[test]
fn a_line_at_its_end_stays_there_when_the_file_changes() {
    let lines = |filter: &str| {
        let (ends, goes) = (finite(10), LIVE);
        format!(
            "[defaults]\nmodel = \"MODEL\"\n[[line]]\nname = \"ends\"\n{ends}\nresults = \"ends.jsonl\"\n\
             [[line]]\nname = \"goes\"\n{goes}\n{filter}\n"
        )
    };
    let shift = Shift::new(&lines(""));
    let mut running = shift.start();
    running.until("ends: ended: 10 frames");
    shift.write(&lines("filter = { threshold = 3.0 }"));
    running.signal("HUP");
    running.until("goes: changed: threshold");
    assert_eq!(running.stop().0, 0);
    assert_eq!(shift.results("ends.jsonl").len(), 10);
}

#[test]
fn a_file_that_changes_changes_the_lines() {
    let line = |name: &str, filter: &str| format!("[[line]]\nname = \"{name}\"\nmodel = \"MODEL\"\n{LIVE}\n{filter}\n");
    let (keep, gone) = (line("keep", ""), line("gone", ""));
    let shift = Shift::new(&format!("{keep}{gone}"));
    let mut running = shift.start();
    running.until(": running");
    running.until(": running");

    shift.write(&format!("{keep}[[line]]\nname = \"new\"\n"));
    running.signal("HUP");
    let told = running.until("nothing is changed");
    assert!(told.contains("line.toml"), "{told}");
    running.until("line[1].source: is missing");

    // Without a signal: the file is looked at.
    shift.write(&format!("{}{}", line("keep", "filter = { threshold = 1e9 }"), line("new", "")));
    running.until("gone: is no longer in the file");
    running.until("keep: changed: threshold");
    running.until("new: running");
    shift.write(&line("keep", "filter = { threshold = 1e9, batch-size = 2 }"));
    running.until("keep: changed: built anew");
    running.until("keep: running");
    let (code, said) = running.stop();
    assert_eq!(code, 0, "{said}");
    assert!(!said.contains("camera-lost"), "{said}");
}

#[test]
fn a_line_that_cannot_start_is_tried_as_often_as_was_asked_for() {
    let broken = "source = { launch = \"videotestsrc ! video/x-raw,format=NV12_4L4,width=64,height=64\" }";
    let line = format!("[[line]]\nname = \"x\"\nmodel = \"MODEL\"\n{broken}\nattempts = 2\n");
    let shift =
        Shift::new(&format!("{line}on-failure = \"exit\"\n[[line]]\nname = \"y\"\nmodel = \"MODEL\"\n{LIVE}\n"));
    let (code, said) = shift.finish(&["run", "line.toml"]);
    assert_eq!(code, 1, "{said}");
    assert!(said.contains("x: camera-lost: ") && said.contains("x: failed: "), "{said}");
    assert!(said.contains("y: stopped: "), "{said}");
    let shift = Shift::new(&line);
    assert_eq!(shift.finish(&["run", "line.toml"]).0, 1, "none is left");
}

#[test]
fn a_pipeline_that_hangs_does_not_hold_up_the_end() {
    let shift = Shift::new(&format!(
        "[defaults]\nmodel = \"MODEL\"\nstop = \"500ms\"\nteardown = \"500ms\"\n\
         [[line]]\nname = \"hung\"\nsource = {{ launch = \"filesrc location=fifo ! decodebin ! videoconvert\" }}\n\
         [[line]]\nname = \"good\"\n{LIVE}\n"
    ));
    // Opening it waits for somebody who writes.
    assert!(Command::new("mkfifo").arg(shift.path("fifo")).status().unwrap().success());
    let mut running = shift.start();
    running.until("good: running");
    let (code, said) = running.stop();
    assert_eq!(code, 70, "{said}");
    assert!(said.contains("good: stopped: "), "{said}");
}

/// Without a service manager that would end it.
#[test]
fn a_pipeline_that_never_starts_ends_the_program() {
    let shift = Shift::new(
        "[[line]]\nname = \"hung\"\nmodel = \"MODEL\"\nteardown = \"100ms\"\nstop = \"100ms\"\n\
         source = { launch = \"filesrc location=fifo ! decodebin ! videoconvert\" }\n",
    );
    assert!(Command::new("mkfifo").arg(shift.path("fifo")).status().unwrap().success());
    let (code, said) = shift.finish(&["run", "line.toml"]);
    assert!(code == 70 && said.contains("hung: stuck: "), "{code}: {said}");
}

#[test]
fn the_service_manager_is_told() {
    let shift = Shift::new(&format!("[[line]]\nname = \"cap\"\nmodel = \"MODEL\"\n{LIVE}\n"));
    let socket = UnixDatagram::bind(shift.path("notify")).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut command = shift.command(&["run", "line.toml"]);
    command.env("NOTIFY_SOCKET", shift.path("notify")).env("WATCHDOG_USEC", "300000");
    let mut running = Running::start(command);
    let mut buffer = [0; 4096];
    let mut heard = String::new();
    let mut until = |heard: &mut String, text: &str| {
        while !heard.contains(text) {
            let n = socket.recv(&mut buffer).unwrap_or_else(|error| panic!("{text} is not told: {error}\n{heard}"));
            *heard += std::str::from_utf8(&buffer[..n]).unwrap();
            *heard += "\n";
        }
    };
    until(&mut heard, "READY=1");
    until(&mut heard, "STATUS=");
    running.until("cap: running");
    until(&mut heard, "WATCHDOG=1");
    running.signal("TERM");
    until(&mut heard, "STOPPING=1");
    assert_eq!(running.end().0, 0);
}

#[test]
fn a_line_is_shown_as_gst_launch_without_its_secrets() {
    let shift = Shift::new(
        "[defaults]\nmodel = \"MODEL\"\n[[line]]\nname = \"r\"\n\
         source = { rtsp = \"rtsp://10.1.1.7/s1\", latency = \"150ms\", transport = \"tcp\", user = \"u\", password-file = \"pw\" }\n\
         [[line]]\nname = \"g\"\nsource = { aravis = \"Basler-1\", format = \"GRAY8\", triggered = true }\n\
         filter = { target-fpr = 0.01, roi = \"0.1,0.1,0.8,0.8\" }\noutput = \"videoconvert ! autovideosink\"\n",
    );
    std::fs::write(shift.path("pw"), "geheim\n").unwrap();
    let (code, said) = shift.finish(&["run", "line.toml", "--print"]);
    assert_eq!(code, 0, "{said}");
    let model = shop().model.display().to_string();
    let expected = format!(
        "# r\ngst-launch-1.0 -e rtspsrc location=rtsp://10.1.1.7/s1 latency=150 protocols=tcp user-id=u user-pw=… ! \
         application/x-rtp,media=video ! decodebin ! videoconvert ! identity name=r-source silent=true ! \
         diadfilter name=r model={model} ! fakesink sync=false async=false\n\
         # g\ngst-launch-1.0 -e aravissrc camera-name=Basler-1 ! video/x-raw,format=GRAY8,framerate=1/20 ! videoconvert ! \
         identity name=g-source silent=true ! diadfilter name=g model={model} roi=0.1,0.1,0.8,0.8 target-fpr=0.01 ! \
         videoconvert ! autovideosink\n"
    );
    assert_eq!(said, expected);
}
