"""How soon does a new process classify a photo? reszoo, Keras and torch.

Run: python benchmarks/first_answer.py [--peers PYTHON] [--json FILE] [--files FOLDER]

From the start of the process, through imports and opening the file, to the five best
classes of one JPEG of 500 x 375 pixels; ResNet-50, random weights. reszoo opens
exported files with `Predictor`; Keras loads its own `.keras` file and calls `predict`;
torch loads reszoo's checkpoint into torchvision's model.
"""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import harness
import inference
import inference_peers
import numpy as np
import roof
from harness import Contender, Target
from inference_peers import CHECKPOINT, OURS, SIDE

VARIANT, KERAS, PHOTO, BEST = "resnet50", "model.keras", "photo.jpg", 5


def from_file(name: str) -> Callable[[Path], Any]:
    """Answer with an exported file."""

    def answer(folder: Path) -> Any:
        import reszoo

        predictor = reszoo.Predictor(folder / OURS[name], threads=harness.THREADS)
        return predictor.top(folder / PHOTO, k=BEST)

    return answer


def from_checkpoint(folder: Path) -> Any:
    """Answer with a checkpoint of reszoo."""
    import reszoo

    return reszoo.Predictor(folder / CHECKPOINT).top(folder / PHOTO, k=BEST)


def from_keras(folder: Path) -> Any:
    """Answer with Keras alone."""
    import keras

    model = keras.models.load_model(folder / KERAS, compile=False)
    size = (SIDE, SIDE)
    image = keras.utils.load_img(folder / PHOTO, target_size=size)
    pixels = keras.utils.img_to_array(image)[None] / 128 - 1
    return np.argsort(model.predict(pixels, verbose=0)[0])[-BEST:]


def from_torch(folder: Path) -> Any:
    """Answer with torchvision's model."""
    model = inference_peers.torch_model(VARIANT)
    import torch
    from PIL import Image
    from safetensors.torch import load_file

    model.load_state_dict(load_file(folder / CHECKPOINT))
    image = Image.open(folder / PHOTO).resize((SIDE, SIDE))
    pixels = torch.from_numpy(inference_peers.planes(np.asarray(image)[None]))
    with torch.inference_mode():
        return model(pixels)[0].topk(BEST).indices


ANSWERS: dict[str, tuple[Callable[[Path], Any], tuple[str, ...]]] = {
    "tflite": (from_file("tflite"), ("ai-edge-litert",)),
    "tflite-int8": (from_file("tflite-int8"), ("ai-edge-litert",)),
    "onnx": (from_file("onnx"), ("onnxruntime",)),
    "onnx-int8": (from_file("onnx-int8"), ("onnxruntime",)),
    "saved_model": (from_file("saved_model"), ("tensorflow",)),
    "checkpoint": (from_checkpoint, ("tensorflow", "keras")),
    "keras load + predict": (from_keras, ("tensorflow", "keras")),
    "torch load + eager": (from_torch, ("torch", "torchvision")),
}
TARGETS = (
    *(
        Target(ours, "keras load + predict", 5.0)
        for ours in ("tflite", "tflite-int8", "onnx", "onnx-int8")
    ),
    Target("tflite", "torch load + eager", 1.0),
    Target("onnx", "torch load + eager", 1.0),
)


def answer_once(name: str, folder: Path) -> None:
    """Answer, and print how many such processes fit in a minute."""
    answer, packages = ANSWERS[name]
    if len(answer(folder)) != BEST:
        raise SystemExit(f"{name} gave no {BEST} classes")
    seconds = harness.seconds_since_start()
    run = {"samples": [60 / seconds], "seconds": seconds}
    harness.emit(
        run, megabytes=harness.megabytes(), versions=harness.versions(*packages)
    )


def make_files(folder: Path) -> None:
    """Write what `inference` does, the photo, and Keras' own file."""
    import input as photos  # benchmarks/input.py
    import keras

    inference.make_files(VARIANT, folder)
    photos.photo(np.random.default_rng(0)).save(folder / PHOTO, quality=90)
    keras.applications.ResNet50(weights=None).save(folder / KERAS)


def compare(root: Path, given: Any) -> None:
    """Make the files, measure, report."""
    folder = root / VARIANT
    make_files(folder)
    entrants = [roof.contender("float32")]
    for name in ANSWERS:
        python = given.peers if name.startswith("torch") else sys.executable
        if python:
            words = (python, __file__, "--process", name, str(folder))
            entrants.append(Contender(name, words, "a minute"))
    runs = harness.measure(entrants, given.rounds)
    targets = [target for target in TARGETS if target.theirs in runs]
    harness.report(harness.summary(entrants, runs, targets), given.json)


def main() -> None:
    """Compare the libraries."""
    parser = harness.parser(__doc__ or "", rounds=6)
    parser.add_argument("--files", type=Path, help="folder to keep the files in")
    given = parser.parse_args()
    if given.process:
        answer_once(given.process[0], Path(given.process[1]))
    else:
        with harness.kept_folder(given.files) as folder:
            compare(folder, given)


if __name__ == "__main__":
    main()
