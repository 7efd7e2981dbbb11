"""Write ONNX files with float16 weights: half the bytes to download and to keep."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from reszoo_export.quantization.calibration import Calibration
from reszoo_export.serving import Serving
from reszoo_export.writers.half import round_kernel
from reszoo_export.writers.onnx import convert, write_model
from reszoo_export.writers.onnx_graph import constants

_WITH_KERNEL = ("Conv", "Gemm")


def write(serving: Serving, path: Path, calibration: Calibration | None) -> None:
    """Write a file with float16 kernels: uint8 pixels in, float32 answers out.

    Args:
        serving: What to write.
        path: The file to make.
        calibration: Not used; floating point needs none.

    Raises:
        ExportError: A weight is too large for float16.
    """
    model = convert(serving)
    halve_kernels(model.graph)
    write_model(model, serving, path)


def halve_kernels(graph: Any) -> None:
    """Turn the kernels of a float32 graph to float16, each widened by a Cast.

    Runtimes widen them once, when they load the file, and compute in float32. With
    float16 arithmetic, biases and activations would be rounded as well: a trained
    ResNet-20 then moves probabilities by up to 0.0035, and ONNX Runtime on a CPU, which
    leaves such rounding out, could not show by how much a GPU does.

    Args:
        graph: An `onnx.GraphProto`; it is changed.

    Raises:
        ExportError: A weight is too large for float16.
    """
    from onnx import TensorProto, helper, numpy_helper

    known, nodes = constants(graph), []
    for node in list(graph.node):
        if node.op_type in _WITH_KERNEL:
            tensor = known[node.input[1]]
            halves = _rounded(numpy_helper.to_array(tensor))
            tensor.CopyFrom(numpy_helper.from_array(halves, tensor.name))
            wide = node.input[1] = f"{tensor.name}.float32"
            nodes.append(
                helper.make_node(
                    "Cast", [tensor.name], [wide], name=wide, to=TensorProto.FLOAT
                )
            )
        nodes.append(node)
    del graph.node[:]
    graph.node.extend(nodes)


def _rounded(weights: NDArray[np.float32]) -> NDArray[np.float16]:
    """Round `(outputs, inputs, height, width)`, or a classifier `(inputs, outputs)`."""
    if weights.ndim == 2:
        return np.ascontiguousarray(round_kernel(weights.T[:, None])[:, 0].T)
    outputs, inputs, *sides = weights.shape
    places = weights.reshape(outputs, inputs, -1).transpose(0, 2, 1)
    return round_kernel(places).transpose(0, 2, 1).reshape(outputs, inputs, *sides)
