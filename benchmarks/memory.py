"""Does memory grow while a run goes on, or with the number of images?

Run: python benchmarks/memory.py

A small run's resident memory after each epoch, and the peak of a run of two steps on
1,000 and on 50,000 paths (hard links to a few files). Each run is a fresh process.
"""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

EPOCHS, SIDE, FILES = 12, 16, 10
COUNTS = (1_000, 50_000)
MEGABYTE = 1 << 20


def train(data: str, output: str, steps: int) -> None:
    """Train in this process; `data` is a folder or a name."""
    import reszoo

    reszoo.train(
        "resnet20",
        data,
        recipe="cifar",
        output=output,
        steps=steps,
        batch_size=32,
        train_size=SIDE,
        eval_size=SIDE,
        policy="trivial",
        ema=0.99,
        mixup=0.2,
    )


def images(folder: Path, count: int) -> Path:
    """Make a folder of `count` paths in ten classes."""
    draw, originals = np.random.default_rng(0), []
    (folder / "train").mkdir(parents=True)
    for number in range(FILES):
        original = folder / f"{number}.png"
        pixels = draw.integers(0, 256, (SIDE, SIDE, 3), np.uint8)
        Image.fromarray(pixels).save(original)
        originals.append(original)
    for split, share in (("train", count), ("validation", 100)):
        for number in range(share):
            label = folder / split / f"class-{number % FILES}"
            label.mkdir(parents=True, exist_ok=True)
            os.link(originals[number % FILES], label / f"image-{number:06d}.png")
    for original in originals:
        original.unlink()
    return folder


def start(data: str, output: Path, steps: int) -> subprocess.Popen[bytes]:
    """Train in a fresh process."""
    words = [sys.executable, __file__, data, str(output), str(steps)]
    return subprocess.Popen(words, stderr=subprocess.DEVNULL)


def resident(process: int) -> float:
    """Return the megabytes that a process holds now."""
    pages = Path(f"/proc/{process}/statm").read_text().split()[1]
    return int(pages) * os.sysconf("SC_PAGE_SIZE") / MEGABYTE


def by_epoch(root: Path) -> list[float]:
    """Return the resident megabytes at the end of each epoch."""
    output = root / "epochs"
    history = output / "history.csv"
    found: list[float] = []
    with start("digits", output, EPOCHS * (1259 // 32)) as process:
        while process.poll() is None:
            rows = history.read_text().count("\n") - 1 if history.exists() else 0
            if rows > len(found):
                found.append(resident(process.pid))
            time.sleep(0.01)
    return found


def peak(root: Path, count: int) -> float:
    """Return the most megabytes that two steps on `count` paths took."""
    data = images(root / f"{count}", count)
    process = start(str(data), root / f"run{count}", 2)
    _, code, used = os.wait4(process.pid, 0)
    process.returncode = code
    if code:
        raise SystemExit(f"Training on {count} paths failed.")
    return used.ru_maxrss / 1024


def main() -> None:
    """Measure and print both."""
    with tempfile.TemporaryDirectory() as name:
        found = by_epoch(Path(name))
        print("MB after each epoch:", " ".join(f"{each:.0f}" for each in found))
        print(f"epoch 10 over epoch 2: {found[9] / found[1] - 1:+.1%}")
        peaks = [peak(Path(name), count) for count in COUNTS]
        for count, most in zip(COUNTS, peaks, strict=True):
            print(f"{count:6,} paths: peak {most:.0f} MB")
        print(f"difference: {peaks[1] / peaks[0] - 1:+.1%}")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        train(sys.argv[1], sys.argv[2], int(sys.argv[3]))
    else:
        main()
