"""`reszoo.compile`: a recipe for people who call `fit` themselves."""

from collections.abc import Iterable
from typing import Any

import keras

from reszoo.cards import Card
from reszoo.errors import UsageError
from reszoo.progress import say
from reszoo.training.fit_objects import RecipeLoss, RuleOptimizer
from reszoo.training.freezing import freeze
from reszoo.training.net import set_momentum
from reszoo.training.phases import moving_momentum
from reszoo.training.recipe_table import FIELDS, find_recipe
from reszoo.training.recipes import LEARNING, Recipe
from reszoo.zoo import get_card, set_card

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
    what `reszoo.save` writes. A new program needs `import reszoo.training.fit` before
    `keras.models.load_model("x.keras")`, and Keras' own rule holds for what it opens:
    a change of `layer.trainable` has effect after compiling again.

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
