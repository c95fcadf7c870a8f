//! Names of files.

use std::path::PathBuf;

use crate::detector::Verdict;
use crate::text::{DAY_MS, civil};

/// Most letters of a part's name that stand in a file's name.
const PART: usize = 64;

/// What a file is of: its time, label, number and part.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Name {
    /// Milliseconds since 1970, UTC.
    pub utc_ms: u64,
    /// Number of the frame on its line.
    pub sequence: u64,
    /// One of [`LABELS`].
    label: &'static str,
    /// The part, in letters that a file's name may have.
    part: Option<String>,
}

/// Classes of files, in the order in which they make room: those that are missed least first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// Good parts, kept as a sample.
    Sample,
    /// Not inspected.
    Uninspected,
    /// Warned of.
    Warn,
    /// Video of what led to a verdict.
    Clip,
    /// Rejected, or not to be inspected for an error.
    Rejected,
}

/// What names say of a file, and its class: the verdict of a frame, that of the frame which a clip is of, or that it is a recording of
/// everything.
const LABELS: [(&str, Kind); 11] = [
    ("ok", Kind::Sample),
    ("warn", Kind::Warn),
    ("ng", Kind::Rejected),
    ("uninspected", Kind::Uninspected),
    ("error", Kind::Rejected),
    ("clip-ok", Kind::Clip),
    ("clip-warn", Kind::Clip),
    ("clip-ng", Kind::Clip),
    ("clip-uninspected", Kind::Clip),
    ("clip-error", Kind::Clip),
    ("video", Kind::Sample),
];

impl Name {
    /// Of a frame.
    pub fn new(utc_ms: u64, verdict: Verdict, sequence: u64, part: Option<&str>) -> Self {
        Self::labelled(verdict.name(), utc_ms, sequence, part)
    }

    /// Of a clip: the time, verdict, number and part of the frame that it is of.
    pub fn clip(utc_ms: u64, verdict: Verdict, sequence: u64, part: Option<&str>) -> Self {
        let label = match verdict {
            Verdict::Ok => "clip-ok",
            Verdict::Warn => "clip-warn",
            Verdict::Ng => "clip-ng",
            Verdict::Uninspected => "clip-uninspected",
            Verdict::Error => "clip-error",
        };
        Self::labelled(label, utc_ms, sequence, part)
    }

    /// Of a recording: the time and number of its first frame.
    pub fn recording(utc_ms: u64, sequence: u64) -> Self {
        Self::labelled("video", utc_ms, sequence, None)
    }

    fn labelled(label: &'static str, utc_ms: u64, sequence: u64, part: Option<&str>) -> Self {
        let letter = |c: char| if c.is_ascii_alphanumeric() || ".-".contains(c) { c } else { '-' };
        let part = part.map(|part| part.chars().take(PART).map(letter).collect::<String>());
        // A name that is none, or looks like an end of ours, would be read as another.
        let part = part.filter(|part| !part.is_empty()).map(|part| part.replace('.', "-"));
        Self { utc_ms, sequence, label, part }
    }

    /// What class of files it is in.
    pub fn kind(&self) -> Kind {
        LABELS.iter().find(|(label, _)| *label == self.label).map_or(Kind::Rejected, |(_, kind)| *kind)
    }

    /// Whether it is of a clip or a recording: what others write, over many seconds.
    pub(super) fn is_video(&self) -> bool {
        self.label == "video" || self.kind() == Kind::Clip
    }

    /// The name without an end: `20261123T141503.127Z_ng_000123456_P4711`.
    pub fn stem(&self) -> String {
        let (date, [h, m, s, ms]) = civil(self.utc_ms);
        let [year, month, day] = date;
        let part = self.part.as_ref().map_or_else(String::new, |part| format!("_{part}"));
        format!("{year:04}{month:02}{day:02}T{h:02}{m:02}{s:02}.{ms:03}Z_{}_{:09}{part}", self.label, self.sequence)
    }

    /// Name and end of a file of ours.
    pub fn parse(file: &str) -> Option<(Self, &str)> {
        // The time has the first dot.
        let dot = file.get(20..)?.find('.')? + 20;
        let (stem, end) = (file.get(..dot)?, file.get(dot + 1..)?);
        let mut parts = stem.splitn(4, '_');
        let (time, label, sequence) = (parts.next()?, parts.next()?, parts.next()?);
        let digits = |range: std::ops::Range<usize>| -> Option<u64> {
            let text = time.get(range)?;
            if text.bytes().all(|b| b.is_ascii_digit()) { text.parse().ok() } else { None }
        };
        let marks = |at: usize, mark: &str| time.get(at..at + 1) == Some(mark);
        if time.len() != 20 || !marks(8, "T") || !marks(15, ".") || !marks(19, "Z") || sequence.len() < 9 {
            return None;
        }
        let date = [digits(0..4)?, digits(4..6)?, digits(6..8)?];
        let utc_ms = millis(date, [digits(9..11)?, digits(11..13)?, digits(13..15)?, digits(16..19)?])?;
        let (label, _) = LABELS.iter().find(|(known, _)| *known == label)?;
        let name = Self { utc_ms, sequence: sequence.parse().ok()?, label, part: parts.next().map(str::to_owned) };
        // Whoever writes numbers with a plus sign is somebody else.
        (name.stem() == stem).then_some((name, end))
    }
}

/// The folder of a time: `2026-11-23/14`.
pub fn folder(utc_ms: u64) -> PathBuf {
    let ([year, month, day], [hour, ..]) = civil(utc_ms);
    PathBuf::from(format!("{year:04}-{month:02}-{day:02}")).join(format!("{hour:02}"))
}

/// The inverse of [`civil`]; `None` for what is no date from 1970 on.
fn millis([year, month, day]: [u64; 3], [h, m, s, ms]: [u64; 4]) -> Option<u64> {
    if year < 1970 || !(1..=12).contains(&month) || !(1..=31).contains(&day) || h > 23 || m > 59 || s > 59 {
        return None;
    }
    let y = if month <= 2 { year - 1 } else { year };
    let (era, year_of_era) = (y / 400, y % 400);
    let day_of_year = (153 * (if month > 2 { month - 3 } else { month + 9 }) + 2) / 5 + day - 1;
    let day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
    let days = (era * 146_097 + day_of_era).checked_sub(719_468)?;
    let found = days * DAY_MS + ((h * 60 + m) * 60 + s) * 1000 + ms;
    (civil(found).0 == [year, month, day]).then_some(found)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// ```python
    /// import datetime as d
    /// int(d.datetime(2026, 11, 23, 14, 15, 3, 127000, d.timezone.utc).timestamp() * 1000)
    /// ```
    #[test]
    fn a_name_says_when_and_what() {
        let name = Name::new(1_795_443_303_127, Verdict::Ng, 123_456, Some("P4711"));
        assert_eq!(name.stem(), "20261123T141503.127Z_ng_000123456_P4711");
        assert_eq!(folder(name.utc_ms), PathBuf::from("2026-11-23/14"));
        assert_eq!(name.kind(), Kind::Rejected);
        let clip = Name::clip(1_795_443_303_127, Verdict::Ng, 123_456, Some("P4711"));
        assert_eq!((clip.stem().as_str(), clip.kind()), ("20261123T141503.127Z_clip-ng_000123456_P4711", Kind::Clip));
        assert_eq!(Name::recording(1_795_443_303_127, 7).stem(), "20261123T141503.127Z_video_000000007");
        for foreign in [
            "",
            "notes.txt",
            "20261123T141503.127Z.png",
            "20261123T141503.127Z_ng_123.png",
            "20261323T141503.127Z_ng_000123456.png",
            "20261123T141503.127Z_bad_000123456.png",
            "20260230T141503.127Z_ok_000000001.png",
            "20261123T141503.127Z_ng_+00123456.png",
            "20261123T141503.127Z_ng_000123456",
            "ä0261123T141503.127Z_ng_000123456.png",
        ] {
            assert_eq!(Name::parse(foreign), None, "{foreign}");
        }
    }

    proptest! {
        #[test]
        fn a_name_is_read_as_it_was_written(
            utc_ms in 0u64..250_000_000_000_000, verdict in 0..Verdict::ALL.len(), what in 0..3, sequence: u64, part: Option<String>,
            end in "[a-z0-9]{1,5}(\\.part)?",
        ) {
            let verdict = Verdict::ALL[verdict];
            let name = match what {
                0 => Name::new(utc_ms, verdict, sequence, part.as_deref()),
                1 => Name::clip(utc_ms, verdict, sequence, part.as_deref()),
                _ => Name::recording(utc_ms, sequence),
            };
            prop_assert_eq!(name.is_video(), what != 0);
            let file = format!("{}.{end}", name.stem());
            prop_assert_eq!(Name::parse(&file), Some((name, end.as_str())));
        }

        #[test]
        fn no_text_makes_it_stumble(text: String) {
            let _ = Name::parse(&text);
        }
    }
}
