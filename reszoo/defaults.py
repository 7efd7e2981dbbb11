"""Defaults that the Python functions and the command line share.

A module of its own: `--help` shows them, and must not load TensorFlow.
"""

# Policies for unreadable images: training leaves them out, what measures stops.
BAD_IMAGES = "error"
TRAINING_BAD_IMAGES = "skip"

# Short side of resized images, in pixels, and quality of written JPEGs.
RESIZE_SIDE = 256
JPEG_QUALITY = 95

# Seconds between two states within an epoch: at most this much work is lost.
SAVE_EVERY = 300.0

FORMATS = ("saved_model", "tflite", "onnx")
SAVED_MODEL_VERSION = 1

# Whether a file is opened and run in a subprocess with limits.
ISOLATED = False

TOP = 5
UNKNOWN = False
# Share of the known images that are not answered with "unknown".
KEEP = 0.95
# Images in a call: the activations of 32 photos fit any machine that fits the model.
PREDICTION_BATCH_SIZE = 32

BATCH_SIZES = (1, 8)
ROUNDS = 4
SECONDS = 1.0

STUDY_FAMILY = "cifar"
STUDY_DATA = "digits"
STUDY_SEEDS = 3
STUDY_RECIPE = "he2015-cifar"
STUDY_OUTPUT = "study"
