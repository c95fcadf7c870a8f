//! `line.toml`: what it may say, and what of it is wrong.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use diad::config::syntax;
use toml::Table;

use super::launch::Launch;
use super::out::Receivers;
use super::properties::{self, Properties};
use super::read::{Reading, Section};
use super::source::Source;

/// The version of the file that this program reads.
const SCHEMA: u32 = 1;

/// A file that was read and found right.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Plan {
    /// Name of the whole, as others see it.
    pub(crate) name: String,
    /// Where this program keeps what must outlive it.
    pub(crate) state_dir: PathBuf,
    pub(crate) lines: Vec<Line>,
    /// Who gets results.
    pub(crate) receivers: Receivers,
    /// Where others may ask how things are.
    pub(crate) listen: Option<SocketAddr>,
}

/// A line: a source, a model, and what becomes of the frames.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Line {
    pub(crate) name: String,
    pub(crate) source: Source,
    /// The model file.
    pub(crate) model: String,
    /// The folder of versions that it is in use in, where the file of lines names one.
    pub(crate) versions: Option<PathBuf>,
    /// Properties of its `diadfilter`.
    pub(crate) filter: Properties,
    /// Properties of its `diadarchive`, where it has one.
    pub(crate) archive: Option<Properties>,
    /// Properties of the `diadclip` that keeps clips, where there is one, and of that which keeps everything.
    pub(crate) clips: Option<Properties>,
    pub(crate) record: Option<Properties>,
    /// Elements behind the inspection.
    pub(crate) output: String,
    /// Where a JSON object for each frame goes.
    pub(crate) results: Option<PathBuf>,
    pub(crate) watch: Watch,
    /// What happens when the line has failed for good.
    pub(crate) on_failure: OnFailure,
}

/// How long is waited for what.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Watch {
    /// Without a frame for so long a camera is taken for lost.
    pub(crate) stall: Option<Duration>,
    /// Taking a pipeline down may last so long.
    pub(crate) teardown: Duration,
    /// At a stop frames that are under way may take so long to leave.
    pub(crate) stop: Duration,
    /// Starts that may fail one after the other before the line has failed; 0: any number.
    pub(crate) attempts: u32,
}

/// What happens when a line has failed for good.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum OnFailure {
    /// The others go on.
    Continue,
    /// Everything ends, with exit code 1.
    Exit,
}

/// What a line has, or takes from `[defaults]`.
#[derive(Clone, Debug, Default)]
struct Given {
    model: Option<String>,
    filter: Properties,
    archive: Option<Properties>,
    clips: Option<Properties>,
    record: Option<Properties>,
    output: Option<String>,
    results: Option<PathBuf>,
    stall: Option<Option<Duration>>,
    teardown: Option<Duration>,
    stop: Option<Duration>,
    attempts: Option<u32>,
    on_failure: Option<OnFailure>,
}

impl Plan {
    /// From the text of a file; `variable` is the environment.
    ///
    /// # Errors
    /// Every mistake: syntax if there is any, else unknown keys (with the one that may be meant), wrong types, impossible values,
    /// properties that `diadfilter` does not have, models and folders that are not there.
    pub(crate) fn read(text: &str, variable: &dyn Fn(&str) -> Option<String>) -> Result<Self, Vec<String>> {
        let table = syntax::parse(text)?;
        let reading = Reading::new(variable);
        let plan = read(&reading, &table);
        let mistakes = reading.finish(text);
        match plan {
            Some(plan) if mistakes.is_empty() => Ok(plan),
            _ => Err(mistakes),
        }
    }

    /// From a file. Relative paths in it count from the folder that the program was started in.
    ///
    /// # Errors
    /// As [`Plan::read`], or when it cannot be read.
    pub(crate) fn load(path: &Path) -> Result<Self, Vec<String>> {
        let text = std::fs::read_to_string(path).map_err(|error| vec![format!("cannot be read: {error}")])?;
        Self::read(&text, &|name| std::env::var(name).ok())
    }
}

fn read(reading: &Reading<'_>, table: &Table) -> Option<Plan> {
    let mut file = Section::new(reading, "", table);
    match file.integer("schema", 1..=u32::MAX) {
        Some(SCHEMA) => {}
        Some(_) => file.wrong("schema", &format!("{SCHEMA}, which this program reads")),
        None if !file.has("schema") => {
            file.mistake("schema", format!("schema: is missing, expected schema = {SCHEMA}"))
        }
        None => {}
    }
    let name = file.text("name").unwrap_or_else(|| "diad".to_owned());
    if !is_name(&name) {
        file.wrong("name", "letters, digits, - and _, at most 40");
    }
    let state_dir = file.text("state-dir").map_or_else(|| PathBuf::from("diad-state"), PathBuf::from);
    let listen = file.section("http").map(|mut section| {
        let listen = section.text("listen");
        let off = listen.as_deref() == Some("off");
        let address =
            listen.and_then(|text| text.parse::<SocketAddr>().ok()).filter(|address| address.ip().is_loopback());
        if section.has("listen") && address.is_none() && !off {
            section.wrong(
                "listen",
                "an address of this machine, for instance \"127.0.0.1:8470\", or \"off\"; others ask through a proxy",
            );
        }
        section.finish();
        if off { None } else { address.or(Some(LISTEN)) }
    });
    let listen = listen.unwrap_or(Some(LISTEN));
    let defaults = file.section("defaults").map(|mut section| {
        let given = Given::read(&mut section);
        for (key, kept) in [("archive", &given.archive), ("clips", &given.clips), ("record", &given.record)] {
            if kept.as_ref().is_some_and(|kept| kept.contains_key("location")) {
                section.wrong(key, "no location: each line has a folder of its own");
            }
        }
        section.finish();
        given
    });
    let defaults = defaults.unwrap_or_default();
    let sections = file.sections("line");
    if sections.is_empty() && !file.has("line") {
        file.mistake("line", "line: is missing, expected at least one [[line]]".into());
    }
    let mut names = BTreeSet::new();
    let lines = sections.into_iter().map(|section| Line::read(section, &defaults, &state_dir, &mut names));
    let lines: Vec<Option<Line>> = lines.collect();
    let receivers = Receivers::read(&mut file, &names);
    file.finish();
    Some(Plan { name, state_dir, receivers, listen, lines: lines.into_iter().collect::<Option<_>>()? })
}

impl Given {
    fn read(section: &mut Section<'_>) -> Self {
        Self {
            model: section.text("model"),
            filter: section
                .section("filter")
                .map(|section| properties::read(&section, "diadfilter"))
                .unwrap_or_default(),
            archive: section.section("archive").map(|section| properties::read(&section, "diadarchive")),
            clips: section.section("clips").map(|section| properties::read_some(&section, "diadclip", &CLIPS)),
            record: section.section("record").map(|section| properties::read_some(&section, "diadclip", &RECORD)),
            output: section.text("output"),
            results: section.text("results").map(PathBuf::from),
            stall: section.duration_or_off("stall"),
            teardown: section.duration("teardown"),
            stop: section.duration("stop"),
            attempts: section.integer("attempts", 0..=u32::MAX),
            on_failure: section.choice("on-failure", &[("continue", OnFailure::Continue), ("exit", OnFailure::Exit)]),
        }
    }
}

impl Line {
    fn read(
        mut section: Section<'_>,
        defaults: &Given,
        state_dir: &Path,
        names: &mut BTreeSet<String>,
    ) -> Option<Self> {
        let name = section.text("name");
        match &name {
            None if !section.has("name") => section.mistake("", format!("{}: name is missing", section.path("name"))),
            Some(name) if !is_name(name) => section.wrong("name", "letters, digits, - and _, at most 40"),
            Some(name) if !names.insert(name.clone()) => section.wrong("name", "a name that no other line has"),
            _ => {}
        }
        let source = section.section("source");
        if source.is_none() && !section.has("source") {
            let path = section.path("source");
            section.mistake("source", format!("{path}: is missing, expected for instance {{ rtsp = \"rtsp://…\" }}"));
        }
        let source = source.and_then(Source::read);
        let given = Given::read(&mut section);
        let named = given.model.or_else(|| defaults.model.clone());
        let file = named.as_ref().map(|named| {
            let file = diad::versions::resolve(Path::new(named))?;
            diad::bundle::read_card(&file).map(|_| file)
        });
        match &file {
            None if !section.has("model") => {
                let path = section.path("model");
                section.mistake("model", format!("{path}: is missing, expected a model file (.diad)"));
            }
            Some(Err(error)) => section.mistake("model", format!("{}: {error}", section.path("model"))),
            Some(Ok(_)) | None => {}
        }
        section.finish();
        let (name, source) = (name?, source?);
        let mut filter = defaults.filter.clone();
        filter.extend(given.filter);
        // What is kept on disk has a folder of its own for each kind and line.
        let kept = |kind: &str, own: Option<Properties>, other: &Option<Properties>| {
            let mut all = match (own, other.clone()) {
                (Some(own), Some(other)) => Some(other.into_iter().chain(own).collect::<Properties>()),
                (own, other) => own.or(other),
            };
            let place = state_dir.join(kind).join(&name).display().to_string();
            if let Some(all) = &mut all {
                all.entry("location".into()).or_insert(place);
            }
            all
        };
        let clips = kept("clips", given.clips, &defaults.clips);
        let record = kept("record", given.record, &defaults.record).map(|mut record| {
            record.insert("everything".into(), "true".into());
            record.entry("max-duration".into()).or_insert_with(|| RECORD_NS.to_string());
            record
        });
        let archive = kept("archive", given.archive, &defaults.archive).inspect(|archive| {
            // The archive gets the frame as the camera saw it; what is drawn comes behind it.
            filter.entry("overlay".into()).or_insert_with(|| "0".into());
            if archive.get("annotated").is_some_and(|annotated| annotated == "true") {
                filter.entry("meta".into()).or_insert_with(|| "regions+result+map".into());
            }
        });
        let stall = given.stall.or(defaults.stall).unwrap_or(Some(Duration::from_secs(5)));
        let or = |own: Option<Duration>, other: Option<Duration>, seconds| {
            own.or(other).unwrap_or(Duration::from_secs(seconds))
        };
        Some(Self {
            name,
            versions: named.map(PathBuf::from).filter(|folder| folder.is_dir()),
            model: file?.ok()?.display().to_string(),
            filter,
            archive,
            clips,
            record,
            output: given.output.or_else(|| defaults.output.clone()).unwrap_or_else(|| OUTPUT.to_owned()),
            results: given.results.or_else(|| defaults.results.clone()),
            watch: Watch {
                stall: if source.is_triggered() { None } else { stall },
                teardown: or(given.teardown, defaults.teardown, 20),
                stop: or(given.stop, defaults.stop, 10),
                attempts: given.attempts.or(defaults.attempts).unwrap_or(0),
            },
            on_failure: given.on_failure.or(defaults.on_failure).unwrap_or(OnFailure::Continue),
            source,
        })
    }

    /// A line of these elements, with a model that is not there.
    #[cfg(test)]
    pub(crate) fn of_test(name: &str, launch: &str) -> Self {
        let second = Duration::from_secs(1);
        Self {
            name: name.to_owned(),
            source: Source::Launch(launch.to_owned()),
            model: "none.diad".to_owned(),
            versions: None,
            filter: Properties::new(),
            archive: None,
            clips: None,
            record: None,
            output: OUTPUT.to_owned(),
            results: None,
            watch: Watch { stall: None, teardown: second, stop: second, attempts: 0 },
            on_failure: OnFailure::Continue,
        }
    }

    /// The whole line in the language of gst-launch.
    pub(crate) fn launch(&self) -> Launch {
        let mut out = Launch::default();
        self.source.launch(&mut out);
        // The end of the stream is put in here: the source may be waiting for a camera that never answers.
        out.link("identity").set("name", &behind(&self.name)).set("silent", "true");
        out.link("diadfilter").set("name", &self.name).set("model", &self.model);
        for (property, value) in &self.filter {
            out.set(property, value);
        }
        if let Some(archive) = &self.archive {
            out.link("diadarchive").set("name", &archive_of(&self.name));
            for (property, value) in archive {
                out.set(property, value);
            }
        }
        let films = self.clips.is_some() || self.record.is_some();
        if films && self.output == OUTPUT {
            self.film(&mut out);
            return out;
        }
        let tee = format!("{}-tee", self.name);
        if films {
            out.link("tee").set("name", &tee);
            self.film(out.branch(&tee));
            out.branch(&tee).link("queue");
        }
        if self.archive.is_some() && self.output != OUTPUT {
            out.link("diadoverlay").set("overlay", "verdict+boxes");
        }
        out.link_raw(&self.output);
        out
    }

    /// The branch that encodes what the filter has seen, once, and keeps it.
    fn film(&self, out: &mut Launch) {
        // A camera's line does not wait for the encoder: a frame that finds no room is missing in the video, and nowhere else.
        let leaky = if self.source.is_finite() { "no" } else { "downstream" };
        out.link("queue").set("name", &film_of(&self.name)).set("leaky", leaky).set("max-size-buffers", "16");
        out.set("max-size-bytes", "0").set("max-size-time", "0");
        if self.filter.get("overlay").is_some_and(|overlay| ["0", ""].contains(&overlay.as_str())) {
            out.link("diadoverlay").set("overlay", "verdict+boxes");
        }
        out.link("videoconvert").link("video/x-raw,format=I420").link("x264enc").set("tune", "zerolatency");
        out.set("speed-preset", "veryfast").set("pass", "qual").set("quantizer", "23");
        let kept = [(clips_of(&self.name), &self.clips), (record_of(&self.name), &self.record)];
        let tee = format!("{}-video", self.name);
        out.link("tee").set("name", &tee);
        for (name, properties) in kept.iter().filter_map(|(name, kept)| Some((name, kept.as_ref()?))) {
            out.branch(&tee).link("diadclip").set("name", name);
            for (property, value) in properties {
                out.set(property, value);
            }
        }
    }
}

/// The keys of `clips`: each the property of `diadclip` of that name.
const CLIPS: [(&str, &str); 11] = [
    ("location", "location"),
    ("verdicts", "verdicts"),
    ("pre", "pre"),
    ("post", "post"),
    ("max-duration", "max-duration"),
    ("max-memory", "max-memory"),
    ("key-interval", "key-interval"),
    ("container", "container"),
    ("max-size", "max-size"),
    ("max-age", "max-age"),
    ("min-free", "min-free"),
];

/// The keys of `record`, and the properties that they are.
const RECORD: [(&str, &str); 7] = [
    ("location", "location"),
    ("every", "max-duration"),
    ("max-memory", "max-memory"),
    ("container", "container"),
    ("max-size", "max-size"),
    ("max-age", "max-age"),
    ("min-free", "min-free"),
];

/// Length of a recording's files in ns, if nothing else is said.
const RECORD_NS: u64 = 600_000_000_000;

/// Where others may ask how things are, if nothing else is said.
const LISTEN: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 8470);

/// Where frames go if nobody wants them.
const OUTPUT: &str = "fakesink sync=false async=false";

/// Name of the element behind a line's source.
pub(crate) fn behind(line: &str) -> String {
    format!("{line}-source")
}

/// Name of a line's archive.
pub(crate) fn archive_of(line: &str) -> String {
    format!("{line}-archive")
}

/// Name of what keeps a line's clips.
pub(crate) fn clips_of(line: &str) -> String {
    format!("{line}-clips")
}

/// Name of what keeps all of a line's video.
pub(crate) fn record_of(line: &str) -> String {
    format!("{line}-record")
}

/// Name of the queue before a line's encoder.
pub(crate) fn film_of(line: &str) -> String {
    format!("{line}-film")
}

/// Whether a name can stand in topics, file names and names of elements.
fn is_name(name: &str) -> bool {
    name.len() <= 40 && name.chars().all(|c| c.is_ascii_alphanumeric() || "-_".contains(c))
}
