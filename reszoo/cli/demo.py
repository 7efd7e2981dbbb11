"""`reszoo demo`: fine-tune, compare, export, verify and measure."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import reszoo
from reszoo.console import say
from reszoo.files import free_folder

if TYPE_CHECKING:
    from reszoo_export.manifest import Manifest

FORMATS = ("saved_model", "tflite", "tflite-int8", "onnx", "onnx-int8")
RUN = Path("runs/demo")
MODEL, WEIGHTS, DATA = "resnet20", "cifar10", "digits"
# One recipe for both models, so that they differ only in their initial weights. Small
# batches, because there are few images: three epochs are about a hundred steps.
_CHANGES: dict[str, Any] = {
    "recipe": "cifar",
    "epochs": 3,
    "batch_size": 32,
    "learning_rate": 0.05,
    "weight_decay": 1e-3,
}


def run_demo(output: Path, run: Path = RUN) -> "Manifest":
    """Fine-tune the bundled ResNet-20 on handwritten digits and export the result.

    The same model is also trained from scratch, with the same recipe and steps, to show
    what the pretrained weights add. Earlier demos in the folders of the export and of
    the run are replaced; a UsageError if `output` contains something other than an
    export.
    """
    from reszoo_export.manifest import named_entries

    free_folder(output, kind="an export", named=named_entries, overwrite=True)
    say("1/4  Fine-tune ResNet-20, pretrained on CIFAR-10, on handwritten digits.")
    tuned = reszoo.train(
        MODEL, DATA, weights=WEIGHTS, output=run, overwrite=True, **_CHANGES
    )
    say("2/4  Train the same model from scratch with the same recipe.")
    _report_gain(tuned.model, reszoo.train(MODEL, DATA, **_CHANGES).model)
    say("4/4  Export to SavedModel, TFLite and ONNX and verify each file.")
    return reszoo.export(
        tuned.model, output, formats=FORMATS, calibration=DATA, overwrite=True
    )


def _report_gain(tuned: Any, scratch: Any) -> None:
    after, without = reszoo.evaluate(tuned, DATA), reszoo.evaluate(scratch, DATA)
    say(f"3/4  Evaluate both on {after.images} held-out digits:")
    say(f"     fine-tuned    top-1 {after.top1:.2%}")
    say(f"     from scratch  top-1 {without.top1:.2%}")
    gain = 100 * (after.top1 - without.top1)
    say(f"     the pretrained weights add {gain:+.2f} points")
