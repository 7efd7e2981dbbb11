"""How long do import, build, load and save take? reszoo, Keras and timm.

Run: python benchmarks/tools.py [--peers PYTHON] [--json FILE]

Each once in a process of its own: importing the library, building ResNet-50, assigning
weights from a file of its own format to a model, and saving them. Only "import" counts
the time of importing.
"""

import importlib
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import harness
import numpy as np
import roof
from harness import Contender, Target

VARIANT, MOST_IMPORT_MS = "resnet50", 60
TASKS = ("import", "build", "load", "save")


@dataclass(frozen=True)
class Library:
    """How one library does the four tasks.

    Attributes:
        imported: Imports it.
        prepare: Imports all that building needs.
        build: Builds the model.
        load: Assigns the weights of a file to a model.
        save: Writes a model's weights.
        file: Name of its file of weights.
        packages: Packages whose versions are reported.
    """

    imported: Callable[[], object]
    prepare: Callable[[], object]
    build: Callable[[], Any]
    load: Callable[[Any, Path], object]
    save: Callable[[Any, Path], object]
    file: str
    packages: tuple[str, ...]


def _prepare_reszoo() -> None:
    import reszoo.zoo  # noqa: F401 - what `reszoo.build` imports when first used


def _build_reszoo() -> Any:
    import reszoo

    return reszoo.build(VARIANT)


def _load_reszoo(model: Any, path: Path) -> None:
    from reszoo.weights.location import read
    from reszoo.weights.names import assign_tensors

    assign_tensors(model, read(path).tensors, str(path))


def _save_reszoo(model: Any, path: Path) -> None:
    import reszoo

    reszoo.save(model, path)


def _prepare_keras() -> None:
    import keras.applications  # noqa: F401 - its models


def _build_keras() -> Any:
    import keras

    return keras.applications.ResNet50(weights=None)


def _prepare_timm() -> None:
    # With what a torchvision needs that does not fit torch.
    sys.modules["torch_peers"].import_timm()


def _build_timm() -> Any:
    import timm

    return timm.create_model(VARIANT)


def _load_timm(model: Any, path: Path) -> None:
    import timm

    timm.models.load_checkpoint(model, str(path))


def _save_timm(model: Any, path: Path) -> None:
    from safetensors.torch import save_file

    save_file(model.state_dict(), path)


LIBRARIES = {
    "reszoo": Library(
        lambda: __import__("reszoo"),
        _prepare_reszoo,
        _build_reszoo,
        _load_reszoo,
        _save_reszoo,
        "model.safetensors",
        ("keras", "tensorflow"),
    ),
    "keras": Library(
        lambda: __import__("keras"),
        _prepare_keras,
        _build_keras,
        lambda model, path: model.load_weights(path),
        lambda model, path: model.save_weights(path),
        "model.weights.h5",
        ("keras", "tensorflow"),
    ),
    "timm": Library(
        _prepare_timm,
        _prepare_timm,
        _build_timm,
        _load_timm,
        _save_timm,
        "timm.safetensors",
        ("timm", "torch"),
    ),
}


def timed(name: str, task: str, folder: Path) -> None:
    """Do one thing once in this process."""
    library = LIBRARIES[name]
    if name == "timm":
        sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
        importlib.import_module("torch_peers")
    if task == "import":
        seconds = _seconds(library.imported)
    else:
        seconds = _seconds_of(library, task, folder)
    run = {"samples": [60 / seconds], "ms": 1000 * seconds}
    versions = harness.versions(*library.packages)
    harness.emit(run, megabytes=harness.megabytes(), versions=versions)


def _seconds_of(library: Library, task: str, folder: Path) -> float:
    library.prepare()
    built: list[Any] = []
    building = _seconds(lambda: built.append(library.build()))
    if task == "build":
        return building
    (model,), path = built, folder / library.file
    if task == "save":
        return _seconds(lambda: library.save(model, folder / f"again-{library.file}"))
    if not path.exists():
        library.save(model, path)
    return _seconds(lambda: library.load(model, path))


def _seconds(do: Callable[[], object]) -> float:
    begun = time.perf_counter()
    do()
    return time.perf_counter() - begun


def contenders(folder: Path, peers: str | None) -> list[Contender]:
    """Return every library with every task."""
    found = [roof.contender("float32")]
    for task in TASKS:
        for name in LIBRARIES:
            python = peers if name == "timm" else sys.executable
            if python:
                words = (python, __file__, "--process", name, task, str(folder))
                found.append(Contender(f"{task} {name}", words, "a minute"))
    return found


def notes(runs: harness.Runs) -> list[str]:
    """Compare the import time, which is no ratio, with its target."""
    took = float(np.median([run["ms"] for run in runs["import reszoo"]]))
    word = "met" if took <= MOST_IMPORT_MS else "not met"
    return [f"import reszoo: {took:.0f} ms, target at most {MOST_IMPORT_MS} ms: {word}"]


def main() -> None:
    """Compare the libraries."""
    given = harness.parser(__doc__ or "", rounds=4).parse_args()
    if given.process:
        name, task, folder = given.process
        timed(name, task, Path(folder))
        return
    with tempfile.TemporaryDirectory() as folder:
        entrants = contenders(Path(folder), given.peers)
        runs = harness.measure(entrants, given.rounds)
    targets = [Target(f"{task} reszoo", f"{task} keras", 1.0) for task in TASKS]
    targets += [
        Target(f"{task} reszoo", f"{task} timm", 1.0) for task in TASKS if given.peers
    ]
    results = harness.summary(entrants, runs, targets, notes(runs))
    harness.report(results, given.json)


if __name__ == "__main__":
    main()
