"""Cameras that are killed and frozen again and again, beside a line that must not notice.

Two fake GigE Vision cameras, each on a host of its own (a network namespace), an RTSP camera, and a test picture at 20 frames a second. In each
round one camera after the other is killed and started anew, then stopped (SIGSTOP) and continued.
"""
import os
import signal
import statistics
import subprocess
import sys
import time

from common import Program, folder, free_port, install, results, start

LINES = """
schema = 1
state-dir = "state"
[defaults]
model = "{model}"
stall = "2s"
[http]
listen = "off"
[[line]]
name = "one"
source = {{ aravis = "{one}", format = "GRAY8", width = 256, height = 256, framerate = 10 }}
results = "one.jsonl"
[[line]]
name = "two"
source = {{ aravis = "{two}", format = "GRAY8", width = 256, height = 256, framerate = 10 }}
results = "two.jsonl"
[[line]]
name = "net"
source = {{ rtsp = "rtsp://127.0.0.1:{port}/camera", transport = "tcp" }}
results = "net.jsonl"
[[line]]
name = "other"
source = {{ launch = "videotestsrc is-live=true ! video/x-raw,width=64,height=64,framerate=20/1" }}
results = "other.jsonl"
archive = {{ max-size = "20MB", min-free = 0 }}
"""

RTSP = """
import gi, sys
gi.require_version("Gst", "1.0")
gi.require_version("GstRtspServer", "1.0")
from gi.repository import Gst, GstRtspServer, GLib
Gst.init(None)
server = GstRtspServer.RTSPServer(address="127.0.0.1", service=sys.argv[1])
factory = GstRtspServer.RTSPMediaFactory(shared=True, launch=(
    "( videotestsrc is-live=true ! video/x-raw,width=256,height=256,framerate=10/1 ! "
    "x264enc tune=zerolatency key-int-max=10 ! rtph264pay name=pay0 )"))
server.get_mount_points().add_factory("/camera", factory)
server.attach(None)
GLib.MainLoop().run()
"""


class Host:
    """A network namespace with one fake camera."""

    def __init__(self, number):
        self.name, self.link, self.net = f"diad{number}", f"diad{number}h", f"10.213.{number}"
        run = lambda *words: subprocess.run(["ip", *words], check=True)
        subprocess.run(["ip", "netns", "del", self.name], stderr=subprocess.DEVNULL)
        run("netns", "add", self.name)
        run("link", "add", self.link, "type", "veth", "peer", "name", "eth0", "netns", self.name)
        run("addr", "add", f"{self.net}.1/24", "broadcast", f"{self.net}.255", "dev", self.link)
        run("link", "set", self.link, "up")
        run("-n", self.name, "addr", "add", f"{self.net}.2/24", "broadcast", f"{self.net}.255", "dev", "eth0")
        run("-n", self.name, "link", "set", "eth0", "up")
        run("-n", self.name, "link", "set", "lo", "up")
        self.serial = f"GV{number:02}"
        self.begin()

    def begin(self):
        command = ["ip", "netns", "exec", self.name, "arv-fake-gv-camera-0.8", "-i", "eth0", "-s", self.serial]
        self.process = start(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def remove(self):
        self.process.kill()
        self.process.wait()
        subprocess.run(["ip", "netns", "del", self.name])


class Rtsp:
    """An RTSP server."""

    def __init__(self):
        self.port = free_port()
        self.begin()

    def begin(self):
        self.process = start(["/usr/bin/python3", "-c", RTSP, str(self.port)])

    def remove(self):
        self.process.kill()
        self.process.wait()


def run(program, model, short):
    install("aravis-tools", "libaravis-0.8-0", "iproute2", "util-linux", "python3-gi", "gir1.2-gst-rtsp-server-1.0")
    rounds = 2 if short else 20
    folder()
    if subprocess.run(["ip", "netns", "add", "diad-try"], stderr=subprocess.DEVNULL).returncode:
        print("NOT RUN: this machine allows no network namespaces, which the cameras are in", flush=True)
        return []
    subprocess.run(["ip", "netns", "del", "diad-try"])
    cameras = {"one": Host(1), "two": Host(2), "net": Rtsp()}
    try:
        return watch(program, model, rounds, cameras)
    finally:
        for camera in cameras.values():
            camera.remove()


def watch(program, model, rounds, cameras):
    names = {name: f"Aravis-{cameras[name].serial}" for name in ["one", "two"]}
    with open("line.toml", "w") as file:
        file.write(LINES.format(model=model, port=cameras["net"].port, **names))
    # With a raw socket aravis would leave the kernel's own path.
    shift = Program(program, prefix=["setpriv", "--bounding-set", "-net_raw", "--inh-caps", "-net_raw"])
    shift.until(*[f"{name}: running" for name in cameras])
    back = {name: {"killed": [], "frozen": []} for name in cameras}
    print("round  line  back after a kill, a freeze (s)  MiB  threads  descriptors", flush=True)
    sizes = []
    for number in range(1, rounds + 1):
        for name, camera in cameras.items():
            camera.process.kill()
            camera.process.wait()
            shift.until(f"{name}: camera-lost")
            camera.begin()
            started = time.monotonic()
            back[name]["killed"].append(shift.until(f"{name}: running") - started)
            camera.process.send_signal(signal.SIGSTOP)
            shift.until(f"{name}: camera-lost")
            camera.process.send_signal(signal.SIGCONT)
            started = time.monotonic()
            back[name]["frozen"].append(shift.until(f"{name}: running") - started)
            times = f"{back[name]['killed'][-1]:.1f}, {back[name]['frozen'][-1]:.1f}"
            sizes.append(shift.size())
            print(f"{number:5}  {name:>4}  {times:>31}  {'  '.join(map(str, sizes[-1]))}", flush=True)
    code = shift.stop()
    wrong = [f"exit code {code}"] if code else []
    for name in [*cameras, "other"]:
        frames, verdicts = shift.counts(name)
        numbers = [result["sequence"] for result in results(f"{name}.jsonl")]
        if frames != verdicts or numbers != list(range(1, frames + 1)):
            wrong.append(f"{name}: {frames} frames, {verdicts} verdicts, {len(numbers)} results")
    pts = [result["pts"] for result in results("other.jsonl")]
    gap = max(b - a for a, b in zip(pts, pts[1:]))
    if gap > 75_000_000 or any("other: camera-lost" in line for line in shift.said):
        wrong.append(f"other: a gap of {gap / 1e6:.0f} ms")
    for name, ways in back.items():
        for how, seconds in ways.items():
            print(f"{name}, {how}: back after {statistics.median(seconds):.1f} s in the middle, {max(seconds):.1f} s at most")
            if max(seconds) > 20:
                wrong.append(f"{name}, {how}: back after {max(seconds):.1f} s")
    # Flat: from the first round, in which everything was loaded, to the last.
    (mib, threads, descriptors), last = sizes[len(cameras) - 1], sizes[-1]
    if last[0] > 1.2 * mib + 16 or last[1] > threads + 2 or last[2] > descriptors + 2:
        wrong.append(f"from {sizes[len(cameras) - 1]} to {last}")
    return wrong
