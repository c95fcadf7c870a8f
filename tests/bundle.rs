//! The model file: what comes back is what went in, and whatever is wrong is refused with a reason.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking, in its helpers too")]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};
use diad::bundle::{self, BackboneCard, Card, ClassCard, ModelFile, SCHEMA, TensorSpec, TrainingCard};
use diad::calibrate::{Threshold, conformal};
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
    ClassCard { name: name.into(), train_images: 100, calibration_scores: scores, ng, warn, pixel_threshold: 3.5, prototype_limit: 1.5 }
}

fn card() -> Card {
    Card {
        schema: SCHEMA,
        tool: "diad 0.1.0".into(),
        config: Config::default(),
        backbone: BackboneCard { name: "efficientnet-lite0".into(), sha256: "b".repeat(64) },
        classes: vec![
            class("bottle", (0..40).map(|i| i as f32 * 0.1 - 0.7).collect(), 0.05),
            class("Schraube \"M6\"", vec![-1.5, 1e-20, 0.25, 0.25, 3e20], 0.2),
        ],
        training: TrainingCard { images: 245, data_sha256: "d".repeat(64), seed: u64::MAX, steps: 3500 },
        tensors_sha256: String::new(),
    }
}

/// Collects in ascending order.
struct Sorted(Vec<f32>);

impl FromIterator<f32> for Sorted {
    fn from_iter<I: IntoIterator<Item = f32>>(scores: I) -> Self {
        Self(diad::calibrate::sorted(scores.into_iter().collect()).unwrap())
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
    assert!(metadata.metadata().as_ref().unwrap()["diad"].contains("\"schema\":1"));
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
        .refused(&forge.file(), "was written by a newer diad (schema 7, this one reads up to 1); update diad");
    card_refused("/schema", json!(0), "card: schema = 0: expected 1 to 1");
    card_refused("/schema", json!(-1), "card: invalid value: integer `-1`");
    card_refused("/schema", json!("1"), "card: invalid type: string \"1\"");
    card_refused("/schema", json!(u64::MAX), "was written by a newer diad (schema 18446744073709551615");
}

// Cards that cannot be.

#[test]
fn card_that_contradicts_itself_is_refused() {
    let mut forge = Forge::new();
    forge.card["surprise"] = json!(1);
    Scratch::new().refused(&forge.file(), "card: unknown field `surprise`");
    let mut forge = Forge::new();
    forge.card.as_object_mut().unwrap().remove("classes");
    Scratch::new().refused(&forge.file(), "card: missing field `classes`");

    card_refused("/tool", json!(""), "tool = \"\": expected a name");
    card_refused(
        "/config/input/size",
        json!(100),
        "config.input.size = 100: expected a multiple of 32 from 64 to 1024",
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
    card_refused(
        "/classes/0/calibration_scores/3",
        json!(1e39),
        "classes[0].calibration_scores[3] = inf: expected a finite",
    );
    card_refused("/classes/0/calibration_scores/3", json!(null), "card: invalid type: null, expected f32");
    card_refused(
        "/classes/0/calibration_scores/3",
        json!(9),
        "classes[0].calibration_scores[4] = -0.3: expected at least 9",
    );
    card_refused(
        "/classes/0/calibration_scores",
        json!([]),
        "classes[0].calibration_scores = []: expected at least one",
    );
    card_refused("/classes/0/pixel_threshold", json!(-1e39), "classes[0].pixel_threshold = -inf: expected a finite");
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

// Tensors that do not fit.

#[test]
fn tensors_that_do_not_fit_the_card_are_told_one_by_one() {
    let scratch = Scratch::new();
    std::fs::write(scratch.path(), good()).unwrap();
    let refused =
        |wanted: Vec<TensorSpec>| refusal(&scratch.path(), bundle::load(&scratch.path(), |_| Ok(wanted.clone())));
    let message = refused(vec![
        spec("a.half", Dtype::F32, &[3]),
        spec("b.weight", Dtype::F32, &[3, 2]),
        spec("d.bias", Dtype::F32, &[4]),
    ]);
    assert!(
        message.ends_with(
            "tensor \"a.half\" is F16 [3], expected F32 [3]; \
             tensor \"b.weight\" is F32 [2, 3], expected F32 [3, 2]; \
             tensor \"d.bias\" is missing, expected F32 [4]; \
             tensor \"c.scale\" (F32 []) is unexpected, this model has none of that name"
        ),
        "{message}"
    );
    let message = refused((0..100).map(|i| spec(&format!("t{i}"), Dtype::F32, &[1])).collect());
    assert!(message.ends_with("; and 95 more"), "{message}");
    // What `expected` has to say is passed on.
    let error = bundle::load(&scratch.path(), |_| Err(Error::Usage("no such backbone".into()))).unwrap_err();
    assert_eq!(error.to_string(), "no such backbone");
}

#[test]
fn expected_sees_the_card() {
    let scratch = Scratch::new();
    std::fs::write(scratch.path(), good()).unwrap();
    let model = bundle::load(&scratch.path(), |card| {
        assert_eq!(card.classes.len(), 2);
        expected(card)
    });
    assert!(model.is_ok());
}

#[test]
fn layout_that_is_not_the_one_of_the_format_is_refused() {
    let entry = |dtype: &str, shape: Value, start: u64, end: u64| json!({"dtype": dtype, "shape": shape, "data_offsets": [start, end]});
    entries_refused(
        |e| e[0].1 = entry("I64", json!([3]), 0, 24),
        "tensor \"b.weight\" is \"I64\", expected F32 or F16",
    );
    entries_refused(|e| e[0].1 = entry("F16", json!([12]), 0, 24), "tensor \"c.scale\" comes after \"b.weight\"");
    entries_refused(
        |e| e[0].1 = entry("F32", json!([2, 4]), 0, 24),
        "lies at bytes (0, 24), expected (0, 32) for F32 [2, 4]",
    );
    entries_refused(
        |e| e[0].1 = entry("F32", json!([2, 3]), 4, 28),
        "lies at bytes (4, 28), expected (0, 24) for F32 [2, 3]",
    );
    entries_refused(
        |e| e[1].1 = entry("F32", json!([]), 20, 24),
        "lies at bytes (20, 24), expected (24, 28) for F32 []",
    );
    entries_refused(
        |e| e[1].1 = entry("F32", json!([]), 28, 24),
        "lies at bytes (28, 24), expected (24, 28) for F32 []",
    );
    entries_refused(
        |e| e[0].1 = entry("F32", json!([0, 3]), 0, 0),
        "has shape [0, 3], expected at most 8 dimensions, none 0",
    );
    entries_refused(|e| e[0].1 = entry("F32", json!(vec![1; 9]), 0, 4), "expected at most 8 dimensions, none 0");
    entries_refused(
        |e| e[0].1 = entry("F32", json!([1u64 << 33, 1u64 << 33]), 0, 24),
        "tensor \"b.weight\" is too large",
    );
    entries_refused(|e| e[0].1 = entry("F32", json!([u64::MAX]), 0, 24), "tensor \"b.weight\" is too large");
    entries_refused(
        |e| e[0].1 = entry("F32", json!([-1]), 0, 24),
        "its header is not that of a safetensors file: invalid value",
    );
    entries_refused(
        |e| e[0].1 = entry("F32", json!([1e3]), 0, 24),
        "its header is not that of a safetensors file: invalid type",
    );
    entries_refused(|e| e[0].1 = json!({"dtype": "F32", "shape": [6]}), "missing field `data_offsets`");
    entries_refused(|e| e[0].1 = json!(null), "its header is not that of a safetensors file");
    entries_refused(|e| e[0].0 = String::new(), "tensor name \"\": expected 1 to 255 bytes");
    entries_refused(|e| e[0].0 = "a\u{1b}[2J".into(), "tensor name \"a\\u{1b}[2J\": expected 1 to 255 bytes");
    entries_refused(|e| e.swap(0, 1), "tensor \"c.scale\" lies at bytes (24, 28), expected (0, 4)");
    entries_refused(|e| e[1].0 = "b.weight".into(), "tensor \"b.weight\" comes after \"b.weight\"");
    entries_refused(
        |e| e[1].0 = "a".into(),
        "tensor \"a\" comes after \"b.weight\", expected F32 before F16 and names",
    );
    entries_refused(
        |e| _ = e.pop(),
        "has bytes that belong to no tensor: the tensors need 28 bytes, 34 follow the header",
    );
    entries_refused(|e| e[2].1 = entry("F16", json!([4]), 28, 36), "is cut off: the tensors need 36 bytes, 34 follow");
    entries_refused(|e| e.push(("__metadata__".into(), json!({}))), "duplicate field `__metadata__`");
}

#[test]
fn tensors_in_another_order_are_refused_even_if_all_is_there() {
    let mut forge = Forge::new();
    forge.tensors.swap(0, 1);
    Scratch::new().refused(&forge.file(), "tensor \"b.weight\" comes after \"c.scale\"");
    let mut forge = Forge::new();
    forge.tensors.rotate_right(1);
    Scratch::new().refused(&forge.file(), "tensor \"b.weight\" comes after \"a.half\"");
}

#[test]
fn changed_values_are_damage() {
    let mut forge = Forge::new();
    forge.tensors[0].3[0] ^= 1;
    Scratch::new().refused(&forge.file(), "is damaged: the tensors' sha256 is ");
    // Values that moved from one tensor to another.
    let mut forge = Forge::new();
    forge.tensors[0].3.rotate_left(4);
    Scratch::new().refused(&forge.file(), "is damaged: the tensors' sha256 is ");
    // A card that was edited and not signed again.
    let forge = Forge::new();
    let mut metadata = forge.metadata();
    metadata["diad"] = metadata["diad"].as_str().unwrap().replace("3.5", "9.5").into();
    Scratch::new().refused(&file(Some(metadata), &forge.entries(), &forge.data()), "is damaged: the card's sha256 is ");
    let mut metadata = forge.metadata();
    metadata.as_object_mut().unwrap().remove("diad.sha256");
    Scratch::new().refused(&file(Some(metadata), &forge.entries(), &forge.data()), "expected \"\" (metadata key");
}

#[test]
fn values_that_are_not_finite_are_refused_even_with_the_right_digest() {
    for (bits, shown) in [(f32::NAN, "NaN"), (f32::INFINITY, "inf"), (f32::NEG_INFINITY, "-inf")] {
        let mut forge = Forge::new();
        forge.tensors[0].3[8..12].copy_from_slice(&bits.to_le_bytes());
        forge.card["tensors_sha256"] = forge.digest().into();
        let reason = format!("value 2 of tensor \"b.weight\" is {shown}, expected a finite number");
        Scratch::new().refused(&forge.file(), &reason);
        let mut forge = Forge::new();
        forge.tensors[2].3[2..4].copy_from_slice(&f16::from_f32(bits).to_le_bytes());
        forge.card["tensors_sha256"] = forge.digest().into();
        let reason = format!("value 1 of tensor \"a.half\" is {shown}, expected a finite number");
        Scratch::new().refused(&forge.file(), &reason);
    }
}

// Sizes that lie.

#[test]
fn lengths_that_lie_are_refused() {
    let scratch = Scratch::new();
    let with_length = |length: u64| [&length.to_le_bytes(), &good()[8..]].concat();
    scratch.refused(&with_length(0), "its header is not that of a safetensors file");
    scratch.refused(&with_length(1), "its header is not that of a safetensors file");
    scratch.refused(&with_length(1 << 20), "is cut off: announces a header of 1048576 bytes, ");
    scratch.refused(&with_length((16 << 20) + 1), "announces a header of 16777217 bytes, expected at most 16777216");
    scratch.refused(&with_length(u64::MAX), "announces a header of 18446744073709551615 bytes");
    scratch.refused(&raw_file(&b"[".repeat(100_000), b""), "is no safetensors file");
    scratch.refused(&raw_file(&b"{\"a\":".repeat(100_000), b""), "recursion limit exceeded");
    scratch.refused(&raw_file(b"{}", b""), "is no safetensors file");
    scratch.refused(&raw_file(b"{           }", b""), "is a safetensors file without a diad card");
}

/// Virtual memory of this process at its peak, in bytes.
#[cfg(target_os = "linux")]
fn peak_memory() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmPeak:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() << 10
}

#[cfg(target_os = "linux")]
#[test]
fn memory_is_taken_for_nothing_that_was_not_checked() {
    // Sparse files: long without taking room on the disk.
    let scratch = Scratch::new();
    let sparse = |bytes: &[u8], length: u64| {
        std::fs::write(scratch.path(), bytes).unwrap();
        std::fs::OpenOptions::new().write(true).open(scratch.path()).unwrap().set_len(length).unwrap();
        refusal(&scratch.path(), bundle::load(&scratch.path(), expected))
    };
    let before = peak_memory();
    let huge = 3 << 29;
    let forge = Forge::new();
    let one_huge_tensor = |name: &str| {
        let entry = json!({"dtype": "F32", "shape": [huge / 4], "data_offsets": [0, huge]});
        file(Some(forge.metadata()), &[(name.into(), entry)], b"")
    };
    // A tensor that is really as long as it says, and that nobody asked for.
    let bytes = one_huge_tensor("b.weight");
    let message = sparse(&bytes, bytes.len() as u64 + huge);
    assert!(message.contains("tensor \"b.weight\" is F32 [402653184], expected F32 [2, 3]"), "{message}");
    // One that is not.
    let message = sparse(&bytes, 1 << 20);
    assert!(message.contains("is cut off: the tensors need 1610612736 bytes"), "{message}");
    let message = sparse(&good(), 2 << 30);
    assert!(message.contains("has bytes that belong to no tensor"), "{message}");
    let message = sparse(&good(), (2 << 30) + 1);
    assert!(message.contains("has 2147483649 bytes, expected at most 2147483648"), "{message}");
    let message = sparse(b"{\"a\": 1}", 1 << 40);
    assert!(message.contains("has 1099511627776 bytes, expected at most"), "{message}");
    let grown = peak_memory() - before;
    assert!(grown < 512 << 20, "{grown} bytes of memory were taken");
}

#[cfg(target_os = "linux")]
#[test]
fn headers_of_the_largest_size_take_a_small_multiple_of_it() {
    let scratch = Scratch::new();
    let before = peak_memory();
    let fill = |item: &str| item.repeat((16 << 20) / item.len() - 100);
    let tensor = "\"t\":{\"dtype\":\"F32\",\"shape\":[],\"data_offsets\":[0,4]},";
    for header in [
        format!("{{\"t\":{{\"dtype\":\"F32\",\"shape\":[{}1]}}}}", fill("1,")),
        format!("{{{}\"u\":0}}", fill(tensor)),
        format!("{{\"__metadata__\":{{\"diad\":\"{}\"}}}}", fill("[")),
        format!("{{\"__metadata__\":{{\"x\":\"y\",\"diad\":\"{{\\\"a\\\":[{}0]}}\"}}}}", fill("0,")),
    ] {
        refusal(&scratch.path(), scratch.try_bytes(&raw_file(header.as_bytes(), b"")));
    }
    let mut forge = Forge::new();
    forge.card["classes"][0]["calibration_scores"] = "SCORES".into();
    let card = forge.card.to_string().replace("\"SCORES\"", &format!("[{}0]", fill("0,")));
    let metadata = json!({"diad.sha256": hex(&Sha256::digest(card.as_bytes())), "diad": card});
    let bytes = file(Some(metadata), &forge.entries(), &forge.data());
    scratch.refused(&bytes, "classes[0].ng.n = 40: expected 8");
    let grown = peak_memory() - before;
    assert!(grown < 768 << 20, "{grown} bytes of memory were taken");
}

// Every kind of damage.

#[test]
fn every_truncation_is_refused() {
    let (scratch, good) = (Scratch::new(), good());
    for length in 0..good.len() {
        refusal(&scratch.path(), scratch.try_bytes(&good[..length]));
    }
    refusal(&scratch.path(), scratch.try_bytes(&[&good[..], b"\0"].concat()));
}

#[test]
fn every_changed_byte_is_refused() {
    let (scratch, good) = (Scratch::new(), good());
    for at in 0..good.len() {
        for change in [1 << (at % 8), 0xff] {
            let mut bytes = good.clone();
            bytes[at] ^= change;
            refusal(&scratch.path(), scratch.try_bytes(&bytes));
        }
    }
}

/// One step of damage.
#[derive(Clone, Debug)]
enum Damage {
    Flip(usize, u8),
    Cut(usize, usize),
    Repeat(usize, usize),
    Swap(usize, usize, usize),
    Insert(usize, Vec<u8>),
}

impl Damage {
    fn any() -> impl Strategy<Value = Self> {
        let token = prop::sample::select(vec![
            "{",
            "}",
            "[",
            "]",
            "\"",
            ",",
            ":",
            "0",
            "-1",
            "1e999",
            "null",
            "NaN",
            "18446744073709551615",
            "\\u0000",
            "\"F32\"",
            "\"F16\"",
            "\"shape\"",
            "\"__metadata__\":{},",
            "\"diad\"",
            "\u{7f}",
            " ",
        ]);
        let bytes =
            prop_oneof![token.prop_map(|token| token.as_bytes().to_vec()), prop::collection::vec(any::<u8>(), 1..20),];
        let (at, length) = (any::<usize>(), 1usize..200);
        prop_oneof![
            (at.clone(), 1u8..).prop_map(|(at, bits)| Self::Flip(at, bits)),
            (at.clone(), length.clone()).prop_map(|(at, length)| Self::Cut(at, length)),
            (at.clone(), length.clone()).prop_map(|(at, length)| Self::Repeat(at, length)),
            (at.clone(), at.clone(), length).prop_map(|(a, b, length)| Self::Swap(a, b, length)),
            (at, bytes).prop_map(|(at, bytes)| Self::Insert(at, bytes)),
        ]
    }

    fn apply(&self, bytes: &mut Vec<u8>) {
        let n = bytes.len().max(1);
        let range = |at: usize, length: usize| at % n..(at % n + length).min(bytes.len());
        match self {
            Self::Flip(at, bits) => bytes.iter_mut().skip(at % n).take(1).for_each(|byte| *byte ^= bits),
            Self::Cut(at, length) => drop(bytes.drain(range(*at, *length))),
            Self::Repeat(at, length) => {
                let range = range(*at, *length);
                let copy = bytes[range.clone()].to_vec();
                bytes.splice(range.start..range.start, copy);
            }
            Self::Swap(a, b, length) => {
                let (a, b) = (range(*a, *length), range(*b, *length));
                let length = a.len().min(b.len());
                for i in 0..length {
                    bytes.swap(a.start + i, b.start + i);
                }
            }
            Self::Insert(at, new) => {
                let at = at % n;
                bytes.splice(at..at, new.iter().copied());
            }
        }
    }
}

/// Scores a class could have, ascending.
fn scores() -> impl Strategy<Value = Vec<f32>> {
    let finite = any::<f32>().prop_filter("finite", |score| score.is_finite());
    prop::collection::vec(finite, 1..60).prop_map(|scores| scores.into_iter().collect::<Sorted>().0)
}

proptest! {
    #[test]
    fn any_content_comes_back(
        names in prop::collection::btree_set("[^\\p{C}]{0,20}[a-zé\"\\\\]", 1..5),
        all_scores in prop::collection::vec(scores(), 5),
        ranks in prop::collection::vec(any::<prop::sample::Index>(), 5),
        values in prop::collection::vec(any::<u32>().prop_map(f32::from_bits).prop_filter("finite", |x| x.is_finite()), 1..70),
        seed in any::<u64>(),
    ) {
        let classes = names.iter().zip(all_scores).zip(ranks).map(|((name, calibration_scores), rank)| {
            let n = calibration_scores.len();
            let rank = rank.index(n) + 1;
            let rate = (n + 1 - rank) as f64 / (n + 1) as f64;
            let ng = Threshold::at_rank(&calibration_scores, rank, rate).unwrap();
            ClassCard { name: name.clone(), train_images: n, calibration_scores, ng, warn: ng, pixel_threshold: ng.value, prototype_limit: 1.0 }
        });
        let mut wanted = Card { classes: classes.collect(), ..card() };
        wanted.training.seed = seed;
        let n = values.len();
        let half: Vec<f16> = values.iter().map(|x| f16::from_f32(x.clamp(-6e4, 6e4))).collect();
        let tensors = BTreeMap::from([
            ("x \"quoted\" ü".to_owned(), Tensor::from_vec(half.clone(), (1, n), &Device::Cpu).unwrap()),
            ("y".to_owned(), Tensor::from_vec(values.clone(), n, &Device::Cpu).unwrap()),
        ]);
        let scratch = Scratch::new();
        bundle::save(&scratch.path(), &wanted, &tensors).unwrap();
        let loaded = bundle::load(&scratch.path(), |_| {
            Ok(vec![spec("y", Dtype::F32, &[n]), spec("x \"quoted\" ü", Dtype::F16, &[1, n])])
        }).unwrap();
        let back = loaded.tensors["y"].to_vec1::<f32>().unwrap();
        prop_assert_eq!(back.iter().map(|x| x.to_bits()).collect::<Vec<_>>(), values.iter().map(|x| x.to_bits()).collect::<Vec<_>>());
        prop_assert_eq!(&loaded.tensors["x \"quoted\" ü"].to_vec2::<f16>().unwrap()[0], &half);
        wanted.tensors_sha256 = loaded.card.tensors_sha256.clone();
        prop_assert_eq!(loaded.card, wanted);
    }

    #[test]
    fn any_damage_is_refused_or_changes_nothing(damage in prop::collection::vec(Damage::any(), 1..4)) {
        let good = good();
        let mut bytes = good.clone();
        damage.iter().for_each(|damage| damage.apply(&mut bytes));
        let scratch = Scratch::new();
        match scratch.try_bytes(&bytes) {
            Err(error) => _ = refusal(&scratch.path(), Err::<(), _>(error)),
            Ok(model) => {
                // Cuts and swaps may cancel, and JSON has more than one way to write the same.
                let sound = scratch.try_bytes(&good).unwrap();
                prop_assert_eq!(model.card, sound.card);
            }
        }
    }

    #[test]
    fn any_bytes_are_refused(bytes in prop::collection::vec(any::<u8>(), 0..300), header in "\\{[\\PC\\x00]{0,200}") {
        let scratch = Scratch::new();
        refusal(&scratch.path(), scratch.try_bytes(&bytes));
        refusal(&scratch.path(), scratch.try_bytes(&raw_file(header.as_bytes(), &bytes)));
    }

    /// Damage below the digests: the card is changed somewhere and signed again.
    #[test]
    fn any_signed_card_is_taken_only_if_it_has_no_mistakes(
        at in any::<prop::sample::Index>(),
        value in prop_oneof![
            Just(json!(null)), Just(json!(-1)), Just(json!(0)), Just(json!(1)), Just(json!(1e300)), Just(json!(u64::MAX)),
            Just(json!("")), Just(json!("efficientnet-lite9")), Just(json!([])), Just(json!({})), Just(json!(true)),
            any::<f64>().prop_map(|x| json!(x)), any::<i32>().prop_map(|x| json!(x)),
        ],
    ) {
        let mut forge = Forge::new();
        let mut places = Vec::new();
        pointers(&forge.card, String::new(), &mut places);
        *forge.card.pointer_mut(at.get::<String>(&places)).unwrap() = value;
        let scratch = Scratch::new();
        match scratch.try_bytes(&forge.file()) {
            Ok(model) => prop_assert_eq!(model.card.mistakes(), Vec::<String>::new()),
            Err(error) => _ = refusal(&scratch.path(), Err::<(), _>(error)),
        }
    }
}

/// JSON pointers of everything in `value`.
fn pointers(value: &Value, here: String, all: &mut Vec<String>) {
    match value {
        Value::Object(map) => map.iter().for_each(|(key, value)| pointers(value, format!("{here}/{key}"), all)),
        Value::Array(list) => {
            list.iter().enumerate().for_each(|(i, value)| pointers(value, format!("{here}/{i}"), all))
        }
        _ => {}
    }
    if !here.is_empty() {
        all.push(here);
    }
}

// What cannot be written.

#[test]
fn what_would_be_refused_is_not_written_and_nothing_is_left() {
    let scratch = Scratch::new();
    let refused = |card: &Card, tensors: &BTreeMap<String, Tensor>, reason: &str| {
        let message = refusal(&scratch.path(), bundle::save(&scratch.path(), card, tensors));
        assert!(message.contains("cannot be written: ") && message.contains(reason), "{message}");
        assert!(scratch.names().is_empty());
    };
    let mut wrong = card();
    wrong.classes[0].ng.value = f32::NAN;
    refused(&wrong, &tensors(), "card: classes[0].ng.value = NaN: expected 3.1");
    let with = |name: &str, tensor: Tensor| {
        let mut tensors = tensors();
        tensors.insert(name.into(), tensor);
        tensors
    };
    let cpu = &Device::Cpu;
    refused(
        &card(),
        &with("n", Tensor::new(&[1f32, f32::NAN], cpu).unwrap()),
        "value 1 of tensor \"n\" is not a finite",
    );
    refused(
        &card(),
        &with("n", Tensor::new(&[f16::INFINITY], cpu).unwrap()),
        "value 0 of tensor \"n\" is not a finite",
    );
    refused(&card(), &with("n", Tensor::new(&[1i64], cpu).unwrap()), "tensor \"n\" is I64, expected F32 or F16");
    refused(&card(), &with("n", Tensor::zeros((2, 0), DType::F32, cpu).unwrap()), "tensor \"n\" has shape [2, 0]");
    refused(&card(), &with("__metadata__", Tensor::new(1f32, cpu).unwrap()), "tensor name \"__metadata__\"");
    let mut wrong = card();
    wrong.tool = "x".repeat(17 << 20);
    refused(&wrong, &tensors(), "card: tool = ");
}

#[test]
fn failed_save_keeps_the_old_file() {
    let scratch = Scratch::new();
    std::fs::write(scratch.path(), "old").unwrap();
    let mut wrong = card();
    wrong.classes.clear();
    assert!(bundle::save(&scratch.path(), &wrong, &tensors()).is_err());
    assert_eq!((std::fs::read(scratch.path()).unwrap(), scratch.names()), (b"old".to_vec(), vec!["m.diad".into()]));
    bundle::save(&scratch.path(), &card(), &tensors()).unwrap();
    assert_eq!((std::fs::read(scratch.path()).unwrap(), scratch.names()), (good(), vec!["m.diad".into()]));

    let missing = scratch.folder.path().join("missing").join("m.diad");
    assert!(refusal(&missing, bundle::save(&missing, &card(), &tensors())).contains("cannot write: "));
    let error = bundle::save(scratch.folder.path(), &card(), &tensors()).unwrap_err();
    assert!(error.to_string().contains("is a folder or a device"), "{error}");
    assert_eq!(scratch.names(), ["m.diad"]);
}
