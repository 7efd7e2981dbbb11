"""Write ONNX files: float32, float16 weights, int8."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from reszoo.console import quiet
from reszoo.errors import ExportError
from reszoo_export.metadata import onnx_properties
from reszoo_export.onnx.graph import assign_tensors, constants, quantize, tidy
from reszoo_export.quantization.grids import round_kernel
from reszoo_export.quantization.integer_model import INSIDE, as_bytes, build_integer_net
from reszoo_export.quantization.ranges import Calibration, choose
from reszoo_export.serving import INPUT, Serving

# 18 breaks the pooling of quantised nets, tf2onnx 1.17 refuses 19 and later.
OPSET = 17
# IR 8 belongs to opset 17 and opens in every runtime since 2022.
IR_VERSION = 8
BATCH = "batch"
_CATCH_ERRORS = "TF2ONNX_CATCH_ERRORS"


def write(serving: Serving, path: Path, calibration: Calibration | None) -> None:
    """Write a float32 file: uint8 pixels in, `logits` and `probabilities` out.

    Args:
        serving: What to write.
        path: The file to make.
        calibration: Not used; floating point needs none.
    """
    write_model(convert(serving), serving, path)


def convert(serving: Serving) -> Any:
    """Return the float32 net as an `onnx.ModelProto`, without its card.

    Nodes and what they give are called as the layers, weights as torchvision calls
    them (`layer1.0.conv1.weight`), with batch normalisation folded into them.

    Args:
        serving: What to convert.
    """
    weights = {
        f"{layer.name}.weight": layer.kernel
        for layer in serving.net.layers
        if hasattr(layer, "kernel")
    }
    model = _converted(serving, weights)
    assign_tensors(model.graph, {name: each.numpy() for name, each in weights.items()})
    tidy(model.graph, {layer.name for layer in serving.net.layers})
    _name_batch(model, serving)
    return model


def write_model(model: Any, serving: Serving, path: Path) -> None:
    """Check a model and write it with its card.

    Args:
        model: An `onnx.ModelProto`, as `convert` makes it; it is changed.
        serving: What it was made from.
        path: The file to make.

    Raises:
        onnx.checker.ValidationError: It is no valid model.
    """
    import onnx

    for opset in [entry for entry in model.opset_import if entry.domain]:
        model.opset_import.remove(opset)  # Declared by converters, never used.
    model.ir_version = IR_VERSION
    model.producer_name, model.producer_version = "reszoo", _version()
    model.graph.name = serving.card.architecture.spec
    model.graph.ClearField("doc_string")  # Names a process-wide counter.
    del model.metadata_props[:]
    for key, value in onnx_properties(serving.card).items():
        model.metadata_props.add(key=key, value=value)
    onnx.checker.check_model(model, full_check=True)
    path.write_bytes(model.SerializeToString(deterministic=True))


def _converted(serving: Serving, weights: dict[str, Any]) -> Any:
    """Convert with the large weights as further inputs.

    As constants they would be copied by every step of TensorFlow's freezing and by
    every pass of tf2onnx's optimizers, which is most of the time of a conversion.
    """
    import keras
    import tensorflow as tf

    names = serving.outputs(["logits", "probabilities"])
    answer = serving.function(*names).python_function

    def stateless(image: Any, *values: Any) -> Any:
        with keras.StatelessScope(zip(weights.values(), values, strict=True)):
            return answer(image)

    image = serving.spec(serving.batch(None), tf.uint8)
    channels_first = serving.options.layout == "nchw"
    specs = [tf.TensorSpec(each.shape, name=name) for name, each in weights.items()]
    with quiet(), _without_safety_copies():
        import tf2onnx

        model, _ = tf2onnx.convert.from_function(
            tf.function(stateless, autograph=False),
            input_signature=[image, *specs],
            opset=OPSET,
            inputs_as_nchw=[f"{INPUT}:0"] if channels_first else None,
        )
    return model


@contextmanager
def _without_safety_copies() -> Iterator[None]:
    """Keep tf2onnx from copying the whole graph before every optimizer's pass.

    It does so to go on when a pass fails (tf2onnx 1.17, `optimizer.optimize_graph`);
    we prefer the error, and the time.
    """
    before = os.environ.get(_CATCH_ERRORS)
    os.environ[_CATCH_ERRORS] = "FALSE"
    try:
        yield
    finally:
        if before is None:
            del os.environ[_CATCH_ERRORS]
        else:
            os.environ[_CATCH_ERRORS] = before


def _name_batch(model: Any, serving: Serving) -> None:
    """Call the first axis of inputs and outputs `batch` where it is open."""
    if serving.batch(None) is None:
        for value in (*model.graph.input, *model.graph.output):
            axis = value.type.tensor_type.shape.dim[0]
            axis.ClearField("dim_value")
            axis.dim_param = BATCH
    # What the converter inferred inside names the axis otherwise.
    del model.graph.value_info[:]


def _version() -> str:
    import reszoo

    return reszoo.__version__


_WITH_KERNEL = ("Conv", "Gemm")


def write_fp16(serving: Serving, path: Path, calibration: Calibration | None) -> None:
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


def write_int8(serving: Serving, path: Path, calibration: Calibration | None) -> None:
    """Write an int8 file: uint8 pixels in, float32 answers out, as the float file.

    Args:
        serving: What to write.
        path: The file to make.
        calibration: Images that set and judge the ranges of the activations.
    """
    if calibration is None:
        raise ExportError("onnx-int8 needs calibration images, and there are none.")
    chosen = choose(serving.net, serving.card.preprocessing, calibration)
    net = build_integer_net(serving.net, chosen.narrow_weights, {})
    model = convert(as_bytes(serving, net))
    quantize(model.graph, chosen.narrow_steps, chosen.inner_ranges, INSIDE)
    write_model(model, serving, path)
