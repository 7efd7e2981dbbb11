"""Feed mutated files to every reader: no crash, no hang, no flood, no code executed.

Valid files of each kind (`samples.py`) are damaged by structure (`mutations.py`) and
read in forked processes, which go on from file to file. A watchdog ends one that stays
with a file for more than 10 s. A reader may return or raise an error of reszoo;
anything else is a failure, as are 2 GB beyond what the process held before and a canary
file. The number of a file is its seed. Those that failed are kept in the folder
`reszoo-stress-failures` for temporary files.
"""

import json
import mmap
import resource
import shutil
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

import mutations
import numpy as np
from forks import Fork, load_modules, note_modules, say, watched
from mutations import edited, either, zipped
from results import Outcome
from samples import SAMPLES, make_samples

SECONDS, BYTES = 10.0, 2e9
# A process is replaced after so many files: leaks of libraries do not add up.
PER_PROCESS = 20_000
# Seconds between two reports of a process, and how long it may be late on a busy
# machine; until the first it loads libraries.
_REPORT, _LATE, _START = 0.5, 10.0, 120.0
_FAILURES = Path(tempfile.gettempdir()) / "reszoo-stress-failures"
_PLACES = Path("/dev/shm" if Path("/dev/shm").is_dir() else tempfile.gettempdir())


@dataclass(frozen=True)
class Reader:
    """What is read, and what damages it.

    Attributes:
        samples: Names of the valid files, in the folder of samples.
        mutation: Damages their bytes.
        file: Name of the damaged file; its folder has `beside` too.
        read: Name of a function of `readers`.
        beside: Names of valid files beside it, and of their samples.
        header: What identifies the format: most files are damaged behind it.
    """

    samples: tuple[str, ...]
    mutation: mutations.Mutation
    file: str
    read: str
    beside: tuple[tuple[str, str], ...] = ()
    header: tuple[int, int] = (0, 4)


def _member_of_torch(name: str) -> mutations.Mutation:
    return mutations.pickled if name.endswith(".pkl") else edited


def _member_of_keras(name: str) -> mutations.Mutation:
    return mutations.text_of_json if name.endswith(".json") else edited


_JSON = mutations.text_of_json
READERS: dict[str, Reader] = {
    "torch_zip": Reader(
        ("zip.pth", "nested.pth"), zipped(_member_of_torch), "a.pth", "weights"
    ),
    "torch_legacy": Reader(
        ("legacy.pth",),
        either(edited, mutations.legacy),
        "a.pth",
        "weights",
        header=(0, 20),
    ),
    "safetensors": Reader(
        ("reszoo.safetensors", "plain.safetensors"),
        either(mutations.safetensors, mutations.safetensors, edited),
        "a.safetensors",
        "weights",
        header=(8, 9),
    ),
    "hdf5": Reader(("model.h5",), edited, "a.h5", "weights", header=(0, 96)),
    "keras": Reader(("model.keras",), zipped(_member_of_keras), "a.keras", "weights"),
    "timm_config": Reader(
        ("timm.json",), _JSON, "config.json", "config", header=(0, 1)
    ),
    "transformers_config": Reader(
        ("transformers.json",), _JSON, "config.json", "config", header=(0, 1)
    ),
    "preprocessor_config": Reader(
        ("preprocessor.json",),
        _JSON,
        "preprocessor_config.json",
        "config",
        (("config.json", "transformers.json"),),
        (0, 1),
    ),
    "card": Reader(("card.json",), _JSON, "card.json", "card", header=(0, 1)),
    "manifest": Reader(
        ("manifest.json",), _JSON, "manifest.json", "manifest", header=(0, 1)
    ),
    "reference": Reader(
        ("reference.npz",), zipped(lambda name: edited), "reference.npz", "reference"
    ),
    "tflite": Reader(
        ("model.tflite", "model-int8.tflite"),
        mutations.appended_zip(either(mutations.words, edited), _member_of_keras),
        "a.tflite",
        "exported",
        header=(0, 64),
    ),
    "onnx": Reader(
        ("model.onnx",), mutations.protobuf, "a.onnx", "exported", (), (0, 1)
    ),
    "saved_model": Reader(
        ("saved_model.pb",),
        mutations.protobuf,
        "saved_model.pb",
        "saved_model",
        header=(0, 1),
    ),
    "csv": Reader(
        ("list.csv",), mutations.table, "list.csv", "listing", header=(0, 11)
    ),
    "jpeg": Reader(
        ("image.jpg", "progressive.jpg"),
        either(mutations.jpeg, edited),
        "a.jpg",
        "image",
        header=(0, 20),
    ),
    "png": Reader(
        ("image.png",), either(mutations.png, edited), "a.png", "image", header=(0, 33)
    ),
    "other_images": Reader(
        ("image.gif", "image.bmp", "image.webp", "image.tiff"),
        edited,
        "a.jpg",
        "image",
        header=(0, 64),
    ),
}


def readers() -> dict[str, Callable[[Path], object]]:
    """Return what opens a file in this process."""
    from reszoo.cards import Card
    from reszoo.data.checks import check
    from reszoo.data.image_facts import inspect_file
    from reszoo.data.image_files import prepare_image
    from reszoo.data.listing import list_images
    from reszoo.preprocessing import IMAGENET_MEAN, IMAGENET_STD, Preprocessing
    from reszoo.weights import configs, loading, location
    from reszoo_export.inspection import describe_file
    from reszoo_export.manifest import read_manifest
    from reszoo_export.runtimes import reader_errors
    from reszoo_export.saved_model.screening import check_folder
    from reszoo_export.verification.reference import read_reference

    usual = Preprocessing(
        train_size=32, eval_size=32, crop_pct=1.0, interpolation="bilinear",
        mean=IMAGENET_MEAN, std=IMAGENET_STD,
    )  # fmt: skip
    genuine = Card.from_json(json.loads((SAMPLES / "card.json").read_text()))

    def weights(path: Path) -> None:
        contents = location.read(path)
        if contents.card is None:
            loading.infer_architecture(contents.tensors, str(path))

    def saved_model(path: Path) -> None:
        describe_file(path.parent)
        with reader_errors(path):
            check_folder(path.parent)

    def listing(path: Path) -> None:
        check(list_images(path), None)

    def image(path: Path) -> None:
        inspect_file(str(path))
        prepare_image(str(path), usual)

    return {
        "weights": weights,
        "config": lambda path: configs.read_config(path.parent / "config.json"),
        "card": lambda path: Card.from_text(path.read_text("utf-8", "replace")),
        "manifest": lambda path: read_manifest(path.parent),
        "reference": lambda path: read_reference(path.parent, genuine),
        "exported": describe_file,
        "saved_model": saved_model,
        "listing": listing,
        "image": image,
    }


# Files of each reader, 1,000,000 in all: those that take a tenth of the time are five
# times as many.
_LONG = ("torch_zip", "torch_legacy", "hdf5", "keras", "manifest", "tflite", "onnx",
         "saved_model", "jpeg")  # fmt: skip
TARGETS = {name: 20_000 if name in _LONG else 92_000 for name in READERS}


@cache
def _sample(name: str) -> bytes:
    return (SAMPLES / name).read_bytes()


def mutated(name: str, number: int) -> tuple[bytes, bool]:
    """Return a damaged file, and whether its first difference is behind the header."""
    reader = READERS[name]
    draw = np.random.Generator(np.random.SFC64([*name.encode(), number]))
    before = _sample(reader.samples[draw.integers(len(reader.samples))])
    after = reader.mutation(before, draw)
    head = slice(*reader.header)
    return after, after[head] == before[head]


class Worker:
    """Reads damaged files in this process and says what came of them.

    Args:
        name: The reader.
        reading: Where the number of the file is that is being read, for the watchdog.
    """

    def __init__(self, name: str, reading: mmap.mmap) -> None:
        self._name, self._reading, self._reader = name, reading, READERS[name]
        self._function = readers()[self._reader.read]
        self._path = Path(self._reader.file)
        for target, source in self._reader.beside:
            shutil.copy(SAMPLES / source, target)
        if self._reader.read == "listing":
            for number in range(12):
                shutil.copy(SAMPLES / f"image{number}.png", ".")
        shutil.copy(SAMPLES / self._reader.samples[0], self._path)
        self._function(self._path)
        self._base = _peak()

    def run(self, first: int, last: int) -> None:
        """Read files; say an outcome twice a second."""
        outcome, said = Outcome(first, first), time.perf_counter()
        for number in range(first, last):
            self._reading[:8] = number.to_bytes(8, "little")
            going = self._read(number, outcome)
            now = time.perf_counter()
            if now - said > _REPORT or number == last - 1 or not going:
                outcome.seconds, said = now - said, now
                say("outcome", asdict(outcome))
                outcome = Outcome(number + 1, number + 1)
            if not going:
                return

    def _read(self, number: int, outcome: Outcome) -> bool:
        """Read one file; return whether the process is still fit for others."""
        content, behind = mutated(self._name, number)
        self._path.write_bytes(content)
        started = time.perf_counter()
        result = self._result()
        seconds, peak = time.perf_counter() - started, _peak() - self._base
        canary = Path(mutations.CANARY).exists()
        if canary:
            result = "FAILED: the canary is there"
        elif peak > BYTES:
            result = f"FAILED: {peak / 1e6:.0f} MB"
        elif seconds > SECONDS:
            result = f"FAILED: {seconds:.1f} s"
        outcome.last, outcome.done = number + 1, outcome.done + 1
        outcome.sums["behind the header"] = (
            outcome.sums.get("behind the header", 0) + behind
        )
        highest = outcome.highest
        highest["seconds"] = round(max(highest.get("seconds", 0), seconds), 3)
        highest["MB"] = round(max(highest.get("MB", 0), peak / 1e6))
        if result.startswith("FAILED"):
            outcome.failures[str(number)] = result
            result = "FAILED"
        outcome.count(result)
        return not canary and peak <= BYTES

    def _result(self) -> str:
        from reszoo.errors import ReszooError

        try:
            self._function(self._path)
            return "read"
        except ReszooError as error:
            if "\n" in str(error).strip() or not str(error).isprintable():
                return f"FAILED: not one printable line: {str(error)!r}"[:300]
            return type(error).__name__
        except BaseException as error:
            return f"FAILED: {type(error).__name__}: {error!r}"[:300]


def _peak() -> int:
    """Return the most memory that this process has held, in bytes."""
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def work(name: str, first: int, until: float) -> Iterator[Outcome]:
    """Yield what came of the files from a number on."""
    with tempfile.TemporaryDirectory(prefix="mutated-", dir=_PLACES) as base:
        if not SAMPLES.exists():
            _make_samples(Path(base))
        _load(name, Path(base))
        place = Path(base) / "place"
        while time.monotonic() < until:
            shutil.rmtree(place, ignore_errors=True)
            place.mkdir()
            for outcome in _process(name, first, place):
                first = outcome.last
                for number in outcome.failures:
                    _keep(name, int(number))
                yield outcome
                if time.monotonic() > until:
                    return


def _process(name: str, first: int, place: Path) -> Iterator[Outcome]:
    """Yield the outcomes of one process; that of a file which ended it is a failure."""
    reading = mmap.mmap(-1, 8)
    reading[:8] = (2**64 - 1).to_bytes(8, "little")

    def read() -> None:
        warnings.simplefilter("ignore")
        Worker(name, reading).run(first, first + PER_PROCESS)

    log, begun = place.with_name("log"), time.monotonic()
    later = SECONDS + _REPORT + _LATE
    for kind, *words in watched(read, place, log, _START, later):
        if kind == "outcome":
            outcome = Outcome(**words[0])
            first, begun = outcome.last, time.monotonic()
            yield outcome
        elif kind == "hung" or words[0]:
            number = int.from_bytes(reading[:8], "little")
            if number == 2**64 - 1:
                raise RuntimeError(f"The process of {name} does not start: {words}")
            why = f"FAILED: no answer in {SECONDS:.0f} s"
            why = why if kind == "hung" else f"FAILED: the process ended: {words}"
            done = number + 1 - first
            failed = Outcome(first, number + 1, done, failures={str(number): why})
            failed.seconds = time.monotonic() - begun
            failed.results = {"read before the process ended": done - 1, "FAILED": 1}
            yield failed


def _make_samples(base: Path) -> None:
    unfinished = SAMPLES.with_suffix(".new")
    shutil.rmtree(unfinished, ignore_errors=True)
    fork = Fork(lambda: make_samples(unfinished), base, base / "log")
    fork.succeed(10 * _START)
    unfinished.rename(SAMPLES)


def _load(name: str, base: Path) -> None:
    """Load what the reader needs, as a first process does."""

    def once() -> None:
        Worker(name, mmap.mmap(-1, 8))
        note_modules(base / "modules")

    (base / "once").mkdir()
    Fork(once, base / "once", base / "log").succeed(_START)
    load_modules(base / "modules")


def _keep(name: str, number: int) -> None:
    """Keep a file that failed."""
    _FAILURES.mkdir(exist_ok=True)
    path = _FAILURES / f"{name}-{number}-{READERS[name].file}"
    path.write_bytes(mutated(name, number)[0])
