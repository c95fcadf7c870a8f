//! What somebody says of a part afterwards: a file of its own beside the sidecar, which never changes.

use std::fs::{self, File};
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::name::Name;
use crate::error::{Error, Result};
use crate::files::{read_regular, write_atomic};
use crate::named::named;
use crate::text;

/// End of a file that says what a part is.
pub(super) const END: &str = "label.json";
/// The version of the file.
const SCHEMA: u32 = 1;
/// Largest size of such a file.
const MAX_LABEL: u64 = 1 << 20;

named! {
    /// What a part is.
    pub enum Label: "label" {
        /// It should have passed.
        Good = "good",
        /// It should not.
        Bad = "bad",
    }
}

/// What somebody has said of a part.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Said {
    /// What it is.
    pub label: Label,
    /// When that was said.
    pub utc: String,
    /// Who has said it.
    pub who: String,
    /// Why.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub note: String,
}

/// The file: what was said last, and what before.
#[derive(Debug, Serialize, Deserialize)]
struct Labelled {
    schema: u32,
    #[serde(flatten)]
    said: Said,
    /// What was said before, the oldest first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    history: Vec<Said>,
}

/// Writes what is said of the frame that `file` belongs to, any file of an archive; what was said before it.
///
/// # Errors
/// [`Error::Usage`] when it is no file of an archive; when the disk refuses.
pub fn label(file: &Path, label: Label, who: &str, note: &str) -> Result<Option<Said>> {
    let shown = file.display();
    let refused = |reason: &str| Error::Usage(format!("{shown}: {reason}, expected a file of an archive"));
    let (name, _) = file
        .file_name()
        .and_then(|name| Name::parse(name.to_str()?))
        .ok_or_else(|| refused("is not named like one of an archive (20261123T141503.127Z_ng_000123456.png)"))?;
    fs::metadata(file).map_err(|error| Error::Usage(format!("{shown}: cannot read: {error}")))?;
    let sidecar = file.with_file_name(format!("{}.json", name.stem()));
    if !sidecar.is_file() {
        return Err(refused(&format!("has no {} beside it", sidecar.display())));
    }
    // Two who say something at once do so one after the other.
    let lock = File::open(&sidecar).and_then(|sidecar| sidecar.lock().map(|()| sidecar));
    let _lock = lock.map_err(|error| Error::io(&sidecar, "cannot be locked", error))?;

    let path = file.with_file_name(format!("{}.{END}", name.stem()));
    let before: Option<Labelled> = match path.exists() {
        true => {
            let bytes = read_regular(&path, MAX_LABEL, "a label")?;
            let wrong = |error| Error::Usage(format!("{}: is no label of schema {SCHEMA}: {error}", path.display()));
            Some(serde_json::from_slice(&bytes).map_err(wrong)?)
        }
        false => None,
    };
    let (said_before, mut history) = before.map_or((None, Vec::new()), |before| (Some(before.said), before.history));
    history.extend(said_before.clone());
    let said = Said { label, utc: text::utc(text::now_ms()), who: who.to_owned(), note: note.to_owned() };
    let json = serde_json::to_vec(&Labelled { schema: SCHEMA, said, history });
    write_atomic(&path, &json.map_err(|error| Error::Internal(format!("label: {error}")))?)?;
    if !sidecar.exists() {
        // It has made room meanwhile, and nothing is left that the label could be of.
        let _ = fs::remove_file(&path);
        return Err(Error::Usage(format!("{shown}: was removed meanwhile to make room")));
    }
    Ok(said_before)
}

#[cfg(test)]
mod tests {
    use super::*;

    const STEM: &str = "20261123T141503.127Z_ng_000123456_P4711";

    #[test]
    fn a_label_stands_beside_the_sidecar_and_remembers_what_was_said_before() {
        let folder = tempfile::tempdir().unwrap();
        let at = |end: &str| folder.path().join(format!("{STEM}.{end}"));
        fs::write(at("png"), "picture").unwrap();
        fs::write(at("json"), "{\"schema\":1}").unwrap();
        assert_eq!(label(&at("png"), Label::Bad, "anna", "scratch").unwrap(), None);
        let before = label(&at("json"), Label::Good, "ben", "").unwrap().unwrap();
        assert_eq!((before.label, before.who.as_str(), before.note.as_str()), (Label::Bad, "anna", "scratch"));
        let before = label(&at("label.json"), Label::Bad, "anna", "").unwrap().unwrap();
        assert_eq!((before.label, before.who.as_str()), (Label::Good, "ben"));
        let now: Labelled = serde_json::from_slice(&fs::read(at("label.json")).unwrap()).unwrap();
        let said: Vec<&str> = now.history.iter().map(|said| said.who.as_str()).collect();
        assert_eq!((now.schema, now.said.label, said), (1, Label::Bad, vec!["anna", "ben"]));
        assert_eq!(fs::read_to_string(at("json")).unwrap(), "{\"schema\":1}", "a sidecar never changes");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 3);
    }

    #[test]
    fn what_is_no_file_of_an_archive_gets_no_label() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        let (alone, foreign) = (at(&format!("{STEM}.png")), at("photo.png"));
        fs::write(&alone, "picture").unwrap();
        fs::write(&foreign, "picture").unwrap();
        let other = at("20261123T141503.127Z_ng_000000001.png");
        for (file, expected) in [
            (&alone, "has no "),
            (&foreign, "is not named like one of an archive"),
            (&other, "cannot read"),
            (&folder.path().to_owned(), "is not named like one of an archive"),
        ] {
            let error = label(file, Label::Good, "anna", "").unwrap_err();
            let told = error.to_string();
            assert!(
                error.exit_code() == 2 && told.contains(expected) && told.contains(&file.display().to_string()),
                "{told}"
            );
        }
        fs::write(at(&format!("{STEM}.json")), "{}").unwrap();
        fs::write(at(&format!("{STEM}.label.json")), "what somebody else wrote").unwrap();
        let told = label(&alone, Label::Good, "anna", "").unwrap_err().to_string();
        assert!(told.contains("label.json: is no label"), "{told}");
        assert_eq!(fs::read_to_string(at(&format!("{STEM}.label.json"))).unwrap(), "what somebody else wrote");
    }
}
