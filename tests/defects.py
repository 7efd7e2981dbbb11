"""Ways to spoil an ONNX file of ours: each is a mistake that an exporter can make."""

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

Graph = Any
Change = Callable[[Graph], object]
Array = NDArray[Any]


def node(graph: Graph, name: str) -> Any:
    """Return the node of a name, or the only one of a kind."""
    (found,) = [each for each in graph.node if name in (each.name, each.op_type)]
    return found


def weights(name: str, change: Callable[[Array], Array]) -> Change:
    """Put other numbers into a weight."""

    def spoil(graph: Graph) -> None:
        (tensor,) = [each for each in graph.initializer if each.name == name]
        array = np.ascontiguousarray(change(numpy_helper.to_array(tensor).copy()))
        tensor.CopyFrom(numpy_helper.from_array(array, name))

    return spoil


def constant(graph: Graph, name: str, array: Array) -> str:
    graph.initializer.append(numpy_helper.from_array(array, name))
    return name


def skip(name: str, place: int = 0) -> Change:
    """Leave a node out: who reads its output gets its input."""

    def spoil(graph: Graph) -> None:
        left_out = node(graph, name)
        for other in graph.node:
            other.input[:] = [
                left_out.input[place] if each == left_out.output[0] else each
                for each in other.input
            ]
        graph.node.remove(left_out)

    return spoil


def before(name: str, kind: str, *, extra: Any = None, **attributes: Any) -> Change:
    """Put a node in front of another one's first input."""

    def spoil(graph: Graph) -> None:
        after = node(graph, name)
        inputs = [after.input[0], *(extra(graph) if extra else [])]
        made = helper.make_node(kind, inputs, ["spoilt"], **attributes)
        after.input[0] = "spoilt"
        graph.node.insert(list(graph.node).index(after), made)

    return spoil


def attribute(name: str, key: str, value: Any) -> Change:
    """Give a node another stride, padding or the like."""

    def spoil(graph: Graph) -> None:
        found = node(graph, name)
        for each in [each for each in found.attribute if each.name == key]:
            found.attribute.remove(each)
        found.attribute.append(helper.make_attribute(key, value))

    return spoil


def both(*changes: Change) -> Change:
    def spoil(graph: Graph) -> None:
        for change in changes:
            change(graph)

    return spoil


def another_kind(name: str, kind: str) -> Change:
    def spoil(graph: Graph) -> None:
        node(graph, name).op_type = kind

    return spoil


def normalised_twice(graph: Graph) -> None:
    scale, offset = node(graph, "Mul").input[1], node(graph, "Transpose")
    added = next(each for each in graph.node if each.output[0] == offset.input[0])
    again = [
        helper.make_node("Mul", [added.output[0], scale], ["scaled twice"]),
        helper.make_node("Add", ["scaled twice", added.input[1]], ["moved twice"]),
    ]
    at = list(graph.node).index(offset)
    offset.input[0] = "moved twice"
    for each in reversed(again):
        graph.node.insert(at, each)


def double_softmax(graph: Graph) -> None:
    first = node(graph, "Softmax")
    name = first.output[0]
    first.output[0] = "once"
    graph.node.append(helper.make_node("Softmax", ["once"], [name]))


def training_mode(graph: Graph) -> None:
    """Normalise by the batch at hand, as a graph that was traced for training."""
    after = node(graph, "layer1.0.relu1")
    values = np.ones(16, np.float32), np.zeros(16, np.float32)
    named = [constant(graph, f"bn {i}", values[i in (1, 2)]) for i in range(4)]
    made = helper.make_node(
        "BatchNormalization",
        [after.input[0], *named],
        ["normalised", "mean", "variance"],
        training_mode=1,
    )
    after.input[0] = "normalised"
    graph.node.insert(list(graph.node).index(after), made)


def batch_mean(graph: Graph) -> None:
    """Add the mean of the batch to the features of each image."""
    after = node(graph, "fc")
    pooled = after.input[0]
    graph.node.insert(
        list(graph.node).index(after),
        helper.make_node("ReduceMean", [pooled], ["of batch"], axes=[0]),
    )
    graph.node.insert(
        list(graph.node).index(after),
        helper.make_node("Add", [pooled, "of batch"], ["mixed"]),
    )
    after.input[0] = "mixed"


def chance(graph: Graph) -> None:
    """Leave a trace of dropout."""
    after = node(graph, "fc")
    made = [
        helper.make_node("RandomNormalLike", [after.input[0]], ["noise"], scale=1e-3),
        helper.make_node("Add", [after.input[0], "noise"], ["noisy"]),
    ]
    after.input[0] = "noisy"
    for each in reversed(made):
        graph.node.insert(list(graph.node).index(after), each)


def frozen_batch(graph: Graph) -> None:
    for value in (*graph.input, *graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = 1


def float_pixels(graph: Graph) -> None:
    graph.input[0].type.tensor_type.elem_type = TensorProto.FLOAT


def channels_first(graph: Graph) -> None:
    sides = graph.input[0].type.tensor_type.shape.dim
    sides[1].dim_value, sides[3].dim_value = 3, 32
    before("Cast", "Transpose", perm=[0, 2, 3, 1])(graph)


def other_size(graph: Graph) -> None:
    for axis in (1, 2):
        graph.input[0].type.tensor_type.shape.dim[axis].dim_value = 48


def other_name(graph: Graph) -> None:
    name = graph.output[0].name
    for each in graph.node:
        each.output[:] = ["output_0" if out == name else out for out in each.output]
        each.input[:] = ["output_0" if into == name else into for into in each.input]
    graph.output[0].name = "output_0"


def renamed_input(graph: Graph) -> None:
    """Give the input another name."""
    graph.input[0].name = "input_1"
    for each in graph.node:
        each.input[:] = ["input_1" if name == "image" else name for name in each.input]


def another_domain(graph: Graph) -> None:
    """Put in an operator that only ONNX Runtime has."""
    after = node(graph, "fc")
    made = helper.make_node("Gelu", [after.input[0]], ["bent"], domain="com.microsoft")
    after.input[0] = "bent"
    graph.node.insert(list(graph.node).index(after), made)


def second_input(graph: Graph) -> None:
    graph.input.append(helper.make_tensor_value_info("training", TensorProto.BOOL, []))


def other_logits(graph: Graph) -> None:
    """Give out logits without their bias, but the right probabilities."""
    node(graph, "fc").output[0] = "scores"
    node(graph, "Softmax").input[0] = "scores"
    graph.node.append(helper.make_node("Sub", ["scores", "fc.bias"], ["logits"]))


def weight_as_input(graph: Graph) -> None:
    """Let a caller set a weight, as old converters do."""
    (bias,) = [each for each in graph.initializer if each.name == "fc.bias"]
    value = helper.make_tensor_value_info(bias.name, bias.data_type, list(bias.dims))
    graph.input.append(value)


def stored_twice(graph: Graph) -> None:
    """Store a weight once more, with other numbers: runtimes take either."""
    (bias,) = [each for each in graph.initializer if each.name == "fc.bias"]
    array = -numpy_helper.to_array(bias)
    graph.initializer.append(numpy_helper.from_array(array, bias.name))


def rounded_activations(graph: Graph) -> None:
    """Quantise an activation to int8, where ONNX Runtime is fast with uint8 only."""
    after = node(graph, "layer1.0.conv1")
    scale = constant(graph, "scale", np.array(0.05, np.float32))
    zero = constant(graph, "zero", np.array(0, np.int8))
    made = [
        helper.make_node("QuantizeLinear", [after.input[0], scale, zero], ["steps"]),
        helper.make_node("DequantizeLinear", ["steps", scale, zero], ["rounded"]),
    ]
    after.input[0] = "rounded"
    for each in reversed(made):
        graph.node.insert(list(graph.node).index(after), each)


def flipped_bit(array: Array) -> Array:
    """Flip the highest bit of the largest weight's exponent, as a bad memory does."""
    flat = array.reshape(-1)
    flat.view(np.uint32)[flat.argmax()] ^= 1 << 30
    return array


def scaled(factor: float) -> Callable[[Array], Array]:
    return lambda array: array * np.float32(factor)


def zeroed(array: Array) -> Array:
    array[3] = 0
    return array


def sliced(start: int) -> Callable[[Graph], list[str]]:
    """Inputs of a Slice that leaves out the first rows and columns."""

    def inputs(graph: Graph) -> list[str]:
        return [
            constant(graph, f"slice {name}", np.array(values, np.int64))
            for name, values in (
                ("starts", [start, start]), ("ends", [99, 99]), ("axes", [2, 3]),
            )
        ]  # fmt: skip

    return inputs


def spoilt(model: onnx.ModelProto, change: Change) -> bytes:
    """Return the bytes of a model after a change."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    change(copy.graph)
    if any(each.domain for each in copy.graph.node):
        copy.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    content: bytes = copy.SerializeToString()
    return content
