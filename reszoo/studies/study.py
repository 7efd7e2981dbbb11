"""`reszoo.study`: train plain and residual twins over depths, and say what came out."""

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import keras

from reszoo import defaults
from reszoo.cards import new_card
from reszoo.console import say
from reszoo.data.pipeline import Augmentation
from reszoo.data.sources import Data, Source, fingerprint, open_source
from reszoo.errors import UsageError
from reszoo.report.study import PAGE, PLOT_SECTIONS, write_page
from reszoo.specs import architecture
from reszoo.studies.course import STATE, Learner, Plan, train_course
from reszoo.studies.families import Family, Net, find_family
from reszoo.studies.results import (
    RESULTS,
    Course,
    StudyResult,
    conclude,
    read_results,
    write_results,
)
from reszoo.training.model import computing_in, precision, set_momentum
from reszoo.training.phases import phases
from reszoo.training.recipe_table import find_recipe
from reszoo.training.recipes import DEFAULTS, LEARNING, Recipe
from reszoo.training.state import Stop, Stopped, check_same, stopping

_FILES = (RESULTS, PAGE, STATE, *PLOT_SECTIONS)
# The digits are 8 x 8: small enough to train over a hundred layers in seconds.
_DIGITS_SIZE, _SIZE = 8, 32
# What makes the paper's recipe fit some 1,300 of them.
_DIGITS_FIELDS: dict[str, Any] = {
    "batch_size": 64,
    "crop": "none",
    # The paper's 0.1 is for ten times as many steps.
    "learning_rate": 0.01,
    "precision": "float32",
}

# All other fields of a recipe are refused unless they are at their defaults, so that
# none is passed over in silence.
_CARRIED_OUT = LEARNING | {
    "name",
    "batch_size",
    "crop",
    "flip",
    "pad",
    "precision",
    "seed",
    "steps",
    "train_size",
}


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
    """Show what depth does to nets with and without shortcuts.

    Every net is trained under one recipe from several seeds. The folder gets
    `study.json`, `study.html` and the plots as PNG files: error against steps (figure
    6 of the paper), error against depth, and the gradients and activations of every
    layer.

    Source: He et al. 2015 (arXiv:1512.03385), section 4.2.

    Args:
        family: "cifar": the paper's nets for small images; "dense": multilayer
            perceptrons of equal width.
        data: As of `reszoo.train`; it needs a test split.
        layers: Depths to compare. None takes some that the processor can train here.
        shortcuts: "none" for plain nets; "identity", "projection" and
            "projection-all", the paper's options A, B and C.
        seeds: How many beginnings each net gets.
        seed: The first of them; the others follow.
        size: Side of the images in pixels. None is 8 for digits, else 32.
        recipe: A row of `RECIPES`, or a recipe of your own.
        output: Folder for the results.
        resume: Whether to go on with the study in `output`. It may get more depths,
            shortcuts or seeds, but no other data or recipe.
        overwrite: Whether a study that is there already may be replaced.
        save_every: Seconds between two states within a training.
        **fields: Fields of the recipe to change, such as `steps=2000`.

    Returns:
        All courses, with the folder.

    Raises:
        UsageError: There are no such nets, or `output` holds another study.
        DataError: The data cannot be read.

    Example:
        >>> found = reszoo.study(layers=(20, 56), seeds=2)
        >>> found.conclusion[-1]
    """
    chosen, folder = find_family(family), Path(output)
    nets = chosen.nets(tuple(layers or chosen.default_layers), tuple(shortcuts))
    if seeds < 1:
        raise UsageError(f"seeds must be at least 1. Received: seeds={seeds}.")
    source = open_source(data)
    plan, conditions = _planned(
        chosen, source, size, recipe, fields, folder, save_every
    )
    before = _before(folder, conditions, resume=resume, overwrite=overwrite)
    wanted = [(net, number) for net in nets for number in range(seed, seed + seeds)]
    result = StudyResult(
        data=source.name, conditions=conditions, courses=before, folder=folder
    )
    say(_announcement(source, plan, nets, seeds))
    with stopping() as stop:
        try:
            result = _carry_out(chosen, plan, result, wanted, stop, source)
        except Stopped:
            say(f"Stopped. Go on with --resume (resume=True); {folder} has it all.")
            raise
    result = replace(result, conclusion=tuple(conclude(result)))
    write_results(result)
    write_page(result)
    return result


def _planned(
    family: Family,
    source: Source,
    size: int | None,
    recipe: str | Recipe,
    fields: dict[str, Any],
    folder: Path,
    save_every: float,
) -> tuple[Plan, dict[str, Any]]:
    settled = _settled(family, source, recipe, fields)
    small = _DIGITS_SIZE if _is_digits(source) else _SIZE
    side = size or settled.train_size or small
    usual = new_card(architecture("resnet20")).preprocessing
    train, test = source.examples("train"), source.examples("test")
    plan = Plan(
        train=train,
        test=test,
        record=replace(usual, train_size=side, eval_size=side, crop_pct=1.0),
        augmentation=Augmentation(
            crop="pad" if settled.crop == "pad" else "none",
            pad=round(settled.pad * side),
            flip=source.flip_safe if settled.flip is None else settled.flip,
        ),
        phase=phases(settled, len(train))[0],
        folder=folder,
        save_every=save_every,
    )
    conditions = {
        "family": family.name,
        **{f"data's {name}": value for name, value in fingerprint(source).items()},
        **{f"recipe's {name}": value for name, value in settled.to_json().items()},
        "size": side,
        "precision": precision(settled),
    }
    conditions.pop("recipe's seed")
    return plan, conditions


def _is_digits(source: Source) -> bool:
    return source.name == "digits"


def _settled(
    family: Family, source: Source, recipe: str | Recipe, fields: dict[str, Any]
) -> Recipe:
    """Return the recipe with the study's own defaults, if it can be carried out."""
    usual = {"steps": family.digits_steps, **_DIGITS_FIELDS}
    if not _is_digits(source) or recipe != defaults.STUDY_RECIPE:
        usual = {}
    if "epochs" in fields:
        usual.pop("steps", None)
    settled = find_recipe(recipe, **{**usual, **fields})
    beyond = sorted(
        name
        for name, value in DEFAULTS.items()
        if name not in _CARRIED_OUT and getattr(settled, name) != value
    )
    if settled.crop not in ("pad", "none"):
        beyond.append(f"crop={settled.crop}")
    if beyond:
        raise UsageError(
            "A study trains whole nets from scratch on images that are shifted and "
            f"mirrored at most. Received: recipe={settled.name!r} with "
            f"{', '.join(beyond)}; take {defaults.STUDY_RECIPE!r} or 'cifar', without "
            "these."
        )
    return settled


def _before(
    folder: Path, conditions: dict[str, Any], *, resume: bool, overwrite: bool
) -> tuple[Course, ...]:
    """Return the courses that are done already, and make room for the others."""
    if resume and overwrite:
        raise UsageError("resume=True goes on, overwrite=True begins again: give one.")
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"{folder} is a file. The output of a study is a folder.")
    there = [name for name in _FILES if (folder / name).exists()]
    if there and not resume and not overwrite:
        raise UsageError(
            f"{folder} holds a study already ({', '.join(there)}). Go on with it "
            "(resume=True, --resume), replace it (overwrite=True, --overwrite), or "
            "choose another folder."
        )
    if not resume:
        for name in there:
            (folder / name).unlink()
    if RESULTS not in there or not resume:
        return ()
    found = read_results(folder)
    check_same(found.conditions, conditions, folder)
    return found.courses


def _carry_out(
    family: Family,
    plan: Plan,
    result: StudyResult,
    wanted: list[tuple[Net, int]],
    stop: Stop,
    source: Source,
) -> StudyResult:
    done = {(course.net, course.seed) for course in result.courses}
    # From the start, so that a state beside it always has its conditions.
    write_results(result)
    learner: Learner | None = None
    learns: Net | None = None
    for net, seed in wanted:
        if (net, seed) in done:
            continue
        if learner is None or learns != net:
            learner, learns = _learner(family, net, plan, source), net
        course = train_course(learner, net, seed, plan, stop)
        result = replace(result, courses=(*result.courses, course))
        write_results(result)
        say(_told(course))
    return result


def _learner(family: Family, net: Net, plan: Plan, source: Source) -> Learner:
    recipe = plan.phase.recipe
    # The graph of the net before would stay for as long as the session.
    keras.backend.clear_session()
    with computing_in(precision(recipe)):
        side, classes = plan.record.train_size, len(source.labels)
        model = family.build(net, side, classes, 0)
    if recipe.bn_momentum is not None:
        set_momentum(model, recipe.bn_momentum)
    return Learner(model, plan.record, recipe)


def _announcement(source: Source, plan: Plan, nets: list[Net], seeds: int) -> str:
    labels = ", ".join(net.label for net in nets)
    phase = plan.phase
    return (
        f"{labels} on {source.name} ({len(plan.train):,} images of "
        f"{plan.record.train_size} pixels): {phase.steps:,} steps of "
        f"{phase.recipe.batch_size} images, {seeds} seed{'s'[: seeds > 1]} each, "
        f"{precision(phase.recipe)}"
    )


def _told(course: Course) -> str:
    line = f"{course.net.label}, seed {course.seed}: "
    if course.diverged:
        return f"{line}diverged, the loss is no number"
    return (
        f"{line}training error {course.training_error:.2%}, test error "
        f"{course.test_error:.2%}, {course.seconds:.0f} s"
    )
