"""What the models of the ResNet family differ in, and the table of all variants."""

import fnmatch
import re
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal

from reszoo.errors import Rules, UsageError, check_rules, known
from reszoo.fields import check_fields, coerce, inherited, plain_values, read_tables

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
CLASSES = "[1, 1000000]"


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
    depths: Annotated[tuple[int, ...], "[1, inf)"]
    widths: Annotated[tuple[int, ...], "[1, inf)"]
    block: Block = "basic"
    expansion: Annotated[int | None, "[1, inf)"] = None
    groups: Annotated[int, "[1, inf)"] = 1
    width_per_group: Annotated[int, "[1, inf)"] = 64
    stem: Stem = "7x7"
    stem_widths: Annotated[tuple[int, ...] | None, "[1, inf)"] = None
    shortcut: Shortcut = "projection"
    downsampling: Downsampling = "conv"
    activation_order: ActivationOrder = "post"
    stride_block: StrideBlock = "first"
    bias: bool = False
    epsilon: Annotated[float, "(0, 1]"] = 1e-5
    classes: Annotated[int, CLASSES] = 1000
    image_size: Annotated[int, "[1, inf)"] = 224
    source: str = "custom"

    def __post_init__(self) -> None:
        check_fields(self)
        check_rules(self, _RULES)

    @property
    def stem_stride(self) -> int:
        """Stride of the stem: size of the image over that of the first feature map."""
        return 1 if self.stem == "3x3" else 4

    @property
    def reduction(self) -> int:
        """Size of the image over that of the last feature map."""
        reduction: int = self.stem_stride * 2 ** (len(self.depths) - 1)
        return reduction

    def to_json(self) -> dict[str, Any]:
        """Return the fields as plain JSON values."""
        return plain_values(self)


_RULES: Rules = {
    "The name of a spec must consist of letters, digits, '.', '_' and '-'. "
    "Received: {name}.": lambda s: _NAME.fullmatch(s.name),
    'bias needs activation_order="pre": otherwise a normalization follows every '
    "convolution and undoes it. "
    "Received: {bias} with {activation_order}.": lambda s: (
        not s.bias or s.activation_order == "pre"
    ),
    "depths and widths must have one number per stage, and at most "
    f"{_MOST_BLOCKS} blocks in all. Received: {{depths}}, {{widths}}.": lambda s: (
        0 < len(s.depths) == len(s.widths) and sum(s.depths) <= _MOST_BLOCKS
    ),
    'stem_widths must have 3 numbers for stem="deep", otherwise one. '
    "Received: {stem_widths} for {stem}.": lambda s: (
        s.stem_widths is None or len(s.stem_widths) == (3 if s.stem == "deep" else 1)
    ),
    'groups and width_per_group need block="bottleneck". '
    "Received: {groups}, {width_per_group} with {block}.": lambda s: (
        s.block == "bottleneck" or (s.groups, s.width_per_group) == (1, 64)
    ),
    "A group must have at least one channel: width * width_per_group / 64. "
    "Received: {widths}, {width_per_group}.": lambda s: (
        min(s.widths) * s.width_per_group >= 64
    ),
}


def _table() -> dict[str, ResNetSpec]:
    """Read the rows of `specs.toml`; add the paper's models without shortcuts."""
    listed = inherited(read_tables("reszoo", "specs.toml"))
    rows = {name: ResNetSpec(name=name, **row) for name, row in listed.items()}
    for like in filter(re.compile(r"resnet\d+").fullmatch, list(rows)):
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
    pattern = coerce("pattern", pattern, (str,))
    return [name for name in SPECS if fnmatch.fnmatchcase(name, pattern)]


def find_spec(spec: str | ResNetSpec) -> ResNetSpec:
    """Return the row of the table with a name, or a custom spec itself.

    An UnknownNameError if no row has this name; the message lists the nearest; a
    UsageError if a custom spec has the name of a row.
    """
    spec = coerce("model", spec, (str, ResNetSpec))
    if isinstance(spec, str):
        return SPECS[known("model", spec, SPECS)]
    if SPECS.get(spec.name, spec) != spec:
        raise UsageError(
            f"{spec.name!r} is a model of reszoo that differs from this spec. "
            f"Received: name={spec.name!r}; give the spec another name."
        )
    return spec
