//! An in-place transform: find the metadata, draw.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{LazyLock, Mutex};

use gst::glib;
use gst::prelude::*;
use gst::subclass::prelude::*;
use gst_base::subclass::prelude::*;
use gst_video::VideoInfo;

use crate::overlay::{self, OverlayFlags, Style};
use crate::queue::lock;
use crate::{frame, meta};

static CAT: LazyLock<gst::DebugCategory> = LazyLock::new(|| {
    gst::DebugCategory::new("diadoverlay", gst::DebugColorFlags::empty(), Some("Draws what diadfilter found"))
});

/// The element.
pub struct DiadOverlay {
    style: Mutex<Style>,
    info: Mutex<Option<VideoInfo>>,
    /// The frame before could not be drawn on.
    undrawn: AtomicBool,
}

const ALPHA: f64 = 0.6;
const DEFAULT: Style = Style {
    overlay: OverlayFlags::VERDICT.union(OverlayFlags::BOXES).union(OverlayFlags::HEATMAP),
    alpha: ALPHA as f32,
};

#[glib::object_subclass]
impl ObjectSubclass for DiadOverlay {
    const NAME: &'static str = "GstDiadOverlay";
    type Type = super::DiadOverlay;
    type ParentType = gst_base::BaseTransform;

    fn new() -> Self {
        Self { style: Mutex::new(DEFAULT), info: Mutex::default(), undrawn: AtomicBool::new(false) }
    }
}

impl ObjectImpl for DiadOverlay {
    fn properties() -> &'static [glib::ParamSpec] {
        static SPECS: LazyLock<Vec<glib::ParamSpec>> = LazyLock::new(|| {
            let flags = gst::PARAM_FLAG_MUTABLE_PLAYING | glib::ParamFlags::READWRITE;
            vec![
                glib::ParamSpecFlags::builder::<OverlayFlags>("overlay")
                    .nick("Overlay")
                    .blurb("What is drawn; 0: the pixels stay as they are. Heat map and contour need meta=map at the diadfilter")
                    .default_value(DEFAULT.overlay)
                    .flags(flags)
                    .build(),
                glib::ParamSpecDouble::builder("overlay-alpha")
                    .nick("Overlay opacity")
                    .blurb("Opacity of the heat map")
                    .minimum(0.0)
                    .maximum(1.0)
                    .default_value(ALPHA)
                    .flags(flags)
                    .build(),
            ]
        });
        &SPECS
    }

    fn set_property(&self, _: usize, value: &glib::Value, spec: &glib::ParamSpec) {
        let mut style = lock(&self.style);
        match spec.name() {
            "overlay" => style.overlay = value.get().unwrap_or(style.overlay),
            _ => style.alpha = value.get::<f64>().map_or(style.alpha, |alpha| alpha as f32),
        }
    }

    fn property(&self, _: usize, spec: &glib::ParamSpec) -> glib::Value {
        let style = *lock(&self.style);
        match spec.name() {
            "overlay" => style.overlay.to_value(),
            // The way back from f32 would show 0.6 as 0.6000000238.
            _ => ((f64::from(style.alpha) * 1e6).round() / 1e6).to_value(),
        }
    }
}

impl GstObjectImpl for DiadOverlay {}

impl ElementImpl for DiadOverlay {
    frame::described! {
        "DiAD overlay", "Filter/Effect/Video",
        "Draws verdict, boxes and heat map from the metadata that diadfilter attached", frame::templates
    }
}

impl BaseTransformImpl for DiadOverlay {
    const MODE: gst_base::subclass::BaseTransformMode = gst_base::subclass::BaseTransformMode::AlwaysInPlace;
    const PASSTHROUGH_ON_SAME_CAPS: bool = false;
    const TRANSFORM_IP_ON_PASSTHROUGH: bool = false;

    fn set_caps(&self, incaps: &gst::Caps, _: &gst::Caps) -> Result<(), gst::LoggableError> {
        let info = VideoInfo::from_caps(incaps).map_err(|error| gst::loggable_error!(CAT, "{incaps}: {error}"))?;
        self.undrawn.store(false, Ordering::Relaxed);
        *lock(&self.info) = Some(info);
        Ok(())
    }

    fn transform_ip(&self, buffer: &mut gst::BufferRef) -> Result<gst::FlowSuccess, gst::FlowError> {
        let (style, info) = (*lock(&self.style), lock(&self.info).clone());
        let info = info.ok_or(gst::FlowError::NotNegotiated)?;
        let Some(result) = meta::result_of(buffer).filter(|_| !style.overlay.is_empty()) else {
            return Ok(gst::FlowSuccess::Ok);
        };
        let maps = meta::maps_of(buffer);
        let drawn = overlay::draw(buffer, &info, &result, &maps, style, &self.obj().name());
        // As in diadfilter: the frame passes, and the bus is told when that begins.
        if !self.undrawn.swap(drawn.is_err(), Ordering::Relaxed)
            && let Err(error) = drawn
        {
            overlay::warn_undrawn(&*self.obj(), &*error);
        }
        Ok(gst::FlowSuccess::Ok)
    }
}
