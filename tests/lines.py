#!/usr/bin/env python3
"""A GigE camera that is killed and frozen again and again, beside a line that must not notice.

    python3 tests/lines.py target/release/diad-run MODEL.diad [ROUNDS]

Runs two lines under diad-run: a fake GigE Vision camera on loopback (Debian package aravis-tools) and a test picture at 20 frames a second.
In each round the camera is killed and started anew, then stopped (SIGSTOP) and continued. Says how long the line takes to be back once
its camera is, and how memory, threads and descriptors of diad-run go; ends with 1 if the other line has lost a frame, if frames are not the
sum of verdicts, or if a number is missing or there twice.
"""
import json
import os
import queue
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time

LINES = """
schema = 1
state-dir = "state"
[defaults]
model = "{model}"
stall = "2s"
[http]
listen = "off"
[[line]]
name = "cam"
source = {{ aravis = "Aravis-Fake-GV01", format = "GRAY8", width = 256, height = 256, framerate = 10 }}
results = "cam.jsonl"
[[line]]
name = "other"
source = {{ launch = "videotestsrc is-live=true ! video/x-raw,width=64,height=64,framerate=20/1" }}
results = "other.jsonl"
archive = {{ max-size = "20MB", min-free = 0 }}
"""


def camera():
    return subprocess.Popen(["arv-fake-gv-camera-0.8", "-i", "127.0.0.1"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def results(path):
    with open(path) as file:
        return [json.loads(line) for line in file]


def main():
    program, model = map(os.path.abspath, sys.argv[1:3])
    rounds = int(sys.argv[3]) if len(sys.argv) > 3 else 20
    folder = tempfile.mkdtemp(prefix="diad-lines-")
    os.chdir(folder)
    with open("line.toml", "w") as file:
        file.write(LINES.format(model=model))
    command = [program, "run", "line.toml"]
    if os.geteuid() == 0:  # with a raw socket aravis sees nothing of loopback
        command = ["setpriv", "--bounding-set", "-net_raw", "--inh-caps", "-net_raw"] + command
    gige = camera()
    run = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    said, all_said = queue.Queue(), []
    threading.Thread(target=lambda: [said.put(line) for line in run.stderr], daemon=True).start()

    def until(text, patience=90):
        end = time.monotonic() + patience
        while True:
            line = said.get(timeout=max(0.01, end - time.monotonic()))
            all_said.append(line)
            if text in line:
                return time.monotonic()

    def size():
        status = open(f"/proc/{run.pid}/status").read()
        number = lambda key: int(re.search(rf"{key}:\s+(\d+)", status).group(1))
        return number("VmRSS") // 1024, number("Threads"), len(os.listdir(f"/proc/{run.pid}/fd"))

    until("cam: running")
    back = {"killed": [], "frozen": []}
    print("round  back after a kill, a freeze (s)  MiB  threads  descriptors", flush=True)
    for number in range(1, rounds + 1):
        gige.kill()
        gige.wait()
        until("cam: camera-lost")
        gige, started = camera(), time.monotonic()
        back["killed"].append(until("cam: running") - started)
        gige.send_signal(signal.SIGSTOP)
        until("cam: camera-lost")
        gige.send_signal(signal.SIGCONT)
        started = time.monotonic()
        back["frozen"].append(until("cam: running") - started)
        times = f"{back['killed'][-1]:.1f}, {back['frozen'][-1]:.1f}"
        print(f"{number:5}  {times:>33}  {'  '.join(map(str, size()))}", flush=True)
    run.send_signal(signal.SIGTERM)
    wrong = [f"exit code {run.wait()}"] if run.wait() else []
    time.sleep(0.2)
    while not said.empty():
        all_said.append(said.get())
    gige.kill()
    for name in ["cam", "other"]:
        told = next(line for line in all_said if f"{name}: stopped: " in line).split("stopped: ")[1]
        frames, *verdicts = [int(part.split()[0]) for part in told.split(", ")]
        numbers = [result["sequence"] for result in results(f"{name}.jsonl")]
        if frames != sum(verdicts) or numbers != list(range(1, frames + 1)):
            wrong.append(f"{name}: {told.strip()}, {len(numbers)} results")
        print(f"{name}: {told.strip()}")
    pts = [result["pts"] for result in results("other.jsonl")]
    gaps = [b - a for a, b in zip(pts, pts[1:])]
    if max(gaps) > 75_000_000 or any("other: camera-lost" in line for line in all_said):
        wrong.append(f"other: a gap of {max(gaps) / 1e6:.0f} ms")
    for how, seconds in back.items():
        print(f"{how}: back after {statistics.median(seconds):.1f} s in the middle, {max(seconds):.1f} s at most")
    print("\n".join(wrong) or "all frames have one verdict, no number is missing, the other line has noticed nothing")
    sys.exit(bool(wrong))


main()
