"""The stress tests: results add up, seeds do not repeat, processes end where drawn."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from scripts import ROOT, script_of

sys.path.insert(0, str(ROOT / "benchmarks"))


@pytest.fixture(scope="module")
def results() -> Any:
    return script_of("stress/results.py")


def _work(results: Any, done: int, most: int) -> Any:
    def work(row: str, first: int, until: float) -> Iterator[Any]:
        for number in range(first, most):
            outcome = results.Outcome(number, number + 1, done=done, seconds=0.5)
            outcome.count("read")
            outcome.highest = {"MB": number}
            outcome.sums = {"behind the header": 1}
            yield outcome

    return work


def test_runs_add_up_and_go_on_behind_the_last_seed(
    results: Any, tmp_path: Path
) -> None:
    path = tmp_path / "2026-01-02-stress.json"
    for _ in range(2):
        kept = results.Results(path)
        most = kept.next_number("kills", "resize") + 3
        work = _work(results, 2, most)
        assert results.carry_out(kept, "kills", "resize", work, 100, 60) == 0
    kept = results.Results(path)
    (run,) = kept.runs
    assert (run["first"], run["last"], run["done"], run["seconds"]) == (0, 6, 12, 3.0)
    assert run["results"] == {"read": 6}
    assert (run["highest"], run["sums"]) == ({"MB": 5}, {"behind the header": 6})
    assert set(run) >= {"commit", "machine", "date"}


def test_another_commit_is_a_run_of_its_own(results: Any, tmp_path: Path) -> None:
    kept = results.Results(tmp_path / "a.json")
    for commit in ("one", "two"):
        kept._here["commit"] = commit
        number = kept.next_number("faults", "train")
        kept.add("faults", "train", results.Outcome(number, number + 1, done=1))
    assert [(r["commit"], r["first"], r["last"]) for r in kept.runs] == [
        ("one", 0, 1),
        ("two", 1, 2),
    ]
    assert kept.done("faults", "train") == 2


def test_a_row_ends_at_its_target_and_counts_failures(
    results: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def work(row: str, first: int, until: float) -> Iterator[Any]:
        for number in range(first, 100):
            failures = {"7": "no answer"} if number == 7 else {}
            yield results.Outcome(number, number + 1, done=1, failures=failures)

    kept = results.Results(tmp_path / "a.json")
    assert results.carry_out(kept, "mutations", "csv", work, 10, 60) == 1
    assert kept.done("mutations", "csv") == 10
    assert "FAILED mutations csv 7: no answer" in capsys.readouterr().out
    assert results.carry_out(kept, "mutations", "csv", work, 10, 60) == 0
    assert kept.next_number("mutations", "csv") == 10


def test_the_newest_unfinished_file_goes_on(results: Any, tmp_path: Path) -> None:
    targets = {("kills", "resize"): 5}
    for day, done in (("2026-01-01", 5), ("2026-01-02", 2), ("2026-01-03", 5)):
        kept = results.Results(tmp_path / f"{day}-stress.json")
        kept.add("kills", "resize", results.Outcome(0, 1, done=done))
    found = results.results_file(tmp_path, targets)
    assert found.name == "2026-01-02-stress.json"
    kept.add("kills", "resize", results.Outcome(1, 2, done=1))
    results.Results(found).add("kills", "resize", results.Outcome(1, 2, done=3))
    assert results.results_file(tmp_path, targets).name not in {
        path.name for path in tmp_path.iterdir()
    }


_CALLS = """
import os, sys
sys.path.insert(0, "stress")
from preloaded import preload, Faults
preload()
import signal
from pathlib import Path
folder, number, error = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
faults = Faults()
def write():
    for n in range(4):
        with open(folder / f"file{n}", "wb", buffering=0) as file:
            file.write(b"12345678")
if error:
    with faults.armed(folder, "write", number, error):
        write()
elif number:
    faults.end(folder, number, signal.SIGKILL, 0.0)
    write()
else:
    with faults.armed(folder):
        write()
    print(faults.changes(), sorted(faults.sites()))
"""


def _calls(folder: Path, *words: int) -> "subprocess.CompletedProcess[str]":
    environment = {k: v for k, v in os.environ.items() if k != "LD_PRELOAD"}
    script = folder / "script.py"
    script.write_text(_CALLS)
    place = folder / "place"
    place.mkdir()
    return subprocess.run(
        [sys.executable, str(script), str(place), *map(str, words)],
        cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120,
    )  # fmt: skip


needs_cc = pytest.mark.skipif(
    not sys.platform.startswith("linux") or not os.access("/usr/bin/cc", os.X_OK),
    reason="the library of stress tests is compiled, for Linux",
)


@needs_cc
def test_a_process_ends_in_the_middle_of_the_drawn_write(tmp_path: Path) -> None:
    done = _calls(tmp_path, 3, 0)
    assert done.returncode == -signal.SIGKILL, done.stderr
    sizes = {each.name: each.stat().st_size for each in (tmp_path / "place").iterdir()}
    assert sizes == {"file0": 8, "file1": 8, "file2": 5}


@needs_cc
def test_calls_are_counted_by_place_and_one_fails(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / name).mkdir()
    counted = _calls(tmp_path / "a", 0, 0)
    sites = [(kind, "file#") for kind in ("close", "open", "write")]
    assert counted.stdout.split(" ", 1) == ["4", f"{sites}\n"], counted.stderr
    failed = _calls(tmp_path / "b", 2, 28)
    assert "No space left on device" in failed.stderr
    assert (tmp_path / "b/place/file1").read_bytes() == b""


def test_only_a_fork_that_ends_by_itself_with_0_succeeds(tmp_path: Path) -> None:
    forks = script_of("stress/forks.py")

    def fork(function: Any) -> Any:
        return forks.Fork(function, tmp_path, tmp_path / "log")

    fork(lambda: None).succeed(60)
    with pytest.raises(RuntimeError, match="exit 3: "):
        fork(lambda: sys.exit(3)).succeed(60)
    with pytest.raises(RuntimeError, match=r"no end in 0\.2 s: "):
        fork(lambda: time.sleep(60)).succeed(0.2)


def test_a_pass_fails_every_place_with_every_error_first() -> None:
    faults = script_of("stress/injected_faults.py")
    sites = {("read", "a#"): [1, 2, 3], ("sync", "b"): [1]}
    found = [*faults.ordered(sites, np.random.default_rng(0))]
    assert len(found) == 3 * 3 + 2
    assert {(kind, error) for kind, _, error in found[:5]} == {
        (kind, error) for kind in ("read", "sync") for error in faults.ERRORS[kind]
    }
    assert len({*found}) == len(found)


def test_a_damaged_file_is_the_same_each_time() -> None:
    mutated = script_of("stress/mutations.py")
    data = bytes(range(256)) * 8
    draws = [
        mutated.edited(data, np.random.Generator(np.random.SFC64([1, number])))
        for number in (1, 1, 2)
    ]
    assert draws[0] == draws[1] != draws[2]


def test_every_kind_of_defect_and_300_good_exports_are_targets() -> None:
    run = script_of("stress/run.py")
    kinds = json.loads((ROOT / "stress" / "defects.json").read_text("utf-8"))["kinds"]
    targets = run.PARTS["defects"][1]
    assert targets == {runtime: len(rows) for runtime, rows in kinds.items()}
    assert sum(targets.values()) >= 480
    assert sum(run.PARTS["good_exports"][1].values()) == 300


def test_a_defect_that_is_not_noticed_is_a_failure(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    defects = script_of("stress/seeded_defects.py")
    (tmp_path / "done").touch()
    rows = {name: ["weights", "read", ""] for name in "abcd"}
    monkeypatch.setattr(defects, "exports_folder", lambda: tmp_path)
    monkeypatch.setattr(defects, "read_table", lambda: {"onnx": rows, "misses": {}})
    monkeypatch.setattr(defects, "known_misses", lambda runtime: {"b": "a reason"})
    found = {"b": ("", "differ"), "c": ("", ""), "d": ("", "differ by 1")}

    def run_kinds(runtime: str, folder: Path, names: list[str], seed: int) -> Any:
        assert (runtime, folder, seed) == ("onnx", tmp_path, 0)
        for name in names:
            message, effect = found[name]
            row = {"kind": name, "message": message, "effect": effect, "seconds": 1.0}
            yield row

    monkeypatch.setattr(defects, "run_kinds", run_kinds)
    outcomes = list(defects.work("onnx", 1, time.monotonic() + 60))
    assert [(each.first, each.last, each.done) for each in outcomes] == [
        (1, 2, 1),
        (2, 3, 1),
        (3, 4, 1),
    ]
    told = [{"missed": 1}, {"without effect": 1}, {"missed": 1}]
    assert [each.results for each in outcomes] == told
    expected = [{}, {}, {"d": "missed; differ by 1"}]
    assert [each.failures for each in outcomes] == expected
    assert not list(defects.work("onnx", 0, time.monotonic() - 1))


def test_a_refused_good_export_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    alarms = script_of("stress/false_alarms.py")

    def told(number: int, seed: int, folder: Path) -> Any:
        if number == 6:
            os._exit(3)
        problems = [f"differs by {seed}"] if number == 5 else []
        return {"model": "resnet8", "format": "onnx", "problems": problems}

    monkeypatch.setitem(sys.modules, "good_exports", SimpleNamespace(alarms=told))
    work = alarms.work("seed 1", 4, time.monotonic() + 60)
    good, refused, crashed = (next(work) for _ in range(3))
    assert (good.results, good.failures) == ({"onnx": 1}, {})
    assert refused.failures == {"5": "resnet8 as onnx: differs by 1"}
    assert crashed.failures == {"6": "exit 3: "}
    assert [each.last for each in (good, refused, crashed)] == [5, 6, 7]
    assert {each.done for each in (good, refused, crashed)} == {1}
