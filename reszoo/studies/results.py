"""The variants that a study compares, its results, and the conclusion."""

import math
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import TYPE_CHECKING, Any, get_args

from reszoo.architecture import architecture
from reszoo.errors import DataError, UnknownNameError, UsageError
from reszoo.files import read_json, write_json
from reszoo.specs import SPECS, Shortcut

if TYPE_CHECKING:
    import keras


# The paper's letters for shortcuts, section 4.1; C is a projection in every block.
OPTIONS = {"identity": "A", "projection": "B", "projection-all": "C"}


@dataclass(frozen=True, kw_only=True, order=True)
class Variant:
    """A network of a study: its depth and its kind of shortcuts.

    Attributes:
        layers: Number of weighted layers.
        shortcut: "none" is a plain network; the others are those of `reszoo.build`.
    """

    layers: int
    shortcut: Shortcut

    @property
    def plain(self) -> bool:
        """Whether it has no shortcuts."""
        return self.shortcut == "none"

    @property
    def label(self) -> str:
        """Its name in tables and plots, such as "plain-56" or "residual-56 (B)"."""
        if self.plain:
            return f"plain-{self.layers}"
        return f"residual-{self.layers} ({OPTIONS[self.shortcut]})"


@dataclass(frozen=True, kw_only=True)
class Family:
    """Networks that differ in depth and shortcuts alone."""

    name: str  # the `family` argument of `reszoo.study`
    layers: tuple[int, ...] | None  # available depths; None is any
    default_layers: tuple[int, ...]  # compared by default
    shortcuts: tuple[str, ...]  # available kinds
    digits_steps: int  # steps on digits until the deep ones converge
    # from variant, side of images and number of classes
    build: Callable[[Variant, int, int], "keras.Model"]
    title: str  # of its networks in plots

    def variants(
        self, layers: tuple[int, ...], shortcuts: tuple[str, ...]
    ) -> list[Variant]:
        """Return every depth with every shortcut, shallow before deep.

        A UsageError if the family has no such shortcut or depth, or nothing is
        compared.
        """
        for shortcut in shortcuts:
            if shortcut not in self.shortcuts:
                raise UnknownNameError("shortcut", shortcut, self.shortcuts)
        for depth in layers:
            if self.layers is not None and depth not in self.layers:
                raise UsageError(
                    f"The {self.name} family has networks of "
                    f"{', '.join(map(str, self.layers))} layers. Received: {depth}."
                )
        if not layers or not shortcuts:
            raise UsageError(
                "A study compares at least one depth with one kind of shortcut. "
                f"Received: layers={layers}, shortcuts={shortcuts}."
            )
        kinds = [shortcut for shortcut in get_args(Shortcut) if shortcut in shortcuts]
        return [
            Variant(layers=depth, shortcut=kind)
            for kind in sorted(kinds, key=lambda kind: kind != "none")
            for depth in sorted(set(layers))
        ]


def _convolutional(variant: Variant, side: int, classes: int) -> "keras.Model":
    from reszoo.resnet import build_resnet

    kind = "plain" if variant.plain else "resnet"
    built = architecture(
        f"{kind}{variant.layers}",
        input_shape=(side, side, 3),
        classes=classes,
        shortcut=variant.shortcut,
    )
    return build_resnet(built, seed=0)


def _dense(variant: Variant, side: int, classes: int) -> "keras.Model":
    from reszoo.blocks import mlp

    return mlp(
        variant.layers,
        classes=classes,
        input_shape=(side, side, 3),
        shortcut=variant.shortcut,
        seed=0,
    )


_CIFAR_LAYERS = tuple(
    int(name.removeprefix("resnet"))
    for name, row in SPECS.items()
    if name.startswith("resnet") and row.image_size == 32
)
_TABLE = (
    Family(
        name="cifar", layers=_CIFAR_LAYERS, default_layers=(20, 56, 110),
        shortcuts=get_args(Shortcut), digits_steps=160, build=_convolutional,
        title="convolutional networks of He et al. 2015, section 4.2",
    ),
    Family(
        name="dense", layers=None, default_layers=(10, 20, 50, 100),
        shortcuts=("none", "identity"), digits_steps=400, build=_dense,
        title="multilayer perceptrons, 64 wide",
    ),
)  # fmt: skip
FAMILIES = {family.name: family for family in _TABLE}


def find_family(name: str) -> Family:
    """Return a row by its name, or raise UnknownNameError."""
    if name not in FAMILIES:
        raise UnknownNameError("family", name, FAMILIES)
    return FAMILIES[name]


RESULTS = "study.json"
# Increased when the content changes its meaning. Version 1 has other names.
_VERSION = 2


@dataclass(frozen=True, kw_only=True)
class Point:
    """The errors at one moment of a training."""

    step: int  # steps taken so far
    loss: float  # Mean training loss since the point before, in nats.
    # Share of training images classified wrongly since the point before, while training
    # on them, as in the paper's figures; in 0..1.
    training_error: float
    # Share of the test images classified wrongly; None where not measured.
    test_error: float | None


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """Gradients and activations of every layer for one batch."""

    step: int  # steps taken before
    # Norm of the gradient of each layer's weights, input first.
    gradients: tuple[float, ...]
    # Standard deviation of each ReLU's output, input first.
    activations: tuple[float, ...]

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> "Snapshot":
        """Return what `asdict` made into JSON."""
        lists = {name: tuple(content[name]) for name in ("gradients", "activations")}
        return cls(step=content["step"], **lists)


@dataclass(frozen=True, kw_only=True)
class RunResult:
    """The training of one variant from one seed."""

    variant: Variant
    seed: int  # of the initial weights and the order of images
    parameters: int  # number of trainable ones
    seconds: float  # spent on training
    diverged: bool  # the loss became NaN or infinite; points end before
    points: tuple[Point, ...]  # from the first steps to the last
    snapshots: tuple[Snapshot, ...]  # at the first step, half-way, at the last

    @property
    def training_error(self) -> float:
        """Training error at the end, in 0..1; 1 if it diverged."""
        return 1.0 if self.diverged else self.points[-1].training_error

    @property
    def test_error(self) -> float:
        """Test error at the end, in 0..1; 1 if it diverged."""
        measured = [p.test_error for p in self.points if p.test_error is not None]
        return 1.0 if self.diverged or not measured else measured[-1]


@dataclass(frozen=True, kw_only=True)
class Spread:
    """Mean and standard deviation over seeds."""

    mean: float  # in 0..1
    deviation: float | None  # of single seeds; None for one seed
    seeds: int  # how many

    def __str__(self) -> str:
        if self.deviation is None:
            return f"{100 * self.mean:.2f}"
        return f"{100 * self.mean:.2f} ± {100 * self.deviation:.2f}"


def spread(values: Iterable[float]) -> Spread:
    """Return mean and standard deviation of one value per seed."""
    found = list(values)
    deviation = stdev(found) if len(found) > 1 else None
    return Spread(mean=mean(found), deviation=deviation, seeds=len(found))


@dataclass(frozen=True, kw_only=True)
class StudyResult:
    """All runs of a study.

    Attributes:
        data: Name of the data set.
        conditions: What all runs have in common: family, data, recipe, size.
        runs: Finished ones.
        conclusion: What the numbers say, as sentences; none before the end.
        folder: Where `study.json`, `study.html` and the plots are.
    """

    data: str
    conditions: dict[str, Any]
    runs: tuple[RunResult, ...]
    folder: Path
    conclusion: tuple[str, ...] = ()

    @property
    def variants(self) -> list[Variant]:
        """What was trained, plain variants first, shallow before deep."""
        found = {run.variant for run in self.runs}
        return sorted(found, key=lambda v: (not v.plain, v.shortcut, v.layers))

    def of(self, variant: Variant) -> list[RunResult]:
        """Return the runs of one variant, by seed."""
        found = [run for run in self.runs if run.variant == variant]
        return sorted(found, key=lambda run: run.seed)

    def training_error(self, variant: Variant) -> Spread:
        """Return the final training error of one variant over its seeds."""
        return spread(run.training_error for run in self.of(variant))

    def test_error(self, variant: Variant) -> Spread:
        """Return the final test error of one variant over its seeds."""
        return spread(run.test_error for run in self.of(variant))


def write_results(result: StudyResult) -> None:
    """Write `study.json` atomically."""
    content = {
        "version": _VERSION,
        "data": result.data,
        "conclusion": result.conclusion,
        "conditions": result.conditions,
        "runs": [asdict(run) for run in result.runs],
    }
    write_json(result.folder / RESULTS, content)


def read_results(folder: Path) -> StudyResult:
    """Read the `study.json` of a folder.

    A DataError if it is damaged or of another version.
    """
    path = folder / RESULTS
    try:
        content = read_json(path)
        version = content["version"]
        if version not in (1, _VERSION):
            raise DataError(
                f"This reszoo reads studies up to version {_VERSION}. Received: "
                f"version {version} in {path}; use the release that wrote it."
            )
        return StudyResult(
            data=content["data"],
            conditions=content["conditions"],
            runs=tuple(map(_run, content["courses" if version == 1 else "runs"])),
            folder=folder,
            conclusion=tuple(content["conclusion"]),
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"{path} does not hold the results of a study ({error}). Choose another "
            "folder, or overwrite=True to start again."
        ) from error


def _run(content: dict[str, Any]) -> RunResult:
    fields = dict(content)
    # Called "net" in version 1.
    fields["variant"] = Variant(**(fields.pop("net", None) or fields["variant"]))
    fields["points"] = tuple(Point(**point) for point in fields["points"])
    fields["snapshots"] = tuple(map(Snapshot.from_json, fields["snapshots"]))
    return RunResult(**fields)


# Changes of less than half a point count as none, whatever the spread of the seeds.
_LEAST = 0.005
# Standard errors by which means must differ: about 95 %.
_ERRORS = 2.0
# Share of the plain networks' loss that residual ones may have for "mostly supports".
_SMALL_PART = 0.1


@dataclass(frozen=True)
class _Effect:
    """The effect of depth on one kind of network; empty for a single depth."""

    sentence: str
    trend: str
    change: float


def conclude(result: StudyResult) -> list[str]:
    """Return the conclusion of a study as sentences, the one on the claim last."""
    # In the order of the variants: plain first.
    kinds = dict.fromkeys(variant.shortcut for variant in result.variants)
    effects: dict[str, _Effect] = {kind: _effect(result, kind) for kind in kinds}
    sentences = [each.sentence for each in effects.values() if each.sentence]
    return [*sentences, _verdict(result, effects)]


def trend(shallow: Spread, deep: Spread) -> str:
    """Return "rises", "falls" or "stays" for errors from shallow to deep.

    A change counts when it is more than half a point and more than two standard
    errors of the difference of the means.
    """
    change, spreads = deep.mean - shallow.mean, (shallow, deep)
    error = math.sqrt(sum((s.deviation or 0) ** 2 / s.seeds for s in spreads))
    if abs(change) <= max(_LEAST, _ERRORS * error):
        return "stays"
    return "rises" if change > 0 else "falls"


def _effect(result: StudyResult, kind: str) -> _Effect:
    variants = [each for each in result.variants if each.shortcut == kind]
    shallow, deep = variants[0], variants[-1]
    if shallow == deep:
        return _Effect("", "", 0.0)
    before, after = result.training_error(shallow), result.training_error(deep)
    found = trend(before, after)
    name = "Plain networks"
    if kind != "none":
        name = f"Residual networks with shortcut option {OPTIONS[kind]}"
    verb, joint = f"{found} with depth, from", "to"
    if found == "stays":
        verb, joint = "does not change with depth beyond the spread of seeds:", "and"
    sentence = (
        f"{name}: the training error {verb} {before} % ({shallow.layers} layers) "
        f"{joint} {after} % ({deep.layers} layers)."
    )
    return _Effect(sentence, found, after.mean - before.mean)


def _verdict(result: StudyResult, effects: dict[str, _Effect]) -> str:
    residual = [each for kind, each in effects.items() if kind != "none"]
    if "none" not in effects or not residual:
        return "The claim compares plain and residual networks; only one kind is here."
    if not all(each.trend for each in effects.values()):
        return "The claim is about depth; this study has only one depth."
    few = min(len(result.of(each)) for each in result.variants) < 2
    caution = " A single seed shows no spread: this is an example, not evidence."
    worst = max(residual, key=lambda each: each.change)
    return _on_claim(effects["none"], worst) + caution * few


def _on_claim(plain: _Effect, residual: _Effect) -> str:
    if plain.trend == "falls":
        return (
            "This does not support the claim: plain networks got better with depth. "
            "Deeper networks or a harder task may show another outcome."
        )
    if plain.trend == "stays":
        return (
            "This does not decide the claim: plain networks did not get worse beyond "
            "the spread of the seeds at these depths and this length of training."
        )
    if residual.trend != "rises":
        return (
            "This supports the claim: without shortcuts more layers made even the "
            "training error worse, with shortcuts they did not."
        )
    mostly = residual.change < _SMALL_PART * plain.change
    support = "mostly supports" if mostly else "supports only half of"
    return (
        f"This {support} the claim: the training error of plain networks rose by "
        f"{100 * plain.change:.1f} points with depth, that of residual networks by "
        f"{100 * residual.change:.1f}."
    )
