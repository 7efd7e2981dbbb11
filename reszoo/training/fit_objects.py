"""What `reszoo.compile` hands to Keras: an optimizer, its rates and a loss.

All three are registered, so that a `.keras` file brings them back. Keras 3.15 imports
no module that a file names, so whoever opens one imports `reszoo.training.fit` first.
"""

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from reszoo.training.losses import LOSSES, targets
from reszoo.training.recipes import Recipe
from reszoo.training.step import decay, rule_of

_registered = keras.saving.register_keras_serializable(package="reszoo")
_STEP = "iteration"


@_registered
class RecipeRates(keras.optimizers.schedules.LearningRateSchedule):  # type: ignore[misc]
    """The learning rate of each step under a recipe; the last one stays.

    Args:
        recipe: With `epochs`.
        steps_per_epoch: At least 1.
    """

    def __init__(self, recipe: Recipe, steps_per_epoch: int) -> None:
        epochs = recipe.epochs or 0
        schedule, total = recipe.rates(epochs), steps_per_epoch * epochs
        multiples = [
            schedule.rate(step, steps_per_epoch, total) for step in range(total + 1)
        ]
        self._rates = recipe.learning_rate * np.asarray(multiples)
        self._recipe, self._steps = recipe, steps_per_epoch

    def __call__(self, step: Any) -> Any:
        """Return the rate of a step, counted from 0: a float32 scalar."""
        last = len(self._rates) - 1
        rates = tf.constant(self._rates, tf.float32)
        return tf.gather(rates, tf.minimum(tf.cast(step, tf.int32), last))

    def get_config(self) -> dict[str, Any]:
        """Return the arguments as JSON values."""
        return {"recipe": self._recipe.to_json(), "steps_per_epoch": self._steps}

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> "RecipeRates":
        """Return what `get_config` described."""
        return cls(Recipe(**config["recipe"]), config["steps_per_epoch"])


@_registered
class RuleOptimizer(keras.optimizers.Optimizer):  # type: ignore[misc]
    """A rule of reszoo as `fit` wants it: a Keras optimizer.

    Args:
        recipe: How a weight moves, which weights decay, and how much; with `epochs`.
        steps_per_epoch: At least 1.
        name: Of the optimizer; the rule's by default.
    """

    def __init__(
        self, recipe: Recipe, steps_per_epoch: int, name: str | None = None
    ) -> None:
        rates = RecipeRates(recipe, steps_per_epoch)
        super().__init__(learning_rate=rates, name=name or recipe.optimizer)
        self._rule, self._recipe, self._steps = rule_of(recipe), recipe, steps_per_epoch
        self._kept: list[list[Any]] = []
        self._decays: list[float] = []

    def build(self, variables: Sequence[Any]) -> None:
        """Make what the rule keeps for each variable."""
        if self.built:
            return
        super().build(variables)
        self._decays = [decay(variable, self._recipe) for variable in variables]
        self._kept = [
            [
                self.add_variable_from_reference(variable, name=slot)
                for slot in self._rule.slots
            ]
            for variable in variables
        ]

    def apply(self, grads: Any, trainable_variables: Any = None) -> Any:
        """Take one step."""
        return super().apply(self._rule.prepare(grads), trainable_variables)

    def update_step(self, gradient: Any, variable: Any, learning_rate: Any) -> None:
        """Move one variable."""
        index = self._get_variable_index(variable)
        self._rule.move(
            variable,
            [slot.value for slot in self._kept[index]],
            gradient,
            tf.cast(learning_rate, tf.float32),
            self._decays[index],
            tf.cast(self.iterations.value, tf.int64) + 1,
        )

    def get_config(self) -> dict[str, Any]:
        """Return the arguments as JSON values."""
        return {
            "recipe": self._recipe.to_json(),
            "steps_per_epoch": self._steps,
            "name": self.name,
        }

    @classmethod
    def from_config(
        cls, config: Mapping[str, Any], custom_objects: Any = None
    ) -> "RuleOptimizer":
        """Return what `get_config` described."""
        del custom_objects
        recipe = Recipe(**config["recipe"])
        return cls(recipe, config["steps_per_epoch"], config["name"])

    # By name, for Keras' numbering breaks off where the reader made fewer variables:
    # `compile` makes them for all weights, `load_model` for those that learn.
    def save_own_variables(self, store: Any) -> None:
        """Write the step and what the rule keeps, except for what is still zero."""
        store[_STEP] = self.iterations.numpy()
        for variable in self._slots():
            value = variable.numpy()
            if value.any():
                store[variable.name] = value

    def load_own_variables(self, store: Any) -> None:
        """Take what `save_own_variables` wrote."""
        there = set(store.keys())
        if _STEP not in there:
            warnings.warn(
                "The file holds the state of another optimizer, which is left out.",
                stacklevel=2,
            )
            return
        self.iterations.assign(store[_STEP])
        for variable in self._slots():
            known = variable.name in there
            variable.assign(store[variable.name] if known else np.zeros(variable.shape))

    def _slots(self) -> list[Any]:
        return [slot for slots in self._kept for slot in slots]


@_registered
class RecipeLoss(keras.losses.Loss):  # type: ignore[misc]
    """A recipe's loss of int labels `(batch,)` and logits `(batch, classes)`.

    Args:
        loss: "softmax" or "binary".
        label_smoothing: Share of the target spread over all classes, in [0, 1).
        **options: Of every Keras loss: `name`, `reduction`, `dtype`.
    """

    def __init__(self, loss: str, label_smoothing: float, **options: Any) -> None:
        super().__init__(**{"name": f"{loss}_loss", **options})
        self._loss, self._label_smoothing = loss, label_smoothing

    def call(self, y_true: Any, y_pred: Any) -> Any:
        """Return the loss of each image: float32 `(batch,)`."""
        labels = tf.reshape(tf.cast(y_true, tf.int64), (-1,))
        target = targets(labels, y_pred.shape[-1])
        return LOSSES[self._loss](y_pred, target, self._label_smoothing)

    def get_config(self) -> dict[str, Any]:
        """Return the arguments as JSON values."""
        own = {"loss": self._loss, "label_smoothing": self._label_smoothing}
        return {**super().get_config(), **own}
