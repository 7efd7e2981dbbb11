"""Feed mutated files to every reader: no crash, no hang, no flood, no code executed.

    python stress/mutated_files.py [--readers torch_zip tflite] [--minutes 10]
        [--results FILE] [--count 20000]

Valid files of each kind are damaged by structure (`mutations.py`) and read in worker
processes, which go on from file to file. A watchdog ends a worker that stays with one
file for more than 10 s. A reader may return or raise an error of reszoo; anything else
is a failure, as are 2 GB beyond what the worker held before and a canary file. The
file with number n of a reader is the same in every run with the same seed; the numbers
done are kept in FILE, so several runs add up. Damaged files that failed are kept in
the folder beside FILE. Exits with 1 if there is one.
"""

import argparse
import json
import os
import resource
import select
import shutil
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import mutations
import numpy as np
from mutations import edited, either, zipped

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))

SECONDS, BYTES = 10.0, 2e9
# A worker is replaced after so many files: leaks of libraries do not add up.
PER_WORKER = 5000


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
_ARCHIVE = zipped(lambda name: _JSON if name.endswith(".json") else edited)
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


BUNDLED = ROOT / "saved_models" / "resnet20-cifar10"
SAMPLES = Path(tempfile.gettempdir()) / f"reszoo-stress-samples-{os.getuid()}"


def make_samples(folder: Path) -> None:
    """Write the valid files that are damaged."""
    from checkpoint_layouts import transformers, write
    from conftest import randomise
    from PIL import Image
    from safetensors.numpy import save_file

    import reszoo
    from reszoo.weights.names import to_tensors
    from reszoo.weights.safetensors import write_timm_folder

    folder.mkdir(parents=True)
    model = randomise(reszoo.build("resnet8", classes=5, shortcut="projection"), seed=3)
    tensors, card = to_tensors(model), reszoo.card(model)
    write(folder / "zip.pth", tensors)
    write(folder / "nested.pth", {"epoch": 3, "model": transformers(tensors)})
    write(folder / "legacy.pth", tensors, "legacy")
    reszoo.save(model, folder / "reszoo.safetensors")
    save_file(tensors, folder / "plain.safetensors")
    other = reszoo.build("resnet10t", classes=2)
    write_timm_folder(folder / "timm", to_tensors(other), reszoo.card(other))
    (folder / "timm" / "config.json").rename(folder / "timm.json")
    shutil.rmtree(folder / "timm")
    for name in ("model.keras", "model.h5"):
        model.save(folder / name)
    (folder / "card.json").write_text(card.to_text())
    described = {
        "model_type": "resnet", "architectures": ["ResNetForImageClassification"],
        "depths": [3, 4, 6, 3], "hidden_sizes": [256, 512, 1024, 2048],
        "embedding_size": 64, "layer_type": "bottleneck", "hidden_act": "relu",
        "downsample_in_first_stage": False, "downsample_in_bottleneck": False,
        "num_channels": 3, "id2label": {"0": "cat", "1": "dog"},
        "label2id": {"cat": 0, "dog": 1},
    }  # fmt: skip
    processor = {
        "image_processor_type": "ConvNextImageProcessor", "crop_pct": 0.875,
        "do_resize": True, "do_rescale": True, "do_normalize": True, "resample": 3,
        "rescale_factor": 1 / 255, "size": {"shortest_edge": 224},
        "image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225],
    }  # fmt: skip
    (folder / "transformers.json").write_text(json.dumps(described))
    (folder / "preprocessor.json").write_text(json.dumps(processor))
    for name in (
        "model.tflite", "model-int8.tflite", "model.onnx",
        "manifest.json", "saved_model/1/saved_model.pb",
    ):  # fmt: skip
        shutil.copy(BUNDLED / name, folder)
    np.savez(
        folder / "reference.npz",
        images=np.zeros((8, 32, 32, 3), np.uint8),
        answers=np.full((8, 5), 0.2, np.float32),
        labels=np.zeros(6, np.int64),
        synthetic=2,
    )
    rows = [
        f"image{number}.png,{'cat' if number % 3 else 'dog'}" for number in range(12)
    ]
    (folder / "list.csv").write_text("\n".join(["path,label", *rows]))
    pixels = np.random.default_rng(0).integers(0, 256, (9, 11, 3), np.uint8)
    picture = Image.fromarray(np.kron(pixels, np.ones((4, 4, 1), np.uint8)))
    exif = Image.Exif()
    exif[274] = 6
    for number in range(12):
        picture.rotate(30 * number).save(folder / f"image{number}.png")
    picture.save(folder / "image.png", exif=exif)
    picture.save(folder / "image.jpg", exif=exif)
    picture.save(folder / "progressive.jpg", progressive=True)
    for suffix in ("gif", "bmp", "webp", "tiff"):
        picture.save(folder / f"image.{suffix}")


def mutated(name: str, seed: int, number: int) -> tuple[bytes, bool]:
    """Return a damaged file, and whether its first difference is behind the header."""
    reader = READERS[name]
    draw = np.random.default_rng([seed, [*READERS].index(name), number])
    sample = reader.samples[draw.integers(len(reader.samples))]
    before = (SAMPLES / sample).read_bytes()
    after = reader.mutation(before, draw)
    head = slice(*reader.header)
    return after, after[head] == before[head]


def work(name: str, seed: int, first: int, last: int) -> None:
    """Read files in this process; print a line before and after each."""
    warnings.simplefilter("ignore")
    import reszoo

    function, reader = readers()[READERS[name].read], READERS[name]
    with tempfile.TemporaryDirectory() as place:
        os.chdir(place)
        path = Path(place) / reader.file
        for target, source in reader.beside:
            shutil.copy(SAMPLES / source, target)
        if reader.read == "listing":
            for number in range(12):
                shutil.copy(SAMPLES / f"image{number}.png", place)
        shutil.copy(SAMPLES / reader.samples[0], path)
        function(path)
        base = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        for number in range(first, last):
            content, behind = mutated(name, seed, number)
            path.write_bytes(content)
            say("reading", number)
            started = time.perf_counter()
            try:
                function(path)
                result = "read"
            except reszoo.ReszooError as error:
                result = type(error).__name__
                if "\n" in str(error).strip() or not str(error).isprintable():
                    result = f"FAILED: not one printable line: {str(error)!r}"[:300]
            except BaseException as error:
                result = f"FAILED: {type(error).__name__}: {error!r}"[:300]
            seconds = time.perf_counter() - started
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - base
            if Path(mutations.CANARY).exists():
                result = "FAILED: the canary is there"
            elif peak * 1024 > BYTES:
                result = f"FAILED: {peak // 1024} MB"
            say("done", number, behind, round(seconds, 4), peak // 1024, result)
            if result.startswith("FAILED: the") or peak * 1024 > BYTES:
                return


def say(*words: object) -> None:
    """Write a line of JSON for the watchdog at once."""
    os.write(1, json.dumps(words).encode() + b"\n")


@dataclass
class Tally:
    """What came of the files of one reader."""

    done: int = 0
    behind_header: int = 0
    seconds: float = 0.0
    slowest: float = 0.0
    peak_mb: int = 0
    results: dict[str, int] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)

    def add(
        self, number: int, behind: bool, seconds: float, peak: int, result: str
    ) -> None:
        """Count a file."""
        self.done = number + 1
        self.behind_header += behind
        self.slowest = max(self.slowest, seconds)
        self.peak_mb = max(self.peak_mb, peak)
        kind = "FAILED" if result.startswith("FAILED") else result
        self.results[kind] = self.results.get(kind, 0) + 1
        if kind == "FAILED":
            self.failures[str(number)] = result


def watched(command: list[str]) -> Iterator[list[Any]]:
    """Yield the lines of a worker; "hung" or "ended" with its last words when it is."""
    with (
        tempfile.TemporaryFile() as errors,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors) as process,
    ):
        assert process.stdout is not None  # noqa: S101
        # The first file waits for the libraries.
        waiting, rest = 120.0, b""
        while True:
            if not select.select([process.stdout], [], [], waiting)[0]:
                process.kill()
                yield ["hung"]
                return
            data = os.read(process.stdout.fileno(), 2**16)
            if not data:
                break
            *lines, rest = (rest + data).split(b"\n")
            for line in lines:
                yield json.loads(line)
            waiting = SECONDS
        code = process.wait()
        errors.seek(0)
        yield ["ended", code, errors.read()[-300:].decode(errors="replace")]


def run(name: str, seed: int, tally: Tally, count: int, until: float) -> None:
    """Feed files to one reader until a number is done or the time has come."""
    started = time.monotonic()
    while tally.done < count and time.monotonic() < until:
        last = min(count, tally.done + PER_WORKER)
        command = [sys.executable, __file__, "--work", name, str(seed)]
        lines = watched([*command, str(tally.done), str(last)])
        reading = None
        for kind, *words in lines:
            if kind == "reading":
                (reading,) = words
            elif kind == "done":
                tally.add(*words)
                reading = None
                if time.monotonic() > until:
                    break
            elif reading is not None:
                why = (
                    f"FAILED: no answer in {SECONDS:.0f} s" if kind == "hung" else None
                )
                why = why or f"FAILED: the process ended: {words}"
                tally.add(reading, True, 0.0, 0, why)
            elif kind == "hung" or words[0]:
                raise RuntimeError(f"The worker of {name} does not start: {words}")
        lines.close()
    tally.seconds += time.monotonic() - started


def keep(folder: Path, name: str, seed: int, tally: Tally) -> None:
    """Write the files that failed."""
    for number in tally.failures:
        path = folder / f"{name}-{seed}-{number}-{READERS[name].file}"
        if not path.exists():
            folder.mkdir(parents=True, exist_ok=True)
            path.write_bytes(mutated(name, seed, int(number))[0])


def main() -> None:
    """Run what is asked for and print what came of it."""
    if sys.argv[1:2] == ["--work"]:
        name, *numbers = sys.argv[2:]
        work(name, *map(int, numbers))
        return
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--readers", nargs="+", choices=READERS, default=[*READERS])
    parser.add_argument("--count", type=int, default=60_000, help="files of a reader")
    parser.add_argument("--minutes", type=float, default=1e9, help="of all readers")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--results", type=Path, default=Path("mutated-files.json"))
    given = parser.parse_args()
    if not SAMPLES.exists():
        unfinished = SAMPLES.with_suffix(".new")
        shutil.rmtree(unfinished, ignore_errors=True)
        make_samples(unfinished)
        unfinished.rename(SAMPLES)
    kept = json.loads(given.results.read_text()) if given.results.exists() else {}
    tallies = {}
    share = given.minutes * 60 / len(given.readers)
    for name in given.readers:
        tally = tallies[name] = Tally(**kept.get(f"{name} / {given.seed}", {}))
        run(name, given.seed, tally, given.count, time.monotonic() + share)
        kept[f"{name} / {given.seed}"] = asdict(tally)
        given.results.write_text(json.dumps(kept, indent=1))
        keep(given.results.with_suffix(""), name, given.seed, tally)
        behind = tally.behind_header / max(1, tally.done)
        print(
            f"{name:20} {tally.done:8,} files, {behind:4.0%} damaged behind the "
            f"header, slowest {tally.slowest:.2f} s, {tally.peak_mb} MB, "
            f"{tally.results}",
            flush=True,
        )
        for number, why in [*tally.failures.items()][:5]:
            print(f"    {number}: {why[:200]}")
    sys.exit(any(tally.failures for tally in tallies.values()))


if __name__ == "__main__":
    main()
