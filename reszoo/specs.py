"""What every net of the zoo is made of, as data.

`SPECS` has one row per variant. An `Architecture` is a row together with the
options of one `build` call: all that is needed to make the same model again.
"""

import fnmatch
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, get_args

from reszoo.errors import UnknownNameError, UsageError

Block = Literal["basic", "bottleneck"]
Stem = Literal["imagenet", "cifar"]
Shortcut = Literal["identity", "projection", "projection-all", "none"]
StrideIn = Literal["1x1", "3x3"]
Pooling = Literal["avg", "max"]
ClassifierActivation = Literal["softmax"]
InputShape = tuple[int | None, int | None, int]


@dataclass(frozen=True, kw_only=True)
class ResNetSpec:
    """One variant of the zoo.

    Attributes:
        name: What `reszoo.build` calls it.
        block: "basic" is two 3x3 convolutions, "bottleneck" 1x1, 3x3, 1x1.
        depths: Number of blocks in each stage.
        widths: Channels of the 3x3 convolutions in each stage.
        stem: "imagenet" is a 7x7 convolution and a pool, "cifar" one 3x3.
        shortcut: The paper's option, see `reszoo.build`.
        classes: Number of classes of the data set it was designed for.
        image_size: Side of the square images it was designed for, in pixels.
        source: Where the table row comes from.
    """

    name: str
    block: Block
    depths: tuple[int, ...]
    widths: tuple[int, ...]
    stem: Stem
    shortcut: Shortcut
    classes: int
    image_size: int
    source: str


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """A variant and the options of one `build` call, complete and checked."""

    spec: str
    shortcut: Shortcut
    stride_in: StrideIn
    input_shape: InputShape
    include_top: bool
    classes: int | None
    pooling: Pooling | None
    features: Literal["pyramid"] | None
    classifier_activation: ClassifierActivation | None

    def to_json(self) -> dict[str, Any]:
        """Return the fields as plain JSON values."""
        return {**asdict(self), "input_shape": list(self.input_shape)}


# He et al. 2015 (arXiv:1512.03385), table 1.
_IMAGENET = {
    18: ("basic", (2, 2, 2, 2)),
    34: ("basic", (3, 4, 6, 3)),
    50: ("bottleneck", (3, 4, 6, 3)),
    101: ("bottleneck", (3, 4, 23, 3)),
    152: ("bottleneck", (3, 8, 36, 3)),
}
# The same paper, section 4.2: 6n + 2 layers in three stages.
_CIFAR = {6 * n + 2: (n, n, n) for n in (3, 5, 7, 9, 18)}


def _table() -> dict[str, ResNetSpec]:
    residual = [
        ResNetSpec(
            name=f"resnet{layers}",
            block=block,  # type: ignore[arg-type]
            depths=depths,
            widths=(64, 128, 256, 512),
            stem="imagenet",
            shortcut="projection",
            classes=1000,
            image_size=224,
            source="He et al. 2015, table 1; option B as in section 4.1",
        )
        for layers, (block, depths) in _IMAGENET.items()
    ] + [
        ResNetSpec(
            name=f"resnet{layers}",
            block="basic",
            depths=depths,
            widths=(16, 32, 64),
            stem="cifar",
            shortcut="identity",
            classes=10,
            image_size=32,
            source="He et al. 2015, section 4.2; option A as there",
        )
        for layers, depths in _CIFAR.items()
    ]
    plain = [
        replace(
            spec,
            name=spec.name.replace("resnet", "plain"),
            shortcut="none",
            source=f"{spec.source.split(';')[0]}; {spec.name} without its shortcuts",
        )
        for spec in residual
    ]
    return {spec.name: spec for spec in (*residual, *plain)}


SPECS: dict[str, ResNetSpec] = _table()


def list_models(pattern: str = "*") -> list[str]:
    """List the names that `reszoo.build` knows.

    Args:
        pattern: A glob such as `"resnet*"` or `"*18"`.

    Returns:
        The matching names, ImageNet nets first, shallow before deep.
    """
    return [name for name in SPECS if fnmatch.fnmatchcase(name, pattern)]


def spec(name: str) -> ResNetSpec:
    """Return the table's row for `name`.

    Raises:
        UnknownNameError: No row has this name; the message tells the nearest.
    """
    if name not in SPECS:
        raise UnknownNameError("model", name, SPECS)
    return SPECS[name]


def architecture(
    name: str,
    *,
    include_top: bool = True,
    input_shape: Sequence[int | None] | None = None,
    pooling: str | None = None,
    classes: int | None = None,
    classifier_activation: str | None = None,
    shortcut: str | None = None,
    stride_in: str | None = None,
    features: str | None = None,
) -> Architecture:
    """Check the options of a `build` call and fill in the variant's defaults.

    Args:
        name: A name of `list_models()`.
        include_top: See `reszoo.build`, as for all that follow.
        input_shape: As above.
        pooling: As above.
        classes: As above.
        classifier_activation: As above.
        shortcut: As above.
        stride_in: As above.
        features: As above.

    Raises:
        UnknownNameError: A name is in no table.
        UsageError: Options contradict each other or are out of range.
    """
    row = spec(name)
    shortcut = _one_of("shortcut", shortcut or row.shortcut, Shortcut)
    stride_in = _one_of("stride_in", stride_in or "3x3", StrideIn)
    if pooling is not None:
        _one_of("pooling", pooling, Pooling)
    if classifier_activation is not None:
        _one_of("classifier_activation", classifier_activation, ClassifierActivation)
    if features is not None:
        _one_of("features", features, Literal["pyramid"])
    _check_shortcut(row, shortcut)
    if stride_in == "1x1" and row.block == "basic":
        raise UsageError(
            f'stride_in="1x1" needs bottleneck blocks. {name} has basic blocks, whose '
            "first convolution is 3x3; leave stride_in out."
        )
    _check_head(include_top, classes, classifier_activation, pooling, features)
    return Architecture(
        spec=name,
        shortcut=shortcut,  # type: ignore[arg-type]
        stride_in=stride_in,  # type: ignore[arg-type]
        input_shape=_input_shape(input_shape, row, include_top),
        include_top=include_top,
        classes=(classes or row.classes) if include_top else None,
        pooling=pooling,  # type: ignore[arg-type]
        features=features,  # type: ignore[arg-type]
        classifier_activation=classifier_activation,  # type: ignore[arg-type]
    )


def architecture_from_json(content: dict[str, Any]) -> Architecture:
    """Return what `Architecture.to_json` wrote, checked like a fresh request."""
    options = dict(content)
    return architecture(options.pop("spec"), **options)


def _one_of(argument: str, value: str, literal: Any) -> str:
    choices = get_args(literal)
    if value not in choices:
        raise UnknownNameError(argument, value, choices)
    return value


def _check_shortcut(row: ResNetSpec, shortcut: str) -> None:
    if row.shortcut == "none" and shortcut != "none":
        raise UsageError(
            f"{row.name} is a net without shortcuts. Received: shortcut={shortcut!r}. "
            f"Build {row.name.replace('plain', 'resnet')!r} for one that has them."
        )


def _check_head(
    include_top: bool,
    classes: int | None,
    classifier_activation: str | None,
    pooling: str | None,
    features: str | None,
) -> None:
    if classes is not None and (isinstance(classes, bool) or classes < 1):
        raise UsageError(f"classes must be at least 1. Received: classes={classes}.")
    headless_only = {"pooling": pooling, "features": features}
    head_only = {"classes": classes, "classifier_activation": classifier_activation}
    for argument, value in (headless_only if include_top else head_only).items():
        if value is not None:
            raise UsageError(
                f"{argument} has a meaning only with include_top={not include_top}. "
                f"Received: {argument}={value!r}, include_top={include_top}."
            )
    if pooling and features:
        raise UsageError(
            'features="pyramid" gives the feature maps themselves. '
            f"Received: pooling={pooling!r} as well; leave one of them out."
        )


def _input_shape(
    shape: Sequence[int | None] | None, row: ResNetSpec, include_top: bool
) -> InputShape:
    if shape is None:
        side = row.image_size if include_top else None
        return (side, side, 3)
    height, width, channels = shape if len(shape) == 3 else (0, 0, 0)
    sides_ok = all(side is None or side >= 1 for side in (height, width))
    if not sides_ok or channels is None or channels < 1:
        raise UsageError(
            "input_shape must be (height, width, channels) of positive numbers; height "
            f"and width may be None. Received: input_shape={tuple(shape)}."
        )
    return (height, width, channels)
