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

impl Load {
    /// Frames of this stream that wait while a batch is worked on.
    fn waiting(&self) -> usize {
        self.batch_size.div_ceil(self.streams.max(1)).max(1)
    }

    /// Frames of this stream that may be with the worker: as many in a batch as wait for the next.
    pub(super) fn quota(&self) -> usize {
        2 * self.waiting()
    }

    /// Time from arrival to departure that holds if every stream keeps to its quota: the rest of the batch at hand, the
    /// batches until all that wait have had their turn, the timeout, and the element's own work.
    pub(super) fn latency(&self) -> Duration {
        let rounds = 1 + (self.streams.max(1) * self.waiting()).div_ceil(self.batch_size.max(1));
        self.batch_timeout + self.batch_time * rounds as u32 * 11 / 10 + self.own + MARGIN
    }
}

/// When a frame that came at 0 leaves without an answer, so that drawing and pushing end within `latency`.
pub(super) fn patience(latency: Duration, own: Duration) -> Duration {
    latency.saturating_sub(own + MARGIN / 2).max(Duration::from_millis(1))
}

/// Whether what is reported has to change: it is too short, or far too long.
pub(super) fn is_off(reported: Duration, needed: Duration) -> bool {
    needed > reported || needed * 2 < reported
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
        assert_eq!((LOAD.quota(), LOAD.latency()), (2, ms(44) + ms(2) + MARGIN));
        let two = Load { batch_size: 2, ..LOAD };
        assert_eq!((two.quota(), two.latency()), (4, LOAD.latency()));
    }

    #[test]
    fn streams_that_share_wait_for_each_other() {
        let four = Load { streams: 4, batch_size: 2, ..LOAD };
        assert_eq!((four.quota(), four.latency()), (2, ms(66) + ms(2) + MARGIN));
    }

    #[test]
    fn a_report_is_kept_while_it_holds() {
        assert!(!is_off(ms(50), ms(40)) && !is_off(ms(50), ms(25)));
        assert!(is_off(ms(50), ms(51)) && is_off(ms(50), ms(24)));
        assert!(patience(ms(1), ms(9)) > Duration::ZERO);
    }
}
