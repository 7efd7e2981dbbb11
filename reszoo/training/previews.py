"""A picture of training images as a recipe augments them."""

from dataclasses import replace
from typing import Any

import numpy as np
from PIL import Image

from reszoo.architecture import architecture
from reszoo.cards import new_card
from reszoo.data.examples import Examples
from reszoo.data.pipeline import Augmentation, quietly, training_batches
from reszoo.data.sources import open_source
from reszoo.errors import UsageError
from reszoo.files import StrPath, as_path, atomic_file
from reszoo.preprocessing import Preprocessing
from reszoo.training.recipes import Recipe, find_recipe
from reszoo.training.run import augmentation_of

_ROWS, _COLUMNS = 6, 8


def preview(
    data: Any, recipe: str | Recipe = "finetune", *, model: str = "resnet18",
    size: int | tuple[int, int] | None = None,
    output: StrPath | None = None, **fields: Any,
) -> Image.Image:  # fmt: skip
    """Show training images as a recipe augments them.

    Mixup and cutmix, which mix the images of a batch, are not shown.

    Args:
        data: As for `reszoo.train`.
        recipe: Name of a recipe, or a recipe of your own.
        model: Whose size and preprocessing count.
        size: Another size, as for `reszoo.train`.
        output: A `.png` file to write; None writes nothing.
        **fields: Fields of the recipe to change.

    Returns:
        An image in each row, in eight variants.

    Raises:
        DataError: The images cannot be used.
        UsageError: An argument is invalid.

    Example:
        >>> reszoo.preview("photos/", "finetune", policy="trivial")
    """
    chosen = find_recipe(recipe, **fields)
    path = None if output is None else as_path(output)
    if path is not None and path.suffix.lower() != ".png":
        raise UsageError(f"A preview is written as .png. Received: {output}.")
    source = open_source(data, bad_images="skip")
    source.announce()
    preprocessing = new_card(architecture(model)).preprocessing
    if side := size or chosen.train_size:
        preprocessing = replace(preprocessing, train_size=side)
    augmentation = augmentation_of(chosen, preprocessing, source.flip_safe)
    examples = source.examples("train")
    picture = augmented(examples, preprocessing, augmentation, chosen.seed)
    if path is not None:
        with atomic_file(path) as temporary:
            picture.save(temporary, "PNG")
    return picture


def augmented(
    examples: Examples,
    preprocessing: Preprocessing,
    augmentation: Augmentation,
    seed: int,
) -> Image.Image:
    """Return a grid with an image in each row, in variants as training draws them."""
    count = min(_ROWS, len(examples))
    indices = np.linspace(0, len(examples) - 1, count).astype(np.int64)
    # Rows are told by the targets, for every epoch has an order of its own.
    few = replace(examples.take(indices), targets=np.arange(count))
    plain = replace(augmentation, repeats=1, sampling=None)
    batches = training_batches(
        few, preprocessing, plain, batch_size=count, seed=seed, epoch=0, epochs=_COLUMNS
    )
    columns = [
        np.asarray(images)[np.argsort(np.asarray(targets))]
        for images, targets in quietly(batches)
    ]
    grid = np.concatenate([np.concatenate([*each], axis=0) for each in columns], axis=1)
    return Image.fromarray(grid[..., 0] if grid.shape[-1] == 1 else grid)
