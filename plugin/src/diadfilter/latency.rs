//! How long a frame may stay in the element, and how many frames a live stream may have with the model. Pure arithmetic.

use std::time::Duration;

/// What threads and timers of a busy machine may add.
const MARGIN: Duration = Duration::from_millis(8);

/// What the answer depends on.
#[derive(Clone, Copy, Debug)]
pub(super) struct Load {
    /// 99 % of batches take at most this.
    pub(super) batch_time: Duration,
    /// How long a batch that is not full waits.
    pub(super) batch_timeout: Duration,
    /// Frames per batch.
    pub(super) batch_size: usize,
    /// Elements that share the worker.
    pub(super) streams: usize,
    /// What the element itself adds: preparing and drawing.
    pub(super) own: Duration,
}

/// Frames of one of several streams that wait while a batch is worked on.
fn waiting(batch_size: usize, streams: usize) -> usize {
    batch_size.div_ceil(streams.max(1)).max(1)
}

/// Frames of one of several streams that may be with the worker: as many in a batch as wait for the next.
pub(super) fn quota(batch_size: usize, streams: usize) -> usize {
    2 * waiting(batch_size, streams)
}

impl Load {
    /// Time from arrival to departure that holds if every stream keeps to its quota: the rest of the batch at hand, the
    /// batches until all that wait have had their turn, the timeout, and the element's own work.
    pub(super) fn latency(&self) -> Duration {
        let waiting = self.streams.max(1) * waiting(self.batch_size, self.streams);
        let rounds = 1 + waiting.div_ceil(self.batch_size.max(1));
        self.batch_timeout + self.batch_time * rounds as u32 * 11 / 10 + self.own + MARGIN
    }
}

/// What LATENCY is answered with, and the element's own part in it.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Latency {
    pub(super) answered: Duration,
    pub(super) own: Duration,
}

impl Latency {
    /// Takes over a new measurement, or what the property `asked` for in its place. Whether the answer changes.
    pub(super) fn update(&mut self, load: Load, asked: Duration) -> bool {
        self.own = load.own;
        let needed = if asked.is_zero() { load.latency() } else { asked };
        let off = if asked.is_zero() { is_off(self.answered, needed) } else { self.answered != needed };
        if off {
            // Some room, so that it is not off again with the next frame.
            self.answered = if asked.is_zero() { needed * 5 / 4 } else { needed };
        }
        off
    }

    /// How long after its arrival a frame leaves without an answer, so that drawing and pushing end in time.
    pub(super) fn patience(&self) -> Duration {
        self.answered.saturating_sub(self.own + MARGIN / 2).max(Duration::from_millis(1))
    }
}

/// Whether what is answered has to change: it is too short, or far too long.
fn is_off(answered: Duration, needed: Duration) -> bool {
    needed > answered || needed * 2 < answered
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn ms(n: u64) -> Duration {
        Duration::from_millis(n)
    }

    const LOAD: Load = Load { batch_time: ms(20), batch_timeout: ms(0), batch_size: 1, streams: 1, own: ms(2) };

    #[test]
    fn a_stream_alone_waits_for_the_batch_at_hand_and_its_own() {
        assert_eq!((quota(1, 1), LOAD.latency()), (2, ms(44) + ms(2) + MARGIN));
        let two = Load { batch_size: 2, ..LOAD };
        assert_eq!((quota(2, 1), two.latency()), (4, LOAD.latency()));
    }

    #[test]
    fn streams_that_share_wait_for_each_other() {
        let four = Load { streams: 4, batch_size: 2, ..LOAD };
        assert_eq!((quota(2, 4), four.latency()), (2, ms(66) + ms(2) + MARGIN));
    }

    #[test]
    fn what_the_property_asks_for_is_answered_as_it_is() {
        let mut latency = Latency::default();
        assert!(latency.update(LOAD, ms(123)) && !latency.update(LOAD, ms(123)));
        assert_eq!((latency.answered, latency.own), (ms(123), ms(2)));
        assert!(latency.update(LOAD, ms(0)) && latency.answered > LOAD.latency());
    }

    #[test]
    fn a_report_is_kept_while_it_holds() {
        assert!(!is_off(ms(50), ms(40)) && !is_off(ms(50), ms(25)));
        assert!(is_off(ms(50), ms(51)) && is_off(ms(50), ms(24)));
        assert!(Latency { answered: ms(1), own: ms(9) }.patience() > Duration::ZERO);
    }
}
