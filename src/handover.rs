//! The build for GPUs, to which a program hands over where that one starts.
//!
//! A program that can use NVIDIA's GPUs is linked with the library of the driver, and does not start on a machine without it. So the
//! programs that people start are built for the CPU, and `lib/diad/cuda` beside their folder may hold the same ones built with CUDA
//! (for `/usr/bin/diad` that is `/usr/lib/diad/cuda/diad`, of the package `diad-cuda`).

use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};

/// Environment variable that forbids it.
const VARIABLE: &str = "DIAD_CUDA";

/// Becomes the build for GPUs, with the same arguments. Returns where there is none, where it does not start (no driver, another
/// version), and where `DIAD_CUDA=off` forbids it; a message for debugging says which.
pub fn to_gpu_build() {
    let reason = find().map_or_else(
        |reason| reason,
        |program| {
            let error = Command::new(&program).args(std::env::args_os().skip(1)).exec(); // returns only if that fails
            format!("{}: {error}", program.display())
        },
    );
    tracing::debug!("this build goes on: {reason}");
}

/// The build for GPUs of this program, if it starts.
fn find() -> Result<PathBuf, String> {
    if cfg!(feature = "cuda") {
        return Err("it is the one for GPUs".into());
    }
    match std::env::var(VARIABLE).as_deref() {
        Err(std::env::VarError::NotPresent) | Ok("auto") => {}
        given => return Err(format!("{VARIABLE} = {:?}: only auto lets it hand over", given.unwrap_or("?"))),
    }
    let own = std::env::current_exe().map_err(|error| format!("its own place is not known: {error}"))?;
    let places = own.file_name().zip(own.ancestors().nth(2));
    let (name, prefix) = places.ok_or_else(|| format!("{} is in no folder", own.display()))?;
    let program = prefix.join("lib/diad/cuda").join(name);
    if !program.is_file() {
        return Err(format!("there is no {}", program.display()));
    }
    // The dynamic loader knows best whether it finds the driver and the libraries: without them not even this is answered.
    let answer = Command::new(&program).arg("--version").stdin(Stdio::null()).output();
    let answer = answer.map_err(|error| format!("{}: {error}", program.display()))?;
    let version = format!("{} {}\n", name.display(), env!("CARGO_PKG_VERSION"));
    if answer.stdout != version.as_bytes() {
        let said = String::from_utf8_lossy(&[answer.stdout, answer.stderr].concat()).trim().to_owned();
        return Err(format!("{} --version says {said:?}, expected {version:?}", program.display()));
    }
    Ok(program)
}
