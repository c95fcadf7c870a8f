//! The operator's manual is true: its table is the elements' introspection, its pipelines run.

use std::fmt::Write as _;
use std::fs;

use gst::glib;
use gst::prelude::*;

use super::*;

fn readme() -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../README.md")).unwrap()
}

/// Type and range of a property, in words.
fn kind(spec: &glib::ParamSpec) -> String {
    let range = |low: String, high: String| format!("{low} to {high}");
    if let Some(spec) = spec.downcast_ref::<glib::ParamSpecUInt>() {
        let high = if spec.maximum() == u32::MAX { "4294967295".into() } else { spec.maximum().to_string() };
        format!("uint, {}", range(spec.minimum().to_string(), high))
    } else if spec.is::<glib::ParamSpecUInt64>() {
        let bytes = spec.blurb().is_some_and(|blurb| blurb.contains("Bytes"));
        if bytes { "uint64, bytes".into() } else { "uint64, ns".into() }
    } else if spec.is::<glib::ParamSpecBoolean>() {
        "boolean".into()
    } else if let Some(spec) = spec.downcast_ref::<glib::ParamSpecInt>() {
        format!("int, {} or more", spec.minimum())
    } else if let Some(spec) = spec.downcast_ref::<glib::ParamSpecDouble>() {
        match spec.maximum() {
            f64::MAX => format!("double, {} or more", spec.minimum()),
            high => format!("double, {}", range(spec.minimum().to_string(), high.to_string())),
        }
    } else if let Some(class) = glib::EnumClass::with_type(spec.value_type()) {
        class.values().iter().map(|value| value.nick().to_owned()).collect::<Vec<_>>().join(", ")
    } else if let Some(class) = glib::FlagsClass::with_type(spec.value_type()) {
        class.values().iter().map(|value| value.nick().to_owned()).collect::<Vec<_>>().join("+")
    } else if spec.value_type() == gst::Structure::static_type() {
        "structure".into()
    } else {
        "string".into()
    }
}

fn default(spec: &glib::ParamSpec) -> String {
    let value = spec.default_value();
    if let Ok(text) = value.get::<Option<String>>() {
        return text.unwrap_or_else(|| "none".into());
    }
    if spec.value_type() == gst::Structure::static_type() {
        return "read only".into();
    }
    if let Some(class) = glib::FlagsClass::with_type(spec.value_type()) {
        let nicks = class.values().iter().filter(|flag| class.is_set(value, flag.value())).map(|flag| flag.nick());
        return nicks.collect::<Vec<_>>().join("+");
    }
    if let Ok(number) = value.get::<f64>() {
        return number.to_string();
    }
    value.serialize().map_or_else(|_| "none".into(), |text| text.to_string())
}

fn table(factory: &str) -> String {
    let element = gst::ElementFactory::make(factory).build().unwrap();
    let mut table =
        String::from("| property | values | default | changes in | what it does |\n| --- | --- | --- | --- | --- |\n");
    // Every sink has the same properties of its base class; what we do with them stands beside the table.
    let own = |spec: &&glib::ParamSpec| {
        !["name", "parent"].contains(&spec.name()) && spec.owner_type() != gst_base::BaseSink::static_type()
    };
    for spec in element.list_properties().iter().filter(own) {
        let when = match spec.flags() {
            flags if !flags.contains(glib::ParamFlags::WRITABLE) => "",
            flags if flags.contains(gst::PARAM_FLAG_MUTABLE_PLAYING) => "playing",
            _ => "ready",
        };
        let (name, kind, default, blurb) = (spec.name(), kind(spec), default(spec), spec.blurb().unwrap_or_default());
        writeln!(table, "| `{name}` | {kind} | {default} | {when} | {blurb} |").unwrap();
    }
    table
}

#[test]
fn the_property_tables_are_those_of_the_elements() {
    init();
    let lines = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../src/guide/lines.md")).unwrap();
    for (factory, text, page) in [
        ("diadfilter", readme(), "README.md"),
        ("diadoverlay", readme(), "README.md"),
        ("diadselect", readme(), "README.md"),
        ("diadarchive", lines.clone(), "src/guide/lines.md"),
        ("diadclip", lines, "src/guide/lines.md"),
    ] {
        let table = table(factory);
        assert!(text.contains(&table), "{page} has to hold this table:\n{table}");
    }
}

/// Sources that a test machine has not stand for a moving picture; they have tests of their own.
fn local(line: &str) -> String {
    let mut parts: Vec<String> = line.split(" ! ").map(str::to_owned).collect();
    if parts[0].contains("aravissrc") {
        parts[0] = parts[0].split("aravissrc").next().unwrap().to_owned() + "videotestsrc num-buffers=40";
    }
    if parts[0].contains("rtspsrc") {
        let after = parts.iter().position(|part| part.contains("openh264dec")).unwrap();
        parts.drain(1..=after);
        parts[0] = "videotestsrc num-buffers=40".into();
    }
    parts.join(" ! ")
}

#[test]
fn every_pipeline_of_the_readme_runs() {
    init();
    let shop = shop();
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    fs::copy(&shop.model, at("bottle.diad")).unwrap();
    let make = "videotestsrc num-buffers=40 ! video/x-raw,format=I420,width=320,height=240 ! x264enc ! mp4mux ! filesink location=parts.mp4";
    run(launch(make, folder.path()));
    let text = readme();
    let blocks: Vec<&str> = text.split("```gst\n").skip(1).map(|rest| rest.split("```").next().unwrap()).collect();
    assert!(blocks.len() >= 4, "{} pipelines", blocks.len());
    for block in blocks {
        let line = block.replace("\\\n", " ");
        let line =
            line.trim().strip_prefix("gst-launch-1.0 ").unwrap_or_else(|| panic!("{line} is no gst-launch line"));
        run(launch(&local(line), folder.path()));
    }
    for name in ["line1.mp4", "results.jsonl", "clean.mkv", "annotated.mkv", "both.jsonl"] {
        assert!(fs::metadata(at(name)).unwrap().len() > 1000, "{name} was recorded");
    }
}
