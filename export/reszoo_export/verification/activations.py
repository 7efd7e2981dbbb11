"""What happens inside a file: every tensor between its operators, by name."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from reszoo.preprocessing import Pixels
from reszoo_export.formats import RuntimeKind
from reszoo_export.runtimes.interface import find_interface
from reszoo_export.runtimes.opening import open_runtime
from reszoo_export.runtimes.tensorflow import newest_version

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
