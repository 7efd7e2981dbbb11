"""Export a small trained model of every kind of block, and tabulate what was measured.

Run: python benchmarks/blocks.py [FOLDER]

Each model trains on the digits, is exported in all formats twice, and every file is
run against the model. Times are of the whole model of that name with random weights,
for one image of at most 96 pixels, in float32 and int8, with one thread. A kind that
FOLDER holds results of is not measured again. `benchmarks/family.py` measures logits,
stages and training steps.
"""

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

import reszoo
from reszoo.specs import SPECS
from reszoo_export.formats import FORMATS
from reszoo_export.quantization.ranges import MIN_IMAGES, Calibration
from reszoo_export.serving import make_serving

_TINY: dict[str, Any] = {
    "depths": (1, 2, 1), "widths": (16, 32, 64), "classes": 10, "image_size": 32,
}  # fmt: skip
# Pixels of timed images: calibration at 224 takes minutes.
_SIDE = 96
# Row of the table whose blocks it has, and what differs in width.
KINDS: dict[str, dict[str, Any]] = {
    "preresnet20": {},
    "resnext50_32x4d": {"widths": (64, 128, 256), "groups": 8},
    "resnet26d": {"stem_widths": (16, 16, 32)},
    "resnet50v2": {},
    "resnet10t": {},
    "wrn16_4": {"widths": (32, 64, 128)},
}


def measure(kind: str, folder: Path) -> dict[str, Any]:
    """Train and export a model of one kind; return its row of the table."""
    spec = replace(SPECS[kind], **{**_TINY, **KINDS[kind], "name": f"tiny-{kind}"})
    run = reszoo.train(
        spec, "digits", output=folder / "run", overwrite=True, batch_size=32,
        learning_rate=0.05, epochs=4,
    )  # fmt: skip
    manifests = [
        reszoo.export(
            run.model, folder / name, formats="all", calibration="digits",
            verify="digits", overwrite=True,
        )
        for name in ("export", "again")
    ]  # fmt: skip
    first, again = ({f.format: f.sha256 for f in each.files} for each in manifests)
    return {
        "parameters": sum(w.numpy().size for w in run.model.trainable_variables),
        "verified": [
            f.format for f in manifests[0].files if not f.verification.problems
        ],
        "identical": [name for name in first if first[name] == again[name]],
        "int8": {
            f.format: f.verification.agreement
            for f in manifests[0].files
            if "int8" in f.format
        },
    }


# File of a format -> the format; of either runtime first the float one.
TIMED = {
    f"model{int8}.{runtime}": f"{runtime}{int8}"
    for runtime in ("tflite", "onnx")
    for int8 in ("", "-int8")
}


def milliseconds(kind: str, folder: Path) -> dict[str, float]:
    """Return the latency of the files of the whole model for one image."""
    side = min(SPECS[kind].image_size, _SIDE)
    serving = make_serving(reszoo.build(kind, input_shape=(side, side, 3), seed=0))
    draw = np.random.default_rng(0)
    images = Calibration(draw.integers(0, 256, (MIN_IMAGES, side, side, 3), np.uint8))
    files = {folder / file: name for file, name in TIMED.items()}
    for file, name in files.items():
        FORMATS[name].write(serving, file, images)
    found = reszoo.benchmark([*files], threads=1, batch_sizes=[1])
    return {
        name: each.latency.median_ms
        for name, each in zip(files.values(), found, strict=True)
    }


def stored(
    what: Callable[[str, Path], dict[str, Any]], kind: str, folder: Path
) -> dict[str, Any]:
    """Return a result from the folder, where it is measured first if it is missing."""
    path = folder / kind / f"{what.__name__}.json"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(what(kind, folder / kind)))
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def main() -> None:
    """Measure what is missing and print the table."""
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "blocks")
    print(
        "| blocks of | parameters | verified | identical again | int8 agreement | "
        "TFLite, ms | int8 | ONNX, ms | int8 |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    for kind in KINDS:
        row: dict[str, Any] = {}
        for what in (measure, milliseconds):
            row |= stored(what, kind, folder)
        agreements = ", ".join(f"{k} {v:.1%}" for k, v in row["int8"].items())
        counts = f"{len(row['verified'])} | {len(row['identical'])}"
        times = " | ".join(f"{row[name]:.2f}" for name in TIMED.values())
        print(
            f"| {kind} | {row['parameters']:,} | {counts} | {agreements} | {times} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
