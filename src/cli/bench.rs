//! `diad bench`: how fast a model is on this machine.

use std::time::Instant;

use serde::Serialize;

use super::Context;
use super::args::BenchArgs;
use super::table::{Align, Table};
use crate::data::draw::{Kind, draw_part};
use crate::detector::Detector;
use crate::error::{Error, Result};
use crate::files::{check_writable, write_atomic};
use crate::frame::Frame;

/// Calls before the clock starts.
const WARM_UP: usize = 3;

/// One line of the table.
#[derive(Serialize)]
struct Row {
    threads: usize,
    batch: usize,
    ddim_steps: usize,
    /// Milliseconds per call.
    p50: f64,
    p95: f64,
    p99: f64,
    frames_per_second: f64,
}

#[derive(Serialize)]
struct Bench {
    schema: u32,
    model: String,
    rows: Vec<Row>,
}

pub(super) fn run(context: &Context, args: &BenchArgs) -> Result<()> {
    args.report.as_deref().map_or(Ok(()), check_writable)?;
    let mut detector = Detector::open(&args.model)?;
    let choice = detector.choice(&args.class)?;
    let size = detector.card().config.input.size;
    let frames: Vec<Frame> =
        (0..8).map(|i| draw_part(Kind::Washer, i, args.frame_size.map_or(size, usize::from), None).frame).collect();
    let all = std::thread::available_parallelism().map_or(1, usize::from);
    let mut threads = vec![1, all];
    threads.dedup();
    let mut rows = Vec::new();
    for steps in [1, 3] {
        detector.set_ddim_steps(steps)?;
        for &threads in &threads {
            let pool = rayon::ThreadPoolBuilder::new()
                .num_threads(threads)
                .build()
                .map_err(|e| Error::Internal(format!("bench: {e}")))?;
            for batch in [1, 2, 4, 8] {
                context.check_stop()?;
                let timed = |count: usize| -> Result<Vec<f64>> {
                    (0..count)
                        .map(|_| {
                            let started = Instant::now();
                            for detection in detector.detect(&frames[..batch], choice) {
                                detection?;
                            }
                            Ok(started.elapsed().as_secs_f64() * 1e3)
                        })
                        .collect()
                };
                let calls = (args.frames / batch).max(10);
                let mut ms = pool.install(|| timed(WARM_UP).and_then(|_| timed(calls)))?;
                let fps = (batch * calls) as f64 / (ms.iter().sum::<f64>() / 1e3);
                ms.sort_unstable_by(f64::total_cmp);
                let quantile = |q: f64| ms[((ms.len() - 1) as f64 * q).round() as usize];
                rows.push(Row {
                    threads,
                    batch,
                    ddim_steps: steps,
                    p50: quantile(0.5),
                    p95: quantile(0.95),
                    p99: quantile(0.99),
                    frames_per_second: fps,
                });
            }
        }
    }
    let right = |name| (name, Align::Right);
    let mut table = Table::new(&[
        right("threads"),
        right("batch"),
        right("steps"),
        right("p50 ms"),
        right("p95 ms"),
        right("p99 ms"),
        right("frames/s"),
    ]);
    for row in &rows {
        table.row(vec![
            row.threads.to_string(),
            row.batch.to_string(),
            row.ddim_steps.to_string(),
            format!("{:.1}", row.p50),
            format!("{:.1}", row.p95),
            format!("{:.1}", row.p99),
            format!("{:.1}", row.frames_per_second),
        ]);
    }
    context.console.print(table)?;
    if let Some(path) = &args.report {
        let bench = Bench { schema: 1, model: args.model.display().to_string(), rows };
        let mut json = serde_json::to_string_pretty(&bench).map_err(|e| Error::Internal(format!("bench: {e}")))?;
        json.push('\n');
        write_atomic(path, json.as_bytes())?;
    }
    Ok(())
}

