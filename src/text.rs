//! Small things about text: bytes as hexadecimal, and the name that a mistyped one was meant to be.

use std::fmt::Write as _;

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_become_two_digits_each() {
        assert_eq!(hex(&[0, 15, 255]), "000fff");
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
