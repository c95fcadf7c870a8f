//! The command line: arguments, output, exit codes. The only part of the crate that prints, and the only user of clap and
//! indicatif.

use std::ffi::OsString;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};

use clap::Parser as _;
use clap::error::ErrorKind;

use crate::data::{SampleDepth, Stop};
use crate::device::{DeviceSpec, Precision};
use crate::error::Result;

mod ablate;
mod advise;
mod args;
mod backbone;
mod baselines;
mod bench;
mod calibrate;
mod console;
mod coverage;
mod crash;
mod demo;
mod evaluate;
mod figures;
mod ground_truth;
mod images;
mod inspect;
mod jsonl;
mod label;
mod layers;
mod messages;
mod models;
mod predict;
mod progress;
mod run;
mod sample;
mod sight;
mod signals;
mod table;
mod train;

use args::{Cli, Command};
use console::Console;
use progress::Task;

/// What every command is given beside its arguments.
struct Context {
    console: Console,
    stop: Stop,
    /// How many of their 16 bits the images of this run use.
    depth: SampleDepth,
    /// Whether the user was warned of that.
    depth_told: AtomicBool,
}

impl args::DeviceArg {
    /// The device that the argument names.
    ///
    /// # Errors
    /// When it is not there.
    fn find(&self) -> Result<DeviceSpec> {
        self.device.find(Precision::Auto)
    }
}

impl args::OnArgs {
    /// The device and the precision that the arguments name.
    ///
    /// # Errors
    /// When it is not there, or does not compute in this precision.
    fn find(&self) -> Result<DeviceSpec> {
        self.place.device.find(self.precision)
    }
}

/// Runs the command given by `args`, of which the first is the program's name; returns its exit code.
pub fn main(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    crash::install();
    let outcome = catch_unwind(AssertUnwindSafe(|| match Cli::try_parse_from(args) {
        Ok(cli) => exit_code(run(cli)),
        Err(error) => usage(&error),
    }));
    // The hook has printed a message about a panic.
    ExitCode::from(outcome.unwrap_or(1))
}

fn run(cli: Cli) -> Result<()> {
    let console = Console::new(cli.quiet);
    subscribe(&console, cli.quiet, cli.verbose);
    crate::handover::to_gpu_build();
    let stop = signals::install(&console)?;
    let context = Context { console, stop, depth: SampleDepth::default(), depth_told: AtomicBool::new(false) };
    let outcome = match cli.command {
        Command::Train(args) => train::run(&context, &args),
        Command::Evaluate(args) => evaluate::run(&context, &args),
        Command::Predict(args) => predict::run(&context, &args),
        Command::Calibrate(args) => calibrate::run(&context, &args),
        Command::Inspect(args) => inspect::run(&context, &args),
        Command::Validate(args) => run::validate(&args).and_then(|()| inspect::validate(&context, &args)),
        Command::Run(args) => run::run(&args),
        Command::Models(command) => models::run(&context, &command),
        Command::Label(args) => label::run(&context, &args),
        Command::Backbone(backbone::BackboneCommand::Import(args)) => backbone::import(&context, &args),
        Command::Bench(args) => bench::run(&context, &args),
        Command::Advise(args) => advise::run(&context, &args),
        Command::Ablate(args) => ablate::run(&context, &args),
        Command::Coverage(args) => coverage::run(&context, &args),
        Command::Sample(args) => sample::run(&context, &args),
        Command::Demo(args) => demo::run(&context, &args),
    };
    context.warn_of_depth(&context.depth);
    outcome
}

/// The exit code of a finished command; prints its error.
fn exit_code(outcome: Result<()>) -> u8 {
    match outcome {
        Ok(()) => 0,
        Err(error) if console::is_broken_pipe(&error) => 0,
        Err(error) => {
            console::error(messages::error(&error));
            error.exit_code()
        }
    }
}

/// The exit code after clap's message: help and version are answers, everything else is wrong use.
fn usage(error: &clap::Error) -> u8 {
    use ErrorKind::{DisplayHelp, DisplayHelpOnMissingArgumentOrSubcommand, DisplayVersion};
    if matches!(error.kind(), DisplayHelp | DisplayVersion | DisplayHelpOnMissingArgumentOrSubcommand) {
        let _ = error.print(); // it does not matter if the reader of stdout has gone
    } else {
        console::error(error.render().to_string().trim_start_matches("error: ").trim_end());
    }
    error.exit_code() as u8
}

/// Writes log lines of the library to stderr: warnings, with `-v` also information, with `-vv` everything. The environment
/// variable `DIAD_LOG` (for instance `diad=debug`) takes precedence.
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
    // Fails if there is a subscriber already, as in tests; that one stays.
    let _ = fmt().with_env_filter(filter).with_writer(move || writer.clone()).without_time().try_init();
}

impl Context {
    /// Warns, once in a run, of images that do not use their 16 bits.
    fn warn_of_depth(&self, depth: &SampleDepth) {
        if let Some(text) = depth.warning()
            && !self.depth_told.swap(true, Ordering::Relaxed)
        {
            self.console.warn(text);
        }
    }

    /// Shows the progress of `total` things.
    fn task(&self, name: &'static str, total: usize) -> Task {
        Task::new(self.console.clone(), name, 0, total)
    }
}
