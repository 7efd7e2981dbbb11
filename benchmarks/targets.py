"""What do the tools of microcontrollers, accelerators and GPUs make of TFLite files?

Run: python benchmarks/targets.py NAME=FILE ... [--micro PYTHON] [--vela PYTHON]
     [--json FILE]

Each FILE is a `.tflite` file, NAME what the table calls it. TFLite Micro's interpreter
(package `tflite-micro`) runs it on noise, is compared with LiteRT's reference kernels,
and tells the size of its arena; Arm's compiler Vela (`ethos-u-vela`) tells how many
operators an Ethos-U55 takes and which stay on the CPU; TensorFlow's analyzer tells what
mobile GPUs do not take. PYTHON has the package of the tool, which goes with few others.
What is not installed is listed as not tried. The table goes between two marks of
`docs/exporting.md`.
"""

import argparse
import contextlib
import io
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from compatibility import PAGE, put_in

MARKS = ("<!-- begin benchmarks/targets.py -->", "<!-- end benchmarks/targets.py -->")
ACCELERATOR = "ethos-u55-128"
ARENA, IMAGES = 16_000_000, 5

# Runs where tflite-micro is: FILE, IMAGES.npy, ANSWERS.npy.
_MICRO = f"""
import sys
from importlib import metadata
import numpy as np
from tflite_micro import runtime
interpreter = runtime.Interpreter.from_file(sys.argv[1], arena_size={ARENA})
answers = []
for image in np.load(sys.argv[2]):
    interpreter.set_input(image[None], 0)
    interpreter.invoke()
    answers.append(interpreter.get_output(0)[0])
np.save(sys.argv[3], answers)
interpreter.print_allocations()
print("version", metadata.version("tflite-micro"))
"""


def litert(path: Path) -> tuple[np.ndarray, np.ndarray, int]:
    """Run a file on noise with LiteRT's reference kernels.

    Returns:
        The images as the file takes them, its answers, and its number of operators.
    """
    from ai_edge_litert.interpreter import Interpreter, OpResolverType

    interpreter = Interpreter(
        str(path), experimental_op_resolver_type=OpResolverType.BUILTIN_REF
    )
    interpreter.allocate_tensors()
    (image,), (answer,) = (
        interpreter.get_input_details(),
        interpreter.get_output_details(),
    )
    noise = np.random.default_rng(0).integers(0, 256, (IMAGES, *image["shape"][1:]))
    images = (noise + image["quantization"][1]).astype(image["dtype"])
    answers = []
    for each in images:
        interpreter.set_tensor(image["index"], each[None])
        interpreter.invoke()
        answers.append(interpreter.get_tensor(answer["index"])[0])
    return images, np.array(answers), len(interpreter._get_ops_details())


def micro(python: str, path: Path, images: np.ndarray, expected: Any) -> dict[str, Any]:
    """Run a file in TFLite Micro's interpreter."""
    with tempfile.TemporaryDirectory() as place:
        given, found = Path(place) / "images.npy", Path(place) / "answers.npy"
        np.save(given, images)
        words = [python, "-c", _MICRO, str(path), str(given), str(found)]
        done = subprocess.run(words, capture_output=True, text=True, check=False)
        if "No module named 'tflite_micro'" in done.stderr:
            return {"missing": "tflite-micro is not installed"}
        text = done.stdout + done.stderr
        if done.returncode:
            return {"error": text.strip().splitlines()[-1]}
        answers = np.load(found)
    arena = re.search(r"Arena allocation total (\d+)", text)
    version = re.search(r"^version (\S+)", text, re.M)
    difference = np.abs(answers.astype(np.float64) - expected.astype(np.float64)).max()
    return {
        "version": version and version[1],
        "arena": arena and int(arena[1]),
        "difference": float(difference),
    }


def vela(python: str, path: Path) -> dict[str, Any]:
    """Compile a file for an Ethos-U."""
    command = Path(python).parent / "vela"
    if not command.exists():
        return {"missing": "ethos-u-vela is not installed"}
    with tempfile.TemporaryDirectory() as place:
        words = [command, path, "--accelerator-config", ACCELERATOR]
        words += ["--output-dir", place]
        done = subprocess.run(words, capture_output=True, text=True, check=False)
    text = done.stdout + done.stderr
    counts = dict(re.findall(r"(CPU|NPU) operators = (\d+)", text))
    if done.returncode or len(counts) < 2:
        return {"error": (text.strip().splitlines() or ["no message"])[-1]}
    version = subprocess.run(
        [command, "--version"], capture_output=True, text=True, check=False
    )
    left = re.findall(r"Warning \(supported operators\) operator: (\w+)", text)
    return {
        "version": version.stdout.strip(),
        "mapped": int(counts["NPU"]),
        "operators": sum(map(int, counts.values())),
        "left": left,
    }


def gpu(path: Path) -> dict[str, Any]:
    """Ask TensorFlow's analyzer what a mobile GPU does not take."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    try:
        import tensorflow as tf
    except ModuleNotFoundError:
        return {"missing": "tensorflow is not installed"}
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        tf.lite.experimental.Analyzer.analyze(str(path), gpu_compatibility=True)
    text = said.getvalue()
    problems = re.findall(r"GPU COMPATIBILITY WARNING: (.*)", text)
    return {
        "version": tf.__version__,
        "compatible": "looks compatible with GPU delegate" in text,
        "problems": problems,
    }


def shown(found: dict[str, Any], text: str) -> str:
    """Return what a cell says: the result, or why there is none."""
    if "missing" in found:
        return f"not tried ({found['missing']})"
    return f"fails: {found['error'][:80]}" if "error" in found else text


def table(rows: list[dict[str, Any]]) -> str:
    """Return the table as Markdown."""
    columns = ("file", "operators", "TFLite Micro: arena, bytes")
    columns += ("difference from LiteRT", f"Vela, {ACCELERATOR}: operators on the NPU")
    columns += ("GPU delegate",)
    lines = [
        f"| {' | '.join(columns)} |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        small, compiled, graphics = row["micro"], row["vela"], row["gpu"]
        # Of a float file it takes none.
        left = ", ".join(compiled["left"]) if compiled.get("mapped") else ""
        cells = [
            row["name"],
            str(row["operators"]),
            shown(small, f"{small.get('arena', 0):,}"),
            shown(small, f"{small.get('difference', 0):.2g}"),
            shown(
                compiled,
                f"{compiled.get('mapped')} of {compiled.get('operators')}"
                + (f"; on the CPU: {left}" if left else ""),
            ),
            shown(
                graphics,
                "compatible"
                if graphics.get("compatible")
                else f"{len(graphics.get('problems', []))} warnings",
            ),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    versions = {
        "TFLite Micro": rows[0]["micro"].get("version"),
        "Vela": rows[0]["vela"].get("version"),
        "TensorFlow": rows[0]["gpu"].get("version"),
    }
    named = [f"{name} {version}" for name, version in versions.items() if version]
    lines += ["", f"With {', '.join(named)}; `python benchmarks/targets.py`."]
    return "\n".join(lines)


def main() -> None:
    """Run the tools on the files and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("files", nargs="+", metavar="NAME=FILE")
    parser.add_argument("--micro", default=sys.executable)
    parser.add_argument("--vela", default=sys.executable)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--page", type=Path, default=PAGE)
    arguments = parser.parse_args()
    rows = []
    for each in arguments.files:
        name, _, file = each.rpartition("=")
        path = Path(file)
        images, expected, operators = litert(path)
        rows.append(
            {
                "name": name or path.name,
                "operators": operators,
                "micro": micro(arguments.micro, path, images, expected),
                "vela": vela(arguments.vela, path),
                "gpu": gpu(path),
            }
        )
        print(json.dumps(rows[-1]), flush=True)
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=1) + "\n")
    put_in(arguments.page, MARKS, table(rows))


if __name__ == "__main__":
    main()
