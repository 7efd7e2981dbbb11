"""Print the answers of `reszoo predict` as soon as they are there."""

from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any
from unicodedata import category, east_asian_width

from reszoo.console import json_text, print_text, printable
from reszoo.data.image_paths import check_inputs, iterate_paths
from reszoo_export.batch import FileClassifier, Row

_HEADER = ("image", "label", "probability")
# Columns of labels; longer ones push the probability to the right.
_LONGEST = 40


def print_answers(
    model: Path, inputs: Sequence[str], *, as_json: bool, **options: Any
) -> tuple[int, int]:
    """Classify images (as `predict_files`) and print their answers group by group.

    Returns the number of images, and of those that are unreadable.
    """
    classify = FileClassifier(model, **options)
    check_inputs(inputs)
    groups = _counted(classify.groups(iterate_paths(inputs)), counts := [0, 0])
    if as_json:
        _print_json(chain.from_iterable(groups))
    else:
        _print_table(groups, classify.labels)
    return counts[0], counts[1]


def _counted(groups: Iterable[list[Row]], counts: list[int]) -> Iterator[list[Row]]:
    for group in groups:
        counts[0] += len(group)
        counts[1] += sum(row["error"] is not None for row in group)
        yield group


def _print_table(groups: Iterable[list[Row]], labels: Sequence[str]) -> None:
    """Print rows in columns that become wider as longer paths come."""
    path_width = _width(_HEADER[0])
    longest = max(_width(printable(label)) for label in (_HEADER[1], *labels))
    label_width = min(_LONGEST, longest)
    lines = [_HEADER]
    for group in groups:
        for row in group:
            lines += _lines(printable(row["path"]), row)
        path_width = max([path_width, *(_width(line[0]) for line in lines)])
        for path, label, probability in lines:
            path += " " * (path_width - _width(path))
            label += " " * (label_width - _width(label))
            print_text(f"{path}  {label}  {probability:>{len(_HEADER[2])}}".rstrip())
        lines = []


def _width(text: str) -> int:
    """Return the columns of a text: two of wide letters, none of marks."""
    seen = (each for each in text if category(each) not in ("Me", "Mn"))
    return sum(1 + (east_asian_width(each) in "FW") for each in seen)


def _lines(path: str, row: Row) -> Iterator[tuple[str, str, str]]:
    if row["error"] is not None:
        yield path, f"unreadable: {printable(row['error'])}", ""
        return
    for label, probability in _answers(row):
        yield path, printable(label), f"{probability:.2%}"
        path = ""


def _print_json(rows: Iterable[Row]) -> None:
    """Print one JSON object, path -> answers, as they come."""
    print("{", end="")
    for number, row in enumerate(rows):
        answer: Any = [
            {"label": label, "probability": probability}
            for label, probability in _answers(row)
        ]
        if row["error"] is not None:
            answer = {"error": row["error"]}
        entry = json_text({row["path"]: answer}).removeprefix("{").removesuffix("\n}")
        print("," if number else "", entry, sep="", end="", flush=True)
    print("\n}")


def _answers(row: Row) -> list[tuple[str, float]]:
    """Return the labels and probabilities of a row, best first."""
    values = [value for name, value in row.items() if name not in ("path", "error")]
    pairs = zip(values[::2], values[1::2], strict=True)
    return [(label, value) for label, value in pairs if label is not None]
