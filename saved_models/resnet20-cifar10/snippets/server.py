"""Run an exported resnet20 on an image, on a server; needs no reszoo.

    pip install numpy pillow, and the runtime of the file (see below)
    python server.py IMAGE [FILE]
"""

import sys
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

FOLDER = Path(__file__).resolve().parents[1]
SHORT_SIDE, SIZE = 32, 32


def prepare(path):
    """Return an image as uint8 (SIZE, SIZE, 3)."""
    # Resize, cut the centre, RGB from 0 to 255, nothing else: the graph normalises.
    image = ImageOps.exif_transpose(Image.open(path)).convert("RGB")
    sides = [side * SHORT_SIDE // min(image.size) for side in image.size]
    image = image.resize(sides, Image.Resampling.BILINEAR)
    # round() sends halves to the even neighbour, as in training.
    left, top = (round((side - SIZE) / 2) for side in image.size)
    return np.asarray(image.crop((left, top, left + SIZE, top + SIZE)))


# pip install tensorflow
def open_saved_model(path):
    import tensorflow as tf

    version = max(int(each.name) for each in path.iterdir() if each.name.isdigit())
    model = tf.saved_model.load(str(path / str(version)))

    def run(pixels):
        # A signature without its model would lose the weights.
        signature = model.signatures["serving_default"]
        return signature(image=tf.constant(pixels))["probabilities"].numpy()

    return run


# pip install ai-edge-litert
def open_tflite(path):
    from ai_edge_litert.interpreter import Interpreter

    runner = Interpreter(str(path)).get_signature_runner("serving_default")
    return lambda pixels: runner(image=pixels)["probabilities"]


# pip install onnxruntime
def open_onnx(path):
    import onnxruntime

    session = onnxruntime.InferenceSession(path)
    return lambda pixels: session.run(["probabilities"], {"image": pixels})[0]


# File: how it is opened, the dtype and the shape of its input.
FILES = {
    "saved_model": (open_saved_model, "uint8", ("batch", 32, 32, 3)),
    "model.tflite": (open_tflite, "float32", (1, 32, 32, 3)),
    "model-int8.tflite": (open_tflite, "uint8", (1, 32, 32, 3)),
    "model.onnx": (open_onnx, "uint8", ("batch", 32, 32, 3)),
}


def predict(run, dtype, shape, pixels):
    """Return the probabilities of one image."""
    # A batch of a fixed size takes that many images; here they are all the same.
    batch = shape[0] if isinstance(shape[0], int) and shape[0] > 0 else 1
    answer = run(np.ascontiguousarray(np.stack([pixels] * batch), dtype))[0]
    return answer


def main():
    if len(sys.argv) not in (2, 3):
        sys.exit(__doc__)
    name = sys.argv[2] if len(sys.argv) == 3 else next(iter(FILES))
    open_file, dtype, shape = FILES[name]
    answer = predict(open_file(FOLDER / name), dtype, shape, prepare(sys.argv[1]))
    labels = (FOLDER / "labels.txt").read_text(encoding="utf-8").splitlines()
    for index in np.argsort(-answer, kind="stable")[:5]:
        print(f"{answer[index]:.4f} {labels[index]}")


if __name__ == "__main__":
    main()
