"""Calibration, "unknown" and class activation maps of the bundled CIFAR-10 models.

    python benchmarks/confidence.py DATA
    python benchmarks/confidence.py DATA --picture    # only draws docs/confidence.png

DATA has `train` and `test` folders of CIFAR-10 as JPEGs. A temperature is fitted on one
half of the test images and measured on the other half, in the model and in int8 files;
nothing of it is stored. Unknown images are scikit-learn's digits, crops of its two
photos, smooth random textures and noise, all of 32 x 32 pixels. Maps are of 3 x 3 grids
of test images, in a model of 96 x 96 pixels: is the maximum in the cell of its class?
"""

import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits, load_sample_images
from sklearn.metrics import roc_auc_score

import reszoo
from reszoo.confidence import fit_temperature, keeping_threshold
from reszoo.data.sources import open_source
from reszoo.metrics import (
    calibration_bins,
    calibration_error,
    prepared_batches,
    softmax,
    tempered,
)
from reszoo.report.page import BLUE, INK, VERMILLION, png
from reszoo.zoo import set_card
from reszoo_export.formats import FORMATS
from reszoo_export.quantization.ranges import draw_calibration
from reszoo_export.runtimes import in_batches, open_runtime
from reszoo_export.serving import make_serving

PICTURE = Path(__file__).parents[1] / "docs/confidence.png"
MODELS = ("resnet20", "resnet32")
GRIDS = 200


def unknown_images() -> dict[str, Any]:
    """Return uint8 `(n, 32, 32, 3)` by name."""
    draw, made = np.random.default_rng(0), []
    digits = [
        Image.fromarray((15.9 * x).astype(np.uint8)) for x in load_digits().images
    ]
    crops = []
    for photo in load_sample_images().images:
        small = np.array(Image.fromarray(photo).resize((320, 213)))
        corners = [(y, x) for y in range(0, 181, 16) for x in range(0, 288, 16)]
        crops += [small[y : y + 32, x : x + 32] for y, x in corners]
    for _ in range(1000):
        sides = draw.integers(2, 17, 2)
        made.append(Image.fromarray(draw.integers(0, 256, (*sides, 3), np.uint8)))
    return {
        "digits": np.stack([np.array(each) for each in digits]),
        "photos": np.stack(crops),
        "textures": np.stack([np.array(x.resize((32, 32), 3)) for x in made]),
        "noise": draw.integers(0, 256, (1000, 32, 32, 3), np.uint8),
    }


def error(probabilities: Any, targets: Any) -> float:
    """Return the expected calibration error."""
    return calibration_error(calibration_bins(targets, probabilities))


def draw_reliability(data: str) -> bytes:
    """Return a PNG: accuracy by predicted probability, before and after."""
    examples = open_source(data).examples("test")
    fitted, rest = np.split(np.random.default_rng(0).permutation(len(examples)), 2)
    targets, panels = examples.targets, {}
    for name in MODELS:
        model = reszoo.build(name, weights="cifar10")
        record, runtime = reszoo.card(model).preprocessing, open_runtime(model)
        pixels = np.concatenate([*prepared_batches(examples, record, 100)])
        logits = in_batches(lambda part, r=runtime: r.read(part, "logits"), pixels)
        temperature = fit_temperature(logits[fitted], targets[fitted])
        panels[name] = [
            calibration_bins(targets[rest], softmax(logits[rest] / divisor))
            for divisor in (1, temperature)
        ]

    def draw(figure: Any) -> None:
        for axes, (name, pair) in zip(
            figure.subplots(1, 2), panels.items(), strict=True
        ):
            axes.plot([0, 100], [0, 100], ":", color=INK)
            for bins, word, colour in zip(
                pair, ("before", "after"), (VERMILLION, BLUE), strict=True
            ):
                filled = [each for each in bins if each.images]
                points = [(100 * b.confidence, 100 * b.accuracy) for b in filled]
                label = f"{word}: ECE {calibration_error(bins):.2%}"
                axes.plot(*zip(*points, strict=True), "o-", color=colour, label=label)
            axes.set(title=name, xlabel="mean predicted probability (%)")
            axes.set(ylabel="accuracy (%)", xlim=(0, 102), ylim=(0, 105))
            axes.legend()

    return png(draw, 9, 4)


def main(data: str) -> None:
    """Print all figures."""
    source, others = open_source(data), unknown_images()
    examples = source.examples("test")
    order = np.random.default_rng(0).permutation(len(examples))
    fitted, rest = np.split(order, 2)
    targets = examples.targets
    for name in MODELS:
        model = reszoo.build(name, weights="cifar10")
        card = reszoo.card(model)
        pixels = np.concatenate([*prepared_batches(examples, card.preprocessing, 100)])
        runtime = open_runtime(model)

        def logits_of(images: Any, runtime: Any = runtime) -> Any:
            return in_batches(lambda part: runtime.read(part, "logits"), images)

        logits = logits_of(pixels)
        temperature = fit_temperature(logits[fitted], targets[fitted])
        own = softmax(logits)
        after = softmax(logits / temperature)
        print(
            f"{name}: temperature {temperature:.4f}, accuracy {score(own, targets):.2%}"
        )
        print_errors("Keras", own[rest], after[rest], targets[rest])
        confidence = reszoo.Confidence(
            temperature=temperature, keep=0.95, min_logit=0.0, min_probability=0.0,
            error_before=0.0, error_after=0.0, images=len(fitted), data="test half",
            data_sha256="",
        )  # fmt: skip
        calibration = draw_calibration(source, card, pixels[:0])
        for kind in ("tflite-int8", "onnx-int8"):
            plain = file_outputs(model, kind, calibration, pixels)
            set_card(model, replace(card, confidence=confidence))
            folded = file_outputs(model, kind, replace(calibration, choices={}), pixels)
            set_card(model, card)
            undone = tempered(folded, 1 / temperature)
            print_errors(kind, undone[rest], folded[rest], targets[rest])
            same = (plain.argmax(1) == folded.argmax(1)).mean()
            print(f"    same top-1 with and without the temperature: {same:.2%}")
        scores = {
            "largest logit": lambda z: z.max(1),
            "energy": lambda z: np.logaddexp.reduce(z, 1),
            "largest probability": lambda z, t=temperature: softmax(z / t).max(1),
        }
        for title, of in scores.items():
            known = of(logits[rest])
            least = keeping_threshold(of(logits[fitted]), 0.95)
            found = {n: of(logits_of(images)) for n, images in others.items()}
            cells = []
            for n, s in found.items():
                truth = np.repeat([1, 0], [len(known), len(s)])
                area = roc_auc_score(truth, np.concatenate([known, s]))
                cells.append(f"{n} {area:.3f} ({(s >= least).mean():.0%})")
            kept = f"keeps {(known >= least).mean():.1%}"
            print(f"  {title}: {kept}; AUROC (unknown kept):", *cells)
        share = located(model, pixels, own, targets)
        print(f"  maximum of the map in the right cell: {share:.1%}")


def score(probabilities: Any, targets: Any) -> float:
    """Return the top-1 accuracy."""
    return float((probabilities.argmax(1) == targets).mean())


def print_errors(kind: str, before: Any, after: Any, targets: Any) -> None:
    """Print the expected calibration error before and after."""
    same = (before.argmax(1) == after.argmax(1)).mean()
    print(
        f"  {kind}: ECE {error(before, targets):.2%} -> {error(after, targets):.2%}, "
        f"same top-1 {same:.2%}"
    )


def file_outputs(model: Any, kind: str, calibration: Any, pixels: Any) -> Any:
    """Return the probabilities of an exported file."""
    row = FORMATS[kind]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / row.file
        row.write(make_serving(model), path, calibration)
        return in_batches(open_runtime(path).run, pixels)


def located(model: Any, pixels: Any, own: Any, targets: Any) -> float:
    """Return the share of grids in which the maximum of a map is in the right cell.

    The image in one cell is of a class that none of the other eight has.
    """
    large = reszoo.build(model.name, weights="cifar10", input_shape=(96, 96, 3))
    draw, hits = np.random.default_rng(1), 0
    right = np.flatnonzero(own.argmax(1) == targets)
    runtime = open_runtime(large)
    for _ in range(GRIDS):
        chosen = draw.choice(right)
        others = draw.choice(np.flatnonzero(targets != targets[chosen]), 9)
        cell = draw.integers(9)
        others[cell] = chosen
        rows = [np.concatenate(pixels[others[i : i + 3]], axis=1) for i in (0, 3, 6)]
        maps = runtime.read(np.concatenate(rows)[None], "cam")[0, ..., targets[chosen]]
        row, column = np.unravel_index(maps.argmax(), maps.shape)
        size = maps.shape[0] / 3
        hits += (int(row / size), int(column / size)) == divmod(int(cell), 3)
    return hits / GRIDS


if __name__ == "__main__":
    if sys.argv[2:] == ["--picture"]:
        PICTURE.write_bytes(draw_reliability(sys.argv[1]))
    else:
        main(sys.argv[1])
