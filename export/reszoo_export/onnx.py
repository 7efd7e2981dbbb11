"""Write ONNX files: for ONNX Runtime, OpenVINO and the browser."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from reszoo.quiet import quiet_converters
from reszoo_export.metadata import ONNX_KEY
from reszoo_export.quantization import Calibration
from reszoo_export.serving import INPUT, Serving

# 18 breaks the pooling of quantised nets, tf2onnx 1.17 refuses 19 and later.
OPSET = 17
# IR 8 belongs to opset 17 and opens in every runtime since 2022.
IR_VERSION = 8
BATCH = "batch"
_CATCH_ERRORS = "TF2ONNX_CATCH_ERRORS"


def write(serving: Serving, path: Path, calibration: Calibration | None) -> None:
    """Write a float32 file: uint8 NHWC in, `logits` and `probabilities` out.

    Args:
        serving: What to write.
        path: The file to make.
        calibration: Not used; floating point needs none.
    """
    import onnx

    model = _convert(serving)
    _name_batch(model)
    _rename_inside(model)
    for opset in [entry for entry in model.opset_import if entry.domain]:
        model.opset_import.remove(opset)  # Declared by tf2onnx, never used.
    model.ir_version = IR_VERSION
    model.producer_name, model.producer_version = "reszoo", _version()
    model.graph.name = serving.card.architecture.spec
    model.graph.ClearField("doc_string")  # Names a process-wide counter.
    entry = model.metadata_props.add()
    entry.key, entry.value = ONNX_KEY, serving.card.to_text()
    onnx.checker.check_model(model, full_check=True)
    path.write_bytes(model.SerializeToString(deterministic=True))


def _convert(serving: Serving) -> Any:
    with quiet_converters(), _without_safety_copies():
        import tf2onnx

        model, _ = tf2onnx.convert.from_function(
            serving.function("logits", "probabilities"),
            input_signature=[serving.spec(None, _uint8())],
            opset=OPSET,
        )
    return model


@contextmanager
def _without_safety_copies() -> Iterator[None]:
    """Keep tf2onnx from copying the whole graph before every optimizer's pass.

    It does so to go on when a pass fails (tf2onnx 1.17, `optimizer.optimize_graph`);
    we prefer the error, and ResNet-50 in about half the time.
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


def _uint8() -> Any:
    import tensorflow as tf

    return tf.uint8


def _name_batch(model: Any) -> None:
    """Call the open first axis of inputs and outputs `batch`."""
    for value in (*model.graph.input, *model.graph.output):
        axis = value.type.tensor_type.shape.dim[0]
        axis.ClearField("dim_value")
        axis.dim_param = BATCH
    # What the converter inferred inside names the axis otherwise.
    del model.graph.value_info[:]


def _rename_inside(model: Any) -> None:
    """Number and order by first use what the converter named from counters.

    Otherwise a second export of the same weights has other bytes.
    """
    kept = {INPUT, *(output.name for output in model.graph.output)}
    names: dict[str, str] = {"": ""}

    def renamed(name: str, prefix: str) -> str:
        if name in kept:
            return name
        return names.setdefault(name, f"{prefix}_{len(names)}")

    for node in model.graph.node:
        node.input[:] = [renamed(name, "tensor") for name in node.input]
        node.output[:] = [renamed(name, "tensor") for name in node.output]
    for index, node in enumerate(model.graph.node):
        node.name = f"{node.op_type}_{index}"
    for initializer in model.graph.initializer:
        initializer.name = renamed(initializer.name, "tensor")
    order = {name: index for index, name in enumerate(names.values())}
    initializers = sorted(model.graph.initializer, key=lambda each: order[each.name])
    del model.graph.initializer[:]
    model.graph.initializer.extend(initializers)


def _version() -> str:
    import reszoo

    return reszoo.__version__
