//! One life of a line's pipeline: from its start until its source ends, fails, or is told to stop.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use gst::MessageView;
use gst::prelude::*;
use gstdiad::meta;
use gstdiad::result::DiadResult;

use super::config::{Line, archive_of, behind, clips_of, film_of, record_of};
use super::properties::{Change, property};
use super::say;
use super::tally::Tally;

/// Frames go in and none comes out for so long: that is no camera's fault.
const SICK: Duration = Duration::from_secs(10);

/// Why a life has ended.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum End {
    /// The source has no more.
    Ended,
    /// No frames come: an error of the source, or silence.
    Lost(String),
    /// The model cannot be loaded, or its element has failed.
    Model(String),
    /// What stands behind the inspection has failed.
    Output(String),
}

/// What a pipeline has to say.
pub(crate) enum News {
    /// It is over.
    End(End),
    /// A model that was set is at work, or why it is not: its file, and the reason.
    Model(String, Result<(), String>),
}

/// A pipeline that runs.
pub(crate) struct Session {
    pipeline: gst::Pipeline,
    bus: gst::Bus,
    filter: gst::Element,
    behind: gst::Element,
    finite: bool,
    started: Instant,
}

impl Session {
    /// Builds and starts the pipeline of a line. Starting may take as long as the source needs to find its camera.
    pub(crate) fn start(line: &Line, tally: &Arc<Tally>) -> Result<Self, (Option<Self>, End)> {
        let description = line.launch().description();
        let wrong = |reason: String| (None, End::Lost(reason));
        let element = gst::parse::launch_full(&description, None, gst::ParseFlags::FATAL_ERRORS);
        let element = element.map_err(|error| wrong(format!("the pipeline cannot be built: {error}")))?;
        let pipeline = element.downcast::<gst::Pipeline>().map_err(|_| wrong("is no pipeline".into()))?;
        let named = |name: &str| pipeline.by_name(name).ok_or_else(|| wrong(format!("no element {name}")));
        let (filter, behind) = (named(&line.name)?, named(&behind(&line.name))?);
        let bus = pipeline.bus().ok_or_else(|| wrong("the pipeline has no bus".into()))?;
        tally.forget_times();
        watch(&filter, tally);
        let kept = [archive_of(&line.name), clips_of(&line.name), record_of(&line.name)];
        tally.set_elements(&filter, kept.map(|name| pipeline.by_name(&name)));
        if let Some(queue) = pipeline.by_name(&film_of(&line.name)).filter(|_| !line.source.is_finite()) {
            watch_film(&queue, &line.name, tally);
        }
        let session = Self { pipeline, bus, filter, behind, finite: line.source.is_finite(), started: Instant::now() };
        match session.pipeline.set_state(gst::State::Playing) {
            Ok(_) => Ok(session),
            Err(_) => {
                let end = match session.poll(Duration::from_millis(100)) {
                    Some(News::End(end)) => end,
                    _ => End::Lost("does not start".into()),
                };
                Err((Some(session), end))
            }
        }
    }

    /// When it was started.
    pub(crate) fn started(&self) -> Instant {
        self.started
    }

    /// What the bus has to say within `patience`.
    pub(crate) fn poll(&self, patience: Duration) -> Option<News> {
        use gst::MessageType as Type;
        let until = Instant::now() + patience;
        while let Some(left) = until.checked_duration_since(Instant::now()) {
            let left = gst::ClockTime::try_from(left).unwrap_or_default();
            let message = self.bus.timed_pop_filtered(left, &[Type::Error, Type::Eos, Type::Element])?;
            let news = match message.view() {
                MessageView::Eos(_) if self.finite => Some(News::End(End::Ended)),
                MessageView::Eos(_) => Some(News::End(End::Lost("its stream has ended".into()))),
                MessageView::Error(error) => Some(News::End(self.classify(error))),
                MessageView::Element(message) => self.of_model(message),
                _ => None,
            };
            if news.is_some() {
                return news;
            }
        }
        None
    }

    /// What a message of this line's filter says of a change of its model.
    fn of_model(&self, message: &gst::message::Element) -> Option<News> {
        let structure = message.structure().filter(|structure| structure.name() == "diad-model")?;
        if message.src() != Some(self.filter.upcast_ref()) {
            return None;
        }
        let (model, loaded) = (structure.get("model").ok()?, structure.get("loaded").ok()?);
        let error = || structure.get("error").unwrap_or_else(|_| "is not loaded".to_owned());
        Some(News::Model(model, if loaded { Ok(()) } else { Err(error()) }))
    }

    fn classify(&self, error: &gst::message::Error) -> End {
        let text = error.error().message().trim_end_matches('.').to_owned();
        let Some(source) = error.src() else { return End::Lost(text) };
        let at = self.top(source);
        if at.as_ref() == Some(&self.filter) {
            return End::Model(text);
        }
        let text = format!("{}: {text}", source.name());
        if at.is_some_and(|at| follows(&self.filter, &at)) { End::Output(text) } else { End::Lost(text) }
    }

    /// The element of the pipeline that `object` is, or is in.
    fn top(&self, object: &gst::Object) -> Option<gst::Element> {
        let mut object = object.clone();
        while let Some(parent) = object.parent() {
            if parent == *self.pipeline.upcast_ref::<gst::Object>() {
                return object.downcast().ok();
            }
            object = parent;
        }
        None
    }

    /// Whether frames go in and none comes out.
    pub(crate) fn is_sick(&self, tally: &Tally) -> bool {
        let times = tally.times();
        let still = |since: Instant| since.elapsed() > SICK;
        // What came last has had its time, and something has come since the last that left.
        times.came.is_some_and(|came| came.elapsed() < SICK)
            && times.left.map_or(still(self.started), still)
            && times.came > times.left
    }

    /// Sets properties of elements while they run.
    pub(crate) fn set(&self, changes: &[Change]) -> Result<(), String> {
        for (element, name, text) in changes {
            let element = self.pipeline.by_name(element).ok_or_else(|| format!("no element {element}"))?;
            let spec = element.find_property(name).ok_or_else(|| format!("no property {name}"))?;
            let value = property(&spec, text).map_err(|expected| format!("{name} = {text:?}: expected {expected}"))?;
            element.set_property_from_value(name, &value);
        }
        Ok(())
    }

    /// Ends the stream behind the source, and waits for what is under way to leave.
    pub(crate) fn drain(&self, patience: Duration) {
        let Some(pad) = self.behind.static_pad("sink") else { return };
        // The source's own thread may hold the pad for as long as its last frame waits for room.
        self.behind.call_async(move |_| {
            pad.send_event(gst::event::Eos::new());
        });
        let until = Instant::now() + patience;
        while let Some(left) = until.checked_duration_since(Instant::now()) {
            let left = gst::ClockTime::try_from(left).unwrap_or(gst::ClockTime::ZERO);
            let Some(message) = self.bus.timed_pop_filtered(left, &[gst::MessageType::Error, gst::MessageType::Eos])
            else {
                return;
            };
            match message.view() {
                MessageView::Eos(_) => return,
                // The source may go on complaining; what stands behind it ends all the same.
                MessageView::Error(error) if matches!(self.classify(error), End::Lost(_)) => {}
                _ => return,
            }
        }
    }

    /// Takes the pipeline down. A source that has lost its camera may hold on for many seconds.
    pub(crate) fn stop(self) {
        let _ = self.pipeline.set_state(gst::State::Null);
    }
}

/// Whether `element` is reached from `from` along the stream.
fn follows(from: &gst::Element, element: &gst::Element) -> bool {
    let (mut open, mut seen) = (vec![from.clone()], Vec::new());
    while let Some(at) = open.pop() {
        for pad in at.src_pads() {
            let Some(next) = pad.peer().and_then(|peer| peer.parent_element()) else { continue };
            if next == *element {
                return true;
            }
            if !seen.contains(&next) {
                seen.push(next.clone());
                open.push(next);
            }
        }
    }
    false
}

/// Counts what passes a filter, and puts line and number on every result.
fn watch(filter: &gst::Element, tally: &Arc<Tally>) {
    if let Some(pad) = filter.static_pad("sink") {
        let tally = tally.clone();
        pad.add_probe(gst::PadProbeType::BUFFER, move |_, _| {
            tally.came();
            gst::PadProbeReturn::Ok
        });
    }
    if let Some(pad) = filter.static_pad("src") {
        let tally = tally.clone();
        pad.add_probe(gst::PadProbeType::BUFFER, move |_, info| {
            if let Some(buffer) = info.buffer_mut() {
                // A frame without a result was not inspected, whatever the reason.
                let mut result = meta::result_of(buffer).unwrap_or_else(|| DiadResult::unseen(buffer.pts()));
                tally.left(&mut result);
                meta::set_result(buffer.make_mut(), &result);
            }
            gst::PadProbeReturn::Ok
        });
    }
}

/// Counts frames that the encoder is too slow for: a rejected one among them begins no clip.
fn watch_film(queue: &gst::Element, line: &str, tally: &Arc<Tally>) {
    let (tally, line, told) = (tally.clone(), line.to_owned(), AtomicBool::new(false));
    queue.connect("overrun", false, move |_| {
        tally.not_filmed();
        if !told.swap(true, Ordering::Relaxed) {
            say(&line, "the encoder is slower than the camera: frames are missing in clips and recordings");
        }
        None
    });
}

/// An element that holds a line's model while its pipeline is down.
pub(crate) struct Holder(gst::Element);

impl Holder {
    pub(crate) fn new(line: &Line) -> Option<Self> {
        let filter = gst::ElementFactory::make("diadfilter").property("model", &line.model).build().ok()?;
        for (name, text) in &line.filter {
            let spec = filter.find_property(name)?;
            filter.set_property_from_value(name, &property(&spec, text).ok()?);
        }
        filter.set_state(gst::State::Ready).ok()?;
        Some(Self(filter))
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        let _ = self.0.set_state(gst::State::Null);
    }
}
