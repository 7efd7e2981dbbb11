"""Which other programs run the ONNX files, and do they give the same answers?

Run: python benchmarks/compatibility.py CHECKPOINT DATA [--images N]
     [--environment NAME=PYTHON ...] [--node-modules FOLDER] [--json FILE]

Writes every ONNX format of the checkpoint with uint8 and with float32 pixels (NCHW),
runs each in every runtime on images of DATA's test split, and compares the answers with
those of ONNX Runtime to the same file. What ONNX Runtime itself answers is compared
with the model. An environment is a Python with other packages, for runtimes that do not
go together: `--environment opencv4=.opencv4/bin/python`; names are those of RUNTIMES.
FOLDER is a `node_modules` with onnxruntime-web. Runtimes that are not installed are
listed as not tried. The table goes between two marks of `docs/exporting.md`. Exits 1 if
a float32 file that loads is not within 1e-4 or has another top-1.
"""

import argparse
import itertools
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

PAGE = Path(__file__).parent.parent / "docs/exporting.md"
MARKS = (
    "<!-- begin benchmarks/compatibility.py -->",
    "<!-- end benchmarks/compatibility.py -->",
)
FORMATS = ("onnx", "onnx-fp16", "onnx-int8")
# Pixels and layout of the files: the default, and what converters like best.
INPUTS = {"uint8": "nhwc", "float32": "nchw"}
TOLERANCE = 1e-4
SECONDS = 900
Array = Any


def of_onnxruntime(path: Path, images: Array) -> tuple[str, Array]:
    """Run ONNX Runtime, one image at a time."""
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    answers = [
        session.run(["probabilities"], {"image": image[None]})[0] for image in images
    ]
    return onnxruntime.__version__, np.concatenate(answers)


def of_opencv(path: Path, images: Array) -> tuple[str, Array]:
    """Run OpenCV's DNN module."""
    import cv2

    network = cv2.dnn.readNetFromONNX(str(path))
    answers = []
    for image in images:
        network.setInput(np.ascontiguousarray(image[None]))
        answers.append(network.forward("probabilities").ravel().copy())
    return cv2.__version__, np.array(answers)


def of_openvino(path: Path, images: Array) -> tuple[str, Array]:
    """Run OpenVINO on the CPU without reducing the precision."""
    import openvino

    exact = {"INFERENCE_PRECISION_HINT": "f32"}
    compiled = openvino.Core().compile_model(path, "CPU", exact)
    answers = [compiled({"image": image[None]})["probabilities"] for image in images]
    return openvino.__version__.split("-")[0], np.concatenate(answers)


def of_ncnn(path: Path, images: Array) -> tuple[str, Array]:
    """Convert with pnnx and run ncnn, both without float16."""
    import ncnn

    here = str(Path(sys.executable).parent)
    pnnx = shutil.which("pnnx", path=here) or shutil.which("pnnx")
    if pnnx is None:
        raise ModuleNotFoundError("No module named 'pnnx'")
    kind = {"uint8": "u8", "float32": "f32"}[images.dtype.name]
    shape = ",".join(map(str, images.shape[1:]))
    words = [pnnx, path.name, f"inputshape=[1,{shape}]{kind}", "fp16=0"]
    subprocess.run(words, cwd=path.parent, check=True, capture_output=True)
    network = ncnn.Net()
    for option in ("packed", "storage", "arithmetic"):
        setattr(network.opt, f"use_fp16_{option}", False)
    stem = path.with_name(path.stem.replace("-", "_"))
    codes = (
        network.load_param(f"{stem}.ncnn.param"),
        network.load_model(f"{stem}.ncnn.bin"),
    )
    if any(codes):
        raise ValueError("ncnn has no layer for an operator of the file")
    answers = []
    for image in images:
        extractor = network.create_extractor()
        extractor.input(network.input_names()[0], ncnn.Mat(image).clone())
        # pnnx keeps the order of the outputs: logits, probabilities.
        _, answer = extractor.extract(network.output_names()[1])
        answers.append(np.array(answer).ravel())
    return ncnn.__version__, np.array(answers)


def of_onnxsim(path: Path, images: Array) -> tuple[str, Array]:
    """Simplify with onnxsim and run ONNX Runtime."""
    import onnx
    import onnxsim

    simplified, is_equal = onnxsim.simplify(onnx.load(path))
    if not is_equal:
        raise ValueError("onnxsim finds other outputs after simplifying")
    onnx.save(simplified, path.with_suffix(".simple.onnx"))
    return onnxsim.__version__.lstrip("v"), of_onnxruntime(
        path.with_suffix(".simple.onnx"), images
    )[1]


def of_preprocess(path: Path, images: Array) -> tuple[str, Array]:
    """Run ONNX Runtime's tool that prepares files for quantization, then the result."""
    import sympy  # noqa: F401  (the tool needs it)

    ready = path.with_suffix(".ready.onnx")
    words = [sys.executable, "-m", "onnxruntime.quantization.preprocess"]
    words += ["--input", str(path), "--output", str(ready)]
    subprocess.run(words, check=True, capture_output=True)
    return of_onnxruntime(ready, images)


_PROGRAM = """
const fs = require("fs"), ort = require("onnxruntime-web");
const [file, input, dtype, shape, output] = process.argv.slice(2);
const sides = JSON.parse(shape), size = sides.slice(1).reduce((a, b) => a * b);
const bytes = fs.readFileSync(input);
const Kind = dtype === "uint8" ? Uint8Array : Float32Array;
const pixels = new Kind(bytes.buffer, bytes.byteOffset, sides[0] * size);
ort.env.wasm.numThreads = 1;
(async () => {
  const model = new Uint8Array(fs.readFileSync(file));
  const session = await ort.InferenceSession.create(model);
  const answers = [];
  for (let n = 0; n < sides[0]; n++) {
    const one = pixels.slice(n * size, (n + 1) * size);
    const image = new ort.Tensor(dtype, one, [1, ...sides.slice(1)]);
    answers.push(Array.from((await session.run({ image })).probabilities.data));
  }
  const version = ort.env.versions.web || ort.env.versions.common;
  fs.writeFileSync(output, JSON.stringify([version, answers]));
})().catch((error) => { console.error(String(error)); process.exit(1); });
"""


def of_web(path: Path, images: Array, modules: Path) -> tuple[str, Array]:
    """Run onnxruntime-web under Node, with WebAssembly."""
    program, pixels, output = (
        path.with_suffix(suffix) for suffix in (".cjs", ".bin", ".json")
    )
    program.write_text(_PROGRAM)
    pixels.write_bytes(images.tobytes())
    shape = json.dumps(list(images.shape))
    words = ["node", program, path, pixels, images.dtype.name, shape, output]
    done = subprocess.run(
        list(map(str, words)),
        env={"NODE_PATH": str(modules), "PATH": "/usr/bin:/usr/local/bin"},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise ValueError(done.stderr.strip().splitlines()[-1])
    version, answers = json.loads(output.read_text())
    return version, np.array(answers, np.float32)


# Name of the environment -> title and what runs it.
RUNTIMES: dict[str, tuple[str, Callable[[Path, Array], tuple[str, Array]]]] = {
    "onnxruntime": ("ONNX Runtime", of_onnxruntime),
    "opencv4": ("OpenCV 4", of_opencv),
    "opencv5": ("OpenCV 5", of_opencv),
    "openvino": ("OpenVINO", of_openvino),
    "ncnn": ("pnnx and ncnn", of_ncnn),
    "onnxsim": ("onnxsim, ONNX Runtime", of_onnxsim),
    "preprocess": ("`quantization.preprocess`, ONNX Runtime", of_preprocess),
}
WEB = "onnxruntime-web, Node"


def write_files(checkpoint: str, data: str, count: int, folder: Path) -> None:
    """Write the files, the images as each takes them, and the model's answers."""
    import reszoo
    from reszoo.data.sources import open_source
    from reszoo.metrics import prepared_batches, probabilities
    from reszoo_export import formats
    from reszoo_export.quantization.ranges import draw_calibration
    from reszoo_export.serving import make_serving

    model, source = reszoo.load(checkpoint), open_source(data)
    card = reszoo.card(model)
    examples = source.examples("test")
    chosen = np.linspace(0, len(examples) - 1, count).astype(int)
    batches = prepared_batches(examples.take(chosen), card.preprocessing, 50)
    images = np.concatenate(list(batches))
    np.save(folder / "model.npy", probabilities(model, card.preprocessing, images))
    calibration = draw_calibration(source, card, images)
    for dtype, layout in INPUTS.items():
        options: Any = {"input_dtype": dtype, "layout": layout}
        serving = make_serving(model, formats.ExportOptions(**options))
        for name in FORMATS:
            path = folder / f"{name}-{dtype}.onnx"
            formats.FORMATS[name].write(serving, path, calibration)
        pixels = images if layout == "nhwc" else images.transpose(0, 3, 1, 2)
        np.save(folder / f"{dtype}.npy", np.ascontiguousarray(pixels, dtype))


def run_here(runtime: str, path: Path, dtype: str) -> None:
    """Run one file in this process, of whatever interpreter; save the answers."""
    images = np.load(path.with_name(f"{dtype}.npy"))
    result: dict[str, Any] = {}
    try:
        result["version"], answers = RUNTIMES[runtime][1](path, images)
        np.save(path.with_suffix(".npy"), answers)
    except ModuleNotFoundError as error:
        result["missing"] = str(error)
    except Exception as error:
        result["error"] = f"{type(error).__name__}: {error}".splitlines()[0]
    path.with_suffix(".result.json").write_text(json.dumps(result))


def ask(
    runtime: str, source: Path, python: str, modules: Path | None, place: Path
) -> tuple[dict[str, Any], Array | None]:
    """Run one file in a process of its own; return what came of it, and the answers."""
    name, dtype = source.stem.rsplit("-", 1)
    path = place / f"{name}-{dtype}.onnx"
    for file in (source, source.with_name(f"{dtype}.npy")):
        shutil.copy(file, place)
    if runtime == WEB:
        if modules is None:
            return {"missing": "no --node-modules"}, None
        try:
            version, answers = of_web(path, np.load(place / f"{dtype}.npy"), modules)
        except (ValueError, FileNotFoundError) as error:
            return {"error": str(error)}, None
        return {"version": version}, answers
    words = [python, str(Path(__file__).resolve()), "--run", runtime, str(path), dtype]
    done = subprocess.run(
        words, capture_output=True, text=True, check=False, timeout=SECONDS
    )
    stored = path.with_suffix(".result.json")
    if not stored.exists():
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        return {"error": f"exit {done.returncode}: {last}"}, None
    result = json.loads(stored.read_text())
    answers = path.with_suffix(".npy")
    return result, np.load(answers) if answers.exists() else None


def measure(
    folder: Path, environments: Mapping[str, str], modules: Path | None
) -> Iterator[dict[str, Any]]:
    """Yield a row for each runtime and file."""
    own: dict[str, Array] = {}
    for runtime in (*RUNTIMES, WEB):
        python = environments.get(runtime, sys.executable)
        for name, dtype in itertools.product(FORMATS, INPUTS):
            source = folder / f"{name}-{dtype}.onnx"
            with tempfile.TemporaryDirectory() as place:
                found, answers = ask(runtime, source, python, modules, Path(place))
            expected = own.get(source.stem, np.load(folder / "model.npy"))
            row = {
                "runtime": RUNTIMES[runtime][0] if runtime in RUNTIMES else runtime,
                "format": name,
                "pixels": f"{dtype} {INPUTS[dtype].upper()}",
                "loads": answers is not None,
                **found,
            }
            if answers is not None:
                same = answers.argmax(1) == expected.argmax(1)
                row["agreement"] = float(same.mean())
                row["difference"] = float(np.abs(answers - expected).max())
            if runtime == "onnxruntime" and answers is not None:
                own[source.stem] = answers
            yield row


def table(rows: list[dict[str, Any]], count: int) -> str:
    """Return the table as Markdown: a row for each runtime and format."""
    said = f"Answers to {count} images (`python benchmarks/compatibility.py`): share "
    said += "with the same top-1, and largest difference of a probability. Those of "
    said += "ONNX Runtime beside the model's, the others beside ONNX Runtime's to the "
    said += "same file."
    kinds = [f"{dtype} {layout.upper()}" for dtype, layout in INPUTS.items()]
    lines = [said, "", f"| runtime | file | {' | '.join(kinds)} |", "|---|---|---|---|"]
    for first in rows:
        if first["pixels"] != kinds[0]:
            continue
        same = [
            row
            for row in rows
            if (row["runtime"], row["format"]) == (first["runtime"], first["format"])
        ]
        versions = {row["version"] for row in same if "version" in row}
        title = " ".join([first["runtime"], *(f"({each})" for each in versions)])
        cells = {row["pixels"]: _cell(row) for row in same}
        shown = " | ".join(cells[kind] for kind in kinds)
        lines.append(f"| {title} | `{first['format']}` | {shown} |")
    return "\n".join(lines)


def _cell(row: Mapping[str, Any]) -> str:
    if row["loads"]:
        return f"loads; {row['agreement']:.1%}, {row['difference']:.1e}"
    if "missing" in row:
        return f"not tried ({row['missing']})"
    return f"does not load ({row['error'].replace('|', '/')[:90]})"


def put_in(page: Path, marks: tuple[str, str], text: str) -> None:
    """Replace what a page has between two marks."""
    before, rest = page.read_text(encoding="utf-8").split(marks[0])
    after = rest.split(marks[1])[1]
    whole = f"{before}{marks[0]}\n{text}\n{marks[1]}{after}"
    page.write_text(whole, encoding="utf-8")


def is_wrong(row: Mapping[str, Any]) -> bool:
    """Tell whether a float32 file that loads gives other answers."""
    if not row["loads"] or row["format"] != "onnx":
        return False
    return bool(row["agreement"] < 1 or row["difference"] > TOLERANCE)


def main() -> None:
    """Write the files, run them everywhere, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint")
    parser.add_argument("data")
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--environment", action="append", default=[])
    parser.add_argument("--node-modules", type=Path)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--page", type=Path, default=PAGE)
    arguments = parser.parse_args()
    environments = dict(each.split("=", 1) for each in arguments.environment)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        write_files(arguments.checkpoint, arguments.data, arguments.images, folder)
        rows = []
        for row in measure(folder, environments, arguments.node_modules):
            print(json.dumps(row), flush=True)
            rows.append(row)
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=1) + "\n")
    put_in(arguments.page, MARKS, table(rows, arguments.images))
    sys.exit(int(any(map(is_wrong, rows))))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--run"]:
        run_here(sys.argv[2], Path(sys.argv[3]), sys.argv[4])
    else:
        main()
