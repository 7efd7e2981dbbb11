"""Measure a net while it trains, and take its weights."""

from collections.abc import Mapping
from dataclasses import replace

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from reszoo.checkpoints.names import Tensors, lay_in, to_tensors
from reszoo.data.examples import Examples
from reszoo.data.pipeline import evaluation_batches
from reszoo.data.sources import Source
from reszoo.evaluation import Metrics, score
from reszoo.inference import inference_function
from reszoo.preprocessing import Preprocessing
from reszoo.training.distribution import Devices
from reszoo.training.net import judged_twin

_AT_ONCE = 64


class Judge:
    """A float32 copy of a net at the size of evaluation.

    Args:
        model: What is trained.
        record: How images are prepared.
        source: Where they come from.
        batch_size: Images at a time.
        devices: Of which the chief measures for all workers.
    """

    def __init__(
        self,
        model: keras.Model,
        record: Preprocessing,
        source: Source,
        batch_size: int,
        devices: Devices,
    ) -> None:
        self._net = judged_twin(model, record)
        self._record, self._source = record, source
        # Training may work through a large batch in parts.
        self._batch_size = min(batch_size, _AT_ONCE)
        self._devices = devices
        self._answer = inference_function(self._net, record)
        # A data set for each split, since each is traced anew.
        self._batches: dict[int, tf.data.Dataset] = {}

    def take(self, values: Mapping[str, tf.Variable]) -> Tensors:
        """Take over weights by the path of each variable; return them."""
        # Not by place: layers between change the order that Keras gives them.
        for variable in self._net.variables:
            variable.assign(values[variable.path])
        return to_tensors(self._net)

    def lay_in(self, tensors: Tensors) -> None:
        """Take over weights by name."""
        lay_in(self._net, tensors, "the best epoch")

    def measure(self, split: str) -> Metrics | None:
        """Measure one split; None where the data has no such split."""
        if split not in self._source.splits:
            return None
        examples = self._source.examples(split)
        name = f"{self._source.name} ({split})"
        if self._devices.is_chief:
            found = score(self.probabilities(examples), examples.labels, name)
        else:
            found = Metrics(top1=0, top5=0, loss=0, images=len(examples), data=name)
        numbers = (found.top1, found.top5, found.loss)
        top1, top5, loss = self._devices.from_chief(numbers)
        return replace(found, top1=top1, top5=top5, loss=loss)

    def probabilities(self, examples: Examples) -> NDArray[np.float32]:
        """Return float32 `(n, classes)`."""
        if id(examples) not in self._batches:
            batches = evaluation_batches(examples, self._record, self._batch_size)
            self._batches[id(examples)] = batches
        answers = [
            self._answer(images)["probabilities"]
            for images, _ in self._batches[id(examples)]
        ]
        return np.asarray(tf.concat(answers, axis=0))
