//! The thread that writes: it may wait for the disk, the stream does not.

use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use crossbeam_channel::{RecvTimeoutError, Sender, TrySendError, bounded};
use diad::archive::{self, Limits, Name, Outcome, Store, System};
use diad::config::{Fit, Size};
use diad::error::{Error, Result};
use diad::frame::{Frame, Preprocess};
use diad::text::now_ms;
use gst_video::{VideoFrameRef, VideoInfo};
use serde::Serialize;

use super::Format;
use crate::disk::{State, Subject, TIDY, Teller};
use crate::frame;
use crate::meta::DiadMap;
use crate::overlay::{self, OverlayFlags, Style};
use crate::queue::lock;
use crate::result::millis_of;

/// Frames that may wait, pictures or not.
const WAITING: usize = 4096;

/// What is kept of a frame.
pub(super) struct Job {
    pub(super) subject: Subject,
    pub(super) maps: Vec<DiadMap>,
    pub(super) picture: Option<Picture>,
}

/// A picture on its way: pixels of its own, since the stream's are needed again.
pub(super) struct Picture {
    buffer: gst::Buffer,
    info: VideoInfo,
    format: Format,
    annotated: bool,
    bytes: u64,
}

/// How pictures are wanted.
#[derive(Clone, Copy)]
pub(super) struct Options {
    pub(super) format: Format,
    pub(super) annotated: bool,
    pub(super) queue: u64,
}

/// What was kept and what was not.
#[derive(Clone, Debug, Default)]
pub(super) struct Counts {
    /// Frames whose result is on disk.
    pub(super) frames: u64,
    /// Frames whose picture is as well.
    pub(super) pictures: u64,
    /// Pictures left out: too many a second; too many waiting; no room on the disk.
    pub(super) rate: u64,
    pub(super) queue: u64,
    pub(super) disk: u64,
    /// Frames of which nothing is there.
    pub(super) failed: u64,
    pub(super) bytes: u64,
    pub(super) free: u64,
    /// Milliseconds since 1970; 0: none.
    pub(super) oldest: u64,
}

struct Shared {
    counts: Mutex<Counts>,
    limits: Mutex<Limits>,
    /// Bytes of pictures that wait.
    waiting: AtomicU64,
}

/// The thread, and the way to it.
pub(super) struct Writer {
    jobs: Sender<Job>,
    shared: Arc<Shared>,
    thread: JoinHandle<()>,
}

impl Writer {
    /// Opens the folder and starts.
    ///
    /// # Errors
    /// When the folder cannot be written, or there is no thread.
    pub(super) fn start(folder: &Path, limits: Limits, teller: Teller) -> Result<Self> {
        let store = Store::open(folder, System, limits)?;
        let shared =
            Arc::new(Shared { counts: Mutex::default(), limits: Mutex::new(limits), waiting: AtomicU64::new(0) });
        let (jobs, waiting) = bounded::<Job>(WAITING);
        let mut work = Work { store, shared: shared.clone(), teller, queued: 0 };
        let run = move || {
            loop {
                match waiting.recv_timeout(TIDY) {
                    Ok(job) => work.keep(job),
                    Err(RecvTimeoutError::Timeout) => work.tidy(),
                    Err(RecvTimeoutError::Disconnected) => break,
                }
            }
        };
        let thread = std::thread::Builder::new().name("diad-archive".into()).spawn(run);
        let thread = thread.map_err(|error| Error::io(folder, "no thread to write into", error))?;
        Ok(Self { jobs, shared, thread })
    }

    pub(super) fn counts(&self) -> Counts {
        lock(&self.shared.counts).clone()
    }

    pub(super) fn limit(&self, limits: Limits) {
        *lock(&self.shared.limits) = limits;
    }

    /// Keeps a frame, with its picture where there is room for it. Does not wait.
    pub(super) fn submit(
        &self,
        mut job: Job,
        picture: Option<(&gst::Buffer, &VideoInfo)>,
        limited: bool,
        options: Options,
    ) {
        if limited {
            lock(&self.shared.counts).rate += 1;
        }
        if let Some((buffer, info)) = picture {
            let bytes = buffer.size() as u64;
            let fits = self.shared.waiting.load(Ordering::Relaxed) + bytes <= options.queue;
            match fits.then(|| buffer.copy_deep()) {
                Some(Ok(buffer)) => {
                    self.shared.waiting.fetch_add(bytes, Ordering::Relaxed);
                    let Options { format, annotated, .. } = options;
                    job.picture = Some(Picture { buffer, info: info.clone(), format, annotated, bytes });
                }
                _ => lock(&self.shared.counts).queue += 1,
            }
        }
        if let Err(TrySendError::Full(job) | TrySendError::Disconnected(job)) = self.jobs.try_send(job) {
            let bytes = job.picture.map_or(0, |picture| picture.bytes);
            self.shared.waiting.fetch_sub(bytes, Ordering::Relaxed);
            lock(&self.shared.counts).failed += 1;
        }
    }

    /// Writes what waits, and ends.
    pub(super) fn finish(self) {
        drop(self.jobs);
        let _ = self.thread.join();
    }
}

/// What stands beside a picture, beyond what stands beside all files.
#[derive(Serialize)]
struct More {
    files: Files,
}

#[derive(Serialize)]
struct Files {
    frame: Option<String>,
    annotated: Option<String>,
}

struct Work {
    store: Store<System>,
    shared: Arc<Shared>,
    teller: Teller,
    /// Pictures that found no room in the queue, as they were last counted.
    queued: u64,
}

impl Work {
    fn keep(&mut self, mut job: Job) {
        self.store.limit(*lock(&self.shared.limits));
        let picture = job.picture.take();
        let bytes = picture.as_ref().map_or(0, |picture| picture.bytes);
        let wanted = picture.is_some();
        let outcome = self.write(&job, picture);
        self.shared.waiting.fetch_sub(bytes, Ordering::Relaxed);
        let mut counts = lock(&self.shared.counts);
        let (state, reason) = match &outcome {
            Ok(Outcome::Written) if counts.queue > self.queued => {
                (State::Behind, "the disk is slower than the line".into())
            }
            Ok(Outcome::Written) => (State::Ok, String::new()),
            Ok(Outcome::WithoutPicture | Outcome::Dropped) => {
                (State::Full, "no room on the disk, or under max-size".into())
            }
            Err(error) => (State::Failed, error.to_string()),
        };
        self.queued = counts.queue;
        match outcome {
            Ok(Outcome::Written) => {
                counts.frames += 1;
                counts.pictures += u64::from(wanted);
            }
            Ok(Outcome::WithoutPicture) => {
                counts.frames += 1;
                counts.disk += u64::from(wanted);
            }
            Ok(Outcome::Dropped) | Err(_) => counts.failed += 1,
        }
        (counts.bytes, counts.free) = (self.store.used(), self.store.free().unwrap_or_default());
        counts.oldest = self.store.oldest().unwrap_or_default();
        let structure = counts.to_structure("diad-archive");
        drop(counts);
        self.teller.tell(state, &reason, structure);
    }

    fn write(&mut self, job: &Job, picture: Option<Picture>) -> Result<Outcome> {
        let Subject { utc, sequence, result, .. } = &job.subject;
        let utc_ms = millis_of(utc).unwrap_or_else(now_ms);
        let name = Name::new(utc_ms, result.verdict, *sequence, result.part_id.as_deref());
        let mut pictures = Vec::new();
        if let Some(Picture { mut buffer, info, format, annotated, .. }) = picture {
            let format = if format == Format::Jpeg { archive::Format::Jpeg } else { archive::Format::Png };
            pictures.push((format.extension().to_owned(), format.encode(&rgb(&buffer, &info)?)?));
            if annotated {
                let style =
                    Style { overlay: OverlayFlags::VERDICT | OverlayFlags::BOXES | OverlayFlags::CONTOUR, alpha: 0.6 };
                let drawn = overlay::draw(buffer.make_mut(), &info, result, &job.maps, style, "diadarchive");
                drawn.map_err(|error| Error::Internal(format!("archive: cannot draw: {error}")))?;
                let end = format!("annotated.{}", format.extension());
                pictures.push((end, format.encode(&rgb(&buffer, &info)?)?));
            }
        }
        let file = |index: usize| pictures.get(index).map(|(end, _)| format!("{}.{end}", name.stem()));
        let files = Files { frame: file(0), annotated: file(1) };
        let json = job.subject.sidecar("frame", &name, More { files })?;
        self.store.write(&name, &pictures, &json, now_ms())
    }

    /// Removes what is too old, or too much for the disk.
    fn tidy(&mut self) {
        self.store.limit(*lock(&self.shared.limits));
        if let Err(error) = self.store.make_room(now_ms(), 0) {
            let structure = lock(&self.shared.counts).to_structure("diad-archive");
            self.teller.tell(State::Failed, &error.to_string(), structure);
        }
    }
}

/// The frame as RGB.
fn rgb(buffer: &gst::Buffer, info: &VideoInfo) -> Result<Frame> {
    let frame = VideoFrameRef::from_buffer_ref_readable(buffer, info);
    let frame = frame.map_err(|error| Error::Internal(format!("archive: a frame cannot be read: {error}")))?;
    let view = frame::view(&frame, info).map_err(|error| Error::Internal(format!("archive: {error}")))?;
    let size = Size::new(info.width() as usize, info.height() as usize);
    Ok(Preprocess { size, fit: Fit::Stretch, roi: None }.apply_view(&view)?.frame)
}
