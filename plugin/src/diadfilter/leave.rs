//! A frame's way out: the source pad's task takes the head of the line, waits for its answer, draws, attaches and pushes.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::atomic::Ordering;
use std::time::Instant;

use crossbeam_channel::{Receiver, at, never, select};
use diad::detector::{Detection, Verdict};
use diad::worker::{Answer, Failure, Ticket};
use gst::prelude::*;
use gst::subclass::prelude::*;

use super::enter::{Fate, Waiting};
use super::imp::{CAT, DiadFilter, lock};
use super::settings::Settings;
use super::{MetaFlags, OnError, OverlayFlags, PostMessages};
use crate::line::Item;
use crate::meta;
use crate::result::{DiadResult, Finding, SCHEMA, Timing};
use crate::scene;

/// Frames between two looks at the latency.
const LOOK: u64 = 16;

/// What the source side remembers between frames.
#[derive(Default)]
pub(super) struct Outlet {
    /// Whether the last inspected frames were `ng` by themselves.
    history: VecDeque<bool>,
    /// Verdict and part of the frame before.
    last: Option<(Verdict, Option<String>)>,
    /// The frame before was an error.
    failing: bool,
    /// The segment that the frames leaving now belong to.
    segment: Option<gst::FormattedSegment<gst::ClockTime>>,
    /// When `diad-stats` was posted, or the first frame left.
    reported: Option<Instant>,
}

impl DiadFilter {
    /// One turn of the task.
    pub(super) fn leave_one(&self) {
        let Some((item, cancelled)) = self.line.take() else {
            let _ = self.srcpad.pause_task();
            return;
        };
        let (was_frame, flow) = match item {
            Item::Event(event) => {
                gst::log!(CAT, imp = self, "{event:?} leaves");
                match event.view() {
                    gst::EventView::Segment(segment) => {
                        lock(&self.outlet).segment = segment.segment().downcast_ref().cloned();
                    }
                    gst::EventView::Eos(_) => self.post_stats(),
                    _ => {}
                }
                self.srcpad.push_event(event);
                (false, Ok(gst::FlowSuccess::Ok))
            }
            Item::Frame(frame) => (true, self.leave(*frame, &cancelled)),
        };
        if let Err(error) = flow {
            gst::debug!(CAT, imp = self, "downstream says {error}");
        }
        let dropped = self.line.done(was_frame, flow);
        self.count_dropped(dropped, "not-passed");
        if flow.is_err() {
            let _ = self.srcpad.pause_task();
        }
    }

    fn leave(&self, frame: Waiting, cancelled: &Receiver<Infallible>) -> Result<gst::FlowSuccess, gst::FlowError> {
        let (settings, _) = self.settings();
        let Waiting { mut buffer, info, fate, frame_id, came, utc, pre, deadline, part, model } = frame;
        let mut timing = Timing { pre: nanoseconds(pre), ..Timing::default() };
        let mut lost = false;
        let (outcome, mut reason) = match fate {
            Fate::Uninspected(reason) => (None, Some((Verdict::Uninspected, reason.to_owned()))),
            Fate::Failed(words) => (None, Some((Verdict::Error, words))),
            Fate::Asked(ticket) => {
                let answer = wait(ticket, deadline, cancelled);
                self.asked.fetch_sub(1, Ordering::AcqRel);
                match answer {
                    Err(error) => {
                        self.tally.uninspected("flushed", 1);
                        return Err(error);
                    }
                    Ok(None) => (None, Some((Verdict::Uninspected, "late".to_owned()))),
                    Ok(Some(answer)) => {
                        timing.queue = nanoseconds(answer.queue);
                        timing.infer = nanoseconds(answer.infer);
                        timing.batch = answer.batch as u32;
                        self.tally.counts().answered(answer.queue, answer.infer, answer.batch);
                        match answer.outcome {
                            Ok(detection) => (Some(detection), None),
                            Err(failure) => {
                                lost = matches!(failure, Failure::Lost(_));
                                (None, Some((Verdict::Error, failure.to_string())))
                            }
                        }
                    }
                }
            }
        };
        let detection: Option<Detection> = outcome;
        let frame_verdict =
            detection.as_ref().map_or_else(|| reason.as_ref().map_or(Verdict::Error, |r| r.0), |d| d.verdict);
        let verdict = self.confirmed(frame_verdict, &settings);
        let mut result = DiadResult {
            schema: SCHEMA,
            verdict,
            frame_verdict,
            reason: reason.take().map(|(_, words)| words),
            finding: detection.as_ref().map(Finding::from),
            width: info.width(),
            height: info.height(),
            frame_id,
            pts: buffer.pts().map(gst::ClockTime::nseconds),
            utc,
            part_id: part,
            model,
            timing,
        };
        let stop = self.complain(&result, &settings, lost);
        if let Some(error) = stop {
            self.tally.judged(Verdict::Error);
            return Err(error);
        }

        let drawing = Instant::now();
        let wants_map = settings.meta.contains(MetaFlags::MAP)
            || settings.overlay.intersects(OverlayFlags::HEATMAP | OverlayFlags::CONTOUR);
        let map = detection.as_ref().filter(|_| wants_map).map(scene::map);
        result.timing.total = nanoseconds(came.elapsed());
        if !settings.overlay.is_empty() {
            let style = scene::Style { overlay: settings.overlay, alpha: settings.overlay_alpha as f32 };
            if let Err(error) = scene::draw(buffer.make_mut(), &info, &result, map.as_ref(), style) {
                gst::warning!(CAT, imp = self, "nothing is drawn: {error}");
            }
        }
        {
            let buffer = buffer.make_mut();
            meta::remove(buffer);
            if settings.meta.contains(MetaFlags::RESULT) {
                meta::add_result(buffer, &result);
            }
            if settings.meta.contains(MetaFlags::REGIONS) {
                meta::add_regions(buffer, &result);
            }
            if let Some(map) = map.filter(|_| settings.meta.contains(MetaFlags::MAP)) {
                meta::add_map(buffer, &map);
            }
        }
        {
            let mut counts = self.tally.counts();
            counts.draw.add(drawing.elapsed());
            counts.total.add(came.elapsed());
        }
        match (verdict, &result.reason) {
            (Verdict::Uninspected, Some(reason)) => {
                self.tally.uninspected(reason_name(reason), 1);
                if reason != "interval" {
                    self.post_qos(&buffer);
                }
            }
            _ => self.tally.judged(verdict),
        }
        self.post(&result, &settings);
        self.report(&settings);
        if frame_id.is_multiple_of(LOOK) {
            self.update_latency();
        }
        gst::trace!(CAT, imp = self, "frame {frame_id} leaves as {verdict}");
        self.srcpad.push(buffer)
    }

    /// The verdict after looking back: `ng` only if enough of the last inspected frames are; until then `warn`.
    fn confirmed(&self, own: Verdict, settings: &Settings) -> Verdict {
        if !matches!(own, Verdict::Ok | Verdict::Warn | Verdict::Ng) {
            return own;
        }
        let mut outlet = lock(&self.outlet);
        let history = &mut outlet.history;
        history.push_back(own == Verdict::Ng);
        while history.len() > settings.confirm_window as usize {
            history.pop_front();
        }
        let bad = history.iter().filter(|bad| **bad).count();
        if own == Verdict::Ng && bad < settings.confirm_count as usize { Verdict::Warn } else { own }
    }

    /// Says that a frame could not be inspected: once when that begins. The error that ends the stream, if it has to: where
    /// the properties ask for it, or no frame would be inspected any more as the device is lost.
    fn complain(&self, result: &DiadResult, settings: &Settings, lost: bool) -> Option<gst::FlowError> {
        let failed = result.verdict == Verdict::Error;
        let before = std::mem::replace(&mut lock(&self.outlet).failing, failed);
        if !failed {
            return None;
        }
        let words = result.reason.as_deref().unwrap_or("no reason given");
        let frame = result.frame_id;
        if settings.on_error == OnError::Error || lost {
            gst::element_imp_error!(self, gst::StreamError::Failed, ("frame {frame} could not be inspected: {words}"));
            return Some(gst::FlowError::Error);
        }
        if !before {
            gst::element_imp_warning!(
                self,
                gst::StreamError::Failed,
                ("frame {frame} could not be inspected and leaves with verdict error: {words}")
            );
        }
        None
    }

    fn post(&self, result: &DiadResult, settings: &Settings) {
        let now = (result.verdict, result.part_id.clone());
        let changed = {
            let mut outlet = lock(&self.outlet);
            let changed = outlet.last.as_ref() != Some(&now);
            outlet.last = Some(now);
            changed
        };
        let wanted = match settings.post_messages {
            PostMessages::None => false,
            PostMessages::Ng => result.verdict == Verdict::Ng,
            PostMessages::Changes => changed,
            PostMessages::All => true,
        };
        if wanted {
            let message = gst::message::Element::builder(result.to_structure("diad-result")).src(&*self.obj()).build();
            let _ = self.obj().post_message(message);
        }
    }

    /// Says in the standard way that a frame was passed on unseen because there was no time for it.
    fn post_qos(&self, buffer: &gst::BufferRef) {
        let (pts, duration) = (buffer.pts(), buffer.duration());
        let segment = lock(&self.outlet).segment.clone();
        let of = |time: fn(&gst::FormattedSegment<gst::ClockTime>, gst::ClockTime) -> Option<gst::ClockTime>| {
            segment.as_ref().zip(pts).and_then(|(segment, pts)| time(segment, pts))
        };
        let live = lock(&self.inlet).live.unwrap_or(true);
        let (seen, unseen) = self.tally.counts().seen_and_unseen();
        let message = gst::message::Qos::builder(live)
            .src(&*self.obj())
            .running_time(of(|segment, pts| segment.to_running_time(pts)))
            .stream_time(of(|segment, pts| segment.to_stream_time(pts)))
            .timestamp(pts)
            .duration(duration)
            .stats(gst::format::Buffers::from_u64(seen), gst::format::Buffers::from_u64(unseen))
            .build();
        let _ = self.obj().post_message(message);
    }

    /// Posts `diad-stats` when `stats-interval` has passed.
    fn report(&self, settings: &Settings) {
        if settings.stats_interval == 0 {
            return;
        }
        let interval = std::time::Duration::from_nanos(settings.stats_interval);
        let due = {
            let reported = &mut lock(&self.outlet).reported;
            let since = reported.get_or_insert_with(Instant::now);
            let due = since.elapsed() >= interval;
            if due {
                *since = Instant::now();
            }
            due
        };
        if due {
            self.post_stats();
        }
    }

    fn post_stats(&self) {
        let message = gst::message::Element::builder(self.stats()).src(&*self.obj()).build();
        let _ = self.obj().post_message(message);
    }

    /// The property `stats`.
    pub(super) fn stats(&self) -> gst::Structure {
        let mut structure = self.tally.counts().clone().structure();
        structure.set("queued", self.line.len() as u64);
        structure.set("latency", nanoseconds(self.latency()));
        if let Some(session) = self.session() {
            let worker = session.shared.worker();
            structure.set("model", worker.digest());
            structure.set("device", session.target.to_string());
            let stats = worker.stats();
            structure.set("worker-batches", stats.batches);
            structure.set("worker-frames", stats.frames);
            structure.set("worker-mean-batch", stats.mean_batch());
            structure.set("worker-errors", stats.errors);
            structure.set("worker-panics", stats.panics);
            structure.set("worker-pending", worker.pending() as u64);
        }
        structure
    }
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

/// The reason as the constant that counts are kept under.
fn reason_name(reason: &str) -> &'static str {
    ["interval", "overload", "late"].into_iter().find(|name| *name == reason).unwrap_or("other")
}

fn nanoseconds(duration: std::time::Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}
