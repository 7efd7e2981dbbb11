"""Assign tensors by their order and shapes, where the names of modules say nothing.

Modules of torch register in the order in which their program makes them, mostly that of
computation. What another order would also explain is refused, never guessed.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby, islice, pairwise
from typing import Literal

from reszoo.architecture import (
    FINAL_NORM,
    NORM_TENSORS,
    Architecture,
    Convolution,
    convolutions,
    tensor_shapes,
)
from reszoo.errors import CheckpointError, UsageError
from reszoo.specs import ResNetSpec
from reszoo.weights.loading import with_shortcuts
from reszoo.weights.names import COUNTER
from reszoo.weights.schemes import SCHEMES, Contents

Match = Literal["order"]
_LEAVES = (*NORM_TENSORS, COUNTER)


@dataclass(frozen=True)
class _Module:
    name: str
    place: int  # among the modules of the file
    shape: tuple[int, ...]  # of its kernel, or the length of a normalization

    def __str__(self) -> str:
        return f"{self.name} {self.shape}"


def match_by_order(
    contents: Contents, spec: ResNetSpec | None, source: str
) -> Contents:
    """Rename the tensors of a file with unknown names, as a spec has them in order.

    A UsageError if the file or the call needs no such thing; a CheckpointError if the
    order is not known, or does not fit, or fits in two ways.
    """
    if spec is None:
        raise UsageError(
            'match="order" needs to know the model. Received: no name; '
            'reszoo.load(path, "resnet18", match="order").'
        )
    if contents.scheme is None or contents.card is not None:
        raise UsageError(
            f'{source} has the names of reszoo or Keras. Received: match="order"; '
            "leave it out."
        )
    convs, norms, dense = _modules(contents, source)
    shape = (None, None, convs[0].shape[1])
    listed = with_shortcuts(spec, include_top=False, input_shape=shape)
    fitting = [each for each in listed if len(convolutions(each)) == len(convs)]
    if not fitting:
        counts = dict.fromkeys(str(len(convolutions(each))) for each in listed)
        raise CheckpointError(
            f"{source} is no {spec.name}: {' or '.join(counts)} convolutions were "
            f"expected. Received: {len(convs)}."
        )
    mapping = dict(_assigned(fitting[0], convs, norms, source))
    mapping |= {module.name: "fc" for module in dense}
    tensors = {}
    for name, tensor in contents.tensors.items():
        module, _, leaf = name.rpartition(".")
        tensors[f"{mapping[module]}.{leaf}"] = tensor
    pairs = tuple(mapping.items())
    return Contents(
        tensors=tensors, labels=contents.labels, scheme=SCHEMES[-1], mapping=pairs
    )


def _modules(
    contents: Contents, source: str
) -> tuple[list[_Module], list[_Module], list[_Module]]:
    """List convolutions, normalizations and dense layers in their order."""
    tensors = contents.tensors
    expected = (
        f"{source} cannot be matched by order: only convolutions, batch normalizations "
        f"and one dense layer were expected, with tensors {', '.join(_LEAVES)}"
    )
    for name in tensors:
        if name.rpartition(".")[2] not in _LEAVES:
            raise CheckpointError(f"{expected}. Received: {name}.")
    names = list(dict.fromkeys(name.rpartition(".")[0] for name in tensors))
    if not contents.in_order:
        names = _numbered(names, source)
    convs: list[_Module] = []
    norms: list[_Module] = []
    dense: list[_Module] = []
    # By the number of axes of the weight, and whether there are statistics.
    kind_of = {(4, False): convs, (1, True): norms, (2, False): dense}
    for place, name in enumerate(names):
        shape = tensors[f"{name}.weight"].shape if f"{name}.weight" in tensors else ()
        kind = kind_of.get((len(shape), f"{name}.running_mean" in tensors))
        if kind is None:
            raise CheckpointError(f"{expected}. Received: {name}.")
        kind.append(_Module(name, place, shape))
    if not convs or len(dense) > 1:
        counts = ", ".join(str(len(kind)) for kind in (convs, norms, dense))
        raise CheckpointError(f"{expected}. Received: {counts}.")
    return convs, norms, dense


def _numbered(names: list[str], source: str) -> list[str]:
    """Sort by numbers in the names: a safetensors file is sorted by letters."""

    def key(name: str) -> list[tuple[str, int]]:
        words = re.split(r"(\d{1,9})", name)
        return list(zip(words[::2], [*map(int, words[1::2]), -1], strict=True))

    ordered = sorted(names, key=key)
    for before, after in pairwise(ordered):
        both = zip(key(before), key(after), strict=False)
        stems = next((a[0], b[0]) for a, b in both if a != b)
        if stems[0] != stems[1]:
            raise CheckpointError(
                f"{source} has lost the order of its modules, as safetensors files do "
                f"unless numbers tell it. Received: {before} and {after}; save the "
                "tensors with torch.save."
            )
    return ordered


def _assigned(
    candidate: Architecture, convs: list[_Module], norms: list[_Module], source: str
) -> Iterator[tuple[str, str]]:
    """Yield pairs of a module's name in the file and in the model."""
    widths = tensor_shapes(candidate)
    left, normal = iter(convs), iter(norms)
    for block, group in groupby(convolutions(candidate), lambda each: each.block):
        listed = list(group)
        given = list(islice(left, len(listed)))
        ordered = _ordered(listed, given, block or "the stem", source)
        expected = [name for each in ordered for name in each.norms]
        found = list(islice(normal, len(expected)))
        shapes = [widths[f"{name}.weight"] for name in expected]
        if [module.shape for module in found] != shapes:
            raise _mismatch(block or "the stem", shapes, found, source)
        if any(each.is_shortcut and each.norm for each in ordered):
            # By their number alone, the two paths could have each other's.
            places = [x.place for pair in zip(given, found, strict=True) for x in pair]
            if places != sorted(places):
                raise _ambiguous(block, found, source)
        yield from zip((x.name for x in given), (x.name for x in ordered), strict=True)
        yield from zip((module.name for module in found), expected, strict=True)
    rest = list(normal)
    last = [FINAL_NORM] if f"{FINAL_NORM}.weight" in widths else []
    if len(rest) != len(last):
        raise _mismatch("the end", last, rest, source)
    yield from zip((module.name for module in rest), last, strict=True)


def _ordered(
    listed: list[Convolution], given: list[_Module], block: str, source: str
) -> list[Convolution]:
    """Return the convolutions of a block as a file has them, its shortcut anywhere."""
    main = [each for each in listed if not each.is_shortcut]
    extra = [each for each in listed if each.is_shortcut]
    places = range(len(main) + 1) if extra else range(1)
    orders = [[*main[:place], *extra, *main[place:]] for place in places]
    shapes = [module.shape for module in given]
    fitting = [each for each in orders if [conv.shape for conv in each] == shapes]
    if not fitting:
        raise _mismatch(block, [conv.shape for conv in listed], given, source)
    if len(fitting) > 1:
        same = [m for m, a, b in zip(given, *fitting[:2], strict=True) if a != b]
        raise _ambiguous(block, same, source)
    return fitting[0]


def _ambiguous(block: str, same: Sequence[_Module], source: str) -> CheckpointError:
    return CheckpointError(
        f"{source} fits {block} in more than one way: "
        f"{' and '.join(module.name for module in same)} could be exchanged, being of "
        "the same shape. Rename the tensors as torchvision does."
    )


def _mismatch(
    block: str, expected: Sequence[object], given: Sequence[_Module], source: str
) -> CheckpointError:
    wanted, found = (", ".join(map(str, x)) or "nothing" for x in (expected, given))
    return CheckpointError(
        f"{source} does not fit {block} by order: {wanted} was expected. "
        f"Received: {found}."
    )
