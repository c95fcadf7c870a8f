//! Metadata on buffers: `DiadResult`, `DiadMap`, `DiadDrawn`, and a region-of-interest meta per defect.

use std::ops::ControlFlow;

use gst::buffer::BufferMetaForeachAction;
use gst::prelude::*;

use diad::regions::Region;

use crate::result::{DiadResult, Finding, Inspection};

/// Name of the custom meta with the result.
pub const RESULT: &str = "DiadResult";
/// Name of the custom meta with the anomaly map.
pub const MAP: &str = "DiadMap";
/// Name of the custom meta that says that the frame was drawn on.
pub const DRAWN: &str = "DiadDrawn";
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
    /// The `diadfilter` whose map it is, by name.
    pub element: String,
}

/// Registers the metas; once per process.
pub(crate) fn register() {
    // A result is about what the frame shows: it stays true through conversion and scaling. A map is about where: its tags
    // make elements that crop, scale or convert drop it. (videoflip of GStreamer 1.22 keeps metas whatever their tags.)
    gst::meta::CustomMeta::register(RESULT, &["video"]);
    gst::meta::CustomMeta::register(DRAWN, &["video"]);
    gst::meta::CustomMeta::register(MAP, &["video", "orientation", "size"]);
}

/// Puts `result` on `buffer`, in place of one that is there.
pub fn set_result(buffer: &mut gst::BufferRef, result: &DiadResult) {
    buffer.foreach_meta_mut(|meta| {
        let old = meta.try_as_custom_meta().is_some_and(|custom| custom.has_name(RESULT));
        ControlFlow::Continue(if old { BufferMetaForeachAction::Remove } else { BufferMetaForeachAction::Keep })
    });
    if let Ok(mut meta) = gst::meta::CustomMeta::add(buffer, RESULT) {
        result.write(meta.mut_structure());
    }
}

/// The result on `buffer`.
pub fn result_of(buffer: &gst::BufferRef) -> Option<DiadResult> {
    let meta = gst::meta::CustomMeta::from_buffer(buffer, RESULT).ok()?;
    DiadResult::try_from(meta.structure()).ok()
}

/// Says on `buffer` that `element` has drawn on it: its pixels are no longer what the camera saw.
pub fn set_drawn(buffer: &mut gst::BufferRef, element: &str) {
    if let Ok(mut meta) = gst::meta::CustomMeta::add(buffer, DRAWN) {
        meta.mut_structure().set("element", element);
    }
}

/// The first element that has drawn on `buffer`.
pub fn drawn_by(buffer: &gst::BufferRef) -> Option<String> {
    let meta = gst::meta::CustomMeta::from_buffer(buffer, DRAWN).ok()?;
    Some(meta.structure().get("element").unwrap_or_default())
}

/// How sure a region is: its peak over the pixel threshold, as a share of four times it.
pub(crate) fn confidence(region: &Region, finding: &Finding) -> f64 {
    (f64::from(region.peak / finding.pixel_threshold) / 4.0).clamp(0.0, 1.0)
}

/// Puts a region-of-interest meta on `buffer` per region that `inspection` found. Their parameter `detection` is what other
/// consumers of such metas read: `confidence`, `label`, `label_id`. Where the regions are objects of a relation meta as well, each
/// has its object's id: `first_object` and the ones that follow.
pub fn add_regions(buffer: &mut gst::BufferRef, inspection: &Inspection, first_object: Option<u32>) {
    let Some(finding) = &inspection.finding else { return };
    for (id, region) in (0u32..).zip(&finding.regions) {
        let rect = (region.x, region.y, region.width, region.height);
        let mut meta = gst_video::VideoRegionOfInterestMeta::add(buffer, REGION, rect);
        if let Some(id) = first_object.and_then(|first| i32::try_from(first + id).ok()) {
            meta.set_id(id);
        }
        let (width, height) = (f64::from(inspection.width), f64::from(inspection.height));
        let detection = gst::Structure::builder("detection")
            .field("confidence", confidence(region, finding))
            .field("label", &finding.class)
            .field("label_id", 0i32)
            .field("x_min", f64::from(region.x) / width)
            .field("y_min", f64::from(region.y) / height)
            .field("x_max", f64::from(region.x + region.width) / width)
            .field("y_max", f64::from(region.y + region.height) / height)
            .field("peak", f64::from(region.peak))
            .field("area", region.area)
            .field("number", id)
            .field("element", &inspection.element)
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
    let sample = gst::Sample::builder().buffer(&grey(map.width, &map.levels)).caps(&caps).build();
    if let Ok(mut meta) = gst::meta::CustomMeta::add(buffer, MAP) {
        let structure = meta.mut_structure();
        structure.set("map", sample);
        structure.set("threshold-level", u32::from(THRESHOLD_LEVEL));
        structure.set("scale", map.scale);
        structure.set("element", &map.element);
        let shown = map.shown.map(|v| v.to_send_value());
        structure.set("shown", gst::Array::new(shown));
    }
}

/// Rows of levels as GRAY8 video.
pub(crate) fn grey(width: usize, levels: &[u8]) -> gst::Buffer {
    let mut bytes = Vec::with_capacity(levels.len().next_multiple_of(4));
    for row in levels.chunks_exact(width.max(1)) {
        bytes.extend_from_slice(row);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
    }
    gst::Buffer::from_slice(bytes)
}

/// Bytes from one row of GRAY8 video to the next: rows are multiples of four bytes long.
pub(crate) fn stride(width: usize) -> usize {
    width.next_multiple_of(4)
}

/// The maps on `buffer`, one per `diadfilter` that has put its own there.
pub fn maps_of(buffer: &gst::BufferRef) -> Vec<DiadMap> {
    let custom = buffer.iter_meta::<gst::Meta>().filter_map(|meta| {
        let custom = meta.try_as_custom_meta()?;
        if custom.has_name(MAP) { map(custom.structure()) } else { None }
    });
    custom.collect()
}

fn map(structure: &gst::StructureRef) -> Option<DiadMap> {
    let sample = structure.get::<gst::Sample>("map").ok()?;
    let info = gst_video::VideoInfo::from_caps(sample.caps()?).ok()?;
    let (width, height) = (info.width() as usize, info.height() as usize);
    let bytes = sample.buffer()?.map_readable().ok()?;
    let levels: Vec<u8> = bytes.chunks_exact(stride(width)).flat_map(|row| &row[..width]).copied().collect();
    let shown: Vec<f64> = structure.get::<gst::Array>("shown").ok()?.iter().filter_map(|v| v.get().ok()).collect();
    let (scale, element) = (structure.get("scale").ok()?, structure.get("element").ok()?);
    let map = DiadMap { width, height, levels, scale, shown: shown.try_into().ok()?, element };
    (map.levels.len() == width * height).then_some(map)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn maps_survive_a_buffer_beside_each_other() {
        gst::init().unwrap();
        register();
        let map = DiadMap {
            width: 5,
            height: 3,
            levels: (0..15).collect(),
            scale: 0.5,
            shown: [0.25, 0.0, 0.5, 1.0],
            element: "cap".into(),
        };
        let other = DiadMap { width: 1, height: 2, levels: vec![7, 8], element: "label".into(), ..map.clone() };
        let mut buffer = gst::Buffer::new();
        assert!(maps_of(&buffer).is_empty());
        add_map(buffer.make_mut(), &map);
        add_map(buffer.make_mut(), &other);
        assert_eq!(maps_of(&buffer.copy()), [map, other]);
    }

    #[test]
    fn a_buffer_has_one_result() {
        gst::init().unwrap();
        register();
        let mut buffer = gst::Buffer::new();
        let mut result = DiadResult::unseen(None);
        set_result(buffer.make_mut(), &result);
        result.part_id = Some("P-17".into());
        set_result(buffer.make_mut(), &result);
        assert_eq!(buffer.iter_meta::<gst::Meta>().count(), 1);
        assert_eq!(result_of(&buffer), Some(result));
    }
}
