"""Run a file in its own runtime: one class a kind, all with the same three things.

None of them imports what it does not need: `.tflite` and `.onnx` files open
without TensorFlow.
"""

import os
from collections import Counter
from collections.abc import Callable, Mapping
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from reszoo.cards import Card
from reszoo.checkpoints import safetensors
from reszoo.errors import CheckpointError, UnknownNameError, UsageError
from reszoo.preprocessing import Pixels
from reszoo.quiet import held_stderr, quiet_tensorflow
from reszoo_export.metadata import read_card

if TYPE_CHECKING:
    import keras

Answers = NDArray[np.float32]
TensorInfo = dict[str, Any]


class Runtime(Protocol):
    """A file, opened.

    Attributes:
        name: Of the runtime, with its version.
        card: The card inside the file.
        operators: How often each operator occurs; empty where that is not told.
        inputs: Name, dtype and shape of each input.
        outputs: Name, dtype and shape of each output.
    """

    name: str
    card: Card
    operators: Mapping[str, int]
    inputs: list[TensorInfo]
    outputs: list[TensorInfo]

    def run(self, images: Pixels) -> Answers:
        """Return probabilities `(n, classes)` for uint8 `(n, height, width, 3)`."""
        ...


class KerasRuntime:
    """A checkpoint, or a model in memory, run by Keras."""

    def __init__(self, model: "keras.Model") -> None:
        import keras

        from reszoo.inference import inference_function
        from reszoo.zoo import get_card

        self.card = get_card(model)
        self.name = f"keras {keras.__version__}"
        self.operators: Mapping[str, int] = {}
        shape = [None, *self.card.architecture.input_shape]
        self.inputs = [{"name": "image", "dtype": "uint8", "shape": shape}]
        classes = [None, self.card.architecture.classes]
        self.outputs = [
            {"name": name, "dtype": "float32", "shape": classes}
            for name in ("logits", "probabilities")
        ]
        self._answer = inference_function(model, self.card.preprocessing)

    def run(self, images: Pixels) -> Answers:
        """See `Runtime.run`."""
        answers: Answers = self._answer(images)["probabilities"].numpy()
        return answers


class SavedModelRuntime:
    """A SavedModel folder, run by TensorFlow alone."""

    def __init__(self, path: Path, threads: int | None = None) -> None:
        import tensorflow as tf

        if threads is not None:
            _limit_tensorflow(threads)
        self.card = read_card(path)
        self.name = f"tensorflow {tf.__version__}"
        # The signature holds its variables weakly; the loaded object must stay.
        self._loaded = tf.saved_model.load(str(path))
        self._signature = self._loaded.signatures["serving_default"]
        graph = self._signature.graph
        self.operators: Mapping[str, int] = Counter(
            operation.type for operation in graph.get_operations()
        )
        self.inputs = [_tf_info(spec) for spec in _image_specs(self._signature)]
        self.outputs = [
            {**_tf_info(tensor), "name": name}
            for name, tensor in sorted(self._signature.structured_outputs.items())
        ]

    def run(self, images: Pixels) -> Answers:
        """See `Runtime.run`."""
        import tensorflow as tf

        answers: Answers = self._signature(image=tf.constant(images))[
            "probabilities"
        ].numpy()
        return answers


class TFLiteRuntime:
    """A `.tflite` file, run by LiteRT."""

    def __init__(self, path: Path, threads: int | None = None) -> None:
        with held_stderr():
            from ai_edge_litert.interpreter import Interpreter

            try:
                self._interpreter = Interpreter(
                    str(path), num_threads=threads or os.cpu_count()
                )
            except ValueError as error:
                raise CheckpointError(
                    f"{path} is not a TFLite file ({error})."
                ) from error
            self._interpreter.allocate_tensors()
        self.card = read_card(path)
        self.name = f"ai-edge-litert {metadata.version('ai-edge-litert')}"
        details = self._interpreter._get_ops_details()
        self.operators: Mapping[str, int] = Counter(
            detail["op_name"] for detail in details
        )
        self._runner = self._interpreter.get_signature_runner("serving_default")
        self.inputs = _litert_info(self._runner.get_input_details())
        self.outputs = _litert_info(self._runner.get_output_details())
        self._dtype = self._runner.get_input_details()["image"]["dtype"]

    def run(self, images: Pixels) -> Answers:
        """See `Runtime.run`."""
        pixels = images.astype(self._dtype)
        answers = [self._runner(image=image[None])["probabilities"] for image in pixels]
        return np.concatenate(answers)


class OnnxRuntime:
    """A `.onnx` file, run by ONNX Runtime."""

    def __init__(self, path: Path, threads: int | None = None) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads or os.cpu_count() or 1
        try:
            self._session = onnxruntime.InferenceSession(
                path, options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:
            raise CheckpointError(f"{path} is not an ONNX file ({error}).") from error
        self.card = read_card(path)
        self.name = f"onnxruntime {onnxruntime.__version__}"
        self.operators = _onnx_operators(path)
        self.inputs = [_onnx_info(value) for value in self._session.get_inputs()]
        self.outputs = [_onnx_info(value) for value in self._session.get_outputs()]

    def run(self, images: Pixels) -> Answers:
        """See `Runtime.run`."""
        answers: Answers = self._session.run(["probabilities"], {"image": images})[0]
        return answers


# What a path looks like -> who opens it; a folder has no ending.
_BY_SUFFIX: dict[str, Callable[[Path, int | None], Runtime]] = {
    "": SavedModelRuntime,
    ".tflite": TFLiteRuntime,
    ".onnx": OnnxRuntime,
}


def open_runtime(
    model: "keras.Model | str | os.PathLike[str]", threads: int | None = None
) -> Runtime:
    """Open a model, a checkpoint or an exported file in its runtime.

    Args:
        model: A model from reszoo, or a path.
        threads: Threads of the runtime; one for each core if None.

    Raises:
        CheckpointError: There is no such file, or it is damaged.
        UsageError: The ending is unknown, or threads are out of range.
    """
    if threads is not None and threads < 1:
        raise UsageError(f"threads must be at least 1. Received: threads={threads}.")
    if not isinstance(model, str | os.PathLike):
        return KerasRuntime(model)
    path = Path(model)
    if not path.exists():
        raise CheckpointError(f"There is no file {path}.")
    quiet_tensorflow()
    if path.suffix == safetensors.SUFFIX:
        from reszoo.zoo import load

        return KerasRuntime(load(path))
    suffix = "" if path.is_dir() else path.suffix
    if suffix not in _BY_SUFFIX or (suffix == "" and not path.is_dir()):
        known = [safetensors.SUFFIX, *filter(None, _BY_SUFFIX)]
        raise UnknownNameError("kind of model file", path.name, known)
    return _BY_SUFFIX[suffix](path, threads)


def _limit_tensorflow(threads: int) -> None:
    import tensorflow as tf

    if tf.config.threading.get_intra_op_parallelism_threads() == threads:
        return
    try:
        tf.config.threading.set_intra_op_parallelism_threads(threads)
        tf.config.threading.set_inter_op_parallelism_threads(threads)
    except RuntimeError as error:
        raise UsageError(
            "TensorFlow takes a number of threads only before its first operation. "
            f"Received: threads={threads}; ask for it in a fresh process."
        ) from error


def _image_specs(signature: Any) -> list[Any]:
    return list(signature.structured_input_signature[1].values())


def _tf_info(spec: Any) -> TensorInfo:
    shape = ["batch" if side is None else side for side in spec.shape]
    return {"name": spec.name, "dtype": spec.dtype.name, "shape": shape}


def _litert_info(details: Mapping[str, Any]) -> list[TensorInfo]:
    return [
        {
            "name": name,
            "dtype": np.dtype(detail["dtype"]).name,
            "shape": [int(side) for side in detail["shape_signature"]],
        }
        for name, detail in sorted(details.items())
    ]


def _onnx_info(value: Any) -> TensorInfo:
    dtype = {"tensor(float)": "float32"}.get(value.type, value.type[7:-1])
    return {"name": value.name, "dtype": dtype, "shape": list(value.shape)}


def _onnx_operators(path: Path) -> Mapping[str, int]:
    import onnx

    nodes = onnx.load(path).graph.node
    return Counter(f"{node.domain}.{node.op_type}".lstrip(".") for node in nodes)
