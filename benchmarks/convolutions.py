"""How long do convolutions take in bfloat16, and in which kernels? TensorFlow, torch.

Run: python benchmarks/convolutions.py --peers PYTHON [--rounds 2] [--json FILE]

Eight convolutions of ResNet-50 with 16 images, by themselves: forwards, and with both
gradients. "kernels" is what oneDNN's own log (ONEDNN_VERBOSE) says that its primitives
took forwards, reordering of weights included; the rest of a call is the library's.
"""

import os
import re
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import harness
import numpy as np
from harness import THREADS, Contender, Runs, Target

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

    torch.set_num_threads(THREADS)
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


@contextmanager
def printed() -> Iterator[list[str]]:
    """Collect the lines that this process prints, those of C too."""
    lines: list[str] = []
    usual = os.dup(1)
    with tempfile.TemporaryFile() as file:
        os.dup2(file.fileno(), 1)
        try:
            yield lines
        finally:
            os.dup2(usual, 1)
            os.close(usual)
            file.seek(0)
            lines += file.read().decode().splitlines()


def milliseconds(call: Callable[[], object]) -> float:
    """Return the median of several calls, after one that does not count."""
    marks = [time.perf_counter()]
    for _ in range(CALLS):
        call()
        marks.append(time.perf_counter())
    return 1000 * statistics.median(np.diff(marks).tolist())


def measured(library: str) -> None:
    """Measure every convolution in this process, and print the run."""
    # oneDNN reads it at its first primitive.
    os.environ["ONEDNN_VERBOSE"] = "1"
    rows = []
    for shape in SHAPES:
        forwards, both = LIBRARIES[library](*shape)
        for call in (forwards, both):
            call()
        with printed() as lines:
            took = milliseconds(forwards)
        logged = [found for line in lines if (found := _LOGGED.match(line))]
        rows.append(
            {
                "forwards": took,
                "kernels": sum(float(each[3]) for each in logged) / CALLS,
                "both": milliseconds(both),
                "names": sorted({each[2] for each in logged} - {"jit:uni"}),
            }
        )
    run = {"samples": [1000 / sum(row["forwards"] for row in rows)]}
    harness.emit(run, rows=rows, versions=harness.versions(library))


def table(runs: Runs) -> str:
    """Return medians over the processes in milliseconds, in Markdown."""
    lines = ["| | | forwards | kernels | with gradients | |", f"|{'---|' * 6}"]
    kinds = ("forwards", "kernels", "both")
    totals: dict[str, list[list[float]]] = {library: [] for library in runs}
    for number, (side, inside, outside, kernel) in enumerate(SHAPES):
        what = f"{side}x{side}, {inside} to {outside}, {kernel}x{kernel}"
        for library, processes in runs.items():
            rows = [process["rows"][number] for process in processes]
            parts = [statistics.median(row[kind] for row in rows) for kind in kinds]
            totals[library].append(parts)
            numbers = " | ".join(f"{part:.2f}" for part in parts)
            names = ", ".join(rows[0]["names"])
            lines.append(f"| {what} | {library} | {numbers} | {names} |")
    for library, parts_of in totals.items():
        sums = map(sum, zip(*parts_of, strict=True))
        numbers = " | ".join(f"{total:.1f}" for total in sums)
        lines.append(f"| all | {library} | {numbers} | |")
    return "\n".join(lines)


def main() -> None:
    """Measure both libraries in turns, and print the table."""
    given = harness.parser(__doc__, rounds=2).parse_args()
    if given.process:
        measured(*given.process)
        return
    pythons = {"tensorflow": sys.executable, "torch": given.peers or sys.executable}
    contenders = [
        Contender(name, (python, __file__, "--process", name), "times all a second")
        for name, python in pythons.items()
    ]
    runs = harness.measure(contenders, given.rounds)
    targets = [Target("tensorflow", "torch", 1)]
    harness.report(harness.summary(contenders, runs, targets), given.json)
    print(table(runs))


if __name__ == "__main__":
    main()
