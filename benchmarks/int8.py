"""How much do int8 files lose? reszoo and the quantizers that it could have called.

Run: python benchmarks/int8.py CHECKPOINT DATA [--peers PYTHON] [--json FILE]

All of them quantize the same model with the same calibration images of the training
split: reszoo's two files, ONNX Runtime's `quantize_static` with its defaults and with
the arguments that its documentation recommends for x86 processors, TensorFlow's
converter and, where `--peers` names a Python that has it, LiteRT's quantizer. Each file
classifies every image of the test split in its own runtime.
"""

import argparse
import json
import logging
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import harness
import numpy as np

# Images at a time, where a runtime takes several.
BATCH = 50
TARGET_DROP, TARGET_AGREEMENT = 0.003, 0.98
# Half a step of an int8 softmax: files whose probabilities are multiples of 1/256 say 0
# for anything less, and the logarithm of 0 would decide the divergence.
FLOOR = 1 / 512
# What `quantize_static` is called with. Its defaults give int8 activations, int8
# weights per tensor and min-max ranges. The tuned calls follow "Quantize ONNX Models",
# https://onnxruntime.ai/docs/performance/model-optimizations/quantization.html.
STATIC_CALLS = ("defaults", "tuned, min-max", "tuned, percentile")


def ours(serving: Any, calibration: Any, folder: Path) -> dict[str, Path]:
    """Write reszoo's files."""
    from reszoo_export.formats import FORMATS

    paths = {}
    for name in ("tflite-int8", "onnx-int8"):
        paths[f"reszoo {name}"] = path = folder / FORMATS[name].file
        FORMATS[name].write(serving, path, calibration)
    return paths


def with_onnx_runtime(
    serving: Any, calibration: Any, folder: Path
) -> Iterator[tuple[str, Path]]:
    """Write a file for each call of `quantize_static`."""
    from reszoo_export.onnx import writer

    source = folder / "float.onnx"
    writer.write(serving, source)
    for number, call in enumerate(STATIC_CALLS):
        path = folder / f"static-{number}.onnx"
        quantize_static_file(source, path, calibration, call)
        yield f"quantize_static, {call}", path


def quantize_static_file(
    source: Path, path: Path, calibration: Any, call: str = "defaults"
) -> None:
    """Quantize one of reszoo's float32 ONNX files with `quantize_static`.

    Args:
        source: A file of format `onnx`.
        path: The file to write.
        calibration: Whose images set the ranges.
        call: One of `STATIC_CALLS`.
    """
    from onnxruntime import quantization

    logging.disable(logging.WARNING)
    images = iter(calibration.images)

    class Reader(quantization.CalibrationDataReader):  # type: ignore[misc]
        def get_next(self) -> dict[str, Any] | None:
            image = next(images, None)
            return None if image is None else {"image": image[None]}

    tuned = {
        "activation_type": quantization.QuantType.QUInt8,
        "weight_type": quantization.QuantType.QInt8,
        "per_channel": True,
    }
    methods = quantization.CalibrationMethod
    options = {
        "defaults": {},
        "tuned, min-max": {**tuned, "calibrate_method": methods.MinMax},
        "tuned, percentile": {**tuned, "calibrate_method": methods.Percentile},
    }
    quantization.quantize_static(source, path, Reader(), **options[call])


def with_tensorflow(serving: Any, calibration: Any, folder: Path) -> Path:
    """Write a file with the converter's own full-integer recipe."""
    import tensorflow as tf

    from reszoo_export.tflite.writer import convert

    def prepare(converter: Any) -> None:
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
        converter.representative_dataset = lambda: (
            {"image": image} for image in _floats(calibration.images)
        )
        converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]

    path = folder / "converter.tflite"
    path.write_bytes(convert(serving, prepare))
    return path


def with_litert(serving: Any, calibration: Any, folder: Path, peers: str) -> Path:
    """Write a file with LiteRT's quantizer and its recipe for static int8."""
    from reszoo_export.tflite import writer

    source, path = folder / "float.tflite", folder / "quantizer.tflite"
    writer.write(serving, source)
    np.save(folder / "images.npy", calibration.images)
    words = [peers, __file__, "--process", str(source), str(path)]
    done = subprocess.run(
        [*words, str(folder / "images.npy")], capture_output=True, text=True
    )
    if done.returncode:
        raise SystemExit(f"LiteRT's quantizer failed:\n{done.stderr}")
    return path


def quantize_in_peer(source: str, target: str, images: str) -> None:
    """Call LiteRT's quantizer, in an environment that has it."""
    from ai_edge_quantizer import quantizer, recipe

    made = quantizer.Quantizer(source, recipe.static_wi8_ai8())
    data = [{"image": image} for image in _floats(np.load(images))]
    found = made.calibrate({"serving_default": data})
    made.quantize(found).export_model(target)


def _floats(images: Any) -> Iterator[Any]:
    return (image[None].astype(np.float32) for image in images)


def file_probabilities(path: Path, images: Any) -> Any:
    """Return the probabilities `(n, classes)` that a file gives to images."""
    run = _onnx(path) if path.suffix == ".onnx" else _tflite(path)
    starts = range(0, len(images), BATCH)
    return np.concatenate([run(images[at : at + BATCH]) for at in starts])


def _onnx(path: Path) -> Callable[[Any], Any]:
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return lambda images: session.run(["probabilities"], {"image": images})[0]


def _tflite(path: Path) -> Callable[[Any], Any]:
    from ai_edge_litert.interpreter import Interpreter

    runner = Interpreter(str(path), num_threads=harness.THREADS).get_signature_runner(
        "serving_default"
    )
    into = runner.get_input_details()["image"]
    out = runner.get_output_details()["probabilities"]

    def run(images: Any) -> Any:
        found = [runner(image=_quantized(image, into)) for image in images]
        return np.concatenate([_real(each["probabilities"], out) for each in found])

    return run


def _quantized(image: Any, detail: Any) -> Any:
    """Return an image as an input takes it: not every int8 input takes 0-255."""
    step, zero = detail["quantization"]
    if not step:
        return image[None].astype(detail["dtype"])
    limits = np.iinfo(detail["dtype"])
    whole = np.round(image[None] / step) + zero
    return np.clip(whole, limits.min, limits.max).astype(detail["dtype"])


def _real(output: Any, detail: Any) -> Any:
    step, zero = detail["quantization"]
    return (output.astype(np.float32) - zero) * step if step else output


def divergence(exact: Any, found: Any) -> float:
    """Return the mean KL divergence of probabilities `(n, classes)` from the model's.

    Probabilities below `FLOOR` count as `FLOOR` in both.
    """
    p, q = (np.maximum(each.astype(np.float64), FLOOR) for each in (exact, found))
    p, q = p / p.sum(1, keepdims=True), q / q.sum(1, keepdims=True)
    return float((p * np.log(p / q)).sum(1).mean())


def measure(given: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Quantize in every way, and have every file classify all test images."""
    import reszoo
    from reszoo.data.sources import open_source
    from reszoo.metrics import prepared_batches, probabilities
    from reszoo_export.quantization.ranges import draw_calibration
    from reszoo_export.serving import make_serving

    model = reszoo.load(given.checkpoint)
    serving, source = make_serving(model), open_source(given.data)
    preprocessing, examples = serving.card.preprocessing, source.examples()
    images = np.concatenate(list(prepared_batches(examples, preprocessing, 256)))
    calibration = draw_calibration(source, serving.card, images)
    paths = ours(serving, calibration, folder)
    paths["converter"] = with_tensorflow(serving, calibration, folder)
    paths |= with_onnx_runtime(serving, calibration, folder)
    if given.peers:
        paths["LiteRT's quantizer"] = with_litert(
            serving, calibration, folder, given.peers
        )
    targets, exact = examples.targets, probabilities(model, preprocessing, images)
    accuracy = float((exact.argmax(1) == targets).mean())
    rows = {}
    for name, path in paths.items():
        found = file_probabilities(path, images)
        top1 = found.argmax(1)
        rows[name] = {
            "accuracy": float((top1 == targets).mean()),
            "drop": accuracy - float((top1 == targets).mean()),
            "agreement": float((top1 == exact.argmax(1)).mean()),
            "divergence": divergence(exact, found),
            "bytes": path.stat().st_size,
        }
    choice = next(iter(calibration.choices.values()))
    return {
        "machine": harness.machine(),
        "model": serving.card.architecture.name,
        "images": len(images),
        "float_accuracy": accuracy,
        "choice": choice.to_json(),
        "files": rows,
    }


def show(results: dict[str, Any]) -> None:
    """Print what was measured."""
    print(f"{results['model']}, {results['images']:,} images: ", end="")
    print(f"float32 accuracy {results['float_accuracy']:.2%}")
    print(f"\n{'':34}{'accuracy':>9}{'drop':>8}{'agreement':>11}", end="")
    print(f"{'divergence':>12}{'bytes':>11}")
    for name, row in results["files"].items():
        print(
            f"{name:34}{row['accuracy']:9.2%}{row['drop']:8.2%}{row['agreement']:11.2%}"
            f"{row['divergence']:12.5f}{row['bytes']:11,}"
        )
    print()
    for name in ("reszoo tflite-int8", "reszoo onnx-int8"):
        row = results["files"][name]
        fine = row["drop"] <= TARGET_DROP and row["agreement"] >= TARGET_AGREEMENT
        print(f"{name}: targets {'met' if fine else 'not met'}")
    best = results["choice"]["best"]
    print(f"ranges: within which {best['share']:.0%} of the calibration images stay")


def main() -> None:
    """Compare them."""
    made = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("checkpoint", nargs="?", help="of a trained model")
    made.add_argument("data", nargs="?", help="what it was trained on")
    made.add_argument("--peers", help="python of the environment with the peers")
    made.add_argument("--json", type=Path, help="file for all that was measured")
    made.add_argument("--process", nargs=3, help=argparse.SUPPRESS)
    given = made.parse_args()
    if given.process:
        quantize_in_peer(*given.process)
        return
    if not given.data:
        made.error("name a checkpoint and its data")
    with tempfile.TemporaryDirectory() as name:
        results = measure(given, Path(name))
    show(results)
    if given.json:
        given.json.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
