//! Cameras that go away and come back, on loopback.

use gst::glib;
use gst_rtsp_server::prelude::*;

use super::*;

/// A GigE Vision camera that is none.
struct Gige(Child);

impl Gige {
    fn start() -> Self {
        let camera = Command::new("arv-fake-gv-camera-0.8").args(["-i", "127.0.0.1"]).stdout(Stdio::null()).spawn();
        Self(camera.expect("arv-fake-gv-camera-0.8 (Debian package aravis-tools)"))
    }
}

impl Drop for Gige {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// As root, Aravis takes a raw socket that sees nothing of loopback: the camera is read without that right.
fn without_raw_sockets(shift: &Shift) -> Command {
    let command = shift.command(&["run", "line.toml"]);
    let root = Command::new("id").arg("-u").output().unwrap().stdout == b"0\n";
    if !root {
        return command;
    }
    let mut inner = Command::new("setpriv");
    inner.args(["--bounding-set", "-net_raw", "--inh-caps", "-net_raw"]).arg(command.get_program());
    inner.args(command.get_args()).current_dir(shift.folder.path()).stdin(Stdio::null());
    inner.env_remove("GST_PLUGIN_PATH").env("GST_REGISTRY", shift.path("registry.bin"));
    inner
}

/// The number of frames and of verdicts of a line, as it says at its end.
fn counts(said: &str, line: &str) -> [u64; 2] {
    let told = said.lines().find_map(|text| text.split_once(&format!(" {line}: stopped: "))).expect(said).1;
    let mut numbers = told.split(", ").map(|part| part.split(' ').next().unwrap().parse::<u64>().unwrap());
    [numbers.next().unwrap(), numbers.sum()]
}

/// Killed and frozen in turn: the camera is back each time, the other line loses no frame, and every frame has one verdict.
#[test]
fn a_gige_camera_comes_back_and_the_other_line_does_not_notice() {
    let shift = Shift::new(&format!(
        "[defaults]\nmodel = \"MODEL\"\nstall = \"2s\"\n[[line]]\nname = \"cam\"\nresults = \"cam.jsonl\"\n\
         source = {{ aravis = \"Aravis-Fake-GV01\", format = \"GRAY8\", width = 256, height = 256, framerate = 10 }}\n\
         [[line]]\nname = \"other\"\nresults = \"other.jsonl\"\n{LIVE}\n"
    ));
    let mut camera = Gige::start();
    let mut running = Running::start(without_raw_sockets(&shift));
    running.until("cam: running");
    drop(camera);
    running.until("cam: camera-lost: ");
    camera = Gige::start();
    running.until("cam: running");
    signal(camera.0.id(), "STOP");
    running.until("cam: camera-lost: ");
    signal(camera.0.id(), "CONT");
    running.until("cam: running");
    let (code, said) = running.stop();
    assert_eq!(code, 0, "{said}");
    assert!(!said.contains("other: camera-lost"), "{said}");
    for line in ["cam", "other"] {
        let [frames, verdicts] = counts(&said, line);
        let results = shift.results(&format!("{line}.jsonl"));
        assert_eq!((frames, sequence(&results, line)), (verdicts, (1..=frames).collect()), "{line}: {said}");
    }
    // The other line's frames came at their pace all the while.
    let times: Vec<u64> = shift.results("other.jsonl").iter().map(|result| result["pts"].as_u64().unwrap()).collect();
    assert!(times.windows(2).all(|pair| pair[1] - pair[0] < 75_000_000), "{times:?}");
}

#[test]
fn an_rtsp_camera_comes_back() {
    init();
    let context = glib::MainContext::new();
    let server = || {
        let server = gst_rtsp_server::RTSPServer::new();
        server.set_address("127.0.0.1");
        let factory = gst_rtsp_server::RTSPMediaFactory::new();
        factory.set_launch(
            "( videotestsrc is-live=true ! video/x-raw,format=I420,width=64,height=64,framerate=20/1 ! \
             x264enc tune=zerolatency key-int-max=10 ! rtph264pay name=pay0 pt=96 config-interval=-1 )",
        );
        server.mount_points().unwrap().add_factory("/line", factory);
        server
    };
    let first = server();
    first.set_service("0");
    let attached = first.attach(Some(&context)).unwrap();
    let port = first.bound_port();
    let main = glib::MainLoop::new(Some(&context), false);
    let thread = std::thread::Builder::new().name("server".into()).spawn({
        let main = main.clone();
        move || main.run()
    });
    let shift = Shift::new(&format!(
        "[[line]]\nname = \"cam\"\nmodel = \"MODEL\"\nstall = \"2s\"\nresults = \"cam.jsonl\"\n\
         source = {{ rtsp = \"rtsp://127.0.0.1:{port}/line\", transport = \"tcp\" }}\n"
    ));
    let mut running = shift.start();
    running.until("cam: running");
    // The server lets go of its port and of all clients.
    context.find_source_by_id(&attached).expect("it is attached").destroy();
    first.client_filter(Some(&mut |_: &gst_rtsp_server::RTSPServer, _: &gst_rtsp_server::RTSPClient| {
        gst_rtsp_server::RTSPFilterResult::Remove
    }));
    drop(first);
    running.until("cam: camera-lost: ");
    let second = server();
    second.set_service(&port.to_string());
    let _attached = second.attach(Some(&context)).unwrap();
    running.until("cam: running");
    let (code, said) = running.stop();
    assert_eq!(code, 0, "{said}");
    let [frames, verdicts] = counts(&said, "cam");
    let results = shift.results("cam.jsonl");
    assert_eq!((frames, sequence(&results, "cam")), (verdicts, (1..=frames).collect()), "{said}");
    main.quit();
    thread.unwrap().join().unwrap();
}
