//! The ordered queue between the two pads of an element: frames, and the events between them, in the order they came.
//!
//! It knows neither pads nor models: tests drive it from threads. What the pads do with it is in [`crate::stream`].

use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use crossbeam_channel::{Receiver, Sender, bounded};
use gst::{FlowError, FlowSuccess};

/// Takes a lock. What is behind those of this crate is whole after every statement: a panic elsewhere does not make it wrong.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What waits in the queue.
#[derive(Debug)]
pub(crate) enum Item<F, E> {
    /// A frame.
    Frame(F),
    /// Something that keeps its place among the frames.
    Event(E),
}

/// An event as the queue needs to know it.
pub(crate) trait Sticky {
    /// Whether `later` takes the place of this event: downstream needs only the last of its kind.
    fn replaced_by(&self, later: &Self) -> bool;

    /// Whether downstream needs the event even when it was not there as the event passed.
    fn is_sticky(&self) -> bool;

    /// Whether it holds beyond a flush.
    fn survives_flush(&self) -> bool;
}

/// Whether items pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Gate {
    /// They do.
    Open,
    /// The source pad is flushing or not active.
    Stopped,
    /// Downstream took a frame with this error. Frames are refused with it, and the last sticky event of each kind is kept for
    /// whoever is linked next.
    Refused(FlowError),
}

/// The queue. One thread puts in, one takes out, anybody may stop it.
pub(crate) struct Queue<F, E> {
    state: Mutex<State<F, E>>,
    changed: Condvar,
}

struct State<F, E> {
    items: VecDeque<Item<F, E>>,
    /// Frames in the queue and the one that is being handled.
    frames: usize,
    /// The taker handles an item.
    busy: bool,
    gate: Gate,
    /// How often another pad was linked downstream: what was pushed to the one before says nothing of the next.
    links: u64,
    /// Dropped to wake a taker that waits for something else.
    cancel: Option<Sender<Infallible>>,
    cancelled: Receiver<Infallible>,
}

/// What the taker got.
pub(crate) struct Taken<F, E> {
    /// The item.
    pub(crate) item: Item<F, E>,
    /// Closes when the taker should give up whatever it waits for.
    pub(crate) cancelled: Receiver<Infallible>,
    /// For [`Queue::done`].
    pub(crate) receipt: Receipt,
}

/// What remains of [`Taken`] once its item is gone.
#[derive(Clone, Copy)]
pub(crate) struct Receipt {
    links: u64,
    is_frame: bool,
}

impl<F, E> Default for Queue<F, E> {
    fn default() -> Self {
        let (sender, cancelled) = bounded(0);
        drop(sender);
        let state = State {
            items: VecDeque::new(),
            frames: 0,
            busy: false,
            gate: Gate::Stopped,
            links: 0,
            cancel: None,
            cancelled,
        };
        Self { state: Mutex::new(state), changed: Condvar::new() }
    }
}

impl<F, E: Sticky> State<F, E> {
    fn flow(&self) -> Result<(), FlowError> {
        match self.gate {
            Gate::Open => Ok(()),
            Gate::Stopped => Err(FlowError::Flushing),
            Gate::Refused(error) => Err(error),
        }
    }

    /// Puts an event at the end, in place of one that it replaces.
    fn keep_last(&mut self, event: E) {
        let same = |item: &&mut Item<F, E>| matches!(item, Item::Event(old) if old.replaced_by(&event));
        match self.items.iter_mut().find(same) {
            Some(place) => *place = Item::Event(event),
            None => self.items.push_back(Item::Event(event)),
        }
    }

    /// Closes the queue and takes the frames out. Of the events, the last sticky one of each kind stays.
    fn close(&mut self, gate: Gate) -> Vec<F> {
        self.gate = gate;
        self.frames = 0;
        let mut frames = Vec::new();
        for item in std::mem::take(&mut self.items) {
            match item {
                Item::Frame(frame) => frames.push(frame),
                Item::Event(event) if event.is_sticky() => self.keep_last(event),
                Item::Event(_) => {}
            }
        }
        frames
    }
}

impl<F, E: Sticky> Queue<F, E> {
    fn lock(&self) -> MutexGuard<'_, State<F, E>> {
        lock(&self.state)
    }

    fn wait<'a>(&self, state: MutexGuard<'a, State<F, E>>) -> MutexGuard<'a, State<F, E>> {
        self.changed.wait(state).unwrap_or_else(PoisonError::into_inner)
    }

    /// Opens the queue: empty, or after a flush with the events that it does not take away.
    pub(crate) fn start(&self, after_flush: bool) {
        let mut state = self.lock();
        let (cancel, cancelled) = bounded(0);
        state.items.retain(|item| matches!(item, Item::Event(event) if after_flush && event.survives_flush()));
        state.gate = Gate::Open;
        (state.cancel, state.cancelled) = (Some(cancel), cancelled);
        self.changed.notify_all();
    }

    /// Stops the queue: everybody who waits is woken and told `Flushing`. Gives back the frames that were still in it.
    pub(crate) fn stop(&self) -> Vec<F> {
        let mut state = self.lock();
        state.cancel = None;
        self.changed.notify_all();
        state.close(Gate::Stopped)
    }

    /// Another pad was linked downstream: what the one before has said of frames no longer counts. Whether the queue was closed
    /// because of that. A failure (`Error`) stays: it was reported, and may be ours.
    pub(crate) fn linked(&self) -> bool {
        let mut state = self.lock();
        state.links += 1;
        self.reopen(state, |error| error != FlowError::Error)
    }

    /// A new stream or segment: one that downstream has ended may go on. Whether the queue was closed because of that.
    pub(crate) fn renewed(&self) -> bool {
        self.reopen(self.lock(), |error| error == FlowError::Eos)
    }

    fn reopen(&self, mut state: MutexGuard<'_, State<F, E>>, accept: impl Fn(FlowError) -> bool) -> bool {
        let reopened = matches!(state.gate, Gate::Refused(error) if accept(error));
        if reopened {
            state.gate = Gate::Open;
            self.changed.notify_all();
        }
        reopened
    }

    /// Waits until there are fewer than `max` frames.
    pub(crate) fn wait_for_room(&self, max: usize) -> Result<(), FlowError> {
        let mut state = self.lock();
        while state.gate == Gate::Open && state.frames >= max {
            state = self.wait(state);
        }
        state.flow()
    }

    /// Puts a frame at the end. One that finds the queue closed comes back with the reason.
    pub(crate) fn push_frame(&self, frame: F) -> Result<(), (FlowError, F)> {
        let mut state = self.lock();
        if let Err(error) = state.flow() {
            return Err((error, frame));
        }
        state.frames += 1;
        state.items.push_back(Item::Frame(frame));
        self.changed.notify_all();
        Ok(())
    }

    /// Puts an event at the end; the error is why it does not leave now. Where downstream refuses frames, a sticky event is kept
    /// for later. Whether the event is in the queue comes second.
    pub(crate) fn push_event(&self, event: E) -> (Result<(), FlowError>, bool) {
        let mut state = self.lock();
        let kept = match state.gate {
            Gate::Open => {
                state.items.push_back(Item::Event(event));
                true
            }
            Gate::Refused(_) if event.is_sticky() => {
                state.keep_last(event);
                true
            }
            _ => false,
        };
        self.changed.notify_all();
        (state.flow(), kept)
    }

    /// Whether the queue is closed, and why.
    pub(crate) fn flow(&self) -> Result<(), FlowError> {
        self.lock().flow()
    }

    /// Items in the queue.
    pub(crate) fn len(&self) -> usize {
        self.lock().items.len()
    }

    /// Waits for the next item; `None` when the queue is stopped. [`Queue::done`] must follow.
    pub(crate) fn take(&self) -> Option<Taken<F, E>> {
        let mut state = self.lock();
        loop {
            match state.gate {
                Gate::Stopped => return None,
                Gate::Open => {
                    if let Some(item) = state.items.pop_front() {
                        state.busy = true;
                        let receipt = Receipt { links: state.links, is_frame: matches!(item, Item::Frame(_)) };
                        return Some(Taken { item, cancelled: state.cancelled.clone(), receipt });
                    }
                }
                Gate::Refused(_) => {}
            }
            state = self.wait(state);
        }
    }

    /// What [`Queue::take`] gave is dealt with. An error closes the queue unless another pad was linked since; then the frames
    /// that were still in it come back.
    pub(crate) fn done(&self, receipt: Receipt, flow: Result<FlowSuccess, FlowError>) -> Option<Vec<F>> {
        let mut state = self.lock();
        state.busy = false;
        self.changed.notify_all();
        if state.gate != Gate::Open {
            return None;
        }
        state.frames = state.frames.saturating_sub(usize::from(receipt.is_frame));
        match flow {
            Err(error) if error == FlowError::Error || receipt.links == state.links => {
                Some(state.close(Gate::Refused(error)))
            }
            _ => None,
        }
    }

    /// Waits until everything has left.
    pub(crate) fn drain(&self) -> Result<(), FlowError> {
        let mut state = self.lock();
        while state.gate == Gate::Open && (state.busy || !state.items.is_empty()) {
            state = self.wait(state);
        }
        state.flow()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;
    use std::sync::Arc;

    use proptest::prelude::*;

    use super::*;

    /// Even events are sticky, and each replaces those with the same remainder by three.
    impl Sticky for u32 {
        fn replaced_by(&self, later: &Self) -> bool {
            self.is_sticky() && later.is_sticky() && self % 3 == later % 3
        }

        fn is_sticky(&self) -> bool {
            self.is_multiple_of(2)
        }

        fn survives_flush(&self) -> bool {
            *self != 4
        }
    }

    type Numbers = Queue<u32, u32>;

    fn started() -> Arc<Numbers> {
        let queue = Arc::new(Numbers::default());
        queue.start(false);
        queue
    }

    fn run<T: Send + 'static>(body: impl FnOnce() -> T + Send + 'static) -> std::thread::JoinHandle<T> {
        std::thread::Builder::new().spawn(body).unwrap()
    }

    fn take(queue: &Numbers) -> Option<(Item<u32, u32>, Receipt)> {
        queue.take().map(|taken| {
            let receipt = taken.receipt;
            (taken.item, receipt)
        })
    }

    #[test]
    fn a_full_queue_waits_until_a_frame_has_left() {
        let queue = started();
        queue.push_frame(1).unwrap();
        assert!(queue.push_event(1).1);
        let waiter = run({
            let queue = queue.clone();
            move || queue.wait_for_room(1)
        });
        let (item, receipt) = take(&queue).unwrap();
        assert!(matches!(item, Item::Frame(1)));
        assert!(!waiter.is_finished(), "a frame that is being handled takes room");
        queue.done(receipt, Ok(FlowSuccess::Ok));
        assert_eq!(waiter.join().unwrap(), Ok(()));
    }

    #[test]
    fn stopping_wakes_everybody_and_gives_back_what_waits() {
        let queue = started();
        let taker = run({
            let queue = queue.clone();
            move || queue.take().is_none()
        });
        assert!(queue.stop().is_empty());
        assert!(taker.join().unwrap());

        queue.start(false);
        queue.push_frame(1).unwrap();
        for event in [2, 3, 4, 8] {
            assert!(queue.push_event(event).1);
        }
        queue.push_frame(2).unwrap();
        let taken = queue.take().unwrap();
        let waiters = [
            run({
                let queue = queue.clone();
                move || queue.wait_for_room(1)
            }),
            run({
                let queue = queue.clone();
                move || queue.drain()
            }),
        ];
        assert_eq!(queue.stop(), [2]);
        assert!(taken.cancelled.recv().is_err(), "the taker learns of it wherever it waits");
        for waiter in waiters {
            assert_eq!(waiter.join().unwrap(), Err(FlowError::Flushing));
        }
        assert_eq!(queue.push_frame(3), Err((FlowError::Flushing, 3)));
        assert_eq!(queue.done(taken.receipt, Ok(FlowSuccess::Ok)), None, "what was taken before ends after");
        queue.start(true);
        assert_eq!(queue.wait_for_room(1), Ok(()));
        assert!(matches!(take(&queue), Some((Item::Event(8), _))), "8 is the last of the kind of 2, 3 is not sticky");
        assert_eq!(queue.len(), 0, "4 does not hold beyond a flush");
        queue.stop();
        queue.start(false);
        assert_eq!(queue.len(), 0);
    }

    #[test]
    fn a_pad_that_is_linked_anew_gets_the_last_sticky_events_and_the_next_frames() {
        let queue = started();
        queue.push_frame(1).unwrap();
        assert!(queue.push_event(0).1);
        queue.push_frame(2).unwrap();
        let (_, receipt) = take(&queue).unwrap();
        assert_eq!(queue.done(receipt, Err(FlowError::NotLinked)), Some(vec![2]));
        assert_eq!(queue.wait_for_room(9), Err(FlowError::NotLinked));
        assert_eq!(queue.push_frame(3), Err((FlowError::NotLinked, 3)));
        for event in [6, 4, 5] {
            assert_eq!(queue.push_event(event), (Err(FlowError::NotLinked), event != 5));
        }
        let taker = run({
            let queue = queue.clone();
            move || take(&queue).map(|(item, receipt)| (format!("{item:?}"), receipt))
        });
        assert!(!queue.renewed(), "a new segment links nothing");
        assert!(queue.linked());
        let (first, receipt) = taker.join().unwrap().unwrap();
        assert_eq!(first, "Event(6)", "the last of its kind");
        queue.done(receipt, Ok(FlowSuccess::Ok));
        queue.push_frame(7).unwrap();
        let mut rest = Vec::new();
        for _ in 0..2 {
            let (item, receipt) = take(&queue).unwrap();
            rest.push(format!("{item:?}"));
            queue.done(receipt, Ok(FlowSuccess::Ok));
        }
        assert_eq!(rest, ["Event(4)", "Frame(7)"], "and nothing that is not sticky");
    }

    #[test]
    fn what_an_old_link_said_does_not_close_the_queue_to_a_new_one() {
        let queue = started();
        queue.push_frame(1).unwrap();
        let (_, receipt) = take(&queue).unwrap();
        assert!(!queue.linked(), "it was not closed yet");
        assert_eq!(queue.done(receipt, Err(FlowError::NotLinked)), None);
        assert_eq!(queue.push_frame(2), Ok(()));
    }

    #[test]
    fn an_ended_stream_goes_on_with_the_next_and_a_failed_one_does_not() {
        for (error, renewed, linked) in
            [(FlowError::Eos, true, true), (FlowError::Error, false, false), (FlowError::Flushing, false, true)]
        {
            for (reopen, expected) in [(Numbers::renewed as fn(&Numbers) -> bool, renewed), (Numbers::linked, linked)] {
                let queue = started();
                queue.push_frame(1).unwrap();
                let (_, receipt) = take(&queue).unwrap();
                queue.done(receipt, Err(error));
                assert_eq!(reopen(&queue), expected, "{error:?}");
                assert_eq!(queue.flow(), if expected { Ok(()) } else { Err(error) });
            }
        }
    }

    #[test]
    fn draining_waits_for_the_last_item_to_be_dealt_with() {
        let queue = started();
        assert!(queue.push_event(1).1);
        let (_, receipt) = take(&queue).unwrap();
        let waiter = run({
            let queue = queue.clone();
            move || queue.drain()
        });
        queue.done(receipt, Ok(FlowSuccess::Ok));
        assert_eq!(waiter.join().unwrap(), Ok(()));
    }

    #[derive(Clone, Debug)]
    enum Step {
        Frame,
        Event,
        Take,
        Done(Option<FlowError>),
        Stop,
        Start,
        Linked,
    }

    proptest! {
        /// Against a model in a few lines: no frame is lost, doubled or overtaken, and the count of frames is right.
        #[test]
        fn every_frame_that_goes_in_comes_out_in_order_or_is_given_back(
            steps in prop::collection::vec(
                prop_oneof![
                    4 => Just(Step::Frame), 2 => Just(Step::Event), 4 => Just(Step::Take), 4 => Just(Step::Done(None)),
                    1 => Just(Step::Done(Some(FlowError::NotLinked))), 1 => Just(Step::Done(Some(FlowError::Error))),
                    1 => Just(Step::Stop), 1 => Just(Step::Start), 1 => Just(Step::Linked),
                ],
                0..80,
            )
        ) {
            let queue = Numbers::default();
            let (mut frames, mut out, mut gate, mut next) = (VecDeque::new(), None, Err(FlowError::Flushing), 0u32);
            let mut relinked = false;
            for step in steps {
                match step {
                    Step::Frame => {
                        prop_assert_eq!(queue.push_frame(next).is_ok(), gate.is_ok());
                        if gate.is_ok() {
                            frames.push_back(next);
                        }
                        next += 1;
                    }
                    Step::Event => {
                        prop_assert_eq!(queue.push_event(next).0, gate);
                        next += 1;
                    }
                    Step::Take if out.is_none() && gate.is_ok() && queue.len() > 0 => {
                        let (item, receipt) = take(&queue).unwrap();
                        if let Item::Frame(n) = item {
                            prop_assert_eq!(frames.pop_front(), Some(n));
                        }
                        (out, relinked) = (Some((item, receipt)), false);
                    }
                    Step::Done(flow) => if let Some((_, receipt)) = out.take() {
                        let back = queue.done(receipt, flow.map_or(Ok(FlowSuccess::Ok), Err));
                        let closed = flow.filter(|error| gate.is_ok() && (!relinked || *error == FlowError::Error));
                        prop_assert_eq!(back, closed.map(|_| frames.drain(..).collect::<Vec<_>>()));
                        gate = closed.map_or(gate, Err);
                    },
                    Step::Stop => {
                        prop_assert_eq!(queue.stop(), frames.drain(..).collect::<Vec<_>>());
                        gate = Err(FlowError::Flushing);
                    }
                    // An element starts its queue only when its task has ended.
                    Step::Start if gate == Err(FlowError::Flushing) && out.is_none() => {
                        queue.start(false);
                        gate = Ok(());
                    }
                    Step::Linked => {
                        let expected = gate == Err(FlowError::NotLinked);
                        prop_assert_eq!(queue.linked(), expected);
                        if expected {
                            gate = Ok(());
                        }
                        relinked = true;
                    }
                    _ => {}
                }
                prop_assert_eq!(queue.flow(), gate);
                if gate.is_ok() {
                    let under_way = usize::from(matches!(out, Some((Item::Frame(_), _))));
                    prop_assert_eq!(queue.lock().frames, frames.len() + under_way);
                }
            }
        }
    }
}
