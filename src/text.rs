//! Small things about text: bytes as hexadecimal, times, and the name that a mistyped one was meant to be.

use std::fmt::Write as _;
use std::time::{SystemTime, UNIX_EPOCH};

/// Longer than any name: not a slip of the finger, and not worth the quadratic time.
const LONGEST: usize = 40;

/// `bytes` as lowercase hexadecimal.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(2 * bytes.len()), |mut text, byte| {
        let _ = write!(text, "{byte:02x}"); // writing to a String cannot fail
        text
    })
}

/// The candidate that a typing mistake away is: at most a third of its or the word's letters differ (Levenshtein distance,
/// upper and lower case alike).
pub fn closest<'a>(word: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let length = |text: &str| text.chars().take(LONGEST + 1).count();
    if length(word) > LONGEST {
        return None;
    }
    let typed = word.to_lowercase();
    let measured = candidates.into_iter().map(|c| (strsim::levenshtein(&typed, &c.to_lowercase()), c));
    let near = measured.filter(|(distance, c)| *distance <= (length(c).max(length(word)) / 3).max(1));
    near.min_by_key(|(distance, _)| *distance).map(|(_, candidate)| candidate)
}

/// A time as programs exchange it: `2026-11-23T14:15:03.127Z`.
pub fn utc(utc_ms: u64) -> String {
    let ([year, month, day], [h, m, s, ms]) = civil(utc_ms);
    format!("{year:04}-{month:02}-{day:02}T{h:02}:{m:02}:{s:02}.{ms:03}Z")
}

/// Now, in milliseconds since 1970.
pub fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default(); // a clock before 1970 is one that is not set
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// Milliseconds of a day.
pub(crate) const DAY_MS: u64 = 24 * 3600 * 1000;

/// Year, month, day; hour, minute, second, millisecond of a time (days to civil: Hinnant, "chrono-compatible low-level date
/// algorithms", for days from 1970 on).
pub(crate) fn civil(utc_ms: u64) -> ([u64; 3], [u64; 4]) {
    let (days, ms) = (utc_ms / DAY_MS, utc_ms % DAY_MS);
    let z = days + 719_468;
    let (era, day_of_era) = (z / 146_097, z % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    ([year, month, day], [ms / 3_600_000, ms / 60_000 % 60, ms / 1000 % 60, ms % 1000])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_become_two_digits_each() {
        assert_eq!(hex(&[0, 15, 255]), "000fff");
    }

    /// ```python
    /// import datetime as d
    /// d.datetime.fromtimestamp(1795443303.127, d.timezone.utc).isoformat()
    /// ```
    #[test]
    fn a_time_is_read_by_others() {
        assert_eq!(utc(1_795_443_303_127), "2026-11-23T14:15:03.127Z");
        assert_eq!(utc(0), "1970-01-01T00:00:00.000Z");
    }

    #[test]
    fn a_slip_of_the_finger_is_found_and_another_word_is_not() {
        let names = ["batch_size", "bottle", "screw", "learning_rate"];
        for (typed, meant) in [
            ("batchsize", Some("batch_size")),
            ("Botle", Some("bottle")),
            ("screws", Some("screw")),
            ("learningrate", Some("learning_rate")),
            ("tool", None),
            ("", None),
            (&"b".repeat(1000), None),
        ] {
            assert_eq!(closest(typed, names), meant, "{typed}");
        }
        assert_eq!(closest("ab", ["ac", "ad"]), Some("ac"), "of two equally near the first");
    }
}
