"""What the numbers of a study say, in words; the words follow from the numbers."""

import math
from collections.abc import Iterable

from reszoo.studies.families import OPTIONS, Net
from reszoo.studies.results import Spread, StudyResult

# A difference below this is none, whatever the seeds' spread: half a point.
_LEAST = 0.005
# Standard errors by which means must differ: about 95 %.
_ERRORS = 2.0


def conclude(result: StudyResult) -> list[str]:
    """Return the conclusion of a study as sentences, the claim's fate last."""
    kinds = sorted({net.shortcut for net in result.nets}, key=lambda kind: kind)
    told = [_of_kind(result, kind) for kind in sorted(kinds, key=_plain_first)]
    return [*(words for words, _ in told if words), _verdict(result)]


def trend(shallow: Spread, deep: Spread) -> str:
    """Return "rises", "falls" or "stays" for errors from shallow to deep.

    A change counts when it is more than half a point and more than two standard
    errors of the difference of the means.
    """
    change = deep.mean - shallow.mean
    if abs(change) <= max(_LEAST, _ERRORS * _standard_error(shallow, deep)):
        return "stays"
    return "rises" if change > 0 else "falls"


def _standard_error(*spreads: Spread) -> float:
    return math.sqrt(sum((each.deviation or 0) ** 2 / each.seeds for each in spreads))


def _plain_first(kind: str) -> tuple[bool, str]:
    return kind != "none", kind


def _ends(result: StudyResult, kind: str) -> tuple[Net, Net]:
    nets = [net for net in result.nets if net.shortcut == kind]
    return nets[0], nets[-1]


def _of_kind(result: StudyResult, kind: str) -> tuple[str, str]:
    """Return a sentence about one kind of net, and its trend."""
    shallow, deep = _ends(result, kind)
    if shallow == deep:
        return "", ""
    errors = result.training_error(shallow), result.training_error(deep)
    found = trend(*errors)
    verb = {
        "rises": "rises",
        "falls": "falls",
        "stays": "does not change beyond the spread of the seeds",
    }[found]
    sentence = (
        f"{_name(kind)}: the training error {verb} with depth, from {errors[0]} % "
        f"({shallow.layers} layers) to {errors[1]} % ({deep.layers} layers)."
    )
    return sentence, found


def _name(kind: str) -> str:
    if kind == "none":
        return "Plain nets"
    return f"Residual nets with shortcut option {OPTIONS[kind]}"


def _verdict(result: StudyResult) -> str:
    kinds = {net.shortcut for net in result.nets}
    residual = sorted(kinds - {"none"})
    if "none" not in kinds or not residual:
        return (
            "The claim is about plain and residual nets; this study has one kind only."
        )
    trends = {kind: _of_kind(result, kind)[1] for kind in kinds}
    if not all(trends.values()):
        return "The claim is about depth; this study has one depth only."
    if _few_seeds(result.nets, result):
        caution = " One seed shows no spread: read this as an example, not as proof."
    else:
        caution = ""
    return _fate(trends["none"], [trends[kind] for kind in residual]) + caution


def _fate(plain: str, residual: list[str]) -> str:
    if plain == "rises" and "rises" not in residual:
        return (
            "This supports the claim: without shortcuts more layers made even the "
            "training error worse, with shortcuts they did not."
        )
    if plain == "rises":
        return (
            "This supports half of the claim: plain nets got worse with depth, but so "
            "did residual nets in this training."
        )
    if plain == "stays":
        return (
            "This does not decide the claim: plain nets did not get worse beyond the "
            "spread of the seeds at these depths and this length of training."
        )
    return (
        "This does not support the claim: plain nets got better with depth. Deeper "
        "nets or a harder task may show another end."
    )


def _few_seeds(nets: Iterable[Net], result: StudyResult) -> bool:
    return min(len(result.of(net)) for net in nets) < 2
