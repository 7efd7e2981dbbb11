"""The manifest: what an export contains and what was measured."""

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


@dataclass(frozen=True, kw_only=True)
class Latency:
    """How long one call takes, measured where the files were made.

    What only a fresh process can tell is None where none was started, and memory
    also where the system does not tell it.

    Attributes:
        batch: Images a call.
        median_ms: Median over the calls, in milliseconds.
        p90_ms: What nine of ten calls stay below.
        p99_ms: What 99 of 100 calls stay below; close to the slowest of few calls.
        images_per_second: Images answered in the median call, a second.
        runs: Number of calls measured, after warming up.
        threads: Threads of the runtime.
        processor: Its name.
        load_ms: Opening the file, its runtime's library loaded before.
        first_ms: The first answer, to one image.
        memory_mb: Most resident megabytes (10**6 bytes) that file and answers took,
            above what the process held with its libraries loaded.
        peak_mb: Most resident megabytes of the whole process.
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
        """From the closed file to the first answer."""
        if self.load_ms is None or self.first_ms is None:
            return None
        return self.load_ms + self.first_ms

    @classmethod
    def of(cls, times_ms: Sequence[float], *, batch: int, **others: Any) -> "Latency":
        """Return the latency of some calls.

        Args:
            times_ms: Of each call.
            batch: Images a call.
            **others: The fields that do not follow from these.
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


MANIFEST_FILE = "manifest.json"
# Raised when a field changes its meaning; readers refuse what they do not know.
MANIFEST_VERSION = 2
REFERENCE_FILE = "reference.npz"
_MALFORMED = (ValueError, KeyError, TypeError, AttributeError)


@dataclass(frozen=True, kw_only=True)
class Disagreement:
    """An image about which a file and its model differ much.

    Attributes:
        image: Its place in the reference that was compared.
        model_label: The model's most probable class.
        model_probability: Of that class, in 0..1.
        file_label: The file's most probable class.
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
    """How a file's answers compare with the model's.

    All numbers but `synthetic_difference` are of the real images, or of the made-up
    ones where there were no real ones. Of a file that gives features, differences
    are relative to the largest feature, the agreement is the mean cosine, and what
    needs classes is None. Of a file that did not answer at all, no images were
    compared, and the other numbers are the worst there are.

    Attributes:
        runtime: What ran the file, with its version.
        images: Number of real images compared.
        synthetic: Number of made-up images compared besides.
        max_difference: Largest difference of a probability.
        mean_difference: The mean of the same.
        synthetic_difference: Largest difference on the made-up images.
        agreement: Share of images with the same top-1.
        top5_agreement: Share of the model's five most probable classes that are
            the file's as well, mean over the images.
        drift: How much more confident the file is, mean over the images: the
            probability of its top-1 less that of the model's.
        confidence_difference: The mean size of that change.
        accuracy: Top-1 accuracy of the file, where labels were given.
        model_accuracy: The same of the model.
        worst: The images with the largest differences, the largest first.
        problems: What is wrong with the file; nothing if it is verified.
    """

    runtime: str
    images: int
    synthetic: int
    max_difference: float
    mean_difference: float
    synthetic_difference: float
    agreement: float
    top5_agreement: float | None
    drift: float | None
    confidence_difference: float | None
    accuracy: float | None
    model_accuracy: float | None
    worst: tuple[Disagreement, ...] = ()
    problems: tuple[str, ...] = ()

    @classmethod
    def unanswered(cls, runtime: str, problem: str) -> "Verification":
        """Return what there is to tell of a file whose runtime failed."""
        return cls(
            runtime=runtime,
            images=0,
            synthetic=0,
            max_difference=1.0,
            mean_difference=1.0,
            synthetic_difference=1.0,
            agreement=0.0,
            top5_agreement=None,
            drift=None,
            confidence_difference=None,
            accuracy=None,
            model_accuracy=None,
            problems=(problem,),
        )

    @property
    def answered(self) -> bool:
        """Whether the file gave answers to compare."""
        return self.images + self.synthetic > 0

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> "Verification":
        """Return what `dataclasses.asdict` made, after a trip through JSON."""
        worst = tuple(Disagreement(**each) for each in content["worst"])
        problems = tuple(map(str, content["problems"]))
        return cls(**{**content, "worst": worst, "problems": problems})


@dataclass(frozen=True, kw_only=True)
class FileRecord:
    """One exported file.

    Attributes:
        format: Its row of the table of formats.
        file: Its name in the folder.
        bytes: Its size; of a folder, that of all files in it.
        sha256: Of its content; of a folder, of all names and contents in order.
        inputs: Name, dtype and shape of each.
        outputs: Name, dtype and shape of each.
        verification: Compared with the model.
        latency: Of one image.
        ranges: Of an int8 file: which ranges its activations got, and how each kind
            that was tried did (see `quantization.ranges.Choice`); None of others.
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
        folder: Where it lies; not written into the manifest.
        card: Of the model that was exported.
        files: One record a file.
        beside: The sha256 of what lies beside them: labels and reference.
        options: What was asked of the files beside their formats.
    """

    folder: Path
    card: Card
    files: tuple[FileRecord, ...]
    beside: Mapping[str, str]
    options: ExportOptions = field(default_factory=ExportOptions)

    @property
    def problems(self) -> list[str]:
        """What is wrong, a sentence each, with the file's name in front."""
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
        """Return the manifest if it can be the manifest of an export.

        Raises:
            ValueError: It cannot; tells why.
        """
        if not self.files:
            raise ValueError("it lists no files")
        beside = {REFERENCE_FILE, *([LABELS_FILE] if self.card.labels else [])}
        if set(self.beside) != beside:
            raise ValueError(f"beside must name {', '.join(sorted(beside))}")
        for record in self.files:
            if record.format not in FORMATS:
                raise ValueError(f"unknown format {record.format!r}")
            # A name such as "../x" would lead out of the folder.
            if record.file != FORMATS[record.format].file:
                raise ValueError(f"no {record.format} file is called {record.file!r}")
        return self

    def write(self, folder: Path) -> None:
        """Write `manifest.json` into a folder, in one step."""
        write_json(folder / MANIFEST_FILE, self.to_json())


def is_export(folder: Path) -> bool:
    """Tell whether a folder holds a manifest of ours, of any version."""
    try:
        content = json.loads((folder / MANIFEST_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(content, dict) and {"manifest_version", "files"} <= set(content)


def read_manifest(folder: Path) -> Manifest:
    """Read the manifest of an export.

    Raises:
        ExportError: The folder holds no export, one of another version, or a
            manifest that names nothing, or something outside the folder.
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
        raise ExportError(f"{folder} holds no export (no {MANIFEST_FILE}).") from error
    except (CheckpointError, OSError, *_MALFORMED) as error:
        reason = f"{type(error).__name__}: {error}"
        raise ExportError(f"{path} cannot be read ({reason}).") from error


def size_and_hash(path: Path) -> tuple[int, str]:
    """Return the bytes and the sha256 of a file, or of a folder's content."""
    digest, size = hashlib.sha256(), 0
    inside = sorted(file for file in path.rglob("*") if file.is_file())
    for file in inside or [path]:
        content = file.read_bytes()
        if inside:
            digest.update(
                f"{file.relative_to(path).as_posix()}\0{len(content)}\0".encode()
            )
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
