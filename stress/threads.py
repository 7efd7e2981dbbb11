"""Ask every format from many threads at once, and count errors and wrong answers.

    python stress/threads.py [--clients 8] [--calls 3000] [--formats onnx,tflite]

First `reszoo.Predictor`, then the same files behind the HTTP server of the export's
`snippets/server.py`. An answer is wrong if it is not that of its own image; those of
two images differ by a hundred times the tolerance at least.
"""

import argparse
import http.client
import io
import json
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

import reszoo
from reszoo.specs import SPECS
from reszoo_export.formats import FORMATS

SIDE, LABELS, IMAGES = 16, ("a", "b", "c", "d", "e"), 24
TOLERANCE = 1e-5
CLIENTS, CALLS = 8, 3000


def images() -> Any:
    """Return uint8 `(n, side, side, 3)` of different colours."""
    draw = np.random.default_rng(0)
    colours = draw.integers(0, 256, (IMAGES, 1, 1, 3))
    noise = draw.integers(-40, 40, (IMAGES, SIDE, SIDE, 3))
    return np.clip(colours + noise, 0, 255).astype(np.uint8)


def tiny_model() -> Any:
    """Return a ResNet-8 whose answers differ from image to image."""
    import keras

    keras.utils.set_random_seed(0)
    spec = SPECS["resnet8"]
    shape = (SIDE, SIDE, 3)
    return reszoo.build(spec, input_shape=shape, classes=LABELS)


def write_files(folder: Path, formats: Sequence[str] = tuple(FORMATS)) -> Any:
    """Write a checkpoint and an export with its snippets.

    Returns:
        Format, or "checkpoint", -> file.
    """
    model = tiny_model()
    reszoo.save(model, folder / "model.safetensors")
    names = np.array([LABELS[index % len(LABELS)] for index in range(IMAGES)])
    shown = np.repeat(images(), 24, axis=0)
    draw = np.random.default_rng(1)
    shown = np.clip(shown + draw.integers(-20, 20, shown.shape), 0, 255)
    reszoo.export(
        model,
        folder / "export",
        formats=list(formats),
        calibration=(shown.astype(np.uint8), np.repeat(names, 24)),
    )
    files = {name: folder / "export" / FORMATS[name].file for name in formats}
    return {"checkpoint": folder / "model.safetensors", **files}


def check_answers(answers: Any) -> None:
    """Refuse images that could be mistaken for each other."""
    distances = np.abs(answers[:, None] - answers[None]).max(-1)
    least = (distances + np.eye(len(answers))).min()
    if least < 100 * TOLERANCE:
        raise SystemExit(f"The answers to two images differ by {least:g} only.")


def ask(
    call: Callable[[int], Any], expected: Any, clients: int, calls: int
) -> Counter[str]:
    """Call from many threads at once.

    Args:
        call: From the index of an image to its answer.
        expected: The answer to each image.
        clients: How many threads.
        calls: Of each.

    Returns:
        How many calls were "right", "wrong", or raised an error, by its type.
    """
    found: list[Counter[str]] = [Counter() for _ in range(clients)]
    start = threading.Barrier(clients)

    def work(client: int) -> None:
        order = np.random.default_rng(client).integers(0, len(expected), calls)
        start.wait()
        for index in order:
            try:
                answer = call(int(index))
            except Exception as error:
                found[client][f"{type(error).__name__}: {error}"[:80]] += 1
                continue
            right = np.abs(answer - expected[index]).max() <= TOLERANCE
            found[client]["right" if right else "wrong"] += 1

    threads = [threading.Thread(target=work, args=(i,)) for i in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(found, Counter())


class Server:
    """The export's own `snippets/server.py`, in a process."""

    def __init__(self, export: Path, file: str) -> None:
        command = [sys.executable, str(export / "snippets/server.py")]
        command += ["--serve", "0", file]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        line = self.process.stdout.readline() if self.process.stdout else ""
        self.address = line.strip().removeprefix("http://")

    def __enter__(self) -> "Server":
        return self

    def __exit__(self, *_: object) -> None:
        self.process.terminate()
        self.process.communicate()

    def post(self, content: bytes) -> tuple[int, Any]:
        """Send an image; return the status and what the server answered."""
        connection = http.client.HTTPConnection(self.address, timeout=120)
        with closing(connection):
            connection.request("POST", "/", content)
            reply = connection.getresponse()
            return reply.status, json.loads(reply.read())

    def served(
        self, encoded: Sequence[bytes], labels: Sequence[str], index: int
    ) -> Any:
        """Return the probabilities of one image, in the order of the labels."""
        status, answer = self.post(encoded[index])
        if status != 200:
            raise RuntimeError(f"status {status}: {answer}")
        named = dict(answer)
        return np.array([named[label] for label in labels])


def predicted(predictor: reszoo.Predictor, shown: Any, index: int) -> Any:
    """Return what a file gives to one image."""
    return predictor.predict(shown[index])[0]


def png(pixels: Any) -> bytes:
    """Return an image as a PNG file."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def report(name: str, counts: Counter[str], seconds: float) -> bool:
    """Print a line; return whether all was right."""
    rest = Counter({key: n for key, n in counts.items() if key != "right"})
    wrong, errors = rest.pop("wrong", 0), rest.total()
    rate = counts.total() / seconds
    print(
        f"{name:32} {counts.total():7,} calls {rate:8,.0f}/s "
        f"{errors:6} errors {wrong:6} wrong",
        flush=True,
    )
    for text, count in rest.most_common(3):
        print(f"    {count} x {text}")
    return not rest and not wrong


def main() -> int:
    """Run the whole; exit 1 if anything was wrong."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clients", type=int, default=CLIENTS)
    parser.add_argument("--calls", type=int, default=CALLS)
    parser.add_argument("--formats", default=",".join(FORMATS))
    parser.add_argument("--threads", type=int, help="of each TFLite or ONNX file")
    given = parser.parse_args()
    good, shown = True, images()
    encoded = [png(image) for image in shown]
    with tempfile.TemporaryDirectory() as folder:
        files = write_files(Path(folder), given.formats.split(","))
        models = {**files, "keras.Model": reszoo.load(files["checkpoint"])}
        for name, path in models.items():
            expected = reszoo.Predictor(path).predict(shown)
            check_answers(expected)
            # TensorFlow's threads cannot be changed once it has started.
            threads = given.threads if name.startswith(("tflite", "onnx")) else None
            predictor = reszoo.Predictor(path, threads=threads)
            began = time.perf_counter()
            counts = ask(
                partial(predicted, predictor, shown),
                expected,
                given.clients,
                given.calls,
            )
            good &= report(name, counts, time.perf_counter() - began)
            if name in FORMATS:
                labels = predictor.labels
                with Server(Path(folder) / "export", path.name) as server:
                    began = time.perf_counter()
                    counts = ask(
                        partial(server.served, encoded, labels),
                        expected,
                        given.clients,
                        given.calls,
                    )
                    took = time.perf_counter() - began
                good &= report(f"{name} behind HTTP", counts, took)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
