//! Properties: what they are called, what they may be, and the one place of their defaults.

use std::str::FromStr;
use std::sync::LazyLock;
use std::time::Duration;

use diad::detector::Overrides;
use gst::glib;
use gst::prelude::*;

use super::{CopyFrames, MetaFlags, OnError, OverlayFlags, OverloadPolicy, PostMessages};

/// Values of all properties.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Settings {
    pub(super) model: Option<String>,
    pub(super) instance: Option<String>,
    pub(super) device: String,
    pub(super) precision: String,
    pub(super) class: String,
    pub(super) batch_size: u32,
    pub(super) batch_timeout: u64,
    pub(super) max_size_buffers: u32,
    pub(super) overload_policy: OverloadPolicy,
    pub(super) latency: u64,
    pub(super) inference_interval: u32,
    pub(super) ddim_steps: u32,
    pub(super) threshold: f64,
    pub(super) warn_threshold: f64,
    pub(super) target_fpr: f64,
    pub(super) min_area: i32,
    pub(super) confirm_count: u32,
    pub(super) confirm_window: u32,
    pub(super) roi: Option<String>,
    pub(super) mask: Option<String>,
    pub(super) on_error: OnError,
    pub(super) copy_frames: CopyFrames,
    pub(super) overlay: OverlayFlags,
    pub(super) overlay_alpha: f64,
    pub(super) meta: MetaFlags,
    pub(super) post_messages: PostMessages,
    pub(super) stats_interval: u64,
    pub(super) part_id: Option<String>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            model: None,
            instance: None,
            device: "auto".into(),
            precision: "f32".into(),
            class: "auto".into(),
            batch_size: 0,
            batch_timeout: 10_000_000,
            max_size_buffers: 8,
            overload_policy: OverloadPolicy::Auto,
            latency: 0,
            inference_interval: 1,
            ddim_steps: 0,
            threshold: -1.0,
            warn_threshold: -1.0,
            target_fpr: 0.0,
            min_area: -1,
            confirm_count: 1,
            confirm_window: 1,
            roi: None,
            mask: None,
            on_error: OnError::Mark,
            copy_frames: CopyFrames::Auto,
            overlay: OverlayFlags::VERDICT | OverlayFlags::BOXES,
            overlay_alpha: 0.6,
            meta: MetaFlags::REGIONS | MetaFlags::RESULT,
            post_messages: PostMessages::Changes,
            stats_interval: 0,
            part_id: None,
        }
    }
}

/// A rectangle of the frame.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Roi {
    /// x, y, width, height in pixels.
    Pixels([u32; 4]),
    /// The same as fractions of the frame.
    Fractions([f64; 4]),
}

impl FromStr for Roi {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || {
            format!(
                "roi = {text:?}: expected x,y,width,height, either whole pixels (0,40,640,400) or fractions of the frame \
                 (0.0,0.1,1.0,0.8), with an area and inside the frame"
            )
        };
        let parts: Vec<&str> = text.split(',').map(str::trim).collect();
        let fits = |start: f64, length: f64| start >= 0.0 && length > 0.0 && start + length <= 1.0 + 1e-9;
        if let Ok(pixels) = parts.iter().map(|part| part.parse::<u32>()).collect::<Result<Vec<_>, _>>() {
            let pixels: [u32; 4] = pixels.try_into().map_err(|_| wrong())?;
            return if pixels[2] > 0 && pixels[3] > 0 { Ok(Self::Pixels(pixels)) } else { Err(wrong()) };
        }
        let numbers = parts.iter().map(|part| part.parse::<f64>()).collect::<Result<Vec<_>, _>>();
        let [x, y, width, height]: [f64; 4] = numbers.map_err(|_| wrong())?.try_into().map_err(|_| wrong())?;
        if fits(x, width) && fits(y, height) { Ok(Self::Fractions([x, y, width, height])) } else { Err(wrong()) }
    }
}

impl Roi {
    /// As fractions of a frame of this size.
    pub(super) fn on(self, width: u32, height: u32) -> Result<[f64; 4], String> {
        match self {
            Self::Fractions(fractions) => Ok(fractions),
            Self::Pixels([x, y, w, h]) => {
                let inside =
                    |start: u32, length: u32, side: u32| start.checked_add(length).is_some_and(|end| end <= side);
                if !inside(x, w, width) || !inside(y, h, height) {
                    return Err(format!("roi = {x},{y},{w},{h}: is not inside the frame of {width}x{height} pixels"));
                }
                let (width, height) = (f64::from(width), f64::from(height));
                Ok([f64::from(x) / width, f64::from(y) / height, f64::from(w) / width, f64::from(h) / height])
            }
        }
    }
}

impl Settings {
    /// What the detector is told in place of the model's thresholds.
    pub(super) fn overrides(&self) -> Overrides {
        Overrides {
            threshold: (self.threshold >= 0.0).then_some(self.threshold as f32),
            warn_threshold: (self.warn_threshold >= 0.0).then_some(self.warn_threshold as f32),
            target_fpr: (self.target_fpr > 0.0).then_some(self.target_fpr),
            min_area: usize::try_from(self.min_area).ok(),
        }
    }

    pub(super) fn ddim_steps(&self) -> Option<usize> {
        (self.ddim_steps > 0).then_some(self.ddim_steps as usize)
    }

    /// How long a batch waits: only if somebody asked for a number of frames.
    pub(super) fn batch_timeout(&self) -> Duration {
        if self.batch_size == 0 { Duration::ZERO } else { Duration::from_nanos(self.batch_timeout) }
    }

    /// What cannot be, whatever the model and the frames.
    pub(super) fn check(&self) -> Result<(), String> {
        if self.confirm_count > self.confirm_window {
            return Err(format!(
                "confirm-count = {}: expected at most confirm-window, {}",
                self.confirm_count, self.confirm_window
            ));
        }
        self.roi().map(drop)
    }

    pub(super) fn roi(&self) -> Result<Option<Roi>, String> {
        self.roi.as_deref().map(str::parse).transpose()
    }

    /// Sets a property. Its range has been checked by its specification.
    pub(super) fn set(&mut self, name: &str, value: &glib::Value) -> Result<(), glib::value::ValueTypeMismatchError> {
        fn to<'a, T: glib::value::FromValue<'a>>(
            value: &'a glib::Value,
        ) -> Result<T, glib::value::ValueTypeMismatchError>
        where
            T::Checker: glib::value::ValueTypeChecker<Error = glib::value::ValueTypeMismatchError>,
        {
            value.get::<T>()
        }
        let text = || value.get::<Option<String>>().ok().flatten().filter(|text| !text.is_empty());
        match name {
            "model" => self.model = text(),
            "model-instance-id" => self.instance = text(),
            "device" => self.device = text().unwrap_or_else(|| Self::default().device),
            "precision" => self.precision = text().unwrap_or_else(|| Self::default().precision),
            "class" => self.class = text().unwrap_or_else(|| Self::default().class),
            "batch-size" => self.batch_size = to(value)?,
            "batch-timeout" => self.batch_timeout = to(value)?,
            "max-size-buffers" => self.max_size_buffers = to(value)?,
            "overload-policy" => self.overload_policy = to(value)?,
            "latency" => self.latency = to(value)?,
            "inference-interval" => self.inference_interval = to(value)?,
            "ddim-steps" => self.ddim_steps = to(value)?,
            "threshold" => self.threshold = to(value)?,
            "warn-threshold" => self.warn_threshold = to(value)?,
            "target-fpr" => self.target_fpr = to(value)?,
            "min-area" => self.min_area = to(value)?,
            "confirm-count" => self.confirm_count = to(value)?,
            "confirm-window" => self.confirm_window = to(value)?,
            "roi" => self.roi = text(),
            "mask-location" => self.mask = text(),
            "on-error" => self.on_error = to(value)?,
            "copy-frames" => self.copy_frames = to(value)?,
            "overlay" => self.overlay = to(value)?,
            "overlay-alpha" => self.overlay_alpha = to(value)?,
            "meta" => self.meta = to(value)?,
            "post-messages" => self.post_messages = to(value)?,
            "stats-interval" => self.stats_interval = to(value)?,
            "part-id" => self.part_id = text(),
            _ => {}
        }
        Ok(())
    }

    /// The value of a property; `None` for those that are no settings.
    pub(super) fn get(&self, name: &str) -> Option<glib::Value> {
        Some(match name {
            "model" => self.model.to_value(),
            "model-instance-id" => self.instance.to_value(),
            "device" => self.device.to_value(),
            "precision" => self.precision.to_value(),
            "class" => self.class.to_value(),
            "batch-size" => self.batch_size.to_value(),
            "batch-timeout" => self.batch_timeout.to_value(),
            "max-size-buffers" => self.max_size_buffers.to_value(),
            "overload-policy" => self.overload_policy.to_value(),
            "latency" => self.latency.to_value(),
            "inference-interval" => self.inference_interval.to_value(),
            "ddim-steps" => self.ddim_steps.to_value(),
            "threshold" => self.threshold.to_value(),
            "warn-threshold" => self.warn_threshold.to_value(),
            "target-fpr" => self.target_fpr.to_value(),
            "min-area" => self.min_area.to_value(),
            "confirm-count" => self.confirm_count.to_value(),
            "confirm-window" => self.confirm_window.to_value(),
            "roi" => self.roi.to_value(),
            "mask-location" => self.mask.to_value(),
            "on-error" => self.on_error.to_value(),
            "copy-frames" => self.copy_frames.to_value(),
            "overlay" => self.overlay.to_value(),
            "overlay-alpha" => self.overlay_alpha.to_value(),
            "meta" => self.meta.to_value(),
            "post-messages" => self.post_messages.to_value(),
            "stats-interval" => self.stats_interval.to_value(),
            "part-id" => self.part_id.to_value(),
            _ => return None,
        })
    }
}

/// When a property may be changed.
#[derive(Clone, Copy)]
enum When {
    Ready,
    Playing,
}

impl When {
    fn flags(self) -> glib::ParamFlags {
        match self {
            Self::Ready => gst::PARAM_FLAG_MUTABLE_READY,
            Self::Playing => gst::PARAM_FLAG_MUTABLE_PLAYING,
        }
    }
}

/// The specifications of all properties, in the order of the documentation.
pub(super) static SPECS: LazyLock<Vec<glib::ParamSpec>> = LazyLock::new(|| {
    use When::{Playing, Ready};
    let d = Settings::default();
    let text = |name: &'static str, nick: &'static str, blurb: &'static str, default: Option<&str>, when: When| {
        glib::ParamSpecString::builder(name)
            .nick(nick)
            .blurb(blurb)
            .default_value(default)
            .flags(when.flags() | glib::ParamFlags::READWRITE)
            .build()
    };
    let count =
        |name: &'static str, nick: &'static str, blurb: &'static str, range: [u32; 2], default: u32, when: When| {
            let spec = glib::ParamSpecUInt::builder(name).nick(nick).blurb(blurb).minimum(range[0]).maximum(range[1]);
            spec.default_value(default).flags(when.flags() | glib::ParamFlags::READWRITE).build()
        };
    let time = |name: &'static str, nick: &'static str, blurb: &'static str, default: u64, when: When| {
        let spec = glib::ParamSpecUInt64::builder(name).nick(nick).blurb(blurb).default_value(default);
        spec.flags(when.flags() | glib::ParamFlags::READWRITE).build()
    };
    let real = |name: &'static str, nick: &'static str, blurb: &'static str, range: [f64; 2], default: f64| {
        let spec = glib::ParamSpecDouble::builder(name).nick(nick).blurb(blurb).minimum(range[0]).maximum(range[1]);
        spec.default_value(default).flags(Playing.flags() | glib::ParamFlags::READWRITE).build()
    };
    vec![
        text("model", "Model", "Model file (.diad). Set while playing: the new model takes over when it is loaded; one that cannot be loaded leaves the old one in place", None, Playing),
        text("model-instance-id", "Model instance", "Elements with the same id share one worker. Without one, elements with the same model and device share", None, Ready),
        text("device", "Device", "Where the model runs: auto (the first GPU, or the CPU where there is none), cpu, cuda or cuda:N. A device that is asked for and not there is an error, never another device", Some(&d.device), Ready),
        text("precision", "Precision", "What networks compute in on a GPU: f32, f16 or bf16. Thresholds were measured in f32", Some(&d.precision), Ready),
        text("class", "Class", "Class of the parts: auto, or one that the model knows", Some(&d.class), Playing),
        count("batch-size", "Batch size", "Frames per batch; 0: what is there when the model is free, up to what suits the device", [0, 256], d.batch_size, Ready),
        time("batch-timeout", "Batch timeout", "How long a batch of batch-size waits after its first frame, in ns", d.batch_timeout, Ready),
        count("max-size-buffers", "Maximum size", "Frames in the element, at most", [1, 256], d.max_size_buffers, Playing),
        glib::ParamSpecEnum::builder_with_default("overload-policy", d.overload_policy).nick("Overload policy").blurb("What happens to frames that come faster than the model works").flags(Playing.flags() | glib::ParamFlags::READWRITE).build(),
        time("latency", "Latency", "Time that a frame of a live stream may stay in the element, in ns; 0: measured. A frame without an answer by then leaves uninspected", d.latency, Playing),
        count("inference-interval", "Inference interval", "Inspect one frame in so many; the others leave uninspected", [1, u32::MAX], d.inference_interval, Playing),
        count("ddim-steps", "DDIM steps", "Denoiser evaluations per frame; 0: the model's own number, which its thresholds were measured with", [0, 1000], d.ddim_steps, Playing),
        real("threshold", "Threshold", "Score above which a frame is ng; -1: the model's", [-1.0, f64::MAX], d.threshold),
        real("warn-threshold", "Warning threshold", "Score above which a frame is warn; -1: the model's", [-1.0, f64::MAX], d.warn_threshold),
        real("target-fpr", "Target false-reject rate", "Share of good parts that may be rejected: sets the threshold from the model's calibration scores; 0: off", [0.0, 1.0], d.target_fpr),
        glib::ParamSpecInt::builder("min-area").nick("Minimum area").blurb("Regions of fewer pixels of the frame are not reported; -1: the model's").minimum(-1).default_value(d.min_area).flags(Playing.flags() | glib::ParamFlags::READWRITE).build(),
        count("confirm-count", "Confirm count", "Frames of the last confirm-window inspected ones that must be ng before the verdict is; until then it is warn", [1, 1000], d.confirm_count, Playing),
        count("confirm-window", "Confirm window", "Inspected frames that confirm-count looks back on, this one included", [1, 1000], d.confirm_window, Playing),
        text("roi", "Region of interest", "x,y,width,height of the part of the frame that is looked at, in pixels (whole numbers) or as fractions of the frame; none: the model's", None, Playing),
        text("mask-location", "Mask", "Image of the size of the frame; what is black (0) in it is ignored. None: the model's", None, Playing),
        glib::ParamSpecEnum::builder_with_default("on-error", d.on_error).nick("On error").blurb("What happens when a frame cannot be inspected").flags(Playing.flags() | glib::ParamFlags::READWRITE).build(),
        glib::ParamSpecEnum::builder_with_default("copy-frames", d.copy_frames).nick("Copy frames").blurb("Whether frames are copied before they wait; auto: those that come from no buffer pool, as their owner may overwrite them (aravissrc)").flags(Playing.flags() | glib::ParamFlags::READWRITE).build(),
        glib::ParamSpecFlags::builder::<OverlayFlags>("overlay").nick("Overlay").blurb("What is drawn; 0: the pixels stay as they are").default_value(d.overlay).flags(Playing.flags() | glib::ParamFlags::READWRITE).build(),
        real("overlay-alpha", "Overlay opacity", "Opacity of the heat map", [0.0, 1.0], d.overlay_alpha),
        glib::ParamSpecFlags::builder::<MetaFlags>("meta").nick("Metadata").blurb("What is attached to the buffers").default_value(d.meta).flags(Playing.flags() | glib::ParamFlags::READWRITE).build(),
        glib::ParamSpecEnum::builder_with_default("post-messages", d.post_messages).nick("Post messages").blurb("For which frames a diad-result message is posted on the bus").flags(Playing.flags() | glib::ParamFlags::READWRITE).build(),
        time("stats-interval", "Statistics interval", "Time between two diad-stats messages, in ns; 0: only one at the end of the stream", d.stats_interval, Playing),
        text("part-id", "Part", "Name of the part that the frames show; a diad-part event takes precedence", None, Playing),
        glib::ParamSpecBoxed::builder::<gst::Structure>("stats").nick("Statistics").blurb("Counts per verdict, durations in ns, queue, model and device").read_only().build(),
    ]
});

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_region_is_pixels_or_fractions_inside_the_frame() {
        assert_eq!("0,40, 640,400".parse(), Ok(Roi::Pixels([0, 40, 640, 400])));
        assert_eq!("0.5,0,0.5,1".parse(), Ok(Roi::Fractions([0.5, 0.0, 0.5, 1.0])));
        for wrong in ["", "1,2,3", "1,2,0,4", "0.5,0,0.6,1", "a,b,c,d", "-1,0,4,4", "0,0,1,1;0,0,1,1", "nan,0,1,1"] {
            assert!(wrong.parse::<Roi>().unwrap_err().contains("expected x,y,width,height"), "{wrong}");
        }
        assert_eq!(Roi::Pixels([10, 20, 30, 40]).on(100, 80), Ok([0.1, 0.25, 0.3, 0.5]));
        let outside = Roi::Pixels([90, 0, 11, 10]).on(100, 80).unwrap_err();
        assert!(outside.contains("90,0,11,10") && outside.contains("100x80"), "{outside}");
    }

    #[test]
    fn every_property_is_set_and_read_back() {
        gst::init().unwrap();
        let mut settings = Settings::default();
        for spec in SPECS.iter().filter(|spec| spec.flags().contains(glib::ParamFlags::WRITABLE)) {
            let default = settings.get(spec.name()).unwrap();
            assert_eq!(default.type_(), spec.value_type(), "{}", spec.name());
            assert!(!spec.blurb().is_some_and(str::is_empty));
            settings.set(spec.name(), spec.default_value()).unwrap();
        }
        assert_eq!(settings, Settings::default(), "the defaults of the specifications are those of the settings");
    }
}
