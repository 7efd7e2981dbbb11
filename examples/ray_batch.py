"""Classify images on several machines with Ray Data; the rows of `reszoo predict`.

Run: python examples/ray_batch.py MODEL INPUT... --output FOLDER [--workers 2] [--top 5]

INPUTs are what `reszoo predict` takes. FOLDER gets Parquet files with the columns of
`reszoo predict --output answers.parquet`, which `pyarrow.parquet.read_table(FOLDER)`
reads as one table; unreadable images have rows with the reason. The model, the images
and FOLDER must be at the same paths on every machine.

Without --address Ray starts on this machine. Needs `pip install 'reszoo[ray]'`.
"""

import argparse
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

import ray

from reszoo import defaults
from reszoo.data.image_paths import iterate_paths
from reszoo_export.batch import GROUP, FileClassifier, arrow_table


class Classify:
    """Classifies groups of images in one worker, which opens the model once."""

    def __init__(self, model: str, top: int) -> None:
        # A worker for each core computes more than one worker with several threads.
        self._classify = FileClassifier(model, top=top, threads=1)

    def __call__(self, groups: Any) -> Any:
        """Return the rows of a table of groups of paths, as a table."""
        rows = [
            row
            for paths in groups["paths"].to_pylist()
            for row in self._classify(paths)
        ]
        return arrow_table(rows, self._classify.columns)


def grouped(paths: Iterable[str]) -> Iterator[dict[str, list[str]]]:
    """Yield groups of as many paths as `reszoo predict` computes together."""
    remaining = iter(paths)
    while group := list(islice(remaining, GROUP)):
        yield {"paths": group}


def main() -> None:
    """Classify the inputs and write Parquet files."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model")
    parser.add_argument("inputs", nargs="+", metavar="INPUT")
    parser.add_argument("--output", required=True, metavar="FOLDER")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--top", type=int, default=defaults.TOP)
    parser.add_argument("--address", help="of a running Ray cluster")
    options = parser.parse_args()
    if options.address:
        ray.init(address=options.address)
    else:
        # One core more than the workers hold: for the tasks that write their rows.
        ray.init(num_cpus=options.workers + 1)
    # The rows stay in the order of the inputs.
    ray.data.DataContext.get_current().execution_options.preserve_order = True
    groups = ray.data.from_items(list(grouped(iterate_paths(options.inputs))))
    rows = groups.map_batches(
        Classify,
        fn_constructor_args=(options.model, options.top),
        batch_size=1,
        batch_format="pyarrow",
        compute=ray.data.ActorPoolStrategy(size=options.workers),
    )
    rows.write_parquet(options.output)


if __name__ == "__main__":
    main()
