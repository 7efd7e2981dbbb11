"""Facts about image files, found by decoding each once, and their cache."""

import contextlib
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b, sha256
from pathlib import Path
from typing import Any, TypeAlias
from zipfile import BadZipFile

import numpy as np
import PIL
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from reszoo.archives import read_arrays
from reszoo.console import quiet, say
from reszoo.data import image_files as files
from reszoo.data.examples import Records
from reszoo.data.listing import Unreadable
from reszoo.data.splits import WORDS
from reszoo.errors import DataError, ReszooError
from reszoo.files import atomic_file, cache_folder, read_regular

Rows = NDArray[np.void]
# What is known of one image, in 81 bytes.
ROW = np.dtype(
    [
        ("key", "<u8"),  # hash of the path; 0 for records
        ("bytes", "<i8"),  # size of the file; -1 if it could not be read
        ("mtime_ns", "<i8"),  # when it was changed; likewise
        # Hash of the decoded upright RGB pixels and their shape: equal for the same
        # image in another lossless format. 0 if the image cannot be used.
        ("digest", "<u8", (2,)),
        ("width", "<i4"),  # of the upright image, in pixels; 0 if unknown
        ("height", "<i4"),
        ("brightest", "u1"),  # greatest value of any channel, 0 to 255
        ("frames", "<i4"),  # number of images in the file
        # Why it cannot be used: a number of `FactTable.problems`; 0 if it can.
        ("problem", "<i4"),
        ("format", "S10"),  # Pillow's name, by content: "JPEG", "PNG"; "" if unknown
        # Pillow's name of the mode: "RGB", "L" (grey), "P" (palette), "CMYK"; with "A"
        # behind it where parts are transparent, and then ";16" where a channel has 16
        # bits.
        ("mode", "S9"),
        # How the camera was held (EXIF), 1 (upright) to 8; 0 if not examined yet.
        ("orientation", "u1"),
        ("wrong_extension", "?"),  # whether the extension is of another format
        ("by_pillow", "?"),  # whether only Pillow decodes the file right
        ("recoverable", "?"),  # whether it is a truncated JPEG that decodes in part
    ]
)
# Values of a row's fields by name; of "problem" the text.
Facts: TypeAlias = dict[str, Any]

# Every model of the zoo takes at least this: smaller images are enlarged.
_TINY = 32
# 12 bits in the lower part of 16 leave 4 in the upper 8.
DARK = 15

# Which images have an anomaly that `words.toml` describes. Such images are used.
_HAVING: Mapping[str, Callable[[Rows], Any]] = {
    "wrong_extension": lambda rows: rows["wrong_extension"],
    "cmyk": lambda rows: rows["mode"] == b"CMYK",
    "sixteen_bit": lambda rows: np.char.endswith(rows["mode"], b";16"),
    # Of a truncated image it is unknown.
    "dark": lambda rows: (rows["brightest"] <= DARK) & (rows["problem"] == 0),
    # Modes such as RGBA, La and LA;16, but not LAB.
    "transparent": lambda rows: np.char.endswith(
        np.char.upper(np.char.replace(rows["mode"], b";16", b"")), b"A"
    ),
    "palette": lambda rows: np.char.startswith(rows["mode"], b"P"),
    # The second image of an MPO is a camera's other eye, or a map of brightness.
    "animated": lambda rows: (rows["frames"] > 1) & (rows["format"] != b"MPO"),
    "rotated": lambda rows: rows["orientation"] > 1,
    "tiny": lambda rows: np.minimum(rows["width"], rows["height"]) < _TINY,
}
# Anomaly -> what it means, and which images have it.
ANOMALIES = {
    name: (text.format(dark=DARK, tiny=_TINY), _HAVING[name])
    for name, text in WORDS["anomalies"].items()
}
# Those that do not change what an image shows.
HARMLESS = ("wrong_extension", "palette", "rotated")


@dataclass(frozen=True)
class FactTable:
    """Facts about many images."""

    names: Sequence[str]  # paths, or names of records
    rows: Rows  # `(n,)` of `ROW`
    problems: list[str]  # The texts that the rows' `problem` indexes; the first is "".

    def fill(self, index: int, facts: Facts) -> None:
        """Write the facts about one image into its row."""
        problem = facts.get("problem", "")
        if problem not in self.problems:
            self.problems.append(problem)
        unless_known = {"mtime_ns": -1, "frames": 1, "orientation": 1}
        facts = unless_known | facts | {"problem": self.problems.index(problem)}
        for name, value in facts.items():
            self.rows[name][index] = value

    def readable(self, *, recover: bool = False) -> NDArray[np.bool_]:
        """Return whether each image can be used, `(n,)`.

        With `recover`, truncated JPEGs that decode in part can be used too.
        """
        found = self.rows["problem"] == 0
        return np.asarray(found | (self.rows["recoverable"] & recover))

    def anomalies(self, *, recover: bool = False) -> dict[str, tuple[str, ...]]:
        """Return the names of unusual images that can be used, by kind."""
        usable = self.readable(recover=recover)
        return {
            kind: tuple(self.names[n] for n in np.flatnonzero(found).tolist())
            for kind, (_, has) in ANOMALIES.items()
            if (found := usable & has(self.rows)).any()
        }

    def unreadable(self, *, recover: bool = False) -> tuple[Unreadable, ...]:
        """Return the images that cannot be used, and why; see `readable`."""
        problems = self.rows["problem"]
        return tuple(
            Unreadable(self.names[index], self.problems[problems[index]])
            for index in np.flatnonzero(~self.readable(recover=recover)).tolist()
        )


# To be raised when another file counts as readable, or a fact changes its meaning.
_RULES = 4
# Pixels that are converted at a time.
_BAND = 1 << 22
_CACHE_BYTES = 1 << 34  # a hundred million rows


def _cached_rows(cached: Rows, paths: Sequence[str]) -> Rows:
    """Return a row for each file from rows sorted by key, zeros for new and changed."""
    rows, found = np.zeros(len(paths), ROW), np.full((2, len(paths)), -1, np.int64)
    hashes = (blake2b(os.fsencode(path), digest_size=8).digest() for path in paths)
    rows["key"] = keys = np.frombuffer(b"".join(hashes), "<u8")
    for index, path in enumerate(paths):
        with contextlib.suppress(OSError):
            status = Path(path).stat()
            found[:, index] = status.st_size, status.st_mtime_ns
    sizes, times = found
    if len(cached):
        at = np.searchsorted(cached["key"], keys)
        near = cached[np.minimum(at, len(cached) - 1)]
        same = (near["key"] == keys) & (times >= 0)
        same &= (near["bytes"] == sizes) & (near["mtime_ns"] == times)
        rows[same] = near[same]
    return rows


def _cache_file(paths: Sequence[str]) -> Path:
    """Return the file that caches facts about `paths`: one for their common folder."""
    # What the first and the last share, all share.
    ends = [Path(end(paths)).absolute().parent for end in (min, max)]
    folder = os.fsencode(os.path.commonpath(ends))
    return cache_folder() / "scans" / sha256(folder).hexdigest()[:32]


def _load_cache(file: Path) -> tuple[Rows, list[str]]:
    """Return the rows and problems that `_save_cache` wrote; none of a damaged file."""
    with contextlib.suppress(OSError, ValueError, KeyError, BadZipFile):
        found = read_arrays(file, ("version", "rows", "problems"), _CACHE_BYTES)
        if found["version"].item() == _version():
            return found["rows"], found["problems"].tolist()
    return np.zeros(0, ROW), [""]


def _save_cache(file: Path, before: Rows, table: FactTable) -> None:
    """Write the rows of a table, and the older ones of other files."""
    examined = table.rows[table.rows["orientation"] > 0]
    # Of equal keys `unique` takes the first: the new one.
    together = np.concatenate([examined, before])
    _, firsts = np.unique(together["key"], return_index=True)
    rows, problems = together[firsts], np.asarray(table.problems)
    try:
        with atomic_file(file) as temporary, temporary.open("wb") as content:
            np.savez(content, version=_version(), rows=rows, problems=problems)
    except ReszooError as error:
        say(f"The next run will examine every image again: {error}")


def _version() -> str:
    """Return what besides the file decides whether it can be used."""
    return f"rules {_RULES}, {ROW}, Pillow {PIL.__version__}, {Image.MAX_IMAGE_PIXELS}"


def examine(images: Sequence[str] | Records, *, progress: bool = True) -> FactTable:
    """Find out which images can be used, by decoding each as training would.

    The facts about files are cached under `cache_folder()/scans`, in one file for the
    folder that all paths are in; a file whose size and time are unchanged is not opened
    again. So pass all splits of a data set in one call. An interrupted call keeps what
    it found. A path that is missing is a fact as well. Of records of a data source
    nothing is cached. The facts are in the order of the images.
    """
    file, before, problems = None, np.zeros(0, ROW), [""]
    rows = np.zeros(len(images), ROW)
    names: Sequence[str] = ()
    if isinstance(images, Records):
        names = [images.name(index) for index in range(len(images))]
    elif names := images:
        file = _cache_file(names)
        before, problems = _load_cache(file)
        rows = _cached_rows(before, names)
    table = FactTable(names, rows, problems)
    if not (new := np.flatnonzero(rows["orientation"] == 0).tolist()):
        return table

    def inspect(index: int) -> Facts:
        if isinstance(images, Records):
            return inspect_image(images.read(index), "")
        return inspect_file(names[index])

    try:
        found = files.in_threads(inspect, new, "Examining images", progress=progress)
        with quiet():
            for index, facts in zip(new, found, strict=True):
                table.fill(index, facts)
    finally:
        if file:
            _save_cache(file, before, table)
    return table


def inspect_file(path: str) -> Facts:
    """Decode one image file as training does and return the facts.

    What is wrong with a file is returned, not raised. A problem outside the file
    (no permission, no memory) leaves `mtime_ns` at -1.
    """
    try:
        status = Path(path).stat()
        found = inspect_image(read_regular(path, files.MEMORY), path)
    except OSError as error:
        return {"problem": error.strerror or str(error)}
    return {"bytes": status.st_size, "mtime_ns": status.st_mtime_ns, **found}


def inspect_image(content: bytes, path: str) -> Facts:
    """Decode one encoded image and return its facts, without size and time.

    An OSError if TensorFlow's decoder failed for a reason outside the image.
    """
    found: Facts = {}
    try:
        with files.opened(content, path) as image:
            found |= _metadata(image, path)
        header = files.read_header(content, path)
        found |= header._asdict()
        if header.by_pillow:
            with files.opened(content, path) as image:
                (width, height), part = files.upright_parts(image)
                rows = max(1, _BAND // width)
                tops = range(0, height, rows)
                boxes = ((0, top, width, min(top + rows, height)) for top in tops)
                bands = (np.asarray(part(box)) for box in boxes)
                found |= _digest((height, width, 3), bands)
        else:
            found |= _decoded_by_tensorflow(content, header, found["format"])
    except DataError as error:
        found["problem"] = _reason(error.__cause__ or error, content)
    return found


def _metadata(image: Image.Image, path: str) -> Facts:
    """Return what needs no decoding; Pillow forgets some of it when it decodes."""
    deep = image.mode.startswith("I") or ";16" in str(getattr(image, "tile", ""))
    mode = "L" if image.mode.startswith("I") else image.mode
    if image.has_transparency_data and not mode.upper().endswith("A"):
        mode += "A"
    kind, frames = str(image.format), 1
    expected = Image.registered_extensions().get(Path(path).suffix.lower())
    # Cameras put pairs of JPEGs into files that are called .jpg.
    fits = expected == kind or (kind, expected) == ("MPO", "JPEG")
    # Only the first frame is used: damage behind it is no problem.
    with contextlib.suppress(OSError, SyntaxError, ValueError, EOFError):
        frames = int(getattr(image, "n_frames", 1))
    return {
        "format": kind, "wrong_extension": not fits, "mode": mode + ";16" * deep,
        "width": image.width, "height": image.height, "frames": frames,
    }  # fmt: skip


def _decoded_by_tensorflow(content: bytes, header: files.Header, kind: str) -> Facts:
    """Return the digest of the image, or the problem of one that is damaged."""
    # Cached facts need no TensorFlow.
    import tensorflow as tf

    from reszoo.data.decoding import decode

    held = header.orientation if header.orientation > 1 else None
    # Not on a graphics card, which several threads would have to share.
    with tf.device("CPU:0"), contextlib.suppress(tf.errors.InvalidArgumentError):
        try:
            pixels = decode(content, held)
            return _digest(tuple(pixels.shape), [pixels])
        except tf.errors.InvalidArgumentError:
            if files.is_jpeg(content):
                decode(content, recover=True)
                return {"problem": "truncated", "recoverable": True}
        except tf.errors.OpError as error:
            raise OSError(error.message) from error
    return {"problem": f"damaged {kind} data"}


def _digest(shape: tuple[int, ...], parts: Iterable[Any]) -> Facts:
    brightest = 0
    # Processors have instructions for SHA-256: it is faster than BLAKE2.
    found = sha256(str(shape).encode())
    for pixels in parts:
        # Tensors have the buffer protocol too: nothing is copied.
        found.update(view := memoryview(pixels))
        brightest = max(brightest, int(np.asarray(view).max(initial=0)))
    digest = np.frombuffer(found.digest()[:16], "<u8")
    return {"digest": digest, "brightest": brightest}


def _reason(cause: BaseException, content: bytes) -> str:
    if not content:
        return "empty file"
    if isinstance(cause, Image.DecompressionBombError):
        return f"too many pixels ({cause})"
    # Text is most often a web page that says why there is no image.
    start = content[:64].decode("ascii", "replace")
    is_text = " ".join(start.split()).isprintable() and "\ufffd" not in start
    if isinstance(cause, UnidentifiedImageError) and is_text:
        return "text, not an image"
    reason = files.reason_of(cause)
    return "truncated" if "truncated" in reason.lower() else reason
