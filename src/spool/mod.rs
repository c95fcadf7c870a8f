//! Records on disk until somebody has them: in order, across outages and crashes, within limits.
//!
//! A folder of segments, each a file of lines. What was acknowledged is behind the cursor, and goes with its segment. Where there is too
//! much, the oldest records that are expendable go first, then the oldest of all; both are counted as lost.
//!
//! A record that [`Spool::push`] has taken outlives the program, whatever becomes of it; [`Spool::to_sync`] is for the machine. A
//! cursor that is lost, or older than what was acknowledged, gives records a second time and leaves none out.

mod segment;

use std::collections::{BTreeMap, VecDeque};
use std::fs::{self, File};
use std::io::{self, Read as _, Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use self::segment::Segment;
pub use self::segment::{Fate, Record};
use crate::error::{Error, Result};

/// How much may wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of all segments together. A segment of slack is needed beside it.
    pub max_size: u64,
    /// Age of a record, to about an eighth.
    pub max_age: Duration,
}

/// Bytes of a segment, where that is not too much for the limits.
const SEGMENT: u64 = 4 << 20;
/// So many segments make up what may wait, at least.
const SEGMENTS: u64 = 8;
/// Where the cursor is kept.
const CURSOR: &str = "cursor";

/// What waits, and what was lost.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Records that wait.
    pub waiting: u64,
    /// Bytes of all segments.
    pub bytes: u64,
    /// When the oldest record that waits was pushed, in milliseconds since 1970; no later than that, where some of its segment are
    /// through.
    pub oldest_ms: Option<u64>,
    /// Records since the spool was opened that nobody will get, by topic.
    pub lost: BTreeMap<String, u64>,
    /// Lines that were found damaged when the spool was opened.
    pub damaged: u64,
}

/// Records on their way to one receiver.
#[derive(Debug)]
pub struct Spool {
    folder: PathBuf,
    limits: Limits,
    /// Oldest first; the last is written to if `file` is there.
    segments: VecDeque<Segment>,
    file: Option<File>,
    /// Number of the next record.
    next: u64,
    /// Number of the first record that was not acknowledged.
    cursor: u64,
    place: Option<Place>,
    lost: BTreeMap<String, u64>,
    damaged: u64,
}

/// Where reading goes on: this record is at this byte of this segment, or behind it.
#[derive(Clone, Copy, Debug)]
struct Place {
    number: u64,
    segment: u64,
    offset: u64,
}

impl Spool {
    /// Opens a folder, made where it is not there.
    ///
    /// # Errors
    /// When it cannot be read or written.
    pub fn open(folder: &Path, limits: Limits) -> Result<Self> {
        let wrong = |action: &'static str| move |error| Error::io(folder, action, error);
        fs::create_dir_all(folder).map_err(wrong("cannot write"))?;
        let mut segments = Vec::new();
        for entry in fs::read_dir(folder).map_err(wrong("cannot read"))? {
            let entry = entry.map_err(wrong("cannot read"))?;
            let Some(first) = Segment::first_of(&entry.file_name().to_string_lossy()) else { continue };
            segments.push(Segment::read(entry.path(), first).map_err(wrong("cannot read"))?);
        }
        segments.sort_by_key(Segment::first);
        let damaged = segments.iter().map(Segment::damaged).sum();
        let read = fs::read_to_string(folder.join(CURSOR)).ok().and_then(|text| text.trim().parse().ok());
        // Without a cursor: from the oldest there is.
        let cursor = read.or(segments.first().map(Segment::first)).unwrap_or(0);
        let next = segments.last().map_or(0, Segment::next).max(cursor);
        let mut spool = Self {
            folder: folder.to_owned(),
            limits,
            segments: segments.into(),
            file: None,
            next,
            cursor,
            place: None,
            lost: BTreeMap::new(),
            damaged,
        };
        spool.keep_cursor().map_err(wrong("cannot write"))?; // says so now rather than at the first record
        spool.drop_acknowledged();
        Ok(spool)
    }

    /// Other limits from now on.
    pub fn limit(&mut self, limits: Limits) {
        self.limits = limits;
    }

    /// Takes a record, and returns its number. One that cannot be written is counted as lost.
    ///
    /// # Errors
    /// When the disk does not take it.
    pub fn push(&mut self, topic: &str, payload: &[u8], fate: Fate, now_ms: u64) -> io::Result<u64> {
        let record =
            Record { number: self.next, utc_ms: now_ms, fate, topic: topic.to_owned(), payload: payload.to_vec() };
        let written = self.write(&record);
        match written {
            Ok(()) => self.next += 1,
            Err(_) => *self.lost.entry(record.topic).or_default() += 1,
        }
        self.trim(now_ms);
        written.map(|()| self.next - 1)
    }

    fn write(&mut self, record: &Record) -> io::Result<()> {
        let line = record.to_line();
        let full = |segment: &Segment| {
            segment.bytes() + line.len() as u64 > self.segment_size()
                || record.utc_ms.saturating_sub(segment.oldest_ms()) > self.max_age_ms() / SEGMENTS
        };
        if self.file.is_some() && self.segments.back().is_none_or(full) {
            self.file = None;
        }
        if self.file.is_none() {
            let segment = Segment::new(&self.folder, record.number);
            if self.segments.back().is_some_and(|last| last.first() == record.number) {
                self.segments.pop_back(); // nothing could be written to it
            }
            self.file = Some(File::create(segment.path())?);
            self.segments.push_back(segment);
        }
        let (Some(file), Some(segment)) = (&mut self.file, self.segments.back_mut()) else { return Ok(()) };
        if let Err(error) = file.write_all(&line) {
            // Half a line would hide the next.
            if file.set_len(segment.bytes()).and_then(|()| file.seek(SeekFrom::End(0))).is_err() {
                self.file = None;
            }
            return Err(error);
        }
        segment.add(record, line.len() as u64);
        Ok(())
    }

    /// Up to `most` records from number `from` on that have not been acknowledged.
    ///
    /// # Errors
    /// When a segment cannot be read.
    pub fn read(&mut self, from: u64, most: usize) -> io::Result<Vec<Record>> {
        let from = from.max(self.cursor);
        let (mut next, mut found) = (from, Vec::new());
        if from >= self.next {
            return Ok(found);
        }
        for segment in self.segments.iter().filter(|segment| segment.next() > from) {
            if found.len() == most {
                break;
            }
            let known = self.place.filter(|place| place.segment == segment.first() && place.number <= next);
            let mut offset = known.map_or(0, |place| place.offset);
            let mut file = File::open(segment.path())?;
            file.seek(SeekFrom::Start(offset))?;
            let mut text = Vec::new();
            file.take(segment.bytes() - offset).read_to_end(&mut text)?;
            for line in text.split_inclusive(|byte| *byte == b'\n') {
                if found.len() == most {
                    break;
                }
                offset += line.len() as u64;
                if let Some(record) = Record::of_line(line)
                    && record.number >= next
                {
                    next = record.number + 1;
                    found.push(record);
                }
            }
            self.place = Some(Place { number: next, segment: segment.first(), offset });
        }
        Ok(found)
    }

    /// The receiver has everything up to and with this number.
    ///
    /// # Errors
    /// When that cannot be written down: after a restart the receiver gets some records twice.
    pub fn acknowledge(&mut self, number: u64) -> io::Result<()> {
        if number < self.cursor {
            return Ok(());
        }
        self.cursor = (number + 1).min(self.next);
        let kept = self.keep_cursor();
        self.drop_acknowledged();
        kept
    }

    /// Number of the first record that was not acknowledged.
    pub fn cursor(&self) -> u64 {
        self.cursor
    }

    /// What waits, and what was lost.
    pub fn counts(&self) -> Counts {
        let open = self.segments.iter().filter(|segment| segment.next() > self.cursor);
        Counts {
            waiting: open.clone().map(|segment| segment.count_from(self.cursor)).sum(),
            bytes: self.segments.iter().map(Segment::bytes).sum(),
            oldest_ms: open.map(Segment::oldest_ms).next(),
            lost: self.lost.clone(),
            damaged: self.damaged,
        }
    }

    /// The file that is written to, so that somebody can wait for the disk without the spool.
    ///
    /// # Errors
    /// When there are too many open files.
    pub fn to_sync(&self) -> io::Result<Option<File>> {
        self.file.as_ref().map(File::try_clone).transpose()
    }

    /// Drops what is too old or too much.
    pub fn trim(&mut self, now_ms: u64) {
        let oldest = now_ms.saturating_sub(self.max_age_ms());
        while self.segments.front().is_some_and(|segment| segment.newest_ms() < oldest) {
            self.lose_first();
        }
        while self.bytes() > self.limits.max_size {
            // What is written to stays as it is.
            let done = self.segments.len() - usize::from(self.file.is_some());
            let with_expendable = self.segments.iter().take(done).position(Segment::has_expendable);
            match with_expendable {
                Some(at) if self.thin(at).is_ok() => {}
                _ if self.segments.is_empty() => break,
                _ => self.lose_first(),
            }
        }
    }

    /// Removes the expendable records of a segment, and those that are through.
    fn thin(&mut self, at: usize) -> io::Result<()> {
        let cursor = self.cursor;
        let Some(segment) = self.segments.get_mut(at) else { return Ok(()) };
        let gone = segment.thin(cursor)?;
        self.place = None;
        gone.into_iter().for_each(|topic| *self.lost.entry(topic).or_default() += 1);
        Ok(())
    }

    /// Drops the oldest segment with all that is in it.
    fn lose_first(&mut self) {
        if self.segments.len() == 1 {
            self.file = None;
        }
        let Some(segment) = self.segments.pop_front() else { return };
        for record in segment.records().unwrap_or_default().iter().filter(|record| record.number >= self.cursor) {
            *self.lost.entry(record.topic.clone()).or_default() += 1;
        }
        let _ = fs::remove_file(segment.path());
    }

    fn drop_acknowledged(&mut self) {
        let done = |segment: &Segment, cursor| segment.next() <= cursor;
        while self.segments.front().is_some_and(|segment| done(segment, self.cursor)) {
            // The one that is written to goes when it is full.
            if self.segments.len() == 1 && self.file.is_some() {
                break;
            }
            let Some(segment) = self.segments.pop_front() else { break };
            let _ = fs::remove_file(segment.path());
        }
    }

    fn keep_cursor(&self) -> io::Result<()> {
        // Not synced: an old one, or none, costs nothing but doubles.
        let new = self.folder.join(CURSOR).with_extension("new");
        fs::write(&new, self.cursor.to_string())?;
        fs::rename(new, self.folder.join(CURSOR))
    }

    fn bytes(&self) -> u64 {
        self.segments.iter().map(Segment::bytes).sum()
    }

    fn segment_size(&self) -> u64 {
        (self.limits.max_size / SEGMENTS).clamp(1, SEGMENT)
    }

    fn max_age_ms(&self) -> u64 {
        u64::try_from(self.limits.max_age.as_millis()).unwrap_or(u64::MAX)
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt as _;

    use proptest::prelude::*;

    use super::*;

    const LIMITS: Limits = Limits { max_size: 1 << 20, max_age: Duration::from_secs(3600) };

    fn numbers(spool: &mut Spool) -> Vec<u64> {
        spool.read(0, usize::MAX).unwrap().iter().map(|record| record.number).collect()
    }

    fn segments(folder: &Path) -> Vec<PathBuf> {
        let files = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
        let mut files: Vec<PathBuf> = files.filter(|path| path.extension().is_some_and(|end| end == "spool")).collect();
        files.sort();
        files
    }

    #[test]
    fn what_was_not_acknowledged_is_there_after_a_crash() {
        let folder = tempfile::tempdir().unwrap();
        let mut spool = Spool::open(folder.path(), LIMITS).unwrap();
        for at in 0..10 {
            let number = spool.push("cap", format!("{{\"at\":{at}}}").as_bytes(), Fate::Kept, 1000 + at).unwrap();
            assert_eq!(number, at);
        }
        spool.acknowledge(3).unwrap();
        drop(spool); // nothing is done at the end that a crash would leave out
        let last = segments(folder.path()).pop().unwrap();
        let file = File::options().append(true).open(&last).unwrap();
        (&file).write_all(b"0123abcd 10 1010 + cap {\"cut sh").unwrap();
        let mut spool = Spool::open(folder.path(), LIMITS).unwrap();
        assert_eq!(numbers(&mut spool), (4..10).collect::<Vec<_>>());
        let first = &spool.read(4, 1).unwrap()[0];
        assert_eq!((first.topic.as_str(), first.payload.as_slice(), first.utc_ms), ("cap", &b"{\"at\":4}"[..], 1004));
        assert_eq!(spool.push("cap", b"{}", Fate::Kept, 2000).unwrap(), 10);
        let counts = Counts { waiting: 7, bytes: spool.bytes(), oldest_ms: Some(1000), ..Counts::default() };
        assert_eq!(spool.counts(), counts);
        spool.acknowledge(10).unwrap();
        assert_eq!((spool.counts().waiting, spool.counts().oldest_ms), (0, None));
        drop(spool);
        assert_eq!(Spool::open(folder.path(), LIMITS).unwrap().counts().bytes, 0);
        assert!(segments(folder.path()).is_empty());
    }

    #[test]
    fn a_flipped_byte_costs_its_record_and_a_lost_cursor_none() {
        let folder = tempfile::tempdir().unwrap();
        let mut spool = Spool::open(folder.path(), LIMITS).unwrap();
        for _ in 0..10 {
            spool.push("cap", b"{\"payload\":1}", Fate::Kept, 5).unwrap();
        }
        spool.acknowledge(4).unwrap();
        let line = spool.bytes() / 10;
        let file = File::options().write(true).open(&segments(folder.path())[0]).unwrap();
        file.write_at(b"X", 6 * line + line / 2).unwrap();
        let mut again = Spool::open(folder.path(), LIMITS).unwrap();
        assert_eq!((numbers(&mut again), again.counts().damaged), (vec![5, 7, 8, 9], 1));
        for cursor in ["", "four"] {
            fs::write(folder.path().join(CURSOR), cursor).unwrap();
            assert_eq!(numbers(&mut Spool::open(folder.path(), LIMITS).unwrap()), [0, 1, 2, 3, 4, 5, 7, 8, 9]);
            // The one that was opened has written it anew.
        }
    }

    #[test]
    fn good_parts_make_room_first_then_the_oldest() {
        let folder = tempfile::tempdir().unwrap();
        let mut spool = Spool::open(folder.path(), Limits { max_size: 8000, ..LIMITS }).unwrap();
        let payload = [b'x'; 70];
        let mut push = |at: u64, fate| spool.push("cap", &payload, fate, at).map(|_| (spool.bytes(), at)).unwrap();
        for at in 0..400 {
            let fate = if at % 10 == 0 { Fate::Kept } else { Fate::Expendable };
            let (bytes, _) = push(at, fate);
            assert!(bytes <= 8000, "{bytes} bytes after record {at}");
        }
        let left = numbers(&mut spool);
        let kept = (0..400).filter(|at| at % 10 == 0);
        assert!(kept.clone().all(|at| left.contains(&at)), "what is kept goes last: {left:?}");
        assert_eq!(spool.counts().lost["cap"], 400 - left.len() as u64);
        for at in 400..600 {
            spool.push("cap", &payload, Fate::Kept, at).unwrap();
        }
        let left = numbers(&mut spool);
        assert!(!left.contains(&0) && left.windows(2).all(|pair| pair[1] == pair[0] + 1), "the oldest go: {left:?}");
        assert_eq!(left.last(), Some(&599));
        assert_eq!(spool.counts().lost["cap"], 600 - left.len() as u64);
    }

    #[test]
    fn what_is_too_old_goes() {
        let folder = tempfile::tempdir().unwrap();
        let mut spool = Spool::open(folder.path(), Limits { max_age: Duration::from_millis(800), ..LIMITS }).unwrap();
        for at in 0..40 {
            spool.push("cap", b"{}", Fate::Kept, 100 * at).unwrap();
        }
        let left = numbers(&mut spool);
        assert!((8..=10).contains(&left.len()) && left.last() == Some(&39), "{left:?}");
        assert_eq!(spool.counts().lost["cap"], 40 - left.len() as u64);
        spool.trim(1_000_000);
        assert_eq!((numbers(&mut spool), spool.counts().lost["cap"], spool.bytes()), (vec![], 40, 0));
        assert_eq!(spool.push("cap", b"{}", Fate::Kept, 1_000_000).unwrap(), 40);
    }

    #[test]
    fn a_folder_that_cannot_be_written_is_an_error_that_names_it() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("file");
        fs::write(&file, "").unwrap();
        let error = Spool::open(&file.join("mqtt"), LIMITS).unwrap_err().to_string();
        assert!(error.contains("file/mqtt") && error.contains("cannot write"), "{error}");
    }

    #[derive(Clone, Debug)]
    enum Step {
        Push { kept: bool, size: usize },
        Deliver(usize),
        Crash,
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let push = (any::<bool>(), 0usize..200).prop_map(|(kept, size)| Step::Push { kept, size });
        let step = prop_oneof![
            20 => push, 3 => (1usize..20).prop_map(Step::Deliver), 1 => Just(Step::Crash),
        ];
        prop::collection::vec(step, 0..300)
    }

    proptest! {
        /// Whatever happens: each record is delivered, waits, or is counted as lost; in order; and within the limits.
        #[test]
        fn every_record_is_delivered_or_waits_or_is_counted(steps in steps(), max_size in 500u64..20_000) {
            let folder = tempfile::tempdir().unwrap();
            let limits = Limits { max_size, ..LIMITS };
            let mut spool = Spool::open(folder.path(), limits).unwrap();
            let (mut pushed, mut delivered, mut lost) = (0, std::collections::BTreeSet::new(), 0);
            for step in steps {
                match step {
                    Step::Push { kept, size } => {
                        let fate = if kept { Fate::Kept } else { Fate::Expendable };
                        prop_assert_eq!(spool.push("cap", &vec![b'x'; size], fate, 0).unwrap(), pushed);
                        pushed += 1;
                        prop_assert!(spool.bytes() <= max_size.max(300));
                    }
                    Step::Deliver(most) => {
                        let records = spool.read(spool.cursor(), most).unwrap();
                        prop_assert!(records.windows(2).all(|pair| pair[0].number < pair[1].number));
                        delivered.extend(records.iter().map(|record| record.number));
                        if let Some(last) = records.last() {
                            spool.acknowledge(last.number).unwrap();
                        }
                    }
                    Step::Crash => {
                        drop(spool);
                        spool = Spool::open(folder.path(), limits).unwrap();
                    }
                }
                lost += spool.lost.remove("cap").unwrap_or_default();
                let waiting = numbers(&mut spool);
                prop_assert_eq!(waiting.len() as u64, spool.counts().waiting);
                let known = (waiting.len() + delivered.len()) as u64 + lost;
                prop_assert_eq!(known, pushed, "{} wait, {} delivered, {} lost", waiting.len(), delivered.len(), lost);
            }
        }
    }
}
