"""Ask an exported resnet20 about a picture, on a server; needs no reszoo.

    pip install numpy pillow, and for
    .onnx         pip install onnxruntime
    .tflite       pip install ai-edge-litert
    saved_model   pip install tensorflow
    python server.py PICTURE [FILE]
"""

import sys
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

FOLDER = Path(__file__).resolve().parents[1]
SHORT_SIDE, SIZE = 32, 32


def prepare(path):
    """Return a picture as uint8 (SIZE, SIZE, 3)."""
    # Resize, cut the centre, RGB from 0 to 255, nothing else: the graph normalises.
    image = ImageOps.exif_transpose(Image.open(path)).convert("RGB")
    sides = [side * SHORT_SIDE // min(image.size) for side in image.size]
    image = image.resize(sides, Image.Resampling.BILINEAR)
    # round() sends halves to the even neighbour, as in training.
    left, top = (round((side - SIZE) / 2) for side in image.size)
    return np.asarray(image.crop((left, top, left + SIZE, top + SIZE)))


class OnnxModel:
    def __init__(self, path):
        import onnxruntime

        self.session = onnxruntime.InferenceSession(path)

    def run(self, pixels):
        return self.session.run(["probabilities"], {"image": pixels})[0]


class TFLiteModel:
    def __init__(self, path):
        from ai_edge_litert.interpreter import Interpreter

        self.interpreter = Interpreter(str(path))
        self.runner = self.interpreter.get_signature_runner("serving_default")

    def run(self, pixels):
        return self.runner(image=pixels)["probabilities"]


class SavedModel:
    def __init__(self, path):
        import tensorflow as tf

        # The signature alone would lose its weights; the model must stay.
        self.model = tf.saved_model.load(str(path))
        self.signature = self.model.signatures["serving_default"]

    def run(self, pixels):
        import tensorflow as tf

        return self.signature(image=tf.constant(pixels))["probabilities"].numpy()


# File: its runtime, the dtype and the shape of its input.
FILES = {
    "saved_model/1": (SavedModel, "uint8", ("batch", 32, 32, 3)),
    "model.tflite": (TFLiteModel, "float32", (1, 32, 32, 3)),
    "model-int8.tflite": (TFLiteModel, "uint8", (1, 32, 32, 3)),
    "model.onnx": (OnnxModel, "uint8", ("batch", 32, 32, 3)),
}


def ask(model, dtype, shape, pixels):
    """Return the probabilities of one picture."""
    # A batch of a fixed size takes that many pictures; here they are all the same.
    batch = shape[0] if isinstance(shape[0], int) and shape[0] > 0 else 1
    answer = model.run(np.ascontiguousarray(np.stack([pixels] * batch), dtype))[0]
    return answer


def main():
    if len(sys.argv) not in (2, 3):
        sys.exit(__doc__)
    name = sys.argv[2] if len(sys.argv) == 3 else next(iter(FILES))
    model, dtype, shape = FILES[name]
    answer = ask(model(FOLDER / name), dtype, shape, prepare(sys.argv[1]))
    labels = (FOLDER / "labels.txt").read_text(encoding="utf-8").splitlines()
    for index in np.argsort(-answer, kind="stable")[:5]:
        print(f"{answer[index]:.4f} {labels[index]}")


if __name__ == "__main__":
    main()
