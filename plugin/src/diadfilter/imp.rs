//! The GObject: properties, states, and changes of the model.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use gst::glib;
use gst::prelude::*;
use gst::subclass::prelude::*;

use super::chain::{Frame, SinkState};
use super::latency::{Latency, Load};
use super::model::{FrameContext, ModelHandle};
use super::push::{SrcState, nanoseconds};
use super::settings::{SPECS, Settings};
use super::stats::Stats;
use crate::frame;
use crate::queue::lock;
use crate::stream::Stream;

pub(super) static CAT: LazyLock<gst::DebugCategory> = LazyLock::new(|| {
    gst::DebugCategory::new("diadfilter", gst::DebugColorFlags::empty(), Some("Finds defects in video frames"))
});

/// Numbers of streams, for the worker's turns.
static STREAMS: AtomicU64 = AtomicU64::new(0);

/// The element. Locks are taken one at a time and never held while a file is read, a model works, something is pushed or posted, or
/// anybody is waited for.
pub struct DiadFilter {
    pub(super) stream: Stream<Box<Frame>>,
    config: Mutex<Configured>,
    loader: Mutex<Loader>,
    stats: Mutex<Arc<Stats>>,
    /// What the sink side remembers between frames.
    pub(super) sink: Mutex<SinkState>,
    /// What the source side remembers between frames.
    pub(super) src: Mutex<SrcState>,
    latency: Mutex<Latency>,
    pub(super) number: u64,
}

/// What is set at a moment.
#[derive(Clone, Default)]
pub(super) struct Configured {
    pub(super) settings: Arc<Settings>,
    /// From READY on.
    pub(super) model: Option<Arc<ModelHandle>>,
    /// Counts the changes of the two above.
    version: u64,
    /// Counts the requests for another model: one that is not the last is given up.
    requests: u64,
}

/// The thread that loads models while the old one works. There is one at a time.
#[derive(Default)]
struct Loader {
    /// What is to be loaded next, and the number of that request.
    wanted: Option<(Option<String>, u64)>,
    runs: bool,
    thread: Option<JoinHandle<()>>,
}

impl DiadFilter {
    pub(super) fn configured(&self) -> Configured {
        lock(&self.config).clone()
    }

    pub(super) fn stats(&self) -> Arc<Stats> {
        lock(&self.stats).clone()
    }

    /// What LATENCY is answered with.
    pub(super) fn latency(&self) -> Latency {
        *lock(&self.latency)
    }

    /// Measures again what LATENCY has to say, and posts a message if that has changed.
    pub(super) fn update_latency(&self) {
        let Configured { settings, model: Some(model), .. } = self.configured() else { return };
        let worker = model.worker();
        let load = Load {
            batch_time: worker.batch_time().p99,
            batch_timeout: worker.options().batch_timeout,
            batch_size: worker.options().batch_size,
            streams: model.users(),
            own: self.stats().own(),
        };
        let changed = {
            let mut latency = lock(&self.latency);
            latency.update(load, Duration::from_nanos(settings.latency)).then_some(latency.answered)
        };
        if let Some(latency) = changed {
            gst::info!(CAT, imp = self, "latency is now {latency:?}");
            let _ = self.obj().post_message(gst::message::Latency::builder().src(&*self.obj()).build());
        }
    }

    /// The property `stats`.
    pub(super) fn stats_structure(&self) -> gst::Structure {
        let mut structure = self.stats().counts().clone().structure();
        structure.set("queued", self.stream.queue.len() as u64);
        structure.set("latency", nanoseconds(self.latency().answered));
        if let Some(model) = self.configured().model {
            let worker = model.worker();
            let stats = worker.stats();
            structure.set("model", worker.digest());
            structure.set("device", model.target.to_string());
            structure.set("worker-batches", stats.batches);
            structure.set("worker-frames", stats.frames);
            structure.set("worker-mean-batch", stats.mean_batch());
            structure.set("worker-errors", stats.errors);
            structure.set("worker-panics", stats.panics);
            structure.set("worker-pending", worker.pending() as u64);
        }
        structure
    }

    /// Opens the model that the settings name.
    fn open(&self) -> Result<(), gst::ErrorMessage> {
        let settings = self.configured().settings;
        let opened = settings.roi().and_then(|_| ModelHandle::open(&settings));
        let model = opened.map_err(|words| gst::error_msg!(gst::ResourceError::Settings, ("{}", words)))?;
        gst::info!(CAT, imp = self, "model {} on {}", model.worker().digest(), model.target);
        let old = {
            let mut config = lock(&self.config);
            config.version += 1;
            config.model.replace(Arc::new(model))
        };
        drop(old);
        Ok(())
    }

    /// Opens the model again if it runs otherwise than the properties ask by now: some may be changed in READY.
    fn open_again_if_needed(&self) -> Result<(), gst::ErrorMessage> {
        let Configured { settings, model, .. } = self.configured();
        match model {
            Some(model) if model.runs_as(&settings) => Ok(()),
            _ => self.open(),
        }
    }

    fn close(&self) {
        let model = {
            let mut config = lock(&self.config);
            config.requests += 1; // whatever is being loaded comes too late
            config.version += 1;
            config.model.take()
        };
        let thread = {
            let mut loader = lock(&self.loader);
            loader.wanted = None;
            loader.thread.take()
        };
        if let Some(thread) = thread {
            let _ = thread.join(); // a panic there has been logged
        }
        let mut sink = lock(&self.sink);
        let context = std::mem::take(&mut *sink).context;
        drop(sink);
        drop((context, model)); // the last one ends the worker
    }

    /// Loads another model while the one at hand works on. Of several requests the last one wins; the others are told so.
    fn request_model(&self, path: Option<String>) {
        let request = {
            let mut config = lock(&self.config);
            config.requests += 1;
            config.requests
        };
        let element = self.obj().downgrade();
        let (superseded, failed) = {
            let mut loader = lock(&self.loader);
            let superseded = loader.wanted.replace((path, request));
            let mut failed = None;
            if !loader.runs {
                let body = move || {
                    if let Some(element) = element.upgrade() {
                        element.imp().load_models();
                    }
                };
                match std::thread::Builder::new().name("diad-load".into()).spawn(body) {
                    Ok(thread) => (loader.runs, loader.thread) = (true, Some(thread)), // the one before has ended
                    Err(error) => {
                        failed = loader.wanted.take().zip(Some(format!("no thread to load a model: {error}")))
                    }
                }
            }
            (superseded, failed)
        };
        if let Some((path, _)) = superseded {
            self.say_model(path.as_deref(), Err(SUPERSEDED.into()));
        }
        if let Some(((path, _), words)) = failed {
            self.say_model(path.as_deref(), Err(words));
        }
    }

    /// The loader's thread: until nothing is wanted any more.
    fn load_models(&self) {
        loop {
            let (path, request) = {
                let mut loader = lock(&self.loader);
                match loader.wanted.take() {
                    Some(wanted) => wanted,
                    None => return loader.runs = false,
                }
            };
            let outcome = self.load_model(path.clone(), request);
            self.say_model(path.as_deref(), outcome);
        }
    }

    /// Loads a model and, unless another one was asked for since, puts it in place of the old one. Property and model change
    /// together, or not at all.
    fn load_model(&self, path: Option<String>, request: u64) -> Result<(), String> {
        let with_path = |settings: &Settings| Arc::new(Settings { model: path.clone(), ..settings.clone() });
        let model = Arc::new(ModelHandle::open(&with_path(&self.configured().settings))?);
        loop {
            let now = self.configured();
            if now.requests != request {
                return Err(SUPERSEDED.into());
            }
            let settings = with_path(&now.settings);
            let context = self.try_context(&model, &settings)?;
            let old = {
                let mut config = lock(&self.config);
                if (config.version, config.requests) != (now.version, request) {
                    continue; // another property was changed meanwhile: it has to fit, too
                }
                config.version += 1;
                config.settings = settings;
                config.model.replace(model)
            };
            self.use_context(context);
            drop(old); // what it has accepted it still answers
            return Ok(());
        }
    }

    /// Says how a change of the model went.
    fn say_model(&self, path: Option<&str>, outcome: Result<(), String>) {
        let element = self.obj();
        let mut structure = gst::Structure::builder("diad-model").field("loaded", outcome.is_ok()).build();
        structure.set_if_some("model", path);
        structure.set_if_some("digest", self.configured().model.map(|model| model.worker().digest().to_owned()));
        match outcome {
            Ok(()) => element.notify("model"),
            Err(words) => {
                structure.set("error", &words);
                if words == SUPERSEDED {
                    gst::info!(CAT, imp = self, "model = {path:?} {words}");
                } else {
                    gst::element_warning!(
                        element,
                        gst::ResourceError::Settings,
                        ("{words}; the model before stays in place")
                    );
                }
            }
        }
        let _ = element.post_message(gst::message::Element::builder(structure).src(&*element).build());
        self.update_latency();
    }

    /// What the frames of this moment would be looked at with; nothing where none has come yet.
    fn try_context(&self, model: &Arc<ModelHandle>, settings: &Arc<Settings>) -> Result<Option<FrameContext>, String> {
        let info = lock(&self.sink).info.clone();
        match info {
            Some(info) => FrameContext::new(model.clone(), settings.clone(), &info).map(Some),
            None => model.check(settings).map(|()| None),
        }
    }

    /// Made on this thread so that the streaming thread need not.
    fn use_context(&self, context: Option<FrameContext>) {
        if let Some(context) = context {
            let old = lock(&self.sink).context.replace(Arc::new(context));
            drop(old);
        }
    }

    fn change(&self, spec: &glib::ParamSpec, value: &glib::Value) {
        while !self.try_change(spec, value) {}
    }

    /// Whether that is done with; not if another thread has changed something else meanwhile.
    fn try_change(&self, spec: &glib::ParamSpec, value: &glib::Value) -> bool {
        let name = spec.name();
        let now = self.configured();
        let mut settings = Settings::clone(&now.settings);
        settings.set(name, value);
        let settings = Arc::new(settings);
        let mut context = None;
        if let Some(model) = &now.model {
            if name == "model" {
                self.request_model(settings.model.clone());
                return true;
            }
            if !spec.flags().contains(gst::PARAM_FLAG_MUTABLE_PLAYING) && self.obj().current_state() > gst::State::Ready
            {
                let words = format!("{name} can be changed in READY only; it stays as it was");
                gst::element_imp_warning!(self, gst::ResourceError::Settings, ("{words}"));
                return true;
            }
            match self.try_context(model, &settings) {
                Ok(made) => context = made,
                Err(words) => {
                    gst::element_imp_warning!(self, gst::ResourceError::Settings, ("{words}; {name} stays as it was"));
                    return true;
                }
            }
        }
        {
            let mut config = lock(&self.config);
            if config.version != now.version {
                return false;
            }
            config.version += 1;
            config.settings = settings;
        }
        self.use_context(context);
        if name == "latency" {
            self.update_latency();
        }
        true
    }
}

/// What becomes of a model that is not the last one that was asked for.
const SUPERSEDED: &str = "was not used: another model was set after it";

#[glib::object_subclass]
impl ObjectSubclass for DiadFilter {
    const NAME: &'static str = "GstDiadFilter";
    type Type = super::DiadFilter;
    type ParentType = gst::Element;

    fn with_class(class: &Self::Class) -> Self {
        Self {
            stream: Stream::new::<Self>(|name| class.pad_template(name)),
            config: Mutex::default(),
            loader: Mutex::default(),
            stats: Mutex::default(),
            sink: Mutex::default(),
            src: Mutex::default(),
            latency: Mutex::default(),
            number: STREAMS.fetch_add(1, Ordering::Relaxed),
        }
    }
}

impl ObjectImpl for DiadFilter {
    fn properties() -> &'static [glib::ParamSpec] {
        &SPECS
    }

    fn set_property(&self, _: usize, value: &glib::Value, spec: &glib::ParamSpec) {
        self.change(spec, value);
    }

    fn property(&self, _: usize, spec: &glib::ParamSpec) -> glib::Value {
        match spec.name() {
            "stats" => self.stats_structure().to_value(),
            name => self.configured().settings.get(name).unwrap_or_else(|| spec.default_value().clone()),
        }
    }

    fn constructed(&self) {
        self.parent_constructed();
        for pad in [&self.stream.sinkpad, &self.stream.srcpad] {
            pad.set_pad_flags(gst::PadFlags::PROXY_CAPS);
        }
        self.stream.add_to(&*self.obj());
    }
}

impl GstObjectImpl for DiadFilter {}

impl ElementImpl for DiadFilter {
    frame::described! {
        "DiAD defect inspection", "Filter/Analyzer/Video",
        "Finds defects in video frames with a model of good parts, and passes every frame on with its verdict", frame::templates
    }

    fn change_state(&self, transition: gst::StateChange) -> Result<gst::StateChangeSuccess, gst::StateChangeError> {
        let ready = match transition {
            gst::StateChange::NullToReady => self.open(),
            gst::StateChange::ReadyToPaused => self.open_again_if_needed(),
            _ => Ok(()),
        };
        if let Err(error) = ready {
            self.post_error_message(error);
            return Err(gst::StateChangeError);
        }
        if transition == gst::StateChange::ReadyToPaused {
            *lock(&self.stats) = Arc::default();
            *lock(&self.sink) = SinkState::default();
            *lock(&self.src) = SrcState::default();
            *lock(&self.latency) = Latency::default();
            self.update_latency();
        }
        let success = self.parent_change_state(transition)?;
        if transition == gst::StateChange::ReadyToNull {
            self.close();
        }
        Ok(success)
    }
}
