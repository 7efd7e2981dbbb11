"""`reszoo.train`: from a net and images to a checkpoint and a report."""

import os
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import keras
import tensorflow as tf

from reszoo import defaults
from reszoo.cards import Card
from reszoo.console import say
from reszoo.data.checks import find_unreadable
from reszoo.data.examples import Examples
from reszoo.data.sources import Source, check_classes, fingerprint, open_source
from reszoo.errors import ReszooError, UsageError
from reszoo.files import write_json
from reszoo.report.run import REPORT, export_command, write_summary
from reszoo.specs import spec as find_spec
from reszoo.training.devices import Devices, open_devices
from reszoo.training.history import BEST, HISTORY, LAST, Epoch, write_curves
from reszoo.training.model import precision
from reszoo.training.phases import phases
from reszoo.training.recipe_table import find_recipe, repeating
from reszoo.training.recipes import Recipe
from reszoo.training.run import TENSORBOARD, Run, RunConfig
from reszoo.training.state import (
    STATE,
    State,
    Stopped,
    check_same,
    read_state,
    stopping,
)
from reszoo.weights.names import assign_tensors
from reszoo.zoo import build, get_card, set_card

_CURVES, _RECIPE = "curves.png", "recipe.json"
_RESULTS = (BEST, LAST, HISTORY, _CURVES, REPORT)
_FILES = (*_RESULTS, _RECIPE, STATE)


@dataclass(frozen=True, kw_only=True)
class TrainResult:
    """What a run ended with.

    Attributes:
        model: The model, with the weights of the best epoch and their card.
        recipe: As it was carried out.
        history: One row an epoch.
        best: Checkpoint of the best epoch; None without an output folder, and on
            workers other than the first.
        last: Checkpoint of the last epoch, or None as well.
        report: Page to look at, or None as well.
        export_command: Arguments of the command line that exports the best weights.
    """

    model: keras.Model
    recipe: Recipe
    history: tuple[Epoch, ...]
    best: Path | None
    last: Path | None
    report: Path | None
    export_command: tuple[str, ...] = ()


def train(
    model: keras.Model | str,
    data: Any,
    *,
    recipe: str | Recipe | None = None,
    weights: str | os.PathLike[str] | None = None,
    output: str | os.PathLike[str] | None = None,
    resume: bool = False,
    overwrite: bool = False,
    bad_images: str = defaults.TRAINING_BAD_IMAGES,
    save_every: float = defaults.SAVE_EVERY,
    strategy: str | None = None,
    **fields: Any,
) -> TrainResult:
    """Train a model on labelled images.

    The epoch with the highest validation accuracy counts as best (the lower loss
    decides between equals); without a validation split the last one does.

    Args:
        model: A model from reszoo, or a name to build one from, with the classes of
            the data. Layers of a model that are not `trainable` stay as they are.
        data: A folder of class folders, a CSV of path and label, "tfds:NAME", a name
            such as "digits", or arrays: `(images, labels)`, or a dict of these by
            split.
        recipe: A row of `RECIPES`, or a recipe of your own. None is "finetune" for
            weights that were trained before, and "cifar" for fresh ones.
        weights: With a name: what the net starts from, as in `reszoo.build`.
        output: Folder for checkpoints, state, history, curves, TensorBoard's logs
            and `report.html`; None writes nothing.
        resume: Whether to go on with the run in `output`, exactly as if it had never
            stopped. Without a state there it begins.
        overwrite: Whether a run that is there already may be replaced.
        bad_images: "skip" leaves unreadable images out and names them, "error" ends
            with the first, "recover" uses what there is of truncated JPEGs.
        save_every: Seconds between two states within an epoch.
        strategy: "mirrored" spreads every batch over the GPUs of this machine,
            "multiworker" over the processes that the environment variable TF_CONFIG
            names, each of which runs the same program. Batch size and order of images
            stay what they are; batch normalisation sees parts unless `sync_bn=True`.
            Worker 0 alone writes; `output` must be on a disk that all can read.
        **fields: Fields of the recipe to change, such as `epochs=10`.

    Raises:
        DataError: An image is unreadable, or the classes are not the model's.
        ReszooError: Another worker is gone, or did not come.
        UsageError: The request cannot be meant, or a run cannot be resumed like
            this; the message tells why.

    Example:
        >>> run = reszoo.train("resnet18", "photos/", weights="imagenet")
        >>> reszoo.save(run.model, "photos.safetensors")
    """
    plan = find_recipe(recipe or _usual(model, weights), **fields)
    folder = None if output is None else Path(output)
    _check_output(folder, resume=resume, overwrite=overwrite)
    devices = open_devices(strategy)
    with devices.together():
        devices.check(plan.batch_size, plan.accumulate)
        if isinstance(model, str):
            find_spec(model)
        source = open_source(data, bad_images=bad_images)
        _check_place(folder, data)
        _tell_about(source)
        command = repeating(model, data, plan, weights, folder, bad_images, strategy)
        net = _net(model, source, plan, weights)
        setting = _setting(net, source, plan, folder, save_every, devices)
        state = _interrupted(folder if resume else None, setting)
        run = Run(setting)
        if folder and state:
            run.go_on(state, folder)
        _begin(run, going_on=state is not None)
        _train(run)
        result = _result(run, command)
        devices.meet()
        return result


def _usual(model: keras.Model | str, weights: str | os.PathLike[str] | None) -> str:
    if isinstance(model, str):
        return "cifar" if weights is None else "finetune"
    return "cifar" if get_card(model).is_fresh else "finetune"


def _check_output(folder: Path | None, *, resume: bool, overwrite: bool) -> None:
    if resume and (folder is None or overwrite):
        raise UsageError(
            "resume=True goes on with the run in the output folder: give that folder "
            "as output=, without overwrite=True."
        )
    if folder is None:
        return
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"{folder} is a file. The output of a run is a folder.")
    there = [name for name in _FILES if (folder / name).exists()]
    if resume and there and STATE not in there:
        raise UsageError(
            f"{folder} holds a run without a state ({', '.join(there)}), which cannot "
            "be resumed. Choose another folder, or overwrite=True to begin again."
        )
    if there and not overwrite and not resume:
        raise UsageError(
            f"{folder} holds a run already ({', '.join(there)}). Go on with it "
            "(resume=True, --resume), replace it (overwrite=True, --overwrite), or "
            "choose another folder."
        )


def _tell_about(source: Source) -> None:
    for path, reason in source.unreadable:
        say(f"skipped {path}: {reason}")
    for warning in source.warnings:
        say(f"Note: {warning}")


def _net(
    model: keras.Model | str,
    source: Source,
    recipe: Recipe,
    weights: str | os.PathLike[str] | None,
) -> keras.Model:
    if isinstance(model, str):
        return build(
            model,
            weights=weights,
            input_shape=_shape(recipe),
            classes=source.labels,
            zero_init_residual=recipe.zero_init_residual and weights is None,
            seed=recipe.seed,
        )
    if weights is not None:
        raise UsageError(
            "weights= goes with the name of a net; a model has its weights already. "
            f"Received: weights={str(weights)!r} and a model."
        )
    return model


def _setting(
    model: keras.Model,
    source: Source,
    recipe: Recipe,
    folder: Path | None,
    save_every: float,
    devices: Devices,
) -> RunConfig:
    card = _labelled(get_card(model), source)
    names = ("train_size", "eval_size", "crop_pct", "interpolation")
    sizes = {name: getattr(recipe, name) for name in names}
    given = {name: value for name, value in sizes.items() if value is not None}
    card = replace(card, preprocessing=replace(card.preprocessing, **given))
    _check_size(card)
    conditions = {
        "net": card.architecture.to_json(),
        "first weights": None if card.is_fresh else dict(card.provenance),
        "preprocessing": card.preprocessing.to_json(),
        **{f"recipe's {name}": value for name, value in recipe.to_json().items()},
        **{f"data's {name}": value for name, value in fingerprint(source).items()},
        "precision": precision(recipe),
        "devices": devices.count,
    }
    return RunConfig(
        model=model,
        card=card,
        source=source,
        recipe=recipe,
        phases=phases(recipe, len(source.examples("train")), devices.count),
        folder=folder if devices.is_chief else None,
        save_every=save_every,
        devices=devices,
        conditions=conditions,
    )


def _labelled(card: Card, source: Source) -> Card:
    classes, names = card.architecture.classes, source.labels
    if not card.architecture.include_top:
        raise UsageError(
            "Training needs a net with a classifier. Received: a net without; build it "
            f"with classes={len(names)} (include_top=True)."
        )
    if classes != len(names):
        raise UsageError(
            f"The model must have as many outputs as the data has classes. "
            f"Received: {classes} outputs for the {len(names)} classes of "
            f"{source.name}; build it with classes={len(names)}."
        )
    card.check_rgb()
    check_classes(source, card.labels, "the model")
    return replace(card, labels=names)


def _shape(recipe: Recipe) -> tuple[int, int, int] | None:
    side = recipe.eval_size
    return None if side is None else (side, side, 3)


def _check_size(card: Card) -> None:
    """Refuse to judge a net at another size than it was built for."""
    height, width, _ = card.architecture.input_shape
    side = card.preprocessing.eval_size
    if {height, width} - {None, side}:
        raise UsageError(
            f"The net was built for images of {height} x {width}, the recipe evaluates "
            f"at {side} x {side}. Build it with input_shape=({side}, {side}, 3), or "
            f"set eval_size={height}."
        )


def _check_place(folder: Path | None, data: Any) -> None:
    """Refuse an output that would become a class of the data."""
    if folder is None or not isinstance(data, str | os.PathLike):
        return
    root = Path(data).resolve()
    if root.is_dir() and folder.resolve().is_relative_to(root):
        raise UsageError(
            f"The output folder must not lie inside the data, where it would be taken "
            f"for a class. Received: {folder} inside {data}."
        )


def _interrupted(folder: Path | None, setting: RunConfig) -> State | None:
    """Return the state to go on from, if there is one, and refuse another run's."""
    if folder is None or not (folder / STATE).exists():
        return None
    tensors, content = read_state(folder / STATE)
    check_same(content["conditions"], setting.conditions, folder)
    return tensors, content


def _begin(run: Run, *, going_on: bool) -> None:
    setting = run.setting
    folder = setting.folder
    run.check_agreement()
    _announce(run)
    if folder and not run.chronicle.history:
        # First of all a state, so that a kill at any moment leaves something to go on
        # with; only then may what an older run left go.
        if not going_on:
            run.save()
            shutil.rmtree(folder / TENSORBOARD, ignore_errors=True)
        for name in _RESULTS:
            (folder / name).unlink(missing_ok=True)
        write_json(folder / _RECIPE, setting.recipe.to_json())


def _announce(run: Run) -> None:
    setting = run.setting
    mirrored = ", mirrored at random" if setting.augmentation.flip else ""
    say(
        f"{_title(setting)}: {len(run.examples):,} images{mirrored}, "
        f"{len(setting.source.labels)} classes, {_length(setting)}, "
        f"{precision(setting.recipe)}; {run.engine.batch_norm}"
    )
    if run.finished:
        say("The run is complete already.")
    elif any(run.position):
        epoch, step = run.position
        say(f"Going on in epoch {epoch + 1}, step {step + 1}.")


def _length(setting: RunConfig) -> str:
    steps = sum(phase.steps for phase in setting.phases)
    head = setting.phases[0].epochs if len(setting.phases) > 1 else 0
    alone = f" ({head} of the head alone)" if head else ""
    return f"{steps:,} steps in {setting.epochs} epochs{alone}"


def _train(run: Run) -> None:
    folder = run.setting.folder
    with stopping() as stop:
        try:
            with run.setting.devices.together():
                run.finish(stop)
        except Stopped:
            if folder:
                say(f"Stopped. Go on with --resume (resume=True); {folder} has it all.")
            raise
        except tf.errors.ResourceExhaustedError as error:
            recipe = run.setting.recipe
            raise ReszooError(
                "There is not enough memory for a batch. Received: batch_size="
                f"{recipe.batch_size}, accumulate={recipe.accumulate}; set "
                f"accumulate={2 * recipe.accumulate} for the same steps with less, or "
                f"batch_size={recipe.batch_size // 2}."
            ) from error
        except tf.errors.OpError as error:
            problems = map(find_unreadable, _shown(run.setting.source))
            raise next(filter(None, problems), error) from error


def _result(run: Run, command: list[str]) -> TrainResult:
    setting, folder = run.setting, run.setting.folder
    if folder:
        write_curves(folder / _CURVES, run.chronicle.history, _title(setting))
        write_summary(run, command)
    assign_tensors(setting.model, run.chronicle.best_tensors, "the best epoch")
    set_card(setting.model, run.chronicle.best_card)
    return TrainResult(
        model=setting.model,
        recipe=setting.recipe,
        history=tuple(run.chronicle.history),
        best=folder and folder / BEST,
        last=folder and folder / LAST,
        report=folder and folder / REPORT,
        export_command=(
            tuple(export_command(folder, setting.source)) if folder else ()
        ),
    )


def _title(setting: RunConfig) -> str:
    return f"{setting.card.architecture.spec} on {setting.source.name}"


def _shown(source: Source) -> list[Examples]:
    names = ("train", "validation")
    return [source.splits[name] for name in names if name in source.splits]
