"""Classify an image with MediaPipe: python mediapipe_classify.py IMAGE

    pip install mediapipe numpy pillow

MediaPipe itself would squash the whole image to 32 x 32 pixels, without averaging.
Prepared as in training it has that size already, and stays as it is.
"""

import sys

import mediapipe
from mediapipe.tasks.python import BaseOptions, vision
from server import FOLDER, prepare


def classify(path):
    """Return (label, probability), the most probable first."""
    base = BaseOptions(model_asset_path=str(FOLDER / "model-int8.tflite"))
    options = vision.ImageClassifierOptions(base_options=base, max_results=5)
    image = mediapipe.Image(mediapipe.ImageFormat.SRGB, prepare(path).copy())
    with vision.ImageClassifier.create_from_options(options) as classifier:
        found = classifier.classify(image).classifications[0].categories
    return [(each.category_name or each.index, each.score) for each in found]


if __name__ == "__main__":
    for label, score in classify(sys.argv[1]):
        print(f"{score:.4f} {label}")
