"""The variants that a study compares, its results, and the conclusion."""

import inspect
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import mean, stdev
from typing import TYPE_CHECKING, Any, NamedTuple, get_args

from reszoo.architecture import architecture
from reszoo.errors import DataError, UnknownNameError, UsageError
from reszoo.files import read_json, write_json
from reszoo.specs import SPECS, Shortcut

if TYPE_CHECKING:
    import keras


# The paper's letters for shortcuts, section 4.1; C is a projection in every block.
OPTIONS = {"identity": "A", "projection": "B", "projection-all": "C"}
# Shortcut option A in blocks of He et al. 2016 (arXiv:1603.05027).
PRE = "pre-activation"
_KINDS = ("none", *get_args(Shortcut)[:-1], PRE)
Shape = tuple[int, ...]
Builder = Callable[..., "keras.Model"]


@dataclass(frozen=True, kw_only=True, order=True)
class Variant:
    """A network of a study: its depth and its kind of blocks."""

    layers: int  # number of weighted layers
    # "none" is a plain network, "pre-activation" a residual one of 2016; the others are
    # those of `reszoo.build`. Or the name of a model of your own.
    shortcut: str

    @property
    def plain(self) -> bool:
        """Whether it has no shortcuts."""
        return self.shortcut == "none"

    @property
    def is_own(self) -> bool:
        """Whether it is a model that the user built."""
        return self.shortcut not in _KINDS

    @property
    def label(self) -> str:
        """Its name in tables and plots, such as "plain-56" or "residual-56 (B)"."""
        if self.shortcut in OPTIONS:
            return f"residual-{self.layers} ({OPTIONS[self.shortcut]})"
        return f"{self.kind}-{self.layers}"

    @property
    def kind(self) -> str:
        """What networks of other depths have in common with it, for titles."""
        if self.shortcut in OPTIONS:
            return f"residual, option {OPTIONS[self.shortcut]}"
        return "plain" if self.plain else self.shortcut


@dataclass(frozen=True, kw_only=True)
class Family:
    """Networks that differ in depth and kind of blocks alone."""

    name: str  # the `family` argument of `reszoo.study`
    layers: tuple[int, ...] | None  # available depths; None is any
    default_layers: tuple[int, ...]  # compared by default
    shortcuts: tuple[str, ...]  # available kinds
    digits_steps: int  # steps on digits until the deep ones converge
    # from variant, shape of an input and number of classes
    build: Callable[[Variant, Shape, int], "keras.Model"]
    title: str  # of its networks in plots
    default_shortcuts: tuple[str, ...] = ("none", "identity")  # compared by default
    tables: bool = False  # whether it takes tables of numbers

    def variants(
        self, layers: tuple[int, ...] | None, shortcuts: tuple[str, ...] | None
    ) -> list[Variant]:
        """Return every depth with every shortcut, shallow before deep.

        None takes the defaults. A UsageError if the family has no such shortcut or
        depth, or nothing is compared.
        """
        layers = self.default_layers if layers is None else layers
        shortcuts = self.default_shortcuts if shortcuts is None else shortcuts
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
        return [
            Variant(layers=depth, shortcut=kind)
            for kind in sorted(shortcuts, key=self.shortcuts.index)
            for depth in sorted(set(layers))
        ]


def _convolutional(variant: Variant, shape: Shape, classes: int) -> "keras.Model":
    """Build a network of 2015, or of 2016 with option A."""
    from reszoo.resnet import build_resnet

    row = SPECS.get(f"resnet{variant.layers}") or SPECS[f"preresnet{variant.layers}"]
    kind: Any = variant.shortcut
    changes: dict[str, Any] = {"shortcut": kind, "activation_order": "post"}
    if kind == PRE:
        changes = {"shortcut": "identity", "activation_order": "pre"}
    spec = replace(row, name=f"study{variant.layers}", **changes)
    return build_resnet(architecture(spec, input_shape=shape, classes=classes), seed=0)


def _dense(variant: Variant, shape: Shape, classes: int) -> "keras.Model":
    from reszoo.blocks import mlp

    options: Any = {"classes": classes, "shortcut": variant.shortcut}
    return mlp(variant.layers, input_shape=shape, seed=0, **options)


_CIFAR_LAYERS = tuple(
    int(name.removeprefix("resnet"))
    for name, row in SPECS.items()
    if name.startswith("resnet") and row.image_size == 32
)
_TABLE = (
    Family(
        name="cifar", layers=_CIFAR_LAYERS, default_layers=(20, 56, 110),
        shortcuts=_KINDS[:-1], digits_steps=160, build=_convolutional,
        title="convolutional networks of He et al. 2015, section 4.2",
    ),
    Family(
        name="preact", layers=tuple(sorted((*_CIFAR_LAYERS, 164, 1001))),
        default_layers=(20, 56, 110), shortcuts=("none", "identity", PRE),
        default_shortcuts=("none", "identity", PRE), digits_steps=160,
        build=_convolutional,
        title="convolutional networks of He et al. 2015 and 2016",
    ),
    Family(
        name="dense", layers=None, default_layers=(10, 20, 50, 100),
        shortcuts=("none", "identity"), digits_steps=400, build=_dense,
        title="multilayer perceptrons, 64 wide", tables=True,
    ),
)  # fmt: skip
FAMILIES = {family.name: family for family in _TABLE}
# The name of models of one's own where a family's would stand.
OWN = "own"


def own_family(models: Mapping[str, Builder], layers: tuple[int, ...] | None) -> Family:
    """Return the family of a user's models; their names stand for kinds of shortcuts.

    A builder is called with those of the keywords `layers`, `input_shape` and `classes`
    that it takes. A UsageError if one needs others, or depths that were not given.
    """
    offered = ("layers", "input_shape", "classes")[layers is None :]
    taken: dict[str, list[str]] = {}
    for name, builder in models.items():
        if name in _KINDS or not name.isprintable():
            raise UsageError(
                f"A model of your own needs another name than {', '.join(_KINDS)}. "
                f"Received: {name!r}."
            )
        found = inspect.signature(builder).parameters
        taken[name] = [each for each in offered if each in found]
        other = {p.name for p in found.values() if p.default is p.empty}
        if missing := sorted(other.difference(offered)):
            raise UsageError(
                "The builder of a model takes none, some or all of layers, input_shape "
                f"and classes; layers needs layers=(20, 56). Received: {name!r}, which "
                f"needs {', '.join(missing)}."
            )
    if layers and not any("layers" in each for each in taken.values()):
        raise UsageError(
            "layers= is for builders that take the number of layers. Received: "
            f"layers={layers} for {', '.join(models)}; leave it out."
        )

    def build(variant: Variant, shape: Shape, classes: int) -> "keras.Model":
        given = {"layers": variant.layers, "input_shape": shape, "classes": classes}
        name = variant.shortcut
        return models[name](**{each: given[each] for each in taken[name]})

    return Family(
        name=OWN, layers=None, default_layers=(0,), shortcuts=tuple(models),
        default_shortcuts=tuple(models), digits_steps=400, build=build,
        title=family_title(OWN), tables=True,
    )  # fmt: skip


def family_title(name: str) -> str:
    """Return how plots call the networks of a family."""
    return "models of one's own" if name == OWN else find_family(name).title


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
    # Standard deviation of each activation function's output and of each sum that none
    # follows, input first.
    activations: tuple[float, ...]
    # Which of them are the outputs of blocks, that of the stem first.
    block_ends: tuple[int, ...]

    @property
    def block_activations(self) -> tuple[float, ...]:
        """Standard deviations of the outputs of the stem and the blocks."""
        return tuple(self.activations[index] for index in self.block_ends)

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> "Snapshot":
        """Return what `asdict` made into JSON."""
        # Older files tell of the ReLUs of blocks of two layers.
        ends = range(0, len(content["activations"]), 2)
        lists = {"block_ends": ends, **content}
        step = lists.pop("step")
        return cls(step=step, **{name: tuple(x) for name, x in lists.items()})


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


@dataclass(frozen=True)
class Spread:
    """Mean and standard deviation over seeds."""

    mean: float  # in 0..1
    deviation: float | None  # of single seeds; None for one seed
    seeds: int  # how many

    def __str__(self) -> str:
        deviation = "" if self.deviation is None else f" ± {100 * self.deviation:.2f}"
        return f"{100 * self.mean:.2f}{deviation}"


def spread(values: Iterable[float]) -> Spread:
    """Return mean and standard deviation of one value per seed."""
    found = list(values)
    return Spread(mean(found), stdev(found) if len(found) > 1 else None, len(found))


@dataclass(frozen=True, kw_only=True)
class StudyResult:
    """All runs of a study.

    Attributes:
        data: Name of the data set.
        conditions: What all runs have in common: family, data, recipe, size.
        runs: Finished ones.
        conclusion: What the numbers say, as sentences; none before the end.
        chance: Training error of always answering the most frequent class, in 0..1;
            None where it is not recorded.
        folder: Where `study.json`, `study.html` and the plots are.
    """

    data: str
    conditions: dict[str, Any]
    runs: tuple[RunResult, ...]
    folder: Path
    conclusion: tuple[str, ...] = ()
    chance: float | None = None

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
    names = ("data", "conclusion", "chance", "conditions")
    content = {name: getattr(result, name) for name in names}
    runs = [asdict(run) for run in result.runs]
    path = result.folder / RESULTS
    write_json(path, {"version": _VERSION, **content, "runs": runs})


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
            chance=content.get("chance"),
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
# Share of the error of guessing from which on a network has learned nothing.
_NEAR_CHANCE = 0.9
_NO_DIFFERENCE = "does not differ beyond the spread of seeds"


class _Effect(NamedTuple):
    """The effect of depth on one kind of network."""

    shallow: Variant
    deep: Variant
    trend: str = ""  # empty for a single depth, as is the sentence
    change: float = 0.0
    sentence: str = ""


def conclude(result: StudyResult) -> list[str]:
    """Return the conclusion of a study as sentences, the one on the claim last."""
    # In the order of the variants: plain first.
    kinds = dict.fromkeys(variant.shortcut for variant in result.variants)
    effects = {kind: _effect(result, kind) for kind in kinds}
    sentences = [each.sentence for each in effects.values() if each.sentence]
    if PRE in kinds and "identity" in kinds:
        sentences.append(_on_order(result))
    few = min((len(result.of(each)) for each in result.variants), default=0) < 2
    caution = " A single seed shows no spread: this is an example, not evidence."
    own = any(variant.is_own for variant in result.variants)
    verdict = _ranking(result) if own else _verdict(result, effects)
    is_evidence = own or verdict.startswith("This ")
    return [*sentences, verdict + caution * (few and is_evidence)]


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
    shallow, *others = [each for each in result.variants if each.shortcut == kind]
    if not others:
        return _Effect(shallow, shallow)
    before, after = map(result.training_error, (shallow, deep := others[-1]))
    found = trend(before, after)
    name = {"none": "Plain networks", PRE: "Pre-activation networks"}.get(kind, kind)
    if kind in OPTIONS:
        name = f"Residual networks with shortcut option {OPTIONS[kind]}"
    verb, joint = f"{found} with depth, from", "to"
    if found == "stays":
        verb, joint = "does not change with depth beyond the spread of seeds:", "and"
    sentence = (
        f"{name}: the training error {verb} {before} % ({shallow.layers} layers) "
        f"{joint} {after} % ({deep.layers} layers)."
    )
    return _Effect(shallow, deep, found, after.mean - before.mean, sentence)


def _on_order(result: StudyResult) -> str:
    """Compare the two orders of activation at the greatest depth of both."""
    post, pre = (
        {each.layers: each for each in result.variants if each.shortcut == kind}
        for kind in ("identity", PRE)
    )
    layers = max({*post} & {*pre}, default=None)
    if layers is None:
        return "The two orders of activation were not trained at the same depth."
    before, after = map(result.training_error, (post[layers], pre[layers]))
    words = {"rises": "is higher than", "falls": "is lower than"}
    compared = words.get(trend(before, after), f"{_NO_DIFFERENCE} from")
    return (
        f"With {layers} layers, the training error of pre-activation networks "
        f"{compared} that of residual networks: {after} % against {before} %."
    )


def _ranking(result: StudyResult) -> str:
    """Compare models of one's own with the best of them."""
    errors = {each: result.training_error(each) for each in result.variants}
    best, *others = sorted(errors, key=lambda each: errors[each].mean)
    told = [f"{best.label} has the lowest training error, {errors[best]} %"]
    for each in others:
        higher = trend(errors[best], errors[each]) == "rises"
        verb = "is higher" if higher else _NO_DIFFERENCE
        told.append(f"{each.label} {verb}, {errors[each]} %")
    return "; ".join(told) + "."


def _verdict(result: StudyResult, effects: dict[str, _Effect]) -> str:
    residual = [effect for kind, effect in effects.items() if kind != "none"]
    if "none" not in effects or not residual:
        return "The claim compares plain and residual networks; only one kind is here."
    if not all(each.trend for each in effects.values()):
        return "The claim is about depth; this study has only one depth."
    if unlearned := _unlearned(result, [each.shallow for each in effects.values()]):
        return f"This does not support the claim: {unlearned}"
    told = _on_claim(effects["none"], max(residual, key=lambda each: each.change))
    # Plain networks that learn nothing for their depth are the claim itself.
    if unlearned := _unlearned(result, [each.deep for each in residual]):
        told = f"{told} At these depths {unlearned}"
    return told


def _unlearned(result: StudyResult, variants: Iterable[Variant]) -> str:
    """Say which of some variants are hardly better than guessing; "" if none is."""
    classes, chance = result.conditions.get("data's classes"), result.chance
    if chance is None:
        chance = 1 - 1 / len(classes) if classes else math.inf
    errors = {each.label: result.training_error(each).mean for each in variants}
    found = {name: e for name, e in errors.items() if e > _NEAR_CHANCE * chance}
    listed = ", ".join(f"{name} {100 * e:.1f} %" for name, e in found.items())
    if not found:
        return ""
    return (
        f"the models had not learned yet. The training error ({listed}) is near chance "
        f"({100 * chance:.1f} %); train for more steps or with another learning rate."
    )


def _on_claim(plain: _Effect, residual: _Effect) -> str:
    if plain.trend == "falls":
        return (
            "This does not support the claim: plain networks got better with depth. "
            "Deeper networks or a harder task may show another outcome."
        )
    rose = residual.trend == "rises"
    if rose and (plain.trend == "stays" or residual.change >= plain.change):
        return (
            "This does not support the claim: the training error of residual networks "
            f"rose by {100 * residual.change:.1f} points with depth, that of plain "
            f"networks by {100 * plain.change:.1f}."
        )
    if plain.trend == "stays":
        return (
            "This does not decide the claim: plain networks did not get worse beyond "
            "the spread of the seeds at these depths and this length of training."
        )
    if not rose:
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
