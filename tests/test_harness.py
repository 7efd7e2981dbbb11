"""The benchmarks' arithmetic, and that contenders run in turns."""

import argparse
import importlib.util
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

_FOLDER = Path(__file__).parents[1] / "benchmarks"


def benchmark_script(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(name, _FOLDER / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # Dataclasses look their module up.
    sys.modules[name] = module
    # Scripts import their neighbours.
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(_FOLDER)
        spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def harness() -> Any:
    return benchmark_script("harness")


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


def test_a_against_a_has_no_winner_and_a_twentieth_is_found(harness: Any) -> None:
    # Samples spread by 2 %, and the machine slows down by a tenth each round.
    draw = np.random.default_rng(0)

    def runs_at(rate: float) -> list[dict[str, Any]]:
        return [
            {"samples": (rate * 0.9**turn * draw.normal(1, 0.02, 10)).tolist()}
            for turn in range(6)
        ]

    runs = {"a": runs_at(100), "a again": runs_at(100), "slower": runs_at(95)}
    same = harness.compare(runs, "a", "a again")
    assert same.low <= 1 <= same.high
    assert same.verdict(1.0) == "no verdict"
    slower = harness.compare(runs, "slower", "a")
    assert slower.high < 1
    assert slower.median == pytest.approx(0.95, abs=0.02)
    assert slower.verdict(1.0) == "missed"


def test_the_time_since_the_start_includes_what_came_before(harness: Any) -> None:
    program = (
        "import sys, time; time.sleep(0.2)\n"
        f"sys.path.insert(0, {str(_FOLDER)!r})\n"
        "import harness; print(harness.seconds_since_start())"
    )
    begun = time.monotonic()
    done = subprocess.run(
        (sys.executable, "-c", program), capture_output=True, text=True, check=True
    )
    # Counted in hundredths.
    assert 0.19 <= float(done.stdout) <= time.monotonic() - begun + 0.02


def test_the_exponent_is_the_slope_of_the_logarithms(harness: Any) -> None:
    growth = benchmark_script("growth")
    values = growth.AXES["side"].values
    runs = {
        f"side {value}": [{"ms": 3 * value**2, "megabytes": 7.0}] for value in values
    }
    found = growth.growth(runs, ["side"])["side"]
    assert found["exponents"]["ms"] == pytest.approx(2)
    assert found["exponents"]["megabytes"] == pytest.approx(0, abs=1e-9)
    assert found["ms"][0] == 3 * 128**2
    told = growth.notes({"side": found})
    assert told[0] == "side 128 to 512: ms 49,152.0 to 786,432.0, exponent 2.00"


def test_a_million_paths_are_all_different_and_all_there(
    harness: Any, tmp_path: Path
) -> None:
    growth = benchmark_script("growth")
    for number in range(3):
        folder = tmp_path / "photos" / f"class-{number}"
        folder.mkdir(parents=True)
        (folder / f"{number}.jpg").touch()
    lines = growth._list_of(8, tmp_path).read_text().splitlines()[1:]
    paths = {line.split(",")[0] for line in lines}
    assert len(paths) == 8
    assert all((tmp_path / path).is_file() for path in paths)


def test_the_readme_gets_the_ratios_and_milliseconds_of_each_processor(
    harness: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = benchmark_script("table")
    ours, theirs = "resnet50 b1 tflite", "resnet50 b1 openvino"
    row = {"samples": [20.0, 25.0], "ms": 50.0, "cold_ms": 1500.0, "megabytes": 99.0}
    runs = {ours: [row], theirs: [{**row, "samples": [10.0, 12.5], "ms": 100.0}]}
    both = [harness.Contender(name, ()) for name in runs]
    told = harness.summary(both, runs, [harness.Claim(ours, theirs, 0.9)], ["a note"])
    changed = {"median": 0.8, "low": 0.7, "high": 0.85, "verdict": "missed"}
    slower = {**told["ratios"][0], **changed}
    other = {"processor": "Other x 2", "instructions": "avx2"}
    days = {
        "3-quick": told,
        "3-2": told,
        "3": {**told, "machine": other, "ratios": [slower]},
        "1": {**told, "ratios": [slower]},
    }
    for day, answer in days.items():
        (tmp_path / f"{day}.json").write_text(json.dumps({"inference": answer}))
    readme = tmp_path / "README.md"
    readme.write_text(f"before\n{table.BEGIN}\nstale\n{table.END}\nafter\n")
    monkeypatch.setattr(table, "README", readme)
    newest = table.latest(tmp_path)
    assert [file.name for file in newest] == ["3-2.json", "3.json"]
    measured = {file.name: json.loads(file.read_text()) for file in newest}
    table.write_readme(measured)
    made = readme.read_text()
    assert made.startswith(f"before\n{table.BEGIN}\nA ratio is")
    assert made.endswith(f"{table.END}\nafter\n")
    assert "stale" not in made
    assert "(3-2.json) | Other x 2, avx2 (3.json) |" in made
    assert "| float32 TFLite | OpenVINO | 0.9 | 2.00 (" in made
    assert "| 0.80 (0.70 to 0.85), missed |" in made
    assert "Keras" not in made
    whole = "\n".join(table.page(measured))
    assert "## Other x 2, avx2\n" in whole
    assert f"| {ours} | {theirs} | 2.00 (" in whole
    assert f"| {theirs} | 100.0 | " in whole
    assert "| 1.5 | 99 |" in whole
    assert "* a note" in whole


def test_a_question_without_an_answer_is_named_and_keeps_the_others(
    harness: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = benchmark_script("bench")
    monkeypatch.setattr(bench, "HERE", tmp_path)
    (tmp_path / "bad.py").write_text("raise SystemExit(3)")
    (tmp_path / "good.py").write_text(
        "import sys\n"
        "path = sys.argv[sys.argv.index('--json') + 1]\n"
        "open(path, 'w').write('{\"options\": \"%s\"}' % ' '.join(sys.argv[1:3]))"
    )
    questions = [
        bench.Question("bad", "bad", ()),
        bench.Question("good", "good", ("--rounds", "2"), peers=False),
        bench.Question("long", "good", ("--rounds", "9"), None),
    ]
    monkeypatch.setattr(bench, "QUESTIONS", questions[:2])
    given = argparse.Namespace(
        quick=False, all=False, peers=None, results=tmp_path, only=None
    )
    assert bench.bench(given) == ["bad"]
    (file,) = tmp_path.glob("*.json")
    assert json.loads(file.read_text())["good"]["options"] == "--rounds 2"
    monkeypatch.setattr(bench, "QUESTIONS", questions[2:])
    assert bench.bench(argparse.Namespace(**{**vars(given), "quick": True})) == []
    assert not list(tmp_path.glob("*-quick.json"))


def test_answers_of_another_machine_are_left_alone(
    harness: Any, tmp_path: Path
) -> None:
    bench = benchmark_script("bench")
    ours, others = harness.machine(), {**harness.machine(), "instructions": "none"}
    assert bench.results_file(tmp_path, "day") == tmp_path / "day.json"
    (tmp_path / "day.json").write_text(json.dumps({"tools": {"machine": others}}))
    assert bench.results_file(tmp_path, "day") == tmp_path / "day-2.json"
    (tmp_path / "day-2.json").write_text(json.dumps({"tools": {"machine": ours}}))
    assert bench.results_file(tmp_path, "day") == tmp_path / "day-2.json"


@pytest.mark.parametrize(
    ("options", "asked"),
    [
        ({}, ["usual"]),
        ({"all": True}, ["usual", "late"]),
        ({"only": ["late"]}, ["late"]),
        ({"quick": True, "only": ["late"]}, []),
    ],
)
def test_late_questions_wait_for_somebody_who_wants_them(
    harness: Any, options: dict[str, Any], asked: list[str]
) -> None:
    bench = benchmark_script("bench")
    given = argparse.Namespace(**{"quick": False, "all": False, "only": None} | options)
    questions = [
        bench.Question("usual", "good", ("--rounds", "2"), ("--rounds", "1")),
        bench.Question("late", "good", ("--rounds", "9"), late=True),
    ]
    found = [q.name for q in questions if bench.options_of(q, given) is not None]
    assert found == asked


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
    roof = benchmark_script("roof").contender("float32")
    for share, notes in ((0.97, 0), (0.6, 1)):
        runs = {roof.name: [{"samples": [9.0], "share": share}]}
        told = harness.summary([roof], runs, [])["notes"]
        assert len(told) == notes
        assert all("busy (the roof had 60% of" in note for note in told)
