//! GstAnalytics metas say what the result says.

use diad::detector::Verdict;
use gst::glib::Quark;
use gst_analytics::prelude::*;
use gst_analytics::{AnalyticsClassificationMtd, AnalyticsODMtd, AnalyticsRelationMeta, RelTypes, TensorMeta};
use gst_video::{VideoFormat, VideoMeta, VideoRegionOfInterestMeta};
use gstdiad::analytics::{Mask, SegmentationMtd, TENSOR, verdict_of};

use super::common::*;
use super::*;

/// A frame with a defect.
fn frame(shop: &Shop) -> Frame {
    spoiled(&shop.frames("blister/test/good")[0])
}

/// A filter with these metas.
fn analytic(shop: &Shop, meta: &str) -> gst::Element {
    let element = filter(shop);
    element.set_property_from_str("meta", meta);
    element
}

/// What comes out of an element for a frame with these metas on it.
fn pass(element: &gst::Element, frame: &Frame, metas: impl FnOnce(&mut gst::BufferRef)) -> gst::Buffer {
    let mut harness = harness(element, 64, 64);
    let mut buffer = buffer(frame, 0);
    metas(buffer.make_mut());
    harness.push(buffer).unwrap();
    harness.pull().unwrap()
}

/// An object: id, kind, box, confidence, and the classes that it relates to.
type Object = (u32, String, [i32; 4], f32, Vec<(String, f32)>);

fn objects(buffer: &gst::Buffer) -> Vec<Object> {
    let Some(relations) = buffer.meta::<AnalyticsRelationMeta>() else { return Vec::new() };
    let object = |object: gst_analytics::AnalyticsMtdRef<'_, AnalyticsODMtd>| {
        let at = object.location().unwrap();
        let related = relations.iter_direct_related::<AnalyticsClassificationMtd>(object.id(), RelTypes::RELATE_TO);
        let classes = related.flat_map(|classes| classes.iterate().collect::<Vec<_>>());
        let classes = classes.map(|(name, level)| (name.as_str().to_string(), level)).collect();
        let kind = object.obj_type().unwrap().as_str().to_string();
        (object.id(), kind, [at.x, at.y, at.w, at.h], at.loc_conf_lvl, classes)
    };
    relations.iter::<AnalyticsODMtd>().map(object).collect()
}

fn masks(buffer: &gst::Buffer) -> Vec<Mask> {
    let Some(relations) = buffer.meta::<AnalyticsRelationMeta>() else { return Vec::new() };
    relations.iter::<SegmentationMtd>().filter_map(|entry| Mask::read(&entry)).collect()
}

/// Verdicts on the whole frame: there must be one.
fn verdicts(buffer: &gst::Buffer) -> usize {
    let Some(relations) = buffer.meta::<AnalyticsRelationMeta>() else { return 0 };
    relations.iter::<AnalyticsClassificationMtd>().filter(|classes| classes.len() == 5).count()
}

fn length(buffer: &gst::Buffer) -> usize {
    buffer.meta::<AnalyticsRelationMeta>().map_or(0, |relations| relations.len())
}

/// Boxes of an inspection as objects have them.
fn boxes(inspection: &Inspection) -> Vec<[i32; 4]> {
    let regions = inspection.finding.as_ref().map_or(&[][..], |finding| &finding.regions);
    regions.iter().map(|r| [r.x, r.y, r.width, r.height].map(|v| v as i32)).collect()
}

/// Id, box and confidence of the region-of-interest metas.
fn rois(buffer: &gst::Buffer) -> Vec<(u32, [i32; 4], f32)> {
    let roi = |roi: gst::MetaRef<'_, VideoRegionOfInterestMeta>| {
        let (x, y, width, height) = roi.rect();
        let confidence: f64 = roi.param("detection").unwrap().get("confidence").unwrap();
        (roi.id() as u32, [x, y, width, height].map(|v| v as i32), confidence as f32)
    };
    buffer.iter_meta::<VideoRegionOfInterestMeta>().map(roi).collect()
}

#[test]
fn entries_say_what_the_result_says() {
    let shop = shop();
    let out = pass(&analytic(&shop, "regions+result+map+analytics"), &frame(&shop), |_| {});
    let said = result(&out);
    let expected = boxes(&said);
    assert!(!expected.is_empty(), "the frame shows a defect");
    assert_eq!((verdict_of(&out), verdicts(&out)), (Some(said.verdict), 1));

    let objects = objects(&out);
    assert_eq!(objects.iter().map(|object| object.2).collect::<Vec<_>>(), expected);
    let same: Vec<_> = objects.iter().map(|(id, _, at, confidence, _)| (*id, *at, *confidence)).collect();
    assert_eq!(same, rois(&out), "the same ids, boxes and confidences");
    for (_, kind, _, _, classes) in &objects {
        assert_eq!((kind.as_str(), &classes[..]), ("anomaly", &[(said.verdict.name().to_owned(), 1.0)][..]));
    }
    assert_eq!(length(&out), 1 + objects.len() + 1 + 1, "verdict, objects, their class, mask");

    let [map] = <[_; 1]>::try_from(meta::maps_of(&out)).unwrap();
    let [mask] = <[Mask; 1]>::try_from(masks(&out)).unwrap();
    assert_eq!((mask.corner, mask.size), ([0, 0], [64, 64]));
    let video = mask.cells.meta::<VideoMeta>().unwrap();
    let (width, stride) = (video.width() as usize, video.stride()[0] as usize);
    assert_eq!((video.format(), width, video.height() as usize), (VideoFormat::Gray8, map.width, map.height));
    let cells = mask.cells.map_readable().unwrap();
    let cells: Vec<u8> = cells.chunks(stride).flat_map(|row| &row[..width]).copied().collect();
    let above: Vec<u8> = map.levels.iter().map(|&level| u8::from(level > meta::THRESHOLD_LEVEL)).collect();
    assert!(above.contains(&1) && above.contains(&0));
    assert_eq!(cells, above);

    let tensors = out.meta::<TensorMeta>().unwrap();
    let [tensor] = tensors.as_slice() else { panic!("one tensor") };
    assert_eq!((tensor.id(), tensor.dims()), (Quark::from_str(TENSOR), &[map.height, map.width][..]));
    let bytes = tensor.data().map_readable().unwrap();
    let scores: Vec<f32> = bytes.chunks_exact(4).map(|b| f32::from_ne_bytes(b.try_into().unwrap())).collect();
    assert_eq!(scores.len(), map.levels.len());
    for (score, level) in scores.into_iter().zip(&map.levels).filter(|(_, level)| **level < 255) {
        assert!((f64::from(score) / map.scale - f64::from(*level)).abs() < 1.0, "{score} is level {level}");
    }
}

#[test]
fn only_who_asks_gets_them() {
    let shop = shop();
    let out = pass(&analytic(&shop, "regions+result+map"), &frame(&shop), |_| {});
    assert!(out.meta::<AnalyticsRelationMeta>().is_none() && out.meta::<TensorMeta>().is_none());
    assert!(rois(&out).iter().all(|(id, ..)| *id == 0));
}

#[test]
fn a_frame_that_was_not_inspected_has_a_verdict_and_no_objects() {
    let shop = shop();
    let element = analytic(&shop, "map+analytics");
    element.set_property("inference-interval", 2u32);
    let mut harness = harness(&element, 64, 64);
    let mut out = Vec::new();
    for n in 0..2 {
        harness.push(buffer(&frame(&shop), n)).unwrap();
        out.push(harness.pull().unwrap());
    }
    assert_eq!((verdict_of(&out[1]), length(&out[1])), (Some(Verdict::Uninspected), 1));
    assert!(out[1].meta::<TensorMeta>().is_none());
}

/// A filter whose threshold makes every frame `ng`, or `ok`.
fn with_threshold(shop: &Shop, meta: &str, name: &str, threshold: f64) -> gst::Element {
    let element = analytic(shop, meta);
    element.set_property("name", name);
    element.set_property("threshold", threshold);
    element.set_property("warn-threshold", threshold);
    element
}

/// An object with a class, and a second class that is not related to it.
fn of_others(buffer: &mut gst::BufferRef) {
    let mut relations = AnalyticsRelationMeta::add(buffer);
    let object = relations.add_oriented_od_mtd(Quark::from_str("cap"), 1, 2, 30, 40, 0.5, 0.75).unwrap().id();
    let class = relations.add_one_cls_mtd(0.25, Quark::from_str("red")).unwrap().id();
    relations.add_one_cls_mtd(0.5, Quark::from_str("outdoors")).unwrap();
    relations.set_relation(RelTypes::RELATE_TO, object, class).unwrap();
}

/// Also where no result travels along, and where the later filter is not asked for such metas.
#[test]
fn the_verdict_of_an_earlier_filter_gives_way_to_a_worse_one_and_all_else_stays() {
    let shop = shop();
    let frame = frame(&shop);
    for (first, second) in [
        ("regions+result+analytics", "regions+result+analytics"),
        ("regions+analytics", "regions+analytics"),
        ("regions+result+analytics", "regions+result"),
    ] {
        let once = pass(&with_threshold(&shop, first, "first", 1e6), &frame, of_others);
        assert_eq!((verdict_of(&once), verdicts(&once)), (Some(Verdict::Ok), 1));
        let objects_once = objects(&once);
        let own = with_threshold(&shop, second, "second", 0.0);
        let mut harness = harness(&own, 64, 64);
        harness.push(once.clone()).unwrap();
        let twice = harness.pull().unwrap();
        assert_eq!((verdict_of(&twice), verdicts(&twice)), (Some(Verdict::Ng), 1), "{first}, {second}");
        let objects = objects(&twice);
        assert_eq!(objects[0].1, "cap");
        assert_eq!(objects[0].4, [("red".to_owned(), 0.25)]);
        assert_eq!(objects[..objects_once.len()], objects_once);
        let asked = second.contains("analytics");
        assert_eq!(masks(&twice).len(), if asked { 2 } else { 1 });
        let regions = if asked { rois(&twice) } else { rois(&once) };
        let same: Vec<_> = objects[1..].iter().map(|(id, _, at, confidence, _)| (*id, *at, *confidence)).collect();
        assert_eq!(same, regions);
        let classes: Vec<_> = objects[1..].iter().map(|object| object.4[0].0.as_str()).collect();
        let found = regions.len() / if asked { 2 } else { 1 };
        assert!(found > 0);
        assert_eq!(classes[..found], vec!["ok"; found]);
        assert!(classes[found..].iter().all(|class| *class == "ng"));

        // A better one changes nothing.
        let better = with_threshold(&shop, "regions+analytics", "third", 1e6);
        let mut harness = super::harness(&better, 64, 64);
        harness.push(twice).unwrap();
        let thrice = harness.pull().unwrap();
        assert_eq!((verdict_of(&thrice), verdicts(&thrice)), (Some(Verdict::Ng), 1));
    }
}

/// The bindings cannot copy what a tracker has added.
#[test]
fn no_outdated_verdict_stays_for_the_sake_of_entries_that_cannot_be_kept() {
    let shop = shop();
    let frame = frame(&shop);
    let tracked = |buffer: &mut gst::BufferRef| {
        AnalyticsRelationMeta::add(buffer).add_tracking_mtd(7, gst::ClockTime::ZERO).unwrap();
    };
    let once = pass(&with_threshold(&shop, "analytics", "first", 1e6), &frame, tracked);
    assert_eq!(verdict_of(&once), Some(Verdict::Ok));
    assert!(length(&once) > 2, "a track stays as long as nothing has to change");
    let worse = with_threshold(&shop, "result", "second", 0.0);
    let mut harness = harness(&worse, 64, 64);
    harness.push(once).unwrap();
    let twice = harness.pull().unwrap();
    assert_eq!((verdict_of(&twice), length(&twice)), (Some(Verdict::Ng), 1));
}

/// A mask that were never freed would fill the memory of a line within days.
#[test]
fn masks_are_freed_with_their_frames() {
    let shop = shop();
    let once = pass(&with_threshold(&shop, "analytics", "first", 1e6), &frame(&shop), |_| {});
    let [first] = <[Mask; 1]>::try_from(masks(&once)).unwrap();
    let worse = with_threshold(&shop, "analytics", "second", 0.0);
    let twice = {
        let mut harness = harness(&worse, 64, 64);
        harness.push(once).unwrap();
        harness.pull().unwrap()
    };
    let [again, second] = <[Mask; 2]>::try_from(masks(&twice)).unwrap();
    assert_eq!(first.cells.as_ptr(), again.cells.as_ptr());
    drop((again, twice));
    for mut mask in [first, second] {
        assert!(mask.cells.get_mut().is_some(), "nobody else holds it");
    }
}
