//! The source side: what is remembered between frames, the answer to a frame, and what is said of it.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, at, never, select};
use diad::detector::{Detection, Verdict};
use diad::worker::{Answer, Failure, Ticket};

use super::chain::{Frame, FrameState};
use super::enums::PostMessages;
use super::model::ModelHandle;
use super::settings::Settings;
use super::stats::Stats;
use crate::result::{DiadResult, Timing};

/// What the source side remembers between frames.
#[derive(Default)]
pub(super) struct SrcState {
    /// Whether the last inspected frames were `ng` by themselves.
    history: VecDeque<bool>,
    /// The model that has judged them.
    model: Weak<ModelHandle>,
    /// Verdict and part of the frame before.
    last: Option<(Verdict, Option<String>)>,
    /// The frame before was an error.
    pub(super) failing: bool,
    /// The frame before could not be drawn on.
    pub(super) undrawn: bool,
    /// The segment that the frames leaving now belong to.
    pub(super) segment: Option<gst::FormattedSegment<gst::ClockTime>>,
    /// When `diad-stats` was posted, or the first frame left.
    reported: Option<Instant>,
}

impl SrcState {
    /// The verdict after looking back: `ng` only if enough of the last inspected frames are; until then `warn`. What another
    /// model has said of them does not count.
    pub(super) fn confirm(&mut self, own: Verdict, model: &Arc<ModelHandle>, settings: &Settings) -> Verdict {
        if !std::ptr::eq(self.model.as_ptr(), Arc::as_ptr(model)) {
            (self.model, self.history) = (Arc::downgrade(model), VecDeque::new());
        }
        if !matches!(own, Verdict::Ok | Verdict::Warn | Verdict::Ng) {
            return own;
        }
        self.history.push_back(own == Verdict::Ng);
        while self.history.len() > settings.confirm_window() {
            self.history.pop_front();
        }
        let bad = self.history.iter().filter(|bad| **bad).count();
        if own == Verdict::Ng && bad < settings.confirm_count as usize { Verdict::Warn } else { own }
    }

    /// Whether a message about the frame is wanted.
    pub(super) fn wants_message(&mut self, result: &DiadResult, wanted: PostMessages) -> bool {
        let now = (result.verdict, result.part_id.clone());
        let changed = self.last.as_ref() != Some(&now);
        self.last = Some(now);
        match wanted {
            PostMessages::None => false,
            PostMessages::Ng => result.verdict == Verdict::Ng,
            PostMessages::Changes => changed,
            PostMessages::All => true,
        }
    }

    /// Whether `interval` ns have passed since the last time that this was so. 0: never.
    pub(super) fn stats_are_due(&mut self, interval: u64) -> bool {
        if interval == 0 {
            return false;
        }
        let since = self.reported.get_or_insert_with(Instant::now);
        let due = since.elapsed() >= Duration::from_nanos(interval);
        if due {
            *since = Instant::now();
        }
        due
    }
}

/// Whether something begins with this frame that `before` keeps from frame to frame.
pub(super) fn begins(before: &mut bool, now: bool) -> bool {
    !std::mem::replace(before, now) && now
}

/// What came of a frame.
#[derive(Default)]
pub(super) struct Outcome {
    /// What the model found, where it was asked and answered.
    pub(super) detection: Option<Detection>,
    /// Why there is no detection, and the verdict for that.
    pub(super) missing: Option<(Verdict, String)>,
    /// No further frame can be inspected: the device is gone.
    pub(super) lost: bool,
    pub(super) timing: Timing,
}

impl Outcome {
    /// Of the frame by itself.
    pub(super) fn verdict(&self) -> Verdict {
        let missing = self.missing.as_ref().map_or(Verdict::Error, |(verdict, _)| *verdict);
        self.detection.as_ref().map_or(missing, |detection| detection.verdict)
    }
}

/// Waits for what comes of a frame, until its deadline or until `cancelled` closes.
///
/// # Errors
/// `Flushing` when the stream is stopped.
pub(super) fn outcome(
    state: FrameState,
    pre: Duration,
    deadline: Option<Instant>,
    cancelled: &Receiver<Infallible>,
    stats: &Stats,
) -> Result<Outcome, gst::FlowError> {
    let mut outcome = Outcome { timing: Timing { pre: nanoseconds(pre), ..Timing::default() }, ..Outcome::default() };
    let mut missing = |verdict: Verdict, words: &str| outcome.missing = Some((verdict, words.to_owned()));
    match state {
        FrameState::Uninspected(reason) => missing(Verdict::Uninspected, reason),
        FrameState::Failed(words) => missing(Verdict::Error, &words),
        FrameState::Submitted(ticket, _with_worker) => match wait(ticket, deadline, cancelled)? {
            None => missing(Verdict::Uninspected, "late"),
            Some(Answer { outcome: answer, queue, infer, batch }) => {
                stats.counts().answered(queue, infer, batch);
                match answer {
                    Ok(detection) if detection.score.is_finite() => outcome.detection = Some(detection),
                    // It would be above no threshold, and so be good.
                    Ok(detection) => missing(Verdict::Error, &format!("the model's score is {}", detection.score)),
                    Err(failure) => {
                        missing(Verdict::Error, &failure.to_string());
                        outcome.lost = matches!(failure, Failure::Lost(_));
                    }
                }
                outcome.timing.queue = nanoseconds(queue);
                outcome.timing.infer = nanoseconds(infer);
                outcome.timing.batch = u32::try_from(batch).unwrap_or(u32::MAX);
            }
        },
    }
    Ok(outcome)
}

/// The answer; none by the deadline; `Flushing` when the stream is stopped.
fn wait(
    ticket: Ticket,
    deadline: Option<Instant>,
    cancelled: &Receiver<Infallible>,
) -> Result<Option<Answer>, gst::FlowError> {
    let deadline = deadline.map_or_else(never, at);
    select! {
        recv(ticket.receiver()) -> answer => Ok(Some(answer.unwrap_or_else(|_| Answer::stopped()))),
        recv(cancelled) -> _ => Err(gst::FlowError::Flushing),
        // It may have come while the timer fired: an answer is better than none.
        recv(deadline) -> _ => Ok(ticket.receiver().try_recv().ok()),
    }
}

/// What is known of a frame before this element has its say: what the elements in front have left on the buffer.
pub(super) fn known_before(frame: &Frame) -> DiadResult {
    let mut result = crate::meta::result_of(&frame.buffer).unwrap_or_else(|| DiadResult::unseen(frame.buffer.pts()));
    result.pts = frame.buffer.pts().map(gst::ClockTime::nseconds);
    result.utc.get_or_insert_with(|| frame.utc.clone());
    if result.part_id.is_none() {
        result.part_id.clone_from(&frame.part);
    }
    result
}

/// The reason as the constant that counts are kept under.
pub(super) fn reason_name(reason: &str) -> &'static str {
    ["interval", "overload", "late"].into_iter().find(|name| *name == reason).unwrap_or("other")
}

pub(super) fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}
