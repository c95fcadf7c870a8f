"""What the parts of a shift share: the program under test, what it says, and what it leaves."""
import atexit
import json
import os
import queue
import re
import signal
import socket
import subprocess
import tempfile
import threading
import time


def install(*packages):
    """Debian packages that are not there yet."""
    missing = [name for name in packages if subprocess.run(["dpkg", "-s", name], capture_output=True).returncode]
    if missing:
        subprocess.run(["apt-get", "update", "-q"], check=True, stdout=subprocess.DEVNULL)
        command = ["apt-get", "install", "-y", "-q", "--no-install-recommends", *missing]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def start(command, **options):
    """A process that does not outlive this one."""
    process = subprocess.Popen(command, **options)
    atexit.register(process.kill)
    return process


def folder():
    """A new folder, and the present one from now on."""
    path = tempfile.mkdtemp(prefix="diad-shift-")
    os.chdir(path)
    return path


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def results(path):
    """The objects of a file of JSON lines; a last line that a crash has cut short is none."""
    with open(path) as file:
        return [json.loads(line) for line in file if line.endswith("\n")]


class Program:
    """diad-run, and what it says."""

    def __init__(self, program, file="line.toml", prefix=(), environment=None):
        command = [*prefix, program, "run", file]
        environment = {**os.environ, "MALLOC_ARENA_MAX": "2", **(environment or {})}  # as in the unit for systemd
        self.process = start(command, stderr=subprocess.PIPE, text=True, env=environment)
        self.lines, self.said = queue.Queue(), []
        self.reader = threading.Thread(target=lambda: [self.lines.put(line) for line in self.process.stderr], daemon=True)
        self.reader.start()

    def until(self, *texts, patience=90):
        """Waits until it has said something with each of `texts` in it, in any order; when."""
        end, missing = time.monotonic() + patience, set(texts)
        while True:
            try:
                line = self.lines.get(timeout=max(0.01, end - time.monotonic()))
            except queue.Empty:
                raise SystemExit(f"{missing} was not said within {patience} s; the last was:\n{''.join(self.said[-5:])}") from None
            self.said.append(line)
            missing -= {text for text in missing if text in line}
            if not missing:
                return time.monotonic()

    def size(self):
        """MiB, threads and descriptors."""
        status = open(f"/proc/{self.process.pid}/status").read()
        number = lambda key: int(re.search(rf"{key}:\s+(\d+)", status).group(1))
        return number("VmRSS") // 1024, number("Threads"), len(os.listdir(f"/proc/{self.process.pid}/fd"))

    def kill(self):
        self.process.kill()
        self.process.wait()

    def stop(self):
        """SIGTERM; the exit code."""
        self.process.send_signal(signal.SIGTERM)
        code = self.process.wait()
        self.reader.join()
        while not self.lines.empty():
            self.said.append(self.lines.get())
        return code

    def counts(self, line):
        """Frames and verdicts, as a line has told at its end."""
        told = next(text for text in self.said if f"{line}: stopped: " in text).split("stopped: ")[1].strip()
        print(f"{line}: {told}", flush=True)
        frames, *verdicts = [int(part.split()[0]) for part in told.split("; ")[0].split(", ")]
        return frames, sum(verdicts)


def percentile(values, share):
    values = sorted(values)
    return values[min(len(values) - 1, int(share * len(values)))]
