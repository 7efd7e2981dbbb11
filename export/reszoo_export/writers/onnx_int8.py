"""Write ONNX files that compute in integers: for ONNX Runtime and OpenVINO."""

from pathlib import Path

from reszoo.errors import ExportError
from reszoo_export.quantization.calibration import Calibration
from reszoo_export.quantization.integer_net import INSIDE, as_bytes, build_integer_net
from reszoo_export.quantization.ranges import choose
from reszoo_export.serving import Serving
from reszoo_export.writers.onnx import convert, write_model
from reszoo_export.writers.onnx_qdq import quantize


def write(serving: Serving, path: Path, calibration: Calibration | None) -> None:
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
