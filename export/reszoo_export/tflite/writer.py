"""Write TFLite files: float32, float16, dynamic ranges, int8, int16x8."""

import tempfile
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from ai_edge_litert import schema_py_generated as schema
from numpy.typing import NDArray

from reszoo.console import quiet
from reszoo.preprocessing import Pixels
from reszoo_export.formats import CAM, TFLITE
from reszoo_export.quantization import ranges
from reszoo_export.quantization.grids import round_kernel
from reszoo_export.quantization.integer_model import as_bytes, build_integer_model
from reszoo_export.quantization.ranges import Calibration
from reszoo_export.runtimes import in_batches
from reszoo_export.saved_model.writer import save
from reszoo_export.serving import Serving
from reszoo_export.tflite import flatbuffer

# Shares of the images that set ranges, of models of unknown structure.
_SHARES = (1.0, 0.9, 0.7)
# Of int16x8: every fourth calibration image is given once more, at this contrast.
_EVERY, _CONTRAST = 4, 8
_BATCH = 25
_OPS, _OPERATORS, _TYPES = tf.lite.OpsSet, schema.BuiltinOperator, schema.TensorType
_WITH_KERNEL = (_OPERATORS.CONV_2D, _OPERATORS.FULLY_CONNECTED)
_ENDS = (_OPERATORS.SOFTMAX, _OPERATORS.LOGISTIC)
_QUANTIZED: dict[str, Any] = {"optimizations": [tf.lite.Optimize.DEFAULT]}
# The first version of DEQUANTIZE that supports float16 (`register.cc`).
_DEQUANTIZE_VERSION = 3


def write(serving: Serving, path: Path) -> None:
    """Write a float32 file: float32 pixels in 0..255 in, probabilities out."""
    write_model(convert(serving), serving, path)


def write_fp16(serving: Serving, path: Path) -> None:
    """Write a file of half the size: kernels in float16, everything else in float32.

    GPU delegates compute in float16 anyway; a CPU converts the weights to float32 when
    it loads the file, and is as fast as with float32. An ExportError if a weight is too
    large for float16.
    """
    write_model(float16_kernels(convert(serving)), serving, path)


def write_dynamic(serving: Serving, path: Path) -> None:
    """Write a file of a quarter of the size: int8 weights, float32 input and output.

    The ranges of activations are measured at run time, image by image.
    """
    write_model(convert(serving, **_QUANTIZED), serving, path)


def write_int8(serving: Serving, path: Path, calibration: Calibration) -> None:
    """Write an int8 file: uint8 pixels in, float32 probabilities out.

    Classifier and softmax are computed in float32: in integers they would round to
    steps of 1/256 and produce ties. With `integer_io` they are integers as well, and
    pixels and probabilities are of its dtype, for devices without floating point.
    """
    if serving.is_traced:
        ranges.write_best(serving, calibration, path, _quantized(serving, calibration))
        return
    choice = ranges.choose(serving, calibration)
    spans = choice.ranges if serving.options.integer_io else choice.inner_ranges
    integers = build_integer_model(serving.model, choice.weights, spans)
    content = convert(as_bytes(serving, integers), **_QUANTIZED, **_dtypes(serving))
    write_model(content, serving, path)


def _quantized(
    serving: Serving, calibration: Calibration
) -> Iterator[tuple[str, Callable[[Path], None]]]:
    """Yield what the converter's quantizer makes of a model of unknown structure."""
    batch, integer_io = serving.batch(TFLITE.batch) or 1, serving.options.integer_io
    # Float32 where there is no integer kernel, unless all must be integers.
    kinds = [_OPS.TFLITE_BUILTINS_INT8, _OPS.TFLITE_BUILTINS][: 1 if integer_io else 2]
    for share in _SHARES:
        chosen = typical_images(serving, calibration, share)
        options = {**_QUANTIZED, **_dtypes(serving)}
        options["representative_dataset"] = partial(samples, calibration, chosen, batch)
        content = convert(serving, kinds, **options)
        if not integer_io:
            content = end_in_float(content)
        method = f"TFLite's converter, ranges of {share:.0%} of the images"
        yield method, partial(write_model, content, serving)


def write_int16x8(serving: Serving, path: Path, calibration: Calibration) -> None:
    """Write a file with int8 weights, int16 activations, float32 input and output.

    Its outputs are nearly those of float32. LiteRT computes it with reference kernels:
    it is meant for accelerators and signal processors.
    """
    kind = _OPS.EXPERIMENTAL_TFLITE_BUILTINS_ACTIVATIONS_INT16_WEIGHTS_INT8
    shown = partial(_samples16, calibration, serving.options.outputs == CAM)
    options = _QUANTIZED | {"representative_dataset": shown}
    write_model(convert(serving, [kind], **options), serving, path)


def _samples16(calibration: Calibration, wide: bool) -> Iterator[dict[str, Pixels]]:
    """Yield images, some of them once more at a high contrast.

    Ranges of int16 may be many times too wide before rounding shows, but activations
    outside of them are clipped. More images would only take time. If `wide`, contrast
    goes beyond black and white.
    """
    ends = (-np.inf, np.inf) if wide else (0, 255)
    for index, image in enumerate(islice(calibration.batches(), ranges.MIN_IMAGES)):
        yield {"image": image}
        if index % _EVERY == 0:
            yield {"image": np.clip(128 + _CONTRAST * (image - 128), *ends)}


def _dtypes(serving: Serving) -> dict[str, tf.DType]:
    integer_io = serving.options.integer_io
    return {
        "inference_input_type": tf.as_dtype(integer_io or "uint8"),
        "inference_output_type": tf.as_dtype(integer_io or "float32"),
    }


def convert(
    serving: Serving, kinds: Sequence[Any] = (_OPS.TFLITE_BUILTINS,), **options: Any
) -> bytes:
    """Return the model as a FlatBuffer, without its card.

    Input `image` is float32 in 0..255, unless an option of the converter changes that.
    By default it has what every LiteRT runtime has: no Flex operators.
    """
    # A fixed batch, and no -1 in any shape: delegates refuse open shapes.
    function = serving.function(
        *serving.options.names(TFLITE), batch=serving.batch(TFLITE.batch),
        dtype=tf.float32, by_maps=bool(options),
    )  # fmt: skip
    # By way of a SavedModel: the converter makes one itself where it is given a
    # function, and loses the signature where that fails.
    with tempfile.TemporaryDirectory() as folder, quiet():
        save(serving, {"serving_default": function}, Path(folder))
        converter = tf.lite.TFLiteConverter.from_saved_model(
            folder, signature_keys=["serving_default"]
        )
        converter.target_spec.supported_ops = kinds
        # Versions of the converter and a hash, for which it parses the file again.
        converter.exclude_conversion_metadata = True
        vars(converter).update(options)
        content: bytes = bytes(converter.convert())
    return content


def write_model(content: bytes, serving: Serving, path: Path) -> None:
    """Write a converted model with its card."""
    path.write_bytes(flatbuffer.with_card(content, serving.card))


def float16_kernels(content: bytes) -> bytes:
    """Return a model with float16 kernels, each converted to float32 by a DEQUANTIZE.

    Runtimes convert them once, when they load the file. It is a float32 model of one
    subgraph, as the converter made it. An ExportError if a weight is too large for
    float16.
    """
    model = schema.ModelT.InitFromPackedBuf(content)
    (graph,) = model.subgraphs
    kernels = _kernels(model, graph)
    # Equal tensors may share a buffer: all are read before any is written.
    rounded = [_float16(model, graph.tensors[kernel]) for kernel in kernels]
    float32 = {kernel: _add_float32(graph, kernel) for kernel in kernels}
    for operator in graph.operators:
        operator.inputs = _indices(
            *(float32.get(each, each) for each in operator.inputs)
        )
    for kernel, data in zip(kernels, rounded, strict=True):
        tensor = graph.tensors[kernel]
        tensor.type, model.buffers[tensor.buffer].data = _TYPES.FLOAT16, data
    code = len(model.operatorCodes)
    conversions = [
        schema.OperatorT(code, _indices(kernel), _indices(wide))
        for kernel, wide in float32.items()
    ]
    dequantize = schema.OperatorCodeT(
        _OPERATORS.DEQUANTIZE, version=_DEQUANTIZE_VERSION
    )
    dequantize.builtinCode = _OPERATORS.DEQUANTIZE
    model.operatorCodes.append(dequantize)
    graph.operators = [*conversions, *graph.operators]
    return flatbuffer.packed(model)


def _kernels(model: Any, graph: Any) -> list[int]:
    """Return the tensors that are kernels, each once, in order of use."""
    codes = [each.builtinCode for each in model.operatorCodes]
    users = [x for x in graph.operators if codes[x.opcodeIndex] in _WITH_KERNEL]
    found = [int(each.inputs[1]) for each in users]
    # A product may also be one of two activations, which have no data.
    buffers = {each: model.buffers[graph.tensors[each].buffer] for each in found}
    return [each for each, buffer in buffers.items() if buffer.data is not None]


def _add_float32(graph: Any, index: int) -> int:
    """Add a float32 tensor without data, like another one; return its index."""
    like = graph.tensors[index]
    wide = schema.TensorT(like.shape, _TYPES.FLOAT32, name=like.name + b"_float32")
    wide.shapeSignature, wide.hasRank = like.shapeSignature, like.hasRank
    graph.tensors.append(wide)
    return len(graph.tensors) - 1


def _indices(*tensors: int) -> NDArray[np.int32]:
    return np.array(tensors, np.int32)


def _float16(model: Any, kernel: Any) -> NDArray[np.uint8]:
    weights = np.frombuffer(model.buffers[kernel.buffer].data.tobytes(), "<f4")
    rounded = round_kernel(weights.reshape(kernel.shape[0], -1, kernel.shape[-1]))
    return np.frombuffer(rounded.astype("<f2").tobytes(), np.uint8)


def samples(
    calibration: Calibration, chosen: NDArray[np.int64], batch: int
) -> Iterator[dict[str, Any]]:
    """Yield what the converter runs to find ranges."""
    for pixels in calibration.batches(chosen):
        yield {"image": np.repeat(pixels, batch, axis=0)}


def typical_images(
    serving: Serving, calibration: Calibration, share: float
) -> NDArray[np.int64]:
    """Choose the images whose activations are not the most extreme of all.

    The converter takes the least and the largest value of all images, and has no
    percentiles: leaving images out has that effect. Returns the indices of the share of
    the calibration images that is kept, ascending.
    """
    once = (each for each in serving.model.layers[1:] if len(each._inbound_nodes) == 1)
    layers = [each.output for each in once if hasattr(each.output, "shape")]
    inner = keras.Model(serving.model.input, layers)
    normalise = serving.card.preprocessing.normalise

    def measure(images: Pixels) -> NDArray[Any]:
        arrays = inner(normalise(images.astype(np.float32)), training=False)
        flat = [np.asarray(each).reshape(len(images), -1) for each in arrays]
        return np.stack([np.abs(each).max(1) for each in flat], 1)

    largest = in_batches(measure, calibration.images, _BATCH)
    # In how many layers an image is beyond nearly all others.
    extreme = (largest > np.quantile(largest, 1 - (1 - share) / 2, axis=0)).sum(1)
    kept = np.argsort(extreme, kind="stable")[: int(len(extreme) * share)]
    return np.sort(kept)


def end_in_float(content: bytes) -> bytes:
    """Compute the last softmax or sigmoid of an int8 file in float32.

    In integers it would round probabilities to steps of 1/256 and produce ties. Where
    the model ends in that operator and a DEQUANTIZE, the two change places.
    """
    model = schema.ModelT.InitFromPackedBuf(content)
    graph, codes = model.subgraphs[0], model.operatorCodes
    kinds = [codes[each.opcodeIndex].builtinCode for each in graph.operators]
    if len(kinds) < 2 or kinds[-2] not in _ENDS or kinds[-1] != _OPERATORS.DEQUANTIZE:
        return content
    activation, dequantize = graph.operators[-2:]
    if list(dequantize.inputs) != list(activation.outputs):
        return content
    place = _indices(_add_float32(graph, activation.inputs[0]))
    dequantize.inputs, activation.inputs = activation.inputs, place
    activation.outputs, dequantize.outputs = dequantize.outputs, place
    graph.operators[-2:] = [dequantize, activation]
    return flatbuffer.packed(model)
