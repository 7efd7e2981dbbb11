"""Run an exported resnet20 on images, on a server; needs no reszoo.

    pip install numpy pillow, and the runtime of the file (see below)
    python server.py IMAGE [FILE]
    python server.py --serve PORT [FILE]
    curl -X POST -T IMAGE http://127.0.0.1:PORT
"""

import io
import json
import os
import sys
import threading
from contextlib import nullcontext
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

FOLDER = Path(__file__).resolve().parents[1]
# Of the model's input, and what an image is resized to before it is cut.
HEIGHT, WIDTH, CHANNELS = 32, 32, 3
RESIZE_HEIGHT, RESIZE_WIDTH = 32, 32
MAX_BYTES = 32 * 2**20
# A container's CPU quota is not among what a process is allowed: set it here.
CORES = len(getattr(os, "sched_getaffinity", lambda _: range(os.cpu_count()))(0))


# What an image may take in memory, in bytes: 4 a pixel. JPEGs of more than LARGE pixels
# are decoded at 1/2, 1/4 or 1/8 of their size, down to a short side of LEAST; images
# that are still larger one at a time.
MEMORY, LARGE, LEAST = 536870912, 16777216, 1024
ALONE = threading.Lock()
Image.MAX_IMAGE_PIXELS = None


def limit(image):
    """Keep an opened image within these limits, or refuse it."""
    if image.mode == "F" or (image.mode == "I" and image.format == "TIFF"):
        raise ValueError("32 bits per channel have no known range")
    width, height = image.size
    factor, each = 1, 12 if image.format == "WEBP" else 4
    if image.format in ("JPEG", "MPO"):
        while (
            factor < 8
            and -(-width // factor) * -(-height // factor) > LARGE
            and min(width, height) >= 2 * factor * LEAST
        ):
            factor *= 2
        if factor > 1:
            image.draft(None, (width // factor, height // factor))
    needed = each * image.width * image.height
    if "progressive" in image.info:
        needed += 2 * width * height * len(image.getbands())
    if needed > MEMORY:
        raise ValueError(f"{width} x {height} pixels are too many")


def upright(image):
    """Decode an image as RGB, turned as its camera was held."""
    if image.getexif().get(0x0112, 1) != 1:
        image = ImageOps.exif_transpose(image)
    image.load()
    if image.mode in ("I", "I;16", "I;16B"):
        # The upper 8 of 16 bits; Pillow's own conversion would clip at 255.
        upper = np.clip(np.asarray(image) >> 8, 0, 255)
        image = Image.fromarray(upper.astype(np.uint8))
    return image if image.mode == "RGB" else image.convert("RGB")


def window(side, scaled, size):
    """Return where what is shown lies in a side, and what it is resized from."""
    # round() sends halves to the even neighbour, as in training.
    first, length = round((scaled - size) / 2), size
    reach = 2 * -(-side // scaled) + 2
    start = max(0, first * side // scaled - reach)
    end = min(side, -(-(first + length) * side // scaled) + reach)
    box = [(at * side - start * scaled) / scaled for at in (first, first + length)]
    return first, length, start, end, *box


def resize(image):
    """Resize an image and cut its centre; nothing else: the graph normalises."""
    resampling = Image.Resampling.BILINEAR
    width, height = image.size
    # As small as covers what it is resized to.
    wide = max(width * RESIZE_HEIGHT // height, RESIZE_WIDTH)
    high = max(height * RESIZE_WIDTH // width, RESIZE_HEIGHT)
    left, across, x, x_end, *columns = window(width, wide, WIDTH)
    top, down, y, y_end, *rows = window(height, high, HEIGHT)
    if max(width * height, wide * high) <= LARGE:
        image = image.resize((wide, high), resampling)
        image = image.crop((left, top, left + across, top + down))
    else:
        # Only what the crop comes from: scaled, a very long image would fill the
        # memory. One side at a time, for some Pillows resize vertically first.
        if (x, y, x_end, y_end) != (0, 0, width, height):
            image = image.crop((x, y, x_end, y_end))
        box = (columns[0], 0, columns[1], image.height)
        image = image.resize((across, image.height), resampling, box)
        box = (0, rows[0], across, rows[1])
        image = image.resize((across, down), resampling, box)
    return np.asarray(image).reshape(HEIGHT, WIDTH, CHANNELS)


def prepare(file):
    """Return an image, given its path or an open file, as uint8 (HEIGHT, WIDTH, CHANNELS)."""
    with Image.open(file) as image:
        limit(image)
        alone = image.width * image.height > LARGE
        with ALONE if alone else nullcontext():
            return resize(upright(image))


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

    interpreter = Interpreter(str(path), num_threads=CORES)
    runner = interpreter.get_signature_runner("serving_default")
    # An interpreter computes one call at a time.
    lock = threading.Lock()

    def run(pixels):
        with lock:
            return runner(image=pixels)["probabilities"]

    return run


# pip install onnxruntime
def open_onnx(path):
    # Its telemetry makes a process hang that ends after a fork (1.32).
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = CORES
    session = onnxruntime.InferenceSession(path, options)
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


def name_classes(answer):
    """Return (label, probability), the most probable first."""
    labels = (FOLDER / "labels.txt").read_text(encoding="utf-8").splitlines()
    order = np.argsort(-answer, kind="stable")
    return [(labels[index], float(answer[index])) for index in order]


def serve(port, answer):
    """Answer every image that is sent with POST, in a thread for each connection."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            length = self.headers.get("Content-Length", "")
            if not (length.isdecimal() and 0 < int(length) <= MAX_BYTES):
                return self.reply(413, {"error": f"1 to {MAX_BYTES} bytes expected"})
            content = self.rfile.read(int(length))
            try:
                pixels = prepare(io.BytesIO(content))
            except Exception as error:  # Whatever Pillow raises for a damaged file.
                return self.reply(400, {"error": f"not a readable image: {error}"})
            self.reply(200, name_classes(answer(pixels)))

        def reply(self, status, content):
            body = json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    # Reachable from this machine only; put a web server with encryption before it.
    server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
    print(f"http://127.0.0.1:{server.server_port}", flush=True)
    server.serve_forever()


def main():
    serving = sys.argv[1:2] == ["--serve"]
    given = sys.argv[1 + serving :]
    if len(given) not in (1, 2):
        sys.exit(__doc__)
    name = given[1] if len(given) == 2 else next(iter(FILES))
    open_file, dtype, shape = FILES[name]
    run = open_file(FOLDER / name)
    if serving:
        serve(int(given[0]), lambda pixels: predict(run, dtype, shape, pixels))
    for label, value in name_classes(predict(run, dtype, shape, prepare(given[0])))[:5]:
        print(f"{value:.4f} {label}")


if __name__ == "__main__":
    main()
