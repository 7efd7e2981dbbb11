"""How other libraries name the tensors of a ResNet, and what their files do not tell.

A scheme is recognised by the name of the first convolution of the first block, behind
any prefix (`module.`, `backbone.`, `encoder.`, ...), and by what else the file has.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest
from typing import Any

import numpy as np

from reszoo.architecture import StrideIn
from reszoo.cards import Card
from reszoo.errors import CheckpointError, summarized
from reszoo.fields import read_tables
from reszoo.preprocessing import Preprocessing
from reszoo.weights.configs import as_labels
from reszoo.weights.names import COUNTER, HEAD, Tensors, to_float32


@dataclass(frozen=True)
class _Names:
    """One way of naming the modules of a ResNet without its classifier."""

    anchor: str  # convolution that every file has, the first of the first block
    rules: tuple[tuple[Any, ...], ...]  # see schemes.toml

    def torchvision(self, name: str) -> str | None:
        """Return torchvision's name of a tensor; None if it is not of the backbone."""
        for pattern, *renaming in self.rules:
            if found := re.match(rf"{pattern}(?=\.)", name):
                if not renaming:
                    return name
                template, offsets = renaming
                pairs = zip(found.groups(), offsets, strict=True)
                place = template.format(*(int(group) + more for group, more in pairs))
                return f"{place}{name[found.end() :]}"
        return None


@dataclass(frozen=True, kw_only=True)
class Scheme:
    """How the files of one library are recognised and read."""

    library: str  # for messages
    # Of the modules of the backbone, by their names in schemes.toml.
    names: Sequence[str] = ("torchvision", "numbered")
    # What is found besides: a key of the file, the prefix, or a tensor that is not of
    # the backbone, as a regular expression.
    mark: str = ""
    # Whether what follows the backbone is a projection, which training compares, and no
    # classifier, even if it is one dense layer.
    projects: bool = False
    dilates: bool = False  # whether dilation replaces strides, which no tensor tells
    bgr: bool = False  # whether images are BGR
    # Mean and deviation of the pixels in 0..255, if not ImageNet's.
    levels: Sequence[Sequence[float]] = ()
    stride_in: StrideIn | None = None  # in bottlenecks, by default
    note: str = ""  # what is assumed without a config.json

    def fits(self, names: str, keys: Iterable[object]) -> bool:
        """Return whether a file with these names and keys is of the library."""
        marked = (re.fullmatch(rf"(.*\.)?({self.mark})", str(key)) for key in keys)
        return names in self.names and (not self.mark or any(marked))


_TABLES = read_tables("reszoo.weights", "schemes.toml")
_NAMES = {name: _Names(**row) for name, row in _TABLES["names"].items()}
SCHEMES = tuple(Scheme(**row) for row in _TABLES["schemes"])
_WRAPPERS, _CLASSIFIERS = _TABLES["wrappers"], _TABLES["classifiers"]
_COPY, _BESIDE, _PREFIXES = (
    re.compile(_TABLES[name]) for name in ("copies", "beside", "modules")
)
# torch's AveragedModel counts its updates beside the weights.
_BOOKKEEPING = "n_averaged"
# Where training scripts keep labels, beside the weights or in these settings.
_CLASS_NAMES = (
    "class_to_idx", "idx_to_class", "id2label", "class_names", "classes", "labels",
)  # fmt: skip
_SETTINGS = ("hyper_parameters", "hparams", "config", "args", "meta")
_MOST_LEVELS = 4
# Characters: names are longer in no file, and searched with regular expressions.
_LONG, _MOST_TEXT = 300, 200_000


@dataclass(frozen=True, kw_only=True)
class Contents:
    """The contents of a weight file."""

    tensors: Tensors  # under torchvision's names and in its layouts
    card: Card | None = None  # if reszoo wrote the file
    preprocessing: Preprocessing | None = None  # as the format implies, without a card
    labels: tuple[str, ...] | None = None  # likewise, if as many as the classes
    stride_in: StrideIn | None = None  # as the format implies; tensors are the same
    scheme: Scheme | None = None  # of a file with torch's names
    in_order: bool = False  # whether tensors are in the order of their modules
    skipped: tuple[str, ...] = ()  # tensors of the file that are not of the model
    notes: tuple[str, ...] = ()  # what the user should know of how it was read
    dilates: bool = False  # whether strides may be replaced by dilation
    mapping: tuple[tuple[str, str], ...] = ()  # modules that were matched by order


def read_state_dict(tree: Any, source: str) -> Contents:
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
    given, (found, originals) = len(found), _without_twins(found, originals)
    if len(originals) > 1:
        listed = [prefix or "names without prefix" for _, prefix in originals]
        raise CheckpointError(
            f"{source} holds more than one ResNet: {summarized(listed)}. Save the "
            "tensors of one."
        )
    if not originals:
        plain = {name: _PREFIXES.sub("", name) for name in found}
        return Contents(tensors=_renamed(found, plain, source), scheme=SCHEMES[-1])
    names, prefix = originals[0]
    ours = _backbone(found, names, prefix)
    counters = (COUNTER, _BOOKKEEPING)
    others = [x for x in found if x not in ours and x.split(".")[-1] not in counters]
    keys = (*tree, *place, prefix, *others)
    scheme = next(each for each in SCHEMES if each.fits(names, keys))
    scheme, labels = _of_openmmlab(_of_detectron2(scheme, found), tree)
    labels = labels or _class_names(tree, notes)
    head = {} if scheme.projects else _classifier(found, others, ours, prefix)
    # Of a module with two names for its backbone, one of two classifiers is idle.
    dense = [name for name in others if found[name].ndim == 2]
    head = {} if len(found) < given and len(dense) > 1 else head
    left = [name for name in others if name not in head]
    # What is neither behind the prefix nor known to follow a backbone would change
    # what it computes: it stays, and is refused as part of another model.
    rest = {name: name[len(prefix) :] for name in left if name.startswith(prefix)}
    ours |= head | {k: v for k, v in rest.items() if not _BESIDE.fullmatch(v)}
    tensors = _renamed(found, ours, source)
    first = tensors.get("conv1.weight")
    if scheme.bgr and first is not None and first.shape[1:2] == (3,):
        tensors["conv1.weight"] = first[:, ::-1]
    skipped = tuple(name for name in left if name not in ours)
    if skipped and not head:
        projection = f"a projection of {scheme.library}"
        what = projection if scheme.projects else "no single dense layer with a bias"
        notes.append(f"what follows the backbone is {what}, so there is no classifier")
    dilates = scheme.dilates and any(found[name].ndim == 4 for name in skipped)
    return Contents(
        tensors=tensors, scheme=scheme, skipped=skipped, dilates=dilates,
        notes=(*notes,), labels=labels,
    )  # fmt: skip


def _backbone(found: Iterable[str], names: str, prefix: str) -> dict[str, str]:
    """Return torchvision's names of the tensors of a backbone."""
    rest = {name: name[len(prefix) :] for name in found if name.startswith(prefix)}
    known = {name: _NAMES[names].torchvision(each) for name, each in rest.items()}
    return {name: ours for name, ours in known.items() if ours is not None}


def _without_twins(
    found: Tensors, originals: list[tuple[str, str]]
) -> tuple[Tensors, list[tuple[str, str]]]:
    """Leave out what a module that has its backbone under two names saves again."""
    named = [
        {ours: name for name, ours in _backbone(found, *each).items()}
        for each in originals
    ]
    twins = {
        place: {*other.values()}
        for place, other in enumerate(named)
        if place and other.keys() == named[0].keys()
        and all(found[other[x]] is found[named[0][x]] for x in other)  # in one storage
    }  # fmt: skip
    again: set[str] = set().union(*twins.values())
    left = {name: each for name, each in found.items() if name not in again}
    return left, [each for i, each in enumerate(originals) if i not in twins]


def _of_detectron2(scheme: Scheme, found: Tensors) -> Scheme:
    """Return a scheme with the statistics that detectron2 saved until 2020."""
    last = {name.rpartition(".")[2]: each for name, each in found.items()}
    pair = [last[each] for each in ("pixel_mean", "pixel_std") if each in last]
    if scheme.library != "detectron2" or [each.size for each in pair] != [3, 3]:
        return scheme
    levels = [each.ravel().tolist() for each in pair]
    # Of photos, as in both defaults, blue has the lowest mean.
    bgr = levels[0][0] <= levels[0][-1]
    levels = [each[:: -1 if bgr else 1] for each in levels]
    return replace(
        scheme, bgr=bgr, levels=levels,
        note=f"PIXEL_MEAN and PIXEL_STD are the file's; {('RGB', 'BGR')[bgr]} is told "
        "by their order, and of bottlenecks STRIDE_IN_1X1 True is assumed; "
        'reszoo.build(name, weights=..., stride_in="3x3") is for False',
    )  # fmt: skip


def _of_openmmlab(scheme: Scheme, tree: Any) -> tuple[Scheme, tuple[str, ...] | None]:
    """Return a scheme as the meta data of an OpenMMLab file has it, and the labels."""
    meta = tree.get("meta") if isinstance(tree, Mapping) else None
    if not isinstance(meta, Mapping):
        return scheme, None
    data = meta.get("dataset_meta")
    listed = data.get("classes") if isinstance(data, Mapping) else meta.get("CLASSES")
    listed = [*listed] if isinstance(listed, list | tuple) else []
    fits = all(isinstance(x, str) for x in listed)
    text = meta.get("cfg", meta.get("config"))
    text = text[:_MOST_TEXT] if isinstance(text, str) else ""
    if re.search("""style=["']caffe""", text):
        scheme = replace(scheme, stride_in="1x1")
    patterns = (rf"{name}=\[([\d., ]{{5,99}})\]" for name in ("mean", "std"))
    found = [re.search(pattern, text) for pattern in patterns]
    if all(found):
        # In the order of the channels of the model.
        step = -1 if "to_rgb=False" in text else 1
        lists = [re.findall(r"\d+\.?\d*", each[1])[::step] for each in found if each]
        levels = [[float(x) for x in each] for each in lists]
        scheme = replace(scheme, levels=levels, bgr=step < 0)
    return scheme, as_labels(listed) if fits else None


def _class_names(tree: Any, notes: list[str]) -> tuple[str, ...] | None:
    """Return the labels that a training script saved beside the weights."""
    beside = tree if isinstance(tree, Mapping) else {}
    nested = [beside.get(key) for key in _SETTINGS]
    for holder in (beside, *(each for each in nested if isinstance(each, Mapping))):
        for key in _CLASS_NAMES:
            value = holder.get(key)
            if isinstance(value, list | tuple):
                value = dict(enumerate(value))
            if not value or not isinstance(value, Mapping):
                continue
            if all(type(each) is int for each in value.values()):
                value = {index: label for label, index in value.items()}
            numbered = {str(index): label for index, label in value.items()}
            listed = [numbered.get(str(index)) for index in range(len(holder[key]))]
            if all(isinstance(x, str) and x and x.isprintable() for x in listed):
                return as_labels(listed)
            notes.append(f"{key} is left out: it does not name the classes from 0 on")
    return None


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
    named = {k: v for k, v in tree.items() if isinstance(k, str) and len(k) < _LONG}
    yield place, {k: v for k, v in named.items() if isinstance(v, np.ndarray)}
    for key, value in named.items():
        yield from _dicts(value, (*place, key))


def _prefixes(found: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Yield how the modules of each ResNet are named, and what precedes the names."""
    for name in found:
        for kind, names in _NAMES.items():
            prefix = name.removesuffix(names.anchor)
            if prefix != name and (not prefix or prefix.endswith(".")):
                yield kind, prefix


def _classifier(
    found: Tensors, others: Sequence[str], ours: Mapping[str, str], prefix: str
) -> dict[str, str]:
    """Return torchvision's names of the classifier, if it is a single dense layer."""
    # Layers beside it (a normalization, a second dense layer) make it another function,
    # so modules are looked at as a whole, such as "fc" for `fc.1.weight`.
    last = max(name.split(".")[0] for name in ours.values() if name[:5] == "layer")
    kernels = (n for n, name in ours.items() if name.split(".")[0] == last)
    sizes = [len(found[name]) for name in kernels if found[name].ndim == 4]
    features = max(sizes, default=0)
    modules: dict[str, list[str]] = {}
    for name in others:
        # The first part that it does not share with the prefix.
        pairs = zip_longest(name.split("."), prefix.split("."))
        module = next((a for a, b in pairs if a != b), "") or ""
        modules.setdefault(module, []).append(name)
    plain: dict[str, dict[str, str]] = {}
    for module, names in modules.items():
        layer = names[0].rpartition(".")[0]
        weight, bias = f"{layer}.weight", f"{layer}.bias"
        # Torchvision's own is kept whatever its shape, to be refused by that.
        usual = layer == f"{prefix}fc"
        if {*names} == {weight, bias} and (
            usual or found[weight].shape[1:] == (features,)
        ):
            plain[module] = dict(zip((weight, bias), HEAD, strict=True))
    chosen = next((plain[each] for each in _CLASSIFIERS if each in plain), None)
    dense = [name for name in others if found[name].ndim == 2 and "weight" in name]
    if chosen is None and len(plain) == len(dense) == 1:
        (chosen,) = plain.values()
    if chosen is None:
        return {}
    # A module of another name may normalize the features, or take the outputs.
    classes = len(found[next(iter(chosen))])
    beside = [name for name in others if name not in chosen and not _COPY.match(name)]
    shapes = [found[name].shape for name in beside if name.endswith(".weight")]
    alone = all(x != (features,) and x[1:] != (classes,) for x in shapes)
    return chosen if alone else {}


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
