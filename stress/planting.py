"""What the defects of all runtimes have in common: the export that one is planted in.

Files outside of the model file are changed here: labels, reference and manifest.
"""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

MANIFEST, REFERENCE, LABELS = "manifest.json", "reference.npz", "labels.txt"


@dataclass(frozen=True)
class Export:
    """A copy of a good export, with one file, to plant a defect in."""

    folder: Path
    file: str  # of the model, in the folder
    other: Path  # the same file of another model of the same architecture
    draw: np.random.Generator

    @property
    def path(self) -> Path:
        """The model file or folder."""
        return self.folder / self.file


Edit = Callable[[Export], None]


@dataclass(frozen=True)
class Kind:
    """How a kind of defect is planted."""

    edit: Edit
    format: str  # of the file that it is planted in
    # Whether the manifest has the hashes of the changed files, as if the exporter had
    # made the mistake; else the files changed after the export.
    hashed: bool = True


def copy_export(source: Path, format_: str, target: Path) -> str:
    """Copy the part of an export that belongs to one format; return its file's name."""
    content = json.loads((source / MANIFEST).read_text("utf-8"))
    content["files"] = [e for e in content["files"] if e["format"] == format_]
    (record,) = content["files"]
    target.mkdir(parents=True)
    for name in (LABELS, REFERENCE, record["file"]):
        of = source / name
        (shutil.copytree if of.is_dir() else shutil.copy)(of, target / name)
    (target / MANIFEST).write_text(json.dumps(content), encoding="utf-8")
    return str(record["file"])


def refresh_hashes(export: Export) -> None:
    """Give the manifest the sizes and hashes of the files as they are."""
    from reszoo_export.manifest import size_and_hash

    content = read_manifest(export)
    (record,) = content["files"]
    if export.path.exists():
        record["bytes"], record["sha256"] = size_and_hash(export.path)
    for name in content["beside"]:
        if (export.folder / name).exists():
            content["beside"][name] = size_and_hash(export.folder / name)[1]
    write_manifest(export, content)


def read_manifest(export: Export) -> Any:
    """Return the manifest's content."""
    return json.loads((export.folder / MANIFEST).read_text("utf-8"))


def write_manifest(export: Export, content: Any) -> None:
    """Write the manifest's content."""
    (export.folder / MANIFEST).write_text(json.dumps(content), encoding="utf-8")


def in_manifest(change: Callable[[Any], None]) -> Edit:
    """Change the manifest's content."""

    def edit(export: Export) -> None:
        content = read_manifest(export)
        change(content)
        write_manifest(export, content)

    return edit


def in_card(change: Callable[[Any], None]) -> Edit:
    """Change the card in the manifest."""
    return in_manifest(lambda content: change(content["card"]))


def in_preprocessing(**fields: Any) -> Edit:
    """Put other values into the preprocessing of the card in the manifest."""
    return in_card(lambda card: card["preprocessing"].update(fields))


def in_record(change: Callable[[Any], None]) -> Edit:
    """Change the record of the file in the manifest."""
    return in_manifest(lambda content: change(content["files"][0]))


def in_reference(change: Callable[[dict[str, Any]], None]) -> Edit:
    """Change arrays in the reference."""

    def edit(export: Export) -> None:
        with np.load(export.folder / REFERENCE) as arrays:
            content = dict(arrays)
        change(content)
        np.savez_compressed(export.folder / REFERENCE, **content)

    return edit


def in_text(name: str, change: Callable[[str], str]) -> Edit:
    """Change a text file of the folder."""

    def edit(export: Export) -> None:
        path = export.folder / name
        path.write_bytes(change(path.read_bytes().decode()).encode())

    return edit


def in_bytes(change: Callable[[bytes], bytes]) -> Edit:
    """Change the bytes of the model file."""

    def edit(export: Export) -> None:
        export.path.write_bytes(change(export.path.read_bytes()))

    return edit


def removed(name: str) -> Edit:
    """Remove a file or folder of the export."""

    def edit(export: Export) -> None:
        path = export.folder / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()

    return edit


def other_model(export: Export) -> None:
    """Put another model's file into the export."""
    if export.path.is_dir():
        shutil.rmtree(export.path)
        shutil.copytree(export.other, export.path)
    else:
        shutil.copy(export.other, export.path)


def truncated(content: bytes) -> bytes:
    """Cut off a tenth."""
    return content[: len(content) * 9 // 10]


# Changes of the text of a label file, or of its lines.
def lines(change: Callable[[list[str]], list[str]]) -> Callable[[str], str]:
    """Change the lines of a label file."""
    return lambda text: "\n".join(change(text[:-1].split("\n"))) + "\n"


def of_labels(change: Callable[[list[str]], list[str]]) -> Callable[[bytes], bytes]:
    """Change the lines of a label file, given its bytes."""
    return lambda text: lines(change)(text.decode()).encode()


def of_json(change: Callable[[Any], None]) -> Callable[[bytes], bytes]:
    """Change the content of a JSON file, given its bytes."""

    def edit(text: bytes) -> bytes:
        content = json.loads(text)
        change(content)
        return json.dumps(content).encode()

    return edit


def first_two_swapped(labels: list[str]) -> list[str]:
    """Exchange the first two labels."""
    return [labels[1], labels[0], *labels[2:]]


def one_lost(labels: list[str]) -> list[str]:
    """Lose the last label."""
    return labels[:-1]


def one_more(labels: list[str]) -> list[str]:
    """Have one label too many."""
    return [*labels, "background"]


def moved_by_one(labels: list[str]) -> list[str]:
    """Insert a background class and lose the last one."""
    return ["background", *labels[:-1]]


def reversed_field(name: str) -> Edit:
    """Reverse the mean or the deviation in the manifest's card."""
    return in_card(lambda card: card["preprocessing"][name].reverse())


def of_folder(format_: str) -> dict[str, Kind]:
    """Return the kinds of defects beside the model file, for a runtime's format."""

    def shifted(record: Any) -> None:
        record["outputs"][0]["name"] = "scores"

    def transposed(record: Any) -> None:
        record["inputs"][0]["shape"] = [1, 3, 64, 64]

    def retyped(record: Any) -> None:
        record["inputs"][0]["dtype"] = "int8"

    def smaller(record: Any) -> None:
        record["bytes"] -= 1000

    def rolled(content: dict[str, Any]) -> None:
        content["answers"] = np.roll(content["answers"], 1, axis=1)

    def darker(content: dict[str, Any]) -> None:
        content["images"] = content["images"] // 2

    def reordered(card: Any) -> None:
        card["labels"] = first_two_swapped(card["labels"])

    edits: dict[str, Edit] = {
        "beside_labels_swapped": in_text(LABELS, lines(first_two_swapped)),
        "beside_labels_sorted": in_text(LABELS, lines(sorted)),
        "beside_labels_truncated": in_text(LABELS, lines(one_lost)),
        "beside_labels_missing": removed(LABELS),
        "reference_missing": removed(REFERENCE),
        "reference_outputs": in_reference(rolled),
        "reference_images": in_reference(darker),
        "manifest_labels": in_card(reordered),
        "manifest_std_reversed": reversed_field("std"),
        "manifest_output_name": in_record(shifted),
        "manifest_input_shape": in_record(transposed),
        "manifest_input_dtype": in_record(retyped),
        "file_missing": lambda export: removed(export.file)(export),
    }
    kinds = {name: Kind(edit, format_) for name, edit in edits.items()}
    kinds["manifest_size"] = Kind(in_record(smaller), format_, hashed=False)
    kinds["manifest_stale"] = Kind(other_model, format_, hashed=False)
    return kinds
