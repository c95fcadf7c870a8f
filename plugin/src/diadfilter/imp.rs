//! The GObject: properties, pads, states, events, queries.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use gst::glib;
use gst::prelude::*;
use gst::subclass::prelude::*;

use super::enter::{Inlet, Waiting};
use super::leave::Outlet;
use super::pace::{self, Load};
use super::session::Session;
use super::settings::{SPECS, Settings};
use super::tally::Tally;
use crate::frame;
use crate::line::{Item, Line};

pub(super) static CAT: LazyLock<gst::DebugCategory> = LazyLock::new(|| {
    gst::DebugCategory::new("diadfilter", gst::DebugColorFlags::empty(), Some("Finds defects in video frames"))
});

/// Numbers of streams, for the worker's turns.
static STREAMS: AtomicU64 = AtomicU64::new(0);

/// The element. Locks are taken one at a time and never held across model work, pushes, messages or waits.
pub struct DiadFilter {
    pub(super) sinkpad: gst::Pad,
    pub(super) srcpad: gst::Pad,
    /// The properties and how often they have changed.
    settings: Mutex<(Settings, u64)>,
    session: Mutex<Option<Arc<Session>>>,
    pub(super) line: Line<Box<Waiting>, gst::Event>,
    pub(super) tally: Tally,
    /// What the sink side remembers between frames.
    pub(super) inlet: Mutex<Inlet>,
    /// What the source side remembers between frames.
    pub(super) outlet: Mutex<Outlet>,
    /// What LATENCY is answered with.
    latency: Mutex<Duration>,
    /// Frames of this element that are with the worker.
    pub(super) asked: AtomicUsize,
    pub(super) stream: u64,
    /// Loads a model while the old one works.
    swap: Mutex<Option<JoinHandle<()>>>,
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // What is behind these locks is whole after every statement.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl DiadFilter {
    /// The properties of this moment, and their version.
    pub(super) fn settings(&self) -> (Settings, u64) {
        lock(&self.settings).clone()
    }

    pub(super) fn session(&self) -> Option<Arc<Session>> {
        lock(&self.session).clone()
    }

    /// What LATENCY is answered with.
    pub(super) fn latency(&self) -> Duration {
        *lock(&self.latency)
    }

    /// How busy the worker is with this and other streams.
    pub(super) fn load(&self, session: &Session) -> Load {
        let worker = session.shared.worker();
        Load {
            batch_time: worker.batch_time().p99,
            batch_timeout: worker.options().batch_timeout,
            batch_size: worker.options().batch_size,
            streams: session.shared.users(),
            own: self.tally.own(),
        }
    }

    /// Measures again what LATENCY has to say, and posts a message if that has changed.
    pub(super) fn update_latency(&self) {
        let Some(session) = self.session() else { return };
        let asked = Duration::from_nanos(self.settings().0.latency);
        let changed = {
            let needed = if asked.is_zero() { self.load(&session).latency() } else { asked };
            let mut latency = lock(&self.latency);
            let off = if asked.is_zero() { pace::is_off(*latency, needed) } else { *latency != needed };
            if off {
                // Some room, so that it is not off again with the next frame.
                *latency = if asked.is_zero() { needed * 5 / 4 } else { needed };
            }
            off.then_some(*latency)
        };
        if let Some(latency) = changed {
            gst::info!(CAT, imp = self, "latency is now {latency:?}");
            let _ = self.obj().post_message(gst::message::Latency::builder().src(&*self.obj()).build());
        }
    }

    fn open(&self) -> Result<(), gst::ErrorMessage> {
        let (settings, _) = self.settings();
        let wrong = |words: String| gst::error_msg!(gst::ResourceError::Settings, ("{}", words));
        settings.check().map_err(wrong)?;
        let session = Session::open(&settings).map_err(wrong)?;
        gst::info!(CAT, imp = self, "model {} on {}", session.shared.worker().digest(), session.target);
        *lock(&self.session) = Some(Arc::new(session));
        Ok(())
    }

    /// Loads the model that the settings name by now, on a thread of its own, and says how that went.
    fn swap_model(&self, session: Arc<Session>) {
        let (settings, _) = self.settings();
        let element = self.obj().downgrade();
        let body = move || {
            let outcome = session.swap(&settings);
            let Some(element) = element.upgrade() else { return };
            let mut structure = gst::Structure::builder("diad-model")
                .field("model", &settings.model)
                .field("loaded", outcome.is_ok())
                .field("digest", session.shared.worker().digest())
                .build();
            if let Err(words) = outcome {
                structure.set("error", &words);
                gst::element_warning!(
                    element,
                    gst::ResourceError::Settings,
                    ("{words}; the model before stays in place")
                );
            }
            let _ = element.post_message(gst::message::Element::builder(structure).src(&element).build());
            element.imp().update_latency();
        };
        let spawned = std::thread::Builder::new().name("diad-swap".into()).spawn(body);
        match spawned {
            // One at a time: the last one wins, and is waited for.
            Ok(handle) => {
                let before = lock(&self.swap).replace(handle);
                if let Some(before) = before.filter(|thread| thread.is_finished()) {
                    let _ = before.join();
                }
            }
            Err(error) => {
                gst::element_imp_warning!(self, gst::ResourceError::Failed, ("no thread to load a model: {error}"))
            }
        }
    }

    fn change(&self, name: &str, value: &glib::Value) {
        while !self.try_change(name, value) {}
    }

    /// Whether that is done with; not if another thread has changed another property meanwhile.
    fn try_change(&self, name: &str, value: &glib::Value) -> bool {
        let (mut settings, version) = self.settings();
        if let Err(error) = settings.set(name, value) {
            gst::error!(CAT, imp = self, "{name}: {error}");
            return true;
        }
        let session = self.session();
        let fits = |session: &Arc<Session>| match lock(&self.inlet).info.clone() {
            // Made only to see whether it can be: the next frame makes its own.
            Some(info) => session.lens(None, &settings, version + 1, &info).map(drop),
            None => settings.check().and_then(|()| session.check(&settings)),
        };
        if name != "model"
            && let Some(Err(words)) = session.as_ref().map(fits)
        {
            gst::element_imp_warning!(self, gst::ResourceError::Settings, ("{words}; {name} stays as it was"));
            return true;
        }
        {
            let mut current = lock(&self.settings);
            if current.1 != version {
                return false;
            }
            *current = (settings, version + 1);
        }
        match (name, session) {
            ("model", Some(session)) => self.swap_model(session),
            ("latency", Some(_)) => self.update_latency(),
            _ => {}
        }
        true
    }

    /// Everything that waits is given up.
    fn flush(&self) {
        let dropped = self.line.stop();
        self.count_dropped(dropped, "flushed");
    }

    /// Frames that will never leave.
    pub(super) fn count_dropped(&self, dropped: Vec<Item<Box<Waiting>, gst::Event>>, reason: &'static str) {
        let frames = dropped.iter().filter(|item| matches!(item, Item::Frame(_))).count();
        let asked = dropped.iter().filter(|item| matches!(item, Item::Frame(frame) if frame.is_asked())).count();
        self.asked.fetch_sub(asked, Ordering::AcqRel);
        if frames > 0 {
            self.tally.uninspected(reason, frames);
        }
    }

    fn start_task(&self) -> Result<(), gst::LoggableError> {
        let element = self.obj().downgrade();
        let started = self.srcpad.start_task(move || {
            if let Some(element) = element.upgrade() {
                element.imp().leave_one();
            }
        });
        started.map_err(|error| gst::loggable_error!(CAT, "no task: {error}"))
    }

    fn src_activate(&self, mode: gst::PadMode, active: bool) -> Result<(), gst::LoggableError> {
        if mode != gst::PadMode::Push {
            return Err(gst::loggable_error!(CAT, "only push mode"));
        }
        if active {
            self.line.start();
            self.start_task()
        } else {
            self.flush();
            self.srcpad.stop_task().map_err(|error| gst::loggable_error!(CAT, "the task does not stop: {error}"))
        }
    }

    fn sink_event(&self, pad: &gst::Pad, event: gst::Event) -> bool {
        gst::log!(CAT, imp = self, "{event:?}");
        match event.view() {
            gst::EventView::FlushStart(_) => {
                let passed = self.srcpad.push_event(event);
                self.flush();
                let _ = self.srcpad.pause_task();
                return passed;
            }
            gst::EventView::FlushStop(_) => {
                let passed = self.srcpad.push_event(event);
                lock(&self.inlet).flushed();
                *lock(&self.outlet) = Outlet::default();
                self.line.start();
                return self.start_task().is_ok() && passed;
            }
            gst::EventView::Caps(caps) => {
                if let Err(words) = self.set_caps(caps.caps()) {
                    gst::element_imp_error!(self, gst::CoreError::Negotiation, ("{words}"));
                    return false;
                }
            }
            gst::EventView::CustomDownstream(custom) => {
                if let Some(part) = custom.structure().filter(|structure| structure.name() == "diad-part") {
                    lock(&self.inlet).part = part.get::<String>("part-id").ok();
                }
            }
            _ => {}
        }
        if !event.is_serialized() {
            return gst::Pad::event_default(pad, Some(&*self.obj()), event);
        }
        let is_eos = event.type_() == gst::EventType::Eos;
        match self.line.push(Item::Event(event)) {
            Ok(()) => true,
            Err((error, _)) => {
                if is_eos && !matches!(error, gst::FlowError::Flushing | gst::FlowError::Eos) {
                    gst::element_imp_error!(self, gst::StreamError::Failed, ("the stream ended because of {error}"));
                }
                false
            }
        }
    }

    fn sink_query(&self, pad: &gst::Pad, query: &mut gst::QueryRef) -> bool {
        if query.is_serialized() {
            // It keeps its place: what came before it leaves first. Downstream answers for the frames that it will get.
            return self.line.drain().is_ok() && self.srcpad.peer_query(query);
        }
        gst::Pad::query_default(pad, Some(&*self.obj()), query)
    }

    fn src_query(&self, pad: &gst::Pad, query: &mut gst::QueryRef) -> bool {
        let gst::QueryViewMut::Latency(answer) = query.view_mut() else {
            return gst::Pad::query_default(pad, Some(&*self.obj()), query);
        };
        let (live, min, max) = self.upstream_latency();
        lock(&self.inlet).live = Some(live);
        let own = gst::ClockTime::try_from(self.latency()).unwrap_or(gst::ClockTime::ZERO);
        answer.set(live, min + own, max.map(|max| max + own));
        true
    }

    /// Live, minimum and maximum latency of upstream. Who fails to answer is taken as live: frames that come without end and
    /// must not be held up are the case where being wrong hurts.
    pub(super) fn upstream_latency(&self) -> (bool, gst::ClockTime, Option<gst::ClockTime>) {
        let mut query = gst::query::Latency::new();
        if self.sinkpad.peer_query(&mut query) { query.result() } else { (true, gst::ClockTime::ZERO, None) }
    }
}

#[glib::object_subclass]
impl ObjectSubclass for DiadFilter {
    const NAME: &'static str = "GstDiadFilter";
    type Type = super::DiadFilter;
    type ParentType = gst::Element;

    fn with_class(class: &Self::Class) -> Self {
        let pad = |name: &str| {
            let template = class.pad_template(name);
            // Both templates are added below, from constants.
            gst::Pad::builder_from_template(&template.unwrap_or_else(|| unreachable!("no template {name}")))
        };
        let sinkpad = pad("sink")
            .chain_function(|_, parent, buffer| {
                Self::catch_panic_pad_function(parent, || Err(gst::FlowError::Error), |this| this.enter(buffer))
            })
            .event_function(|pad, parent, event| {
                Self::catch_panic_pad_function(parent, || false, |this| this.sink_event(pad, event))
            })
            .query_function(|pad, parent, query| {
                Self::catch_panic_pad_function(parent, || false, |this| this.sink_query(pad, query))
            })
            .flags(gst::PadFlags::PROXY_CAPS)
            .build();
        let srcpad = pad("src")
            .query_function(|pad, parent, query| {
                Self::catch_panic_pad_function(parent, || false, |this| this.src_query(pad, query))
            })
            .activatemode_function(|_, parent, mode, active| {
                Self::catch_panic_pad_function(
                    parent,
                    || Err(gst::loggable_error!(CAT, "panicked while activating")),
                    |this| this.src_activate(mode, active),
                )
            })
            .flags(gst::PadFlags::PROXY_CAPS | gst::PadFlags::FIXED_CAPS)
            .build();
        Self {
            sinkpad,
            srcpad,
            settings: Mutex::default(),
            session: Mutex::default(),
            line: Line::default(),
            tally: Tally::default(),
            inlet: Mutex::default(),
            outlet: Mutex::default(),
            latency: Mutex::default(),
            asked: AtomicUsize::new(0),
            stream: STREAMS.fetch_add(1, Ordering::Relaxed),
            swap: Mutex::default(),
        }
    }
}

impl ObjectImpl for DiadFilter {
    fn properties() -> &'static [glib::ParamSpec] {
        &SPECS
    }

    fn set_property(&self, _: usize, value: &glib::Value, spec: &glib::ParamSpec) {
        self.change(spec.name(), value);
    }

    fn property(&self, _: usize, spec: &glib::ParamSpec) -> glib::Value {
        match spec.name() {
            "stats" => self.stats().to_value(),
            name => self.settings().0.get(name).unwrap_or_else(|| spec.default_value().clone()),
        }
    }

    fn constructed(&self) {
        self.parent_constructed();
        let element = self.obj();
        for pad in [&self.sinkpad, &self.srcpad] {
            if let Err(error) = element.add_pad(pad) {
                gst::error!(CAT, imp = self, "{error}");
            }
        }
    }
}

impl GstObjectImpl for DiadFilter {}

impl ElementImpl for DiadFilter {
    fn metadata() -> Option<&'static gst::subclass::ElementMetadata> {
        static METADATA: LazyLock<gst::subclass::ElementMetadata> = LazyLock::new(|| {
            gst::subclass::ElementMetadata::new(
                "DiAD defect inspection",
                "Filter/Analyzer/Video",
                "Finds defects in video frames with a model of good parts, and passes every frame on with its verdict",
                "the diad authors",
            )
        });
        Some(&METADATA)
    }

    fn pad_templates() -> &'static [gst::PadTemplate] {
        static TEMPLATES: LazyLock<Vec<gst::PadTemplate>> = LazyLock::new(frame::templates);
        &TEMPLATES
    }

    fn change_state(&self, transition: gst::StateChange) -> Result<gst::StateChangeSuccess, gst::StateChangeError> {
        match transition {
            gst::StateChange::NullToReady => {
                if let Err(error) = self.open() {
                    self.post_error_message(error);
                    return Err(gst::StateChangeError);
                }
            }
            gst::StateChange::ReadyToPaused => {
                self.tally.reset();
                *lock(&self.inlet) = Inlet::default();
                *lock(&self.outlet) = Outlet::default();
                *lock(&self.latency) = Duration::ZERO;
                self.asked.store(0, Ordering::Release);
                self.update_latency();
            }
            _ => {}
        }
        let success = self.parent_change_state(transition)?;
        if transition == gst::StateChange::ReadyToNull {
            let (swap, session) = (lock(&self.swap).take(), lock(&self.session).take());
            if let Some(swap) = swap {
                let _ = swap.join();
            }
            drop(session); // the last one ends the worker
        }
        Ok(success)
    }
}
