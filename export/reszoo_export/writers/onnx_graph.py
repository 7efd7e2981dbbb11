"""What is left to do for a converted ONNX graph: weights, fewer nodes, names, order.

All of it works on `onnx.GraphProto`s and changes them.
"""

import re
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

# What the inputs of a convolution and of a classifier are.
_WEIGHTS = {1: "weight", 2: "bias"}
# The scope of a layer called twice: "conv1_1/BiasAdd" (TensorFlow's unique names).
_REPEATED = re.compile(r"_\d+$")


def lay_in(graph: Any, weights: Mapping[str, NDArray[np.float32]]) -> None:
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
