//! The sink side: what is known of the stream, and a frame's way to the worker and into the queue.

use std::sync::Arc;
use std::time::{Duration, Instant};

use diad::frame::Prepared;
use diad::worker::{Job, Refused, Ticket};
use gst_video::{VideoFrameRef, VideoInfo};

use super::enums::CopyFrames;
use super::model::FrameContext;
use super::stats::{Counted, Stats, WithWorker};
use crate::frame::{is_pooled, view};
use crate::meta;

/// How long one try to hand a job to the worker waits for room; between tries the stream can be stopped.
const TRY: Duration = Duration::from_millis(20);

/// How long an answer of upstream about its liveness is believed, and a missing one is lived with.
const ASK_AGAIN: Duration = Duration::from_secs(1);

/// What the sink side remembers between frames.
#[derive(Default)]
pub(super) struct SinkState {
    pub(super) info: Option<VideoInfo>,
    pub(super) context: Option<Arc<FrameContext>>,
    /// Whether upstream is live, as far as it has ever said.
    live: Option<bool>,
    /// When upstream was last asked.
    asked: Option<Instant>,
    /// The part that an event has named.
    pub(super) part: Option<String>,
}

impl SinkState {
    /// What upstream has said of itself may not be so any more.
    pub(super) fn forget_upstream(&mut self) {
        (self.live, self.asked) = (None, None);
    }

    /// What upstream answered just now, if it did: a missing answer is not believed, but not asked for with every frame either.
    pub(super) fn upstream_said(&mut self, live: Option<bool>) {
        self.live = live.or(self.live);
        self.asked = Some(Instant::now());
    }

    /// Whether upstream has to be asked (again).
    pub(super) fn has_to_ask(&self) -> bool {
        self.asked.is_none_or(|asked| asked.elapsed() >= ASK_AGAIN)
    }

    /// Whether frames come in real time and must not be held up. Upstream that has not said so can wait, as a recording can:
    /// being wrong costs time there, and frames that nobody has inspected the other way round.
    pub(super) fn is_live(&self) -> bool {
        self.live.unwrap_or(false)
    }
}

/// A frame in the queue.
pub(crate) struct Frame {
    pub(super) buffer: gst::Buffer,
    pub(super) state: FrameState,
    pub(super) counted: Counted,
    pub(super) context: Arc<FrameContext>,
    pub(super) info: VideoInfo,
    pub(super) came: Instant,
    pub(super) utc: String,
    pub(super) part: Option<String>,
    /// What preparing the model's input has taken.
    pub(super) pre: Duration,
    /// When it leaves without an answer.
    pub(super) deadline: Option<Instant>,
}

/// What becomes of a frame.
pub(super) enum FrameState {
    /// The worker has it.
    Submitted(Ticket, WithWorker),
    /// It is not inspected, and why.
    Uninspected(&'static str),
    /// It cannot be inspected, and why.
    Failed(String),
}

/// How a stream's frames are submitted.
pub(super) struct Submission<'a> {
    /// Number of the stream, for the worker's turns.
    pub(super) stream: u64,
    pub(super) stats: &'a Arc<Stats>,
    /// Frames that must not wait may be with the worker up to this number; `None`: they may wait.
    pub(super) quota: Option<usize>,
    /// Whether the stream goes on.
    pub(super) flow: &'a dyn Fn() -> Result<(), gst::FlowError>,
}

impl Submission<'_> {
    /// Prepares the model's inputs and submits them. Returns what becomes of the frame, and the time that preparing has taken.
    ///
    /// # Errors
    /// When the stream has ended meanwhile.
    pub(super) fn submit(
        &self,
        buffer: &gst::BufferRef,
        info: &VideoInfo,
        context: &FrameContext,
    ) -> Result<(FrameState, Duration), gst::FlowError> {
        if let Some(element) = meta::drawn_by(buffer) {
            let words = format!(
                "{element} has drawn on it: set overlay=0 there, and draw in the last diadfilter or with a diadoverlay after it"
            );
            return Ok((FrameState::Failed(words), Duration::ZERO));
        }
        if self.quota.is_some_and(|quota| self.stats.with_worker() >= quota) {
            return Ok((FrameState::Uninspected("overload"), Duration::ZERO));
        }
        let started = Instant::now();
        let prepared: Result<Vec<Prepared>, Box<dyn std::error::Error>> =
            VideoFrameRef::from_buffer_ref_readable(buffer, info)
                .map_err(|_| "the frame cannot be mapped: its size is not that of its caps".into())
                .and_then(|mapped| {
                    Ok(context.preparation.apply_view(&view(&mapped, info)?, context.request.class.known())?)
                });
        let pre = started.elapsed();
        self.stats.counts().pre.add(pre);
        let mut job = match prepared {
            Ok(inputs) => Job { inputs, request: context.request.clone() },
            Err(error) => return Ok((FrameState::Failed(error.to_string()), pre)),
        };
        let patience = if self.quota.is_some() { Duration::ZERO } else { TRY };
        let state = loop {
            match context.model.worker().submit(self.stream, job, patience) {
                Ok(ticket) => break FrameState::Submitted(ticket, self.stats.to_worker()),
                Err(Refused::Full(_)) if self.quota.is_some() => break FrameState::Uninspected("overload"),
                Err(Refused::Full(back)) => {
                    (self.flow)()?;
                    job = *back;
                }
                Err(Refused::Stopped) => break FrameState::Failed("the worker was stopped".into()),
            }
        };
        Ok((state, pre))
    }
}

/// Copies a frame that somebody may write over while it waits.
///
/// # Errors
/// When there is no memory for that.
pub(super) fn copy_if_needed(buffer: gst::Buffer, copy: CopyFrames) -> Result<gst::Buffer, gst::glib::BoolError> {
    let needed = match copy {
        CopyFrames::Auto => !is_pooled(&buffer),
        CopyFrames::Always => true,
        CopyFrames::Never => false,
    };
    if needed { buffer.copy_deep() } else { Ok(buffer) }
}
