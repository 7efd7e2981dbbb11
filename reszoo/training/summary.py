"""Judge a finished run once more and put it on a page."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from reszoo.cards import library_versions
from reszoo.data.sources import Source
from reszoo.errors import UnknownNameError
from reszoo.machine import processor
from reszoo.training.chronicle import BEST
from reszoo.training.recipe_table import find_recipe
from reszoo.training.report_judged import Judged
from reszoo.training.report_page import RunReport, write_report

if TYPE_CHECKING:
    from reszoo.training.run import Run

REPORT = "report.html"


def write_summary(run: "Run", command: Sequence[str]) -> None:
    """Write `report.html` into the folder of a finished run.

    The answers are those of the best weights, on the split that training never
    learnt from: the test images where there are some, else the validation images.

    Args:
        run: With at least one epoch, and a folder.
        command: Arguments that repeat it.
    """
    setting = run.setting
    folder, recipe = setting.folder, setting.recipe
    if folder is None or run.chronicle.best is None:
        return
    try:
        defaults = find_recipe(recipe.name).to_json()
    except UnknownNameError:
        defaults = {}
    report = RunReport(
        net=setting.card.architecture.spec,
        data=setting.source.name,
        class_names=setting.source.class_names,
        training_images=len(run.examples),
        history=run.chronicle.history,
        best_epoch=run.chronicle.best.epoch,
        judged=_judged(run),
        recipe=recipe.to_json(),
        defaults=defaults,
        batch_norm=run.engine.batch_norm,
        skipped=setting.source.unusable,
        repeat=command,
        export=export_command(folder, setting.source),
        versions=library_versions(),
        processor=processor(),
        seconds=sum(row.seconds for row in run.chronicle.history),
    )
    write_report(folder / REPORT, report)


def export_command(folder: Path, source: Source) -> list[str]:
    """Return the arguments that export a run's best weights.

    Images in memory cannot be named; then made-up ones are compared.
    """
    command = ["reszoo", "export", str(folder / BEST)]
    command += ["--output", str(folder / "export")]
    if source.root is not None or source.name != "arrays":
        command += ["--verify", source.name]
    if source.unusable:
        command += ["--bad-images", "skip"]
    return command


def _judged(run: "Run") -> Judged | None:
    split = run.setting.source.judging_split
    if split == "train":
        return None
    examples = run.setting.source.examples(split)
    run.judge.lay_in(run.chronicle.best_tensors)
    return Judged(
        split=split,
        labels=examples.labels,
        probabilities=run.judge.probabilities(examples),
        picture=examples.open,
        name_of=examples.name,
        probe_top1=run.probe,
    )
