//! Videos whose writing was broken off: how much of one can be played.

use std::fs::OpenOptions;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::Path;

/// The element of Matroska that pictures lie in.
const CLUSTER: [u8; 4] = [0x1f, 0x43, 0xb6, 0x75];
/// The element that a Matroska file begins with.
const EBML: [u8; 4] = [0x1a, 0x45, 0xdf, 0xa3];
/// The first cluster begins before this many bytes: only what describes the streams stands before it.
const HEAD: u64 = 1 << 16;

/// Cuts off what follows the last whole fragment; how many bytes are left.
///
/// # Errors
/// When there is no fragment, or the file cannot be read or written.
pub(super) fn keep_whole(path: &Path) -> io::Result<u64> {
    let mut file = OpenOptions::new().read(true).write(true).open(path)?;
    let length = file.metadata()?.len();
    let whole = whole(&mut file, length)?.ok_or(io::ErrorKind::InvalidData)?;
    file.set_len(whole)?;
    Ok(whole)
}

/// The length of what can be played of a file of so many bytes.
fn whole(file: &mut (impl Read + Seek), length: u64) -> io::Result<Option<u64>> {
    let mut head = Vec::new();
    file.take(HEAD).read_to_end(&mut head)?;
    if head.starts_with(&EBML) {
        // Players take a cluster that ends too early.
        let cluster = head.windows(CLUSTER.len()).position(|bytes| bytes == CLUSTER);
        return Ok(cluster.filter(|at| (*at as u64) < length.saturating_sub(16)).map(|_| length));
    }
    let (mut at, mut described, mut index, mut whole) = (0u64, false, false, None);
    while let Some((size, kind)) = mp4_box(file, at)? {
        at = match at.checked_add(size) {
            Some(end) if end <= length => end,
            _ => break,
        };
        match &kind {
            b"moov" => described = true,
            b"moof" => index = described,
            b"mdat" if index => whole = Some(at),
            _ => {}
        }
    }
    Ok(whole)
}

/// Size and kind of the box of an MP4 file that begins at `at`; `None` at the end, and where there is none.
fn mp4_box(file: &mut (impl Read + Seek), at: u64) -> io::Result<Option<(u64, [u8; 4])>> {
    let mut head = Vec::new();
    file.seek(SeekFrom::Start(at))?;
    file.take(16).read_to_end(&mut head)?;
    let size = head.get(..4).and_then(|bytes| bytes.try_into().ok()).map(u32::from_be_bytes);
    let kind = head.get(4..8).and_then(|bytes| bytes.try_into().ok());
    let large = head.get(8..16).and_then(|bytes| bytes.try_into().ok()).map(u64::from_be_bytes);
    // 1: the size follows the kind; 0: it was not known yet.
    let size = match size {
        Some(1) => large,
        size => size.map(u64::from),
    };
    Ok(size.zip(kind).filter(|(size, _)| *size >= 8))
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use proptest::prelude::*;

    use super::*;

    fn of(bytes: &[u8]) -> Option<u64> {
        whole(&mut Cursor::new(bytes), bytes.len() as u64).unwrap()
    }

    fn part(kind: &[u8; 4], size: usize) -> Vec<u8> {
        let mut bytes = (size as u32).to_be_bytes().to_vec();
        bytes.extend_from_slice(kind);
        bytes.resize(size, 7);
        bytes
    }

    /// A video of fragments, each so many bytes of pictures.
    fn video(fragments: &[usize]) -> Vec<u8> {
        let of = |size: &usize| [part(b"moof", 40), part(b"mdat", 8 + size)].concat();
        [part(b"ftyp", 32), part(b"moov", 100), fragments.iter().flat_map(of).collect()].concat()
    }

    #[test]
    fn a_fragment_counts_when_it_is_whole_and_something_described_it() {
        assert_eq!(of(&video(&[10, 20])), Some(132 + 48 + 10 + 48 + 20));
        assert_eq!(of(&video(&[10, 20])[..132 + 48 + 10 + 67]), Some(132 + 48 + 10));
        let large = [vec![0, 0, 0, 1], b"mdat".to_vec(), 20u64.to_be_bytes().to_vec(), vec![7; 4]].concat();
        assert_eq!(of(&[video(&[]), part(b"moof", 40), large].concat()), Some(132 + 40 + 20));
        for none in
            [vec![], video(&[]), vec![0; 100], part(b"mdat", 50), [part(b"moof", 40), part(b"mdat", 50)].concat()]
        {
            assert_eq!(of(&none), None);
        }
        let clusters = [&EBML[..], &[0; 40], &CLUSTER, &[1; 40]].concat();
        assert_eq!((of(&clusters), of(&clusters[..50])), (Some(88), None));
    }

    proptest! {
        /// Wherever a video is broken off: what is left are its first fragments, as many as are whole.
        #[test]
        fn what_is_left_are_whole_fragments(sizes in prop::collection::vec(0usize..300, 0..8), share in 0.0f64..1.0) {
            let all = video(&sizes);
            let end = (share * all.len() as f64) as usize;
            let ends: Vec<u64> = (1..=sizes.len()).map(|n| video(&sizes[..n]).len() as u64).collect();
            let expected = ends.into_iter().rfind(|&at| at <= end as u64);
            prop_assert_eq!(of(&all[..end]), expected);
        }

        #[test]
        fn no_bytes_make_it_stumble(bytes: Vec<u8>) {
            let _ = of(&bytes);
        }
    }
}
