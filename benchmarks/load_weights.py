"""How long and how much memory does loading ResNet-50 take? reszoo and `load_weights`.

Run: python benchmarks/load_weights.py

Each contender runs in fresh processes, in the order A B B A; both assign the same
weights to a model that is built already. Memory is the peak of the process above
what it held after building.
"""

import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from harness import memory

import reszoo
from reszoo.environment import processor

ROUNDS = 4


def forget_peak() -> None:
    """Let "VmHWM" begin again (proc(5), clear_refs): building peaks higher."""
    Path("/proc/self/clear_refs").write_text("5")


def measure(contender: str, folder: Path) -> dict[str, float]:
    """Load once in this process; return seconds and bytes above the model."""
    from reszoo.weights.location import read
    from reszoo.weights.names import assign_tensors

    model = reszoo.build("resnet50")
    forget_peak()
    before = memory("VmRSS")
    started = time.perf_counter()
    if contender == "reszoo":
        path = folder / "model.safetensors"
        assign_tensors(model, read(path).tensors, str(path))
    else:
        model.load_weights(folder / "model.weights.h5")
    seconds = time.perf_counter() - started
    return {"seconds": seconds, "bytes": memory("VmHWM") - before}


def main() -> None:
    """Write one checkpoint in both formats and let the contenders load it."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = reszoo.build("resnet50", seed=0)
        size = reszoo.save(model, folder / "model.safetensors").stat().st_size
        model.save_weights(folder / "model.weights.h5")
        results: dict[str, list[dict[str, float]]] = {"reszoo": [], "keras": []}
        for turn in range(ROUNDS):
            order = ["reszoo", "keras"] if turn % 2 == 0 else ["keras", "reszoo"]
            for contender in order:
                command = [sys.executable, __file__, contender, name]
                done = subprocess.run(command, capture_output=True, check=True)
                results[contender].append(json.loads(done.stdout))
    print(f"ResNet-50, {size / 1e6:.0f} MB, {processor()}")
    for contender, rows in results.items():
        seconds = statistics.median(row["seconds"] for row in rows)
        peak = statistics.median(row["bytes"] for row in rows)
        print(
            f"{contender:7s} {1000 * seconds:7.0f} ms   "
            f"peak {peak / size:.2f} x the file above the model"
        )
    pairs = zip(results["reszoo"], results["keras"], strict=True)
    ratios = [theirs["seconds"] / ours["seconds"] for ours, theirs in pairs]
    print(f"reszoo is {statistics.median(ratios):.1f} x as fast (pair by pair)")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        print(json.dumps(measure(sys.argv[1], Path(sys.argv[2]))))
    else:
        main()
