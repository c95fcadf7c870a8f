//! Which of the waiting items go to the model next. Pure: no thread, no clock, no model; time is a number of nanoseconds.

use std::collections::VecDeque;

/// What is to be done now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// Nothing waits.
    Idle,
    /// The batch is not full; it leaves at this time whatever comes.
    WaitUntil(u64),
    /// [`Batcher::take`] has a batch to give.
    Ready,
}

/// Items that wait, in one queue per stream.
///
/// A batch takes one item of each stream in turn, so that a fast stream cannot starve a slow one; within a stream the order
/// is kept.
#[derive(Debug)]
pub struct Batcher<T> {
    size: usize,
    timeout: u64,
    streams: VecDeque<Queue<T>>, // in the order of their turns; none is empty
    len: usize,
}

#[derive(Debug)]
struct Queue<T> {
    stream: u64,
    items: VecDeque<(u64, T)>, // (time it came, item)
}

impl<T> Batcher<T> {
    /// Batches of up to `size` (at least 1); one that is not full leaves `timeout` after its oldest item came.
    pub fn new(size: usize, timeout: u64) -> Self {
        Self { size: size.max(1), timeout, streams: VecDeque::new(), len: 0 }
    }

    /// Items of a batch, at most.
    pub fn size(&self) -> usize {
        self.size
    }

    /// Batches of half the size from now on, at least 1.
    pub fn halve(&mut self) {
        self.size = (self.size / 2).max(1);
    }

    /// `item` of `stream` came at `now`.
    pub fn push(&mut self, stream: u64, item: T, now: u64) {
        self.len += 1;
        match self.streams.iter_mut().find(|queue| queue.stream == stream) {
            Some(queue) => queue.items.push_back((now, item)),
            None => self.streams.push_back(Queue { stream, items: VecDeque::from([(now, item)]) }),
        }
    }

    /// What is to be done at `now`.
    pub fn next(&self, now: u64) -> Next {
        let oldest = self.streams.iter().filter_map(|queue| queue.items.front()).map(|(came, _)| *came).min();
        match oldest.map(|came| came.saturating_add(self.timeout)) {
            None => Next::Idle,
            Some(leaves) if self.len >= self.size || leaves <= now => Next::Ready,
            Some(leaves) => Next::WaitUntil(leaves),
        }
    }

    /// The next batch: up to `size` items, each stream in its turn.
    pub fn take(&mut self) -> Vec<T> {
        let mut batch = Vec::with_capacity(self.size.min(self.len));
        while batch.len() < self.size
            && let Some(mut queue) = self.streams.pop_front()
        {
            batch.extend(queue.items.pop_front().map(|(_, item)| item));
            if !queue.items.is_empty() {
                self.streams.push_back(queue);
            }
        }
        self.len -= batch.len();
        batch
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_full_batch_leaves_at_once_and_a_partial_one_at_the_timeout() {
        let mut batcher = Batcher::new(2, 10);
        assert_eq!(batcher.next(0), Next::Idle);
        batcher.push(1, 'a', 5);
        assert_eq!(batcher.next(6), Next::WaitUntil(15));
        assert_eq!(batcher.next(15), Next::Ready);
        batcher.push(1, 'b', 7);
        assert_eq!(batcher.next(7), Next::Ready);
        assert_eq!((batcher.take(), batcher.next(8)), (vec!['a', 'b'], Next::Idle));
    }

    #[test]
    fn without_a_timeout_what_is_there_leaves() {
        let mut batcher = Batcher::new(8, 0);
        batcher.push(1, 'a', 5);
        assert_eq!(batcher.next(5), Next::Ready);
    }

    #[test]
    fn a_fast_stream_does_not_starve_a_slow_one() {
        let mut batcher = Batcher::new(2, 0);
        for i in 0..6 {
            batcher.push(1, (1, i), 0);
        }
        batcher.push(2, (2, 0), 9);
        assert_eq!(batcher.take(), [(1, 0), (2, 0)]);
        batcher.push(2, (2, 1), 10);
        assert_eq!(batcher.take(), [(1, 1), (2, 1)]);
    }

    /// What may happen to a batcher.
    #[derive(Clone, Debug)]
    enum Step {
        Push(u64),
        Take,
        Wait(u64),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![(0u64..5).prop_map(Step::Push), Just(Step::Take), (0u64..30).prop_map(Step::Wait)]
    }

    proptest! {
        #[test]
        fn every_item_leaves_once_in_order_in_time_and_in_turn(
            size in 1usize..6,
            timeout in 0u64..20,
            steps in prop::collection::vec(step(), 1..200),
        ) {
            let mut batcher = Batcher::new(size, timeout);
            let mut now = 0;
            let mut waiting: Vec<(u64, u64, usize)> = Vec::new(); // (stream, came, number)
            let mut passed_over = [0usize; 5]; // batches that left without a stream that waited
            let mut number = 0;
            for step in steps {
                match step {
                    Step::Wait(time) => now += time,
                    Step::Push(stream) => {
                        batcher.push(stream, (stream, number), now);
                        waiting.push((stream, now, number));
                        number += 1;
                    }
                    Step::Take => {
                        let streams: std::collections::BTreeSet<u64> = waiting.iter().map(|w| w.0).collect();
                        let expected = waiting.len().min(size);
                        let batch = batcher.take();
                        prop_assert_eq!(batch.len(), expected);
                        for (stream, number) in &batch {
                            let first = waiting.iter().position(|w| w.0 == *stream).unwrap();
                            prop_assert_eq!(waiting.remove(first).2, *number, "order within a stream");
                        }
                        for stream in streams {
                            let over = &mut passed_over[stream as usize];
                            *over = if batch.iter().any(|b| b.0 == stream) { 0 } else { *over + 1 };
                            prop_assert!(*over * size < 5, "stream {stream} waits for {over} batches of {size}");
                        }
                    }
                }
                prop_assert_eq!(batcher.len, waiting.len());
                let oldest = waiting.iter().map(|w| w.1).min();
                match (batcher.next(now), oldest) {
                    (Next::Idle, None) => {}
                    (Next::Ready, Some(came)) => prop_assert!(waiting.len() >= size || came + timeout <= now),
                    (Next::WaitUntil(time), Some(came)) => {
                        prop_assert!(waiting.len() < size && time == came + timeout && time > now);
                    }
                    (next, oldest) => prop_assert!(false, "{next:?} with {oldest:?}"),
                }
            }
        }
    }
}
