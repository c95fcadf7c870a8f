"""A broker that goes away: every result arrives at least once, in the order of its line, and no line waits.

mosquitto is killed and comes back with an empty store, is frozen until its silence is noticed, refuses the password, and is cut off by the
network; the program itself is killed. Two lines go on all the while. A subscriber stands before each return of the broker: what a broker has
acknowledged is the broker's to deliver.
"""
import collections
import json
import os
import random
import signal
import socket
import subprocess
import threading
import time

from common import Program, folder, free_port, install, percentile, results, start

LINES = """
schema = 1
name = "hall"
state-dir = "state"
[http]
listen = "off"
{mqtt}
[defaults]
model = "{model}"
[[line]]
name = "one"
source = {{ launch = "videotestsrc is-live=true ! video/x-raw,width=64,height=64,framerate=20/1" }}
results = "one.jsonl"
[[line]]
name = "two"
source = {{ launch = "videotestsrc is-live=true pattern=ball ! video/x-raw,width=64,height=64,framerate=20/1" }}
results = "two.jsonl"
"""

MQTT = """
[mqtt]
url = "mqtt://127.0.0.1:{port}"
user = "hall"
password = "right"
"""


class Network:
    """Leads from a port of its own to another one, or to nobody."""

    def __init__(self):
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port, self.to, self.open = self.listener.getsockname()[1], None, []
        threading.Thread(target=self.serve, daemon=True).start()

    def serve(self):
        while True:
            near, _ = self.listener.accept()
            try:
                far = socket.create_connection(("127.0.0.1", self.to or 1))
            except OSError:
                near.close()
                continue
            self.open += [near, far]
            for pair in [(near, far), (far, near)]:
                threading.Thread(target=self.pump, args=pair, daemon=True).start()

    @staticmethod
    def pump(source, sink):
        try:
            while data := source.recv(65536):
                sink.sendall(data)
        except OSError:
            pass
        for end in (source, sink):
            try:
                end.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass

    def cut(self):
        for end in self.open:
            try:
                end.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass
        self.open.clear()


class Broker:
    """mosquitto, and a subscriber that is there before anything can be published."""

    def __init__(self, port, got, password="right"):
        self.port = port
        subprocess.run(["mosquitto_passwd", "-b", "-c", "passwords", "hall", password], check=True)
        subprocess.run(["mosquitto_passwd", "-b", "passwords", "reader", "reader"], check=True)
        os.chmod("passwords", 0o600)
        with open("mosquitto.conf", "w") as file:
            file.write(f"listener {port} 127.0.0.1\nuser root\nallow_anonymous false\npassword_file {os.getcwd()}/passwords\n")
        self.process = start(["/usr/sbin/mosquitto", "-c", "mosquitto.conf"], stderr=subprocess.DEVNULL)
        login = ["-h", "127.0.0.1", "-p", str(port), "-u", "reader", "-P", "reader"]
        while subprocess.run(["mosquitto_pub", *login, "-r", "-t", "diad/ready", "-m", "yes"], stderr=subprocess.DEVNULL).returncode:
            time.sleep(0.05)
        command = ["mosquitto_sub", *login, "-t", "diad/#", "-F", "%t %p"]
        self.reader = start(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        ready = threading.Event()

        def read():
            for line in self.reader.stdout:
                topic, payload = line.rstrip("\n").split(" ", 1)
                if topic == "diad/ready":
                    ready.set()
                elif topic.endswith("/result"):
                    got(json.loads(payload))

        self.thread = threading.Thread(target=read, daemon=True)
        self.thread.start()
        ready.wait(30)

    def end(self):
        self.process.send_signal(signal.SIGCONT)
        self.process.kill()
        self.process.wait()
        time.sleep(0.2)  # what is in the reader's pipe
        self.reader.kill()
        self.thread.join()


def run(program, model, short):
    install("mosquitto", "mosquitto-clients", "gstreamer1.0-tools")
    outages, kills, most = (3, 1, 400) if short else (20, 5, 10_000)
    folder()
    network, port = Network(), free_port()
    write(model, MQTT.format(port=network.port))
    order, seen = collections.defaultdict(list), collections.defaultdict(set)

    def got(result):
        line, number = result["line"], result["sequence"]
        if number not in seen[line]:
            seen[line].add(number)
            order[line].append(number)

    def sum_of():
        return sum(map(len, seen.values()))

    broker = Broker(port, got)
    network.to = port
    shift = Program(program)
    shift.until("mqtt: connected")
    chance = random.Random(1)
    ways = [("killed", 0), ("frozen", 0), ("refuses", 0), ("cut", 0)]
    program_dies = set(chance.sample(range(outages), kills))
    for number in range(outages):
        time.sleep(chance.uniform(1, 3))
        way = ways[number % len(ways)][0]
        network.to = None
        if way == "frozen":
            broker.process.send_signal(signal.SIGSTOP)
        elif way == "cut":
            network.cut()
        else:
            broker.process.kill()
        shift.until("results wait on disk")
        if way == "refuses":
            broker.end()
            broker = Broker(port, got, password="another")
            network.to = port
            shift.until("refuses user and password")
            network.to = None
        if number in program_dies:
            shift.kill()
            shift = Program(program)
            shift.until("results wait on disk")
        broker.end()
        network.cut()
        broker = Broker(port, got)
        network.to = port
        shift.until("mqtt: connected")
        print(f"outage {number + 1} ({way}{', and the program killed' if number in program_dies else ''}): {sum_of()} results arrived", flush=True)
    end = time.monotonic() + 1200
    while sum_of() < most and time.monotonic() < end:
        time.sleep(0.5)
    code = shift.stop()
    time.sleep(0.5)
    broker.end()
    wrong = [f"exit code {code}"] if code else []
    for line in ["one", "two"]:
        written = [result["sequence"] for result in results(f"{line}.jsonl")]
        missing = [number for number in written if number not in seen[line]]
        if missing:
            wrong.append(f"{line}: {len(missing)} of {len(written)} results never arrived, the first is {missing[0]}")
        if order[line] != sorted(order[line]):
            wrong.append(f"{line}: results came out of order")
        print(f"{line}: {len(written)} results, {len(seen[line])} arrived, the last number is {max(written)}", flush=True)
    return wrong + latency(program, model, short)


def write(model, mqtt):
    with open("line.toml", "w") as file:
        file.write(LINES.format(model=model, mqtt=mqtt))


def latency(program, model, short):
    """How long frames take from source to sink: without a broker, and with one that is frozen; in turn."""
    seconds, turns = (5, 1) if short else (20, 4)
    times = {"without": [], "frozen": []}
    for _ in range(turns):
        for how in times:
            folder()
            port, broker = free_port(), None
            if how == "frozen":
                broker = Broker(port, lambda result: None)
            write(model, MQTT.format(port=port) if broker else "")
            trace = {"GST_TRACERS": "latency(flags=pipeline)", "GST_DEBUG": "GST_TRACER:7", "GST_DEBUG_FILE": "trace.log"}
            shift = Program(program, environment={**trace, "GST_DEBUG_NO_COLOR": "1"})
            shift.until("two: running", *["mqtt: connected"] * bool(broker))
            if broker:
                broker.process.send_signal(signal.SIGSTOP)
            time.sleep(seconds)
            shift.stop()
            if broker:
                broker.end()
            with open("trace.log") as file:
                found = [line.split("time=(guint64)")[1].split(",")[0] for line in file if " latency, src-element" in line]
            times[how] += [int(time_ns) / 1e6 for time_ns in found[20:]]
    figures = {how: (percentile(all_of, 0.5), percentile(all_of, 0.99), len(all_of)) for how, all_of in times.items()}
    for how, (middle, most, count) in figures.items():
        print(f"latency, {how}: {middle:.2f} ms in the middle, {most:.2f} ms for 99 % of {count} frames", flush=True)
    ratio = figures["frozen"][1] / figures["without"][1]
    print(f"latency with a frozen broker: {ratio:.2f} of that without, for 99 %", flush=True)
    # A short run has too few frames for its last hundredth.
    return [f"latency: {ratio:.2f}"] if ratio > 1.1 and not short else []
