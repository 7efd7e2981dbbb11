"""What the models of the ResNet family differ in, and the table of all variants."""

import fnmatch
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from numbers import Integral, Real
from typing import Any, Literal, get_args

from reszoo.errors import Rules, UnknownNameError, UsageError, check_rules

Block = Literal["basic", "bottleneck"]
Stem = Literal["7x7", "3x3", "deep"]
Downsampling = Literal["conv", "avgpool"]
ActivationOrder = Literal["post", "pre"]
Shortcut = Literal["identity", "projection", "projection-all", "none"]
StrideBlock = Literal["first", "last"]

# Keras, ONNX and file names take these.
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,199}")
# Specs also come from files of strangers. The paper's deepest model has 600 blocks,
# all of ImageNet 21,843 classes.
_MOST_BLOCKS = 1000
MOST_CLASSES = 1_000_000
_NUMBERS = ("expansion", "groups", "width_per_group", "classes", "image_size")
_CHOICES = {
    "block": Block, "stem": Stem, "shortcut": Shortcut, "downsampling": Downsampling,
    "activation_order": ActivationOrder, "stride_block": StrideBlock,
}  # fmt: skip


def one_of(argument: str, value: str, literal: Any) -> str:
    """Return a value that is one of a `Literal`'s.

    An UnknownNameError if it is none of them; the message lists them.
    """
    choices = get_args(literal)
    if value not in choices:
        raise UnknownNameError(argument, value, choices)
    return value


def is_count(value: Any) -> bool:
    """Return whether a value is a whole number of at least 1."""
    return isinstance(value, Integral) and is_number(value) and int(value) >= 1


def is_number(value: Any) -> bool:
    """Return whether a value is a real number."""
    return isinstance(value, Real) and not isinstance(value, bool)


@dataclass(frozen=True, kw_only=True)
class ResNetSpec:
    """What the models of the ResNet family differ in.

    `reszoo.build` takes a spec wherever it takes a name; a checkpoint carries it.

    Attributes:
        name: Name of the model: letters, digits, ".", "_" and "-".
        depths: Number of blocks in each stage. All stages but the first halve the
            sides of the image.
        widths: Channels in each stage, before `expansion`.
        block: "basic" has two 3x3 convolutions, "bottleneck" 1x1, 3x3 and 1x1.
        expansion: Channels that a block returns, as a multiple of its width. None is
            1 for basic blocks and 4 for bottlenecks.
        groups: Groups of the 3x3 convolutions of bottlenecks, as in ResNeXt
            (arXiv:1611.05431).
        width_per_group: The 3x3 convolutions of bottlenecks have
            `int(width * width_per_group / 64) * groups` channels, as in torchvision.
        stem: "7x7" is a 7x7 convolution and a max-pooling, of stride 2 each; "deep"
            has three 3x3 convolutions instead of the first (ResNet-C,
            arXiv:1812.01187, timm's resnet50d); "3x3" is one convolution of stride 1
            without pooling, for small images.
        stem_widths: Channels of the stem's convolutions. None is `widths[0]`, which
            the first two of a deep stem halve.
        shortcut: "identity", "projection", "projection-all" or "none", see
            `reszoo.build`.
        downsampling: Where a projection changes the size: "conv" is a 1x1 convolution
            of stride 2; "avgpool" an average pooling in front of one of stride 1
            (ResNet-D, arXiv:1812.01187).
        activation_order: "post" normalizes and activates after each convolution,
            "pre" before (arXiv:1603.05027).
        stride_block: Which block of a stage halves the sides: the "first" of every
            stage but the first one, or the "last" of every stage but the last one, as
            in keras.applications' V2 models. Those shortcuts keep every second pixel,
            and projections stand only where the number of channels changes.
        bias: Whether convolutions that no normalization follows have a bias: the stem,
            the last convolution of a block and projections of pre-activation models.
        epsilon: Added to the variance by batch normalization.
        classes: Number of classes of the data set it is designed for.
        image_size: Side of the square images it is designed for, in pixels.
        source: Where the numbers come from.

    Raises:
        UsageError: A value is out of range or contradicts another.
        UnknownNameError: A value is none of the choices.

    Example:
        >>> spec = reszoo.ResNetSpec(
        ...     name="tiny", depths=(1, 1, 1), widths=(16, 32, 64), stem="3x3",
        ...     classes=10, image_size=32,
        ... )
        >>> model = reszoo.build(spec)
    """

    name: str
    depths: tuple[int, ...]
    widths: tuple[int, ...]
    block: Block = "basic"
    expansion: int | None = None
    groups: int = 1
    width_per_group: int = 64
    stem: Stem = "7x7"
    stem_widths: tuple[int, ...] | None = None
    shortcut: Shortcut = "projection"
    downsampling: Downsampling = "conv"
    activation_order: ActivationOrder = "post"
    stride_block: StrideBlock = "first"
    bias: bool = False
    epsilon: float = 1e-5
    classes: int = 1000
    image_size: int = 224
    source: str = "custom"

    def __post_init__(self) -> None:
        texts = isinstance(self.name, str) and isinstance(self.source, str)
        if not texts or not _NAME.fullmatch(self.name):
            raise UsageError(
                "The name of a spec must consist of letters, digits, '.', '_' and '-'. "
                f"Received: name={self.name!r}."
            )
        fields = ("depths", "widths", *["stem_widths"] * (self.stem_widths is not None))
        for field in fields:
            value = getattr(self, field)
            if not isinstance(value, Sequence) or not all(map(is_count, value or [0])):
                raise UsageError(
                    f"{field} must be a tuple of whole numbers of at least 1. "
                    f"Received: {field}={value!r}."
                )
            object.__setattr__(self, field, tuple(map(int, value)))
        for field in _NUMBERS:
            value = getattr(self, field)
            if not is_count(value) and (field, value) != ("expansion", None):
                raise UsageError(
                    f"{field} must be a whole number of at least 1. "
                    f"Received: {field}={value!r}."
                )
        for field, literal in _CHOICES.items():
            one_of(field, getattr(self, field), literal)
        check_rules(self, _RULES)
        object.__setattr__(self, "epsilon", float(self.epsilon))

    @property
    def stem_stride(self) -> int:
        """Stride of the stem: size of the image over that of the first feature map."""
        return 1 if self.stem == "3x3" else 4

    @property
    def halvings(self) -> int:
        """How often the sides of an image are halved up to the last stage."""
        return len(self.depths) - 1 + (0 if self.stem == "3x3" else 2)

    def to_json(self) -> dict[str, Any]:
        """Return the fields as plain JSON values."""
        content = asdict(self)
        return {k: list(v) if isinstance(v, tuple) else v for k, v in content.items()}


_RULES: Rules = {
    "epsilon must be a number above 0 and at most 1. Received: {epsilon}.": lambda s: (
        is_number(s.epsilon) and 0 < s.epsilon <= 1
    ),
    'bias must be true or false, and needs activation_order="pre": otherwise a '
    "normalization follows every convolution and undoes it. "
    "Received: {bias} with {activation_order}.": lambda s: (
        s.bias is False or (s.bias is True and s.activation_order == "pre")
    ),
    "depths and widths must have one number per stage, and at most "
    f"{_MOST_BLOCKS} blocks in all. Received: {{depths}}, {{widths}}.": lambda s: (
        len(s.depths) == len(s.widths) and sum(s.depths) <= _MOST_BLOCKS
    ),
    "stem_widths must have 1 number(s) for {stem}. "
    "Received: {stem_widths}.": lambda s: (
        s.stem == "deep" or not s.stem_widths or len(s.stem_widths) == 1
    ),
    "stem_widths must have 3 number(s) for {stem}. "
    "Received: {stem_widths}.": lambda s: (
        s.stem != "deep" or not s.stem_widths or len(s.stem_widths) == 3
    ),
    'groups and width_per_group need block="bottleneck". '
    "Received: {groups}, {width_per_group} with {block}.": lambda s: (
        s.block == "bottleneck" or (s.groups, s.width_per_group) == (1, 64)
    ),
    "A group must have at least one channel: width * width_per_group / 64. "
    "Received: {widths}, {width_per_group}.": lambda s: (
        min(s.widths) * s.width_per_group >= 64
    ),
    f"A model may have at most {MOST_CLASSES:,} classes. "
    "Received: {classes}.": lambda s: s.classes <= MOST_CLASSES,
}


# He et al. 2015 (arXiv:1512.03385), table 1.
_IMAGENET: dict[str, tuple[Block, tuple[int, ...]]] = {
    "resnet18": ("basic", (2, 2, 2, 2)),
    "resnet34": ("basic", (3, 4, 6, 3)),
    "resnet50": ("bottleneck", (3, 4, 6, 3)),
    "resnet101": ("bottleneck", (3, 4, 23, 3)),
    "resnet152": ("bottleneck", (3, 8, 36, 3)),
}
# The same paper, section 4.2: 6n + 2 layers in three stages.
_CIFAR = (1, 2, 3, 5, 7, 9, 18, 200)
_WIDE = "Zagoruyko and Komodakis 2016 (arXiv:1605.07146)"
# torchvision's: name, model that it widens, groups, their width, and source.
_WIDER = (
    ("resnext50_32x4d", "resnet50", 32, 4, "Xie et al. 2017 (arXiv:1611.05431)"),
    ("resnext101_32x8d", "resnet101", 32, 8, "Mahajan et al. 2018 (arXiv:1805.00932)"),
    ("resnext101_64x4d", "resnet101", 64, 4, "Xie et al. 2017 (arXiv:1611.05431)"),
    ("wide_resnet50_2", "resnet50", 1, 128, f"{_WIDE}, table 9"),
    ("wide_resnet101_2", "resnet101", 1, 128, f"torchvision, as {_WIDE}, table 9"),
)
# timm's: model whose blocks they have, and how many; "t" narrows the stem.
_DEEP = {
    "resnet10t": ("resnet18", (1, 1, 1, 1)),
    "resnet14t": ("resnet50", (1, 1, 1, 1)),
    "resnet26t": ("resnet50", (2, 2, 2, 2)),
    "resnet18d": ("resnet18", (2, 2, 2, 2)),
    "resnet26d": ("resnet50", (2, 2, 2, 2)),
    "resnet34d": ("resnet34", (3, 4, 6, 3)),
    "resnet50d": ("resnet50", (3, 4, 6, 3)),
    "resnet101d": ("resnet101", (3, 4, 23, 3)),
    "resnet152d": ("resnet152", (3, 8, 36, 3)),
}
_IDENTITY = "He et al. 2016 (arXiv:1603.05027)"
# Name, block, blocks in each stage, and how much wider than the models of 2015.
_PRE: tuple[tuple[str, Block, int, int], ...] = (
    ("preresnet20", "basic", 3, 1),
    ("preresnet56", "basic", 9, 1),
    ("preresnet110", "basic", 18, 1),
    ("preresnet164", "bottleneck", 18, 1),
    ("preresnet1001", "bottleneck", 111, 1),
    ("wrn16_4", "basic", 2, 4),
    ("wrn40_2", "basic", 6, 2),
    ("wrn28_10", "basic", 4, 10),
)


def _imagenet() -> dict[str, ResNetSpec]:
    """Return the models for images of 224 pixels."""
    rows = {}
    for name, (block, depths) in _IMAGENET.items():
        rows[name] = ResNetSpec(
            name=name, block=block, depths=depths, widths=(64, 128, 256, 512),
            source="He et al. 2015, table 1; option B as in section 4.1",
        )  # fmt: skip
    for name, like, groups, width, source in _WIDER:
        changes: dict[str, Any] = {"groups": groups, "width_per_group": width}
        rows[name] = replace(rows[like], name=name, source=source, **changes)
    for name, (like, depths) in _DEEP.items():
        first = 24 if name.endswith("t") else 32
        rows[name] = replace(
            rows[like], name=name, depths=depths, downsampling="avgpool",
            stem="deep", stem_widths=(first, 32, 64),
            source="timm; He et al. 2018 (arXiv:1812.01187)",
        )  # fmt: skip
    for like in ("resnet50", "resnet101", "resnet152"):
        rows[f"{like}v2"] = replace(
            rows[like], name=f"{like}v2", activation_order="pre", stride_block="last",
            bias=True, epsilon=1.001e-5, source=f"keras.applications; {_IDENTITY}",
        )  # fmt: skip
    return rows


def _cifar() -> dict[str, ResNetSpec]:
    """Return the models for images of 32 pixels."""
    rows = {}
    for name, n in ((f"resnet{6 * n + 2}", n) for n in _CIFAR):
        rows[name] = ResNetSpec(
            name=name, depths=(n, n, n), widths=(16, 32, 64), stem="3x3",
            shortcut="identity", classes=10, image_size=32,
            source="He et al. 2015, section 4.2; option A as there",
        )  # fmt: skip
    for name, block, depth, factor in _PRE:
        is_projected = block == "bottleneck" or factor > 1
        rows[name] = replace(
            rows["resnet20"], name=name, block=block, activation_order="pre",
            depths=(depth,) * 3, widths=tuple(factor * w for w in (16, 32, 64)),
            stem_widths=(16,), shortcut="projection" if is_projected else "identity",
            source=f"{_IDENTITY}, table 3" if factor == 1 else f"{_WIDE}, table 1",
        )  # fmt: skip
    return rows


def _table() -> dict[str, ResNetSpec]:
    rows = _imagenet() | _cifar()
    for like in (*_IMAGENET, *(f"resnet{6 * n + 2}" for n in _CIFAR)):
        name, spec = like.replace("resnet", "plain"), rows[like]
        source = f"{spec.source.split(';')[0]}; {like} without its shortcuts"
        rows[name] = replace(spec, name=name, shortcut="none", source=source)
    return rows


SPECS: dict[str, ResNetSpec] = _table()


def list_models(pattern: str = "*") -> list[str]:
    """List the names that `reszoo.build` knows.

    Args:
        pattern: A glob such as `"resnet*"` or `"*18"`.

    Returns:
        The matching names, ImageNet models first, shallow before deep.
    """
    return [name for name in SPECS if fnmatch.fnmatchcase(name, pattern)]


def find_spec(spec: str | ResNetSpec) -> ResNetSpec:
    """Return the row of the table with a name, or a custom spec itself.

    An UnknownNameError if no row has this name; the message lists the nearest; a
    UsageError if a custom spec has the name of a row.
    """
    if isinstance(spec, str):
        if spec not in SPECS:
            raise UnknownNameError("model", spec, SPECS)
        return SPECS[spec]
    if SPECS.get(spec.name, spec) != spec:
        raise UsageError(
            f"{spec.name!r} is a model of reszoo that differs from this spec. "
            f"Received: name={spec.name!r}; give the spec another name."
        )
    return spec
