//! Cameras on loopback: a GigE Vision camera and an RTSP server, recorded as a line would be.

use std::process::Child;

use gst::glib;
use gst_rtsp_server::prelude::*;

use super::*;

/// A child that ends with its owner.
struct Guard(Child);

impl Drop for Guard {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Recording, results and counts agree; how many frames there are.
#[track_caller]
fn assert_recorded(folder: &Path, name: &str) -> usize {
    let (results, frames) = (lines(&folder.join("results.jsonl")), video::frames(&folder.join(name)));
    assert_eq!(results.len(), frames.len(), "{name}");
    for (n, (result, frame)) in results.iter().zip(&frames).enumerate() {
        assert_eq!(result["results"][0]["frame_id"].as_u64(), Some(n as u64));
        assert_eq!(frame.verdict(), result["verdict"].as_str().unwrap(), "{name}, frame {n}");
    }
    let times: Vec<_> = results.iter().map(|result| result["pts"].as_u64().unwrap()).collect();
    assert!(times.is_sorted(), "{times:?}");
    assert!(results.iter().any(|result| result["results"][0]["score"].is_number()), "some were inspected");
    frames.len()
}

/// As root, Aravis takes a raw socket that sees nothing of loopback: the camera is read without that right.
fn without_raw_sockets(mut command: Command, folder: &Path) -> Command {
    let root = std::process::Command::new("id").arg("-u").output().unwrap().stdout == b"0\n";
    if !root {
        return command;
    }
    let mut inner = Command::new("setpriv");
    prepare(&mut inner, folder);
    inner.args(["--bounding-set", "-net_raw", "--inh-caps", "-net_raw"]).arg(command.get_program());
    inner.args(command.get_args());
    command = inner;
    command
}

#[test]
fn a_gige_vision_camera_is_recorded() {
    init();
    let shop = shop();
    let camera = Command::new("arv-fake-gv-camera-0.8").args(["-i", "127.0.0.1"]).stdout(Stdio::null()).spawn();
    let camera = Guard(camera.expect("arv-fake-gv-camera-0.8 (Debian package aravis-tools)"));
    for (muxer, name) in [("mp4mux", "out.mp4"), ("matroskamux", "out.mkv")] {
        let folder = tempfile::tempdir().unwrap();
        let line = format!(
            "-e aravissrc camera-name=Aravis-Fake-GV01 num-buffers=30 ! \
             video/x-raw,format=GRAY8,width=256,height=256,framerate=25/1 ! diadfilter model={} ! videoconvert ! \
             video/x-raw,format=I420 ! tee name=t  t. ! queue ! x264enc tune=zerolatency ! {muxer} ! filesink location={name}  \
             t. ! queue ! diadmeta2json ! filesink location=results.jsonl",
            shop.model.display()
        );
        // GRAY8 has no colours: the verdict's plate is grey whatever it is, so only counts and times are compared.
        run(without_raw_sockets(launch(&line, folder.path()), folder.path()));
        let (results, frames) = (lines(&folder.path().join("results.jsonl")), video::frames(&folder.path().join(name)));
        assert_eq!((results.len(), frames.len()), (30, 30), "{name}");
        let ids: Vec<_> = results.iter().map(|result| result["results"][0]["frame_id"].as_u64().unwrap()).collect();
        assert_eq!(ids, (0..30).collect::<Vec<_>>());
        assert!(results.iter().any(|result| result["results"][0]["score"].is_number()), "some were inspected");
    }
    drop(camera);
}

#[test]
fn an_rtsp_camera_is_recorded() {
    init();
    let shop = shop();
    let context = glib::MainContext::new();
    let server = gst_rtsp_server::RTSPServer::new();
    server.set_address("127.0.0.1");
    server.set_service("0");
    let factory = gst_rtsp_server::RTSPMediaFactory::new();
    factory.set_launch(
        "( videotestsrc is-live=true pattern=ball ! video/x-raw,format=I420,width=320,height=240,framerate=25/1 ! \
         x264enc tune=zerolatency key-int-max=10 ! rtph264pay name=pay0 pt=96 config-interval=-1 )",
    );
    server.mount_points().unwrap().add_factory("/line", factory);
    let _attached = server.attach(Some(&context)).unwrap();
    let port = server.bound_port();
    let main = glib::MainLoop::new(Some(&context), false);
    let thread = std::thread::Builder::new().spawn({
        let main = main.clone();
        move || main.run()
    });
    // The line ends, not the camera: a server that closes the connection first makes an error of the client's farewell.
    for (muxer, name) in [("mp4mux", "out.mp4"), ("matroskamux", "out.mkv")] {
        let folder = tempfile::tempdir().unwrap();
        let line = format!(
            "-e rtspsrc location=rtsp://127.0.0.1:{port}/line latency=200 protocols=tcp ! rtph264depay ! video/x-h264,stream-format=avc ! h264parse ! \
             openh264dec ! identity eos-after=76 ! videoconvert ! diadfilter model={} ! tee name=t  \
             t. ! queue ! x264enc tune=zerolatency ! {muxer} ! filesink location={name}  \
             t. ! queue ! diadmeta2json ! filesink location=results.jsonl",
            shop.model.display()
        );
        run(launch(&line, folder.path()));
        let count = assert_recorded(folder.path(), name);
        assert_eq!(count, 75, "{name}");
    }
    main.quit();
    thread.unwrap().join().unwrap();
}
