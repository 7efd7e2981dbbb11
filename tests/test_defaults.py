"""The command line has the defaults of the Python functions."""

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer

import reszoo
from reszoo.cli.options import app
from reszoo.cli.publishing import describe_environment

COMMANDS = typer.main.get_command(app).commands  # type: ignore[attr-defined]
# Command -> what it calls.
FUNCTIONS: dict[str, tuple[Callable[..., Any], ...]] = {
    "list": (reszoo.list_models,),
    "convert": (reszoo.load, reszoo.save),
    "scan": (reszoo.scan,),
    "resize": (reszoo.resize_images,),
    "train": (reszoo.train,),
    "study": (reszoo.study,),
    "calibrate": (reszoo.calibrate,),
    "export": (reszoo.export,),
    "verify": (reszoo.verify,),
    "inspect": (reszoo.inspect,),
    "benchmark": (reszoo.benchmark,),
    "web": (reszoo.write_site,),
    "push": (reszoo.push,),
    "check-weights": (reszoo.check_weights,),
    "doctor": (describe_environment,),
    "demo": (),
    "evaluate": (reszoo.evaluate,),
    "predict": (reszoo.predict_files,),
    "explain": (reszoo.explain,),
}
# Command and option -> the Python parameter, where the names differ.
RENAMED = {
    ("convert", "source"): "path",
    ("convert", "output"): "path",
    ("convert", "model"): "variant",
    ("inspect", "file"): "path",
    ("explain", "inputs"): "image",
    ("benchmark", "batch"): "batch_sizes",
    ("push", "sample"): "samples",
}
# Options that no Python function has.
OF_THE_COMMAND = {
    ("list", "weights"): "chooses another table to print",
    ("list", "sort"): "sorts the printed rows",
    ("convert", "overwrite"): "reszoo.save replaces files as Keras' save does",
    ("train", "fields"): "keyword arguments in Python",
    ("study", "fields"): "keyword arguments in Python",
    ("train", "epochs"): "a field of the recipe",
    ("train", "batch_size"): "a field of the recipe",
    ("train", "learning_rate"): "a field of the recipe",
    ("train", "seed"): "a field of the recipe",
    ("train", "cache_features"): "a field of the recipe",
    ("evaluate", "min_accuracy"): "an exit code; Metrics.top1 in Python",
    ("explain", "output"): "pictures in a folder; Explanation.overlay in Python",
    ("explain", "overwrite"): "the same",
    ("verify", "min_accuracy"): "an exit code; Verification.accuracy in Python",
    ("demo", "output"): "the demo is a command alone",
}
# Defaults that differ.
DIFFERENT = {
    ("train", "output"): "the process of a command ends, and its model with it",
    ("predict", "output"): "without it the command prints the answers",
}
OPTIONS = [
    (command, option.name)
    for command, found in COMMANDS.items()
    for option in found.params
    if option.name not in ("help", "as_json")
]
REQUIRED = inspect.Parameter.empty


def parameter(command: str, option: str) -> inspect.Parameter | None:
    name = RENAMED.get((command, option), option)
    for function in FUNCTIONS[command]:
        found = inspect.signature(function).parameters
        if name in found and found[name].kind is not inspect.Parameter.VAR_KEYWORD:
            return found[name]
    return None


def comparable(default: Any) -> Any:
    if isinstance(default, list | tuple):
        return ",".join(map(str, default))
    return str(default) if isinstance(default, Path) else default


@pytest.mark.parametrize(("command", "option"), OPTIONS)
def test_a_default_is_that_of_python(command: str, option: str) -> None:
    found = parameter(command, option)
    if (command, option) in OF_THE_COMMAND:
        assert found is None
        return
    assert found is not None
    (shown,) = (p for p in COMMANDS[command].params if p.name == option)
    default = REQUIRED if shown.required else comparable(shown.default)
    same = default == comparable(found.default)
    assert same == ((command, option) not in DIFFERENT), (default, found.default)


def test_every_exception_names_an_option() -> None:
    assert {*RENAMED, *OF_THE_COMMAND, *DIFFERENT} <= set(OPTIONS)
    assert set(FUNCTIONS) == set(COMMANDS)
