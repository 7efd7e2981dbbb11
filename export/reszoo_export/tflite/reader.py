"""Run TFLite files with LiteRT, describe them, and check their contents."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from reszoo.archives import open_archive, read_member
from reszoo.cards import Card
from reszoo.console import quiet
from reszoo.environment import usable_cores
from reszoo.files import JSON_BYTES, check_regular
from reszoo.preprocessing import Pixels
from reszoo_export import runtimes
from reszoo_export.formats import ExportOptions, Format
from reszoo_export.inspection import Contents
from reszoo_export.metadata import CARD_FILE, LABELS_FILE, parse_card, split_labels
from reszoo_export.quantization.grids import step_problems
from reszoo_export.runtimes import Activations, TensorInfo
from reszoo_export.sessions import Sessions

_LARGEST_FLOAT16 = float(np.finfo(np.float16).max)
_IMAGES = 4
_WITH_BIAS = {"CONV_2D", "FULLY_CONNECTED"}


def check_file(path: Path, *, trusted: bool = False) -> None:
    """See `Reader.check_file`; LiteRT verifies the FlatBuffer itself."""
    check_regular(path)


def open_file(path: Path, threads: int | None) -> runtimes.Runtime:
    """See `Reader.open_file`."""
    threads = threads or usable_cores()
    # An interpreter serves one call at a time: calls at once share the cores.
    sessions = Sessions(
        lambda: _Session(path, threads), path, most=max(1, usable_cores() // threads)
    )
    with sessions.borrow() as session:
        inputs, outputs = map(_tensor_info, (session.inputs, session.outputs))
        details = session.interpreter._get_ops_details()
        operators = Counter(each["op_name"] for each in details)
    return runtimes.Runtime(
        path=path, name=f"ai-edge-litert {metadata.version('ai-edge-litert')}",
        card=read_card(path), threads=threads, inputs=inputs, outputs=outputs,
        sessions=sessions, compute=_Session.call, count=lambda: operators,
    )  # fmt: skip


class _Session:
    """An interpreter, the shape of whose input follows the images."""

    def __init__(self, path: Path, threads: int | None, **options: Any) -> None:
        with quiet():
            from ai_edge_litert.interpreter import Interpreter

            self.interpreter = Interpreter(str(path), num_threads=threads, **options)
            self.interpreter.allocate_tensors()
            run = self.interpreter.get_signature_runner("serving_default")
        self.inputs, self.outputs = run.get_input_details(), run.get_output_details()
        # Without an image `Runtime` refuses the file.
        image = self.inputs.get("image", {"index": -1, "shape": ()})
        self._index, self._shape = image["index"], tuple(image["shape"])

    def call(self, pixels: NDArray[Any], output: str) -> Any:
        """Return an output for pixels in the file's dtype and layout."""
        self.run(pixels)
        return self.interpreter.get_tensor(self.outputs[output]["index"])

    def run(self, pixels: NDArray[Any]) -> None:
        """Compute all tensors."""
        if pixels.shape != self._shape:
            self.interpreter.resize_tensor_input(self._index, pixels.shape)
            self.interpreter.allocate_tensors()
            self._shape = pixels.shape
        self.interpreter.set_tensor(self._index, pixels)
        self.interpreter.invoke()


def _tensor_info(details: Mapping[str, Any]) -> list[TensorInfo]:
    return [
        {
            "name": name,
            "dtype": np.dtype(detail["dtype"]).name,
            "shape": [*runtimes.name_open_sides(map(int, detail["shape_signature"]))],
            **({"scale": scale, "zero_point": zero_point} if scale else {}),
        }
        for name, detail in sorted(details.items())
        for scale, zero_point in [detail["quantization"]]
    ]


def read_card(path: Path) -> Card:
    """Read the card of a `.tflite` file, from the zip archive at its end."""
    return parse_card(path, lambda: _archived(path, CARD_FILE))


def _archived(path: Path, name: str) -> str:
    with open_archive(path) as archive:
        return read_member(archive, name, JSON_BYTES).decode()


def stored_labels(path: Path) -> Sequence[str] | None:
    """See `Reader.stored_labels`; MediaPipe and Android Studio read these."""
    try:
        return split_labels(_archived(path, LABELS_FILE))
    except KeyError:
        return None


def activation_reader(path: Path) -> Callable[[NDArray[Any]], Activations]:
    """See `Reader.activation_reader`."""
    from ai_edge_litert.interpreter import OpResolverType

    # XNNPACK would fuse operators.
    resolver = OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
    session = _Session(
        path, None, experimental_preserve_all_tensors=True,
        experimental_op_resolver_type=resolver,
    )  # fmt: skip
    interpreter = session.interpreter
    details = {each["index"]: each for each in interpreter.get_tensor_details()}
    operators = interpreter._get_ops_details()
    indices = [index for each in operators for index in each["outputs"]]

    def run(pixels: NDArray[Any]) -> Activations:
        session.run(pixels)
        found = {}
        for index in indices:
            array = interpreter.get_tensor(index)
            scale, zero_point = details[index]["quantization"]
            if scale:
                array = (array.astype(np.float32) - zero_point) * scale
            found[str(index)] = array
        return runtimes.float_activations(found)

    return run


def _bias_scales(operator: Any, details: Mapping[int, Any], file: Any) -> Any:
    """Return the scales of input, weights and bias; None without a bias of integers."""
    used = [details[i]["quantization_parameters"] for i in operator["inputs"] if i >= 0]
    scales = [each["scales"] if len(each["scales"]) else np.nan for each in used]
    if operator["op_name"] not in _WITH_BIAS or len(used) != 3 or scales[2] is np.nan:
        return None
    axes = {each["quantized_dimension"] for each in used[1:]}
    # The converter has one tensor for all biases of zeros, with the scales of one.
    if not file.get_tensor(operator["inputs"][2]).any():
        return None
    return scales if len(axes) == 1 else [np.nan] * 3


def find_problems(
    path: Path, row: Format, card: Card, images: Pixels, options: ExportOptions
) -> list[str]:
    """Find floating point where integers are asked for, or what float16 cannot hold.

    LiteRT computes float16 files in float32 on a CPU, but in float16 on a phone's GPU.
    It reads neither metadata nor the scales of biases; others do.
    """
    from ai_edge_litert.interpreter import Interpreter

    from reszoo_export.tflite import flatbuffer

    model = flatbuffer.read_model(path.read_bytes())
    interpreter = Interpreter(str(path))
    metadata = flatbuffer.model_metadata(card, *flatbuffer.read_tensors(model))
    found, problems = flatbuffer.read_data(model, flatbuffer.METADATA_NAME), []
    if found != metadata or model.SignatureDefsLength() != 1:
        problems.append("its metadata or signatures are not what the card says")
    details = {each["index"]: each for each in interpreter.get_tensor_details()}
    operators = interpreter._get_ops_details()
    biases = (_bias_scales(each, details, interpreter) for each in operators)
    outputs = [details[place] for each in operators for place in each["outputs"]]
    steps = [
        (each["quantization"][0], each["quantization"][1] - np.iinfo(each["dtype"]).min)
        for each in outputs
        if each["quantization"][0] and each["dtype"] in (np.int8, np.uint8)
    ]
    problems += step_problems(filter(None, biases), steps, row.spans)
    # A processor without floating point cannot compute others.
    others = [x["name"] for x in details.values() if np.dtype(x["dtype"]).kind == "f"]
    if options.integer_io and others:
        told = f"every tensor must be of integers; {', '.join(others[:3])} are not"
        problems.append(told)
    if row.precision != "float16":
        return problems
    chosen = images[np.linspace(0, len(images) - 1, _IMAGES).astype(int)]
    for name, array in runtimes.compute_activations(path, row.runtime, chosen).items():
        # NaN is not small either.
        if not np.abs(array).max() <= _LARGEST_FLOAT16:
            told = f"activations of {name!r} exceed {_LARGEST_FLOAT16:g}, the largest "
            told += "number in float16: they become infinite on a GPU"
            return [*problems, told]
    return problems


def describe(path: Path) -> Contents:
    """See `Reader.describe`."""
    # The schema takes longer to load than LiteRT.
    from reszoo_export.tflite.flatbuffer import describe_file

    return describe_file(path, lambda: read_card(path))
