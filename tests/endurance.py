#!/usr/bin/env python3
"""Half an hour of play in which something changes every few seconds: the model, a link downstream, the caps.

    cargo build --release -p gst-plugin-diad
    GST_PLUGIN_PATH=target/release GST_TRACERS=leaks GST_DEBUG=GST_TRACER:7 \\
        python3 tests/endurance.py A.diad B.diad --minutes 30 2>leaks.log

Two streams share the worker of one model; only the first changes its model. Prints a JSON object thirty times, each when
both run the same model, and at the end whether frames in were the sum of verdicts, and the slopes of resident and live memory
over the last two thirds. Exit code 1 if a limit is broken. `grep object-alive leaks.log` shows what the tracer found alive:
nothing, if all is well.

Needs Debian's python3-gi and gir1.2-gstreamer-1.0.
"""
import argparse
import ctypes
import gc
import json
import os
import random
import sys
import time

import gi

gi.require_version("Gst", "1.0")
from gi.repository import Gst  # noqa: E402

VERDICTS = ("ok", "warn", "ng", "uninspected", "error")
CAPS = [
    "video/x-raw,format=I420,width=640,height=480,framerate=15/1",
    "video/x-raw,format=RGB,width=320,height=320,framerate=15/1",
    "video/x-raw,format=GRAY8,width=800,height=600,framerate=15/1",
    "video/x-raw,format=NV12,width=322,height=242,framerate=15/1",
]
LINE = (
    "videotestsrc is-live=true pattern=ball ! capsfilter name=caps{n} caps={caps} ! tee name=t{n} allow-not-linked=true "
    "t{n}. ! queue ! diadfilter name=f{n} model={model} meta=regions+result+map ! queue name=after{n} ! "
    "diadmeta2json name=j{n} ! fakesink name=sink{n} async=false "
)


class MallInfo(ctypes.Structure):
    _fields_ = [(name, ctypes.c_size_t) for name in (
        "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost".split())]  # fmt: skip


LIBC = ctypes.CDLL("libc.so.6")
LIBC.mallinfo2.restype = MallInfo


def size():
    with open("/proc/self/status", encoding="ascii") as status:
        found = dict(line.split(":", 1) for line in status)
    info = LIBC.mallinfo2()
    return {
        "rss_kb": int(found["VmRSS"].split()[0]),
        "live_kb": (info.uordblks + info.hblkhd) // 1024,
        "threads": int(found["Threads"]),
        "files": len(os.listdir("/proc/self/fd")),
    }


def slope(points):
    """Least squares, in y per second."""
    n = len(points)
    if n < 2:
        sys.exit("too short to tell a slope")
    mean_x, mean_y = (sum(values) / n for values in zip(*points))
    return sum((x - mean_x) * (y - mean_y) for x, y in points) / sum((x - mean_x) ** 2 for x, _ in points)


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("other")
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--every", type=float, default=3, help="seconds between two changes")
    parser.add_argument("--seed", type=int, default=1)
    return parser.parse_args()


def play(args):
    pick = random.Random(args.seed)
    pipeline = Gst.parse_launch("".join(LINE.format(n=n, caps=CAPS[0], model=args.model) for n in range(2)))
    named = pipeline.get_by_name
    bus, left, changes = pipeline.get_bus(), [0, 0], {"model": 0, "link": 0, "caps": 0}

    def passed(_, info, n):
        left[n] += 1
        return Gst.PadProbeReturn.OK

    for n in range(2):
        named(f"f{n}").get_static_pad("src").add_probe(Gst.PadProbeType.BUFFER, passed, n)

    def model(path=None):
        named("f0").set_property("model", path or pick.choice([args.model, args.other]))

    def link():
        n = pick.randrange(2)
        source, sink = named(f"f{n}").get_static_pad("src"), named(f"after{n}").get_static_pad("sink")
        source.unlink(sink)
        listen(pick.random())
        source.link(sink)

    def caps():
        named(f"caps{pick.randrange(2)}").set_property("caps", Gst.Caps.from_string(pick.choice(CAPS)))

    def listen(seconds):
        until = time.monotonic() + seconds
        while (rest := until - time.monotonic()) > 0:
            message = bus.timed_pop(int(rest * Gst.SECOND))
            if message is None:
                return
            if message.type == Gst.MessageType.ERROR:
                sys.exit(f"{message.src.get_name()}: {message.parse_error().gerror.message}")
            if message.type == Gst.MessageType.LATENCY:
                pipeline.recalculate_latency()

    pipeline.set_state(Gst.State.PLAYING)
    started, next_report, points = time.monotonic(), 0.0, []
    while (now := time.monotonic() - started) < args.minutes * 60:
        change = pick.choice([model, link, caps])
        change()
        changes[change.__name__] += 1
        listen(args.every)
        if now >= next_report:
            model(args.model)
            listen(2)  # loaded by then, and the other worker has ended
            points.append((now, size()))
            print(json.dumps({"minute": round(now / 60, 1), **points[-1][1], "left": left, "changes": changes}), flush=True)
            next_report = now + args.minutes * 2
    counts = []
    for n in range(2):
        named(f"f{n}").get_static_pad("sink").add_probe(Gst.PadProbeType.BUFFER, lambda *_: Gst.PadProbeReturn.DROP)
    listen(2)  # what is under way leaves
    for n in range(2):
        stats = named(f"f{n}").get_property("stats")
        counts.append({name: stats.get_value(name) for name in ("frames", *VERDICTS)})
    pipeline.set_state(Gst.State.NULL)
    late = [(at, found) for at, found in points if at >= args.minutes * 20]
    result = {
        "changes": changes,
        "counts": counts,
        "all_counted": all(count["frames"] == sum(count[name] for name in VERDICTS) for count in counts),
        "errors": [count["error"] for count in counts],
        "rss_mb_per_10_min": slope([(at, found["rss_kb"]) for at, found in late]) * 600 / 1024,
        "live_mb_per_10_min": slope([(at, found["live_kb"]) for at, found in late]) * 600 / 1024,
        "files": sorted({found["files"] for _, found in late}),
    }
    print(json.dumps(result))
    return result["all_counted"] and not any(result["errors"]) and result["rss_mb_per_10_min"] < 1


def main():
    args = arguments()
    Gst.init(None)
    good = play(args)
    gc.collect()
    Gst.deinit()  # the tracer looks for what is left
    sys.exit(0 if good else 1)


if __name__ == "__main__":
    main()
