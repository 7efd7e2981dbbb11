"""`reszoo.compile`: a recipe for people who call `fit` themselves."""

from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from reszoo.errors import UsageError
from reszoo.progress import say
from reszoo.training.freezing import freeze
from reszoo.training.losses import LOSSES
from reszoo.training.net import set_momentum
from reszoo.training.optimizers import Rule
from reszoo.training.phases import moving_momentum
from reszoo.training.recipe_table import find_recipe
from reszoo.training.recipes import Recipe
from reszoo.training.step import decay, rule_of
from reszoo.zoo import get_card

# What `fit` cannot be told through `compile`: it is done to the images, to the net,
# or around the loop.
_ONLY_TRAIN = (
    "accumulate",
    "crop",
    "cutmix",
    "ema",
    "ema_every",
    "erase",
    "head_epochs",
    "head_learning_rate",
    "mixup",
    "pad",
    "policy",
    "precision",
    "ratio",
    "repeats",
    "scale",
    "stochastic_depth",
    "sync_bn",
    "train_size",
    "zero_init_residual",
)


def compile(
    model: keras.Model,
    recipe: str | Recipe = "finetune",
    *,
    steps_per_epoch: int,
    epochs: int,
    **fields: Any,
) -> keras.Model:
    """Prepare a model for `model.fit` with a recipe's optimizer, loss and freezing.

    The optimizer (with coupled weight decay), the learning rate of every step, the
    loss, what is frozen and the momentum of batch normalisation are the recipe's.
    Augmentation, averages, the phase of the head and half precision are not: they
    belong to `reszoo.train`. Changing `layer.trainable` afterwards has effect at the
    next `fit`.

    Args:
        model: A model from reszoo that ends in logits. Its inputs are normalised
            pixels: `reszoo.card(model).preprocessing.normalise(pixels)`.
        recipe: A row of `RECIPES`, or a recipe of your own.
        steps_per_epoch: Batches an epoch, which the learning rate follows.
        epochs: Of the whole training.
        **fields: Fields of the recipe to change, such as `freeze="backbone"`.

    Returns:
        The same model, compiled; labels are int `(batch,)`.

    Raises:
        UsageError: A field that only `reszoo.train` carries out.

    Example:
        >>> model = reszoo.build("resnet18", weights="imagenet", classes=5)
        >>> reszoo.compile(model, steps_per_epoch=100, epochs=5)
        >>> model.fit(batches, epochs=5)
    """
    beyond = sorted(set(fields) & set(_ONLY_TRAIN))
    if beyond:
        raise UsageError(
            f"compile cannot carry out {', '.join(beyond)}; reszoo.train does. Leave "
            "them out, or call reszoo.train(model, data, ...)."
        )
    plan = find_recipe(recipe, **{**fields, "epochs": epochs})
    spec = get_card(model).architecture.spec
    counted = freeze(model, spec, plan.freeze, plan.freeze_bn is not False)
    set_momentum(model, moving_momentum(plan, steps_per_epoch))
    rates = _rates(plan, steps_per_epoch, epochs)
    model.compile(
        optimizer=RuleOptimizer(rule_of(plan), rates, plan),
        loss=_loss(plan),
        metrics=["accuracy"],
        jit_compile=False,
    )
    _heed_trainable(model)
    say(str(counted))
    return model


def _rates(recipe: Recipe, steps_per_epoch: int, epochs: int) -> list[float]:
    schedule, total = recipe.rates(epochs), steps_per_epoch * epochs
    return [
        recipe.learning_rate * schedule.rate(step, steps_per_epoch, total)
        for step in range(total + 1)
    ]


def _loss(recipe: Recipe) -> Callable[[Any, Any], Any]:
    of_logits = LOSSES[recipe.loss]

    def loss(labels: Any, logits: Any) -> Any:
        classes = logits.shape[-1]
        target = tf.one_hot(tf.reshape(tf.cast(labels, tf.int64), (-1,)), classes)
        return of_logits(logits, target, recipe.label_smoothing)

    return loss


class RuleOptimizer(keras.optimizers.Optimizer):  # type: ignore[misc]
    """A rule of reszoo as `fit` wants it: a Keras optimizer.

    Args:
        rule: How a weight moves.
        rates: Learning rate of each step; the last one stays.
        recipe: Which weights decay, and how much.
    """

    def __init__(self, rule: Rule, rates: Sequence[float], recipe: Recipe) -> None:
        super().__init__(learning_rate=_Rates(rates), name=recipe.optimizer)
        self._rule, self._recipe = rule, recipe
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


class _Rates(keras.optimizers.schedules.LearningRateSchedule):  # type: ignore[misc]
    def __init__(self, rates: Sequence[float]) -> None:
        self._rates = np.asarray(rates, np.float32)

    def __call__(self, step: Any) -> Any:
        last = len(self._rates) - 1
        return tf.gather(self._rates, tf.minimum(tf.cast(step, tf.int32), last))

    def get_config(self) -> dict[str, Any]:
        return {"rates": self._rates.tolist()}


def _heed_trainable(model: keras.Model) -> None:
    """Have `fit` trace its step anew when what is trainable has changed.

    Keras 3.15 keeps the step that it traced first, without a word.
    """
    make, traced_for = model.make_train_function, _trainable(model)
    # Slots for all weights, so that any of them can begin to learn later.
    model.optimizer.build([v for v in model.variables if _learns(v)])

    def heeding(force: bool = False) -> Any:
        nonlocal traced_for
        now = _trainable(model)
        changed, traced_for = now != traced_for, now
        return make(force=force or changed)

    model.make_train_function = heeding


def _trainable(model: keras.Model) -> tuple[bool, ...]:
    return tuple(layer.trainable for layer in model.layers)


def _learns(variable: Any) -> bool:
    return not variable.path.endswith(("/moving_mean", "/moving_variance"))
