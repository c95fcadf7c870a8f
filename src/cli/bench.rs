//! `diad bench`

use std::collections::VecDeque;
use std::path::Path;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use candle_core::Tensor;
use serde::Serialize;

use super::args::BenchArgs;
use super::table::{Align, Table};
use super::{Context, images};
use crate::bundle;
use crate::config::Size;
use crate::detector::{Detector, Request, preparation};
use crate::device::DeviceSpec;
use crate::error::{Error, Result};
use crate::files::{check_writable, write_atomic};
use crate::frame::Frame;
use crate::named::named;
use crate::report::{Latency, json};
use crate::synthetic::{Kind, draw_part};
use crate::worker::{self, Job, Ticket, Worker};

/// Share of the frames that are run before the clock counts.
pub(super) const WARM_UP: usize = 5; // a fifth
/// The frame is this much larger than the model's input, as a camera's is: it has to be resized.
const OVERSIZE: usize = 2;
/// Callers in the rows about frames in flight.
const IN_FLIGHT: [usize; 2] = [1, 2];
/// Batches that the worker is kept supplied with: one is computed while the answers of another are made.
const BATCHES_UNDER_WAY: usize = 2;
/// How long the worker may take for one batch before that is an error.
const PATIENCE: Duration = Duration::from_secs(600);

pub(super) fn run(context: &Context, args: &BenchArgs) -> Result<()> {
    let console = &context.console;
    if let Some(path) = &args.report {
        check_writable(path)?;
    }
    images::check_exists(&args.model)?;
    if args.layers {
        return super::layers::run(context, args);
    }
    let card = bundle::read_card(&args.model)?;
    let device = args.on.find()?.for_model(&args.model, |arithmetic| card.is_measured_in(arithmetic))?;
    let detector = Detector::open_on(&args.model, &device.open()?)?;
    let size = detector.network().branch(0).input().map(|side| side * OVERSIZE);
    let frame = frame_of(size)?;
    let threads = rayon::current_num_threads();
    console.note(format_args!("on {device}: frames of {size}, {} per row, {threads} threads", args.frames));

    let bench = Bench { context, frame: &frame, frames: args.frames as usize };
    // The calls of several threads do not wait for each other on a GPU.
    let in_flight = if detector.network().device().has_cpu_kernels() { &IN_FLIGHT[..] } else { &IN_FLIGHT[..1] };
    let total = args.ddim_steps.len() * (1 + 2 * args.batch.len() + in_flight.len());
    let mut task = context.task("bench", total);
    let mut figures = Figures {
        schema: 1,
        tool: detector.card().tool.clone(),
        model: args.model.display().to_string(),
        device: device.to_string(),
        frame: size.sides(),
        frames: bench.frames,
        threads,
        rows: Vec::new(),
        stages: Vec::new(),
    };
    let mut done = 0;
    let mut step = || {
        done += 1;
        task.set(done, "");
    };
    for &steps in &args.ddim_steps {
        let steps = usize::from(steps);
        detector.prepare(&request(steps))?;
        figures.stages.push(bench.stages(&detector, steps)?);
        step();
        for &batch in &args.batch {
            figures.rows.push(bench.batch(&detector, steps, usize::from(batch))?);
            step();
        }
        for &callers in in_flight {
            figures.rows.push(bench.in_flight(&detector, steps, callers)?);
            step();
        }
        for &batch in &args.batch {
            figures.rows.push(bench.worker(&args.model, device, steps, usize::from(batch))?);
            step();
        }
    }
    task.finish();
    if let Some(path) = &args.report {
        write_atomic(path, json(&figures, "bench")?.as_bytes())?;
    }
    console.print(figures.tables())
}

/// Frames whose class is not known.
fn request(ddim_steps: usize) -> Request {
    Request { ddim_steps: Some(ddim_steps), ..Request::default() }
}

/// A drawn board, cut to this size.
pub(super) fn frame_of(size: Size) -> Result<Frame> {
    let side = size.width.max(size.height);
    let board = draw_part(Kind::Board, 0, side, None).frame;
    if size.is_square() {
        return Ok(board);
    }
    let rows = board.rgb().chunks_exact(side * 3).take(size.height);
    Frame::new(size.width, size.height, rows.flat_map(|row| &row[..size.width * 3]).copied().collect())
}

/// What is measured, on what.
struct Bench<'a> {
    context: &'a Context,
    frame: &'a Frame,
    frames: usize,
}

impl Bench<'_> {
    fn warm_up(&self) -> usize {
        self.frames.div_ceil(WARM_UP)
    }

    /// Batches of frames, one after the other.
    fn batch(&self, detector: &Detector, steps: usize, batch: usize) -> Result<Row> {
        let (frames, request) = (vec![self.frame.clone(); batch], request(steps));
        let rounds = self.frames.div_ceil(batch);
        let inspect = || detector.inspect_frames(&frames, &request).into_iter().try_for_each(|found| found.map(drop));
        let ms = self.timed(self.warm_up().div_ceil(batch), rounds, inspect)?;
        let seconds = 1e-3 * ms.iter().sum::<f64>();
        Ok(Row::new(Through::Call, (steps, batch, 1), &ms, (rounds * batch) as f64 / seconds))
    }

    /// Single frames from `callers` threads at once, as several cameras ask.
    fn in_flight(&self, detector: &Detector, steps: usize, callers: usize) -> Result<Row> {
        let (each, request) = (self.frames.div_ceil(callers), request(steps));
        let call = || -> Result<(Vec<f64>, Instant, Instant)> {
            let one = || -> Result<f64> {
                let started = Instant::now();
                let found = detector.inspect_frames(std::slice::from_ref(self.frame), &request);
                found.into_iter().collect::<Result<Vec<_>>>()?;
                Ok(1e3 * started.elapsed().as_secs_f64())
            };
            for _ in 0..self.warm_up() {
                one()?;
            }
            let begin = Instant::now();
            let mut ms = Vec::with_capacity(each);
            for _ in 0..each {
                self.context.stop.check()?;
                ms.push(one()?);
            }
            Ok((ms, begin, Instant::now()))
        };
        let results = thread::scope(|scope| {
            let spawned = (0..callers).map(|n| {
                thread::Builder::new()
                    .name(format!("diad-bench-{n}"))
                    .spawn_scoped(scope, call)
                    .map_err(|error| Error::threads("asks for detections", error))
            });
            let spawned = spawned.collect::<Result<Vec<_>>>()?;
            let lost = |_| Error::Internal("bench: a thread panicked".into());
            spawned.into_iter().map(|handle| handle.join().map_err(lost)?).collect::<Result<Vec<_>>>()
        })?;
        let begin = results.iter().map(|(_, begin, _)| *begin).min();
        let end = results.iter().map(|(_, _, end)| *end).max();
        let seconds = begin.zip(end).map_or(0.0, |(begin, end)| (end - begin).as_secs_f64());
        let ms: Vec<f64> = results.into_iter().flat_map(|(ms, ..)| ms).collect();
        Ok(Row::new(Through::Call, (steps, 1, callers), &ms, (each * callers) as f64 / seconds))
    }

    /// Prepared frames through a worker of their own that never lacks any, as on the line: from submission to answer.
    fn worker(&self, model: &Path, device: DeviceSpec, steps: usize, batch: usize) -> Result<Row> {
        let (_, _, open) = worker::open(model, device)?;
        let options = worker::Options { name: "diad-worker".into(), batch_size: batch, batch_timeout: Duration::ZERO };
        let worker = Worker::start(open, options)?;
        let inputs = preparation(model)?.apply(self.frame, Some(0))?;
        let job = Job { inputs, request: Arc::new(request(steps)) };
        let in_flight = BATCHES_UNDER_WAY * batch;
        let warm_up = self.warm_up().max(in_flight);
        let (mut ms, mut first, mut answered) = (Vec::with_capacity(self.frames), Instant::now(), 0);
        let mut settle = |(submitted, ticket): (Instant, Ticket)| -> Result<()> {
            let gone = |_| Error::Internal("bench: the worker gives no answer".into());
            let answer = ticket.receiver().recv_timeout(PATIENCE).map_err(gone)?;
            answer.outcome.map_err(|failure| Error::Batch(failure.to_string()))?;
            answered += 1;
            if answered <= warm_up {
                first = Instant::now();
            } else {
                ms.push(1e3 * submitted.elapsed().as_secs_f64());
            }
            Ok(())
        };
        let mut under_way = VecDeque::with_capacity(in_flight);
        for _ in 0..warm_up + self.frames {
            self.context.stop.check()?;
            if under_way.len() == in_flight {
                under_way.pop_front().map_or(Ok(()), &mut settle)?;
            }
            let refused = |_| Error::Internal("bench: the worker takes no frames".into());
            under_way.push_back((Instant::now(), worker.submit(0, job.clone(), PATIENCE).map_err(refused)?));
        }
        under_way.into_iter().try_for_each(settle)?;
        let seconds = first.elapsed().as_secs_f64();
        Ok(Row::new(Through::Worker, (steps, batch, in_flight), &ms, self.frames as f64 / seconds))
    }

    /// The parts of one detection, each measured by itself.
    fn stages(&self, detector: &Detector, steps: usize) -> Result<Stages> {
        let network = detector.network();
        let (preparation, branch) = (network.preparation(), network.branch(0));
        let (extractor, reconstructor) = (branch.extractor(), branch.reconstructor());
        let plan = reconstructor.plan(steps)?;
        let prepared = preparation.of_frame(self.frame, 0)?;
        let input = [&prepared.frame];
        let raw = extractor.raw(&input)?;
        let features = extractor.normalise(&raw)?;
        let class = reconstructor.condition_class(0);
        let reconstruction = reconstructor.reconstruct(&features, &plan, class)?;
        let done = |tensor: Tensor| Ok(tensor.device().synchronize()?);
        Ok(Stages {
            ddim_steps: steps,
            preprocess: self.time(|| preparation.of_frame(self.frame, 0).map(drop))?,
            backbone: self.time(|| done(extractor.raw(&input)?))?,
            features: self.time(|| done(extractor.normalise(&raw)?))?,
            denoise: self.time(|| done(reconstructor.reconstruct(&features, &plan, class)?.residuals))?,
            score: self.time(|| {
                let cells = network.scorer().cells(&features, &reconstruction, 0)?;
                std::hint::black_box(network.map(0, cells, prepared.geometry));
                Ok(())
            })?,
        })
    }

    fn time(&self, work: impl Fn() -> Result<()>) -> Result<Latency> {
        self.timed(self.warm_up(), self.frames, work).map(|ms| Latency::of(&ms))
    }

    /// Milliseconds of each of `rounds` after `warm_up` others.
    fn timed(&self, warm_up: usize, rounds: usize, work: impl Fn() -> Result<()>) -> Result<Vec<f64>> {
        let mut ms = Vec::with_capacity(rounds);
        for round in 0..warm_up + rounds {
            self.context.stop.check()?;
            let started = Instant::now();
            work()?;
            if round >= warm_up {
                ms.push(1e3 * started.elapsed().as_secs_f64());
            }
        }
        Ok(ms)
    }
}

/// What `--report` writes.
#[derive(Serialize)]
struct Figures {
    schema: u32,
    tool: String,
    model: String,
    device: String,
    /// Width and height in pixels.
    frame: [usize; 2],
    frames: usize,
    threads: usize,
    rows: Vec<Row>,
    stages: Vec<Stages>,
}

named! {
    /// How the frames are run.
    enum Through: "through" {
        /// By calls of the detector.
        Call = "call",
        /// Through a worker, as `diadfilter` does.
        Worker = "worker",
    }
}

/// The measurement of one way to run frames.
#[derive(Serialize)]
struct Row {
    through: Through,
    ddim_steps: usize,
    batch: usize,
    in_flight: usize,
    /// Milliseconds of a call, that is of a whole batch; of a frame through the worker, including the wait for its batch.
    ms: Latency,
    frames_per_second: f64,
}

impl Row {
    fn new(through: Through, counts: (usize, usize, usize), ms: &[f64], frames_per_second: f64) -> Self {
        let (ddim_steps, batch, in_flight) = counts;
        Self { through, ddim_steps, batch, in_flight, ms: Latency::of(ms), frames_per_second }
    }
}

/// Milliseconds of the parts of one detection.
#[derive(Serialize)]
struct Stages {
    ddim_steps: usize,
    preprocess: Latency,
    backbone: Latency,
    features: Latency,
    denoise: Latency,
    score: Latency,
}

impl Figures {
    fn tables(&self) -> String {
        use Align::{Left, Right};

        let ms = |value: Option<f64>| value.map_or_else(|| "-".to_owned(), |value| format!("{value:.2}"));
        let latency = |l: &Latency| [ms(l.p50), ms(l.p95), ms(l.p99)];
        let times = ["p50 ms", "p95 ms", "p99 ms"].map(|name| (name, Right));
        let counts = ["ddim steps", "batch", "in flight"].map(|name| (name, Right));
        let mut rows = Table::new(&[&[("through", Left)][..], &counts, &times, &[("frames/s", Right)]].concat());
        for row in &self.rows {
            let counts = [row.ddim_steps, row.batch, row.in_flight].map(|n| n.to_string());
            let rate = format!("{:.1}", row.frames_per_second);
            let head = [row.through.to_string()].into_iter().chain(counts);
            rows.row(head.chain(latency(&row.ms)).chain([rate]).collect());
        }
        let mut stages = Table::new(&[&[("ddim steps", Right), ("stage", Left)][..], &times].concat());
        for stage in &self.stages {
            let parts = [
                ("preprocess", &stage.preprocess),
                ("backbone", &stage.backbone),
                ("features", &stage.features),
                ("denoise", &stage.denoise),
                ("score", &stage.score),
            ];
            for (name, l) in parts {
                let head = [stage.ddim_steps.to_string(), name.to_owned()];
                stages.row(head.into_iter().chain(latency(l)).collect());
            }
        }
        format!("{rows}\n\n{stages}")
    }
}
