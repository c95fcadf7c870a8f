"""The trunk and the denoiser of a model in OpenVINO, in turn with diad's own kernels, on this machine.

    python3 -m pip install openvino        # fetches about 60 MB from PyPI
    cargo build --release
    python3 tests/bench/against_openvino.py target/release/diad MODEL.diad [ROUNDS]

Builds networks of the same layers and sizes (weights are random: the time does not depend on them), runs one frame at a time on as many
threads as diad has, and prints the median of each round and their ratio. In f32, and in bf16 where the processor has it.
"""
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time

import numpy as np
import openvino as ov
from openvino import opset13 as op

STAGES = [(1, 3, 1, 1, 16), (2, 3, 2, 6, 24), (2, 5, 2, 6, 40), (3, 3, 2, 6, 80), (3, 5, 1, 6, 112)]  # EfficientNet-Lite0 to stride 16
RANDOM = np.random.default_rng(0)


def values(*shape):
    return op.constant((RANDOM.standard_normal(shape) * 0.05).astype(np.float32))


def trunk(width, height):
    x = image = op.parameter([1, 3, height, width], np.float32)

    def bias(x, channels, relu6):
        x = op.add(x, values(1, channels, 1, 1))
        return op.clamp(x, 0.0, 6.0) if relu6 else x

    def dense(x, into, out, kernel, stride, relu6):
        x = op.convolution(x, values(out, into, kernel, kernel), [stride] * 2, [0, 0], [0, 0], [1, 1], "same_upper")
        return bias(x, out, relu6)

    x, channels = dense(x, 3, 32, 3, 2, True), 32
    taps = []
    for index, (repeats, kernel, stride, expansion, out) in enumerate(STAGES):
        for repeat in range(repeats):
            before, wide = x, channels * expansion
            if expansion > 1:
                x = dense(x, channels, wide, 1, 1, True)
            step = stride if repeat == 0 else 1
            x = op.group_convolution(x, values(wide, 1, 1, kernel, kernel), [step] * 2, [0, 0], [0, 0], [1, 1], "same_upper")
            x = dense(bias(x, wide, True), wide, out, 1, 1, False)
            if step == 1 and channels == out:
                x = op.add(x, before)
            channels = out
        if index > 0:
            taps.append(x)
    return ov.Model([op.result(tap) for tap in taps], [image], "trunk")


def denoiser(width, height, dim, channels, hidden, kernel, stages, heads):
    tokens = width * height
    x = cells = op.parameter([1, tokens, dim], np.float32)

    def norm(x):
        x = op.mvn(x, op.constant(np.array([2])), True, 1e-5, "inside_sqrt")
        return op.add(op.multiply(x, values(1, 1, channels)), values(1, 1, channels))

    def dense(x, into, out):
        return op.add(op.matmul(x, values(into, out), False, False), values(1, 1, out))

    def gated(x, update):
        return op.add(x, op.multiply(update, values(1, 1, channels)))

    def block(x):
        h = op.transpose(op.reshape(norm(x), [1, height, width, channels], False), [0, 3, 1, 2])
        h = op.group_convolution(h, values(channels, 1, 1, kernel, kernel), [1, 1], [0, 0], [0, 0], [1, 1], "same_upper")
        h = op.reshape(op.transpose(h, [0, 2, 3, 1]), [1, tokens, channels], False)
        h = op.gelu(dense(op.add(h, values(1, 1, channels)), channels, hidden), "tanh")
        return gated(x, dense(h, hidden, channels))

    def attention(x):
        split = op.split(dense(norm(x), channels, 3 * channels), op.constant(2), 3)
        q, k, v = (op.transpose(op.reshape(split.output(i), [1, tokens, heads, channels // heads], False), [0, 2, 1, 3]) for i in range(3))
        h = op.scaled_dot_product_attention(q, k, v)
        h = op.reshape(op.transpose(h, [0, 2, 1, 3]), [1, tokens, channels], False)
        return gated(x, dense(h, channels, channels))

    x = op.add(op.matmul(x, values(dim, channels), False, False), values(1, tokens, channels))
    for stage in stages:
        x = block(x) if stage == "block" else attention(x)
    return ov.Model([op.result(dense(norm(x), channels, dim))], [cells], "denoiser")


def main():
    diad, model = sys.argv[1:3]
    rounds = int(sys.argv[3]) if len(sys.argv) > 3 else 5
    report = os.path.join(tempfile.mkdtemp(), "layers.json")

    def ours(precision):
        command = [diad, "bench", "--model", model, "--layers", "--frames", "200", "--report", report, "-q", "--precision", precision]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        with open(report) as file:
            return json.load(file)

    figures = ours("f32")
    layers = [row for row in figures["layers"] if row["network"] == "denoiser"]
    sizes = json.loads(subprocess.run([diad, "inspect", model, "--json"], check=True, capture_output=True, text=True).stdout)
    config = sizes["card"]["config"]
    width, height = figures["input"]
    cells = config["features"]["grid"] or max(1, min(width, height) // 16)
    grid = cells if isinstance(cells, list) else [cells * width // min(width, height), cells * height // min(width, height)]
    told, dim = config["denoiser"], config["features"]["dim"]
    stages = [row["layer"].split()[0] for row in layers if row["layer"].split()[0] in ("block", "attention")]
    networks = {
        "backbone": trunk(width, height),
        "denoiser": denoiser(*grid, dim, told["width"], told["width"] * told["mlp_ratio"], told["kernel"], stages, told["heads"]),
    }
    core = ov.Core()
    names = {"FP32": "f32", "BF16": "bf16"}
    known = [name for name in names if name in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")]
    compiled = {}
    for network, graph in networks.items():
        for name in known:
            hints = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": figures["threads"], "INFERENCE_PRECISION_HINT": names[name]}
            request = core.compile_model(graph, "CPU", hints).create_infer_request()
            request.set_input_tensor(ov.Tensor(RANDOM.standard_normal(list(graph.inputs[0].shape)).astype(np.float32)))
            compiled[network, names[name]] = request
    print(f"{model}: input {width}x{height}, grid {grid[0]}x{grid[1]}x{dim}, {figures['threads']} threads, OpenVINO {ov.__version__}")
    ratios = {}
    for number in range(rounds):
        ms = {
            (row["network"], names[name]): row["ms"]["p50"]
            for name in known
            for row in ours(names[name])["layers"]
            if row["layer"] == "together"
        }
        for (network, precision), request in compiled.items():
            times = []
            for index in range(240):
                started = time.perf_counter()
                request.infer()
                if index >= 40:
                    times.append(1e3 * (time.perf_counter() - started))
            theirs = statistics.median(times)
            own = ms[network, precision]
            ratios.setdefault((network, precision), []).append(own / theirs)
            print(f"round {number + 1}: {network} in {precision} {own:.2f} ms, OpenVINO {theirs:.2f} ms: {own / theirs:.2f}")
    for (network, precision), all_of in ratios.items():
        print(f"{network} in {precision} against OpenVINO: {statistics.median(all_of):.2f} ({min(all_of):.2f} to {max(all_of):.2f})")


if __name__ == "__main__":
    main()
