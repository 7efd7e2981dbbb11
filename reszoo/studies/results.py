"""The variants that a study compares, its results, and the conclusion."""

import inspect
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import mean, stdev
from typing import TYPE_CHECKING, Any, get_args

from reszoo.architecture import architecture
from reszoo.errors import DataError, UsageError, known
from reszoo.fields import inherited, read_tables, typed
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
    default_layers: tuple[int, ...]  # compared by default
    shortcuts: tuple[str, ...]  # available kinds
    digits_steps: int  # steps on digits until the deep ones converge
    # from variant, shape of an input and number of classes
    build: Callable[[Variant, Shape, int], "keras.Model"]
    title: str  # of its networks in plots
    layers: tuple[int, ...] | None = None  # available depths; None is any
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
            known("shortcut", shortcut, self.shortcuts)
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


def _families() -> dict[str, Family]:
    """Read the rows of `families.toml`; those with `models` have their depths."""
    small = [name for name, spec in SPECS.items() if spec.image_size == 32]
    rows = {}
    for name, row in inherited(read_tables("reszoo.studies", "families.toml")).items():
        own: Any = {k: tuple(v) if isinstance(v, list) else v for k, v in row.items()}
        build = _dense
        if models := own.pop("models", None):
            found = [re.fullmatch(models, each) for each in small]
            own["layers"] = tuple(sorted({int(each[1]) for each in found if each}))
            build = _convolutional
        rows[name] = Family(name=name, build=build, **own)
    return rows


FAMILIES = _families()
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
        name=OWN, default_layers=(0,), shortcuts=tuple(models),
        default_shortcuts=tuple(models), digits_steps=400, build=build,
        title=family_title(OWN), tables=True,
    )  # fmt: skip


def family_title(name: str) -> str:
    """Return how plots call the networks of a family."""
    return "models of one's own" if name == OWN else find_family(name).title


def find_family(name: str) -> Family:
    """Return a row by its name, or raise UnknownNameError."""
    return FAMILIES[known("family", name, FAMILIES)]


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
        ends = [*range(0, len(content["activations"]), 2)]
        return typed(cls, {"block_ends": ends, **content})


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
            data=content["data"], conditions=content["conditions"], folder=folder,
            runs=tuple(map(_run, content["courses" if version == 1 else "runs"])),
            conclusion=tuple(content["conclusion"]), chance=content.get("chance"),
        )  # fmt: skip
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"{path} does not hold the results of a study ({error}). Choose another "
            "folder, or overwrite=True to start again."
        ) from error


def _run(content: dict[str, Any]) -> RunResult:
    # A variant is called "net" in version 1.
    names = {"variant" if name == "net" else name: x for name, x in content.items()}
    return typed(RunResult, names)
