"""Does every net become every format, verified, and twice the same bytes?

Run: python benchmarks/every_export.py [--nets LIST] [--formats LIST] [--json FILE]

Nets are names, which get random weights and statistics by a seed, or checkpoints of
trained nets, whose data `--images` names. Each is exported twice by `reszoo export`:
in two processes with another PYTHONHASHSEED and another working folder. Every file
must pass the export's own verification, and be the same byte for byte both times.
Random nets are shown noise of ten looks, each a class; their batch norms get what they
see as statistics, and their classifiers the classes' mean features, so that they tell
classes apart. Those pictures judge about which a net is least undecided: trained nets
are surer than any random one. Exits 1 if anything is missing.
"""

import argparse
import itertools
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from good_exports import randomise

NETS = (
    "resnet18,resnet34,resnet50,resnet101,resnet152,"
    "reszoo/bundled/resnet20-cifar10.safetensors,"
    "reszoo/bundled/resnet32-cifar10.safetensors"
)
# Pictures that calibrate; those to choose from for judging, and the number chosen.
TRAIN, CANDIDATES, TEST = 100, 120, 40
HASH_SEEDS = ("1", "4242")
# A class each: the corners of the cube of colours, grey and black.
COLOURS = (*itertools.product((60, 195), repeat=3), (128, 128, 128), (30, 30, 30))
CLASSES = len(COLOURS)
# Grey levels by which pixels, 2 x 2, 8 x 8 pixels and whole pictures vary, at most.
STRENGTHS = (25, 25, 25, 5)
# By how much the right logit leads in the middle. More would be rounding told apart.
LEAD = 1.5


@dataclass(frozen=True)
class Row:
    """What became of one net in one format.

    Attributes:
        net: Its name, or its checkpoint.
        format: One of `--formats`.
        bytes: Size of the file; 0 where there is none.
        problems: Why it is not verified, in either process.
        identical: Whether both processes wrote the same bytes.
        difference: Largest difference of a probability from the model's.
        seconds: That the export of all formats took, mean of both.
    """

    net: str
    format: str
    bytes: int
    problems: tuple[str, ...]
    identical: bool
    difference: float
    seconds: float

    @property
    def good(self) -> bool:
        """Whether nothing is missing."""
        return self.identical and not self.problems


def random_checkpoint(name: str, size: int, seed: int, folder: Path) -> tuple[str, str]:
    """Make a net with random weights and pictures for it; return both paths."""
    import keras

    import reszoo

    draw = np.random.default_rng(seed)
    labels = tuple("abcdefghij"[:CLASSES])
    model = reszoo.build(name, classes=labels, input_shape=(size, size, 3))
    randomise(model, draw)
    strengths = draw.uniform(2, STRENGTHS, (CLASSES, len(STRENGTHS)))
    answers = np.arange(TRAIN) % CLASSES
    images = noise(answers, size, strengths, draw)
    settle(model, images[: 2 * CLASSES])
    classify(model, images, answers)
    write_pictures(folder / "data" / "train", images, answers, labels)
    answers = np.arange(CANDIDATES) % CLASSES
    images = noise(answers, size, strengths, draw)
    chosen = surest(leads(model, images, answers), answers)
    write_pictures(folder / "data" / "test", images[chosen], answers[chosen], labels)
    path = folder / "net.safetensors"
    reszoo.save(model, path)
    keras.backend.clear_session()
    return str(path), str(folder / "data")


def noise(answers: Any, size: int, strengths: Any, draw: np.random.Generator) -> Any:
    """Make uint8 `(count, size, size, 3)` of each class's colour and structure."""
    made = np.zeros((len(answers), size, size, 3))
    made += np.asarray(COLOURS)[answers][:, None, None]
    for scale, side in enumerate((size, size // 2, size // 8, 1)):
        tiles = -(-size // side)
        drawn = draw.normal(0, 1, (len(answers), tiles, tiles, 3))
        drawn *= strengths[answers, scale][:, None, None, None]
        made += drawn.repeat(side, axis=1).repeat(side, axis=2)[:, :size, :size]
    return np.clip(made, 0, 255).astype(np.uint8)


def settle(model: Any, images: Any) -> None:
    """Make the statistics of every batch norm those of some images.

    With others a deep net adds the same large offset to all its features, and what
    tells images apart drowns in it.
    """
    import keras

    norms = [
        each
        for each in model.layers
        if isinstance(each, keras.layers.BatchNormalization)
    ]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
    model(inputs_of(model, images), training=True)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum


def inputs_of(model: Any, images: Any) -> Any:
    """Return images as the net takes them: float32 `(count, size, size, 3)`."""
    import reszoo

    record = reszoo.card(model).preprocessing
    pixels = np.stack([record.prepare(image) for image in images])
    return record.normalise(pixels.astype(np.float32))


def classify(model: Any, images: Any, answers: Any) -> None:
    """Give a net the classifier that takes the class of the nearest mean feature."""
    import keras

    from reszoo.checkpoints.names import lay_in, to_tensors

    ask = keras.Model(model.input, model.get_layer("fc").input)
    seen = ask.predict(inputs_of(model, images), batch_size=4, verbose=0)
    means = np.stack([seen[answers == each].mean(axis=0) for each in range(CLASSES)])
    # |x - m|^2 is least where (m - c) x - (|m|^2 - |c|^2) / 2 is greatest.
    centre = means.mean(axis=0)
    tensors = to_tensors(model)
    tensors["fc.weight"] = means - centre
    tensors["fc.bias"] = ((centre**2).sum() - (means**2).sum(axis=-1)) / 2
    lay_in(model, tensors, "a classifier that tells the images apart")
    scale = LEAD / np.median(leads(model, images, answers))
    tensors["fc.weight"] *= scale
    tensors["fc.bias"] *= scale
    lay_in(model, tensors, "the same, as sure as it should be")


def leads(model: Any, images: Any, answers: Any) -> Any:
    """Return by how much the logit of the right answer leads: `(count,)`."""
    logits = model.predict(inputs_of(model, images), batch_size=4, verbose=0)
    right = np.eye(CLASSES, dtype=bool)[answers]
    return logits[right] - np.where(right, -np.inf, logits).max(axis=-1)


def surest(lead: Any, answers: Any) -> Any:
    """Return which lead most among their class, as many of each."""
    ordered = np.lexsort((-lead, answers))
    rank = np.arange(len(lead)) - np.searchsorted(answers[ordered], answers[ordered])
    return ordered[rank < TEST // CLASSES]


def write_pictures(root: Path, images: Any, answers: Any, labels: Any) -> None:
    """Write a folder of class folders."""
    from PIL import Image

    for number, (image, answer) in enumerate(zip(images, answers, strict=True)):
        place = root / labels[answer]
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(place / f"{number}.png")


@contextmanager
def prepared(net: str, given: argparse.Namespace) -> Iterator[tuple[Path, str, str]]:
    """Yield a folder to work in, the net's checkpoint, and its data."""
    with tempfile.TemporaryDirectory(prefix="every-") as name:
        folder = Path(name)
        if net.endswith(".safetensors"):
            yield folder, net, str(given.images.absolute())
        else:
            yield folder, *random_checkpoint(net, given.size, given.seed, folder)


def exported(
    checkpoint: str, data: str, formats: str, hash_seed: str, place: Path
) -> tuple[Path, str]:
    """Export in a fresh process; return the folder made, and what went wrong."""
    place.mkdir()
    shutil.copy(checkpoint, place / "net.safetensors")
    command = [sys.executable, "-m", "reszoo", "export", "net.safetensors", "--output"]
    command += ["out", "--formats", formats, "--calibration", data]
    done = subprocess.run(
        command,
        cwd=place,
        env=os.environ | {"PYTHONHASHSEED": hash_seed},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    folder = place / ("out.failed" if done.returncode else "out")
    told = done.stderr.strip()[-1000:] or "it said nothing"
    return folder, f"exit {done.returncode}: {told}" if done.returncode else ""


def contents(path: Path) -> dict[str, bytes]:
    """Return the bytes of a file, or of all files in a folder, by relative name."""
    if not path.exists():
        path = path.with_name(f"{path.name}.failed")
    files = sorted(each for each in (path, *path.rglob("*")) if each.is_file())
    return {each.relative_to(path).as_posix(): each.read_bytes() for each in files}


def rows_of(net: str, given: argparse.Namespace) -> list[Row]:
    """Export a net twice and compare."""
    from reszoo_export.formats import find_formats

    started = time.perf_counter()
    with prepared(net, given) as (folder, checkpoint, data):
        twice = [
            exported(checkpoint, data, given.formats, seed, folder / f"place{seed}")
            for seed in HASH_SEEDS
        ]
        seconds = (time.perf_counter() - started) / len(twice)
        rows = find_formats(given.formats)
        return [compared(net, row, twice, seconds) for row in rows]


def compared(net: str, row: Any, twice: Any, seconds: float) -> Row:
    """Hold the file of one format against that of the other process."""
    problems, files, difference = [], [], 0.0
    for folder, failure in twice:
        files.append(contents(folder / row.file))
        record = record_of(folder, row.name)
        if record is None:
            problems.append(failure or "it is not in the manifest")
            continue
        found = record["verification"]
        problems += found["problems"]
        worst = max(found["max_difference"], found["synthetic_difference"])
        difference = max(difference, worst)
    return Row(
        net=net,
        format=row.name,
        bytes=sum(map(len, files[0].values())),
        problems=tuple(dict.fromkeys(problems)),
        identical=bool(files[0]) and files[0] == files[1],
        difference=difference,
        seconds=seconds,
    )


def record_of(folder: Path, format_: str) -> Any:
    """Return what an export's manifest says of a format, if anything."""
    path = folder / "manifest.json"
    if not path.exists():
        return None
    files = json.loads(path.read_text(encoding="utf-8"))["files"]
    return next((each for each in files if each["format"] == format_), None)


def shown(row: Row) -> str:
    """Return a line of the table."""
    verified = "no" if row.problems else "yes"
    told = "".join(f"\n    {problem}" for problem in row.problems)
    return (
        f"{row.net:40} {row.format:15} {row.bytes:12,} {verified:8} "
        f"{'yes' if row.identical else 'NO':9} {row.difference:10.1e}{told}"
    )


def main() -> int:
    """Print a line for each net and format."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--nets", default=NETS, help="names and checkpoints")
    parser.add_argument("--formats", default="all")
    parser.add_argument(
        "--images", type=Path, default=Path(".data/cifar10"), help="of the checkpoints"
    )
    parser.add_argument("--size", type=int, default=224, help="of the nets by name")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    print(f"Nets by name: {CLASSES} classes, {given.size} pixels, {TEST} real images")
    print(f"{'net':40} {'format':15} {'bytes':>12} {'verified':8} identical difference")
    rows, broken = [], []
    for net in given.nets.split(","):
        try:
            found = rows_of(net, given)
        except Exception as error:
            broken.append(f"{net}: {type(error).__name__}: {error}")
            print(broken[-1], flush=True)
            continue
        rows += found
        print("\n".join(map(shown, found)), flush=True)
        print(f"    {found[0].seconds:.0f} s an export", flush=True)
    bad = sum(not row.good for row in rows)
    print(f"{bad} of {len(rows)} files missed; {len(broken)} nets broken")
    if given.json:
        told = {"size": given.size, "broken": broken, "rows": list(map(asdict, rows))}
        given.json.write_text(json.dumps(told, indent=2) + "\n", encoding="utf-8")
    return int(bool(bad or broken))


if __name__ == "__main__":
    sys.exit(main())
