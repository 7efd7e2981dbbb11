"""A spec with the options of one `build` call, and the list of its convolutions.

All that needs to know how a model is made (the builder, loading, freezing, folding,
timm's config, the reader of Keras models) goes by `convolutions`.
"""

import math
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, fields
from functools import lru_cache
from itertools import groupby
from typing import Annotated, Any, ClassVar, Literal

from reszoo import specs
from reszoo.errors import Rules, UsageError, check_rules
from reszoo.fields import check_fields, converted, plain_values

StrideIn = Literal["1x1", "3x3"]
InputShape = tuple[int | None, int | None, int]
# Of the last stage, in pixels of the image, as timm has them.
_OUTPUT_STRIDES = (8, 16, 32)
# Batch normalization after the last block of a pre-activation model.
FINAL_NORM = "norm"
# torch's names of the tensors of a batch normalization.
NORM_TENSORS = ("weight", "bias", "running_mean", "running_var")


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """A spec and the options of one `build` call, complete and checked."""

    spec: specs.ResNetSpec
    shortcut: specs.Shortcut
    stride_in: StrideIn
    input_shape: InputShape
    include_top: bool
    classes: Annotated[int | None, specs.CLASSES]
    pooling: Literal["avg", "max"] | None
    features: Literal["pyramid"] | None
    classifier_activation: Literal["softmax"] | None
    output_stride: int | None = None
    dropout: Annotated[float, "[0, 1)"] = 0.0

    def __post_init__(self) -> None:
        check_fields(self)
        _check_shortcut(self.spec, self.shortcut)
        check_rules(self, _RULES)
        # What a model has anyway is None, so that equal architectures compare equal.
        if self.output_stride == self.spec.reduction:
            object.__setattr__(self, "output_stride", None)

    @property
    def reduction(self) -> int:
        """Output stride: size of the image over that of the last feature map."""
        return self.output_stride or self.spec.reduction

    @property
    def name(self) -> str:
        """Name of the spec."""
        return self.spec.name

    def options(self) -> dict[str, Any]:
        """Return all fields but the spec: what `architecture` takes."""
        return {name: getattr(self, name) for name in OPTIONS}

    def to_json(self) -> dict[str, Any]:
        """Return the fields as plain JSON values; a row of the table as its name."""
        known = specs.SPECS.get(self.name) == self.spec
        # Cards, and with them files, of models without these options stay as they were.
        added: dict[str, Any] = {"output_stride": None, "dropout": 0.0}
        options = self.options().items()
        return {
            "spec": self.name if known else self.spec.to_json(),
            **{name: v for name, v in options if name not in added or v != added[name]},
            "input_shape": list(self.input_shape),
        }


OPTIONS = tuple(field.name for field in fields(Architecture) if field.name != "spec")
"""Arguments of `reszoo.build` that change the architecture."""
ScoreActivation = Literal["softmax", "sigmoid"]
_KERAS_KIND = "keras"


@dataclass(frozen=True, kw_only=True)
class KerasArchitecture:
    """An image classifier that reszoo did not build, known by its exported files."""

    name: str
    input_shape: Annotated[InputShape, "[1, inf)"]
    classes: Annotated[int, "[2, inf)"]  # number of scores
    # What makes probabilities of logits: "sigmoid" where each class has a probability
    # of its own, so that they need not add up to 1.
    activation: ScoreActivation
    # The largest change of a probability by computing in float32, and by weights in
    # float16, where it is more than usual; otherwise 0.
    rounding: Annotated[tuple[float, float], "[0, 1]"] = (0.0, 0.0)
    include_top: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_fields(self)
        if not self.name or not self.name.isprintable():
            raise UsageError(
                "The name of a model must be one line of printable text. Received: "
                f"name={self.name!r}."
            )

    def to_json(self) -> dict[str, Any]:
        """Return the fields as plain JSON values."""
        return {"kind": _KERAS_KIND, **plain_values(self)}


@dataclass(frozen=True, kw_only=True)
class Convolution:
    """One convolution of an architecture, padded symmetrically.

    Those without `norm` have a bias where the spec says so.
    """

    name: str  # of its layer, as torchvision and timm name modules
    norm: str | None  # the batch normalization after it, if one follows
    # The one before it that follows no other convolution: the first of a pre-activation
    # block.
    norm_before: str | None = None
    stage: int = 0  # from 1 on, 0 in the stem
    block: str = ""  # such as "layer1.0"; "" in the stem
    is_shortcut: bool = False  # the projection of its block's shortcut
    kernel_size: int  # side, in pixels
    in_channels: int  # of its input
    filters: int  # channels of its output
    groups: int = 1  # of channels that it convolves separately
    stride: int = 1  # step of the kernel, in pixels
    dilation: int = 1  # Pixels from one row or column of the kernel to the next.
    pool: int = 0  # Stride of the 2x2 average pooling before it; 0 where there is none.

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Shape of the kernel in torch's layout: (out, in / groups, height, width)."""
        sides = (self.kernel_size, self.kernel_size)
        return (self.filters, self.in_channels // self.groups, *sides)

    @property
    def keras_shape(self) -> tuple[int, int, int, int]:
        """Shape of the kernel in Keras' layout: (height, width, in / groups, out)."""
        filters, channels, height, width = self.shape
        return (height, width, channels, filters)

    @property
    def norms(self) -> tuple[str, ...]:
        """Names of the batch normalizations before and after it."""
        return tuple(filter(None, (self.norm_before, self.norm)))


@lru_cache(maxsize=1024)  # several times the table, which bare tensors are held against
def convolutions(architecture: Architecture) -> tuple[Convolution, ...]:
    """List the convolutions of an architecture, from the image to the classifier.

    The convolutions of a block come in order, its projection after them. Strides beyond
    an output stride become dilation of all that follows, as in torchvision
    (`replace_stride_with_dilation`) and timm (`output_stride`).
    """
    spec = architecture.spec
    found, reached, dilation = list(_stem(architecture)), spec.stem_stride, 1
    channels = found[-1].filters
    stages = zip(spec.depths, spec.widths, strict=True)
    for stage, (depth, width) in enumerate(stages, start=1):
        first = spec.stride_block == "first"
        halves = stage > 1 if first else stage < len(spec.depths)
        for index in range(depth):
            stride = 2 if halves and index == (0 if first else depth - 1) else 1
            place = {"stage": stage, "block": f"layer{stage}.{index}"}
            left = architecture.reduction // reached
            strides = (stride, min(stride, left))
            path = list(_path(architecture, width, channels, strides, dilation, place))
            filters = path[-1].filters
            found += path
            changes = channels != filters or (first and stride > 1)
            projected = ("projection-all", *("projection",) * changes)
            if architecture.shortcut in projected:
                found.append(_projection(spec, channels, filters, strides, place))
            channels = filters
            reached, dilation = reached * strides[1], dilation * stride // strides[1]
    return tuple(found)


def standalone_norms(architecture: Architecture) -> tuple[str, ...]:
    """List the batch normalizations that follow no convolution of their own."""
    if architecture.spec.activation_order == "post":
        return ()
    before = (each.norm_before for each in convolutions(architecture))
    return (*filter(None, before), FINAL_NORM)


def tensor_shapes(architecture: Architecture) -> dict[str, tuple[int, ...]]:
    """Return the weights of an architecture: torchvision's names and shapes."""
    shapes: dict[str, tuple[int, ...]] = {}
    listed = convolutions(architecture)
    widths: dict[str | None, int] = {}
    for each in listed:
        shapes[f"{each.name}.weight"] = each.shape
        if architecture.spec.bias and each.norm is None:
            shapes[f"{each.name}.bias"] = (each.filters,)
        widths |= {each.norm_before: each.in_channels, each.norm: each.filters}
    features = listed[-1].filters
    if architecture.spec.activation_order == "pre":
        widths[FINAL_NORM] = features
    for norm, width in widths.items():
        if norm is not None:
            shapes |= {f"{norm}.{kind}": (width,) for kind in NORM_TENSORS}
    if (classes := architecture.classes) is not None:
        shapes |= {"fc.weight": (classes, features), "fc.bias": (classes,)}
    return shapes


def count_parameters(architecture: Architecture) -> int:
    """Return the number of trainable weights of an architecture."""
    shapes = tensor_shapes(architecture).items()
    return sum(math.prod(s) for name, s in shapes if ".running_" not in name)


def count_multiply_adds(architecture: Architecture) -> int:
    """Return the multiplications of convolutions and classifier for one image.

    Of a model without fixed sides, for the size that its spec is designed for.
    """
    size = architecture.spec.image_size
    sides = [side or size for side in architecture.input_shape[:2]]
    total, filters = 0, 0
    for block, listed in groupby(convolutions(architecture), lambda each: each.block):
        inner = sides
        for each in listed:
            given = sides if each.is_shortcut else inner
            stride = each.stride * max(1, each.pool)
            output = [-(-side // stride) for side in given]
            total += math.prod(each.shape) * math.prod(output)
            if not each.is_shortcut:
                inner, filters = output, each.filters
        sides = inner
        if not block and architecture.spec.stem != "3x3":
            sides = [-(-side // 2) for side in sides]
    return total + filters * (architecture.classes or 0)


# Names of convolution and normalization, kernel size and stride.
_STEMS: dict[specs.Stem, tuple[tuple[str, str, int, int], ...]] = {
    "7x7": (("conv1", "bn1", 7, 2),),
    "3x3": (("conv1", "bn1", 3, 1),),
    "deep": (
        ("conv1.0", "conv1.1", 3, 2),
        ("conv1.3", "conv1.4", 3, 1),
        ("conv1.6", "bn1", 3, 1),
    ),
}


def _stem_widths(spec: specs.ResNetSpec) -> tuple[int, ...]:
    width = spec.widths[0]
    half = max(1, width // 2)
    usual = (half, half, width) if spec.stem == "deep" else (width,)
    return spec.stem_widths or usual


def _expansion(spec: specs.ResNetSpec) -> int:
    return spec.expansion or (1 if spec.block == "basic" else 4)


def _stem(architecture: Architecture) -> Iterator[Convolution]:
    spec, channels = architecture.spec, architecture.input_shape[2]
    rows = zip(_STEMS[spec.stem], _stem_widths(spec), strict=True)
    for (name, norm, kernel_size, stride), filters in rows:
        # The first block of a pre-activation model normalizes what the stem returns.
        is_last = spec.activation_order == "pre" and norm == "bn1"
        yield Convolution(
            name=name, norm=None if is_last else norm, kernel_size=kernel_size,
            in_channels=channels, filters=filters, stride=stride,
        )  # fmt: skip
        channels = filters


def _path(
    architecture: Architecture,
    width: int,
    channels: int,
    strides: tuple[int, int],
    dilation: int,
    place: dict[str, Any],
) -> Iterator[Convolution]:
    """Yield the main path of a block; `strides` are the spec's and the one kept."""
    spec, block = architecture.spec, place["block"]
    inner = int(width * spec.width_per_group / 64) * spec.groups
    returned = width * _expansion(spec)
    # Kernel size, channels and groups.
    if spec.block == "basic":
        rows = [(3, width, 1), (3, returned, 1)]
    else:
        rows = [(1, inner, 1), (3, inner, spec.groups), (1, returned, 1)]
    early = spec.block == "basic" or architecture.stride_in == "1x1"
    is_pre = spec.activation_order == "pre"
    for number, (kernel_size, filters, groups) in enumerate(rows, start=1):
        after = number + 1 if is_pre else number
        is_strided = number == (1 if early else 2)
        yield Convolution(
            **place, name=f"{block}.conv{number}",
            norm=f"{block}.bn{after}" if after <= len(rows) else None,
            norm_before=f"{block}.bn1" if is_pre and number == 1 else None,
            kernel_size=kernel_size, in_channels=channels, filters=filters,
            groups=groups, stride=strides[1] if is_strided else 1,
            dilation=dilation if kernel_size > 1 else 1,
        )  # fmt: skip
        if is_strided:
            dilation *= strides[0] // strides[1]
        channels = filters


def _projection(
    spec: specs.ResNetSpec,
    channels: int,
    filters: int,
    strides: tuple[int, int],
    place: dict[str, Any],
) -> Convolution:
    # timm keeps the first place for the pooling, also where there is none.
    pools = spec.downsampling == "avgpool"
    prefix, number = f"{place['block']}.downsample", 1 if pools else 0
    is_post = spec.activation_order == "post"
    return Convolution(
        **place, name=f"{prefix}.{number}", is_shortcut=True, kernel_size=1,
        norm=f"{prefix}.{number + 1}" if is_post else None,
        in_channels=channels, filters=filters, stride=1 if pools else strides[1],
        pool=strides[1] if pools and strides[0] > 1 else 0,
    )  # fmt: skip


def architecture(spec: str | specs.ResNetSpec, **options: Any) -> Architecture:
    """Check the options of a `build` call and fill in the spec's defaults.

    They are the arguments of `reszoo.build` that `OPTIONS` lists. An UnknownNameError
    if a name is in no table; a UsageError if options contradict each other or are out
    of range.
    """
    if unknown := options.keys() - {*OPTIONS}:
        raise TypeError(f"architecture has no option {', '.join(sorted(unknown))}")
    row = specs.find_spec(spec)
    asked = {**dict.fromkeys(OPTIONS), "include_top": True, **options}
    _check_head(asked)
    top, classes = asked["include_top"], asked["classes"]
    filled = {
        "shortcut": asked["shortcut"] or row.shortcut,
        "stride_in": asked["stride_in"] or "3x3",
        "input_shape": _input_shape(asked["input_shape"], row, top),
        "classes": row.classes if top and classes is None else classes,
        "dropout": 0.0 if asked["dropout"] is None else asked["dropout"],
    }
    return Architecture(spec=row, **{**asked, **filled})


_RULES: Rules = {
    'stride_in="1x1" needs bottleneck blocks. {self.spec.name} has basic blocks, whose '
    "first convolution is 3x3; leave stride_in out.": lambda a: (
        a.stride_in != "1x1" or a.spec.block != "basic"
    ),
    'features="pyramid" gives the feature maps themselves. '
    "Received: {pooling} as well; leave one of them out.": lambda a: (
        not a.pooling or not a.features
    ),
    f"output_stride must be one of {_OUTPUT_STRIDES}. "
    "Received: {output_stride}.": lambda a: a.output_stride in (None, *_OUTPUT_STRIDES),
    "A pixel of the last stage of {self.spec.name} stands for only "
    "{self.spec.reduction} pixels of the image. Received: {output_stride}; leave it "
    "out.": lambda a: a.reduction <= a.spec.reduction,
}


def architecture_from_json(content: dict[str, Any]) -> Architecture | KerasArchitecture:
    """Return what `to_json` of either wrote, checked like a fresh request."""
    options = dict(content)
    if options.get("kind") == _KERAS_KIND:
        del options["kind"]
        return KerasArchitecture(**options)
    spec = options.pop("spec")
    row = specs.ResNetSpec(**spec) if isinstance(spec, dict) else spec
    return architecture(row, **options)


def _check_shortcut(row: specs.ResNetSpec, shortcut: str) -> None:
    if row.shortcut == "none" and shortcut != "none":
        twin = row.name.replace("plain", "resnet")
        other = f" Build {twin!r} for one that has them." if twin in specs.SPECS else ""
        raise UsageError(
            f"{row.name} is a model without shortcuts. Received: "
            f"shortcut={shortcut!r}.{other}"
        )
    expansion = _expansion(row)
    channels = [_stem_widths(row)[-1], *(expansion * width for width in row.widths)]
    if shortcut == "identity" and channels != sorted(channels):
        raise UsageError(
            'shortcut="identity" adds channels of zeros, so their number must not '
            f"fall from the stem on. Received: {channels} channels in {row.name}; use "
            'shortcut="projection".'
        )


def _check_head(asked: dict[str, Any]) -> None:
    headless, headed = ("pooling", "features"), ("classes", "classifier_activation")
    top = asked["include_top"]
    for argument in headless if top else headed:
        if (value := asked[argument]) is not None:
            raise UsageError(
                f"{argument} has a meaning only with include_top={not top}. "
                f"Received: {argument}={value!r}, include_top={top}."
            )


def _input_shape(shape: Any, row: specs.ResNetSpec, include_top: bool) -> InputShape:
    if shape is None:
        side = row.image_size if include_top else None
        return (side, side, 3)
    with suppress(TypeError):
        found: InputShape = converted(tuple(shape), InputShape)
        if all(side is None or side >= 1 for side in found):
            return found
    side = shape if isinstance(shape, int) else row.image_size
    raise UsageError(
        "input_shape must be (height, width, channels) of positive numbers, such as "
        f"input_shape=({side}, {side}, 3); height and width may be None. "
        f"Received: input_shape={shape}."
    )
