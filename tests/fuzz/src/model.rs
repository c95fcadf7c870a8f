//! Model files: any bytes, as they are and with their digests put right, are a sound model or refused.

use diad::bundle;
use diad::detector::Detector;
use diad::error::Error;
use serde_json::Value;
use sha2::{Digest, Sha256};

use super::{MIB, Scratch, told, within};

const MEMORY: usize = 64 * MIB;

pub fn target(data: &[u8]) {
    within(MEMORY, || {
        try_file(data);
        if let Some(signed) = signed(data) {
            try_file(&signed);
        }
    });
}

fn try_file(bytes: &[u8]) {
    let scratch = Scratch::new();
    let path = scratch.file(bytes);
    let refused = |error: &Error| {
        told(error, &path.display().to_string());
        assert!(matches!(error, Error::Model { .. } | Error::Io { .. }), "{error:?}");
    };
    // Whether these are the tensors of a model is another question.
    match bundle::inspect(&path) {
        Ok(contents) => match bundle::load(&path, |_| Ok(contents.tensors.clone())) {
            Ok(model) => {
                assert_eq!(model.card.mistakes(), Vec::<String>::new());
                assert_eq!(model.tensors.len(), contents.tensors.len());
            }
            Err(error) => refused(&error),
        },
        Err(error) => refused(&error),
    }
    if let Err(error) = Detector::open(&path) {
        refused(&error);
    }
}

/// The file with the length of its header and its digests as they should be, if it has a header.
fn signed(file: &[u8]) -> Option<Vec<u8>> {
    let (_, rest) = file.split_at_checked(8)?;
    let mut values = serde_json::Deserializer::from_slice(rest).into_iter::<Value>();
    let header = values.next()?.ok()?;
    let json = values.byte_offset();
    let end = json + rest.get(json..)?.iter().take_while(|byte| **byte == b' ').count();
    let (header_bytes, data) = rest.split_at(end);
    let mut text = String::from_utf8(header_bytes.to_vec()).ok()?;
    put(&mut text, r#"\"tensors_sha256\":\""#, &tensors_digest(&header, data).unwrap_or_default());
    let card = serde_json::from_str::<Value>(&text).ok()?["__metadata__"]["diad"].as_str().map(str::to_owned);
    put(&mut text, r#""diad.sha256":""#, &hex(&Sha256::digest(card.unwrap_or_default())));
    Some([&(end as u64).to_le_bytes(), text.as_bytes(), data].concat())
}

/// Writes `digest` over what follows `key`, if there is room for it.
fn put(text: &mut String, key: &str, digest: &str) {
    if let Some(at) = text.find(key).map(|at| at + key.len())
        && text.get(at..at + digest.len()).is_some_and(|old| old.bytes().all(|byte| byte.is_ascii_alphanumeric()))
    {
        text.replace_range(at..at + digest.len(), digest);
    }
}

fn tensors_digest(header: &Value, data: &[u8]) -> Option<String> {
    let mut entries: Vec<_> = header.as_object()?.iter().filter(|(name, _)| *name != "__metadata__").collect();
    entries.sort_by(|a, b| a.0.cmp(b.0));
    let mut hash = Sha256::new();
    for (name, entry) in entries {
        let shape: Vec<u64> = entry["shape"].as_array()?.iter().map(Value::as_u64).collect::<Option<_>>()?;
        let at = |i: usize| entry["data_offsets"][i].as_u64().and_then(|at| usize::try_from(at).ok());
        hash.update((name.len() as u64).to_le_bytes());
        hash.update(format!("{name}{}\0", entry["dtype"].as_str()?));
        hash.update((shape.len() as u64).to_le_bytes());
        shape.iter().for_each(|dimension| hash.update(dimension.to_le_bytes()));
        hash.update(data.get(at(0)?..at(1)?)?);
    }
    Some(hex(&hash.finalize()))
}

pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
