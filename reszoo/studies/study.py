"""`reszoo.study`: train plain and residual networks of several depths, and compare."""

import os
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import keras

from reszoo import defaults
from reszoo.architecture import architecture
from reszoo.cards import new_card
from reszoo.console import say
from reszoo.data.pipeline import Augmentation
from reszoo.data.sources import Data, Source, fingerprint, open_source
from reszoo.errors import UsageError
from reszoo.studies.families import Family, Variant, find_family
from reszoo.studies.report import PAGE, PLOT_SECTIONS, write_page
from reszoo.studies.results import (
    RESULTS,
    RunResult,
    StudyResult,
    conclude,
    read_results,
    write_results,
)
from reszoo.studies.run import StudyPlan, StudyRun, VariantTrainer
from reszoo.training.model import precision_policy, resolve_precision, set_momentum
from reszoo.training.phases import phases
from reszoo.training.recipe_table import find_recipe
from reszoo.training.recipes import DEFAULTS, LEARNING, Recipe
from reszoo.training.state import (
    STATE,
    StopRequest,
    check_output,
    check_same,
    stop_on_signals,
)

_FILES = (RESULTS, PAGE, STATE, *PLOT_SECTIONS)
# The digits are 8 x 8: small enough to train over a hundred layers in seconds.
_DIGITS_SIZE, _SIZE = 8, 32
# Changes of the paper's recipe for some 1,300 digits.
_DIGITS_FIELDS: dict[str, Any] = {
    "batch_size": 64,
    "crop": "none",
    # The paper's 0.1 is for ten times as many steps.
    "learning_rate": 0.01,
    "precision": "float32",
}
# All other fields of a recipe must have their defaults, so that none is ignored
# silently.
_SUPPORTED = LEARNING | {
    "name", "batch_size", "crop", "flip", "pad", "precision", "seed", "steps",
    "train_size",
}  # fmt: skip


def study(
    family: str = defaults.STUDY_FAMILY,
    data: Data = defaults.STUDY_DATA,
    *,
    layers: Sequence[int] | None = None,
    shortcuts: Sequence[str] = defaults.STUDY_SHORTCUTS,
    seeds: int = defaults.STUDY_SEEDS,
    seed: int = 0,
    size: int | None = None,
    recipe: str | Recipe = defaults.STUDY_RECIPE,
    output: str | os.PathLike[str] = defaults.STUDY_OUTPUT,
    resume: bool = False,
    overwrite: bool = False,
    save_every: float = defaults.SAVE_EVERY,
    **fields: Any,
) -> StudyResult:
    """Compare networks with and without shortcuts at several depths.

    Every network is trained with one recipe from several seeds. The folder gets
    `study.json`, `study.html` and the plots as PNG files: error against steps (figure
    6 of the paper), error against depth, and the gradients and activations of every
    layer.

    Source: He et al. 2015 (arXiv:1512.03385), section 4.2.

    Args:
        family: "cifar": the paper's networks for small images; "dense": multilayer
            perceptrons of equal width.
        data: As of `reszoo.train`; it needs a test split.
        layers: Depths to compare. None takes some that a CPU can train.
        shortcuts: "none" for plain networks; "identity", "projection" and
            "projection-all", the paper's options A, B and C.
        seeds: Number of seeds for each network.
        seed: The first of them; the others follow.
        size: Side of the images in pixels. None is 8 for digits, else 32.
        recipe: Name of a recipe, or a recipe of your own.
        output: Folder for the results.
        resume: Whether to resume the study in `output`. It may get more depths,
            shortcuts or seeds, but no other data or recipe.
        overwrite: Whether to replace a study that is in `output`.
        save_every: Seconds between two states within a training.
        **fields: Fields of the recipe to change, such as `steps=2000`.

    Returns:
        All runs, with the folder.

    Raises:
        UsageError: The arguments are invalid, or `output` holds another study.
        DataError: The data cannot be read.

    Example:
        >>> result = reszoo.study(layers=(20, 56), seeds=2)
        >>> result.conclusion[-1]
    """
    chosen, folder = find_family(family), Path(output).expanduser()
    variants = chosen.variants(tuple(layers or chosen.default_layers), tuple(shortcuts))
    if seeds < 1:
        raise UsageError(f"seeds must be at least 1. Received: seeds={seeds}.")
    source = open_source(data)
    settled = _study_recipe(chosen, source, recipe, fields)
    plan = _study_plan(source, settled, size, folder, save_every)
    conditions = _conditions(chosen, plan, settled)
    done = _finished_runs(folder, conditions, resume=resume, overwrite=overwrite)
    result = StudyResult(
        data=source.name, conditions=conditions, runs=done, folder=folder
    )
    say(_announcement(plan, variants, seeds))
    numbers = range(seed, seed + seeds)
    with stop_on_signals(folder) as stop:
        result = _train_all(chosen, plan, result, variants, numbers, stop)
    result = replace(result, conclusion=tuple(conclude(result)))
    write_results(result)
    write_page(result)
    return result


def _study_recipe(
    family: Family, source: Source, recipe: str | Recipe, fields: dict[str, Any]
) -> Recipe:
    """Return the recipe with the study's own defaults, if it is supported."""
    own: dict[str, Any] = {}
    if _is_digits(source) and recipe == defaults.STUDY_RECIPE:
        own = {"steps": family.digits_steps, **_DIGITS_FIELDS}
    if "epochs" in fields:
        own.pop("steps", None)
    settled = find_recipe(recipe, **{**own, **fields})
    unsupported = sorted(
        name
        for name, value in DEFAULTS.items()
        if name not in _SUPPORTED and getattr(settled, name) != value
    )
    if settled.crop not in ("pad", "none"):
        unsupported.append(f"crop={settled.crop}")
    if unsupported:
        raise UsageError(
            "A study trains from scratch, with shifts and flips as the only "
            f"augmentation. Received: recipe={settled.name!r} with "
            f"{', '.join(unsupported)}; use {defaults.STUDY_RECIPE!r} or "
            "'cifar' without them."
        )
    return settled


def _is_digits(source: Source) -> bool:
    return source.name == "digits"


def _study_plan(
    source: Source, recipe: Recipe, size: int | None, folder: Path, save_every: float
) -> StudyPlan:
    side = size or recipe.train_size or (_DIGITS_SIZE if _is_digits(source) else _SIZE)
    train, _ = source.examples("train"), source.examples("test")
    preprocessing = new_card(architecture("resnet20")).preprocessing
    return StudyPlan(
        source=source,
        preprocessing=replace(
            preprocessing, train_size=side, eval_size=side, crop_pct=1.0
        ),
        augmentation=Augmentation(
            crop="pad" if recipe.crop == "pad" else "none",
            pad=round(recipe.pad * side),
            flip=source.flip_safe if recipe.flip is None else recipe.flip,
        ),
        phase=phases(recipe, len(train))[0],
        folder=folder,
        save_every=save_every,
    )


def _conditions(family: Family, plan: StudyPlan, recipe: Recipe) -> dict[str, Any]:
    """Return what must be the same when the study is resumed."""
    fields = {name: v for name, v in recipe.to_json().items() if name != "seed"}
    return {
        "family": family.name,
        **{f"data's {name}": v for name, v in fingerprint(plan.source).items()},
        **{f"recipe's {name}": v for name, v in fields.items()},
        "size": plan.preprocessing.train_size,
        "precision": resolve_precision(recipe),
    }


def _finished_runs(
    folder: Path, conditions: dict[str, Any], *, resume: bool, overwrite: bool
) -> tuple[RunResult, ...]:
    """Return the runs to keep, and remove the files of a study to be replaced."""
    marks = (RESULTS, STATE)
    found = check_output(
        folder, _FILES, marks, kind="study", resume=resume, overwrite=overwrite
    )
    if not resume:
        for name in found:
            (folder / name).unlink()
    if RESULTS not in found or not resume:
        return ()
    before = read_results(folder)
    check_same(before.conditions, conditions, folder)
    return before.runs


def _train_all(
    family: Family,
    plan: StudyPlan,
    result: StudyResult,
    variants: Iterable[Variant],
    seeds: Iterable[int],
    stop: StopRequest,
) -> StudyResult:
    # From the start, so that a state in the folder always has its conditions.
    write_results(result)
    for variant in variants:
        done = {run.seed for run in result.of(variant)}
        remaining = [seed for seed in seeds if seed not in done]
        if not remaining:
            continue
        trainer = _variant_trainer(family, variant, plan)
        for seed in remaining:
            run = StudyRun(trainer, variant, seed, plan).train(stop)
            result = replace(result, runs=(*result.runs, run))
            write_results(result)
            say(_summary(run))
    return result


def _variant_trainer(
    family: Family, variant: Variant, plan: StudyPlan
) -> VariantTrainer:
    recipe = plan.phase.recipe
    # The graph of the model before would stay for as long as the session.
    keras.backend.clear_session()
    with precision_policy(resolve_precision(recipe)):
        side, classes = plan.preprocessing.train_size, len(plan.source.labels)
        model = family.build(variant, side, classes)
    if recipe.bn_momentum is not None:
        set_momentum(model, recipe.bn_momentum)
    return VariantTrainer(model, plan)


def _announcement(plan: StudyPlan, variants: list[Variant], seeds: int) -> str:
    labels, phase = ", ".join(each.label for each in variants), plan.phase
    side, images = plan.preprocessing.train_size, len(plan.source.examples("train"))
    return (
        f"{labels} on {plan.source.name} ({images:,} images at {side} x {side}): "
        f"{phase.steps:,} steps of {phase.recipe.batch_size} images, {seeds} "
        f"seed{'s'[: seeds > 1]} each, {resolve_precision(phase.recipe)}"
    )


def _summary(run: RunResult) -> str:
    line = f"{run.variant.label}, seed {run.seed}: "
    if run.diverged:
        return f"{line}diverged, the loss is NaN or infinite"
    return (
        f"{line}training error {run.training_error:.2%}, test error "
        f"{run.test_error:.2%}, {run.seconds:.0f} s"
    )
