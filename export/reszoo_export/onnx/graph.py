"""Tidy a converted ONNX graph, and rewrite it for int8."""

import re
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from reszoo_export.quantization.grids import Steps
from reszoo_export.quantization.integer_model import LEVELS, Ranges

# What the inputs of a convolution and of a classifier are.
_WEIGHTS = {1: "weight", 2: "bias"}
# The scope of a layer called twice: "conv1_1/BiasAdd" (TensorFlow's unique names).
_REPEATED = re.compile(r"_\d+$")


def assign_tensors(graph: Any, weights: Mapping[str, NDArray[np.float32]]) -> None:
    """Make constants of the inputs that stand for weights.

    Args:
        graph: With weights as inputs, each used by one node at most.
        weights: As Keras has them, by the name of their input.
    """
    from onnx import numpy_helper

    # Keras' kernels end in (input, output), ONNX's begin with (output, input).
    turned = {
        node.input[0]: node
        for node in graph.node
        if node.op_type == "Transpose" and node.input[0] in weights
    }
    used = _uses(graph)
    for name, value in weights.items():
        if name not in used:
            continue
        if name in turned:
            node = turned[name]
            _replace_input(graph, node.output[0], name)
            value = np.ascontiguousarray(value.transpose(node.attribute[0].ints))
            graph.node.remove(node)
        graph.initializer.append(numpy_helper.from_array(value, name))
    for value_info in [each for each in graph.input if each.name in weights]:
        graph.input.remove(value_info)


def tidy(graph: Any, layers: Collection[str]) -> None:
    """Merge what is one operator in ONNX; name and order the rest by its layers.

    The converter names nodes by counters of the process and orders them by name:
    without this a second export of the same weights has other bytes.

    Args:
        graph: As converted.
        layers: Names of the net's layers.
    """
    _pad_while_pooling(graph)
    _merge_classifier(graph)
    _order(graph)
    _name(graph, layers)


def constants(graph: Any) -> dict[str, Any]:
    """Return the graph's constants by name, as `onnx.TensorProto`."""
    return {each.name: each for each in graph.initializer}


def _pad_while_pooling(graph: Any) -> None:
    """Let the max-pooling pad by itself: its -inf is as good as 0 after a ReLU."""
    from onnx import helper, numpy_helper

    known, makers = constants(graph), _makers(graph)
    for pool in [node for node in graph.node if node.op_type == "MaxPool"]:
        pad = makers[pool.input[0]]
        if pad.op_type != "Pad" or makers[pad.input[0]].op_type != "Relu":
            continue
        # Before and after, of four axes: batch, channels, height, width.
        pads = numpy_helper.to_array(known[pad.input[1]]).reshape(2, 4)
        own = {each.name: helper.get_attribute_value(each) for each in pool.attribute}
        del pool.attribute[:]
        for name, value in {**own, "pads": pads[:, 2:].ravel().tolist()}.items():
            pool.attribute.append(helper.make_attribute(name, value))
        pool.input[0] = pad.input[0]
        graph.node.remove(pad)


def _merge_classifier(graph: Any) -> None:
    """Make one `Gemm` of the classifier's product and sum: int8 has a kernel for it."""
    known = constants(graph)
    for product in [node for node in graph.node if node.op_type == "MatMul"]:
        product.op_type = "Gemm"
        for total in [node for node in graph.node if product.output[0] in node.input]:
            # A bias of zeros, as fresh nets have it, is left out by TensorFlow.
            if total.op_type == "Add":
                product.input.extend(name for name in total.input if name in known)
                product.output[:] = total.output
                graph.node.remove(total)


def _order(graph: Any) -> None:
    """Order nodes as a walk back from the outputs finds them, constants by use."""
    makers = _makers(graph)
    ordered: list[Any] = []
    done: set[str] = set()
    waiting = [output.name for output in reversed(graph.output)]
    while waiting:
        node = makers.get(waiting[-1])
        if node is None or node.output[0] in done:
            waiting.pop()
            continue
        missing = [name for name in node.input if name in makers and name not in done]
        waiting.extend(reversed(missing))
        if not missing:
            ordered.append(node)
            done.update(node.output)
    del graph.node[:]
    graph.node.extend(ordered)
    first = {name: place for place, name in enumerate(_uses(graph))}
    kept = [each for each in graph.initializer if each.name in first]
    kept.sort(key=lambda each: first[each.name])
    del graph.initializer[:]
    graph.initializer.extend(kept)


def _name(graph: Any, layers: Collection[str]) -> None:
    """Call nodes and what they give as the layer that they end, or number them."""
    outside = {value.name for value in (*graph.input, *graph.output)}
    names = {name: name for name in outside}
    taken = set(outside)  # The input is a layer, too.
    for place, node in reversed(list(enumerate(graph.node))):
        layer = _layer(node, layers)
        free = layer is not None and layer not in taken
        node.name = layer if free else f"{node.op_type}_{place}"
        taken.add(node.name)
        names.setdefault(node.output[0], node.name)
    for node in graph.node:
        roles = _WEIGHTS if node.op_type in ("Conv", "Gemm") else {}
        for place, name in enumerate(node.input):
            names.setdefault(name, f"{node.name}.{roles.get(place, place)}")
        node.input[:] = [names[name] for name in node.input]
        node.output[:] = [names[name] for name in node.output]
    for initializer in graph.initializer:
        initializer.name = names[initializer.name]


def _layer(node: Any, layers: Collection[str]) -> str | None:
    """Return the layer that a node belongs to, if its names tell."""
    weights = [name.removesuffix(".weight") for name in node.input]
    parts = [_REPEATED.sub("", part) for part in node.output[0].split("/")]
    found = [name for name in (*weights, *parts) if name in layers]
    return found[0] if found else None


def _makers(graph: Any) -> dict[str, Any]:
    return {output: node for node in graph.node for output in node.output}


def _uses(graph: Any) -> dict[str, None]:
    return dict.fromkeys(name for node in graph.node for name in node.input)


def _replace_input(graph: Any, old: str, new: str) -> None:
    for node in graph.node:
        node.input[:] = [new if name == old else name for name in node.input]


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
