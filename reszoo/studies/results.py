"""Results of a study, and what they say about the claim."""

import json
import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from reszoo.errors import DataError
from reszoo.files import write_json
from reszoo.studies.families import OPTIONS, Net

RESULTS = "study.json"
# Raised when the content changes its meaning.
_VERSION = 1


@dataclass(frozen=True, kw_only=True)
class Point:
    """How a net was doing at one moment of its training.

    Attributes:
        step: Batches trained on so far.
        loss: Mean training loss since the point before, in nats.
        training_error: Share of training images classified wrongly since the point
            before, while training on them, as in the paper's figures; in 0..1.
        test_error: Share of the test images classified wrongly; None where that was
            not measured.
    """

    step: int
    loss: float
    training_error: float
    test_error: float | None


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """What went forward and backward through a net in one step.

    Attributes:
        step: Batches trained on before.
        gradients: Norm of the gradient of each layer's weights, input first.
        activations: Standard deviation of each ReLU's output, input first.
    """

    step: int
    gradients: tuple[float, ...]
    activations: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class Course:
    """One net's training from one seed.

    Attributes:
        net: The contender.
        seed: Of its first weights and of the order of images.
        parameters: Number of its weights that learn.
        seconds: Spent on training.
        diverged: Whether the loss stopped being a number; the points end before.
        points: From the first steps to the last.
        snapshots: At the first step, half-way, and at the last.
    """

    net: Net
    seed: int
    parameters: int
    seconds: float
    diverged: bool
    points: tuple[Point, ...]
    snapshots: tuple[Snapshot, ...]

    @property
    def training_error(self) -> float:
        """Share wrong at the end, in 0..1; all of it for one that diverged."""
        return 1.0 if self.diverged else self.points[-1].training_error

    @property
    def test_error(self) -> float:
        """Share wrong at the end, in 0..1; all of it for one that diverged."""
        measured = [p.test_error for p in self.points if p.test_error is not None]
        return 1.0 if self.diverged or not measured else measured[-1]


@dataclass(frozen=True, kw_only=True)
class Spread:
    """Mean and standard deviation over seeds.

    Attributes:
        mean: In 0..1.
        deviation: Of single seeds; None for one seed.
        seeds: How many.
    """

    mean: float
    deviation: float | None
    seeds: int

    def __str__(self) -> str:
        if self.deviation is None:
            return f"{100 * self.mean:.2f}"
        return f"{100 * self.mean:.2f} ± {100 * self.deviation:.2f}"


def spread(values: Iterable[float]) -> Spread:
    """Return mean and standard deviation of one value a seed."""
    found = list(values)
    deviation = stdev(found) if len(found) > 1 else None
    return Spread(mean=mean(found), deviation=deviation, seeds=len(found))


@dataclass(frozen=True, kw_only=True)
class StudyResult:
    """All courses of a study.

    Attributes:
        data: Name of the images' source.
        conditions: What all courses have in common: family, data, recipe, size.
        courses: Finished ones.
        conclusion: What the numbers say, as sentences; none before the end.
        folder: Where `study.json`, `study.html` and the plots are.
    """

    data: str
    conditions: dict[str, Any]
    courses: tuple[Course, ...]
    folder: Path
    conclusion: tuple[str, ...] = ()

    @property
    def nets(self) -> list[Net]:
        """The contenders, plain ones first, shallow before deep."""
        found = {course.net for course in self.courses}
        return sorted(found, key=lambda net: (not net.plain, net.shortcut, net.layers))

    def of(self, net: Net) -> list[Course]:
        """Return the courses of one net, by seed."""
        found = [course for course in self.courses if course.net == net]
        return sorted(found, key=lambda course: course.seed)

    def training_error(self, net: Net) -> Spread:
        """Return the final training error of one net over its seeds."""
        return spread(course.training_error for course in self.of(net))

    def test_error(self, net: Net) -> Spread:
        """Return the final test error of one net over its seeds."""
        return spread(course.test_error for course in self.of(net))


def write_results(result: StudyResult) -> None:
    """Write `study.json` in one step."""
    content = {
        "version": _VERSION,
        "data": result.data,
        "conclusion": result.conclusion,
        "conditions": result.conditions,
        "courses": [asdict(course) for course in result.courses],
    }
    write_json(result.folder / RESULTS, content)


def read_results(folder: Path) -> StudyResult:
    """Read the `study.json` of a folder.

    Raises:
        DataError: The file is damaged or of another version.
    """
    path = folder / RESULTS
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["version"] != _VERSION:
            raise DataError(
                f"This reszoo reads studies of version {_VERSION}. Received: version "
                f"{content['version']} in {path}; use the release that wrote it."
            )
        courses = tuple(map(_course, content["courses"]))
        held = {"data": content["data"], "conditions": content["conditions"]}
        held["conclusion"] = tuple(content["conclusion"])
    except (ValueError, KeyError, TypeError, UnicodeDecodeError) as error:
        raise DataError(
            f"{path} is not a study's results ({error}). Choose another folder, or "
            "overwrite=True to begin again."
        ) from error
    return StudyResult(**held, courses=courses, folder=folder)


def _course(content: dict[str, Any]) -> Course:
    return Course(
        **{
            **content,
            "net": Net(**content["net"]),
            "points": tuple(Point(**point) for point in content["points"]),
            "snapshots": tuple(_snapshot(each) for each in content["snapshots"]),
        }
    )


def _snapshot(content: dict[str, Any]) -> Snapshot:
    return Snapshot(
        step=content["step"],
        gradients=tuple(content["gradients"]),
        activations=tuple(content["activations"]),
    )


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
