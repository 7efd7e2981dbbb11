"""Read what a checkpoint tells about itself."""

from collections import Counter
from pathlib import Path

from reszoo.checkpoints import reading, safetensors
from reszoo_export.inspection.description import NO_CARD, Contents

# Statistics of batch normalisation are measured, not learned.
_MEASURED = ("running_mean", "running_var", "num_batches_tracked")


def read(path: Path) -> Contents:
    """Read a file; a `.safetensors` may hold any net.

    Raises:
        CheckpointError: It is no checkpoint that reszoo reads, or damaged.
    """
    if path.suffix == safetensors.SUFFIX:
        tensors, card = safetensors.read(path)
    else:
        found = reading.read(path)
        tensors, card = found.tensors, found.card
    learned = [name for name in tensors if not name.endswith(_MEASURED)]
    kinds: Counter[str] = Counter()
    for name in learned:
        kinds[tensors[name].dtype.name] += tensors[name].size
    return Contents(
        kind="checkpoint",
        precision=kinds.most_common(1)[0][0] if kinds else "float32",
        parameters=kinds.total(),
        card=card,
        note="" if card else NO_CARD,
        details={"tensors": str(len(tensors))},
    )
