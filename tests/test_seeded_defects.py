"""The kinds of defects that stress/seeded_defects.py plants, and what came of them."""

import importlib
import json
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
STRESS = ROOT / "stress"
RUNTIMES = ("tflite", "onnx", "saved_model")
TABLE = tomllib.loads((STRESS / "defects.toml").read_text("utf-8"))
RESULTS = json.loads((STRESS / "defects.json").read_text("utf-8"))


def kinds(runtime: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(sys, "path", [str(STRESS), *sys.path])
    return importlib.import_module(f"{runtime}_kinds").KINDS


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_every_kind_of_the_table_can_be_planted(
    runtime: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    listed = {name for name, row in TABLE[runtime].items() if row[1] != "none"}
    assert kinds(runtime, monkeypatch).keys() == listed
    assert {row[1] for row in TABLE[runtime].values()} <= {"blind", "read", "none"}
    assert len(listed) >= 100
    blind = [name for name in listed if TABLE[runtime][name][1] == "blind"]
    assert len(blind) >= len(listed) / 2


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_what_is_missed_is_listed_with_the_reason(runtime: str) -> None:
    rows, found = RESULTS["kinds"][runtime], RESULTS["runtimes"][runtime]
    listed = {name for name, row in TABLE[runtime].items() if row[1] != "none"}
    assert rows.keys() == listed
    counted = {name: row for name, row in rows.items() if row["counts"]}
    missed = {name for name, row in counted.items() if not row["caught"]}
    assert missed == set(found["missed"]) == TABLE["misses"][runtime].keys()
    assert len(missed) <= 0.01 * len(counted)
    numbers = (found["kinds"], found["blind"], found["caught"])
    assert len(counted) == found["kinds"] == found["caught"] + len(missed)
    table = (ROOT / "docs" / "verification.md").read_text("utf-8")
    assert f"| {' | '.join(map(str, numbers))} |" in table
