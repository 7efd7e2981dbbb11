"""Find the first layer at which a file and its model differ."""

import json
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import keras
import numpy as np
from numpy.typing import NDArray

from reszoo.errors import VerificationError
from reszoo.preprocessing import Pixels
from reszoo_export.formats import FORMATS, Format, RuntimeKind
from reszoo_export.runtimes import find_interface, open_runtime, softmax
from reszoo_export.saved_model.runtime import newest_version
from reszoo_export.serving import Serving
from reszoo_export.verification.isolation import run_in_subprocess

if TYPE_CHECKING:
    from reszoo_export.serving import Serving


# What files keep as a tensor of its own, unless an activation follows at once.
_COMPUTING = (
    keras.layers.Add,
    keras.layers.Conv2D,
    keras.layers.Dense,
    keras.layers.GlobalAveragePooling2D,
    keras.layers.MaxPooling2D,
)
_ACTIVATIONS = (keras.layers.Activation, keras.layers.ReLU)


def layer_outputs(serving: Serving, images: Pixels) -> dict[str, NDArray[np.float32]]:
    """Return the output of each layer that computes, in order.

    Converters fuse an activation with what comes before it: a layer that is followed
    by one is told with it. A sum is told under the name of its block.

    Args:
        serving: The folded net.
        images: uint8 `(n, height, width, 3)`.
    """
    named = dict(_named_outputs(serving.net))
    inner = keras.Model(serving.net.inputs[0], list(named.values()))
    pixels = serving.card.preprocessing.normalise(images.astype(np.float32))
    outputs = inner(pixels, training=False)
    found = {
        name: np.asarray(output, np.float32)
        for name, output in zip(named, outputs, strict=True)
    }
    if serving.options.outputs in (None, "probabilities"):
        found["softmax"] = softmax(list(found.values())[-1])
    return found


def _named_outputs(net: keras.Model) -> Iterator[tuple[str, keras.KerasTensor]]:
    for layer in net.layers:
        if isinstance(layer, _COMPUTING):
            name = layer.name.removesuffix(".add")
            yield name, _activated(layer).output


def _activated(layer: keras.Layer) -> keras.Layer:
    followers = [node.operation for node in layer._outbound_nodes]
    if len(followers) == 1 and isinstance(followers[0], _ACTIVATIONS):
        return followers[0]
    return layer


Activations = Mapping[str, NDArray[np.float32]]
Inside = Callable[[NDArray[Any]], Activations]


def activations_of(kind: RuntimeKind, path: Path, images: Pixels) -> Activations:
    """Return all activations of a file for some images.

    Operators are not fused beyond what the file says, and integers that stand for
    numbers are turned into these.

    Args:
        kind: What runs the file.
        path: The file or folder.
        images: uint8 `(n, height, width, 3)`, whatever form the file wants.

    Returns:
        Arrays with the images along their first axis, in the order of computing.
    """
    runtime = open_runtime(path)
    interface = find_interface(path, runtime.inputs, runtime.outputs)
    run = _OPENERS[kind](path)
    calls: list[Activations] = []

    def call(pixels: NDArray[Any]) -> NDArray[Any]:
        calls.append(run(pixels))
        return np.zeros((len(pixels), 1), np.float32)

    interface.ask(call, images)
    return {
        name: np.concatenate([each[name] for each in calls])[: len(images)]
        for name in calls[0]
    }


def _inside_onnx(path: Path) -> Inside:
    import onnx
    import onnxruntime

    model = onnx.load(path)
    names = [name for node in model.graph.node for name in node.output]
    promised = {value.name for value in model.graph.output}
    inner = [onnx.ValueInfoProto(name=name) for name in names if name not in promised]
    model.graph.output.extend(inner)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = (
        onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    )
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )

    def run(pixels: NDArray[Any]) -> Activations:
        arrays = session.run(names, {"image": pixels})
        return _floats(dict(zip(names, arrays, strict=True)))

    return run


def _inside_tflite(path: Path) -> Inside:
    from ai_edge_litert.interpreter import Interpreter, OpResolverType

    interpreter = Interpreter(
        str(path),
        experimental_preserve_all_tensors=True,
        # XNNPACK would hide what it computes in one piece.
        experimental_op_resolver_type=OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES,
    )
    interpreter.allocate_tensors()
    image = interpreter.get_input_details()[0]["index"]
    details = {each["index"]: each for each in interpreter.get_tensor_details()}
    operators = interpreter._get_ops_details()
    indices = [index for each in operators for index in each["outputs"]]

    def run(pixels: NDArray[Any]) -> Activations:
        interpreter.resize_tensor_input(image, pixels.shape)
        interpreter.allocate_tensors()
        interpreter.set_tensor(image, pixels)
        interpreter.invoke()
        arrays = {str(i): _meaning(interpreter, details[i]) for i in indices}
        return _floats(arrays)

    return run


def _inside_saved_model(path: Path) -> Inside:
    import tensorflow as tf
    from tensorflow.python.framework import convert_to_constants

    loaded = tf.saved_model.load(str(newest_version(path)))
    # In one graph, without functions that call functions.
    whole = convert_to_constants.convert_variables_to_constants_v2(
        loaded.signatures["serving_default"]
    )
    tensors = [
        tensor
        for operation in whole.graph.get_operations()
        if operation.type not in ("Const", "Placeholder")
        for tensor in operation.outputs
        if tensor.dtype == tf.float32
    ]
    inner = whole.prune(whole.inputs[0], tensors)

    def run(pixels: NDArray[Any]) -> Activations:
        arrays = inner(tf.constant(pixels))
        names = [tensor.name for tensor in tensors]
        return _floats({n: a.numpy() for n, a in zip(names, arrays, strict=True)})

    return run


_OPENERS: dict[RuntimeKind, Callable[[Path], Inside]] = {
    "onnx": _inside_onnx,
    "tflite": _inside_tflite,
    "saved_model": _inside_saved_model,
}


def _meaning(interpreter: Any, detail: Mapping[str, Any]) -> NDArray[Any]:
    steps: NDArray[Any] = interpreter.get_tensor(detail["index"])
    scale, zero_point = detail["quantization"]
    return (steps.astype(np.float32) - zero_point) * scale if scale else steps


def _floats(arrays: Mapping[str, NDArray[Any]]) -> Activations:
    """Keep what is computed of the images: not shapes, and not what is quantised."""
    return {
        name: np.asarray(array, np.float32)
        for name, array in arrays.items()
        if array.dtype.kind == "f" and array.ndim >= 2
    }


# Activations of a deep net fill the memory; one image more tells chance from fault.
_IMAGES = 2
_SECONDS = 600.0
_REQUEST, _IMAGES_FILE, _LAYERS_FILE = "request.json", "images.npy", "layers.npz"
# By precision: how far activations may lie apart, relative to their size. Rounding
# adds up with depth, so what parts company also grows by a factor at one layer.
_APART = {"float32": 1e-4, "float16": 1e-2, "dynamic": 0.05, "int8": 0.1}
_APART["int16x8"] = _APART["dynamic"]
_JUMP = 2.5
# Tensors that have nothing to do with each other lie 1.4 apart.
_STRANGERS = 0.9
_SMALLEST = 1e-12


def first_divergence(
    path: Path, row: Format, serving: "Serving", images: Pixels
) -> str | None:
    """Find the first layer whose output in a file is not the model's.

    A layer's output is looked for among all tensors of the file, by shape and
    content, because converters rename, fuse and reorder.

    Args:
        path: The file or folder.
        row: Its format.
        serving: What was written into it.
        images: uint8 `(n, height, width, 3)`, of which the first two are used; best
            those on which the answers differ most.

    Returns:
        The layer's name, such as "layer2.0.conv1"; "layer2.0" is the sum at the
        block's end. None where no layer stands out, or the file does not run.
    """
    images = images[:_IMAGES]
    expected = layer_outputs(serving, images)
    with tempfile.TemporaryDirectory(prefix="reszoo-") as place:
        folder = Path(place)
        np.save(folder / _IMAGES_FILE, images)
        np.savez(folder / _LAYERS_FILE, *expected.values())
        request = {
            "format": row.name,
            "path": str(path.absolute()),
            "layers": list(expected),
        }
        (folder / _REQUEST).write_text(json.dumps(request), encoding="utf-8")
        try:
            found: str | None = run_in_subprocess(
                f"{__name__}:find_in", folder, _SECONDS
            )
        except VerificationError:
            return None
    return found


def find_in(folder: Path) -> str | None:
    """Do what `first_divergence` left in a folder."""
    request = json.loads((folder / _REQUEST).read_text(encoding="utf-8"))
    row, path = FORMATS[request["format"]], Path(request["path"])
    with np.load(folder / _LAYERS_FILE, allow_pickle=False) as arrays:
        # savez numbers what has no name.
        expected = {
            name: arrays[f"arr_{index}"] for index, name in enumerate(request["layers"])
        }
    inside = activations_of(row.runtime, path, np.load(folder / _IMAGES_FILE))
    return first_apart(expected, inside, _APART[row.precision])


def first_apart(
    expected: Mapping[str, NDArray[np.float32]],
    inside: Mapping[str, NDArray[np.float32]],
    allowed: float,
) -> str | None:
    """Return the first layer that no tensor resembles.

    Args:
        expected: What each layer gives, in order, the images along the first axis.
        inside: Tensors of a file, channels last or second.
        allowed: Largest root mean square difference, relative to the layer's own.
    """
    largest = 0.0
    for name, layer in expected.items():
        apart = min((_apart(each, layer) for each in inside.values()), default=np.inf)
        # What is no number is not close either.
        if not apart <= min(max(allowed, _JUMP * largest), _STRANGERS):
            return name
        largest = max(largest, apart)
    return None


def _apart(tensor: NDArray[np.float32], layer: NDArray[np.float32]) -> float:
    sizes = [side for side in tensor.shape if side != 1]
    if sorted(sizes) != sorted(side for side in layer.shape if side != 1):
        return np.inf
    shape = np.squeeze(layer).shape
    forms = [tensor, np.moveaxis(tensor, 1, -1)]
    fitting = [
        each.reshape(layer.shape) for each in forms if each.squeeze().shape == shape
    ]
    size = max(_root_mean_square(layer), _SMALLEST)
    distances = (_root_mean_square(each - layer) / size for each in fitting)
    return min(distances, default=np.inf)


def _root_mean_square(array: NDArray[np.float32]) -> float:
    return float(np.sqrt(np.mean(np.square(array, dtype=np.float64))))
