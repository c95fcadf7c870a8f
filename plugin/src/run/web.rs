//! What others may ask over HTTP: `/metrics` for Prometheus, `/healthz`, `/readyz`. Nothing here changes anything.

use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use axum::Router;
use axum::extract::State as Shared;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use diad::detector::Verdict;
use prometheus_client::encoding::EncodeMetric;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::TypedMetric;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use super::board::Board;
use super::out::Labels;
use super::state::State;
use super::tally::lock;

type Real = Gauge<f64, std::sync::atomic::AtomicU64>;

/// Answers on a thread of its own until the process ends.
///
/// # Errors
/// When nobody may listen there, as where another program does.
pub(crate) fn serve(address: SocketAddr, board: Arc<Board>) -> Result<(), String> {
    let wrong = |error: std::io::Error| format!("http.listen = \"{address}\": {error}");
    let listener = TcpListener::bind(address).map_err(wrong)?;
    listener.set_nonblocking(true).map_err(wrong)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build().map_err(wrong)?;
    let work = move || {
        let answered = runtime.block_on(async {
            let listener = tokio::net::TcpListener::from_std(listener)?;
            axum::serve(listener, router(board)).await
        });
        answered.unwrap_or_else(|error| super::say("", &format!("http: {error}")));
    };
    std::thread::Builder::new().name("diad-net".into()).spawn(work).map(drop).map_err(wrong)
}

fn router(board: Arc<Board>) -> Router {
    Router::new()
        .route("/metrics", get(metrics))
        .route("/healthz", get(healthz))
        .route("/readyz", get(readyz))
        .with_state(board)
}

/// Whether the program is well: no line is stuck.
async fn healthz(Shared(board): Shared<Arc<Board>>) -> Response {
    answer(&board, |state| state != State::Stuck)
}

/// Whether every line sees its parts.
async fn readyz(Shared(board): Shared<Arc<Board>>) -> Response {
    answer(&board, |state| matches!(state, State::Running | State::Idle))
}

fn answer(board: &Board, is_well: fn(State) -> bool) -> Response {
    let states = board.lines().into_iter().map(|line| (lock(&line.status).state, line.name));
    let wrong = states.filter(|(state, _)| !is_well(*state));
    let wrong: Vec<String> = wrong.map(|(state, name)| format!("{name}: {}\n", state.name())).collect();
    if wrong.is_empty() {
        return (StatusCode::OK, "ok\n").into_response();
    }
    (StatusCode::SERVICE_UNAVAILABLE, wrong.concat()).into_response()
}

async fn metrics(Shared(board): Shared<Arc<Board>>) -> Response {
    let mut text = String::new();
    match encode(&mut text, &registry(&board)) {
        Ok(()) => {
            let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
            ([(header::CONTENT_TYPE, kind)], text).into_response()
        }
        Err(_) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    }
}

/// A number for each set of labels, in a registry.
fn family<M>(registry: &mut Registry, name: &str, help: &str) -> Family<Labels, M>
where
    M: EncodeMetric + TypedMetric + Default + std::fmt::Debug + Send + Sync + 'static,
{
    let family = Family::<Labels, M>::default();
    registry.register(name, help, family.clone());
    family
}

/// The numbers of this moment, from the tallies that messages and the end of a line are written from.
fn registry(board: &Board) -> Registry {
    let mut registry = Registry::with_prefix("diad");
    let all = &mut registry;
    let frames: Family<_, Counter> = family(all, "frames", "Frames that left, by verdict");
    let entered: Family<_, Counter> = family(all, "frames_in", "Frames that came");
    let uninspected: Family<_, Counter> = family(all, "uninspected", "Frames that nobody looked at, by reason");
    let not_filmed: Family<_, Counter> = family(
        all,
        "video_dropped",
        "Frames that are missing in clips and recordings: the encoder was too slow for them",
    );
    let restarts: Family<_, Counter> = family(all, "line_restarts", "Pipelines that were built anew, by cause");
    let lost: Family<_, Counter> =
        family(all, "lost", "Results that could not be written, or were given up before they were delivered");
    let labels = |labels: &[(&'static str, &str)]| -> Labels {
        labels.iter().map(|(key, value)| (*key, (*value).to_owned())).collect()
    };
    let archived: Family<_, Counter> =
        family(all, "archive_dropped", "Pictures and frames that the archive left out, by reason");
    let up: Family<_, Gauge> = family(all, "camera_up", "1 where frames come, or a trigger is waited for");
    let bytes: Family<_, Gauge> = family(all, "archive_bytes", "Bytes of the archive");
    let free: Family<_, Gauge> = family(all, "archive_free_bytes", "Bytes that are free on the archive's disk");
    let clips: Family<_, Counter> = family(all, "clips", "Files of clips and recordings that are finished");
    let missing: Family<_, Counter> =
        family(all, "clips_dropped", "Clips and recordings that were not begun or broken off, by reason");
    let clip_bytes: Family<_, Gauge> = family(all, "clips_bytes", "Bytes of clips and recordings");
    let clip_free: Family<_, Gauge> = family(all, "clips_free_bytes", "Bytes that are free on their disk");
    let right: Family<_, Gauge> =
        family(all, "config_last_reload_successful", "1 where the file was right when it was last read");
    let build: Family<_, Gauge> = family(all, "build_info", "1; the version");
    let last: Family<_, Real> = family(all, "last_frame_timestamp_seconds", "When the last frame left, since 1970");
    let threshold: Family<_, Real> =
        family(all, "threshold", "Score above which the last inspected frame would have been rejected");
    let model: Family<_, Gauge> = family(all, "model_info", "1; the model that the last frame was inspected with");
    let measures = &board.outlets.measures;
    all.register("latency_seconds", "From when a frame came until its verdict stood", measures.latency.clone());
    all.register("stage_seconds", "Parts of that: on the way in, waiting, the model's work", measures.stages.clone());
    all.register("score_percentile", "Share of held-out good parts with a lower score", measures.percentile.clone());
    let delivered: Family<_, Counter> = family(all, "delivered", "Results that a receiver says it has");
    let waiting: Family<_, Gauge> = family(all, "spool_results", "Results that wait for their receiver");
    let waiting_bytes: Family<_, Gauge> = family(all, "spool_bytes", "Bytes of them on disk");
    let waiting_since: Family<_, Real> = family(all, "spool_oldest_seconds", "How long the oldest of them waits");
    let connected: Family<_, Gauge> =
        family(all, "sink_up", "1 where the receiver is connected, or took what came last");
    for outbox in board.outlets.outboxes() {
        let sink = labels(&[("sink", outbox.name())]);
        let counts = outbox.counts();
        let of = |line: &str| labels(&[("line", line), ("sink", outbox.name())]);
        for (family, by_line) in [(&lost, counts.lost), (&delivered, outbox.delivered())] {
            for (line, count) in by_line {
                family.get_or_create(&of(&line)).inc_by(count);
            }
        }
        waiting.get_or_create(&sink).set(i64::try_from(counts.waiting).unwrap_or(i64::MAX));
        waiting_bytes.get_or_create(&sink).set(i64::try_from(counts.bytes).unwrap_or(i64::MAX));
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64());
        let since = counts.oldest_ms.map_or(0.0, |ms| now - ms as f64 / 1e3);
        waiting_since.get_or_create(&sink).set(since.max(0.0));
        connected.get_or_create(&sink).set(i64::from(outbox.connected()));
    }
    right.get_or_create(&Vec::new()).set(i64::from(board.file_is_right()));
    build.get_or_create(&vec![("version", env!("CARGO_PKG_VERSION").to_owned())]).set(1);
    for line in board.lines() {
        let of = |more: &[(&'static str, &str)]| labels(&[&[("line", line.name.as_str())], more].concat());
        let counts = line.tally.counts();
        for (verdict, count) in Verdict::ALL.iter().zip(counts.verdicts) {
            frames.get_or_create(&of(&[("verdict", verdict.name())])).inc_by(count);
        }
        entered.get_or_create(&of(&[])).inc_by(counts.frames);
        lost.get_or_create(&of(&[("sink", "results")])).inc_by(counts.dropped);
        not_filmed.get_or_create(&of(&[])).inc_by(line.tally.missing_in_video());
        for (reason, count) in line.tally.reasons() {
            uninspected.get_or_create(&of(&[("reason", &reason)])).inc_by(count);
        }
        let status = lock(&line.status).clone();
        for (cause, count) in status.restarts {
            restarts.get_or_create(&of(&[("cause", cause)])).inc_by(count);
        }
        up.get_or_create(&of(&[])).set(i64::from(matches!(status.state, State::Running | State::Idle)));
        let seen = line.tally.seen();
        if let Some(at) = seen.left {
            last.get_or_create(&of(&[])).set(at);
        }
        if let Some(digest) = &seen.model {
            model.get_or_create(&of(&[("digest", digest), ("file", &status.model)])).set(1);
        }
        if let Some(score) = seen.threshold {
            threshold.get_or_create(&of(&[])).set(f64::from(score));
        }
        let number = |stats: &gst::Structure, field: &str| stats.get::<u64>(field).unwrap_or_default();
        let signed = |n: u64| i64::try_from(n).unwrap_or(i64::MAX);
        let [archive, clip, record] = line.tally.kept();
        if let Some(stats) = archive {
            for reason in ["rate", "queue", "disk"] {
                let count = number(&stats, &format!("dropped-{reason}"));
                archived.get_or_create(&of(&[("reason", reason)])).inc_by(count);
            }
            archived.get_or_create(&of(&[("reason", "failed")])).inc_by(number(&stats, "failed"));
            bytes.get_or_create(&of(&[])).set(signed(number(&stats, "bytes")));
            free.get_or_create(&of(&[])).set(signed(number(&stats, "free")));
        }
        for (kind, stats) in [("clip", clip), ("video", record)] {
            let Some(stats) = stats else { continue };
            let own = of(&[("kind", kind)]);
            clips.get_or_create(&own).inc_by(number(&stats, "clips"));
            for (reason, field) in [("queue", "dropped-queue"), ("disk", "dropped-disk"), ("failed", "failed")] {
                missing.get_or_create(&of(&[("kind", kind), ("reason", reason)])).inc_by(number(&stats, field));
            }
            clip_bytes.get_or_create(&own).set(signed(number(&stats, "bytes")));
            clip_free.get_or_create(&own).set(signed(number(&stats, "free")));
        }
    }
    registry
}
