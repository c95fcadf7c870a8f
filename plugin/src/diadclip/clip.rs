//! One file: a pipeline of its own, so that whatever happens to it happens to it alone.

use std::path::Path;

use gst::prelude::*;

use super::Container;

/// Bytes that may be between us and the disk.
const UNDER_WAY: u64 = 4_000_000;
/// A file is finished, or its disk does not answer.
const PATIENCE: gst::ClockTime = gst::ClockTime::from_seconds(10);
/// How much of an MP4 file a crash may cost.
const FRAGMENT_MS: u32 = 1000;

/// Why a file could not be written.
#[derive(Debug)]
pub(super) struct Failure {
    /// There was no room on the disk.
    pub(super) full: bool,
    pub(super) reason: String,
}

impl Failure {
    fn other(reason: impl std::fmt::Display) -> Self {
        Self { full: false, reason: reason.to_string() }
    }
}

/// A file that is being written.
pub(super) struct Clip {
    pipeline: gst::Pipeline,
    source: gst_app::AppSrc,
    bus: gst::Bus,
    segment: gst::FormattedSegment<gst::ClockTime>,
}

impl Clip {
    /// Begins a file of frames with these caps; the time `start` is 0 in it.
    pub(super) fn open(path: &Path, caps: &gst::Caps, container: Container, start: u64) -> Result<Self, Failure> {
        let source = gst_app::AppSrc::builder()
            .caps(caps)
            .format(gst::Format::Time)
            .handle_segment_change(true)
            .block(true)
            .max_bytes(UNDER_WAY)
            .build();
        let muxer = match container {
            Container::Mp4 => gst::ElementFactory::make("mp4mux").property("fragment-duration", FRAGMENT_MS),
            Container::Mkv => gst::ElementFactory::make("matroskamux"),
        };
        let muxer = muxer.build().map_err(Failure::other)?;
        let file = gst::ElementFactory::make("filesink").property("location", path).build().map_err(Failure::other)?;
        // What a crash costs is what the muxer had not given away.
        file.set_property_from_str("buffer-mode", "unbuffered");
        let pipeline = gst::Pipeline::new();
        let bus = pipeline.bus().ok_or_else(|| Failure::other("no bus"))?;
        let build = || {
            pipeline.add_many([source.upcast_ref(), &muxer, &file])?;
            source.link_pads(Some("src"), &muxer, Some("video_%u"))?;
            muxer.link(&file)
        };
        build().map_err(Failure::other)?;
        let mut segment = gst::FormattedSegment::<gst::ClockTime>::new();
        segment.set_start(gst::ClockTime::from_nseconds(start));
        let clip = Self { pipeline, source, bus, segment };
        clip.pipeline.set_state(gst::State::Playing).map_err(|error| clip.failure(error))?;
        Ok(clip)
    }

    /// Adds a frame; waits for the disk.
    pub(super) fn push(&self, buffer: &gst::Buffer) -> Result<(), Failure> {
        if let Some(message) = self.bus.pop_filtered(&[gst::MessageType::Error]) {
            return Err(of(&message));
        }
        let sample = gst::Sample::builder().buffer(buffer).segment(&self.segment).build();
        self.source.push_sample(&sample).map(drop).map_err(|error| self.failure(error))
    }

    /// Ends the file.
    pub(super) fn close(self) -> Result<(), Failure> {
        self.source.end_of_stream().map_err(|error| self.failure(error))?;
        match self.bus.timed_pop_filtered(PATIENCE, &[gst::MessageType::Error, gst::MessageType::Eos]) {
            Some(message) if message.type_() == gst::MessageType::Eos => Ok(()),
            Some(message) => Err(of(&message)),
            None => Err(Failure::other("the file cannot be finished: the disk does not answer")),
        }
    }

    /// What the pipeline says of a failure, or the failure itself.
    fn failure(&self, error: impl std::fmt::Display) -> Failure {
        let message = self.bus.timed_pop_filtered(100 * gst::ClockTime::MSECOND, &[gst::MessageType::Error]);
        message.map_or_else(|| Failure::other(error), |message| of(&message))
    }
}

impl Drop for Clip {
    fn drop(&mut self) {
        let _ = self.pipeline.set_state(gst::State::Null);
    }
}

fn of(message: &gst::Message) -> Failure {
    let gst::MessageView::Error(error) = message.view() else { return Failure::other("unknown") };
    let debug = error.debug().unwrap_or_default();
    Failure {
        full: error.error().matches(gst::ResourceError::NoSpaceLeft),
        reason: format!("{}: {debug}", error.error()),
    }
}
