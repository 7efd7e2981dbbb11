"""Rewrite a float ONNX graph so that runtimes compute it in integers.

Quantisation is written as QuantizeLinear and DequantizeLinear around float operators
("QDQ"), which runtimes fuse with them: uint8 activations, for those are fast on x86,
int8 weights with a scale for each output, int32 biases. ONNX Runtime's own
`quantize_static` writes the same form, and calls its tensors by other names.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from reszoo_export.quantization.grids import Steps
from reszoo_export.quantization.integer_net import LEVELS, Ranges
from reszoo_export.writers.onnx_graph import constants

Array = NDArray[Any]
# Axis of the outputs in the weights of an operator.
_OUTPUT_AXIS = {"Conv": 0, "Gemm": 1}
# Of a bias in integers: half of what 32 bits hold, so that sums have room, too.
_MOST = 2**30
# Their integers stand for what those of their input stand for.
_PASSING = ("MaxPool", "Pad", "Reshape", "Slice", "Squeeze")
# The net's layer takes the mean and squeezes; in ONNX those are two operators.
_POOL, _POOL_LAYER = "GlobalAveragePool", "avgpool"


def quantize(graph: Any, steps: Steps, ranges: Ranges, picture: str) -> None:
    """Quantise what the ranges tell; the rest stays float32.

    Args:
        graph: Of a net that takes bytes; it is changed.
        steps: Of the grids of kernels, by layer.
        ranges: Of activations, by the layers that give them.
        picture: Name of what the first convolution sees before it is transposed:
            uint8, and meant as it is.
    """
    _start_with_bytes(graph, picture)
    rewriting = _Rewriting(graph, steps, ranges)
    for node in list(graph.node):
        rewriting.take(node)
    _keep(graph, rewriting.nodes)


def _start_with_bytes(graph: Any, picture: str) -> None:
    """Feed pixels to the first padding as bytes, without float arithmetic before."""
    from onnx import numpy_helper

    (first,) = (node for node in graph.node if node.output[0] == picture)
    before = list(graph.node)[: list(graph.node).index(first)]
    for node in before:
        graph.node.remove(node)
    first.input[0] = graph.input[0].name
    value = constants(graph)[first.input[2]]
    filled = numpy_helper.to_array(value).astype(np.uint8)
    value.CopyFrom(numpy_helper.from_array(filled, value.name))


class _Rewriting:
    """Takes the nodes of a graph in their order, and knows what is quantised."""

    def __init__(self, graph: Any, steps: Steps, ranges: Ranges) -> None:
        self.initializers = graph.initializer
        self.known = constants(graph)
        self.steps, self.ranges = steps, ranges
        self.nodes: list[Any] = []
        # Tensor -> its step, and name of its scale (the zero point has the same).
        self.scales: dict[str, tuple[float, str]] = {}
        # Tensor -> what stands for it from here on.
        self.now: dict[str, str] = {}

    def take(self, node: Any) -> None:
        given, made = node.input[0], node.output[0]
        if node.op_type in _OUTPUT_AXIS and given not in self.scales:
            self.dequantize_bytes(given)
        span = self.ranges.get(_POOL_LAYER if node.op_type == _POOL else made)
        if node.op_type == "Relu" and span:
            # A range that begins at 0 cuts as it does.
            self.round(self.now.get(given, given), made, self.scale(made, span))
            return
        kernel = node.input[1] if node.op_type in _OUTPUT_AXIS else None
        node.input[:] = [self.now.get(name, name) for name in node.input]
        if kernel:
            self.weights(node, kernel, self.scales[given][0])
        scale = self.scales.get(given) if node.op_type in _PASSING else None
        if span and not scale:
            scale = self.scale(made, span)
        self.nodes.append(node)
        if scale:
            node.output[0] = f"{made}.exact"
            self.round(node.output[0], made, scale)

    def scale(self, name: str, span: tuple[float, float]) -> tuple[float, str]:
        low, high = span
        step = np.float32((high - low) / LEVELS)
        self.constant(f"{name}.scale", step)
        self.constant(f"{name}.zero", np.uint8(np.round(-low / step)))
        return float(step), name

    def round(self, source: str, made: str, scale: tuple[float, str]) -> None:
        quantised = f"{made}.quantized"
        self.add("QuantizeLinear", source, quantised, scale[1])
        self.dequantize(quantised, made, scale)

    def dequantize(self, source: str, made: str, scale: tuple[float, str]) -> None:
        self.now[made], self.scales[made] = f"{made}.rounded", scale
        self.add("DequantizeLinear", source, self.now[made], scale[1])

    def dequantize_bytes(self, name: str) -> None:
        self.dequantize(name, name, self.scale(f"{name}.bytes", (0.0, LEVELS)))

    def weights(self, node: Any, kernel: str, step: float) -> None:
        """Make integers of a node's kernel and bias."""
        from onnx import numpy_helper

        axis = _OUTPUT_AXIS[node.op_type]
        value = numpy_helper.to_array(self.known[kernel])
        bias = numpy_helper.to_array(self.known[node.input[2]]).astype(np.float64)
        # A kernel of nearly nothing must leave room for its bias in 32 bits.
        least = (np.abs(bias) / (_MOST * step)).astype(np.float32)
        steps = np.maximum(self.steps[kernel.removesuffix(".weight")], least)
        wide = steps.reshape([-1 if side == axis else 1 for side in range(value.ndim)])
        self.channels(node, 1, np.round(value / wide).astype(np.int8), steps, axis)
        steps = (steps.astype(np.float64) * step).astype(np.float32)
        self.channels(node, 2, np.round(bias / steps).astype(np.int32), steps, 0)

    def channels(
        self, node: Any, place: int, value: Array, steps: Array, axis: int
    ) -> None:
        """Replace an input of a node by integers with a scale for each output."""
        name = node.input[place]
        self.constant(f"{name}.quantized", value)
        self.constant(f"{name}.scale", steps)
        self.constant(f"{name}.zero", np.zeros(steps.shape, value.dtype))
        node.input[place] = f"{name}.rounded"
        self.add("DequantizeLinear", f"{name}.quantized", node.input[place], name, axis)

    def add(
        self, kind: str, source: str, made: str, scale: str, axis: int | None = None
    ) -> None:
        from onnx import helper

        inputs = [source, f"{scale}.scale", f"{scale}.zero"]
        options = {} if axis is None else {"axis": axis}
        self.nodes.append(helper.make_node(kind, inputs, [made], made, **options))

    def constant(self, name: str, value: Any) -> None:
        from onnx import numpy_helper

        self.initializers.append(numpy_helper.from_array(np.asarray(value), name))


def _keep(graph: Any, nodes: list[Any]) -> None:
    """Leave these nodes, and of the constants those that they use."""
    del graph.node[:]
    graph.node.extend(nodes)
    used = {name for node in nodes for name in node.input}
    kept = [each for each in graph.initializer if each.name in used]
    del graph.initializer[:]
    graph.initializer.extend(kept)
