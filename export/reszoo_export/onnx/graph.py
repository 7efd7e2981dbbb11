"""Clean up a converted ONNX graph, and quantize it."""

import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from reszoo_export.onnx.reader import makers
from reszoo_export.quantization.grids import MAX_INT8, Steps
from reszoo_export.quantization.integer_model import LEVELS, Ranges

Array = NDArray[Any]
# Names of the inputs of a convolution and of a classifier.
_ROLES = {1: "weight", 2: "bias"}
# The scope of a layer called twice: "conv1_1/BiasAdd" (TensorFlow's unique names).
_REPEATED = re.compile(r"_\d+$")
# The converter's end of a slice that goes to the end of its axis.
_ALL = 10**9
# Axis of the outputs in the weights of an operator.
_OUTPUT_AXIS = {"Conv": 0, "Gemm": 1}
# Of a quantized bias: half of the range of int32, so that sums do not overflow.
_MAX_BIAS = 2**30
# Their outputs have the scale and zero point of their inputs.
_PASSING = ("AveragePool", "MaxPool", "Pad", "Reshape", "Squeeze")
# Changes the order of axes; a reshape does it where all but one side are 1.
_TURNING = ("Transpose", "Reshape")
# The model's layer takes the mean and squeezes; in ONNX those are two operators.
_POOL, _POOL_LAYER = "GlobalAveragePool", "avgpool"


def assign_tensors(graph: Any, weights: Mapping[str, Array]) -> None:
    """Replace the inputs that are weights, each used by one node at most, by constants.

    Weights are in Keras' layout, by the name of their input.
    """
    # Keras' kernels end in (input, output), ONNX's begin with (output, input).
    turning = (node for node in graph.node if node.op_type in _TURNING)
    turned = {node.input[0]: node for node in turning if node.input[0] in weights}
    used, known = _uses(graph), constants(graph)
    for name, value in weights.items():
        if name not in used:
            continue
        if name in turned:
            node = turned[name]
            _replace_input(graph, node.output[0], name)
            if node.op_type == "Reshape":
                value = value.reshape(numpy_helper.to_array(known[node.input[1]]))
            else:
                value = np.ascontiguousarray(value.transpose(node.attribute[0].ints))
            graph.node.remove(node)
        graph.initializer.append(numpy_helper.from_array(value, name))
    for value_info in [each for each in graph.input if each.name in weights]:
        graph.input.remove(value_info)


def tidy(graph: Any, layers: Collection[str], *, merge: bool = True) -> None:
    """Merge operators that are one in ONNX; name and order nodes by the layers.

    The converter names nodes by counters of the process and orders them by name:
    without this a second export of the same weights has other bytes. Operators are
    merged in ResNets only, in which they have one meaning.
    """
    if merge:
        _pad_while_pooling(graph)
        _subsample_by_pooling(graph)
        _write_out_padding(graph)
        _merge_classifier(graph)
    _order(graph)
    _name(graph, layers)


def constants(graph: Any) -> dict[str, Any]:
    """Return the graph's constants by name, as `onnx.TensorProto`."""
    return {each.name: each for each in graph.initializer}


def _pad_while_pooling(graph: Any) -> None:
    """Move padding into the max-pooling: -inf is equivalent to 0 after a ReLU."""
    known, made = constants(graph), makers(graph)
    for pool in [node for node in graph.node if node.op_type == "MaxPool"]:
        pad = made[pool.input[0]]
        if pad.op_type != "Pad" or made[pad.input[0]].op_type != "Relu":
            continue
        # Before and after, of four axes: batch, channels, height, width.
        pads = numpy_helper.to_array(known[pad.input[1]]).reshape(2, 4)
        own = {each.name: helper.get_attribute_value(each) for each in pool.attribute}
        del pool.attribute[:]
        _set(pool, **{**own, "pads": pads[:, 2:].ravel().tolist()})
        pool.input[0] = pad.input[0]
        graph.node.remove(pad)


def _subsample_by_pooling(graph: Any) -> None:
    """Take every n-th pixel with a max-pooling of one pixel instead of a `Slice`.

    ncnn has no slices with steps, and shape inference of ONNX Runtime's quantization
    tools stops at the converter's, which also slices the batch.
    """
    known = constants(graph)
    for node in [node for node in graph.node if node.op_type == "Slice"]:
        starts, ends, axes, *steps = (
            numpy_helper.to_array(known[name]).tolist() for name in node.input[1:]
        )
        # Of batch, channels, height, width.
        by_axis = dict(zip(axes, steps[0] if steps else [1] * len(axes), strict=True))
        strides = [by_axis.get(axis, 1) for axis in range(4)]
        if any(starts) or min(ends) < _ALL or strides[:2] != [1, 1]:
            continue
        if strides == [1] * 4:  # A shortcut that only adds channels.
            _replace_input(graph, node.output[0], node.input[0])
            graph.node.remove(node)
            continue
        node.op_type = "MaxPool"
        del node.input[1:]
        _set(node, kernel_shape=[1, 1], strides=strides[2:])


def _write_out_padding(graph: Any) -> None:
    """Write the defaults of padding, without which ncnn's converter leaves it out."""
    for node in [node for node in graph.node if node.op_type == "Pad"]:
        if len(node.input) == 2:
            node.input.append(f"{node.output[0]}.value")
            zero = numpy_helper.from_array(np.float32(0), node.input[-1])
            graph.initializer.append(zero)
        if not node.attribute:
            _set(node, mode="constant")


def _set(node: Any, **options: Any) -> None:
    node.attribute.extend(helper.make_attribute(*each) for each in options.items())


def _merge_classifier(graph: Any) -> None:
    """Merge the classifier's MatMul and Add into a `Gemm`, which has an int8 kernel."""
    known = constants(graph)
    for product in [node for node in graph.node if node.op_type == "MatMul"]:
        product.op_type = "Gemm"
        for total in [node for node in graph.node if product.output[0] in node.input]:
            # TensorFlow removes a bias of zeros, as of untrained models.
            if total.op_type == "Add":
                product.input.extend(name for name in total.input if name in known)
                product.output[:] = total.output
                graph.node.remove(total)


def _order(graph: Any) -> None:
    """Sort nodes topologically from the outputs, and constants by first use."""
    made, ordered, done = makers(graph), list[Any](), set[str]()
    waiting = [output.name for output in reversed(graph.output)]
    while waiting:
        node = made.get(waiting[-1])
        if node is None or node.output[0] in done:
            waiting.pop()
            continue
        missing = [name for name in node.input if name in made and name not in done]
        waiting.extend(reversed(missing))
        if not missing:
            ordered.append(node)
            done.update(node.output)
    _set_nodes(graph, ordered)
    first = {name: place for place, name in enumerate(_uses(graph))}
    graph.initializer.sort(key=lambda each: first[each.name])


def _name(graph: Any, layers: Collection[str]) -> None:
    """Name nodes and their outputs after the layer that they end, or number them."""
    outside = {value.name for value in (*graph.input, *graph.output)}
    names = {name: name for name in outside}
    taken = set(outside)  # The input is a layer, too.
    for place, node in reversed(list(enumerate(graph.node))):
        # The layer in the node's names, if there is one.
        parts = [_REPEATED.sub("", part) for part in node.output[0].split("/")]
        parts = [*(name.removesuffix(".weight") for name in node.input), *parts]
        layer = next((part for part in parts if part in layers), None)
        free = layer is not None and layer not in taken
        node.name = layer if free else f"{node.op_type}_{place}"
        taken.add(node.name)
        names.setdefault(node.output[0], node.name)
    for node in graph.node:
        roles = _ROLES if node.op_type in ("Conv", "Gemm") else {}
        for place, name in enumerate(node.input):
            names.setdefault(name, f"{node.name}.{roles.get(place, place)}")
        node.input[:] = [names[name] for name in node.input]
        node.output[:] = [names[name] for name in node.output]
    for initializer in graph.initializer:
        initializer.name = names[initializer.name]


def _uses(graph: Any) -> dict[str, None]:
    return dict.fromkeys(name for node in graph.node for name in node.input)


def _set_nodes(graph: Any, nodes: Sequence[Any]) -> None:
    """Give a graph other nodes, and keep the constants that they use."""
    del graph.node[:]
    graph.node.extend(nodes)
    used = _uses(graph)
    kept = [each for each in graph.initializer if each.name in used]
    del graph.initializer[:]
    graph.initializer.extend(kept)


def _replace_input(graph: Any, old: str, new: str) -> None:
    for node in graph.node:
        node.input[:] = [new if name == old else name for name in node.input]


def add_maps(graph: Any, kernel: Sequence[int], sides: Sequence[int | str]) -> None:
    """Add the output `cam`: the classifier as a 1x1 convolution of the feature map.

    Its weights are the classifier's own, in the precision that the file has them in;
    they are `(features, classes)` large, and the map `(batch, height, width)`.
    """
    made = makers(graph)
    (head,) = (node for node in graph.node if node.op_type == "Gemm")
    pool = made[head.input[0]]
    while pool.op_type not in (_POOL, "ReduceMean"):
        pool = made[pool.input[0]]
    weights = head.input[1]
    if not any(each.name == "transB" and each.i for each in head.attribute):
        weights = "cam.turned"
        turned = helper.make_node("Transpose", [head.input[1]], [weights], weights)
        graph.node.append(turned)
    shape = np.array([*reversed(kernel), 1, 1], np.int64)
    graph.initializer.append(numpy_helper.from_array(shape, "cam.shape"))
    for kind, inputs, output, options in (
        ("Reshape", [weights, "cam.shape"], "cam.weight", {}),
        ("Conv", [pool.input[0], "cam.weight"], "cam.first", {}),
        ("Transpose", ["cam.first"], "cam", {"perm": [0, 2, 3, 1]}),
    ):
        graph.node.append(helper.make_node(kind, inputs, [output], output, **options))
    value = helper.make_tensor_value_info("cam", TensorProto.FLOAT, [*sides, kernel[1]])
    graph.output.append(value)


def quantize(graph: Any, steps: Steps, ranges: Ranges, first: str) -> None:
    """Quantize the activations that have ranges, by layer; others stay float32.

    The model takes uint8 pixels, with scale 1 at `first`, its first convolution.
    """
    quantizer = _Quantizer(graph, steps, ranges)
    _start_with_bytes(graph, first, quantizer)
    for node in list(graph.node):
        quantizer.add_node(node)
    _set_nodes(graph, quantizer.nodes)


def _start_with_bytes(graph: Any, first: str, quantizer: "_Quantizer") -> None:
    """Pass pixels to the first convolution as they are; keep a change of their axes.

    They are quantized with scale 1, also where they come as uint8: OpenCV 4 reads
    uint8 that is dequantized at once as int8. It costs no measurable time.
    """
    (start,) = (node for node in graph.node if node.output[0] == first)
    before = list(graph.node)[: list(graph.node).index(start)]
    source = graph.input[0].name
    for node in before:
        graph.node.remove(node)
        if node.op_type == "Cast":
            quantizer.nodes.append(node)
            source = node.output[0]
    quantizer.add("QuantizeLinear", source, "image.quantized", quantizer.pixels[1])
    source = "image.quantized"
    for node in before:
        if node.op_type in _TURNING:
            node.input[0], source = source, node.output[0]
            quantizer.nodes.append(node)
    start.input[0] = source


class _Quantizer:
    """Adds quantized nodes in the order of a graph, and tracks quantized tensors."""

    def __init__(self, graph: Any, steps: Steps, ranges: Ranges) -> None:
        self.initializers = graph.initializer
        self.known = constants(graph)
        self.steps, self.ranges = steps, ranges
        self.nodes: list[Any] = []
        # Tensor -> its scale, and the prefix of the scale's and zero point's names.
        self.scales: dict[str, tuple[float, str]] = {}
        # Tensor -> the dequantized tensor that replaces it.
        self.replaced: dict[str, str] = {}
        self.pixels = self.make_scale("image", (0.0, LEVELS))

    def add_node(self, node: Any) -> None:
        source, output = node.input[0], node.output[0]
        if node.op_type == "Conv" and source not in self.scales:
            self.dequantize(source, source, self.pixels)
        span = self.ranges.get(_POOL_LAYER if node.op_type == _POOL else output)
        if node.op_type == "Relu" and span:
            # Quantizing to a range that begins at 0 is a ReLU.
            scale = self.make_scale(output, span)
            self.quantize(self.replaced.get(source, source), output, scale)
            return
        kernel = node.input[1] if node.op_type in _OUTPUT_AXIS else None
        node.input[:] = [self.replaced.get(name, name) for name in node.input]
        if kernel:
            self.quantize_weights(node, kernel, self.scales.get(source))
        passed = self.scales.get(source) if node.op_type in _PASSING else None
        if passed is None and span:
            passed = self.make_scale(output, span)
        if kernel and kernel.removesuffix(".weight") not in self.steps:
            passed = self.scales[source]
        self.nodes.append(node)
        if passed is not None:
            node.output[0] = f"{output}.exact"
            self.quantize(node.output[0], output, passed)

    def make_scale(self, name: str, span: tuple[float, float]) -> tuple[float, str]:
        low, high = span
        step = np.float32((high - low) / LEVELS)
        self.add_constant(f"{name}.scale", step)
        self.add_constant(f"{name}.zero", np.uint8(np.round(-low / step)))
        return float(step), name

    def quantize(self, source: str, output: str, scale: tuple[float, str]) -> None:
        quantized = f"{output}.quantized"
        self.add("QuantizeLinear", source, quantized, scale[1])
        self.dequantize(quantized, output, scale)

    def dequantize(self, source: str, output: str, scale: tuple[float, str]) -> None:
        self.replaced[output], self.scales[output] = f"{output}.rounded", scale
        self.add("DequantizeLinear", source, self.replaced[output], scale[1])

    def quantize_weights(
        self, node: Any, kernel: str, scale: tuple[float, str] | None
    ) -> None:
        """Replace a node's kernel by integers, and its bias if the input has a scale.

        Kernels without steps are the zeros and ones of a selection of channels.
        """
        axis = _OUTPUT_AXIS[node.op_type]
        value = numpy_helper.to_array(self.known[kernel])
        steps = self.steps.get(kernel.removesuffix(".weight"))
        if steps is None:
            steps = np.full(value.shape[axis], 1 / MAX_INT8, np.float32)
        bias, input_step = np.zeros(0), scale[0] if scale else 0.0
        if scale and len(node.input) > 2:
            bias = numpy_helper.to_array(self.known[node.input[2]]).astype(np.float64)
            # The bias of a kernel of nearly zeros must fit 32 bits.
            least = (np.abs(bias) / (_MAX_BIAS * input_step)).astype(np.float32)
            steps = np.maximum(steps, least)
        wide = steps.reshape([-1 if side == axis else 1 for side in range(value.ndim)])
        self.per_channel(node, 1, np.round(value / wide).astype(np.int8), steps, axis)
        if len(bias):
            steps = (steps.astype(np.float64) * input_step).astype(np.float32)
            quantized = np.round(bias / steps).astype(np.int32)
            self.per_channel(node, 2, quantized, steps, 0)

    def per_channel(
        self, node: Any, place: int, value: Array, steps: Array, axis: int
    ) -> None:
        """Replace an input of a node by integers with a scale for each output."""
        name = node.input[place]
        self.add_constant(f"{name}.quantized", value)
        self.add_constant(f"{name}.scale", steps)
        self.add_constant(f"{name}.zero", np.zeros(steps.shape, value.dtype))
        node.input[place] = f"{name}.rounded"
        self.add("DequantizeLinear", f"{name}.quantized", node.input[place], name, axis)

    def add(
        self, kind: str, source: str, output: str, scale: str, axis: int | None = None
    ) -> None:
        inputs = [source, f"{scale}.scale", f"{scale}.zero"]
        options = {} if axis is None else {"axis": axis}
        self.nodes.append(helper.make_node(kind, inputs, [output], output, **options))

    def add_constant(self, name: str, value: Any) -> None:
        self.initializers.append(numpy_helper.from_array(np.asarray(value), name))
