//! Properties of elements, as a file of lines has them.

use std::collections::BTreeMap;

use gst::glib::{self, ParamFlags, ParamSpec};
use gst::prelude::*;
use toml::Value;

use super::config::{Line, archive_of, clips_of, record_of};
use super::read::{Section, bytes, duration};

/// Values by name, in the text that GStreamer reads.
pub(crate) type Properties = BTreeMap<String, String>;

/// Those of an element of ours that may be set; `model` stands elsewhere in the file.
fn specs(factory: &str) -> Vec<ParamSpec> {
    let factory = gst::ElementFactory::find(factory).and_then(|factory| factory.load().ok());
    let class = factory.and_then(|factory| glib::Class::<gst::Element>::from_type(factory.element_type()));
    let all = class.map(|class| class.list_properties().to_vec()).unwrap_or_default();
    let own = |spec: &ParamSpec| {
        spec.owner_type().name().starts_with("GstDiad") && spec.flags().contains(ParamFlags::WRITABLE)
    };
    all.into_iter().filter(|spec| own(spec) && spec.name() != "model").collect()
}

/// The properties in a table, each with a value that it may have.
pub(crate) fn read(section: &Section<'_>, factory: &str) -> Properties {
    let specs = specs(factory);
    let keys: Vec<(&str, &str)> = specs.iter().map(|spec| (spec.name(), spec.name())).collect();
    read_some(section, factory, &keys)
}

/// The same of those that are named here, each by a key.
pub(crate) fn read_some(section: &Section<'_>, factory: &str, keys: &[(&str, &str)]) -> Properties {
    let specs = specs(factory);
    let names: Vec<&str> = keys.iter().map(|(key, _)| *key).collect();
    let mut found = Properties::new();
    for (key, value) in section.entries() {
        if key == "model" {
            let path = section.path(key);
            section.mistake(key, format!("{path}: unknown key; the model stands beside filter, not in it"));
            continue;
        }
        let property_of = |key: &str| keys.iter().find(|(known, _)| *known == key).map(|(_, property)| *property);
        let Some(spec) = property_of(key).and_then(|name| specs.iter().find(|spec| spec.name() == name)) else {
            section.unknown(key, &names);
            continue;
        };
        let text = match value {
            Value::String(text) => section.expanded(key, text),
            _ if spec.value_type() == glib::Type::STRING => {
                section.wrong(key, "a text");
                None
            }
            Value::Integer(n) => Some(n.to_string()),
            Value::Float(n) => Some(n.to_string()),
            Value::Boolean(b) => Some(b.to_string()),
            _ => {
                section.wrong(key, "a text, a number, true or false");
                None
            }
        };
        let Some(text) = text.map(|text| amount(spec, &text).unwrap_or(text)) else { continue };
        match property(spec, &text) {
            Ok(_) => drop(found.insert(spec.name().to_owned(), text)),
            Err(expected) => section.wrong(key, &expected),
        }
    }
    found
}

/// Bytes of `50GB`, nanoseconds of `5s` and `90d`, where a property counts those.
fn amount(spec: &ParamSpec, text: &str) -> Option<String> {
    if spec.value_type() != glib::Type::U64 {
        return None;
    }
    if let Some(time) = duration(text) {
        return u64::try_from(time.as_nanos()).ok().map(|ns| ns.to_string());
    }
    bytes(text).map(|bytes| bytes.to_string())
}

/// The value of a property from its text, or what was expected.
pub(crate) fn property(spec: &ParamSpec, text: &str) -> Result<glib::Value, String> {
    macro_rules! number {
        ($($Spec:ty: $Number:ty),*) => {$(
            if let Some(own) = spec.downcast_ref::<$Spec>() {
                let range = own.minimum()..=own.maximum();
                let number = text.parse::<$Number>().ok().filter(|number| range.contains(number));
                let most = if own.maximum() == <$Number>::MAX { String::new() } else { format!(" to {}", own.maximum()) };
                let units = if spec.value_type() == glib::Type::U64 { ", or for instance \"5s\" or \"50GB\"" } else { "" };
                let expected = || format!("a number from {}{most}{units}", own.minimum());
                return number.map(|number| number.to_value()).ok_or_else(expected);
            }
        )*};
    }
    number!(
        glib::ParamSpecUInt: u32, glib::ParamSpecUInt64: u64, glib::ParamSpecInt: i32, glib::ParamSpecDouble: f64
    );
    if spec.value_type() == glib::Type::STRING {
        return Ok(text.to_value());
    }
    glib::Value::deserialize_with_pspec(text, spec).map_err(|_| names_of(spec))
}

/// The names that a property may have as its value.
fn names_of(spec: &ParamSpec) -> String {
    if spec.value_type() == glib::Type::BOOL {
        return "true or false".into();
    }
    let enumeration = glib::EnumClass::with_type(spec.value_type());
    let names: Vec<String> =
        enumeration.iter().flat_map(|class| class.values()).map(|value| value.nick().to_owned()).collect();
    if !names.is_empty() {
        return format!("one of {}", names.join(", "));
    }
    let flags = glib::FlagsClass::with_type(spec.value_type());
    let names: Vec<String> =
        flags.iter().flat_map(|class| class.values()).map(|value| value.nick().to_owned()).collect();
    if names.is_empty() { "another value".into() } else { format!("some of {}, with + between them", names.join(", ")) }
}

/// A property of an element that is to change: the element's name, its own, and the text of its value.
pub(crate) type Change = (String, String, String);

/// What differs between two versions of a line, if each of it may change while the line runs.
pub(crate) fn changes(old: &Line, new: &Line) -> Option<Vec<Change>> {
    let Line { filter, archive, clips, record, model, versions, .. } = new.clone();
    let same = Line { filter, archive, clips, record, model, versions, ..old.clone() };
    let kept = |line: &Line| [line.archive.clone(), line.clips.clone(), line.record.clone()];
    let has = |line: &Line| kept(line).map(|kept| kept.is_some());
    if same != *new || has(old) != has(new) {
        return None;
    }
    let name = &old.name;
    let names = [("diadarchive", archive_of(name)), ("diadclip", clips_of(name)), ("diadclip", record_of(name))];
    let mut pairs = vec![("diadfilter", name.clone(), old.filter.clone(), new.filter.clone())];
    for ((factory, name), (old, new)) in names.into_iter().zip(kept(old).into_iter().zip(kept(new))) {
        pairs.push((factory, name, old.unwrap_or_default(), new.unwrap_or_default()));
    }
    let mut changed = Vec::new();
    for (factory, element, old, new) in pairs {
        let specs = specs(factory);
        let names: std::collections::BTreeSet<&String> = old.keys().chain(new.keys()).collect();
        for name in names.into_iter().filter(|name| old.get(*name) != new.get(*name)) {
            let spec = specs.iter().find(|spec| spec.name() == name)?;
            if !spec.flags().contains(gst::PARAM_FLAG_MUTABLE_PLAYING) {
                return None;
            }
            let default = || spec.default_value().serialize().map(|text| text.to_string()).unwrap_or_default();
            changed.push((element.clone(), name.clone(), new.get(name).cloned().unwrap_or_else(default)));
        }
    }
    if old.model != new.model {
        changed.push((old.name.clone(), "model".into(), new.model.clone()));
    }
    Some(changed)
}
