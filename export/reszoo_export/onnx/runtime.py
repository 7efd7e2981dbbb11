"""Run ONNX files with ONNX Runtime."""

import os
from collections import Counter
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from reszoo.errors import CheckpointError
from reszoo.preprocessing import Pixels
from reszoo_export.metadata import onnx_card
from reszoo_export.runtimes import Answers, TensorInfo, find_interface

# ONNX Runtime's levels; 3 is an error. Its warnings are about its own optimisations.
_ERRORS_ONLY = 3


class OnnxRuntime:
    """A `.onnx` file, run by ONNX Runtime.

    Args:
        path: The file.
        threads: Of ONNX Runtime; one for each core if None.
    """

    def __init__(self, path: Path, threads: int | None = None) -> None:
        import onnxruntime

        self.threads = threads or os.cpu_count() or 1
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = self.threads
        options.log_severity_level = _ERRORS_ONLY
        try:
            self._session = onnxruntime.InferenceSession(
                path, options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:
            raise CheckpointError(f"{path} is not an ONNX file ({error}).") from error
        properties = self._session.get_modelmeta().custom_metadata_map
        self.card = onnx_card(path, properties)
        self.name = f"onnxruntime {onnxruntime.__version__}"
        self._path = path
        self.inputs = [_info(value) for value in self._session.get_inputs()]
        self.outputs = [_info(value) for value in self._session.get_outputs()]
        self._interface = find_interface(path, self.inputs, self.outputs)
        self.answers = self._interface.answers

    @cached_property
    def operators(self) -> Mapping[str, int]:
        """Those of the file, which a session does not tell: read when asked for."""
        import onnx

        nodes = onnx.load(self._path).graph.node
        return Counter(f"{node.domain}.{node.op_type}".lstrip(".") for node in nodes)

    def run(self, images: Pixels) -> Answers:
        """See `Runtime.run`."""
        return self._interface.ask(self._call, images)

    def _call(self, pixels: Any) -> Any:
        wanted = [self._interface.output["name"]]
        return self._session.run(wanted, {"image": pixels})[0]


def _info(value: Any) -> TensorInfo:
    # "tensor(uint8)"; NumPy has other names than ONNX for numbers with a point.
    dtype = value.type.removeprefix("tensor(").removesuffix(")")
    dtype = {"float": "float32", "double": "float64"}.get(dtype, dtype)
    return {"name": value.name, "dtype": dtype, "shape": list(value.shape)}
