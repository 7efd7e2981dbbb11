"""Make the tables and the plot of the docs from files of results.

Run: python benchmarks/table.py [benchmarks/results/DATE.json ...]

Without arguments it reads every file but those of quick runs; for each processor, the
newest result of each benchmark counts. The headline goes between the two marks of the
README, everything to `docs/benchmarks.md`, and the milliseconds of the processor that
was measured last to `docs/benchmarks.png`.
"""

import json
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import harness
from matplotlib.figure import Figure

HERE = Path(__file__).parent
README, DOCS = HERE.parent / "README.md", HERE.parent / "docs"
PAGE, PLOT = DOCS / "benchmarks.md", DOCS / "benchmarks.png"
BEGIN, END = "<!-- begin benchmarks/table.py -->", "<!-- end benchmarks/table.py -->"
# Okabe and Ito's colours, which are safe for colour-blind readers.
OURS, THEIRS = "#0072B2", "#999999"
_TITLES = {
    "tools": "Import, build, load and save",
    "inference": "Inference, ResNet-50",
    "inference_int8": "Inference, ResNet-50, int8",
    "inference8": "Inference, ResNet-50, eight images at a time",
    "inference18": "Inference, ResNet-18",
    "first_answer": "Time to the first prediction of a new process, ResNet-50",
    "saved_model": "Start-up and memory of a SavedModel, ResNet-50",
    "export": "Export to SavedModel, TFLite and ONNX",
    "training": "Training",
    "training_compiled": "Training, ResNet-50, next to torch.compile and KerasHub",
    "training18": "Training, ResNet-18",
    "losses": "Training losses",
    "input": "Batches from JPEGs",
    "growth": "Scaling",
}
_RATIO = (
    "A ratio is how many times as fast reszoo is: the median over pairs of processes "
    "that ran in turns (A B B A), with the middle 95 % of a bootstrap"
)
_PLOTTED = "resnet50 b1 "
_BEFORE = {"inference": _PLOTTED, "training": "resnet50 "}
_STATIC, _LOADER = "ONNX Runtime's `quantize_static`, tuned", "torch's `DataLoader`"
# Rows of the headline, by precision: benchmark, contenders, and both in words.
_HEADLINE = {
    "float32": (
        ("inference", "onnx", "keras predict", "ONNX", "Keras' `predict`"),
        ("inference", "onnx", "openvino", "ONNX", "OpenVINO, same file"),
        ("inference", "tflite", "openvino", "TFLite", "OpenVINO, ONNX file"),
        ("inference", "saved_model", "Model.export", "SavedModel", "`Model.export`"),
        ("training", "reszoo float32", "torch float32", "training", "torch"),
    ),
    "bfloat16": (
        ("training", "reszoo bfloat16", "torch bfloat16", "training", "torch"),
    ),
    "int8": (("inference", "onnx-int8", "quantize_static, minmax", "ONNX", _STATIC),),
    "uint8": (
        ("input", "reszoo, folder", "torch, folder", "random crops of JPEGs", _LOADER),
    ),
}
# The precision of a contender of the plot, by a part of its name.
_PRECISIONS = (
    ("int8", "int8"),
    ("dynamic", "int8"),
    ("quantize_static", "int8"),
    ("bf16", "bfloat16"),
)
# The results of one processor, by benchmark.
Results = Mapping[str, Any]


def read(path: Path) -> dict[str, Any]:
    """Return the results of a file, each with the name of the file."""
    results: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return {name: {**each, "file": path.name} for name, each in results.items()}


def newest(paths: Iterable[Path]) -> dict[str, Results]:
    """Return the newest result of each benchmark, by processor, the latest first."""
    found: dict[str, dict[str, Any]] = {}
    for path in sorted(paths, key=lambda path: path.stem, reverse=True):
        if not {"quick", "stress"} & {*path.stem.split("-")}:
            results = read(path)
            known = found.setdefault(_processor(results), {})
            found[_processor(results)] = {**results, **known}
    if not found:
        raise SystemExit(f"There are no results in {HERE / 'results'}. Run: make bench")
    return dict(found)


def headline(processors: Mapping[str, Results]) -> Iterator[str]:
    """Yield the section of the README: rows that compare equal precisions."""
    yield f"{_RATIO}."
    yield "ResNet-50 with one image at a time, training with batches of 16 images.\n"
    yield f"| precision | reszoo | baseline | {' | '.join(processors)} |"
    yield "|---|---|---|" + "---|" * len(processors)
    for precision, rows in _HEADLINE.items():
        for benchmark, ours, theirs, what, whom in rows:
            before = _BEFORE.get(benchmark, "")
            pair = (before + ours, before + theirs)
            found = [_ratio(each, benchmark, pair) for each in processors.values()]
            if any(found):
                cells = " | ".join(found)
                yield f"| {precision} | {what} | {whom} | {cells} |"


def _ratio(results: Results, benchmark: str, pair: tuple[str, str]) -> str:
    """Return a ratio as text, whether it has a target or not; empty if not measured."""
    for name in (f"{benchmark}_int8", benchmark):
        measured = results.get(name, {}).get("contenders", {})
        if all(each in measured for each in pair):
            runs = {each: measured[each]["runs"] for each in pair}
            ratio = harness.compare(runs, *pair)
            return f"{ratio.median:.2f} ({ratio.low:.2f} to {ratio.high:.2f})"
    return ""


def page(processors: Mapping[str, Results]) -> Iterator[str]:
    """Yield all results: milliseconds, memory, sizes, ratios, notes and scaling."""
    yield f"{_RATIO}. Everything ran with 2 threads."
    for processor, results in processors.items():
        files = sorted({result["file"] for result in results.values()})
        named = ", ".join(f"`benchmarks/results/{file}`" for file in files)
        yield f"\n### {processor}\n\n{named}"
        yield from _section(results)


def _section(results: Results) -> Iterator[str]:
    for benchmark in ("inference", "inference_int8", "inference8", "inference18"):
        yield from _milliseconds(_TITLES[benchmark], results.get(benchmark))
    for benchmark, title in _TITLES.items():
        if results.get(benchmark, {}).get("ratios"):
            yield from _ratios(title, results[benchmark])
    for benchmark, title in _TITLES.items():
        if notes := results.get(benchmark, {}).get("notes"):
            yield f"\n**{title}: notes**\n"
            yield from (f"* {note}" for note in notes)


def _processor(results: Results) -> str:
    """Return the processor, and its widest instructions where they are known."""
    machine = next(iter(results.values()))["machine"]
    able = machine.get("instructions")
    return f"{machine['processor']}, {able}" if able else str(machine["processor"])


def _ratios(title: str, result: Mapping[str, Any]) -> Iterator[str]:
    yield f"\n**{title}**\n"
    yield "| reszoo | baseline | times as fast | target | |"
    yield "|---|---|---|---|---|"
    for row in result["ratios"]:
        span = f"{row['median']:.2f} ({row['low']:.2f} to {row['high']:.2f})"
        target = f"{row['claim']:.3g}"
        cells = (row["ours"], row["theirs"], span, target, row["verdict"])
        yield f"| {' | '.join(cells)} |"


def _milliseconds(title: str, result: Mapping[str, Any] | None) -> Iterator[str]:
    if not result:
        return
    yield f"\n**{title}: latency, time to the first prediction, memory and file**\n"
    yield "| | ms | p10 to p90 | first prediction, s | memory, MB | file, MB |"
    yield "|---|---|---|---|---|---|"
    for name, row in result["contenders"].items():
        if "ms" not in row:
            continue
        batch = row["median"] * row["ms"]
        span = f"{batch / row['p90']:.1f} to {batch / row['p10']:.1f}"
        file = f"{row['file_mb']:.1f}" if "file_mb" in row else ""
        cells = (f"{row['ms']:.1f}", span, f"{row['cold_ms'] / 1000:.1f}")
        yield f"| {name} | {' | '.join(cells)} | {row['megabytes']:.0f} | {file} |"


def write_between(path: Path, lines: Iterable[str]) -> None:
    """Replace what a file has between its two marks."""
    from reszoo.files import write_text

    before, begin, rest = path.read_text(encoding="utf-8").partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise SystemExit(f"{path} must have the lines {BEGIN} and {END}.")
    made = "\n".join(lines)
    write_text(path, f"{before}{BEGIN}\n{made}\n{END}{after}")


def _precision(name: str) -> str:
    return next((kind for part, kind in _PRECISIONS if part in name), "float32")


def write_plot(result: Mapping[str, Any], path: Path) -> None:
    """Draw the latency of ResNet-50 with one image, a panel for each precision."""
    from inference_peers import OURS as FILES

    groups: dict[str, list[tuple[float, str]]] = {
        precision: [] for precision in ("float32", "bfloat16", "int8")
    }
    for name, row in result["contenders"].items():
        if name.startswith(_PLOTTED):
            short = name.removeprefix(_PLOTTED)
            groups[_precision(short)].append((row["ms"], short))
    groups = {precision: rows for precision, rows in groups.items() if rows}
    sizes = [len(rows) for rows in groups.values()]
    figure = Figure(figsize=(8, 0.28 * sum(sizes) + 2.2), layout="constrained")
    panels = figure.subplots(
        len(groups), sharex=True, squeeze=False, height_ratios=sizes
    ).ravel()
    for axes, (precision, rows) in zip(panels, groups.items(), strict=True):
        rows.sort(reverse=True)
        colours = [OURS if name in FILES else THEIRS for _, name in rows]
        names, values = [name for _, name in rows], [ms for ms, _ in rows]
        axes.bar_label(axes.barh(names, values, color=colours), fmt="%.1f", padding=3)
        axes.set_title(precision, loc="right", fontsize="medium")
        axes.spines[["top", "right"]].set_visible(False)
    machine = result["machine"]["processor"]
    panels[-1].set_xlabel(f"milliseconds, {machine}; reszoo's files in blue")
    figure.suptitle("Latency of ResNet-50, one image of 224 pixels")
    figure.savefig(path, dpi=120)


def main() -> None:
    """Write the headline, the page and the plot."""
    paths = [Path(each) for each in sys.argv[1:]] or (HERE / "results").glob("*.json")
    processors = newest(paths)
    write_between(README, headline(processors))
    write_between(PAGE, page(processors))
    latest = next(iter(processors.values()))
    if "inference" in latest:
        write_plot(latest["inference"], PLOT)


if __name__ == "__main__":
    main()
