"""How long does an image take? Exported files and other libraries.

Run: python benchmarks/inference.py [--models resnet50] [--batches 1 8]
     [--only onnx-int8 ...] [--peers PYTHON] [--json FILE] [--files FOLDER]

Images of 224 pixels, the same architecture everywhere: reszoo's files as
`reszoo.Predictor` runs them, `keras.Model.predict`, the SavedModel of Keras'
`Model.export`, the int8 files that ONNX Runtime's `quantize_static` makes of reszoo's
ONNX file (with its defaults, and with the arguments that its documentation recommends
for x86), torchvision's model in torch, its ONNX file in ONNX Runtime, OpenVINO and
ncnn, and reszoo's ONNX file in OpenVINO. The results also have the time from the start
of a process to its first answer, the memory that it then takes, and the size of the
file. The weights are random: they change no time. int8 gains little on a processor
without an int8 dot product (VNNI, on ARM dotprod); the notes say so.
"""

import itertools
import sys
import time
from pathlib import Path
from typing import Any

import harness
import inference_peers
import int8
import numpy as np
import roof
from harness import Contender, Target
from inference_peers import (
    CHECKPOINT,
    CLASSES,
    KERAS_EXPORT,
    OURS,
    STATIC,
    Call,
)

CALIBRATION = 128
SECONDS, SAMPLES = 0.3, 6
_LIBRARIES = {
    "saved_model": ("tensorflow",),
    "tflite": ("ai-edge-litert",),
    "onnx": ("onnxruntime",),
}


def measure(name: str, variant: str, batch: int, folder: Path) -> None:
    """Measure one contender in this process."""
    images = inference_peers.pixels(batch)
    if name in OURS:
        call = inference_peers.of_file(folder / OURS[name], images)
        packages, file = _LIBRARIES[name.partition("-")[0]], folder / OURS[name]
    else:
        peer = inference_peers.PEERS[name]
        call = peer.opened(folder, variant, images)
        packages, file = peer.packages, folder / peer.file if peer.file else None
    shape = np.shape(call())
    if shape != (batch, CLASSES):
        raise SystemExit(f"{name} gave an output of shape {shape}")
    cold = harness.seconds_since_start()
    calls = _calls(call)

    def step() -> None:
        for _ in range(calls):
            call()

    run = harness.sampled(step, items=calls * batch, warm_up=2, samples=SAMPLES)
    run["ms"] = 1000 * batch / float(np.median(run["samples"]))
    if file:
        run["file_mb"] = _size(file) / 1e6
    harness.emit(run, cold_ms=1000 * cold, versions=harness.versions(*packages))


def _calls(call: Call) -> int:
    """Return how many calls fill one sample, so that taking the time costs nothing."""
    call()
    started = time.perf_counter()
    call()
    return max(1, round(SECONDS / (time.perf_counter() - started)))


def _size(path: Path) -> int:
    files = [each for each in path.rglob("*") if each.is_file()] or [path]
    return sum(each.stat().st_size for each in files)


def make_model(variant: str, checkpoint: Path) -> Any:
    """Return the model of a checkpoint; write one with random weights if there is none.

    Freshly built models have zero biases, which optimisers would remove.
    """
    import reszoo
    from reszoo.weights.names import assign_tensors, to_tensors

    if not checkpoint.exists():
        model, draw = reszoo.build(variant, classes=CLASSES), np.random.default_rng(0)
        tensors = to_tensors(model)
        for name, tensor in tensors.items():
            if name.endswith(("bias", "running_mean")):
                moved = tensor + draw.normal(0, 0.05, tensor.shape)
                tensors[name] = moved.astype(np.float32)
        assign_tensors(model, tensors, "random numbers")
        reszoo.save(model, checkpoint)
    return reszoo.load(checkpoint)


def make_files(variant: str, folder: Path) -> None:
    """Write a model in every format; existing files stay."""
    from reszoo.data.sources import open_source
    from reszoo.metrics import prepared_batches
    from reszoo_export.formats import FORMATS
    from reszoo_export.quantization.ranges import Calibration
    from reszoo_export.serving import make_serving

    folder.mkdir(parents=True, exist_ok=True)
    model = make_model(variant, folder / CHECKPOINT)
    if not (folder / KERAS_EXPORT).exists():
        model.export(folder / KERAS_EXPORT, verbose=False)
    missing = [name for name, file in OURS.items() if not (folder / file).exists()]
    static = {call: folder / file for call, file in STATIC.items()}
    if not missing and all(path.exists() for path in static.values()):
        return
    photos = _make_photos(folder.parent / "photos")
    serving = make_serving(model)
    # Their classes are not the model's, as images for calibration must otherwise have.
    examples = open_source(photos).examples("train")
    shown = prepared_batches(examples, serving.card.preprocessing, 64)
    images = Calibration(np.concatenate(list(shown)))
    for name in missing:
        FORMATS[name].write(serving, folder / OURS[name], images)
    for call, path in static.items():
        int8.quantize_static_file(folder / OURS["onnx"], path, images, call)


def _make_photos(folder: Path) -> Path:
    import input as photos  # benchmarks/input.py

    if not folder.exists():
        draw = np.random.default_rng(0)
        for number in range(CALIBRATION):
            place = folder / f"class-{number % 4}"
            place.mkdir(parents=True, exist_ok=True)
            photos.photo(draw).save(place / f"{number}.jpg", quality=90)
    return folder


def contenders(root: Path, given: Any) -> list[Contender]:
    """Return the contenders."""
    found = [roof.contender(kind) for kind in _ROOFS]
    for variant in given.models:
        for batch in given.batches:
            for name in given.only or (*OURS, *inference_peers.PEERS):
                elsewhere = name not in OURS and inference_peers.PEERS[name].elsewhere
                python = given.peers if elsewhere else sys.executable
                words = (name, variant, str(batch), str(root / variant))
                if python and (batch == 1 or name not in _ONCE):
                    command = (python, __file__, "--process", *words)
                    found.append(Contender(f"{variant} b{batch} {name}", command))
    return found


# Of one image, as torchvision publishes them; two operations each.
_MULTIPLY_ADDS = {"resnet18": 1.81e9, "resnet50": 4.09e9}
_ROOFS = {"float32": ("tflite", "onnx"), "int8": ("tflite-int8", "onnx-int8")}
# Takes half a minute to compile a model, for each size of a batch.
_ONCE = {"torch.compile"}
# Ours, theirs, and how many times as fast ours should be with one image at a time.
_TARGETS = (
    ("tflite-int8", "tflite", 3.0),
    ("onnx-int8", "onnx", 3.0),
    ("onnx-int8", "quantize_static, defaults", 1.25),
    ("onnx-int8", "quantize_static, minmax", 1.0),
    ("tflite-int8", "quantize_static, minmax", 1.0),
    *(
        (ours, theirs, least)
        for ours in ("tflite-int8", "onnx-int8")
        for theirs, least in (("torch eager", 4.0), ("keras predict", 8.0))
    ),
    *((ours, "openvino", 0.9) for ours in ("tflite", "onnx", "saved_model")),
    ("onnx", "torch's onnx", 1.0),
    ("saved_model", "Model.export", 1.0),
)


def targets(given: Any, there: set[str]) -> list[Target]:
    """Return the targets for one image; for several, 1."""
    found = [
        Target(
            f"{variant} b{batch} {ours}",
            f"{variant} b{batch} {theirs}",
            least if batch == 1 else 1.0,
        )
        for variant in given.models
        for batch in given.batches
        for ours, theirs, least in _TARGETS
    ]
    return [
        target for target in found if target.ours in there and target.theirs in there
    ]


def shares(given: Any, runs: harness.Runs) -> list[str]:
    """Return the speed of files as a share of the roof of the same rounds."""
    known = [variant for variant in given.models if variant in _MULTIPLY_ADDS]
    lines = []
    for kind, files in _ROOFS.items():
        for variant, batch, file in itertools.product(known, given.batches, files):
            name = f"{variant} b{batch} {file}"
            if name in runs:
                images = harness.compare(runs, name, f"roof {kind}").median
                share = images * 2 * _MULTIPLY_ADDS[variant] / 1e9
                lines.append(f"{name}: {share:.0%} of the {kind} roof")
    return lines


def notes(given: Any, runs: harness.Runs) -> list[str]:
    """Return what limits the results: contenders left out, no int8 instructions."""
    from reszoo.environment import processor_flags

    lines = ["The targets are for ResNet-50 with one image at a time."]
    lines += shares(given, runs)
    if not (given.peers or given.only):
        lines.append(
            "Only Keras is compared: pass --peers PYTHON for the other libraries."
        )
    flags = processor_flags()
    if flags and not flags & {"avx512_vnni", "avx_vnni", "asimddp"}:
        lines.append("The processor has no int8 dot product: int8 gains little.")
    return lines


def compare(root: Path, given: Any) -> None:
    """Write missing files, measure, report."""
    for variant in given.models:
        make_files(variant, root / variant)
        if given.peers:
            inference_peers.make_torch_files(given.peers, variant, root / variant)
    entrants = contenders(root, given)
    runs = harness.measure(entrants, given.rounds)
    wanted = targets(given, set(runs))
    harness.report(
        harness.summary(entrants, runs, wanted, notes(given, runs)), given.json
    )


def main() -> None:
    """Compare the runtimes."""
    parser = harness.parser(__doc__ or "", rounds=4)
    parser.add_argument("--models", nargs="+", default=["resnet18", "resnet50"])
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 8])
    parser.add_argument(
        "--only", nargs="+", choices=(*OURS, *inference_peers.PEERS), help="contenders"
    )
    parser.add_argument("--files", type=Path, help="folder to keep the files in")
    given = parser.parse_args()
    if given.process:
        name, variant, batch, folder = given.process
        measure(name, variant, int(batch), Path(folder))
    else:
        with harness.kept_folder(given.files) as folder:
            compare(folder, given)


if __name__ == "__main__":
    main()
