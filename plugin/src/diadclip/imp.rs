//! A sink that never waits: it keeps the last frames in memory, and what becomes a clip goes to a thread of its own.

use std::sync::{LazyLock, Mutex};
use std::time::{Duration, Instant};

use diad::archive::Limits;
use gst::glib;
use gst::prelude::*;
use gst::subclass::prelude::*;
use gst_base::prelude::*;
use gst_base::subclass::prelude::*;

use super::Container;
use super::ring::{Action, Cutter, Rules, Unit};
use super::writer::{Counts, Start, Writer};
use crate::diadselect::VerdictFlags;
use crate::disk::{Subject, Teller};
use crate::queue::lock;
use crate::result::{DiadResult, utc_now};
use crate::{frame, meta};

static CAT: LazyLock<gst::DebugCategory> = LazyLock::new(|| {
    gst::DebugCategory::new("diadclip", gst::DebugColorFlags::empty(), Some("Keeps video of what led to a verdict"))
});

/// Decoding times begin before presentation times: nothing is earlier than this in what we write.
const BIAS: u64 = 3_600_000_000_000;
/// After a clip was given up, the next is tried so much later.
const AGAIN: Duration = Duration::from_secs(5);
/// At the end of the stream, and of the element, the disk may take so long.
const PATIENCE: Duration = Duration::from_secs(15);

/// Values of all properties.
#[derive(Clone, Debug)]
struct Settings {
    location: Option<String>,
    verdicts: VerdictFlags,
    everything: bool,
    pre: u64,
    post: u64,
    max_duration: u64,
    max_memory: u64,
    key_interval: u64,
    container: Container,
    max_size: u64,
    max_age: u64,
    min_free: u64,
}

/// What must not be missed.
const VERDICTS: VerdictFlags = VerdictFlags::NG.union(VerdictFlags::ERROR);

impl Default for Settings {
    fn default() -> Self {
        Self {
            location: None,
            verdicts: VERDICTS,
            everything: false,
            pre: 5_000_000_000,
            post: 5_000_000_000,
            max_duration: 60_000_000_000,
            max_memory: 64_000_000,
            key_interval: 1_000_000_000,
            container: Container::Mp4,
            max_size: 20_000_000_000,
            max_age: 90 * 24 * 3_600_000_000_000,
            min_free: 2_000_000_000,
        }
    }
}

impl Settings {
    fn limits(&self) -> Limits {
        let Self { max_size, max_age, min_free, .. } = *self;
        Limits { max_size, max_age: Duration::from_nanos(max_age), min_free }
    }

    fn rules(&self) -> Rules {
        let [pre, post] = if self.everything { [0, 0] } else { [self.pre, self.post] };
        let memory = usize::try_from(self.max_memory).unwrap_or(usize::MAX);
        Rules { pre, post, longest: self.max_duration, memory }
    }
}

/// A frame's result, and its number.
type Event = (DiadResult, u64);

/// What is known of a stream.
#[derive(Default)]
struct Stream {
    caps: Option<gst::Caps>,
    writer: Option<Writer>,
    cutter: Cutter<gst::Buffer, Event>,
    /// Frames since the start, for those that come without a number.
    frames: u64,
    /// Clips that were begun.
    begun: u64,
    /// A clip was given up; when the next may be tried.
    again: Option<Instant>,
    /// Upstream was asked for a key frame.
    asked: bool,
    /// A frame came that has no time.
    untimed: bool,
}

/// The element.
#[derive(Default)]
pub struct DiadClip {
    settings: Mutex<Settings>,
    stream: Mutex<Stream>,
}

#[glib::object_subclass]
impl ObjectSubclass for DiadClip {
    const NAME: &'static str = "GstDiadClip";
    type Type = super::DiadClip;
    type ParentType = gst_base::BaseSink;
}

impl ObjectImpl for DiadClip {
    fn properties() -> &'static [glib::ParamSpec] {
        static SPECS: LazyLock<Vec<glib::ParamSpec>> = LazyLock::new(|| {
            let playing = gst::PARAM_FLAG_MUTABLE_PLAYING | glib::ParamFlags::READWRITE;
            let ready = gst::PARAM_FLAG_MUTABLE_READY | glib::ParamFlags::READWRITE;
            let default = Settings::default();
            let number = |name: &str, nick: &str, blurb: &str, default: u64| {
                let spec = glib::ParamSpecUInt64::builder(name).nick(nick).blurb(blurb);
                spec.default_value(default).flags(playing).build()
            };
            vec![
                glib::ParamSpecString::builder("location")
                    .nick("Location")
                    .blurb("Folder of its own, made where it is not there. What lies in it under another name than ours is never touched, nor is keep/")
                    .flags(ready)
                    .build(),
                glib::ParamSpecFlags::builder::<VerdictFlags>("verdicts")
                    .nick("Verdicts")
                    .blurb("Frames with one of these verdicts begin a clip, and keep it going")
                    .default_value(default.verdicts)
                    .flags(playing)
                    .build(),
                glib::ParamSpecBoolean::builder("everything")
                    .nick("Everything")
                    .blurb("All frames are recorded, whatever their verdict, in files of max-duration; pre and post do not count then")
                    .default_value(default.everything)
                    .flags(ready)
                    .build(),
                number("pre", "Before", "Video before the frame that begins a clip, in ns, and up to a key frame more", default.pre),
                number("post", "After", "Video after the last such frame, in ns", default.post),
                number("max-duration", "Maximum duration", "A clip is followed by the next at the last key frame before it is longer, in ns", default.max_duration),
                number("max-memory", "Maximum memory", "Bytes kept in memory for the next clip, and as many that may wait for the disk; beyond it clips have less before their frame", default.max_memory),
                number("key-interval", "Key frame interval", "Upstream is asked for a key frame when the last is so long ago, in ns; 0: never", default.key_interval),
                glib::ParamSpecEnum::builder_with_default("container", default.container)
                    .nick("Container")
                    .blurb("What files are: mp4 takes no JPEG and no VP8")
                    .flags(ready)
                    .build(),
                number("max-size", "Maximum size", "Bytes of all files; beyond it the oldest go", default.max_size),
                number("max-age", "Maximum age", "Age of a file in ns", default.max_age),
                number("min-free", "Minimum free", "Bytes of the disk that stay free, whoever fills it. Below it no clip is begun, and none goes on", default.min_free),
                glib::ParamSpecBoxed::builder::<gst::Structure>("stats")
                    .nick("Statistics")
                    .blurb("Files finished and clips left out by reason, bytes, what is free, the time of the oldest, ns of video in memory")
                    .read_only()
                    .build(),
            ]
        });
        &SPECS
    }

    fn constructed(&self) {
        self.parent_constructed();
        // The frames of a clip are written, not shown: they wait for no clock, and nobody waits for the first of them.
        let element = self.obj();
        element.set_sync(false);
        element.set_async(false);
        element.set_enable_last_sample(false);
    }

    fn set_property(&self, _: usize, value: &glib::Value, spec: &glib::ParamSpec) {
        let mut settings = lock(&self.settings);
        macro_rules! take {
            ($field:ident) => {
                settings.$field = value.get().unwrap_or(settings.$field)
            };
        }
        match spec.name() {
            "location" => settings.location = value.get().ok().flatten().filter(|text: &String| !text.is_empty()),
            "verdicts" => take!(verdicts),
            "everything" => take!(everything),
            "pre" => take!(pre),
            "post" => take!(post),
            "max-duration" => take!(max_duration),
            "max-memory" => take!(max_memory),
            "key-interval" => take!(key_interval),
            "container" => take!(container),
            "max-size" => take!(max_size),
            "max-age" => take!(max_age),
            "min-free" => take!(min_free),
            _ => {}
        }
        let limits = settings.limits();
        drop(settings);
        lock(&self.stream).writer.iter().for_each(|writer| writer.limit(limits));
    }

    fn property(&self, _: usize, spec: &glib::ParamSpec) -> glib::Value {
        let settings = lock(&self.settings).clone();
        match spec.name() {
            "location" => settings.location.to_value(),
            "verdicts" => settings.verdicts.to_value(),
            "everything" => settings.everything.to_value(),
            "pre" => settings.pre.to_value(),
            "post" => settings.post.to_value(),
            "max-duration" => settings.max_duration.to_value(),
            "max-memory" => settings.max_memory.to_value(),
            "key-interval" => settings.key_interval.to_value(),
            "container" => settings.container.to_value(),
            "max-size" => settings.max_size.to_value(),
            "max-age" => settings.max_age.to_value(),
            "min-free" => settings.min_free.to_value(),
            _ => {
                let stream = lock(&self.stream);
                let counts = stream.writer.as_ref().map(Writer::counts).unwrap_or_default();
                let mut stats = Counts::to_structure(&counts, "diad-clip-stats");
                stats.set("in-memory", stream.cutter.kept());
                stats.to_value()
            }
        }
    }
}

impl GstObjectImpl for DiadClip {}

/// What files can hold, as muxers take it.
fn templates() -> Vec<gst::PadTemplate> {
    let of = |media: &str| gst::Structure::builder(media);
    let units = |media: &str, format: &str| of(media).field("stream-format", format).field("alignment", "au").build();
    let mut caps = gst::Caps::new_empty();
    for structure in [
        units("video/x-h264", "avc"),
        units("video/x-h265", "hvc1"),
        of("image/jpeg").build(),
        of("video/x-vp8").build(),
        of("video/x-vp9").build(),
    ] {
        caps.merge_structure(structure);
    }
    let template = gst::PadTemplate::new("sink", gst::PadDirection::Sink, gst::PadPresence::Always, &caps);
    template.into_iter().collect()
}

impl ElementImpl for DiadClip {
    frame::described! {
        "DiAD clip", "Sink/File/Video",
        "Keeps encoded video of what led to a verdict, from before it to after it, within limits", templates
    }

    fn change_state(&self, transition: gst::StateChange) -> Result<gst::StateChangeSuccess, gst::StateChangeError> {
        let changed = self.parent_change_state(transition)?;
        if transition == gst::StateChange::PausedToReady {
            self.end_stream();
            let mut stream = lock(&self.stream);
            *stream = Stream { writer: stream.writer.take(), begun: stream.begun, ..Stream::default() };
        }
        Ok(changed)
    }
}

impl BaseSinkImpl for DiadClip {
    fn start(&self) -> Result<(), gst::ErrorMessage> {
        let settings = lock(&self.settings).clone();
        let Some(location) = settings.location.as_ref() else {
            return Err(gst::error_msg!(gst::ResourceError::Settings, ("location = none: expected a folder")));
        };
        let writer = Writer::start(location.as_ref(), settings.limits(), Teller::new(&*self.obj(), "clips"));
        let writer = writer.map_err(|error| gst::error_msg!(gst::ResourceError::OpenWrite, ("location: {error}")))?;
        *lock(&self.stream) = Stream { writer: Some(writer), ..Stream::default() };
        Ok(())
    }

    fn stop(&self) -> Result<(), gst::ErrorMessage> {
        // The open clip is finished; nobody waits for it with the lock.
        let writer = std::mem::take(&mut *lock(&self.stream)).writer;
        if writer.is_some_and(|writer| !writer.finish(PATIENCE)) {
            gst::warning!(CAT, imp = self, "the disk does not answer: the last clip is left to it");
        }
        Ok(())
    }

    fn set_caps(&self, caps: &gst::Caps) -> Result<(), gst::LoggableError> {
        let container = lock(&self.settings).container;
        let media = caps.structure(0).map_or("", |structure| structure.name().as_str());
        if !container.holds(media) {
            let wrong = format!("container = {}: does not hold {media}, expected mkv", container.extension());
            gst::element_imp_error!(self, gst::StreamError::Format, ("{wrong}"));
            return Err(gst::loggable_error!(CAT, "{wrong}"));
        }
        let mut stream = lock(&self.stream);
        if stream.caps.as_ref().is_some_and(|before| before != caps) {
            stream.forget();
        }
        stream.caps = Some(caps.clone());
        Ok(())
    }

    fn event(&self, event: gst::Event) -> bool {
        match event.view() {
            gst::EventView::FlushStop(_) => lock(&self.stream).forget(),
            // Whoever waits for the end of the stream may read its last clip then.
            gst::EventView::Eos(_) => self.end_stream(),
            _ => {}
        }
        self.parent_event(event)
    }

    fn render(&self, buffer: &gst::Buffer) -> Result<gst::FlowSuccess, gst::FlowError> {
        let settings = lock(&self.settings).clone();
        let segment = self.obj().segment();
        let mut stream = lock(&self.stream);
        let timed = timed(buffer, &segment);
        let untimed = timed.is_none() && !std::mem::replace(&mut stream.untimed, timed.is_none());
        if let Some(unit) = timed {
            self.take(&mut stream, unit, buffer, &settings);
        }
        let since_key = stream.cutter.since_key().unwrap_or(0);
        let asks = settings.key_interval > 0 && since_key >= settings.key_interval && !stream.asked;
        stream.asked = asks || (stream.asked && since_key > 0);
        drop(stream);
        if untimed {
            let text =
                "frames without timestamps cannot be kept; expected for instance do-timestamp=true at the source";
            gst::element_imp_warning!(self, gst::StreamError::Format, ("{text}"));
        }
        if asks {
            let event = gst_video::UpstreamForceKeyUnitEvent::builder().all_headers(true).build();
            self.obj().static_pad("sink").map(|pad| pad.push_event(event));
        }
        Ok(gst::FlowSuccess::Ok)
    }
}

/// A frame with times that begin with the stream. It is copied: encoders may have a few buffers only, and want them back.
fn timed(buffer: &gst::Buffer, segment: &gst::Segment) -> Option<Unit<gst::Buffer>> {
    let segment = segment.downcast_ref::<gst::ClockTime>()?;
    let running = |time: gst::ClockTime| match segment.to_running_time_full(time)? {
        gst::Signed::Positive(time) => Some(BIAS.saturating_add(time.nseconds())),
        gst::Signed::Negative(time) => Some(BIAS.saturating_sub(time.nseconds())),
    };
    let time = running(buffer.pts().or(buffer.dts())?)?;
    let parts = gst::BufferCopyFlags::MEMORY | gst::BufferCopyFlags::DEEP | gst::BufferCopyFlags::FLAGS;
    let mut copy = buffer.copy_region(parts, ..).ok()?;
    let fields = copy.make_mut();
    fields.set_pts(gst::ClockTime::from_nseconds(time));
    fields.set_dts(buffer.dts().and_then(running).map(gst::ClockTime::from_nseconds));
    fields.set_duration(buffer.duration());
    let key = !buffer.flags().contains(gst::BufferFlags::DELTA_UNIT);
    Some(Unit { time, key, bytes: buffer.size(), data: copy })
}

impl DiadClip {
    /// Ends what is open, and waits until it is on the disk, without the lock.
    fn end_stream(&self) {
        let mut stream = lock(&self.stream);
        stream.forget();
        let mark = stream.writer.as_ref().map(Writer::mark);
        drop(stream);
        if mark.is_some_and(|mark| !mark.wait(PATIENCE)) {
            gst::warning!(CAT, imp = self, "the disk does not answer: the last clip is left to it");
        }
    }

    /// Does what the next frame of a stream asks for.
    fn take(&self, stream: &mut Stream, unit: Unit<gst::Buffer>, buffer: &gst::BufferRef, settings: &Settings) {
        stream.frames += 1;
        let result = meta::result_of(buffer).unwrap_or_else(|| DiadResult::unseen(buffer.pts()));
        let happens = settings.everything || settings.verdicts.contains(VerdictFlags::from(result.verdict));
        let event = happens.then(|| {
            let number = result.sequence.unwrap_or(stream.frames);
            let utc = result.utc.clone().or_else(|| Some(utc_now()));
            (DiadResult { utc, ..result }, number)
        });
        let Stream { writer: Some(writer), caps: Some(caps), cutter, begun, again, .. } = stream else { return };
        if writer.gave_up(*begun) {
            *begun += 1; // once
            *again = Some(Instant::now() + AGAIN);
            cutter.give_up();
        }
        let may_begin = again.is_none_or(|again| Instant::now() >= again);
        for action in cutter.take(unit, event, settings.rules(), may_begin) {
            let fits = match action {
                Action::End => {
                    writer.end();
                    true
                }
                Action::Push(unit) => writer.push(unit.data, settings.max_memory),
                Action::Begin { units, cause, continues } => {
                    *begun += 1;
                    let (result, sequence) = cause.event;
                    let subject = Subject {
                        utc: result.utc.clone().unwrap_or_else(utc_now),
                        sequence,
                        why: if settings.everything { "record" } else { result.verdict.name() },
                        line: result.line.clone().unwrap_or_else(|| self.obj().name().to_string()),
                        result,
                    };
                    let start = Start {
                        id: *begun,
                        recording: settings.everything,
                        caps: caps.clone(),
                        container: settings.container,
                        subject,
                        pre: units.first().map_or(0, |unit| cause.moment - unit.time),
                        shift: cause.moment as i64 - cause.at as i64,
                        continues,
                        buffers: units.into_iter().map(|unit| unit.data).collect(),
                    };
                    // As much as is in memory may wait beside what waits already.
                    writer.begin(start, settings.max_memory.saturating_mul(2))
                }
            };
            if !fits {
                writer.count_behind();
                writer.end();
                cutter.give_up();
                *again = Some(Instant::now() + AGAIN);
                break;
            }
            *again = again.filter(|again| Instant::now() < *again);
        }
    }
}

impl Stream {
    /// Ends what is open; what comes next is another stream.
    fn forget(&mut self) {
        if let (Some(Action::End), Some(writer)) = (self.cutter.clear(), &self.writer) {
            writer.end();
        }
    }
}
