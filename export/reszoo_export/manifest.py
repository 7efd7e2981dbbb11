"""The manifest of an export: its files, and the measurements of each."""

import hashlib
import os
import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from reszoo.cards import Card
from reszoo.environment import processor
from reszoo.errors import MALFORMED, CheckpointError, ExportError, ReszooError
from reszoo.fields import typed
from reszoo.files import (
    StrPath,
    as_path,
    check_regular,
    folder_entries,
    read_json,
    write_json,
)
from reszoo.metrics import Bin
from reszoo_export.formats import FORMATS, ExportOptions
from reszoo_export.metadata import LABELS_FILE

MANIFEST_FILE = "manifest.json"
# Raised when a field changes its meaning; other versions are refused.
MANIFEST_VERSION = 2
REFERENCE_FILE = "reference.npz"
_BESIDE = {
    MANIFEST_FILE, REFERENCE_FILE, LABELS_FILE, "REPORT.md", "report.html", "snippets",
}  # fmt: skip
_BLOCK = 2**20
_CHANGED = "the file has changed since it was exported (sha256 differs)"


@dataclass(frozen=True, kw_only=True)
class Latency:
    """Latency and memory of one file, on the machine that exported it.

    Cold start and memory are None where they were not measured in a new process, and
    memory also where the system does not report it.
    """

    batch: int = 1  # images in a call
    median_ms: float  # over the calls, in milliseconds
    p90_ms: float
    p99_ms: float  # of few calls nearly the slowest
    images_per_second: float  # of the median call
    runs: int  # number of calls, after warming up
    threads: int  # of the runtime
    processor: str
    # To open the file, with its runtime's library loaded before.
    load_ms: float | None = None
    first_ms: float | None = None  # of the first call, with one image
    # Peak resident megabytes (10**6 bytes) beyond those of the process with its
    # libraries loaded, and of the whole process.
    memory_mb: float | None = None
    peak_mb: float | None = None

    @property
    def cold_ms(self) -> float | None:
        """Cold start: time to open the file and to run it once."""
        if self.load_ms is None or self.first_ms is None:
            return None
        return self.load_ms + self.first_ms

    @classmethod
    def of(cls, times_ms: Sequence[float], *, batch: int, **others: Any) -> "Latency":
        """Return the latency of some calls with `batch` images each."""
        median, p90, p99 = np.percentile(times_ms, [50, 90, 99])
        return cls(
            batch=batch, median_ms=float(median), p90_ms=float(p90), p99_ms=float(p99),
            images_per_second=float(1000 * batch / median), runs=len(times_ms),
            processor=processor(), **others,
        )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Disagreement:
    """An image with a large difference between a file and its model."""

    image: int  # its index in the reference that was compared
    model_label: str  # the model's top-1
    model_probability: float  # of that class, in 0..1
    file_label: str  # the file's top-1
    file_probability: float  # of that class, in 0..1
    difference: float  # the largest one of a probability


@dataclass(frozen=True, kw_only=True)
class Reliability:
    """Calibration of a file's probabilities on real images, in bins that have any."""

    error_before: float  # expected calibration error with the temperature undone
    error_after: float  # of the file's own probabilities
    before: tuple[Bin, ...]
    after: tuple[Bin, ...]


@dataclass(frozen=True, kw_only=True)
class Verification:
    """How a file's outputs compare with the model's.

    All numbers but `synthetic_difference` are of the real images, or of the synthetic
    ones where there are no real ones. Of a file that gives features, differences are
    relative to the largest feature, the agreement is the mean cosine, and what needs
    classes is None. Of a file that could not be run, no images were compared, and
    differences and agreement are the worst possible.
    """

    runtime: str  # name and version of what ran the file
    images: int = 0  # real ones that were compared
    synthetic: int = 0  # synthetic ones
    max_difference: float = 1.0  # largest one of a probability
    mean_difference: float = 1.0  # mean one of a probability
    synthetic_difference: float = 1.0
    agreement: float = 0.0  # share of images with the same top-1
    # Share of the model's top-5 that are in the file's, mean over the images.
    top5_agreement: float | None = None
    # Mean change of the confidence: the file's top-1 probability less the model's.
    drift: float | None = None
    confidence_difference: float | None = None  # mean absolute change
    accuracy: float | None = None  # top-1, where there are targets
    model_accuracy: float | None = None
    # Accuracy of the file on the images of each class, where there are targets; None
    # for a class without images.
    recalls: tuple[float | None, ...] = ()
    # Of class activation maps, if the file gives them: see `max_cam_difference`.
    cam_difference: float | None = None
    # Where the model has a temperature, on images that it was not measured on.
    reliability: Reliability | None = None
    worst: tuple[Disagreement, ...] = ()  # largest differences, the largest first
    problems: tuple[str, ...] = ()  # empty if it is verified

    @property
    def compared(self) -> bool:
        """Whether the file could be run and compared."""
        return self.images + self.synthetic > 0


@dataclass(frozen=True, kw_only=True)
class FileRecord:
    """One exported file."""

    format: str  # its name in the table of formats
    file: str  # its name in the folder
    bytes: int  # its size; of a folder, that of all files in it
    sha256: str  # Of its content; of a folder, of all names and contents in order.
    inputs: list[dict[str, Any]]  # name, dtype and shape of each
    outputs: list[dict[str, Any]]  # the same
    verification: Verification  # compared with the model
    latency: Latency | None = None  # of one image
    # Of an int8 file: the ranges of its activations that were tried and chosen (see
    # `quantization.ranges.Choice`).
    ranges: dict[str, Any] | None = None


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """An export: the card and its files.

    Attributes:
        folder: Its path; not written into the manifest.
        card: Of the exported model.
        files: One record per file.
        beside: The sha256 of the other files: labels and reference.
        options: What the files were exported with.
    """

    folder: Path
    card: Card
    files: tuple[FileRecord, ...]
    beside: Mapping[str, str]
    options: ExportOptions = field(default_factory=ExportOptions)

    @property
    def problems(self) -> list[str]:
        """What is wrong with the files, each with the file's name in front."""
        files = [(each.file, each.verification.problems) for each in self.files]
        return [f"{file}: {each}" for file, problems in files for each in problems]

    def copy_file(self, record: FileRecord, folder: Path) -> None:
        """Copy a file into a folder; an ExportError if it is not as it was exported."""
        path = self.folder / record.file
        if problems := changes(path, record.sha256):
            raise ExportError(
                "Only files as they were exported can be published; export the model "
                f"again. Received: {path}: {problems[0]}"
            )
        copy = shutil.copytree if path.is_dir() else shutil.copyfile
        copy(path, folder / record.file)

    def to_json(self) -> dict[str, Any]:
        """Return the manifest as plain JSON values."""
        return {
            "manifest_version": MANIFEST_VERSION,
            "card": self.card.to_json(),
            "options": asdict(self.options),
            "files": [asdict(record) for record in self.files],
            "beside": dict(self.beside),
        }

    def checked(self) -> "Manifest":
        """Return the manifest if it is valid, or raise ValueError."""
        if not self.files:
            raise ValueError("it lists no files")
        beside = {REFERENCE_FILE, *([LABELS_FILE] if self.card.labels else [])}
        if set(self.beside) != beside:
            raise ValueError(f"beside must name {', '.join(sorted(beside))}")
        for record in self.files:
            if record.format not in FORMATS:
                raise ValueError(f"unknown format {record.format!r}")
            # A name such as "../x" would be outside the folder.
            if record.file != FORMATS[record.format].file:
                raise ValueError(f"no {record.format} file is called {record.file!r}")
            for name in ("variation", "synthetic_variation"):
                variation = (record.ranges or {}).get(name)
                if not isinstance(variation, int | float | None):
                    raise TypeError(f"{name} must be a number, not {variation!r}")
        return self

    def write(self, folder: Path) -> None:
        """Write `manifest.json` into a folder, in one step, with a list of its files.

        What is in the list may be replaced when the folder is exported to again.
        """
        contents = sorted(folder_entries(folder) | {MANIFEST_FILE})
        write_json(folder / MANIFEST_FILE, {**self.to_json(), "contents": contents})


def is_export(folder: Path) -> bool:
    """Tell whether a folder is an export of reszoo, of any version."""
    return _export_content(folder) is not None


def _export_content(folder: Path) -> dict[str, Any] | None:
    with suppress(OSError, ReszooError, ValueError):
        content = read_json(folder / MANIFEST_FILE)
        if isinstance(content, dict) and {"manifest_version", "files"} <= {*content}:
            return content
    return None


def named_entries(folder: Path) -> set[str] | None:
    """Return which entries of a folder its manifest names; None if it is no export.

    See `reszoo.files.folder_entries`.
    """
    content = _export_content(folder)
    if content is None:
        return None
    entries = folder_entries(folder)
    if isinstance(named := content.get("contents"), list):
        return entries & {each for each in named if isinstance(each, str)}
    # Exports of reszoo 0.1 have no list.
    files = content["files"] if isinstance(content["files"], list) else []
    tops = {each.get("file") for each in files if isinstance(each, dict)}
    return {each for each in entries if each.split("/")[0] in tops | _BESIDE}


def read_manifest(folder: StrPath) -> Manifest:
    """Read the manifest of an export.

    An ExportError if the folder is not an export, or its manifest is of another
    version, damaged, or names files outside the folder.
    """
    folder = as_path(folder)
    path = folder / MANIFEST_FILE
    if not os.path.lexists(path):
        what = f"has no {MANIFEST_FILE}" if folder.exists() else "does not exist"
        raise ExportError(f"{folder} is not an export: it {what}.")
    try:
        content = read_json(path)
        version = content["manifest_version"]
        if version != MANIFEST_VERSION:
            raise ExportError(
                f"This reszoo reads manifest version {MANIFEST_VERSION}. "
                f"Received: version {version} in {path}; export the checkpoint again, "
                "or use the release that made the export."
            )
        options = dict(content["options"])
        if isinstance(old := options.get("integer_io"), bool):  # Before 0.2.
            options["integer_io"] = "uint8" if old else None
        read = {name: content[name] for name in ("files", "beside", "card")}
        found = {"folder": folder, "options": options, **read}
        return typed(Manifest, found).checked()
    except (CheckpointError, OSError, *MALFORMED) as error:
        reason = f"{type(error).__name__}: {error}"
        raise ExportError(f"{path} cannot be read ({reason}).") from error


def size_and_hash(path: Path) -> tuple[int, str]:
    """Return the size in bytes and the sha256 of a file, or of a folder's content.

    An OSError if it is neither a regular file nor a folder.
    """
    digest, size = hashlib.sha256(), 0
    inside = sorted(file for file in path.rglob("*") if file.is_file())
    for file in inside or [path]:
        length = check_regular(file).st_size
        if inside:
            digest.update(f"{file.relative_to(path).as_posix()}\0{length}\0".encode())
        with file.open("rb") as content:
            while block := content.read(_BLOCK):
                digest.update(block)
        size += length
    return size, digest.hexdigest()


def changes(path: Path, digest: str) -> list[str]:
    """Tell whether a file is not the one that was exported, without opening it."""
    try:
        return [] if size_and_hash(path)[1] == digest else [_CHANGED]
    except FileNotFoundError:
        return [f"There is no file {path}."]
    except OSError as error:
        return [f"it cannot be read ({error})"]
