#!/usr/bin/env python3
"""A shift of production, with everything that goes wrong in it.

    python3 tests/shift [--short] [--parts cameras,broker,disk,clips,cost] target/release/diad-run MODEL.diad

Sets up what it needs by itself, as root on Debian: fake GigE Vision cameras and an RTSP camera that are killed and frozen, a broker that goes
away in four ways, a disk that fills, and the program itself killed at random moments. Says what it measures; ends with 1 if a frame has no
verdict, a result is lost, a file is torn, or another line notices. In full it takes about an hour, with --short about six minutes.
"""
import argparse
import importlib
import os
import sys
import time

PARTS = ["cameras", "broker", "disk", "clips", "cost"]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("program", help="diad-run")
    parser.add_argument("model", help="a model (.diad)")
    parser.add_argument("--short", action="store_true", help="a few rounds of each")
    parser.add_argument("--parts", default=",".join(PARTS), help="some of " + ", ".join(PARTS))
    asked = parser.parse_args()
    names = asked.parts.split(",")
    unknown = [name for name in names if name not in PARTS]
    if unknown:
        parser.error(f"--parts {unknown[0]}: expected some of {', '.join(PARTS)}")
    program, model = os.path.abspath(asked.program), os.path.abspath(asked.model)
    failed = []
    for name in names:
        start = time.monotonic()
        print(f"== {name}", flush=True)
        wrong = importlib.import_module(name).run(program, model, asked.short)
        for reason in wrong:
            print(f"WRONG: {reason}", flush=True)
        failed += [name] if wrong else []
        print(f"== {name}: {'failed' if wrong else 'as it should be'}, {time.monotonic() - start:.0f} s", flush=True)
    sys.exit(bool(failed))


main()
