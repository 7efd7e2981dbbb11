"""The variants that a study compares, as data: one row per family."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, get_args

from reszoo.architecture import architecture
from reszoo.errors import UnknownNameError, UsageError
from reszoo.specs import SPECS, Shortcut

if TYPE_CHECKING:
    import keras

# The paper's letters for shortcuts, section 4.1; C is a projection in every block.
OPTIONS = {"identity": "A", "projection": "B", "projection-all": "C"}


@dataclass(frozen=True, kw_only=True, order=True)
class Variant:
    """A network of a study: its depth and its kind of shortcuts.

    Attributes:
        layers: Number of weighted layers.
        shortcut: "none" is a plain network; the others are those of `reszoo.build`.
    """

    layers: int
    shortcut: Shortcut

    @property
    def plain(self) -> bool:
        """Whether it has no shortcuts."""
        return self.shortcut == "none"

    @property
    def label(self) -> str:
        """Its name in tables and plots, such as "plain-56" or "residual-56 (B)"."""
        if self.plain:
            return f"plain-{self.layers}"
        return f"residual-{self.layers} ({OPTIONS[self.shortcut]})"


@dataclass(frozen=True, kw_only=True)
class Family:
    """Networks that differ in depth and shortcuts alone.

    Attributes:
        name: The `family` argument of `reszoo.study`.
        layers: Available depths; None is any.
        default_layers: Depths that are compared by default.
        shortcuts: Available kinds.
        digits_steps: Steps on digits after which the deep ones have converged.
        build: From a variant, the images' side and the number of classes to a model
            from images to logits.
        title: Of its networks in plots.
    """

    name: str
    layers: tuple[int, ...] | None
    default_layers: tuple[int, ...]
    shortcuts: tuple[str, ...]
    digits_steps: int
    build: Callable[[Variant, int, int], "keras.Model"]
    title: str

    def variants(
        self, layers: tuple[int, ...], shortcuts: tuple[str, ...]
    ) -> list[Variant]:
        """Return every depth with every shortcut, shallow before deep.

        Raises:
            UnknownNameError: The family has no such shortcut.
            UsageError: The family has no such depth, or nothing is compared.
        """
        for shortcut in shortcuts:
            if shortcut not in self.shortcuts:
                raise UnknownNameError("shortcut", shortcut, self.shortcuts)
        for depth in layers:
            if self.layers is not None and depth not in self.layers:
                raise UsageError(
                    f"The {self.name} family has networks of "
                    f"{', '.join(map(str, self.layers))} layers. Received: {depth}."
                )
        if not layers or not shortcuts:
            raise UsageError(
                "A study compares at least one depth with one kind of shortcut. "
                f"Received: layers={layers}, shortcuts={shortcuts}."
            )
        kinds = [shortcut for shortcut in get_args(Shortcut) if shortcut in shortcuts]
        return [
            Variant(layers=depth, shortcut=kind)
            for kind in sorted(kinds, key=lambda kind: kind != "none")
            for depth in sorted(set(layers))
        ]


def _convolutional(variant: Variant, side: int, classes: int) -> "keras.Model":
    from reszoo.resnet import build_resnet

    kind = "plain" if variant.plain else "resnet"
    built = architecture(
        f"{kind}{variant.layers}",
        input_shape=(side, side, 3),
        classes=classes,
        shortcut=variant.shortcut,
    )
    return build_resnet(built, seed=0)


def _dense(variant: Variant, side: int, classes: int) -> "keras.Model":
    from reszoo.blocks import mlp

    return mlp(
        variant.layers,
        classes=classes,
        input_shape=(side, side, 3),
        shortcut=variant.shortcut,
        seed=0,
    )


_CIFAR_LAYERS = tuple(
    int(name.removeprefix("resnet"))
    for name, row in SPECS.items()
    if name.startswith("resnet") and row.image_size == 32
)
_TABLE = (
    Family(
        name="cifar", layers=_CIFAR_LAYERS, default_layers=(20, 56, 110),
        shortcuts=get_args(Shortcut), digits_steps=160, build=_convolutional,
        title="convolutional networks of He et al. 2015, section 4.2",
    ),
    Family(
        name="dense", layers=None, default_layers=(10, 20, 50, 100),
        shortcuts=("none", "identity"), digits_steps=400, build=_dense,
        title="multilayer perceptrons, 64 wide",
    ),
)  # fmt: skip
FAMILIES = {family.name: family for family in _TABLE}


def find_family(name: str) -> Family:
    """Return a row by its name.

    Raises:
        UnknownNameError: There is no such family.
    """
    if name not in FAMILIES:
        raise UnknownNameError("family", name, FAMILIES)
    return FAMILIES[name]
