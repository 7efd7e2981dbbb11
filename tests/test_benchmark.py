"""How long files take: fresh processes, in turns, and what is refused."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import reszoo
from reszoo_export import benchmark
from reszoo_export.benchmark import (
    Measurement,
    Timing,
    benchmark_note,
    benchmark_table,
    measure_files,
    time_file,
)
from reszoo_export.isolation import run_in_subprocess
from reszoo_export.manifest import Latency
from reszoo_export.onnx.reader import properties

pytestmark = pytest.mark.usefixtures("subprocesses")


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of the right form that adds up the pixels of 8 x 8 images."""
    built = reszoo.build("resnet20", input_shape=(8, 8, 3), classes=("r", "g", "b"))
    image = onnx.helper.make_tensor_value_info("image", 2, ["batch", 8, 8, 3])
    sums = onnx.helper.make_tensor_value_info("logits", 1, ["batch", 3])
    nodes = [
        onnx.helper.make_node("Cast", ["image"], ["pixels"], to=1),
        onnx.helper.make_node(
            "ReduceMean", ["pixels"], ["logits"], axes=[1, 2], keepdims=0
        ),
    ]
    graph = onnx.helper.make_graph(nodes, "sums", [image], [sums])
    opsets = [onnx.helper.make_opsetid("", 17)]
    model = onnx.helper.make_model(graph, ir_version=8, opset_imports=opsets)
    for key, value in properties(reszoo.card(built)).items():
        model.metadata_props.add(key=key, value=value)
    path = tmp_path_factory.mktemp("files") / "model.onnx"
    onnx.save(model, path)
    return path


def test_files_are_measured_in_fresh_processes(file: Path) -> None:
    found = reszoo.benchmark(
        file, threads=1, batch_sizes=(1, 3), rounds=2, seconds=0.02
    )
    assert [each.latency.batch for each in found] == [1, 3]
    for each in found:
        latency = each.latency
        assert each.file == str(file)
        assert each.runtime.startswith("onnxruntime ")
        assert each.bytes == file.stat().st_size
        assert latency.threads == 1
        assert latency.runs >= 2 * 5
        assert 0 < latency.median_ms <= latency.p90_ms <= latency.p99_ms < 1000
        assert latency.images_per_second == pytest.approx(
            1000 * latency.batch / latency.median_ms
        )
        assert latency.load_ms is not None
        assert latency.load_ms > 0
        assert latency.cold_ms == latency.load_ms + (latency.first_ms or 0)
        assert latency.memory_mb is not None
        assert latency.peak_mb is not None
        # The library is loaded before, and this process, which holds TensorFlow, does
        # not count.
        assert 0 < latency.memory_mb < 30 < latency.peak_mb < 250
        assert len(each.medians_ms) == 2
    json.dumps([each.to_json() for each in found], allow_nan=False)


def test_an_export_measures_each_file_once(file: Path) -> None:
    found = measure_files([file], threads=1, seconds=0.02)
    assert list(found) == [file]
    assert found[file].batch == 1
    assert 5 <= found[file].runs <= 100
    assert found[file].cold_ms


def timing(*times_ms: tuple[float, ...], peak: float = 90.0) -> Timing:
    return Timing(
        runtime="a runtime 1.0",
        threads=2,
        load_ms=peak,
        first_ms=1.0,
        base_mb=50.0,
        peak_mb=tuple(peak + index for index in range(len(times_ms))),
        times_ms=times_ms,
    )


def test_files_take_turns_forwards_and_backwards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def told(file: str, **request: Any) -> Timing:
        asked.append(Path(file).name)
        shift = len(asked)
        return timing((1.0 * shift, 2.0 * shift, 3.0 * shift), (8.0,), peak=90 + shift)

    monkeypatch.setattr(benchmark, "_time_in_subprocess", told)
    names = ["a.onnx", "b.tflite", "c.safetensors"]
    for name in names:
        (tmp_path / name).write_bytes(b"12")
    found = reszoo.benchmark([tmp_path / name for name in names], rounds=4)
    assert "".join(name[0] for name in asked) == "abccbaabccba"
    first, eight, *_ = found
    # Of a.onnx in rounds 1, 6, 7 and 12: all calls count alike.
    times = [shift * base for shift in (1, 6, 7, 12) for base in (1, 2, 3)]
    assert first.latency.median_ms == np.median(times)
    assert first.latency.p90_ms == pytest.approx(np.percentile(times, 90))
    assert first.latency.p99_ms == pytest.approx(np.percentile(times, 99))
    assert first.latency.runs == 12
    assert first.medians_ms == (2.0, 12.0, 14.0, 24.0)
    assert first.latency.load_ms == 96.5
    assert (first.latency.peak_mb, first.latency.memory_mb) == (96.5, 46.5)
    assert (eight.latency.peak_mb, eight.latency.memory_mb) == (97.5, 47.5)
    assert eight.latency.images_per_second == 1000.0
    assert [each.bytes for each in found] == [2] * 6


@pytest.mark.parametrize(
    ("options", "received"),
    [
        ({"rounds": 0}, "rounds=0"),
        ({"seconds": 0.0}, "seconds=0,"),
        ({"batch_sizes": ()}, r"batch_sizes=\(\)"),
        ({"batch_sizes": (1, 0)}, r"batch_sizes=\(1, 0\)"),
        ({"threads": 0}, "threads=0"),
    ],
)
def test_numbers_must_be_positive(
    file: Path, options: dict[str, Any], received: str
) -> None:
    with pytest.raises(reszoo.UsageError, match=f"above 0. Received: 1 .*{received}"):
        reszoo.benchmark(file, **options)


def test_what_cannot_be_measured_is_refused(tmp_path: Path, file: Path) -> None:
    with pytest.raises(
        reszoo.UsageError, match=r"at least one file.*Received: 0 files"
    ):
        reszoo.benchmark([])
    with pytest.raises(reszoo.CheckpointError, match="There is no file"):
        reszoo.benchmark([file, tmp_path / "none.onnx"])
    (tmp_path / "model.pb").write_bytes(b"")
    with pytest.raises(
        reszoo.UsageError, match=r"Unknown kind of model file 'model.pb'"
    ):
        reszoo.benchmark(tmp_path / "model.pb")
    # Only the process that opens it can tell; its error comes through.
    (tmp_path / "odd.onnx").write_bytes(b"nonsense")
    with pytest.raises(
        reszoo.CheckpointError, match=r"odd.onnx is damaged, or of another"
    ):
        reszoo.benchmark(tmp_path / "odd.onnx")


def noisy(**request: Any) -> Any:
    """Time a file while its library prints, in the process of the benchmark."""
    import onnxruntime

    session, calls = onnxruntime.InferenceSession, []

    def printing(*arguments: Any, **options: Any) -> Any:
        calls.append(arguments)
        print("a library talks")
        return session(*arguments, **options)

    onnxruntime.InferenceSession = printing
    return {**time_file(**request), "talked": len(calls)}


_SHORT = {"threads": 1, "batch_sizes": [1], "seconds": 0.01, "max_runs": 5}


def test_what_libraries_print_is_no_part_of_the_result(file: Path) -> None:
    code = f"{Path(__file__).stem}:noisy"
    found = run_in_subprocess(code, {"file": str(file), **_SHORT})
    assert found["talked"] >= 1
    assert len(found["times_ms"][0]) == 5
    assert found["runtime"].startswith("onnxruntime ")


def test_only_the_library_of_the_file_is_loaded(file: Path) -> None:
    script = (
        "import json, sys\n"
        "from reszoo_export.benchmark import time_file\n"
        f"time_file({str(file)!r}, **{_SHORT!r})\n"
        "print(sorted({'tensorflow', 'keras', 'onnx'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout == "[]\n"


def test_a_process_that_dies_is_reported_with_the_file(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def dies(function: str, arguments: Any, **options: Any) -> Any:
        return run_in_subprocess("test_isolation:crash", {}, **options)

    monkeypatch.setattr(benchmark, "run_in_subprocess", dies)
    told = r"model\.onnx could not be timed: its runtime crashed \(SIGSEGV\)\n    one"
    with pytest.raises(reszoo.ReszooError, match=told):
        reszoo.benchmark(file)


def test_people_see_a_table_and_what_it_means() -> None:
    latency = Latency.of(
        [1.0, 2.0, 3.0], batch=8, threads=2, load_ms=10, first_ms=5, peak_mb=70.4
    )
    made = Measurement(
        file="model.onnx",
        runtime="onnxruntime 1",
        bytes=1_234_567,
        latency=latency,
        medians_ms=(2.0, 2.2),
    )
    columns, [row] = benchmark_table([made])
    assert dict(zip(columns, row, strict=True)) == {
        "file": "model.onnx",
        "size": "1.23 MB",
        "batch": "8",
        "median": "2.00 ms",
        "p90": "2.80 ms",
        "p99": "2.98 ms",
        "images/s": "4,000.0",
        "cold start": "15 ms",
        "memory": "-",
        "peak": "70 MB",
    }
    note = benchmark_note([made])
    assert "2 threads on " in note
    assert note.endswith("medians of the processes are within 10% of each other.")
    busy = benchmark_note(
        [made, Measurement(**{**vars(made), "medians_ms": (1.0, 2.0)})]
    )
    assert "within 100% of each other: other programs were running" in busy
