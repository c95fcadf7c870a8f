//! `diad-run`: lines that keep running. Started as `diad run`.
//!
//! `read` takes values out of TOML and collects what is wrong; `config` is what `line.toml` may say, `properties` those of elements in it; `source` and `launch` make a
//! pipeline of it; a `session` is one life of that pipeline; `line` gives it the next one; `tally` counts and writes results; `out` sends
//! them to others; `supervise` looks after all lines; the `board` shows what can be seen of them, `web` tells who asks.

mod board;
mod config;
mod launch;
mod line;
mod out;
mod properties;
mod read;
mod session;
mod source;
mod state;
mod supervise;
mod tally;
mod web;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::{Parser, Subcommand};
use gst::prelude::*;

use self::config::Plan;
use self::launch::Launch;
use self::supervise::Exit;

/// Lines that keep running: cameras that come back, results that are kept.
#[derive(Debug, Parser)]
#[command(name = "diad-run", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the lines of a file
    ///
    /// Each line is a pipeline on a thread of its own: when its camera goes away it is taken down and built anew, and the others do
    /// not notice. SIGTERM and Ctrl-C let the frames that are under way leave. SIGHUP, and a file that has changed, change what
    /// can be changed while a line runs, and start anew what cannot.
    ///
    /// Exit codes: 0 stopped, or all sources at their end; 1 a line has failed for good; 2 the file is wrong; 70 a pipeline does
    /// not come down.
    Run {
        /// The lines (TOML)
        file: PathBuf,
        /// Print each line as gst-launch, and run nothing
        #[arg(long)]
        print: bool,
    },
    /// Say what is wrong with a file of lines
    Validate {
        /// The lines (TOML)
        file: PathBuf,
        /// Open each camera and wait for a frame of it, and connect to the broker
        #[arg(long)]
        probe: bool,
    },
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    diad::handover::to_gpu_build();
    if let Err(error) = gst::init()
        .map_err(|error| error.to_string())
        .and_then(|()| gstdiad::plugin_register_static().map_err(|error| error.to_string()))
    {
        eprintln!("diad-run: error: GStreamer does not start: {error}");
        return ExitCode::from(1);
    }
    if rustls::crypto::ring::default_provider().install_default().is_err() {
        eprintln!("diad-run: error: TLS has another provider already"); // nobody but this line sets one
        return ExitCode::from(1);
    }
    let (Command::Run { file, .. } | Command::Validate { file, .. }) = &cli.command;
    let plan = match Plan::load(file) {
        Ok(plan) => plan,
        Err(mistakes) => {
            eprintln!("diad-run: error: {}: {}", file.display(), mistakes.join("\n  "));
            return ExitCode::from(2);
        }
    };
    match cli.command {
        Command::Run { print: true, .. } => {
            for line in &plan.lines {
                println!("# {}\n{}", line.name, line.launch().shell());
            }
            ExitCode::SUCCESS
        }
        Command::Run { file, .. } => match supervise::run(&file, plan) {
            Ok(exit) => end(exit),
            Err(reason) => {
                eprintln!("diad-run: error: {}: {reason}", file.display());
                ExitCode::from(2)
            }
        },
        Command::Validate { file, probe } => validate(&file, &plan, probe),
    }
}

/// Ends the process at once where a pipeline hangs: its threads would hold up an orderly end.
fn end(exit: Exit) -> ExitCode {
    if exit == Exit::Stuck {
        std::process::exit(exit as i32);
    }
    ExitCode::from(exit as u8)
}

fn validate(file: &Path, plan: &Plan, probes: bool) -> ExitCode {
    let mut wrong = 0;
    for line in plan.lines.iter().filter(|_| probes) {
        match probe(line) {
            Ok(caps) => println!("{}: {caps}", line.name),
            Err(reason) => {
                wrong += 1;
                eprintln!("diad-run: error: {}: {reason}", line.name);
            }
        }
    }
    if let Some(mqtt) = plan.receivers.mqtt.as_ref().filter(|_| probes) {
        match out::greet(mqtt, &plan.name) {
            Ok(broker) => println!("mqtt: {broker} answers"),
            Err(reason) => {
                wrong += 1;
                eprintln!("diad-run: error: mqtt: {reason}");
            }
        }
    }
    if wrong > 0 {
        return ExitCode::from(1);
    }
    println!("{}: {} lines, no mistakes", file.display(), plan.lines.len());
    ExitCode::SUCCESS
}

/// Waits so long for a camera's first frame.
const PROBE: Duration = Duration::from_secs(15);

/// What a line's source delivers.
fn probe(line: &config::Line) -> Result<String, String> {
    let mut launch = Launch::default();
    line.source.launch(&mut launch);
    launch.link("fakesink").set("name", "diad-probe").set("num-buffers", "1").set("sync", "false");
    let element = gst::parse::launch_full(&launch.description(), None, gst::ParseFlags::FATAL_ERRORS);
    let element = element.map_err(|error| format!("the pipeline cannot be built: {error}"))?;
    let bus = element.bus().ok_or("the pipeline has no bus")?;
    let started = element.set_state(gst::State::Playing);
    let patience = if started.is_err() { Duration::from_millis(100) } else { PROBE };
    let patience = gst::ClockTime::try_from(patience).unwrap_or_default();
    let message = bus.timed_pop_filtered(patience, &[gst::MessageType::Error, gst::MessageType::Eos]);
    let found = match message.as_ref().map(|message| message.view()) {
        None => Err(format!("no frame within {} s", PROBE.as_secs())),
        Some(gst::MessageView::Error(error)) => Err(error.error().message().to_owned()),
        Some(_) => {
            let sink = element.downcast_ref::<gst::Bin>().and_then(|bin| bin.by_name("diad-probe"));
            let caps = sink.and_then(|sink| sink.static_pad("sink")).and_then(|pad| pad.current_caps());
            caps.map(|caps| caps.to_string()).ok_or_else(|| "ended without a frame".to_owned())
        }
    };
    let _ = element.set_state(gst::State::Null);
    found
}

/// Tells the operator: the time, the line, and what happened to it.
fn say(line: &str, text: &str) {
    let time = gst::glib::DateTime::now_utc().and_then(|now| now.format("%Y-%m-%dT%H:%M:%SZ"));
    let time = time.map(|time| time.to_string()).unwrap_or_default();
    if line.is_empty() {
        eprintln!("{time} {text}");
    } else {
        eprintln!("{time} {line}: {text}");
    }
}
