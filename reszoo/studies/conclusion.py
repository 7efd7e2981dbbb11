"""What the numbers of a study say, in words; the words follow from the numbers."""

import math
from dataclasses import dataclass

from reszoo.studies.families import OPTIONS, Net
from reszoo.studies.results import Spread, StudyResult

# A difference below this is none, whatever the seeds' spread: half a point.
_LEAST = 0.005
# Standard errors by which means must differ: about 95 %.
_ERRORS = 2.0
# What residual nets may lose, of what plain nets lose, for a claim held in the main.
_SMALL_PART = 0.1


@dataclass(frozen=True)
class _Found:
    """What depth did to one kind of net; `sentence` is empty for a single depth."""

    sentence: str
    trend: str
    change: float


def conclude(result: StudyResult) -> list[str]:
    """Return the conclusion of a study as sentences, the claim's fate last."""
    kinds = sorted({net.shortcut for net in result.nets}, key=_plain_first)
    found: dict[str, _Found] = {kind: _of_kind(result, kind) for kind in kinds}
    told = [each.sentence for each in found.values() if each.sentence]
    return [*told, _verdict(result, found)]


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


def _of_kind(result: StudyResult, kind: str) -> _Found:
    shallow, deep = _ends(result, kind)
    if shallow == deep:
        return _Found("", "", 0.0)
    errors = result.training_error(shallow), result.training_error(deep)
    found = trend(*errors)
    if found == "stays":
        told = "is the same from shallow to deep within the spread of the seeds,"
    else:
        told = f"{found} with depth, from"
    joint = "and" if found == "stays" else "to"
    sentence = (
        f"{_name(kind)}: the training error {told} {errors[0]} % ({shallow.layers} "
        f"layers) {joint} {errors[1]} % ({deep.layers} layers)."
    )
    return _Found(sentence, found, errors[1].mean - errors[0].mean)


def _name(kind: str) -> str:
    if kind == "none":
        return "Plain nets"
    return f"Residual nets with shortcut option {OPTIONS[kind]}"


def _verdict(result: StudyResult, found: dict[str, _Found]) -> str:
    residual = [each for kind, each in found.items() if kind != "none"]
    if "none" not in found or not residual:
        return (
            "The claim is about plain and residual nets; this study has one kind only."
        )
    if not all(each.trend for each in found.values()):
        return "The claim is about depth; this study has one depth only."
    few = min(len(result.of(net)) for net in result.nets) < 2
    caution = " One seed shows no spread: read this as an example, not as proof."
    worst = max(residual, key=lambda each: each.change)
    return _fate(found["none"], worst) + caution * few


def _fate(of_plain: _Found, of_residual: _Found) -> str:
    plain = of_plain.trend
    if plain == "rises" and of_residual.trend != "rises":
        return (
            "This supports the claim: without shortcuts more layers made even the "
            "training error worse, with shortcuts they did not."
        )
    if plain == "rises":
        points = (
            f"the training error of plain nets grew by {100 * of_plain.change:.1f} "
            f"points with depth, that of residual nets by "
            f"{100 * of_residual.change:.1f}."
        )
        if of_residual.change < _SMALL_PART * of_plain.change:
            return f"This supports the claim in the main, not to the letter: {points}"
        return f"This supports half of the claim only: {points}"
    if plain == "stays":
        return (
            "This does not decide the claim: plain nets did not get worse beyond the "
            "spread of the seeds at these depths and this length of training."
        )
    return (
        "This does not support the claim: plain nets got better with depth. Deeper "
        "nets or a harder task may show another end."
    )
