"""The manifest of an export: its files, and the measurements of each."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from reszoo.cards import Card
from reszoo.environment import processor
from reszoo.errors import CheckpointError, ExportError
from reszoo.files import write_json
from reszoo_export.formats import FORMATS, ExportOptions
from reszoo_export.metadata import LABELS_FILE

MANIFEST_FILE = "manifest.json"
# Raised when a field changes its meaning; other versions are refused.
MANIFEST_VERSION = 2
REFERENCE_FILE = "reference.npz"
_MALFORMED = (ValueError, KeyError, TypeError, AttributeError)


@dataclass(frozen=True, kw_only=True)
class Latency:
    """Latency and memory of one file, on the machine that exported it.

    Cold start and memory are None where they were not measured in a new process, and
    memory also where the system does not report it.

    Attributes:
        batch: Images in a call.
        median_ms: Median over the calls, in milliseconds.
        p90_ms: 90th percentile.
        p99_ms: 99th percentile; of few calls nearly the slowest.
        images_per_second: Throughput of the median call.
        runs: Number of calls, after warming up.
        threads: Threads of the runtime.
        processor: Its name.
        load_ms: Time to open the file, with its runtime's library loaded before.
        first_ms: Time of the first call, with one image.
        memory_mb: Peak resident megabytes (10**6 bytes) beyond those of the process
            with its libraries loaded.
        peak_mb: Peak resident megabytes of the whole process.
    """

    batch: int = 1
    median_ms: float
    p90_ms: float
    p99_ms: float
    images_per_second: float
    runs: int
    threads: int
    processor: str
    load_ms: float | None = None
    first_ms: float | None = None
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
        """Return the latency of some calls.

        Args:
            times_ms: Of each call.
            batch: Images in a call.
            **others: The remaining fields.
        """
        median, p90, p99 = np.percentile(times_ms, [50, 90, 99])
        return cls(
            batch=batch,
            median_ms=float(median),
            p90_ms=float(p90),
            p99_ms=float(p99),
            images_per_second=float(1000 * batch / median),
            runs=len(times_ms),
            processor=processor(),
            **others,
        )


@dataclass(frozen=True, kw_only=True)
class Disagreement:
    """An image with a large difference between a file and its model.

    Attributes:
        image: Its index in the reference that was compared.
        model_label: The model's top-1.
        model_probability: Of that class, in 0..1.
        file_label: The file's top-1.
        file_probability: Of that class, in 0..1.
        difference: The largest difference of a probability.
    """

    image: int
    model_label: str
    model_probability: float
    file_label: str
    file_probability: float
    difference: float


@dataclass(frozen=True, kw_only=True)
class Verification:
    """How a file's outputs compare with the model's.

    All numbers but `synthetic_difference` are of the real images, or of the synthetic
    ones where there are no real ones. Of a file that gives features, differences are
    relative to the largest feature, the agreement is the mean cosine, and what needs
    classes is None. Of a file that could not be run, no images were compared, and
    differences and agreement are the worst possible.

    Attributes:
        runtime: Name and version of what ran the file.
        images: Number of real images compared.
        synthetic: Number of synthetic images compared.
        max_difference: Largest difference of a probability.
        mean_difference: Mean difference of a probability.
        synthetic_difference: Largest difference on the synthetic images.
        agreement: Share of images with the same top-1.
        top5_agreement: Share of the model's top-5 that are also in the file's, mean
            over the images.
        drift: Mean change of the confidence: the file's top-1 probability less the
            model's.
        confidence_difference: Mean absolute change of the confidence.
        accuracy: Top-1 accuracy of the file, where there are targets.
        model_accuracy: Top-1 accuracy of the model.
        worst: The images with the largest differences, the largest first.
        problems: What is wrong with the file; empty if it is verified.
    """

    runtime: str
    images: int = 0
    synthetic: int = 0
    max_difference: float = 1.0
    mean_difference: float = 1.0
    synthetic_difference: float = 1.0
    agreement: float = 0.0
    top5_agreement: float | None = None
    drift: float | None = None
    confidence_difference: float | None = None
    accuracy: float | None = None
    model_accuracy: float | None = None
    worst: tuple[Disagreement, ...] = ()
    problems: tuple[str, ...] = ()

    @property
    def compared(self) -> bool:
        """Whether the file could be run and compared."""
        return self.images + self.synthetic > 0

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> "Verification":
        """Return the verification that `dataclasses.asdict` turned into JSON."""
        worst = tuple(Disagreement(**each) for each in content["worst"])
        problems = tuple(map(str, content["problems"]))
        return cls(**{**content, "worst": worst, "problems": problems})


@dataclass(frozen=True, kw_only=True)
class FileRecord:
    """One exported file.

    Attributes:
        format: Its name in the table of formats.
        file: Its name in the folder.
        bytes: Its size; of a folder, that of all files in it.
        sha256: Of its content; of a folder, of all names and contents in order.
        inputs: Name, dtype and shape of each.
        outputs: Name, dtype and shape of each.
        verification: Compared with the model.
        latency: Of one image.
        ranges: Of an int8 file: the ranges of its activations that were tried and
            chosen (see `quantization.ranges.Choice`).
    """

    format: str
    file: str
    bytes: int
    sha256: str
    inputs: list[dict[str, Any]]
    outputs: list[dict[str, Any]]
    verification: Verification
    latency: Latency | None = None
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
        return [
            f"{record.file}: {problem}"
            for record in self.files
            for problem in record.verification.problems
        ]

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
        """Return the manifest if it is valid.

        Raises:
            ValueError: It is not; says why.
        """
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
        return self

    def write(self, folder: Path) -> None:
        """Write `manifest.json` into a folder, in one step."""
        write_json(folder / MANIFEST_FILE, self.to_json())


def is_export(folder: Path) -> bool:
    """Tell whether a folder is an export of reszoo, of any version."""
    try:
        content = json.loads((folder / MANIFEST_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(content, dict) and {"manifest_version", "files"} <= set(content)


def read_manifest(folder: Path) -> Manifest:
    """Read the manifest of an export.

    Raises:
        ExportError: The folder is not an export, or its manifest is of another
            version, damaged, or names files outside the folder.
    """
    path = folder / MANIFEST_FILE
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        version = content["manifest_version"]
        if version != MANIFEST_VERSION:
            raise ExportError(
                f"This reszoo reads manifest version {MANIFEST_VERSION}. "
                f"Received: version {version} in {path}; export the checkpoint again, "
                "or use the release that made the export."
            )
        return Manifest(
            folder=folder,
            card=Card.from_json(content["card"]),
            files=tuple(_record(record) for record in content["files"]),
            beside=content["beside"],
            options=ExportOptions(**content["options"]),
        ).checked()
    except FileNotFoundError as error:
        raise ExportError(
            f"{folder} is not an export: it has no {MANIFEST_FILE}."
        ) from error
    except (CheckpointError, OSError, *_MALFORMED) as error:
        reason = f"{type(error).__name__}: {error}"
        raise ExportError(f"{path} cannot be read ({reason}).") from error


def size_and_hash(path: Path) -> tuple[int, str]:
    """Return the size in bytes and the sha256 of a file, or of a folder's content."""
    digest, size = hashlib.sha256(), 0
    inside = sorted(file for file in path.rglob("*") if file.is_file())
    for file in inside or [path]:
        content = file.read_bytes()
        if inside:
            name = file.relative_to(path).as_posix()
            digest.update(f"{name}\0{len(content)}\0".encode())
        digest.update(content)
        size += len(content)
    return size, digest.hexdigest()


def _record(content: Mapping[str, Any]) -> FileRecord:
    latency = content["latency"]
    return FileRecord(
        **{
            **content,
            "verification": Verification.from_json(content["verification"]),
            "latency": latency and Latency(**latency),
        }
    )
