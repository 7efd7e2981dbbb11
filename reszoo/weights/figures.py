"""The publishers' figures, read from a table; listing them loads no NumPy.

`published.csv` has a row for each file of weights, the model's default first: hash of
the file, side of training images, then size, crop_pct, top-1 and top-5 in percent at
the default input and, where timm tells a larger test input, at that. For the sources
see `published.toml`.
"""

import csv
from importlib.resources import files
from typing import NamedTuple


class Result(NamedTuple):
    """A publisher's figures at one way of showing the pictures."""

    size: int  # side of the square input, in pixels
    crop_pct: float  # share of the resized short side that is kept
    top1: float | None  # in percent
    top5: float | None  # in percent


class Row(NamedTuple):
    """A file of published weights."""

    model: str
    weights: str  # publisher and its name, such as "timm/a1_in1k"
    checksum: str | None  # see `PublishedWeights`
    train_size: int  # side of training images, in pixels
    results: tuple[Result, ...]


def _row(model: str, weights: str, checksum: str, train: str, *figures: str) -> Row:
    results = tuple(
        Result(int(size), float(crop), *(float(x) if x else None for x in tops))
        for size, crop, *tops in zip(*[iter(figures)] * 4, strict=True)
    )
    return Row(model, weights, checksum or None, int(train), results)


_TEXT = files("reszoo.weights").joinpath("published.csv").read_text("ascii")
ROWS = [_row(*cells) for cells in csv.reader(_TEXT.splitlines()[1:])]
# Of the weights inside the package, measured on CIFAR-10 as JPEGs: their cards' own.
_BUNDLED = {"resnet20": 88.31, "resnet32": 89.09}


def best_top1(name: str) -> float | None:
    """Return the best accuracy published for a model, in percent; None without one."""
    results = (result for row in ROWS if row.model == name for result in row.results)
    found = [result.top1 for result in results if result.top1 is not None]
    return max(found, default=_BUNDLED.get(name))
