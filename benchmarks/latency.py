"""How long does one image take? ResNet-50's exported files beside their peers.

Run: python benchmarks/latency.py [--peers PYTHON] [--openvino PYTHON] [--json FILE]
     [--files FOLDER]

One image of 224 pixels a call, the same net everywhere: reszoo's files as
`reszoo.Predictor` runs them, `keras.Model.predict`, the SavedModel of Keras'
`Model.export`, torchvision's net in eager mode, and reszoo's ONNX file in OpenVINO. The
weights are random; what they are changes no time. Where a processor has no dot product
of bytes (VNNI, on ARM dotprod), int8 cannot keep its promise; the notes say so.
"""

import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import harness
import numpy as np
from harness import Claim, Contender

SIDE, CLASSES, CALIBRATION = 224, 1000, 128
SECONDS, SAMPLES = 0.4, 12
CHECKPOINT, KERAS_EXPORT = "resnet50.safetensors", "keras_export"
OURS = {
    "saved_model": "saved_model",
    "tflite": "model.tflite",
    "tflite-int8": "model-int8.tflite",
    "onnx": "model.onnx",
    "onnx-int8": "model-int8.onnx",
}
_LIBRARIES = {
    "saved_model": ("tensorflow",),
    "tflite": ("ai-edge-litert",),
    "onnx": ("onnxruntime",),
}
Call = Callable[[], Any]


def pixels() -> Any:
    """Return one image of noise, uint8 `(1, 224, 224, 3)`."""
    return np.random.default_rng(0).integers(0, 256, (1, SIDE, SIDE, 3), np.uint8)


def normalised() -> Any:
    """Return about what the nets see of it, float32."""
    return (pixels() / np.float32(128) - 1).astype(np.float32)


def of_file(path: Path) -> Call:
    """Ask an exported file."""
    from reszoo_export.runtimes.opening import open_runtime

    runtime, image = open_runtime(path, harness.THREADS), pixels()
    return lambda: runtime.run(image)


def of_keras(folder: Path) -> Call:
    """Ask `keras.Model.predict`."""
    import reszoo

    model, image = reszoo.load(folder / CHECKPOINT), normalised()
    return lambda: model.predict(image, verbose=0)


def of_keras_export(folder: Path) -> Call:
    """Ask the SavedModel that Keras wrote."""
    import tensorflow as tf

    loaded = tf.saved_model.load(str(folder / KERAS_EXPORT))
    serve, image = loaded.signatures["serving_default"], normalised()
    name = next(iter(serve.structured_input_signature[1]))
    return lambda: next(iter(serve(**{name: tf.constant(image)}).values())).numpy()


def of_torch(_: Path) -> Call:
    """Ask torchvision's net, without gradients, in eager mode."""
    sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
    from torch_peers import import_torchvision

    torchvision = import_torchvision()
    import torch

    torch.set_num_threads(harness.THREADS)
    net = torchvision.models.resnet50(weights=None).eval()
    image = torch.from_numpy(normalised().transpose(0, 3, 1, 2).copy())

    def call() -> Any:
        with torch.inference_mode():
            return net(image).numpy()

    return call


def of_openvino(folder: Path) -> Call:
    """Ask OpenVINO about our ONNX file, in float32."""
    import openvino

    how = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": harness.THREADS,
        "INFERENCE_PRECISION_HINT": "f32",
    }
    core = openvino.Core()
    net = core.read_model(folder / OURS["onnx"])
    net.reshape([1, SIDE, SIDE, 3])
    request = core.compile_model(net, "CPU", how).create_infer_request()
    image = pixels()
    return lambda: request.infer({"image": image})["probabilities"]


PEERS: dict[str, tuple[Callable[[Path], Call], tuple[str, ...]]] = {
    "keras predict": (of_keras, ("keras", "tensorflow")),
    "Model.export": (of_keras_export, ("keras", "tensorflow")),
    "torch eager": (of_torch, ("torch", "torchvision")),
    "openvino": (of_openvino, ("openvino",)),
}


def measure(name: str, folder: Path) -> None:
    """Measure one contender in this process."""
    started = time.perf_counter()
    if name in OURS:
        call = of_file(folder / OURS[name])
        packages = _LIBRARIES[OURS[name].rpartition(".")[2]]
    else:
        opened, packages = PEERS[name]
        call = opened(folder)
    shape = np.shape(call())
    if shape != (1, CLASSES):
        raise SystemExit(f"{name} gave an answer of shape {shape}")
    cold = time.perf_counter() - started
    calls = _calls(call)

    def step() -> None:
        for _ in range(calls):
            call()

    run = harness.sampled(step, items=calls, warm_up=2, samples=SAMPLES)
    run["ms"] = 1000 / float(np.median(run["samples"]))
    harness.emit(run, cold_ms=1000 * cold, versions=harness.versions(*packages))


def _calls(call: Call) -> int:
    """Return how many calls fill one sample, so that taking the time costs nothing."""
    call()
    started = time.perf_counter()
    call()
    return max(1, round(SECONDS / (time.perf_counter() - started)))


def make_model(checkpoint: Path) -> Any:
    """Return the net, as written before or with numbers drawn now.

    Fresh nets have biases of zero, which would spare optimisers additions.
    """
    import reszoo
    from reszoo.checkpoints.names import lay_in, to_tensors

    if not checkpoint.exists():
        model, draw = (
            reszoo.build("resnet50", classes=CLASSES),
            np.random.default_rng(0),
        )
        tensors = to_tensors(model)
        for name, tensor in tensors.items():
            if name.endswith(("bias", "running_mean")):
                moved = tensor + draw.normal(0, 0.05, tensor.shape)
                tensors[name] = moved.astype(np.float32)
        lay_in(model, tensors, "random numbers")
        reszoo.save(model, checkpoint)
    return reszoo.load(checkpoint)


def make_files(folder: Path) -> None:
    """Write a ResNet-50 in every form that takes part; what is there is kept."""
    import input as photos  # the benchmark beside this one

    from reszoo.data.sources import open_source
    from reszoo_export.formats import FORMATS
    from reszoo_export.quantization.calibration import draw_calibration
    from reszoo_export.serving import make_serving

    model = make_model(folder / CHECKPOINT)
    if not (folder / KERAS_EXPORT).exists():
        model.export(folder / KERAS_EXPORT, verbose=False)
    missing = [name for name, file in OURS.items() if not (folder / file).exists()]
    if not missing:
        return
    if not (folder / "photos").exists():
        draw = np.random.default_rng(0)
        for number in range(CALIBRATION):
            place = folder / "photos" / f"class-{number % 4}"
            place.mkdir(parents=True, exist_ok=True)
            photos.photo(draw).save(place / f"{number}.jpg", quality=90)
    serving = make_serving(model)
    nothing = np.zeros((0, SIDE, SIDE, 3), np.uint8)
    images = draw_calibration(open_source(folder / "photos"), serving.card, nothing)
    for name in missing:
        FORMATS[name].write(serving, folder / OURS[name], images)


def contenders(
    folder: Path, peers: str | None, openvino: str | None
) -> list[Contender]:
    """Return who takes part."""
    pythons = {"torch eager": peers, "openvino": openvino}
    names = [*OURS, *PEERS]
    return [
        harness.roof("float32"),
        *(
            Contender(name, (python, __file__, "--process", name, str(folder)))
            for name in names
            if (python := pythons.get(name, sys.executable))
        ),
    ]


CLAIMS = (
    Claim("tflite-int8", "tflite", 3),
    Claim("onnx-int8", "onnx", 3),
    *(
        Claim(ours, theirs, least)
        for ours in ("tflite-int8", "onnx-int8")
        for theirs, least in (("torch eager", 4), ("keras predict", 8))
    ),
    *(Claim(ours, "openvino", 0.9) for ours in ("tflite", "onnx", "saved_model")),
    Claim("saved_model", "Model.export", 1.15),
)


def notes(runs: harness.Runs) -> list[str]:
    """Tell who was left out, and whether the processor can keep int8's promise."""
    from reszoo.machine import processor_flags

    told = [
        f"{name} was left out: name its {option} PYTHON."
        for name, option in (("torch eager", "--peers"), ("openvino", "--openvino"))
        if name not in runs
    ]
    flags = processor_flags()
    if flags and not flags & {"avx512_vnni", "avx_vnni", "asimddp"}:
        told.append("The processor has no dot product of bytes: int8 gains little.")
    return told


def compare(folder: Path, given: Any) -> None:
    """Make what is missing, measure, report."""
    folder.mkdir(parents=True, exist_ok=True)
    make_files(folder)
    taking_part = contenders(folder, given.peers, given.openvino)
    runs = harness.measure(taking_part, given.rounds)
    promised = [claim for claim in CLAIMS if claim.theirs in runs]
    told = harness.summary(taking_part, runs, promised, notes(runs))
    harness.report(told, given.json)


def main() -> None:
    """Compare them."""
    parser = harness.parser(__doc__ or "", rounds=4)
    parser.add_argument("--openvino", help="python of an environment with openvino")
    parser.add_argument("--files", type=Path, help="folder to keep the files in")
    given = parser.parse_args()
    if given.process:
        measure(given.process[0], Path(given.process[1]))
    elif given.files:
        compare(given.files.resolve(), given)
    else:
        with tempfile.TemporaryDirectory() as name:
            compare(Path(name), given)


if __name__ == "__main__":
    main()
