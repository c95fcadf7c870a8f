//! `diad run`: starts `diad-run`, the program that links GStreamer, as git starts its subcommands.

use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Command;

use clap::Args;

use super::args::ValidateArgs;
use crate::error::{Error, Result};

/// The program, and the package that it is in.
const PROGRAM: &str = "diad-run";
const PACKAGE: &str = "gst-plugin-diad";

/// Run lines: cameras that come back, results that are kept.
///
/// Starts diad-run, which is beside diad or on the PATH; `diad run --help` is its manual.
#[derive(Debug, Args)]
#[command(disable_help_flag = true)]
pub(super) struct LinesArgs {
    /// The file of lines (TOML), and options of diad-run
    #[arg(value_name = "ARG", trailing_var_arg = true, allow_hyphen_values = true)]
    pub(super) args: Vec<OsString>,
}

/// Becomes `diad-run run`.
///
/// # Errors
/// When it is not there, or does not start.
pub(super) fn run(args: &LinesArgs) -> Result<()> {
    become_(["run".into()].into_iter().chain(args.args.iter().cloned()))
}

/// Becomes `diad-run validate` if the file has lines in it.
///
/// # Errors
/// As [`run`], or when a camera is to be opened and the file has none.
pub(super) fn validate(args: &ValidateArgs) -> Result<()> {
    let (file, probe) = (&args.file, args.probe);
    let is_line = |line: &str| line.trim_start().starts_with("[[line]]");
    if std::fs::read_to_string(file).is_ok_and(|text| text.lines().any(is_line)) {
        let probe = probe.then(|| "--probe".into());
        return become_(["validate".into(), file.into()].into_iter().chain(probe));
    }
    if probe {
        return Err(Error::Usage(format!("--probe: {} has no [[line]] with a camera to open", file.display())));
    }
    Ok(())
}

fn become_(args: impl IntoIterator<Item = OsString>) -> Result<()> {
    let Some(program) = find() else {
        return Err(Error::Usage(format!(
            "{PROGRAM} is neither beside this program nor on the PATH: install the package {PACKAGE}, or build it with \
             cargo build --release -p {PACKAGE}"
        )));
    };
    let error = Command::new(&program).args(args).exec(); // returns only if that fails
    Err(Error::io(program, "cannot start", error))
}

/// Beside this program, else on the PATH.
fn find() -> Option<PathBuf> {
    let beside = std::env::current_exe().ok().map(|own| own.with_file_name(PROGRAM));
    let path = std::env::var_os("PATH").unwrap_or_default();
    let on_path = std::env::split_paths(&path).map(|folder| folder.join(PROGRAM));
    beside.into_iter().chain(on_path).find(|program| program.is_file())
}
