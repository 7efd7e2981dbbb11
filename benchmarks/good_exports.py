"""Does verification cry wolf? Good exports of random nets, counted.

Run: python benchmarks/good_exports.py [--nets 100] [--first 0] [--seed 0] [--json FILE]

Each net has random weights, and a random variant, shortcut, size and number of classes,
and tells pictures apart as random_nets.py has it; each becomes one file, format after
format, which is opened in its own runtime and judged as `reszoo.export` judges it. A
file is good by construction, so every complaint is a false alarm. Exits 1 if there was
one.
"""

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from random_nets import (
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

NETS = ("resnet18", "resnet20", "resnet32", "resnet50", "resnet56", "plain20")
# With projections all along, nothing is passed on as it is, and random weights of many
# layers give all images the same answer but for rounding: these stay shallow.
SHORTCUTS = ("identity", "projection", "projection-all")
SHALLOW = ("resnet18", "resnet20")
SIZES, CLASSES = (32, 40, 64), (2, 10, 100, 1000)
# Pictures to choose those from by which to judge, and their colours: blue, green, red
# and white, which even a plain net keeps apart.
CANDIDATES, LOOKS = 240, (1, 2, 4, 7)


def random_net(draw: np.random.Generator) -> Any:
    """Build a net of any kind, whose weights and statistics are nowhere trivial."""
    import reszoo

    name, size = str(draw.choice(NETS)), int(draw.choice(SIZES))
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
    """Let a net tell pictures apart.

    Returns:
        Those to judge by, about which it is least undecided, and those to calibrate
        with: uint8 `(LEAST, size, size, 3)` each.
    """
    from reszoo_export.quantization.ranges import LEAST

    strengths = draw.uniform(2, STRENGTHS, (len(COLOURS), len(STRENGTHS)))
    answers = np.arange(CANDIDATES) % min(len(LOOKS), model.output_shape[-1])
    looks = np.take(LOOKS, answers)
    images = noise(looks, size, strengths, draw)
    classify(model, images, answers, draw)
    lead = leads(model, images, answers)
    chosen = np.argsort(-lead)[:LEAST]
    sharpen(model, LEAD / np.median(lead[chosen]))
    return images[chosen], noise(looks[:LEAST], size, strengths, draw)


def alarms(number: int, seed: int, folder: Path) -> dict[str, Any]:
    """Write one good file and return what verification says of it."""
    import reszoo
    from reszoo_export.formats import FORMATS
    from reszoo_export.keras_models.source import source_answers
    from reszoo_export.quantization.ranges import Calibration
    from reszoo_export.serving import make_serving
    from reszoo_export.verification.reference import Reference, make_reference
    from reszoo_export.verification.verify import judge

    draw = np.random.default_rng((seed, number))
    row = list(FORMATS.values())[number % len(FORMATS)]
    model = random_net(draw)
    real, images = decided(model, reszoo.card(model).preprocessing.eval_size, draw)
    serving = make_serving(model)
    answer = source_answers(model, serving)
    made_up = make_reference(answer, serving.card, None)
    # The model is right about them by definition: no file may be much less so.
    answers = answer(real)
    reference = Reference(
        np.concatenate([real, made_up.images]),
        np.concatenate([answers, made_up.answers]),
        answers.argmax(axis=-1),
        made_up.synthetic,
    )
    path = folder / row.file
    row.write(serving, path, Calibration(images) if row.calibrated else None)
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
