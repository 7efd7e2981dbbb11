"""The benchmarks' arithmetic, and that contenders run in turns."""

import importlib.util
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

_PATH = Path(__file__).parents[1] / "benchmarks" / "harness.py"


@pytest.fixture(scope="module")
def harness() -> Any:
    spec = importlib.util.spec_from_file_location("harness", _PATH)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # Dataclasses look their module up.
    sys.modules["harness"] = module
    spec.loader.exec_module(module)
    return module


def runs_of(*medians: float) -> list[dict[str, Any]]:
    """Processes whose samples spread by a hundredth around a median."""
    return [{"samples": [0.99 * m, m, 1.01 * m]} for m in medians]


def test_the_ratio_is_taken_pair_by_pair(harness: Any) -> None:
    # The machine gets slower by the round; the ratio of each pair does not change.
    runs = {"ours": runs_of(200, 100, 20), "theirs": runs_of(100, 50, 10)}
    ratio = harness.compare(runs, "ours", "theirs")
    assert ratio.median == pytest.approx(2)
    assert 1.95 < ratio.low < 2 < ratio.high < 2.05
    assert ratio == harness.compare(runs, "ours", "theirs")


def test_a_spread_that_is_too_wide_gives_no_verdict(harness: Any) -> None:
    runs = {
        "wild": runs_of(50, 100, 200, 300),
        "calm": runs_of(100, 100, 100, 100),
        "fast": runs_of(150, 151, 152, 153),
    }
    assert harness.compare(runs, "wild", "calm").verdict(1.5) == "no verdict"
    assert harness.compare(runs, "fast", "calm").verdict(1.5) == "met"
    assert harness.compare(runs, "fast", "calm").verdict(1.6) == "missed"
    same = harness.compare(runs, "calm", "calm")
    assert same.verdict(1.0) == "no verdict"
    assert same.verdict(2.0) == "missed"


def test_contenders_run_in_turns_and_in_fresh_processes(
    harness: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log = tmp_path / "log"
    program = (
        "import json, os, sys\n"
        f"open({str(log)!r}, 'a').write(sys.argv[1])\n"
        "print('noise')\n"
        "print(json.dumps({'samples': [3, 1, 2], 'process': os.getpid(),"
        " 'threads': os.environ['OMP_NUM_THREADS']}))\n"
    )
    both = [
        harness.Contender(name, (sys.executable, "-c", program, name)) for name in "AB"
    ]
    runs = harness.measure(both, rounds=2)
    assert log.read_text() == "ABBA"
    assert len({run["process"] for each in runs.values() for run in each}) == 4
    assert runs["A"][0]["threads"] == str(harness.THREADS)
    told = harness.summary(both, runs, [harness.Claim("A", "B", 1.0)], ["a note"])
    assert told["contenders"]["A"]["median"] == 2
    assert told["contenders"]["A"]["p90"] == np.percentile([1, 2, 3] * 2, 90)
    assert told["ratios"][0]["median"] == 1
    harness.show(told)
    shown = capsys.readouterr().out
    assert "A / B: 1.00 [" in shown
    assert "a note" in shown


def test_a_contender_that_fails_is_named(harness: Any) -> None:
    words = (sys.executable, "-c", "raise SystemExit('out of luck')")
    with pytest.raises(SystemExit, match=r"(?s)X failed:.*out of luck"):
        harness.measure([harness.Contender("X", words)], rounds=1)


def test_a_busy_machine_is_told(harness: Any) -> None:
    roof = harness.roof("float32")
    for share, notes in ((0.97, 0), (0.6, 1)):
        runs = {roof.name: [{"samples": [9.0], "share": share}]}
        told = harness.summary([roof], runs, [])["notes"]
        assert len(told) == notes
        assert all("busy (the roof had 60% of" in note for note in told)
