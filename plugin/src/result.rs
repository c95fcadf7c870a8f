//! What is said of a frame: one type for metas, bus messages and JSON lines, and the way to `gst::Structure` and back.
//!
//! Several `diadfilter` in a row may look at one frame: each adds an [`Inspection`], and the frame's verdict is the worst of
//! theirs.

use std::str::FromStr;

use diad::detector::{ClassSource, Detection, Verdict};
use diad::regions::Region;
use diad::text::{now_ms, utc};
use gst::glib;
use gst::prelude::*;
use serde::Serialize;

/// Version of the fields, in structures and in JSON.
pub const SCHEMA: u32 = 2;

/// Everything that is known of one frame.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct DiadResult {
    /// Version of these fields.
    pub schema: u32,
    /// The worst verdict of the inspections (`ok` < `warn` < `uninspected` < `error` < `ng`); `uninspected` where there is none.
    pub verdict: Verdict,
    /// When the frame came into its first `diadfilter`: RFC 3339, UTC, milliseconds. Absent where it came into none.
    pub utc: Option<String>,
    /// Presentation time of the frame in ns.
    pub pts: Option<u64>,
    /// The production line.
    pub line: Option<String>,
    /// Number of the frame on its line, without gaps and never used twice.
    pub sequence: Option<u64>,
    /// The part that the frame shows, as told by property or event.
    pub part_id: Option<String>,
    /// The challenge that the part belongs to: a part known to be bad, shown to prove that the line still finds it.
    pub challenge: Option<String>,
    /// What each `diadfilter` has found, in the order in which the frame passed them.
    pub results: Vec<Inspection>,
}

/// What one `diadfilter` says of a frame.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Inspection {
    /// Name of the element.
    pub element: String,
    /// The verdict. `ng` is confirmed by the last frames if the element is told to confirm.
    pub verdict: Verdict,
    /// The verdict of this frame alone.
    pub frame_verdict: Verdict,
    /// Why the frame is `uninspected` or an `error`, or `not-located` where it is `ng` because its part was not found.
    pub reason: Option<String>,
    /// What was found; absent where the frame was not inspected.
    #[serde(flatten)]
    pub finding: Option<Finding>,
    /// Columns of the frame that the regions are in.
    pub width: u32,
    /// Rows of that frame.
    pub height: u32,
    /// Number of the frame since the element started, from 0.
    pub frame_id: u64,
    /// Digest of the model.
    pub model: String,
    /// What the model computed in: `f32`, `f16` or `bf16`.
    pub precision: String,
    /// How the part lay, where the model aligns parts.
    pub pose: Option<Pose>,
    /// Where the time went.
    pub timing: Timing,
}

/// Where a part lay against where it lies on average.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Pose {
    /// Shift to the right, in pixels of the frame.
    pub dx: f64,
    /// Shift downwards, in pixels of the frame.
    pub dy: f64,
    /// Turn against the clock, in degrees.
    pub turn: f64,
}

impl From<diad::frame::Pose> for Pose {
    fn from(found: diad::frame::Pose) -> Self {
        let diad::frame::Pose { dx, dy, turn, .. } = found;
        Self { dx, dy, turn }
    }
}

/// What the model found.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Finding {
    /// Image score.
    pub score: f32,
    /// Above it a frame is `ng`.
    pub threshold: f32,
    /// Above it a frame is `warn`.
    pub warn_threshold: f32,
    /// Share of held-out good parts with a lower score, 0 to 100.
    pub percentile: f64,
    /// The class.
    pub class: String,
    /// How it was found: `known`, `only`, `chosen`, `unknown-product`, `not-located`.
    pub class_source: ClassSource,
    /// Map value above which a pixel belongs to a region.
    pub pixel_threshold: f32,
    /// Defect regions in pixels of the frame, highest peak first.
    pub regions: Vec<Region>,
}

/// Where the time of a frame went, in ns.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Timing {
    /// Copy, crop and resize on the way in.
    pub pre: u64,
    /// Waiting for the model.
    pub queue: u64,
    /// The model's work on the batch.
    pub infer: u64,
    /// From arrival until the frame was ready to leave.
    pub total: u64,
    /// Frames in the batch.
    pub batch: u32,
}

impl From<&Detection> for Finding {
    fn from(detection: &Detection) -> Self {
        Self {
            score: detection.score,
            threshold: detection.threshold,
            warn_threshold: detection.warn_threshold,
            percentile: detection.percentile,
            class: detection.class.clone(),
            class_source: detection.class_source,
            pixel_threshold: detection.pixel_threshold,
            regions: detection.regions.clone(),
        }
    }
}

/// How bad a verdict is: what nobody has looked at is worse than a warning, and only a defect that was found is worse than an
/// inspection that failed.
fn severity(verdict: Verdict) -> u8 {
    match verdict {
        Verdict::Ok => 0,
        Verdict::Warn => 1,
        Verdict::Uninspected => 2,
        Verdict::Error => 3,
        Verdict::Ng => 4,
    }
}

/// The worse of two verdicts.
pub(crate) fn worse(one: Verdict, other: Verdict) -> Verdict {
    std::cmp::max_by_key(one, other, |verdict| severity(*verdict))
}

impl DiadResult {
    /// That of a frame that no `diadfilter` has seen: such a frame is never good.
    pub fn unseen(pts: Option<gst::ClockTime>) -> Self {
        Self {
            schema: SCHEMA,
            verdict: Verdict::Uninspected,
            utc: None,
            pts: pts.map(gst::ClockTime::nseconds),
            line: None,
            sequence: None,
            part_id: None,
            challenge: None,
            results: Vec::new(),
        }
    }

    /// Adds what one more `diadfilter` says, and judges the frame anew.
    pub fn add(&mut self, inspection: Inspection) {
        self.results.push(inspection);
        let worst = self.results.iter().map(|result| result.verdict).reduce(worse);
        self.verdict = worst.unwrap_or(Verdict::Uninspected);
    }

    /// The inspection that the frame's verdict comes from, the first of several.
    pub fn worst(&self) -> Option<&Inspection> {
        self.results.iter().find(|result| result.verdict == self.verdict)
    }

    /// The fields as a structure called `name` (`DiadResult` as a meta, `diad-result` as a message). Absent values are absent
    /// fields.
    pub fn to_structure(&self, name: &str) -> gst::Structure {
        let mut structure = gst::Structure::new_empty(name);
        self.write(&mut structure);
        structure
    }

    /// Writes the fields into `structure`.
    pub fn write(&self, structure: &mut gst::StructureRef) {
        structure.set("schema", self.schema);
        structure.set("verdict", self.verdict.name());
        structure.set_if_some("utc", self.utc.as_deref());
        structure.set_if_some("pts", self.pts);
        structure.set_if_some("line", self.line.as_deref());
        structure.set_if_some("sequence", self.sequence);
        structure.set_if_some("part-id", self.part_id.as_deref());
        structure.set_if_some("challenge", self.challenge.as_deref());
        structure.set("results", gst::Array::new(self.results.iter().map(|r| r.to_structure().to_send_value())));
    }
}

impl Inspection {
    fn to_structure(&self) -> gst::Structure {
        let mut structure = gst::Structure::new_empty("inspection");
        structure.set("element", &self.element);
        structure.set("verdict", self.verdict.name());
        structure.set("frame-verdict", self.frame_verdict.name());
        structure.set_if_some("reason", self.reason.as_deref());
        if let Some(finding) = &self.finding {
            structure.set("score", f64::from(finding.score));
            structure.set("threshold", f64::from(finding.threshold));
            structure.set("warn-threshold", f64::from(finding.warn_threshold));
            structure.set("percentile", finding.percentile);
            structure.set("class", &finding.class);
            structure.set("class-source", finding.class_source.name());
            structure.set("pixel-threshold", f64::from(finding.pixel_threshold));
            structure.set("regions", gst::Array::new(finding.regions.iter().map(region_structure)));
        }
        structure.set("width", self.width);
        structure.set("height", self.height);
        structure.set("frame-id", self.frame_id);
        structure.set("model", &self.model);
        structure.set("precision", &self.precision);
        if let Some(Pose { dx, dy, turn }) = self.pose {
            structure.set("pose-dx", dx);
            structure.set("pose-dy", dy);
            structure.set("pose-turn", turn);
        }
        structure.set("time-pre", self.timing.pre);
        structure.set("time-queue", self.timing.queue);
        structure.set("time-infer", self.timing.infer);
        structure.set("time-total", self.timing.total);
        structure.set("batch", self.timing.batch);
        structure
    }
}

/// A structure is not a [`DiadResult`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NotAResult(String);

impl std::fmt::Display for NotAResult {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for NotAResult {}

/// Reads fields of a structure; every mistake names the structure and the field.
struct Fields<'a>(&'a gst::StructureRef);

impl<'a> Fields<'a> {
    fn wrong(&self, error: impl std::fmt::Display) -> NotAResult {
        NotAResult(format!("{}: {error}", self.0.name()))
    }

    fn get<T: glib::value::FromValue<'a>>(&self, field: &str) -> Result<T, NotAResult> {
        self.0.get(field).map_err(|error| self.wrong(error))
    }

    /// `None` where the field is absent.
    fn optional<T: glib::value::FromValue<'a>>(&self, field: &str) -> Result<Option<T>, NotAResult> {
        self.0.get_optional(field).map_err(|error| self.wrong(error))
    }

    /// One of several names.
    fn named<T: FromStr<Err: std::fmt::Display>>(&self, field: &str) -> Result<T, NotAResult> {
        self.get::<&str>(field)?.parse().map_err(|error| self.wrong(error))
    }

    fn each<T>(&self, field: &str, read: impl Fn(Fields<'_>) -> Result<T, NotAResult>) -> Result<Vec<T>, NotAResult> {
        let array: gst::Array = self.get(field)?;
        let item = |value: &glib::SendValue| {
            let structure: gst::Structure = value.get().map_err(|error| self.wrong(format!("{field}: {error}")))?;
            read(Fields(&structure))
        };
        array.iter().map(item).collect()
    }
}

impl TryFrom<&gst::StructureRef> for DiadResult {
    type Error = NotAResult;

    fn try_from(structure: &gst::StructureRef) -> Result<Self, NotAResult> {
        let fields = Fields(structure);
        let schema: u32 = fields.get("schema")?;
        if schema != SCHEMA {
            return Err(fields.wrong(format!("schema {schema}, expected {SCHEMA}")));
        }
        Ok(Self {
            schema,
            verdict: fields.named("verdict")?,
            utc: fields.optional("utc")?,
            pts: fields.optional("pts")?,
            line: fields.optional("line")?,
            sequence: fields.optional("sequence")?,
            part_id: fields.optional("part-id")?,
            challenge: fields.optional("challenge")?,
            results: fields.each("results", inspection)?,
        })
    }
}

fn inspection(fields: Fields<'_>) -> Result<Inspection, NotAResult> {
    let finding = if fields.0.has_field("score") { Some(finding(&fields)?) } else { None };
    let pose = |dx| Ok(Pose { dx, dy: fields.get("pose-dy")?, turn: fields.get("pose-turn")? });
    let pose = fields.optional("pose-dx")?.map(pose).transpose()?;
    Ok(Inspection {
        element: fields.get("element")?,
        verdict: fields.named("verdict")?,
        frame_verdict: fields.named("frame-verdict")?,
        reason: fields.optional("reason")?,
        finding,
        width: fields.get("width")?,
        height: fields.get("height")?,
        frame_id: fields.get("frame-id")?,
        model: fields.get("model")?,
        precision: fields.get("precision")?,
        pose,
        timing: Timing {
            pre: fields.get("time-pre")?,
            queue: fields.get("time-queue")?,
            infer: fields.get("time-infer")?,
            total: fields.get("time-total")?,
            batch: fields.get("batch")?,
        },
    })
}

fn finding(fields: &Fields<'_>) -> Result<Finding, NotAResult> {
    Ok(Finding {
        score: fields.get::<f64>("score")? as f32,
        threshold: fields.get::<f64>("threshold")? as f32,
        warn_threshold: fields.get::<f64>("warn-threshold")? as f32,
        percentile: fields.get("percentile")?,
        class: fields.get("class")?,
        class_source: fields.named("class-source")?,
        pixel_threshold: fields.get::<f64>("pixel-threshold")? as f32,
        regions: fields.each("regions", region)?,
    })
}

fn region(fields: Fields<'_>) -> Result<Region, NotAResult> {
    Ok(Region {
        x: fields.get("x")?,
        y: fields.get("y")?,
        width: fields.get("width")?,
        height: fields.get("height")?,
        area: fields.get("area")?,
        peak: fields.get::<f64>("peak")? as f32,
    })
}

fn region_structure(region: &Region) -> glib::SendValue {
    let structure = gst::Structure::builder("region")
        .field("x", region.x)
        .field("y", region.y)
        .field("width", region.width)
        .field("height", region.height)
        .field("area", region.area)
        .field("peak", f64::from(region.peak))
        .build();
    structure.to_send_value()
}

/// The present, as results state it.
pub fn utc_now() -> String {
    utc(now_ms())
}

/// Milliseconds since 1970 of a time as results state it.
pub fn millis_of(text: &str) -> Option<u64> {
    let time = glib::DateTime::from_iso8601(text, None).ok()?;
    u64::try_from(time.to_unix()).ok().map(|s| s * 1000 + u64::try_from(time.microsecond()).unwrap_or(0) / 1000)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn inspection() -> Inspection {
        Inspection {
            element: "cap".into(),
            verdict: Verdict::Warn,
            frame_verdict: Verdict::Ng,
            reason: None,
            finding: Some(Finding {
                score: 1.25,
                threshold: 0.1,
                warn_threshold: 0.05,
                percentile: 99.5,
                class: "Schraube \"M6\"".into(),
                class_source: ClassSource::UnknownProduct,
                pixel_threshold: 3.0,
                regions: vec![Region { x: 1, y: 2, width: 3, height: 4, area: 5, peak: 6.1 }],
            }),
            width: 640,
            height: 480,
            frame_id: u64::MAX,
            model: "ab".into(),
            precision: "f32".into(),
            pose: Some(Pose { dx: 1.5, dy: -2.0, turn: 0.25 }),
            timing: Timing { pre: 1, queue: 2, infer: 3, total: 4, batch: 5 },
        }
    }

    fn uninspected() -> Inspection {
        Inspection {
            verdict: Verdict::Uninspected,
            frame_verdict: Verdict::Uninspected,
            reason: Some("overload".into()),
            finding: None,
            pose: None,
            ..inspection()
        }
    }

    fn result() -> DiadResult {
        let mut result = DiadResult {
            utc: Some(utc_now()),
            line: Some("7".into()),
            sequence: Some(u64::MAX),
            part_id: Some("P-17".into()),
            challenge: Some("red rabbit".into()),
            ..DiadResult::unseen(Some(gst::ClockTime::from_mseconds(40)))
        };
        result.add(inspection());
        result
    }

    #[test]
    fn a_result_survives_a_structure() {
        gst::init().unwrap();
        let mut two = DiadResult::unseen(None);
        two.add(inspection());
        two.add(uninspected());
        for result in [result(), two, DiadResult::unseen(None)] {
            let structure = result.to_structure("diad-result");
            assert_eq!(DiadResult::try_from(structure.as_ref()).unwrap(), result);
            // And the text of gst-launch -m and of logs.
            let text: gst::Structure = structure.to_string().parse().unwrap();
            assert_eq!(DiadResult::try_from(text.as_ref()).unwrap(), result);
        }
    }

    #[test]
    fn the_frame_gets_the_worst_verdict_whatever_the_order() {
        let order = [Verdict::Ok, Verdict::Warn, Verdict::Uninspected, Verdict::Error, Verdict::Ng];
        assert_eq!(DiadResult::unseen(None).verdict, Verdict::Uninspected);
        for (i, first) in order.into_iter().enumerate() {
            for (j, second) in order.into_iter().enumerate() {
                let mut result = DiadResult::unseen(None);
                for verdict in [first, second] {
                    result.add(Inspection { verdict, ..inspection() });
                }
                assert_eq!(result.verdict, order[i.max(j)], "{first} and {second}");
                assert_eq!(result.worst().unwrap().verdict, result.verdict);
            }
        }
    }

    #[test]
    fn what_is_no_result_is_refused_by_field() {
        gst::init().unwrap();
        let mut structure = result().to_structure("DiadResult");
        let refusal = |structure: &gst::Structure| DiadResult::try_from(structure.as_ref()).unwrap_err().to_string();
        structure.set("verdict", "fine");
        assert_eq!(
            refusal(&structure),
            "DiadResult: verdict = \"fine\": expected one of ok, warn, ng, uninspected, error"
        );
        structure.set("schema", 1u32);
        assert_eq!(refusal(&structure), "DiadResult: schema 1, expected 2");
        structure.remove_field("schema");
        assert!(refusal(&structure).contains("schema"));
        let mut structure = result().to_structure("DiadResult");
        structure.set("results", gst::Array::new([gst::Structure::new_empty("inspection").to_send_value()]));
        assert!(refusal(&structure).starts_with("inspection: "));
    }

    #[test]
    fn json_has_the_documented_fields() {
        let json = serde_json::to_value(result()).unwrap();
        assert_eq!((&json["verdict"], &json["schema"]), (&"warn".into(), &2.into()));
        assert_eq!(json["results"][0]["class_source"], "unknown-product");
        assert_eq!(json["results"][0]["regions"][0]["area"], 5);
        assert_eq!(json["results"][0]["timing"]["infer"], 3);
        let utc = json["utc"].as_str().unwrap();
        assert_eq!((utc.len(), &utc[10..11], &utc[19..20], &utc[23..]), (24, "T", ".", "Z"), "{utc}");
    }

    proptest! {
        /// Structures come from other elements, other versions and over networks: any text is a result or refused in words.
        #[test]
        fn no_damage_to_a_structure_panics(
            changes in prop::collection::vec((any::<prop::sample::Index>(), "[ -~]{0,3}"), 1..6),
        ) {
            gst::init().unwrap();
            let mut text = result().to_structure("DiadResult").to_string();
            for (place, new) in changes {
                let at = place.index(text.len());
                if text.is_char_boundary(at) && text.is_char_boundary(at + 1) {
                    text.replace_range(at..at + 1, &new);
                }
            }
            if let Ok(structure) = text.parse::<gst::Structure>() {
                match DiadResult::try_from(structure.as_ref()) {
                    Ok(result) => prop_assert_eq!(result.schema, SCHEMA),
                    Err(error) => prop_assert!(!error.to_string().is_empty()),
                }
            }
        }
    }
}
