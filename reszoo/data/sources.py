"""Data sources: what `data` arguments accept, and a data set's fingerprint."""

import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from numpy.typing import ArrayLike

from reszoo.data import arrays, tfds
from reszoo.data.checks import check, check_policy
from reszoo.data.examples import Examples
from reszoo.data.listing import Unreadable, list_images
from reszoo.errors import DataError, UnknownNameError, UsageError

Pair: TypeAlias = tuple[ArrayLike, ArrayLike]
Data: TypeAlias = str | os.PathLike[str] | Pair | Mapping[str, Pair]
_ACCEPTED = (
    "Data is a folder of class folders, a .csv list of images, "
    '"tfds:NAME", "digits", or NumPy arrays: (images, labels), or such pairs by split.'
)


@dataclass(frozen=True)
class Source:
    """Labelled images in splits.

    Attributes:
        name: What it was opened as, for messages and cards.
        labels: Sorted by code point; of integer targets, in the order of the
            numbers.
        splits: Examples by name: "train", "validation", "test", or "all".
        flip_safe: Whether an image flipped horizontally still belongs to its class.
            False where the labels are "0" to "9", since a flipped digit is none; for
            data sets of TensorFlow Datasets with digits or letters (MNIST, SVHN); and
            for arrays with the integer labels 0 to 9 whose images are grey. In
            colour, such arrays may be CIFAR-10 or SVHN: True.
        unreadable: Images that were left out, and why.
        root: The folder that paths in messages and fingerprints are relative to, if
            there is one.
        warnings: A line for every two splits that share images, and one for images
            in two classes; of folders and lists whose files were decoded.
    """

    name: str
    labels: tuple[str, ...]
    splits: Mapping[str, Examples]
    flip_safe: bool = True
    unreadable: tuple[Unreadable, ...] = ()
    root: str | None = None
    warnings: tuple[str, ...] = ()

    def examples(self, split: str | None = None) -> Examples:
        """Return the examples of one split.

        Args:
            split: Its name. None takes what a model should be evaluated on: "test",
                else "validation", else "train". "all" is taken only by name, as it
                includes what a model was trained on.

        Raises:
            DataError: The source has nothing to train on.
            UnknownNameError: The source has no such split.
        """
        name = split or self.judging_split
        if name == "train" and name not in self.splits:
            raise DataError(
                f"{self.name} has no train split to learn from, only "
                f"{', '.join(self.splits)}. Training needs one, as a folder train "
                "beside those, or data without splits."
            )
        if name not in self.splits:
            raise UnknownNameError("split", name, self.splits)
        return self.splits[name]

    @property
    def judging_split(self) -> str:
        """Name of the split that `examples()` returns."""
        unseen = ("test", "validation")
        return next((name for name in unseen if name in self.splits), "train")


def open_source(data: Data, *, bad_images: str | None = None) -> Source:
    """Open labelled images of any kind.

    * A folder has `class/image.jpg`, or splits of that: `train/class/image.jpg`
      with `val` (or `validation`) and perhaps `test` beside it. `val` and `test`
      without `train` can be evaluated on.
    * A `.csv` file lists images: `path,label` or `path,label,split`. Paths are
      relative to its folder.
    * `tfds:NAME`, `tfds:NAME/CONFIG:VERSION` is a data set that TensorFlow Datasets
      has prepared on this machine as ArrayRecord files.
    * Arrays are `(images, labels)`, or `{"train": (images, labels), "test": ...}`.

    Where a folder, a list or arrays have no splits, a fifth of every class becomes
    the validation split, the same fifth whenever the same data is opened.

    Args:
        data: One of those, or a name such as "digits".
        bad_images: None reads the headers of files only, and refuses a bad one.
            Otherwise every file of a folder or a list, and every image of TensorFlow
            Datasets, is decoded once before anything else: "error" names the first
            unreadable image, "skip" leaves unreadable ones out and lists them in
            `Source.unreadable`, "recover" does too but keeps truncated JPEGs.
            Images in a folder whose format is not supported (HEIC) are unreadable.

    Raises:
        DataError: There are no images, one class, or an unreadable image.
        UsageError: The data is none of these kinds.
    """
    check_policy(bad_images)
    if isinstance(data, Mapping | tuple):
        return Source("arrays", *arrays.read_arrays(data))
    if not isinstance(data, str | os.PathLike):
        raise UsageError(
            f"{_ACCEPTED} Received: {type(data).__name__}. To call fit on a data set "
            "of your own, prepare the model with reszoo.compile(model, recipe)."
        )
    name = os.fspath(data)
    of_tfds = name.startswith(tfds.PREFIX)
    if name == "digits" and not Path(name).exists():
        return Source(name, arrays.DIGITS, arrays.read_digits(), flip_safe=False)
    listing = tfds.read(name) if of_tfds else list_images(name)
    of_characters = of_tfds and tfds.is_of_characters(name)
    splits, unreadable, warnings = check(listing, bad_images)
    flip_safe = listing.labels != arrays.DIGITS and not of_characters
    name, root = (name, None) if of_tfds else (str(Path(name)), listing.root)
    return Source(name, listing.labels, splits, flip_safe, unreadable, root, warnings)


def check_classes(source: Source, labels: Sequence[str] | None, whose: str) -> None:
    """Refuse a source whose classes are not those of a model.

    Args:
        source: The images.
        labels: The model's labels in order; None if they are not recorded.
        whose: The model, for the message.

    Raises:
        DataError: The classes differ; the message lists the difference.
    """
    if labels is None or tuple(labels) == source.labels:
        return
    ours, theirs = set(labels), set(source.labels)
    only = ((whose, sorted(ours - theirs)), (source.name, sorted(theirs - ours)))
    difference = "; ".join(
        f"only in {where}: {', '.join(names)}" for where, names in only if names
    )
    raise DataError(
        f"{source.name} has other classes than {whose} "
        f"({difference or 'the same names in another order'}). "
        "Use data with the same class folders, or train on the new ones."
    )


def fingerprint(source: Source) -> dict[str, Any]:
    """Return what has to be equal for a run to resume on a data set.

    Of files the size counts, not the content, and the name below the data's folder,
    so that the folder may move. Of arrays every byte counts. Nothing is decoded.

    Returns:
        JSON: "classes", a list of names, and for each split, but "all", the number of
        "images" and a "sha256" over their names, sizes and targets in order.

    Raises:
        DataError: A file has gone; names it.
    """
    splits = {
        split: {"images": len(examples), "sha256": _digest(examples, source.root)}
        for split, examples in source.splits.items()
        # It holds what the other splits hold.
        if split != "all"
    }
    return {"classes": list(source.labels), **splits}


def _digest(examples: Examples, root: str | None) -> str:
    digest = hashlib.sha256(examples.targets.astype("<i8").tobytes())
    digest.update(bytes([examples.recover]))
    for part in _contents(examples, root):
        # A length before each part keeps "ab", "c" apart from "a", "bc".
        digest.update(len(part).to_bytes(8, "little") + part)
    return digest.hexdigest()


def _contents(examples: Examples, root: str | None) -> Iterator[bytes]:
    if examples.images is not None:
        yield str(examples.images.shape).encode()
        for image in examples.images:
            yield image.tobytes()
    elif examples.records is not None:
        records = examples.records
        yield records.source.encode()
        for column in (records.numbers, records.lengths):
            yield column.astype("<i8").tobytes()
    else:
        for path in examples.paths or ():
            yield os.fsencode(os.path.relpath(path, root))
            try:
                yield Path(path).stat().st_size.to_bytes(8, "little")
            except OSError as error:
                raise DataError(f"There is no image {path}.") from error
