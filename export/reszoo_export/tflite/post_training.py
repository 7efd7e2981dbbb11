"""What TFLite's own quantizer needs, for models whose structure is not known."""

from collections.abc import Iterator
from typing import Any

import flatbuffers
import keras
import numpy as np
from ai_edge_litert import schema_py_generated as schema
from numpy.typing import NDArray

from reszoo_export.quantization.ranges import Calibration
from reszoo_export.serving import Serving
from reszoo_export.tflite.flatbuffer import FILE_IDENTIFIER

_BATCH = 25
_OPERATORS = schema.BuiltinOperator
_ENDS = (_OPERATORS.SOFTMAX, _OPERATORS.LOGISTIC)


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
    percentiles: leaving images out has that effect.

    Args:
        serving: The model.
        calibration: Images to choose from.
        share: Of the images that are kept.

    Returns:
        Indices of images, ascending.
    """
    layers = [
        layer.output
        for layer in serving.model.layers[1:]
        if len(layer._inbound_nodes) == 1 and hasattr(layer.output, "shape")
    ]
    inner = keras.Model(serving.model.input, layers)
    normalise, ends = serving.card.preprocessing.normalise, []
    for at in range(0, len(calibration.images), _BATCH):
        pixels = calibration.images[at : at + _BATCH].astype(np.float32)
        arrays = inner(normalise(pixels), training=False)
        flat = [np.asarray(each).reshape(len(pixels), -1) for each in arrays]
        ends.append(np.stack([np.abs(each).max(1) for each in flat], 1))
    largest = np.concatenate(ends)
    # In how many layers an image is beyond nearly all others.
    extreme = (largest > np.quantile(largest, 1 - (1 - share) / 2, axis=0)).sum(1)
    kept = np.argsort(extreme, kind="stable")[: int(len(extreme) * share)]
    return np.sort(kept)


def end_in_float(content: bytes) -> bytes:
    """Compute the last softmax or sigmoid of an int8 file in float32.

    In integers it would round probabilities to steps of 1/256 and produce ties.

    Args:
        content: As the converter made it, with float32 outputs.

    Returns:
        The same with the last DEQUANTIZE before that operator, if it ends in both.
    """
    model = schema.ModelT.InitFromPackedBuf(content)
    graph = model.subgraphs[0]
    kinds = [
        model.operatorCodes[each.opcodeIndex].builtinCode for each in graph.operators
    ]
    if len(kinds) < 2 or kinds[-2] not in _ENDS or kinds[-1] != _OPERATORS.DEQUANTIZE:
        return content
    activation, dequantize = graph.operators[-2:]
    if list(dequantize.inputs) != list(activation.outputs):
        return content
    logits = graph.tensors[activation.inputs[0]]
    exact = schema.TensorT(
        shape=logits.shape,
        shapeSignature=logits.shapeSignature,
        type=schema.TensorType.FLOAT32,
        name=logits.name + b"_float32",
        hasRank=logits.hasRank,
    )
    graph.tensors.append(exact)
    place = np.array([len(graph.tensors) - 1], np.int32)
    dequantize.inputs, activation.inputs = activation.inputs, place
    activation.outputs, dequantize.outputs = dequantize.outputs, place
    graph.operators[-2:] = [dequantize, activation]
    builder = flatbuffers.Builder()
    builder.Finish(model.Pack(builder), FILE_IDENTIFIER)
    return bytes(builder.Output())
