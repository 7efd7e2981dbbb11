"""How long does an answer take? Exported files beside their peers.

Run: python benchmarks/inference.py [--models resnet50] [--batches 1 8]
     [--peers PYTHON] [--json FILE] [--files FOLDER]

Images of 224 pixels, the same net everywhere: reszoo's files as `reszoo.Predictor` runs
them, `keras.Model.predict`, the SavedModel of Keras' `Model.export`, what ONNX
Runtime's `quantize_static` makes of reszoo's ONNX file, torchvision's net in torch, and
that net's ONNX file in ONNX Runtime, OpenVINO and ncnn beside reszoo's own in OpenVINO.
Also told: from the start of a process to its first answer, the memory that it then
holds, and the size of the file. The weights are random; what they are changes no time.
Where a processor has no dot product of bytes (VNNI, on ARM dotprod), int8 cannot keep
its promise; the notes say so.
"""

import itertools
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import harness
import inference_peers
import int8
import numpy as np
import roof
from harness import Claim, Contender
from inference_peers import (
    CHECKPOINT,
    CLASSES,
    KERAS_EXPORT,
    OURS,
    SIDE,
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


def measure(name: str, net: str, batch: int, folder: Path) -> None:
    """Measure one contender in this process."""
    images = inference_peers.pixels(batch)
    if name in OURS:
        call = inference_peers.of_file(folder / OURS[name], images)
        packages, file = _LIBRARIES[name.partition("-")[0]], folder / OURS[name]
    else:
        peer = inference_peers.PEERS[name]
        call = peer.opened(folder, net, images)
        packages, file = peer.packages, folder / peer.file if peer.file else None
    shape = np.shape(call())
    if shape != (batch, CLASSES):
        raise SystemExit(f"{name} gave an answer of shape {shape}")
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


def make_model(net: str, checkpoint: Path) -> Any:
    """Return the net, as written before or with numbers drawn now.

    Fresh nets have biases of zero, which would spare optimisers additions.
    """
    import reszoo
    from reszoo.weights.names import assign_tensors, to_tensors

    if not checkpoint.exists():
        model, draw = reszoo.build(net, classes=CLASSES), np.random.default_rng(0)
        tensors = to_tensors(model)
        for name, tensor in tensors.items():
            if name.endswith(("bias", "running_mean")):
                moved = tensor + draw.normal(0, 0.05, tensor.shape)
                tensors[name] = moved.astype(np.float32)
        assign_tensors(model, tensors, "random numbers")
        reszoo.save(model, checkpoint)
    return reszoo.load(checkpoint)


def make_files(net: str, folder: Path) -> None:
    """Write a net in every form that takes part; what is there is kept."""
    from reszoo.data.sources import open_source
    from reszoo_export.formats import FORMATS
    from reszoo_export.quantization.ranges import draw_calibration
    from reszoo_export.serving import make_serving

    folder.mkdir(parents=True, exist_ok=True)
    model = make_model(net, folder / CHECKPOINT)
    if not (folder / KERAS_EXPORT).exists():
        model.export(folder / KERAS_EXPORT, verbose=False)
    missing = [name for name, file in OURS.items() if not (folder / file).exists()]
    if not missing and (folder / STATIC).exists():
        return
    photos = _make_photos(folder.parent / "photos")
    serving = make_serving(model)
    nothing = np.zeros((0, SIDE, SIDE, 3), np.uint8)
    images = draw_calibration(open_source(photos), serving.card, nothing)
    for name in missing:
        FORMATS[name].write(serving, folder / OURS[name], images)
    int8.quantize_static_file(folder / OURS["onnx"], folder / STATIC, images)


def _make_photos(folder: Path) -> Path:
    import input as photos  # the benchmark beside this one

    if not folder.exists():
        draw = np.random.default_rng(0)
        for number in range(CALIBRATION):
            place = folder / f"class-{number % 4}"
            place.mkdir(parents=True, exist_ok=True)
            photos.photo(draw).save(place / f"{number}.jpg", quality=90)
    return folder


def contenders(root: Path, given: Any) -> list[Contender]:
    """Return who takes part."""
    found = [roof.contender(kind) for kind in _ROOFS]
    for net in given.models:
        for batch in given.batches:
            for name in (*OURS, *inference_peers.PEERS):
                elsewhere = name not in OURS and inference_peers.PEERS[name].elsewhere
                python = given.peers if elsewhere else sys.executable
                words = (name, net, str(batch), str(root / net))
                if python and (batch == 1 or name not in _ONCE):
                    command = (python, __file__, "--process", *words)
                    found.append(Contender(f"{net} b{batch} {name}", command))
    return found


# Of one image, as torchvision publishes them; two operations each.
_MULTIPLY_ADDS = {"resnet18": 1.81e9, "resnet50": 4.09e9}
_ROOFS = {"float32": ("tflite", "onnx"), "int8": ("tflite-int8", "onnx-int8")}
# Takes half a minute to compile a net, for each size of a batch.
_ONCE = {"torch.compile"}
# Ours, theirs, and how many times as fast ours is said to be with one image at a time.
_PROMISED = (
    ("tflite-int8", "tflite", 3.0),
    ("onnx-int8", "onnx", 3.0),
    ("onnx-int8", "quantize_static", 1.25),
    *(
        (ours, theirs, least)
        for ours in ("tflite-int8", "onnx-int8")
        for theirs, least in (("torch eager", 4.0), ("keras predict", 8.0))
    ),
    *((ours, "openvino", 0.9) for ours in ("tflite", "onnx", "saved_model")),
    ("onnx", "torch's onnx", 1.0),
    ("saved_model", "Model.export", 1.15),
)


def claims(given: Any, there: set[str]) -> list[Claim]:
    """Return the promises for one image; of several, just who is faster."""
    found = [
        Claim(
            f"{net} b{batch} {ours}",
            f"{net} b{batch} {theirs}",
            least if batch == 1 else 1.0,
        )
        for net in given.models
        for batch in given.batches
        for ours, theirs, least in _PROMISED
    ]
    return [claim for claim in found if claim.theirs in there]


def shares(given: Any, runs: harness.Runs) -> list[str]:
    """Tell how near the files come to a large matrix product of the same rounds."""
    known = [net for net in given.models if net in _MULTIPLY_ADDS]
    told = []
    for kind, files in _ROOFS.items():
        for net, batch, file in itertools.product(known, given.batches, files):
            name = f"{net} b{batch} {file}"
            images = harness.compare(runs, name, f"roof {kind}").median
            share = images * 2 * _MULTIPLY_ADDS[net] / 1e9
            told.append(f"{name}: {share:.0%} of the {kind} roof")
    return told


def notes(given: Any, runs: harness.Runs) -> list[str]:
    """Tell who was left out, and whether the processor can keep int8's promise."""
    from reszoo.environment import processor_flags

    told = ["The project's targets are those of ResNet-50 and one image at a time."]
    told += shares(given, runs)
    if not given.peers:
        told.append("Only Keras takes part: name the others' --peers PYTHON.")
    flags = processor_flags()
    if flags and not flags & {"avx512_vnni", "avx_vnni", "asimddp"}:
        told.append("The processor has no dot product of bytes: int8 gains little.")
    return told


def compare(root: Path, given: Any) -> None:
    """Make what is missing, measure, report."""
    for net in given.models:
        make_files(net, root / net)
        if given.peers:
            inference_peers.make_torch_files(given.peers, net, root / net)
    taking_part = contenders(root, given)
    runs = harness.measure(taking_part, given.rounds)
    promised = claims(given, set(runs))
    harness.report(
        harness.summary(taking_part, runs, promised, notes(given, runs)), given.json
    )


def main() -> None:
    """Compare them."""
    parser = harness.parser(__doc__ or "", rounds=4)
    parser.add_argument("--models", nargs="+", default=["resnet18", "resnet50"])
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 8])
    parser.add_argument("--files", type=Path, help="folder to keep the files in")
    given = parser.parse_args()
    if given.process:
        name, net, batch, folder = given.process
        measure(name, net, int(batch), Path(folder))
    elif given.files:
        compare(given.files.resolve(), given)
    else:
        with tempfile.TemporaryDirectory() as name:
            compare(Path(name), given)


if __name__ == "__main__":
    main()
