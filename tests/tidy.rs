//! The repository's own rules: layout, direction of dependencies, length of files.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn sources(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(sources(&path));
        } else if path.extension().is_some_and(|e| e == "rs") {
            found.push(path);
        }
    }
    found.sort();
    found
}

fn all_sources() -> Vec<PathBuf> {
    ["src", "plugin", "tests", "examples"]
        .iter()
        .map(|f| root().join(f))
        .filter(|f| f.is_dir())
        .flat_map(|f| sources(&f))
        .collect()
}

#[test]
fn no_source_file_is_longer_than_600_lines() {
    let lines = |path: &PathBuf| fs::read_to_string(path).unwrap().lines().count();
    let long: Vec<_> = all_sources().into_iter().filter(|p| lines(p) > 600).collect();
    assert!(long.is_empty(), "split these by idea: {long:?}");
}

#[test]
fn the_top_level_holds_what_the_layout_says() {
    let allowed = ["Cargo.toml", "Cargo.lock", "README.md", "src", "plugin", "configs", "tests", "examples", "target"];
    let left = ["demo", "proptest-regressions"]; // what the demo and failing tests leave; ignored by git
    for entry in fs::read_dir(root()).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        assert!(
            name.starts_with('.')
                || name.starts_with("LICENSE")
                || allowed.contains(&name.as_str())
                || left.contains(&name.as_str()),
            "{name}"
        );
    }
}

/// Rooms from the bottom up, and the rooms each may enter.
const ROOMS: &[(&str, &[&str])] = &[
    ("error", &[]),
    ("named", &["error"]),
    ("precision", &["error", "named"]),
    ("text", &[]),
    ("files", &["error"]),
    ("handover", &[]),
    ("calibrate", &["error"]),
    ("regions", &["error"]),
    ("metrics", &["calibrate", "error", "regions"]),
    ("kernels", &[]),
    ("device", &["error", "kernels", "named", "precision"]),
    ("ops", &["kernels"]),
    ("diffusion", &["error", "named"]),
    ("config", &["diffusion", "error", "files", "named", "precision", "text"]),
    ("frame", &["config", "error", "files"]),
    ("heatmap", &["frame"]),
    ("data", &["config", "error", "files", "frame", "text"]),
    ("synthetic", &["data", "error", "frame", "named"]),
    ("model", &["config", "device", "error", "files", "kernels", "ops", "text"]),
    ("maps", &["config"]),
    ("residuals", &["config", "error", "kernels"]),
    ("features", &["config", "device", "error", "frame", "kernels", "maps", "model"]),
    ("bundle", &["calibrate", "config", "error", "files", "named", "precision", "text"]),
    (
        "detector",
        &[
            "bundle",
            "calibrate",
            "config",
            "device",
            "diffusion",
            "error",
            "features",
            "frame",
            "kernels",
            "maps",
            "model",
            "named",
            "regions",
            "residuals",
        ],
    ),
    ("archive", &["detector", "error", "files", "frame", "named", "text"]),
    ("versions", &["bundle", "detector", "error", "files", "named", "text"]),
    ("spool", &["error"]),
    (
        "train",
        &[
            "bundle",
            "calibrate",
            "config",
            "data",
            "detector",
            "device",
            "diffusion",
            "error",
            "features",
            "files",
            "frame",
            "kernels",
            "metrics",
            "model",
            "residuals",
            "text",
        ],
    ),
    ("worker", &["bundle", "calibrate", "config", "detector", "device", "error", "frame", "regions"]),
    ("baselines", &["config", "data", "detector", "error", "features", "frame", "kernels", "model", "residuals"]),
    ("report", &["error", "files", "frame", "heatmap", "metrics", "regions"]),
];

#[test]
fn dependencies_point_one_way() {
    let src = root().join("src");
    let mut broken = BTreeSet::new();
    for path in sources(&src) {
        let inner = path.strip_prefix(&src).unwrap();
        let room = inner.components().next().unwrap().as_os_str().to_str().unwrap().trim_end_matches(".rs").to_owned();
        let Some((_, allowed)) = ROOMS.iter().find(|(name, _)| *name == room) else {
            assert!(
                ["cli", "guide", "lib", "main"].contains(&room.as_str()),
                "src/{room} has no place in the table of rooms"
            );
            continue;
        };
        let text = fs::read_to_string(&path).unwrap();
        for (number, line) in text.lines().enumerate() {
            let code = line.trim_start();
            if code.starts_with("//") {
                continue;
            }
            for part in code.split("crate::").skip(1) {
                let used: String = part.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
                if used != room && !allowed.contains(&used.as_str()) {
                    broken.insert(format!("{}:{}: {room} uses {used}", inner.display(), number + 1));
                }
            }
            let talks = ["println!", "eprintln!", "clap::", "indicatif::"].iter().any(|word| code.contains(word));
            let tests = text[..text.find(line).unwrap()].contains("#[cfg(test)]") || inner.ends_with("tests.rs");
            if talks && !tests {
                broken.insert(format!("{}:{}: only cli talks", inner.display(), number + 1));
            }
            if code.contains("gstreamer::") || code.contains("gst::") {
                broken.insert(format!("{}:{}: no GStreamer in src", inner.display(), number + 1));
            }
        }
    }
    assert!(broken.is_empty(), "{broken:#?}");
}
