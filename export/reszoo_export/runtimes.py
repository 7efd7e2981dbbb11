"""Run a file in its own runtime: one class a kind, all with the same three things.

None of them imports what it does not need: `.tflite` and `.onnx` files open
without TensorFlow.
"""

import os
from collections import Counter
from collections.abc import Callable, Mapping
from functools import cached_property
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from reszoo.cards import Card
from reszoo.checkpoints.reading import SUFFIXES as CHECKPOINTS
from reszoo.errors import CheckpointError, UnknownNameError, UsageError
from reszoo.preprocessing import Pixels
from reszoo.quiet import held_stderr, quiet_tensorflow
from reszoo_export.formats import FORMATS
from reszoo_export.manifest import is_export
from reszoo_export.metadata import onnx_card, saved_model_card, tflite_card

if TYPE_CHECKING:
    import keras

Answers = NDArray[np.float32]
TensorInfo = dict[str, Any]
# Images a call: the activations of 32 photos fit any machine that holds the net.
_AT_ONCE = 32


class Runtime(Protocol):
    """A file, opened.

    Attributes:
        name: Of the runtime, with its version.
        card: The card inside the file.
        threads: How many compute one answer.
        inputs: Name, dtype and shape of each input.
        outputs: Name, dtype and shape of each output.
    """

    name: str
    card: Card
    threads: int
    inputs: list[TensorInfo]
    outputs: list[TensorInfo]

    @property
    def operators(self) -> Mapping[str, int]:
        """How often each operator occurs; empty where that is not told."""
        ...

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
        self.threads = _tensorflow_threads()
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

        _limit_tensorflow(threads)
        self.card = saved_model_card(path)
        self.name = f"tensorflow {tf.__version__}"
        self.threads = _tensorflow_threads()
        try:
            # The signature holds its variables weakly; the loaded object must stay.
            self._loaded = tf.saved_model.load(str(path))
            self._signature = self._loaded.signatures["serving_default"]
        except Exception as error:
            raise CheckpointError(
                f"{path} is not a whole SavedModel ({type(error).__name__}: {error})."
            ) from error
        self.inputs = [_tf_info(spec) for spec in _image_specs(self._signature)]
        self.outputs = [
            {**_tf_info(tensor), "name": name}
            for name, tensor in sorted(self._signature.structured_outputs.items())
        ]

    @cached_property
    def operators(self) -> Mapping[str, int]:
        """Those of the signature, and of all functions that it may call."""
        graph = self._signature.graph.as_graph_def()
        inside = [node for each in graph.library.function for node in each.node_def]
        return Counter(node.op for node in (*graph.node, *inside))

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
        self.threads = threads or os.cpu_count() or 1
        with held_stderr():
            from ai_edge_litert.interpreter import Interpreter

            try:
                self._interpreter = Interpreter(str(path), num_threads=self.threads)
                self._interpreter.allocate_tensors()
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

        self.threads = threads or os.cpu_count() or 1
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = self.threads
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
        self.inputs = [_onnx_info(value) for value in self._session.get_inputs()]
        self.outputs = [_onnx_info(value) for value in self._session.get_outputs()]

    @cached_property
    def operators(self) -> Mapping[str, int]:
        """Those of the file, which a session does not tell: read when asked for."""
        import onnx

        nodes = onnx.load(self._path).graph.node
        return Counter(f"{node.domain}.{node.op_type}".lstrip(".") for node in nodes)

    def run(self, images: Pixels) -> Answers:
        """See `Runtime.run`."""
        answers: Answers = self._session.run(["probabilities"], {"image": images})[0]
        return answers


def run_in_batches(runtime: Runtime, images: Pixels) -> Answers:
    """Return `runtime.run(images)`, asking about at most 32 images at a time."""
    starts = range(0, max(1, len(images)), _AT_ONCE)
    return np.concatenate([runtime.run(images[at : at + _AT_ONCE]) for at in starts])


def kind_of(path: Path) -> str:
    """Return what kind of file a path stands for: its ending, "" for a folder."""
    return "" if path.is_dir() else path.suffix


# Kind of path -> who opens it.
_BY_KIND: dict[str, Callable[[Path, int | None], Runtime]] = {
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
        UsageError: The ending is unknown, the folder is a whole export, threads are
            out of range, or TensorFlow can no longer change their number.
    """
    if threads is not None and threads < 1:
        raise UsageError(f"threads must be at least 1. Received: threads={threads}.")
    if not isinstance(model, str | os.PathLike):
        _limit_tensorflow(threads)
        return KerasRuntime(model)
    path = Path(model)
    if not path.exists():
        raise CheckpointError(f"There is no file {path}.")
    quiet_tensorflow()
    kind = kind_of(path)
    if kind in CHECKPOINTS:
        from reszoo.zoo import load

        _limit_tensorflow(threads)
        return KerasRuntime(load(path))
    if kind not in _BY_KIND or (not kind and not path.is_dir()):
        known = [*CHECKPOINTS, *filter(None, _BY_KIND)]
        raise UnknownNameError("kind of model file", path.name, known)
    if not kind:
        _refuse_whole_export(path)
    return _BY_KIND[kind](path, threads)


def _refuse_whole_export(folder: Path) -> None:
    if is_export(folder):
        files = [row.file for row in FORMATS.values() if (folder / row.file).exists()]
        raise UsageError(
            f"{folder} is a whole export. Open one of the files in it: "
            f"{', '.join(files)}."
        )


def _tensorflow_threads() -> int:
    import tensorflow as tf

    given: int = tf.config.threading.get_intra_op_parallelism_threads()
    return given or os.cpu_count() or 1


def _limit_tensorflow(threads: int | None) -> None:
    import tensorflow as tf

    if threads in (None, tf.config.threading.get_intra_op_parallelism_threads()):
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
