"""The one definition of how an image becomes the input of a model.

A `Preprocessing` is carried out by TensorFlow in pipelines and by Pillow and
NumPy where TensorFlow is not loaded. Both follow the same geometry functions and
differ by one grey level at most. The rules are torchvision's: resize the short
side with antialiasing, crop the centre, scale by mean and standard deviation; or
timm's, where the whole image is shown ("squash" and "pad", which timm calls "border").
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from reszoo.errors import UsageError
from reszoo.fields import check_fields, plain_values
from reszoo.specs import ResNetSpec

Pixels = NDArray[np.uint8]
# From the torchvision and timm sources; they belong to RGB in 0..1.
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
_SIXTEEN_BITS = ("I", "I;16", "I;16B")
# Height and width in pixels; a number is the side of a square.
Sides = tuple[int, int]
Size = int | Sides
Resize = Literal["crop", "squash", "pad"]
# Weights of red, green and blue in grey, times 2**16: ITU-R BT.601, as Pillow's "L".
_GREY = ((19595,), (38470,), (7471,))
# Side of images that are too small to lose their border, in pixels.
_SMALL = 64
_PILLOW = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
# Names of the same filters in TensorFlow, which widens them by `antialias`.
_KERNELS = {"bilinear": "triangle", "bicubic": "keyscubic"}
MOST_SIDE = 4096
# Pixels that are converted at a time, 4 bytes each: so an image that is decoded
# already takes hardly more memory.
_BAND = 1 << 22
# Images of more pixels, before or after resizing, are not resized as a whole by
# Pillow; TensorFlow resizes them vertically first, for its horizontal pass takes 12
# bytes a pixel (`ScaleAndTranslate` keeps all of them as float32).
LARGE = 1 << 24
# Of the long side to the short one: beyond this float32 coordinates are inexact.
_LONG = 8
# Left, top, right and bottom of a part of an image, in pixels.
Box = tuple[int, int, int, int]


class Window(NamedTuple):
    """The pixels along one side of an image that the input comes from."""

    start: Any  # the first of them
    end: Any  # behind the last
    side: Any  # its length
    scaled: Any  # its length once it is resized
    offset: Any  # where the part that is shown begins then
    length: Any  # of that part
    before: Any  # pixels of padding before it

    def box(self) -> tuple[float, float]:
        """Return where what is shown begins and ends before resizing, from `start`."""
        first = self.offset * self.side - self.start * self.scaled
        return first / self.scaled, (first + self.length * self.side) / self.scaled

    def shown(self) -> slice:
        """Return the part that is shown of the resized side."""
        return slice(self.offset, self.offset + self.length)


@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """Resize, crop and normalisation of the images that a model takes.

    Attributes:
        train_size: Side of the square training images, in pixels, or their height and
            width.
        eval_size: The same of the evaluation images.
        crop_pct: Share of the resized short side that the centre crop keeps, in
            (0, 1]; the short side becomes `floor(eval_size / crop_pct)`.
        interpolation: "bilinear" or "bicubic", always antialiased.
        mean: Subtracted per channel, of RGB in 0..1; one number for a model of grey
            images.
        std: Divided by, per channel, of RGB in 0..1.
        resize: "crop" covers `eval_size / crop_pct` and cuts the centre; "squash"
            changes the shape of the whole image to it, "pad" fits the whole image into
            it, with the mean colour around it.
    """

    # Cards come from files of strangers: the sides in pixels decide how much memory an
    # image takes, and the rest must leave finite numbers in float32.
    train_size: Annotated[Size, f"[1, {MOST_SIDE}]"]
    eval_size: Annotated[Size, f"[1, {MOST_SIDE}]"]
    crop_pct: Annotated[float, "[0.1, 1]"]
    interpolation: Literal["bilinear", "bicubic"]
    mean: Annotated[tuple[float, ...], "[-1000, 1000]"]
    std: Annotated[tuple[float, ...], "[0.0001, 1000]"]
    resize: Resize = "crop"

    def __post_init__(self) -> None:
        check_fields(self)
        for name in ("train_size", "eval_size"):
            object.__setattr__(self, name, as_size(getattr(self, name)))
        if not len(self.mean) == len(self.std) >= 1:
            raise UsageError(
                "mean and std must have one entry per channel. Received: "
                f"mean={self.mean}, std={self.std}."
            )

    @property
    def eval_sides(self) -> Sides:
        """Height and width of the evaluation images, in pixels."""
        return as_sides(self.eval_size)

    @property
    def train_sides(self) -> Sides:
        """Height and width of the training images, in pixels."""
        return as_sides(self.train_size)

    @property
    def resize_sides(self) -> Sides:
        """Height and width that an image is resized to: see `resize`."""
        height, width = self.eval_sides
        return math.floor(height / self.crop_pct), math.floor(width / self.crop_pct)

    @property
    def resize_size(self) -> Size:
        """Length of the short side before the centre crop, or height and width."""
        size: Size = as_size(self.resize_sides)
        return size

    @property
    def channels(self) -> int:
        """Number of channels: 3 for RGB, 1 for grey."""
        return len(self.mean)

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """Shape of one image as the model takes it: `(height, width, channels)`."""
        return (*self.eval_sides, self.channels)

    @property
    def colours(self) -> str:
        """What the channels are called: "RGB" or "grey"."""
        return "RGB" if self.channels == 3 else "grey"

    @property
    def mean_colour(self) -> Pixels:
        """The colour of padding, which normalises to about 0: uint8 `(channels,)`."""
        levels = np.round(255 * np.asarray(self.mean))
        return np.clip(levels, 0, 255).astype(np.uint8)

    def steps(self) -> tuple[str, ...]:
        """Say how an image is resized, one step each."""
        short, size = self.resize_size, shown_size(self.eval_sides)
        resized = f"{shown_size(self.resize_sides)} pixels"
        covered = f"the short side to {short} pixels"
        if not isinstance(short, int):
            resized += " (height x width)"
            covered = f"to cover {resized}"
        cut = f"cut {size} from the centre"
        inside = self.resize_sides == self.eval_sides
        colour = ", ".join(map(str, self.mean_colour))
        padded = f"pad to {size} with the colour ({colour})"
        first, second = {
            "crop": (covered, cut),
            "squash": (f"to {resized}, whatever its shape", "" if inside else cut),
            "pad": (f"to fit into {resized}", padded if inside else f"cut or {padded}"),
        }[self.resize]
        first = f"resize {first} ({self.interpolation}, antialiased)"
        return (first, second) if second else (first,)

    def normalise(self, pixels: Any) -> Any:
        """Normalise RGB in 0..255 as the model expects it.

        Args:
            pixels: float32 `(..., channels)`; a NumPy array or a tensor.

        Returns:
            The same kind and shape: `(pixels / 255 - mean) / std`.
        """
        std = np.asarray(self.std, np.float64)
        scale = (1 / (255 * std)).astype(np.float32)
        offset = (-np.asarray(self.mean, np.float64) / std).astype(np.float32)
        return pixels * scale + offset

    def prepare(self, image: Image.Image | Pixels) -> Pixels:
        """Resize and crop one image with Pillow.

        Args:
            image: A PIL image, or uint8 RGB of shape `(height, width, 3)`, or grey
                without the 3 or with 1.

        Returns:
            uint8 of `input_shape`: RGB, or grey for a model of one channel.
        """
        if not isinstance(image, Image.Image):
            image = to_image(image)
        return self.prepare_parts(image.size, image.crop)

    def prepare_parts(
        self, size: tuple[int, int], read: Callable[[Box], Image.Image]
    ) -> Pixels:
        """Resize and crop an image of (width, height), of which `read` returns parts.

        Returns uint8 of `input_shape`.
        """
        rows, columns = self._windows(*size[::-1])
        right, bottom = columns.offset + columns.length, rows.offset + rows.length
        centre = (columns.offset, rows.offset, right, bottom)
        scaled = (columns.scaled, rows.scaled)

        def part(box: Box) -> Image.Image:
            rgb = to_rgb(read(box))
            return rgb.convert("L") if self.channels == 1 else rgb

        if scaled == size:
            return self._padded(part(centre), rows, columns)
        large = max(math.prod(size), math.prod(scaled)) > LARGE
        if not large and self.resize != "squash":
            # To the last bit as torchvision and timm, which resize the whole image.
            whole = part((0, 0, *size)).resize(scaled, _PILLOW[self.interpolation])
            return self._padded(whole.crop(centre), rows, columns)

        # One side at a time, for Pillow 13 resizes some images vertically first, most
        # of all those that are squashed.
        def resized(image: Image.Image, window: Window, *, down: bool) -> Image.Image:
            first, last = window.box()
            new, high = (window.length, image.height), float(image.height)
            old = (first, 0.0, last, high)
            if down:
                new, old = (image.width, window.length), (0.0, first, image.width, last)
            return image.resize(new, _PILLOW[self.interpolation], old)

        mode = "L" if self.channels == 1 else "RGB"
        wide = Image.new(mode, (columns.length, rows.end - rows.start))
        band = max(1, _BAND // (columns.end - columns.start))
        for top in range(rows.start, rows.end, band):
            box = (columns.start, top, columns.end, min(top + band, rows.end))
            wide.paste(resized(part(box), columns, down=False), (0, top - rows.start))
        return self._padded(resized(wide, rows, down=True), rows, columns)

    def _padded(self, image: Image.Image, rows: Window, columns: Window) -> Pixels:
        """Put the part that is shown where it belongs in the input."""
        pixels = np.asarray(image).reshape(rows.length, columns.length, -1)
        if self.resize != "pad":
            return pixels
        padded = np.full((*self.eval_sides, pixels.shape[-1]), self.mean_colour)
        across = slice(columns.before, columns.before + columns.length)
        padded[rows.before : rows.before + rows.length, across] = pixels
        return padded

    def prepare_tensor(self, image: Any) -> Any:
        """Resize and crop one image with TensorFlow, also inside `tf.data`.

        Args:
            image: uint8 tensor `(height, width, channels)` of any size.

        Returns:
            uint8 tensor `(height, width, channels)` as in `input_shape`.
        """
        import tensorflow as tf

        kind = self.interpolation
        image = to_grey(image) if self.channels == 1 else image
        height, width = tf.unstack(tf.cast(tf.shape(image)[:2], tf.int64))
        rows, columns = self._windows(height, width)

        def resized() -> Any:
            part = image[rows.start : rows.end, columns.start : columns.end]
            wide = _resample_columns(part, columns, kind)
            return _resample_rows(wide, rows, kind)

        def resized_large() -> Any:
            low = _resample_rows(image, rows._replace(start=0), kind)
            return _resample_columns(low, columns._replace(start=0), kind)

        large = height * width > LARGE
        if self.resize == "crop":
            long, short = tf.maximum(height, width), tf.minimum(height, width)
            large &= long <= _LONG * short
        # Skipping images that have the size already saves half of their time.
        same = tf.reduce_all([rows.scaled == height, columns.scaled == width])
        prepared = tf.cond(
            same,
            lambda: image[rows.shown(), columns.shown()],
            lambda: tf.cond(large, resized_large, resized),
        )
        if self.resize == "pad":
            borders = [
                (window.before, size - window.length - window.before)
                for window, size in zip((rows, columns), self.eval_sides, strict=True)
            ]
            # Padding the difference to the colour with zeros pads with that colour.
            colour = self.mean_colour
            prepared = tf.pad(prepared - colour, [*borders, (0, 0)]) + colour
        return tf.ensure_shape(prepared, (*self.eval_sides, image.shape[-1]))

    def _windows(self, height: Any, width: Any) -> tuple[Window, Window]:
        """Return what of the rows and of the columns of an image the input comes from.

        Works on Python integers and on int64 tensors alike.
        """
        scaled = self.resize_sides
        if self.resize != "squash":
            covering = self.resize == "crop"
            scaled = scaled_sides(height, width, scaled, covering=covering)
        pads = self.resize == "pad"
        sides = zip((height, width), scaled, self.eval_sides, strict=True)
        rows, columns = (_window(*each, pads=pads) for each in sides)
        return rows, columns

    def to_json(self) -> dict[str, Any]:
        """Return the fields as plain JSON values; `resize` where it is no crop."""
        # Earlier releases, which know nothing else, read cards without "crop".
        return {
            name: value
            for name, value in plain_values(self).items()
            if (name, value) != ("resize", "crop")
        }


def default_preprocessing(
    spec: ResNetSpec, eval_size: Size | None = None
) -> Preprocessing:
    """Return the preprocessing of a model trained from scratch, by its spec.

    Models for images of more than 64 pixels keep 7/8 of the resized image, as
    torchvision's for ImageNet; those for small images keep all of it.
    """
    side = eval_size or spec.image_size
    return Preprocessing(
        train_size=side, eval_size=side,
        crop_pct=0.875 if spec.image_size > _SMALL else 1.0, interpolation="bilinear",
        mean=IMAGENET_MEAN, std=IMAGENET_STD,
    )  # fmt: skip


def to_image(pixels: Pixels) -> Image.Image:
    """Return an image of uint8 pixels: RGB, or grey without channels or with one."""
    return Image.fromarray(pixels[..., 0] if pixels.shape[2:] == (1,) else pixels)


def to_rgb(image: Image.Image) -> Image.Image:
    """Return an image as 8-bit RGB: the upper 8 of 16 bits per channel."""
    if image.mode in _SIXTEEN_BITS:
        # Pillow's own conversion would clip at 255.
        upper = np.clip(np.asarray(image) >> 8, 0, 255)
        image = Image.fromarray(upper.astype(np.uint8))
    return image if image.mode == "RGB" else image.convert("RGB")


def to_grey(image: Any) -> Any:
    """Return a tensor `(height, width, 3)` as grey, with the numbers of Pillow's "L".

    One with 1 channel stays as it is.
    """
    import tensorflow as tf

    if image.shape[-1] == 1:
        return image

    def weighted(pixels: Any) -> Any:
        total = tf.linalg.matmul(tf.cast(pixels, tf.int32), _GREY)
        return tf.cast(tf.bitwise.right_shift(total + 2**15, 16), tf.uint8)

    # Row by row, for the numbers take 16 bytes a pixel.
    return tf.cond(
        tf.size(image) > 3 * LARGE,
        lambda: tf.map_fn(weighted, image, parallel_iterations=1),
        lambda: weighted(image),
    )


def as_sides(size: Size) -> Sides:
    """Return height and width of a size, which is one number for squares."""
    return size if isinstance(size, tuple) else (size, size)


def as_size(sides: Any) -> Any:
    """Return the side of a square, or height and width, of any sequence of the two."""
    if not isinstance(sides, tuple | list):
        return sides
    return sides[0] if len(sides) == 2 and sides[0] == sides[1] else tuple(sides)


def shown_size(sides: Sequence[int | None], between: str = "x") -> str:
    """Return height and width as messages show them, such as "64x96"."""
    return between.join(map(str, sides))


def scaled_sides(
    height: Any, width: Any, sides: Sides, *, covering: bool
) -> tuple[Any, Any]:
    """Scale an image so that it just covers others sides, or just fits into them.

    One of its sides becomes that of `sides`, the other one is rounded down.

    Works on Python integers and on integer tensors alike, as `crop_offset` does.
    """
    tall, wide = sides
    least, most = _extremes(height)
    along = height * wide // width, width * tall // height
    if covering:
        return most(along[0], tall), most(along[1], wide)
    return most(least(along[0], tall), 1), most(least(along[1], wide), 1)


def _window(side: Any, scaled: Any, size: int, *, pads: bool) -> Window:
    """Return what of one side of an image the input comes from."""
    least, most = _extremes(side)
    offset, length, before = crop_offset(scaled, size), size, 0
    if pads:
        before, offset = most(-offset, 0), most(offset, 0)
        length = least(scaled, size)
    # Both filters reach two pixels of the smaller image at most, and rounding one.
    reach = 2 * (-(-side // scaled)) + 2
    start = most(offset * side // scaled - reach, 0)
    end = least(-(-(offset + length) * side // scaled) + reach, side)
    return Window(start, end, side, scaled, offset, length, before)


def _extremes(side: Any) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """Return the functions that give the least and the greatest of two such sides."""
    if isinstance(side, int):
        return min, max
    import tensorflow as tf

    return tf.minimum, tf.maximum


def crop_offset(side: Any, crop: int) -> Any:
    """Return where a centre crop begins; halves round to even.

    torchvision rounds with Python's `round`, which does the same.
    """
    half = (side - crop) // 2
    return half + ((side - crop) % 2) * (half % 2)


def _resample_columns(image: Any, window: Window, kind: str) -> Any:
    """Resize the columns from `window.start` on and cut what is shown from the result.

    Pillow resizes horizontally, rounds to uint8, then vertically; following it
    leaves a difference in one pixel of a thousand, a single pass in one of seven.
    """
    import tensorflow as tf

    scale, translation = _placement(window)
    pixels = tf.raw_ops.ScaleAndTranslate(
        images=image[None],
        size=tf.stack([tf.shape(image)[0], tf.cast(window.length, tf.int32)]),
        scale=tf.stack([1.0, scale]),
        translation=tf.stack([0.0, translation]),
        kernel_type=_KERNELS[kind],
    )
    return _to_bytes(pixels[0])


def _resample_rows(image: Any, window: Window, kind: str) -> Any:
    """Resize the rows as `_resample_columns` does the columns.

    Each row becomes the channels of a single pixel: the kernel mixes those at once.
    """
    import tensorflow as tf

    height, width, channels = tf.unstack(tf.shape(image))
    length = tf.cast(window.length, tf.int32)
    scale, translation = _placement(window)
    pixels = tf.raw_ops.ScaleAndTranslate(
        images=tf.reshape(image, (1, height, 1, width * channels)),
        size=tf.stack([length, 1]), scale=tf.stack([scale, 1.0]),
        translation=tf.stack([translation, 0.0]), kernel_type=_KERNELS[kind],
    )  # fmt: skip
    return _to_bytes(tf.reshape(pixels, (length, width, channels)))


def _placement(window: Window) -> tuple[Any, Any]:
    """Return scale and translation of the pixels from `window.start` on, float32."""
    import tensorflow as tf

    scale = tf.cast(window.scaled / window.side, tf.float32)
    shift = (window.start * window.scaled - window.offset * window.side) / window.side
    return scale, tf.cast(shift, tf.float32)


def _to_bytes(pixels: Any) -> Any:
    import tensorflow as tf

    # Pillow rounds halves up; tf.round would round them to even.
    return tf.cast(tf.clip_by_value(tf.floor(pixels + 0.5), 0, 255), tf.uint8)
