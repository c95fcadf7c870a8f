//! What a line is doing, and when it tries again: no pipeline and no clock in it.

use std::time::Duration;

/// What a line is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    /// A pipeline is being built; no frame has come yet.
    Starting,
    /// Frames come, and answers with them.
    Running,
    /// A triggered camera waits for its trigger.
    Idle,
    /// No frames come. They will be asked for again.
    CameraLost,
    /// The model cannot be loaded. It will be tried again.
    ModelError,
    /// Its last frames leave.
    Stopping,
    /// It was told to stop and has.
    Stopped,
    /// Its source has come to an end.
    Ended,
    /// It will not be tried again.
    Failed,
    /// Its pipeline does not come down.
    Stuck,
}

impl State {
    /// The name, as it stands in messages.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Running => "running",
            Self::Idle => "idle",
            Self::CameraLost => "camera-lost",
            Self::ModelError => "model-error",
            Self::Stopping => "stopping",
            Self::Stopped => "stopped",
            Self::Ended => "ended",
            Self::Failed => "failed",
            Self::Stuck => "stuck",
        }
    }
}

/// How long is waited before a line is tried again.
#[derive(Debug)]
pub(crate) struct Backoff {
    attempts: u32,
    most: u32,
    /// Makes lines that fail together come back at different times.
    salt: u64,
}

/// The first wait; each is twice the last.
const SHORTEST: Duration = Duration::from_millis(500);
/// The longest: a camera that is back is found within ten seconds, and a try costs little.
const LONGEST: Duration = Duration::from_secs(8);
/// Of this much, waits are longer or shorter.
const JITTER: f64 = 0.2;
/// A line that has run for so long starts counting anew.
const HEALTHY: Duration = Duration::from_secs(10);

impl Backoff {
    /// Of a line of this name; after `most` failures one after the other (0: any number) it has failed for good.
    pub(crate) fn new(name: &str, most: u32) -> Self {
        let salt = name.bytes().fold(0xcbf2_9ce4_8422_2325, |hash: u64, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
        });
        Self { attempts: 0, most, salt }
    }

    /// A failure after frames have come for so long: the wait, or none if that was the last try.
    pub(crate) fn failed(&mut self, ran: Duration) -> Option<Duration> {
        if ran >= HEALTHY {
            self.attempts = 0;
        }
        self.attempts = self.attempts.saturating_add(1);
        if self.most > 0 && self.attempts >= self.most {
            return None;
        }
        let doubled = SHORTEST.saturating_mul(1 << (self.attempts - 1).min(10)).min(LONGEST);
        let mixed = (self.salt ^ u64::from(self.attempts)).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 11;
        let unit = mixed as f64 / (1u64 << 53) as f64; // 0..1
        Some(doubled.mul_f64(1.0 + JITTER * (2.0 * unit - 1.0)))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn waits_double_up_to_the_longest_and_begin_anew_after_a_good_while() {
        let mut backoff = Backoff::new("cap", 0);
        let waits: Vec<f64> = (0..9).map(|_| backoff.failed(Duration::ZERO).unwrap().as_secs_f64()).collect();
        for (wait, plain) in waits.iter().zip([0.5, 1.0, 2.0, 4.0, 8.0, 8.0, 8.0, 8.0, 8.0]) {
            assert!((wait / plain - 1.0).abs() <= JITTER, "{waits:?}");
        }
        assert!(backoff.failed(HEALTHY).unwrap() < Duration::from_millis(601));
    }

    proptest! {
        /// However often and after however long: waits stay within their bounds, and there are as many tries as were asked for.
        #[test]
        fn there_are_as_many_tries_as_were_asked_for(name in "[a-z]{1,8}", most in 1u32..20, ran in 0u64..10) {
            let mut backoff = Backoff::new(&name, most);
            for _ in 1..most {
                let wait = backoff.failed(Duration::from_secs(ran)).unwrap();
                prop_assert!(wait >= SHORTEST.mul_f64(1.0 - JITTER) && wait <= LONGEST.mul_f64(1.0 + JITTER));
            }
            prop_assert_eq!(backoff.failed(Duration::from_secs(ran)), None);
        }
    }
}
