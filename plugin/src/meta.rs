//! Metadata on buffers: `DiadResult`, `DiadMap`, and a region-of-interest meta per defect.

use std::ops::ControlFlow;

use gst::buffer::BufferMetaForeachAction;
use gst::prelude::*;

use crate::result::DiadResult;

/// Name of the custom meta with the result.
pub const RESULT: &str = "DiadResult";
/// Name of the custom meta with the anomaly map.
pub const MAP: &str = "DiadMap";
/// Type of the region-of-interest metas.
pub const REGION: &str = "anomaly";

/// Grey level of a map that stands for the pixel threshold; 255 is about four times it.
pub const THRESHOLD_LEVEL: u8 = 64;

/// An anomaly map as it travels: grey levels, and what they mean.
#[derive(Clone, Debug, PartialEq)]
pub struct DiadMap {
    /// Columns.
    pub width: usize,
    /// Rows.
    pub height: usize,
    /// Levels row by row; [`THRESHOLD_LEVEL`] is the pixel threshold.
    pub levels: Vec<u8>,
    /// Score of one level: value = level * scale.
    pub scale: f64,
    /// The part of the frame that the map covers: x, y, width, height as fractions of the frame.
    pub shown: [f64; 4],
}

/// Registers the metas; once per process.
pub(crate) fn register() {
    // A result is about what the frame shows: it stays true through conversion and scaling. A map is about where: its tags
    // make elements that crop, scale or convert drop it. (videoflip of GStreamer 1.22 keeps metas whatever their tags.)
    gst::meta::CustomMeta::register(RESULT, &["video"]);
    gst::meta::CustomMeta::register(MAP, &["video", "orientation", "size"]);
}

/// Puts `result` on `buffer`.
pub fn add_result(buffer: &mut gst::BufferRef, result: &DiadResult) {
    if let Ok(mut meta) = gst::meta::CustomMeta::add(buffer, RESULT) {
        result.write(meta.mut_structure());
    }
}

/// The result on `buffer`.
pub fn result_of(buffer: &gst::BufferRef) -> Option<DiadResult> {
    let meta = gst::meta::CustomMeta::from_buffer(buffer, RESULT).ok()?;
    DiadResult::try_from(meta.structure()).ok()
}

/// Takes away a result, map and regions that an element before us has left.
pub fn remove(buffer: &mut gst::BufferRef) {
    buffer.foreach_meta_mut(|mut meta| {
        let ours = match meta.try_as_custom_meta() {
            Some(custom) => custom.has_name(RESULT) || custom.has_name(MAP),
            None => {
                meta.downcast_ref::<gst_video::VideoRegionOfInterestMeta>().is_some_and(|roi| roi.roi_type() == REGION)
            }
        };
        ControlFlow::Continue(if ours { BufferMetaForeachAction::Remove } else { BufferMetaForeachAction::Keep })
    });
}

/// Puts a region-of-interest meta on `buffer` per region of `result`. Their parameter `detection` is what other consumers of
/// such metas read: `confidence` (peak over pixel threshold, as a share of four times it), `label`, `label_id`.
pub fn add_regions(buffer: &mut gst::BufferRef, result: &DiadResult) {
    let Some(finding) = &result.finding else { return };
    for (id, region) in finding.regions.iter().enumerate() {
        let rect = (region.x, region.y, region.width, region.height);
        let mut meta = gst_video::VideoRegionOfInterestMeta::add(buffer, REGION, rect);
        let ratio = f64::from(region.peak / finding.pixel_threshold);
        let (width, height) = (f64::from(result.width), f64::from(result.height));
        let detection = gst::Structure::builder("detection")
            .field("confidence", (ratio / 4.0).clamp(0.0, 1.0))
            .field("label", &finding.class)
            .field("label_id", 0i32)
            .field("x_min", f64::from(region.x) / width)
            .field("y_min", f64::from(region.y) / height)
            .field("x_max", f64::from(region.x + region.width) / width)
            .field("y_max", f64::from(region.y + region.height) / height)
            .field("peak", f64::from(region.peak))
            .field("area", region.area)
            .field("number", id as u32)
            .build();
        meta.add_param(detection);
    }
}

/// Puts `map` on `buffer`: a GRAY8 sample with its scale.
pub fn add_map(buffer: &mut gst::BufferRef, map: &DiadMap) {
    let caps = gst::Caps::builder("video/x-raw")
        .field("format", "GRAY8")
        .field("width", map.width as i32)
        .field("height", map.height as i32)
        .field("framerate", gst::Fraction::new(0, 1))
        .build();
    // Rows of GRAY8 video are multiples of four bytes long.
    let mut bytes = Vec::with_capacity(stride(map.width) * map.height);
    for row in map.levels.chunks_exact(map.width.max(1)) {
        bytes.extend_from_slice(row);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
    }
    let sample = gst::Sample::builder().buffer(&gst::Buffer::from_slice(bytes)).caps(&caps).build();
    if let Ok(mut meta) = gst::meta::CustomMeta::add(buffer, MAP) {
        let structure = meta.mut_structure();
        structure.set("map", sample);
        structure.set("threshold-level", u32::from(THRESHOLD_LEVEL));
        structure.set("scale", map.scale);
        let shown = map.shown.map(|v| v.to_send_value());
        structure.set("shown", gst::Array::new(shown));
    }
}

/// Bytes from one row of GRAY8 video to the next.
fn stride(width: usize) -> usize {
    width.next_multiple_of(4)
}

/// The map on `buffer`.
pub fn map_of(buffer: &gst::BufferRef) -> Option<DiadMap> {
    let meta = gst::meta::CustomMeta::from_buffer(buffer, MAP).ok()?;
    let structure = meta.structure();
    let sample = structure.get::<gst::Sample>("map").ok()?;
    let info = gst_video::VideoInfo::from_caps(sample.caps()?).ok()?;
    let (width, height) = (info.width() as usize, info.height() as usize);
    let bytes = sample.buffer()?.map_readable().ok()?;
    let levels: Vec<u8> = bytes.chunks_exact(stride(width)).flat_map(|row| &row[..width]).copied().collect();
    let shown: Vec<f64> = structure.get::<gst::Array>("shown").ok()?.iter().filter_map(|v| v.get().ok()).collect();
    let map = DiadMap { width, height, levels, scale: structure.get("scale").ok()?, shown: shown.try_into().ok()? };
    (map.levels.len() == width * height).then_some(map)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_map_survives_a_buffer_and_is_removed() {
        gst::init().unwrap();
        register();
        let map = DiadMap { width: 5, height: 3, levels: (0..15).collect(), scale: 0.5, shown: [0.25, 0.0, 0.5, 1.0] };
        let mut buffer = gst::Buffer::new();
        add_map(buffer.make_mut(), &map);
        assert_eq!(map_of(&buffer), Some(map.clone()));
        assert_eq!(map_of(&buffer.copy()), Some(map));
        remove(buffer.make_mut());
        assert_eq!((map_of(&buffer), result_of(&buffer)), (None, None));
    }
}
