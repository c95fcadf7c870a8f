//! The queue between the two sides of the element: frames, and the events between them, in the order they came.
//!
//! Knows neither pads nor models: tests drive it from threads.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use crossbeam_channel::{Receiver, Sender, bounded};
use gst::{FlowError, FlowSuccess};

/// What waits in line.
#[derive(Debug)]
pub(crate) enum Item<F, E> {
    /// A frame.
    Frame(F),
    /// Something that keeps its place among the frames.
    Event(E),
}

/// The line. One thread puts in, one takes out, anybody may stop it.
pub(crate) struct Line<F, E> {
    state: Mutex<State<F, E>>,
    changed: Condvar,
}

struct State<F, E> {
    items: VecDeque<Item<F, E>>,
    /// Frames in line and the one that is being handled.
    frames: usize,
    /// The taker handles an item.
    busy: bool,
    /// Nothing goes in or out until [`Line::start`].
    stopped: bool,
    /// What downstream said of the last push.
    flow: Result<FlowSuccess, FlowError>,
    /// Dropped to wake a taker that waits for something else.
    cancel: Option<Sender<Infallible>>,
    cancelled: Receiver<Infallible>,
}

/// What the taker gets: an item, and a channel that closes when it should give up.
pub(crate) type Taken<F, E> = (Item<F, E>, Receiver<Infallible>);

impl<F, E> Default for Line<F, E> {
    fn default() -> Self {
        let (sender, cancelled) = bounded(0);
        drop(sender);
        let state = State {
            items: VecDeque::new(),
            frames: 0,
            busy: false,
            stopped: true,
            flow: Err(FlowError::Flushing),
            cancel: None,
            cancelled,
        };
        Self { state: Mutex::new(state), changed: Condvar::new() }
    }
}

impl<F, E> Line<F, E> {
    fn lock(&self) -> MutexGuard<'_, State<F, E>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'a>(&self, state: MutexGuard<'a, State<F, E>>) -> MutexGuard<'a, State<F, E>> {
        self.changed.wait(state).unwrap_or_else(PoisonError::into_inner)
    }

    /// Opens the line, empty.
    pub(crate) fn start(&self) {
        let mut state = self.lock();
        let (cancel, cancelled) = bounded(0);
        state.stopped = false;
        state.flow = Ok(FlowSuccess::Ok);
        (state.cancel, state.cancelled) = (Some(cancel), cancelled);
        self.changed.notify_all();
    }

    /// Closes the line: everybody who waits is woken and told `Flushing`. Gives back what was still in it.
    pub(crate) fn stop(&self) -> Vec<Item<F, E>> {
        self.close(FlowError::Flushing)
    }

    fn close(&self, why: FlowError) -> Vec<Item<F, E>> {
        let mut state = self.lock();
        state.stopped = true;
        state.flow = Err(why);
        state.cancel = None;
        state.frames = 0;
        self.changed.notify_all();
        state.items.drain(..).collect()
    }

    /// Waits until there are fewer than `max` frames.
    pub(crate) fn room(&self, max: usize) -> Result<(), FlowError> {
        let mut state = self.lock();
        while !state.stopped && state.frames >= max {
            state = self.wait(state);
        }
        state.flow.map(drop)
    }

    /// Puts an item at the end. A frame or event that finds the line closed comes back with the reason.
    pub(crate) fn push(&self, item: Item<F, E>) -> Result<(), (FlowError, Item<F, E>)> {
        let mut state = self.lock();
        if let Err(error) = state.flow {
            return Err((error, item));
        }
        state.frames += usize::from(matches!(item, Item::Frame(_)));
        state.items.push_back(item);
        self.changed.notify_all();
        Ok(())
    }

    /// Whether the line is closed, and why.
    pub(crate) fn flow(&self) -> Result<FlowSuccess, FlowError> {
        self.lock().flow
    }

    /// Items in line.
    pub(crate) fn len(&self) -> usize {
        self.lock().items.len()
    }

    /// Waits for the next item; `None` when the line is closed. [`Line::done`] must follow.
    pub(crate) fn take(&self) -> Option<Taken<F, E>> {
        let mut state = self.lock();
        loop {
            if state.stopped {
                return None;
            }
            if let Some(item) = state.items.pop_front() {
                state.busy = true;
                return Some((item, state.cancelled.clone()));
            }
            state = self.wait(state);
        }
    }

    /// The taken item is dealt with. An error closes the line; what was still in it comes back.
    pub(crate) fn done(&self, was_frame: bool, flow: Result<FlowSuccess, FlowError>) -> Vec<Item<F, E>> {
        let mut state = self.lock();
        state.busy = false;
        if !state.stopped {
            state.frames -= usize::from(was_frame);
        }
        self.changed.notify_all();
        let stopped = state.stopped;
        drop(state);
        match flow {
            Err(error) if !stopped => self.close(error),
            _ => Vec::new(),
        }
    }

    /// Waits until everything has left.
    pub(crate) fn drain(&self) -> Result<(), FlowError> {
        let mut state = self.lock();
        while !state.stopped && (state.busy || !state.items.is_empty()) {
            state = self.wait(state);
        }
        state.flow.map(drop)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;
    use std::sync::Arc;

    use proptest::prelude::*;

    use super::*;

    type Numbers = Line<u32, char>;

    fn started() -> Arc<Numbers> {
        let line = Arc::new(Numbers::default());
        line.start();
        line
    }

    fn run<T: Send + 'static>(body: impl FnOnce() -> T + Send + 'static) -> std::thread::JoinHandle<T> {
        std::thread::Builder::new().spawn(body).unwrap()
    }

    #[test]
    fn a_full_line_waits_until_a_frame_has_left() {
        let line = started();
        line.push(Item::Frame(1)).unwrap();
        line.push(Item::Event('e')).unwrap();
        let waiter = run({
            let line = line.clone();
            move || line.room(1)
        });
        assert!(matches!(line.take(), Some((Item::Frame(1), _))));
        assert!(!waiter.is_finished(), "a frame that is being handled takes room");
        line.done(true, Ok(FlowSuccess::Ok));
        assert_eq!(waiter.join().unwrap(), Ok(()));
    }

    #[test]
    fn stopping_wakes_everybody_and_gives_back_what_waits() {
        let line = started();
        let taker = run({
            let line = line.clone();
            move || line.take().is_none()
        });
        assert!(line.stop().is_empty());
        assert!(taker.join().unwrap());

        line.start();
        line.push(Item::Frame(1)).unwrap();
        line.push(Item::Frame(2)).unwrap();
        let (_, cancelled) = line.take().unwrap();
        let waiters = [
            run({
                let line = line.clone();
                move || line.room(1)
            }),
            run({
                let line = line.clone();
                move || line.drain()
            }),
        ];
        assert!(matches!(line.stop()[..], [Item::Frame(2)]));
        assert!(cancelled.recv().is_err(), "the taker learns of it wherever it waits");
        for waiter in waiters {
            assert_eq!(waiter.join().unwrap(), Err(FlowError::Flushing));
        }
        assert!(matches!(line.push(Item::Frame(3)), Err((FlowError::Flushing, Item::Frame(3)))));
        assert!(line.done(true, Ok(FlowSuccess::Ok)).is_empty(), "what was taken before ends after");
        line.start();
        assert_eq!(line.room(1), Ok(()));
    }

    #[test]
    fn an_error_of_downstream_closes_the_line_until_it_is_started_again() {
        let line = started();
        line.push(Item::Frame(1)).unwrap();
        line.push(Item::Frame(2)).unwrap();
        line.take().unwrap();
        assert!(matches!(line.done(true, Err(FlowError::Eos))[..], [Item::Frame(2)]));
        assert_eq!((line.room(9), line.flow()), (Err(FlowError::Eos), Err(FlowError::Eos)));
        assert!(line.take().is_none());
        line.start();
        assert_eq!(line.flow(), Ok(FlowSuccess::Ok));
    }

    #[test]
    fn draining_waits_for_the_last_item_to_be_dealt_with() {
        let line = started();
        line.push(Item::Event('e')).unwrap();
        line.take().unwrap();
        let waiter = run({
            let line = line.clone();
            move || line.drain()
        });
        line.done(false, Ok(FlowSuccess::Ok));
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
    }

    proptest! {
        /// Against a model in ten lines: nothing is lost, doubled or overtaken, and the count of frames is right.
        #[test]
        fn everything_that_goes_in_comes_out_in_order_or_is_given_back(
            steps in prop::collection::vec(
                prop_oneof![
                    4 => Just(Step::Frame), 2 => Just(Step::Event), 4 => Just(Step::Take), 4 => Just(Step::Done(None)),
                    1 => Just(Step::Done(Some(FlowError::Eos))), 1 => Just(Step::Stop), 1 => Just(Step::Start),
                ],
                0..80,
            )
        ) {
            let line: Line<u32, u32> = Line::default();
            let (mut model, mut out, mut open, mut next) = (VecDeque::new(), None, false, 0u32);
            let number = |item: &Item<u32, u32>| match item { Item::Frame(n) => (true, *n), Item::Event(n) => (false, *n) };
            for step in steps {
                match step {
                    Step::Frame | Step::Event => {
                        let frame = matches!(step, Step::Frame);
                        let pushed = line.push(if frame { Item::Frame(next) } else { Item::Event(next) });
                        prop_assert_eq!(pushed.is_ok(), open);
                        if open {
                            model.push_back((frame, next));
                        }
                        next += 1;
                    }
                    Step::Take if out.is_none() && (!model.is_empty() || !open) => {
                        let taken = line.take().map(|(item, _)| number(&item));
                        prop_assert_eq!(taken, model.pop_front());
                        out = taken;
                    }
                    Step::Done(flow) => if let Some((frame, _)) = out.take() {
                        let back = line.done(frame, flow.map_or(Ok(FlowSuccess::Ok), Err));
                        let expected: Vec<_> = if flow.is_some() && open { model.drain(..).collect() } else { Vec::new() };
                        prop_assert_eq!(back.iter().map(number).collect::<Vec<_>>(), expected);
                        open &= flow.is_none();
                    },
                    Step::Stop => {
                        let back: Vec<_> = line.stop().iter().map(number).collect();
                        prop_assert_eq!(back, model.drain(..).collect::<Vec<_>>());
                        open = false;
                    }
                    // The element starts a line only when its task has ended.
                    Step::Start if !open && out.is_none() => {
                        line.start();
                        open = true;
                    }
                    _ => {}
                }
                prop_assert_eq!(line.len(), model.len());
                prop_assert_eq!(line.flow().is_ok(), open);
                if open {
                    let frames = model.iter().chain(&out).filter(|(frame, _)| *frame).count();
                    prop_assert_eq!(line.lock().frames, frames);
                }
            }
        }
    }
}
