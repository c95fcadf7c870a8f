"""A disk of 64 MB that fills with pictures, and a program that is killed at random moments while it writes them."""
import glob
import json
import os
import random
import struct
import subprocess
import time
import zlib

from common import Program, folder, results

LINES = """
schema = 1
state-dir = "disk/state"
[http]
listen = "off"
[[line]]
name = "cap"
model = "{model}"
source = {{ launch = "videotestsrc is-live=true pattern=snow ! video/x-raw,format=RGB,width=320,height=240,framerate=20/1" }}
filter = {{ threshold = 0.0 }}
archive = {{ max-size = "1GB", min-free = "8MB", max-rate = 100.0, burst = 1000 }}
results = "cap.jsonl"
"""
FLOOR = 8_000_000


def is_whole(path):
    """Whether a PNG has all its pieces."""
    data = open(path, "rb").read()
    at = 8
    while at + 12 <= len(data):
        length, kind = struct.unpack(">I4s", data[at:at + 8])
        body = data[at + 4:at + 8 + length]
        if len(data) < at + 12 + length or zlib.crc32(body) != struct.unpack(">I", data[at + 8 + length:at + 12 + length])[0]:
            return False
        at += 12 + length
        if kind == b"IEND":
            return at == len(data)
    return False


def run(program, model, short):
    kills, seconds = (3, 60) if short else (20, 600)
    folder()
    os.mkdir("disk")
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", "disk"]).returncode:
        print("NOT RUN: this machine allows no mount, which the small disk is", flush=True)
        return []
    try:
        return fill(program, model, kills, seconds)
    finally:
        subprocess.run(["umount", "disk"], check=True)


def fill(program, model, kills, seconds):
    with open("line.toml", "w") as file:
        file.write(LINES.format(model=model))
    chance, wrong = random.Random(2), []
    for _ in range(kills):
        shift = Program(program)
        shift.until("cap: running")
        time.sleep(chance.uniform(0.2, 3))
        shift.kill()
    shift = Program(program)
    shift.until("cap: running")
    least, end = 1 << 60, time.monotonic() + seconds
    while time.monotonic() < end:
        space = os.statvfs("disk")
        least = min(least, space.f_bavail * space.f_frsize)
        time.sleep(0.05)
    code = shift.stop()
    frames, verdicts = shift.counts("cap")
    if code or frames != verdicts:
        wrong.append(f"exit code {code}, {frames} frames, {verdicts} verdicts")
    numbers = [result["sequence"] for result in results("cap.jsonl")]
    if numbers != sorted(set(numbers)):
        wrong.append("a number was given twice, or out of order")
    files = [path for path in glob.glob("disk/state/archive/**/*", recursive=True) if os.path.isfile(path)]
    pictures = [path for path in files if path.endswith(".png")]
    torn = [path for path in pictures if not is_whole(path)]
    for path in files:
        if path.endswith(".json"):
            json.load(open(path))
    if torn or any(path.endswith(".part") for path in files):
        wrong.append(f"{len(torn)} pictures are torn")
    print(f"{kills} kills, then {seconds} s: at least {least} bytes free, {len(numbers)} results, {len(pictures)} whole pictures", flush=True)
    if least < FLOOR:
        wrong.append(f"{least} bytes free, the floor is {FLOOR}")
    return wrong
