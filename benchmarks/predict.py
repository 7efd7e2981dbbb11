"""Is `reszoo predict --output` as fast as its slower half, in constant memory?

Run: python benchmarks/predict.py MODEL SOURCES [--photos 10000] [--files FOLDER]

SOURCES is a folder of small images, such as CIFAR-10 as JPEG files; mosaics of them are
JPEGs of 500 x 375 pixels, as large as most of ImageNet's. In turns, on the same cores:

* decoding alone: `Predictor`'s preprocessing in a thread for each core;
* inference alone, of prepared images: one call after another on all cores, and calls
  at the same time in a thread for each core, each computed by one;
* both: `reszoo.predict_files`, from opening the model to the finished file.

Each is measured in images per second and in processor milliseconds per image. Other
programs on the same cores disturb the second less: judge by it on a busy machine.

Then `reszoo predict` classifies all photos in a process of its own; its resident memory
is shown by the rows that are on the disk.
"""

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
from harness import kept_folder, machine
from memory import resident
from PIL import Image

import reszoo
from reszoo.data.image_paths import iterate_paths
from reszoo.environment import usable_cores
from reszoo_export.predictor import load_image

SIZE, TILE, QUALITY = (500, 375), 64, 90
# Photos that differ; the others are hard links to them.
DISTINCT = 2000
BATCH = 32


def make_photos(sources: Path, folder: Path, count: int) -> list[str]:
    """Make mosaics of small images, unless the folder has them; return their paths."""
    paths = [
        folder / f"{number // 1000:03}" / f"{number:06}.jpg" for number in range(count)
    ]
    missing = [number for number, path in enumerate(paths) if not path.exists()]
    tiles = list(iterate_paths([sources])) if missing else []
    for number in missing:
        paths[number].parent.mkdir(parents=True, exist_ok=True)
        if number < DISTINCT:
            mosaic(tiles, number).save(paths[number], quality=QUALITY)
        else:
            os.link(paths[number % DISTINCT], paths[number])
    return list(map(str, paths))


def mosaic(tiles: Sequence[str], seed: int) -> Image.Image:
    """Return an image of randomly chosen tiles."""
    draw, (width, height) = np.random.default_rng(seed), SIZE
    image = Image.new("RGB", SIZE)
    for top in range(0, height, TILE):
        for left in range(0, width, TILE):
            with Image.open(tiles[draw.integers(len(tiles))]) as tile:
                image.paste(tile.convert("RGB").resize((TILE, TILE)), (left, top))
    return image


class Halves:
    """Decoding and inference, each alone and both, on the same photos."""

    def __init__(self, model: Path, folder: Path) -> None:
        self.cores, self.model, self.folder = usable_cores(), model, folder
        self.all_cores = reszoo.Predictor(model)
        self.one_core = reszoo.Predictor(model, threads=1)
        self.pool = ThreadPoolExecutor(self.cores)

    def decode(self, paths: Sequence[str]) -> None:
        """Decode in a thread for each core."""
        prepare = self.all_cores.card.preprocessing.prepare
        for start in range(0, len(paths), BATCH * self.cores):
            some = paths[start : start + BATCH * self.cores]
            list(self.pool.map(lambda path: prepare(load_image(path)), some))

    def infer(self, paths: Sequence[str], *, at_once: bool) -> None:
        """Run the model on one prepared batch as often as the photos need."""
        prepare = self.all_cores.card.preprocessing.prepare
        batch = np.stack([prepare(load_image(path)) for path in paths[:BATCH]])
        predictor = self.one_core if at_once else self.all_cores
        run = (self.pool.map if at_once else map)(
            lambda _: predictor.predict_prepared(batch), range(len(paths) // BATCH)
        )
        list(run)

    def both(self, paths: Sequence[str]) -> None:
        """Classify the files."""
        output = self.folder / "answers.csv"
        reszoo.predict_files(self.model, paths, output, overwrite=True)


def measure(
    model: Path, paths: Sequence[str], folder: Path, rounds: int
) -> dict[str, tuple[float, float]]:
    """Return each one's median images per second and processor milliseconds."""
    halves = Halves(model, folder)
    contenders: dict[str, Callable[[Sequence[str]], None]] = {
        "decoding": halves.decode,
        "inference in turn": partial(halves.infer, at_once=False),
        "inference at once": partial(halves.infer, at_once=True),
        "both": halves.both,
    }
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in contenders}
    for run in contenders.values():
        run(paths[: 2 * BATCH])
    for _ in range(rounds):
        for name, run in contenders.items():
            wall, used = time.perf_counter(), time.process_time()
            run(paths)
            wall, used = time.perf_counter() - wall, time.process_time() - used
            found[name].append((len(paths) / wall, 1000 * used / len(paths)))
            print(f"{name:20}{found[name][-1][0]:8.1f} images/s", flush=True)
    return {name: tuple(np.median(runs, axis=0)) for name, runs in found.items()}


def show(found: dict[str, tuple[float, float]]) -> None:
    """Print the medians, and how both compare with the slower half."""
    for name, (rate, milliseconds) in found.items():
        print(f"median {name:20}{rate:8.1f} images/s {milliseconds:8.2f} ms processor")
    (decoding, decoding_ms), (both, both_ms) = found["decoding"], found["both"]
    for how in ("in turn", "at once"):
        rate, milliseconds = found[f"inference {how}"]
        by_time = both / min(decoding, rate)
        by_processor = max(decoding_ms, milliseconds) / both_ms
        print(
            f"both to the slower half, inference {how}: {by_time:.2f} by time, "
            f"{by_processor:.2f} by processor time"
        )


def memory_by_rows(model: Path, folder: Path, output: Path) -> list[tuple[int, float]]:
    """Return rows on the disk and resident megabytes of `reszoo predict` by second."""
    words = [sys.executable, "-m", "reszoo", "predict", str(model), str(folder)]
    words += ["--output", str(output), "--overwrite"]
    journal = output.with_name(f".{output.name}.partial") / "journal"
    found: list[tuple[int, float]] = []
    with subprocess.Popen(words) as process:
        while process.poll() is None:
            lines = journal.read_text().splitlines() if journal.exists() else []
            rows = int(lines[-1][1:].split(",")[0]) if len(lines) > 1 else 0
            if rows:
                found.append((rows, resident(process.pid)))
            time.sleep(1)
    if process.returncode:
        raise SystemExit("reszoo predict failed.")
    return found


def main() -> None:
    """Measure and print both."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", type=Path)
    parser.add_argument("sources", type=Path)
    parser.add_argument("--photos", type=int, default=10_000)
    parser.add_argument("--round", type=int, default=1000, help="photos in a round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--files", type=Path, help="keep the photos in this folder")
    options = parser.parse_args()
    with kept_folder(options.files) as folder:
        paths = make_photos(options.sources, folder / "photos", options.photos)
        print(machine()["processor"], options.model.name)
        show(measure(options.model, paths[: options.round], folder, options.rounds))
        curve = memory_by_rows(options.model, folder / "photos", folder / "all.csv")
        for row, megabytes in curve[:: max(1, len(curve) // 12)]:
            print(f"{row:8,} rows {megabytes:8.1f} MB")


if __name__ == "__main__":
    main()
