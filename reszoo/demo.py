"""The whole way in one go: train, export, verify, measure."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import reszoo
from reszoo.progress import say

if TYPE_CHECKING:
    from reszoo_export.manifest import Manifest

FORMATS = ("saved_model", "tflite", "tflite-int8", "onnx", "onnx-int8")
RUN = Path("runs/demo")
# Small batches, for there are few images: some 1,000 steps in a minute or two.
_CHANGES: dict[str, Any] = {
    "epochs": 25,
    "batch_size": 32,
    "learning_rate": 0.05,
    "weight_decay": 1e-3,
}


def run_demo(output: Path, run: Path = RUN) -> "Manifest":
    """Train ResNet-20 on handwritten digits and export it in every format.

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
    say("1/3  Train ResNet-20 on scikit-learn's scans of handwritten digits.")
    result = reszoo.train("resnet20", "digits", output=run, overwrite=True, **_CHANGES)
    metrics = reszoo.evaluate(result.model, "digits")
    say(f"2/3  Evaluate on {metrics.images} digits that training never saw:")
    say(f"     top-1 {metrics.top1:.2%}, top-5 {metrics.top5:.2%}")
    say("3/3  Export to SavedModel, TFLite and ONNX; run each file and compare.")
    return reszoo.export(
        result.model, output, formats=FORMATS, calibration="digits", overwrite=True
    )
