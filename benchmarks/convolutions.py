"""How long do convolutions take in bfloat16, and in which kernels? TensorFlow, torch.

Run: python benchmarks/convolutions.py --peers PYTHON

Eight convolutions of ResNet-50 with 16 images, by themselves: forwards, and with both
gradients. Each library runs in a process of its own with 2 threads, in turns (A B B A).
"kernels" is what oneDNN's own log (ONEDNN_VERBOSE) says that its primitives took
forwards, reordering of weights included; the rest of a call is the library's.
"""

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

IMAGES, CALLS = 16, 20
# Side of the image, channels in and out, side of the kernel.
SHAPES = (
    (56, 64, 64, 1), (56, 64, 64, 3), (56, 64, 256, 1), (28, 128, 128, 3),
    (28, 128, 512, 1), (14, 256, 256, 3), (14, 1024, 256, 1), (7, 512, 512, 3),
)  # fmt: skip
# A line of the log: the primitive, its kernel and, last, milliseconds.
_LOGGED = re.compile(r"onednn_verbose,.*,exec,cpu,(\w+),([^,]+),.*,([\d.]+)$")
Calls = tuple[Callable[[], object], Callable[[], object]]


def in_tensorflow(side: int, inside: int, outside: int, kernel: int) -> Calls:
    """Return functions that convolve, and that compute both gradients as well."""
    import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(2)
    draw = np.random.default_rng(0).normal
    x, weights = (
        tf.Variable(tf.cast(draw(size=shape), tf.bfloat16))
        for shape in ((IMAGES, side, side, inside), (kernel, kernel, inside, outside))
    )

    @tf.function(autograph=False)
    def forwards() -> Any:
        return tf.nn.conv2d(x, weights, 1, "SAME")

    @tf.function(autograph=False)
    def both() -> Any:
        with tf.GradientTape() as tape:
            y = tf.nn.conv2d(x, weights, 1, "SAME")
        return tape.gradient(y, [x, weights])

    return forwards, both


def in_torch(side: int, inside: int, outside: int, kernel: int) -> Calls:
    """Return the same functions of torch, with its layout of last channels."""
    import torch

    torch.set_num_threads(2)
    draw = np.random.default_rng(0).normal
    x, weights = (
        torch.tensor(draw(size=shape))
        .to(torch.bfloat16, memory_format=torch.channels_last)
        .requires_grad_()
        for shape in ((IMAGES, inside, side, side), (outside, inside, kernel, kernel))
    )
    convolve = torch.nn.functional.conv2d

    def forwards() -> Any:
        with torch.no_grad():
            return convolve(x, weights, padding=kernel // 2)

    def both() -> Any:
        y = convolve(x, weights, padding=kernel // 2)
        return torch.autograd.grad(y, [x, weights], torch.ones_like(y))

    return forwards, both


LIBRARIES = {"tensorflow": in_tensorflow, "torch": in_torch}


def measured(library: str) -> None:
    """Print milliseconds of each convolution, beside oneDNN's log on the same pipe."""
    for shape in SHAPES:
        for call in LIBRARIES[library](*shape):
            call()
            samples = []
            print("begin", flush=True)
            for _ in range(CALLS):
                began = time.perf_counter()
                call()
                samples.append(1000 * (time.perf_counter() - began))
            print(json.dumps({"ms": statistics.median(samples)}), flush=True)


def run(library: str, python: str) -> list[dict[str, Any]]:
    """Measure in a process; return milliseconds, of kernels too, by convolution."""
    words = [python, __file__, "--measure", library]
    environment = {**os.environ, "ONEDNN_VERBOSE": "1", "TF_CPP_MIN_LOG_LEVEL": "3"}
    done = subprocess.run(
        words, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        text=True, check=True,
    )  # fmt: skip
    found: list[dict[str, Any]] = []
    for line in done.stdout.splitlines():
        if line == "begin":
            found.append({"kernels": 0.0, "names": set()})
        elif line.startswith("{"):
            found[-1] |= json.loads(line)
        # What is logged after the samples is the first call of the next ones.
        elif found and "ms" not in found[-1] and (logged := _LOGGED.match(line)):
            found[-1]["kernels"] += float(logged[3]) / CALLS
            found[-1]["names"] |= {logged[2]} - {"jit:uni"}
    return found


def table(results: dict[str, list[list[dict[str, Any]]]]) -> str:
    """Return medians over the processes, in Markdown."""
    lines = ["| | | forwards | kernels | with gradients | |", f"|{'---|' * 6}"]
    totals = dict.fromkeys(results, (0.0, 0.0, 0.0))
    for number, (side, inside, outside, kernel) in enumerate(SHAPES):
        for library, runs in results.items():
            forwards, both = ([r[2 * number + k] for r in runs] for k in (0, 1))
            parts = [
                statistics.median(each[key] for each in those)
                for those, key in (
                    (forwards, "ms"),
                    (forwards, "kernels"),
                    (both, "ms"),
                )
            ]
            totals[library] = tuple(map(sum, zip(totals[library], parts, strict=True)))  # type: ignore[assignment]
            what = f"{side}x{side}, {inside} to {outside}, {kernel}x{kernel}"
            numbers = " | ".join(f"{part:.2f}" for part in parts)
            names = ", ".join(sorted(forwards[0]["names"]))
            lines.append(f"| {what} | {library} | {numbers} | {names} |")
    for library, total in totals.items():
        numbers = " | ".join(f"{part:.1f}" for part in total)
        lines.append(f"| all | {library} | {numbers} | |")
    return "\n".join(lines)


def main() -> None:
    """Measure both libraries in turns, and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--peers", help="Python that has torch")
    parser.add_argument("--measure", choices=LIBRARIES, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.measure:
        measured(given.measure)
        return
    results: dict[str, list[list[dict[str, Any]]]] = {name: [] for name in LIBRARIES}
    for library in ("tensorflow", "torch", "torch", "tensorflow"):
        torch = library == "torch" and given.peers
        results[library].append(run(library, given.peers if torch else sys.executable))
    print(table(results))


if __name__ == "__main__":
    main()
