//! Opens recorded videos again and looks at every frame.

use std::path::Path;

use gst::prelude::*;

/// A decoded frame.
pub(super) struct Seen {
    pub(super) pts: u64,
    width: usize,
    rgb: Vec<u8>,
}

fn demuxer(path: &Path) -> &'static str {
    if path.extension().is_some_and(|e| e == "mkv") { "matroskademux" } else { "qtdemux" }
}

/// How many frames a file has, whatever they are encoded in, and when the first is shown.
pub(super) fn demuxed(path: &Path) -> (usize, u64) {
    let line = format!("filesrc location={} ! {} ! appsink name=s sync=false", path.display(), demuxer(path));
    let pipeline = gst::parse::launch(&line).unwrap().downcast::<gst::Pipeline>().unwrap();
    let sink = pipeline.by_name("s").unwrap().downcast::<gst_app::AppSink>().unwrap();
    pipeline.set_state(gst::State::Playing).unwrap();
    let mut shown = Vec::new();
    while let Ok(sample) = sink.pull_sample() {
        let segment = sample.segment().unwrap().downcast_ref::<gst::ClockTime>().unwrap();
        shown.push(segment.to_running_time(sample.buffer().unwrap().pts()).unwrap().nseconds());
    }
    pipeline.set_state(gst::State::Null).unwrap();
    (shown.len(), shown.into_iter().min().unwrap())
}

/// All frames of a recording in H.264 or JPEG.
pub(super) fn frames(path: &Path) -> Vec<Seen> {
    let line = format!(
        "filesrc location={} ! {} ! decodebin ! videoconvert ! video/x-raw,format=RGB ! appsink name=s sync=false max-buffers=4",
        path.display(),
        demuxer(path)
    );
    let pipeline = gst::parse::launch(&line).unwrap().downcast::<gst::Pipeline>().unwrap();
    let sink = pipeline.by_name("s").unwrap().downcast::<gst_app::AppSink>().unwrap();
    pipeline.set_state(gst::State::Playing).unwrap();
    let mut seen = Vec::new();
    let bus = pipeline.bus().unwrap();
    while !sink.is_eos() {
        let Some(sample) = sink.try_pull_sample(gst::ClockTime::from_mseconds(200)) else {
            let error = bus.pop_filtered(&[gst::MessageType::Error]);
            assert!(error.is_none(), "{}: {error:?}", path.display());
            continue;
        };
        let info = gst_video::VideoInfo::from_caps(sample.caps().unwrap()).unwrap();
        let buffer = sample.buffer().unwrap();
        let map = buffer.map_readable().unwrap();
        let (width, stride) = (info.width() as usize, info.stride()[0] as usize);
        let rgb = map.chunks(stride).take(info.height() as usize).flat_map(|row| &row[..width * 3]).copied().collect();
        seen.push(Seen { pts: buffer.pts().unwrap().nseconds(), width, rgb });
    }
    pipeline.set_state(gst::State::Null).unwrap();
    seen
}

impl Seen {
    /// Share of the pixels at the top left, where the verdict's plate is, that have about this colour.
    fn share(&self, colour: [u8; 3]) -> f64 {
        let (columns, rows) = (40, 12);
        let near = |x: usize, y: usize| {
            let pixel = &self.rgb[(y * self.width + x) * 3..][..3];
            pixel.iter().zip(colour).all(|(a, b)| a.abs_diff(b) < 48)
        };
        let hits = (0..rows).flat_map(|y| (0..columns).map(move |x| (x, y))).filter(|&(x, y)| near(x, y)).count();
        hits as f64 / (columns * rows) as f64
    }

    /// The mean of all pixels.
    pub(super) fn grey(&self) -> f64 {
        self.rgb.iter().map(|&value| f64::from(value)).sum::<f64>() / self.rgb.len() as f64
    }

    /// The verdict whose plate is drawn.
    pub(super) fn verdict(&self) -> &'static str {
        let plates = [
            ("ok", [0, 150, 60]),
            ("warn", [240, 170, 0]),
            ("ng", [215, 25, 30]),
            ("uninspected", [110, 110, 110]),
            ("error", [160, 30, 150]),
        ];
        let best = plates.into_iter().max_by(|a, b| self.share(a.1).total_cmp(&self.share(b.1))).unwrap();
        if self.share(best.1) > 0.2 { best.0 } else { "none" }
    }
}
