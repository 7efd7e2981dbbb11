"""Run TFLite files with LiteRT."""

import os
from collections import Counter
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from reszoo.console import quiet
from reszoo.errors import CheckpointError
from reszoo.preprocessing import Pixels
from reszoo_export.metadata import tflite_card
from reszoo_export.runtimes import Answers, TensorInfo, find_interface


class TFLiteRuntime:
    """A `.tflite` file, run by LiteRT.

    Args:
        path: The file.
        threads: Of LiteRT; one for each core if None.
    """

    def __init__(self, path: Path, threads: int | None = None) -> None:
        self.threads = threads or os.cpu_count() or 1
        with quiet():
            from ai_edge_litert.interpreter import Interpreter

            try:
                self._interpreter = Interpreter(str(path), num_threads=self.threads)
                self._interpreter.allocate_tensors()
                signature = self._interpreter.get_signature_runner("serving_default")
            except (ValueError, RuntimeError) as error:
                raise CheckpointError(
                    f"{path} is not a TFLite file ({error})."
                ) from error
        self.card = tflite_card(path)
        self.name = f"ai-edge-litert {metadata.version('ai-edge-litert')}"
        details = self._interpreter._get_ops_details()
        self.operators: Mapping[str, int] = Counter(
            detail["op_name"] for detail in details
        )
        inputs, outputs = signature.get_input_details(), signature.get_output_details()
        self.inputs, self.outputs = _info(inputs), _info(outputs)
        self._interface = find_interface(path, self.inputs, self.outputs)
        self.answers = self._interface.answers
        self._input = inputs["image"]["index"]
        self._output = outputs[self._interface.output["name"]]["index"]
        self._shape = tuple(inputs["image"]["shape"])

    def run(self, images: Pixels) -> Answers:
        """See `Runtime.run`."""
        return self._interface.ask(self._call, images)

    def _call(self, pixels: Any) -> Any:
        if pixels.shape != self._shape:
            self._interpreter.resize_tensor_input(self._input, pixels.shape)
            self._interpreter.allocate_tensors()
            self._shape = pixels.shape
        self._interpreter.set_tensor(self._input, pixels)
        self._interpreter.invoke()
        return self._interpreter.get_tensor(self._output)


def _info(details: Mapping[str, Any]) -> list[TensorInfo]:
    return [
        {
            "name": name,
            "dtype": np.dtype(detail["dtype"]).name,
            "shape": [int(side) for side in detail["shape_signature"]],
            **_steps(detail),
        }
        for name, detail in sorted(details.items())
    ]


def _steps(detail: Mapping[str, Any]) -> dict[str, Any]:
    """Return what one step of an integer stands for, and which stands for 0."""
    scale, zero_point = detail["quantization"]
    return {"scale": scale, "zero_point": zero_point} if scale else {}
