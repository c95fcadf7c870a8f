//! An in-place transform that never waits: what is to be kept goes to a thread of its own.

use std::sync::{LazyLock, Mutex};
use std::time::Instant;

use diad::archive::Limits;
use gst::glib;
use gst::prelude::*;
use gst::subclass::prelude::*;
use gst_base::subclass::prelude::*;
use gst_video::VideoInfo;

use super::Format;
use super::writer::{Counts, Job, Options, Writer};
use crate::diadselect::VerdictFlags;
use crate::disk::{Subject, Teller};
use crate::queue::lock;
use crate::result::{DiadResult, utc_now};
use crate::{frame, meta};

static CAT: LazyLock<gst::DebugCategory> = LazyLock::new(|| {
    gst::DebugCategory::new("diadarchive", gst::DebugColorFlags::empty(), Some("Keeps pictures and results of parts"))
});

/// Values of all properties.
#[derive(Clone, Debug)]
struct Settings {
    location: Option<String>,
    verdicts: VerdictFlags,
    sample_every: u32,
    format: Format,
    annotated: bool,
    max_rate: f64,
    burst: u32,
    max_size: u64,
    max_age: u64,
    min_free: u64,
    queue_bytes: u64,
}

/// All but the good.
const VERDICTS: VerdictFlags = VerdictFlags::all().difference(VerdictFlags::OK);

impl Default for Settings {
    fn default() -> Self {
        Self {
            location: None,
            verdicts: VERDICTS,
            sample_every: 0,
            format: Format::Png,
            annotated: false,
            max_rate: 2.0,
            burst: 50,
            max_size: 20_000_000_000,
            max_age: 90 * 24 * 3_600_000_000_000,
            min_free: 2_000_000_000,
            queue_bytes: 256_000_000,
        }
    }
}

impl Settings {
    fn limits(&self) -> Limits {
        let Self { max_size, max_age, min_free, .. } = *self;
        Limits { max_size, max_age: std::time::Duration::from_nanos(max_age), min_free }
    }
}

/// What is known of a stream.
#[derive(Default)]
struct Stream {
    info: Option<VideoInfo>,
    writer: Option<Writer>,
    /// Frames since the start, for those that come without a number.
    frames: u64,
    /// Pictures that may be taken now, by verdict.
    allowance: [Allowance; 5],
}

/// Pictures that may be taken at once, and when that was reckoned.
#[derive(Clone, Copy, Debug, Default)]
struct Allowance {
    left: f64,
    at: Option<Instant>,
}

impl Allowance {
    /// Whether a picture may be taken now.
    fn take(&mut self, now: Instant, rate: f64, burst: f64) -> bool {
        let earned = self.at.map_or(burst, |at| now.duration_since(at).as_secs_f64() * rate);
        (self.left, self.at) = ((self.left + earned).min(burst), Some(now));
        let may = self.left >= 1.0;
        if may {
            self.left -= 1.0;
        }
        may
    }
}

/// The element.
#[derive(Default)]
pub struct DiadArchive {
    settings: Mutex<Settings>,
    stream: Mutex<Stream>,
}

#[glib::object_subclass]
impl ObjectSubclass for DiadArchive {
    const NAME: &'static str = "GstDiadArchive";
    type Type = super::DiadArchive;
    type ParentType = gst_base::BaseTransform;
}

impl ObjectImpl for DiadArchive {
    fn properties() -> &'static [glib::ParamSpec] {
        static SPECS: LazyLock<Vec<glib::ParamSpec>> = LazyLock::new(|| {
            let playing = gst::PARAM_FLAG_MUTABLE_PLAYING | glib::ParamFlags::READWRITE;
            let ready = gst::PARAM_FLAG_MUTABLE_READY | glib::ParamFlags::READWRITE;
            let default = Settings::default();
            let number = |name: &str, nick: &str, blurb: &str, default: u64| {
                let spec = glib::ParamSpecUInt64::builder(name).nick(nick).blurb(blurb);
                spec.default_value(default).flags(playing).build()
            };
            let count = |name: &str, nick: &str, blurb: &str, least: u32, default: u32| {
                let spec = glib::ParamSpecUInt::builder(name).nick(nick).blurb(blurb);
                spec.minimum(least).default_value(default).flags(playing).build()
            };
            vec![
                glib::ParamSpecString::builder("location")
                    .nick("Location")
                    .blurb("Folder of this line, made where it is not there. What lies in it under another name than ours is never touched, nor is keep/")
                    .flags(ready)
                    .build(),
                glib::ParamSpecFlags::builder::<VerdictFlags>("verdicts")
                    .nick("Verdicts")
                    .blurb("Frames with one of these verdicts are kept")
                    .default_value(default.verdicts)
                    .flags(playing)
                    .build(),
                count("sample-every", "Sample every", "One frame in so many is kept whatever its verdict, for diad calibrate; 0: none", 0, 0),
                glib::ParamSpecEnum::builder_with_default("format", default.format)
                    .nick("Format")
                    .blurb("How pictures are written: the frame as it came, so let the diadfilter before draw nothing (overlay=0)")
                    .flags(playing)
                    .build(),
                glib::ParamSpecBoolean::builder("annotated")
                    .nick("Annotated")
                    .blurb("A second picture, with verdict, boxes and contour")
                    .default_value(default.annotated)
                    .flags(playing)
                    .build(),
                glib::ParamSpecDouble::builder("max-rate")
                    .nick("Maximum rate")
                    .blurb("Pictures a second of each verdict, on average; beyond it only what is said of a frame is kept")
                    .minimum(0.0)
                    .default_value(default.max_rate)
                    .flags(playing)
                    .build(),
                count("burst", "Burst", "Pictures of a verdict that may come at once", 1, default.burst),
                number("max-size", "Maximum size", "Bytes of all files; beyond it what is missed least goes: samples, uninspected, warn, then ng and error, the oldest first", default.max_size),
                number("max-age", "Maximum age", "Age of a file in ns", default.max_age),
                number("min-free", "Minimum free", "Bytes of the disk that stay free, whoever fills it. Below it pictures stop, below a quarter of it all", default.min_free),
                number("queue-bytes", "Queue", "Bytes of pictures that may wait for the disk; beyond it only what is said of a frame is kept", default.queue_bytes),
                glib::ParamSpecBoxed::builder::<gst::Structure>("stats")
                    .nick("Statistics")
                    .blurb("Frames kept, pictures written and left out by reason, bytes, what is free, the time of the oldest")
                    .read_only()
                    .build(),
            ]
        });
        &SPECS
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
            "sample-every" => take!(sample_every),
            "format" => take!(format),
            "annotated" => take!(annotated),
            "max-rate" => take!(max_rate),
            "burst" => take!(burst),
            "max-size" => take!(max_size),
            "max-age" => take!(max_age),
            "min-free" => take!(min_free),
            "queue-bytes" => take!(queue_bytes),
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
            "sample-every" => settings.sample_every.to_value(),
            "format" => settings.format.to_value(),
            "annotated" => settings.annotated.to_value(),
            "max-rate" => settings.max_rate.to_value(),
            "burst" => settings.burst.to_value(),
            "max-size" => settings.max_size.to_value(),
            "max-age" => settings.max_age.to_value(),
            "min-free" => settings.min_free.to_value(),
            "queue-bytes" => settings.queue_bytes.to_value(),
            _ => {
                let counts = lock(&self.stream).writer.as_ref().map(Writer::counts);
                counts.unwrap_or_default().to_structure("diad-archive-stats").to_value()
            }
        }
    }
}

impl GstObjectImpl for DiadArchive {}

impl ElementImpl for DiadArchive {
    frame::described! {
        "DiAD archive", "Filter/Video",
        "Keeps pictures of parts with the results that diadfilter attached, within limits", frame::templates
    }
}

impl BaseTransformImpl for DiadArchive {
    const MODE: gst_base::subclass::BaseTransformMode = gst_base::subclass::BaseTransformMode::AlwaysInPlace;
    const PASSTHROUGH_ON_SAME_CAPS: bool = true;
    const TRANSFORM_IP_ON_PASSTHROUGH: bool = true;

    fn start(&self) -> Result<(), gst::ErrorMessage> {
        let settings = lock(&self.settings).clone();
        let Some(location) = settings.location.as_ref() else {
            return Err(gst::error_msg!(gst::ResourceError::Settings, ("location = none: expected a folder")));
        };
        let writer = Writer::start(location.as_ref(), settings.limits(), Teller::new(&*self.obj(), "archive"));
        let writer = writer.map_err(|error| gst::error_msg!(gst::ResourceError::OpenWrite, ("location: {error}")))?;
        *lock(&self.stream) = Stream { writer: Some(writer), ..Stream::default() };
        Ok(())
    }

    fn stop(&self) -> Result<(), gst::ErrorMessage> {
        // What waits is written; nobody waits for it with the lock.
        let writer = lock(&self.stream).writer.take();
        writer.into_iter().for_each(Writer::finish);
        Ok(())
    }

    fn set_caps(&self, incaps: &gst::Caps, _: &gst::Caps) -> Result<(), gst::LoggableError> {
        let info = VideoInfo::from_caps(incaps).map_err(|error| gst::loggable_error!(CAT, "{incaps}: {error}"))?;
        lock(&self.stream).info = Some(info);
        Ok(())
    }

    fn transform_ip_passthrough(&self, buffer: &gst::Buffer) -> Result<gst::FlowSuccess, gst::FlowError> {
        let settings = lock(&self.settings).clone();
        let mut stream = lock(&self.stream);
        stream.frames += 1;
        let result = meta::result_of(buffer).unwrap_or_else(|| DiadResult::unseen(buffer.pts()));
        let verdict = VerdictFlags::from(result.verdict);
        let sampled = settings.sample_every > 0 && stream.frames.is_multiple_of(u64::from(settings.sample_every));
        if !(sampled || settings.verdicts.contains(verdict)) {
            return Ok(gst::FlowSuccess::Ok);
        }
        let at = verdict.bits().trailing_zeros() as usize;
        let wants = settings.format != Format::None
            && stream.allowance[at].take(Instant::now(), settings.max_rate, f64::from(settings.burst));
        let Stream { info: Some(info), writer: Some(writer), frames, .. } = &*stream else {
            return Ok(gst::FlowSuccess::Ok);
        };
        let limited = settings.format != Format::None && !wants;
        let subject = Subject {
            utc: result.utc.clone().unwrap_or_else(utc_now),
            sequence: result.sequence.unwrap_or(*frames),
            why: if settings.verdicts.contains(verdict) { result.verdict.name() } else { "sample" },
            line: result.line.clone().unwrap_or_else(|| self.obj().name().to_string()),
            result,
        };
        let maps = if settings.annotated && wants { meta::maps_of(buffer) } else { Vec::new() };
        let job = Job { subject, maps, picture: None };
        let options = Options { format: settings.format, annotated: settings.annotated, queue: settings.queue_bytes };
        writer.submit(job, wants.then_some((buffer, info)), limited, options);
        Ok(gst::FlowSuccess::Ok)
    }
}

/// Counts as the bus and the property have them.
impl Counts {
    pub(super) fn to_structure(&self, name: &str) -> gst::Structure {
        let Self { frames, pictures, rate, queue, disk, failed, bytes, free, oldest } = self.clone();
        gst::Structure::builder(name)
            .field("frames", frames)
            .field("pictures", pictures)
            .field("dropped-rate", rate)
            .field("dropped-queue", queue)
            .field("dropped-disk", disk)
            .field("failed", failed)
            .field("bytes", bytes)
            .field("free", free)
            .field("oldest", oldest)
            .build()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn pictures_come_in_a_burst_and_then_at_their_rate() {
        let (mut allowance, start) = (Allowance::default(), Instant::now());
        let at = |ms: u64| start + Duration::from_millis(ms);
        let burst = (0..10).filter(|_| allowance.take(at(0), 2.0, 4.0)).count();
        assert_eq!(burst, 4);
        let later = (0..100).filter(|i| allowance.take(at(100 * i), 2.0, 4.0)).count();
        assert!((19..=20).contains(&later), "{later} in ten seconds at two a second");
        assert!(!Allowance::default().take(at(0), 0.0, 0.0));
    }
}
