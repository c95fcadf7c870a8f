//! The GObject.

use std::sync::{LazyLock, Mutex};

use gst::glib;
use gst::prelude::*;
use gst::subclass::prelude::*;
use gst_base::prelude::*;
use gst_base::subclass::prelude::*;

use super::VerdictFlags;
use crate::queue::lock;
use crate::{frame, meta};

/// The element.
pub struct DiadSelect {
    verdicts: Mutex<VerdictFlags>,
}

/// All but the good: what nobody has looked at is kept too.
const DEFAULT: VerdictFlags = VerdictFlags::all().difference(VerdictFlags::OK);

#[glib::object_subclass]
impl ObjectSubclass for DiadSelect {
    const NAME: &'static str = "GstDiadSelect";
    type Type = super::DiadSelect;
    type ParentType = gst_base::BaseTransform;

    fn new() -> Self {
        Self { verdicts: Mutex::new(DEFAULT) }
    }
}

impl ObjectImpl for DiadSelect {
    fn properties() -> &'static [glib::ParamSpec] {
        static SPECS: LazyLock<Vec<glib::ParamSpec>> = LazyLock::new(|| {
            let spec = glib::ParamSpecFlags::builder::<VerdictFlags>("verdicts")
                .nick("Verdicts")
                .blurb("Frames with one of these verdicts are passed on, the others are not")
                .default_value(DEFAULT)
                .flags(gst::PARAM_FLAG_MUTABLE_PLAYING | glib::ParamFlags::READWRITE)
                .build();
            vec![spec]
        });
        &SPECS
    }

    fn set_property(&self, _: usize, value: &glib::Value, _: &glib::ParamSpec) {
        if let Ok(verdicts) = value.get() {
            *lock(&self.verdicts) = verdicts;
        }
    }

    fn property(&self, _: usize, _: &glib::ParamSpec) -> glib::Value {
        lock(&self.verdicts).to_value()
    }
}

impl GstObjectImpl for DiadSelect {}

impl ElementImpl for DiadSelect {
    frame::described! {
        "DiAD selection", "Filter/Video",
        "Passes on frames by the verdict that diadfilter attached", frame::templates
    }
}

impl BaseTransformImpl for DiadSelect {
    const MODE: gst_base::subclass::BaseTransformMode = gst_base::subclass::BaseTransformMode::AlwaysInPlace;
    const PASSTHROUGH_ON_SAME_CAPS: bool = true;
    const TRANSFORM_IP_ON_PASSTHROUGH: bool = true;

    fn transform_ip_passthrough(&self, buffer: &gst::Buffer) -> Result<gst::FlowSuccess, gst::FlowError> {
        let verdict = meta::result_of(buffer).map_or(VerdictFlags::UNINSPECTED, |result| result.verdict.into());
        if lock(&self.verdicts).contains(verdict) {
            return Ok(gst::FlowSuccess::Ok);
        }
        // Sinks downstream need not wait for a frame that may never come.
        if let Some(pts) = buffer.pts() {
            let gap = gst::event::Gap::builder(pts).duration(buffer.duration()).build();
            self.obj().src_pad().push_event(gap);
        }
        Ok(gst_base::BASE_TRANSFORM_FLOW_DROPPED)
    }
}
