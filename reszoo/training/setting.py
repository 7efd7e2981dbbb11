"""What a run is: everything about it that does not change while it goes on."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import keras

from reszoo.cards import Card
from reszoo.data.pipeline import Augmentation
from reszoo.data.sources import Source
from reszoo.training.distribution import Devices
from reszoo.training.phases import Phase
from reszoo.training.recipes import Recipe

# Where BiT's HyperRule (arXiv:1912.11370, section 3.3) also parts small pictures from
# large ones: a quarter of a small one, made large, shows little of it.
_SMALL = 96


@dataclass(frozen=True, kw_only=True)
class Setting:
    """Everything about a run that does not change while it goes on.

    Attributes:
        model: What the caller gave; untouched until the end.
        card: Its card, with the data's labels and the recipe's image sizes.
        source: The images.
        recipe: What is carried out.
        phases: The same, divided.
        folder: Where the run is kept; None keeps nothing. Of several workers the
            chief keeps it.
        save_every: Seconds between two states in the middle of an epoch.
        devices: Over which each batch is spread.
        conditions: What must be the same when the run is resumed, as JSON values.
    """

    model: keras.Model
    card: Card
    source: Source
    recipe: Recipe
    phases: tuple[Phase, ...]
    folder: Path | None
    save_every: float
    devices: Devices
    conditions: dict[str, Any] = field(default_factory=dict)

    @property
    def epochs(self) -> int:
        """Number of epochs over all phases."""
        return sum(phase.epochs for phase in self.phases)

    def phase_of(self, epoch: int) -> Phase:
        """Return the phase of an epoch, counted from 0; the last one at the end."""
        begun = [phase for phase in self.phases if phase.first_epoch <= epoch]
        return begun[-1]

    @property
    def augmentation(self) -> Augmentation:
        """How training images are varied."""
        recipe, side = self.recipe, self.card.preprocessing.train_size
        flip = self.source.mirror_safe if recipe.flip is None else recipe.flip
        kind: Literal["pad", "resized"] = "pad" if side < _SMALL else "resized"
        return Augmentation(
            crop=kind if recipe.crop == "auto" else recipe.crop,
            pad=round(recipe.pad * side),
            scale=recipe.scale,
            ratio=recipe.ratio,
            flip=flip,
            policy=recipe.policy,
            erase=recipe.erase,
            repeats=recipe.repeats,
        )
