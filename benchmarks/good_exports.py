"""How often does verification refuse good exports of random models?

Run: python benchmarks/good_exports.py [--models 100] [--seed 0] [--json FILE]

Each model has random weights, and a random variant, shortcut, size and number of
classes, and tells images apart as random_models.py describes. Each is exported to one
format, the formats in turn, and the file is opened in its own runtime and checked as
`reszoo.export` checks it. Every file is good by construction, so every problem that is
reported is a false alarm. Exits 1 if there is one. Models that FILE has are not made
again: runs add up in it, as they do in `make stress ONLY=good_exports`.
"""

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from random_models import (
    COLOURS,
    LEAD,
    STRENGTHS,
    calm,
    classify,
    leads,
    noise,
    randomise,
    sharpen,
)

VARIANTS = ("resnet18", "resnet20", "resnet32", "resnet50", "resnet56", "plain20")
# With projections all along, nothing is passed on as it is, and random weights of many
# layers give all images the same answer but for rounding: these stay shallow.
SHORTCUTS = ("identity", "projection", "projection-all")
SHALLOW = ("resnet18", "resnet20")
SIZES, CLASSES = (32, 40, 64), (2, 10, 100, 1000)
# Images to choose those from by which to judge, and their colours: blue, green, red
# and white, which even a plain network keeps apart.
CANDIDATES, LOOKS = 240, (1, 2, 4, 7)


def random_model(draw: np.random.Generator) -> Any:
    """Build a model of any kind, whose weights and statistics are nowhere trivial."""
    import reszoo

    name, size = str(draw.choice(VARIANTS)), int(draw.choice(SIZES))
    plain = name.startswith("plain")
    possible = SHORTCUTS if name in SHALLOW else SHORTCUTS[:2]
    model = reszoo.build(
        name,
        classes=int(draw.choice(CLASSES)),
        input_shape=(size, size, 3),
        shortcut=None if plain else str(draw.choice(possible)),
    )
    randomise(model, draw)
    if not plain:
        calm(model)
    return model


def decided(model: Any, size: int, draw: np.random.Generator) -> tuple[Any, Any]:
    """Let a model tell images apart.

    Returns:
        Those to judge by, about which it is least undecided, and those to calibrate
        with: uint8 `(MIN_IMAGES, size, size, 3)` each.
    """
    from reszoo_export.quantization.ranges import MIN_IMAGES

    strengths = draw.uniform(2, STRENGTHS, (len(COLOURS), len(STRENGTHS)))
    answers = np.arange(CANDIDATES) % min(len(LOOKS), model.output_shape[-1])
    looks = np.take(LOOKS, answers)
    images = noise(looks, size, strengths, draw)
    classify(model, images, answers, draw)
    lead = leads(model, images, answers)
    chosen = np.argsort(-lead)[:MIN_IMAGES]
    sharpen(model, LEAD / np.median(lead[chosen]))
    return images[chosen], noise(looks[:MIN_IMAGES], size, strengths, draw)


def alarms(number: int, seed: int, folder: Path) -> dict[str, Any]:
    """Write one good file and return what verification says of it."""
    import reszoo
    from reszoo_export.formats import FORMATS
    from reszoo_export.quantization.ranges import Calibration, recorded
    from reszoo_export.serving import make_serving, source_answers
    from reszoo_export.verification.reference import Reference, make_reference
    from reszoo_export.verification.verify import verify_file

    draw = np.random.default_rng((seed, number))
    row = list(FORMATS.values())[number % len(FORMATS)]
    model = random_model(draw)
    real, images = decided(model, reszoo.card(model).preprocessing.eval_size, draw)
    serving = make_serving(model)
    answer = source_answers(model, serving)
    synthetic = make_reference(answer, serving.card, None)
    # The model is right about them by definition: no file may be much less so.
    answers = answer(real)
    reference = Reference(
        np.concatenate([real, synthetic.images]),
        np.concatenate([answers, synthetic.outputs]),
        answers.argmax(axis=-1),
        synthetic.synthetic,
    )
    path = folder / row.file
    calibration = Calibration(images) if row.calibrated else None
    row.write(serving, path, calibration)
    found = verify_file(
        row, path, reference, serving.options, serving.card,
        ranges=recorded(row, serving, calibration, reference),
    ).verification  # fmt: skip
    return {
        "model": model.name,
        "format": row.name,
        "max_difference": found.max_difference,
        "problems": found.problems,
    }


def main() -> int:
    """Count the alarms."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--models", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    from reszoo.files import write_json

    file, results = given.json, {}
    if file and file.exists():
        results = json.loads(file.read_text("utf-8"))
    names = [f"{given.seed}:{number}" for number in range(given.models)]
    for number, name in enumerate(names):
        if name in results:
            continue
        started = time.perf_counter()
        with tempfile.TemporaryDirectory() as folder:
            found = results[name] = alarms(number, given.seed, Path(folder))
        found["seconds"] = round(time.perf_counter() - started, 1)
        outcome = "; ".join(found["problems"]) or f"{found['max_difference']:.1e}"
        model, format_ = found["model"], found["format"]
        line = f"{name:>6}  {model:9} {format_:15} {found['seconds']:5} s  {outcome}"
        print(line, flush=True)
        if file:
            write_json(file, results)
    false = sum(bool(each["problems"]) for each in results.values())
    print(f"{false} false alarms over {len(results)} good exports")
    return int(false > 0)


if __name__ == "__main__":
    sys.exit(main())
