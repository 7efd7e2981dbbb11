"""Data sources: what `data` arguments accept, and a data set's fingerprint."""

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any, TypeAlias
from unicodedata import normalize

import numpy as np
from numpy.typing import ArrayLike, NDArray

from reszoo.cards import Card
from reszoo.console import say
from reszoo.data import splits as splitting
from reszoo.data import tfds
from reszoo.data.checks import check, check_policy
from reszoo.data.examples import Examples
from reszoo.data.image_facts import ANOMALIES, DARK
from reszoo.data.listing import Unreadable, list_images
from reszoo.errors import DataError, UnknownNameError, UsageError, known, summarized
from reszoo.files import StrPath
from reszoo.preprocessing import Pixels

Pair: TypeAlias = tuple[ArrayLike, ArrayLike]
Reader: TypeAlias = Callable[[Any], Any]
Data: TypeAlias = StrPath | Pair | Mapping[str, Pair]
_ACCEPTED = (
    "Data is a folder of class folders, a .csv list of images, "
    '"tfds:NAME", "digits", or NumPy arrays: (images, labels), or such pairs by split.'
)
_DIGITS = tuple("0123456789")
# Of integer labels, the largest of which tells their number.
_MOST_CLASSES = 1_000_000
# The scans of digits hold 0 (paper) to 16 (ink).
_DARKEST = 16


@dataclass(frozen=True)
class Source:
    """Labelled images in splits."""

    name: str  # what it was opened as, for messages and cards
    # Sorted by code point; of integer targets, in the order of the numbers.
    labels: tuple[str, ...]
    # Examples by name: "train", "validation", "test", or "all".
    splits: Mapping[str, Examples]
    # Whether an image flipped horizontally still belongs to its class. False where the
    # labels are "0" to "9", since a flipped digit is none; for data sets of TensorFlow
    # Datasets with digits or letters (MNIST, SVHN); and for arrays with the integer
    # labels 0 to 9 whose images are grey. In colour, such arrays may be CIFAR-10 or
    # SVHN: True.
    flip_safe: bool = True
    unreadable: tuple[Unreadable, ...] = ()  # images that were left out, and why
    # The folder that paths in messages and fingerprints are relative to, if there is
    # one.
    root: str | None = None
    # A line for each kind of anomaly, for every two splits that share images, and for
    # images in two classes; of images that were decoded.
    warnings: tuple[str, ...] = ()
    # How the data was understood, and what of it is not used; a line each.
    notes: tuple[str, ...] = ()
    numbered: bool = False  # whether the labels are integers that were given as such

    def examples(self, split: str | None = None) -> Examples:
        """Return the examples of one split, or raise UnknownNameError.

        None takes what a model should be evaluated on: "test", else "validation", else
        "train". "all" is taken only by name, as it includes what a model was trained
        on. A DataError if the source has nothing to train on.
        """
        name = self.judging_split
        if split and (name := split) not in self.splits:
            name = splitting.split_name(split) or split
        if name == "train" and name not in self.splits:
            raise DataError(
                f"{self.name} has no train split to learn from, only "
                f"{', '.join(self.splits)}. Training needs one, as a folder train "
                "beside those, or data without splits."
            )
        return self.splits[known("split", name, self.splits)]

    @property
    def judging_split(self) -> str:
        """Name of the split that `examples()` returns."""
        unseen = ("test", "validation")
        return next((name for name in unseen if name in self.splits), "train")

    def judged(self, provenance: Any, split: str | None = None) -> tuple[str, str]:
        """Return the split to judge a model on, and a sentence about the choice.

        Data without splits is judged as a whole, except where the model was trained on
        it, by the provenance in its card: then on the images that were held out. What
        the user named is taken.
        """
        if split or "all" not in self.splits:
            return split or self.judging_split, ""
        whole = f"all {len(self.splits['all']):,} images"
        found, is_same = self.training_on(provenance)
        if not found:
            return "all", ""
        if not is_same:
            return "all", (
                f"{self.name} has changed since the model was trained on it, or is "
                f"another of that name: measured are {whole}."
            )
        if "validation" not in self.splits:
            return "all", f"The model was trained on {whole} of {self.name}."
        held_out = len(self.splits["validation"])
        return "validation", (
            f"The model was trained on {self.name}: measured are the {held_out:,} "
            f"images that were held out, not {whole}."
        )

    def training_on(self, provenance: Any) -> tuple[Mapping[str, Any], bool]:
        """Return the training on this data in a card's provenance; {} if there is none.

        And whether the data has not changed since then.
        """
        digest = content_digest(self) if isinstance(provenance, Mapping) else None
        while isinstance(provenance, Mapping):
            known = provenance.get("data_sha256")
            namesake = provenance.get("data") == self.name != "arrays"
            if known == digest or namesake:
                return provenance, known in (digest, None)
            provenance = provenance.get("began_as")
        return {}, False

    def announce(self, *more: str) -> None:
        """Say what was left out, what is unusual, and how the data was understood."""
        skipped = (f"skipped {path}: {reason}" for path, reason in self.unreadable)
        for line in filter(None, (*skipped, *self.warnings, *self.notes, *more)):
            say(line)


def open_source(
    data: Data, *, bad_images: str | None = None, validation_share: float | None = None
) -> Source:
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
    the validation split, the same fifth whenever the same data is opened. Where there
    are train and test only, it is a tenth of train.

    Args:
        data: One of those, or a name such as "digits".
        bad_images: None reads the headers of files only, and refuses a bad one.
            Otherwise every file of a folder or a list, and every image of TensorFlow
            Datasets, is decoded once before anything else: "error" names the first
            unreadable image, "skip" leaves unreadable ones out and lists them in
            `Source.unreadable`, "recover" does too but keeps truncated JPEGs.
            Images in a folder whose format is not supported (HEIC) are unreadable.
        validation_share: Another share than these; 0 holds nothing out.

    Raises:
        DataError: There are no images, one class, or an unreadable image.
        UsageError: The data is none of these kinds.
    """
    check_policy(bad_images)
    if isinstance(data, Mapping | tuple):
        return read_arrays(data, validation_share, _images)
    if not isinstance(data, str | os.PathLike):
        raise UsageError(
            f"{_ACCEPTED} Received: {type(data).__name__}. To call fit on a data set "
            "of your own, prepare the model with reszoo.compile(model, recipe)."
        )
    name = os.path.expanduser(os.fspath(data))  # noqa: PTH111
    of_tfds = name.startswith(tfds.PREFIX)
    if name == "digits" and not Path(name).exists():
        return _read_digits()
    listing = (tfds.read if of_tfds else list_images)(name, validation_share)
    splits, unreadable, warnings = check(listing, bad_images)
    of_characters = of_tfds and tfds.is_of_characters(name)
    return Source(
        name if of_tfds else str(Path(name)), listing.labels, splits,
        flip_safe=listing.labels != _DIGITS and not of_characters,
        unreadable=unreadable, root=None if of_tfds else listing.root,
        warnings=warnings, notes=listing.notes,
    )  # fmt: skip


def _read_digits() -> Source:
    """Return the digits as RGB of 8x8 pixels.

    Source: E. Alpaydin and C. Kaynak, Optical Recognition of Handwritten Digits, UCI
    Machine Learning Repository, 1998 (CC BY 4.0); the test part, as shipped with
    scikit-learn. A DataError if scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise DataError(
            'The digits come with scikit-learn: pip install "reszoo[demo]".'
        ) from error
    scans = load_digits()
    grey = np.round(scans.images * (255 / _DARKEST)).astype(np.uint8)
    images = np.repeat(grey[..., None], 3, axis=-1)
    everything = Examples(np.asarray(scans.target, np.int64), images=images)
    splits = everything.split(splitting.hold_out_test(everything.targets))
    return Source("digits", _DIGITS, splits, flip_safe=False)


def read_arrays(data: Any, share: float | None, read: Reader) -> Source:
    """Check arrays and turn their labels into targets.

    Images are `(n, height, width, 3)`, or grey without the 3 or with 1, and hold 0 to
    255: as uint8, or as other numbers, which are rounded. Labels `(n,)` are strings,
    which are sorted by code point, or integers from 0, whose classes are called "0",
    "1", ...; also as Python objects, bytes, booleans or whole floats.

    Without splits a fifth of every class becomes the validation split. Images may not
    be flipped where strings name the ten digits, nor where ten integer labels come with
    grey images, as those of MNIST do. Splits whose images are nearly black have a
    warning. A UsageError for other shapes, types or values, or an unknown split; a
    DataError for fewer than two classes, or one without images to train on. `read`
    checks what may be in the place of images.
    """
    given = _by_split(data) if isinstance(data, Mapping) else {"all": data}
    parts = {split: _part(pair, split, read) for split, pair in given.items()}
    labels, targets = _numbered([part for _, part in parts.values()])
    if len(labels) < 2:
        raise DataError(
            f"The labels name {len(labels)} class. A classifier needs at least two."
        )
    ends = np.cumsum([0, *(len(part) for part, _ in parts.values())])
    places = {s: np.arange(*ends[n : n + 2]) for n, s in enumerate(parts)}
    splits = {
        split: Examples(targets[places[split]], images=images)
        for split, (images, _) in parts.items()
    }
    first = "all" if "all" in splits else "train"
    where = "the arrays" if first == "all" else "the train split"
    drawn, notes = splitting.complete(places, targets, labels, where, share)
    found = {}
    for split, part in drawn.items():
        name = split if split in places else first
        whole, start = splits[name], int(places[name][0])
        found[split] = whole if len(part) == len(whole) else whole.take(part - start)
    # Integer labels may count anything: CIFAR-10 has them too, but in colour.
    are_digits = labels == _DIGITS and all(
        given.dtype.kind == "U" or (images == images[..., :1]).all()
        for images, given in parts.values()
    )
    warnings = tuple(
        f"the images ({split}) are {ANOMALIES['dark'][0]}"
        for split, part in found.items()
        if part.images is not None and part.images.max(initial=0) <= DARK
    )
    numbered = all(given.dtype.kind != "U" for _, given in parts.values())
    return Source(
        "arrays", labels, found, flip_safe=not are_digits, warnings=warnings,
        notes=notes, numbered=numbered,
    )  # fmt: skip


def _by_split(data: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for word, pair in data.items():
        if (split := splitting.split_name(word)) is None:
            raise UnknownNameError("split", word, splitting.SPLIT_NAMES)
        if split in found:
            same = [name for name in data if splitting.split_name(name) == split]
            names = ", ".join(same)
            raise UsageError(f"The arrays have two {split} splits: {names}. Keep one.")
        found[split] = pair
    if not found:
        raise UsageError('No arrays were given. Give {"train": (images, labels)}.')
    return found


def _part(pair: Any, split: str, read: Reader) -> tuple[Pixels, NDArray[Any]]:
    if not isinstance(pair, tuple | list) or len(pair) != 2:
        raise UsageError(
            f"Arrays come as a pair (images, labels). Received for {split}: "
            f"{type(pair).__name__}."
        )
    images, given = read(pair[0]), pair[1]
    try:
        array = np.asarray(given)
    except ValueError:  # Lists of several lengths are refused by their shape.
        array = np.empty((len(given), 0), object)
    labels = _plain(array)
    if labels.dtype.kind not in "iuU" or labels.shape != images.shape[:1]:
        raise UsageError(
            "Labels must be integers or strings, one an image, not one-hot. "
            f"Received: {labels.dtype} {labels.shape} for {len(images)} images."
        )
    if not len(images):
        raise UsageError(f"A split needs images. Received none for {split}.")
    return images, labels


def _plain(labels: NDArray[Any]) -> NDArray[Any]:
    """Return labels as what they hold; what is neither integers nor strings stays."""
    # Keras' own data sets have labels of shape (n, 1).
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    # Columns of pandas are objects; NumPy's own strings are S, T and U.
    if labels.dtype.kind in "OST" and labels.ndim == 1:
        items = [x.decode() if isinstance(x, bytes) else x for x in labels.tolist()]
        other = [x for x in items if not isinstance(x, str)]
        if other and (len(other) < len(items) or None in other):
            raise UsageError(
                "Labels must be all strings or all integers. "
                f"Received: {other[0]!r} among them."
            )
        labels = np.asarray(items)
    whole = labels.dtype.kind == "f" and (labels == np.rint(labels)).all()
    return labels.astype(np.int64) if whole or labels.dtype.kind == "b" else labels


def _images(given: Any) -> Pixels:
    if isinstance(given, tuple | list):
        raise UsageError(
            f"Images must be one array. Received: a {type(given).__name__}. Stack "
            'images with np.stack; name splits: {"train": (x, y), "test": (x, y)}.'
        )
    images = np.asarray(given)
    if images.ndim == 3:
        images = images[..., None]
    if images.ndim != 4 or images.shape[-1] not in (1, 3):
        raise UsageError(
            "Images must have the shape (n, height, width, 3), or (n, height, width) "
            f"if grey. Received: {np.shape(given)}."
        )
    images = images if images.dtype == np.uint8 else _rounded(images)
    return np.repeat(images, 3, axis=-1) if images.shape[-1] == 1 else images


def _rounded(images: NDArray[Any]) -> Pixels:
    """Return numbers in 0..255 as uint8."""
    low = high = np.nan
    if images.size and images.dtype.kind in "iuf":
        low, high = images.min(), images.max()
    # Floats up to 1 may be an image in 0..1, or a black one.
    known = high > 1 or images.dtype.kind != "f"
    if not (known and low >= 0 and high <= 255):
        advice = "Give pixels as they were before they were normalised."
        if low >= 0 and high <= 1:
            advice = "From floats in 0..1: np.round(images * 255).astype(np.uint8)."
        raise UsageError(
            "Images must be uint8 in 0..255, or other numbers in that range. Received: "
            f"{images.dtype} from {low:g} to {high:g}. {advice}"
        )
    rounded = np.empty(images.shape, np.uint8)
    for number, image in enumerate(images):
        rounded[number] = np.rint(image)
    return rounded


def _numbered(
    labels: Sequence[NDArray[Any]],
) -> tuple[tuple[str, ...], NDArray[np.int64]]:
    """Return the labels in order, and the targets of all splits one after another."""
    kinds = {part.dtype.kind == "U" for part in labels}
    if len(kinds) > 1:
        raise UsageError("The splits must all have integer labels, or all strings.")
    everything, inverse = np.unique(np.concatenate(labels), return_inverse=True)
    if kinds == {True}:
        words = [normalize("NFC", word) for word in everything.tolist()]
        names = tuple(sorted({*words}))
        return names, np.asarray([names.index(word) for word in words])[inverse]
    if not 0 <= everything[0] <= everything[-1] < _MOST_CLASSES:
        raise UsageError(
            f"Integer labels must count from 0. Received: {everything[0]} to "
            f"{everything[-1]}; numbers that are names may be given as strings."
        )
    names = tuple(map(str, range(int(everything[-1]) + 1)))
    return names, everything.astype(np.int64)[inverse]


def match_classes(
    source: Source, labels: Sequence[str] | None, outputs: int | None,
    whose: str = "the model", *, all_needed: bool = False,
) -> Source:  # fmt: skip
    """Return a source whose targets are the indices of a model's outputs.

    Labels are matched by name, whatever their order (None if they are not recorded);
    integers that are no labels of the model index its outputs, whose number is None for
    features, which match all. The data may have fewer classes, unless all are needed,
    as for training. A DataError lists the difference.
    """
    if outputs is None or (labels is not None and tuple(labels) == source.labels):
        return source
    used = {*chain(*(np.unique(part.targets) for part in source.splits.values()))}
    there = {source.labels[number] for number in used}
    indexes = source.numbered and not there <= {*(labels or ())}
    if labels is None or indexes:
        most = len(source.labels)
        if most > outputs or (most < outputs and (all_needed or not source.numbered)):
            raise DataError(
                f"{source.name} has {most} classes, {whose} has {outputs} outputs"
                f"{'' if labels else ' whose labels are not recorded'}. Use data with "
                "its classes, or train on the new ones."
            )
        first, last = source.labels[0], source.labels[-1]
        note = f"class {first} is taken for output 0 of {whose}, {last} for {most - 1}"
        if indexes and labels:
            note = f"integer labels index the labels of {whose}: 0 is {labels[0]}"
        own = source.labels if most == outputs else map(str, range(outputs))
        renamed = tuple(own if labels is None else labels)
        return replace(source, labels=renamed, notes=(*source.notes, note))
    missing, new = sorted({*labels} - there), sorted(there - {*labels})
    if new or (missing and all_needed):
        difference = "; ".join(
            f"only in {where}: {', '.join(names)}"
            for where, names in ((whose, missing), (source.name, new))
            if names
        )
        raise DataError(
            f"{source.name} has other classes than {whose} ({difference}). "
            "Use data with the same class folders, or train on the new ones."
        )
    places = {label: number for number, label in enumerate(labels)}
    place = np.asarray([places.get(label, 0) for label in source.labels])
    splits = {
        name: replace(part, targets=place[part.targets])
        for name, part in source.splits.items()
    }
    notes = source.notes
    if missing:
        notes += (f"{source.name} has no images of: {summarized(missing, 20)}",)
    return replace(source, labels=tuple(labels), splits=splits, notes=notes)


def unused_by_calibration(
    source: Source, card: Card
) -> tuple[str, Examples, str] | None:
    """Return what to evaluate on instead of images that a card's temperature is of.

    That is the other half of the validation split, with its name and a sentence; None
    where there is a test split, or the temperature was measured on other data.
    """
    found, splits = card.confidence, source.splits
    if not found or "test" in splits or "validation" not in splits:
        return None
    if content_digest(source) != found.data_sha256:
        return None
    whole = source.examples("validation")
    half = whole.take(splitting.calibration_halves(whole.targets)[1])
    reason = (
        f"The model was calibrated on half of the validation split of {source.name}: "
        f"measured are the other {len(half):,} images."
    )
    return "validation", half, reason


def open_for(card: Card, data: Data, bad_images: str | None) -> Source:
    """Open data to measure the model of a card on; see `open_source`.

    The same images are held out as when the model was trained on it.
    """
    told = card.provenance
    share = _held_out(told)
    source = open_source(data, bad_images=bad_images, validation_share=share)
    if (own := _held_out(source.training_on(told)[0] or told)) != share:
        source = open_source(data, bad_images=bad_images, validation_share=own)
    return source


def _held_out(training: Mapping[str, Any]) -> float | None:
    """Return the share that was held out, where the user chose it."""
    recipe = training.get("recipe")
    share = recipe.get("validation_share") if isinstance(recipe, Mapping) else None
    return share if isinstance(share, float | int) and 0 <= share < 1 else None


def content_digest(source: Source) -> str:
    """Return a hash of what a data set holds, however it is split.

    Of files the name below the data's folder and the size count, of arrays every byte.
    """
    parts = source.splits
    return _digest([parts["all"]] if "all" in parts else parts.values(), source.root)


def fingerprint(source: Source) -> dict[str, Any]:
    """Return what has to be equal for a run to resume on a data set.

    Of files the size counts, not the content, and the name below the data's folder, so
    that the folder may move. Of arrays every byte counts. Nothing is decoded. As JSON:
    "classes", a list of names, and for each split, but "all", the number of "images"
    and a "sha256" over their names, sizes and targets in order. A DataError names a
    file that has gone.
    """
    found: dict[str, Any] = {"classes": list(source.labels)}
    for split, part in source.splits.items():
        # "all" holds what the other splits hold.
        if split != "all":
            start = part.targets.astype("<i8").tobytes() + bytes([part.recover])
            sha256 = _digest([part], source.root, start)
            found[split] = {"images": len(part), "sha256": sha256}
    return found


def _digest(parts: Iterable[Examples], root: str | None, start: bytes = b"") -> str:
    digest = hashlib.sha256(start)
    for content in chain.from_iterable(_contents(part, root) for part in parts):
        # A length before each keeps "ab", "c" apart from "a", "bc".
        digest.update(len(content).to_bytes(8, "little") + content)
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
