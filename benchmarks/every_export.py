"""Does every model export to every format, verified and reproducibly?

Run: python benchmarks/every_export.py [--models LIST] [--formats LIST] [--json FILE]

Models are names, which get random weights and statistics from a seed, or checkpoints
of trained models, whose data is `--images`. Each is exported twice by `reszoo export`:
in two processes with another PYTHONHASHSEED and another working folder. Every file
must pass the export's own verification, and be the same byte for byte both times.
Random models are those of random_models.py. Exits 1 if any file is not so.
"""

import argparse
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

from random_models import CLASSES, TEST, random_checkpoint

MODELS = (
    "resnet18,resnet34,resnet50,resnet101,resnet152,"
    "reszoo/bundled/resnet20-cifar10.safetensors,"
    "reszoo/bundled/resnet32-cifar10.safetensors"
)
HASH_SEEDS = ("1", "4242")


@dataclass(frozen=True)
class Row:
    """The result of one model in one format.

    Attributes:
        model: Its name, or its checkpoint.
        format: One of `--formats`.
        bytes: Size of the file; 0 where there is none.
        problems: Why it is not verified, in either process.
        identical: Whether both processes wrote the same bytes.
        difference: Largest difference of a probability from the model's.
        seconds: That the export of all formats took, mean of both.
    """

    model: str
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


@contextmanager
def prepared(model: str, given: argparse.Namespace) -> Iterator[tuple[Path, str, str]]:
    """Yield a folder to work in, the model's checkpoint, and its data."""
    with tempfile.TemporaryDirectory(prefix="every-") as name:
        folder = Path(name)
        if model.endswith(".safetensors"):
            yield folder, model, str(given.images.absolute())
        else:
            yield folder, *random_checkpoint(model, given.size, given.seed, folder)


def exported(
    checkpoint: str, data: str, formats: str, hash_seed: str, place: Path
) -> tuple[Path, str]:
    """Export in a fresh process; return the folder made, and what went wrong."""
    place.mkdir()
    shutil.copy(checkpoint, place / "model.safetensors")
    command = [
        sys.executable,
        "-m",
        "reszoo",
        "export",
        "model.safetensors",
        "--output",
    ]
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
    output = done.stderr.strip()[-1000:] or "no output"
    return folder, f"exit {done.returncode}: {output}" if done.returncode else ""


def contents(path: Path) -> dict[str, bytes]:
    """Return the bytes of a file, or of all files in a folder, by relative name."""
    if not path.exists():
        path = path.with_name(f"{path.name}.failed")
    files = sorted(each for each in (path, *path.rglob("*")) if each.is_file())
    return {each.relative_to(path).as_posix(): each.read_bytes() for each in files}


def rows_of(model: str, given: argparse.Namespace) -> list[Row]:
    """Export a model twice and compare."""
    from reszoo_export.formats import find_formats

    started = time.perf_counter()
    with prepared(model, given) as (folder, checkpoint, data):
        twice = [
            exported(checkpoint, data, given.formats, seed, folder / f"place{seed}")
            for seed in HASH_SEEDS
        ]
        seconds = (time.perf_counter() - started) / len(twice)
        rows = find_formats(given.formats)
        return [compared(model, row, twice, seconds) for row in rows]


def compared(model: str, row: Any, twice: Any, seconds: float) -> Row:
    """Compare the files of one format from both processes."""
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
        model=model,
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
    problems = "".join(f"\n    {problem}" for problem in row.problems)
    return (
        f"{row.model:40} {row.format:15} {row.bytes:12,} {verified:8} "
        f"{'yes' if row.identical else 'NO':9} {row.difference:10.1e}{problems}"
    )


def main() -> int:
    """Print a line for each model and format."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--models", default=MODELS, help="names and checkpoints")
    parser.add_argument("--formats", default="all")
    parser.add_argument(
        "--images", type=Path, default=Path(".data/cifar10"), help="of the checkpoints"
    )
    parser.add_argument("--size", type=int, default=64, help="of the models by name")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    print(f"Models by name: {CLASSES} classes, {given.size} pixels, {TEST} real images")
    print(
        f"{'model':40} {'format':15} {'bytes':>12} {'verified':8} identical difference"
    )
    rows, broken = [], []
    for model in given.models.split(","):
        try:
            found = rows_of(model, given)
        except Exception as error:
            broken.append(f"{model}: {type(error).__name__}: {error}")
            print(broken[-1], flush=True)
            continue
        rows += found
        print("\n".join(map(shown, found)), flush=True)
        print(f"    {found[0].seconds:.0f} s an export", flush=True)
    bad = sum(not row.good for row in rows)
    print(f"{bad} of {len(rows)} files failed; {len(broken)} models broken")
    if given.json:
        results = {
            "size": given.size,
            "broken": broken,
            "rows": list(map(asdict, rows)),
        }
        given.json.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    return int(bool(bad or broken))


if __name__ == "__main__":
    sys.exit(main())
