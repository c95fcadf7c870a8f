"""What the archive costs the thread that frames pass, and what clips and a broker cost the program, at 1920x1080.

The first is CPU time of the streaming thread around `diadarchive`, frame by frame, with every frame kept. The second is CPU time of the threads
that frames pass in diad-run, per frame, with archive, clips and MQTT and without; in turn.
"""
import glob
import os
import statistics
import subprocess
import sys
import time

from common import Program, folder, free_port, install, percentile

PROBE = """
import gi, os, sys, time
gi.require_version("Gst", "1.0")
from gi.repository import Gst
Gst.init(None)
format, frames, location, model = sys.argv[1], int(sys.argv[2]), sys.argv[3], sys.argv[4]
pipeline = Gst.parse_launch(
    f"videotestsrc is-live=true pattern=ball num-buffers={frames} ! video/x-raw,format={format},width=1920,height=1080,framerate=10/1 ! "
    f"diadfilter model={model} threshold=0 overlay=0 ! queue ! identity name=a silent=true ! diadarchive location={location} max-rate=1000 burst=100000 "
    f"min-free=0 ! identity name=b silent=true ! fakesink")
times, before = [], [0, 0]
def come(pad, info):
    before[:] = time.thread_time_ns(), time.monotonic_ns()
    return Gst.PadProbeReturn.OK
def leave(pad, info):
    times.append((time.thread_time_ns() - before[0], time.monotonic_ns() - before[1]))
    return Gst.PadProbeReturn.OK
pipeline.get_by_name("a").get_static_pad("src").add_probe(Gst.PadProbeType.BUFFER, come)
pipeline.get_by_name("b").get_static_pad("sink").add_probe(Gst.PadProbeType.BUFFER, leave)
pipeline.set_state(Gst.State.PLAYING)
message = pipeline.get_bus().timed_pop_filtered(Gst.CLOCK_TIME_NONE, Gst.MessageType.EOS | Gst.MessageType.ERROR)
if message.type == Gst.MessageType.ERROR:
    sys.exit(str(message.parse_error()))
for cpu, wall in times[10:]:
    print(cpu, wall)
sys.stdout.flush()
os._exit(0)
"""

LINES = """
schema = 1
name = "hall"
state-dir = "state"
[http]
listen = "off"
{mqtt}
[[line]]
name = "cap"
model = "{model}"
source = {{ launch = "videotestsrc is-live=true pattern=ball ! video/x-raw,format=I420,width=1920,height=1080,framerate=5/1" }}
filter = {{ threshold = 0.0, overlay = "0" }}
{kept}
"""
KEPT = """archive = { max-rate = 100.0, burst = 1000, min-free = 0, format = "jpeg" }
clips = { min-free = 0, verdicts = "error" }
"""


def passing(pid, names):
    """CPU seconds of the threads of these names so far."""
    total = 0.0
    for task in glob.glob(f"/proc/{pid}/task/*"):
        try:
            if open(f"{task}/comm").read().strip() in names:
                total += int(open(f"{task}/schedstat").read().split()[0]) / 1e9
        except OSError:
            pass  # it has ended
    return total


def run(program, model, short):
    install("python3-gi", "gir1.2-gstreamer-1.0", "python3-gst-1.0", "mosquitto", "mosquitto-clients")
    import broker

    wrong, frames = [], 60 if short else 600
    plugins = os.path.dirname(program)
    for kind in ["I420", "RGB"]:
        place = folder()
        command = ["/usr/bin/python3", "-c", PROBE, kind, str(frames), f"{place}/archive", model]
        done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "GST_PLUGIN_PATH": plugins})
        if done.returncode:
            return [f"archive: {done.stderr.strip().splitlines()[-1]}"]
        pairs = [tuple(map(int, line.split())) for line in done.stdout.splitlines()]
        figures = []
        for name, values in zip(["CPU", "wall"], zip(*pairs)):
            middle, most = (percentile(values, share) / 1e6 for share in (0.5, 0.99))
            figures.append(f"{name} {middle:.2f} ms in the middle, {most:.2f} ms for 99 %")
            if name == "CPU" and most > 1.0 and not short:  # a short run has too few frames for its last hundredth
                wrong.append(f"the archive takes {most:.2f} ms of CPU time for 99 % of {kind} frames")
        print(f"archive, 1920x1080 {kind}, {len(pairs)} frames: {'; '.join(figures)}", flush=True)
    costs = {"without": [], "with": []}
    for _ in range(1 if short else 3):
        for how in costs:
            folder()
            port, served = free_port(), None
            if how == "with":
                served = broker.Broker(port, lambda result: None)
            mqtt = broker.MQTT.format(port=port) if served else ""
            with open("line.toml", "w") as file:
                file.write(LINES.format(model=model, mqtt=mqtt, kept=KEPT if served else ""))
            shift = Program(program)
            shift.until("cap: running")
            time.sleep(2)
            seconds = 5 if short else 20
            names = {"cap:src"}
            start = passing(shift.process.pid, names)
            time.sleep(seconds)
            spent = passing(shift.process.pid, names) - start
            costs[how].append(1e3 * spent / (5 * seconds))
            shift.stop()
            if served:
                served.end()
    for how, values in costs.items():
        print(f"the thread behind diadfilter, {how} archive, clips and MQTT: {', '.join(f'{value:.2f}' for value in values)} ms of CPU time a frame")
    return wrong
