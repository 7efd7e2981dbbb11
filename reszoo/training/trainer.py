"""`reszoo.train`: from a model and images to a checkpoint and a report."""

import shlex
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import keras
import tensorflow as tf

from reszoo import defaults
from reszoo.cards import Card
from reszoo.console import say
from reszoo.data.checks import find_unreadable
from reszoo.data.sources import Source, fingerprint, match_classes, open_source
from reszoo.environment import check_backend
from reszoo.errors import ReszooError, UsageError
from reszoo.files import StrPath, as_path, check_outside, write_json
from reszoo.preprocessing import as_sides
from reszoo.report.page import render
from reszoo.specs import ResNetSpec, find_spec
from reszoo.training import state
from reszoo.training.devices import Devices, open_devices
from reszoo.training.features import cache_notes
from reszoo.training.history import BEST, HISTORY, LAST, Epoch
from reszoo.training.model import resolve_precision
from reszoo.training.phases import fitting_batch, phases
from reszoo.training.recipes import DEFAULTS, Recipe, find_recipe, repeat_command
from reszoo.training.report import write_curves, write_summary
from reszoo.training.run import TENSORBOARD, Run, RunConfig
from reszoo.training.teacher import Teacher
from reszoo.zoo import build, get_card, set_card

# Photos lose little of what they show at this size, and much at half of it.
_COARSE = 128
_CURVES, _RECIPE, _REPORT = "curves.png", "recipe.json", "report.html"
_RESULTS = (BEST, LAST, HISTORY, _CURVES, _REPORT)
_FILES = (*_RESULTS, _RECIPE, state.STATE)


@dataclass(frozen=True, kw_only=True)
class TrainResult:
    """The result of a run.

    Attributes:
        model: The model, with the weights of the best epoch and their card.
        recipe: Of the run, with all changes.
        history: One row per epoch.
        best: Checkpoint of the best epoch; None without an output folder, and on
            workers other than the first.
        last: Checkpoint of the last epoch, or None as well.
        report: HTML page, or None as well.
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
    model: keras.Model | str | ResNetSpec, data: Any, *,
    recipe: str | Recipe | None = None, weights: StrPath | None = None,
    match: str | None = None, output: StrPath | None = None,
    resume: bool = False, overwrite: bool = False,
    bad_images: str = defaults.TRAINING_BAD_IMAGES,
    save_every: float = defaults.SAVE_EVERY, strategy: str | None = None,
    on_epoch_end: Callable[[Epoch], object] | None = None,
    size: int | tuple[int, int] | None = None, **fields: Any,
) -> TrainResult:  # fmt: skip
    """Train a model on labelled images.

    The epoch with the highest validation accuracy counts as best (the recipe's
    `best_by` says otherwise); without a validation split the last one does.

    Args:
        model: A model from reszoo, or a name or `ResNetSpec` to build one from, with
            the classes of the data. Layers of a model that are not `trainable` stay
            as they are.
        data: A folder of class folders, a CSV of path and label, "tfds:NAME", a name
            such as "digits", or arrays: `(images, labels)`, or a dict of these by
            split.
        recipe: Name of a recipe, or a recipe of your own. None is "finetune" for
            pretrained weights, and "cifar" for fresh ones.
        weights: With a name: the initial weights, as in `reszoo.build`.
        match: "order" for weights with unknown names, as in `reszoo.build`.
        output: Folder for checkpoints, state, history, curves, TensorBoard's logs
            and `report.html`; None writes nothing.
        resume: Whether to resume the run in `output`, exactly as if it had never
            stopped. Without a state there a new run starts.
        overwrite: Whether to replace a run that is in `output`.
        bad_images: "skip" leaves unreadable images out and lists them, "error" stops at
            the first, "recover" decodes truncated JPEGs as far as they go.
        save_every: Seconds between two states within an epoch.
        strategy: "mirrored" spreads every batch over the GPUs of this machine,
            "multiworker" over the processes that the environment variable TF_CONFIG
            lists, each of which runs the same program. Batch size and order of images
            are the same; batch normalisation sees parts unless `sync_bn=True`.
            Worker 0 alone writes; `output` must be on a disk that all can read.
        on_epoch_end: Called with each new row of the history (`TrainResult.history`),
            after the state of the epoch is saved; with several workers, on worker 0.
        size: Side of the images in pixels, or height and width: `train_size` and
            `eval_size` in one.
        **fields: Fields of the recipe to change, such as `epochs=10`, which counts
            those after `head_epochs`.

    Raises:
        DataError: An image is unreadable, or the classes are not the model's.
        ReszooError: The loss is NaN or infinite, memory ran out, or another worker
            is gone.
        UsageError: The arguments are invalid, or do not fit the run to resume; the
            message says why.

    Example:
        >>> run = reszoo.train("resnet18", "photos/", weights="imagenet")
        >>> reszoo.save(run.model, "photos.safetensors")
    """
    if size is not None:
        fields = {"train_size": size, "eval_size": size, **fields}
    _check_call(model, fields)
    check_backend("train")
    chosen = find_recipe(recipe or _default_recipe(model, weights), **fields)
    folder = None if output is None else as_path(output)
    _check_output(folder, data, resume=resume, overwrite=overwrite)
    devices = open_devices(strategy)
    with devices.failing_together():
        devices.check_batch_size(chosen.batch_size, chosen.accumulate)
        source = _open_data(data, bad_images, chosen.validation_share)
        if "batch_size" not in fields and not isinstance(recipe, Recipe):
            unit = devices.count * chosen.accumulate
            changes = fitting_batch(chosen, len(source.examples("train")), unit)
            chosen = replace(chosen, **{**changes, **fields})
        for path, reason in source.unreadable:
            say(f"skipped {path}: {reason}")
        options: Any = {"bad_images": bad_images, "strategy": strategy}
        command: Any = partial(repeat_command, model, data, **options)
        built = _build(model, source, chosen, weights, match)
        config = RunConfig(
            **_fitted(built, source, chosen, devices),
            folder=folder if devices.is_chief else None,
            save_every=save_every, devices=devices, on_epoch_end=on_epoch_end,
        )  # fmt: skip

        def train_on(recipe: Recipe) -> str:
            last = folder and folder / LAST
            weights = last if isinstance(model, str) else None
            after = folder and folder.with_name(f"{folder.name}-2")
            loaded = f"reszoo.train(reszoo.load({str(last)!r})"
            told = shlex.join(command(recipe, weights, after))
            return told.replace("reszoo.train(model", loaded)

        saved = _saved_state(folder if resume else None, config, train_on)
        run = Run(config)
        if folder and saved:
            run.resume(saved, folder)
        _start(run, resuming=saved is not None)
        _train(run)
        result = _result(run, command(chosen, weights, folder, match=match))
        devices.barrier()
        return result


def _open_data(data: Any, bad_images: str, share: float | None) -> Source:
    source = open_source(data, bad_images=bad_images, validation_share=share)
    if share is not None and source.name == "digits":
        raise UsageError(
            '"digits" has splits of its own. Received: validation_share='
            f"{share}; leave it out."
        )
    return source


_OF_FIT = {
    "callbacks": "on_epoch_end= is called after every epoch; for Keras' callbacks call "
    "reszoo.compile(model) and model.fit(callbacks=...)",
    "validation_data": 'give the splits as one argument: {"train": (images, labels), '
    '"validation": (images, labels)}',
    "validation_split": "it is called validation_share",
    "lr": "it is called learning_rate",
}


def _check_call(model: Any, fields: Mapping[str, Any]) -> None:
    """Say the next step to those who call `train` as Keras' `fit`."""
    if not isinstance(model, keras.Model | str | ResNetSpec):
        raise UsageError(
            "The first argument is a model or its name, and images and labels are one "
            'argument: reszoo.train("resnet18", (images, labels)). Received: '
            f"{type(model).__name__}."
        )
    if not isinstance(model, keras.Model):
        find_spec(model)
    for name in _OF_FIT.keys() & fields.keys():
        raise UsageError(f"reszoo.train has no {name}=: {_OF_FIT[name]}.")


def _default_recipe(
    model: keras.Model | str | ResNetSpec, weights: StrPath | None
) -> str:
    given = isinstance(model, keras.Model)
    fresh = get_card(model).is_fresh if given else weights is None
    return "cifar" if fresh else "finetune"


def _check_output(
    folder: Path | None, data: Any, *, resume: bool, overwrite: bool
) -> None:
    """Refuse an output that cannot be written, or that would become a class of data."""
    if folder is None:
        if resume:
            raise UsageError(
                "resume=True resumes the run in the output folder: give it as output=."
            )
        return
    check_outside(folder, data)
    marks, options = (state.STATE, BEST, LAST, _RECIPE), (resume, overwrite)
    found = state.check_output(folder, _FILES, marks, "run", *options)
    if resume and found and state.STATE not in found:
        raise UsageError(
            f"{folder} holds a run without a state ({', '.join(found)}), which cannot "
            "be resumed. Choose another folder, or overwrite=True to start again."
        )


def _build(
    model: keras.Model | str | ResNetSpec,
    source: Source,
    recipe: Recipe,
    weights: StrPath | None,
    match: str | None,
) -> keras.Model:
    if not isinstance(model, keras.Model):
        size = recipe.eval_size or find_spec(model).image_size
        return build(
            model, weights=weights, match=match,
            input_shape=(*as_sides(size), recipe.channels or 3), classes=source.labels,
            zero_init_residual=recipe.zero_init_residual and weights is None,
            seed=recipe.seed,
        )  # fmt: skip
    if weights is not None:
        raise UsageError(
            "weights= goes with the name of a model; a model has its weights already. "
            f"Received: weights={str(weights)!r} and a model."
        )
    return model


def _fitted(
    model: keras.Model, source: Source, recipe: Recipe, devices: Devices
) -> dict[str, Any]:
    """Return the fields of a `RunConfig` that model, data and recipe decide."""
    card, source = _matched(get_card(model), source)
    names = ("train_size", "eval_size", "crop_pct", "interpolation", "resize")
    fields = {name: getattr(recipe, name) for name in names}
    given = {name: value for name, value in fields.items() if value is not None}
    if recipe.resize in ("squash", "pad"):
        # Both are for showing the whole image.
        given.setdefault("crop_pct", 1.0)
    card = replace(card, preprocessing=replace(card.preprocessing, **given))
    card.check_input()
    if recipe.channels not in (None, card.preprocessing.channels):
        raise UsageError(
            "channels= goes with the name of a model; a model has its channels. "
            f"Received: channels={recipe.channels} and a model of "
            f"{card.preprocessing.channels}."
        )
    conditions = {
        "model": card.architecture.to_json(),
        "first weights": None if card.is_fresh else dict(card.provenance),
        "preprocessing": card.preprocessing.to_json(),
        **{f"recipe's {name}": value for name, value in recipe.to_json().items()},
        **{f"data's {name}": value for name, value in fingerprint(source).items()},
        "precision": resolve_precision(recipe),
        "devices": devices.count,
    }
    parts = phases(recipe, len(source.examples("train")), devices.count)
    told = cache_notes(parts, source, model, devices.count)
    source = replace(source, notes=(*source.notes, *told))
    teacher = None
    if recipe.teacher is not None:
        with devices.scope():
            teacher = Teacher(recipe.teacher, card)
        conditions["teacher's weights"] = teacher.weights
    return {
        "model": model, "card": card, "source": source, "recipe": recipe,
        "phases": parts, "conditions": conditions, "teacher": teacher,
    }  # fmt: skip


def _matched(card: Card, source: Source) -> tuple[Card, Source]:
    """Return the card with labels, and the source with targets in their order."""
    classes, count = card.architecture.classes, len(source.labels)
    if not card.architecture.include_top:
        raise UsageError(
            "Training needs a model with a classifier. Received: a model built with "
            f"include_top=False; build it with classes={count}, include_top=True."
        )
    if classes != count:
        raise UsageError(
            f"The model must have as many outputs as the data has classes. "
            f"Received: {classes} outputs for the {count} classes of "
            f"{source.name}; build it with classes={count}."
        )
    found = match_classes(source, card.labels, classes, all_needed=True)
    return replace(card, labels=found.labels), found


def _saved_state(
    folder: Path | None, config: RunConfig, train_on: Callable[[Recipe], str]
) -> state.State | None:
    """Return the state to resume from, if any; refuse that of another run."""
    if folder is None or not (folder / state.STATE).exists():
        return None
    tensors, content = state.read_state(folder / state.STATE)
    then = content["conditions"]
    if "net" in then:  # What early states call the model.
        then["model"] = then.pop("net")
    # Fields that a release added since then had no effect in its runs.
    then = {f"recipe's {name}": value for name, value in DEFAULTS.items()} | then
    now, recipe, advice = config.conditions, config.recipe, ""
    changed = {name for name in {*then, *now} if then.get(name) != now.get(name)}
    # A model in memory has other weights once it is trained.
    if all(name.startswith(("recipe's ", "first weights")) for name in changed):
        advice = _advice(then, recipe, train_on) if changed else ""
    state.check_same(then, now, folder, advice)
    return tensors, content


def _advice(
    then: Mapping[str, Any], recipe: Recipe, train_on: Callable[[Recipe], str]
) -> str:
    """Return how a run is continued with another recipe, as a command that works."""
    for kind in ("epochs", "steps"):
        total, done = getattr(recipe, kind), then.get(f"recipe's {kind}")
        if total and done and total > done:
            recipe = find_recipe(recipe, **{kind: total - done})
    return (
        " To train on from its last weights, let it finish with its own recipe; then "
        f"this starts a new schedule ({recipe.schedule}, from learning_rate="
        f"{recipe.learning_rate:g}): {train_on(find_recipe(recipe, head_epochs=0))}"
    )


def _start(run: Run, *, resuming: bool) -> None:
    folder = run.config.folder
    run.check_agreement()
    _announce(run)
    if folder and not run.history.epochs:
        # The state comes first, so that a kill at any moment leaves something to
        # resume from; only then are the files of an older run removed.
        if not resuming:
            run.save()
            shutil.rmtree(folder / TENSORBOARD, ignore_errors=True)
        for name in _RESULTS:
            (folder / name).unlink(missing_ok=True)
        write_json(folder / _RECIPE, run.config.recipe.to_json())


def _announce(run: Run) -> None:
    config, side = run.config, run.examples.median_side()
    most = max(config.card.preprocessing.train_sides)
    told = render(
        "training_text.j2", run=run, config=config, title=_title(config),
        precision=resolve_precision(config.recipe), side=side, most=most,
        much_larger=side >= 2 * most and most < _COARSE,
    )  # fmt: skip
    for line in told.splitlines():
        say(line)


def _title(config: RunConfig) -> str:
    return f"{config.card.architecture.name} on {config.source.name}"


def _train(run: Run) -> None:
    recipe = run.config.recipe
    with state.stop_on_signals(run.config.folder) as stop:
        try:
            with run.config.devices.failing_together():
                run.train(stop)
        except tf.errors.ResourceExhaustedError as error:
            raise ReszooError(
                "Out of memory in a training step. Received: batch_size="
                f"{recipe.batch_size}, accumulate={recipe.accumulate}; set "
                f"accumulate={2 * recipe.accumulate} for the same updates with less "
                f"memory, or batch_size={recipe.batch_size // 2}."
            ) from error
        except tf.errors.OpError as error:
            splits = run.config.source.splits
            used = [splits[name] for name in ("train", "validation") if name in splits]
            raise next(filter(None, map(find_unreadable, used)), error) from error


def _result(run: Run, repeat: list[str]) -> TrainResult:
    config, folder, history = run.config, run.config.folder, run.history
    export = _export_command(folder, config.source) if folder else []
    run.calibrate()
    if folder:
        write_curves(folder / _CURVES, _title(config), history.epochs)
        write_summary(run, folder / _REPORT, repeat=repeat, export=export)
    history.load_best(config.model)
    set_card(config.model, history.best_card)
    return TrainResult(
        model=config.model, recipe=config.recipe, history=tuple(history.epochs),
        best=folder and folder / BEST, last=folder and folder / LAST,
        report=folder and folder / _REPORT, export_command=tuple(export),
    )  # fmt: skip


def _export_command(folder: Path, source: Source) -> list[str]:
    """Return the arguments that export a run's best weights.

    Images in memory cannot be named on a command line; synthetic ones are compared.
    """
    named = source.root is not None or source.name != "arrays"
    return [
        *("reszoo", "export", str(folder / BEST), "--output", str(folder / "export")),
        *("--verify", source.name)[: 2 * named],
        *("--bad-images", "skip")[: 2 * bool(source.unreadable)],
    ]
