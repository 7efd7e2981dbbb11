"""Write ONNX files: float32, float16 weights, int8."""

import tempfile
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import NDArray
from onnx import TensorProto, checker, helper, numpy_helper

from reszoo import __version__
from reszoo.console import quiet
from reszoo.preprocessing import Pixels
from reszoo_export.formats import CAM, ONNX
from reszoo_export.onnx import reader
from reszoo_export.onnx.graph import add_maps, assign_tensors, constants, quantize, tidy
from reszoo_export.quantization import integer_model, ranges
from reszoo_export.quantization.grids import round_kernel
from reszoo_export.quantization.integer_model import Ranges
from reszoo_export.quantization.ranges import Calibration
from reszoo_export.serving import INPUT, Serving

_BATCH = "batch"
# Operators with weights; the others lose more by rounding than they gain in time.
WEIGHTED = ("Conv", "Gemm", "MatMul")


def write(serving: Serving, path: Path) -> None:
    """Write a float32 file: uint8 pixels in, `logits` and `probabilities` out."""
    write_model(convert(serving), serving, path)


def write_fp16(serving: Serving, path: Path) -> None:
    """Write a file with float16 kernels: uint8 pixels in, float32 outputs."""
    model = convert(serving)
    round_kernels(model.graph)
    write_model(model, serving, path)


def write_int8(serving: Serving, path: Path, calibration: Calibration) -> None:
    """Write an int8 file: uint8 pixels in, float32 outputs, as in the float32 file."""
    if serving.is_traced:
        ranges.write_best(serving, calibration, path, _quantized(serving, calibration))
        return
    choice = ranges.choose(serving, calibration)
    takes_bytes = integer_model.build_integer_model(
        serving.model, choice.narrow_weights, {}
    )
    model = convert(integer_model.as_bytes(serving, takes_bytes))
    quantize(
        model.graph, choice.narrow_steps, choice.inner_ranges, integer_model.INSIDE
    )
    write_model(model, serving, path)


def _quantized(
    serving: Serving, calibration: Calibration
) -> Iterator[tuple[str, Callable[[Path], None]]]:
    """Yield what ONNX Runtime's quantizer makes of a model of unknown structure."""
    model, options = convert(serving), serving.options
    dtype, count = options.input_dtype or "uint8", serving.batch(ONNX.batch) or 1
    axes = (0, 3, 1, 2) if options.layout == "nchw" else (0, 1, 2, 3)
    batches = (
        np.repeat(image[None].transpose(axes), count, axis=0).astype(dtype)
        for image in calibration.images
    )
    extremes = find_extremes(model, batches)
    for kinds, shares in ((None, ranges.SHARES), (WEIGHTED, ranges.SHARES[:2])):
        for share in shares:
            made = quantized(model, ranges.ranges_of(extremes, share), kinds)
            where = "all operators" if kinds is None else "operators with weights"
            method = f"ONNX Runtime, {where}, ranges of {share:.0%} of the images"
            yield method, partial(write_model, made, serving)


def convert(serving: Serving) -> Any:
    """Return the float32 model as an `onnx.ModelProto`, without its card.

    Nodes and their outputs are named after the layers, weights as in torchvision
    (`layer1.0.conv1.weight`), with batch normalisation folded into them.
    """
    # Of a model that is traced, the converter folds what batch normalisation computes
    # from its weights, so that they must be constants.
    known = [] if serving.is_traced else serving.model.layers
    weights = {f"{x.name}.weight": x.kernel for x in known if hasattr(x, "kernel")}
    model = _converted(serving, weights)
    assign_tensors(model.graph, {name: each.numpy() for name, each in weights.items()})
    names = {layer.name for layer in serving.model.layers}
    tidy(model.graph, names, merge=not serving.is_traced)
    if serving.batch(ONNX.batch) is None:
        for value in (*model.graph.input, *model.graph.output):
            axis = value.type.tensor_type.shape.dim[0]
            axis.ClearField("dim_value")
            axis.dim_param = _BATCH
    # The converter's inferred shapes name the axis otherwise.
    del model.graph.value_info[:]
    return model


def _converted(serving: Serving, weights: dict[str, Any]) -> Any:
    """Convert with the large weights as further inputs.

    As constants they would be copied by every step of TensorFlow's freezing and by
    every pass of tf2onnx's optimizers, which is most of the time of a conversion.
    """
    # Maps are added to the finished graph, with its own weights.
    names = [each for each in serving.options.names(ONNX) if each != CAM]
    answer = serving.function(*names).python_function
    options = serving.options

    def stateless(image: Any, *values: Any) -> Any:
        with keras.StatelessScope(zip(weights.values(), values, strict=True)):
            return answer(image)

    dtype = tf.as_dtype(options.input_dtype or "uint8")
    image = serving.spec(serving.batch(ONNX.batch), dtype)
    specs = [tf.TensorSpec(each.shape, name=name) for name, each in weights.items()]
    # Otherwise tf2onnx copies the graph before every optimizer's pass, to continue
    # when one fails (1.17, `optimizer.optimize_graph`); an error is better, and faster.
    with quiet(), reader.environment_variable("TF2ONNX_CATCH_ERRORS", "FALSE"):
        import tf2onnx

        model, _ = tf2onnx.convert.from_function(
            tf.function(stateless, autograph=False),
            input_signature=[image, *specs],
            opset=options.opset or reader.OPSET,
            inputs_as_nchw=[f"{INPUT}:0"] if options.layout == "nchw" else None,
            custom_op_handlers={"Erfc": (_write_erfc, [])},
        )
    return model


def _write_erfc(context: Any, node: Any, name: str, arguments: Any) -> None:
    """Write 1 - erf(x) for erfc(x) in Keras' GELU, which tf2onnx 1.17 does not know."""
    output = node.output[0]
    dtypes, shapes = [context.get_dtype(output)], [context.get_shape(output)]
    context.remove_node(name)
    one = context.make_const(f"{name}_one", np.ones((), np.float32))
    options = {"dtypes": dtypes, "shapes": shapes}
    erf = context.make_node("Erf", node.input, **options)
    inputs = [one.output[0], erf.output[0]]
    context.make_node("Sub", inputs, name=name, outputs=[output], **options)


def write_model(model: Any, serving: Serving, path: Path) -> None:
    """Check a model, as `convert` makes it, and write it with its card."""
    if serving.options.outputs == CAM:
        pool, head = map(serving.model.get_layer, ("avgpool", "fc"))
        sides = (serving.batch(ONNX.batch) or _BATCH, *pool.input.shape[1:3])
        add_maps(model.graph, head.kernel.shape, sides)
    for opset in [entry for entry in model.opset_import if entry.domain]:
        model.opset_import.remove(opset)  # Declared by converters, never used.
    model.ir_version = reader.ir_version(serving.options.opset or reader.OPSET)
    model.producer_name, model.producer_version = "reszoo", __version__
    model.graph.name = serving.card.architecture.name
    model.graph.ClearField("doc_string")  # Names a process-wide counter.
    del model.metadata_props[:]
    for key, value in reader.properties(serving.card).items():
        model.metadata_props.add(key=key, value=value)
    checker.check_model(model, full_check=True)
    path.write_bytes(model.SerializeToString(deterministic=True))


def round_kernels(graph: Any) -> None:
    """Round the kernels of a float32 graph to float16, each followed by a Cast.

    Runtimes cast them once, when they load the file, and compute in float32. With
    float16 arithmetic, biases and activations would be rounded as well: a trained
    ResNet-20 then changes probabilities by up to 0.0035, and ONNX Runtime on a CPU,
    which skips such rounding, could not show by how much a GPU does.

    An ExportError if a weight is too large for float16.
    """
    known, nodes = constants(graph), []
    for node in list(graph.node):
        # A product may also be one of two activations, or share its constant.
        tensor = known.get(node.input[1]) if node.op_type in WEIGHTED else None
        if tensor is not None and len(tensor.dims) in (2, 4):
            wide = node.input[1] = f"{tensor.name}.float32"
            if tensor.data_type == TensorProto.FLOAT:
                rounded = _rounded(numpy_helper.to_array(tensor))
                tensor.CopyFrom(numpy_helper.from_array(rounded, tensor.name))
                names = [tensor.name], [wide], wide
                nodes.append(helper.make_node("Cast", *names, to=TensorProto.FLOAT))
        nodes.append(node)
    del graph.node[:]
    graph.node.extend(nodes)


def _rounded(weights: NDArray[np.float32]) -> NDArray[np.float16]:
    """Round `(outputs, inputs, height, width)`, or a classifier `(inputs, outputs)`."""
    if weights.ndim == 2:
        return np.ascontiguousarray(round_kernel(weights.T[:, None])[:, 0].T)
    outputs, inputs, *sides = weights.shape
    taps = weights.reshape(outputs, inputs, -1).transpose(0, 2, 1)
    return round_kernel(taps).transpose(0, 2, 1).reshape(outputs, inputs, *sides)


# Least and largest value in each image `(n, 2)`, by tensor.
Extremes = dict[str, NDArray[np.float32]]
# They lead from the classifier to the scores.
_AFTER_HEAD = (
    "Add", "Concat", "Flatten", "Identity", "Pad", "Reshape", "Sigmoid", "Softmax",
    "Squeeze", "Transpose",
)  # fmt: skip


def find_extremes(model: Any, batches: Iterable[Pixels]) -> Extremes:
    """Measure the activations of a float32 model on batches as it takes them."""
    found: dict[str, list[tuple[float, float]]] = {}
    with tempfile.TemporaryDirectory(prefix="reszoo-") as folder:
        path = Path(folder) / "model.onnx"
        path.write_bytes(model.SerializeToString())
        read = reader.activation_reader(path)
        for batch in batches:
            for name, array in read(batch).items():
                ends = (float(array.min()), float(array.max()))
                found.setdefault(name, []).append(ends)
    return {name: np.array(ends, np.float32) for name, ends in found.items()}


def quantized(model: Any, spans: Ranges, kinds: Iterable[str] | None) -> Any:
    """Return a model in integers: uint8 activations, int8 weights for each channel.

    Weights have 7 bits, so that two products fit 16 bits on processors without VNNI.
    The classifier stays in float32, as in files of our own models; so do operators that
    are not of `kinds` (None: all that can be quantized).
    """
    with quiet():
        from onnxruntime.quantization import CalibrationMethod, QuantType, quant_utils
        from onnxruntime.quantization.calibrate import TensorsData
        from onnxruntime.quantization.qdq_quantizer import QDQQuantizer
        from onnxruntime.quantization.registry import QDQRegistry, QLinearOpsRegistry

        ends = {name: tuple(map(np.float32, span)) for name, span in spans.items()}
        quantizer = QDQQuantizer(
            quant_utils.save_and_reload_model_with_shape_infer(model),
            per_channel=True, reduce_range=True,
            weight_qType=QuantType.QInt8, activation_qType=QuantType.QUInt8,
            tensors_range=TensorsData(CalibrationMethod.MinMax, ends),
            nodes_to_quantize=[], nodes_to_exclude=_head(model.graph),
            op_types_to_quantize=sorted(kinds or {*QDQRegistry, *QLinearOpsRegistry}),
            extra_options={"QDQOpTypePerChannelSupportToAxis": {"MatMul": 1}},
        )  # fmt: skip
        quantizer.quantize_model()
        quantizer.model.topological_sort()
    made = quantizer.model.model
    # The shapes that were inferred name the batch otherwise.
    del made.graph.value_info[:]
    return made


def _head(graph: Any) -> list[str]:
    """Name the nodes from the classifier on, and those before the first weights."""
    makers, names = reader.makers(graph), []
    for output in graph.output:
        node = makers.get(output.name)
        while node is not None:
            names.append(node.name)
            if node.op_type not in _AFTER_HEAD:
                break
            node = next((makers[each] for each in node.input if each in makers), None)
    for node in graph.node:
        if node.op_type in WEIGHTED:
            break
        names.append(node.name)
    return names
