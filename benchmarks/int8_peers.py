"""Quantize a model with other libraries, each with the call that suits it best.

`int8.py` runs this, where a library needs it in the environment that has the library:

    python benchmarks/int8_peers.py QUANTIZER FOLDER

The folder has the float32 model as `float.onnx` and `float.tflite` and the images in
`images.npz`: those for calibration, others from the training split with the float32
model's probabilities, on which a library's calls are compared, and those of the test
split. No call is ever chosen on test images. Written are a file of each call,
`result.npz` with the probabilities of the test images, and `result.json`.
"""

import contextlib
import io
import json
import logging
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import harness
import numpy as np

# Images at a time, where a runtime takes several.
BATCH = 50
# Half a step of an int8 softmax: files whose probabilities are multiples of 1/256 say 0
# for anything less, and the logarithm of 0 would decide the divergence.
FLOOR = 1 / 512
IMAGES = "images.npz"
Run = Callable[[Any], Any]


@dataclass(frozen=True)
class Quantizer:
    """One way to quantize.

    Attributes:
        calls: The calls that are compared, by name, each with its arguments.
        quantize: Writes a file, given the float32 one, images for calibration, the
            arguments of a call, and the path of the file.
        source: The float32 file that it takes.
        suffix: Of its files.
        peers: Whether it needs the environment of the other libraries.
    """

    calls: Mapping[str, Mapping[str, Any]]
    quantize: Callable[[Path, Any, Mapping[str, Any], Path], object]
    source: str = "float.onnx"
    suffix: str = ".onnx"
    peers: bool = False


def quantize_static(
    source: Path, images: Any, arguments: Mapping[str, Any], path: Path
) -> None:
    """Quantize with ONNX Runtime; the arguments have names of its enumerations."""
    from onnxruntime import quantization

    logging.disable(logging.WARNING)
    left = iter(images)

    class Reader(quantization.CalibrationDataReader):  # type: ignore[misc]
        def get_next(self) -> dict[str, Any] | None:
            image = next(left, None)
            return None if image is None else {"image": image[None]}

    options = dict(arguments)
    for name in ("activation_type", "weight_type"):
        if name in options:
            options[name] = quantization.QuantType[options[name]]
    if "calibrate_method" in options:
        method = options["calibrate_method"]
        options["calibrate_method"] = quantization.CalibrationMethod[method]
    # It prints what it does.
    with contextlib.redirect_stdout(io.StringIO()):
        quantization.quantize_static(source, path, Reader(), **options)


def with_litert(
    source: Path, images: Any, arguments: Mapping[str, Any], path: Path
) -> None:
    """Quantize with LiteRT's quantizer and its recipe for static int8."""
    from ai_edge_quantizer import quantizer, recipe
    from ai_edge_quantizer.algorithm_manager import AlgorithmName

    algorithm = AlgorithmName[arguments["algorithm_key"]]
    made = quantizer.Quantizer(str(source), recipe.static_wi8_ai8(algorithm))
    data = [{"image": image} for image in floats(images)]
    found = made.calibrate({"serving_default": data})
    made.quantize(found).export_model(str(path))


def with_nncf(
    source: Path, images: Any, arguments: Mapping[str, Any], path: Path
) -> None:
    """Quantize with OpenVINO's NNCF."""
    import nncf
    import openvino

    model = openvino.Core().read_model(source)
    options = {**arguments, "preset": nncf.QuantizationPreset[arguments["preset"]]}
    data = nncf.Dataset([image[None] for image in images])
    done = nncf.quantize(model, data, subset_size=len(images), **options)
    openvino.save_model(done, path, compress_to_fp16=False)


# "Quantize ONNX Models",
# https://onnxruntime.ai/docs/performance/model-optimizations/quantization.html,
# advises these on x86. The defaults are int8 activations, int8 weights per tensor and
# min-max ranges.
_ADVISED = {
    "activation_type": "QUInt8",
    "weight_type": "QInt8",
    "per_channel": True,
}


def _percentile(percentile: float) -> dict[str, Any]:
    extra = {"CalibPercentile": percentile}
    return {**_ADVISED, "calibrate_method": "Percentile", "extra_options": extra}


_MIN_MAX = {**_ADVISED, "calibrate_method": "MinMax"}
QUANTIZERS: dict[str, Quantizer] = {
    "quantize_static, defaults": Quantizer({"defaults": {}}, quantize_static),
    "quantize_static, minmax": Quantizer({"minmax": _MIN_MAX}, quantize_static),
    "quantize_static, percentile": Quantizer(
        {f"percentile={p}": _percentile(p) for p in (99.9, 99.99, 99.999, 99.9999)},
        quantize_static,
    ),
    "LiteRT's quantizer": Quantizer(
        {
            f"static_wi8_ai8, {name}": {"algorithm_key": name}
            for name in ("MIN_MAX_UNIFORM_QUANT", "OCTAV", "MSE")
        },
        with_litert,
        "float.tflite",
        ".tflite",
        peers=True,
    ),
    "OpenVINO NNCF": Quantizer(
        {
            f"{preset}, fast_bias_correction={fast}": {
                "preset": preset,
                "fast_bias_correction": fast,
            }
            for preset in ("PERFORMANCE", "MIXED")
            for fast in (True, False)
        },
        with_nncf,
        suffix=".xml",
        peers=True,
    ),
}


def floats(images: Any) -> Iterator[Any]:
    """Yield batches of one float32 image."""
    return (image[None].astype(np.float32) for image in images)


def file_probabilities(path: Path, images: Any) -> Any:
    """Return the probabilities `(n, classes)` that a file gives to images."""
    run = _RUNTIMES[path.suffix](path)
    starts = range(0, len(images), BATCH)
    return np.concatenate([run(images[at : at + BATCH]) for at in starts])


def _onnx(path: Path) -> Run:
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return lambda images: session.run(["probabilities"], {"image": images})[0]


def _openvino(path: Path) -> Run:
    import openvino

    model = openvino.Core().compile_model(path, "CPU")
    return lambda images: model({"image": images})["probabilities"]


def _tflite(path: Path) -> Run:
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


_RUNTIMES: dict[str, Callable[[Path], Run]] = {
    ".onnx": _onnx,
    ".tflite": _tflite,
    ".xml": _openvino,
}


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


def bytes_of(path: Path) -> int:
    """Return the size of a file; OpenVINO's has its weights in a second one."""
    files = {path, path.with_suffix(".bin")} if path.suffix == ".xml" else {path}
    return sum(file.stat().st_size for file in files)


def quantized(name: str, folder: Path) -> tuple[Any, dict[str, Any]]:
    """Quantize by every call of a quantizer and use the best one.

    Returns the probabilities of the test images, and what is to be reported: the call,
    the divergence of each on the images for comparison, and the size of the file.
    """
    quantizer, given = QUANTIZERS[name], np.load(folder / IMAGES)
    found, failed = {}, {}
    for number, (call, arguments) in enumerate(quantizer.calls.items()):
        path = folder / f"{list(QUANTIZERS).index(name)}-{number}{quantizer.suffix}"
        try:
            source = folder / quantizer.source
            quantizer.quantize(source, given["calibration"], arguments, path)
            shown = file_probabilities(path, given["trials"])
        except Exception as error:  # whatever a library raises
            failed[call] = f"{type(error).__name__}: {error}".splitlines()[0][:200]
            continue
        found[call] = divergence(given["trial_probabilities"], shown), path
    if not found:
        raise SystemExit(f"{name}: no call succeeded: {failed}")
    best = min(found, key=lambda call: found[call][0])
    probabilities = file_probabilities(found[best][1], given["images"])
    report = {
        "call": best,
        "calls": {call: result for call, (result, _) in found.items()},
        "failed": failed,
        "bytes": bytes_of(found[best][1]),
    }
    return probabilities, report


def main() -> None:
    """Quantize in this environment, for `int8.py`."""
    name, folder = sys.argv[1], Path(sys.argv[2])
    probabilities, report = quantized(name, folder)
    np.savez(folder / "result.npz", probabilities=probabilities)
    (folder / "result.json").write_text(json.dumps(report))


if __name__ == "__main__":
    main()
