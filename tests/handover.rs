//! `diad` hands over to its build for GPUs where that one starts, and goes on by itself everywhere else.

#![cfg(unix)]
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking, in its helpers too")]

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

/// `bin/diad` under a prefix of its own, and a place for its build for GPUs.
struct Installed(tempfile::TempDir);

impl Installed {
    fn new() -> Self {
        let installed = Self(tempfile::tempdir().unwrap());
        for folder in ["bin", "lib/diad/cuda"] {
            fs::create_dir_all(installed.path(folder)).unwrap();
        }
        fs::copy(env!("CARGO_BIN_EXE_diad"), installed.path("bin/diad")).unwrap();
        installed
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// A script stands for the build for GPUs: it says `version`, and else its arguments.
    fn gpu_build(&self, version: &str) {
        let script = format!(
            "#!/bin/sh\nif [ \"$*\" = --version ]; then echo '{version}'; else echo \"on a GPU: $*\"; exit 7; fi\n"
        );
        let program = self.path("lib/diad/cuda/diad");
        fs::write(&program, script).unwrap();
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    }

    /// `diad inspect -vv no.diad`: its exit code and what it says, without the variables of this process.
    fn inspect(&self, variables: &[(&str, &Path)]) -> (i32, String) {
        let mut command = Command::new(self.path("bin/diad"));
        command.args(["inspect", "-vv", "no.diad"]).current_dir(self.0.path());
        command.env_remove("DIAD_CUDA").env_remove("LD_LIBRARY_PATH").env_remove("DIAD_LOG");
        let output = command.envs(variables.iter().copied()).output().unwrap();
        let said = String::from_utf8(output.stdout).unwrap() + &String::from_utf8(output.stderr).unwrap();
        (output.status.code().unwrap(), said)
    }

    #[track_caller]
    fn goes_on(&self, variables: &[(&str, &Path)], reason: &str) {
        let (code, said) = self.inspect(variables);
        assert!(code != 7 && said.contains("no.diad") && said.contains(reason), "{code}: {said}");
    }
}

const VERSION: &str = concat!("diad ", env!("CARGO_PKG_VERSION"));

#[test]
fn it_hands_over_with_its_arguments_and_the_exit_code() {
    let installed = Installed::new();
    installed.gpu_build(VERSION);
    assert_eq!(installed.inspect(&[]), (7, "on a GPU: inspect -vv no.diad\n".to_owned()));
    assert_eq!(installed.inspect(&[("DIAD_CUDA", Path::new("auto"))]).0, 7);
}

#[test]
fn it_goes_on_where_it_may_not_or_cannot() {
    let installed = Installed::new();
    installed.goes_on(&[], "there is no ");
    installed.gpu_build(VERSION);
    installed.goes_on(&[("DIAD_CUDA", Path::new("off"))], "DIAD_CUDA");
    installed.goes_on(&[("DIAD_CUDA", Path::new("no"))], "DIAD_CUDA");
    installed.gpu_build("diad 0.0.1"); // left by an older package
    installed.goes_on(&[], "diad 0.0.1");
    fs::set_permissions(installed.path("lib/diad/cuda/diad"), fs::Permissions::from_mode(0o644)).unwrap();
    installed.goes_on(&[], "ermission denied");
}

/// A program that is linked with the driver's library, as the build for GPUs is, asked for by the real loader.
#[test]
fn it_goes_on_without_the_driver() {
    let installed = Installed::new();
    let compile = |source: &str, arguments: &[&str]| {
        fs::write(installed.path("source.c"), source).unwrap();
        let output = Command::new("cc").current_dir(installed.0.path()).arg("source.c").args(arguments).output();
        assert!(output.as_ref().is_ok_and(|output| output.status.success()), "{output:?}");
    };
    let name = "libdiad_driver.so.1"; // libcuda.so.1 may be there
    let library = format!("driver/{name}");
    fs::create_dir(installed.path("driver")).unwrap();
    let soname = format!("-Wl,-soname,{name}");
    compile("int cuInit(void) { return 7; }", &["-shared", "-fPIC", &soname, "-o", &library]);
    let main = "int main(int count, char **_) { return count > 2 ? cuInit() : puts(VERSION) < 0; }";
    let program = format!("#include <stdio.h>\n#define VERSION \"{VERSION}\"\nint cuInit(void);\n{main}\n");
    compile(&program, &["-o", "lib/diad/cuda/diad", &library]);
    installed.goes_on(&[], name);
    assert_eq!(installed.inspect(&[("LD_LIBRARY_PATH", &installed.path("driver"))]), (7, String::new()));
}
