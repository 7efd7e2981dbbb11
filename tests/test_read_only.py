"""Folders that may not be written to: said in a sentence, and read as ever."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import photos
from scripts import ROOT

# Root may write everywhere, unless it gives that up.
_AS_ROOT = ["setpriv", "--bounding-set", "-dac_override", "--inh-caps", "-dac_override"]
_EXPORT = ROOT / "saved_models/resnet20-cifar10"
_PROGRAM = """
import json, sys
from pathlib import Path
import numpy as np
import reszoo
locked, photos, export = map(Path, sys.argv[1:])
model = reszoo.build("resnet20", weights="cifar10")
images, names = np.zeros((20, 32, 32, 3), np.uint8), [*reszoo.card(model).labels] * 2
writes = {
    "save": lambda: reszoo.save(model, locked / "model.safetensors"),
    "export": lambda: reszoo.export(model, locked / "new", formats=["onnx"]),
    "train": lambda: reszoo.train(
        model, (images, names), epochs=1, batch_size=2, output=locked / "run"
    ),
    "resize_images": lambda: reszoo.resize_images(photos, locked / "resized", side=16),
    "study": lambda: reszoo.study(data="digits", output=locked / "study"),
}
told = {}
for name, write in writes.items():
    try:
        write()
        told[name] = "nothing was said"
    except reszoo.ReszooError as error:
        told[name] = str(error)
answers = [
    reszoo.Predictor(export / name).predict(images[:1]).shape
    for name in ("model.tflite", "model.onnx", "saved_model")
]
print(json.dumps([told, answers, [path.name for path in locked.iterdir()]]))
"""


@pytest.mark.slow
def test_every_writer_says_so_and_every_reader_works(tmp_path: Path) -> None:
    prefix: list[Any] = []
    if os.geteuid() == 0:
        if not shutil.which("setpriv"):
            pytest.skip("root writes everywhere; setpriv would take that away")
        prefix = _AS_ROOT
    locked = tmp_path / "locked"
    shutil.copytree(_EXPORT, locked / "export")
    photos(tmp_path / "photos")
    folders = [locked, *(path for path in locked.rglob("*") if path.is_dir())]
    for path in folders:
        path.chmod(0o555)
    try:
        done = subprocess.run(
            [*prefix, sys.executable, "-c", _PROGRAM, locked, tmp_path / "photos",
             locked / "export"],
            # Nor can anything be written at home.
            env={**os.environ, "HOME": str(locked)},
            capture_output=True, text=True, check=False,
        )  # fmt: skip
    finally:
        for path in folders:
            path.chmod(0o755)
    assert not done.returncode, done.stderr
    told, answers, names = json.loads(done.stdout.splitlines()[-1])
    for name, text in told.items():
        assert "could not be written: Permission denied" in text, name
        assert "choose another place" in text, name
    assert answers == [[1, 10]] * 3
    assert names == ["export"]
