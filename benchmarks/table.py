"""Make the README's table and plot of files of results.

Run: python benchmarks/table.py [benchmarks/results/DATE.json ...]

Without files it takes the latest whole run on each processor. What people ask first
goes between the two marks of the README, a column a processor, everything to
`docs/benchmarks.md`, the plot of the latest to `docs/benchmarks.png`.
"""

import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

HERE = Path(__file__).parent
README, DOCS = HERE.parent / "README.md", HERE.parent / "docs"
PAGE, PLOT = DOCS / "benchmarks.md", DOCS / "benchmarks.png"
BEGIN, END = "<!-- made by benchmarks/table.py -->", "<!-- end of what it made -->"
# Okabe and Ito's colours, which the colour-blind tell apart.
OURS, THEIRS = "#0072B2", "#999999"
_TITLES = {
    "tools": "Everyday things",
    "inference": "Answers of ResNet-50",
    "inference18": "Answers of ResNet-18",
    "first_answer": "First answer of a new process, ResNet-50",
    "export": "Writing SavedModel, TFLite and ONNX",
    "training": "Training",
    "training18": "Training of ResNet-18",
    "losses": "The same training",
    "input": "Batches from JPEGs",
    "growth": "How cost grows",
}
_RATIO = (
    "A ratio is the median over pairs of processes that ran in turns, with the middle "
    "95 % of a bootstrap"
)
_PLOTTED = "resnet50 b1 "
_COLD, _ALL, _FIT = "keras load + predict", "resnet50 all", "Keras' `fit` as it comes"
_WRITING = "writing SavedModel, TFLite and ONNX"
_PROVING = "writing and verifying the three"
_TRAINING, _SMALL = "training in bfloat16", "training ResNet-20 in bfloat16"
_CROPS = "random crops of JPEGs of 500 x 375 pixels"
_SHARDS = "random crops from shards of 256 pixels"
_50, _20 = "resnet50 reszoo", "resnet20 reszoo"
# What the README shows: script, who and beside whom there, and both in words.
_FIRST = (
    ("inference", "tflite-int8", "keras predict", "int8 TFLite", "Keras' `predict`"),
    ("inference", "onnx-int8", "keras predict", "int8 ONNX", "Keras' `predict`"),
    ("inference", "tflite-int8", "torch eager", "int8 TFLite", "torch eager"),
    ("inference", "onnx-int8", "torch eager", "int8 ONNX", "torch eager"),
    ("inference", "tflite-int8", "tflite", "int8 TFLite", "its own float32 file"),
    ("inference", "onnx-int8", "onnx", "int8 ONNX", "its own float32 file"),
    ("inference", "onnx-int8", "quantize_static", "int8 ONNX", "`quantize_static`'s"),
    ("inference", "saved_model", "Model.export", "SavedModel", "`Model.export`'s"),
    ("inference", "onnx", "openvino", "float32 ONNX", "OpenVINO"),
    ("inference", "tflite", "openvino", "float32 TFLite", "OpenVINO"),
    ("first_answer", "tflite", _COLD, "first answer of a process, TFLite", "Keras'"),
    ("first_answer", "onnx", _COLD, "first answer of a process, ONNX", "Keras'"),
    ("export", f"{_ALL} reszoo", f"{_ALL} keras", _WRITING, "Keras"),
    ("export", f"{_ALL} reszoo, proven", f"{_ALL} keras", _PROVING, "Keras"),
    ("training", f"{_50} bfloat16", "resnet50 keras float32", _TRAINING, _FIT),
    ("training", f"{_50} bfloat16", "resnet50 torch bfloat16", _TRAINING, "torch's"),
    ("training", f"{_20} bfloat16", "resnet20 keras float32", _SMALL, _FIT),
    ("input", "reszoo, folder", "torch, folder", _CROPS, "torch's"),
    ("input", "reszoo, shards", "reszoo, folder", _SHARDS, "JPEGs"),
    ("tools", "load reszoo", "load keras", "loading ResNet-50", "Keras"),
    ("tools", "build reszoo", "build keras", "`build`", "keras.applications"),
)
# What the scripts found, by the name of the question.
Answers = Mapping[str, Any]
# Whole runs by their files' names, the latest first.
Runs = Mapping[str, Answers]


def latest(folder: Path) -> list[Path]:
    """Return the newest whole run on each processor, the newest of all first."""
    found: dict[str, Path] = {}
    files = folder.glob("*.json")
    for path in sorted(files, key=lambda file: file.stem, reverse=True):
        if "quick" not in path.name:
            found.setdefault(_processor(json.loads(path.read_text())), path)
    if not found:
        raise SystemExit(f"There are no results in {folder}. Run: make bench")
    return list(found.values())


def ratios(runs: Runs) -> Iterator[str]:
    """Yield the section of the README."""
    yield f"{_RATIO}; what was asked and not met is told beside it."
    yield "The net is ResNet-50, with one image at a time, if nothing else is said.\n"
    names = [f"{_processor(run)} ({file})" for file, run in runs.items()]
    yield f"| reszoo | beside | asked | {' | '.join(names)} |"
    yield "|---|---|---|" + "---|" * len(runs)
    for script, ours, theirs, what, whom in _FIRST:
        before = _PLOTTED if script == "inference" else ""
        pair = (before + ours, before + theirs)
        found = [_row(run.get(script), pair) for run in runs.values()]
        if known := next(filter(None, found), None):
            told = " | ".join(_cell(row) for row in found)
            yield f"| {what} | {whom} | {known['claim']:.3g} | {told} |"


def _row(answer: Mapping[str, Any] | None, pair: tuple[str, str]) -> Any:
    rows = answer["ratios"] if answer else ()
    return next((row for row in rows if (row["ours"], row["theirs"]) == pair), None)


def _cell(row: Mapping[str, Any] | None) -> str:
    if row is None:
        return ""
    told = "" if row["verdict"] == "met" else f", {row['verdict']}"
    return f"{_span(row)}{told}"


def page(runs: Runs) -> Iterator[str]:
    """Yield the page of milliseconds, memory, sizes, notes and growth."""
    yield "# What `make bench` measured"
    yield f"\n{_RATIO}. Everything ran with 2 threads."
    for file, answers in runs.items():
        yield f"\n## {_processor(answers)}\n\n`benchmarks/results/{file}`"
        yield from _section(answers)
    yield ""


def _section(answers: Answers) -> Iterator[str]:
    for script in ("inference", "inference18"):
        yield from _milliseconds(_TITLES[script], answers.get(script))
    for script, title in _TITLES.items():
        if answers.get(script, {}).get("ratios"):
            yield from _ratios(title, answers[script])
    for script, answer in answers.items():
        if answer["notes"]:
            yield f"\n**{_TITLES[script]}: what else was seen**\n"
            yield from (f"* {note}" for note in answer["notes"])


def _processor(answers: Answers) -> str:
    """Tell the processor, and its widest instructions where they are known."""
    machine = next(iter(answers.values()))["machine"]
    able = machine.get("instructions")
    return f"{machine['processor']}, {able}" if able else str(machine["processor"])


def _ratios(title: str, answer: Mapping[str, Any]) -> Iterator[str]:
    yield f"\n**{title}**\n"
    yield "| reszoo | beside | times as fast | asked | |"
    yield "|---|---|---|---|---|"
    for row in answer["ratios"]:
        yield _line(row["ours"], row["theirs"], row)


def _line(ours: str, theirs: str, row: Mapping[str, Any]) -> str:
    cells = (ours, theirs, _span(row), f"{row['claim']:.3g}", row["verdict"])
    return f"| {' | '.join(cells)} |"


def _span(row: Mapping[str, Any]) -> str:
    return f"{row['median']:.2f} ({row['low']:.2f} to {row['high']:.2f})"


def _milliseconds(title: str, answer: Mapping[str, Any] | None) -> Iterator[str]:
    if not answer:
        return
    yield f"\n**{title}: a call, start to first answer, memory and file**\n"
    yield "| | ms | p10 to p90 | first answer, s | memory, MB | file, MB |"
    yield "|---|---|---|---|---|---|"
    for name, row in answer["contenders"].items():
        if "ms" not in row:
            continue
        batch = row["median"] * row["ms"]
        span = f"{batch / row['p90']:.1f} to {batch / row['p10']:.1f}"
        file = f"{row['file_mb']:.1f}" if "file_mb" in row else ""
        cells = (f"{row['ms']:.1f}", span, f"{row['cold_ms'] / 1000:.1f}")
        yield f"| {name} | {' | '.join(cells)} | {row['megabytes']:.0f} | {file} |"


def write_readme(runs: Runs) -> None:
    """Put the section between its marks."""
    from reszoo.files import write_text

    before, begin, rest = README.read_text().partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise SystemExit(f"{README} has no {BEGIN} and {END}")
    made = "\n".join(ratios(runs))
    write_text(README, f"{before}{BEGIN}\n{made}\n{END}{after}")


def write_plot(answer: Mapping[str, Any], path: Path) -> None:
    """Draw how long ResNet-50 takes for one image."""
    rows = sorted(
        (
            (row["ms"], name.removeprefix(_PLOTTED))
            for name, row in answer["contenders"].items()
            if name.startswith(_PLOTTED)
        ),
        reverse=True,
    )
    from inference_peers import OURS as FILES

    figure = Figure(figsize=(8, 0.32 * len(rows) + 1.2), layout="constrained")
    axes = figure.subplots()
    colours = [OURS if name in FILES else THEIRS for _, name in rows]
    bars = axes.barh([name for _, name in rows], [ms for ms, _ in rows], color=colours)
    axes.bar_label(bars, fmt="%.1f", padding=3)
    machine = answer["machine"]["processor"]
    axes.set_xlabel(f"milliseconds, {machine}; reszoo's files in blue")
    axes.set_title("How long ResNet-50 takes for one image of 224 pixels", loc="left")
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=120)


def main() -> None:
    """Make both."""
    files = [Path(each) for each in sys.argv[1:]] or latest(HERE / "results")
    runs = {file.name: json.loads(file.read_text()) for file in files}
    write_readme(runs)
    PAGE.write_text("\n".join(page(runs)), encoding="utf-8")
    newest = next(iter(runs.values()))
    if "inference" in newest:
        write_plot(newest["inference"], PLOT)


if __name__ == "__main__":
    main()
