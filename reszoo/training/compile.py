"""`reszoo.compile`: a recipe for Keras' own `fit`."""

import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from reszoo.cards import Card
from reszoo.console import say
from reszoo.errors import UsageError
from reszoo.training.model import freeze, set_momentum
from reszoo.training.phases import moving_momentum
from reszoo.training.recipe_table import FIELDS, find_recipe
from reszoo.training.recipes import LEARNING, Recipe
from reszoo.training.step import LOSSES, decay, rule_of, targets
from reszoo.zoo import get_card, set_card

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


_CARRIED_OUT = LEARNING | {"freeze", "freeze_bn"}
# What `fit` cannot be told through `compile`: it is done to the images, to the net,
# or around the loop. By difference, so that a new field is refused until it works.
_ONLY_TRAIN = tuple(name for name in FIELDS if name not in _CARRIED_OUT)


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
    next `fit`. Layers that were frozen by hand stay so; what an earlier `compile`
    froze is thawed first. The card then tells of this recipe and of no metrics. With
    batches of fewer than 16 images pass `freeze_bn=True`: what `reszoo.train` decides
    by itself, this function cannot know.

    `model.save("x.keras")` keeps the optimizer and its state, but no card: that is
    what `reszoo.save` writes. A new program needs `import reszoo.training.compile`
    before `keras.models.load_model("x.keras")`, and Keras' own rule holds for what it
    opens: a change of `layer.trainable` has effect after compiling again.

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
        UsageError: A field that only `reszoo.train` carries out, or a model that does
            not end in logits.

    Example:
        >>> model = reszoo.build("resnet18", weights="imagenet", classes=5)
        >>> reszoo.compile(model, steps_per_epoch=100, epochs=5)
        >>> model.fit(batches, epochs=5)
    """
    _refuse(model, fields)
    plan, card = find_recipe(recipe, **{**fields, "epochs": epochs}), get_card(model)
    counted = freeze(model, card.architecture.spec, plan.freeze, bool(plan.freeze_bn))
    set_momentum(model, moving_momentum(plan, steps_per_epoch))
    model.compile(
        optimizer=RuleOptimizer(plan, steps_per_epoch),
        loss=RecipeLoss(plan.loss, plan.label_smoothing),
        metrics=["accuracy"],
        jit_compile=False,
    )
    _heed_trainable(model)
    set_card(model, _card_for_fit(card, plan, steps_per_epoch))
    say(str(counted))
    return model


def _refuse(model: keras.Model, fields: Iterable[str]) -> None:
    beyond = sorted(set(fields) & set(_ONLY_TRAIN))
    if beyond:
        batches = " Your data set decides the size of a batch."
        raise UsageError(
            f"compile cannot carry out {', '.join(beyond)}; reszoo.train does."
            f"{batches if 'batch_size' in beyond else ''} Leave "
            "them out, or call reszoo.train(model, data, ...)."
        )
    built = get_card(model).architecture
    if not built.include_top or built.classifier_activation is not None:
        raise UsageError(
            "compile needs a model that ends in logits, for the loss is theirs. "
            f"Received: include_top={built.include_top}, "
            f"classifier_activation={built.classifier_activation!r}; build it with "
            "include_top=True, classifier_activation=None."
        )


def _card_for_fit(card: Card, recipe: Recipe, steps_per_epoch: int) -> Card:
    """Return a card that claims neither fresh weights nor what was measured before."""
    content = recipe.to_json().items()
    provenance: dict[str, Any] = {
        "source": "compiled with reszoo for fit",
        "recipe": {name: value for name, value in content if name not in _ONLY_TRAIN},
        "steps_per_epoch": steps_per_epoch,
    }
    return card.after(provenance)


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
