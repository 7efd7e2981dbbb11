"""`reszoo.compile`: a recipe for Keras' own `fit`."""

import warnings
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from reszoo.cards import COMPILED
from reszoo.console import say
from reszoo.environment import check_backend
from reszoo.errors import UsageError
from reszoo.fields import check_range, coerce
from reszoo.preprocessing import Preprocessing
from reszoo.training import phases
from reszoo.training.model import freeze, set_momentum
from reszoo.training.optimizers import Update
from reszoo.training.recipes import DEFAULTS, FIELDS, LEARNING, Recipe, find_recipe
from reszoo.training.step import LOSSES, update_rule, weight_decay_of
from reszoo.zoo import get_card, own_card, set_card

_registered = keras.saving.register_keras_serializable(package="reszoo")
_STEP = "iteration"


@_registered
class RuleOptimizer(keras.optimizers.Optimizer):  # type: ignore[misc]
    """A Keras optimizer that applies the update rule of a recipe with `epochs`."""

    def __init__(
        self, recipe: Recipe, steps_per_epoch: int, name: str | None = None
    ) -> None:
        super().__init__(learning_rate=self._rate, name=name or recipe.optimizer)
        self._rule, self._recipe = update_rule(recipe), recipe
        self._steps, total = steps_per_epoch, steps_per_epoch * (recipe.epochs or 0)
        self._rates = [
            phases.learning_rate(recipe, step, steps_per_epoch, total)
            for step in range(total + 1)
        ]
        self._slots: list[list[Any]] = []
        self._decays: list[float] = []

    @property
    def learning_rate(self) -> Any:
        """The rate of the current step; the recipe decides all of them."""
        return super().learning_rate

    @learning_rate.setter
    def learning_rate(self, value: Any) -> None:
        raise UsageError(
            "The recipe decides the learning rate of every step, so ReduceLROnPlateau, "
            "LearningRateScheduler and the like cannot set it. Received: "
            f"learning_rate={float(value):g}; leave the callback out, choose "
            "reszoo.compile(model, learning_rate=...), or compile the model with an "
            "optimizer of Keras."
        )

    def _rate(self) -> Any:
        """Return the rate of the current step; after the last one it is constant."""
        rates = tf.constant(self._rates, tf.float32)
        step = tf.minimum(tf.cast(self.iterations, tf.int32), len(self._rates) - 1)
        return tf.gather(rates, step)

    def build(self, variables: Sequence[Any]) -> None:
        if self.built:
            return
        super().build(variables)
        self._decays = [weight_decay_of(each, self._recipe) for each in variables]
        add, names = self.add_variable_from_reference, self._rule.slots
        self._slots = [[add(each, name=slot) for slot in names] for each in variables]

    def apply(self, grads: Any, trainable_variables: Any = None) -> Any:
        return super().apply(self._rule.prepare(grads), trainable_variables)

    def update_step(self, gradient: Any, variable: Any, learning_rate: Any) -> None:
        index = self._get_variable_index(variable)
        update = Update(
            slots=[slot.value for slot in self._slots[index]], gradient=gradient,
            rate=tf.cast(learning_rate, tf.float32), decay=self._decays[index],
            step=tf.cast(self.iterations.value, tf.int64) + 1,
        )  # fmt: skip
        self._rule.apply(variable, update)

    def get_config(self) -> dict[str, Any]:
        recipe, steps = self._recipe.to_json(), self._steps
        return {"recipe": recipe, "steps_per_epoch": steps, "name": self.name}

    @classmethod
    def from_config(
        cls, config: Mapping[str, Any], custom_objects: Any = None
    ) -> "RuleOptimizer":
        del custom_objects
        return cls(**{**config, "recipe": Recipe(**config["recipe"])})

    # By name, for Keras' numbering fails where the reader has fewer variables:
    # `compile` creates them for all weights, `load_model` for the trainable ones.
    def save_own_variables(self, store: Any) -> None:
        """Write the step and the slots, except for those that are still zero."""
        store[_STEP] = self.iterations.numpy()
        for slot in self._all_slots():
            if (value := slot.numpy()).any():
                store[slot.name] = value

    def load_own_variables(self, store: Any) -> None:
        stored = set(store.keys())
        if _STEP not in stored:
            warnings.warn(
                "The file holds the state of another optimizer, which is ignored.",
                stacklevel=2,
            )
            return
        self.iterations.assign(store[_STEP])
        for slot in self._all_slots():
            zeros = np.zeros(slot.shape)
            slot.assign(store[slot.name] if slot.name in stored else zeros)

    def _all_slots(self) -> list[Any]:
        return [slot for slots in self._slots for slot in slots]


@_registered
class RecipeLoss(keras.losses.Loss):  # type: ignore[misc]
    """A recipe's loss of int targets `(batch,)` and logits `(batch, classes)`.

    `loss` is "softmax" or "binary", `label_smoothing` the share of the target that is
    spread over all classes, in [0, 1). Options are those of every Keras loss.
    """

    def __init__(self, loss: str, label_smoothing: float, **options: Any) -> None:
        # Keras casts targets to it; in half precision 2049 would be 2048.
        super().__init__(**{"name": f"{loss}_loss", "dtype": "float32", **options})
        self._loss, self._label_smoothing = loss, label_smoothing

    def call(self, y_true: Any, y_pred: Any) -> Any:
        classes = y_pred.shape[-1]
        wanted = f"Targets must be integers from 0 to {classes - 1}, one an image."
        if y_true.shape[1:].num_elements() not in (None, 1):
            raise UsageError(f"{wanted} Received: one-hot {y_true.shape}; use argmax.")
        given = tf.reshape(y_true, (-1,))
        targets = tf.cast(given, tf.int64)
        # For what is out of range, one-hot would be zeros and the loss 0.
        fits = (targets >= 0) & (targets < classes)
        fits &= tf.cast(targets, given.dtype) == given
        fit = tf.reduce_all(fits) & (tf.size(given) == tf.shape(y_pred)[0])
        refusal = [f"{wanted} Received: ", given]
        with tf.control_dependencies([tf.debugging.Assert(fit, refusal)]):
            soft = tf.one_hot(targets, classes, dtype=tf.float32)
        return LOSSES[self._loss](y_pred, soft, self._label_smoothing)

    def get_config(self) -> dict[str, Any]:
        own = {"loss": self._loss, "label_smoothing": self._label_smoothing}
        return {**super().get_config(), **own}


_SUPPORTED = LEARNING | {"freeze", "freeze_bn"}
# Fields that act on the images, on the architecture or around the loop, where `compile`
# has no influence. By difference, so that a new field is refused until it is supported.
_REFUSED = (
    *("class_weight", "sampling", "teacher"),
    *("layer_decay", "dropout", "block_dropout"),
)
_ONLY_TRAIN = tuple(name for name in FIELDS if name not in _SUPPORTED)


def compile(
    model: keras.Model, recipe: str | Recipe = "finetune", *, steps_per_epoch: int,
    epochs: int, **fields: Any,
) -> keras.Model:  # fmt: skip
    """Prepare a model for `model.fit` with a recipe's optimizer, loss and freezing.

    The recipe decides the optimizer (with coupled weight decay), the learning rate of
    every step, the loss, the frozen layers and the momentum of batch normalisation.
    Augmentation, averaged weights, a phase of the head alone and half precision are
    left to `reszoo.train`. Changing `layer.trainable` afterwards takes effect at the
    next `fit`. Layers that were frozen by hand stay frozen; what an earlier `compile`
    froze is unfrozen first. The card then names this recipe and has no metrics. With
    batches of fewer than 16 images pass `freeze_bn=True`: `reszoo.train` does so by
    itself, but this function does not know the batch size.

    `model.save("x.keras")` saves the optimizer and its state. A new program must use a
    name of reszoo, such as `reszoo.card`, before `keras.models.load_model("x.keras")`,
    and as usual in Keras a change of `layer.trainable` in the loaded model takes effect
    after compiling again.

    Args:
        model: A model from reszoo that ends in logits. Its inputs are normalised
            pixels: `reszoo.card(model).preprocessing.normalise(pixels)`.
        recipe: Name of a recipe, or a recipe of your own.
        steps_per_epoch: Batches per epoch, by which the learning rate is scheduled.
        epochs: Of the whole training.
        **fields: Fields of the recipe to change, such as `freeze="backbone"`.

    Returns:
        The same model, compiled; targets are int `(batch,)`.

    Raises:
        UsageError: A field that only `reszoo.train` supports, or a model that does
            not end in logits.

    Example:
        >>> model = reszoo.build("resnet18", weights="imagenet", classes=5)
        >>> reszoo.compile(model, steps_per_epoch=100, epochs=5)
        >>> model.fit(batches, epochs=5)
    """
    check_backend("compile")
    check_range("steps_per_epoch", steps_per_epoch, "[1, inf)", int)
    _check_supported(coerce("model", model, (keras.Model,)), fields)
    chosen, card = find_recipe(recipe, **{**fields, "epochs": epochs}), get_card(model)
    # Left out, they would change what is learned, and not only how well.
    _check_supported(model, [n for n in _REFUSED if getattr(chosen, n) != DEFAULTS[n]])
    freeze_bn = bool(chosen.freeze_bn)
    batch_norm = freeze(model, card.resnet, chosen.freeze, freeze_bn)
    set_momentum(model, phases.moving_momentum(chosen, steps_per_epoch))
    model.compile(
        optimizer=RuleOptimizer(chosen, steps_per_epoch),
        loss=RecipeLoss(chosen.loss, chosen.label_smoothing),
        metrics=["accuracy"],
        jit_compile=False,
    )
    _retrace_on_freezing(model)
    _warn_in_fit(model, card.preprocessing)
    content = chosen.to_json().items()
    supported = {name: value for name, value in content if name not in _ONLY_TRAIN}
    provenance = {"source": COMPILED, "recipe": supported}
    set_card(model, card.after({**provenance, "steps_per_epoch": steps_per_epoch}))
    say(str(batch_norm))
    return model


def _check_supported(model: keras.Model, fields: Iterable[str]) -> None:
    unsupported = sorted(set(fields) & set(_ONLY_TRAIN))
    if unsupported:
        batches = " Your data set decides the batch size."
        raise UsageError(
            f"compile does not support {', '.join(unsupported)}; reszoo.train does."
            f"{batches * ('batch_size' in unsupported)} Leave them out, or call "
            "reszoo.train(model, data, ...)."
        )
    if others := {each.dtype for each in model.weights} - {"float32"}:
        raise UsageError(
            f"compile trains float32 weights. Received: {', '.join(sorted(others))}; "
            'build the model under the policy "mixed_float16" or "mixed_bfloat16".'
        )
    built = own_card(model).card.resnet
    if not built.include_top or built.classifier_activation is not None:
        raise UsageError(
            "compile needs a model that ends in logits, for its loss takes logits. "
            f"Received: include_top={built.include_top}, "
            f"classifier_activation={built.classifier_activation!r}; build it with "
            "include_top=True, classifier_activation=None."
        )


def _retrace_on_freezing(model: keras.Model) -> None:
    """Have `fit` trace anew for another `trainable`, as Keras 3.15 does not."""
    make, traced_for = model.make_train_function, _trainable(model)
    # Slots for all weights, so that any of them can be unfrozen later.
    statistics = ("/moving_mean", "/moving_variance")
    weights = [v for v in model.variables if not v.path.endswith(statistics)]
    model.optimizer.build(weights)

    def make_train_function(force: bool = False) -> Any:
        nonlocal traced_for
        now = _trainable(model)
        changed, traced_for = now != traced_for, now
        return make(force=force or changed)

    model.make_train_function = make_train_function


def _warn_in_fit(model: keras.Model, preprocessing: Preprocessing) -> None:
    """Have `fit` warn of images that are not normalised, and of unscheduled steps."""
    mean, std = np.asarray(preprocessing.mean), np.asarray(preprocessing.std)
    low, high = float((-mean / std).min()), float(((1 - mean) / std).max())
    plain, span = partial(type(model).train_step, model), high - low
    # In mixed_float16 Keras scales the loss, by an optimizer around this one.
    optimizer = getattr(model.optimizer, "inner_optimizer", model.optimizer)
    steps, last = len(optimizer._rates) - 1, optimizer._rates[-1]

    def check(step: int, least: float, most: float) -> np.int32:
        if step:
            say(
                f"All {steps:,} steps of reszoo.compile's schedule (steps_per_epoch "
                f"times epochs) are done: the learning rate stays at {last:g}. To "
                "train on, compile again with the numbers of the whole training."
            )
        # Above the mean everywhere: pixels from 0 to 1 or to 255.
        elif not low - span <= least <= most <= high + span or low < 0 <= least < most:
            warnings.warn(
                f"The first batch has values from {least:.3g} to {most:.3g}; "
                f"normalised images have some from {low:.3g} to {high:.3g}. Normalise "
                "RGB 0-255: batches.map(lambda image, target: "
                "(reszoo.card(model).preprocessing.normalise(image), target)).",
                stacklevel=2,
            )
        return np.int32(0)

    def train_step(data: Any) -> Any:
        images = keras.utils.unpack_x_y_sample_weight(data)[0]

        def look() -> Any:
            values = tf.cast(images, tf.float32)
            told = [step, tf.reduce_min(values), tf.reduce_max(values)]
            return tf.numpy_function(check, told, tf.int32)

        step = optimizer.iterations.value
        tf.cond((step == 0) | (step == steps), look, lambda: 0)
        return plain(data)

    model.train_step = train_step


def _trainable(model: keras.Model) -> tuple[bool, ...]:
    return tuple(layer.trainable for layer in model.layers)
