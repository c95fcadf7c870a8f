//! What the element says of a frame: one type for metas, bus messages and JSON lines, and the way to `gst::Structure` and
//! back.

use diad::detector::{ClassSource, Detection, Verdict};
use diad::regions::Region;
use gst::glib;
use gst::prelude::*;
use serde::Serialize;

/// Version of the fields, in structures and in JSON.
pub const SCHEMA: u32 = 1;

/// Everything about one frame that passed `diadfilter`.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct DiadResult {
    /// Version of these fields.
    pub schema: u32,
    /// The verdict. `ng` is confirmed by the last frames if the element is told to confirm.
    pub verdict: Verdict,
    /// The verdict of this frame alone.
    pub frame_verdict: Verdict,
    /// Why the frame is `uninspected` or an `error`.
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
    /// Presentation time of the frame in ns.
    pub pts: Option<u64>,
    /// When the frame came in: ns since 1970, UTC.
    pub utc: u64,
    /// The part that the frame shows, as told by property or event.
    pub part_id: Option<String>,
    /// Digest of the model.
    pub model: String,
    /// Where the time went.
    pub timing: Timing,
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
    /// How it was found: `known`, `only`, `chosen`, `unknown-product`.
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

impl DiadResult {
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
        structure.set("verdict", self.verdict.to_string());
        structure.set("frame-verdict", self.frame_verdict.to_string());
        structure.set_if_some("reason", self.reason.as_deref());
        if let Some(finding) = &self.finding {
            structure.set("score", f64::from(finding.score));
            structure.set("threshold", f64::from(finding.threshold));
            structure.set("warn-threshold", f64::from(finding.warn_threshold));
            structure.set("percentile", finding.percentile);
            structure.set("class", &finding.class);
            structure.set("class-source", source_name(finding.class_source));
            structure.set("pixel-threshold", f64::from(finding.pixel_threshold));
            structure.set("regions", gst::Array::new(finding.regions.iter().map(region_structure)));
        }
        structure.set("width", self.width);
        structure.set("height", self.height);
        structure.set("frame-id", self.frame_id);
        structure.set_if_some("pts", self.pts);
        structure.set("utc", self.utc);
        structure.set_if_some("part-id", self.part_id.as_deref());
        structure.set("model", &self.model);
        structure.set("time-pre", self.timing.pre);
        structure.set("time-queue", self.timing.queue);
        structure.set("time-infer", self.timing.infer);
        structure.set("time-total", self.timing.total);
        structure.set("batch", self.timing.batch);
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

impl TryFrom<&gst::StructureRef> for DiadResult {
    type Error = NotAResult;

    fn try_from(structure: &gst::StructureRef) -> Result<Self, NotAResult> {
        let wrong = |error: &dyn std::fmt::Display| NotAResult(format!("{}: {error}", structure.name()));
        let schema: u32 = structure.get("schema").map_err(|e| wrong(&e))?;
        if schema != SCHEMA {
            return Err(wrong(&format!("schema {schema}, expected {SCHEMA}")));
        }
        let text = |field: &str| structure.get::<String>(field).map_err(|e| wrong(&e));
        let number = |field: &str| structure.get::<f64>(field).map_err(|e| wrong(&e));
        let count = |field: &str| structure.get::<u64>(field).map_err(|e| wrong(&e));
        let small = |field: &str| structure.get::<u32>(field).map_err(|e| wrong(&e));
        let optional = |field: &str| structure.get_optional::<String>(field).map_err(|e| wrong(&e));
        let verdict = |field: &str| {
            let name = text(field)?;
            verdict_named(&name).ok_or_else(|| wrong(&format!("{field} = {name:?} is no verdict")))
        };
        let finding = if structure.has_field("score") {
            let source = text("class-source")?;
            let regions = structure.get::<gst::Array>("regions").map_err(|e| wrong(&e))?;
            Some(Finding {
                score: number("score")? as f32,
                threshold: number("threshold")? as f32,
                warn_threshold: number("warn-threshold")? as f32,
                percentile: number("percentile")?,
                class: text("class")?,
                class_source: source_named(&source)
                    .ok_or_else(|| wrong(&format!("class-source = {source:?} is none")))?,
                pixel_threshold: number("pixel-threshold")? as f32,
                regions: regions.iter().map(region).collect::<Option<_>>().ok_or_else(|| wrong(&"a region is none"))?,
            })
        } else {
            None
        };
        Ok(Self {
            schema,
            verdict: verdict("verdict")?,
            frame_verdict: verdict("frame-verdict")?,
            reason: optional("reason")?,
            finding,
            width: small("width")?,
            height: small("height")?,
            frame_id: count("frame-id")?,
            pts: structure.get_optional("pts").map_err(|e| wrong(&e))?,
            utc: count("utc")?,
            part_id: optional("part-id")?,
            model: text("model")?,
            timing: Timing {
                pre: count("time-pre")?,
                queue: count("time-queue")?,
                infer: count("time-infer")?,
                total: count("time-total")?,
                batch: small("batch")?,
            },
        })
    }
}

const VERDICTS: [Verdict; 5] = [Verdict::Ok, Verdict::Warn, Verdict::Ng, Verdict::Uninspected, Verdict::Error];
const SOURCES: [ClassSource; 4] =
    [ClassSource::Known, ClassSource::Only, ClassSource::Chosen, ClassSource::UnknownProduct];

fn verdict_named(name: &str) -> Option<Verdict> {
    VERDICTS.into_iter().find(|verdict| verdict.to_string() == name)
}

/// As in JSON.
fn source_name(source: ClassSource) -> &'static str {
    match source {
        ClassSource::Known => "known",
        ClassSource::Only => "only",
        ClassSource::Chosen => "chosen",
        ClassSource::UnknownProduct => "unknown-product",
    }
}

fn source_named(name: &str) -> Option<ClassSource> {
    SOURCES.into_iter().find(|source| source_name(*source) == name)
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

fn region(value: &glib::SendValue) -> Option<Region> {
    let structure = value.get::<gst::Structure>().ok()?;
    Some(Region {
        x: structure.get("x").ok()?,
        y: structure.get("y").ok()?,
        width: structure.get("width").ok()?,
        height: structure.get("height").ok()?,
        area: structure.get("area").ok()?,
        peak: structure.get::<f64>("peak").ok()? as f32,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn result() -> DiadResult {
        DiadResult {
            schema: SCHEMA,
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
            pts: Some(40_000_000),
            utc: 1_700_000_000_000_000_000,
            part_id: Some("P-17".into()),
            model: "ab".into(),
            timing: Timing { pre: 1, queue: 2, infer: 3, total: 4, batch: 5 },
        }
    }

    #[test]
    fn a_result_survives_a_structure() {
        gst::init().unwrap();
        let uninspected = DiadResult {
            verdict: Verdict::Uninspected,
            frame_verdict: Verdict::Uninspected,
            reason: Some("overload".into()),
            finding: None,
            pts: None,
            part_id: None,
            ..result()
        };
        for result in [result(), uninspected] {
            let structure = result.to_structure("diad-result");
            assert_eq!(DiadResult::try_from(structure.as_ref()).unwrap(), result);
            // And the text of gst-launch -m and of logs.
            let text: gst::Structure = structure.to_string().parse().unwrap();
            assert_eq!(DiadResult::try_from(text.as_ref()).unwrap(), result);
        }
    }

    #[test]
    fn what_is_no_result_is_refused_by_field() {
        gst::init().unwrap();
        let mut structure = result().to_structure("DiadResult");
        structure.set("verdict", "fine");
        assert!(DiadResult::try_from(structure.as_ref()).unwrap_err().to_string().contains("verdict = \"fine\""));
        structure.set("schema", 2u32);
        assert!(DiadResult::try_from(structure.as_ref()).unwrap_err().to_string().contains("schema 2"));
        structure.remove_field("schema");
        assert!(DiadResult::try_from(structure.as_ref()).is_err());
    }

    #[test]
    fn json_has_the_documented_fields() {
        let json = serde_json::to_value(result()).unwrap();
        assert_eq!(json["verdict"], "warn");
        assert_eq!(json["class_source"], "unknown-product");
        assert_eq!(json["regions"][0]["area"], 5);
        assert_eq!(json["timing"]["infer"], 3);
    }
}
