//! What `diadfilter` and `diadmeta2json` have in common: one always sink pad, one always source pad with a task of its own,
//! and an ordered [`Queue`] between them. All rules about when frames pass are here.
//!
//! | what happens | what follows |
//! | --- | --- |
//! | source pad activated | the queue opens and the task runs |
//! | source pad deactivated | the queue stops, whoever waits is told `Flushing`, the task ends |
//! | FLUSH_START, FLUSH_STOP | the same; sticky events that waited leave after it, but for SEGMENT and EOS |
//! | downstream answers a frame with an error | what waits is given up, upstream gets that error; sticky events are kept |
//! | ... `NOT_LINKED` | the bus is told as well, since a `tee` passes over it |
//! | RECONFIGURE (another pad was linked) | the stream goes on, unless downstream had failed (`ERROR`) |
//! | STREAM_START or SEGMENT after EOS | the stream goes on |
//! | EOS while downstream refuses frames | the bus gets an error: nobody would learn of the end otherwise |
//! | a serialized query | waits until all before it has left |
//! | a panic in the task | the queue is closed with `ERROR`: upstream is told instead of waiting for ever |
//!
//! No lock is held while something is pushed or posted.

use std::convert::Infallible;

use crossbeam_channel::Receiver;
use gst::prelude::*;
use gst::subclass::prelude::*;
use gst::{EventType, FlowError, FlowSuccess};

use crate::queue::{Item, Queue, Receipt, Sticky, Taken};

/// Why what an element has learned of its stream no longer holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Renewal {
    /// The stream was flushed.
    Flush,
    /// Another stream begins.
    Stream,
    /// Something was linked or has changed its mind: liveness and latency have to be asked for again.
    Link,
}

/// An element whose frames go through a [`Stream`].
pub(crate) trait StreamElement: ElementImpl + ObjectSubclass<Type: Send + Sync> {
    /// What waits in the queue for each buffer.
    type Frame: Send + 'static;

    /// Its pads and queue.
    fn stream(&self) -> &Stream<Self::Frame>;

    /// The chain function: a buffer comes in.
    ///
    /// # Errors
    /// What upstream is told.
    fn sink_chain(&self, buffer: gst::Buffer) -> Result<FlowSuccess, FlowError>;

    /// A serialized event comes in. What is given back takes its place among the frames.
    ///
    /// # Errors
    /// The event cannot be dealt with; the bus has been told.
    fn sink_event(&self, event: gst::Event) -> Result<gst::Event, ()> {
        Ok(event)
    }

    /// A query from upstream. `None`: the common rules apply.
    fn sink_query(&self, _: &mut gst::QueryRef) -> Option<bool> {
        None
    }

    /// A query from downstream. `None`: the common rules apply.
    fn src_query(&self, _: &mut gst::QueryRef) -> Option<bool> {
        None
    }

    /// The source pad's task: a frame leaves. `cancelled` closes when there is no time left to wait for anything.
    ///
    /// # Errors
    /// What downstream said; upstream is told.
    fn src_push(&self, frame: Self::Frame, cancelled: &Receiver<Infallible>) -> Result<FlowSuccess, FlowError>;

    /// The source pad's task: an event is about to leave.
    fn event_leaves(&self, _: &gst::Event) {}

    /// Frames that will never leave, and why: `flushed`, or `not-passed` on since downstream refuses frames.
    fn give_up(&self, _: Vec<Self::Frame>, _: &'static str) {}

    /// What was learned of the stream no longer holds.
    fn renew(&self, _: Renewal) {}
}

/// Pads and queue of an element.
pub(crate) struct Stream<F> {
    pub(crate) sinkpad: gst::Pad,
    pub(crate) srcpad: gst::Pad,
    pub(crate) queue: Queue<F, gst::Event>,
}

impl Sticky for gst::Event {
    fn replaced_by(&self, later: &Self) -> bool {
        let same_name = || self.structure().map(|s| s.name()) == later.structure().map(|s| s.name());
        self.type_() == later.type_() && self.is_sticky() && (!self.type_().is_sticky_multi() || same_name())
    }

    fn is_sticky(&self) -> bool {
        self.type_().is_sticky()
    }

    fn survives_flush(&self) -> bool {
        self.is_sticky() && !matches!(self.type_(), EventType::Segment | EventType::Eos)
    }
}

/// Closes the queue when the thread that holds it panics: the bindings stop the task and post the error.
struct ClosedOnPanic<'a, F> {
    queue: &'a Queue<F, gst::Event>,
    receipt: Receipt,
}

impl<F> Drop for ClosedOnPanic<'_, F> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let _ = self.queue.done(self.receipt, Err(FlowError::Error));
        }
    }
}

impl<F: Send + 'static> Stream<F> {
    /// Pads of the element `E` from its templates, which exist: they are constants of its class.
    pub(crate) fn new<E: StreamElement<Frame = F>>(template: impl Fn(&str) -> Option<gst::PadTemplate>) -> Self {
        let pad = |name: &str| {
            gst::Pad::builder_from_template(&template(name).unwrap_or_else(|| unreachable!("no template {name}")))
        };
        let sinkpad = pad("sink")
            .chain_function(|_, parent, buffer| {
                E::catch_panic_pad_function(parent, || Err(FlowError::Error), |this| this.sink_chain(buffer))
            })
            .event_function(|pad, parent, event| {
                E::catch_panic_pad_function(parent, || false, |this| sink_event(this, pad, event))
            })
            .query_function(|pad, parent, query| {
                E::catch_panic_pad_function(parent, || false, |this| sink_query(this, pad, query))
            })
            .build();
        let srcpad = pad("src")
            .event_function(|pad, parent, event| {
                E::catch_panic_pad_function(parent, || false, |this| src_event(this, pad, event))
            })
            .query_function(|pad, parent, query| {
                E::catch_panic_pad_function(
                    parent,
                    || false,
                    |this| {
                        let own = this.src_query(query);
                        own.unwrap_or_else(|| gst::Pad::query_default(pad, parent, query))
                    },
                )
            })
            .activatemode_function(|_, parent, mode, active| {
                let panicked = || Err(gst::loggable_error!(gst::CAT_RUST, "panicked while activating"));
                E::catch_panic_pad_function(parent, panicked, |this| src_activate(this, mode, active))
            })
            .flags(gst::PadFlags::FIXED_CAPS)
            .build();
        Self { sinkpad, srcpad, queue: Queue::default() }
    }

    /// Adds the pads to their element, which is new: that cannot fail.
    pub(crate) fn add_to(&self, element: &impl IsA<gst::Element>) {
        for pad in [&self.sinkpad, &self.srcpad] {
            if let Err(error) = element.add_pad(pad) {
                gst::error!(gst::CAT_RUST, obj = element, "{error}");
            }
        }
    }
}

/// Stops the queue and gives up the frames that wait.
fn stop<E: StreamElement>(this: &E) {
    this.give_up(this.stream().queue.stop(), "flushed");
}

fn start_task<E: StreamElement>(this: &E) -> Result<(), gst::LoggableError> {
    let element = this.obj().downgrade();
    let turn = move || {
        if let Some(element) = element.upgrade() {
            src_loop(E::from_obj(&element));
        }
    };
    let started = this.stream().srcpad.start_task(turn);
    started.map_err(|error| gst::loggable_error!(gst::CAT_RUST, "no task: {error}"))
}

/// One turn of the source pad's task.
fn src_loop<E: StreamElement>(this: &E) {
    let Stream { srcpad, queue, .. } = this.stream();
    let Some(Taken { item, cancelled, receipt }) = queue.take() else {
        let _ = srcpad.pause_task();
        return;
    };
    let guard = ClosedOnPanic { queue, receipt };
    let flow = match item {
        Item::Event(event) => {
            gst::log!(gst::CAT_RUST, imp = this, "{event:?} leaves");
            this.event_leaves(&event);
            srcpad.push_event(event);
            Ok(FlowSuccess::Ok)
        }
        Item::Frame(frame) => this.src_push(frame, &cancelled),
    };
    drop(guard);
    if let Some(given_up) = queue.done(receipt, flow) {
        this.give_up(given_up, "not-passed");
        let error = flow.err().unwrap_or(FlowError::Error);
        gst::debug!(gst::CAT_RUST, imp = this, "downstream says {error}");
        if error == FlowError::NotLinked {
            gst::element_imp_warning!(
                this,
                gst::CoreError::Pad,
                ("the source pad is not linked: no frame is taken or passed on until it is linked again")
            );
        }
    }
}

fn src_activate<E: StreamElement>(this: &E, mode: gst::PadMode, active: bool) -> Result<(), gst::LoggableError> {
    if mode != gst::PadMode::Push {
        return Err(gst::loggable_error!(gst::CAT_RUST, "only push mode"));
    }
    let stream = this.stream();
    if active {
        stream.queue.start(false);
        return start_task(this);
    }
    stop(this);
    stream.srcpad.stop_task().map_err(|error| gst::loggable_error!(gst::CAT_RUST, "the task does not stop: {error}"))
}

fn sink_event<E: StreamElement>(this: &E, pad: &gst::Pad, event: gst::Event) -> bool {
    let stream = this.stream();
    match event.type_() {
        EventType::FlushStart => {
            let passed = stream.srcpad.push_event(event);
            stop(this);
            let _ = stream.srcpad.pause_task();
            return passed;
        }
        EventType::FlushStop => {
            let passed = stream.srcpad.push_event(event);
            this.renew(Renewal::Flush);
            stream.queue.start(true);
            return start_task(this).is_ok() && passed;
        }
        _ if !event.is_serialized() => return gst::Pad::event_default(pad, Some(&*this.obj()), event),
        EventType::StreamStart => {
            this.renew(Renewal::Stream);
            stream.queue.renewed();
        }
        EventType::Segment => {
            stream.queue.renewed();
        }
        _ => {}
    }
    let Ok(event) = this.sink_event(event) else { return false };
    let is_eos = event.type_() == EventType::Eos;
    let (flow, kept) = stream.queue.push_event(event);
    if let Err(error) = flow
        && is_eos
        && !matches!(error, FlowError::Flushing | FlowError::Eos)
    {
        gst::element_imp_error!(this, gst::StreamError::Failed, ("the stream ended while downstream said {error}"));
        return false;
    }
    kept // an error is left to the next frame, as GstQueue does
}

fn sink_query<E: StreamElement>(this: &E, pad: &gst::Pad, query: &mut gst::QueryRef) -> bool {
    if let Some(answer) = this.sink_query(query) {
        return answer;
    }
    let stream = this.stream();
    if query.is_serialized() {
        // It keeps its place: what came before it leaves first. Downstream answers for the frames that it will get.
        return stream.queue.drain().is_ok() && stream.srcpad.peer_query(query);
    }
    gst::Pad::query_default(pad, Some(&*this.obj()), query)
}

fn src_event<E: StreamElement>(this: &E, pad: &gst::Pad, event: gst::Event) -> bool {
    match event.type_() {
        EventType::Reconfigure => {
            if this.stream().queue.linked() {
                gst::element_imp_info!(this, gst::CoreError::Pad, ("the source pad is linked again: frames pass"));
            }
            this.renew(Renewal::Link);
        }
        EventType::Latency => this.renew(Renewal::Link),
        _ => {}
    }
    gst::Pad::event_default(pad, Some(&*this.obj()), event)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    /// The task panics over one frame while upstream waits for room for the next.
    #[test]
    fn a_panic_in_the_task_is_told_to_upstream() {
        gst::init().unwrap();
        type Numbers = Queue<u32, gst::Event>;
        let queue = Arc::new(Numbers::default());
        queue.start(false);
        queue.push_frame(1).unwrap();
        let upstream = std::thread::Builder::new().spawn({
            let queue = queue.clone();
            move || queue.wait_for_room(1)
        });
        let task = std::thread::Builder::new().spawn({
            let queue = queue.clone();
            move || {
                let receipt = queue.take().unwrap().receipt;
                let _guard = ClosedOnPanic { queue: &queue, receipt };
                panic!("told to panic")
            }
        });
        assert!(task.unwrap().join().is_err());
        assert_eq!(upstream.unwrap().join().unwrap(), Err(FlowError::Error));
        assert_eq!(queue.push_frame(2), Err((FlowError::Error, 2)));
    }
}
