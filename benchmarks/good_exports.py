"""Does verification cry wolf? Good exports of random nets, counted.

Run: python benchmarks/good_exports.py [--nets 100] [--first 0] [--seed 0] [--json FILE]

Each net has random weights and statistics, and a random variant, shortcut, size and
number of classes; each becomes one file, format after format, which is opened in its
own runtime and judged as `reszoo.export` judges it. A file is good by construction, so
every complaint is a false alarm. Exits 1 if there was one.
"""

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

NETS = ("resnet18", "resnet20", "resnet32", "resnet50", "resnet56", "plain20")
SHORTCUTS = ("identity", "projection", "projection-all")
SIZES, CLASSES = (32, 40, 64), (2, 10, 100, 1000)


def random_net(draw: np.random.Generator) -> Any:
    """Build a net whose weights and statistics are nowhere trivial."""
    import reszoo

    name, size = str(draw.choice(NETS)), int(draw.choice(SIZES))
    plain = name.startswith("plain")
    model = reszoo.build(
        name,
        classes=int(draw.choice(CLASSES)),
        input_shape=(size, size, 3),
        shortcut=None if plain else str(draw.choice(SHORTCUTS)),
    )
    randomise(model, draw)
    return model


def randomise(model: Any, draw: np.random.Generator) -> None:
    """Give a net weights and statistics that are nowhere trivial, all of them drawn."""
    from reszoo.checkpoints.names import lay_in, to_tensors

    plain = model.name.startswith("plain")
    tensors = to_tensors(model)
    for key, tensor in tensors.items():
        if key.endswith("running_var") or (tensor.ndim == 1 and "weight" in key):
            tensors[key] = draw.uniform(0.5, 1.5, tensor.shape).astype(np.float32)
            # As in trained nets; otherwise activations grow with depth.
            if key.endswith(("bn2.weight", "bn3.weight")) and not plain:
                tensors[key] *= 0.3
        elif tensor.ndim == 1:
            tensors[key] = draw.normal(0, 0.2, tensor.shape).astype(np.float32)
        elif tensor.ndim > 1:
            # As `reszoo.build` draws them, by fan-out, but by our seed.
            spread = np.sqrt(2 * tensor.shape[1] / tensor.size)
            if key == "fc.weight":
                # From undecided to sure of itself.
                spread = draw.uniform(1, 5) / np.sqrt(3 * tensor.shape[1])
            tensors[key] = draw.normal(0, spread, tensor.shape).astype(np.float32)
    lay_in(model, tensors, "random numbers")


def calibration(size: int, draw: np.random.Generator) -> Any:
    """Make distinct images with coarse and fine structure."""
    from reszoo_export.quantization.calibration import LEAST, Calibration

    coarse = draw.integers(0, 256, (LEAST, -(-size // 8), -(-size // 8), 3))
    wide = coarse.repeat(8, axis=1).repeat(8, axis=2)[:, :size, :size]
    fine = draw.integers(-40, 41, wide.shape)
    return Calibration(np.clip(wide + fine, 0, 255).astype(np.uint8))


def alarms(number: int, seed: int, folder: Path) -> dict[str, Any]:
    """Write one good file and return what verification says of it."""
    from reszoo_export.formats import FORMATS
    from reszoo_export.original import original_answers
    from reszoo_export.serving import make_serving
    from reszoo_export.verification.judging import judge
    from reszoo_export.verification.reference import Reference, make_reference

    draw = np.random.default_rng((seed, number))
    row = list(FORMATS.values())[number % len(FORMATS)]
    model = random_net(draw)
    serving = make_serving(model)
    answer, size = (
        original_answers(model, serving),
        serving.card.preprocessing.eval_size,
    )
    made_up = make_reference(answer, serving.card, None)
    # The model is right about them by definition: no file may be much less so.
    real = calibration(size, draw).images
    answers = answer(real)
    reference = Reference(
        np.concatenate([real, made_up.images]),
        np.concatenate([answers, made_up.answers]),
        answers.argmax(axis=-1),
        made_up.synthetic,
    )
    path = folder / row.file
    images = calibration(size, draw)
    row.write(serving, path, images if row.calibrated else None)
    found = judge(row, path, reference, serving.options, serving.card).verification
    return {
        "net": model.name,
        "format": row.name,
        "max_difference": found.max_difference,
        "problems": found.problems,
    }


def main() -> int:
    """Count the alarms."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--nets", type=int, default=100)
    parser.add_argument("--first", type=int, default=0, help="to go on from")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    results = []
    for number in range(given.first, given.first + given.nets):
        started = time.perf_counter()
        with tempfile.TemporaryDirectory() as folder:
            found = alarms(number, given.seed, Path(folder))
        results.append(found)
        seconds = time.perf_counter() - started
        told = "; ".join(found["problems"]) or f"{found['max_difference']:.1e}"
        net, format_ = found["net"], found["format"]
        line = f"{number:4}  {net:9} {format_:15} {seconds:5.1f} s  {told}"
        print(line, flush=True)
    false = sum(bool(each["problems"]) for each in results)
    print(f"{false} false alarms over {len(results)} good exports")
    if given.json:
        given.json.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    return int(false > 0)


if __name__ == "__main__":
    sys.exit(main())
