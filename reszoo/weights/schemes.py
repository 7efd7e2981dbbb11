"""How other libraries name the tensors of a ResNet, and what their files do not tell.

A scheme is recognised by the name of the first convolution of the first block, behind
any prefix (`module.`, `backbone.`, `encoder.`, ...), and by what else the file has.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

import numpy as np

from reszoo.architecture import StrideIn
from reszoo.errors import CheckpointError
from reszoo.preprocessing import Preprocessing
from reszoo.weights.names import COUNTER, HEAD, Tensors, summarized, to_float32

# The beginning of a name, torchvision's name with a place for each group, and what is
# added to the groups, which are numbers; None keeps the name.
_Rule = tuple[str, str | None, tuple[int, ...]]


@dataclass(frozen=True)
class _Names:
    """One way of naming the modules of a ResNet without its classifier."""

    anchor: str  # convolution that every file has, the first of the first block
    rules: tuple[_Rule, ...]

    def torchvision(self, name: str) -> str | None:
        """Return torchvision's name of a tensor; None if it is not of the backbone."""
        for pattern, template, offsets in self.rules:
            if found := re.match(rf"{pattern}(?=\.)", name):
                if template is None:
                    return name
                pairs = zip(found.groups(), offsets, strict=True)
                place = template.format(*(int(group) + more for group, more in pairs))
                return place + name[found.end() :]
        return None


_TORCHVISION = _Names(
    "layer1.0.conv1.weight",
    (
        # The other common name of the projection in models for CIFAR.
        (r"layer(\d+)\.(\d+)\.shortcut", "layer{}.{}.downsample", (0, 0)),
        (r"(?:conv\d+|bn\d+|norm|layer\d+)", None, ()),
    ),
)
# `torch.nn.Sequential(*resnet.children())`: 2 is the activation and 3 the pooling.
_NUMBERED = _Names(
    "4.0.conv1.weight",
    (
        ("0", "conv1", ()),
        ("1", "bn1", ()),
        (r"([4-7])", "layer{}", (-3,)),
    ),
)
_BLOCK = r"encoder\.stages\.(\d+)\.layers\.(\d+)"
_TRANSFORMERS = _Names(
    "encoder.stages.0.layers.0.layer.0.convolution.weight",
    (
        (r"embedder\.embedder\.convolution", "conv1", ()),
        (r"embedder\.embedder\.normalization", "bn1", ()),
        (rf"{_BLOCK}\.shortcut\.convolution", "layer{}.{}.downsample.0", (1, 0)),
        (rf"{_BLOCK}\.shortcut\.normalization", "layer{}.{}.downsample.1", (1, 0)),
        (rf"{_BLOCK}\.layer\.(\d)\.convolution", "layer{}.{}.conv{}", (1, 0, 1)),
        (rf"{_BLOCK}\.layer\.(\d)\.normalization", "layer{}.{}.bn{}", (1, 0, 1)),
    ),
)
_DETECTRON2 = _Names(
    "res2.0.conv1.weight",
    (
        (r"stem\.conv1\.norm", "bn1", ()),
        (r"stem\.conv1", "conv1", ()),
        (r"res(\d)\.(\d+)\.shortcut\.norm", "layer{}.{}.downsample.1", (-1, 0)),
        (r"res(\d)\.(\d+)\.shortcut", "layer{}.{}.downsample.0", (-1, 0)),
        (r"res(\d)\.(\d+)\.conv(\d)\.norm", "layer{}.{}.bn{}", (-1, 0, 0)),
        (r"res(\d)\.(\d+)\.conv(\d)", "layer{}.{}.conv{}", (-1, 0, 0)),
    ),
)
_ANY = (_TORCHVISION, _NUMBERED)
# detectron2's defaults: BGR in 0..255, of which the mean is subtracted.
_CAFFE = Preprocessing(
    train_size=224,
    eval_size=224,
    crop_pct=0.875,
    interpolation="bilinear",
    mean=(123.675 / 255, 116.28 / 255, 103.53 / 255),
    std=(1 / 255,) * 3,
)


@dataclass(frozen=True, kw_only=True)
class Scheme:
    """How the files of one library are recognised and read.

    Attributes:
        library: Its name, for messages.
        names: Ways in which it names the modules of the backbone.
        mark: What is found besides, as a regular expression for a whole line: a key of
            the file, the prefix, or a tensor that is not of the backbone.
        projects: Whether what follows the backbone is a projection, which training
            compares, and no classifier, even if it is one dense layer.
        dilates: Whether it replaces strides by dilation, which no tensor tells.
        bgr: Whether images are BGR.
        preprocessing: Of its models by default.
        stride_in: Which convolution of a bottleneck has the stride by default.
        note: What is assumed, because the file does not tell.
    """

    library: str
    names: tuple[_Names, ...]
    mark: str = ""
    projects: bool = False
    dilates: bool = False
    bgr: bool = False
    preprocessing: Preprocessing | None = None
    stride_in: StrideIn | None = None
    note: str = ""

    def fits(self, names: _Names, keys: Iterable[str]) -> bool:
        """Return whether a file with these names and keys is of the library."""
        marked = (re.fullmatch(self.mark, str(key)) for key in keys)
        return names in self.names and (not self.mark or any(marked))


# The first that fits is taken.
SCHEMES = (
    Scheme(
        library="detectron2",
        names=(_DETECTRON2,),
        bgr=True,
        preprocessing=_CAFFE,
        stride_in="1x1",
        note="detectron2's defaults are assumed: INPUT.FORMAT BGR (conv1 is reversed, "
        "so that the model takes RGB), PIXEL_STD 1, and of bottlenecks STRIDE_IN_1X1 "
        'True; reszoo.build(name, weights=..., stride_in="3x3") is for False',
    ),
    Scheme(library="Hugging Face Transformers", names=(_TRANSFORMERS,)),
    Scheme(
        library="MoCo",
        names=_ANY,
        mark=r"(.*\.)?(encoder_[qk]|base_encoder|momentum_encoder)\..*",
        projects=True,
    ),
    Scheme(library="SwAV", names=_ANY, mark=r"(.*\.)?prototypes\..*", projects=True),
    Scheme(
        library="DINO",
        names=_ANY,
        mark=r"dino_loss|(.*\.)?last_layer\..*",
        projects=True,
    ),
    Scheme(
        library="BYOL",
        names=_ANY,
        mark=r"(.*\.)?(online|target)_[a-z_]+(\..*)?|(.*\.)?(backbone_momentum|"
        r"momentum_backbone)\..*",
        projects=True,
    ),
    Scheme(
        library="SimSiam",
        names=_ANY,
        mark=r"(.*\.)?(predictor|prediction_head)\..*",
        projects=True,
    ),
    Scheme(
        library="self-supervised training",
        names=_ANY,
        mark=r"(.*\.)?(projector|projection|projection_head|projetion)\..*",
        projects=True,
    ),
    Scheme(
        library="segmentation",
        names=_ANY,
        mark=r"(.*\.)?(aux_classifier|decode_head|auxiliary_head|classifier\.4)\..*",
        dilates=True,
    ),
    Scheme(library="torchvision detection", names=_ANY, mark=r"(.*\.)?body\..*"),
    Scheme(library="mmpretrain", names=_ANY, mark=r"head\.fc\..*"),
    Scheme(library="Lightning", names=_ANY, mark="pytorch-lightning_version"),
    Scheme(library="fastai", names=(_NUMBERED,), mark=r"0\..*"),
    Scheme(library="torchvision", names=_ANY),
)
# Where training scripts keep the weights, in timm's order: averaged ones first, and of
# two models that teach each other the one that is used afterwards.
_WRAPPERS = (
    *("state_dict_ema", "model_ema", "teacher", "online_network_state_dict"),
    *("state_dict", "model_state_dict", "model", "module", "net", "student"),
)
# Copies that follow the model while it is trained, by their prefix.
_COPY = re.compile(
    r"(.*\.)?(encoder_k|momentum_\w+|\w+_momentum|target\w*|online_\w+_target)\."
)
# What may follow or surround a model whose names have no prefix.
_BESIDE = re.compile(
    r"(fc|linear|last_linear|head\w*|classifier\w*|proj\w*|pred\w*|prototypes|mlp|"
    r"queue\w*|criterion|loss\w*|\w+_loss|\w+_acc|\w+_metrics?)\b.*"
)
# torch's AveragedModel counts its updates beside the weights.
_BOOKKEEPING = "n_averaged"
_MOST_LEVELS = 4
# Wrappers of modules, which nest.
_PREFIXES = re.compile(r"^((module|model|_orig_mod)\.)*")
# Names of classifiers; one dense layer of another name is one if it is the only one.
_CLASSIFIERS = ("fc", "linear", "head", "classifier")


@dataclass(frozen=True, kw_only=True)
class StateDict:
    """The tensors of a file under torchvision's names, and what else is known."""

    tensors: Tensors
    scheme: Scheme = SCHEMES[-1]
    skipped: tuple[str, ...] = ()  # tensors of the file that are not of the model
    notes: tuple[str, ...] = ()  # what the user should know of how it was read
    dilates: bool = False  # whether strides may be replaced by dilation
    mapping: tuple[tuple[str, str], ...] = ()  # modules that were matched by order


def read_state_dict(tree: Any, source: str) -> StateDict:
    """Find the weights in what a file holds, and name them as torchvision does.

    From nested containers with arrays, it takes the backbone and the classifier: a
    single dense layer on the pooled features, whatever it is called. What is not of
    the model (other heads, losses, copies) is listed. Half precision becomes float32,
    which is exact. A CheckpointError if there are no weights, more than one ResNet, or
    two tensors of one name.
    """
    place, found, notes = _chosen(tree, source)
    matched = dict.fromkeys(_prefixes(found))
    originals = [each for each in matched if not _COPY.match(each[1])] or [*matched]
    if len(originals) > 1:
        listed = summarized(
            [prefix or "names without prefix" for _, prefix in originals]
        )
        raise CheckpointError(
            f"{source} holds more than one ResNet: {listed}. Save the tensors of one."
        )
    if not originals:
        plain = {name: _PREFIXES.sub("", name) for name in found}
        return StateDict(tensors=_renamed(found, plain, source))
    names, prefix = originals[0]
    ours: dict[str, str] = {}
    others = []
    for name in found:
        inside = name.startswith(prefix)
        known = names.torchvision(name[len(prefix) :]) if inside else None
        if known is not None:
            ours[name] = known
        elif name.rsplit(".", 1)[-1] not in (COUNTER, _BOOKKEEPING):
            others.append(name)
    keys = (*tree, *place, prefix, *others)
    scheme = next(each for each in SCHEMES if each.fits(names, keys))
    head = {} if scheme.projects else _classifier(found, others, ours, prefix)
    left = [name for name in others if name not in head]
    # What is neither behind the prefix nor known to follow a backbone would change
    # what it computes: it stays, and is refused as part of another model.
    rest = {name: name[len(prefix) :] for name in left if name.startswith(prefix)}
    ours |= head | {k: v for k, v in rest.items() if not _BESIDE.fullmatch(v)}
    tensors = _renamed(found, ours, source)
    if scheme.bgr and tensors["conv1.weight"].shape[1:2] == (3,):
        tensors["conv1.weight"] = tensors["conv1.weight"][:, ::-1]
    skipped = tuple(name for name in left if name not in ours)
    if skipped and not head:
        what = "a projection" if scheme.projects else "no single dense layer"
        notes.append(f"what follows the backbone is {what}, so there is no classifier")
    return StateDict(
        tensors=tensors,
        scheme=scheme,
        skipped=skipped,
        dilates=scheme.dilates and any(found[name].ndim == 4 for name in skipped),
        notes=(*notes, *filter(None, [scheme.note])),
    )


def _chosen(tree: Any, source: str) -> tuple[tuple[str, ...], Tensors, list[str]]:
    """Return where the weights are, the weights, and what is to be said of that."""
    found = [(place, each) for place, each in _dicts(tree) if each]
    models = [each for each in found if any(_prefixes(each[1]))]

    def rank(entry: tuple[tuple[str, ...], Tensors]) -> list[int]:
        known = len(_WRAPPERS)
        return [_WRAPPERS.index(k) if k in _WRAPPERS else known for k in entry[0]]

    ranked = sorted(models or found, key=rank)
    if not ranked:
        raise CheckpointError(
            f"{source} holds no weights of a model: a dictionary of named tensors was "
            f"expected, alone or under {', '.join(_WRAPPERS)}."
        )
    place, tensors = ranked[0]
    taken, *others = (".".join(each[0]) for each in ranked)
    if not models or not others:
        return place, tensors, []
    if rank(ranked[0]) == rank(ranked[1]):
        raise CheckpointError(
            f"{source} holds more than one ResNet: {summarized([taken, *others])}. "
            "Save one of them."
        )
    return place, tensors, [f"{taken} is loaded, not {summarized(others)}"]


def _dicts(
    tree: Any, place: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], Tensors]]:
    """Yield the arrays of each dictionary, and the keys that lead to it."""
    if not isinstance(tree, Mapping) or len(place) > _MOST_LEVELS:
        return
    named = {key: value for key, value in tree.items() if isinstance(key, str)}
    yield place, {k: v for k, v in named.items() if isinstance(v, np.ndarray)}
    for key, value in named.items():
        yield from _dicts(value, (*place, key))


def _prefixes(found: Iterable[str]) -> Iterator[tuple[_Names, str]]:
    """Yield how the modules of each ResNet are named, and what precedes the names."""
    for name in found:
        for names in (_TORCHVISION, _NUMBERED, _TRANSFORMERS, _DETECTRON2):
            prefix = name.removesuffix(names.anchor)
            if prefix != name and (not prefix or prefix.endswith(".")):
                yield names, prefix


def _classifier(
    found: Tensors, others: Sequence[str], ours: Mapping[str, str], prefix: str
) -> dict[str, str]:
    """Return torchvision's names of the classifier, if it is a single dense layer.

    Layers beside it (a normalization, a second dense layer) make it another function,
    so modules are looked at as a whole, such as "fc" for `fc.1.weight`.
    """
    last = max(name.split(".")[0] for name in ours.values() if name[:5] == "layer")
    kernels = (n for n, name in ours.items() if name.split(".")[0] == last)
    features = max(len(found[n]) for n in kernels if found[n].ndim == 4)
    modules: dict[str, list[str]] = {}
    for name in others:
        modules.setdefault(_module(name, prefix), []).append(name)
    plain: dict[str, dict[str, str]] = {}
    for module, names in modules.items():
        pair = dict(zip(sorted(names), reversed(HEAD), strict=False))
        ends = [name.rsplit(".", 1) for name in sorted(names)]
        layers = len({layer for layer, _ in ends})
        is_pair = layers == 1 and [leaf for _, leaf in ends] == ["bias", "weight"]
        # Torchvision's own is kept whatever its shape, to be refused by that.
        usual = pair.keys() == {f"{prefix}{name}" for name in HEAD}
        if is_pair and (usual or found[sorted(names)[1]].shape[1:] == (features,)):
            plain[module] = pair
    chosen = next((plain[each] for each in _CLASSIFIERS if each in plain), None)
    dense = [name for name in others if found[name].ndim == 2 and "weight" in name]
    if chosen is None and len(plain) == len(dense) == 1:
        (chosen,) = plain.values()
    return chosen or {}


def _module(name: str, prefix: str) -> str:
    """Return the first part of a name that it does not share with the prefix."""
    parts, shared = name.split("."), prefix.split(".")
    return next((a for a, b in zip_longest(parts, shared) if a != b), "") or ""


def _renamed(found: Tensors, names: Mapping[str, str], source: str) -> Tensors:
    tensors: Tensors = {}
    for name, ours in names.items():
        if ours == _BOOKKEEPING:
            continue
        if ours in tensors:
            raise CheckpointError(f"{source} holds {ours} twice, also as {name}.")
        if ours.endswith(COUNTER):
            tensors[ours] = np.asarray(found[name], np.int64)
        else:
            tensors[ours] = to_float32(found[name], ours, source)
    return tensors
