//! Whole pipelines as an operator types them, in a process of their own: cameras, recordings, what is in them afterwards.

#[path = "../common/mod.rs"]
mod common;

#[cfg(feature = "analytics")]
mod analytics;
mod camera;
mod clips;
mod readers;
mod readme;
mod record;
mod video;

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use common::{Shop, files, init, shop};
use serde_json::Value;

/// A folder below `folder` that holds the plugin as cargo built it, and nothing else for GStreamer to look through.
fn plugin_folder(folder: &Path) -> PathBuf {
    let (test, plugins) = (std::env::current_exe().unwrap(), folder.join(".plugins"));
    let built = test.with_file_name("libgstdiad.so");
    assert!(built.is_file(), "{} is there", built.display());
    std::fs::create_dir_all(&plugins).unwrap();
    let link = plugins.join("libgstdiad.so");
    if !link.exists() {
        std::os::unix::fs::symlink(built, link).unwrap();
    }
    plugins
}

/// `gst-launch-1.0` with arguments separated by spaces, run in `folder`.
fn launch(line: &str, folder: &Path) -> Command {
    let mut command = Command::new("gst-launch-1.0");
    prepare(&mut command, folder);
    command.args(words(line));
    command
}

/// Where the plugin is found, with a registry of its own so that nobody else's is touched.
fn prepare(command: &mut Command, folder: &Path) {
    command
        .current_dir(folder)
        .env("GST_PLUGIN_PATH", plugin_folder(folder))
        .env("GST_REGISTRY", folder.join(".registry.bin"))
        .stdin(Stdio::null());
}

/// As a shell splits a line with double and single quotes.
fn words(line: &str) -> Vec<String> {
    let (mut words, mut word, mut quote, mut any) = (Vec::new(), String::new(), None, false);
    for c in line.chars() {
        match (quote, c) {
            (Some(q), c) if c == q => quote = None,
            (None, '"' | '\'') => (quote, any) = (Some(c), true),
            (None, c) if c.is_whitespace() => {
                if any || !word.is_empty() {
                    words.push(std::mem::take(&mut word));
                }
                any = false;
            }
            (_, c) => word.push(c),
        }
    }
    if any || !word.is_empty() {
        words.push(word);
    }
    words
}

/// Runs to its end, which must be a good one; what it printed.
#[track_caller]
fn run(mut command: Command) -> String {
    let output = command.output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}\n{said}");
    said
}

/// The objects of a file of JSON lines.
fn lines(path: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(path).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}
