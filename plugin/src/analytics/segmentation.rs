//! Entries of a relation meta that hold a mask. The bindings have none of the calls for them.
#![allow(
    unsafe_code,
    reason = "calls of GStreamer that the bindings leave out, with handles that come from the bindings"
)]

use gst::glib::translate::{IntoGlibPtr, UnsafeFrom, from_glib_full};
use gst::glib::{self, BoolError};
use gst_analytics::{AnalyticsMtd, AnalyticsMtdRef, ffi};
use gst_video::{VideoFormat, VideoFrameFlags, VideoMeta};

use super::RelationsMut;
use crate::meta::{DiadMap, THRESHOLD_LEVEL, grey, stride};

/// What a pixel of a mask is: good, or above the pixel threshold.
const REGIONS: [u32; 2] = [0, 1];

/// The kind of these entries.
#[derive(Debug)]
pub enum SegmentationMtd {}

// SAFETY: it is the type of what `gst_analytics_relation_meta_add_segmentation_mtd` adds.
unsafe impl AnalyticsMtd for SegmentationMtd {
    fn mtd_type() -> ffi::GstAnalyticsMtdType {
        // SAFETY: the function only gives the address of a constant.
        unsafe { ffi::gst_analytics_segmentation_mtd_get_mtd_type() }
    }
}

/// Which cells of a map are above the pixel threshold.
#[derive(Clone, Debug)]
pub struct Mask {
    /// GRAY8 video with a `GstVideoMeta`: 1 above the pixel threshold, else 0.
    pub cells: gst::Buffer,
    /// Left and upper edge of the part of the frame that it covers, in pixels.
    pub corner: [i32; 2],
    /// Width and height of that part.
    pub size: [u32; 2],
}

impl Mask {
    /// Of a map on a frame of this size.
    pub(super) fn new(map: &DiadMap, width: u32, height: u32) -> Result<Self, BoolError> {
        let above: Vec<u8> = map.levels.iter().map(|&level| u8::from(level > THRESHOLD_LEVEL)).collect();
        let mut cells = grey(map.width, &above);
        let (columns, rows, row) = (map.width as u32, map.height as u32, stride(map.width) as i32);
        let none = VideoFrameFlags::empty();
        VideoMeta::add_full(cells.make_mut(), none, VideoFormat::Gray8, columns, rows, &[0], &[row])?;
        let [x, y, w, h] = map.shown;
        let edge = |fraction: f64, side: u32| (fraction * f64::from(side)).round();
        let [left, right] = [x, x + w].map(|fraction| edge(fraction, width));
        let [top, bottom] = [y, y + h].map(|fraction| edge(fraction, height));
        Ok(Self { cells, corner: [left as i32, top as i32], size: [(right - left) as u32, (bottom - top) as u32] })
    }

    /// Adds it as an entry.
    pub(super) fn add(&self, relations: &mut RelationsMut<'_>) -> Result<(), BoolError> {
        let mut ids = REGIONS;
        let ([x, y], [width, height]) = (self.corner, self.size);
        let mut added = std::mem::MaybeUninit::<ffi::GstAnalyticsSegmentationMtd>::uninit();
        // SAFETY: the meta is borrowed for writing; the call takes over the buffer, which has the video meta that it asks for,
        // copies the ids, and writes to `added`.
        let done = unsafe {
            ffi::gst_analytics_relation_meta_add_segmentation_mtd(
                relations.as_mut_ptr(),
                self.cells.clone().into_glib_ptr(),
                ffi::GST_SEGMENTATION_TYPE_SEMANTIC,
                ids.len(),
                ids.as_mut_ptr(),
                x,
                y,
                width,
                height,
                added.as_mut_ptr(),
            )
        };
        if done == glib::ffi::GFALSE { Err(glib::bool_error!("no entry for a mask")) } else { Ok(()) }
    }

    /// The mask of an entry, if it is one that [`Self::add`] can write again.
    pub fn read(entry: &AnalyticsMtdRef<'_, SegmentationMtd>) -> Option<Self> {
        let ([mut x, mut y], [mut width, mut height]) = ([0; 2], [0; 2]);
        // SAFETY: the entry borrows its meta and is of the type that these calls ask for; they write to four numbers that live
        // here, and the mask comes with a reference of its own.
        let (ids, cells) = unsafe {
            let ffi::GstAnalyticsMtd { id, meta } = ffi::GstAnalyticsMtd::unsafe_from(entry);
            let handle = ffi::GstAnalyticsSegmentationMtd { id, meta };
            let count = ffi::gst_analytics_segmentation_mtd_get_region_count(&handle);
            let ids = (0..count).map(|index| ffi::gst_analytics_segmentation_mtd_get_region_id(&handle, index));
            let ids: Vec<u32> = ids.collect();
            let cells: Option<gst::Buffer> = from_glib_full(ffi::gst_analytics_segmentation_mtd_get_mask(
                &handle,
                &mut x,
                &mut y,
                &mut width,
                &mut height,
            ));
            (ids, cells)
        };
        let cells = cells.filter(|_| ids == REGIONS)?;
        Some(Self { cells, corner: [x, y], size: [width, height] })
    }
}
