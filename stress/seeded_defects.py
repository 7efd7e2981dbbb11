"""Plant every kind of defect in exported files: how many does verification notice?

    python stress/seeded_defects.py [--runtimes tflite onnx saved_model]
        [--kinds labels_swapped ...] [--seed 0] [--folder FOLDER] [--results FILE]

`make stress` plants them as well, and counts.

One small model is exported in all runtimes. Each kind of `defects.toml` changes a copy
of one file (never the exporter), the manifest gets the hashes of the changed files, as
if the exporter had written them, and `reszoo verify` checks the copy. In kinds that are
about files changed after the export the hashes stay.

A defect counts only if the file is really wrong: either a runtime of its own, without
reszoo, refuses it or computes other outputs on noise, or, in the classes of DECLARED,
what programs read in the files differs. Files are checked in a process that goes
through all kinds; if one crashes it, `reszoo verify` decides in a process of its own.
Kinds that RESULTS has are not planted again. Exits with 1 if a kind was missed that
`defects.toml` does not say is. `defects.json` has the results of all kinds.
"""

import argparse
import hashlib
import importlib
import json
import os
import subprocess
import sys
import tempfile
import time
import tomllib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), *(str(HERE.parent / n) for n in ("tests", "benchmarks"))]
from forks import Fork  # noqa: E402
from results import Outcome  # noqa: E402

RUNTIMES = ("tflite", "onnx", "saved_model")
# Classes in which files may be wrong although their outputs are right.
DECLARED = {
    "batch", "files", "format", "labels", "manifest", "metadata", "names", "opset",
    "preprocessing", "quantization", "range", "reference", "shapes", "signatures",
}  # fmt: skip
LABELS = (
    "Zebra",
    "apple",
    "Bär",
    "猫",
    "dog house",
    "Éclair",
    "naïve",
    "cat",
    "Öl",
    "zoo",
)
SIZE = 64
# Outputs that differ by less are equal.
EQUAL = 1e-6
_DIED = "the process that checked it died"
_PATIENCE = 3600.0


def read_table() -> dict[str, dict[str, Any]]:
    """Return the class, origin and description of each kind, by runtime."""
    return tomllib.loads((HERE / "defects.toml").read_text("utf-8"))


def applicable(rows: dict[str, Any]) -> dict[str, Any]:
    """Return the kinds that apply to files of ours."""
    return {name: row for name, row in rows.items() if row[1] != "none"}


def make_exports(folder: Path, seed: int) -> None:
    """Export two models of one architecture, and the first with integers in and out."""
    import reszoo

    formats = "saved_model,tflite,tflite-int8,onnx,onnx-int8"
    for number, name in enumerate(("good", "other")):
        model, data = make_model(folder / f"{name}-data", seed + number)
        given: dict[str, Any] = {"calibration": data, "verify": data, "overwrite": True}
        if number == 0:
            reszoo.export(
                model, folder / "integers", formats="tflite-int8", integer_io="int8",
                **given,
            )  # fmt: skip
        reszoo.export(model, folder / name, formats=formats, **given)
    (folder / "done").touch()


def make_model(folder: Path, seed: int) -> tuple[Any, Path]:
    """Return a model with random weights that tells images apart, and the images."""
    from random_models import Lesson, randomise, teach

    import reszoo
    from reszoo.specs import ResNetSpec

    spec = ResNetSpec(
        name="two-stages", depths=(2, 2), widths=(16, 32), stem="7x7",
        classes=len(LABELS), image_size=SIZE,
    )  # fmt: skip
    draw = np.random.default_rng(seed)
    shape = (SIZE, SIZE, 3)
    model = reszoo.build(spec, classes=LABELS, input_shape=shape, seed=seed)
    randomise(model, draw)
    # As sure as a trained model.
    lesson = Lesson(train=160, settled=160, candidates=240, test=100, lead=3.0)
    teach(model, LABELS, SIZE, draw, folder, lesson)
    return model, folder


def sources(folder: Path, format_: str) -> tuple[str, Path]:
    """Return the format and the export that a kind's file is copied from."""
    name, _, options = format_.partition(" ")
    return name, folder / (options or "good")


def plant(folder: Path, place: Path, kind: Any, seed: int) -> Any:
    """Copy a good export and plant a defect in it; return the export."""
    from planting import Export, copy_export, refresh_hashes

    format_, source = sources(folder, kind.format)
    file = copy_export(source, format_, place)
    draw = np.random.default_rng(seed)
    export = Export(place, file, folder / "other" / file, draw)
    kind.edit(export)
    if kind.hashed:
        refresh_hashes(export)
    return export


def verify_here(folder: Path) -> str:
    """Return what `reszoo verify` says, but without a process for each file."""
    from reszoo.errors import ReszooError
    from reszoo_export.verification import verify

    def verify_file(row: Any, *given: Any, ranges: Any) -> Any:
        return verify.verify_in_process(row.explained_by(ranges), *given)

    verify.verify_file = verify_file  # type: ignore[assignment]
    try:
        verify.verify(folder)
    except ReszooError as error:
        return str(error)
    return ""


def verify_apart(folder: Path) -> str:
    """Return what the command `reszoo verify` says."""
    call = [sys.executable, "-m", "reszoo", "verify", str(folder)]
    done = subprocess.run(call, capture_output=True, text=True, check=False)
    return done.stderr.strip() if done.returncode == 1 else ""


def outputs(path: Path, images: Any) -> dict[str, Any]:
    """Run a file on images in its runtime, without reszoo."""
    if path.suffix == ".tflite":
        from ai_edge_litert.interpreter import Interpreter

        interpreter = Interpreter(str(path))
        interpreter.allocate_tensors()
        (into, *_), out = (
            interpreter.get_input_details(),
            interpreter.get_output_details(),
        )
        answers = []
        for image in images:
            shape, dtype = into["shape"], into["dtype"]
            low = -128 if dtype == np.int8 else 0
            pixels = (image.astype(np.int16) + low).astype(dtype)
            interpreter.set_tensor(into["index"], np.resize(pixels, shape))
            interpreter.invoke()
            answers.append([dequantized(interpreter, each) for each in out])
        return {str(i): np.stack(a) for i, a in enumerate(zip(*answers, strict=True))}
    if path.suffix == ".onnx":
        import onnxruntime

        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        first, *_ = session.get_inputs()
        dtype = np.uint8 if "uint8" in first.type else np.float32
        found = session.run(None, {first.name: images.astype(dtype)})
        return {str(i): each for i, each in enumerate(found)}
    import tensorflow as tf

    (folder,) = (each for each in path.iterdir() if each.name in "17")
    loaded = tf.saved_model.load(str(folder))
    files = tf.stack([tf.io.encode_png(image) for image in images])
    of_pixels = loaded.signatures["serving_default"](image=tf.constant(images))
    of_bytes = loaded.signatures["serving_bytes"](image_bytes=files)
    of_python = loaded.serve(tf.constant(images))
    named = {"pixels": of_pixels, "bytes": of_bytes, "python": of_python}
    return {f"{n} {k}": v.numpy() for n, each in named.items() for k, v in each.items()}


def dequantized(interpreter: Any, detail: Any) -> Any:
    """Return an output as real numbers."""
    array = interpreter.get_tensor(detail["index"])
    scale, zero_point = detail["quantization"]
    return (array.astype(np.float64) - zero_point) * scale if scale else array


def effect(good: dict[str, Any], path: Path, images: Any) -> str:
    """Tell how the outputs of a changed file differ; "" if they do not."""
    try:
        found = outputs(path, images)
    except Exception as error:
        return f"does not run: {type(error).__name__}"
    if [a.shape for a in found.values()] != [a.shape for a in good.values()]:
        return "outputs of other shapes"
    largest = max(float(np.abs(found[k] - good[k]).max()) for k in good)
    return f"outputs differ by {largest:.2g}" if not largest <= EQUAL else ""


def check_kinds(runtime: str, folder: Path, names: list[str], seed: int) -> None:
    """Plant kinds one after the other; print one line of JSON before and after each."""
    kinds = importlib.import_module(f"{runtime}_kinds").KINDS
    draw = np.random.default_rng(seed)
    images = draw.integers(0, 256, (4, SIZE, SIZE, 3), np.uint8)
    # Smooth ones as well, on which padding and order matter.
    images = np.concatenate([images, images[:, ::8, ::8].repeat(8, 1).repeat(8, 2)])
    good: dict[str, Any] = {}
    for name in names:
        kind = kinds[name]
        with tempfile.TemporaryDirectory(prefix="defects-") as place:
            export = plant(folder, Path(place) / "export", kind, seed)
            print(json.dumps({"begins": name}), flush=True)
            if kind.format not in good:
                _, source = sources(folder, kind.format)
                good[kind.format] = outputs(source / export.file, images)
            started = time.perf_counter()
            message = verify_here(export.folder)
            seconds = time.perf_counter() - started
            changed = effect(good[kind.format], export.path, images)
        line = {"kind": name, "message": message, "effect": changed, "seconds": seconds}
        print(json.dumps(line), flush=True)


def run_kinds(runtime: str, folder: Path, names: list[str], seed: int) -> Any:
    """Yield the result of each kind; a process that dies is replaced."""
    waiting = list(names)
    while waiting:
        call = [sys.executable, __file__, "--worker", runtime, "--folder", str(folder),
                "--seed", str(seed), "--kinds", *waiting]  # fmt: skip
        current = ""
        with subprocess.Popen(call, stdout=subprocess.PIPE, text=True) as worker:
            try:
                for line in worker.stdout or ():
                    if not line.startswith("{"):
                        continue
                    found = json.loads(line)
                    current = found.get("begins", "")
                    if not current:
                        waiting.remove(found["kind"])
                        yield found
            finally:
                # It may have ended by itself, or nobody wants the other kinds.
                worker.kill()
        if waiting:
            if not current:
                raise RuntimeError(f"{waiting[0]} could not be planted")
            waiting.remove(current)
            yield checked_apart(runtime, folder, current, seed)


def checked_apart(runtime: str, folder: Path, name: str, seed: int) -> dict[str, Any]:
    """Check a kind that ended a process, with the command."""
    kind = importlib.import_module(f"{runtime}_kinds").KINDS[name]
    with tempfile.TemporaryDirectory(prefix="defects-") as place:
        export = plant(folder, Path(place) / "export", kind, seed)
        message = verify_apart(export.folder)
    return {"kind": name, "message": message, "effect": _DIED, "seconds": 0.0}


def judged(found: dict[str, Any], row: list[str]) -> dict[str, Any]:
    """Return a kind's row of the results."""
    class_, devised, _ = row
    counts = bool(found["effect"]) or class_ in DECLARED
    lines = [line.strip() for line in found["message"].split("\n")]
    message = lines[1] if len(lines) > 1 else lines[0]
    return {
        "class": class_, "devised": devised, "counts": counts,
        "caught": bool(found["message"]), "effect": found["effect"],
        "message": message[:200], "seconds": round(found["seconds"], 2),
    }  # fmt: skip


def summary(rows: dict[str, Any]) -> dict[str, Any]:
    """Count a runtime's kinds."""
    counted = {name: row for name, row in rows.items() if row["counts"]}
    missed = [name for name, row in counted.items() if not row["caught"]]
    origins = Counter(row["devised"] for row in counted.values())
    return {
        "kinds": len(counted), **origins, "caught": len(counted) - len(missed),
        "missed": missed, "without_effect": sorted(rows.keys() - counted.keys()),
        "seconds": round(sum(row["seconds"] for row in rows.values())),
    }  # fmt: skip


def known_misses(runtime: str) -> dict[str, str]:
    """Return the kinds that are not noticed, with the reasons."""
    return dict(read_table()["misses"].get(runtime, {}))


def exports_folder() -> Path:
    """Return where the exports of seed 0 are kept, which this code makes."""
    root, digest = HERE.parent, hashlib.sha256()
    made_by = [*root.glob("export/**/*.py"), root / "benchmarks" / "random_models.py"]
    for path in sorted([*made_by, HERE / "seeded_defects.py"]):
        digest.update(path.read_bytes())
    name = f"reszoo-defects-{os.getuid()}-{digest.hexdigest()[:8]}"
    return Path(tempfile.gettempdir()) / name


TARGETS = {runtime: len(applicable(read_table()[runtime])) for runtime in RUNTIMES}


def work(runtime: str, first: int, until: float) -> Iterator[Outcome]:
    """Yield what came of each kind, in the order of `defects.toml`, from a place on."""
    folder = exports_folder()
    if not (folder / "done").exists():
        with tempfile.TemporaryDirectory(prefix="defects-") as place:
            fork = Fork(lambda: make_exports(folder, 0), HERE, Path(place) / "log")
            fork.succeed(_PATIENCE)
    rows = applicable(read_table()[runtime])
    names, misses = list(rows)[first:], known_misses(runtime)
    if not names or time.monotonic() > until:
        return
    started = time.monotonic()
    for number, found in enumerate(run_kinds(runtime, folder, names, 0), first):
        row, outcome = judged(found, rows[found["kind"]]), Outcome(number, number + 1)
        told = "caught" if row["caught"] else "missed"
        outcome.count(told if row["counts"] else "without effect")
        if row["counts"] and not row["caught"] and found["kind"] not in misses:
            outcome.failures[found["kind"]] = f"missed; {row['effect']}"
        now, outcome.done = time.monotonic(), 1
        outcome.seconds, started = now - started, now
        yield outcome
        if now > until:
            return


def add_results(runtime: str, given: argparse.Namespace) -> dict[str, Any]:
    """Plant what RESULTS lacks of a runtime, and return the runtime's summary."""
    path, rows = given.results, applicable(read_table()[runtime])
    text = path.read_text("utf-8") if path.exists() else "{}"
    content = json.loads(text)
    for name, empty in (("seed", given.seed), ("runtimes", {}), ("kinds", {})):
        content.setdefault(name, empty)
    if content["seed"] != given.seed:
        raise SystemExit(
            f"{path} has results of seed {content['seed']}, not {given.seed}. Choose "
            "that seed or another file (--results)."
        )
    done = content["kinds"].setdefault(runtime, {})
    wanted = given.kinds or [name for name in rows if name not in done]
    names = [name for name in rows if name in wanted]
    for found in run_kinds(runtime, given.folder, names, given.seed):
        row = done[found["kind"]] = judged(found, rows[found["kind"]])
        told = row["message"] if row["caught"] else "MISSED"
        shown = row["effect"] or ("same outputs" if row["counts"] else "NO EFFECT")
        print(f"{runtime} {found['kind']}: {shown}: {told}", flush=True)
        content["runtimes"][runtime] = summary(done)
        write_results(path, content)
    return summary(done)


def write_results(path: Path, content: dict[str, Any]) -> None:
    """Write JSON in one step, with a line for each kind."""
    from reszoo.files import write_text

    def line(value: Any) -> str:
        return json.dumps(value, ensure_ascii=False)

    kinds = ",\n".join(
        f"  {line(runtime)}: {{\n"
        + ",\n".join(f"   {line(name)}: {line(row)}" for name, row in rows.items())
        + "\n  }"
        for runtime, rows in content["kinds"].items()
    )
    rest = {name: value for name, value in content.items() if name != "kinds"}
    head = json.dumps(rest, indent=1, ensure_ascii=False).removesuffix("\n}")
    write_text(path, f'{head},\n "kinds": {{\n{kinds}\n }}\n}}\n')


def main() -> int:
    """Plant all kinds that were asked for, and add the results to a file."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--runtimes", nargs="+", choices=RUNTIMES, default=RUNTIMES)
    parser.add_argument("--kinds", nargs="+", help="only these, and again")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, default=Path("defective-exports"))
    parser.add_argument("--results", type=Path, default=Path("seeded-defects.json"))
    parser.add_argument("--worker", choices=RUNTIMES, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.worker:
        check_kinds(given.worker, given.folder, given.kinds, given.seed)
        return 0
    if not (given.folder / "done").exists():
        make_exports(given.folder, given.seed)
    unexpected = 0
    for runtime in given.runtimes:
        found = add_results(runtime, given)
        print(runtime, found)
        unexpected += len({*found["missed"]} - known_misses(runtime).keys())
    return int(unexpected > 0)


if __name__ == "__main__":
    sys.exit(main())
