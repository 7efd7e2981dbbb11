"""The benchmarks: arithmetic, order of the contenders, tables."""

import argparse
import json
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scripts import ROOT, script_of

_FOLDER = ROOT / "benchmarks"


def benchmark_script(name: str) -> Any:
    return script_of(f"benchmarks/{name}.py")


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
    assert harness.compare(runs, "fast", "calm").verdict(1.6) == "below target"
    same = harness.compare(runs, "calm", "calm")
    assert same.verdict(1.0) == "no verdict"
    assert same.verdict(2.0) == "below target"


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
    assert slower.verdict(1.0) == "below target"


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
    notes = growth.notes({"side": found})
    assert notes[0] == "side 128 to 512: ms 49,152.0 to 786,432.0, exponent 2.00"


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


@pytest.fixture
def results(harness: Any, tmp_path: Path) -> Path:
    """Files of results: of two processors, of a quick run, of one benchmark alone."""
    ours, theirs = "resnet50 b1 onnx", "resnet50 b1 openvino"
    row = {"samples": [20.0, 25.0], "ms": 50.0, "cold_ms": 1500.0, "megabytes": 99.0}
    runs = {ours: [row], theirs: [{**row, "samples": [10.0, 12.5], "ms": 100.0}]}
    both = [harness.Contender(name, ()) for name in runs]
    targets = [harness.Target(ours, theirs, 0.9)]
    found = harness.summary(both, runs, targets, ["a note"])
    slower = {**found["contenders"], theirs: {**found["contenders"][ours]}}
    other = {"processor": "Other x 2", "instructions": "avx2"}
    files = {
        "3-quick": {"inference": {**found, "contenders": slower}},
        "3-stress": {"runs": []},
        "3-2": {"tools": {**found, "contenders": {}, "ratios": [], "notes": []}},
        "3": {"inference": {**found, "machine": other, "contenders": slower}},
        "2": {"inference": found},
        "1": {"inference": {**found, "contenders": slower}},
    }
    for name, content in files.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    return tmp_path


def test_the_newest_result_of_each_benchmark_counts(results: Path) -> None:
    table = benchmark_script("table")
    ours, other = table.newest(results.glob("*.json")).values()
    assert {name: each["file"] for name, each in ours.items()} == {
        "tools": "3-2.json",
        "inference": "2.json",
    }
    assert other["inference"]["file"] == "3.json"
    assert ours["inference"]["notes"] == ["a note"]


def test_the_docs_get_the_ratios_and_milliseconds_of_each_processor(
    results: Path,
) -> None:
    table = benchmark_script("table")
    processors = table.newest(results.glob("*.json"))
    readme = results / "README.md"
    readme.write_text(f"before\n{table.BEGIN}\nstale\n{table.END}\nafter\n")
    table.write_between(readme, table.headline(processors))
    made = readme.read_text()
    assert made.startswith(f"before\n{table.BEGIN}\nA ratio is")
    assert made.endswith(f"{table.END}\nafter\n")
    assert "stale" not in made
    assert "| Other x 2, avx2 |" in made
    (row,) = [line for line in made.splitlines() if line.startswith("| float32")]
    ours, other = re.findall(r"([\d.]+) \([\d.]+ to [\d.]+\)", row)
    assert row.startswith("| float32 | ONNX | OpenVINO, same file | ")
    assert (ours, other) == ("2.00", "1.00")
    assert "| int8 |" not in made
    whole = "\n".join(table.page(processors))
    assert "### Other x 2, avx2\n" in whole
    assert "| resnet50 b1 onnx | resnet50 b1 openvino | 2.00 (" in whole
    assert "| resnet50 b1 openvino | 100.0 | " in whole
    assert "| 1.5 | 99 |" in whole
    assert "* a note" in whole


def test_a_page_without_the_marks_is_refused(results: Path) -> None:
    table = benchmark_script("table")
    (results / "page.md").write_text("no marks")
    with pytest.raises(SystemExit, match=r"page\.md must have the lines <!-- begin"):
        table.write_between(results / "page.md", ["new"])


def test_the_divergence_of_equal_probabilities_is_0_and_never_infinite() -> None:
    int8 = benchmark_script("int8")
    exact = np.array([[0.5, 0.5, 0.0], [1.0, 0.0, 0.0]], np.float32)
    assert int8.divergence(exact, exact) == 0
    swapped = np.array([[0.5, 0.5, 0.0], [0.0, 1.0, 0.0]], np.float32)
    # Of the second image, log(512) but for the floor of the other classes.
    assert int8.divergence(exact, swapped) == pytest.approx(np.log(512) / 2, rel=0.01)


def test_a_benchmark_that_fails_is_named_and_the_others_run(
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
    benchmarks = [
        bench.Benchmark("bad", "bad", ()),
        bench.Benchmark("good", "good", ("--rounds", "2"), peers=False),
        bench.Benchmark("long", "good", ("--rounds", "9"), None),
    ]
    monkeypatch.setattr(bench, "BENCHMARKS", benchmarks[:2])
    given = argparse.Namespace(
        quick=False, all=False, peers=None, results=tmp_path, only=None
    )
    assert bench.bench(given) == ["bad"]
    (file,) = tmp_path.glob("*.json")
    assert json.loads(file.read_text())["good"]["options"] == "--rounds 2"
    monkeypatch.setattr(bench, "BENCHMARKS", benchmarks[2:])
    assert bench.bench(argparse.Namespace(**{**vars(given), "quick": True})) == []
    assert not list(tmp_path.glob("*-quick.json"))


def test_results_of_another_machine_are_left_alone(
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
    ("options", "expected"),
    [
        ({}, ["usual"]),
        ({"all": True}, ["usual", "extra"]),
        ({"only": ["extra"]}, ["extra"]),
        ({"quick": True, "only": ["extra"]}, []),
    ],
)
def test_extra_benchmarks_run_only_on_request(
    harness: Any, options: dict[str, Any], expected: list[str]
) -> None:
    bench = benchmark_script("bench")
    given = argparse.Namespace(**{"quick": False, "all": False, "only": None} | options)
    benchmarks = [
        bench.Benchmark("usual", "good", ("--rounds", "2"), ("--rounds", "1")),
        bench.Benchmark("extra", "good", ("--rounds", "9"), extra=True),
    ]
    found = [b.name for b in benchmarks if bench.options_of(b, given) is not None]
    assert found == expected


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
    summary = harness.summary(both, runs, [harness.Target("A", "B", 1.0)], ["a note"])
    assert summary["contenders"]["A"]["median"] == 2
    assert summary["contenders"]["A"]["p90"] == np.percentile([1, 2, 3] * 2, 90)
    assert summary["ratios"][0]["median"] == 1
    harness.show(summary)
    shown = capsys.readouterr().out
    assert "A / B: 1.00 [" in shown
    assert "a note" in shown


def test_a_contender_that_fails_is_named(harness: Any) -> None:
    words = (sys.executable, "-c", "raise SystemExit('out of luck')")
    with pytest.raises(SystemExit, match=r"(?s)X failed:.*out of luck"):
        harness.measure([harness.Contender("X", words)], rounds=1)


def test_a_busy_machine_is_reported(harness: Any) -> None:
    roof = benchmark_script("roof").contender("float32")
    for share, notes in ((0.97, 0), (0.6, 1)):
        runs = {roof.name: [{"samples": [9.0], "share": share}]}
        warnings = harness.summary([roof], runs, [])["notes"]
        assert len(warnings) == notes
        assert all("busy (the roof had 60% of" in each for each in warnings)


def test_runtimes_that_are_missing_are_listed_as_not_tried(tmp_path: Path) -> None:
    compatibility = benchmark_script("compatibility")
    kinds = ("uint8 NHWC", "float32 NCHW")
    found = {"loads": True, "agreement": 0.995, "difference": 2e-6, "version": "4.1"}
    outcomes = [found, {"loads": False, "missing": "No module named 'cv2'"}]
    outcomes += [{"loads": False, "error": "bad | worse"}] * 2
    rows = [
        {"runtime": name, "format": "onnx", "pixels": kind, **outcome}
        for (name, kind), outcome in zip(
            ((name, kind) for name in ("a", "b") for kind in kinds),
            outcomes,
            strict=True,
        )
    ]
    table = compatibility.table(rows, 9)
    first = "| a (4.1) | `onnx` | loads; 99.5%, 2.0e-06 | not tried (No module named"
    assert first in table
    last = "| b | `onnx` | does not load (bad / worse) | does not load (bad / worse) |"
    assert last in table
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- a -->\nold\n<!-- b -->\nafter\n")
    compatibility.put_in(page, ("<!-- a -->", "<!-- b -->"), "new")
    assert page.read_text() == "before\n<!-- a -->\nnew\n<!-- b -->\nafter\n"


@pytest.mark.parametrize("name", ["compatibility", "targets"])
def test_the_docs_show_what_was_measured(name: str) -> None:
    script = benchmark_script(name)
    rows = json.loads((_FOLDER / f"{name}.json").read_text())
    table = script.table(rows, 200) if name == "compatibility" else script.table(rows)
    begin, end = script.MARKS
    page = script.PAGE.read_text(encoding="utf-8")
    assert f"{begin}\n{table}\n{end}" in page
