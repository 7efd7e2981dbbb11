"""Plant defects in ONNX files: in the graph, its constants and properties.

Kernels are OIHW.
"""

import json
from collections.abc import Callable
from typing import Any

import defect_arrays as arrays
import numpy as np
import onnx
from defects import (
    attribute,
    before,
    constant,
    node,
    skip,
    spoilt,
    weights,
)
from onnx import TensorProto, helper, numpy_helper
from planting import (
    Edit,
    Export,
    first_two_swapped,
)

FLOAT, INT8 = "onnx", "onnx-int8"
CARD, LABELS = "reszoo_card", "labels"
# The last convolutions, the strided one, the first; one with as many inputs as outputs.
LAST, BEFORE, STRIDED, STEM = (
    "layer2.1.conv2",
    "layer2.1.conv1",
    "layer2.0.conv1",
    "conv1",
)
BLOCK, SUM, POOL = "layer1.1.conv1", "layer2.1.add", "GlobalAveragePool"
Change = Callable[[Any], object]  # of a graph


def of_model(change: Change) -> Edit:
    """Change a whole model."""

    def edit(export: Export) -> None:
        model = onnx.load(export.path)
        change(model)
        export.path.write_bytes(model.SerializeToString())

    return edit


def of_graph(change: Change) -> Edit:
    """Change a model's graph; operators of Microsoft's domain are declared."""

    def edit(export: Export) -> None:
        export.path.write_bytes(spoilt(onnx.load(export.path), change))

    return edit


def kernel(change: arrays.Change, name: str = LAST) -> Change:
    """Change a kernel."""
    return weights(f"{name}.weight", change)


def bias(change: arrays.Change, name: str = LAST) -> Change:
    """Change a bias."""
    return weights(f"{name}.bias", change)


def all_weights(change: arrays.Change) -> Change:
    """Change every kernel and the classifier's matrix."""

    def edit(graph: Any) -> None:
        for name in [each.name for each in graph.initializer]:
            if name.endswith(".weight"):
                weights(name, change)(graph)

    return edit


def tensor(graph: Any, name: str) -> Any:
    """Return a constant."""
    (found,) = [each for each in graph.initializer if each.name == name]
    return found


def replaced(name: str, kind: str, **attributes: Any) -> Change:
    """Put another operator in the place of one, with the same first input."""

    def edit(graph: Any) -> None:
        old = node(graph, name)
        made = helper.make_node(kind, [old.input[0]], list(old.output), **attributes)
        graph.node.insert(list(graph.node).index(old), made)
        graph.node.remove(old)

    return edit


def clipped(graph: Any) -> None:
    """Make ReLU6 of a ReLU."""
    old = node(graph, "layer2.1.relu1")
    limits = [constant(graph, f"limit {v}", np.array(v, "f4")) for v in (0, 6)]
    made = helper.make_node("Clip", [old.input[0], *limits], list(old.output))
    graph.node.insert(list(graph.node).index(old), made)
    graph.node.remove(old)


def reads(name: str, place: int, source: str) -> Change:
    """Let an operator read another tensor."""

    def edit(graph: Any) -> None:
        node(graph, name).input[place] = source

    return edit


def without_input(name: str, count: int) -> Change:
    """Leave out the last inputs of an operator."""

    def edit(graph: Any) -> None:
        del node(graph, name).input[count:]

    return edit


def exchanged(graph: Any) -> None:
    """Exchange two kernels of one shape."""
    one, other = tensor(graph, f"{LAST}.weight"), tensor(graph, f"{BEFORE}.weight")
    one.name, other.name = other.name, one.name


def grouped(graph: Any) -> None:
    """Make two groups of a convolution."""
    kernel(lambda w: w[:, : w.shape[1] // 2])(graph)
    attribute(LAST, "group", 2)(graph)


def reshaped(graph: Any) -> None:
    """Reinterpret NHWC as NCHW."""
    old = node(graph, "Transpose")
    shape = constant(graph, "nchw", np.array([0, 3, 64, 64], np.int64))
    made = helper.make_node("Reshape", [old.input[0], shape], list(old.output))
    graph.node.insert(list(graph.node).index(old), made)
    graph.node.remove(old)


def fixed_reshape(graph: Any) -> None:
    """Reshape to a batch of one before the classifier."""
    before(
        "fc",
        "Reshape",
        extra=lambda g: [constant(g, "one", np.array([1, -1], np.int64))],
    )(graph)


def gathered(order: tuple[int, ...]) -> Change:
    """Take the channels of the input in another order."""
    return before(
        "Cast",
        "Gather",
        axis=3,
        extra=lambda g: [constant(g, "order", np.array(order, np.int64))],
    )


def dropped_out(graph: Any) -> None:
    """Leave a dropout in training mode in front of the classifier."""

    def inputs(inner: Any) -> list[str]:
        return [
            constant(inner, "ratio", np.array(0.2, "f4")),
            constant(inner, "training", np.array(True)),
        ]

    before("fc", "Dropout", extra=inputs)(graph)


def external(graph: Any) -> None:
    """Refer to a file of weights that is not there."""
    old = tensor(graph, f"{LAST}.weight")
    old.ClearField("raw_data")
    old.data_location = TensorProto.EXTERNAL
    old.external_data.add(key="location", value="model.onnx.data")


def shortened(graph: Any) -> None:
    """Cut off the end of a kernel."""
    old = tensor(graph, f"{LAST}.weight")
    old.raw_data = old.raw_data[:-64]


def written_twice(graph: Any) -> None:
    """Let two operators write one tensor."""
    graph.node.append(
        helper.make_node("Relu", ["fc.bias"], [node(graph, LAST).output[0]])
    )


def outputs_more(graph: Any) -> None:
    """Make an inner tensor an output."""
    graph.output.append(
        helper.make_tensor_value_info("avgpool", TensorProto.FLOAT, ["batch", 32])
    )


def outputs_less(graph: Any) -> None:
    """Lose the output of the logits."""
    (lost,) = [each for each in graph.output if each.name == "logits"]
    graph.output.remove(lost)


def outputs_named_over(graph: Any) -> None:
    """Give the logits out as probabilities."""
    skip("Softmax")(graph)
    graph.node.append(helper.make_node("Identity", ["logits"], ["probabilities"]))


def dimension(side: str, axis: int, value: int | str) -> Change:
    """Declare another side of the input or of every output."""

    def edit(graph: Any) -> None:
        for each in getattr(graph, side):
            dim = each.type.tensor_type.shape.dim[axis]
            dim.Clear()
            setattr(dim, "dim_param" if isinstance(value, str) else "dim_value", value)

    return edit


def opset(version: int, domain: str = "") -> Change:
    """Declare another version of the operators."""

    def edit(model: Any) -> None:
        if domain:
            model.opset_import.append(helper.make_opsetid(domain, version))
        else:
            model.opset_import[0].version = version

    return edit


def field(name: str, value: Any) -> Change:
    """Change a field of the model."""
    return lambda model: setattr(model, name, value)


def text(key: str, change: Callable[[str], str]) -> Edit:
    """Change a property of the model."""

    def edit(model: Any) -> None:
        (entry,) = [each for each in model.metadata_props if each.key == key]
        entry.value = change(entry.value)

    return of_model(edit)


def labels(change: Callable[[list[str]], list[str]]) -> Edit:
    """Change the labels for other programs."""
    return text(LABELS, lambda value: json.dumps(change(json.loads(value))))


def card(change: Callable[[Any], None]) -> Edit:
    """Change the card in the file."""

    def edit(value: str) -> str:
        content = json.loads(value)
        change(content)
        return json.dumps(content)

    return text(CARD, edit)


def in_record(**fields: Any) -> Edit:
    """Put other values into the preprocessing of the card in the file."""
    return card(lambda content: content["preprocessing"].update(fields))


def without_properties(*keys: str) -> Edit:
    """Remove properties."""

    def edit(model: Any) -> None:
        kept = [each for each in model.metadata_props if each.key not in keys]
        del model.metadata_props[:]
        model.metadata_props.extend(kept)

    return of_model(edit)


def second_property(model: Any) -> None:
    """Store the labels twice, in another order the second time."""
    (entry,) = [each for each in model.metadata_props if each.key == LABELS]
    swapped = first_two_swapped(json.loads(entry.value))
    model.metadata_props.add(key=LABELS, value=json.dumps(swapped))


def own_constant(name: str, place: int, change: arrays.Change) -> Change:
    """Give an operator a changed copy of a constant that others use as well."""

    def edit(graph: Any) -> None:
        operator = node(graph, name)
        old = numpy_helper.to_array(tensor(graph, operator.input[place])).copy()
        operator.input[place] = constant(
            graph, "planted", np.ascontiguousarray(change(old))
        )

    return edit


def unquantized(graph: Any) -> None:
    """Leave out the rounding of an activation."""
    skip("layer1.1.relu1.rounded")(graph)
    skip("layer1.1.relu1.quantized")(graph)
    before("layer1.1.conv2", "Relu")(graph)


def same_lower(graph: Any) -> None:
    """Pad a strided convolution automatically."""
    for each in list(node(graph, STRIDED).attribute):
        if each.name == "pads":
            node(graph, STRIDED).attribute.remove(each)
    attribute(STRIDED, "auto_pad", "SAME_UPPER")(graph)
