//! Reads many files ahead of their use, on threads of their own: in order, within bounded memory, each file once.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use crossbeam_channel::{RecvTimeoutError, bounded};

use crate::error::{Error, Result};

/// How long a wait for the next file lasts before `stop` is asked again.
const STOP_CHECK: Duration = Duration::from_millis(50);
/// Threads that read and decode.
const THREADS: usize = 2;
/// Share of the images of a product that may be unreadable: a model, and the promise of its threshold, are for parts as
/// they come, not for those that happen to be readable.
const MAX_UNREADABLE: f64 = 0.05;

/// A request to stop work at the next opportunity; clones share it.
#[derive(Clone, Debug, Default)]
pub struct Stop(Arc<AtomicBool>);

impl Stop {
    /// Requests it.
    pub fn request(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    /// Whether it was requested.
    pub fn requested(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    /// # Errors
    /// [`Error::Interrupted`] when it was requested.
    pub fn check(&self) -> Result<()> {
        if self.requested() { Err(Error::Interrupted { checkpoint: None }) } else { Ok(()) }
    }
}

/// Files of a group with their indices, or why they cannot be read.
pub type Group<T> = Vec<(usize, Result<T>)>;

/// Reads files ahead and hands them on in groups; keeps the names of those that cannot be read.
pub struct ReadAhead<'a> {
    stop: &'a Stop,
    group: usize,
    /// Files that could not be read so far, each with the reason.
    pub unreadable: Vec<(PathBuf, String)>,
}

impl<'a> ReadAhead<'a> {
    /// For groups of `group` readable files (0 counts as 1).
    pub fn new(group: usize, stop: &'a Stop) -> Self {
        Self { stop, group: group.max(1), unreadable: Vec::new() }
    }

    /// Reads each of `paths` once with `read`, on other threads, and hands them to `f` on this one: in the order of `paths`,
    /// with their indices. Every group but the last holds as many readable files as was asked for, and the unreadable ones
    /// among them. At most two groups and the files in the hands of the threads exist at a time.
    ///
    /// # Errors
    /// Those of `f`, which end the reading; [`Error::Interrupted`] once a stop is requested, within 50 ms and the time
    /// of the files being read at that moment; [`Error::Threads`].
    pub fn each_group<T: Send>(
        &mut self,
        paths: &[PathBuf],
        read: impl Fn(&Path) -> Result<T> + Sync,
        mut f: impl FnMut(Group<T>) -> Result<()>,
    ) -> Result<()> {
        let (mut waiting, mut readable) = (Group::new(), 0);
        in_order(paths, THREADS, self.group + THREADS, read, &|| self.stop.requested(), |index, file| {
            match &file {
                Ok(_) => readable += 1,
                Err(error) => self.unreadable.push((paths[index].clone(), error.to_string())),
            }
            waiting.push((index, file));
            if readable < self.group && index + 1 < paths.len() {
                return Ok(());
            }
            readable = 0;
            f(std::mem::take(&mut waiting))
        })?;
        self.stop.check()
    }
}

/// Refuses a product in `root` of whose `total` images more than 5 % are `unreadable`.
///
/// # Errors
/// [`Error::Image`] with the numbers and the first reason.
pub fn check_unreadable(root: &Path, total: usize, unreadable: &[(PathBuf, String)]) -> Result<()> {
    let lost = unreadable.len();
    if lost as f64 <= MAX_UNREADABLE * total as f64 {
        return Ok(());
    }
    let first = unreadable.first().map(|(_, reason)| reason.as_str()).unwrap_or_default();
    let limit = 100.0 * MAX_UNREADABLE;
    let reason = format!("{lost} of {total} images cannot be read, more than {limit:.0} %; the first: {first}");
    Err(Error::Image { path: root.to_path_buf(), reason })
}

/// Reads `paths` with `threads` threads and hands each file, or why it cannot be read, to `f` together with its index: on
/// the calling thread, in the order of `paths`. At most `depth` files exist from the begin of their reading until `f`
/// is called. More threads than `depth` are not started; 0 counts as 1 for both.
fn in_order<T: Send>(
    paths: &[PathBuf],
    threads: usize,
    depth: usize,
    read: impl Fn(&Path) -> Result<T> + Sync,
    stop: &dyn Fn() -> bool,
    mut f: impl FnMut(usize, Result<T>) -> Result<()>,
) -> Result<()> {
    let depth = depth.clamp(1, paths.len().max(1));
    let cancelled = AtomicBool::new(false);
    thread::scope(|scope| {
        // Both hold `depth` entries and no more are ever on their way, so that no send waits.
        let (jobs, work) = bounded::<usize>(depth);
        let (done, results) = bounded::<(usize, Result<T>)>(depth);
        for n in 0..threads.clamp(1, depth) {
            let (work, done, read, cancelled) = (work.clone(), done.clone(), &read, &cancelled);
            thread::Builder::new()
                .name(format!("diad-read-{n}"))
                .spawn_scoped(scope, move || {
                    for index in work {
                        if cancelled.load(Ordering::Relaxed) || done.send((index, read(&paths[index]))).is_err() {
                            return;
                        }
                    }
                })
                .map_err(|error| Error::threads("reads images", error))?;
        }
        drop((work, done));

        // Dropping `jobs` at any return ends the threads; those with jobs left see the flag.
        let _cancel = OnDrop(|| cancelled.store(true, Ordering::Relaxed));
        let mut waiting: Vec<Option<Result<T>>> = (0..depth).map(|_| None).collect(); // index % depth
        let mut asked = 0;
        for next in 0..paths.len() {
            while asked < paths.len() && asked < next + depth {
                jobs.send(asked).map_err(|_| thread_lost())?;
                asked += 1;
            }
            let frame = loop {
                if stop() {
                    return Err(Error::Interrupted { checkpoint: None });
                }
                if let Some(frame) = waiting[next % depth].take() {
                    break frame;
                }
                match results.recv_timeout(STOP_CHECK) {
                    Ok((index, frame)) => waiting[index % depth] = Some(frame),
                    Err(RecvTimeoutError::Timeout) => {}
                    Err(RecvTimeoutError::Disconnected) => return Err(thread_lost()),
                }
            };
            f(next, frame)?;
        }
        Ok(())
    })
}

fn thread_lost() -> Error {
    Error::Internal("a thread that reads images ended early".into())
}

struct OnDrop<F: Fn()>(F);

impl<F: Fn()> Drop for OnDrop<F> {
    fn drop(&mut self) {
        (self.0)();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;

    use proptest::prelude::*;

    use super::*;

    const NEVER: &dyn Fn() -> bool = &|| false;

    fn numbered(n: usize) -> Vec<PathBuf> {
        (0..n).map(|i| PathBuf::from(i.to_string())).collect()
    }

    fn number(path: &Path) -> usize {
        path.to_str().unwrap().parse().unwrap()
    }

    /// Counts how many of it exist, and how many ever did at once.
    struct Counted<'a>(&'a AtomicUsize);

    impl<'a> Counted<'a> {
        fn new(alive: &'a AtomicUsize, most: &AtomicUsize) -> Self {
            most.fetch_max(alive.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
            Self(alive)
        }
    }

    impl Drop for Counted<'_> {
        fn drop(&mut self) {
            self.0.fetch_sub(1, Ordering::SeqCst);
        }
    }

    #[test]
    fn groups_hold_readable_files_and_the_unreadable_ones_among_them() {
        let (mut groups, read) = (Vec::new(), AtomicUsize::new(0));
        let stop = Stop::default();
        let mut files = ReadAhead::new(2, &stop);
        let odd = |path: &Path| {
            read.fetch_add(1, Ordering::SeqCst);
            let n = number(path);
            if n % 3 == 1 { Err(Error::Usage(format!("no {n}"))) } else { Ok(n) }
        };
        files
            .each_group(&numbered(8), odd, |group| {
                groups.push(group.into_iter().map(|(i, file)| (i, file.ok())).collect::<Vec<_>>());
                Ok(())
            })
            .unwrap();
        let expected: [&[_]; 3] = [
            &[(0, Some(0)), (1, None), (2, Some(2))],
            &[(3, Some(3)), (4, None), (5, Some(5))],
            &[(6, Some(6)), (7, None)],
        ];
        assert_eq!(groups, expected);
        assert_eq!(files.unreadable, [1, 4, 7].map(|n| (PathBuf::from(n.to_string()), format!("no {n}"))));
        files.each_group(&numbered(2), odd, |_| Ok(())).unwrap();
        assert_eq!((files.unreadable.len(), read.load(Ordering::SeqCst)), (4, 10), "each file is read once");
        files.each_group(&[], odd, |_| panic!("nothing to read")).unwrap();
        stop.request();
        let stopped = files.each_group(&numbered(2), odd, |_| panic!("nothing is read"));
        assert!(matches!(stopped, Err(Error::Interrupted { checkpoint: None })));
    }

    #[test]
    fn five_per_cent_may_be_unreadable() {
        let unreadable = vec![(PathBuf::from("x"), "x: no image".to_owned()); 2];
        check_unreadable(Path::new("cap"), 40, &unreadable).unwrap();
        let error = check_unreadable(Path::new("cap"), 39, &unreadable).unwrap_err();
        assert_eq!(error.to_string(), "cap: 2 of 39 images cannot be read, more than 5 %; the first: x: no image");
    }

    #[test]
    fn an_error_of_the_receiver_ends_the_reading() {
        let reads = AtomicUsize::new(0);
        let mut calls = 0;
        let error = in_order(
            &numbered(1000),
            2,
            4,
            |path| {
                reads.fetch_add(1, Ordering::SeqCst);
                Ok(number(path))
            },
            NEVER,
            |index, _| {
                calls += 1;
                if index == 5 { Err(Error::Usage("enough".into())) } else { Ok(()) }
            },
        )
        .unwrap_err();
        assert_eq!((error.to_string().as_str(), calls), ("enough", 6));
        assert!(reads.into_inner() <= 5 + 4, "no more than what was asked for was read");
    }

    #[test]
    fn stop_ends_a_wait_for_a_slow_image() {
        let (release, gate) = bounded::<()>(0);
        let asked = AtomicUsize::new(0);
        let release = std::cell::Cell::new(Some(release));
        // Says stop the third time, and only then lets the reading go on.
        let stop = || asked.fetch_add(1, Ordering::SeqCst) >= 2 && release.take().is_some();
        let read = |_: &Path| {
            let _ = gate.recv();
            Ok(())
        };
        let error = in_order(&numbered(10), 2, 2, read, &stop, |_, _| panic!("nothing is read")).unwrap_err();
        assert!(matches!(error, Error::Interrupted { checkpoint: None }));
        assert_eq!(asked.into_inner(), 3);
    }

    proptest! {
        #[test]
        fn every_index_comes_once_in_order_and_memory_is_bounded(
            n in 0usize..60, threads in 0usize..6, depth in 0usize..8,
        ) {
            let (alive, most) = (AtomicUsize::new(0), AtomicUsize::new(0));
            let mut expected = 0;
            in_order(
                &numbered(n), threads, depth,
                |path| Ok((number(path), Counted::new(&alive, &most))),
                NEVER,
                |index, item| {
                    assert_eq!((index, item.unwrap().0), (expected, expected));
                    expected += 1;
                    Ok(())
                },
            )
            .unwrap();
            prop_assert_eq!(expected, n);
            prop_assert!(most.into_inner() <= depth.max(1));
            prop_assert_eq!(alive.into_inner(), 0);
        }
    }
}
