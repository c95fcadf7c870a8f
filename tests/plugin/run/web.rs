//! What others may ask.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};

use super::*;

/// Status and body.
fn get(port: u16, path: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    write!(stream, "GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned())
}

/// The value of a series.
fn value(metrics: &str, series: &str) -> f64 {
    let line =
        metrics.lines().find_map(|line| line.strip_prefix(series)).unwrap_or_else(|| panic!("{series}: {metrics}"));
    line.trim().parse().unwrap()
}

#[test]
fn metrics_count_what_the_line_says_at_its_end() {
    let port = free_port();
    let line = |more: &str| {
        format!(
            "state-dir = \"state\"\n[http]\nlisten = \"127.0.0.1:{port}\"\n[[line]]\nname = \"cap\"\nmodel = \"MODEL\"\n{LIVE}\n\
             archive = {{ min-free = 0 }}\nrecord = {{ min-free = 0 }}\n{more}"
        )
    };
    let shift = Shift::new(&line(""));
    let mut running = shift.start();
    running.until("cap: running");
    assert_eq!(get(port, "/healthz"), (200, "ok\n".into()));
    assert_eq!(get(port, "/readyz"), (200, "ok\n".into()));
    assert_eq!(get(port, "/../etc/passwd").0, 404);
    let (code, first) = get(port, "/metrics");
    assert_eq!(code, 200);
    assert_eq!(value(&first, "diad_camera_up{line=\"cap\"}"), 1.0);
    assert!(!first.contains("diad_line_restarts_total{"), "nothing was built anew: {first}");
    assert!(first.contains("diad_model_info{line=\"cap\",digest=\""), "{first}");
    for count in ["latency_seconds_count{line=\"cap\"}", "stage_seconds_count{line=\"cap\",stage=\"infer\"}"] {
        assert!(value(&first, &format!("diad_{count}")) > 0.0);
    }
    assert!(value(&first, "diad_score_percentile_bucket{le=\"100.0\",line=\"cap\"}") > 0.0);
    assert_eq!(value(&first, "diad_config_last_reload_successful"), 1.0);
    assert!(value(&first, "diad_last_frame_timestamp_seconds{line=\"cap\"}") > 1.7e9);
    assert!(value(&first, "diad_archive_free_bytes{line=\"cap\"}") >= 0.0);
    assert!(value(&first, "diad_clips_free_bytes{line=\"cap\",kind=\"video\"}") > 0.0);
    assert_eq!(value(&first, "diad_clips_dropped_total{line=\"cap\",kind=\"video\",reason=\"disk\"}"), 0.0);
    shift.write(&line("attempts = \"many\"\n"));
    running.signal("HUP");
    running.until("nothing is changed");
    let (_, second) = get(port, "/metrics");
    assert_eq!(value(&second, "diad_config_last_reload_successful"), 0.0);
    let frames = |metrics: &str| -> f64 {
        let verdicts = ["ok", "warn", "ng", "uninspected", "error"];
        verdicts.iter().map(|v| value(metrics, &format!("diad_frames_total{{line=\"cap\",verdict=\"{v}\"}}"))).sum()
    };
    assert!(frames(&second) >= frames(&first) && frames(&first) > 0.0, "{first}");
    let (code, said) = running.stop();
    let told = said.split_once("cap: stopped: ").unwrap().1.split(' ').next().unwrap().parse::<f64>().unwrap();
    assert!(
        code == 0 && frames(&second) <= told && value(&second, "diad_frames_in_total{line=\"cap\"}") <= told,
        "{said}"
    );
}

#[test]
fn a_port_that_is_taken_costs_a_message_and_a_line_that_is_away_is_not_ready() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let here = taken.local_addr().unwrap();
    let line = format!("[[line]]\nname = \"cap\"\nmodel = \"MODEL\"\n{LIVE}\n");
    let shift = Shift::new(&format!("[http]\nlisten = \"{here}\"\n{line}"));
    let mut running = shift.start();
    let told = running.until("the lines run without it");
    assert!(told.contains(&here.to_string()), "{told}");
    running.until("cap: running");
    assert_eq!(running.stop().0, 0);

    let port = free_port();
    let away = "source = { launch = \"videotestsrc ! video/x-raw,format=NV12_4L4,width=64,height=64\" }";
    let shift = Shift::new(&format!(
        "[http]\nlisten = \"127.0.0.1:{port}\"\n{line}[[line]]\nname = \"gone\"\nmodel = \"MODEL\"\n{away}\n"
    ));
    let mut running = shift.start();
    running.until("gone: camera-lost: ");
    let (code, body) = get(port, "/readyz");
    assert!(code == 503 && body.contains("gone: "), "{code} {body}");
    assert_eq!(get(port, "/healthz").0, 200);
    assert_eq!(value(&get(port, "/metrics").1, "diad_camera_up{line=\"gone\"}"), 0.0);
    assert_eq!(running.stop().0, 0);
    let shift = Shift::new(&format!("[http]\nlisten = \"0.0.0.0:8470\"\n{line}"));
    let (code, said) = shift.finish(&["validate", "line.toml"]);
    assert!(
        code == 2 && said.contains("http.listen = \"0.0.0.0:8470\": expected an address of this machine"),
        "{said}"
    );
}
