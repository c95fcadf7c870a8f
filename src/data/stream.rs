//! Reads many images with several threads, in order and within bounded memory.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use crossbeam_channel::{RecvTimeoutError, bounded};

use crate::error::{Error, Result};
use crate::frame::{Frame, read_frame};

/// How long a wait for the next frame lasts before `stop` is asked again.
const STOP_CHECK: Duration = Duration::from_millis(50);

/// Reads `paths` with `threads` threads and hands every frame, or why it cannot be read, to `f` together with its
/// index: on the calling thread, in the order of `paths`, each once.
///
/// At most `depth` frames exist at a time, from the begin of their decoding until `f` returns. More threads than
/// `depth` are not started; 0 counts as 1 for both.
///
/// # Errors
/// The error of `f`, which ends the reading; [`Error::Interrupted`] once `stop` says true, which is asked before
/// each frame and at least every 50 ms. Frames being decoded at that moment are finished and dropped.
pub fn read_all(
    paths: &[PathBuf],
    threads: usize,
    depth: usize,
    f: impl FnMut(usize, Result<Frame>) -> Result<()>,
    stop: &dyn Fn() -> bool,
) -> Result<()> {
    read_all_with(paths, threads, depth, read_frame, f, stop)
}

/// [`read_all`] with any reader.
fn read_all_with<T: Send>(
    paths: &[PathBuf],
    threads: usize,
    depth: usize,
    read: impl Fn(&std::path::Path) -> Result<T> + Sync,
    mut f: impl FnMut(usize, Result<T>) -> Result<()>,
    stop: &dyn Fn() -> bool,
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
                .map_err(|e| Error::Internal(format!("cannot start a thread that reads images: {e}")))?;
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
    use std::path::Path;
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
    fn frames_and_failures_come_in_order() {
        let folder = tempfile::tempdir().unwrap();
        let paths: Vec<PathBuf> = (0..9).map(|i| folder.path().join(format!("{i}.png"))).collect();
        for (i, path) in paths.iter().enumerate().filter(|(i, _)| *i != 4) {
            image::GrayImage::from_pixel(i as u32 + 1, 1, image::Luma([i as u8])).save(path).unwrap();
        }
        let mut got = Vec::new();
        read_all(
            &paths,
            3,
            4,
            |i, frame| {
                got.push((i, frame.map(|f| f.width()).map_err(|e| e.to_string())));
                Ok(())
            },
            NEVER,
        )
        .unwrap();
        for (i, (index, frame)) in got.iter().enumerate() {
            assert_eq!(*index, i);
            match frame {
                Ok(width) => assert_eq!(*width, i + 1),
                Err(text) => assert!(i == 4 && text.contains("4.png"), "{text}"),
            }
        }
        assert_eq!(got.len(), 9);
    }

    #[test]
    fn nothing_to_read_is_no_error() {
        read_all(&[], 4, 4, |_, _| panic!("no frame"), NEVER).unwrap();
    }

    #[test]
    fn an_error_of_the_receiver_ends_the_reading() {
        let reads = AtomicUsize::new(0);
        let mut calls = 0;
        let error = read_all_with(
            &numbered(1000),
            2,
            4,
            |path| {
                reads.fetch_add(1, Ordering::SeqCst);
                Ok(number(path))
            },
            |index, _| {
                calls += 1;
                if index == 5 { Err(Error::Usage("enough".into())) } else { Ok(()) }
            },
            NEVER,
        )
        .unwrap_err();
        assert_eq!((error.to_string().as_str(), calls), ("enough", 6));
        assert!(reads.into_inner() <= 5 + 4, "no more than what was asked for was read");
    }

    #[test]
    fn stop_ends_a_wait_for_a_slow_image() {
        let (release, gate) = bounded::<()>(0);
        let asked = AtomicUsize::new(0);
        let error = read_all_with(
            &numbered(10),
            2,
            2,
            |_| {
                // Waits until the test has seen the stop: `release` is dropped there.
                let _ = gate.recv();
                Ok(())
            },
            |_, _| panic!("no frame is ready"),
            &{
                let release = std::cell::Cell::new(Some(release));
                let asked = &asked;
                move || asked.fetch_add(1, Ordering::SeqCst) >= 2 && release.take().is_some()
            },
        )
        .unwrap_err();
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
            read_all_with(
                &numbered(n), threads, depth,
                |path| Ok((number(path), Counted::new(&alive, &most))),
                |index, item| {
                    assert_eq!((index, item.unwrap().0), (expected, expected));
                    expected += 1;
                    Ok(())
                },
                NEVER,
            )
            .unwrap();
            prop_assert_eq!(expected, n);
            prop_assert!(most.into_inner() <= depth.max(1));
            prop_assert_eq!(alive.into_inner(), 0);
        }
    }
}
