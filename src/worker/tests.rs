//! A scripted model behind a gate: the tests decide when a batch ends, so nothing depends on time.

use proptest::prelude::*;

use super::*;
use crate::bundle::fixture;
use crate::config::Size;
use crate::detector::{AnomalyMap, CellScores, ClassSource, Embeddings, Verdict};
use crate::frame::{Frame, Geometry};

const NOW: Duration = Duration::ZERO;

fn card() -> Card {
    fixture::card(&["part"])
}

/// A job whose one pixel tells the model what to do.
fn job(pixel: u8) -> Job {
    let frame = Frame::new(1, 1, vec![pixel; 3]).unwrap();
    let geometry = Geometry {
        original: [1, 1],
        input: Size::square(1),
        valid: [0.0, 0.0, 1.0, 1.0],
        shown: [0.0, 0.0, 1.0, 1.0],
        pose: None,
    };
    Job { inputs: vec![Prepared { frame, geometry, shape: 0, lost: false }], request: Arc::default() }
}

const PANIC: u8 = 250;
const FAIL: u8 = 251;
const LOSE: u8 = 252;
const SHORT_OF_MEMORY: u8 = 253;
const GONE: u8 = 254;
/// Panics when it is begun with, not when it is answered.
const PANIC_EARLY: u8 = 249;
/// Stands before the pixels of a batch that is begun with.
const BEGUN: u8 = 248;
/// Stands before those of a batch that the device is done with.
const MEASURED: u8 = 247;
/// Panics when the device is waited for.
const PANIC_LATE: u8 = 246;
/// Panics, and once more as it is given up.
const END: u8 = 245;

/// Scores a job with its pixel. Tells of each batch, then waits at the gate.
struct Scripted {
    card: Card,
    began: Sender<Vec<u8>>,
    gate: Receiver<()>,
    /// Was told to end the thread.
    doomed: bool,
    /// Works by itself, as a GPU does.
    ahead: bool,
}

impl Detect for Scripted {
    fn card(&self) -> &Card {
        &self.card
    }

    fn embed(&mut self, jobs: &[&Job]) -> Result<Option<Embeddings>> {
        if !self.ahead || jobs.is_empty() {
            return Ok(None);
        }
        let pixels: Vec<u8> = jobs.iter().map(|job| job.inputs[0].frame.rgb()[0]).collect();
        let _ = self.began.send([&[BEGUN], &pixels[..]].concat());
        assert!(!pixels.contains(&PANIC_EARLY), "told to panic");
        Ok(Some(Embeddings::default()))
    }

    fn measure(&mut self, jobs: &[&Job], _: Embeddings) -> Result<CellScores> {
        let pixels: Vec<u8> = jobs.iter().map(|job| job.inputs[0].frame.rgb()[0]).collect();
        let _ = self.began.send([&[MEASURED], &pixels[..]].concat());
        assert!(!pixels.contains(&PANIC_LATE), "told to panic");
        Ok(CellScores::default())
    }

    fn inspect(&mut self, jobs: &[&Job]) -> Vec<Result<Detection>> {
        assert!(!self.ahead || jobs.is_empty(), "it works in phases");
        self.answer(jobs)
    }

    fn conclude(&mut self, jobs: &[&Job], _: CellScores) -> Vec<Result<Detection>> {
        self.answer(jobs)
    }
}

impl Drop for Scripted {
    fn drop(&mut self) {
        assert!(!self.doomed, "told to end the thread"); // outside of what the thread guards
    }
}

impl Scripted {
    fn answer(&mut self, jobs: &[&Job]) -> Vec<Result<Detection>> {
        let pixels: Vec<u8> = jobs.iter().map(|job| job.inputs[0].frame.rgb()[0]).collect();
        let _ = self.began.send(pixels.clone());
        let _ = self.gate.recv();
        self.doomed = pixels.contains(&END);
        assert!(!pixels.contains(&PANIC) && !self.doomed, "told to panic");
        if pixels.contains(&LOSE) {
            return Vec::new();
        }
        let detection = |pixel: u8| Detection {
            verdict: Verdict::Ok,
            score: f32::from(pixel),
            threshold: 1.0,
            warn_threshold: 1.0,
            percentile: 50.0,
            class: "part".into(),
            class_source: ClassSource::Only,
            regions: Vec::new(),
            pose: None,
            pixel_threshold: 1.0,
            map: AnomalyMap { size: Size::square(1), values: vec![0.0], geometry: job(0).inputs[0].geometry },
        };
        if pixels.contains(&SHORT_OF_MEMORY) {
            return Error::Memory("no room".into()).for_all(pixels.len());
        }
        if pixels.contains(&GONE) {
            return Error::Lost("fell off the bus".into()).for_all(pixels.len());
        }
        let outcome = |&pixel: &u8| if pixel == FAIL { Err(Error::Usage("no".into())) } else { Ok(detection(pixel)) };
        pixels.iter().map(outcome).collect()
    }
}

/// A worker with a scripted model, and the test's hold on it.
struct Rig {
    worker: Worker,
    began: Receiver<Vec<u8>>,
    gate: Option<Sender<()>>,
}

impl Rig {
    /// `openings`: how often the model can be opened.
    fn new(batch_size: usize, openings: usize) -> Self {
        Self::patient(batch_size, openings, Duration::ZERO)
    }

    fn patient(batch_size: usize, openings: usize, batch_timeout: Duration) -> Self {
        Self::start(batch_size, openings, batch_timeout, false)
    }

    /// A device that works by itself, batches of one.
    fn ahead() -> Self {
        Self::start(1, 9, Duration::ZERO, true)
    }

    fn start(batch_size: usize, openings: usize, batch_timeout: Duration, ahead: bool) -> Self {
        let (tell, began) = bounded(10_000);
        let (gate, closed) = bounded(10_000);
        for _ in 0..WARM_UP_BATCHES {
            gate.send(()).unwrap();
        }
        let opened = AtomicUsize::new(0);
        let open = move || -> Result<Box<dyn Detect>> {
            if opened.fetch_add(1, Ordering::Relaxed) >= openings {
                return Err(Error::Usage("the file is gone".into()));
            }
            Ok(Box::new(Scripted { card: card(), began: tell.clone(), gate: closed.clone(), doomed: false, ahead }))
        };
        let options = Options { name: "test".into(), batch_size, batch_timeout };
        let worker = Worker::start(Box::new(open), options).unwrap();
        let rig = Self { worker, began, gate: Some(gate) };
        (0..WARM_UP_BATCHES).for_each(|_| assert!(rig.began.recv().unwrap().is_empty()));
        rig
    }

    fn submit(&self, stream: u64, pixel: u8) -> Ticket {
        self.worker.submit(stream, job(pixel), NOW).unwrap()
    }

    /// Lets `n` batches through.
    fn open(&self, n: usize) {
        (0..n).for_each(|_| self.gate.as_ref().unwrap().send(()).unwrap());
    }
}

fn score(answer: Answer) -> Result<f32, Failure> {
    answer.outcome.map(|detection| detection.score)
}

#[test]
fn batches_form_while_the_model_is_busy() {
    let rig = Rig::new(3, 1);
    let first = rig.submit(1, 0);
    assert_eq!(rig.began.recv().unwrap(), [0], "an idle worker waits for nobody");
    let waiting: Vec<_> = (1..6).map(|i| rig.submit(1, i)).collect();
    assert_eq!(rig.worker.pending(), 6);
    rig.open(3);
    assert_eq!(score(first.wait()), Ok(0.0));
    assert_eq!(rig.began.recv().unwrap(), [1, 2, 3]);
    assert_eq!(rig.began.recv().unwrap(), [4, 5]);
    for (i, ticket) in waiting.into_iter().enumerate() {
        let answer = ticket.wait();
        assert_eq!(answer.batch, if i < 3 { 3 } else { 2 });
        assert_eq!(score(answer), Ok((i + 1) as f32), "each ticket gets its own answer");
    }
    let stats = rig.worker.stats();
    assert_eq!((stats.batches, stats.frames, stats.errors), (3, 6, 0));
    assert_eq!(stats.mean_batch(), 2.0);
    assert_eq!((stats.queue.summary().count, rig.worker.pending()), (6, 0));
}

#[test]
fn a_batch_that_is_not_full_leaves_at_the_timeout() {
    let rig = Rig::patient(2, 1, Duration::from_millis(20));
    rig.open(2);
    let pair = [1, 2].map(|pixel| rig.submit(1, pixel));
    assert_eq!(pair.map(|ticket| score(ticket.wait())), [Ok(1.0), Ok(2.0)]);
    let alone = rig.submit(1, 3);
    // Nobody else comes: the timeout alone makes it leave. The limit is for a worker that has lost it.
    let answer = alone.receiver().recv_timeout(Duration::from_secs(15)).expect("the batch leaves");
    assert!(answer.queue >= Duration::from_millis(20), "it waited for company");
    assert_eq!(score(answer), Ok(3.0));
}

#[test]
fn streams_take_turns() {
    let rig = Rig::new(2, 1);
    let _first = rig.submit(9, 0);
    rig.began.recv().unwrap();
    let _waiting: Vec<_> = [(1, 11), (1, 12), (1, 13), (2, 21), (3, 31)].map(|(s, p)| rig.submit(s, p)).into();
    rig.open(4);
    let batches: Vec<_> = (0..3).map(|_| rig.began.recv().unwrap()).collect();
    assert_eq!(batches, [vec![11, 21], vec![31, 12], vec![13]]);
}

#[test]
fn an_error_is_of_its_frame_alone() {
    let rig = Rig::new(3, 1);
    let _first = rig.submit(1, 0);
    rig.began.recv().unwrap();
    let tickets = [1, FAIL, 2].map(|pixel| rig.submit(1, pixel));
    rig.open(2);
    let [a, b, c] = tickets.map(|ticket| score(ticket.wait()));
    assert_eq!((a, b, c), (Ok(1.0), Err(Failure::Failed("no".into())), Ok(2.0)));
    assert_eq!(rig.worker.stats().errors, 1);
}

#[test]
fn a_model_that_answers_for_fewer_frames_answers_for_none() {
    let rig = Rig::new(1, 1);
    rig.open(1);
    assert!(matches!(score(rig.submit(1, LOSE).wait()), Err(Failure::Failed(words)) if words.contains("0 answers")));
}

#[test]
fn a_device_that_works_by_itself_has_the_next_batch_before_the_last_is_answered() {
    let rig = Rig::ahead();
    let began = || rig.began.recv().unwrap();
    let first = rig.submit(1, 0);
    assert_eq!(
        [began(), began(), began()],
        [vec![BEGUN, 0], vec![MEASURED, 0], vec![0]],
        "alone it is answered at once"
    );
    let waiting = [1, 2, 3].map(|pixel| rig.submit(1, pixel));
    rig.open(4);
    assert_eq!(score(first.wait()), Ok(0.0));
    let order: Vec<Vec<u8>> = (0..9).map(|_| began()).collect();
    let [begun, measured] = [BEGUN, MEASURED].map(|mark| move |pixel| vec![mark, pixel]);
    let expected = [
        begun(1),
        measured(1),
        begun(2), // the device has the next before the host makes the answer
        vec![1],
        measured(2),
        begun(3),
        vec![2],
        measured(3),
        vec![3],
    ];
    assert_eq!(order, expected);
    assert_eq!(waiting.map(|ticket| score(ticket.wait())), [Ok(1.0), Ok(2.0), Ok(3.0)]);
    assert_eq!(rig.worker.pending(), 0);
}

#[test]
fn a_panic_while_a_batch_is_sent_answers_what_is_under_way_too() {
    let rig = Rig::ahead();
    let first = rig.submit(1, 0);
    (0..3).for_each(|_| drop(rig.began.recv().unwrap()));
    let [under_way, early, after] = [1, PANIC_EARLY, 2].map(|pixel| rig.submit(1, pixel));
    rig.open(2); // of the first and of the last: the model is not asked in between
    assert_eq!(score(first.wait()), Ok(0.0));
    let panicked = Err(Failure::Panicked("told to panic".into()));
    assert_eq!([score(under_way.wait()), score(early.wait())], [panicked.clone(), panicked]);
    assert_eq!(score(after.wait()), Ok(2.0), "opened anew, it goes on");
}

#[test]
fn a_panic_while_the_device_is_waited_for_is_of_its_batch_alone() {
    let rig = Rig::ahead();
    let first = rig.submit(1, 0);
    (0..3).for_each(|_| drop(rig.began.recv().unwrap()));
    let [late, after] = [PANIC_LATE, 2].map(|pixel| rig.submit(1, pixel));
    rig.open(2);
    assert_eq!(score(first.wait()), Ok(0.0));
    assert_eq!(score(late.wait()), Err(Failure::Panicked("told to panic".into())));
    assert_eq!(score(after.wait()), Ok(2.0), "opened anew, it goes on");
    assert_eq!(rig.worker.stats().panics, 1);
}

#[test]
fn without_memory_the_batch_fails_and_batches_are_halved_once() {
    let rig = Rig::new(4, 1);
    let first = rig.submit(1, 0);
    rig.began.recv().unwrap();
    let tickets = [1, 2, SHORT_OF_MEMORY, 4].map(|pixel| rig.submit(1, pixel));
    let more: Vec<Ticket> = [5, 6, 7, SHORT_OF_MEMORY, 8, 9].map(|pixel| rig.submit(1, pixel)).into();
    rig.open(9);
    assert_eq!(score(first.wait()), Ok(0.0));
    for ticket in tickets {
        assert_eq!(score(ticket.wait()), Err(Failure::Memory("no room".into())));
    }
    let batches: Vec<_> = (0..4).map(|_| rig.began.recv().unwrap()).collect();
    let expected = [vec![1, 2, SHORT_OF_MEMORY, 4], vec![5, 6], vec![7, SHORT_OF_MEMORY], vec![8, 9]];
    assert_eq!(batches, expected, "from four to two, and no further");
    let ok = more.into_iter().filter(|ticket| ticket.receiver().recv().unwrap().outcome.is_ok()).count();
    assert_eq!((ok, rig.worker.stats().errors), (4, 6));
}

#[test]
fn a_lost_device_is_said_in_the_drivers_words_and_not_asked_again() {
    let rig = Rig::new(1, 9);
    rig.open(1);
    let gone = Failure::Lost("fell off the bus".into());
    assert_eq!(score(rig.submit(1, GONE).wait()), Err(gone.clone()));
    // No gate: the model is not asked any more.
    assert_eq!(score(rig.submit(1, 1).wait()), Err(gone));
}

#[test]
fn a_panic_answers_every_ticket_and_the_model_is_opened_anew_once() {
    let rig = Rig::new(2, 9);
    let _first = rig.submit(1, 0);
    rig.began.recv().unwrap();
    let tickets = [1, PANIC].map(|pixel| rig.submit(1, pixel));
    rig.open(2);
    for ticket in tickets {
        assert_eq!(score(ticket.wait()), Err(Failure::Panicked("told to panic".into())));
    }
    rig.open(1);
    assert_eq!(score(rig.submit(1, 3).wait()), Ok(3.0), "it goes on");
    rig.open(1);
    assert!(matches!(score(rig.submit(1, PANIC).wait()), Err(Failure::Panicked(_))));
    // No gate: the model is not asked any more.
    assert!(matches!(score(rig.submit(1, 4).wait()), Err(Failure::Failed(words)) if words.contains("panicked again")));
    let stats = rig.worker.stats();
    assert_eq!((stats.panics, stats.errors), (2, 4));
}

#[test]
fn a_model_that_cannot_be_opened_anew_says_so_with_every_frame() {
    let rig = Rig::new(1, 1);
    rig.open(1);
    assert!(matches!(score(rig.submit(1, PANIC).wait()), Err(Failure::Panicked(_))));
    for _ in 0..2 {
        let failure = score(rig.submit(1, 1).wait()).unwrap_err();
        assert!(failure.to_string().contains("the file is gone"), "{failure}");
    }
}

#[test]
fn a_ticket_given_up_is_a_job_skipped() {
    let rig = Rig::new(1, 1);
    let first = rig.submit(1, 0);
    rig.began.recv().unwrap();
    drop(rig.submit(1, 1));
    let last = rig.submit(1, 2);
    rig.open(2);
    assert_eq!((score(first.wait()), score(last.wait())), (Ok(0.0), Ok(2.0)));
    assert_eq!(rig.began.recv().unwrap(), [2], "the model never saw the one given up");
    assert_eq!((rig.worker.stats().abandoned, rig.worker.pending()), (1, 0));
}

#[test]
fn a_worker_that_goes_away_answers_what_it_accepted() {
    let mut rig = Rig::new(1, 1);
    let tickets = [0, 1, 2].map(|pixel| rig.submit(1, pixel));
    rig.began.recv().unwrap();
    drop(rig.gate.take()); // from here on, the model does not wait
    drop(rig.worker);
    let answers = tickets.map(|ticket| score(ticket.wait()));
    assert_eq!(answers[0], Ok(0.0), "the batch at hand ends well");
    for (i, answer) in answers.into_iter().enumerate() {
        assert!(answer == Ok(i as f32) || answer == Err(Failure::Stopped), "{i}: {answer:?}");
    }
}

#[test]
fn a_thread_that_ends_answers_what_waits_and_takes_no_more() {
    let rig = Rig::new(1, 1);
    let last = rig.submit(1, END);
    rig.began.recv().unwrap();
    let tickets = [last, rig.submit(1, 1), rig.submit(2, 2)]; // two are in the channel, out of the thread's hands
    rig.open(1);
    // The worker is still held: nobody else empties the channel.
    for ticket in tickets {
        let answer = ticket.receiver().recv_timeout(Duration::from_secs(60)).expect("an answer within a minute");
        assert_eq!(score(answer), Err(Failure::Stopped));
    }
    assert_eq!(rig.worker.pending(), 0);
    while !rig.worker.state.ended.load(std::sync::atomic::Ordering::SeqCst) {
        std::thread::yield_now();
    }
    assert!(matches!(rig.worker.submit(1, job(3), NOW), Err(Refused::Stopped)));
    assert_eq!(rig.worker.pending(), 0);
}

#[test]
fn a_full_channel_is_told_and_the_job_comes_back() {
    let rig = Rig::new(1, 1);
    let _first = rig.submit(1, 0);
    rig.began.recv().unwrap();
    let _waiting: Vec<_> = (0..CHANNEL).map(|_| rig.submit(1, 1)).collect();
    let job = job(7);
    let pixels = job.inputs[0].frame.rgb().as_ptr();
    let refused = rig.worker.submit(1, job, NOW);
    assert!(matches!(refused, Err(Refused::Full(job)) if job.inputs[0].frame.rgb().as_ptr() == pixels), "not a copy");
    assert_eq!(rig.worker.pending(), CHANNEL + 1);
    rig.open(CHANNEL + 1);
}

#[test]
fn what_cannot_be_opened_is_an_error_of_the_start() {
    let options = || Options { name: "test".into(), batch_size: 1, batch_timeout: NOW };
    let error = Worker::start(Box::new(|| Err(Error::Usage("no such model".into()))), options()).err().unwrap();
    assert_eq!(error.to_string(), "no such model");
    let error = Worker::start(Box::new(|| panic!("boom")), options()).err().unwrap();
    assert!(error.to_string().contains("boom"), "{error}");
}

#[test]
fn one_key_is_one_worker_for_as_long_as_somebody_holds_it() {
    let start = || {
        let (began, _) = bounded(100);
        let gate = bounded(0).1; // nobody holds the other side: always open
        let open = move || -> Result<Box<dyn Detect>> {
            Ok(Box::new(Scripted {
                card: card(),
                began: began.clone(),
                gate: gate.clone(),
                doomed: false,
                ahead: false,
            }))
        };
        Worker::start(Box::new(open), Options { name: "shared".into(), batch_size: 1, batch_timeout: NOW })
    };
    let key = SharedKey { id: None, digest: card().digest(), device: "cpu".into(), batch_size: 1, batch_timeout: NOW };
    let a = Shared::join(&key, start).unwrap();
    let b = Shared::join(&key, || panic!("there is one")).unwrap();
    assert!(Arc::ptr_eq(&a, &b) && Shared::users(&a) == 2);
    // Whoever differs in anything gets a worker of their own,
    let named = SharedKey { id: Some("line".into()), ..key.clone() };
    let different = [
        SharedKey { digest: "f".repeat(64), ..key.clone() },
        SharedKey { device: "cuda:0".into(), ..key.clone() },
        SharedKey { batch_size: 2, ..key.clone() },
        SharedKey { batch_timeout: Duration::from_millis(1), ..key.clone() },
        named.clone(),
    ];
    let workers: Vec<_> = different.iter().map(|key| Shared::join(key, start).unwrap()).collect();
    assert!(workers.iter().all(|worker| !Arc::ptr_eq(worker, &a) && Shared::users(worker) == 1));
    // but under one id and with one model all have to agree.
    for (other, what) in [
        (
            SharedKey { device: "cuda:0".into(), ..named.clone() },
            "device and precision cpu, this element asks for cuda:0",
        ),
        (SharedKey { batch_size: 2, ..named.clone() }, "batch-size 1, this element asks for 2"),
        (
            SharedKey { batch_timeout: Duration::from_millis(3), ..named.clone() },
            "batch-timeout 0 ms, this element asks for 3 ms",
        ),
    ] {
        let error = Shared::join(&other, || panic!("it must not be started")).err().unwrap().to_string();
        assert!(error.contains("model-instance-id = \"line\"") && error.contains(what), "{error}");
    }
    Shared::join(&SharedKey { digest: "e".repeat(64), ..named }, start).expect("another model under the same id");
    drop((a, b));
    assert!(Shared::join(&key, || Err(Error::Usage("opened".into()))).is_err_and(|e| e.to_string() == "opened"));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]
    /// Whatever happens, every accepted job is answered exactly once and everything is counted.
    #[test]
    fn accepted_jobs_are_answered_once(
        batch_size in 1usize..5,
        jobs in prop::collection::vec((0u64..3, prop_oneof![8 => 0u8..200, 1 => Just(FAIL), 1 => Just(PANIC), 1 => Just(LOSE)], any::<bool>()), 1..60),
    ) {
        let mut rig = Rig::new(batch_size, 2);
        drop(rig.gate.take());
        let mut kept = Vec::new();
        for (stream, pixel, keep) in &jobs {
            let ticket = rig.submit(*stream, *pixel);
            if *keep {
                kept.push((*pixel, ticket));
            }
        }
        for (pixel, ticket) in kept {
            let receiver = ticket.receiver().clone();
            match score(ticket.wait()) {
                Ok(score) => prop_assert_eq!(score, f32::from(pixel)),
                Err(failure) => prop_assert_ne!(failure, Failure::Stopped),
            }
            prop_assert!(receiver.try_recv().is_err(), "only one answer");
        }
        let Rig { worker, .. } = rig;
        let state = worker.state.clone();
        drop(worker);
        prop_assert_eq!(state.pending.load(Ordering::Acquire), 0);
        let stats = lock(&state.stats).clone();
        prop_assert!(stats.frames + stats.abandoned <= jobs.len() as u64);
    }
}
