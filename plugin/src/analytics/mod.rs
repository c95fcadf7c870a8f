//! Results as GstAnalytics metas: what `objectdetectionoverlay`, `segmentationoverlay` and DL Streamer read.
//!
//! A buffer has one `GstAnalyticsRelationMeta` for the entries of all elements. A `diadfilter` adds an object per region, a class
//! with its verdict that these objects relate to, and its map as a segmentation. The frame's verdict is one entry more, whoever
//! finds it: five classes, of which one has the level 1.

use diad::detector::{AnomalyMap, Verdict};
use gst::glib::{self, BoolError, Quark};
use gst::meta::{MetaRef, MetaRefMut, Standalone};
use gst_analytics::prelude::*;
use gst_analytics::{
    AnalyticsAnyMtd, AnalyticsClassificationMtd, AnalyticsMtdRef, AnalyticsODMtd, AnalyticsODOrientedLocation,
    AnalyticsRelationMeta, RelTypes, Tensor, TensorDataType, TensorDimOrder, TensorMeta,
};

use crate::meta::{self, DiadMap};
use crate::result::{Inspection, worse};

mod segmentation;

pub use segmentation::{Mask, SegmentationMtd};

/// Id of the tensor with the anomaly map.
pub const TENSOR: &str = "diad-anomaly-map";

type Relations<'a> = MetaRef<'a, AnalyticsRelationMeta>;
type RelationsMut<'a> = MetaRefMut<'a, AnalyticsRelationMeta, Standalone>;

/// Says on `buffer` that the frame has this verdict, or the worse one that is already there, and what the inspection `own` has
/// found. Without an own one, only what an earlier element has said of the frame is made true. The id of the first region as an
/// object; the others follow.
///
/// # Errors
/// When GStreamer refuses an entry.
pub(crate) fn set(
    buffer: &mut gst::BufferRef,
    verdict: Verdict,
    own: Option<&Inspection>,
    map: Option<&DiadMap>,
) -> Result<Option<u32>, BoolError> {
    let before = verdict_of(buffer);
    if own.is_none() && before.is_none() {
        return Ok(None);
    }
    match before {
        None => add_verdict(&mut AnalyticsRelationMeta::add(buffer), verdict)?,
        Some(old) if worse(old, verdict) != old => replace_verdict(buffer, verdict)?,
        Some(_) => {}
    }
    let Some(own) = own else { return Ok(None) };
    let mut relations = AnalyticsRelationMeta::add(buffer);
    let first_object = add_objects(&mut relations, own)?;
    if let Some(map) = map {
        Mask::new(map, own.width, own.height)?.add(&mut relations)?;
    }
    Ok(first_object)
}

/// The verdict on the frame, as the classes on `buffer` have it.
pub fn verdict_of(buffer: &gst::BufferRef) -> Option<Verdict> {
    let relations = buffer.meta::<AnalyticsRelationMeta>()?;
    relations.iter::<AnalyticsClassificationMtd>().find_map(|classes| read_verdict(&classes))
}

fn read_verdict(classes: &AnalyticsMtdRef<'_, AnalyticsClassificationMtd>) -> Option<Verdict> {
    let names = Verdict::ALL.map(|verdict| Quark::from_str(verdict.name()));
    if !classes.iterate().map(|(name, _)| name).eq(names) {
        return None;
    }
    Verdict::ALL.into_iter().zip(classes.iterate()).find_map(|(verdict, (_, level))| (level > 0.5).then_some(verdict))
}

fn add_verdict(relations: &mut RelationsMut<'_>, verdict: Verdict) -> Result<(), BoolError> {
    let levels = Verdict::ALL.map(|other| if other == verdict { 1.0 } else { 0.0 });
    let names = Verdict::ALL.map(|verdict| Quark::from_str(verdict.name()));
    relations.add_cls_mtd(&levels, &names).map(|_| ())
}

fn add_objects(relations: &mut RelationsMut<'_>, own: &Inspection) -> Result<Option<u32>, BoolError> {
    let Some(finding) = own.finding.as_ref().filter(|finding| !finding.regions.is_empty()) else { return Ok(None) };
    let kind = Quark::from_str(meta::REGION);
    let mut objects = Vec::with_capacity(finding.regions.len());
    for region in &finding.regions {
        let [x, y, width, height] = [region.x, region.y, region.width, region.height].map(|v| v as i32);
        let confidence = meta::confidence(region, finding) as f32;
        objects.push(relations.add_od_mtd(kind, x, y, width, height, confidence)?.id());
    }
    let class = relations.add_one_cls_mtd(1.0, Quark::from_str(own.verdict.name()))?.id();
    for &object in &objects {
        relations.set_relation(RelTypes::RELATE_TO, object, class)?;
    }
    Ok(objects.first().copied())
}

/// Puts the map as scores on `buffer`: `[rows, columns]` of the part that shows the frame.
pub(crate) fn add_tensor(buffer: &mut gst::BufferRef, map: &AnomalyMap) {
    let [x, y, width, height] = map.cells();
    let rows = map.values.chunks_exact(map.size.width).skip(y).take(height);
    let bytes: Vec<u8> = rows.flat_map(|row| &row[x..x + width]).flat_map(|value| value.to_ne_bytes()).collect();
    let data = gst::Buffer::from_slice(bytes);
    let id = Quark::from_str(TENSOR);
    let tensor = Tensor::new_simple(id, TensorDataType::Float32, data, TensorDimOrder::RowMajor, &[height, width]);
    TensorMeta::add(buffer).set(glib::Slice::from([tensor]));
}

/// An entry of any element, as it can be written again.
enum Entry {
    /// What an earlier `diadfilter` has said of the frame.
    Verdict,
    Object(Quark, AnalyticsODOrientedLocation),
    Classes(Vec<Quark>, Vec<f32>),
    Mask(Mask),
}

impl Entry {
    /// `None` for kinds of entries that the bindings cannot read in full.
    fn read(relations: &Relations<'_>, entry: &AnalyticsMtdRef<'_, AnalyticsAnyMtd>) -> Option<Self> {
        if let Some(object) = entry.downcast_ref::<AnalyticsODMtd>() {
            return Some(Self::Object(object.obj_type()?, object.oriented_location().ok()?));
        }
        if let Some(classes) = entry.downcast_ref::<AnalyticsClassificationMtd>() {
            if read_verdict(classes).is_some() {
                return Some(Self::Verdict);
            }
            let (names, levels) = classes.iterate().unzip();
            return Some(Self::Classes(names, levels));
        }
        Mask::read(&relations.mtd::<SegmentationMtd>(entry.id())?).map(Self::Mask)
    }

    /// Adds the entry, with this verdict where it is about that.
    fn write(&self, relations: &mut RelationsMut<'_>, verdict: Verdict) -> Result<(), BoolError> {
        match self {
            Self::Verdict => add_verdict(relations, verdict),
            Self::Object(kind, at) => {
                relations.add_oriented_od_mtd(*kind, at.x, at.y, at.w, at.h, at.r, at.loc_conf_lvl).map(|_| ())
            }
            Self::Classes(names, levels) => relations.add_cls_mtd(levels, names).map(|_| ()),
            Self::Mask(mask) => mask.add(relations),
        }
    }
}

/// Writes the verdict in place of that of an earlier element. GStreamer has no call to change or to remove an entry: all are
/// written again, under the same ids. Where there are some that cannot be (trackers make such), all give way: an outdated verdict
/// must not stay.
fn replace_verdict(buffer: &mut gst::BufferRef, verdict: Verdict) -> Result<(), BoolError> {
    let Some(old) = buffer.meta::<AnalyticsRelationMeta>() else { return Ok(()) };
    let entries: Option<Vec<_>> = old.iter::<AnalyticsAnyMtd>().map(|entry| Entry::read(&old, &entry)).collect();
    let ids = 0..old.len() as u32;
    let pairs = ids.clone().flat_map(|from| ids.clone().map(move |to| (from, to)));
    let related: Vec<_> = pairs.map(|(from, to)| (old.relation(from, to), from, to)).collect();
    if let Some(old) = buffer.meta_mut::<AnalyticsRelationMeta>() {
        old.remove()?;
    }
    let mut relations = AnalyticsRelationMeta::add(buffer);
    let Some(entries) = entries else { return add_verdict(&mut relations, verdict) };
    for entry in entries {
        entry.write(&mut relations, verdict)?;
    }
    for (kind, from, to) in related.into_iter().filter(|(kind, ..)| !kind.is_empty()) {
        relations.set_relation(kind, from, to)?;
    }
    Ok(())
}
