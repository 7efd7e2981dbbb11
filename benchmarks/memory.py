"""Does memory grow while a run goes on, or with the number of images?

Run: python benchmarks/memory.py [--large]

A small run's resident memory after each epoch, and the peak of a run of two steps on
1,000 and on 50,000 paths (hard links to a few files). With --large, the peak of two
steps on twelve JPEGs of 81 megapixels and one of 200 instead, beside two steps on the
same pictures of 1 megapixel. Each run is a fresh process.
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
# Width and height, in pixels.
LARGE = [(9_000, 9_000)] * 12 + [(20_000, 10_000)]
MEGABYTE = 1 << 20


def train(data: str, output: str, steps: int, batch_size: int, side: int) -> None:
    """Train in this process; `data` is a folder or a name, `side` in pixels."""
    import reszoo

    reszoo.train(
        "resnet20",
        data,
        recipe="cifar",
        output=output,
        steps=steps,
        batch_size=batch_size,
        train_size=side,
        eval_size=side,
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


def large_images(folder: Path, shrunk: int) -> Path:
    """Make a folder of two classes of large JPEGs, each side divided by `shrunk`."""
    tile = np.random.default_rng(0).integers(0, 256, (50, 50, 3), np.uint8)
    for number, (width, height) in enumerate(LARGE):
        size = width // shrunk, height // shrunk
        label = folder / f"class-{number % 2}"
        label.mkdir(parents=True, exist_ok=True)
        picture = Image.fromarray(tile).resize(size, Image.Resampling.BICUBIC)
        picture.save(label / f"image-{number}.jpg", quality=90)
    return folder


def start(
    data: str, output: Path, steps: int, batch_size: int = 32, side: int = SIDE
) -> subprocess.Popen[bytes]:
    """Train in a fresh process."""
    numbers = map(str, (steps, batch_size, side))
    words = [sys.executable, __file__, data, str(output), *numbers]
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


def peak(data: Path, **of_run: int) -> float:
    """Return the most megabytes that two steps on a folder of images took."""
    process = start(str(data), data.with_name(f"run-{data.name}"), 2, **of_run)
    _, code, used = os.wait4(process.pid, 0)
    process.returncode = code
    if code:
        raise SystemExit(f"Training on {data.name} failed.")
    return used.ru_maxrss / 1024


def main() -> None:
    """Measure and print."""
    with tempfile.TemporaryDirectory() as name:
        if sys.argv[1:] == ["--large"]:
            for shrunk in (9, 1):
                data = large_images(Path(name) / f"shrunk-{shrunk}", shrunk)
                most = peak(data, batch_size=8, side=224)
                print(f"large images, sides / {shrunk}: peak {most:.0f} MB")
            return
        found = by_epoch(Path(name))
        print("MB after each epoch:", " ".join(f"{each:.0f}" for each in found))
        print(f"epoch 10 over epoch 2: {found[9] / found[1] - 1:+.1%}")
        peaks = [peak(images(Path(name) / f"{n}", n)) for n in COUNTS]
        for count, most in zip(COUNTS, peaks, strict=True):
            print(f"{count:6,} paths: peak {most:.0f} MB")
        print(f"difference: {peaks[1] / peaks[0] - 1:+.1%}")


if __name__ == "__main__":
    if len(sys.argv) > 2:
        train(sys.argv[1], sys.argv[2], *map(int, sys.argv[3:]))
    else:
        main()
