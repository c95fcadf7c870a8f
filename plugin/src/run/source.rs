//! Where a line's frames come from, as elements of a pipeline.

use super::launch::Launch;
use super::read::Section;

/// A camera, a file, or elements as they are written.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Source {
    /// A GigE Vision or USB3 Vision camera.
    Aravis { camera: String, format: Option<String>, shape: Shape, triggered: bool, features: Option<String> },
    /// A network camera.
    Rtsp { url: String, latency: u64, transport: Option<&'static str>, user: Option<String>, password: Option<String> },
    /// A camera of the kernel's.
    V4l2 { device: String, format: Option<String>, shape: Shape },
    /// A video file or a numbered series of pictures.
    File { path: String, repeats: bool, realtime: bool },
    /// Elements whose last has one source pad.
    Launch(String),
}

/// Width, height and frames per second, where they are asked for.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Shape {
    width: Option<u32>,
    height: Option<u32>,
    framerate: Option<String>,
}

/// The kinds, of which a source is one.
const KINDS: [&str; 5] = ["aravis", "rtsp", "v4l2", "file", "launch"];

/// The keys that may stand beside one or the other of them.
const BESIDE: [&str; 13] = [
    "format",
    "width",
    "height",
    "framerate",
    "triggered",
    "features",
    "latency",
    "transport",
    "user",
    "password",
    "password-file",
    "loop",
    "realtime",
];

/// Frames per second that a triggered GigE camera is asked for: `aravissrc` gives up after three of them, and at least two seconds.
const TRIGGERED: &str = "1/20";

/// Milliseconds that a network camera's stream is held back to put its packets in order, where nothing else is said.
const RTSP_LATENCY: u64 = 200;

impl Shape {
    fn read(section: &mut Section<'_>) -> Self {
        let side = 1..=65_536;
        Self {
            width: section.integer("width", side.clone()),
            height: section.integer("height", side),
            framerate: framerate(section),
        }
    }

    fn caps(&self, format: Option<&str>, framerate: Option<&str>) -> Option<String> {
        let mut caps = "video/x-raw".to_owned();
        let mut add = |key: &str, value: &str| caps += &format!(",{key}={value}");
        format.into_iter().for_each(|format| add("format", format));
        self.width.into_iter().for_each(|width| add("width", &width.to_string()));
        self.height.into_iter().for_each(|height| add("height", &height.to_string()));
        framerate.or(self.framerate.as_deref()).into_iter().for_each(|rate| add("framerate", rate));
        (caps != "video/x-raw").then_some(caps)
    }
}

/// Frames per second as GStreamer writes them.
fn framerate(section: &mut Section<'_>) -> Option<String> {
    let fraction = |text: &str| {
        let (n, d) = text.split_once('/')?;
        let (n, d) = (n.trim().parse::<u32>().ok()?, d.trim().parse::<u32>().ok()?);
        (n > 0 && d > 0).then(|| format!("{n}/{d}"))
    };
    let found = match section.value("framerate")? {
        toml::Value::Integer(n) => u32::try_from(*n).ok().filter(|&n| n > 0).map(|n| format!("{n}/1")),
        toml::Value::String(text) => fraction(text),
        _ => None,
    };
    if found.is_none() {
        section.wrong("framerate", "frames per second: 25, or a fraction such as \"1/4\"");
    }
    found
}

impl Source {
    /// From `source = { … }`.
    pub(crate) fn read(mut section: Section<'_>) -> Option<Self> {
        let given: Vec<&'static str> = KINDS.into_iter().filter(|kind| section.has(kind)).collect();
        let [kind] = given[..] else {
            let what = if given.is_empty() { "none".to_owned() } else { given.join(", ") };
            let path = section.path("");
            let path = path.trim_end_matches('.');
            section.mistake("", format!("{path}: has {what}, expected exactly one of {}", KINDS.join(", ")));
            section.expect(&KINDS);
            section.expect(&BESIDE);
            section.finish();
            return None;
        };
        let main = section.text(kind);
        let source = match kind {
            "aravis" => {
                let format = section.text("format");
                let (shape, triggered) = (Shape::read(&mut section), section.boolean("triggered").unwrap_or(false));
                if triggered && shape.framerate.is_some() {
                    section.wrong("framerate", "none where triggered = true: the trigger says when a frame comes");
                }
                let features = section.text("features");
                main.map(|camera| Self::Aravis { camera, format, shape, triggered, features })
            }
            "rtsp" => {
                let latency = section.duration("latency").map_or(RTSP_LATENCY, |time| time.as_millis() as u64);
                let transport = section.choice("transport", &[("tcp", "tcp"), ("udp", "udp")]);
                let user = section.text("user");
                let password = section.secret("password", "password-file");
                let url = main.filter(|url| {
                    let is_one = url.starts_with("rtsp://") || url.starts_with("rtsps://");
                    if !is_one {
                        section.wrong("rtsp", "an address that begins with rtsp:// or rtsps://");
                    }
                    is_one
                });
                url.map(|url| Self::Rtsp { url, latency, transport, user, password })
            }
            "v4l2" => {
                let (format, shape) = (section.text("format"), Shape::read(&mut section));
                main.map(|device| Self::V4l2 { device, format, shape })
            }
            "file" => {
                let repeats = section.boolean("loop").unwrap_or(false);
                let realtime = section.boolean("realtime").unwrap_or(false);
                if let Some(path) = &main
                    && !path.contains('%')
                    && !std::path::Path::new(path).is_file()
                {
                    section.wrong("file", "a file that is there, or a series such as \"part%03d.png\"");
                }
                main.map(|path| Self::File { path, repeats, realtime })
            }
            _ => main.map(Self::Launch),
        };
        section.finish();
        source
    }

    /// Whether its end is the end of its line, and not a camera that went away.
    pub(crate) fn is_finite(&self) -> bool {
        matches!(self, Self::File { .. } | Self::Launch(_))
    }

    /// Whether it begins again at its end.
    pub(crate) fn repeats(&self) -> bool {
        matches!(self, Self::File { repeats: true, .. })
    }

    /// Whether it waits for something to happen, for as long as that takes.
    pub(crate) fn is_triggered(&self) -> bool {
        matches!(self, Self::Aravis { triggered: true, .. })
    }

    /// The elements, up to raw video that `diadfilter` takes.
    pub(crate) fn launch(&self, out: &mut Launch) {
        match self {
            Self::Aravis { camera, format, shape, triggered, features } => {
                out.element("aravissrc").set("camera-name", camera);
                features.iter().for_each(|features| out.set_last("features", features));
                let framerate = triggered.then_some(TRIGGERED);
                if let Some(caps) = shape.caps(format.as_deref(), framerate) {
                    out.link(&caps);
                }
                out.link("videoconvert");
            }
            Self::Rtsp { url, latency, transport, user, password } => {
                out.element("rtspsrc").set("location", url).set("latency", &latency.to_string());
                transport.iter().for_each(|transport| out.set_last("protocols", transport));
                user.iter().for_each(|user| out.set_last("user-id", user));
                password.iter().for_each(|password| out.set_secret("user-pw", password));
                out.link("application/x-rtp,media=video");
                out.link("decodebin");
                out.link("videoconvert");
            }
            Self::V4l2 { device, format, shape } => {
                out.element("v4l2src").set("device", device);
                if let Some(caps) = shape.caps(format.as_deref(), None) {
                    out.link(&caps);
                }
                out.link("decodebin");
                out.link("videoconvert");
            }
            Self::File { path, realtime, .. } => {
                let element = if path.contains('%') { "multifilesrc" } else { "filesrc" };
                out.element(element).set("location", path);
                out.link("decodebin");
                if *realtime {
                    out.link("clocksync");
                }
                out.link("videoconvert");
            }
            Self::Launch(text) => out.raw(text),
        }
    }
}
