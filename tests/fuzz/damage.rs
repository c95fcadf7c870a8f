//! Damage to files, a step at a time: what tests without coverage guidance change inputs by.

use proptest::prelude::*;

/// One step of damage.
#[derive(Clone, Debug)]
pub(crate) enum Damage {
    Flip(usize, u8),
    Cut(usize, usize),
    Repeat(usize, usize),
    Swap(usize, usize, usize),
    Insert(usize, Vec<u8>),
}

impl Damage {
    /// Any step; what is inserted is one of `tokens`, or any bytes.
    pub(crate) fn any(tokens: Vec<Vec<u8>>) -> impl Strategy<Value = Self> {
        let bytes = prop_oneof![prop::sample::select(tokens), prop::collection::vec(any::<u8>(), 1..20)];
        let (at, length) = (any::<usize>(), 1usize..200);
        prop_oneof![
            (at, 1u8..).prop_map(|(at, bits)| Self::Flip(at, bits)),
            (at, length.clone()).prop_map(|(at, length)| Self::Cut(at, length)),
            (at, length.clone()).prop_map(|(at, length)| Self::Repeat(at, length)),
            (at, at, length).prop_map(|(a, b, length)| Self::Swap(a, b, length)),
            (at, bytes).prop_map(|(at, bytes)| Self::Insert(at, bytes)),
        ]
    }

    pub(crate) fn apply(&self, bytes: &mut Vec<u8>) {
        let n = bytes.len().max(1);
        let range = |at: usize, length: usize| at % n..(at % n + length).min(bytes.len());
        match self {
            Self::Flip(at, bits) => bytes.iter_mut().skip(at % n).take(1).for_each(|byte| *byte ^= bits),
            Self::Cut(at, length) => {
                drop(bytes.drain(range(*at, *length).start.min(bytes.len())..range(*at, *length).end))
            }
            Self::Repeat(at, length) => {
                let range = range(*at, *length);
                let copy = bytes.get(range.clone()).unwrap_or_default().to_vec();
                let start = range.start.min(bytes.len());
                bytes.splice(start..start, copy);
            }
            Self::Swap(a, b, length) => {
                let (a, b) = (range(*a, *length), range(*b, *length));
                let length = a.len().min(b.len());
                for i in 0..length {
                    bytes.swap(a.start + i, b.start + i);
                }
            }
            Self::Insert(at, new) => {
                let at = (at % n).min(bytes.len());
                bytes.splice(at..at, new.iter().copied());
            }
        }
    }
}

/// The words of a dictionary of libFuzzer: one per line in quotes, bytes as `\xNN`, `#` before comments.
pub(crate) fn tokens(dictionary: &str) -> Vec<Vec<u8>> {
    let token = |line: &str| {
        let mut text = line.strip_prefix('"')?.strip_suffix('"')?.bytes();
        let mut token = Vec::new();
        while let Some(byte) = text.next() {
            token.push(match byte {
                b'\\' => match text.next()? {
                    b'x' => {
                        let digits = [text.next()?, text.next()?];
                        u8::from_str_radix(std::str::from_utf8(&digits).ok()?, 16).ok()?
                    }
                    quoted => quoted,
                },
                byte => byte,
            });
        }
        Some(token)
    };
    dictionary.lines().filter(|line| !line.starts_with('#')).map(|line| token(line).expect(line)).collect()
}

/// The files in a folder, in the order of their names; none where there is no such folder.
#[allow(dead_code, reason = "each test program uses its part")]
pub(crate) fn files(folder: &std::path::Path) -> Vec<Vec<u8>> {
    let entries = std::fs::read_dir(folder).into_iter().flatten();
    let mut paths: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    paths.into_iter().map(|path| std::fs::read(path).unwrap()).collect()
}
