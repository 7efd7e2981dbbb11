"""Write ONNX files in float16: half the bytes, for the browser and for GPUs."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from reszoo.errors import ExportError
from reszoo.preprocessing import Pixels
from reszoo_export.onnx import convert, write_model
from reszoo_export.onnx_graph import constants
from reszoo_export.quantization import Calibration
from reszoo_export.serving import INPUT, Serving
from reszoo_export.synthetic import synthetic_images

# The casts between which there is float16.
_FIRST, _LAST = "normalised", "activations"


def write(serving: Serving, path: Path, calibration: Calibration | None) -> None:
    """Write a float16 file: uint8 pixels in, float32 answers out.

    Args:
        serving: What to write.
        path: The file to make.
        calibration: Not used; floating point needs none.

    Raises:
        ExportError: Activations are too large for float16.
    """
    model = convert(serving)
    halve(model.graph)
    write_model(model, serving, path)
    images = synthetic_images(serving.card.preprocessing.eval_size)
    if layers := overflowing(path, images):
        raise ExportError(
            f"Activations must stay below {np.finfo(np.float16).max:g} in float16. "
            f"Received: larger ones from {layers[0]} on. Export onnx instead."
        )


def halve(graph: Any) -> None:
    """Have a graph compute in float16 from its first convolution to its pooling.

    Pixels in 0..255 are normalised in float32. So are features averaged, classified
    and made probabilities: near the top, float16 steps of a logit (1/64 from 16 on)
    are as large as what a probability may move. The classifier is kept in float16
    all the same, and widened when the file is loaded.

    Weights beyond float16's 65504 become infinite.

    Args:
        graph: An `onnx.GraphProto` in float32, nodes in order; it is changed.
    """
    from onnx import TensorProto

    known, nodes = constants(graph), list(graph.node)
    operators = [node.op_type for node in nodes]
    start, end = operators.index("Conv"), operators.index("GlobalAveragePool")
    before, inside, after = nodes[:start], nodes[start:end], nodes[end:]
    narrow = _cast(inside[0], 0, _FIRST, TensorProto.FLOAT16)
    wide = [_cast(after[0], 0, _LAST, TensorProto.FLOAT)]
    _to_half(known[name] for node in inside for name in node.input if name in known)
    for classifier in [node for node in after if node.op_type == "Gemm"]:
        _to_half([known[classifier.input[1]]])
        wide.append(_cast(classifier, 1, "fc.weight.float32", TensorProto.FLOAT))
    del graph.node[:]
    graph.node.extend([*before, narrow, *inside, *wide, *after])


def overflowing(path: Path, images: Pixels) -> list[str]:
    """Return the layers with activations that float16 cannot hold, the first first.

    Answers do not tell: where a processor has no float16 kernels, ONNX Runtime
    computes in float32 and leaves out the rounding between operators
    (`RemoveDuplicateCastTransformer`). A GPU does not. Here every layer's activations
    are asked for, and so have to be float16.

    Args:
        path: A file that `write` made, with one image a call or any number.
        images: uint8 `(n, height, width, 3)`.
    """
    import onnx
    import onnxruntime

    model = onnx.load(path)
    names = [node.output[0] for node in model.graph.node]
    inside = names[names.index(_FIRST) + 1 : names.index(_LAST)]
    for name in inside:
        half = onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT16, None)
        model.graph.output.append(half)
    batch, first, *_ = model.graph.input[0].type.tensor_type.shape.dim
    if first.dim_value == images.shape[-1]:
        images = images.transpose(0, 3, 1, 2)
    session = onnxruntime.InferenceSession(model.SerializeToString())
    found: set[str] = set()
    for image in images:
        pixels = np.repeat(image[None], batch.dim_value or 1, axis=0)
        activations = session.run(inside, {INPUT: pixels})
        found.update(
            name
            for name, values in zip(inside, activations, strict=True)
            if not np.isfinite(values).all()
        )
    return [name for name in inside if name in found]


def _cast(node: Any, place: int, name: str, dtype: int) -> Any:
    """Return a new node that casts one of a node's inputs."""
    from onnx import helper

    source = node.input[place]
    node.input[place] = name
    return helper.make_node("Cast", [source], [name], name=name, to=dtype)


def _to_half(tensors: Iterable[Any]) -> None:
    from onnx import TensorProto, numpy_helper

    for tensor in tensors:
        if tensor.data_type == TensorProto.FLOAT:
            with np.errstate(over="ignore"):
                half = numpy_helper.to_array(tensor).astype(np.float16)
            tensor.CopyFrom(numpy_helper.from_array(half, tensor.name))
