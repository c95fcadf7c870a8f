//! The command line: what is typed, what is said, exit codes. The only part of the crate that talks, and the only user
//! of clap and indicatif.

use std::ffi::OsString;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;

use clap::Parser as _;
use clap::error::ErrorKind;

use crate::device::{DeviceSpec, Precision};
use crate::error::{Error, Result};
use crate::train::Stop;

mod ablate;
mod args;
mod backbone;
mod baselines;
mod bench;
mod calibrate;
mod console;
mod crash;
mod demo;
mod evaluate;
mod frames;
mod inspect;
mod predict;
mod progress;
mod sample;
mod signals;
mod table;
mod train;
mod truth;
mod words;

use args::{Cli, Command};
use console::Console;

/// What every command gets beside its arguments.
struct Context {
    console: Console,
    stop: Stop,
}

impl args::DeviceArg {
    /// The device that is meant, if it is there.
    fn find(&self) -> Result<DeviceSpec> {
        self.device.find(Precision::F32)
    }
}

impl args::OnArgs {
    /// As [`args::DeviceArg::find`], with its numbers.
    fn find(&self) -> Result<DeviceSpec> {
        self.place.device.find(self.precision)
    }
}

/// Runs the command that `args` spell; the first of them is the program's name.
pub fn main(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    crash::install();
    let outcome = catch_unwind(AssertUnwindSafe(|| match Cli::try_parse_from(args) {
        Ok(cli) => exit_code(run(cli)),
        Err(error) => usage(&error),
    }));
    // What there is to say about a panic was said by the hook.
    ExitCode::from(outcome.unwrap_or(1))
}

fn run(cli: Cli) -> Result<()> {
    let console = Console::new(cli.quiet);
    subscribe(&console, cli.quiet, cli.verbose);
    let stop = signals::install(&console)?;
    let context = Context { console, stop };
    match cli.command {
        Command::Train(args) => train::run(&context, &args),
        Command::Evaluate(args) => evaluate::run(&context, &args),
        Command::Predict(args) => predict::run(&context, &args),
        Command::Calibrate(args) => calibrate::run(&context, &args),
        Command::Inspect(args) => inspect::run(&context, &args),
        Command::Validate(args) => inspect::validate(&context, &args),
        Command::Backbone(args::BackboneCommand::Import(args)) => backbone::import(&context, &args),
        Command::Bench(args) => bench::run(&context, &args),
        Command::Ablate(args) => ablate::run(&context, &args),
        Command::Sample(args) => sample::run(&context, &args),
        Command::Demo(args) => demo::run(&context, &args),
    }
}

/// The exit code of a finished command, after saying what went wrong.
fn exit_code(outcome: Result<()>) -> u8 {
    match outcome {
        Ok(()) => 0,
        Err(error) if console::is_broken_pipe(&error) => 0,
        Err(error) => {
            console::error(words::error(&error));
            error.exit_code()
        }
    }
}

/// Help and version are answers; everything else is wrong use.
fn usage(error: &clap::Error) -> u8 {
    match error.kind() {
        // A reader that has gone does not matter.
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => {
            let _ = error.print();
            0
        }
        ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => {
            let _ = error.print();
            2
        }
        _ => {
            let text = error.render().to_string();
            console::error(text.trim_start_matches("error: ").trim_end());
            2
        }
    }
}

/// Log lines of the library go to stderr: warnings, with `-v` what goes on, with `-vv` everything. The variable
/// `DIAD_LOG` (`diad=debug`) is stronger.
fn subscribe(console: &Console, quiet: bool, verbose: u8) {
    use tracing_subscriber::{EnvFilter, fmt};

    let level = match verbose {
        _ if quiet => "error",
        0 => "warn",
        1 => "info",
        _ => "trace",
    };
    let filter = EnvFilter::try_from_env("DIAD_LOG").unwrap_or_else(|_| EnvFilter::new(level));
    let writer = console.clone();
    // A second subscriber in one process is a test's; the first one stays.
    let _ = fmt().with_env_filter(filter).with_writer(move || writer.clone()).without_time().try_init();
}

impl Context {
    /// Stops here if somebody asked to.
    fn check_stop(&self) -> Result<()> {
        if self.stop.requested() { Err(Error::Interrupted { checkpoint: None }) } else { Ok(()) }
    }
}
