"""Run SavedModels, and checkpoints, with TensorFlow."""

import os
from collections import Counter
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from reszoo.errors import CheckpointError, UsageError
from reszoo.preprocessing import Pixels
from reszoo_export.metadata import saved_model_card
from reszoo_export.runtimes import Answers, TensorInfo, find_interface

if TYPE_CHECKING:
    import keras


class KerasRuntime:
    """A checkpoint, or a model in memory, run by Keras."""

    def __init__(self, model: "keras.Model") -> None:
        import keras

        from reszoo.metrics import inference_function
        from reszoo.zoo import get_card

        self.card = get_card(model)
        self.name = f"keras {keras.__version__}"
        self.threads = tensorflow_threads()
        self.operators: Mapping[str, int] = {}
        shape = [None, *self.card.architecture.input_shape]
        self.inputs = [{"name": "image", "dtype": "uint8", "shape": shape}]
        classes = [None, self.card.architecture.classes]
        self.outputs = [
            {"name": name, "dtype": "float32", "shape": classes}
            for name in ("logits", "probabilities")
        ]
        self._interface = find_interface(Path(model.name), self.inputs, self.outputs)
        self.answers = self._interface.answers
        self._answer = inference_function(model, self.card.preprocessing)

    def run(self, images: Pixels) -> Answers:
        """See `Runtime.run`."""
        return self._interface.ask(self._call, images)

    def _call(self, pixels: Any) -> Any:
        return self._answer(pixels)[self._interface.output["name"]].numpy()


class SavedModelRuntime:
    """A SavedModel folder, run by TensorFlow alone.

    Args:
        path: The folder with `saved_model.pb`, or one of versions as TF Serving
            reads them, of which the highest is opened.
        threads: Of TensorFlow; one for each core if None.
    """

    def __init__(self, path: Path, threads: int | None = None) -> None:
        import tensorflow as tf

        path = newest_version(path)
        limit_tensorflow(threads)
        self.card = saved_model_card(path)
        self.name = f"tensorflow {tf.__version__}"
        self.threads = tensorflow_threads()
        try:
            # The signature holds its variables weakly; the loaded object must stay.
            self._loaded = tf.saved_model.load(str(path))
            self._signature = self._loaded.signatures["serving_default"]
        except Exception as error:
            raise CheckpointError(
                f"{path} is not a whole SavedModel ({type(error).__name__}: {error})."
            ) from error
        specs = self._signature.structured_input_signature[1].values()
        self.inputs = [_info(spec) for spec in specs]
        self.outputs = [
            {**_info(tensor), "name": name}
            for name, tensor in sorted(self._signature.structured_outputs.items())
        ]
        self._interface = find_interface(path, self.inputs, self.outputs)
        self.answers = self._interface.answers

    @cached_property
    def operators(self) -> Mapping[str, int]:
        """Those of the signature, and of all functions that it may call."""
        graph = self._signature.graph.as_graph_def()
        inside = [node for each in graph.library.function for node in each.node_def]
        return Counter(node.op for node in (*graph.node, *inside))

    def run(self, images: Pixels) -> Answers:
        """See `Runtime.run`."""
        return self._interface.ask(self._call, images)

    def _call(self, pixels: Any) -> Any:
        import tensorflow as tf

        outputs = self._signature(image=tf.constant(pixels))
        return outputs[self._interface.output["name"]].numpy()


def newest_version(path: Path) -> Path:
    """Return the folder that holds `saved_model.pb`: itself, or the highest number."""
    versions = [
        folder
        for folder in path.iterdir()
        if folder.name.isdecimal() and (folder / "saved_model.pb").is_file()
    ]
    if (path / "saved_model.pb").exists() or not versions:
        return path
    return max(versions, key=lambda folder: int(folder.name))


def tensorflow_threads() -> int:
    """Return how many threads compute one answer."""
    import tensorflow as tf

    given: int = tf.config.threading.get_intra_op_parallelism_threads()
    return given or os.cpu_count() or 1


def limit_tensorflow(threads: int | None) -> None:
    """Set the number of TensorFlow's threads.

    Raises:
        UsageError: TensorFlow has begun to compute with another number.
    """
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


def _info(spec: Any) -> TensorInfo:
    shape = ["batch" if side is None else side for side in spec.shape]
    return {"name": spec.name, "dtype": spec.dtype.name, "shape": shape}
