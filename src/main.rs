//! The `diad` command.

use std::process::ExitCode;

fn main() -> ExitCode {
    diad::cli::main(std::env::args_os())
}
