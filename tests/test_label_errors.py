"""docs/label-errors.md: from a folder to a ranking and a corrected list."""

import csv
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scripts import ROOT
from test_confidence import tiny

import reszoo
from reszoo.data.sources import open_source


def test_the_how_to_ranks_wrong_labels_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("cleanlab", reason="pip install cleanlab to run the how-to")
    monkeypatch.chdir(tmp_path)
    draw, flipped = np.random.default_rng(0), {3, 25, 47}
    for number in range(60):
        target = number % 3
        pixels = draw.integers(0, 100, (32, 32, 3)).astype(np.uint8)
        pixels[..., target] += 120
        label = "abc"[(target + (number in flipped)) % 3]
        (tmp_path / "photos" / label).mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(tmp_path / "photos" / label / f"{number}.png")
    text = (ROOT / "docs/label-errors.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    built = 'reszoo.build("resnet50", weights="imagenet")'
    assert code.count(built) == 1
    path = reszoo.save(tiny(None), tmp_path / "tiny.safetensors")
    exec(code.replace(built, f"reszoo.load({str(path)!r})"), {})
    with (tmp_path / "review.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 60
    assert {int(Path(row["path"]).stem) for row in rows[:3]} == flipped
    assert all(row["suggestion"] != row["label"] for row in rows[:3])
    # Corrected, it is a source with every image under its own label.
    for row in rows[:3]:
        row["label"] = row["suggestion"]
    with (tmp_path / "review.csv").open("w", newline="") as file:
        table = csv.DictWriter(file, ["path", "label", "suggestion"])
        table.writeheader()
        table.writerows(rows)
    whole = open_source("review.csv").examples("all")
    for index, target in enumerate(whole.targets):
        assert target == int(Path(whole.name(index)).stem) % 3
