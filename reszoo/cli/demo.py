"""`reszoo demo`: fine-tune, compare, export, verify and measure."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import reszoo
from reszoo.console import say

if TYPE_CHECKING:
    from reszoo_export.manifest import Manifest


FORMATS = ("saved_model", "tflite", "tflite-int8", "onnx", "onnx-int8")
RUN = Path("runs/demo")
NET, WEIGHTS, DATA = "resnet20", "cifar10", "digits"
# One recipe for both nets, so that they differ in their first weights alone. Small
# batches, for there are few images: three epochs are some hundred steps.
_CHANGES: dict[str, Any] = {
    "recipe": "cifar",
    "epochs": 3,
    "batch_size": 32,
    "learning_rate": 0.05,
    "weight_decay": 1e-3,
}


def run_demo(output: Path, run: Path = RUN) -> "Manifest":
    """Fine-tune the bundled ResNet-20 on handwritten digits and export the result.

    The same net is trained from scratch as well, with the same recipe and steps, to
    tell what the first weights gained.

    Args:
        output: Folder for the exported files; an earlier demo is replaced.
        run: Folder for checkpoints and curves; an earlier demo is replaced.

    Returns:
        The export's manifest.

    Raises:
        UsageError: The output folder holds something else than an export.
    """
    from reszoo_export.export import free_folder

    free_folder(output, overwrite=True)
    say("1/4  Fine-tune ResNet-20, trained on photos (CIFAR-10), on scans of digits.")
    tuned = reszoo.train(
        NET, DATA, weights=WEIGHTS, output=run, overwrite=True, **_CHANGES
    )
    say("2/4  Train the same net from scratch, as long and with the same recipe.")
    scratch = reszoo.train(NET, DATA, **_CHANGES)
    _tell_gain(tuned.model, scratch.model)
    say("4/4  Export to SavedModel, TFLite and ONNX; run each file and compare.")
    return reszoo.export(
        tuned.model, output, formats=FORMATS, calibration=DATA, overwrite=True
    )


def _tell_gain(tuned: Any, scratch: Any) -> None:
    after, without = reszoo.evaluate(tuned, DATA), reszoo.evaluate(scratch, DATA)
    say(f"3/4  Evaluate on {after.images} digits that training never saw:")
    say(f"     fine-tuned    top-1 {after.top1:.2%}")
    say(f"     from scratch  top-1 {without.top1:.2%}")
    gain = 100 * (after.top1 - without.top1)
    say(f"     the weights learned on photos gained {gain:+.2f} points")
