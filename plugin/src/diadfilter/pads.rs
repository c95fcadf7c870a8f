//! What happens on the pads: a frame comes in, a frame leaves, events and queries.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::Receiver;
use diad::detector::{ClassSource, Detection, Verdict};
use gst::prelude::*;
use gst::subclass::prelude::*;
use gst::{FlowError, FlowSuccess};
use gst_video::VideoInfo;

use super::chain::{Frame, FrameState, Submission, copy_if_needed};
use super::enums::{MetaFlags, OnError, OverloadPolicy};
use super::imp::{CAT, Configured, DiadFilter};
use super::latency;
use super::model::{FrameContext, ModelHandle};
use super::push::{SrcState, begins, known_before, nanoseconds, outcome, reason_name};
use super::settings::Settings;
#[cfg(feature = "analytics")]
use crate::analytics;
use crate::frame;
use crate::meta;
use crate::overlay::{self, OverlayFlags, Style};
use crate::queue::lock;
use crate::result::{DiadResult, Finding, Inspection, Pose, utc_now};
use crate::stream::{Renewal, Stream, StreamElement};

/// Frames between two measurements of the latency.
const MEASURE: u64 = 16;

impl StreamElement for DiadFilter {
    type Frame = Box<Frame>;

    fn stream(&self) -> &Stream<Self::Frame> {
        &self.stream
    }

    fn sink_chain(&self, buffer: gst::Buffer) -> Result<FlowSuccess, FlowError> {
        let (came, utc) = (Instant::now(), utc_now());
        let max = self.configured().settings.max_size_buffers as usize;
        self.stream.queue.wait_for_room(max)?;
        let Configured { settings, model: Some(model), .. } = self.configured() else {
            return Err(FlowError::Flushing);
        };
        let (info, context, part) = {
            let sink = lock(&self.sink);
            (sink.info.clone(), sink.context.clone(), sink.part.clone())
        };
        let Some(info) = info else { return Err(FlowError::NotNegotiated) };
        let context = match context.filter(|context| context.holds(&model, &settings, &info)) {
            Some(context) => context,
            None => self.new_context(model, &settings, &info)?,
        };

        let may_wait = match settings.overload_policy {
            OverloadPolicy::Auto => !self.is_live(),
            OverloadPolicy::Block => true,
            OverloadPolicy::PassUninspected => false,
        };
        let stats = self.stats();
        let counted = stats.enter();
        let batch_size = context.model.worker().options().batch_size;
        let submission = Submission {
            stream: self.number,
            stats: &stats,
            quota: (!may_wait).then(|| latency::quota(batch_size, context.model.users())),
            flow: &|| self.stream.queue.flow(),
        };
        let (state, pre) = if counted.number.is_multiple_of(u64::from(settings.inference_interval)) {
            submission.submit(&buffer, &info, &context)?
        } else {
            (FrameState::Uninspected("interval"), Duration::ZERO)
        };
        let buffer = copy_if_needed(buffer, settings.copy_frames).map_err(|error| {
            gst::element_imp_error!(self, gst::ResourceError::NoSpaceLeft, ("a frame cannot be copied: {error}"));
            FlowError::Error
        })?;
        let frame = Frame {
            buffer,
            state,
            counted,
            context,
            info,
            came,
            utc,
            part: part.or_else(|| settings.part_id.clone()),
            pre,
            deadline: (!may_wait).then(|| came + self.latency().patience()),
        };
        // One that finds the queue closed is dropped here, and counts as flushed.
        self.stream.queue.push_frame(Box::new(frame)).map(|()| FlowSuccess::Ok).map_err(|(error, _)| error)
    }

    fn src_push(&self, frame: Self::Frame, cancelled: &Receiver<Infallible>) -> Result<FlowSuccess, FlowError> {
        let settings = self.configured().settings;
        let stats = self.stats();
        let mut result = known_before(&frame);
        let Frame { mut buffer, state, mut counted, context, info, came, pre, deadline, .. } = *frame;
        let outcome = outcome(state, pre, deadline, cancelled, &stats)?;
        counted.lost = "not-passed";
        let own = outcome.verdict();
        let found = outcome.detection.as_ref();
        let not_located = found.is_some_and(|found| found.class_source == ClassSource::NotLocated);
        let mut inspection = Inspection {
            element: self.obj().name().to_string(),
            verdict: lock(&self.src).confirm(own, &context.model, &settings),
            frame_verdict: own,
            reason: outcome
                .missing
                .map(|(_, words)| words)
                .or_else(|| not_located.then(|| ClassSource::NotLocated.to_string())),
            finding: found.map(Finding::from),
            width: info.width(),
            height: info.height(),
            frame_id: counted.number,
            model: context.model.worker().digest().to_owned(),
            precision: context.model.target.precision().to_string(),
            pose: found.and_then(|found| found.pose).map(Pose::from),
            timing: outcome.timing,
        };
        if let Some(error) = self.report_error(&inspection, &settings, outcome.lost) {
            counted.judge(Verdict::Error, None);
            return Err(error);
        }
        let drawing = Instant::now();
        inspection.timing.total = nanoseconds(came.elapsed());
        let (number, verdict) = (counted.number, inspection.verdict);
        let skipped = inspection.reason.as_deref().filter(|_| verdict == Verdict::Uninspected).map(reason_name);
        self.attach(buffer.make_mut(), &info, &mut result, inspection, outcome.detection.as_ref(), &settings);
        {
            let mut counts = stats.counts();
            counts.draw.add(drawing.elapsed());
            counts.total.add(came.elapsed());
        }
        counted.judge(verdict, skipped);
        if skipped.is_some_and(|reason| reason != "interval") {
            self.post_qos(&buffer);
        }
        if lock(&self.src).wants_message(&result, settings.post_messages) {
            self.post(result.to_structure("diad-result"));
        }
        if lock(&self.src).stats_are_due(settings.stats_interval) {
            self.post(self.stats_structure());
        }
        if number.is_multiple_of(MEASURE) {
            self.update_latency();
        }
        gst::trace!(CAT, imp = self, "frame {number} leaves as {verdict}");
        self.stream.srcpad.push(buffer)
    }

    fn sink_event(&self, event: gst::Event) -> Result<gst::Event, ()> {
        match event.view() {
            gst::EventView::Caps(caps) => match frame::progressive(caps.caps()) {
                Ok(info) => lock(&self.sink).info = Some(info),
                Err(words) => {
                    gst::element_imp_error!(self, gst::CoreError::Negotiation, ("{words}"));
                    return Err(());
                }
            },
            gst::EventView::CustomDownstream(custom) => {
                if let Some(part) = custom.structure().filter(|structure| structure.name() == "diad-part") {
                    lock(&self.sink).part = part.get::<String>("part-id").ok();
                }
            }
            _ => {}
        }
        Ok(event)
    }

    fn event_leaves(&self, event: &gst::Event) {
        match event.view() {
            gst::EventView::StreamStart(_) => *lock(&self.src) = SrcState::default(),
            gst::EventView::Segment(segment) => {
                lock(&self.src).segment = segment.segment().downcast_ref().cloned();
            }
            gst::EventView::Eos(_) => self.post(self.stats_structure()),
            _ => {}
        }
    }

    fn sink_query(&self, query: &mut gst::QueryRef) -> Option<bool> {
        if query.type_() != gst::QueryType::Allocation {
            return None;
        }
        let answered = self.stream.queue.drain().is_ok() && self.stream.srcpad.peer_query(query);
        if let gst::QueryViewMut::Allocation(allocation) = query.view_mut() {
            // Of what downstream offers, the metas that say where the picture lies in a buffer are applied here. With any other,
            // upstream would leave to downstream what should be done to the picture before it is inspected.
            let applied = [gst_video::VideoMeta::meta_api(), gst_video::VideoCropMeta::meta_api()];
            let offered: Vec<_> = allocation.allocation_metas().map(|(meta, _)| meta).collect();
            for (index, _) in offered.iter().enumerate().rev().filter(|(_, meta)| !applied.contains(meta)) {
                allocation.remove_nth_allocation_meta(index as u32);
            }
        }
        Some(answered)
    }

    fn src_query(&self, query: &mut gst::QueryRef) -> Option<bool> {
        let gst::QueryViewMut::Latency(answer) = query.view_mut() else { return None };
        let upstream = self.ask_upstream();
        // Who does not know is answered as a camera would be, but that is not believed here.
        let (live, min, max) = upstream.unwrap_or((true, gst::ClockTime::ZERO, None));
        let own = gst::ClockTime::from_nseconds(nanoseconds(self.latency().answered));
        answer.set(live, min.saturating_add(own), max.map(|max| max.saturating_add(own)));
        Some(true)
    }

    fn give_up(&self, frames: Vec<Self::Frame>, why: &'static str) {
        for mut frame in frames {
            frame.counted.lost = why;
        }
    }

    fn renew(&self, renewal: Renewal) {
        let mut sink = lock(&self.sink);
        sink.forget_upstream();
        if renewal != Renewal::Link {
            sink.part = None;
        }
        drop(sink);
        if renewal == Renewal::Flush {
            *lock(&self.src) = SrcState::default();
        }
    }
}

impl DiadFilter {
    fn new_context(
        &self,
        model: Arc<ModelHandle>,
        settings: &Arc<Settings>,
        info: &VideoInfo,
    ) -> Result<Arc<FrameContext>, FlowError> {
        let made = FrameContext::new(model, settings.clone(), info).map_err(|words| {
            gst::element_imp_error!(self, gst::ResourceError::Settings, ("{words}"));
            FlowError::NotNegotiated
        })?;
        let context = Arc::new(made);
        let old = lock(&self.sink).context.replace(context.clone());
        drop(old);
        Ok(context)
    }

    /// Whether frames must not be held up.
    fn is_live(&self) -> bool {
        if lock(&self.sink).has_to_ask() {
            self.ask_upstream();
        }
        lock(&self.sink).is_live()
    }

    /// Live, minimum and maximum latency of upstream, if it says so.
    fn ask_upstream(&self) -> Option<(bool, gst::ClockTime, Option<gst::ClockTime>)> {
        let mut query = gst::query::Latency::new();
        let answer = self.stream.sinkpad.peer_query(&mut query).then(|| query.result());
        lock(&self.sink).upstream_said(answer.map(|(live, ..)| live));
        answer
    }

    /// Says that a frame could not be inspected: once when that begins. The error that ends the stream, if it has to: where
    /// the properties ask for it, or no frame would be inspected any more as the device is lost.
    fn report_error(&self, inspection: &Inspection, settings: &Settings, lost: bool) -> Option<FlowError> {
        let failed = inspection.verdict == Verdict::Error;
        let begins = begins(&mut lock(&self.src).failing, failed);
        if !failed {
            return None;
        }
        let words = inspection.reason.as_deref().unwrap_or("no reason given");
        let frame = inspection.frame_id;
        if settings.on_error == OnError::Error || lost {
            gst::element_imp_error!(self, gst::StreamError::Failed, ("frame {frame} could not be inspected: {words}"));
            return Some(FlowError::Error);
        }
        if begins {
            gst::element_imp_warning!(
                self,
                gst::StreamError::Failed,
                ("frame {frame} could not be inspected and leaves with verdict error: {words}")
            );
        }
        None
    }

    /// Adds what was found here to the frame's result, and puts metadata and drawing on the buffer. The drawing shows what all
    /// elements up to this one have found.
    fn attach(
        &self,
        buffer: &mut gst::BufferRef,
        info: &VideoInfo,
        result: &mut DiadResult,
        inspection: Inspection,
        detection: Option<&Detection>,
        settings: &Settings,
    ) {
        let wants_map = settings.meta.contains(MetaFlags::MAP)
            || settings.meta.wants_analytics()
            || settings.overlay.intersects(OverlayFlags::HEATMAP | OverlayFlags::CONTOUR);
        let map = detection.filter(|_| wants_map).map(|detection| overlay::map(detection, &inspection.element));
        let has_result = !result.results.is_empty();
        result.add(inspection);
        // What an element in front has put there must not stay better than what was found here.
        if settings.meta.contains(MetaFlags::RESULT) || has_result {
            meta::set_result(buffer, result);
        }
        #[cfg(feature = "analytics")]
        let first_object = self.attach_analytics(buffer, result, detection, map.as_ref(), settings);
        #[cfg(not(feature = "analytics"))]
        let first_object = None;
        if settings.meta.contains(MetaFlags::REGIONS)
            && let Some(own) = result.results.last()
        {
            meta::add_regions(buffer, own, first_object);
        }
        if !settings.overlay.is_empty() {
            let style = Style { overlay: settings.overlay, alpha: settings.overlay_alpha as f32 };
            let maps: Vec<_> = meta::maps_of(buffer).into_iter().chain(map.clone()).collect();
            let drawn = overlay::draw(buffer, info, result, &maps, style, &self.obj().name());
            // A frame that cannot be drawn on passes as it is, and the bus is told when that begins.
            if begins(&mut lock(&self.src).undrawn, drawn.is_err())
                && let Err(error) = drawn
            {
                overlay::warn_undrawn(&*self.obj(), &*error);
            }
        }
        if let Some(map) = map.filter(|_| settings.meta.contains(MetaFlags::MAP)) {
            meta::add_map(buffer, &map);
        }
    }

    /// Puts GstAnalytics metas on the buffer. The id of the first region as an object; the others follow.
    #[cfg(feature = "analytics")]
    fn attach_analytics(
        &self,
        buffer: &mut gst::BufferRef,
        result: &DiadResult,
        detection: Option<&Detection>,
        map: Option<&meta::DiadMap>,
        settings: &Settings,
    ) -> Option<u32> {
        let wanted = settings.meta.wants_analytics();
        if wanted
            && settings.meta.contains(MetaFlags::MAP)
            && let Some(detection) = detection
        {
            analytics::add_tensor(buffer, &detection.map);
        }
        let own = result.results.last().filter(|_| wanted);
        analytics::set(buffer, result.verdict, own, map).unwrap_or_else(|error| {
            gst::warning!(CAT, imp = self, "no GstAnalytics metas on a frame: {error}");
            None
        })
    }

    fn post(&self, structure: gst::Structure) {
        let _ = self.obj().post_message(gst::message::Element::builder(structure).src(&*self.obj()).build());
    }

    /// Says in the standard way that a frame was passed on unseen because there was no time for it.
    fn post_qos(&self, buffer: &gst::BufferRef) {
        let (pts, duration) = (buffer.pts(), buffer.duration());
        let segment = lock(&self.src).segment.clone();
        let of = |time: fn(&gst::FormattedSegment<gst::ClockTime>, gst::ClockTime) -> Option<gst::ClockTime>| {
            segment.as_ref().zip(pts).and_then(|(segment, pts)| time(segment, pts))
        };
        let live = lock(&self.sink).is_live();
        let (seen, unseen) = self.stats().counts().seen_and_unseen();
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
}
