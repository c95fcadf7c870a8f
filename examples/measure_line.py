#!/usr/bin/env python3
"""What diadfilter costs and keeps on this machine: overhead, live latency, fair shares, growth.

    export GST_PLUGIN_PATH=$PWD/target/release
    python3 examples/measure_line.py demo/parts.diad overhead
    python3 examples/measure_line.py demo/parts.diad live --fps 20 --seconds 60
    python3 examples/measure_line.py demo/parts.diad share --streams 4 --seconds 30
    python3 examples/measure_line.py demo/parts.diad cycles --count 200
    python3 examples/measure_line.py demo/parts.diad play --seconds 600

Prints one JSON object per measurement; times in ms. Needs Debian's python3-gi and gir1.2-gstreamer-1.0.
"""
import argparse
import json
import os
import sys
import time

import gi

gi.require_version("Gst", "1.0")
from gi.repository import Gst  # noqa: E402

FORMATS = ["RGB", "BGRx", "GRAY8", "I420", "NV12"]
OVERLAYS = ["0", "verdict+boxes+heatmap+contour+details"]


def run(pipeline, seconds=None):
    """Plays to the end, or for so long; errors end the program."""
    pipeline.set_state(Gst.State.PLAYING)
    bus, until = pipeline.get_bus(), time.monotonic() + (seconds or 1e9)
    while (left := until - time.monotonic()) > 0:
        wanted = Gst.MessageType.ERROR | Gst.MessageType.EOS | Gst.MessageType.LATENCY
        message = bus.timed_pop_filtered(int(min(left, 1.0) * Gst.SECOND), wanted)
        if message is None:
            continue
        if message.type == Gst.MessageType.ERROR:
            sys.exit(message.parse_error().gerror.message)
        if message.type == Gst.MessageType.EOS:
            return
        pipeline.recalculate_latency()


def fields(structure, *names):
    return {name: structure.get_value(name) for name in names if structure.has_field(name)}


def percentile(values, share):
    return sorted(values)[min(len(values) - 1, int(share * len(values)))] if values else None


def overhead(args):
    """Time per 1920x1080 frame outside the model: preparing, drawing, attaching. Live, so that the clock does not
    count what other frames' model time takes from this one; `--fps 1000` counts that, too."""
    for overlay in OVERLAYS:
        for name in FORMATS:
            pipeline = Gst.parse_launch(
                f"videotestsrc is-live=true pattern=ball num-buffers={args.frames} ! "
                f"video/x-raw,format={name},width=1920,height=1080,framerate={args.fps}/1 ! "
                f"diadfilter name=f model={args.model} overlay={overlay} {args.properties} ! fakesink"
            )
            run(pipeline)
            stats = pipeline.get_by_name("f").get_property("stats")
            p50 = {part: stats.get_value(f"time-{part}").get_value("p50") / 1e6 for part in ("pre", "draw")}
            counts = fields(stats, "frames", "ok", "warn", "ng")
            print(json.dumps({"format": name, "overlay": overlay, **p50, "sum": sum(p50.values()), **counts}), flush=True)
            pipeline.set_state(Gst.State.NULL)


def live(args):
    """Time that frames of a live pipeline spend in the element against what LATENCY said at that moment."""
    pipeline = Gst.parse_launch(
        f"videotestsrc is-live=true ! video/x-raw,format=I420,width=640,height=480,framerate={args.fps}/1 ! "
        f"queue ! diadfilter name=f model={args.model} {args.properties} ! queue ! fakesink sync=true"
    )
    element = pipeline.get_by_name("f")
    came, took, over, order = {}, [], 0, []

    def arrive(_, info):
        came[info.get_buffer().pts] = time.monotonic_ns()
        return Gst.PadProbeReturn.OK

    def leave(_, info):
        nonlocal over
        pts = info.get_buffer().pts
        took.append(time.monotonic_ns() - came.pop(pts))
        order.append(pts)
        over += took[-1] > element.get_property("stats").get_value("latency")
        return Gst.PadProbeReturn.OK

    element.get_static_pad("sink").add_probe(Gst.PadProbeType.BUFFER, arrive)
    element.get_static_pad("src").add_probe(Gst.PadProbeType.BUFFER, leave)
    run(pipeline, args.seconds)
    stats = element.get_property("stats")
    print(json.dumps({
        "fps": args.fps, "left": len(took), "in_order": order == sorted(order), "over_latency": over / max(len(took), 1),
        "p50": percentile(took, 0.5) / 1e6, "p99": percentile(took, 0.99) / 1e6, "max": max(took) / 1e6,
        "latency": stats.get_value("latency") / 1e6,
        **fields(stats, "frames", "ok", "warn", "ng", "uninspected", "uninspected-late", "uninspected-overload", "error"),
    }))  # fmt: skip
    pipeline.set_state(Gst.State.NULL)


def share(args):
    """Several live streams on one worker: inspected frames per second in all, and who got how many."""
    stream = (
        "videotestsrc is-live=true ! video/x-raw,format=I420,width=640,height=480,framerate=30/1 ! queue ! "
        "diadfilter name=f{n} model={model} overlay=0 {properties} ! queue ! fakesink sync=true "
    )
    line = "".join(stream.format(n=n, model=args.model, properties=args.properties) for n in range(args.streams))
    pipeline = Gst.parse_launch(line)
    elements = [pipeline.get_by_name(f"f{n}") for n in range(args.streams)]

    def inspected():
        stats = [element.get_property("stats") for element in elements]
        return [sum(s.get_value(verdict) for verdict in ("ok", "warn", "ng")) for s in stats]

    run(pipeline, 3)
    before, started = inspected(), time.monotonic()
    run(pipeline, args.seconds)
    each = [after - start for after, start in zip(inspected(), before)]
    rate = sum(each) / (time.monotonic() - started)
    mean_batch = elements[0].get_property("stats").get_value("worker-mean-batch")
    fair = min(each) / (sum(each) / len(each))
    print(json.dumps({"each": each, "per_second": rate, "least_of_fair_share": fair, "mean_batch": mean_batch}))
    pipeline.set_state(Gst.State.NULL)


def size():
    with open("/proc/self/status", encoding="ascii") as status:
        found = dict(line.split(":", 1) for line in status)
    return {
        "rss_mb": int(found["VmRSS"].split()[0]) // 1024,
        "threads": int(found["Threads"]),
        "files": len(os.listdir("/proc/self/fd")),
    }


def cycles(args):
    """Memory, threads and files over starts and stops of one pipeline."""
    pipeline = Gst.parse_launch(
        f"videotestsrc num-buffers=10 ! video/x-raw,format=I420,width=640,height=480 ! "
        f"diadfilter model={args.model} {args.properties} ! fakesink"
    )
    for cycle in range(args.count):
        run(pipeline)
        pipeline.set_state(Gst.State.NULL)
        if cycle in (0, 1, 2, 4) or (cycle + 1) % max(args.count // 10, 1) == 0:
            print(json.dumps({"cycle": cycle + 1, **size()}), flush=True)


def play(args):
    """The same over a long live run."""
    pipeline = Gst.parse_launch(
        f"videotestsrc is-live=true ! video/x-raw,format=I420,width=640,height=480,framerate=25/1 ! queue ! "
        f"diadfilter name=f model={args.model} meta=regions+result+map {args.properties} ! queue ! fakesink sync=true"
    )
    parts = 10
    for part in range(parts):
        run(pipeline, args.seconds / parts)
        counts = fields(pipeline.get_by_name("f").get_property("stats"), "frames", "uninspected", "error")
        print(json.dumps({"seconds": (part + 1) * args.seconds / parts, **size(), **counts}), flush=True)
    pipeline.set_state(Gst.State.NULL)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("what", choices=["overhead", "live", "share", "cycles", "play"])
    parser.add_argument("--frames", type=int, default=150)
    parser.add_argument("--fps", type=int, default=20, help="frames per second of a live source")
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--streams", type=int, default=4)
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--properties", default="", help="more properties of diadfilter: 'class=bottle'")
    args = parser.parse_args()
    Gst.init(None)
    globals()[args.what](args)


if __name__ == "__main__":
    main()
