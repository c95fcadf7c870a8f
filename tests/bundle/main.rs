//! The model file: what comes back is what went in, and whatever is wrong is refused with a reason.

#[path = "../fuzz/damage.rs"]
mod damage;
mod fuzz;
mod tensors;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};
use diad::bundle::{self, BackboneCard, Card, ClassCard, ModelFile, SCHEMA, TensorSpec, TrainingCard};
use diad::calibrate::{GoodScores, conformal};
use diad::config::Config;
use diad::error::{Error, Result};
use half::f16;
use proptest::prelude::*;
use safetensors::Dtype;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

/// A folder with one path in it, for files to try.
struct Scratch {
    folder: tempfile::TempDir,
}

impl Scratch {
    fn new() -> Self {
        Self { folder: tempfile::tempdir().unwrap() }
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join("m.diad")
    }

    fn names(&self) -> Vec<String> {
        let entries = std::fs::read_dir(self.folder.path()).unwrap();
        let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    /// What becomes of a file with these bytes.
    fn try_bytes(&self, bytes: &[u8]) -> Result<ModelFile> {
        let path = self.path();
        std::fs::write(&path, bytes).unwrap();
        bundle::load(&path, expected)
    }

    /// A file with these bytes is refused for `reason`.
    #[track_caller]
    fn refused(&self, bytes: &[u8], reason: &str) {
        let message = refusal(&self.path(), self.try_bytes(bytes));
        assert!(message.contains(reason), "got {message:?}\nexpected {reason:?}");
    }
}

/// The message of a refusal, which names the file, is short and cannot drive a terminal.
#[track_caller]
fn refusal<T>(path: &Path, result: Result<T>) -> String {
    let error = result.err().unwrap();
    assert!(matches!(error, Error::Model { .. } | Error::Io { .. }), "{error:?}");
    assert_eq!(error.exit_code(), 1);
    let message = error.to_string();
    let reason = message.strip_prefix(&format!("{}: ", path.display())).unwrap();
    assert!(!reason.is_empty() && reason.len() < 5000 && !reason.chars().any(char::is_control), "{message:?}");
    message
}

fn class(name: &str, scores: Vec<f32>, target: f64) -> ClassCard {
    let ng = conformal(&scores, target).unwrap();
    let warn = conformal(&scores, 2.0 * target).unwrap();
    ClassCard {
        shape: None,
        name: name.into(),
        train_images: 100,
        calibration_scores: scores,
        calibration_groups: Vec::new(),
        calibration: None,
        ng,
        warn,
        pixel_threshold: 3.5,
        prototype_limit: 1.5,
        measured: BTreeMap::new(),
        known_defects: None,
        images: Vec::new(),
        unknown: BTreeMap::new(),
    }
}

fn card() -> Card {
    Card {
        schema: SCHEMA,
        tool: "diad 0.1.0".into(),
        config: Config::default(),
        backbone: Some(BackboneCard { name: "efficientnet-lite0".into(), sha256: "b".repeat(64) }),
        classes: vec![
            class("bottle", (0..40).map(|i| i as f32 * 0.1 - 0.7).collect(), 0.05),
            class("Schraube \"M6\"", vec![-1.5, 1e-20, 0.25, 0.25, 3e20], 0.2),
        ],
        training: TrainingCard { images: 245, data_sha256: "d".repeat(64), seed: u64::MAX, steps: 3500 },
        tensors_sha256: String::new(),
        unknown: BTreeMap::new(),
        read_from: bundle::ReadFrom::default(),
    }
}

/// Collects in ascending order.
struct Sorted(Vec<f32>);

impl FromIterator<f32> for Sorted {
    fn from_iter<I: IntoIterator<Item = f32>>(scores: I) -> Self {
        Self(diad::calibrate::sorted(scores.into_iter().zip(0..).collect()).unwrap().0)
    }
}

fn tensors() -> BTreeMap<String, Tensor> {
    let cpu = &Device::Cpu;
    let half: Vec<_> = [1.0, -2.5, 65504.0].map(f16::from_f32).into();
    BTreeMap::from([
        ("a.half".into(), Tensor::from_vec(half, 3, cpu).unwrap()),
        ("b.weight".into(), Tensor::from_vec(vec![0.5f32, -1.0, 2.0, 3.25, -0.0, 1e-40], (2, 3), cpu).unwrap()),
        ("c.scale".into(), Tensor::from_vec(vec![7.0f32], (), cpu).unwrap()),
    ])
}

fn spec(name: &str, dtype: Dtype, shape: &[usize]) -> TensorSpec {
    TensorSpec { name: name.into(), dtype, shape: shape.into() }
}

fn expected(_: &Card) -> Result<Vec<TensorSpec>> {
    Ok(vec![spec("c.scale", Dtype::F32, &[]), spec("b.weight", Dtype::F32, &[2, 3]), spec("a.half", Dtype::F16, &[3])])
}

/// The bytes of a file with nothing wrong.
fn good() -> Vec<u8> {
    let scratch = Scratch::new();
    bundle::save(&scratch.path(), &card(), &tensors()).unwrap();
    std::fs::read(scratch.path()).unwrap()
}

/// Writes model files by the description of the format, with whatever is wanted wrong in them.
struct Forge {
    card: Value,
    /// Name, dtype, shape, values: in the order of the file.
    tensors: Vec<(String, String, Value, Vec<u8>)>,
}

impl Forge {
    fn new() -> Self {
        let floats = |values: &[f32]| values.iter().flat_map(|x| x.to_le_bytes()).collect();
        let halves = [1.0, -2.5, 65504.0].iter().flat_map(|&x| f16::from_f32(x).to_le_bytes()).collect();
        let mut forge = Self {
            card: serde_json::to_value(card()).unwrap(),
            tensors: vec![
                ("b.weight".into(), "F32".into(), json!([2, 3]), floats(&[0.5, -1.0, 2.0, 3.25, -0.0, 1e-40])),
                ("c.scale".into(), "F32".into(), json!([]), floats(&[7.0])),
                ("a.half".into(), "F16".into(), json!([3]), halves),
            ],
        };
        forge.card["tensors_sha256"] = forge.digest().into();
        forge
    }

    fn digest(&self) -> String {
        let mut sorted: Vec<_> = self.tensors.iter().collect();
        sorted.sort_by_key(|tensor| &tensor.0);
        let mut hash = Sha256::new();
        for (name, dtype, shape, values) in sorted {
            let shape: Vec<u64> = serde_json::from_value(shape.clone()).unwrap();
            hash.update((name.len() as u64).to_le_bytes());
            hash.update(format!("{name}{dtype}\0"));
            hash.update((shape.len() as u64).to_le_bytes());
            shape.iter().for_each(|dimension| hash.update(dimension.to_le_bytes()));
            hash.update(values);
        }
        hex(&hash.finalize())
    }

    /// The header's entries for the tensors.
    fn entries(&self) -> Vec<(String, Value)> {
        let mut end = 0;
        let mut entry = |(name, dtype, shape, values): &(String, String, Value, Vec<u8>)| {
            let start = end;
            end += values.len();
            (name.clone(), json!({"dtype": dtype, "shape": shape, "data_offsets": [start, end]}))
        };
        self.tensors.iter().map(&mut entry).collect()
    }

    fn metadata(&self) -> Value {
        let card = self.card.to_string();
        json!({"diad.sha256": hex(&Sha256::digest(card.as_bytes())), "diad": card})
    }

    fn data(&self) -> Vec<u8> {
        self.tensors.iter().flat_map(|(_, _, _, values)| values.clone()).collect()
    }

    fn file(&self) -> Vec<u8> {
        file(Some(self.metadata()), &self.entries(), &self.data())
    }
}

fn file(metadata: Option<Value>, entries: &[(String, Value)], data: &[u8]) -> Vec<u8> {
    let metadata = metadata.map(|metadata| ("__metadata__".to_owned(), metadata));
    let items: Vec<_> = metadata.iter().chain(entries).map(|(key, value)| format!("{}:{value}", json!(key))).collect();
    raw_file(format!("{{{}}}", items.join(",")).as_bytes(), data)
}

fn raw_file(header: &[u8], data: &[u8]) -> Vec<u8> {
    [&(header.len() as u64).to_le_bytes(), header, data].concat()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A file whose card has `value` at the JSON pointer `key` is refused for `reason`.
#[track_caller]
fn card_refused(key: &str, value: Value, reason: &str) {
    let mut forge = Forge::new();
    *forge.card.pointer_mut(key).unwrap() = value;
    Scratch::new().refused(&forge.file(), reason);
}

/// A file whose header has these entries over the usual data is refused for `reason`.
#[track_caller]
fn entries_refused(change: impl FnOnce(&mut Vec<(String, Value)>), reason: &str) {
    let forge = Forge::new();
    let mut entries = forge.entries();
    change(&mut entries);
    Scratch::new().refused(&file(Some(forge.metadata()), &entries, &forge.data()), reason);
}

// What comes back is what went in.

#[test]
fn what_is_saved_is_what_is_loaded() {
    let scratch = Scratch::new();
    bundle::save(&scratch.path(), &card(), &tensors()).unwrap();
    assert_eq!(scratch.names(), ["m.diad"]);
    let loaded = bundle::load(&scratch.path(), expected).unwrap();
    assert_eq!(Card { tensors_sha256: String::new(), ..loaded.card.clone() }, card());
    assert_eq!(loaded.tensors.len(), 3);
    for (name, tensor) in tensors() {
        let back = &loaded.tensors[&name];
        assert_eq!((back.dtype(), back.dims()), (tensor.dtype(), tensor.dims()));
        let bits = |tensor: &Tensor| -> Vec<u32> {
            let flat = tensor.flatten_all().unwrap().to_dtype(DType::F32).unwrap();
            flat.to_vec1::<f32>().unwrap().into_iter().map(f32::to_bits).collect()
        };
        assert_eq!(bits(back), bits(&tensor), "{name}");
    }
    assert_eq!(bundle::read_card(&scratch.path()).unwrap(), loaded.card);
    let contents = bundle::inspect(&scratch.path()).unwrap();
    assert_eq!(contents.card, loaded.card);
    assert_eq!(contents.bytes, std::fs::metadata(scratch.path()).unwrap().len());
    let names: Vec<_> = contents.tensors.iter().map(|spec| format!("{} {spec}", spec.name)).collect();
    assert_eq!(names, ["b.weight F32 [2, 3]", "c.scale F32 []", "a.half F16 [3]"]);
}

/// ```python
/// import hashlib, numpy as np, struct
/// h = hashlib.sha256()
/// for name, a in sorted({
///     "a.half": np.array([1, -2.5, 65504], "<f2"),
///     "b.weight": np.array([[.5, -1, 2], [3.25, -0., 1e-40]], "<f4"),
///     "c.scale": np.array(7, "<f4"),
/// }.items()):
///     dtype = {"float16": b"F16", "float32": b"F32"}[a.dtype.name]
///     h.update(struct.pack("<Q", len(name)) + name.encode() + dtype + b"\0")
///     h.update(struct.pack("<Q", a.ndim) + struct.pack(f"<{a.ndim}Q", *a.shape) + a.tobytes())
/// print(h.hexdigest())
/// ```
#[test]
fn tensors_digest_equals_the_one_made_in_python() {
    let scratch = Scratch::new();
    bundle::save(&scratch.path(), &card(), &tensors()).unwrap();
    let digest = bundle::read_card(&scratch.path()).unwrap().tensors_sha256;
    assert_eq!(digest, "321f96da69f8d848fefde8a02931c3f5043910a7b9ca9d55c5657b53747bc69a");
    assert_eq!(Forge::new().digest(), digest);
}

#[test]
fn any_safetensors_reader_opens_it() {
    let bytes = good();
    let (header_bytes, metadata) = safetensors::SafeTensors::read_metadata(&bytes).unwrap();
    assert_eq!(header_bytes % 8, 0, "the data are aligned");
    assert!(metadata.metadata().as_ref().unwrap()["diad"].contains("\"schema\":2"));
    let read = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    assert_eq!(read.len(), 3);
    for (name, _, shape, values) in Forge::new().tensors {
        let view = read.tensor(&name).unwrap();
        assert_eq!((json!(view.shape()), view.data()), (shape, values.as_slice()), "{name}");
    }
}

#[test]
fn same_content_is_the_same_file() {
    assert_eq!(good(), good());
    // Values laid out in another way in memory are the same content.
    let scratch = Scratch::new();
    let mut turned = tensors();
    let weight = turned["b.weight"].t().unwrap().contiguous().unwrap().t().unwrap();
    assert!(!weight.is_contiguous());
    turned.insert("b.weight".into(), weight);
    bundle::save(&scratch.path(), &card(), &turned).unwrap();
    assert_eq!(std::fs::read(scratch.path()).unwrap(), good());
    // So is what was read back.
    let ModelFile { card, tensors } = bundle::load(&scratch.path(), expected).unwrap();
    bundle::save(&scratch.path(), &card, &tensors.into_iter().collect()).unwrap();
    assert_eq!(std::fs::read(scratch.path()).unwrap(), good());
}

#[test]
fn digest_names_the_whole_model() {
    let scratch = Scratch::new();
    let digest = |card: &Card, tensors: &BTreeMap<String, Tensor>| {
        bundle::save(&scratch.path(), card, tensors).unwrap();
        bundle::read_card(&scratch.path()).unwrap().digest()
    };
    let usual = digest(&card(), &tensors());
    assert_eq!((digest(&card(), &tensors()), usual.len()), (usual.clone(), 64));
    let mut other = card();
    other.classes[0].pixel_threshold = 3.75;
    assert_ne!(digest(&other, &tensors()), usual);
    let mut other = tensors();
    other.insert("c.scale".into(), Tensor::new(8f32, &Device::Cpu).unwrap());
    assert_ne!(digest(&card(), &other), usual);
}

#[test]
fn forged_file_without_a_mistake_is_taken() {
    // Else every refusal below might be for another reason than the one meant.
    let loaded = Scratch::new().try_bytes(&Forge::new().file()).unwrap();
    assert_eq!(Card { tensors_sha256: String::new(), ..loaded.card }, card());
}

#[test]
fn keys_that_a_configuration_does_not_have_are_at_their_defaults() {
    let mut forge = Forge::new();
    forge.card["config"].as_object_mut().unwrap().remove("detection");
    assert_eq!(Scratch::new().try_bytes(&forge.file()).unwrap().card.config, Config::default());
}

// Files that are something else.

#[test]
fn files_that_are_no_model_are_named_for_what_they_are() {
    let scratch = Scratch::new();
    for (start, kind) in [
        (&b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR"[..], "is a PNG image"),
        (b"\xff\xd8\xff\xe0\0\x10JFIF\0\x01\x01\0\0\x01", "is a JPEG image"),
        (b"\x1f\x8b\x08\0\0\0\0\0\0\x03\xed\xbd\x07", "is a gzip archive (unpack it first)"),
        (b"PK\x03\x04\0\0\x08\x08\0\0\0\0\0\0\0\0", "is a zip archive or a PyTorch file"),
        (b"[input]\nsize = 256\n", "is a text file"),
        (b"{\"schema\": 1, \"classes\": []}", "is a text file"),
        (b"x", "is a text file"),
        (b"\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0", "is no safetensors file"),
        (b"", "is empty"),
    ] {
        scratch.refused(start, &format!("{kind}, expected a model file (.diad)"));
    }
    let folder = scratch.folder.path();
    assert!(refusal(folder, bundle::read_card(folder)).contains("is a folder, expected a model file"));
    let missing = folder.join("missing.diad");
    assert!(refusal(&missing, bundle::read_card(&missing)).contains("cannot read: "));
    #[cfg(unix)]
    for device in ["/dev/null", "/dev/zero"] {
        assert!(refusal(Path::new(device), bundle::read_card(Path::new(device))).contains("is not a regular file"));
    }
    let plain = file(None, &Forge::new().entries(), &Forge::new().data());
    scratch.refused(&plain, "is a safetensors file without a diad card (metadata key \"diad\")");
    let foreign = file(Some(json!({"format": "pt"})), &Forge::new().entries(), &Forge::new().data());
    scratch.refused(&foreign, "is a safetensors file without a diad card (metadata key \"diad\")");
}

#[test]
fn newer_schema_is_refused_by_name_whatever_else_is_new() {
    let mut forge = Forge::new();
    forge.card = json!({"schema": 7, "everything": "different"});
    forge.tensors[0].1 = "BF16".into();
    Scratch::new()
        .refused(&forge.file(), "was written by a newer diad (schema 7, this one reads up to 2); update diad");
    card_refused("/schema", json!(0), "card: schema = 0: expected 1 to 2");
    card_refused("/schema", json!(-1), "card: invalid value: integer `-1`");
    card_refused("/schema", json!("1"), "card: invalid type: string \"1\"");
    card_refused("/schema", json!(u64::MAX), "was written by a newer diad (schema 18446744073709551615");
}

// Cards that cannot be.

#[test]
fn card_that_contradicts_itself_is_refused() {
    // An unknown key may be one of a later version that an older one can do without; it is kept. A key of the configuration is not.
    let mut forge = Forge::new();
    forge.card["surprise"] = json!({"a": [1, 2.5]});
    forge.card["classes"][0]["surprise"] = json!(1);
    let scratch = Scratch::new();
    std::fs::write(scratch.path(), forge.file()).unwrap();
    let read = bundle::read_card(&scratch.path()).unwrap();
    assert_eq!((&read.unknown["surprise"]["a"][1], &read.classes[0].unknown["surprise"]), (&json!(2.5), &json!(1)));
    let mut forge = Forge::new();
    forge.card["config"]["surprise"] = json!(1);
    Scratch::new().refused(&forge.file(), "card: unknown field `surprise`");
    let mut forge = Forge::new();
    forge.card.as_object_mut().unwrap().remove("classes");
    Scratch::new().refused(&forge.file(), "card: missing field `classes`");

    card_refused("/tool", json!(""), "tool = \"\": expected a name");
    card_refused(
        "/config/input/size",
        json!(100),
        "config.input.size = 100: expected a multiple of 32 from 64 to 4096, or two of them as [width, height]",
    );
    card_refused("/config/denoiser/heads", json!(3), "config.denoiser.width = 128, denoiser.heads = 3: expected width");
    card_refused("/config/features/dim", json!("128"), "card: invalid type: string \"128\", expected usize");
    card_refused("/config/training/learning_rate", json!(null), "card: invalid type: null, expected f64");
    card_refused("/backbone/name", json!("resnet18"), "backbone.name = \"resnet18\": expected \"efficientnet-lite0\"");
    card_refused("/backbone/sha256", json!("B".repeat(64)), "expected 64 lowercase hexadecimal digits");
    card_refused("/training/data_sha256", json!("d"), "training.data_sha256 = \"d\": expected 64 lowercase");
    card_refused("/tensors_sha256", json!(""), "tensors_sha256 = \"\": expected 64 lowercase");
    card_refused("/training/images", json!(-1), "card: invalid value: integer `-1`, expected usize");
    card_refused("/classes", json!([]), "classes = 0 classes: expected 1 to 4096");
}

#[test]
fn class_that_cannot_be_is_refused() {
    card_refused("/classes/1/name", json!("bottle"), "classes[1].name = \"bottle\": expected a name of its own");
    for name in ["", "  ", "a\u{1b}[2Jb", "a\nb", &"x".repeat(256)] {
        card_refused("/classes/0/name", json!(name), "expected a name of 1 to 255 bytes without control characters");
    }
    card_refused("/classes/0/calibration_scores/3", json!(1e39), "card: number out of range");
    card_refused("/classes/0/calibration_scores/3", json!(null), "card: invalid type: null, expected f32");
    card_refused("/classes/0/calibration_scores/3", json!(9), "classes[0].calibration_scores[4] = -0.");
    card_refused(
        "/classes/0/calibration_scores",
        json!([]),
        "classes[0].calibration_scores = []: expected at least one",
    );
    card_refused("/classes/0/pixel_threshold", json!(-1e39), "card: number out of range");
    card_refused(
        "/classes/0/prototype_limit",
        json!(0),
        "classes[0].prototype_limit = 0: expected a finite number above 0",
    );
    card_refused("/classes/0/ng/value", json!(3.0), "classes[0].ng.value = 3: expected 3.1, calibration score 39");
    card_refused("/classes/0/ng/rank", json!(0), "classes[0].ng.rank = 0: expected 1 to 40");
    card_refused("/classes/0/ng/rank", json!(41), "classes[0].ng.rank = 41: expected 1 to 40");
    card_refused("/classes/0/ng/n", json!(41), "classes[0].ng.n = 41: expected 40, the number of calibration scores");
    card_refused(
        "/classes/0/warn/interval",
        json!([0.5, 0.1]),
        "classes[0].warn.interval = [0.5, 0.1]: expected 0 <= low",
    );
    card_refused(
        "/classes/0/ng/false_reject_rate",
        json!(0),
        "classes[0].ng.false_reject_rate = 0: expected a number x",
    );
    card_refused(
        "/classes/0/ng/false_reject_rate",
        json!(0.02),
        "classes[0].ng.false_reject_rate = 0.02: expected a rate that rank 39 of 40 scores keeps",
    );
    // Warning at a higher rank than rejecting.
    let class = Forge::new().card["classes"][0].clone();
    let mut forge = Forge::new();
    forge.card["classes"][0]["ng"] = class["warn"].clone();
    forge.card["classes"][0]["warn"] = class["ng"].clone();
    Scratch::new().refused(&forge.file(), "classes[0].warn.rank = 39: expected at most 37, the rank of ng");
}

#[test]
fn mistakes_of_a_card_are_told_together_but_not_without_end() {
    let mut card = card();
    card.tensors_sha256 = "0".repeat(64);
    assert_eq!(card.mistakes(), Vec::<String>::new());
    card.tool.clear();
    card.config.training.steps = 0;
    card.classes[1].name.clear();
    assert_eq!(
        card.mistakes(),
        [
            "tool = \"\": expected a name of 1 to 255 bytes without control characters",
            "config.training.steps = 0: expected an integer from 1 to 10000000",
            "classes[1].name = \"\": expected a name of 1 to 255 bytes without control characters",
        ]
    );
    card.classes = vec![card.classes[1].clone(); 4096];
    let mistakes = card.mistakes();
    assert_eq!((mistakes.len(), mistakes[10].as_str()), (11, "and 8183 more"));
    card.classes.push(card.classes[0].clone());
    assert!(card.mistakes().contains(&"classes = 4097 classes: expected 1 to 4096".to_owned()));
}
