"""What does a SavedModel cost? reszoo's and the one of Keras' `Model.export`.

Run: python benchmarks/saved_model.py [--json FILE]

ResNet-50, random weights, one image per call. Each process loads a file with
`tf.saved_model.load`, answers once, and then again and again. Time and memory of the
first answer count from the start of the process, with the import of TensorFlow.
"""

import sys
import tempfile
from pathlib import Path
from typing import Any

import harness
import numpy as np
from harness import Contender, Target

VARIANT, SIDE, WARM_UP, SAMPLES = "resnet50", 224, 3, 40
OURS, KERAS = "reszoo", "Model.export"
FOLDERS = {OURS: "reszoo/1", KERAS: "keras"}
TARGETS = (Target(OURS, KERAS, 1.0),)


def make_files(folder: Path) -> None:
    """Write the model both ways."""
    import reszoo
    from reszoo_export.saved_model import writer
    from reszoo_export.serving import make_serving

    model = reszoo.build(VARIANT)
    writer.write(make_serving(model), folder / "reszoo")
    model.export(str(folder / FOLDERS[KERAS]), verbose=False)


def answer(folder: Path) -> None:
    """Load one file, answer, and print what it took."""
    import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(harness.THREADS)
    loaded = tf.saved_model.load(str(folder))
    signature = loaded.signatures["serving_default"]
    [(name, spec)] = signature.structured_input_signature[1].items()
    image = tf.constant(np.zeros((1, SIDE, SIDE, 3)), spec.dtype)

    def step() -> Any:
        return signature(**{name: image})

    step()
    seconds = harness.seconds_since_start()
    peak = harness.memory("VmHWM") / 2**20
    run = harness.sampled(step, items=1, warm_up=WARM_UP, samples=SAMPLES)
    versions = harness.versions("tensorflow", "keras")
    first = {"first_answer_seconds": seconds, "first_answer_peak_megabytes": peak}
    harness.emit(run, **first, versions=versions)


def compare(root: Path, given: Any) -> None:
    """Make the files, measure, report."""
    make_files(root)
    entrants = [
        Contender(name, (sys.executable, __file__, "--process", str(root / folder)))
        for name, folder in FOLDERS.items()
    ]
    runs = harness.measure(entrants, given.rounds)
    results = harness.summary(entrants, runs, TARGETS)
    for each, figures in results["contenders"].items():
        print(
            f"{each}: first answer after {figures['first_answer_seconds']:.1f} s, "
            f"peak {figures['first_answer_peak_megabytes']:,.0f} MB"
        )
    harness.report(results, given.json)


def main() -> None:
    """Compare the two files."""
    given = harness.parser(__doc__ or "", rounds=4).parse_args()
    if given.process:
        answer(Path(given.process[0]))
    else:
        with tempfile.TemporaryDirectory() as folder:
            compare(Path(folder), given)


if __name__ == "__main__":
    main()
