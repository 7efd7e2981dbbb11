"""How much do int8 files lose? reszoo and the quantizers that it could have called.

Run: python benchmarks/int8.py CHECKPOINT DATA [--variant NAME] [--peers PYTHON]
     [--mean R G B --std R G B] [--json FILE]

All of them quantize the same model with the same calibration images of the training
split: reszoo's two files, ONNX Runtime's `quantize_static`, TensorFlow's converter and,
where `--peers` names a Python that has them, LiteRT's quantizer and OpenVINO's NNCF,
each with the call that is best on other images of the training split (int8_peers.py).
Each file classifies every image of the test split in its own runtime.

The target: agreement with the model's top-1 is not below that of the best of the others
beyond chance (two standard errors of the difference on the same images), and the mean
KL divergence from the model's probabilities is at most half of the least of theirs.
"""

import argparse
import json
import subprocess
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import harness
import int8_peers
import numpy as np
from int8_peers import QUANTIZERS, divergence, file_probabilities

# Those that torch_cifar.py trains with.
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
MOST_DIVERGENCE, ERRORS = 0.5, 2.0
OURS = ("reszoo tflite-int8", "reszoo onnx-int8", "onnx-int8, full weights")


def ours(serving: Any, calibration: Any, folder: Path) -> dict[str, Path]:
    """Write reszoo's files.

    A third one tells what it costs that the weights of `onnx-int8` do not overflow on
    processors without VNNI: its weights have the whole range of int8.
    """
    from reszoo_export.formats import FORMATS
    from reszoo_export.quantization import grids, ranges

    row = FORMATS["onnx-int8"]
    paths = [folder / FORMATS["tflite-int8"].file, folder / row.file, folder / "b.onnx"]
    FORMATS["tflite-int8"].write(serving, paths[0], calibration)
    row.write(serving, paths[1], calibration)
    limited, ranges.narrow_steps = ranges.narrow_steps, grids.full_steps
    row.write(serving, paths[2], replace(calibration, choices={}))
    ranges.narrow_steps = limited
    return dict(zip(OURS, paths, strict=True))


def quantize_static_file(source: Path, path: Path, calibration: Any, call: str) -> None:
    """Quantize one of reszoo's float32 ONNX files with `quantize_static`.

    Args:
        source: A file of format `onnx`.
        path: The file to write.
        calibration: Whose images set the ranges.
        call: "defaults" or "minmax".
    """
    quantizer = QUANTIZERS[f"quantize_static, {call}"]
    quantizer.quantize(source, calibration.images, quantizer.calls[call], path)


def with_tensorflow(serving: Any, calibration: Any, folder: Path) -> Path:
    """Write a file with the converter's own full-integer recipe."""
    import tensorflow as tf

    from reszoo_export.tflite.writer import convert

    images = [{"image": image} for image in int8_peers.floats(calibration.images)]
    content = convert(
        serving,
        [tf.lite.OpsSet.TFLITE_BUILTINS_INT8],
        optimizations=[tf.lite.Optimize.DEFAULT],
        representative_dataset=lambda: iter(images),
    )
    path = folder / "converter.tflite"
    path.write_bytes(content)
    return path


def quantized(name: str, folder: Path, peers: str | None) -> Any:
    """Return what a quantizer's best call gives; None where its library is missing."""
    if not QUANTIZERS[name].peers:
        return int8_peers.quantized(name, folder)
    if not peers:
        return None
    words = [peers, int8_peers.__file__, name, str(folder)]
    done = subprocess.run(words, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{name} failed:\n{done.stderr}")
    report = json.loads((folder / "result.json").read_text())
    return np.load(folder / "result.npz")["probabilities"], report


def measure(given: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Quantize in every way, and have every file classify all test images."""
    import reszoo
    from reszoo.data.sources import open_source
    from reszoo.metrics import prepared_batches, probabilities
    from reszoo.zoo import set_card
    from reszoo_export.formats import FORMATS
    from reszoo_export.quantization.ranges import draw_calibration
    from reszoo_export.serving import make_serving

    source = open_source(given.data)
    model = reszoo.load(given.checkpoint, given.variant)
    card = reszoo.card(model)
    if card.labels is None:  # A torch file has weights only.
        record = replace(card.preprocessing, mean=given.mean, std=given.std)
        set_card(model, replace(card, labels=source.labels, preprocessing=record))
    serving = make_serving(model)
    preprocessing, examples = serving.card.preprocessing, source.examples()
    images = np.concatenate(list(prepared_batches(examples, preprocessing, 256)))
    calibration = draw_calibration(source, serving.card, images)
    exact = probabilities(model, preprocessing, images)
    for name in ("onnx", "tflite"):
        FORMATS[name].write(serving, folder / f"float.{name}", None)
    np.savez(
        folder / int8_peers.IMAGES,
        calibration=calibration.images,
        trials=calibration.trial,
        trial_probabilities=probabilities(model, preprocessing, calibration.trial),
        images=images,
    )
    paths = ours(serving, calibration, folder)
    paths["TFLite converter"] = with_tensorflow(serving, calibration, folder)
    found: dict[str, Any] = {
        name: (file_probabilities(path, images), {"bytes": path.stat().st_size})
        for name, path in paths.items()
    }
    for name in QUANTIZERS:
        print(name, flush=True)
        found[name] = quantized(name, folder, given.peers)
    found = {name: each for name, each in found.items() if each is not None}
    choice = next(iter(calibration.choices.values()))
    return {
        "machine": harness.machine(),
        "model": serving.card.architecture.name,
        "images": len(images),
        "float_accuracy": float((exact.argmax(1) == examples.targets).mean()),
        "choice": choice.to_json(),
        "files": {
            name: {**rated(exact, shown, examples.targets), **report}
            for name, (shown, report) in found.items()
        },
        "verdicts": {
            name: verdict(
                exact, {each: shown for each, (shown, _) in found.items()}, name
            )
            for name in OURS
        },
    }


def rated(exact: Any, found: Any, targets: Any) -> dict[str, float]:
    """Compare probabilities `(n, classes)` with the model's and with the targets."""
    top1 = found.argmax(1)
    return {
        "accuracy": float((top1 == targets).mean()),
        "agreement": float((top1 == exact.argmax(1)).mean()),
        "kl_divergence": divergence(exact, found),
    }


def verdict(exact: Any, found: dict[str, Any], name: str) -> dict[str, Any]:
    """Compare one of our files with the best of the others."""
    others = {other: shown for other, shown in found.items() if other not in OURS}
    agrees = {each: found[each].argmax(1) == exact.argmax(1) for each in found}
    best = max(others, key=lambda other: float(agrees[other].mean()))
    # Only images on which the two differ tell them apart (McNemar 1947).
    gained = int((agrees[name] & ~agrees[best]).sum())
    lost = int((~agrees[name] & agrees[best]).sum())
    error = float(np.sqrt(max(1, gained + lost)))
    least = min(others, key=lambda other: divergence(exact, others[other]))
    ratio = divergence(exact, found[name]) / divergence(exact, found[least])
    return {
        "best_agreement": best,
        "gained": gained,
        "lost": lost,
        "agreement_met": gained - lost >= -ERRORS * error,
        "least_divergence": least,
        "divergence_ratio": ratio,
        "divergence_met": ratio <= MOST_DIVERGENCE,
    }


def show(results: dict[str, Any]) -> None:
    """Print what was measured."""
    print(f"{results['model']}, {results['images']:,} images: ", end="")
    print(f"float32 accuracy {results['float_accuracy']:.2%}")
    print(f"\n{'':28}{'accuracy':>9}{'agreement':>11}{'divergence':>12}{'bytes':>11}")
    for name, row in results["files"].items():
        print(
            f"{name:28}{row['accuracy']:9.2%}{row['agreement']:11.2%}"
            f"{row['kl_divergence']:12.5f}{row['bytes']:11,}  {row.get('call', '')}"
        )
    for name, found in results["verdicts"].items():
        words = {True: "met", False: "not met"}
        print(
            f"\n{name}: agrees on {found['gained']} images where "
            f"{found['best_agreement']} does not, and the other way round on "
            f"{found['lost']}: target {words[found['agreement_met']]}; divergence "
            f"{found['divergence_ratio']:.2f} of that of {found['least_divergence']}: "
            f"target {words[found['divergence_met']]}"
        )
    best = results["choice"]["best"]
    print(f"\nranges: within which {best['share']:.0%} of the calibration images stay")


def main() -> None:
    """Compare them."""
    made = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("checkpoint", help="of a trained model")
    made.add_argument("data", help="what it was trained on")
    made.add_argument("--variant", help="of a checkpoint of another library")
    for name, values in (("--mean", MEAN), ("--std", STD)):
        made.add_argument(name, type=float, nargs=3, default=values, help="of a .pth")
    made.add_argument("--peers", help="python of the environment with the peers")
    made.add_argument("--json", type=Path, help="file for all that was measured")
    given = made.parse_args()
    with tempfile.TemporaryDirectory() as name:
        results = measure(given, Path(name))
    show(results)
    if given.json:
        given.json.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
