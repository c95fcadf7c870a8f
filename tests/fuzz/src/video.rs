//! What arrives on a pad: caps, layouts of buffers and metadata of any kind are inspected and drawn on, or refused in words.
//!
//! An input is a header of numbers (see [`Layout`]) and lines of text: caps, or structures as GStreamer writes them.

use std::str::FromStr;
use std::sync::Once;

use gst_video::{VideoCropMeta, VideoFrameFlags, VideoInfo, VideoMeta};
use gstdiad::meta::{self, DiadMap};
use gstdiad::{fuzz, result::DiadResult};

use super::{MIB, within};

/// Frames are small here; see [`LARGEST`].
const MEMORY: usize = 64 * MIB;

/// Sides above this are refused before there is a buffer, to stay fast.
const LARGEST: u32 = 512;

/// What a buffer says of itself.
struct Layout {
    format: usize,
    size: [u32; 2],
    coded: Option<[u32; 2]>,
    offsets: [usize; 3],
    strides: [i32; 3],
    crop: Option<[u32; 4]>,
    /// Where a map lies, in fractions of the frame.
    map: Option<[f64; 4]>,
    bytes: usize,
}

impl Layout {
    const HEADER: usize = 24;

    fn read(h: &[u8]) -> Self {
        let far = |b: u8| if b == 255 { u32::MAX } else { u32::from(b) };
        let word = |i: usize| u16::from_le_bytes([h[i], h[i + 1]]);
        Self {
            format: usize::from(h[0]),
            size: [1, 2].map(|i| 16 + u32::from(h[i]) % 64),
            coded: (h[3] & 1 != 0).then(|| [far(h[4]), far(h[5])]),
            offsets: [6, 8, 10].map(|i| if word(i) == u16::MAX { usize::MAX } else { usize::from(word(i)) }),
            strides: [12, 14, 16].map(|i| match word(i) as i16 {
                i16::MAX => i32::MAX,
                i16::MIN => i32::MIN,
                stride => i32::from(stride),
            }),
            crop: (h[3] & 2 != 0).then(|| [18, 19, 20, 21].map(|i| far(h[i]))),
            map: (h[3] & 4 != 0).then(|| [18, 19, 20, 21].map(|i| f64::from(h[i]) / 32.0 - 2.0)),
            bytes: usize::from(word(22)),
        }
    }
}

pub fn target(data: &[u8]) {
    static INIT: Once = Once::new();
    INIT.call_once(|| {
        gst::init().expect("GStreamer");
        gstdiad::plugin_register_static().expect("the elements and metas");
    });
    let Some((header, text)) = data.split_at_checked(Layout::HEADER) else { return };
    let text = String::from_utf8_lossy(text).replace('\0', " ");
    within(MEMORY, || show(&Layout::read(header), &text));
}

fn show(layout: &Layout, text: &str) {
    let [width, height] = layout.size;
    let format = fuzz::FORMATS[layout.format % fuzz::FORMATS.len()];
    let mut info = VideoInfo::builder(format, width, height).build().expect("a format of ours in a small size");
    let mut buffer = gst::Buffer::from_mut_slice(vec![99u8; layout.bytes]);
    let writable = buffer.get_mut().expect("nobody else has it");
    for line in text.lines() {
        if line.starts_with("video/") {
            let Ok(caps) = gst::Caps::from_str(line) else { continue };
            match fuzz::progressive(&caps) {
                Ok(taken)
                    if fuzz::FORMATS.contains(&taken.format()) && taken.width().max(taken.height()) <= LARGEST =>
                {
                    info = taken;
                }
                Ok(_) => (),
                Err(words) => assert!(!words.is_empty()),
            }
        } else if let Ok(structure) = gst::Structure::from_str(line) {
            say(writable, &structure);
        }
    }
    let planes = info.n_planes() as usize;
    if let Some([width, height]) = layout.coded {
        let (flags, offsets, strides) =
            (VideoFrameFlags::empty(), &layout.offsets[..planes], &layout.strides[..planes]);
        let _ = VideoMeta::add_full(writable, flags, info.format(), width, height, offsets, strides);
    }
    if let Some([x, y, width, height]) = layout.crop {
        VideoCropMeta::add(writable, (x, y, width, height));
    }
    if let Some(shown) = layout.map {
        let [width, height, _] = layout.offsets.map(|offset| 1 + offset % 40);
        let levels = (0..width * height).map(|i| (i * 7) as u8).collect();
        let map = DiadMap { width, height, levels, scale: 0.5, shown, element: "cap".into() };
        meta::add_map(writable, &map);
        assert!(meta::maps_of(writable).contains(&map));
    }
    let result = meta::result_of(writable).unwrap_or_else(|| DiadResult::unseen(None));
    let maps = meta::maps_of(writable);
    // What cannot be inspected cannot be drawn on, and the other way round.
    match (fuzz::prepare(writable, &info), fuzz::draw(writable, &info, &result, &maps)) {
        (Ok(pixels), Ok(())) => assert_eq!(pixels, 32 * 32 * 3),
        (Err(inspect), Err(draw)) => assert!(!inspect.is_empty() && !draw.is_empty()),
        (inspect, draw) => panic!("{inspect:?} but {draw:?}"),
    }
}

/// Puts what a structure says on a buffer, as another element or another version of this one might.
fn say(buffer: &mut gst::BufferRef, structure: &gst::Structure) {
    match DiadResult::try_from(structure.as_ref()) {
        Ok(result) => {
            meta::set_result(buffer, &result);
            let read = meta::result_of(buffer).expect("what was written");
            assert_eq!(format!("{read:?}"), format!("{result:?}")); // NaN is not NaN
            serde_json::to_string(&read).expect("a line of JSON");
            read.results.iter().for_each(|inspection| meta::add_regions(buffer, inspection, None));
        }
        Err(error) => assert!(!error.to_string().is_empty()),
    }
    for name in [meta::RESULT, meta::MAP, meta::DRAWN] {
        if structure.name() == name
            && let Ok(mut custom) = gst::meta::CustomMeta::add(buffer, name)
        {
            structure.iter().for_each(|(field, value)| custom.mut_structure().set_value(field, value.clone()));
        }
    }
    meta::drawn_by(buffer);
}
