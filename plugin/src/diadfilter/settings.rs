//! Properties: what they are called, what they may be, and the one place of their defaults.

use std::str::FromStr;
use std::sync::LazyLock;
use std::time::Duration;

use diad::detector::Overrides;
use gst::glib::{self, ParamFlags, ParamSpec};
use gst::prelude::*;

use super::enums::{CopyFrames, MetaFlags, OnError, OverloadPolicy, PostMessages};
use crate::overlay::OverlayFlags;

/// When a property may be changed.
const READY: ParamFlags = gst::PARAM_FLAG_MUTABLE_READY.union(ParamFlags::READWRITE);
const PLAYING: ParamFlags = gst::PARAM_FLAG_MUTABLE_PLAYING.union(ParamFlags::READWRITE);

/// Name, nick and description of a property.
type Texts = [&'static str; 3];

/// A type that a property can have.
trait Property: Sized {
    /// The specification of a property of this type that may be changed in the states of `flags`.
    fn spec(texts: Texts, default: &Self, range: Option<[Self; 2]>, flags: ParamFlags) -> ParamSpec;

    /// The value. Its range has been checked by the specification.
    fn read(value: &glib::Value, default: Self) -> Self;
}

/// An empty text is none.
impl Property for Option<String> {
    fn spec([name, nick, blurb]: Texts, default: &Self, _: Option<[Self; 2]>, flags: ParamFlags) -> ParamSpec {
        let spec = glib::ParamSpecString::builder(name).nick(nick).blurb(blurb);
        spec.default_value(default.as_deref()).flags(flags).build()
    }

    fn read(value: &glib::Value, _: Self) -> Self {
        value.get::<Self>().ok().flatten().filter(|text| !text.is_empty())
    }
}

/// An empty text is the default.
impl Property for String {
    fn spec(texts: Texts, default: &Self, _: Option<[Self; 2]>, flags: ParamFlags) -> ParamSpec {
        <Option<Self> as Property>::spec(texts, &Some(default.clone()), None, flags)
    }

    fn read(value: &glib::Value, default: Self) -> Self {
        Option::<Self>::read(value, None).unwrap_or(default)
    }
}

macro_rules! numbers {
    ($($number:ty: $spec:ty),*) => {$(
        impl Property for $number {
            fn spec(texts: Texts, default: &Self, range: Option<[Self; 2]>, flags: ParamFlags) -> ParamSpec {
                let [name, nick, blurb] = texts;
                let [least, most] = range.unwrap_or([Self::MIN, Self::MAX]);
                let spec = <$spec>::builder(name).nick(nick).blurb(blurb).minimum(least).maximum(most);
                spec.default_value(*default).flags(flags).build()
            }

            fn read(value: &glib::Value, default: Self) -> Self {
                value.get().unwrap_or(default)
            }
        }
    )*};
}
numbers!(u32: glib::ParamSpecUInt, u64: glib::ParamSpecUInt64, i32: glib::ParamSpecInt, f64: glib::ParamSpecDouble);

macro_rules! choices {
    ($($kind:ty: |$name:ident, $default:ident| $builder:expr),*) => {$(
        impl Property for $kind {
            fn spec(texts: Texts, $default: &Self, _: Option<[Self; 2]>, flags: ParamFlags) -> ParamSpec {
                let [$name, nick, blurb] = texts;
                $builder.nick(nick).blurb(blurb).flags(flags).build()
            }

            fn read(value: &glib::Value, default: Self) -> Self {
                value.get().unwrap_or(default)
            }
        }
    )*};
}
choices!(
    OverloadPolicy: |name, default| glib::ParamSpecEnum::builder_with_default(name, *default),
    OnError: |name, default| glib::ParamSpecEnum::builder_with_default(name, *default),
    CopyFrames: |name, default| glib::ParamSpecEnum::builder_with_default(name, *default),
    PostMessages: |name, default| glib::ParamSpecEnum::builder_with_default(name, *default),
    OverlayFlags: |name, default| glib::ParamSpecFlags::builder::<OverlayFlags>(name).default_value(*default),
    MetaFlags: |name, default| glib::ParamSpecFlags::builder::<MetaFlags>(name).default_value(*default)
);

/// From a table of properties: [`Settings`] with its defaults, the way in and out by name, and the specifications.
macro_rules! properties {
    ($($field:ident: $kind:ty = $default:expr, $([$range:expr],)? $when:ident, $name:literal, $nick:literal, $blurb:literal;)*) => {
        /// Values of all properties.
        #[derive(Clone, Debug, PartialEq)]
        pub(super) struct Settings {
            $(#[doc = $blurb] pub(super) $field: $kind,)*
        }

        impl Default for Settings {
            fn default() -> Self {
                Self { $($field: $default,)* }
            }
        }

        impl Settings {
            /// Sets a property.
            pub(super) fn set(&mut self, name: &str, value: &glib::Value) {
                match name {
                    $($name => self.$field = <$kind as Property>::read(value, $default),)*
                    _ => {}
                }
            }

            /// The value of a property; `None` for those that are no settings.
            pub(super) fn get(&self, name: &str) -> Option<glib::Value> {
                match name {
                    $($name => Some(self.$field.to_value()),)*
                    _ => None,
                }
            }
        }

        /// The specifications of all properties, in the order of the documentation.
        pub(super) static SPECS: LazyLock<Vec<ParamSpec>> = LazyLock::new(|| {
            let stats = glib::ParamSpecBoxed::builder::<gst::Structure>("stats");
            let stats = stats.nick("Statistics").blurb("Counts per verdict, durations in ns, queue, model and device");
            vec![
                $(<$kind as Property>::spec([$name, $nick, $blurb], &$default, None$(.or(Some($range)))?, $when),)*
                stats.read_only().build(),
            ]
        });
    };
}

properties! {
    model: Option<String> = None, PLAYING, "model", "Model",
        "Model file (.diad). Set while playing: the new model takes over when it is loaded; one that cannot be loaded leaves the old one in place";
    instance: Option<String> = None, READY, "model-instance-id", "Model instance",
        "Elements with the same id and model share one worker, and have to agree on device, precision and batches. Without an id, elements that agree in all of these share";
    device: String = "auto".into(), READY, "device", "Device",
        "Where the model runs: auto (the first GPU, or the CPU where there is none), cpu, cuda or cuda:N. A device that is asked for and not there is an error, never another device";
    precision: String = "auto".into(), READY, "precision", "Precision",
        "What networks compute in: auto (bf16 on a CPU that multiplies it, else f32, if the model has thresholds for it), f32, bf16, or f16 on a GPU. Without thresholds that were measured in it a model does not start";
    class: String = "auto".into(), PLAYING, "class", "Class",
        "Class of the parts: auto, or one that the model knows (=auto for one of that name)";
    batch_size: u32 = 0, [[0, 256]], READY, "batch-size", "Batch size",
        "Frames per batch; 0: what is there when the model is free, up to what suits the device";
    batch_timeout: u64 = 10_000_000, READY, "batch-timeout", "Batch timeout",
        "How long a batch of batch-size waits after its first frame, in ns";
    max_size_buffers: u32 = 8, [[1, 256]], PLAYING, "max-size-buffers", "Maximum size",
        "Frames in the element, at most";
    overload_policy: OverloadPolicy = OverloadPolicy::Auto, PLAYING, "overload-policy", "Overload policy",
        "What happens to frames that come faster than the model works";
    latency: u64 = 0, [[0, MAX_LATENCY]], PLAYING, "latency", "Latency",
        "Time that a frame of a live stream may stay in the element, in ns; 0: measured. A frame without an answer by then leaves uninspected";
    inference_interval: u32 = 1, [[1, u32::MAX]], PLAYING, "inference-interval", "Inference interval",
        "Inspect one frame in so many; the others leave uninspected";
    ddim_steps: u32 = 0, [[0, 1000]], PLAYING, "ddim-steps", "DDIM steps",
        "Denoiser evaluations per frame; 0: the model's own number, which its thresholds were measured with";
    threshold: f64 = -1.0, [[-1.0, f64::MAX]], PLAYING, "threshold", "Threshold",
        "Score above which a frame is ng; -1: the model's";
    warn_threshold: f64 = -1.0, [[-1.0, f64::MAX]], PLAYING, "warn-threshold", "Warning threshold",
        "Score above which a frame is warn; -1: the model's. Above the threshold it has no effect";
    target_fpr: f64 = 0.0, [[0.0, 1.0]], PLAYING, "target-fpr", "Target false-reject rate",
        "Share of good parts that may be rejected: sets the threshold from the model's calibration scores; 0: off";
    min_area: i32 = -1, [[-1, i32::MAX]], PLAYING, "min-area", "Minimum area",
        "Regions of fewer pixels of the frame are not reported; -1: the model's";
    confirm_count: u32 = 1, [[1, 1000]], PLAYING, "confirm-count", "Confirm count",
        "Frames of the last confirm-window inspected ones that must be ng before the verdict is; until then it is warn";
    confirm_window: u32 = 1, [[1, 1000]], PLAYING, "confirm-window", "Confirm window",
        "Inspected frames that confirm-count looks back on, this one included; never fewer than confirm-count";
    roi: Option<String> = None, PLAYING, "roi", "Region of interest",
        "x,y,width,height of the part of the frame that is looked at, in pixels (whole numbers) or as fractions of the frame; none: the model's";
    mask: Option<String> = None, PLAYING, "mask-location", "Mask",
        "Image of the size of the frame; what is black (0) in it is ignored. None: the model's";
    on_error: OnError = OnError::Mark, PLAYING, "on-error", "On error",
        "What happens when a frame cannot be inspected";
    copy_frames: CopyFrames = CopyFrames::Auto, PLAYING, "copy-frames", "Copy frames",
        "Whether frames are copied before they wait; auto: those that come from no buffer pool, as their owner may overwrite them (aravissrc)";
    overlay: OverlayFlags = OverlayFlags::VERDICT | OverlayFlags::BOXES, PLAYING, "overlay", "Overlay",
        "What is drawn; 0: the pixels stay as they are. Where another diadfilter follows, draw in the last one only";
    overlay_alpha: f64 = 0.6, [[0.0, 1.0]], PLAYING, "overlay-alpha", "Overlay opacity",
        "Opacity of the heat map";
    meta: MetaFlags = MetaFlags::REGIONS | MetaFlags::RESULT, PLAYING, "meta", "Metadata",
        "What is attached to the buffers";
    post_messages: PostMessages = PostMessages::Changes, PLAYING, "post-messages", "Post messages",
        "For which frames a diad-result message is posted on the bus";
    stats_interval: u64 = 0, PLAYING, "stats-interval", "Statistics interval",
        "Time between two diad-stats messages, in ns; 0: only one at the end of the stream";
    part_id: Option<String> = None, PLAYING, "part-id", "Part",
        "Name of the part that the frames show; a diad-part event takes precedence";
}

/// An hour, in ns: more would only hide a mistake, and sums with it must not wrap.
const MAX_LATENCY: u64 = 3_600_000_000_000;

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
        let fits = |start: f64, length: f64| start >= 0.0 && length > 0.0 && start + length <= 1.0 + 1e-9;
        match (four::<u32>(text), four::<f64>(text)) {
            (Some(pixels @ [_, _, w, h]), _) if w > 0 && h > 0 => Ok(Self::Pixels(pixels)),
            (None, Some([x, y, w, h])) if fits(x, w) && fits(y, h) => Ok(Self::Fractions([x, y, w, h])),
            _ => Err(format!(
                "roi = {text:?}: expected x,y,width,height, either whole pixels (0,40,640,400) or fractions of the frame \
                 (0.0,0.1,1.0,0.8), with an area and inside the frame"
            )),
        }
    }
}

/// Four numbers with commas between them.
fn four<T: FromStr>(text: &str) -> Option<[T; 4]> {
    text.split(',').map(|part| part.trim().parse().ok()).collect::<Option<Vec<T>>>()?.try_into().ok()
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

    /// Inspected frames that a verdict looks back on. Whichever of the two properties is set first, neither is wrong.
    pub(super) fn confirm_window(&self) -> usize {
        self.confirm_window.max(self.confirm_count) as usize
    }

    /// The region of interest.
    ///
    /// # Errors
    /// When the property is none.
    pub(super) fn roi(&self) -> Result<Option<Roi>, String> {
        self.roi.as_deref().map(str::parse).transpose()
    }
}

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
        for spec in SPECS.iter().filter(|spec| spec.flags().contains(ParamFlags::WRITABLE)) {
            let default = settings.get(spec.name()).unwrap();
            assert_eq!(default.type_(), spec.value_type(), "{}", spec.name());
            assert!(!spec.blurb().is_some_and(str::is_empty));
            settings.set(spec.name(), spec.default_value());
        }
        assert_eq!(settings, Settings::default(), "the defaults of the specifications are those of the settings");
    }
}
