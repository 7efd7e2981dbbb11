"""The code of the documentation runs, or says why not.

A page's blocks run in order, as one reader would. Published weights are not downloaded
and no recipe runs to its end: `STAND_INS` and `short_recipes` take their place.
"""

import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import photos, randomise
from PIL import Image
from torch_writer import Writer, mapping

import reszoo
from reszoo.cli import main
from reszoo.training.recipes import RECIPES
from reszoo.weights.names import to_tensors

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted(ROOT.glob("docs/**/*.md"))]
BLOCK = re.compile(
    r"(?:<!-- not run: ([^\n]+) -->\n)?^```(python|console|bash|sh)\n(.*?)^```",
    re.M | re.S,
)
STAND_INS = {
    r'"resnet\d+"(.*?)weights="imagenet"': r'"resnet20"\1weights="cifar10"',
    r"(reszoo web .*--output \w+)": r"\1 --no-vendor",
    # Latency is made up for one file (conftest.py).
    r"(reszoo benchmark \S+) \S+": r"\1 --batch 1",
    r"--model resnet\d+ --weights imagenet": "--model resnet20 --weights cifar10",
}
# What a block writes, where a page before it wrote it, too.
OUTPUT = re.compile(
    r"""(?:--output |output=")([\w./-]+)|reszoo\.export\(.*?"(export)"|"(\w+\.csv)\"""",
    re.S,
)


def blocks(page: Path) -> list[tuple[str, str, str]]:
    """Reason not to run, language and code of each block."""
    return BLOCK.findall(page.read_text(encoding="utf-8"))


RUN = [page for page in PAGES if any(not reason for reason, *_ in blocks(page))]


@pytest.fixture
def short_recipes(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("finetune", "cifar"):
        short = replace(RECIPES[name], epochs=2, head_epochs=0, warmup_epochs=None)
        monkeypatch.setitem(RECIPES, name, short)


@pytest.fixture
def reader(
    run: Any, exported: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> dict[str, Any]:
    """A folder with what the pages take as given, and a reader's variables."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("reszoo.cli.enable_quiet_cli", lambda: None)
    # Labels are those of the trained run, so that it can be measured on them.
    photos(tmp_path / "photos", ("0", "1"), each=70)
    for name in ("cat.jpg", "dog.png"):
        Image.new("RGB", (48, 40), (200, 90, 40)).save(name)
    shutil.copytree(Path(run.best).parent, "runs/photos")
    shutil.copytree(exported.folder, "export")
    (tmp_path / "more").mkdir()
    shutil.copy("dog.png", "more/dog.png")
    (tmp_path / "list.csv").write_text("path\ncat.jpg\n")
    model = randomise(reszoo.build("resnet8", weights=None))
    reszoo.save(model, "model.safetensors")
    writer = Writer("zip")
    kinds = {"f": "FloatStorage", "i": "LongStorage"}
    tensors = {
        name: writer.tensor(each, kinds[each.dtype.kind])
        for name, each in to_tensors(model).items()
    }
    writer.write(tmp_path / "flowers.pth", mapping(state_dict=mapping(**tensors)))
    paths = ["cat.jpg", "dog.png"]
    pixels = np.zeros((40, 48, 3), np.uint8)
    return {
        "reszoo": reszoo, "run": run, "model": model, "paths": paths,
        "file": Path("cat.jpg").open("rb"), "tensor": pixels,
    }  # fmt: skip


def exit_code() -> Any:
    try:
        main()
    except SystemExit as end:
        return end.code
    return 0


def remove_outputs(code: str) -> None:
    for found in OUTPUT.findall(code):
        path = Path(next(filter(None, found)))
        if path.is_dir():
            shutil.rmtree(path)
        path.unlink(missing_ok=True)


def execute(language: str, code: str, variables: dict[str, Any]) -> None:
    for pattern, stand_in in STAND_INS.items():
        code = re.sub(pattern, stand_in, code)
    if language == "python":
        remove_outputs(code)
        exec(compile(code, "block", "exec"), variables)
        return
    for line in re.findall(r"^\$ (.*)", code, re.M):
        remove_outputs(line)
        name, *words = shlex.split(line, comments=True)
        if name == "reszoo":
            sys.argv = [name, *words]
            assert not exit_code(), line
        else:
            subprocess.run(line, shell=True, check=True, capture_output=True)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_what_does_not_run_has_a_reason(page: Path) -> None:
    marks = re.findall("^<!-- not run: ", page.read_text(encoding="utf-8"), re.M)
    assert len(marks) == sum(bool(reason) for reason, *_ in blocks(page))


@pytest.mark.slow
@pytest.mark.usefixtures("short_recipes")
# A page shows that an open file is taken.
@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("page", RUN, ids=lambda page: page.name)
def test_the_code_runs(
    page: Path, reader: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", sys.argv)
    for reason, language, code in blocks(page):
        if not reason:
            execute(language, code, reader)
