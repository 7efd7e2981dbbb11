"""What a data set is known by, so that another one is noticed."""

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from reszoo.data.examples import Examples
from reszoo.errors import DataError

if TYPE_CHECKING:
    from reszoo.data.sources import Source


def fingerprint(source: "Source") -> dict[str, Any]:
    """Return what has to be equal for a run to go on with a data set.

    Of files the size counts, not the content, and the name below the data's folder,
    so that the folder may move. Of arrays every byte counts. Nothing is decoded.

    Returns:
        JSON: "classes", a list of names, and for each split, but "all", the number of
        "images" and a "sha256" over their names, sizes and labels in order.

    Raises:
        DataError: A file has gone; names it.
    """
    splits = {
        split: {"images": len(examples), "sha256": _digest(examples, source.root)}
        for split, examples in source.splits.items()
        # It holds what the other splits hold.
        if split != "all"
    }
    return {"classes": list(source.class_names), **splits}


def _digest(examples: Examples, root: str | None) -> str:
    digest = hashlib.sha256()
    digest.update(examples.labels.astype("<i8").tobytes())
    digest.update(bytes([examples.recover]))
    for part in _contents(examples, root):
        # A length before each part keeps "ab", "c" apart from "a", "bc".
        digest.update(len(part).to_bytes(8, "little"))
        digest.update(part)
    return digest.hexdigest()


def _contents(examples: Examples, root: str | None) -> Iterator[bytes]:
    if examples.images is not None:
        yield str(examples.images.shape).encode()
        for image in examples.images:
            yield image.tobytes()
    elif examples.records is not None:
        records = examples.records
        yield "\n".join(Path(file).name for file in records.files).encode()
        for column in (records.shards, records.offsets, records.lengths):
            yield column.astype("<i8").tobytes()
    else:
        for path in examples.paths or ():
            yield os.fsencode(os.path.relpath(path, root))
            yield _size(path).to_bytes(8, "little")


def _size(path: str) -> int:
    try:
        return Path(path).stat().st_size
    except OSError as error:
        raise DataError(f"There is no image {path}.") from error
