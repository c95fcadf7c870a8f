"""A clip holds its moment and the seconds before it, and plays with the distribution's tools; so does the recording of everything.

A line in which nothing is rejected gets another threshold for a second, and back. The clip of that second must begin `pre` before its first frame,
to within a group of pictures, and go on for `post` after its last. Both files are decoded by gst-launch, and their frames are counted.
"""
import glob
import json
import signal
import subprocess
import time

from common import Program, folder, install, results

RATE, PRE, POST, GROUP = 20, 5.0, 2.0, 1.0
LINES = """
schema = 1
state-dir = "state"
[http]
listen = "off"
[[line]]
name = "cap"
model = "{model}"
source = {{ launch = "videotestsrc is-live=true pattern=ball ! video/x-raw,width=320,height=240,framerate={rate}/1" }}
filter = {{ class = "{product}", threshold = {threshold}, warn-threshold = {threshold} }}
results = "cap.jsonl"
clips = {{ verdicts = "ng", pre = "{pre}s", post = "{post}s", min-free = 0 }}
record = {{ min-free = 0 }}
"""


def decoded(video):
    """Frames of a file, as the distribution's elements decode it."""
    pipeline = f"filesrc location={video} ! qtdemux ! h264parse ! openh264dec ! videoconvert ! jpegenc ! multifilesink location=frame%05d.jpg"
    for old in glob.glob("frame*.jpg"):
        subprocess.run(["rm", old])
    subprocess.run(["gst-launch-1.0", "-q", *pipeline.split()], check=True)
    return len(glob.glob("frame*.jpg"))


def run(program, model, short):
    install("gstreamer1.0-tools", "gstreamer1.0-plugins-good", "gstreamer1.0-plugins-bad", "gstreamer1.0-plugins-ugly")
    folder()
    card = subprocess.run([program.removesuffix("-run"), "inspect", model, "--json"], capture_output=True, text=True).stdout
    product = json.loads(card)["card"]["classes"][0]["name"]

    def write(threshold):
        with open("line.toml", "w") as file:
            file.write(LINES.format(model=model, rate=RATE, pre=PRE, post=POST, threshold=threshold, product=product))

    write(1e9)
    shift = Program(program)
    shift.until("cap: running")
    time.sleep(8)
    for threshold, seconds in [(0.0, 1), (1e9, POST + 2)]:
        write(threshold)
        shift.process.send_signal(signal.SIGHUP)
        shift.until("cap: changed")
        time.sleep(seconds)
    code = shift.stop()
    all_of = results("cap.jsonl")
    rejected = [result for result in all_of if result["verdict"] == "ng"]
    clips = [json.load(open(path)) for path in glob.glob("state/clips/cap/**/*.json", recursive=True)]
    videos = [json.load(open(path)) for path in glob.glob("state/record/cap/**/*.json", recursive=True)]
    if code or len(clips) != 1 or len(videos) != 1 or not rejected:
        return [f"exit code {code}, {len(rejected)} rejected, {len(clips)} clips, {len(videos)} recordings"]
    clip, wrong = clips[0], []
    counts = {}
    for kind, sidecar in [("clips", clip), ("record", videos[0])]:
        counts[kind] = decoded(glob.glob(f"state/{kind}/cap/**/{sidecar['files']['video']}", recursive=True)[0])
        if counts[kind] != sidecar["frames"]:
            wrong.append(f"{kind}: {counts[kind]} frames can be decoded, the JSON says {sidecar['frames']}")
    moment = (rejected[-1]["pts"] - rejected[0]["pts"]) / 1e9
    longest = PRE + GROUP + moment + POST + 2 / RATE
    print(f"clip: {clip['pre']:.2f} s before its frame, {clip['duration']:.2f} s in all, {counts['clips']} frames; recording: {counts['record']} of {len(all_of)}")
    if clip["seq"] != rejected[0]["sequence"]:
        wrong.append(f"the clip is of frame {clip['seq']}, the first that was rejected is {rejected[0]['sequence']}")
    if not PRE <= clip["pre"] <= PRE + GROUP + 1 / RATE:
        wrong.append(f"{clip['pre']} s before the frame, expected {PRE} and a group of pictures at most")
    if not PRE + moment + POST - 1 / RATE <= clip["duration"] <= longest:
        wrong.append(f"{clip['duration']} s in all")
    if counts["record"] < 0.98 * len(all_of):
        wrong.append(f"the recording has {counts['record']} of {len(all_of)} frames")
    return wrong
