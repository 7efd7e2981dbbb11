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
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

FOLDER = Path(__file__).resolve().parents[1]
SHORT_SIDE, SIZE = 32, 32
MAX_BYTES = 32 * 2**20
# A container's CPU quota is not among what a process is allowed: set it here.
CORES = len(getattr(os, "sched_getaffinity", lambda _: range(os.cpu_count()))(0))


def prepare(file):
    """Return an image, given its path or an open file, as uint8 (SIZE, SIZE, 3)."""
    with Image.open(file) as opened:
        if opened.mode == "F" or (opened.mode == "I" and opened.format == "TIFF"):
            raise ValueError("32 bits per channel have no known range")
        image = ImageOps.exif_transpose(opened)
        if image.mode in ("I", "I;16", "I;16B"):
            # The upper 8 of 16 bits; Pillow's own conversion would clip at 255.
            upper = np.clip(np.asarray(image) >> 8, 0, 255)
            image = Image.fromarray(upper.astype(np.uint8))
        image = image.convert("RGB")
    # Resize, cut the centre, RGB from 0 to 255, nothing else: the graph normalises.
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
