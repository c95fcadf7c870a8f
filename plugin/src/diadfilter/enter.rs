//! A frame's way in: the sink pad's thread prepares the model's input, submits it and puts the frame in line.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use diad::worker::{Job, Refused, Ticket};
use gst::subclass::prelude::*;
use gst_video::{VideoFrameRef, VideoInfo};

use super::imp::{CAT, DiadFilter, lock};
use super::pace;
use super::session::{Lens, Session};
use super::settings::Settings;
use super::{CopyFrames, OverloadPolicy};
use crate::frame::prepare;
use crate::line::Item;
use crate::pool::is_pooled;

/// How long one try to hand a job to the worker waits for room; between tries the stream can be stopped.
const TRY: Duration = Duration::from_millis(20);

/// What the sink side remembers between frames.
#[derive(Default)]
pub(super) struct Inlet {
    pub(super) info: Option<VideoInfo>,
    lens: Option<Arc<Lens>>,
    /// Whether upstream is live; not known before it was asked.
    pub(super) live: Option<bool>,
    /// The part that an event has named.
    pub(super) part: Option<String>,
}

impl Inlet {
    /// What a flush takes away.
    pub(super) fn flushed(&mut self) {
        self.part = None;
        self.live = None;
    }
}

/// A frame in line.
pub(super) struct Waiting {
    pub(super) buffer: gst::Buffer,
    pub(super) info: VideoInfo,
    pub(super) fate: Fate,
    pub(super) frame_id: u64,
    pub(super) came: Instant,
    pub(super) utc: u64,
    pub(super) pre: Duration,
    /// When it leaves without an answer.
    pub(super) deadline: Option<Instant>,
    pub(super) part: Option<String>,
    /// Digest of the model that was asked, or would have been.
    pub(super) model: String,
}

/// What becomes of a frame.
pub(super) enum Fate {
    /// The model is asked.
    Asked(Ticket),
    /// It is not, and why.
    Uninspected(&'static str),
    /// It cannot be.
    Failed(String),
}

impl Waiting {
    pub(super) fn is_asked(&self) -> bool {
        matches!(self.fate, Fate::Asked(_))
    }
}

impl DiadFilter {
    pub(super) fn set_caps(&self, caps: &gst::CapsRef) -> Result<(), String> {
        let info = VideoInfo::from_caps(caps).map_err(|error| format!("caps {caps}: {error}"))?;
        lock(&self.inlet).info = Some(info);
        Ok(())
    }

    /// The chain function.
    pub(super) fn enter(&self, buffer: gst::Buffer) -> Result<gst::FlowSuccess, gst::FlowError> {
        let came = Instant::now();
        let utc = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_nanos() as u64);
        let (settings, version) = self.settings();
        self.line.room(settings.max_size_buffers as usize)?;
        let Some(session) = self.session() else { return Err(gst::FlowError::Flushing) };

        let (info, old, live, part) = {
            let inlet = lock(&self.inlet);
            (inlet.info.clone(), inlet.lens.clone(), inlet.live, inlet.part.clone())
        };
        let Some(info) = info else { return Err(gst::FlowError::NotNegotiated) };
        let live = live.unwrap_or_else(|| self.upstream_latency().0);
        let lens = session.lens(old.as_ref(), &settings, version, &info).map_err(|words| {
            gst::element_imp_error!(self, gst::ResourceError::Settings, ("{words}"));
            gst::FlowError::NotNegotiated
        })?;
        {
            let mut inlet = lock(&self.inlet);
            (inlet.lens, inlet.live) = (Some(lens.clone()), Some(live));
        }

        let passing = match settings.overload_policy {
            OverloadPolicy::Auto => live,
            OverloadPolicy::Block => false,
            OverloadPolicy::PassUninspected => true,
        };
        let frame_id = self.tally.came();
        let mut frame = Box::new(Waiting {
            fate: Fate::Uninspected("interval"),
            frame_id,
            came,
            utc,
            pre: Duration::ZERO,
            deadline: passing.then(|| came + pace::patience(self.latency(), self.tally.own())),
            part: part.or_else(|| settings.part_id.clone()),
            model: lens.worker.digest().to_owned(),
            info,
            buffer,
        });
        let wanted = frame_id.is_multiple_of(u64::from(settings.inference_interval));
        let asked = if wanted { self.ask(&mut frame, &session, &lens, passing) } else { Ok(()) };
        if let Err(error) = asked.and_then(|()| self.secure(&mut frame.buffer, &settings)) {
            self.tally.uninspected("flushed", 1); // it came and never leaves
            return Err(error);
        }
        if frame.is_asked() {
            self.asked.fetch_add(1, Ordering::AcqRel);
        }
        self.line.push(Item::Frame(frame)).map(|()| gst::FlowSuccess::Ok).map_err(|(error, item)| {
            self.count_dropped(vec![item], "flushed");
            error
        })
    }

    /// Prepares the model's input and submits it, unless the stream has as many frames with the worker as it may.
    fn ask(&self, frame: &mut Waiting, session: &Session, lens: &Lens, passing: bool) -> Result<(), gst::FlowError> {
        if passing && self.asked.load(Ordering::Acquire) >= self.load(session).quota() {
            frame.fate = Fate::Uninspected("overload");
            return Ok(());
        }
        let started = Instant::now();
        let prepared = VideoFrameRef::from_buffer_ref_readable(&frame.buffer, &frame.info)
            .map_err(|_| "the frame cannot be mapped: its size is not that of its caps".into())
            .and_then(|mapped| prepare(&mapped, &lens.preprocess));
        frame.pre = started.elapsed();
        self.tally.counts().pre.add(frame.pre);
        let mut job = match prepared {
            Ok(prepared) => Job { prepared, ask: lens.ask.clone() },
            Err(error) => {
                frame.fate = Fate::Failed(error.to_string());
                return Ok(());
            }
        };
        frame.fate = loop {
            match lens.worker.submit(self.stream, job, if passing { Duration::ZERO } else { TRY }) {
                Ok(ticket) => break Fate::Asked(ticket),
                Err(Refused::Full(_)) if passing => break Fate::Uninspected("overload"),
                Err(Refused::Full(back)) => {
                    self.line.flow()?; // stopped meanwhile?
                    job = *back;
                }
                Err(Refused::Stopped) => break Fate::Failed("the worker was stopped".into()),
            }
        };
        Ok(())
    }

    /// Copies a frame that somebody may write over while it waits.
    fn secure(&self, buffer: &mut gst::Buffer, settings: &Settings) -> Result<(), gst::FlowError> {
        let copy = match settings.copy_frames {
            CopyFrames::Auto => !is_pooled(buffer),
            CopyFrames::Always => true,
            CopyFrames::Never => false,
        };
        if copy {
            *buffer = buffer.copy_deep().map_err(|error| {
                gst::error!(CAT, imp = self, "a frame cannot be copied: {error}");
                gst::element_imp_error!(self, gst::ResourceError::NoSpaceLeft, ("a frame cannot be copied: {error}"));
                gst::FlowError::Error
            })?;
        }
        Ok(())
    }
}
